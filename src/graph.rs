//! A read-only index of a graph, and the guards every edit asks.

mod check;
mod joined;
mod values;

use std::sync::OnceLock;

use foldhash::HashSet;

use self::values::{Value, Values};
use crate::composites;
use crate::model::{Model, is_default_domain};
use crate::onnx::{AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto};

/// Position of a node in its graph.
pub type NodeId = usize;

/// Who makes and who reads each value of one graph.
#[derive(Debug)]
pub struct Graph<'m> {
    proto: &'m GraphProto,
    values: Values<'m>,
    opset: Option<i64>,
    indivisible: OnceLock<HashSet<NodeId>>,
}

impl<'m> Graph<'m> {
    /// Indexes `proto` in one walk.
    pub fn new(proto: &'m GraphProto) -> Self {
        Self { proto, values: Values::of(proto), opset: None, indivisible: OnceLock::new() }
    }

    /// Indexes the main graph of `model`, knowing its operator set.
    pub fn of(model: &'m Model) -> Self {
        Self { opset: model.opset(), ..Self::new(model.graph()) }
    }

    /// Whether the model surely has the standard operators of `version`.
    pub fn has_opset(&self, version: i64) -> bool {
        self.opset.is_some_and(|opset| opset >= version)
    }

    /// Whether node `id` is a part of a function that must not be taken apart, see [`composites::indivisible`].
    pub fn is_indivisible(&self, id: NodeId) -> bool {
        self.indivisible.get_or_init(|| composites::indivisible(self)).contains(&id)
    }

    /// All nodes, in the order of the file.
    pub fn nodes(&self) -> &'m [NodeProto] {
        &self.proto.node
    }

    /// The node `id`.
    pub fn node(&self, id: NodeId) -> &'m NodeProto {
        &self.proto.node[id]
    }

    /// The names of the inputs, in the order of the file.
    pub fn inputs(&self) -> impl Iterator<Item = &'m str> {
        self.proto.input.iter().map(ValueInfoProto::name)
    }

    /// The node that makes `value`.
    pub fn producer(&self, value: &str) -> Option<NodeId> {
        self.values.get(value)?.producer
    }

    /// The nodes that read `value`, once for each input that does.
    pub fn consumers(&self, value: &str) -> &[NodeId] {
        self.values.get(value).map_or(&[], |value| self.values.readers(value))
    }

    /// The constant behind `value`: an initializer that a caller cannot override.
    pub fn constant(&self, value: &str) -> Option<&'m TensorProto> {
        let value = self.values.get(value)?;
        value.initializer.filter(|_| !value.is_input)
    }

    /// All constants, in the order of the file.
    pub fn constants(&self) -> impl Iterator<Item = &'m TensorProto> {
        let indexed = |t: &&TensorProto| self.constant(t.name()).is_some_and(|known| std::ptr::eq(known, *t));
        self.proto.initializer.iter().filter(indexed)
    }

    /// The initializer `value`, overridable or not.
    pub fn initializer(&self, value: &str) -> Option<&'m TensorProto> {
        self.values.get(value)?.initializer
    }

    /// Names of the outputs, in the order of the file.
    pub fn outputs(&self) -> impl Iterator<Item = &'m str> {
        self.proto.output.iter().map(ValueInfoProto::name)
    }

    /// For each output, for each kind of values in it, those that it is joined from; itself where it is of one kind.
    pub fn kinds_of_outputs(&self) -> Vec<Vec<Vec<&'m str>>> {
        self.outputs().map(|output| joined::kinds(self, output)).collect()
    }

    /// Whether `value` is an input of the graph.
    pub fn is_input(&self, value: &str) -> bool {
        self.values.get(value).is_some_and(|value| value.is_input)
    }

    /// Whether `value` is an output of the graph.
    pub fn is_output(&self, value: &str) -> bool {
        self.values.get(value).is_some_and(|value| value.is_output)
    }

    /// Whether a body of an `If`, `Loop` or `Scan` reads `value`.
    pub fn is_captured(&self, value: &str) -> bool {
        self.values.get(value).is_some_and(|value| value.is_captured)
    }

    /// Whether `value` is seen from outside the node list: by the caller or by a subgraph.
    pub fn is_observable(&self, value: &str) -> bool {
        self.values.get(value).is_some_and(Value::is_observable)
    }

    /// The one reader of `value`, if nothing else, inside or outside, sees it.
    pub fn sole_consumer(&self, value: &str) -> Option<NodeId> {
        let value = self.values.get(value)?;
        match self.values.readers(value) {
            &[one] if !value.is_observable() => Some(one),
            _ => None,
        }
    }

    /// Whether every input has a fixed shape.
    pub fn has_static_inputs(&self) -> bool {
        let fixed = |input: &ValueInfoProto| {
            let tensor = input.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
            let shape = tensor.and_then(|t| t.shape.as_ref());
            shape.is_some_and(|s| s.dim.iter().all(|d| d.dim_value.is_some_and(|v| v > 0)))
        };
        self.proto.input.iter().all(fixed)
    }

    /// `name`, or `name` with something behind it if another value than `own` is called so.
    pub fn fresh(&self, name: &str, own: Option<&str>) -> String {
        let taken = |name: &str| {
            let known = self.values.get(name).is_some_and(|value| {
                value.producer.is_some() || value.initializer.is_some() || value.is_input || value.is_captured
            });
            known && (own != Some(name) || self.consumers(name).len() > 1 || self.is_observable(name))
        };
        let mut fresh = name.to_owned();
        while taken(&fresh) {
            fresh.push('_');
        }
        fresh
    }

    /// Declared element type of `value`, as a number of `TensorProto.DataType`.
    pub fn element_type(&self, value: &str) -> Option<i32> {
        let value = self.values.get(value)?;
        if let Some(tensor) = value.initializer {
            return tensor.data_type;
        }
        value.described?.r#type.as_ref()?.tensor_type.as_ref()?.elem_type
    }

    /// Declared number of dimensions of `value`.
    pub fn rank(&self, value: &str) -> Option<usize> {
        if let Some(tensor) = self.initializer(value) {
            return Some(tensor.dims.len());
        }
        self.dimensions(value).map(|dims| dims.len())
    }

    /// Declared dimensions of `value`, `None` for those that are not fixed.
    pub fn dimensions(&self, value: &str) -> Option<Vec<Option<usize>>> {
        let shape =
            self.values.get(value)?.described?.r#type.as_ref()?.tensor_type.as_ref()?.shape.as_ref()?;
        let fixed = |d: &crate::onnx::TensorShapeDimension| d.dim_value.and_then(|v| usize::try_from(v).ok());
        Some(shape.dim.iter().map(fixed).collect())
    }
}

