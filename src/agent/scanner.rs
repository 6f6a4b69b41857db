//! What there is to read in the spool: the owners' queues, brought up to date by scans of the folder and by announcements.
//!
//! A scan finds everything, and knows the order in which files came; announcements of single files get lost. So the folder
//! is scanned whenever there is nothing to read. While there is, and between scans of a folder so large that they take
//! long, the announcements alone bring new files, so that an owner's file does not wait for a million of another's.

use super::owner_queues::OwnerQueues;
use super::readiness::{Readiness, ScanTimes, WaitingFiles, WriterState};
use crate::clock::{Clock, Mono};
use crate::config::SpoolConfig;
use crate::disk;
use crate::spool::{InHand, Spool, SpoolEntry, SpoolError, SpoolListing, Watcher};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

/// A scan of the folder that takes long is repeated after so many times as long, so that scans take at most a fifth of the
/// time.
const SCAN_SHARE: u32 = 4;

/// The files to read; an `R` is a file that was begun.
pub struct Scanner<R> {
    pub queues: OwnerQueues<R>,
    pub waiting: WaitingFiles,
    pub in_hand: InHand,
    clock: Clock,
    watcher: Watcher,
    /// The length of a tick of the file system's clock.
    tick: Duration,
    /// The times by which files are judged.
    times: ScanTimes,
    /// The earliest end of a hold since the last look.
    held_for: Option<Duration>,
    /// Files of this turn that its owner's others wait for, and those others.
    held_back: Vec<SpoolEntry>,
    /// Whether one of them waits for the end of a tick only.
    holds_for_tick: bool,
    scan_allowed_at: Instant,
    last_scan: Option<Instant>,
    /// Whether the queues hold all files of the last scan.
    is_complete: bool,
    /// The number of files that the last scan listed.
    listed: usize,
    /// Whether files were forgotten that a scan had found: nothing may overtake them before the next.
    is_stale: bool,
    /// How soon something irregular has to be looked at again.
    irregular_rest: Option<Duration>,
}

impl<R> Scanner<R> {
    /// Watches the spool, and calls `wake` whenever there may be something to read.
    pub fn new(spool: &Spool, clock: Clock, wake: impl Fn() + Send + 'static) -> Scanner<R> {
        let (watcher, unwatched) = Watcher::new(spool.dir(), wake);
        if let Some(why) = unwatched {
            tracing::warn!("the spool cannot be watched ({why}): files are found within spool.scan_interval");
        }
        let tick = disk::tick();
        Scanner {
            queues: OwnerQueues::new(),
            waiting: WaitingFiles::new(tick),
            in_hand: spool.in_hand(),
            times: ScanTimes { now: clock.moment(), file_system: None },
            clock,
            watcher,
            tick,
            held_for: None,
            held_back: Vec::new(),
            holds_for_tick: false,
            scan_allowed_at: Instant::now(),
            last_scan: None,
            is_complete: true,
            listed: 0,
            is_stale: true,
            irregular_rest: None,
        }
    }

    /// Another folder has the spool's name.
    pub fn reopen(&mut self, spool: &Spool) {
        self.watcher.watch_again(spool.dir());
        self.in_hand = spool.in_hand();
        self.forget_queues();
        self.scan_allowed_at = Instant::now();
    }

