//! The thread that owns the connection that writes.
//!
//! One thread, not a pool and not a lock that callers share: it takes all commands that have queued up during the last
//! fsync, commits once, then answers everybody. So a call that has returned `Ok` is durable, and the load decides how
//! large a commit is.

use super::alarm::Alarm;
use super::append::Append;
use super::appended::Appended;
use super::attempts::add_attempts;
use super::commands::Applied;
use super::destinations::{self, DestinationFacts};
use super::lock::Lock;
use super::maintenance::{Maintenance, READER_TIMEOUT};

use super::reserve::ReserveFile;
use super::spool_progress::FileProgress;
use super::suppression::Suppression;
use super::tables::Tables;
use super::transitions::Transitions;
use super::writer::{Settlement, Writer, WriterCommand};
use super::{OutboxError, OutboxStats};
use crate::clock::{Clock, Timestamp};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The interval of maintenance.
const TICK: Duration = Duration::from_secs(1);
/// The interval of maintenance after it had nothing to do, so that an idle agent hardly wakes. Missing files must be noticed
/// within ten seconds.
const IDLE_INTERVAL: Duration = Duration::from_secs(8);
/// Time for which a stop compacts, and then waits for readers before it leaves the write-ahead log as it is. Nothing is
/// lost without either, and the whole stop may take ten seconds.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Rows that each commit compacts at least; few, so that it takes no longer for them.
const COMPACT_IN_COMMIT: usize = 16;
/// Rows that are compacted at once when there is nothing else to do.
const COMPACT_WHEN_IDLE: usize = 1_000;
/// The delay of a settlement for which no caller waits: longer than until the next events are stored where they
/// come all the time, and shorter than a request takes to most receivers, which a crash repeats as well.
const COMMIT_DELAY: Duration = Duration::from_millis(8);
/// Commands in one commit: enough to hide the cost of a commit, few enough to answer the first one soon.
const MAX_COMMANDS: usize = 1_024;

/// Starts the thread. It ends on [`Writer::stop`], or with the last of the handles.
///
/// # Errors
/// The system's and SQLite's; then nothing runs.
pub(super) fn start(
    tables: Tables,
    lock: Arc<Lock>,
    reserve: ReserveFile,
    clock: Clock,
) -> Result<(Writer, JoinHandle<()>), OutboxError> {
    let (commands, inbox) = mpsc::channel();
    let alarm = Alarm::new();
    let maintenance = Maintenance::start(&tables.store, lock, reserve, clock.clone(), alarm.clone())?;
    let facts =
        DestinationFacts::load(&tables.store.conn).map_err(|e| tables.store.error("read its state", e))?;
    let stats = maintenance.stats();
    stats.set_counted(&tables.bytes);
    let suppression = Arc::new(Mutex::new(tables.suppression.clone()));
    let writer = Writer::new(commands, stats.clone(), suppression.clone(), alarm.clone(), facts);
    let thread = WriterThread {
        tables,
        maintenance,
        inbox,
        clock,
        stats,
        suppression,
        alarm,
        is_idle: false,
        idle_step: COMPACT_WHEN_IDLE,
        maintained: Instant::now(),
        waiting: Vec::new(),
        due: None,
    };
    let thread =
        std::thread::Builder::new().name("outbox".into()).spawn(move || thread.run()).map_err(|e| {
            OutboxError::Io { path: PathBuf::new(), operation: "start the writer", text: e.to_string() }
        })?;
    Ok((writer, thread))
}

/// The results of the commands in a commit, for those that have one, in their order.
type CommitResult = Result<Vec<Outcome>, Arc<OutboxError>>;

enum Outcome {
    Appended(Appended),
    Applied(Applied),
}

/// The outcome of one round of the loop.
enum Round {
    /// A command was executed, or compaction went on.
    Busy,
    /// Nothing came for the whole interval.
    Idle,
    Stop,
}

