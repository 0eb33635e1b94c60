//! What ncnn computes, as an ONNX model: QuantizeLinear/DequantizeLinear pairs in front of the inputs and weights of the layers
//! on integers.
//!
//! It differs from ncnn where a value lies half-way between two integers (ONNX rounds to the even one, ncnn away from zero) and
//! in the order of sums of floats. Layers that quantize their input as it comes compute in float here.

use std::collections::{BTreeMap, HashMap};

use super::super::explicit;
use crate::error::Result;
use crate::graph::{Graph, NodeId};
use crate::model::Model;
use crate::patch::apply;
use crate::qparams::QuantParams;
use crate::quantize::weights::{WeightGrid, quantize_without_bias};

/// `model` with pairs for the layers whose input has one of these grids.
///
/// # Errors
/// [`crate::Error::Tensor`] when weights are not finite.
pub(super) fn pairs(model: &Model, graph: &Graph, inputs: Vec<(NodeId, QuantParams)>) -> Result<Model> {
    let (mut reads, mut activations, mut weights) = (BTreeMap::new(), HashMap::new(), HashMap::new());
    for (id, params) in inputs {
        let value = graph.node(id).input[0].as_str();
        reads.insert((id, 0), value);
        activations.insert(value, params);
        weights.insert(id, quantize_without_bias(graph, id, WeightGrid::PLAIN, |_| ())?);
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
