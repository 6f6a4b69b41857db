//! `koala-agent status`: the state of the agent, from the file that it publishes, and from the outbox where this user
//! may read it.

use super::permission::{become_service, may_change};
use super::status_check::{AgeLimits, CheckResult};
use super::{CliError, CommandContext, ExitCode, output, status_text, unreadable};
use crate::agent::never_started;
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, Scope};
use crate::disk;
use crate::outbox::{OutboxError, Reader, WaitingEvent, forecast, holder, is_lock_hidden};
use crate::reason::{Code, NO_KEY, Reason};
use crate::spool::{REJECTED, SpoolError, format_of, is_finished_name, is_reason_name};
use crate::status::{DestinationStatus, Incident, IntakeState, IntakeStatus, Status, WaitingPerson};
use clap::Args;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

/// The most files of a folder that are counted while no agent runs; counting them takes 20 ms.
const MAX_COUNTED: usize = 10_000;
/// Persons that have waited longest who are named.
const MAX_WAITING: usize = 5;
/// Nobody is named who has waited for less: events that go on wait as well.
const MIN_WAIT: Duration = Duration::from_secs(60);
/// The start of a process and the time in a status file come from two clocks, each exact to a second.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// Show what waits, what was delivered, what is stuck, and what to do
///
/// Works for every user, whether the agent runs or not. Users who may not read the outbox see the counts that the
/// agent published last.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  koala-agent status --json | jq .outbox.pending\n  koala-agent status --check --warning-age 30m --critical-age 4h"
)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print one line as a plugin of Nagios or Icinga, and end with 0, 1, 2 or 3
    #[arg(long, conflicts_with = "json")]
    check: bool,
    /// Warn of an event that has waited for longer
    #[arg(long, value_name = "AGE", requires = "check", default_value = "10m",
          value_parser = humantime::parse_duration)]
    warning_age: Duration,
    /// An event that has waited for longer is critical
    #[arg(long, value_name = "AGE", requires = "check", default_value = "1h",
          value_parser = humantime::parse_duration)]
    critical_age: Duration,
}

/// Prints the status.
///
/// # Errors
/// The configuration is wrong, or stdout cannot be written. An agent that is not running is no error.
pub fn run(context: &CommandContext, args: &StatusArgs) -> Result<ExitCode, CliError> {
    if args.check {
        return Ok(check(context, args));
    }
    let config = context.config_beside_agent()?;
    let status = current_status(&config, context.clock.now());
    let left = match status.spool.unreadable_files {
        // Only the agent's user, whom root can become, sees which file it is.
        Some(1..) if !args.json && may_change(context, &config, "see it").is_ok() => {
            become_service(&config).ok().and_then(|()| unreadable::first(&config))
        }
        _ => None,
    };
    let text = match args.json {
        true => serde_json::to_string_pretty(&status).map_err(std::io::Error::from)? + "\n",
        false => status_text::render(&status, &config, left, output::terminal_width()),
    };
    output::print(&text)?;
    Ok(ExitCode::Success)
}

/// Prints the line of a plugin. Whatever prevents an answer is a status that is not known.
fn check(context: &CommandContext, args: &StatusArgs) -> ExitCode {
    let limits = AgeLimits { warning: args.warning_age, critical: args.critical_age };
    print_check(match context.config_beside_agent() {
        Ok(config) => {
            let status = current_status(&config, context.clock.now());
            // Of an agent that has never run, there is no file.
            let is_unreadable =
                status.agent.since.is_none() && !matches!(config.status_file.try_exists(), Ok(false));
            match is_unreadable && !status.agent.running {
                true => CheckResult::unknown(&format!("cannot read {}", config.status_file.display())),
                false => CheckResult::of(&status, limits),
            }
        }
        Err(error) => CheckResult::unknown(&error.to_string()),
    })
}

fn print_check(result: CheckResult) -> ExitCode {
    output::print(&result.line()).map_or(ExitCode::Unknown, |()| result.exit_code())
}

/// Whether a command line that is wrong was meant for a check, whose caller knows no other exit codes.
pub fn is_check(arguments: &[OsString]) -> bool {
    ["status", "--check"].iter().all(|word| arguments.iter().any(|argument| argument == word))
}

/// Answers a check with a wrong command line, of which stderr has the error.
pub fn wrong_usage() -> ExitCode {
    print_check(CheckResult::unknown("the command line is wrong: see koala-agent status --help"))
}

