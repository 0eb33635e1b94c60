//! From an ONNX graph to ncnn layers.
//!
//! ncnn has no batch axis: of each value the axis that holds the batch, which must have the length 1, is dropped. It is
//! followed through the graph, because recurrent layers have it elsewhere than convolutions. A value may also have lost it,
//! in a `Squeeze` for example; then all of its axes stay. All shapes have to be known.

mod convolution;
mod elementwise;
mod linear;
mod normalization;
mod operands;
mod pooling;
mod recurrent;
mod resize;
mod shape;
mod slices;
mod table;

use std::collections::{HashMap, HashSet};

pub(super) use shape::permutation_order;

use super::Unsupported;
use super::names::Names;
use super::net::{Layer, Net, Param, Weight};
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::NodeProto;
use crate::tensor;

/// Largest number of axes of a blob.
const LARGEST_RANK: usize = 4;

/// Why a node cannot be lowered.
#[derive(Debug)]
pub(super) struct Refusal {
    pub reason: String,
    /// The nearest thing to do, where there is one better than cutting the model.
    pub hint: Option<String>,
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self { reason, hint: None }
    }
}

impl From<&str> for Refusal {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

impl From<crate::Error> for Refusal {
    fn from(error: crate::Error) -> Self {
        error.to_string().into()
    }
}

/// What lowering a node gives.
pub(super) type Lowered<T = ()> = Result<T, Refusal>;

/// Lowers one node.
pub(super) type Rule = for<'m> fn(&mut Lowering<'m>, &Node<'m>) -> Lowered;

/// A node and where it is.
#[derive(Clone, Copy)]
pub(super) struct Node<'m> {
    pub id: NodeId,
    pub proto: &'m NodeProto,
}

impl<'m> std::ops::Deref for Node<'m> {
    type Target = &'m NodeProto;

    fn deref(&self) -> &&'m NodeProto {
        &self.proto
    }
}

/// A value of the graph as a blob.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Blob {
    /// Its name in ncnn.
    pub name: String,
    /// The dimensions it has in ONNX.
    pub dims: Vec<usize>,
    /// The axis of the batch, which ncnn does not have.
    pub batch: Option<usize>,
}

impl Blob {
    /// Dimensions in ncnn, outermost first.
    pub fn shape(&self) -> Vec<usize> {
        shape_of(&self.dims, self.batch)
    }

    /// The axis in ncnn that `axis` of ONNX is; `None` for the batch.
    pub fn axis(&self, axis: usize) -> Option<usize> {
        match self.batch {
            Some(batch) if axis == batch => None,
            Some(batch) if axis > batch => Some(axis - 1),
            _ => Some(axis),
        }
    }

    /// Number of axes in ONNX.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }
}

fn shape_of(dims: &[usize], batch: Option<usize>) -> Vec<usize> {
    let kept: Vec<usize> =
        dims.iter().enumerate().filter(|(axis, _)| Some(*axis) != batch).map(|(_, &d)| d).collect();
    if kept.is_empty() { vec![1] } else { kept }
}

/// The work in progress.
pub(super) struct Lowering<'m> {
    pub graph: &'m Graph<'m>,
    pub opset: i64,
    net: Net,
    blobs: HashMap<&'m str, Blob>,
    /// Values behind what cannot be lowered, of which not even the shape is known: what reads them cannot be judged.
    unknown: HashSet<&'m str>,
    layer_names: Names,
    blob_names: Names,
}

/// Lowers a whole graph, or says what stands against it.
pub(super) fn lower<'m>(graph: &'m Graph<'m>, opset: i64) -> Result<Net, Vec<Unsupported>> {
    let mut lowering = Lowering {
        graph,
        opset,
        net: Net::default(),
        blobs: HashMap::new(),
        unknown: HashSet::new(),
        layer_names: Names::default(),
        blob_names: Names::default(),
    };
    let mut refused = lowering.inputs();
    for (id, proto) in graph.nodes().iter().enumerate() {
        let node = Node { id, proto };
        if proto.input.iter().any(|name| lowering.unknown.contains(name.as_str())) {
            lowering.go_on_after(&node);
        } else if let Err(refusal) = table::lower_node(&mut lowering, &node) {
            refused.push(table::describe(proto, refusal));
            lowering.go_on_after(&node);
        }
    }
    lowering.outputs(&mut refused);
    if refused.is_empty() { Ok(lowering.net) } else { Err(refused) }
}

