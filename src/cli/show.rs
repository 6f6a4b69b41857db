//! `koala-agent show`: everything that is known of one event.

use super::list::{all_rejected, colour};
use super::output::{self, BOLD, Facts, hint, paint, plain};
use super::preview::{MappingTrace, Preview, Request, prospect};
use super::status::{alive, gather};
use super::when::age;
use super::{CliError, Context, ExitCode};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::event::{Event, MessageId, json::pretty};
use crate::outbox::{Attempt, Detail, Listed, Reader, State};
use crate::spool::{Format, REJECTED, format_of};
use crate::status::{DestinationState, Status};
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;

/// Files that are looked through for an id that is in no row: within a second on any disk.
const MAX_SEARCHED: usize = 1_000;
/// Of each of them no more is read than a large NDJSON part has.
const MAX_SEARCHED_BYTES: u64 = 1 << 20;

/// Everything known of one event
///
/// Its history, the reason of its state, its body while that is kept, and the request that it makes.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The event's messageId
    message_id: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    row: Listed,
    /// The modification time of its file.
    spooled_at: Timestamp,
    /// Answers other than acceptance.
    history: Vec<Attempt>,
    /// Of a pending event.
    next: Option<Next>,
    /// Under the mapping in force, while the body is kept.
    #[serde(flatten)]
    judgement: Option<MappingTrace>,
    body: Option<Box<RawValue>>,
}

#[derive(Serialize)]
struct Next {
    at: Option<Timestamp>,
    text: String,
}

/// Prints the event.
///
/// # Errors
/// No row carries the id, or this user may not read the outbox.
pub fn run(context: &Context, args: &ShowArgs) -> Result<ExitCode, CliError> {
    let config = context.config()?;
    let now = context.clock.now();
    let reader = Reader::open(&config.outbox.path)?;
    let Some(detail) = reader.events().show(&args.message_id)? else {
        return Err(unknown(&config, &args.message_id));
    };
    let next = match State::parse(&detail.row.state) {
        Some(State::Pending) => {
            Some(next(&gather(&config, now), reader.events().ahead(detail.row.seq)?, now))
        }
        _ => None,
    };
    let shown = shown(&config, detail, next);
    output::print(&match args.json {
        true => serde_json::to_string_pretty(&shown).map_err(std::io::Error::from)? + "\n",
        false => text(&shown),
    })?;
    Ok(ExitCode::Success)
}

fn shown(config: &Config, detail: Detail, next: Option<Next>) -> Shown {
    let Detail { row, spooled_at, body, attempts } = detail;
    let id = MessageId::from_stored(row.message_id.clone());
    let event = body.as_deref().and_then(|body| Event::parse(body).ok());
    let judgement = event.map(|event| prospect(&config.mappings, &event, &id, spooled_at));
    let body = body.and_then(|body| RawValue::from_string(body).ok());
    Shown { row, spooled_at, history: attempts, next, judgement, body }
}

/// When a pending event is sent, as far as it can be told.
fn next(status: &Status, ahead: (u64, bool), now: Timestamp) -> Next {
    let to = &status.destination;
    let mut text = match ahead {
        (0, _) => String::new(),
        (n, true) => format!("after {n} older of the same person, "),
        (n, false) => format!("after {n} or more older of the same person, "),
    };
    let at = to.retry_at.filter(|at| status.agent.running && *at > now);
    match (status.agent.running, to.state, at) {
        (false, ..) => text += "when the agent runs again",
        (true, DestinationState::Backoff | DestinationState::Refused, Some(at)) => {
            text += &format!("when the receiver takes events again; it is tried in {}", age(at.since(now)));
        }
        (true, DestinationState::Backoff | DestinationState::Refused, None) => {
            text += "when the receiver takes events again; it is being tried";
        }
        (true, DestinationState::Online | DestinationState::Unknown, _) => text += "in its turn",
    }
    if let Some(reason) = &to.reason {
        text += &format!(" ({}: {})", reason.code, reason.text);
    }
    Next { at, text }
}

