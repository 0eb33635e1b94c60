//! Weights of matrix products as 4-bit codes, which TensorRT 10 decodes while it multiplies in floating point.

use super::{Options, accepted};
use crate::error::Result;
use crate::graph::{Graph, NodeId};
use crate::model::Model;
use crate::ops::is_plain_product;
use crate::quantize::Quantized;
use crate::quantize::low_bit::{self, Format, Runtime};
use crate::quantize::weights::weight_of;

const TENSORRT: Runtime =
    Runtime { operators: &["Gemm", "MatMul"], decline, full_blocks: true, eight_bits: false };

fn decline(graph: &Graph, id: NodeId) -> Option<&'static str> {
    let dims = &weight_of(graph, id).ok()?.dims;
    match dims.as_slice() {
        [_, _] if !is_plain_product(graph.node(id)) => Some("it scales or transposes its operands"),
        [rows, columns] if (rows * columns) % 2 == 0 => None,
        [_, _] => Some("TensorRT wants an even number of 4-bit weights"),
        _ => Some("TensorRT has 4-bit weights for matrices only"),
    }
}

/// Codes the weights of the matrix products of a folded model.
///
/// # Errors
/// [`crate::Error::Tensor`] for weights that are not finite, [`crate::Error::Model`] where TensorRT would refuse the result.
pub fn quantize_weights(model: &Model, format: Format, options: Options) -> Result<Quantized> {
    let (inputs, corrections) = (options.changes.inputs, options.changes.corrections);
    let settings = low_bit::Settings { format, runtime: &TENSORRT, corrections, exclude: options.exclude };
    let mut done = low_bit::quantize_weights(model, inputs, &settings)?;
    done.model = accepted(done.model)?;
    Ok(done)
}
