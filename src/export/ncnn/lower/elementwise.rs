//! Activations, arithmetic, softmax and reductions.

use super::super::codes::{DIV, LOG, POW, SQRT, SQUARE, SUB};
use super::super::net::{Layer, Weight};
use super::{Blob, Lowered, Lowering, Node, index};
use crate::fold::activations::clip_bounds;
use crate::graph::NodeExt;
use crate::tensor::DataType;

/// `BinaryOp`, or a chain of them.
pub(super) fn binary<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>, operation: i32) -> Lowered {
    if node.proto.input.len() == 1 {
        let x = lowering.input(node, 0)?;
        let batch = x.batch;
        return lowering.alias(node, x, batch);
    }
    let is_float = |t: i32| t == DataType::Float as i32;
    if lowering.graph.element_type(&node.proto.output[0]).is_some_and(|t| !is_float(t)) {
        return Err("it computes with integers or booleans".into());
    }
    if node.proto.input.len() == 2 {
        for (scalar, other) in [(1, 0), (0, 1)] {
            if let Some(value) = lowering.scalar(node, scalar) {
                return with_scalar(
                    lowering,
                    node,
                    if scalar == 0 { reversed(operation) } else { operation },
                    (value, other),
                );
            }
        }
    }
    let (mut operands, batch) = lowering.operands(node)?;
    let mut sum = operands.remove(0);
    let last = operands.len() - 1;
    for (i, operand) in operands.iter().enumerate() {
        let result = if i == last {
            lowering.output(node, 0, batch)?
        } else {
            let dims = sum.dims.iter().zip(&operand.dims).map(|(&a, &b)| a.max(b)).collect();
            lowering.between(node, &format!("part{i}"), dims, batch)
        };
        lowering.add(node, Layer::new("BinaryOp").int(0, operation), &[&sum, operand], &[&result]);
        sum = result;
    }
    Ok(())
}

/// The operation with its operands exchanged.
fn reversed(operation: i32) -> i32 {
    match operation {
        SUB => 7,
        DIV => 8,
        POW => 9,
        symmetric => symmetric,
    }
}

fn with_scalar<'m>(
    lowering: &mut Lowering<'m>,
    node: &Node<'m>,
    operation: i32,
    (value, other): (f32, usize),
) -> Lowered {
    let x = lowering.input(node, other)?;
    let y = lowering.output_like(node, &x)?;
    lowering.add(node, Layer::new("BinaryOp").int(0, operation).int(1, 1).float(2, value), &[&x], &[&y]);
    Ok(())
}

/// `Pow`; squares and roots have operations of their own, which negative numbers and zeros pass exactly.
pub(super) fn pow<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let special = [(2.0, SQUARE), (0.5, SQRT)];
    let exponent = lowering.scalar(node, 1);
    match special.iter().find(|(value, _)| exponent == Some(*value)) {
        Some((_, operation)) => lowering.pointwise(node, Layer::new("UnaryOp").int(0, *operation)),
        None => binary(lowering, node, POW),
    }
}

/// `Clip`.
pub(super) fn clip<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let [min, max] = clip_bounds(lowering.graph, node.id).ok_or("its bounds are not constant")?;
    let (min, max) = (min.max(f32::MIN), max.min(f32::MAX));
    lowering.pointwise(node, Layer::new("Clip").float(0, min).float(1, max))
}

/// `LeakyRelu`.
pub(super) fn leaky_relu<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    lowering.pointwise(node, Layer::new("ReLU").float(0, node.float("alpha", 0.01)))
}

/// `PRelu` with one slope or one for each channel.
pub(super) fn prelu<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let (slopes, x) = (lowering.needed_weights(node, 1)?, lowering.input(node, 0)?);
    let dims = lowering.dims(&node.proto.input[1])?;
    let mut full = vec![1; x.rank().saturating_sub(dims.len())];
    full.extend(dims);
    let channels = x.shape()[0];
    let along_channels = slopes.len() == channels && super::shape_of(&full, x.batch)[0] == channels;
    if slopes.len() != 1 && !along_channels {
        return Err("its slopes are not one for each channel".into());
    }
    let layer = Layer::new("PReLU").int(0, slopes.len()).weight(Weight::Raw(slopes));
    lowering.pointwise(node, layer)
}

