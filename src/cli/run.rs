//! `koala-agent run`.

use super::{CliError, Context, ExitCode};
use clap::Args;

/// Run the agent in the foreground, as systemd does
#[derive(Debug, Args)]
pub struct RunArgs {}

/// Runs the agent.
///
/// # Errors
/// See [`CliError`].
pub fn run(_context: &Context, _args: RunArgs) -> Result<ExitCode, CliError> {
    Ok(ExitCode::Unavailable)
}
