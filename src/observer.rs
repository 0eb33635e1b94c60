//! What calibration remembers of one tensor: exact extremes and a histogram that needs no range in advance.
//!
//! The counts are integers, so an observation does not depend on order, batch size or sharding, and two of them merge
//! by addition. Every calibration method ([`crate::ranges`]) is a pure function of an observer.

use crate::kernels::{self, BINS, BinTable};
use crate::qparams::{QuantParams, Range};
use crate::ranges::NoiseModel;
use std::fmt;
use std::sync::OnceLock;

/// Sign bit of a bin number.
const SIGN: usize = 1 << 15;
/// First bin that holds normal numbers, and the first that holds infinities and NaNs.
const NORMAL: usize = 0x0080;
const NON_FINITE: usize = 0x7F80;

/// Exact minimum, maximum and count, and the [range-free histogram](kernels::count_bins), of the values of one tensor.
pub struct Observer {
    extremes: Extremes,
    table: Box<BinTable>,
    count: u64,
    /// What the questions below are answered from, made when one is first asked.
    noise: OnceLock<NoiseModel>,
}

impl Clone for Observer {
    fn clone(&self) -> Self {
        Self { extremes: self.extremes, table: self.table.clone(), count: self.count, noise: OnceLock::new() }
    }
}

impl PartialEq for Observer {
    fn eq(&self, other: &Self) -> bool {
        self.extremes == other.extremes && self.count == other.count && self.table == other.table
    }
}

impl Eq for Observer {}

/// Smallest and largest finite value; `∞, −∞` before any.
#[derive(Clone, Copy, PartialEq)]
struct Extremes(f32, f32);

// Never NaN.
impl Eq for Extremes {}

impl Extremes {
    const NONE: Self = Self(f32::INFINITY, f32::NEG_INFINITY);

    fn include(&mut self, (lo, hi): (f32, f32)) {
        *self = Self(self.0.min(lo), self.1.max(hi));
    }
}

/// A non-empty interval of a histogram.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    /// Lower end.
    pub lo: f64,
    /// Upper end, equal to the lower for a bin that holds one value.
    pub hi: f64,
    /// How many values lie in it.
    pub count: u64,
}

