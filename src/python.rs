//! The Python extension `rustq._rustq`: the only files that know PyO3. Policy (defaults, names, checks) is in Python.

mod calibration;
mod correct;
mod export;
mod given;
mod kernels;
mod model;
mod ncnn;
mod quantize;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

use crate::error::{Error, Result, contained, keep_panics_quiet};

pyo3::import_exception!(rustq.errors, ModelError);
pyo3::import_exception!(rustq.errors, DataError);
pyo3::import_exception!(rustq.errors, InternalError);
pyo3::import_exception!(rustq.errors, UnsupportedError);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let message = shortened(error.to_string());
        match error {
            // OSError picks FileNotFoundError, PermissionError, … by the number.
            Error::Io { path, source } => match source.raw_os_error() {
                Some(number) => PyOSError::new_err((number, describe(&source), path)),
                None => PyOSError::new_err(message),
            },
            Error::ExternalData { tensor, path, source } => match source.raw_os_error() {
                Some(number) => {
                    let reason = format!("{}, which holds tensor '{tensor}'", describe(&source));
                    PyOSError::new_err((number, reason, path))
                }
                None => PyOSError::new_err(message),
            },
            Error::NotOnnx { .. } | Error::Model(_) | Error::Tensor { .. } => ModelError::new_err(message),
            Error::Data(_) => DataError::new_err(message),
            Error::Defect(_) => InternalError::new_err(message),
            Error::Unsupported(_) => UnsupportedError::new_err(message),
        }
    }
}

/// Runs `work` while other Python threads run. A panic in it is an `InternalError`.
fn run<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    Ok(py.detach(|| contained(work))?)
}

/// [`run`] for work that cannot fail.
fn compute<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    run(py, || Ok(work()))
}

/// A message in one line, whatever its names hold, and without the middle of one that goes on for ever.
fn shortened(message: String) -> String {
    const END: usize = 500;
    let in_one_line = |c: char| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() };
    let message: String = message.chars().map(in_one_line).collect();
    let count = message.chars().count();
    if count <= 3 * END {
        return message;
    }
    let begin: String = message.chars().take(END).collect();
    let end: String = message.chars().skip(count - END).collect();
    format!("{begin} … {end}")
}

/// What the operating system says, without the number that Python prints itself.
fn describe(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// Gives memory that was freed back to the system.
#[pyfunction]
fn trim_memory(py: Python<'_>) {
    py.detach(crate::mapped::trim);
}

/// The native part of rustq.
#[pymodule(gil_used = true)]
fn _rustq(module: &Bound<'_, PyModule>) -> PyResult<()> {
    keep_panics_quiet();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("MINIMUM_OPSET", crate::quantize::MINIMUM_OPSET)?;
    module.add("MISSING_INSTRUCTIONS", crate::processor::missing_instructions())?;
    module.add_class::<model::PyModel>()?;
    module.add_class::<calibration::PyCalibration>()?;
    module.add_class::<calibration::PyObservers>()?;
    module.add_class::<correct::PyLayerInputs>()?;
    module.add_class::<given::PyGiven>()?;
    module.add_class::<kernels::PyParams>()?;
    module.add_function(wrap_pyfunction!(model::write_together, module)?)?;
    module.add_function(wrap_pyfunction!(quantize::quantize_static, module)?)?;
    module.add_function(wrap_pyfunction!(quantize::quantize_dynamic, module)?)?;
    module.add_function(wrap_pyfunction!(quantize::quantize_weights, module)?)?;
    module.add_function(wrap_pyfunction!(export::quantize_tensorrt, module)?)?;
    module.add_function(wrap_pyfunction!(export::quantize_tensorrt_weights, module)?)?;
    module.add_function(wrap_pyfunction!(export::lint_tensorrt, module)?)?;
    module.add_function(wrap_pyfunction!(export::quantize_ascend, module)?)?;
    module.add_function(wrap_pyfunction!(ncnn::ncnn_export, module)?)?;
    module.add_function(wrap_pyfunction!(ncnn::ncnn_check, module)?)?;
    module.add_function(wrap_pyfunction!(ncnn::ncnn_unsupported, module)?)?;
    module.add_function(wrap_pyfunction!(ncnn::ncnn_read, module)?)?;
    module.add_function(wrap_pyfunction!(kernels::quantize, module)?)?;
    module.add_function(wrap_pyfunction!(kernels::dequantize, module)?)?;
    module.add_function(wrap_pyfunction!(kernels::fake_quantize, module)?)?;
    module.add_function(wrap_pyfunction!(kernels::min_max, module)?)?;
    module.add_function(wrap_pyfunction!(trim_memory, module)?)?;
    module.add_function(wrap_pyfunction!(kernels::histogram, module)?)?;
    module.add_function(wrap_pyfunction!(kernels::quantization_error, module)?)?;
    module.add_function(wrap_pyfunction!(kernels::absmax_quantize, module)?)?;
    module.add_function(wrap_pyfunction!(kernels::pack_int4, module)?)?;
    module.add_function(wrap_pyfunction!(kernels::unpack_int4, module)?)?;
    Ok(())
}
