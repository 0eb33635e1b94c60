//! Writes a plan into the graph as QuantizeLinear/DequantizeLinear pairs.
//!
//! * A value made by an integer kernel keeps its name behind the pair, so that every reader, a graph output and a
//!   subgraph included, reads what the integers say.
//! * A value made in float keeps its name; only the integer kernels read the pair behind it.
//! * Weights are int8 initializers behind a DequantizeLinear, biases int32 with the scale of the kernel's sums.

use std::collections::{HashMap, HashSet};

use super::sites::{Site, Sites};
use super::weights::{self, QuantizedWeights};
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::NodeProto;
use crate::ops::Role;
use crate::patch::{Patch, float_attribute, int_attribute, node};
use crate::qparams::{Dtype, QuantParams, Range, Scheme};
use crate::tensor::{floats, is_float, shape, tensor};

/// Float operators that ONNX Runtime fuses with the DequantizeLinear before and the QuantizeLinear behind them.
const FUSED_FROM_FLOAT: &[&str] = &[
    "Add",
    "AveragePool",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Gemm",
    "GlobalAveragePool",
    "MatMul",
    "Mul",
    "Sigmoid",
    "Softmax",
    "Where",
];

/// What is to be written.
pub(crate) struct Plan<'p, 'm> {
    pub graph: &'p Graph<'m>,
    pub sites: &'p Sites<'m>,
    /// Whether each site runs on integers.
    pub int8: &'p [bool],
    pub activations: &'p HashMap<&'m str, QuantParams>,
    pub scheme: Scheme,
    pub per_channel: bool,
    /// Number of dimensions of an activation.
    pub rank: &'p dyn Fn(&str) -> Option<usize>,
    /// Whether every input of the model has a fixed shape.
    pub static_shapes: bool,
}

/// The edit, and the weights that went into it by node.
pub(crate) struct Emitted {
    pub patch: Patch,
    pub weights: HashMap<NodeId, QuantizedWeights>,
}

/// Writes `plan`.
///
/// # Errors
/// [`crate::Error::Tensor`] when weights cannot be quantized.
pub(crate) fn emit(plan: &Plan) -> Result<Emitted> {
    let mut emitter =
        Emitter { plan, patch: Patch::default(), weights: HashMap::new(), zero_points: HashSet::new() };
    for id in 0..plan.graph.nodes().len() {
        emitter.node(id)?;
    }
    for value in plan.sites.values() {
        emitter.quantized_input(value);
    }
    Ok(Emitted { patch: emitter.patch, weights: emitter.weights })
}

struct Emitter<'p, 'm> {
    plan: &'p Plan<'p, 'm>,
    patch: Patch,
    weights: HashMap<NodeId, QuantizedWeights>,
    zero_points: HashSet<String>,
}

impl<'p, 'm> Emitter<'p, 'm> {
    /// Rewrites one node: its integer inputs, its weights, and the pair behind its output.
    fn node(&mut self, id: NodeId) -> Result<()> {
        let plan = self.plan;
        let site = plan.sites.of_node(id).map(|i| (&plan.sites.all[i], plan.int8[i]));
        let Some((site, true)) = site else { return Ok(()) };
        let mut nodes = Vec::new();
        let mut new = plan.graph.node(id).clone();
        if site.id == id {
            self.inputs(site, &mut new, &mut nodes)?;
        }
        let pairs: Vec<_> = if site.last_node() == id {
            site.outputs
                .iter()
                .filter(|value| self.is_written_as_integers(site, value))
                .map(|&value| value)
                .collect()
        } else {
            Vec::new()
        };
        for output in &mut new.output {
            if pairs.contains(&output.as_str()) {
                *output = format!("{output}_float");
            }
        }
        nodes.push(new);
        for value in pairs {
            let [quantize, dequantize] = self.pair(value, &format!("{value}_float"), value);
            nodes.extend([quantize, dequantize]);
        }
        self.patch.replace(id, nodes);
        Ok(())
    }

    /// Whether a `QuantizeLinear` belongs behind an output: always, unless the kernel hands out floats and only
    /// float operators want them.
    fn is_written_as_integers(&self, site: &Site, value: &str) -> bool {
        !site.op.float_output || self.has_integer_reader(value)
    }

    fn has_integer_reader(&self, value: &str) -> bool {
        let plan = self.plan;
        let reads = |&id: &NodeId| {
            plan.sites.of_node(id).is_some_and(|i| plan.int8[i] && plan.sites.all[i].inputs.contains(&value))
        };
        plan.graph.consumers(value).iter().any(reads)
    }

