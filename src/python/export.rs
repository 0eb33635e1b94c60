//! Quantizing for other runtimes: options in; model, records, notes and the files beside the model out.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::calibration::{PyCalibration, parse_method, parse_scheme};
use super::model::PyModel;
use super::quantize::{Outcome, outcome};
use crate::export::{Options, ascend, tensorrt};

/// Quantizes a folded model for TensorRT; also returns a calibration cache for that version of it.
#[pyfunction]
#[pyo3(signature = (model, calibration, *, method, percentile, per_channel, exclude, half, version, noise_price))]
#[allow(clippy::too_many_arguments)]
pub(super) fn quantize_tensorrt<'py>(
    py: Python<'py>,
    model: PyRef<'py, PyModel>,
    calibration: PyRef<'py, PyCalibration>,
    method: &str,
    percentile: f64,
    per_channel: bool,
    exclude: Vec<String>,
    half: bool,
    version: &str,
    noise_price: f64,
) -> PyResult<(Outcome<'py>, String)> {
    let options = options((method, percentile), per_channel, exclude)?;
    let version = version.parse().map_err(PyValueError::new_err)?;
    let settings = tensorrt::Settings { half, version, noise_price };
    let (model, calibration) = (&model.0, &calibration.0);
    let done = super::run(py, || tensorrt::quantize(model, calibration, &options, settings))?;
    Ok((outcome(py, done.quantized)?, done.cache))
}

fn options((method, percentile): (&str, f64), per_channel: bool, exclude: Vec<String>) -> PyResult<Options> {
    let method = parse_method(method, percentile)?;
    Ok(Options { method, per_channel, exclude: exclude.into_iter().collect() })
}

/// What TensorRT would refuse or misread of a quantized model.
#[pyfunction]
pub(super) fn lint_tensorrt(py: Python<'_>, model: PyRef<'_, PyModel>) -> PyResult<Vec<String>> {
    let model = &model.0;
    super::compute(py, || tensorrt::lint(model))
}

/// Finds the scales of a folded model for Ascend: the float model, its record file, and the same as pairs.
#[pyfunction]
#[pyo3(signature = (model, calibration, *, scheme, method, percentile, per_channel, exclude))]
#[allow(clippy::too_many_arguments)]
pub(super) fn quantize_ascend<'py>(
    py: Python<'py>,
    model: PyRef<'py, PyModel>,
    calibration: PyRef<'py, PyCalibration>,
    scheme: &str,
    method: &str,
    percentile: f64,
    per_channel: bool,
    exclude: Vec<String>,
) -> PyResult<(Outcome<'py>, String, PyModel)> {
    let options = options((method, percentile), per_channel, exclude)?;
    let scheme = parse_scheme(scheme)?;
    let (model, calibration) = (&model.0, &calibration.0);
    let done = super::run(py, || ascend::quantize(model, calibration, &options, scheme))?;
    Ok((outcome(py, done.quantized)?, done.record, PyModel(done.explicit)))
}
