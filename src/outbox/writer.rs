//! The handle to the thread that writes.

use super::alarm::Alarm;
use super::appended::Appended;
use super::changes::Change;
use super::commands::Applied;
use super::destinations::DestinationFacts;
use super::keying::KeyRenewal;
use super::pending_commit::{PendingCommit, Reply};
use super::row::{NewEvent, Settled};
use super::spool_progress::FileProgress;
use super::suppression::Suppression;
use super::{OutboxError, OutboxStats};
use crate::clock::Timestamp;
use crate::config;
use crate::reason::Reason;
use crate::spool::FileIdentity;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{oneshot, watch};

/// The handle to the writer. Clones speak to the same thread.
#[derive(Debug, Clone)]
pub struct Writer {
    commands: Sender<WriterCommand>,
    stats: Arc<OutboxStats>,
    suppression: Arc<Mutex<Suppression>>,
    alarm: Alarm,
    destination: DestinationFacts,
}

#[derive(Debug)]
pub(super) enum WriterCommand {
    Append {
        events: Arc<Vec<NewEvent>>,
        progress: Vec<FileProgress>,
        /// The version of the suppressed persons of whom the events are free.
        suppression: u64,
        reply: Reply<Appended>,
    },
    Settle {
        settlement: Settlement,
        reply: Reply<()>,
    },
    /// A change by hand.
    Change {
        change: Box<Change>,
        reply: Reply<Applied>,
    },
    /// See [`Writer::empty_log`].
    EmptyLog(Reply<(bool, Vec<i32>)>),
    /// Waits for the next commit.
    Forget(Vec<FileIdentity>),
    RetryAfterDeadline(Option<Timestamp>),
    AcceptedBy(i64),
    Configure(config::OutboxConfig),
    /// Has the loop come round.
    Ping,
    Stop,
}

impl WriterCommand {
    /// Whether the command is worth no commit of its own yet.
    pub(super) fn may_wait(&self) -> bool {
        match self {
            WriterCommand::Settle { settlement, .. } => settlement.may_wait,
            WriterCommand::Forget(_) | WriterCommand::AcceptedBy(_) => true,
            _ => false,
        }
    }
}

/// The consequences of the receiver's answers for pending items.
#[derive(Debug, Clone, Default)]
pub struct Settlement {
    /// Items that are settled, and how.
    pub rows: Vec<(i64, Settled)>,
    /// Items that stay pending, and the answer they got.
    pub attempts: Vec<(Vec<i64>, Reason)>,
    /// Each of the delivered items was alone of its event when it was read, so that it need not be read again.
    pub are_alone: bool,
    /// The status of the answer that accepted the delivered items.
    pub status: Option<u16>,
    /// A step in the renewal of ordering keys.
    pub renewal: Option<KeyRenewal>,
    /// No caller waits for this settlement; it may be delayed a few milliseconds to share a commit.
    pub may_wait: bool,
}

impl From<Vec<(i64, Settled)>> for Settlement {
    fn from(rows: Vec<(i64, Settled)>) -> Settlement {
        Settlement { rows, ..Settlement::default() }
    }
}

impl Writer {
    pub(super) fn new(
        commands: Sender<WriterCommand>,
        stats: Arc<OutboxStats>,
        suppression: Arc<Mutex<Suppression>>,
        alarm: Alarm,
        destination: DestinationFacts,
    ) -> Writer {
        Writer { commands, stats, suppression, alarm, destination }
    }

    /// Adds events and stores how far their files are ingested, all or nothing. When the result is
    /// [`Appended::Stored`], both are on the disk. Events of suppressed persons are stored without their content.
    pub fn append(
        &self,
        events: impl Into<Arc<Vec<NewEvent>>>,
        progress: Vec<FileProgress>,
    ) -> PendingCommit<Appended> {
        let (reply, answer) = oneshot::channel();
        let known = self.suppression.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (events, suppression) = (known.redact(events.into()), known.version());
        self.send(WriterCommand::Append { events, progress, suppression, reply });
        PendingCommit::of(answer)
    }

    /// Settles pending items and records answers other than acceptance. When the result is `Ok`, it is on the disk.
    pub fn settle(&self, settlement: impl Into<Settlement>) -> PendingCommit<()> {
        let (reply, answer) = oneshot::channel();
        self.send(WriterCommand::Settle { settlement: settlement.into(), reply });
        PendingCommit::of(answer)
    }

    /// Deletes the progress of files that are gone from the spool. If that is lost in a crash, the next start finds the
    /// entries without their files.
    pub fn forget(&self, files: Vec<FileIdentity>) {
        self.send(WriterCommand::Forget(files));
    }

    /// Stores until when the receiver asked for no requests: the only wait that outlives a restart.
    pub fn set_retry_after_deadline(&self, at: Option<Timestamp>) {
        self.send(WriterCommand::RetryAfterDeadline(at));
    }

    /// The stored deadline as of the opening of the outbox.
    pub fn retry_after_deadline(&self) -> Option<Timestamp> {
        self.destination.retry_after
    }

    /// Stores which receiver, with which key, has accepted an event.
    pub fn set_accepted_by(&self, receiver: i64) {
        self.send(WriterCommand::AcceptedBy(receiver));
    }

    /// The stored receiver as of the opening of the outbox.
    pub fn accepted_by(&self) -> Option<i64> {
        self.destination.accepted_by
    }

    /// Makes a change by hand. When the result is `Ok`, it is on the disk, with the record of it.
    pub fn change(&self, change: Change) -> PendingCommit<Applied> {
        let (reply, answer) = oneshot::channel();
        self.send(WriterCommand::Change { change: Box::new(change), reply });
        PendingCommit::of(answer)
    }

    /// Empties the write-ahead log. Returns whether nothing of what was erased before is left in any file, and which other
    /// processes prevent that.
    pub fn empty_log(&self) -> PendingCommit<(bool, Vec<i32>)> {
        let (reply, answer) = oneshot::channel();
        self.send(WriterCommand::EmptyLog(reply));
        PendingCommit::of(answer)
    }

    /// Has the writer's loop make a round.
    pub fn ping(&self) {
        self.send(WriterCommand::Ping);
    }

    /// Takes over changed settings, except the path.
    pub fn reconfigure(&self, config: &config::OutboxConfig) {
        self.send(WriterCommand::Configure(config.clone()));
    }

    /// Figures about the outbox.
    pub fn stats(&self) -> Arc<OutboxStats> {
        self.stats.clone()
    }

    /// Set once the outbox can be used no longer, because its files are gone or damaged or the device fails. Nothing is
    /// committed from then on.
    pub fn alarm(&self) -> watch::Receiver<Option<Arc<OutboxError>>> {
        self.alarm.watch()
    }

    pub(super) fn alarm_sender(&self) -> Alarm {
        self.alarm.clone()
    }

    pub(super) fn stop(&self) {
        self.send(WriterCommand::Stop);
    }

    /// If the writer has ended, the command is dropped with its reply, and the caller learns it from that.
    fn send(&self, command: WriterCommand) {
        let _ = self.commands.send(command);
    }
}
