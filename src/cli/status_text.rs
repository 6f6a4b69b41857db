//! The status as text: each subject with its state, since when, why, and what to do.

use super::context::agent_command;
use super::output::{BAD, BOLD, DIM, GOOD, LabelledLines, WAITING, counted, escaped, grouped, styled};
use super::remedy::{
    Remedy, clock_remedy, full_outbox_remedy, meaning, reload_remedy, remedy, spool_remedy, start_remedy,
};
use super::time::{duration_text, next_try_text, time_and_age};
use crate::clock::Timestamp;
use crate::config::{Bytes, Config};
use crate::reason::{Code, Reason};
use crate::spool::{shell_quoted, user_name};
use crate::status::{DestinationState, IntakeState, OutboxStatus, Status, backoff_word};
use nix::unistd::Uid;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

/// The status for a terminal of that width, or for a pipe. `unreadable`: the first file that the agent cannot read, and
/// what its owner can do, where this user may see that.
pub fn render(
    status: &Status,
    config: &Config,
    unreadable: Option<(String, Remedy)>,
    width: Option<usize>,
) -> String {
    let mut lines = LabelledLines::new(width);
    config_file(status, config, &mut lines);
    spool(status, &mut lines);
    if let Some((text, _)) = &unreadable {
        lines.add_below(escaped(text));
    }
    intake(status, &mut lines);
    outbox(status, config, &mut lines);
    if let Some(step) = &status.clock_step {
        lines.add("clock", time_and_age(step.at, status.now));
        lines.add_below(styled(BAD, escaped(&step.text)));
    }
    if let Some(ahead) = status.clock_ahead_seconds {
        lines.add("clock", styled(BAD, clock_text(ahead)));
    }
    events(status, &mut lines);
    longest_waiting(status, &mut lines);
    destination(status, &mut lines);
    let mut text = format!("{}\n{lines}", headline(status));
    let remedies = next_steps(status, config, unreadable.map(|(_, remedy)| remedy));
    if !remedies.is_empty() {
        text += &format!("\n{}\n", styled(BOLD, "What to do"));
    }
    for remedy in remedies {
        text += &format!("  - {}\n", remedy.render(4, width));
    }
    text
}

/// A clock that differs from the receiver's by so many seconds.
pub fn clock_text(seconds_ahead: i64) -> String {
    let direction = if seconds_ahead > 0 { "ahead of" } else { "behind" };
    let difference = duration_text(Duration::from_secs(seconds_ahead.unsigned_abs()));
    format!("{difference} {direction} the receiver's: if it is not right, events get wrong times")
}

fn headline(status: &Status) -> String {
    let agent = &status.agent;
    let name = styled(BOLD, format_args!("koala-agent {}", escaped(&agent.version)));
    let since =
        agent.since.map(|since| format!(" since {}", time_and_age(since, status.now))).unwrap_or_default();
    match (agent.running, agent.pid) {
        (true, pid) => {
            let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            format!("{} {name}: {}{since}{pid}", styled(GOOD, "●"), styled(GOOD, "running"))
        }
        (false, _) if agent.since.is_none() => format!("{} {name}: never started", styled(DIM, "○")),
        (false, _) => format!("{} {name}: {}{since}", styled(BAD, "○"), styled(BAD, "not running")),
    }
}

fn config_file(status: &Status, config: &Config, lines: &mut LabelledLines) {
    let missing = if config.file_exists { "" } else { " (no such file: the defaults are used)" };
    lines.add("config", format_args!("{}{missing}", escaped(&status.config.display().to_string())));
    if config.is_broken {
        lines.add_below(styled(BAD, "it is broken; what the agent read before stays in force"));
    } else if status.config_in_force == Some(false) {
        lines.add_below(styled(WAITING, "it has been changed since the agent read it"));
    }
    if status.agent.log_lines_dropped > 0 {
        let dropped = counted(status.agent.log_lines_dropped, "line");
        lines.add("log", styled(BAD, format_args!("{dropped} dropped, because stderr could not be written")));
    }
}

