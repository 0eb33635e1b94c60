//! `rustq.kernels`: arrays in, arrays out.

use numpy::{IntoPyArray, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rayon::prelude::*;

use crate::kernels::{self, QuantInt};

/// How one axis of a contiguous array carries its parameters: rows of `inner` elements, channel after channel.
struct Rows {
    inner: usize,
    scale: Vec<f32>,
    zero_point: Vec<i32>,
}

impl Rows {
    fn new(shape: &[usize], axis: Option<usize>, scale: Vec<f32>, zero_point: Vec<i32>) -> PyResult<Self> {
        if scale.len() != zero_point.len() {
            return Err(PyValueError::new_err("scale and zero_point must have the same length"));
        }
        let (channels, inner) = match axis {
            None => (1, shape.iter().product::<usize>()),
            Some(axis) if axis < shape.len() => (shape[axis], shape[axis + 1..].iter().product::<usize>()),
            Some(axis) => return Err(PyValueError::new_err(format!("axis {axis} is outside of {shape:?}"))),
        };
        if scale.len() != channels {
            return Err(PyValueError::new_err(format!("expected {channels} scales, found {}", scale.len())));
        }
        Ok(Self { inner: inner.max(1), scale, zero_point })
    }

    /// Runs `kernel(input row, scale, zero point, output row)` over all rows.
    fn run<I: Sync, O: Send>(
        &self,
        x: &[I],
        out: &mut [O],
        kernel: impl Fn(&[I], f32, i32, &mut [O]) + Sync,
    ) {
        /// Elements that one task gets at least and a single channel is split into.
        const TASK: usize = 1 << 16;
        let step = if self.scale.len() == 1 { self.inner.min(TASK) } else { self.inner };
        let rows = x.par_chunks(step).zip(out.par_chunks_mut(step)).enumerate();
        rows.with_min_len(TASK / step.max(1)).for_each(|(row, (x, out))| {
            let channel = row % self.scale.len();
            let channel = if self.scale.len() == 1 { 0 } else { channel };
            kernel(x, self.scale[channel], self.zero_point[channel], out);
        });
    }
}

fn contiguous<'a, T: numpy::Element>(array: &'a PyReadonlyArrayDyn<'_, T>) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| PyValueError::new_err("the array must be C-contiguous"))
}

fn shaped<'py, T: numpy::Element>(
    py: Python<'py>,
    values: Vec<T>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyAny>> {
    let array: Bound<'py, PyArrayDyn<T>> = values.into_pyarray(py).reshape(shape)?;
    Ok(array.into_any())
}

/// ONNX QuantizeLinear of float32 values.
#[pyfunction]
pub(super) fn quantize<'py>(
    py: Python<'py>,
    x: PyReadonlyArrayDyn<'py, f32>,
    scale: Vec<f32>,
    zero_point: Vec<i32>,
    axis: Option<usize>,
    dtype: &str,
) -> PyResult<Bound<'py, PyAny>> {
    fn typed<'py, T: QuantInt + numpy::Element + Default + Send>(
        py: Python<'py>,
        x: &PyReadonlyArrayDyn<'py, f32>,
        rows: &Rows,
    ) -> PyResult<Bound<'py, PyAny>> {
        let values = contiguous(x)?;
        let mut out = vec![T::default(); values.len()];
        py.detach(|| rows.run(values, &mut out, kernels::quantize::<T>));
        shaped(py, out, x.shape())
    }
    let rows = Rows::new(x.shape(), axis, scale, zero_point)?;
    match dtype {
        "int8" => typed::<i8>(py, &x, &rows),
        "uint8" => typed::<u8>(py, &x, &rows),
        "int16" => typed::<i16>(py, &x, &rows),
        "uint16" => typed::<u16>(py, &x, &rows),
        _ => Err(PyValueError::new_err(format!(
            "unknown dtype '{dtype}'; choose int8, uint8, int16 or uint16"
        ))),
    }
}

/// ONNX DequantizeLinear to float32.
#[pyfunction]
pub(super) fn dequantize<'py>(
    py: Python<'py>,
    q: &Bound<'py, PyAny>,
    scale: Vec<f32>,
    zero_point: Vec<i32>,
    axis: Option<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    fn typed<'py, T: QuantInt + numpy::Element + Sync>(
        py: Python<'py>,
        q: &PyReadonlyArrayDyn<'py, T>,
        axis: Option<usize>,
        scale: Vec<f32>,
        zero_point: Vec<i32>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let rows = Rows::new(q.shape(), axis, scale, zero_point)?;
        let values = contiguous(q)?;
        let mut out = vec![0_f32; values.len()];
        py.detach(|| rows.run(values, &mut out, kernels::dequantize::<T>));
        shaped(py, out, q.shape())
    }
    if let Ok(q) = q.extract::<PyReadonlyArrayDyn<'py, i8>>() {
        typed(py, &q, axis, scale, zero_point)
    } else if let Ok(q) = q.extract::<PyReadonlyArrayDyn<'py, u8>>() {
        typed(py, &q, axis, scale, zero_point)
    } else if let Ok(q) = q.extract::<PyReadonlyArrayDyn<'py, i16>>() {
        typed(py, &q, axis, scale, zero_point)
    } else if let Ok(q) = q.extract::<PyReadonlyArrayDyn<'py, u16>>() {
        typed(py, &q, axis, scale, zero_point)
    } else {
        Err(PyValueError::new_err("expected an array of int8, uint8, int16 or uint16"))
    }
}

/// DequantizeLinear of QuantizeLinear, without the integers in between.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub(super) fn fake_quantize<'py>(
    py: Python<'py>,
    x: PyReadonlyArrayDyn<'py, f32>,
    scale: Vec<f32>,
    zero_point: Vec<i32>,
    axis: Option<usize>,
    qmin: i32,
    qmax: i32,
) -> PyResult<Bound<'py, PyAny>> {
    let rows = Rows::new(x.shape(), axis, scale, zero_point)?;
    let values = contiguous(&x)?;
    let mut out = vec![0_f32; values.len()];
    py.detach(|| {
        rows.run(values, &mut out, |x, scale, zero, out| {
            kernels::fake_quantize(x, scale, zero, qmin, qmax, out)
        });
    });
    shaped(py, out, x.shape())
}

/// Smallest and largest value; `None` for an empty array.
#[pyfunction]
pub(super) fn min_max(py: Python<'_>, x: PyReadonlyArrayDyn<'_, f32>) -> PyResult<Option<(f32, f32)>> {
    let values = contiguous(&x)?;
    Ok(py.detach(|| kernels::min_max(values)))
}
