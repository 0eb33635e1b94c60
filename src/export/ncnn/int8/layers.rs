//! Layers with weights on integers.

use super::super::net::{Layer, Net, Param, Weight};
use super::grids::{powers, rounded, row_scales, scale};
use super::groups::{apart, groups_apart};
use super::plan::Plan;
use crate::error::{Error, Result};
use crate::given::{Given, Steps};

/// Sums up to here survive the 3 × 3 kernel of ncnn that transforms with factors of 576 (Winograd F(4, 3)).
const WINOGRAD_LIMIT: i32 = i32::MAX / 576;

/// Parameter 31 = 64: no Winograd kernels for this layer.
const NO_WINOGRAD: i32 = 64;

/// Parameters that the model came with, and the label of the node that a layer was.
type Source<'s> = (&'s Given, &'s str);

/// The scales, factors, of rows that were given on a grid.
fn given_scales(values: &[f32], count: usize, (given, label): Source) -> Option<Vec<f32>> {
    if given.is_empty() {
        return None;
    }
    let length = (values.len() / count.max(1)).max(1);
    let rows: Vec<Vec<f32>> = values.chunks_exact(length).map(<[f32]>::to_vec).collect();
    let Steps { scale, .. } = given.steps(label, &rows)?.ok()?;
    Some(scale.into_iter().map(|scale| if scale > 0.0 { 1.0 / scale } else { 1.0 }).collect())
}

/// What a layer became.
pub(super) struct Made {
    pub layers: Vec<Layer>,
    /// Signal to noise ratio of the weights.
    pub sqnr_db: f64,
}

/// Rows of integers, and the powers of signal and noise.
struct Rows {
    integers: Vec<i8>,
    scales: Vec<f32>,
    powers: (f64, f64),
}

impl Rows {
    fn of(layer: &Layer, index: usize, count: usize) -> Result<Self> {
        Self::kept(layer, (index, count), None)
    }

    /// The same, on the grid that they were given on, if they were.
    fn kept(layer: &Layer, (index, count): (usize, usize), given: Option<Source>) -> Result<Self> {
        let Some(Weight::Tagged(values)) = layer.weights.get(index) else {
            return Err(Error::Model(format!("layer '{}' has no weights", layer.name)));
        };
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let reason = format!("element {at} is {}; weights must be finite", values[at]);
            return Err(Error::tensor(layer.name.clone(), reason));
        }
        let scales = given.and_then(|given| given_scales(values, count, given));
        let scales = scales.unwrap_or_else(|| row_scales(values, count));
        let integers = rounded(values, &scales);
        Ok(Self { powers: powers(values, &scales, &integers), integers, scales })
    }
}

/// `layer` on integers, whose plan says how large its input gets.
///
/// # Errors
/// [`Error::Tensor`] when weights are not finite.
pub(super) fn quantized(net: &mut Net, layer: Layer, plan: &Plan, given: Source) -> Result<Made> {
    let input = scale(plan.input.unwrap_or(0.0));
    match layer.kind.as_str() {
        "InnerProduct" if plan.input.is_none() => by_rows(net, layer),
        "MultiHeadAttention" => attention(layer),
        "LSTM" | "GRU" | "RNN" => recurrent(layer),
        "Embed" => embed(layer),
        "ConvolutionDepthWise" if groups_apart(&layer) > 1 => {
            let groups = groups_apart(&layer);
            let (before, convolutions, behind) = apart(net, layer, groups);
            let (mut layers, mut total) = (vec![before], (0.0, 0.0));
            for convolution in convolutions {
                let (layer, powers) = product(convolution, input, (given.0, ""))?;
                total = (total.0 + powers.0, total.1 + powers.1);
                layers.push(layer);
            }
            layers.push(behind);
            Ok(Made { layers, sqnr_db: decibels(total) })
        }
        _ => product(layer, input, given)
            .map(|(layer, powers)| Made { layers: vec![layer], sqnr_db: decibels(powers) }),
    }
}

fn decibels((signal, noise): (f64, f64)) -> f64 {
    crate::quantize::decibels(signal / noise)
}

/// A convolution or inner product whose input has the scale `input`.
fn product(mut layer: Layer, input: f32, given: Source) -> Result<(Layer, (f64, f64))> {
    let rows = Rows::kept(&layer, (0, layer.get(0, 1) as usize), Some(given))?;
    if may_overflow(&layer, &rows) {
        layer.set(31, NO_WINOGRAD);
    }
    layer.set(8, if layer.kind == "ConvolutionDepthWise" { 1 } else { 2 });
    layer.weights[0] = Weight::Int8(rows.integers);
    layer.weights.extend([Weight::Raw(rows.scales), Weight::Raw(vec![input])]);
    Ok((layer, rows.powers))
}

/// Whether the sums of a 3 × 3 convolution can leave what its Winograd kernel can hold.
fn may_overflow(layer: &Layer, rows: &Rows) -> bool {
    let geometry = [(1, 3), (11, 3), (2, 1), (12, 1), (3, 1), (13, 1)];
    if layer.kind != "Convolution" || geometry.iter().any(|&(id, value)| layer.get(id, 0) != value) {
        return false;
    }
    let length = (rows.integers.len() / rows.scales.len().max(1)).max(1);
    let sum = |row: &[i8]| row.iter().map(|&q| i32::from(q).abs()).sum::<i32>();
    rows.integers.chunks_exact(length).map(sum).any(|sum| sum > WINOGRAD_LIMIT / 127)
}

