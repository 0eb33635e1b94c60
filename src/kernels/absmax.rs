//! Symmetric int8 codes of a whole tensor, with the scales that use the whole range.

use rayon::prelude::*;

use super::layout::{self, BLOCK, SHARE, serial};
use super::{Along, Params, Real, abs_max, quantize_clamped, quantize_tensor, raise_abs_max, stream};

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

fn scale_of(max: f32) -> f32 {
    crate::qparams::QuantParams::per_channel(&[max], 0).scale[0]
}

fn abs_max_of<R: Real>(x: &[R]) -> f32 {
    x.chunks(BLOCK).map(|x| abs_max(R::widen(x, &mut [0.0; BLOCK]))).fold(0.0, f32::max)
}

/// One row after the other, each read again while it is still in the cache.
fn rows<R: Real>(x: &[R], inner: usize, out: &mut [i8]) -> Vec<f32> {
    let streaming = stream::pays(out);
    let row = |(x, out): (&[R], &mut [i8])| {
        let scale = scale_of(abs_max_of(x));
        layout::share(Along::Tensor, 0, (x, out), streaming, &|x: &[R], _, out: &mut [i8]| {
            quantize_clamped(R::widen(x, &mut [0.0; BLOCK]), scale, 0, -127, 127, out);
        });
        scale
    };
    if serial(x, 2 * SHARE) {
        return x.chunks(inner).zip(out.chunks_mut(inner)).map(row).collect();
    }
    let rows = x.par_chunks(inner).zip(out.par_chunks_mut(inner));
    rows.with_min_len(SHARE.div_ceil(inner)).map(row).collect()
}

/// The largest magnitude of each channel.
fn maxima<R: Real>(x: &[R], channels: usize, inner: usize) -> Vec<f32> {
    let all = |x: &[R]| {
        let mut maxima = vec![0.0; channels];
        if channels == 1 {
            maxima[0] = abs_max_of(x);
            return maxima;
        }
        for x in x.chunks(channels * inner) {
            if inner == 1 {
                for (max, x) in maxima.chunks_mut(BLOCK).zip(x.chunks(BLOCK)) {
                    raise_abs_max(max, R::widen(x, &mut [0.0; BLOCK]));
                }
            } else {
                for (max, x) in maxima.iter_mut().zip(x.chunks(inner)) {
                    *max = abs_max_of(x).max(*max);
                }
            }
        }
        maxima
    };
    if serial(x, 2 * SHARE) {
        return all(x);
    }
    let larger = |mut a: Vec<f32>, b: Vec<f32>| {
        raise_abs_max(&mut a, &b);
        a
    };
    // Whole rounds of the channels, or, of one, any number of elements.
    let round = if channels == 1 { 1 } else { channels * inner };
    let parts = x.par_chunks(SHARE.div_ceil(round) * round);
    parts.map(all).reduce(|| vec![0.0; channels], larger)
}
