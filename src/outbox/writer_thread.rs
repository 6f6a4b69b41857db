//! The thread that owns the connection that writes: one commit for all that waits, and the house kept between.

mod maintenance;

use super::OutboxError;
use super::append::Appended;
use super::lock::Lock;
use super::reserve::ReserveFile;
use super::stats::OutboxStats;
use super::store::{self, RETRY_AFTER_DEADLINE, Store};
use super::wal_readers::WalReaders;
use super::writer::{Alarm, Command, Writer};
use crate::clock::{Clock, Mono, Timestamp};
use maintenance::{READER_TIMEOUT, free_beside};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often the writer looks for what the command line has committed, for rows whose time is up, and for
/// space to give back.
const TICK: Duration = Duration::from_secs(1);
/// The same when there was nothing left to do at the last look: an idle agent hardly wakes. Whoever sees a commit of
/// another process says so; that the files are gone is to be noticed within ten seconds.
const IDLE_INTERVAL: Duration = Duration::from_secs(8);
/// How long a stop moves rows, and then waits for readers before it leaves the write-ahead log as it is: nothing is lost
/// with either, and the whole stop may take ten seconds.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Rows that are moved along with a commit, so that it takes no longer for it, and when there is nothing else to do.
const MOVED_AT_LEAST: usize = 16;
const MOVED_WHEN_IDLE: usize = 1_000;
/// How long a settling that keeps nothing up waits for others: for longer than it takes until the next events are stored
/// where some come all the time, and less than a request is on its way to most receivers, which a crash repeats as well.
const COMMIT_DELAY: Duration = Duration::from_millis(8);
/// Commands in one commit: enough to hide the cost of a commit, few enough to answer the first one soon.
const MAX_COMMANDS: usize = 1_024;

/// Starts the thread. It ends when it is told to, or with the last of the handles.
///
/// # Errors
/// The system's and SQLite's; then nothing runs.
pub(super) fn start(
    store: Store,
    lock: Arc<Lock>,
    reserve: ReserveFile,
    clock: Clock,
) -> Result<(Writer, JoinHandle<()>), OutboxError> {
    let (commands, inbox) = mpsc::channel();
    let stats = Arc::new(OutboxStats::default());
    stats.bytes.store(store.size()?.0, Relaxed);
    let log = store.look_after_files(clock.now())?;
    stats.log.store(log, Relaxed);
    lock.mark_log(log > 0);
    stats.missing.store(reserve.missing(), Relaxed);
    let (retry_requested, retry_requests) = watch::channel(store.meta(store::RETRY_REQUESTS)?.unwrap_or(0));
    let retry_after_deadline = store.meta(RETRY_AFTER_DEADLINE)?.map(Timestamp);
    let data_version = store.data_version()?;
    let free = free_beside(&store.path);
    let alarm = Alarm::new(None);
    let writer = Writer::new(commands, stats.clone(), retry_requests, alarm.clone(), retry_after_deadline);
    let owner = WriterThread {
        store,
        lock,
        reserve,
        inbox,
        expired: clock.mono(),
        clock,
        stats,
        retry_requested,
        alarm,
        readers: WalReaders::default(),
        data_version,
        emptied: log == 0,
        is_idle: false,
        maintained: Instant::now(),
        free,
        waiting: Vec::new(),
        due: None,
    };
    let thread =
        std::thread::Builder::new().name("outbox".into()).spawn(move || owner.run()).map_err(|e| {
            OutboxError::Io { path: PathBuf::new(), operation: "start the writer", text: e.to_string() }
        })?;
    Ok((writer, thread))
}

/// What became of the appends in a commit.
type Committed = Result<Vec<Appended>, Arc<OutboxError>>;

struct WriterThread {
    store: Store,
    lock: Arc<Lock>,
    reserve: ReserveFile,
    inbox: Receiver<Command>,
    clock: Clock,
    stats: Arc<OutboxStats>,
    retry_requested: watch::Sender<i64>,
    alarm: Alarm,
    readers: WalReaders,
    data_version: i64,
    /// When it last looked for rows whose time is up.
    expired: Mono,
    /// The write-ahead log is empty.
    emptied: bool,
    /// At the last look there was nothing to do, and none will come by itself.
    is_idle: bool,
    maintained: Instant,
    /// Free bytes of the disk when it last kept house: to ask takes about as long as a small commit.
    free: u64,
    /// What waits for the next commit, and when that is due at the latest.
    waiting: Vec<Command>,
    due: Option<Instant>,
}

