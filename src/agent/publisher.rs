//! Publishes the agent's state: in the status files, to the service manager, and once an hour in the log.

use super::config_watch::ConfigWatch;
use super::error::StartError;
use super::scan_report::SpoolSnapshot;
use super::settings::Settings;
use super::summary::Summary;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::disk;
use crate::koala::ReceiverClock;
use crate::outbox::{OutboxError, OutboxStats, Reader, Throughput, has_commands};
use crate::status::{self, SCHEMA, Status, backoff_word};
use crate::telemetry::lines_dropped;
use std::io::{self, ErrorKind};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The published state is at most this old. Polling costs less than a message for every commit.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The interval after [`QUIET_POLLS`] polls without a change: an idle agent wakes for little else.
const QUIET_POLL_INTERVAL: Duration = Duration::from_secs(3);
const QUIET_POLLS: u32 = 5;
/// The status file is written at least this often, because free space and ages change all the time.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Why the state is not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The outbox cannot be read.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The status file cannot be written.
    #[error(transparent)]
    File(#[from] io::Error),
}

/// The sources of the state.
pub struct Publisher {
    settings: watch::Receiver<Settings>,
    clock: Clock,
    reader: Mutex<Reader>,
    stats: Arc<OutboxStats>,
    snapshot: Arc<Mutex<SpoolSnapshot>>,
    destination: watch::Receiver<status::DestinationStatus>,
    receiver_clock: ReceiverClock,
    started_at: Timestamp,
    config_watch: Mutex<ConfigWatch>,
}

/// The thread that publishes.
pub struct PublisherThread(JoinHandle<()>);

impl PublisherThread {
    /// Waits for the end of the thread, which comes when the reporter of changes is gone.
    pub fn join(self) {
        // The panic hook has logged a panic.
        let _ = self.0.join();
    }
}

/// The state that was published last, and how the polls since then went.
struct Polls {
    published: Option<(Status, Instant)>,
    summary: Summary,
    unchanged: u32,
    is_failing: bool,
    /// Whether the log has told last that the clock is wrong.
    is_clock_wrong: bool,
}

impl Publisher {
    pub fn new(
        settings: watch::Receiver<Settings>,
        clock: Clock,
        reader: Reader,
        stats: Arc<OutboxStats>,
        snapshot: Arc<Mutex<SpoolSnapshot>>,
        destination: watch::Receiver<status::DestinationStatus>,
        receiver_clock: ReceiverClock,
    ) -> Publisher {
        let started_at = clock.now();
        let reader = Mutex::new(reader);
        Publisher {
            settings,
            clock,
            reader,
            stats,
            snapshot,
            destination,
            receiver_clock,
            started_at,
            config_watch: Mutex::default(),
        }
    }

    /// Publishes at the start of an agent. Where only the room for the file is missing, the thread tries again: events
    /// are delivered all the same.
    ///
    /// # Errors
    /// The outbox cannot be read, or the file cannot be written for want of anything but room.
    pub fn publish_first(&self) -> Result<(), StartError> {
        match self.publish(true) {
            Err(PublishError::Outbox(e)) => Err(e.into()),
            Err(PublishError::File(source))
                if !matches!(
                    source.kind(),
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
                ) =>
            {
                let path = self.settings.borrow().config.status_file.clone();
                Err(StartError::Status { path, source })
            }
            Err(PublishError::File(_)) | Ok(()) => Ok(()),
        }
    }

