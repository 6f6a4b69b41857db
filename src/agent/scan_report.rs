//! What the intake sees and says: the folder, the room that is left, and what was odd.

use super::intake::Intake;
use crate::clock::Moment;
use crate::config;
use crate::disk;
use crate::reason::{Code, Reason};
use crate::spool::{Entry, Listing, shown};
use crate::status;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::sync::PoisonError;
use std::time::Duration;

/// A full outbox takes files again when it has shrunk to this share, so that it does not flap.
const REOPEN_BELOW: f64 = 0.95;
/// A byte of an event may need so many on the disk until it is stored: in the database and in its log, on pages that are
/// half empty, with the indexes.
const ROOM_OF_A_BYTE: u64 = 8;
/// With room for less than this at once nothing is stored: it would cost more than it brings.
const MIN_ROOM: usize = 64 << 10;
/// How often a file that cannot be read is spoken of again.
const REMIND_EVERY: Duration = Duration::from_secs(3600);
/// Names remembered as spoken of; of more oddities than this at once the rest is not spoken of.
pub(super) const MAX_REPORTED: usize = 10_000;

/// What the intake tells the rest of the agent.
#[derive(Debug, Clone, PartialEq)]
pub struct SpoolSnapshot {
    /// The spool's part of the status.
    pub spool: status::Spool,
    /// Whether files are taken.
    pub intake: status::Intake,
}

impl Intake {
    pub(super) fn forget_waiting(&mut self, entry: &Entry) {
        self.announced.remove(&entry.name);
        self.progressed = true;
        self.snapshot(|snapshot| {
            snapshot.spool.waiting_files = snapshot.spool.waiting_files.saturating_sub(1);
            snapshot.spool.waiting_bytes = snapshot.spool.waiting_bytes.saturating_sub(entry.size);
        });
    }

    /// Why nothing can be stored for now. If something can, so much of it at once as there is room for.
    pub(super) fn no_room(&mut self) -> Option<Reason> {
        let outbox = &self.config.outbox;
        let used = self.stats.bytes();
        let was_full = self.blocked.as_ref().is_some_and(|reason| reason.code == Code::MaxBytes);
        let limit = if was_full { outbox.max_bytes as f64 * REOPEN_BELOW } else { outbox.max_bytes as f64 };
        if used as f64 >= limit {
            let text = format!(
                "the outbox holds {} of the {} that outbox.max_bytes allows, delivered ids within outbox.keep_delivered \
                 among them",
                config::Bytes(used),
                config::Bytes(outbox.max_bytes)
            );
            return Some(Reason::new(Code::MaxBytes, text));
        }
        let disk::Disk { free, total } = disk::of(&outbox.path)?;
        let kept = outbox.min_free.bytes(total).saturating_add(self.stats.missing_reserve());
        self.room = usize::try_from(free.saturating_sub(kept) / ROOM_OF_A_BYTE).unwrap_or(usize::MAX);
        if self.blocked.as_ref().is_some_and(|reason| reason.code == Code::DiskFull) {
            // It did not fit after all.
            self.room = self.room.min(MIN_ROOM);
        }
        (self.room < MIN_ROOM).then(|| {
            let text = format!(
                "the outbox's file system has {} free, too little to take files and leave {} as outbox.min_free and the \
                 marks of what is delivered ask for",
                config::Bytes(free),
                config::Bytes(kept)
            );
            Reason::new(Code::MinFree, text)
        })
    }

    pub(super) fn block(&mut self, reason: Reason) {
        if self.blocked.as_ref().is_none_or(|before| before.code != reason.code) {
            tracing::warn!("no more files are ingested ({reason}); they wait in the spool");
        }
        self.blocked = Some(reason);
        self.publish_intake();
    }

    pub(super) fn unblock(&mut self) {
        if self.blocked.take().is_some() {
            tracing::info!("files are ingested again");
            self.publish_intake();
        }
    }

