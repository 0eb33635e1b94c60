//! The scale of each channel, or of each block of its inputs, and the level of each weight.

use rayon::prelude::*;

use super::codecs::{Codec, Fit};
use crate::kernels;
use crate::tensor::Parts;

/// Steps of the search for a scale, and the smallest part of the whole range that is tried.
const STEPS: usize = 24;
const NARROWEST: f32 = 0.4;

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

    /// Inputs of a channel.
    pub fn depth(&self) -> usize {
        self.outer * self.inner
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
        let channels: Vec<Channel> = (0..layout.channels)
            .into_par_iter()
            .map(|c| {
                let weights: Vec<f32> = (0..depth).map(|k| all[layout.place(c, k)]).collect();
                Channel::new(&ruler, &weights, block)
            })
            .collect();
        let mut levels = vec![0; all.len()];
        for (c, channel) in channels.iter().enumerate() {
            channel.values.iter().enumerate().for_each(|(k, &level)| levels[layout.place(c, k)] = level);
        }
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
            power: kernels::sum_of_squares(&all),
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
        self.codec.pack((0..self.values.len()).map(|place| self.level(place)))
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
            let grid = ruler.fit(weights);
            channel.noise += ruler.round(weights, grid, values);
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

    /// The nearest levels less the zero point; returns the sum of the squared errors.
    fn round(&self, weights: &[f32], grid: Grid, out: &mut [i8]) -> f64 {
        let (zero, (lowest, highest)) = (i32::from(grid.zero), self.ends());
        if self.is_uniform() {
            let (lowest, highest) = (lowest - zero, highest - zero);
            kernels::quantize_clamped(weights, grid.scale, 0, lowest, highest, out);
            return kernels::quantization_error(weights, grid.scale, 0, lowest, highest);
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

    fn error(&self, weights: &[f32], grid: Grid) -> f64 {
        if self.is_uniform() {
            let (lowest, highest) = self.ends();
            let zero = i32::from(grid.zero);
            return kernels::quantization_error(weights, grid.scale, 0, lowest - zero, highest - zero);
        }
        let error = |&w: &f32| f64::from(f32::from(self.nearest(w, grid.scale)) * grid.scale - w).powi(2);
        weights.iter().map(error).sum()
    }

    /// The scale of some weights.
    fn fit(&self, weights: &[f32]) -> Grid {
        let largest = kernels::abs_max(weights);
        let top = self.ends().1 as f32;
        let symmetric = |limit: f32| Grid { scale: (limit / top).max(f32::MIN_POSITIVE), zero: 0 };
        let parts = (0..STEPS).map(|i| 1.0 - (1.0 - NARROWEST) * i as f32 / STEPS as f32);
        match self.codec.fit {
            Fit::MeanMagnitude => {
                let sum: f64 = weights.iter().map(|&w| f64::from(w.abs())).sum();
                Grid { scale: (sum / weights.len().max(1) as f64) as f32, zero: 0 }
            }
            _ if largest == 0.0 => Grid { scale: 1.0, zero: 0 },
            Fit::AbsMax => symmetric(largest),
            Fit::Symmetric => self.best(weights, parts.map(|part| symmetric(part * largest))),
            Fit::Asymmetric => {
                let (min, max) = kernels::min_max(weights).unwrap_or((0.0, 0.0));
                let (min, max) = (min.min(0.0), max.max(0.0));
                self.best(weights, parts.map(|part| asymmetric(part * min, part * max, top)))
            }
            Fit::Octave => {
                let steps = (0..STEPS).map(|i| (0.5 - 1.5 * i as f32 / STEPS as f32).exp2());
                self.best(weights, steps.map(|part| symmetric(part * largest)))
            }
        }
    }

    /// The one of the least squared error, the first of those with the same.
    fn best(&self, weights: &[f32], grids: impl Iterator<Item = Grid>) -> Grid {
        let errors = grids.map(|grid| (self.error(weights, grid), grid));
        let least = errors.reduce(|best, next| if next.0 < best.0 { next } else { best });
        least.map_or(Grid { scale: 1.0, zero: 0 }, |(_, grid)| grid)
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
            assert!(ruler.error(&heavy, ruler.fit(&heavy)) < ruler.error(&heavy, plain), "{}", codec.name);
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
