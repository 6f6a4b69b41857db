//! `koala-agent list`: the rows of the outbox, and the files that were set aside.

use super::output::{self, BAD, DIM, GOOD, ODD, Table, count, hint, width};
use super::when::When;
use super::{CliError, Context, ExitCode};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::outbox::{EventFilter, EventReference, Listed, Reader, State};
use crate::reason::Code;
use crate::spool::{Rejected, rejected_beside};
use crate::subject::Subject;
use anstyle::Style;
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;
use std::io::{ErrorKind, Write};

/// The events in the outbox, newest first; or the files that were set aside
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  koala-agent list --state failed\n  koala-agent list --person ana@acme.dev --since 2d\n  koala-agent list --json --limit 1000 | jq -r .message_id\n  koala-agent list --person ana@acme.dev --json --bodies --limit 100000"
)]
pub struct ListArgs {
    /// As JSON Lines, with the columns of the view outbox_events
    #[arg(long)]
    json: bool,
    /// In one of these states: pending, delivered, skipped, failed, discarded
    #[arg(long, value_name = "STATE,…", value_delimiter = ',', value_parser = state)]
    state: Vec<State>,
    /// With this reason, such as no_identity
    #[arg(long, value_name = "CODE", value_parser = reason)]
    reason: Option<Code>,
    /// Of this person: an email or a profile_id
    #[arg(long, value_name = "PERSON")]
    person: Option<String>,
    /// Of this type, such as track
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Of this name, such as 'Signed Up'
    #[arg(long, value_name = "NAME")]
    event: Option<String>,
    /// Stored at or after: 2026-01-02T03:04:05Z, 2026-01-02, or 2h, 30d ago
    #[arg(long, value_name = "TIME")]
    since: Option<When>,
    /// Stored before
    #[arg(long, value_name = "TIME")]
    until: Option<When>,
    /// With the bodies that are kept, and every event in which the person is named
    #[arg(long, requires_all = ["json", "person"])]
    bodies: bool,
    /// At most so many rows
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
    /// The files that were set aside, instead of events
    #[arg(long, conflicts_with_all = ["state", "reason", "person", "kind", "event", "since", "until"])]
    rejected: bool,
}

/// A state by its name.
pub fn state(name: &str) -> Result<State, String> {
    State::parse(name).ok_or_else(|| format!("the states are {}", State::ALL.map(State::as_str).join(", ")))
}

/// A reason by its code.
pub fn reason(code: &str) -> Result<Code, String> {
    let known = || Code::ALL.iter().map(|code| code.as_str()).collect::<Vec<_>>().join(", ");
    Code::parse(code).ok_or_else(|| format!("the reasons are {}", known()))
}

/// Prints the rows or files, and how many more there are.
///
/// # Errors
/// There is no outbox, or this user may not read it.
pub fn run(context: &Context, args: ListArgs) -> Result<ExitCode, CliError> {
    let config = context.config()?;
    if args.rejected {
        return rejected(&config, &args);
    }
    let now = context.clock.now();
    let reader = Reader::open(&config.outbox.path)?;
    let (person, seqs) = match args.person {
        Some(person) if args.bodies => (None, Some(named(&reader, &person)?)),
        person => (person, None),
    };
    let filter = EventFilter {
        states: args.state,
        reason: args.reason.map(|code| code.as_str().to_owned()),
        person,
        seqs,
        kind: args.kind,
        name: args.event,
        since: args.since.map(|time| time.from(now)),
        until: args.until.map(|time| time.from(now)),
    };
    let listing = reader.events().list(&filter, args.limit)?;
    let more = listing.total.saturating_sub(listing.rows.len() as u64);
    if args.bodies {
        let rows = listing.rows.into_iter().map(|row| with_body(&reader, row));
        return json(&rows.collect::<Result<Vec<_>, _>>()?, more);
    }
    if args.json {
        return json(&listing.rows, more);
    }
    output::print(&match listing.rows.as_slice() {
        [] if listing.total == 0 => "no events\n".to_owned(),
        rows => with_more(table(rows), more),
    })?;
    Ok(ExitCode::Success)
}

/// The places of all the events that name the person in any way.
fn named(reader: &Reader, person: &str) -> Result<Vec<i64>, CliError> {
    let person = || person.to_owned();
    let mut seqs = Vec::new();
    for subject in [Subject::Email(person()), Subject::ProfileId(person()), Subject::UserId(person())] {
        seqs.extend(EventReference::find_all(reader, &subject)?.iter().map(|event| event.seq));
    }
    Ok(seqs)
}

#[derive(Serialize)]
struct WithBody {
    #[serde(flatten)]
    row: Listed,
    body: Option<Box<RawValue>>,
}

fn with_body(reader: &Reader, row: Listed) -> Result<WithBody, CliError> {
    let body = reader.events().show(&row.message_id)?.and_then(|detail| detail.body);
    Ok(WithBody { body: body.and_then(|body| RawValue::from_string(body).ok()), row })
}

