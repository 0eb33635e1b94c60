//! Quantization that a model comes with: the QuantizeLinear/DequantizeLinear pairs of whoever trained or quantized it.
//!
//! 1. [`constants`]: what is behind a DequantizeLinear and constant becomes a float constant, on its grid.
//! 2. Folding then treats the weights as it would others, and takes no value through a pair.
//! 3. [`pairs`]: the pairs of the activations leave the graph. A value has the parameters of the pair that was behind it.
//! 4. [`steps`]: the grid that weights are on is found again, whatever was folded into them.
//!
//! What is left is a float model and a [`Given`], whose scales take the place of those that calibration would suggest.

mod constants;
mod nodes;
mod pairs;
mod signs;
mod steps;

use std::collections::{BTreeMap, HashMap, HashSet};

pub use self::constants::take_constants;
pub use self::pairs::take_pairs;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::ops::PRODUCTS;
use crate::qparams::{Dtype, QuantParams, Range, Scheme};
use crate::quantize::channel_axis;
use crate::quantize::weights::{QuantizedWeights, quantize_as_given, weight_of};
use crate::tensor::{floats, shape};

/// What is said of weights whose grid cannot be kept.
const OFF_THE_GRID: &str =
    "these weights came on a grid that int8 without zero points cannot express, and are quantized anew";

/// What is said of activations whose scales serve nothing.
const NOT_USED: &str =
    "these are computed in float, or together with what reads them, without their given scales";

/// What is said of weights that came in few bits.
const FEW_BITS: &str = "codes of few bits are written as whole multiples, on a scale as much finer, for the sake of the biases, in";

/// What is said of weights of −128 for runtimes that have no such code.
const BEYOND: &str = "weights of -128 steps become -127, the smallest code there is, in";

/// What is said of kept weights without room for pairs of products.
const CROWDED: &str = "ONNX Runtime adds pairs of products in 16 bits on x86 processors without VNNI, for which these weights \
     leave no room: results may saturate there, and only there, in";

/// Names that a note lists.
const LISTED: usize = 3;

/// Parameters that a model came with.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// Of activations.
    activations: BTreeMap<String, QuantParams>,
    /// Of constants, by name, as they were before anything was folded into them.
    constants: HashMap<String, QuantParams>,
    /// Of the weights of nodes, by label, likewise.
    layers: HashMap<String, QuantParams>,
    /// What could not be taken, in words.
    notes: Vec<String>,
    /// Whether the runtime that this is for takes no −128.
    mirrored: bool,
}

/// Weights that are on no grid of int8 without zero points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OffTheGrid;

/// The numbers that codes of −128…127 stand for in each row of some weights.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Steps {
    /// Of each row; 0 for one that has only zeros and no scale of its own.
    pub scale: Vec<f32>,
    /// Whether there was one scale for all.
    pub per_tensor: bool,
}

impl Given {
    /// Whether the model came without.
    pub fn is_empty(&self) -> bool {
        self.activations.is_empty() && self.constants.is_empty()
    }

    /// How many activations and constants have parameters.
    pub fn counts(&self) -> (usize, usize) {
        (self.activations.len(), self.constants.len())
    }

    /// The parameters of an activation, as they were given.
    pub fn get(&self, value: &str) -> Option<&QuantParams> {
        self.activations.get(value)
    }

    /// The same grid in the integers of a scheme.
    pub(crate) fn in_scheme(&self, value: &str, scheme: Scheme) -> Option<QuantParams> {
        self.get(value).map(|params| in_scheme(params, scheme))
    }

    /// The parameters of a constant operand with one scale, in the integers of a scheme.
    pub(crate) fn constant(&self, name: &str, scheme: Scheme) -> Option<QuantParams> {
        let known = self.constants.get(name).filter(|params| params.axis.is_none())?;
        matches!(known.dtype, Dtype::Int8 | Dtype::Uint8).then(|| in_scheme(known, scheme))
    }

