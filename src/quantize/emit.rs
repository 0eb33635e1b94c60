//! Writes a plan into the graph as QuantizeLinear/DequantizeLinear pairs.
//!
//! * A value made by an integer kernel keeps its name behind the pair, so that every reader, a graph output and a
//!   subgraph included, reads what the integers say.
//! * A value made in float keeps its name; only the integer kernels read the pair behind it.
//! * Weights are int8 initializers behind a DequantizeLinear, biases int32 with the scale of the kernel's sums.

mod operands;

use std::collections::HashMap;

use super::names::Names;
use super::sites::{Site, Sites};
use super::weights::{QuantizedWeights, WeightGrid};
use super::writer::Writer;
use crate::calibration::Calibration;
use crate::correct::Corrections;
use crate::correct::inputs::{LayerInputs, Moments};
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::NodeProto;
use crate::patch::{Patch, float_attribute, node};
use crate::qparams::{QuantParams, Scheme};

/// Float operators that ONNX Runtime fuses with the DequantizeLinear before and the QuantizeLinear behind them.
const FUSED_FROM_FLOAT: &[&str] = &[
    "Add",
    "AveragePool",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Gemm",
    "GlobalAveragePool",
    "MatMul",
    "Mul",
    "Sigmoid",
    "Softmax",
    "Where",
];

/// Activations that ONNX Runtime lets a float `Gemm` in front of them take up.
const FUSED_WITH_GEMM: &[&str] = &[
    "Clip",
    "Elu",
    "HardSigmoid",
    "LeakyRelu",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
    "ThresholdedRelu",
];

/// What is to be written.
pub(crate) struct Plan<'p, 'm> {
    pub graph: &'p Graph<'m>,
    pub sites: &'p Sites<'m>,
    /// Whether each site runs on integers.
    pub int8: &'p [bool],
    pub activations: &'p HashMap<&'m str, QuantParams>,
    pub scheme: Scheme,
    pub weights: WeightGrid,
    /// What to correct, and the inputs to do it for.
    pub corrections: Option<(&'p LayerInputs, Corrections)>,
    pub calibration: &'p Calibration,
    /// Whether every input of the model has a fixed shape.
    pub static_shapes: bool,
}

impl Plan<'_, '_> {
    /// What the weights of a site are to be corrected for.
    fn correction(&self, site: &Site) -> Option<(&Moments, Corrections)> {
        let (inputs, what) = self.corrections?;
        Some((inputs.of(&self.graph.node(site.id).output[0])?, what))
    }

    /// Whether a `QuantizeLinear` belongs behind an output: always, unless the kernel hands out floats and only
    /// float operators want them.
    fn is_written_as_integers(&self, site: &Site, value: &str) -> bool {
        !site.op.float_output || self.has_integer_reader(value) || self.is_swallowed(site)
    }

    /// Whether ONNX Runtime would put a `Gemm`, or what it makes one of, together with the activation behind it, in
    /// float, before it sees the integers.
    fn is_swallowed(&self, site: &Site) -> bool {
        let reader = |value: &str| self.graph.sole_consumer(value).map(|id| self.graph.node(id));
        let meets_activation = |value: &str| {
            reader(value).is_some_and(|node| FUSED_WITH_GEMM.iter().any(|op_type| node.is(op_type)))
        };
        let output = site.outputs[0];
        match site.op.op_type {
            "Gemm" => site.clip.is_some() || meets_activation(output),
            "MatMul" if self.becomes_gemm(site) => {
                reader(output).is_some_and(|node| node.is("Add") && meets_activation(&node.output[0]))
            }
            _ => false,
        }
    }

    /// Whether ONNX Runtime knows the operands of a `MatMul` to be matrices, and makes a `Gemm` of it and an `Add`.
    fn becomes_gemm(&self, site: &Site) -> bool {
        self.static_shapes || self.calibration.rank(site.inputs[0]) == Some(2)
    }

    fn is_made_of_integers(&self, value: &str) -> bool {
        let producer = self.sites.producer(self.graph, value);
        producer.is_some_and(|i| self.int8[i] && self.is_written_as_integers(&self.sites.all[i], value))
    }

