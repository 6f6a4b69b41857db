//! Says how the agent is, for everybody to read: in the status file, and to the service manager.

use super::intake::View;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::disk;
use crate::outbox::{Gauge, OutboxError, Reader, State};
use crate::status::{self, SCHEMA, Status};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// The status file is written at most this often while things change.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// And at least this often: rows whose time is up and free space change without a word.
const AT_LEAST_EVERY: Duration = Duration::from_secs(60);

/// Everything that the status is made of.
pub struct Publisher {
    config: Arc<Mutex<Config>>,
    clock: Clock,
    reader: Mutex<Reader>,
    gauge: Arc<Gauge>,
    view: Arc<Mutex<View>>,
    destination: watch::Receiver<status::Destination>,
    changed: Arc<Notify>,
    since: Timestamp,
}

impl Publisher {
    /// A publisher that has published nothing yet.
    pub fn new(
        config: Arc<Mutex<Config>>,
        clock: Clock,
        reader: Reader,
        gauge: Arc<Gauge>,
        view: Arc<Mutex<View>>,
        destination: watch::Receiver<status::Destination>,
        changed: Arc<Notify>,
    ) -> Publisher {
        let since = clock.now();
        Publisher { config, clock, reader: Mutex::new(reader), gauge, view, destination, changed, since }
    }

    /// Publishes whenever something has changed, until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut destination = self.destination.clone();
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                changed = destination.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(AT_LEAST_EVERY) => {}
            }
            destination.mark_unchanged();
            if let Err(e) = self.publish(true) {
                tracing::warn!("the status could not be published: {e}");
            }
            tokio::time::sleep(AT_MOST_EVERY).await;
        }
    }

    /// Publishes once. `running` says whether the agent goes on.
    ///
    /// # Errors
    /// The system's, for the status file.
    pub fn publish(&self, running: bool) -> std::io::Result<()> {
        let status = match self.status(running) {
            Ok(status) => status,
            Err(e) => return Err(std::io::Error::other(e)),
        };
        let line = headline(&status);
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
        let counts = self.reader.lock().unwrap_or_else(PoisonError::into_inner).counts()?;
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner).clone();
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
            spool: status::Spool { duplicates: counts.duplicates, ..view.spool },
            intake: view.intake,
            outbox: status::Outbox {
                path: config.outbox.path.clone(),
                pending: counts.of(State::Pending),
                delivered: counts.of(State::Delivered),
                skipped: counts.of(State::Skipped),
                failed: counts.of(State::Failed),
                discarded: counts.of(State::Discarded),
                oldest_pending: counts.oldest_pending,
                oldest_pending_seconds: counts.oldest_pending.map(|at| now.since(at).as_secs()),
                bytes: self.gauge.bytes(),
                max_bytes: config.outbox.max_bytes,
                disk_free: disk::of(&config.outbox.path).map_or(0, |disk| disk.free),
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
