//! What was seen of each activation of a model: the one input of every method and every target.

mod channels;
mod file;
mod fingerprint;

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

pub use self::channels::Channels;
pub use self::fingerprint::Fingerprint;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::observer::Observer;

/// Observers of named tensors, how many inferences they saw, and of which model.
///
/// Merging is exact addition, so neither order nor sharding of the data changes the result.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Calibration {
    tensors: BTreeMap<String, Seen>,
    runs: u64,
    model: Option<Fingerprint>,
}

/// What was seen of one tensor.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Seen {
    /// Of all of its values.
    pub observer: Observer,
    /// Of each channel, if that was asked for.
    pub channels: Option<Channels>,
    /// Largest number of dimensions.
    pub rank: u8,
}

impl Seen {
    /// Takes in `values`, the elements from `start` on of a tensor of this shape.
    ///
    /// # Errors
    /// [`Error::Data`] if the channels are not those of before.
    pub fn observe(&mut self, shape: &[usize], start: usize, values: &[f32]) -> Result<()> {
        self.observer.observe(values);
        self.rank = self.rank.max(u8::try_from(shape.len()).unwrap_or(u8::MAX));
        self.channels.as_mut().map_or(Ok(()), |channels| channels.observe(shape, start, values))
    }

    fn observe_all(&mut self, activation: &Activation) -> Result<()> {
        if self.channels.as_ref().map(Channels::axis) != activation.channels {
            return Err(other_channels());
        }
        self.observe(activation.shape, 0, activation.values)
    }

    fn merge(&mut self, other: &Self) -> Result<()> {
        match (&mut self.channels, &other.channels) {
            (Some(ours), Some(theirs)) => ours.merge(theirs)?,
            (None, None) => {}
            _ => return Err(other_channels()),
        }
        self.observer.merge(&other.observer);
        self.rank = self.rank.max(other.rank);
        Ok(())
    }
}

/// A tensor in one inference.
#[derive(Debug, Clone, Copy)]
pub struct Activation<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its dimensions.
    pub shape: &'a [usize],
    /// All of its values.
    pub values: &'a [f32],
    /// The axis whose channels are observed one by one as well.
    pub channels: Option<i64>,
}

impl Calibration {
    /// Nothing seen yet of `model`.
    pub fn of(model: &Model) -> Self {
        Self { model: Some(Fingerprint::of(model)), ..Self::default() }
    }

    /// Counts one inference, in which each name occurs once; on several threads, or, quicker for small ones, on this one.
    ///
    /// # Errors
    /// [`Error::Data`], naming the tensor, if its channels are not those of before.
    pub fn observe_run(&mut self, activations: &[Activation], parallel: bool) -> Result<()> {
        for activation in activations {
            if !self.tensors.contains_key(activation.name) {
                let channels = activation.channels.map(Channels::along);
                self.tensors.insert(activation.name.to_owned(), Seen { channels, ..Seen::default() });
            }
        }
        let by_name: HashMap<&str, &Activation> = activations.iter().map(|a| (a.name, a)).collect();
        let observe = |(name, seen): (&String, &mut Seen)| match by_name.get(name.as_str()) {
            Some(activation) => seen.observe_all(activation).map_err(|e| about(name, &e)),
            None => Ok(()),
        };
        if parallel {
            self.tensors.par_iter_mut().try_for_each(observe)?;
        } else {
            self.tensors.iter_mut().try_for_each(observe)?;
        }
        self.runs += 1;
        Ok(())
    }

    /// Whether tensors were observed, but no channels of any.
    pub fn lacks_channels(&self) -> bool {
        !self.tensors.is_empty() && self.tensors.values().all(|seen| seen.channels.is_none())
    }

    /// Adds what was seen of `tensor`.
    ///
    /// # Errors
    /// [`Error::Data`], naming the tensor, if its channels are not those of before.
    pub fn add(&mut self, tensor: &str, more: Seen) -> Result<()> {
        match self.tensors.get_mut(tensor) {
            Some(seen) => seen.merge(&more).map_err(|e| about(tensor, &e)),
            None => {
                self.tensors.insert(tensor.to_owned(), more);
                Ok(())
            }
        }
    }

