//! The agent: the loops that bring events from the spool to the receiver, started, watched and stopped together.
//!
//! ```text
//!   spool ──▶ Intake ──append──▶ ┌────────┐ ◀──read── Batcher ◀──order── Sender ──▶ receiver
//!            (thread)            │ outbox │           (thread) ──request──▶ (task)
//!                                └────────┘ ◀──────────────settle────────────┘
//!                 Publisher (thread): what both see, for everybody to read
//! ```

mod append_batch;
mod batcher;
pub mod destination;
mod disposition;
mod heartbeat;
mod intake;
mod limiter;
mod ordering_keys;
mod publisher;
mod readiness;
mod reading;
mod rejections;
mod removal;
mod remover;
mod scan_report;
pub mod scheduler;
mod sender;
mod state_reporter;
mod summary;

pub use disposition::disposition;
pub use heartbeat::Heartbeat;

use crate::clock::Clock;
use crate::config::Config;
use crate::koala::{Client, ClientError};
use crate::outbox::{Outbox, OutboxError, OutboxStats, QueueReader, Reader};
use crate::spool::{Spool, SpoolError, Watcher};
use crate::status::{self, Status};
use batcher::Batcher;
use intake::Intake;
use publisher::{Publisher, Publishing};
use scan_report::SpoolSnapshot;
use sender::{Sender, SenderCommand};
use state_reporter::StateReporter;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The outbox.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The status file.
    #[error("cannot publish the status in {path}: {source}")]
    Status {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl StartError {
    /// Whether the same start can succeed later, with room or with the right to write.
    pub fn is_transient(&self) -> bool {
        match self {
            StartError::Outbox(e) => e.is_transient(),
            StartError::Spool(SpoolError::Io { source, .. }) | StartError::Status { source, .. } => {
                matches!(
                    source.kind(),
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem
                )
            }
            StartError::Spool(_) | StartError::Client(_) | StartError::Thread(_) => false,
        }
    }
}

/// Why an agent ended that was not told to.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The outbox failed in a way that waiting does not fix; a restart recovers what is in it.
    #[error("{0}")]
    Outbox(Arc<OutboxError>),
    /// A defect: the panic has been logged.
    #[error("the {0} has ended by a defect")]
    Defect(&'static str),
}

/// A running agent.
pub struct Agent {
    config: Arc<Mutex<Config>>,
    clock: Clock,
    outbox: Outbox,
    signals: mpsc::UnboundedSender<SenderCommand>,
    wake: SyncSender<()>,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<(), Fatal>>,
    intake: oneshot::Receiver<Result<(), Fatal>>,
    publisher: Arc<Publisher>,
    publishing: Publishing,
    retry_listener: JoinHandle<()>,
    heartbeats: [(&'static str, Heartbeat); 3],
    stats: Arc<OutboxStats>,
    alarm: watch::Receiver<Option<Arc<OutboxError>>>,
}

impl Agent {
    /// Starts the loops. When this returns `Ok`, the outbox is owned, the spool is watched, and files are taken.
    ///
    /// # Errors
    /// See [`StartError`]; then nothing runs.
    pub async fn start(config: Config, clock: Clock) -> Result<Agent, StartError> {
        let outbox = Outbox::open(&config.outbox, clock.clone())?;
        let spool = Spool::open(&config.spool.dir)?;
        let reader = || Reader::open_in_process(&config.outbox.path);
        let client = Client::new(&config.koala, clock.clone())?;
        let (signals, inbox) = mpsc::unbounded_channel();
        let (wake, wakes) = sync_channel(1);

        let snapshot = Arc::new(Mutex::new(SpoolSnapshot {
            spool: status::Spool { dir: spool.dir().to_owned(), ..status::Spool::default() },
            intake: status::Intake { state: status::IntakeState::Open, reason: None },
        }));
        let (destination, shown) = watch::channel(status::Destination {
            kind: "koala".to_owned(),
            endpoint: config.koala.endpoint.clone(),
            state: status::DestinationState::Unknown,
            since: None,
            reason: None,
            retry_at: None,
            last_delivery: None,
        });
        let (notify_publisher, notify) = std::sync::mpsc::channel();
        let shared = Arc::new(Mutex::new(config.clone()));
        let publisher = Arc::new(Publisher::new(
            shared.clone(),
            clock.clone(),
            reader()?,
            outbox.writer.clone(),
            snapshot.clone(),
            shown,
        ));
        match publisher.publish(true) {
            // What waits is delivered all the same, and the publisher tries again and says so.
            Err(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {}
            Err(e) => {
                return Err(match e.downcast::<OutboxError>() {
                    Ok(e) => {
                        // A large one is not looked through when it is opened.
                        outbox.mark_corrupt(&e);
                        StartError::Outbox(e)
                    }
                    Err(source) => StartError::Status { path: config.status_file.clone(), source },
                });
            }
            Ok(()) => {}
        }

        let heartbeats = ["sender", "batcher", "intake"].map(|name| (name, Heartbeat::default()));
        let queue = || QueueReader::new(reader()?, outbox.writer.stats());
        let batcher = Batcher::start([queue()?, queue()?], clock.clone(), heartbeats[1].1.clone());
        let batcher = batcher.map_err(StartError::Thread)?;
        let sender = Sender::new(
            client,
            &config,
            outbox.writer.clone(),
            batcher,
            clock.clone(),
            StateReporter::new(destination, notify_publisher),
            heartbeats[0].1.clone(),
        );
        let stop = Arc::new(AtomicBool::new(false));
        let waking = wake.clone();
        let (watcher, unwatched) = Watcher::new(spool.dir(), move || {
            // A full channel has a wake in it already.
            let _ = waking.try_send(());
        });
        if let Some(why) = unwatched {
            tracing::warn!("the spool cannot be watched ({why}): files are found within spool.scan_interval");
        }
        let stored = {
            let signals = signals.clone();
            Box::new(move |waiting| {
                let _ = signals.send(SenderCommand::Stored(waiting));
            })
        };
        let intake = Intake::new(intake::IntakeParts {
            spool,
            watcher,
            config: shared.clone(),
            writer: outbox.writer.clone(),
            progress: outbox.progress.clone(),
            clock: clock.clone(),
            wakes,
            stop: stop.clone(),
            stored,
            snapshot,
            heartbeat: heartbeats[2].1.clone(),
        })
        .map_err(StartError::Thread)?;
        let (ended, intake_ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("intake".into())
            .spawn(move || {
                // Nobody listens any more once the agent is gone.
                let _ = ended.send(intake.run());
            })
            .map_err(StartError::Thread)?;

        let retry_listener = {
            let (signals, mut retry_requests) = (signals.clone(), outbox.writer.retry_requests());
            tokio::spawn(async move {
                while retry_requests.changed().await.is_ok() {
                    let _ = signals.send(SenderCommand::RetryNow);
                }
            })
        };
        let publishing = publisher.clone().start(notify).map_err(StartError::Thread)?;
        Ok(Agent {
            stats: outbox.writer.stats(),
            alarm: outbox.writer.alarm(),
            config: shared,
            clock,
            outbox,
            signals,
            wake,
            stop,
            sender: tokio::spawn(sender.run(inbox)),
            intake: intake_ended,
            publisher,
            publishing,
            retry_listener,
            heartbeats,
        })
    }

    /// What `status` prints.
    ///
    /// # Errors
    /// The outbox cannot be read.
    pub fn status(&self) -> Result<Status, OutboxError> {
        self.publisher.status(true)
    }

    /// Returns when the agent cannot go on. If that is because its outbox is damaged, the next start recovers it.
    pub async fn failed(&mut self) -> Fatal {
        let ended = self.ended().await;
        // A loop that found the outbox closed does not know why.
        let fatal = self.alarm.borrow().clone().map_or(ended, Fatal::Outbox);
        if let Fatal::Outbox(e) = &fatal {
            self.outbox.mark_corrupt(e);
        }
        fatal
    }

    async fn ended(&mut self) -> Fatal {
        tokio::select! {
            Ok(why) = self.alarm.wait_for(Option::is_some) => match why.clone() {
                Some(e) => Fatal::Outbox(e),
                None => Fatal::Defect("outbox"),
            },
            ended = &mut self.sender => match ended {
                Ok(Err(fatal)) => fatal,
                _ => Fatal::Defect("sender"),
            },
            ended = &mut self.intake => match ended {
                Ok(Err(fatal)) => fatal,
                _ => Fatal::Defect("intake"),
            },
        }
    }

    /// Takes over other settings; the folders stay as they are. The receiver is asked at once.
    ///
    /// # Errors
    /// No client can be made of them; then the old ones stay.
    pub fn reload(&self, config: Config) -> Result<(), ClientError> {
        let client = Client::new(&config.koala, self.clock.clone())?;
        let mut current = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, before, after) in [
            ("spool.dir", &current.spool.dir, &config.spool.dir),
            ("outbox.path", &current.outbox.path, &config.outbox.path),
        ] {
            if before != after {
                tracing::warn!(
                    "{key} has changed: that takes a restart, until then {} stays",
                    before.display()
                );
            }
        }
        let (dir, path) = (current.spool.dir.clone(), current.outbox.path.clone());
        let (endpoint, concurrency) = (config.koala.endpoint.clone(), config.koala.concurrency);
        let _ = self.signals.send(SenderCommand::Mappings(config.mappings.clone()));
        *current = config;
        (current.spool.dir, current.outbox.path) = (dir, path);
        self.outbox.writer.reconfigure(&current.outbox);
        drop(current);
        let _ = self.signals.send(SenderCommand::Client { client, endpoint, concurrency });
        self.look();
        Ok(())
    }

    /// Wakes the intake.
    pub fn look(&self) {
        let _ = self.wake.try_send(());
    }

    /// How often each loop has come round; and asks each to come round once more.
    pub fn heartbeats(&self) -> [(&'static str, u64); 4] {
        let [sender, batcher, intake] = &self.heartbeats;
        let ticks = |(name, heartbeat): &(&'static str, Heartbeat)| (*name, heartbeat.ticks());
        let all = [ticks(sender), ticks(batcher), ticks(intake), ("outbox", self.stats.rounds())];
        // It asks the batcher.
        sender.1.ping();
        self.look();
        self.outbox.writer.check_for_commits();
        all
    }

    /// Finishes what is in flight, commits, and lets the outbox go. Takes at most ten seconds.
    ///
    /// # Errors
    /// The last commit failed.
    pub async fn stop(self) -> Result<(), Fatal> {
        self.stop.store(true, Relaxed);
        self.look();
        let _ = self.signals.send(SenderCommand::Stop);
        self.retry_listener.abort();
        let sender = self.sender.await.unwrap_or(Err(Fatal::Defect("sender")));
        let intake = self.intake.await.unwrap_or(Err(Fatal::Defect("intake")));
        let (publishing, publisher) = (self.publishing, self.publisher);
        // A disk that hangs must not keep the time-out of the stop from being noticed.
        let last = move || {
            publishing.stop();
            if let Err(e) = publisher.publish(false) {
                tracing::warn!("the last status could not be published: {e}");
            }
        };
        let _ = tokio::task::spawn_blocking(last).await;
        let outbox = self.outbox;
        let closed = tokio::task::spawn_blocking(move || outbox.close()).await;
        closed.map_err(|_| Fatal::Defect("outbox"))?;
        sender.and(intake)
    }
}
