//! The one way to edit a model: a [`Patch`] says what changes, [`apply`] changes it.

use std::collections::{BTreeMap, BTreeSet};

use foldhash::{HashMap, HashSet, HashSetExt};

use crate::error::Result;
use crate::graph::{Graph, NodeId, subgraphs};
use crate::model::Model;
use crate::onnx::{GraphProto, NodeProto, TensorProto};
use crate::tensor::DataType;

/// Changes to the main graph of one model, in terms of its node positions and value names.
#[derive(Debug, Default)]
pub struct Patch {
    /// Nodes to drop, replace or put something before: each position stands for the nodes listed.
    replace: BTreeMap<NodeId, Vec<NodeProto>>,
    insert: BTreeMap<NodeId, Vec<NodeProto>>,
    relies_on: BTreeSet<NodeId>,
    shunt: HashMap<String, String>,
    initializers: Vec<TensorProto>,
}

impl Patch {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.replace.is_empty()
            && self.insert.is_empty()
            && self.shunt.is_empty()
            && self.initializers.is_empty()
    }

    /// Drops node `id`.
    pub fn remove(&mut self, id: NodeId) {
        self.replace.insert(id, Vec::new());
    }

    /// The nodes that nothing takes the place of.
    pub fn removed(&self) -> impl Iterator<Item = NodeId> {
        self.replace.iter().filter(|(_, nodes)| nodes.is_empty()).map(|(&id, _)| id)
    }

    /// Puts `nodes` in the place of node `id`.
    pub fn replace(&mut self, id: NodeId, nodes: Vec<NodeProto>) {
        self.replace.insert(id, nodes);
    }

    /// The nodes in the place of node `id`: so far `node` itself, if nothing took it.
    pub fn place(&mut self, id: NodeId, node: &NodeProto) -> &mut Vec<NodeProto> {
        self.replace.entry(id).or_insert_with(|| vec![node.clone()])
    }

    /// Makes sure that node `id` stays as it is, with all that it reads.
    pub fn rely_on(&mut self, id: NodeId) {
        self.relies_on.insert(id);
    }

    /// Puts `node` right before the position `id`; the number of nodes means the end.
    pub fn insert(&mut self, id: NodeId, node: NodeProto) {
        self.insert.entry(id).or_default().push(node);
    }

    /// Makes every reader of `from` read `to` instead. Graph outputs keep their names: `from` must not be one.
    pub fn shunt(&mut self, from: &str, to: &str) {
        self.shunt.insert(from.to_owned(), to.to_owned());
    }

    /// Adds a constant, or replaces the model's of the same name. Adding it again changes nothing.
    pub fn initializer(&mut self, tensor: TensorProto) {
        self.initializers.push(tensor);
    }

    /// Takes over the changes of `other`, if the two touch different nodes and neither touches what the other relies on.
    pub fn absorb(&mut self, other: Patch) -> bool {
        let touched = |id| self.replace.contains_key(id) || self.relies_on.contains(id);
        if other.replace.keys().any(touched) || other.relies_on.iter().any(|id| self.replace.contains_key(id))
        {
            return false;
        }
        self.relies_on.extend(other.relies_on);
        self.replace.extend(other.replace);
        for (id, nodes) in other.insert {
            self.insert.entry(id).or_default().extend(nodes);
        }
        self.shunt.extend(other.shunt);
        self.initializers.extend(other.initializers);
        true
    }
}

/// `model` with `patch` applied, and without the initializers and value descriptions that nothing uses any more.
///
/// # Errors
/// [`crate::Error::Model`] when the model has no graph.
pub fn apply(model: Model, mut patch: Patch) -> Result<Model> {
    let mut proto = model.into_proto();
    let graph = proto.graph.get_or_insert_default();
    let old = std::mem::take(&mut graph.node);
    let end = old.len();
    graph.node.reserve(end);
    for (id, node) in old.into_iter().enumerate() {
        graph.node.extend(patch.insert.remove(&id).into_iter().flatten());
        match patch.replace.remove(&id) {
            Some(nodes) => graph.node.extend(nodes),
            None => graph.node.push(node),
        }
    }
    graph.node.extend(patch.insert.remove(&end).into_iter().flatten());
    if !patch.shunt.is_empty() {
        for input in graph.node.iter_mut().flat_map(|n| &mut n.input) {
            if let Some(source) = source(&mut patch.shunt, input) {
                *input = source;
            }
        }
    }
    let new: HashSet<&str> = patch.initializers.iter().map(TensorProto::name).collect();
    graph.initializer.retain(|t| !new.contains(t.name()));
    let mut added = HashSet::new();
    graph.initializer.extend(patch.initializers.into_iter().filter(|t| added.insert(t.name().to_owned())));
    drop_unused(graph);
    Model::from_proto(proto)
}

