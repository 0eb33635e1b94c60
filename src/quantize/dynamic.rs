//! Dynamic quantization: int8 weights now, uint8 activations when the model runs.
//!
//! `X · W` becomes `DynamicQuantizeLinear` → `MatMulInteger` → `Cast` → `Mul` by s_x · s_w\[c\], the form that ONNX
//! Runtime fuses into one kernel. Convolutions stay float: without a range known in advance their sums cannot be
//! requantized in the kernel, and the integer convolution that returns int32 is slower than the float one.

use std::collections::{HashMap, HashSet};

use super::names::Names;
use super::weights::{self, QuantizedWeights, WeightGrid};
use super::{LayerRecord, Quantized, in_order, too_old};
use crate::error::Result;
use crate::given::Given;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::model::Model;
use crate::onnx::NodeProto;
use crate::ops::{Role, op, without_kernel};
use crate::patch::{Patch, apply, cast_to, node};
use crate::tensor::{self, DataType, tensor, tensor_of_bytes};

/// Quantizes the weights of a folded model and lets its activations be quantized at run time.
///
/// # Errors
/// As [`super::quantize_static`]. Weights that stay float are checked, too: nobody needs to read them all in advance.
pub fn quantize_dynamic(model: &Model, grid: WeightGrid, exclude: &HashSet<String>) -> Result<Quantized> {
    if let Some(reason) = too_old(model) {
        Graph::new(model.graph()).check_weights(&Default::default())?;
        return Ok(super::left_float(model, &reason));
    }
    let graph = Graph::new(model.graph());
    let mut writer =
        Writer { graph: &graph, patch: Patch::default(), names: Names::new(&graph), inputs: HashMap::new() };
    let (mut layers, mut read) = (Vec::new(), foldhash::HashSet::default());
    for id in 0..graph.nodes().len() {
        let Some(verdict) = verdict(&graph, id, exclude) else { continue };
        let weight_sqnr_db = match &verdict {
            Ok(()) => {
                read.insert(graph.node(id).input[1].as_str());
                Some(writer.product(id, grid)?)
            }
            Err(_) => None,
        };
        let quantized = verdict.is_ok();
        let layer = LayerRecord::unquantized(&graph, id, verdict.err().unwrap_or_default());
        let weights = if quantized { "int8".to_owned() } else { String::new() };
        layers.push((id, LayerRecord { quantized, weights, weight_sqnr_db, ..layer }));
    }
    graph.check_weights(&read)?;
    layers.extend(super::embeddings(
        &graph,
        (exclude, &Given::default()),
        &mut writer.names,
        &mut writer.patch,
    )?);
    Ok(Quantized { model: apply(model.clone(), writer.patch)?, layers: in_order(layers), notes: Vec::new() })
}

/// Why convolutions stay float.
const CONVOLUTION: &str =
    "a convolution with ranges found at run time is slower in int8 than in float; give calibration data";

/// Whether an operator with weights is quantized, or why not; `None` for any other operator.
fn verdict(graph: &Graph, id: NodeId, exclude: &HashSet<String>) -> Option<Result<(), String>> {
    let node = graph.node(id);
    if node.is("Conv") {
        return Some(Err(CONVOLUTION.to_owned()));
    }
    if let Some(reason) = without_kernel(node) {
        return Some(Err(reason.to_owned()));
    }
    if !node.is("MatMul") && !node.is("Gemm") {
        return None;
    }
    Some(match op(graph, id) {
        _ if exclude.contains(node.label()) => Err("excluded by the configuration".to_owned()),
        Some(op) if op.role == Role::Linear => super::sites::constant_weights(graph, id, 1),
        _ => Err("its attributes are not among those of the int8 kernel".to_owned()),
    })
}

/// Names of the quantized activation, its scale and its zero point.
#[derive(Clone)]
struct DynamicInput([String; 3]);

struct Writer<'g, 'm> {
    graph: &'g Graph<'m>,
    patch: Patch,
    names: Names<'g, 'm>,
    /// Quantized activations that are already written, by name.
    inputs: HashMap<&'m str, DynamicInput>,
}

impl<'m> Writer<'_, 'm> {
    /// Rewrites one product; returns the signal to noise ratio of its weights in dB.
    fn product(&mut self, id: NodeId, grid: WeightGrid) -> Result<f64> {
        let original = self.graph.node(id);
        let mut nodes = Vec::new();
        let DynamicInput([x, x_scale, x_zero]) = self.input(&original.input[0], &mut nodes);
        let quantized = weights::quantize(self.graph, id, None, grid, Default::default())?;
        let (w, w_scale) = self.weight(id, &quantized)?;
        let output = original.output[0].as_str();
        let [integers, cast, scale, product] = ["integers", "cast", "product_scale", "product"]
            .map(|part| self.names.get(&format!("{output}_{part}")));
        let bias = original.input_at(2);
        let result = if bias.is_some() { &product } else { output };
        nodes.push(node("MatMulInteger", original.label(), &[&x, &w, &x_zero], &[&integers]));
        nodes.push(cast_to(DataType::Float, &integers, &cast));
        nodes.push(node("Mul", &scale, &[&x_scale, &w_scale], &[&scale]));
        nodes.push(node("Mul", &product, &[&cast, &scale], &[result]));
        if let Some(bias) = bias {
            nodes.push(node("Add", &self.names.get(&format!("{output}_bias")), &[&product, bias], &[output]));
        }
        self.patch.replace(id, nodes);
        Ok(quantized.sqnr_db)
    }

    /// The quantization of an activation, written before its first reader.
    fn input(&mut self, value: &'m str, nodes: &mut Vec<NodeProto>) -> DynamicInput {
        if let Some(input) = self.inputs.get(value) {
            return input.clone();
        }
        let parts = ["quantized", "scale", "zero_point"];
        let input = DynamicInput(parts.map(|part| self.names.get(&format!("{value}_{part}"))));
        let names = input.0.each_ref().map(String::as_str);
        let label = self.names.get(&format!("{value}_DynamicQuantizeLinear"));
        nodes.push(node("DynamicQuantizeLinear", &label, &[value], &names));
        self.inputs.insert(value, input.clone());
        input
    }

    /// The weights as initializers, in \[K, N\] order, and their scale.
    fn weight(&mut self, id: NodeId, quantized: &QuantizedWeights) -> Result<(String, String)> {
        let original = self.graph.node(id);
        let base = &original.input[1];
        let transposed = original.int("transB", 0) != 0;
        let base = if transposed { format!("{base}_transposed") } else { base.clone() };
        let [name, scale_name] = ["quantized", "scale"].map(|part| self.names.get(&format!("{base}_{part}")));
        let mut integers = tensor_of_bytes(&name, &quantized.dims, DataType::Int8, quantized.values.clone());
        if transposed {
            integers = tensor::transposed(&integers, &name, &[1, 0])?.unwrap_or(integers);
        }
        self.patch.initializer(integers);
        let scale = &quantized.params.scale;
        let dims = quantized.params.axis.map(|_| scale.len());
        self.patch.initializer(tensor(&scale_name, dims.as_slice(), scale));
        Ok((name, scale_name))
    }
}
