//! Pairs of weights whose products x86 processors without VNNI add up in 16 bits.
//!
//! There ONNX Runtime's kernels multiply uint8 activations by int8 weights with `vpmaddubsw`, which adds the products of
//! the weights 2j and 2j + 1 of a sum and saturates at −2¹⁵ and 2¹⁵ − 1. With activations up to 255 the sum is exact if
//! |q₂ⱼ + q₂ⱼ₊₁| ≤ 128, so the scale of a channel has to be at least |w₂ⱼ + w₂ⱼ₊₁| / 127: rounding adds 1 at the most.
//! (Weights of opposite signs take from each other; each of them is within 127 anyway.)
//!
//! Few channels of an activation reach the largest integer. If channel k of the input is at most ρₖ · 255, the sum is exact
//! with |ρ₂ⱼ q₂ⱼ + ρ₂ⱼ₊₁ q₂ⱼ₊₁| ≤ 128, which most pairs keep without any room: [`reach`].
//!
//! On x86 ONNX Runtime turns int8 activations between QuantizeLinear and DequantizeLinear into uint8 with the zero point 128, so
//! the symmetric scheme needs that room as well.
//!
//! A sum runs over the rows of a matrix; of a convolution, over the positions of its window and, innermost, the channels.
//! Depthwise convolutions have a kernel that adds in 32 bits. Which weights are neighbours, and that nothing else
//! saturates, was found by giving ONNX Runtime 1.32 one pair of large weights at a time on such a processor.

use crate::calibration::Channels;
use crate::graph::NodeExt;
use crate::kernels;
use crate::kernels::branchless::larger;
use crate::onnx::NodeProto;
use crate::qparams::QuantParams;

/// What a channel is taken to reach, relative to the largest value that was seen of it. Both of a pair have to go beyond
/// for a sum to saturate, and it is then off by what they do.
const HEADROOM: f32 = 1.5;

/// The largest sum of two weights of which 255 times as much fits into 16 bits.
const LARGEST_SUM: f32 = 128.0;

/// The share of the largest integer that each channel of a value reaches, given what was seen of the channels and what each
/// is divided by before it is rounded to `params`.
pub(super) fn reach(seen: &Channels, factors: Option<&[f32]>, params: &QuantParams) -> Vec<f32> {
    let (lowest, highest) = (params.dtype.qmin(), params.dtype.qmax());
    let (zero, span) = ((params.zero_point[0] - lowest) as f32, (highest - lowest) as f32);
    let of_channel = |(c, &max): (usize, &f32)| {
        let largest = max.max(0.0) / factors.map_or(1.0, |factors| factors[c]);
        ((zero + (HEADROOM * largest / params.scale[0]).ceil()) / span).clamp(1.0 / span, 1.0)
    };
    seen.max().iter().enumerate().map(of_channel).collect()
}

/// Which weights of an operator are pairs.
pub(super) enum Pairs {
    /// None that matter.
    None,
    /// Neighbours in each of so many columns of a matrix, which are the channels.
    Columns(usize),
    /// Neighbours in rows, which are the channels: `depth` input channels, each with `window` positions of the kernel.
    Rows { depth: usize, window: usize },
}

impl Pairs {
    /// Those of the weights of `node`, of shape `dims`, whose channels are along `axis`.
    pub fn of(node: &NodeProto, dims: &[usize], axis: usize) -> Self {
        if axis != 0 {
            return Self::Columns(dims[axis]);
        }
        let (depth, window) = (dims[1], dims[2..].iter().fold(1, |n: usize, &d| n.saturating_mul(d)));
        let none = depthwise(node, dims) || depth == 0 || window == 0;
        if none { Self::None } else { Self::Rows { depth, window } }
    }

    /// The largest magnitude of the sum of a pair, for each output channel of some rows of the weights: an even number of
    /// them, or the last.
    pub fn largest_sums(&self, values: &[f32]) -> Vec<f32> {
        match *self {
            Self::None => Vec::new(),
            Self::Columns(count) => of_columns(values, count).1,
            Self::Rows { depth, window } => values
                .chunks_exact(depth.saturating_mul(window))
                .map(|row| of_row(row, depth, window))
                .collect(),
        }
    }

    /// Where the channels are columns of a matrix, `inner` being 1: of some rows, an even number of them or the last, the largest
    /// magnitude in each column, that of the sum of a pair, and the sum of the squares.
    pub fn extents_of_columns(&self, values: &[f32], inner: usize) -> Option<(Vec<f32>, Vec<f32>, f64)> {
        match *self {
            Self::Columns(count) if count > 0 && inner == 1 => Some(of_columns(values, count)),
            _ => None,
        }
    }
}

/// Whether 255 times a pair of the integers that the weights of `node` are, each times what its channel reaches of 255, may be
/// more than 16 bits hold.
pub(super) fn overflow(node: &NodeProto, codes: &[f32], dims: &[usize], axis: usize) -> bool {
    Pairs::of(node, dims, axis).largest_sums(codes).into_iter().any(|sum| sum > LARGEST_SUM)
}

/// For each input of an output channel, the other one of its pair; empty if there are no pairs.
pub(super) fn neighbours(node: &NodeProto, dims: &[usize], axis: usize) -> Vec<Option<usize>> {
    let other = |k: usize, count: usize| Some(k ^ 1).filter(|&other| other < count);
    if axis != 0 {
        return (0..dims[0]).map(|k| other(k, dims[0])).collect();
    }
    let (depth, window) = (dims[1], dims[2..].iter().product::<usize>());
    if depthwise(node, dims) {
        return Vec::new();
    }
    // In memory the channels are outermost, in the sum they are innermost.
    let neighbour = |k: usize| {
        let other = other(k % window * depth + k / window, depth * window)?;
        Some(other % depth * window + other / depth)
    };
    (0..depth * window).map(neighbour).collect()
}

