//! The room on a file system.

use nix::sys::statvfs::statvfs;
use std::path::Path;

/// What a file system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that an ordinary user may still write.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// The file system of the folder in which `file` is, or will be; `None` where it cannot be asked.
pub fn of(file: &Path) -> Option<Disk> {
    // The folder itself may not be there yet.
    let stat = file.ancestors().skip(1).find_map(|folder| statvfs(folder).ok())?;
    #[allow(clippy::unnecessary_cast, reason = "the types differ between systems")]
    let bytes = |blocks| blocks as u64 * stat.fragment_size() as u64;
    Some(Disk { free: bytes(stat.blocks_available()), total: bytes(stat.blocks()) })
}
