//! The work of the writer's thread between commits: it keeps the write-ahead log short, deletes rows whose time is up,
//! gives free space back, notices what other processes have done, and publishes the figures.

use super::counters::Counts;
use super::database::Database;
use super::expiry::Expiry;
use super::lock::Lock;
use super::meta::{self, RETRY_REQUESTS};
use super::replaced_files::check_files;
use super::reserve::ReserveFile;
use super::retention_clock::{ClockStep, RetentionClock};
use super::store::Store;
use super::wal_keeper::WalKeeper;
use super::writer::Alarm;
use super::{OutboxError, OutboxStats};
use crate::clock::{Clock, Mono, Timestamp};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::watch;

/// Rows deleted in one transaction, so that an append never waits long behind them.
const EXPIRE_AT_ONCE: usize = 2_000;
/// The share of `outbox.max_bytes` from which on the oldest history is given up, down to this share of its own. The rest of it
/// goes only where nothing else is left: the newest ids are those that come again.
const NEARLY_FULL: f64 = 0.9;
const HISTORY_SHARE: u64 = 10;
/// The pause after a search that has found no history: what was delivered a moment ago has yet to be moved.
const NO_HISTORY_PAUSE: Duration = Duration::from_secs(5);
/// The least time between two lines of the log about ids that are forgotten early.
const GIVE_UP_LOGGED: Duration = Duration::from_secs(86_400);
/// Transactions of that kind after one commit: together they gain about as much as an append takes.
const GIVE_UP_STEPS: usize = 5;
/// The interval of the search for rows whose time is up, once none are left; the keep_… settings are in days.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(30);
/// Free pages given back in one step (4 MiB), and the least that is worth a step.
const SHRINK_PAGES: u64 = 1_024;
/// Time for which emptying the log on a full disk waits for the snapshot that the sender reads at that moment.
pub(super) const READER_TIMEOUT: Duration = Duration::from_millis(50);

/// The upkeep of an open outbox.
pub(super) struct Maintenance {
    wal: WalKeeper,
    reserve: ReserveFile,
    clock: Clock,
    stats: Arc<OutboxStats>,
    alarm: Alarm,
    retry_requests: watch::Sender<i64>,
    /// SQLite's data version when commits of other processes were last checked for.
    data_version: i64,
    expiry: Expiry,
    retention_clock: RetentionClock,
    /// A step of the wall clock that is not stored yet.
    clock_step: Option<ClockStep>,
    /// When the last search for rows whose time is up found no more.
    expired_at: Mono,
    /// History is not searched for before.
    no_history_until: Mono,
    /// When the log last told that history is given up.
    give_up_logged: Option<Mono>,
}

impl Maintenance {
    /// Checks the files of the database and publishes the first figures.
    ///
    /// # Errors
    /// The system's and SQLite's.
    pub(super) fn start(
        db: &Database,
        lock: Arc<Lock>,
        reserve: ReserveFile,
        clock: Clock,
        alarm: Alarm,
    ) -> Result<Maintenance, OutboxError> {
        let stats = Arc::new(OutboxStats::default());
        publish(&stats, db, &reserve, u64::MAX, clock.now())?;
        let wal = WalKeeper::new(db, lock, stats.clone(), stats.wal_bytes());
        let saved = meta::retention_clock(&db.conn).map_err(|e| db.error("read its clock", e))?;
        let newest = newest_time(db)?;
        let (retention_clock, clock_step) =
            RetentionClock::resume(saved, newest, clock.now(), clock.passed());
        log_step(clock_step.as_ref());
        stats.retention_time.store(retention_clock.now().0, Relaxed);
        let retry_requests = watch::Sender::new(read_retry_requests(db)?);
        let data_version = read_data_version(db)?;
        Ok(Maintenance {
            wal,
            reserve,
            expiry: Expiry::default(),
            retention_clock,
            clock_step,
            expired_at: clock.mono(),
            no_history_until: Mono::ZERO,
            give_up_logged: None,
            clock,
            stats,
            alarm,
            retry_requests,
            data_version,
        })
    }

    pub(super) fn stats(&self) -> Arc<OutboxStats> {
        self.stats.clone()
    }

    pub(super) fn retry_requests(&self) -> watch::Receiver<i64> {
        self.retry_requests.subscribe()
    }

