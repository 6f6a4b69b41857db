//! `koala-agent list`: the rows of the outbox, or the rejected files.

use super::output::{self, BAD, Column, DIM, GOOD, Table, WAITING, counted, grouped, hint, terminal_width};
use super::time::{TimeArgument, short_duration_text};
use super::{CliError, CommandContext, ExitCode, unreadable};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::outbox::{EventFilter, EventReference, Listed, Reader, State};
use crate::reason::Code;
use crate::spool::{RejectedFile, RejectedFolder, user_name};
use crate::subject::Subject;
use anstyle::Style;
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::io::ErrorKind;

/// List the events in the outbox, newest first; or the rejected files, or those that cannot be read
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  koala-agent list --state failed\n  koala-agent list --person ana@acme.dev --since 2d\n  koala-agent list --json --limit 1000 | jq -r .message_id\n  koala-agent list --person ana@acme.dev --json --bodies --limit 100000"
)]
pub struct ListArgs {
    /// Print JSON Lines, with the columns of the view outbox_events as members
    #[arg(long)]
    json: bool,
    /// Only events in these states: pending, delivered, skipped, failed, discarded
    #[arg(long, value_name = "STATE,…", value_delimiter = ',', value_parser = parse_state)]
    state: Vec<State>,
    /// Only events with this reason code, such as no_identity
    #[arg(long, value_name = "CODE", value_parser = parse_reason_code)]
    reason: Option<Code>,
    /// Only events of this person: an email or a profile_id
    #[arg(long, value_name = "PERSON")]
    person: Option<String>,
    /// Only events of this type, such as track
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only events of this name, such as 'Signed Up'
    #[arg(long, value_name = "NAME")]
    event: Option<String>,
    /// Only events stored at or after this time: 2026-01-02T03:04:05Z, 2026-01-02, or an age such as 2h or 30d
    #[arg(long, value_name = "TIME")]
    since: Option<TimeArgument>,
    /// Only events stored before this time
    #[arg(long, value_name = "TIME")]
    until: Option<TimeArgument>,
    /// Add the bodies that are still kept, and list every event that mentions the person; needs --json and --person
    #[arg(long, requires_all = ["json", "person"])]
    bodies: bool,
    /// List at most this many rows
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
    /// List the rejected files instead of events
    #[arg(long, conflicts_with_all = ["state", "reason", "person", "kind", "event", "since", "until"])]
    rejected: bool,
    /// List the files in the spool that the agent cannot read or leaves alone, and what the owner of each can do
    #[arg(long, conflicts_with_all = ["state", "reason", "person", "kind", "event", "since", "until", "rejected"])]
    unreadable: bool,
}

/// The beginning of a person's hash, which is kept of a delivered event instead of the person.
pub const HASHED: &str = "hash:";

/// Parses the name of a state.
///
/// # Errors
/// A message that lists the states.
pub fn parse_state(name: &str) -> Result<State, String> {
    State::parse(name).ok_or_else(|| format!("the states are {}", State::ALL.map(State::as_str).join(", ")))
}

/// Parses a reason code.
///
/// # Errors
/// A message that lists the codes.
pub fn parse_reason_code(code: &str) -> Result<Code, String> {
    let codes = || Code::ALL.iter().map(|code| code.as_str()).collect::<Vec<_>>().join(", ");
    Code::parse(code).ok_or_else(|| format!("the codes are {}", codes()))
}

/// Prints the rows or files, and the number of those that are left out.
///
/// # Errors
/// There is no outbox, or this user may not read it.
pub fn run(context: &CommandContext, args: ListArgs) -> Result<ExitCode, CliError> {
    let config = context.config_beside_agent()?;
    if args.rejected {
        return list_rejected(&config, &args);
    }
    if args.unreadable {
        return unreadable::list(context, &config, args.json, args.limit);
    }
    let now = context.clock.now();
    let reader = Reader::open(&config.outbox.path)?;
    let (person, seqs) = match args.person {
        Some(person) if args.bodies => (None, Some(seqs_mentioning(&reader, &person)?)),
        person => (person, None),
    };
    let is_for_person = person.is_some();
    let filter = EventFilter {
        states: args.state,
        reason: args.reason.map(|code| code.as_str().to_owned()),
        person,
        seqs,
        kind: args.kind,
        name: args.event,
        since: args.since.map(|time| time.resolve(now)),
        until: args.until.map(|time| time.resolve(now)),
    };
    let listing = reader.events().list(&filter, args.limit)?;
    let more = listing.total.saturating_sub(listing.rows.len() as u64);
    if args.bodies {
        let rows = listing.rows.into_iter().map(|row| with_body(&reader, row));
        output::print_json(&rows.collect::<Result<Vec<_>, _>>()?, more)?;
        return Ok(ExitCode::Success);
    }
    if args.json {
        output::print_json(&listing.rows, more)?;
        return Ok(ExitCode::Success);
    }
    output::print(&match listing.rows.as_slice() {
        [] if listing.total == 0 => {
            if is_for_person {
                hint("only events that make a request have a person; --json --bodies finds others too");
            }
            "no events\n".to_owned()
        }
        rows => with_more(event_table(rows, now), more),
    })?;
    Ok(ExitCode::Success)
}

/// The rows of all events that mention the person in any way.
fn seqs_mentioning(reader: &Reader, person: &str) -> Result<Vec<i64>, CliError> {
    let person = || person.to_owned();
    let mut seqs = Vec::new();
    for subject in [Subject::Email(person()), Subject::ProfileId(person()), Subject::UserId(person())] {
        seqs.extend(EventReference::find_all(reader, &subject)?.iter().map(|event| event.seq));
    }
    Ok(seqs)
}

#[derive(Serialize)]
struct ListedWithBody {
    #[serde(flatten)]
    row: Listed,
    body: Option<Box<RawValue>>,
}

