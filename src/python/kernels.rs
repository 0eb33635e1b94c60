//! `rustq.kernels`: arrays in, into arrays out. Python has checked values and parameters, and made the arrays that are read
//! contiguous. A call on a few thousand elements takes about as long as its checks in Python would, so that those of the
//! array written to are here.

use half::slice::HalfBitsSliceExt;
use half::{bf16, f16};
use numpy::{
    Element, IntoPyArray, PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArray1, PyReadonlyArrayDyn,
    PyReadwriteArrayDyn, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::compute;
use crate::kernels::{self, Along, Params};

/// Counts and edges.
type PyHistogram<'py> = (Bound<'py, PyArray1<u64>>, Bound<'py, PyArray1<f32>>);

/// The scales and zero points of a tensor, for any number of calls.
#[pyclass(name = "KernelParams", frozen)]
pub(super) struct PyParams {
    scale: Vec<f32>,
    zero_point: Vec<i32>,
    limits: (i32, i32),
    along: Along,
}

#[pymethods]
impl PyParams {
    /// The smallest and the largest integer follow, and the channel axis: `(length, block, inner)`, length 0 for no axis and
    /// block 0 for none. See [`Along`].
    #[new]
    fn new(
        scale: PyReadonlyArray1<'_, f32>,
        zero_point: PyReadonlyArray1<'_, i32>,
        limits: (i32, i32),
        place: (usize, usize, usize),
    ) -> PyResult<Self> {
        let along = match place {
            (0, ..) => Along::Tensor,
            (channels, 0, inner) => Along::Axis { channels, inner },
            (length, block, inner) => Along::Blocks { length, block, inner },
        };
        Ok(Self { scale: scale.to_vec()?, zero_point: zero_point.to_vec()?, limits, along })
    }
}

impl PyParams {
    fn params(&self) -> Params<'_> {
        let (qmin, qmax) = self.limits;
        Params { scale: &self.scale, zero_point: &self.zero_point, qmin, qmax, along: self.along }
    }
}

/// Where the results of `source`, which has this shape, go: `None` if `out` is no array of their type in that shape, contiguous,
/// aligned, writable, and apart from the source.
fn place<'py, T: Element, S>(
    out: &Bound<'py, PyAny>,
    shape: &[usize],
    source: &[S],
) -> Option<PyReadwriteArrayDyn<'py, T>> {
    let out = out.cast::<PyArrayDyn<T>>().ok()?;
    let (first, read) = (out.data() as usize, source.as_ptr_range());
    let apart = first + size_of::<T>() * out.len() <= read.start as usize || read.end as usize <= first;
    let fits = out.is_c_contiguous() && out.is_aligned() && out.shape() == shape;
    if fits && apart { out.try_readwrite().ok() } else { None }
}

