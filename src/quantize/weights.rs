//! Weights and biases on the integer grid.
//!
//! Weights: symmetric int8, s_w\[c\] = limit\[c\] / 127 per output channel c, the limit being absmax or what leaves room
//! for [pairs of products](super::pairs) and for the bias.
//!
//! * [`operand`]: what a node multiplies by.
//! * [`inputs`]: where the inputs of a channel lie among them, and factors of the channels.
//! * [`channels`]: the channels' extents, and their values as integers.
//! * [`mod@bias`]: the bias on the grid of the sums.

mod bias;
mod channels;
mod inputs;
mod operand;

use bytes::Bytes;

pub(crate) use bias::{BIAS_LIMIT, bias_fits};
use bias::{leave_room_for_bias, quantize_bias, with_room_in_dead_channels};
use channels::Channels;
pub(crate) use channels::{Extent, by_largest, extent};
pub(crate) use inputs::{Factors, Inputs, divided, with_factors};
pub(crate) use operand::{bias, channel_axis, finite, weight_of};

use super::low_bit::encode::{Encoded, Form};
use super::low_bit::{Codec, Format};
use super::noise::decibels;
use super::pairs::{self, Pairs};
use crate::correct::Corrections;
use crate::correct::inputs::Moments;
use crate::correct::layer::{Effect, Grid, Weights};
use crate::error::{Error, Result};
use crate::graph::{Graph, NodeId};
use crate::onnx::{NodeProto, TensorProto};
use crate::qparams::QuantParams;
use crate::tensor::{Parts, shape};

/// Largest signal to noise ratio of weights that were on their grid, in dB: there is no noise but of float32.
const GIVEN_SQNR: f64 = 140.0;

/// What decides how fine the grid of weights is.
#[derive(Debug, Clone, Copy)]
pub struct WeightGrid {
    /// A scale for each output channel, or one for the tensor.
    pub per_channel: bool,
    /// Whether to leave room for [pairs of products](super::pairs) in 16 bits.
    pub pairs: bool,
    /// A format with fewer than 8 bits; `None`: int8.
    pub format: Option<Format>,
}

impl WeightGrid {
    /// A scale for each channel, and no thought of pairs.
    pub const PLAIN: Self = Self { per_channel: true, pairs: false, format: None };

    /// What pairs of products of the weights of `node` need room for.
    fn room(&self, node: &NodeProto, dims: &[usize], axis: usize) -> Pairs {
        if self.pairs { Pairs::of(node, dims, axis) } else { Pairs::None }
    }
}

/// What becomes of weights besides being rounded to a grid of their own.
#[derive(Clone, Copy, Default)]
pub(crate) struct Changes<'c> {
    /// Of the channels.
    pub factors: Factors<'c>,
    /// What they are corrected for.
    pub correction: Option<(&'c Moments, Corrections)>,
    /// The share of the largest integer that each channel of the input reaches; `None`: any may be as large.
    pub reach: Option<&'c [f32]>,
    /// The grid that they are on already, and its smallest code; nothing is corrected then.
    pub given: Option<(&'c QuantParams, i32)>,
}

/// Weights of one operator as integers, and its bias if it has one.
pub(crate) struct QuantizedWeights {
    /// Int8, in the shape of the original; empty if they are encoded.
    pub values: Bytes,
    /// The same in fewer bits.
    pub encoded: Option<Encoded>,
    pub dims: Vec<usize>,
    pub params: QuantParams,
    /// Integers and scale per channel.
    pub bias: Option<(Vec<i32>, Vec<f32>)>,
    /// Signal to noise of the rounding, in dB.
    pub sqnr_db: f64,
    /// Channels whose weights are all zero.
    pub dead_channels: usize,
    /// Whether they came as integers without the room for [pairs of products](super::pairs) that was asked for.
    pub crowded: bool,
    /// What corrections did, if there were any.
    pub effect: Option<Effect>,
}

impl QuantizedWeights {
    /// The name of their number format.
    pub fn format(&self) -> &'static str {
        self.encoded.as_ref().map_or("int8", |encoded| encoded.form.codec.name)
    }
}

