//! `Pad` into the operator behind it that pads by itself.
//!
//! A `Conv` pads with zeros, an `AveragePool` that counts its padding too, and a `MaxPool` with what no element is below:
//! −∞, or zero where no element is negative. So a constant `Pad` of the spatial axes is added to their `pads`.
//!
//! A pool must not look into the padding alone: the pads stay below the window, and sizes are not rounded up.

use super::Verdict;
use super::bounds::is_non_negative;
use super::no_ops::only_first_output;
use super::pairs::{Merged, Pair};
use super::parameters::{axis, integers, scalar};
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::NodeProto;
use crate::patch::{Patch, int_attribute, ints_attribute};
use crate::tensor::tensor;

/// A `Pad` with constant sizes.
struct Padding<'m> {
    node: &'m NodeProto,
    input: &'m str,
    output: &'m str,
    value: f64,
    pads: Vec<i64>,
    axes: Option<Vec<i64>>,
}

type Takes = fn(&Graph, &Padding, &NodeProto) -> Result<(), &'static str>;

/// Operators that pad by themselves, and what keeps one from padding like this.
const PADDING: &[(&str, Takes)] = &[("Conv", conv), ("AveragePool", average_pool), ("MaxPool", max_pool)];

/// The rule, asked about the `Pad`.
pub(super) fn pad(graph: &Graph, id: NodeId) -> Result<Verdict> {
    let node = graph.node(id);
    let (true, Some(output)) = (node.is("Pad"), node.output.first()) else { return Ok(Verdict::Pass) };
    let takes = |reader: &NodeProto| PADDING.iter().find(|(op_type, _)| reader.is(op_type)).map(|row| row.1);
    let mut readers = graph.consumers(output).to_vec();
    readers.dedup();
    if !readers.iter().any(|&reader| takes(graph.node(reader)).is_some()) {
        return Ok(Verdict::Pass);
    }
    let padding = match padding(graph, node) {
        Ok(padding) => padding,
        Err(reason) => return Ok(Verdict::Decline(reason.to_owned())),
    };
    let (mut patch, mut refused, mut left) = (Patch::default(), None, graph.is_observable(output));
    for &reader in &readers {
        let node = graph.node(reader);
        let answer = takes(node).map(|takes| padded(graph, &padding, node, takes));
        left |= !matches!(answer, Some(Ok(_)));
        match answer {
            Some(Ok(node)) => patch.replace(reader, vec![node]),
            Some(Err(reason)) => refused = refused.or(Some((reason, node.label()))),
            None => {}
        }
    }
    if patch.is_empty() {
        return Ok(refused.map_or(Verdict::Pass, |(why, who)| Verdict::Decline(format!("'{who}' {why}"))));
    }
    if left {
        patch.rely_on(id)
    } else {
        patch.remove(id)
    }
    Ok(Verdict::Edit(patch))
}

/// Two in a row with the same value along the same axes: one with the sums.
pub(super) fn pads(pair: Pair) -> Option<Merged> {
    if !pair.first.is("Pad") {
        return None;
    }
    let (first, second) = (padding(pair.graph, pair.first).ok()?, padding(pair.graph, pair.second).ok()?);
    if first.value != second.value || first.axes != second.axes || first.pads.len() != second.pads.len() {
        return None;
    }
    let sums = first.pads.iter().zip(&second.pads).map(|(&a, &b)| a.checked_add(b));
    let sums: Vec<i64> = sums.collect::<Option<_>>()?;
    let mut node = pair.without_first();
    let Some(input) = node.input.get_mut(1) else {
        node.attribute.retain(|a| a.name() != "pads");
        node.attribute.push(ints_attribute("pads", sums));
        return Some(Merged::Single(node, Vec::new()));
    };
    *input = pair.graph.fresh(&format!("{}.pads", second.output), None);
    let constant = tensor(input, &[sums.len()], &sums);
    Some(Merged::Single(node, vec![constant]))
}

fn padding<'m>(graph: &Graph, node: &'m NodeProto) -> Result<Padding<'m>, &'static str> {
    const NOT_CONSTANT: &str = "its sizes, axes or value are not constant";
    let constant = |index, name| integers(graph, node, index, name).map_err(|_| NOT_CONSTANT);
    if node.attribute("mode").is_some_and(|mode| mode.s() != b"constant") {
        return Err("it does not pad with a constant");
    }
    let value = match node.input_at(2) {
        Some(name) => scalar(graph, name).ok_or(NOT_CONSTANT)?,
        None => node.float("value", 0.0).into(),
    };
    let pads = constant(1, "pads")?.ok_or(NOT_CONSTANT)?;
    if pads.iter().any(|&p| p < 0) {
        return Err("it takes away elements");
    }
    let (Some(input), [output]) = (node.input_at(0), &*node.output) else { return Err(NOT_CONSTANT) };
    Ok(Padding { node, input, output, value, pads, axes: constant(3, "")? })
}

