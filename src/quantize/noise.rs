//! How much noise the integers of a value, or of weights, add to the operator that uses them.
//!
//! Noise is counted relative to the variance of the operator's result, with rounding errors taken as independent:
//!
//! | operator | noise from errors of variance σ² in its input | from errors of variance ω² in its weights |
//! |---|---|---|
//! | product by weights w | σ² · mean over output channels of Σ w² | mean of x² · mean over output channels of Σ ω² |
//! | product of two activations x, y | σ² · mean of y² | |
//! | average of n values | σ² / n | |
//! | sigmoid, hard-sigmoid | σ² · (largest slope)² | |
//! | anything else | σ² | |
//!
//! The sum over a network is a good estimate of the noise in its output: errors of different layers are independent,
//! and a layer passes relative errors on about as they are.

use std::collections::HashMap;

use super::sites::{Site, Sites};
use super::weights::{Channels, channel_axis};
use crate::calibration::Calibration;
use crate::error::Result;
use crate::graph::{Graph, NodeExt};
use crate::observer::Observer;
use crate::qparams::QuantParams;
use crate::tensor::{floats, shape};

/// Relative noise of everything that a plan can put on integers.
pub(crate) struct Noise<'m> {
    /// Of the integers of each value, at the reader that suffers most.
    pub values: HashMap<&'m str, f64>,
    /// Of the weights of each site.
    pub weights: Vec<f64>,
}

/// Signal to noise ratio of quantizing what was observed, in dB.
pub(crate) fn sqnr_db(observer: &Observer, params: &QuantParams) -> f64 {
    10.0 * (observer.power() / observer.quantization_noise(params)).log10()
}

/// Estimates the noise, given the parameters that each value would have.
///
/// # Errors
/// [`crate::Error::Tensor`] when weights cannot be read.
pub(crate) fn estimate<'m>(
    graph: &Graph,
    sites: &Sites<'m>,
    activations: &HashMap<&'m str, QuantParams>,
    calibration: &Calibration,
) -> Result<Noise<'m>> {
    let error = |value: &str| {
        let observer = calibration.get(value)?;
        Some(observer.quantization_noise(activations.get(value)?))
    };
    let mut values: HashMap<&'m str, f64> = HashMap::new();
    let mut weights = Vec::with_capacity(sites.all.len());
    for site in &sites.all {
        let signal = calibration.get(site.outputs[0]).map_or(0.0, Observer::variance);
        let relative = |noise: f64| if signal > 0.0 { noise / signal } else { 0.0 };
        let gain = Gain::of(graph, site)?;
        for &value in &site.inputs {
            let gain = gain.squared_weights * slope_squared(graph, site, value, calibration);
            let noise = relative(error(value).unwrap_or(0.0) * gain);
            let worst = values.entry(value).or_default();
            *worst = worst.max(noise);
        }
        let input_power = calibration.get(site.inputs[0]).map_or(0.0, Observer::power);
        weights.push(relative(input_power * gain.squared_weight_errors));
    }
    for &value in sites.all.iter().flat_map(|site| &site.outputs) {
        let own = calibration.get(value).map_or(0.0, Observer::variance);
        let read_elsewhere = graph.is_observable(value)
            || graph.consumers(value).iter().any(|&id| sites.of_node(id).is_none());
        if let Some(noise) = error(value).filter(|_| own > 0.0 && read_elsewhere) {
            let worst = values.entry(value).or_default();
            *worst = worst.max(noise / own);
        }
    }
    Ok(Noise { values, weights })
}

/// What an operator without weights does to the variance of errors in `value`.
fn slope_squared(graph: &Graph, site: &Site, value: &str, calibration: &Calibration) -> f64 {
    let node = graph.node(site.id);
    let power = |operand: &&String| match graph.constant(operand) {
        Some(constant) => floats(constant).map_or(1.0, |v| mean_square(&v)),
        None => calibration.get(operand).map_or(1.0, Observer::power),
    };
    match site.op.op_type {
        "Mul" => {
            node.input.iter().filter(|operand| *operand != value).map(|operand| power(&operand)).product()
        }
        "GlobalAveragePool" | "AveragePool" => {
            let (read, made) = (calibration.elements(value), calibration.elements(site.outputs[0]));
            if read > made { made / read } else { 1.0 }
        }
        "Sigmoid" => 1.0 / 16.0,
        "HardSigmoid" => f64::from(node.float("alpha", 0.2)).powi(2),
        _ => 1.0,
    }
}

fn mean_square(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len().max(1) as f64
}

/// What multiplying by weights does to the variance of errors.
struct Gain {
    squared_weights: f64,
    squared_weight_errors: f64,
}

impl Gain {
    fn of(graph: &Graph, site: &Site) -> Result<Self> {
        let node = graph.node(site.id);
        let weight = site.op.weight.and_then(|index| graph.constant(node.input_at(index)?));
        let Some(weight) = weight else {
            return Ok(Self { squared_weights: 1.0, squared_weight_errors: 0.0 });
        };
        let (values, dims) = (floats(weight)?, shape(weight)?);
        let channels = Channels::new(&dims, channel_axis(graph, site.id));
        let count = channels.count.max(1) as f64;
        let per_channel = values.len() as f64 / count;
        let squares: f64 = values.iter().map(|&w| f64::from(w).powi(2)).sum();
        let step = |absmax: &f32| f64::from(absmax / 127.0).powi(2) / 12.0;
        let errors: f64 = channels.abs_max(&values).iter().map(step).sum();
        Ok(Self { squared_weights: squares / count, squared_weight_errors: errors / count * per_channel })
    }
}
