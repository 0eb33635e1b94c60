//! Which operators an affine map can pass, and how it looks on the other side.

use super::affine::{Axis, Diagonal, known_rank};
use super::parameters;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::NodeProto;
use crate::tensor::{doubles, integers};

/// Which way the map goes.
#[derive(Clone, Copy)]
pub(super) enum Direction<'v> {
    /// From the output to the inputs.
    Backward,
    /// From this input to the output.
    Forward(&'v str),
}

/// What an operator asks of a map that passes it.
#[derive(Clone, Copy)]
struct Passage {
    op_type: &'static str,
    /// Whether the scale must be positive.
    increasing: bool,
    /// Whether a shift passes.
    shift: fn(&Graph, &NodeProto) -> bool,
    /// Where the channels are on the other side.
    channels: Channels,
}

/// What happens to the axis of a map.
#[derive(Clone, Copy)]
enum Channels {
    /// It stays.
    Stay,
    /// A `Transpose` moves it.
    Permute,
    /// A `ReduceMean` must leave it alone.
    Reduce,
    /// A `Squeeze` or `Unsqueeze` takes axes of length 1 away, or puts them in.
    Count,
    /// A `Reshape` or `Flatten` to a matrix spreads each channel over its pixels.
    Spread,
    /// A `Concat` gathers it from its inputs.
    Gather,
}

const fn row(op_type: &'static str, increasing: bool, shift: fn(&Graph, &NodeProto) -> bool) -> Passage {
    Passage { op_type, increasing, shift, channels: Channels::Stay }
}

const fn moving(op_type: &'static str, channels: Channels) -> Passage {
    Passage { op_type, increasing: false, shift: always, channels }
}

const PASSAGES: &[Passage] = &[
    row("Relu", true, never),
    row("LeakyRelu", true, never),
    row("MaxPool", true, always),
    row("GlobalMaxPool", true, always),
    row("AveragePool", false, ignores_padding),
    row("GlobalAveragePool", false, always),
    row("Resize", false, interpolates),
    row("Pad", false, repeats_border),
    moving("ReduceMean", Channels::Reduce),
    moving("Transpose", Channels::Permute),
    moving("Squeeze", Channels::Count),
    moving("Unsqueeze", Channels::Count),
    moving("Reshape", Channels::Spread),
    moving("Flatten", Channels::Spread),
    moving("Concat", Channels::Gather),
];

/// The values on the other side of node `id` and the map that each must take for `map` to pass; or why it cannot.
pub(super) fn passage<'m>(
    graph: &Graph<'m>,
    id: NodeId,
    map: &Diagonal,
    direction: Direction,
) -> Result<Vec<(&'m str, Diagonal)>, String> {
    let node = graph.node(id);
    let origin = || match direction {
        Direction::Backward => format!("its input comes from {} '{}'", node.op_type(), node.label()),
        Direction::Forward(_) => format!("its output goes to {} '{}'", node.op_type(), node.label()),
    };
    let Some(passage) = PASSAGES.iter().find(|passage| node.is(passage.op_type)) else {
        return Err(origin());
    };
    let used = |output: &&String| !graph.consumers(output).is_empty() || graph.is_observable(output);
    if node.output.iter().skip(1).any(|output| used(&output)) {
        return Err(format!("{}, whose other outputs are read", origin()));
    }
    if passage.increasing && !map.is_increasing() {
        return Err(format!("{}, which only a positive scale passes", origin()));
    }
    if node.is("Pad") && !pads_with_zeros(graph, node) {
        return Err(format!("{}, which pads with another value", origin()));
    }
    if map.has_shift() && !(passage.shift)(graph, node) {
        return Err(format!("{}, which a shift does not pass", origin()));
    }
    let lined_up = match (passage.channels, direction) {
        (Channels::Gather, Direction::Backward) => return apart(graph, node, map).ok_or_else(origin),
        (Channels::Gather, Direction::Forward(value)) => joined(graph, node, map, value),
        (Channels::Stay, _) => Some(map.clone()),
        (Channels::Permute, _) => permuted(node, map, direction),
        (Channels::Reduce, _) => reduced(graph, node, map),
        (Channels::Count, _) => counted(graph, node, map, direction),
        (Channels::Spread, Direction::Forward(_)) => spread(graph, node, map),
        (Channels::Spread, Direction::Backward) => map.axis.is_none().then(|| map.clone()),
    };
    let Some(map) = lined_up else { return Err(origin()) };
    match direction {
        Direction::Backward => Ok(vec![(&node.input[0], map)]),
        Direction::Forward(value) if node.input[0] == value || node.is("Concat") => {
            Ok(vec![(&node.output[0], map)])
        }
        Direction::Forward(_) => Err(origin()),
    }
}

