//! The intake: ingests the files of the spool into the outbox, on a thread of its own because reading files blocks.
//!
//! ```text
//!   Spool ──scan──▶ OwnerQueues ──turn──▶ FileReader ──event──▶ AppendBatch ──append──▶ durable ──▶ Remover
//!                    ▲       └─▶ WaitingFiles   └──reject──▶ Rejections (durable before the batch)     │
//!                    └──────────────── written to meanwhile ────────────────────────── KeptFiles ◀─────┘
//! ```
//!
//! The intake is the loop that joins these components; none of them knows it. It looks at the spool, then gives the owners
//! of files turns, one after the other, each for the events of one commit or a moment's work, until there is nothing to
//! read or it is time to look again. One batch is being committed while the next is read. No file is removed before the
//! commit that holds its events has been answered.
//!
//! A thread for each owner would be the other way. It would bring the same bounds of memory, files and commits between the
//! threads that turns have by themselves, and an order of commits would have to be found for them.

use super::append_batch::{AppendBatch, SourceFile};
use super::capacity::Capacity;
use super::error::Fatal;
use super::file_ledger::FileLedger;
use super::file_reader::{FileReader, ReadEnd, ReadStep};
use super::heartbeat::Heartbeat;
use super::new_event::ReadRules;
use super::readiness::WriterState;
use super::rejections::Rejections;
use super::removals::Removals;
use super::scan_report::{ScanReport, SpoolSnapshot};
use super::scanner::Scanner;
use super::settings::Settings;
use super::turn::{Reading, TURN, TurnClock, TurnState};
use crate::clock::Clock;
use crate::config::Config;
use crate::event::Flaw;
use crate::outbox::{Appended, Enqueued, FileProgress, PendingCommit, Writer};
use crate::reason::{Code, Reason};
use crate::spool::{
    FailedRejection, FileKey, Format, OpenError, RejectedPart, Spool, SpoolEntry, SpoolError, printable,
};
use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// The interval at which a blocked intake measures the room again.
const BLOCKED_RETRY: Duration = Duration::from_secs(1);
/// A deletion of the spool folder is over when the folder has been unchanged for this long. What the agent makes in it
/// earlier would keep it from being deleted.
const DELETION_PAUSE: Duration = Duration::from_millis(500);
/// The most pauses to wait for the end of a deletion: files may arrive all the time.
const MAX_DELETION_PAUSES: usize = 60;
/// The least time between two looks while files keep arriving. A look and a commit take some milliseconds however little
/// there is, so what arrives meanwhile shares them.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// The longest time between two looks, between two commits of what was read, and between two signs of life.
const ROUND: Duration = Duration::from_secs(1);
/// Files that are kept open in the middle between turns. Those of further owners are opened again.
const MAX_OPEN: usize = 64;
/// Text that a reader may keep in memory between turns. One reader may keep more; a second one that needs to takes its place
/// when that has had [`LARGE_TURNS`].
const LARGE: u64 = 1 << 20;
/// Turns in which a large document must have been read before it leaves the memory: to come back to its place it is read
/// again from its start.
const LARGE_TURNS: u32 = 8;
/// The most that deflate unpacks a byte to.
const MAX_UNPACKED: u64 = 1_032;

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
            SpoolError::Held { .. } => Code::Locked,
            SpoolError::Missing { .. }
            | SpoolError::Denied { .. }
            | SpoolError::NotOwn { .. }
            | SpoolError::RejectedFull { .. } => Code::Unreadable,
        };
        Interruption::Blocked(Reason::new(code, e.to_string()))
    }
}

