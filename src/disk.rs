//! What a file system tells of itself: its room, and the tick of its clock.

use nix::sys::statvfs::statvfs;
use std::path::Path;
use std::time::Duration;

/// What a file system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes that an ordinary user may still write.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// The file system of the folder in which `file` is, or will be; `None` where it cannot be asked.
pub fn space_of(file: &Path) -> Option<DiskSpace> {
    // The folder itself may not be there yet.
    let stat = file.ancestors().skip(1).find_map(|folder| statvfs(folder).ok())?;
    #[allow(clippy::unnecessary_cast, reason = "the types differ between systems")]
    let bytes = |blocks| blocks as u64 * stat.fragment_size() as u64;
    Some(DiskSpace { free: bytes(stat.blocks_available()), total: bytes(stat.blocks()) })
}

/// How long a tick of the file systems' clock is: two changes of a file within one may carry the same time. At most
/// 10 ms, which is also the answer where the system does not tell.
pub fn tick() -> Duration {
    const LONGEST: Duration = Duration::from_millis(10);
    #[cfg(target_os = "linux")]
    {
        // Linux stamps files by its coarse clock (current_time in fs/inode.c), or finer.
        use nix::time::{ClockId, clock_getres};
        if let Ok(tick) = clock_getres(ClockId::CLOCK_REALTIME_COARSE) {
            return Duration::from(tick).clamp(Duration::from_millis(1), LONGEST);
        }
    }
    LONGEST
}
