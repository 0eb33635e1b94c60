//! From a float model and what calibration saw, to an int8 model.
//!
//! 1. [`sites`]: which operators have an integer kernel.
//! 2. [`scales`]: the parameters that each activation would have.
//! 3. [`plan`]: which sites are worth it, as a minimum cut over their [`cost`] in time and their [`noise`].
//! 4. [`weights`]: weights and biases as integers.
//! 5. [`emit`]: the QuantizeLinear/DequantizeLinear pairs.
//! 6. [`report`]: what became of each operator, and why.

pub(crate) mod balance;
mod cost;
mod dynamic;
mod embedding;
mod emit;
pub mod low_bit;
pub(crate) mod names;
pub(crate) mod noise;
mod pairs;
mod placement;
mod plan;
pub(crate) mod report;
pub(crate) mod scales;
pub(crate) mod sites;
pub(crate) mod weights;
pub(crate) mod writer;

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::calibration::Calibration;
use crate::correct::{self, Corrections, LayerInputs};
use crate::error::{Error, Result};
use crate::export;
use crate::fold::batch_norms_as_convolutions;
use crate::given::{Given, crowded};
use crate::graph::{Graph, NodeExt, NodeId};
use crate::model::Model;
use crate::ops::Role;
use crate::patch::{Patch, apply};
use crate::qparams::{QuantParams, Range, Scheme};
use crate::ranges::Method;
use balance::Balance;
pub use dynamic::quantize_dynamic;
pub(crate) use low_bit::encode::Encoded;
use names::Names;
pub(crate) use noise::{decibels, of_products as noise_of_products};
use placement::Placement;
use report::Decisions;
pub use report::{LayerRecord, TensorRecord};
pub(crate) use sites::Sites;
pub use weights::WeightGrid;
pub(crate) use weights::channel_axis;
use writer::Writer;

/// First operator set with per-channel QuantizeLinear/DequantizeLinear.
pub const MINIMUM_OPSET: i64 = 13;

/// How to quantize.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of the activations.
    pub scheme: Scheme,
    /// Whether activations have 16 bits in place of 8.
    pub wide: bool,
    /// How the range of an activation is chosen.
    pub method: Method,
    /// How fine the weights are.
    pub weights: WeightGrid,
    /// How much time a less noisy result is worth: a relative noise of 1 in one place costs as much as this many times
    /// the float model's time. 0 asks for speed alone.
    pub noise_price: f64,
    /// Whether channels of very different size are brought to [one scale](balance), where calibration saw each of them.
    pub equalize: bool,
    /// Whether weights leave room for pairs of products by what was seen of each channel, where calibration saw them.
    pub by_channel: bool,
    /// What to correct, if inputs of the layers are given.
    pub corrections: Corrections,
    /// Nodes that stay float, by [label](NodeExt::label).
    pub exclude: HashSet<String>,
    /// Whether everything else that has an integer kernel runs on it, whatever that costs.
    pub everything: bool,
    /// Parameters that the model came with: they are kept, and what has them runs on integers.
    pub given: Given,
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

/// The values that calibration has to observe before `model`, already folded, can be quantized for any target.
///
/// # Errors
/// [`crate::Error::Tensor`] for constants that are no tensors.
pub fn values_to_observe(model: &Model) -> Result<Vec<String>> {
    let convolutions = batch_norms_as_convolutions(model, |_| true)?;
    let graph = Graph::new(model.graph());
    let quantized = Graph::new(convolutions.as_ref().unwrap_or(model).graph());
    let mut seen = HashSet::new();
    let values = Sites::find(&quantized).values().into_iter().chain(export::values_to_observe(&graph));
    Ok(values.filter(|value| seen.insert(*value)).map(str::to_owned).collect())
}

/// The axis of the channels of each value whose channels calibration has to observe one by one.
pub fn channels_to_observe(model: &Model) -> HashMap<String, i64> {
    let graph = Graph::new(model.graph());
    balance::axes(&graph, &Sites::find(&graph))
        .into_iter()
        .map(|(value, axis)| (value.to_owned(), axis))
        .collect()
}

