//! Huawei Ascend: a float model and the record of its scales, from which the compression toolkit (AMCT) makes the deployed one.
//!
//! A layer reads q = clip(round(x / scale_d) + offset_d, −128, 127), so offset_d is an int8 zero point: that of uint8 less
//! 128. Weights are symmetric int8. A bias becomes round(b / (scale_d · scale_w)) in int32.

mod record;

use std::collections::{BTreeMap, HashMap, HashSet};

use super::layers::{Layers, Row, of_the_others, too_noisy, weighted};
use super::{Corrected, Options, explicit};
use crate::calibration::Calibration;
use crate::error::{Error, Result};
use crate::graph::{Graph, NodeExt, NodeId};
use crate::model::Model;
use crate::onnx::{AttributeProto, NodeProto, TensorProto};
use crate::patch::{apply, float_attribute, int_attribute, ints_attribute};
use crate::qparams::{Dtype, QuantParams, Scheme};
use crate::quantize::scales::Grids;
use crate::quantize::weights::{self, QuantizedWeights};
use crate::quantize::{Quantized, noise_of_products};

const LAYERS: &[Row] = &[
    weighted("Conv", 4..=5, true),
    weighted("ConvTranspose", 4..=4, true),
    weighted("Gemm", 2..=2, false),
    weighted("MatMul", 2..=2, false),
];

/// What to add to a uint8 zero point.
const OFFSET: i32 = -128;

/// A model for Ascend.
#[derive(Debug, Clone)]
pub struct Exported {
    /// The float model, with unique node names and explicit attributes, and what becomes of its layers.
    pub quantized: Quantized,
    /// Protocol buffer text.
    pub record: String,
    /// The same as QuantizeLinear/DequantizeLinear pairs, for `convert_qat_model`.
    pub explicit: Model,
}

/// The values whose ranges are needed.
pub(super) fn values_to_observe<'m>(graph: &Graph<'m>) -> Vec<&'m str> {
    let layers = Layers::find(graph, LAYERS).all;
    layers.iter().flat_map(|layer| &layer.inputs).map(|(_, value)| *value).collect()
}

/// Finds the scales and offsets of a folded model.
///
/// # Errors
/// [`Error::Tensor`] for weights that are not finite, [`Error::Data`] for a calibration with values that are not,
/// [`Error::Model`] for a bias that does not fit into int32, naming the layer.
pub fn quantize(
    model: &Model,
    calibration: &Calibration,
    options: &Options,
    scheme: Scheme,
) -> Result<Exported> {
    calibration.check_finite()?;
    let named = spelled_out(model)?;
    let graph = Graph::new(named.graph());
    let (equalized, balance) = options.changes.equalized((&named, &graph), calibration, scheme)?;
    let given = options.given.limited("Ascend", false);
    let options = &Options { given: given.clone(), ..options.clone() };
    let grids = Grids { calibration, balance: &balance, given: &given, method: options.method, scheme };
    let layers = Layers::find(&graph, LAYERS);
    let mut float = layers.forced_float(&graph, calibration, options, |_| None);
    let params = |value: &str| grids.knows(value).then(|| with_offset(grids.params(value)));
    let tensor = |value: &str| grids.record(value, params(value).as_ref());
    let records = layers.records(&graph, calibration, &float, tensor);
    let noise = of_the_others(noise_of_products(&graph, &grids, params)?, &layers.kept(&given));
    float.extend(too_noisy(&records, &noise, options.noise_price));
    let chosen = layers.chosen(&float);
    let activations: HashMap<&str, QuantParams> =
        chosen.iter().filter_map(|layer| Some((layer.inputs[0].1, params(layer.inputs[0].1)?))).collect();
    let reads_of: HashMap<NodeId, &str> = chosen.iter().map(|layer| (layer.id, layer.inputs[0].1)).collect();
    let weights = |graph: &Graph| {
        explicit::weights(graph, chosen.iter().copied(), (options.per_channel, &given), |id, limits| {
            leave_room(graph, id, activations[reads_of[&id]].scale[0], limits);
        })
    };
    let Corrected { model, mut notes, layers: changes } =
        options.changes.corrected(&equalized, &balance, weights)?;
    notes.extend(layers.rescaled(&graph, &given));
    notes.extend(given.remarks(&graph, |value| activations.contains_key(value)));
    let graph = Graph::new(model.graph());
    let weights = weights(&graph)?;
    let mut record = String::new();
    for layer in &chosen {
        let (activation, weights) = (&activations[layer.inputs[0].1], &weights[&layer.id]);
        check_bias(&graph, layer.id, activation, weights)?;
        record.push_str(&record::entry(&graph, layer.id, activation, weights));
    }
    let reads: BTreeMap<(NodeId, usize), &str> =
        chosen.iter().map(|layer| ((layer.id, 0), layer.inputs[0].1)).collect();
    let plan = explicit::Plan {
        graph: &graph,
        reads: &reads,
        activations: &activations,
        weights: &weights,
        integer_weights: false,
        half: false,
    };
    let explicit = apply(model.clone(), explicit::write(&plan))?;
    let mut records = layers.records(&graph, calibration, &float, tensor);
    records.sort_by_key(|(id, _)| *id);
    for (id, record) in &mut records {
        record.weight_sqnr_db = weights.get(id).map(|weights| weights.sqnr_db);
    }
    Corrected::mark(&changes, records.iter_mut().map(|(_, record)| record));
    let layers = records.into_iter().map(|(_, record)| record).collect();
    let quantized = Quantized { model: model.clone(), layers, notes };
    Ok(Exported { quantized, record, explicit })
}

