//! Which layer each operator becomes.

use super::super::Unsupported;
use super::super::net::Layer;
use super::{Lowered, Lowering, Node, Refusal, Rule};
use super::{convolution, elementwise, linear, normalization, pooling, recurrent, resize, shape, slices};
use crate::graph::NodeExt;
use crate::model::is_default_domain;
use crate::onnx::NodeProto;

/// How an operator becomes layers.
enum Mapping {
    /// One layer without parameters.
    Same(&'static str),
    /// `UnaryOp` of a type.
    Unary(i32),
    /// `BinaryOp` of a type, a chain of them for more than two inputs.
    Binary(i32),
    /// `Reduction` of a type.
    Reduce(i32),
    /// Something that needs thought.
    By(Rule),
}

use Mapping::{Binary, By, Reduce, Same, Unary};

/// The operators, in alphabetical order. Numbers are those of ncnn's `UnaryOp`, `BinaryOp` and `Reduction`.
#[rustfmt::skip]
const MAPPINGS: &[(&str, Mapping)] = &[
    ("Abs", Same("AbsVal")),
    ("Acos", Unary(13)),
    ("Add", Binary(0)),
    ("Asin", Unary(12)),
    ("Atan", Unary(14)),
    ("AveragePool", By(pooling::pool)),
    ("BatchNormalization", By(normalization::batch)),
    ("Cast", By(shape::cast)),
    ("Ceil", Unary(3)),
    ("Celu", By(elementwise::celu)),
    ("Clip", By(elementwise::clip)),
    ("Concat", By(shape::concat)),
    ("Conv", By(convolution::convolution)),
    ("ConvTranspose", By(convolution::transposed)),
    ("Cos", Unary(10)),
    ("DepthToSpace", By(resize::depth_to_space)),
    ("Div", Binary(3)),
    ("Dropout", By(shape::identity)),
    ("Elu", By(elementwise::elu)),
    ("Erf", Same("Erf")),
    ("Exp", Unary(7)),
    ("Expand", By(shape::expand)),
    ("Flatten", By(shape::reshape)),
    ("Floor", Unary(2)),
    ("GRU", By(recurrent::gru)),
    ("Gather", By(slices::gather)),
    ("Gelu", By(elementwise::gelu)),
    ("Gemm", By(linear::gemm)),
    ("GlobalAveragePool", By(pooling::global)),
    ("GlobalMaxPool", By(pooling::global)),
    ("GridSample", By(resize::grid_sample)),
    ("GroupNormalization", By(normalization::group)),
    ("HardSigmoid", By(elementwise::hard_sigmoid)),
    ("HardSwish", By(elementwise::hard_swish)),
    ("Identity", By(shape::identity)),
    ("InstanceNormalization", By(normalization::instance)),
    ("LRN", By(normalization::local_response)),
    ("LSTM", By(recurrent::lstm)),
    ("LayerNormalization", By(normalization::layer)),
    ("LeakyRelu", By(elementwise::leaky_relu)),
    ("Log", Unary(8)),
    ("LogSoftmax", By(elementwise::softmax)),
    ("LpNormalization", By(normalization::lp)),
    ("MatMul", By(linear::matmul)),
    ("Max", Binary(4)),
    ("MaxPool", By(pooling::pool)),
    ("Min", Binary(5)),
    ("Mish", Same("Mish")),
    ("Mul", Binary(2)),
    ("Neg", Unary(1)),
    ("PRelu", By(elementwise::prelu)),
    ("Pad", By(slices::pad)),
    ("Pow", By(elementwise::pow)),
    ("RNN", By(recurrent::rnn)),
    ("Reciprocal", Unary(15)),
    ("ReduceL1", Reduce(7)),
    ("ReduceL2", Reduce(8)),
    ("ReduceLogSum", Reduce(9)),
    ("ReduceLogSumExp", Reduce(10)),
    ("ReduceMax", Reduce(4)),
    ("ReduceMean", Reduce(3)),
    ("ReduceMin", Reduce(5)),
    ("ReduceProd", Reduce(6)),
    ("ReduceSum", Reduce(0)),
    ("ReduceSumSquare", Reduce(2)),
    ("Relu", Same("ReLU")),
    ("Reshape", By(shape::reshape)),
    ("Resize", By(resize::resize)),
    ("Round", Unary(18)),
    ("Selu", By(elementwise::selu)),
    ("Sigmoid", Same("Sigmoid")),
    ("Sin", Unary(9)),
    ("Slice", By(slices::slice)),
    ("Softmax", By(elementwise::softmax)),
    ("Softplus", Same("Softplus")),
    ("SpaceToDepth", By(resize::space_to_depth)),
    ("Split", By(slices::split)),
    ("Sqrt", Unary(5)),
    ("Squeeze", By(shape::reshape)),
    ("Sub", Binary(1)),
    ("Sum", Binary(0)),
    ("Tan", Unary(11)),
    ("Tanh", Same("TanH")),
    ("Tile", By(shape::expand)),
    ("Transpose", By(shape::transpose)),
    ("Unsqueeze", By(shape::reshape)),
    ("Upsample", By(resize::resize)),
];

/// Operators that ncnn has nothing for, and the nearest thing to do.
#[rustfmt::skip]
const HINTS: &[(&str, &str)] = &[
    ("ArgMax", "take the output before it and search for the largest value in the application"),
    ("ArgMin", "take the output before it and search for the smallest value in the application"),
    ("DequantizeLinear", "give the float model: rustq quantizes it for ncnn itself"),
    ("If", "export the model with the branch that is taken"),
    ("Loop", "export the model with the loop unrolled"),
    ("NonMaxSuppression", "end the model before it and suppress in the application"),
    ("QuantizeLinear", "give the float model: rustq quantizes it for ncnn itself"),
    ("Scan", "export the model with the loop unrolled"),
    ("Shape", "give fixed shapes of the inputs, so that it can be computed beforehand"),
    ("TopK", "take the output before it and sort in the application"),
    ("Where", "rewrite it as a sum of products with a mask of zeros and ones"),
];

const CUT: &str =
    "end the model before it (onnx.utils.extract_model) and compute the rest in the application";

/// Lowers one node.
pub(super) fn lower_node<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let row = MAPPINGS.iter().find(|(op_type, _)| node.op_type() == *op_type);
    let Some((_, mapping)) = row.filter(|_| is_default_domain(node.domain())) else {
        return Err("ncnn has no layer for it".into());
    };
    match mapping {
        Same(kind) => lowering.pointwise(node, Layer::new(kind)),
        Unary(operation) => lowering.pointwise(node, Layer::new("UnaryOp").int(0, *operation)),
        Binary(operation) => elementwise::binary(lowering, node, *operation),
        Reduce(operation) => elementwise::reduce(lowering, node, *operation),
        By(rule) => rule(lowering, node),
    }
}

/// What to tell of a node that could not be lowered.
pub(super) fn describe(node: &NodeProto, refusal: Refusal) -> Unsupported {
    let known = HINTS.iter().find(|(op_type, _)| node.op_type() == *op_type).map(|(_, hint)| *hint);
    Unsupported {
        node: node.label().to_owned(),
        op_type: node.op_type().to_owned(),
        reason: refusal.reason,
        hint: refusal.hint.unwrap_or_else(|| known.unwrap_or(CUT).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted() {
        assert!(MAPPINGS.is_sorted_by_key(|(op_type, _)| *op_type));
        assert!(HINTS.is_sorted_by_key(|(op_type, _)| *op_type));
    }
}
