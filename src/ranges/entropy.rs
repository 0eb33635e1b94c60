//! The range with the smallest Kullback–Leibler divergence between the values and their quantized selves
//! (Migacz, "8-bit inference with TensorRT", GTC 2017).
//!
//! Over 2048 equal cells, as there, re-derived from the range-free histogram, and for a candidate interval of cells:
//!
//! - `P` is the histogram of the interval, with all that lies outside added to its end cells;
//! - `Q` is the histogram of the interval merged into as many groups as there are quantization levels, each group
//!   spread evenly over its cells that are not empty;
//! - the candidate costs `Σ P log(P / Q)`, both normalised.
//!
//! With `h` the cells, `T` their sum, `S` the sum inside, and for each group its mass `m`, the number of its cells in
//! use `z` and its share of `P`, prefix sums turn this into one logarithm per level instead of one per cell:
//!
//! ```text
//! KL = (Σ P log P − Σ P_group log(m / z)) / T − log T + log S
//! ```
//!
//! A symmetric range takes 128 levels of the magnitudes. An asymmetric one takes 256 levels; if there are values on both
//! sides of 0, the upper and the lower end are searched in turn. Zeros are exact on any grid and left out.

use super::percentile::magnitudes;
use crate::observer::{Bin, Observer};
use crate::qparams::{Range, Scheme};

const CELLS: usize = 2048;

/// A candidate that clips more than this is none: with nearly everything in its end cells, it would seem perfect.
const LEAST_SHARE: f64 = 0.5;

pub(super) fn range(observer: &Observer, full: Range, scheme: Scheme) -> Range {
    match scheme {
        Scheme::Symmetric => {
            let cells = Cells::new(magnitudes(observer), 0.0, full.max.into());
            let (_, end) = cells.search(128, 0, 0);
            Range::symmetric(cells.edge(end))
        }
        Scheme::Asymmetric => {
            let cells = Cells::new(observer.bins(), full.min.into(), full.max.into());
            let zero = -f64::from(full.min) / cells.width;
            let (start, end) = cells.search(256, zero.floor() as usize, zero.ceil() as usize);
            Range { min: cells.edge(start), max: cells.edge(end) }.with_zero()
        }
    }
}

/// A histogram of equal cells and its prefix sums, each one longer than there are cells.
struct Cells {
    lo: f64,
    width: f64,
    mass: Vec<f64>,
    /// Mass before each cell.
    below: Vec<f64>,
    /// Sum of `h log h` before each cell.
    h_log_h: Vec<f64>,
    /// Number of cells in use before each cell.
    used: Vec<u32>,
}

impl Cells {
    fn new(bins: impl IntoIterator<Item = Bin>, lo: f64, hi: f64) -> Self {
        let width = (hi - lo) / CELLS as f64;
        let mut mass = vec![0.0; CELLS];
        for bin in bins.into_iter().filter(|bin| bin.hi > 0.0 || bin.lo < 0.0) {
            spread(&mut mass, (bin.lo - lo) / width, (bin.hi - lo) / width, bin.count as f64);
        }
        let (mut below, mut h_log_h, mut used) = (vec![0.0], vec![0.0], vec![0]);
        for (i, &h) in mass.iter().enumerate() {
            below.push(below[i] + h);
            h_log_h.push(h_log_h[i] + x_log_x(h));
            used.push(used[i] + u32::from(h > 0.0));
        }
        Self { lo, width, mass, below, h_log_h, used }
    }

    /// Real value of the lower edge of a cell.
    fn edge(&self, cell: usize) -> f32 {
        (self.lo + cell as f64 * self.width) as f32
    }

    /// The best interval of cells `start..end` with `start ≤ first` and `end ≥ last`.
    fn search(&self, levels: usize, first: usize, last: usize) -> (usize, usize) {
        let (mut start, mut end) = (0, CELLS);
        let rounds = if first > 0 && last < CELLS { 2 } else { 1 };
        for _ in 0..rounds {
            if last < CELLS {
                let ends = |length: usize| (start + length).clamp(last, CELLS);
                end = ends(best_length(levels, CELLS - start, |n| self.cost(start, ends(n), levels)));
            }
            if first > 0 {
                let starts = |length: usize| end.saturating_sub(length).min(first);
                start = starts(best_length(levels, end, |n| self.cost(starts(n), end, levels)));
            }
        }
        (start, end)
    }

    /// What the search minimises: the divergence of an interval that is a candidate.
    fn cost(&self, start: usize, end: usize, levels: usize) -> f64 {
        let inside = self.below[end] - self.below[start];
        if inside < self.below[CELLS] * LEAST_SHARE {
            return f64::INFINITY;
        }
        self.divergence(start, end, levels)
    }

