//! The counts and edges of a whole tensor's histogram, in the order of numbers.

use std::cell::Cell;
use std::ops::RangeInclusive;
use std::sync::Mutex;

use super::lanes::{self, Extremes, WORTHWHILE, bin};
use super::portable::{SIGN, TINY, count_bins, gather_zeros};
use super::threads::summarize;
use super::{BINS, BinTable, Real};

/// Counts of neighbouring bins, and their edges.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// Of each bin; the first and the last are not 0.
    pub counts: Vec<u64>,
    /// One more than counts, ascending. A bin includes its edge that is nearer to 0.
    pub edges: Vec<f32>,
}

/// First bin of what is not finite, of either sign.
const INFINITE: usize = 0x7F80;

thread_local! {
    /// All zeros. A new one for each call would cost more than counting what fits into the cache.
    static TABLE: Cell<Option<Box<BinTable>>> = const { Cell::new(None) };
}

/// The range-free histogram of a whole tensor, by several threads if it is large: `None` if it holds no finite number.
///
/// A bin holds the numbers of one sign, exponent and first seven bits of the mantissa. Those nearer to 0 than any number of
/// the tensor are one bin with that of 0.
pub fn histogram<R: Real>(x: &[R]) -> Option<Histogram> {
    let new = || vec![0; BINS].try_into().expect("BINS counters");
    let mut table: Box<BinTable> = TABLE.take().unwrap_or_else(new);
    let extremes = count(x, &mut table);
    let found = take(&mut table, extremes);
    TABLE.set(Some(table));
    found
}

fn count<R: Real>(x: &[R], table: &mut BinTable) -> Extremes {
    /// Elements beside which adding up their counts, one thread at a time, is little.
    const FEW: usize = 1 << 16;
    /// Elements beside which it is nothing.
    const MANY: usize = 1 << 18;
    let whole = Mutex::new(&mut *table);
    let share = |x: &[R], _| lanes::observe(&R::all_widened(x), &whole);
    let part = (x.len() / rayon::current_num_threads()).clamp(FEW, MANY);
    let extremes = if x.len() < WORTHWHILE {
        let x = R::all_widened(x);
        count_bins(&x, table);
        lanes::extremes(&x)
    } else {
        summarize(x, part, share, Extremes::join).unwrap_or(Extremes::NONE)
    };
    gather_zeros(table);
    extremes
}

/// Makes the table zeros again, whose other bins than these are.
fn take(table: &mut BinTable, extremes: Extremes) -> Option<Histogram> {
    let (positive, negative) = table.split_at_mut(SIGN);
    let zeros = std::mem::take(&mut positive[0]);
    let (lo, hi) = extremes.pair.unwrap_or((0.0, 0.0));
    let above = take_side(positive, extremes.least, hi);
    let below = take_side(negative, extremes.least, -lo);
    let edge = |bin: usize| f32::from_bits((bin as u32) << 16);
    let (mut counts, mut edges) = (Vec::new(), Vec::new());
    if let Some((first, below)) = &below {
        edges.extend((*first..=first + below.len()).rev().map(|bin| -edge(bin)));
        counts.extend(below.iter().rev());
    }
    if zeros > 0 || (below.is_some() && above.is_some()) {
        if below.is_none() {
            edges.push(-edge(TINY));
        }
        counts.push(zeros);
        if above.is_none() {
            edges.push(edge(TINY));
        }
    }
    if let Some((first, above)) = &above {
        edges.extend((*first..=first + above.len()).map(edge));
        counts.extend(above);
    }
    (!counts.is_empty()).then_some(Histogram { counts, edges })
}

