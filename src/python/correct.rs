//! `LayerInputs`: taking in what layers multiply.

use std::collections::HashMap;

use numpy::{PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::model::PyModel;
use crate::correct::LayerInputs;

/// Means and second moments of the inputs of each layer of a folded model.
#[pyclass(name = "LayerInputs", module = "rustq._rustq")]
pub(super) struct PyLayerInputs(pub LayerInputs);

#[pymethods]
impl PyLayerInputs {
    #[new]
    #[pyo3(signature = (model, products=true))]
    fn new(model: PyRef<'_, PyModel>, products: bool) -> Self {
        Self(LayerInputs::new(&model.0, products))
    }

    /// Names of the values that have to be seen.
    #[getter]
    fn values(&self) -> Vec<String> {
        self.0.values()
    }

    /// Takes in one inference: the values of each named tensor.
    fn observe(
        &mut self,
        py: Python<'_>,
        names: Vec<String>,
        arrays: Vec<PyReadonlyArrayDyn<'_, f32>>,
    ) -> PyResult<()> {
        let mut values: HashMap<&str, (&[usize], &[f32])> = HashMap::new();
        for (name, array) in names.iter().zip(&arrays) {
            let elements =
                array.as_slice().map_err(|_| PyValueError::new_err("arrays must be contiguous"))?;
            values.insert(name, (array.shape(), elements));
        }
        super::compute(py, || self.0.observe(|name| values.get(name).copied()))
    }
}