/// The status as far as this user can see it.
pub fn current_status(config: &Config, now: Timestamp) -> Status {
    let published = published_status(config);
    let published_at = published.as_ref().map(|status| status.now);
    let pid = agent_pid(config, published.as_ref());
    let mut status = published.unwrap_or_else(|| never_started(config));
    (status.now, status.published_at) = (now, published_at);
    status.config.clone_from(&config.path);
    status.outbox.path.clone_from(&config.outbox.path);

    if pid.is_none() {
        tell_forecast(&mut status, config);
    }
    read_outbox(&mut status, config);
    if pid.is_none() {
        correct_for_stopped_agent(&mut status, config, published_at);
    }
    status.agent.running = pid.is_some();
    status.agent.pid = pid;
    status.config_in_force =
        status.config_in_force.filter(|_| pid.is_some()).map(|same| same && !config.is_broken);
    let oldest = status.outbox.oldest_pending;
    status.outbox.oldest_pending_seconds = oldest.map(|oldest| now.since(oldest).as_secs());
    status
}

/// The pid of the agent that runs with this configuration, as far as this user can see it.
pub fn running_agent(config: &Config) -> Option<u32> {
    agent_pid(config, published_status(config).as_ref())
}

/// The lock says which agent runs. Who may not open it goes by what the agent has published; so does everybody for an agent
/// that waits to open the outbox.
fn agent_pid(config: &Config, published: Option<&Status>) -> Option<u32> {
    let path = &config.outbox.path;
    let holder = holder(path).and_then(|pid| u32::try_from(pid).ok());
    let counts = |status: &&Status| status.agent.waits_to_start || is_lock_hidden(path);
    let alive = || published.filter(counts).filter(|status| is_publisher_alive(status))?.agent.pid;
    holder.or_else(alive)
}

/// The status that the agent published last; the whole of it where this user may read that.
fn published_status(config: &Config) -> Option<Status> {
    let (public, private) = (Status::read(&config.status_file), Status::read(&config.private_status_file));
    // The last write of one may have failed.
    private.filter(|private| public.as_ref().is_none_or(|public| private.now >= public.now)).or(public)
}

/// Says what the next start of the agent will tell of its files.
fn tell_forecast(status: &mut Status, config: &Config) {
    if let Ok(Some(text)) = forecast(&config.outbox.path) {
        status.outbox.incident = Some(Incident { at: status.now, text, files: None });
    }
}

/// Reads the current counts, if this user may.
fn read_outbox(status: &mut Status, config: &Config) {
    let path = &config.outbox.path;
    status.outbox.disk_free = disk::space_of(path).map(|disk| disk.free);
    let read = || {
        let reader = Reader::open(path)?;
        let (counts, bytes) = (reader.counts()?, reader.bytes()?);
        let (incident, clock_step) = (reader.incident(status.now)?, reader.clock_step(status.now)?);
        let waiting = reader.events().longest_waiting(status.now.minus(MIN_WAIT), MAX_WAITING)?;
        Ok((counts, bytes, incident, clock_step, waiting))
    };
    let (counts, bytes, incident, clock_step, waiting) = match read() {
        Ok(read) => read,
        Err(e) => {
            let e: OutboxError = e;
            if e.is_damage() {
                let text = format!("{e}; the agent recovers what can be read when it starts");
                status.outbox.incident = Some(Incident { at: status.now, text, files: None });
            }
            return;
        }
    };
    status.longest_waiting = waiting.into_iter().map(|event| waiting_person(event, status.now)).collect();
    // What is found now is newer.
    if status.outbox.incident.as_ref().is_none_or(|found| found.at != status.now) {
        status.outbox.incident = incident;
    }
    status.clock_step = clock_step;
    status.outbox.bytes = bytes;
    counts.show_in(status);
}

fn waiting_person(event: WaitingEvent, now: Timestamp) -> WaitingPerson {
    let WaitingEvent { person, received_at: since, reason, owner } = event;
    let reason = reason.and_then(|(code, text)| Some(Reason::new(Code::parse(&code)?, text)));
    WaitingPerson { person, since, seconds: now.since(since).as_secs(), reason, owner }
}

/// The folder of a file, or the nearest folder above it that exists.
pub fn existing_folder(file: &Path) -> &Path {
    file.ancestors().skip(1).find(|folder| folder.exists()).unwrap_or(Path::new("/"))
}