impl<'m> Lowering<'m> {
    /// Declares the inputs of the network.
    fn inputs(&mut self) -> Vec<Unsupported> {
        let mut refused = Vec::new();
        for input in self.graph.inputs().filter(|name| self.graph.initializer(name).is_none()) {
            let Ok(dims) = self.dims(input) else {
                let reason = "its shape is not fixed: give the shape of every input, or data to take it from";
                refused.push(Unsupported::about(input, "input", reason));
                continue;
            };
            let batch = dims.iter().position(|&d| d == 1);
            let blob = Blob { name: self.blob_names.fresh(input), dims, batch };
            let shape = blob.shape();
            if shape.len() > LARGEST_RANK {
                refused.push(Unsupported::about(input, "input", &too_many_axes(&shape)));
            }
            let mut layer =
                Layer { outputs: vec![blob.name.clone()], ..with_shape(Layer::new("Input"), &shape) };
            layer.name = self.layer_names.fresh(input);
            self.push(layer, &shape);
            self.blobs.insert(input, blob);
        }
        refused
    }

    /// Notes which blobs hold the outputs of the graph.
    fn outputs(&mut self, refused: &mut Vec<Unsupported>) {
        for output in self.graph.outputs() {
            match self.blobs.get(output) {
                Some(blob) => self.net.outputs.push((output.to_owned(), blob.name.clone())),
                None if self.unknown.contains(output) => {}
                None => {
                    refused.push(Unsupported::about(output, "output", "nothing computes it but constants"))
                }
            }
        }
    }

    /// Pretends that a node could be lowered, to find what else could not be.
    fn go_on_after(&mut self, node: &Node<'m>) {
        for output in node.proto.output.iter().filter(|o| !o.is_empty()) {
            let Ok(dims) = self.dims(output) else {
                self.unknown.insert(output);
                continue;
            };
            let batch = dims.first().filter(|&&d| d == 1).map(|_| 0);
            let blob = Blob { name: self.blob_names.fresh(output), dims, batch };
            self.blobs.entry(output).or_insert(blob);
        }
    }

    /// Dimensions of a value in ONNX.
    pub fn dims(&self, value: &str) -> Lowered<Vec<usize>> {
        if let Some(constant) = self.graph.constant(value) {
            return Ok(tensor::shape(constant)?);
        }
        if let Some(blob) = self.blobs.get(value) {
            return Ok(blob.dims.clone());
        }
        let dims = self.graph.dimensions(value);
        let fixed = dims.and_then(|dims| dims.into_iter().collect::<Option<Vec<usize>>>());
        let fixed = fixed.filter(|dims| !dims.contains(&0));
        fixed.ok_or_else(|| format!("the shape of '{value}' is not known").into())
    }

    /// The blob that holds input `index` of a node; for a constant, one is made.
    pub fn input(&mut self, node: &Node, index: usize) -> Lowered<Blob> {
        let value = node.input_at(index).ok_or_else(|| format!("input {index} is missing"))?;
        if let Some(blob) = self.blobs.get(value) {
            return Ok(blob.clone());
        }
        let dims = self.dims(value)?;
        self.constant_blob(node, value, &dims, None)
    }

    /// The blob for output `index` of a node, its batch at `batch`.
    pub fn output(&mut self, node: &Node<'m>, index: usize, batch: Option<usize>) -> Lowered<Blob> {
        let value: &'m str = node.proto.output.get(index).map_or("", String::as_str);
        let dims = self.dims(value)?;
        self.declare(value, dims, batch)
    }

