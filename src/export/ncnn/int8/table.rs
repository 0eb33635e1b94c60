//! The calibration table that `ncnn2int8` reads: the scales of the weights of each layer, then those of the inputs.

use std::fmt::Write;

use super::super::net::{Layer, Net, Weight};
use super::super::write::number;

/// The table of a quantized network. No line is blank: the reader stops at the first one.
pub(crate) fn table(net: &Net) -> String {
    let mut weights = String::new();
    let mut inputs = String::new();
    for layer in &net.layers {
        for (index, scales) in weight_scales(layer).into_iter().enumerate() {
            line(&mut weights, &format!("{}_param_{index}", layer.name), scales);
        }
        line(&mut inputs, &layer.name, input_scales(layer));
    }
    weights + &inputs
}

fn line(text: &mut String, key: &str, scales: &[f32]) {
    if scales.is_empty() {
        return;
    }
    text.push_str(key);
    for &scale in scales {
        let _ = write!(text, " {}", number(scale));
    }
    text.push('\n');
}

/// Scales behind the last of `count` other arrays.
fn raw(layer: &Layer, at: usize) -> &[f32] {
    match layer.weights.get(at) {
        Some(Weight::Raw(values)) => values,
        _ => &[],
    }
}

/// Where the scales begin among the weights of a product: behind weights and bias.
fn first_scale(layer: &Layer) -> Option<usize> {
    let bias = match layer.kind.as_str() {
        "InnerProduct" => 1,
        "Convolution" | "ConvolutionDepthWise" => 5,
        _ => return None,
    };
    (layer.get(8, 0) != 0).then(|| if layer.get(bias, 0) != 0 { 2 } else { 1 })
}

fn weight_scales(layer: &Layer) -> Vec<&[f32]> {
    match layer.kind.as_str() {
        "Embed" if layer.get(18, 0) != 0 => vec![raw(layer, 1)],
        "MultiHeadAttention" if layer.get(18, 0) != 0 => (8..12).map(|at| raw(layer, at)).collect(),
        "LSTM" | "GRU" | "RNN" if layer.get(8, 0) != 0 => vec![raw(layer, 3), raw(layer, 4)],
        _ => first_scale(layer).map_or(Vec::new(), |at| vec![raw(layer, at)]),
    }
}

fn input_scales(layer: &Layer) -> &[f32] {
    first_scale(layer).map_or(&[], |at| raw(layer, at + 1))
}