impl WriterThread {
    fn run(mut self) {
        loop {
            let is_moving = self.store.is_moving();
            let patience = match (is_moving, self.due, self.is_idle) {
                (true, ..) => Duration::ZERO,
                (_, Some(due), _) => due.saturating_duration_since(Instant::now()),
                (.., true) => IDLE_INTERVAL,
                _ => TICK,
            };
            let (stop, idle) = match self.inbox.recv_timeout(patience) {
                Ok(Command::Look) => {
                    self.is_idle = false;
                    (false, false)
                }
                Ok(first) => (self.take(first), false),
                Err(RecvTimeoutError::Timeout) if is_moving => {
                    self.go_on_moving();
                    (false, false)
                }
                Err(RecvTimeoutError::Timeout) if self.due.is_some() => {
                    self.commit_waiting(MOVED_AT_LEAST);
                    (false, false)
                }
                Err(RecvTimeoutError::Timeout) => (false, true),
                Err(RecvTimeoutError::Disconnected) => {
                    self.commit_waiting(MOVED_AT_LEAST);
                    (true, false)
                }
            };
            self.stats.rounds.fetch_add(1, Relaxed);
            let is_due = idle || self.maintained.elapsed() >= TICK;
            // To look after files that are gone would bring them to safety again, over what is safe already.
            if is_due && !stop && !self.has_given_up() {
                self.maintained = Instant::now();
                self.maintain(idle);
            }
            if self.has_given_up() {
                // The callers learn it from the closed channel; the log stays as it is, for the next start.
                return;
            }
            if stop {
                break;
            }
        }
        self.move_before_the_end();
        if let Err(e) = self.checkpoint(STOP_TIMEOUT) {
            tracing::warn!("{e}");
        }
    }

    /// What can be moved in a moment need not wait for the next start.
    fn move_before_the_end(&mut self) {
        let began = Instant::now();
        let mut done = self.store.transaction(Store::move_all).map_err(Arc::new);
        while done.is_ok() && self.store.is_moving() && began.elapsed() < STOP_TIMEOUT {
            done = self.commit(&[], Some(MOVED_WHEN_IDLE)).map(drop);
        }
    }

    fn has_given_up(&self) -> bool {
        self.alarm.borrow().is_some()
    }

    fn set_emptied(&mut self, emptied: bool) {
        if self.emptied != emptied {
            self.lock.mark_log(!emptied);
            self.emptied = emptied;
        }
    }

    /// Commits everything that has come, unless none of it is worth a commit yet. Returns whether the writer is to stop.
    fn take(&mut self, first: Command) -> bool {
        self.waiting.push(first);
        self.waiting.extend(self.inbox.try_iter().take(MAX_COMMANDS));
        if self.waiting.len() < MAX_COMMANDS && self.waiting.iter().all(Command::may_wait) {
            if self.waiting.iter().any(|c| matches!(c, Command::Settle { .. })) {
                self.due.get_or_insert_with(|| Instant::now() + COMMIT_DELAY);
            }
            return false;
        }
        let stop = self.waiting.iter().any(|c| matches!(c, Command::Stop));
        self.commit_waiting(MOVED_AT_LEAST);
        stop
    }

    /// Commits what waits, and moves so many rows at the least; then answers.
    fn commit_waiting(&mut self, moves: usize) {
        self.due = None;
        let commands = std::mem::take(&mut self.waiting);
        match self.commit(&commands, Some(moves)) {
            Err(full) if full.is_full() => {
                // Files wait in the spool; what was delivered is to be marked.
                let is_append = |c: &Command| matches!(c, Command::Append { .. });
                let (appends, external_commits): (Vec<_>, Vec<_>) = commands.into_iter().partition(is_append);
                self.answer(appends, Err(full));
                self.empty_log(READER_TIMEOUT);
                for command in external_commits {
                    let done = self.commit_on_a_full_disk(std::slice::from_ref(&command));
                    self.answer(vec![command], done);
                }
            }
            done => self.answer(commands, done),
        }
        if !self.has_given_up() {
            self.shorten_log();
        }
    }

