//! The files of a database: their names, which ones they are, and how they are created and removed.

use super::OutboxError;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Readable for the group, writable for the owner; SQLite gives its -wal and -shm files the same mode.
pub(super) const FILE_MODE: u32 = 0o640;

/// Device and inode, which identify a file whatever its name.
pub(super) type FileId = (u64, u64);

/// The file in the same folder whose name is that of the database with the suffix.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The file at that path, and its size in bytes.
pub(super) fn file_at(path: &Path) -> Result<Option<(FileId, u64)>, OutboxError> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(((meta.dev(), meta.ino()), meta.len()))),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(OutboxError::io(path, "find the database", &e)),
    }
}

/// Opens a file for writing, empty, and creates it if need be.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(path)
}

pub(super) fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Brings renames and removals in the folder of that file to the disk.
pub(super) fn sync_folder_of(path: &Path) -> Result<(), OutboxError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| OutboxError::io(folder, "sync the folder", &e))
}