    /// Points the inputs of an integer kernel at dequantized values.
    fn inputs(&mut self, site: &Site<'m>, new: &mut NodeProto, nodes: &mut Vec<NodeProto>) -> Result<()> {
        let plan = self.plan;
        for index in 0..site.op.activations.min(new.input.len()) {
            let value = new.input[index].clone();
            if plan.graph.initializer(&value).is_some() {
                new.input[index] = self.constant(&value, site.id, nodes)?;
            } else if !self.is_made_of_integers(&value) {
                new.input[index] = dequantized(&value);
            }
        }
        match site.op.role {
            Role::Linear => self.linear(site, new, nodes)?,
            Role::Saturating => self.saturating(site, new, nodes),
            _ => {}
        }
        Ok(())
    }

    fn is_made_of_integers(&self, value: &str) -> bool {
        let plan = self.plan;
        plan.sites
            .producer(plan.graph, value)
            .is_some_and(|i| plan.int8[i] && self.is_written_as_integers(&plan.sites.all[i], value))
    }

    /// A float value that integer kernels read: its pair, right where it is made.
    fn quantized_input(&mut self, value: &str) {
        if !self.has_integer_reader(value) || self.is_made_of_integers(value) {
            return;
        }
        self.shield(value);
        let position = self.plan.graph.producer(value).map_or(0, |id| id + 1);
        for new in self.pair(value, value, &dequantized(value)) {
            self.patch.insert(position, new);
        }
    }

    /// Keeps a float operator that stands between two integer ones float.
    ///
    /// ONNX Runtime would take it for one of them, and even quantize its weights, per tensor. A `LeakyRelu` behind it
    /// breaks the pattern and costs nothing, because it is fused into the float kernel: with slope 1 it is the
    /// identity, with slope 0 a `Relu`.
    fn shield(&mut self, value: &str) {
        let graph = self.plan.graph;
        let Some(last) = graph.producer(value) else { return };
        let behind_relu =
            graph.node(last).is("Relu").then(|| graph.producer(&graph.node(last).input[0])).flatten();
        let operator = behind_relu.unwrap_or(last);
        let node_ = graph.node(operator);
        let looks_quantized = FUSED_FROM_FLOAT.iter().any(|op_type| node_.is(op_type))
            && node_.input.first().is_some_and(|input| self.is_made_of_integers(input));
        // QuantizeLinear would move in front of the pooling, where there is more to do and the integer kernel is slow.
        if !looks_quantized && !node_.is("MaxPool") {
            return;
        }
        let mut guard = node("LeakyRelu", &format!("{value}_shield"), &[], &[value]);
        guard.attribute.push(float_attribute("alpha", if behind_relu.is_some() { 0.0 } else { 1.0 }));
        if behind_relu.is_some() {
            guard.input = node_.output.clone();
            self.patch.replace(last, vec![guard]);
        } else {
            let (mut operator_node, inner) = (node_.clone(), format!("{value}_unshielded"));
            guard.input = vec![inner.clone()];
            operator_node.output = vec![inner];
            self.patch.replace(operator, vec![operator_node, guard]);
        }
    }

    /// QuantizeLinear from `input` and DequantizeLinear to `output`, with the parameters of `value`.
    fn pair(&mut self, value: &str, input: &str, output: &str) -> [NodeProto; 2] {
        let params = &self.plan.activations[value];
        let (scale, zero) = (format!("{value}_scale"), self.zero_point(params));
        let integers = format!("{value}_quantized");
        self.patch.initializer(tensor(&scale, &[], &params.scale));
        [
            node("QuantizeLinear", &format!("{value}_QuantizeLinear"), &[input, &scale, &zero], &[&integers]),
            node(
                "DequantizeLinear",
                &format!("{value}_DequantizeLinear"),
                &[&integers, &scale, &zero],
                &[output],
            ),
        ]
    }

    /// The initializer of a scalar zero point, shared by all tensors that have the same.
    fn zero_point(&mut self, params: &QuantParams) -> String {
        let value = params.zero_point[0];
        let (name, new) = match params.dtype {
            Dtype::Uint8 => (format!("zero_point_u{value}"), tensor("", &[], &[value as u8])),
            _ => (format!("zero_point_i{value}"), tensor("", &[], &[value as i8])),
        };
        if self.zero_points.insert(name.clone()) {
            self.patch.initializer(crate::onnx::TensorProto { name: Some(name.clone()), ..new });
        }
        name
    }

