//! Writing files wholly or not at all: into temporary ones beside them, then a rename.

use std::fs::File;
use std::io::{ErrorKind, Result as IoResult, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// Replaces the file at `path` by `pieces` one behind the other, wholly or not at all.
///
/// # Errors
/// [`Error::Io`], naming `path`.
pub fn write_atomically<P: AsRef<[u8]>>(path: &Path, pieces: &[P]) -> Result<()> {
    persist(path, temporary(path, pieces)?)
}

/// Writes files that belong together: not one of them is replaced before all are written and on the disk.
///
/// # Errors
/// [`Error::Io`], naming the file.
pub fn write_together<P: AsRef<[u8]>>(files: &[(PathBuf, Vec<P>)]) -> Result<()> {
    let written = files.iter().map(|(path, pieces)| Ok((path, temporary(path, pieces)?)));
    let written: Vec<_> = written.collect::<Result<_>>()?;
    written.into_iter().try_for_each(|(path, file)| persist(path, file))
}

/// A file on the disk beside `path`, to be renamed to it; it is gone if that does not happen.
fn temporary<P: AsRef<[u8]>>(path: &Path, pieces: &[P]) -> Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let write = || -> IoResult<NamedTempFile> {
        let mut file = tempfile::Builder::new().prefix(".rustq-").tempfile_in(folder)?;
        let mut written = 0;
        for piece in pieces {
            file.write_all(piece.as_ref())?;
            written = start_writing(file.as_file(), written, piece.as_ref().len());
        }
        file.as_file().sync_all()?;
        keep_permissions(path, file.as_file())?;
        Ok(file)
    };
    write().map_err(|error| Error::io(path)(numbered(error)))
}

fn persist(path: &Path, file: NamedTempFile) -> Result<()> {
    file.persist(path).map(drop).map_err(|e| Error::io(path)(numbered(e.error)))
}

/// Has the system begin to write `length` bytes at `start` to the disk while more are produced, so that the sync at the end
/// finds little left to do; returns where they end.
fn start_writing(file: &File, start: usize, length: usize) -> usize {
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
    let _ = file;
    start + length
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