/// Quantizes the weights of node `id`, and a bias: one value per channel, and the scale of the input. Both take up the
/// factors of the channels, and are corrected where moments of the inputs are given.
///
/// # Errors
/// [`Error::Tensor`] when weights are not finite, or bias and weights do not fit together.
pub(crate) fn quantize(
    graph: &Graph,
    id: NodeId,
    bias: Option<(&[f32], f32)>,
    grid: WeightGrid,
    changes: Changes,
) -> Result<QuantizedWeights> {
    let (weight, axis) = (weight_of(graph, id)?, channel_axis(graph, id));
    let (node, dims) = (graph.node(id), shape(weight)?);
    let inputs = Inputs::of(node, &dims, axis);
    let reach = changes.reach.filter(|reach| grid.pairs && inputs.groups == 1 && reach.len() == inputs.depth);
    let layer = Layer { node, weight, dims, axis, inputs, grid, reach };
    match changes.given {
        Some(given) => layer.on_given_grid(bias, given),
        None => layer.on_own_grid(bias, changes.factors, changes.correction),
    }
}

/// A node whose weights are quantized.
struct Layer<'l> {
    node: &'l NodeProto,
    weight: &'l TensorProto,
    dims: Vec<usize>,
    axis: usize,
    inputs: Inputs,
    grid: WeightGrid,
    /// See [`Changes::reach`].
    reach: Option<&'l [f32]>,
}

impl Layer<'_> {
    fn on_given_grid(
        self,
        bias: Option<(&[f32], f32)>,
        (params, lowest): (&QuantParams, i32),
    ) -> Result<QuantizedWeights> {
        let values = Parts::of(self.weight)?;
        let extent =
            Channels::new(&self.dims, self.axis).extent(&values, &Pairs::None).checked(self.weight)?;
        let params = with_room_in_dead_channels(params.clone(), &extent.limits, bias);
        let mut quantized = on_given_grid(&values, (self.dims, self.axis), &extent, params, lowest);
        quantized.bias = bias.map(|(bias, input_scale)| quantize_bias(bias, input_scale, &quantized.params));
        if self.grid.pairs {
            let mut codes: Vec<f32> = quantized.values.iter().map(|&code| f32::from(code as i8)).collect();
            self.inputs.take_up(Factors { input: self.reach, output: None }, &mut codes);
            quantized.crowded = pairs::overflow(self.node, &codes, &quantized.dims, self.axis);
        }
        Ok(quantized)
    }

    fn on_own_grid(
        &self,
        bias: Option<(&[f32], f32)>,
        factors: Factors,
        correction: Option<(&Moments, Corrections)>,
    ) -> Result<QuantizedWeights> {
        let values = self.values(factors)?;
        let mut extent = self.extent(&values).checked(self.weight)?;
        let sizes = extent.limits.clone();
        let mut bias = bias.map(|(bias, scale)| (divided(bias, factors.output), scale));
        if let Some((bias, input_scale)) = &bias {
            if bias.len() != self.dims[self.axis] {
                let reason = format!("{} channels, but {} bias values", self.dims[self.axis], bias.len());
                return Err(Error::tensor(self.weight.name(), reason));
            }
            leave_room_for_bias(&mut extent.limits, bias, *input_scale);
        }
        let coded = self.grid.format.map(|format| format.of_layer(values.count()).codec);
        let mut quantized = match coded.filter(|codec| codec.bits < 8) {
            Some(codec) => encoded(&values, self.dims.clone(), self.axis, (extent, &sizes), codec),
            None => on_grid(&values, self.dims.clone(), self.axis, extent, self.grid.per_channel),
        };
        if let Some(correction) = correction {
            let bias = bias.as_mut().map(|(bias, _)| bias.as_mut_slice());
            self.correct(&mut quantized, &values, bias, factors.input, correction);
        }
        quantized.bias = bias.map(|(bias, input_scale)| quantize_bias(&bias, input_scale, &quantized.params));
        Ok(quantized)
    }

    /// The weights with these factors in them.
    fn values(&self, factors: Factors) -> Result<Parts<'_>> {
        let values = Parts::of(self.weight)?;
        if factors.input.is_none() && factors.output.is_none() {
            return Ok(values);
        }
        let mut scaled = values.into_vec();
        self.inputs.take_up(factors, &mut scaled);
        Ok(Parts::from(scaled))
    }

    fn extent(&self, values: &Parts) -> Extent {
        match self.reach {
            Some(reach) => self.inputs.extent(self.node, values, &self.dims, reach),
            None => Channels::new(&self.dims, self.axis)
                .extent(values, &self.grid.room(self.node, &self.dims, self.axis)),
        }
    }

    /// Makes up for the rounding of `exact` weights.
    fn correct(
        &self,
        quantized: &mut QuantizedWeights,
        exact: &Parts,
        bias: Option<&mut [f32]>,
        factors: Option<&[f32]>,
        (moments, what): (&Moments, Corrections),
    ) {
        let neighbours = if self.grid.pairs && quantized.encoded.is_none() {
            pairs::neighbours(self.node, &self.dims, self.axis)
        } else {
            Vec::new()
        };
        let reached = |k: usize| self.reach.map_or(1.0, |reach| reach[k / self.inputs.taps.max(1)]);
        let reach: Vec<f32> = (0..neighbours.len()).map(reached).collect();
        let (grid, mut integers) = match &quantized.encoded {
            Some(encoded) => (Grid::Levels(encoded, encoded.form.codec.sorted()), encoded.levels().to_vec()),
            None => {
                let (scale, neighbours, reach) = (&quantized.params.scale, &neighbours, &reach);
                let grid = Grid::Integers { scale, neighbours, reach, keeps_largest: false };
                (grid, bytemuck::cast_slice(&quantized.values).to_vec())
            }
        };
        let weights = Weights { exact: &exact.all(), dims: &self.dims, axis: self.axis, grid, factors };
        quantized.effect = weights.correct(moments, what, &mut integers, bias);
        match &mut quantized.encoded {
            Some(encoded) => encoded.set_levels(integers),
            None => quantized.values = bytemuck::allocation::cast_vec::<i8, u8>(integers).into(),
        }
    }
}

