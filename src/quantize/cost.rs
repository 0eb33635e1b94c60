//! What an operator costs in float and in int8, and what it costs to pass between the two.
//!
//! The constants are nanoseconds of ONNX Runtime's CPU provider on one x86-64 core with AVX-512 VNNI; only their ratios
//! matter. They are linear fits over the layers of mobile nets, within some 10 % of the measurements;
//! `benches/ort_costs.py` measures them again.

use super::sites::Site;
use crate::graph::{Graph, NodeExt};
use crate::ops::Role;
use crate::tensor::shape;

/// A pair of figures, for the float and the integer kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cost {
    pub float: f64,
    pub int8: f64,
}

/// A linear fit: nanoseconds per node, multiply-accumulate, element (mean of input and output), weight, and position
/// of the output map.
struct Fit {
    node: f64,
    mac: f64,
    element: f64,
    weight: f64,
    position: f64,
}

const fn fit(node: f64, mac: f64, element: f64, weight: f64, position: f64) -> Fit {
    Fit { node, mac, element, weight, position }
}

/// The fits of a kind of layer.
struct Fits {
    float: Fit,
    int8: Fit,
}

/// A 1×1 convolution.
const POINTWISE: Fits =
    Fits { float: fit(200.0, 0.0075, 0.10, 0.10, 0.0), int8: fit(1200.0, 0.0018, 0.063, 0.022, 0.0) };
/// Any larger kernel over all channels.
const DENSE: Fits =
    Fits { float: fit(200.0, 0.0069, 0.62, 0.23, 0.0), int8: fit(1200.0, 0.0013, 0.49, 0.14, 0.0) };
/// One filter for each channel, in whole vectors of 16 channels.
const DEPTHWISE: Fits =
    Fits { float: fit(4700.0, 0.0104, 0.027, 0.0, 0.0), int8: fit(2900.0, 0.0144, 0.008, 0.0, 6.2) };
/// One filter for each channel, with channels left over, which the integer kernel takes one by one.
const DEPTHWISE_RAGGED: Fits =
    Fits { float: fit(4000.0, 0.0097, 0.030, 0.0, 0.0), int8: fit(3300.0, 0.0565, 0.0, 0.0, 9.0) };
/// Fewer than 16 output channels, where neither kernel fills its vectors.
const NARROW: Fits =
    Fits { float: fit(200.0, 0.0140, 0.62, 0.0, 2.0), int8: fit(1200.0, 0.0080, 0.49, 0.0, 16.0) };
/// The first layer, over the 1 to 4 channels of an image.
const STEM: Fits =
    Fits { float: fit(200.0, 0.0040, 0.10, 0.0, 0.0), int8: fit(1200.0, 0.0050, 0.30, 0.0, 12.0) };
/// A convolution over one dimension, for which the float kernel has no blocked form.
const ONE_DIMENSIONAL: Fits =
    Fits { float: fit(200.0, 0.0420, 0.10, 0.0, 0.0), int8: fit(1200.0, 0.0045, 0.10, 0.02, 0.0) };
/// A matrix product with several rows.
const MATRIX: Fits =
    Fits { float: fit(200.0, 0.0092, 0.0, 0.02, 0.0), int8: fit(300.0, 0.0022, 0.10, 0.019, 0.0) };
/// The product of one row and a matrix.
const VECTOR: Fits = Fits { float: fit(200.0, 0.0, 0.0, 0.08, 0.0), int8: fit(1500.0, 0.0, 0.0, 0.025, 0.0) };

/// Per element of the inputs, by operator.
const PER_INPUT: &[(&str, Cost)] = &[
    ("Add", Cost { float: 0.06, int8: 0.05 }),
    ("Mul", Cost { float: 0.06, int8: 0.095 }),
    ("Concat", Cost { float: 0.07, int8: 0.25 }),
    ("Sigmoid", Cost { float: 0.24, int8: 0.25 }),
    ("LeakyRelu", Cost { float: 0.19, int8: 0.25 }),
    ("HardSigmoid", Cost { float: 0.10, int8: 0.065 }),
    ("AveragePool", Cost { float: 0.14, int8: 4.3 }),
    ("GlobalAveragePool", Cost { float: 0.05, int8: 0.033 }),
    ("MaxPool", Cost { float: 0.06, int8: 0.05 }),
    ("Resize", Cost { float: 0.50, int8: 2.3 }),
    ("Transpose", Cost { float: 0.10, int8: 0.05 }),
];
/// Of data movement that is not in the table.
const MOVE: Cost = Cost { float: 0.02, int8: 0.01 };
/// What one more node costs.
const NODE: Cost = Cost { float: 200.0, int8: 1200.0 };

/// Of a value that a float operator makes and an integer kernel reads, per element and per node: QuantizeLinear, and for
/// feature maps the change of the memory layout.
pub(crate) const QUANTIZE: Border = Border { node: 1000.0, element: 0.065, layout: 0.10 };
/// Of a value that goes the other way.
pub(crate) const DEQUANTIZE: Border = Border { node: 1000.0, element: 0.092, layout: 0.10 };

/// Cost of passing between float and int8.
pub(crate) struct Border {
    node: f64,
    element: f64,
    layout: f64,
}

