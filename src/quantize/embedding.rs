//! Embedding tables: int8 rows with a scale each, s\[v\] = absmax(row v) / 127, looked up before they become floats.
//!
//! `Gather(table, ids)` becomes `Cast(Gather(int8 table, ids)) · Gather(s, ids)`: the table takes a quarter of the space,
//! and only the rows that are looked up are ever turned into floats.

use super::names::Names;
use super::weights;
use crate::error::Result;
use crate::given::Given;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::patch::{Patch, cast_to, node};
use crate::tensor::{DataType, tensor, tensor_of_bytes};

/// A table with fewer values than this is not worth three more nodes.
const LEAST_VALUES: usize = 1 << 14;

/// Whether node `id` looks rows up in a constant table: whether the table can be quantized, or why not.
pub(crate) fn verdict(graph: &Graph, id: NodeId) -> Option<Result<(), String>> {
    let node = graph.node(id);
    let table = node.input_at(0).and_then(|name| graph.constant(name))?;
    let rows = table.dims.len() == 2 && table.data_type() == DataType::Float as i32;
    if !node.is("Gather") || node.int("axis", 0) != 0 || !rows {
        return None;
    }
    let values: i64 = table.dims.iter().product();
    Some(if usize::try_from(values).unwrap_or(0) < LEAST_VALUES {
        Err("its table is too small to be worth it".to_owned())
    } else if graph.consumers(table.name()).len() > 1 || graph.is_observable(table.name()) {
        Err("its table is used elsewhere too".to_owned())
    } else {
        Ok(())
    })
}

/// Adds the edit to `patch`; returns the signal to noise ratio of the table in dB.
///
/// # Errors
/// [`crate::Error::Tensor`] when the table is not finite.
pub(crate) fn quantize(
    graph: &Graph,
    id: NodeId,
    given: &Given,
    (names, patch): (&mut Names, &mut Patch),
) -> Result<f64> {
    let original = graph.node(id);
    let (table, ids, output) = (&original.input[0], &original.input[1], &original.output[0]);
    let rows_on_grid =
        weights::quantize_rows(graph.constant(table).expect("the verdict saw it"), given.rows(graph, table))?;
    let (integers, scale) = (names.get(&format!("{table}_quantized")), names.get(&format!("{table}_scale")));
    patch.initializer(tensor_of_bytes(&integers, &rows_on_grid.dims, DataType::Int8, rows_on_grid.values));
    patch.initializer(tensor(&scale, &[rows_on_grid.dims[0], 1], &rows_on_grid.params.scale));
    let [rows, row_scale, floats, product] =
        ["rows", "row_scale", "cast", "dequantized"].map(|part| names.get(&format!("{output}_{part}")));
    let nodes = vec![
        node("Gather", original.label(), &[&integers, ids], &[&rows]),
        node("Gather", &row_scale, &[&scale, ids], &[&row_scale]),
        cast_to(DataType::Float, &rows, &floats),
        node("Mul", &product, &[&floats, &row_scale], &[output]),
    ];
    patch.replace(id, nodes);
    Ok(rows_on_grid.sqnr_db)
}
