//! `koala-agent discard`: events given up on purpose.

use super::output::{self, plain};
use super::permission::may_change;
use super::{CliError, Context, ExitCode};
use crate::outbox::Admin;
use clap::Args;

/// Give events up: never sent, their bodies erased
///
/// There is no way back.
#[derive(Debug, Args)]
pub struct DiscardArgs {
    /// The events
    #[arg(value_name = "MESSAGE_ID", required = true)]
    message_ids: Vec<String>,
}

/// Discards the events; what is told as discarded is so on the disk.
///
/// # Errors
/// Not by this user; an id that no row carries, or a state that is final: the others are discarded.
pub fn run(context: &Context, args: &DiscardArgs) -> Result<ExitCode, CliError> {
    let config = context.config()?;
    may_change(context, &config, "discard events")?;
    let mut admin = Admin::open(&config.outbox)?;
    let mut end = ExitCode::Success;
    for id in &args.message_ids {
        let (outcome, code) = match admin.discard(id, context.clock.now())? {
            Some(true) => ("discarded", end),
            Some(false) if end == ExitCode::NotFound => ("is delivered or discarded already", end),
            Some(false) => ("is delivered or discarded already", ExitCode::BadData),
            None => ("no event has this messageId", ExitCode::NotFound),
        };
        end = code;
        output::print(&format!("{}  {outcome}\n", plain(id)))?;
    }
    Ok(end)
}
