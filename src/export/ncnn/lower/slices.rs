//! Parts of values: slices, splits, look-ups, and pads.

use super::super::net::{Layer, Weight};
use super::{Blob, Lowered, Lowering, Node, index};
use crate::graph::NodeExt;

/// What a `Slice` takes along one axis.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cut {
    axis: usize,
    start: usize,
    count: usize,
    step: usize,
}

/// `Slice`.
pub(super) fn slice<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let x = lowering.input(node, 0)?;
    let starts = lowering.integers(node, 1, "starts")?.unwrap_or_default();
    let ends = lowering.integers(node, 2, "ends")?.unwrap_or_default();
    let axes = lowering.integers(node, 3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = lowering.integers(node, 4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err("its starts, ends, axes and steps differ in length".into());
    }
    let (mut flips, mut cuts) = (Vec::new(), Vec::new());
    for i in 0..starts.len() {
        let axis = index(axes[i], x.rank())?;
        let size = x.dims[axis];
        let first = if starts[i] < 0 { starts[i].saturating_add(size as i64) } else { starts[i] };
        if steps[i] == -1 && first >= size as i64 - 1 && ends[i] < -(size as i64) {
            flips.push(axis);
        } else {
            let cut = cut(axis, size, [starts[i], ends[i], steps[i]])
                .ok_or("it goes backwards, but not over all of an axis")?;
            cuts.extend((cut.count < size).then_some(cut));
        }
    }
    let whole = |cut: &&Cut| cut.step == 1;
    let mut result = flip(lowering, node, x, &flips)?;
    result = crop(lowering, node, result, &cuts.iter().filter(whole).copied().collect::<Vec<_>>())?;
    for cut in cuts.iter().filter(|cut| cut.step > 1) {
        result = every_nth(lowering, node, result, *cut)?;
    }
    let batch = result.batch;
    lowering.finish(node, &result, batch)
}

/// The elements that ONNX takes along an axis of length `size`; `None` for a negative step.
fn cut(axis: usize, size: usize, [start, end, step]: [i64; 3]) -> Option<Cut> {
    let size = size as i64;
    let from_front = |at: i64| if at < 0 { at.saturating_add(size) } else { at }.clamp(0, size);
    let (start, end, step) =
        (from_front(start), from_front(end), usize::try_from(step).ok().filter(|&s| s > 0)?);
    let count = (usize::try_from(end - start).unwrap_or(0)).div_ceil(step);
    Some(Cut { axis, start: start as usize, count, step: if count == 1 { 1 } else { step } })
}

fn flip(lowering: &mut Lowering, node: &Node, x: Blob, axes: &[usize]) -> Lowered<Blob> {
    let axes: Vec<i64> = axes.iter().filter_map(|&axis| x.axis(axis)).map(|axis| axis as i64).collect();
    if axes.is_empty() {
        return Ok(x);
    }
    let y = lowering.between(node, "flipped", x.dims.clone(), x.batch);
    lowering.add(node, Layer::new("Flip").ints(0, axes), &[&x], &[&y]);
    Ok(y)
}

/// Consecutive elements along some axes.
fn crop(lowering: &mut Lowering, node: &Node, x: Blob, cuts: &[Cut]) -> Lowered<Blob> {
    let inside: Vec<(usize, &Cut)> = cuts.iter().filter_map(|cut| Some((x.axis(cut.axis)?, cut))).collect();
    if inside.is_empty() {
        return Ok(x);
    }
    let mut dims = x.dims.clone();
    for (_, cut) in &inside {
        dims[cut.axis] = cut.count;
    }
    let y = lowering.between(node, "part", dims, x.batch);
    let layer = Layer::new("Crop")
        .ints(9, inside.iter().map(|(_, cut)| cut.start as i64))
        .ints(10, inside.iter().map(|(_, cut)| (cut.start + cut.count) as i64))
        .ints(11, inside.iter().map(|(axis, _)| *axis as i64));
    lowering.add(node, layer, &[&x], &[&y]);
    Ok(y)
}

/// Every `step`-th element along an axis: the axis is split in two, (count, step), and one index of the second is taken.
fn every_nth(lowering: &mut Lowering, node: &Node, x: Blob, cut: Cut) -> Lowered<Blob> {
    let Cut { axis, start, count, step } = cut;
    let (before, size) = (x.dims[..axis].iter().product::<usize>(), x.dims[axis]);
    let behind = x.dims[axis + 1..].iter().product::<usize>();
    let lacking = (start + count * step).saturating_sub(size);
    let (first, offset, pad) =
        if lacking <= start { (start - lacking, lacking, 0) } else { (start, 0, lacking) };
    let mut matrix = lowering.view(node, &x, &[before, size, behind], None)?;
    if pad > 0 {
        let padded = lowering.between(node, "padded", vec![before, size + pad, behind], None);
        let bottom = [(0, 0), (1, pad), (2, 0), (3, 0), (4, 0)];
        let layer = bottom.into_iter().fold(Layer::new("Padding"), |layer, (id, value)| layer.int(id, value));
        lowering.add(node, layer, &[&matrix], &[&padded]);
        matrix = padded;
    }
    let window = Cut { axis: 1, start: first, count: count * step, step: 1 };
    if matrix.dims[1] != window.count {
        matrix = crop(lowering, node, matrix, &[window])?;
    }
    let split = lowering.view(node, &matrix, &[before, count, step, behind], None)?;
    let taken = crop(lowering, node, split, &[Cut { axis: 2, start: offset, count: 1, step: 1 }])?;
    let mut dims = x.dims.clone();
    dims[axis] = count;
    lowering.view(node, &taken, &dims, x.batch)
}

