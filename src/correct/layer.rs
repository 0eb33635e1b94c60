//! The corrections of one layer: its integers, then its bias.

use rayon::prelude::*;

use super::Corrections;
use super::inputs::Moments;
use super::rounding::descend;
use crate::quantize::Encoded;

/// Largest magnitude of an integer weight, and of the sum of two that are added up in 16 bits, each by what its input
/// reaches of the largest integer.
const LARGEST: i8 = 127;
const LARGEST_SUM: f32 = 128.0;

/// The weights of a layer, exact and what became of them.
pub(crate) struct Weights<'w> {
    pub exact: &'w [f32],
    pub dims: &'w [usize],
    /// Of the output channels.
    pub axis: usize,
    pub grid: Grid<'w>,
    /// What each channel of the inputs is divided by, and the weights multiplied.
    pub factors: Option<&'w [f32]>,
}

/// What weights may become.
pub(crate) enum Grid<'w> {
    /// Int8 numbers.
    Integers {
        /// One for each channel, or one for all.
        scale: &'w [f32],
        /// For each input, the one whose product is added to its own in 16 bits; empty if none is.
        neighbours: &'w [Option<usize>],
        /// For each input that has one, the share of the largest integer that it reaches.
        reach: &'w [f32],
        /// Whether integers of the largest magnitude stay, because the scale will be found by them again.
        keeps_largest: bool,
    },
    /// Levels of a format with fewer bits, in ascending order.
    Levels(&'w Encoded, Vec<i8>),
}

impl Grid<'_> {
    /// The scale of input `k` of channel `c`.
    fn scale(&self, c: usize, k: usize) -> f32 {
        match self {
            Self::Integers { scale, .. } => scale[c.min(scale.len() - 1)],
            Self::Levels(encoded, _) => encoded.scale[encoded.form.part(c, k)],
        }
    }

    /// What the integer `k` of channel `c` may become when it grows, or falls.
    fn next(&self, c: usize, q: &[i8], k: usize, up: bool) -> Option<i8> {
        match self {
            Self::Integers { keeps_largest: true, .. } if q[k].unsigned_abs() == LARGEST.unsigned_abs() => {
                None
            }
            Self::Integers { neighbours, reach, .. } => {
                let value = q[k].checked_add(if up { 1 } else { -1 })?;
                let product = |k: usize, q: i8| f32::from(q) * reach[k];
                let neighbour = neighbours.get(k).copied().flatten();
                let sum = neighbour.map_or(0.0, |other| (product(other, q[other]) + product(k, value)).abs());
                (value.unsigned_abs() <= LARGEST.unsigned_abs() && sum <= LARGEST_SUM).then_some(value)
            }
            Self::Levels(encoded, levels) => {
                let zero = encoded.zero_of(encoded.form.part(c, k));
                let level = q[k] + zero;
                let at = levels.partition_point(|&l| l < level);
                let at = if up { at + 1 } else { at.checked_sub(1)? };
                levels.get(at).map(|next| next - zero)
            }
        }
    }
}

/// What the corrections of a layer do to the mean square error of its results.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effect {
    /// With the nearest integers and the bias as it was.
    pub before: f64,
    /// Now.
    pub after: f64,
    /// What was corrected.
    pub what: Corrections,
}

impl Effect {
    /// How much less noise there is in the results, in dB.
    pub fn gain_db(&self) -> f64 {
        10.0 * (self.before / self.after).log10()
    }
}

/// One output channel.
struct Channel {
    integers: Vec<i8>,
    /// What the bias has to take off.
    mean_error: f64,
    /// Mean square error of the results, before and after.
    before: f64,
    after: f64,
}

