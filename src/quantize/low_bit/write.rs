//! Codes in a graph, and what decodes them.
//!
//! | form | decoding | for |
//! |---|---|---|
//! | look-up | `Gather` takes the levels of each byte from a table of all bytes | every format; constant, so that ONNX Runtime decodes once, when it loads the model |
//! | `DequantizeLinear` | the operator itself, of opset 21 where a code has four bits | formats with an ONNX type; what other tools know |
//! | `MatMulNBits` | ONNX Runtime's kernel, while it multiplies | products by blocks of four-bit codes |

use super::blocks::BlockCodes;
use super::encode::{Encoded, Form};
use crate::graph::NodeExt;
use crate::onnx::NodeProto;
use crate::patch::{cast_to, int_attribute, node};
use crate::quantize::writer::Writer;
use crate::tensor::{DataType, Element, tensor, tensor_of_bytes};

/// The domain of ONNX Runtime's own operators.
pub(crate) const CONTRIB: &str = "com.microsoft";

impl Encoded {
    /// Dimensions of one value for each channel, or block of one, that go with those of the weights.
    fn scale_dims(&self) -> Vec<usize> {
        let Form { dims, axis, .. } = &self.form;
        let shared = if self.form.is_blocked() { &dims[2..] } else { &dims[1 + axis..] };
        [self.own_dims(), vec![1; shared.len()]].concat()
    }

    /// Those along which there are several.
    fn own_dims(&self) -> Vec<usize> {
        let (channels, blocks) = (self.form.layout.channels, self.form.blocks());
        match (self.form.is_blocked(), self.form.axis) {
            (false, _) => vec![channels],
            (true, 0) => vec![channels, blocks],
            (true, _) => vec![blocks, channels],
        }
    }

    /// One value for each channel, or block of one, in the order of [these](Self::scale_dims) dimensions.
    fn in_scale_order<T: Copy>(&self, values: &[T]) -> Vec<T> {
        if self.form.axis == 0 || !self.form.is_blocked() {
            return values.to_vec();
        }
        let (channels, blocks) = (self.form.layout.channels, self.form.blocks());
        (0..blocks).flat_map(|b| (0..channels).map(move |c| values[c * blocks + b])).collect()
    }
}

impl Writer<'_, '_> {
    /// The levels less their zero points as int8, by look-up; the nodes that make them go to `nodes`.
    pub fn levels(&mut self, base: &str, encoded: &Encoded, nodes: &mut Vec<NodeProto>) -> String {
        if encoded.form.codec.bits == 8 {
            return self.constant(&format!("{base}_quantized"), || {
                tensor_of_bytes("", &encoded.form.dims, DataType::Int8, encoded.packed())
            });
        }
        let levels = self.looked_up(base, encoded, nodes);
        if encoded.zero.is_empty() {
            return levels;
        }
        let centred = self.centred(base, &levels, encoded, nodes);
        let integers = self.name(&format!("{base}_quantized"));
        nodes.push(cast_to(DataType::Int8, &centred, &integers));
        integers
    }

    /// The weights as floats, by look-up.
    pub fn decoded(&mut self, base: &str, encoded: &Encoded, nodes: &mut Vec<NodeProto>) -> String {
        let centred = if encoded.zero.is_empty() {
            let levels = self.levels(base, encoded, nodes);
            let floats = self.name(&format!("{base}_levels_float"));
            nodes.push(cast_to(DataType::Float, &levels, &floats));
            floats
        } else {
            let levels = self.looked_up(base, encoded, nodes);
            self.centred(base, &levels, encoded, nodes)
        };
        let scale = self.spread(&format!("{base}_scales"), encoded, &encoded.scale, nodes);
        let output = self.dequantized(base);
        nodes.push(node("Mul", &output, &[&centred, &scale], &[&output]));
        output
    }

    /// The levels as floats, less their zero points.
    fn centred(&mut self, base: &str, levels: &str, encoded: &Encoded, nodes: &mut Vec<NodeProto>) -> String {
        let [floats, centred] = ["float", "centred"].map(|part| self.name(&format!("{base}_levels_{part}")));
        let zero = self.spread(&format!("{base}_zero_points"), encoded, &encoded.zero, nodes);
        let zero_floats = self.name(&format!("{zero}_float"));
        nodes.push(cast_to(DataType::Float, &zero, &zero_floats));
        nodes.push(cast_to(DataType::Float, levels, &floats));
        nodes.push(node("Sub", &centred, &[&floats, &zero_floats], &[&centred]));
        centred
    }

    /// One value for each channel, or block of one, in a shape that goes with the weights.
    fn spread<T: Element>(
        &mut self,
        name: &str,
        encoded: &Encoded,
        values: &[T],
        nodes: &mut Vec<NodeProto>,
    ) -> String {
        let form = &encoded.form;
        let values =
            self.constant(name, || tensor("", &encoded.scale_dims(), &encoded.in_scale_order(values)));
        if !form.is_blocked() {
            return values;
        }
        let (axis, size) = (1 - form.axis, form.block_length());
        let count = form.dims[axis];
        let blocks = self.constant(&format!("blocks_of_{size}_in_{count}"), || {
            tensor("", &[count], &(0..count).map(|k| (k / size) as i64).collect::<Vec<_>>())
        });
        let spread = self.name(&format!("{name}_spread"));
        let mut gather = node("Gather", &spread, &[&values, &blocks], &[&spread]);
        gather.attribute.push(int_attribute("axis", axis as i64));
        nodes.push(gather);
        spread
    }

