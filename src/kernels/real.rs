//! Real numbers in 16 bits, computed with as float32.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use std::borrow::Cow;

/// 16-bit values that are converted at once: as float32 they stay in the first-level cache.
pub const BLOCK: usize = 4096;

/// A type of real numbers that tensors are stored in.
pub trait Real: Copy + Default + Send + Sync + 'static {
    /// Most values that are worked on at once.
    const AT_ONCE: usize;
    /// Has at most [`Real::AT_ONCE`] values read as float32, exactly.
    fn with_wide<O>(x: &[Self], read: impl FnOnce(&[f32]) -> O) -> O;
    /// Any number of values as float32, exactly.
    fn all_widened(x: &[Self]) -> Cow<'_, [f32]>;
    /// Has at most [`Real::AT_ONCE`] float32 values written, and rounds them to the nearest, ties to even.
    fn narrow(out: &mut [Self], write: impl FnOnce(&mut [f32]));
}

impl Real for f32 {
    const AT_ONCE: usize = usize::MAX;

    #[inline(always)]
    fn with_wide<O>(x: &[Self], read: impl FnOnce(&[f32]) -> O) -> O {
        read(x)
    }

    fn all_widened(x: &[Self]) -> Cow<'_, [f32]> {
        x.into()
    }

    #[inline(always)]
    fn narrow(out: &mut [Self], write: impl FnOnce(&mut [f32])) {
        write(out);
    }
}

macro_rules! half_real {
    ($($half:ty),*) => {$(
        impl Real for $half {
            const AT_ONCE: usize = BLOCK;

            fn with_wide<O>(x: &[Self], read: impl FnOnce(&[f32]) -> O) -> O {
                let mut buffer = [0.0; BLOCK];
                let values = &mut buffer[..x.len()];
                x.convert_to_f32_slice(values);
                read(values)
            }

            fn all_widened(x: &[Self]) -> Cow<'_, [f32]> {
                x.to_f32_vec().into()
            }

            fn narrow(out: &mut [Self], write: impl FnOnce(&mut [f32])) {
                let mut buffer = [0.0; BLOCK];
                let values = &mut buffer[..out.len()];
                write(values);
                out.convert_from_f32_slice(values);
            }
        }
    )*};
}
half_real!(f16, bf16);
