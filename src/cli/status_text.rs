//! The status for a person: what is, since when, why, and what to do.

use super::context::{ours, service};
use super::output::{BAD, BOLD, DIM, Facts, GOOD, ODD, count, paint, plain};
use super::remedy::{remedy, remedy_for_spool};
use super::when::age;
use crate::clock::Timestamp;
use crate::config::{Bytes, Config};
use crate::reason::{Code, Reason};
use crate::status::{DestinationState, IntakeState, Status};

/// The status as text.
pub fn render(status: &Status, config: &Config) -> String {
    let mut facts = Facts::default();
    facts.add("config", config_line(status, config));
    facts.add("spool", spool(status));
    intake(status, &mut facts);
    outbox(status, &mut facts);
    destination(status, &mut facts);
    let mut text = format!("{}\n{facts}", headline(status));
    let next_steps = next_steps(status, config);
    if !next_steps.is_empty() {
        text += &format!("\n{}\n", paint(BOLD, "What to do"));
        next_steps.iter().for_each(|operation| text += &format!("  - {}\n", plain(operation)));
    }
    text
}

fn headline(status: &Status) -> String {
    let agent = &status.agent;
    let name = paint(BOLD, format_args!("koala-agent {}", plain(&agent.version)));
    let since = agent.since.map(|since| format!(" since {}", moment(since, status.now))).unwrap_or_default();
    match (agent.running, agent.pid) {
        (true, pid) => {
            let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            format!("{} {name}: {}{since}{pid}", paint(GOOD, "●"), paint(GOOD, "running"))
        }
        (false, _) if agent.since.is_none() => format!("{} {name}: not run yet", paint(DIM, "○")),
        (false, _) => format!("{} {name}: {}{since}", paint(BAD, "○"), paint(BAD, "not running")),
    }
}

fn config_line(status: &Status, config: &Config) -> String {
    let missing = if config.file_exists { "" } else { " (no such file: the defaults)" };
    format!("{}{missing}", plain(&status.config.display().to_string()))
}

fn spool(status: &Status) -> String {
    let spool = &status.spool;
    let mut line = format!("{}: ", plain(&spool.dir.display().to_string()));
    match spool.waiting_files {
        0 => line += "no files wait",
        files => line += &format!("{}, {}", count(files, "waiting file"), Bytes(spool.waiting_bytes)),
    }
    if spool.unreadable_files > 0 {
        line += &format!(", {}", paint(BAD, format_args!("{} unreadable", spool.unreadable_files)));
    }
    if spool.rejected_files > 0 {
        line += &format!(", {}", paint(BAD, format_args!("{} rejected", spool.rejected_files)));
    }
    if spool.duplicates > 0 {
        line += &format!("; {} came again", count(spool.duplicates, "event"));
    }
    line
}

fn intake(status: &Status, facts: &mut Facts) {
    match status.intake.state {
        IntakeState::Open => facts.add("intake", "open"),
        IntakeState::Blocked => {
            facts.add("intake", format_args!("{}: files wait in the spool, unharmed", paint(BAD, "blocked")));
            if let Some(reason) = &status.intake.reason {
                facts.more(shown(reason));
            }
        }
    }
}

