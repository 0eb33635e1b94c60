//! The scale and zero point of every activation that becomes integers.

use std::collections::HashMap;

use super::sites::Sites;
use crate::calibration::Calibration;
use crate::ops::Role;
use crate::qparams::{QuantParams, Range, Scheme};
use crate::ranges::{Method, range};

/// Values of the sites that `int8` marks, with their parameters.
///
/// A value that was only moved keeps the parameters of where it came from; everything else follows its own calibration.
pub(crate) fn activations<'m>(
    sites: &Sites<'m>,
    int8: &[bool],
    calibration: &Calibration,
    method: Method,
    scheme: Scheme,
) -> HashMap<&'m str, QuantParams> {
    let mut params: HashMap<&str, QuantParams> = HashMap::new();
    for (site, _) in sites.all.iter().zip(int8).filter(|(_, int8)| **int8) {
        for &value in &site.inputs {
            params.entry(value).or_insert_with(|| of_value(value, calibration, method, scheme));
        }
        for &value in &site.outputs {
            let new = match site.op.role {
                Role::Move => params[site.inputs[0]].clone(),
                Role::Saturating => QuantParams::new(Range { min: 0.0, max: 1.0 }, scheme),
                _ => of_value(value, calibration, method, scheme),
            };
            params.insert(value, new);
        }
    }
    params
}

fn of_value(value: &str, calibration: &Calibration, method: Method, scheme: Scheme) -> QuantParams {
    let observed = calibration.get(value).map(|observer| range(observer, method, scheme));
    QuantParams::new(observed.unwrap_or(Range::ZERO), scheme)
}
