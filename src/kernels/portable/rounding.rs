//! Values to integers and back.

use super::extremes::abs_max;
use super::product::{FRACTION, Limits};
use super::steps::{Steps, Uniform};
use crate::kernels::absmax::scale_of;
use crate::kernels::branchless::{ROUNDER, larger};
use crate::kernels::instructions::{Instructions, LANES};
use crate::kernels::{QuantInt, stream};

/// The integers of the elements from `at` on above [`FRACTION`] other bits, if none is in doubt. NaN and what lies below the
/// smallest integer is that; what lies above [`Steps::qmax`] may be more.
#[inline(always)]
fn multiplied<const N: usize>(
    by: impl Instructions,
    x: &[f32; N],
    steps: impl Steps,
    at: usize,
) -> Option<[i32; N]> {
    let (reciprocal, offset) = (steps.reciprocals::<N>(at), steps.offsets::<N>(at));
    // Loops over indices: closures of `map` are functions of their own in builds without link-time optimization.
    let mut fixed = [0; N];
    for i in 0..N {
        fixed[i] = steps.product().fixed(by, x[i], reciprocal[i], offset[i]);
    }
    if steps.product().doubts(&fixed) { None } else { Some(fixed) }
}

/// The same by definition, whatever the elements.
#[inline(always)]
fn divided<const N: usize>(x: &[f32; N], steps: impl Steps, at: usize) -> [i32; N] {
    let (scale, zero_point) = (steps.scales::<N>(at), steps.zero_points::<N>(at));
    let mut fixed = [0; N];
    for i in 0..N {
        let limits = Limits::new(zero_point[i], steps.qmin(), steps.qmax());
        fixed[i] = limits.divide(x[i], scale[i], zero_point[i]) << FRACTION;
    }
    fixed
}

#[inline(always)]
fn fixed<const N: usize>(by: impl Instructions, x: &[f32; N], steps: impl Steps, at: usize) -> [i32; N] {
    match multiplied(by, x, steps, at) {
        Some(fixed) => fixed,
        None => divided(x, steps, at),
    }
}

/// The integers that [`multiplied`] and [`divided`] have above other bits.
#[inline(always)]
fn narrow<T: QuantInt, const N: usize>(fixed: [i32; N], most: T) -> [T; N] {
    let mut narrow = [T::zeroed(); N];
    for i in 0..N {
        let q = T::from_i32((fixed[i] >> FRACTION).clamp(T::MIN, T::MAX));
        narrow[i] = if q < most { q } else { most };
    }
    narrow
}

/// See [`Instructions::quantize`].
#[inline(always)]
pub(in crate::kernels) fn quantize_lanes<T: QuantInt, const N: usize>(
    by: impl Instructions,
    x: &[f32; N],
    steps: impl Steps,
    at: usize,
) -> Option<[T; N]> {
    #[allow(
        clippy::manual_map,
        reason = "closures are functions of their own without link-time optimization"
    )]
    match multiplied(by, x, steps, at) {
        Some(fixed) => Some(narrow(fixed, T::from_i32(steps.qmax()))),
        None => None,
    }
}

#[inline(always)]
pub(in crate::kernels) fn quantize<T: QuantInt>(
    by: impl Instructions,
    x: &[f32],
    steps: impl Steps,
    out: &mut [T],
) {
    assert_eq!(x.len(), out.len());
    let most = T::from_i32(steps.qmax());
    let (chunks, tail) = x.as_chunks::<LANES>();
    let (places, rest) = out.as_chunks_mut::<LANES>();
    for (i, (chunk, place)) in chunks.iter().zip(places).enumerate() {
        stream::read_ahead(chunk);
        let at = i * LANES;
        *place = match by.quantize(chunk, steps, at) {
            Some(codes) => codes,
            None => narrow(divided(chunk, steps, at), most),
        };
    }
    for (i, (v, place)) in tail.as_chunks::<1>().0.iter().zip(rest).enumerate() {
        [*place] = narrow(fixed(by, v, steps, chunks.len() * LANES + i), most);
    }
}

#[inline(always)]
pub(in crate::kernels) fn quantize_and_abs_max<T: QuantInt>(
    by: impl Instructions,
    x: &[f32],
    steps: Uniform,
    out: &mut [T],
    other: &[f32],
) -> f32 {
    /// So few elements of each take turns that memory is always asked for some.
    const TURN: usize = 128;
    assert!(x.len() == out.len() && x.len() == other.len());
    let mut max = 0.0;
    for ((x, out), other) in x.chunks(TURN).zip(out.chunks_mut(TURN)).zip(other.chunks(TURN)) {
        max = larger(abs_max(other), max);
        quantize(by, x, steps, out);
    }
    max
}

#[inline(always)]
pub(in crate::kernels) fn absmax_quantize_rows(
    by: impl Instructions,
    x: &[f32],
    scales: &mut [f32],
    out: &mut [i8],
) {
    assert!(x.len() == out.len() && x.len().is_multiple_of(scales.len()));
    let row = x.len() / scales.len();
    // All maxima first: the processor works on several, where it would wait for the scale of each before its integers.
    for (x, scale) in x.chunks_exact(row).zip(&mut *scales) {
        *scale = scale_of(abs_max(x));
    }
    for ((x, out), scale) in x.chunks_exact(row).zip(out.chunks_exact_mut(row)).zip(scales) {
        quantize(by, x, Uniform::new(*scale, 0, -127, 127), out);
    }
}

