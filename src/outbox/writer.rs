//! The handle to the thread that writes.

use super::append::Appended;
use super::files::Progress;
use super::settle::Settled;
use super::stats::OutboxStats;
use super::{NewEvent, OutboxError, Settings};
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
    commands: Sender<Command>,
    stats: Arc<OutboxStats>,
    retry_requests: watch::Receiver<i64>,
    alarm: Alarm,
    retry_after_deadline: Option<Timestamp>,
}

/// Why the outbox can be used no longer, once that is so.
pub type Alarm = watch::Sender<Option<Arc<OutboxError>>>;

type Reply<T> = oneshot::Sender<Result<T, Arc<OutboxError>>>;

#[derive(Debug)]
pub(super) enum Command {
    Append {
        events: Arc<Vec<NewEvent>>,
        progress: Vec<Progress>,
        reply: Reply<Appended>,
    },
    Settle {
        settlement: Settlement,
        reply: Reply<()>,
    },
    /// Done with the next commit; it is worth none of its own.
    Forget(Vec<FileIdentity>),
    RetryAfterDeadline(Option<Timestamp>),
    Settings(Settings),
    /// Another process may have committed something.
    Look,
    Stop,
}

impl Command {
    /// Whether it is worth no commit of its own yet.
    pub(super) fn may_wait(&self) -> bool {
        match self {
            Command::Settle { settlement, .. } => settlement.may_wait,
            Command::Forget(_) => true,
            _ => false,
        }
    }
}

/// What has become of pending events.
#[derive(Debug, Clone, Default)]
pub struct Settlement {
    /// Those that are settled, and how.
    pub rows: Vec<(i64, Settled)>,
    /// Those that were answered otherwise, and wait on.
    pub attempts: Vec<(Vec<i64>, Reason)>,
    /// [`OutboxStats::external_commits`] as it was before those that are delivered were read, if each was all that is made of its event;
    /// then none needs to be looked at again.
    pub read_version: Option<u64>,
    /// Nothing is kept up by it: a few milliseconds later will do, in one commit with others.
    pub may_wait: bool,
}

impl From<Vec<(i64, Settled)>> for Settlement {
    fn from(rows: Vec<(i64, Settled)>) -> Settlement {
        Settlement { rows, ..Settlement::default() }
    }
}

/// What a call of the writer comes to; awaited by the sender, waited for by the intake's thread.
#[derive(Debug)]
pub struct Answer<T>(oneshot::Receiver<Result<T, Arc<OutboxError>>>);

impl<T> Answer<T> {
    /// Waits without blocking the thread.
    ///
    /// # Errors
    /// Those of the transaction; [`OutboxError::Closed`] when the writer has ended.
    pub async fn wait(self) -> Result<T, Arc<OutboxError>> {
        self.0.await.unwrap_or_else(|_| Err(Arc::new(OutboxError::Closed)))
    }

    /// Blocks the thread; not to be called on a thread that runs tasks.
    ///
    /// # Errors
    /// As [`Answer::wait`].
    pub fn block(self) -> Result<T, Arc<OutboxError>> {
        self.0.blocking_recv().unwrap_or_else(|_| Err(Arc::new(OutboxError::Closed)))
    }
}

impl Writer {
    pub(super) fn new(
        commands: Sender<Command>,
        stats: Arc<OutboxStats>,
        retry_requests: watch::Receiver<i64>,
        alarm: Alarm,
        retry_after_deadline: Option<Timestamp>,
    ) -> Writer {
        Writer { commands, stats, retry_requests, alarm, retry_after_deadline }
    }

    /// Adds events and notes how far their files are taken, all or nothing. When the answer is
    /// [`Appended::Stored`], both are on the disk.
    pub fn append(&self, events: impl Into<Arc<Vec<NewEvent>>>, progress: Vec<Progress>) -> Answer<Appended> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Append { events: events.into(), progress, reply });
        Answer(answer)
    }

    /// Settles pending events and notes answers other than acceptance. When the answer is `Ok`, it is on the disk.
    pub fn settle(&self, settlement: impl Into<Settlement>) -> Answer<()> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Settle { settlement: settlement.into(), reply });
        Answer(answer)
    }

    /// Forgets how far files were taken that are gone from the spool. If that is lost in a crash, the entries
    /// are found without their files at the next start.
    pub fn forget(&self, files: Vec<FileIdentity>) {
        self.tell(Command::Forget(files));
    }

    /// Keeps the receiver's own wish not to be asked again before a moment: the only wait that outlives a
    /// restart.
    pub fn set_retry_after_deadline(&self, at: Option<Timestamp>) {
        self.tell(Command::RetryAfterDeadline(at));
    }

    /// That wish, as it stood when the outbox was opened.
    pub fn retry_after_deadline(&self) -> Option<Timestamp> {
        self.retry_after_deadline
    }

    /// Looks at once for what other processes have committed. The writer comes round at least once after this.
    pub fn look(&self) {
        self.tell(Command::Look);
    }

    /// Takes over changed settings; the path stays as it is.
    pub fn reconfigure(&self, config: &config::OutboxConfig) {
        self.tell(Command::Settings(Settings::from(config)));
    }

    /// Figures about the database.
    pub fn stats(&self) -> Arc<OutboxStats> {
        self.stats.clone()
    }

    /// Changes when a command has put events back among the pending.
    pub fn retry_requests(&self) -> watch::Receiver<i64> {
        self.retry_requests.clone()
    }

    /// Tells when the outbox can be used no longer: its files are gone or damaged, or the device fails. Nothing is
    /// committed from then on.
    pub fn alarm(&self) -> watch::Receiver<Option<Arc<OutboxError>>> {
        self.alarm.subscribe()
    }

    pub(super) fn alarm_bell(&self) -> Alarm {
        self.alarm.clone()
    }

    pub(super) fn stop(&self) {
        self.tell(Command::Stop);
    }

    /// A writer that has ended drops the reply, and the caller learns it there.
    fn tell(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}
