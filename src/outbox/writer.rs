//! The handle to the thread that writes.

use super::append::Appended;
use super::keying::KeyRenewal;
use super::row::{NewEvent, Settled};
use super::spool_progress::FileProgress;
use super::{OutboxError, OutboxStats};
use crate::clock::Timestamp;
use crate::config;
use crate::reason::Reason;
use crate::spool::FileIdentity;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use tokio::sync::{oneshot, watch};

/// The handle to the writer. Clones speak to the same thread.
#[derive(Debug, Clone)]
pub struct Writer {
    commands: Sender<WriterCommand>,
    stats: Arc<OutboxStats>,
    retry_requests: watch::Receiver<i64>,
    alarm: Alarm,
    retry_after_deadline: Option<Timestamp>,
    accepted_by: Option<i64>,
}

/// Raised once the outbox can be used no longer; nothing is committed from then on.
#[derive(Debug, Clone)]
pub(super) struct Alarm(watch::Sender<Option<Arc<OutboxError>>>);

impl Alarm {
    pub(super) fn new() -> Alarm {
        Alarm(watch::Sender::new(None))
    }

    pub(super) fn raise(&self, error: impl Into<Arc<OutboxError>>) {
        self.0.send_replace(Some(error.into()));
    }

    pub(super) fn is_raised(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Why the alarm is raised.
    pub(super) fn error(&self) -> Option<Arc<OutboxError>> {
        self.0.borrow().clone()
    }
}

type Reply<T> = oneshot::Sender<Result<T, Arc<OutboxError>>>;

#[derive(Debug)]
pub(super) enum WriterCommand {
    Append {
        events: Arc<Vec<NewEvent>>,
        progress: Vec<FileProgress>,
        reply: Reply<Appended>,
    },
    Settle {
        settlement: Settlement,
        reply: Reply<()>,
    },
    /// Waits for the next commit.
    Forget(Vec<FileIdentity>),
    RetryAfterDeadline(Option<Timestamp>),
    AcceptedBy(i64),
    Configure(config::OutboxConfig),
    CheckForCommits,
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
    /// [`OutboxStats::external_commits`] before the delivered items were read, if each was alone of its event: if it
    /// has not changed, they need not be read again.
    pub read_version: Option<u64>,
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

/// A commit that has not been answered yet. The sender awaits it; the intake's thread blocks on it.
#[derive(Debug)]
pub struct PendingCommit<T>(oneshot::Receiver<Result<T, Arc<OutboxError>>>);

impl<T> PendingCommit<T> {
    /// Waits without blocking the thread.
    ///
    /// # Errors
    /// The errors of the transaction; [`OutboxError::Closed`] when the writer has ended.
    pub async fn wait(self) -> Result<T, Arc<OutboxError>> {
        self.0.await.unwrap_or_else(|_| Err(Arc::new(OutboxError::Closed)))
    }

    /// Blocks the thread; not to be called on a thread that runs tasks.
    ///
    /// # Errors
    /// As [`PendingCommit::wait`].
    pub fn block(self) -> Result<T, Arc<OutboxError>> {
        self.0.blocking_recv().unwrap_or_else(|_| Err(Arc::new(OutboxError::Closed)))
    }
}

impl Writer {
    pub(super) fn new(
        commands: Sender<WriterCommand>,
        stats: Arc<OutboxStats>,
        retry_requests: watch::Receiver<i64>,
        alarm: Alarm,
        retry_after_deadline: Option<Timestamp>,
        accepted_by: Option<i64>,
    ) -> Writer {
        Writer { commands, stats, retry_requests, alarm, retry_after_deadline, accepted_by }
    }

    /// Adds events and stores how far their files are ingested, all or nothing. When the result is
    /// [`Appended::Stored`], both are on the disk.
    pub fn append(
        &self,
        events: impl Into<Arc<Vec<NewEvent>>>,
        progress: Vec<FileProgress>,
    ) -> PendingCommit<Appended> {
        let (reply, answer) = oneshot::channel();
        self.send(WriterCommand::Append { events: events.into(), progress, reply });
        PendingCommit(answer)
    }

    /// Settles pending items and records answers other than acceptance. When the result is `Ok`, it is on the disk.
    pub fn settle(&self, settlement: impl Into<Settlement>) -> PendingCommit<()> {
        let (reply, answer) = oneshot::channel();
        self.send(WriterCommand::Settle { settlement: settlement.into(), reply });
        PendingCommit(answer)
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
        self.retry_after_deadline
    }

    /// Stores which receiver, with which key, has accepted an event.
    pub fn set_accepted_by(&self, receiver: i64) {
        self.send(WriterCommand::AcceptedBy(receiver));
    }

    /// The stored receiver as of the opening of the outbox.
    pub fn accepted_by(&self) -> Option<i64> {
        self.accepted_by
    }

    /// Checks for commits of other processes in a moment. The writer's loop makes at least one round after this.
    pub fn check_for_commits(&self) {
        self.send(WriterCommand::CheckForCommits);
    }

    /// Takes over changed settings, except the path.
    pub fn reconfigure(&self, config: &config::OutboxConfig) {
        self.send(WriterCommand::Configure(config.clone()));
    }

    /// Figures about the outbox.
    pub fn stats(&self) -> Arc<OutboxStats> {
        self.stats.clone()
    }

    /// A number that changes when a command has requeued events, or asks for another attempt.
    pub fn retry_requests(&self) -> watch::Receiver<i64> {
        self.retry_requests.clone()
    }

    /// Set once the outbox can be used no longer, because its files are gone or damaged or the device fails. Nothing is
    /// committed from then on.
    pub fn alarm(&self) -> watch::Receiver<Option<Arc<OutboxError>>> {
        self.alarm.0.subscribe()
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