fn json<T: Serialize>(rows: &[T], more: u64) -> Result<ExitCode, CliError> {
    let mut out = output::json();
    for row in rows {
        serde_json::to_writer(&mut out, row).map_err(std::io::Error::from)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    if more > 0 {
        hint(format_args!("… and {more} more; --limit shows them"));
    }
    Ok(ExitCode::Success)
}

fn with_more(table: String, more: u64) -> String {
    match more {
        0 => table,
        more => format!("{table}… and {more} more\n"),
    }
}

/// The colour of a state.
pub fn colour(state: &str) -> Style {
    match State::parse(state) {
        Some(State::Pending) => ODD,
        Some(State::Delivered) => GOOD,
        Some(State::Failed) => BAD,
        Some(State::Skipped | State::Discarded) | None => DIM,
    }
}

/// What happened, in one word or name.
pub fn what(row: &Listed) -> &str {
    row.event.as_deref().or(row.kind.as_deref()).unwrap_or("-")
}

fn table(rows: &[Listed]) -> String {
    const PERSON: usize = 28;
    const EVENT: usize = 24;
    let mut table = Table::new(&[
        ("RECEIVED", None),
        ("STATE", None),
        ("MESSAGE ID", None),
        ("EVENT", Some(EVENT)),
        ("PERSON", Some(PERSON)),
        ("REASON", None),
    ]);
    let plain = Style::new();
    for row in rows {
        let reason = match (&row.reason_code, &row.reason) {
            (Some(code), Some(text)) => format!("{code}: {text}"),
            _ => String::new(),
        };
        table.row(vec![
            (plain, &row.received_at),
            (colour(&row.state), &row.state),
            (plain, &row.message_id),
            (plain, what(row)),
            (plain, row.person.as_deref().unwrap_or("-")),
            (plain, &reason),
        ]);
    }
    table.render(width())
}

/// A file that was set aside, as `list --rejected --json` prints it.
#[derive(Serialize)]
struct RejectedRow {
    name: String,
    size: u64,
    file: Option<String>,
    place: Option<u64>,
    when: Option<Timestamp>,
    code: Option<Code>,
    text: Option<String>,
    line: Option<usize>,
    column: Option<usize>,
}

impl From<Rejected> for RejectedRow {
    fn from(rejected: Rejected) -> RejectedRow {
        let why = rejected.why.as_ref();
        RejectedRow {
            name: rejected.name.to_string_lossy().into_owned(),
            size: rejected.size,
            file: why.map(|why| why.file.clone()),
            place: why.map(|why| why.place),
            when: why.map(|why| why.when),
            code: why.map(|why| why.code),
            text: why.map(|why| why.text.clone()),
            line: why.map(|why| why.line),
            column: why.map(|why| why.column),
        }
    }
}

/// Every file that was set aside, newest first.
///
/// # Errors
/// The folder cannot be read; that it is not there means that there are none.
pub fn all_rejected(config: &Config) -> Result<Vec<Rejected>, CliError> {
    let mut files = match rejected_beside(&config.spool.dir).list() {
        Ok(files) => files,
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        Err(source) => {
            let name = format!("the files set aside in {}", config.spool.dir.display());
            return Err(CliError::Input { name, source });
        }
    };
    files.sort_by_key(|file| std::cmp::Reverse(file.why.as_ref().map(|why| why.when)));
    Ok(files)
}

fn rejected(config: &Config, args: &ListArgs) -> Result<ExitCode, CliError> {
    let mut files: Vec<RejectedRow> = all_rejected(config)?.into_iter().map(RejectedRow::from).collect();
    let more = files.len().saturating_sub(args.limit) as u64;
    files.truncate(args.limit);
    if args.json {
        return json(&files, more);
    }
    if files.is_empty() && more == 0 {
        output::print("no rejected files\n")?;
        return Ok(ExitCode::Success);
    }
    let mut table = Table::new(&[("WHEN", None), ("NAME", None), ("PLACE", None), ("REASON", None)]);
    for file in &files {
        let when = file.when.map_or("-".to_owned(), |when| when.to_string());
        let place =
            file.line.zip(file.column).map_or("-".to_owned(), |(line, column)| format!("{line}:{column}"));
        let reason = match (&file.code, &file.text) {
            (Some(code), Some(text)) => format!("{code}: {text}"),
            _ => "the reason beside it cannot be read".to_owned(),
        };
        let plain = Style::new();
        table.row(vec![(plain, &when), (plain, &file.name), (plain, &place), (plain, &reason)]);
    }
    output::print(&with_more(table.render(width()), more))?;
    hint(format_args!(
        "{} in {}; PLACE is line and column of the file as it came",
        count(files.len() as u64 + more, "file"),
        config.spool.dir.join(crate::spool::REJECTED).display()
    ));
    Ok(ExitCode::Success)
}
