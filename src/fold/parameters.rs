//! Parameters of a node that older operator sets give as an attribute and newer ones as a constant input.

use crate::graph::{Graph, NodeExt};
use crate::onnx::{NodeProto, TensorProto};
use crate::tensor::{DataType, doubles, element_count, integers as decode, is_float};

/// More numbers than any operator has parameters; a longer constant is not read.
const LONGEST: usize = 256;

/// A parameter that is there, but not as a constant.
pub(super) struct NotConstant;

/// Integers from the constant at input `index`, or else from `attribute`; `None` where there is neither.
pub(super) fn integers(
    graph: &Graph,
    node: &NodeProto,
    index: usize,
    attribute: &str,
) -> Result<Option<Vec<i64>>, NotConstant> {
    let Some(name) = node.input_at(index) else {
        return Ok(node.attribute(attribute).map(|a| a.ints.clone()));
    };
    let values = short(graph, name).and_then(|t| decode(t).ok());
    values.map(Some).ok_or(NotConstant)
}

/// Floating-point numbers, as [`integers`].
pub(super) fn floats(
    graph: &Graph,
    node: &NodeProto,
    index: usize,
    attribute: &str,
) -> Result<Option<Vec<f64>>, NotConstant> {
    let Some(name) = node.input_at(index) else {
        return Ok(node.attribute(attribute).map(|a| a.floats.iter().map(|&v| v.into()).collect()));
    };
    let values = short(graph, name).and_then(|t| doubles(t).ok());
    values.map(Some).ok_or(NotConstant)
}

/// The constant `name`, if it is a single number that a float64 holds exactly.
pub(super) fn scalar(graph: &Graph, name: &str) -> Option<f64> {
    const EXACT: i64 = 1 << 53;
    let tensor = short(graph, name)?;
    if is_float(tensor) {
        return <[f64; 1]>::try_from(doubles(tensor).ok()?).ok().map(|[v]| v);
    }
    let integer =
        tensor.data_type() == DataType::Int64 as i32 || tensor.data_type() == DataType::Int32 as i32;
    let [value] = integer.then(|| decode(tensor).ok())??.try_into().ok()?;
    (-EXACT..=EXACT).contains(&value).then_some(value as f64)
}

fn short<'m>(graph: &Graph<'m>, name: &str) -> Option<&'m TensorProto> {
    graph.constant(name).filter(|t| element_count(t).is_ok_and(|count| count <= LONGEST))
}

/// `axis`, counted from the end where negative, as an index below `rank`.
pub(super) fn axis(axis: i64, rank: usize) -> Option<usize> {
    let from_end = i64::try_from(rank).ok()?;
    let index = if axis < 0 { axis.checked_add(from_end)? } else { axis };
    usize::try_from(index).ok().filter(|&index| index < rank)
}