fn text(shown: &Shown) -> String {
    let row = &shown.row;
    let mut facts = Facts::default();
    let name = row.event.as_deref().map(|name| format!(" \"{}\"", plain(name))).unwrap_or_default();
    facts.add("event", format_args!("{}{name}", plain(row.kind.as_deref().unwrap_or("no type"))));
    facts.add("person", plain(row.person.as_deref().unwrap_or("-")));
    let since = row.settled_at.as_ref().map(|at| format!(" since {at}")).unwrap_or_default();
    facts.add("state", format_args!("{}{since}", paint(colour(&row.state), &row.state)));
    if let (Some(code), Some(reason)) = (&row.reason_code, &row.reason) {
        facts.more(format_args!("{}: {}", plain(code), plain(reason)));
    }
    let unit = match format_of(OsStr::new(&row.file)) {
        Some((Format::Lines, _)) => "line",
        _ => "element",
    };
    let place = if row.place == 0 { String::new() } else { format!(", {unit} {}", row.place) };
    facts.add("file", format_args!("{}{place}, written {}", plain(&row.file), shown.spooled_at));
    facts.add("stored", &row.received_at);
    facts.add("attempts", row.attempts);
    for attempt in &shown.history {
        facts.more(format_args!("{}  {}: {}", attempt.at, plain(&attempt.code), plain(&attempt.text)));
    }
    if let Some(next) = &shown.next {
        facts.add("next", plain(&next.text));
    }
    let mut text = format!("{}\n{facts}", paint(BOLD, plain(&row.message_id)));
    text += &block("body", &shown.body.as_ref().map_or_else(gone, |body| pretty(body.get())));
    let Some(judgement) = &shown.judgement else { return text };
    match &judgement.prospect {
        Preview::Requests(requests) => {
            for Request { mapping, method, path, body } in requests {
                text += &block(&format!("{method} {path}, by {mapping}"), &pretty(body.get()));
            }
            for judged in judgement.mappings.iter().filter(|judged| judged.matched) {
                let (skipped, invalid) = (judged.skipped.as_ref(), judged.invalid.as_ref());
                for (reason, what) in
                    skipped.map(|r| (r, "skipped")).into_iter().chain(invalid.map(|r| (r, "invalid")))
                {
                    text += &block(&format!("{what} by {}", judged.mapping), &reason.to_string());
                }
            }
        }
        Preview::Skipped(reason) => text += &block("no request: skipped", &reason.to_string()),
        Preview::Invalid(reason) => text += &block("no request can be made", &reason.to_string()),
    }
    if let Some(warning) = judgement.warning {
        text += &block("note", warning);
    }
    text
}

fn gone() -> String {
    "not kept any more".to_owned()
}

fn block(title: &str, content: &str) -> String {
    let mut text = format!("\n  {}\n", paint(BOLD, title));
    content.lines().for_each(|line| text += &format!("    {}\n", plain(line)));
    text
}

/// An id without a row may be in a file that was set aside, or not be taken yet.
fn unknown(config: &Config, id: &str) -> CliError {
    let mentions = |name: &std::ffi::OsStr| {
        let path = config.spool.dir.join(REJECTED).join(name);
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_SEARCHED_BYTES).read_to_end(&mut bytes));
        read.is_ok() && memchr::memmem::find(&bytes, id.as_bytes()).is_some()
    };
    let files = all_rejected(config).unwrap_or_default();
    let found = files.iter().take(MAX_SEARCHED).filter(|_| !id.is_empty()).find(|file| mentions(&file.name));
    if let Some(file) = found {
        let why = file.why.as_ref().map(|why| format!(": {}: {}", why.code, why.text)).unwrap_or_default();
        let name = file.name.to_string_lossy();
        return CliError::new(
            ExitCode::NotFound,
            format!("no event has the messageId {id}, but the file rejected/{name} names it{why}"),
        );
    }
    let waiting = crate::status::Status::read(&config.status_file)
        .filter(|status| status.spool.waiting_files > 0 || !alive(status));
    if waiting.is_some() {
        hint("files may still wait in the spool");
    }
    CliError::new(ExitCode::NotFound, format!("no event has the messageId {id}"))
}
