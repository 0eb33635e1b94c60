//! Affine chains into the weights of the linear operators behind or in front of them.
//!
//! A chain `y = scale · x + shift` disappears if whatever makes x can make y instead, or if everything that reads y can
//! read x instead. Between the chain and the weights there may be operators that commute with it:
//!
//! | operator | condition | because |
//! |---|---|---|
//! | `MaxPool`, `GlobalMaxPool` | scale > 0 | max(s · x + t) = s · max(x) + t; padding is −∞ |
//! | `Relu`, `LeakyRelu` | scale > 0, no shift | f(s · x) = s · f(x) |
//! | `AveragePool`, `GlobalAveragePool`, `Resize`, `ReduceMean` | no shift where padding counts as zero | weights of a mean sum to 1 |
//! | `Pad` with zeros | no shift | s · 0 = 0 |
//! | `Transpose`, `Reshape`, `Flatten` | the channels stay apart | values only move |
//! | `Concat` | along the channels, or one map for all | each input takes its channels |
//! | `x + k`, k of any shape | towards x | s · (x + k) + t = s · x + (s · k + t) |
//! | `x₁ + x₂` | towards both | s · (x₁ + x₂) + t = (s · x₁ + t) + s · x₂ |
//!
//! What cannot be absorbed whole is absorbed in part, if that leaves fewer nodes: in front of a padded convolution
//! s · x + t = s · (x + t / s) leaves an `Add`; so does a `MatMul` that has no bias.

use std::collections::BTreeMap;

use super::Verdict;
use super::affine::{Axis, Chain, Diagonal, affine, constant_operand, has_channels, known_rank};
use super::linear::Linear;
use super::passage::{Direction, passage};
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::{NodeProto, TensorProto};
use crate::patch::{Patch, node};
use crate::tensor::{doubles, floats_like, is_float, shape};

/// How many operators a map may pass: what bounds the search.
const REACH: usize = 64;

/// The rule, asked about the last node of a chain.
pub(super) fn absorb(graph: &Graph, id: NodeId) -> Result<Verdict> {
    let last = match affine(graph, id)? {
        Ok(Some(last)) if Chain::goes_on(graph, &last)? => return Ok(Verdict::Pass),
        Ok(Some(last)) => last,
        Ok(None) => return Ok(Verdict::Pass),
        Err(reason) => return Ok(Verdict::Decline(reason)),
    };
    let chain = Chain::ending_with(graph, id, last)?;
    let mut reasons = Vec::new();
    for attempt in [into_producers, into_readers, partly_into_producer, partly_into_reader] {
        match attempt(graph, &chain)? {
            Ok(patch) => return Ok(Verdict::Edit(patch)),
            Err(why) => reasons.push(why),
        }
    }
    // Taken up in part, a chain is in the way of nothing that it was not in the way of whole.
    reasons.truncate(2);
    Ok(Verdict::Decline(reasons.join("; ")))
}

type Attempt = Result<Result<Patch, String>>;

fn into_producers(graph: &Graph, chain: &Chain) -> Attempt {
    let mut plan = Plan::default();
    if let Err(reason) = plan.backward(graph, chain.input, chain.nodes[chain.nodes.len() - 1], &chain.map)? {
        return Ok(Err(reason));
    }
    plan.carry_out(graph, chain, |patch, edited| {
        let producer = graph.producer(chain.input).expect("backward found it");
        let node = edited.entry(producer).or_insert_with(|| graph.node(producer).clone());
        if let Some(output) = node.output.iter_mut().find(|output| *output == chain.input) {
            chain.output.clone_into(output);
        }
        chain.nodes.iter().for_each(|&id| patch.remove(id));
    })
}

fn into_readers(graph: &Graph, chain: &Chain) -> Attempt {
    if let Some(axis) = chain.map.axis.filter(|_| chain.may_widen)
        && !has_channels(graph, chain.input, chain.map.len(), axis)
    {
        return Ok(Err("its constant might give its input more channels".to_owned()));
    }
    let mut plan = Plan::default();
    if let Err(reason) = plan.forward(graph, chain.output, &chain.map)? {
        return Ok(Err(reason));
    }
    plan.carry_out(graph, chain, |patch, _| {
        chain.nodes.iter().for_each(|&id| patch.remove(id));
        patch.shunt(chain.output, chain.input);
    })
}

