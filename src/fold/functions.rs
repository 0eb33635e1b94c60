//! Functions that are spelled out become the operator that the model's operator set has for them.
//!
//! | operator | since opset | condition |
//! |---|---|---|
//! | `HardSwish` | 14 | |
//! | `LayerNormalization` | 17 | float32 γ, and β where there is one, in the shape of the last axes |
//! | `Gelu` | 20 | float32 |
//!
//! An older operator set keeps the spelling, as whole: nothing is folded out of it, and nothing in it is quantized.

use super::Verdict;
use crate::composites::{Composite, Function, composite};
use crate::error::Result;
use crate::graph::{Graph, NodeId};
use crate::onnx::{AttributeProto, NodeProto};
use crate::patch::{Patch, float_attribute, int_attribute, node, text_attribute};
use crate::tensor::DataType;

/// The rule, asked about the most telling node of the function.
pub(super) fn function(graph: &Graph, id: NodeId) -> Result<Verdict> {
    let Some(found) = composite(graph, id) else { return Ok(Verdict::Pass) };
    let operator = match found.function {
        Function::HardSwish => operator(graph, &found, "HardSwish", 14, Vec::new()),
        Function::Gelu { tanh } if is_float32(graph, found.input) => {
            let form = text_attribute("approximate", if tanh { "tanh" } else { "none" });
            operator(graph, &found, "Gelu", 20, vec![form])
        }
        Function::LayerNorm { axes, epsilon, scale, bias } => layer_norm(graph, &found, axes, scale, bias)
            .then(|| {
                let attributes =
                    vec![int_attribute("axis", -(axes as i64)), float_attribute("epsilon", epsilon as f32)];
                let mut node = operator(graph, &found, "LayerNormalization", 17, attributes)?;
                node.input.extend(scale.into_iter().chain(bias).map(str::to_owned));
                Some(node)
            })
            .flatten(),
        Function::Gelu { .. } | Function::Silu => None,
    };
    let Some(operator) = operator else { return Ok(Verdict::Pass) };
    let mut patch = Patch::default();
    found.nodes.iter().for_each(|&id| patch.remove(id));
    patch.replace(found.last, vec![operator]);
    Ok(Verdict::Edit(patch))
}

fn operator(
    graph: &Graph,
    found: &Composite,
    op_type: &str,
    since: i64,
    attribute: Vec<AttributeProto>,
) -> Option<NodeProto> {
    let last = graph.node(found.last);
    let plain = node(op_type, last.name(), &[found.input], &[&last.output[0]]);
    graph.has_opset(since).then_some(NodeProto { attribute, ..plain })
}

/// Whether the parameters are what the operator wants: γ and β over just the last axes, of known sizes.
fn layer_norm(
    graph: &Graph,
    found: &Composite,
    axes: usize,
    scale: Option<&str>,
    bias: Option<&str>,
) -> bool {
    let Some(dims) = graph.dimensions(found.input) else { return false };
    let Some(own) = dims.len().checked_sub(axes).map(|start| &dims[start..]) else { return false };
    let fits = |name: &str| {
        graph.constant(name).is_some_and(|tensor| {
            let same = tensor.dims.iter().map(|&d| usize::try_from(d).ok()).eq(own.iter().copied());
            same && tensor.data_type() == DataType::Float as i32 && own.iter().all(Option::is_some)
        })
    };
    scale.is_some_and(fits) && bias.is_none_or(fits)
}

fn is_float32(graph: &Graph, value: &str) -> bool {
    graph.element_type(value) == Some(DataType::Float as i32)
}
