//! Which sites lose too much on integers.

use std::collections::HashMap;

use super::sites::Sites;
use crate::calibration::Calibration;
use crate::observer::Observer;
use crate::qparams::QuantParams;

/// Least signal to noise ratio, in dB, of an activation on integers.
const LEAST_SQNR_DB: f64 = 0.0;

/// Signal to noise ratio of quantizing what was observed, in dB.
pub(crate) fn sqnr_db(observer: &Observer, params: &QuantParams) -> f64 {
    10.0 * (observer.power() / observer.quantization_noise(params)).log10()
}

/// Sites that read or make a value which its integers represent badly, and why.
pub(crate) fn too_lossy(
    sites: &Sites,
    candidates: &[bool],
    activations: &HashMap<&str, QuantParams>,
    calibration: &Calibration,
) -> Vec<(usize, String)> {
    let mut sqnr: HashMap<&str, f64> = HashMap::new();
    let mut lossy = Vec::new();
    for (i, site) in sites.all.iter().enumerate().filter(|&(i, _)| candidates[i]) {
        for &value in site.inputs.iter().chain(&site.outputs) {
            let (Some(observer), Some(params)) = (calibration.get(value), activations.get(value)) else {
                continue;
            };
            let db = *sqnr.entry(value).or_insert_with(|| sqnr_db(observer, params));
            if db < LEAST_SQNR_DB {
                lossy.push((i, format!("int8 represents '{value}' badly (signal to noise {db:.1} dB)")));
                break;
            }
        }
    }
    lossy
}
