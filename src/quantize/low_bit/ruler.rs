//! The scale of some weights, and the level of each: channels side by side, a lane for each.
//!
//! A format with levels at equal distances is measured in steps of the scale s: with t = w / s and q the integer nearest to t
//! within the range, the squared error is s² · Σ (q − t)². It is worked out for every third of [`STEPS`] scales, the widest
//! range first, two at a time, and then for one or two on each side of the best. Narrower ranges have less to round and clip more, so that the
//! error falls and then rises: where it is well above the least so far, no later one is tried. The sums of a lane are
//! added in the order of its weights, so that every instruction set has the same.

use multiversion::multiversion;

use super::codecs::{Codec, Fit};
use crate::kernels::branchless::{ROUNDER, larger, smaller};

/// Channels side by side.
pub(super) const LANES: usize = 16;

/// Steps of the search for a scale, and the smallest part of the whole range that is tried.
const STEPS: usize = 24;
const NARROWEST: f32 = 0.4;

/// How far apart the scales are that are tried first, and how much more than the least an error is that only grows from there.
/// The best of all scales is 0.00 to 0.02 dB better, on normal, even, heavy-tailed and positive weights, 32 to 4,096 of them.
const STRIDE: usize = 3;
const WORSE: f32 = 1.25;

/// For fewer weights all scales are tried, and for less than many all those around the best: their errors rise and fall.
const FEW: usize = 32;
const MANY: usize = 64;

/// Weights whose squared errors are added one after the other; the sums of more are added to each other.
const ADDED: usize = 256;

/// What the levels of some weights mean, for each lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grids {
    pub scale: [f32; LANES],
    pub zero: [i8; LANES],
}

/// Sums of the squared errors, for each lane.
pub(super) type Noise = [f64; LANES];

/// The levels of a format in order, and what lies half-way between them.
pub(super) struct Ruler {
    codec: &'static Codec,
    levels: Vec<i8>,
    thresholds: Vec<f32>,
}

impl Ruler {
    pub fn new(codec: &'static Codec) -> Self {
        let levels = codec.sorted();
        let thresholds = levels.windows(2).map(|pair| (f32::from(pair[0]) + f32::from(pair[1])) / 2.0);
        Self { codec, thresholds: thresholds.collect(), levels }
    }

    /// Whether levels are counted from zero points.
    pub fn has_zero_point(&self) -> bool {
        self.codec.has_zero_point()
    }

    /// Finds the scales of some weights, and their levels less the zero points.
    pub fn measure(&self, weights: &[[f32; LANES]], levels: &mut [[i8; LANES]]) -> (Grids, Noise) {
        match self.codec.fit {
            Fit::Symmetric | Fit::Asymmetric if weights.len() < FEW => {
                measure_steps::<1>((self.steps(), 0), weights, levels)
            }
            Fit::Symmetric | Fit::Asymmetric => {
                let beside = if weights.len() < MANY { STRIDE - 1 } else { 1 };
                measure_steps::<STRIDE>((self.steps(), beside), weights, levels)
            }
            Fit::AbsMax => self.by_lane(weights, levels, |channel| self.widest(channel).unwrap_or(1.0)),
            Fit::MeanMagnitude => self.by_lane(weights, levels, mean_magnitude),
            Fit::Octave => self.by_lane(weights, levels, |channel| self.octave(channel).unwrap_or(1.0)),
        }
    }

    fn steps(&self) -> Steps {
        let (lowest, highest) = (f32::from(self.levels[0]), f32::from(self.levels[self.levels.len() - 1]));
        Steps { lowest, highest, has_zero: self.has_zero_point() }
    }

    /// The levels on the scale that a function finds for each channel.
    fn by_lane(
        &self,
        weights: &[[f32; LANES]],
        levels: &mut [[i8; LANES]],
        scale: impl Fn(&[f32]) -> f32,
    ) -> (Grids, Noise) {
        let mut found = (Grids { scale: [1.0; LANES], zero: [0; LANES] }, [0.0; LANES]);
        for lane in 0..LANES {
            let weights: Vec<f32> = weights.iter().map(|weights| weights[lane]).collect();
            let scale = scale(&weights);
            for (level, &w) in levels.iter_mut().zip(&weights) {
                level[lane] = self.nearest(w, scale);
            }
            (found.0.scale[lane], found.1[lane]) = (scale, self.error(&weights, scale));
        }
        found
    }

    /// The scale that takes in all weights of a channel; none if they are all 0.
    fn widest(&self, weights: &[f32]) -> Option<f32> {
        let largest = weights.iter().fold(0.0, |largest, w| larger(w.abs(), largest));
        (largest != 0.0).then(|| largest / f32::from(self.levels[self.levels.len() - 1]))
    }