fn spool(status: &Status, lines: &mut LabelledLines) {
    let spool = &status.spool;
    lines.add("spool", escaped(&spool.dir.display().to_string()));
    let mut text = match spool.waiting_files {
        _ if is_missing(&spool.dir) => "there is no such folder".to_owned(),
        None => "the number of waiting files is not known yet".to_owned(),
        Some(0) => "no files waiting".to_owned(),
        Some(files) => {
            let bytes = spool.waiting_bytes.unwrap_or(0);
            format!("{} waiting ({})", counted(files, "file"), Bytes(bytes))
        }
    };
    if let Some(unreadable @ 1..) = spool.unreadable_files {
        let unreadable = format!("{} of them unreadable", grouped(unreadable));
        text += &format!(", {}", styled(BAD, unreadable));
    }
    if let Some(rejected @ 1..) = spool.rejected_files {
        let rejected = format!("{} rejected", grouped(rejected));
        text += &format!("; {}", styled(BAD, rejected));
    }
    if let Some(unknown @ 1..) = spool.unknown_files {
        text += &format!("; {} with unknown names, left alone", grouped(unknown));
    }
    if spool.duplicates > 0 {
        text += &format!("; {} dropped", counted(spool.duplicates, "duplicate event"));
    }
    lines.add_below(text);
    for owner in &spool.owners {
        // Whoever is the only one to drop files knows whose they are.
        let is_reader = spool.owners.len() == 1 && owner.uid == Uid::effective().as_raw();
        if is_reader && owner.unreadable_files == 0 && owner.reason.is_none() {
            continue;
        }
        let mut text = format!(
            "of {}: {} waiting, {}",
            user_name(owner.uid),
            counted(owner.waiting_files, "file"),
            Bytes(owner.waiting_bytes)
        );
        if owner.unreadable_files > 0 {
            text += &format!("; {} unreadable", grouped(owner.unreadable_files));
        }
        if let Some(reason) = &owner.reason {
            text += &format!("; {}", styled(BAD, escaped(&reason.to_string())));
        }
        lines.add_below(text);
    }
}

/// Whether a folder is known not to exist: one that is hidden from this user may exist.
fn is_missing(dir: &Path) -> bool {
    std::fs::metadata(dir).is_err_and(|e| e.kind() == ErrorKind::NotFound)
}

/// Whether the outbox has reached its limit, so that the next file is not read even if none has had to wait yet.
pub fn is_full(outbox: &OutboxStatus) -> bool {
    outbox.max_bytes > 0 && outbox.needed_bytes >= outbox.max_bytes
}

fn intake(status: &Status, lines: &mut LabelledLines) {
    match status.intake.state {
        IntakeState::Open if is_full(&status.outbox) => {
            let full = styled(BAD, "full");
            lines.add("intake", format_args!("the outbox is {full}: new files will wait in the spool"));
        }
        IntakeState::Open => lines.add("intake", "open: new files are read"),
        IntakeState::Blocked => {
            let blocked = styled(BAD, "blocked");
            match is_missing(&status.spool.dir) {
                true => lines.add("intake", blocked),
                false => {
                    lines.add("intake", format_args!("{blocked}: files wait in the spool, nothing is lost"));
                }
            }
            if let Some(reason) = &status.intake.reason {
                lines.add_below(escaped(&reason.to_string()));
            }
        }
    }
}

