//! The scale and zero point of every activation that becomes integers.

use std::collections::HashMap;

use rayon::prelude::*;

use super::sites::Sites;
use crate::calibration::Calibration;
use crate::ops::Role;
use crate::qparams::{QuantParams, Range, Scheme};
use crate::ranges::{Method, range};

/// The parameters that calibration suggests for each value by itself.
pub(crate) fn suggested<'m>(
    sites: &Sites<'m>,
    calibration: &Calibration,
    method: Method,
    scheme: Scheme,
) -> HashMap<&'m str, QuantParams> {
    let values = sites.values();
    values.into_par_iter().map(|value| (value, of_value(value, calibration, method, scheme))).collect()
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
