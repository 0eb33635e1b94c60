//! `TensorProto` ⇄ typed values, with every length checked against the dimensions before anything is allocated.

mod memory;
mod parts;
mod scale;
mod transpose;

use bytes::Bytes;
use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::onnx::TensorProto;

pub(crate) use self::memory::Memory;
pub use self::parts::Parts;
pub use self::scale::scaled;
pub(crate) use self::transpose::matrix_transposed;
pub use self::transpose::transposed;

/// `TensorProto.DataType`, the types this crate computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum DataType {
    Float = 1,
    Uint8 = 2,
    Int8 = 3,
    Uint16 = 4,
    Int16 = 5,
    Int32 = 6,
    Int64 = 7,
    Float16 = 10,
    Double = 11,
    Bfloat16 = 16,
    Uint4 = 21,
    Int4 = 22,
}

/// `TensorProto.DataLocation.EXTERNAL`.
pub const EXTERNAL: i32 = 1;

/// Number of elements of `tensor`.
///
/// # Errors
/// [`Error::Tensor`] for a negative dimension or a product that overflows.
pub fn element_count(tensor: &TensorProto) -> Result<usize> {
    tensor
        .dims
        .iter()
        .try_fold(1_usize, |n, &d| usize::try_from(d).ok().and_then(|d| n.checked_mul(d)))
        .ok_or_else(|| Error::tensor(tensor.name(), format!("impossible shape {:?}", tensor.dims)))
}

/// Dimensions as sizes.
///
/// # Errors
/// [`Error::Tensor`] for a negative dimension.
pub fn shape(tensor: &TensorProto) -> Result<Vec<usize>> {
    element_count(tensor)?;
    Ok(tensor.dims.iter().map(|&d| usize::try_from(d).expect("checked by element_count")).collect())
}

/// Whether [`floats`] can read the tensor.
pub fn is_float(tensor: &TensorProto) -> bool {
    use DataType::{Bfloat16, Double, Float, Float16};
    [Float, Float16, Bfloat16, Double].iter().any(|&t| tensor.data_type() == t as i32)
}

/// Whether a floating-point tensor has as much data as its shape asks for.
pub fn is_filled(tensor: &TensorProto) -> bool {
    let size = match tensor.data_type() {
        t if t == DataType::Double as i32 => 8,
        t if t == DataType::Float as i32 => 4,
        _ => 2,
    };
    let raw = tensor.raw_data.as_ref().map_or(0, bytes::Bytes::len) / size;
    let typed = tensor.float_data.len() + tensor.double_data.len() + tensor.int32_data.len();
    element_count(tensor).is_ok_and(|count| count == raw || count == typed)
}

/// Values of a float32, float16, bfloat16 or float64 tensor, as float32.
///
/// # Errors
/// [`Error::Tensor`] for another type, or when the data does not fill the shape.
pub fn floats(tensor: &TensorProto) -> Result<Vec<f32>> {
    if tensor.data_type() == DataType::Float as i32 {
        values(tensor, &tensor.float_data, f32::from_le_bytes, |&v| v)
    } else {
        Ok(doubles(tensor)?.into_iter().map(|v| v as f32).collect())
    }
}

/// Values of a float32, float16, bfloat16 or float64 tensor, exact.
///
/// # Errors
/// As [`floats`].
pub fn doubles(tensor: &TensorProto) -> Result<Vec<f64>> {
    let bits = |v: &i32| *v as u16;
    match tensor.data_type() {
        t if t == DataType::Float as i32 => {
            values(tensor, &tensor.float_data, |b| f32::from_le_bytes(b).into(), |&v| v.into())
        }
        t if t == DataType::Double as i32 => values(tensor, &tensor.double_data, f64::from_le_bytes, |&v| v),
        t if t == DataType::Float16 as i32 => values(
            tensor,
            &tensor.int32_data,
            |b| f16::from_le_bytes(b).into(),
            |v| f16::from_bits(bits(v)).into(),
        ),
        t if t == DataType::Bfloat16 as i32 => values(
            tensor,
            &tensor.int32_data,
            |b| bf16::from_le_bytes(b).into(),
            |v| bf16::from_bits(bits(v)).into(),
        ),
        t => {
            Err(Error::tensor(tensor.name(), format!("expected floating-point values, found data type {t}")))
        }
    }
}

