//! The mean squared error of quantizing an observed tensor, in closed form.
//!
//! Values are taken to be uniform within a bin `[a, b]`. Let `n(t)` be `t / s` rounded and clamped to the integers of
//! the grid. The squared error `(t − n s)²` has the continuous antiderivative
//!
//! ```text
//! F(t) = n s³/12 + (t − n s)³/3
//! ```
//!
//! also where `n` is clamped, so rounding and clipping need no separate treatment. With `u = a − n(a) s`,
//! `v = b − n(b) s`, `Q = (u² + u v + v²)/3` and `k = (n(b) − n(a)) s / (b − a)`, the mean over the bin is
//!
//! ```text
//! (F(b) − F(a)) / (b − a) = Q + k (s²/12 − Q)
//! ```
//!
//! which is accurate for narrow bins and right for a single point, where `k = 0`.

use crate::observer::Observer;
use crate::qparams::Grid;
use multiversion::multiversion;

const LANES: usize = 8;

/// Eight neighbouring bins, field by field. The last block is filled up with empty bins.
#[derive(Clone, Copy, Default)]
struct Block {
    lo: [f64; LANES],
    hi: [f64; LANES],
    /// `1 / (hi − lo)`, 0 for a point.
    density: [f64; LANES],
    count: [f64; LANES],
}

/// The bins of an observer, laid out to evaluate many grids quickly (a few nanoseconds per bin).
pub struct NoiseModel {
    blocks: Vec<Block>,
    /// Sum of squares of the values in the blocks before each, one more than there are blocks.
    energy: Vec<f64>,
    /// Number of finite values.
    total: f64,
}

impl NoiseModel {
    /// Lays out the bins of `observer`.
    pub fn new(observer: &Observer) -> Self {
        let mut blocks = Vec::new();
        let (mut energy, mut total) = (vec![0.0], 0.0);
        let mut bins = observer.bins().peekable();
        while let Some(first) = bins.peek() {
            let mut block = Block { lo: [first.lo; LANES], hi: [first.hi; LANES], ..Block::default() };
            let mut sum = 0.0;
            for (i, bin) in bins.by_ref().take(LANES).enumerate() {
                let count = bin.count as f64;
                let width = bin.hi - bin.lo;
                block.lo[i] = bin.lo;
                block.hi[i..].fill(bin.hi);
                block.density[i] = if width > 0.0 { 1.0 / width } else { 0.0 };
                block.count[i] = count;
                sum += count * (bin.lo * bin.lo + bin.lo * bin.hi + bin.hi * bin.hi) / 3.0;
                total += count;
            }
            blocks.push(block);
            energy.push(energy[energy.len() - 1] + sum);
        }
        Self { blocks, energy, total }
    }

    /// Mean square of the values, 0 if there are none.
    pub fn power(&self) -> f64 {
        self.energy[self.blocks.len()] / self.total.max(1.0)
    }

    /// Mean of the values, 0 if there are none.
    pub fn mean(&self) -> f64 {
        let middle =
            |block: &Block| (0..LANES).map(|i| block.count[i] * (block.lo[i] + block.hi[i])).sum::<f64>();
        self.blocks.iter().map(middle).sum::<f64>() / (2.0 * self.total.max(1.0))
    }

    /// Expected mean squared error on `grid`, 0 if there are no values.
    ///
    /// Values that round to 0 lose all their energy, which prefix sums answer without looking at the bins.
    pub fn noise(&self, grid: Grid) -> f64 {
        let half = f64::from(grid.scale) / 2.0;
        let first = self.blocks.partition_point(|block| block.lo[0] < -half);
        let last = self.blocks.partition_point(|block| block.hi[LANES - 1] <= half).max(first);
        let lost = self.energy[last] - self.energy[first];
        let sum = block_noise(&self.blocks[..first], grid) + block_noise(&self.blocks[last..], grid) + lost;
        sum / self.total.max(1.0)
    }

