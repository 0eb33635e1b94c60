//! Nodes that pass their input on unchanged at inference: `Identity`, `Dropout` without a mask that anybody reads.

use super::Verdict;
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::patch::Patch;

/// The rule.
pub(super) fn no_op(graph: &Graph, id: NodeId) -> Result<Verdict> {
    let node = graph.node(id);
    if !passes_through(graph, id) {
        return Ok(Verdict::Pass);
    }
    let (Some(input), Some(output)) = (node.input_at(0), node.output.first()) else {
        return Ok(Verdict::Pass);
    };
    if graph.is_observable(output) {
        return Ok(Verdict::Decline("its output is a graph output or read by a subgraph".to_owned()));
    }
    let mut patch = Patch::default();
    patch.remove(id);
    patch.shunt(output, input);
    Ok(Verdict::Edit(patch))
}

fn passes_through(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let unread = |output: &String| graph.consumers(output).is_empty() && !graph.is_observable(output);
    match node.op_type() {
        _ if !node.is(node.op_type()) => false,
        "Identity" => true,
        // From opset 12 a third input can ask for training mode.
        "Dropout" => node.input_at(2).is_none() && node.output.iter().skip(1).all(unread),
        _ => false,
    }
}
