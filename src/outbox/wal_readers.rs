//! Who keeps the write-ahead log from being emptied: other processes with a transaction open.

use super::beside;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::File;
use std::path::Path;

/// Where SQLite's readers lock the -shm file, a byte for each of their acks (<https://sqlite.org/walformat.html>).
const READ_MARKS: std::ops::Range<libc::off_t> = 123..128;

/// Asks for the holders of the readers' locks.
#[derive(Debug, Default)]
pub(super) struct WalReaders {
    /// Never closed: to close any descriptor of the file would drop SQLite's own locks on it in this process.
    shm: Option<&'static File>,
}

impl WalReaders {
    /// Processes other than this one with a transaction open, ascending.
    pub(super) fn pids(&mut self, database: &Path) -> Vec<i32> {
        if self.shm.is_none() {
            self.shm = File::open(beside(database, "-shm")).ok().map(|file| &*Box::leak(Box::new(file)));
        }
        let Some(shm) = self.shm else { return Vec::new() };
        let mut pids: Vec<i32> = READ_MARKS.filter_map(|mark| holder(shm, mark)).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

fn holder(shm: &File, mark: libc::off_t) -> Option<i32> {
    let mut probe = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: mark,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(shm, FcntlArg::F_GETLK(&mut probe)).ok()?;
    (i32::from(probe.l_type) != libc::F_UNLCK).then_some(probe.l_pid)
}