struct WriterThread {
    tables: Tables,
    maintenance: Maintenance,
    inbox: Receiver<WriterCommand>,
    clock: Clock,
    stats: Arc<OutboxStats>,
    /// The suppressed persons as of the last commit, for those who append.
    suppression: Arc<Mutex<Suppression>>,
    alarm: Alarm,
    /// Whether the last maintenance left nothing to do, and no command has come since.
    is_idle: bool,
    /// Rows that are compacted at once when there is nothing else to do; fewer than [`COMPACT_WHEN_IDLE`] on a full disk.
    idle_step: usize,
    /// When maintenance last ran.
    maintained: Instant,
    /// Commands that wait for the next commit.
    waiting: Vec<WriterCommand>,
    /// When the next commit is due, if commands wait for one.
    due: Option<Instant>,
}

impl WriterThread {
    fn run(mut self) {
        loop {
            let round = self.round();
            self.stats.rounds.fetch_add(1, Relaxed);
            let is_stop = matches!(round, Round::Stop);
            let is_due = matches!(round, Round::Idle) || self.maintained.elapsed() >= TICK;
            // After files were replaced, another check would save their content once more, over the first copy.
            if is_due && !is_stop && !self.alarm.is_raised() {
                self.maintained = Instant::now();
                let is_done = self.maintenance.run(&mut self.tables, matches!(round, Round::Idle));
                self.is_idle = matches!(round, Round::Idle) && is_done && self.waiting.is_empty();
            }
            if !is_stop && !self.alarm.is_raised() {
                self.maintenance.make_room(&mut self.tables);
            }
            if self.alarm.is_raised() {
                // The callers learn it from the closed channel; the log stays as it is, for the next start.
                return;
            }
            if is_stop {
                break;
            }
        }
        self.compact_before_end();
        self.maintenance.save_clock(&mut self.tables);
        self.maintenance.close(&self.tables.store, STOP_TIMEOUT);
    }

    fn round(&mut self) -> Round {
        let is_compacting = self.tables.is_compacting();
        let timeout = match (is_compacting, self.due, self.is_idle) {
            (true, ..) => Duration::ZERO,
            (_, Some(due), _) => due.saturating_duration_since(Instant::now()),
            (.., true) => IDLE_INTERVAL,
            _ => TICK,
        };
        match self.inbox.recv_timeout(timeout) {
            Ok(WriterCommand::Ping) => Round::Busy,
            Ok(first) => self.take_commands(first),
            Err(RecvTimeoutError::Timeout) if is_compacting => {
                self.continue_compaction();
                Round::Busy
            }
            Err(RecvTimeoutError::Timeout) if self.due.is_some() => {
                self.commit_waiting(COMPACT_IN_COMMIT);
                Round::Busy
            }
            Err(RecvTimeoutError::Timeout) => Round::Idle,
            Err(RecvTimeoutError::Disconnected) => {
                self.commit_waiting(COMPACT_IN_COMMIT);
                Round::Stop
            }
        }
    }

    /// Compacts for a moment, so that the next start has less to read.
    fn compact_before_end(&mut self) {
        let began = Instant::now();
        self.tables.begin_compaction();
        let mut done = Ok(());
        while done.is_ok() && self.tables.is_compacting() && began.elapsed() < STOP_TIMEOUT {
            done = self.commit(&[], Some(COMPACT_WHEN_IDLE)).map(drop);
        }
    }

    /// Commits all commands that have come, unless none of them is worth a commit yet.
    fn take_commands(&mut self, first: WriterCommand) -> Round {
        self.waiting.push(first);
        self.waiting.extend(self.inbox.try_iter().take(MAX_COMMANDS));
        if self.waiting.len() < MAX_COMMANDS && self.waiting.iter().all(WriterCommand::may_wait) {
            if self.waiting.iter().any(|c| matches!(c, WriterCommand::Settle { .. })) {
                self.due.get_or_insert_with(|| Instant::now() + COMMIT_DELAY);
            }
            return Round::Busy;
        }
        let is_stop = self.waiting.iter().any(|c| matches!(c, WriterCommand::Stop));
        self.commit_waiting(COMPACT_IN_COMMIT);
        if is_stop { Round::Stop } else { Round::Busy }
    }

