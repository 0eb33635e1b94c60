//! Stores that go past the caches.
//!
//! A result larger than the last cache is not there any more when it is next read. An ordinary store first fetches the
//! line that it is about to overwrite; a non-temporal one does not, which spares a third of the traffic.

#![allow(unsafe_code)]

/// Results of this many bytes go past the caches.
const LARGE: usize = 16 << 20;

/// Whether results so large should go past the caches.
pub fn pays<T>(out: &[T]) -> bool {
    cfg!(target_arch = "x86_64") && size_of_val(out) >= LARGE
}

/// `out.copy_from_slice(x)`, past the caches as far as `out` is aligned.
#[cfg(target_arch = "x86_64")]
pub fn copy<T: Copy>(x: &[T], out: &mut [T]) {
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
pub fn copy<T: Copy>(x: &[T], out: &mut [T]) {
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
}
