//! Whether the agent runs with what stands in the configuration file.

use crate::config::{Config, FileDigest, digest_of};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// The configuration file as it was last read.
#[derive(Debug, Default)]
pub struct ConfigWatch {
    seen: Option<(FileVersion, Option<FileDigest>)>,
}

/// Changes with every change of a file: its number, its size, and when it was last changed.
type FileVersion = Option<(u64, u64, i64, i64)>;

impl ConfigWatch {
    /// Whether the file has the content that the settings were loaded from. Reads it only if it has changed.
    pub fn is_in_force(&mut self, config: &Config) -> bool {
        let meta = fs::metadata(&config.path).ok();
        let version = meta.map(|meta| (meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()));
        let seen = self.seen.filter(|(seen, _)| *seen == version);
        let (_, digest) = *self.seen.insert(seen.unwrap_or_else(|| (version, digest_of(&config.path))));
        digest == config.file_digest
    }
}
