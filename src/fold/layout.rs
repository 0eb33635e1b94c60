//! Transposes around operators that do not care about the order of axes, the way exporters of channels-last frameworks write
//! them: `Transpose → Conv → Transpose → Relu → Transpose → Conv`.
//!
//! A *region* is a set of such operators that are connected by values. Turned into another order of axes it needs no transpose
//! where one into that order was in front of it or behind it, and a new one at every other border. It is turned where that
//! leaves fewer transposes. If y = T(x) for a permutation p of axes, then f(T(x)) = T(f(x)) for every f element by element, and
//! for one along axis i of y if it goes along axis p\[i\] of x instead.

use std::collections::{BTreeMap, BTreeSet};

use super::Verdict;
use super::parameters::{axis, integers};
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::{NodeProto, TensorProto};
use crate::patch::{Patch, int_attribute, ints_attribute, node};
use crate::tensor::{element_count, tensor, transposed};

/// Operators that a region may have: what bounds the search.
const LARGEST: usize = 2048;

/// Larger constants are not copied in another order.
const LARGEST_CONSTANT: usize = 1 << 22;

/// Element by element, with their operands in any number. Parameters behind the first input of the `CLIPPING` are scalars.
const ELEMENTWISE: &[&str] = &[
    "Abs",
    "Add",
    "Ceil",
    "Div",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Tanh",
];
const CLIPPING: &[&str] = &["Clip", "Cast"];
/// Along one axis, given by an attribute whose meaning changed with opset 13 for the first two.
const ALONG: &[&str] = &["Softmax", "LogSoftmax", "Concat"];
/// Over several axes, which are kept.
const REDUCING: &[&str] =
    &["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd"];

/// A permutation: axis i of the result is axis `p[i]` of what it is applied to.
type Perm = Vec<usize>;

/// The rule, asked about a `Transpose`: turns the region behind it into the order in front of it.
pub(super) fn region(graph: &Graph, id: NodeId) -> Result<Verdict> {
    let Some(perm) = perm(graph.node(id)) else { return Ok(Verdict::Pass) };
    let readers = graph.consumers(&graph.node(id).output[0]);
    let Some(&start) = readers.iter().find(|&&reader| turned(graph, reader, &perm).is_some()) else {
        return Ok(Verdict::Pass);
    };
    let Some(region) = Region::around(graph, start, &perm) else { return Ok(Verdict::Pass) };
    region.turn(graph, &perm).map(|patch| patch.map_or(Verdict::Pass, Verdict::Edit))
}

/// The rule for a `Transpose` that moves only axes of length 1, read by something that arranges the axes anew: the elements
/// are in the same order without it.
pub(super) fn view(graph: &Graph, id: NodeId) -> Result<Verdict> {
    let node = graph.node(id);
    let (Some(perm), Some(input)) = (perm(node), node.input_at(0)) else { return Ok(Verdict::Pass) };
    let Some(dims) = graph.dimensions(input).filter(|dims| dims.len() == perm.len()) else {
        return Ok(Verdict::Pass);
    };
    let long: Vec<usize> = perm.iter().copied().filter(|&axis| dims[axis] != Some(1)).collect();
    let Some(reader) = graph.sole_consumer(&node.output[0]).filter(|_| long.is_sorted()) else {
        return Ok(Verdict::Pass);
    };
    let mut new = graph.node(reader).clone();
    let fits = match new.op_type() {
        _ if !new.is(new.op_type()) || new.input_at(0) != Some(&node.output[0]) => false,
        "Reshape" => {
            integers(graph, &new, 1, "shape").is_ok_and(|shape| shape.is_some_and(|s| !s.contains(&0)))
        }
        "Flatten" => new.int("axis", 1) == 1 && perm[0] == 0,
        _ => false,
    };
    if !fits {
        return Ok(Verdict::Pass);
    }
    input.clone_into(&mut new.input[0]);
    let mut patch = Patch::default();
    patch.remove(id);
    patch.replace(reader, vec![new]);
    Ok(Verdict::Edit(patch))
}

