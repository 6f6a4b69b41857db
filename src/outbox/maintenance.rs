//! The work of the writer's thread between commits: it keeps the write-ahead log short, deletes rows whose time is up,
//! gives free space back, and publishes the figures.

use super::acts::Acts;
use super::alarm::Alarm;
use super::expiry::{Excess, Expiry};
use super::lock::Lock;
use super::meta;
use super::pages::record::PAGE_SIZE;
use super::replaced_files::check_files;
use super::reserve::ReserveFile;
use super::retention_clock::{ClockStep, RetentionClock};
use super::store::Store;
use super::tables::Tables;
use super::wal_keeper::WalKeeper;
use super::{OutboxError, OutboxStats};
use crate::clock::{Clock, Mono, Timestamp};
use crate::disk;
use crate::status::Incident;
use rusqlite::OptionalExtension;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Rows deleted in one transaction, so that an append never waits long behind them.
const EXPIRE_AT_ONCE: usize = 2_000;
/// The pause after a search that has found nothing to give up: what was delivered a moment ago has yet to be compacted.
const NO_EXCESS_PAUSE: Duration = Duration::from_secs(5);
/// The least time between two lines of the log about ids that are forgotten early.
const GIVE_UP_LOGGED: Duration = Duration::from_secs(86_400);
/// Transactions of that kind after one commit: together they gain about as much as an append takes.
const GIVE_UP_STEPS: usize = 5;
/// The interval at which the write-ahead log is emptied amid the work. What was erased stands in it until then.
const EMPTY_INTERVAL: Duration = Duration::from_secs(10);
/// The interval of the search for rows whose time is up, once none are left; the keep_… settings are in days.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(30);
/// Free pages given back in one step (4 MiB), and the least that is worth a step.
const SHRINK_PAGES: u64 = 1_024;
/// Free bytes of the disk below which as little as possible is written at once: what a large commit may take.
const TIGHT: u64 = 16 << 20;
/// Time for which emptying the log on a full disk waits for the snapshot that the sender reads at that moment.
pub(super) const READER_TIMEOUT: Duration = Duration::from_millis(50);

/// The upkeep of an open outbox.
pub(super) struct Maintenance {
    wal: WalKeeper,
    reserve: ReserveFile,
    clock: Clock,
    stats: Arc<OutboxStats>,
    alarm: Alarm,
    /// Whether the lock was taken again, and nobody has been told yet.
    is_lock_retaken: bool,
    expiry: Expiry,
    retention_clock: RetentionClock,
    /// A step of the wall clock that is not stored yet.
    clock_step: Option<ClockStep>,
    /// When the last search for rows whose time is up found no more.
    expired_at: Mono,
    /// Nothing is searched for that could be given up before.
    no_excess_until: Mono,
    /// When the log last told that ids are forgotten early.
    give_up_logged: Option<Mono>,
    /// When the write-ahead log was last emptied.
    emptied_at: Mono,
    /// Since when readers have prevented that; `None`: the last attempt has emptied it.
    held_since: Option<Mono>,
    /// Whether the disk has less free than `outbox.min_free` asks for.
    is_disk_short: bool,
}

impl Maintenance {
    /// Checks the files of the database and publishes the first figures.
    ///
    /// # Errors
    /// The system's and SQLite's.
    pub(super) fn start(
        db: &Store,
        lock: Arc<Lock>,
        reserve: ReserveFile,
        clock: Clock,
        alarm: Alarm,
    ) -> Result<Maintenance, OutboxError> {
        let stats = Arc::new(OutboxStats::default());
        publish(&stats, db, &reserve, clock.now())?;
        let wal = WalKeeper::new(db, lock, stats.clone());
        let saved = meta::retention_clock(&db.conn).map_err(|e| db.error("read its clock", e))?;
        let newest = newest_time(db)?;
        let (retention_clock, clock_step) =
            RetentionClock::resume(saved, newest, clock.now(), clock.passed());
        log_step(clock_step.as_ref());
        stats.retention_time.store(retention_clock.now().0, Relaxed);
        Ok(Maintenance {
            wal,
            reserve,
            expiry: Expiry::default(),
            retention_clock,
            clock_step,
            expired_at: clock.mono(),
            no_excess_until: Mono::ZERO,
            give_up_logged: None,
            emptied_at: clock.mono(),
            held_since: None,
            is_disk_short: false,
            clock,
            stats,
            alarm,
            is_lock_retaken: false,
        })
    }