    /// Commits the commands that wait and compacts at least `rows` rows; then answers. Returns whether there was room for
    /// that.
    fn commit_waiting(&mut self, rows: usize) -> bool {
        self.due = None;
        let commands = std::mem::take(&mut self.waiting);
        let committed = self.commit(&commands, Some(rows));
        let has_room = !committed.as_ref().is_err_and(|e| e.is_full());
        match committed {
            Err(full) if full.is_full() => {
                // Events are safe in the spool; deliveries must be recorded, or they are sent again.
                let is_append = |c: &WriterCommand| matches!(c, WriterCommand::Append { .. });
                let (appends, others): (Vec<_>, Vec<_>) = commands.into_iter().partition(is_append);
                self.answer(appends, Err(full));
                self.maintenance.empty_wal(&self.tables.store, READER_TIMEOUT);
                // Where none can be gained for one, there is none for the next; a smaller one may fit as it is.
                let mut may_gain_room = true;
                for command in others {
                    let alone = std::slice::from_ref(&command);
                    let result = if may_gain_room {
                        self.commit_on_full_disk(alone)
                    } else {
                        self.commit(alone, None)
                    };
                    may_gain_room = !result.as_ref().is_err_and(|e| e.is_full());
                    self.answer(vec![command], result);
                }
            }
            result => self.answer(commands, result),
        }
        if !self.alarm.is_raised() {
            self.maintenance.shorten_wal(&self.tables);
        }
        has_room
    }

    /// Commits with what room can be gained: that of the write-ahead log, then that of the reserve file.
    fn commit_on_full_disk(&mut self, commands: &[WriterCommand]) -> CommitResult {
        let empty_wal = |thread: &mut WriterThread| {
            thread.maintenance.empty_wal(&thread.tables.store, READER_TIMEOUT);
        };
        let release_reserve =
            |thread: &mut WriterThread| thread.maintenance.release_reserve(&thread.tables.store);
        // Compaction takes room as well, so there is none.
        let mut result = self.commit(commands, None);
        for gain_room in [empty_wal as fn(&mut WriterThread), release_reserve] {
            if !result.as_ref().is_err_and(|e| e.is_full()) {
                break;
            }
            gain_room(self);
            result = self.commit(commands, None);
        }
        result
    }

    /// Commits all commands or none, and nothing more after an error that ends the writer. `compact`: the rows to be
    /// compacted at least.
    fn commit(&mut self, commands: &[WriterCommand], compact: Option<usize>) -> CommitResult {
        if let Some(error) = self.alarm.error() {
            return Err(error);
        }
        let now = self.clock.now();
        self.is_idle = false;
        let is_tight = self.maintenance.is_tight();
        let committed = self.tables.transaction(|tables| {
            if let Some(rows) = compact {
                // Before the appends: they use the pages again that this frees, which are then not written for being zeroed.
                tables.compact_some(rows, is_tight, now)?;
            }
            let mut outcomes = Vec::new();
            for command in commands {
                match command {
                    WriterCommand::Append { suppression, .. }
                        if *suppression != tables.suppression.version() =>
                    {
                        outcomes.push(Outcome::Appended(Appended::Outdated));
                    }
                    WriterCommand::Append { events, progress, .. } => {
                        outcomes.push(Outcome::Appended(Append::run(tables, events, progress, now)?));
                    }
                    WriterCommand::Change { change, .. } => {
                        outcomes.push(Outcome::Applied(change.apply(tables, now)?));
                    }
                    WriterCommand::Settle { settlement, .. } => settle(tables, settlement, now)?,
                    WriterCommand::Forget(files) => FileProgress::forget(&tables.store.conn, files)?,
                    WriterCommand::RetryAfterDeadline(at) => {
                        destinations::set_retry_after(&tables.store.conn, *at)?;
                    }
                    WriterCommand::AcceptedBy(receiver) => {
                        destinations::set_accepted_by(&tables.store.conn, *receiver)?;
                    }
                    WriterCommand::Configure(_)
                    | WriterCommand::EmptyLog(_)
                    | WriterCommand::Ping
                    | WriterCommand::Stop => {}
                }
            }
            Ok(outcomes)
        });
        let checked = committed.and_then(|outcomes| {
            self.stats.set_counted(&self.tables.bytes);
            self.publish_suppression();
            self.maintenance.after_commit(&self.tables, now)?;
            self.tables.failures.committed(self.clock.mono());
            Ok(outcomes)
        });
        checked.map_err(|e| self.maintenance.report(e))
    }

