//! Codes in a graph, and what decodes them.
//!
//! | form | decoding | for |
//! |---|---|---|
//! | look-up | `Gather` takes the levels of each byte from a table of all bytes | every format; constant, so that ONNX Runtime decodes once, when it loads the model |
//! | `DequantizeLinear` | the operator itself, of opset 21 where a code has four bits | formats with an ONNX type; what other tools know |
//! | `MatMulNBits` | ONNX Runtime's kernel, while it multiplies | products by blocks of four-bit codes |

use std::ops::Range;

use rayon::prelude::*;

use super::encode::Encoded;
use crate::graph::NodeExt;
use crate::onnx::{NodeProto, TensorProto};
use crate::patch::{cast_to, int_attribute, node};
use crate::quantize::writer::Writer;
use crate::tensor::{DataType, Memory, tensor, tensor_of_bytes};

/// Inputs of a block that `MatMulNBits` takes.
const LEAST_BLOCK: usize = 16;

/// The domain of ONNX Runtime's own operators.
pub(crate) const CONTRIB: &str = "com.microsoft";

impl Encoded {
    /// The levels, less their zero points, of the inputs from one on of some channels; 0 where there is none.
    fn columns(&self, (channels, first): (Range<usize>, usize), columns: &mut [[i8; GROUP]]) {
        let (levels, depth) = (self.levels(), self.layout.depth());
        columns.fill([0; GROUP]);
        let inputs = first..depth.min(first + columns.len());
        if self.layout.in_rows() {
            for (c, channel) in channels.enumerate() {
                for (column, &level) in columns.iter_mut().zip(&levels[channel * depth..][inputs.clone()]) {
                    column[c] = level;
                }
            }
            return;
        }
        for (column, k) in columns.iter_mut().zip(inputs) {
            let levels = &levels[k * self.layout.channels + channels.start..];
            match levels.first_chunk() {
                Some(levels) if channels.len() == GROUP => *column = *levels,
                _ => column[..channels.len()].copy_from_slice(&levels[..channels.len()]),
            }
        }
    }

    /// Whether [`Writer::multiplied_blocks`] can write them.
    pub fn fits_kernel(&self) -> bool {
        let blocks = self.block.is_power_of_two() && self.block >= LEAST_BLOCK && self.dims.len() == 2;
        self.codec.has_blocks() && blocks
    }

    /// One value for each channel, in a shape that goes with the weights.
    fn per_channel_dims(&self) -> Vec<usize> {
        let ones = vec![1; self.dims.len() - 1 - self.axis];
        [&[self.layout.channels], ones.as_slice()].concat()
    }

    /// Values of the blocks in the order of the weights, which are a matrix.
    fn as_matrix<T: Copy>(&self, values: &[T]) -> (Vec<usize>, Vec<T>) {
        let (channels, blocks) = (self.layout.channels, self.blocks());
        if self.axis == 0 {
            return (vec![channels, blocks], values.to_vec());
        }
        let transposed = (0..blocks).flat_map(|b| (0..channels).map(move |c| values[c * blocks + b]));
        (vec![blocks, channels], transposed.collect())
    }
}

