//! From a float model and what calibration saw, to an int8 model.
//!
//! 1. [`sites`]: which operators have an integer kernel.
//! 2. [`scales`]: the parameters that each activation would have.
//! 3. [`plan`]: which sites are worth it, as a minimum cut over their [`cost`] in time and their [`noise`].
//! 4. [`weights`]: weights and biases as integers.
//! 5. [`emit`]: the QuantizeLinear/DequantizeLinear pairs.

mod cost;
mod dynamic;
mod embedding;
mod emit;
mod names;
mod noise;
mod plan;
mod scales;
mod sites;
mod weights;

use std::collections::HashSet;

use crate::calibration::Calibration;
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::model::Model;
use crate::patch::{Patch, apply};
use crate::qparams::{QuantParams, Scheme};
use crate::ranges::Method;
pub use dynamic::quantize_dynamic;
use sites::Sites;

/// First operator set with per-channel QuantizeLinear/DequantizeLinear.
pub const MINIMUM_OPSET: i64 = 13;

/// What a user of the symmetric scheme should know about ONNX Runtime on x86.
const SYMMETRIC_NOTE: &str = "ONNX Runtime on x86 uses its kernels for int8 activations everywhere only with the session \
     option session.qdqisint8allowed=1; the asymmetric scheme needs no option and is the quicker one there";

/// How to quantize.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of the activations.
    pub scheme: Scheme,
    /// How the range of an activation is chosen.
    pub method: Method,
    /// A weight scale for each output channel, or one for the tensor.
    pub per_channel: bool,
    /// How much time a less noisy result is worth: a relative noise of 1 in one place costs as much as this many times
    /// the float model's time. 0 asks for speed alone.
    pub noise_price: f64,
    /// Nodes that stay float, by [label](NodeExt::label).
    pub exclude: HashSet<String>,
}

/// What became of one operator.
#[derive(Debug, Clone)]
pub struct LayerRecord {
    /// Its [label](NodeExt::label).
    pub name: String,
    /// Its operator.
    pub op_type: String,
    /// Whether it runs on integers.
    pub quantized: bool,
    /// Why not; empty when it does.
    pub reason: String,
    /// Multiply-accumulates in one inference, where known.
    pub macs: Option<f64>,
    /// Signal to noise ratio of its weights, in dB.
    pub weight_sqnr_db: Option<f64>,
    /// What it reads.
    pub inputs: Vec<TensorRecord>,
    /// What it makes.
    pub outputs: Vec<TensorRecord>,
}

impl LayerRecord {
    /// The record of a node that stays float, or of which no more is known than that it does not.
    fn unquantized(graph: &Graph, id: NodeId, reason: String) -> Self {
        let node = graph.node(id);
        Self {
            name: node.label().to_owned(),
            op_type: node.op_type().to_owned(),
            quantized: false,
            reason,
            macs: None,
            weight_sqnr_db: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
        }
    }
}

/// How one activation is quantized.
#[derive(Debug, Clone)]
pub struct TensorRecord {
    /// Its name.
    pub name: String,
    /// Smallest and largest value seen.
    pub observed: Option<(f32, f32)>,
    /// Parameters, `None` if it stays float.
    pub params: Option<QuantParams>,
    /// Signal to noise ratio, in dB.
    pub sqnr_db: Option<f64>,
}

/// A quantized model and how it came about.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// The model.
    pub model: Model,
    /// One record for each operator that has an integer kernel or weights.
    pub layers: Vec<LayerRecord>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// The values that calibration has to observe before `model`, already folded, can be quantized.
pub fn values_to_observe(model: &Model) -> Vec<String> {
    let graph = Graph::new(model.graph());
    Sites::find(&graph).values().into_iter().map(str::to_owned).collect()
}

