//! Codes in a graph, and what decodes them.
//!
//! | form | decoding | for |
//! |---|---|---|
//! | look-up | `Gather` takes the levels of each byte from a table of all bytes | every format; constant, so that ONNX Runtime decodes once, when it loads the model |
//! | `DequantizeLinear` | the operator itself, of opset 21 where a code has four bits | formats with an ONNX type; what other tools know |
//! | `MatMulNBits` | ONNX Runtime's kernel, while it multiplies | products by blocks of four-bit codes |

use super::blocks::BlockCodes;
use super::encode::Encoded;
use crate::graph::NodeExt;
use crate::onnx::NodeProto;
use crate::patch::{cast_to, int_attribute, node};
use crate::quantize::writer::Writer;
use crate::tensor::{DataType, Memory, tensor, tensor_of_bytes};

/// The domain of ONNX Runtime's own operators.
pub(crate) const CONTRIB: &str = "com.microsoft";

impl Encoded {
    /// One value for each channel, in a shape that goes with the weights.
    fn per_channel_dims(&self) -> Vec<usize> {
        let ones = vec![1; self.form.dims.len() - 1 - self.form.axis];
        [&[self.form.layout.channels], ones.as_slice()].concat()
    }

    /// Values of the blocks in the order of the weights, which are a matrix.
    fn as_matrix<T: Copy>(&self, values: &[T]) -> (Vec<usize>, Vec<T>) {
        let (channels, blocks) = (self.form.layout.channels, self.form.blocks());
        if self.form.axis == 0 {
            return (vec![channels, blocks], values.to_vec());
        }
        let transposed = (0..blocks).flat_map(|b| (0..channels).map(move |c| values[c * blocks + b]));
        (vec![blocks, channels], transposed.collect())
    }
}

impl Writer<'_, '_> {
    /// The levels less their zero points as int8, by look-up; the nodes that make them go to `nodes`.
    pub fn levels(&mut self, base: &str, encoded: &Encoded, nodes: &mut Vec<NodeProto>) -> String {
        if encoded.form.codec.bits == 8 {
            let content = encoded.values.0.clone();
            return self.constant(&format!("{base}_quantized"), || {
                tensor_of_bytes("", &encoded.form.dims, DataType::Int8, content)
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
        let dims = encoded.per_channel_dims();
        let scale = self.constant(&format!("{base}_scales"), || tensor("", &dims, &encoded.scale));
        let output = self.dequantized(base);
        nodes.push(node("Mul", &output, &[&centred, &scale], &[&output]));
        output
    }

    /// The levels as floats, less their zero points.
    fn centred(&mut self, base: &str, levels: &str, encoded: &Encoded, nodes: &mut Vec<NodeProto>) -> String {
        let [floats, centred] = ["float", "centred"].map(|part| self.name(&format!("{base}_levels_{part}")));
        let values: Vec<f32> = encoded.zero.iter().map(|&zero| f32::from(zero)).collect();
        let dims = encoded.per_channel_dims();
        let zero = self.constant(&format!("{base}_zero_points"), || tensor("", &dims, &values));
        nodes.push(cast_to(DataType::Float, levels, &floats));
        nodes.push(node("Sub", &centred, &[&floats, &zero], &[&centred]));
        centred
    }

    /// The levels, in the shape of the weights: packed codes are the rows of a table with all their levels.
    fn looked_up(&mut self, base: &str, encoded: &Encoded, nodes: &mut Vec<NodeProto>) -> String {
        let codec = encoded.form.codec;
        let packed = encoded.packed();
        let each = 8 / codec.bits;
        let filled = packed.len() * each;
        let count = encoded.levels().len();
        let packed = self.constant(&format!("{base}_codes"), || {
            tensor_of_bytes("", &[packed.len()], DataType::Uint8, Memory::of(packed))
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
        let blocked = encoded.form.blocks() > 1;
        let (dims, scale) = match blocked {
            true => encoded.as_matrix(&encoded.scale),
            false => (vec![encoded.form.layout.channels], encoded.scale.clone()),
        };
        let codes = self.constant(&format!("{base}_quantized"), || {
            tensor_of_bytes("", &encoded.form.dims, data_type, Memory::of(encoded.packed()))
        });
        let scale = self.constant(&format!("{base}_scale"), || tensor("", &dims, &scale));
        let output = self.dequantized(base);
        let mut dequantize = node("DequantizeLinear", &output, &[&codes, &scale], &[&output]);
        if !encoded.zero.is_empty() {
            let zero = if blocked { encoded.as_matrix(&encoded.zero).1 } else { encoded.zero.clone() };
            let packed = encoded.form.codec.pack(zero.into_iter());
            dequantize.input.push(
                self.constant(&format!("{base}_zero_point"), || {
                    tensor_of_bytes("", &dims, data_type, packed)
                }),
            );
        }
        if blocked {
            dequantize.attribute.push(int_attribute("axis", 1 - encoded.form.axis as i64));
            dequantize.attribute.push(int_attribute("block_size", encoded.form.block as i64));
        } else {
            dequantize.attribute.push(int_attribute("axis", encoded.form.axis as i64));
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

/// Lets `MatMulNBits` quantize the activations to int8, a scale for each block: what ONNX Runtime itself chooses where it
/// makes one, and the quickest.
const INT8_ACTIVATIONS: usize = 4;
