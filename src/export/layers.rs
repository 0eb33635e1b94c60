//! The operators that multiply, and which of them a runtime does on integers: a table for each runtime.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::RangeInclusive;

use super::Options;
use crate::calibration::Calibration;
use crate::given::Given;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::NodeProto;
use crate::ops::{is_plain_product, without_kernel};
use crate::quantize::report::{LayerRecord, TensorRecord};
use crate::quantize::sites::constant_weights;
use crate::quantize::weights::weight_of;

/// Why a layer stays float that [is too noisy](too_noisy).
pub(super) const TOO_NOISY: &str = "the noise of int8 is worth more than the time that it would save";

/// Share of a layer's time in float16 that int8 saves.
const SAVED: f64 = 0.5;

/// What a runtime takes of one operator.
#[derive(Debug)]
pub(super) struct Row {
    /// The operator.
    pub op_type: &'static str,
    /// Dimensions that its weights may have.
    pub ranks: RangeInclusive<usize>,
    /// Whether there may be a scale for each output channel.
    pub per_channel: bool,
    /// Whether it may multiply two activations.
    pub products: bool,
}

/// A row without products of activations.
pub(super) const fn weighted(op_type: &'static str, ranks: RangeInclusive<usize>, per_channel: bool) -> Row {
    Row { op_type, ranks, per_channel, products: false }
}

/// A multiplication that the runtime can do on integers.
#[derive(Debug)]
pub(super) struct Layer<'m> {
    pub id: NodeId,
    pub row: &'static Row,
    /// Activations it reads, by position.
    pub inputs: Vec<(usize, &'m str)>,
}

impl Layer<'_> {
    /// Whether the second operand is constant.
    pub fn has_weights(&self) -> bool {
        self.inputs.len() == 1
    }
}

/// What a model has of them, in the order of its nodes.
pub(super) struct Layers<'m> {
    pub all: Vec<Layer<'m>>,
    /// Operators that hold weights and are none, with the reason.
    pub rejected: Vec<(NodeId, String)>,
}

impl<'m> Layers<'m> {
    /// Finds them.
    pub fn find(graph: &Graph<'m>, table: &'static [Row]) -> Self {
        let mut layers = Self { all: Vec::new(), rejected: Vec::new() };
        for (id, node) in graph.nodes().iter().enumerate() {
            let row = table.iter().find(|row| node.is(row.op_type));
            let verdict = match row {
                Some(row) => layer(graph, id, row),
                None => match without_kernel(node) {
                    Some(reason) => Err(reason.to_owned()),
                    None => continue,
                },
            };
            match verdict {
                Ok(layer) => layers.all.push(layer),
                Err(reason) => layers.rejected.push((id, reason)),
            }
        }
        layers
    }

    /// Why layers have to stay float although the runtime could take them, by position.
    pub fn forced_float(
        &self,
        graph: &Graph<'m>,
        calibration: &Calibration,
        options: &Options,
        decline: impl Fn(&Layer<'m>) -> Option<String>,
    ) -> BTreeMap<usize, String> {
        let (given, kept) = (&options.given, self.kept(&options.given));
        let reason = |layer: &Layer<'m>| {
            if options.exclude.contains(graph.node(layer.id).label()) {
                return Some("excluded by the configuration".to_owned());
            }
            let known = |value: &str| given.get(value).is_some() || calibration.saw(value);
            let unseen = layer.inputs.iter().find(|(_, value)| !known(value));
            let unseen = unseen.map(|(_, value)| match given.is_empty() || calibration.runs() > 0 {
                true => format!("'{value}' is not a float32 tensor that calibration saw"),
                false => format!("no scale was given for '{value}': give calibration data"),
            });
            unseen.or_else(|| if kept.contains(&layer.id) { None } else { decline(layer) })
        };
        self.all.iter().enumerate().filter_map(|(i, layer)| Some((i, reason(layer)?))).collect()
    }

    /// The layers whose inputs the model came with parameters of.
    pub fn kept(&self, given: &Given) -> HashSet<NodeId> {
        let known = |layer: &&Layer<'m>| layer.inputs.iter().all(|(_, value)| given.get(value).is_some());
        self.all.iter().filter(known).map(|layer| layer.id).collect()
    }