/// The reader, padding by itself.
fn padded(
    graph: &Graph,
    padding: &Padding,
    node: &NodeProto,
    takes: Takes,
) -> Result<NodeProto, &'static str> {
    if node.input_at(0) != Some(padding.output) || node.input.iter().skip(1).any(|i| i == padding.output) {
        return Err("reads it as another input than its first");
    }
    let own = match node.attribute("auto_pad").map_or(&b""[..], |a| a.s()) {
        b"" | b"NOTSET" => node.attribute("pads").map(|a| a.ints.clone()),
        b"VALID" => None,
        _ => return Err("pads automatically"),
    };
    let added = spatial(graph, padding, node)?;
    let own = own.unwrap_or_else(|| vec![0; added.len()]);
    let sum = |(&a, &b): (&i64, &i64)| a.checked_add(b).filter(|_| b >= 0);
    let pads: Option<Vec<i64>> = own.iter().zip(&added).map(sum).collect();
    let pads = pads.ok_or("has impossible pads")?;
    if own.len() != added.len() {
        return Err("has pads for another number of dimensions");
    }
    takes(graph, padding, node)?;
    if !node.is("Conv") {
        within_window(node, &pads)?;
    }
    let mut node = node.clone();
    padding.input.clone_into(&mut node.input[0]);
    node.attribute.retain(|a| !matches!(a.name(), "auto_pad" | "pads"));
    node.attribute.push(ints_attribute("pads", pads));
    if node.is("AveragePool") {
        node.attribute.retain(|a| a.name() != "count_include_pad");
        node.attribute.push(int_attribute("count_include_pad", 1));
    }
    Ok(node)
}

/// The pads of the spatial dimensions, all begins and then all ends, if nothing else is padded.
fn spatial(graph: &Graph, padding: &Padding, node: &NodeProto) -> Result<Vec<i64>, &'static str> {
    let half = padding.pads.len() / 2;
    let kernel = || node.attribute("kernel_shape").map(|a| a.ints.len() + 2);
    let weight = || node.input_at(1).and_then(|weight| graph.rank(weight));
    let rank = match &padding.axes {
        None => half,
        Some(_) => kernel().or_else(weight).ok_or("has an unknown number of dimensions")?,
    };
    let axes = padding.axes.clone().unwrap_or_else(|| (0..).take(half).collect());
    if rank < 3 || axes.len() != half || padding.pads.len() != 2 * half {
        return Err("gets pads for another number of dimensions");
    }
    let mut spatial = vec![0; 2 * (rank - 2)];
    for (i, &at) in axes.iter().enumerate() {
        let (begin, end) = (padding.pads[i], padding.pads[half + i]);
        match axis(at, rank).ok_or("gets pads along an axis that it does not have")? {
            0 | 1 if begin == 0 && end == 0 => {}
            0 | 1 => return Err("cannot pad the batch or the channels"),
            at => (spatial[at - 2], spatial[at - 2 + rank - 2]) = (begin, end),
        }
    }
    Ok(spatial)
}

fn conv(_: &Graph, padding: &Padding, _: &NodeProto) -> Result<(), &'static str> {
    if padding.value == 0.0 { Ok(()) } else { Err("pads with zeros only") }
}

fn average_pool(_: &Graph, padding: &Padding, node: &NodeProto) -> Result<(), &'static str> {
    let counts = node.int("count_include_pad", 0) != 0;
    // Sizes as an input mean opset 11; the attribute came with opset 7.
    let can_count = node.attribute("count_include_pad").is_some() || padding.node.input_at(1).is_some();
    let unpadded = node.attribute("pads").is_none_or(|pads| pads.ints.iter().all(|&p| p == 0));
    match () {
        () if padding.value != 0.0 => Err("pads with zeros only"),
        () if !can_count => Err("may be too old to count its padding"),
        () if !counts && !unpadded => Err("does not count its own padding"),
        () => Ok(()),
    }
}

fn max_pool(graph: &Graph, padding: &Padding, node: &NodeProto) -> Result<(), &'static str> {
    let least = padding.value <= f64::from(f32::MIN);
    let unseen = padding.value <= 0.0 && is_non_negative(graph, padding.input);
    if !(least || unseen) {
        return Err("pads with less than any element only");
    }
    if only_first_output(graph, node) { Ok(()) } else { Err("counts positions in its padded input") }
}

/// Whether every window of a pool sees an element, and the windows are those of the padded input.
fn within_window(node: &NodeProto, pads: &[i64]) -> Result<(), &'static str> {
    let kernel = node.attribute("kernel_shape").map_or(&[][..], |a| &a.ints);
    let sides = kernel.iter().chain(kernel).zip(pads);
    if kernel.len() * 2 != pads.len() || !sides.into_iter().all(|(size, pad)| pad < size) {
        return Err("has a window not larger than the pads");
    }
    let dilated = node.attribute("dilations").is_some_and(|a| a.ints.iter().any(|&d| d != 1));
    if dilated || node.int("ceil_mode", 0) != 0 {
        return Err("has gaps in its window or rounds its size up");
    }
    Ok(())
}
