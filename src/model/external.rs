//! Tensors whose data is in a file beside the model: mapping it, and moving large tensors there.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::files::folder;
use super::{Model, tensors};
use crate::error::{Error, Result};
use crate::mapped;
use crate::onnx::{ModelProto, StringStringEntryProto, TensorProto};
use crate::tensor::EXTERNAL;

/// Tensors with less data stay in the model, where shapes are inferred from their values.
const LEAST: usize = 1 << 10;

/// Data begins at multiples of this, so that each tensor can be mapped on its own.
const ALIGNMENT: usize = 1 << 12;

/// Puts mapped data in the place of every reference to a file in `folder`.
///
/// # Errors
/// [`Error::ExternalData`] when a file cannot be read, [`Error::Tensor`] when what the model says of it cannot be.
pub(super) fn attach(model: &mut ModelProto, folder: &Path) -> Result<()> {
    let mut files: HashMap<String, Bytes> = HashMap::new();
    tensors::visit(model, &mut |tensor| {
        if tensor.data_location() != EXTERNAL {
            return Ok(());
        }
        let reference = Reference::of(tensor)?;
        let data = match files.get(reference.location) {
            Some(data) => data,
            None => {
                let path = folder.join(reference.location);
                let data = mapped::open(&path).map_err(|source| Error::ExternalData {
                    tensor: tensor.name().to_owned(),
                    path,
                    source,
                })?;
                files.entry(reference.location.to_owned()).or_insert(data)
            }
        };
        let end = reference.length.map_or(Some(data.len()), |length| reference.offset.checked_add(length));
        let end = end.filter(|&end| reference.offset <= end && end <= data.len());
        let end = end.ok_or_else(|| {
            let wanted = reference.length.map_or_else(String::new, |length| format!("{length} bytes "));
            let place = format!("{wanted}at {}, and the file has {}", reference.offset, data.len());
            reference.fail(tensor, &format!("is cut short: the tensor is {place}"))
        })?;
        tensor.raw_data = Some(data.slice(reference.offset..end));
        tensor.external_data.clear();
        tensor.data_location = None;
        Ok(())
    })
}

/// Where the data of a tensor is.
struct Reference<'t> {
    location: &'t str,
    offset: usize,
    length: Option<usize>,
}

impl<'t> Reference<'t> {
    fn of(tensor: &'t TensorProto) -> Result<Self> {
        let fail = |reason: String| Error::tensor(tensor.name(), reason);
        let entries: HashMap<_, _> = tensor.external_data.iter().map(|e| (e.key(), e.value())).collect();
        let location = entries.get("location").copied().filter(|location| !location.is_empty());
        let location = location.ok_or_else(|| fail("external data without a location".to_owned()))?;
        let inside = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
        if !Path::new(location).components().all(inside) {
            return Err(fail(format!("external data '{location}' is outside the model's folder")));
        }
        let number = |key: &str| {
            let bad = |_| fail(format!("external data '{location}' with an {key} that is not a number"));
            entries.get(key).map(|text| text.parse::<usize>().map_err(bad)).transpose()
        };
        Ok(Self { location, offset: number("offset")?.unwrap_or(0), length: number("length")? })
    }

    fn fail(&self, tensor: &TensorProto, reason: &str) -> Error {
        Error::tensor(tensor.name(), format!("external data '{}' {reason}", self.location))
    }
}

/// `model` without the data of its large tensors, and the file beside `path` for that with its content: `None` if it has it.
///
/// A file that another model may use is never written to: the first name is taken that is free, or has the content already.
pub(super) fn separated(model: &Model, path: &Path) -> Result<(Model, PathBuf, Option<Vec<Bytes>>)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut number = 0;
    loop {
        let location = data_name(&name, number);
        let mut small = model.clone();
        let content = detach(Arc::make_mut(&mut small.proto), &location)?;
        let data = path.with_file_name(&location);
        if !data.exists() {
            return Ok((small, data, Some(content)));
        }
        if holds(&data, &content) {
            return Ok((small, data, None));
        }
        number += 1;
    }
}

/// The names that [`separated`] tries, in order.
fn data_name(model: &str, number: usize) -> String {
    if number == 0 { format!("{model}.data") } else { format!("{model}.{number}.data") }
}

