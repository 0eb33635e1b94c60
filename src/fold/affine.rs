//! Linear chains into weights.
//!
//! Every node here computes `y = scale[c] · x + shift[c]` with constants per channel `c`:
//!
//! | node | scale | shift |
//! |---|---|---|
//! | `BatchNormalization` | γ / √(var + ε) | β − mean · γ / √(var + ε) |
//! | `x · k`, `x ÷ k` | k, 1 / k | 0 |
//! | `x + k`, `x − k` | 1 | k, −k |
//! | `k − x` | −1 | k |
//!
//! After a linear operator (`Conv`, `ConvTranspose`, `Gemm`, `MatMul`) it disappears into the weights and the bias:
//! w'\[c, …\] = scale\[c\] · w\[c, …\], b'\[c\] = scale\[c\] · b\[c\] + shift\[c\]. Before one, it does so along the
//! input channels k: w'\[c, k\] = w\[c, k\] · scale\[k\], b'\[c\] = b\[c\] + Σ w\[c, k\] · shift\[k\]; the shift only if
//! nothing is padded.
//! (BatchNormalization: Ioffe and Szegedy 2015, the inference form of algorithm 2; ONNX BatchNormalization-15.)

use super::Verdict;
use super::linear::{Axis, Linear};
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::TensorProto;
use crate::patch::node;
use crate::tensor::{doubles, floats_like, is_float, shape};

/// An affine node and what it computes.
struct Affine<'m> {
    input: &'m str,
    output: &'m str,
    scale: Factor,
    shift: Factor,
}

/// A constant of an affine node and how its shape lines up with the data.
enum Factor {
    /// The same for all, whatever the shape of the data.
    Neutral(f64),
    /// One value per channel of axis 1 of the data, as in BatchNormalization.
    Channel(Vec<f64>),
    /// A constant of some shape, which broadcasting lines up from the right.
    Broadcast(Vec<f64>, Vec<usize>),
}

impl Factor {
    /// A value per channel, if the constant varies along the channel axis alone and does not widen the data.
    fn per_channel(&self, channels: usize, axis: Axis, rank: Option<usize>) -> Option<Vec<f64>> {
        match self {
            Self::Neutral(value) => Some(vec![*value; channels]),
            Self::Channel(values) => {
                let second = axis == Axis::Left(1) || rank == Some(2);
                (values.len() == channels && second).then(|| values.clone())
            }
            Self::Broadcast(values, dims) => {
                // Everything has a last axis; more must be known to be there.
                if dims.len() > rank.unwrap_or(1) {
                    return None;
                }
                if let &[value] = values.as_slice() {
                    return Some(vec![value; channels]);
                }
                let from_right = match axis {
                    Axis::Last => 0,
                    Axis::Left(axis) => rank?.checked_sub(1 + axis)?,
                };
                let other_dims_are_one =
                    dims.iter().rev().enumerate().all(|(i, &d)| d == 1 || i == from_right);
                (values.len() == channels && other_dims_are_one).then(|| values.clone())
            }
        }
    }

    /// How many values there are.
    fn values(&self) -> usize {
        match self {
            Self::Neutral(_) => 1,
            Self::Channel(values) | Self::Broadcast(values, _) => values.len(),
        }
    }

    /// The value, if there is just one.
    fn scalar(&self) -> Option<f64> {
        match self {
            Self::Neutral(value) => Some(*value),
            Self::Channel(values) | Self::Broadcast(values, _) => match values.as_slice() {
                &[value] => Some(value),
                _ => None,
            },
        }
    }

    fn is_zero(&self) -> bool {
        match self {
            Self::Neutral(value) => *value == 0.0,
            Self::Channel(values) | Self::Broadcast(values, _) => values.iter().all(|&v| v == 0.0),
        }
    }
}

