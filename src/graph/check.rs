//! What every stage takes for granted of a graph, checked once.

use foldhash::{HashMap, HashMapExt, HashSet};

use super::{Graph, NodeExt};
use crate::error::{Error, Result};
use crate::onnx::TensorProto;
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
    /// Checks that every value is made once, that nodes have an operator and stand behind the nodes they read from, that the
    /// ones we rewrite have inputs and outputs, and that initializers are tensors of a kind that others can read.
    ///
    /// # Errors
    /// [`Error::Model`] or [`Error::Tensor`], naming the node or the initializer.
    pub fn check(&self) -> Result<()> {
        self.check_initializers()?;
        let mut made = vec![false; self.values.count()];
        let (mut all_read, mut all_made) = (self.values.read(), self.values.made());
        for (id, node) in self.nodes().iter().enumerate() {
            if node.op_type().is_empty() {
                return Err(Error::Model(format!("node {id}, '{}', has no operator", node.label())));
            }
            for (name, value) in named(&node.input).zip(&mut all_read) {
                if self.values.at(value).producer.is_some() && !made[value] {
                    return Err(Error::Model(format!(
                        "node '{}' reads '{name}' before it is made: the nodes form a cycle or are not sorted",
                        node.label()
                    )));
                }
            }
            let complete = node.input_at(0).is_some() && node.output.first().is_some_and(|o| !o.is_empty());
            if !complete && rewritten().any(|op_type| node.is(op_type)) {
                let message = format!("{} '{}' lacks an input or an output", node.op_type(), node.label());
                return Err(Error::Model(message));
            }
            for (output, value) in named(&node.output).zip(&mut all_made) {
                let known = self.values.at(value);
                if std::mem::replace(&mut made[value], true) || known.is_input || known.initializer.is_some()
                {
                    let message = format!("node '{}' makes '{output}', which exists already", node.label());
                    return Err(Error::Model(message));
                }
            }
        }
        Ok(())
    }

    /// Checks that no two initializers of one name differ, and that none has more dimensions than an array of NumPy can.
    fn check_initializers(&self) -> Result<()> {
        const MOST: usize = 64;
        let mut first = HashMap::new();
        for tensor in &self.proto.initializer {
            if tensor.dims.len() > MOST {
                let reason = format!("it has {} dimensions; at most {MOST} are read", tensor.dims.len());
                return Err(Error::tensor(tensor.name(), reason));
            }
            let known = *first.entry(tensor.name()).or_insert(tensor);
            if !std::ptr::eq(known, tensor) && known != tensor {
                return Err(Error::tensor(tensor.name(), "two different initializers have this name"));
            }
        }
        Ok(())
    }

    /// Checks that the weights of the operators that multiply or normalize are finite, except those that are known to be.
    ///
    /// # Errors
    /// [`Error::Tensor`], naming the first that is not, or whose data does not fill its shape.
    pub fn check_weights(&self, known: &HashSet<&str>) -> Result<()> {
        const WEIGHTED: &[&str] = &["BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"];
        for node in self.nodes().iter().filter(|node| WEIGHTED.iter().any(|op_type| node.is(op_type))) {
            let unknown = node.input.iter().skip(1).filter(|name| !known.contains(name.as_str()));
            let constants = unknown.filter_map(|name| self.constant(name));
            for constant in constants.filter(|t| is_float(t)) {
                if let Some(value) = wild(constant)? {
                    let reason = format!("weights of '{}' must be finite, but one is {value}", node.label());
                    return Err(Error::tensor(constant.name(), reason));
                }
            }
        }
        Ok(())
    }
}

/// The names that stand for something.
fn named(names: &[String]) -> impl Iterator<Item = &String> {
    names.iter().filter(|name| !name.is_empty())
}

/// Operators whose first input and output are taken for granted.
fn rewritten() -> impl Iterator<Item = &'static str> {
    OPS.iter().map(|op| op.op_type).chain(READ_BY_RULES.iter().copied())
}

/// The first value of a tensor that is infinite or NaN.
///
/// # Errors
/// [`Error::Tensor`] when its data does not fill its shape.
fn wild(tensor: &TensorProto) -> Result<Option<f32>> {
    const PART: usize = 1 << 18;
    let found = Parts::of(tensor)?.map(PART, |_, part| {
        // Without a branch for each value, the loop becomes vectors.
        let any = part.iter().fold(false, |any, v| any | !v.is_finite());
        if any { part.iter().copied().find(|v| !v.is_finite()) } else { None }
    });
    Ok(found.into_iter().flatten().next())
}
