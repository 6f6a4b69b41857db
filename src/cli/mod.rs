//! The command line: the only place that prints.
//!
//! Each command is a module with its arguments and a function that answers; what they share is beside them:
//! the error and exit codes at the edge, the output, who may do what, events from any form of input.

mod check;
mod completions;
mod context;
pub mod demo;
mod discard;
mod erase;
mod error;
pub mod exit;
mod expect;
mod input;
mod list;
mod man;
mod map;
mod output;
mod permission;
mod preview;
pub mod receiver;
mod remedy;
mod retry;
pub mod run;
mod send;
mod show;
mod status;
mod status_text;
mod wait;
mod when;

pub use context::Context;
pub use error::CliError;
pub use exit::ExitCode;

use crate::config::ConfigOptions;
use clap::{Parser, Subcommand};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

/// Takes customer events from files in a spool folder to Koala, once, whatever the network does meanwhile.
#[derive(Debug, Parser)]
#[command(name = "koala-agent", version, max_term_width = 100)]
#[command(after_help = "koala-agent COMMAND --help tells more. Exit codes follow sysexits.h.")]
struct Cli {
    /// The configuration [default: $KOALA_AGENT_CONFIG, else /etc/koala-agent/config.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// An agent of your own: configuration, spool and outbox in your home folder
    #[arg(long, global = true, conflicts_with = "config")]
    user: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Demo(demo::DemoArgs),
    Send(send::SendArgs),
    Status(status::StatusArgs),
    List(list::ListArgs),
    Show(show::ShowArgs),
    Retry(retry::RetryArgs),
    Discard(discard::DiscardArgs),
    Erase(erase::EraseArgs),
    Map(map::MapArgs),
    Check(check::CheckArgs),
    Receiver(receiver::ReceiverArgs),
    #[command(hide = true)]
    Completions(completions::CompletionsArgs),
    #[command(hide = true)]
    Man(man::ManArgs),
}

/// The program: arguments and environment of the process in, exit code out.
pub fn main() -> std::process::ExitCode {
    std::panic::set_hook(Box::new(|panic| output::hint(bug(panic))));
    std::panic::catch_unwind(|| command_line(Context::of_process())).unwrap_or(ExitCode::Bug).into()
}

fn bug(panic: &std::panic::PanicHookInfo<'_>) -> String {
    let what = panic.payload_as_str().unwrap_or("no message");
    let place = panic.location().map_or_else(String::new, |place| format!(" at {place}"));
    format!("this is a bug, please report it: {what}{place}. Nothing that was stored is lost by it")
}

fn command_line(mut context: Context) -> ExitCode {
    let cli = match Cli::try_parse_from(&context.arguments) {
        Ok(cli) => cli,
        Err(answer) => {
            // --help and --version are answers; a reader that has gone away has read enough of them.
            let _ = answer.print();
            return if answer.use_stderr() { ExitCode::Usage } else { ExitCode::Success };
        }
    };
    context.options = ConfigOptions { config: cli.config, user: cli.user };
    run(&context, cli.command).unwrap_or_else(|error| {
        tell(&context, &error);
        error.exit_code()
    })
}

fn run(context: &Context, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Run(args) => Ok(run::run(context, args)),
        Command::Demo(args) => demo::run(context, args),
        Command::Send(args) => send::run(context, &args),
        Command::Status(args) => status::run(context, &args),
        Command::List(args) => list::run(context, args),
        Command::Show(args) => show::run(context, &args),
        Command::Retry(args) => retry::run(context, args),
        Command::Discard(args) => discard::run(context, &args),
        Command::Erase(args) => erase::run(context, &args),
        Command::Map(args) => map::run(context, &args),
        Command::Check(args) => check::run(context, &args),
        Command::Receiver(args) => run_receiver(args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

fn run_receiver(args: receiver::ReceiverArgs) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(receiver::receiver(args, &mut io::stdout()))?;
    Ok(ExitCode::Success)
}

/// Says what went wrong, and where permission is missing the line that would work.
fn tell(context: &Context, error: &CliError) {
    if error.is_quiet() {
        return;
    }
    let mut text = String::new();
    for line in error.to_string().lines() {
        text += &format!("{}\n", output::plain(line));
    }
    if error.exit_code() == ExitCode::NoPermission {
        let line = match error {
            CliError::Denied { line: Some(line), .. } => line.clone(),
            _ => context.by_root(),
        };
        text += &format!("\n  {line}\n");
    }
    output::hint(text.trim_end());
}

/// Whether a person sits at stdin, who has to be told that input is waited for.
fn typed() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Writes a command's generated text as it is.
fn write_raw(bytes: &[u8]) -> Result<ExitCode, CliError> {
    let mut out = output::json();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(ExitCode::Success)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
