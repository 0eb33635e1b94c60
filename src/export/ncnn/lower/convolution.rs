//! Convolutions, straight and transposed.

use super::super::net::{Layer, Weight};
use super::{Blob, Lowered, Lowering, Node};
use crate::graph::NodeExt;
use crate::ops::weight_dims;

/// Sizes along the spatial axes: one of them or two, height first.
pub(super) struct Window {
    pub kernel: Vec<usize>,
    pub strides: Vec<usize>,
    pub dilations: Vec<usize>,
    /// Before and after each axis.
    pub pads: Vec<(usize, usize)>,
}

impl Window {
    /// The window of a node over an input with these spatial dimensions.
    pub fn of(node: &Node, kernel: Vec<usize>, input: &[usize]) -> Lowered<Self> {
        let axes = kernel.len();
        if axes != input.len() || !(1..=2).contains(&axes) {
            return Err(format!("it has {axes} spatial axes; one or two can be exported").into());
        }
        let strides = sizes(node, "strides", axes, 1)?;
        let dilations = sizes(node, "dilations", axes, 1)?;
        let mut window = Self { kernel, strides, dilations, pads: vec![(0, 0); axes] };
        let automatic = node.attribute("auto_pad").map_or(b"NOTSET".to_vec(), |a| a.s().to_vec());
        match automatic.as_slice() {
            b"VALID" => {}
            b"SAME_UPPER" => window.pad_to_same(input, true),
            b"SAME_LOWER" => window.pad_to_same(input, false),
            _ => window.pads = given_pads(node, axes)?,
        }
        Ok(window)
    }

    /// Extent of the kernel along an axis.
    pub fn extent(&self, axis: usize) -> usize {
        (self.kernel[axis] - 1) * self.dilations[axis] + 1
    }

    fn pad_to_same(&mut self, input: &[usize], more_at_the_end: bool) {
        for (axis, &size) in input.iter().enumerate() {
            let outputs = size.div_ceil(self.strides[axis]);
            let needed = ((outputs - 1) * self.strides[axis] + self.extent(axis)).saturating_sub(size);
            let (less, more) = (needed / 2, needed - needed / 2);
            self.pads[axis] = if more_at_the_end { (less, more) } else { (more, less) };
        }
    }

    /// The parameters that all layers of convolution share. A one-dimensional layer has no vertical ones.
    pub fn set(&self, mut layer: Layer) -> Layer {
        let across = self.kernel.len() - 1;
        let horizontal = [(1, self.kernel[across]), (2, self.dilations[across]), (3, self.strides[across])];
        let (left, right) = self.pads[across];
        for (id, value) in horizontal.into_iter().chain([(4, left), (15, right)]) {
            layer.set(id, value);
        }
        if across == 1 {
            let vertical = [(11, self.kernel[0]), (12, self.dilations[0]), (13, self.strides[0])];
            let (top, bottom) = self.pads[0];
            for (id, value) in vertical.into_iter().chain([(14, top), (16, bottom)]) {
                layer.set(id, value);
            }
        }
        layer
    }
}

/// Positive numbers from an attribute, one for each axis.
pub(super) fn sizes(node: &Node, attribute: &str, axes: usize, default: usize) -> Lowered<Vec<usize>> {
    let Some(given) = node.attribute(attribute) else { return Ok(vec![default; axes]) };
    let positive = |&v: &i64| usize::try_from(v).ok().filter(|&v| v > 0 && v < 1 << 20);
    let values: Option<Vec<usize>> = given.ints.iter().map(positive).collect();
    let values = values.filter(|values| values.len() == axes);
    values.ok_or_else(|| format!("its {attribute} are {:?}", given.ints).into())
}

fn given_pads(node: &Node, axes: usize) -> Lowered<Vec<(usize, usize)>> {
    let Some(given) = node.attribute("pads") else { return Ok(vec![(0, 0); axes]) };
    let pads: Option<Vec<usize>> =
        given.ints.iter().map(|&v| usize::try_from(v).ok().filter(|&v| v < 1 << 20)).collect();
    match pads.filter(|pads| pads.len() == 2 * axes) {
        Some(pads) => Ok((0..axes).map(|axis| (pads[axis], pads[axis + axes])).collect()),
        None => Err(format!("its pads are {:?}", given.ints).into()),
    }
}

/// The input of a node that works on feature maps (N, C, spatial axes…).
pub(super) fn feature_map(lowering: &mut Lowering, node: &Node) -> Lowered<Blob> {
    let x = lowering.input(node, 0)?;
    if x.rank() < 3 {
        return Err(format!("its input has {} axes, of which none is spatial", x.rank()).into());
    }
    match x.dims.first() {
        Some(1) if x.batch == Some(0) => Ok(x),
        Some(1) => {
            let dims = x.dims.clone();
            lowering.view(node, &x, &dims, Some(0))
        }
        first => {
            let length = first.copied().unwrap_or(0);
            Err(format!("its batch has the length {length}; ncnn runs one sample at a time").into())
        }
    }
}

struct Weights {
    dims: Vec<usize>,
    values: Vec<f32>,
    bias: Option<Vec<f32>>,
    groups: usize,
}

