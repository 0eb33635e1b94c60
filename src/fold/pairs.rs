//! Two nodes in a row that are one, or none.
//!
//! S(F(x)) is written S'(x), F(x) or x: a transpose of a transpose is a transpose by the product of the permutations; of
//! two shapes the second holds; a `Squeeze` undoes the `Unsqueeze` of the same axes; a cast through a type that holds
//! every value of the first is a cast from the first; pads with one value add up; and clip(clip(x, a, b), c, d) = clip(x, clip(a, c, d),
//! clip(b, c, d)), of which `Relu` is the case a = 0, b = ∞.
//!
//! F stays where others read it; then S only leaves it out.

use super::Verdict;
use super::no_ops::bypass;
use super::parameters::integers;
use super::{bounds, pads, types};
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::{NodeProto, TensorProto};
use crate::patch::Patch;
use crate::tensor::tensor;

/// The second node and the one that makes its first input.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    pub graph: &'a Graph<'a>,
    pub first: &'a NodeProto,
    pub second: &'a NodeProto,
}

/// What a pair is.
pub(super) enum Merged {
    /// F(x).
    First,
    /// x.
    Neither,
    /// S'(x), and the new constants that it reads.
    Single(Box<NodeProto>, Vec<TensorProto>),
}

type Merge = fn(Pair) -> Option<Merged>;

/// The second operator, and how it merges with what may be before it.
const PAIRS: &[(&str, Merge)] = &[
    ("Transpose", transposes),
    ("Reshape", second_shape_holds),
    ("Flatten", flatten),
    ("Squeeze", |pair| undoes(pair, "Unsqueeze")),
    ("Unsqueeze", |pair| undoes(pair, "Squeeze")),
    ("Pad", pads::pads),
    ("Cast", types::casts),
    ("Relu", bounds::clips),
    ("Clip", bounds::clips),
    ("Abs", idempotent),
    ("Ceil", idempotent),
    ("Floor", idempotent),
    ("Round", idempotent),
    ("Sign", idempotent),
];

/// The rule, asked about the second node.
pub(super) fn pair(graph: &Graph, id: NodeId) -> Result<Verdict> {
    let second = graph.node(id);
    let row = PAIRS.iter().find(|(op_type, _)| second.is(op_type));
    let Some((row, before)) = row.zip(second.input_at(0).and_then(|x| graph.producer(x))) else {
        return Ok(Verdict::Pass);
    };
    let first = graph.node(before);
    let ([output], [middle], Some(x)) = (&*second.output, &*first.output, first.input_at(0)) else {
        return Ok(Verdict::Pass);
    };
    if output.is_empty() || !first.is(first.op_type()) {
        return Ok(Verdict::Pass);
    }
    let verdict = match row.1(Pair { graph, first, second }) {
        None => return Ok(Verdict::Pass),
        Some(Merged::First) => return Ok(bypass(graph, id, middle)),
        Some(Merged::Neither) => bypass(graph, id, x),
        Some(Merged::Single(node, constants)) => {
            let mut patch = Patch::default();
            patch.replace(id, vec![*node]);
            constants.into_iter().for_each(|constant| patch.initializer(constant));
            Verdict::Edit(patch)
        }
    };
    let Verdict::Edit(mut patch) = verdict else { return Ok(verdict) };
    if graph.sole_consumer(middle) == Some(id) {
        patch.remove(before);
    } else {
        // What F reads must be there for S.
        patch.rely_on(before);
    }
    Ok(Verdict::Edit(patch))
}

impl Pair<'_> {
    /// The second node, reading what the first reads.
    pub fn without_first(&self) -> Box<NodeProto> {
        let mut node = self.second.clone();
        node.input[0].clone_from(&self.first.input[0]);
        Box::new(node)
    }
}

