//! Memory for new weights.

use bytes::Bytes;
use memmap2::MmapMut;

/// From this size on, memory comes in huge pages where the system has them: it is touched for the first time here.
const HUGE: usize = 1 << 20;

/// Memory for the values of one tensor.
pub(super) enum Memory {
    Small(Vec<u8>),
    Large(MmapMut),
}

impl Memory {
    pub fn zeroed(size: usize) -> Self {
        let mapped = (size >= HUGE).then(|| MmapMut::map_anon(size).ok()).flatten();
        match mapped {
            Some(map) => {
                #[cfg(target_os = "linux")]
                let _ = map.advise(memmap2::Advice::HugePage);
                Self::Large(map)
            }
            None => Self::Small(vec![0; size]),
        }
    }

    pub fn as_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Large(map) => map,
        }
    }
}

impl From<Memory> for Bytes {
    fn from(memory: Memory) -> Self {
        match memory {
            Memory::Small(bytes) => bytes.into(),
            Memory::Large(map) => Self::from_owner(map),
        }
    }
}
