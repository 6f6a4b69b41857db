//! Files and parts of files that cannot be ingested: moved or copied to `rejected/`, or left in the spool for as long as
//! they may still grow whole.

use super::append_batch::{AppendBatch, SourceFile};
use crate::clock::{Moment, Mono, Timestamp};
use crate::config::{Bytes, SpoolConfig};
use crate::event::Flaw;
use crate::outbox::{FirstEvent, ReusedId};
use crate::reason::{Code, Reason};
use crate::spool::{
    ContentStamp, FailedRejection, FileKey, Format, PartKind, RejectedFolder, RejectedPart, RejectedUsage,
    RejectionWriter, Spool, SpoolEntry, SpoolError, SpoolListing, printable, user_name,
};
use crate::status::{RejectionCount, SpoolStatus};
use crate::telemetry::LogLimiter;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

/// The interval at which `rejected/` is searched for files that have expired or have grown whole.
const TIDY_INTERVAL: Duration = Duration::from_secs(30);
/// A search that takes long is repeated less often, so that it takes at most this part of the time.
const TIDY_SHARE: u32 = 100;

/// Rejected files of one owner: more are looked at by nobody, and each takes an inode or two.
const MAX_FILES_OF_OWNER: u64 = 10_000;
/// The share of `spool.max_rejected` that one owner may have, as parts of it: the rest is for the others.
const OWNER_SHARE: (u64, u64) = (3, 4);

/// Lines in the log of which there may be one for each file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum RejectionKind {
    File,
    Part,
    ReusedId,
}

/// The folder `rejected/`, and the files that may still get there.
#[derive(Debug)]
pub struct Rejections {
    folder: RejectedFolder,
    writer: RejectionWriter,
    usage: Usage,
    /// Rejections since the start.
    counted: BTreeMap<Code, u64>,
    /// The newest rejection whose file is in the folder.
    newest: Option<Timestamp>,
    limiter: LogLimiter<RejectionKind>,
    /// Files that ended too early: as of the reading, and since when they have been so.
    incomplete: HashMap<FileKey, (ContentStamp, Mono)>,
    tidy_at: Mono,
}

/// What the rejected files of each owner take, and what they may take.
#[derive(Debug, Default)]
struct Usage {
    of_owner: HashMap<u32, RejectedUsage>,
    /// See [`crate::config::SpoolConfig::max_rejected`].
    max_bytes: u64,
}

impl Usage {
    fn files(&self) -> u64 {
        self.of_owner.values().map(|usage| usage.files).sum()
    }

    fn add(&mut self, owner: u32, added: RejectedUsage) {
        let usage = self.of_owner.entry(owner).or_default();
        (usage.files, usage.bytes) = (usage.files + added.files, usage.bytes + added.bytes);
    }

    /// The limit that a file of the owner and of so many bytes would go beyond.
    fn limit(&self, owner: u32, bytes: u64) -> Option<String> {
        let own = self.of_owner.get(&owner).copied().unwrap_or_default();
        let all: u64 = self.of_owner.values().map(|usage| usage.bytes).sum();
        let share = self.max_bytes / OWNER_SHARE.1 * OWNER_SHARE.0;
        let limit = Bytes(self.max_bytes);
        if own.files >= MAX_FILES_OF_OWNER {
            return Some(format!("10,000 files of {}, and may have no more", user_name(owner)));
        }
        if own.bytes + bytes > share {
            let user = user_name(owner);
            return Some(format!("no room for more files of {user}, who may have {}", Bytes(share)));
        }
        (all + bytes > self.max_bytes)
            .then(|| format!("no room for more files: spool.max_rejected is {limit}"))
    }

    /// Whether more than the limits is there of the owner.
    fn is_over(&self, owner: u32) -> bool {
        let own = self.of_owner.get(&owner).copied().unwrap_or_default();
        own.files > MAX_FILES_OF_OWNER || own.bytes > self.max_bytes / OWNER_SHARE.1 * OWNER_SHARE.0
    }
}

impl Rejections {
    pub fn new(folder: RejectedFolder) -> Rejections {
        Rejections {
            writer: RejectionWriter::new(folder.clone()),
            folder,
            usage: Usage { max_bytes: u64::MAX, ..Usage::default() },
            counted: BTreeMap::new(),
            newest: None,
            limiter: LogLimiter::new(),
            incomplete: HashMap::new(),
            tidy_at: Mono::ZERO,
        }
    }