    pub(super) fn stats(&self) -> Arc<OutboxStats> {
        self.stats.clone()
    }

    /// Runs once a second, or seldom while there is nothing to do. An error here is no worse than not having run yet.
    /// Returns whether nothing is left to do.
    pub(super) fn run(&mut self, tables: &mut Tables, is_idle: bool) -> bool {
        let disk = self.wal.measure_disk(&tables.store);
        tables.store.resume_overwriting();
        let min_free = &tables.retention.config.min_free;
        self.is_disk_short = disk.is_some_and(|disk| disk.free < min_free.bytes(disk.total));
        if let Err(e) = self.run_steps(tables, is_idle) {
            self.report(e);
        }
        let now = self.clock.mono();
        if self.wal.is_empty() && !tables.store.has_remnants() {
            self.emptied_at = now;
            self.held_since = None;
        } else if is_idle && !tables.is_compacting() {
            self.empty_wal(&tables.store, Duration::ZERO);
            self.note_held(now);
        } else if now.saturating_sub(self.emptied_at) >= EMPTY_INTERVAL {
            self.emptied_at = now;
            self.empty_wal(&tables.store, READER_TIMEOUT);
            self.note_held(now);
        }
        self.reserve.create();
        let is_done = self.wal.is_empty()
            && !tables.store.has_remnants()
            && !tables.is_compacting()
            && self.reserve.missing() == 0;
        self.measure_or_report(tables);
        if !self.alarm.is_raised()
            && let Err(e) = self.keep_lock().and_then(|()| self.report_lock(tables))
        {
            self.report(e);
        }
        let held_for = self.held_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        self.wal.report_readers(&tables.store, held_for);
        tables.failures.committed(self.clock.mono());
        is_done
    }

    /// Notes whether the attempt to empty the write-ahead log has failed.
    fn note_held(&mut self, now: Mono) {
        self.held_since = if self.wal.is_empty() { None } else { self.held_since.or(Some(now)) };
    }

    /// Gives up the oldest of what takes more room than its budget. An error here is no worse than not having run yet.
    pub(super) fn make_room(&mut self, tables: &mut Tables) {
        for _ in 0..GIVE_UP_STEPS {
            let now = self.clock.mono();
            if now < self.no_excess_until {
                return;
            }
            let Some(excess) = Excess::of(tables, self.stats.bytes(), self.is_disk_short) else { return };
            match tables.transaction(|tables| self.expiry.give_up(tables, excess, EXPIRE_AT_ONCE)) {
                Ok(0) => {
                    self.no_excess_until = now + NO_EXCESS_PAUSE;
                    return;
                }
                Ok(_) => {
                    self.wal.set_used();
                    self.log_given_up(excess, now);
                }
                Err(e) => return drop(self.report(e)),
            }
            self.measure_or_report(tables);
        }
    }

    fn log_given_up(&mut self, excess: Excess, now: Mono) {
        let is_due = self.give_up_logged.is_none_or(|at| now >= at + GIVE_UP_LOGGED);
        if excess == Excess::Ids && is_due {
            self.give_up_logged = Some(now);
            tracing::warn!(
                "the oldest ids of delivered events are forgotten before outbox.keep_delivered: they take as much room as \
                 outbox.max_bytes; raise it to remember them longer"
            );
        }
    }