    /// Runs once a second, or seldom while there is nothing to do. An error here is no worse than not having run yet.
    /// Returns whether nothing is left to do.
    pub(super) fn run(&mut self, store: &mut Store, is_idle: bool) -> bool {
        self.wal.measure_disk(&store.db);
        if let Err(e) = self.run_steps(store, is_idle) {
            self.report(e);
        }
        if is_idle && !self.wal.is_empty() && !store.is_compacting() {
            self.empty_wal(&store.db, Duration::ZERO);
        }
        self.reserve.create();
        let is_done = self.wal.is_empty() && !store.is_compacting() && self.reserve.missing() == 0;
        self.measure_or_report(store);
        self.wal.report_readers(&store.db);
        store.failures.committed(self.clock.mono());
        is_done
    }

    /// Gives up the oldest history while the outbox is nearly full. An error here is no worse than not having run yet.
    pub(super) fn make_room(&mut self, store: &mut Store) {
        for _ in 0..GIVE_UP_STEPS {
            let now = self.clock.mono();
            if self.stats.history_bytes() == 0 || now < self.no_history_until {
                return;
            }
            match store.transaction(|store| self.expiry.give_up_oldest(store, EXPIRE_AT_ONCE)) {
                Ok(0) => {
                    self.no_history_until = now + NO_HISTORY_PAUSE;
                    return;
                }
                Ok(_) => {
                    self.wal.set_empty(false);
                    self.log_given_up(now);
                }
                Err(e) => return drop(self.report(e)),
            }
            self.measure_or_report(store);
        }
    }

    fn log_given_up(&mut self, now: Mono) {
        if self.give_up_logged.is_none_or(|at| now >= at + GIVE_UP_LOGGED) {
            self.give_up_logged = Some(now);
            tracing::warn!(
                "the outbox is nearly full: the oldest ids of delivered events, and the oldest skipped events, are forgotten \
                 before their time; raise outbox.max_bytes to keep them longer"
            );
        }
    }

    fn run_steps(&mut self, store: &mut Store, is_idle: bool) -> Result<(), OutboxError> {
        let now = self.clock.moment();
        let version = read_data_version(&store.db)?;
        if version != self.data_version {
            self.data_version = version;
            self.wal.set_empty(false);
            let requests = read_retry_requests(&store.db)?;
            self.retry_requests.send_if_modified(|known| std::mem::replace(known, requests) != requests);
        }
        if is_idle && !store.is_compact() {
            store.transaction(Store::begin_compaction)?;
        }
        self.follow_clock(store.retention.longest());
        if now.mono.saturating_sub(self.expired_at) >= EXPIRE_INTERVAL {
            let time = self.retention_clock.now();
            let expired =
                store.transaction(|store| self.expiry.step(store, time, now.wall, EXPIRE_AT_ONCE))?;
            if !expired.has_more {
                self.expired_at = now.mono;
            }
            if expired.deleted > 0 {
                self.wal.set_empty(false);
            }
        }
        if is_idle && store.db.size()?.free_pages > SHRINK_PAGES {
            store.db.shrink(SHRINK_PAGES)?;
            self.wal.set_empty(false);
        }
        self.store_clock(store)
    }

    /// Notices a step of the wall clock.
    fn follow_clock(&mut self, longest: Duration) {
        let step = self.retention_clock.advance(self.clock.now(), self.clock.passed(), longest);
        log_step(step.as_ref());
        self.clock_step = step.or_else(|| self.clock_step.take());
        self.stats.retention_time.store(self.retention_clock.now().0, Relaxed);
    }

    /// Stores a step of the wall clock at once, and the state of the clock of retention now and then.
    fn store_clock(&mut self, store: &mut Store) -> Result<(), OutboxError> {
        let Some(state) = self.retention_clock.unsaved() else { return Ok(()) };
        store.transaction(|store| {
            meta::set_retention_clock(&store.db.conn, state)?;
            self.clock_step.iter().try_for_each(|step| meta::set_clock_step(&store.db.conn, &step.incident))
        })?;
        self.retention_clock.is_saved();
        self.clock_step = None;
        self.wal.set_empty(false);
        Ok(())
    }

    /// Stores the state of the clock of retention at the end; without room, the last one stays.
    pub(super) fn save_clock(&mut self, store: &mut Store) {
        let state = self.retention_clock.state();
        if let Err(e) = store.transaction(|store| meta::set_retention_clock(&store.db.conn, state)) {
            self.report(e);
        }
    }

