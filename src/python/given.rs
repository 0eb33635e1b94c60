//! `Given`: the quantization that a model comes with.

use pyo3::prelude::*;

use super::model::PyModel;
use super::run;
use crate::given::{Given, take_constants, take_pairs};

/// Parameters that a model came with.
#[pyclass(name = "Given", module = "rustq._rustq", frozen)]
pub(super) struct PyGiven(pub Given);

#[pymethods]
impl PyGiven {
    /// The model with float constants in the place of quantized ones, and their parameters.
    #[staticmethod]
    fn of_constants(py: Python<'_>, model: PyRef<'_, PyModel>) -> PyResult<(PyModel, Self)> {
        let model = &model.0;
        let (model, given) = run(py, || take_constants(model))?;
        Ok((PyModel(model), Self(given)))
    }

    /// The model without the pairs of its activations, and their parameters beside these.
    fn and_pairs(&self, py: Python<'_>, model: PyRef<'_, PyModel>) -> PyResult<(PyModel, Self)> {
        let (model, given) = (&model.0, self.0.clone());
        let (model, given) = run(py, || take_pairs(model, given))?;
        Ok((PyModel(model), Self(given)))
    }

    /// How many activations and constants have parameters.
    #[getter]
    fn counts(&self) -> (usize, usize) {
        self.0.counts()
    }
}