fn outbox(status: &Status, config: &Config, lines: &mut LabelledLines) {
    let outbox = &status.outbox;
    lines.add("outbox", escaped(&outbox.path.display().to_string()));
    let free = match outbox.disk_free {
        Some(free) => format!("{} free on its disk", Bytes(free)),
        None => "the free space on its disk is not known".to_owned(),
    };
    let (needed, limit) = (Bytes(outbox.needed_bytes), Bytes(outbox.max_bytes));
    lines.add_below(format_args!("{needed} of {limit} used by waiting and failed events; {free}"));
    if let Some(since) = outbox.history_since
        && status.now.since(since) < config.outbox.keep_delivered
    {
        let since = time_and_age(since, status.now);
        lines.add_below(format_args!("for want of room, the history of delivered events begins {since}"));
    }
    if let Some(since) = outbox.ids_remembered_since
        && status.now.since(since) < config.outbox.keep_delivered
    {
        let since = time_and_age(since, status.now);
        lines.add_below(format_args!(
            "for want of room, ids of delivered events are remembered since {since}"
        ));
    }
    if !outbox.log_held_by.is_empty() {
        let pids: Vec<_> = outbox.log_held_by.iter().map(ToString::to_string).collect();
        lines.add_below(format_args!(
            "its write-ahead log has grown to {} and cannot be emptied: process {} has an open transaction",
            styled(WAITING, Bytes(outbox.log_bytes)),
            pids.join(", ")
        ));
    }
    if let Some(incident) = &outbox.incident {
        lines.add("incident", time_and_age(incident.at, status.now));
        lines.add_below(styled(BAD, escaped(&incident.text)));
        if let Some(files) = &incident.files {
            lines.add_below(format_args!(
                "the damaged files are kept as {}",
                escaped(&files.display().to_string())
            ));
        }
    }
}

fn events(status: &Status, lines: &mut LabelledLines) {
    let outbox = &status.outbox;
    let failed = format!("{} failed", grouped(outbox.failed));
    let mut counts = format!(
        "{} pending, {} delivered, {} skipped, {}",
        styled(BOLD, grouped(outbox.pending)),
        grouped(outbox.delivered),
        grouped(outbox.skipped),
        if outbox.failed > 0 { styled(BAD, failed) } else { failed }
    );
    if outbox.discarded > 0 {
        counts += &format!(", {} discarded", grouped(outbox.discarded));
    }
    lines.add("events", counts);
    if let Some(oldest) = outbox.oldest_pending {
        lines.add_below(format_args!("oldest pending: stored {}", time_and_age(oldest, status.now)));
    }
    for reason in &status.reasons {
        let meaning = Code::parse(&reason.code).and_then(meaning);
        lines.add_below(format_args!(
            "{} {}: {}{}",
            grouped(reason.events),
            escaped(&reason.state),
            escaped(&reason.code),
            meaning.map(|meaning| format!(" ({meaning})")).unwrap_or_default()
        ));
    }
}

fn longest_waiting(status: &Status, lines: &mut LabelledLines) {
    for (n, waiting) in status.longest_waiting.iter().enumerate() {
        let mut text = format!(
            "{}: {}",
            escaped(&waiting.person),
            styled(WAITING, duration_text(Duration::from_secs(waiting.seconds)))
        );
        if let Some(owner) = waiting.owner {
            text += &format!(", file of {}", escaped(&user_name(owner)));
        }
        if let Some(reason) = &waiting.reason {
            text += &format!("; {}", escaped(&reason.to_string()));
        }
        match n {
            0 => lines.add("waiting", text),
            _ => lines.add_below(text),
        }
    }
}

