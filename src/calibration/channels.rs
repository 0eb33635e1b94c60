//! Smallest and largest value of each channel of a tensor, for methods that move ranges between channels.
//!
//! Only collected for tensors that ask for it: everything else is derived from the [`Observer`](crate::observer).

use crate::error::{Error, Result};
use crate::kernels::min_max;

/// Extremes along one axis. Like everything observed they do not depend on order, batch size or sharding.
#[derive(Debug, Clone, PartialEq)]
pub struct Channels {
    /// Negative numbers count from the last axis.
    axis: i64,
    min: Vec<f32>,
    max: Vec<f32>,
}

impl Channels {
    /// Nothing seen yet, along `axis`.
    pub fn along(axis: i64) -> Self {
        Self { axis, min: Vec::new(), max: Vec::new() }
    }

    /// The axis, as it was asked for.
    pub fn axis(&self) -> i64 {
        self.axis
    }

    /// Smallest value of each channel, `∞` before any.
    pub fn min(&self) -> &[f32] {
        &self.min
    }

    /// Largest value of each channel, `−∞` before any.
    pub fn max(&self) -> &[f32] {
        &self.max
    }

    /// From a file; `None` if the parts do not fit each other.
    pub(super) fn new(axis: i64, min: Vec<f32>, max: Vec<f32>) -> Option<Self> {
        let ordered = |(lo, hi): (&f32, &f32)| lo <= hi || (*lo, *hi) == (f32::INFINITY, f32::NEG_INFINITY);
        (min.len() == max.len() && min.iter().zip(&max).all(ordered)).then_some(Self { axis, min, max })
    }

    /// Takes in `values`, the elements from `start` on of a tensor of this shape.
    ///
    /// # Errors
    /// [`Error::Data`] if there is no such axis, or it had another length before.
    pub fn observe(&mut self, shape: &[usize], start: usize, values: &[f32]) -> Result<()> {
        let rank = shape.len() as i64;
        let axis = if self.axis < 0 { self.axis + rank } else { self.axis };
        if !(0..rank).contains(&axis) {
            return Err(Error::Data(format!("a tensor of shape {shape:?} has no axis {}", self.axis)));
        }
        let (count, inner) = (shape[axis as usize], shape[axis as usize + 1..].iter().product());
        self.expect(count)?;
        match values {
            [] => {}
            _ if inner == 1 => self.rows(start, values),
            _ => self.runs(inner, start, values),
        }
        Ok(())
    }

    /// Adds what another has seen of the same tensor.
    ///
    /// # Errors
    /// [`Error::Data`] if it looked along another axis, or one of another length.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if self.axis != other.axis {
            return Err(Error::Data(format!("channels along axis {} and axis {}", self.axis, other.axis)));
        }
        if !other.min.is_empty() {
            self.expect(other.min.len())?;
            narrow(&mut self.min, &other.min, |a, b| a < b);
            narrow(&mut self.max, &other.max, |a, b| a > b);
        }
        Ok(())
    }

    fn expect(&mut self, count: usize) -> Result<()> {
        if self.min.is_empty() {
            (self.min, self.max) = (vec![f32::INFINITY; count], vec![f32::NEG_INFINITY; count]);
        }
        if self.min.len() == count {
            return Ok(());
        }
        Err(Error::Data(format!("{} channels along axis {}, then {count}", self.min.len(), self.axis)))
    }

    /// Values of a channel that stand `inner` in a row.
    fn runs(&mut self, inner: usize, mut start: usize, mut values: &[f32]) {
        while !values.is_empty() {
            let channel = start / inner % self.min.len();
            let (run, rest) = values.split_at((inner - start % inner).min(values.len()));
            if let Some((lo, hi)) = min_max(run) {
                self.min[channel] = self.min[channel].min(lo);
                self.max[channel] = self.max[channel].max(hi);
            }
            (start, values) = (start + run.len(), rest);
        }
    }

    /// Channels that stand beside each other.
    fn rows(&mut self, start: usize, values: &[f32]) {
        let count = self.min.len();
        let (head, rest) = values.split_at(((count - start % count) % count).min(values.len()));
        self.row(start % count, head);
        rest.chunks(count).for_each(|row| self.row(0, row));
    }

    fn row(&mut self, from: usize, row: &[f32]) {
        narrow(&mut self.min[from..], row, |a, b| a < b);
        narrow(&mut self.max[from..], row, |a, b| a > b);
    }
}

/// Takes each value that is `better` than the one so far. NaN never is; −0 becomes 0.
fn narrow(best: &mut [f32], values: &[f32], better: impl Fn(f32, f32) -> bool) {
    for (best, &value) in best.iter_mut().zip(values) {
        let value = value + 0.0;
        *best = if better(value, *best) { value } else { *best };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Straight from the definition.
    fn naive(shape: &[usize; 3], axis: usize, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut extremes = (vec![f32::INFINITY; shape[axis]], vec![f32::NEG_INFINITY; shape[axis]]);
        for (i, &v) in x.iter().enumerate() {
            let c = [i / (shape[1] * shape[2]), i / shape[2] % shape[1], i % shape[2]][axis];
            extremes.0[c] = extremes.0[c].min(v);
            extremes.1[c] = extremes.1[c].max(v);
        }
        extremes
    }

    proptest! {
        #[test]
        fn any_axis_in_any_shares(
            shape in [1..4_usize, 1..6_usize, 1..9_usize],
            axis in 0..3_usize,
            cut in 0.0..=1.0_f64,
            seed in prop::collection::vec(-9.0_f32..9.0, 4 * 6 * 9),
        ) {
            let x = &seed[..shape.iter().product()];
            let cut = (cut * x.len() as f64) as usize;
            let mut found = Channels::along(axis as i64 - 3);
            let mut rest = Channels::along(axis as i64 - 3);
            rest.observe(&shape, cut, &x[cut..]).unwrap();
            found.observe(&shape, 0, &x[..cut]).unwrap();
            found.merge(&rest).unwrap();
            prop_assert_eq!((found.min, found.max), naive(&shape, axis, x));
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let mut channels = Channels::along(1);
        channels.observe(&[2, 3], 0, &[f32::NAN, -0.0, 2.0, 1.0, 0.0, 5.0]).unwrap();
        assert_eq!((channels.min(), channels.max()), (&[1.0, 0.0, 2.0][..], &[1.0, 0.0, 5.0][..]));
        assert!(channels.min()[1].is_sign_positive());
        assert!(channels.observe(&[1, 4], 0, &[0.0; 4]).is_err());
        assert!(channels.observe(&[3], 0, &[0.0; 3]).is_err());
        assert!(channels.merge(&Channels::along(0)).is_err());
        channels.observe(&[0, 3], 0, &[]).unwrap();
        channels.merge(&Channels::along(1)).unwrap();
        assert!(Channels::new(0, vec![1.0], vec![0.0]).is_none());
        assert!(Channels::new(0, vec![f32::NAN], vec![0.0]).is_none());
    }
}
