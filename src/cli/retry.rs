//! `koala-agent retry`: makes settled events pending again, and puts rejected files back into the spool.

use super::ask::{asker, carry_out, wrong_report};
use super::context::agent_command;
use super::list::{parse_reason_code, parse_state};
use super::output::{self, counted, escaped};
use super::permission::{become_service, may_change};
use super::time::TimeArgument;
use super::{CliError, CommandContext, ExitCode};
use crate::config::Config;
use crate::outbox::{Command, EventFilter, EventOutcome, EventReport, Report, Retried, State};
use crate::reason::{Code, Reason};
use crate::spool::{RejectedFolder, SpoolError};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgGroup, Args};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;

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
    let asker = asker(context);
    become_service(&config)?;
    let command = match args.message_ids.is_empty() {
        false => Command::Retry(args.message_ids),
        true => Command::RetryAll(EventFilter {
            states: args.state,
            reason: args.reason.map(|code| code.as_str().to_owned()),
            since: args.since.map(|time| time.resolve(context.clock.now())),
            ..EventFilter::default()
        }),
    };
    match carry_out(context, &config, &asker, &command)? {
        Report::Events(events) => print_events(&events),
        Report::Retried(retried) => print_retried(&config, &retried),
        _ => Err(wrong_report()),
    }
}

fn print_retried(config: &Config, retried: &Retried) -> Result<ExitCode, CliError> {
    let mut text = format!("{} pending again\n", counted(retried.requeued, "event"));
    for (reason, events) in &retried.unsendable {
        text += &format!("{} still cannot be sent: {}\n", counted(*events, "event"), escaped(reason));
    }
    if retried.total > retried.examined {
        let gone = counted(retried.total - retried.examined, "event");
        text += &format!("{gone} unchanged: the body is not kept any more\n");
    }
    if retried.total == 0 {
        text += &format!("no event matches; see {}\n", agent_command(config, "status"));
    }
    output::print(&text)?;
    Ok(ExitCode::Success)
}

fn print_events(events: &[EventReport]) -> Result<ExitCode, CliError> {
    let (mut text, mut exit_code) = (String::new(), ExitCode::Success);
    for event in events {
        let outcome = match &event.outcome {
            EventOutcome::Unknown => {
                exit_code = ExitCode::NotFound;
                "no event has this messageId".to_owned()
            }
            EventOutcome::Unsendable(state, code, text) => {
                exit_code = first_failure(exit_code, ExitCode::BadData);
                let reason = Reason::new(*code, text.clone()).to_string();
                format!("still {}: {}", state.as_str(), escaped(&reason))
            }
            EventOutcome::BodyGone(state) => {
                exit_code = first_failure(exit_code, ExitCode::BadData);
                format!("still {}: its body is not kept any more", state.as_str())
            }
            EventOutcome::Pending => "is pending already".to_owned(),
            _ => "pending again".to_owned(),
        };
        text += &format!("{}  {outcome}\n", escaped(&event.message_id));
    }
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
