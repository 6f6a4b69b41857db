//! A note on the disk of the file that is being read, so that one that ends the agent is known after the restart.
//!
//! Whatever a file contains, reading it should not end the process; but if the system runs out of memory meanwhile, the
//! same file would end each next process too, and no other file of its owner would ever be read. So such a file is read
//! last. It is never rejected for that alone: the cause may have been another.
//!
//! The note is written only for documents that are large, packed or long in hand, so that ordinary files cost nothing. A
//! file of lines keeps its place in the order: of it one value at a time is in memory, and what was read of it is stored.

use super::FileKey;
use std::fs;
use std::path::{Path, PathBuf};

/// The name of the note in `.removing`.
pub(super) const IN_HAND: &str = ".reading";
/// The most suspects that are remembered.
const MAX_SUSPECTS: usize = 100;

/// The file in hand, and those that were in hand when earlier agents ended without a word.
#[derive(Debug)]
pub struct InHand {
    path: PathBuf,
    suspects: Vec<FileKey>,
    current: Option<FileKey>,
}

impl InHand {
    /// Reads what the agent before has left.
    pub(super) fn open(removing: &Path) -> InHand {
        let path = removing.join(IN_HAND);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let suspects = text.lines().filter_map(FileKey::parse).take(MAX_SUSPECTS).collect();
        InHand { path, suspects, current: None }
    }

    /// Whether the file was in hand when an agent ended without a word.
    pub fn is_suspect(&self, key: FileKey) -> bool {
        self.suspects.contains(&key)
    }

    /// Notes that the file is being read.
    pub fn take(&mut self, key: FileKey) {
        if self.current != Some(key) {
            self.current = Some(key);
            self.write();
        }
    }

    /// Notes that the file has been read and did no harm.
    pub fn put_down(&mut self, key: FileKey) {
        if self.current == Some(key) || self.is_suspect(key) {
            self.current = self.current.filter(|current| *current != key);
            self.suspects.retain(|suspect| *suspect != key);
            self.write();
        }
    }

    /// Forgets the file in hand: the agent ends by its own will.
    pub fn stop(&mut self) {
        if let Some(key) = self.current.filter(|key| !self.is_suspect(*key)) {
            self.put_down(key);
        }
    }

    fn write(&self) {
        let keys = self.suspects.iter().chain(self.current.as_ref().filter(|key| !self.is_suspect(**key)));
        let text: String = keys.map(|key| format!("{key}\n")).collect();
        // It is not flushed: the end of a process loses nothing that was written. Without the note the order is as usual.
        let written = if text.is_empty() { fs::remove_file(&self.path) } else { fs::write(&self.path, text) };
        if let Err(e) = written {
            tracing::debug!("the file in hand cannot be noted: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::FileIdentity;

    #[test]
    fn a_file_that_was_in_hand_at_an_unclean_end_is_suspect_until_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let key = |inode| FileIdentity { inode, born: -7, modified: 1 }.key();
        let mut first = InHand::open(dir.path());
        for inode in [1, 2] {
            first.take(key(inode));
            first.put_down(key(inode));
        }
        first.take(key(3));
        let mut second = InHand::open(dir.path());
        assert_eq!([1, 2, 3].map(|inode| second.is_suspect(key(inode))), [false, false, true]);
        second.take(key(4));
        let mut third = InHand::open(dir.path());
        assert_eq!([3, 4].map(|inode| third.is_suspect(key(inode))), [true, true]);
        third.put_down(key(3));
        third.take(key(5));
        third.stop();
        let fourth = InHand::open(dir.path());
        assert_eq!([3, 4, 5].map(|inode| fourth.is_suspect(key(inode))), [false, true, false]);
    }
}
