//! Functions that exporters spell out in several nodes, each recognised as the one operator it is.
//!
//! | operator | spelled |
//! |---|---|
//! | `LayerNormalization` (Ba et al. 2016, equation 4) | (x − mean(x)) ÷ √(mean((x − mean(x))²) + ε) · γ + β |
//! | `Gelu` (Hendrycks and Gimpel 2016) | ½ · x · (1 + erf(x ÷ √2)), or with tanh(√(2/π) · (x + 0.044715 · x³)) for the erf |
//! | `HardSwish` (Howard et al. 2019, section 5.2) | x · HardSigmoid(x), α = 1/6, β = 1/2 |
//! | SiLU (Elfwing et al. 2017; an operator of its own only from opset 24 on) | x · Sigmoid(x) |
//!
//! Products and sums may come in any order. Nothing in between may be read from elsewhere.

use std::collections::BTreeSet;

use foldhash::HashSet;

use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::model::Model;
use crate::onnx::{NodeProto, TensorProto};
use crate::patch::{Patch, apply, float_attribute, node};
use crate::tensor::{doubles, element_count, integers, is_float};

/// What several nodes compute together.
#[derive(Debug, Clone, PartialEq)]
pub enum Function<'m> {
    /// (x − mean) ÷ √(variance + ε) · γ + β.
    LayerNorm {
        /// How many of the last axes it goes over.
        axes: usize,
        /// ε.
        epsilon: f64,
        /// The constant γ, if there is one.
        scale: Option<&'m str>,
        /// The constant β, if there is one.
        bias: Option<&'m str>,
    },
    /// ½ · x · (1 + erf(x ÷ √2)).
    Gelu {
        /// With the approximation by tanh.
        tanh: bool,
    },
    /// x · HardSigmoid(x).
    HardSwish,
    /// x · Sigmoid(x).
    Silu,
}

/// A function, and the nodes that spell it.
#[derive(Debug, Clone)]
pub struct Composite<'m> {
    /// The function.
    pub function: Function<'m>,
    /// What it reads.
    pub input: &'m str,
    /// The node that makes its result.
    pub last: NodeId,
    /// All of its nodes, the last included.
    pub nodes: BTreeSet<NodeId>,
}

/// Constants are written with as few digits as this.
const TOLERANCE: f64 = 1e-5;

/// Finds the function around its most telling node `id`: an `Erf`, `Tanh`, `Sqrt`, `Sigmoid` or `HardSigmoid`.
pub fn composite<'m>(graph: &Graph<'m>, id: NodeId) -> Option<Composite<'m>> {
    let node = graph.node(id);
    let found = match node.op_type() {
        _ if !node.is(node.op_type()) => None,
        "Erf" => gelu(graph, id, false),
        "Tanh" => gelu(graph, id, true),
        "Sqrt" => layer_norm(graph, id),
        "Sigmoid" => gated(graph, id, Function::Silu),
        "HardSigmoid" if is_sixth(node) => gated(graph, id, Function::HardSwish),
        _ => None,
    }?;
    found.is_closed(graph).then_some(found)
}

/// All of a graph.
pub fn composites<'m>(graph: &Graph<'m>) -> impl Iterator<Item = Composite<'m>> {
    (0..graph.nodes().len()).filter_map(|id| composite(graph, id))
}

/// Nodes of the functions that run in one piece only if nobody takes them apart: ONNX Runtime has a kernel for each, but none
/// for their parts in int8.
pub fn indivisible(graph: &Graph) -> HashSet<NodeId> {
    let whole =
        |found: &Composite| matches!(found.function, Function::LayerNorm { .. } | Function::Gelu { .. });
    composites(graph).filter(whole).flat_map(|found| found.nodes).collect()
}

impl Composite<'_> {
    /// Whether only the result is seen from outside.
    fn is_closed(&self, graph: &Graph) -> bool {
        self.nodes.iter().filter(|&&id| id != self.last).flat_map(|&id| &graph.node(id).output).all(|value| {
            !graph.is_observable(value) && graph.consumers(value).iter().all(|id| self.nodes.contains(id))
        })
    }
}

/// x · f(x), where the node `id` is f.
fn gated<'m>(graph: &Graph<'m>, id: NodeId, function: Function<'m>) -> Option<Composite<'m>> {
    let node = graph.node(id);
    let input = node.input_at(0)?;
    let last = graph.sole_consumer(node.output.first()?)?;
    let other = other_operand(graph.node(last), "Mul", &node.output[0])?;
    (other == input).then(|| Composite { function, input, last, nodes: BTreeSet::from([id, last]) })
}

fn is_sixth(node: &NodeProto) -> bool {
    near(node.float("alpha", 0.2).into(), 1.0 / 6.0) && node.float("beta", 0.5) == 0.5
}

