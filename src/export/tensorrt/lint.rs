//! What TensorRT's parser and builder refuse or misread of quantized models, checked on every result.
//!
//! The rules were found by giving NVIDIA's own parser models that break them one at a time.

use std::collections::HashSet;

use crate::fold::activations::clip_bounds;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::model::{Model, is_default_domain};
use crate::onnx::{NodeProto, TensorProto};
use crate::quantize::MINIMUM_OPSET;
use crate::quantize::weights::channel_axis;
use crate::tensor::{DataType, floats, is_float, signed_bytes};

/// First operator set with float16 scales.
pub(super) const HALF_OPSET: i64 = 19;

/// First operator set with 4-bit types, and blocks.
const FOUR_BIT_OPSET: i64 = 21;

/// Operators that compute on integers themselves.
const INTEGER_OPERATORS: &[&str] =
    &["ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"];

/// What is fused with the layer in front of it.
const FUSED: &[&str] = &["BatchNormalization", "Clip", "Relu"];

/// Every rule that `model` breaks, naming the node.
pub fn lint(model: &Model) -> Vec<String> {
    let graph = Graph::new(model.graph());
    let mut findings = of_file(model);
    for (id, node) in graph.nodes().iter().enumerate() {
        let linter = Linter { graph: &graph, node, id, opset: model.opset().unwrap_or(0) };
        let mut broken = Vec::new();
        linter.operator(&mut broken);
        if is_quantizing(node) && is_default_domain(node.domain()) {
            linter.parameters(&mut broken);
            linter.partner(&mut broken);
        }
        linter.operands(&mut broken);
        findings.extend(broken.into_iter().map(|what| format!("node '{}' {what}", node.label())));
    }
    findings
}

fn of_file(model: &Model) -> Vec<String> {
    let mut findings = Vec::new();
    match model.opset() {
        Some(opset) if opset < MINIMUM_OPSET => {
            findings.push(format!("operator set {opset} has no scales per channel; {MINIMUM_OPSET} has"));
        }
        None => findings.push("the model does not use the standard operators".to_owned()),
        Some(_) => {}
    }
    if model.proto().ir_version() > super::IR_VERSION {
        findings.push(format!("IR version {} is above {}", model.proto().ir_version(), super::IR_VERSION));
    }
    findings
}

fn is_quantizing(node: &NodeProto) -> bool {
    matches!(node.op_type(), "QuantizeLinear" | "DequantizeLinear")
}

struct Linter<'g, 'm> {
    graph: &'g Graph<'m>,
    node: &'m NodeProto,
    id: NodeId,
    opset: i64,
}