fn always(_: &Graph, _: &NodeProto) -> bool {
    true
}

fn never(_: &Graph, _: &NodeProto) -> bool {
    false
}

/// Whether an average is taken of values alone, without padding.
fn ignores_padding(_: &Graph, node: &NodeProto) -> bool {
    let unpadded = node.attribute("pads").is_none_or(|pads| pads.ints.iter().all(|&p| p == 0))
        && node.attribute("auto_pad").is_none_or(|auto| matches!(auto.s(), b"NOTSET" | b"VALID"))
        && node.int("ceil_mode", 0) == 0;
    node.int("count_include_pad", 0) == 0 || unpadded
}

/// Whether every value is a weighted mean of values, none from outside.
fn interpolates(_: &Graph, node: &NodeProto) -> bool {
    let crops = |mode: &crate::onnx::AttributeProto| mode.s() == b"tf_crop_and_resize".as_slice();
    !node.attribute("coordinate_transformation_mode").is_some_and(crops)
}

/// Whether padding copies values.
fn repeats_border(_: &Graph, node: &NodeProto) -> bool {
    node.attribute("mode").is_some_and(|mode| matches!(mode.s(), b"reflect" | b"edge" | b"wrap"))
}

/// Whether a `Pad` pads with zeros or copies.
fn pads_with_zeros(graph: &Graph, node: &NodeProto) -> bool {
    let zero = match node.input_at(2) {
        None => node.float("value", 0.0) == 0.0,
        Some(name) => graph
            .constant(name)
            .and_then(|value| doubles(value).ok())
            .is_some_and(|values| values.iter().all(|&v| v == 0.0)),
    };
    zero || repeats_border(graph, node)
}

/// The map on the other side of a `Transpose`: output axis i is input axis `perm[i]`.
fn permuted(node: &NodeProto, map: &Diagonal, direction: Direction) -> Option<Diagonal> {
    let Some(axis) = map.axis else { return Some(map.clone()) };
    let perm = &node.attribute("perm")?.ints;
    let index = axis.index(perm.len())?;
    let moved = match direction {
        Direction::Backward => usize::try_from(perm[index]).ok()?,
        Direction::Forward(_) => perm.iter().position(|&p| p == index as i64)?,
    };
    Some(Diagonal { axis: Some(Axis::Left(moved)), ..map.clone() })
}

/// The map on the other side of a `Squeeze` or `Unsqueeze`.
fn counted(graph: &Graph, node: &NodeProto, map: &Diagonal, direction: Direction) -> Option<Diagonal> {
    let Some(axis) = map.axis else { return Some(map.clone()) };
    let axes = parameters::integers(graph, node, 1, "axes").ok()??;
    let (wide, narrow) = match node.op_type() {
        "Squeeze" => (&node.input[0], &node.output[0]),
        _ => (&node.output[0], &node.input[0]),
    };
    let rank = known_rank(graph, wide).or_else(|| Some(known_rank(graph, narrow)? + axes.len()));
    let from_left = |a: i64| rank.map_or(usize::try_from(a).ok(), |rank| parameters::axis(a, rank));
    let mut single: Vec<usize> = axes.into_iter().map(from_left).collect::<Option<_>>()?;
    single.sort_unstable();
    let widens = node.is("Squeeze") == matches!(direction, Direction::Backward);
    let here = if widens { rank.and_then(|rank| rank.checked_sub(single.len())) } else { rank };
    let Axis::Left(index) = axis.resolved(here) else { return None };
    let index = if widens {
        single.iter().fold(index, |index, &a| if a <= index { index + 1 } else { index })
    } else {
        let before = single.iter().filter(|&&a| a < index).count();
        (!single.contains(&index)).then_some(index - before)?
    };
    Some(Diagonal { axis: Some(Axis::Left(index)), ..map.clone() })
}

/// The map on either side of a `ReduceMean` that keeps the reduced axes, or has them all behind the channels.
fn reduced(graph: &Graph, node: &NodeProto, map: &Diagonal) -> Option<Diagonal> {
    let Some(Axis::Left(axis)) = map.axis else { return map.axis.is_none().then(|| map.clone()) };
    let axes = parameters::integers(graph, node, 1, "axes").ok()??;
    let rank = known_rank(graph, &node.input[0])? as i64;
    let index = |a: i64| if a < 0 { a + rank } else { a };
    let behind = axes.iter().all(|&a| index(a) > axis as i64);
    let kept = node.int("keepdims", 1) != 0 && axes.iter().all(|&a| index(a) != axis as i64);
    (!axes.is_empty() && (behind || kept)).then(|| map.clone())
}

