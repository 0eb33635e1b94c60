//! What can go wrong. Every message names the file, node or tensor it is about.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

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
    /// The file with the data of a tensor cannot be read.
    #[error("{}: {source} (it holds tensor '{tensor}')", .path.display())]
    ExternalData {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// What the system says.
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
    /// This crate contradicts itself.
    #[error("a defect of rustq, please report it: {0}")]
    Defect(String),
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

/// What `work` returns; a panic in it is an [`Error::Defect`].
///
/// # Errors
/// Those of `work`.
pub fn contained<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        let place = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        Err(Error::Defect(format!("{}{place}", text.replace('\n', " "))))
    })
}

/// Where the last panic was.
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Has panics keep their place for [`contained`], and print nothing.
pub fn keep_panics_quiet() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
        *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn panics_become_errors() {
        let error = contained(|| -> Result<u32> { panic!("it is {}", 5) }).unwrap_err();
        assert!(error.to_string().starts_with("a defect of rustq, please report it: it is 5"), "{error}");
        let index = std::hint::black_box(9);
        let elsewhere = || Ok((0..100).into_par_iter().map(|i| [1, 2, 3][i + index]).sum::<i32>());
        assert!(contained(elsewhere).unwrap_err().to_string().contains("index out of bounds"));
        assert_eq!(contained(|| Ok(7)).unwrap(), 7);
    }
}
