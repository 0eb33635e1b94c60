//! Weights and biases on the integer grid.
//!
//! Weights: symmetric int8, s_w\[c\] = limit\[c\] / 127 per output channel c, the limit being absmax or what leaves room
//! for [pairs of products](super::pairs) and for the bias. Bias: int32 with the scale
//! s_x · s_w\[c\] and zero point 0, so that the kernel adds it to its int32 sums as it is
//! (Jacob et al. 2018, equation 11).

use super::noise::decibels;
use super::pairs;
use crate::correct::Corrections;
use crate::correct::inputs::Moments;
use crate::correct::layer::{Effect, Weights};
use crate::error::{Error, Result};
use crate::graph::{Graph, NodeExt, NodeId};
use crate::kernels::{self, Along, Params};
use crate::onnx::{NodeProto, TensorProto};
use crate::qparams::QuantParams;
use crate::tensor::{floats, shape};

/// Largest magnitude a bias may have as an integer: half of the int32 range, so that the sums it is added to keep the
/// other half.
pub(crate) const BIAS_LIMIT: f64 = (1_i64 << 30) as f64;

/// Integer magnitude that the bias of a channel without weights is given.
const DEAD_CHANNEL_BIAS: f64 = (1_i64 << 24) as f64;

/// What decides how fine the grid of weights is.
#[derive(Debug, Clone, Copy)]
pub struct WeightGrid {
    /// A scale for each output channel, or one for the tensor.
    pub per_channel: bool,
    /// Whether to leave room for [pairs of products](super::pairs) in 16 bits.
    pub pairs: bool,
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
    outputs: usize,
    depth: usize,
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

    /// Output channel, and input channel within its group, of the element at `at`.
    pub fn place(&self, at: usize) -> (usize, usize) {
        match self.axis {
            0 => (at / (self.depth * self.taps).max(1), at / self.taps.max(1) % self.depth.max(1)),
            _ => (at % self.outputs.max(1), at / self.outputs.max(1)),
        }
    }

    /// The input channel that is the first of those that output `o` sees.
    pub fn first(&self, o: usize) -> usize {
        o / (self.outputs / self.groups.max(1)).max(1) * self.depth
    }

    /// Takes up factors of the channels.
    fn take_up(&self, factors: Factors, values: &mut [f32]) {
        if factors.input.is_none() && factors.output.is_none() {
            return;
        }
        for (at, w) in values.iter_mut().enumerate() {
            let (o, d) = self.place(at);
            *w *= factors.input.map_or(1.0, |input| input[self.first(o) + d]);
            *w /= factors.output.map_or(1.0, |output| output[o]);
        }
    }
}

/// Weights of one operator as integers, and its bias if it has one.
pub(crate) struct QuantizedWeights {
    /// In the shape of the original.
    pub values: Vec<i8>,
    pub dims: Vec<usize>,
    pub params: QuantParams,
    /// Integers and scale per channel.
    pub bias: Option<(Vec<i32>, Vec<f32>)>,
    /// Signal to noise of the rounding, in dB.
    pub sqnr_db: f64,
    /// Channels whose weights are all zero.
    pub dead_channels: usize,
    /// What corrections did, if there were any.
    pub effect: Option<Effect>,
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
    (factors, correction): (Factors, Option<(&Moments, Corrections)>),
) -> Result<QuantizedWeights> {
    let (weight, axis) = (weight_of(graph, id)?, channel_axis(graph, id));
    let (mut values, dims) = (finite(weight)?, shape(weight)?);
    Inputs::of(graph.node(id), &dims, axis).take_up(factors, &mut values);
    let mut limits = limits(graph, id, &values, &dims, grid);
    let bias = bias.map(|(bias, scale)| (divided(bias, factors.output), scale));
    if let Some((bias, input_scale)) = &bias {
        if bias.len() != dims[axis] {
            let reason = format!("{} channels, but {} bias values", dims[axis], bias.len());
            return Err(Error::tensor(weight.name(), reason));
        }
        leave_room_for_bias(&mut limits, bias, *input_scale);
    }
    let mut quantized = on_grid(&values, dims, axis, limits, grid.per_channel);
    let mut bias = bias;
    if let Some((moments, what)) = correction {
        let dims = &quantized.dims;
        let neighbours = if grid.pairs { pairs::neighbours(graph.node(id), dims, axis) } else { Vec::new() };
        let weights = Weights {
            exact: &values,
            dims,
            axis,
            scale: &quantized.params.scale,
            neighbours: &neighbours,
            factors: factors.input,
        };
        let bias = bias.as_mut().map(|(bias, _)| bias.as_mut_slice());
        quantized.effect = weights.correct(moments, what, &mut quantized.values, bias);
    }
    quantized.bias = bias.map(|(bias, input_scale)| quantize_bias(&bias, input_scale, &quantized.params));
    Ok(quantized)
}

