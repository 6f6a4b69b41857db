//! `koala-agent discard`: drops events for good.

use super::ask::{asker, carry_out, wrong_report};
use super::output::{self, escaped};
use super::permission::{become_service, may_change};
use super::{CliError, CommandContext, ExitCode};
use crate::outbox::{Command, EventOutcome, Report};
use clap::Args;
use std::collections::HashSet;

/// Drop events for good
///
/// The events are never sent, and their bodies are erased. This cannot be undone. Where a request with an event is in flight,
/// its answer is awaited, and an event that was accepted is told as delivered.
#[derive(Debug, Args)]
pub struct DiscardArgs {
    /// Events to drop
    #[arg(value_name = "MESSAGE_ID", required = true)]
    message_ids: Vec<String>,
}

/// Discards the events. When it prints that an event is discarded, the change is on the disk.
///
/// # Errors
/// This user may not change the outbox. An unknown id, or an event in a final state, does not stop the others.
pub fn run(context: &CommandContext, args: &DiscardArgs) -> Result<ExitCode, CliError> {
    let config = context.config()?;
    may_change(context, &config, "discard events")?;
    let asker = asker(context);
    become_service(&config)?;
    let mut ids = args.message_ids.clone();
    let mut known = HashSet::new();
    ids.retain(|id| known.insert(id.clone()));
    let Report::Events(events) = carry_out(context, &config, &asker, &Command::Discard(ids))? else {
        return Err(wrong_report());
    };
    let mut exit_code = ExitCode::Success;
    for event in events {
        let (outcome, code) = match event.outcome {
            EventOutcome::Discarded { is_unanswered: false } => ("discarded", ExitCode::Success),
            EventOutcome::Discarded { is_unanswered: true } => {
                ("discarded; a request with it got no answer, so Koala may have it", ExitCode::Success)
            }
            EventOutcome::Delivered { is_meanwhile: false } => ("is delivered already", ExitCode::BadData),
            EventOutcome::Delivered { is_meanwhile: true } => {
                ("not discarded: it was delivered by the request that was in flight", ExitCode::BadData)
            }
            EventOutcome::InFlight => (
                "not discarded: it is being sent, and the answer is not recorded yet; try again",
                ExitCode::TryAgain,
            ),
            EventOutcome::Unknown => ("no event has this messageId", ExitCode::NotFound),
            _ => ("is discarded already", ExitCode::BadData),
        };
        exit_code = worse(exit_code, code);
        output::print(&format!("{}  {outcome}\n", escaped(&event.message_id)))?;
    }
    Ok(exit_code)
}

/// The exit code of both: an unknown id outweighs an event that cannot be changed, and that one that is to be tried again.
fn worse(one: ExitCode, other: ExitCode) -> ExitCode {
    let weight = |code| match code {
        ExitCode::Success => 0,
        ExitCode::TryAgain => 1,
        ExitCode::BadData => 2,
        _ => 3,
    };
    if weight(other) > weight(one) { other } else { one }
}
