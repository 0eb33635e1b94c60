//! Writes a plan into the graph as QuantizeLinear/DequantizeLinear pairs.
//!
//! * A value made by an integer kernel keeps its name behind the pair, so that every reader, a graph output and a
//!   subgraph included, reads what the integers say.
//! * A value made in float keeps its name; only the integer kernels read the pair behind it.
//! * Weights are int8 initializers behind a DequantizeLinear, biases int32 with the scale of the kernel's sums.

mod operands;

use std::collections::HashMap;

use super::balance::Balance;
use super::placement::Placement;
use super::sites::Site;
use super::weights::{QuantizedWeights, WeightGrid};
use super::writer::Writer;
use crate::correct::Corrections;
use crate::correct::inputs::{LayerInputs, Moments};
use crate::error::Result;
use crate::fold::activations::clip_bounds;
use crate::graph::{NodeExt, NodeId};
use crate::onnx::NodeProto;
use crate::patch::{float_attribute, node};
use crate::qparams::{QuantParams, Scheme};
use crate::tensor::tensor;

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

/// What is to be written.
pub(crate) struct Plan<'p, 'm> {
    pub placement: Placement<'p, 'm>,
    pub activations: &'p HashMap<&'m str, QuantParams>,
    /// Values whose channels are on one scale.
    pub balance: &'p Balance<'m>,
    /// Whether weights leave room for pairs of products by what was seen of each channel.
    pub by_channel: bool,
    pub scheme: Scheme,
    /// Whether activations have 16 bits.
    pub wide: bool,
    pub weights: WeightGrid,
    /// What to correct, and the inputs to do it for.
    pub corrections: Option<(&'p LayerInputs, Corrections)>,
}

impl Plan<'_, '_> {
    /// What the weights of node `id` are to be corrected for.
    pub fn correction(&self, id: NodeId) -> Option<(&Moments, Corrections)> {
        let (inputs, what) = self.corrections?;
        Some((inputs.of(&self.placement.graph.node(id).output[0])?, what))
    }
}

/// The edit, and the weights that went into it by node.
pub(crate) struct Emitted<'g, 'm> {
    pub writer: Writer<'g, 'm>,
    pub weights: HashMap<NodeId, QuantizedWeights>,
}

/// Writes `plan`.
///
/// # Errors
/// [`crate::Error::Tensor`] when weights cannot be quantized.
pub(crate) fn emit<'p, 'm>(plan: &'p Plan<'p, 'm>) -> Result<Emitted<'p, 'm>> {
    let mut emitter = Emitter { plan, writer: Writer::new(plan.placement.graph), weights: HashMap::new() };
    for (site, _) in plan.placement.sites.all.iter().zip(plan.placement.int8).filter(|(_, int8)| **int8) {
        emitter.site(site)?;
    }
    for value in plan.placement.sites.values() {
        emitter.quantized_input(value);
    }
    Ok(Emitted { writer: emitter.writer, weights: emitter.weights })
}

/// Where the ends of a range of integers are those of a clip.
#[derive(Clone, Copy, PartialEq)]
enum Saturation {
    /// At both ends: the clip has nothing to do.
    Both,
    /// Above alone.
    Above,
    /// Perhaps nowhere.
    Unknown,
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
        let mut operator = plan.placement.graph.node(site.id).clone();
        self.operands(site, &mut operator, &mut nodes)?;
        let Some(clip) = site.clip else {
            self.outputs(site, operator, &mut nodes);
            self.writer.patch.replace(site.id, nodes);
            return Ok(());
        };
        let integers = plan.placement.is_written_as_integers(site, site.outputs[0]);
        if integers && self.saturation(site.outputs[0], clip) == Saturation::Both {
            operator.output.clone_from(&plan.placement.graph.node(clip).output);
            self.outputs(site, operator, &mut nodes);
            self.writer.patch.replace(site.id, nodes);
            self.writer.patch.remove(clip);
            return Ok(());
        }
        let inner = operator.output[0].clone();
        nodes.push(operator);
        let mut clip_node = plan.placement.graph.node(clip).clone();
        let mut behind = Vec::new();
        if integers && self.saturation(site.outputs[0], clip) == Saturation::Above {
            clip_node = self.clip_on_integers(site.outputs[0], &inner, clip_node, &mut behind);
        }
        self.outputs(site, clip_node, &mut behind);
        self.writer.patch.replace(site.id, nodes);
        self.writer.patch.replace(clip, behind);
        Ok(())
    }

