//! Memory for new weights: of the process as long as they are few, then of the file system.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use memmap2::MmapMut;

use crate::mapped;

/// From this size on, memory comes in huge pages where the system has them: it is touched for the first time here.
const HUGE: usize = 1 << 20;

/// How much there may be of such memory. What goes beyond it lies in files, which the system can write out and read again.
const MOST: usize = 1 << 27;

/// How much there is of it.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Memory for the values of one tensor.
pub(crate) enum Memory {
    Small(Vec<u8>),
    Large(Anonymous),
    File(mapped::Scratch),
}

impl Memory {
    /// Memory for what is kept.
    pub fn zeroed(size: usize) -> Self {
        if size >= HUGE
            && TAKEN.load(Ordering::Relaxed).saturating_add(size) > MOST
            && let Ok(scratch) = mapped::scratch(size)
        {
            return Self::File(scratch);
        }
        Self::passing(size)
    }

    /// Memory for what is soon gone: never in a file.
    pub fn passing(size: usize) -> Self {
        if size < HUGE {
            return Self::Small(vec![0; size]);
        }
        match Anonymous::new(size) {
            Ok(memory) => Self::Large(memory),
            Err(_) => Self::Small(vec![0; size]),
        }
    }

    /// Memory with this content.
    pub fn of(content: Vec<u8>) -> Bytes {
        if content.len() < HUGE {
            return content.into();
        }
        let mut memory = Self::zeroed(content.len());
        memory.as_mut().copy_from_slice(&content);
        memory.into()
    }

    pub fn as_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Large(Anonymous(map)) | Self::File(mapped::Scratch { map, .. }) => map,
        }
    }
}

impl From<Memory> for Bytes {
    fn from(memory: Memory) -> Self {
        match memory {
            Memory::Small(bytes) => bytes.into(),
            Memory::Large(memory) => Self::from_owner(memory),
            Memory::File(scratch) => mapped::finished(scratch),
        }
    }
}

/// Memory of the process that counts as [`TAKEN`].
pub(crate) struct Anonymous(MmapMut);

impl Anonymous {
    fn new(size: usize) -> std::io::Result<Self> {
        let map = MmapMut::map_anon(size)?;
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        TAKEN.fetch_add(size, Ordering::Relaxed);
        Ok(Self(map))
    }
}

impl AsRef<[u8]> for Anonymous {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Anonymous {
    fn drop(&mut self) {
        TAKEN.fetch_sub(self.0.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_holds_what_was_written() {
        let mut memories = vec![
            Memory::zeroed(5),
            Memory::zeroed(HUGE),
            Memory::zeroed(MOST + 1),
            Memory::passing(MOST + 1),
        ];
        assert!(cfg!(not(target_os = "linux")) || matches!(memories[2], Memory::File(_)));
        assert!(matches!(memories[3], Memory::Large(_)));
        for (number, memory) in memories.iter_mut().enumerate() {
            let bytes = memory.as_mut();
            assert!(bytes.iter().all(|&byte| byte == 0));
            *bytes.last_mut().unwrap() = number as u8 + 1;
            bytes[0] = 7;
        }
        for (number, memory) in memories.into_iter().enumerate() {
            let bytes = Bytes::from(memory);
            mapped::release(&bytes);
            assert_eq!((bytes[0], bytes[bytes.len() - 1]), (7, number as u8 + 1));
        }
    }
}