impl Border {
    /// Nanoseconds for a value of so many elements.
    pub fn cost(&self, elements: f64, feature_map: bool) -> f64 {
        self.node + elements * (self.element + if feature_map { self.layout } else { 0.0 })
    }
}

/// Of a MaxPool of integers, for each output and element of its window, where a float operator makes what it reads: its
/// kernel with vectors wants the channels last, which is how integer convolutions leave them.
const POOLED_IN_PLANES: f64 = 2.5;

/// Nanoseconds that a site takes more on integers if those that it reads are made in float.
pub(crate) fn out_of_float(graph: &Graph, site: &Site, elements: impl Fn(&str) -> f64) -> f64 {
    let window = graph.node(site.id).attribute("kernel_shape").filter(|_| site.op.op_type == "MaxPool");
    let taps = window.map_or(0.0, |window| window.ints.iter().product::<i64>() as f64);
    POOLED_IN_PLANES * taps * site.outputs.first().map_or(0.0, |value| elements(value))
}

/// Whether a site works on feature maps, which float and integer kernels lay out differently.
pub(crate) fn on_feature_maps(site: &Site) -> bool {
    matches!(site.op.op_type, "Conv" | "MaxPool" | "AveragePool" | "GlobalAveragePool" | "Resize")
}

/// Nanoseconds of one site, given how many elements each value has.
pub(crate) fn cost(graph: &Graph, site: &Site, elements: impl Fn(&str) -> f64) -> Cost {
    let read: f64 = site.inputs.iter().map(|value| elements(value)).sum();
    let made: f64 = site.outputs.iter().map(|value| elements(value)).sum();
    let Some(layer) = Layer::of(graph, site, read, made) else {
        let row = PER_INPUT.iter().find(|(op, _)| *op == site.op.op_type);
        let per_input = row.map_or(MOVE, |&(_, cost)| cost);
        let read = if site.op.role == Role::Arithmetic { read.max(made) } else { read };
        return Cost { float: NODE.float + read * per_input.float, int8: NODE.int8 + read * per_input.int8 };
    };
    let Fits { float, int8 } = layer.fits();
    let evaluate = |fit: &Fit| {
        fit.node
            + fit.mac * layer.macs
            + fit.element * (read + made) / 2.0
            + fit.weight * layer.weights
            + fit.position * layer.positions
    };
    Cost { float: evaluate(float), int8: evaluate(int8) }
}

/// Multiply-accumulates of one site; 0 for what has no weights.
pub(crate) fn multiplications(graph: &Graph, site: &Site, elements: impl Fn(&str) -> f64) -> f64 {
    let read = site.inputs.first().map_or(0.0, |value| elements(value));
    let made = site.outputs.first().map_or(0.0, |value| elements(value));
    Layer::of(graph, site, read, made).map_or(0.0, |layer| layer.macs)
}

/// The dimensions of a multiplication by weights.
struct Layer {
    convolution: bool,
    macs: f64,
    weights: f64,
    /// Positions of the output map, or rows of the product.
    positions: f64,
    input_channels: usize,
    /// Input channels that one output channel sees.
    depth: usize,
    output_channels: usize,
    /// Weights of one filter and input channel.
    taps: usize,
    /// Dimensions of the map.
    spatial: usize,
}

impl Layer {
    fn of(graph: &Graph, site: &Site, read: f64, made: f64) -> Option<Self> {
        let node = graph.node(site.id);
        let dims = shape(graph.constant(node.input_at(site.op.weight?)?)?).ok()?;
        let weights = dims.iter().product::<usize>() as f64;
        if site.op.op_type == "Conv" {
            let groups = usize::try_from(node.int("group", 1)).ok()?;
            let taps = dims[2..].iter().product();
            Some(Self {
                convolution: true,
                macs: made * (dims[1] * taps) as f64,
                weights,
                positions: made / dims[0].max(1) as f64,
                input_channels: dims[1] * groups,
                depth: dims[1],
                output_channels: dims[0],
                taps,
                spatial: dims.len() - 2,
            })
        } else {
            let axis = super::weights::channel_axis(graph, site.id);
            let (columns, rows) = (dims[axis], dims[1 - axis]);
            Some(Self {
                convolution: false,
                macs: read * columns as f64,
                weights,
                positions: read / rows.max(1) as f64,
                input_channels: rows,
                depth: rows,
                output_channels: columns,
                taps: 1,
                spatial: 0,
            })
        }
    }

    fn fits(&self) -> &'static Fits {
        match self {
            Self { convolution: false, positions, .. } if *positions < 8.0 => &VECTOR,
            Self { convolution: false, .. } => &MATRIX,
            Self { spatial: 1, .. } => &ONE_DIMENSIONAL,
            Self { depth: 1, input_channels: 2.., output_channels, .. } if output_channels % 16 == 0 => {
                &DEPTHWISE
            }
            Self { depth: 1, input_channels: 2.., .. } => &DEPTHWISE_RAGGED,
            Self { input_channels: ..=4, taps: 2.., .. } => &STEM,
            Self { output_channels: ..16, .. } => &NARROW,
            Self { taps: 1, .. } => &POINTWISE,
            _ => &DENSE,
        }
    }
}
