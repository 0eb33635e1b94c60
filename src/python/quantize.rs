//! `quantize_static`: options in, model and records out.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::calibration::{PyCalibration, parse_method, parse_scheme};
use super::correct::PyLayerInputs;
use super::given::PyGiven;
use super::model::PyModel;
use crate::correct::Corrections;
use crate::qparams::{Dtype, QuantParams, Range};
use crate::quantize::low_bit::{self, Codec, Format};
use crate::quantize::{self, LayerRecord, Options, Quantized, TensorRecord, WeightGrid};

/// The model, a record for each layer, and notes.
pub(super) type Outcome<'py> = (PyModel, Vec<Bound<'py, PyDict>>, Vec<String>);

/// Quantizes a folded model by what calibration saw.
#[pyfunction]
#[pyo3(signature = (model, calibration, inputs=None, *, scheme, method, percentile, per_channel, avoid_saturation, noise_price, exclude, everything, rounding="nearest", bias_correction=false, equalize=false, by_channel=false, weights=None, wide=false, given=None))]
#[allow(clippy::too_many_arguments)]
pub(super) fn quantize_static<'py>(
    py: Python<'py>,
    model: PyRef<'py, PyModel>,
    calibration: PyRef<'py, PyCalibration>,
    inputs: Option<PyRef<'py, PyLayerInputs>>,
    scheme: &str,
    method: &str,
    percentile: f64,
    per_channel: bool,
    avoid_saturation: bool,
    noise_price: f64,
    exclude: Vec<String>,
    everything: bool,
    rounding: &str,
    bias_correction: bool,
    equalize: bool,
    by_channel: bool,
    weights: Option<PyFormat>,
    wide: bool,
    given: Option<PyRef<'py, PyGiven>>,
) -> PyResult<Outcome<'py>> {
    let options = Options {
        scheme: parse_scheme(scheme)?,
        wide,
        method: parse_method(method, percentile)?,
        weights: WeightGrid {
            per_channel,
            pairs: avoid_saturation,
            format: weights.map(format).transpose()?,
        },
        noise_price,
        equalize,
        by_channel,
        corrections: Corrections { rounding: rounding == "learned", bias: bias_correction },
        exclude: exclude.into_iter().collect(),
        everything,
        given: given.map(|given| given.0.clone()).unwrap_or_default(),
    };
    let (model, calibration, inputs) = (&model.0, &calibration.0, inputs.as_ref().map(|i| &i.0));
    let done = super::run(py, || quantize::quantize_static(model, calibration, inputs, &options))?;
    outcome(py, done)
}

/// Quantizes the weights of a folded model; activations follow at run time.
#[pyfunction]
#[pyo3(signature = (model, *, per_channel, avoid_saturation, exclude))]
pub(super) fn quantize_dynamic<'py>(
    py: Python<'py>,
    model: PyRef<'py, PyModel>,
    per_channel: bool,
    avoid_saturation: bool,
    exclude: Vec<String>,
) -> PyResult<Outcome<'py>> {
    let (model, exclude) = (&model.0, exclude.into_iter().collect());
    let grid = WeightGrid { per_channel, pairs: avoid_saturation, format: None };
    let done = super::run(py, || quantize::quantize_dynamic(model, grid, &exclude))?;
    outcome(py, done)
}

/// A number format, inputs that share a scale, and whether only standard operators may be written.
pub(super) type PyFormat = (String, Option<usize>, bool);

pub(super) fn format((name, block, standard): PyFormat) -> PyResult<Format> {
    let unknown = || PyValueError::new_err(format!("there is no number format '{name}'"));
    Ok(Format { codec: Codec::named(&name).ok_or_else(unknown)?, block, standard, spared: 0 })
}

/// Codes the weights of a folded model; activations stay float.
#[pyfunction]
#[pyo3(signature = (model, inputs=None, *, weights, exclude, rounding="nearest", bias_correction=false))]
pub(super) fn quantize_weights<'py>(
    py: Python<'py>,
    model: PyRef<'py, PyModel>,
    inputs: Option<PyRef<'py, PyLayerInputs>>,
    weights: PyFormat,
    exclude: Vec<String>,
    rounding: &str,
    bias_correction: bool,
) -> PyResult<Outcome<'py>> {
    let settings = low_bit::Settings {
        format: format(weights)?,
        runtime: &low_bit::ONNX_RUNTIME,
        corrections: Corrections { rounding: rounding == "learned", bias: bias_correction },
        exclude: exclude.into_iter().collect(),
    };
    let (model, inputs) = (&model.0, inputs.as_ref().map(|i| &i.0));
    let done = super::run(py, || low_bit::quantize_weights(model, inputs, &settings))?;
    outcome(py, done)
}

pub(super) fn outcome(py: Python<'_>, done: Quantized) -> PyResult<Outcome<'_>> {
    let layers = done.layers.iter().map(|layer| layer_dict(py, layer)).collect::<PyResult<_>>()?;
    Ok((PyModel(done.model), layers, done.notes))
}

pub(super) fn layer_dict<'py>(py: Python<'py>, layer: &LayerRecord) -> PyResult<Bound<'py, PyDict>> {
    let tensors = |records: &[TensorRecord]| -> PyResult<Vec<_>> {
        let quantized = records.iter().filter_map(|record| Some((record, record.params.as_ref()?)));
        quantized.map(|(record, params)| tensor_dict(py, record, params)).collect()
    };
    let sqnr = layer.inputs.iter().chain(&layer.outputs).filter_map(|t| t.sqnr_db);
    let dict = PyDict::new(py);
    dict.set_item("name", &layer.name)?;
    dict.set_item("op_type", &layer.op_type)?;
    dict.set_item("quantized", layer.quantized)?;
    dict.set_item("reason", &layer.reason)?;
    dict.set_item("weights", &layer.weights)?;
    dict.set_item("macs", layer.macs.map(|macs| macs.round() as u64))?;
    dict.set_item("weight_sqnr_db", layer.weight_sqnr_db)?;
    dict.set_item("corrections", layer.corrections.clone())?;
    dict.set_item("activation_sqnr_db", sqnr.min_by(f64::total_cmp))?;
    dict.set_item("inputs", tensors(&layer.inputs)?)?;
    dict.set_item("outputs", tensors(&layer.outputs)?)?;
    Ok(dict)
}

fn tensor_dict<'py>(
    py: Python<'py>,
    record: &TensorRecord,
    params: &QuantParams,
) -> PyResult<Bound<'py, PyDict>> {
    let covered = (0..params.scale.len()).map(|channel| params.covers(channel));
    let covered = covered
        .fold(Range::ZERO, |all, each| Range { min: all.min.min(each.min), max: all.max.max(each.max) });
    let dict = PyDict::new(py);
    dict.set_item("name", &record.name)?;
    dict.set_item("range", (covered.min, covered.max))?;
    dict.set_item("scale", &params.scale)?;
    dict.set_item("zero_point", &params.zero_point)?;
    dict.set_item("axis", params.axis)?;
    let dtype = match params.dtype {
        Dtype::Int8 => "int8",
        Dtype::Uint8 => "uint8",
        Dtype::Int16 => "int16",
        Dtype::Uint16 => "uint16",
        Dtype::Int32 => "int32",
    };
    dict.set_item("dtype", dtype)?;
    Ok(dict)
}
