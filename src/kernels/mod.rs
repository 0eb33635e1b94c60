//! The inner loops: slices in, slices out.
//!
//! Every kernel is plain Rust that the compiler vectorises (the loops are in `portable.rs`), compiled once for
//! the baseline and once for AVX2, and chosen at run time. Rust never contracts `a * b + c`, and every reduction
//! adds its lanes in one fixed order, so the clones agree **bit for bit** and results do not depend on the machine.

mod lanes;
mod portable;
#[cfg(test)]
mod tests;

use multiversion::multiversion;

/// Number of bins of the range-free histogram: one for each value of the top 16 bits of an `f32`.
pub const BINS: usize = 1 << 16;

/// Counts per bin of the range-free histogram; see [`count_bins`].
pub type BinTable = [u64; BINS];

/// An integer type that quantized values are stored in.
pub trait QuantInt: Copy + Send + Sync + 'static {
    /// Smallest integer.
    const MIN: i32;
    /// Largest integer.
    const MAX: i32;
    /// Narrows a value that is known to lie in `MIN..=MAX`.
    fn from_i32(value: i32) -> Self;
    /// Widens.
    fn to_i32(self) -> i32;
}

macro_rules! quant_int {
    ($($int:ty),*) => {$(
        impl QuantInt for $int {
            const MIN: i32 = <$int>::MIN as i32;
            const MAX: i32 = <$int>::MAX as i32;
            #[inline(always)]
            fn from_i32(value: i32) -> Self {
                value as $int
            }
            #[inline(always)]
            fn to_i32(self) -> i32 {
                i32::from(self)
            }
        }
    )*};
}
quant_int!(i8, u8, i16, u16);

/// ONNX `QuantizeLinear`, bit for bit: `saturate(round_half_even(x / scale) + zero_point)`.
///
/// Infinities saturate. NaN becomes `T::MIN`, as in ONNX Runtime's CPU kernel.
///
/// # Panics
/// If the slices differ in length.
pub fn quantize<T: QuantInt>(x: &[f32], scale: f32, zero_point: i32, out: &mut [T]) {
    quantize_clamped(x, scale, zero_point, T::MIN, T::MAX, out);
}

/// [`quantize`] that saturates at `qmin..=qmax` (within the range of `T`), such as −127…127 for symmetric weights.
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn quantize_clamped<T: QuantInt>(
    x: &[f32],
    scale: f32,
    zero_point: i32,
    qmin: i32,
    qmax: i32,
    out: &mut [T],
) {
    portable::quantize_clamped(x, scale, zero_point, qmin, qmax, out);
}

/// ONNX `DequantizeLinear`: `(q − zero_point) × scale`.
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn dequantize<T: QuantInt>(q: &[T], scale: f32, zero_point: i32, out: &mut [f32]) {
    portable::dequantize(q, scale, zero_point, out);
}

/// [`quantize_clamped`] and then [`dequantize`], bit for bit, without the integers in between.
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn fake_quantize(x: &[f32], scale: f32, zero_point: i32, qmin: i32, qmax: i32, out: &mut [f32]) {
    portable::fake_quantize(x, scale, zero_point, qmin, qmax, out);
}

/// Sum of `(fake_quantize(x) − x)²`, in f64; NaN or infinite if `x` holds a value that is not finite.
#[multiversion(targets("x86_64+avx2"))]
pub fn quantization_error(x: &[f32], scale: f32, zero_point: i32, qmin: i32, qmax: i32) -> f64 {
    portable::quantization_error(x, scale, zero_point, qmin, qmax)
}

/// Smallest and largest value, `None` if there is none.
///
/// NaNs are skipped ([`count_bins`] tells that they were there) and −0 is reported as 0.
#[multiversion(targets("x86_64+avx2"))]
pub fn min_max(x: &[f32]) -> Option<(f32, f32)> {
    portable::min_max(x)
}

/// Largest magnitude, 0 for an empty slice. NaNs are skipped.
#[multiversion(targets("x86_64+avx2"))]
pub fn abs_max(x: &[f32]) -> f32 {
    portable::abs_max(x)
}

/// Smallest magnitude that is neither 0 nor NaN, infinite if there is none.
#[multiversion(targets("x86_64+avx2"))]
fn least_magnitude(x: &[f32]) -> f32 {
    portable::least_magnitude(x)
}

/// Adds `x` to a range-free histogram: `bin = bits(x) >> 16`, that is sign, exponent and seven mantissa bits.
///
/// There is no range to know in advance, and the counts are exact integers that do not depend on order. A bin is
/// at most 2⁻⁷ of its value wide. Magnitudes below the smallest normal number, 2⁻¹²⁶, count as zeros in bin 0;
/// NaNs and infinities end in bins `0x7F80..=0x7FFF` and `0xFF80..=0xFFFF`.
///
/// Half the outputs of a ReLU are zeros. Incrementing one counter for all of them would wait for the previous
/// increment each time, so zeros are spread over the bins of the subnormals while counting and gathered at the end.
/// This loop is bound by its scattered increments; a vectorised index gains nothing, so it has no clones.
pub fn count_bins(x: &[f32], table: &mut BinTable) {
    portable::count_bins(x, table);
    portable::gather_zeros(table);
}

/// [`min_max`] and [`count_bins`] in one pass over memory, block by block through the first-level cache.
pub fn observe(x: &[f32], table: &mut BinTable) -> Option<(f32, f32)> {
    let found = if x.len() < lanes::WORTHWHILE {
        portable::count_bins(x, table);
        min_max(x)
    } else {
        x.chunks(lanes::MOST).map(|part| lanes::observe(part, table)).fold(None, lanes::wider)
    };
    portable::gather_zeros(table);
    found
}