fn outbox(status: &Status, facts: &mut Facts) {
    let outbox = &status.outbox;
    facts.add(
        "outbox",
        format_args!(
            "{}: {} of {}, {} free on the disk",
            plain(&outbox.path.display().to_string()),
            Bytes(outbox.bytes),
            Bytes(outbox.max_bytes),
            Bytes(outbox.disk_free)
        ),
    );
    if !outbox.log_held_by.is_empty() {
        let pids: Vec<_> = outbox.log_held_by.iter().map(ToString::to_string).collect();
        facts.more(format_args!(
            "its write-ahead log has {} and cannot be emptied: process {} has a transaction open",
            paint(ODD, Bytes(outbox.log_bytes)),
            pids.join(", ")
        ));
    }
    if let Some(incident) = &outbox.incident {
        facts.add(
            "incident",
            format_args!("{}: {}", moment(incident.at, status.now), paint(BAD, plain(&incident.text))),
        );
        if let Some(files) = &incident.files {
            facts.more(format_args!("the damaged files are kept as {}", plain(&files.display().to_string())));
        }
    }
    let mut counts = format!(
        "{} pending, {} delivered, {} skipped",
        paint(BOLD, outbox.pending),
        outbox.delivered,
        outbox.skipped
    );
    let failed = format!("{} failed", outbox.failed);
    counts += &format!(", {}", if outbox.failed > 0 { paint(BAD, failed) } else { failed });
    if outbox.discarded > 0 {
        counts += &format!(", {} discarded", outbox.discarded);
    }
    facts.add("events", counts);
    for reason in &status.reasons {
        facts.more(format_args!("{} {}: {}", reason.events, plain(&reason.state), plain(&reason.code)));
    }
    if let Some(oldest) = outbox.oldest_pending {
        facts.add("oldest", format_args!("pending since {}", moment(oldest, status.now)));
    }
}

fn destination(status: &Status, facts: &mut Facts) {
    let to = &status.destination;
    let (style, state) = match to.state {
        DestinationState::Online => (GOOD, "online"),
        DestinationState::Backoff => (ODD, "in trouble or out of reach"),
        DestinationState::Refused => (BAD, "refuses"),
        DestinationState::Unknown => (DIM, "nothing sent yet"),
    };
    let since = to.since.map(|since| format!(" since {}", moment(since, status.now))).unwrap_or_default();
    let calm = if to.state == DestinationState::Refused { "; events wait unharmed" } else { "" };
    facts.add("destination", format_args!("{}: {}{since}{calm}", plain(&to.endpoint), paint(style, state)));
    if let Some(reason) = &to.reason {
        facts.more(shown(reason));
    }
    if let Some(at) = to.retry_at.filter(|_| status.agent.running) {
        let wait = at.since(status.now);
        let when = if wait.is_zero() { "now".to_owned() } else { format!("in {} ({at})", age(wait)) };
        facts.more(format_args!("tried again {when}"));
    }
    if let Some(last) = to.last_delivery {
        facts.add("delivered", format_args!("last {}", moment(last, status.now)));
    }
}

/// What a person can do, the most urgent first.
fn next_steps(status: &Status, config: &Config) -> Vec<String> {
    let mut next_steps = Vec::new();
    if !status.agent.running {
        next_steps.push(format!("start the agent: {}", service(config, "start")));
    }
    next_steps.extend(status.intake.reason.as_ref().and_then(|reason| match reason.code {
        // Of the folder; a file says so by itself and blocks nobody.
        Code::Unreadable => Some(remedy_for_spool(config)),
        code => remedy(code, config),
    }));
    next_steps.extend(status.destination.reason.as_ref().and_then(|reason| remedy(reason.code, config)));
    if let Some(files) = status.outbox.incident.as_ref().and_then(|incident| incident.files.as_ref()) {
        let files = files.display();
        next_steps.push(format!("once nobody needs the damaged outbox: rm {files} {files}-wal {files}-shm"));
    }
    if let [pid, ..] = status.outbox.log_held_by.as_slice() {
        next_steps.push(format!("let process {pid} end its transaction: ps {pid}"));
    }
    if status.spool.unreadable_files > 0 {
        next_steps.extend(remedy(Code::Unreadable, config));
    }
    if status.spool.rejected_files > 0 {
        next_steps.push(format!("see what was set aside, and why: {}", ours(config, "list --rejected")));
    }
    if status.outbox.failed > 0 {
        next_steps.push(format!("see what failed, and why: {}", ours(config, "list --state failed")));
    }
    next_steps
}

fn shown(reason: &Reason) -> String {
    format!("{}: {}", reason.code, plain(&reason.text))
}

fn moment(at: Timestamp, now: Timestamp) -> String {
    format!("{at}, {} ago", age(now.since(at)))
}