    /// Adds to the number of inferences.
    pub fn add_runs(&mut self, runs: u64) {
        self.runs += runs;
    }

    /// The model it was made from, if that is known.
    pub fn model(&self) -> Option<&Fingerprint> {
        self.model.as_ref()
    }

    /// Fails if this was made from another model than `model`, saying what differs.
    ///
    /// # Errors
    /// [`Error::Data`].
    pub fn check_model(&self, model: &Model) -> Result<()> {
        match self.model.as_ref().and_then(|print| print.difference(model)) {
            Some(what) => Err(Error::Data(format!("the calibration was made from another model: {what}"))),
            None => Ok(()),
        }
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

    /// Whether numbers were seen in `tensor`.
    pub fn saw(&self, tensor: &str) -> bool {
        self.get(tensor).is_some_and(|observer| observer.count() > 0)
    }

    /// Number of dimensions of `tensor`.
    pub fn rank(&self, tensor: &str) -> Option<usize> {
        self.tensors.get(tensor).map(|seen| seen.rank.into())
    }

    /// Smallest and largest value of each channel of `tensor`, if they were asked for.
    pub fn channels(&self, tensor: &str) -> Option<&Channels> {
        self.tensors.get(tensor)?.channels.as_ref()
    }

    /// Adds what `other` saw.
    ///
    /// # Errors
    /// [`Error::Data`] if it was made from another model, or other channels were asked for.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        if let (Some(ours), Some(theirs)) = (&self.model, &other.model)
            && let Some(what) = ours.difference_of(theirs)
        {
            return Err(Error::Data(format!("the calibrations were made from different models: {what}")));
        }
        for (name, seen) in other.tensors {
            self.add(&name, seen)?;
        }
        self.model = self.model.take().or(other.model);
        self.add_runs(other.runs);
        Ok(())
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
}

fn other_channels() -> Error {
    Error::Data("only one of the two has channels, or along another axis".to_owned())
}

fn about(tensor: &str, error: &Error) -> Error {
    Error::Data(format!("tensor '{tensor}': {error}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(super) fn some(offset: f32) -> Calibration {
        let mut calibration = Calibration::default();
        let values: Vec<f32> = (0..1000_u16).map(|i| f32::from(i) * 0.01 - offset).collect();
        let activation = |name, values, shape, channels| Activation { name, shape, values, channels };
        let activations =
            [activation("a", &values, &[1000][..], None), activation("b", &values[..10], &[2, 5], Some(-1))];
        calibration.observe_run(&activations, offset > 5.0).unwrap();
        calibration
    }

    #[test]
    fn order_does_not_matter() {
        let (mut ab, mut ba) = (some(1.0), some(7.0));
        ab.merge(some(7.0)).unwrap();
        ba.merge(some(1.0)).unwrap();
        assert_eq!(ab, ba);
        assert_eq!(ab.to_bytes(), ba.to_bytes());
        assert_eq!((ab.runs(), ab.elements("a"), ab.elements("none")), (2, 1000.0, 0.0));
    }

    #[test]
    fn channels_and_models_must_agree() {
        let (mut one, mut two) = (some(1.0), some(1.0));
        let without = Activation { name: "b", shape: &[5], values: &[0.0; 5], channels: None };
        let mut plain = Calibration::default();
        plain.observe_run(&[without], false).unwrap();
        assert!(one.merge(plain).unwrap_err().to_string().contains("tensor 'b'"));
        assert!(one.observe_run(&[Activation { shape: &[1, 1], ..without }], true).is_err());
        one.model = Fingerprint::from_bytes(&[0; 24]);
        two.merge(one.clone()).unwrap();
        assert_eq!(two.model(), one.model());
        one.model = Fingerprint::from_bytes(&[[1; 8], [0; 8], [0; 8]].concat());
        assert!(two.merge(one).unwrap_err().to_string().contains("operator sets 0 and"));
    }
}
