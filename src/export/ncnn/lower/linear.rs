//! Matrix products: `InnerProduct` for constant weights, `MatMul` otherwise.

use super::super::net::{Layer, Weight};
use super::{Blob, Lowered, Lowering, Node};
use crate::graph::NodeExt;
use crate::tensor::matrix_transposed;

/// `InnerProduct` with the weights W\[N, K\] of `y = x · Wᵀ + b`.
fn inner_product(outputs: usize, weights: Vec<f32>, bias: Option<Vec<f32>>) -> Layer {
    let layer = Layer::new("InnerProduct").int(0, outputs).int(2, weights.len());
    layer.weight(Weight::Tagged(weights)).bias(1, bias)
}

/// `Gemm`: α · A · B + β · C.
pub(super) fn gemm<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let (alpha, beta) = (node.float("alpha", 1.0), node.float("beta", 1.0));
    if node.int("transA", 0) != 0 {
        return Err("its first matrix is transposed (transA)".into());
    }
    let constant = node.input_at(1).filter(|value| lowering.is_constant(value));
    let Some(weight) = constant else { return Err("its second matrix is not constant".into()) };
    let (weights, dims) = (lowering.floats(weight)?, lowering.dims(weight)?);
    let &[rows, columns] = dims.as_slice() else { return Err("its weights are no matrix".into()) };
    let (outputs, weights) = if node.int("transB", 0) == 0 {
        (columns, matrix_transposed(&weights, columns))
    } else {
        (rows, weights)
    };
    let weights = weights.into_iter().map(|w| w * alpha).collect();
    let bias = match lowering.weights(node, 2)? {
        Some(bias) if bias.len() == 1 => Some(vec![bias[0] * beta; outputs]),
        Some(bias) if bias.len() == outputs => Some(bias.into_iter().map(|b| b * beta).collect()),
        Some(_) => return Err("its third matrix is no vector over the columns".into()),
        None => None,
    };
    let x = lowering.input(node, 0)?;
    rows_of(lowering, node, &x, inner_product(outputs, weights, bias))
}

/// `MatMul`, numpy's.
pub(super) fn matmul<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let [a, b] = [0, 1].map(|index| node.input_at(index).unwrap_or_default());
    let (left, right) = (lowering.dims(a)?, lowering.dims(b)?);
    if left.len() < 2 || right.len() < 2 {
        return Err("one of its factors is a vector".into());
    }
    if lowering.is_constant(b) && right.len() == 2 {
        let layer = inner_product(right[1], matrix_transposed(&lowering.floats(b)?, right[1]), None);
        let x = lowering.input(node, 0)?;
        return rows_of(lowering, node, &x, layer);
    }
    let result = lowering.dims(&node.proto.output[0])?;
    let leading = result.len() - 2;
    let batch = lowering.common_batch(node, &result)?.filter(|&axis| axis < leading);
    let (x, z) =
        (lowering.operand(node, 0, result.len(), batch)?, lowering.operand(node, 1, result.len(), batch)?);
    let y = lowering.output(node, 0, batch)?;
    lowering.add(node, Layer::new("MatMul"), &[&x, &z], &[&y]);
    Ok(())
}

/// Applies an `InnerProduct` to every row of `x`: it takes vectors and matrices, and flattens what has more axes.
fn rows_of<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>, x: &Blob, layer: Layer) -> Lowered {
    let (rank, outputs) = (x.rank(), layer.get(0, 0) as usize);
    let batch = x.batch.filter(|&axis| axis + 1 < rank);
    let vectors = if batch == x.batch { x.clone() } else { lowering.view(node, x, &x.dims.clone(), None)? };
    if vectors.shape().len() <= 2 {
        let y = lowering.output(node, 0, batch)?;
        lowering.add(node, layer, &[&vectors], &[&y]);
        return Ok(());
    }
    let width = x.dims[rank - 1];
    let rows = x.dims.iter().product::<usize>() / width.max(1);
    let matrix = lowering.view(node, &vectors, &[rows, width], None)?;
    let y = lowering.between(node, "rows", vec![rows, outputs], None);
    lowering.add(node, layer, &[&matrix], &[&y]);
    lowering.finish(node, &y, batch)
}
