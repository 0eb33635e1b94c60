//! The weights of every product as codes, while its activations stay float.

use std::collections::HashSet;

use rayon::prelude::*;

use super::blocks::BlockCodes;
use super::encode::{Encoded, Form};
use super::{Format, write};
use crate::correct::inputs::{LayerInputs, Moments};
use crate::correct::layer::{Effect, Grid, Weights};
use crate::correct::{self, Corrections};
use crate::error::Result;
use crate::given::Given;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::model::Model;
use crate::onnx::{NodeProto, OperatorSetIdProto, TensorProto};
use crate::ops::{PRODUCTS, is_plain_product};
use crate::patch::apply;
use crate::quantize::sites::constant_weights;
use crate::quantize::weights::{bias, channel_axis, finite, weight_of};
use crate::quantize::writer::Writer;
use crate::quantize::{LayerRecord, Quantized, in_order, left_float, noise, too_old};
use crate::tensor::{DataType, Parts, shape, tensor};

/// What a runtime takes.
#[derive(Debug)]
pub struct Runtime {
    /// Operators whose weights it decodes.
    pub operators: &'static [&'static str],
    /// Why it does not take the weights of a node, besides that.
    pub decline: fn(&Graph, NodeId) -> Option<&'static str>,
    /// Whether blocks have to be full: where they would not be, a channel has one scale.
    pub full_blocks: bool,
    /// Whether it takes int8 weights: those of the smallest layers are, and embedding tables.
    pub eight_bits: bool,
}

/// ONNX Runtime decodes whatever the operators of the file say.
pub const ONNX_RUNTIME: Runtime =
    Runtime { operators: PRODUCTS, decline: |_, _| None, full_blocks: false, eight_bits: true };

/// What to do to the weights of a model.
#[derive(Debug)]
pub struct Settings {
    /// How they are coded.
    pub format: Format,
    /// For what runtime.
    pub runtime: &'static Runtime,
    /// What to correct, if inputs of the layers are given.
    pub corrections: Corrections,
    /// Nodes that stay as they are, by [label](NodeExt::label).
    pub exclude: HashSet<String>,
}

/// Products whose weights are coded at a time: what one thread does for one goes on beside what many do for another.
const TOGETHER: usize = 2;

/// Codes the weights of a folded model.
///
/// # Errors
/// [`crate::Error::Tensor`] for weights that are not finite.
pub fn quantize_weights(
    model: &Model,
    inputs: Option<&LayerInputs>,
    settings: &Settings,
) -> Result<Quantized> {
    if let Some(reason) = too_old(model) {
        Graph::new(model.graph()).check_weights(&Default::default())?;
        return Ok(left_float(model, &reason));
    }
    let graph = Graph::new(model.graph());
    let mut writer = Writer::new(&graph);
    let (mut layers, mut effects, mut products) = (Vec::new(), Vec::new(), Vec::new());
    for id in 0..graph.nodes().len() {
        let Some(verdict) = verdict(&graph, id, &settings.exclude) else { continue };
        let verdict = verdict.and_then(|()| settings.runtime.takes(&graph, id));
        let record = LayerRecord::unquantized(&graph, id, verdict.clone().err().unwrap_or_default());
        match verdict {
            Ok(()) => products.push((id, record)),
            Err(_) => layers.push((id, record)),
        }
    }
    let format = if settings.runtime.eight_bits { settings.format.sparing(&graph) } else { settings.format };
    let code = |(id, _): &(NodeId, LayerRecord)| {
        let moments = inputs.and_then(|inputs| inputs.of(&graph.node(*id).output[0]));
        let correction = moments.map(|moments| (moments, settings.corrections));
        let format = settings.runtime.fitted(format, depth(&graph, *id)?);
        coded(&graph, *id, format, correction)
    };
    for few in products.chunks(TOGETHER) {
        let all: Vec<_> = few.par_iter().map(code).collect();
        for ((id, record), coded) in few.iter().zip(all) {
            let taken = coded?.write(&mut writer, &graph, *id);
            layers.push((*id, taken.marked(record.clone())));
            effects.extend(taken.effect);
        }
    }
    let read = products.iter().map(|(id, _)| graph.node(*id).input[1].as_str()).collect();
    graph.check_weights(&read)?;
    let Writer { mut patch, mut names, .. } = writer;
    if settings.runtime.eight_bits {
        layers.extend(super::super::embeddings(
            &graph,
            (&settings.exclude, &Given::default()),
            &mut names,
            &mut patch,
        )?);
    }
    let model = with_contrib(apply(model.clone(), patch)?)?;
    Ok(Quantized {
        model,
        layers: in_order(layers),
        notes: correct::note(effects.into_iter()).into_iter().collect(),
    })
}

