//! What the loops are told of the instruction set that they are compiled for.
//!
//! The compiler finds nearly everything itself. But it may not round once in place of twice, which is as good here, and it
//! narrows vectors in twice as many steps as AVX2 has instructions for: both cost a fifth of the time of `quantize`.

use super::QuantInt;
use super::portable::{self, Steps};

/// Elements that are worked on together.
pub const LANES: usize = 32;

/// Of one instruction set.
pub trait Instructions: Copy {
    /// `a × b + c`, rounded once or twice, whatever is quicker.
    fn multiply_add(self, a: f32, b: f32, c: f32) -> f32;

    /// Integers for the elements from `at` on; `None` if one is in doubt.
    #[inline(always)]
    fn quantize<T: QuantInt>(self, x: &[f32; LANES], steps: impl Steps, at: usize) -> Option<[T; LANES]> {
        portable::quantize_lanes(self, x, steps, at)
    }
}

/// What every processor of the architecture has: SSE2, or NEON.
#[derive(Clone, Copy)]
pub struct Baseline;

impl Instructions for Baseline {
    #[inline(always)]
    fn multiply_add(self, a: f32, b: f32, c: f32) -> f32 {
        // A call, which takes longer than everything else, where there is no instruction for it.
        if cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c }
    }
}

/// AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx2(());

/// AVX-512, which narrows in one step, as the compiler knows.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx512(());

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    /// To be had only where the processor has them.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn new() -> Self {
        Self(())
    }
}

#[cfg(target_arch = "x86_64")]
impl Instructions for Avx512 {
    #[inline(always)]
    fn multiply_add(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx2 {
    use std::arch::x86_64::*;

    use super::portable::{FRACTION, MIDDLE, Product, Steps};
    use super::{Avx2, Instructions, LANES, QuantInt, portable};

    impl Avx2 {
        /// To be had only where the processor has them.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        pub fn new() -> Self {
            Self(())
        }
    }

    impl Instructions for Avx2 {
        #[inline(always)]
        fn multiply_add(self, a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }

        #[inline(always)]
        fn quantize<T: QuantInt>(self, x: &[f32; LANES], steps: impl Steps, at: usize) -> Option<[T; LANES]> {
            if size_of::<T>() != 1 {
                return portable::quantize_lanes(self, x, steps, at);
            }
            let parts: &[[f32; 8]; 4] = bytemuck::cast_ref(x);
            // Of all 32 at once: a check of bounds for every eight takes as long as the arithmetic.
            let reciprocals: [[f32; 8]; 4] = bytemuck::cast(steps.reciprocals::<LANES>(at));
            let offsets: [[f32; 8]; 4] = bytemuck::cast(steps.offsets::<LANES>(at));
            // SAFETY: that there is an `Avx2` says that the processor has it.
            let bytes = unsafe {
                // Not of a closure, which is a function of its own in builds without link-time optimization.
                let [a, b, c, d] = parts;
                let product = steps.product();
                let fixed = [
                    fixed(a, &reciprocals[0], &offsets[0], product),
                    fixed(b, &reciprocals[1], &offsets[1], product),
                    fixed(c, &reciprocals[2], &offsets[2], product),
                    fixed(d, &reciprocals[3], &offsets[3], product),
                ];
                narrow(fixed, product, T::MIN < 0, steps.qmax())
            };
            #[allow(clippy::manual_map, reason = "the same")]
            match bytes {
                Some(bytes) => Some(bytemuck::cast(bytes)),
                None => None,
            }
        }
    }

    /// [`Product::fixed`] of eight elements.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn fixed(x: &[f32; 8], reciprocals: &[f32; 8], offsets: &[f32; 8], product: Product) -> __m256i {
        let load = |values: &[f32; 8]| {
            // SAFETY: eight numbers, which need not be aligned.
            unsafe { _mm256_loadu_ps(values.as_ptr()) }
        };
        let sum = _mm256_fmadd_ps(load(x), load(reciprocals), load(offsets));
        let raised = _mm256_castps_si256(_mm256_max_ps(sum, _mm256_set1_ps(product.lo)));
        _mm256_sub_epi32(raised, _mm256_set1_epi32(MIDDLE.to_bits() as i32))
    }

    /// 32 bytes, signed or not, from four vectors of eight; `None` if one is in doubt.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn narrow(fixed: [__m256i; 4], product: Product, signed: bool, most: i32) -> Option<[u8; LANES]> {
        let [a, b, c, d] = fixed;
        let mask = _mm256_set1_epi32(product.fraction);
        let least = _mm256_min_epi32(
            _mm256_min_epi32(_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)),
            _mm256_min_epi32(_mm256_and_si256(c, mask), _mm256_and_si256(d, mask)),
        );
        let doubts = _mm256_cmpeq_epi32(least, _mm256_setzero_si256());
        if _mm256_testz_si256(doubts, doubts) == 0 {
            return None;
        }
        let low = _mm256_packs_epi32(_mm256_srai_epi32::<FRACTION>(a), _mm256_srai_epi32::<FRACTION>(b));
        let high = _mm256_packs_epi32(_mm256_srai_epi32::<FRACTION>(c), _mm256_srai_epi32::<FRACTION>(d));
        let most = _mm256_set1_epi8(most as i8);
        let bytes = if signed {
            _mm256_min_epi8(_mm256_packs_epi16(low, high), most)
        } else {
            _mm256_min_epu8(_mm256_packus_epi16(low, high), most)
        };
        // Packing goes by halves of vectors: four bytes of each part, then the other four of each.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        Some(bytemuck::cast(_mm256_permutevar8x32_epi32(bytes, order)))
    }
}

/// The [`Instructions`] that a function marked with `multiversion` is compiled for.
macro_rules! instructions {
    () => {
        multiversion::target::match_target! {
            "x86_64+avx512f" => $crate::kernels::instructions::Avx512::new(),
            "x86_64+avx2+fma" => $crate::kernels::instructions::Avx2::new(),
            _ => $crate::kernels::instructions::Baseline,
        }
    };
}
pub(super) use instructions;
