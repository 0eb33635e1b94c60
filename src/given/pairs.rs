//! The pairs of activations: taken out of the graph, their parameters kept.
//!
//! `y = DequantizeLinear(QuantizeLinear(x))` with one scale becomes x, on the grid of the pair. If x is on another grid
//! already, or y is seen from outside, y is a copy of x. A Clip of the integers between the two, that saturates at less
//! than their type, becomes a Clip of x.

use std::collections::{BTreeSet, HashMap};

use super::Given;
use super::nodes::{Kind, Params, bounds, is};
use super::signs::is_positive;
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::model::Model;
use crate::onnx::NodeProto;
use crate::patch::{Patch, apply, node};
use crate::qparams::{Dtype, QuantParams};
use crate::tensor::{DataType, tensor};

/// A pair.
struct Pair<'m> {
    /// What is quantized.
    source: &'m str,
    params: QuantParams,
    /// The integers in use, if they are fewer than those of the type.
    bounds: Option<(i32, i32)>,
    /// The nodes in front of the DequantizeLinear.
    before: Vec<NodeId>,
}

/// `model` without the pairs of its activations, and their parameters beside those `given` of constants.
///
/// # Errors
/// [`crate::Error::Model`] when the model has no graph.
pub fn take_pairs(model: &Model, mut given: Given) -> Result<(Model, Given)> {
    let graph = Graph::of(model);
    let mut taker =
        Taker { graph: &graph, patch: Patch::default(), given: &mut given, moved: HashMap::new() };
    let (mut taken, mut before, mut left) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for (id, node) in graph.nodes().iter().enumerate() {
        if !is(node, "DequantizeLinear") {
            continue;
        }
        match pair(&graph, id) {
            Ok(pair) => {
                taken.insert(id);
                before.extend(pair.before.iter().copied());
                taker.take(id, pair);
            }
            Err(reason) => left.push(format!("'{}' stays as it is: {reason}", node.label())),
        }
    }
    // From the last to the first, so that what only taken nodes read goes as well.
    for &id in before.iter().rev() {
        let output = &graph.node(id).output[0];
        let gone = graph.consumers(output).iter().all(|reader| taken.contains(reader));
        if gone && !graph.is_observable(output) {
            taken.insert(id);
            taker.patch.remove(id);
        }
    }
    let model = apply(model.clone(), taker.patch)?;
    given.notes.extend(left);
    given.spread(&Graph::of(&model));
    Ok((model, given))
}

struct Taker<'g, 'm> {
    graph: &'g Graph<'m>,
    patch: Patch,
    given: &'g mut Given,
    /// Values behind a pair that is gone, and what is read instead.
    moved: HashMap<&'m str, &'m str>,
}

impl<'m> Taker<'_, 'm> {
    fn take(&mut self, id: NodeId, pair: Pair<'m>) {
        let output = self.graph.node(id).output[0].as_str();
        let source = self.moved.get(pair.source).copied().unwrap_or(pair.source);
        let other = self.given.get(source).is_some_and(|known| *known != pair.params);
        if let Some(bounds) = pair.bounds {
            let clip = self.clip(id, source, &pair.params, bounds);
            self.patch.replace(id, vec![clip]);
        } else if !other && self.graph.is_output(output) && self.renames(source, output) {
            self.patch.remove(id);
            self.patch.shunt(source, output);
            self.moved.insert(output, output);
            self.moved.insert(source, output);
        } else if other || self.graph.is_observable(output) {
            let label = self.graph.node(id).label();
            self.patch.replace(id, vec![node("Identity", label, &[source], &[output])]);
            if !other {
                self.given.activations.insert(source.to_owned(), pair.params);
                return;
            }
        } else {
            self.patch.remove(id);
            self.patch.shunt(output, source);
            self.moved.insert(output, source);
            self.given.activations.insert(source.to_owned(), pair.params);
            return;
        }
        self.given.activations.insert(output.to_owned(), pair.params);
    }

    /// Has the node that makes `source` make `output` instead, if nothing but nodes reads it.
    fn renames(&mut self, source: &str, output: &str) -> bool {
        let graph = self.graph;
        let Some(id) = graph.producer(source).filter(|_| !graph.is_observable(source)) else { return false };
        if self.given.get(source).is_some() {
            // The readers of another pair were sent there.
            return false;
        }
        for made in self.patch.place(id, graph.node(id)) {
            for name in made.output.iter_mut().filter(|name| *name == source) {
                output.clone_into(name);
            }
        }
        true
    }

    /// The Clip in the place of one of integers.
    fn clip(
        &mut self,
        id: NodeId,
        source: &str,
        params: &QuantParams,
        (least, most): (i32, i32),
    ) -> NodeProto {
        let (original, output) = (self.graph.node(id), &self.graph.node(id).output[0]);
        let real = |q: i32| (q - params.zero_point[0]) as f32 * params.scale[0];
        let mut bound = |what: &str, q: i32| {
            let name = self.graph.fresh(&format!("{output}_{what}"), None);
            self.patch.initializer(tensor(&name, &[], &[real(q)]));
            name
        };
        let (min, max) = (bound("min", least), bound("max", most));
        node("Clip", original.label(), &[source, &min, &max], &[output])
    }
}