/// Evaluates `$body` with `$x` the slice of a real array of this shape, whatever its type: 16-bit floats come as the name of
/// theirs and the uint16 of their bits.
macro_rules! with_reals {
    ($reals:expr, |$x:ident, $shape:ident| $body:expr) => {{
        if let Ok(array) = $reals.cast::<PyArrayDyn<f32>>() {
            let (array, $shape) = (array.try_readonly()?, array.shape());
            let $x = array.as_slice()?;
            $body
        } else {
            let (name, array): (String, Bound<'_, PyArrayDyn<u16>>) = $reals.extract()?;
            let (array, $shape) = (array.try_readonly()?, array.shape());
            if name == "float16" {
                let $x: &[f16] = array.as_slice()?.reinterpret_cast();
                $body
            } else {
                let $x: &[bf16] = array.as_slice()?.reinterpret_cast();
                $body
            }
        }
    }};
}

/// Evaluates `$body` with `$int` the type that integers of these parameters are stored as.
macro_rules! with_integers_of {
    ($params:expr, |$int:ident| $body:expr) => {
        match ($params.qmin, $params.qmax) {
            (0, ..=255) => {
                type $int = u8;
                $body
            }
            (0, _) => {
                type $int = u16;
                $body
            }
            (_, ..=127) => {
                type $int = i8;
                $body
            }
            _ => {
                type $int = i16;
                $body
            }
        }
    };
}

/// ONNX QuantizeLinear. Returns whether `out` was fit for it, and has the integers now; so do the others.
#[pyfunction]
pub(super) fn quantize(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    p: PyRef<'_, PyParams>,
    out: &Bound<'_, PyAny>,
) -> PyResult<bool> {
    let p = p.params();
    with_reals!(x, |x, shape| with_integers_of!(p, |Integer| {
        let Some(mut out) = place::<Integer, _>(out, shape, x) else { return Ok(false) };
        let out = out.as_slice_mut()?;
        compute(py, || kernels::quantize_tensor(x, p, out))?;
    }));
    Ok(true)
}

/// ONNX DequantizeLinear.
#[pyfunction]
pub(super) fn dequantize(
    py: Python<'_>,
    q: &Bound<'_, PyAny>,
    p: PyRef<'_, PyParams>,
    out: &Bound<'_, PyAny>,
) -> PyResult<bool> {
    let p = p.params();
    with_integers_of!(p, |Integer| {
        let array = q.cast::<PyArrayDyn<Integer>>()?;
        let (array, shape) = (array.try_readonly()?, array.shape());
        let q = array.as_slice()?;
        if let Ok(half) = out.cast::<PyTuple>() {
            let (name, out): (String, Bound<'_, PyAny>) = half.extract()?;
            let Some(mut out) = place::<u16, _>(&out, shape, q) else { return Ok(false) };
            let out = out.as_slice_mut()?;
            compute(py, || match name.as_str() {
                "float16" => kernels::dequantize_tensor::<_, f16>(q, p, out.reinterpret_cast_mut()),
                _ => kernels::dequantize_tensor::<_, bf16>(q, p, out.reinterpret_cast_mut()),
            })?;
        } else {
            let Some(mut out) = place::<f32, _>(out, shape, q) else { return Ok(false) };
            let out = out.as_slice_mut()?;
            compute(py, || kernels::dequantize_tensor(q, p, out))?;
        }
    });
    Ok(true)
}

/// DequantizeLinear of QuantizeLinear, without the integers in between.
#[pyfunction]
pub(super) fn fake_quantize(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    p: PyRef<'_, PyParams>,
    out: &Bound<'_, PyAny>,
) -> PyResult<bool> {
    let p = p.params();
    with_reals!(x, |x, shape| {
        let Some(mut out) = place::<f32, _>(out, shape, x) else { return Ok(false) };
        let out = out.as_slice_mut()?;
        compute(py, || kernels::fake_quantize_tensor(x, p, out))?;
    });
    Ok(true)
}

/// Sum of squared differences between values and what their integers say.
#[pyfunction]
pub(super) fn quantization_error(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    p: PyRef<'_, PyParams>,
) -> PyResult<f64> {
    let p = p.params();
    with_reals!(x, |x, _shape| compute(py, || kernels::quantization_error_tensor(x, p)))
}

/// Smallest and largest value; `None` for an array without numbers.
#[pyfunction]
pub(super) fn min_max(py: Python<'_>, x: &Bound<'_, PyAny>) -> PyResult<Option<(f32, f32)>> {
    with_reals!(x, |x, _shape| compute(py, || kernels::min_max_tensor(x)))
}

/// Counts and edges of the range-free histogram; `None` for an array without finite numbers.
#[pyfunction]
pub(super) fn histogram<'py>(py: Python<'py>, x: &Bound<'py, PyAny>) -> PyResult<Option<PyHistogram<'py>>> {
    let found = with_reals!(x, |x, _shape| compute(py, || kernels::histogram(x)))?;
    Ok(found.map(|found| (found.counts.into_pyarray(py), found.edges.into_pyarray(py))))
}

/// Symmetric int8 codes of `outer × channels × inner` values, and a scale for each channel; `None` if `out` is not fit for them.
#[pyfunction]
pub(super) fn absmax_quantize<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    channels: usize,
    inner: usize,
    out: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyArray1<f32>>>> {
    let scale = with_reals!(x, |x, shape| {
        let Some(mut out) = place::<i8, _>(out, shape, x) else { return Ok(None) };
        let out = out.as_slice_mut()?;
        compute(py, || kernels::absmax_quantize(x, channels, inner, out))
    })?;
    Ok(Some(scale.into_pyarray(py)))
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
