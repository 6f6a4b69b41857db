//! `send --wait`: until each event that was sent is settled.
//!
//! Who may read the outbox asks it for each event. A producer may not; for them the status that the agent
//! publishes tells: once their file is gone from the spool and nothing stored until then is pending any more,
//! theirs is settled.

use super::context::{ours, service};
use super::output::{count, hint, plain};
use super::status::alive;
use super::{CliError, Context, ExitCode};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::outbox::{OutboxError, Reader};
use crate::spool::rejected_beside;
use crate::status::Status;
use std::ffi::OsStr;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often is looked: a person takes it for at once.
const PERIOD: Duration = Duration::from_millis(100);
/// The agent publishes a change within three seconds once it has been quiet; half as much again for a busy machine.
const PUBLISHED_WITHIN: Duration = Duration::from_millis(4500);

/// Waits for events; made before they are sent, so that it knows what had failed before.
pub struct Waiter {
    deadline: Instant,
    failed_before: Option<u64>,
}

enum Progress {
    /// All are settled; this is what became of the bad ones.
    Settled(Vec<String>),
    /// What they wait for.
    Waits(String),
}

impl Waiter {
    /// A waiter that gives up after `limit`.
    pub fn new(config: &Config, limit: Duration) -> Waiter {
        Waiter {
            deadline: Instant::now() + limit,
            failed_before: Status::read(&config.status_file).map(|status| failed(&status)),
        }
    }

    /// Returns when the events of that spool file are settled, or time is up; tells about it.
    ///
    /// # Errors
    /// Neither the outbox nor the agent's status can be read by this user.
    pub fn wait(
        &self,
        context: &Context,
        config: &Config,
        name: &OsStr,
        ids: &[String],
    ) -> Result<ExitCode, CliError> {
        let mut ids = ids.iter();
        let (mut taken, mut bad) = (None, Vec::new());
        loop {
            if taken.is_none() && fs::symlink_metadata(config.spool.dir.join(name)).is_err() {
                taken = Some((Instant::now(), context.clock.now()));
                bad = rejected(config, name);
            }
            let progress = match (taken, Reader::open(&config.outbox.path)) {
                (None, _) => Progress::Waits("they wait in the spool".to_owned()),
                (Some(_), Ok(reader)) => settled(&reader, &mut ids, &mut bad)?,
                (Some(taken), Err(OutboxError::Denied { .. })) => self.by_status(config, taken)?,
                (Some(_), Err(error)) => Progress::Waits(error.to_string()),
            };
            match progress {
                Progress::Settled(bad) if bad.is_empty() => return Ok(ExitCode::Success),
                Progress::Settled(bad) => {
                    bad.iter().for_each(hint);
                    return Ok(ExitCode::BadData);
                }
                Progress::Waits(why) if Instant::now() >= self.deadline => {
                    hint(format_args!("not settled yet: {}{}", plain(&why), state_of_things(config)));
                    return Ok(ExitCode::TryAgain);
                }
                Progress::Waits(_) => {
                    sleep(PERIOD.min(self.deadline.saturating_duration_since(Instant::now())))
                }
            }
        }
    }

    fn by_status(&self, config: &Config, (at, taken): (Instant, Timestamp)) -> Result<Progress, CliError> {
        let status = Status::read(&config.status_file).ok_or_else(|| CliError::Denied {
            text: "the events are stored, but this user can read neither the outbox nor the agent's status"
                .to_owned(),
            line: Some(format!("sudo {}", ours(config, "status"))),
        })?;
        let waits = |why: &str| Ok(Progress::Waits(why.to_owned()));
        if at.elapsed() < PUBLISHED_WITHIN || !alive(&status) {
            return waits("the agent has taken them");
        }
        // Published times are whole seconds: an event of the same second may be one of ours.
        if status.outbox.oldest_pending.is_some_and(|oldest| oldest.0 / 1000 <= taken.0 / 1000) {
            return waits("they are pending, or others that came before them");
        }
        let more = failed(&status).saturating_sub(self.failed_before.unwrap_or(0));
        let bad = match more {
            0 => Vec::new(),
            n => vec![format!(
                "{} failed or set aside meanwhile, perhaps of these: sudo {}",
                count(n, "event"),
                ours(config, "list --state failed")
            )],
        };
        Ok(Progress::Settled(bad))
    }
}

fn failed(status: &Status) -> u64 {
    status.outbox.failed + status.spool.rejected_files
}

/// What the agent has set aside of that spool file, where this user may see it.
fn rejected(config: &Config, name: &OsStr) -> Vec<String> {
    let files = rejected_beside(&config.spool.dir).list().unwrap_or_default();
    let of_ours = files.into_iter().filter_map(|file| file.why).filter(|why| OsStr::new(&why.file) == name);
    of_ours.map(|why| format!("set aside: {}: {}", why.code, plain(&why.text))).collect()
}

/// Goes on through the ids, in the order of the spool, to the first that is not settled.
fn settled<'a>(
    reader: &Reader,
    ids: &mut (impl Iterator<Item = &'a String> + Clone),
    bad: &mut Vec<String>,
) -> Result<Progress, CliError> {
    loop {
        let mut next = ids.clone();
        let Some(id) = next.next() else { return Ok(Progress::Settled(std::mem::take(bad))) };
        // No row: set aside, and told so already.
        if let Some(detail) = reader.events().show(id)? {
            let row = detail.row;
            let reason =
                || format!("{}: {}", row.reason_code.unwrap_or_default(), row.reason.unwrap_or_default());
            match row.state.as_str() {
                "pending" => return Ok(Progress::Waits(format!("{id} is pending"))),
                "failed" => bad.push(format!("{} failed: {}", plain(id), plain(&reason()))),
                "discarded" => bad.push(format!("{} was discarded by hand", plain(id))),
                _ => {}
            }
        }
        *ids = next;
    }
}

/// Why nothing moves, where that is known.
fn state_of_things(config: &Config) -> String {
    match Status::read(&config.status_file) {
        Some(status) if alive(&status) => {
            let reason = status.intake.reason.or(status.destination.reason);
            reason.map_or_else(String::new, |reason| format!("; {}", plain(&reason.to_string())))
        }
        _ => format!("; the agent does not run: {}", service(config, "start")),
    }
}