/// Quantizes weights and activations of a folded model.
///
/// # Errors
/// [`crate::Error::Tensor`] for weights that are not finite, [`crate::Error::Data`] for a calibration with values that
/// are not.
pub fn quantize_static(
    model: &Model,
    calibration: &Calibration,
    inputs: Option<&LayerInputs>,
    options: &Options,
) -> Result<Quantized> {
    calibration.check_finite()?;
    if let Some(reason) = too_old(model) {
        return Ok(left_float(model, &reason));
    }
    let convolutions = useful_convolutions(model, calibration, options)?;
    let model = convolutions.as_ref().unwrap_or(model);
    let graph = Graph::new(model.graph());
    let Choice { sites, forced, best, activations, balance } = choose(&graph, calibration, options)?;
    let static_shapes = graph.has_static_inputs();
    let given = &options.given;
    let placement =
        Placement { graph: &graph, sites: &sites, int8: &best.int8, calibration, given, static_shapes };
    let format = options.weights.format.map(|format| format.sparing(&graph));
    let plan = emit::Plan {
        placement,
        activations: &activations,
        balance: &balance,
        by_channel: options.by_channel,
        scheme: options.scheme,
        wide: options.wide,
        weights: WeightGrid { format, ..options.weights },
        corrections: inputs.map(|inputs| (inputs, options.corrections)),
    };
    let mut emitted = emit::emit(&plan)?;
    let coded = match format {
        Some(format) => coded(&plan, format, &options.exclude, &mut emitted)?,
        None => HashMap::new(),
    };
    let decisions = Decisions {
        graph: &graph,
        sites: &sites,
        calibration,
        scheme: options.scheme,
        forced: &forced,
        int8: &best.int8,
        costs: &best.costs,
        activations: &activations,
        balance: &balance,
        weights: &emitted.weights,
        given,
    };
    let (mut layers, mut notes) = (decisions.layers(), decisions.notes());
    notes.extend(given.remarks(&graph, |value| activations.contains_key(value)));
    for (id, layer) in &mut layers {
        if let Some(taken) = coded.get(id) {
            *layer = taken.marked(layer.clone());
        }
    }
    let effects = emitted.weights.values().filter_map(|weights| weights.effect);
    notes.extend(correct::note(effects.chain(coded.values().filter_map(|taken| taken.effect))));
    notes.extend(without_kernel(&plan.placement));
    notes.extend(crowded(&graph, &emitted.weights));
    let Writer { mut patch, mut names, .. } = emitted.writer;
    layers.extend(embeddings(&graph, (&options.exclude, given), &mut names, &mut patch)?);
    let model = low_bit::with_contrib(apply(model.clone(), patch)?)?;
    Ok(Quantized { model, layers: in_order(layers), notes })
}

/// A note about products whose results have no scale, so that ONNX Runtime has no integer kernel for them.
fn without_kernel(placement: &Placement) -> Option<String> {
    let open = placement.integer_sites().map(|(_, site)| site).filter(|site| {
        site.op.role == Role::Linear && !site.op.float_output && !placement.has_range(site.outputs[0])
    });
    let labels: Vec<&str> = open.map(|site| placement.graph.node(site.id).label()).collect();
    (!labels.is_empty()).then(|| {
        format!(
            "no scale was given for the results of '{}': ONNX Runtime computes them in float between their pairs; \
             give calibration data",
            labels.join("', '")
        )
    })
}

/// Codes the weights of the products that do not run on integers.
fn coded(
    plan: &emit::Plan,
    format: low_bit::Format,
    exclude: &HashSet<String>,
    emitted: &mut emit::Emitted,
) -> Result<HashMap<NodeId, low_bit::Taken>> {
    let graph = plan.placement.graph;
    let mut taken = HashMap::new();
    for id in 0..graph.nodes().len() {
        if !emitted.weights.contains_key(&id) && low_bit::verdict(graph, id, exclude) == Some(Ok(())) {
            let correction = plan.correction(id);
            taken.insert(
                id,
                low_bit::coded(graph, id, format, correction)?.write(&mut emitted.writer, graph, id),
            );
        }
    }
    Ok(taken)
}

/// What runs on integers, and by which parameters.
struct Choice<'m> {
    sites: Sites<'m>,
    forced: BTreeMap<usize, String>,
    best: plan::Assignment,
    activations: HashMap<&'m str, QuantParams>,
    /// Values whose channels are on one scale.
    balance: Balance<'m>,
}