    fn has_integer_reader(&self, value: &str) -> bool {
        let reads = |&id: &NodeId| {
            self.sites.of_node(id).is_some_and(|i| self.int8[i] && self.sites.all[i].inputs.contains(&value))
        };
        self.graph.consumers(value).iter().any(reads)
    }
}

/// The edit, and the weights that went into it by node.
pub(crate) struct Emitted<'g, 'm> {
    pub patch: Patch,
    /// For what else is added.
    pub names: Names<'g, 'm>,
    pub weights: HashMap<NodeId, QuantizedWeights>,
}

/// Writes `plan`.
///
/// # Errors
/// [`crate::Error::Tensor`] when weights cannot be quantized.
pub(crate) fn emit<'p, 'm>(plan: &'p Plan<'p, 'm>) -> Result<Emitted<'p, 'm>> {
    let mut emitter = Emitter { plan, writer: Writer::new(plan.graph), weights: HashMap::new() };
    for (site, _) in plan.sites.all.iter().zip(plan.int8).filter(|(_, int8)| **int8) {
        emitter.site(site)?;
    }
    for value in plan.sites.values() {
        emitter.quantized_input(value);
    }
    let Writer { patch, names, .. } = emitter.writer;
    Ok(Emitted { patch, names, weights: emitter.weights })
}

struct Emitter<'p, 'm> {
    plan: &'p Plan<'p, 'm>,
    writer: Writer<'p, 'm>,
    weights: HashMap<NodeId, QuantizedWeights>,
}

impl<'m> Emitter<'_, 'm> {
    /// Rewrites the nodes of one site: its integer inputs, its weights, and the pairs behind its outputs.
    fn site(&mut self, site: &Site<'m>) -> Result<()> {
        let plan = self.plan;
        let mut nodes = Vec::new();
        let mut operator = plan.graph.node(site.id).clone();
        self.operands(site, &mut operator, &mut nodes)?;
        let Some(clip) = site.clip else {
            self.outputs(site, operator, &mut nodes);
            self.writer.patch.replace(site.id, nodes);
            return Ok(());
        };
        let inner = operator.output[0].clone();
        nodes.push(operator);
        let mut clip_node = plan.graph.node(clip).clone();
        let mut behind = Vec::new();
        let integers = plan.is_written_as_integers(site, site.outputs[0]);
        if plan.scheme == Scheme::Symmetric && integers {
            clip_node = self.clip_on_integers(site.outputs[0], &inner, clip_node, &mut behind);
        }
        self.outputs(site, clip_node, &mut behind);
        self.writer.patch.replace(site.id, nodes);
        self.writer.patch.replace(clip, behind);
        Ok(())
    }

    /// The last node of a site, with a pair behind each output that is written as integers.
    fn outputs(&mut self, site: &Site<'m>, mut last: NodeProto, nodes: &mut Vec<NodeProto>) {
        let written = |value: &&&str| self.plan.is_written_as_integers(site, value);
        let written: Vec<&str> = site.outputs.iter().filter(written).copied().collect();
        for output in &mut last.output {
            if written.contains(&output.as_str()) {
                *output = self.writer.name(&format!("{output}_float"));
            }
        }
        nodes.push(last);
        for value in written {
            let input = self.writer.name(&format!("{value}_float"));
            nodes.extend(self.pair(value, value, &input, value));
        }
    }

    /// A clip at 0 in the symmetric scheme, where 0 is in the middle of the integers and saturation cannot stand in for
    /// it: a pair with the scale of the result, whose saturation is the upper bound, and a `LeakyRelu` with slope 0,
    /// for which there is an integer kernel.
    fn clip_on_integers(
        &mut self,
        value: &str,
        inner: &str,
        clip: NodeProto,
        nodes: &mut Vec<NodeProto>,
    ) -> NodeProto {
        let unclipped = self.writer.name(&format!("{inner}_dequantized"));
        nodes.extend(self.pair(value, inner, inner, &unclipped));
        let mut relu = node("LeakyRelu", clip.name(), &[&unclipped], &[&clip.output[0]]);
        relu.attribute.push(float_attribute("alpha", 0.0));
        relu
    }

    /// A float value that integer kernels read: its pair, right where it is made.
    fn quantized_input(&mut self, value: &str) {
        if !self.plan.has_integer_reader(value) || self.plan.is_made_of_integers(value) {
            return;
        }
        self.shield(value);
        let position = self.plan.graph.producer(value).map_or(0, |id| id + 1);
        let output = self.writer.dequantized(value);
        for new in self.pair(value, value, value, &output) {
            self.writer.patch.insert(position, new);
        }
    }

    /// Keeps a float operator that stands between two integer ones float.
    ///
    /// ONNX Runtime would take it for one of them, and even quantize its weights, per tensor. A `LeakyRelu` behind it
    /// breaks the pattern and costs nothing, because it is fused into the float kernel: with slope 1 it is the
    /// identity, with slope 0 a `Relu`.
    fn shield(&mut self, value: &str) {
        let graph = self.plan.graph;
        let Some(last) = graph.producer(value) else { return };
        let relu = graph.node(last).is("Relu").then(|| graph.producer(&graph.node(last).input[0])).flatten();
        let operator = relu.unwrap_or(last);
        let shielded = graph.node(operator);
        let looks_quantized = FUSED_FROM_FLOAT.iter().any(|op_type| shielded.is(op_type))
            && shielded.input.first().is_some_and(|input| self.plan.is_made_of_integers(input));
        // QuantizeLinear would move in front of the pooling, where there is more to do and the integer kernel is slow.
        if !looks_quantized && !shielded.is("MaxPool") {
            return;
        }
        let label = self.writer.name(&format!("{value}_shield"));
        let guard = |input: &str, slope: f32| {
            let mut guard = node("LeakyRelu", &label, &[input], &[value]);
            guard.attribute.push(float_attribute("alpha", slope));
            guard
        };
        if relu.is_some() {
            self.writer.patch.replace(last, vec![guard(&shielded.output[0], 0.0)]);
        } else {
            let inner = self.writer.name(&format!("{value}_unshielded"));
            let guard = guard(&inner, 1.0);
            self.writer
                .patch
                .replace(operator, vec![NodeProto { output: vec![inner], ..shielded.clone() }, guard]);
        }
    }

    /// The pair with the parameters of `value`.
    fn pair(&mut self, value: &str, base: &str, input: &str, output: &str) -> [NodeProto; 2] {
        self.writer.pair((value, &self.plan.activations[value]), base, input, output)
    }
}
