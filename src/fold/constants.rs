//! `Constant` nodes become initializers, which every other rule, and every runtime, understands.

use super::Verdict;
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::{AttributeProto, TensorProto};
use crate::patch::Patch;
use crate::tensor::tensor;

/// The rule.
pub(super) fn constant(graph: &Graph, id: NodeId) -> Result<Verdict> {
    let node = graph.node(id);
    if !node.is("Constant") || node.output.len() != 1 {
        return Ok(Verdict::Pass);
    }
    if graph.is_output(&node.output[0]) {
        return Ok(Verdict::Decline("it is a graph output".to_owned()));
    }
    let Some(value) = node.attribute.first().and_then(|a| as_tensor(a, &node.output[0])) else {
        return Ok(Verdict::Decline("its value is not a dense numeric tensor".to_owned()));
    };
    let mut patch = Patch::default();
    patch.remove(id);
    patch.initializer(value);
    Ok(Verdict::Edit(patch))
}

/// The value as a tensor named `name` (Constant-13: `value`, `value_float`, `value_floats`, `value_int`, `value_ints`).
fn as_tensor(attribute: &AttributeProto, name: &str) -> Option<TensorProto> {
    Some(match attribute.name() {
        "value" => TensorProto { name: Some(name.to_owned()), ..attribute.t.clone()? },
        "value_float" => tensor(name, &[], &[attribute.f()]),
        "value_floats" => tensor(name, &[attribute.floats.len()], &attribute.floats),
        "value_int" => tensor(name, &[], &[attribute.i()]),
        "value_ints" => tensor(name, &[attribute.ints.len()], &attribute.ints),
        _ => return None,
    })
}