    /// Output 0 of a node, with the dimensions and the batch of `like`.
    pub fn output_like(&mut self, node: &Node<'m>, like: &Blob) -> Lowered<Blob> {
        self.declare(&node.proto.output[0], like.dims.clone(), like.batch)
    }

    fn declare(&mut self, value: &'m str, dims: Vec<usize>, batch: Option<usize>) -> Lowered<Blob> {
        let blob = Blob { name: self.blob_names.fresh(value), dims, batch };
        let shape = blob.shape();
        if shape.len() > LARGEST_RANK {
            return Err(too_many_axes(&shape).into());
        }
        self.net.shapes.insert(blob.name.clone(), shape);
        self.blobs.insert(value, blob.clone());
        Ok(blob)
    }

    /// Makes output 0 of a node another name for `blob`.
    pub fn alias(&mut self, node: &Node<'m>, blob: Blob, batch: Option<usize>) -> Lowered {
        let value: &'m str = &node.proto.output[0];
        let dims = self.dims(value)?;
        self.blobs.insert(value, Blob { name: blob.name, dims, batch });
        Ok(())
    }

    /// A blob for a value between the layers of one node.
    pub fn between(&mut self, node: &Node, what: &str, dims: Vec<usize>, batch: Option<usize>) -> Blob {
        let name = self.blob_names.fresh(&format!("{}/{what}", node.proto.output[0]));
        let blob = Blob { name, dims, batch };
        self.net.shapes.insert(blob.name.clone(), blob.shape());
        blob
    }

    /// Adds a layer for `node` from `inputs` to `outputs`.
    pub fn add(&mut self, node: &Node, layer: Layer, inputs: &[&Blob], outputs: &[&Blob]) {
        let names = |blobs: &[&Blob]| blobs.iter().map(|b| b.name.clone()).collect();
        let mut layer = Layer { inputs: names(inputs), outputs: names(outputs), ..layer };
        let name = if node.name().is_empty() {
            format!("{}_{}", node.op_type(), node.id)
        } else {
            node.name().to_owned()
        };
        layer.name = self.layer_names.fresh(&name);
        layer.origin = Some(node.id);
        self.net.layers.push(layer);
    }

    fn push(&mut self, layer: Layer, shape: &[usize]) {
        self.net.shapes.insert(layer.outputs[0].clone(), shape.to_vec());
        self.net.layers.push(layer);
    }

    /// `blob` seen with other dimensions and the same values in the same order.
    pub fn view(&mut self, node: &Node, blob: &Blob, dims: &[usize], batch: Option<usize>) -> Lowered<Blob> {
        let shape = shape_of(dims, batch);
        if shape == blob.shape() {
            return Ok(Blob { name: blob.name.clone(), dims: dims.to_vec(), batch });
        }
        if shape.len() > LARGEST_RANK {
            return Err(too_many_axes(&shape).into());
        }
        let view = self.between(node, "view", dims.to_vec(), batch);
        self.add(node, with_shape(Layer::new("Reshape"), &shape), &[blob], &[&view]);
        Ok(view)
    }

    /// Ends a node whose result lies in `blob`, up to its shape.
    pub fn finish(&mut self, node: &Node<'m>, blob: &Blob, batch: Option<usize>) -> Lowered {
        let dims = self.dims(&node.proto.output[0])?;
        if shape_of(&dims, batch) == blob.shape() {
            return self.alias(node, blob.clone(), batch);
        }
        let output = self.output(node, 0, batch)?;
        self.add(node, with_shape(Layer::new("Reshape"), &output.shape()), &[blob], &[&output]);
        Ok(())
    }

    /// One layer from input 0 to output 0 of the same shape.
    pub fn pointwise(&mut self, node: &Node<'m>, layer: Layer) -> Lowered {
        let x = self.input(node, 0)?;
        let y = self.output_like(node, &x)?;
        self.add(node, layer, &[&x], &[&y]);
        Ok(())
    }

