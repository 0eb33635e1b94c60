//! "Input feature map reconstruction", the default of Huawei's Ascend Model Compression Toolkit.
//!
//! 1. `hi` and `lo` are the k-th largest and smallest value with `k = n − ⌊0.999999 n⌋`, widened to hold 0; below a
//!    million values these are the extremes.
//! 2. For each ratio in 0.7, 0.71, …, 1.3 the upper end moves to `ratio × hi` and the lower one stays; a symmetric
//!    range has the ends `± ratio × max(hi, −lo)`.
//! 3. The first range with the smallest mean squared error wins.
//!
//! The toolkit lets a symmetric range use the integer −128 if the largest magnitude is negative; here it is 127 always.

use super::percentile::value_at;
use crate::observer::Observer;
use crate::qparams::{Grid, Range, Scheme};

/// Share of the values that the range keeps on each side.
const PERCENTILE: f64 = 0.999_999;

pub(super) fn range(observer: &Observer, scheme: Scheme) -> Range {
    let model = observer.noise_model();
    let start = start(observer);
    let mut best = (f64::INFINITY, start);
    for ratio in (70_u8..=130).map(|percent| f32::from(percent) / 100.0) {
        let range = match scheme {
            Scheme::Asymmetric => Range { max: (ratio * start.max).min(f32::MAX), ..start },
            Scheme::Symmetric => Range::symmetric((ratio * start.abs_max()).min(f32::MAX)),
        };
        let noise = model.noise(Grid::new(range, scheme));
        if noise < best.0 {
            best = (noise, range);
        }
    }
    best.1
}

/// The range before the search.
fn start(observer: &Observer) -> Range {
    let n = observer.count() - observer.non_finite();
    let k = (n - (PERCENTILE * n as f64) as u64).max(1);
    let at = |position: u64| value_at(observer.bins(), position as f64) as f32;
    Range { min: at(k - 1), max: at(n - k + 1) }.with_zero()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::quantization_error;
    use crate::ranges::{self, Method, samples};

    /// The smallest error on the data over the 61 ranges, and the error over the range found.
    fn errors(x: &[f32], found: Range, scheme: Scheme) -> (f64, f64) {
        let error = |range| {
            let Grid { scale, zero_point, qmin, qmax } = Grid::new(range, scheme);
            quantization_error(x, scale, zero_point, qmin, qmax)
        };
        let lo = x.iter().copied().fold(0.0, f32::min);
        let hi = x.iter().copied().fold(0.0, f32::max);
        let at = |ratio: f32| match scheme {
            Scheme::Asymmetric => Range { min: lo, max: ratio * hi },
            Scheme::Symmetric => Range::symmetric(ratio * hi.max(-lo)),
        };
        let best = (0..=60_u8).map(|i| error(at(0.7 + 0.01 * f32::from(i)))).fold(f64::INFINITY, f64::min);
        (best, error(found))
    }

    #[test]
    fn as_good_as_the_same_search_on_the_data() {
        for (name, x) in samples::all(10_007) {
            let mut observer = Observer::new();
            observer.observe(&x);
            for scheme in [Scheme::Asymmetric, Scheme::Symmetric] {
                let (best, found) = errors(&x, ranges::range(&observer, Method::Ifmr, scheme), scheme);
                assert!(found <= 1.03 * best, "{name} {scheme:?}: {found} {best}");
            }
        }
    }

    #[test]
    fn outliers_among_millions_are_cut_first() {
        let mut observer = Observer::new();
        let x: Vec<f32> = (0..1 << 18).map(|i| (i % 1000) as f32 / 1000.0).collect();
        (0..8).for_each(|_| observer.observe(&x));
        observer.observe(&[50.0, 60.0]);
        assert!(start(&observer).max < 1.01);
    }
}
