//! Opening and saving models. A [`Model`] is immutable from outside; a stage makes a new one from it.

mod files;
mod pieces;
mod tensors;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Component, Path};

use bytes::Bytes;
use prost::Message;

pub use self::files::{write_atomically, write_together};
use self::pieces::Pieces;
use crate::error::{Error, Result};
use crate::onnx::{GraphProto, ModelProto, OperatorSetIdProto, TensorProto};

/// Largest file the protobuf format can hold.
const PROTOBUF_LIMIT: usize = i32::MAX as usize;

/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;

/// An ONNX model in memory. Weights are shared slices of the mapped file, so clones are cheap.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    proto: ModelProto,
    undeclared_bytes: usize,
}

impl Model {
    /// Opens a file over `mmap`, without copying weights. Tensors in external files are mapped too.
    ///
    /// The file must not be changed by others while the model is in use; this crate's own [`Model::save`] never
    /// changes a file in place.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read, [`Error::NotOnnx`] when it is not a model.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut model = Self::decode(map(path)?, &path.display().to_string())?;
        let folder = path.parent().unwrap_or(Path::new("."));
        tensors::visit(&mut model.proto, &mut |tensor| resolve_external(tensor, folder))?;
        Ok(model)
    }

    /// Decodes a model from memory.
    ///
    /// # Errors
    /// [`Error::NotOnnx`] when the bytes are not a model.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self> {
        Self::decode(bytes.into(), "<bytes>")
    }

    fn decode(bytes: Bytes, file: &str) -> Result<Self> {
        let not_onnx = |reason: String| Error::NotOnnx { file: file.to_owned(), reason };
        if bytes.is_empty() {
            return Err(not_onnx("the file is empty".to_owned()));
        }
        let length = bytes.len();
        let proto = ModelProto::decode(bytes).map_err(|e| not_onnx(e.to_string()))?;
        if proto.graph.is_none() || proto.opset_import.is_empty() && proto.functions.is_empty() {
            return Err(not_onnx("it has no graph or no operator set".to_owned()));
        }
        let undeclared_bytes = length.saturating_sub(proto.encoded_len());
        Ok(Self { proto, undeclared_bytes })
    }

    /// A model around a message made in memory.
    ///
    /// # Errors
    /// [`Error::Model`] when the message has no graph.
    pub fn from_proto(proto: ModelProto) -> Result<Self> {
        match proto.graph {
            Some(_) => Ok(Self { proto, undeclared_bytes: 0 }),
            None => Err(Error::Model("the model has no graph".to_owned())),
        }
    }

    /// The whole message.
    pub fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// The message, for the stages of this crate to build the next model.
    pub fn into_proto(self) -> ModelProto {
        self.proto
    }

    /// The main graph.
    pub fn graph(&self) -> &GraphProto {
        self.proto.graph.as_ref().expect("checked when the model was made")
    }

    /// Bytes of the file that this crate's schema does not declare and a save would lose; 0 for every known writer.
    pub fn undeclared_bytes(&self) -> usize {
        self.undeclared_bytes
    }

    /// Version of the default operator set, if the model imports it.
    pub fn opset(&self) -> Option<i64> {
        self.proto
            .opset_import
            .iter()
            .find(|o| is_default_domain(o.domain()))
            .map(OperatorSetIdProto::version)
    }

    /// Bytes of weights in the main graph, those in `Constant` nodes included.
    pub fn weight_bytes(&self) -> usize {
        let constants = self.graph().node.iter().filter(|node| node.op_type() == "Constant");
        let constants =
            constants.flat_map(|node| &node.attribute).filter_map(|attribute| attribute.t.as_ref());
        self.graph().initializer.iter().chain(constants).map(Message::encoded_len).sum()
    }

    /// Size of the file's content.
    ///
    /// # Errors
    /// [`Error::Model`] when it exceeds the 2 GiB a protobuf file can hold.
    pub fn encoded_len(&self) -> Result<usize> {
        match self.proto.encoded_len() {
            size if size <= PROTOBUF_LIMIT => Ok(size),
            size => {
                Err(Error::Model(format!("the model takes {size} bytes; one ONNX file holds at most 2 GiB")))
            }
        }
    }

    /// Writes the file's content to the front of `buffer`.
    ///
    /// # Panics
    /// If `buffer` is shorter than [`encoded_len`](Self::encoded_len).
    pub fn encode_to(&self, mut buffer: &mut [u8]) {
        self.proto.encode(&mut buffer).expect("a buffer of the encoded length");
    }

    /// The file's content.
    ///
    /// # Errors
    /// As [`encoded_len`](Self::encoded_len).
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.encoded_len()?];
        self.encode_to(&mut bytes);
        Ok(bytes)
    }

    /// Writes the file: a sibling temporary file, then a rename. A failure leaves what was there before.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomically(path.as_ref(), &self.pieces()?)
    }

    /// The file's content in pieces, the large ones shared with the model.
    ///
    /// # Errors
    /// As [`encoded_len`](Self::encoded_len).
    pub fn pieces(&self) -> Result<Vec<Bytes>> {
        self.encoded_len()?;
        let mut pieces = Pieces::default();
        self.proto.encode(&mut pieces).map_err(|e| Error::Model(e.to_string()))?;
        Ok(pieces.finish())
    }
}

/// Whether `domain` is the default ONNX operator domain.
pub fn is_default_domain(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

fn map(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(Error::io(path))?;
    let metadata = file.metadata().map_err(Error::io(path))?;
    if metadata.is_dir() {
        return Err(Error::io(path)(std::io::ErrorKind::IsADirectory.into()));
    }
    if metadata.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is read-only and private. A file that another process truncates meanwhile can still fault;
    // the documentation of `Model::open` asks for files that are left alone.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path))?;
    Ok(Bytes::from_owner(map))
}

/// Replaces a reference into an external file by the bytes themselves, mapped.
fn resolve_external(tensor: &mut TensorProto, folder: &Path) -> Result<()> {
    if tensor.data_location() != EXTERNAL {
        return Ok(());
    }
    let fail = |reason: &str| Error::tensor(tensor.name(), reason);
    let entries: HashMap<_, _> = tensor.external_data.iter().map(|e| (e.key(), e.value())).collect();
    let location =
        Path::new(*entries.get("location").ok_or_else(|| fail("external data without a location"))?);
    if !location.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(fail("external data outside the model's folder"));
    }
    let number = |key: &str| entries.get(key).map(|v| v.parse::<usize>()).transpose();
    let bad_number = |_| fail("external data with an offset or length that is not a number");
    let data = map(&folder.join(location))?;
    let start = number("offset").map_err(bad_number)?.unwrap_or(0);
    let end = match number("length").map_err(bad_number)? {
        Some(length) => start.checked_add(length),
        None => Some(data.len()),
    };
    let end = end
        .filter(|&end| start <= end && end <= data.len())
        .ok_or_else(|| fail("external data is cut short"))?;
    tensor.raw_data = Some(data.slice(start..end));
    tensor.external_data.clear();
    tensor.data_location = None;
    Ok(())
}
