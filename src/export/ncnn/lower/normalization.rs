//! Normalizations.

use super::super::net::{Layer, Weight};
use super::{Lowered, Lowering, Node, index};
use crate::graph::NodeExt;

/// `BatchNormalization` that could not be folded into weights.
pub(super) fn batch<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    if node.int("training_mode", 0) != 0 {
        return Err("it is in training mode".into());
    }
    let [scale, bias, mean, variance] = [1, 2, 3, 4].map(|i| lowering.needed_weights(node, i));
    let scale = scale?;
    let layer = Layer::new("BatchNorm").int(0, scale.len()).float(1, node.float("epsilon", 1e-5));
    let weights = [scale, mean?, variance?, bias?].into_iter().map(Weight::Raw);
    lowering.pointwise(node, weights.fold(layer, Layer::weight))
}

/// `LayerNormalization` over the last axes.
pub(super) fn layer<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let x = lowering.input(node, 0)?;
    let axis = index(node.int("axis", -1), x.rank())?;
    if x.batch.is_some_and(|batch| batch >= axis) {
        return Err("it runs over the batch".into());
    }
    let size = x.dims[axis..].iter().product::<usize>();
    let scale = lowering.needed_weights(node, 1)?;
    let bias = lowering.weights(node, 2)?.unwrap_or_else(|| vec![0.0; size]);
    if scale.len() != size || bias.len() != size {
        return Err("its scale or bias has another shape than what is normalized".into());
    }
    let layer = Layer::new("LayerNorm").int(0, size).float(1, node.float("epsilon", 1e-5)).int(2, 1);
    lowering.pointwise(node, layer.weight(Weight::Raw(scale)).weight(Weight::Raw(bias)))
}

/// `InstanceNormalization`.
pub(super) fn instance<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let (scale, bias) = (lowering.needed_weights(node, 1)?, lowering.needed_weights(node, 2)?);
    let x = lowering.input(node, 0)?;
    let channels = scale.len();
    // ncnn normalizes the planes of a three-dimensional blob.
    let planes = [1, channels, 1, x.dims.iter().product::<usize>() / channels.max(1)];
    let planes = lowering.view(node, &x, &planes, Some(0))?;
    let y = lowering.between(node, "planes", planes.dims.clone(), Some(0));
    let layer = Layer::new("InstanceNorm").int(0, channels).float(1, node.float("epsilon", 1e-5)).int(2, 1);
    let layer = layer.weight(Weight::Raw(scale)).weight(Weight::Raw(bias));
    lowering.add(node, layer, &[&planes], &[&y]);
    lowering.finish(node, &y, x.batch)
}

/// `GroupNormalization`, with a scale for each channel as from operator set 21 on.
pub(super) fn group<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let (scale, bias) = (lowering.needed_weights(node, 1)?, lowering.needed_weights(node, 2)?);
    let (x, groups) = (lowering.input(node, 0)?, node.int("num_groups", 1));
    let channels = x.dims.get(1).copied().unwrap_or(0);
    let per_group = channels / usize::try_from(groups).unwrap_or(1).max(1);
    let spread = |values: Vec<f32>| match values.len() {
        length if length == channels => values,
        _ => values.iter().flat_map(|&v| vec![v; per_group]).collect(),
    };
    let layer = Layer::new("GroupNorm")
        .int(0, groups)
        .int(1, channels)
        .float(2, node.float("epsilon", 1e-5))
        .int(3, 1);
    let layer = layer.weight(Weight::Raw(spread(scale))).weight(Weight::Raw(spread(bias)));
    lowering.pointwise(node, layer)
}

/// `LpNormalization` by the Euclidean norm over the channels.
pub(super) fn lp<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let x = lowering.input(node, 0)?;
    let axis = x.axis(index(node.int("axis", -1), x.rank())?);
    if node.int("p", 2) != 2 || axis != Some(0) {
        return Err("it is not the Euclidean norm over the channels".into());
    }
    if x.shape().len() < 3 {
        let mut dims = x.dims.clone();
        dims.extend(vec![1; 3 - x.shape().len()]);
        let planes = lowering.view(node, &x, &dims, x.batch)?;
        let y = lowering.between(node, "planes", dims, x.batch);
        lowering.add(node, normalize(), &[&planes], &[&y]);
        return lowering.finish(node, &y, x.batch);
    }
    lowering.pointwise(node, normalize())
}

fn normalize() -> Layer {
    let layer = Layer::new("Normalize").int(0, 0).int(4, 1).int(1, 1).float(2, 1e-12).int(3, 1).int(9, 0);
    layer.weight(Weight::Raw(vec![1.0]))
}

/// `LRN` across channels.
pub(super) fn local_response<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let layer = Layer::new("LRN").int(0, 0).int(1, node.int("size", 1));
    let layer = layer.float(2, node.float("alpha", 1e-4)).float(3, node.float("beta", 0.75));
    lowering.pointwise(node, layer.float(4, node.float("bias", 1.0)))
}
