//! The core of rustq: ONNX models in, INT8 models out.
//!
//! ```text
//! path/bytes ─Model─▶ fold ─Model─▶ calibrate ─Observers─▶ quantize ─Model─▶ save
//! ```
//!
//! * [`model`] opens and saves; [`onnx`] is the file format; [`tensor`] reads weights.
//! * [`graph`] is a read-only index and [`patch`] the one way to edit.
//! * [`composites`] recognises operators that are spelled out in several nodes; [`functions`] tells how large those of a
//!   model's own make it.
//! * [`fold`] simplifies; [`observation`], [`observer`] and [`ranges`] summarise activations; [`qparams`] does all scale arithmetic.
//! * [`given`] keeps the quantization that a model comes with.
//! * [`correct`] makes up for what rounding does.
//! * [`quantize`] decides what becomes int8 and writes it as QuantizeLinear/DequantizeLinear pairs; [`export`] does so for
//!   other runtimes than ONNX Runtime.
//! * [`processor`] tells what this machine lacks for int8 to be fast.

// Where there is unsafe code, and why, is listed in CONTRIBUTING.md.
#![deny(unsafe_code)]

#[forbid(unsafe_code)]
pub mod calibration;
#[forbid(unsafe_code)]
pub mod composites;
#[forbid(unsafe_code)]
pub mod correct;
#[forbid(unsafe_code)]
pub mod error;
#[forbid(unsafe_code)]
pub mod export;
#[forbid(unsafe_code)]
pub mod fold;
#[forbid(unsafe_code)]
pub mod functions;
#[forbid(unsafe_code)]
pub mod given;
#[forbid(unsafe_code)]
pub mod graph;
pub mod kernels;
mod mapped;
pub mod model;
pub mod observation;
#[forbid(unsafe_code)]
pub mod observer;
#[forbid(unsafe_code)]
pub mod onnx;
#[forbid(unsafe_code)]
pub mod ops;
#[forbid(unsafe_code)]
pub mod patch;
#[forbid(unsafe_code)]
pub mod processor;
#[cfg(feature = "python")]
mod python;
#[forbid(unsafe_code)]
pub mod qparams;
#[forbid(unsafe_code)]
pub mod quantize;
#[forbid(unsafe_code)]
pub mod ranges;
#[forbid(unsafe_code)]
pub mod tensor;

pub use error::{Error, Result};
pub use model::Model;