/// The parts of the agent that the intake works with.
pub struct AgentHandles {
    pub settings: watch::Receiver<Settings>,
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
    /// The settings of this round.
    config: Arc<Config>,
    scanner: Scanner<Reading>,
    ledger: FileLedger,
    rejections: Rejections,
    capacity: Capacity,
    report: ScanReport,
    removals: Removals,
    batch: AppendBatch,
    /// When the first event of the batch was read.
    batch_began: Option<Instant>,
    /// The batch that is being committed.
    in_commit: Option<(AppendBatch, PendingCommit<Appended>)>,
    /// Files whose reading is to end, because something of them could not be rejected; by the key of their identity in the
    /// outbox.
    withdrawn: HashSet<FileKey>,
    /// Whether a file has left the folder since the last scan, or is about to.
    has_progressed: bool,
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
        let scanner = Scanner::new(&spool, agent.clock.clone(), move || {
            // A full channel holds a wake already.
            let _ = watcher_wakes.try_send(());
        });
        let config = agent.settings.borrow().config.clone();
        let intake = Intake {
            scanner,
            ledger: FileLedger::new(progress),
            rejections: Rejections::new(spool.rejected_folder()),
            capacity: Capacity::new(agent.writer.stats()),
            report: ScanReport::new(spool.dir(), snapshot),
            removals: Removals::start(&spool)?,
            batch: AppendBatch::default(),
            batch_began: None,
            in_commit: None,
            withdrawn: HashSet::new(),
            has_progressed: false,
            spool,
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
        self.ledger.suspect_all();
        self.forget_missing();
        loop {
            self.agent.heartbeat.tick();
            self.config = self.agent.settings.borrow().config.clone();
            let began = Instant::now();
            let wait = match self.round(began) {
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
            if wait.is_zero() {
                continue;
            }
            match woken.recv_timeout(wait) {
                Ok(()) => {
                    // A shorter pause after a look that found nothing to ingest.
                    let pause = if self.has_progressed { LOOK_PAUSE } else { LOOK_PAUSE / 2 };
                    std::thread::sleep(pause.saturating_sub(began.elapsed()));
                    // The next look answers any wake during the pause.
                    let _ = woken.try_recv();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.scanner.in_hand.stop();
        self.removals.finish();
        self.settle_removals();
        Ok(())
    }

    /// Looks at the spool and gives turns until nothing is ready. Returns when to look again at the latest.
    fn round(&mut self, began: Instant) -> Result<Duration, Interruption> {
        self.look()?;
        let mut looked_at = Instant::now();
        while let Some(owner) = self.scanner.queues.next_turn() {
            self.turn(owner)?;
            let is_old = self.batch_began.is_some_and(|began| began.elapsed() >= TURN);
            if is_old || self.batch.is_full(self.capacity.room()) {
                self.flush()?;
            }
            if began.elapsed() >= ROUND {
                break;
            }
            if looked_at.elapsed() >= LOOK_PAUSE {
                self.scanner.add_announced(&self.spool);
                looked_at = Instant::now();
            }
        }
        self.flush()?;
        self.finish_commit()?;
        self.settle_removals();
        let wait = self.scanner.time_to_next_look(self.config.spool.scan_interval, self.has_progressed);
        let check_in = self.removals.time_to_check(self.agent.clock.mono());
        Ok(check_in.map_or(wait, |rest| rest.min(wait)))
    }

    /// Brings everything up to date that is not of one file.
    fn look(&mut self) -> Result<(), Interruption> {
        self.settle_removals();
        if !self.spool.is_whole() {
            self.reopen_spool()?;
        }
        self.spool.put_back_stranded();
        self.forget_missing();
        self.tidy_rejected();
        self.removals.check_kept(self.agent.clock.mono());
        let (now, settle, heartbeat) =
            (self.agent.clock.moment(), self.config.spool.settle, &self.agent.heartbeat);
        self.scanner.look(
            &self.spool,
            &self.config.spool,
            |listing, present| {
                self.has_progressed = false;
                self.rejections.retain(listing);
                let removing = self.ledger.removing_among(listing.files());
                self.report.scanned(listing, present, removing, now, settle)
            },
            &mut || heartbeat.tick(),
        )?;
        self.capacity.check(&self.config.outbox).map_err(Interruption::Blocked)
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
        let spool = self.spool.reopen()?;
        self.scanner.reopen(&spool);
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

    /// One turn of an owner: the events of one commit, or a moment's work.
    fn turn(&mut self, owner: u32) -> Result<(), Interruption> {
        self.tick_or_stop()?;
        let reason = self.capacity.check_owner(owner, &self.config.outbox);
        if let Some(reason) = reason.or_else(|| self.rejections.check_owner(owner)) {
            self.report.owner_waits(owner, reason);
            self.scanner.hold(owner, BLOCKED_RETRY);
            if let Some(Reading { source, .. }) = self.scanner.queues.take_begun(owner) {
                self.scanner.queues.keep_begun(owner, Reading { source, reader: None, turns: 0 });
            }
            return Ok(());
        }
        self.report.owner_goes_on(owner);
        let mut clock = TurnClock::start();
        if let Some(reading) = self.scanner.queues.take_begun(owner)
            && self.go_on(reading, &mut clock)? == TurnState::Over
        {
            return Ok(());
        }
        while let Some(entry) = self.scanner.queues.next_file(owner) {
            if self.ingest(entry, &mut clock)? == TurnState::Over
                || clock.is_over()
                || self.batch.is_full(self.capacity.room())
            {
                break;
            }
        }
        self.scanner.end_turn();
        Ok(())
    }

    /// Ingests a file as far as it is ready and its owner's turn goes.
    fn ingest(&mut self, entry: SpoolEntry, clock: &mut TurnClock) -> Result<TurnState, Interruption> {
        let now = self.agent.clock.mono();
        if self.ledger.is_removing_version(&entry) {
            return Ok(TurnState::GoOn);
        }
        if self.ledger.is_removing(&entry) {
            // Another file of that name is on its way out, or this one was written to or renamed on its way.
            self.scanner.hold_for_tick(entry);
            return Ok(TurnState::Over);
        }
        if self.scanner.still_waits(&entry) {
            return Ok(TurnState::GoOn);
        }
        let (writer, file) = match self.spool.open_file(&entry) {
            Ok((file, true)) => (WriterState::Closed, Some(file)),
            Ok((file, false)) => (WriterState::Unknown, Some(file)),
            Err(OpenError::OpenForWriting) => (WriterState::Open, None),
            Err(OpenError::Changed) => {
                self.scanner.put_off(&entry, self.config.spool.settle);
                return Ok(TurnState::GoOn);
            }
            Err(OpenError::Unreadable) => {
                self.report.unreadable(&entry, now);
                self.scanner.put_off(&entry, self.config.spool.scan_interval);
                return Ok(TurnState::GoOn);
            }
            Err(OpenError::Error(e)) => {
                self.report.report(&entry.name, format_args!("{e}"), now);
                self.scanner.put_off(&entry, self.config.spool.scan_interval);
                return Ok(TurnState::GoOn);
            }
        };
        self.report.readable(&entry);
        let read = entry.stamp();
        let before = self.ledger.progress(&entry).cloned();
        let is_stored = before.as_ref().is_some_and(|progress| progress.finished && progress.read == read);
        let is_ready = self.scanner.is_ready(&entry, writer, is_stored, self.config.spool.settle);
        match file {
            Some(_) if is_ready && self.scanner.holds_back(&entry, self.config.spool.settle) => {
                return Ok(TurnState::Over);
            }
            Some(_) if is_ready && is_stored => {
                self.ledger.begin_removal(&entry);
                self.remove(vec![entry]);
            }
            Some(file) if is_ready => return self.begin(entry, file, before, clock),
            _ => {}
        }
        Ok(TurnState::GoOn)
    }

    /// Begins to read a file, or reads on where the last reading of it ended.
    fn begin(
        &mut self,
        entry: SpoolEntry,
        file: File,
        before: Option<FileProgress>,
        clock: &mut TurnClock,
    ) -> Result<TurnState, Interruption> {
        let read = entry.stamp();
        let mut progress =
            before.unwrap_or_else(|| FileProgress::none(entry.name.as_bytes(), entry.identity, read));
        if matches!(entry.format(), Some((Format::Document, _))) && progress.read != read {
            // A document that may have been written to is read from its start: the events' ids tell which are new.
            (progress.position, progress.place) = (0, 0);
        }
        (progress.read, progress.finished) = (read, false);
        self.withdrawn.remove(&progress.identity.key());
        self.open(SourceFile::new(entry, progress), file, clock)
    }

    fn open(
        &mut self,
        source: SourceFile,
        file: File,
        clock: &mut TurnClock,
    ) -> Result<TurnState, Interruption> {
        let Some(format) = source.entry.format() else { return Ok(TurnState::GoOn) };
        if may_be_large(&source.entry, format) {
            if !self.close_large_reader() {
                self.scanner
                    .queues
                    .keep_begun(source.entry.owner, Reading { source, reader: None, turns: 0 });
                return Ok(TurnState::Over);
            }
            self.scanner.in_hand.take(source.entry.identity.key());
        }
        let reader = FileReader::open(file, format, source.clone(), ReadRules::from(&*self.config));
        self.read(source, reader, 0, clock)
    }

    /// Goes on with a file that was begun in an earlier turn.
    fn go_on(&mut self, reading: Reading, clock: &mut TurnClock) -> Result<TurnState, Interruption> {
        let Reading { source, reader, turns } = reading;
        if let Some(reader) = reader {
            if matches!(source.entry.format(), Some((Format::Document, _))) {
                self.scanner.in_hand.take(source.entry.identity.key());
            }
            return self.read(source, reader, turns, clock);
        }
        match self.spool.open_file(&source.entry) {
            Ok((file, _)) => self.open(source, file, clock),
            Err(_) => {
                // It has changed. What was read of it is stored before it is looked at again.
                self.flush()?;
                self.finish_commit()?;
                self.scanner.put_off(&source.entry, self.config.spool.settle);
                Ok(TurnState::Over)
            }
        }
    }

    /// Acts on each step of a reader, until the file or the turn ends.
    fn read(
        &mut self,
        mut source: SourceFile,
        mut reader: FileReader,
        turns: u32,
        clock: &mut TurnClock,
    ) -> Result<TurnState, Interruption> {
        let from = reader.position();
        self.batch.resume(&source);
        self.batch_began.get_or_insert_with(Instant::now);
        let mut is_full = self.batch.is_full(self.capacity.room());
        let mut has_flushed = false;
        loop {
            let before = reader.position();
            let step = reader.next_step();
            if is_full && !matches!(step, ReadStep::End(_)) {
                self.flush()?;
                if self.is_withdrawn(&source) {
                    return Ok(TurnState::GoOn);
                }
                source.advance(before);
                self.batch.resume(&source);
                self.batch_began = Some(Instant::now());
                has_flushed = true;
            }
            match step {
                ReadStep::Event(event) => self.batch.push(event),
                ReadStep::NoEvent(bytes) => self.batch.account_bytes(bytes),
                ReadStep::Reject(part) => {
                    if !self.reject_part(&source, &part)? {
                        return Ok(TurnState::GoOn);
                    }
                }
                ReadStep::RejectUnlessGrowing(part) => match self.wait_for_rest(&source.entry) {
                    Some(rest) => {
                        self.leave(&source.entry, rest)?;
                        return Ok(TurnState::GoOn);
                    }
                    None => {
                        if !self.reject_part(&source, &part)? {
                            return Ok(TurnState::GoOn);
                        }
                    }
                },
                ReadStep::End(end) => {
                    self.end(&source, end)?;
                    return Ok(TurnState::GoOn);
                }
            }
            self.batch.advance(reader.position());
            is_full = self.batch.is_full(self.capacity.room());
            if has_flushed || clock.is_over() {
                source.advance(reader.position());
                let turns = turns + u32::from(reader.position() != from);
                self.keep(source, reader, turns);
                return Ok(TurnState::Over);
            }
        }
    }

    /// Keeps a reader until its owner's next turn, or only how far it has come.
    fn keep(&mut self, source: SourceFile, reader: FileReader, turns: u32) {
        let open = self.scanner.queues.begun_mut().filter(|reading| reading.reader.is_some()).count();
        let has_room = !is_large(&reader) || self.close_large_reader();
        let reader = (open < MAX_OPEN && has_room).then_some(reader);
        self.scanner.queues.keep_begun(source.entry.owner, Reading { source, reader, turns });
    }

    /// Lets go of the large document in memory, if there is one, until its owner's next turn. Returns false if it stays,
    /// because it has had too few turns.
    fn close_large_reader(&mut self) -> bool {
        let mut begun = self.scanner.queues.begun_mut();
        let Some(large) = begun.find(|reading| reading.reader.as_ref().is_some_and(is_large)) else {
            return true;
        };
        if large.turns < LARGE_TURNS {
            return false;
        }
        (large.reader, large.turns) = (None, 0);
        true
    }

    /// Leaves a file of which something has to wait. What was read of it is stored before it is looked at again, so that
    /// nothing is read twice.
    fn leave(&mut self, entry: &SpoolEntry, rest: Duration) -> Result<(), Interruption> {
        self.scanner.in_hand.put_down(entry.identity.key());
        if !self.batch.cancel_unread() {
            self.flush()?;
            self.finish_commit()?;
        }
        self.scanner.put_off(entry, rest);
        Ok(())
    }

    /// Acts on the end of a reading.
    fn end(&mut self, source: &SourceFile, end: ReadEnd) -> Result<(), Interruption> {
        let entry = &source.entry;
        self.scanner.in_hand.put_down(entry.identity.key());
        match end {
            ReadEnd::Complete => {
                self.rejections.is_complete(entry);
                self.batch.finish();
                self.ledger.begin_removal(entry);
            }
            ReadEnd::Unusable(flaw) | ReadEnd::UnusableRest(flaw)
                if flaw.incomplete
                    && let Some(rest) = self.wait_for_rest(entry) =>
            {
                self.leave(entry, rest)?;
            }
            ReadEnd::Unusable(flaw) | ReadEnd::UnusableRest(flaw) => {
                // The events read before the flaw are durable before the file leaves the spool.
                if !self.batch.cancel_unread() {
                    self.flush()?;
                    self.finish_commit()?;
                }
                if !self.is_withdrawn(source) {
                    self.reject_file(entry, &flaw);
                }
            }
            ReadEnd::Shortened => {
                self.leave(entry, Duration::ZERO)?;
                self.ledger.restart(entry);
            }
            ReadEnd::Failed(e) => {
                let now = self.agent.clock.mono();
                self.report.report(&entry.name, format_args!("cannot be read: {e}"), now);
                self.leave(entry, self.config.spool.scan_interval)?;
            }
        }
        Ok(())
    }

    fn wait_for_rest(&mut self, entry: &SpoolEntry) -> Option<Duration> {
        let (now, limit) = (self.agent.clock.mono(), self.config.spool.incomplete_after);
        self.rejections.wait_for_rest(entry, now, limit)
    }

    /// Rejects a whole file. If it cannot be, it stays: it has no event that younger files could overtake, and ingesting
    /// those may make room.
    fn reject_file(&mut self, entry: &SpoolEntry, flaw: &Flaw) {
        let now = self.agent.clock.moment();
        match self.rejections.reject_file(&self.spool, entry, flaw, now) {
            // The ledger keeps how far the file was ingested, in case it comes back.
            Ok(true) => self.forget_waiting(entry),
            Ok(false) => self.scanner.put_off(entry, self.config.spool.settle),
            Err(e) => self.put_off_rejection(entry, &e),
        }
    }

    /// Rejects a part of a file. Returns whether it could; if not, the file stays, and is tried again.
    fn reject_part(&mut self, source: &SourceFile, part: &RejectedPart) -> Result<bool, Interruption> {
        let now = self.agent.clock.moment();
        if let Err(e) = self.rejections.reject_part(source, part, now) {
            self.leave(&source.entry, self.config.spool.scan_interval)?;
            self.put_off_rejection(&source.entry, &e);
            return Ok(false);
        }
        self.batch.account_rejected(part.content.len());
        Ok(true)
    }

    /// Has a file wait of which something cannot be rejected. It holds up nobody: neither its owner's files nor those of
    /// others.
    fn put_off_rejection(&mut self, entry: &SpoolEntry, error: &SpoolError) {
        let stays = if error.is_full() { "until there is room" } else { "and is tried again" };
        let now = self.agent.clock.mono();
        self.report.report(&entry.name, format_args!("{error}; it stays {stays}"), now);
        self.scanner.put_off(entry, self.config.spool.scan_interval);
    }

    /// Takes files out of the batches of which something could not be rejected, and ends their reading: what comes behind
    /// must not be stored before it.
    fn withdraw(&mut self, mut in_commit: Option<&mut AppendBatch>, failed: Vec<FailedRejection>) {
        for FailedRejection { key, error } in failed {
            let begun =
                self.scanner.queues.take_begun_if(|begun| begun.source.progress.identity.key() == key);
            let entries = [
                begun.map(|begun| begun.source.entry),
                self.batch.take_out_file(key),
                in_commit.as_mut().and_then(|batch| batch.take_out_file(key)),
            ];
            for entry in entries.into_iter().flatten() {
                self.scanner.in_hand.put_down(entry.identity.key());
                self.ledger.cancel_removal(&entry.name);
                self.put_off_rejection(&entry, &error);
            }
            self.withdrawn.insert(key);
        }
    }

    fn is_withdrawn(&self, source: &SourceFile) -> bool {
        self.withdrawn.contains(&source.progress.identity.key())
    }

    /// Begins to commit the batch, once the one before it is durable.
    fn flush(&mut self) -> Result<(), Interruption> {
        self.tick_or_stop()?;
        self.batch_began = None;
        let failed = self.rejections.sync()?.inspect(|_| self.report.rejected(&self.rejections));
        let has_failed = failed.as_ref().is_some_and(|failed| !failed.is_empty());
        self.withdraw(None, failed.unwrap_or_default());
        if self.batch.is_empty() && !has_failed {
            return Ok(());
        }
        self.finish_commit()?;
        if self.batch.is_empty() {
            return Ok(());
        }
        self.capacity.check(&self.config.outbox).map_err(Interruption::Blocked)?;
        let batch = std::mem::take(&mut self.batch);
        self.submit(batch);
        self.removals.note(&mut self.ledger, &mut self.report, self.agent.clock.mono());
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
                Ok(Appended::Outdated) => self.submit(batch),
                Ok(Appended::Reused(reused)) => {
                    let (spool, now) = (&self.spool, self.agent.clock.moment());
                    let (gone, failed) = self.rejections.reject_reused(&mut batch, &reused, spool, now)?;
                    self.withdraw(Some(&mut batch), failed);
                    for entry in gone {
                        self.ledger.cancel_removal(&entry.name);
                        self.forget_waiting(&entry);
                    }
                    self.report.rejected(&self.rejections);
                    self.submit(batch);
                }
                Err(e) if e.is_transient() => {
                    self.stay(&batch);
                    return Err(Interruption::Blocked(e.reason()));
                }
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

    /// Drops the batch that is being read and what was begun; it is read again. The batch in commit gets durable or does
    /// not.
    fn drop_batches(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        self.stay(&batch);
        self.batch_began = None;
        if let Some((batch, answer)) = self.in_commit.take() {
            match answer.block() {
                Ok(Appended::Stored { enqueued, .. }) => self.stored(batch, enqueued),
                _ => self.stay(&batch),
            }
        }
        self.scanner.forget_queues();
    }

    /// Notes that the files of a batch stay in the spool, because it is not stored.
    fn stay(&mut self, batch: &AppendBatch) {
        let whole = batch.sources.iter().filter(|source| source.progress.finished);
        whole.for_each(|source| self.ledger.cancel_removal(&source.entry.name));
    }

    /// Has files removed, all of which are stored.
    fn remove(&mut self, entries: Vec<SpoolEntry>) {
        entries.iter().for_each(|entry| self.forget_waiting(entry));
        self.removals.remove(entries);
    }

    /// Counts a file as waiting no more: it has left the folder, or is about to.
    fn forget_waiting(&mut self, entry: &SpoolEntry) {
        self.scanner.waiting.forget(&entry.name);
        self.has_progressed = true;
        self.report.forget_waiting(entry);
    }

    fn settle_removals(&mut self) {
        let now = self.agent.clock.mono();
        let back = self.removals.settle(&mut self.ledger, &mut self.report, now);
        self.scanner.add_files(&self.spool, back);
        self.forget_gone();
    }

    /// Forgets the files that are gone, although the agent has not removed them.
    fn forget_missing(&mut self) {
        let (spool, heartbeat) = (&self.spool, &self.agent.heartbeat);
        let for_each_key = |each: &mut dyn FnMut(FileKey)| {
            spool.for_each_key(&mut |key| {
                heartbeat.tick();
                each(key);
            })
        };
        if let Err(e) = self.ledger.forget_missing(self.agent.clock.mono(), for_each_key) {
            tracing::debug!("files that are missing stay known for now: {e}");
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
        let now = self.agent.clock.moment();
        let retention_time = self.agent.writer.stats().retention_time();
        let (spool, keep_failed) = (&self.config.spool, self.config.outbox.keep_failed);
        let sign_of_life = || self.agent.heartbeat.tick();
        if self.rejections.tidy(now, retention_time, spool, keep_failed, sign_of_life) {
            self.report.rejected(&self.rejections);
        }
    }
}

/// Whether the text of the file may take more memory than is kept for several.
fn may_be_large(entry: &SpoolEntry, (format, is_packed): (Format, bool)) -> bool {
    let unpacked = entry.size.saturating_mul(if is_packed { MAX_UNPACKED } else { 1 });
    format == Format::Document && unpacked > LARGE
}

fn is_large(reader: &FileReader) -> bool {
    reader.memory() as u64 > LARGE
}
