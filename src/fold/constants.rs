//! `Constant` nodes, and constants in another shape, become initializers, which every other rule understands.

use super::Verdict;
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::{AttributeProto, TensorProto};
use crate::patch::Patch;
use crate::tensor::{element_count, integers, shape, tensor, transposed};

/// The rule.
pub(super) fn constant(graph: &Graph, id: NodeId) -> Result<Verdict> {
    let node = graph.node(id);
    if !node.is("Constant") || node.output.len() != 1 {
        return Ok(Verdict::Pass);
    }
    if graph.is_output(&node.output[0]) {
        return Ok(Verdict::Decline("it is a graph output".to_owned()));
    }
    let Some(value) = node.attribute.first().and_then(|a| as_tensor(a, &node.output[0])) else {
        return Ok(Verdict::Decline("its value is not a dense numeric tensor".to_owned()));
    };
    let mut patch = Patch::default();
    patch.remove(id);
    patch.initializer(value);
    Ok(Verdict::Edit(patch))
}

/// The value as a tensor named `name` (Constant-13: `value`, `value_float`, `value_floats`, `value_int`, `value_ints`).
fn as_tensor(attribute: &AttributeProto, name: &str) -> Option<TensorProto> {
    Some(match attribute.name() {
        "value" => TensorProto { name: Some(name.to_owned()), ..attribute.t.as_deref()?.clone() },
        "value_float" => tensor(name, &[], &[attribute.f()]),
        "value_floats" => tensor(name, &[attribute.floats.len()], &attribute.floats),
        "value_int" => tensor(name, &[], &[attribute.i()]),
        "value_ints" => tensor(name, &[attribute.ints.len()], &attribute.ints),
        _ => return None,
    })
}

/// The rule for the `Shape` or `Size` of a value whose dimensions are all fixed (Shape-15: from `start` to `end`).
pub(super) fn known_shape(graph: &Graph, id: NodeId) -> Result<Verdict> {
    let node = graph.node(id);
    if !node.is("Shape") && !node.is("Size") {
        return Ok(Verdict::Pass);
    }
    let (Some(input), Some(output)) = (node.input_at(0), node.output.first()) else {
        return Ok(Verdict::Pass);
    };
    let fixed = |dims: Vec<Option<usize>>| dims.into_iter().map(|d| i64::try_from(d?).ok()).collect();
    let dims: Option<Vec<i64>> = match graph.constant(input) {
        Some(tensor) => Some(tensor.dims.clone()),
        None => graph.dimensions(input).and_then(fixed),
    };
    let Some(dims) = dims.filter(|_| !graph.is_output(output)) else { return Ok(Verdict::Pass) };
    let value = if node.is("Size") {
        let Some(size) = dims.iter().try_fold(1_i64, |n, &d| n.checked_mul(d)) else {
            return Ok(Verdict::Pass);
        };
        tensor(output, &[], &[size])
    } else {
        let rank = dims.len() as i64;
        let index = |name, default| {
            let index = node.int(name, default);
            (if index < 0 { index.saturating_add(rank) } else { index }).clamp(0, rank) as usize
        };
        let part = dims.get(index("start", 0)..index("end", rank)).unwrap_or_default();
        tensor(output, &[part.len()], part)
    };
    let mut patch = Patch::default();
    patch.remove(id);
    patch.initializer(value);
    Ok(Verdict::Edit(patch))
}

/// The rule for a `Reshape` or `Unsqueeze` of a constant: the same data with other dimensions.
pub(super) fn view(graph: &Graph, id: NodeId) -> Result<Verdict> {
    let node = graph.node(id);
    let Some(constant) = node.input_at(0).and_then(|name| graph.constant(name)) else {
        return Ok(Verdict::Pass);
    };
    let Some(dims) = view_dims(graph, id, &shape(constant)?) else { return Ok(Verdict::Pass) };
    let output = &node.output[0];
    if graph.is_output(output) || dims.iter().product::<usize>() != element_count(constant)? {
        return Ok(Verdict::Pass);
    }
    let dims = dims.into_iter().map(|d| d as i64).collect();
    let mut patch = Patch::default();
    patch.remove(id);
    patch.initializer(TensorProto { name: Some(output.clone()), dims, ..constant.clone() });
    Ok(Verdict::Edit(patch))
}

/// The rule for a `Transpose` of a constant, the way the weights of other layouts arrive.
pub(super) fn transpose(graph: &Graph, id: NodeId) -> Result<Verdict> {
    let node = graph.node(id);
    let constant = node.input_at(0).filter(|_| node.is("Transpose")).and_then(|name| graph.constant(name));
    let Some(constant) = constant.filter(|_| !graph.is_output(&node.output[0])) else {
        return Ok(Verdict::Pass);
    };
    let perm: Option<Vec<usize>> = match node.attribute("perm") {
        Some(perm) => perm.ints.iter().map(|&axis| usize::try_from(axis).ok()).collect(),
        None => Some((0..constant.dims.len()).rev().collect()),
    };
    let Some(perm) = perm else { return Ok(Verdict::Pass) };
    let Some(value) = transposed(constant, &node.output[0], &perm)? else { return Ok(Verdict::Pass) };
    let mut patch = Patch::default();
    patch.remove(id);
    patch.initializer(value);
    Ok(Verdict::Edit(patch))
}

/// Dimensions of a view of a constant with the dimensions `old`.
fn view_dims(graph: &Graph, id: NodeId, old: &[usize]) -> Option<Vec<usize>> {
    let node = graph.node(id);
    let numbers = |attribute: &str| match node.input_at(1) {
        Some(name) => integers(graph.constant(name)?).ok(),
        None => node.attribute(attribute).map(|a| a.ints.clone()),
    };
    match node.op_type() {
        _ if !node.is(node.op_type()) => None,
        "Reshape" if node.int("allowzero", 0) == 0 => reshaped(old, &numbers("shape")?),
        "Unsqueeze" => {
            let axes = numbers("axes")?;
            let rank = old.len() + axes.len();
            let inserted: Option<Vec<usize>> = axes.iter().map(|&axis| positive(axis, rank)).collect();
            let mut rest = old.iter();
            (0..rank)
                .map(|i| if inserted.as_ref()?.contains(&i) { Some(1) } else { rest.next().copied() })
                .collect()
        }
        _ => None,
    }
}

/// ONNX Reshape: 0 keeps a dimension, −1 takes what is left.
fn reshaped(old: &[usize], new: &[i64]) -> Option<Vec<usize>> {
    let keep = |(i, &d): (usize, &i64)| if d == 0 { old.get(i).map(|&d| d as i64) } else { Some(d) };
    let new: Vec<i64> = new.iter().enumerate().map(keep).collect::<Option<_>>()?;
    let known: i64 = new.iter().filter(|&&d| d != -1).product();
    let total = old.iter().product::<usize>() as i64;
    let left = if known > 0 { total / known } else { 0 };
    new.into_iter().map(|d| usize::try_from(if d == -1 { left } else { d }).ok()).collect()
}

fn positive(axis: i64, rank: usize) -> Option<usize> {
    usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()
}