    /// Puts what was rejected into the status.
    pub fn show_in(&self, status: &mut SpoolStatus) {
        status.rejected_files = Some(self.usage.files());
        status.last_rejected = self.newest;
        let counted = self.counted.iter();
        status.rejections = counted
            .map(|(code, rejections)| RejectionCount {
                code: code.as_str().to_owned(),
                rejections: *rejections,
            })
            .collect();
    }

    /// Why no files of the owner are read: it has more than its share of `rejected/`, because events whose ids were used
    /// before are found only after they have been read, and have to go somewhere.
    pub fn check_owner(&self, owner: u32) -> Option<Reason> {
        let what = || self.usage.limit(owner, 0).unwrap_or_default();
        self.usage.is_over(owner).then(|| Reason::new(Code::OwnerShare, self.full(what()).to_string()))
    }

    fn full(&self, what: String) -> SpoolError {
        SpoolError::RejectedFull { path: self.folder.dir().to_owned(), what }
    }

    fn check_room(&self, owner: u32, bytes: u64) -> Result<(), SpoolError> {
        self.usage.limit(owner, bytes).map_or(Ok(()), |what| Err(self.full(what)))
    }

    /// Notes that the file ends too early. Returns how long it may still stay as it is; `None`: it is to be rejected.
    pub fn wait_for_rest(
        &mut self,
        entry: &SpoolEntry,
        now: Mono,
        incomplete_after: Duration,
    ) -> Option<Duration> {
        let key = entry.identity.key();
        let known = self.incomplete.get(&key).filter(|(before, _)| *before == entry.stamp());
        let since = known.map_or(now, |(_, since)| *since);
        let rest = incomplete_after.saturating_sub(now.saturating_sub(since));
        if rest.is_zero() {
            self.incomplete.remove(&key);
            return None;
        }
        self.incomplete.insert(key, (entry.stamp(), since));
        Some(rest)
    }

    pub fn is_complete(&mut self, entry: &SpoolEntry) {
        self.incomplete.remove(&entry.identity.key());
    }

    /// Forgets files that are not in the folder any more.
    pub fn retain(&mut self, listing: &SpoolListing) {
        listing.retain(&mut self.incomplete);
    }

    /// Rejects a whole file. Returns whether it has left the spool: a file that was replaced or written to since it was
    /// read stays, and is read again. It is durable after [`Rejections::sync`].
    ///
    /// # Errors
    /// The system's, or `rejected/` is full; then the file is still in the spool.
    pub fn reject_file(
        &mut self,
        spool: &Spool,
        entry: &SpoolEntry,
        flaw: &Flaw,
        now: Moment,
    ) -> Result<bool, SpoolError> {
        self.check_room(entry.owner, spool.size_on_disk(entry))?;
        let rejected = self.writer.reject_file(spool, entry, flaw, now.wall)?;
        if let Some(usage) = rejected {
            self.note(RejectionKind::File, entry, flaw, usage, now);
        }
        Ok(rejected.is_some())
    }

    /// Rejects a part of a file. It is durable after [`Rejections::sync`].
    ///
    /// # Errors
    /// The system's, or `rejected/` is full.
    pub fn reject_part(
        &mut self,
        source: &SourceFile,
        part: &RejectedPart,
        now: Moment,
    ) -> Result<(), SpoolError> {
        self.check_room(source.entry.owner, part.content.len() as u64)?;
        self.write_part(source, PartKind::Flawed, part, now)
    }

    fn write_part(
        &mut self,
        source: &SourceFile,
        kind: PartKind,
        part: &RejectedPart,
        now: Moment,
    ) -> Result<(), SpoolError> {
        let SourceFile { entry, progress, .. } = source;
        let is_resumed = progress.position > 0 || progress.place > 0;
        let usage = self.writer.reject_part(entry, &progress.identity, is_resumed, kind, part, now.wall)?;
        let kind = match kind {
            PartKind::Flawed => RejectionKind::Part,
            PartKind::ReusedId => RejectionKind::ReusedId,
        };
        self.note(kind, entry, &part.flaw, usage, now);
        Ok(())
    }

    /// Counts a rejection, and logs one that takes a file of its own.
    fn note(
        &mut self,
        kind: RejectionKind,
        entry: &SpoolEntry,
        flaw: &Flaw,
        usage: RejectedUsage,
        now: Moment,
    ) {
        self.usage.add(entry.owner, usage);
        *self.counted.entry(flaw.code).or_default() += 1;
        self.newest = self.newest.max(Some(now.wall));
        if usage.files > 0 {
            self.log(kind, entry, flaw, now.mono);
        }
    }