/// The weights of node `id` on the grid that they are on, with codes from `lowest` on.
///
/// # Errors
/// [`Error::Tensor`] when they are not finite.
pub(crate) fn quantize_as_given(
    graph: &Graph,
    id: NodeId,
    params: &QuantParams,
    lowest: i32,
) -> Result<QuantizedWeights> {
    quantize(
        graph,
        id,
        None,
        WeightGrid::PLAIN,
        Changes { given: Some((params, lowest)), ..Changes::default() },
    )
}

/// Quantizes the weights of node `id` alone; `adjust` may change the magnitude that 127 stands for in each channel.
///
/// # Errors
/// [`Error::Tensor`] when weights are not finite.
pub(crate) fn quantize_without_bias(
    graph: &Graph,
    id: NodeId,
    grid: WeightGrid,
    adjust: impl Fn(&mut [f32]),
) -> Result<QuantizedWeights> {
    let (weight, axis) = (weight_of(graph, id)?, channel_axis(graph, id));
    let (values, dims) = (Parts::of(weight)?, shape(weight)?);
    let mut extent = extent(graph, id, &values, &dims, grid).checked(weight)?;
    adjust(&mut extent.limits);
    Ok(on_grid(&values, dims, axis, extent, grid.per_channel))
}

/// The weights as integers, 127 standing for the limit of each channel, or for the largest of all.
fn on_grid(
    values: &Parts,
    dims: Vec<usize>,
    axis: usize,
    extent: Extent,
    per_channel: bool,
) -> QuantizedWeights {
    let Extent { mut limits, power, dead_channels } = extent;
    if !per_channel {
        let all = limits.iter().fold(0.0, |a: f32, &b| a.max(b));
        limits.fill(all);
    }
    let mut params = QuantParams::per_channel(&limits, axis);
    let (quantized, noise) = Channels::new(&dims, axis).quantize(values, &params.scale);
    if !per_channel {
        params = QuantParams { scale: params.scale[..1].to_vec(), zero_point: vec![0], axis: None, ..params };
    }
    let sqnr_db = decibels(power / noise);
    QuantizedWeights {
        values: quantized,
        encoded: None,
        dims,
        params,
        bias: None,
        sqnr_db,
        dead_channels,
        crowded: false,
        effect: None,
    }
}