impl Runtime {
    /// Whether it takes the weights of node `id`, or why not.
    fn takes(&self, graph: &Graph, id: NodeId) -> Result<(), String> {
        let op_type = graph.node(id).op_type();
        if !self.operators.contains(&op_type) {
            return Err(format!("the runtime has no such weights for {op_type}"));
        }
        (self.decline)(graph, id).map_or(Ok(()), |reason| Err(reason.to_owned()))
    }

    /// The format for a layer with so many inputs for each output.
    fn fitted(&self, format: Format, depth: usize) -> Format {
        let whole = |block: &usize| !self.full_blocks || depth.is_multiple_of(*block);
        Format { block: format.block.filter(whole), ..format }
    }
}

/// How many weights make an output of node `id`.
fn depth(graph: &Graph, id: NodeId) -> crate::error::Result<usize> {
    let dims = shape(weight_of(graph, id)?)?;
    Ok(dims.iter().product::<usize>() / dims[channel_axis(graph, id)].max(1))
}

/// Whether the weights of node `id` can be coded while its activations stay float, or why not; `None` if it has none.
pub(crate) fn verdict(graph: &Graph, id: NodeId, exclude: &HashSet<String>) -> Option<Result<(), String>> {
    let node = graph.node(id);
    if !PRODUCTS.iter().any(|op_type| node.is(op_type)) {
        return crate::ops::without_kernel(node).map(|reason| Err(reason.to_owned()));
    }
    if exclude.contains(node.label()) {
        return Some(Err("excluded by the configuration".to_owned()));
    }
    let usable = constant_weights(graph, id, 1).and_then(|()| {
        let name = &node.input[1];
        let shared = graph.consumers(name).len() > 1 || graph.is_observable(name);
        if shared { Err(format!("its weights '{name}' are used elsewhere too")) } else { Ok(()) }
    });
    Some(usable)
}

/// What became of the weights of one product.
pub(crate) struct Taken {
    codec: &'static str,
    sqnr_db: f64,
    pub effect: Option<Effect>,
}

impl Taken {
    fn of<V>(encoded: &Encoded<V>, effect: Option<Effect>) -> Self {
        let sqnr_db = noise::decibels(encoded.power / encoded.noise);
        Self { codec: encoded.form.codec.name, sqnr_db, effect }
    }

    /// A record that says so.
    pub fn marked(&self, record: LayerRecord) -> LayerRecord {
        let (weights, weight_sqnr_db) = (self.codec.to_owned(), Some(self.sqnr_db));
        let corrections = self.effect.iter().flat_map(correct::remarks).collect();
        LayerRecord { quantized: true, reason: String::new(), weights, weight_sqnr_db, corrections, ..record }
    }
}

/// The weights of a product as codes.
pub(crate) struct Coded {
    content: Content,
    /// Its bias, where that was corrected with them.
    bias: Option<Vec<f32>>,
    effect: Option<Effect>,
}

enum Content {
    Blocks(Encoded<BlockCodes>),
    /// To be decoded, by the operator that knows this type if there is one.
    Levels(Encoded, Option<DataType>),
}

/// Codes the weights of node `id`.
///
/// # Errors
/// [`crate::Error::Tensor`] when they are not finite.
pub(crate) fn coded(
    graph: &Graph,
    id: NodeId,
    format: Format,
    correction: Option<(&Moments, Corrections)>,
) -> Result<Coded> {
    let node = graph.node(id);
    let (weight, axis) = (weight_of(graph, id)?, channel_axis(graph, id));
    let (values, dims) = (Parts::of(weight)?, shape(weight)?);
    let format = format.of_layer(values.count());
    let data_type = format.codec.data_type.filter(|_| format.standard);
    let block = format.block.and_then(|block| inputs_of_block(node, &dims, block));
    let form = Form::new((&dims, axis), format.codec, block);
    let for_kernel = data_type.is_none() && form.fits_kernel();
    if for_kernel && correction.is_none() {
        let encoded = checked(Encoded::in_blocks(&values, form), weight)?;
        return Ok(Coded { content: Content::Blocks(encoded), bias: None, effect: None });
    }
    let mut encoded = checked(Encoded::new(&values, form), weight)?;
    let (mut own_bias, mut effect) = (None, None);
    if let Some((moments, what)) = correction {
        own_bias = bias(graph, id)?;
        effect = corrected(&mut encoded, &values.all(), (moments, what), own_bias.as_deref_mut());
        own_bias = own_bias.filter(|_| what.bias && effect.is_some());
    }
    let content = match for_kernel {
        true => Content::Blocks(encoded.into_blocks()),
        false => Content::Levels(encoded, data_type),
    };
    Ok(Coded { content, bias: own_bias, effect })
}