    /// The int8 zero points of weights, shared: without them ONNX Runtime does not fuse a `Gemm`.
    fn zeros(&mut self, count: Option<usize>) -> String {
        let name = count.map_or("zero_point_i0".to_owned(), |count| format!("zero_points_{count}"));
        if self.zero_points.insert(name.clone()) {
            self.patch.initializer(tensor(&name, count.as_slice(), &vec![0_i8; count.unwrap_or(1)]));
        }
        name
    }

    /// A constant operand on a grid of its own, in the type of the activations.
    fn constant(&mut self, name: &str, reader: NodeId, nodes: &mut Vec<NodeProto>) -> Result<String> {
        let Some(constant) = self.plan.graph.initializer(name) else { return Ok(name.to_owned()) };
        let values = floats(constant)?;
        let (min, max) = crate::kernels::min_max(&values).unwrap_or((0.0, 0.0));
        let params = QuantParams::new(Range { min, max }, self.plan.scheme);
        let (integers, scale) = (format!("{name}_quantized"), format!("{name}_scale"));
        self.patch.initializer(integer_tensor(&integers, &shape(constant)?, &values, &params));
        self.patch.initializer(tensor(&scale, &[], &params.scale));
        let zero = self.zero_point(&params);
        let output = format!("{}_{reader}", dequantized(name));
        nodes.push(node("DequantizeLinear", &output, &[&integers, &scale, &zero], &[&output]));
        Ok(output)
    }

    /// Weights and bias of a multiplication.
    fn linear(&mut self, site: &Site<'m>, new: &mut NodeProto, nodes: &mut Vec<NodeProto>) -> Result<()> {
        let plan = self.plan;
        let input_scale = plan.activations[site.inputs[0]].scale[0];
        let quantized = weights::quantize(plan.graph, site.id, input_scale, plan.per_channel)?;
        let base = &plan.graph.node(site.id).input[1];
        // Two operators may share the weights but not the scale that their biases ask for.
        let base =
            if plan.graph.consumers(base).len() > 1 { format!("{base}_{}", site.id) } else { base.clone() };
        let (integers, scale, output) =
            (format!("{base}_quantized"), format!("{base}_scale"), dequantized(&base));
        self.patch.initializer(tensor(&integers, &quantized.dims, &quantized.values));
        let axis = quantized.params.axis;
        let scale_dims = axis.map(|_| quantized.params.scale.len());
        self.patch.initializer(tensor(&scale, scale_dims.as_slice(), &quantized.params.scale));
        let mut dequantize =
            with_axis(node("DequantizeLinear", &output, &[&integers, &scale], &[&output]), axis);
        if site.op.op_type == "Gemm" {
            dequantize.input.push(self.zeros(scale_dims));
        }
        nodes.push(dequantize);
        new.input[1] = output;
        if let Some((values, bias_scale)) = &quantized.bias {
            new.input[2] = self.bias(&new.input[2], site.id, values, bias_scale, nodes);
        }
        if new.op_type() == "MatMul" && !self.is_written_as_integers(site, site.outputs[0]) {
            self.bias_behind(site, input_scale, &quantized)?;
        }
        self.weights.insert(site.id, quantized);
        Ok(())
    }

    /// The bias that an `Add` puts on a `MatMul`.
    ///
    /// ONNX Runtime makes a `Gemm` of the two where it knows that the operands are matrices, and has an integer `Gemm`
    /// only for an int32 bias. Where it does not know, it adds in float, and a float bias is the quicker one.
    fn bias_behind(&mut self, site: &Site<'m>, input_scale: f32, quantized: &QuantizedWeights) -> Result<()> {
        let plan = self.plan;
        let becomes_gemm = plan.static_shapes || (plan.rank)(site.inputs[0]) == Some(2);
        let Some(add) = plan.graph.sole_consumer(site.outputs[0]).filter(|_| becomes_gemm) else {
            return Ok(());
        };
        let original = plan.graph.node(add);
        let is_site = plan.sites.of_node(add).is_some_and(|i| plan.int8[i]);
        let constant =
            |name: &&String| plan.graph.constant(name).is_some_and(|t| t.dims.len() == 1 && is_float(t));
        let Some(bias) = original.input.iter().find(constant) else { return Ok(()) };
        let values = floats(plan.graph.constant(bias).expect("just found"))?;
        if !original.is("Add") || is_site || values.len() != quantized.dims[1] {
            return Ok(());
        }
        let scale: Vec<f32> = quantized.params.scale.iter().copied().cycle().take(values.len()).collect();
        let (integers, bias_scale) = weights::quantize_bias(&values, input_scale, &scale);
        let mut nodes = Vec::new();
        let output = self.bias(bias, site.id, &integers, &bias_scale, &mut nodes);
        let mut new = original.clone();
        new.input =
            original.input.iter().map(|i| if i == bias { output.clone() } else { i.clone() }).collect();
        nodes.push(new);
        self.patch.replace(add, nodes);
        Ok(())
    }

