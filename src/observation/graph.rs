//! `Observe` nodes in a model.

use crate::error::Result;
use crate::graph::Graph;
use crate::model::Model;
use crate::onnx::{NodeProto, OperatorSetIdProto};
use crate::patch::int_attribute;

/// Domain, name and attributes of the operator.
pub(super) const DOMAIN: &str = "ai.rustq";
pub(super) const OP_TYPE: &str = "Observe";
pub(super) const HANDLE: &str = "handle";
pub(super) const SLOT: &str = "slot";

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