impl Weights {
    fn of(lowering: &Lowering, node: &Node) -> Lowered<Self> {
        let name = node.input_at(1).ok_or("it has no weights")?;
        let weight = lowering.graph.constant(name).ok_or("its weights are not constant")?;
        let dims = weight_dims(node.proto, weight)?;
        let groups = usize::try_from(node.int("group", 1)).unwrap_or(1);
        let (values, bias) = (lowering.floats(name)?, lowering.weights(node, 2)?);
        Ok(Self { dims, values, bias, groups })
    }
}

/// `Conv`: `Convolution`, or `ConvolutionDepthWise` for groups; with `1D` behind it for sequences.
pub(super) fn convolution<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let x = feature_map(lowering, node)?;
    let weights = Weights::of(lowering, node)?;
    let window = Window::of(node, weights.dims[2..].to_vec(), &x.dims[2..])?;
    let kind = match (weights.groups, window.kernel.len()) {
        (1, 2) => "Convolution",
        (1, _) => "Convolution1D",
        (_, 2) => "ConvolutionDepthWise",
        _ => "ConvolutionDepthWise1D",
    };
    let mut layer = window.set(Layer::new(kind).int(0, weights.dims[0])).int(6, weights.values.len());
    if weights.groups > 1 {
        layer.set(7, weights.groups);
    }
    let layer = layer.weight(Weight::Tagged(weights.values)).bias(5, weights.bias);
    let y = lowering.output(node, 0, Some(0))?;
    lowering.add(node, layer, &[&x], &[&y]);
    Ok(())
}

/// `ConvTranspose`: `Deconvolution` or `DeconvolutionDepthWise`. Sequences are images of the height 1.
pub(super) fn transposed<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let x = feature_map(lowering, node)?;
    let Weights { dims, values, bias, groups } = Weights::of(lowering, node)?;
    let output_dims = lowering.dims(&node.proto.output[0])?;
    let axes = dims.len() - 2;
    let mut window = Window::of(node, dims[2..].to_vec(), &x.dims[2..])?;
    let mut extra = node
        .attribute("output_padding")
        .map_or(vec![0; axes], |a| a.ints.iter().map(|&v| v.max(0) as usize).collect());
    if extra.len() != axes {
        return Err("its output_padding does not fit its axes".into());
    }
    if node.attribute("output_shape").is_some() || automatic(node) {
        pads_for_shape(&mut window, &mut extra, node, (&x.dims[2..], &output_dims[2..]));
    }
    let (input, per_group) = (dims[0], dims[1]);
    let values = swap_channels(&values, groups, input / groups, per_group);
    let flat = axes == 1;
    if flat {
        for sizes in [&mut window.kernel, &mut window.strides, &mut window.dilations] {
            sizes.insert(0, 1);
        }
        window.pads.insert(0, (0, 0));
        extra.insert(0, 0);
    }
    let kind = if groups == 1 { "Deconvolution" } else { "DeconvolutionDepthWise" };
    let mut layer = window.set(Layer::new(kind).int(0, groups * per_group)).int(6, values.len());
    layer.set(18, extra[1]);
    layer.set(19, extra[0]);
    if groups > 1 {
        layer.set(7, groups);
    }
    let layer = layer.weight(Weight::Tagged(values)).bias(5, bias);
    if !flat {
        let y = lowering.output(node, 0, Some(0))?;
        lowering.add(node, layer, &[&x], &[&y]);
        return Ok(());
    }
    let image = |dims: &[usize]| vec![1, dims[1], 1, dims[2]];
    let x = lowering.view(node, &x, &image(&x.dims), Some(0))?;
    let y = lowering.between(node, "image", image(&output_dims), Some(0));
    lowering.add(node, layer, &[&x], &[&y]);
    lowering.finish(node, &y, Some(0))
}

fn automatic(node: &Node) -> bool {
    node.attribute("auto_pad").is_some_and(|a| a.s().starts_with(b"SAME"))
}

/// Pads of a transposed convolution that give the wanted shape: what is too much is cut off, what lacks is added.
fn pads_for_shape(
    window: &mut Window,
    extra: &mut [usize],
    node: &Node,
    (input, output): (&[usize], &[usize]),
) {
    let upper = node.attribute("auto_pad").is_some_and(|a| a.s() == b"SAME_UPPER".as_slice());
    for axis in 0..input.len() {
        let full = window.strides[axis] * (input[axis] - 1) + extra[axis] + window.extent(axis);
        let total = full.saturating_sub(output[axis]);
        extra[axis] += output[axis].saturating_sub(full);
        let (less, more) = (total / 2, total - total / 2);
        window.pads[axis] = if upper { (less, more) } else { (more, less) };
    }
}

/// (C, O / g, …) of ONNX as (g, O / g, C / g, …) of ncnn.
fn swap_channels(values: &[f32], groups: usize, inputs: usize, outputs: usize) -> Vec<f32> {
    let kernel = values.len() / (groups * inputs * outputs).max(1);
    let mut swapped = Vec::with_capacity(values.len());
    for group in 0..groups {
        for output in 0..outputs {
            for input in 0..inputs {
                let at = ((group * inputs + input) * outputs + output) * kernel;
                swapped.extend_from_slice(&values[at..at + kernel]);
            }
        }
    }
    swapped
}
