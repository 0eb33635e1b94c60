//! Which layers run on integers, and how.
//!
//! ncnn's int8 is symmetric and its scale a factor: q = clamp(round(s · x), −127, 127), half away from zero, s = 127 / absmax.
//! Weights have a scale for each output channel, activations one, from calibration; biases stay float32. A layer quantizes
//! a float input itself and hands out floats, unless all that reads its result is convolutions on integers: then it hands
//! out integers ([`requantize`]).

mod grids;
mod groups;
mod layers;
mod plan;
mod table;

use super::net::{Layer, Net, Param, Weight};
use crate::error::Result;
use crate::given::Given;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::qparams::QuantParams;
use crate::quantize::LayerRecord;
pub(super) use plan::{Plan, agree, plans};
pub(super) use table::table;

/// How the layers were quantized.
pub(super) struct Quantized {
    /// A record for each operator with weights.
    pub layers: Vec<LayerRecord>,
    /// The grid of the input of each layer that has one.
    pub inputs: Vec<(NodeId, QuantParams)>,
}

/// The layers on integers whose input has a grid, and that, if these are the plans for `net`.
pub(super) fn with_grids(net: &Net, plans: &[Option<Plan>]) -> impl Iterator<Item = (NodeId, QuantParams)> {
    let planned = net.layers.iter().zip(plans).filter_map(|(layer, plan)| Some((layer, plan.as_ref()?)));
    planned
        .filter(|(_, plan)| plan.reason.is_none())
        .filter_map(|(layer, plan)| Some((layer.origin?, plan.grid()?)))
}

/// Quantizes those layers of `net` that have a plan to.
///
/// # Errors
/// [`crate::Error::Tensor`] when weights are not finite.
pub(super) fn quantize(
    (net, graph): (&mut Net, &Graph),
    plans: Vec<Option<Plan>>,
    given: &Given,
) -> Result<Quantized> {
    let inputs = with_grids(net, &plans).collect();
    let mut records = Vec::new();
    let mut quantized = Vec::with_capacity(net.layers.len());
    let layers = std::mem::take(&mut net.layers);
    for (layer, plan) in layers.into_iter().zip(plans) {
        let Some(mut plan) = plan else {
            quantized.push(layer);
            continue;
        };
        if plan.reason.is_none() {
            let label = layer.origin.map_or("", |id| graph.node(id).label());
            let made = layers::quantized(net, layer.clone(), &plan, (given, label))?;
            for record in &mut plan.records {
                record.quantized = true;
                record.weight_sqnr_db = Some(made.sqnr_db);
            }
            quantized.extend(made.layers);
        } else {
            quantized.push(layer);
        }
        records.extend(plan.into_records());
    }
    net.layers = quantized;
    requantize(net);
    Ok(Quantized { layers: records, inputs })
}

/// Lets a convolution hand out integers where nothing but convolutions on integers, all with the same scale, reads them.
fn requantize(net: &mut Net) {
    let readers = net.readers();
    let mut scales: Vec<(usize, f32)> = Vec::new();
    for (at, layer) in net.layers.iter().enumerate().filter(|(_, layer)| layer.convolves_integers()) {
        let reading = readers.get(layer.outputs[0].as_str()).map_or(&[][..], Vec::as_slice);
        let input_scale = |reader: &Option<usize>| {
            let layer = &net.layers[(*reader)?];
            layer.convolves_integers().then(|| input_scale(layer)).flatten()
        };
        let wanted: Option<Vec<f32>> = reading.iter().map(input_scale).collect();
        if let Some(&[first, ref others @ ..]) = wanted.as_deref()
            && others.iter().all(|&scale| scale == first)
        {
            scales.push((at, first));
        }
    }
    for (at, scale) in scales {
        let layer = &mut net.layers[at];
        layer.params.insert(8, Param::Int(100 + layer.get(8, 0)));
        layer.weights.push(Weight::Raw(vec![scale]));
    }
}

/// The scale of the input of a convolution on integers.
fn input_scale(layer: &Layer) -> Option<f32> {
    let behind_bias = if layer.get(5, 0) != 0 { 3 } else { 2 };
    match layer.weights.get(behind_bias) {
        Some(Weight::Raw(scale)) => scale.first().copied(),
        _ => None,
    }
}