impl Weights<'_> {
    /// Corrects the integers, and the bias if there is one to take the mean error up. `None` if the moments are of other
    /// weights.
    pub fn correct(
        &self,
        moments: &Moments,
        what: Corrections,
        integers: &mut [i8],
        bias: Option<&mut [f32]>,
    ) -> Option<Effect> {
        let (count, width) = (self.dims[self.axis], moments.width());
        let each = count / moments.groups().max(1);
        if count * width != self.exact.len() || each == 0 || count % moments.groups() != 0 {
            return None;
        }
        let centred = what.bias && bias.is_some();
        let groups: Vec<_> = (0..moments.groups())
            .into_par_iter()
            .map(|group| self.inputs(moments, group, what.rounding, centred))
            .collect();
        let place = |c: usize, k: usize| if self.axis == 0 { c * width + k } else { k * count + c };
        let channels: Vec<Channel> = (0..count)
            .into_par_iter()
            .map(|c| {
                let (mean, second) = &groups[c / each];
                let exact: Vec<f32> = (0..width).map(|k| self.exact[place(c, k)]).collect();
                let nearest = (0..width).map(|k| integers[place(c, k)]).collect();
                self.channel(c, (&exact, nearest), (mean, second), (what.rounding, centred))
            })
            .collect();
        let what = Corrections { rounding: what.rounding, bias: centred };
        let mut effect = Effect { before: 0.0, after: 0.0, what };
        for (c, channel) in channels.iter().enumerate() {
            (0..width).for_each(|k| integers[place(c, k)] = channel.integers[k]);
            effect.before += channel.before;
            effect.after += channel.after;
        }
        if let Some(bias) = bias.filter(|_| centred) {
            bias.iter_mut().zip(&channels).for_each(|(b, channel)| *b -= channel.mean_error as f32);
        }
        Some(effect)
    }

    /// The values that integers stand for; those of a channel with nothing but zeros, which has no scale to be found, are exact.
    pub fn on_grid(&self, integers: &[i8]) -> Vec<f32> {
        let (channels, inner) = (self.dims[self.axis], self.dims[self.axis + 1..].iter().product::<usize>());
        let channel = |at: usize| at / inner.max(1) % channels.max(1);
        let mut alive = vec![false; channels];
        integers.iter().enumerate().filter(|(_, q)| **q != 0).for_each(|(at, _)| alive[channel(at)] = true);
        let value = |(at, (&q, &exact)): (usize, (&i8, &f32))| {
            let Grid::Integers { scale, .. } = self.grid else { return exact };
            let scale = scale[channel(at).min(scale.len() - 1)];
            if alive[channel(at)] { f32::from(q) * scale } else { exact }
        };
        integers.iter().zip(self.exact).enumerate().map(value).collect()
    }

    /// Mean and second moments of what the integers are multiplied by.
    fn inputs(&self, moments: &Moments, group: usize, rounding: bool, centred: bool) -> (Vec<f64>, Vec<f32>) {
        let mut mean = moments.mean(group);
        let mut second = if rounding { moments.second(group, centred) } else { Vec::new() };
        let Some(factors) = self.factors else { return (mean, second) };
        let (width, channels) = (moments.width(), factors.len() / moments.groups().max(1));
        let taps = (width / channels.max(1)).max(1);
        let factors: Vec<f32> = (0..width).map(|k| factors[group * channels + k / taps]).collect();
        mean.iter_mut().zip(&factors).for_each(|(m, r)| *m /= f64::from(*r));
        for (line, r) in second.chunks_exact_mut(width).zip(&factors) {
            line.iter_mut().zip(&factors).for_each(|(x, other)| *x /= r * other);
        }
        (mean, second)
    }

    fn channel(
        &self,
        c: usize,
        (exact, mut integers): (&[f32], Vec<i8>),
        (mean, second): (&[f64], &[f32]),
        (rounding, centred): (bool, bool),
    ) -> Channel {
        let scale: Vec<f32> = (0..exact.len()).map(|k| self.grid.scale(c, k)).collect();
        let mean_error = |q: &[i8]| -> f64 {
            let real = q.iter().zip(&scale).map(|(&q, &s)| f64::from(q) * f64::from(s));
            real.zip(exact).map(|(q, &w)| q - f64::from(w)).zip(mean).map(|(e, m)| e * m).sum()
        };
        let first = mean_error(&integers);
        let (before, after) = if rounding {
            descend((exact, &scale), &mut integers, second, |q, k, up| self.grid.next(c, q, k, up))
        } else {
            (0.0, 0.0)
        };
        let taken_up = if centred { first * first } else { 0.0 };
        Channel { mean_error: mean_error(&integers), integers, before: before + taken_up, after }
    }
}
