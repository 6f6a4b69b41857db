//! `koala-agent status`: from the agent's published file, and from the outbox where this user may read it.

use super::{CliError, Context, ExitCode, output, status_text};
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::disk;
use crate::outbox::{OutboxError, Reader, State, holder};
use crate::reason::{Code, Reason};
use crate::spool::{REJECTED, SpoolError, is_finished_name, is_reason_name};
use crate::status::{
    AgentStatus, DestinationState, DestinationStatus, Incident, IntakeState, IntakeStatus, ReasonCount,
    SCHEMA, SpoolStatus, Status,
};
use clap::Args;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

/// Files counted in a folder while no agent runs that has counted them: 20 ms for a folder of any size.
const MAX_COUNTED: usize = 10_000;
/// A process and what it wrote are placed in time to the second, each by a clock of its own.
const SLACK: Duration = Duration::from_secs(2);

/// What waits, what was delivered, what is stuck, and what to do
///
/// With the agent up or down, for every user.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  koala-agent status --json | jq .outbox.pending")]
pub struct StatusArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Prints the status.
///
/// # Errors
/// There is no configuration, or stdout cannot be written; never that the agent is down.
pub fn run(context: &Context, args: &StatusArgs) -> Result<ExitCode, CliError> {
    let config = context.config()?;
    let status = gather(&config, context.clock.now());
    let text = match args.json {
        true => serde_json::to_string_pretty(&status).map_err(std::io::Error::from)? + "\n",
        false => status_text::render(&status, &config),
    };
    output::print(&text)?;
    Ok(ExitCode::Success)
}

/// Everything that this user can know now.
pub fn gather(config: &Config, now: Timestamp) -> Status {
    let published = Status::read(&config.status_file);
    let published_at = published.as_ref().map(|status| status.now);
    let published_alive =
        published.as_ref().filter(|status| alive(status)).and_then(|status| status.agent.pid);
    let mut status = published.unwrap_or_else(|| blank(config));
    status.now = now;
    status.config.clone_from(&config.path);
    status.outbox.path.clone_from(&config.outbox.path);

    let readable = read_outbox(&mut status, config);
    let holder = holder(&config.outbox.path).and_then(|pid| u32::try_from(pid).ok());
    // Who can read the outbox can see its lock as well; for others the published process is what there is.
    let pid = if readable { holder } else { published_alive };
    if pid.is_none() {
        is_stopped(&mut status, config, published_at);
    }
    status.agent.running = pid.is_some();
    status.agent.pid = pid;
    let oldest = status.outbox.oldest_pending;
    status.outbox.oldest_pending_seconds = oldest.map(|oldest| now.since(oldest).as_secs());
    status
}

/// Before the first run.
fn blank(config: &Config) -> Status {
    Status {
        schema: SCHEMA,
        now: Timestamp(0),
        config: config.path.clone(),
        agent: AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            running: false,
            pid: None,
            since: None,
        },
        spool: SpoolStatus { dir: config.spool.dir.clone(), ..SpoolStatus::default() },
        intake: IntakeStatus { state: IntakeState::Open, reason: None },
        outbox: crate::status::OutboxStatus { max_bytes: config.outbox.max_bytes, ..Default::default() },
        reasons: Vec::new(),
        destination: destination(config),
    }
}

fn destination(config: &Config) -> DestinationStatus {
    DestinationStatus {
        kind: "koala".to_owned(),
        endpoint: config.koala.endpoint.clone(),
        state: DestinationState::Unknown,
        since: None,
        reason: None,
        retry_at: None,
        last_delivery: None,
    }
}

