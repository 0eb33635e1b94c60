//! A constant with its axes in another order.

use rayon::prelude::*;

use super::{Memory, element_count, shape};
use crate::error::Result;
use crate::onnx::TensorProto;

/// Rows and columns that are moved together, so that both sides stay in the cache.
const TILE: usize = 32;

/// `tensor` under a new name, axis i of it being axis `perm[i]` of the old one (ONNX Transpose-13). `None` where its elements
/// have no fixed number of bytes, are not in `raw_data`, or `perm` is not a permutation of its axes.
///
/// # Errors
/// [`crate::Error::Tensor`] for an impossible shape.
pub fn transposed(tensor: &TensorProto, name: &str, perm: &[usize]) -> Result<Option<TensorProto>> {
    let (dims, count) = (shape(tensor)?, element_count(tensor)?);
    let mut sorted = perm.to_vec();
    sorted.sort_unstable();
    let raw = tensor.raw_data.as_ref().filter(|raw| count > 0 && raw.len() % count == 0);
    let Some(raw) = raw.filter(|_| sorted.iter().copied().eq(0..dims.len())) else { return Ok(None) };
    let move_elements = match raw.len() / count {
        1 => moved::<1>,
        2 => moved::<2>,
        4 => moved::<4>,
        8 => moved::<8>,
        _ => return Ok(None),
    };
    let mut target = Memory::zeroed(raw.len());
    move_elements(raw, target.as_mut(), &dims, perm);
    Ok(Some(TensorProto {
        dims: perm.iter().map(|&axis| dims[axis] as i64).collect(),
        data_type: tensor.data_type,
        name: Some(name.to_owned()),
        raw_data: Some(target.into()),
        ..TensorProto::default()
    }))
}

/// The rows of a matrix with so many columns as columns.
pub(crate) fn matrix_transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let mut result = vec![0.0; values.len()];
    if !values.is_empty() {
        let dims = [values.len() / columns, columns];
        moved::<{ size_of::<f32>() }>(
            bytemuck::cast_slice(values),
            bytemuck::cast_slice_mut(&mut result),
            &dims,
            &[1, 0],
        );
    }
    result
}

/// Elements of `SIZE` bytes, matrix by matrix: the rows of the output are where its last axis but one was, or what stands
/// for it, its columns the last.
fn moved<const SIZE: usize>(source: &[u8], target: &mut [u8], dims: &[usize], perm: &[usize]) {
    let (source, target) = (source.as_chunks::<SIZE>().0, target.as_chunks_mut::<SIZE>().0);
    let stride = |axis: usize| dims[axis + 1..].iter().product::<usize>();
    let axes: Vec<(usize, usize)> = perm.iter().map(|&axis| (dims[axis], stride(axis))).collect();
    let (outer, inner) = axes.split_at(axes.len().saturating_sub(2));
    let ((rows, row_stride), (columns, column_stride)) = match *inner {
        [rows, columns] => (rows, columns),
        [columns] => ((1, 0), columns),
        _ => ((1, 0), (1, 0)),
    };
    target.par_chunks_mut(rows * columns).enumerate().for_each(|(matrix, target)| {
        let (mut rest, mut start) = (matrix, 0);
        for &(length, stride) in outer.iter().rev() {
            start += rest % length * stride;
            rest /= length;
        }
        let tile = |(tile, target): (usize, &mut [[u8; SIZE]])| {
            for from in (0..columns).step_by(TILE) {
                let to = columns.min(from + TILE);
                for (row, target) in target.chunks_mut(columns).enumerate() {
                    let start = start + (tile * TILE + row) * row_stride;
                    for column in from..to {
                        target[column] = source[start + column * column_stride];
                    }
                }
            }
        };
        target.par_chunks_mut(TILE * columns).enumerate().for_each(tile);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{floats, tensor};

    #[test]
    fn agrees_with_the_definition() {
        let dims = [2, 3, 5, 4];
        let values: Vec<f32> = (0..120).map(|v| v as f32).collect();
        let old = tensor("old", &dims, &values);
        for perm in [[0, 1, 2, 3], [3, 2, 0, 1], [1, 0, 3, 2], [2, 3, 0, 1], [0, 3, 1, 2]] {
            let new = transposed(&old, "new", &perm).unwrap().unwrap();
            let new_dims = shape(&new).unwrap();
            for (i, value) in floats(&new).unwrap().into_iter().enumerate() {
                let (mut rest, mut index) = (i, [0; 4]);
                for axis in (0..4).rev() {
                    index[perm[axis]] = rest % new_dims[axis];
                    rest /= new_dims[axis];
                }
                let flat = index.iter().zip(dims).fold(0, |flat, (i, d)| flat * d + i);
                assert_eq!(value, values[flat], "{perm:?}");
            }
        }
    }

    #[test]
    fn tiles_have_rests() {
        let values: Vec<f32> = (0..77 * 70).map(|v| v as f32).collect();
        let new = transposed(&tensor("old", &[77, 70], &values), "new", &[1, 0]).unwrap().unwrap();
        for (i, value) in floats(&new).unwrap().into_iter().enumerate() {
            assert_eq!(value, values[i % 77 * 70 + i / 77]);
        }
    }

    #[test]
    fn matrices_of_numbers() {
        for (rows, columns) in [(77, 70), (1, 5), (5, 1), (0, 3), (3, 0)] {
            let values: Vec<f32> = (0..rows * columns).map(|v| v as f32).collect();
            for (i, value) in matrix_transposed(&values, columns).into_iter().enumerate() {
                assert_eq!(value, values[i % rows * columns + i / rows]);
            }
        }
    }

    #[test]
    fn other_orders_than_permutations_are_refused() {
        let old = tensor("old", &[2, 3], &[0_f32; 6]);
        for perm in [&[0][..], &[0, 0], &[0, 2], &[0, 1, 2]] {
            assert!(transposed(&old, "new", perm).unwrap().is_none());
        }
        assert!(transposed(&tensor::<f32>("none", &[0, 3], &[]), "new", &[1, 0]).unwrap().is_none());
    }
}