    fn run_steps(&mut self, tables: &mut Tables, is_idle: bool) -> Result<(), OutboxError> {
        let now = self.clock.moment();
        if is_idle && !tables.is_compact() {
            tables.begin_compaction();
        }
        self.follow_clock(tables.retention.longest());
        if now.mono.saturating_sub(self.expired_at) >= EXPIRE_INTERVAL {
            let time = self.retention_clock.now();
            let expired =
                tables.transaction(|tables| self.expiry.step(tables, time, now.wall, EXPIRE_AT_ONCE))?;
            let before = time.minus(tables.retention.config.keep_delivered);
            let acts =
                tables.transaction(|tables| Acts(&tables.store.conn).expire(before, EXPIRE_AT_ONCE))?;
            if !expired.has_more && acts == 0 {
                self.expired_at = now.mono;
            }
            if expired.deleted > 0 || acts > 0 {
                self.wal.set_used();
            }
        }
        if is_idle && tables.store.size()?.free_pages > SHRINK_PAGES {
            tables.store.shrink(self.shrink_pages(tables))?;
            self.wal.set_used();
        }
        self.store_clock(tables)
    }

    /// Whether the disk has little room, as of the last run.
    pub(super) fn is_tight(&self) -> bool {
        self.wal.free() < TIGHT
    }

    /// The free pages to be given back in one step. Pages that move for that take as much room in the log: no more than there is
    /// on a disk that is nearly full.
    fn shrink_pages(&self, tables: &Tables) -> u64 {
        const PAGE: u64 = PAGE_SIZE as u64;
        disk::space_of(&tables.store.path)
            .map_or(SHRINK_PAGES, |disk| (disk.free / (4 * PAGE)).clamp(1, SHRINK_PAGES))
    }

    /// Notices a step of the wall clock.
    fn follow_clock(&mut self, longest: Duration) {
        let step = self.retention_clock.advance(self.clock.now(), self.clock.passed(), longest);
        log_step(step.as_ref());
        self.clock_step = step.or_else(|| self.clock_step.take());
        self.stats.retention_time.store(self.retention_clock.now().0, Relaxed);
    }

    /// Stores a step of the wall clock at once, and the state of the clock of retention now and then.
    fn store_clock(&mut self, tables: &mut Tables) -> Result<(), OutboxError> {
        let Some(state) = self.retention_clock.unsaved() else { return Ok(()) };
        tables.transaction(|tables| {
            meta::set_retention_clock(&tables.store.conn, state)?;
            self.clock_step
                .iter()
                .try_for_each(|step| meta::set_clock_step(&tables.store.conn, &step.incident))
        })?;
        self.retention_clock.is_saved();
        self.clock_step = None;
        self.wal.set_used();
        Ok(())
    }

    /// Stores the state of the clock of retention at the end; without room, the last one stays.
    pub(super) fn save_clock(&mut self, tables: &mut Tables) {
        let state = self.retention_clock.state();
        if let Err(e) = tables.transaction(|tables| meta::set_retention_clock(&tables.store.conn, state)) {
            self.report(e);
        }
    }

    /// Checks the files and their disk after a commit. SQLite reports success also when its file has been removed or
    /// replaced, and the disk also when it has just failed.
    ///
    /// # Errors
    /// [`OutboxError::FilesReplaced`] and [`OutboxError::Io`]: nothing more may be committed.
    pub(super) fn after_commit(&mut self, tables: &Tables, now: Timestamp) -> Result<(), OutboxError> {
        self.wal.confirm_commit()?;
        self.wal.set_used();
        publish(&self.stats, &tables.store, &self.reserve, now)?;
        self.keep_lock()
    }

    /// Keeps the lock where others look for it.
    ///
    /// # Errors
    /// [`OutboxError::Held`]: another agent has it now; nothing more may be committed.
    fn keep_lock(&mut self) -> Result<(), OutboxError> {
        match self.wal.retake_lock() {
            Ok(is_retaken) => self.is_lock_retaken |= is_retaken,
            Err(held @ OutboxError::Held { .. }) => return Err(held),
            // Nobody else has it either, and the next commit tries again.
            Err(e) => tracing::debug!("{e}"),
        }
        Ok(())
    }

