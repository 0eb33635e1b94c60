//! When a shape operator leaves its input as it is.
//!
//! Each function is a proof for one operator: the target shape, permutation, window or scale, which must be constant, is
//! the one the input has. A dimension that is not fixed can only be kept by saying so: by 0 or −1 in a `Reshape`, by 1 in
//! an `Expand`, by a `Slice` to the largest integer.

use super::parameters::{axis, floats, integers};
use crate::graph::{Graph, NodeExt};
use crate::onnx::NodeProto;

/// Ends of a `Slice` from here on stand for "to the end", as the ONNX specification recommends writing it.
const TO_THE_END: i64 = i32::MAX as i64;

fn dims(graph: &Graph, node: &NodeProto) -> Option<Vec<Option<usize>>> {
    let input = node.input_at(0)?;
    match graph.initializer(input) {
        Some(tensor) => Some(tensor.dims.iter().map(|&d| usize::try_from(d).ok()).collect()),
        None => graph.dimensions(input),
    }
}

fn is_size(dim: Option<usize>, size: i64) -> bool {
    dim.is_some_and(|dim| usize::try_from(size) == Ok(dim))
}

/// The permutation is the identity.
pub(super) fn transpose(graph: &Graph, node: &NodeProto) -> bool {
    match node.attribute("perm") {
        Some(perm) => !perm.ints.is_empty() && perm.ints.iter().zip(0..).all(|(&p, i)| p == i),
        None => dims(graph, node).is_some_and(|dims| dims.len() <= 1),
    }
}

/// Every dimension is kept. One of them may be −1, because the others leave it no choice.
pub(super) fn reshape(graph: &Graph, node: &NodeProto) -> bool {
    let (Some(dims), Ok(Some(shape))) = (dims(graph, node), integers(graph, node, 1, "shape")) else {
        return false;
    };
    let zero_keeps = node.int("allowzero", 0) == 0;
    let kept = |(&dim, &size): (&Option<usize>, &i64)| match size {
        -1 => true,
        0 if zero_keeps => true,
        size => is_size(dim, size),
    };
    let free = shape.iter().filter(|&&size| size == -1).count();
    let product_is_positive = free == 0 || !dims.contains(&Some(0)) && zero_keeps;
    dims.len() == shape.len() && free <= 1 && product_is_positive && dims.iter().zip(&shape).all(kept)
}

/// Matrix to matrix.
pub(super) fn flatten(graph: &Graph, node: &NodeProto) -> bool {
    matches!(node.int("axis", 1), 1 | -1) && dims(graph, node).is_some_and(|dims| dims.len() == 2)
}

/// Every size asked for is 1 or there already.
pub(super) fn expand(graph: &Graph, node: &NodeProto) -> bool {
    let (Some(dims), Ok(Some(shape))) = (dims(graph, node), integers(graph, node, 1, "shape")) else {
        return false;
    };
    let kept = |(&dim, &size): (&Option<usize>, &i64)| size == 1 || is_size(dim, size);
    shape.len() <= dims.len() && dims.iter().rev().zip(shape.iter().rev()).all(kept)
}

/// No axes are given and no dimension is 1.
pub(super) fn squeeze(graph: &Graph, node: &NodeProto) -> bool {
    let everything = node.input_at(1).is_none() && node.attribute("axes").is_none();
    everything && dims(graph, node).is_some_and(|dims| dims.iter().all(|d| d.is_some_and(|d| d != 1)))
}

/// Every dimension is repeated once.
pub(super) fn tile(graph: &Graph, node: &NodeProto) -> bool {
    let ones = |repeats: &[i64]| repeats.iter().all(|&r| r == 1);
    node.input.len() == 2 && matches!(integers(graph, node, 1, "repeats"), Ok(Some(r)) if ones(&r))
}

/// From the first element to the last, in steps of one.
pub(super) fn slice(graph: &Graph, node: &NodeProto) -> bool {
    let given = |index, name| integers(graph, node, index, name);
    let (Ok(Some(starts)), Ok(Some(ends)), Ok(axes), Ok(steps)) =
        (given(1, "starts"), given(2, "ends"), given(3, "axes"), given(4, "steps"))
    else {
        return false;
    };
    let axes = axes.unwrap_or_else(|| (0..).take(starts.len()).collect());
    let lengths = [ends.len(), axes.len()].into_iter().all(|n| n == starts.len());
    let dims = dims(graph, node);
    let size = |at: i64| {
        let dims = dims.as_ref()?;
        dims.get(axis(at, dims.len())?).copied()?.and_then(|d| i64::try_from(d).ok())
    };
    let whole = |((&start, &end), &at): ((&i64, &i64), &i64)| {
        start == 0 && (end >= TO_THE_END || size(at).is_some_and(|size| end >= size))
    };
    lengths
        && steps.is_none_or(|steps| steps.iter().all(|&s| s == 1))
        && starts.iter().zip(&ends).zip(&axes).all(whole)
}

/// Nothing is added on any side.
pub(super) fn pad(graph: &Graph, node: &NodeProto) -> bool {
    matches!(integers(graph, node, 1, "pads"), Ok(Some(pads)) if pads.iter().all(|&p| p == 0))
}

/// Every scale is 1, or every size is there already, and the coordinates are not shifted.
pub(super) fn resize(graph: &Graph, node: &NodeProto) -> bool {
    const SHIFTED: &[&[u8]] = &[b"tf_crop_and_resize", b"tf_half_pixel_for_nn"];
    let text = |name: &str| node.attribute(name).map_or(&b""[..], |a| a.s());
    if SHIFTED.contains(&text("coordinate_transformation_mode")) {
        return false;
    }
    // Before opset 11 there was no region of interest in front of the scales.
    let index = if node.input.len() <= 2 { 1 } else { 2 };
    if node.input_at(3).is_none() {
        let ones = |scales: &[f64]| !scales.is_empty() && scales.iter().all(|&s| s == 1.0);
        return matches!(floats(graph, node, index, "scales"), Ok(Some(scales)) if ones(&scales));
    }
    let (Some(dims), Ok(Some(sizes))) = (dims(graph, node), integers(graph, node, 3, "")) else {
        return false;
    };
    let stretched = matches!(text("keep_aspect_ratio_policy"), b"" | b"stretch");
    let axes = node.attribute("axes").map_or_else(|| (0..).take(dims.len()).collect(), |a| a.ints.clone());
    let kept = |(&at, &size): (&i64, &i64)| {
        axis(at, dims.len()).is_some_and(|at| is_size(dims.get(at).copied().flatten(), size))
    };
    stretched && axes.len() == sizes.len() && axes.iter().zip(&sizes).all(kept)
}
