//! What the integer kernels of ONNX Runtime's CPU provider can do with each operator, as data.
//!
//! A kernel replaces an operator when its activation inputs come from `DequantizeLinear` and, unless it can
//! [return floats](Op::float_output), its output goes to `QuantizeLinear`. Operators that are not listed stay float.

use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::{NodeProto, TensorProto};
use crate::tensor::{is_filled, shape};

/// How an operator relates the quantization of its input to that of its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Multiplies activations by constant weights: what int8 is for.
    Linear,
    /// Computes new values in int8, each tensor on a scale of its own.
    Arithmetic,
    /// `x · α + β` clipped to 0…1: an addition whose result saturates.
    Saturating,
    /// Moves, selects or repeats values: its output is on the scale of its input.
    Move,
    /// Clips the result of the operator before it, and disappears into that operator's saturation.
    Clip,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Op {
    /// The operator.
    pub op_type: &'static str,
    /// Its role.
    pub role: Role,
    /// Index of the input that holds the weights.
    pub weight: Option<usize>,
    /// How many of the first inputs are activations; the others are shapes, axes, weights or bias.
    pub activations: usize,
    /// Whether the kernel can hand out float32 without a `QuantizeLinear` behind it.
    pub float_output: bool,
}

const fn row(op_type: &'static str, role: Role, activations: usize) -> Op {
    Op { op_type, role, weight: None, activations, float_output: false }
}

const fn linear(op_type: &'static str, float_output: bool) -> Op {
    Op { op_type, role: Role::Linear, weight: Some(1), activations: 1, float_output }
}

/// All inputs.
const EVERY: usize = usize::MAX;

/// The operators with integer kernels.
pub const OPS: &[Op] = &[
    linear("Conv", false),
    linear("Gemm", true),
    linear("MatMul", true),
    row("Add", Role::Arithmetic, 2),
    row("Mul", Role::Arithmetic, 2),
    row("Concat", Role::Arithmetic, EVERY),
    row("Sigmoid", Role::Arithmetic, 1),
    row("LeakyRelu", Role::Arithmetic, 1),
    row("AveragePool", Role::Arithmetic, 1),
    row("GlobalAveragePool", Role::Arithmetic, 1),
    row("HardSigmoid", Role::Saturating, 1),
    row("MaxPool", Role::Move, 1),
    row("Resize", Role::Move, 1),
    row("Reshape", Role::Move, 1),
    row("Transpose", Role::Move, 1),
    row("Flatten", Role::Move, 1),
    row("Squeeze", Role::Move, 1),
    row("Unsqueeze", Role::Move, 1),
    row("Slice", Role::Move, 1),
    row("Split", Role::Move, 1),
    row("Expand", Role::Move, 1),
    row("DepthToSpace", Role::Move, 1),
    row("Relu", Role::Clip, 1),
    row("Clip", Role::Clip, 1),
];

/// The operators that multiply by weights, with an integer kernel or without.
pub const PRODUCTS: &[&str] = &["Conv", "ConvTranspose", "Gemm", "MatMul"];

/// Operators that hold weights, but have no integer kernel, and what to say of them.
const WITHOUT_KERNEL: &[(&str, &str)] = &[
    ("ConvTranspose", "there is no int8 kernel for transposed convolutions"),
    ("If", "the bodies of If, Loop and Scan are left as they are"),
    ("Loop", "the bodies of If, Loop and Scan are left as they are"),
    ("Scan", "the bodies of If, Loop and Scan are left as they are"),
    ("LSTM", "there is no int8 kernel for it among the standard operators"),
    ("GRU", "there is no int8 kernel for it among the standard operators"),
    ("RNN", "there is no int8 kernel for it among the standard operators"),
];

/// Why an operator that holds weights has no row at all.
pub fn without_kernel(node: &NodeProto) -> Option<&'static str> {
    WITHOUT_KERNEL.iter().find(|(op_type, _)| node.is(op_type)).map(|(_, reason)| *reason)
}

/// Dimensions of the weights of a `Conv`, `ConvTranspose`, `Gemm` or `MatMul`, if they can be those of one.
///
/// # Errors
/// Why they cannot.
pub fn weight_dims(node: &NodeProto, weight: &TensorProto) -> Result<Vec<usize>, String> {
    let dims = shape(weight).map_err(|e| e.to_string())?;
    let convolution = node.is("Conv") || node.is("ConvTranspose");
    let wrong = |what: &str| Err(format!("its weights '{}' have {what}", weight.name()));
    if dims.contains(&0) || !is_filled(weight) {
        return wrong("no data for their shape");
    }
    if convolution && dims.len() < 3 || !convolution && dims.len() != 2 {
        return wrong(&format!("{} dimensions", dims.len()));
    }
    let groups = usize::try_from(node.int("group", 1)).unwrap_or(0);
    if convolution && (groups == 0 || dims[0] % groups != 0) {
        return wrong(&format!("{} channels for {groups} groups", dims[0]));
    }
    Ok(dims)
}

/// The row of a node, if it has one and its attributes are among those the kernel takes.
pub fn op(graph: &Graph, id: NodeId) -> Option<&'static Op> {
    let node = graph.node(id);
    let op = OPS.iter().find(|op| node.is(op.op_type))?;
    let takes = match op.op_type {
        "Resize" => node.attribute("mode").is_none_or(|m| m.s() == b"nearest".as_slice()),
        "MaxPool" => node.output.len() == 1 && node.int("storage_order", 0) == 0,
        "AveragePool" => node.int("ceil_mode", 0) == 0,
        _ => is_plain_product(node),
    };
    takes.then_some(op)
}

/// Whether a node, if it is a `Gemm`, neither transposes its activations nor scales anything.
pub fn is_plain_product(node: &NodeProto) -> bool {
    let plain =
        || node.int("transA", 0) == 0 && node.float("alpha", 1.0) == 1.0 && node.float("beta", 1.0) == 1.0;
    !node.is("Gemm") || plain()
}

impl Op {
    /// The activation inputs of `node`.
    pub fn activation_inputs<'n>(&self, node: &'n NodeProto) -> impl Iterator<Item = &'n str> {
        node.input.iter().take(self.activations).map(String::as_str).filter(|name| !name.is_empty())
    }
}
