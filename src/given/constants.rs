//! Constants behind a DequantizeLinear, as they are read: s · (q − z).

use std::collections::{HashMap, HashSet};

use super::nodes::{Kind, Params, bounds, is};
use super::{Given, weighted_readers};
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::model::Model;
use crate::patch::{Patch, apply};
use crate::tensor::{codes, floats, floats_like, shape};

/// Codes of a constant.
struct Codes {
    values: Vec<i32>,
    dims: Vec<usize>,
    kind: Kind,
}

/// `model` with float constants in the place of quantized ones, and the parameters that those had.
///
/// Types and layouts that are not known here stay as they are. Initializers that are inputs as well stop being inputs: nobody
/// overrides the weights of a model that is quantized for its own, and some exporters list all of them.
///
/// # Errors
/// [`crate::Error::Model`] when the model has no graph.
pub fn take_constants(model: &Model) -> Result<(Model, Given)> {
    let model = &without_default_inputs(model)?;
    let graph = Graph::of(model);
    let (mut patch, mut given) = (Patch::default(), Given::default());
    let mut made: HashMap<&str, Codes> = HashMap::new();
    for (id, node) in graph.nodes().iter().enumerate() {
        let Some(output) = node.output.first() else { continue };
        if is(node, "QuantizeLinear") {
            made.extend(quantized(&graph, id).map(|codes| (output.as_str(), codes)));
        } else if node.is("Clip") {
            let clipped = node.input_at(0).and_then(|input| clipped(&graph, id, made.get(input)?));
            made.extend(clipped.map(|codes| (output.as_str(), codes)));
        } else if is(node, "DequantizeLinear") && !graph.is_output(output) {
            take(&graph, id, &made, &mut patch, &mut given)?;
        }
    }
    Ok((apply(model.clone(), patch)?, given))
}

fn without_default_inputs(model: &Model) -> Result<Model> {
    let mut proto = model.clone().into_proto();
    let graph = proto.graph.get_or_insert_default();
    let known: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
    graph.input.retain(|input| !known.contains(input.name()));
    Model::from_proto(proto)
}

/// What a QuantizeLinear makes of a constant.
fn quantized(graph: &Graph, id: NodeId) -> Option<Codes> {
    let constant = graph.constant(graph.node(id).input_at(0)?)?;
    let params = Params::of(graph, id)?;
    let (kind, dims) = (params.kind?, shape(constant).ok()?);
    let index = params.indices(&dims)?;
    let code = |(at, v): (usize, f32)| {
        let i = index(at);
        let q = (v / params.scale[i]).round_ties_even() + params.zero_point[i] as f32;
        q.clamp(kind.qmin as f32, kind.qmax as f32) as i32
    };
    Some(Codes { values: floats(constant).ok()?.into_iter().enumerate().map(code).collect(), dims, kind })
}

fn clipped(graph: &Graph, id: NodeId, codes: &Codes) -> Option<Codes> {
    let (least, most) = bounds(graph, id, codes.kind)?;
    let values = codes.values.iter().map(|&q| q.max(least).min(most)).collect();
    Some(Codes { values, dims: codes.dims.clone(), kind: codes.kind })
}

/// Puts a float constant in the place of DequantizeLinear `id`, if what it reads is constant.
fn take(
    graph: &Graph,
    id: NodeId,
    made: &HashMap<&str, Codes>,
    patch: &mut Patch,
    given: &mut Given,
) -> Result<()> {
    let (node, output) = (graph.node(id), graph.node(id).output[0].as_str());
    let Some(input) = node.input_at(0) else { return Ok(()) };
    let stored = || {
        let constant = graph.constant(input)?;
        let kind = Kind::of(constant.data_type())?;
        Some(Codes { values: codes(constant)?, dims: shape(constant).ok()?, kind })
    };
    let read;
    let codes = match made.get(input) {
        Some(codes) => codes,
        None => {
            let Some(codes) = stored() else { return Ok(()) };
            read = codes;
            &read
        }
    };
    let Some(params) = Params::of(graph, id) else { return Ok(()) };
    let Some(index) = params.indices(&codes.dims) else { return Ok(()) };
    let real = |(at, &q): (usize, &i32)| {
        let i = index(at);
        f64::from((f64::from(q) - f64::from(params.zero_point[i])) as f32 * params.scale[i])
    };
    let values: Vec<f64> = codes.values.iter().enumerate().map(real).collect();
    patch.remove(id);
    patch.initializer(floats_like(params.scale_tensor, output, &codes.dims, &values)?);
    if let Some(known) = params.params(codes.dims.len(), codes.kind) {
        let mut readers = HashSet::new();
        weighted_readers(graph, output, &mut readers);
        for reader in readers {
            given.layers.insert(graph.node(reader).label().to_owned(), known.clone());
        }
        given.constants.insert(output.to_owned(), known);
    }
    Ok(())
}
