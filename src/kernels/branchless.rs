//! What the loops do with single numbers, without a branch or a call, so that the compiler makes vectors of it.

/// `1.5 × 2²³`: adding it to `|v| < 2²²` rounds `v` to the nearest integer, ties to even, in the low mantissa bits.
/// (`f32::round_ties_even` is a library call on baseline x86-64, and 29 times slower.)
pub(crate) const ROUNDER: f32 = 12_582_912.0;

#[inline(always)]
pub(crate) fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The second operand if either is NaN.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}
