//! TensorRT: explicit quantization, symmetric int8, and the legacy calibration cache.
//!
//! 1. [`placement`]: which inputs read int8, by what TensorRT fuses.
//! 2. One scale for each group of values that are only moved, the largest that any of them needs.
//! 3. The pairs are [written](super::explicit), and the result is checked by [`lint`](fn@lint).
//! 4. [`cache`]: the same scales for the implicit mode of TensorRT up to version 10.

mod cache;
mod codes;
mod half;
mod lint;
mod placement;

use std::collections::{BTreeMap, HashMap};

pub use self::cache::Version;
pub use self::codes::quantize_weights;
pub use self::lint::lint;
use self::placement::Placement;
use super::layers::{Layer, Layers, Row, of_the_others, too_noisy, weighted};
use super::{Corrected, Options, explicit};
use crate::calibration::Calibration;
use crate::error::{Error, Result};
use crate::graph::{Graph, NodeExt, NodeId};
use crate::model::Model;
use crate::onnx::ValueInfoProto;
use crate::patch::apply;
use crate::qparams::{QuantParams, Scheme};
use crate::quantize::balance::Balance;
use crate::quantize::report::{LayerRecord, TensorRecord};
use crate::quantize::scales::Grids;
use crate::quantize::{Quantized, noise_of_products};

/// Newest version of the file format that TensorRT's parsers for our operator sets know.
const IR_VERSION: i64 = 10;

const LAYERS: &[Row] = &[
    weighted("Conv", 3..=5, true),
    weighted("ConvTranspose", 3..=5, true),
    weighted("Gemm", 2..=2, true),
    Row { op_type: "MatMul", ranks: 2..=2, per_channel: true, products: true },
];

/// What only TensorRT is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Whether what is not int8 is float16.
    pub half: bool,
    /// Of the calibration cache.
    pub version: Version,
}

/// A model for TensorRT.
#[derive(Debug, Clone)]
pub struct Exported {
    /// With QuantizeLinear/DequantizeLinear pairs.
    pub quantized: Quantized,
    /// The content of a calibration cache for the float model.
    pub cache: String,
}

/// The values whose ranges are needed.
pub(super) fn values_to_observe<'m>(graph: &Graph<'m>) -> Vec<&'m str> {
    let layers = Layers::find(graph, LAYERS);
    let all: Vec<&Layer> = layers.all.iter().collect();
    Placement::find(graph, &all, |_| true, |value| !explicit::is_other_type(graph, value)).values()
}

/// Quantizes a folded model.
///
/// # Errors
/// [`Error::Tensor`] for weights that are not finite, [`Error::Data`] for a calibration with values that are not,
/// [`Error::Model`] for a model that float16 cannot express.
pub fn quantize(
    model: &Model,
    calibration: &Calibration,
    options: &Options,
    settings: Settings,
) -> Result<Exported> {
    calibration.check_finite()?;
    let half = settings.half;
    let graph = Graph::new(model.graph());
    let (equalized, balance) = options.changes.equalized((model, &graph), calibration, Scheme::Symmetric)?;
    let given = options.given.limited("TensorRT", true);
    let options = &Options { given: given.clone(), ..options.clone() };
    let scheme = Scheme::Symmetric;
    let grids = Grids { calibration, balance: &balance, given: &given, method: options.method, scheme };
    let layers = Layers::find(&graph, LAYERS);
    let decline = |layer: &Layer| placement::decline(&graph, layer, |value| calibration.elements(value));
    let mut float = layers.forced_float(&graph, calibration, options, decline);
    let included = |id: NodeId| !options.exclude.contains(graph.node(id).label());
    let place = |float: &BTreeMap<usize, String>| {
        let placement = Placement::find(&graph, &layers.chosen(float), included, |value| grids.knows(value));
        let activations = activations(&placement, &grids, half);
        (placement, activations)
    };
    let (placement, activations) = place(&float);
    let tensor = |value: &str| grids.record(value, activations.get(placement.root(value)));
    let noise = noise_of_products(&graph, &grids, |value| activations.get(placement.root(value)).cloned())?;
    let records = layers.records(&graph, calibration, &float, tensor);
    let noise = of_the_others(noise, &layers.kept(&given));
    float.extend(too_noisy(&records, &noise, options.noise_price));
    let (placement, activations) = place(&float);
    let chosen = layers.chosen(&float);

    let weights = |graph: &Graph| {
        explicit::weights(graph, chosen.iter().copied(), (options.per_channel, &given), |_, limits| {
            if half {
                limits.iter_mut().for_each(|limit| *limit = explicit::with_half_scale(*limit));
            }
        })
    };
    let Corrected { model, mut notes, layers: changes } =
        options.changes.corrected(&equalized, &balance, weights)?;
    notes.extend(given.remarks(&graph, |value| {
        activations.get(placement.root(value)).is_some_and(|params| given.get(value) == Some(params))
    }));
    if half && !given.is_empty() {
        notes.push("scales that were given are rounded to float16".to_owned());
    }
    let graph = Graph::new(model.graph());
    let weights = weights(&graph)?;
    let plan = explicit::Plan {
        graph: &graph,
        reads: &placement.reads,
        activations: &activations,
        weights: &weights,
        integer_weights: true,
        half,
    };
    let mut written = apply(model.clone(), explicit::write(&plan))?;
    if half {
        written = half::lowered(written)?;
    }
    let written = accepted(written)?;
    let tensor = |value: &str| grids.record(value, activations.get(placement.root(value)));
    let mut records = layers.records(&graph, calibration, &float, tensor);
    for (id, record) in &mut records {
        record.weight_sqnr_db = weights.get(id).map(|weights| weights.sqnr_db);
    }
    Corrected::mark(&changes, records.iter_mut().map(|(_, record)| record));
    records.extend(others(&graph, &placement, &chosen, tensor));
    records.sort_by_key(|(id, _)| *id);
    // The cache is for the model as it was.
    let grids = Grids { balance: &Balance::new(), ..grids };
    let unchanged = self::activations(&placement, &grids, half);
    let (cache, found) = cache::cache(&graph, calibration, options.method, &unchanged, settings.version);
    notes.extend(found);
    let layers = records.into_iter().map(|(_, record)| record).collect();
    Ok(Exported { quantized: Quantized { model: written, layers, notes }, cache })
}