    /// Checks the files and their disk after a commit. SQLite reports success also when its file has been removed or
    /// replaced, and the disk also when it has just failed.
    ///
    /// # Errors
    /// [`OutboxError::FilesReplaced`] and [`OutboxError::Io`]: nothing more may be committed.
    pub(super) fn after_commit(&mut self, store: &Store, now: Timestamp) -> Result<(), OutboxError> {
        self.wal.confirm_commit()?;
        let max_bytes = store.retention.config.max_bytes;
        let measured = publish(&self.stats, &store.db, &self.reserve, max_bytes, now);
        if measured.is_err() || self.stats.wal_bytes() > 0 {
            self.wal.set_empty(false);
        }
        measured
    }

    /// Keeps the write-ahead log short amid the work.
    pub(super) fn shorten_wal(&mut self, store: &Store) {
        match self.wal.copy_if_long(&store.db) {
            Ok(true) => {
                self.empty_wal(&store.db, Duration::ZERO);
                self.measure_or_report(store);
            }
            Ok(false) => {}
            Err(e) => drop(self.report(e)),
        }
    }

    /// Empties the write-ahead log, unless a reader still needs it after that time.
    pub(super) fn empty_wal(&mut self, db: &Database, timeout: Duration) {
        if let Err(e) = self.wal.empty(db, timeout) {
            self.report(e);
        }
    }

    /// Empties the write-ahead log at the end; an error is only logged.
    pub(super) fn close(&mut self, db: &Database, timeout: Duration) {
        if let Err(e) = self.wal.empty(db, timeout) {
            tracing::warn!("{e}");
        }
    }

    pub(super) fn release_reserve(&mut self, db: &Database) {
        self.reserve.release();
        self.empty_wal(db, READER_TIMEOUT);
    }

    /// Logs an error. One that waiting does not fix ends the writer; the next start finds out what the disk holds.
    pub(super) fn report(&mut self, error: OutboxError) -> Arc<OutboxError> {
        let error = Arc::new(error);
        tracing::debug!("{error}");
        if !error.is_transient() {
            if let OutboxError::FilesReplaced { .. } = *error {
                // The content of the log has been saved.
                self.wal.set_empty(true);
            }
            self.alarm.raise(error.clone());
        }
        error
    }

    fn measure_or_report(&mut self, store: &Store) {
        let (max_bytes, now) = (store.retention.config.max_bytes, self.clock.now());
        if let Err(e) = publish(&self.stats, &store.db, &self.reserve, max_bytes, now) {
            self.report(e);
        }
    }
}

/// Checks the files of the database and publishes their sizes.
fn publish(
    stats: &OutboxStats,
    db: &Database,
    reserve: &ReserveFile,
    max_bytes: u64,
    now: Timestamp,
) -> Result<(), OutboxError> {
    stats.missing_reserve.store(reserve.missing(), Relaxed);
    stats.wal_bytes.store(check_files(db, now)?, Relaxed);
    let bytes = db.size()?.bytes;
    // Looked at only where it matters.
    let history = match bytes as f64 >= max_bytes as f64 * NEARLY_FULL {
        true => Counts::read(&db.conn).map_err(|e| db.error("read the counters", e))?.history_bytes(),
        false => 0,
    };
    let is_short = bytes >= max_bytes || history > max_bytes / HISTORY_SHARE;
    stats.history_bytes.store(if is_short { history } else { 0 }, Relaxed);
    stats.bytes.store(bytes, Relaxed);
    Ok(())
}

fn log_step(step: Option<&ClockStep>) {
    if let Some(ClockStep { seconds, incident }) = step {
        tracing::warn!(notice = "clock_step", seconds, "{}", incident.text);
    }
}

/// When the newest event came.
fn newest_time(db: &Database) -> Result<Option<Timestamp>, OutboxError> {
    const NEWEST: &str = "SELECT max(received_at) FROM (
        SELECT * FROM (SELECT received_at FROM pending ORDER BY seq DESC LIMIT 1)
        UNION ALL SELECT * FROM (SELECT received_at FROM settled ORDER BY seq DESC LIMIT 1))";
    let newest = db.conn.query_row(NEWEST, [], |r| r.get::<_, Option<i64>>(0));
    Ok(newest.map_err(|e| db.error("read its newest event", e))?.map(Timestamp))
}

fn read_retry_requests(db: &Database) -> Result<i64, OutboxError> {
    let requests = meta::get(&db.conn, RETRY_REQUESTS);
    Ok(requests.map_err(|e| db.error("read its state", e))?.unwrap_or(0))
}

fn read_data_version(db: &Database) -> Result<i64, OutboxError> {
    db.data_version().map_err(|e| db.error("look for changes", e))
}
