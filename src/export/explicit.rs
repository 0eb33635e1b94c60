//! Explicit quantization: chosen inputs of operators read the pair behind a value, weights are int8 or go through a pair.
//!
//! A value keeps its name; what is not chosen reads it as it is. Biases stay float.

use std::collections::{BTreeMap, HashMap, HashSet};

use half::f16;

use super::layers::Layer;
use crate::error::Result;
use crate::given::Given;
use crate::graph::{Graph, NodeId};
use crate::onnx::NodeProto;
use crate::patch::Patch;
use crate::qparams::{QuantParams, Range, Scheme};
use crate::quantize::weights::{self, QuantizedWeights, WeightGrid};
use crate::quantize::writer::Writer;
use crate::tensor::{DataType, tensor_of_bytes};

/// What is to be written.
pub(super) struct Plan<'p, 'm> {
    pub graph: &'p Graph<'m>,
    /// Inputs, by node and position, that read their value through its pair.
    pub reads: &'p BTreeMap<(NodeId, usize), &'m str>,
    pub activations: &'p HashMap<&'m str, QuantParams>,
    pub weights: &'p HashMap<NodeId, QuantizedWeights>,
    /// Whether weights are stored as int8, or in float with a pair behind them.
    pub integer_weights: bool,
    /// Whether scales are float16.
    pub half: bool,
}

/// The weights of those layers that have any, on a grid for each channel if `per_channel` and the layer's row says so;
/// those that were given stay as they are; `adjust` may raise the magnitude that 127 stands for in each channel.
///
/// # Errors
/// [`crate::Error::Tensor`] when they are not finite.
pub(super) fn weights<'l, 'm: 'l>(
    graph: &Graph<'m>,
    layers: impl Iterator<Item = &'l Layer<'m>>,
    (per_channel, given): (bool, &Given),
    adjust: impl Fn(NodeId, &mut [f32]),
) -> Result<HashMap<NodeId, QuantizedWeights>> {
    let quantized = layers.filter(|layer| layer.has_weights()).map(|layer| {
        let grid = WeightGrid { per_channel: per_channel && layer.row.per_channel, ..WeightGrid::PLAIN };
        let kept = given.weights(graph, layer.id).and_then(Result::ok);
        if let Some(params) = kept.filter(|params| params.axis.is_none() || layer.row.per_channel) {
            return Ok((layer.id, weights::quantize_as_given(graph, layer.id, &params, given.lowest())?));
        }
        let adjust = |limits: &mut [f32]| adjust(layer.id, limits);
        Ok((layer.id, weights::quantize_without_bias(graph, layer.id, grid, adjust)?))
    });
    quantized.collect()
}

/// Symmetric int8 parameters up to `limit`.
pub(super) fn symmetric(limit: f32, half: bool) -> QuantParams {
    let limit = if half { with_half_scale(limit) } else { limit };
    QuantParams::new(Range::symmetric(limit), Scheme::Symmetric)
}

/// The smallest limit from `limit` on whose 127th part is a float16.
pub(super) fn with_half_scale(limit: f32) -> f32 {
    let scale = f16::from_f32(limit / 127.0);
    let covers = f32::from(scale) * 127.0 >= limit;
    let scale = if covers { scale } else { f16::from_bits(scale.to_bits() + 1) };
    f32::from(scale.min(f16::MAX)) * 127.0
}

/// The edit.
pub(super) fn write(plan: &Plan) -> Patch {
    let mut writer = Writer::new(plan.graph).with_half_scales(plan.half);
    let mut nodes: BTreeMap<NodeId, Vec<NodeProto>> = BTreeMap::new();
    let mut operators: BTreeMap<NodeId, NodeProto> = BTreeMap::new();
    let mut paired = HashSet::new();
    for (&(id, index), &value) in plan.reads {
        let dequantized = writer.dequantized(value);
        if paired.insert(value) {
            let position = plan.graph.producer(value).map_or(0, |id| id + 1);
            for new in writer.pair((value, &plan.activations[value]), value, value, &dequantized) {
                writer.patch.insert(position, new);
            }
        }
        operators.entry(id).or_insert_with(|| plan.graph.node(id).clone()).input[index] = dequantized;
    }
    let mut weights: Vec<_> = plan.weights.iter().collect();
    weights.sort_by_key(|(id, _)| **id);
    for (&id, weights) in weights {
        let operator = operators.entry(id).or_insert_with(|| plan.graph.node(id).clone());
        let before = nodes.entry(id).or_default();
        operator.input[1] = dequantized_weights(plan, &mut writer, (id, &operator.input[1]), weights, before);
    }
    for (id, operator) in operators {
        let mut all = nodes.remove(&id).unwrap_or_default();
        all.push(operator);
        writer.patch.replace(id, all);
    }
    writer.patch
}

/// The weights called `name` of node `id` behind their DequantizeLinear, or pair; the nodes go to `before`.
fn dequantized_weights(
    plan: &Plan,
    writer: &mut Writer,
    (id, name): (NodeId, &str),
    weights: &QuantizedWeights,
    before: &mut Vec<NodeProto>,
) -> String {
    let (base, params) = (writer.own(name, id), &weights.params);
    if plan.integer_weights {
        let zero = writer.zeros(params);
        let integers = tensor_of_bytes("", &weights.dims, DataType::Int8, weights.values.clone());
        return writer.dequantized_constant(&base, integers, params, Some(zero), before);
    }
    let output = writer.dequantized(&base);
    before.extend(writer.pair((&base, params), &base, name, &output));
    output
}

/// Whether `value` is declared as something else than float32.
pub(super) fn is_other_type(graph: &Graph, value: &str) -> bool {
    graph.element_type(value).is_some_and(|t| t != 0 && t != DataType::Float as i32)
}
