//! `koala-agent retry`: makes settled events pending again, and puts rejected files back into the spool.

use super::context::agent_command;
use super::list::{parse_reason_code, parse_state};
use super::output::{self, counted, escaped};
use super::permission::may_change;
use super::time::TimeArgument;
use super::{CliError, CommandContext, ExitCode};
use crate::agent::disposition;
use crate::clock::Timestamp;
use crate::config::Config;
use crate::event::Event;
use crate::item::Disposition;
use crate::outbox::{Admin, EventFilter, NewItem, Retained, State};
use crate::reason::{Code, Reason};
use crate::spool::{RejectedFolder, SpoolError};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgGroup, Args};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;

/// The most events that one transaction changes, so that the commits of a running agent do not wait longer for it than
/// for its own.
const MAX_PER_TRANSACTION: usize = 1_000;

/// Make failed or skipped events pending again, or put rejected files back into the spool
///
/// Delivered events become pending too, if their bodies were kept. The events are sent under the mappings in force, in
/// their old order. An agent that waits for the receiver tries it again at once.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true)))]
#[command(
    after_help = "Examples:\n  koala-agent retry --state failed --reason invalid_field\n  koala-agent retry --rejected broken.json"
)]
pub struct RetryArgs {
    /// Events to make pending
    #[arg(value_name = "MESSAGE_ID", group = "which")]
    message_ids: Vec<String>,
    /// Make all events in these states pending: failed, skipped, delivered
    #[arg(long, value_name = "STATE,…", value_delimiter = ',', value_parser = settled_state, group = "which")]
    state: Vec<State>,
    /// With --state: only events with this reason code
    #[arg(long, value_name = "CODE", value_parser = parse_reason_code, conflicts_with_all = ["message_ids", "rejected"])]
    reason: Option<Code>,
    /// With --state: only events stored at or after this time: 2026-01-02T03:04:05Z, 2026-01-02, or an age such as 2h
    #[arg(long, value_name = "TIME", conflicts_with_all = ["message_ids", "rejected"])]
    since: Option<TimeArgument>,
    /// Rejected files to put back into the spool
    #[arg(long, value_name = "NAME", num_args = 1.., value_parser = OsStringValueParser::new().try_map(file_name), group = "which")]
    rejected: Vec<OsString>,
}

fn file_name(name: OsString) -> Result<OsString, &'static str> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err("the name of a file is wanted"),
        bytes if bytes.contains(&b'/') => Err("a name is wanted, not a path"),
        _ => Ok(name),
    }
}

fn settled_state(name: &str) -> Result<State, String> {
    match parse_state(name)? {
        State::Pending => Err("pending events will be sent anyway".to_owned()),
        State::Discarded => Err("the bodies of discarded events have been erased".to_owned()),
        settled => Ok(settled),
    }
}

/// Makes the events pending. When it prints the result, the change is on the disk.
///
/// # Errors
/// This user may not change the outbox. An unknown id, or an event without a body, does not stop the others.
pub fn run(context: &CommandContext, args: RetryArgs) -> Result<ExitCode, CliError> {
    let config = context.config()?;
    may_change(context, &config, "retry events")?;
    if !args.rejected.is_empty() {
        return put_files_back(&config, &args.rejected);
    }
    let mut admin = Admin::open(&config.outbox)?;
    if !args.message_ids.is_empty() {
        return retry_ids(&mut admin, &config, &args.message_ids, context.clock.now());
    }
    let filter = EventFilter {
        states: args.state,
        reason: args.reason.map(|code| code.as_str().to_owned()),
        since: args.since.map(|time| time.resolve(context.clock.now())),
        ..EventFilter::default()
    };
    retry_matching(&mut admin, &config, &filter, context.clock.now())
}

/// The row to requeue, and its items under the mappings in force; or why it still cannot be sent.
fn remapped(config: &Config, event: &Retained) -> Result<(i64, Vec<NewItem>), Reason> {
    let parsed = Event::parse(&event.body).map_err(|flaw| Reason::new(flaw.code, flaw.to_string()))?;
    match disposition(&config.mappings, &parsed, &event.message_id, event.spooled_at) {
        Disposition::Send(items) => Ok((event.seq, items)),
        Disposition::Skip(reason) | Disposition::Fail(reason) => Err(reason),
    }
}