/// The weights as the integers that they are multiples of a scale by.
fn on_given_grid(
    values: &Parts,
    (dims, axis): (Vec<usize>, usize),
    &Extent { power, dead_channels, .. }: &Extent,
    params: QuantParams,
    lowest: i32,
) -> QuantizedWeights {
    let layout = Channels::new(&dims, axis);
    let scale = match params.axis {
        Some(_) => params.scale.clone(),
        None => vec![params.scale[0]; layout.count],
    };
    let all = values.all();
    let mut integers = Vec::with_capacity(all.len());
    let mut noise = 0.0;
    for (at, w) in all.iter().enumerate() {
        let channel = at / layout.inner % layout.count.max(1);
        let code = (f64::from(*w) / f64::from(scale[channel])).round_ties_even().clamp(lowest.into(), 127.0);
        noise += (f64::from(*w) - code * f64::from(scale[channel])).powi(2);
        integers.push(code as i8 as u8);
    }
    QuantizedWeights {
        values: integers.into(),
        encoded: None,
        dims,
        params,
        bias: None,
        // Nothing was rounded but floats.
        sqnr_db: decibels(power / noise).min(GIVEN_SQNR),
        dead_channels,
        crowded: false,
        effect: None,
    }
}

/// The weights in a format with fewer bits than 8. A channel that its bias needs a larger scale for than its weights is as
/// good as without any.
fn encoded(
    values: &Parts,
    dims: Vec<usize>,
    axis: usize,
    (extent, sizes): (Extent, &[f32]),
    codec: &'static Codec,
) -> QuantizedWeights {
    let mut encoded = Encoded::new(values, Form::new((&dims, axis), codec, None));
    let channels = extent.limits.iter().zip(sizes).enumerate();
    let drowned =
        channels.filter(|(_, (limit, size))| limit > size).map(|(c, (limit, _))| (c, limit / 127.0));
    encoded.silence(&drowned.collect::<Vec<_>>());
    let params = QuantParams {
        scale: encoded.scale.clone(),
        zero_point: vec![0; encoded.scale.len()],
        axis: Some(axis),
        dtype: crate::qparams::Dtype::Int8,
    };
    QuantizedWeights {
        values: Bytes::new(),
        sqnr_db: decibels(encoded.power / encoded.noise),
        encoded: Some(encoded),
        dims,
        params,
        bias: None,
        dead_channels: extent.dead_channels,
        crowded: false,
        effect: None,
    }
}

/// Quantizes the rows of a constant, without a thought of sums, or takes them on the grid that was given.
///
/// # Errors
/// [`Error::Tensor`] when it is not finite.
pub(crate) fn quantize_rows(tensor: &TensorProto, given: Option<QuantParams>) -> Result<QuantizedWeights> {
    let (values, dims) = (Parts::of(tensor)?, shape(tensor)?);
    let extent = Channels::new(&dims, 0).extent(&values, &Pairs::None).checked(tensor)?;
    if let Some(params) = given {
        let scale = params.scale.iter().copied().cycle().take(dims[0]).collect();
        let params = QuantParams { scale, zero_point: vec![0; dims[0]], axis: Some(0), ..params };
        return Ok(on_given_grid(&values, (dims, 0), &extent, params, -128));
    }
    Ok(on_grid(&values, dims, 0, extent, true))
}
