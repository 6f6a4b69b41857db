//! Which files of a scan may be ingested now, and which may still be written. Pure.
//!
//! A producer may announce a finished file by renaming or closing it. Where no announcement arrives (network file
//! systems, bind mounts, a watcher that overflowed), a file counts as finished once it has been unchanged for `settle`.

use crate::clock::{Moment, Mono};
use crate::spool::SpoolEntry;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::time::Duration;

/// A time stamp at most this many ticks ahead of the file system's time may belong to the present. One further ahead
/// comes from another clock, or from before the clock was set back.
const CLOCK_SKEW_TICKS: u32 = 4;

/// Whether a file may be ingested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Now.
    Ready,
    /// After this wait; younger files need not wait for it.
    Wait(Duration),
    /// After this wait; younger files wait as well, so that none overtakes it.
    HoldOthers(Duration),
    /// As [`Readiness::HoldOthers`]. The file is older than the agent, so nobody could have announced it: whole events
    /// of it may be ingested now, because a change from now on gives it another time stamp.
    OlderThanAgent(Duration),
}

/// The times by which all files of one scan are judged. If each file had its own, a file could be ready before one that
/// was finished earlier.
#[derive(Debug, Clone, Copy)]
pub struct ScanTimes {
    /// The agent's clocks.
    pub now: Moment,
    /// The file system's own time, nanoseconds since 1970; no file changed after the scan has an earlier time stamp.
    /// `None`: unknown, so announcements do not count.
    pub file_system: Option<i64>,
    /// The file system's time at the start of the agent, in the first scan only.
    pub agent_start: Option<i64>,
}

/// A file that may still be written.
#[derive(Debug)]
struct UnsettledFile {
    /// The file as of the last scan.
    entry: SpoolEntry,
    unchanged_since: Mono,
    first_scanned: Mono,
}

/// The files that may still be written, and the announcements of finished ones.
#[derive(Debug)]
pub struct UnsettledFiles {
    files: HashMap<OsString, UnsettledFile>,
    /// Files announced as finished and not ingested yet.
    announced: HashSet<OsString>,
    /// The length of a tick of the file system's clock: two changes within one tick may carry the same time stamp.
    tick: Duration,
}

impl UnsettledFiles {
    pub fn new(tick: Duration) -> UnsettledFiles {
        UnsettledFiles { files: HashMap::new(), announced: HashSet::new(), tick }
    }

    /// Notes names that were announced as finished.
    pub fn announce(&mut self, names: impl IntoIterator<Item = OsString>) {
        self.announced.extend(names);
    }

    /// Whether any file was announced as finished and is not ingested yet.
    pub fn has_announced(&self) -> bool {
        !self.announced.is_empty()
    }

    /// Forgets files that are not in the folder any more.
    pub fn retain(&mut self, present: &HashSet<&OsStr>) {
        self.files.retain(|name, _| present.contains(name.as_os_str()));
        self.announced.retain(|name| present.contains(name.as_os_str()));
    }

    /// Forgets the announcement of a file that has left the folder.
    pub fn forget_announcement(&mut self, name: &OsStr) {
        self.announced.remove(name);
    }

    /// Forgets how long a file has been unchanged, because it is being ingested.
    pub fn settled(&mut self, name: &OsStr) {
        self.files.remove(name);
    }

    /// Whether the file may be ingested. A file that may still be written holds back younger ones, but for no longer than
    /// `settle`: a program that never stops writing does not stop the spool.
    ///
    /// An announced file stamped with the present tick has to wait for the next: a later change within the tick would
    /// leave its time stamps as they are. A file whose name promises no known format may still be renamed, so its
    /// announcement does not count.
    pub fn readiness(&mut self, entry: &SpoolEntry, times: &ScanTimes, settle: Duration) -> Readiness {
        let now = times.now.mono;
        let has_format = || entry.format().is_some();
        if let Some(present) = times.file_system
            && self.announced.contains(&entry.name)
            && has_format()
        {
            let far_ahead = present.saturating_add((self.tick * CLOCK_SKEW_TICKS).as_nanos() as i64);
            let is_of_this_tick = (present..far_ahead).contains(&entry.changed);
            return if is_of_this_tick { Readiness::HoldOthers(self.tick) } else { Readiness::Ready };
        }
        let age = age_of(entry, times.now);
        if age.is_some_and(|age| age >= settle) {
            return Readiness::Ready;
        }
        let known = self.files.get(&entry.name);
        let same_file = known.filter(|known| known.entry.identity.key() == entry.identity.key());
        let first_scanned = same_file.map_or(now, |known| known.first_scanned);
        let unchanged_since =
            same_file.filter(|known| known.entry == *entry).map_or(now, |known| known.unchanged_since);
        let unchanged_for = age.unwrap_or_default().max(now.saturating_sub(unchanged_since));
        let rest = settle.saturating_sub(unchanged_for);
        if rest.is_zero() {
            return Readiness::Ready;
        }
        let unsettled = UnsettledFile { entry: entry.clone(), unchanged_since, first_scanned };
        self.files.insert(entry.name.clone(), unsettled);
        if now.saturating_sub(first_scanned) >= settle || !has_format() {
            Readiness::Wait(rest)
        } else if times.agent_start.is_some_and(|start| entry.changed < start) {
            Readiness::OlderThanAgent(rest)
        } else {
            Readiness::HoldOthers(rest)
        }
    }
}

