//! Weights as levels: which of them share a scale, and where what was found for each belongs.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use rayon::prelude::*;

use super::codecs::{Codec, Fit};
use super::ruler::{Grids, LANES, Ruler};
use crate::kernels;
use crate::quantize::weights;
use crate::tensor::{Memory, Parts};

/// Channels that are read together where each lies in memory as a whole.
const GROUP: usize = 32;

/// Values that are read at a time.
const PART: usize = 1 << 15;

/// Inputs of a block that `MatMulNBits` takes.
const LEAST_BLOCK: usize = 16;

/// Weights as levels, or as codes for one kernel.
#[derive(Debug)]
pub(crate) struct Encoded<V = Levels> {
    pub form: Form,
    pub values: V,
    /// Scales, `channels × blocks`.
    pub scale: Vec<f32>,
    /// Zero points, as many; empty where the format has none.
    pub zero: Vec<i8>,
    /// Sum of the squares; NaN or infinite if a weight is.
    pub power: f64,
    /// Sum of the squared errors.
    pub noise: f64,
}

/// Levels less their zero points, in the order of the weights: int8 numbers.
#[derive(Debug)]
pub(crate) struct Levels(pub Bytes);

/// Codes in the order that `MatMulNBits` reads: channels, blocks, inputs, two of them in a byte. They are unsigned there: 8
/// stands for 0 where there is no zero point, and a block that is not full ends in what stands for 0.
#[derive(Debug)]
pub(crate) struct BlockCodes(pub Bytes);

/// How weights are encoded.
#[derive(Debug, Clone)]
pub(crate) struct Form {
    pub codec: &'static Codec,
    pub dims: Vec<usize>,
    /// Of the output channels.
    pub axis: usize,
    pub layout: Layout,
    /// Inputs that share a scale.
    pub block: usize,
}

impl Form {
    /// Of weights with their channels along `axis`; `block` inputs share a scale if the format has blocks, or all of a channel.
    pub fn new((dims, axis): (&[usize], usize), codec: &'static Codec, block: Option<usize>) -> Self {
        let layout = Layout::new(dims, axis);
        let depth = layout.depth();
        let block = block.filter(|_| codec.has_blocks()).unwrap_or(depth).clamp(1, depth.max(1));
        Self { codec, dims: dims.to_vec(), axis, layout, block }
    }

    /// What stands for 0 in [`BlockCodes`], given the zero points of some channels.
    fn middle(&self, zero: &[i8; LANES]) -> [i8; LANES] {
        if self.codec.has_zero_point() { *zero } else { [8; LANES] }
    }

    /// Whether `MatMulNBits` takes such weights.
    pub fn fits_kernel(&self) -> bool {
        let blocks = self.block.is_power_of_two() && self.block >= LEAST_BLOCK && self.dims.len() == 2;
        self.codec.has_blocks() && blocks
    }

    /// Blocks of a channel.
    pub fn blocks(&self) -> usize {
        self.layout.depth().div_ceil(self.block)
    }

    /// The place of input `k` of a channel among the scales.
    pub fn part(&self, channel: usize, k: usize) -> usize {
        channel * self.blocks() + k / self.block
    }

    /// Values that are read at a time.
    fn size(&self) -> usize {
        self.layout.part(self.block).max(1)
    }