impl Default for Observer {
    fn default() -> Self {
        // The operating system hands out zero pages when they are first written: a typical tensor touches a tenth.
        let table = vec![0; BINS].into_boxed_slice().try_into().expect("BINS counters");
        Self { extremes: Extremes::NONE, table, count: 0, noise: OnceLock::new() }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer")
            .field("range", &self.range())
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

impl Observer {
    /// An observer that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in some values of the tensor.
    pub fn observe(&mut self, x: &[f32]) {
        self.noise.take();
        self.count += x.len() as u64;
        let Some((lo, hi)) = kernels::observe(x, &mut self.table) else { return };
        if lo.is_finite() && hi.is_finite() {
            self.extremes.include((lo, hi));
        } else {
            x.iter().filter(|v| v.is_finite()).for_each(|&v| self.extremes.include((v + 0.0, v + 0.0)));
        }
    }

    /// Takes in everything that another observer has seen.
    pub fn merge(&mut self, other: &Self) {
        self.noise.take();
        self.count += other.count;
        self.extremes.include((other.extremes.0, other.extremes.1));
        for (count, &more) in self.table.iter_mut().zip(&*other.table).filter(|(_, more)| **more > 0) {
            *count += more;
        }
    }

    /// Exact smallest and largest finite value, `None` if there was none.
    pub fn range(&self) -> Option<Range> {
        let Extremes(min, max) = self.extremes;
        (min <= max).then_some(Range { min, max })
    }

    /// How many values were seen, finite or not.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many of them were infinite or NaN. They are in no [bin](Self::bins) and not in the [range](Self::range).
    pub fn non_finite(&self) -> u64 {
        self.table[NON_FINITE..SIGN].iter().chain(&self.table[SIGN + NON_FINITE..]).sum()
    }

    /// The bins that hold something, in ascending order of value.
    ///
    /// The outermost bins are clipped to the exact extremes. Zeros, with magnitudes below 2⁻¹²⁶, are the bin `[0, 0]`.
    pub fn bins(&self) -> impl Iterator<Item = Bin> + '_ {
        let negative = (SIGN + NORMAL..SIGN + NON_FINITE).rev();
        let indices = negative.chain([0]).chain(NORMAL..NON_FINITE);
        indices.filter(|&i| self.table[i] > 0).map(|i| self.bin(i))
    }

    fn bin(&self, index: usize) -> Bin {
        let count = self.table[index];
        if index == 0 {
            return Bin { lo: 0.0, hi: 0.0, count };
        }
        let edge = |i: usize| f64::from(f32::from_bits((i as u32) << 16));
        let (near, far) = (edge(index), edge(index + 1));
        let Extremes(min, max) = self.extremes;
        Bin { lo: near.min(far).max(min.into()), hi: near.max(far).min(max.into()), count }
    }

    /// How many of the finite values lie in each of so many equal cells of their range. A value counts where the middle
    /// of its [bin](Self::bins) is.
    pub fn histogram(&self, cells: usize) -> Vec<u64> {
        let mut counts = vec![0; cells];
        let Some(Range { min, max }) = self.range().filter(|_| cells > 0) else { return counts };
        let per_width = cells as f64 / (f64::from(max) - f64::from(min));
        for bin in self.bins() {
            let cell = ((bin.lo + bin.hi) / 2.0 - f64::from(min)) * per_width;
            counts[(cell as usize).min(cells - 1)] += bin.count;
        }
        counts
    }

    /// The expected error of any grid on the finite values.
    pub fn noise_model(&self) -> &NoiseModel {
        self.noise.get_or_init(|| NoiseModel::new(self))
    }

    /// Mean square of the finite values, 0 if there are none.
    pub fn power(&self) -> f64 {
        self.noise_model().power()
    }

    /// Mean square distance of the finite values from their mean, 0 if there are none.
    pub fn variance(&self) -> f64 {
        let mean = self.noise_model().mean();
        (self.power() - mean * mean).max(0.0)
    }

    /// Expected mean squared error of quantizing the finite values with the first scale and zero point of `params`;
    /// see [`NoiseModel`]. The signal-to-noise ratio is [`power`](Self::power) divided by this.
    ///
    /// # Panics
    /// If `params` has no scale.
    pub fn quantization_noise(&self, params: &QuantParams) -> f64 {
        self.noise_model().noise(params.grid(0))
    }

    /// Serialises: a version byte, minimum and maximum as little-endian f32, the number of non-empty bins, and for each
    /// the distance from the bin before and the count; these three as LEB128. A typical tensor takes some 10 KB.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(self.extremes.0.to_le_bytes());
        bytes.extend(self.extremes.1.to_le_bytes());
        let filled = || (0..BINS).filter(|&i| self.table[i] > 0);
        write_varint(&mut bytes, filled().count() as u64);
        let mut next = 0;
        for index in filled() {
            write_varint(&mut bytes, (index - next) as u64);
            write_varint(&mut bytes, self.table[index]);
            next = index + 1;
        }
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// If the bytes are anything that it cannot have written.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader(bytes);
        if reader.take()? != [VERSION] {
            return Err(DecodeError("unknown version"));
        }
        let (min, max) = (f32::from_le_bytes(reader.take()?), f32::from_le_bytes(reader.take()?));
        let mut observer = Self { extremes: Extremes(min, max), ..Self::default() };
        let (mut next, mut total) = (0_u64, 0_u64);
        for _ in 0..reader.varint()? {
            let index = next.checked_add(reader.varint()?).filter(|&i| i < BINS as u64);
            let index = index.ok_or(DecodeError("bin out of range"))?;
            let count = reader.varint()?;
            total = total.saturating_add(count);
            if total > MOST_VALUES {
                return Err(DecodeError("too many values"));
            }
            if count == 0 || is_tiny(index as usize) {
                return Err(DecodeError("bin that is never filled"));
            }
            observer.table[index as usize] = count;
            next = index + 1;
        }
        observer.count = total;
        if !reader.0.is_empty() {
            return Err(DecodeError("bytes left over"));
        }
        observer.check_extremes()?;
        Ok(observer)
    }

    /// The extremes must lie in the outermost bins, which also makes them finite.
    fn check_extremes(&self) -> Result<(), DecodeError> {
        let Extremes(min, max) = self.extremes;
        let bin_of = |v: f32| if v.abs() < f32::MIN_POSITIVE { 0 } else { (v.to_bits() >> 16) as usize };
        let negative = (SIGN + NORMAL..SIGN + NON_FINITE).rev();
        let mut filled = negative.chain([0]).chain(NORMAL..NON_FINITE).filter(|&i| self.table[i] > 0);
        let fits = match (filled.next(), filled.next_back()) {
            (None, _) => self.extremes == Extremes::NONE,
            (Some(first), last) => min <= max && bin_of(min) == first && bin_of(max) == last.unwrap_or(first),
        };
        if fits { Ok(()) } else { Err(DecodeError("extremes outside the histogram")) }
    }
}

