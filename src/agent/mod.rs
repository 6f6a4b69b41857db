//! The agent: the loops that bring events from the spool to the receiver, started, watched and stopped together.
//!
//! ```text
//!   spool ──▶ Intake ──append──▶ ┌────────┐ ◀──read── Batcher ◀───plan── Sender ──▶ receiver
//!            (thread)            │ outbox │           (thread) ─request─▶ (task)
//!                                └────────┘ ◀─────────────settle───────────┘
//!                 Publisher (thread): the state of both, in the status file
//!                 Executor (thread): what commands ask, by the writer and the sender
//! ```

mod append_batch;
mod batcher;
mod capacity;
mod config_watch;
pub mod destination;
mod error;
mod executor;
mod file_ledger;
mod file_reader;
mod heartbeat;
mod in_flight;
mod intake;
mod kept_files;
mod key_renewal;
mod limiter;
mod new_event;
mod ordering_keys;
mod owner_queues;
mod path;
mod plan;
mod publisher;
mod queue_search;
mod readiness;
mod rejections;
mod removals;
mod remover;
mod request_log;
mod scan_report;
mod scanner;
pub mod scheduler;
mod sender;
mod settings;
mod settler;
mod state_reporter;
mod summary;
mod suspicion;
mod turn;
mod waiting;
mod withdrawals;

pub use error::{Fatal, StartError};
pub use executor::Executor;
pub use new_event::disposition;
pub use waiting::{never_started, publish_given_up, publish_waiting};

use crate::clock::Clock;
use crate::config::Config;
use crate::koala::{ClientError, ReceiverClock};
use crate::outbox::{CommandWatch, Enqueued, Outbox, OutboxError, Reader};
use crate::spool::Spool;
use crate::status::Status;
use batcher::Batcher;
use heartbeat::Heartbeats;
use intake::{AgentHandles, Intake, IntakeHandle};
use publisher::{Publisher, PublisherThread};
use scan_report::SpoolSnapshot;
use sender::{Sender, SenderCommand};
use settings::SettingsInForce;
use state_reporter::StateReporter;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A running agent.
pub struct Agent {
    settings: SettingsInForce,
    outbox: Outbox,
    /// Cancelled when the agent stops; every loop ends by it.
    stopping: CancellationToken,
    sender: JoinHandle<Result<(), Fatal>>,
    intake: IntakeHandle,
    publisher: Arc<Publisher>,
    publisher_thread: PublisherThread,
    /// Carries out commands; it waits for `wakes`.
    executor: std::thread::JoinHandle<()>,
    wakes: SyncSender<()>,
    _command_watch: CommandWatch,
    heartbeats: Heartbeats,
    alarm: watch::Receiver<Option<Arc<OutboxError>>>,
}

impl Agent {
    /// Starts the loops. When this returns `Ok`, the agent owns the outbox, watches the spool and ingests files.
    ///
    /// # Errors
    /// See [`StartError`]; then nothing runs.
    pub async fn start(config: Config, clock: Clock) -> Result<Agent, StartError> {
        let outbox = Outbox::open(&config.outbox, clock.clone())?;
        let spool = Spool::open(&config.spool.dir)?;
        let receiver_clock = ReceiverClock::default();
        let settings = SettingsInForce::new(config.clone(), clock.clone(), receiver_clock.clone())?;
        let snapshot = Arc::new(Mutex::new(SpoolSnapshot::new(spool.dir())));
        let (reporter, reported) = StateReporter::new(config.koala.endpoint.clone());
        let (wakes, woken) = sync_channel(1);
        let publisher = Arc::new(Publisher::new(
            settings.watch(),
            clock.clone(),
            Reader::open_in_process(&config.outbox.path)?,
            outbox.writer.stats(),
            snapshot.clone(),
            reported.destination,
            receiver_clock,
        ));
        publisher.publish_first().inspect_err(|e| {
            if let StartError::Outbox(e) = e {
                // Opening a large outbox does not read all of it.
                outbox.mark_corrupt(e);
            }
        })?;

        let stopping = CancellationToken::new();
        let mut heartbeats = Heartbeats::default();
        let sender_heartbeat = heartbeats.register("sender");
        let batcher_heartbeat = heartbeats.register("batcher");
        let batcher = Batcher::start(&config.outbox.path, &outbox.writer, clock.clone(), batcher_heartbeat)?;
        let writer = outbox.writer.clone();
        let sender =
            Sender::new(settings.watch(), writer.clone(), batcher, clock.clone(), reporter, sender_heartbeat);
        let (sender_commands, inbox) = mpsc::unbounded_channel();
        let handles = AgentHandles {
            settings: settings.watch(),
            writer: writer.clone(),
            clock,
            stopping: stopping.clone(),
            on_stored: tell_sender(sender_commands.clone()),
            heartbeat: heartbeats.register("intake"),
        };
        let intake = Intake::start(handles, spool, &outbox.progress, snapshot).map_err(StartError::Thread)?;
        let in_force = settings.watch();
        let executor = Executor::new(
            &outbox,
            sender_commands,
            move || in_force.borrow().config.mappings.clone(),
            stopping.clone(),
        );
        let command_watch = CommandWatch::start(outbox.path(), wake(wakes.clone()));
        let executor = std::thread::Builder::new()
            .name("commands".into())
            .spawn(move || executor.run(&woken))
            .map_err(StartError::Thread)?;
        // Somebody may have asked while no agent ran.
        let _ = wakes.try_send(());
        let publisher_thread =
            publisher.clone().start(reported.changed, wake(wakes.clone())).map_err(StartError::Thread)?;
        Ok(Agent {
            settings,
            alarm: writer.alarm(),
            outbox,
            sender: tokio::spawn(sender.run(inbox, stopping.clone())),
            stopping,
            intake,
            publisher,
            publisher_thread,
            executor,
            wakes,
            _command_watch: command_watch,
            heartbeats,
        })
    }

