//! The range-free histogram, counted in lanes that stay in the cache.
//!
//! Equal values often follow each other, and incrementing a counter waits for the increment before. So successive values
//! go to different lanes of a bin, which share a cache line. The counters are short and one table per thread serves every
//! tensor: it stays in the cache, where the long counters of many tensors would not. Afterwards, the bins between the
//! extremes are added to the tensor's own counters, one after the other, which memory is quick at.

use std::cell::RefCell;

use super::{BINS, BinTable, min_max};

const LANES: usize = 4;

/// First bin of negative numbers.
const SIGN: usize = 1 << 15;

/// No counter can overflow before so many values were counted.
pub(super) const MOST: usize = LANES * u16::MAX as usize;

/// Fewer values are counted sooner than a table is walked through.
pub(super) const WORTHWHILE: usize = 1 << 14;

/// Fits into the first-level cache.
const BLOCK: usize = 4096;

type Table = [[u16; LANES]; BINS];

thread_local! {
    /// All zeros between calls.
    static TABLE: RefCell<Box<Table>> =
        RefCell::new(vec![[0; LANES]; BINS].into_boxed_slice().try_into().expect("BINS counters"));
}

/// Smallest and largest of at most [`MOST`] values, counted.
pub(super) fn observe(x: &[f32], table: &mut BinTable) -> Option<(f32, f32)> {
    const { assert!(BLOCK.is_multiple_of(LANES)) };
    debug_assert!(x.len() <= MOST);
    TABLE.with_borrow_mut(|lanes| {
        let mut found = None;
        for block in x.chunks(BLOCK) {
            found = wider(found, min_max(block));
            count(block, lanes);
        }
        add_up(lanes, table, found, x.len() as u64);
        found
    })
}

/// The extremes of two parts.
pub(super) fn wider(a: Option<(f32, f32)>, b: Option<(f32, f32)>) -> Option<(f32, f32)> {
    match (a, b) {
        (Some((min, max)), Some((lo, hi))) => Some((min.min(lo), max.max(hi))),
        (found, None) | (None, found) => found,
    }
}

fn bin(v: f32) -> usize {
    usize::from((v.to_bits() >> 16) as u16)
}

fn count(x: &[f32], lanes: &mut Table) {
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in chunk.iter().enumerate() {
            lanes[bin(v)][lane] += 1;
        }
    }
    for (lane, &v) in tail.iter().enumerate() {
        lanes[bin(v)][lane] += 1;
    }
}

/// Moves the counts of `expected` values, between these extremes unless they are NaN, to `table`.
fn add_up(lanes: &mut Table, table: &mut BinTable, found: Option<(f32, f32)>, expected: u64) {
    let (lo, hi) = found.unwrap_or((0.0, 0.0));
    let positive = 0..=if hi > 0.0 { bin(hi) } else { 0 };
    let negative = SIGN..=if lo < 0.0 { bin(lo) } else { SIGN };
    let mut added = 0;
    for bins in [positive, negative] {
        added += move_counts(&mut lanes[bins.clone()], &mut table[bins]);
    }
    if added < expected {
        move_counts(&mut lanes[..], &mut table[..]);
    }
}

/// Moves counts, and tells how many.
fn move_counts(lanes: &mut [[u16; LANES]], table: &mut [u64]) -> u64 {
    /// A cache line of lanes.
    const LINE: usize = 8;
    let mut moved = 0;
    for (lanes, counts) in lanes.chunks_mut(LINE).zip(table.chunks_mut(LINE)) {
        if lanes.as_flattened().iter().fold(0, |any, lane| any | lane) == 0 {
            continue;
        }
        for (lanes, count) in lanes.iter_mut().zip(counts) {
            let more: u64 = std::mem::take(lanes).into_iter().map(u64::from).sum();
            *count += more;
            moved += more;
        }
    }
    moved
}
