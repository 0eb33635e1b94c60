//! The linear operators whose weights can take up a scale and a shift per channel.

use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::{NodeProto, TensorProto};
use crate::ops::weight_dims;
use crate::patch::Patch;
use crate::tensor::{doubles, floats_like, is_float};

/// A `Conv`, `ConvTranspose`, `Gemm` or `MatMul` with constant weights.
pub(super) struct Linear<'m> {
    id: NodeId,
    node: &'m NodeProto,
    weight: &'m TensorProto,
    bias: Option<&'m TensorProto>,
    dims: Vec<usize>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Conv,
    ConvTranspose,
    Gemm,
    MatMul,
}

impl<'m> Linear<'m> {
    /// The linear operator at `id`, `None` if it is another one, or why it cannot be changed.
    pub fn at(graph: &Graph<'m>, id: NodeId) -> Result<Option<Self>, String> {
        let node = graph.node(id);
        let kind = match node.op_type() {
            _ if !node.is(node.op_type()) => return Ok(None),
            "Conv" => Kind::Conv,
            "ConvTranspose" => Kind::ConvTranspose,
            "Gemm" => Kind::Gemm,
            "MatMul" => Kind::MatMul,
            _ => return Ok(None),
        };
        let constant = |index| match node.input_at(index) {
            None => Ok(None),
            Some(name) => match graph.constant(name) {
                Some(tensor) if is_float(tensor) => Ok(Some(tensor)),
                _ => Err(format!("input '{name}' of '{}' is not a constant", node.label())),
            },
        };
        let Some(weight) = constant(1)? else { return Ok(None) };
        let dims = weight_dims(node, weight)?;
        let bias = if kind == Kind::MatMul { None } else { constant(2)? };
        Ok(Some(Self { id, node, weight, bias, dims, kind }))
    }

    /// Output channels.
    pub fn channels(&self) -> usize {
        match self.kind {
            Kind::Conv => self.dims[0],
            Kind::ConvTranspose => self.dims[1] * self.groups(),
            Kind::Gemm if self.node.int("transB", 0) != 0 => self.dims[0],
            Kind::Gemm | Kind::MatMul => self.dims[1],
        }
    }

    /// Input channels.
    pub fn input_channels(&self) -> usize {
        match self.kind {
            Kind::Conv => self.dims[1] * self.groups(),
            Kind::ConvTranspose => self.dims[0],
            Kind::Gemm if self.node.int("transB", 0) != 0 => self.dims[1],
            Kind::Gemm | Kind::MatMul => self.dims[0],
        }
    }

    /// Axis of the output that holds the channels, counted from the left (`Ok`) or from the right (`Err`), and the rank
    /// where it is known.
    pub fn channel_axis(&self) -> (Axis, Option<usize>) {
        match self.kind {
            Kind::Conv | Kind::ConvTranspose => (Axis::Left(1), Some(self.dims.len())),
            Kind::Gemm => (Axis::Left(1), Some(2)),
            Kind::MatMul => (Axis::Last, None),
        }
    }

    /// Whether a scale of the input passes into the weights: not for a transposed `Gemm` input.
    pub fn takes_input_scale(&self) -> bool {
        self.kind != Kind::Gemm || self.node.int("transA", 0) == 0
    }

    fn groups(&self) -> usize {
        usize::try_from(self.node.int("group", 1)).unwrap_or(1).max(1)
    }

    /// Output channel of the weight element at flat index `i`.
    fn channel_of(&self, i: usize) -> usize {
        let inner = |axis: usize| self.dims[axis + 1..].iter().product::<usize>().max(1);
        match self.kind {
            Kind::Conv => i / inner(0),
            Kind::ConvTranspose => {
                let per_input = self.dims[1] * inner(1);
                let group = (i / per_input) / (self.dims[0] / self.groups()).max(1);
                group * self.dims[1] + (i % per_input) / inner(1)
            }
            Kind::Gemm if self.node.int("transB", 0) != 0 => i / inner(0),
            Kind::Gemm | Kind::MatMul => i % self.dims[1],
        }
    }

    /// Input channel of the weight element at flat index `i`.
    fn input_channel_of(&self, i: usize) -> usize {
        let inner = |axis: usize| self.dims[axis + 1..].iter().product::<usize>().max(1);
        match self.kind {
            Kind::Conv => {
                let group = (i / inner(0)) / (self.dims[0] / self.groups()).max(1);
                group * self.dims[1] + (i % inner(0)) / inner(1)
            }
            Kind::ConvTranspose => i / inner(0),
            Kind::Gemm if self.node.int("transB", 0) != 0 => i % self.dims[1],
            Kind::Gemm | Kind::MatMul => i / inner(0),
        }
    }

    /// Bias per output channel, `beta` of a `Gemm` included; `None` when it is not a vector over channels.
    fn bias_values(&self) -> Result<Option<Vec<f64>>> {
        let channels = self.channels();
        let Some(bias) = self.bias else { return Ok(Some(vec![0.0; channels])) };
        let beta = if self.kind == Kind::Gemm { f64::from(self.node.float("beta", 1.0)) } else { 1.0 };
        let values: Vec<f64> = doubles(bias)?.into_iter().map(|v| v * beta).collect();
        let vector = bias.dims.iter().rev().skip(1).all(|&d| d == 1);
        Ok(match values.len() {
            n if n == channels && vector => Some(values),
            1 => Some(vec![values[0]; channels]),
            _ => None,
        })
    }

