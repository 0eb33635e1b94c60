//! What an integer kernel reads: dequantized activations, weights, bias and other constants.

use super::Emitter;
use crate::error::Result;
use crate::graph::{NodeExt, NodeId};
use crate::kernels;
use crate::onnx::{NodeProto, TensorProto};
use crate::ops::Role;
use crate::patch::{int_attribute, node};
use crate::qparams::{Dtype, QuantParams, Range};
use crate::quantize::sites::Site;
use crate::quantize::weights::{self, QuantizedWeights};
use crate::tensor::{floats, is_float, shape, tensor};

impl<'m> Emitter<'_, 'm> {
    /// Points the inputs of `operator` at dequantized values; the nodes that make them go to `nodes`.
    pub(super) fn operands(
        &mut self,
        site: &Site<'m>,
        operator: &mut NodeProto,
        nodes: &mut Vec<NodeProto>,
    ) -> Result<()> {
        let plan = self.plan;
        for index in 0..site.op.activations.min(operator.input.len()) {
            let value = operator.input[index].clone();
            if let Some(constant) = plan.graph.initializer(&value) {
                operator.input[index] = self.constant_operand(constant, site.id, nodes)?;
            } else if !plan.is_made_of_integers(&value) {
                operator.input[index] = self.dequantized(&value);
            }
        }
        match site.op.role {
            Role::Linear => self.linear(site, operator, nodes),
            Role::Saturating => {
                self.saturating(site, operator, nodes);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A constant operand on a grid of its own, in the type of the activations.
    fn constant_operand(
        &mut self,
        constant: &TensorProto,
        reader: NodeId,
        nodes: &mut Vec<NodeProto>,
    ) -> Result<String> {
        let values = floats(constant)?;
        let (min, max) = kernels::min_max(&values).unwrap_or((0.0, 0.0));
        let params = QuantParams::new(Range { min, max }, self.plan.scheme);
        let integers = on_grid(&shape(constant)?, &values, &params);
        let zero = self.zero_point(&params);
        Ok(self.dequantized_constant(
            &self.own(constant.name(), reader),
            integers,
            &params,
            Some(zero),
            nodes,
        ))
    }

    /// Weights and bias of a multiplication.
    fn linear(
        &mut self,
        site: &Site<'m>,
        operator: &mut NodeProto,
        nodes: &mut Vec<NodeProto>,
    ) -> Result<()> {
        let plan = self.plan;
        let input_scale = plan.activations[site.inputs[0]].scale[0];
        let quantized = weights::quantize(plan.graph, site.id, input_scale, plan.per_channel)?;
        let integers = tensor("", &quantized.dims, &quantized.values);
        // Without zero points ONNX Runtime does not fuse a Gemm; the other kernels do without.
        let zero = (site.op.op_type == "Gemm").then(|| self.zeros(&quantized.params));
        let base = self.own(&operator.input[1], site.id);
        operator.input[1] = self.dequantized_constant(&base, integers, &quantized.params, zero, nodes);
        if let Some((values, scale)) = &quantized.bias {
            let base = self.own(&operator.input[2], site.id);
            operator.input[2] = self.bias(&base, values, scale, nodes);
        }
        if operator.is("MatMul") && !plan.is_written_as_integers(site, site.outputs[0]) {
            self.bias_behind(site, input_scale, &quantized)?;
        }
        self.weights.insert(site.id, quantized);
        Ok(())
    }

    /// The bias that an `Add` puts on a `MatMul`.
    ///
    /// ONNX Runtime makes a `Gemm` of the two where it knows that the operands are matrices, and has an integer `Gemm`
    /// only for an int32 bias. Where it does not know, it adds in float, and a float bias is the quicker one.
    fn bias_behind(&mut self, site: &Site<'m>, input_scale: f32, quantized: &QuantizedWeights) -> Result<()> {
        let plan = self.plan;
        let becomes_gemm = plan.static_shapes || (plan.rank)(site.inputs[0]) == Some(2);
        let add = plan.graph.sole_consumer(site.outputs[0]).filter(|_| becomes_gemm);
        let float = |id: &NodeId| plan.sites.of_node(*id).is_none_or(|i| !plan.int8[i]);
        let Some(add) = add.filter(|id| plan.graph.node(*id).is("Add")).filter(float) else { return Ok(()) };
        let vector = |t: &&TensorProto| t.dims == [quantized.dims[1] as i64] && is_float(t);
        let mut operator = plan.graph.node(add).clone();
        let constants = operator.input.iter().map(|name| plan.graph.constant(name).filter(vector));
        let Some((index, constant)) = constants.enumerate().find_map(|(i, t)| Some((i, t?))) else {
            return Ok(());
        };
        let scale: Vec<f32> =
            quantized.params.scale.iter().copied().cycle().take(quantized.dims[1]).collect();
        let (values, scale) = weights::quantize_bias(&floats(constant)?, input_scale, &scale);
        let mut nodes = Vec::new();
        operator.input[index] = self.bias(&self.own(constant.name(), add), &values, &scale, &mut nodes);
        nodes.push(operator);
        self.patch.replace(add, nodes);
        Ok(())
    }

    /// An int32 bias behind its DequantizeLinear.
    fn bias(&mut self, base: &str, values: &[i32], scale: &[f32], nodes: &mut Vec<NodeProto>) -> String {
        let params = QuantParams {
            scale: scale.to_vec(),
            zero_point: vec![0; scale.len()],
            axis: Some(0),
            dtype: Dtype::Int32,
        };
        self.dequantized_constant(base, tensor("", &[values.len()], values), &params, None, nodes)
    }

    /// `clip(α · x + β, 0, 1)` as an addition in int8: x is read on a scale α times as large, and saturation clips.
    fn saturating(&mut self, site: &Site<'m>, operator: &mut NodeProto, nodes: &mut Vec<NodeProto>) {
        let (alpha, beta) = (operator.float("alpha", 0.2), operator.float("beta", 0.5));
        let (input, output) = (site.inputs[0], operator.output[0].clone());
        let params = &self.plan.activations[input];
        let integers = self.name(&format!("{input}_quantized"));
        let scaled = self.name(&format!("{output}_scaled"));
        let scale = self.constant(&format!("{scaled}_scale"), || tensor("", &[], &[params.scale[0] * alpha]));
        let zero = self.zero_point(params);
        nodes.push(node("DequantizeLinear", &scaled, &[&integers, &scale, &zero], &[&scaled]));
        let range = Range { min: beta, max: beta }.with_zero();
        let params = QuantParams::new(range, self.plan.scheme);
        let zero = self.zero_point(&params);
        let offset = on_grid(&[], &[beta], &params);
        let offset =
            self.dequantized_constant(&format!("{output}_offset"), offset, &params, Some(zero), nodes);
        *operator = node("Add", operator.name(), &[&scaled, &offset], &[&output]);
    }

    /// An initializer of integers, its scale, and the DequantizeLinear behind them; returns what that makes.
    fn dequantized_constant(
        &mut self,
        base: &str,
        integers: TensorProto,
        params: &QuantParams,
        zero: Option<String>,
        nodes: &mut Vec<NodeProto>,
    ) -> String {
        let integers = self.constant(&format!("{base}_quantized"), || integers);
        let dims = params.axis.map(|_| params.scale.len());
        let scale = self.constant(&format!("{base}_scale"), || tensor("", dims.as_slice(), &params.scale));
        let output = self.dequantized(base);
        let mut dequantize = node("DequantizeLinear", &output, &[&integers, &scale], &[&output]);
        dequantize.input.extend(zero);
        // 1 is the default.
        let axis = params.axis.filter(|&axis| axis != 1);
        dequantize.attribute.extend(axis.map(|axis| int_attribute("axis", axis as i64)));
        nodes.push(dequantize);
        output
    }

    /// The int8 zero points of weights, shared by all with as many channels.
    fn zeros(&mut self, params: &QuantParams) -> String {
        let count = params.scale.len();
        let dims = params.axis.map(|_| count);
        self.constant(&format!("zero_points_{count}"), || tensor("", dims.as_slice(), &vec![0_i8; count]))
    }

    /// A name for what `reader` makes of the constant `name`: others may make something else of it.
    fn own(&self, name: &str, reader: NodeId) -> String {
        if self.plan.graph.consumers(name).len() > 1 { format!("{name}_{reader}") } else { name.to_owned() }
    }
}

/// `values` on the grid of `params`, without a name.
fn on_grid(dims: &[usize], values: &[f32], params: &QuantParams) -> TensorProto {
    fn typed<T: kernels::QuantInt + Default + crate::tensor::Element>(
        dims: &[usize],
        values: &[f32],
        params: &QuantParams,
    ) -> TensorProto {
        let grid = params.grid(0);
        let mut out = vec![T::default(); values.len()];
        kernels::quantize_clamped(values, grid.scale, grid.zero_point, grid.qmin, grid.qmax, &mut out);
        tensor("", dims, &out)
    }
    match params.dtype {
        Dtype::Uint8 => typed::<u8>(dims, values, params),
        _ => typed::<i8>(dims, values, params),
    }
}