/// An inner product as a `Gemm`, which quantizes each row of its input as it comes. Its weights have one scale.
fn by_rows(net: &mut Net, layer: Layer) -> Result<Made> {
    let table = Rows::of(&layer, 0, 1)?;
    let outputs = layer.get(0, 1);
    let depth = table.integers.len() / outputs.max(1) as usize;
    let bias = layer.weights.get(1).and_then(|bias| match bias {
        Weight::Raw(values) => Some(Weight::Tagged(values.clone())),
        _ => None,
    });
    let mut gemm = Layer { name: layer.name.clone(), origin: layer.origin, ..Layer::new("Gemm") };
    let params = [(3, 1), (5, 1), (6, 1), (8, outputs), (9, depth as i32)];
    params.into_iter().for_each(|(id, value)| gemm.set(id, value));
    gemm.set(10, if bias.is_some() { BY_COLUMN } else { -1 });
    gemm.set(18, 2);
    gemm.weights = [Some(Weight::Int8(table.integers)), bias].into_iter().flatten().collect();
    gemm.weights.push(Weight::Raw(table.scales));
    let layers = around(net, layer, gemm, depth);
    Ok(Made { layers, sqnr_db: decibels(table.powers) })
}

/// How `C` of a `Gemm` is broadcast: a value for each column.
const BY_COLUMN: i32 = 4;

/// `gemm` in the place of `product`: a matrix of one row for a vector, and the activation behind it.
fn around(net: &mut Net, product: Layer, gemm: Layer, depth: usize) -> Vec<Layer> {
    let (input, output) = (product.inputs[0].clone(), product.outputs[0].clone());
    let is_vector = net.shapes.get(&output).is_some_and(|shape| shape.len() == 1);
    let outputs = product.get(0, 1) as usize;
    let reshape = |width: usize| Layer::new("Reshape").int(0, width);
    let mut layers: Vec<Layer> = Vec::new();
    if is_vector {
        layers.push(Layer { name: format!("{}_row", product.name), ..reshape(depth).int(1, 1) });
    }
    layers.push(gemm);
    if is_vector {
        layers.push(Layer { name: format!("{}_vector", product.name), ..reshape(outputs) });
    }
    layers.extend(activation(&product).map(|layer| Layer { name: format!("{}_act", product.name), ..layer }));
    let last = layers.len() - 1;
    let mut blob = input;
    for (i, layer) in layers.iter_mut().enumerate() {
        layer.inputs = vec![blob];
        blob = if i == last { output.clone() } else { format!("{output}/{i}") };
        layer.outputs = vec![blob.clone()];
        net.shapes.entry(blob.clone()).or_insert_with(|| match layer.kind.as_str() {
            "Reshape" if layer.get(1, 0) == 1 => vec![1, depth],
            "Gemm" if is_vector => vec![1, outputs],
            _ => vec![outputs],
        });
    }
    layers
}

/// The layer that an activation fused into `product` would be.
fn activation(product: &Layer) -> Option<Layer> {
    let params = match product.params.get(&10) {
        Some(Param::Floats(params)) => params.as_slice(),
        _ => &[],
    };
    let names = ["ReLU", "ReLU", "Clip", "Sigmoid", "Mish", "HardSwish"];
    let kind = names.get(usize::try_from(product.get(9, 0)).ok()?.checked_sub(1)?)?;
    let ids = 0_u8..;
    Some(ids.zip(params).fold(Layer::new(kind), |layer, (id, &value)| layer.float(id, value)))
}

/// The weights of Q, K and V have a scale for each row, those of the result one.
fn attention(mut layer: Layer) -> Result<Made> {
    let (mut scales, mut powers) = (Vec::new(), (0.0, 0.0));
    for index in [0, 2, 4, 6] {
        let count = if index == 6 { 1 } else { layer.get(0, 1) as usize };
        let rows = Rows::of(&layer, index, count)?;
        powers = (powers.0 + rows.powers.0, powers.1 + rows.powers.1);
        layer.weights[index] = Weight::Int8(rows.integers);
        scales.push(Weight::Raw(rows.scales));
    }
    layer.weights.extend(scales);
    layer.set(18, 2);
    Ok(Made { layers: vec![layer], sqnr_db: decibels(powers) })
}

fn recurrent(mut layer: Layer) -> Result<Made> {
    let Some(Weight::Tagged(hidden)) = layer.weights.get(2) else {
        return Err(Error::Model(format!("layer '{}' has no weights", layer.name)));
    };
    let count = hidden.len() / (layer.get(0, 1).max(1) as usize);
    let (w, r) = (Rows::of(&layer, 0, count)?, Rows::of(&layer, 2, count)?);
    layer.weights[0] = Weight::Int8(w.integers);
    layer.weights[2] = Weight::Int8(r.integers);
    layer.weights.extend([Weight::Raw(w.scales), Weight::Raw(r.scales)]);
    layer.set(8, 2);
    let powers = (w.powers.0 + r.powers.0, w.powers.1 + r.powers.1);
    Ok(Made { layers: vec![layer], sqnr_db: decibels(powers) })
}

fn embed(mut layer: Layer) -> Result<Made> {
    let table = Rows::of(&layer, 0, 1)?;
    layer.weights[0] = Weight::Int8(table.integers);
    layer.weights.push(Weight::Raw(table.scales));
    layer.params.insert(18, Param::Int(2));
    Ok(Made { layers: vec![layer], sqnr_db: decibels(table.powers) })
}