fn with_body(reader: &Reader, row: Listed) -> Result<ListedWithBody, CliError> {
    let body = reader.events().show(&row.message_id)?.and_then(|detail| detail.body);
    Ok(ListedWithBody { body: body.and_then(|body| RawValue::from_string(body).ok()), row })
}

fn with_more(table: String, more: u64) -> String {
    match more {
        0 => table,
        more => format!("{table}… and {} more\n", grouped(more)),
    }
}

/// The style in which a state is printed.
pub fn state_style(state: &str) -> Style {
    match State::parse(state) {
        Some(State::Pending) => WAITING,
        Some(State::Delivered) => GOOD,
        Some(State::Failed) => BAD,
        Some(State::Skipped | State::Discarded) | None => DIM,
    }
}

/// The name of an event, else its type: that of a `track` without a name is marked, since it should have one.
fn event_name(row: &Listed) -> &str {
    match (row.event.as_deref(), row.kind.as_deref()) {
        (Some(name), _) => name,
        (None, Some("track")) => "track (no name)",
        (None, kind) => kind.unwrap_or("-"),
    }
}

/// The person; a hash, which stands for a person whose name is not kept, by its beginning.
fn short_person(person: &str) -> Cow<'_, str> {
    match person.strip_prefix(HASHED) {
        Some(hash) => format!("{HASHED}{}…", hash.get(..4).unwrap_or(hash)).into(),
        None => person.into(),
    }
}

/// A UUID, the usual messageId, is never cut: it is copied from here to `show`.
const UUID_WIDTH: usize = 36;

fn event_table(rows: &[Listed], now: Timestamp) -> String {
    let mut table = Table::new(vec![
        Column("AGE", None),
        Column("STATE", None),
        Column("MESSAGE ID", Some(UUID_WIDTH)),
        Column("EVENT", Some(10)),
        Column("PERSON", Some(10)),
        Column("REASON", None),
    ]);
    let unstyled = Style::new();
    for row in rows {
        let reason = match (&row.reason_code, &row.reason) {
            (Some(code), Some(text)) => format!("{code}: {text}"),
            _ if State::parse(&row.state) == Some(State::Pending) => "waits to be sent".to_owned(),
            _ => String::new(),
        };
        let received_at = Timestamp::parse(&row.received_at);
        let age = received_at.map_or("-".to_owned(), |at| short_duration_text(now.since(at)));
        table.row(vec![
            (unstyled, &age),
            (state_style(&row.state), &row.state),
            (unstyled, &row.message_id),
            (unstyled, event_name(row)),
            (unstyled, &short_person(row.person.as_deref().unwrap_or("-"))),
            (unstyled, &reason),
        ]);
    }
    table.render(terminal_width())
}

/// A rejected file, as `list --rejected --json` prints it.
#[derive(Serialize)]
struct RejectedRow {
    name: String,
    size: u64,
    /// The uid of the owner of the file in the spool.
    owner: u32,
    file: Option<String>,
    place: Option<u64>,
    when: Option<Timestamp>,
    code: Option<Code>,
    text: Option<String>,
    line: Option<usize>,
    column: Option<usize>,
}

impl From<RejectedFile> for RejectedRow {
    fn from(rejected: RejectedFile) -> RejectedRow {
        let why = rejected.why.as_ref();
        RejectedRow {
            name: rejected.name.to_string_lossy().into_owned(),
            size: rejected.size,
            owner: why.and_then(|why| why.owner).unwrap_or(rejected.owner),
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

/// All rejected files, newest first; none if there is no folder yet.
///
/// # Errors
/// The folder cannot be read.
pub fn all_rejected(config: &Config) -> Result<Vec<RejectedFile>, CliError> {
    let mut files = match RejectedFolder::of_spool(&config.spool.dir).list() {
        Ok(files) => files,
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        Err(source) => {
            let name = format!("the rejected files in {}", config.spool.dir.display());
            return Err(CliError::Input { name, source });
        }
    };
    files.sort_by_key(|file| std::cmp::Reverse(file.why.as_ref().map(|why| why.when)));
    Ok(files)
}

fn list_rejected(config: &Config, args: &ListArgs) -> Result<ExitCode, CliError> {
    let mut files: Vec<RejectedRow> = all_rejected(config)?.into_iter().map(RejectedRow::from).collect();
    let more = files.len().saturating_sub(args.limit) as u64;
    files.truncate(args.limit);
    if args.json {
        output::print_json(&files, more)?;
        return Ok(ExitCode::Success);
    }
    if files.is_empty() && more == 0 {
        output::print("no rejected files\n")?;
        return Ok(ExitCode::Success);
    }
    let columns = ["TIME", "NAME", "OWNER", "LINE:COL", "REASON"].map(|title| Column(title, None));
    let mut table = Table::new(columns.into());
    for file in &files {
        let when = file.when.map_or("-".to_owned(), |when| when.to_string());
        let place =
            file.line.zip(file.column).map_or("-".to_owned(), |(line, column)| format!("{line}:{column}"));
        let reason = match (&file.code, &file.text) {
            (Some(code), Some(text)) => format!("{code}: {text}"),
            _ => "unknown: the file with the reason cannot be read".to_owned(),
        };
        let owner = user_name(file.owner);
        table.row(
            [&when, &file.name, &owner, &place, &reason].map(|cell| (Style::new(), cell.as_str())).into(),
        );
    }
    output::print(&with_more(table.render(terminal_width()), more))?;
    hint(format_args!(
        "{} in {}; LINE:COL is the place of the error in the original file",
        counted(files.len() as u64 + more, "file"),
        config.spool.dir.join(crate::spool::REJECTED).display()
    ));
    Ok(ExitCode::Success)
}
