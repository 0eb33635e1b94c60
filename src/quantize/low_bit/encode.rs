//! The scale of each channel, or of each block of its inputs, and the level of each weight.

use std::ops::Range;

use rayon::prelude::*;

use super::codecs::{Codec, Fit};
use crate::kernels;
use crate::tensor::Parts;

/// Steps of the search for a scale, and the smallest part of the whole range that is tried.
const STEPS: usize = 24;
const NARROWEST: f32 = 0.4;

/// Channels that are read together: where they are columns, these stand in a line of memory of each row.
pub(super) const GROUP: usize = 32;

/// Rows that are read together, so that what is written of a channel fills a part of a line.
const ROWS: usize = 8;

/// Values that are read at a time.
const PART: usize = 1 << 18;

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
    /// Levels less their zero points, in the order of the weights.
    pub values: Vec<i8>,
    /// Scales, `channels × blocks`.
    pub scale: Vec<f32>,
    /// Zero points, as many; empty where the format has none.
    pub zero: Vec<i8>,
    /// Sum of the squares; NaN or infinite if a weight is.
    pub power: f64,
    /// Sum of the squared errors.
    pub noise: f64,
}

/// Where the inputs of each output channel lie in a weight tensor: `outer × channels × inner`.
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

    /// The channels, as many at a time as are read together.
    pub fn groups(&self) -> impl IndexedParallelIterator<Item = Range<usize>> {
        let channels = self.channels;
        (0..channels).into_par_iter().step_by(GROUP).map(move |first| first..channels.min(first + GROUP))
    }

    /// Inputs of a channel.
    pub fn depth(&self) -> usize {
        self.outer * self.inner
    }

    /// The values of these channels of a tensor, all inputs of one before those of the next.
    pub fn channels<T: Copy + Default>(&self, all: &[T], channels: Range<usize>) -> Vec<T> {
        let (depth, inner) = (self.depth(), self.inner);
        let mut gathered = vec![T::default(); channels.len() * depth];
        for rows in self.rows() {
            for (c, gathered) in gathered.chunks_exact_mut(depth.max(1)).enumerate() {
                for row in rows.clone() {
                    let (from, to) = ((row * self.channels + channels.start + c) * inner, row * inner);
                    if inner == 1 {
                        gathered[to] = all[from];
                    } else {
                        gathered[to..to + inner].copy_from_slice(&all[from..from + inner]);
                    }
                }
            }
        }
        gathered
    }

    /// Position in the tensor of input `k` of `channel`.
    pub fn place(&self, channel: usize, k: usize) -> usize {
        (k / self.inner * self.channels + channel) * self.inner + k % self.inner
    }

    /// The levels of the channels, in the order of the tensor.
    fn tensor(&self, channels: &[Channel]) -> Vec<i8> {
        let inner = self.inner;
        let width = self.channels * inner;
        let mut levels = vec![0; self.outer * width];
        levels.par_chunks_mut((ROWS * width).max(1)).enumerate().for_each(|(part, levels)| {
            let first = part * ROWS * inner;
            for (c, channel) in channels.iter().enumerate() {
                for row in 0..levels.len() / width {
                    let (from, to) = (first + row * inner, row * width + c * inner);
                    if inner == 1 {
                        levels[to] = channel.values[from];
                    } else {
                        levels[to..to + inner].copy_from_slice(&channel.values[from..from + inner]);
                    }
                }
            }
        });
        levels
    }

    /// The rows of a tensor, as many at a time as stay in the first cache.
    fn rows(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let outer = self.outer;
        (0..outer).step_by(ROWS).map(move |first| first..outer.min(first + ROWS))
    }

    /// Channel, and input of it, at a position in the tensor.
    pub fn at(&self, place: usize) -> (usize, usize) {
        let (row, i) = (place / self.inner, place % self.inner);
        (row % self.channels, row / self.channels * self.inner + i)
    }
}

