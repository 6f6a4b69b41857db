//! Says how the agent is, for everybody to read: in the status file, to the service manager, and in the log.

use super::scan_report::SpoolSnapshot;
use super::summary::Summary;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::disk;
use crate::outbox::{OutboxError, OutboxStats, Reader, State, Writer};
use crate::status::{self, SCHEMA, Status};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often is looked whether something has changed: what is published is no older than this. Looking costs
/// less than being told of every commit, of the agent's own and of the command line's.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same once nothing has changed for [`QUIET_AFTER`] looks: an idle agent wakes for little else.
const LOOK_WHEN_QUIET: Duration = Duration::from_secs(3);
const QUIET_AFTER: u32 = 5;
/// The status file is written at least this often: free space and ages change all the time.
const AT_LEAST_EVERY: Duration = Duration::from_secs(60);

/// Everything that the status is made of.
pub struct Publisher {
    config: Arc<Mutex<Config>>,
    clock: Clock,
    reader: Mutex<Reader>,
    writer: Writer,
    stats: Arc<OutboxStats>,
    snapshot: Arc<Mutex<SpoolSnapshot>>,
    destination: watch::Receiver<status::Destination>,
    since: Timestamp,
}

/// The thread that publishes.
pub struct Publishing(JoinHandle<()>);

impl Publishing {
    /// Returns once nothing more is published, which takes that nobody is left who may ring.
    pub fn stop(self) {
        // A panic has been logged by the panic hook.
        let _ = self.0.join();
    }
}

impl Publisher {
    /// A publisher that has published nothing yet.
    pub fn new(
        config: Arc<Mutex<Config>>,
        clock: Clock,
        reader: Reader,
        writer: Writer,
        snapshot: Arc<Mutex<SpoolSnapshot>>,
        destination: watch::Receiver<status::Destination>,
    ) -> Publisher {
        let since = clock.now();
        let stats = writer.stats();
        Publisher { config, clock, reader: Mutex::new(reader), writer, stats, snapshot, destination, since }
    }

    /// Starts a thread that publishes soon after something has changed, or at once when the bell rings, and sums up every
    /// hour: of its own, because it reads and writes files, and because a timer of the tasks wakes several times for one
    /// wait. It ends when nobody is left who may ring.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(self: Arc<Self>, notify: Receiver<()>) -> std::io::Result<Publishing> {
        let run = move || self.run(&notify);
        std::thread::Builder::new().name("publisher".into()).spawn(run).map(Publishing)
    }

    fn run(&self, notify: &Receiver<()>) {
        let mut summary = Summary::new(self.clock.mono());
        let mut published = None;
        let (mut version, mut unchanged) = (None, 0);
        let mut failing = false;
        loop {
            let wait = if unchanged < QUIET_AFTER { LOOK_EVERY } else { LOOK_WHEN_QUIET };
            if notify.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            let found = self.reader.lock().unwrap_or_else(PoisonError::into_inner).data_version().ok();
            if found != version {
                // It may be a command's commit: the writer knows its own.
                self.writer.check_for_commits();
                version = found;
            }
            let looked = self.look(&mut summary, &mut published);
            unchanged = if let Ok(false) = looked { unchanged + 1 } else { 0 };
            match &looked {
                Err(e) if !failing => tracing::warn!("the status cannot be published: {e}"),
                Ok(_) if failing => tracing::info!("the status is published again"),
                _ => {}
            }
            failing = looked.is_err();
        }
    }

    /// Publishes what has changed. Returns whether anything had.
    fn look(
        &self,
        summary: &mut Summary,
        published: &mut Option<(Status, Instant)>,
    ) -> std::io::Result<bool> {
        let status = self.status(true).map_err(std::io::Error::other)?;
        if let Some(line) = summary.due(self.clock.mono(), self.stats.throughput(), status.outbox.pending) {
            tracing::info!("{line}");
        }
        let changed = !published.as_ref().is_some_and(|(before, _)| same(before, &status));
        if changed || published.as_ref().is_some_and(|(_, at)| at.elapsed() >= AT_LEAST_EVERY) {
            self.write(&status)?;
            *published = Some((status, Instant::now()));
        }
        Ok(changed)
    }

    /// Publishes once. `running` says whether the agent goes on.
    ///
    /// # Errors
    /// The system's, for the status file.
    pub fn publish(&self, running: bool) -> std::io::Result<()> {
        self.write(&self.status(running).map_err(std::io::Error::other)?)
    }

    fn write(&self, status: &Status) -> std::io::Result<()> {
        let line = headline(status);
        // Nobody listens outside a service manager.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(&line)]);
        let path = self.config.lock().unwrap_or_else(PoisonError::into_inner).status_file.clone();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        status.write(&path)
    }

    /// The status as it is.
    ///
    /// # Errors
    /// The outbox cannot be read.
    pub fn status(&self, running: bool) -> Result<Status, OutboxError> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let (counts, incident) = (reader.counts()?, reader.incident(self.clock.now())?);
        drop(reader);
        let snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        Ok(Status {
            schema: SCHEMA,
            now,
            config: config.path.clone(),
            agent: status::Agent {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                running,
                pid: running.then(std::process::id),
                since: Some(if running { self.since } else { now }),
            },
            spool: status::Spool { duplicates: counts.duplicates, ..snapshot.spool },
            intake: snapshot.intake,
            outbox: status::Outbox {
                path: config.outbox.path.clone(),
                pending: counts.of(State::Pending),
                delivered: counts.of(State::Delivered),
                skipped: counts.of(State::Skipped),
                failed: counts.of(State::Failed),
                discarded: counts.of(State::Discarded),
                oldest_pending: counts.oldest_pending,
                oldest_pending_seconds: counts.oldest_pending.map(|at| now.since(at).as_secs()),
                bytes: self.stats.bytes(),
                max_bytes: config.outbox.max_bytes,
                disk_free: disk::of(&config.outbox.path).map_or(0, |disk| disk.free),
                log_bytes: self.stats.wal_bytes(),
                log_held_by: self.stats.wal_held_by(),
                incident,
            },
            reasons: counts
                .reasons
                .into_iter()
                .map(|(state, code, events)| status::ReasonCount {
                    state: state.as_str().to_owned(),
                    code,
                    events,
                })
                .collect(),
            destination: self.destination.borrow().clone(),
        })
    }
}

/// Whether nothing has changed but what always does: the time, ages, free space.
fn same(before: &Status, after: &Status) -> bool {
    let mut after = after.clone();
    after.now = before.now;
    after.outbox.oldest_pending_seconds = before.outbox.oldest_pending_seconds;
    after.outbox.disk_free = before.outbox.disk_free;
    after.outbox.log_bytes = before.outbox.log_bytes;
    *before == after
}

/// One line for `systemctl status`.
fn headline(status: &Status) -> String {
    use status::DestinationState::*;
    let mut line = match status.destination.state {
        Online => "online".to_owned(),
        Backoff => "receiver in trouble".to_owned(),
        Refused => "refused".to_owned(),
        Unknown => "nothing sent yet".to_owned(),
    };
    if let Some(reason) = &status.destination.reason {
        line.push_str(&format!(" ({})", reason.text));
    }
    line.push_str(&format!("; {} pending, {} delivered", status.outbox.pending, status.outbox.delivered));
    for (n, what) in [(status.outbox.failed, "failed"), (status.spool.rejected_files, "files set aside")] {
        if n > 0 {
            line.push_str(&format!(", {n} {what}"));
        }
    }
    if let Some(reason) = &status.intake.reason {
        line.push_str(&format!("; no files are taken ({})", reason.text));
    }
    line
}