/// The time since the file was last changed, by its time stamp; `None` if that lies in the future.
pub fn age_of(entry: &SpoolEntry, now: Moment) -> Option<Duration> {
    let now = now.wall.0.saturating_mul(1_000_000);
    u64::try_from(now.saturating_sub(entry.changed)).ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::spool::FileIdentity;

    const TICK: Duration = Duration::from_millis(4);
    const SETTLE: Duration = Duration::from_secs(2);
    const START_MS: i64 = 1_000_000;

    fn file(name: &str, inode: u64, size: u64, changed_ms: i64) -> SpoolEntry {
        let modified = (START_MS + changed_ms) * 1_000_000;
        let identity = FileIdentity { inode, born: 1, modified };
        SpoolEntry { name: name.into(), identity, size, changed: modified }
    }

    fn times(ms: i64) -> ScanTimes {
        let now = Moment { wall: Timestamp(START_MS + ms), mono: Duration::from_millis(ms as u64) };
        ScanTimes { now, file_system: Some((START_MS + ms) * 1_000_000), agent_start: None }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_file_without_announcement_is_ready_when_unchanged_for_settle() {
        use Readiness::*;
        // Each row: scan time, name, inode, size and time stamp as of that scan, all times in ms.
        for rows in [
            vec![(5_000, "old.json", 1, 9, 3_000, Ready)],
            vec![
                (5_000, "new.json", 1, 9, 4_500, HoldOthers(ms(1_500))),
                (6_000, "new.json", 1, 9, 4_500, HoldOthers(ms(500))),
                (6_500, "new.json", 1, 9, 4_500, Ready),
            ],
            // A file that goes on growing stops the others for `settle` only.
            vec![
                (5_000, "log.jsonl", 1, 9, 5_000, HoldOthers(ms(2_000))),
                (6_999, "log.jsonl", 1, 10, 6_900, HoldOthers(ms(1_901))),
                (7_000, "log.jsonl", 1, 11, 7_000, Wait(ms(2_000))),
                (9_000, "log.jsonl", 1, 11, 7_000, Ready),
            ],
            // The time of another file of that name starts from zero.
            vec![
                (5_000, "a.json", 1, 9, 5_000, HoldOthers(ms(2_000))),
                (7_000, "a.json", 2, 9, 7_000, HoldOthers(ms(2_000))),
            ],
            // A time stamp of the future: the agent's own clock decides.
            vec![
                (5_000, "future.json", 1, 9, 99_000, HoldOthers(ms(2_000))),
                (6_000, "future.json", 1, 9, 99_000, HoldOthers(ms(1_000))),
                (7_000, "future.json", 1, 9, 99_000, Ready),
            ],
            // The name may still be changed to that of an event file.
            vec![(5_000, "notes.txt", 1, 9, 4_000, Wait(ms(1_000)))],
        ] {
            let mut files = UnsettledFiles::new(TICK);
            for (at, name, inode, size, changed, want) in rows {
                let entry = file(name, inode, size, changed);
                assert_eq!(files.readiness(&entry, &times(at), SETTLE), want, "{name} at {at}");
            }
        }
    }

    #[test]
    fn an_announced_file_is_ready_one_tick_after_its_last_change() {
        use Readiness::*;
        for (name, changed, want) in [
            ("a.json", 4_999, Ready),
            ("a.json", 5_000, HoldOthers(TICK)),
            ("a.json", 5_015, HoldOthers(TICK)),
            ("a.json", 5_016, Ready),
            ("notes.txt", 4_999, Wait(ms(1_999))),
            ("unannounced.json", 4_999, HoldOthers(ms(1_999))),
        ] {
            let mut files = UnsettledFiles::new(TICK);
            files.announce(["a.json".into(), "notes.txt".into()]);
            let entry = file(name, 1, 9, changed);
            assert_eq!(files.readiness(&entry, &times(5_000), SETTLE), want, "{name} changed at {changed}");
        }
        let mut files = UnsettledFiles::new(TICK);
        files.announce(["a.json".into()]);
        let unknown_time = ScanTimes { file_system: None, ..times(5_000) };
        let entry = file("a.json", 1, 9, 4_999);
        assert_eq!(files.readiness(&entry, &unknown_time, SETTLE), HoldOthers(ms(1_999)));
    }

    #[test]
    fn a_file_older_than_the_agent_may_be_ingested_as_far_as_it_is_whole() {
        let mut files = UnsettledFiles::new(TICK);
        let first_scan = ScanTimes { agent_start: Some((START_MS + 4_900) * 1_000_000), ..times(5_000) };
        for (changed, want) in
            [(4_899, Readiness::OlderThanAgent(ms(1_899))), (4_900, Readiness::HoldOthers(ms(1_900)))]
        {
            assert_eq!(files.readiness(&file("a.json", 1, 9, changed), &first_scan, SETTLE), want);
        }
    }
}