/// The same grid on int8.
fn with_offset(params: QuantParams) -> QuantParams {
    match params.dtype {
        Dtype::Uint8 => {
            let zero_point = params.zero_point.iter().map(|zero| zero + OFFSET).collect();
            QuantParams { zero_point, dtype: Dtype::Int8, ..params }
        }
        _ => params,
    }
}

/// Raises the limits of channels that are next to dead, so that their bias fits into int32, but not above that of the
/// layer's largest weight: beyond, nothing sensible is left of the layer.
fn leave_room(graph: &Graph, id: NodeId, input_scale: f32, limits: &mut [f32]) {
    let Ok(Some(bias)) = weights::bias(graph, id) else { return };
    let (count, largest) = (limits.len(), limits.iter().copied().fold(0.0, f32::max));
    for (channel, b) in bias.iter().enumerate() {
        let limit = &mut limits[channel % count];
        let needed = (127.0 * f64::from(b.abs()) / (f64::from(input_scale) * weights::BIAS_LIMIT)) as f32;
        if *limit > 0.0 && needed > *limit && needed <= largest {
            *limit = needed;
        }
    }
}

/// Fails if the bias of node `id` does not fit into int32 on the grid of the sums.
fn check_bias(graph: &Graph, id: NodeId, activation: &QuantParams, weights: &QuantizedWeights) -> Result<()> {
    let Some(bias) = weights::bias(graph, id)? else { return Ok(()) };
    let scales = weights.params.scale.iter().cycle();
    for (channel, (b, scale)) in bias.iter().zip(scales).enumerate() {
        let integer =
            (f64::from(*b) / (f64::from(activation.scale[0]) * f64::from(*scale))).round_ties_even();
        if integer.abs() > f64::from(i32::MAX) {
            let label = graph.node(id).label();
            return Err(Error::Model(format!(
                "node '{label}': the bias {b} of channel {channel} does not fit into int32 with the scales {:e} of its \
                 input and {scale:e} of its weights; exclude the node",
                activation.scale[0]
            )));
        }
    }
    Ok(())
}

/// `model` with a name of its own for each node, and the attributes of layers written out where they have their defaults.
fn spelled_out(model: &Model) -> Result<Model> {
    let mut proto = model.clone().into_proto();
    let graph = proto.graph.get_or_insert_default();
    let shapes: HashMap<String, Vec<i64>> =
        graph.initializer.iter().map(|t: &TensorProto| (t.name().to_owned(), t.dims.clone())).collect();
    let mut taken: HashSet<String> = HashSet::new();
    let given: HashSet<String> = graph.node.iter().map(|node| node.name().to_owned()).collect();
    for (i, node) in graph.node.iter_mut().enumerate() {
        let mut name =
            if node.name().is_empty() { format!("{}_{i}", node.op_type()) } else { node.name().to_owned() };
        while taken.contains(&name) || name != node.name() && given.contains(&name) {
            name.push('_');
        }
        taken.insert(name.clone());
        node.name = Some(name);
        let defaults = defaults(node, node.input_at(1).and_then(|weights| shapes.get(weights)));
        let missing: Vec<_> = defaults.into_iter().filter(|a| node.attribute(a.name()).is_none()).collect();
        node.attribute.extend(missing);
    }
    Model::from_proto(proto)
}

/// The attributes of a layer with weights of this shape, where they have their defaults.
fn defaults(node: &NodeProto, weights: Option<&Vec<i64>>) -> Vec<AttributeProto> {
    let kernel = weights.and_then(|dims| dims.get(2..)).unwrap_or_default();
    let each = |name: &str, value: i64| ints_attribute(name, vec![value; kernel.len()]);
    let padded = node.attribute("auto_pad").is_none_or(|mode| mode.s() == b"NOTSET".as_slice());
    let mut found = match node.op_type() {
        "Conv" | "ConvTranspose" if !kernel.is_empty() => vec![
            int_attribute("group", 1),
            each("dilations", 1),
            each("strides", 1),
            ints_attribute("kernel_shape", kernel.to_vec()),
        ],
        "Gemm" => vec![
            float_attribute("alpha", 1.0),
            float_attribute("beta", 1.0),
            int_attribute("transA", 0),
            int_attribute("transB", 0),
        ],
        _ => Vec::new(),
    };
    if padded && !kernel.is_empty() && !found.is_empty() {
        found.push(ints_attribute("pads", vec![0; 2 * kernel.len()]));
    }
    found
}
