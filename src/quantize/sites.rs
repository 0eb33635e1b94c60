//! The places of a graph that could run on integers.

use std::collections::HashMap;

use crate::composites::{Composite, Function, composites};
use crate::fold::activations::clip_bounds;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::ops::{OPS, Op, Role, op, weight_dims, without_kernel};
use crate::tensor::is_float;

/// An operator with an integer kernel, together with the clip that its saturation replaces.
#[derive(Debug)]
pub(crate) struct Site<'m> {
    /// The operator's node.
    pub id: NodeId,
    /// What its kernel can do.
    pub op: &'static Op,
    /// Activations it reads, constants left out.
    pub inputs: Vec<&'m str>,
    /// Values it makes, seen behind the clip if there is one.
    pub outputs: Vec<&'m str>,
    /// The `Relu` or `Clip` right behind it.
    pub clip: Option<NodeId>,
}

/// All sites that an int8 multiplication can be reached from, and why operators with weights are none.
pub(crate) struct Sites<'m> {
    /// In the order of the nodes.
    pub all: Vec<Site<'m>>,
    by_node: HashMap<NodeId, usize>,
    /// Operators with weights that no integer kernel takes.
    pub rejected: Vec<(NodeId, String)>,
    /// Pairs that are one function: both run on integers or none.
    pub together: Vec<(usize, usize)>,
}

impl<'m> Sites<'m> {
    /// Finds them.
    pub fn find(graph: &Graph<'m>) -> Self {
        let (mut all, mut rejected) = (Vec::new(), Vec::new());
        for id in 0..graph.nodes().len() {
            match site(graph, id) {
                Some(Ok(site)) => all.push(site),
                Some(Err(reason)) => rejected.push((id, reason)),
                None => {}
            }
        }
        let mut sites = Self::indexed(all, rejected);
        let useful = sites.near_a_multiplication();
        let mut useful = useful.into_iter();
        sites.all.retain(|_| useful.next().unwrap_or(false));
        let mut sites = Self::indexed(sites.all, sites.rejected);
        let gates = composites(graph).filter(|found| found.function == Function::Silu);
        let both =
            |found: Composite| found.nodes.iter().map(|&id| sites.of_node(id)).collect::<Option<Vec<_>>>();
        let pairs = gates.filter_map(both).filter_map(|pair| <[usize; 2]>::try_from(pair).ok());
        sites.together = pairs.map(|[gate, product]| (gate, product)).collect();
        sites
    }

    fn indexed(all: Vec<Site<'m>>, rejected: Vec<(NodeId, String)>) -> Self {
        let nodes = |(i, site): (usize, &Site)| [Some((site.id, i)), site.clip.map(|clip| (clip, i))];
        let by_node = all.iter().enumerate().flat_map(nodes).flatten().collect();
        Self { all, by_node, rejected, together: Vec::new() }
    }

    /// The site that node `id` belongs to.
    pub fn of_node(&self, id: NodeId) -> Option<usize> {
        self.by_node.get(&id).copied()
    }

    /// The site that makes `value`.
    pub fn producer(&self, graph: &Graph, value: &str) -> Option<usize> {
        graph.producer(value).and_then(|id| self.of_node(id))
    }

    /// Whether each site is connected, through sites alone, to one that multiplies by weights.
    fn near_a_multiplication(&self) -> Vec<bool> {
        let mut neighbours: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, site) in self.all.iter().enumerate() {
            for value in site.inputs.iter().chain(&site.outputs) {
                neighbours.entry(value).or_default().push(i);
            }
        }
        let mut near = vec![false; self.all.len()];
        let mut open: Vec<usize> =
            (0..self.all.len()).filter(|&i| self.all[i].op.role == Role::Linear).collect();
        while let Some(i) = open.pop() {
            if std::mem::replace(&mut near[i], true) {
                continue;
            }
            let site = &self.all[i];
            open.extend(site.inputs.iter().chain(&site.outputs).flat_map(|value| &neighbours[value]));
        }
        near
    }

    /// Every value that may be quantized, in the order of the graph, each once.
    pub fn values(&self) -> Vec<&'m str> {
        let mut seen = std::collections::HashSet::new();
        let values = self.all.iter().flat_map(|site| site.inputs.iter().chain(&site.outputs));
        values.copied().filter(|value| seen.insert(*value)).collect()
    }
}