    /// What a runtime without zero points, or 16 bits, can take of it, and what it cannot, in words.
    pub(crate) fn limited(&self, runtime: &str, symmetric: bool) -> Self {
        let (mut taken, mut wide, mut shifted) = (self.clone(), Vec::new(), Vec::new());
        for (value, params) in &self.activations {
            if !matches!(params.dtype, Dtype::Int8 | Dtype::Uint8) {
                taken.activations.remove(value);
                wide.push(value.as_str());
            } else if symmetric {
                if params.zero_point[0] != middle(params.dtype) {
                    shifted.push(value.as_str());
                }
                taken.activations.insert(value.clone(), around_zero(params));
            }
        }
        let note = |values: &[&str], what: &str| {
            (!values.is_empty()).then(|| format!("{runtime} {what}: {}", listed(values)))
        };
        taken.mirrored = symmetric;
        taken.notes.extend(note(&wide, "has no 16-bit activations; their given scales are not used"));
        taken.notes.extend(note(
            &shifted,
            "has no zero points; a symmetric scale that covers the range stands for the given one",
        ));
        taken
    }

    /// What is to be said of scales that are not kept, given the activations whose scales are.
    pub(crate) fn remarks(&self, graph: &Graph, used: impl Fn(&str) -> bool) -> Vec<String> {
        let ids = 0..graph.nodes().len();
        let made = graph.nodes().iter().flat_map(|node| &node.output).map(String::as_str);
        let mut served: HashSet<&str> = made.chain(graph.inputs()).filter(|value| used(value)).collect();
        // What is moved is on the scale of what it is moved from.
        for id in ids.clone().chain(ids.clone().rev()) {
            let Some((input, outputs)) = moved(graph, id) else { continue };
            if served.contains(input) || outputs.iter().any(|output| served.contains(output.as_str())) {
                served.extend(outputs.iter().map(String::as_str).chain([input]));
            }
        }
        let unused = self.activations.keys().map(String::as_str).filter(|value| !served.contains(value));
        let grids = ids.filter_map(|id| Some((id, self.weights(graph, id)?)));
        let (kept, anew): (Vec<_>, Vec<_>) = grids.partition(|(_, grid)| grid.is_ok());
        let kept: Vec<_> = kept.into_iter().filter_map(|(id, grid)| Some((id, grid.ok()?))).collect();
        let anew: Vec<&str> = anew.iter().map(|(id, _)| graph.node(*id).label()).collect();
        let note =
            |names: &[&str], what: &str| (!names.is_empty()).then(|| format!("{what}: {}", listed(names)));
        let found = [
            note(&unused.collect::<Vec<_>>(), NOT_USED),
            note(&anew, OFF_THE_GRID),
            note(&self.beyond(graph, &kept), BEYOND),
            note(&self.of_few_bits(graph, &kept), FEW_BITS),
        ];
        self.notes.iter().cloned().chain(found.into_iter().flatten()).collect()
    }

