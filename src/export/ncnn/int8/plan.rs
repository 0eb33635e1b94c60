//! What becomes of each layer with weights: int8, or float with a reason.

use std::collections::HashMap;

use super::super::Format;
use super::super::net::{Layer, Net, Weight};
use super::groups;
use crate::error::Result;
use crate::export::Options;
use crate::export::layers::TOO_NOISY;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::qparams::QuantParams;
use crate::quantize::scales::Grids;
use crate::quantize::{LayerRecord, noise_of_products};

/// Share of its time that a layer saves on integers, for the balance of time and noise. (Between the 1.3 and 3 times of
/// ncnn's kernels on phones.)
const SAVED: f64 = 0.5;

/// How a layer with weights is computed.
pub(crate) struct Plan {
    /// Its entries in the report, one for each node that it stands for, its own first.
    pub records: Vec<LayerRecord>,
    /// Largest magnitude of its input, where calibration saw it.
    pub input: Option<f32>,
    /// Why it stays float; `None` if it does not.
    pub reason: Option<String>,
}

impl Plan {
    /// The entries in the report.
    pub fn into_records(self) -> impl Iterator<Item = LayerRecord> {
        let reason = self.reason.unwrap_or_default();
        self.records.into_iter().map(move |record| {
            let inputs = if record.quantized { record.inputs } else { Vec::new() };
            LayerRecord { reason: reason.clone(), inputs, ..record }
        })
    }

    /// The grid of the input, where it has one.
    pub fn grid(&self) -> Option<QuantParams> {
        self.records[0].inputs.iter().find_map(|input| input.params.clone())
    }
}

/// Layers with weights, and whether ncnn computes them on integers.
#[derive(Clone, Copy, PartialEq)]
enum Kernel {
    /// Its input is quantized by a scale from calibration.
    Static,
    /// The same; without a scale row by row as it comes.
    Either,
    /// Its input is quantized, if at all, row by row as it comes.
    Dynamic,
    /// Only in float.
    Float,
}

/// The layers with weights.
const KERNELS: &[(&str, Kernel)] = &[
    ("Convolution", Kernel::Static),
    ("Convolution1D", Kernel::Float),
    ("ConvolutionDepthWise", Kernel::Static),
    ("ConvolutionDepthWise1D", Kernel::Float),
    ("Deconvolution", Kernel::Float),
    ("DeconvolutionDepthWise", Kernel::Float),
    ("Embed", Kernel::Dynamic),
    ("GRU", Kernel::Dynamic),
    ("InnerProduct", Kernel::Either),
    ("LSTM", Kernel::Dynamic),
    ("MatMul", Kernel::Float),
    ("MultiHeadAttention", Kernel::Dynamic),
    ("RNN", Kernel::Dynamic),
];

/// A plan for each layer that has weights.
///
/// # Errors
/// [`crate::Error::Tensor`] when weights cannot be read.
pub(crate) fn plans(
    (net, graph): (&Net, &Graph),
    grids: Option<&Grids>,
    format: Format,
    options: &Options,
) -> Result<Vec<Option<Plan>>> {
    let total: f64 = net.layers.iter().map(|layer| multiplications(net, layer)).sum();
    let noise = match grids {
        Some(grids) => noise_of_products(graph, grids, |value| input_params(grids, value))?,
        None => HashMap::new(),
    };
    let planner = Planner { net, graph, grids, format, options, total, noise };
    Ok(net.layers.iter().map(|layer| planner.plan(layer)).collect())
}

/// Makes a plan run on integers where another one does.
pub(crate) fn agree(plan: Option<&mut Plan>, other: Option<&Plan>) {
    if let (Some(plan), Some(other)) = (plan, other) {
        plan.reason.clone_from(&other.reason);
    }
}

fn input_params(grids: &Grids, value: &str) -> Option<QuantParams> {
    grids.knows(value).then(|| grids.params(value))
}

struct Planner<'p, 'm> {
    net: &'p Net,
    graph: &'p Graph<'m>,
    grids: Option<&'p Grids<'p, 'm>>,
    format: Format,
    options: &'p Options<'p>,
    total: f64,
    noise: HashMap<NodeId, f64>,
}

