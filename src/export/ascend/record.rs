//! The record file: protocol buffer text, an entry for each layer under the name of its node.

use std::fmt::Write;

use crate::graph::{Graph, NodeExt, NodeId};
use crate::qparams::QuantParams;
use crate::quantize::weights::QuantizedWeights;

/// The entry of node `id`: activation scale and offset; weight scales, one or one for each output channel, and as many
/// offsets, which are 0.
pub(super) fn entry(
    graph: &Graph,
    id: NodeId,
    activation: &QuantParams,
    weights: &QuantizedWeights,
) -> String {
    let node = graph.node(id);
    // The groups of a transposed convolution share the scales of their channels.
    let groups =
        if node.is("ConvTranspose") && weights.params.axis.is_some() { node.int("group", 1) } else { 1 };
    let groups = usize::try_from(groups).unwrap_or(1);
    let mut text = format!("record {{\n  key: \"{}\"\n  value {{\n", escaped(node.label()));
    let mut line = |field: &str, value: &dyn std::fmt::Display| {
        writeln!(text, "    {field}: {value}").expect("a String takes all");
    };
    line("scale_d", &float(activation.scale[0]));
    line("offset_d", &activation.zero_point[0]);
    let scales = &weights.params.scale;
    scales.iter().cycle().take(scales.len() * groups).for_each(|&scale| line("scale_w", &float(scale)));
    (0..scales.len() * groups).for_each(|_| line("offset_w", &0));
    text.push_str("  }\n}\n");
    text
}

/// The shortest decimal that reads back as the same float32.
fn float(value: f32) -> String {
    format!("{value:e}")
}

/// As a string literal of the text format: bytes beyond ASCII in octal.
fn escaped(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        match byte {
            b'"' | b'\\' => text.extend(['\\', byte.into()]),
            b' '..=b'~' => text.push(byte.into()),
            _ => write!(text, "\\{byte:03o}").expect("a String takes all"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_literals() {
        assert_eq!(escaped("/a \"b\"\\c\n\u{e9}"), "/a \\\"b\\\"\\\\c\\012\\303\\251");
    }

    #[test]
    fn floats_read_back() {
        for value in [4.058_144e-2_f32, f32::MIN_POSITIVE, f32::MAX, 1.0, 1.0 / 127.0] {
            assert_eq!(float(value).parse(), Ok(value));
        }
    }
}
