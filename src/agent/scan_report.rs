//! The spool's part of the status, and the lines in the log about files that are left where they are.

use super::rejections::Rejections;
use crate::clock::{Moment, Mono};
use crate::reason::Reason;
use crate::spool::{FileKey, SpoolEntry, SpoolListing, let_agent_read, printable, user_name};
use crate::status;
use crate::telemetry::LogLimiter;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The interval at which the log names a file again that cannot be read.
const REMIND_EVERY: Duration = Duration::from_secs(3600);
/// Files whose line in the log is remembered. If there are more at once, the rest is not logged.
const MAX_REPORTED: usize = 10_000;

/// Owners in the status: those with the most waiting files.
const MAX_OWNERS: usize = 20;

/// Kinds of lines in the log of which there may be one for each file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Oddity {
    Irregular,
    UnknownName,
    Unreadable,
    Failed,
}

impl Oddity {
    fn text(self) -> &'static str {
        match self {
            Oddity::Irregular => "files that are left alone because they are not regular files with one name",
            Oddity::UnknownName => "files that are left alone because of their names",
            Oddity::Unreadable => "files that cannot be read",
            Oddity::Failed => "files with which something failed",
        }
    }
}

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
    /// Files that the agent may not read, with their owners, and when the log last named each.
    unreadable: HashMap<FileKey, (u32, Mono)>,
    /// Names in the folder that are not read, and since when.
    left_alone: HashMap<OsString, Mono>,
    /// Files that the log has named.
    reported: HashSet<OsString>,
    /// Why no files of an owner are ingested for now.
    owners_waiting: HashMap<u32, Reason>,
    limiter: LogLimiter<Oddity>,
}

