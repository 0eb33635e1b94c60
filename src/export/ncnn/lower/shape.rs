//! Operators that move values, and those that do nothing once shapes are known.

use super::super::net::Layer;
use super::{Blob, Lowered, Lowering, Node, index};
use crate::graph::NodeExt;
use crate::tensor::DataType;

/// `Identity`, and `Dropout` at inference.
pub(super) fn identity<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    if node.proto.output.iter().skip(1).any(|o| !o.is_empty()) {
        return Err("its mask is used".into());
    }
    let x = lowering.input(node, 0)?;
    let batch = x.batch;
    lowering.alias(node, x, batch)
}

/// `Cast` among floating-point types: ncnn chooses how it stores numbers itself.
pub(super) fn cast<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    use DataType::{Bfloat16, Double, Float, Float16};
    let float = |t: i32| [Float, Float16, Bfloat16, Double].iter().any(|&f| f as i32 == t);
    let from = node.input_at(0).and_then(|value| lowering.graph.element_type(value));
    let to = i32::try_from(node.int("to", 0)).unwrap_or(0);
    if !float(to) || !from.is_some_and(float) {
        return Err("it casts from or to integers".into());
    }
    identity(lowering, node)
}

/// `Reshape`, `Flatten`, `Squeeze` and `Unsqueeze`: the shape of the result is known.
pub(super) fn reshape<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let x = lowering.input(node, 0)?;
    let dims = lowering.dims(&node.proto.output[0])?;
    let batch = batch_of(&x, &dims);
    lowering.finish(node, &x, batch)
}

/// Where a value of shape `dims` with the values of `x` has its batch: where that was, or at the first axis of length 1.
fn batch_of(x: &Blob, dims: &[usize]) -> Option<usize> {
    x.batch.filter(|&axis| dims.get(axis) == Some(&1)).or_else(|| dims.iter().position(|&d| d == 1))
}

/// `Transpose`.
pub(super) fn transpose<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let x = lowering.input(node, 0)?;
    let rank = x.rank();
    let perm: Vec<usize> = match node.attribute("perm") {
        Some(perm) => perm.ints.iter().map(|&axis| index(axis, rank)).collect::<Lowered<_>>()?,
        None => (0..rank).rev().collect(),
    };
    if perm.len() != rank {
        return Err("its perm has another length than its input".into());
    }
    let batch = perm.iter().position(|&axis| Some(axis) == x.batch);
    let order: Vec<usize> = perm.iter().filter_map(|&axis| x.axis(axis)).collect();
    let shape = x.shape();
    let moved = order.iter().copied().filter(|&axis| shape[axis] > 1);
    if moved.is_sorted() {
        // Axes of length 1 may go anywhere without a value being moved.
        return lowering.finish(node, &x, batch);
    }
    let code = permutation_code(&order).ok_or("it permutes more than four axes")?;
    let y = lowering.output(node, 0, batch)?;
    lowering.add(node, Layer::new("Permute").int(0, code), &[&x], &[&y]);
    Ok(())
}

/// The axes of `Permute`s of this rank, outermost first, and the orders of them, innermost first, by their number.
fn permutations(rank: usize) -> Option<(&'static str, &'static [&'static str])> {
    const TWO: &[&str] = &["wh", "hw"];
    const THREE: &[&str] = &["whc", "hwc", "wch", "cwh", "hcw", "chw"];
    #[rustfmt::skip]
    const FOUR: &[&str] = &[
        "whdc", "hwdc", "wdhc", "dwhc", "hdwc", "dhwc", "whcd", "hwcd", "wchd", "cwhd", "hcwd", "chwd",
        "wdch", "dwch", "wcdh", "cwdh", "dcwh", "cdwh", "hdcw", "dhcw", "hcdw", "chdw", "dchw", "cdhw",
    ];
    match rank {
        2 => Some(("hw", TWO)),
        3 => Some(("chw", THREE)),
        4 => Some(("cdhw", FOUR)),
        _ => None,
    }
}

/// The number that ncnn's `Permute` has for an order of axes, outermost first.
fn permutation_code(order: &[usize]) -> Option<i32> {
    let (names, codes) = permutations(order.len())?;
    let names: Vec<char> = names.chars().collect();
    let innermost_first: String = order.iter().rev().map(|&axis| names[axis]).collect();
    codes.iter().position(|code| **code == innermost_first).map(|code| code as i32)
}

/// The order of axes, outermost first, that ncnn's `Permute` has for a number.
pub(in super::super) fn permutation_order(code: i32, rank: usize) -> Option<Vec<usize>> {
    let (names, codes) = permutations(rank)?;
    let innermost_first = codes.get(usize::try_from(code).ok()?)?;
    innermost_first.chars().rev().map(|name| names.find(name)).collect()
}

/// `Concat`.
pub(super) fn concat<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let dims = lowering.dims(&node.proto.output[0])?;
    let axis = index(node.int("axis", 0), dims.len())?;
    let batch = lowering.common_batch(node, &dims)?.filter(|&batch| batch != axis);
    let mut parts = Vec::new();
    for i in 0..node.proto.input.len() {
        if lowering.dims(&node.proto.input[i])?.len() != dims.len() {
            return Err("its inputs have different ranks".into());
        }
        parts.push(lowering.operand(node, i, dims.len(), batch)?);
    }
    if let [only] = parts.as_slice() {
        return lowering.finish(node, &only.clone(), batch);
    }
    let y = lowering.output(node, 0, batch)?;
    let axis = y.axis(axis).ok_or("it runs over the batch")?;
    lowering.add(node, Layer::new("Concat").int(0, axis), &parts.iter().collect::<Vec<_>>(), &[&y]);
    Ok(())
}

/// `Expand` and `Tile`: `Tile`.
pub(super) fn expand<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let dims = lowering.dims(&node.proto.output[0])?;
    let batch = lowering.common_batch(node, &dims)?;
    let x = lowering.operand(node, 0, dims.len(), batch)?;
    let (from, to) = (x.shape(), super::shape_of(&dims, batch));
    if from == to {
        return lowering.finish(node, &x, batch);
    }
    let y = lowering.output(node, 0, batch)?;
    let repeats = from.iter().zip(&to).map(|(&from, &to)| (to / from) as i64);
    lowering.add(node, Layer::new("Tile").ints(2, repeats), &[&x], &[&y]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_have_the_numbers_of_ncnn() {
        let cases: [(&[usize], i32); 6] = [
            (&[1, 0], 1),
            (&[0, 2, 1], 1),
            (&[1, 0, 2], 2),
            (&[1, 2, 0], 3),
            (&[2, 0, 1], 4),
            (&[3, 2, 1, 0], 23),
        ];
        for (order, code) in cases {
            assert_eq!(permutation_code(order), Some(code), "{order:?}");
            assert_eq!(permutation_order(code, order.len()).as_deref(), Some(order));
        }
    }
}
