//! QuantizeLinear and DequantizeLinear, read.

use crate::graph::{Graph, NodeExt, NodeId};
use crate::model::is_default_domain;
use crate::onnx::{NodeProto, TensorProto};
use crate::qparams::{Dtype, QuantParams};
use crate::tensor::{DataType, codes, floats, shape};

/// An integer type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub qmin: i32,
    pub qmax: i32,
    /// The type that holds its codes.
    pub dtype: Dtype,
}

/// The types that codes are of.
const KINDS: &[(DataType, Kind)] = &[
    (DataType::Int8, Kind { qmin: -128, qmax: 127, dtype: Dtype::Int8 }),
    (DataType::Uint8, Kind { qmin: 0, qmax: 255, dtype: Dtype::Uint8 }),
    (DataType::Int16, Kind { qmin: -32768, qmax: 32767, dtype: Dtype::Int16 }),
    (DataType::Uint16, Kind { qmin: 0, qmax: 65535, dtype: Dtype::Uint16 }),
    (DataType::Int4, Kind { qmin: -8, qmax: 7, dtype: Dtype::Int8 }),
    (DataType::Uint4, Kind { qmin: 0, qmax: 15, dtype: Dtype::Uint8 }),
    (DataType::Int32, Kind { qmin: i32::MIN, qmax: i32::MAX, dtype: Dtype::Int32 }),
];

impl Kind {
    /// That of a number of `TensorProto.DataType`.
    pub fn of(data_type: i32) -> Option<Self> {
        KINDS.iter().find(|(t, _)| *t as i32 == data_type).map(|(_, kind)| *kind)
    }

    /// Whether a whole byte, or two, holds a code, so that nothing but its type saturates it.
    pub fn is_whole(self) -> bool {
        self.qmin == self.dtype.qmin()
    }
}

/// Whether a node is `op_type`, of ONNX or of ONNX Runtime.
pub(super) fn is(node: &NodeProto, op_type: &str) -> bool {
    node.op_type() == op_type && (is_default_domain(node.domain()) || node.domain() == "com.microsoft")
}

/// The parameters of one node.
#[derive(Debug, Clone)]
pub(super) struct Params<'m> {
    pub scale: Vec<f32>,
    pub zero_point: Vec<i32>,
    /// Of the zero point, or of the integers where there is none.
    pub kind: Option<Kind>,
    axis: i64,
    block: usize,
    pub scale_tensor: &'m TensorProto,
}

impl<'m> Params<'m> {
    /// Of node `id`, if they are constant and have a type known here.
    pub fn of(graph: &Graph<'m>, id: NodeId) -> Option<Self> {
        let node = graph.node(id);
        let scale_tensor = graph.constant(node.input_at(1)?)?;
        let scale = floats(scale_tensor).ok()?;
        let (zero_point, kind) = match node.input_at(2) {
            Some(name) => {
                let zero = graph.constant(name)?;
                (codes(zero)?, Some(Kind::of(zero.data_type())?))
            }
            None => (vec![0; scale.len()], declared(node)),
        };
        let zero_point = if let [one] = *zero_point { vec![one; scale.len()] } else { zero_point };
        if scale.is_empty() || scale.len() != zero_point.len() {
            return None;
        }
        if !scale.iter().all(|s| s.is_finite() && *s > 0.0) {
            return None;
        }
        let block = usize::try_from(node.int("block_size", 0)).ok()?;
        Some(Self { scale, zero_point, kind, axis: node.int("axis", 1), block, scale_tensor })
    }

    /// Which scale each element of a tensor of this shape has.
    pub fn indices(&self, dims: &[usize]) -> Option<Box<dyn Fn(usize) -> usize>> {
        if self.scale.len() == 1 {
            return Some(Box::new(|_| 0));
        }
        let axis = self.axis(dims.len())?;
        let (length, inner) = (dims[axis], dims[axis + 1..].iter().product::<usize>().max(1));
        if self.block == 0 {
            return (self.scale.len() == length).then(|| {
                let index: Box<dyn Fn(usize) -> usize> = Box::new(move |at| at / inner % length);
                index
            });
        }
        let (block, blocks) = (self.block, length.div_ceil(self.block));
        let mut expected = dims.to_vec();
        expected[axis] = blocks;
        (shape(self.scale_tensor).ok()? == expected).then(|| {
            let index: Box<dyn Fn(usize) -> usize> = Box::new(move |at| {
                let (outer, along) = (at / (length * inner), at / inner % length);
                (outer * blocks + along / block) * inner + at % inner
            });
            index
        })
    }

    fn axis(&self, rank: usize) -> Option<usize> {
        let axis = if self.axis < 0 { self.axis + rank as i64 } else { self.axis };
        usize::try_from(axis).ok().filter(|&axis| axis < rank)
    }

    /// The same as parameters of a tensor with so many dimensions; `None` for blocks.
    pub fn params(&self, rank: usize, kind: Kind) -> Option<QuantParams> {
        let axis = match self.scale.len() {
            1 => None,
            _ if self.block > 0 => return None,
            _ => Some(self.axis(rank)?),
        };
        Some(QuantParams {
            scale: self.scale.clone(),
            zero_point: self.zero_point.clone(),
            axis,
            dtype: kind.dtype,
        })
    }

    /// Whether another node has the same.
    pub fn agree(&self, other: &Self) -> bool {
        self.scale == other.scale && self.zero_point == other.zero_point
    }
}

/// The type that a QuantizeLinear without zero point makes; of a DequantizeLinear nothing is known.
fn declared(node: &NodeProto) -> Option<Kind> {
    if !is(node, "QuantizeLinear") {
        return None;
    }
    match i32::try_from(node.int("output_dtype", 0)).ok()? {
        0 => Kind::of(DataType::Uint8 as i32),
        data_type => Kind::of(data_type),
    }
}

/// Bounds of a Clip of integers, as far as they are constant.
pub(super) fn bounds(graph: &Graph, id: NodeId, kind: Kind) -> Option<(i32, i32)> {
    let node = graph.node(id);
    let bound = |index: usize, none: i32| match node.input_at(index) {
        None => Some(none),
        Some(name) => match *codes(graph.constant(name)?)? {
            [one] => Some(one),
            _ => None,
        },
    };
    Some((bound(1, kind.qmin)?, bound(2, kind.qmax)?))
}