    /// What the integers of a value do of the clip in front of it, which begins at 0.
    fn saturation(&self, value: &str, clip: NodeId) -> Saturation {
        let placement = &self.plan.placement;
        if placement.given.get(value).is_none() {
            // ONNX Runtime takes the clip away itself where the integers begin at 0.
            let symmetric = self.plan.scheme == Scheme::Symmetric;
            return if symmetric { Saturation::Above } else { Saturation::Unknown };
        }
        let params = &self.plan.activations[value];
        let (scale, zero) = (params.scale[0], params.zero_point[0]);
        let max = clip_bounds(placement.graph, clip).map_or(f32::INFINITY, |[_, max]| max);
        let most = (max / scale).round_ties_even() + zero as f32;
        match (zero == params.dtype.qmin(), most >= params.dtype.qmax() as f32) {
            (true, true) => Saturation::Both,
            (false, true) => Saturation::Above,
            _ => Saturation::Unknown,
        }
    }

    /// The last node of a site, with a pair behind each output that is written as integers.
    fn outputs(&mut self, site: &Site<'m>, mut last: NodeProto, nodes: &mut Vec<NodeProto>) {
        let written = |value: &&&str| self.plan.placement.is_written_as_integers(site, value);
        let written: Vec<&str> = site.outputs.iter().filter(written).copied().collect();
        for output in &mut last.output {
            if written.contains(&output.as_str()) {
                *output = self.writer.name(&format!("{output}_float"));
            }
        }
        nodes.push(last);
        for value in written {
            let input = self.writer.name(&format!("{value}_float"));
            let output = self.divided(value).unwrap_or_else(|| value.to_owned());
            nodes.extend(self.pair(value, value, &input, &output));
            if self.plan.placement.has_float_reader(value) {
                nodes.extend(self.undivided(value));
            }
        }
    }

    /// The name of a value that integer kernels make, divided by the factors of its channels, if it has any.
    fn divided(&mut self, value: &str) -> Option<String> {
        self.plan.balance.get(value)?;
        Some(self.writer.name(&format!("{value}_divided")))
    }

    /// The Div that makes a value of its divided form, for float readers.
    ///
    /// A DequantizeLinear with a scale for each channel would do it alone; but ONNX Runtime keeps what convolutions make
    /// with the channels last, where that takes nine times as long as one with one scale. A Mul it would take for the
    /// first of a Gelu behind it, which it then does not put together.
    fn undivided(&mut self, value: &str) -> Option<NodeProto> {
        let plan = self.plan;
        let inverse = plan.balance.get(value)?.inverse();
        let divided = self.divided(value)?;
        Some(self.by_channel("Div", value, (&divided, value), &inverse))
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
        if !self.plan.placement.has_integer_reader(value) || self.plan.placement.is_made_of_integers(value) {
            return;
        }
        self.shield(value);
        let position = self.plan.placement.graph.producer(value).map_or(0, |id| id + 1);
        let output = self.writer.dequantized(value);
        let input = match self.divided(value) {
            Some(divided) => {
                let multiply = self.division(value, &divided);
                self.writer.patch.insert(position, multiply);
                divided
            }
            None => value.to_owned(),
        };
        for new in self.pair(value, value, &input, &output) {
            self.writer.patch.insert(position, new);
        }
    }

    /// The Mul that divides a float value by the factors of its channels.
    fn division(&mut self, value: &str, divided: &str) -> NodeProto {
        let inverse = self.plan.balance[value].inverse();
        self.by_channel("Mul", value, (value, divided), &inverse)
    }

    /// A Mul or Div of a form of `value` by one number for each channel.
    fn by_channel(
        &mut self,
        op_type: &str,
        value: &str,
        (input, output): (&str, &str),
        numbers: &[f32],
    ) -> NodeProto {
        let behind = match self.plan.balance[value].axis {
            axis @ 0.. => self.plan.placement.calibration.rank(value).unwrap_or(0) as i64 - 1 - axis,
            axis => -1 - axis,
        };
        let ones = vec![1; usize::try_from(behind).unwrap_or(0)];
        let dims = [&[numbers.len()], ones.as_slice()].concat();
        let constant = self.writer.constant(&format!("{value}_factors"), || tensor("", &dims, numbers));
        node(op_type, &format!("{output}_{op_type}"), &[input, &constant], &[output])
    }

    /// Keeps a float operator that stands between two integer ones float.
    ///
    /// ONNX Runtime would take it for one of them, and even quantize its weights, per tensor. A `LeakyRelu` behind it
    /// breaks the pattern and costs nothing, because it is fused into the float kernel: with slope 1 it is the
    /// identity, with slope 0 a `Relu`.
    fn shield(&mut self, value: &str) {
        let graph = self.plan.placement.graph;
        let Some(last) = graph.producer(value) else { return };
        let relu = graph.node(last).is("Relu").then(|| graph.producer(&graph.node(last).input[0])).flatten();
        let operator = relu.unwrap_or(last);
        let shielded = graph.node(operator);
        let looks_quantized = FUSED_FROM_FLOAT.iter().any(|op_type| shielded.is(op_type))
            && shielded.input.first().is_some_and(|input| self.plan.placement.is_made_of_integers(input));
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
