//! `koala-agent show`: everything known about one event.

use super::list::{HASHED, all_rejected, state_style};
use super::output::{self, BOLD, LabelledLines, counted, escaped, hint, indented, styled, terminal_width};
use super::preview::{EventPreview, PreviewRequest};
use super::status::{current_status, is_publisher_alive};
use super::time::next_try_text;
use super::{CliError, CommandContext, ExitCode};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::event::{Event, MessageId, json::pretty};
use crate::item::Disposition;
use crate::outbox::{Acceptance, Act, Attempt, Detail, Listed, Reader, State};
use crate::reason::{Code, Reason};
use crate::spool::{Format, REJECTED, format_of, user_name};
use crate::status::{DestinationState, Status};
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;

/// The most rejected files that are searched for an id without a row: less than a second on any disk.
const MAX_SEARCHED_FILES: usize = 1_000;
/// The most bytes that are read of each of them.
const MAX_SEARCHED_BYTES: u64 = 1 << 20;

/// Show everything known about one event
///
/// Prints its state and the reason for it, its history, its body while that is kept, and the requests that it makes.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The event's messageId
    message_id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The event, as `--json` prints it.
#[derive(Serialize)]
struct ShownEvent {
    #[serde(flatten)]
    row: Listed,
    /// The modification time of the event's file.
    spooled_at: Timestamp,
    /// The answers, the one that accepted the event last.
    history: Vec<Attempt>,
    /// What was done to the event by hand, the first first.
    acts: Vec<Act>,
    /// When a pending event is sent.
    next: Option<NextAttempt>,
    /// The requests under the mappings in force, while the body is kept.
    #[serde(flatten)]
    preview: Option<EventPreview>,
    body: Option<Box<RawValue>>,
}

/// When a pending event is sent, as far as that is known.
#[derive(Serialize)]
struct NextAttempt {
    at: Option<Timestamp>,
    /// The sentence and the reason.
    text: String,
    #[serde(skip)]
    sentence: String,
    #[serde(skip)]
    reason: Option<Reason>,
}

/// Prints the event.
///
/// # Errors
/// No row has the id, or this user may not read the outbox.
pub fn run(context: &CommandContext, args: &ShowArgs) -> Result<ExitCode, CliError> {
    let config = context.config_beside_agent()?;
    let now = context.clock.now();
    let reader = Reader::open(&config.outbox.path)?;
    let Some(detail) = reader.events().show(&args.message_id)? else {
        return Err(match reader.events().is_remembered(&args.message_id)? {
            true => CliError::new(
                ExitCode::NotFound,
                format!(
                    "the event {} was delivered or skipped, and only its id is left: the history of others takes all \
                     the room there is for it (a quarter of outbox.max_bytes)",
                    args.message_id
                ),
            ),
            false => unknown_id(&config, &args.message_id),
        });
    };
    let next = match State::parse(&detail.row.state) {
        Some(State::Pending) => {
            Some(next_attempt(&current_status(&config, now), reader.events().ahead(detail.row.seq)?, now))
        }
        _ => None,
    };
    let acts = Act::on_event(&reader, detail.row.seq)?;
    let event = shown_event(&config, detail, acts, next);
    output::print(&match args.json {
        true => serde_json::to_string_pretty(&event).map_err(std::io::Error::from)? + "\n",
        false => render(&event, terminal_width()),
    })?;
    Ok(ExitCode::Success)
}

fn shown_event(config: &Config, detail: Detail, acts: Vec<Act>, next: Option<NextAttempt>) -> ShownEvent {
    let Detail { row, spooled_at, body, attempts: mut history, acceptance } = detail;
    history.extend(acceptance.map(accepted));
    let id = MessageId::from_stored(row.message_id.clone());
    let event = body.as_deref().and_then(|body| Event::parse(body).ok());
    let preview = event.map(|event| EventPreview::of(&config.mappings, &event, &id, spooled_at));
    let body = body.and_then(|body| RawValue::from_string(body).ok());
    ShownEvent { row, spooled_at, history, acts, next, preview, body }
}

