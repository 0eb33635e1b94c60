//! The corrections in the float model, for runtimes whose files are made from that: weights that lie on their grid, where
//! they round to the integers that were chosen, and biases that take up the mean error.

use std::collections::HashMap;

use super::Corrections;
use super::inputs::LayerInputs;
use super::layer::{Effect, Grid, Weights};
use crate::error::Result;
use crate::graph::{Graph, NodeId};
use crate::model::Model;
use crate::patch::apply;
use crate::quantize::balance::Balance;
use crate::quantize::weights::{self, QuantizedWeights, channel_axis, finite, weight_of};
use crate::quantize::writer::Writer;
use crate::tensor::tensor;

/// `model`, whose graph this is, corrected for what these layers become; inputs are those of the model without the factors
/// of `balance`.
///
/// # Errors
/// [`crate::Error::Tensor`] when weights are not finite.
pub(crate) fn in_float(
    (model, graph): (&Model, &Graph),
    layers: &HashMap<NodeId, QuantizedWeights>,
    balance: &Balance,
    (inputs, what): (&LayerInputs, Corrections),
) -> Result<(Model, Vec<(NodeId, Effect)>)> {
    let (mut writer, mut effects) = (Writer::new(graph), Vec::new());
    let mut layers: Vec<_> = layers.iter().collect();
    layers.sort_by_key(|(id, _)| **id);
    for (&id, layer) in layers {
        let node = graph.node(id);
        let Some(moments) = inputs.of(&node.output[0]).filter(|_| layer.encoded.is_none()) else { continue };
        let exact = finite(weight_of(graph, id)?)?;
        let weights = Weights {
            exact: &exact,
            dims: &layer.dims,
            axis: channel_axis(graph, id),
            grid: Grid::Integers {
                scale: &layer.params.scale,
                neighbours: &[],
                reach: &[],
                keeps_largest: true,
            },
            factors: balance.get(node.input[0].as_str()).map(|balanced| balanced.factors.as_slice()),
        };
        let (mut integers, mut bias) = (layer.values.to_vec(), weights::bias(graph, id)?);
        let integers: &mut [i8] = bytemuck::cast_slice_mut(&mut integers);
        let Some(effect) = weights.correct(moments, what, integers, bias.as_deref_mut()) else { continue };
        let rounded = what.rounding.then(|| tensor("", &layer.dims, &weights.on_grid(integers)));
        writer.replace_weights(id, rounded, bias.map(|bias| tensor("", &[bias.len()], &bias)));
        effects.push((id, effect));
    }
    Ok((apply(model.clone(), writer.patch)?, effects))
}
