//! What an operator costs in float and in int8, and what it costs to pass between the two.
//!
//! The constants are nanoseconds on one x86-64 core with VNNI, measured on ONNX Runtime's CPU provider; only their
//! ratios matter. `benches/ort_costs.py` measures them again.

use super::sites::Site;
use crate::graph::{Graph, NodeExt};
use crate::ops::Role;
use crate::tensor::shape;

/// Starting an operator.
const NODE: f64 = 1500.0;
/// `QuantizeLinear`, per element.
pub(crate) const QUANTIZE: f64 = 0.10;
/// `DequantizeLinear`, per element.
pub(crate) const DEQUANTIZE: f64 = 0.10;

/// Nanoseconds in float and in int8.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cost {
    pub float: f64,
    pub int8: f64,
}

/// Per multiply-accumulate.
const DENSE: Cost = Cost { float: 0.0110, int8: 0.0034 };
const DEPTHWISE: Cost = Cost { float: 0.050, int8: 0.035 };
/// Per multiply-accumulate of a matrix product.
const MATRIX: Cost = Cost { float: 0.0110, int8: 0.0040 };

/// Per element of the output, by operator.
const PER_ELEMENT: &[(&str, Cost)] = &[
    ("Conv", Cost { float: 0.05, int8: 0.08 }),
    ("Gemm", Cost { float: 0.05, int8: 0.10 }),
    ("MatMul", Cost { float: 0.05, int8: 0.10 }),
    ("Add", Cost { float: 0.15, int8: 0.15 }),
    ("Mul", Cost { float: 0.15, int8: 0.15 }),
    ("Concat", Cost { float: 0.15, int8: 0.15 }),
    ("Sigmoid", Cost { float: 0.60, int8: 0.30 }),
    ("LeakyRelu", Cost { float: 0.20, int8: 0.30 }),
    ("HardSigmoid", Cost { float: 0.20, int8: 0.15 }),
    ("AveragePool", Cost { float: 0.60, int8: 0.60 }),
    ("GlobalAveragePool", Cost { float: 4.0, int8: 4.0 }),
];

/// Of data movement, per element of the output.
const MOVE: Cost = Cost { float: 0.15, int8: 0.05 };

/// The cost of one site, given how many elements each value has.
pub(crate) fn cost(graph: &Graph, site: &Site, elements: impl Fn(&str) -> f64) -> Cost {
    let outputs: f64 = site.outputs.iter().map(|value| elements(value)).sum();
    let op_type = site.op.op_type;
    let per_element = match site.op.role {
        Role::Move => MOVE,
        _ => PER_ELEMENT.iter().find(|(op, _)| *op == op_type).map_or(MOVE, |&(_, cost)| cost),
    };
    let (macs, per_mac) = multiplications(graph, site, &elements);
    Cost {
        float: NODE + outputs * per_element.float + macs * per_mac.float,
        int8: NODE + outputs * per_element.int8 + macs * per_mac.int8,
    }
}

/// Multiply-accumulates of a site, and what each costs.
pub(crate) fn multiplications(graph: &Graph, site: &Site, elements: impl Fn(&str) -> f64) -> (f64, Cost) {
    let node = graph.node(site.id);
    let weight = node.input_at(1).and_then(|name| graph.constant(name)).and_then(|w| shape(w).ok());
    let (Role::Linear, Some(dims)) = (site.op.role, weight) else { return (0.0, DENSE) };
    if site.op.op_type == "Conv" {
        let per_output: usize = dims[1..].iter().product();
        let per_mac = if dims[1] == 1 { DEPTHWISE } else { DENSE };
        (elements(site.outputs[0]) * per_output as f64, per_mac)
    } else {
        let columns = dims[super::weights::channel_axis(graph, site.id)];
        (elements(site.inputs[0]) * columns as f64, MATRIX)
    }
}