/// The answer that accepted the event, as the history has it.
fn accepted(acceptance: Acceptance) -> Attempt {
    let text = match acceptance.status {
        Some(status) => format!("the receiver answered {status}"),
        None => "the receiver accepted the event".to_owned(),
    };
    Attempt { at: acceptance.at, code: "accepted".to_owned(), text }
}

/// `ahead` is the number of older events of the same person, and whether it is exact.
fn next_attempt(status: &Status, ahead: (u64, bool), now: Timestamp) -> NextAttempt {
    let destination = &status.destination;
    let mut sentence = match ahead {
        (0, _) => String::new(),
        (n, true) => format!("after {} of the same person, ", counted(n, "older event")),
        (n, false) => format!("after {} or more of the same person, ", counted(n, "older event")),
    };
    let at = destination.retry_at.filter(|at| status.agent.running && *at > now);
    let code = destination.reason.as_ref().map(|reason| reason.code);
    match (status.agent.running, destination.state, at) {
        (false, ..) => sentence += "when the agent runs again",
        (true, DestinationState::Backoff | DestinationState::Refused, at) => {
            let wait = at.map(|at| at.since(now)).unwrap_or_default();
            sentence += &format!("when the receiver accepts events again; {}", next_try_text(wait));
        }
        (true, DestinationState::Unknown, _) if code == Some(Code::NoKey) => {
            sentence += "when there is a key"
        }
        (true, DestinationState::Online | DestinationState::Unknown, _) => sentence += "in its turn",
    }
    let reason = destination.reason.clone();
    let text = reason.as_ref().map_or_else(|| sentence.clone(), |reason| format!("{sentence} ({reason})"));
    NextAttempt { at, text, sentence, reason }
}

/// The event as text. A reason stands in it once: where the state, an attempt or the next try repeat it, they do so
/// without its text.
fn render(event: &ShownEvent, width: Option<usize>) -> String {
    let row = &event.row;
    let mut lines = LabelledLines::new(width);
    let name = row.event.as_deref().map(|name| format!(" \"{}\"", escaped(name))).unwrap_or_default();
    lines.add("event", format_args!("{}{name}", escaped(row.kind.as_deref().unwrap_or("no type"))));
    let person = row.person.as_deref().unwrap_or("-");
    lines.add("person", escaped(person));
    if person.starts_with(HASHED) {
        lines.add_below(
            "a hash: the name is not kept after delivery, but list --person finds the event by it",
        );
    }
    let since = row.settled_at.as_ref().map(|at| format!(" since {at}")).unwrap_or_default();
    lines.add("state", format_args!("{}{since}", styled(state_style(&row.state), &row.state)));
    let state_reason = match (&row.reason_code, &row.reason) {
        (Some(code), Some(text)) => format!("{code}: {text}"),
        _ => String::new(),
    };
    if !state_reason.is_empty() {
        lines.add_below(escaped(&state_reason));
    }
    let unit = match format_of(OsStr::new(&row.file)) {
        Some((Format::Lines, _)) => "line",
        _ => "element",
    };
    let place = if row.place == 0 { String::new() } else { format!(", {unit} {}", row.place) };
    let file = if row.file.is_empty() { Cow::Borrowed("not kept (erased)") } else { escaped(&row.file) };
    let owner = row.owner.map(|uid| format!(" by {}", escaped(&user_name(uid)))).unwrap_or_default();
    lines.add("file", format_args!("{file}{place}, written {}{owner}", event.spooled_at));
    lines.add("stored", &row.received_at);
    lines.add("attempts", row.attempts);
    let unless_printed = |reason: &Reason| match reason.to_string() {
        text if text == state_reason => "for the reason of its state, above".to_owned(),
        text => text,
    };
    let mut last_printed = state_reason.clone();
    for attempt in &event.history {
        let reason = format!("{}: {}", attempt.code, attempt.text);
        let is_repeated = reason == last_printed;
        let printed = if is_repeated { &attempt.code } else { &reason };
        lines.add_below(format_args!("{}  {}", attempt.at, escaped(printed)));
        last_printed = reason;
    }
    for (n, act) in event.acts.iter().enumerate() {
        let line = act_line(act);
        if n == 0 { lines.add("by hand", line) } else { lines.add_below(line) }
    }
    if let Some(next) = &event.next {
        lines.add("next", &next.sentence);
        // One answer is "refused" in an attempt, and "refuses_all" of the destination.
        let is_new = |reason: &&Reason| !last_printed.contains(&reason.text);
        if let Some(reason) = next.reason.as_ref().filter(is_new) {
            lines.add_below(escaped(&reason.to_string()));
        }
    }
    let block = |title: &str, content: &str| text_block(title, content, width);
    let mut text = format!("{}\n{lines}", styled(BOLD, escaped(&row.message_id)));
    text += &match &event.body {
        Some(body) => json_block("body", body.get()),
        None => block("body", "not kept any more"),
    };
    let Some(preview) = &event.preview else { return text };
    match &preview.disposition {
        Disposition::Send(requests) => {
            for PreviewRequest { mapping, method, path, body } in requests {
                text += &json_block(&format!("{method} {path}, by mapping {mapping}"), body.get());
            }
            for trace in preview.mappings.iter().filter(|trace| trace.matched) {
                for (reason, state) in [(&trace.skipped, "skipped"), (&trace.invalid, "invalid")] {
                    if let Some(reason) = reason {
                        text += &block(&format!("{state} by mapping {}", trace.mapping), &reason.to_string());
                    }
                }
            }
        }
        Disposition::Skip(reason) => text += &block("no request: skipped", &unless_printed(reason)),
        Disposition::Fail(reason) => text += &block("no request can be made", &unless_printed(reason)),
    }
    if let Some(note) = &preview.note {
        text += &block("note", note);
    }
    if let Some(warning) = preview.warning {
        text += &block("warning", warning);
    }
    text
}