fn destination(status: &Status, lines: &mut LabelledLines) {
    let destination = &status.destination;
    let since = destination.since.map(|since| time_and_age(since, status.now));
    let since_when = since.map(|since| format!(" since {since}")).unwrap_or_default();
    lines.add("destination", escaped(&destination.endpoint));
    lines.add_below(match destination.state {
        DestinationState::Unknown if destination.last_delivery.is_none() => {
            styled(DIM, "nothing delivered yet").to_string()
        }
        DestinationState::Unknown => styled(DIM, format_args!("no delivery{since_when}")).to_string(),
        state => in_words(state, destination.reason.as_ref(), &since_when),
    });
    let next_try = |at: Option<Timestamp>| {
        at.filter(|_| status.agent.running).map(|at| next_try_text(at.since(status.now)))
    };
    if let Some(reason) = &destination.reason {
        lines.add_below(escaped(&reason.to_string()));
    }
    next_try(destination.retry_at).into_iter().for_each(|text| lines.add_below(text));
    for path in &destination.paths {
        let since = format!(" since {}", time_and_age(path.since, status.now));
        lines.add_below(format_args!(
            "{}: {}",
            escaped(&path.path),
            in_words(path.state, path.reason.as_ref(), &since)
        ));
        path.reason.iter().for_each(|reason| lines.add_below(escaped(&reason.to_string())));
        next_try(path.retry_at).into_iter().for_each(|text| lines.add_below(text));
    }
    if let Some(last) = destination.last_delivery {
        lines.add_below(format_args!("last delivery {}", time_and_age(last, status.now)));
    }
}

fn in_words(state: DestinationState, reason: Option<&Reason>, since: &str) -> String {
    match state {
        DestinationState::Online => format!("{}{since}", styled(GOOD, "online")),
        DestinationState::Backoff => {
            format!("{}{since}", styled(WAITING, backoff_word(reason)))
        }
        DestinationState::Refused => {
            format!("{}{since}; events wait, nothing is lost", styled(BAD, "refuses events"))
        }
        DestinationState::Unknown => styled(DIM, "nothing sent yet").to_string(),
    }
}

/// The remedies for everything that is wrong, the most urgent first.
fn next_steps(status: &Status, config: &Config, unreadable: Option<Remedy>) -> Vec<Remedy> {
    let mut steps = Vec::new();
    if !status.agent.running {
        steps.push(start_remedy(config));
    }
    if config.is_broken {
        steps.push(Remedy::run("fix the configuration", agent_command(config, "check --config-only")));
    } else if status.config_in_force == Some(false) {
        steps.push(reload_remedy(config));
    }
    steps.extend(status.intake.reason.as_ref().and_then(|reason| match reason.code {
        // An intake is blocked by an unreadable folder only, never by an unreadable file.
        Code::Unreadable => Some(spool_remedy(config)),
        Code::MaxBytes => Some(full_outbox_remedy(status.outbox.pending, config)),
        code => remedy(code, config),
    }));
    if status.intake.reason.is_none() && is_full(&status.outbox) {
        steps.push(full_outbox_remedy(status.outbox.pending, config));
    }
    steps.extend(status.destination.reason.as_ref().and_then(|reason| remedy(reason.code, config)));
    if status.clock_ahead_seconds.is_some() {
        steps.push(clock_remedy());
    }
    if let Some(files) = status.outbox.incident.as_ref().and_then(|incident| incident.files.as_ref()) {
        let mut command = String::from("rm");
        for suffix in ["", "-wal", "-shm"] {
            let mut file = files.as_os_str().to_owned();
            file.push(suffix);
            // The log of a damaged database may be missing; a user who may not look is told of the database.
            if suffix.is_empty() || Path::new(&file).exists() {
                command += &format!(" {}", shell_quoted(&file));
            }
        }
        steps.push(Remedy::run("remove the damaged outbox once nobody needs it", command));
    }
    if let [pid, ..] = status.outbox.log_held_by.as_slice() {
        steps.push(Remedy::run(format!("let process {pid} end its transaction"), format!("ps {pid}")));
    }
    if status.spool.unreadable_files > Some(0) {
        steps.extend(unreadable);
        steps.extend(remedy(Code::Unreadable, config));
    }
    if status.spool.rejected_files > Some(0) {
        let command = agent_command(config, "list --rejected");
        steps.push(Remedy::run("see which files were rejected, and why", command));
    }
    if status.outbox.failed > 0 {
        let command = agent_command(config, "list --state failed");
        steps.push(Remedy::run("see which events failed, and why", command));
    }
    steps
}
