//! Which values of a plan are integers.

use super::sites::{Site, Sites};
use crate::calibration::Calibration;
use crate::given::Given;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::ops::Role;

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

/// Which sites run on integers.
#[derive(Clone, Copy)]
pub(crate) struct Placement<'p, 'm> {
    pub graph: &'p Graph<'m>,
    pub sites: &'p Sites<'m>,
    /// Whether each site runs on integers.
    pub int8: &'p [bool],
    pub calibration: &'p Calibration,
    /// Parameters that the model came with.
    pub given: &'p Given,
    /// Whether every input of the model has a fixed shape.
    pub static_shapes: bool,
}

impl<'m> Placement<'_, 'm> {
    /// The sites that run on integers.
    pub fn integer_sites(&self) -> impl Iterator<Item = (usize, &Site<'m>)> {
        self.sites.all.iter().enumerate().filter(|(i, _)| self.int8[*i])
    }

    /// Whether a `QuantizeLinear` belongs behind an output: always where its range is known, unless the kernel hands out
    /// floats, only float operators want them, and the model came without a pair there.
    pub fn is_written_as_integers(&self, site: &Site, value: &str) -> bool {
        let given = self.given.get(value).is_some();
        let wanted =
            !site.op.float_output || given || self.has_integer_reader(value) || self.is_swallowed(site);
        wanted && (site.op.role == Role::Move || self.has_range(value))
    }

    /// Whether it is known what a value on integers may be.
    pub fn has_range(&self, value: &str) -> bool {
        self.given.is_empty() || self.given.get(value).is_some() || self.calibration.saw(value)
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
    pub fn becomes_gemm(&self, site: &Site) -> bool {
        self.static_shapes || self.calibration.rank(site.inputs[0]) == Some(2)
    }

    /// Whether a value is what an integer kernel wrote.
    pub fn is_made_of_integers(&self, value: &str) -> bool {
        let producer = self.sites.producer(self.graph, value);
        producer.is_some_and(|i| self.int8[i] && self.is_written_as_integers(&self.sites.all[i], value))
    }

    /// Whether an integer kernel reads a value.
    pub fn has_integer_reader(&self, value: &str) -> bool {
        let reads = |&id: &NodeId| {
            self.sites.of_node(id).is_some_and(|i| self.int8[i] && self.sites.all[i].inputs.contains(&value))
        };
        self.graph.consumers(value).iter().any(reads)
    }

    /// Whether anything reads a value as floats: a float operator, a subgraph or the caller.
    pub fn has_float_reader(&self, value: &str) -> bool {
        let float = |&id: &NodeId| {
            self.sites.of_node(id).is_none_or(|i| !self.int8[i] || !self.sites.all[i].inputs.contains(&value))
        };
        self.graph.is_observable(value) || self.graph.consumers(value).iter().any(float)
    }
}
