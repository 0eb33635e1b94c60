//! Weights and biases on the integer grid.
//!
//! Weights: symmetric int8, s_w\[c\] = limit\[c\] / 127 per output channel c, the limit being absmax or what leaves room
//! for [pairs of products](super::pairs) and for the bias. Bias: int32 with the scale
//! s_x · s_w\[c\] and zero point 0, so that the kernel adds it to its int32 sums as it is
//! (Jacob et al. 2018, equation 11).

use std::ops::Range;

use bytes::Bytes;
use multiversion::multiversion;

use super::low_bit::encode::{Encoded, Form};
use super::low_bit::{Codec, Format};
use super::noise::decibels;
use super::pairs::{self, Pairs};
use crate::correct::Corrections;
use crate::correct::inputs::Moments;
use crate::correct::layer::{Effect, Grid, Weights};
use crate::error::{Error, Result};
use crate::graph::{Graph, NodeExt, NodeId};
use crate::kernels;
use crate::onnx::{NodeProto, TensorProto};
use crate::qparams::QuantParams;
use crate::tensor::{Memory, Parts, floats, shape};

/// Largest magnitude a bias may have as an integer: half of the int32 range, so that the sums it is added to keep the
/// other half.
pub(crate) const BIAS_LIMIT: f64 = (1_i64 << 30) as f64;

/// Integer magnitude that the bias of a channel without weights is given.
const DEAD_CHANNEL_BIAS: f64 = (1_i64 << 24) as f64;

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

/// What each channel of the input, and of the output, of a product is divided by; see [`balance`](super::balance).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Factors<'f> {
    pub input: Option<&'f [f32]>,
    pub output: Option<&'f [f32]>,
}

/// Where the inputs of each output channel lie in a weight tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inputs {
    pub groups: usize,
    /// Inputs from one channel: positions of a window.
    pub taps: usize,
    pub outputs: usize,
    /// Input channels that one output sees.
    pub depth: usize,
    /// Axis of the outputs.
    axis: usize,
}

impl Inputs {
    /// Of the weights of `node`, whose output channels are along `axis`.
    pub fn of(node: &NodeProto, dims: &[usize], axis: usize) -> Self {
        let convolution = node.is("Conv");
        let groups = if convolution { usize::try_from(node.int("group", 1)).unwrap_or(1) } else { 1 };
        let taps = dims.iter().skip(2).product();
        Self { groups, taps, outputs: dims[axis], depth: dims[1 - axis], axis }
    }

    /// The input channel that is the first of those that output `o` sees.
    pub fn first(&self, o: usize) -> usize {
        o / self.group() * self.depth
    }

    /// Outputs of one group.
    fn group(&self) -> usize {
        (self.outputs / self.groups.max(1)).max(1)
    }

    /// All outputs, at most so many at a time, that see the same input channels.
    pub fn blocks(&self, most: usize) -> impl Iterator<Item = Range<usize>> {
        let (outputs, group) = (self.outputs, self.group());
        (0..outputs).step_by(group).flat_map(move |first| {
            let end = (first + group).min(outputs);
            (first..end).step_by(most).map(move |start| start..(start + most).min(end))
        })
    }

    /// Sum of the squares of the weights between each of a few outputs and input channel `d` of their group, and the largest
    /// magnitude; zeros behind the last of the outputs.
    pub fn windows<const M: usize>(
        &self,
        weights: &[f32],
        outputs: Range<usize>,
        d: usize,
    ) -> ([f64; M], [f64; M]) {
        let (mut squares, mut largest) = ([0.0; M], [0.0; M]);
        if self.axis == 1 {
            squares_and_sizes(&weights[d * self.outputs..][outputs], &mut squares, &mut largest);
        } else {
            let places = squares.iter_mut().zip(&mut largest);
            for ((square, largest), o) in places.zip(outputs) {
                let window = &weights[(o * self.depth + d) * self.taps..][..self.taps];
                *square = f64::from(window.iter().map(|w| w * w).sum::<f32>());
                *largest = f64::from(window.iter().fold(0.0, |most: f32, w| most.max(w.abs())));
            }
        }
        (squares, largest)
    }

