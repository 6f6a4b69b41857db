//! The spool's part of the status, and the lines in the log about files that are left where they are.

use crate::clock::{Moment, Mono};
use crate::reason::Reason;
use crate::spool::{SpoolEntry, SpoolListing, printable, shell_quoted};
use crate::status;
use nix::unistd::{Gid, Group, Uid, User};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The interval at which the log names a file again that cannot be read.
const REMIND_EVERY: Duration = Duration::from_secs(3600);
/// Files whose line in the log is remembered. If there are more at once, the rest is not logged.
const MAX_REPORTED: usize = 10_000;

/// The spool and the intake, as `status` shows them.
#[derive(Debug, Clone, PartialEq)]
pub struct SpoolSnapshot {
    pub spool: status::SpoolStatus,
    pub intake: status::IntakeStatus,
}

impl SpoolSnapshot {
    pub fn new(dir: &Path) -> SpoolSnapshot {
        SpoolSnapshot {
            spool: status::SpoolStatus { dir: dir.to_owned(), ..status::SpoolStatus::default() },
            intake: status::IntakeStatus { state: status::IntakeState::Open, reason: None },
        }
    }
}

/// Keeps the snapshot up to date, and logs each oddity of the folder once.
#[derive(Debug)]
pub struct ScanReport {
    dir: PathBuf,
    snapshot: Arc<Mutex<SpoolSnapshot>>,
    /// Files that the agent may not read, and when the log last named each.
    unreadable: HashMap<OsString, Mono>,
    /// Names in the folder that are no regular file with one name, and since when.
    irregular: HashMap<OsString, Mono>,
    /// Files that the log has named.
    reported: HashSet<OsString>,
}

impl ScanReport {
    pub fn new(dir: &Path, snapshot: Arc<Mutex<SpoolSnapshot>>) -> ScanReport {
        ScanReport {
            dir: dir.to_owned(),
            snapshot,
            unreadable: HashMap::new(),
            irregular: HashMap::new(),
            reported: HashSet::new(),
        }
    }

    /// Reports a scan. Of the files `present`, `removing` (their number and bytes) are stored already. Returns how soon
    /// an irregular file has to be looked at again, if any has.
    pub fn scanned(
        &mut self,
        listing: &SpoolListing,
        present: &HashSet<&OsStr>,
        removing: (u64, u64),
        now: Moment,
        settle: Duration,
    ) -> Option<Duration> {
        let irregular: HashSet<&OsStr> = listing.irregular.iter().map(|(name, _)| name.as_os_str()).collect();
        self.unreadable.retain(|name, _| present.contains(name.as_os_str()));
        self.irregular.retain(|name, _| irregular.contains(name.as_os_str()));
        self.reported
            .retain(|name| irregular.contains(name.as_os_str()) || present.contains(name.as_os_str()));
        let mut wait: Option<Duration> = None;
        for (name, what) in &listing.irregular {
            // A producer that links a file into the spool and then unlinks its first name leaves it with two for a moment.
            let since = *self.irregular.entry(name.clone()).or_insert(now.mono);
            let rest = settle.saturating_sub(now.mono.saturating_sub(since));
            if rest.is_zero() {
                self.report(
                    name,
                    format_args!(
                        "left alone: it is {what}; only regular files without further hard links are read"
                    ),
                );
            } else {
                wait = Some(wait.map_or(rest, |wait| wait.min(rest)));
            }
        }
        let unreadable = self.unreadable.len() as u64;
        self.update(|snapshot| {
            snapshot.spool.waiting_files = listing.waiting_files.saturating_sub(removing.0);
            snapshot.spool.waiting_bytes = listing.waiting_bytes.saturating_sub(removing.1);
            snapshot.spool.unreadable_files = unreadable;
            snapshot.spool.scanned_at = Some(now.wall);
        });
        wait
    }

    /// Counts a file as waiting no more.
    pub fn forget_waiting(&self, size: u64) {
        self.update(|snapshot| {
            snapshot.spool.waiting_files = snapshot.spool.waiting_files.saturating_sub(1);
            snapshot.spool.waiting_bytes = snapshot.spool.waiting_bytes.saturating_sub(size);
        });
    }

    /// Logs an oddity of a file, unless the log has named the file before.
    pub fn report(&mut self, name: &OsStr, what: std::fmt::Arguments<'_>) {
        if self.is_first_report(name) {
            tracing::warn!("{}: {what}", printable(self.dir.join(name)));
        }
    }

