//! Embedding tables: int8 rows with a scale each, s\[v\] = absmax(row v) / 127, looked up before they become floats.
//!
//! `Gather(table, ids)` becomes `Cast(Gather(int8 table, ids)) · Gather(s, ids)`: the table takes a quarter of the space,
//! and only the rows that are looked up are ever turned into floats.

use super::weights::Channels;
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::patch::{Patch, int_attribute, node};
use crate::tensor::{DataType, shape, tensor};

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
pub(crate) fn quantize(graph: &Graph, id: NodeId, patch: &mut Patch) -> Result<f64> {
    let original = graph.node(id);
    let (table, ids, output) = (&original.input[0], &original.input[1], &original.output[0]);
    let constant = graph.constant(table).expect("the verdict saw it");
    let dims = shape(constant)?;
    let values = super::weights::finite(constant)?;
    let channels = Channels::new(&dims, 0);
    let scale = crate::qparams::QuantParams::per_channel(&channels.abs_max(&values), 0).scale;
    let (integers, noise) = channels.quantize(&values, &scale);
    let power: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
    let [integers_name, scale_name] =
        ["quantized", "scale"].map(|part| graph.fresh(&format!("{table}_{part}"), None));
    patch.initializer(tensor(&integers_name, &dims, &integers));
    patch.initializer(tensor(&scale_name, &[dims[0], 1], &scale));
    let [rows, row_scale, cast] =
        ["rows", "row_scale", "cast"].map(|part| graph.fresh(&format!("{output}_{part}"), None));
    let mut to_float = node("Cast", &cast, &[&rows], &[&cast]);
    to_float.attribute.push(int_attribute("to", DataType::Float as i64));
    let nodes = vec![
        node("Gather", original.label(), &[&integers_name, ids], &[&rows]),
        node("Gather", &row_scale, &[&scale_name, ids], &[&row_scale]),
        to_float,
        node("Mul", &format!("{output}_dequantized"), &[&cast, &row_scale], &[output]),
    ];
    patch.replace(id, nodes);
    Ok(10.0 * (power / noise).log10())
}
