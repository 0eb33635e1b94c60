//! Nodes and constants of QuantizeLinear/DequantizeLinear pairs, under names that nothing else has.

use std::collections::HashSet;

use half::f16;

use super::names::Names;
use crate::graph::{Graph, NodeId};
use crate::onnx::{NodeProto, TensorProto};
use crate::patch::{Patch, int_attribute, node};
use crate::qparams::{Dtype, QuantParams};
use crate::tensor::tensor;

/// Collects the edit of a graph.
pub(crate) struct Writer<'g, 'm> {
    pub patch: Patch,
    pub names: Names<'g, 'm>,
    graph: &'g Graph<'m>,
    /// Constants that several nodes use.
    shared: HashSet<String>,
    /// Whether scales, and so what is dequantized, are float16.
    half: bool,
}

impl<'g, 'm> Writer<'g, 'm> {
    /// For additions to `graph`.
    pub fn new(graph: &'g Graph<'m>) -> Self {
        Self { patch: Patch::default(), names: Names::new(graph), graph, shared: HashSet::new(), half: false }
    }

    /// The same with float16 scales.
    pub fn with_half_scales(self, half: bool) -> Self {
        Self { half, ..self }
    }

    /// A free name like `name`.
    pub fn name(&mut self, name: &str) -> String {
        self.names.get(name)
    }

    /// The name of `value` behind its pair, if it is made in float.
    pub fn dequantized(&mut self, value: &str) -> String {
        self.name(&format!("{value}_dequantized"))
    }

    /// A name for what `reader` makes of the constant `name`: others may make something else of it.
    pub fn own(&self, name: &str, reader: NodeId) -> String {
        if self.graph.consumers(name).len() > 1 { format!("{name}_{reader}") } else { name.to_owned() }
    }

    /// QuantizeLinear from `input` and DequantizeLinear to `output`, with the parameters of `value`; the integers are
    /// named after `base`.
    pub fn pair(
        &mut self,
        (value, params): (&str, &QuantParams),
        base: &str,
        input: &str,
        output: &str,
    ) -> [NodeProto; 2] {
        let (scale, zero) = (self.scale(value, params), self.zeros(params));
        let axis = params.axis.map(|axis| int_attribute("axis", axis as i64));
        let integers = self.name(&format!("{base}_quantized"));
        let [quantize, dequantize] =
            ["QuantizeLinear", "DequantizeLinear"].map(|op_type| self.name(&format!("{base}_{op_type}")));
        let mut pair = [
            node("QuantizeLinear", &quantize, &[input, &scale, &zero], &[&integers]),
            node("DequantizeLinear", &dequantize, &[&integers, &scale, &zero], &[output]),
        ];
        pair.iter_mut().for_each(|node| node.attribute.extend(axis.clone()));
        pair
    }

    /// An initializer of integers, its scale, and the DequantizeLinear behind them; returns what that makes.
    pub fn dequantized_constant(
        &mut self,
        base: &str,
        integers: TensorProto,
        params: &QuantParams,
        zero: Option<String>,
        nodes: &mut Vec<NodeProto>,
    ) -> String {
        let integers = self.constant(&format!("{base}_quantized"), || integers);
        self.dequantized_value(base, &integers, params, zero, nodes)
    }

    /// The DequantizeLinear behind integers, whatever makes them; returns what it makes.
    pub fn dequantized_value(
        &mut self,
        base: &str,
        integers: &str,
        params: &QuantParams,
        zero: Option<String>,
        nodes: &mut Vec<NodeProto>,
    ) -> String {
        let scale = self.scale(base, params);
        let output = self.dequantized(base);
        let mut dequantize = node("DequantizeLinear", &output, &[integers, &scale], &[&output]);
        dequantize.input.extend(zero);
        dequantize.attribute.extend(params.axis.map(|axis| int_attribute("axis", axis as i64)));
        nodes.push(dequantize);
        output
    }

    /// The scale of `value`: a scalar, or one for each channel.
    pub fn scale(&mut self, value: &str, params: &QuantParams) -> String {
        let dims = params.axis.map(|_| params.scale.len());
        let half = self.half;
        self.constant(&format!("{value}_scale"), || match half {
            false => tensor("", dims.as_slice(), &params.scale),
            true => {
                let rounded: Vec<f16> = params.scale.iter().map(|&s| f16::from_f32(s)).collect();
                tensor("", dims.as_slice(), &rounded)
            }
        })
    }

    /// The scalar zero point of an activation, shared by all that have the same.
    pub fn zero_point(&mut self, params: &QuantParams) -> String {
        let value = params.zero_point[0];
        match params.dtype {
            Dtype::Uint8 => {
                self.constant(&format!("zero_point_u{value}"), || tensor("", &[], &[value as u8]))
            }
            Dtype::Uint16 => {
                self.constant(&format!("zero_point_u16_{value}"), || tensor("", &[], &[value as u16]))
            }
            Dtype::Int16 => {
                self.constant(&format!("zero_point_i16_{value}"), || tensor("", &[], &[value as i16]))
            }
            _ => self.constant(&format!("zero_point_i{value}"), || tensor("", &[], &[value as i8])),
        }
    }

    /// The zero point of an activation, or the zero points of the channels of weights, shared by all with as many.
    pub fn zeros(&mut self, params: &QuantParams) -> String {
        let count = params.scale.len();
        match params.axis {
            Some(_) if params.dtype == Dtype::Uint8 => {
                let value = params.zero_point[0] as u8;
                self.constant(&format!("zero_points_{count}_u{value}"), || {
                    tensor("", &[count], &vec![value; count])
                })
            }
            Some(_) => {
                self.constant(&format!("zero_points_{count}"), || tensor("", &[count], &vec![0_i8; count]))
            }
            None => self.zero_point(params),
        }
    }

    /// Has node `id` read other weights and another bias, where they are given; other readers keep what they have.
    pub fn replace_weights(&mut self, id: NodeId, weight: Option<TensorProto>, bias: Option<TensorProto>) {
        let mut operator = self.graph.node(id).clone();
        for (index, tensor) in [(1, weight), (2, bias)] {
            let (Some(tensor), Some(input)) = (tensor, operator.input.get_mut(index)) else { continue };
            if self.graph.consumers(input).len() > 1 || self.graph.is_observable(input) {
                *input = self.name(&format!("{input}_{id}"));
            }
            self.patch.initializer(TensorProto { name: Some(input.clone()), ..tensor });
        }
        self.patch.replace(id, vec![operator]);
    }

    /// The initializer called `name`, made when it is first asked for.
    pub fn constant(&mut self, name: &str, make: impl FnOnce() -> TensorProto) -> String {
        let name = self.name(name);
        if self.shared.insert(name.clone()) {
            self.patch.initializer(TensorProto { name: Some(name.clone()), ..make() });
        }
        name
    }
}
