//! Files and parts of files that cannot be ingested: moved or copied to `rejected/`, or left in the spool for as long as
//! they may still grow whole.

use super::append_batch::{AppendBatch, SourceFile};
use crate::clock::{Mono, Timestamp};
use crate::event::Flaw;
use crate::outbox::ReusedId;
use crate::reason::Code;
use crate::spool::{Format, RejectedFolder, Spool, SpoolEntry, SpoolError, printable};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

/// The interval at which `rejected/` is searched for files that have expired or have grown whole.
const TIDY_INTERVAL: Duration = Duration::from_secs(30);
/// A search that takes long is repeated less often, so that it takes at most this part of the time.
const TIDY_SHARE: u32 = 100;

/// A line or an element that cannot be ingested.
#[derive(Debug, PartialEq, Eq)]
pub struct RejectedPart {
    /// The number of the line or element in the file, from 1.
    pub place: u64,
    /// The bytes of the line or element.
    pub content: Vec<u8>,
    /// Why it cannot be ingested.
    pub flaw: Flaw,
}

/// The folder `rejected/`, and the files that may still get there.
#[derive(Debug)]
pub struct Rejections {
    folder: RejectedFolder,
    /// Whether anything in the folder may not be durable yet.
    needs_sync: bool,
    /// Files that ended too early: as of the reading, and since when they have been so.
    incomplete: HashMap<OsString, (SpoolEntry, Mono)>,
    tidy_at: Mono,
}

impl Rejections {
    pub fn new(folder: RejectedFolder) -> Rejections {
        Rejections { folder, needs_sync: false, incomplete: HashMap::new(), tidy_at: Mono::ZERO }
    }

    pub fn count(&self) -> u64 {
        self.folder.count_files()
    }

    /// The time that is left to a file that ended too early and has not changed since; `None`: it did not end too early, or
    /// it has changed.
    pub fn incomplete_rest(
        &self,
        entry: &SpoolEntry,
        now: Mono,
        incomplete_after: Duration,
    ) -> Option<Duration> {
        let (_, since) = self.incomplete.get(&entry.name).filter(|(before, _)| before == entry)?;
        Some(incomplete_after.saturating_sub(now.saturating_sub(*since)))
    }

    /// Notes that the file ends too early. Returns how long it may still stay as it is; `None`: it is to be rejected.
    pub fn wait_for_rest(
        &mut self,
        entry: &SpoolEntry,
        now: Mono,
        incomplete_after: Duration,
    ) -> Option<Duration> {
        let known = self.incomplete.get(&entry.name).filter(|(before, _)| before == entry);
        let since = known.map_or(now, |(_, since)| *since);
        let rest = incomplete_after.saturating_sub(now.saturating_sub(since));
        if rest.is_zero() {
            self.incomplete.remove(&entry.name);
            return None;
        }
        self.incomplete.insert(entry.name.clone(), (entry.clone(), since));
        Some(rest)
    }

    pub fn is_complete(&mut self, name: &OsStr) {
        self.incomplete.remove(name);
    }

    /// Forgets files that are not in the folder any more.
    pub fn retain(&mut self, present: &HashSet<&OsStr>) {
        self.incomplete.retain(|name, _| present.contains(name.as_os_str()));
    }

    /// Rejects a whole file. Returns whether it has left the spool: a file that was replaced or written to since it was
    /// read stays, and is read again. It is durable after [`Rejections::sync`].
    ///
    /// # Errors
    /// The system's; then the file is still in the spool.
    pub fn reject_file(
        &mut self,
        spool: &Spool,
        entry: &SpoolEntry,
        flaw: &Flaw,
        now: Timestamp,
    ) -> Result<bool, SpoolError> {
        let has_left = self.folder.reject_file(spool, entry, flaw, now)?.is_some();
        if has_left {
            self.needs_sync = true;
            tracing::warn!("{} rejected ({}): {flaw}", printable(&entry.name), flaw.code);
        }
        Ok(has_left)
    }

