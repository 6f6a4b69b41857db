//! `koala-agent completions SHELL`: prints completions, generated from the command line that clap knows.

use super::{Cli, CliError, ExitCode, write_raw};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Print the completions for a shell
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell that reads them
    shell: Shell,
}

/// Prints the completions.
///
/// # Errors
/// Stdout cannot be written.
pub fn run(args: &CompletionsArgs) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "koala-agent", &mut script);
    write_raw(&script)
}
