//! Models for other runtimes than ONNX Runtime.
//!
//! A runtime is a table of the [layers] it multiplies integers in, and where it wants QuantizeLinear/DequantizeLinear
//! pairs: those are then [written](explicit) in front of the inputs of operators, never behind them. [ncnn] has
//! files of its own.

pub mod ascend;
mod explicit;
mod layers;
pub mod ncnn;
pub mod tensorrt;

use std::collections::{HashMap, HashSet};

use crate::calibration::Calibration;
use crate::correct::{self, Corrections, LayerInputs};
use crate::error::Result;
use crate::given::Given;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::model::Model;
use crate::qparams::Scheme;
use crate::quantize::LayerRecord;
use crate::quantize::balance::{self, Balance};
use crate::quantize::weights::QuantizedWeights;
use crate::ranges::Method;

/// How to quantize.
#[derive(Debug, Clone)]
pub struct Options<'i> {
    /// How the range of an activation is chosen.
    pub method: Method,
    /// A weight scale for each output channel where the runtime takes it, or one for the tensor.
    pub per_channel: bool,
    /// How much time a less noisy result is worth: a layer stays float where its noise, times this, is more than the share
    /// of the float model's time that int8 saves.
    pub noise_price: f64,
    /// Nodes that stay float, by [label](crate::graph::NodeExt::label).
    pub exclude: HashSet<String>,
    /// What is changed in the float model beforehand.
    pub changes: Changes<'i>,
    /// Parameters that the model came with: they are kept, and what has them runs on integers.
    pub given: Given,
}

/// What is changed in the float model, for the sake of its integers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Changes<'i> {
    /// Whether channels of very different size are brought to [one scale](crate::quantize).
    pub equalize: bool,
    /// What the layers multiply, on a few samples.
    pub inputs: Option<&'i LayerInputs>,
    /// What is corrected by that.
    pub corrections: Corrections,
}

impl Changes<'_> {
    /// The model with channels on one scale, if that is asked for, and the factors of the channels.
    fn equalized<'m>(
        &self,
        (model, graph): (&Model, &Graph<'m>),
        calibration: &Calibration,
        scheme: Scheme,
    ) -> Result<(Model, Balance<'m>)> {
        if !self.equalize {
            return Ok((model.clone(), Balance::new()));
        }
        let balance = balance::in_float(graph, calibration, scheme, self.inputs);
        Ok((balance::divided(model, graph, &balance)?, balance))
    }

    /// The equalized model corrected for the integers that its weights become, and notes.
    fn corrected(
        &self,
        model: &Model,
        balance: &Balance,
        weights: impl Fn(&Graph) -> Result<HashMap<NodeId, QuantizedWeights>>,
    ) -> Result<Corrected> {
        let equalized = (!balance.is_empty())
            .then(|| format!("channels of {} activations are brought to one scale", balance.len()));
        let notes = equalized.into_iter().collect();
        let graph = Graph::new(model.graph());
        let mut corrected = Corrected { model: model.clone(), notes, layers: HashMap::new() };
        for node in graph.nodes() {
            corrected.remark(node.label(), balance::remarks(balance, &node.input, &node.output));
        }
        let Some(inputs) = self.inputs.filter(|_| self.corrections != Corrections::default()) else {
            return Ok(corrected);
        };
        let layers = weights(&graph)?;
        let (changed, effects) =
            correct::in_float((model, &graph), &layers, balance, (inputs, self.corrections))?;
        for (id, effect) in &effects {
            corrected.remark(graph.node(*id).label(), correct::remarks(effect));
        }
        corrected.notes.extend(correct::note(effects.into_iter().map(|(_, effect)| effect)));
        corrected.model = changed;
        Ok(corrected)
    }
}

/// A model that was changed for the sake of its integers.
struct Corrected {
    model: Model,
    notes: Vec<String>,
    /// What was done, by the label of the layer.
    layers: HashMap<String, Vec<String>>,
}

impl Corrected {
    fn remark(&mut self, layer: &str, remarks: Vec<String>) {
        if !remarks.is_empty() {
            self.layers.entry(layer.to_owned()).or_default().extend(remarks);
        }
    }

    /// What was done for a layer that runs on integers goes into its record.
    fn mark<'r>(
        layers: &HashMap<String, Vec<String>>,
        records: impl IntoIterator<Item = &'r mut LayerRecord>,
    ) {
        for record in records.into_iter().filter(|record| record.quantized) {
            record.corrections = layers.get(&record.name).cloned().unwrap_or_default();
        }
    }
}

/// The values that these runtimes would have to know the ranges of.
pub(crate) fn values_to_observe<'m>(graph: &Graph<'m>) -> Vec<&'m str> {
    let mut values = tensorrt::values_to_observe(graph);
    values.extend(ascend::values_to_observe(graph));
    values
}
