//! One scale for channels of very different size: what a channel lacks is made up for in the weights around it.
//!
//! A value has one scale for all of its channels, because integer kernels know no other. If each channel c is divided by
//! a factor r\[c\] ≤ 1 before it is rounded, a quiet channel uses as many integers as a loud one, and
//!
//! | neighbour | takes the factor up as |
//! |---|---|
//! | product by weights that makes the value | w\[o, ·\] / r\[o\] and b\[o\] / r\[o\] |
//! | product by weights that reads it | w\[·, c\] · r\[c\] |
//! | float operators that read it | a Div by 1 / r\[c\] behind the DequantizeLinear |
//! | float operator that makes it | a Mul by 1 / r\[c\] in front of the QuantizeLinear |
//! | additions, pooling, concatenation | nothing, if all values they join have the same factors |
//!
//! The first two are cross-layer equalization (Nagel et al. 2019, section 4.1) and, where the value is not made by
//! weights, SmoothQuant (Xiao et al. 2022). They leave the float model as it is: only the integers change. A clip of the
//! value at 0 commutes with a positive factor; one at an upper bound as well, as long as no channel is scaled
//! beyond the loudest, since saturation does the clipping. Values that meet anything else ([`groups`]) keep one scale.
//!
//! For other runtimes [the float model](float) is changed so, where it computes the same then.
//!
//! r\[c\] = min(1, [`HEADROOM`] · absmax of the channel / absmax of the value)^α; for values that belong together the
//! largest of theirs. A larger α spreads the rounding of the value more evenly and makes the weights that read it more uneven. Of
//! [`STRENGTHS`], each group gets the one with the least noise of both kinds in what reads the value ([`noise`]).

mod float;
mod groups;
mod noise;

use std::collections::HashMap;

use rayon::prelude::*;

use super::cost;
use super::placement::Placement;
use super::sites::Sites;
use crate::correct::LayerInputs;
use crate::graph::{Graph, NodeExt};
use crate::ops::Role;
use crate::qparams::{QuantParams, Range, Scheme};
pub(crate) use float::{divided, in_float};
use groups::Groups;

/// Exponents that are tried; 0 leaves a value as it is.
const STRENGTHS: [f32; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];
/// No channel is taken to be quieter than this share of the loudest: what calibration has not seen may be louder.
const QUIETEST: f32 = 1.0 / 128.0;
/// What the largest magnitude of a channel is taken to be, relative to what was seen: one channel has fewer values than
/// all together, and the largest that is still to come is beyond them more often. Chosen by measurement, see
/// `docs/how-it-works.md`.
const HEADROOM: f32 = 2.0;
/// Share of the time of the kernels that read a float value, which its Mul may take.
const MUL_SHARE: f64 = 0.05;
/// Nanoseconds of a Mul, and per element.
const MUL: (f64, f64) = (500.0, 0.06);

/// A value whose channels are brought to one scale.
#[derive(Debug, Clone)]
pub(crate) struct Balanced {
    /// Of the channels; negative numbers count from the last.
    pub axis: i64,
    /// What each channel is divided by.
    pub factors: Vec<f32>,
    /// Of the divided values.
    pub range: Range,
}

/// All of them, by name.
pub(crate) type Balance<'m> = HashMap<&'m str, Balanced>;

/// The axis of the channels of each value whose channels have to be observed one by one.
pub(crate) fn axes<'m>(graph: &Graph<'m>, sites: &Sites<'m>) -> HashMap<&'m str, i64> {
    let mut axes = HashMap::new();
    for site in &sites.all {
        let convolution = graph.node(site.id).is("Conv");
        let values: &[&[&str]] = match (site.op.op_type, site.op.role) {
            (_, Role::Linear) => &[&site.inputs, &site.outputs],
            ("GlobalAveragePool" | "AveragePool", _) => &[&site.outputs],
            _ => continue,
        };
        let axis = if convolution || site.op.role != Role::Linear { 1 } else { -1 };
        for &value in values.iter().copied().flatten() {
            axes.entry(value)
                .and_modify(|known| *known = if *known == axis { axis } else { 0 })
                .or_insert(axis);
        }
    }
    axes.retain(|value, axis| *axis != 0 && !graph.is_input(value));
    axes
}

