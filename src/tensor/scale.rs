//! Weights times factors, at the speed of memory: the one loop of folding that is long.

use std::convert::identity;

use half::{bf16, f16};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{DataType, Memory, doubles, element_count, floats_like, is_filled};
use crate::error::{Error, Result};
use crate::onnx::TensorProto;

/// Bytes that one thread takes at a time.
const BLOCK: usize = 1 << 18;

/// Below this many bytes the caller's thread is done before it could wake another one.
const ALONE: usize = 1 << 20;

/// A floating-point tensor under a new name, element i multiplied by `factor(i / run)` in float64 and rounded once; `None`
/// if a result is not finite.
///
/// # Errors
/// [`Error::Tensor`] for another type, or when the data does not fill the shape.
pub fn scaled(
    tensor: &TensorProto,
    name: &str,
    run: usize,
    factor: impl Fn(usize) -> f64 + Sync,
) -> Result<Option<TensorProto>> {
    let count = element_count(tensor)?;
    let source = match &tensor.raw_data {
        Some(raw) if !raw.is_empty() => raw.clone(),
        _ => floats_like(tensor, name, &[count], &doubles(tensor)?)?.raw_data.unwrap_or_default(),
    };
    let (scale, size): (Scale, usize) = match tensor.data_type() {
        t if t == DataType::Float as i32 => (scale_float, 4),
        t if t == DataType::Double as i32 => (scale_double, 8),
        t if t == DataType::Float16 as i32 => (scale_float16, 2),
        t if t == DataType::Bfloat16 as i32 => (scale_bfloat16, 2),
        t => {
            let reason = format!("expected floating-point values, found data type {t}");
            return Err(Error::tensor(tensor.name(), reason));
        }
    };
    let mut target = Memory::zeroed(source.len());
    let run = run.max(1) * size;
    let runs = (BLOCK / run).max(1);
    let scale_block = |block: usize, source: &[u8], target: &mut [u8]| {
        let pairs = target.chunks_mut(run).zip(source.chunks(run));
        pairs.enumerate().all(|(i, (target, source))| scale(source, target, factor(block * runs + i)))
    };
    let finite = if source.len() < ALONE {
        scale_block(0, &source, target.as_mut())
    } else {
        let blocks = target.as_mut().par_chunks_mut(runs * run).zip(source.par_chunks(runs * run));
        blocks.enumerate().all(|(block, (target, source))| scale_block(block, source, target))
    };
    Ok((finite && is_filled(tensor)).then(|| TensorProto {
        dims: tensor.dims.clone(),
        data_type: tensor.data_type,
        name: Some(name.to_owned()),
        raw_data: Some(target.into()),
        ..TensorProto::default()
    }))
}

/// Source, target, factor; whether all results are finite.
type Scale = fn(&[u8], &mut [u8], f64) -> bool;

macro_rules! scale {
    ($($function:ident, $type:ty, $to_double:path, $from_double:path);*) => {$(
        /// Writes `source` times `factor`, both little-endian; whether all results are finite.
        #[multiversion(targets("x86_64+avx2+f16c"))]
        fn $function(source: &[u8], target: &mut [u8], factor: f64) -> bool {
            const SIZE: usize = size_of::<$type>();
            let mut finite = true;
            for (from, to) in source.as_chunks::<SIZE>().0.iter().zip(target.as_chunks_mut::<SIZE>().0) {
                let value: $type = $from_double($to_double(<$type>::from_le_bytes(*from)) * factor);
                finite &= value.is_finite();
                *to = value.to_le_bytes();
            }
            finite
        }
    )*};
}
scale!(
    scale_float, f32, f64::from, narrow;
    scale_double, f64, identity, identity;
    scale_float16, f16, f16::to_f64, f16::from_f64;
    scale_bfloat16, bf16, bf16::to_f64, bf16::from_f64
);

fn narrow(value: f64) -> f32 {
    value as f32
}
