//! Weights in fewer than 8 bits.
//!
//! 1. [`codecs`]: the number formats, as a table of what each code stands for.
//! 2. [`ruler`]: the scale of some weights, and their levels.
//! 3. [`layout`]: where the weights of each channel are.
//! 4. [`encode`]: the levels of each channel or block of a tensor, and the codes.
//! 5. [`blocks`]: the codes as one kernel reads them.
//! 6. [`mod@write`]: codes in a graph, and what decodes them.
//! 7. [`spared`]: the smallest layers, which have int8 weights.
//! 8. [`pass`]: the weights of every product, activations left float.

mod blocks;
pub(crate) mod codecs;
pub(crate) mod encode;
mod layout;
mod pass;
mod ruler;
mod spared;
pub(crate) mod write;

pub use codecs::{CODECS, Codec};
pub use pass::{ONNX_RUNTIME, Runtime, Settings, quantize_weights};
pub(crate) use pass::{Taken, coded, verdict, with_contrib};

/// How weights are coded.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// The number format.
    pub codec: &'static Codec,
    /// Inputs of an output channel that share a scale, in products whose activations stay float; `None`: all of them.
    pub block: Option<usize>,
    /// Whether only operators of the ONNX standard may be written, and `DequantizeLinear` wherever it knows the format.
    pub standard: bool,
    /// Layers of at most so many weights have int8 weights.
    pub spared: usize,
}
