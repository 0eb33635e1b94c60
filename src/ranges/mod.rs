//! From an observation to the range that a tensor is quantized over: pure functions, one file each.
//!
//! Zeros are exact on every grid, so the methods that weigh errors do not see them, however many a ReLU makes.

mod entropy;
mod ifmr;
mod mse;
mod noise;
mod percentile;
#[cfg(test)]
pub(crate) mod samples;

pub use noise::NoiseModel;

use crate::observer::Observer;
use crate::qparams::{Range, Scheme};

/// What clipping counts in [`Method::Auto`]: chosen by measurement, see the table of methods in `docs/how-it-works.md`.
const CLIPPING: f64 = 3.0;

/// How to choose the range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// Everything that was seen.
    MinMax,
    /// All but the outermost values; between 50 and 100, such as 99.99.
    Percentile(f64),
    /// The smallest Kullback–Leibler divergence, as TensorRT does.
    Entropy,
    /// The smallest mean squared error.
    Mse,
    /// The smallest mean squared error, where an error by clipping counts [`CLIPPING`] times: what is rare and large
    /// often decides.
    Auto,
    /// Huawei's "input feature map reconstruction": the smallest squared error among 61 ranges around the extremes.
    Ifmr,
}

/// The range to quantize an observed tensor over. It always holds 0, and is symmetric if the scheme is.
///
/// A tensor of which nothing finite was seen has the range of zeros.
pub fn range(observer: &Observer, method: Method, scheme: Scheme) -> Range {
    let full = observer.range().map_or(Range::ZERO, Range::with_zero);
    let full = match scheme {
        Scheme::Asymmetric => full,
        Scheme::Symmetric => Range::symmetric(full.abs_max()),
    };
    if full.abs_max() < f32::MIN_POSITIVE {
        return full;
    }
    match method {
        Method::MinMax => full,
        Method::Percentile(p) => percentile::range(observer, p, scheme),
        Method::Entropy => entropy::range(observer, full, scheme),
        Method::Mse => mse::range(observer, full, scheme, 1.0),
        Method::Auto => mse::range(observer, full, scheme, CLIPPING),
        Method::Ifmr => ifmr::range(observer, scheme),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const METHODS: [Method; 6] =
        [Method::MinMax, Method::Percentile(99.9), Method::Entropy, Method::Mse, Method::Auto, Method::Ifmr];

    #[test]
    fn degenerate_observations() {
        let cases: [&[f32]; 13] = [
            &[],
            &[0.0; 5],
            &[-0.0],
            &[3.0],
            &[-3.0; 40],
            &[0.0, 6.0],
            &[1e-45, -1e-42],
            &[f32::MIN_POSITIVE, -f32::MIN_POSITIVE],
            &[1e-37, 2e-37, 3e-37, -5e-38],
            &[f32::MAX, f32::MIN, 1.0, 0.0],
            &[f32::MAX],
            &[f32::NAN, f32::INFINITY],
            &[f32::NAN, f32::NEG_INFINITY, 1.0, 2.0, -1.0],
        ];
        for x in cases {
            let mut observer = Observer::new();
            observer.observe(x);
            for method in METHODS.into_iter().chain([0.0, f64::NAN, 50.0, 100.0, 1e9].map(Method::Percentile))
            {
                for scheme in [Scheme::Asymmetric, Scheme::Symmetric] {
                    let Range { min, max } = range(&observer, method, scheme);
                    assert!(min <= 0.0 && max >= 0.0, "{x:?} {method:?} {scheme:?}: {min} {max}");
                    assert!(min.is_finite() && max.is_finite(), "{x:?} {method:?} {scheme:?}: {min} {max}");
                    assert!(scheme == Scheme::Asymmetric || min == -max, "{x:?} {method:?}: {min} {max}");
                }
            }
        }
    }

    #[test]
    fn one_value_keeps_its_place() {
        let mut observer = Observer::new();
        observer.observe(&[3.0; 100]);
        for method in METHODS {
            let Range { min, max } = range(&observer, method, Scheme::Asymmetric);
            assert!(min == 0.0 && (2.0..=4.0).contains(&max), "{method:?}: {min} {max}");
        }
    }
}
