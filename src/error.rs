//! What can go wrong. Every message names the file, node or tensor it is about.

use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing a file failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The bytes are not an ONNX model.
    #[error("{file}: not an ONNX model: {reason}")]
    NotOnnx {
        /// The file, or `<bytes>`.
        file: String,
        /// What the decoder met.
        reason: String,
    },
    /// The model contradicts itself or the ONNX specification.
    #[error("{0}")]
    Model(String),
    /// A tensor's type, shape and data disagree, or its values cannot be used.
    #[error("tensor '{name}': {reason}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The request is sound, but the target cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// The calibration data cannot be used.
    #[error("{0}")]
    Data(String),
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`] about `path`, for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// An [`Error::Tensor`] about the tensor `name`.
    pub fn tensor(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), reason: reason.into() }
    }
}