    /// Stores the incident that the lock's file was gone.
    fn report_lock(&mut self, tables: &mut Tables) -> Result<(), OutboxError> {
        if !self.is_lock_retaken {
            return Ok(());
        }
        let text = "its lock file was removed or replaced while it was open; the lock was taken again, and no other agent \
                    has had it";
        let incident = Incident { at: self.clock.now(), text: text.to_owned(), files: None };
        tables.transaction(|tables| meta::set_incident(&tables.store.conn, &incident))?;
        tracing::warn!("{}: {text}", tables.store.path.display());
        self.is_lock_retaken = false;
        self.wal.set_used();
        Ok(())
    }

    /// Keeps the write-ahead log short amid the work.
    pub(super) fn shorten_wal(&mut self, tables: &Tables) {
        match self.wal.copy_if_long(&tables.store) {
            Ok(true) => {
                self.empty_wal(&tables.store, Duration::ZERO);
                self.measure_or_report(tables);
            }
            Ok(false) => {}
            Err(e) => drop(self.report(e)),
        }
    }

    /// Empties the write-ahead log, unless a reader still needs it after that time.
    pub(super) fn empty_wal(&mut self, db: &Store, timeout: Duration) {
        if let Err(e) = self.wal.empty(db, timeout) {
            self.report(e);
        }
    }

    /// Empties the write-ahead log. Returns whether nothing is left in the files of what was erased before, and which other
    /// processes prevent that: the agent's own readers let go of the log within the time-out.
    ///
    /// # Errors
    /// SQLite's.
    pub(super) fn overwrite_log(&mut self, tables: &Tables) -> Result<(bool, Vec<i32>), Arc<OutboxError>> {
        self.wal.empty(&tables.store, READER_TIMEOUT).map_err(|e| self.report(e))?;
        let is_done = self.wal.is_empty() && !tables.store.has_remnants();
        let holders = if is_done { Vec::new() } else { tables.store.files.log_holders() };
        Ok((is_done, holders))
    }

    /// Empties the write-ahead log and ends the session; an error is only logged.
    pub(super) fn close(&mut self, db: &Store, timeout: Duration) {
        if let Err(e) = self.wal.close(db, self.clock.now(), timeout) {
            tracing::warn!("{e}");
        }
    }

    pub(super) fn release_reserve(&mut self, db: &Store) {
        self.reserve.release();
        self.empty_wal(db, READER_TIMEOUT);
    }

    /// Logs an error. One that waiting does not fix ends the writer; the next start finds out what the disk holds.
    pub(super) fn report(&mut self, error: OutboxError) -> Arc<OutboxError> {
        let error = Arc::new(error);
        tracing::debug!("{error}");
        if !error.is_transient() {
            self.alarm.raise(error.clone());
        }
        error
    }

    fn measure_or_report(&mut self, tables: &Tables) {
        let now = self.clock.now();
        if let Err(e) = publish(&self.stats, &tables.store, &self.reserve, now) {
            self.report(e);
        }
    }
}

/// Checks the files of the database and publishes their sizes.
fn publish(
    stats: &OutboxStats,
    db: &Store,
    reserve: &ReserveFile,
    now: Timestamp,
) -> Result<(), OutboxError> {
    stats.missing_reserve.store(reserve.missing(), Relaxed);
    stats.wal_bytes.store(check_files(db, now)?, Relaxed);
    stats.bytes.store(db.size()?.bytes, Relaxed);
    Ok(())
}

fn log_step(step: Option<&ClockStep>) {
    if let Some(ClockStep { seconds, incident }) = step {
        tracing::warn!(notice = "clock_step", seconds, "{}", incident.text);
    }
}

/// When the newest event came.
fn newest_time(db: &Store) -> Result<Option<Timestamp>, OutboxError> {
    const NEWEST: &str = "SELECT received_at FROM events ORDER BY seq DESC LIMIT 1";
    let newest = db.conn.query_row(NEWEST, [], |r| r.get::<_, i64>(0)).optional();
    Ok(newest.map_err(|e| db.error("read its newest event", e))?.map(Timestamp))
}
