//! `koala-agent map`: prints the requests that events would make.

use super::input::{EventInput, InputEvent};
use super::preview::EventPreview;
use super::{CliError, CommandContext, ExitCode, expect, output, prompt_for_events};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::event::{Event, Flaw, MessageId};
use crate::reason::Reason;
use clap::Args;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

/// Dry run: print the requests that events would make
///
/// Prints one JSON line for each event, in the order of the input: its requests or why there are none, and whether each
/// mapping matches. Nothing is stored or sent. No key is needed: <public_key> stands in its place.
///
/// With --expect, compares the lines with those of a file, prints the differences, and ends with 1 if there are any. A
/// team can keep such a file with its configuration. Members that a line or a request in the file does not have are
/// not compared. An event without a timestamp gets the modification time of its file.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  koala-agent map events.jsonl | jq -c '.requests[]?.body'\n  koala-agent map events.jsonl > expected.jsonl\n  koala-agent map events.jsonl --expect expected.jsonl"
)]
pub struct MapArgs {
    /// A file with events: .json, .jsonl, .ndjson, or one of them with .gz [default: -, standard input]
    #[arg(default_value = "-", hide_default_value = true)]
    file: PathBuf,
    /// Compare with the lines of this file, as map prints them
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
}

#[derive(Serialize)]
struct MapLine {
    message_id: Option<String>,
    #[serde(flatten)]
    preview: EventPreview,
}

/// Prints a line for each event.
///
/// # Errors
/// The input cannot be read. An invalid event is no error.
pub fn run(context: &CommandContext, args: &MapArgs) -> Result<ExitCode, CliError> {
    let config = context.config()?;
    if args.file.as_os_str() == "-" {
        prompt_for_events();
    }
    let source = EventInput::open(&args.file, &context.clock)?;
    let (name, written) = (source.name.clone(), source.written);
    let mut events = source.events(&config.spool)?;
    let expected = args.expect.as_deref().map(expect::read).transpose()?;
    let (mut out, mut actual, mut warnings) = (output::raw_stdout(), Vec::new(), Vec::new());
    loop {
        let next = events.next();
        let Some(event) = next.map_err(|source| CliError::Input { name: name.clone(), source })? else {
            break;
        };
        let line = map_line(&config, event, &name, written);
        warnings.extend(line.preview.warning.map(|warning| (line.message_id.clone(), warning)));
        if expected.is_some() {
            actual.push(serde_json::to_value(&line).map_err(std::io::Error::from)?);
            continue;
        }
        serde_json::to_writer(&mut out, &line).map_err(std::io::Error::from)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    drop(out);
    if let Some((id, warning)) = warnings.first() {
        let events = output::counted(warnings.len() as u64, "event");
        let id = output::escaped(id.as_deref().unwrap_or_default());
        output::hint(format_args!("warning: {events}, first {id}: {warning}"));
    }
    let Some(expected) = expected else { return Ok(ExitCode::Success) };
    let differences = expect::differences(&expected, &actual);
    if differences.is_empty() {
        output::print(&format!("{} as expected\n", output::counted(actual.len() as u64, "event")))?;
        return Ok(ExitCode::Success);
    }
    output::print(&differences)?;
    Ok(ExitCode::No)
}

fn map_line(config: &Config, event: InputEvent, name: &str, written: Timestamp) -> MapLine {
    let line = event.event.and_then(|text| {
        let parsed = Event::parse(&text)?;
        let derived = || MessageId::derived(name.as_bytes(), event.place, parsed.raw().as_bytes());
        let id = parsed.message_id()?.unwrap_or_else(derived);
        let preview = EventPreview::of(&config.mappings, &parsed, &id, written);
        Ok(MapLine { message_id: Some(id.as_str().to_owned()), preview })
    });
    line.unwrap_or_else(|flaw: Flaw| MapLine {
        message_id: None,
        preview: EventPreview::invalid(Reason::new(flaw.code, flaw.to_string())),
    })
}
