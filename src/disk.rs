//! Facts about a file system: its free space, the resolution of its clock, whether it is another machine's.

use nix::sys::statvfs::statvfs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// The space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes that an ordinary user can still write.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// The space of the file system of `file`, which need not exist yet; `None` if the system cannot tell.
pub fn space_of(file: &Path) -> Option<DiskSpace> {
    // The folder of the file may not exist yet either.
    let stat = file.ancestors().skip(1).find_map(|folder| statvfs(folder).ok())?;
    #[allow(clippy::unnecessary_cast, reason = "the types differ between systems")]
    let bytes = |blocks| blocks as u64 * stat.fragment_size() as u64;
    Some(DiskSpace { free: bytes(stat.blocks_available()), total: bytes(stat.blocks()) })
}

/// The name of the network file system that the folder is on; `None`: a local one, or one that is not known to be another
/// machine's, as all those of FUSE.
///
/// # Errors
/// The system's, such as that there is no such folder.
pub fn network_file_system(folder: &Path) -> io::Result<Option<&'static str>> {
    #[cfg(target_os = "linux")]
    {
        // From statfs(2).
        const NETWORK: [(i64, &str); 8] = [
            (0x6969, "NFS"),
            (0x517b, "SMB"),
            (0xff53_4d42, "CIFS"),
            (0xfe53_4d42, "SMB2"),
            (0x0102_1997, "9P"),
            (0x00c3_6400, "Ceph"),
            (0x5346_414f, "AFS"),
            (0x0bd0_0bd0, "Lustre"),
        ];
        let found = nix::sys::statfs::statfs(folder)?.filesystem_type().0 as i64 & 0xffff_ffff;
        Ok(NETWORK.iter().find(|(magic, _)| *magic == found).map(|(_, kind)| *kind))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = folder;
        Ok(None)
    }
}

/// The length of one tick of the clock for file times. Two changes of a file within one tick may have the same time. At
/// most 10 ms, which is also the answer if the system does not tell.
pub fn tick() -> Duration {
    const LONGEST: Duration = Duration::from_millis(10);
    #[cfg(target_os = "linux")]
    {
        // Linux stamps files by its coarse clock (current_time in fs/inode.c) or by a finer one.
        use nix::time::{ClockId, clock_getres};
        if let Ok(tick) = clock_getres(ClockId::CLOCK_REALTIME_COARSE) {
            return Duration::from(tick).clamp(Duration::from_millis(1), LONGEST);
        }
    }
    LONGEST
}
