//! Which files may be read now, and which may still be written. Pure.
//!
//! The kernel tells whether a file is open for writing ([`Lease`](crate::spool::Lease)): one that is not is ready,
//! however it arrived and however long its writer paused before. Where it does not tell, a file is ready when a producer
//! has announced it by renaming or closing it, or when it has been unchanged for `settle`: on network file systems no
//! announcement arrives either.
//!
//! A file that was changed within the present tick of the file system's clock is left alone for the rest of it, whoever
//! has it open: a file that is deleted and written anew, or overwritten, within that tick may show the same inode, size
//! and times, and what was written last would be taken for what was read.
//!
//! A file that is not ready has no place in the order of its owner's files yet. It holds them back all the same, so that
//! an ordinary write of a moment does not change their order, but for no longer than `settle`. Neither is a file that is
//! ready held back for longer than that: by many that are not ready, each for its own time, it would be held for as long as
//! new ones come.

use crate::clock::{Moment, Mono};
use crate::spool::{ContentStamp, FileKey, SpoolEntry};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::time::Duration;

/// A time stamp at most this many ticks ahead of the file system's time may belong to the present. One further ahead
/// comes from another clock, or from before the clock was set back.
const CLOCK_SKEW_TICKS: u32 = 4;
/// A file that stays open is looked at less and less often: after each part of the time that it has waited already. Its
/// writer's announcement comes earlier, and a thousand files that stay open should cost little.
const WAITED_PART: u32 = 4;
/// Announcements that are remembered. In a flood of more files, a scan finds the others.
const MAX_ANNOUNCED: usize = 30_000;

/// What is known about whether anybody can write to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriterState {
    /// Nobody has it open for writing.
    Closed,
    /// Somebody has it open for writing.
    Open,
    /// The system does not tell.
    Unknown,
}

/// What is known of a file at one time.
#[derive(Debug, Clone, Copy)]
struct Observation {
    writer: WriterState,
    is_announced: bool,
    /// How long the agent has known the file.
    known_for: Duration,
    unchanged_for: Duration,
    /// Whether a further change could leave the time stamps as they are.
    is_of_this_tick: bool,
}

/// Whether a file may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Now.
    Ready,
    /// After a tick of the file system's clock, for which it holds back its owner's other files: a change within the tick
    /// of the last one could leave size and time stamps as they are, and would go unnoticed.
    AfterTick,
    /// Not before it is announced, or has waited for so long.
    Wait {
        /// When to look at it again at the latest.
        rest: Duration,
        /// How long it holds back its owner's other files.
        holds_back: Duration,
    },
}

impl Observation {
    fn readiness(self, settle: Duration) -> Readiness {
        let holds_back = settle.saturating_sub(self.known_for);
        match self.writer {
            WriterState::Open => {
                Readiness::Wait { rest: settle.max(self.known_for / WAITED_PART), holds_back }
            }
            WriterState::Unknown if !self.is_announced && self.unchanged_for < settle => {
                Readiness::Wait { rest: settle - self.unchanged_for, holds_back }
            }
            _ if self.is_of_this_tick => Readiness::AfterTick,
            _ => Readiness::Ready,
        }
    }
}

/// A file that waits.
#[derive(Debug)]
struct WaitingFile {
    key: FileKey,
    /// The content as it was when it was looked at.
    stamp: ContentStamp,
    known_since: Mono,
    unchanged_since: Mono,
    look_at: Mono,
    holds_back_until: Mono,
}

/// The times by which files are judged that were listed together.
#[derive(Debug, Clone, Copy)]
pub struct ScanTimes {
    /// The agent's clocks.
    pub now: Moment,
    /// The file system's own time after the listing, nanoseconds since 1970: no file that is changed later has an earlier
    /// time stamp. `None`: unknown.
    pub file_system: Option<i64>,
}

/// The files that wait to be looked at again, and the announcements of finished ones.
#[derive(Debug)]
pub struct WaitingFiles {
    files: HashMap<OsString, WaitingFile>,
    /// Files that are ready and held back, and since when.
    held: HashMap<OsString, (FileKey, Mono)>,
    /// Files announced as finished that have not left the folder yet.
    announced: HashSet<OsString>,
    /// The length of a tick of the file system's clock: two changes within one tick may carry the same time stamp.
    tick: Duration,
}

