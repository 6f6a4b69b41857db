//! The intake: takes files from the spool into the outbox. A thread of its own, because reading files blocks.
//!
//! ```text
//!   list ──▶ open ──▶ read ──▶ parse, triage ──▶ append batch ──append──▶ durable ──▶ remove
//!                                  │                  ╲
//!                                  └── bad ──▶ rejected/ (durable before the append batch)
//! ```
//!
//! An outside event only wakes the loop; each round looks at the whole folder. One append batch is on its way to the
//! disk while the next is read. Nothing is removed before the commit that holds its events has been answered.

use super::append_batch::{AppendBatch, SourceFile};
use super::readiness::{Readiness, UnsettledFile};
use super::remover::{Done, Remover};
use super::scan_report::SpoolSnapshot;
use super::{Fatal, Heartbeat};
use crate::clock::{Clock, Mono};
use crate::config;
use crate::disk;
use crate::outbox::{Appended, Enqueued, FileProgress, OutboxError, OutboxStats, PendingCommit, Writer};
use crate::reason::{Code, Reason};
use crate::spool::{Entry, FileIdentity, FileKey, RejectedFolder, Spool, SpoolError, Watcher, shown};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a blocked intake looks whether there is room again.
const BLOCKED_RETRY: Duration = Duration::from_secs(1);
/// Whoever deletes the folder is done when it has not changed for so long: what is made in it before would keep it from
/// going. And how often that is looked at, at the most: files may come all the time.
const DELETION: Duration = Duration::from_millis(500);
const DELETION_LOOKS: usize = 60;
/// How often `rejected/` is looked through: for files whose time is up, and for those that have grown whole.
const TIDY_EVERY: Duration = Duration::from_secs(30);
/// How far apart looks at the folder are where files come all the time, and what is taken in one commit with it: to look
/// and to commit takes some milliseconds, however little is there.
const LOOKS_APART: Duration = Duration::from_millis(10);
/// A folder of so many files that this takes long is looked through the less often: for a hundredth of the time.
const TIDY_SHARE: u32 = 100;

/// Why a round ended early.
pub(super) enum Stop {
    /// There is no room: nothing more is taken for now.
    Blocked(Reason),
    /// The agent stops.
    Asked,
    /// The agent must end.
    Fatal(Fatal),
}

impl From<SpoolError> for Stop {
    fn from(e: SpoolError) -> Stop {
        let code = match &e {
            SpoolError::Io { source, .. } => match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Code::DiskFull,
                ErrorKind::ReadOnlyFilesystem => Code::ReadOnly,
                _ => Code::Unreadable,
            },
            SpoolError::Missing { .. } | SpoolError::Denied { .. } => Code::Unreadable,
        };
        Stop::Blocked(Reason::new(code, e.to_string()))
    }
}

/// Everything that an intake is made of.
pub struct IntakeParts {
    /// The folder.
    pub spool: Spool,
    /// Its watcher.
    pub watcher: Watcher,
    /// The settings, which may change.
    pub config: Arc<Mutex<config::Config>>,
    /// The outbox.
    pub writer: Writer,
    /// How far files had been taken at the last stop.
    pub progress: Vec<FileProgress>,
    /// The time.
    pub clock: Clock,
    /// Wakes the loop; it looks at everything whatever the reason.
    pub wakes: Receiver<()>,
    /// Set before the last wake.
    pub stop: Arc<AtomicBool>,
    /// Called after every commit that stored events, in their order, with what of them waits.
    pub stored: Box<dyn Fn(Enqueued) + Send>,
    /// Where the loop says what it sees.
    pub snapshot: Arc<Mutex<SpoolSnapshot>>,
    /// Its sign of life.
    pub heartbeat: Heartbeat,
}

/// The intake's state; [`Intake::run`] is its loop.
pub struct Intake {
    pub(super) parts: IntakeParts,
    pub(super) config: config::Config,
    pub(super) rejected_folder: RejectedFolder,
    pub(super) stats: Arc<OutboxStats>,
    pub(super) remover: Remover,
    pub(super) batch: AppendBatch,
    in_commit: Option<(AppendBatch, PendingCommit<Appended>)>,
    /// Something was set aside that must be durable before the next append batch is.
    pub(super) reject_pending_sync: bool,
    /// How far files are taken that are still in the folder, or set aside.
    pub(super) ingested: HashMap<FileKey, FileProgress>,
    /// Files that are taken and on their way out, by name: as they were read.
    pub(super) removing: HashMap<OsString, (FileIdentity, u64)>,
    /// Documents that ended too early: as they were, and since when.
    pub(super) incomplete: HashMap<OsString, (Entry, Mono)>,
    /// Files that may not be read, and when that was last said.
    pub(super) unreadable: HashMap<OsString, Mono>,
    /// Files that are not yet to be taken.
    pub(super) unsettled: HashMap<OsString, UnsettledFile>,
    /// What has changed before that, by the file system's own time, was there before the agent; `None` after the first
    /// look.
    began: Option<i64>,
    /// Files that were announced as finished and are not taken yet.
    pub(super) announced: HashSet<OsString>,
    /// What is no file to be read, and since when.
    pub(super) irregular: HashMap<OsString, Mono>,
    /// Oddities that were spoken of.
    pub(super) reported: HashSet<OsString>,
    pub(super) gone: Vec<FileIdentity>,
    /// Removals that came to something else.
    pub(super) not_removed: Vec<Done>,
    /// Whether a file has left the folder, or is about to, since the folder was last looked at.
    pub(super) progressed: bool,
    pub(super) blocked: Option<Reason>,
    /// Bytes of events that there is room for.
    pub(super) room: usize,
    /// A tick of the file systems' clock: what is stamped with it waits for the next.
    pub(super) tick: Duration,
    tidy_at: Mono,
}