/// Dimension i of the result is dimension `first[second[i]]` of x. Without a permutation the dimensions are reversed.
fn transposes(pair: Pair) -> Option<Merged> {
    let perm = |node: &NodeProto| node.attribute("perm").map(|a| a.ints.clone());
    let (first, second) = pair.first.is("Transpose").then(|| (perm(pair.first), perm(pair.second)))?;
    let Some(rank) = first.as_ref().or(second.as_ref()).map(Vec::len) else {
        return Some(Merged::Neither);
    };
    let reversed = || (0..rank as i64).rev().collect();
    let (first, second) = (first.unwrap_or_else(reversed), second.unwrap_or_else(reversed));
    if first.len() != second.len() {
        return None;
    }
    let through = |&i: &i64| usize::try_from(i).ok().and_then(|i| first.get(i)).copied();
    let product: Vec<i64> = second.iter().map(through).collect::<Option<_>>()?;
    if product.iter().zip(0..).all(|(&p, i)| p == i) {
        return Some(Merged::Neither);
    }
    let mut node = pair.without_first();
    node.attribute.retain(|a| a.name() != "perm");
    node.attribute.push(crate::patch::ints_attribute("perm", product));
    Some(Merged::Single(node, Vec::new()))
}

/// Operators that keep the elements and their order.
const VIEWS: &[&str] = &["Reshape", "Flatten", "Squeeze", "Unsqueeze"];

/// A 0 in the second shape stands for a dimension between the two, which must be the one of x or known.
fn second_shape_holds(pair: Pair) -> Option<Merged> {
    if !VIEWS.contains(&pair.first.op_type()) {
        return None;
    }
    let mut shape = integers(pair.graph, pair.second, 1, "shape").ok()??;
    let copies = |at: usize| pair.second.int("allowzero", 0) == 0 && !keeps(pair, at);
    let unclear: Vec<usize> = (0..shape.len()).filter(|&at| shape[at] == 0 && copies(at)).collect();
    let mut node = pair.without_first();
    if unclear.is_empty() {
        return Some(Merged::Single(node, Vec::new()));
    }
    let between = pair.graph.dimensions(&pair.first.output[0])?;
    for at in unclear {
        let known = between.get(at).copied()?.filter(|&dim| dim > 0)?;
        shape[at] = i64::try_from(known).ok()?;
    }
    let name = pair.graph.fresh(&format!("{}.shape", node.output[0]), None);
    node.input.get_mut(1)?.clone_from(&name);
    let constant = tensor(&name, &[shape.len()], &shape);
    Some(Merged::Single(node, vec![constant]))
}

/// Whether the view F leaves dimension `at` what and where it is in x.
fn keeps(pair: Pair, at: usize) -> bool {
    let first = pair.first;
    let given = |name| integers(pair.graph, first, 1, name).ok().flatten();
    match first.op_type() {
        "Reshape" => first.int("allowzero", 0) == 0 && given("shape").is_some_and(|s| s.get(at) == Some(&0)),
        "Flatten" => at == 0 && first.int("axis", 1) == 1,
        _ => given("axes").is_some_and(|axes| axes.iter().all(|&axis| axis > at as i64)),
    }
}

/// A matrix is flat already; and where F keeps the first dimension, the rest is flattened either way.
fn flatten(pair: Pair) -> Option<Merged> {
    let matrix = pair.first.is("Flatten");
    let (true, 1) = (VIEWS.contains(&pair.first.op_type()), pair.second.int("axis", 1)) else { return None };
    if matrix {
        return Some(Merged::First);
    }
    keeps(pair, 0).then(|| Merged::Single(pair.without_first(), Vec::new()))
}

/// The same axes put in and taken out, or taken out and put in: both count them in the longer shape.
fn undoes(pair: Pair, inverse: &str) -> Option<Merged> {
    let axes = |node| integers(pair.graph, node, 1, "axes").ok().flatten();
    let same = pair.first.is(inverse) && axes(pair.first)? == axes(pair.second)?;
    same.then_some(Merged::Neither)
}

/// f(f(x)) = f(x).
fn idempotent(pair: Pair) -> Option<Merged> {
    pair.first.is(pair.second.op_type()).then_some(Merged::First)
}
