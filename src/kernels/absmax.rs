//! Symmetric int8 codes of a whole tensor, with the scales that use the whole range.

use super::layout::LONG;
use super::portable::Uniform;
use super::real::BLOCK;
use super::threads::{SHARE, share, share_out, summarize};
use super::{
    Along, Params, Real, abs_max, absmax_quantize_rows, quantize_and_abs_max, quantize_tensor, raise_abs_max,
    stream,
};
use crate::qparams::{Grid, Range, Scheme};

/// Symmetric int8 codes, −127…127, and the scale `absmax / 127` of each channel (1 for a channel of zeros).
///
/// The array is `outer × channels × inner`. NaNs are skipped in the maximum.
///
/// # Panics
/// If the slices do not have these lengths.
pub fn absmax_quantize<R: Real>(x: &[R], channels: usize, inner: usize, out: &mut [i8]) -> Vec<f32> {
    assert_eq!(x.len(), out.len());
    if channels * inner == 0 {
        return vec![1.0; channels];
    }
    assert!(x.len().is_multiple_of(channels * inner));
    if x.len() == channels * inner && (2..=LONGEST).contains(&inner) {
        return rows(x, inner, out);
    }
    let maxima = maxima(x, channels, inner);
    let scale: Vec<f32> = maxima.into_iter().map(scale_of).collect();
    let along = if channels == 1 { Along::Tensor } else { Along::Axis { channels, inner } };
    let params = Params { scale: &scale, zero_point: &vec![0; channels], qmin: -127, qmax: 127, along };
    quantize_tensor(x, params, out);
    scale
}

/// Longer rows are better shared among threads, and do not stay in the cache.
const LONGEST: usize = 1 << 20;

/// The scale of a channel with this largest magnitude.
#[inline]
pub(super) fn scale_of(max: f32) -> f32 {
    Grid::new(Range::symmetric(max), Scheme::Symmetric).scale
}

fn abs_max_of<R: Real>(x: &[R]) -> f32 {
    x.chunks(R::AT_ONCE).map(|x| R::with_wide(x, abs_max)).fold(0.0, f32::max)
}

/// One row after the other, each read again while it is still in the cache.
fn rows<R: Real>(x: &[R], inner: usize, out: &mut [i8]) -> Vec<f32> {
    let mut scales = vec![0.0; x.len() / inner];
    let kernel = if inner <= stream::PIECE { short_rows } else { long_rows };
    let streaming = stream::beyond_caches(out);
    // The first of several long rows is not read ahead.
    let together = share(streaming).div_ceil(inner).max(8);
    let size = together * inner;
    let parts = x.chunks(size).zip(out.chunks_mut(size)).zip(scales.chunks_mut(together));
    share_out(x.len(), parts, |((x, out), scales)| kernel(x, scales, out, streaming));
    scales
}

/// [`rows`] of which several, or one at least, are a block.
fn short_rows<R: Real>(x: &[R], scales: &mut [f32], out: &mut [i8], streaming: bool) {
    let inner = x.len() / scales.len();
    let kernel = |part: std::ops::Range<usize>, out: &mut [i8]| {
        let scales = &mut scales[part.start / inner..part.end / inner];
        R::with_wide(&x[part], |x| absmax_quantize_rows(x, scales, out));
    };
    if streaming {
        return stream::through(out, inner, kernel);
    }
    in_blocks(out, BLOCK / inner * inner, kernel);
}

/// [`rows`] that are longer. While the integers of one are worked out, which is in the cache by then, the next one is read.
fn long_rows<R: Real>(x: &[R], scales: &mut [f32], out: &mut [i8], streaming: bool) {
    let inner = x.len() / scales.len();
    let mut max = abs_max_of(&x[..inner]);
    let rows = x.chunks(inner).zip(x.chunks(inner).skip(1).chain([&[][..]]));
    for (((row, next), out), scale) in rows.zip(out.chunks_mut(inner)).zip(scales) {
        *scale = scale_of(max);
        max = 0.0;
        let steps = Uniform::new(*scale, 0, -127, 127);
        let kernel = |part: std::ops::Range<usize>, out: &mut [i8]| {
            // After the last row, the same again, for nothing.
            let next = next.get(part.clone()).unwrap_or(&row[part.clone()]);
            let found = R::with_wide(&row[part], |x| {
                R::with_wide(next, |next| quantize_and_abs_max(x, steps, out, next))
            });
            max = found.max(max);
        };
        if streaming {
            stream::through(out, 1, kernel);
        } else {
            in_blocks(out, R::AT_ONCE, kernel);
        }
    }
}

/// Has `kernel(places, their results)` make results, of so many elements at once.
fn in_blocks(out: &mut [i8], block: usize, mut kernel: impl FnMut(std::ops::Range<usize>, &mut [i8])) {
    for (i, out) in out.chunks_mut(block).enumerate() {
        kernel(i * block..i * block + out.len(), out);
    }
}

/// Raises the maxima of columns to the magnitudes in whole rows.
fn raise_by_rows<R: Real>(maxima: &mut [f32], x: &[R]) {
    let row = maxima.len();
    // Several rows at once, or a part of one.
    for x in x.chunks((R::AT_ONCE / row).max(1) * row) {
        for (max, x) in maxima.chunks_mut(R::AT_ONCE).zip(x.chunks(R::AT_ONCE)) {
            R::with_wide(x, |x| raise_abs_max(max, x));
        }
    }
}

/// The largest magnitude of each channel.
fn maxima<R: Real>(x: &[R], channels: usize, inner: usize) -> Vec<f32> {
    let all = |x: &[R], _| {
        let mut maxima = vec![0.0; channels];
        if channels == 1 {
            maxima[0] = abs_max_of(x);
        } else if inner == 1 {
            // Short rows are worked on several together.
            let mut several = vec![0.0; (LONG / channels).max(1) * channels];
            let whole = x.len() / several.len() * several.len();
            raise_by_rows(&mut several, &x[..whole]);
            raise_by_rows(&mut maxima, &x[whole..]);
            raise_abs_max(&mut maxima, &several);
        } else {
            for x in x.chunks(channels * inner) {
                for (max, x) in maxima.iter_mut().zip(x.chunks(inner)) {
                    *max = abs_max_of(x).max(*max);
                }
            }
        }
        maxima
    };
    let larger = |mut a: Vec<f32>, b: Vec<f32>| {
        raise_abs_max(&mut a, &b);
        a
    };
    /// Each has maxima of its own, which have to be compared in the end.
    const PARTS: usize = 64;
    // Whole rounds of the channels, or, of one, any number of elements.
    let round = if channels == 1 { 1 } else { channels * inner };
    let part = (4 * SHARE).max(x.len() / PARTS).div_ceil(round) * round;
    summarize(x, part, all, larger).unwrap_or_else(|| vec![0.0; channels])
}