impl WaitingFiles {
    pub fn new(tick: Duration) -> WaitingFiles {
        WaitingFiles { files: HashMap::new(), held: HashMap::new(), announced: HashSet::new(), tick }
    }

    /// Notes that a file was announced as finished: it is looked at again at once.
    pub fn announce(&mut self, name: OsString) {
        if let Some(waiting) = self.files.get_mut(&name) {
            (waiting.look_at, waiting.holds_back_until) = (Mono::ZERO, Mono::ZERO);
        }
        if self.announced.len() < MAX_ANNOUNCED {
            self.announced.insert(name);
        }
    }

    /// Forgets files that are not in the folder any more.
    pub fn retain(&mut self, present: &HashSet<&OsStr>) {
        self.files.retain(|name, _| present.contains(name.as_os_str()));
        self.held.retain(|name, _| present.contains(name.as_os_str()));
        self.announced.retain(|name| present.contains(name.as_os_str()));
    }

    /// Forgets a file that has left the folder.
    pub fn forget(&mut self, name: &OsStr) {
        self.files.remove(name);
        self.held.remove(name);
        self.announced.remove(name);
    }

    /// The time until which a file that has not changed since need not be looked at, and until which it holds back its
    /// owner's others; `None`: it may be looked at now.
    pub fn waits_until(&self, entry: &SpoolEntry, now: Mono) -> Option<(Mono, Mono)> {
        let is_unchanged =
            |waiting: &&WaitingFile| (waiting.key, waiting.stamp) == (entry.identity.key(), entry.stamp());
        let waiting = self.files.get(&entry.name).filter(is_unchanged)?;
        (now < waiting.look_at).then_some((waiting.look_at, waiting.holds_back_until))
    }

    /// The number of waiting files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// The time of the next look at a waiting file.
    pub fn next_look(&self) -> Option<Mono> {
        self.files.values().map(|waiting| waiting.look_at).min()
    }

    /// Judges a file that was looked at. One that has to wait is remembered; a wait ends early when the file changes.
    pub fn judge(
        &mut self,
        entry: &SpoolEntry,
        writer: WriterState,
        times: &ScanTimes,
        settle: Duration,
    ) -> Readiness {
        let now = times.now.mono;
        let known = self.files.get(&entry.name);
        let same_file = known.filter(|known| known.key == entry.identity.key());
        let known_since = same_file.map_or(now, |known| known.known_since);
        let content = |stamp: ContentStamp| (stamp.size, stamp.modified);
        let is_unchanged = |known: &&WaitingFile| content(known.stamp) == content(entry.stamp());
        let unchanged_since = same_file.filter(is_unchanged).map_or(now, |known| known.unchanged_since);
        let far_ahead =
            |present: i64| present.saturating_add((self.tick * CLOCK_SKEW_TICKS).as_nanos() as i64);
        let observation = Observation {
            writer,
            is_announced: self.announced.contains(&entry.name),
            known_for: now.saturating_sub(known_since),
            unchanged_for: age_of(entry, times.now).max(now.saturating_sub(unchanged_since)),
            is_of_this_tick: times
                .file_system
                .is_some_and(|present| (present..far_ahead(present)).contains(&entry.changed)),
        };
        let readiness = observation.readiness(settle);
        match readiness {
            Readiness::Ready | Readiness::AfterTick => {
                self.files.remove(&entry.name);
            }
            Readiness::Wait { rest, holds_back } => {
                let waiting = WaitingFile {
                    key: entry.identity.key(),
                    stamp: entry.stamp(),
                    known_since,
                    unchanged_since,
                    look_at: now + rest,
                    holds_back_until: now + holds_back,
                };
                self.files.insert(entry.name.clone(), waiting);
            }
        }
        readiness
    }