fn choose<'m>(graph: &Graph<'m>, calibration: &Calibration, options: &Options) -> Result<Choice<'m>> {
    let sites = Sites::find(graph);
    if options.equalize && calibration.lacks_channels() {
        return Err(Error::Data(
            "this calibration did not observe channels one by one, which equalization needs: calibrate with equalize=True or method=\"auto\"".to_owned(),
        ));
    }
    let given = &options.given;
    let suggested = scales::suggested(&sites, calibration, given, (options.method, options.scheme));
    let static_shapes = graph.has_static_inputs();
    // Factors of channels, and the parameters that go with them, if these sites run on integers.
    let parameters = |int8: &[bool]| {
        let placement = Placement { graph, sites: &sites, int8, calibration, given, static_shapes };
        let balance =
            if options.equalize { balance::find(&placement, options.scheme) } else { Balance::new() };
        let mut suggested = suggested.clone();
        suggested.extend(balance.iter().map(|(value, balanced)| (*value, balanced.params(options.scheme))));
        let mut chosen = scales::activations(&sites, int8, &suggested, options.scheme);
        if options.wide {
            chosen = chosen.into_iter().map(|(value, params)| (value, params.widened())).collect();
        }
        (chosen, balance)
    };

    let forced = forced_float(graph, &sites, calibration, options)?;
    let candidates: Vec<bool> = (0..sites.all.len()).map(|i| !forced.contains_key(&i)).collect();
    let (params, balance) = parameters(&candidates);
    let error = |value: &str| match balance.get(value) {
        Some(balanced) => Some(balanced.rounding_noise(params.get(value)?)),
        None => Some(calibration.get(value)?.quantization_noise(params.get(value)?)),
    };
    let noise = noise::estimate(graph, &sites, error, calibration, options.weights)?;
    let limits = plan::Limits {
        candidates: &candidates,
        kept: &kept(&sites, &candidates, given, calibration.runs() == 0),
        noise_price: options.noise_price,
        everything: options.everything,
    };
    let best = plan::best(graph, &sites, &limits, &noise, |value| calibration.elements(value));
    let (activations, balance) =
        if best.int8 == candidates { (params, balance) } else { parameters(&best.int8) };
    Ok(Choice { sites, forced, best, activations, balance })
}

/// The model with a convolution in the place of each `BatchNormalization` that would then run on integers.
fn useful_convolutions(model: &Model, calibration: &Calibration, options: &Options) -> Result<Option<Model>> {
    let Some(trial) = batch_norms_as_convolutions(model, |_| true)? else { return Ok(None) };
    let graph = Graph::new(trial.graph());
    let Choice { sites, best, .. } = choose(&graph, calibration, options)?;
    let quantized = sites.all.iter().zip(&best.int8).filter(|(_, int8)| **int8);
    let made: HashSet<&str> =
        quantized.flat_map(|(site, _)| &graph.node(site.id).output).map(|o| &**o).collect();
    batch_norms_as_convolutions(model, |output| made.contains(output))
}

fn in_order(mut layers: Vec<(NodeId, LayerRecord)>) -> Vec<LayerRecord> {
    layers.sort_by_key(|(id, _)| *id);
    layers.into_iter().map(|(_, layer)| layer).collect()
}

