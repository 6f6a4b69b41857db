//! `koala-agent map`: a dry run.

use super::input::{Found, Source};
use super::preview::{MappingTrace, Preview, prospect};
use super::{CliError, Context, ExitCode, expect, output, typed};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::event::{Event, MessageId};
use crate::reason::Reason;
use clap::Args;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

/// Dry run: the requests that events make
///
/// One JSON line for each event, in the order of the input: its requests, or why there are none, and what each mapping
/// has to do with it. Nothing is stored or sent, and no key is needed: <public_key> stands in its place.
///
/// With --expect the lines are compared with those of a file, which a team keeps beside its configuration; it ends with 1
/// if they differ. What a line there, or a request in it, does not say may be anything; an event without a
/// timestamp has that of its file.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  koala-agent map events.jsonl | jq -c '.requests[]?.body'\n  koala-agent map events.jsonl > expected.jsonl\n  koala-agent map events.jsonl --expect expected.jsonl"
)]
pub struct MapArgs {
    /// Events in any form: .json, .jsonl, .ndjson, each also .gz; - or none: standard input
    #[arg(default_value = "-", hide_default_value = true)]
    file: PathBuf,
    /// Compare with these lines, as map has printed them
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
}

#[derive(Serialize)]
struct Mapped {
    message_id: Option<String>,
    #[serde(flatten)]
    judgement: MappingTrace,
}

/// Prints what becomes of each event.
///
/// # Errors
/// The input cannot be read; never that an event is wrong.
pub fn run(context: &Context, args: &MapArgs) -> Result<ExitCode, CliError> {
    let config = context.config()?;
    if args.file.as_os_str() == "-" && typed() {
        output::hint("reading events from the terminal; Ctrl-D ends them");
    }
    let source = Source::open(&args.file, &context.clock)?;
    let (name, written) = (source.name.clone(), source.written);
    let mut events = source.events(&config.spool)?;
    let expected = args.expect.as_deref().map(expect::read).transpose()?;
    let (mut out, mut made, mut odd) = (output::json(), Vec::new(), Vec::new());
    loop {
        let next = events.next();
        let Some(found) = next.map_err(|source| CliError::Input { name: name.clone(), source })? else {
            break;
        };
        let mapped = mapped(&config, found, &name, written);
        odd.extend(mapped.judgement.warning.map(|warning| (mapped.message_id.clone(), warning)));
        if expected.is_some() {
            made.push(serde_json::to_value(&mapped).map_err(std::io::Error::from)?);
            continue;
        }
        serde_json::to_writer(&mut out, &mapped).map_err(std::io::Error::from)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    drop(out);
    if let Some((id, warning)) = odd.first() {
        let events = output::count(odd.len() as u64, "event");
        output::hint(format_args!("{events}, first {}: {warning}", id.as_deref().unwrap_or_default()));
    }
    let Some(expected) = expected else { return Ok(ExitCode::Success) };
    let differences = expect::differences(&expected, &made);
    if differences.is_empty() {
        output::print(&format!("{} as expected\n", output::count(made.len() as u64, "event")))?;
        return Ok(ExitCode::Success);
    }
    output::print(&differences)?;
    Ok(ExitCode::No)
}

fn mapped(config: &Config, found: Found, name: &str, written: Timestamp) -> Mapped {
    let outcome = found.event.and_then(|text| {
        let event = Event::parse(&text)?;
        let derived = || MessageId::derived(name.as_bytes(), found.place, event.raw().as_bytes());
        let id = event.message_id()?.unwrap_or_else(derived);
        let judgement = prospect(&config.mappings, &event, &id, written);
        Ok(Mapped { message_id: Some(id.as_str().to_owned()), judgement })
    });
    outcome.unwrap_or_else(|flaw| Mapped {
        message_id: None,
        judgement: MappingTrace {
            prospect: Preview::Invalid(Reason::new(flaw.code, flaw.to_string())),
            mappings: Vec::new(),
            warning: None,
        },
    })
}