/// A vector over the channels, divided by their factors.
fn divided(values: &[f32], factors: Option<&[f32]>) -> Vec<f32> {
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
    let (values, dims) = (finite(weight)?, shape(weight)?);
    let mut limits = limits(graph, id, &values, &dims, grid);
    adjust(&mut limits);
    Ok(on_grid(&values, dims, axis, limits, grid.per_channel))
}

/// The magnitude that 127 stands for, for each output channel of the weights of node `id`.
pub(crate) fn limits(
    graph: &Graph,
    id: NodeId,
    values: &[f32],
    dims: &[usize],
    grid: WeightGrid,
) -> Vec<f32> {
    let axis = channel_axis(graph, id);
    let mut limits = Channels::new(dims, axis).abs_max(values);
    if grid.pairs {
        let sums = pairs::largest_sums(graph.node(id), values, dims, axis);
        limits.iter_mut().zip(sums).for_each(|(limit, sum)| *limit = limit.max(sum));
    }
    limits
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
    values: &[f32],
    dims: Vec<usize>,
    axis: usize,
    mut limits: Vec<f32>,
    per_channel: bool,
) -> QuantizedWeights {
    let channels = Channels::new(&dims, axis);
    let dead_channels = channels.abs_max(values).iter().filter(|&&m| m == 0.0).count();
    if !per_channel {
        let all = limits.iter().fold(0.0, |a: f32, &b| a.max(b));
        limits.fill(all);
    }
    let mut params = QuantParams::per_channel(&limits, axis);
    let (quantized, noise) = channels.quantize(values, &params.scale);
    let power = kernels::sum_of_squares(values);
    if !per_channel {
        params = QuantParams { scale: params.scale[..1].to_vec(), zero_point: vec![0], axis: None, ..params };
    }
    let sqnr_db = decibels(power / noise);
    QuantizedWeights { values: quantized, dims, params, bias: None, sqnr_db, dead_channels, effect: None }
}

/// Quantizes the rows of a constant, without a thought of sums.
///
/// # Errors
/// [`Error::Tensor`] when it is not finite.
pub(crate) fn quantize_rows(tensor: &TensorProto) -> Result<QuantizedWeights> {
    let (values, dims) = (finite(tensor)?, shape(tensor)?);
    let limits = Channels::new(&dims, 0).abs_max(&values);
    Ok(on_grid(&values, dims, 0, limits, true))
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

/// How the channels lie in a weight tensor: `outer` blocks of `count` rows of `inner` values.
pub(crate) struct Channels {
    pub count: usize,
    inner: usize,
}

impl Channels {
    pub fn new(dims: &[usize], axis: usize) -> Self {
        Self { count: dims[axis], inner: dims[axis + 1..].iter().product() }
    }

    pub fn abs_max(&self, values: &[f32]) -> Vec<f32> {
        let mut abs_max = vec![0_f32; self.count];
        if self.inner == 1 {
            for row in values.chunks_exact(self.count.max(1)) {
                kernels::raise_abs_max(&mut abs_max, row);
            }
        } else {
            for (i, row) in values.chunks_exact(self.inner.max(1)).enumerate() {
                let m = &mut abs_max[i % self.count];
                *m = m.max(kernels::abs_max(row));
            }
        }
        abs_max
    }

    /// The integers, and the sum of the squared errors.
    fn quantize(&self, values: &[f32], scale: &[f32]) -> (Vec<i8>, f64) {
        let along = Along::Axis { channels: self.count, inner: self.inner.max(1) };
        let zero_point = vec![0; self.count];
        let params = Params { scale, zero_point: &zero_point, qmin: -127, qmax: 127, along };
        let mut quantized = vec![0_i8; values.len()];
        kernels::quantize_tensor(values, params, &mut quantized);
        (quantized, kernels::quantization_error_tensor(values, params))
    }
}