fn depthwise(node: &NodeProto, dims: &[usize]) -> bool {
    node.is("Conv") && dims[1] == 1 && node.int("group", 1) == dims[0] as i64
}

/// Of a matrix whose columns are the channels: sizes, sums of pairs, and the sum of the squares.
fn of_columns(values: &[f32], count: usize) -> (Vec<f32>, Vec<f32>, f64) {
    let (mut sizes, mut sums, mut squares) = (vec![0.0; count], vec![0.0; count], 0.0);
    let mut pairs = values.chunks_exact(2 * count.max(1));
    for pair in &mut pairs {
        let (even, odd) = pair.split_at(count);
        squares += kernels::raise_extents(&mut sizes, &mut sums, even, odd);
    }
    for row in pairs.remainder().chunks_exact(count.max(1)) {
        kernels::raise_abs_max(&mut sizes, row);
        squares += kernels::sum_of_squares(row);
    }
    (sizes, sums, squares)
}

/// Of one output channel: `depth` input channels, each with the `window` positions of the kernel.
fn of_row(row: &[f32], depth: usize, window: usize) -> f32 {
    let sum = |a: &f32, b: &f32| (a + b).abs();
    if depth.is_multiple_of(2) || window == 1 {
        let pairs = row.chunks_exact(2 * window).map(|pair| pair.split_at(window));
        return pairs
            .flat_map(|(even, odd)| even.iter().zip(odd))
            .fold(0.0, |m, (a, b)| larger(m, sum(a, b)));
    }
    let weight = |k: usize| &row[k % depth * window + k / depth];
    (1..row.len()).step_by(2).fold(0.0, |most, k| larger(most, sum(weight(k - 1), weight(k))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::{int_attribute, node};
    use crate::qparams::{Range, Scheme};

    const RANGE: Range = Range { min: -1.0, max: 1.0 };

    fn largest_sums(node: &NodeProto, values: &[f32], dims: &[usize], axis: usize) -> Vec<f32> {
        Pairs::of(node, dims, axis).largest_sums(values)
    }

    #[test]
    fn neighbours_along_the_sum() {
        // Two output channels; three input channels with two positions each: the sum runs 0, 2, 4, 1, 3, 5.
        let values = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, -1.0, 3.0, 1.0, -5.0, 0.0, 2.0];
        let conv = node("Conv", "", &[], &[]);
        assert_eq!(largest_sums(&conv, &values, &[2, 3, 2], 0), [40.0, 3.0]);
        // An even number of channels: 0, 2 and 1, 3; then 4, 6 and 5, 7.
        let row = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, -7.0];
        assert_eq!(largest_sums(&conv, &row, &[1, 4, 2], 0), [80.0]);
        assert_eq!(neighbours(&conv, &[1, 4, 2], 0), [2, 3, 0, 1, 6, 7, 4, 5].map(Some));
        assert_eq!(neighbours(&conv, &[2, 3, 2], 0), [2, 4, 0, 5, 1, 3].map(Some).to_vec());
    }

    #[test]
    fn channels_reach_less_than_the_largest_integer() {
        let mut seen = Channels::along(-1);
        seen.observe(&[2, 4], 0, &[0.5, -1.0, 0.0, 2.0, 0.1, 8.0, -3.0, 2.0]).unwrap();
        let params = QuantParams { zero_point: vec![55], ..QuantParams::new(RANGE, Scheme::Asymmetric) };
        let params = QuantParams { scale: vec![0.04], ..params };
        let codes = |shares: Vec<f32>| shares.iter().map(|share| (share * 255.0).round()).collect::<Vec<_>>();
        // 55 + 1.5 · 0.5 / 0.04; more than there is; the zero alone; 55 + 1.5 · 2 / 0.04.
        assert_eq!(codes(reach(&seen, None, &params)), [74.0, 255.0, 55.0, 130.0]);
        assert_eq!(codes(reach(&seen, Some(&[0.5, 1.0, 1.0, 0.5]), &params)), [93.0, 255.0, 55.0, 205.0]);
        let symmetric = QuantParams { scale: vec![0.1], ..QuantParams::new(RANGE, Scheme::Symmetric) };
        assert_eq!(codes(reach(&seen, None, &symmetric)), [136.0, 248.0, 128.0, 158.0]);
    }

    #[test]
    fn matrices_in_both_layouts() {
        let values = [1.0, -2.0, 3.0, -4.0, 9.0, 9.0];
        assert_eq!(largest_sums(&node("MatMul", "", &[], &[]), &values, &[3, 2], 1), [4.0, 6.0]);
        assert_eq!(largest_sums(&node("Gemm", "", &[], &[]), &values, &[2, 3], 0), [1.0, 5.0]);
    }

    #[test]
    fn depthwise_kernels_add_in_32_bits() {
        let mut conv = node("Conv", "", &[], &[]);
        conv.attribute.push(int_attribute("group", 2));
        assert!(largest_sums(&conv, &[1.0, 1.0, 1.0, 1.0], &[2, 1, 2], 0).is_empty());
        assert_eq!(largest_sums(&conv, &[1.0; 8], &[4, 1, 2], 0), [2.0; 4]);
    }
}
