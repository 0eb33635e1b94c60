//! Nodes that scale and shift, and chains of them.
//!
//! Every node here computes `y = scale[c] · x + shift[c]` with constants, one pair for all or one per index `c` of one axis:
//!
//! | node | scale | shift |
//! |---|---|---|
//! | `BatchNormalization` | γ / √(var + ε) | β − mean · γ / √(var + ε) |
//! | `x · k`, `x ÷ k` | k, 1 / k | 0 |
//! | `x + k`, `x − k` | 1 | k, −k |
//! | `k − x`, `−x` | −1 | k, 0 |
//!
//! A chain is one such map: s₂ · (s₁ · x + t₁) + t₂ = (s₂ · s₁) · x + (s₂ · t₁ + t₂). It is composed in float64, so that a
//! weight is rounded once however long the chain.
//! (BatchNormalization: Ioffe and Szegedy 2015, the inference form of algorithm 2; ONNX BatchNormalization-15.)

use super::linear::Linear;
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::{NodeProto, TensorProto};
use crate::tensor::{doubles, is_float, shape};

/// An axis of a tensor, counted from either end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    /// This many axes from the left.
    Left(usize),
    /// This many axes from the last one.
    Right(usize),
}

impl Axis {
    /// The same axis counted from the left, where the rank is known.
    pub fn resolved(self, rank: Option<usize>) -> Self {
        match (self, rank) {
            (Self::Right(from_last), Some(rank)) if from_last < rank => Self::Left(rank - 1 - from_last),
            _ => self,
        }
    }

    /// Its index in a list of dimensions.
    pub fn index(self, rank: usize) -> Option<usize> {
        match self {
            Self::Left(index) => (index < rank).then_some(index),
            Self::Right(from_last) => rank.checked_sub(1 + from_last),
        }
    }
}

/// A diagonal affine map: `scale · x + shift`, for all elements alike or per index of one axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Diagonal {
    /// The axis along which the values vary; `None` for one pair of values.
    pub axis: Option<Axis>,
    pub scale: Vec<f64>,
    pub shift: Vec<f64>,
}

impl Diagonal {
    /// Number of pairs of values.
    pub fn len(&self) -> usize {
        self.scale.len()
    }

    /// This map and then `later`, if they vary along the same axis or not at all.
    fn then(&self, later: &Self) -> Option<Self> {
        let axis = match (self.axis, later.axis) {
            (Some(a), Some(b)) if a != b || self.len() != later.len() => return None,
            (a, b) => a.or(b),
        };
        let (first, later) = (self.widened(later.len()), later.widened(self.len()));
        let scale = first.scale.iter().zip(&later.scale).map(|(a, b)| a * b).collect();
        let shift =
            first.shift.iter().zip(&later.scale).zip(&later.shift).map(|((t, s), u)| t * s + u).collect();
        Some(Self { axis, scale, shift })
    }

    fn widened(&self, len: usize) -> Self {
        if self.axis.is_some() || len == 1 {
            return self.clone();
        }
        Self { axis: None, scale: vec![self.scale[0]; len], shift: vec![self.shift[0]; len] }
    }

    /// The map on a value of this rank whose axis `axis` has `channels` indices: a pair of values for each.
    pub fn per_channel(&self, channels: usize, axis: Axis, rank: Option<usize>) -> Option<Self> {
        match self.axis {
            None => Some(Self { axis: Some(axis), ..self.widened(channels) }),
            Some(own) => {
                let same = own.resolved(rank) == axis.resolved(rank) && self.len() == channels;
                same.then(|| self.clone())
            }
        }
    }

    pub fn has_shift(&self) -> bool {
        self.shift.iter().any(|&t| t != 0.0)
    }

    pub fn has_scale(&self) -> bool {
        self.scale.iter().any(|&s| s != 1.0)
    }

    pub fn is_increasing(&self) -> bool {
        self.scale.iter().all(|&s| s > 0.0)
    }

    /// The same scale, without the shift.
    pub fn scale_only(&self) -> Self {
        Self { shift: vec![0.0; self.len()], ..self.clone() }
    }
}

/// An affine node and what it computes.
pub(super) struct Affine<'m> {
    pub input: &'m str,
    pub output: &'m str,
    pub map: Diagonal,
    /// Whether the map could make its input wider along its axis by broadcasting.
    may_widen: bool,
}

/// The affine node at `id`; `None` for another node; or why it is none.
pub(super) fn affine<'m>(graph: &Graph<'m>, id: NodeId) -> Result<Result<Option<Affine<'m>>, String>> {
    let node = graph.node(id);
    let found = match node.op_type() {
        _ if !node.is(node.op_type()) || graph.is_indivisible(id) => return Ok(Ok(None)),
        "BatchNormalization" => batch_norm(graph, id)?.map(Some),
        "Mul" | "Div" | "Add" | "Sub" => arithmetic(graph, id)?,
        "Neg" => Ok(Some((&*node.input[0], uniform(-1.0, 0.0), false))),
        _ => return Ok(Ok(None)),
    };
    Ok(found.and_then(|found| {
        let Some((input, map, may_widen)) = found else { return Ok(None) };
        if !map.scale.iter().chain(&map.shift).all(|v| v.is_finite()) {
            return Err("its constants are not finite".to_owned());
        }
        Ok(Some(Affine { input, output: &node.output[0], map, may_widen }))
    }))
}