/// How many inputs of a channel share a scale where so many input channels are to.
fn inputs_of_block(node: &NodeProto, dims: &[usize], block: usize) -> Option<usize> {
    match dims {
        [_, _] => is_plain_product(node).then_some(block),
        [_, _, window @ ..] => node.is("Conv").then(|| block.saturating_mul(window.iter().product())),
        _ => None,
    }
}

/// Corrects the levels of these weights, and a bias with them.
fn corrected(
    encoded: &mut Encoded,
    exact: &[f32],
    (moments, what): (&Moments, Corrections),
    bias: Option<&mut [f32]>,
) -> Option<Effect> {
    let mut integers = encoded.levels().to_vec();
    let Form { codec, dims, axis, .. } = &encoded.form;
    let grid = Grid::Levels(encoded, codec.sorted());
    let weights = Weights { exact, dims, axis: *axis, grid, factors: None };
    let effect = weights.correct(moments, what, &mut integers, bias);
    encoded.set_levels(integers);
    effect
}

impl Coded {
    /// Writes them in the place of the weights of node `id`; all else of it stays as it is.
    pub fn write(self, writer: &mut Writer, graph: &Graph, id: NodeId) -> Taken {
        let node = graph.node(id);
        if let Some(bias) = self.bias {
            let name = writer.name(&format!("{}_corrected", node.input[2]));
            writer.patch.initializer(tensor(&name, &[bias.len()], &bias));
            let operator = writer.patch.place(id, node).iter_mut().find(|n| n.op_type == node.op_type);
            operator.into_iter().for_each(|operator| operator.input[2].clone_from(&name));
        }
        match self.content {
            Content::Blocks(encoded) => {
                write_product(writer, (id, node), &encoded);
                Taken::of(&encoded, self.effect)
            }
            Content::Levels(encoded, data_type) => {
                write_weights(writer, node, &encoded, data_type);
                Taken::of(&encoded, self.effect)
            }
        }
    }
}

/// Itself, unless a value of `tensor`, which it is of, is not finite.
fn checked<V>(encoded: Encoded<V>, tensor: &TensorProto) -> Result<Encoded<V>> {
    if !encoded.power.is_finite() {
        finite(tensor)?;
    }
    Ok(encoded)
}

/// Has the kernel that multiplies by blocks take the place of the product.
fn write_product(writer: &mut Writer, (id, node): (NodeId, &NodeProto), encoded: &Encoded<BlockCodes>) {
    let base = &node.input[1];
    let operator = writer.patch.place(id, node).iter().find(|n| n.input.get(1) == Some(base)).cloned();
    if let Some(operator) = operator {
        let product = writer.multiplied_blocks(base, encoded, &operator);
        let nodes = writer.patch.place(id, node);
        if let Some(at) = nodes.iter().position(|n| n.input.get(1) == Some(base)) {
            nodes.splice(at..=at, product);
        }
    }
}

/// Writes what decodes the weights.
fn write_weights(writer: &mut Writer, node: &NodeProto, encoded: &Encoded, data_type: Option<DataType>) {
    let base = &node.input[1];
    let mut nodes = Vec::new();
    let weights = match data_type {
        Some(data_type) => writer.dequantized_codes(base, encoded, data_type, &mut nodes),
        None => writer.decoded(base, encoded, &mut nodes),
    };
    for node in nodes {
        writer.patch.insert(0, node);
    }
    writer.patch.shunt(base, &weights);
}

/// The model with the operator set of ONNX Runtime's own operators, if it has one of them.
pub(crate) fn with_contrib(model: Model) -> Result<Model> {
    let mut proto = model.into_proto();
    let used = |graph: &crate::onnx::GraphProto| graph.node.iter().any(|n| n.domain() == write::CONTRIB);
    let known = proto.opset_import.iter().any(|set| set.domain() == write::CONTRIB);
    if !known && proto.graph.as_ref().is_some_and(used) {
        let (domain, version) = (Some(write::CONTRIB.to_owned()), Some(1));
        proto.opset_import.push(OperatorSetIdProto { domain, version });
    }
    Model::from_proto(proto)
}