/// The values that are worth it, and their factors.
pub(crate) fn find<'m>(placement: &Placement<'_, 'm>, scheme: Scheme) -> Balance<'m> {
    of_those(placement, (scheme, None), |value| can_be_divided(placement, value))
}

/// The same, of the values that can be divided.
fn of_those<'m>(
    placement: &Placement<'_, 'm>,
    (scheme, inputs): (Scheme, Option<&LayerInputs>),
    divisible: impl Fn(&str) -> bool,
) -> Balance<'m> {
    let mut groups = Groups::of(placement);
    for value in placement.sites.values() {
        if !divisible(value) {
            groups.pin(value);
        }
    }
    let model = noise::Model::new(placement, scheme, inputs);
    let mut ratios: Vec<_> = groups.ratios().into_iter().collect();
    ratios.sort_unstable_by_key(|(value, _)| *value);
    // One value after the other: its weights, as the noise needs them, are many.
    let tried = ratios.into_par_iter().map(|(value, ratios)| {
        let factors = |strength: f32| {
            ratios.iter().map(|ratio| (ratio * HEADROOM).clamp(QUIETEST, 1.0).powf(strength)).collect()
        };
        let balanced = STRENGTHS.map(|strength| groups.balanced(value, factors(strength)));
        (value, model.of(value, &balanced), balanced)
    });
    let mut found: HashMap<&str, [(f64, Balance); STRENGTHS.len()]> = HashMap::new();
    for (value, noises, balanced) in tried.collect::<Vec<_>>() {
        let component = found.entry(groups.component(value)).or_default();
        for ((sum, members), (noise, balanced)) in component.iter_mut().zip(noises.into_iter().zip(balanced))
        {
            *sum += noise;
            members.insert(value, balanced);
        }
    }
    let best = found.into_values().filter_map(|strengths| {
        let least = strengths.into_iter().reduce(|best, next| if best.0 <= next.0 { best } else { next });
        least.map(|(_, members)| members)
    });
    let uneven = |balanced: &Balanced| balanced.factors.iter().any(|&factor| factor != 1.0);
    best.flatten().filter(|(_, b)| uneven(b)).collect()
}

/// Of which ends of a layer the channels are on one scale, for the user.
pub(crate) fn remarks<S: AsRef<str>>(balance: &Balance, inputs: &[S], outputs: &[S]) -> Vec<String> {
    let has_factors = |values: &[S]| values.iter().any(|value| balance.contains_key(value.as_ref()));
    let ends = [("input", inputs), ("output", outputs)].into_iter().filter(|(_, values)| has_factors(values));
    ends.map(|(end, _)| format!("channels of its {end} on one scale")).collect()
}

/// Whether a value that becomes integers can be divided by something before.
fn can_be_divided(placement: &Placement, value: &str) -> bool {
    if placement.is_made_of_integers(value) {
        return true;
    }
    let readers = placement.integer_sites().filter(|(_, site)| site.inputs.contains(&value));
    let elements = |name: &str| placement.calibration.elements(name);
    let time: f64 = readers.map(|(_, site)| cost::cost(placement.graph, site, elements).int8).sum();
    placement.graph.producer(value).is_some() && MUL.0 + MUL.1 * elements(value) <= MUL_SHARE * time
}

impl Balanced {
    /// The parameters of the divided value.
    pub fn params(&self, scheme: Scheme) -> QuantParams {
        QuantParams::new(self.range, scheme)
    }

    /// What makes divided values of the channels.
    pub fn inverse(&self) -> Vec<f32> {
        self.factors.iter().map(|factor| 1.0 / factor).collect()
    }

    /// Those with which the same integers mean the value itself: a scale for each channel.
    pub fn undivided(&self, params: &QuantParams, axis: usize) -> QuantParams {
        QuantParams {
            scale: self.factors.iter().map(|factor| params.scale[0] * factor).collect(),
            zero_point: vec![params.zero_point[0]; self.factors.len()],
            axis: Some(axis),
            dtype: params.dtype,
        }
    }

    /// Mean square of what rounding adds to the value itself.
    pub fn rounding_noise(&self, params: &QuantParams) -> f64 {
        let scale = f64::from(params.scale[0]);
        let squares: f64 = self.factors.iter().map(|&factor| (f64::from(factor) * scale).powi(2)).sum();
        squares / (12 * self.factors.len().max(1)) as f64
    }
}
