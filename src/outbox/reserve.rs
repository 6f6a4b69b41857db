//! A small file beside the outbox that only takes up room. When the disk is full it is given up, and what was
//! delivered can still be marked as such: it is not sent again, and its room becomes free.

use crate::disk;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// To mark all requests that can be in flight at once takes about half of it.
const BYTES: u64 = 512 << 10;

#[derive(Debug)]
pub(super) struct ReserveFile {
    path: PathBuf,
    held: bool,
}

impl ReserveFile {
    /// That of an outbox, as the last agent has left it.
    pub(super) fn beside(outbox: &Path) -> ReserveFile {
        let path = super::beside(outbox, ".reserve");
        let held = fs::metadata(&path).is_ok_and(|file| file.blocks() * 512 >= BYTES);
        ReserveFile { path, held }
    }

    /// Makes it if it is not there and there is room for twice as much: it does not take what is needed now.
    pub(super) fn make(&mut self) {
        if self.held || disk::space_of(&self.path).is_none_or(|disk| disk.free < 2 * BYTES) {
            return;
        }
        self.held = self.write().is_ok();
        if !self.held {
            // A part of it is no use.
            let _ = fs::remove_file(&self.path);
        }
    }

    fn write(&self) -> io::Result<()> {
        // What is random takes up room on a file system that compresses, too.
        let mut content = vec![0; BYTES as usize];
        getrandom::fill(&mut content).map_err(io::Error::other)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(super::FILE_MODE)
            .open(&self.path)?;
        file.write_all(&content)?;
        file.sync_all()
    }

    /// Gives its room to whoever writes next. Returns whether there was any to give.
    pub(super) fn release(&mut self) -> bool {
        std::mem::take(&mut self.held) && fs::remove_file(&self.path).is_ok()
    }

    /// The room that must be free before it is made again.
    pub(super) fn missing(&self) -> u64 {
        if self.held { 0 } else { 2 * BYTES }
    }
}