/// What was done by hand, as in `discarded by root (sudo: ana) at 2026-01-02T03:04:05Z`.
fn act_line(act: &Act) -> String {
    let what = match act.kind.as_str() {
        "retry" => "put back",
        "discard" => "discarded",
        other => other,
    };
    let user = act.asker.user.clone().unwrap_or_else(|| format!("uid {}", act.asker.uid));
    let sudo = act.asker.sudo.as_ref().map(|name| format!(" (sudo: {})", escaped(name))).unwrap_or_default();
    format!("{what} by {}{sudo} at {}", escaped(&user), act.at)
}

fn text_block(title: &str, content: &str, width: Option<usize>) -> String {
    format!("\n  {}\n    {}\n", styled(BOLD, escaped(title)), indented(&escaped(content), 4, width))
}

fn json_block(title: &str, json: &str) -> String {
    let mut text = format!("\n  {}\n", styled(BOLD, escaped(title)));
    pretty(json).lines().for_each(|line| text += &format!("    {}\n", escaped(line)));
    text
}

/// The error for an id without a row, which may be in a rejected file or in one that still waits.
fn unknown_id(config: &Config, id: &str) -> CliError {
    let mentions_id = |name: &OsStr| {
        let path = config.spool.dir.join(REJECTED).join(name);
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_SEARCHED_BYTES).read_to_end(&mut bytes));
        read.is_ok() && memchr::memmem::find(&bytes, id.as_bytes()).is_some()
    };
    let files = all_rejected(config).unwrap_or_default();
    let mut searched = files.iter().take(MAX_SEARCHED_FILES).filter(|_| !id.is_empty());
    if let Some(file) = searched.find(|file| mentions_id(&file.name)) {
        let reason = file.why.as_ref().map(|why| format!(": {}: {}", why.code, why.text)).unwrap_or_default();
        let name = file.name.to_string_lossy();
        return CliError::new(
            ExitCode::NotFound,
            format!("no event has the messageId {id}, but the file rejected/{name} contains it{reason}"),
        );
    }
    let status = Status::read(&config.status_file);
    if status.is_some_and(|status| status.spool.waiting_files != Some(0) || !is_publisher_alive(&status)) {
        hint("the event may still be in a file that waits in the spool");
    }
    CliError::new(ExitCode::NotFound, format!("no event has the messageId {id}"))
}
