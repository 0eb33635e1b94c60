//! Sharing out the work on an array among threads.

use std::sync::{Mutex, PoisonError};

/// Elements that a thread takes at once.
pub const SHARE: usize = 1 << 15;

/// The same of arrays that are stored past the caches or not: the end of a share waits for that.
pub fn share(streaming: bool) -> usize {
    if streaming { 8 * SHARE } else { SHARE }
}

/// Fewer elements are done before a second thread is awake.
const WORTHWHILE: usize = 1 << 17;

/// Does `work` on each part of `elements`: on this thread, and on those of the pool as soon as they are awake.
///
/// Waking a thread takes microseconds, as long as a hundred thousand elements, and this one goes on meanwhile. (Rayon's
/// parallel iterators hand over all of the work, if the caller is not of the pool, and have it wait.)
pub fn share_out<P: Send>(
    elements: usize,
    parts: impl ExactSizeIterator<Item = P> + Send,
    work: impl Fn(P) + Sync,
) {
    let threads = rayon::current_num_threads().min(parts.len());
    if elements < WORTHWHILE || threads <= 1 {
        return parts.for_each(work);
    }
    let parts = Mutex::new(parts);
    let take = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || std::iter::from_fn(take).for_each(&work);
    rayon::in_place_scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| work());
        }
        work();
    });
}

/// Combines what `summary` finds in each part, in the order of the parts.
pub fn summarize<I: Sync, S: Send>(
    x: &[I],
    part: usize,
    summary: impl Fn(&[I], usize) -> S + Sync,
    combine: impl Fn(S, S) -> S,
) -> Option<S> {
    let mut found: Vec<Option<S>> = Vec::new();
    found.resize_with(x.len().div_ceil(part), || None);
    share_out(x.len(), x.chunks(part).enumerate().zip(&mut found), |((i, x), found)| {
        *found = Some(summary(x, i * part));
    });
    found.into_iter().flatten().reduce(combine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_done_once_by_any_number_of_threads() {
        for (threads, n) in [(1, 7), (2, 0), (2, 1), (2, 7), (3, WORTHWHILE), (8, 3 * WORTHWHILE + 1)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut done = vec![0_u8; n];
            pool.install(|| {
                share_out(n, done.chunks_mut(1000), |part| part.iter_mut().for_each(|times| *times += 1));
            });
            assert!(done.iter().all(|&times| times == 1), "{n} elements on {threads} threads");
            let places = pool.install(|| {
                let place = |x: &[u8], start| vec![(start, x.len())];
                summarize(&done, 1000, place, |a, b| [a, b].concat())
            });
            let expected = (0..n).step_by(1000).map(|start| (start, 1000.min(n - start))).collect::<Vec<_>>();
            assert_eq!(places.unwrap_or_default(), expected);
        }
    }

    #[test]
    #[should_panic(expected = "from a part")]
    fn a_panic_is_passed_on() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.install(|| share_out(WORTHWHILE, 0..10, |part| assert!(part != 7, "from a part")));
    }
}
