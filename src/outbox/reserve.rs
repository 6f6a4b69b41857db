//! A file that only takes up room. When the disk is full it is removed, so that deliveries can still be recorded: they
//! are not sent again, and their room becomes free.

use super::files::{create, with_suffix};
use crate::disk;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Recording all requests that can be in flight at once takes about half of it.
const BYTES: u64 = 512 << 10;

#[derive(Debug)]
pub(super) struct ReserveFile {
    path: PathBuf,
    exists: bool,
}

impl ReserveFile {
    /// The reserve file of an outbox, as the previous agent has left it.
    pub(super) fn of(outbox: &Path) -> ReserveFile {
        let path = with_suffix(outbox, ".reserve");
        let exists = fs::metadata(&path).is_ok_and(|file| file.blocks() * 512 >= BYTES);
        ReserveFile { path, exists }
    }

    /// Creates the file if it is missing. Twice its size must be free, so that it never causes the shortage it is for.
    pub(super) fn create(&mut self) {
        if self.exists || disk::space_of(&self.path).is_none_or(|disk| disk.free < 2 * BYTES) {
            return;
        }
        self.exists = self.write().is_ok();
        if !self.exists {
            // A part of the file is no use.
            let _ = fs::remove_file(&self.path);
        }
    }

    fn write(&self) -> io::Result<()> {
        // Random bytes take up room on a file system that compresses, too.
        let mut content = vec![0; BYTES as usize];
        getrandom::fill(&mut content).map_err(io::Error::other)?;
        let mut file = create(&self.path)?;
        file.write_all(&content)?;
        file.sync_all()
    }

    /// Removes the file, and logs that. Returns whether there was one.
    pub(super) fn release(&mut self) -> bool {
        let is_removed = std::mem::take(&mut self.exists) && fs::remove_file(&self.path).is_ok();
        if is_removed {
            tracing::warn!(
                notice = "reserve_used",
                reserve = %self.path.display(),
                "the disk of the outbox is full: its reserve file is removed, so that deliveries can be recorded"
            );
        }
        is_removed
    }

    /// Bytes that must be free before the file is created again.
    pub(super) fn missing(&self) -> u64 {
        if self.exists { 0 } else { 2 * BYTES }
    }
}