    /// What each part has of the codes of its channels.
    fn rows_of_parts<'c>(&self, codes: &'c mut [u8]) -> Vec<Vec<&'c mut [u8]>> {
        let row = (self.blocks() * self.block / 2).max(1);
        let mut rows: Vec<_> = codes.chunks_mut(row).collect();
        if self.layout.in_rows() {
            let mut parts = Vec::new();
            while !rows.is_empty() {
                let others = rows.split_off(GROUP.min(rows.len()));
                parts.push(std::mem::replace(&mut rows, others));
            }
            return parts;
        }
        let of_part = self.size() / self.layout.width() / 2;
        let piece = |row: &mut &'c mut [u8]| row.split_off_mut(..of_part.min(row.len())).unwrap_or_default();
        (0..row.div_ceil(of_part)).map(|_| rows.iter_mut().map(piece).collect()).collect()
    }

    /// Finds the levels of all weights; `put` takes those of some channels to the target of the part that they are in.
    fn measure<T: Send>(
        self,
        values: &Parts,
        targets: Vec<T>,
        put: impl Fn(&mut T, &Layout, &Strip) + Sync,
    ) -> Encoded<()> {
        let ruler = Ruler::new(self.codec);
        let targets: Vec<_> = targets.into_iter().map(Mutex::new).collect();
        let size = self.size();
        let parts = values.map(size, |start, weights| {
            let layout = self.layout.of_part(weights.len());
            // Nobody else asks for the lock of this part.
            let mut target = targets[start / size].lock().unwrap_or_else(PoisonError::into_inner);
            Part::new(&ruler, &layout, (weights, self.block), |strip| put(&mut target, &layout, strip))
        });
        let zero = || by_channel(&self.layout, &parts, |grid| &grid.zero);
        Encoded {
            scale: by_channel(&self.layout, &parts, |grid| &grid.scale),
            zero: if self.codec.has_zero_point() { zero() } else { Vec::new() },
            power: parts.iter().map(|part| part.power).sum(),
            noise: parts.iter().map(Part::noise).sum(),
            form: self,
            values: (),
        }
    }
}

impl<V> Encoded<V> {
    /// The zero point of a part.
    pub fn zero_of(&self, part: usize) -> i8 {
        self.zero.get(part).copied().unwrap_or(0)
    }

    /// The same with other values.
    fn with<W>(self, values: W) -> Encoded<W> {
        let Self { form, scale, zero, power, noise, .. } = self;
        Encoded { form, values, scale, zero, power, noise }
    }
}

/// Where the inputs of each output channel lie in a weight tensor, or in a part of one: `outer × channels × inner`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    outer: usize,
    pub channels: usize,
    inner: usize,
}

impl Layout {
    /// Of a tensor whose channels are along `axis`.
    pub fn new(dims: &[usize], axis: usize) -> Self {
        let count = |dims: &[usize]| dims.iter().product();
        Self { outer: count(&dims[..axis]), channels: dims[axis], inner: count(&dims[axis + 1..]) }
    }

    /// Inputs of a channel.
    pub fn depth(&self) -> usize {
        self.outer * self.inner
    }

    /// Whether each channel lies in memory as a whole.
    pub fn in_rows(&self) -> bool {
        self.outer == 1
    }

    /// Position in the tensor of input `k` of `channel`.
    pub fn place(&self, channel: usize, k: usize) -> usize {
        (k / self.inner * self.channels + channel) * self.inner + k % self.inner
    }

    /// Channel, and input of it, at a position in the tensor.
    pub fn at(&self, place: usize) -> (usize, usize) {
        let (row, i) = (place / self.inner, place % self.inner);
        (row % self.channels, row / self.channels * self.inner + i)
    }

    /// Values between one input of a channel and the next, where channels do not lie in memory as a whole.
    fn width(&self) -> usize {
        (self.channels * self.inner).max(1)
    }

    /// How many values that lie together are whole blocks, and about as many as are read at a time.
    fn part(&self, block: usize) -> usize {
        let width = self.width();
        if self.in_rows() {
            GROUP * self.inner
        } else if self.inner == 1 {
            (PART / (block * width)).max(1) * block * width
        } else {
            self.outer * width
        }
    }

    /// Of so many values of a [`part`](Self::part).
    fn of_part(&self, values: usize) -> Self {
        if self.in_rows() {
            Self { channels: values / self.inner, ..*self }
        } else {
            Self { outer: values / self.width(), ..*self }
        }
    }

    /// The channels, as many at a time as a strip has.
    fn strips(&self) -> impl Iterator<Item = Range<usize>> {
        let channels = self.channels;
        (0..channels).step_by(LANES).map(move |first| first..channels.min(first + LANES))
    }

    /// The positions of what these channels have in each row that lies together: the first input, and where they begin.
    fn rows(&self, channels: &Range<usize>) -> impl Iterator<Item = (usize, usize)> {
        let (outer, inner, all, first) = (self.outer, self.inner, self.channels, channels.start);
        (0..outer).map(move |row| (row * inner, (row * all + first) * inner))
    }

