//! The scale of some weights, and the level of each: channels side by side, a lane for each.
//!
//! A format with levels at equal distances is measured in steps of the scale s: with t = w / s and q the integer nearest to t
//! within the range, the squared error is s² · Σ (q − t)². It is worked out for [`STEPS`] scales, the widest range first,
//! and each narrower range clips more: once what is clipped alone costs as much as the best scale so far, no later one
//! can be better. The sums of a lane are added in the order of its weights, so that every instruction set has the same.

use multiversion::multiversion;

use super::codecs::{Codec, Fit};

/// Channels side by side.
pub(super) const LANES: usize = 8;

/// Steps of the search for a scale, and the smallest part of the whole range that is tried.
const STEPS: usize = 24;
const NARROWEST: f32 = 0.4;

/// Scales that are tried in one pass.
const TOGETHER: usize = 4;

/// Weights whose squared errors are added in f32; the sums of more are added in f64.
const ADDED: usize = 256;

/// `1.5 × 2²³`: adding it to `|v| < 2²²` rounds `v` to the nearest integer, ties to even, in the low mantissa bits.
const ROUNDER: f32 = 12_582_912.0;

/// What the levels of some weights mean, for each lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grids {
    pub scale: [f32; LANES],
    pub zero: [i8; LANES],
    /// Sum of the squared errors.
    pub noise: [f64; LANES],
}

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

    /// Finds the scales of some weights, and their levels less the zero points.
    pub fn measure(&self, weights: &[[f32; LANES]], levels: &mut [[i8; LANES]]) -> Grids {
        match self.codec.fit {
            Fit::Symmetric | Fit::Asymmetric => measure_steps(self.steps(), weights, levels),
            Fit::AbsMax | Fit::MeanMagnitude | Fit::Octave => self.by_lane(weights, levels),
        }
    }

    fn steps(&self) -> Steps {
        let (lowest, highest) = (f32::from(self.levels[0]), f32::from(self.levels[self.levels.len() - 1]));
        Steps { lowest, highest, has_zero: self.codec.has_zero_point() }
    }

    fn by_lane(&self, weights: &[[f32; LANES]], levels: &mut [[i8; LANES]]) -> Grids {
        let mut found = Grids { scale: [1.0; LANES], zero: [0; LANES], noise: [0.0; LANES] };
        for lane in 0..LANES {
            let weights: Vec<f32> = weights.iter().map(|weights| weights[lane]).collect();
            let scale = self.scale(&weights);
            for (level, &w) in levels.iter_mut().zip(&weights) {
                level[lane] = self.nearest(w, scale);
            }
            (found.scale[lane], found.noise[lane]) = (scale, self.error(&weights, scale));
        }
        found
    }

    /// The scale of the weights of one channel.
    fn scale(&self, weights: &[f32]) -> f32 {
        let largest = weights.iter().fold(0.0, |largest, w| larger(w.abs(), largest));
        let top = f32::from(self.levels[self.levels.len() - 1]);
        match self.codec.fit {
            Fit::MeanMagnitude => {
                let sum: f64 = weights.iter().map(|&w| f64::from(w.abs())).sum();
                (sum / weights.len().max(1) as f64) as f32
            }
            _ if largest == 0.0 => 1.0,
            Fit::AbsMax | Fit::Symmetric | Fit::Asymmetric => largest / top,
            Fit::Octave => {
                let scales = (0..STEPS).map(|i| (0.5 - 1.5 * i as f32 / STEPS as f32).exp2() * largest / top);
                let scales = scales.map(|scale| scale.max(f32::MIN_POSITIVE));
                let errors: Vec<_> = scales.map(|scale| (self.error(weights, scale), scale)).collect();
                errors
                    .into_iter()
                    .reduce(|best, one| if one.0 < best.0 { one } else { best })
                    .map_or(1.0, |b| b.1)
            }
        }
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

/// Levels at equal distances.
#[derive(Debug, Clone, Copy)]
struct Steps {
    lowest: f32,
    highest: f32,
    /// Whether they are counted from a zero point.
    has_zero: bool,
}

/// One of the grids to try, in each lane.
#[derive(Clone, Copy)]
struct Tried {
    scale: [f32; LANES],
    zero: [f32; LANES],
}

impl Steps {
    /// The grid of a part of the range from `min` ≤ 0 to `max` ≥ 0.
    #[inline(always)]
    fn grid(self, step: usize, min: &[f32; LANES], max: &[f32; LANES]) -> Tried {
        let part = 1.0 - (1.0 - NARROWEST) * step as f32 / STEPS as f32;
        let top = self.highest;
        let mut grid = Tried { scale: [1.0; LANES], zero: [0.0; LANES] };
        for lane in 0..LANES {
            let (min, max) = (part * min[lane], part * max[lane]);
            let scale = if self.has_zero { max / top - min / top } else { larger(-min, max) / top };
            if scale == 0.0 && min == max {
                continue;
            }
            grid.scale[lane] = larger(scale, f32::MIN_POSITIVE);
            if self.has_zero {
                grid.zero[lane] = nearest(clamped(-min / grid.scale[lane], 0.0, top));
            }
        }
        grid
    }

    /// The integers that a grid has, less its zero points.
    #[inline(always)]
    fn ends(self, grid: &Tried) -> ([f32; LANES], [f32; LANES]) {
        let (mut lowest, mut highest) = ([0.0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            lowest[lane] = self.lowest - grid.zero[lane];
            highest[lane] = self.highest - grid.zero[lane];
        }
        (lowest, highest)
    }

    /// Sums of the squared errors on these grids, and the part of the last one's that the weights have which lie beyond its
    /// ends, and will be beyond those of all narrower ones: a zero point that is rounded can shift the ends by a step.
    #[inline(always)]
    fn errors(
        self,
        weights: &[[f32; LANES]],
        grids: &[Tried; TOGETHER],
    ) -> ([[f64; LANES]; TOGETHER], [f64; LANES]) {
        let slack = if self.has_zero { 1.0 } else { 0.0 };
        let (mut lowest, mut highest) = ([[0.0; LANES]; TOGETHER], [[0.0; LANES]; TOGETHER]);
        let mut reciprocal = [[0.0; LANES]; TOGETHER];
        for i in 0..TOGETHER {
            (lowest[i], highest[i]) = self.ends(&grids[i]);
            for lane in 0..LANES {
                reciprocal[i][lane] = 1.0 / grids[i].scale[lane];
            }
        }
        let (mut errors, mut clipped) = ([[0.0; LANES]; TOGETHER], [0.0; LANES]);
        for weights in weights.chunks(ADDED) {
            let (mut sums, mut beyond) = ([[0.0_f32; LANES]; TOGETHER], [0.0_f32; LANES]);
            for w in weights {
                for i in 0..TOGETHER {
                    for lane in 0..LANES {
                        let t = w[lane] * reciprocal[i][lane];
                        let error = nearest(clamped(t, lowest[i][lane], highest[i][lane])) - t;
                        sums[i][lane] += error * error;
                    }
                }
                let last = TOGETHER - 1;
                for lane in 0..LANES {
                    let t = w[lane] * reciprocal[last][lane];
                    let error = clamped(t, lowest[last][lane] - slack, highest[last][lane] + slack) - t;
                    beyond[lane] += error * error;
                }
            }
            for lane in 0..LANES {
                let square = |i: usize| f64::from(grids[i].scale[lane]) * f64::from(grids[i].scale[lane]);
                for i in 0..TOGETHER {
                    errors[i][lane] += f64::from(sums[i][lane]) * square(i);
                }
                clipped[lane] += f64::from(beyond[lane]) * square(TOGETHER - 1);
            }
        }
        (errors, clipped)
    }
}

/// The scale of the least squared error in each lane, the first of those with the same, and the levels.
#[multiversion(targets("x86_64+avx2"))]
fn measure_steps(steps: Steps, weights: &[[f32; LANES]], levels: &mut [[i8; LANES]]) -> Grids {
    let (mut min, mut max) = ([0.0; LANES], [0.0; LANES]);
    for w in weights {
        for lane in 0..LANES {
            min[lane] = smaller(w[lane], min[lane]);
            max[lane] = larger(w[lane], max[lane]);
        }
    }
    let (mut best, mut noise) = (steps.grid(0, &min, &max), [f64::INFINITY; LANES]);
    for first in (0..STEPS).step_by(TOGETHER) {
        let mut grids = [best; TOGETHER];
        for (i, grid) in grids.iter_mut().enumerate() {
            *grid = steps.grid(first + i, &min, &max);
        }
        let (errors, clipped) = steps.errors(weights, &grids);
        let mut open = 0;
        for lane in 0..LANES {
            for (grid, errors) in grids.iter().zip(&errors) {
                if errors[lane] < noise[lane] {
                    noise[lane] = errors[lane];
                    (best.scale[lane], best.zero[lane]) = (grid.scale[lane], grid.zero[lane]);
                }
            }
            open += usize::from(clipped[lane] < noise[lane]);
        }
        if open == 0 {
            break;
        }
    }
    let (lowest, highest) = steps.ends(&best);
    for (w, levels) in weights.iter().zip(levels) {
        for lane in 0..LANES {
            let t = clamped(w[lane] / best.scale[lane], lowest[lane], highest[lane]);
            levels[lane] = (t + ROUNDER).to_bits() as i32 as i8;
        }
    }
    Grids { scale: best.scale, zero: best.zero.map(|zero| zero as i8), noise }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The second operand if either is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
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
                [
                    bell,
                    a,
                    bell.powi(5),
                    a.abs() + 0.1,
                    -b.abs() * 1e30,
                    0.0,
                    c * 1e-39,
                    if i == 0 { 3.0 } else { 0.01 * a },
                ]
            })
            .collect()
    }

    /// The least squared error of all scales, by definition.
    fn least(steps: Steps, weights: &[f32]) -> f64 {
        let extreme = |pick: fn(f32, f32) -> f32| weights.iter().fold(0.0, |a, &b| pick(a, b));
        let (min, max) = ([extreme(f32::min); LANES], [extreme(f32::max); LANES]);
        let errors = (0..STEPS).map(|step| {
            let grid = steps.grid(step, &min, &max);
            let (scale, zero) = (f64::from(grid.scale[0]), f64::from(grid.zero[0]));
            let (lowest, highest) = (f64::from(steps.lowest) - zero, f64::from(steps.highest) - zero);
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
                let found = ruler.measure(&weights, &mut levels);
                for lane in 0..LANES {
                    let column: Vec<f32> = weights.iter().map(|w| w[lane]).collect();
                    let exact = column.iter().zip(&levels).map(|(&w, level)| {
                        (f64::from(level[lane]) * f64::from(found.scale[lane]) - f64::from(w)).powi(2)
                    });
                    let (exact, least) = (exact.sum::<f64>(), least(ruler.steps(), &column));
                    // Scales are f32, and so are quotients.
                    let power: f64 = column.iter().map(|&w| f64::from(w).powi(2)).sum();
                    let close = |a: f64, b: f64| (a - b).abs() <= 1e-4 * b + 1e-12 * power;
                    let place =
                        format!("{} {count} {lane}: {exact} {} {least}", codec.name, found.noise[lane]);
                    assert!(close(exact, least) && close(found.noise[lane], exact), "{place}");
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
        let found = ruler.measure(&weights, &mut vec![[0; LANES]; 400]);
        for lane in 0..LANES {
            let column: Vec<f32> = weights.iter().map(|w| w[lane]).collect();
            let largest = column.iter().fold(0.0, |largest: f32, w| largest.max(w.abs()));
            assert!(found.noise[lane] <= ruler.error(&column, largest / 64.0), "{lane}");
        }
    }
}