/// Values of an int64 or int32 tensor.
///
/// # Errors
/// [`Error::Tensor`] for another type, or when the data does not fill the shape.
pub fn integers(tensor: &TensorProto) -> Result<Vec<i64>> {
    if tensor.data_type() == DataType::Int64 as i32 {
        values(tensor, &tensor.int64_data, i64::from_le_bytes, |&v| v)
    } else if tensor.data_type() == DataType::Int32 as i32 {
        values(tensor, &tensor.int32_data, |b| i32::from_le_bytes(b).into(), |&v| v.into())
    } else {
        Err(Error::tensor(
            tensor.name(),
            format!("expected int64 or int32 values, found data type {}", tensor.data_type()),
        ))
    }
}

/// Values of an int8 tensor; `None` for another type, or when the data does not fill the shape.
pub fn signed_bytes(tensor: &TensorProto) -> Option<Vec<i8>> {
    let is_int8 = tensor.data_type() == DataType::Int8 as i32;
    is_int8.then(|| values(tensor, &tensor.int32_data, i8::from_le_bytes, |&v| v as i8).ok()).flatten()
}

/// Values of a tensor of integers of 4 to 32 bits; `None` for another type, or when the data does not fill the shape.
pub fn codes(tensor: &TensorProto) -> Option<Vec<i32>> {
    let typed = &tensor.int32_data;
    let read = match tensor.data_type() {
        t if t == DataType::Int8 as i32 => values(tensor, typed, |b| i8::from_le_bytes(b).into(), |&v| v),
        t if t == DataType::Uint8 as i32 => values(tensor, typed, |b| u8::from_le_bytes(b).into(), |&v| v),
        t if t == DataType::Int16 as i32 => values(tensor, typed, |b| i16::from_le_bytes(b).into(), |&v| v),
        t if t == DataType::Uint16 as i32 => values(tensor, typed, |b| u16::from_le_bytes(b).into(), |&v| v),
        t if t == DataType::Int32 as i32 => values(tensor, typed, i32::from_le_bytes, |&v| v),
        t if t == DataType::Int4 as i32 => {
            return nibbles(tensor, |nibble| i32::from((nibble << 4) as i8 >> 4));
        }
        t if t == DataType::Uint4 as i32 => return nibbles(tensor, i32::from),
        _ => return None,
    };
    read.ok()
}

/// Values of a tensor of 4 bits, the lower half of each byte first.
fn nibbles(tensor: &TensorProto, decode: impl Fn(u8) -> i32) -> Option<Vec<i32>> {
    let count = element_count(tensor).ok()?;
    let typed = || tensor.int32_data.iter().map(|&v| v as u8).collect::<Vec<u8>>();
    let packed =
        tensor.raw_data.as_ref().filter(|raw| !raw.is_empty()).map_or_else(typed, |raw| raw.to_vec());
    let both = |byte: &u8| [decode(byte & 15), decode(byte >> 4)];
    (packed.len() == count.div_ceil(2)).then(|| packed.iter().flat_map(both).take(count).collect())
}

/// Reads `raw_data` in elements of `N` bytes, or else the typed field, and checks the count.
fn values<const N: usize, T, S>(
    tensor: &TensorProto,
    typed: &[S],
    decode: impl Fn([u8; N]) -> T,
    convert: impl Fn(&S) -> T,
) -> Result<Vec<T>> {
    let count = element_count(tensor)?;
    let wrong = |found: usize| {
        if tensor.data_location() == EXTERNAL {
            let reason =
                "its data is in another file, which is only found if the model is opened by its path";
            return Error::tensor(tensor.name(), reason);
        }
        Error::tensor(tensor.name(), format!("shape {:?} needs {count} values, found {found}", tensor.dims))
    };
    match &tensor.raw_data {
        Some(raw) if !raw.is_empty() || typed.is_empty() => {
            let (chunks, rest) = raw.as_chunks::<N>();
            if chunks.len() != count || !rest.is_empty() {
                return Err(wrong(raw.len() / N));
            }
            Ok(chunks.iter().map(|&b| decode(b)).collect())
        }
        _ if typed.len() == count => Ok(typed.iter().map(convert).collect()),
        _ => Err(wrong(typed.len())),
    }
}

/// Element types that a new tensor can be made of.
pub trait Element: Copy {
    /// The ONNX type.
    const DATA_TYPE: DataType;
    /// Appends the little-endian bytes of `values`.
    fn extend(bytes: &mut Vec<u8>, values: &[Self]);
}

