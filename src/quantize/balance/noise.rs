//! What the integers of a value, and of the weights that read it, add to what is computed from it.
//!
//! With weights w\[o, k\], k running over the inputs of an output o and c(k) being the channel of k, the mean square m\[c\] of
//! each channel, the step Δ of the divided value and factors r:
//!
//! ```text
//! signal[o]  = Σ_k w[o, k]² m[c(k)]
//! value[o]   = Σ_k w[o, k]² (Δ r[c(k)])² / 12
//! weights[o] = Σ_k (δ[o] / r[c(k)])² m[c(k)] / 12        δ[o] = max_k |w[o, k]| r[c(k)] / 127
//! ```
//!
//! The noise of a product is the mean over o of (value + weights) / signal. Of what else reads the value it is
//! Σ_c (Δ r)² / 12 / Σ_c m. Errors and inputs are taken to be independent.

use std::array;
use std::collections::HashMap;
use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use super::Balanced;
use crate::correct::LayerInputs;
use crate::graph::{Graph, NodeExt};
use crate::ops::Role;
use crate::qparams::Scheme;
use crate::quantize::placement::Placement;
use crate::quantize::sites::Site;
use crate::quantize::weights::{Inputs, channel_axis};
use crate::tensor::{Parts, shape};

/// Outputs whose sums are made together: their weights for one input, side by side, are many lines of memory, and the sums fit into
/// the first-level cache.
const BLOCK: usize = 128;

/// Weights that read a value.
struct Product<'m> {
    weights: Parts<'m>,
    inputs: Inputs,
}

/// What a way to divide a value does to each of its channels.
struct Way {
    /// Mean square of the rounding.
    errors: Vec<f64>,
    factors: Vec<f64>,
}

/// Of a block of outputs, for each of N ways.
struct Sums<const N: usize> {
    signal: [f64; BLOCK],
    value: [[f64; BLOCK]; N],
    /// The largest max |w| r.
    limit: [[f64; BLOCK]; N],
}

/// Everything that reads the values of a placement.
pub(super) struct Model<'p, 'm> {
    placement: Placement<'p, 'm>,
    scheme: Scheme,
    /// Mean square of the channels that the products multiply, where some of it was seen.
    powers: HashMap<&'m str, Vec<f64>>,
}

impl<'p, 'm> Model<'p, 'm> {
    pub fn new(placement: &Placement<'p, 'm>, scheme: Scheme, inputs: Option<&LayerInputs>) -> Self {
        let linear = placement.integer_sites().filter(|(_, site)| site.op.role == Role::Linear);
        let power = |(_, site): (usize, &Site<'m>)| {
            let moments = inputs?.of(&placement.graph.node(site.id).output[0])?;
            let count = placement.calibration.channels(site.inputs[0])?.min().len();
            Some((site.inputs[0], moments.powers(count)?))
        };
        let powers = linear.filter_map(power).collect();
        Self { placement: *placement, scheme, powers }
    }

    /// Noise in what reads `value`, for each way to divide it.
    pub fn of<const N: usize>(&self, value: &str, ways: &[Balanced; N]) -> [f64; N] {
        let Some(power) = self.powers(value) else { return [0.0; N] };
        let ways = ways.each_ref().map(|balanced| Way::of(balanced, self.scheme));
        let mut noises = [0.0; N];
        let mut others = self.placement.has_float_reader(value);
        for (_, site) in self.placement.integer_sites() {
            if !site.inputs.contains(&value) {
                continue;
            }
            match Product::of(self.placement.graph, site) {
                Some(product) => {
                    let more = product.noise(&power, &ways);
                    noises.iter_mut().zip(more).for_each(|(noise, more)| *noise += more);
                }
                None => others = true,
            }
        }
        if others {
            for (noise, way) in noises.iter_mut().zip(&ways) {
                *noise += way.errors.iter().sum::<f64>() / power.iter().sum::<f64>();
            }
        }
        noises
    }

    /// Mean square of each channel; where it was not seen it is taken to be in the same ratio to the largest magnitude
    /// everywhere.
    fn powers(&self, value: &str) -> Option<Vec<f64>> {
        if let Some(seen) = self.powers.get(value) {
            return Some(seen.clone());
        }
        let seen = self.placement.calibration.channels(value)?;
        let whole = self.placement.calibration.get(value)?.power();
        let squares: Vec<f64> =
            super::groups::magnitudes(seen).iter().map(|&m| f64::from(m).powi(2)).collect();
        let mean = squares.iter().sum::<f64>() / squares.len().max(1) as f64;
        (mean > 0.0).then(|| squares.iter().map(|square| square * whole / mean).collect())
    }
}