    /// The part of [`noise`](Self::noise) that comes from values outside of `lo..=hi`: the mean of their squared distance
    /// from it.
    pub fn clipping(&self, lo: f64, hi: f64) -> f64 {
        let below = self.blocks.iter().take_while(|block| block.lo[0] < lo);
        let above = self.blocks.iter().rev().take_while(|block| block.hi[LANES - 1] > hi);
        let mut sum = 0.0;
        for (block, limit) in below.map(|b| (b, lo)).chain(above.map(|b| (b, hi))) {
            for i in 0..LANES {
                // The mean of (t − limit)² for t uniform between u + limit and v + limit, what is inside cut off.
                let outside = |t: f64| if limit == lo { (t - lo).min(0.0) } else { (t - hi).max(0.0) };
                let (u, v) = (outside(block.lo[i]), outside(block.hi[i]));
                sum += block.count[i] * (u * u + u * v + v * v) / 3.0;
            }
        }
        sum / self.total.max(1.0)
    }
}

/// `1.5 × 2⁵²`: adding and subtracting it rounds to the nearest integer.
const ROUNDER: f64 = 6_755_399_441_055_744.0;

/// Sum of squared errors over some bins; the formula is the module's.
#[multiversion(targets("x86_64+avx2"))]
fn block_noise(blocks: &[Block], grid: Grid) -> f64 {
    let s = f64::from(grid.scale);
    let (per_s, uniform) = (1.0 / s, s * s / 12.0);
    let zero = f64::from(grid.zero_point);
    let (least, most) = (f64::from(grid.qmin) - zero, f64::from(grid.qmax) - zero);
    let round = |t: f64| {
        let n = t * per_s;
        let n = if n > least { n } else { least };
        (if n < most { n } else { most }) + ROUNDER - ROUNDER
    };
    let mut sums = [0.0; LANES];
    for block in blocks {
        for (i, sum) in sums.iter_mut().enumerate() {
            let (a, b) = (block.lo[i], block.hi[i]);
            let (na, nb) = (round(a), round(b));
            let (u, v) = (a - na * s, b - nb * s);
            let q = (u * u + u * v + v * v) / 3.0;
            let k = (nb - na) * s * block.density[i];
            *sum += block.count[i] * (q + k * (uniform - q));
        }
    }
    sums.into_iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::quantization_error;
    use crate::qparams::{QuantParams, Range, Scheme};
    use crate::ranges::samples;

    /// Mean squared error over equally spaced points of each bin.
    fn sampled(observer: &Observer, grid: Grid) -> f64 {
        const POINTS: u32 = 400;
        let (s, zp) = (f64::from(grid.scale), f64::from(grid.zero_point));
        let error = |t: f64| {
            let q = (t / s).round_ties_even() + zp;
            (q.clamp(grid.qmin.into(), grid.qmax.into()) - zp) * s - t
        };
        let (mut sum, mut total) = (0.0, 0.0);
        for bin in observer.bins() {
            let at = |i: u32| bin.lo + (bin.hi - bin.lo) * (f64::from(i) + 0.5) / f64::from(POINTS);
            let mean = (0..POINTS).map(|i| error(at(i)).powi(2)).sum::<f64>() / f64::from(POINTS);
            sum += mean * bin.count as f64;
            total += bin.count as f64;
        }
        sum / total
    }

    #[test]
    fn closed_form_matches_the_integral_and_the_data() {
        for (name, x) in samples::all(3001) {
            let mut observer = Observer::new();
            observer.observe(&x);
            let full = observer.range().unwrap_or(Range::ZERO);
            for (scheme, ratio) in
                [Scheme::Asymmetric, Scheme::Symmetric].into_iter().flat_map(|s| [(s, 1.0), (s, 0.3)])
            {
                let params = QuantParams::new(Range { min: full.min * ratio, max: full.max * ratio }, scheme);
                let (grid, found) = (params.grid(0), observer.quantization_noise(&params));
                let expected = sampled(&observer, grid);
                assert!(
                    (found - expected).abs() <= 2e-3 * expected,
                    "{name} {scheme:?} {ratio}: {found} {expected}"
                );
                let Grid { scale, zero_point, qmin, qmax } = grid;
                let measured = quantization_error(&x, scale, zero_point, qmin, qmax) / x.len() as f64;
                assert!(
                    (found - measured).abs() <= 0.1 * measured,
                    "{name} {scheme:?} {ratio}: {found} {measured}"
                );
            }
            let power = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
            assert!((observer.power() - power).abs() <= 1e-3 * power, "{name}");
        }
    }
}
