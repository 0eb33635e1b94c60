//! The file of a calibration: little-endian, the tensors sorted by name, a CRC-32 of everything before it at the end.
//!
//! ```text
//! "rustqcal" version  runs u64  length-prefixed fingerprint (empty: unknown)  number of tensors u64
//! for each: length-prefixed name, number of sections u8, for each: kind u8, length-prefixed content
//! ```
//!
//! A kind that is not known is an error, since merging would lose it: so new statistics are new kinds, not new versions.

use std::collections::BTreeMap;

use super::{Calibration, Channels, Fingerprint, Seen};
use crate::error::{Error, Result};
use crate::observer::Observer;

/// First bytes of a calibration file, before the version of its format.
const MAGIC: &[u8] = b"rustqcal";
const VERSION: u8 = 2;

/// Kinds of sections.
const VALUES: u8 = 1;
const CHANNELS: u8 = 2;

impl Calibration {
    /// The content of a calibration file. Equal calibrations have the same.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = [MAGIC, &[VERSION], &self.runs.to_le_bytes()].concat();
        write_block(&mut bytes, &self.model.as_ref().map_or_else(Vec::new, Fingerprint::to_bytes));
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        for (name, seen) in &self.tensors {
            write_block(&mut bytes, name.as_bytes());
            let values = [&[seen.rank][..], &seen.observer.to_bytes()].concat();
            let channels = seen.channels.as_ref().map(|channels| (CHANNELS, channels_to_bytes(channels)));
            let sections: Vec<_> = [(VALUES, values)].into_iter().chain(channels).collect();
            bytes.push(sections.len() as u8);
            for (kind, content) in sections {
                bytes.push(kind);
                write_block(&mut bytes, &content);
            }
        }
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Reads what [`Calibration::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Error::Data`] for anything else, a damaged file included.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let content = bytes.strip_prefix(MAGIC).ok_or_else(|| data("not a rustq calibration file"))?;
        match content.first() {
            Some(&VERSION) => {}
            Some(old) if *old < VERSION => return Err(data("written by an older rustq: calibrate again")),
            Some(_) => return Err(data("written by a newer rustq")),
            None => return Err(damaged()),
        }
        let (body, checksum) = content[1..].split_last_chunk::<4>().ok_or_else(damaged)?;
        if crc32fast::hash(&bytes[..bytes.len() - 4]) != u32::from_le_bytes(*checksum) {
            return Err(damaged());
        }
        let mut reader = Reader(body);
        let runs = reader.number().ok_or_else(damaged)?;
        let model = match reader.block().ok_or_else(damaged)? {
            [] => None,
            print => Some(Fingerprint::from_bytes(print).ok_or_else(damaged)?),
        };
        let mut tensors = BTreeMap::new();
        for _ in 0..reader.number().ok_or_else(damaged)? {
            let name = reader.block().and_then(|b| std::str::from_utf8(b).ok()).ok_or_else(damaged)?;
            tensors.insert(name.to_owned(), seen(name, &mut reader)?);
        }
        if reader.0.is_empty() { Ok(Self { tensors, runs, model }) } else { Err(damaged()) }
    }
}

/// The sections of a tensor.
fn seen(name: &str, reader: &mut Reader) -> Result<Seen> {
    let mut seen = Seen::default();
    for _ in 0..reader.byte().ok_or_else(damaged)? {
        let kind = reader.byte().ok_or_else(damaged)?;
        let content = reader.block().ok_or_else(damaged)?;
        match kind {
            VALUES => {
                let (rank, values) = content.split_first().ok_or_else(damaged)?;
                let observer = Observer::from_bytes(values);
                seen.observer = observer.map_err(|e| data(format!("calibration of '{name}': {e}")))?;
                seen.rank = *rank;
            }
            CHANNELS => seen.channels = Some(channels_from_bytes(content).ok_or_else(damaged)?),
            _ => return Err(data("it holds statistics that only a newer rustq knows")),
        }
    }
    Ok(seen)
}

/// Axis, then the smallest value of each channel, then the largest.
fn channels_to_bytes(channels: &Channels) -> Vec<u8> {
    let mut bytes = channels.axis().to_le_bytes().to_vec();
    bytes.extend(channels.min().iter().chain(channels.max()).flat_map(|v| v.to_le_bytes()));
    bytes
}

fn channels_from_bytes(bytes: &[u8]) -> Option<Channels> {
    let (axis, values) = bytes.split_first_chunk()?;
    let (values, rest) = values.as_chunks();
    let values: Vec<f32> = values.iter().copied().map(f32::from_le_bytes).collect();
    let (min, max) = values.split_at(values.len() / 2);
    Channels::new(i64::from_le_bytes(*axis), min.to_vec(), max.to_vec()).filter(|_| rest.is_empty())
}

fn data(message: impl Into<String>) -> Error {
    Error::Data(message.into())
}

fn damaged() -> Error {
    data("the calibration file is damaged or cut short")
}

fn write_block(bytes: &mut Vec<u8>, block: &[u8]) {
    bytes.extend((block.len() as u64).to_le_bytes());
    bytes.extend(block);
}

/// Takes numbers and blocks from the front of untrusted bytes.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn block(&mut self) -> Option<&'b [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (block, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibration::tests::some;

    #[test]
    fn reads_what_it_wrote() {
        let mut calibration = some(3.0);
        calibration.model = Fingerprint::from_bytes(&[0; 24]);
        assert_eq!(Calibration::from_bytes(&calibration.to_bytes()).unwrap(), calibration);
    }

    #[test]
    fn damage_is_an_error() {
        let bytes = some(3.0).to_bytes();
        for length in 0..bytes.len() {
            assert!(Calibration::from_bytes(&bytes[..length]).is_err(), "cut to {length}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(Calibration::from_bytes(&changed).is_err(), "changed at {at}");
        }
    }

    #[test]
    fn other_versions_are_named() {
        let bytes = some(3.0).to_bytes();
        for (version, expected) in [(1, "older"), (3, "newer")] {
            let other = [MAGIC, &[version], &bytes[9..]].concat();
            assert!(Calibration::from_bytes(&other).unwrap_err().to_string().contains(expected));
        }
    }

    #[test]
    fn unknown_statistics_are_not_dropped() {
        let mut bytes = some(3.0).to_bytes();
        bytes.truncate(bytes.len() - 4);
        // Magic and version, runs, no fingerprint, number of tensors; the name "a", its number of sections.
        let first = 9 + 8 + 8 + 8 + 8 + 1 + 1;
        assert_eq!(bytes[first], VALUES);
        bytes[first] = 9;
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        assert!(Calibration::from_bytes(&bytes).unwrap_err().to_string().contains("newer"));
    }
}
