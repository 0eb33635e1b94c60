//! Values that are known not to be negative.

use std::collections::BTreeSet;

use super::nodes::{Params, is};
use crate::fold::activations::clip_bounds;
use crate::graph::{Graph, NodeExt};
use crate::tensor::floats;

/// Operators whose results are not negative.
const POSITIVE: &[&str] = &["Abs", "HardSigmoid", "Relu", "Sigmoid", "Softmax"];

/// Operators whose results are not negative if the first of what they read is not, or, for the second list, all of it.
const KEEP_THE_SIGN: &[&str] = &[
    "AveragePool",
    "DepthToSpace",
    "DequantizeLinear",
    "Dropout",
    "Expand",
    "Flatten",
    "GlobalAveragePool",
    "Identity",
    "MaxPool",
    "QuantizeLinear",
    "ReduceMean",
    "Reshape",
    "Resize",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];
const KEEP_A_COMMON_SIGN: &[&str] = &["Add", "Concat", "Mul"];

/// Whether a value is known not to be negative. If it is not, a pair whose integers begin at 0 is what makes it so: that is
/// how quantizers save themselves a Relu.
pub(super) fn is_positive(graph: &Graph, value: &str) -> bool {
    let (mut open, mut met) = (vec![value], BTreeSet::new());
    while let Some(value) = open.pop() {
        let Some(id) = graph.producer(value) else {
            let constant = graph.constant(value).and_then(|tensor| floats(tensor).ok());
            if constant.is_none_or(|values| values.iter().any(|&v| v < 0.0)) {
                return false;
            }
            continue;
        };
        let node = graph.node(id);
        let is_one_of = |all: &[&str]| all.iter().any(|op_type| is(node, op_type));
        let clipped = || node.is("Clip") && clip_bounds(graph, id).is_some_and(|[min, _]| min >= 0.0);
        let starts_at_zero = || {
            let read = Params::of(graph, id).filter(|_| is(node, "QuantizeLinear"));
            read.is_some_and(|p| {
                p.kind.is_some_and(|kind| p.zero_point.iter().all(|&zero| zero == kind.qmin))
            })
        };
        if !met.insert(id) || is_one_of(POSITIVE) || clipped() || starts_at_zero() {
            continue;
        }
        let operands = match (is_one_of(KEEP_THE_SIGN), is_one_of(KEEP_A_COMMON_SIGN)) {
            (true, _) => 1,
            (_, true) => node.input.len(),
            _ => return false,
        };
        open.extend(node.input.iter().take(operands).map(String::as_str));
    }
    true
}