/// Quantizes weights and activations of a folded model.
///
/// # Errors
/// [`crate::Error::Tensor`] for weights that are not finite, [`crate::Error::Data`] for a calibration with values that are not finite.
pub fn quantize_static(model: &Model, calibration: &Calibration, options: &Options) -> Result<Quantized> {
    calibration.check_finite()?;
    if let Some(reason) = too_old(model) {
        return Ok(left_float(model, &reason));
    }
    let graph = Graph::new(model.graph());
    let sites = Sites::find(&graph);
    let float = forced_float(&graph, &sites, calibration, options);
    let suggested = scales::suggested(&sites, calibration, options.method, options.scheme);
    let parameters = |int8: &[bool]| scales::activations(&sites, int8, &suggested, options.scheme);
    let candidates: Vec<bool> = (0..sites.all.len()).map(|i| !float.contains_key(&i)).collect();
    let noise = noise::estimate(&graph, &sites, &parameters(&candidates), calibration)?;
    let must_float: HashSet<usize> = float.keys().copied().collect();
    let limits = plan::Limits { float: &must_float, noise_price: options.noise_price };
    let best = plan::best(&graph, &sites, &limits, &noise, |value| calibration.elements(value));
    let int8 = best.int8;
    let activations = parameters(&int8);
    let plan = emit::Plan {
        graph: &graph,
        sites: &sites,
        int8: &int8,
        activations: &activations,
        scheme: options.scheme,
        per_channel: options.per_channel,
        rank: &|value| calibration.rank(value),
        static_shapes: graph.has_static_inputs(),
    };
    let mut emitted = emit::emit(&plan)?;
    let report = Reporter { graph: &graph, sites: &sites, calibration, activations: &activations };
    let mut layers = Vec::new();
    for (i, site) in sites.all.iter().enumerate() {
        let reason = match float.get(&i) {
            _ if int8[i] => String::new(),
            Some(reason) => reason.clone(),
            None => why_float(best.costs[i]),
        };
        let sqnr = emitted.weights.get(&site.id).map(|w| w.sqnr_db);
        layers.push((site.id, report.layer(i, int8[i], reason, sqnr)));
    }
    layers.extend(embeddings(&graph, &options.exclude, &mut emitted.patch)?);
    layers.extend(
        sites
            .rejected
            .iter()
            .map(|(id, reason)| (*id, LayerRecord::unquantized(&graph, *id, reason.clone()))),
    );
    layers.sort_by_key(|(id, _)| *id);
    let layers = layers.into_iter().map(|(_, layer)| layer).collect();
    let mut notes = notes(&graph, calibration, &emitted);
    if options.scheme == Scheme::Symmetric && int8.contains(&true) {
        notes.push(SYMMETRIC_NOTE.to_owned());
    }
    Ok(Quantized { model: apply(model, emitted.patch)?, layers, notes })
}

/// Quantizes the embedding tables; returns a record for each look-up.
fn embeddings(
    graph: &Graph,
    exclude: &HashSet<String>,
    patch: &mut Patch,
) -> Result<Vec<(NodeId, LayerRecord)>> {
    let mut layers = Vec::new();
    for id in 0..graph.nodes().len() {
        let Some(verdict) = embedding::verdict(graph, id) else { continue };
        let excluded = exclude.contains(graph.node(id).label());
        let verdict = if excluded { Err("excluded by the configuration".to_owned()) } else { verdict };
        let mut layer = LayerRecord::unquantized(graph, id, verdict.clone().err().unwrap_or_default());
        if verdict.is_ok() {
            layer.weight_sqnr_db = Some(embedding::quantize(graph, id, patch)?);
            layer.quantized = true;
        }
        layers.push((id, layer));
    }
    Ok(layers)
}

/// Why the operator set of `model` cannot express int8 weights per channel, if it cannot.
fn too_old(model: &Model) -> Option<String> {
    match model.opset() {
        Some(opset) if opset >= MINIMUM_OPSET => None,
        Some(opset) => Some(format!(
            "operator set {opset} has no int8 weights per channel; {MINIMUM_OPSET} or later has"
        )),
        None => Some("the model does not use the standard operators".to_owned()),
    }
}

