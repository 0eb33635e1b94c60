//! How the channels lie in a weight tensor, how large each is, and its values as integers.

use bytes::Bytes;

use super::WeightGrid;
use super::operand::{channel_axis, finite};
use crate::error::Result;
use crate::graph::{Graph, NodeId};
use crate::kernels;
use crate::onnx::TensorProto;
use crate::qparams::QuantParams;
use crate::quantize::pairs::Pairs;
use crate::tensor::{Memory, Parts};

/// How large weights are.
pub(crate) struct Extent {
    /// The magnitude that 127 stands for, for each output channel.
    pub limits: Vec<f32>,
    /// Sum of the squares; NaN or infinite if a weight is.
    pub power: f64,
    /// Channels whose weights are all zero.
    pub(super) dead_channels: usize,
}

impl Extent {
    /// Itself, unless a value of `tensor`, which it is of, is not finite.
    pub(super) fn checked(self, tensor: &TensorProto) -> Result<Self> {
        if !self.power.is_finite() {
            finite(tensor)?;
        }
        Ok(self)
    }
}

/// The extent of the weights of node `id`.
pub(crate) fn extent(graph: &Graph, id: NodeId, values: &Parts, dims: &[usize], grid: WeightGrid) -> Extent {
    let axis = channel_axis(graph, id);
    Channels::new(dims, axis).extent(values, &grid.room(graph.node(id), dims, axis))
}

/// Weights as int8, and how far they are from what they were.
pub(crate) struct Integers {
    pub values: Bytes,
    /// For each channel.
    pub scale: Vec<f32>,
    /// Sum of the squares; NaN or infinite if a weight is.
    pub power: f64,
    /// Sum of the squared errors.
    pub noise: f64,
}

/// Weights with their channels along `axis` as integers, 127 standing for the largest magnitude in each channel.
pub(crate) fn by_largest(values: &Parts, dims: &[usize], axis: usize) -> Integers {
    let channels = Channels::new(dims, axis);
    let Extent { limits, power, .. } = channels.extent(values, &Pairs::None);
    let scale = QuantParams::per_channel(&limits, axis).scale;
    let (values, noise) = channels.quantize(values, &scale);
    Integers { values, scale, power, noise }
}

/// Values that are read at a time: few enough for the caches.
const PART: usize = 1 << 18;

/// How the channels lie in a weight tensor: a row, which is all of one index of the first axis, is one of them, or has all
/// of them.
pub(super) struct Channels {
    pub(super) count: usize,
    in_rows: bool,
    /// Values in a row.
    row: usize,
    /// Values of a channel in a row.
    pub(super) inner: usize,
}

impl Channels {
    pub(super) fn new(dims: &[usize], axis: usize) -> Self {
        debug_assert!(axis <= 1);
        // At least 1, so that slices can be cut; a tensor without values has no slices.
        let values = |axes: &[usize]| axes.iter().fold(1_usize, |n, &d| n.saturating_mul(d)).max(1);
        Self {
            count: dims[axis],
            in_rows: axis == 0,
            row: values(&dims[1..]),
            inner: values(&dims[axis + 1..]),
        }
    }

    /// Values of an even number of rows.
    fn part(&self) -> usize {
        let pair = self.row.saturating_mul(2);
        pair.saturating_mul((PART / pair).max(1))
    }

    /// The first channel of the part that begins with this value.
    fn first(&self, start: usize) -> usize {
        if self.in_rows { start / self.row } else { 0 }
    }

    pub(super) fn extent(&self, values: &Parts, pairs: &Pairs) -> Extent {
        let found = values.map(self.part(), |start, rows| {
            if let Some((sizes, sums, squares)) = pairs.extents_of_columns(rows, self.inner) {
                return (0, sizes, sums, squares);
            }
            let sizes = self.abs_max(rows);
            (self.first(start), sizes, pairs.largest_sums(rows), kernels::sum_of_squares(rows))
        });
        let (mut sizes, mut limits) = (vec![0.0; self.count], vec![0.0; self.count]);
        let mut power = 0.0;
        for (first, part, sums, squares) in found {
            kernels::raise_abs_max(&mut sizes[first..][..part.len()], &part);
            kernels::raise_abs_max(&mut limits[first..][..sums.len()], &sums);
            power += squares;
        }
        kernels::raise_abs_max(&mut limits, &sizes);
        Extent { limits, power, dead_channels: sizes.iter().filter(|&&size| size == 0.0).count() }
    }

    /// The largest magnitude in each channel of some rows.
    fn abs_max(&self, rows: &[f32]) -> Vec<f32> {
        if self.in_rows {
            return rows.chunks_exact(self.row).map(kernels::abs_max).collect();
        }
        let mut largest = vec![0.0; self.count];
        for row in rows.chunks_exact(self.row) {
            if self.inner == 1 {
                kernels::raise_abs_max(&mut largest, row);
                continue;
            }
            for (most, values) in largest.iter_mut().zip(row.chunks_exact(self.inner)) {
                *most = kernels::abs_max(values).max(*most);
            }
        }
        largest
    }

    /// All values as integers, given the scale of each channel, and the sum of the squared errors.
    pub(super) fn quantize(&self, values: &Parts, scale: &[f32]) -> (Bytes, f64) {
        let mut integers = Memory::zeroed(values.count());
        let part = self.part();
        let noise = values.map_to(part, integers.as_mut().chunks_mut(part), |start, rows, target| {
            self.quantize_rows(rows, &scale[self.first(start)..], bytemuck::cast_slice_mut(target))
        });
        (integers.into(), noise.into_iter().sum())
    }

    /// Some rows, given the scales from their first channel on; returns the sum of the squared errors.
    fn quantize_rows(&self, rows: &[f32], scale: &[f32], integers: &mut [i8]) -> f64 {
        if self.inner == 1 && !self.in_rows {
            let rows = rows.chunks_exact(self.row).zip(integers.chunks_exact_mut(self.row));
            return rows.map(|(x, out)| kernels::quantize_columns(x, scale, out)).sum();
        }
        let of_channel = |((x, out), &scale): ((&[f32], &mut [i8]), &f32)| {
            kernels::quantize_clamped(x, scale, 0, -127, 127, out);
            kernels::quantization_error(x, scale, 0, -127, 127)
        };
        let channels = rows.chunks_exact(self.inner).zip(integers.chunks_exact_mut(self.inner));
        channels.zip(scale.iter().cycle()).map(of_channel).sum()
    }
}