    /// Takes the weights, or levels, of these channels, side by side; lanes without a channel are 0.
    fn take<T: Copy + Default>(&self, all: &[T], channels: &Range<usize>, strip: &mut [[T; LANES]]) {
        if channels.len() < LANES {
            strip.fill([T::default(); LANES]);
        }
        for (k, start) in self.rows(channels) {
            if self.inner == 1 {
                copy(&all[start..][..channels.len()], &mut strip[k]);
                continue;
            }
            for (lane, values) in all[start..].chunks(self.inner).take(channels.len()).enumerate() {
                for (of_input, &value) in strip[k..].iter_mut().zip(values) {
                    of_input[lane] = value;
                }
            }
        }
    }

    /// Puts the levels of these channels where they belong.
    fn put(&self, strip: &[[i8; LANES]], channels: &Range<usize>, all: &mut [i8]) {
        for (k, start) in self.rows(channels) {
            if self.inner == 1 {
                copy(&strip[k], &mut all[start..][..channels.len()]);
                continue;
            }
            for (lane, values) in all[start..].chunks_mut(self.inner).take(channels.len()).enumerate() {
                for (value, of_input) in values.iter_mut().zip(&strip[k..]) {
                    *value = of_input[lane];
                }
            }
        }
    }
}

/// Copies as many values as there are and as there is room for: a whole row of a strip without a call.
fn copy<T: Copy>(from: &[T], to: &mut [T]) {
    if let (Some(from), Some(to)) = (from.first_chunk::<LANES>(), to.first_chunk_mut()) {
        *to = *from;
    } else {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }
}

/// Levels of some channels side by side, and what they mean in each block.
struct Strip<'l> {
    channels: Range<usize>,
    levels: &'l [[i8; LANES]],
    grids: &'l [Grids],
}

/// What is known of the blocks of a part of the weights.
struct Part {
    /// Of each channel.
    blocks: usize,
    /// Those of the channels of a strip after the other.
    grids: Vec<Grids>,
    power: f64,
}

impl Part {
    /// Finds the levels, and hands those of a few channels at a time to a function.
    fn new(
        ruler: &Ruler,
        layout: &Layout,
        (weights, block): (&[f32], usize),
        mut put: impl FnMut(&Strip),
    ) -> Self {
        // In their order, before they are read in columns: so they are in the caches.
        let power = kernels::sum_of_squares(weights);
        let mut strip = vec![[0.0; LANES]; layout.depth()];
        let mut levels = vec![[0; LANES]; layout.depth()];
        let mut grids = Vec::new();
        for channels in layout.strips() {
            layout.take(weights, &channels, &mut strip);
            let pairs = strip.chunks(block).zip(levels.chunks_mut(block));
            let known = grids.len();
            grids.extend(pairs.map(|(weights, levels)| ruler.measure(weights, levels)));
            put(&Strip { channels, levels: &levels, grids: &grids[known..] });
        }
        Self { blocks: layout.depth().div_ceil(block), grids, power }
    }

    /// Lanes without a channel have none.
    fn noise(&self) -> f64 {
        self.grids.iter().map(|grid| grid.noise.iter().sum::<f64>()).sum()
    }
}

impl Encoded {
    /// Of weights.
    pub fn new(values: &Parts, form: Form) -> Self {
        if form.codec.fit == Fit::AbsMax {
            let rows = weights::by_largest(values, &form.dims, form.axis);
            let (scale, power, noise) = (rows.scale, rows.power, rows.noise);
            return Self { form, values: Levels(rows.values), scale, zero: Vec::new(), power, noise };
        }
        let mut levels = Memory::passing(values.count());
        let targets = levels.as_mut().chunks_mut(form.size()).collect();
        let encoded = form.measure(values, targets, |target: &mut &mut [u8], layout, strip| {
            layout.put(strip.levels, &strip.channels, bytemuck::cast_slice_mut(target));
        });
        encoded.with(Levels(levels.into()))
    }

    /// Levels less their zero points, in the order of the weights.
    pub fn levels(&self) -> &[i8] {
        bytemuck::cast_slice(&self.values.0)
    }

    /// Puts other levels in their place.
    pub fn set_levels(&mut self, levels: Vec<i8>) {
        self.values = Levels(bytemuck::allocation::cast_vec::<i8, u8>(levels).into());
    }