    /// Those of the nodes with kept weights that have some of −128 steps, where there is no such code.
    fn beyond<'m>(&self, graph: &Graph<'m>, kept: &[(NodeId, QuantParams)]) -> Vec<&'m str> {
        let ends_there = |id: NodeId, params: &QuantParams| {
            let quantized = quantize_as_given(graph, id, params, -128);
            quantized.is_ok_and(|quantized| quantized.values.contains(&(i8::MIN as u8)))
        };
        let found = kept.iter().filter(|(id, params)| self.mirrored && ends_there(*id, params));
        found.map(|(id, _)| graph.node(*id).label()).collect()
    }

    /// Those of the nodes with kept weights whose weights came in few bits.
    fn of_few_bits<'m>(&self, graph: &Graph<'m>, kept: &[(NodeId, QuantParams)]) -> Vec<&'m str> {
        let is_finer = |(id, found): &&(NodeId, QuantParams)| {
            let Some(given) = self.layers.get(graph.node(*id).label()) else { return false };
            given.scale.len() == found.scale.len()
                && found.scale.iter().zip(&given.scale).all(|(f, g)| 2.0 * f < *g)
        };
        kept.iter().filter(is_finer).map(|(id, _)| graph.node(*id).label()).collect()
    }

    /// The smallest code that weights may have.
    pub(crate) fn lowest(&self) -> i32 {
        if self.mirrored { -127 } else { -128 }
    }

    /// The grid of the weights of node `id`, if one was given: int8 without zero points; or an error if that cannot be kept.
    pub(crate) fn weights(&self, graph: &Graph, id: NodeId) -> Option<Result<QuantParams, OffTheGrid>> {
        if self.is_empty() || !PRODUCTS.iter().any(|op_type| graph.node(id).is(op_type)) {
            return None;
        }
        let (node, axis) = (graph.node(id), channel_axis(graph, id));
        let weight = weight_of(graph, id).ok()?;
        let (values, dims) = (floats(weight).ok()?, shape(weight).ok()?);
        if dims.len() <= axis {
            return None;
        }
        let rows = rows(&values, &dims, axis);
        let steps = match self.steps(node.label(), &rows)? {
            Ok(steps) => steps,
            Err(off) => return Some(Err(off)),
        };
        let single = steps.per_tensor.then(|| steps.scale.iter().copied().find(|&s| s > 0.0).unwrap_or(1.0));
        let (scale, axis) = match single {
            Some(scale) => (vec![scale], None),
            None => (steps.scale, Some(axis)),
        };
        Some(Ok(QuantParams { zero_point: vec![0; scale.len()], scale, axis, dtype: Dtype::Int8 }))
    }

    /// The grid of a table whose rows are looked up: int8 without zero points.
    pub(crate) fn rows(&self, graph: &Graph, table: &str) -> Option<QuantParams> {
        let params = self.constants.get(table).filter(|params| params.axis.is_none_or(|axis| axis == 0))?;
        let constant = graph.constant(table)?;
        let dims = shape(constant).ok().filter(|dims| !dims.is_empty())?;
        let rows = rows(&floats(constant).ok()?, &dims, 0);
        let Steps { scale, .. } = as_given(params, &rows)?;
        Some(QuantParams { zero_point: vec![0; scale.len()], scale, axis: Some(0), dtype: Dtype::Int8 })
    }

    /// The step of each row of the weights of the node with this label, as [`weights`](Self::weights).
    pub(crate) fn steps(&self, label: &str, rows: &[Vec<f32>]) -> Option<Result<Steps, OffTheGrid>> {
        let Some(given) = self.layers.get(label) else {
            return unmarked(rows).filter(|_| !self.activations.is_empty()).map(Ok);
        };
        let found = as_given(given, rows).or_else(|| {
            let scale = rows.iter().map(|row| steps::step(row)).collect::<Option<Vec<f32>>>()?;
            Some(Steps { scale, per_tensor: false })
        });
        Some(found.ok_or(OffTheGrid))
    }

    /// Takes over the parameters of values next to which there is nothing but what moves values: it leaves them on their
    /// grid, and quantizing first and moving then is the same.
    fn spread(&mut self, graph: &Graph) {
        let ids = || 0..graph.nodes().len();
        for id in ids() {
            if let Some((input, outputs)) = moved(graph, id)
                && let Some(params) = self.get(input).cloned()
            {
                for output in outputs {
                    self.activations.entry(output.clone()).or_insert_with(|| params.clone());
                }
            }
        }
        for id in ids().rev() {
            let joins = graph.node(id).is("Concat");
            let Some(params) = graph.node(id).output.first().and_then(|output| self.get(output)).cloned()
            else {
                continue;
            };
            let inputs = match moved(graph, id) {
                Some((input, outputs)) if outputs.iter().all(|o| self.get(o) == Some(&params)) => vec![input],
                None if joins => graph.node(id).input.iter().map(String::as_str).collect(),
                _ => continue,
            };
            for input in inputs {
                if graph.sole_consumer(input) == Some(id) && graph.initializer(input).is_none() {
                    self.activations.entry(input.to_owned()).or_insert_with(|| params.clone());
                }
            }
        }
    }
}

/// Operators that move, select or repeat values.
const MOVES: &[&str] = &[
    "DepthToSpace",
    "Dropout",
    "Expand",
    "Flatten",
    "Identity",
    "MaxPool",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

/// What node `id` moves, and where to.
fn moved<'m>(graph: &Graph<'m>, id: NodeId) -> Option<(&'m str, &'m [String])> {
    let node = graph.node(id);
    let input = node.input_at(0).filter(|_| MOVES.iter().any(|op_type| node.is(op_type)))?;
    graph.initializer(input).is_none().then_some((input, &node.output))
}

/// The steps of rows that are on a grid although nothing says so: some exporters compute the pairs of weights beforehand.
/// No four floats are by chance.
fn unmarked(rows: &[Vec<f32>]) -> Option<Steps> {
    let clear = |row: &Vec<f32>| matches!(row.iter().filter(|w| **w != 0.0).count(), 0 | 4..);
    let all = rows.iter().all(clear) && rows.iter().flatten().any(|w| *w != 0.0);
    let scale = all.then(|| rows.iter().map(|row| steps::step(row)).collect::<Option<Vec<f32>>>())??;
    Some(Steps { scale, per_tensor: false })
}

