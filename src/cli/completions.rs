//! `koala-agent completions SHELL`: generated from the command line itself.

use super::{Cli, CliError, ExitCode, write_raw};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Print completions for a shell
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints the completions.
///
/// # Errors
/// Of stdout.
pub fn run(args: &CompletionsArgs) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "koala-agent", &mut script);
    write_raw(&script)
}
