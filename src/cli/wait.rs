//! `send --wait`: waits until each event that was sent is settled.
//!
//! For a user who may read the outbox, it is asked for each event. A producer may not read it, and relies on the status
//! that the agent publishes: the events are settled once their file has left the spool and no event stored until then is
//! pending.

use super::context::{agent_command, start_command};
use super::output::{counted, escaped, grouped, hint};
use super::status::is_publisher_alive;
use super::{CliError, CommandContext, ExitCode};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::outbox::{OutboxError, Reader};
use crate::spool::RejectedFolder;
use crate::status::Status;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The interval between two checks, too short for a person to notice.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The longest time until the agent publishes a change: three seconds after an idle time, and half of that as a reserve
/// for a busy machine.
const MAX_PUBLISH_DELAY: Duration = Duration::from_millis(4500);

/// Waits for events. It is created before they are sent, to know the number of failures until then.
pub struct Waiter {
    deadline: Instant,
    failed_before: Option<u64>,
}

enum WaitState {
    /// All events are settled; a message for each that failed.
    Settled(Vec<String>),
    /// Some events are not settled, for this reason.
    Pending(String),
}

/// The events that were settled well.
#[derive(Default)]
struct Outcome {
    delivered: u64,
    skipped: u64,
    /// Of these only the ids are left, for want of room: they were delivered or skipped.
    remembered: u64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} delivered", counted(self.delivered, "event"))?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", grouped(self.skipped))?;
        }
        if self.remembered > 0 {
            write!(
                f,
                ", {} delivered or skipped, which the history has no room for",
                grouped(self.remembered)
            )?;
        }
        Ok(())
    }
}

impl Waiter {
    /// A waiter that gives up after `limit`.
    pub fn new(config: &Config, limit: Duration) -> Waiter {
        Waiter {
            deadline: Instant::now() + limit,
            failed_before: Status::read(&config.status_file).map(|status| failed_or_rejected(&status)),
        }
    }

    /// Returns when the events of the spool file are settled, or when the time is over; prints those that failed or are
    /// pending.
    ///
    /// # Errors
    /// This user can read neither the outbox nor the agent's status.
    pub fn wait(
        &self,
        context: &CommandContext,
        config: &Config,
        name: &OsStr,
        ids: &[String],
    ) -> Result<ExitCode, CliError> {
        let mut ids = ids.iter();
        let mut outcome = Outcome::default();
        let (mut ingested, mut failures) = (None, Vec::new());
        loop {
            if ingested.is_none() && fs::symlink_metadata(config.spool.dir.join(name)).is_err() {
                ingested = Some((Instant::now(), context.clock.now()));
                failures = rejections(config, name);
            }
            let state = match (ingested, Reader::open(&config.outbox.path)) {
                (None, _) => WaitState::Pending("the events wait in the spool".to_owned()),
                (Some(_), Ok(reader)) => outbox_state(&reader, &mut ids, &mut outcome, &mut failures)?,
                (Some(ingested), Err(OutboxError::Denied { .. })) => {
                    self.published_state(config, ingested)?
                }
                (Some(_), Err(error)) => WaitState::Pending(error.to_string()),
            };
            match state {
                WaitState::Settled(failures) if failures.is_empty() => {
                    if outcome.delivered + outcome.skipped + outcome.remembered > 0 {
                        hint(&outcome);
                    }
                    return Ok(ExitCode::Success);
                }
                WaitState::Settled(failures) => {
                    failures.iter().for_each(hint);
                    return Ok(ExitCode::BadData);
                }
                WaitState::Pending(why) if Instant::now() >= self.deadline => {
                    hint(format_args!("not delivered yet: {}{}", escaped(&why), agent_state(config)));
                    return Ok(ExitCode::TryAgain);
                }
                WaitState::Pending(_) => {
                    sleep(POLL_INTERVAL.min(self.deadline.saturating_duration_since(Instant::now())))
                }
            }
        }
    }

    fn published_state(
        &self,
        config: &Config,
        (at, ingested): (Instant, Timestamp),
    ) -> Result<WaitState, CliError> {
        let status = Status::read(&config.status_file).ok_or_else(|| CliError::Denied {
            text: "the events are stored, but this user can read neither the outbox nor the agent's status"
                .to_owned(),
            command: Some(format!("sudo {}", agent_command(config, "status"))),
        })?;
        let pending = |why: &str| Ok(WaitState::Pending(why.to_owned()));
        if at.elapsed() < MAX_PUBLISH_DELAY || !is_publisher_alive(&status) {
            return pending("the agent has read the events");
        }
        // Published times are whole seconds: an event of the same second may be one of these.
        if status.outbox.oldest_pending.is_some_and(|oldest| oldest.0 / 1000 <= ingested.0 / 1000) {
            return pending("the events are pending, or others that came before them");
        }
        let new_failures = failed_or_rejected(&status).saturating_sub(self.failed_before.unwrap_or(0));
        let failures = match new_failures {
            0 => Vec::new(),
            n => vec![format!(
                "{} failed or rejected meanwhile, perhaps some of these; see: sudo {}",
                counted(n, "event"),
                agent_command(config, "list --state failed")
            )],
        };
        Ok(WaitState::Settled(failures))
    }
}

fn failed_or_rejected(status: &Status) -> u64 {
    status.outbox.failed + status.spool.rejected_files.unwrap_or(0)
}

/// A message for each rejected piece of the spool file, where this user may see them.
fn rejections(config: &Config, name: &OsStr) -> Vec<String> {
    let files = RejectedFolder::of_spool(&config.spool.dir).list().unwrap_or_default();
    let pieces = files.into_iter().filter_map(|file| file.why).filter(|why| OsStr::new(&why.file) == name);
    pieces.map(|why| format!("rejected: {}: {}", why.code, escaped(&why.text))).collect()
}

/// Advances through the ids, in the order of the spool, to the first that is pending.
fn outbox_state<'a>(
    reader: &Reader,
    ids: &mut (impl ExactSizeIterator<Item = &'a String> + Clone),
    outcome: &mut Outcome,
    failures: &mut Vec<String>,
) -> Result<WaitState, CliError> {
    loop {
        let mut next = ids.clone();
        let Some(id) = next.next() else { return Ok(WaitState::Settled(std::mem::take(failures))) };
        // An event of which nothing is known was rejected, which is in `failures` already.
        if let Some(detail) = reader.events().show(id)? {
            let row = detail.row;
            let reason =
                || format!("{}: {}", row.reason_code.unwrap_or_default(), row.reason.unwrap_or_default());
            match row.state.as_str() {
                "pending" => {
                    let others = if next.len() > 0 { ", and perhaps later ones" } else { "" };
                    return Ok(WaitState::Pending(format!("{id} is pending{others}")));
                }
                "delivered" => outcome.delivered += 1,
                "skipped" => outcome.skipped += 1,
                "failed" => failures.push(format!("{} failed: {}", escaped(id), escaped(&reason()))),
                "discarded" => failures.push(format!("{} was discarded by hand", escaped(id))),
                _ => {}
            }
        } else if reader.events().is_remembered(id)? {
            outcome.remembered += 1;
        }
        *ids = next;
    }
}

/// Why no event is delivered, where that is known.
fn agent_state(config: &Config) -> String {
    match Status::read(&config.status_file) {
        Some(status) if is_publisher_alive(&status) => {
            let reason = status.intake.reason.or(status.destination.reason);
            reason.map_or_else(String::new, |reason| format!("; {}", escaped(&reason.to_string())))
        }
        _ => format!("; the agent is not running: {}", start_command(config)),
    }
}