    /// How large the weights of `node` are, and with room for pairs of products of what each channel reaches.
    fn extent(&self, node: &NodeProto, values: &Parts, dims: &[usize], reach: &[f32]) -> Extent {
        let channels = Channels::new(dims, self.axis);
        let mut extent = channels.extent(values, &Pairs::None);
        let mut reached = values.all().into_owned();
        self.take_up(Factors { input: Some(reach), output: None }, &mut reached);
        let sums = Pairs::of(node, dims, self.axis).largest_sums(&reached);
        kernels::raise_abs_max(&mut extent.limits[..sums.len()], &sums);
        extent
    }

    /// Takes up factors of the channels.
    fn take_up(&self, factors: Factors, values: &mut [f32]) {
        if self.axis == 1 {
            for (d, row) in values.chunks_mut(self.outputs.max(1)).enumerate() {
                if let Some(input) = factors.input {
                    multiply(row, input[d]);
                }
                if let Some(output) = factors.output {
                    row.iter_mut().zip(output).for_each(|(w, factor)| *w /= factor);
                }
            }
            return;
        }
        for (o, filter) in values.chunks_mut((self.depth * self.taps).max(1)).enumerate() {
            if let Some(input) = factors.input {
                let seen = &input[self.first(o)..][..self.depth];
                match self.taps {
                    1 => filter.iter_mut().zip(seen).for_each(|(w, factor)| *w *= factor),
                    taps => {
                        let windows = filter.chunks_mut(taps.max(1)).zip(seen);
                        windows.for_each(|(window, &factor)| multiply(window, factor));
                    }
                }
            }
            if let Some(output) = factors.output {
                filter.iter_mut().for_each(|w| *w /= output[o]);
            }
        }
    }
}

#[multiversion(targets("x86_64+avx2+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn squares_and_sizes(values: &[f32], squares: &mut [f64], sizes: &mut [f64]) {
    for ((square, size), &w) in squares.iter_mut().zip(sizes).zip(values) {
        *square = f64::from(w * w);
        *size = f64::from(w.abs());
    }
}

