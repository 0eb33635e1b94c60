//! The inner loops: slices in, slices out.
//!
//! Every kernel is plain Rust that the compiler vectorises (the loops are in `portable`), compiled once for
//! the baseline, for AVX2 and for AVX-512, and chosen at run time. Where a bench shows that AVX2's own instructions pay,
//! `instructions.rs` has them. Every reduction adds its lanes in one fixed
//! order, and a product that may be rounded once or twice only ever decides which integers are beyond doubt, so the
//! clones agree **bit for bit** and results do not depend on the machine.

mod absmax;
pub(crate) mod branchless;
mod histogram;
mod instructions;
pub mod int4;
mod lanes;
mod layout;
#[doc(hidden)]
pub mod levels;
mod portable;
mod real;
mod stream;
#[cfg(test)]
mod tests;
mod threads;

use std::sync::Mutex;

use instructions::instructions;
use multiversion::multiversion;
use portable::{Columns, Steps, Uniform};

pub use absmax::absmax_quantize;
pub use histogram::{Histogram, histogram};
pub use layout::Along;
use layout::Run;
pub use real::Real;
use threads::SHARE;

/// Number of bins of the range-free histogram: one for each value of the top 16 bits of an `f32`.
pub const BINS: usize = 1 << 16;

/// Counts per bin of the range-free histogram; see [`count_bins`].
pub type BinTable = [u64; BINS];

/// An integer type that quantized values are stored in.
pub trait QuantInt: bytemuck::Pod + PartialOrd + Send + Sync {
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
pub fn quantize_clamped<T: QuantInt>(
    x: &[f32],
    scale: f32,
    zero_point: i32,
    qmin: i32,
    qmax: i32,
    out: &mut [T],
) {
    quantize_steps(x, Uniform::new(scale, zero_point, qmin, qmax), out);
}

/// ONNX `DequantizeLinear`: `(q − zero_point) × scale`.
///
/// # Panics
/// If the slices differ in length.
pub fn dequantize<T: QuantInt>(q: &[T], scale: f32, zero_point: i32, out: &mut [f32]) {
    dequantize_steps(q, Uniform::new(scale, zero_point, T::MIN, T::MAX), out);
}

/// [`quantize_clamped`] and then [`dequantize`], bit for bit, without the integers in between.
///
/// # Panics
/// If the slices differ in length.
pub fn fake_quantize(x: &[f32], scale: f32, zero_point: i32, qmin: i32, qmax: i32, out: &mut [f32]) {
    fake_quantize_steps(x, Uniform::new(scale, zero_point, qmin, qmax), out);
}

/// Sum of `(fake_quantize(x) − x)²`, in f64; NaN or infinite if `x` holds a value that is not finite.
pub fn quantization_error(x: &[f32], scale: f32, zero_point: i32, qmin: i32, qmax: i32) -> f64 {
    quantization_error_steps(x, Uniform::new(scale, zero_point, qmin, qmax))
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn quantize_steps<T: QuantInt, S: Steps>(x: &[f32], steps: S, out: &mut [T]) {
    portable::quantize(instructions!(), x, steps, out);
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn dequantize_steps<T: QuantInt, S: Steps>(q: &[T], steps: S, out: &mut [f32]) {
    portable::dequantize(q, steps, out);
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn fake_quantize_steps<S: Steps>(x: &[f32], steps: S, out: &mut [f32]) {
    portable::fake_quantize(instructions!(), x, steps, out);
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn quantization_error_steps<S: Steps>(x: &[f32], steps: S) -> f64 {
    portable::quantization_error(instructions!(), x, steps)
}

/// Smallest and largest value, `None` if there is none.
///
/// NaNs are skipped ([`count_bins`] tells that they were there) and −0 is reported as 0.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn min_max(x: &[f32]) -> Option<(f32, f32)> {
    portable::min_max(x)
}

/// Largest magnitude, 0 for an empty slice. NaNs are skipped.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn abs_max(x: &[f32]) -> f32 {
    portable::abs_max(x)
}

/// Raises each maximum to the magnitudes of its elements: of one in each row. NaNs are skipped.
///
/// # Panics
/// If the second slice is not whole rows as long as the first.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn raise_abs_max(maxima: &mut [f32], x: &[f32]) {
    portable::raise_abs_max(maxima, x);
}

/// [`quantize`] of one slice, and the [`abs_max`] of another one.
///
/// # Panics
/// If the lengths do not fit.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn quantize_and_abs_max<T: QuantInt>(x: &[f32], steps: Uniform, out: &mut [T], other: &[f32]) -> f32 {
    portable::quantize_and_abs_max(instructions!(), x, steps, out, other)
}

/// [`absmax_quantize`] of rows, as many as scales.
///
/// # Panics
/// If the lengths do not fit.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn absmax_quantize_rows(x: &[f32], scales: &mut [f32], out: &mut [i8]) {
    portable::absmax_quantize_rows(instructions!(), x, scales, out);
}

/// [`raise_abs_max`] of `sizes` by two rows and of `sums` by their sum, and the [`sum_of_squares`] of both, in one pass.
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn raise_extents(sizes: &mut [f32], sums: &mut [f32], even: &[f32], odd: &[f32]) -> f64 {
    portable::raise_extents(sizes, sums, even, odd)
}

