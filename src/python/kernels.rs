//! `rustq.kernels`: arrays in, into arrays out. Python has checked shapes, layouts and values.

use half::slice::HalfBitsSliceExt;
use half::{bf16, f16};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::compute;
use crate::kernels::{self, Along, Params};

/// A float type's name and array; 16-bit floats come as the uint16 of their bits.
type Reals<'py> = (String, Bound<'py, PyAny>);

/// Counts and edges.
type PyHistogram<'py> = (Bound<'py, PyArray1<u64>>, Bound<'py, PyArray1<f32>>);

/// Scales, zero points, smallest and largest integer, and the channel axis: `(length, block, inner)`, length 0 for no axis
/// and block 0 for none. See [`Along`].
type PyParams<'py> =
    (PyReadonlyArray1<'py, f32>, PyReadonlyArray1<'py, i32>, (i32, i32), (usize, usize, usize));

fn along((length, block, inner): (usize, usize, usize)) -> Along {
    match (length, block) {
        (0, _) => Along::Tensor,
        (channels, 0) => Along::Axis { channels, inner },
        (length, block) => Along::Blocks { length, block, inner },
    }
}

fn params<'a>((scale, zero_point, (qmin, qmax), place): &'a PyParams<'_>) -> PyResult<Params<'a>> {
    let (scale, zero_point) = (scale.as_slice()?, zero_point.as_slice()?);
    Ok(Params { scale, zero_point, qmin: *qmin, qmax: *qmax, along: along(*place) })
}

fn unknown(what: &Bound<'_, PyAny>) -> PyErr {
    PyValueError::new_err(format!("no kernel for an array of {}", what.get_type()))
}

/// Evaluates `$body` with `$x` the slice of a real array, whatever its type.
macro_rules! with_reals {
    ($reals:expr, |$x:ident| $body:expr) => {{
        let (name, array) = $reals;
        match name.as_str() {
            "float32" => {
                let array = array.extract::<PyReadonlyArrayDyn<'_, f32>>()?;
                let $x = array.as_slice()?;
                $body
            }
            "float16" => {
                let array = array.extract::<PyReadonlyArrayDyn<'_, u16>>()?;
                let $x: &[f16] = array.as_slice()?.reinterpret_cast();
                $body
            }
            "bfloat16" => {
                let array = array.extract::<PyReadonlyArrayDyn<'_, u16>>()?;
                let $x: &[bf16] = array.as_slice()?.reinterpret_cast();
                $body
            }
            _ => return Err(unknown(array)),
        }
    }};
}

/// Evaluates `$body` with `$q` the array of integers, borrowed as `$borrowed`, whatever its type.
macro_rules! with_integers {
    ($array:expr, $borrowed:ident, |$q:ident| $body:expr) => {
        with_integers!(@ $array, $borrowed, |$q| $body, i8, u8, i16, u16)
    };
    (@ $array:expr, $borrowed:ident, |$q:ident| $body:expr, $($int:ty),*) => {
        $(if let Ok(mut array) = $array.extract::<$borrowed<'_, $int>>() {
            #[allow(unused_mut)]
            let $q = &mut array;
            $body
        } else)* {
            return Err(unknown($array))
        }
    };
}

/// ONNX QuantizeLinear.
#[pyfunction]
pub(super) fn quantize(
    py: Python<'_>,
    x: Reals<'_>,
    p: PyParams<'_>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let p = params(&p)?;
    with_reals!(&x, |x| with_integers!(out, PyReadwriteArrayDyn, |out| {
        let out = out.as_slice_mut()?;
        compute(py, || kernels::quantize_tensor(x, p, out))?;
    }));
    Ok(())
}

