//! The corrections of one layer: its integers, then its bias.

use rayon::prelude::*;

use super::Corrections;
use super::inputs::Moments;
use super::rounding::descend;

/// Largest magnitude of an integer weight, and of the sum of two that are added up in 16 bits.
const LARGEST: i8 = 127;
const LARGEST_SUM: i16 = 128;

/// The weights of a layer, exact and as integers.
pub(crate) struct Weights<'w> {
    pub exact: &'w [f32],
    pub dims: &'w [usize],
    /// Of the output channels.
    pub axis: usize,
    /// One for each channel, or one for all.
    pub scale: &'w [f32],
    /// For each input, the one whose product is added to its own in 16 bits; empty if none is.
    pub neighbours: &'w [Option<usize>],
    /// What each channel of the inputs is divided by, and the weights multiplied.
    pub factors: Option<&'w [f32]>,
}

/// What the corrections of a layer do to the mean square error of its results.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effect {
    /// With the nearest integers and the bias as it was.
    pub before: f64,
    /// Now.
    pub after: f64,
}

/// One output channel.
struct Channel {
    integers: Vec<i8>,
    /// What the bias has to take off.
    mean_error: f64,
    effect: Effect,
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
                let scale = self.scale[c.min(self.scale.len() - 1)];
                let exact: Vec<f32> = (0..width).map(|k| self.exact[place(c, k)] / scale).collect();
                let nearest = (0..width).map(|k| integers[place(c, k)]).collect();
                self.channel(&exact, nearest, (mean, second), (what.rounding, scale.into(), centred))
            })
            .collect();
        let mut effect = Effect { before: 0.0, after: 0.0 };
        for (c, channel) in channels.iter().enumerate() {
            (0..width).for_each(|k| integers[place(c, k)] = channel.integers[k]);
            effect.before += channel.effect.before;
            effect.after += channel.effect.after;
        }
        if let Some(bias) = bias.filter(|_| centred) {
            bias.iter_mut().zip(&channels).for_each(|(b, channel)| *b -= channel.mean_error as f32);
        }
        Some(effect)
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
        exact: &[f32],
        mut integers: Vec<i8>,
        (mean, second): (&[f64], &[f32]),
        (rounding, scale, centred): (bool, f64, bool),
    ) -> Channel {
        let mean_error = |q: &[i8]| -> f64 {
            let errors = q.iter().zip(exact).map(|(&q, &t)| f64::from(q) - f64::from(t));
            scale * errors.zip(mean).map(|(e, m)| e * m).sum::<f64>()
        };
        let first = mean_error(&integers);
        let (before, after) = if rounding {
            descend(exact, &mut integers, second, |q, k, value| self.allowed(q, k, value))
        } else {
            (0.0, 0.0)
        };
        let taken_up = if centred { first * first } else { 0.0 };
        let effect = Effect { before: before * scale * scale + taken_up, after: after * scale * scale };
        Channel { mean_error: mean_error(&integers), integers, effect }
    }

    fn allowed(&self, q: &[i8], k: usize, value: i8) -> bool {
        let neighbour = self.neighbours.get(k).copied().flatten();
        let sum = neighbour.map_or(0, |other| (i16::from(q[other]) + i16::from(value)).abs());
        value.unsigned_abs() <= LARGEST.unsigned_abs() && sum <= LARGEST_SUM
    }
}