/// Sum of the squares, in f64.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn sum_of_squares(x: &[f32]) -> f64 {
    portable::sum_of_squares(x)
}

/// [`quantize_clamped`] to −127…127 with the zero point 0 and a scale for each value; returns the
/// [`quantization_error`].
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn quantize_columns(x: &[f32], scales: &[f32], out: &mut [i8]) -> f64 {
    portable::quantize_columns(x, scales, out)
}

/// [`min_max`], and the smallest magnitude that is neither 0 nor NaN, infinite if there is none.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn extremes(x: &[f32]) -> (Option<(f32, f32)>, f32) {
    portable::extremes(x)
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
        let table = Mutex::new(&mut *table);
        let parts = x.chunks(lanes::MOST).map(|part| lanes::observe(part, &table).pair);
        parts.fold(None, lanes::wider)
    };
    portable::gather_zeros(table);
    found
}

/// The scales and zero points of a tensor, and the integers in use.
#[derive(Debug, Clone, Copy)]
pub struct Params<'a> {
    /// As many as `along` tells.
    pub scale: &'a [f32],
    /// As many as scales.
    pub zero_point: &'a [i32],
    /// Smallest integer in use.
    pub qmin: i32,
    /// Largest integer in use.
    pub qmax: i32,
    /// How they lie along the tensor.
    pub along: Along,
}

/// Runs `$kernel` with the parameters of a run.
macro_rules! with_steps {
    ($params:expr, $columns:expr, $run:expr, $length:expr, |$steps:ident| $kernel:expr) => {{
        let Params { scale, zero_point, qmin, qmax, .. } = $params;
        match ($run, $columns.shared) {
            (Run::One(i), _) => {
                let $steps = Uniform::new(scale[i], zero_point[i], qmin, qmax);
                $kernel
            }
            (Run::Each(i), Some(zero)) => {
                let $steps = $columns.part(i, $length, zero);
                $kernel
            }
            (Run::Each(i), None) => {
                let $steps = $columns.part(i, $length, $columns.own(i, $length));
                $kernel
            }
        }
    }};
}

impl Params<'_> {
    /// What runs with a parameter for each element have in common, and how it lies along so many elements.
    fn columns(self, elements: usize) -> (Along, Columns) {
        let Self { scale, zero_point, qmin, qmax, along } = self;
        let (times, along) = along.repeated(elements);
        (along, Columns::new(scale.repeat(times), zero_point.repeat(times), qmin, qmax))
    }
}

/// [`quantize_clamped`] of a whole tensor, by several threads if it is large.
///
/// # Panics
/// If the slices differ in length.
pub fn quantize_tensor<R: Real, T: QuantInt + Default>(x: &[R], params: Params<'_>, out: &mut [T]) {
    let (along, columns) = params.columns(x.len());
    layout::map::<R, _, _>(along, x, out, |x, run, out| {
        R::with_wide(x, |x| {
            with_steps!(params, columns, run, x.len(), |steps| quantize_steps(x, steps, out))
        });
    });
}

/// [`dequantize`] of a whole tensor, by several threads if it is large.
///
/// # Panics
/// If the slices differ in length.
pub fn dequantize_tensor<T: QuantInt, R: Real>(q: &[T], params: Params<'_>, out: &mut [R]) {
    let (along, columns) = params.columns(q.len());
    layout::map::<R, _, _>(along, q, out, |q, run, out| {
        R::narrow(out, |out| {
            with_steps!(params, columns, run, q.len(), |steps| dequantize_steps(q, steps, out));
        });
    });
}

/// [`fake_quantize`] of a whole tensor, by several threads if it is large.
///
/// # Panics
/// If the slices differ in length.
pub fn fake_quantize_tensor<R: Real>(x: &[R], params: Params<'_>, out: &mut [f32]) {
    let (along, columns) = params.columns(x.len());
    layout::map::<R, _, _>(along, x, out, |x, run, out| {
        R::with_wide(x, |x| {
            with_steps!(params, columns, run, x.len(), |steps| fake_quantize_steps(x, steps, out));
        });
    });
}

/// [`quantization_error`] of a whole tensor, by several threads if it is large; the same however many.
pub fn quantization_error_tensor<R: Real>(x: &[R], params: Params<'_>) -> f64 {
    let (along, columns) = params.columns(x.len());
    layout::sum(along, x, |x, run| {
        R::with_wide(x, |x| {
            with_steps!(params, columns, run, x.len(), |steps| quantization_error_steps(x, steps))
        })
    })
}

/// [`min_max`] of a whole tensor, by several threads if it is large.
pub fn min_max_tensor<R: Real>(x: &[R]) -> Option<(f32, f32)> {
    let share = |x: &[R], _| {
        let blocks = x.chunks(R::AT_ONCE).map(|x| R::with_wide(x, min_max));
        blocks.fold(None, lanes::wider)
    };
    // Quick, and so in large shares: what is done sooner than another thread is awake is one.
    threads::summarize(x, 4 * SHARE, share, lanes::wider)?
}
