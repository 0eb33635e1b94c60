//! Nodes whose output is provably one of their inputs, whatever the input holds.
//!
//! `Identity`; `Dropout` at inference; a `Cast` to the type that is there; arithmetic with the neutral element
//! (x + 0, x − 0, x · 1, x ÷ 1, x¹); a variadic operator with one operand; a pool with a window of one element; a `Clip`
//! without bounds; and the shape operators of [`shapes`]. Where the proof needs a type or a shape, the
//! model must declare it.
//!
//! Two corners of IEEE 754 count as equal: −0 + 0 is +0, and a `Clip` without bounds turns an infinity into the largest
//! finite number.

use super::Verdict;
use super::parameters::scalar;
use super::shapes;
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::NodeProto;
use crate::patch::Patch;

type Proof = fn(&Graph, &NodeProto) -> bool;

/// Operators that pass on their first input, and when.
const NO_OPS: &[(&str, Proof)] = &[
    ("Identity", |_, _| true),
    // From opset 12 a third input can ask for training mode.
    ("Dropout", |graph, node| node.input_at(2).is_none() && only_first_output(graph, node)),
    ("Cast", |graph, node| is_type(graph, node, node.attribute("to").map(|to| to.i()))),
    ("CastLike", |graph, node| {
        is_type(graph, node, node.input_at(1).and_then(|like| graph.element_type(like)).map(i64::from))
    }),
    ("Concat", |_, node| node.input.len() == 1),
    ("Sum", |_, node| node.input.len() == 1),
    ("Mean", |_, node| node.input.len() == 1),
    ("Max", |_, node| node.input.len() == 1),
    ("Min", |_, node| node.input.len() == 1),
    ("Clip", |_, node| node.input.iter().skip(1).all(String::is_empty) && node.attribute.is_empty()),
    ("AveragePool", pools_single_elements),
    ("MaxPool", pools_single_elements),
    ("Transpose", shapes::transpose),
    ("Reshape", shapes::reshape),
    ("Flatten", shapes::flatten),
    ("Expand", shapes::expand),
    ("Squeeze", shapes::squeeze),
    ("Tile", shapes::tile),
    ("Slice", shapes::slice),
    ("Pad", shapes::pad),
    ("Resize", shapes::resize),
    ("Upsample", shapes::resize),
];

/// Operator, its neutral element, and whether the constant may stand on either side.
const NEUTRAL: &[(&str, f64, bool)] =
    &[("Add", 0.0, true), ("Sub", 0.0, false), ("Mul", 1.0, true), ("Div", 1.0, false), ("Pow", 1.0, false)];

/// The rule.
pub(super) fn no_op(graph: &Graph, id: NodeId) -> Result<Verdict> {
    Ok(match passed_on(graph, graph.node(id)) {
        Some(input) => bypass(graph, id, input),
        None => Verdict::Pass,
    })
}

/// Lets the readers of node `id`, whose first output equals `source`, read `source`.
///
/// A name that is seen from outside is kept: what makes `source` then makes the output under that name.
pub(super) fn bypass(graph: &Graph, id: NodeId, source: &str) -> Verdict {
    let Some(output) = graph.node(id).output.first() else { return Verdict::Pass };
    let mut patch = Patch::default();
    patch.remove(id);
    if !graph.is_observable(output) {
        patch.shunt(output, source);
        return Verdict::Edit(patch);
    }
    let seen = |what| format!("its output is a graph output or read by a subgraph, and its input is {what}");
    if graph.is_observable(source) {
        return Verdict::Decline(seen("too"));
    }
    let Some(producer) = graph.producer(source) else {
        return Verdict::Decline(seen("an input or a constant"));
    };
    let mut renamed = graph.node(producer).clone();
    renamed.output.iter_mut().filter(|o| *o == source).for_each(|o| o.clone_from(output));
    patch.replace(producer, vec![renamed]);
    patch.shunt(source, output);
    Verdict::Edit(patch)
}

/// The input of `node` that equals its first output.
fn passed_on<'m>(graph: &Graph, node: &'m NodeProto) -> Option<&'m str> {
    if !node.is(node.op_type()) || node.output.first().is_none_or(String::is_empty) {
        return None;
    }
    if let Some((_, proof)) = NO_OPS.iter().find(|(op_type, _)| *op_type == node.op_type()) {
        return node.input_at(0).filter(|_| proof(graph, node));
    }
    let (_, neutral, either) = NEUTRAL.iter().find(|(op_type, ..)| *op_type == node.op_type())?;
    let [left, right] = node.input.as_slice() else { return None };
    let sides = [(right, left), (left, right)];
    let candidates = sides.into_iter().take(if *either { 2 } else { 1 });
    let mut kept = candidates.filter(|(constant, kept)| is_neutral(graph, constant, kept, *neutral));
    kept.next().map(|(_, kept)| kept.as_str())
}

/// Whether `constant` is `value` alone and has no more dimensions than `operand`.
fn is_neutral(graph: &Graph, constant: &str, operand: &str, value: f64) -> bool {
    let narrow = |dims: usize| dims == 0 || graph.rank(operand).is_some_and(|rank| dims <= rank);
    scalar(graph, constant) == Some(value)
        && graph.constant(constant).is_some_and(|tensor| narrow(tensor.dims.len()))
        && !operand.is_empty()
}

fn is_type(graph: &Graph, node: &NodeProto, wanted: Option<i64>) -> bool {
    let given = node.input_at(0).and_then(|input| graph.element_type(input)).map(i64::from);
    given.is_some_and(|given| given != 0 && wanted == Some(given))
}

/// Whether nothing but the first output is read.
pub(super) fn only_first_output(graph: &Graph, node: &NodeProto) -> bool {
    node.output.iter().skip(1).all(|o| graph.consumers(o).is_empty() && !graph.is_observable(o))
}

fn pools_single_elements(graph: &Graph, node: &NodeProto) -> bool {
    let all =
        |name: &str, value: i64| node.attribute(name).is_none_or(|a| a.ints.iter().all(|&v| v == value));
    let window = node.attribute("kernel_shape").is_some() && all("kernel_shape", 1);
    window && all("strides", 1) && all("pads", 0) && only_first_output(graph, node)
}
