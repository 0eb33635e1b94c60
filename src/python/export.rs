//! Quantizing for other runtimes: options in; model, records, notes and the files beside the model out.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::calibration::{PyCalibration, parse_method, parse_scheme};
use super::correct::PyLayerInputs;
use super::given::PyGiven;
use super::model::PyModel;
use super::quantize::{Outcome, PyFormat, format, outcome};
use crate::correct::Corrections;
use crate::export::{Changes, Options, ascend, tensorrt};

/// What every runtime can be asked for, a dict.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(super) struct Choices<'py> {
    method: String,
    percentile: f64,
    per_channel: bool,
    noise_price: f64,
    exclude: Vec<String>,
    equalize: bool,
    rounding: String,
    bias_correction: bool,
    inputs: Option<PyRef<'py, PyLayerInputs>>,
    given: Option<PyRef<'py, PyGiven>>,
}

impl Choices<'_> {
    /// The same for the core.
    pub fn options(&self) -> PyResult<Options<'_>> {
        let corrections = Corrections { rounding: self.rounding == "learned", bias: self.bias_correction };
        let inputs = self.inputs.as_ref().map(|inputs| &inputs.0);
        Ok(Options {
            method: parse_method(&self.method, self.percentile)?,
            per_channel: self.per_channel,
            noise_price: self.noise_price,
            exclude: self.exclude.iter().cloned().collect(),
            changes: Changes { equalize: self.equalize, inputs, corrections },
            given: self.given.as_ref().map(|given| given.0.clone()).unwrap_or_default(),
        })
    }
}

/// Quantizes a folded model for TensorRT; also returns a calibration cache for that version of it.
#[pyfunction]
#[pyo3(signature = (model, calibration, choices, *, half, version))]
pub(super) fn quantize_tensorrt<'py>(
    py: Python<'py>,
    model: PyRef<'py, PyModel>,
    calibration: PyRef<'py, PyCalibration>,
    choices: Choices<'py>,
    half: bool,
    version: &str,
) -> PyResult<(Outcome<'py>, String)> {
    let options = choices.options()?;
    let settings = tensorrt::Settings { half, version: version.parse().map_err(PyValueError::new_err)? };
    let (model, calibration) = (&model.0, &calibration.0);
    let done = super::run(py, || tensorrt::quantize(model, calibration, &options, settings))?;
    Ok((outcome(py, done.quantized)?, done.cache))
}

/// Makes the weights of the matrix products of a folded model 4-bit codes for TensorRT; activations stay float.
#[pyfunction]
#[pyo3(signature = (model, weights, choices))]
pub(super) fn quantize_tensorrt_weights<'py>(
    py: Python<'py>,
    model: PyRef<'py, PyModel>,
    weights: PyFormat,
    choices: Choices<'py>,
) -> PyResult<Outcome<'py>> {
    let (format, options) = (format(weights)?, choices.options()?);
    let model = &model.0;
    outcome(py, super::run(py, || tensorrt::quantize_weights(model, format, options))?)
}

/// What TensorRT would refuse or misread of a quantized model.
#[pyfunction]
pub(super) fn lint_tensorrt(py: Python<'_>, model: PyRef<'_, PyModel>) -> PyResult<Vec<String>> {
    let model = &model.0;
    super::compute(py, || tensorrt::lint(model))
}

/// Finds the scales of a folded model for Ascend: the float model, its record file, and the same as pairs.
#[pyfunction]
#[pyo3(signature = (model, calibration, choices, *, scheme))]
pub(super) fn quantize_ascend<'py>(
    py: Python<'py>,
    model: PyRef<'py, PyModel>,
    calibration: PyRef<'py, PyCalibration>,
    choices: Choices<'py>,
    scheme: &str,
) -> PyResult<(Outcome<'py>, String, PyModel)> {
    let (options, scheme) = (choices.options()?, parse_scheme(scheme)?);
    let (model, calibration) = (&model.0, &calibration.0);
    let done = super::run(py, || ascend::quantize(model, calibration, &options, scheme))?;
    Ok((outcome(py, done.quantized)?, done.record, PyModel(done.explicit)))
}
