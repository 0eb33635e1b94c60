//! What folding has others find out: the shapes of values, and what constant parts of a graph compute.
//!
//! Folding itself knows neither the shape rule nor the kernel of every operator. A [`skeleton`] is small enough to have shapes
//! inferred in no time; a [`constant_part`] is a model of its own that anything that runs ONNX can evaluate.

use std::collections::{BTreeMap, HashSet};

use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId, subgraphs};
use crate::model::Model;
use crate::onnx::{
    GraphProto, TensorProto, TensorShapeDimension, TensorShapeProto, TypeProto, TypeTensor, ValueInfoProto,
};
use crate::patch::{Patch, apply};

/// Initializers up to this size stay in a skeleton: the shapes and axes that other shapes follow from.
const SMALL: usize = 1 << 10;

/// Weights beyond this size are not handed to anyone for evaluation.
const LARGE: usize = 1 << 26;

/// The most entries of a vector that may be a shape, by far. onnx keeps 48 bytes for each entry of what an operator reads as
/// one, and nothing has to be there for that but the number.
const LONGEST: i64 = 1 << 22;

/// Operators that rules understand better when they know shapes, or that compute with shapes.
const SHAPED: &[&str] = &[
    "BatchNormalization",
    "Cast",
    "Expand",
    "Flatten",
    "Reshape",
    "Shape",
    "Size",
    "Slice",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];

/// Operators that are not evaluated although their inputs are constants: what they are is the point of them, or they draw
/// random numbers.
const KEPT: &[&str] = &[
    "Bernoulli",
    "Constant",
    "DequantizeLinear",
    "Multinomial",
    "QuantizeLinear",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
];

/// Whether more could be folded with evidence.
pub fn wants_evidence(model: &Model) -> bool {
    let graph = Graph::new(model.graph());
    let shaped = |id: NodeId| SHAPED.iter().any(|op_type| graph.node(id).is(op_type));
    let biased = |id: NodeId| {
        let node = graph.node(id);
        let reader = node.output.first().and_then(|output| graph.sole_consumer(output));
        node.is("MatMul") && reader.is_some_and(|reader| graph.node(reader).is("Add"))
    };
    (0..graph.nodes().len()).any(|id| shaped(id) || biased(id)) || !constant_nodes(&graph).is_empty()
}

/// Whether a vector is longer than onnx can take for a shape in the memory there is.
pub fn has_long_vectors(graph: &GraphProto) -> bool {
    let long = |value: &ValueInfoProto| {
        let tensor = value.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
        let shape = tensor.and_then(|tensor| tensor.shape.as_ref());
        shape.is_some_and(|shape| matches!(&shape.dim[..], [length] if length.dim_value() > LONGEST))
    };
    let constant = |tensor: &TensorProto| matches!(tensor.dims[..], [length] if length > LONGEST);
    let bodies = || graph.node.iter().flat_map(|node| &node.attribute).flat_map(subgraphs);
    graph.input.iter().chain(&graph.output).chain(&graph.value_info).any(long)
        || graph.initializer.iter().any(constant)
        || bodies().any(has_long_vectors)
}

/// `model` without the data of its large initializers, which become inputs, and without what it says of shapes.
///
/// # Errors
/// [`crate::Error::Model`] when the model has no graph.
pub fn skeleton(model: &Model) -> Result<Model> {
    let mut proto = model.clone().into_proto();
    let graph = proto.graph.get_or_insert_default();
    let declared: HashSet<String> = graph.input.iter().map(|input| input.name().to_owned()).collect();
    let (small, large): (Vec<_>, Vec<_>) = std::mem::take(&mut graph.initializer)
        .into_iter()
        .partition(|tensor| prost::Message::encoded_len(tensor) <= SMALL);
    graph.initializer = small;
    graph.input.extend(large.iter().filter(|tensor| !declared.contains(tensor.name())).map(declaration));
    graph.value_info.clear();
    forget_negative(graph);
    Model::from_proto(proto)
}

/// `model` with dimensions below 0, which stand for such as are not known, left open: onnx takes them for lengths, and a Slice of
/// one ends the process (onnx/onnx#8481).
///
/// # Errors
/// [`crate::Error::Model`] when the model has no graph.
pub fn without_negative_dimensions(model: &Model) -> Result<Model> {
    let mut proto = model.clone().into_proto();
    forget_negative(proto.graph.get_or_insert_default());
    Model::from_proto(proto)
}

fn forget_negative(graph: &mut GraphProto) {
    let values = graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info);
    let tensors = values.filter_map(|value| value.r#type.as_mut()?.tensor_type.as_mut()?.shape.as_mut());
    for dimension in tensors.flat_map(|shape| &mut shape.dim) {
        dimension.dim_value = dimension.dim_value.filter(|&length| length >= 0);
    }
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        attribute.g.as_deref_mut().into_iter().chain(&mut attribute.graphs).for_each(forget_negative);
    }
}

/// `model` with the descriptions of values of `other`, as far as it has the values.
///
/// # Errors
/// [`crate::Error::Model`] when the model has no graph.
pub fn with_values_of(model: &Model, other: &Model) -> Result<Model> {
    let mut proto = model.clone().into_proto();
    let graph = proto.graph.get_or_insert_default();
    let made: HashSet<&str> = graph.node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
    let values = other.graph().value_info.iter().filter(|value| made.contains(value.name())).cloned();
    graph.value_info = values.collect();
    Model::from_proto(proto)
}

