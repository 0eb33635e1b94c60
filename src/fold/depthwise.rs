//! A `BatchNormalization` that nothing could take up, as a convolution.
//!
//! scale\[c\] · x\[n, c, …\] + shift\[c\] is a depthwise convolution with a kernel of one element. In float that is no gain, but
//! unlike the `BatchNormalization` it has an integer kernel, into which a `Relu` behind it fuses: where the values around it
//! are int8, as between the layers of a DenseNet, it need not go through float and back.

use super::affine::{Axis, affine, known_rank};
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::model::Model;
use crate::patch::{Patch, apply, int_attribute, node};
use crate::tensor::{DataType, tensor};

/// Ranks of what a `Conv` reads: 1-D to 3-D.
const RANKS: std::ops::RangeInclusive<usize> = 3..=5;

/// `model` with such a convolution in the place of every float32 `BatchNormalization` whose output is `wanted` and whose
/// input is known to be a feature map; `None` if there is none. Names stay.
///
/// # Errors
/// [`crate::Error::Tensor`] for parameters that are no tensors.
pub(crate) fn batch_norms_as_convolutions(
    model: &Model,
    wanted: impl Fn(&str) -> bool,
) -> Result<Option<Model>> {
    if !model.graph().node.iter().any(|node| node.is("BatchNormalization")) {
        return Ok(None);
    }
    let graph = Graph::of(model);
    let mut patch = Patch::default();
    for (id, node) in graph.nodes().iter().enumerate() {
        if node.output.first().is_some_and(|output| wanted(output)) {
            convolution(&graph, id, &mut patch)?;
        }
    }
    if patch.is_empty() { Ok(None) } else { apply(model.clone(), patch).map(Some) }
}

fn convolution(graph: &Graph, id: NodeId, patch: &mut Patch) -> Result<()> {
    let norm = graph.node(id);
    if !norm.is("BatchNormalization") {
        return Ok(());
    }
    let is_float = |name: &String| graph.element_type(name) == Some(DataType::Float as i32);
    let Ok(Some(found)) = affine(graph, id)? else { return Ok(()) };
    let rank = known_rank(graph, found.input).filter(|rank| RANKS.contains(rank));
    let (Some(rank), Some(Axis::Left(1)), true) =
        (rank, found.map.axis, norm.input.iter().skip(1).all(is_float))
    else {
        return Ok(());
    };
    let channels = found.map.len();
    let rounded = |values: &[f64]| values.iter().map(|&v| v as f32).collect::<Vec<_>>();
    let dims = [&[channels], vec![1; rank - 1].as_slice()].concat();
    let name = |part: &str| graph.fresh(&format!("{}.{part}", found.output), None);
    let weight = tensor(&name("weight"), &dims, &rounded(&found.map.scale));
    let bias = tensor(&name("bias"), &[channels], &rounded(&found.map.shift));
    let inputs = [found.input, weight.name(), bias.name()];
    let mut conv = node("Conv", norm.name(), &inputs, &[found.output]);
    conv.attribute.push(int_attribute("group", channels as i64));
    patch.replace(id, vec![conv]);
    patch.initializer(weight);
    patch.initializer(bias);
    Ok(())
}