/// The counts of one sign from the first bin that is not empty to the last, and which is the first: `None` if all are empty.
/// The numbers, but for those that are not finite, are from `least` to `most` in magnitude.
fn take_side(table: &mut [u64], least: f32, most: f32) -> Option<(usize, Vec<u64>)> {
    table[INFINITE..].fill(0);
    let bins: RangeInclusive<usize> = bin(least).max(TINY)..=bin(most.max(0.0)).min(INFINITE - 1);
    let counts = table.get_mut(bins.clone())?;
    let filled = |&count: &u64| count > 0;
    let (first, last) = (counts.iter().position(filled)?, counts.iter().rposition(filled)?);
    let found = counts[first..=last].to_vec();
    counts.fill(0);
    Some((bins.start() + first, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts and edges by definition.
    fn naive(x: &[f32]) -> Option<Histogram> {
        let magnitudes = || x.iter().map(|v| v.abs()).filter(|&v| v >= f32::MIN_POSITIVE && v.is_finite());
        let least = |negative| magnitudes_of(x, negative).reduce(f32::min);
        let floor = |v: f32| f32::from_bits(v.to_bits() & 0xFFFF_0000);
        let (mut counts, mut edges) = (Vec::new(), Vec::new());
        let zeros = x.iter().filter(|v| v.abs() < f32::MIN_POSITIVE).count() as u64;
        let side = |negative| -> Vec<(f32, u64)> {
            let (Some(least), Some(most)) = (least(negative), magnitudes_of(x, negative).reduce(f32::max))
            else {
                return Vec::new();
            };
            let bins = (least.to_bits() >> 16)..=(most.to_bits() >> 16);
            let count =
                |bin: u32| magnitudes_of(x, negative).filter(|v| v.to_bits() >> 16 == bin).count() as u64;
            bins.map(|bin| (f32::from_bits(bin << 16), count(bin))).collect()
        };
        let after = |v: f32| f32::from_bits(floor(v).to_bits() + 0x1_0000);
        let (below, above) = (side(true), side(false));
        for &(edge, count) in below.iter().rev() {
            edges.push(-after(edge));
            counts.push(count);
        }
        if zeros > 0 || (!below.is_empty() && !above.is_empty()) {
            edges.push(below.first().map_or(-f32::MIN_POSITIVE, |(edge, _)| -edge));
            counts.push(zeros);
        }
        for &(edge, count) in &above {
            edges.push(edge);
            counts.push(count);
        }
        match (above.last(), below.first()) {
            (Some(&(edge, _)), _) => edges.push(after(edge)),
            (None, _) if zeros > 0 => edges.push(f32::MIN_POSITIVE),
            (None, Some(&(edge, _))) => edges.push(-edge),
            (None, None) => return None,
        }
        assert_eq!(counts.iter().sum::<u64>(), zeros + magnitudes().count() as u64);
        Some(Histogram { counts, edges })
    }

    fn magnitudes_of(x: &[f32], negative: bool) -> impl Iterator<Item = f32> {
        let normal = |v: &f32| v.abs() >= f32::MIN_POSITIVE && v.is_finite();
        x.iter().copied().filter(normal).filter(move |v| (*v < 0.0) == negative).map(f32::abs)
    }

    #[test]
    fn counts_and_edges_match_their_definition() {
        let values: [fn(u32) -> f32; 10] = [
            |_| 0.0,
            |_| f32::NAN,
            |_| f32::INFINITY,
            |_| -1.5,
            |i| (i % 40) as f32 * 0.125,
            |i| (i % 40) as f32 * -0.125 - 0.125,
            |i| (i % 7) as f32 - 3.0,
            |i| if i % 2 == 0 { 1.25 } else { -3.0 },
            |i| if i % 3 == 0 { 1e-41 } else { f32::NEG_INFINITY },
            |i| [f32::MAX, f32::MIN, -0.0, f32::NAN, f32::INFINITY][i as usize % 5],
        ];
        for n in [0, 1, 3, 100, WORTHWHILE + 5] {
            // Twice, for what is left from the one before.
            for value in values.into_iter().chain(values) {
                let x: Vec<f32> = (0..n as u32).map(value).collect();
                assert_eq!(histogram(&x), naive(&x), "{n} values like {:?}", &x[..n.min(5)]);
            }
        }
    }
}
