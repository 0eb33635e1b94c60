//! ncnn's files: options in, contents out.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::calibration::PyCalibration;
use super::export::Choices;
use super::model::PyModel;
use super::quantize::layer_dict;
use crate::export::ncnn::{self, Format, Layer, Unsupported};

/// The text of `.param`, the content of `.bin`, the text of `.table`, a record for each layer, notes, and the simulation.
type Files<'py> =
    (String, Bound<'py, PyBytes>, Option<String>, Vec<Bound<'py, PyDict>>, Vec<String>, PyModel);

/// A layer's type and name, its inputs and outputs, whether it is on integers, and its bytes of weights.
type Row = (String, String, Vec<String>, Vec<String>, bool, Option<usize>);

/// Exports a folded model with fixed shapes.
#[pyfunction]
#[pyo3(signature = (model, calibration, choices, *, weights))]
pub(super) fn ncnn_export<'py>(
    py: Python<'py>,
    model: PyRef<'py, PyModel>,
    calibration: Option<PyRef<'py, PyCalibration>>,
    choices: Choices<'py>,
    weights: &str,
) -> PyResult<Files<'py>> {
    let (format, options) = (parse_format(weights)?, choices.options()?);
    let (model, calibration) = (&model.0, calibration.as_ref().map(|c| &c.0));
    let done = super::run(py, || ncnn::export(model, calibration, format, &options))?;
    let layers = done.layers.iter().map(|layer| layer_dict(py, layer)).collect::<PyResult<_>>()?;
    let bin = PyBytes::new(py, &done.bin);
    Ok((done.param, bin, done.table, layers, done.notes, PyModel(done.simulation)))
}

/// Refuses a model that cannot be exported.
#[pyfunction]
pub(super) fn ncnn_check(py: Python<'_>, model: PyRef<'_, PyModel>) -> PyResult<()> {
    let model = &model.0;
    super::run(py, || ncnn::check(model))
}

/// Everything that cannot be exported: node, operator, reason, and what to do.
#[pyfunction]
pub(super) fn ncnn_unsupported(
    py: Python<'_>,
    model: PyRef<'_, PyModel>,
) -> PyResult<Vec<(String, String, String, String)>> {
    let model = &model.0;
    let all = super::run(py, || ncnn::unsupported(model))?;
    Ok(all
        .into_iter()
        .map(|Unsupported { node, op_type, reason, hint }| (node, op_type, reason, hint))
        .collect())
}

/// Reads and checks files of ncnn.
#[pyfunction]
pub(super) fn ncnn_read(py: Python<'_>, param: &str, bin: Option<&[u8]>) -> PyResult<Vec<Row>> {
    let contents = super::run(py, || ncnn::read(param, bin))?;
    let mut bytes = contents.bytes.into_iter();
    let row = |layer: Layer| {
        let int8 = layer.on_integers();
        (layer.kind, layer.name, layer.inputs, layer.outputs, int8, bytes.next())
    };
    Ok(contents.layers.into_iter().map(row).collect())
}

fn parse_format(name: &str) -> PyResult<Format> {
    match name {
        "float32" => Ok(Format::Float32),
        "float16" => Ok(Format::Float16),
        "int8" => Ok(Format::Int8),
        _ => Err(PyValueError::new_err(format!("unknown weights '{name}'"))),
    }
}
