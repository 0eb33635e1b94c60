//! Where the inputs of an output channel lie among the weights, and factors of the channels on both sides.

use std::ops::Range;

use multiversion::multiversion;

use super::Extent;
use super::channels::Channels;
use super::operand::{channel_axis, finite, weight_of};
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::kernels;
use crate::onnx::NodeProto;
use crate::quantize::pairs::Pairs;
use crate::tensor::{Parts, shape};

/// What each channel of the input, and of the output, of a product is divided by; see [`balance`](crate::quantize::balance).
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
    pub(super) fn extent(&self, node: &NodeProto, values: &Parts, dims: &[usize], reach: &[f32]) -> Extent {
        let channels = Channels::new(dims, self.axis);
        let mut extent = channels.extent(values, &Pairs::None);
        let mut reached = values.all().into_owned();
        self.take_up(Factors { input: Some(reach), output: None }, &mut reached);
        let sums = Pairs::of(node, dims, self.axis).largest_sums(&reached);
        kernels::raise_abs_max(&mut extent.limits[..sums.len()], &sums);
        extent
    }

    /// Takes up factors of the channels.
    pub(super) fn take_up(&self, factors: Factors, values: &mut [f32]) {
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

/// The weights of node `id` with these factors in them.
///
/// # Errors
/// [`crate::Error::Tensor`] when they are not finite.
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