/// The site at node `id`, the reason why an operator with weights is none, or `None`.
fn site<'m>(graph: &Graph<'m>, id: NodeId) -> Option<Result<Site<'m>, String>> {
    let node = graph.node(id);
    if let Some(reason) = without_kernel(node) {
        return Some(Err(reason.to_owned()));
    }
    if graph.is_indivisible(id) {
        return None;
    }
    let Some(op) = op(graph, id) else {
        let heavy = OPS.iter().any(|op| op.role == Role::Linear && node.is(op.op_type));
        return heavy.then(|| Err("its attributes are not among those of the int8 kernel".to_owned()));
    };
    if op.role == Role::Clip {
        return None;
    }
    if let Some(Err(reason)) = op.weight.map(|weight| constant_weights(graph, id, weight)) {
        return Some(Err(reason));
    }
    let (constants, inputs): (Vec<_>, Vec<_>) =
        op.activation_inputs(node).partition(|name| graph.initializer(name).is_some());
    let usable = |name: &&str| graph.constant(name).is_some_and(is_float);
    if inputs.is_empty() || !constants.iter().all(usable) {
        return None;
    }
    let clip = fused_clip(graph, id, op);
    let outputs = &graph.node(clip.unwrap_or(id)).output;
    Some(Ok(Site { id, op, inputs, outputs: outputs.iter().map(String::as_str).collect(), clip }))
}

pub(crate) fn constant_weights(graph: &Graph, id: NodeId, index: usize) -> Result<(), String> {
    let node = graph.node(id);
    let name = node.input_at(index).unwrap_or("");
    let Some(weight) = graph.constant(name) else {
        return Err(match graph.initializer(name) {
            Some(_) => format!("its weights '{name}' are a graph input that callers can override"),
            None => "both of its inputs are activations".to_owned(),
        });
    };
    if weight.data_type() != crate::tensor::DataType::Float as i32 {
        return Err(format!("its weights '{name}' are not float32"));
    }
    let dims = weight_dims(node, weight)?;
    let Some(bias) = node.input_at(2) else { return Ok(()) };
    let groups = if node.is("ConvTranspose") { node.int("group", 1) } else { 1 };
    let channels = dims[super::weights::channel_axis(graph, id)] as i64 * groups;
    let vector = |dims: &[i64]| {
        dims.iter().rev().skip(1).all(|&d| d == 1) && dims.last().is_none_or(|&d| d == 1 || d == channels)
    };
    match graph.constant(bias) {
        Some(bias) if vector(&bias.dims) => Ok(()),
        Some(_) => Err(format!("its bias '{bias}' is not a vector over the channels")),
        None => Err("its bias is not a constant".to_owned()),
    }
}

/// The clip behind `id` that saturation can replace: the only reader of the result, with the lower bound 0.
///
/// Another lower bound would need integers that end exactly there, which a rounded zero point does not grant.
fn fused_clip(graph: &Graph, id: NodeId, producer: &Op) -> Option<NodeId> {
    if !matches!(producer.role, Role::Linear | Role::Arithmetic) {
        return None;
    }
    let output = graph.node(id).output.first()?;
    let clip = graph.sole_consumer(output)?;
    let node = graph.node(clip);
    let from_zero = || clip_bounds(graph, clip).is_some_and(|[min, max]| min == 0.0 && max > 0.0);
    let fuses = node.is("Relu") || node.is("Clip") && from_zero();
    (fuses && node.input_at(0) == Some(output.as_str())).then_some(clip)
}