/// ½ · x · (1 + f(…)), where the node `id` is f.
fn gelu<'m>(graph: &Graph<'m>, id: NodeId, tanh: bool) -> Option<Composite<'m>> {
    let mut nodes = BTreeSet::from([id]);
    let inner = graph.node(id).input_at(0)?;
    let input = if tanh {
        cubic(graph, inner, &mut nodes)?
    } else {
        times(graph, inner, std::f64::consts::FRAC_1_SQRT_2, &mut nodes)?
    };
    let plus_one = graph.sole_consumer(graph.node(id).output.first()?)?;
    let (add, one) =
        (graph.node(plus_one), other_operand(graph.node(plus_one), "Add", &graph.node(id).output[0])?);
    nodes.insert(plus_one);
    if scalar(graph, one)? != 1.0 {
        return None;
    }
    let last = halved_product(graph, &add.output[0], input, &mut nodes)?;
    Some(Composite { function: Function::Gelu { tanh }, input, last, nodes })
}

/// The node that makes ½ · `factor` · `x`, in any order.
fn halved_product(graph: &Graph, factor: &str, x: &str, nodes: &mut BTreeSet<NodeId>) -> Option<NodeId> {
    let first = graph.sole_consumer(factor)?;
    nodes.insert(first);
    let product = graph.node(first).output.first()?;
    if scaling(graph, first) == Some((factor, 0.5)) {
        // (½ · factor) · x
        let last = graph.sole_consumer(product)?;
        nodes.insert(last);
        return (other_operand(graph.node(last), "Mul", product)? == x).then_some(last);
    }
    let other = other_operand(graph.node(first), "Mul", factor)?;
    if other == x {
        // ½ · (factor · x)
        let last = graph.sole_consumer(product)?;
        nodes.insert(last);
        return (scaling(graph, last)? == (product, 0.5)).then_some(last);
    }
    // factor · (½ · x)
    let half = graph.producer(other)?;
    nodes.insert(half);
    (scaling(graph, half)? == (x, 0.5)).then_some(first)
}

/// The x of √(2/π) · (x + 0.044715 · x³).
fn cubic<'m>(graph: &Graph<'m>, value: &'m str, nodes: &mut BTreeSet<NodeId>) -> Option<&'m str> {
    let sum = times(graph, value, (2.0 / std::f64::consts::PI).sqrt(), nodes)?;
    let add = graph.producer(sum)?;
    let [left, right] = graph.node(add).input.as_slice() else { return None };
    if !graph.node(add).is("Add") {
        return None;
    }
    nodes.insert(add);
    [(left, right), (right, left)].into_iter().find_map(|(x, term)| {
        let mut inner = nodes.clone();
        let (power, factor) = monomial(graph, term, x, DEEPEST, &mut inner)?;
        if power != 3.0 || !near(factor, 0.044715) {
            return None;
        }
        *nodes = inner;
        Some(x.as_str())
    })
}

/// Products in each other that a term in x is looked for in.
const DEEPEST: u32 = 4;

/// The power of x, and the factor, that a value is as a product of powers of x and constants.
fn monomial(
    graph: &Graph,
    value: &str,
    x: &str,
    depth: u32,
    nodes: &mut BTreeSet<NodeId>,
) -> Option<(f64, f64)> {
    if value == x {
        return Some((1.0, 1.0));
    }
    if let Some(factor) = scalar(graph, value) {
        return Some((0.0, factor));
    }
    let (depth, id) = (depth.checked_sub(1)?, graph.producer(value)?);
    nodes.insert(id);
    let node = graph.node(id);
    let [left, right] = node.input.as_slice() else { return None };
    if node.is("Pow") {
        return (left == x).then_some((scalar(graph, right)?, 1.0));
    }
    let mut part = |value| monomial(graph, value, x, depth, nodes);
    let (one, other) = (part(left)?, part(right)?);
    if node.is("Div") {
        return Some((one.0 - other.0, one.1 / other.1));
    }
    node.is("Mul").then_some((one.0 + other.0, one.1 * other.1))
}

/// The node `id` is x².
fn is_square(graph: &Graph, node: &NodeProto, x: &str) -> bool {
    let operands = |right: &str| node.input_at(0) == Some(x) && node.input_at(1) == Some(right);
    node.is("Mul") && operands(x)
        || node.is("Pow")
            && node.input_at(0) == Some(x)
            && node.input_at(1).and_then(|p| scalar(graph, p)) == Some(2.0)
}