/// Graphs inside an attribute.
pub fn subgraphs(attribute: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
    attribute.g.as_deref().into_iter().chain(&attribute.graphs)
}

/// Collects the names that `body` and the bodies inside it read. A name the body defines itself is included too, which
/// can only make a guard more careful.
pub(crate) fn capture<'m>(body: &'m GraphProto, captured: &mut HashSet<&'m str>) {
    captured.extend(body.output.iter().map(ValueInfoProto::name));
    for node in &body.node {
        captured.extend(node.input.iter().map(String::as_str));
        for inner in node.attribute.iter().flat_map(subgraphs) {
            capture(inner, captured);
        }
    }
}

/// Reading a node's parts.
pub trait NodeExt {
    /// Whether the node is `op_type` of the default domain.
    fn is(&self, op_type: &str) -> bool;
    /// The attribute `name`.
    fn attribute(&self, name: &str) -> Option<&AttributeProto>;
    /// Integer attribute `name`, or `default`.
    fn int(&self, name: &str, default: i64) -> i64;
    /// Float attribute `name`, or `default`.
    fn float(&self, name: &str, default: f32) -> f32;
    /// Input `index`, `None` when absent or empty.
    fn input_at(&self, index: usize) -> Option<&str>;
    /// How messages call the node: its name, or its first output where it has none.
    fn label(&self) -> &str;
}

impl NodeExt for NodeProto {
    fn is(&self, op_type: &str) -> bool {
        self.op_type() == op_type && is_default_domain(self.domain())
    }

    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|a| a.name() == name)
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, AttributeProto::i)
    }

    fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).map_or(default, AttributeProto::f)
    }

    fn input_at(&self, index: usize) -> Option<&str> {
        self.input.get(index).map(String::as_str).filter(|i| !i.is_empty())
    }

    fn label(&self) -> &str {
        if self.name().is_empty() { self.output.first().map_or("", String::as_str) } else { self.name() }
    }
}
