//! The range-free histogram, counted in lanes that stay in the cache.
//!
//! Equal values often follow each other, and incrementing a counter waits for the increment before. So successive values
//! go to different lanes, each a table of its own. These tables belong to the thread and serve every tensor: the bins in
//! use stay in the cache, where the long counters of many tensors would not. Afterwards, the bins between the extremes
//! are added to the tensor's own counters, one after the other, which memory is quick at.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

use super::{BINS, BinTable, stream};

const LANES: usize = 4;

/// First bin of negative numbers.
const SIGN: usize = 1 << 15;

/// No counter can overflow before so many values were counted.
pub(super) const MOST: usize = u32::MAX as usize;

/// Fewer values are counted sooner than a table is walked through.
pub(super) const WORTHWHILE: usize = 1 << 13;

/// What is read ahead of it, too, fits into the first-level cache.
const BLOCK: usize = 2048;

/// Counters of 32 bits: shorter ones are slower to forward from one increment to the next. Lanes are longer
/// than needed by a third of a page: counters at the same place of different pages compete for one place in the cache, and
/// the processor takes the increment of one for that of the other and waits.
type Table = [[u32; BINS + 336]; LANES];

thread_local! {
    /// All zeros between calls.
    static TABLE: RefCell<Box<Table>> =
        RefCell::new(vec![[0; _]; LANES].into_boxed_slice().try_into().expect("LANES lanes"));
}

/// What is known of some values beside their counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Extremes {
    /// Smallest and largest, of those that are not NaN.
    pub pair: Option<(f32, f32)>,
    /// Smallest magnitude that is neither 0 nor NaN, infinite if there is none.
    pub least: f32,
}

impl Extremes {
    /// Of no values.
    pub const NONE: Self = Self { pair: None, least: f32::INFINITY };

    /// Of two parts.
    pub fn join(self, other: Self) -> Self {
        Self { pair: wider(self.pair, other.pair), least: self.least.min(other.least) }
    }
}

pub(super) fn extremes(x: &[f32]) -> Extremes {
    let (pair, least) = super::extremes(x);
    Extremes { pair, least }
}

/// Counts at most [`MOST`] values in a table that is locked only at the end.
pub(super) fn observe(x: &[f32], table: &Mutex<&mut BinTable>) -> Extremes {
    debug_assert!(x.len() <= MOST);
    TABLE.with_borrow_mut(|lanes| {
        let mut found = Extremes::NONE;
        for block in x.chunks(BLOCK) {
            found = found.join(extremes(block));
            count(block, lanes);
        }
        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
        add_up(lanes, &mut table, found, x.len() as u64);
        found
    })
}

/// The smallest and largest of two parts.
pub(super) fn wider(a: Option<(f32, f32)>, b: Option<(f32, f32)>) -> Option<(f32, f32)> {
    match (a, b) {
        (Some((min, max)), Some((lo, hi))) => Some((min.min(lo), max.max(hi))),
        (found, None) | (None, found) => found,
    }
}

pub(super) fn bin(v: f32) -> usize {
    usize::from((v.to_bits() >> 16) as u16)
}

fn count(x: &[f32], lanes: &mut Table) {
    /// As many as a line of memory has.
    const STEP: usize = 16;
    const { assert!(STEP.is_multiple_of(LANES)) };
    let (chunks, tail) = x.as_chunks::<STEP>();
    for chunk in chunks {
        stream::read_ahead(chunk);
        for (i, &v) in chunk.iter().enumerate() {
            lanes[i % LANES][bin(v)] += 1;
        }
    }
    for &v in tail {
        lanes[0][bin(v)] += 1;
    }
}

/// Moves the counts of `expected` values to `table`: all of them, unless some are NaN, are zeros, or numbers between the
/// extremes.
fn add_up(lanes: &mut Table, table: &mut BinTable, extremes: Extremes, expected: u64) {
    let (least, (lo, hi)) = (bin(extremes.least), extremes.pair.unwrap_or((0.0, 0.0)));
    let ranges = [0..=0, least..=bin(hi.max(0.0)), SIGN..=SIGN, SIGN + least..=SIGN + bin(lo.min(0.0).abs())];
    let moved: u64 = ranges.into_iter().map(|bins| move_counts(lanes, table, bins)).sum();
    if moved < expected {
        move_counts(lanes, table, 0..=BINS - 1);
    }
}

/// Moves the counts of these bins, and of some beside them, and tells how many.
fn move_counts(lanes: &mut Table, table: &mut BinTable, bins: RangeInclusive<usize>) -> u64 {
    /// Bins that are looked at together: most are empty.
    const GROUP: usize = 16;
    let mut moved = 0;
    for (group, counts) in table
        .as_chunks_mut::<GROUP>()
        .0
        .iter_mut()
        .enumerate()
        .take(bins.end() / GROUP + 1)
        .skip(bins.start() / GROUP)
    {
        let parts = lanes.each_mut().map(|lane| &mut lane.as_chunks_mut::<GROUP>().0[group]);
        let mut sums = [0; GROUP];
        for part in &parts {
            for (i, count) in part.iter().enumerate() {
                sums[i] += count;
            }
        }
        let sum: u32 = sums.iter().sum();
        if sum == 0 {
            continue;
        }
        parts.into_iter().for_each(|part| *part = [0; GROUP]);
        for (i, &sum) in sums.iter().enumerate() {
            counts[i] += u64::from(sum);
        }
        moved += u64::from(sum);
    }
    moved
}