/// The scale into the operator in front, the shift into one `Add`.
fn partly_into_producer(graph: &Graph, chain: &Chain) -> Attempt {
    let first = chain.nodes[chain.nodes.len() - 1];
    let linear = graph
        .producer(chain.input)
        .filter(|_| graph.sole_consumer(chain.input) == Some(first))
        .and_then(|id| Linear::at(graph, id).ok().flatten());
    let Some(linear) = linear.filter(|_| chain.map.has_scale() || chain.nodes.len() > 1) else {
        return Ok(Err(String::new()));
    };
    let mut plan = Plan::default();
    if let Err(reason) = plan.backward(graph, chain.input, first, &chain.map.scale_only())? {
        return Ok(Err(reason));
    }
    let shift = shift_constant(graph, &linear, chain, &chain.map.shift, known_rank(graph, chain.input))?;
    let Some(shift) = shift else { return Ok(Err(String::new())) };
    plan.carry_out(graph, chain, |patch, _| leave_add(graph, chain, shift, patch))
}

/// The scale into the one operator behind, the shift into one `Add`.
fn partly_into_reader(graph: &Graph, chain: &Chain) -> Attempt {
    let linear = graph.sole_consumer(chain.output).and_then(|id| Linear::at(graph, id).ok().flatten());
    let divisible = chain.map.scale.iter().all(|&s| s != 0.0);
    let Some(linear) = linear.filter(|_| divisible && chain.nodes.len() > 1 && chain.map.has_scale()) else {
        return Ok(Err(String::new()));
    };
    let mut plan = Plan::default();
    if let Err(reason) = plan.forward(graph, chain.output, &chain.map.scale_only())? {
        return Ok(Err(reason));
    }
    let shift: Vec<f64> = chain.map.shift.iter().zip(&chain.map.scale).map(|(t, s)| t / s).collect();
    let rank = linear.input_axis(graph).1.or_else(|| known_rank(graph, chain.input));
    let Some(shift) = shift_constant(graph, &linear, chain, &shift, rank)? else {
        return Ok(Err(String::new()));
    };
    plan.carry_out(graph, chain, |patch, _| leave_add(graph, chain, shift, patch))
}

/// The shift of a chain as a constant that broadcasts along its axis; `None` where that cannot be written.
fn shift_constant(
    graph: &Graph,
    linear: &Linear,
    chain: &Chain,
    shift: &[f64],
    rank: Option<usize>,
) -> Result<Option<TensorProto>> {
    let dims = match chain.map.axis.map(|axis| axis.resolved(rank)) {
        None => vec![],
        Some(Axis::Right(from_last)) => [&[shift.len()], vec![1; from_last].as_slice()].concat(),
        Some(Axis::Left(axis)) => match rank.and_then(|rank| rank.checked_sub(1 + axis)) {
            Some(behind) => [&[shift.len()], vec![1; behind].as_slice()].concat(),
            None => return Ok(None),
        },
    };
    let name = graph.fresh(&format!("{}.shift", chain.output), None);
    let constant = floats_like(linear.weight(), &name, &dims, shift)?;
    Ok(doubles(&constant)?.iter().all(|v| v.is_finite()).then_some(constant))
}

/// Puts an `Add` in the place of the chain.
fn leave_add(graph: &Graph, chain: &Chain, shift: TensorProto, patch: &mut Patch) {
    let (last, rest) = chain.nodes.split_first().expect("a chain has nodes");
    let add = node("Add", graph.node(*last).name(), &[chain.input, shift.name()], &[chain.output]);
    rest.iter().for_each(|&id| patch.remove(id));
    patch.replace(*last, vec![add]);
    patch.initializer(shift);
}

/// What has to change for a map to be absorbed, before any weight is touched.
#[derive(Default)]
struct Plan<'m> {
    steps: BTreeMap<NodeId, Step<'m>>,
    passed: usize,
}

