//! What an integer kernel reads: dequantized activations, weights, bias and other constants.

use super::Emitter;
use crate::error::Result;
use crate::graph::{NodeExt, NodeId};
use crate::kernels;
use crate::onnx::{NodeProto, TensorProto};
use crate::ops::Role;
use crate::patch::node;
use crate::qparams::{Dtype, QuantParams, Range};
use crate::quantize::low_bit::encode::Encoded;
use crate::quantize::pairs;
use crate::quantize::sites::Site;
use crate::quantize::weights;
use crate::tensor::{DataType, floats, is_float, shape, tensor, tensor_of_bytes};

/// A bias that another operator adds.
struct BiasBehind {
    add: NodeId,
    /// Which of its inputs is the bias.
    index: usize,
    values: Vec<f32>,
}

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
            if let Some(constant) = plan.placement.graph.constant(&value) {
                operator.input[index] = self.constant_operand(constant, site.id, nodes)?;
            } else if !plan.placement.is_made_of_integers(&value) {
                operator.input[index] = self.writer.dequantized(&value);
            } else if let Some(divided) = self.divided(&value) {
                operator.input[index] = divided;
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
        let given = self.plan.placement.given.constant(constant.name(), self.plan.scheme);
        let params = given.unwrap_or_else(|| self.params(Range { min, max }));
        let integers = on_grid(&shape(constant)?, &values, &params);
        let zero = self.writer.zero_point(&params);
        Ok(self.writer.dequantized_constant(
            &self.writer.own(constant.name(), reader),
            integers,
            &params,
            Some(zero),
            nodes,
        ))
    }

    /// The parameters of a constant operand.
    fn params(&self, range: Range) -> QuantParams {
        let params = QuantParams::new(range, self.plan.scheme);
        if self.plan.wide { params.widened() } else { params }
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
        let own_bias = weights::bias(plan.placement.graph, site.id)?;
        let bias_behind = if own_bias.is_some() { None } else { self.bias_behind(site)? };
        let bias = own_bias.as_deref().or(bias_behind.as_ref().map(|behind| behind.values.as_slice()));
        let given = plan.placement.given.weights(plan.placement.graph, site.id).and_then(Result::ok);
        let bias = bias.map(|bias| (bias, input_scale));
        let factors = |value| plan.balance.get(value).map(|balanced| balanced.factors.as_slice());
        let factors = weights::Factors { input: factors(site.inputs[0]), output: factors(site.outputs[0]) };
        let seen = plan.placement.calibration.channels(site.inputs[0]);
        let seen = seen.filter(|channels| plan.by_channel && !channels.max().is_empty());
        let params = &plan.activations[site.inputs[0]];
        let reach = seen.map(|seen| pairs::reach(seen, factors.input, params));
        let correction = plan.correction(site.id);
        let changes = weights::Changes {
            factors,
            correction,
            reach: reach.as_deref(),
            given: given.as_ref().map(|params| (params, plan.placement.given.lowest())),
        };
        let quantized = weights::quantize(plan.placement.graph, site.id, bias, plan.weights, changes)?;
        // Without zero points ONNX Runtime does not fuse a Gemm, or what it makes a Gemm of; a Conv does without.
        let zero = (site.op.op_type != "Conv").then(|| self.writer.zeros(&quantized.params));
        let base = self.writer.own(&operator.input[1], site.id);
        operator.input[1] = match &quantized.encoded {
            Some(encoded) => self.decoded(&base, encoded, &quantized.params, zero, nodes),
            None => {
                let values = quantized.values.clone();
                let integers = tensor_of_bytes("", &quantized.dims, DataType::Int8, values);
                self.writer.dequantized_constant(&base, integers, &quantized.params, zero, nodes)
            }
        };
        if let Some((values, scale)) = &quantized.bias {
            match bias_behind {
                None => {
                    let base = self.writer.own(&operator.input[2], site.id);
                    operator.input[2] = self.bias(&base, values, scale, nodes);
                }
                Some(BiasBehind { add, index, .. }) => {
                    let mut adder = plan.placement.graph.node(add).clone();
                    let (base, mut before) = (self.writer.own(&adder.input[index], add), Vec::new());
                    adder.input[index] = self.bias(&base, values, scale, &mut before);
                    before.push(adder);
                    self.writer.patch.replace(add, before);
                }
            }
        }
        self.weights.insert(site.id, quantized);
        Ok(())
    }

    /// Weights in fewer than 8 bits, as the int8 numbers that they stand for behind a DequantizeLinear, or behind one that
    /// knows their type.
    fn decoded(
        &mut self,
        base: &str,
        encoded: &Encoded,
        params: &QuantParams,
        zero: Option<String>,
        nodes: &mut Vec<NodeProto>,
    ) -> String {
        let standard = self.plan.weights.format.is_some_and(|format| format.standard);
        if let Some(data_type) = encoded.form.codec.data_type.filter(|_| standard) {
            return self.writer.dequantized_codes(base, encoded, data_type, nodes);
        }
        let levels = self.writer.levels(base, encoded, nodes);
        self.writer.dequantized_value(base, &levels, params, zero, nodes)
    }

    /// The bias that an `Add` puts on a `MatMul`, if it had better be int32.
    ///
    /// ONNX Runtime makes a `Gemm` of the two where it knows that the operands are matrices, and has an integer `Gemm`
    /// only for an int32 bias. Where it does not know, it adds in float, and a float bias is the quicker one.
    fn bias_behind(&self, site: &Site<'m>) -> Result<Option<BiasBehind>> {
        let plan = self.plan;
        let output = site.outputs[0];
        let becomes_gemm = site.op.op_type == "MatMul" && plan.placement.becomes_gemm(site);
        if !becomes_gemm || plan.placement.is_written_as_integers(site, output) {
            return Ok(None);
        }
        let columns = plan
            .placement
            .graph
            .constant(&plan.placement.graph.node(site.id).input[1])
            .and_then(|w| w.dims.last());
        let float = |id: &NodeId| plan.placement.sites.of_node(*id).is_none_or(|i| !plan.placement.int8[i]);
        let add = plan
            .placement
            .graph
            .sole_consumer(output)
            .filter(|id| plan.placement.graph.node(*id).is("Add") && float(id));
        let Some((add, &columns)) = add.zip(columns) else { return Ok(None) };
        let vector = |t: &&TensorProto| t.dims == [columns] && is_float(t);
        let constants = plan
            .placement
            .graph
            .node(add)
            .input
            .iter()
            .map(|name| plan.placement.graph.constant(name).filter(vector));
        let Some((index, constant)) = constants.enumerate().find_map(|(i, t)| Some((i, t?))) else {
            return Ok(None);
        };
        Ok(Some(BiasBehind { add, index, values: weights::finite(constant)? }))
    }

    /// An int32 bias behind its DequantizeLinear.
    fn bias(&mut self, base: &str, values: &[i32], scale: &[f32], nodes: &mut Vec<NodeProto>) -> String {
        let params = QuantParams {
            scale: scale.to_vec(),
            zero_point: vec![0; scale.len()],
            axis: Some(0),
            dtype: Dtype::Int32,
        };
        self.writer.dequantized_constant(base, tensor("", &[values.len()], values), &params, None, nodes)
    }

    /// `clip(α · x + β, 0, 1)` as an addition in int8: x is read on a scale α times as large, and saturation clips.
    fn saturating(&mut self, site: &Site<'m>, operator: &mut NodeProto, nodes: &mut Vec<NodeProto>) {
        let (alpha, beta) = (operator.float("alpha", 0.2), operator.float("beta", 0.5));
        let (input, output) = (site.inputs[0], operator.output[0].clone());
        let params = &self.plan.activations[input];
        let integers = self.writer.name(&format!("{input}_quantized"));
        let scaled = self.writer.name(&format!("{output}_scaled"));
        let scale =
            self.writer.constant(&format!("{scaled}_scale"), || tensor("", &[], &[params.scale[0] * alpha]));
        let zero = self.writer.zero_point(params);
        nodes.push(node("DequantizeLinear", &scaled, &[&integers, &scale, &zero], &[&scaled]));
        let range = Range { min: beta, max: beta }.with_zero();
        let params = self.params(range);
        let zero = self.writer.zero_point(&params);
        let offset = on_grid(&[], &[beta], &params);
        let offset =
            self.writer.dequantized_constant(&format!("{output}_offset"), offset, &params, Some(zero), nodes);
        *operator = node("Add", operator.name(), &[&scaled, &offset], &[&output]);
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
        Dtype::Uint16 => typed::<u16>(dims, values, params),
        Dtype::Int16 => typed::<i16>(dims, values, params),
        _ => typed::<i8>(dims, values, params),
    }
}
