//! Every kernel at one instruction-set level, for tests and benches, which compare the levels with each other.
//!
//! A level that the machine lacks is the next lower one there.

use super::QuantInt;
use super::portable;
pub use super::portable::Uniform;

macro_rules! levels {
    ($($(#[$doc:meta])* $level:ident: $($clone:meta)?;)*) => {$(
        $(#[$doc])*
        pub mod $level {
            use super::*;

            /// [`super::super::quantize`].
            $(#[$clone])?
            pub fn quantize<T: QuantInt>(x: &[f32], steps: Uniform, out: &mut [T]) {
                portable::quantize(x, steps, out);
            }

            /// [`super::super::dequantize`].
            $(#[$clone])?
            pub fn dequantize<T: QuantInt>(q: &[T], steps: Uniform, out: &mut [f32]) {
                portable::dequantize(q, steps, out);
            }

            /// [`super::super::fake_quantize`].
            $(#[$clone])?
            pub fn fake_quantize(x: &[f32], steps: Uniform, out: &mut [f32]) {
                portable::fake_quantize(x, steps, out);
            }

            /// [`super::super::quantization_error`].
            $(#[$clone])?
            pub fn quantization_error(x: &[f32], steps: Uniform) -> f64 {
                portable::quantization_error(x, steps)
            }

            /// [`super::super::min_max`].
            $(#[$clone])?
            pub fn min_max(x: &[f32]) -> Option<(f32, f32)> {
                portable::min_max(x)
            }

            /// [`super::super::abs_max`].
            $(#[$clone])?
            pub fn abs_max(x: &[f32]) -> f32 {
                portable::abs_max(x)
            }
        }
    )*};
}
levels! {
    /// What every processor of the architecture has: SSE2, or NEON.
    baseline: ;
    /// AVX2.
    avx2: multiversion::multiversion(targets("x86_64+avx2"));
    /// AVX-512.
    avx512: multiversion::multiversion(targets("x86_64+avx2+avx512f+avx512bw+avx512dq+avx512vl"));
}