/// The rule for an affine node behind a linear operator.
pub(super) fn into_producer(graph: &Graph, id: NodeId) -> Result<Verdict> {
    let affine = match affine(graph, id)? {
        Ok(Some(affine)) => affine,
        Ok(None) => return Ok(Verdict::Pass),
        Err(reason) => return Ok(Verdict::Decline(reason)),
    };
    let Some(producer) = graph.producer(affine.input) else {
        return Ok(Verdict::Decline(format!("no linear operator makes its input '{}'", affine.input)));
    };
    let linear = match Linear::at(graph, producer) {
        Ok(Some(linear)) => linear,
        Ok(None) => {
            let node = graph.node(producer);
            return Ok(Verdict::Decline(format!(
                "its input comes from {} '{}'",
                node.op_type(),
                node.label()
            )));
        }
        Err(reason) => return Ok(Verdict::Decline(reason)),
    };
    if graph.sole_consumer(affine.input) != Some(id) {
        return Ok(Verdict::Decline(format!("'{}' is read elsewhere too", affine.input)));
    }
    if !affine.shift.is_zero() && !linear.takes_shift(graph) {
        return Ok(Verdict::Decline("a MatMul has no bias to take up the shift".to_owned()));
    }
    let (axis, rank) = linear.channel_axis();
    let rank =
        rank.or_else(|| graph.rank(affine.input)).or_else(|| graph.rank(&graph.node(producer).input[0]));
    let per_channel = |factor: &Factor| factor.per_channel(linear.channels(), axis, rank);
    let (Some(scale), Some(shift)) = (per_channel(&affine.scale), per_channel(&affine.shift)) else {
        return Ok(Verdict::Decline("its constant does not vary along the channels alone".to_owned()));
    };
    Ok(match linear.with_output_affine(graph, &scale, &shift, affine.output)? {
        Ok(mut patch) => {
            patch.remove(id);
            Verdict::Edit(patch)
        }
        Err(reason) => Verdict::Decline(reason),
    })
}

/// The rule for an affine node in front of one linear operator.
///
/// A shift passes only where nothing is padded with zeros. Where it does not, a scale in front of it still does:
/// `a · x + b = a · (x + b / a)`.
pub(super) fn into_consumer(graph: &Graph, id: NodeId) -> Result<Verdict> {
    let Ok(Some(affine)) = affine(graph, id)? else { return Ok(Verdict::Pass) };
    let Some(consumer) = graph.sole_consumer(affine.output) else { return Ok(Verdict::Pass) };
    if graph.node(consumer).input_at(0) != Some(affine.output) {
        return Ok(Verdict::Pass);
    }
    let Ok(Some(linear)) = Linear::at(graph, consumer) else { return Ok(Verdict::Pass) };
    let (axis, rank) = linear.channel_axis();
    let rank = rank.or_else(|| graph.rank(affine.output)).or_else(|| graph.rank(affine.input));
    let channels = linear.input_channels();
    let widens = |factor: &Factor| matches!(factor, Factor::Broadcast(values, _) if values.len() > 1);
    if (widens(&affine.scale) || widens(&affine.shift))
        && !has_channels(graph, affine.input, channels, axis, rank)
    {
        return Ok(Verdict::Pass);
    }
    let per_channel = |factor: &Factor| factor.per_channel(channels, axis, rank);
    let (Some(scale), Some(shift)) = (per_channel(&affine.scale), per_channel(&affine.shift)) else {
        return Ok(Verdict::Pass);
    };
    if !linear.takes_input_scale() {
        return Ok(Verdict::Pass);
    }
    if affine.shift.is_zero() || linear.takes_input_shift(graph) {
        let edit = linear.with_input_affine(graph, &scale, &shift, affine.input)?;
        return Ok(edit.map_or(Verdict::Pass, |mut patch| {
            patch.remove(id);
            Verdict::Edit(patch)
        }));
    }
    scale_past_shift(graph, id, &affine, &linear)
}

/// Operators whose output has the shape of their input.
const KEEPS_SHAPE: &[&str] = &["Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"];

/// Operators on feature maps that keep the channels of axis 1.
const KEEPS_CHANNELS: &[&str] = &["AveragePool", "GlobalAveragePool", "MaxPool"];

/// How far back [`has_channels`] looks.
const STEPS: usize = 16;

/// Whether `value` is known to have so many channels, so that a constant of that many values cannot widen it.
fn has_channels(graph: &Graph, value: &str, channels: usize, axis: Axis, rank: Option<usize>) -> bool {
    let keeps = |table: &[&str], id: NodeId| table.iter().any(|op_type| graph.node(id).is(op_type));
    let mut value = value;
    for _ in 0..STEPS {
        let declared = graph.dimensions(value).and_then(|dims| match axis {
            Axis::Left(axis) => dims.get(axis).copied(),
            Axis::Last => dims.last().copied(),
        });
        let Some(id) = graph.producer(value).filter(|_| declared.flatten() != Some(channels)) else {
            return declared.flatten() == Some(channels);
        };
        if let Ok(Some(linear)) = Linear::at(graph, id) {
            return linear.channels() == channels;
        }
        value = if let Ok(Ok(Some(affine))) = affine(graph, id) {
            let factors = [&affine.scale, &affine.shift];
            let along = |f: &&Factor| f.values() > 1 && f.per_channel(channels, axis, rank).is_some();
            if factors.iter().any(along) {
                return true;
            }
            if factors.iter().any(|f| f.values() > 1) {
                return false;
            }
            affine.input
        } else if keeps(KEEPS_SHAPE, id) || axis == Axis::Left(1) && keeps(KEEPS_CHANNELS, id) {
            &graph.node(id).input[0]
        } else {
            return false;
        };
    }
    false
}