    /// Puts channels on other scales, beside which their weights are nothing.
    pub fn silence(&mut self, channels: &[(usize, f32)]) {
        if channels.is_empty() {
            return;
        }
        let least =
            self.form.codec.levels.iter().copied().min_by_key(|level| level.unsigned_abs()).unwrap_or(0);
        let mut levels = self.levels().to_vec();
        for &(channel, scale) in channels {
            let part = self.form.part(channel, 0);
            self.scale[part] = scale;
            for k in 0..self.form.layout.depth() {
                levels[self.form.layout.place(channel, k)] = least;
            }
            if let Some(zero) = self.zero.get_mut(part) {
                *zero = 0;
            }
        }
        self.set_levels(levels);
    }

    /// The level at a position in the tensor.
    pub fn level(&self, place: usize) -> i8 {
        let (channel, k) = self.form.layout.at(place);
        self.levels()[place] + self.zero_of(self.form.part(channel, k))
    }

    /// The codes, in the order of the tensor.
    pub fn packed(&self) -> Vec<u8> {
        /// Whole bytes of any format.
        const MANY: usize = 1 << 16;
        let level = |place: usize| match self.zero.is_empty() {
            true => self.levels()[place],
            false => self.level(place),
        };
        let count = self.levels().len();
        let starts = (0..count).into_par_iter().step_by(MANY);
        let parts: Vec<Vec<u8>> =
            starts.map(|start| self.form.codec.pack((start..count.min(start + MANY)).map(level))).collect();
        parts.concat()
    }

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

/// What is known of the blocks of weights, `channels × blocks`.
fn by_channel<T: Copy + Default>(
    layout: &Layout,
    parts: &[Part],
    of: impl Fn(&Grids) -> &[T; LANES],
) -> Vec<T> {
    let of_part = parts.first().map_or(0, |part| part.blocks);
    let blocks = if layout.in_rows() { of_part } else { parts.iter().map(|part| part.blocks).sum() };
    let mut all = vec![T::default(); layout.channels * blocks];
    for (number, part) in parts.iter().enumerate() {
        let (channel, block) = if layout.in_rows() { (number * GROUP, 0) } else { (0, number * of_part) };
        let strips = part.grids.chunks(part.blocks.max(1)).zip((channel..).step_by(LANES));
        for (grids, first) in strips {
            let lanes = LANES.min(layout.channels - first);
            for (b, grid) in grids.iter().enumerate() {
                for (lane, value) in of(grid)[..lanes].iter().enumerate() {
                    all[(first + lane) * blocks + block + b] = *value;
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::low_bit::CODECS;

    fn weights(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + 13) % 1009) as f32 / 300.0 - 1.5).collect()
    }

    #[test]
    fn every_weight_has_the_nearest_level() {
        for codec in &CODECS {
            for (dims, axis, block) in
                [(vec![5, 33], 0, None), (vec![33, 5], 1, Some(16)), (vec![3, 4, 2, 2], 1, None)]
            {
                let exact = weights(dims.iter().product());
                let form = Form::new((&dims, axis), codec, block);
                let encoded = Encoded::new(&Parts::from(exact.clone()), form);
                let mut noise = 0.0;
                for (place, &w) in exact.iter().enumerate() {
                    let (channel, k) = encoded.form.layout.at(place);
                    assert_eq!(encoded.form.layout.place(channel, k), place);
                    let part = encoded.form.part(channel, k);
                    let (scale, zero) = (encoded.scale[part], encoded.zero_of(part));
                    let distance = |level: i8| (scale * f32::from(level - zero) - w).abs();
                    let least = codec.levels.iter().map(|&level| distance(level)).fold(f32::MAX, f32::min);
                    let own = distance(encoded.level(place));
                    assert!(own <= least * 1.000_1 + 1e-6, "{} {w} {own} {least}", codec.name);
                    noise += f64::from(own).powi(2);
                }
                assert!((noise - encoded.noise).abs() < 1e-3 * noise, "{} {noise}", codec.name);
            }
        }
    }

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

    #[test]
    fn zeros_stay_zeros() {
        for codec in &CODECS {
            let encoded = Encoded::new(&Parts::from(vec![0.0; 20]), Form::new((&[2, 10], 0), codec, None));
            let products = encoded.levels().iter().map(|&v| f32::from(v) * encoded.scale[0]);
            assert!(products.into_iter().all(|w| w == 0.0), "{}", codec.name);
        }
    }
}