impl Intake {
    /// An intake that has not looked at the folder yet.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn new(parts: IntakeParts) -> std::io::Result<Intake> {
        let config = parts.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ingested = parts.progress.iter().map(|p| (p.identity.key(), p.clone())).collect();
        Ok(Intake {
            config,
            rejected_folder: parts.spool.rejected_folder(),
            stats: parts.writer.stats(),
            remover: Remover::start(&parts.spool)?,
            began: parts.spool.time(),
            parts,
            batch: AppendBatch::default(),
            in_commit: None,
            reject_pending_sync: false,
            ingested,
            removing: HashMap::new(),
            incomplete: HashMap::new(),
            unreadable: HashMap::new(),
            unsettled: HashMap::new(),
            announced: HashSet::new(),
            irregular: HashMap::new(),
            reported: HashSet::new(),
            gone: Vec::new(),
            not_removed: Vec::new(),
            progressed: false,
            blocked: None,
            room: 0,
            tick: disk::tick(),
            tidy_at: Mono::ZERO,
        })
    }

    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// The outbox or the folder failed in a way that waiting does not fix.
    pub fn run(mut self) -> Result<(), Fatal> {
        self.forget_vanished_files();
        loop {
            self.parts.heartbeat.tick();
            self.config = self.parts.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let began = Instant::now();
            let ended = self.round();
            let took = began.elapsed();
            let wait = match ended {
                Ok(wait) => {
                    self.unblock();
                    wait
                }
                Err(Stop::Blocked(reason)) => {
                    self.drop_batches();
                    self.block(reason);
                    BLOCKED_RETRY
                }
                Err(Stop::Asked) => break,
                Err(Stop::Fatal(fatal)) => return Err(fatal),
            };
            if self.parts.stop.load(Relaxed) {
                break;
            }
            match self.parts.wakes.recv_timeout(wait) {
                Ok(()) => {
                    // After a look at which nothing was taken, for half as long.
                    let apart = if self.progressed { LOOKS_APART } else { LOOKS_APART / 2 };
                    // A folder that takes long to read is not read all the time.
                    let pause = apart.saturating_sub(began.elapsed()).max(took.min(BLOCKED_RETRY) / 4);
                    std::thread::sleep(pause);
                    // What has woken it meanwhile is seen now.
                    let _ = self.parts.wakes.try_recv();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.remover.finish();
        self.collect_removed();
        Ok(())
    }

    /// One look at the folder, and everything taken that can be taken. Returns when to look again at the latest.
    fn round(&mut self) -> Result<Duration, Stop> {
        self.collect_removed();
        if !self.parts.spool.is_whole() {
            self.open_again()?;
        }
        if let Some(reason) = self.no_room() {
            self.tidy();
            return Err(Stop::Blocked(reason));
        }
        self.tidy();
        self.announced.extend(self.parts.watcher.announced());
        let moment = self.parts.clock.moment();
        let listing = self.parts.spool.list(moment.wall)?;
        let mut wait = self.report_scan(&listing);
        let more = listing.waiting.0 > listing.files.len() as u64;
        let began = self.began.take();
        // What changes from now on is stamped with this or later.
        let time = if self.announced.is_empty() { None } else { self.parts.spool.time() };
        for entry in listing.files {
            if self.removing.get(&entry.name) == Some(&entry.version()) {
                continue;
            }
            match self.readiness(&entry, moment, time) {
                Readiness::Now => {
                    self.unsettled.remove(&entry.name);
                    if let Some(rest) = self.ingest(entry)? {
                        wait = wait.min(rest);
                    }
                }
                Readiness::Later(rest) => wait = wait.min(rest),
                // Nobody could announce that it was finished; and what changes it now gives it another time stamp.
                Readiness::First(_)
                    if began.is_some_and(|began| entry.changed < began) && self.ingest_whole(&entry)? =>
                {
                    self.unsettled.remove(&entry.name);
                }
                Readiness::First(rest) => {
                    wait = wait.min(rest);
                    break;
                }
            }
            if self.batch.is_full(self.room) {
                self.flush()?;
            }
        }
        self.flush()?;
        self.finish_commit()?;
        self.collect_removed();
        Ok(if more && self.progressed { Duration::from_millis(1) } else { wait.max(self.tick) })
    }

    /// Takes over what has the folder's name since somebody moved it away or deleted it.
    fn open_again(&mut self) -> Result<(), Stop> {
        let changed = |spool: &Spool| std::fs::metadata(spool.dir()).and_then(|meta| meta.modified()).ok();
        let mut before = None;
        for _ in 0..DELETION_LOOKS {
            let now = changed(&self.parts.spool);
            if now == before {
                break;
            }
            before = now;
            self.sign_of_life()?;
            std::thread::sleep(DELETION);
        }
        let spool = Spool::open(self.parts.spool.dir())?;
        self.parts.watcher.watch_again(spool.dir());
        tracing::warn!("the spool {} is another folder than before: it is ingested over", shown(spool.dir()));
        self.parts.spool = spool;
        Ok(())
    }

    /// A sign of life, amid work that may be long.
    ///
    /// # Errors
    /// The agent is to stop; what is on its way to the disk is there.
    pub(super) fn sign_of_life(&mut self) -> Result<(), Stop> {
        self.parts.heartbeat.tick();
        if self.parts.stop.load(Relaxed) {
            // What is read and not stored is read again at the next start.
            self.finish_commit()?;
            return Err(Stop::Asked);
        }
        Ok(())
    }

    /// Sends the append batch to the disk once the one before it is there.
    pub(super) fn flush(&mut self) -> Result<(), Stop> {
        self.sign_of_life()?;
        if std::mem::take(&mut self.reject_pending_sync) {
            self.rejected_folder
                .sync()
                .map_err(|e| SpoolError::new(self.parts.spool.dir(), "set events aside", e))?;
            self.count_rejected();
        }
        if self.batch.is_empty() {
            return Ok(());
        }
        self.finish_commit()?;
        if let Some(reason) = self.no_room() {
            return Err(Stop::Blocked(reason));
        }
        let batch = std::mem::take(&mut self.batch);
        self.submit(batch);
        self.forget_removed();
        Ok(())
    }

    fn submit(&mut self, batch: AppendBatch) {
        let answer = self.parts.writer.append(batch.events.clone(), batch.progress());
        self.in_commit = Some((batch, answer));
    }

    /// Waits for the append batch that is on its way to the disk. Only one is, so that what is sent to the disk again
    /// without some of its events keeps its place in the order of the spool.
    pub(super) fn finish_commit(&mut self) -> Result<(), Stop> {
        while let Some((mut batch, answer)) = self.in_commit.take() {
            match answer.block() {
                Ok(Appended::Stored { enqueued, .. }) => self.stored(batch, enqueued),
                Ok(Appended::Reused(reused)) => {
                    let now = self.parts.clock.now();
                    for entry in
                        batch.reject_reused(&reused, &self.parts.spool, &self.rejected_folder, now)?
                    {
                        self.forget_waiting(&entry);
                    }
                    self.count_rejected();
                    tracing::warn!(
                        "{} events set aside: their messageIds came before with other content",
                        reused.len()
                    );
                    self.submit(batch);
                }
                Err(e) if e.is_transient() => return Err(Stop::Blocked(reason_of(&e))),
                Err(e) => return Err(Stop::Fatal(Fatal::Outbox(e))),
            }
        }
        Ok(())
    }

    /// The append batch's events are on the disk: its files may go.
    fn stored(&mut self, batch: AppendBatch, enqueued: Enqueued) {
        if !batch.events.is_empty() {
            (self.parts.stored)(enqueued);
        }
        let mut whole = Vec::new();
        for SourceFile { entry, progress, .. } in batch.sources {
            let is_whole = progress.finished;
            self.ingested.insert(entry.identity.key(), progress);
            if is_whole {
                whole.push(entry);
            }
        }
        self.remove(whole);
    }

    /// Whatever stopped the round: what is on its way to the disk arrives there or does not, and the rest is read again.
    fn drop_batches(&mut self) {
        self.batch = AppendBatch::default();
        if let Some((batch, answer)) = self.in_commit.take()
            && let Ok(Appended::Stored { enqueued, .. }) = answer.block()
        {
            self.stored(batch, enqueued);
        }
    }

    /// Whether the file of that entry has been taken before, and how far.
    pub(super) fn progress_of(&self, entry: &Entry) -> Option<&FileProgress> {
        self.ingested.get(&entry.identity.key())
    }

    fn tidy(&mut self) {
        let now = self.parts.clock.mono();
        if now < self.tidy_at {
            return;
        }
        let began = Instant::now();
        for name in self.rejected_folder.take_back_grown() {
            tracing::info!("{} was written to after it had been set aside: ingested back", shown(name));
        }
        self.rejected_folder.expire(self.parts.clock.now().minus(self.config.outbox.keep_failed));
        self.count_rejected();
        let every = TIDY_EVERY.min(self.config.spool.scan_interval).max(began.elapsed() * TIDY_SHARE);
        self.tidy_at = now + every;
    }
}

fn reason_of(error: &OutboxError) -> Reason {
    let code = match error {
        OutboxError::ReadOnly { .. } => Code::ReadOnly,
        _ => Code::DiskFull,
    };
    Reason::new(code, error.to_string())
}
