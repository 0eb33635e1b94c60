//! Every kernel at one instruction-set level, for tests and benches, which compare the levels with each other.
//!
//! A level that the machine lacks is the next lower one there.

use super::QuantInt;
use super::instructions::{Baseline, instructions};
use super::portable;
pub use super::portable::Uniform;
use multiversion::multiversion;

/// The instructions of a level.
macro_rules! by {
    () => {
        Baseline
    };
    ($targets:literal) => {
        instructions!()
    };
}

macro_rules! levels {
    ($($(#[$doc:meta])* $level:ident $(: $targets:literal)?;)*) => {$(
        $(#[$doc])*
        pub mod $level {
            use super::*;

            /// [`super::super::quantize`].
            $(#[multiversion(targets($targets))])?
            pub fn quantize<T: QuantInt>(x: &[f32], steps: Uniform, out: &mut [T]) {
                portable::quantize(by!($($targets)?), x, steps, out);
            }

            /// [`super::super::dequantize`].
            $(#[multiversion(targets($targets))])?
            pub fn dequantize<T: QuantInt>(q: &[T], steps: Uniform, out: &mut [f32]) {
                portable::dequantize(q, steps, out);
            }

            /// [`super::super::fake_quantize`].
            $(#[multiversion(targets($targets))])?
            pub fn fake_quantize(x: &[f32], steps: Uniform, out: &mut [f32]) {
                portable::fake_quantize(by!($($targets)?), x, steps, out);
            }

            /// [`super::super::quantization_error`].
            $(#[multiversion(targets($targets))])?
            pub fn quantization_error(x: &[f32], steps: Uniform) -> f64 {
                portable::quantization_error(by!($($targets)?), x, steps)
            }

            /// [`super::super::min_max`].
            $(#[multiversion(targets($targets))])?
            pub fn min_max(x: &[f32]) -> Option<(f32, f32)> {
                portable::min_max(x)
            }

            /// [`super::super::abs_max`].
            $(#[multiversion(targets($targets))])?
            pub fn abs_max(x: &[f32]) -> f32 {
                portable::abs_max(x)
            }
        }
    )*};
}
levels! {
    /// What every processor of the architecture has: SSE2, or NEON.
    baseline;
    /// AVX2 and FMA.
    avx2: "x86_64+avx2+fma";
    /// AVX-512 with all that Ice Lake and Zen 4 have of it: `multiversion` takes less for slow.
    avx512: "x86_64+avx512f";
}