macro_rules! element {
    ($($type:ty => $data_type:ident),*) => {$(
        impl Element for $type {
            const DATA_TYPE: DataType = DataType::$data_type;
            fn extend(bytes: &mut Vec<u8>, values: &[Self]) {
                bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            }
        }
    )*};
}
element!(f32 => Float, f64 => Double, i8 => Int8, u8 => Uint8, i16 => Int16, u16 => Uint16, i32 => Int32, i64 => Int64, f16 => Float16, bf16 => Bfloat16);

/// A tensor named `name` of shape `dims`.
pub fn tensor<T: Element>(name: &str, dims: &[usize], values: &[T]) -> TensorProto {
    debug_assert_eq!(dims.iter().product::<usize>(), values.len());
    let mut raw = Vec::with_capacity(size_of_val(values));
    T::extend(&mut raw, values);
    tensor_of_bytes(name, dims, T::DATA_TYPE, Memory::of(raw))
}

/// A tensor named `name` of shape `dims` and type `data_type`, with its content as little-endian bytes.
pub fn tensor_of_bytes(
    name: &str,
    dims: &[usize],
    data_type: DataType,
    content: impl Into<Bytes>,
) -> TensorProto {
    TensorProto {
        dims: dims.iter().map(|&d| d as i64).collect(),
        data_type: Some(data_type as i32),
        name: Some(name.to_owned()),
        raw_data: Some(content.into()),
        ..TensorProto::default()
    }
}

/// `values` in the floating-point type of `like`, rounded to it, under a new name.
///
/// # Errors
/// [`Error::Tensor`] when `like` is not a floating-point tensor.
pub fn floats_like(like: &TensorProto, name: &str, dims: &[usize], values: &[f64]) -> Result<TensorProto> {
    fn rounded<T: Element>(
        name: &str,
        dims: &[usize],
        values: &[f64],
        round: impl Fn(f64) -> T,
    ) -> TensorProto {
        tensor(name, dims, &values.iter().map(|&v| round(v)).collect::<Vec<T>>())
    }
    Ok(match like.data_type() {
        t if t == DataType::Float as i32 => rounded(name, dims, values, |v| v as f32),
        t if t == DataType::Double as i32 => rounded(name, dims, values, |v| v),
        t if t == DataType::Float16 as i32 => rounded(name, dims, values, f16::from_f64),
        t if t == DataType::Bfloat16 as i32 => rounded(name, dims, values, bf16::from_f64),
        t => {
            let reason = format!("expected floating-point values, found data type {t}");
            return Err(Error::tensor(like.name(), reason));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_wrote() {
        let values = [0.0, -1.5, 65504.0, 3.0];
        for like in [
            tensor("a", &[1], &[0_f32]),
            tensor("b", &[1], &[0_f64]),
            tensor("c", &[1], &[f16::ZERO]),
            tensor("d", &[1], &[bf16::ZERO]),
        ] {
            let written = floats_like(&like, "x", &[2, 2], &values).unwrap();
            assert_eq!(written.data_type, like.data_type);
            let exact = like.name() != "d";
            for (read, value) in doubles(&written).unwrap().into_iter().zip(values) {
                assert!(read == value || !exact && (read - value).abs() < value.abs() / 128.0);
            }
        }
        assert_eq!(integers(&tensor("i", &[3], &[1_i64, -2, 3])).unwrap(), [1, -2, 3]);
    }

    #[test]
    fn typed_fields_count_as_data() {
        let mut t = TensorProto {
            dims: vec![2],
            data_type: Some(1),
            float_data: vec![1.0, 2.0],
            ..Default::default()
        };
        assert_eq!(floats(&t).unwrap(), [1.0, 2.0]);
        t.raw_data = Some(Bytes::new());
        assert_eq!(floats(&t).unwrap(), [1.0, 2.0]);
        let half = TensorProto {
            dims: vec![1],
            data_type: Some(10),
            int32_data: vec![0x3c00],
            ..Default::default()
        };
        assert_eq!(floats(&half).unwrap(), [1.0]);
    }

    #[test]
    fn lengths_are_checked() {
        let raw = |dims: &[i64], n: usize| TensorProto {
            dims: dims.to_vec(),
            data_type: Some(1),
            raw_data: Some(vec![0; n].into()),
            name: Some("w".into()),
            ..Default::default()
        };
        for bad in [raw(&[2], 4), raw(&[1], 5), raw(&[-1], 4), raw(&[i64::MAX, 4], 16), raw(&[i64::MAX], 0)] {
            assert!(floats(&bad).unwrap_err().to_string().starts_with("tensor 'w'"), "{bad:?}");
        }
        assert!(floats(&raw(&[0, 7], 0)).unwrap().is_empty());
    }
}
