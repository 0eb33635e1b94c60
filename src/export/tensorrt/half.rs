//! Everything that is not int8 in float16, for TensorRT's strongly typed networks, which run each operator in the type the
//! file gives it.
//!
//! Inputs and outputs stay float32, behind and in front of a Cast.

use half::f16;

use super::lint::HALF_OPSET;
use crate::error::{Error, Result};
use crate::graph::{NodeExt, subgraphs};
use crate::model::Model;
use crate::onnx::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use crate::patch::{int_attribute, node};
use crate::tensor::{DataType, floats, shape, tensor};

const FLOAT: i32 = DataType::Float as i32;
const HALF: i32 = DataType::Float16 as i32;

/// Inputs that are float32 whatever the others are: of which operator, from which position to which.
const STAY_FLOAT: &[(&str, std::ops::Range<usize>)] =
    &[("Resize", 1..3), ("Upsample", 1..2), ("NonMaxSuppression", 0..5)];

/// `model` with float16 in the place of float32.
///
/// # Errors
/// [`Error::Model`] when the operator set is too old, or the model has bodies of If, Loop and Scan;
/// [`Error::Tensor`] for a constant beyond the range of float16.
pub(super) fn lowered(model: Model) -> Result<Model> {
    if model.opset().is_none_or(|opset| opset < HALF_OPSET) {
        return Err(Error::Model(format!("float16 needs operator set {HALF_OPSET}")));
    }
    let mut proto = model.into_proto();
    let graph = proto.graph.get_or_insert_default();
    if let Some(node) =
        graph.node.iter().find(|node| node.attribute.iter().flat_map(subgraphs).next().is_some())
    {
        let reason = format!("'{}': the bodies of If, Loop and Scan cannot be made float16", node.label());
        return Err(Error::Model(reason));
    }
    let kept = kept_float(graph);
    for tensor in &mut graph.initializer {
        if tensor.data_type() == FLOAT && !kept.contains(tensor.name()) {
            *tensor = half_tensor(tensor)?;
        }
    }
    for node in &mut graph.node {
        lower_attributes(node)?;
    }
    graph.value_info.iter_mut().filter(|value| !kept.contains(value.name())).for_each(lower_type);
    cast_inputs(graph);
    cast_outputs(graph);
    Model::from_proto(proto)
}

/// Constants that an operator wants in float32.
fn kept_float(graph: &GraphProto) -> std::collections::HashSet<String> {
    let of_node = |node: &NodeProto| {
        let row = STAY_FLOAT.iter().find(|(op_type, _)| node.is(op_type));
        let positions = row.map_or(0..0, |(_, positions)| positions.clone());
        positions.filter_map(|i| node.input_at(i).map(str::to_owned)).collect::<Vec<_>>()
    };
    graph.node.iter().flat_map(of_node).collect()
}

fn half_tensor(original: &TensorProto) -> Result<TensorProto> {
    let values = floats(original)?;
    let rounded: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
    if let Some(at) = rounded.iter().zip(&values).position(|(h, v)| h.is_infinite() && v.is_finite()) {
        // −∞ and the smallest float32 stand for "nothing" in attention masks.
        if values[at].abs() < f32::MAX / 2.0 {
            return Err(Error::tensor(
                original.name(),
                format!("{} is beyond the range of float16", values[at]),
            ));
        }
    }
    let finite: Vec<f16> = rounded.into_iter().map(|h| h.clamp(f16::MIN, f16::MAX)).collect();
    Ok(tensor(original.name(), &shape(original)?, &finite))
}

/// Tensors and types that attributes hold.
fn lower_attributes(node: &mut NodeProto) -> Result<()> {
    let typed = match node.op_type() {
        "Cast" => "to",
        "EyeLike" | "RandomNormal" | "RandomNormalLike" | "RandomUniform" | "RandomUniformLike" => "dtype",
        _ => "",
    };
    for attribute in &mut node.attribute {
        if attribute.name() == typed && attribute.i() == i64::from(FLOAT) {
            attribute.i = Some(HALF.into());
        }
        if let Some(value) = attribute.t.as_deref_mut().filter(|t| t.data_type() == FLOAT) {
            *value = half_tensor(value)?;
        }
    }
    Ok(())
}

fn lower_type(value: &mut ValueInfoProto) {
    let tensor = value.r#type.as_mut().and_then(|t| t.tensor_type.as_mut());
    if let Some(tensor) = tensor.filter(|tensor| tensor.elem_type() == FLOAT) {
        tensor.elem_type = Some(HALF);
    }
}

fn is_float(value: &ValueInfoProto) -> bool {
    let tensor = value.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    tensor.is_some_and(|tensor| tensor.elem_type() == FLOAT)
}

fn cast(from: &str, to: &str, data_type: i32) -> NodeProto {
    let mut cast = node("Cast", &format!("{to}_cast"), &[from], &[to]);
    cast.attribute.push(int_attribute("to", data_type.into()));
    cast
}

/// A name that no value has.
fn fresh(graph: &GraphProto, name: &str) -> String {
    let mut fresh = name.to_owned();
    let taken = |name: &str| graph.node.iter().any(|n| n.output.iter().chain(&n.input).any(|v| v == name));
    while taken(&fresh) {
        fresh.push('_');
    }
    fresh
}

fn cast_inputs(graph: &mut GraphProto) {
    let fed = |value: &&ValueInfoProto| {
        is_float(value) && !graph.initializer.iter().any(|t| t.name() == value.name())
    };
    let inputs: Vec<String> = graph.input.iter().filter(fed).map(|value| value.name().to_owned()).collect();
    for name in inputs {
        let half = fresh(graph, &format!("{name}_half"));
        for input in graph.node.iter_mut().flat_map(|node| &mut node.input).filter(|input| **input == name) {
            input.clone_from(&half);
        }
        graph.node.insert(0, cast(&name, &half, HALF));
    }
}

fn cast_outputs(graph: &mut GraphProto) {
    let outputs = graph.output.iter().filter(|value| is_float(value)).map(|value| value.name().to_owned());
    for name in outputs.collect::<Vec<_>>() {
        if !graph.node.iter().any(|node| node.output.contains(&name)) {
            continue;
        }
        let half = fresh(graph, &format!("{name}_half"));
        for node in &mut graph.node {
            let values = node.input.iter_mut().chain(&mut node.output);
            values.filter(|value| **value == name).for_each(|value| value.clone_from(&half));
        }
        graph.node.push(cast(&half, &name, FLOAT));
    }
}