    /// A patch that makes this operator compute `scale[c] * y + shift[c]` under the name `output`.
    ///
    /// w'\[c, …\] = scale\[c\] · w\[c, …\] and b'\[c\] = scale\[c\] · b\[c\] + shift\[c\], in float64.
    pub fn with_output_affine(
        &self,
        graph: &Graph,
        scale: &[f64],
        shift: &[f64],
        output: &str,
    ) -> Result<Result<Patch, String>> {
        let Some(bias) = self.bias_values()? else {
            return Ok(Err(format!("the bias of '{}' is a matrix", self.node.label())));
        };
        let bias: Vec<f64> = bias.iter().zip(scale).zip(shift).map(|((b, s), t)| b * s + t).collect();
        let weight = self.scaled(|i| scale[self.channel_of(i)])?;
        let bias = (self.bias.is_some() || bias.iter().any(|&b| b != 0.0)).then_some(bias);
        self.rewritten(graph, &self.node.input[0], weight, bias, output)
    }

    /// A patch that makes this operator read `input`, which it must first take times `scale[k]` plus `shift[k]` per
    /// input channel; `None` where its bias cannot take up the shift.
    ///
    /// w'\[c, k, …\] = w\[c, k, …\] · scale\[k\] and b'\[c\] = b\[c\] + Σ w\[c, k, …\] · shift\[k\]. Zero padding stays exact with a
    /// scale alone, because zero times anything is zero.
    pub fn with_input_affine(
        &self,
        graph: &Graph,
        scale: &[f64],
        shift: &[f64],
        input: &str,
    ) -> Result<Option<Patch>> {
        let weight = self.scaled(|i| scale[self.input_channel_of(i)])?;
        let bias = if shift.iter().all(|&s| s == 0.0) {
            None
        } else {
            let Some(mut bias) = self.bias_values()? else { return Ok(None) };
            for (i, &w) in doubles(self.weight)?.iter().enumerate() {
                bias[self.channel_of(i)] += w * shift[self.input_channel_of(i)];
            }
            Some(bias)
        };
        let patch = self.rewritten(graph, input, weight, bias, &self.node.output[0])?;
        Ok(patch.ok())
    }

    /// Whether a shift of the input passes into the bias: nothing is padded, and there is a bias to pass into.
    pub fn takes_input_shift(&self, graph: &Graph) -> bool {
        let unpadded = self.node.attribute("pads").is_none_or(|pads| pads.ints.iter().all(|&p| p == 0))
            && self.node.attribute("auto_pad").is_none_or(|auto| matches!(auto.s(), b"NOTSET" | b"VALID"));
        match self.kind {
            Kind::Conv => unpadded,
            Kind::Gemm => self.node.float("alpha", 1.0) == 1.0,
            Kind::ConvTranspose => false,
            Kind::MatMul => self.takes_shift(graph),
        }
    }

    fn scaled(&self, scale: impl Fn(usize) -> f64) -> Result<Vec<f64>> {
        let weight = doubles(self.weight)?;
        Ok(weight.iter().enumerate().map(|(i, &w)| w * scale(i)).collect())
    }

    /// This operator with other weights, and another bias where one is given.
    fn rewritten(
        &self,
        graph: &Graph,
        input: &str,
        weight: Vec<f64>,
        bias: Option<Vec<f64>>,
        output: &str,
    ) -> Result<Result<Patch, String>> {
        let mut node = self.node.clone();
        input.clone_into(&mut node.input[0]);
        let name = graph.fresh(&format!("{output}.weight"), Some(self.weight.name()));
        let mut constants = vec![floats_like(self.weight, &name, &self.dims, &weight)?];
        node.input[1] = name;
        if let Some(bias) = bias {
            let name = graph.fresh(&format!("{output}.bias"), self.bias.map(TensorProto::name));
            constants.push(floats_like(self.weight, &name, &[bias.len()], &bias)?);
            node.input.resize(2, String::new());
            node.input.push(name);
            node.attribute.retain(|a| a.name() != "beta");
        }
        for constant in &constants {
            if !doubles(constant)?.iter().all(|v| v.is_finite()) {
                return Ok(Err("the folded weights would not be finite".to_owned()));
            }
        }
        if self.kind == Kind::MatMul && node.input.len() > 2 {
            node.op_type = Some("Gemm".to_owned());
        }
        node.output = vec![output.to_owned()];
        let mut patch = Patch::default();
        constants.into_iter().for_each(|constant| patch.initializer(constant));
        patch.replace(self.id, vec![node]);
        Ok(Ok(patch))
    }

    /// Whether a shift can be taken up: a `MatMul` has no bias and must be provably a matrix product to become a `Gemm`.
    pub fn takes_shift(&self, graph: &Graph) -> bool {
        self.kind != Kind::MatMul || graph.rank(&self.node.input[0]) == Some(2)
    }
}

/// Where the channels of a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    /// This many axes from the left.
    Left(usize),
    /// The last axis.
    Last,
}
