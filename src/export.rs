//! Models for other runtimes than ONNX Runtime.
//!
//! A runtime is a table of the [layers] it multiplies integers in, and where it wants QuantizeLinear/DequantizeLinear
//! pairs: those are then [written](explicit) in front of the inputs of operators, never behind them. [ncnn] has
//! files of its own.

pub mod ascend;
mod explicit;
mod layers;
pub mod ncnn;
pub mod tensorrt;

use crate::graph::Graph;
use crate::ranges::Method;

/// How to quantize for a runtime whose layers are decided by rules.
#[derive(Debug, Clone)]
pub struct Options {
    /// How the range of an activation is chosen.
    pub method: Method,
    /// A weight scale for each output channel where the runtime takes it, or one for the tensor.
    pub per_channel: bool,
    /// Nodes that stay float, by [label](crate::graph::NodeExt::label).
    pub exclude: std::collections::HashSet<String>,
}

/// The values that these runtimes would have to know the ranges of.
pub(crate) fn values_to_observe<'m>(graph: &Graph<'m>) -> Vec<&'m str> {
    let mut values = tensorrt::values_to_observe(graph);
    values.extend(ascend::values_to_observe(graph));
    values
}