impl Planner<'_, '_> {
    fn plan(&self, layer: &Layer) -> Option<Plan> {
        let (_, kernel) = KERNELS.iter().find(|(kind, _)| *kind == layer.kind)?;
        let id = layer.origin?;
        let value = self.graph.node(id).input_at(0).unwrap_or("");
        let grids = self.grids.filter(|_| matches!(kernel, Kernel::Static | Kernel::Either));
        let params = grids.and_then(|grids| input_params(grids, value));
        let input = params.as_ref().map(|params| params.covers(0).abs_max());
        let macs = multiplications(self.net, layer);
        // Nodes that became one layer are taken to share its work evenly.
        let share = macs / (1 + layer.parts.len()) as f64;
        let mut record = LayerRecord::unquantized(self.graph, id, String::new());
        record.macs = Some(share);
        record.inputs = grids.into_iter().map(|grids| grids.record(value, params.as_ref())).collect();
        let reason = self.reason(layer, (*kernel, id, input.is_some()), macs);
        let part = |&id: &NodeId| {
            let macs = Some(share);
            LayerRecord { macs, ..LayerRecord::unquantized(self.graph, id, String::new()) }
        };
        let parts = layer.parts.iter().map(part);
        Some(Plan { records: [record].into_iter().chain(parts).collect(), input, reason })
    }

    /// Whether there are only scales that the model came with.
    fn has_no_data(&self) -> bool {
        !self.options.given.is_empty() && self.grids.is_some_and(|grids| grids.calibration.runs() == 0)
    }

    /// Whether the model came with the parameters of what a layer reads.
    fn is_kept(&self, value: &str) -> bool {
        self.options.given.get(value).is_some()
    }

    /// Why a layer stays float.
    fn reason(&self, layer: &Layer, (kernel, id, seen): (Kernel, NodeId, bool), macs: f64) -> Option<String> {
        let nodes = || [id].into_iter().chain(layer.parts.iter().copied());
        let excluded = |id| self.options.exclude.contains(self.graph.node(id).label());
        let value = self.graph.node(id).input_at(0).unwrap_or("");
        let noise: f64 = nodes().filter_map(|id| self.noise.get(&id)).sum();
        match kernel {
            _ if self.format != Format::Int8 => Some("weights in float were asked for".to_owned()),
            _ if nodes().any(excluded) => Some("excluded by the configuration".to_owned()),
            Kernel::Float if layer.kind == "MatMul" => Some("both of its inputs are activations".to_owned()),
            Kernel::Float => Some(format!("ncnn computes {} in float only", layer.kind)),
            Kernel::Static if self.grids.is_none() => {
                Some("its input needs a range: give calibration data".to_owned())
            }
            Kernel::Static if !seen && self.has_no_data() => {
                Some(format!("no scale was given for '{value}': give calibration data"))
            }
            Kernel::Static if !seen => {
                Some(format!("'{value}' is not a float32 tensor that calibration saw"))
            }
            _ if self.is_kept(value) => groups::refusal(layer),
            _ if self.options.noise_price * noise > SAVED * macs / self.total => Some(TOO_NOISY.to_owned()),
            _ => groups::refusal(layer),
        }
    }
}

/// Multiply-accumulates of a layer with its weights.
fn multiplications(net: &Net, layer: &Layer) -> f64 {
    let weights = |index: usize| match layer.weights.get(index) {
        Some(Weight::Tagged(values)) => values.len() as f64,
        _ => 0.0,
    };
    let Some(output) = layer.outputs.first() else { return 0.0 };
    let outputs = net.size(output) as f64;
    let channels = f64::from(layer.get(0, 1).max(1));
    match layer.kind.as_str() {
        "LSTM" | "GRU" | "RNN" => {
            let steps = net.shapes.get(output).map_or(1, |shape| shape[0]);
            (weights(0) + weights(2)) * steps as f64
        }
        "Deconvolution" | "DeconvolutionDepthWise" => {
            let inputs = net.size(&layer.inputs[0]) as f64;
            let depth = weights(0)
                / (channels / f64::from(layer.get(7, 1).max(1)))
                / f64::from(layer.get(1, 1) * layer.get(11, 1)).max(1.0);
            weights(0) * inputs / depth.max(1.0)
        }
        "MatMul" => {
            let inner = net.shapes.get(&layer.inputs[0]).and_then(|shape| shape.last());
            outputs * inner.copied().unwrap_or(1) as f64
        }
        "MultiHeadAttention" => {
            let rows = |blob: &String| net.shapes.get(blob).map_or(1, |shape| shape[0]) as f64;
            let keys = rows(layer.inputs.get(1).unwrap_or(&layer.inputs[0]));
            rows(output) * (weights(0) + weights(6)) + keys * (weights(2) + weights(4))
        }
        "Embed" => 0.0,
        _ => weights(0) * outputs / channels,
    }
}