    /// Divergence of the interval `start..end`; see the module.
    fn divergence(&self, start: usize, end: usize, levels: usize) -> f64 {
        let total = self.below[CELLS];
        let (left, right) = (self.below[start], total - self.below[end]);
        let inside = total - left - right;
        let mut cross = 0.0;
        for group in 0..levels {
            let edge = |g: usize| start + (end - start) * g / levels;
            let (a, b) = (edge(group), edge(group + 1));
            let mass = self.below[b] - self.below[a];
            let mut share = mass;
            let mut used = f64::from(self.used[b] - self.used[a]);
            if a == start && b > start {
                share += left;
                used += f64::from(u8::from(left > 0.0 && self.mass[start] == 0.0));
            }
            if b == end && a < end {
                share += right;
                used += f64::from(u8::from(right > 0.0 && self.mass[end - 1] == 0.0));
            }
            if share > 0.0 {
                cross += share * (mass / used).ln();
            }
        }
        let (head, tail) = (self.mass[start], self.mass[end - 1]);
        let own = self.h_log_h[end] - self.h_log_h[start] + x_log_x(head + left) - x_log_x(head)
            + x_log_x(tail + right)
            - x_log_x(tail);
        (own - cross) / total - total.ln() + inside.ln()
    }
}

fn x_log_x(x: f64) -> f64 {
    if x > 0.0 { x * x.ln() } else { 0.0 }
}

/// Adds `count`, uniform over `a..b` in units of cells, to the cells.
fn spread(mass: &mut [f64], a: f64, b: f64, count: f64) {
    let cell = |t: f64| (t as usize).min(mass.len() - 1);
    let (first, last) = (cell(a), cell(b));
    if first == last {
        mass[first] += count;
        return;
    }
    let density = count / (b - a);
    mass[first] += density * ((first + 1) as f64 - a);
    mass[first + 1..last].iter_mut().for_each(|h| *h += density);
    mass[last] += density * (b - last as f64);
}

/// The length in `least..=most` with the smallest cost: a scan in steps of 1/64, then every one around the best.
fn best_length(least: usize, most: usize, cost: impl Fn(usize) -> f64) -> usize {
    let least = least.min(most);
    let cheapest = |lengths: &mut dyn Iterator<Item = usize>, start: (f64, usize)| {
        lengths.map(|n| (cost(n), n)).fold(start, |best, next| if next.0 < best.0 { next } else { best })
    };
    let shorter = |&n: &usize| (n > least).then(|| (n - n / 64 - 1).max(least));
    let coarse = cheapest(&mut std::iter::successors(Some(most), shorter), (f64::INFINITY, most));
    let reach = coarse.1 / 64 + 1;
    let mut around = coarse.1.saturating_sub(reach).max(least)..=(coarse.1 + reach).min(most);
    cheapest(&mut around, coarse).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranges::samples;

    /// The definition, cell by cell.
    fn naive(h: &[f64], start: usize, end: usize, levels: usize) -> f64 {
        let mut p = h[start..end].to_vec();
        p[0] += h[..start].iter().sum::<f64>();
        p[end - start - 1] += h[end..].iter().sum::<f64>();
        let mut q = vec![0.0; p.len()];
        for g in 0..levels {
            let group = p.len() * g / levels..p.len() * (g + 1) / levels;
            let mass: f64 = h[start..end][group.clone()].iter().sum();
            let used = p[group.clone()].iter().filter(|&&p| p > 0.0).count();
            group.filter(|&i| p[i] > 0.0).for_each(|i| q[i] = mass / used as f64);
        }
        let (p_sum, q_sum): (f64, f64) = (p.iter().sum(), q.iter().sum());
        p.iter()
            .zip(&q)
            .filter(|(p, _)| **p > 0.0)
            .map(|(p, q)| p / p_sum * (p / p_sum / (q / q_sum)).ln())
            .sum()
    }

    #[test]
    fn prefix_sums_match_the_definition() {
        for (name, x) in samples::all(2003) {
            let mut observer = Observer::new();
            observer.observe(&x);
            let full = observer.range().unwrap_or(Range::ZERO).with_zero();
            let cells = Cells::new(observer.bins(), full.min.into(), full.max.into());
            for (start, end) in [(0, CELLS), (0, 1000), (25, 1944), (750, 890), (308, CELLS)] {
                let (found, expected) =
                    (cells.divergence(start, end, 128), naive(&cells.mass, start, end, 128));
                let equal = found == expected || (found - expected).abs() < 1e-9;
                assert!(
                    equal || (found.is_nan() && expected.is_nan()),
                    "{name} {start}..{end}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn spreading_keeps_the_mass() {
        for (a, b) in [(0.0, 8.0), (1.25, 1.5), (1.5, 2.0), (2.5, 7.75), (3.0, 3.0), (8.0, 8.0)] {
            let mut mass = [0.0; 8];
            spread(&mut mass, a, b, 5.0);
            assert!((mass.iter().sum::<f64>() - 5.0_f64).abs() < 1e-12, "{a} {b}: {mass:?}");
        }
    }

    #[test]
    fn as_good_as_trying_every_limit() {
        for (name, x) in samples::all(20_011) {
            let mut observer = Observer::new();
            observer.observe(&x);
            let limit = observer.range().unwrap_or(Range::ZERO).abs_max();
            let cells = Cells::new(magnitudes(&observer), 0.0, limit.into());
            let cost = |end| cells.cost(0, end, 128);
            let best = (128..=CELLS).map(cost).fold(f64::INFINITY, f64::min);
            let found = cost(cells.search(128, 0, 0).1);
            assert!(found <= 1.05 * best + 1e-3, "{name}: {found} {best}");
        }
    }
}
