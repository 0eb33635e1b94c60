//! The calibration cache of TensorRT's implicit quantization, which versions up to 10 have.
//!
//! A line with version and algorithm, then for each tensor `name: ` and the bits of the float32 scale, absmax / 127, in
//! hexadecimal. `trtexec --calib` reads it as the work of an `IInt8EntropyCalibrator2`, whatever chose the ranges.

use std::collections::HashMap;
use std::fmt::Write;
use std::str::FromStr;

use crate::calibration::Calibration;
use crate::graph::Graph;
use crate::qparams::{QuantParams, Scheme};
use crate::quantize::scales;
use crate::ranges::Method;

/// A version of TensorRT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl FromStr for Version {
    type Err = String;

    /// Reads `major.minor` or `major.minor.patch`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a version of TensorRT such as 8.6.1 or 10.3.0");
        let number = |part: &str| part.parse::<u32>().ok().filter(|n| *n < 100 && !part.starts_with('+'));
        let parts = text.split('.').map(number).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
        let version = match *parts.as_slice() {
            [major, minor] => Self { major, minor, patch: 0 },
            [major, minor, patch] => Self { major, minor, patch },
            _ => return Err(wrong()),
        };
        match version.major {
            0..7 => Err(wrong()),
            7..=10 if version.minor < 10 || version.major == 10 => Ok(version),
            7..=10 => Err(wrong()),
            _ => Err(format!("TensorRT {text} has no calibration cache; 10 is the last that has")),
        }
    }
}

impl Version {
    /// As in `NV_TENSORRT_VERSION`.
    fn number(self) -> u32 {
        let factor = if self.major < 10 { 1000 } else { 10_000 };
        self.major * factor + self.minor * 100 + self.patch
    }
}

/// The file's content, with the scales of `activations` and, for other tensors that calibration saw, their own; and what
/// could not be written.
pub(super) fn cache(
    graph: &Graph,
    calibration: &Calibration,
    method: Method,
    activations: &HashMap<&str, QuantParams>,
    version: Version,
) -> (String, Vec<String>) {
    let mut text = format!("TRT-{}-EntropyCalibration2\n", version.number());
    let mut left_out = Vec::new();
    let produced = graph.nodes().iter().flat_map(|node| &node.output).map(String::as_str);
    for name in
        graph.inputs().chain(produced).filter(|name| calibration.saw(name) || activations.contains_key(name))
    {
        if name.contains(": ") || name.contains(['\n', '\r']) {
            left_out.push(format!("the calibration cache cannot hold the name '{}'", name.escape_debug()));
            continue;
        }
        let own = || scales::of_value(name, calibration, method, Scheme::Symmetric).scale[0];
        let scale = activations.get(name).map_or_else(own, |params| params.scale[0]);
        writeln!(text, "{name}: {:08x}", scale.to_bits()).expect("a String takes all");
    }
    (text, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_versions() {
        for (text, number) in [("8.6.1", 8601), ("8.5", 8500), ("10.3.0", 100_300), ("10.16.1", 101_601)] {
            assert_eq!(text.parse().map(Version::number), Ok(number));
        }
        for wrong in ["", "10", "8.x", "8.6.1.2", "6.0.1", "11.0", "8.12.0", "8.+6", "10.-3"] {
            assert!(wrong.parse::<Version>().is_err(), "{wrong}");
        }
    }
}