fn multiply(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|value| *value *= factor);
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
    Changes { factors, correction, reach, given }: Changes,
) -> Result<QuantizedWeights> {
    let (weight, axis) = (weight_of(graph, id)?, channel_axis(graph, id));
    let (mut values, dims) = (Parts::of(weight)?, shape(weight)?);
    let inputs = Inputs::of(graph.node(id), &dims, axis);
    let reach = reach.filter(|reach| grid.pairs && inputs.groups == 1 && reach.len() == inputs.depth);
    if let Some((params, lowest)) = given {
        let extent = Channels::new(&dims, axis).extent(&values, &Pairs::None).checked(weight)?;
        let params = with_room_in_dead_channels(params.clone(), &extent.limits, bias);
        let mut quantized = on_given_grid(&values, (dims, axis), &extent, params, lowest);
        quantized.bias = bias.map(|(bias, input_scale)| quantize_bias(bias, input_scale, &quantized.params));
        if grid.pairs {
            let mut codes: Vec<f32> = quantized.values.iter().map(|&code| f32::from(code as i8)).collect();
            inputs.take_up(Factors { input: reach, output: None }, &mut codes);
            quantized.crowded = pairs::overflow(graph.node(id), &codes, &quantized.dims, axis);
        }
        return Ok(quantized);
    }
    if factors.input.is_some() || factors.output.is_some() {
        let mut scaled = values.into_vec();
        inputs.take_up(factors, &mut scaled);
        values = Parts::from(scaled);
    }
    let mut extent = match reach {
        Some(reach) => inputs.extent(graph.node(id), &values, &dims, reach),
        None => extent(graph, id, &values, &dims, grid),
    }
    .checked(weight)?;
    let sizes = extent.limits.clone();
    let bias = bias.map(|(bias, scale)| (divided(bias, factors.output), scale));
    if let Some((bias, input_scale)) = &bias {
        if bias.len() != dims[axis] {
            let reason = format!("{} channels, but {} bias values", dims[axis], bias.len());
            return Err(Error::tensor(weight.name(), reason));
        }
        leave_room_for_bias(&mut extent.limits, bias, *input_scale);
    }
    let coded = grid.format.map(|format| format.of_layer(values.count()).codec);
    let mut quantized = match coded.filter(|codec| codec.bits < 8) {
        Some(codec) => encoded(&values, dims, axis, (extent, &sizes), codec),
        None => on_grid(&values, dims, axis, extent, grid.per_channel),
    };
    let mut bias = bias;
    if let Some((moments, what)) = correction {
        let neighbours = if grid.pairs && quantized.encoded.is_none() {
            pairs::neighbours(graph.node(id), &quantized.dims, axis)
        } else {
            Vec::new()
        };
        let reach: Vec<f32> =
            (0..neighbours.len()).map(|k| reach.map_or(1.0, |reach| reach[k / inputs.taps.max(1)])).collect();
        let levels = match &quantized.encoded {
            Some(encoded) => Grid::Levels(encoded, encoded.form.codec.sorted()),
            None => Grid::Integers {
                scale: &quantized.params.scale,
                neighbours: &neighbours,
                reach: &reach,
                keeps_largest: false,
            },
        };
        let weights = Weights {
            exact: &values.all(),
            dims: &quantized.dims,
            axis,
            grid: levels,
            factors: factors.input,
        };
        let bias = bias.as_mut().map(|(bias, _)| bias.as_mut_slice());
        let mut integers = match &quantized.encoded {
            Some(encoded) => encoded.levels().to_vec(),
            None => bytemuck::cast_slice(&quantized.values).to_vec(),
        };
        quantized.effect = weights.correct(moments, what, &mut integers, bias);
        match &mut quantized.encoded {
            Some(encoded) => encoded.set_levels(integers),
            None => quantized.values = bytemuck::allocation::cast_vec::<i8, u8>(integers).into(),
        }
    }
    quantized.bias = bias.map(|(bias, input_scale)| quantize_bias(&bias, input_scale, &quantized.params));
    Ok(quantized)
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

/// Whether a bias fits into int32 on the grid of the sums of channels that have other weights than 0.
///
/// # Errors
/// [`Error::Tensor`] when weights cannot be read.
pub(crate) fn bias_fits(
    graph: &Graph,
    id: NodeId,
    params: &QuantParams,
    (bias, input_scale): (&[f32], f32),
) -> Result<bool> {
    let (weight, axis) = (weight_of(graph, id)?, channel_axis(graph, id));
    let sizes = Channels::new(&shape(weight)?, axis).extent(&Parts::of(weight)?, &Pairs::None).limits;
    let mut channels = bias.iter().zip(params.scale.iter().cycle()).zip(sizes);
    Ok(channels
        .all(|((b, &scale), size)| size == 0.0 && params.axis.is_some() || has_room(*b, input_scale, scale)))
}

fn has_room(bias: f32, input_scale: f32, scale: f32) -> bool {
    f64::from(bias.abs()) <= BIAS_LIMIT * f64::from(input_scale) * f64::from(scale)
}

/// The scales of channels that have nothing but a bias, as large as that needs them.
fn with_room_in_dead_channels(
    mut params: QuantParams,
    sizes: &[f32],
    bias: Option<(&[f32], f32)>,
) -> QuantParams {
    for (channel, scale) in params.scale.iter_mut().enumerate() {
        let b = bias.and_then(|(bias, input_scale)| Some((*bias.get(channel)?, input_scale)));
        let fits = *scale > 0.0 && b.is_none_or(|(b, input_scale)| has_room(b, input_scale, *scale));
        if fits || params.axis.is_some() && sizes.get(channel).is_some_and(|&size| size > 0.0) {
            continue;
        }
        let mut limit = [0.0];
        if let Some((b, input_scale)) = b {
            leave_room_for_bias(&mut limit, &[b], input_scale);
        }
        *scale = QuantParams::per_channel(&limit, 0).scale[0];
    }
    params
}

/// The weights of node `id` with these factors in them.
///
/// # Errors
/// [`Error::Tensor`] when they are not finite.
pub(crate) fn with_factors(graph: &Graph, id: NodeId, factors: Factors) -> Result<Vec<f32>> {
    let weight = weight_of(graph, id)?;
    let mut values = finite(weight)?;
    Inputs::of(graph.node(id), &shape(weight)?, channel_axis(graph, id)).take_up(factors, &mut values);
    Ok(values)
}

/// A vector over the channels, divided by their factors.
pub(crate) fn divided(values: &[f32], factors: Option<&[f32]>) -> Vec<f32> {
    match factors {
        Some(factors) if factors.len() == values.len() => {
            values.iter().zip(factors).map(|(v, r)| v / r).collect()
        }
        _ => values.to_vec(),
    }
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

/// How large weights are.
pub(crate) struct Extent {
    /// The magnitude that 127 stands for, for each output channel.
    pub limits: Vec<f32>,
    /// Sum of the squares; NaN or infinite if a weight is.
    pub power: f64,
    /// Channels whose weights are all zero.
    dead_channels: usize,
}

impl Extent {
    /// Itself, unless a value of `tensor`, which it is of, is not finite.
    fn checked(self, tensor: &TensorProto) -> Result<Self> {
        if !self.power.is_finite() {
            finite(tensor)?;
        }
        Ok(self)
    }
}

/// The extent of the weights of node `id`.
pub(crate) fn extent(graph: &Graph, id: NodeId, values: &Parts, dims: &[usize], grid: WeightGrid) -> Extent {
    let axis = channel_axis(graph, id);
    let pairs = if grid.pairs { Pairs::of(graph.node(id), dims, axis) } else { Pairs::None };
    Channels::new(dims, axis).extent(values, &pairs)
}

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

/// Weights as int8, and how far they are from what they were.
pub(crate) struct Integers {
    pub values: Bytes,
    /// For each channel.
    pub scale: Vec<f32>,
    /// Sum of the squares; NaN or infinite if a weight is.
    pub power: f64,
    /// Sum of the squared errors.
    pub noise: f64,
}

/// Weights with their channels along `axis` as integers, 127 standing for the largest magnitude in each channel.
pub(crate) fn by_largest(values: &Parts, dims: &[usize], axis: usize) -> Integers {
    let channels = Channels::new(dims, axis);
    let Extent { limits, power, .. } = channels.extent(values, &Pairs::None);
    let scale = QuantParams::per_channel(&limits, axis).scale;
    let (values, noise) = channels.quantize(values, &scale);
    Integers { values, scale, power, noise }
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

/// Rounds a bias to the grid s_x · s_w\[c\]; returns the integers and that scale.
fn quantize_bias(bias: &[f32], input_scale: f32, weights: &QuantParams) -> (Vec<i32>, Vec<f32>) {
    let scales = weights.scale.iter().cycle().take(bias.len());
    let scale: Vec<f32> = scales.map(|&s| input_scale * s).collect();
    let round = |(&b, &s): (&f32, &f32)| (f64::from(b) / f64::from(s)).round_ties_even() as i32;
    (bias.iter().zip(&scale).map(round).collect(), scale)
}

/// Raises the limit of a channel whose bias would not fit into int32, or which has nothing but a bias.
fn leave_room_for_bias(limits: &mut [f32], bias: &[f32], input_scale: f32) {
    let least = |&b: &f32, limit: f64| (127.0 * f64::from(b.abs()) / (f64::from(input_scale) * limit)) as f32;
    for (m, b) in limits.iter_mut().zip(bias) {
        *m = m.max(least(b, if *m == 0.0 { DEAD_CHANNEL_BIAS } else { BIAS_LIMIT }));
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

/// Values that are read at a time: few enough for the caches.
const PART: usize = 1 << 18;

/// How the channels lie in a weight tensor: a row, which is all of one index of the first axis, is one of them, or has all
/// of them.
struct Channels {
    count: usize,
    in_rows: bool,
    /// Values in a row.
    row: usize,
    /// Values of a channel in a row.
    inner: usize,
}

impl Channels {
    fn new(dims: &[usize], axis: usize) -> Self {
        debug_assert!(axis <= 1);
        // At least 1, so that slices can be cut; a tensor without values has no slices.
        let values = |axes: &[usize]| axes.iter().fold(1_usize, |n, &d| n.saturating_mul(d)).max(1);
        Self {
            count: dims[axis],
            in_rows: axis == 0,
            row: values(&dims[1..]),
            inner: values(&dims[axis + 1..]),
        }
    }

    /// Values of an even number of rows.
    fn part(&self) -> usize {
        let pair = self.row.saturating_mul(2);
        pair.saturating_mul((PART / pair).max(1))
    }

    /// The first channel of the part that begins with this value.
    fn first(&self, start: usize) -> usize {
        if self.in_rows { start / self.row } else { 0 }
    }

    fn extent(&self, values: &Parts, pairs: &Pairs) -> Extent {
        let found = values.map(self.part(), |start, rows| {
            if let Some((sizes, sums, squares)) = pairs.extents_of_columns(rows, self.inner) {
                return (0, sizes, sums, squares);
            }
            let sizes = self.abs_max(rows);
            (self.first(start), sizes, pairs.largest_sums(rows), kernels::sum_of_squares(rows))
        });
        let (mut sizes, mut limits) = (vec![0.0; self.count], vec![0.0; self.count]);
        let mut power = 0.0;
        for (first, part, sums, squares) in found {
            kernels::raise_abs_max(&mut sizes[first..][..part.len()], &part);
            kernels::raise_abs_max(&mut limits[first..][..sums.len()], &sums);
            power += squares;
        }
        kernels::raise_abs_max(&mut limits, &sizes);
        Extent { limits, power, dead_channels: sizes.iter().filter(|&&size| size == 0.0).count() }
    }

    /// The largest magnitude in each channel of some rows.
    fn abs_max(&self, rows: &[f32]) -> Vec<f32> {
        if self.in_rows {
            return rows.chunks_exact(self.row).map(kernels::abs_max).collect();
        }
        let mut largest = vec![0.0; self.count];
        for row in rows.chunks_exact(self.row) {
            if self.inner == 1 {
                kernels::raise_abs_max(&mut largest, row);
                continue;
            }
            for (most, values) in largest.iter_mut().zip(row.chunks_exact(self.inner)) {
                *most = kernels::abs_max(values).max(*most);
            }
        }
        largest
    }

    /// All values as integers, given the scale of each channel, and the sum of the squared errors.
    fn quantize(&self, values: &Parts, scale: &[f32]) -> (Bytes, f64) {
        let mut integers = Memory::zeroed(values.count());
        let part = self.part();
        let noise = values.map_to(part, integers.as_mut().chunks_mut(part), |start, rows, target| {
            self.quantize_rows(rows, &scale[self.first(start)..], bytemuck::cast_slice_mut(target))
        });
        (integers.into(), noise.into_iter().sum())
    }

    /// Some rows, given the scales from their first channel on; returns the sum of the squared errors.
    fn quantize_rows(&self, rows: &[f32], scale: &[f32], integers: &mut [i8]) -> f64 {
        if self.inner == 1 && !self.in_rows {
            let rows = rows.chunks_exact(self.row).zip(integers.chunks_exact_mut(self.row));
            return rows.map(|(x, out)| kernels::quantize_columns(x, scale, out)).sum();
        }
        let of_channel = |((x, out), &scale): ((&[f32], &mut [i8]), &f32)| {
            kernels::quantize_clamped(x, scale, 0, -127, 127, out);
            kernels::quantization_error(x, scale, 0, -127, 127)
        };
        let channels = rows.chunks_exact(self.inner).zip(integers.chunks_exact_mut(self.inner));
        channels.zip(scale.iter().cycle()).map(of_channel).sum()
    }
}
