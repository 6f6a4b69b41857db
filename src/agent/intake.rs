//! The intake: ingests the files of the spool into the outbox, on a thread of its own because reading files blocks.
//!
//! ```text
//!   Spool ──scan──▶ UnsettledFiles ──ready──▶ FileReader ──event──▶ AppendBatch ──append──▶ durable ──▶ Remover
//!                                                  └──────reject──▶ Rejections (durable before the batch)
//! ```
//!
//! The intake is the loop that joins these components; none of them knows it. An outside event only wakes the loop, and each
//! round scans the whole folder, because hints about single files get lost. One batch is being committed while the next
//! is read. No file is removed before the commit that holds its events has been answered.

use super::append_batch::{AppendBatch, SourceFile};
use super::capacity::Capacity;
use super::error::Fatal;
use super::file_ledger::FileLedger;
use super::file_reader::{FileReader, FileState, ReadEnd, ReadStep};
use super::heartbeat::Heartbeat;
use super::new_event::ReadRules;
use super::readiness::{Readiness, ScanTimes, UnsettledFiles, age_of};
use super::rejections::{RejectedPart, Rejections};
use super::remover::Remover;
use super::scan_report::{ScanReport, SpoolSnapshot};
use crate::clock::Clock;
use crate::config::Config;
use crate::disk;
use crate::event::Flaw;
use crate::outbox::{Appended, Enqueued, FileProgress, OutboxError, PendingCommit, Writer};
use crate::reason::{Code, Reason};
use crate::spool::{Format, OpenError, Spool, SpoolEntry, SpoolError, SpoolListing, Watcher, printable};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// The interval at which a blocked intake measures the room again.
const BLOCKED_RETRY: Duration = Duration::from_secs(1);
/// A deletion of the spool folder is over when the folder has been unchanged for this long. What the agent makes in it
/// earlier would keep it from being deleted.
const DELETION_PAUSE: Duration = Duration::from_millis(500);
/// The most pauses to wait for the end of a deletion: files may arrive all the time.
const MAX_DELETION_PAUSES: usize = 60;
/// The least time between two scans while files keep arriving. A scan and a commit take some milliseconds however little
/// there is, so what arrives meanwhile shares them.
const SCAN_PAUSE: Duration = Duration::from_millis(10);

/// Why a round ended early.
enum Interruption {
    /// Nothing can be stored for now.
    Blocked(Reason),
    /// The agent stops.
    Stopping,
    /// The agent must end.
    Fatal(Fatal),
}

impl From<SpoolError> for Interruption {
    fn from(e: SpoolError) -> Interruption {
        let code = match &e {
            SpoolError::Io { source, .. } => match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Code::DiskFull,
                ErrorKind::ReadOnlyFilesystem => Code::ReadOnly,
                _ => Code::Unreadable,
            },
            SpoolError::Missing { .. } | SpoolError::Denied { .. } => Code::Unreadable,
        };
        Interruption::Blocked(Reason::new(code, e.to_string()))
    }
}

/// The parts of the agent that the intake works with.
pub struct AgentHandles {
    /// The settings, which may change.
    pub config: Arc<Mutex<Config>>,
    pub writer: Writer,
    pub clock: Clock,
    pub stopping: CancellationToken,
    /// Called after every commit of events, in the order of the commits, with those that are to be sent.
    pub on_stored: Box<dyn Fn(Enqueued) + Send>,
    pub heartbeat: Heartbeat,
}

/// A running intake.
pub struct IntakeHandle {
    wakes: SyncSender<()>,
    /// How the intake ended.
    pub ended: oneshot::Receiver<Result<(), Fatal>>,
}

impl IntakeHandle {
    /// Has the intake scan the folder, or notice that the agent stops.
    pub fn wake(&self) {
        // A full channel holds a wake already.
        let _ = self.wakes.try_send(());
    }
}