    /// An int32 bias behind its DequantizeLinear.
    fn bias(
        &mut self,
        base: &str,
        id: NodeId,
        values: &[i32],
        scale: &[f32],
        nodes: &mut Vec<NodeProto>,
    ) -> String {
        let shared = self.plan.graph.consumers(base).len() > 1;
        let base = if shared { format!("{base}_{id}") } else { base.to_owned() };
        let (integers, scale_name, output) =
            (format!("{base}_quantized"), format!("{base}_scale"), dequantized(&base));
        self.patch.initializer(tensor(&integers, &[values.len()], values));
        self.patch.initializer(tensor(&scale_name, &[scale.len()], scale));
        nodes.push(with_axis(
            node("DequantizeLinear", &output, &[&integers, &scale_name], &[&output]),
            Some(0),
        ));
        output
    }

    /// `clip(α · x + β, 0, 1)` as an addition in int8: x is read on a scale α times as large, and saturation clips.
    fn saturating(&mut self, site: &Site<'m>, new: &mut NodeProto, nodes: &mut Vec<NodeProto>) {
        let original = self.plan.graph.node(site.id);
        let (alpha, beta) = (original.float("alpha", 0.2), original.float("beta", 0.5));
        let value = site.inputs[0];
        let params = &self.plan.activations[value];
        let output = new.output[0].clone();
        let [scaled, scale] = ["scaled", "scaled_scale"].map(|part| format!("{output}_{part}"));
        self.patch.initializer(tensor(&scale, &[], &[params.scale[0] * alpha]));
        let zero = self.zero_point(params);
        let integers = format!("{value}_quantized");
        nodes.push(node("DequantizeLinear", &scaled, &[&integers, &scale, &zero], &[&scaled]));
        let offset = format!("{output}_offset");
        let offset_params =
            QuantParams::new(Range { min: 0.0_f32.min(beta), max: 0.0_f32.max(beta) }, self.plan.scheme);
        let offset_scale = format!("{offset}_scale");
        self.patch.initializer(tensor(&offset_scale, &[], &offset_params.scale));
        self.patch.initializer(integer_tensor(&format!("{offset}_quantized"), &[], &[beta], &offset_params));
        let zero = self.zero_point(&offset_params);
        nodes.push(node(
            "DequantizeLinear",
            &offset,
            &[&format!("{offset}_quantized"), &offset_scale, &zero],
            &[&offset],
        ));
        *new = node("Add", new.name(), &[&scaled, &offset], &[&output]);
    }
}

fn dequantized(value: &str) -> String {
    format!("{value}_dequantized")
}

fn with_axis(mut node: NodeProto, axis: Option<usize>) -> NodeProto {
    // 1 is the default.
    node.attribute.extend(axis.filter(|&axis| axis != 1).map(|axis| int_attribute("axis", axis as i64)));
    node
}

fn integer_tensor(
    name: &str,
    dims: &[usize],
    values: &[f32],
    params: &QuantParams,
) -> crate::onnx::TensorProto {
    let grid = params.grid(0);
    match params.dtype {
        Dtype::Uint8 => {
            let mut out = vec![0_u8; values.len()];
            crate::kernels::quantize_clamped(
                values,
                grid.scale,
                grid.zero_point,
                grid.qmin,
                grid.qmax,
                &mut out,
            );
            tensor(name, dims, &out)
        }
        _ => {
            let mut out = vec![0_i8; values.len()];
            crate::kernels::quantize_clamped(
                values,
                grid.scale,
                grid.zero_point,
                grid.qmin,
                grid.qmax,
                &mut out,
            );
            tensor(name, dims, &out)
        }
    }
}
