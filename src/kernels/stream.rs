//! Arrays larger than the caches: reading ahead, and stores that go past the caches.
//!
//! A result larger than the last cache is not there any more when it is next read. An ordinary store first fetches the
//! line that it is about to overwrite; a non-temporal one does not, which spares a third of the traffic. But memory is slow
//! to turn from reads to writes and back: results are gathered, and then stored together. Nor does memory wait for the
//! arithmetic: what is worked on next is fetched meanwhile, from several places at once, which is quicker than one.

#![allow(unsafe_code)]

use std::ops::Range;

/// Elements whose results are stored together: these, and what they are made of, stay in the second-level cache.
pub const PIECE: usize = 1 << 14;

/// Elements between which a little is read ahead: more at once wait for each other.
const STEP: usize = 512;

/// Places that are read ahead at once.
const STREAMS: usize = 2;

/// So many bytes are not in the caches when they are next read.
const LARGE: usize = 16 << 20;

/// Whether an array is so large that the instructions here pay.
pub fn beyond_caches<T>(x: &[T]) -> bool {
    cfg!(target_arch = "x86_64") && size_of_val(x) >= LARGE
}

/// Works on parts of `x` while `next` is read ahead.
pub fn beside<T>(next: &[T], x: &[T], mut kernel: impl FnMut(&[T])) {
    for at in (0..x.len()).step_by(STEP) {
        let part = at..(at + STEP).min(x.len());
        fetch(next, part.clone(), x.len());
        kernel(&x[part]);
    }
}

/// Has `kernel(places, their results)` make results, and stores them past the caches, while `next` is read ahead: as far on as
/// the results are. The kernel is given multiples of `unit` elements, at most a [`PIECE`].
pub fn through<I, O: Copy + Default>(
    next: &[I],
    out: &mut [O],
    unit: usize,
    mut kernel: impl FnMut(Range<usize>, &mut [O]),
) {
    let mut buffer = [O::default(); PIECE];
    let step = STEP.div_ceil(unit) * unit;
    let piece = PIECE / step * step;
    for (number, out) in out.chunks_mut(piece).enumerate() {
        let start = number * piece;
        let next = &next[start.min(next.len())..(start + out.len()).min(next.len())];
        for at in (0..out.len()).step_by(step) {
            let part = at..(at + step).min(out.len());
            fetch(next, part.clone(), out.len());
            kernel(start + part.start..start + part.end, &mut buffer[part]);
        }
        copy(&buffer[..out.len()], out);
    }
}

/// Asks for as large a part of `next` as `part` is of `whole`.
fn fetch<T>(next: &[T], part: Range<usize>, whole: usize) {
    const LINE: usize = 64;
    let stream = next.len() / STREAMS;
    for at in (part.start * stream / whole..part.end * stream / whole).step_by(LINE / size_of::<T>()) {
        for number in 0..STREAMS {
            prefetch(&next[number * stream + at]);
        }
    }
}

/// Has the processor read what will be needed soon, where there is an instruction for it.
#[inline(always)]
fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE, which it needs, is part of x86-64; it is a hint, which changes nothing that can be seen.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// `out.copy_from_slice(x)`, past the caches as far as `out` is aligned.
#[cfg(target_arch = "x86_64")]
fn copy<T: Copy>(x: &[T], out: &mut [T]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
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
    // SAFETY: SSE, which it needs, is part of x86-64. Other threads must see these stores before what follows them.
    unsafe { _mm_sfence() };
}

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
        for (n, unit) in [(0, 1), (1, 1), (STEP + 1, 1), (PIECE - 1, 1), (3 * PIECE + 5, 1), (7 * 5000, 5000)]
        {
            for ahead in [0, 1, n / 2, n, 2 * n] {
                let (next, mut out) = (vec![0_u8; ahead], vec![u16::MAX; n]);
                through(&next, &mut out, unit, |places, out| {
                    assert!(places.len() == out.len() && places.len().is_multiple_of(unit));
                    places.zip(out).for_each(|(place, out)| *out = place as u16);
                });
                assert!((0..n).zip(out).all(|(place, out)| place as u16 == out), "{n} elements by {unit}");
            }
        }
    }

    #[test]
    fn every_part_is_met_once() {
        for n in [0, 1, STEP, 5 * STEP + 3] {
            let (x, mut met) = ((0..n).collect::<Vec<_>>(), Vec::new());
            beside(&x[n / 3..], &x, |part| met.extend_from_slice(part));
            assert_eq!(met, x);
        }
    }
}