    /// A `MemoryData` layer with the values of a constant, which has the dimensions `dims` and the batch at `batch`.
    pub fn constant_blob(
        &mut self,
        node: &Node,
        value: &str,
        dims: &[usize],
        batch: Option<usize>,
    ) -> Lowered<Blob> {
        let values = self.floats(value)?;
        let shape = shape_of(dims, batch);
        if shape.len() > LARGEST_RANK {
            return Err(too_many_axes(&shape).into());
        }
        let blob = Blob { name: self.blob_names.fresh(value), dims: dims.to_vec(), batch };
        let mut layer = with_shape(Layer::new("MemoryData"), &shape).weight(Weight::Raw(values));
        layer.outputs = vec![blob.name.clone()];
        layer.name = self.layer_names.fresh(value);
        layer.origin = Some(node.id);
        self.push(layer, &shape);
        Ok(blob)
    }

    /// A `MemoryData` layer of zeros.
    pub fn zeros(&mut self, node: &Node, dims: &[usize], batch: Option<usize>) -> Blob {
        let blob = self.between(node, "zeros", dims.to_vec(), batch);
        let zeros = vec![0.0; dims.iter().product()];
        let layer = with_shape(Layer::new("MemoryData"), &blob.shape()).weight(Weight::Raw(zeros));
        self.add(node, layer, &[], &[&blob]);
        blob
    }

    /// Values of a floating-point constant.
    pub fn floats(&self, value: &str) -> Lowered<Vec<f32>> {
        let constant = self.graph.constant(value).ok_or_else(|| format!("'{value}' is not a constant"))?;
        if !tensor::is_float(constant) {
            return Ok(tensor::integers(constant)?.into_iter().map(|v| v as f32).collect());
        }
        Ok(tensor::floats(constant)?)
    }

    /// The constant at input `index` as floating-point numbers; `None` where the input is absent.
    pub fn weights(&self, node: &Node, index: usize) -> Lowered<Option<Vec<f32>>> {
        node.input_at(index).map(|value| self.floats(value)).transpose()
    }

    /// The constant weights at input `index`.
    pub fn needed_weights(&self, node: &Node, index: usize) -> Lowered<Vec<f32>> {
        self.weights(node, index)?.ok_or_else(|| format!("input {index} is missing").into())
    }

    /// Integers from the constant at input `index`, or else from an attribute.
    pub fn integers(&self, node: &Node, index: usize, attribute: &str) -> Lowered<Option<Vec<i64>>> {
        let Some(value) = node.input_at(index) else {
            return Ok(node.attribute(attribute).map(|a| a.ints.clone()));
        };
        let constant = self.graph.constant(value).ok_or_else(|| format!("'{value}' is not a constant"))?;
        Ok(Some(tensor::integers(constant)?))
    }
}

fn too_many_axes(shape: &[usize]) -> String {
    format!("a blob of shape {shape:?} has more than {LARGEST_RANK} axes")
}

/// A layer with the shape of its result: `Input`, `MemoryData` or `Reshape`.
fn with_shape(layer: Layer, shape: &[usize]) -> Layer {
    const IDS: [&[u8]; LARGEST_RANK] = [&[0], &[1, 0], &[2, 1, 0], &[2, 11, 1, 0]];
    let ids = IDS[shape.len().clamp(1, LARGEST_RANK) - 1];
    ids.iter().zip(shape).fold(layer, |layer, (&id, &size)| layer.int(id, size))
}

/// `axis` counted from the front.
pub(super) fn index(axis: i64, rank: usize) -> Lowered<usize> {
    let from_front = if axis < 0 { axis + rank as i64 } else { axis };
    let index = usize::try_from(from_front).ok().filter(|&i| i < rank);
    index.ok_or_else(|| format!("axis {axis} is none of {rank}").into())
}

/// Whether a parameter is that number.
pub(super) fn is(param: Option<&Param>, value: f32) -> bool {
    matches!(param, Some(Param::Float(v)) if (v - value).abs() <= 1e-6 * value.abs())
}
