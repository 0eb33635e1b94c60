//! What was seen of each activation of a model: the one input of every method and every target.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::observer::Observer;

/// Observers of named tensors, and how many inferences they saw.
///
/// Merging is exact addition, so neither order nor sharding of the data changes the result.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Calibration {
    tensors: BTreeMap<String, Seen>,
    runs: u64,
}

/// What was seen of one tensor.
#[derive(Debug, Clone, PartialEq, Default)]
struct Seen {
    observer: Observer,
    /// Largest number of dimensions.
    rank: u8,
}

impl Seen {
    fn observe(&mut self, activation: &Activation) {
        self.observer.observe(activation.values);
        self.rank = self.rank.max(u8::try_from(activation.rank).unwrap_or(u8::MAX));
    }
}

/// A tensor in one inference.
#[derive(Debug, Clone, Copy)]
pub struct Activation<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its number of dimensions.
    pub rank: usize,
    /// All of its values.
    pub values: &'a [f32],
}

impl Calibration {
    /// Counts one inference, in which each name occurs once; on several threads, or, quicker for small ones, on this one.
    pub fn observe_run(&mut self, activations: &[Activation], parallel: bool) {
        for activation in activations {
            if !self.tensors.contains_key(activation.name) {
                self.tensors.insert(activation.name.to_owned(), Seen::default());
            }
        }
        if parallel {
            let activations: HashMap<&str, &Activation> = activations.iter().map(|a| (a.name, a)).collect();
            self.tensors.par_iter_mut().for_each(|(name, seen)| {
                if let Some(activation) = activations.get(name.as_str()) {
                    seen.observe(activation);
                }
            });
        } else {
            for activation in activations {
                self.tensors.get_mut(activation.name).expect("made above").observe(activation);
            }
        }
        self.runs += 1;
    }

    /// Adds what an observer saw of `tensor`, which had up to `rank` dimensions.
    pub fn add(&mut self, tensor: &str, observer: Observer, rank: u8) {
        match self.tensors.get_mut(tensor) {
            Some(seen) => {
                seen.observer.merge(&observer);
                seen.rank = seen.rank.max(rank);
            }
            None => {
                self.tensors.insert(tensor.to_owned(), Seen { observer, rank });
            }
        }
    }

    /// Adds to the number of inferences.
    pub fn add_runs(&mut self, runs: u64) {
        self.runs += runs;
    }

    /// Inferences seen.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// Names and observers, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Observer)> {
        self.tensors.iter().map(|(name, seen)| (name.as_str(), &seen.observer))
    }

    /// The observer of `tensor`.
    pub fn get(&self, tensor: &str) -> Option<&Observer> {
        self.tensors.get(tensor).map(|seen| &seen.observer)
    }

    /// Number of dimensions of `tensor`.
    pub fn rank(&self, tensor: &str) -> Option<usize> {
        self.tensors.get(tensor).map(|seen| seen.rank.into())
    }

    /// Adds what `other` saw.
    pub fn merge(&mut self, other: &Self) {
        for (name, seen) in &other.tensors {
            self.add(name, seen.observer.clone(), seen.rank);
        }
        self.add_runs(other.runs);
    }

    /// Mean number of elements of `tensor` in an inference.
    pub fn elements(&self, tensor: &str) -> f64 {
        let count = self.get(tensor).map_or(0, Observer::count);
        count as f64 / self.runs.max(1) as f64
    }

    /// Fails if a tensor held NaN or infinity, naming it.
    ///
    /// # Errors
    /// [`Error::Data`].
    pub fn check_finite(&self) -> Result<()> {
        for (name, observer) in self.tensors() {
            let count = observer.non_finite();
            if count > 0 {
                let message = format!(
                    "the model computes {count} NaN or infinite values in tensor '{name}' on this data"
                );
                return Err(Error::Data(message));
            }
        }
        Ok(())
    }

    /// The content of a calibration file: little-endian, the tensors sorted by name, a CRC-32 at the end.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.runs.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        for (name, seen) in &self.tensors {
            for block in [name.as_bytes(), &[seen.rank], &seen.observer.to_bytes()] {
                bytes.extend((block.len() as u64).to_le_bytes());
                bytes.extend(block);
            }
        }
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Reads what [`Calibration::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Error::Data`] for anything else, a damaged file included.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let damaged = || Error::Data("the calibration file is damaged or cut short".to_owned());
        let content = bytes
            .strip_prefix(MAGIC)
            .ok_or_else(|| Error::Data("not a rustq calibration file".to_owned()))?;
        let (body, checksum) = bytes.split_last_chunk::<4>().ok_or_else(damaged)?;
        if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
            return Err(damaged());
        }
        let mut reader = Reader(&content[..content.len() - 4]);
        let (runs, count) = (reader.number().ok_or_else(damaged)?, reader.number().ok_or_else(damaged)?);
        let mut tensors = BTreeMap::new();
        for _ in 0..count {
            let name = reader.block().and_then(|b| std::str::from_utf8(b).ok()).ok_or_else(damaged)?;
            let &[rank] = reader.block().ok_or_else(damaged)? else { return Err(damaged()) };
            let observer = Observer::from_bytes(reader.block().ok_or_else(damaged)?);
            let observer = observer.map_err(|e| Error::Data(format!("calibration of '{name}': {e}")))?;
            tensors.insert(name.to_owned(), Seen { observer, rank });
        }
        if reader.0.is_empty() { Ok(Self { tensors, runs }) } else { Err(damaged()) }
    }
}

/// First bytes of a calibration file; the last one is the version of the format.
const MAGIC: &[u8] = b"rustqcal\x01";

/// Takes numbers and blocks from the front of untrusted bytes.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn block(&mut self) -> Option<&'b [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (block, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(offset: f32) -> Calibration {
        let mut calibration = Calibration::default();
        let values: Vec<f32> = (0..1000_u16).map(|i| f32::from(i) * 0.01 - offset).collect();
        let activation = |name, values| Activation { name, rank: 2, values };
        calibration.observe_run(&[activation("a", &values), activation("b", &values[..10])], offset > 5.0);
        calibration
    }

    #[test]
    fn order_does_not_matter() {
        let (mut ab, mut ba) = (some(1.0), some(7.0));
        ab.merge(&some(7.0));
        ba.merge(&some(1.0));
        assert_eq!(ab, ba);
        assert_eq!(ab.to_bytes(), ba.to_bytes());
        assert_eq!((ab.runs(), ab.elements("a"), ab.elements("none")), (2, 1000.0, 0.0));
    }

    #[test]
    fn reads_what_it_wrote() {
        let calibration = some(3.0);
        assert_eq!(Calibration::from_bytes(&calibration.to_bytes()).unwrap(), calibration);
    }

    #[test]
    fn damage_is_an_error() {
        let bytes = some(3.0).to_bytes();
        for length in 0..bytes.len() {
            assert!(Calibration::from_bytes(&bytes[..length]).is_err(), "cut to {length}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(Calibration::from_bytes(&changed).is_err(), "changed at {at}");
        }
    }
}
