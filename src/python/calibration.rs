//! `Calibration`: filling observers from arrays, and asking them.

use std::path::PathBuf;

use numpy::{PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::model::PyModel;
use crate::calibration::{Activation, Calibration};
use crate::model::write_atomically;
use crate::observation::Observers;
use crate::qparams::{Range, Scheme};
use crate::ranges::{Method, range};

/// What was seen of each activation.
#[pyclass(name = "Calibration", module = "rustq._rustq")]
#[derive(Clone)]
pub(super) struct PyCalibration(pub Calibration);

#[pymethods]
impl PyCalibration {
    #[new]
    fn new() -> Self {
        Self(Calibration::default())
    }

    /// Counts one inference: the values of each named tensor. On several threads if `parallel`.
    #[pyo3(signature = (names, arrays, parallel=true))]
    fn observe(
        &mut self,
        py: Python<'_>,
        names: Vec<String>,
        arrays: Vec<PyReadonlyArrayDyn<'_, f32>>,
        parallel: bool,
    ) -> PyResult<()> {
        let slices: Vec<&[f32]> = arrays
            .iter()
            .map(|array| array.as_slice().map_err(|_| PyValueError::new_err("arrays must be contiguous")))
            .collect::<PyResult<_>>()?;
        let ranks = arrays.iter().map(|array| array.ndim());
        let parts = names.iter().zip(ranks).zip(slices);
        let activations: Vec<_> =
            parts.map(|((name, rank), values)| Activation { name, rank, values }).collect();
        py.detach(|| self.0.observe_run(&activations, parallel));
        Ok(())
    }

    /// Takes over what observers in the graph saw in so many inferences.
    fn collect(&mut self, py: Python<'_>, observers: PyRef<'_, PyObservers>, runs: u64) {
        let observers = &observers.0;
        py.detach(|| observers.drain_into(&mut self.0, runs));
    }

    /// What both saw together.
    fn merged(&self, other: PyRef<'_, Self>) -> Self {
        let mut both = self.clone();
        both.0.merge(&other.0);
        both
    }

    #[getter]
    fn runs(&self) -> u64 {
        self.0.runs()
    }

    #[getter]
    fn tensors(&self) -> Vec<String> {
        self.0.tensors().map(|(name, _)| name.to_owned()).collect()
    }

    /// Fails when a tensor held NaN or infinity.
    fn check_finite(&self) -> PyResult<()> {
        Ok(self.0.check_finite()?)
    }

    /// The range that a method chooses for a tensor.
    fn range(&self, tensor: &str, method: &str, percentile: f64, scheme: &str) -> PyResult<(f32, f32)> {
        let observer = self.0.get(tensor).ok_or_else(|| PyKeyError::new_err(tensor.to_owned()))?;
        let range = range(observer, parse_method(method, percentile)?, parse_scheme(scheme)?);
        Ok((range.min, range.max))
    }

    /// Counts in equal cells between the exact extremes of a tensor, and these.
    fn histogram(&self, tensor: &str, cells: usize) -> PyResult<(Vec<u64>, f32, f32)> {
        let observer = self.0.get(tensor).ok_or_else(|| PyKeyError::new_err(tensor.to_owned()))?;
        let range = observer.range().unwrap_or(Range::ZERO);
        Ok((observer.histogram(cells), range.min, range.max))
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.to_bytes())
    }

    /// Writes the file, wholly or not at all.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        Ok(py.detach(|| write_atomically(&path, &[self.0.to_bytes()]))?)
    }

    #[staticmethod]
    fn from_bytes(data: &[u8]) -> PyResult<Self> {
        Ok(Self(Calibration::from_bytes(data)?))
    }

    fn __eq__(&self, other: PyRef<'_, Self>) -> bool {
        self.0 == other.0
    }
}

/// Counters of the values of one model, which its own nodes fill while it runs.
#[pyclass(name = "Observers", module = "rustq._rustq", frozen)]
pub(super) struct PyObservers(Observers);

#[pymethods]
impl PyObservers {
    /// Counters for these values, each filled by up to `threads` threads at once.
    #[new]
    fn new(names: Vec<String>, threads: usize) -> Self {
        Self(Observers::new(names, threads))
    }

    /// The model with a node beside each value that counts it.
    fn inserted(&self, model: PyRef<'_, PyModel>) -> PyResult<PyModel> {
        Ok(PyModel(self.0.inserted(&model.0)?))
    }
}

/// The method of that name.
pub(super) fn parse_method(name: &str, percentile: f64) -> PyResult<Method> {
    Ok(match name {
        "auto" => Method::Auto,
        "mse" => Method::Mse,
        "minmax" => Method::MinMax,
        "percentile" => Method::Percentile(percentile),
        "entropy" => Method::Entropy,
        "ifmr" => Method::Ifmr,
        _ => return Err(PyValueError::new_err(format!("unknown method '{name}'"))),
    })
}

/// The scheme of that name.
pub(super) fn parse_scheme(name: &str) -> PyResult<Scheme> {
    match name {
        "asym" => Ok(Scheme::Asymmetric),
        "sym" => Ok(Scheme::Symmetric),
        _ => Err(PyValueError::new_err(format!("unknown scheme '{name}'; choose 'asym' or 'sym'"))),
    }
}