    /// What is to be said of weights that came with a scale for each channel, where the runtime has one for all.
    pub fn rescaled(&self, graph: &Graph<'m>, given: &Given) -> Option<String> {
        let differs = |layer: &&Layer<'m>| {
            let params = given.weights(graph, layer.id).and_then(Result::ok);
            !layer.row.per_channel && params.is_some_and(|params| params.axis.is_some())
        };
        let all: Vec<&str> =
            self.all.iter().filter(differs).map(|layer| graph.node(layer.id).label()).collect();
        (!all.is_empty()).then(|| {
            format!(
                "one scale, found anew, stands for those given for the channels of the weights of '{}'",
                all.join("', '")
            )
        })
    }

    /// The layers that are not among those to stay float.
    pub fn chosen(&self, float: &BTreeMap<usize, String>) -> Vec<&Layer<'m>> {
        self.all.iter().enumerate().filter(|(i, _)| !float.contains_key(i)).map(|(_, layer)| layer).collect()
    }

    /// A record for each, layers first, given why some stay float and what is known of an activation or the weights of a node.
    pub fn records(
        &self,
        graph: &Graph<'m>,
        calibration: &Calibration,
        float: &BTreeMap<usize, String>,
        tensor: impl Fn(&str) -> TensorRecord,
    ) -> Vec<(NodeId, LayerRecord)> {
        let layers = self.all.iter().enumerate().map(|(i, layer)| {
            let reason = float.get(&i).cloned().unwrap_or_default();
            let record = LayerRecord {
                quantized: reason.is_empty(),
                macs: multiplications(graph, layer, calibration),
                inputs: match reason.is_empty() {
                    true => layer.inputs.iter().map(|(_, value)| tensor(value)).collect(),
                    false => Vec::new(),
                },
                ..LayerRecord::unquantized(graph, layer.id, reason)
            };
            (layer.id, record)
        });
        let rejected = self.rejected.iter();
        let rejected = rejected.map(|(id, why)| (*id, LayerRecord::unquantized(graph, *id, why.clone())));
        layers.chain(rejected).collect()
    }
}

/// The layers, by position, in whose results int8 puts more noise than the time that it saves is worth.
///
/// A relative noise of 1 costs `price` times the time of the float model, of which a layer has the share of its
/// multiply-accumulates.
pub(super) fn too_noisy(
    records: &[(NodeId, LayerRecord)],
    noise: &HashMap<NodeId, f64>,
    price: f64,
) -> impl Iterator<Item = (usize, String)> {
    let total: f64 = records.iter().filter_map(|(_, record)| record.macs).sum();
    let costs_more = move |id: &NodeId, record: &LayerRecord| {
        let saved = record.macs.filter(|_| record.quantized).map(|macs| SAVED * macs / total);
        noise.get(id).zip(saved).is_some_and(|(noise, saved)| price * noise > saved)
    };
    let noisy = records.iter().enumerate().filter(move |(_, (id, record))| costs_more(id, record));
    noisy.map(|(i, _)| (i, TOO_NOISY.to_owned()))
}

/// The noise of those layers alone that there is a choice about.
pub(super) fn of_the_others(mut noise: HashMap<NodeId, f64>, kept: &HashSet<NodeId>) -> HashMap<NodeId, f64> {
    noise.retain(|id, _| !kept.contains(id));
    noise
}

/// The layer at node `id`, or why it is none.
fn layer<'m>(graph: &Graph<'m>, id: NodeId, row: &'static Row) -> Result<Layer<'m>, String> {
    let node = graph.node(id);
    if !is_plain_product(node) {
        return Err("its transA, alpha or beta is not that of a plain product".to_owned());
    }
    let inputs: Vec<_> = activations(graph, node).collect();
    match inputs.as_slice() {
        [(0, _), (1, _)] if row.products => {}
        [(0, _)] => {
            constant_weights(graph, id, 1)?;
            let rank = weight_of(graph, id).map_err(|e| e.to_string())?.dims.len();
            if !row.ranks.contains(&rank) {
                return Err(format!("its weights have {rank} dimensions"));
            }
        }
        [(0, _), ..] => return Err("its weights are computed at run time".to_owned()),
        _ => return Err("its first input is a constant".to_owned()),
    }
    Ok(Layer { id, row, inputs })
}

/// Which of the two operands of a multiplication are activations.
fn activations<'m>(graph: &Graph<'m>, node: &'m NodeProto) -> impl Iterator<Item = (usize, &'m str)> {
    let operands = node.input.iter().map(String::as_str).take(2).enumerate();
    operands.filter(move |(_, name)| graph.initializer(name).is_none())
}

/// Multiply-accumulates of a layer in one inference, where its weights and activations tell.
fn multiplications(graph: &Graph, layer: &Layer, calibration: &Calibration) -> Option<f64> {
    let node = graph.node(layer.id);
    let weights = weight_of(graph, layer.id).ok().filter(|_| layer.has_weights())?;
    let count = |dims: &[i64]| dims.iter().map(|&d| d as f64).product::<f64>();
    let read = calibration.elements(layer.inputs[0].1);
    Some(match (node.op_type(), weights.dims.as_slice()) {
        ("Conv", [channels, filter @ ..]) => {
            let behind = graph.sole_consumer(&node.output[0]).map(|id| graph.node(id).output[0].as_str());
            let values = [Some(node.output[0].as_str()), behind];
            let made = values.into_iter().flatten().find(|value| calibration.saw(value))?;
            calibration.elements(made) * count(filter) * f64::from(u8::from(*channels > 0))
        }
        ("ConvTranspose", [_, filter @ ..]) => read * count(filter),
        (_, [a, b]) => read * if node.int("transB", 0) == 1 { *a as f64 } else { *b as f64 },
        _ => return None,
    })
}
