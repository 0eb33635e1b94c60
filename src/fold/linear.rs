//! The linear operators whose weights can take up a scale and a shift per channel.
//!
//! Behind the operator: w'\[c, …\] = scale\[c\] · w\[c, …\] and b'\[c\] = scale\[c\] · b\[c\] + shift\[c\]. In front of it, along
//! its input channels k: w'\[c, k, …\] = w\[c, k, …\] · scale\[k\] and b'\[c\] = b\[c\] + Σ w\[c, k, …\] · shift\[k\]. Zero padding
//! stays exact with a scale alone, because zero times anything is zero.

use super::affine::{Axis, Diagonal, known_rank};
use crate::error::Result;
use crate::graph::{Graph, NodeExt, NodeId};
use crate::onnx::{NodeProto, TensorProto};
use crate::ops::weight_dims;
use crate::tensor::{doubles, floats_like, is_filled, is_float, scaled, shape};

/// A `Conv`, `ConvTranspose`, `Gemm` or `MatMul` with constant weights.
pub(super) struct Linear<'m> {
    pub id: NodeId,
    pub node: &'m NodeProto,
    weight: &'m TensorProto,
    bias: Option<&'m TensorProto>,
    dims: Vec<usize>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Conv,
    ConvTranspose,
    /// `transA`, `transB`.
    Gemm(bool, bool),
    /// x · W.
    MatMul,
    /// W · x.
    MatMulLeft,
}

/// Which channels of the weights.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Output,
    Input,
}

/// The operator as it becomes: the node, which still has the old output, and its new constants.
pub(super) struct Rewritten {
    pub node: NodeProto,
    pub constants: Vec<TensorProto>,
}

impl<'m> Linear<'m> {
    /// The linear operator at `id`, `None` if it is another one, or why it cannot be changed.
    pub fn at(graph: &Graph<'m>, id: NodeId) -> Result<Option<Self>, String> {
        let node = graph.node(id);
        let transposed = |name| node.int(name, 0) != 0;
        let is_constant = |index| node.input_at(index).is_some_and(|name| graph.constant(name).is_some());
        let kind = match node.op_type() {
            _ if !node.is(node.op_type()) => return Ok(None),
            "Conv" => Kind::Conv,
            "ConvTranspose" => Kind::ConvTranspose,
            "Gemm" => Kind::Gemm(transposed("transA"), transposed("transB")),
            "MatMul" if is_constant(0) && !is_constant(1) => Kind::MatMulLeft,
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
        let product = matches!(kind, Kind::MatMul | Kind::MatMulLeft);
        let Some(weight) = constant(usize::from(kind != Kind::MatMulLeft))? else { return Ok(None) };
        let dims = if product { matrix_dims(weight)? } else { weight_dims(node, weight)? };
        let bias = if product { None } else { constant(2)? };
        Ok(Some(Self { id, node, weight, bias, dims, kind }))
    }

    /// The activation it reads.
    pub fn data(&self) -> &'m str {
        &self.node.input[usize::from(self.kind == Kind::MatMulLeft)]
    }

    /// Output channels.
    pub fn channels(&self) -> usize {
        let last = self.dims.len() - 1;
        match self.kind {
            Kind::Conv => self.dims[0],
            Kind::ConvTranspose => self.dims[1] * self.groups(),
            Kind::Gemm(_, true) => self.dims[0],
            Kind::Gemm(_, false) | Kind::MatMul => self.dims[last],
            Kind::MatMulLeft => self.dims[last - 1],
        }
    }

    /// Input channels.
    fn input_channels(&self) -> usize {
        let last = self.dims.len() - 1;
        match self.kind {
            Kind::Conv => self.dims[1] * self.groups(),
            Kind::ConvTranspose => self.dims[0],
            Kind::Gemm(_, true) => self.dims[1],
            Kind::Gemm(_, false) | Kind::MatMul => self.dims[last - 1],
            Kind::MatMulLeft => self.dims[last],
        }
    }

    /// Axis of the output that holds the channels, and the rank where it is known.
    fn output_axis(&self, graph: &Graph) -> (Axis, Option<usize>) {
        let rank = || known_rank(graph, &self.node.output[0]).or_else(|| known_rank(graph, self.data()));
        match self.kind {
            Kind::Conv | Kind::ConvTranspose => (Axis::Left(1), Some(self.dims.len())),
            Kind::Gemm(..) => (Axis::Left(1), Some(2)),
            Kind::MatMul if self.dims.len() == 2 => (Axis::Right(0), rank()),
            Kind::MatMul => (Axis::Right(0), known_rank(graph, &self.node.output[0])),
            Kind::MatMulLeft => (Axis::Right(1), known_rank(graph, &self.node.output[0])),
        }
    }