    /// The scale of the least squared error about that one.
    fn octave(&self, weights: &[f32]) -> Option<f32> {
        let widest = self.widest(weights)?;
        let scales = (0..STEPS).map(|i| (0.5 - 1.5 * i as f32 / STEPS as f32).exp2() * widest);
        let scales = scales.map(|scale| scale.max(f32::MIN_POSITIVE));
        let errors = scales.map(|scale| (self.error(weights, scale), scale));
        errors.reduce(|best, one| if one.0 < best.0 { one } else { best }).map(|(_, scale)| scale)
    }

    fn nearest(&self, weight: f32, scale: f32) -> i8 {
        let below = self.thresholds.iter().filter(|&&t| t * scale <= weight).count();
        self.levels[below]
    }

    /// The sum of the squared errors of one channel.
    fn error(&self, weights: &[f32], scale: f32) -> f64 {
        let error = |&w: &f32| f64::from(f32::from(self.nearest(w, scale)) * scale - w).powi(2);
        weights.iter().map(error).sum()
    }
}

/// The mean of the magnitudes.
fn mean_magnitude(weights: &[f32]) -> f32 {
    let sum: f64 = weights.iter().map(|&w| f64::from(w.abs())).sum();
    (sum / weights.len().max(1) as f64) as f32
}

/// Levels at equal distances.
#[derive(Debug, Clone, Copy)]
struct Steps {
    lowest: f32,
    highest: f32,
    /// Whether they are counted from a zero point.
    has_zero: bool,
}

/// The scales that take in all weights, and the integers that there are from each zero point on: narrower ranges have the same.
struct Whole {
    scale: [f32; LANES],
    zero: [f32; LANES],
    lowest: [f32; LANES],
    highest: [f32; LANES],
}

impl Steps {
    #[inline(always)]
    fn whole(self, weights: &[[f32; LANES]]) -> Whole {
        let (min, max) = extent(weights);
        let (mut scale, mut zero) = ([0.0; LANES], [0.0; LANES]);
        if self.has_zero {
            for lane in 0..LANES {
                scale[lane] = larger(max[lane] / self.highest - min[lane] / self.highest, f32::MIN_POSITIVE);
            }
            for lane in 0..LANES {
                zero[lane] = nearest(clamped(-min[lane] / scale[lane], 0.0, self.highest));
            }
        } else {
            for lane in 0..LANES {
                scale[lane] = larger(larger(-min[lane], max[lane]) / self.highest, f32::MIN_POSITIVE);
            }
        }
        let (mut lowest, mut highest) = ([self.lowest; LANES], [self.highest; LANES]);
        for lane in 0..LANES {
            lowest[lane] -= zero[lane];
        }
        for lane in 0..LANES {
            highest[lane] -= zero[lane];
        }
        Whole { scale, zero, lowest, highest }
    }
}

impl Whole {
    /// The scales of some steps of the search.
    #[inline(always)]
    fn scale(&self, step: &[f32; LANES]) -> [f32; LANES] {
        let mut scale = [0.0; LANES];
        for lane in 0..LANES {
            let part = 1.0 - (1.0 - NARROWEST) / STEPS as f32 * step[lane];
            scale[lane] = larger(part * self.scale[lane], f32::MIN_POSITIVE);
        }
        scale
    }
}

/// The least and the largest weights, and 0. A function of its own, or the compiler makes no vectors.
#[multiversion(targets("x86_64+avx2+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn extent(weights: &[[f32; LANES]]) -> ([f32; LANES], [f32; LANES]) {
    let (mut min, mut max) = ([0.0; LANES], [0.0; LANES]);
    for w in weights {
        for lane in 0..LANES {
            min[lane] = smaller(w[lane], min[lane]);
        }
        for lane in 0..LANES {
            max[lane] = larger(w[lane], max[lane]);
        }
    }
    (min, max)
}

/// Sums of the squared errors on two scales, in units of the square of the widest one.
#[inline(always)]
fn errors(whole: &Whole, weights: &[[f32; LANES]], scales: &[[f32; LANES]; 2]) -> [[f32; LANES]; 2] {
    let mut reciprocals = [[0.0; LANES]; 2];
    for (reciprocal, scale) in reciprocals.iter_mut().zip(scales) {
        for lane in 0..LANES {
            reciprocal[lane] = 1.0 / scale[lane];
        }
    }
    let mut all = [[0.0; LANES]; 2];
    for weights in weights.chunks(ADDED) {
        let sums = squares(weights, &reciprocals, &whole.lowest, &whole.highest);
        for (all, sums) in all.iter_mut().zip(&sums) {
            for lane in 0..LANES {
                all[lane] += sums[lane];
            }
        }
    }
    for (all, scale) in all.iter_mut().zip(scales) {
        for lane in 0..LANES {
            let part = scale[lane] / whole.scale[lane];
            all[lane] *= part * part;
        }
    }
    all
}