type Found<'m> = (&'m str, Diagonal, bool);

fn uniform(scale: f64, shift: f64) -> Diagonal {
    Diagonal { axis: None, scale: vec![scale], shift: vec![shift] }
}

fn batch_norm<'m>(graph: &Graph<'m>, id: NodeId) -> Result<Result<Found<'m>, String>> {
    let node = graph.node(id);
    let used = |output: &String| !graph.consumers(output).is_empty() || graph.is_observable(output);
    if node.int("training_mode", 0) != 0 || node.output.iter().skip(1).any(used) {
        return Ok(Err("it runs in training mode".to_owned()));
    }
    let mut parameters = [const { Vec::<f64>::new() }; 4];
    for (index, values) in parameters.iter_mut().enumerate() {
        let name = node.input_at(index + 1).unwrap_or("");
        match graph.constant(name).filter(|t| is_float(t)) {
            Some(tensor) => *values = doubles(tensor)?,
            None => return Ok(Err(format!("its parameter '{name}' is not a constant"))),
        }
    }
    let [gamma, beta, mean, variance] = &parameters;
    if [beta, mean, variance].iter().any(|p| p.len() != gamma.len()) {
        return Ok(Err("its parameters differ in length".to_owned()));
    }
    let epsilon = f64::from(node.float("epsilon", 1e-5));
    let scale: Vec<f64> = gamma.iter().zip(variance).map(|(&g, &v)| g / (v + epsilon).sqrt()).collect();
    let shift = beta.iter().zip(mean).zip(&scale).map(|((&b, &m), s)| b - m * s).collect();
    Ok(Ok((&node.input[0], Diagonal { axis: Some(Axis::Left(1)), scale, shift }, false)))
}

fn arithmetic<'m>(graph: &Graph<'m>, id: NodeId) -> Result<Result<Option<Found<'m>>, String>> {
    let node = graph.node(id);
    let Some((tensor, input, constant_first)) = constant_operand(graph, node) else { return Ok(Ok(None)) };
    let Some(axis) = varying_axis(&shape(tensor)?, known_rank(graph, input)) else {
        return Ok(Err("its constant does not vary along the channels alone".to_owned()));
    };
    let k = doubles(tensor)?;
    let all = |value: f64| vec![value; k.len()];
    let each = |f: fn(f64) -> f64| k.iter().map(|&v| f(v)).collect();
    let (scale, shift) = match (node.op_type(), constant_first) {
        ("Mul", _) => (k.clone(), all(0.0)),
        ("Div", false) => (each(f64::recip), all(0.0)),
        ("Add", _) => (all(1.0), k.clone()),
        ("Sub", false) => (all(1.0), each(|k| -k)),
        ("Sub", true) => (all(-1.0), k.clone()),
        _ => return Ok(Ok(None)),
    };
    Ok(Ok(Some((input, Diagonal { axis, scale, shift }, axis.is_some()))))
}

/// The constant of an arithmetic node, its other operand, and whether the constant comes first.
pub(super) fn constant_operand<'m>(
    graph: &Graph<'m>,
    node: &'m NodeProto,
) -> Option<(&'m TensorProto, &'m str, bool)> {
    let [left, right] = node.input.as_slice() else { return None };
    let constant = |name: &str| graph.constant(name).filter(|t| is_float(t));
    match (constant(left), constant(right)) {
        (None, Some(tensor)) => Some((tensor, left, false)),
        (Some(tensor), None) => Some((tensor, right, true)),
        _ => None,
    }
}

/// The one axis along which a constant of the shape `dims` varies, `Some(None)` for a single value, `None` if it varies
/// along several or might give the data more axes.
fn varying_axis(dims: &[usize], rank: Option<usize>) -> Option<Option<Axis>> {
    // Everything that is not a scalar has a last axis; more must be known to be there.
    if dims.len() > rank.unwrap_or(1) || dims.contains(&0) {
        return None;
    }
    let mut wide = dims.iter().rev().enumerate().filter(|(_, d)| **d > 1);
    match (wide.next(), wide.next()) {
        (None, _) => Some(None),
        (Some((from_last, _)), None) => Some(Some(Axis::Right(from_last).resolved(rank))),
        _ => None,
    }
}

/// Affine nodes one behind the other, each read by the next alone.
pub(super) struct Chain<'m> {
    /// Nodes from the last to the first.
    pub nodes: Vec<NodeId>,
    pub input: &'m str,
    pub output: &'m str,
    pub map: Diagonal,
    /// Whether the input might have fewer channels than the map.
    pub may_widen: bool,
}

