//! Writing files wholly or not at all: into temporary ones beside them, then a rename.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Result as IoResult, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::mapped;

/// Replaces the file at `path` by `content`, wholly or not at all.
///
/// # Errors
/// [`Error::Io`], naming `path`.
pub fn write_atomically(path: &Path, content: impl Into<Bytes>) -> Result<()> {
    let mut batch = Batch::default();
    batch.file(path.to_owned(), vec![content.into()]);
    batch.write().map(drop)
}

/// Files that belong together: none of them is replaced before all are written and on the disk, and the first one, which
/// may refer to the others, last.
#[derive(Default)]
pub struct Batch {
    files: Vec<(PathBuf, Vec<Bytes>)>,
    /// Files of this batch that exist already as they are to be.
    pub(super) present: Vec<PathBuf>,
    /// Nobody waits for the disk.
    scratch: bool,
    /// Files to remove once nothing refers to them any more.
    pub(super) obsolete: Vec<PathBuf>,
}

impl Batch {
    /// No files yet; `scratch` ones are for this process alone and need not outlast a crash.
    pub fn new(scratch: bool) -> Self {
        Self { scratch, ..Self::default() }
    }

    /// Adds a file with the content `pieces`, one behind the other.
    pub fn file(&mut self, path: PathBuf, pieces: Vec<Bytes>) {
        self.files.push((path, pieces));
    }

    /// Writes the files; returns their paths.
    ///
    /// # Errors
    /// [`Error::Io`], naming the file.
    pub fn write(self) -> Result<Vec<PathBuf>> {
        let written = self.files.iter().map(|(path, pieces)| temporary(path, pieces, self.scratch));
        let written: Vec<_> = written.collect::<Result<_>>()?;
        let mut fresh = Vec::new();
        for ((path, _), file) in self.files.iter().zip(written).rev() {
            let is_fresh = !path.exists();
            if let Err(error) = file.persist(path) {
                fresh.into_iter().for_each(remove);
                return Err(Error::io(path)(numbered(error.error)));
            }
            fresh.extend(is_fresh.then_some(path.as_path()));
        }
        self.obsolete.iter().map(PathBuf::as_path).for_each(remove);
        let paths: Vec<PathBuf> = self.files.into_iter().map(|(path, _)| path).chain(self.present).collect();
        if !self.scratch {
            paths.iter().map(|path| folder(path)).collect::<BTreeSet<_>>().into_iter().for_each(sync_folder);
        }
        Ok(paths)
    }
}

/// The folder that a file is in.
pub(super) fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
}

/// Removes a file that nothing refers to. It may stay: it is in nobody's way.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// Has the system note the renames on the disk. Not every file system can, and the files themselves are there.
fn sync_folder(folder: &Path) {
    if cfg!(unix) {
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
}

/// A file beside `path`, on the disk unless it is `scratch`, to be renamed to it; it is gone if that does not happen.
fn temporary(path: &Path, pieces: &[Bytes], scratch: bool) -> Result<NamedTempFile> {
    let write = || -> IoResult<NamedTempFile> {
        let mut file = tempfile::Builder::new().prefix(".rustq-").tempfile_in(folder(path))?;
        let (mut started, mut written) = (0, 0);
        let mut buffer = vec![0; PART];
        for part in pieces.iter().flat_map(|piece| piece.chunks(PART)) {
            let copied = &mut buffer[..part.len()];
            let content = if mapped::read(part, copied) { copied } else { part };
            file.as_file_mut().write_all(content)?;
            written += part.len();
            if written - started >= STRETCH && !scratch {
                start_writing(file.as_file(), started, written - started);
                started = written;
            }
        }
        if !scratch {
            file.as_file().sync_all()?;
        }
        keep_permissions(path, file.as_file())?;
        Ok(file)
    };
    write().map_err(|error| Error::io(path)(numbered(error)))
}

/// Bytes that are written at a time, and that the disk is told of together.
const PART: usize = 1 << 19;
const STRETCH: usize = 1 << 24;

/// Has the system begin to write `length` bytes at `start` to the disk while more are produced, so that the sync at the end
/// finds little left to do.
fn start_writing(file: &File, start: usize, length: usize) {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        // SAFETY: plain numbers and a file that is open. A failure does not matter: the sync does it all.
        unsafe {
            libc::sync_file_range(
                file.as_raw_fd(),
                start as libc::off64_t,
                length as libc::off64_t,
                libc::SYNC_FILE_RANGE_WRITE,
            );
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, start, length);
}

/// The error with the operating system's number, which is lost where another message was wrapped around it.
fn numbered(error: std::io::Error) -> std::io::Error {
    const NUMBERS: &[(ErrorKind, i32)] = &[
        (ErrorKind::NotFound, 2),
        (ErrorKind::PermissionDenied, 13),
        (ErrorKind::NotADirectory, 20),
        (ErrorKind::StorageFull, 28),
        (ErrorKind::ReadOnlyFilesystem, 30),
    ];
    let number = NUMBERS.iter().find(|(kind, _)| cfg!(unix) && *kind == error.kind());
    number.map_or(error, |(_, number)| std::io::Error::from_raw_os_error(*number))
}

/// Gives a new file the permissions of the one it replaces, or those of any newly made file.
fn keep_permissions(path: &Path, file: &File) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).map_or(0o644, |old| old.permissions().mode());
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    }
    #[cfg(not(unix))]
    let _ = (path, file);
    Ok(())
}