/// Parameters of every value with a pair: one scale for each group.
fn activations<'m>(placement: &Placement<'m>, grids: &Grids, half: bool) -> HashMap<&'m str, QuantParams> {
    let values = placement.values();
    let mut groups: BTreeMap<&str, (f32, QuantParams)> = BTreeMap::new();
    for &value in &values {
        let params = grids.params(value);
        let limit = params.covers(0).abs_max();
        let given = grids.given.get(value).is_some();
        let params = if given { params } else { explicit::symmetric(limit, half) };
        let group = groups.entry(placement.group(value)).or_insert_with(|| (limit, params.clone()));
        if limit > group.0 {
            *group = (limit, params);
        }
    }
    values.into_iter().map(|value| (value, groups[placement.group(value)].1.clone())).collect()
}

/// The model as TensorRT's parser takes it.
///
/// # Errors
/// [`Error::Model`] where it would refuse the result.
fn accepted(model: Model) -> Result<Model> {
    let mut proto = model.into_proto();
    proto.ir_version = proto.ir_version.map(|version| version.min(IR_VERSION));
    if let Some(graph) = &mut proto.graph {
        let values = [&mut graph.input, &mut graph.output, &mut graph.value_info];
        values.into_iter().flatten().for_each(without_wild_names);
    }
    let model = Model::from_proto(proto)?;
    match lint(&model).into_iter().next() {
        Some(finding) => Err(Error::Model(format!("TensorRT would refuse the result: {finding}"))),
        None => Ok(model),
    }
}

/// Takes names that are none, such as `?`, off the dimensions of a value: all of one name have to be equal for TensorRT.
fn without_wild_names(value: &mut ValueInfoProto) {
    let is_name = |name: &String| name.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let shape = value.r#type.as_mut().and_then(|t| t.tensor_type.as_mut()).and_then(|t| t.shape.as_mut());
    for dimension in shape.into_iter().flat_map(|shape| &mut shape.dim) {
        dimension.dim_param = dimension.dim_param.take().filter(is_name);
    }
}

/// Records of the operators that read int8 without multiplying.
fn others(
    graph: &Graph,
    placement: &Placement,
    chosen: &[&Layer],
    tensor: impl Fn(&str) -> TensorRecord,
) -> Vec<(NodeId, LayerRecord)> {
    let mut inputs: BTreeMap<NodeId, Vec<TensorRecord>> = BTreeMap::new();
    for (&(id, _), value) in &placement.reads {
        if !chosen.iter().any(|layer| layer.id == id) {
            inputs.entry(id).or_default().push(tensor(value));
        }
    }
    let record = |(id, inputs)| {
        let float = LayerRecord::unquantized(graph, id, String::new());
        (id, LayerRecord { quantized: true, inputs, ..float })
    };
    inputs.into_iter().map(record).collect()
}
