//! Weights as levels: which of them share a scale, and where what was found for each belongs.

use std::ops::Range;

use bytes::Bytes;
use rayon::prelude::*;

use super::codecs::{Codec, Fit};
use super::layout::Layout;
use super::ruler::{Grids, LANES, Ruler};
use crate::kernels;
use crate::quantize::weights;
use crate::tensor::{Memory, Parts};

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

    /// Blocks of a channel.
    pub fn blocks(&self) -> usize {
        self.layout.depth().div_ceil(self.block)
    }

    /// Whether channels have several.
    pub fn is_blocked(&self) -> bool {
        self.blocks() > 1
    }

    /// Elements of the window that each input channel of a convolution has.
    pub fn taps(&self) -> usize {
        self.dims[2..].iter().product()
    }

    /// How long a block is along the axis of the input channels.
    pub fn block_length(&self) -> usize {
        self.block / self.taps()
    }

    /// The place of input `k` of a channel among the scales.
    pub fn part(&self, channel: usize, k: usize) -> usize {
        channel * self.blocks() + k / self.block
    }

    /// Values that are read at a time.
    pub fn size(&self) -> usize {
        self.layout.part(self.block).max(1)
    }

    /// Finds the levels of all weights; `put` takes those of some channels to the target of the part that they are in.
    pub(super) fn measure<T: Send>(
        self,
        values: &Parts,
        targets: impl Iterator<Item = T> + Send,
        put: impl Fn(&mut T, &Layout, &Strip) + Sync,
    ) -> Encoded<()> {
        let ruler = Ruler::new(self.codec);
        let parts = values.map_to(self.size(), targets, |start, weights, mut target| {
            let layout = self.layout.of_part(weights.len());
            let put = |strip: &Strip| put(&mut target, &layout, strip);
            (self.layout.at(start), Part::new(&ruler, &layout, (weights, self.block), put))
        });
        let zero = || self.by_channel(&parts, |grid| &grid.zero);
        Encoded {
            scale: self.by_channel(&parts, |grid| &grid.scale),
            zero: if self.codec.has_zero_point() { zero() } else { Vec::new() },
            power: parts.iter().map(|(_, part)| part.power).sum(),
            noise: parts.iter().map(|(_, part)| part.noise).sum(),
            form: self,
            values: (),
        }
    }

    /// What is known of the blocks, `channels × blocks`, given the channel and the input that each part begins with.
    fn by_channel<T: Copy + Default>(
        &self,
        parts: &[((usize, usize), Part)],
        of: impl Fn(&Grids) -> &[T; LANES],
    ) -> Vec<T> {
        let (channels, blocks) = (self.layout.channels, self.blocks());
        let mut all = vec![T::default(); channels * blocks];
        for ((channel, input), part) in parts {
            let strips = part.grids.chunks(part.blocks.max(1)).zip((*channel..).step_by(LANES));
            for (grids, first) in strips {
                let lanes = LANES.min(channels - first);
                for (grid, block) in grids.iter().zip(input / self.block..) {
                    for (lane, value) in of(grid)[..lanes].iter().enumerate() {
                        all[(first + lane) * blocks + block] = *value;
                    }
                }
            }
        }
        all
    }
}

impl<V> Encoded<V> {
    /// The zero point of a part.
    pub fn zero_of(&self, part: usize) -> i8 {
        self.zero.get(part).copied().unwrap_or(0)
    }

    /// The same with other values.
    pub fn with<W>(self, values: W) -> Encoded<W> {
        let Self { form, scale, zero, power, noise, .. } = self;
        Encoded { form, values, scale, zero, power, noise }
    }
}

/// Levels of some channels side by side, and what they mean in each block.
pub(super) struct Strip<'l> {
    pub channels: Range<usize>,
    pub levels: &'l [[i8; LANES]],
    pub grids: &'l [Grids],
}

/// What is known of the blocks of a part of the weights.
struct Part {
    /// Of each channel.
    blocks: usize,
    /// Those of the channels of a strip after the other.
    grids: Vec<Grids>,
    power: f64,
    /// Lanes without a channel have none.
    noise: f64,
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
        let blocks = layout.depth().div_ceil(block);
        let mut grids = Vec::with_capacity(layout.strips().len() * blocks);
        let mut noise = 0.0;
        for channels in layout.strips() {
            layout.take(weights, &channels, &mut strip);
            let pairs = strip.chunks(block).zip(levels.chunks_mut(block));
            let known = grids.len();
            for (weights, levels) in pairs {
                let (grid, errors) = ruler.measure(weights, levels);
                grids.push(grid);
                noise += errors.iter().sum::<f64>();
            }
            put(&Strip { channels, levels: &levels, grids: &grids[known..] });
        }
        Self { blocks, grids, power, noise }
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
        let targets = levels.as_mut().chunks_mut(form.size());
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
    pub fn packed(&self) -> Bytes {
        /// Whole bytes of any format.
        const MANY: usize = 1 << 16;
        if self.form.codec.bits == 8 {
            return self.values.0.clone();
        }
        let level = |place: usize| match self.zero.is_empty() {
            true => self.levels()[place],
            false => self.level(place),
        };
        let count = self.levels().len();
        let starts = (0..count).into_par_iter().step_by(MANY);
        let parts: Vec<Vec<u8>> =
            starts.map(|start| self.form.codec.pack((start..count.min(start + MANY)).map(level))).collect();
        Memory::of(parts.concat())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::quantize::low_bit::CODECS;

    pub fn weights(count: usize) -> Vec<f32> {
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
    fn zeros_stay_zeros() {
        for codec in &CODECS {
            let encoded = Encoded::new(&Parts::from(vec![0.0; 20]), Form::new((&[2, 10], 0), codec, None));
            let products = encoded.levels().iter().map(|&v| f32::from(v) * encoded.scale[0]);
            assert!(products.into_iter().all(|w| w == 0.0), "{}", codec.name);
        }
    }
}