/// `model` with the descriptions of values and of its outputs of `other`, which has the same nodes.
///
/// # Errors
/// [`crate::Error::Model`] when the model has no graph.
pub fn described_as(model: &Model, other: &Model) -> Result<Model> {
    let mut proto = with_values_of(model, other)?.into_proto();
    proto.graph.get_or_insert_default().output.clone_from(&other.graph().output);
    Model::from_proto(proto)
}

/// `model` with fixed dimensions of the inputs named, and without what it says of other values, which may depend on them.
///
/// # Errors
/// [`crate::Error::Model`] when the model has no graph.
pub fn with_input_shapes(model: &Model, shapes: &BTreeMap<String, Vec<i64>>) -> Result<Model> {
    let mut proto = model.clone().into_proto();
    let graph = proto.graph.get_or_insert_default();
    graph.value_info.clear();
    for input in &mut graph.input {
        let (Some(dims), Some(kind)) = (shapes.get(input.name()), input.r#type.as_mut()) else { continue };
        kind.tensor_type.get_or_insert_default().shape = Some(fixed_shape(dims));
    }
    for output in &mut graph.output {
        if let Some(tensor) = output.r#type.as_mut().and_then(|kind| kind.tensor_type.as_mut()) {
            tensor.shape = None;
        }
    }
    Model::from_proto(proto)
}

/// The nodes of `model` that compute with constants alone, as a model whose outputs are what other nodes read of them.
///
/// # Errors
/// [`crate::Error::Model`] when the model has no graph.
pub fn constant_part(model: &Model) -> Result<Option<Model>> {
    let graph = Graph::new(model.graph());
    let nodes = constant_nodes(&graph);
    if nodes.is_empty() {
        return Ok(None);
    }
    let inside: HashSet<NodeId> = nodes.iter().copied().collect();
    let leaves = |value: &&String| {
        graph.is_observable(value) || graph.consumers(value).iter().any(|id| !inside.contains(id))
    };
    let outputs = nodes.iter().flat_map(|&id| &graph.node(id).output).filter(leaves);
    let read: HashSet<&str> =
        nodes.iter().flat_map(|&id| &graph.node(id).input).map(String::as_str).collect();
    let mut proto = model.clone().into_proto();
    proto.functions.clear();
    proto.graph = Some(GraphProto {
        name: Some("constants".to_owned()),
        node: nodes.iter().map(|&id| graph.node(id).clone()).collect(),
        initializer: model.graph().initializer.iter().filter(|t| read.contains(t.name())).cloned().collect(),
        output: outputs
            .map(|name| ValueInfoProto { name: Some(name.clone()), ..ValueInfoProto::default() })
            .collect(),
        ..GraphProto::default()
    });
    Model::from_proto(proto).map(Some)
}

/// `model` with the initializers of `values` in the place of the nodes that compute them, and without the nodes that nothing
/// reads then.
///
/// # Errors
/// [`crate::Error::Model`] when the model has no graph.
pub fn with_constants(model: &Model, values: &Model) -> Result<Model> {
    let graph = Graph::new(model.graph());
    let known: HashSet<&str> = values.graph().initializer.iter().map(TensorProto::name).collect();
    let mut gone = HashSet::new();
    for id in constant_nodes(&graph).into_iter().rev() {
        let unread = |value: &str| {
            !graph.is_observable(value) && graph.consumers(value).iter().all(|id| gone.contains(id))
        };
        let outputs = &graph.node(id).output;
        if outputs.iter().all(|output| output.is_empty() || known.contains(output.as_str()) || unread(output))
        {
            gone.insert(id);
        }
    }
    let mut patch = Patch::default();
    for &id in &gone {
        patch.remove(id);
    }
    for tensor in &values.graph().initializer {
        let made_by = graph.producer(tensor.name());
        if made_by.is_some_and(|id| gone.contains(&id)) {
            patch.initializer(tensor.clone());
        }
    }
    apply(model.clone(), patch)
}

/// Nodes, in order, all of whose inputs are constants or come from such nodes. Those that make graph outputs stay nodes.
fn constant_nodes(graph: &Graph) -> Vec<NodeId> {
    let mut constants: HashSet<&str> = HashSet::new();
    let mut nodes = Vec::new();
    for (id, node) in graph.nodes().iter().enumerate() {
        let known = |name: &String| {
            let small = |tensor: &TensorProto| prost::Message::encoded_len(tensor) <= LARGE;
            name.is_empty() || constants.contains(name.as_str()) || graph.constant(name).is_some_and(small)
        };
        let plain = node.is(node.op_type())
            && !KEPT.iter().any(|op_type| node.is(op_type))
            && node.attribute.iter().flat_map(subgraphs).next().is_none();
        let free = node.output.iter().all(|output| !graph.is_output(output));
        if plain && free && !node.input.is_empty() && node.input.iter().all(known) {
            constants.extend(node.output.iter().map(String::as_str));
            nodes.push(id);
        }
    }
    nodes
}

/// A tensor's name, type and shape.
fn declaration(tensor: &TensorProto) -> ValueInfoProto {
    let tensor_type = TypeTensor { elem_type: tensor.data_type, shape: Some(fixed_shape(&tensor.dims)) };
    ValueInfoProto {
        name: tensor.name.clone(),
        r#type: Some(TypeProto { tensor_type: Some(tensor_type), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}

fn fixed_shape(dims: &[i64]) -> TensorShapeProto {
    let dimension =
        |&value: &i64| TensorShapeDimension { dim_value: Some(value), ..TensorShapeDimension::default() };
    TensorShapeProto { dim: dims.iter().map(dimension).collect() }
}