    /// Rejects a part of a file. It is durable after [`Rejections::sync`].
    ///
    /// # Errors
    /// The system's.
    pub fn reject_part(
        &mut self,
        source: &SourceFile,
        part: &RejectedPart,
        now: Timestamp,
    ) -> Result<(), SpoolError> {
        let RejectedPart { place, content, flaw } = part;
        let first_seen = &source.progress.identity;
        self.folder.reject_part(&source.entry, first_seen, *place, content, flaw, now)?;
        if !self.needs_sync {
            // One line for all parts of a batch.
            tracing::warn!("parts of {} rejected ({}): {flaw}", printable(&source.entry.name), flaw.code);
        }
        self.needs_sync = true;
        Ok(())
    }

    /// Rejects events whose ids were used before by other events, durably, and takes them out of the batch. Returns the
    /// files that left the spool with their only event.
    ///
    /// # Errors
    /// The system's.
    pub fn reject_reused(
        &self,
        batch: &mut AppendBatch,
        reused: &[ReusedId],
        spool: &Spool,
        now: Timestamp,
    ) -> Result<Vec<SpoolEntry>, SpoolError> {
        let mut whole_files = HashSet::new();
        for ReusedId { index, first_at, first_file } in reused {
            let (event, source_index, source) = batch.event(*index);
            let is_line = matches!(source.entry.format(), Some((Format::Lines, _)));
            let flaw = Flaw {
                code: Code::MessageIdReused,
                text: format!(
                    "the messageId came before with other content, {first_at} in {}: \
                     give each event an id of its own",
                    printable(first_file)
                ),
                line: if is_line { event.place as usize } else { 1 },
                column: 1,
                incomplete: false,
            };
            if event.place == 0 {
                // A file that was replaced or written to since it was read is read by the next scan.
                self.folder.reject_file(spool, &source.entry, &flaw, now)?;
                whole_files.insert(source_index);
            } else {
                let (first_seen, content) = (&source.progress.identity, event.body.as_bytes());
                self.folder.reject_part(&source.entry, first_seen, event.place, content, &flaw, now)?;
            }
        }
        self.sync_folder(spool)?;
        let events = if reused.len() == 1 { "event" } else { "events" };
        tracing::warn!("{} {events} rejected: the messageId came before with other content", reused.len());
        Ok(batch.take_out(&reused.iter().map(|event| event.index).collect(), &whole_files))
    }

    /// Makes all rejections durable. Returns whether there were any.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&mut self, spool: &Spool) -> Result<bool, SpoolError> {
        let needed_sync = std::mem::take(&mut self.needs_sync);
        if needed_sync {
            self.sync_folder(spool)?;
        }
        Ok(needed_sync)
    }

    fn sync_folder(&self, spool: &Spool) -> Result<(), SpoolError> {
        self.folder.sync().map_err(|e| SpoolError::new(spool.dir(), "reject events", e))
    }

    /// If it is time, puts files back into the spool that have grown whole, and deletes those rejected before
    /// `expired_before`. Returns how many files are then in `rejected/`. The next time comes after `max_interval` at most,
    /// unless the search takes long.
    pub fn tidy(&mut self, now: Mono, expired_before: Timestamp, max_interval: Duration) -> Option<u64> {
        if now < self.tidy_at {
            return None;
        }
        let began = Instant::now();
        for name in self.folder.put_back_grown() {
            tracing::info!(
                "{} was written to after it had been rejected: it is back in the spool",
                printable(name)
            );
        }
        self.folder.expire(expired_before);
        let count = self.count();
        self.tidy_at = now + TIDY_INTERVAL.min(max_interval).max(began.elapsed() * TIDY_SHARE);
        Some(count)
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
            SpoolEntry { name: "a.json".into(), identity, size, changed: 1 }
        };
        let second = Duration::from_secs;
        assert_eq!(rejections.incomplete_rest(&file(1), second(0), second(60)), None);
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
            let rest = rejections.incomplete_rest(&file(size), second(at), second(60));
            assert_eq!(rest, want.map(second), "at {at} s");
        }
    }
}