    /// Starts a thread that publishes soon after a change, or at once when `changed` has a message, and logs a summary
    /// every hour. `on_command` is called while a command stands in the table. It is a thread because it reads and writes files, and because a timer of tokio wakes the process
    /// several times for one wait. It ends when the sender of `changed` is gone.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(
        self: Arc<Self>,
        changed: Receiver<()>,
        on_command: impl Fn() + Send + 'static,
    ) -> io::Result<PublisherThread> {
        let run = move || self.run(&changed, &on_command);
        std::thread::Builder::new().name("publisher".into()).spawn(run).map(PublisherThread)
    }

    fn run(&self, changed: &Receiver<()>, on_command: &impl Fn()) {
        let summary = Summary::new(self.clock.mono());
        let mut polls =
            Polls { published: None, summary, unchanged: 0, is_failing: false, is_clock_wrong: false };
        loop {
            let wait = if polls.unchanged < QUIET_POLLS { POLL_INTERVAL } else { QUIET_POLL_INTERVAL };
            if changed.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            // A command wakes the executor by itself, where the system watches files.
            if has_commands(&self.reader.lock().unwrap_or_else(PoisonError::into_inner)).unwrap_or(false) {
                on_command();
            }
            let polled = self.poll(&mut polls);
            polls.unchanged = if let Ok(false) = polled { polls.unchanged + 1 } else { 0 };
            match &polled {
                Err(e) if !polls.is_failing => tracing::warn!("the status cannot be published: {e}"),
                Ok(_) if polls.is_failing => tracing::info!("the status is published again"),
                _ => {}
            }
            polls.is_failing = polled.is_err();
        }
    }

    /// Publishes the state if it has changed. Returns whether it had.
    fn poll(&self, polls: &mut Polls) -> Result<bool, PublishError> {
        let status = self.status(true)?;
        let (now, throughput) = (self.clock.mono(), self.stats.throughput());
        if let Some(hour) = polls.summary.due(now, throughput) {
            log_hour(hour, status.outbox.pending);
        }
        let is_clock_wrong = status.clock_ahead_seconds.is_some();
        if std::mem::replace(&mut polls.is_clock_wrong, is_clock_wrong) != is_clock_wrong {
            log_clock(status.clock_ahead_seconds);
        }
        let before = polls.published.as_ref();
        let has_changed = !before.is_some_and(|(before, _)| is_unchanged(before, &status));
        if has_changed || before.is_some_and(|(_, at)| at.elapsed() >= MAX_AGE) {
            self.write(&status)?;
            polls.published = Some((status, Instant::now()));
        }
        Ok(has_changed)
    }

    /// Publishes once. `is_running`: whether the agent goes on.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn publish(&self, is_running: bool) -> Result<(), PublishError> {
        Ok(self.write(&self.status(is_running)?)?)
    }

    fn write(&self, status: &Status) -> io::Result<()> {
        let line = headline(&status.public());
        // Without a service manager nobody reads the line.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(&line)]);
        write_status(&self.settings.borrow().config.clone(), status)
    }

    /// The present state.
    ///
    /// # Errors
    /// The outbox cannot be read.
    pub fn status(&self, is_running: bool) -> Result<Status, OutboxError> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let (counts, incident) = (reader.counts()?, reader.incident(self.clock.now())?);
        let clock_step = reader.clock_step(self.clock.now())?;
        drop(reader);
        let mut config_watch = self.config_watch.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let config = self.settings.borrow().config.clone();
        let now = self.clock.now();
        let mut status = Status {
            schema: SCHEMA,
            now,
            published_at: None,
            config: config.path.clone(),
            config_in_force: is_running.then(|| config_watch.is_in_force(&config)),
            agent: status::AgentStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                running: is_running,
                waits_to_start: false,
                pid: is_running.then(std::process::id),
                since: Some(if is_running { self.started_at } else { now }),
                log_lines_dropped: lines_dropped(),
            },
            spool: snapshot.spool,
            intake: snapshot.intake,
            outbox: status::OutboxStatus {
                path: config.outbox.path.clone(),
                bytes: self.stats.bytes(),
                max_bytes: config.outbox.max_bytes,
                disk_free: disk::space_of(&config.outbox.path).map(|disk| disk.free),
                log_bytes: self.stats.wal_bytes(),
                log_held_by: self.stats.wal_held_by(),
                incident,
                ..status::OutboxStatus::default()
            },
            clock_step,
            clock_ahead_seconds: self.receiver_clock.seconds_ahead(),
            reasons: Vec::new(),
            destination: self.destination.borrow().clone(),
            longest_waiting: Vec::new(),
        };
        counts.show_in(&mut status);
        Ok(status)
    }
}

/// Writes the status files: the one for everybody, and the one for who may read the outbox.
pub fn write_status(config: &Config, status: &Status) -> io::Result<()> {
    let path = &config.status_file;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let private = status.write(&config.private_status_file, 0o640);
    status.public().write(path, 0o644).and(private)
}

/// Whether the two differ only in what changes all the time: the time, ages, free space.
fn is_unchanged(before: &Status, after: &Status) -> bool {
    let mut after = after.clone();
    after.now = before.now;
    after.outbox.oldest_pending_seconds = before.outbox.oldest_pending_seconds;
    after.outbox.disk_free = before.outbox.disk_free;
    after.outbox.log_bytes = before.outbox.log_bytes;
    *before == after
}

fn log_hour(Throughput { ingested, delivered, failed }: Throughput, pending: u64) {
    let and_failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
    tracing::info!(
        notice = "hour",
        ingested,
        delivered,
        failed,
        pending,
        "events of the last hour: {ingested} ingested, {delivered} delivered{and_failed}; {pending} pending"
    );
}

fn log_clock(seconds_ahead: Option<i64>) {
    match seconds_ahead {
        Some(seconds) => {
            let difference = match seconds.unsigned_abs() {
                seconds @ 172_800.. => format!("{} days", seconds / 86_400),
                seconds => format!("{} minutes", seconds / 60),
            };
            let direction = if seconds > 0 { "ahead of" } else { "behind" };
            tracing::warn!(
                notice = "clock_difference",
                seconds,
                "this machine's clock is {difference} {direction} the receiver's: if it is not right, events get wrong \
                 times; set the clock, or have it set: timedatectl set-ntp true"
            );
        }
        None => tracing::info!(
            notice = "clock_difference",
            seconds = 0,
            "this machine's clock and the receiver's agree again"
        ),
    }
}

/// The line of `systemctl status`.
fn headline(status: &Status) -> String {
    use status::DestinationState::*;
    let mut line = match status.destination.state {
        Online => "online".to_owned(),
        Backoff => format!("receiver {}", backoff_word(status.destination.reason.as_ref())),
        Refused => "receiver refuses events".to_owned(),
        Unknown if status.destination.last_delivery.is_none() => "nothing delivered yet".to_owned(),
        Unknown => "no delivery since the start".to_owned(),
    };
    if let Some(reason) = &status.destination.reason {
        line.push_str(&format!(" ({})", reason.text));
    }
    line.push_str(&format!("; {} pending, {} delivered", status.outbox.pending, status.outbox.delivered));
    let rejected = status.spool.rejected_files.unwrap_or(0);
    for (n, what) in [(status.outbox.failed, "failed"), (rejected, "files rejected")] {
        if n > 0 {
            line.push_str(&format!(", {n} {what}"));
        }
    }
    if let Some(reason) = &status.intake.reason {
        line.push_str(&format!("; the intake is blocked ({})", reason.text));
    }
    line
}