    /// Brings the queues up to date. `scanned` is told of a scan with the names in it, `tick` is called within long ones.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn look(
        &mut self,
        spool: &Spool,
        config: &SpoolConfig,
        scanned: impl FnOnce(&SpoolListing, &HashSet<&OsStr>) -> Option<Duration>,
        tick: &mut dyn FnMut(),
    ) -> Result<(), SpoolError> {
        let is_idle = !self.queues.has_work();
        let is_overdue = self.last_scan.is_none_or(|at| at.elapsed() >= config.scan_interval);
        // Where most of what was listed still waits, another scan would list the same.
        let is_used_up = is_idle && !self.is_complete && self.waiting.len() <= self.listed / 2;
        let may_scan = self.scan_allowed_at <= Instant::now() || is_used_up;
        self.held_for = None;
        self.queues.release();
        if !self.is_stale && !(may_scan && (is_idle || is_overdue)) {
            self.add_announced(spool);
            return Ok(());
        }
        // The scan answers the announcements of what it finds as well.
        self.watcher.announced().into_iter().for_each(|name| self.waiting.announce(name));
        if !may_scan {
            return Ok(());
        }
        let began = Instant::now();
        let listing = spool.list(self.clock.now(), tick)?;
        {
            let present: HashSet<&OsStr> = listing.files().map(|entry| entry.name.as_os_str()).collect();
            self.waiting.retain(&present);
            self.listed = present.len();
            self.irregular_rest = scanned(&listing, &present);
        }
        self.note_times(spool);
        (self.is_complete, self.is_stale) = (listing.is_complete(), false);
        let in_hand = &self.in_hand;
        self.queues.replace(listing.owners, |entry| in_hand.is_suspect(entry.identity.key()));
        let ended = Instant::now();
        (self.last_scan, self.scan_allowed_at) = (Some(ended), ended + (ended - began) * SCAN_SHARE);
        Ok(())
    }

    /// Adds the files that were announced as finished.
    pub fn add_announced(&mut self, spool: &Spool) {
        let announced = self.watcher.announced();
        self.add_files(spool, announced);
    }

    /// Adds files that are finished, or back in the spool.
    pub fn add_files(&mut self, spool: &Spool, names: impl IntoIterator<Item = OsString>) {
        let mut entries = Vec::new();
        for name in names {
            if let Some(entry) = spool.entry(&name) {
                self.waiting.announce(name);
                entries.push(entry);
            }
        }
        if !entries.is_empty() {
            self.note_times(spool);
        }
        entries.into_iter().for_each(|entry| self.add(entry));
    }

    fn add(&mut self, entry: SpoolEntry) {
        let is_suspect = self.in_hand.is_suspect(entry.identity.key());
        self.is_complete &= self.queues.add(entry, is_suspect);
    }

    /// The times come after the files were found: nothing that changes from now on is stamped with an earlier one.
    fn note_times(&mut self, spool: &Spool) {
        self.times = ScanTimes { now: self.clock.moment(), file_system: spool.file_system_time() };
    }

    /// Forgets what there is to read; the next scan finds it again.
    pub fn forget_queues(&mut self) {
        self.queues.clear();
        self.held_back.clear();
        self.holds_for_tick = false;
        self.is_stale = true;
    }

    /// Gives the owner no turn for so long, or until the next look.
    pub fn hold(&mut self, owner: u32, rest: Duration) {
        self.queues.hold(owner);
        self.held_for = Some(self.held_for.map_or(rest, |held_for| held_for.min(rest)));
    }

    /// Has its owner's others wait for a file: for so long, or until the next look. The files behind it are still looked at
    /// in this turn, so that the waits of several pass at once.
    fn hold_for(&mut self, entry: SpoolEntry, rest: Duration) {
        self.hold(entry.owner, rest);
        self.held_back.push(entry);
    }

    /// Whether a file that is ready is held back, behind one of its turn that is not: for `settle` in all, however many
    /// files come before it that are not ready.
    pub fn holds_back(&mut self, entry: &SpoolEntry, settle: Duration) -> bool {
        if self.held_back.is_empty() {
            return false;
        }
        let rest =
            settle.saturating_sub(self.waiting.held_for(entry, !self.holds_for_tick, self.clock.moment()));
        if rest.is_zero() {
            return false;
        }
        self.hold_for(entry.clone(), rest);
        true
    }

    /// Puts back what is held back.
    pub fn end_turn(&mut self) {
        self.holds_for_tick = false;
        for entry in std::mem::take(&mut self.held_back) {
            self.add(entry);
        }
    }

    /// Has its owner's others wait for a file for a tick of the file system's clock.
    pub fn hold_for_tick(&mut self, entry: SpoolEntry) {
        self.hold_for(entry, self.tick);
        self.holds_for_tick = true;
    }

    /// Whether a file that was found not to be ready has to wait still. Then its owner's others may have to wait for it.
    pub fn still_waits(&mut self, entry: &SpoolEntry) -> bool {
        let now = self.clock.mono();
        let Some((until, holds_back_until)) = self.waiting.waits_until(entry, now) else { return false };
        if holds_back_until > now {
            self.hold_for(entry.clone(), until.min(holds_back_until).saturating_sub(now));
        }
        true
    }

    /// Whether the file may be read. If not, it waits; unless it `is_stored`, its owner's others may have to wait for it.
    pub fn is_ready(
        &mut self,
        entry: &SpoolEntry,
        writer: WriterState,
        is_stored: bool,
        settle: Duration,
    ) -> bool {
        match self.waiting.judge(entry, writer, &self.times, settle) {
            Readiness::Ready => return true,
            Readiness::AfterTick => self.hold_for_tick(entry.clone()),
            Readiness::Wait { rest, holds_back } if !holds_back.is_zero() && !is_stored => {
                self.hold_for(entry.clone(), rest.min(holds_back));
            }
            Readiness::Wait { .. } => {}
        }
        false
    }

    /// Has a file wait for a reason of its own. It holds back nobody.
    pub fn put_off(&mut self, entry: &SpoolEntry, rest: Duration) {
        self.waiting.put_off(entry, self.clock.mono(), rest);
    }

    /// When to look again at the latest. `has_progressed`: files have left the folder since the last scan.
    pub fn time_to_next_look(&self, scan_interval: Duration, has_progressed: bool) -> Duration {
        if self.queues.has_work() {
            return Duration::ZERO;
        }
        let now = self.clock.mono();
        let scan_in = [
            Some(scan_interval),
            self.waiting.next_look().map(|at: Mono| at.saturating_sub(now)),
            self.irregular_rest,
            // More files are there than were listed.
            (self.is_stale || has_progressed && !self.is_complete).then_some(Duration::ZERO),
        ];
        let until_allowed = self.scan_allowed_at.saturating_duration_since(Instant::now());
        let scan_in = scan_in.into_iter().flatten().min().unwrap_or_default().max(until_allowed);
        self.held_for.map_or(scan_in, |held_for| held_for.min(scan_in)).max(self.tick)
    }
}
