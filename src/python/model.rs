//! `Model`: opening, looking at, folding and saving.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict};

use super::run;
use crate::fold::{evidence, fold};
use crate::functions::inlined_len;
use crate::graph::{Graph, NodeExt};
use crate::model::{Batch, ExternalData, Model};
use crate::onnx::{TensorShapeDimension, ValueInfoProto};
use crate::quantize::{channels_to_observe, values_to_observe};

/// An ONNX model. Immutable; every stage returns a new one.
#[pyclass(name = "Model", module = "rustq._rustq", frozen)]
#[derive(Clone)]
pub(super) struct PyModel(pub Model);

/// A dimension: a number, a name, or unknown.
#[derive(IntoPyObject)]
enum Dimension {
    Value(i64),
    Name(String),
    Unknown(Option<i64>),
}

type Value = (String, i32, Option<Vec<Dimension>>);

#[pymethods]
impl PyModel {
    /// Opens a file over mmap.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        run(py, || Model::open(path)).map(Self)
    }

    /// Decodes a serialized model.
    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: PyBackedBytes) -> PyResult<Self> {
        run(py, || Model::from_bytes(Bytes::from_owner(data))).map(Self)
    }

    /// Serializes the model.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        PyBytes::new_with(py, self.0.encoded_len()?, |buffer| {
            self.0.encode_to(buffer);
            Ok(())
        })
    }

    /// The model with references in the place of large weights that are mapped from files in one folder, and that folder.
    fn referring(&self, py: Python<'_>) -> PyResult<(Self, Option<PathBuf>)> {
        let (model, folder) = run(py, || self.0.referring())?;
        Ok((Self(model), folder))
    }

    /// Folds; returns the new model and what was done.
    fn fold<'py>(&self, py: Python<'py>) -> PyResult<(Self, Vec<Bound<'py, PyDict>>)> {
        let (model, records) = run(py, || fold(&self.0))?;
        let records = records.into_iter().map(|record| {
            let dict = PyDict::new(py);
            dict.set_item("node", record.node)?;
            dict.set_item("op_type", record.op_type)?;
            dict.set_item("rule", record.rule)?;
            dict.set_item("declined", record.declined)?;
            Ok(dict)
        });
        Ok((Self(model), records.collect::<PyResult<_>>()?))
    }

    /// Whether `fold` could do more if it knew shapes or what constant nodes compute.
    fn wants_evidence(&self, py: Python<'_>) -> PyResult<bool> {
        run(py, || Ok(evidence::wants_evidence(&self.0)))
    }

    /// The model without the data of its large weights, to infer shapes from.
    fn skeleton(&self, py: Python<'_>) -> PyResult<Self> {
        run(py, || evidence::skeleton(&self.0)).map(Self)
    }

    /// The model with dimensions below 0 left open.
    fn without_negative_dimensions(&self, py: Python<'_>) -> PyResult<Self> {
        run(py, || evidence::without_negative_dimensions(&self.0)).map(Self)
    }

    /// Whether a vector is longer than onnx can take for a shape in the memory there is.
    #[getter]
    fn has_long_vectors(&self) -> bool {
        evidence::has_long_vectors(self.0.graph())
    }

    /// The model with the descriptions of values of `other`.
    fn with_values_of(&self, py: Python<'_>, other: &Self) -> PyResult<Self> {
        run(py, || evidence::with_values_of(&self.0, &other.0)).map(Self)
    }

    /// The nodes that compute with constants alone, as a model; `None` if there are none.
    fn constant_part(&self, py: Python<'_>) -> PyResult<Option<Self>> {
        Ok(run(py, || evidence::constant_part(&self.0))?.map(Self))
    }

    /// The model with the initializers of `values` in the place of the nodes that compute them.
    fn with_constants(&self, py: Python<'_>, values: &Self) -> PyResult<Self> {
        run(py, || evidence::with_constants(&self.0, &values.0)).map(Self)
    }

    /// The model with every `HardSwish` in two nodes that have int8 kernels.
    fn spelled_out(&self) -> PyResult<Self> {
        Ok(Self(crate::composites::spelled_out(self.0.clone())?))
    }

    /// Fails when weights are not finite, naming them.
    fn check_weights(&self, py: Python<'_>) -> PyResult<()> {
        run(py, || Graph::new(self.0.graph()).check_weights(&Default::default()))
    }

    /// Names of the values that calibration has to observe.
    fn values_to_observe(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        run(py, || values_to_observe(&self.0))
    }

    /// The axis of the channels of each value whose channels calibration has to observe one by one.
    fn channels_to_observe(&self) -> HashMap<String, i64> {
        channels_to_observe(&self.0)
    }

    /// For each output, for each kind of values in it, the names of those that it is joined from.
    fn kinds_of_outputs(&self, py: Python<'_>) -> PyResult<Vec<Vec<Vec<String>>>> {
        let owned = |kind: Vec<&str>| kind.into_iter().map(str::to_owned).collect();
        let kinds = |kinds: Vec<Vec<&str>>| kinds.into_iter().map(owned).collect();
        run(py, || Ok(Graph::new(self.0.graph()).kinds_of_outputs().into_iter().map(kinds).collect()))
    }

    /// The model with only these values as outputs, their types left for the runtime to infer.
    fn with_outputs(&self, names: Vec<String>) -> PyResult<Self> {
        let mut proto = self.0.clone().into_proto();
        let graph = proto.graph.get_or_insert_default();
        let value = |name| ValueInfoProto { name: Some(name), ..Default::default() };
        graph.output = names.into_iter().map(value).collect();
        Ok(Self(Model::from_proto(proto)?))
    }

    /// The model with fixed dimensions of the inputs named, and without descriptions of other values.
    fn with_input_shapes(&self, shapes: BTreeMap<String, Vec<i64>>) -> PyResult<Self> {
        Ok(Self(evidence::with_input_shapes(&self.0, &shapes)?))
    }

    /// The model with the descriptions of values and outputs of `other`.
    fn described_as(&self, other: &Self) -> PyResult<Self> {
        Ok(Self(evidence::described_as(&self.0, &other.0)?))
    }

    /// The model with the metadata, training information, documentation and producer of `other`, which a conversion may have dropped.
    fn with_metadata_of(&self, other: &Self) -> PyResult<Self> {
        let mut proto = self.0.clone().into_proto();
        let other = other.0.proto();
        proto.metadata_props.clone_from(&other.metadata_props);
        proto.training_info.clone_from(&other.training_info);
        proto.doc_string.clone_from(&other.doc_string);
        proto.producer_name.clone_from(&other.producer_name);
        proto.producer_version.clone_from(&other.producer_version);
        proto.domain.clone_from(&other.domain);
        proto.model_version = other.model_version;
        Ok(Self(Model::from_proto(proto)?))
    }

    /// Inputs that a caller feeds: name, element type, shape.
    #[getter]
    fn inputs(&self) -> Vec<Value> {
        let graph = self.0.graph();
        let fed = |input: &&ValueInfoProto| !graph.initializer.iter().any(|t| t.name() == input.name());
        graph.input.iter().filter(fed).map(describe).collect()
    }

    /// Outputs: name, element type, shape.
    #[getter]
    fn outputs(&self) -> Vec<Value> {
        self.0.graph().output.iter().map(describe).collect()
    }

    #[getter]
    fn has_functions(&self) -> bool {
        !self.0.proto().functions.is_empty()
    }

    /// Bytes of the model with its functions inlined, about.
    fn inlined_len(&self, py: Python<'_>) -> PyResult<usize> {
        run(py, || inlined_len(&self.0))
    }

    #[getter]
    fn opset(&self) -> Option<i64> {
        self.0.opset()
    }

    #[getter]
    fn ir_version(&self) -> i64 {
        self.0.proto().ir_version()
    }

    #[getter]
    fn producer(&self) -> &str {
        self.0.proto().producer_name()
    }

    /// Every node of the main graph: its name, or its first output where it has none, and its operator.
    #[getter]
    fn nodes(&self) -> Vec<(String, String)> {
        let nodes = &self.0.graph().node;
        nodes.iter().map(|node| (node.label().to_owned(), node.op_type().to_owned())).collect()
    }

    #[getter]
    fn op_counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for node in &self.0.graph().node {
            *counts.entry(node.op_type().to_owned()).or_default() += 1;
        }
        counts
    }

    #[getter]
    fn weight_bytes(&self) -> usize {
        self.0.weight_bytes()
    }

    #[getter]
    fn byte_size(&self) -> usize {
        prost::Message::encoded_len(self.0.proto())
    }

    #[getter]
    fn undeclared_bytes(&self) -> usize {
        self.0.undeclared_bytes()
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// What a file is to hold.
#[derive(FromPyObject)]
pub(super) enum Content<'py> {
    Model(Bound<'py, PyModel>),
    Bytes(PyBackedBytes),
}

/// Writes files that belong together, all or none of them, models with external data if asked to; returns their paths. They
/// are on the disk then, unless they are `scratch`.
#[pyfunction]
#[pyo3(signature = (files, external_data=None, scratch=false))]
pub(super) fn write_together(
    py: Python<'_>,
    files: Vec<(PathBuf, Content<'_>)>,
    external_data: Option<bool>,
    scratch: bool,
) -> PyResult<Vec<PathBuf>> {
    let external = match external_data {
        None => ExternalData::IfNeeded,
        Some(false) => ExternalData::Never,
        Some(true) => ExternalData::Always,
    };
    let mut batch = Batch::new(scratch);
    for (path, content) in files {
        match content {
            Content::Model(model) => batch.model(&path, &model.get().0, external)?,
            Content::Bytes(bytes) => batch.file(path, vec![Bytes::from_owner(bytes)]),
        }
    }
    run(py, || batch.write())
}

fn describe(value: &ValueInfoProto) -> Value {
    let tensor = value.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    let shape = tensor.and_then(|t| t.shape.as_ref());
    let dimension = |d: &TensorShapeDimension| match (d.dim_value, &d.dim_param) {
        // Exporters also write a negative number for "any".
        (Some(value), _) if value >= 0 => Dimension::Value(value),
        (_, Some(name)) if !name.is_empty() => Dimension::Name(name.clone()),
        _ => Dimension::Unknown(None),
    };
    (
        value.name().to_owned(),
        tensor.map_or(0, |t| t.elem_type()),
        shape.map(|s| s.dim.iter().map(dimension).collect()),
    )
}
