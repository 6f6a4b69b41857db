//! `koala-agent discard`: drops events for good.

use super::output::{self, escaped};
use super::permission::may_change;
use super::{CliError, CommandContext, ExitCode};
use crate::outbox::Admin;
use clap::Args;

/// Drop events for good
///
/// The events are never sent, and their bodies are erased. This cannot be undone.
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
    let mut admin = Admin::open(&config.outbox)?;
    let mut exit_code = ExitCode::Success;
    for id in &args.message_ids {
        let (outcome, code) = match admin.discard(id, context.clock.now())? {
            Some(true) => ("discarded", exit_code),
            Some(false) => {
                let is_delivered =
                    admin.reader().events().show(id)?.is_some_and(|event| event.row.state == "delivered");
                let outcome = if is_delivered { "is delivered already" } else { "is discarded already" };
                (outcome, if exit_code == ExitCode::NotFound { exit_code } else { ExitCode::BadData })
            }
            None => ("no event has this messageId", ExitCode::NotFound),
        };
        exit_code = code;
        output::print(&format!("{}  {outcome}\n", escaped(id)))?;
    }
    Ok(exit_code)
}
