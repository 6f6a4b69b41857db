//! Whether the outbox has room for more events, and why not.

use crate::config;
use crate::disk::{self, DiskSpace};
use crate::outbox::OutboxStats;
use crate::reason::{Code, Reason};
use std::sync::Arc;

/// A full outbox accepts files again when it has shrunk to this share of its limit, so that it does not flap.
const REOPEN_BELOW: f64 = 0.95;
/// The bytes of disk that one byte of an event may need until it is stored: in the database and in its write-ahead log,
/// on half-empty pages, with the indexes.
const DISK_PER_BYTE: u64 = 8;
/// Events are not stored in portions below this size: the commits would cost more than they bring.
const MIN_ROOM: usize = 64 << 10;

/// An outbox that is full to this share of its limit takes no more from an owner that has most of it, so that the others
/// still find room.
const CROWDED: f64 = 0.75;
/// The share of the limit that one owner may hold then.
const OWNER_SHARE: f64 = 0.5;

/// The room of the outbox, and whether the intake is blocked for want of it.
pub struct Capacity {
    stats: Arc<OutboxStats>,
    blocked: Option<Reason>,
    room: usize,
}

impl Capacity {
    pub fn new(stats: Arc<OutboxStats>) -> Capacity {
        Capacity { stats, blocked: None, room: 0 }
    }

    /// Bytes of events that may be stored in one commit.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Measures the room.
    ///
    /// # Errors
    /// Nothing can be stored for now, and why.
    pub fn check(&mut self, outbox: &config::OutboxConfig) -> Result<(), Reason> {
        self.check_size(self.stats.needed_bytes(), outbox.max_bytes)?;
        match disk::space_of(&outbox.path) {
            Some(disk) => {
                self.check_disk(disk, outbox.min_free.bytes(disk.total), self.stats.missing_reserve())
            }
            None => Ok(()),
        }
    }

    /// Why nothing more is stored of the owner's files for now, though the outbox has room for others'. Where all events
    /// are of one owner, there is nobody to leave room for.
    pub fn check_owner(&self, owner: u32, outbox: &config::OutboxConfig) -> Option<Reason> {
        if !self.stats.has_other_owner(owner) {
            return None;
        }
        owner_share(self.stats.needed_bytes(), self.stats.queued_bytes(owner), outbox.max_bytes)
    }

    /// History is not counted: it has a budget of its own.
    fn check_size(&self, used: u64, max_bytes: u64) -> Result<(), Reason> {
        let limit = max_bytes as f64 * if self.is_blocked_by(Code::MaxBytes) { REOPEN_BELOW } else { 1.0 };
        if (used as f64) < limit {
            return Ok(());
        }
        let text = format!(
            "the outbox ({} of pending and failed events) has reached outbox.max_bytes ({}); files are read again \
             when it is 5% smaller",
            config::Bytes(used),
            config::Bytes(max_bytes)
        );
        Err(Reason::new(Code::MaxBytes, text))
    }

    /// `min_free` bytes stay free for everybody, and `reserve` bytes for noting what is delivered.
    fn check_disk(&mut self, disk: DiskSpace, min_free: u64, reserve: u64) -> Result<(), Reason> {
        let untouched = min_free.saturating_add(reserve);
        let room = disk.free.saturating_sub(untouched) / DISK_PER_BYTE;
        self.room = usize::try_from(room).unwrap_or(usize::MAX);
        if self.is_blocked_by(Code::DiskFull) {
            // The last commit did not fit, whatever the figures say.
            self.room = self.room.min(MIN_ROOM);
        }
        if self.room >= MIN_ROOM {
            return Ok(());
        }
        let text = format!(
            "the outbox's file system has {} free; at least {} are needed to store events and leave free what \
             outbox.min_free asks for",
            config::Bytes(disk.free),
            config::Bytes(untouched.saturating_add(MIN_ROOM as u64 * DISK_PER_BYTE))
        );
        Err(Reason::new(Code::MinFree, text))
    }

    /// Notes that nothing can be stored for now.
    pub fn block(&mut self, reason: Reason) {
        if !self.is_blocked_by(reason.code) {
            tracing::warn!(
                notice = "intake_blocked",
                code = %reason.code,
                outbox_bytes = self.stats.bytes(),
                "the intake is blocked ({reason}); files wait in the spool"
            );
        }
        self.blocked = Some(reason);
    }

    /// Notes that events were stored. Returns whether the intake was blocked.
    pub fn unblock(&mut self) -> bool {
        let was_blocked = self.blocked.take().is_some();
        if was_blocked {
            tracing::info!(notice = "intake_open", "the intake is open again");
        }
        was_blocked
    }

    pub fn blocked(&self) -> Option<&Reason> {
        self.blocked.as_ref()
    }

    fn is_blocked_by(&self, code: Code) -> bool {
        self.blocked.as_ref().is_some_and(|reason| reason.code == code)
    }
}

/// Whether one owner's events take too much of an outbox that is nearly full.
fn owner_share(used: u64, owned: u64, max_bytes: u64) -> Option<Reason> {
    let limit = max_bytes as f64;
    if (used as f64) < limit * CROWDED || owned as f64 <= limit * OWNER_SHARE {
        return None;
    }
    let text = format!(
        "the outbox is nearly full, and {} of its {} are events from this owner's files, which wait; those of others are \
         taken",
        config::Bytes(owned),
        config::Bytes(max_bytes)
    );
    Some(Reason::new(Code::OwnerShare, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked_by(code: Option<Code>) -> Capacity {
        let blocked = code.map(|code| Reason::new(code, ""));
        Capacity { stats: Arc::default(), blocked, room: 0 }
    }

    #[test]
    fn a_full_outbox_reopens_when_it_has_shrunk_by_a_twentieth() {
        for (blocked, used, is_open) in [
            (None, 999, true),
            (None, 1000, false),
            (Some(Code::MaxBytes), 999, false),
            (Some(Code::MaxBytes), 950, false),
            (Some(Code::MaxBytes), 949, true),
            (Some(Code::MinFree), 999, true),
        ] {
            let checked = blocked_by(blocked).check_size(used, 1000);
            assert_eq!(checked.is_ok(), is_open, "{used} bytes, blocked by {blocked:?}: {checked:?}");
        }
    }

    #[test]
    fn room_is_an_eighth_of_the_free_space_beyond_what_stays_free() {
        const MIN: u64 = MIN_ROOM as u64 * DISK_PER_BYTE;
        for (blocked, free, room) in [
            (None, 100 + 20 + MIN, Some(MIN_ROOM)),
            (None, 100 + 20 + MIN - 1, None),
            (None, 0, None),
            (None, 100 + 20 + 5 * MIN, Some(5 * MIN_ROOM)),
            (Some(Code::DiskFull), 100 + 20 + 5 * MIN, Some(MIN_ROOM)),
        ] {
            let mut capacity = blocked_by(blocked);
            let checked = capacity.check_disk(DiskSpace { free, total: u64::MAX }, 100, 20);
            assert_eq!(checked.is_ok().then(|| capacity.room()), room, "{free} free: {checked:?}");
        }
    }

    #[test]
    fn an_owner_that_holds_more_than_half_of_a_nearly_full_outbox_waits() {
        for (used, owned, waits) in [
            (0, 501, false),
            (749, 501, false),
            (750, 500, false),
            (750, 501, true),
            (2000, 501, true),
            (2000, 0, false),
        ] {
            let reason = owner_share(used, owned, 1000).map(|reason| reason.code);
            assert_eq!(reason, waits.then_some(Code::OwnerShare), "{owned} of {used}");
        }
    }
}