    /// How long a file that is ready has been held back: since it was first found so. Behind a file that `is_open`, the time
    /// since its last change counts as well, because nothing is looked at behind the first file that is held back.
    pub fn held_for(&mut self, entry: &SpoolEntry, is_open: bool, now: Moment) -> Duration {
        let key = entry.identity.key();
        let held = self.held.entry(entry.name.clone()).or_insert((key, now.mono));
        if held.0 != key {
            *held = (key, now.mono);
        }
        let held_for = now.mono.saturating_sub(held.1);
        if is_open { held_for.max(age_of(entry, now)) } else { held_for }
    }

    /// Has a file wait for a reason of another kind. It holds back nobody.
    pub fn put_off(&mut self, entry: &SpoolEntry, now: Mono, rest: Duration) {
        let waiting = WaitingFile {
            key: entry.identity.key(),
            stamp: entry.stamp(),
            known_since: now,
            unchanged_since: now,
            look_at: now + rest,
            holds_back_until: Mono::ZERO,
        };
        self.files.insert(entry.name.clone(), waiting);
    }
}

/// The time since the file was last changed, by its time stamp; zero if that lies in the future.
fn age_of(entry: &SpoolEntry, now: Moment) -> Duration {
    let now = now.wall.0.saturating_mul(1_000_000);
    u64::try_from(now.saturating_sub(entry.changed)).map_or(Duration::ZERO, Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::spool::FileIdentity;

    const TICK: Duration = Duration::from_millis(4);
    const SETTLE: Duration = Duration::from_secs(2);
    const START_MS: i64 = 1_000_000;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_file_is_ready_when_its_writer_has_closed_it_or_where_nobody_knows_when_it_rests() {
        use WriterState::*;
        let wait = |rest, holds_back| Readiness::Wait { rest: ms(rest), holds_back: ms(holds_back) };
        let ready = Readiness::Ready;
        for (writer, is_announced, known_for, unchanged_for, is_of_this_tick, want) in [
            (Closed, false, 0, 0, false, ready),
            (Closed, true, 0, 0, false, ready),
            (Closed, true, 0, 0, true, Readiness::AfterTick),
            // An open file waits, whatever was announced and however long it rests.
            (Open, false, 0, 0, true, wait(2_000, 2_000)),
            (Open, true, 500, 500, false, wait(2_000, 1_500)),
            (Open, true, 2_000, 999_000, false, wait(2_000, 0)),
            (Open, false, 100_000, 0, false, wait(25_000, 0)),
            (Unknown, true, 0, 0, false, ready),
            (Unknown, true, 0, 0, true, Readiness::AfterTick),
            (Unknown, false, 0, 500, false, wait(1_500, 2_000)),
            (Unknown, false, 1_900, 500, false, wait(1_500, 100)),
            // A file that goes on growing holds the others back for `settle` only.
            (Unknown, false, 2_000, 0, false, wait(2_000, 0)),
            (Unknown, false, 0, 2_000, false, ready),
        ] {
            let observation = Observation {
                writer,
                is_announced,
                known_for: ms(known_for),
                unchanged_for: ms(unchanged_for),
                is_of_this_tick,
            };
            assert_eq!(observation.readiness(SETTLE), want, "{observation:?}");
        }
    }

    fn file(name: &str, inode: u64, size: u64, changed_ms: i64) -> SpoolEntry {
        let modified = (START_MS + changed_ms) * 1_000_000;
        let identity = FileIdentity { inode, born: 1, modified };
        SpoolEntry { name: name.into(), identity, size, owner: 0, changed: modified }
    }

    fn times(ms: i64) -> ScanTimes {
        let now = Moment { wall: Timestamp(START_MS + ms), mono: Duration::from_millis(ms as u64) };
        ScanTimes { now, file_system: Some((START_MS + ms) * 1_000_000) }
    }

    #[test]
    fn the_waits_of_a_file_begin_anew_when_it_changes_or_is_another() {
        use WriterState::*;
        let wait = |rest, holds_back| Readiness::Wait { rest: ms(rest), holds_back: ms(holds_back) };
        // Each row: the time of the look, inode, size and time stamp as of then, all times in ms.
        for rows in [
            vec![
                (5_000, Unknown, 1, 9, 4_500, wait(1_500, 2_000)),
                (6_000, Unknown, 1, 9, 4_500, wait(500, 1_000)),
                (6_500, Unknown, 1, 9, 4_500, Readiness::Ready),
            ],
            vec![
                (5_000, Unknown, 1, 9, 4_999, wait(1_999, 2_000)),
                (6_999, Unknown, 1, 10, 6_900, wait(1_901, 1)),
                (7_000, Unknown, 1, 11, 6_999, wait(1_999, 0)),
                (9_000, Unknown, 1, 11, 6_999, Readiness::Ready),
            ],
            // Another file of that name.
            vec![
                (5_000, Open, 1, 9, 4_999, wait(2_000, 2_000)),
                (7_000, Open, 2, 9, 6_999, wait(2_000, 2_000)),
            ],
            // A time stamp of the future: the agent's own clock decides.
            vec![
                (5_000, Unknown, 1, 9, 99_000, wait(2_000, 2_000)),
                (6_000, Unknown, 1, 9, 99_000, wait(1_000, 1_000)),
                (7_000, Unknown, 1, 9, 99_000, Readiness::Ready),
            ],
            // The tick of the last change has to be over.
            vec![
                (5_000, Closed, 1, 9, 5_000, Readiness::AfterTick),
                (5_004, Closed, 1, 9, 5_000, Readiness::Ready),
            ],
            vec![(5_000, Closed, 1, 9, 5_016, Readiness::Ready)],
        ] {
            let mut files = WaitingFiles::new(TICK);
            for (at, writer, inode, size, changed, want) in rows {
                let entry = file("a.json", inode, size, changed);
                assert_eq!(files.judge(&entry, writer, &times(at), SETTLE), want, "at {at}");
                let waits = files.waits_until(&entry, ms(at as u64)).is_some();
                assert_eq!(waits, matches!(want, Readiness::Wait { .. }), "at {at}");
            }
        }
    }

    #[test]
    fn a_ready_file_has_been_held_since_it_was_found_so_or_since_its_last_change() {
        // Each row: the time of the look, whether an open file holds it, inode and time stamp as of then, and for how long the
        // file has been held; all times in ms.
        for rows in [
            vec![(5_000, true, 1, 5_000, 0), (6_500, true, 1, 5_000, 1_500)],
            // Not looked at before.
            vec![(6_500, true, 1, 5_000, 1_500)],
            // For the rest of a tick the order is kept, whatever has waited for the agent.
            vec![(6_500, false, 1, 5_000, 0), (6_600, false, 1, 5_000, 100)],
            // A time stamp of the future: the agent's own clock decides.
            vec![(5_000, true, 1, 99_000, 0), (6_500, true, 1, 99_000, 1_500)],
            // Another file of that name.
            vec![(5_000, true, 1, 5_000, 0), (6_500, true, 2, 6_400, 100)],
        ] {
            let mut files = WaitingFiles::new(TICK);
            for (at, is_open, inode, changed, want) in rows {
                let held = files.held_for(&file("a.json", inode, 9, changed), is_open, times(at).now);
                assert_eq!(held, ms(want), "at {at}");
            }
        }
    }

    #[test]
    fn an_announcement_ends_a_wait() {
        let mut files = WaitingFiles::new(TICK);
        let entry = file("a.json", 1, 9, 4_999);
        files.judge(&entry, WriterState::Open, &times(5_000), SETTLE);
        assert_eq!(files.waits_until(&entry, ms(5_001)), Some((ms(7_000), ms(7_000))));
        assert_eq!(files.waits_until(&file("a.json", 1, 10, 5_000), ms(5_001)), None, "it has changed");
        files.announce("a.json".into());
        assert_eq!(files.waits_until(&entry, ms(5_001)), None);
        assert_eq!(files.next_look(), Some(Mono::ZERO));
        assert_eq!(files.judge(&entry, WriterState::Unknown, &times(5_001), SETTLE), Readiness::Ready);
    }
}
