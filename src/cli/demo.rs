//! `koala-agent demo`.

use super::{CliError, Context, ExitCode};
use clap::Args;

/// See the whole thing work in a temporary folder, without an account
#[derive(Debug, Args)]
pub struct DemoArgs {}

/// Runs the demonstration.
///
/// # Errors
/// See [`CliError`].
pub fn run(_context: &Context, _args: DemoArgs) -> Result<ExitCode, CliError> {
    Ok(ExitCode::Unavailable)
}