    pub(super) fn publish_intake(&self) {
        let state =
            if self.blocked.is_some() { status::IntakeState::Blocked } else { status::IntakeState::Open };
        self.snapshot(|snapshot| snapshot.intake = status::Intake { state, reason: self.blocked.clone() });
    }

    pub(super) fn snapshot(&self, change: impl FnOnce(&mut SpoolSnapshot)) {
        change(&mut self.parts.snapshot.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Says what the folder shows. Returns when to look again at the latest.
    pub(super) fn report_scan(&mut self, listing: &Listing) -> Duration {
        self.progressed = false;
        let present: HashSet<&OsStr> = listing.files.iter().map(|e| e.name.as_os_str()).collect();
        self.unreadable.retain(|name, _| present.contains(name.as_os_str()));
        self.incomplete.retain(|name, _| present.contains(name.as_os_str()));
        self.unsettled.retain(|name, _| present.contains(name.as_os_str()));
        self.announced.retain(|name| present.contains(name.as_os_str()));
        let irregular: HashSet<&OsStr> = listing.left.iter().map(|(name, _)| name.as_os_str()).collect();
        self.reported
            .retain(|name| irregular.contains(name.as_os_str()) || present.contains(name.as_os_str()));
        let Moment { wall: now, mono } = self.parts.clock.moment();
        let (settle, mut wait) = (self.config.spool.settle, self.config.spool.scan_interval);
        self.irregular.retain(|name, _| irregular.contains(name.as_os_str()));
        for (name, what) in &listing.left {
            // A file may have two names for a moment: a producer links it to where it goes, and unlinks it where it was.
            let since = *self.irregular.entry(name.clone()).or_insert(mono);
            let rest = settle.saturating_sub(mono.saturating_sub(since));
            if rest.is_zero() {
                let what = format_args!("left alone: it is {what}, and only files with one name are read");
                self.report(name, what);
            } else {
                wait = wait.min(rest);
            }
        }
        let unreadable = self.unreadable.len() as u64;
        let removing = listing.files.iter().filter(|entry| self.removing.contains_key(&entry.name));
        let (files, bytes) = removing.fold((0, 0), |(files, bytes), entry| (files + 1, bytes + entry.size));
        self.snapshot(|snapshot| {
            snapshot.spool.waiting_files = listing.waiting.0.saturating_sub(files);
            snapshot.spool.waiting_bytes = listing.waiting.1.saturating_sub(bytes);
            snapshot.spool.unreadable_files = unreadable;
            snapshot.spool.scanned_at = Some(now);
        });
        wait
    }

    /// Speaks of an oddity of the folder once.
    pub(super) fn report(&mut self, name: &OsStr, what: std::fmt::Arguments<'_>) {
        if self.reported.len() < MAX_REPORTED && self.reported.insert(name.to_owned()) {
            tracing::warn!("{}: {what}", shown(self.parts.spool.dir().join(name)));
        }
    }

    /// A file that may not be read stays, is counted, and is spoken of now and then.
    pub(super) fn leave_unreadable(&mut self, entry: &Entry, hint: &str) {
        let now = self.parts.clock.mono();
        let said = self.unreadable.get(&entry.name);
        if said.is_none_or(|said| now.saturating_sub(*said) >= REMIND_EVERY) {
            tracing::warn!("{}: {hint}", shown(self.parts.spool.dir().join(&entry.name)));
            self.unreadable.insert(entry.name.clone(), now);
        }
        let unreadable = self.unreadable.len() as u64;
        self.snapshot(|snapshot| snapshot.spool.unreadable_files = unreadable);
    }

    /// It could be opened.
    pub(super) fn is_readable(&mut self, name: &OsStr) {
        if self.unreadable.remove(name).is_some() {
            let unreadable = self.unreadable.len() as u64;
            self.snapshot(|snapshot| snapshot.spool.unreadable_files = unreadable);
        }
    }

    pub(super) fn count_rejected(&self) {
        let rejected = self.rejected_folder.count();
        self.snapshot(|snapshot| snapshot.spool.rejected_files = rejected);
    }
}