/// ONNX DequantizeLinear.
#[pyfunction]
pub(super) fn dequantize(
    py: Python<'_>,
    q: &Bound<'_, PyAny>,
    p: PyParams<'_>,
    out: Reals<'_>,
) -> PyResult<()> {
    let p = params(&p)?;
    let (name, out) = &out;
    with_integers!(q, PyReadonlyArrayDyn, |q| {
        let q = q.as_slice()?;
        if name == "float32" {
            let mut out = out.extract::<PyReadwriteArrayDyn<'_, f32>>()?;
            let out = out.as_slice_mut()?;
            compute(py, || kernels::dequantize_tensor(q, p, out))?;
        } else {
            let mut out = out.extract::<PyReadwriteArrayDyn<'_, u16>>()?;
            let out = out.as_slice_mut()?;
            compute(py, || match name.as_str() {
                "float16" => kernels::dequantize_tensor::<_, f16>(q, p, out.reinterpret_cast_mut()),
                _ => kernels::dequantize_tensor::<_, bf16>(q, p, out.reinterpret_cast_mut()),
            })?;
        }
    });
    Ok(())
}

/// DequantizeLinear of QuantizeLinear, without the integers in between.
#[pyfunction]
pub(super) fn fake_quantize(
    py: Python<'_>,
    x: Reals<'_>,
    p: PyParams<'_>,
    mut out: PyReadwriteArrayDyn<'_, f32>,
) -> PyResult<()> {
    let (p, out) = (params(&p)?, out.as_slice_mut()?);
    with_reals!(&x, |x| compute(py, || kernels::fake_quantize_tensor(x, p, out)))
}

/// Sum of squared differences between values and what their integers say.
#[pyfunction]
pub(super) fn quantization_error(py: Python<'_>, x: Reals<'_>, p: PyParams<'_>) -> PyResult<f64> {
    let p = params(&p)?;
    with_reals!(&x, |x| compute(py, || kernels::quantization_error_tensor(x, p)))
}

/// Smallest and largest value; `None` for an array without numbers.
#[pyfunction]
pub(super) fn min_max(py: Python<'_>, x: Reals<'_>) -> PyResult<Option<(f32, f32)>> {
    with_reals!(&x, |x| compute(py, || kernels::min_max_tensor(x)))
}

/// Counts and edges of the range-free histogram; `None` for an array without finite numbers.
#[pyfunction]
pub(super) fn histogram<'py>(py: Python<'py>, x: Reals<'py>) -> PyResult<Option<PyHistogram<'py>>> {
    let found = with_reals!(&x, |x| compute(py, || kernels::histogram(x)))?;
    Ok(found.map(|found| (found.counts.into_pyarray(py), found.edges.into_pyarray(py))))
}

/// Symmetric int8 codes of `outer × channels × inner` values, and a scale for each channel.
#[pyfunction]
pub(super) fn absmax_quantize<'py>(
    py: Python<'py>,
    x: Reals<'py>,
    channels: usize,
    inner: usize,
    mut out: PyReadwriteArrayDyn<'py, i8>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let out = out.as_slice_mut()?;
    let scale = with_reals!(&x, |x| compute(py, || kernels::absmax_quantize(x, channels, inner, out)))?;
    Ok(scale.into_pyarray(py))
}

/// Low four bits of each byte, two in a byte.
#[pyfunction]
pub(super) fn pack_int4(
    py: Python<'_>,
    x: PyReadonlyArrayDyn<'_, u8>,
    mut out: PyReadwriteArrayDyn<'_, u8>,
) -> PyResult<()> {
    let (x, out) = (x.as_slice()?, out.as_slice_mut()?);
    compute(py, || kernels::int4::pack(x, out))?;
    Ok(())
}

/// The reverse.
#[pyfunction]
pub(super) fn unpack_int4(
    py: Python<'_>,
    packed: PyReadonlyArrayDyn<'_, u8>,
    signed: bool,
    mut out: PyReadwriteArrayDyn<'_, u8>,
) -> PyResult<()> {
    let (packed, out) = (packed.as_slice()?, out.as_slice_mut()?);
    compute(py, || kernels::int4::unpack(packed, signed, out))?;
    Ok(())
}