/// Sums of the squared errors in steps of two scales, which do not wait for each other. A function of its own, or the compiler
/// makes smaller vectors.
#[multiversion(targets("x86_64+avx2+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn squares(
    weights: &[[f32; LANES]],
    reciprocals: &[[f32; LANES]; 2],
    lowest: &[f32; LANES],
    highest: &[f32; LANES],
) -> [[f32; LANES]; 2] {
    let (lowest, highest) = (*lowest, *highest);
    let [first, second] = *reciprocals;
    let (mut of_first, mut of_second) = ([0.0; LANES], [0.0; LANES]);
    for w in weights {
        for lane in 0..LANES {
            let t = w[lane] * first[lane];
            let error = nearest(clamped(t, lowest[lane], highest[lane])) - t;
            of_first[lane] += error * error;
        }
        for lane in 0..LANES {
            let t = w[lane] * second[lane];
            let error = nearest(clamped(t, lowest[lane], highest[lane])) - t;
            of_second[lane] += error * error;
        }
    }
    [of_first, of_second]
}

/// The scale of the least squared error in each lane, and the levels. Loops, where `map` would be shorter: what the standard
/// library does with arrays is compiled for any processor, and called.
#[multiversion(targets("x86_64+avx2+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn measure_steps<const STRIDE: usize>(
    (steps, beside): (Steps, usize),
    weights: &[[f32; LANES]],
    levels: &mut [[i8; LANES]],
) -> (Grids, Noise) {
    let whole = steps.whole(weights);
    let mut best = Best { step: [0.0; LANES], noise: [f32::INFINITY; LANES] };
    for step in (0..STEPS).step_by(2 * STRIDE) {
        let steps = [step, step + STRIDE].map(|step| [step as f32; LANES]);
        let beyond = best.compare(&whole, weights, &steps);
        if STRIDE > 1 && beyond {
            break;
        }
    }
    let found = best.step;
    for by in 1..=beside {
        let mut steps = [found; 2];
        for (steps, by) in steps.iter_mut().zip([-(by as f32), by as f32]) {
            for step in steps {
                *step = clamped(*step + by, 0.0, (STEPS - 1) as f32);
            }
        }
        best.compare(&whole, weights, &steps);
    }
    let mut scale = whole.scale(&best.step);
    round(weights, &scale, &whole, levels);
    let (mut zero, mut noise) = ([0; LANES], [0.0; LANES]);
    for (zero, whole) in zero.iter_mut().zip(&whole.zero) {
        *zero = (whole + ROUNDER).to_bits() as i8;
    }
    for (noise, (&least, &unit)) in noise.iter_mut().zip(best.noise.iter().zip(&whole.scale)) {
        let unit = f64::from(unit);
        *noise = f64::from(least) * (unit * unit);
    }
    for (scale, (&least, &whole)) in scale.iter_mut().zip(best.noise.iter().zip(&whole.scale)) {
        let nothing = (whole == f32::MIN_POSITIVE) & (least == 0.0);
        *scale = if nothing { 1.0 } else { *scale };
    }
    (Grids { scale, zero }, noise)
}

/// In one line of the cache: what was just stored across two is slow to load.
#[repr(align(64))]
struct Line([f32; LANES]);

/// The integers nearest to weights in steps of a scale.
#[multiversion(targets("x86_64+avx2+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn round(weights: &[[f32; LANES]], scale: &[f32; LANES], whole: &Whole, levels: &mut [[i8; LANES]]) {
    let (mut reciprocal, lowest, highest) = ([0.0; LANES], whole.lowest, whole.highest);
    for lane in 0..LANES {
        reciprocal[lane] = 1.0 / scale[lane];
    }
    let mut wide = Line([0.0; LANES]);
    for (w, levels) in weights.iter().zip(levels) {
        for lane in 0..LANES {
            wide.0[lane] = clamped(w[lane] * reciprocal[lane], lowest[lane], highest[lane]) + ROUNDER;
        }
        // Rows lie far from each other, and the compiler would make vectors of them.
        std::hint::black_box(&mut wide);
        for (level, wide) in levels.iter_mut().zip(&wide.0) {
            *level = wide.to_bits() as i8;
        }
    }
}

/// The steps of the search with the least squared errors so far.
struct Best {
    step: [f32; LANES],
    /// In units of the square of the widest scale.
    noise: [f32; LANES],
}