impl Writer<'_, '_> {
    /// The levels less their zero points as int8, by look-up; the nodes that make them go to `nodes`.
    pub fn levels(&mut self, base: &str, encoded: &Encoded, nodes: &mut Vec<NodeProto>) -> String {
        if encoded.codec.bits == 8 {
            let content = encoded.values.clone();
            return self.constant(&format!("{base}_quantized"), || {
                tensor_of_bytes("", &encoded.dims, DataType::Int8, content)
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
        let codec = encoded.codec;
        let packed = encoded.packed();
        let each = 8 / codec.bits;
        let filled = packed.len() * each;
        let count = encoded.values.len();
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
        let dims: Vec<i64> = encoded.dims.iter().map(|&d| d as i64).collect();
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
        let blocked = encoded.blocks() > 1;
        let (dims, scale) = match blocked {
            true => encoded.as_matrix(&encoded.scale),
            false => (vec![encoded.layout.channels], encoded.scale.clone()),
        };
        let codes = self.constant(&format!("{base}_quantized"), || {
            tensor_of_bytes("", &encoded.dims, data_type, Memory::of(encoded.packed()))
        });
        let scale = self.constant(&format!("{base}_scale"), || tensor("", &dims, &scale));
        let output = self.dequantized(base);
        let mut dequantize = node("DequantizeLinear", &output, &[&codes, &scale], &[&output]);
        if !encoded.zero.is_empty() {
            let zero = if blocked { encoded.as_matrix(&encoded.zero).1 } else { encoded.zero.clone() };
            let packed = encoded.codec.pack(zero.into_iter());
            dequantize.input.push(
                self.constant(&format!("{base}_zero_point"), || {
                    tensor_of_bytes("", &dims, data_type, packed)
                }),
            );
        }
        if blocked {
            dequantize.attribute.push(int_attribute("axis", 1 - encoded.axis as i64));
            dequantize.attribute.push(int_attribute("block_size", encoded.block as i64));
        } else {
            dequantize.attribute.push(int_attribute("axis", encoded.axis as i64));
        }
        nodes.push(dequantize);
        output
    }

    /// The product of `original`, by `MatMulNBits`; a bias is added behind it.
    pub fn multiplied_blocks(
        &mut self,
        base: &str,
        encoded: &Encoded,
        original: &NodeProto,
    ) -> Vec<NodeProto> {
        let (channels, blocks) = (encoded.layout.channels, encoded.blocks());
        let codes = self.constant(&format!("{base}_blocks"), || blocked_codes(encoded));
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
                    encoded.zero.chunks(blocks).flat_map(|row| encoded.codec.pack(row.iter().copied()));
                tensor("", &[channels * blocks.div_ceil(2)], &rows.collect::<Vec<u8>>())
            }));
        }
        let numbers = [
            ("K", encoded.layout.depth()),
            ("N", channels),
            ("bits", encoded.codec.bits),
            ("block_size", encoded.block),
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

/// Channels whose codes are written together: where they are columns, their levels fill a line of memory in each row.
const GROUP: usize = 64;

/// Codes in the order that `MatMulNBits` reads: channels, blocks, inputs. They are unsigned there: 8 stands for 0 where there
/// is no zero point, and a block that is not full ends in what stands for 0.
fn blocked_codes(encoded: &Encoded) -> TensorProto {
    let (channels, blocks, block) = (encoded.layout.channels, encoded.blocks(), encoded.block);
    let (half, row) = (block / 2, blocks * block / 2);
    let shift = if encoded.zero.is_empty() { 8 } else { 0 };
    let mut codes = Memory::zeroed(channels * row);
    let groups = codes.as_mut().par_chunks_mut((GROUP * row).max(1)).enumerate();
    groups.for_each(|(group, codes)| {
        let first = group * GROUP;
        let (count, mut zeros) = (codes.len() / row, [0; GROUP]);
        let (mut columns, mut pairs) = (vec![[0; GROUP]; block], vec![[0; GROUP]; half]);
        for b in 0..blocks {
            encoded.columns((first..first + count, b * block), &mut columns);
            for (c, zero) in zeros[..count].iter_mut().enumerate() {
                *zero = encoded.zero_of((first + c) * blocks + b) + shift;
            }
            for (pair, [low, high]) in pairs.iter_mut().zip(columns.as_chunks().0) {
                for c in 0..GROUP {
                    pair[c] = (low[c] + zeros[c]) as u8 | ((high[c] + zeros[c]) as u8) << 4;
                }
            }
            for (c, codes) in codes.chunks_exact_mut(row).enumerate() {
                for (byte, pair) in codes[b * half..][..half].iter_mut().zip(&pairs) {
                    *byte = pair[c];
                }
            }
        }
    });
    tensor_of_bytes("", &[channels, blocks, half], DataType::Uint8, codes)
}
