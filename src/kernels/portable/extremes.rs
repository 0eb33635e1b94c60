//! Extremes, and sums of squares.

use crate::kernels::branchless::{larger, smaller};
use crate::kernels::instructions::LANES;
use crate::kernels::stream;

#[inline(always)]
pub(in crate::kernels) fn min_max(x: &[f32]) -> Option<(f32, f32)> {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let (mut los, mut his) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    for chunk in chunks {
        stream::read_ahead(chunk);
        for (i, &v) in chunk.iter().enumerate() {
            los[i] = smaller(v, los[i]);
            his[i] = larger(v, his[i]);
        }
    }
    join(&los, &his, tail)
}

/// What `pick` takes of lanes that are not NaN, halving them: one after the other would take as long as hundreds of elements.
#[inline(always)]
fn fold(lanes: &[f32; LANES], pick: impl Fn(f32, f32) -> f32) -> f32 {
    let mut picked = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            picked[i] = pick(picked[i], picked[i + half]);
        }
        half /= 2;
    }
    picked[0]
}

/// The extremes of lanes and of what is left over; −0 becomes 0.
#[inline(always)]
fn join(los: &[f32; LANES], his: &[f32; LANES], tail: &[f32]) -> Option<(f32, f32)> {
    let lo = tail.iter().fold(fold(los, smaller), |lo, &v| smaller(v, lo));
    let hi = tail.iter().fold(fold(his, larger), |hi, &v| larger(v, hi));
    (lo <= hi).then_some((lo + 0.0, hi + 0.0))
}

/// Raises each maximum to the magnitude of its element. All of them are stored, raised or not: the compiler would store some
/// by a mask, which is slow.
#[inline(always)]
fn raise(maxima: &mut [f32; LANES], x: &[f32; LANES]) {
    let mut raised = *maxima;
    for i in 0..LANES {
        raised[i] = larger(x[i].abs(), raised[i]);
    }
    *maxima = raised;
}

#[inline(always)]
pub(in crate::kernels) fn raise_abs_max(maxima: &mut [f32], x: &[f32]) {
    let row = maxima.len();
    if row == 0 {
        return assert!(x.is_empty());
    }
    assert!(x.len().is_multiple_of(row));
    let (places, rest) = maxima.as_chunks_mut::<LANES>();
    // Two rows, or one twice: maxima are read and written half as often, and of one the compiler would store some by a mask.
    for rows in x.chunks(2 * row) {
        let ((first, tail), (last, last_tail)) =
            (rows[..row].as_chunks::<LANES>(), rows[rows.len() - row..].as_chunks::<LANES>());
        for ((first, last), place) in first.iter().zip(last).zip(&mut *places) {
            stream::read_ahead(first);
            stream::read_ahead(last);
            let mut raised = *place;
            for i in 0..LANES {
                raised[i] = larger(last[i].abs(), larger(first[i].abs(), raised[i]));
            }
            *place = raised;
        }
        for ((first, last), max) in tail.iter().zip(last_tail).zip(&mut *rest) {
            *max = larger(last.abs(), larger(first.abs(), *max));
        }
    }
}

#[inline(always)]
pub(in crate::kernels) fn sum_of_squares(x: &[f32]) -> f64 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let square = |v: f32| f64::from(v) * f64::from(v);
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, &v) in sums.iter_mut().zip(chunk) {
            *sum += square(v);
        }
    }
    sums.into_iter().chain(tail.iter().map(|&v| square(v))).sum()
}

#[inline(always)]
pub(in crate::kernels) fn raise_extents(
    sizes: &mut [f32],
    sums: &mut [f32],
    even: &[f32],
    odd: &[f32],
) -> f64 {
    let count = sizes.len();
    assert!(sums.len() == count && even.len() == count && odd.len() == count);
    let (sizes, size_tail) = sizes.as_chunks_mut::<LANES>();
    let (sums, sum_tail) = sums.as_chunks_mut::<LANES>();
    let ((even, even_tail), (odd, odd_tail)) = (even.as_chunks::<LANES>(), odd.as_chunks::<LANES>());
    let mut squares = [0.0; LANES];
    for (((sizes, sums), even), odd) in sizes.iter_mut().zip(sums).zip(even).zip(odd) {
        // Copies, all of which are stored, raised or not: as in `raise`.
        let (mut raised, mut together) = (*sizes, *sums);
        for i in 0..LANES {
            raised[i] = larger(odd[i].abs(), larger(even[i].abs(), raised[i]));
            together[i] = larger((even[i] + odd[i]).abs(), together[i]);
        }
        (*sizes, *sums) = (raised, together);
        for i in 0..LANES {
            let (a, b) = (f64::from(even[i]), f64::from(odd[i]));
            squares[i] += a * a + b * b;
        }
    }
    let rest = size_tail.iter_mut().zip(sum_tail).zip(even_tail).zip(odd_tail);
    for (((size, sum), &a), &b) in rest {
        *size = larger(b.abs(), larger(a.abs(), *size));
        *sum = larger((a + b).abs(), *sum);
        squares[0] += f64::from(a) * f64::from(a) + f64::from(b) * f64::from(b);
    }
    squares.into_iter().sum()
}

#[inline(always)]
pub(in crate::kernels) fn abs_max(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut maxima = [0.0; LANES];
    for chunk in chunks {
        stream::read_ahead(chunk);
        raise(&mut maxima, chunk);
    }
    tail.iter().fold(fold(&maxima, larger), |max, &v| larger(v.abs(), max))
}

/// [`min_max`], and the smallest magnitude that is neither 0 nor NaN, infinite if there is none.
#[inline(always)]
pub(in crate::kernels) fn extremes(x: &[f32]) -> (Option<(f32, f32)>, f32) {
    // Magnitudes are ordered like their bits, and subtracting 1 makes 0 the largest.
    let key = |v: f32| (v.to_bits() & 0x7FFF_FFFF).wrapping_sub(1);
    const NONE: u32 = f32::INFINITY.to_bits() - 1;
    let (chunks, tail) = x.as_chunks::<LANES>();
    let (mut los, mut his) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let mut keys = [NONE; LANES];
    for chunk in chunks {
        stream::read_ahead(chunk);
        for (i, &v) in chunk.iter().enumerate() {
            los[i] = smaller(v, los[i]);
            his[i] = larger(v, his[i]);
            keys[i] = key(v).min(keys[i]);
        }
    }
    let least = keys.into_iter().chain(tail.iter().map(|&v| key(v))).fold(NONE, u32::min) + 1;
    (join(&los, &his, tail), f32::from_bits(least))
}