/// While no agent runs, the settings are those of the configuration file, and the files are counted here.
fn correct_for_stopped_agent(status: &mut Status, config: &Config, published_at: Option<Timestamp>) {
    status.agent.since = published_at;
    status.clock_ahead_seconds = None;
    status.outbox.max_bytes = config.outbox.max_bytes;
    if status.destination.endpoint != config.koala.endpoint {
        status.destination = DestinationStatus::unknown(config.koala.endpoint.clone());
    }
    if let Some(files) = FileCount::of(&config.spool.dir) {
        (status.spool.waiting_files, status.spool.waiting_bytes) =
            (Some(files.known), Some(files.known_bytes));
        status.spool.unknown_files = Some(files.unknown);
    }
    if let Some(files) = FileCount::of(&config.spool.dir.join(REJECTED)) {
        status.spool.rejected_files = Some(files.known + files.unknown);
    }
    status.spool.dir.clone_from(&config.spool.dir);
    let path = config.spool.dir.clone();
    if published_at.is_none() && config.koala.public_key.is_none() && config.koala.key_warnings.is_empty() {
        status.destination.reason = Some(Reason::new(Code::NoKey, NO_KEY));
    }
    // A user's own agent creates its spool at its first start.
    let is_created_before = published_at.is_some() || config.scope == Scope::System;
    if is_created_before && fs::metadata(&path).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
        let reason = Reason::new(Code::Unreadable, SpoolError::Missing { path }.to_string());
        (status.spool.waiting_files, status.spool.waiting_bytes) = (Some(0), Some(0));
        status.intake = IntakeStatus { state: IntakeState::Blocked, reason: Some(reason) };
    }
}

/// The finished files in a folder.
#[derive(Default)]
struct FileCount {
    /// Those whose names say a format.
    known: u64,
    known_bytes: u64,
    /// The others.
    unknown: u64,
}

impl FileCount {
    /// `None` if the folder cannot be read or holds too many files.
    fn of(dir: &Path) -> Option<FileCount> {
        let mut count = FileCount::default();
        for (n, item) in fs::read_dir(dir).ok()?.enumerate() {
            if n == MAX_COUNTED {
                return None;
            }
            let Ok(item) = item else { continue };
            let Ok(meta) = item.metadata() else { continue };
            let name = item.file_name();
            if !meta.is_file() || !is_finished_name(&name) || is_reason_name(&name) {
                continue;
            }
            match format_of(&name) {
                Some(_) => {
                    (count.known, count.known_bytes) = (count.known + 1, count.known_bytes + meta.len())
                }
                None => count.unknown += 1,
            }
        }
        Some(count)
    }
}

/// Whether the process that published a status still runs: a process has its pid, and started before the status was
/// written.
pub fn is_publisher_alive(status: &Status) -> bool {
    let Some(pid) = status.agent.pid.filter(|_| status.agent.running) else { return false };
    let Ok(raw) = i32::try_from(pid) else { return false };
    if !matches!(kill(Pid::from_raw(raw), None), Ok(()) | Err(Errno::EPERM)) || is_zombie(pid) {
        return false;
    }
    process_start(pid).is_none_or(|start| start <= status.now.plus(CLOCK_SLACK))
}

/// Whether the process has ended, and only waits for its parent to hear of it (proc(5): field 3 of stat).
fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

/// The start of a process, where there is /proc (proc(5): field 22 of stat, in hundredths of a second since boot).
fn process_start(pid: u32) -> Option<Timestamp> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let hundredths: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let up = Duration::try_from_secs_f64(uptime).ok()?;
    let age = up.saturating_sub(Duration::from_millis(hundredths * 10));
    Some(Clock::system().now().minus(age))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigOptions, Environment, load};

    #[test]
    fn a_process_that_started_after_the_status_was_written_is_not_its_publisher() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        fs::write(&file, "").unwrap();
        let config = load(&ConfigOptions::with_file(file), &Environment::default()).unwrap();
        let mut status = never_started(&config);
        for (running, pid, now, want) in [
            (true, Some(std::process::id()), Clock::system().now(), true),
            (true, Some(std::process::id()), Timestamp(0), !cfg!(target_os = "linux")),
            (false, Some(std::process::id()), Timestamp(i64::MAX), false),
            (true, None, Timestamp(i64::MAX), false),
            (true, Some(i32::MAX as u32), Timestamp(i64::MAX), false),
        ] {
            status.agent = crate::status::AgentStatus { running, pid, ..status.agent };
            status.now = now;
            assert_eq!(is_publisher_alive(&status), want, "{:?} at {now}", status.agent);
        }
    }
}