impl ScanReport {
    pub fn new(dir: &Path, snapshot: Arc<Mutex<SpoolSnapshot>>) -> ScanReport {
        ScanReport {
            dir: dir.to_owned(),
            snapshot,
            unreadable: HashMap::new(),
            left_alone: HashMap::new(),
            reported: HashSet::new(),
            owners_waiting: HashMap::new(),
            limiter: LogLimiter::new(),
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
        let irregular = listing.irregular.iter().map(|(name, _)| name.as_os_str());
        let left_alone: HashSet<&OsStr> =
            irregular.chain(listing.unknown.iter().map(|(name, _)| name.as_os_str())).collect();
        listing.retain(&mut self.unreadable);
        self.left_alone.retain(|name, _| left_alone.contains(name.as_os_str()));
        self.reported
            .retain(|name| left_alone.contains(name.as_os_str()) || present.contains(name.as_os_str()));
        let mut wait: Option<Duration> = None;
        let mut is_lasting = |name: &OsStr, left_alone: &mut HashMap<OsString, Mono>| {
            // A producer that links a file into the spool and then unlinks its first name leaves it with two for a moment,
            // and one that renames late leaves it with another name.
            let since = *left_alone.entry(name.to_owned()).or_insert(now.mono);
            let rest = settle.saturating_sub(now.mono.saturating_sub(since));
            if !rest.is_zero() {
                wait = Some(wait.map_or(rest, |wait| wait.min(rest)));
            }
            rest.is_zero()
        };
        for (name, what) in &listing.irregular {
            if is_lasting(name, &mut self.left_alone) {
                let what = format_args!(
                    "left alone: it is {what}; only regular files without further hard links are read"
                );
                self.log(Oddity::Irregular, name, what, now.mono);
            }
        }
        for (name, owner) in &listing.unknown {
            if is_lasting(name, &mut self.left_alone) {
                let what = format_args!(
                    "left alone: its name says no format; when it is complete, its owner {} renames it so that it ends in \
                     .json, .jsonl or .ndjson, or in one of these and .gz",
                    user_name(*owner)
                );
                self.log(Oddity::UnknownName, name, what, now.mono);
            }
        }
        while let Some((kind, count)) = self.limiter.overdue(now.mono) {
            tracing::warn!("{}: {count} more {}", printable(&self.dir), kind.text());
        }
        let owners = self.owner_statuses(listing);
        let waiting = |of: fn(&crate::spool::OwnerFiles) -> u64| listing.owners.values().map(of).sum::<u64>();
        let (files, bytes) = (waiting(|owner| owner.waiting_files), waiting(|owner| owner.waiting_bytes));
        let unreadable = self.unreadable.len() as u64;
        self.update(|snapshot| {
            snapshot.spool.waiting_files = Some(files.saturating_sub(removing.0));
            snapshot.spool.waiting_bytes = Some(bytes.saturating_sub(removing.1));
            snapshot.spool.unreadable_files = Some(unreadable);
            snapshot.spool.unknown_files = Some(listing.unknown_files);
            snapshot.spool.scanned_at = Some(now.wall);
            snapshot.spool.owners = owners;
        });
        wait
    }

    /// The owners with the most waiting files.
    fn owner_statuses(&mut self, listing: &SpoolListing) -> Vec<status::OwnerStatus> {
        let owners = &listing.owners;
        self.owners_waiting.retain(|owner, _| owners.contains_key(owner));
        let mut unreadable: HashMap<u32, u64> = HashMap::new();
        self.unreadable.values().for_each(|(owner, _)| *unreadable.entry(*owner).or_default() += 1);
        let mut statuses: Vec<_> = listing
            .owners
            .iter()
            .map(|(uid, owner)| status::OwnerStatus {
                uid: *uid,
                waiting_files: owner.waiting_files,
                waiting_bytes: owner.waiting_bytes,
                unreadable_files: unreadable.get(uid).copied().unwrap_or_default(),
                reason: self.owners_waiting.get(uid).cloned(),
            })
            .collect();
        statuses.sort_by_key(|owner| std::cmp::Reverse(owner.waiting_files));
        statuses.truncate(MAX_OWNERS);
        statuses
    }

    /// Notes why no files of an owner are ingested for now.
    pub fn owner_waits(&mut self, owner: u32, reason: Reason) {
        if !self.owners_waiting.contains_key(&owner) {
            tracing::warn!("files of {} wait ({reason})", user_name(owner));
        }
        self.update_owner(owner, |status| status.reason = Some(reason.clone()));
        self.owners_waiting.insert(owner, reason);
    }

    /// Notes that the owner's files are ingested.
    pub fn owner_goes_on(&mut self, owner: u32) {
        if self.owners_waiting.remove(&owner).is_some() {
            tracing::info!("files of {} are ingested again", user_name(owner));
            self.update_owner(owner, |status| status.reason = None);
        }
    }

    fn update_owner(&self, owner: u32, change: impl FnOnce(&mut status::OwnerStatus)) {
        self.update(|snapshot| {
            if let Some(status) = snapshot.spool.owners.iter_mut().find(|status| status.uid == owner) {
                change(status);
            }
        });
    }

    /// Counts a file as waiting no more.
    pub fn forget_waiting(&self, entry: &SpoolEntry) {
        let less = |files: &mut u64, bytes: &mut u64| {
            *files = files.saturating_sub(1);
            *bytes = bytes.saturating_sub(entry.size);
        };
        self.update(|SpoolSnapshot { spool, .. }| {
            if let (Some(files), Some(bytes)) = (&mut spool.waiting_files, &mut spool.waiting_bytes) {
                less(files, bytes);
            }
            if let Some(owner) = spool.owners.iter_mut().find(|owner| owner.uid == entry.owner) {
                less(&mut owner.waiting_files, &mut owner.waiting_bytes);
            }
        });
    }

    /// Logs that something failed with a file, unless the log has named the file before.
    pub fn report(&mut self, name: &OsStr, what: std::fmt::Arguments<'_>, now: Mono) {
        self.log(Oddity::Failed, name, what, now);
    }

    fn log(&mut self, kind: Oddity, name: &OsStr, what: std::fmt::Arguments<'_>, now: Mono) {
        if self.reported.len() < MAX_REPORTED
            && self.reported.insert(name.to_owned())
            && let Some(left_out) = self.limiter.line(kind, now)
        {
            tracing::warn!("{}: {what}{left_out}", printable(self.dir.join(name)));
        }
    }

    /// Counts a file that may not be read, and logs what its owner does about it: now and once an hour.
    pub fn unreadable(&mut self, entry: &SpoolEntry, now: Mono) {
        let logged_at = self.unreadable.get(&entry.identity.key()).map(|(_, logged_at)| *logged_at);
        if logged_at.is_none_or(|at| now.saturating_sub(at) >= REMIND_EVERY) {
            if let Some(left_out) = self.limiter.line(Oddity::Unreadable, now) {
                let path = self.dir.join(&entry.name);
                let what = how_to_make_readable(&path, &self.dir, entry.owner);
                tracing::warn!("{}: {what}{left_out}", printable(&path));
            }
            self.unreadable.insert(entry.identity.key(), (entry.owner, now));
        }
        self.update_unreadable();
    }

    pub fn readable(&mut self, entry: &SpoolEntry) {
        if self.unreadable.remove(&entry.identity.key()).is_some() {
            self.update_unreadable();
        }
    }

    fn update_unreadable(&self) {
        let unreadable = self.unreadable.len() as u64;
        self.update(|snapshot| snapshot.spool.unreadable_files = Some(unreadable));
    }

    pub fn rejected(&self, rejections: &Rejections) {
        self.update(|snapshot| rejections.show_in(&mut snapshot.spool));
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

/// Tells whose file it is, and what its owner runs so that the agent may read it.
fn how_to_make_readable(path: &Path, spool_dir: &Path, owner: u32) -> String {
    let (owner, command) = (user_name(owner), let_agent_read(path, spool_dir));
    format!(
        "cannot be read, it belongs to {owner}; it stays until it can be read. Ask {owner} to run: {command}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::spool::FileIdentity;

    fn file(name: &str) -> SpoolEntry {
        let identity = FileIdentity { inode: name.as_bytes()[0].into(), born: 1, modified: 1 };
        SpoolEntry { name: name.into(), identity, size: 10, owner: 0, changed: 1 }
    }

    #[test]
    fn the_snapshot_counts_waiting_and_unreadable_files() {
        let snapshot = Arc::new(Mutex::new(SpoolSnapshot::new(Path::new("/spool"))));
        let mut report = ScanReport::new(Path::new("/spool"), snapshot.clone());
        let files = [file("a"), file("b"), file("c")];
        let at = |seconds| Moment { wall: Timestamp(seconds), mono: Duration::from_secs(seconds as u64) };
        let scan = |report: &mut ScanReport, removing, now| {
            let owner =
                crate::spool::OwnerFiles { files: files.to_vec(), waiting_files: 3, waiting_bytes: 30 };
            let listing = SpoolListing {
                owners: [(0, owner)].into(),
                irregular: vec![("pipe".into(), "no file")],
                unknown: vec![("a.part".into(), 0)],
                unknown_files: 1,
            };
            let present = files.iter().map(|entry| entry.name.as_os_str()).collect();
            report.scanned(&listing, &present, removing, now, Duration::from_secs(2))
        };
        assert_eq!(scan(&mut report, (1, 10), at(1)), Some(Duration::from_secs(2)));
        report.unreadable(&file("b"), at(1).mono);
        report.forget_waiting(&file("a"));
        let figures = |snapshot: &Mutex<SpoolSnapshot>| {
            let spool = &snapshot.lock().unwrap().spool;
            let owner = &spool.owners[0];
            (
                [spool.waiting_files, spool.waiting_bytes, spool.unreadable_files, spool.unknown_files]
                    .map(Option::unwrap),
                [owner.waiting_files, owner.unreadable_files],
                spool.scanned_at,
            )
        };
        assert_eq!(figures(&snapshot), ([1, 10, 1, 1], [2, 0], Some(Timestamp(1))));
        assert_eq!(scan(&mut report, (0, 0), at(3)), None);
        assert_eq!(figures(&snapshot), ([3, 30, 1, 1], [3, 1], Some(Timestamp(3))));
        report.readable(&file("b"));
        assert_eq!(figures(&snapshot).0, [3, 30, 0, 1]);
        for name in ["pipe", "a.part"] {
            assert!(report.reported.contains(OsStr::new(name)), "the log has not named {name}");
        }
    }
}
