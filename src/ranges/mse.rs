//! The range with the smallest expected mean squared error, by line searches over the clipping limits.
//!
//! A symmetric range has one limit to search. An asymmetric one first shrinks as a whole, then its ends in turn.

use super::NoiseModel;
use crate::observer::Observer;
use crate::qparams::{Grid, Range, Scheme};

/// Two limits on either side that differ by this factor are neighbours in the first scan.
const STEP: f32 = 0.957_603_3; // 2^(−1/16)

/// The scan ends at `STEP` to this power, 2⁻²⁰, or earlier: see [`Search::scan`].
const MAX_STEPS: i32 = 320;

/// `clipping` is what a squared error by clipping counts, compared with one by rounding.
pub(super) fn range(observer: &Observer, full: Range, scheme: Scheme, clipping: f64) -> Range {
    let model = observer.noise_model();
    let mut search = Search { model, scheme, clipping, best: full, noise: f64::INFINITY };
    search.line(|t| Range { min: full.min * t, max: full.max * t });
    if scheme == Scheme::Asymmetric && full.min < 0.0 && full.max > 0.0 {
        for _ in 0..2 {
            let Range { min, .. } = search.best;
            search.line(|t| Range { min, max: full.max * t });
            let Range { max, .. } = search.best;
            search.line(|t| Range { min: full.min * t, max });
        }
    }
    search.best
}

struct Search<'o> {
    model: &'o NoiseModel,
    scheme: Scheme,
    clipping: f64,
    best: Range,
    noise: f64,
}

impl Search<'_> {
    /// Looks for the best of the ranges `at(t)`, `0 < t ≤ 1`, that shrink with `t`: a scan, then a refinement.
    fn line(&mut self, at: impl Fn(f32) -> Range) {
        let t = self.scan(&at);
        self.refine(&at, t * STEP, (t / STEP).min(1.0));
    }

    /// The `t` of the best range among powers of [`STEP`].
    ///
    /// Rounding costs at most `s²/4`, the rest is clipping, which only grows as the range shrinks: once the clipping
    /// alone costs more than the best so far, no smaller range can win.
    fn scan(&mut self, at: &impl Fn(f32) -> Range) -> f32 {
        let (mut best, mut least) = (1.0, f64::INFINITY);
        for t in (0..MAX_STEPS).map(|i| STEP.powi(i)) {
            let (noise, scale) = self.evaluate(at(t));
            if noise < least {
                (best, least) = (t, noise);
            }
            if noise - scale * scale / 4.0 > least {
                break;
            }
        }
        best
    }

    /// Golden-section search between `lo` and `hi`.
    fn refine(&mut self, at: &impl Fn(f32) -> Range, mut lo: f32, mut hi: f32) {
        const GOLDEN: f32 = 0.618_034;
        let inner = |lo: f32, hi: f32| (hi - GOLDEN * (hi - lo), lo + GOLDEN * (hi - lo));
        for _ in 0..8 {
            let (a, b) = inner(lo, hi);
            if self.evaluate(at(a)).0 < self.evaluate(at(b)).0 { hi = b } else { lo = a }
        }
    }

    /// Noise and scale of a range, which is remembered if it is the best so far.
    fn evaluate(&mut self, range: Range) -> (f64, f64) {
        let grid = Grid::new(range, self.scheme);
        let mut noise = self.model.noise(grid);
        if self.clipping != 1.0 {
            let Range { min, max } = grid.covers();
            noise += (self.clipping - 1.0) * self.model.clipping(min.into(), max.into());
        }
        if noise < self.noise {
            (self.best, self.noise) = (range, noise);
        }
        (noise, grid.scale.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::quantization_error;
    use crate::ranges::samples;

    fn measured(x: &[f32], range: Range, scheme: Scheme) -> f64 {
        let Grid { scale, zero_point, qmin, qmax } = Grid::new(range, scheme);
        quantization_error(x, scale, zero_point, qmin, qmax)
    }

    /// The smallest error on the data itself over a fine mesh of limits.
    fn brute_force(x: &[f32], full: Range, scheme: Scheme) -> f64 {
        let ratios = |n: i32| (0..n).map(move |i| 0.003_f32.powf(i as f32 / n as f32));
        let ranges: Vec<Range> = match scheme {
            Scheme::Symmetric => {
                ratios(300).map(|t| Range { min: full.min * t, max: full.max * t }).collect()
            }
            Scheme::Asymmetric => ratios(60)
                .flat_map(|a| ratios(60).map(move |b| Range { min: full.min * a, max: full.max * b }))
                .collect(),
        };
        ranges.into_iter().map(|r| measured(x, r, scheme)).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn as_good_as_brute_force_on_the_data() {
        for (name, x) in samples::all(4003) {
            let mut observer = Observer::new();
            observer.observe(&x);
            for scheme in [Scheme::Asymmetric, Scheme::Symmetric] {
                let full = observer.range().unwrap_or(Range::ZERO).with_zero();
                let found =
                    measured(&x, super::super::range(&observer, super::super::Method::Mse, scheme), scheme);
                let best = brute_force(&x, full, scheme);
                assert!(found <= 1.05 * best, "{name} {scheme:?}: {found} {best}");
            }
        }
    }
}
