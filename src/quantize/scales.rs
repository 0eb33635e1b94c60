//! The scale and zero point of every activation that becomes integers.

use std::collections::HashMap;

use rayon::prelude::*;

use super::balance::Balance;
use super::noise::decibels;
use super::report::TensorRecord;
use super::sites::Sites;
use crate::calibration::Calibration;
use crate::given::Given;
use crate::observer::Observer;
use crate::ops::Role;
use crate::qparams::{QuantParams, Range, Scheme};
use crate::ranges::{Method, range};

/// How the activations of [layers made for other runtimes](crate::export) are rounded: each by its calibration, or, where
/// its channels were [brought to one scale](super::balance), by what became of it.
#[derive(Clone, Copy)]
pub(crate) struct Grids<'c, 'm> {
    pub calibration: &'c Calibration,
    pub balance: &'c Balance<'m>,
    /// Parameters that the model came with.
    pub given: &'c Given,
    pub method: Method,
    pub scheme: Scheme,
}

impl Grids<'_, '_> {
    /// The parameters of a value.
    pub fn params(&self, value: &str) -> QuantParams {
        if let Some(given) = self.given.in_scheme(value, self.scheme) {
            return given;
        }
        match self.balance.get(value) {
            Some(balanced) => QuantParams::new(self.cut(value, balanced.range), self.scheme),
            None => of_value(value, self.calibration, self.method, self.scheme),
        }
    }

    /// Whether it is known what a value on integers may be.
    pub fn knows(&self, value: &str) -> bool {
        self.given.get(value).is_some() || self.calibration.saw(value)
    }

    /// The range of a divided value without the share that the method cuts off of the whole, but no more than half: beyond
    /// that would be what the quiet channels were seen to be.
    fn cut(&self, value: &str, divided: Range) -> Range {
        let Some(observer) = self.calibration.get(value) else { return divided };
        let (Some(seen), chosen) = (observer.range(), range(observer, self.method, self.scheme)) else {
            return divided;
        };
        let share = |chosen: f32, seen: f32| if seen == 0.0 { 1.0 } else { (chosen / seen).clamp(0.5, 1.0) };
        match self.scheme {
            Scheme::Asymmetric => Range {
                min: divided.min * share(chosen.min, seen.min),
                max: divided.max * share(chosen.max, seen.max),
            },
            Scheme::Symmetric => {
                Range::symmetric(divided.abs_max() * share(chosen.abs_max(), seen.abs_max()))
            }
        }
    }

    /// Mean square of what integers with these parameters add to a value, if it was seen.
    pub fn noise(&self, value: &str, params: &QuantParams) -> Option<f64> {
        match self.balance.get(value) {
            Some(balanced) => Some(balanced.rounding_noise(params)),
            None => Some(self.calibration.get(value)?.quantization_noise(params)),
        }
    }

    /// What a report says of a value with these parameters.
    pub fn record(&self, value: &str, params: Option<&QuantParams>) -> TensorRecord {
        let noise = params.and_then(|params| self.noise(value, params));
        let power = self.calibration.get(value).map(Observer::power);
        let sqnr_db = power.zip(noise).map(|(power, noise)| decibels(power / noise));
        TensorRecord { name: value.to_owned(), params: params.cloned(), sqnr_db }
    }
}

/// The parameters of each value by itself: those that were given, or that calibration suggests.
pub(crate) fn suggested<'m>(
    sites: &Sites<'m>,
    calibration: &Calibration,
    given: &Given,
    (method, scheme): (Method, Scheme),
) -> HashMap<&'m str, QuantParams> {
    let params = |value: &str| {
        let given = given.in_scheme(value, scheme);
        given.unwrap_or_else(|| of_value(value, calibration, method, scheme))
    };
    sites.values().into_par_iter().map(|value| (value, params(value))).collect()
}

/// Parameters of the values of those sites that `int8` marks.
///
/// A value that was only moved keeps the parameters of where it came from; everything else follows its own calibration.
pub(crate) fn activations<'m>(
    sites: &Sites<'m>,
    int8: &[bool],
    suggested: &HashMap<&'m str, QuantParams>,
    scheme: Scheme,
) -> HashMap<&'m str, QuantParams> {
    let mut params: HashMap<&str, QuantParams> = HashMap::new();
    for (site, _) in sites.all.iter().zip(int8).filter(|(_, int8)| **int8) {
        for &value in &site.inputs {
            params.entry(value).or_insert_with(|| suggested[value].clone());
        }
        for &value in &site.outputs {
            let new = match site.op.role {
                Role::Move => params[site.inputs[0]].clone(),
                Role::Saturating => QuantParams::new(Range { min: 0.0, max: 1.0 }, scheme),
                _ => suggested[value].clone(),
            };
            params.insert(value, new);
        }
    }
    params
}

/// The parameters that calibration suggests for a value, which never reach beyond what was seen: a grid wider than the
/// clip in front of it would leave the clip with something to do.
pub(crate) fn of_value(
    value: &str,
    calibration: &Calibration,
    method: Method,
    scheme: Scheme,
) -> QuantParams {
    let chosen = calibration.get(value).map(|observer| {
        let chosen = range(observer, method, scheme);
        let seen = observer.range().map_or(Range::ZERO, Range::with_zero);
        match scheme {
            Scheme::Asymmetric => Range { min: chosen.min.max(seen.min), max: chosen.max.min(seen.max) },
            Scheme::Symmetric => Range::symmetric(chosen.abs_max().min(seen.abs_max())),
        }
    });
    QuantParams::new(chosen.unwrap_or(Range::ZERO), scheme)
}