/// The intake's state; [`Intake::run`] is its loop.
pub struct Intake {
    agent: AgentHandles,
    spool: Spool,
    watcher: Watcher,
    /// The settings of this round.
    config: Config,
    unsettled: UnsettledFiles,
    ledger: FileLedger,
    rejections: Rejections,
    capacity: Capacity,
    report: ScanReport,
    remover: Remover,
    batch: AppendBatch,
    /// The batch that is being committed.
    in_commit: Option<(AppendBatch, PendingCommit<Appended>)>,
    /// The file system's time at the start, until the first scan.
    agent_start: Option<i64>,
    /// Whether a file has left the folder since the last scan, or is about to.
    has_progressed: bool,
    /// The length of a tick of the file system's clock.
    tick: Duration,
}

impl Intake {
    /// Watches the folder and starts the thread. `progress` says how far files were ingested at the last stop.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(
        agent: AgentHandles,
        spool: Spool,
        progress: &[FileProgress],
        snapshot: Arc<Mutex<SpoolSnapshot>>,
    ) -> std::io::Result<IntakeHandle> {
        let (wakes, woken) = sync_channel(1);
        let watcher_wakes = wakes.clone();
        let (watcher, unwatched) = Watcher::new(spool.dir(), move || {
            // A full channel holds a wake already.
            let _ = watcher_wakes.try_send(());
        });
        if let Some(why) = unwatched {
            tracing::warn!("the spool cannot be watched ({why}): files are found within spool.scan_interval");
        }
        let tick = disk::tick();
        let config = agent.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let intake = Intake {
            unsettled: UnsettledFiles::new(tick),
            ledger: FileLedger::new(progress),
            rejections: Rejections::new(spool.rejected_folder()),
            capacity: Capacity::new(agent.writer.stats()),
            report: ScanReport::new(spool.dir(), snapshot),
            remover: Remover::start(&spool)?,
            batch: AppendBatch::default(),
            in_commit: None,
            agent_start: spool.file_system_time(),
            has_progressed: false,
            tick,
            spool,
            watcher,
            config,
            agent,
        };
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new().name("intake".into()).spawn(move || {
            // After the agent nobody waits for the end.
            let _ = end.send(intake.run(&woken));
        })?;
        Ok(IntakeHandle { wakes, ended })
    }

    /// Runs until the agent stops.
    ///
    /// # Errors
    /// The outbox or the folder failed in a way that waiting does not fix.
    fn run(mut self, woken: &Receiver<()>) -> Result<(), Fatal> {
        self.ledger.forget_missing(self.spool.keys());
        self.forget_gone();
        loop {
            self.agent.heartbeat.tick();
            self.config = self.agent.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let began = Instant::now();
            let ended = self.round();
            let took = began.elapsed();
            let wait = match ended {
                Ok(wait) => {
                    if self.capacity.unblock() {
                        self.report.blocked(None);
                    }
                    wait
                }
                Err(Interruption::Blocked(reason)) => {
                    self.drop_batches();
                    self.capacity.block(reason);
                    self.report.blocked(self.capacity.blocked());
                    BLOCKED_RETRY
                }
                Err(Interruption::Stopping) => break,
                Err(Interruption::Fatal(fatal)) => return Err(fatal),
            };
            if self.agent.stopping.is_cancelled() {
                break;
            }
            match woken.recv_timeout(wait) {
                Ok(()) => {
                    // A shorter pause after a scan that found nothing to ingest.
                    let pause = if self.has_progressed { SCAN_PAUSE } else { SCAN_PAUSE / 2 };
                    // A folder that takes long to scan is not scanned all the time.
                    let pause = pause.saturating_sub(began.elapsed()).max(took.min(BLOCKED_RETRY) / 4);
                    std::thread::sleep(pause);
                    // The next scan answers any wake during the pause.
                    let _ = woken.try_recv();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.remover.finish();
        self.settle_removals();
        Ok(())
    }

    /// Scans the folder and ingests all files that are ready. Returns when to scan again at the latest.
    fn round(&mut self) -> Result<Duration, Interruption> {
        self.settle_removals();
        if !self.spool.is_whole() {
            self.reopen_spool()?;
        }
        let has_room = self.capacity.check(&self.config.outbox);
        self.tidy_rejected();
        has_room.map_err(Interruption::Blocked)?;
        self.unsettled.announce(self.watcher.announced());
        let now = self.agent.clock.moment();
        let listing = self.spool.list(now.wall)?;
        let mut wait = self.report_scan(&listing);
        let is_partial = listing.waiting_files > listing.files.len() as u64;
        // The time comes after the listing: nothing that changes from now on is stamped with an earlier one.
        let file_system = if self.unsettled.has_announced() { self.spool.file_system_time() } else { None };
        let times = ScanTimes { now, file_system, agent_start: self.agent_start.take() };
        for entry in listing.files {
            if self.ledger.is_removing_version(&entry) {
                continue;
            }
            match self.readiness(&entry, &times) {
                Readiness::Ready => {
                    self.unsettled.settled(&entry.name);
                    if let Some(rest) = self.ingest(entry)? {
                        wait = wait.min(rest);
                    }
                }
                Readiness::Wait(rest) => wait = wait.min(rest),
                Readiness::OlderThanAgent(_) if self.ingest_if_whole(&entry)? => {
                    self.unsettled.settled(&entry.name);
                }
                Readiness::OlderThanAgent(rest) | Readiness::HoldOthers(rest) => {
                    wait = wait.min(rest);
                    break;
                }
            }
            if self.batch.is_full(self.capacity.room()) {
                self.flush()?;
            }
        }
        self.flush()?;
        self.finish_commit()?;
        self.settle_removals();
        Ok(if is_partial && self.has_progressed { Duration::from_millis(1) } else { wait.max(self.tick) })
    }

    /// Drops what is known of files that are gone, and updates the status. Returns when to scan again at the latest.
    fn report_scan(&mut self, listing: &SpoolListing) -> Duration {
        self.has_progressed = false;
        let present: HashSet<&OsStr> = listing.files.iter().map(|entry| entry.name.as_os_str()).collect();
        self.rejections.retain(&present);
        self.unsettled.retain(&present);
        let removing = self.ledger.removing_among(&listing.files);
        let (now, settle) = (self.agent.clock.moment(), self.config.spool.settle);
        let wait = self.report.scanned(listing, &present, removing, now, settle);
        wait.map_or(self.config.spool.scan_interval, |wait| wait.min(self.config.spool.scan_interval))
    }

    fn readiness(&mut self, entry: &SpoolEntry, times: &ScanTimes) -> Readiness {
        let spool = &self.config.spool;
        match self.rejections.incomplete_rest(entry, times.now.mono, spool.incomplete_after) {
            Some(Duration::ZERO) => Readiness::Ready,
            Some(rest) => Readiness::Wait(rest),
            // Another file of that name is on its way out, or this one was written to on its way.
            None if self.ledger.is_removing(&entry.name) => Readiness::HoldOthers(self.tick),
            None => self.unsettled.readiness(entry, times, spool.settle),
        }
    }

    /// Opens the folder that has the spool's name after the one before was moved or deleted.
    fn reopen_spool(&mut self) -> Result<(), Interruption> {
        let changed = |spool: &Spool| std::fs::metadata(spool.dir()).and_then(|meta| meta.modified()).ok();
        let mut before = None;
        for _ in 0..MAX_DELETION_PAUSES {
            let now = changed(&self.spool);
            if now == before {
                break;
            }
            before = now;
            self.tick_or_stop()?;
            std::thread::sleep(DELETION_PAUSE);
        }
        let spool = Spool::open(self.spool.dir())?;
        self.watcher.watch_again(spool.dir());
        tracing::warn!(
            "the spool {} is another folder than before; its files are ingested",
            printable(spool.dir())
        );
        self.spool = spool;
        Ok(())
    }

    /// Ticks the heartbeat within work that may be long.
    ///
    /// # Errors
    /// The agent stops; the batch in commit is durable.
    fn tick_or_stop(&mut self) -> Result<(), Interruption> {
        self.agent.heartbeat.tick();
        if self.agent.stopping.is_cancelled() {
            // Events that are read and not stored are read again after the next start.
            self.finish_commit()?;
            return Err(Interruption::Stopping);
        }
        Ok(())
    }

    /// Ingests a file as far as possible. Returns when to look at it again, if some of it has to wait.
    fn ingest(&mut self, entry: SpoolEntry) -> Result<Option<Duration>, Interruption> {
        let Some(format) = entry.format() else {
            let what = "the name does not say the format: it must end in .json, .jsonl or .ndjson, or one of these and .gz";
            self.reject_file(&entry, &Flaw::at("", 0, Code::NotJson, what))?;
            return Ok(None);
        };
        let file = match self.spool.open_file(&entry) {
            Ok(file) => file,
            Err(OpenError::Changed) => return Ok(Some(self.config.spool.settle)),
            Err(OpenError::Unreadable(owner)) => {
                self.report.unreadable(&entry, owner, self.agent.clock.mono());
                return Ok(None);
            }
            Err(OpenError::Error(e)) => {
                self.report.report(&entry.name, format_args!("{e}"));
                return Ok(None);
            }
        };
        self.report.readable(&entry.name);
        let before = self.ledger.progress(&entry).cloned();
        let read = (entry.size, entry.identity.modified);
        if before.as_ref().is_some_and(|progress| progress.finished && progress.read == read) {
            self.remove(vec![entry]);
            return Ok(None);
        }
        let mut progress =
            before.unwrap_or_else(|| FileProgress::none(entry.name.as_bytes(), entry.identity, read));
        if format.0 == Format::Document && progress.read != read {
            // A document that was written to is read from its start: the events' ids tell which are new.
            (progress.position, progress.place) = (0, 0);
        }
        (progress.read, progress.finished) = (read, false);
        let (source, mut buffer) = (SourceFile::new(entry, progress), Vec::new());
        let rules = ReadRules::from(&self.config);
        match FileReader::open(file, format, FileState::Finished, &source, rules, &mut buffer) {
            Ok(reader) => self.ingest_steps(&source, reader),
            Err(end) => self.end(&source.entry, end),
        }
    }

    /// Ingests the whole events of a file that may still be written, and that nothing is ingested of: all lines so far, or
    /// a document that nothing could be added to. Returns whether that is all of the file.
    fn ingest_if_whole(&mut self, entry: &SpoolEntry) -> Result<bool, Interruption> {
        let Some(format) = entry.format() else { return Ok(false) };
        let is_too_large = format.0 == Format::Document && entry.size > self.config.spool.max_file_bytes;
        if is_too_large || self.ledger.progress(entry).is_some() {
            return Ok(false);
        }
        let Ok(file) = self.spool.open_file(entry) else { return Ok(false) };
        let read = (entry.size, entry.identity.modified);
        let progress = FileProgress::none(entry.name.as_bytes(), entry.identity, read);
        let (source, mut buffer) = (SourceFile::new(entry.clone(), progress), Vec::new());
        let rules = ReadRules::from(&self.config);
        match FileReader::open(file, format, FileState::MayGrow, &source, rules, &mut buffer) {
            Ok(reader) => Ok(self.ingest_steps(&source, reader)?.is_none()),
            Err(_) => Ok(false),
        }
    }

    /// Acts on each step of a reader. Returns when to look at the file again, if some of it has to wait.
    fn ingest_steps(
        &mut self,
        source: &SourceFile,
        mut reader: FileReader<'_>,
    ) -> Result<Option<Duration>, Interruption> {
        loop {
            match reader.skip_ingested() {
                Ok(true) => break,
                Ok(false) => self.tick_or_stop()?,
                Err(end) => return self.end(&source.entry, end),
            }
        }
        self.batch.begin(source.clone());
        let mut is_full = false;
        loop {
            let before = reader.position();
            let step = reader.next_step();
            if is_full && !matches!(step, ReadStep::End(_)) {
                self.flush()?;
                self.batch.begin(source.clone());
                self.batch.advance(before);
            }
            match step {
                ReadStep::Event(event) => self.batch.push(event),
                ReadStep::Blank(bytes) => self.batch.account_bytes(bytes),
                ReadStep::Reject(part) => self.reject_part(source, &part)?,
                ReadStep::RejectUnlessGrowing(part) => match self.wait_for_rest(&source.entry) {
                    Some(wait) => return Ok(Some(wait)),
                    None => self.reject_part(source, &part)?,
                },
                ReadStep::End(end) => {
                    if matches!(end, ReadEnd::Unusable(_)) {
                        self.batch.cancel();
                    }
                    return self.end(&source.entry, end);
                }
            }
            self.batch.advance(reader.position());
            is_full = self.batch.is_full(self.capacity.room());
        }
    }

    /// Acts on the end of a reading. Returns when to look at the file again, if some of it has to wait.
    fn end(&mut self, entry: &SpoolEntry, end: ReadEnd) -> Result<Option<Duration>, Interruption> {
        match end {
            ReadEnd::CompleteSoFar if !self.has_settled(entry) => return Ok(Some(self.config.spool.settle)),
            ReadEnd::Complete | ReadEnd::CompleteSoFar => {
                self.rejections.is_complete(&entry.name);
                self.batch.finish();
            }
            ReadEnd::Unsettled => return Ok(Some(self.config.spool.settle)),
            ReadEnd::Unusable(flaw) | ReadEnd::UnusableRest(flaw)
                if flaw.incomplete
                    && let Some(wait) = self.wait_for_rest(entry) =>
            {
                return Ok(Some(wait));
            }
            ReadEnd::Unusable(flaw) => self.reject_file(entry, &flaw)?,
            ReadEnd::UnusableRest(flaw) => {
                // The events read before the flaw are durable before the file leaves the spool.
                self.flush()?;
                self.finish_commit()?;
                self.reject_file(entry, &flaw)?;
            }
            ReadEnd::Shortened => {
                self.ledger.restart(entry);
                return Ok(Some(Duration::ZERO));
            }
            ReadEnd::Failed(e) => self.report.report(&entry.name, format_args!("cannot be read: {e}")),
        }
        Ok(None)
    }

    /// Whether the file is as it was listed, and has been unchanged for `settle`.
    fn has_settled(&self, entry: &SpoolEntry) -> bool {
        self.spool.entry(&entry.name).is_some_and(|now| now == *entry)
            && age_of(entry, self.agent.clock.moment()).is_some_and(|age| age >= self.config.spool.settle)
    }

    fn wait_for_rest(&mut self, entry: &SpoolEntry) -> Option<Duration> {
        let (now, limit) = (self.agent.clock.mono(), self.config.spool.incomplete_after);
        self.rejections.wait_for_rest(entry, now, limit)
    }

    fn reject_file(&mut self, entry: &SpoolEntry, flaw: &Flaw) -> Result<(), Interruption> {
        let now = self.agent.clock.now();
        match self.rejections.reject_file(&self.spool, entry, flaw, now) {
            // The file has no event that younger files could overtake, and ingesting those makes room.
            Err(e) if e.is_full() => {
                self.report.report(&entry.name, format_args!("{e}; it stays until there is room"));
            }
            // The ledger keeps how far the file was ingested, in case it comes back.
            has_left => {
                if has_left? {
                    self.forget_waiting(entry);
                }
            }
        }
        Ok(())
    }

    fn reject_part(&mut self, source: &SourceFile, part: &RejectedPart) -> Result<(), Interruption> {
        self.rejections.reject_part(source, part, self.agent.clock.now())?;
        self.batch.account_rejected(part.content.len());
        Ok(())
    }

    /// Begins to commit the batch, once the one before it is durable.
    fn flush(&mut self) -> Result<(), Interruption> {
        self.tick_or_stop()?;
        if self.rejections.sync(&self.spool)? {
            self.report.rejected(self.rejections.count());
        }
        if self.batch.is_empty() {
            return Ok(());
        }
        self.finish_commit()?;
        self.capacity.check(&self.config.outbox).map_err(Interruption::Blocked)?;
        let batch = std::mem::take(&mut self.batch);
        self.submit(batch);
        self.ledger.note_removals(self.remover.results());
        self.forget_gone();
        Ok(())
    }

    fn submit(&mut self, batch: AppendBatch) {
        let answer = self.agent.writer.append(batch.events.clone(), batch.progress());
        self.in_commit = Some((batch, answer));
    }

    /// Waits for the batch in commit. There is only one, so that a batch that is submitted again without some of its
    /// events keeps its place in the order of the spool.
    fn finish_commit(&mut self) -> Result<(), Interruption> {
        while let Some((mut batch, answer)) = self.in_commit.take() {
            match answer.block() {
                Ok(Appended::Stored { enqueued, .. }) => self.stored(batch, enqueued),
                Ok(Appended::Reused(reused)) => {
                    let (spool, now) = (&self.spool, self.agent.clock.now());
                    for entry in self.rejections.reject_reused(&mut batch, &reused, spool, now)? {
                        self.forget_waiting(&entry);
                    }
                    self.report.rejected(self.rejections.count());
                    self.submit(batch);
                }
                Err(e) if e.is_transient() => return Err(Interruption::Blocked(reason_of(&e))),
                Err(e) => return Err(Interruption::Fatal(Fatal::Outbox(e))),
            }
        }
        Ok(())
    }

    /// Has the files removed that are whole in a batch that is durable.
    fn stored(&mut self, batch: AppendBatch, enqueued: Enqueued) {
        if !batch.events.is_empty() {
            (self.agent.on_stored)(enqueued);
        }
        let mut whole = Vec::new();
        for SourceFile { entry, progress, .. } in batch.sources {
            let is_whole = progress.finished;
            self.ledger.stored(&entry, progress);
            if is_whole {
                whole.push(entry);
            }
        }
        self.remove(whole);
    }

    /// Drops the batch that is being read; its events are read again. The batch in commit gets durable or does not.
    fn drop_batches(&mut self) {
        self.batch = AppendBatch::default();
        if let Some((batch, answer)) = self.in_commit.take()
            && let Ok(Appended::Stored { enqueued, .. }) = answer.block()
        {
            self.stored(batch, enqueued);
        }
    }

    /// Has files removed, all of which are stored.
    fn remove(&mut self, entries: Vec<SpoolEntry>) {
        for entry in &entries {
            self.forget_waiting(entry);
            self.ledger.begin_removal(entry);
        }
        self.remover.remove(entries);
    }

    /// Counts a file as waiting no more: it has left the folder, or is about to.
    fn forget_waiting(&mut self, entry: &SpoolEntry) {
        self.unsettled.forget_announcement(&entry.name);
        self.has_progressed = true;
        self.report.forget_waiting(entry.size);
    }

    fn settle_removals(&mut self) {
        for (name, error) in self.ledger.settle_removals(self.remover.results()) {
            if self.report.is_first_report(&name) {
                tracing::warn!("{error}; its events are stored, the removal is tried again");
            }
        }
        self.forget_gone();
    }

    fn forget_gone(&mut self) {
        let gone = self.ledger.take_gone();
        if !gone.is_empty() {
            self.agent.writer.forget(gone);
        }
    }

    fn tidy_rejected(&mut self) {
        let (now, spool) = (self.agent.clock.moment(), &self.config.spool);
        let time = self.agent.writer.stats().retention_time();
        let expired_before = time.minus(self.config.outbox.keep_failed);
        if let Some(count) = self.rejections.tidy(now.mono, expired_before, spool.scan_interval) {
            self.report.rejected(count);
        }
    }
}

fn reason_of(error: &OutboxError) -> Reason {
    let code = match error {
        OutboxError::ReadOnly { .. } => Code::ReadOnly,
        OutboxError::TooManyFiles { .. } => Code::Unreadable,
        _ => Code::DiskFull,
    };
    Reason::new(code, error.to_string())
}