    fn log(&mut self, kind: RejectionKind, entry: &SpoolEntry, flaw: &Flaw, now: Mono) {
        let Some(left_out) = self.limiter.line(kind, now) else { return };
        let what = match kind {
            RejectionKind::File => "",
            RejectionKind::Part | RejectionKind::ReusedId => "a part of ",
        };
        let file = printable(&entry.name);
        tracing::warn!(
            notice = "file_rejected",
            code = %flaw.code,
            %file,
            owner = entry.owner,
            "{what}{file} rejected ({}): {flaw}{left_out}",
            flaw.code
        );
    }

    /// Rejects events whose ids were used before by other events, durably, and takes them out of the batch. Returns the
    /// files that left the spool with their only event, and those of which an event could not be rejected: nothing more of
    /// them may be stored.
    ///
    /// # Errors
    /// The system's, for the folder.
    pub fn reject_reused(
        &mut self,
        batch: &mut AppendBatch,
        reused: &[ReusedId],
        spool: &Spool,
        now: Moment,
    ) -> Result<(Vec<SpoolEntry>, Vec<FailedRejection>), SpoolError> {
        let mut whole_files = HashSet::new();
        let mut failed = Vec::new();
        for ReusedId { index, first } in reused {
            let (event, source_index, source) = batch.event(*index);
            let is_line = matches!(source.entry.format(), Some((Format::Lines, _)));
            let when = match first {
                Some(FirstEvent { at, file, owner }) => format!(
                    "{at} in {}{}",
                    printable(file),
                    owner.map(|uid| format!(", a file of {}", user_name(uid))).unwrap_or_default()
                ),
                None => "at a time that is no longer in the history".to_owned(),
            };
            let flaw = Flaw {
                code: Code::MessageIdReused,
                text: format!(
                    "the messageId came before with other content, {when}: give each event an id of its own"
                ),
                line: if is_line { event.place as usize } else { 1 },
                column: 1,
                incomplete: false,
            };
            let progress = &source.progress;
            let is_whole = event.place == 0 && progress.finished && progress.place <= 1;
            let source = source.clone();
            let rejected = if is_whole {
                // A file that was replaced or written to since it was read is read by the next scan.
                self.writer.reject_file(spool, &source.entry, &flaw, now.wall).map(|usage| {
                    if let Some(usage) = usage {
                        self.note(RejectionKind::File, &source.entry, &flaw, usage, now);
                    }
                    whole_files.insert(source_index);
                })
            } else {
                let (place, content) = (event.place.max(1), event.body.clone().into_bytes());
                let part = RejectedPart { place, content, flaw };
                self.write_part(&source, PartKind::ReusedId, &part, now)
            };
            if let Err(error) = rejected {
                failed.push(FailedRejection { key: source.progress.identity.key(), error });
            }
        }
        failed.extend(self.sync()?.into_iter().flatten());
        let events = reused.iter().map(|event| event.index).collect();
        Ok((batch.take_out(&events, &whole_files), failed))
    }

    /// Makes all rejections durable. `None`: there were none. Returns the files of which it could not: nothing that was
    /// read of them since the last call may be stored.
    ///
    /// # Errors
    /// The system's, for the folder.
    pub fn sync(&mut self) -> Result<Option<Vec<FailedRejection>>, SpoolError> {
        self.writer.sync()
    }

