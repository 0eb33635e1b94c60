//! Opening and saving models. A [`Model`] is immutable from outside; a stage makes a new one from it.

mod budget;
mod external;
mod files;
mod pieces;
mod tensors;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

pub use self::files::{Batch, write_atomically};
use self::pieces::Pieces;
use crate::error::{Error, Result};
use crate::mapped;
use crate::onnx::{GraphProto, ModelProto, OperatorSetIdProto};

/// Largest file the protobuf format can hold.
const PROTOBUF_LIMIT: usize = i32::MAX as usize;

/// Where a model is saved, the data of large tensors goes into the same file or into one beside it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExternalData {
    /// Beside it if one file cannot hold the model.
    #[default]
    IfNeeded,
    /// Always in one file.
    Never,
    /// Always beside it.
    Always,
}

/// An ONNX model in memory. Clones share the message, and edited ones the weights, which are slices of the mapped file.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    proto: Arc<ModelProto>,
    undeclared_bytes: usize,
}

impl Model {
    /// Opens a file over `mmap`, without copying weights. Tensors in external files are mapped too.
    ///
    /// The file must not be changed by others while the model is in use; this crate's own [`Model::save`] never
    /// changes a file in place.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::NotOnnx`] when it is not a model, [`Error::ExternalData`] when
    /// the data of a tensor cannot be read, [`Error::Tensor`] when it is not where the model says.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let content = mapped::open(path).map_err(Error::io(path))?;
        let mut model = Self::decode(content, &path.display().to_string())?;
        external::attach(Arc::make_mut(&mut model.proto), files::folder(path))?;
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
        let proto = message(bytes).map_err(not_onnx)?;
        if proto.graph.is_none() || proto.opset_import.is_empty() && proto.functions.is_empty() {
            return Err(not_onnx("it has no graph or no operator set".to_owned()));
        }
        let undeclared_bytes = length.saturating_sub(proto.encoded_len());
        Ok(Self { proto: Arc::new(proto), undeclared_bytes })
    }

    /// A model around a message made in memory.
    ///
    /// # Errors
    /// [`Error::Model`] when the message has no graph.
    pub fn from_proto(proto: ModelProto) -> Result<Self> {
        match proto.graph {
            Some(_) => Ok(Self { proto: Arc::new(proto), undeclared_bytes: 0 }),
            None => Err(Error::Model("the model has no graph".to_owned())),
        }
    }

    /// The whole message.
    pub fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// The message, for the stages of this crate to build the next model. It is copied if a clone of this one shares it.
    pub fn into_proto(self) -> ModelProto {
        Arc::unwrap_or_clone(self.proto)
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
            constants.flat_map(|node| &node.attribute).filter_map(|attribute| attribute.t.as_deref());
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

    /// Writes the file, and one for external data if asked to: siblings first, then a rename. A failure leaves what was
    /// there before. Returns the paths.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be written, [`Error::Model`] when one file cannot hold the model.
    pub fn save(&self, path: impl AsRef<Path>, external: ExternalData) -> Result<Vec<PathBuf>> {
        let mut batch = Batch::default();
        batch.model(path.as_ref(), self, external)?;
        batch.write()
    }

    /// The model with references in the place of large weights that are mapped from files in one folder, and that folder.
    ///
    /// # Errors
    /// [`Error::Model`] when the model has no graph.
    pub fn referring(&self) -> Result<(Self, Option<PathBuf>)> {
        let mut proto = self.proto().clone();
        let folder = external::refer(&mut proto.graph.get_or_insert_default().initializer);
        Ok((Self::from_proto(proto)?, folder))
    }

    /// The file's content in pieces, the large ones shared with the model.
    ///
    /// # Errors
    /// As [`encoded_len`](Self::encoded_len).
    fn pieces(&self) -> Result<Vec<Bytes>> {
        self.encoded_len()?;
        let mut pieces = Pieces::default();
        self.proto.encode(&mut pieces).map_err(|e| Error::Model(e.to_string()))?;
        Ok(pieces.finish())
    }
}

/// The message in a file, or why there is none.
fn message(bytes: Bytes) -> Result<ModelProto, String> {
    match budget::excess(&bytes) {
        Some(reason) => Err(reason),
        None => ModelProto::decode(bytes).map_err(|error| error.to_string()),
    }
}

/// Whether `domain` is the default ONNX operator domain.
pub fn is_default_domain(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

impl Batch {
    /// Adds the file of a model, and one for its external data.
    ///
    /// # Errors
    /// [`Error::Model`] when one file cannot hold the model.
    pub fn model(&mut self, path: &Path, model: &Model, external: ExternalData) -> Result<()> {
        let beside = match external {
            ExternalData::IfNeeded => model.proto.encoded_len() > PROTOBUF_LIMIT,
            ExternalData::Never => false,
            ExternalData::Always => true,
        };
        let replaced = external::files_of(path);
        let mut kept = None;
        if beside {
            let (small, data, content) = external::separated(model, path)?;
            self.file(path.to_owned(), small.pieces()?);
            match content {
                Some(content) => self.file(data.clone(), content),
                None => self.present.push(data.clone()),
            }
            kept = Some(data);
        } else {
            self.file(path.to_owned(), model.pieces()?);
        }
        self.obsolete.extend(replaced.into_iter().filter(|file| Some(file) != kept.as_ref()));
        Ok(())
    }
}