    /// Axis of the input that holds the channels, and the rank where it is known.
    pub fn input_axis(&self, graph: &Graph) -> (Axis, Option<usize>) {
        match self.kind {
            Kind::Conv | Kind::ConvTranspose => (Axis::Left(1), Some(self.dims.len())),
            Kind::Gemm(transposed, _) => (Axis::Left(usize::from(!transposed)), Some(2)),
            Kind::MatMul => (Axis::Right(0), known_rank(graph, self.data())),
            Kind::MatMulLeft => (Axis::Right(1), known_rank(graph, self.data())),
        }
    }

    /// Output channels, if they are along `axis`.
    pub fn channels_along(&self, graph: &Graph, axis: Axis) -> Option<usize> {
        let (own, rank) = self.output_axis(graph);
        (own.resolved(rank) == axis.resolved(rank)).then(|| self.channels())
    }

    /// `map` per output channel.
    pub fn output_map(&self, graph: &Graph, map: &Diagonal) -> Option<Diagonal> {
        let (axis, rank) = self.output_axis(graph);
        map.per_channel(self.channels(), axis, rank)
    }

    /// `map` per input channel.
    pub fn input_map(&self, graph: &Graph, map: &Diagonal) -> Option<Diagonal> {
        let (axis, rank) = self.input_axis(graph);
        map.per_channel(self.input_channels(), axis, rank)
    }

