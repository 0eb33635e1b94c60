//! Every tensor of a model, wherever the format allows one.

use crate::error::Result;
use crate::onnx::{AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};

/// What is done to each tensor.
type Visit<'v> = dyn FnMut(&mut TensorProto) -> Result<()> + 'v;

/// Visits the tensors of graphs, subgraphs, functions and training steps.
pub(super) fn visit(model: &mut ModelProto, each: &mut Visit) -> Result<()> {
    model.graph.iter_mut().try_for_each(|g| graph(g, each))?;
    model.functions.iter_mut().flat_map(|f| &mut f.node).try_for_each(|n| node(n, each))?;
    model.functions.iter_mut().flat_map(|f| &mut f.attribute_proto).try_for_each(|a| attribute(a, each))?;
    for step in &mut model.training_info {
        [&mut step.initialization, &mut step.algorithm]
            .into_iter()
            .flatten()
            .try_for_each(|g| graph(g, each))?;
    }
    Ok(())
}

fn graph(graph: &mut GraphProto, each: &mut Visit) -> Result<()> {
    graph.initializer.iter_mut().try_for_each(&mut *each)?;
    graph.sparse_initializer.iter_mut().try_for_each(|t| sparse(t, each))?;
    graph.node.iter_mut().try_for_each(|n| node(n, each))
}

fn node(node: &mut NodeProto, each: &mut Visit) -> Result<()> {
    node.attribute.iter_mut().try_for_each(|a| attribute(a, each))
}

fn attribute(attribute: &mut AttributeProto, each: &mut Visit) -> Result<()> {
    attribute.t.as_deref_mut().into_iter().chain(&mut attribute.tensors).try_for_each(&mut *each)?;
    attribute
        .sparse_tensor
        .as_deref_mut()
        .into_iter()
        .chain(&mut attribute.sparse_tensors)
        .try_for_each(|t| sparse(t, each))?;
    attribute.g.as_deref_mut().into_iter().chain(&mut attribute.graphs).try_for_each(|g| graph(g, each))
}

fn sparse(tensor: &mut SparseTensorProto, each: &mut Visit) -> Result<()> {
    [&mut tensor.values, &mut tensor.indices].into_iter().flatten().try_for_each(|t| each(t))
}