    /// Whether the log has not named the file yet; from now on it has.
    pub fn is_first_report(&mut self, name: &OsStr) -> bool {
        self.reported.len() < MAX_REPORTED && self.reported.insert(name.to_owned())
    }

    /// Counts a file that may not be read, and logs how its owner, a uid, makes it readable: now and once an hour.
    pub fn unreadable(&mut self, entry: &SpoolEntry, owner: u32, now: Mono) {
        let logged_at = self.unreadable.get(&entry.name);
        if logged_at.is_none_or(|at| now.saturating_sub(*at) >= REMIND_EVERY) {
            let path = self.dir.join(&entry.name);
            tracing::warn!("{}: {}", printable(&path), how_to_make_readable(&path, &self.dir, owner));
            self.unreadable.insert(entry.name.clone(), now);
        }
        self.update_unreadable();
    }

    pub fn readable(&mut self, name: &OsStr) {
        if self.unreadable.remove(name).is_some() {
            self.update_unreadable();
        }
    }

    fn update_unreadable(&self) {
        let unreadable = self.unreadable.len() as u64;
        self.update(|snapshot| snapshot.spool.unreadable_files = unreadable);
    }

    pub fn rejected(&self, count: u64) {
        self.update(|snapshot| snapshot.spool.rejected_files = count);
    }

    /// Notes why no files are ingested for now; `None`: they are.
    pub fn blocked(&self, reason: Option<&Reason>) {
        let state = if reason.is_some() { status::IntakeState::Blocked } else { status::IntakeState::Open };
        self.update(|snapshot| snapshot.intake = status::IntakeStatus { state, reason: reason.cloned() });
    }

    fn update(&self, change: impl FnOnce(&mut SpoolSnapshot)) {
        change(&mut self.snapshot.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn how_to_make_readable(path: &Path, spool_dir: &Path, owner: u32) -> String {
    let owner =
        User::from_uid(Uid::from_raw(owner)).ok().flatten().map_or(owner.to_string(), |user| user.name);
    let group_of = |path: &Path| std::fs::symlink_metadata(path).map(|meta| meta.gid()).ok();
    let spool_group = group_of(spool_dir);
    let quoted = shell_quoted(printable(path).as_ref());
    let mut commands = format!("chmod g+r {quoted}");
    if group_of(path) != spool_group
        && let Some(gid) = spool_group
    {
        let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
        let group = group.map_or(gid.to_string(), |group| group.name);
        commands = format!("chgrp {group} {quoted} && {commands}");
    }
    format!("cannot be read, it belongs to {owner}; it stays until it can be read. To allow that: {commands}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::spool::FileIdentity;

    fn file(name: &str) -> SpoolEntry {
        let identity = FileIdentity { inode: 1, born: 1, modified: 1 };
        SpoolEntry { name: name.into(), identity, size: 10, changed: 1 }
    }

    #[test]
    fn the_snapshot_counts_waiting_and_unreadable_files() {
        let snapshot = Arc::new(Mutex::new(SpoolSnapshot::new(Path::new("/spool"))));
        let mut report = ScanReport::new(Path::new("/spool"), snapshot.clone());
        let files = vec![file("a"), file("b"), file("c")];
        let at = |seconds| Moment { wall: Timestamp(seconds), mono: Duration::from_secs(seconds as u64) };
        let scan = |report: &mut ScanReport, removing, now| {
            let listing = SpoolListing {
                files: files.clone(),
                irregular: vec![("pipe".into(), "no file")],
                waiting_files: 3,
                waiting_bytes: 30,
            };
            let present = files.iter().map(|entry| entry.name.as_os_str()).collect();
            report.scanned(&listing, &present, removing, now, Duration::from_secs(2))
        };
        assert_eq!(scan(&mut report, (1, 10), at(1)), Some(Duration::from_secs(2)));
        report.unreadable(&file("b"), 0, at(1).mono);
        report.forget_waiting(10);
        let figures = |snapshot: &Mutex<SpoolSnapshot>| {
            let spool = &snapshot.lock().unwrap().spool;
            (spool.waiting_files, spool.waiting_bytes, spool.unreadable_files, spool.scanned_at)
        };
        assert_eq!(figures(&snapshot), (1, 10, 1, Some(Timestamp(1))));
        report.readable(OsStr::new("b"));
        assert_eq!(scan(&mut report, (0, 0), at(3)), None);
        assert_eq!(figures(&snapshot), (3, 30, 0, Some(Timestamp(3))));
        assert!(!report.is_first_report(OsStr::new("pipe")), "the log has named it");
    }
}