/// The counts of this moment, where this user may read them.
fn read_outbox(status: &mut Status, config: &Config) -> bool {
    let path = &config.outbox.path;
    status.outbox.disk_free = disk::space_of(path).map_or(0, |disk| disk.free);
    let read = || {
        let reader = Reader::open(path)?;
        Ok((reader.counts()?, reader.bytes()?, reader.incident(status.now)?))
    };
    let (counts, bytes, incident) = match read() {
        Ok(read) => read,
        Err(e) => {
            let e: OutboxError = e;
            if e.is_damage() {
                let text = format!("{e}; the agent recovers what can be read when it starts");
                status.outbox.incident = Some(Incident { at: status.now, text, files: None });
            }
            return false;
        }
    };
    status.outbox.incident = incident;
    status.outbox.pending = counts.of(State::Pending);
    status.outbox.delivered = counts.of(State::Delivered);
    status.outbox.skipped = counts.of(State::Skipped);
    status.outbox.failed = counts.of(State::Failed);
    status.outbox.discarded = counts.of(State::Discarded);
    status.outbox.oldest_pending = counts.oldest_pending;
    status.outbox.bytes = bytes;
    status.spool.duplicates = counts.duplicates;
    let reasons = counts.reasons.into_iter();
    status.reasons = reasons
        .map(|(state, code, events)| ReasonCount { state: state.as_str().to_owned(), code, events })
        .collect();
    true
}

/// The folder of a file, or the nearest above it that is there.
pub fn folder_of(file: &Path) -> &Path {
    file.ancestors().skip(1).find(|folder| folder.exists()).unwrap_or(Path::new("/"))
}

/// What is different while no agent runs: the settings are the file's, and the spool is counted here.
fn is_stopped(status: &mut Status, config: &Config, published_at: Option<Timestamp>) {
    status.agent.since = published_at;
    status.outbox.max_bytes = config.outbox.max_bytes;
    if status.destination.endpoint != config.koala.endpoint {
        status.destination = destination(config);
    }
    if let Some((files, bytes)) = count_files(&config.spool.dir) {
        (status.spool.waiting_files, status.spool.waiting_bytes) = (files, bytes);
    }
    if let Some((files, _)) = count_files(&config.spool.dir.join(REJECTED)) {
        status.spool.rejected_files = files;
    }
    status.spool.dir.clone_from(&config.spool.dir);
    let path = config.spool.dir.clone();
    // Before its first run an agent of one's own has none, and needs none.
    if published_at.is_some() && fs::metadata(&path).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
        let reason = Reason::new(Code::Unreadable, SpoolError::Missing { path }.to_string());
        status.intake = IntakeStatus { state: IntakeState::Blocked, reason: Some(reason) };
    }
}

/// How many files wait in a folder, and their size; `None` if that cannot be told, or not soon.
fn count_files(dir: &Path) -> Option<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for (n, item) in fs::read_dir(dir).ok()?.enumerate() {
        if n == MAX_COUNTED {
            return None;
        }
        let Ok(item) = item else { continue };
        let Ok(meta) = item.metadata() else { continue };
        let name = item.file_name();
        if meta.is_file() && is_finished_name(&name) && !is_reason_name(&name) {
            (files, bytes) = (files + 1, bytes + meta.len());
        }
    }
    Some((files, bytes))
}

/// Whether the process that published a status still runs: it is there, and no later one of the same number.
pub fn alive(status: &Status) -> bool {
    let Some(pid) = status.agent.pid.filter(|_| status.agent.running) else { return false };
    let Ok(raw) = i32::try_from(pid) else { return false };
    if !matches!(kill(Pid::from_raw(raw), None), Ok(()) | Err(Errno::EPERM)) {
        return false;
    }
    started(pid).is_none_or(|started| started <= status.now.plus(SLACK))
}

/// When a process started, where /proc tells (proc(5): field 22 of stat, in hundredths of a second since boot).
fn started(pid: u32) -> Option<Timestamp> {
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
    fn a_process_that_came_later_is_not_the_one_that_published() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        fs::write(&file, "").unwrap();
        let config =
            load(&ConfigOptions { config: Some(file), user: false }, &Environment::default()).unwrap();
        let mut status = blank(&config);
        for (running, pid, now, want) in [
            (true, Some(std::process::id()), Clock::system().now(), true),
            (true, Some(std::process::id()), Timestamp(0), !cfg!(target_os = "linux")),
            (false, Some(std::process::id()), Timestamp(i64::MAX), false),
            (true, None, Timestamp(i64::MAX), false),
            (true, Some(i32::MAX as u32), Timestamp(i64::MAX), false),
        ] {
            status.agent = AgentStatus { running, pid, ..status.agent };
            status.now = now;
            assert_eq!(alive(&status), want, "{:?} at {now}", status.agent);
        }
    }
}