    fn publish_suppression(&self) {
        let mut published = self.suppression.lock().unwrap_or_else(PoisonError::into_inner);
        if published.version() != self.tables.suppression.version() {
            published.clone_from(&self.tables.suppression);
        }
    }

    fn answer(&mut self, commands: Vec<WriterCommand>, result: CommitResult) {
        let (outcomes, error) = match result {
            Ok(outcomes) => (outcomes, None),
            Err(e) => (Vec::new(), Some(e)),
        };
        let mut outcomes = outcomes.into_iter();
        let closed = || Arc::new(OutboxError::Closed);
        let done = || error.as_ref().map_or(Ok(()), |e| Err(e.clone()));
        for command in commands {
            // A caller that has gone away does not wait for the reply.
            match command {
                WriterCommand::Append { reply, .. } => {
                    let result = done().and_then(|()| match outcomes.next() {
                        Some(Outcome::Appended(appended)) => Ok(appended),
                        _ => Err(closed()),
                    });
                    if let Ok(Appended::Stored { stored, .. }) = &result {
                        self.stats.ingested.fetch_add(*stored, Relaxed);
                    }
                    let _ = reply.send(result);
                }
                WriterCommand::Change { reply, .. } => {
                    let result = done().and_then(|()| match outcomes.next() {
                        Some(Outcome::Applied(applied)) => Ok(applied),
                        _ => Err(closed()),
                    });
                    let _ = reply.send(result);
                }
                WriterCommand::EmptyLog(reply) => {
                    let _ = reply.send(done().and_then(|()| self.maintenance.overwrite_log(&self.tables)));
                }
                WriterCommand::Settle { settlement, reply } => {
                    if error.is_none() {
                        self.stats.count_settled(&settlement.rows);
                    }
                    let _ = reply.send(done());
                }
                WriterCommand::Configure(config) => self.tables.retention.config = config,
                WriterCommand::Forget(_)
                | WriterCommand::RetryAfterDeadline(_)
                | WriterCommand::AcceptedBy(_)
                | WriterCommand::Ping
                | WriterCommand::Stop => {}
            }
        }
    }

    /// Compacts while there is nothing else to do, and empties the write-ahead log when that is done.
    fn continue_compaction(&mut self) {
        // An error ends the compaction, or the writer. What is erased takes room in the log first: on a full disk, a step is
        // made smaller until it fits, or nothing would ever become free.
        self.idle_step = match self.commit_waiting(self.idle_step) {
            true => (2 * self.idle_step).min(COMPACT_WHEN_IDLE),
            false => (self.idle_step / 4).max(1),
        };
        if !self.tables.is_compacting() && !self.alarm.is_raised() {
            self.maintenance.empty_wal(&self.tables.store, Duration::ZERO);
        }
    }
}

fn settle(tables: &mut Tables, settlement: &Settlement, now: Timestamp) -> Result<(), rusqlite::Error> {
    if let Some(step) = &settlement.renewal {
        tables.renew_keys(step)?;
    }
    for (items, reason) in &settlement.attempts {
        add_attempts(tables, items, reason, now)?;
    }
    let mut transitions = Transitions { tables, now, status: settlement.status };
    transitions.settle(&settlement.rows, settlement.are_alone)
}