    /// If it is time, puts files back into the spool that have grown whole, deletes those whose time is up, and counts the
    /// others. `retention_time` is the time by which events expire. `sign_of_life` is called for each file. Returns whether it
    /// was time. The next time comes after `spool.scan_interval` at most, unless the search takes long.
    pub fn tidy(
        &mut self,
        now: Moment,
        retention_time: Timestamp,
        spool: &SpoolConfig,
        keep_failed: Duration,
        mut sign_of_life: impl FnMut(),
    ) -> bool {
        self.usage.max_bytes = spool.max_rejected;
        while let Some((_, count)) = self.limiter.overdue(now.mono) {
            tracing::warn!("{count} more rejections; koala-agent list --rejected shows them");
        }
        if now.mono < self.tidy_at {
            return false;
        }
        // A clock that was set back dates rejections at once, and the outbox notices it up to a second later.
        let expired_before = retention_time.min(now.wall).minus(keep_failed);
        let began = Instant::now();
        self.usage.of_owner.clear();
        self.newest = None;
        for file in self.folder.files().into_iter().flatten() {
            sign_of_life();
            let why = file.why.as_ref();
            // A part has no more of its file's times.
            let is_grown =
                why.is_some_and(|why| why.incomplete && why.place == 0 && file.modified != why.modified);
            if is_grown && self.folder.put_back(&file.name).is_ok() {
                tracing::info!(
                    "{} was written to after it had been rejected: it is back in the spool",
                    printable(&file.name)
                );
                continue;
            }
            if why.is_some_and(|why| why.when < expired_before) && self.folder.remove(&file.name).is_ok() {
                continue;
            }
            let owner = why.and_then(|why| why.owner).unwrap_or(file.owner);
            self.usage.add(owner, RejectedUsage::of_file(file.on_disk));
            self.newest = self.newest.max(why.map(|why| why.when));
        }
        let interval = TIDY_INTERVAL.min(spool.scan_interval);
        self.tidy_at = now.mono + interval.max(began.elapsed() * TIDY_SHARE);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::FileIdentity;

    #[test]
    fn an_incomplete_file_waits_for_as_long_as_it_stays_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let mut rejections = Rejections::new(RejectedFolder::of_spool(folder.path()));
        let file = |size| {
            let identity = FileIdentity { inode: 1, born: 1, modified: 1 };
            SpoolEntry { name: "a.json".into(), identity, size, owner: 0, changed: 1 }
        };
        let second = Duration::from_secs;
        for (at, size, want) in [
            (0, 1, Some(60)),
            (20, 1, Some(40)),
            // The file has grown, so its time begins again.
            (40, 2, Some(60)),
            (99, 2, Some(1)),
            (100, 2, None),
        ] {
            let wait = rejections.wait_for_rest(&file(size), second(at), second(60));
            assert_eq!(wait, want.map(second), "at {at} s");
        }
    }

    #[test]
    fn no_step_of_the_clock_makes_a_rejected_file_older() {
        const DAY: Duration = Duration::from_secs(86_400);
        let began = Timestamp(1_800_000_000_000);
        let after = |days: i64| Timestamp(began.0 + days * DAY.as_millis() as i64);
        for (rejected, wall, retention_time, is_kept) in [
            (0, 89, 89, true),
            (0, 91, 91, false),
            // The outbox has not noticed the step yet, then it has.
            (-3_650, -3_650, 1, true),
            (-3_650, -3_650, -3_650, true),
            (1, 400, 1, true),
        ] {
            let spool_dir = tempfile::tempdir().unwrap();
            std::fs::write(spool_dir.path().join("bad.json"), "{").unwrap();
            let spool = Spool::open(spool_dir.path()).unwrap();
            let entry = spool.entry("bad.json".as_ref()).unwrap();
            let mut rejections = Rejections::new(spool.rejected_folder());
            let at = |days| Moment { wall: after(days), mono: Mono::ZERO };
            let flaw = Flaw::at("", 0, Code::NotJson, "bad");
            assert!(rejections.reject_file(&spool, &entry, &flaw, at(rejected)).unwrap());
            assert!(rejections.tidy(
                at(wall),
                after(retention_time),
                &SpoolConfig::default(),
                90 * DAY,
                || {}
            ));
            let mut status = SpoolStatus::default();
            rejections.show_in(&mut status);
            let newest = is_kept.then_some(after(rejected));
            assert_eq!(
                (status.rejected_files, status.last_rejected),
                (Some(u64::from(is_kept)), newest),
                "rejected on day {rejected}, looked at on day {wall}"
            );
        }
    }

    #[test]
    fn an_owner_has_a_share_of_the_folder_and_ten_thousand_files() {
        let mib = 1 << 20;
        for (files, bytes, more, others, want) in [
            (0, 0, 0, 0, None),
            (9_999, 10 * mib, mib, 0, None),
            (10_000, 0, 0, 0, Some("files of")),
            (1, 74 * mib, mib, 0, None),
            (1, 75 * mib, 1, 0, Some("may have")),
            (1, 20 * mib, mib, 79 * mib, None),
            (1, 20 * mib, mib, 80 * mib, Some("spool.max_rejected is 100 MiB")),
        ] {
            let mut usage = Usage { max_bytes: 100 * mib, ..Usage::default() };
            usage.add(1, RejectedUsage { files, bytes });
            usage.add(2, RejectedUsage { files: 1, bytes: others });
            let limit = usage.limit(1, more);
            assert_eq!(limit.is_some(), want.is_some(), "{limit:?}");
            assert!(want.is_none_or(|want| limit.as_ref().unwrap().contains(want)), "{limit:?}");
            assert!(!usage.is_over(1));
            usage.add(1, RejectedUsage { files: 10_001, bytes: 0 });
            assert!(usage.is_over(1));
        }
    }
}