/// Connected operators that can be turned, and the values at their border.
#[derive(Default)]
struct Region<'m> {
    nodes: BTreeMap<NodeId, Turned>,
    /// Values from outside, constants among them.
    read: BTreeSet<&'m str>,
}

/// A node as it works in the other order, and new constants that are no longer the old ones in another order.
struct Turned {
    node: NodeProto,
    constants: Vec<TensorProto>,
    /// Which of the inputs are to be in the other order.
    data: Vec<usize>,
}

impl<'m> Region<'m> {
    fn around(graph: &Graph<'m>, start: NodeId, perm: &Perm) -> Option<Self> {
        let mut region = Self::default();
        let mut open = vec![start];
        while let Some(id) = open.pop() {
            if region.nodes.contains_key(&id) {
                continue;
            }
            let Some(turned) = turned(graph, id, perm) else { continue };
            let node = graph.node(id);
            for &index in &turned.data {
                open.extend(graph.producer(&node.input[index]));
            }
            for output in &node.output {
                open.extend(graph.consumers(output));
            }
            region.nodes.insert(id, turned);
            if region.nodes.len() > LARGEST {
                return None;
            }
        }
        for (&id, turned) in &region.nodes {
            let node = graph.node(id);
            let outside =
                |value: &&str| graph.producer(value).is_none_or(|id| !region.nodes.contains_key(&id));
            region.read.extend(turned.data.iter().map(|&index| node.input[index].as_str()).filter(outside));
        }
        Some(region)
    }

    /// The patch, if it leaves fewer transposes.
    fn turn(mut self, graph: &Graph, perm: &Perm) -> Result<Option<Patch>> {
        let Some(&first) = self.nodes.keys().next() else { return Ok(None) };
        // Two regions of one sweep may read the same value.
        let turned = |value: &str| graph.fresh(&format!("{value}.turned{first}"), None);
        let mut patch = Patch::default();
        let back = inverse(perm);
        let (mut gained, mut paid) = (0, 0);
        let mut renamed = BTreeMap::new();
        for &value in &self.read {
            if let Some(constant) = graph.constant(value) {
                match reordered(constant, &turned(value), &back)? {
                    Some(None) => {}
                    Some(Some(new)) => {
                        renamed.insert(value.to_owned(), new.name().to_owned());
                        patch.initializer(new);
                    }
                    None => return Ok(None),
                }
                continue;
            }
            let producer = graph.producer(value);
            let transpose = producer.filter(|&id| self::perm(graph.node(id)).as_ref() == Some(perm));
            let source = match transpose {
                Some(id) => {
                    let spared = !graph.is_observable(value)
                        && graph.consumers(value).iter().all(|reader| self.nodes.contains_key(reader));
                    if spared {
                        patch.remove(id);
                        gained += 1;
                    } else {
                        patch.rely_on(id);
                    }
                    graph.node(id).input[0].clone()
                }
                None => {
                    paid += 1;
                    let name = turned(value);
                    producer.into_iter().for_each(|id| patch.rely_on(id));
                    patch.insert(producer.map_or(first, |id| id + 1), transpose_node(value, &name, &back));
                    name
                }
            };
            renamed.insert(value.to_owned(), source);
        }
        for &id in self.nodes.keys() {
            for output in &graph.node(id).output {
                let (gain, price) = self.leave(graph, output, (id, perm, &back), &mut patch, &mut renamed);
                gained += gain;
                paid += price;
            }
        }
        if gained <= paid {
            return Ok(None);
        }
        for (id, turned) in std::mem::take(&mut self.nodes) {
            let Turned { mut node, constants, data } = turned;
            for index in data {
                if let Some(name) = renamed.get(&node.input[index]) {
                    node.input[index].clone_from(name);
                }
            }
            for output in &mut node.output {
                if let Some(name) = renamed.get(output) {
                    output.clone_from(name);
                }
            }
            constants.into_iter().for_each(|constant| patch.initializer(constant));
            patch.replace(id, vec![node]);
        }
        Ok(Some(patch))
    }

