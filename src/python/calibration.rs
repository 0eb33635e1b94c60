//! `Calibration`: filling observers from arrays, and asking them.

use std::collections::HashMap;
use std::path::PathBuf;

use numpy::{PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::model::PyModel;
use crate::calibration::{Activation, Calibration};
use crate::error::contained;
use crate::model::write_atomically;
use crate::observation::{Observers, Wanted};
use crate::qparams::{Range, Scheme};
use crate::ranges::{Method, range};

/// What was seen of each activation.
#[pyclass(name = "Calibration", module = "rustq._rustq")]
#[derive(Clone)]
pub(super) struct PyCalibration(pub Calibration);

#[pymethods]
impl PyCalibration {
    /// Nothing seen yet, of a model if one is given.
    #[new]
    #[pyo3(signature = (model=None))]
    fn new(py: Python<'_>, model: Option<PyRef<'_, PyModel>>) -> PyResult<Self> {
        let Some(model) = model else { return Ok(Self(Calibration::default())) };
        let model = &model.0;
        super::compute(py, || Calibration::of(model)).map(Self)
    }

    /// Counts one inference: the values of each named tensor, and of each of its channels along the axis in `channels`.
    /// On several threads if `parallel`.
    #[pyo3(signature = (names, arrays, parallel=true, channels=HashMap::new()))]
    fn observe(
        &mut self,
        py: Python<'_>,
        names: Vec<String>,
        arrays: Vec<PyReadonlyArrayDyn<'_, f32>>,
        parallel: bool,
        channels: HashMap<String, i64>,
    ) -> PyResult<()> {
        let slices: Vec<&[f32]> = arrays
            .iter()
            .map(|array| array.as_slice().map_err(|_| PyValueError::new_err("arrays must be contiguous")))
            .collect::<PyResult<_>>()?;
        let shapes = arrays.iter().map(|array| array.shape());
        let parts = names.iter().zip(shapes).zip(slices);
        let activations: Vec<_> = parts
            .map(|((name, shape), values)| {
                let channels = channels.get(name).copied();
                Activation { name, shape, values, channels }
            })
            .collect();
        super::run(py, || self.0.observe_run(&activations, parallel))
    }

    /// Takes over what observers in the graph saw in so many inferences.
    fn collect(&mut self, py: Python<'_>, observers: PyRef<'_, PyObservers>, runs: u64) -> PyResult<()> {
        let observers = &observers.0;
        super::run(py, || observers.drain_into(&mut self.0, runs))
    }

    /// Takes over what another saw, which is empty then.
    fn add(&mut self, py: Python<'_>, mut other: PyRefMut<'_, Self>) -> PyResult<()> {
        let other = std::mem::take(&mut other.0);
        super::run(py, || self.0.merge(other))
    }

    /// Adds to the number of inferences.
    fn add_runs(&mut self, runs: u64) {
        self.0.add_runs(runs);
    }

    /// What both saw together.
    fn merged(&self, other: PyRef<'_, Self>) -> PyResult<Self> {
        let mut both = self.clone();
        both.0.merge(other.0.clone())?;
        Ok(both)
    }

    /// Fails when this was made from another model, saying what differs.
    fn check_model(&self, py: Python<'_>, model: PyRef<'_, PyModel>) -> PyResult<()> {
        let model = &model.0;
        super::run(py, || self.0.check_model(model))
    }

    /// Axis, smallest and largest value of each channel of a tensor; `None` if they were not asked for.
    fn channels(&self, tensor: &str) -> Option<(i64, Vec<f32>, Vec<f32>)> {
        let channels = self.0.channels(tensor)?;
        Some((channels.axis(), channels.min().to_vec(), channels.max().to_vec()))
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
        let (method, scheme) = (parse_method(method, percentile)?, parse_scheme(scheme)?);
        let range = contained(|| Ok(range(observer, method, scheme)))?;
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
        super::run(py, || write_atomically(&path, self.0.to_bytes()))
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
        super::run(py, || Calibration::from_bytes(data)).map(Self)
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
    /// Counters for these values, of which `lanes` are computed at once, each by `threads` threads; for those in
    /// `channels`, of each channel along that axis too.
    #[new]
    #[pyo3(signature = (names, lanes, threads, channels=HashMap::new()))]
    fn new(names: Vec<String>, lanes: usize, threads: usize, channels: HashMap<String, i64>) -> Self {
        let wanted = |name: String| Wanted { channels: channels.get(&name).copied(), name };
        Self(Observers::new(names.into_iter().map(wanted), lanes, threads))
    }

    /// The model with a node beside each value that counts it.
    fn inserted(&self, model: PyRef<'_, PyModel>) -> PyResult<PyModel> {
        Ok(PyModel(self.0.inserted(&model.0)?))
    }

    /// What ONNX Runtime made of that model by its optimizations, with nodes at values in blocked layout; `None` if it has
    /// none of these.
    fn moved(&self, model: PyRef<'_, PyModel>) -> PyResult<Option<PyModel>> {
        Ok(self.0.moved(&model.0)?.map(PyModel))
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