/// Quantizes the embedding tables; returns a record for each look-up.
fn embeddings(
    graph: &Graph,
    (exclude, given): (&HashSet<String>, &Given),
    names: &mut Names,
    patch: &mut Patch,
) -> Result<Vec<(NodeId, LayerRecord)>> {
    let mut layers = Vec::new();
    for id in 0..graph.nodes().len() {
        let Some(verdict) = embedding::verdict(graph, id) else { continue };
        let excluded = exclude.contains(graph.node(id).label());
        let verdict = if excluded { Err("excluded by the configuration".to_owned()) } else { verdict };
        let mut layer = LayerRecord::unquantized(graph, id, verdict.clone().err().unwrap_or_default());
        if verdict.is_ok() {
            layer.weight_sqnr_db = Some(embedding::quantize(graph, id, given, (&mut *names, &mut *patch))?);
            layer.quantized = true;
            "int8".clone_into(&mut layer.weights);
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

/// Sites that run on integers whatever they cost, because the model came with the parameters for it.
fn kept(sites: &Sites, candidates: &[bool], given: &Given, no_data: bool) -> Vec<bool> {
    let known = |site: &sites::Site| match site.op.role {
        Role::Arithmetic | Role::Saturating => {
            site.inputs.iter().chain(&site.outputs).all(|value| given.get(value).is_some())
        }
        Role::Linear => given.get(site.inputs[0]).is_some(),
        // Nothing is known of its size without data.
        Role::Move => no_data && site.outputs.iter().all(|value| given.get(value).is_some()),
        Role::Clip => false,
    };
    let mut kept: Vec<bool> =
        sites.all.iter().zip(candidates).map(|(site, candidate)| *candidate && known(site)).collect();
    for &(one, other) in &sites.together {
        let both = kept[one] && kept[other];
        (kept[one], kept[other]) = (both, both);
    }
    kept
}

/// Why the parameters that a model came with keep a site float, if they do.
fn clash(graph: &Graph, site: &sites::Site, options: &Options) -> Result<Option<String>> {
    let given = &options.given;
    let on_this_grid = |value: &str, params: &QuantParams| {
        given.in_scheme(value, options.scheme).is_none_or(|known| known == *params)
    };
    let reason = match site.op.role {
        Role::Linear => {
            let Some(Ok(params)) = given.weights(graph, site.id) else { return Ok(None) };
            let bias = weights::bias(graph, site.id)?;
            let (Some(bias), Some(input)) = (bias, given.get(site.inputs[0])) else { return Ok(None) };
            let fits = weights::bias_fits(graph, site.id, &params, (&bias, input.scale[0]))?;
            (!fits).then(|| "its bias does not fit into int32 on the scales that were given".to_owned())
        }
        Role::Move => given.in_scheme(site.inputs[0], options.scheme).and_then(|params| {
            let apart = site.outputs.iter().find(|output| !on_this_grid(output, &params))?;
            Some(format!("'{apart}' was given on another scale than what it is moved from"))
        }),
        Role::Saturating => {
            let unit = QuantParams::new(Range { min: 0.0, max: 1.0 }, options.scheme);
            let apart = site.outputs.iter().find(|output| !on_this_grid(output, &unit));
            apart.map(|output| format!("'{output}' was given on another scale than that of 0 to 1"))
        }
        _ => None,
    };
    Ok(reason)
}

/// Sites that must stay float whatever they cost, with the reason.
fn forced_float(
    graph: &Graph,
    sites: &Sites,
    calibration: &Calibration,
    options: &Options,
) -> Result<BTreeMap<usize, String>> {
    let given = &options.given;
    let excluded = |id: NodeId| options.exclude.contains(graph.node(id).label());
    let by_blocks = options.weights.format.is_some_and(|format| format.block.is_some());
    let unseen =
        |value: &&str| given.get(value).is_none() && calibration.get(value).is_none_or(|o| o.count() == 0);
    // A product whose result has no scale hands out floats; what is moved stays on its scale.
    let outputs_needed = |site: &sites::Site| match site.op.role {
        _ if given.is_empty() => true,
        // Weights that came as integers stay integers.
        Role::Linear => !site.op.float_output && !matches!(given.weights(graph, site.id), Some(Ok(_))),
        role => role == Role::Arithmetic,
    };
    let mut float = BTreeMap::new();
    for (i, site) in sites.all.iter().enumerate() {
        let outputs = if outputs_needed(site) { site.outputs.as_slice() } else { &[] };
        let needed = || site.inputs.iter().chain(outputs).copied();
        if excluded(site.id) {
            float.insert(i, "excluded by the configuration".to_owned());
        } else if let Some(value) = needed().find(unseen) {
            float.insert(
                i,
                match given.is_empty() || calibration.runs() > 0 {
                    true => format!("'{value}' is not a float32 tensor that calibration saw"),
                    false => format!("no scale was given for '{value}': give calibration data"),
                },
            );
        } else if site.op.role == Role::Saturating && options.scheme == Scheme::Symmetric {
            float.insert(i, "integers with the zero point 0 do not clip at 0".to_owned());
        } else if let Some(reason) = clash(graph, site, options)? {
            float.insert(i, reason);
        } else if by_blocks && matches!(site.op.op_type, "Gemm" | "MatMul") {
            float.insert(i, "weights by blocks are multiplied by float activations".to_owned());
        }
    }
    Ok(float)
}