    /// What happens to a value that the region makes: transposes of it go, other readers get one. How many of each.
    fn leave(
        &self,
        graph: &Graph,
        value: &str,
        (id, perm, back): (NodeId, &Perm, &Perm),
        patch: &mut Patch,
        renamed: &mut BTreeMap<String, String>,
    ) -> (usize, usize) {
        let (mut gone, mut others, mut seen) = (Vec::new(), graph.is_observable(value), None);
        for &reader in graph.consumers(value) {
            let output = graph.node(reader).output.first();
            let observable = output.is_some_and(|output| graph.is_observable(output));
            if self::perm(graph.node(reader)).as_ref() != Some(back) {
                others |= !self.nodes.contains_key(&reader);
            } else if observable && seen.is_some() {
                others = true;
            } else {
                gone.push(reader);
                seen = seen.or(output.filter(|_| observable));
            }
        }
        if !gone.is_empty() || others {
            // What is seen from outside keeps its name.
            let name = seen.cloned().unwrap_or_else(|| graph.fresh(&format!("{value}.turned"), None));
            for &transpose in &gone {
                patch.remove(transpose);
                let output = &graph.node(transpose).output[0];
                if *output != name {
                    patch.shunt(output, &name);
                }
            }
            if others {
                patch.insert(id + 1, transpose_node(&name, value, perm));
            }
            renamed.insert(value.to_owned(), name);
        }
        (gone.len(), usize::from(others))
    }
}

/// Node `id` as it works on data of which its own is `perm` of; `None` if it cannot.
fn turned(graph: &Graph, id: NodeId, perm: &Perm) -> Option<Turned> {
    let node = graph.node(id);
    if graph.is_indivisible(id) {
        return None;
    }
    let one_output = node.output.len() == 1 && node.output.iter().all(|output| !output.is_empty());
    if !one_output || !node.is(node.op_type()) || node.input.iter().any(String::is_empty) {
        return None;
    }
    let is = |list: &[&str]| list.contains(&node.op_type());
    let plain = |data: Vec<usize>| Turned { node: node.clone(), constants: Vec::new(), data };
    let turned = if is(ELEMENTWISE) {
        plain((0..node.input.len()).collect())
    } else if is(CLIPPING) {
        plain(vec![0])
    } else if is(ALONG) {
        along(graph, node, perm)?
    } else if is(REDUCING) {
        reducing(graph, node, perm)?
    } else if node.is("Pad") {
        padding(graph, node, perm)?
    } else {
        return None;
    };
    let of_rank = |index: &usize| has_rank(graph, &node.input[*index], perm.len());
    (!turned.data.is_empty() && turned.data.iter().all(of_rank)).then_some(turned)
}

/// Whether a value surely has as many axes as the permutation, or is a constant that can be given as many.
fn has_rank(graph: &Graph, value: &str, rank: usize) -> bool {
    if let Some(constant) = graph.constant(value) {
        return constant.dims.len() <= rank;
    }
    let made_by = graph.producer(value).map(|id| graph.node(id));
    let transposed = made_by.and_then(perm).is_some_and(|perm| perm.len() == rank);
    transposed || graph.rank(value) == Some(rank)
}

fn along(graph: &Graph, node: &NodeProto, perm: &Perm) -> Option<Turned> {
    let concat = node.is("Concat");
    if !concat && !graph.has_opset(13) {
        return None;
    }
    let own = axis(node.int("axis", if concat { 0 } else { -1 }), perm.len())?;
    let mut node = node.clone();
    node.attribute.retain(|a| a.name() != "axis");
    node.attribute.push(int_attribute("axis", perm[own] as i64));
    let full = |name: &String| graph.constant(name).is_none_or(|constant| constant.dims.len() == perm.len());
    let data = (0..node.input.len()).collect();
    node.input.iter().all(full).then_some(Turned { node, constants: Vec::new(), data })
}

