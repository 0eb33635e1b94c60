//! Counting numbers by the upper half of their bits.

use crate::kernels::BinTable;

/// Zeros of successive elements go to as many different counters, which [`gather_zeros`] then adds up.
const ZERO_LANES: usize = 16;

/// Subnormals and zeros have an exponent field of 0: this many bins of each sign.
pub(in crate::kernels) const TINY: usize = 1 << 7;
/// First bin of negative numbers.
pub(in crate::kernels) const SIGN: usize = 1 << 15;

/// The bin of a number that is not zero, `lane` of one that is.
#[inline(always)]
fn bin(v: f32, lane: usize) -> usize {
    let bits = v.to_bits();
    usize::from((bits >> 16) as u16) | if bits << 1 == 0 { lane } else { 0 }
}

#[inline(always)]
pub(in crate::kernels) fn count_bins(x: &[f32], table: &mut BinTable) {
    const { assert!(ZERO_LANES <= TINY) };
    let (chunks, tail) = x.as_chunks::<ZERO_LANES>();
    for chunk in chunks {
        for lane in 0..ZERO_LANES {
            table[bin(chunk[lane], lane)] += 1;
        }
    }
    for &v in tail {
        table[bin(v, 0)] += 1;
    }
}

/// Moves the counts of the zeros and subnormals to bin 0.
pub(in crate::kernels) fn gather_zeros(table: &mut BinTable) {
    let (positive, negative) = table.split_at_mut(SIGN);
    let (zero, tiny) = positive[..TINY].split_first_mut().expect("TINY > 0");
    for count in tiny.iter_mut().chain(&mut negative[..TINY]) {
        *zero += std::mem::take(count);
    }
}