/// `Split`: `Slice`.
pub(super) fn split<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let x = lowering.input(node, 0)?;
    let axis = index(node.int("axis", 0), x.rank())?;
    let Some(inner) = x.axis(axis) else {
        let batch = x.batch;
        return lowering.alias(node, x, batch);
    };
    let mut parts = Vec::new();
    for i in 0..node.proto.output.len() {
        parts.push(lowering.output(node, i, x.batch)?);
    }
    let last = parts.len() - 1;
    // -233 stands for the rest.
    let sizes =
        parts.iter().enumerate().map(|(i, part)| if i == last { -233 } else { part.dims[axis] as i64 });
    let layer = Layer::new("Slice").ints(0, sizes).int(1, inner);
    lowering.add(node, layer, &[&x], &parts.iter().collect::<Vec<_>>());
    Ok(())
}

/// `Gather`: `Embed` for a look-up in a constant table, `Crop` for constant consecutive indices.
pub(super) fn gather<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let [table, indices] = [0, 1].map(|i| node.input_at(i).unwrap_or_default());
    if lowering.is_constant(table) && !lowering.is_constant(indices) {
        return embed(lowering, node, table);
    }
    let x = lowering.input(node, 0)?;
    let axis = index(node.int("axis", 0), x.rank())?;
    let Some(indices) = lowering.integers(node, 1, "")? else { return Err("its indices are missing".into()) };
    let size = x.dims[axis];
    let indices = indices.iter().map(|&i| index(i, size)).collect::<Lowered<Vec<_>>>()?;
    let consecutive = indices.windows(2).all(|pair| pair[1] == pair[0] + 1);
    let Some(&start) = indices.first().filter(|_| consecutive) else {
        return Err("its indices are not consecutive".into());
    };
    let part = crop(lowering, node, x, &[Cut { axis, start, count: indices.len(), step: 1 }])?;
    let dims = lowering.dims(&node.proto.output[0])?;
    let batch = match part.batch {
        Some(batch) if batch == axis => None,
        Some(batch) if batch > axis && dims.len() < part.rank() => Some(batch - 1),
        other => other,
    };
    lowering.finish(node, &part, batch)
}

fn embed<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>, table: &str) -> Lowered {
    let dims = lowering.dims(table)?;
    let (&[rows, columns], 0) = (dims.as_slice(), node.int("axis", 0)) else {
        return Err("it looks up something else than rows of a matrix".into());
    };
    let indices = lowering.input(node, 1)?;
    let result = lowering.dims(&node.proto.output[0])?;
    let flat = lowering.view(node, &indices, &[indices.dims.iter().product()], None)?;
    let y = lowering.between(node, "rows", vec![flat.dims[0], columns], None);
    let layer = Layer::new("Embed").int(0, columns).int(1, rows).int(2, 0).int(3, rows * columns);
    lowering.add(node, layer.weight(Weight::Tagged(lowering.floats(table)?)), &[&flat], &[&y]);
    lowering.finish(node, &y, indices.batch.filter(|&batch| result.get(batch) == Some(&1)))
}

/// `Pad`: `Padding`.
pub(super) fn pad<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let x = lowering.input(node, 0)?;
    let pads = lowering.integers(node, 1, "pads")?.ok_or("it has no pads")?;
    let axes = match lowering.integers(node, 3, "axes")? {
        Some(axes) => axes.iter().map(|&axis| index(axis, x.rank())).collect::<Lowered<Vec<_>>>()?,
        None => (0..x.rank()).collect(),
    };
    let value =
        lowering.weights(node, 2)?.and_then(|v| v.first().copied()).unwrap_or(node.float("value", 0.0));
    let kind = match node.attribute("mode").map(|a| a.s().to_vec()).as_deref() {
        None | Some(b"constant") => 0,
        Some(b"edge") => 1,
        Some(b"reflect") => 2,
        _ => return Err("its mode is another than constant, edge and reflect".into()),
    };
    let mut sides = [[0_i64; 2]; 3];
    let rank = x.shape().len();
    for (i, &axis) in axes.iter().enumerate() {
        let ends = [pads.get(i), pads.get(i + axes.len())].map(|p| p.copied().unwrap_or(0));
        match x.axis(axis).map(|inner| rank - 1 - inner) {
            _ if ends == [0, 0] => {}
            _ if ends.iter().any(|&p| p < 0) => return Err("it crops: its pads are negative".into()),
            Some(from_inside @ (0 | 1)) => sides[from_inside] = ends,
            Some(2) if rank == 3 && kind == 0 => sides[2] = ends,
            _ => return Err("it pads the batch, or an axis that cannot be padded that way".into()),
        }
    }
    let [[left, right], [top, bottom], [front, behind]] = sides;
    let sizes = [(0, top), (1, bottom), (2, left), (3, right), (4, kind), (7, front), (8, behind)];
    let layer = sizes.into_iter().fold(Layer::new("Padding"), |layer, (id, size)| layer.int(id, size));
    let y = lowering.output(node, 0, x.batch)?;
    lowering.add(node, layer.float(5, value), &[&x], &[&y]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_as_onnx_takes_them() {
        let cases = [
            ([1, 5, 1], Some((1, 4))),
            ([-3, i64::MAX, 1], Some((7, 3))),
            ([0, -1, 2], Some((0, 5))),
            ([8, 2, 1], Some((8, 0))),
            ([i64::MIN, 4, 3], Some((0, 2))),
            ([5, 0, -1], None),
        ];
        for (given, expected) in cases {
            assert_eq!(cut(0, 10, given).map(|c| (c.start, c.count)), expected, "{given:?}");
        }
    }
}
