//! How much noise the integers of a value, or of weights, put into what is computed from them.
//!
//! Rounding errors are taken as independent of each other and of the signal, and noise is counted relative to the
//! variance of the signal it comes with. An operator with the output y passes errors of variance σ² in its input x on
//! as `gain · σ²`:
//!
//! | operator | gain |
//! |---|---|
//! | product by weights w | mean over output channels of Σ w² |
//! | product x · z | mean of z² |
//! | average of n values | 1 / n |
//! | concatenation | share of x in y |
//! | sigmoid, hard-sigmoid | mean square of the slope over the values seen |
//! | anything else that has an integer kernel | 1 |
//!
//! so that relative noise is multiplied by `gain · var x / var y`: it shrinks where the signal adds up coherently and
//! grows where it cancels. Noise is followed up to the next product by weights. Going on to the output of the model would
//! need statistics per channel: averages over a tensor exaggerate the gain of a few large weights on quiet channels,
//! and the exaggerations multiply.

use std::collections::HashMap;

use super::scales::Grids;
use super::sites::{Site, Sites};
use super::weights::{Extent, WeightGrid, extent};
use crate::calibration::Calibration;
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::observer::Observer;
use crate::ops::Role;
use crate::qparams::QuantParams;
use crate::tensor::{Parts, floats, shape};

/// Noise in results, relative to their variance, of everything that a plan can put on integers.
pub(crate) struct Noise<'m> {
    /// Of the integers of each value.
    pub values: HashMap<&'m str, f64>,
    /// Of the weights of each site.
    pub weights: Vec<f64>,
}

/// Signal to noise ratio of quantizing what was observed, in dB.
pub(crate) fn sqnr_db(observer: &Observer, params: &QuantParams) -> f64 {
    decibels(observer.power() / observer.quantization_noise(params))
}

/// A ratio of powers in dB.
pub(crate) fn decibels(ratio: f64) -> f64 {
    10.0 * ratio.log10()
}

/// Noise in the results of each product by weights, relative to their variance, from the integers of its weights and of its
/// input on the grid that `params` gives. Products whose input was not seen are left out.
///
/// # Errors
/// [`crate::Error::Tensor`] when weights cannot be read.
pub(crate) fn of_products(
    graph: &Graph,
    grids: &Grids,
    params: impl Fn(&str) -> Option<QuantParams>,
) -> Result<HashMap<NodeId, f64>> {
    let calibration = grids.calibration;
    let sites = Sites::find(graph);
    let model = Model::new(graph, &sites, calibration, WeightGrid::PLAIN)?;
    let of_site = |i: usize| {
        let site = &sites.all[i];
        let (input, output) = (site.inputs[0], site.outputs[0]);
        let observer = calibration.get(input)?;
        let of_input = grids.noise(input, &params(input)?)? * model.per_variance(input);
        let of_weights = observer.power() * model.weights[i].squared_errors * model.per_variance(output);
        Some((site.id, of_input * model.passed_on(i, input)? + of_weights))
    };
    Ok((0..sites.all.len()).filter(|&i| sites.all[i].op.role == Role::Linear).filter_map(of_site).collect())
}

/// Estimates the noise, given the mean square error of the integers of each value.
///
/// # Errors
/// [`crate::Error::Tensor`] when weights cannot be read.
pub(crate) fn estimate<'m>(
    graph: &Graph<'m>,
    sites: &Sites<'m>,
    activation: impl Fn(&'m str) -> Option<f64>,
    calibration: &Calibration,
    grid: WeightGrid,
) -> Result<Noise<'m>> {
    let model = Model::new(graph, sites, calibration, grid)?;
    let sensitivity = model.sensitivity();
    let of_value = |value: &'m str| {
        let error = activation(value)?;
        let leaves = if graph.is_observable(value) { 1.0 } else { 0.0 };
        let passed = sensitivity.get(value).map_or(leaves, |s| s.max(leaves));
        Some((value, error * model.per_variance(value) * passed))
    };
    let weights = sites.all.iter().zip(&model.weights).map(|(site, weights)| {
        let output = site.outputs[0];
        let input_power = calibration.get(site.inputs[0]).map_or(0.0, Observer::power);
        input_power * weights.squared_errors * model.per_variance(output)
    });
    let weights = weights.collect();
    Ok(Noise { values: sites.values().into_iter().filter_map(of_value).collect(), weights })
}

/// Sums over the weights of a site.
struct Weights {
    /// Mean over output channels of Σ w².
    squared: f64,
    /// Mean over output channels of Σ (error of w)².
    squared_errors: f64,
}

struct Model<'a, 'm> {
    graph: &'a Graph<'m>,
    sites: &'a Sites<'m>,
    calibration: &'a Calibration,
    weights: Vec<Weights>,
    variances: HashMap<&'m str, f64>,
}