fn reducing(graph: &Graph, node: &NodeProto, perm: &Perm) -> Option<Turned> {
    let axes = integers(graph, node, 1, "axes").ok()??;
    if node.int("keepdims", 1) == 0 || axes.is_empty() {
        return None;
    }
    let moved: Vec<i64> =
        axes.iter().map(|&a| axis(a, perm.len()).map(|a| perm[a] as i64)).collect::<Option<_>>()?;
    let mut turned = Turned { node: node.clone(), constants: Vec::new(), data: vec![0] };
    turned.give(graph, 1, "axes", moved);
    Some(turned)
}

fn padding(graph: &Graph, node: &NodeProto, perm: &Perm) -> Option<Turned> {
    let pads = integers(graph, node, 1, "pads").ok()??;
    let rank = perm.len();
    if node.input.len() > 3 || pads.len() != 2 * rank {
        return None;
    }
    let back = inverse(perm);
    let moved = (0..2 * rank).map(|i| pads[i / rank * rank + back[i % rank]]).collect();
    let mut turned = Turned { node: node.clone(), constants: Vec::new(), data: vec![0] };
    turned.give(graph, 1, "pads", moved);
    Some(turned)
}

impl Turned {
    /// Puts integers where the node has them: at an input or in an attribute.
    fn give(&mut self, graph: &Graph, index: usize, attribute: &str, values: Vec<i64>) {
        match self.node.input.get_mut(index) {
            Some(input) => {
                let name = graph.fresh(&format!("{}.{attribute}", self.node.output[0]), None);
                self.constants.push(tensor(&name, &[values.len()], &values));
                *input = name;
            }
            None => {
                self.node.attribute.retain(|a| a.name() != attribute);
                self.node.attribute.push(ints_attribute(attribute, values));
            }
        }
    }
}

/// A constant in the other order: `Some(None)` where it stays the same, `None` where it cannot be made.
fn reordered(constant: &TensorProto, name: &str, back: &Perm) -> Result<Option<Option<TensorProto>>> {
    let count = element_count(constant)?;
    if count == 1 && constant.dims.len() <= 1 {
        return Ok(Some(None));
    }
    if count > LARGEST_CONSTANT {
        return Ok(None);
    }
    let missing = back.len() - constant.dims.len();
    let dims = std::iter::repeat_n(1, missing).chain(constant.dims.iter().copied()).collect();
    let whole = TensorProto { dims, ..constant.clone() };
    Ok(transposed(&whole, name, back)?.map(Some))
}

/// The permutation of a `Transpose` that gives one.
fn perm(node: &NodeProto) -> Option<Perm> {
    let perm = &node.attribute("perm").filter(|_| node.is("Transpose") && node.output.len() == 1)?.ints;
    let perm: Perm = perm.iter().map(|&axis| usize::try_from(axis).ok()).collect::<Option<_>>()?;
    let mut seen = vec![false; perm.len()];
    let once = perm.iter().all(|&axis| seen.get_mut(axis).is_some_and(|seen| !std::mem::replace(seen, true)));
    (once && node.input_at(0).is_some()).then_some(perm)
}

fn inverse(perm: &Perm) -> Perm {
    let mut inverse = vec![0; perm.len()];
    perm.iter().enumerate().for_each(|(i, &axis)| inverse[axis] = i);
    inverse
}

fn transpose_node(input: &str, output: &str, perm: &Perm) -> NodeProto {
    let mut transpose = node("Transpose", output, &[input], &[output]);
    transpose.attribute.push(ints_attribute("perm", perm.iter().map(|&axis| axis as i64).collect()));
    transpose
}