    /// The levels, in the shape of the weights: packed codes are the rows of a table with all their levels.
    fn looked_up(&mut self, base: &str, encoded: &Encoded, nodes: &mut Vec<NodeProto>) -> String {
        let codec = encoded.form.codec;
        let packed = encoded.packed();
        let each = 8 / codec.bits;
        let filled = packed.len() * each;
        let count = encoded.levels().len();
        let packed = self.constant(&format!("{base}_codes"), || {
            tensor_of_bytes("", &[packed.len()], DataType::Uint8, packed)
        });
        let table =
            self.constant(&format!("{}_levels", codec.name), || tensor("", &[256, each], &codec.pages()));
        let [indices, pages, levels] =
            ["indices", "pages", "levels"].map(|part| self.name(&format!("{base}_{part}")));
        nodes.push(cast_to(DataType::Int32, &packed, &indices));
        nodes.push(node("Gather", &pages, &[&table, &indices], &[&pages]));
        let mut source = pages;
        if filled != count {
            let [flat, cut] = ["flat", "cut"].map(|part| self.name(&format!("{base}_{part}")));
            let vector = |value: usize| tensor("", &[1], &[value as i64]);
            let everything = self.constant("everything", || tensor("", &[1], &[-1_i64]));
            let [start, end] = [0, count].map(|at| self.constant(&format!("index_{at}"), || vector(at)));
            nodes.push(node("Reshape", &flat, &[&source, &everything], &[&flat]));
            nodes.push(node("Slice", &cut, &[&flat, &start, &end], &[&cut]));
            source = cut;
        }
        let dims: Vec<i64> = encoded.form.dims.iter().map(|&d| d as i64).collect();
        let shape = self.constant(&format!("{base}_shape"), || tensor("", &[dims.len()], &dims));
        nodes.push(node("Reshape", &levels, &[&source, &shape], &[&levels]));
        levels
    }

    /// The weights as floats, by `DequantizeLinear` of the codes in their ONNX type.
    pub fn dequantized_codes(
        &mut self,
        base: &str,
        encoded: &Encoded,
        data_type: DataType,
        nodes: &mut Vec<NodeProto>,
    ) -> String {
        let form = &encoded.form;
        // The operator has blocks along one axis: the taps of a window, which share a scale, have one each there.
        let (axis, window) =
            if form.is_blocked() { (1 - form.axis, &form.dims[2..]) } else { (form.axis, &[][..]) };
        let dims = [&encoded.own_dims(), window].concat();
        let copies = window.iter().product();
        let codes = self.constant(&format!("{base}_quantized"), || {
            tensor_of_bytes("", &form.dims, data_type, encoded.packed())
        });
        let scale = self.constant(&format!("{base}_scale"), || {
            tensor("", &dims, &repeated(encoded.in_scale_order(&encoded.scale), copies))
        });
        let output = self.dequantized(base);
        let mut dequantize = node("DequantizeLinear", &output, &[&codes, &scale], &[&output]);
        if !encoded.zero.is_empty() {
            let zero = repeated(encoded.in_scale_order(&encoded.zero), copies);
            let packed = form.codec.pack(zero.into_iter());
            dequantize.input.push(
                self.constant(&format!("{base}_zero_point"), || {
                    tensor_of_bytes("", &dims, data_type, packed)
                }),
            );
        }
        dequantize.attribute.push(int_attribute("axis", axis as i64));
        if form.is_blocked() {
            dequantize.attribute.push(int_attribute("block_size", form.block_length() as i64));
        }
        nodes.push(dequantize);
        output
    }

    /// The product of `original`, by `MatMulNBits`; a bias is added behind it.
    pub fn multiplied_blocks(
        &mut self,
        base: &str,
        encoded: &Encoded<BlockCodes>,
        original: &NodeProto,
    ) -> Vec<NodeProto> {
        let (channels, blocks) = (encoded.form.layout.channels, encoded.form.blocks());
        let codes = self.constant(&format!("{base}_blocks"), || {
            let dims = [channels, blocks, encoded.form.block / 2];
            tensor_of_bytes("", &dims, DataType::Uint8, encoded.values.0.clone())
        });
        let scale = self
            .constant(&format!("{base}_block_scale"), || tensor("", &[channels * blocks], &encoded.scale));
        let output = original.output[0].as_str();
        let bias = original.input_at(2);
        let product = self.name(&format!("{output}_product"));
        let result = if bias.is_some() { &product } else { output };
        let mut multiply =
            node("MatMulNBits", original.label(), &[&original.input[0], &codes, &scale], &[result]);
        multiply.domain = Some(CONTRIB.to_owned());
        if !encoded.zero.is_empty() {
            multiply.input.push(self.constant(&format!("{base}_block_zero_point"), || {
                let rows =
                    encoded.zero.chunks(blocks).flat_map(|row| encoded.form.codec.pack(row.iter().copied()));
                tensor("", &[channels * blocks.div_ceil(2)], &rows.collect::<Vec<u8>>())
            }));
        }
        let numbers = [
            ("K", encoded.form.layout.depth()),
            ("N", channels),
            ("bits", encoded.form.codec.bits),
            ("block_size", encoded.form.block),
            ("accuracy_level", INT8_ACTIVATIONS),
        ];
        multiply.attribute.extend(numbers.map(|(name, value)| int_attribute(name, value as i64)));
        let mut nodes = vec![multiply];
        if let Some(bias) = bias {
            let label = self.name(&format!("{output}_bias"));
            nodes.push(node("Add", &label, &[&product, bias], &[output]));
        }
        nodes
    }
}

/// So many of each value.
fn repeated<T: Copy>(values: Vec<T>, copies: usize) -> Vec<T> {
    values.into_iter().flat_map(|value| std::iter::repeat_n(value, copies)).collect()
}

/// Lets `MatMulNBits` quantize the activations to int8, a scale for each block: what ONNX Runtime itself chooses where it
/// makes one, and the quickest.
const INT8_ACTIVATIONS: usize = 4;