    /// Commits with what room can be made: that of the write-ahead log, then that of the reserve file.
    fn commit_on_a_full_disk(&mut self, commands: &[Command]) -> Committed {
        // To move rows takes room as well.
        let mut done = self.commit(commands, None);
        for make_room in
            [|owner: &mut WriterThread| owner.empty_log(READER_TIMEOUT), WriterThread::release_reserve]
        {
            if !done.as_ref().is_err_and(|e| e.is_full()) {
                break;
            }
            make_room(self);
            done = self.commit(commands, None);
        }
        done
    }

    /// Commits all of it, or nothing; nothing more after an error that ends the writer. `moves`: rows to be moved
    /// besides, at the least.
    fn commit(&mut self, commands: &[Command], moves: Option<usize>) -> Committed {
        if let Some(why) = self.alarm.borrow().clone() {
            return Err(why);
        }
        let now = self.clock.now();
        self.is_idle = false;
        let stats = self.stats.clone();
        let committed = self.store.transaction(|store| {
            let external_commits = stats.notice(store.external_commits);
            let mut appended = Vec::new();
            for command in commands {
                match command {
                    Command::Append { events, progress, .. } => {
                        appended.push(store.append(events, progress, now)?);
                    }
                    Command::Settle { settlement, .. } => {
                        for (seqs, reason) in &settlement.attempts {
                            store.note_attempts(seqs, reason, now)?;
                        }
                        let is_read_version = settlement.read_version == Some(external_commits);
                        store.settle(&settlement.rows, is_read_version, now)?;
                    }
                    Command::Forget(files) => store.forget_files(files)?,
                    Command::RetryAfterDeadline(at) => {
                        store.set_meta(RETRY_AFTER_DEADLINE, at.map_or(0, |t| t.0))?
                    }
                    Command::Settings(_) | Command::Look | Command::Stop => {}
                }
            }
            if let Some(at_least) = moves {
                store.move_on(at_least, now)?;
            }
            Ok(appended)
        });
        // SQLite goes on saying OK when its file has been deleted or another put in its place.
        let is_committed = committed.is_ok();
        let done = committed.and_then(|done| self.measure(now).map(|()| done));
        if is_committed && (done.is_err() || self.stats.log() > 0) {
            self.set_emptied(false);
        }
        done.map_err(|e| self.note(e))
    }

    fn answer(&mut self, commands: Vec<Command>, done: Committed) {
        let (appended, failed) = match done {
            Ok(appended) => (appended, None),
            Err(e) => (Vec::new(), Some(e)),
        };
        let mut appended = appended.into_iter();
        let done = || failed.as_ref().map_or(Ok(()), |e| Err(e.clone()));
        for command in commands {
            // A caller that has gone away does not wait for the answer.
            match command {
                Command::Append { reply, .. } => {
                    let answer = appended.next();
                    if let Some(Appended::Stored { stored, .. }) = &answer {
                        self.stats.ingested.fetch_add(*stored, Relaxed);
                    }
                    let closed = || Arc::new(OutboxError::Closed);
                    let _ = reply.send(done().and_then(|()| answer.ok_or_else(closed)));
                }
                Command::Settle { settlement, reply } => {
                    if failed.is_none() {
                        self.stats.settled(&settlement.rows);
                    }
                    let _ = reply.send(done());
                }
                Command::Settings(settings) => self.store.set_settings(settings),
                Command::Forget(_) | Command::RetryAfterDeadline(_) | Command::Look | Command::Stop => {}
            }
        }
    }

    /// Moves rows while there is nothing else to do, and empties the log when that is done.
    fn go_on_moving(&mut self) {
        // An error ends the moving, or the writer.
        self.commit_waiting(MOVED_WHEN_IDLE);
        if !self.store.is_moving() && !self.has_given_up() {
            self.empty_log(Duration::ZERO);
        }
    }

    /// An error that waiting does not fix ends the writer: what the disk holds then, the next start finds out.
    fn note(&mut self, error: OutboxError) -> Arc<OutboxError> {
        let error = Arc::new(error);
        tracing::debug!("{error}");
        if !error.is_transient() {
            if let OutboxError::FilesReplaced { .. } = *error {
                // What was in the log has been brought to safety.
                self.set_emptied(true);
            }
            self.alarm.send_replace(Some(error.clone()));
        }
        error
    }
}