impl Best {
    /// Tries two steps; returns whether all errors of the second are well above the least.
    #[inline(always)]
    fn compare(&mut self, whole: &Whole, weights: &[[f32; LANES]], steps: &[[f32; LANES]; 2]) -> bool {
        let noise = errors(whole, weights, &[whole.scale(&steps[0]), whole.scale(&steps[1])]);
        for (step, noise) in steps.iter().zip(&noise) {
            for lane in 0..LANES {
                let better = noise[lane] < self.noise[lane];
                self.step[lane] = if better { step[lane] } else { self.step[lane] };
                self.noise[lane] = if better { noise[lane] } else { self.noise[lane] };
            }
        }
        let mut near = 0;
        for (noise, least) in noise[1].iter().zip(&self.noise) {
            near |= u64::from(*noise < WORSE * least);
        }
        near == 0
    }
}

#[inline(always)]
fn clamped(v: f32, lowest: f32, highest: f32) -> f32 {
    smaller(larger(v, lowest), highest)
}

#[inline(always)]
fn nearest(v: f32) -> f32 {
    (v + ROUNDER) - ROUNDER
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::low_bit::CODECS;

    /// Weights of all kinds, a kind in each lane: as many inputs as asked for.
    fn strip(count: usize) -> Vec<[f32; LANES]> {
        let even = |i: usize, seed: usize| ((i * 7919 + seed * 613 + 13) % 1009) as f32 / 504.0 - 1.0;
        (0..count)
            .map(|i| {
                let (a, b, c) = (even(i, 0), even(i, 1), even(i, 2));
                let bell = a + b + c;
                let peak = if i == 0 { 3.0 } else { 0.01 * a };
                let kinds = [bell, a, bell.powi(5), a.abs() + 0.1, -b.abs() * 1e30, 0.0, c * 1e-39, peak];
                std::array::from_fn(|lane| {
                    kinds[lane % kinds.len()] * if lane < kinds.len() { 1.0 } else { -0.7 }
                })
            })
            .collect()
    }

    /// The least squared error of all scales, by definition.
    fn least(steps: Steps, weights: &[f32]) -> f64 {
        let alone: Vec<_> = weights.iter().map(|&w| [w; LANES]).collect();
        let whole = steps.whole(&alone);
        let errors = (0..STEPS).map(|step| {
            let scale = f64::from(whole.scale(&[step as f32; LANES])[0]);
            let (lowest, highest) = (f64::from(whole.lowest[0]), f64::from(whole.highest[0]));
            let error = |&w: &f32| {
                let w = f64::from(w);
                ((w / scale).round_ties_even().clamp(lowest, highest) * scale - w).powi(2)
            };
            weights.iter().map(error).sum::<f64>()
        });
        errors.fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn the_error_is_the_least_of_all_scales() {
        for codec in CODECS.iter().filter(|codec| codec.has_blocks()) {
            let ruler = Ruler::new(codec);
            for count in [0, 1, 2, 16, 32, 128, ADDED, 5000] {
                let weights = strip(count);
                let mut levels = vec![[0; LANES]; count];
                let (found, noise) = ruler.measure(&weights, &mut levels);
                for lane in 0..LANES {
                    let column: Vec<f32> = weights.iter().map(|w| w[lane]).collect();
                    let exact = column.iter().zip(&levels).map(|(&w, level)| {
                        (f64::from(level[lane]) * f64::from(found.scale[lane]) - f64::from(w)).powi(2)
                    });
                    let (exact, least) = (exact.sum::<f64>(), least(ruler.steps(), &column));
                    // Scales are f32, and so are quotients.
                    let power: f64 = column.iter().map(|&w| f64::from(w).powi(2)).sum();
                    let close = |a: f64, b: f64| (a - b).abs() <= 1e-4 * b + 1e-12 * power;
                    let place = format!("{} {count} {lane}: {exact} {} {least}", codec.name, noise[lane]);
                    assert!(close(noise[lane], exact), "{place}");
                    // 0.1 dB.
                    assert!(exact <= 1.023 * least + 1e-12 * power, "{place}");
                    let ends = codec.sorted()[0] - found.zero[lane]..=codec.sorted()[15] - found.zero[lane];
                    assert!(levels.iter().all(|level| ends.contains(&level[lane])), "{place}");
                }
            }
        }
    }

    #[test]
    fn octaves_lie_where_they_fit() {
        let ruler = Ruler::new(Codec::named("log2").unwrap());
        let weights = strip(400);
        let (_, noise) = ruler.measure(&weights, &mut vec![[0; LANES]; 400]);
        for lane in 0..LANES {
            let column: Vec<f32> = weights.iter().map(|w| w[lane]).collect();
            let largest = column.iter().fold(0.0, |largest: f32, w| largest.max(w.abs()));
            assert!(noise[lane] <= ruler.error(&column, (largest / 64.0).max(f32::MIN_POSITIVE)), "{lane}");
        }
    }
}
