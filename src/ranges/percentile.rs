//! All but the outermost values, interpolated within a bin.
//!
//! The convention is ONNX Runtime's (`HistogramCalibrater.compute_percentile`): asymmetric ranges cut `(100 − p)/2`
//! percent from each tail, symmetric ones `100 − p` percent from the magnitudes. The result differs from the exact
//! percentile by at most the width of its bin, that is 2⁻⁷ of its value.

use crate::observer::{Bin, Observer};
use crate::qparams::{Range, Scheme};

pub(super) fn range(observer: &Observer, percentile: f64, scheme: Scheme) -> Range {
    let kept = percentile.clamp(50.0, 100.0) / 100.0;
    let total = (observer.count() - observer.non_finite()) as f64;
    match scheme {
        Scheme::Asymmetric => {
            let cut = total * (1.0 - kept) / 2.0;
            let at = |position| value_at(observer.bins(), position) as f32;
            Range { min: at(cut), max: at(total - cut) }.with_zero()
        }
        Scheme::Symmetric => Range::symmetric(value_at(magnitudes(observer), total * kept) as f32),
    }
}

/// The value below which `position` of the counted values lie: 0 gives the smallest, their number the largest.
pub(super) fn value_at(bins: impl IntoIterator<Item = Bin>, position: f64) -> f64 {
    let (mut below, mut value) = (0.0, 0.0);
    for bin in bins {
        let count = bin.count as f64;
        if position <= below + count {
            return bin.lo + (bin.hi - bin.lo) * ((position - below) / count).max(0.0);
        }
        below += count;
        value = bin.hi;
    }
    value
}

/// The bins of `|x|`, in ascending order.
pub(super) fn magnitudes(observer: &Observer) -> Vec<Bin> {
    let fold = |bin: Bin| if bin.lo < 0.0 { Bin { lo: -bin.hi, hi: -bin.lo, ..bin } } else { bin };
    let mut bins: Vec<_> = observer.bins().map(fold).collect();
    bins.sort_unstable_by(|a, b| a.hi.total_cmp(&b.hi));
    bins
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranges::samples;

    /// The order statistics on both sides of a position.
    fn neighbours(sorted: &[f32], position: f64) -> (f32, f32) {
        let at = |i: f64| sorted[(i as usize).min(sorted.len() - 1)];
        (at((position - 1.0).max(0.0).floor()), at(position.ceil()))
    }

    fn assert_close(found: f32, (lo, hi): (f32, f32), context: &str) {
        let slack = |v: f32| v.abs() / 128.0;
        assert!(found >= lo - slack(lo) && found <= hi + slack(hi), "{context}: {found} not in {lo}..{hi}");
    }

    #[test]
    fn within_a_bin_of_the_exact_percentile() {
        for (name, mut x) in samples::all(20_011) {
            let mut observer = Observer::new();
            observer.observe(&x);
            let n = x.len() as f64;
            for p in [50.0, 90.0, 99.0, 99.9, 99.99, 100.0] {
                let cut = n * (1.0 - p / 100.0);
                x.sort_unstable_by(f32::total_cmp);
                let found = range(&observer, p, Scheme::Asymmetric);
                let (lo, hi) = neighbours(&x, cut / 2.0);
                assert_close(found.min, (lo.min(0.0), hi.min(0.0)), name);
                let (lo, hi) = neighbours(&x, n - cut / 2.0);
                assert_close(found.max, (lo.max(0.0), hi.max(0.0)), name);
                let mut magnitude: Vec<f32> = x.iter().map(|v| v.abs()).collect();
                magnitude.sort_unstable_by(f32::total_cmp);
                let found = range(&observer, p, Scheme::Symmetric);
                assert_close(found.max, neighbours(&magnitude, n - cut), name);
            }
        }
    }
}