impl Encoded {
    /// Of weights with their channels along `axis`; `block` inputs share a scale, or all of a channel.
    pub fn new(
        values: &Parts,
        (dims, axis): (&[usize], usize),
        codec: &'static Codec,
        block: Option<usize>,
    ) -> Self {
        let (layout, all) = (Layout::new(dims, axis), values.all());
        let depth = layout.depth();
        let block = block.unwrap_or(depth).clamp(1, depth.max(1));
        let ruler = Ruler::new(codec);
        let groups: Vec<Vec<Channel>> = layout
            .groups()
            .map(|group| {
                let weights = layout.channels(&all, group.clone());
                let channel = |c: usize| Channel::new(&ruler, &weights[c * depth..][..depth], block);
                (0..group.len()).map(channel).collect()
            })
            .collect();
        let channels: Vec<Channel> = groups.into_iter().flatten().collect();
        let levels = layout.tensor(&channels);
        let power = values.map(PART, |_, part| kernels::sum_of_squares(part)).into_iter().sum();
        let zero = channels.iter().flat_map(|channel| channel.zero.iter().copied());
        Self {
            codec,
            dims: dims.to_vec(),
            axis,
            layout,
            block,
            values: levels,
            scale: channels.iter().flat_map(|channel| channel.scale.iter().copied()).collect(),
            zero: if codec.has_zero_point() { zero.collect() } else { Vec::new() },
            power,
            noise: channels.iter().map(|channel| channel.noise).sum(),
        }
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

    /// Puts a channel on another scale, beside which its weights are nothing.
    pub fn silence(&mut self, channel: usize, scale: f32) {
        let part = self.part(channel, 0);
        let least = self.codec.levels.iter().copied().min_by_key(|level| level.unsigned_abs()).unwrap_or(0);
        self.scale[part] = scale;
        for k in 0..self.layout.depth() {
            self.values[self.layout.place(channel, k)] = least;
        }
        if let Some(zero) = self.zero.get_mut(part) {
            *zero = 0;
        }
    }

    /// The level at a position in the tensor.
    pub fn level(&self, place: usize) -> i8 {
        let (channel, k) = self.layout.at(place);
        self.values[place] + self.zero_of(self.part(channel, k))
    }

    /// The codes, in the order of the tensor.
    pub fn packed(&self) -> Vec<u8> {
        /// Whole bytes of any format.
        const MANY: usize = 1 << 16;
        let level = |place: usize| match self.zero.is_empty() {
            true => self.values[place],
            false => self.level(place),
        };
        let count = self.values.len();
        let starts = (0..count).into_par_iter().step_by(MANY);
        let parts: Vec<Vec<u8>> =
            starts.map(|start| self.codec.pack((start..count.min(start + MANY)).map(level))).collect();
        parts.concat()
    }
}

/// One output channel.
struct Channel {
    values: Vec<i8>,
    scale: Vec<f32>,
    zero: Vec<i8>,
    noise: f64,
}

impl Channel {
    fn new(ruler: &Ruler, weights: &[f32], block: usize) -> Self {
        let mut channel = Self { values: vec![0; weights.len()], scale: vec![], zero: vec![], noise: 0.0 };
        for (weights, values) in weights.chunks(block).zip(channel.values.chunks_mut(block)) {
            let (grid, error) = ruler.fit(weights);
            channel.noise += ruler.round(weights, grid, error, values);
            channel.scale.push(grid.scale);
            channel.zero.push(grid.zero);
        }
        channel
    }
}

/// What a level means.
#[derive(Debug, Clone, Copy)]
struct Grid {
    scale: f32,
    zero: i8,
}

/// The levels of a format in order, and what lies half-way between them.
struct Ruler {
    codec: &'static Codec,
    levels: Vec<i8>,
    thresholds: Vec<f32>,
}

impl Ruler {
    fn new(codec: &'static Codec) -> Self {
        let levels = codec.sorted();
        let thresholds = levels.windows(2).map(|pair| (f32::from(pair[0]) + f32::from(pair[1])) / 2.0);
        Self { codec, thresholds: thresholds.collect(), levels }
    }

    fn ends(&self) -> (i32, i32) {
        (self.levels[0].into(), self.levels[self.levels.len() - 1].into())
    }

    fn is_uniform(&self) -> bool {
        matches!(self.codec.fit, Fit::AbsMax | Fit::Symmetric | Fit::Asymmetric)
    }

    /// The nearest levels less the zero point; returns the sum of the squared errors, which may be known.
    fn round(&self, weights: &[f32], grid: Grid, error: Option<f64>, out: &mut [i8]) -> f64 {
        let (zero, (lowest, highest)) = (i32::from(grid.zero), self.ends());
        if self.is_uniform() {
            let (lowest, highest) = (lowest - zero, highest - zero);
            kernels::quantize_clamped(weights, grid.scale, 0, lowest, highest, out);
            let exact = || kernels::quantization_error(weights, grid.scale, 0, lowest, highest);
            return error.unwrap_or_else(exact);
        }
        let mut noise = 0.0;
        for (out, &w) in out.iter_mut().zip(weights) {
            *out = self.nearest(w, grid.scale);
            noise += f64::from(f32::from(*out) * grid.scale - w).powi(2);
        }
        noise
    }

