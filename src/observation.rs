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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use crate::calibration::{Calibration, Channels, Seen};
use crate::error::Result;
use crate::model::Model;

/// Slots for the values of one model, filled by its `Observe` nodes while it runs.
///
/// Several sessions and threads may fill them at once. They are freed when this and the sessions are gone.
#[derive(Debug)]
pub struct Observers {
    handle: i64,
    slots: Arc<[Slot]>,
}

/// What to observe.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The name of the value.
    pub name: String,
    /// The axis whose channels are observed one by one as well.
    pub channels: Option<i64>,
}

/// What was seen of one value.
#[derive(Debug)]
pub(crate) struct Slot {
    wanted: Wanted,
    /// Into how many shares one value is cut, for as many threads.
    shares: usize,
    /// Counts add up exactly, whichever part they are in.
    parts: Box<[Part]>,
}

/// What one thread at a time counts; mostly the same, whose cache then has the counters.
#[derive(Debug, Default)]
struct Part {
    /// The thread that it was for first; 0 for none yet.
    owner: AtomicU64,
    seen: Mutex<Option<Seen>>,
}

/// More threads than this seldom have enough values each.
const MOST_PARTS: usize = 8;

static NEXT_HANDLE: AtomicU64 = AtomicU64::new(1);
static LIVE: Mutex<BTreeMap<i64, Weak<[Slot]>>> = Mutex::new(BTreeMap::new());

impl Observers {
    /// Slots for these values, of which `lanes` are computed at once, each by `threads` threads.
    pub fn new(wanted: impl IntoIterator<Item = Wanted>, lanes: usize, threads: usize) -> Self {
        let shares = threads.clamp(1, MOST_PARTS);
        let parts = shares.saturating_mul(lanes).clamp(1, MOST_PARTS);
        let slots: Arc<[Slot]> = wanted.into_iter().map(|wanted| Slot::new(wanted, shares, parts)).collect();
        let handle = NEXT_HANDLE.fetch_add(1, Ordering::Relaxed).cast_signed();
        locked(&LIVE).insert(handle, Arc::downgrade(&slots));
        Self { handle, slots }
    }

    /// `model` with an `Observe` node for each value.
    ///
    /// # Errors
    /// [`crate::Error::Model`] for a model without a graph.
    pub fn inserted(&self, model: &Model) -> Result<Model> {
        graph::inserted(model, self.handle, self.slots.iter().map(|slot| slot.wanted.name.as_str()))
    }

    /// `model`, which is what ONNX Runtime made of the [inserted](Self::inserted) one by its optimizations, with the nodes at
    /// values in its blocked layout, where they are at plain copies of them. `None` if that changes nothing.
    ///
    /// # Errors
    /// [`crate::Error::Model`] for a model without a graph.
    pub fn moved(&self, model: &Model) -> Result<Option<Model>> {
        let by_channel = |slot: i64| {
            let slot = usize::try_from(slot).ok().and_then(|slot| self.slots.get(slot));
            slot.is_none_or(|slot| slot.wanted.channels.is_some())
        };
        graph::moved(model, by_channel)
    }

    /// Moves everything that was seen, in `runs` inferences, to `calibration`.
    ///
    /// # Errors
    /// [`crate::Error::Data`] if other channels of a tensor were observed before.
    pub fn drain_into(&self, calibration: &mut Calibration, runs: u64) -> Result<()> {
        for slot in &*self.slots {
            for part in &slot.parts {
                if let Some(seen) = locked(&part.seen).take() {
                    calibration.add(&slot.wanted.name, seen)?;
                }
            }
        }
        calibration.add_runs(runs);
        Ok(())
    }
}

impl Drop for Observers {
    fn drop(&mut self) {
        locked(&LIVE).remove(&self.handle);
    }
}

impl Slot {
    fn new(wanted: Wanted, shares: usize, parts: usize) -> Self {
        Self { wanted, shares, parts: (0..parts).map(|_| Part::default()).collect() }
    }

    /// The slot at `index` of the observers called `handle`, if they live; it keeps them alive.
    #[cfg_attr(not(feature = "python"), expect(dead_code, reason = "asked by the kernel"))]
    pub(crate) fn find(handle: i64, index: i64) -> Option<(Arc<[Self]>, usize)> {
        let slots = locked(&LIVE).get(&handle)?.upgrade()?;
        let index = usize::try_from(index).ok().filter(|&i| i < slots.len())?;
        Some((slots, index))
    }

    /// Into how many shares a value is cut at most.
    #[cfg_attr(not(feature = "python"), expect(dead_code, reason = "asked by the kernel"))]
    pub(crate) fn shares(&self) -> usize {
        self.shares
    }

    /// Has `fill` count into a part that nobody is at: this thread's own, or else any.
    #[cfg_attr(not(feature = "python"), expect(dead_code, reason = "called by the kernel"))]
    pub(crate) fn fill<T>(&self, fill: impl FnOnce(&mut Seen) -> T) -> T {
        let nothing = || Seen { channels: self.wanted.channels.map(Channels::along), ..Seen::default() };
        let own = || self.parts.iter().find(|part| part.is_own()).and_then(Part::free);
        let other = || self.parts.iter().find_map(Part::free);
        let mut seen = own().or_else(other).unwrap_or_else(|| locked(&self.parts[0].seen));
        fill(seen.get_or_insert_with(nothing))
    }
}

impl Part {
    /// Whether it is this thread's, to which it goes if it is nobody's.
    fn is_own(&self) -> bool {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        thread_local!(static ME: u64 = NEXT.fetch_add(1, Ordering::Relaxed));
        let me = ME.with(|&me| me);
        let owner = self.owner.load(Ordering::Relaxed);
        let taken = || self.owner.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        owner == me || (owner == 0 && taken())
    }

    /// The counters, unless they are in use.
    fn free(&self) -> Option<MutexGuard<'_, Option<Seen>>> {
        match self.seen.try_lock() {
            Ok(seen) => Some(seen),
            Err(TryLockError::Poisoned(left)) => Some(left.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// What a panic left behind is still a table of counts.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
