//! Arrays larger than the caches: reading ahead, and stores that go past the caches.
//!
//! A result larger than the last cache is not there any more when it is next read. An ordinary store first fetches the
//! line that it is about to overwrite; a non-temporal one does not, which spares a third of the traffic. But lines
//! that are read and such that are stored past the caches are better not mixed: some results are gathered, and stored together.
//! Reading ahead by an instruction goes on where that of the processor ends, at pages and behind stores, and pays as soon as an
//! array is larger than the second-level cache.

#![allow(unsafe_code)]

use std::ops::Range;

/// Bytes of results that are stored together: few enough that reading goes on behind the stores. A kernel may want as many
/// elements.
pub const PIECE: usize = 1 << 11;

/// What memory has at once, in bytes.
const LINE: usize = 64;

/// So many bytes are not in the caches when they are next read.
const LARGE: usize = 16 << 20;

/// Whether an array is so large that stores past the caches pay.
pub fn beyond_caches<T>(x: &[T]) -> bool {
    cfg!(target_arch = "x86_64") && size_of_val(x) >= LARGE
}

/// Has the processor read as many bytes as `part` has, some way on.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn read_ahead<T>(part: &[T]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    /// So many bytes on: not yet gone from the first-level cache when they are worked on.
    const AHEAD: usize = 8 << 10;
    for line in (0..size_of_val(part)).step_by(LINE) {
        let place = part.as_ptr().cast::<i8>().wrapping_add(AHEAD + line);
        // SAFETY: SSE, which it needs, is part of x86-64; it is a hint, of any address, which changes nothing that can be seen.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place) };
    }
}

/// Elsewhere there is no such instruction in Rust.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub fn read_ahead<T>(_: &[T]) {}

/// Has `kernel(places, their results)` make results, and stores them past the caches. The kernel is given multiples of `unit`
/// elements, which is at most [`PIECE`].
pub fn through<O: Copy + Default>(
    out: &mut [O],
    unit: usize,
    mut kernel: impl FnMut(Range<usize>, &mut [O]),
) {
    let mut buffer = Lines([O::default(); PIECE]);
    let piece = (PIECE / size_of::<O>() / unit).max(1) * unit;
    // Pieces end with a line: one of which a part is stored now and the rest later takes as long as several.
    let before = if unit == 1 { out.as_ptr().addr() % LINE / size_of::<O>() } else { 0 };
    let (mut start, mut end) = (0, piece - before);
    while start < out.len() {
        let part = start..end.min(out.len());
        let results = &mut buffer.0[..part.len()];
        kernel(part.clone(), results);
        copy(results, &mut out[part]);
        (start, end) = (end, end + piece);
    }
    fence();
}

/// Where no vector lies across two lines.
#[repr(align(64))]
struct Lines<T>(T);

/// `out.copy_from_slice(x)`, past the caches as far as `out` is aligned.
#[cfg(target_arch = "x86_64")]
fn copy<T: Copy>(x: &[T], out: &mut [T]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    assert_eq!(x.len(), out.len());
    // SAFETY: any bytes may be copied between places of the same Copy type as long as whole values are, which is so in the
    // end. That `align_to_mut` splits them in between is no matter: nobody looks in the meantime.
    let (head, body, tail) = unsafe { out.align_to_mut::<__m128i>() };
    let (start, end) = (head.len(), x.len() - tail.len());
    head.copy_from_slice(&x[..start]);
    tail.copy_from_slice(&x[end..]);
    let from = x[start..end].as_ptr().cast::<__m128i>();
    for (i, place) in body.iter_mut().enumerate() {
        // SAFETY: `x[start..end]` has as many bytes as `body`, of whose `i`-th 16 bytes this is the source; the load asks
        // for no alignment, the store for the one that `align_to_mut` gave.
        unsafe { _mm_stream_si128(place, _mm_loadu_si128(from.add(i))) };
    }
}

/// Has other threads see what [`copy`] has stored before what this one stores after it. Waits for memory.
#[cfg(target_arch = "x86_64")]
fn fence() {
    // SAFETY: SSE, which it needs, is part of x86-64.
    unsafe { std::arch::x86_64::_mm_sfence() };
}

#[cfg(not(target_arch = "x86_64"))]
fn fence() {}

/// `out.copy_from_slice(x)`.
#[cfg(not(target_arch = "x86_64"))]
fn copy<T: Copy>(x: &[T], out: &mut [T]) {
    out.copy_from_slice(x);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_from_and_to_any_place() {
        fn check<T: Copy + PartialEq + std::fmt::Debug>(value: impl Fn(usize) -> T) {
            let x: Vec<T> = (0..200).map(&value).collect();
            for (from, to, n) in (0..17).flat_map(|from| (0..17).map(move |to| (from, to, 5 * (from + to)))) {
                let mut out = vec![value(255); 200];
                let mut expected = out.clone();
                copy(&x[from..from + n], &mut out[to..to + n]);
                expected[to..to + n].copy_from_slice(&x[from..from + n]);
                assert_eq!(out, expected);
            }
        }
        check(|i| i as u8);
        check(|i| i as u16);
        check(|i| i as f32);
    }

    #[test]
    fn every_result_is_stored_in_its_place() {
        let sizes = [(0, 1), (1, 1), (PIECE - 1, 1), (3 * PIECE + 5, 1), (7 * 1500, 1500), (7 * 300, 300)];
        for ((n, unit), from) in sizes.into_iter().flat_map(|size| [0, 1, 31, 32].map(|from| (size, from))) {
            let mut out = vec![u16::MAX; from + n];
            through(&mut out[from..], unit, |places, out| {
                assert!(!out.is_empty() && places.len() == out.len() && places.len().is_multiple_of(unit));
                places.zip(out).for_each(|(place, out)| *out = place as u16);
            });
            assert!(out[..from].iter().all(|&untouched| untouched == u16::MAX));
            assert!(
                (0..n).zip(&out[from..]).all(|(place, &out)| place as u16 == out),
                "{n} elements by {unit}"
            );
        }
    }
}