    fn nearest(&self, weight: f32, scale: f32) -> i8 {
        let below = self.thresholds.iter().filter(|&&t| t * scale <= weight).count();
        self.levels[below]
    }

    /// The sums of the squared errors on these grids.
    fn errors(&self, weights: &[f32], grids: &[Grid; STEPS]) -> [f64; STEPS] {
        if self.is_uniform() {
            let (lowest, highest) = self.ends();
            let (mut scale, mut least, mut most) = ([0.0; STEPS], [0.0; STEPS], [0.0; STEPS]);
            for (i, grid) in grids.iter().enumerate() {
                let zero = i32::from(grid.zero);
                (scale[i], least[i], most[i]) = (grid.scale, (lowest - zero) as f32, (highest - zero) as f32);
            }
            return kernels::errors_on_grids(weights, &scale, &least, &most);
        }
        grids.map(|grid| {
            let error = |&w: &f32| f64::from(f32::from(self.nearest(w, grid.scale)) * grid.scale - w).powi(2);
            weights.iter().map(error).sum()
        })
    }

    /// The scale of some weights, and the sum of the squared errors if it is known.
    fn fit(&self, weights: &[f32]) -> (Grid, Option<f64>) {
        let largest = kernels::abs_max(weights);
        let top = self.ends().1 as f32;
        let symmetric = |limit: f32| Grid { scale: (limit / top).max(f32::MIN_POSITIVE), zero: 0 };
        let part = |i: usize| 1.0 - (1.0 - NARROWEST) * i as f32 / STEPS as f32;
        match self.codec.fit {
            Fit::MeanMagnitude => {
                let sum: f64 = weights.iter().map(|&w| f64::from(w.abs())).sum();
                (Grid { scale: (sum / weights.len().max(1) as f64) as f32, zero: 0 }, None)
            }
            _ if largest == 0.0 => (Grid { scale: 1.0, zero: 0 }, None),
            Fit::AbsMax => (symmetric(largest), None),
            Fit::Symmetric => self.best(weights, |i| symmetric(part(i) * largest)),
            Fit::Asymmetric => {
                let (min, max) = kernels::min_max(weights).unwrap_or((0.0, 0.0));
                let (min, max) = (min.min(0.0), max.max(0.0));
                self.best(weights, |i| asymmetric(part(i) * min, part(i) * max, top))
            }
            Fit::Octave => {
                self.best(weights, |i| symmetric((0.5 - 1.5 * i as f32 / STEPS as f32).exp2() * largest))
            }
        }
    }

    /// The one of the least squared error, the first of those with the same.
    fn best(&self, weights: &[f32], grid: impl Fn(usize) -> Grid) -> (Grid, Option<f64>) {
        let grids: [Grid; STEPS] = std::array::from_fn(grid);
        let errors = self.errors(weights, &grids);
        let best = (1..STEPS).fold(0, |best, i| if errors[i] < errors[best] { i } else { best });
        (grids[best], Some(errors[best]))
    }
}

/// `top` steps from `min` ≤ 0 to `max` ≥ 0.
fn asymmetric(min: f32, max: f32, top: f32) -> Grid {
    let scale = ((max / top) - (min / top)).max(f32::MIN_POSITIVE);
    Grid { scale, zero: (-min / scale).round_ties_even().clamp(0.0, top) as i8 }
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
    fn searching_beats_the_whole_range() {
        let heavy: Vec<f32> = weights(400).iter().map(|w| w.powi(3)).collect();
        for codec in CODECS.iter().filter(|codec| codec.bits == 4) {
            let ruler = Ruler::new(codec);
            let top = ruler.ends().1 as f32;
            let plain = match codec.has_zero_point() {
                true => asymmetric(-3.375, 6.4, top),
                false => Grid { scale: kernels::abs_max(&heavy) / top, zero: 0 },
            };
            let [least, whole] =
                [ruler.fit(&heavy).0, plain].map(|grid| ruler.errors(&heavy, &[grid; STEPS])[0]);
            assert!(least < whole, "{}", codec.name);
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        for codec in &CODECS {
            let encoded = Encoded::new(&Parts::from(vec![0.0; 20]), (&[2, 10], 0), codec, None);
            let products = encoded.values.iter().map(|&v| f32::from(v) * encoded.scale[0]);
            assert!(products.into_iter().all(|w| w == 0.0), "{}", codec.name);
        }
    }
}
