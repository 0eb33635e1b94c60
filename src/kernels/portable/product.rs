//! A division by a scale, and what takes its place.

use crate::kernels::branchless::{ROUNDER, larger, smaller};
use crate::kernels::instructions::Instructions;

/// The integers a value may round to, relative to the zero point, as floats.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    lo: f32,
    hi: f32,
}

impl Limits {
    #[inline(always)]
    pub(super) fn new(zero_point: i32, qmin: i32, qmax: i32) -> Self {
        let (lo, hi) = (qmin - zero_point, qmax - zero_point);
        debug_assert!(lo <= hi && lo > -(1 << 22) && hi < 1 << 22);
        Self { lo: lo as f32, hi: hi as f32 }
    }

    /// Clamping to integers before rounding cannot change the result. NaN goes to `lo`.
    #[inline(always)]
    pub(super) fn clamp(self, v: f32) -> f32 {
        smaller(larger(v, self.lo), self.hi)
    }

    /// The integer nearest to the clamped quotient.
    #[inline(always)]
    pub(super) fn divide(self, v: f32, scale: f32, zero_point: i32) -> i32 {
        (self.clamp(v / scale) + ROUNDER).to_bits() as i32 - (ROUNDER.to_bits() as i32 - zero_point)
    }
}

/// How to find the integer nearest to `x / scale`, plus the zero point, by a product.
///
/// ONNX divides, and a division takes several times a multiplication. With `r` the reciprocal of the scale, `x·r` and
/// `x / scale` as rounded to f32 differ by at most `1.5 · 2⁻²³ · |x / scale|`: half a unit in the last place each for the
/// reciprocal, the product and the quotient. Up to 256 that is less than `¾ u` with `u = 2⁻¹⁴`.
///
/// Floats from 512 to 1024 are the multiples of `u`. So adding `768 + zero_point + ½ + 2u` rounds the product to a multiple
/// of `u`, and what its bits hold above the lowest 14 is the integer below the sum: `x / scale + ½` rounded down, if in
/// doubt of at most `¾ u + ½ u`, of which the `2u` are in the middle of the fractions `0…4u`. Only those may round to another
/// integer, or be a tie: one in 4096. Then the elements nearby are divided.
///
/// Whatever lies below the smallest integer, and NaN, is raised to its fraction ¼, which is beyond doubt; what lies above the
/// largest is left to integers.
#[derive(Clone, Copy)]
pub struct Product {
    pub(in crate::kernels) lo: f32,
    /// The fraction bits that are not all 0 where the sum is beyond doubt; none if that is never so.
    pub(in crate::kernels) fraction: i32,
}

/// [`f32::is_normal`] without a branch, so that many are looked at together.
#[inline(always)]
fn is_normal(v: f32) -> bool {
    (v.abs() >= f32::MIN_POSITIVE) & (v.abs() < f32::INFINITY)
}

/// Number of bits below 1 in floats from 512 to 1024.
pub(in crate::kernels) const FRACTION: i32 = 14;

/// The middle of these floats, where the integer 0 is.
pub(in crate::kernels) const MIDDLE: f32 = 768.0;

impl Product {
    /// For integers from `qmin` on; never beyond doubt unless `exact_enough`.
    #[inline(always)]
    pub(super) fn new(qmin: i32, exact_enough: bool) -> Self {
        let fraction = if exact_enough { (1 << FRACTION) - 4 } else { 0 };
        Self { lo: MIDDLE + qmin as f32 + 0.25, fraction }
    }

    /// Whether the bound on the error holds.
    #[inline(always)]
    pub(super) fn is_exact_enough(scale: f32, zero_point: i32, qmin: i32, qmax: i32) -> bool {
        let fits = |q: i32| (-255..=255).contains(&q);
        let fits = fits(qmin) & fits(qmax) & fits(qmin - zero_point) & fits(qmax - zero_point);
        fits & is_normal(scale) & is_normal(1.0 / scale)
    }

    /// What is added to a product.
    #[inline(always)]
    pub(super) fn offset(zero_point: i32) -> f32 {
        const UNIT: f32 = 1.0 / (1 << FRACTION) as f32;
        MIDDLE + zero_point as f32 + 0.5 + 2.0 * UNIT
    }

    /// The sum less [`MIDDLE`], of [`FRACTION`] bits below 1; of no meaning where it was never exact enough.
    #[inline(always)]
    pub(super) fn fixed(self, by: impl Instructions, v: f32, reciprocal: f32, offset: f32) -> i32 {
        larger(by.multiply_add(v, reciprocal, offset), self.lo).to_bits().wrapping_sub(MIDDLE.to_bits())
            as i32
    }

    /// Whether one is in doubt.
    #[inline(always)]
    pub(super) fn doubts<const N: usize>(self, fixed: &[i32; N]) -> bool {
        let mut least = [i32::MAX; WIDTH];
        // Over an iterator it is not made vectors of, nor is what goes before it: five times as slow.
        #[allow(clippy::needless_range_loop)]
        for i in 0..N {
            let fraction = fixed[i] & self.fraction;
            least[i % WIDTH] = if fraction < least[i % WIDTH] { fraction } else { least[i % WIDTH] };
        }
        let mut any = false;
        for fraction in least {
            any |= fraction == 0;
        }
        any
    }
}

/// Numbers in a vector of AVX-512, or in two of AVX2.
const WIDTH: usize = 16;