/// Bins of subnormals, which are counted as zeros.
fn is_tiny(index: usize) -> bool {
    index != 0 && index % SIGN < NORMAL
}

const VERSION: u8 = 1;

/// More than anyone observes, and few enough that merging does not overflow.
const MOST_VALUES: u64 = 1 << 48;

/// Bytes that are not a serialised [`Observer`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("damaged observation of a tensor: {0}")]
pub struct DecodeError(&'static str);

fn write_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(DecodeError("unexpected end"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.take()?;
            let bits = u64::from(byte & 0x7F);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError("number too large"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn observed(x: &[f32]) -> Observer {
        let mut observer = Observer::new();
        observer.observe(x);
        observer
    }

    #[test]
    fn nothing_seen() {
        let empty = Observer::new();
        assert_eq!((empty.range(), empty.count(), empty.non_finite(), empty.bins().count()), (None, 0, 0, 0));
        assert_eq!(Observer::from_bytes(&empty.to_bytes()), Ok(empty));
    }

    #[test]
    fn bins_ascend_and_are_clipped() {
        let observer = observed(&[1.001, -0.0, -3.0, 0.0, 1.0, 5.0, -2.0, 1e-45]);
        let found: Vec<_> = observer.bins().map(|b| (b.lo, b.hi, b.count)).collect();
        let expected =
            [(-3.0, -3.0, 1), (-2.015625, -2.0, 1), (0.0, 0.0, 3), (1.0, 1.0078125, 2), (5.0, 5.0, 1)];
        assert_eq!(found, expected);
        assert_eq!(observer.range(), Some(Range { min: -3.0, max: 5.0 }));
    }

    #[test]
    fn values_that_are_not_finite_are_counted_and_kept_out() {
        let observer = observed(&[f32::NAN, 1.0, f32::INFINITY, -2.0, f32::NEG_INFINITY]);
        assert_eq!(observer.range(), Some(Range { min: -2.0, max: 1.0 }));
        assert_eq!((observer.count(), observer.non_finite(), observer.bins().count()), (5, 3, 2));
        assert_eq!(observed(&[f32::NAN]).range(), None);
        assert_eq!(observed(&[f32::INFINITY]).range(), None);
    }

    #[test]
    fn hostile_bytes_are_refused() {
        let good = observed(&[1.0, -2.0, 0.0]).to_bytes();
        for end in 0..good.len() {
            assert!(Observer::from_bytes(&good[..end]).is_err(), "first {end} bytes");
        }
        let header = |min: f32, max: f32| [&[VERSION][..], &min.to_le_bytes(), &max.to_le_bytes()].concat();
        let ones = [0xFF_u8; 9];
        let cases = [
            ("version", [&[9], &good[1..]].concat()),
            ("left over", [&good[..], &[0]].concat()),
            ("nan", [header(f32::NAN, 0.0), vec![1, 0, 1]].concat()),
            ("infinite", [header(f32::INFINITY, f32::INFINITY), vec![1, 0x80, 0xFF, 1, 1]].concat()),
            ("outside", [header(0.0, 1.0), vec![1, 0, 1]].concat()),
            ("empty bin", [header(0.0, 0.0), vec![1, 0, 0]].concat()),
            ("tiny bin", [header(0.0, 0.0), vec![2, 0, 1, 0, 1]].concat()),
            ("many bins", [&header(0.0, 0.0)[..], &ones, &[1]].concat()),
            ("far bin", [&header(0.0, 0.0)[..], &[1], &ones, &[1, 1]].concat()),
            ("overflow", [&header(0.0, 0.0)[..], &[1, 0], &ones, &[2]].concat()),
        ];
        for (name, bytes) in cases {
            assert!(Observer::from_bytes(&bytes).is_err(), "{name}");
        }
    }

    fn reals() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(any::<f32>(), 0..100)
    }

    proptest! {
        #[test]
        fn sharding_does_not_matter(x in reals(), cut in 0.0..=1.0_f64) {
            let (a, b) = x.split_at((cut * x.len() as f64) as usize);
            let (mut merged, whole) = (observed(b), observed(&x));
            merged.merge(&observed(a));
            prop_assert_eq!(&merged, &whole);
            prop_assert_eq!(merged.count(), x.len() as u64);
        }

        #[test]
        fn bytes_round_trip(x in reals()) {
            let observer = observed(&x);
            prop_assert_eq!(Observer::from_bytes(&observer.to_bytes()), Ok(observer));
        }

        #[test]
        fn random_bytes_do_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Some(version) = bytes.first_mut() {
                *version = VERSION;
            }
            let _ = Observer::from_bytes(&bytes);
        }
    }
}
