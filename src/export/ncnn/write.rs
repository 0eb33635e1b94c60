//! The `.param` and `.bin` files.

use std::collections::HashSet;
use std::fmt::Write;

use half::f16;

use super::net::{Layer, Net, Param, Weight};

/// First line of a `.param` file.
pub(super) const MAGIC: &str = "7767517";

/// What stands before float16, int8 and float32 arrays.
pub(super) const FLOAT16_TAG: u32 = 0x0130_6B47;
pub(super) const INT8_TAG: u32 = 0x000D_4B38;
pub(super) const FLOAT32_TAG: u32 = 0;

/// An array has the parameter −23300 − id, and its length as the first value.
pub(super) const ARRAY: i32 = -23300;

/// Every array of weights starts at a multiple of this many bytes.
pub(super) const ALIGNMENT: usize = 4;

/// Floats closer to zero are written as zero: kernels take long over the smallest ones.
const SMALLEST: f32 = 1e-30;

/// The layers as text.
pub(super) fn param(net: &Net) -> String {
    let blobs: HashSet<&str> =
        net.layers.iter().flat_map(|l| l.inputs.iter().chain(&l.outputs)).map(String::as_str).collect();
    let mut text = format!("{MAGIC}\n{} {}\n", net.layers.len(), blobs.len());
    for layer in &net.layers {
        line(&mut text, layer);
    }
    text
}

fn line(text: &mut String, layer: &Layer) {
    let Layer { kind, name, inputs, outputs, .. } = layer;
    let _ = write!(text, "{kind:<24} {name:<24} {} {}", inputs.len(), outputs.len());
    for blob in inputs.iter().chain(outputs) {
        let _ = write!(text, " {blob}");
    }
    for (&id, param) in &layer.params {
        let array = ARRAY - i32::from(id);
        let _ = match param {
            Param::Int(value) => write!(text, " {id}={value}"),
            Param::Float(value) => write!(text, " {id}={}", number(*value)),
            Param::Ints(values) => {
                write!(text, " {array}={}{}", values.len(), listed(values, i32::to_string))
            }
            Param::Floats(values) => {
                write!(text, " {array}={}{}", values.len(), listed(values, |&v| number(v)))
            }
        };
    }
    text.push('\n');
}

fn listed<T>(values: &[T], text: impl Fn(&T) -> String) -> String {
    values.iter().map(|value| format!(",{}", text(value))).collect()
}

/// C's `%.8e`: nine digits, enough for any float32, in no more than the 15 characters that every version of ncnn reads.
pub(super) fn number(value: f32) -> String {
    let text = format!("{value:.8e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// The weights of all layers, those that may be in float16 if `half`.
pub(super) fn bin(net: &Net, half: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for weight in net.layers.iter().flat_map(|layer| &layer.weights) {
        match weight {
            Weight::Tagged(values) if half && values.iter().all(|v| v.abs() <= f16::MAX.to_f32()) => {
                bytes.extend(FLOAT16_TAG.to_le_bytes());
                bytes.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()));
            }
            Weight::Tagged(values) => {
                bytes.extend(FLOAT32_TAG.to_le_bytes());
                bytes.extend(floats(values));
            }
            Weight::Int8(values) => {
                bytes.extend(INT8_TAG.to_le_bytes());
                bytes.extend(values.iter().map(|&v| v as u8));
            }
            Weight::Raw(values) => bytes.extend(floats(values)),
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
    bytes
}

fn floats(values: &[f32]) -> impl Iterator<Item = u8> {
    values.iter().flat_map(|&v| if v.abs() < SMALLEST { 0.0 } else { v }.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_c_writes_them() {
        let cases = [
            (0.0, "0.00000000e+00"),
            (-1.0, "-1.00000000e+00"),
            (1.0 / 6.0, "1.66666672e-01"),
            (f32::MIN, "-3.40282347e+38"),
            (1e-45, "1.40129846e-45"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
            assert!(text.len() <= 15);
        }
    }
}
