//! Whose turn it is: which files of a look are taken, and which may still be written.

use super::intake::Intake;
use crate::clock::{Moment, Mono};
use crate::spool::Entry;
use std::time::Duration;

/// A time stamp that is so many ticks ahead is some other clock's, or from before the clock was set back.
const CLOCK_SKEW: u32 = 4;

/// A file that may still be written, as far as anybody knows.
pub(super) struct UnsettledFile {
    /// As it was when last seen.
    entry: Entry,
    /// Since when it has been so.
    unchanged: Mono,
    /// When it was first seen.
    seen: Mono,
}

/// Whether a file is taken in this round.
pub(super) enum Readiness {
    /// Now.
    Now,
    /// Not before so long; those behind it need not wait for it.
    Later(Duration),
    /// Not before so long, and those behind it in the order of the spool wait with it.
    First(Duration),
}

impl Intake {
    /// Whether it is the file's turn. One that may still be written holds back those behind it, so that nothing
    /// overtakes it, but for no longer than `settle`: a program that goes on writing does not stop the spool.
    ///
    /// A file that is stamped with the `time` that it is now is left alone: what happened to it afterwards could not be
    /// told by its time stamps, nor a new file of the same inode from it. Where nobody knows the time, and of a name that
    /// no event file has and that may be changed yet, no announcement counts.
    ///
    /// Both times are the same for all files of a look: what is finished first is then never behind what is finished
    /// after it.
    pub(super) fn readiness(&mut self, entry: &Entry, moment: Moment, time: Option<i64>) -> Readiness {
        let now = moment.mono;
        if let Some((before, since)) = self.incomplete.get(&entry.name)
            && before == entry
        {
            let rest = self.config.spool.incomplete_after.saturating_sub(now.saturating_sub(*since));
            return if rest.is_zero() { Readiness::Now } else { Readiness::Later(rest) };
        }
        if self.removing.contains_key(&entry.name) {
            // Another file that had its name is on the way out, or it is what was written to this one since.
            return Readiness::First(self.tick);
        }
        let age = age(entry, moment);
        let settle = self.config.spool.settle;
        let has_format = || entry.format().is_some();
        if let Some(time) = time.filter(|_| self.announced.contains(&entry.name) && has_format()) {
            let skewed = time.saturating_add((self.tick * CLOCK_SKEW).as_nanos() as i64);
            return if (time..skewed).contains(&entry.changed) {
                Readiness::First(self.tick)
            } else {
                Readiness::Now
            };
        }
        if age.is_some_and(|age| age >= settle) {
            return Readiness::Now;
        }
        let before =
            self.unsettled.get(&entry.name).filter(|y| y.entry.identity.key() == entry.identity.key());
        let seen = before.map_or(now, |unsettled| unsettled.seen);
        let unchanged =
            before.filter(|unsettled| unsettled.entry == *entry).map_or(now, |unsettled| unsettled.unchanged);
        let age = age.unwrap_or_default().max(now.saturating_sub(unchanged));
        let rest = settle.saturating_sub(age);
        if rest.is_zero() {
            return Readiness::Now;
        }
        self.unsettled.insert(entry.name.clone(), UnsettledFile { entry: entry.clone(), unchanged, seen });
        let is_first = now.saturating_sub(seen) < settle && has_format();
        if is_first { Readiness::First(rest) } else { Readiness::Later(rest) }
    }
}

/// How long the file has been as it is by its time stamp; `None`: nobody knows.
pub(super) fn age(entry: &Entry, moment: Moment) -> Option<Duration> {
    let now = moment.wall.0.saturating_mul(1_000_000);
    u64::try_from(now.saturating_sub(entry.changed)).ok().map(Duration::from_nanos)
}