enum Step<'m> {
    /// The weights take a map of their output.
    FollowedBy(Linear<'m>, Diagonal),
    /// The weights take a map of their input.
    Behind(Linear<'m>, Diagonal),
    /// The constant of an addition goes through the map.
    Constant(&'m TensorProto, Diagonal, Option<usize>),
}

type Way = Result<Result<(), String>>;

impl<'m> Plan<'m> {
    /// Makes whatever makes `value`, for `reader` alone, make `map(value)` instead.
    fn backward(&mut self, graph: &Graph<'m>, value: &str, reader: NodeId, map: &Diagonal) -> Way {
        let Some(id) = graph.producer(value) else {
            return Ok(Err(format!("no linear operator makes its input '{value}'")));
        };
        if graph.sole_consumer(value) != Some(reader) {
            return Ok(Err(format!("'{value}' is read elsewhere too")));
        }
        let linear = match Linear::at(graph, id) {
            Ok(linear) => linear,
            Err(reason) => return Ok(Err(reason)),
        };
        if let Some(linear) = linear {
            return Ok(self.step_behind(graph, linear, map));
        }
        let node = graph.node(id);
        if node.is("Add") {
            return self.through_addition(graph, id, map);
        }
        match passage(graph, id, map, Direction::Backward) {
            Ok(inputs) => self.all(inputs, |plan, (input, map)| plan.backward(graph, input, id, &map)),
            Err(reason) => Ok(Err(reason)),
        }
    }

    fn step_behind(&mut self, graph: &Graph<'m>, linear: Linear<'m>, map: &Diagonal) -> Result<(), String> {
        if let Some(reason) = linear.refuses_output_shift(graph).filter(|_| map.has_shift()) {
            return Err(reason.to_owned());
        }
        let Some(map) = linear.output_map(graph, map) else {
            return Err("its constant does not vary along the channels alone".to_owned());
        };
        if !linear.has_channel_bias() {
            return Err(format!("the bias of '{}' is a matrix", linear.node.label()));
        }
        self.step(linear.id, Step::FollowedBy(linear, map))
    }

    /// Towards the inputs of an `Add`: a constant takes the map itself; of two values the first takes the shift.
    fn through_addition(&mut self, graph: &Graph<'m>, id: NodeId, map: &Diagonal) -> Way {
        let node = graph.node(id);
        if let Some((constant, input, _)) = constant_operand(graph, node) {
            let rank = known_rank(graph, &node.output[0]);
            if let Err(reason) = mapped_dims(constant, map, rank) {
                return Ok(Err(reason));
            }
            if let Err(reason) = self.step(id, Step::Constant(constant, map.clone(), rank)) {
                return Ok(Err(reason));
            }
            return self.backward(graph, input, id, &map.scale_only());
        }
        let [left, right] = node.input.as_slice() else { return Ok(Err("its Add has one input".to_owned())) };
        if left == right || !same_shape(graph, left, right) {
            return Ok(Err(format!("the inputs of Add '{}' may differ in shape", node.label())));
        }
        let inputs = vec![(left.as_str(), map.clone()), (right.as_str(), map.scale_only())];
        self.all(inputs, |plan, (input, map)| plan.backward(graph, input, id, &map))
    }

    /// Makes every reader of `value` read it without `map`.
    fn forward(&mut self, graph: &Graph<'m>, value: &str, map: &Diagonal) -> Way {
        if graph.is_observable(value) {
            return Ok(Err(format!("'{value}' is a graph output or read by a subgraph")));
        }
        let readers = graph.consumers(value);
        if readers.is_empty() {
            return Ok(Err(format!("nothing reads '{value}'")));
        }
        self.all(readers.to_vec(), |plan, id| {
            let linear = match Linear::at(graph, id) {
                Ok(linear) => linear,
                Err(reason) => return Ok(Err(reason)),
            };
            if let Some(linear) = linear {
                return Ok(plan.step_in_front(graph, linear, value, map));
            }
            match passage(graph, id, map, Direction::Forward(value)) {
                Ok(outputs) => plan.all(outputs, |plan, (output, map)| plan.forward(graph, output, &map)),
                Err(reason) => Ok(Err(reason)),
            }
        })
    }

    fn step_in_front(
        &mut self,
        graph: &Graph<'m>,
        linear: Linear<'m>,
        value: &str,
        map: &Diagonal,
    ) -> Result<(), String> {
        if linear.data() != value {
            return Err(format!("'{value}' is not the data of '{}'", linear.node.label()));
        }
        if let Some(reason) = linear.refuses_input_shift(graph).filter(|_| map.has_shift()) {
            return Err(reason.to_owned());
        }
        let Some(map) = linear.input_map(graph, map) else {
            return Err("its constant does not vary along the channels alone".to_owned());
        };
        if map.has_shift() && !linear.has_channel_bias() {
            return Err(format!("the bias of '{}' is a matrix", linear.node.label()));
        }
        self.step(linear.id, Step::Behind(linear, map))
    }

    fn step(&mut self, id: NodeId, step: Step<'m>) -> Result<(), String> {
        match self.steps.insert(id, step) {
            None => Ok(()),
            Some(_) => Err("its value comes to one operator by two ways".to_owned()),
        }
    }

    /// Asks for all of `ways`, within the reach of the search.
    fn all<T>(&mut self, ways: Vec<T>, mut ask: impl FnMut(&mut Self, T) -> Way) -> Way {
        self.passed += 1;
        if self.passed > REACH {
            return Ok(Err("too many operators are between it and the weights".to_owned()));
        }
        for way in ways {
            if let Err(reason) = ask(self, way)? {
                return Ok(Err(reason));
            }
        }
        Ok(Ok(()))
    }

    /// The patch: new weights and constants, then what `finish` does to the chain and to edited nodes.
    fn carry_out(
        self,
        graph: &Graph,
        chain: &Chain,
        finish: impl FnOnce(&mut Patch, &mut BTreeMap<NodeId, NodeProto>),
    ) -> Attempt {
        let mut patch = Patch::default();
        let mut edited = BTreeMap::new();
        let single = self.steps.len() == 1;
        for (id, step) in self.steps {
            let own = &graph.node(id).output[0];
            let name = match &step {
                // What takes the chain's place takes its name.
                Step::FollowedBy(..) if single => chain.output,
                _ => own,
            };
            let rewritten = match step {
                Step::FollowedBy(linear, map) => linear.followed_by(graph, &map, name)?,
                Step::Behind(linear, map) => linear.behind(graph, &map, name)?,
                Step::Constant(constant, map, rank) => mapped(graph, id, constant, &map, rank)?,
            };
            let Some(rewritten) = rewritten else {
                return Ok(Err("the folded weights would not be finite".to_owned()));
            };
            rewritten.constants.into_iter().for_each(|constant| patch.initializer(constant));
            edited.insert(id, rewritten.node);
        }
        finish(&mut patch, &mut edited);
        edited.into_iter().for_each(|(id, node)| patch.replace(id, vec![node]));
        Ok(Ok(patch))
    }
}

/// Whether two values surely have the same shape.
fn same_shape(graph: &Graph, left: &str, right: &str) -> bool {
    let fixed = |value| graph.dimensions(value)?.into_iter().collect::<Option<Vec<_>>>();
    fixed(left).is_some_and(|dims| fixed(right) == Some(dims))
}

/// The dimensions of `map(constant)`, and the index in them of the map's axis.
fn mapped_dims(
    constant: &TensorProto,
    map: &Diagonal,
    rank: Option<usize>,
) -> Result<(Vec<usize>, Option<usize>), String> {
    let mut dims = shape(constant).map_err(|e| e.to_string())?;
    let Some(axis) = map.axis else { return Ok((dims, None)) };
    let wrong = || format!("the constant '{}' does not line up with the channels", constant.name());
    let rank = rank.filter(|&rank| dims.len() <= rank).ok_or_else(wrong)?;
    let index = axis.index(rank).ok_or_else(wrong)?;
    dims.splice(0..0, std::iter::repeat_n(1, rank - dims.len()));
    match dims[index] {
        length if length == map.len() => Ok((dims, Some(index))),
        _ => Err(wrong()),
    }
}

/// The `Add` at `id` with its constant k replaced by s · k + t.
fn mapped(
    graph: &Graph,
    id: NodeId,
    constant: &TensorProto,
    map: &Diagonal,
    rank: Option<usize>,
) -> Result<Option<super::linear::Rewritten>> {
    let Ok((dims, index)) = mapped_dims(constant, map, rank) else { return Ok(None) };
    let inner = index.map_or(1, |index| dims[index + 1..].iter().product::<usize>().max(1));
    let channel = |i: usize| i / inner % map.len();
    let values: Vec<f64> = doubles(constant)?
        .into_iter()
        .enumerate()
        .map(|(i, k)| map.scale[channel(i)] * k + map.shift[channel(i)])
        .collect();
    let mut node = graph.node(id).clone();
    let name = graph.fresh(&format!("{}.shift", node.output[0]), Some(constant.name()));
    let new = floats_like(constant, &name, &dims, &values)?;
    for input in node.input.iter_mut().filter(|input| *input == constant.name()) {
        input.clone_from(&name);
    }
    let finite = is_float(&new) && doubles(&new)?.iter().all(|v| v.is_finite());
    Ok(finite.then(|| super::linear::Rewritten { node, constants: vec![new] }))
}
