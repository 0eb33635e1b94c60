//! The loops themselves, inlined into each clone. See the public functions for what they compute.
//!
//! Two habits let them vectorise on every target: `if a < b { a } else { b }` rather than `f32::min` (one instruction
//! instead of a NaN dance), and arrays of lanes over `as_chunks` for reductions, which also fix the order of addition.

mod bins;
mod extremes;
mod product;
mod rounding;
mod steps;

pub(super) use bins::{SIGN, TINY, count_bins, gather_zeros};
pub(super) use extremes::{abs_max, extremes, min_max, raise_abs_max, raise_extents, sum_of_squares};
#[cfg(target_arch = "x86_64")]
pub(super) use product::{FRACTION, MIDDLE, Product};
pub(super) use rounding::{
    absmax_quantize_rows, dequantize, fake_quantize, quantization_error, quantize, quantize_and_abs_max,
    quantize_columns, quantize_lanes,
};
pub(super) use steps::Columns;
pub use steps::{Steps, Uniform};
