//! `koala-agent map`: a dry run.

use super::input::{Found, Source};
use super::prospect::{Prospect, prospect};
use super::{CliError, Context, ExitCode, output, typed};
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
/// One JSON line for each event, in the order of the input: its requests, or why there are none. Nothing is
/// stored or sent, and no key is needed: <public_key> stands in its place.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  koala-agent map events.jsonl | jq -c '.requests[]?.body'")]
pub struct MapArgs {
    /// Events in any form: .json, .jsonl, .ndjson, each also .gz; - or none: standard input
    #[arg(default_value = "-", hide_default_value = true)]
    file: PathBuf,
}

#[derive(Serialize)]
struct Mapped {
    message_id: Option<String>,
    #[serde(flatten)]
    prospect: Prospect,
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
    let mut out = output::json();
    loop {
        let next = events.next();
        let Some(found) = next.map_err(|source| CliError::Input { name: name.clone(), source })? else {
            break;
        };
        serde_json::to_writer(&mut out, &mapped(&config, found, &name, written))
            .map_err(std::io::Error::from)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(ExitCode::Success)
}

fn mapped(config: &Config, found: Found, name: &str, written: Timestamp) -> Mapped {
    let outcome = found.event.and_then(|text| {
        let event = Event::parse(&text)?;
        let derived = || MessageId::derived(name.as_bytes(), found.place, event.raw().as_bytes());
        let id = event.message_id()?.unwrap_or_else(derived);
        let prospect = prospect(&config.mappings, &event, &id, written);
        Ok(Mapped { message_id: Some(id.as_str().to_owned()), prospect })
    });
    outcome.unwrap_or_else(|flaw| Mapped {
        message_id: None,
        prospect: Prospect::Invalid(Reason::new(flaw.code, flaw.to_string())),
    })
}
