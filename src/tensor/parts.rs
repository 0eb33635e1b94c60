//! The values of a constant as float32, a part at a time, so that large ones need not be in memory as a whole.

use std::borrow::Cow;
use std::iter;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::{DataType, element_count, floats};
use crate::error::Result;
use crate::mapped;
use crate::onnx::TensorProto;

/// Values of a float32, float16, bfloat16 or float64 tensor. The pages of a mapped file are given back in the end.
pub struct Parts<'t> {
    source: Source<'t>,
    length: usize,
}

enum Source<'t> {
    /// Little-endian float32, aligned or not.
    Bytes(Pages<'t>),
    Values(Vec<f32>),
}

struct Pages<'t>(&'t [[u8; 4]]);

impl Drop for Pages<'_> {
    fn drop(&mut self) {
        mapped::release(self.0.as_flattened());
    }
}

impl<'t> Parts<'t> {
    /// The values of `tensor`.
    ///
    /// # Errors
    /// As [`floats`].
    pub fn of(tensor: &'t TensorProto) -> Result<Self> {
        let length = element_count(tensor)?;
        let is_float32 = tensor.data_type() == DataType::Float as i32;
        let raw = tensor.raw_data.as_deref().filter(|raw| is_float32 && !raw.is_empty());
        let source = match raw.map(<[u8]>::as_chunks) {
            Some((values, [])) if values.len() == length => Source::Bytes(Pages(values)),
            _ => Source::Values(floats(tensor)?),
        };
        Ok(Self { source, length })
    }

    /// Number of values.
    pub fn count(&self) -> usize {
        self.length
    }

    /// All of them.
    pub fn all(&self) -> Cow<'_, [f32]> {
        self.part(0..self.length)
    }

    /// A copy of all of them.
    pub fn into_vec(self) -> Vec<f32> {
        match self.source {
            Source::Values(values) => values,
            Source::Bytes(_) => self.all().into_owned(),
        }
    }

    /// The values of these indices; without a copy where they lie in memory as floats do.
    fn part(&self, range: Range<usize>) -> Cow<'_, [f32]> {
        match &self.source {
            Source::Values(values) => Cow::Borrowed(&values[range]),
            Source::Bytes(Pages(bytes)) => {
                let bytes = &bytes[range];
                match bytemuck::try_cast_slice(bytes.as_flattened()) {
                    Ok(values) if cfg!(target_endian = "little") => Cow::Borrowed(values),
                    _ => bytes.iter().map(|&value| f32::from_le_bytes(value)).collect(),
                }
            }
        }
    }

    /// What `of` says about each part of `size` values, the last one being shorter, in order.
    pub fn map<T: Send>(&self, size: usize, of: impl Fn(usize, &[f32]) -> T + Sync) -> Vec<T> {
        self.map_to(size, iter::repeat(()), |start, part, ()| of(start, part))
    }

    /// The same, given a target for each part, which is not made before the turn of that part comes.
    pub fn map_to<T: Send, S: Send>(
        &self,
        size: usize,
        targets: impl Iterator<Item = S> + Send,
        of: impl Fn(usize, &[f32], S) -> T + Sync,
    ) -> Vec<T> {
        // As many as are used at a time: new memory costs as much as reading into it.
        let buffers = Mutex::new(Vec::new());
        let free = || buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let part = |(start, target)| {
            let range = start..self.length.min(start + size);
            let mut buffer = free().pop().unwrap_or_default();
            let said = of(start, &self.read(range, &mut buffer), target);
            free().push(buffer);
            (start, said)
        };
        let parts = (0..self.length).step_by(size.max(1)).zip(targets);
        // One is not worth waking a thread.
        let mut parts: Vec<_> = match self.length <= size {
            true => parts.map(part).collect(),
            false => parts.par_bridge().map(part).collect(),
        };
        parts.sort_unstable_by_key(|(start, _)| *start);
        parts.into_iter().map(|(_, said)| said).collect()
    }

    /// The values of these indices, by way of the buffer if they are those of a mapped file.
    fn read<'s>(&'s self, range: Range<usize>, buffer: &'s mut Vec<f32>) -> Cow<'s, [f32]> {
        if let Source::Bytes(Pages(bytes)) = &self.source {
            buffer.resize(range.len(), 0.0);
            let bytes = bytes[range.clone()].as_flattened();
            if cfg!(target_endian = "little") && mapped::read(bytes, bytemuck::cast_slice_mut(buffer)) {
                return Cow::Borrowed(buffer);
            }
        }
        self.part(range)
    }
}

impl From<Vec<f32>> for Parts<'_> {
    fn from(values: Vec<f32>) -> Self {
        let length = values.len();
        Self { source: Source::Values(values), length }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{floats_like, tensor};

    #[test]
    fn parts_make_up_the_whole() {
        let values: Vec<f32> = (0..1000).map(|v| v as f32).collect();
        let aligned = tensor("w", &[10, 100], &values);
        let mut shifted = aligned.clone();
        shifted.raw_data = Some([&[0], &aligned.raw_data.clone().unwrap()[..]].concat().into());
        shifted.raw_data = shifted.raw_data.map(|raw| raw.slice(1..));
        let half = tensor("h", &[1], &[half::f16::ZERO]);
        let exact: Vec<f64> = values.iter().copied().map(f64::from).collect();
        let half = floats_like(&half, "w", &[1000], &exact).unwrap();
        for source in [&aligned, &shifted, &half] {
            let parts = Parts::of(source).unwrap();
            for size in [1, 7, 100, 1000, 5000] {
                let read = parts.map(size, |start, part| (start, part.to_vec()));
                assert!(read.iter().all(|(start, part)| start % size == 0 && part.len() <= size));
                assert_eq!(read.into_iter().flat_map(|(_, part)| part).collect::<Vec<_>>(), values);
            }
        }
    }

    #[test]
    fn lengths_are_checked() {
        let mut short = tensor("w", &[4], &[0_f32; 4]);
        short.raw_data = short.raw_data.map(|raw| raw.slice(..15));
        assert!(Parts::of(&short).is_err());
        assert_eq!(Parts::of(&tensor::<f32>("w", &[0, 3], &[])).unwrap().map(5, |_, _| ()).len(), 0);
    }
}
