//! Weights as levels: which of them share a scale, and where what was found for each belongs.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use rayon::prelude::*;

use super::codecs::{Codec, Fit};
use super::ruler::{LANES, Ruler};
use crate::kernels;
use crate::quantize::weights;
use crate::tensor::{Memory, Parts};

/// Channels that are read together where each lies in memory as a whole.
const GROUP: usize = 32;

/// Values that are read at a time.
const PART: usize = 1 << 17;

/// Weights as levels.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub codec: &'static Codec,
    pub dims: Vec<usize>,
    /// Of the output channels.
    pub axis: usize,
    pub layout: Layout,
    /// Inputs that share a scale.
    pub block: usize,
    /// Levels less their zero points, in the order of the weights: int8 numbers.
    pub values: Bytes,
    /// Scales, `channels × blocks`.
    pub scale: Vec<f32>,
    /// Zero points, as many; empty where the format has none.
    pub zero: Vec<i8>,
    /// Sum of the squares; NaN or infinite if a weight is.
    pub power: f64,
    /// Sum of the squared errors.
    pub noise: f64,
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

    /// How many values that lie together are whole blocks, and about as many as are read at a time.
    fn part(&self, block: usize) -> usize {
        let width = self.channels * self.inner;
        if self.in_rows() {
            GROUP * self.inner
        } else if self.inner == 1 {
            (PART / (block * width).max(1)).max(1) * block * width
        } else {
            self.outer * width
        }
    }

    /// Of so many values of a [`part`](Self::part).
    fn of_part(&self, values: usize) -> Self {
        if self.in_rows() {
            Self { channels: values / self.inner, ..*self }
        } else {
            Self { outer: values / (self.channels * self.inner), ..*self }
        }
    }

    /// The channels, as many at a time as a strip has.
    fn strips(&self) -> impl IndexedParallelIterator<Item = Range<usize>> {
        let channels = self.channels;
        (0..channels).into_par_iter().step_by(LANES).map(move |first| first..channels.min(first + LANES))
    }

    /// The positions of what these channels have in each row that lies together: the first input, and where they begin.
    fn rows(&self, channels: &Range<usize>) -> impl Iterator<Item = (usize, usize)> {
        let (outer, inner, all, first) = (self.outer, self.inner, self.channels, channels.start);
        (0..outer).map(move |row| (row * inner, (row * all + first) * inner))
    }

    /// The weights of these channels, side by side; lanes without a channel are 0.
    fn strip(&self, all: &[f32], channels: &Range<usize>) -> Vec<[f32; LANES]> {
        let mut strip = vec![[0.0; LANES]; self.depth()];
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
        strip
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

/// What is known of the blocks of a part of the weights, `channels × blocks`.
struct Part {
    scale: Vec<f32>,
    /// Empty where the format has none.
    zero: Vec<i8>,
    power: f64,
    noise: f64,
}

impl Part {
    /// Finds the levels, in the order of the weights.
    fn new(ruler: &Ruler, layout: Layout, (weights, block): (&[f32], usize), levels: &mut [i8]) -> Self {
        // In their order, before they are read in columns: so they are in the caches.
        let power = kernels::sum_of_squares(weights);
        let found: Vec<_> = layout
            .strips()
            .map(|channels| {
                let strip = layout.strip(weights, &channels);
                let mut levels = vec![[0; LANES]; strip.len()];
                let pairs = strip.chunks(block).zip(levels.chunks_mut(block));
                let grids: Vec<_> = pairs.map(|(weights, levels)| ruler.measure(weights, levels)).collect();
                (channels, levels, grids)
            })
            .collect();
        let mut part = Self { scale: Vec::new(), zero: Vec::new(), power, noise: 0.0 };
        for (channels, of_strip, grids) in found {
            layout.put(&of_strip, &channels, levels);
            for lane in 0..channels.len() {
                part.scale.extend(grids.iter().map(|grid| grid.scale[lane]));
                if ruler.has_zero_point() {
                    part.zero.extend(grids.iter().map(|grid| grid.zero[lane]));
                }
                part.noise += grids.iter().map(|grid| grid.noise[lane]).sum::<f64>();
            }
        }
        part
    }
}

impl Encoded {
    /// Of weights with their channels along `axis`; `block` inputs share a scale if the format has blocks, or all of a channel.
    pub fn new(
        values: &Parts,
        (dims, axis): (&[usize], usize),
        codec: &'static Codec,
        block: Option<usize>,
    ) -> Self {
        let layout = Layout::new(dims, axis);
        let depth = layout.depth();
        let block = block.filter(|_| codec.has_blocks()).unwrap_or(depth).clamp(1, depth.max(1));
        let encoded = |values: Bytes, scale, zero, power, noise| Self {
            codec,
            dims: dims.to_vec(),
            axis,
            layout,
            block,
            values,
            scale,
            zero,
            power,
            noise,
        };
        if codec.fit == Fit::AbsMax {
            let rows = weights::by_largest(values, dims, axis);
            return encoded(rows.values, rows.scale, Vec::new(), rows.power, rows.noise);
        }
        let ruler = Ruler::new(codec);
        let mut levels = Memory::passing(values.count());
        let size = layout.part(block).max(1);
        let targets: Vec<_> = levels.as_mut().chunks_mut(size).map(Mutex::new).collect();
        let parts = values.map(size, |start, part| {
            // Nobody else asks for the lock of this part.
            let mut target = targets[start / size].lock().unwrap_or_else(PoisonError::into_inner);
            Part::new(&ruler, layout.of_part(part.len()), (part, block), bytemuck::cast_slice_mut(*target))
        });
        drop(targets);
        let (power, noise) = (parts.iter().map(|p| p.power).sum(), parts.iter().map(|p| p.noise).sum());
        let scale = by_channel(&layout, &parts, |part| &part.scale);
        let zero = by_channel(&layout, &parts, |part| &part.zero);
        encoded(levels.into(), scale, zero, power, noise)
    }

    /// Levels less their zero points, in the order of the weights.
    pub fn levels(&self) -> &[i8] {
        bytemuck::cast_slice(&self.values)
    }

    /// Puts other levels in their place.
    pub fn set_levels(&mut self, levels: Vec<i8>) {
        self.values = bytemuck::allocation::cast_vec::<i8, u8>(levels).into();
    }

    /// Blocks of a channel.
    pub fn blocks(&self) -> usize {
        self.layout.depth().div_ceil(self.block)
    }

    /// The place of input `k` of a channel among the scales.
    pub fn part(&self, channel: usize, k: usize) -> usize {
        channel * self.blocks() + k / self.block
    }

    /// The zero point of that part.
    pub fn zero_of(&self, part: usize) -> i8 {
        self.zero.get(part).copied().unwrap_or(0)
    }

    /// Puts channels on other scales, beside which their weights are nothing.
    pub fn silence(&mut self, channels: &[(usize, f32)]) {
        if channels.is_empty() {
            return;
        }
        let least = self.codec.levels.iter().copied().min_by_key(|level| level.unsigned_abs()).unwrap_or(0);
        let mut levels = self.levels().to_vec();
        for &(channel, scale) in channels {
            let part = self.part(channel, 0);
            self.scale[part] = scale;
            for k in 0..self.layout.depth() {
                levels[self.layout.place(channel, k)] = least;
            }
            if let Some(zero) = self.zero.get_mut(part) {
                *zero = 0;
            }
        }
        self.set_levels(levels);
    }

    /// The level at a position in the tensor.
    pub fn level(&self, place: usize) -> i8 {
        let (channel, k) = self.layout.at(place);
        self.levels()[place] + self.zero_of(self.part(channel, k))
    }

    /// The codes, in the order of the tensor.
    pub fn packed(&self) -> Vec<u8> {
        /// Whole bytes of any format.
        const MANY: usize = 1 << 16;
        let level = |place: usize| match self.zero.is_empty() {
            true => self.levels()[place],
            false => self.level(place),
        };
        let count = self.values.len();
        let starts = (0..count).into_par_iter().step_by(MANY);
        let parts: Vec<Vec<u8>> =
            starts.map(|start| self.codec.pack((start..count.min(start + MANY)).map(level))).collect();
        parts.concat()
    }
}

/// What the parts of weights know of their blocks, `channels × blocks` of all.
fn by_channel<T: Copy>(layout: &Layout, parts: &[Part], of: impl Fn(&Part) -> &[T]) -> Vec<T> {
    if layout.in_rows() {
        return parts.iter().flat_map(|part| of(part).iter().copied()).collect();
    }
    let mut all = Vec::with_capacity(parts.iter().map(|part| of(part).len()).sum());
    for channel in 0..layout.channels {
        for part in parts {
            let blocks = of(part).len() / layout.channels;
            all.extend_from_slice(&of(part)[channel * blocks..][..blocks]);
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
                let encoded = Encoded::new(&Parts::from(exact.clone()), (&dims, axis), codec, block);
                let mut noise = 0.0;
                for (place, &w) in exact.iter().enumerate() {
                    let (channel, k) = encoded.layout.at(place);
                    assert_eq!(encoded.layout.place(channel, k), place);
                    let part = encoded.part(channel, k);
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
    fn zeros_stay_zeros() {
        for codec in &CODECS {
            let encoded = Encoded::new(&Parts::from(vec![0.0; 20]), (&[2, 10], 0), codec, None);
            let products = encoded.levels().iter().map(|&v| f32::from(v) * encoded.scale[0]);
            assert!(products.into_iter().all(|w| w == 0.0), "{}", codec.name);
        }
    }
}