/// The map behind a `Reshape` or `Flatten` of `[n, c, …]` to `[n, c · …]`: each channel's values for each of its pixels.
fn spread(graph: &Graph, node: &NodeProto, map: &Diagonal) -> Option<Diagonal> {
    let Some(axis) = map.axis else { return Some(map.clone()) };
    let dims = graph.dimensions(&node.input[0])?;
    let pixels: usize = dims.get(2..)?.iter().copied().product::<Option<usize>>()?;
    let whole = map.len().checked_mul(pixels)?;
    let to_matrix = match node.op_type() {
        "Flatten" => node.int("axis", 1) == 1,
        _ => {
            let target = integers(graph.constant(node.input_at(1)?)?).ok()?;
            let keeps_rows = |first: i64| first == 0 || dims[0].is_some_and(|n| n as i64 == first);
            match *target.as_slice() {
                [first, last] if last == whole as i64 => keeps_rows(first) || first == -1,
                [first, -1] => keeps_rows(first),
                _ => false,
            }
        }
    };
    const LIMIT: usize = 1 << 24;
    if axis != Axis::Left(1) || !to_matrix || dims.get(1) != Some(&Some(map.len())) || whole > LIMIT {
        return None;
    }
    let each = |values: &[f64]| values.iter().flat_map(|&v| std::iter::repeat_n(v, pixels)).collect();
    Some(Diagonal { axis: Some(Axis::Left(1)), scale: each(&map.scale), shift: each(&map.shift) })
}

/// The part of a map that each input of a `Concat` takes.
fn apart<'m>(graph: &Graph<'m>, node: &'m NodeProto, map: &Diagonal) -> Option<Vec<(&'m str, Diagonal)>> {
    let inputs = node.input.iter().map(String::as_str);
    let Some((_, widths)) = widths(graph, node, map) else {
        // One map for all, or along another axis that every input has whole.
        let axis = concat_axis(graph, node)?;
        let elsewhere = map.axis.is_none_or(|own| own.resolved(known_rank(graph, &node.output[0])) != axis);
        return elsewhere.then(|| inputs.map(|input| (input, map.clone())).collect());
    };
    let mut start = 0;
    let mut parts = Vec::new();
    for (input, width) in inputs.zip(widths) {
        let end = start + width;
        let part = |values: &[f64]| values.get(start..end).map(<[f64]>::to_vec);
        parts.push((input, Diagonal { axis: map.axis, scale: part(&map.scale)?, shift: part(&map.shift)? }));
        start = end;
    }
    (start == map.len()).then_some(parts)
}

/// The map behind a `Concat` of which one input takes `map` and the others stay.
fn joined(graph: &Graph, node: &NodeProto, map: &Diagonal, value: &str) -> Option<Diagonal> {
    let position = node.input.iter().position(|input| input == value)?;
    if node.input.iter().filter(|input| *input == value).count() != 1 {
        return None;
    }
    let axis = concat_axis(graph, node)?;
    let widths = channel_counts(graph, node, axis)?;
    let rank = known_rank(graph, &node.output[0]);
    let own = match map.axis {
        Some(own) if own.resolved(rank) != axis || map.len() != widths[position] => return None,
        _ => map.per_channel(widths[position], axis, rank)?,
    };
    let before: usize = widths[..position].iter().sum();
    let behind: usize = widths[position + 1..].iter().sum();
    let around =
        |values: &[f64], neutral: f64| [&vec![neutral; before], values, &vec![neutral; behind]].concat();
    Some(Diagonal { axis: Some(axis), scale: around(&own.scale, 1.0), shift: around(&own.shift, 0.0) })
}

/// The axis of a `Concat` and the channels of its inputs, if `map` varies along just this axis.
fn widths(graph: &Graph, node: &NodeProto, map: &Diagonal) -> Option<(Axis, Vec<usize>)> {
    let axis = concat_axis(graph, node)?;
    let rank = known_rank(graph, &node.output[0]);
    map.axis.filter(|own| own.resolved(rank) == axis)?;
    Some((axis, channel_counts(graph, node, axis)?))
}

fn concat_axis(graph: &Graph, node: &NodeProto) -> Option<Axis> {
    let axis = node.attribute("axis")?.i();
    match usize::try_from(axis) {
        Ok(axis) => Some(Axis::Left(axis)),
        Err(_) => {
            let rank = node.input.iter().find_map(|input| known_rank(graph, input))?;
            usize::try_from(axis + rank as i64).ok().map(Axis::Left)
        }
    }
}

fn channel_counts(graph: &Graph, node: &NodeProto, axis: Axis) -> Option<Vec<usize>> {
    node.input.iter().map(|input| super::affine::channel_count(graph, input, axis)).collect()
}