impl<'m> Linter<'_, 'm> {
    /// Operators that the parser does not import.
    fn operator(&self, broken: &mut Vec<String>) {
        if INTEGER_OPERATORS.contains(&self.node.op_type()) {
            broken.push(format!(
                "is {}: only QuantizeLinear/DequantizeLinear is imported",
                self.node.op_type()
            ));
        }
        if is_quantizing(self.node) && !is_default_domain(self.node.domain()) {
            broken.push(format!("is of the domain '{}' instead of the standard one", self.node.domain()));
        }
    }

    /// Scale, zero point and axis.
    fn parameters(&self, broken: &mut Vec<String>) {
        let input = self.node.input_at(0).unwrap_or("");
        let scales = self.node.input_at(1).and_then(|name| self.constant(name));
        let Some(scales) = scales.filter(|tensor| is_float(tensor)) else {
            broken.push("has a scale that is not a float constant".to_owned());
            return;
        };
        if scales.data_type() != DataType::Float as i32 && self.opset < HALF_OPSET {
            broken.push(format!("has a float16 scale below operator set {HALF_OPSET}"));
        }
        let values = floats(scales).unwrap_or_default();
        if !values.iter().all(|&s| s > 0.0 && s.is_finite()) || values.is_empty() {
            broken.push("has a scale that is not positive and finite".to_owned());
        }
        let constant = self.source(input);
        if let Some(tensor) = constant.filter(|tensor| tensor.data_type() == DataType::Int4 as i32) {
            self.four_bits(tensor, scales, broken);
            return;
        }
        self.zero_point(values.len(), broken);
        match constant {
            None if values.len() > 1 => broken.push("has a scale per channel for an activation".to_owned()),
            Some(tensor) if values.len() > 1 => self.axis(tensor, values.len(), broken),
            _ => {}
        }
        if let Some(tensor) = constant {
            self.integers(tensor, broken);
        }
    }

    fn zero_point(&self, count: usize, broken: &mut Vec<String>) {
        let Some(zero) = self.node.input_at(2).and_then(|name| self.constant(name)) else {
            broken.push("has no constant zero point".to_owned());
            return;
        };
        let Some(values) = signed_bytes(zero) else {
            broken.push("has a zero point that is not int8".to_owned());
            return;
        };
        if values.iter().any(|&z| z != 0) {
            broken.push("has a zero point that is not 0".to_owned());
        }
        if values.len() != count {
            broken.push(format!("has {count} scales, but {} zero points", values.len()));
        }
    }

    /// 4-bit weights: a scale for each channel or for each block of its inputs, and no zero point.
    fn four_bits(&self, tensor: &TensorProto, scales: &TensorProto, broken: &mut Vec<String>) {
        if self.opset < FOUR_BIT_OPSET {
            broken.push(format!("has 4-bit weights below operator set {FOUR_BIT_OPSET}"));
        }
        if tensor.dims.iter().product::<i64>() % 2 != 0 {
            broken.push("has an odd number of 4-bit weights".to_owned());
        }
        let zero = self.node.input_at(2).map(|name| self.constant(name));
        let zeros = |zero: &TensorProto| {
            zero.int32_data.iter().all(|&z| z == 0) && zero.raw_data().iter().all(|&z| z == 0)
        };
        if zero.is_some_and(|zero| !zero.is_some_and(zeros)) {
            broken.push("has a zero point that is not 0".to_owned());
        }
        let block = self.node.int("block_size", 0);
        if block == 0 {
            if scales.dims.iter().product::<i64>() > 1 {
                self.axis(tensor, scales.dims.iter().product::<i64>() as usize, broken);
            }
            return;
        }
        let axis = self.node.int("axis", 1);
        let blocks = |(at, (&all, &some)): (usize, (&i64, &i64))| match at as i64 == axis {
            true => some.checked_mul(block) == Some(all),
            false => all == some,
        };
        let fits = tensor.dims.len() == scales.dims.len()
            && tensor.dims.iter().zip(&scales.dims).enumerate().all(blocks);
        if !fits {
            let (weights, scales) = (&tensor.dims, &scales.dims);
            broken.push(format!(
                "has scales of the shape {scales:?} for blocks of {block} along axis {axis} of {weights:?}"
            ));
        }
    }

    fn axis(&self, tensor: &TensorProto, count: usize, broken: &mut Vec<String>) {
        let Some(axis) = self.node.attribute("axis").map(|axis| axis.i()) else {
            broken.push("has scales per channel, but no axis".to_owned());
            return;
        };
        let channels = usize::try_from(axis).ok().and_then(|axis| tensor.dims.get(axis));
        if channels != Some(&(count as i64)) {
            broken.push(format!("has {count} scales along axis {axis} of the shape {:?}", tensor.dims));
        }
    }

    /// The integers behind a lone DequantizeLinear.
    fn integers(&self, tensor: &TensorProto, broken: &mut Vec<String>) {
        if !self.node.is("DequantizeLinear") || is_float(tensor) {
            return;
        }
        match signed_bytes(tensor) {
            None => broken.push(format!("reads '{}', which is not int8", tensor.name())),
            Some(values) if values.contains(&i8::MIN) => {
                broken.push(format!("reads '{}', which holds -128", tensor.name()));
            }
            Some(_) => {}
        }
    }

    /// What a QuantizeLinear and the DequantizeLinear behind it have to share.
    fn partner(&self, broken: &mut Vec<String>) {
        if !self.node.is("DequantizeLinear") {
            return;
        }
        let Some(quantize) = self.producer(self.node.input_at(0)).filter(|node| node.is("QuantizeLinear"))
        else {
            return;
        };
        let scale = |node: &NodeProto| self.constant(node.input_at(1)?).and_then(|t| floats(t).ok());
        if scale(quantize) != scale(self.node) {
            broken.push(format!("has another scale than '{}' in front of it", quantize.label()));
        }
    }

    /// What operators read.
    fn operands(&self, broken: &mut Vec<String>) {
        let dequantized = |index: usize| self.dequantize(self.node.input_at(index));
        match self.node.op_type() {
            "Conv" | "ConvTranspose" | "Gemm" => {
                if dequantized(2).is_some() {
                    broken.push("has a quantized bias; it must be float".to_owned());
                }
                self.weights_axis(broken);
            }
            "MatMul" => self.weights_axis(broken),
            "Concat" => self.one_scale(broken),
            op_type if FUSED.contains(&op_type) && dequantized(0).is_some() && self.follows_layer() => {
                broken.push("is kept from the layer in front of it by a pair".to_owned());
            }
            _ => {}
        }
    }

    /// Weights have their scales along the output channels.
    fn weights_axis(&self, broken: &mut Vec<String>) {
        let Some(dequantize) = self.dequantize(self.node.input_at(1)) else { return };
        let axis = dequantize.attribute("axis").map(|axis| axis.i());
        let several =
            dequantize.input_at(1).and_then(|name| self.constant(name)).is_some_and(|s| !s.dims.is_empty());
        let channels = channel_axis(self.graph, self.id) as i64;
        let weights = dequantize.input_at(0).and_then(|name| self.source(name));
        let blocked = dequantize.int("block_size", 0) != 0;
        if several && !blocked && weights.is_some() && axis.is_some_and(|axis| axis != channels) {
            broken.push(format!(
                "has scales along axis {} of its weights; its channels are axis {channels}",
                axis.unwrap_or(0)
            ));
        }
    }

    /// All inputs of a concatenation that are quantized, and its result if that is, have one scale.
    fn one_scale(&self, broken: &mut Vec<String>) {
        let Some(output) = self.node.output.first() else { return };
        let readers = self.graph.consumers(output).iter().map(|id| self.graph.node(*id));
        let behind = readers.filter(|node| node.is("QuantizeLinear")).collect::<Vec<_>>();
        if behind.is_empty() {
            return;
        }
        let before = self.node.input.iter().filter_map(|input| self.dequantize(Some(input)));
        let scales = before.chain(behind).filter_map(|node| self.constant(node.input_at(1)?));
        let bits: HashSet<Vec<u32>> =
            scales.filter_map(|t| Some(floats(t).ok()?.into_iter().map(f32::to_bits).collect())).collect();
        if bits.len() > 1 {
            broken.push("joins values of different scales".to_owned());
        }
    }

    /// Whether a convolution or product made what the pair in front of this operator quantizes.
    fn follows_layer(&self) -> bool {
        let dequantize = self.dequantize(self.node.input_at(0));
        let quantize = dequantize.and_then(|node| self.producer(node.input_at(0)));
        let layer = quantize.and_then(|node| self.producer(node.input_at(0)));
        let clips = self.node.is("Clip") && clip_bounds(self.graph, self.id).is_none();
        layer.is_some_and(|node| matches!(node.op_type(), "Conv" | "ConvTranspose" | "Gemm" | "MatMul"))
            && !clips
    }

    /// The DequantizeLinear that makes `value`.
    fn dequantize(&self, value: Option<&str>) -> Option<&'m NodeProto> {
        self.producer(value).filter(|node| node.is("DequantizeLinear"))
    }

    fn producer(&self, value: Option<&str>) -> Option<&'m NodeProto> {
        self.graph.producer(value?).map(|id| self.graph.node(id))
    }

    /// A constant: an initializer, or what a Constant node holds.
    fn constant(&self, name: &str) -> Option<&'m TensorProto> {
        let node = || self.producer(Some(name)).filter(|node| node.is("Constant"));
        let held = || node().and_then(|node| node.attribute("value")).and_then(|value| value.t.as_deref());
        self.graph.constant(name).or_else(held)
    }

    /// The constant that `name` is, or is quantized from.
    fn source(&self, name: &str) -> Option<&'m TensorProto> {
        let quantized = || self.producer(Some(name)).filter(|node| node.is("QuantizeLinear"));
        self.constant(name).or_else(|| self.constant(quantized()?.input_at(0)?))
    }
}
