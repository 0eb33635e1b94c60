//! Observing activations inside the graph that computes them.
//!
//! A value that is made a graph output has to be kept until the run ends, which costs the reuse of its memory, and a
//! trip through main memory when it is counted at last. An `Observe` node reads the value right after it was computed,
//! counts it and produces nothing:
//!
//! ```text
//! Conv ─▶ Relu ─┬─▶ Conv ─▶ …             slot 0 ◀─┐
//!               └─▶ Observe(handle, slot = 0) ─────┘
//! ```
//!
//! The slots of one calibration are [`Observers`]; their nodes find them by a handle, a number that is never used twice.
//! `graph` puts the nodes into a model, `op` is their kernel in ONNX Runtime, `abi` the part of its C interface that the
//! kernel needs.

#[cfg(feature = "python")]
mod abi;
mod graph;
#[cfg(feature = "python")]
mod op;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::calibration::Calibration;
use crate::error::Result;
use crate::model::Model;
use crate::observer::Observer;

/// Slots for the values of one model, filled by its `Observe` nodes while it runs.
///
/// Several sessions and threads may fill them at once. They are freed when this and the sessions are gone.
#[derive(Debug)]
pub struct Observers {
    handle: i64,
    slots: Arc<[Slot]>,
}

/// What was seen of one value.
#[derive(Debug)]
pub(crate) struct Slot {
    name: String,
    /// Each is filled by one thread at a time; counts add up exactly, whichever part they are in.
    parts: Box<[Mutex<Option<Observer>>]>,
    rank: AtomicU8,
}

/// More threads than this seldom have enough values each.
const MOST_PARTS: usize = 8;

static NEXT_HANDLE: AtomicU64 = AtomicU64::new(1);
static LIVE: Mutex<BTreeMap<i64, Weak<[Slot]>>> = Mutex::new(BTreeMap::new());

impl Observers {
    /// Slots for these values, each filled by up to `threads` threads at once.
    pub fn new(names: impl IntoIterator<Item = String>, threads: usize) -> Self {
        let parts = threads.clamp(1, MOST_PARTS);
        let slots: Arc<[Slot]> = names.into_iter().map(|name| Slot::new(name, parts)).collect();
        let handle = NEXT_HANDLE.fetch_add(1, Ordering::Relaxed).cast_signed();
        locked(&LIVE).insert(handle, Arc::downgrade(&slots));
        Self { handle, slots }
    }

    /// `model` with an `Observe` node for each value.
    ///
    /// # Errors
    /// [`crate::Error::Model`] for a model without a graph.
    pub fn inserted(&self, model: &Model) -> Result<Model> {
        graph::inserted(model, self.handle, self.slots.iter().map(|slot| slot.name.as_str()))
    }

    /// Moves everything that was seen, in `runs` inferences, to `calibration`.
    pub fn drain_into(&self, calibration: &mut Calibration, runs: u64) {
        for slot in &*self.slots {
            for part in &slot.parts {
                if let Some(seen) = locked(part).take() {
                    calibration.add(&slot.name, seen, slot.rank.load(Ordering::Relaxed));
                }
            }
        }
        calibration.add_runs(runs);
    }
}

impl Drop for Observers {
    fn drop(&mut self) {
        locked(&LIVE).remove(&self.handle);
    }
}

impl Slot {
    fn new(name: String, parts: usize) -> Self {
        let parts = (0..parts).map(|_| Mutex::default()).collect();
        Self { name, parts, rank: AtomicU8::new(0) }
    }

    /// The slot at `index` of the observers called `handle`, if they live; it keeps them alive.
    #[cfg_attr(not(feature = "python"), expect(dead_code, reason = "asked by the kernel"))]
    pub(crate) fn find(handle: i64, index: i64) -> Option<(Arc<[Self]>, usize)> {
        let slots = locked(&LIVE).get(&handle)?.upgrade()?;
        let index = usize::try_from(index).ok().filter(|&i| i < slots.len())?;
        Some((slots, index))
    }

    /// How many threads may fill it at once.
    #[cfg_attr(not(feature = "python"), expect(dead_code, reason = "asked by the kernel"))]
    pub(crate) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Notes that the value had this many dimensions.
    #[cfg_attr(not(feature = "python"), expect(dead_code, reason = "called by the kernel"))]
    pub(crate) fn has_rank(&self, rank: usize) {
        self.rank.fetch_max(u8::try_from(rank).unwrap_or(u8::MAX), Ordering::Relaxed);
    }

    /// Has `fill` count into a part.
    #[cfg_attr(not(feature = "python"), expect(dead_code, reason = "called by the kernel"))]
    pub(crate) fn fill(&self, part: usize, fill: impl FnOnce(&mut Observer)) {
        fill(locked(&self.parts[part]).get_or_insert_default());
    }
}

/// What a panic left behind is still a table of counts.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