impl Way {
    fn of(balanced: &Balanced, scheme: Scheme) -> Self {
        let step = f64::from(balanced.params(scheme).scale[0]);
        let factors: Vec<_> = balanced.factors.iter().map(|&r| f64::from(r)).collect();
        Self { errors: factors.iter().map(|r| (step * r).powi(2) / 12.0).collect(), factors }
    }
}

impl<'m> Product<'m> {
    fn of(graph: &Graph<'m>, site: &Site) -> Option<Self> {
        if site.op.role != Role::Linear {
            return None;
        }
        let node = graph.node(site.id);
        let weight = graph.constant(node.input_at(1)?)?;
        let dims = shape(weight).ok()?;
        let inputs = Inputs::of(node, &dims, channel_axis(graph, site.id));
        Some(Self { weights: Parts::of(weight).ok()?, inputs })
    }

    /// The mean over the outputs, for each way to divide the value that the weights read.
    fn noise<const N: usize>(&self, power: &[f64], ways: &[Way; N]) -> [f64; N] {
        let weights = self.weights.all();
        let blocks: Vec<_> = self.inputs.blocks(BLOCK).collect();
        let of_block = |outputs: &Range<usize>| self.of_block(&weights, outputs.clone(), power, ways);
        let noises: Vec<[f64; N]> = blocks.par_iter().map(of_block).collect();
        array::from_fn(|way| {
            noises.iter().map(|noise| noise[way]).sum::<f64>() / self.inputs.outputs.max(1) as f64
        })
    }

    /// The sum over a block of outputs that see the same channels; nothing where those are not known.
    fn of_block<const N: usize>(
        &self,
        weights: &[f32],
        outputs: Range<usize>,
        power: &[f64],
        ways: &[Way; N],
    ) -> [f64; N] {
        let first = self.inputs.first(outputs.start);
        let channels = first..first + self.inputs.depth;
        if channels.end > power.len() || ways.iter().any(|way| channels.end > way.factors.len()) {
            return [0.0; N];
        }
        let mut sums = Sums::none();
        for (k, channel) in channels.clone().enumerate() {
            let errors = ways.each_ref().map(|way| way.errors[channel]);
            let factors = ways.each_ref().map(|way| way.factors[channel]);
            let (squares, largest) = self.inputs.windows(weights, outputs.clone(), k);
            add(&mut sums, (&squares, &largest), power[channel], errors, factors);
        }
        let taps = self.inputs.taps as f64;
        let spread = ways.each_ref().map(|way| {
            let spread = channels.clone().map(|c| power[c] / (way.factors[c] * way.factors[c]));
            spread.sum::<f64>() * taps
        });
        sums.relative(outputs.len(), spread)
    }
}

impl<const N: usize> Sums<N> {
    fn none() -> Self {
        Self { signal: [0.0; BLOCK], value: [[0.0; BLOCK]; N], limit: [[0.0; BLOCK]; N] }
    }

    /// The noise of the first `count` outputs relative to what they are, and with that of the weights, summed up.
    fn relative(&self, count: usize, spread: [f64; N]) -> [f64; N] {
        array::from_fn(|way| {
            let noise = |o: usize| {
                let weights = (self.limit[way][o] / 127.0).powi(2) / 12.0 * spread[way];
                let noise = self.value[way][o] + weights;
                if self.signal[o] > 0.0 { noise / self.signal[o] } else { 0.0 }
            };
            (0..count).map(noise).sum()
        })
    }
}

/// Adds what comes from one channel: squares of the weights, and the largest magnitudes.
#[multiversion(targets("x86_64+avx2+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn add<const N: usize>(
    sums: &mut Sums<N>,
    (squares, largest): (&[f64; BLOCK], &[f64; BLOCK]),
    power: f64,
    errors: [f64; N],
    factors: [f64; N],
) {
    for (signal, w) in sums.signal.iter_mut().zip(squares) {
        *signal += w * power;
    }
    for (value, error) in sums.value.iter_mut().zip(errors) {
        for (value, w) in value.iter_mut().zip(squares) {
            *value += w * error;
        }
    }
    for (limit, factor) in sums.limit.iter_mut().zip(factors) {
        for (limit, w) in limit.iter_mut().zip(largest) {
            let scaled = w * factor;
            *limit = if scaled > *limit { scaled } else { *limit };
        }
    }
}
