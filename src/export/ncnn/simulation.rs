//! What ncnn computes, as an ONNX model: QuantizeLinear/DequantizeLinear pairs in front of the inputs and weights of the layers
//! on integers.
//!
//! It differs from ncnn where a value lies half-way between two integers (ONNX rounds to the even one, ncnn away from zero) and
//! in the order of sums of floats. Layers that quantize their input as it comes compute in float here.

use std::collections::{BTreeMap, HashMap};

use super::super::explicit;
use crate::error::Result;
use crate::given::Given;
use crate::graph::{Graph, NodeId};
use crate::model::Model;
use crate::patch::apply;
use crate::qparams::QuantParams;
use crate::quantize::weights::{QuantizedWeights, WeightGrid, quantize_as_given, quantize_without_bias};

/// The integers of the weights of these nodes.
///
/// # Errors
/// [`crate::Error::Tensor`] when weights are not finite.
pub(super) fn weights(
    graph: &Graph,
    nodes: impl Iterator<Item = NodeId>,
    given: &Given,
) -> Result<HashMap<NodeId, QuantizedWeights>> {
    let of_node = |id: NodeId| match given.weights(graph, id) {
        Some(Ok(params)) => quantize_as_given(graph, id, &params, -127),
        _ => quantize_without_bias(graph, id, WeightGrid::PLAIN, |_| ()),
    };
    nodes.map(|id| Ok((id, of_node(id)?))).collect()
}

/// `model` with pairs for the layers whose input has one of these grids.
///
/// # Errors
/// [`crate::Error::Tensor`] when weights are not finite.
pub(super) fn pairs(
    model: &Model,
    graph: &Graph,
    inputs: Vec<(NodeId, QuantParams)>,
    given: &Given,
) -> Result<Model> {
    let weights = weights(graph, inputs.iter().map(|(id, _)| *id), given)?;
    let (mut reads, mut activations) = (BTreeMap::new(), HashMap::new());
    for (id, params) in inputs {
        let value = graph.node(id).input[0].as_str();
        reads.insert((id, 0), value);
        activations.insert(value, params);
    }
    let plan = explicit::Plan {
        graph,
        reads: &reads,
        activations: &activations,
        weights: &weights,
        integer_weights: true,
        half: false,
    };
    apply(model.clone(), explicit::write(&plan))
}
