//! Codes in the order of the kernel that multiplies by blocks, written while their levels are found.

use std::iter;

use bytes::Bytes;
use rayon::prelude::*;

use super::encode::{Encoded, Form};
use super::ruler::LANES;
use crate::tensor::{Memory, Parts};

/// Inputs of a block that `MatMulNBits` takes.
const LEAST_BLOCK: usize = 16;

/// Codes in the order that `MatMulNBits` reads: channels, blocks, inputs, two of them in a byte. They are unsigned there: 8
/// stands for 0 where there is no zero point, and a block that is not full ends in what stands for 0.
#[derive(Debug)]
pub(crate) struct BlockCodes(pub Bytes);

impl Form {
    /// What stands for 0 in [`BlockCodes`], given the zero points of some channels.
    fn middle(&self, zero: &[i8; LANES]) -> [i8; LANES] {
        if self.codec.has_zero_point() { *zero } else { [8; LANES] }
    }

    /// Whether `MatMulNBits` takes such weights.
    pub fn fits_kernel(&self) -> bool {
        let blocks = self.block.is_power_of_two() && self.block >= LEAST_BLOCK && self.dims.len() == 2;
        self.codec.has_blocks() && blocks
    }

    /// What each part has of the codes of its channels.
    fn rows_of_parts<'c>(
        &self,
        codes: &'c mut [u8],
    ) -> Box<dyn Iterator<Item = Vec<&'c mut [u8]>> + Send + 'c> {
        let row = (self.blocks() * self.block / 2).max(1);
        if self.layout.in_rows() {
            let channels = self.size() / self.layout.depth();
            return Box::new(
                codes.chunks_mut(channels * row).map(move |part| part.chunks_mut(row).collect()),
            );
        }
        let of_part = self.size() / self.layout.width() / 2;
        let piece =
            move |row: &mut &'c mut [u8]| row.split_off_mut(..of_part.min(row.len())).unwrap_or_default();
        let mut rows: Vec<_> = codes.chunks_mut(row).collect();
        Box::new(iter::repeat_with(move || rows.iter_mut().map(piece).collect()))
    }
}

impl Encoded {
    /// The same for the kernel that multiplies by blocks, which they [fit](Form::fits_kernel).
    pub fn into_blocks(self) -> Encoded<BlockCodes> {
        let Form { layout, block, .. } = self.form;
        let (half, blocks, channels) = (block / 2, self.form.blocks(), layout.channels);
        let row = (blocks * half).max(1);
        let mut codes = Memory::zeroed(channels * blocks * half);
        let strips = codes.as_mut().par_chunks_mut(LANES * row).enumerate();
        strips.for_each(|(number, codes)| {
            let first = number * LANES;
            let channels = first..channels.min(first + LANES);
            let mut levels = vec![[0; LANES]; layout.depth()];
            layout.take(self.levels(), &channels, &mut levels);
            let mut zeros = vec![[0; LANES]; blocks];
            for (b, zeros) in zeros.iter_mut().enumerate() {
                for (zero, channel) in zeros.iter_mut().zip(channels.clone()) {
                    *zero = self.zero_of(channel * blocks + b);
                }
            }
            let mut rows: Vec<_> = codes.chunks_exact_mut(row).collect();
            pack_blocks(&levels, block, |b| self.form.middle(&zeros[b]), &mut rows);
        });
        self.with(BlockCodes(codes.into()))
    }
}

impl Encoded<BlockCodes> {
    /// Of weights that [fit](Form::fits_kernel) the kernel.
    pub fn in_blocks(values: &Parts, form: Form) -> Self {
        let Form { layout, block, .. } = form;
        let mut codes = Memory::zeroed(layout.channels * (form.blocks() * block / 2));
        let targets = form.rows_of_parts(codes.as_mut());
        let encoded = form.clone().measure(values, targets, |rows: &mut Vec<&mut [u8]>, _, strip| {
            let middle = |b: usize| form.middle(&strip.grids[b].zero);
            pack_blocks(strip.levels, block, middle, &mut rows[strip.channels.clone()]);
        });
        encoded.with(BlockCodes(codes.into()))
    }
}

/// Packs levels of some channels, side by side, into the rows of these channels, given what stands for 0 in each block.
fn pack_blocks(
    levels: &[[i8; LANES]],
    block: usize,
    middle: impl Fn(usize) -> [i8; LANES],
    rows: &mut [&mut [u8]],
) {
    let count = rows.first().map_or(0, |row| row.len());
    for first in (0..count).step_by(LANES) {
        let pair = |i: usize| {
            let k = 2 * (first + i).min(count - 1);
            let level = |k: usize| levels.get(k).unwrap_or(&[0; LANES]);
            pair_up([level(k), level(k + 1)], &middle(k / block))
        };
        let columns = transposed(&std::array::from_fn(pair));
        for (row, column) in rows.iter_mut().zip(&columns) {
            match row[first..].first_chunk_mut() {
                Some(whole) => *whole = *column,
                None => row[first..].copy_from_slice(&column[..count - first]),
            }
        }
    }
}

/// Two levels in a byte, the first in the lower half, given what stands for 0.
fn pair_up([low, high]: [&[i8; LANES]; 2], middle: &[i8; LANES]) -> [u8; LANES] {
    let mut pair = [0; LANES];
    for lane in 0..LANES {
        pair[lane] = (low[lane] + middle[lane]) as u8 | ((high[lane] + middle[lane]) as u8) << 4;
    }
    pair
}

/// Rows as columns: in each step one half is interleaved with the other.
fn transposed(rows: &[[u8; LANES]; LANES]) -> [[u8; LANES]; LANES] {
    let mut rows = *rows;
    for _ in 0..LANES.ilog2() {
        rows = std::array::from_fn(|i| {
            let (a, b) = (&rows[i / 2], &rows[(i + LANES) / 2]);
            std::array::from_fn(|k| [a, b][k % 2][(i % 2 * LANES + k) / 2])
        });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::low_bit::Codec;
    use crate::quantize::low_bit::encode::tests::weights;

    #[test]
    fn codes_are_those_of_the_levels() {
        for name in ["int4", "uint4"] {
            for (dims, axis, block) in [
                (vec![70, 33], 0, 16),
                (vec![33, 70], 1, 16),
                (vec![4099, 40], 1, 128),
                (vec![64, 20], 1, 64),
            ] {
                let exact = Parts::from(weights(dims.iter().product()));
                let form = Form::new((&dims, axis), Codec::named(name).unwrap(), Some(block));
                assert!(form.fits_kernel());
                let levels = Encoded::new(&exact, form.clone());
                let codes = Encoded::in_blocks(&exact, form.clone());
                let middle = |channel, k| match levels.zero.is_empty() {
                    true => 8,
                    false => levels.zero_of(form.part(channel, k)),
                };
                let (depth, full) = (form.layout.depth(), form.blocks() * block);
                for channel in 0..form.layout.channels {
                    for k in 0..full {
                        let byte = codes.values.0[(channel * full + k) / 2];
                        let level = match k < depth {
                            true => levels.levels()[form.layout.place(channel, k)],
                            false => 0,
                        };
                        let middle = middle(channel, k.min(depth - 1));
                        assert_eq!(byte >> (k % 2 * 4) & 15, (level + middle) as u8, "{name} {channel} {k}");
                    }
                }
                assert_eq!((&codes.scale, &codes.zero), (&levels.scale, &levels.zero));
                assert_eq!(levels.into_blocks().values.0, codes.values.0);
            }
        }
    }
}
