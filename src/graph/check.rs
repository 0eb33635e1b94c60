//! What every stage takes for granted of a graph, checked once.

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

use super::{Graph, NodeExt};
use crate::error::{Error, Result};
use crate::ops::OPS;
use crate::tensor::{Parts, is_float};

/// Operators that the rules look into, besides those with integer kernels.
const READ_BY_RULES: &[&str] = &[
    "BatchNormalization",
    "ConvTranspose",
    "Div",
    "Dropout",
    "Gather",
    "GlobalMaxPool",
    "Identity",
    "Neg",
    "Pad",
    "ReduceMean",
    "Sub",
];

impl Graph<'_> {
    /// Checks that every value is made once, that nodes stand behind the nodes they read from, and that the ones we
    /// rewrite have inputs and outputs.
    ///
    /// # Errors
    /// [`Error::Model`], naming the node.
    pub fn check(&self) -> Result<()> {
        self.check_initializers()?;
        let mut made = HashSet::new();
        for node in self.nodes() {
            let early = |name: &&String| self.producer(name).is_some() && !made.contains(name.as_str());
            if let Some(name) = node.input.iter().find(early) {
                return Err(Error::Model(format!(
                    "node '{}' reads '{name}' before it is made: the nodes form a cycle or are not sorted",
                    node.label()
                )));
            }
            let rewritten = OPS.iter().map(|op| op.op_type).chain(READ_BY_RULES.iter().copied());
            let ours = rewritten.into_iter().any(|op_type| node.is(op_type));
            let complete = node.input_at(0).is_some() && node.output.first().is_some_and(|o| !o.is_empty());
            if ours && !complete {
                let message = format!("{} '{}' lacks an input or an output", node.op_type(), node.label());
                return Err(Error::Model(message));
            }
            for output in node.output.iter().filter(|output| !output.is_empty()) {
                if !made.insert(output.as_str())
                    || self.is_input(output)
                    || self.initializer(output).is_some()
                {
                    let message = format!("node '{}' makes '{output}', which exists already", node.label());
                    return Err(Error::Model(message));
                }
            }
        }
        Ok(())
    }

    /// Checks that no two initializers of one name differ.
    fn check_initializers(&self) -> Result<()> {
        let mut first = HashMap::new();
        for tensor in &self.proto.initializer {
            let known = *first.entry(tensor.name()).or_insert(tensor);
            if !std::ptr::eq(known, tensor) && known != tensor {
                return Err(Error::tensor(tensor.name(), "two different initializers have this name"));
            }
        }
        Ok(())
    }

    /// Checks that the weights of the operators that multiply or normalize are finite.
    ///
    /// # Errors
    /// [`Error::Tensor`], naming the first that is not, or whose data does not fill its shape.
    pub fn check_weights(&self) -> Result<()> {
        const PART: usize = 1 << 18;
        const WEIGHTED: &[&str] = &["BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"];
        for node in self.nodes().iter().filter(|node| WEIGHTED.iter().any(|op_type| node.is(op_type))) {
            let constants = node.input.iter().skip(1).filter_map(|name| self.constant(name));
            for constant in constants.filter(|t| is_float(t)) {
                let parts = Parts::of(constant)?;
                let wild = parts.map(PART, |_, part| part.iter().copied().find(|v| !v.is_finite()));
                if let Some(value) = wild.into_iter().flatten().next() {
                    let reason = format!("weights of '{}' must be finite, but one is {value}", node.label());
                    return Err(Error::tensor(constant.name(), reason));
                }
            }
        }
        Ok(())
    }
}