/// The model as it is, with the same reason for every operator that could have been quantized.
fn left_float(model: &Model, reason: &str) -> Quantized {
    let graph = Graph::new(model.graph());
    let sites = Sites::find(&graph);
    let nodes = sites.all.iter().map(|site| site.id).chain(sites.rejected.iter().map(|(id, _)| *id));
    let layers = nodes.map(|id| LayerRecord::unquantized(&graph, id, reason.to_owned())).collect();
    Quantized { model: model.clone(), layers, notes: vec![format!("nothing is quantized: {reason}")] }
}

/// Sites that must stay float whatever they cost, with the reason.
fn forced_float(
    graph: &Graph,
    sites: &Sites,
    calibration: &Calibration,
    options: &Options,
) -> std::collections::BTreeMap<usize, String> {
    let excluded = |id: NodeId| options.exclude.contains(graph.node(id).label());
    let unseen = |value: &&&str| calibration.get(value).is_none_or(|o| o.count() == 0);
    let mut float = std::collections::BTreeMap::new();
    for (i, site) in sites.all.iter().enumerate() {
        if excluded(site.id) {
            float.insert(i, "excluded by the configuration".to_owned());
        } else if let Some(value) = site.inputs.iter().chain(&site.outputs).find(unseen) {
            float.insert(i, format!("'{value}' is not a float32 tensor that calibration saw"));
        }
    }
    float
}

/// Why a site that could run on integers does not.
fn why_float(cost: cost::Cost) -> String {
    if cost.int8 >= cost.float {
        "int8 is estimated to be slower than float".to_owned()
    } else {
        "int8 would gain less time than its noise and the conversions around it are worth".to_owned()
    }
}

/// What the user should know about the data and the weights.
fn notes(graph: &Graph, calibration: &Calibration, emitted: &emit::Emitted) -> Vec<String> {
    let mut notes = Vec::new();
    for (name, observer) in calibration.tensors() {
        if let Some(range) = observer.range().filter(|r| r.min == r.max) {
            notes.push(format!("tensor '{name}' was always {} on the calibration data", range.min));
        }
    }
    let mut dead: Vec<_> = emitted.weights.iter().filter(|(_, w)| w.dead_channels > 0).collect();
    dead.sort_by_key(|(id, _)| **id);
    for (&id, weights) in dead {
        notes.push(format!(
            "{} channels of '{}' have only zero weights",
            weights.dead_channels,
            graph.node(id).label()
        ));
    }
    notes
}

/// Makes the records of the report.
struct Reporter<'p, 'm> {
    graph: &'p Graph<'m>,
    sites: &'p Sites<'m>,
    calibration: &'p Calibration,
    activations: &'p std::collections::HashMap<&'m str, QuantParams>,
}

impl Reporter<'_, '_> {
    fn layer(
        &self,
        site: usize,
        quantized: bool,
        reason: String,
        weight_sqnr_db: Option<f64>,
    ) -> LayerRecord {
        let site = &self.sites.all[site];
        let node = self.graph.node(site.id);
        let tensors = |values: &[&str]| values.iter().map(|value| self.tensor(value, quantized)).collect();
        LayerRecord {
            name: node.label().to_owned(),
            op_type: node.op_type().to_owned(),
            quantized,
            reason,
            macs: Some(cost::multiplications(self.graph, site, |value| self.calibration.elements(value))),
            weight_sqnr_db,
            inputs: tensors(&site.inputs),
            outputs: tensors(&site.outputs),
        }
    }

    fn tensor(&self, value: &str, quantized: bool) -> TensorRecord {
        let observer = self.calibration.get(value);
        let params = self.activations.get(value).filter(|_| quantized);
        TensorRecord {
            name: value.to_owned(),
            observed: observer.and_then(|o| o.range()).map(|r| (r.min, r.max)),
            params: params.cloned(),
            sqnr_db: observer.zip(params).map(|(o, p)| noise::sqnr_db(o, p)),
        }
    }
}
