//! The core of rustq: ONNX models in, INT8 models out.
//!
//! ```text
//! path/bytes ─Model─▶ fold ─Model─▶ calibrate ─Observers─▶ quantize ─Model─▶ save
//! ```
//!
//! * [`model`] opens and saves; [`onnx`] is the file format; [`tensor`] reads weights.
//! * [`graph`] is a read-only index and [`patch`] the one way to edit.
//! * [`composites`] recognises operators that are spelled out in several nodes.
//! * [`fold`] simplifies; [`observation`], [`observer`] and [`ranges`] summarise activations; [`qparams`] does all scale arithmetic.
//! * [`correct`] makes up for what rounding does.
//! * [`quantize`] decides what becomes int8 and writes it as QuantizeLinear/DequantizeLinear pairs; [`export`] does so for
//!   other runtimes than ONNX Runtime.

pub mod calibration;
pub mod composites;
pub mod correct;
pub mod error;
pub mod export;
pub mod fold;
pub mod graph;
pub mod kernels;
pub mod model;
pub mod observation;
pub mod observer;
pub mod onnx;
pub mod ops;
pub mod patch;
#[cfg(feature = "python")]
mod python;
pub mod qparams;
pub mod quantize;
pub mod ranges;
pub mod tensor;

pub use error::{Error, Result};
pub use model::Model;