impl<'m> Chain<'m> {
    /// The longest chain that ends with `last`, the affine node `id`.
    pub fn ending_with(graph: &Graph<'m>, id: NodeId, last: Affine<'m>) -> Result<Self> {
        let Affine { input, output, map, may_widen } = last;
        let mut chain = Self { nodes: vec![id], input, output, map, may_widen };
        while let Some((before, earlier)) = before(graph, chain.nodes[chain.nodes.len() - 1], chain.input)? {
            let Some(map) = earlier.map.then(&chain.map) else { break };
            if earlier.map.axis.is_some() {
                chain.may_widen = earlier.may_widen;
            }
            chain.nodes.push(before);
            chain.input = earlier.input;
            chain.map = map;
        }
        Ok(chain)
    }

    /// Whether the node behind `affine` makes a longer chain of it.
    pub fn goes_on(graph: &Graph, affine: &Affine) -> Result<bool> {
        let Some(next) = graph.sole_consumer(affine.output) else { return Ok(false) };
        let next = self::affine(graph, next)?;
        Ok(matches!(next, Ok(Some(next)) if affine.map.then(&next.map).is_some()))
    }
}

/// The affine node that makes `value` for the node `reader` alone.
fn before<'m>(graph: &Graph<'m>, reader: NodeId, value: &str) -> Result<Option<(NodeId, Affine<'m>)>> {
    let Some(id) = graph.producer(value).filter(|_| graph.sole_consumer(value) == Some(reader)) else {
        return Ok(None);
    };
    Ok(affine(graph, id)?.ok().flatten().map(|affine| (id, affine)))
}

/// Operators whose output has the shape of their input.
const KEEPS_SHAPE: &[&str] = &[
    "BatchNormalization",
    "Cast",
    "Clip",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Neg",
    "Relu",
    "Sigmoid",
    "Tanh",
];

/// Operators on feature maps that keep the rank and the channels of axis 1.
const KEEPS_CHANNELS: &[&str] = &["AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"];

/// How far back [`known_rank`] and [`channel_count`] look.
const STEPS: usize = 16;

/// Number of axes of `value`: declared, or that of the operators that make it.
pub(super) fn known_rank(graph: &Graph, value: &str) -> Option<usize> {
    let (mut value, mut at_least) = (value, 0);
    for _ in 0..STEPS {
        if let Some(rank) = graph.rank(value) {
            return Some(rank.max(at_least));
        }
        let node = graph.node(graph.producer(value)?);
        if node.is("Conv") || node.is("ConvTranspose") {
            return Some(graph.initializer(node.input_at(1)?)?.dims.len().max(at_least));
        }
        if node.is("Gemm") {
            return Some(at_least.max(2));
        }
        if node.is("Concat") {
            value = &node.input[0];
            continue;
        }
        let (input, broadcast) = origin(graph, node)?;
        at_least = at_least.max(broadcast.len());
        value = input;
    }
    None
}

/// Whether `value` is known to have so many channels, so that a constant of that many values cannot widen it.
pub(super) fn has_channels(graph: &Graph, value: &str, channels: usize, axis: Axis) -> bool {
    channel_count(graph, value, axis) == Some(channels)
}

/// Length of `value` along `axis`: declared, or that of the operators that make it.
pub(super) fn channel_count(graph: &Graph, value: &str, axis: Axis) -> Option<usize> {
    let rank = known_rank(graph, value);
    let mut value = value;
    for _ in 0..STEPS {
        let dims = graph.dimensions(value).unwrap_or_default();
        if let Some(Some(declared)) = axis.index(dims.len()).map(|index| dims[index]) {
            return Some(declared);
        }
        let id = graph.producer(value)?;
        let node = graph.node(id);
        if let Ok(Some(linear)) = Linear::at(graph, id) {
            return linear.channels_along(graph, axis);
        }
        let parameter =
            |index| usize::try_from(graph.initializer(node.input_at(index)?)?.dims.first().copied()?).ok();
        if node.is("BatchNormalization") && axis == Axis::Left(1) {
            return parameter(1);
        }
        let (input, broadcast) = origin(graph, node)?;
        // What a constant of a known shape lines up with has its length or one.
        let index = match (axis, rank) {
            _ if broadcast.iter().all(|&d| d == 1) => None,
            (Axis::Right(from_last), _) => broadcast.len().checked_sub(1 + from_last),
            (Axis::Left(axis), rank) => (axis + broadcast.len()).checked_sub(rank?),
        };
        match index.map(|index| broadcast[index]) {
            None | Some(1) => value = input,
            Some(length) => return usize::try_from(length).ok(),
        }
    }
    None
}

/// The input that `node` keeps the rank and the channels of, up to broadcasting with a constant of the dimensions given.
fn origin<'m>(graph: &Graph<'m>, node: &'m NodeProto) -> Option<(&'m str, &'m [i64])> {
    if ["Add", "Div", "Mul", "Sub"].iter().any(|op_type| node.is(op_type)) {
        let (constant, input, _) = constant_operand(graph, node)?;
        return Some((input, &constant.dims));
    }
    let keeps = KEEPS_SHAPE.iter().chain(KEEPS_CHANNELS).any(|op_type| node.is(op_type));
    keeps.then(|| (node.input[0].as_str(), [].as_slice()))
}