    /// Why a shift of the output cannot become part of the bias: a `MatMul` has none and must be provably a product of two
    /// matrices to become a `Gemm`.
    pub fn refuses_output_shift(&self, graph: &Graph) -> Option<&'static str> {
        let product = matches!(self.kind, Kind::MatMul | Kind::MatMulLeft);
        let gemm = self.kind == Kind::MatMul
            && self.dims.len() == 2
            && known_rank(graph, self.data()).or_else(|| known_rank(graph, &self.node.output[0])) == Some(2);
        (product && !gemm).then_some("a MatMul has no bias to take up the shift")
    }

    /// Why a shift of the input cannot become part of the bias.
    pub fn refuses_input_shift(&self, graph: &Graph) -> Option<&'static str> {
        let unpadded = self.node.attribute("pads").is_none_or(|pads| pads.ints.iter().all(|&p| p == 0))
            && self.node.attribute("auto_pad").is_none_or(|auto| matches!(auto.s(), b"NOTSET" | b"VALID"));
        match self.kind {
            Kind::Conv => (!unpadded).then_some("the padding with zeros would have to be shifted too"),
            Kind::ConvTranspose => Some("the borders of a transposed convolution sum fewer products"),
            Kind::Gemm(..) => None,
            Kind::MatMul | Kind::MatMulLeft => self.refuses_output_shift(graph),
        }
    }

    /// Whether the bias is a value per channel, or can become one.
    pub fn has_channel_bias(&self) -> bool {
        let vector = |bias: &TensorProto| bias.dims.iter().rev().skip(1).all(|&d| d == 1);
        self.bias.is_none_or(|bias| {
            let last = bias.dims.last().map_or(1, |&d| d);
            vector(bias) && (last == 1 || last == self.channels() as i64)
        })
    }

    /// This operator followed by `map`, per output channel. `None` if the weights would not be finite.
    pub fn followed_by(&self, graph: &Graph, map: &Diagonal, name: &str) -> Result<Option<Rewritten>> {
        let bias = self.bias_values()?;
        let bias: Vec<f64> =
            bias.iter().zip(&map.scale).zip(&map.shift).map(|((b, s), t)| b * s + t).collect();
        let bias = (self.bias.is_some() || bias.iter().any(|&b| b != 0.0)).then_some(bias);
        self.rewritten(graph, Side::Output, &map.scale, bias, name)
    }

    /// This operator behind `map`, per input channel. `None` if the weights would not be finite.
    pub fn behind(&self, graph: &Graph, map: &Diagonal, name: &str) -> Result<Option<Rewritten>> {
        let bias = if map.has_shift() {
            let alpha = if matches!(self.kind, Kind::Gemm(..)) { self.node.float("alpha", 1.0) } else { 1.0 };
            let mut bias = self.bias_values()?;
            let weight = doubles(self.weight)?;
            let (inner, input) = self.chunks(Side::Input);
            let (outer, output) = self.chunks(Side::Output);
            for (i, w) in weight.iter().enumerate() {
                bias[output(i / outer)] += f64::from(alpha) * w * map.shift[input(i / inner)];
            }
            Some(bias)
        } else {
            None
        };
        self.rewritten(graph, Side::Input, &map.scale, bias, name)
    }

    fn groups(&self) -> usize {
        usize::try_from(self.node.int("group", 1)).unwrap_or(1).max(1)
    }

    /// How the channels of one side lie in the weights: runs of this many elements, and the channel of each run.
    fn chunks(&self, side: Side) -> (usize, Box<dyn Fn(usize) -> usize + Sync>) {
        let behind = |axis: usize| self.dims[axis + 1..].iter().product::<usize>().max(1);
        let (rows, columns) = (self.dims[self.dims.len() - 2], self.dims[self.dims.len() - 1]);
        let (second, per_group) = (self.dims[1], (self.dims[0] / self.groups()).max(1));
        let grouped = move |run: usize| run / second / per_group * second + run % second;
        match (self.kind, side) {
            (Kind::Conv, Side::Output) | (Kind::ConvTranspose, Side::Input) => {
                (behind(0), Box::new(|run| run))
            }
            (Kind::Conv, Side::Input) | (Kind::ConvTranspose, Side::Output) => (behind(1), Box::new(grouped)),
            (Kind::Gemm(_, true) | Kind::MatMulLeft, Side::Output)
            | (Kind::Gemm(_, false) | Kind::MatMul, Side::Input) => {
                (columns, Box::new(move |run| run % rows))
            }
            (Kind::Gemm(_, true) | Kind::MatMulLeft, Side::Input)
            | (Kind::Gemm(_, false) | Kind::MatMul, Side::Output) => (1, Box::new(move |run| run % columns)),
        }
    }

    /// Bias per output channel, `beta` of a `Gemm` included.
    fn bias_values(&self) -> Result<Vec<f64>> {
        let channels = self.channels();
        let Some(bias) = self.bias else { return Ok(vec![0.0; channels]) };
        let gemm = matches!(self.kind, Kind::Gemm(..));
        let beta = if gemm { f64::from(self.node.float("beta", 1.0)) } else { 1.0 };
        let values: Vec<f64> = doubles(bias)?.into_iter().map(|v| v * beta).collect();
        Ok(if values.len() == 1 { vec![values[0]; channels] } else { values })
    }

    /// This operator with scaled weights, and another bias where one is given. New constants are called after `name`.
    fn rewritten(
        &self,
        graph: &Graph,
        side: Side,
        scale: &[f64],
        bias: Option<Vec<f64>>,
        name: &str,
    ) -> Result<Option<Rewritten>> {
        let mut node = self.node.clone();
        let mut constants = Vec::new();
        if scale.iter().any(|&s| s != 1.0) {
            let weight = graph.fresh(&format!("{name}.weight"), Some(self.weight.name()));
            let (inner, channel) = self.chunks(side);
            let Some(scaled) = scaled(self.weight, &weight, inner, |run| scale[channel(run)])? else {
                return Ok(None);
            };
            constants.push(scaled);
            node.input[usize::from(self.kind != Kind::MatMulLeft)] = weight;
        }
        if let Some(bias) = bias {
            let name = graph.fresh(&format!("{name}.bias"), self.bias.map(TensorProto::name));
            let bias = floats_like(self.weight, &name, &[bias.len()], &bias)?;
            if !doubles(&bias)?.iter().all(|v| v.is_finite()) {
                return Ok(None);
            }
            constants.push(bias);
            node.input.resize(2, String::new());
            node.input.push(name);
            node.attribute.retain(|a| a.name() != "beta");
            if self.kind == Kind::MatMul {
                node.op_type = Some("Gemm".to_owned());
            }
        }
        Ok(Some(Rewritten { node, constants }))
    }

    /// The type of the weights, for other constants beside them.
    pub fn weight(&self) -> &'m TensorProto {
        self.weight
    }
}

/// Dimensions of a matrix, or of a batch of matrices.
fn matrix_dims(weight: &TensorProto) -> Result<Vec<usize>, String> {
    let dims = shape(weight).map_err(|e| e.to_string())?;
    if dims.len() < 2 || dims.contains(&0) || !is_filled(weight) {
        return Err(format!("its weights '{}' are no matrix with data", weight.name()));
    }
    Ok(dims)
}