/// What integers stand for, of the elements from `at` on.
#[inline(always)]
fn reals<const N: usize>(q: [i32; N], steps: impl Steps, at: usize) -> [f32; N] {
    let (scale, zero_point) = (steps.scales::<N>(at), steps.zero_points::<N>(at));
    let mut reals = [0.0; N];
    for i in 0..N {
        reals[i] = (q[i] - zero_point[i]) as f32 * scale[i];
    }
    reals
}

/// What the integers nearest to the elements from `at` on stand for.
#[inline(always)]
fn nearest<const N: usize>(by: impl Instructions, x: &[f32; N], steps: impl Steps, at: usize) -> [f32; N] {
    let mut q = fixed(by, x, steps, at);
    // Over an iterator it is a quarter slower.
    #[allow(clippy::needless_range_loop)]
    for i in 0..N {
        let (nearest, most) = (q[i] >> FRACTION, steps.qmax());
        q[i] = if nearest < most { nearest } else { most };
    }
    reals(q, steps, at)
}

#[inline(always)]
pub(in crate::kernels) fn dequantize<T: QuantInt>(q: &[T], steps: impl Steps, out: &mut [f32]) {
    assert_eq!(q.len(), out.len());
    let (chunks, tail) = q.as_chunks::<LANES>();
    let (places, rest) = out.as_chunks_mut::<LANES>();
    for (i, (chunk, place)) in chunks.iter().zip(places).enumerate() {
        stream::read_ahead(chunk);
        *place = reals(wide(chunk), steps, i * LANES);
    }
    for (i, (q, place)) in tail.as_chunks::<1>().0.iter().zip(rest).enumerate() {
        [*place] = reals(wide(q), steps, chunks.len() * LANES + i);
    }
}

#[inline(always)]
fn wide<T: QuantInt, const N: usize>(q: &[T; N]) -> [i32; N] {
    let mut wide = [0; N];
    for i in 0..N {
        wide[i] = q[i].to_i32();
    }
    wide
}

#[inline(always)]
pub(in crate::kernels) fn fake_quantize(
    by: impl Instructions,
    x: &[f32],
    steps: impl Steps,
    out: &mut [f32],
) {
    assert_eq!(x.len(), out.len());
    let (chunks, tail) = x.as_chunks::<LANES>();
    let (places, rest) = out.as_chunks_mut::<LANES>();
    for (i, (chunk, place)) in chunks.iter().zip(places).enumerate() {
        stream::read_ahead(chunk);
        *place = nearest(by, chunk, steps, i * LANES);
    }
    for (i, (v, place)) in tail.as_chunks::<1>().0.iter().zip(rest).enumerate() {
        [*place] = nearest(by, v, steps, chunks.len() * LANES + i);
    }
}

#[inline(always)]
pub(in crate::kernels) fn quantization_error(by: impl Instructions, x: &[f32], steps: impl Steps) -> f64 {
    let mut sums = [0.0; LANES];
    let square = |real: f32, v: f32| {
        let error = f64::from(real) - f64::from(v);
        error * error
    };
    let (chunks, tail) = x.as_chunks::<LANES>();
    for (i, chunk) in chunks.iter().enumerate() {
        stream::read_ahead(chunk);
        let reals = nearest(by, chunk, steps, i * LANES);
        for i in 0..LANES {
            sums[i] += square(reals[i], chunk[i]);
        }
    }
    for (i, v) in tail.as_chunks::<1>().0.iter().enumerate() {
        let [real] = nearest(by, v, steps, chunks.len() * LANES + i);
        sums[0] += square(real, v[0]);
    }
    sums.into_iter().sum()
}

#[inline(always)]
pub(in crate::kernels) fn quantize_columns(x: &[f32], scales: &[f32], out: &mut [i8]) -> f64 {
    assert!(x.len() == scales.len() && x.len() == out.len());
    let limits = Limits::new(0, -127, 127);
    let nearest = |v: f32, scale: f32| limits.clamp(v / scale) + ROUNDER;
    let integer = |nearest: f32| (nearest.to_bits() as i32 - ROUNDER.to_bits() as i32) as i8;
    let squared = |nearest: f32, v: f32, scale: f32| {
        let error = f64::from((nearest - ROUNDER) * scale) - f64::from(v);
        error * error
    };
    let ((x, x_tail), (scales, scale_tail)) = (x.as_chunks::<LANES>(), scales.as_chunks::<LANES>());
    let (out, out_tail) = out.as_chunks_mut::<LANES>();
    let mut sums = [0.0; LANES];
    for ((x, scales), out) in x.iter().zip(scales).zip(out) {
        // A loop for each width of numbers: the compiler makes vectors of these.
        let mut all = [0.0; LANES];
        for i in 0..LANES {
            all[i] = nearest(x[i], scales[i]);
        }
        for i in 0..LANES {
            out[i] = integer(all[i]);
        }
        for i in 0..LANES {
            sums[i] += squared(all[i], x[i], scales[i]);
        }
    }
    for (((&v, &scale), q), sum) in x_tail.iter().zip(scale_tail).zip(out_tail).zip(&mut sums) {
        let nearest = nearest(v, scale);
        *q = integer(nearest);
        *sum += squared(nearest, v, scale);
    }
    sums.into_iter().sum()
}
