//! Files mapped into memory. Their pages can be given back after use: the system reads them again if they are needed.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::SystemTime;

use bytes::Bytes;
use memmap2::{Mmap, MmapMut};

/// Every mapping there is, by its first byte.
static MAPPINGS: RwLock<BTreeMap<usize, Mapping>> = RwLock::new(BTreeMap::new());

struct Mapping {
    length: usize,
    #[cfg_attr(not(unix), expect(dead_code, reason = "only asked where files are read at any place"))]
    file: File,
    /// Its name, if it has one, and its size and time of change.
    named: Option<(PathBuf, u64, SystemTime)>,
}

/// The content of a file, not read before it is used.
///
/// The file must not be changed by others meanwhile.
///
/// # Errors
/// When it cannot be opened or mapped, or is no file but a folder or the like.
pub(crate) fn open(path: &Path) -> Result<Bytes> {
    // Opening a pipe would wait for somebody to write to it.
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is read-only and private. A file that another process truncates meanwhile can still fault;
    // the documentation asks for files that are left alone.
    let map = unsafe { Mmap::map(&file) }?;
    let named = metadata.modified().ok().map(|time| (path.to_owned(), metadata.len(), time));
    Ok(Bytes::from_owner(Mapped::new(map, file, named)))
}

/// The file that `bytes` are mapped from, and where they begin in it; `None` if they are from none, or it is another one now.
pub(crate) fn origin(bytes: &[u8]) -> Option<(PathBuf, usize)> {
    let start = bytes.as_ptr() as usize;
    let mappings = MAPPINGS.read().unwrap_or_else(PoisonError::into_inner);
    let (&first, mapping) = containing(&mappings, start, bytes.len())?;
    let (path, size, time) = mapping.named.as_ref()?;
    let now = std::fs::metadata(path).ok()?;
    let same = now.len() == *size && now.modified().is_ok_and(|modified| modified == *time);
    same.then(|| (path.clone(), start - first))
}

/// The mapping that these bytes are in.
fn containing(
    mappings: &BTreeMap<usize, Mapping>,
    start: usize,
    length: usize,
) -> Option<(&usize, &Mapping)> {
    let found = mappings.range(..=start).next_back();
    found.filter(|(first, mapping)| start + length <= *first + mapping.length)
}

/// Memory in a file without a name.
pub(crate) struct Scratch {
    pub map: MmapMut,
    file: File,
}

/// Such memory, for what is too much to keep in this process's own.
///
/// # Errors
/// When there is no room for it.
pub(crate) fn scratch(size: usize) -> Result<Scratch> {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        // `/tmp` is often memory itself.
        let roomy = std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into());
        let file = tempfile::tempfile_in(roomy)?;
        let length = libc::off64_t::try_from(size).map_err(|_| ErrorKind::FileTooLarge)?;
        // SAFETY: plain numbers and a file that is open.
        if unsafe { libc::fallocate64(file.as_raw_fd(), 0, 0, length) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: nobody else can open the file, and it has the room it needs.
        let map = unsafe { MmapMut::map_mut(&file) }?;
        Ok(Scratch { map, file })
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = size;
        Err(ErrorKind::Unsupported.into())
    }
}

/// What was written to such memory.
pub(crate) fn finished(scratch: Scratch) -> Bytes {
    match scratch.map.make_read_only() {
        Ok(map) => {
            let bytes = Bytes::from_owner(Mapped::new(map, scratch.file, None));
            release(&bytes);
            bytes
        }
        Err(_) => unreachable!("taking a right away cannot fail"),
    }
}

/// A mapping that is known to [`release`] and [`origin`] as long as it exists.
struct Mapped(Mmap);

impl Mapped {
    fn new(map: Mmap, file: File, named: Option<(PathBuf, u64, SystemTime)>) -> Self {
        let mut mappings = MAPPINGS.write().unwrap_or_else(PoisonError::into_inner);
        mappings.insert(map.as_ptr() as usize, Mapping { length: map.len(), file, named });
        Self(map)
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        MAPPINGS.write().unwrap_or_else(PoisonError::into_inner).remove(&(self.0.as_ptr() as usize));
    }
}

/// Gives memory that was freed back to the system. glibc keeps much of it, which ONNX Runtime's sessions then have twice.
#[cfg_attr(not(feature = "python"), expect(dead_code, reason = "asked by Python, which has the sessions"))]
pub(crate) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes a number.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Reads `bytes` into `buffer` from the file that they are mapped from; returns whether that was possible. It takes less than
/// to put their pages into this process's memory and to give them back.
pub(crate) fn read(bytes: &[u8], buffer: &mut [u8]) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileExt;
        let start = bytes.as_ptr() as usize;
        let mappings = MAPPINGS.read().unwrap_or_else(PoisonError::into_inner);
        let found = containing(&mappings, start, bytes.len());
        found.is_some_and(|(first, mapping)| {
            mapping.file.read_exact_at(buffer, (start - first) as u64).is_ok()
        })
    }
    #[cfg(not(unix))]
    {
        let _ = (bytes, buffer);
        false
    }
}

#[cfg(target_os = "linux")]
fn page_size() -> usize {
    // SAFETY: it only asks.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(1 << 16)
}

/// Takes the pages that lie wholly within `bytes` out of this process's memory, if they are those of a mapped file; they
/// stay in the system's cache.
pub(crate) fn release(bytes: &[u8]) {
    #[cfg(target_os = "linux")]
    {
        let page = page_size();
        let (start, end) = (bytes.as_ptr() as usize, bytes.as_ptr() as usize + bytes.len());
        let (first, last) = (start.next_multiple_of(page), end / page * page);
        let mappings = MAPPINGS.read().unwrap_or_else(PoisonError::into_inner);
        if first < last && containing(&mappings, start, bytes.len()).is_some() {
            // SAFETY: the pages lie within a mapping of a file, which `bytes` borrows from, so it exists until the end.
            // Reading them again reads the file, whose content they have: nobody writes to the mapping.
            unsafe {
                libc::madvise(first as *mut libc::c_void, last - first, libc::MADV_DONTNEED);
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = bytes;
}
