//! What became of each operator, and what the user should know.

use std::collections::{BTreeMap, HashMap};

use super::balance::{self, Balance};
use super::cost::{Cost, multiplications};
use super::noise::{decibels, sqnr_db};
use super::sites::{Site, Sites};
use super::weights::QuantizedWeights;
use crate::calibration::Calibration;
use crate::correct;
use crate::given::Given;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::ops::PRODUCTS;
use crate::qparams::{QuantParams, Scheme};

/// What a user of the symmetric scheme should know about ONNX Runtime on x86.
const SYMMETRIC: &str = "ONNX Runtime on x86 has no fast kernels for int8 activations: what it cannot turn into uint8 it \
     computes in float; the asymmetric scheme is the quicker one there";

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
    /// Multiply-accumulates with weights in one inference, where known.
    pub macs: Option<f64>,
    /// Number format of its weights; empty if they are float, or there are none.
    pub weights: String,
    /// Signal to noise ratio of its weights, in dB.
    pub weight_sqnr_db: Option<f64>,
    /// What was done to lose less: channels on one scale, weights rounded for the results, the bias corrected.
    pub corrections: Vec<String>,
    /// What it reads.
    pub inputs: Vec<TensorRecord>,
    /// What it makes.
    pub outputs: Vec<TensorRecord>,
}

impl LayerRecord {
    /// The record of a node that stays float, or of which no more is known than that it does not.
    pub(crate) fn unquantized(graph: &Graph, id: NodeId, reason: String) -> Self {
        let node = graph.node(id);
        let constant = |value: &String| graph.initializer(value).is_some();
        let of_activations = PRODUCTS.contains(&node.op_type()) && !node.input.iter().take(2).any(constant);
        Self {
            name: node.label().to_owned(),
            op_type: node.op_type().to_owned(),
            quantized: false,
            reason,
            macs: of_activations.then_some(0.0),
            weights: String::new(),
            weight_sqnr_db: None,
            corrections: Vec::new(),
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
    /// Parameters, `None` if it stays float.
    pub params: Option<QuantParams>,
    /// Signal to noise ratio, in dB.
    pub sqnr_db: Option<f64>,
}

/// Everything that static quantization decided.
pub(crate) struct Decisions<'p, 'm> {
    pub graph: &'p Graph<'m>,
    pub sites: &'p Sites<'m>,
    pub calibration: &'p Calibration,
    pub scheme: Scheme,
    /// Sites that had to stay float, and why.
    pub forced: &'p BTreeMap<usize, String>,
    /// Whether each site runs on integers.
    pub int8: &'p [bool],
    /// Estimated time of each site.
    pub costs: &'p [Cost],
    pub activations: &'p HashMap<&'m str, QuantParams>,
    /// Values whose channels are on one scale.
    pub balance: &'p Balance<'m>,
    pub weights: &'p HashMap<NodeId, QuantizedWeights>,
    /// Parameters that the model came with.
    pub given: &'p Given,
}

impl Decisions<'_, '_> {
    /// A record for each site and each operator with weights that is none.
    pub fn layers(&self) -> Vec<(NodeId, LayerRecord)> {
        let sites = (0..self.sites.all.len()).map(|i| (self.sites.all[i].id, self.layer(i)));
        let rejected = self.sites.rejected.iter();
        let rejected =
            rejected.map(|(id, why)| (*id, LayerRecord::unquantized(self.graph, *id, why.clone())));
        sites.chain(rejected).collect()
    }

    fn layer(&self, i: usize) -> LayerRecord {
        let (site, quantized) = (&self.sites.all[i], self.int8[i]);
        let tensors = |values: &[&str]| values.iter().map(|value| self.tensor(value, quantized)).collect();
        LayerRecord {
            quantized,
            macs: Some(multiplications(self.graph, site, |value| self.calibration.elements(value))),
            weights: self.weights.get(&site.id).map_or(String::new(), |weights| weights.format().to_owned()),
            weight_sqnr_db: self.weights.get(&site.id).map(|weights| weights.sqnr_db),
            corrections: if quantized { self.corrections(site) } else { Vec::new() },
            inputs: tensors(&site.inputs),
            outputs: tensors(&site.outputs),
            ..LayerRecord::unquantized(self.graph, site.id, self.reason(i))
        }
    }

    /// What was done for a site that runs on integers.
    fn corrections(&self, site: &Site) -> Vec<String> {
        let balanced = balance::remarks(self.balance, &site.inputs, &site.outputs);
        let effect = self.weights.get(&site.id).and_then(|weights| weights.effect.as_ref());
        balanced.into_iter().chain(effect.into_iter().flat_map(correct::remarks)).collect()
    }

    /// Why a site stays float; empty if it does not.
    fn reason(&self, i: usize) -> String {
        match self.forced.get(&i) {
            _ if self.int8[i] => String::new(),
            Some(reason) => reason.clone(),
            None if self.costs[i].int8 >= self.costs[i].float => {
                "int8 is estimated to be slower than float".to_owned()
            }
            None => {
                "int8 would gain less time than its noise and the conversions around it are worth".to_owned()
            }
        }
    }

    fn tensor(&self, value: &str, quantized: bool) -> TensorRecord {
        let observer = self.calibration.get(value);
        let known = self.given.is_empty() || observer.is_some() || self.given.get(value).is_some();
        let params = self.activations.get(value).filter(|_| quantized && known);
        if let (Some(balanced), Some(params)) = (self.balance.get(value), params) {
            let rank = self.calibration.rank(value).unwrap_or(0) as i64;
            let axis = if balanced.axis < 0 { rank + balanced.axis } else { balanced.axis };
            let noise = balanced.rounding_noise(params);
            return TensorRecord {
                name: value.to_owned(),
                params: Some(balanced.undivided(params, usize::try_from(axis).unwrap_or(0))),
                sqnr_db: observer.map(|o| decibels(o.power() / noise)),
            };
        }
        TensorRecord {
            name: value.to_owned(),
            params: params.cloned(),
            sqnr_db: observer.zip(params).map(|(o, p)| sqnr_db(o, p)),
        }
    }

    /// What is remarkable about the data, the weights and the scheme.
    pub fn notes(&self) -> Vec<String> {
        let constant = self.calibration.tensors().filter_map(|(name, observer)| {
            let range = observer.range().filter(|r| r.min == r.max)?;
            Some(format!("tensor '{name}' was always {} on the calibration data", range.min))
        });
        let mut dead: Vec<_> = self.weights.iter().filter(|(_, w)| w.dead_channels > 0).collect();
        dead.sort_by_key(|(id, _)| **id);
        let dead = dead.into_iter().map(|(id, weights)| {
            let name = self.graph.node(*id).label();
            format!("{} channels of '{name}' have only zero weights", weights.dead_channels)
        });
        let symmetric = self.scheme == Scheme::Symmetric && self.int8.contains(&true);
        constant.chain(dead).chain(symmetric.then(|| SYMMETRIC.to_owned())).collect()
    }
}