/// The steps of the parameters themselves, if all rows are on them.
fn as_given(params: &QuantParams, rows: &[Vec<f32>]) -> Option<Steps> {
    let scale = match params.scale.as_slice() {
        &[one] => vec![one; rows.len()],
        each if each.len() == rows.len() => each.to_vec(),
        _ => return None,
    };
    let fits = rows.iter().zip(&scale).all(|(row, &scale)| steps::is_on_grid(row, scale));
    let finer =
        rows.iter().zip(&scale).map(|(row, &scale)| steps::finer(row, scale)).fold(f32::INFINITY, f32::min);
    // Rows of zeros have no say.
    let finer = if finer.is_finite() { finer } else { 1.0 };
    let scale = scale.into_iter().map(|scale| scale / finer).collect();
    fits.then_some(Steps { scale, per_tensor: params.axis.is_none() })
}

/// The values of each channel along `axis`.
fn rows(values: &[f32], dims: &[usize], axis: usize) -> Vec<Vec<f32>> {
    let count = dims[axis];
    let inner = dims[axis + 1..].iter().product::<usize>().max(1);
    let mut rows = vec![Vec::with_capacity(values.len() / count.max(1)); count];
    for (at, run) in values.chunks(inner).enumerate() {
        rows[at % count.max(1)].extend_from_slice(run);
    }
    rows
}

/// The zero point in the middle of the integers.
fn middle(dtype: Dtype) -> i32 {
    (dtype.qmin() + dtype.qmax() + 1) / 2
}

/// The same grid in the integers of a scheme; 16 bits stay what they are.
fn in_scheme(params: &QuantParams, scheme: Scheme) -> QuantParams {
    let dtype = match (params.dtype, scheme) {
        (Dtype::Int8 | Dtype::Uint8, Scheme::Asymmetric) => Dtype::Uint8,
        (Dtype::Int8 | Dtype::Uint8, Scheme::Symmetric) => Dtype::Int8,
        (dtype, _) => dtype,
    };
    let shift = dtype.qmin() - params.dtype.qmin();
    let zero_point = params.zero_point.iter().map(|zero| zero + shift).collect();
    QuantParams { zero_point, dtype, ..params.clone() }
}

/// Int8 without a zero point: the same scale if there was none, or the one that covers the range.
fn around_zero(params: &QuantParams) -> QuantParams {
    let zero = params.zero_point[0];
    if zero == middle(params.dtype) {
        return QuantParams { zero_point: vec![0], dtype: Dtype::Int8, ..params.clone() };
    }
    let steps = (params.dtype.qmax() - zero).max(zero - params.dtype.qmin());
    QuantParams::symmetric(Range::symmetric(steps as f32 * params.scale[0]))
}

/// What is to be said of kept weights that have no room for pairs of products, given those of each node.
pub(crate) fn crowded(graph: &Graph, weights: &HashMap<NodeId, QuantizedWeights>) -> Option<String> {
    let mut found: Vec<NodeId> = weights.keys().copied().filter(|id| weights[id].crowded).collect();
    found.sort_unstable();
    let labels: Vec<&str> = found.into_iter().map(|id| graph.node(id).label()).collect();
    (!labels.is_empty()).then(|| format!("{CROWDED}: {}", listed(&labels)))
}

/// Some names, for a note.
fn listed(names: &[&str]) -> String {
    let first: Vec<String> = names.iter().take(LISTED).map(|name| format!("'{name}'")).collect();
    let more = names.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    first.join(", ") + &more
}

/// Labels of nodes with weights that `value` reaches through nothing but views of constants.
fn weighted_readers(graph: &Graph, value: &str, found: &mut HashSet<NodeId>) {
    for &id in graph.consumers(value) {
        let node = graph.node(id);
        if PRODUCTS.iter().any(|op_type| node.is(op_type)) {
            if node.input_at(1) == Some(value) {
                found.insert(id);
            }
        } else if let Some((input, outputs)) = moved(graph, id).filter(|(input, _)| *input == value) {
            outputs.iter().filter(|o| *o != input).for_each(|o| weighted_readers(graph, o, found));
        }
    }
}
