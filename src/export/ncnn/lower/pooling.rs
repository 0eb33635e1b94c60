//! Pooling over windows and over everything.

use super::super::net::Layer;
use super::convolution::{Window, feature_map, sizes};
use super::{Lowered, Lowering, Node};
use crate::graph::NodeExt;

const MAX: i32 = 0;
const AVERAGE: i32 = 1;

/// `MaxPool` and `AveragePool`. ncnn's own rules of rounding differ from those of ONNX, so all pads are written out.
pub(super) fn pool<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let x = feature_map(lowering, node)?;
    let axes = x.rank().saturating_sub(2);
    let mut window = Window::of(node, sizes(node, "kernel_shape", axes, 1)?, &x.dims[2..])?;
    if window.dilations.iter().any(|&d| d != 1) {
        return Err("its window is dilated".into());
    }
    if node.proto.output.iter().skip(1).any(|o| !o.is_empty()) {
        return Err("its second output, the indices of the maxima, is used".into());
    }
    let (average, with_pads) = (node.is("AveragePool"), node.int("count_include_pad", 0) != 0);
    let rounded_up = node.int("ceil_mode", 0) != 0 && reach_the_end(&mut window, &x.dims[2..]);
    if average && with_pads && rounded_up {
        return Err("it averages over pads (count_include_pad) and rounds up (ceil_mode)".into());
    }
    let one = axes == 1;
    let kind = if one { "Pooling1D" } else { "Pooling" };
    let mut layer = Layer::new(kind).int(0, if average { AVERAGE } else { MAX }).int(5, 1);
    layer.set(6, i32::from(with_pads));
    let across = axes - 1;
    let (left, right) = window.pads[across];
    for (id, value) in [(1, window.kernel[across]), (2, window.strides[across]), (3, left), (14, right)] {
        layer.set(id, value);
    }
    if !one {
        let (top, bottom) = window.pads[0];
        for (id, value) in [(11, window.kernel[0]), (12, window.strides[0]), (13, top), (15, bottom)] {
            layer.set(id, value);
        }
    }
    let y = lowering.output(node, 0, Some(0))?;
    lowering.add(node, layer, &[&x], &[&y]);
    Ok(())
}

/// Widens the pads at the end so that the last, incomplete window counts; returns whether any had to be.
fn reach_the_end(window: &mut Window, input: &[usize]) -> bool {
    let mut widened = false;
    for (axis, &size) in input.iter().enumerate() {
        let (kernel, stride, (before, after)) =
            (window.kernel[axis], window.strides[axis], window.pads[axis]);
        let mut outputs = (size + before + after).saturating_sub(kernel).div_ceil(stride) + 1;
        if (outputs - 1) * stride >= size + before {
            outputs -= 1;
        }
        let end = ((outputs - 1) * stride + kernel).saturating_sub(size + before);
        widened |= end > after;
        window.pads[axis].1 = end;
    }
    widened
}

/// `GlobalAveragePool` and `GlobalMaxPool`, adaptive so that the spatial axes stay.
pub(super) fn global<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let x = feature_map(lowering, node)?;
    let kind = match x.rank() {
        3 => "Pooling1D",
        4 => "Pooling",
        rank => return Err(format!("its input has {rank} axes").into()),
    };
    let layer =
        Layer::new(kind).int(0, if node.is("GlobalAveragePool") { AVERAGE } else { MAX }).int(7, 1).int(8, 1);
    let layer = if x.rank() == 4 { layer.int(18, 1) } else { layer };
    let y = lowering.output(node, 0, Some(0))?;
    lowering.add(node, layer, &[&x], &[&y]);
    Ok(())
}
