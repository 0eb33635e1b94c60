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

use std::collections::HashMap;

use rayon::prelude::*;

use super::Balanced;
use crate::correct::LayerInputs;
use crate::graph::{Graph, NodeExt};
use crate::ops::Role;
use crate::qparams::Scheme;
use crate::quantize::placement::Placement;
use crate::quantize::sites::Site;
use crate::quantize::weights::{Inputs, channel_axis};
use crate::tensor::{Parts, matrix_transposed, shape};

/// Weights that read a value.
struct Product {
    /// By output and input channel: Σ w² and max |w| over the positions of a window.
    squares: Vec<f32>,
    largest: Vec<f32>,
    outputs: usize,
    /// Input channels of one output.
    depth: usize,
    inputs: Inputs,
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
        let errors = ways.each_ref().map(|balanced| {
            let step = f64::from(balanced.params(self.scheme).scale[0]);
            balanced.factors.iter().map(|&r| (step * f64::from(r)).powi(2) / 12.0).collect::<Vec<f64>>()
        });
        let mut noises = [0.0; N];
        let mut others = self.placement.has_float_reader(value);
        for (_, site) in self.placement.integer_sites() {
            if !site.inputs.contains(&value) {
                continue;
            }
            match Product::of(self.placement.graph, site) {
                Some(product) => {
                    for ((noise, balanced), errors) in noises.iter_mut().zip(ways).zip(&errors) {
                        *noise += product.noise(&power, errors, &balanced.factors);
                    }
                }
                None => others = true,
            }
        }
        if others {
            for (noise, errors) in noises.iter_mut().zip(&errors) {
                *noise += errors.iter().sum::<f64>() / power.iter().sum::<f64>();
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

impl Product {
    fn of(graph: &Graph, site: &Site) -> Option<Self> {
        if site.op.role != Role::Linear {
            return None;
        }
        let node = graph.node(site.id);
        let weight = graph.constant(node.input_at(1)?)?;
        let values = Parts::of(weight).ok()?.into_vec();
        let (dims, axis) = (shape(weight).ok()?, channel_axis(graph, site.id));
        let inputs = Inputs::of(node, &dims, axis);
        let (outputs, depth) = (dims[axis], dims[1 - axis]);
        let windows = if axis == 0 { values } else { matrix_transposed(&values, outputs) };
        let windows = windows.chunks_exact(inputs.taps.max(1));
        let squares = windows.clone().map(|window| window.iter().map(|w| w * w).sum()).collect();
        let largest =
            windows.map(|window| window.iter().fold(0.0, |most: f32, w| most.max(w.abs()))).collect();
        Some(Self { squares, largest, outputs, depth, inputs })
    }

    fn noise(&self, power: &[f64], errors: &[f64], factors: &[f32]) -> f64 {
        let of_output = |o: usize| {
            let first = self.inputs.first(o);
            let channels = first..first + self.depth;
            let (Some(power), Some(errors), Some(factors)) =
                (power.get(channels.clone()), errors.get(channels.clone()), factors.get(channels))
            else {
                return 0.0;
            };
            let row = o * self.depth..(o + 1) * self.depth;
            let (squares, largest) = (&self.squares[row.clone()], &self.largest[row]);
            let (mut signal, mut noise, mut spread, mut limit) = (0.0, 0.0, 0.0, 0.0_f64);
            for k in 0..self.depth {
                let (w, r) = (f64::from(squares[k]), f64::from(factors[k]));
                signal += w * power[k];
                noise += w * errors[k];
                spread += power[k] / (r * r);
                limit = limit.max(f64::from(largest[k]) * r);
            }
            noise += (limit / 127.0).powi(2) / 12.0 * spread * self.inputs.taps as f64;
            if signal > 0.0 { noise / signal } else { 0.0 }
        };
        (0..self.outputs).into_par_iter().map(of_output).sum::<f64>() / self.outputs.max(1) as f64
    }
}