impl<'a, 'm> Model<'a, 'm> {
    fn new(
        graph: &'a Graph<'m>,
        sites: &'a Sites<'m>,
        calibration: &'a Calibration,
        grid: WeightGrid,
    ) -> Result<Self> {
        let weights = sites.all.iter().map(|site| Weights::of(graph, site, grid)).collect::<Result<_>>()?;
        let variance = |value: &'m str| Some((value, calibration.get(value)?.variance()));
        let variances = sites.values().into_iter().filter_map(variance).collect();
        Ok(Self { graph, sites, calibration, weights, variances })
    }

    /// 1 / variance of a value, 0 where it has none.
    fn per_variance(&self, value: &str) -> f64 {
        self.variances.get(value).filter(|v| **v > 0.0).map_or(0.0, |v| v.recip())
    }

    /// What relative noise of 1 in each value becomes in the product by weights that suffers most from it, or in what
    /// else reads it.
    fn sensitivity(&self) -> HashMap<&'m str, f64> {
        let mut sensitivity: HashMap<&'m str, f64> = HashMap::new();
        for (id, node) in self.graph.nodes().iter().enumerate().rev() {
            let site = self.sites.of_node(id);
            for value in node.input.iter().map(String::as_str) {
                let passed = site.and_then(|i| {
                    let site = &self.sites.all[i];
                    let onwards =
                        if site.op.role == Role::Linear { 1.0 } else { self.onwards(site, &sensitivity) };
                    Some(self.passed_on(i, value)? * onwards)
                });
                let worst = sensitivity.entry(value).or_default();
                *worst = worst.max(passed.unwrap_or(1.0));
            }
        }
        sensitivity
    }

    /// What becomes of noise in the results of a site.
    fn onwards(&self, site: &Site, sensitivity: &HashMap<&'m str, f64>) -> f64 {
        let of_output = |output: &&str| {
            let read = sensitivity.get(*output).copied().unwrap_or(0.0);
            if self.graph.is_observable(output) { read.max(1.0) } else { read }
        };
        site.outputs.iter().map(of_output).fold(0.0, f64::max)
    }

    /// What site `i` makes of relative noise in `value`; `None` if it is not one of its inputs.
    fn passed_on(&self, i: usize, value: &str) -> Option<f64> {
        let site = &self.sites.all[i];
        if !site.inputs.contains(&value) {
            return None;
        }
        let variance = *self.variances.get(value)?;
        Some(self.gain(i, value) * variance * self.per_variance(site.outputs[0]))
    }

    fn gain(&self, i: usize, value: &str) -> f64 {
        let site = &self.sites.all[i];
        let node = self.graph.node(site.id);
        let (read, made) = (self.calibration.elements(value), self.calibration.elements(site.outputs[0]));
        let mean_slope = |slope: &dyn Fn(f64) -> f64| mean(self.calibration.get(value), slope);
        match site.op.op_type {
            "Conv" | "Gemm" | "MatMul" => self.weights[i].squared,
            "Mul" => {
                node.input.iter().filter(|name| *name != value).map(|name| self.mean_square(name)).product()
            }
            "GlobalAveragePool" | "AveragePool" if read > made => made / read,
            "Concat" => read / made.max(1.0),
            "Sigmoid" => mean_slope(&|x| {
                let y = 1.0 / (1.0 + (-x).exp());
                y * (1.0 - y)
            }),
            "HardSigmoid" => {
                let (alpha, beta) = (f64::from(node.float("alpha", 0.2)), f64::from(node.float("beta", 0.5)));
                mean_slope(&|x| if (0.0..=1.0).contains(&(alpha * x + beta)) { alpha } else { 0.0 })
            }
            _ => 1.0,
        }
    }

    fn mean_square(&self, operand: &str) -> f64 {
        match self.graph.constant(operand).map(floats) {
            Some(Ok(values)) => {
                values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len().max(1) as f64
            }
            _ => self.calibration.get(operand).map_or(1.0, Observer::power),
        }
    }
}

/// Mean of the squared slope over what was observed.
fn mean(observer: Option<&Observer>, slope: &dyn Fn(f64) -> f64) -> f64 {
    let (mut sum, mut total) = (0.0, 0.0);
    for bin in observer.into_iter().flat_map(Observer::bins) {
        let count = bin.count as f64;
        sum += count * slope((bin.lo + bin.hi) / 2.0).powi(2);
        total += count;
    }
    if total > 0.0 { sum / total } else { 1.0 }
}

impl Weights {
    fn of(graph: &Graph, site: &Site, grid: WeightGrid) -> Result<Self> {
        let node = graph.node(site.id);
        let weight = site.op.weight.and_then(|index| graph.constant(node.input_at(index)?));
        let Some(weight) = weight else { return Ok(Self { squared: 1.0, squared_errors: 0.0 }) };
        let (values, dims) = (Parts::of(weight)?, shape(weight)?);
        let Extent { limits, power, .. } = extent(graph, site.id, &values, &dims, grid);
        let count = limits.len().max(1) as f64;
        let per_channel = values.count() as f64 / count;
        let step = |limit: &f32| f64::from(limit / 127.0).powi(2) / 12.0;
        let errors: f64 = limits.iter().map(step).sum();
        Ok(Self { squared: power / count, squared_errors: errors / count * per_channel })
    }
}
