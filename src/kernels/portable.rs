//! The loops themselves, inlined into each clone. See the public functions for what they compute.
//!
//! Two habits let them vectorise on every target: `if a < b { a } else { b }` rather than `f32::min` (one instruction
//! instead of a NaN dance), and arrays of lanes over `as_chunks` for reductions, which also fix the order of addition.

use super::{BinTable, QuantInt};

const LANES: usize = 32;

/// `1.5 × 2²³`: adding it to `|v| < 2²²` rounds `v` to the nearest integer, ties to even, in the low mantissa bits.
/// (`f32::round_ties_even` is a library call on baseline x86-64, and 29 times slower.)
const ROUNDER: f32 = 12_582_912.0;

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The second operand if either is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The integers a value may round to, relative to the zero point, as floats.
#[derive(Clone, Copy)]
struct Limits {
    lo: f32,
    hi: f32,
}

impl Limits {
    #[inline(always)]
    fn new(zero_point: i32, qmin: i32, qmax: i32) -> Self {
        let (lo, hi) = (qmin - zero_point, qmax - zero_point);
        debug_assert!(lo <= hi && lo > -(1 << 22) && hi < 1 << 22);
        Self { lo: lo as f32, hi: hi as f32 }
    }

    /// `ROUNDER + round_half_even(clamp(v))`; NaN goes to `lo`. Clamping to integers first cannot change the result.
    #[inline(always)]
    fn round(self, v: f32) -> f32 {
        smaller(larger(v, self.lo), self.hi) + ROUNDER
    }
}

#[inline(always)]
pub(super) fn quantize_clamped<T: QuantInt>(
    x: &[f32],
    scale: f32,
    zero_point: i32,
    qmin: i32,
    qmax: i32,
    out: &mut [T],
) {
    assert_eq!(x.len(), out.len());
    let limits = Limits::new(zero_point, qmin, qmax);
    let base = ROUNDER.to_bits() as i32 - zero_point;
    for (q, &v) in out.iter_mut().zip(x) {
        *q = T::from_i32(limits.round(v / scale).to_bits() as i32 - base);
    }
}

#[inline(always)]
pub(super) fn dequantize<T: QuantInt>(q: &[T], scale: f32, zero_point: i32, out: &mut [f32]) {
    assert_eq!(q.len(), out.len());
    for (v, &q) in out.iter_mut().zip(q) {
        *v = (q.to_i32() - zero_point) as f32 * scale;
    }
}

#[inline(always)]
pub(super) fn fake_quantize(x: &[f32], scale: f32, zero_point: i32, qmin: i32, qmax: i32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let limits = Limits::new(zero_point, qmin, qmax);
    for (y, &v) in out.iter_mut().zip(x) {
        *y = (limits.round(v / scale) - ROUNDER) * scale;
    }
}

#[inline(always)]
pub(super) fn quantization_error(x: &[f32], scale: f32, zero_point: i32, qmin: i32, qmax: i32) -> f64 {
    let limits = Limits::new(zero_point, qmin, qmax);
    let squared = |v: f32| {
        let y = (limits.round(v / scale) - ROUNDER) * scale;
        let error = f64::from(y) - f64::from(v);
        error * error
    };
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, &v) in sums.iter_mut().zip(chunk) {
            *sum += squared(v);
        }
    }
    sums.into_iter().chain(tail.iter().map(|&v| squared(v))).sum()
}

#[inline(always)]
pub(super) fn min_max(x: &[f32]) -> Option<(f32, f32)> {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let (mut los, mut his) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    for chunk in chunks {
        for (i, &v) in chunk.iter().enumerate() {
            los[i] = smaller(v, los[i]);
            his[i] = larger(v, his[i]);
        }
    }
    let lo = los.iter().chain(tail).fold(f32::INFINITY, |lo, &v| smaller(v, lo));
    let hi = his.iter().chain(tail).fold(f32::NEG_INFINITY, |hi, &v| larger(v, hi));
    (lo <= hi).then_some((lo + 0.0, hi + 0.0))
}

#[inline(always)]
pub(super) fn abs_max(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut maxima = [0.0; LANES];
    for chunk in chunks {
        for (max, &v) in maxima.iter_mut().zip(chunk) {
            *max = larger(v.abs(), *max);
        }
    }
    maxima.iter().chain(tail).fold(0.0, |max, &v| larger(v.abs(), max))
}

#[inline(always)]
pub(super) fn least_magnitude(x: &[f32]) -> f32 {
    // Magnitudes are ordered like their bits, and subtracting 1 makes 0 the largest.
    let key = |v: f32| (v.to_bits() & 0x7FFF_FFFF).wrapping_sub(1);
    const NONE: u32 = f32::INFINITY.to_bits() - 1;
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut keys = [NONE; LANES];
    for chunk in chunks {
        for (i, &v) in chunk.iter().enumerate() {
            keys[i] = key(v).min(keys[i]);
        }
    }
    f32::from_bits(keys.into_iter().chain(tail.iter().map(|&v| key(v))).fold(NONE, u32::min) + 1)
}

/// Zeros of successive elements go to as many different counters, which [`gather_zeros`] then adds up.
const ZERO_LANES: usize = 16;

/// Subnormals and zeros have an exponent field of 0: this many bins of each sign.
const TINY: usize = 1 << 7;
const SIGN: usize = 1 << 15;

/// The bin of a number that is not zero, `lane` of one that is.
#[inline(always)]
fn bin(v: f32, lane: usize) -> usize {
    let bits = v.to_bits();
    usize::from((bits >> 16) as u16) | if bits << 1 == 0 { lane } else { 0 }
}

#[inline(always)]
pub(super) fn count_bins(x: &[f32], table: &mut BinTable) {
    const { assert!(ZERO_LANES <= TINY) };
    let (chunks, tail) = x.as_chunks::<ZERO_LANES>();
    for chunk in chunks {
        for lane in 0..ZERO_LANES {
            table[bin(chunk[lane], lane)] += 1;
        }
    }
    for &v in tail {
        table[bin(v, 0)] += 1;
    }
}

/// Moves the counts of the zeros and subnormals to bin 0.
pub(super) fn gather_zeros(table: &mut BinTable) {
    let (positive, negative) = table.split_at_mut(SIGN);
    let (zero, tiny) = positive[..TINY].split_first_mut().expect("TINY > 0");
    for count in tiny.iter_mut().chain(&mut negative[..TINY]) {
        *zero += std::mem::take(count);
    }
}