/// The normalization around its square root.
fn layer_norm<'m>(graph: &Graph<'m>, id: NodeId) -> Option<Composite<'m>> {
    let mut nodes = BTreeSet::from([id]);
    let mut step = |value: &str, op_type: &str| {
        let id = graph.producer(value)?;
        nodes.insert(id);
        Some(graph.node(id)).filter(|node| node.is(op_type))
    };
    let add = step(graph.node(id).input_at(0)?, "Add")?;
    let (variance, epsilon) = match (scalar(graph, add.input_at(1)?), scalar(graph, add.input_at(0)?)) {
        (Some(epsilon), None) => (add.input_at(0)?, epsilon),
        (None, Some(epsilon)) => (add.input_at(1)?, epsilon),
        _ => return None,
    };
    let variance = step(variance, "ReduceMean")?;
    let square = graph.producer(variance.input_at(0)?)?;
    let centred = graph.node(square).input_at(0)?;
    let centre = step(centred, "Sub")?;
    let input = centre.input_at(0)?;
    let mean = step(centre.input_at(1)?, "ReduceMean")?;
    nodes.insert(square);
    let axes = last_axes(graph, mean, input)?;
    if !is_square(graph, graph.node(square), centred)
        || mean.input_at(0)? != input
        || last_axes(graph, variance, input) != Some(axes)
    {
        return None;
    }
    let root = graph.node(id).output.first()?;
    let division = graph.sole_consumer(root)?;
    let node = graph.node(division);
    if !node.is("Div") || node.input_at(0)? != centred || node.input_at(1)? != root {
        return None;
    }
    nodes.insert(division);
    let (mut last, mut parameters) = (division, [None; 2]);
    for (op_type, parameter) in ["Mul", "Add"].into_iter().zip(&mut parameters) {
        let value = graph.node(last).output.first()?;
        let next = graph
            .sole_consumer(value)
            .and_then(|next| Some((next, other_operand(graph.node(next), op_type, value)?)));
        let Some((next, name)) = next.filter(|(_, name)| graph.constant(name).is_some_and(is_float)) else {
            break;
        };
        *parameter = Some(name);
        nodes.insert(next);
        last = next;
    }
    let [scale, bias] = parameters;
    Some(Composite { function: Function::LayerNorm { axes, epsilon, scale, bias }, input, last, nodes })
}

/// How many axes a `ReduceMean` takes the mean over and keeps, if they are the last ones.
fn last_axes(graph: &Graph, node: &NodeProto, input: &str) -> Option<usize> {
    let mut axes = match node.input_at(1) {
        Some(name) => {
            integers(graph.constant(name).filter(|t| element_count(t).is_ok_and(|n| n < 16))?).ok()?
        }
        None => node.attribute("axes")?.ints.clone(),
    };
    if axes.iter().any(|&axis| axis >= 0) {
        let rank = i64::try_from(graph.rank(input).or_else(|| graph.rank(&node.output[0]))?).ok()?;
        axes.iter_mut().filter(|axis| **axis >= 0).for_each(|axis| *axis -= rank);
    }
    axes.sort_unstable();
    let count = i64::try_from(axes.len()).ok()?;
    (count > 0 && node.int("keepdims", 1) == 1 && axes.into_iter().eq(-count..0)).then_some(count as usize)
}

/// The operand of `value` times about `factor`, if that is how `product` is made.
fn times<'m>(graph: &Graph<'m>, product: &str, factor: f64, nodes: &mut BTreeSet<NodeId>) -> Option<&'m str> {
    let id = graph.producer(product)?;
    let (x, by) = scaling(graph, id)?;
    nodes.insert(id);
    near(by, factor).then_some(x)
}

/// What a `Mul` or `Div` by a single constant scales, and by what.
fn scaling<'m>(graph: &Graph<'m>, id: NodeId) -> Option<(&'m str, f64)> {
    let node = graph.node(id);
    let [left, right] = node.input.as_slice() else { return None };
    match (scalar(graph, left), scalar(graph, right)) {
        (None, Some(k)) if node.is("Mul") => Some((left, k)),
        (Some(k), None) if node.is("Mul") => Some((right, k)),
        (None, Some(k)) if node.is("Div") => Some((left, k.recip())),
        _ => None,
    }
}

/// The other operand of `node`, if it is `op_type` with `value` as exactly one of two.
fn other_operand<'m>(node: &'m NodeProto, op_type: &str, value: &str) -> Option<&'m str> {
    let [left, right] = node.input.as_slice() else { return None };
    let other = match (left == value, right == value) {
        (true, false) => right,
        (false, true) => left,
        _ => return None,
    };
    node.is(op_type).then_some(other)
}

/// A constant of one floating-point value that does not add axes to what it meets.
fn scalar(graph: &Graph, name: &str) -> Option<f64> {
    let single =
        |t: &&TensorProto| is_float(t) && t.dims.len() <= 1 && element_count(t).is_ok_and(|n| n == 1);
    doubles(graph.constant(name).filter(single)?).ok()?.first().copied()
}

fn near(value: f64, expected: f64) -> bool {
    (value / expected - 1.0).abs() < TOLERANCE
}

/// `model` with every `HardSwish` as x · HardSigmoid(x), which is how runtimes compute it, and in int8 can.
///
/// # Errors
/// [`crate::Error::Model`] when the model has no graph.
pub fn spelled_out(model: Model) -> Result<Model> {
    let mut patch = Patch::default();
    let graph = Graph::of(&model);
    for (id, hard_swish) in graph.nodes().iter().enumerate().filter(|(_, node)| node.is("HardSwish")) {
        let ([input], [output]) = (&*hard_swish.input, &*hard_swish.output) else { continue };
        let gate = graph.fresh(&format!("{output}.gate"), None);
        let mut sigmoid = node("HardSigmoid", &gate, &[input], &[&gate]);
        sigmoid.attribute = vec![float_attribute("alpha", 1.0 / 6.0), float_attribute("beta", 0.5)];
        patch.replace(id, vec![sigmoid, node("Mul", hard_swish.name(), &[input, &gate], &[output])]);
    }
    if patch.is_empty() { Ok(model) } else { apply(model, patch) }
}
