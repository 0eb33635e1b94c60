//! `Observe` nodes in a model.

use std::collections::HashSet;

use crate::error::Result;
use crate::graph::{Graph, NodeExt};
use crate::model::Model;
use crate::onnx::{NodeProto, OperatorSetIdProto};
use crate::patch::int_attribute;

/// Domain, name and attributes of the operator.
pub(super) const DOMAIN: &str = "ai.rustq";
pub(super) const OP_TYPE: &str = "Observe";
pub(super) const HANDLE: &str = "handle";
pub(super) const SLOT: &str = "slot";
/// Of a value in blocked layout: how many channels it has without padding, and how many are in a block.
pub(super) const CHANNELS: &str = "channels";
pub(super) const BLOCK: &str = "block";

/// Domain of ONNX Runtime's operators on the blocked layout.
const NCHWC: &str = "com.microsoft.nchwc";

/// `model` with a node for each of `names`, whose slot is the position of the name.
pub(super) fn inserted<'n>(
    model: &Model,
    handle: i64,
    names: impl Iterator<Item = &'n str>,
) -> Result<Model> {
    let mut proto = model.clone().into_proto();
    let nodes = names.enumerate().map(|(slot, name)| observe(handle, slot, name)).collect();
    proto.graph.get_or_insert_default().node.extend(as_early_as_possible(&Graph::new(model.graph()), nodes));
    proto.opset_import.retain(|import| import.domain() != DOMAIN);
    proto.opset_import.push(OperatorSetIdProto { domain: Some(DOMAIN.to_owned()), version: Some(1) });
    Model::from_proto(proto)
}

/// The order of observers at the end of a file in which each runs as soon as its value is there, and not when every
/// other node is done: ONNX Runtime walks back from nodes that nobody reads, the last one first.
fn as_early_as_possible(graph: &Graph, mut observers: Vec<NodeProto>) -> Vec<NodeProto> {
    let position = |node: &NodeProto| node.input.first().and_then(|value| graph.producer(value));
    observers.sort_by_key(|node| std::cmp::Reverse(position(node)));
    observers
}

/// `model`, as ONNX Runtime optimized it, with the `Observe` nodes moved from plain copies of values in blocked layout to
/// the values themselves, and without the copies that nobody else reads. `None` if there is nothing to move.
///
/// Slots in `fixed` stay where they are, and so do values whose padding could not be told from their channels.
pub(super) fn moved(model: &Model, fixed: impl Fn(i64) -> bool) -> Result<Option<Model>> {
    let graph = Graph::new(model.graph());
    let block = block_size(&graph);
    let mut proto = model.clone().into_proto();
    let nodes = &mut proto.graph.get_or_insert_default().node;
    let mut left: HashSet<String> = HashSet::new();
    for node in nodes.iter_mut().filter(|node| is_observe(node) && !fixed(node.int(SLOT, -1))) {
        let Some(reorder) = node.input_at(0).and_then(|value| graph.producer(value)) else { continue };
        let reorder = graph.node(reorder);
        let channels = reorder.int(CHANNELS, 0);
        let plain = reorder.op_type() != "ReorderOutput" || reorder.domain() != NCHWC;
        let known = channels > 0 && (block.is_some() || channels % LARGEST_BLOCK == 0);
        if plain || !known || reorder.int("channels_last", 0) != 0 {
            continue;
        }
        left.extend(std::mem::replace(&mut node.input, reorder.input.clone()));
        let block = block.unwrap_or(LARGEST_BLOCK);
        node.attribute.extend([(CHANNELS, channels), (BLOCK, block)].map(|(name, v)| int_attribute(name, v)));
    }
    if left.is_empty() {
        return Ok(None);
    }
    let only_observed = |value: &String| {
        let observed = graph.consumers(value).iter().all(|&id| is_observe(graph.node(id)));
        left.contains(value) && observed && !graph.is_observable(value)
    };
    nodes.retain(|node| !node.output.first().is_some_and(only_observed));
    let (observers, mut others): (Vec<_>, Vec<_>) = nodes.drain(..).partition(is_observe);
    others.extend(as_early_as_possible(&graph, observers));
    *nodes = others;
    Model::from_proto(proto).map(Some)
}

/// Blocks hold 8 or 16 channels, depending on the processor.
const LARGEST_BLOCK: i64 = 16;

/// How many channels a block has, if some convolution gives it away: its weights are padded to whole blocks.
fn block_size(graph: &Graph) -> Option<i64> {
    graph.nodes().iter().filter(|node| node.domain() == NCHWC && node.op_type() == "Conv").find_map(|node| {
        let padded = *graph.initializer(node.input_at(1)?)?.dims.first()?;
        if padded % LARGEST_BLOCK != 0 {
            return Some(LARGEST_BLOCK / 2);
        }
        let readers = graph.consumers(node.output.first()?).iter().map(|&id| graph.node(id));
        let channels =
            readers.filter(|n| n.op_type() == "ReorderOutput").map(|n| n.int(CHANNELS, padded)).next()?;
        (padded - channels >= LARGEST_BLOCK / 2).then_some(LARGEST_BLOCK)
    })
}

fn is_observe(node: &NodeProto) -> bool {
    node.op_type() == OP_TYPE && node.domain() == DOMAIN
}

fn observe(handle: i64, slot: usize, name: &str) -> NodeProto {
    let attributes = [(HANDLE, handle), (SLOT, slot as i64)];
    NodeProto {
        input: vec![name.to_owned()],
        name: Some(format!("rustq_observe_{slot}")),
        op_type: Some(OP_TYPE.to_owned()),
        domain: Some(DOMAIN.to_owned()),
        attribute: attributes.map(|(name, value)| int_attribute(name, value)).into(),
        ..NodeProto::default()
    }
}