/// What `value` ends up as. Every step on the way then leads straight there, so that a long chain is walked once.
fn source(shunt: &mut HashMap<String, String>, value: &str) -> Option<String> {
    let mut end = shunt.get(value)?.clone();
    let mut way = vec![value.to_owned()];
    while let Some(to) = shunt.get(&end).filter(|_| way.len() < shunt.len()).cloned() {
        way.push(std::mem::replace(&mut end, to));
    }
    for step in way {
        shunt.insert(step, end.clone());
    }
    Some(end)
}

/// Drops initializers that nothing reads and descriptions of values that nothing makes.
fn drop_unused(graph: &mut GraphProto) {
    if graph.initializer.is_empty() && graph.value_info.is_empty() && graph.quantization_annotation.is_empty()
    {
        return;
    }
    let index = Graph::new(graph);
    let made_or_read = |name: &str| index.producer(name).is_some() || !index.consumers(name).is_empty();
    let used = |name: &str| made_or_read(name) || index.is_observable(name) || index.is_input(name);
    let kept: Vec<bool> = graph.initializer.iter().map(|t| used(t.name())).collect();
    let described: Vec<bool> = graph.value_info.iter().map(|v| made_or_read(v.name())).collect();
    let annotated: Vec<bool> =
        graph.quantization_annotation.iter().map(|a| made_or_read(a.tensor_name())).collect();
    let has_bodies = graph.node.iter().flat_map(|n| &n.attribute).flat_map(subgraphs).next().is_some();
    retain(&mut graph.initializer, &kept);
    retain(&mut graph.value_info, &described);
    if !has_bodies {
        retain(&mut graph.quantization_annotation, &annotated);
    }
}

/// Keeps the items whose place says so.
fn retain<T>(items: &mut Vec<T>, keep: &[bool]) {
    let mut keep = keep.iter();
    items.retain(|_| *keep.next().unwrap_or(&true));
}

/// A node of the default domain.
pub fn node(op_type: &str, name: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: Some(op_type.to_owned()),
        name: Some(name.to_owned()),
        input: inputs.iter().map(|&s| s.to_owned()).collect(),
        output: outputs.iter().map(|&s| s.to_owned()).collect(),
        ..NodeProto::default()
    }
}

/// A `Cast` from `input` to another type, named after its output.
pub fn cast_to(data_type: DataType, input: &str, output: &str) -> NodeProto {
    let mut cast = node("Cast", output, &[input], &[output]);
    cast.attribute.push(int_attribute("to", data_type as i64));
    cast
}

/// An integer attribute.
pub fn int_attribute(name: &str, value: i64) -> crate::onnx::AttributeProto {
    crate::onnx::AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(2),
        i: Some(value),
        ..Default::default()
    }
}

/// An attribute of integers.
pub fn ints_attribute(name: &str, values: Vec<i64>) -> crate::onnx::AttributeProto {
    crate::onnx::AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(7),
        ints: values,
        ..Default::default()
    }
}

/// A float attribute.
pub fn float_attribute(name: &str, value: f32) -> crate::onnx::AttributeProto {
    crate::onnx::AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(1),
        f: Some(value),
        ..Default::default()
    }
}

/// A text attribute.
pub fn text_attribute(name: &str, value: &str) -> crate::onnx::AttributeProto {
    crate::onnx::AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(3),
        s: Some(value.as_bytes().to_vec().into()),
        ..Default::default()
    }
}