/// `Mul` by a scalar, `Add` of a scalar, linear operator: the scale moves past the shift into the weights.
fn scale_past_shift(graph: &Graph, id: NodeId, shift: &Affine, linear: &Linear) -> Result<Verdict> {
    let Some(before) = graph.producer(shift.input) else { return Ok(Verdict::Pass) };
    let Ok(Some(scale)) = affine(graph, before)? else { return Ok(Verdict::Pass) };
    let (Some(a), Some(b), Some(one)) = (scale.scale.scalar(), shift.shift.scalar(), shift.scale.scalar())
    else {
        return Ok(Verdict::Pass);
    };
    let add = graph.node(id);
    let constant = add.input.iter().find_map(|name| graph.constant(name));
    let Some(constant) = constant.filter(|t| t.dims.len() <= 1 && is_float(t)) else {
        return Ok(Verdict::Pass);
    };
    let name = graph.fresh(&format!("{}.shift", shift.output), None);
    let shifted = floats_like(constant, &name, &shape(constant)?, &[b / a])?;
    let exact =
        scale.shift.is_zero() && one == 1.0 && a != 0.0 && doubles(&shifted)?.iter().all(|v| v.is_finite());
    if !exact || graph.sole_consumer(shift.input) != Some(id) {
        return Ok(Verdict::Pass);
    }
    let scales = vec![a; linear.input_channels()];
    let edit = linear.with_input_affine(graph, &scales, &vec![0.0; scales.len()], shift.output)?;
    let Some(mut patch) = edit else { return Ok(Verdict::Pass) };
    patch.initializer(shifted);
    patch.remove(before);
    patch.replace(id, vec![node("Add", add.name(), &[scale.input, &name], &[shift.output])]);
    Ok(Verdict::Edit(patch))
}

/// The affine node at `id`; `None` for another node; or why a BatchNormalization is none.
fn affine<'m>(graph: &Graph<'m>, id: NodeId) -> Result<Result<Option<Affine<'m>>, String>> {
    let node = graph.node(id);
    match node.op_type() {
        _ if !node.is(node.op_type()) => Ok(Ok(None)),
        "BatchNormalization" => batch_norm(graph, id).map(|found| found.map(Some)),
        "Mul" | "Div" | "Add" | "Sub" => arithmetic(graph, id).map(Ok),
        _ => Ok(Ok(None)),
    }
}

fn batch_norm<'m>(graph: &Graph<'m>, id: NodeId) -> Result<Result<Affine<'m>, String>> {
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
    let (Some(input), Some(output)) = (node.input.first(), node.output.first()) else {
        return Ok(Err("it has no input or output".to_owned()));
    };
    Ok(Ok(Affine { input, output, scale: Factor::Channel(scale), shift: Factor::Channel(shift) }))
}

fn arithmetic<'m>(graph: &Graph<'m>, id: NodeId) -> Result<Option<Affine<'m>>> {
    let node = graph.node(id);
    let [left, right] = node.input.as_slice() else { return Ok(None) };
    let constant = |name: &str| graph.constant(name).filter(|t| is_float(t));
    let (tensor, input, constant_first) = match (constant(left), constant(right)) {
        (None, Some(tensor)) => (tensor, left, false),
        (Some(tensor), None) => (tensor, right, true),
        _ => return Ok(None),
    };
    let one = Factor::Neutral(1.0);
    let zero = Factor::Neutral(0.0);
    let value = |f: fn(f64) -> f64| factor(tensor, f);
    let (scale, shift) = match (node.op_type(), constant_first) {
        ("Mul", _) => (value(|k| k)?, zero),
        ("Div", false) => (value(f64::recip)?, zero),
        ("Add", _) => (one, value(|k| k)?),
        ("Sub", false) => (one, value(|k| -k)?),
        ("Sub", true) => (Factor::Neutral(-1.0), value(|k| k)?),
        _ => return Ok(None),
    };
    let Some(output) = node.output.first() else { return Ok(None) };
    Ok(Some(Affine { input, output, scale, shift }))
}

fn factor(tensor: &TensorProto, f: fn(f64) -> f64) -> Result<Factor> {
    Ok(Factor::Broadcast(doubles(tensor)?.into_iter().map(f).collect(), shape(tensor)?))
}