    /// The agent's state, as `status` prints it.
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
            ended = &mut self.intake.ended => match ended {
                Ok(Err(fatal)) => fatal,
                _ => Fatal::Defect("intake"),
            },
        }
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.settings.config()
    }

    /// Puts another configuration in force, except the folders, which need a restart. The receiver is tried at once. Returns the
    /// keys of the folders that differ.
    ///
    /// # Errors
    /// The settings of the receiver cannot be used; then the old configuration stays in force.
    pub fn reload(&self, config: Config) -> Result<Vec<&'static str>, ClientError> {
        let need_restart = self.settings.replace(config)?;
        self.outbox.writer.reconfigure(&self.config().outbox);
        self.intake.wake();
        Ok(need_restart)
    }

    /// Has the intake scan the spool at once.
    pub fn scan_now(&self) {
        self.intake.wake();
    }

    /// The number of rounds of each loop so far. Each is asked to come round once more before the next call.
    pub fn heartbeats(&self) -> Vec<(&'static str, u64)> {
        let mut ticks = self.heartbeats.ticks();
        ticks.push(("outbox", self.outbox.writer.stats().rounds()));
        // The sender passes its ping on to the batcher.
        self.heartbeats.ping();
        self.intake.wake();
        self.outbox.writer.ping();
        ticks
    }

    /// Finishes the requests in flight, commits, and closes the outbox. Takes at most ten seconds.
    ///
    /// # Errors
    /// The last commit failed.
    pub async fn stop(self) -> Result<(), Fatal> {
        self.stopping.cancel();
        self.intake.wake();
        let sender = self.sender.await.unwrap_or(Err(Fatal::Defect("sender")));
        let intake = self.intake.ended.await.unwrap_or(Err(Fatal::Defect("intake")));
        let _ = self.wakes.try_send(());
        let executor = self.executor;
        // The panic hook has logged a panic.
        let _ = tokio::task::spawn_blocking(move || executor.join().ok()).await;
        let (publisher_thread, publisher) = (self.publisher_thread, self.publisher);
        // A hanging disk must not keep the caller from noticing that its time for the stop is over.
        let publish_last = move || {
            publisher_thread.join();
            if let Err(e) = publisher.publish(false) {
                tracing::warn!("the last status could not be published: {e}");
            }
        };
        let _ = tokio::task::spawn_blocking(publish_last).await;
        let outbox = self.outbox;
        let closed = tokio::task::spawn_blocking(move || outbox.close()).await;
        closed.map_err(|_| Fatal::Defect("outbox"))?;
        sender.and(intake)
    }
}

/// Tells the sender which events were stored.
fn tell_sender(sender: mpsc::UnboundedSender<SenderCommand>) -> Box<dyn Fn(Enqueued) + Send> {
    Box::new(move |waiting| {
        // An agent whose sender has failed ends.
        let _ = sender.send(SenderCommand::Stored(waiting));
    })
}

/// Wakes the executor.
fn wake(wakes: SyncSender<()>) -> impl Fn() + Send {
    move || {
        // A full channel holds a wake already.
        let _ = wakes.try_send(());
    }
}
