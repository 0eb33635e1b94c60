//! What a node multiplies by: its weights and its bias, as they are in the graph.

use crate::error::{Error, Result};
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::TensorProto;
use crate::tensor::{floats, shape};

/// The bias among the inputs of node `id`, one value per output channel.
///
/// # Errors
/// [`Error::Tensor`] when it is not finite.
pub(crate) fn bias(graph: &Graph, id: NodeId) -> Result<Option<Vec<f32>>> {
    let Some(bias) = graph.node(id).input_at(2).and_then(|name| graph.constant(name)) else {
        return Ok(None);
    };
    let values = finite(bias)?;
    let channels = shape(weight_of(graph, id)?)?[channel_axis(graph, id)];
    Ok(Some(if let &[value] = values.as_slice() { vec![value; channels] } else { values }))
}

/// The weights among the inputs of node `id`.
///
/// # Errors
/// [`Error::Model`] when they are not constant.
pub(crate) fn weight_of<'m>(graph: &Graph<'m>, id: NodeId) -> Result<&'m TensorProto> {
    let node = graph.node(id);
    let weight = node.input_at(1).and_then(|name| graph.constant(name));
    weight.ok_or_else(|| Error::Model(format!("'{}' has no constant weights", node.label())))
}

/// Axis of the output channels in the weights.
pub(crate) fn channel_axis(graph: &Graph, id: NodeId) -> usize {
    let node = graph.node(id);
    match node.op_type() {
        "Gemm" if node.int("transB", 0) == 0 => 1,
        "MatMul" | "ConvTranspose" => 1,
        _ => 0,
    }
}

/// The values of a constant.
///
/// # Errors
/// [`Error::Tensor`] when one is not finite.
pub(crate) fn finite(tensor: &TensorProto) -> Result<Vec<f32>> {
    let values = floats(tensor)?;
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(Error::tensor(
            tensor.name(),
            format!("element {at} is {}; weights must be finite", values[at]),
        )),
        None => Ok(values),
    }
}