/// `Elu`.
pub(super) fn elu<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    lowering.pointwise(node, Layer::new("ELU").float(0, node.float("alpha", 1.0)))
}

/// `Celu`.
pub(super) fn celu<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    lowering.pointwise(node, Layer::new("CELU").float(0, node.float("alpha", 1.0)))
}

/// `Selu`.
pub(super) fn selu<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let (alpha, gamma) = (node.float("alpha", 1.673_263_2), node.float("gamma", 1.050_701));
    lowering.pointwise(node, Layer::new("SELU").float(0, alpha).float(1, gamma))
}

/// `HardSigmoid`.
pub(super) fn hard_sigmoid<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let (alpha, beta) = (node.float("alpha", 0.2), node.float("beta", 0.5));
    lowering.pointwise(node, Layer::new("HardSigmoid").float(0, alpha).float(1, beta))
}

/// `HardSwish`.
pub(super) fn hard_swish<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    lowering.pointwise(node, Layer::new("HardSwish").float(0, 1.0 / 6.0).float(1, 0.5))
}

/// `Gelu`.
pub(super) fn gelu<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let tanh = node.attribute("approximate").is_some_and(|a| a.s() == b"tanh".as_slice());
    lowering.pointwise(node, Layer::new("GELU").int(0, i32::from(tanh)))
}

/// `Softmax` and `LogSoftmax`. Before operator set 13 they run over all axes from theirs on.
pub(super) fn softmax<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    const FIRST_WITH_ONE_AXIS: i64 = 13;
    let x = lowering.input(node, 0)?;
    let one_axis = lowering.opset >= FIRST_WITH_ONE_AXIS;
    let axis = index(node.int("axis", if one_axis { -1 } else { 1 }), x.rank())?;
    let flat = !one_axis && x.dims[axis + 1..].iter().any(|&d| d > 1);
    let (x, axis) = if flat {
        let (before, behind) = x.dims.split_at(axis);
        let dims = [before.iter().product(), behind.iter().product()];
        (lowering.view(node, &x, &dims, None)?, 1)
    } else {
        (x, axis)
    };
    let axis = x.axis(axis).ok_or("it runs over the batch")?;
    let y = lowering.between(node, "softmax", x.dims.clone(), x.batch);
    lowering.add(node, Layer::new("Softmax").int(0, axis).int(1, 1), &[&x], &[&y]);
    let mut result = y;
    if node.is("LogSoftmax") {
        let logarithm = lowering.between(node, "log", x.dims.clone(), x.batch);
        lowering.add(node, Layer::new("UnaryOp").int(0, LOG), &[&result], &[&logarithm]);
        result = logarithm;
    }
    let batch = lowering.input(node, 0)?.batch;
    lowering.finish(node, &result, batch)
}

/// A reduction over some axes.
pub(super) fn reduce<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>, operation: i32) -> Lowered {
    let x = lowering.input(node, 0)?;
    let keep = node.int("keepdims", 1) != 0;
    let axes = match lowering.integers(node, 1, "axes")?.filter(|axes| !axes.is_empty()) {
        Some(axes) => axes.iter().map(|&axis| index(axis, x.rank())).collect::<Lowered<Vec<_>>>()?,
        None if node.int("noop_with_empty_axes", 0) != 0 => Vec::new(),
        None => (0..x.rank()).collect(),
    };
    let batch = batch_left(&x, &axes, keep);
    let ncnn: Vec<i64> = axes.iter().filter_map(|&axis| x.axis(axis)).map(|axis| axis as i64).collect();
    if ncnn.is_empty() {
        return lowering.finish(node, &x, batch);
    }
    let y = lowering.output(node, 0, batch)?;
    let layer =
        Layer::new("Reduction").int(0, operation).int(1, 0).ints(3, ncnn).int(4, i32::from(keep)).int(5, 1);
    lowering.add(node, layer, &[&x], &[&y]);
    Ok(())
}

/// Where the batch is once `axes` are reduced.
fn batch_left(x: &Blob, axes: &[usize], keep: bool) -> Option<usize> {
    let batch = x.batch?;
    match keep {
        true => Some(batch),
        false if axes.contains(&batch) => None,
        false => Some(batch - axes.iter().filter(|&&axis| axis < batch).count()),
    }
}