fn retry_matching(
    admin: &mut Admin,
    config: &Config,
    filter: &EventFilter,
    now: Timestamp,
) -> Result<ExitCode, CliError> {
    let total = admin.reader().events().list(filter, 0)?.total;
    let (mut after, mut examined, mut requeued) = (0, 0, 0);
    let mut unsendable: BTreeMap<(Code, String), u64> = BTreeMap::new();
    loop {
        let page = admin.reader().events().all_retained(filter, after, MAX_PER_TRANSACTION)?;
        let Some(last) = page.last() else { break };
        (after, examined) = (last.seq, examined + page.len() as u64);
        let mut rows = Vec::with_capacity(page.len());
        for event in &page {
            match remapped(config, event) {
                Ok(row) => rows.push(row),
                Err(reason) => *unsendable.entry((reason.code, reason.text)).or_default() += 1,
            }
        }
        requeued += admin.requeue(&rows, now)?;
    }
    if examined == 0 {
        // An agent that waits for the receiver is to try it now, even if no event has changed.
        admin.requeue(&[], now)?;
    }
    let mut text = format!("{} pending again\n", counted(requeued, "event"));
    for ((code, reason), events) in unsendable {
        text += &format!("{} still cannot be sent: {code}: {}\n", counted(events, "event"), escaped(&reason));
    }
    if total > examined {
        text += &format!("{} unchanged: the body is not kept any more\n", counted(total - examined, "event"));
    }
    if total == 0 {
        text += &format!("no event matches; see {}\n", agent_command(config, "status"));
    }
    output::print(&text)?;
    Ok(ExitCode::Success)
}

fn retry_ids(
    admin: &mut Admin,
    config: &Config,
    ids: &[String],
    now: Timestamp,
) -> Result<ExitCode, CliError> {
    let (mut text, mut rows, mut exit_code) = (String::new(), Vec::new(), ExitCode::Success);
    for id in ids {
        let printed_id = escaped(id);
        match admin.reader().events().retained(id)? {
            Some(Ok(event)) => match remapped(config, &event) {
                Ok(row) => {
                    rows.push(row);
                    text += &format!("{printed_id}  pending again\n");
                }
                Err(reason) => {
                    exit_code = first_failure(exit_code, ExitCode::BadData);
                    let state = event.state.as_str();
                    text += &format!("{printed_id}  still {state}: {}\n", escaped(&reason.to_string()));
                }
            },
            Some(Err(State::Pending)) => text += &format!("{printed_id}  is pending already\n"),
            Some(Err(state)) => {
                exit_code = first_failure(exit_code, ExitCode::BadData);
                text += &format!("{printed_id}  still {}: its body is not kept any more\n", state.as_str());
            }
            None => {
                exit_code = ExitCode::NotFound;
                text += &format!("{printed_id}  no event has this messageId\n");
            }
        }
    }
    // An agent that waits for the receiver is to try it now, even if no event has changed.
    admin.requeue(&rows, now)?;
    output::print(&text)?;
    Ok(exit_code)
}

fn first_failure(exit_code: ExitCode, other: ExitCode) -> ExitCode {
    if exit_code == ExitCode::Success { other } else { exit_code }
}

fn put_files_back(config: &Config, names: &[OsString]) -> Result<ExitCode, CliError> {
    let rejected_folder = RejectedFolder::of_spool(&config.spool.dir);
    for name in names {
        let printed_name = name.to_string_lossy();
        let new_name = rejected_folder.put_back(name).map_err(|error| match error {
            SpoolError::Io { source, .. } if source.kind() == ErrorKind::NotFound => CliError::new(
                ExitCode::NotFound,
                format!(
                    "there is no rejected file {printed_name}; see {}",
                    agent_command(config, "list --rejected")
                ),
            ),
            other => other.into(),
        })?;
        let path = config.spool.dir.join(new_name);
        output::print(&format!(
            "{}  back in the spool as {}\n",
            escaped(&printed_name),
            escaped(&path.display().to_string())
        ))?;
    }
    Ok(ExitCode::Success)
}