/// The pair that ends at DequantizeLinear `id`, or why there is none.
fn pair<'m>(graph: &Graph<'m>, id: NodeId) -> Result<Pair<'m>, String> {
    let behind = Params::of(graph, id).ok_or("its scale or zero point is not a constant of a known type")?;
    let (mut before, mut clips) = (Vec::new(), Vec::new());
    let mut value = graph.node(id).input_at(0).unwrap_or("");
    let quantize = loop {
        let producer = graph.producer(value).ok_or("there is no QuantizeLinear in front of it")?;
        let node = graph.node(producer);
        before.push(producer);
        if is(node, "QuantizeLinear") {
            break producer;
        }
        if !node.is("Clip") && !node.is("Identity") {
            return Err(format!("there is '{}' between the two, on integers", node.label()));
        }
        clips.extend(node.is("Clip").then_some(producer));
        value = node.input_at(0).unwrap_or("");
    };
    let front =
        Params::of(graph, quantize).ok_or("the scale in front of it is not a constant of a known type")?;
    let kind = front.kind.filter(|kind| kind.dtype != Dtype::Int32).ok_or("its type is not known")?;
    if !front.agree(&behind) {
        return Err(format!("its scale is not that of '{}'", graph.node(quantize).label()));
    }
    let params = front.params(0, kind).ok_or("an activation can have one scale only")?;
    let source = graph.node(quantize).input_at(0).unwrap_or("");
    if graph.element_type(source).is_some_and(|t| t != 0 && t != DataType::Float as i32) {
        return Err(format!("'{source}' is not float32"));
    }
    let bounds = integers(graph, kind, &clips).ok_or("the integers are clipped to what is not constant")?;
    let bounds = bounds.filter(|&bounds| saturates(&params, bounds));
    let rectifies = params.zero_point[0] == kind.qmin && !is_positive(graph, source);
    let bounds = bounds.or_else(|| rectifies.then_some((kind.qmin, kind.qmax)));
    Ok(Pair { source, bounds, params, before })
}

/// The integers that these clips, and a type narrower than those of a byte, leave.
fn integers(graph: &Graph, kind: Kind, clips: &[NodeId]) -> Option<Option<(i32, i32)>> {
    let mut range = (kind.qmin, kind.qmax);
    for &clip in clips {
        let (least, most) = bounds(graph, clip, kind)?;
        range = (range.0.max(least), range.1.min(most));
    }
    Some((!clips.is_empty() || !kind.is_whole()).then_some(range))
}

/// Whether these integers are fewer than those of a byte; not because the smallest of signed ones is left out, so that they
/// mirror each other: everything here does that.
fn saturates(params: &QuantParams, (least, most): (i32, i32)) -> bool {
    let mirrored = params.dtype == Dtype::Int8 && least == -127;
    let whole = (params.dtype.qmin(), params.dtype.qmax());
    most < whole.1 || least > whole.0 && !mirrored
}