/// Whether the file has this content.
fn holds(path: &Path, pieces: &[Bytes]) -> bool {
    let Ok(content) = mapped::open(path) else { return false };
    let mut rest = &content[..];
    let same = pieces.iter().all(|piece| {
        let found = rest.split_off(..piece.len()) == Some(piece);
        mapped::release(piece);
        found
    });
    same && rest.is_empty()
}

/// The files of external data that belong to the model at `path` alone: by their names, and since no other model in the
/// folder refers to them.
pub(super) fn files_of(path: &Path) -> BTreeSet<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let own = |location: &str| {
        let number = location.strip_prefix(&*name).and_then(|rest| rest.strip_suffix(".data"));
        number
            .is_some_and(|n| n.is_empty() || n.strip_prefix('.').is_some_and(|n| n.parse::<usize>().is_ok()))
    };
    let mut found = referred_to(path);
    found.retain(|location| own(location));
    if !found.is_empty() {
        let entries = std::fs::read_dir(folder(path)).into_iter().flatten().flatten();
        let others = entries.map(|entry| entry.path()).filter(|other| {
            other.extension() == Some("onnx".as_ref()) && other.file_name() != path.file_name()
        });
        for other in others {
            let taken = referred_to(&other);
            found.retain(|location| !taken.contains(location));
        }
    }
    found.into_iter().map(|location| path.with_file_name(location)).collect()
}

/// The locations of external data that a file refers to; none if it is not a model.
fn referred_to(path: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let decoded = mapped::open(path).ok().and_then(|content| super::message(content).ok());
    if let Some(mut model) = decoded {
        // Nothing in the visit fails.
        let _ = tensors::visit(&mut model, &mut |tensor| {
            let entries = tensor.external_data.iter().filter(|entry| entry.key() == "location");
            found.extend(entries.map(|entry| entry.value().to_owned()));
            Ok(())
        });
    }
    found
}

/// Replaces the data of every large tensor by a reference to the file `location`; returns what that file is to hold.
fn detach(model: &mut ModelProto, location: &str) -> Result<Vec<Bytes>> {
    const PADDING: &[u8] = &[0; ALIGNMENT];
    let (mut pieces, mut end) = (Vec::new(), 0_usize);
    tensors::visit(model, &mut |tensor| {
        let Some(data) = tensor.raw_data.take_if(|data| data.len() >= LEAST) else { return Ok(()) };
        let offset = end.next_multiple_of(ALIGNMENT);
        if offset > end {
            pieces.push(Bytes::from_static(&PADDING[..offset - end]));
        }
        end = offset + data.len();
        point(tensor, location, offset, data.len());
        pieces.push(data);
        Ok(())
    })?;
    Ok(pieces)
}

/// Replaces the data of large initializers that are mapped from files of one folder by references; returns that folder. Data
/// that do not begin where vectors of numbers may begin are left.
pub(super) fn refer(tensors: &mut [TensorProto]) -> Option<PathBuf> {
    const ALIGNMENT: usize = 64;
    let mut common: Option<PathBuf> = None;
    for tensor in tensors {
        let Some(data) = tensor.raw_data.as_ref().filter(|data| data.len() >= LEAST) else { continue };
        let Some((path, offset)) = mapped::origin(data) else { continue };
        let (folder, name) = (folder(&path), path.file_name().and_then(|name| name.to_str()));
        let usable = offset.is_multiple_of(ALIGNMENT) && common.as_deref().is_none_or(|c| c == folder);
        let Some(name) = name.filter(|_| usable) else { continue };
        common.get_or_insert_with(|| folder.to_owned());
        let length = data.len();
        point(tensor, name, offset, length);
    }
    common
}

/// Has the data of a tensor be in a file.
fn point(tensor: &mut TensorProto, location: &str, offset: usize, length: usize) {
    let entry =
        |key: &str, value: String| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) };
    tensor.raw_data = None;
    tensor.data_location = Some(EXTERNAL);
    tensor.external_data = vec![
        entry("location", location.to_owned()),
        entry("offset", offset.to_string()),
        entry("length", length.to_string()),
    ];
}
