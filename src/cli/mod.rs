//! The command line: the only place that prints.
//!
//! Each command is a module with its arguments and a `run` function that answers. The other modules are shared by
//! the commands: errors and exit codes, output, permissions, events from any form of input.

mod ask;
mod check;
mod completions;
mod context;
mod demo;
mod discard;
mod erase;
mod error;
mod expect;
mod init;
mod input;
mod list;
mod man;
mod map;
mod mentions;
mod metrics;
mod output;
mod permission;
mod preview;
mod producer;
mod prompt;
mod receiver;
mod remedy;
mod replace_file;
mod retry;
mod run;
mod send;
mod show;
mod status;
mod status_check;
mod status_text;
mod time;
mod unreadable;
mod wait;

use context::CommandContext;
use error::{CliError, ExitCode};

use crate::config::{ConfigOptions, Instance};
use crate::limits;
use clap::{Parser, Subcommand};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

/// Collects customer events from files in a spool folder and delivers each of them once to Koala.
#[derive(Debug, Parser)]
#[command(name = "koala-agent", version, max_term_width = 100)]
#[command(
    after_help = "Run koala-agent COMMAND --help for the options and examples of a command. Exit codes follow sysexits.h."
)]
struct Cli {
    /// Read this configuration file [default: $KOALA_AGENT_CONFIG, else /etc/koala-agent/config.toml]
    #[arg(long, global = true, value_name = "FILE", display_order = 900)]
    config: Option<PathBuf>,
    /// Use your own agent: its configuration, spool and outbox are in your home folder
    #[arg(long, global = true, conflicts_with = "config", display_order = 901)]
    user: bool,
    /// Use this one of several agents of the system: /etc/koala-agent/NAME.toml, koala-agent@NAME.service
    #[arg(long, global = true, value_name = "NAME", conflicts_with_all = ["config", "user"], display_order = 902)]
    instance: Option<Instance>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::InitArgs),
    Run(run::RunArgs),
    Demo(demo::DemoArgs),
    Send(send::SendArgs),
    Status(status::StatusArgs),
    Metrics(metrics::MetricsArgs),
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

/// Runs the program with the arguments and the environment of the process.
pub fn main() -> std::process::ExitCode {
    limits::outlive_file_size_limit();
    std::panic::set_hook(Box::new(|panic| output::hint(bug_report(panic))));
    std::panic::catch_unwind(|| command_line(CommandContext::of_process())).unwrap_or(ExitCode::Bug).into()
}

fn bug_report(panic: &std::panic::PanicHookInfo<'_>) -> String {
    let message = panic.payload_as_str().unwrap_or("no message");
    let place = panic.location().map_or_else(String::new, |place| format!(" at {place}"));
    format!("this is a bug, please report it: {message}{place}. No stored event is lost by it")
}

fn command_line(mut context: CommandContext) -> ExitCode {
    let cli = match Cli::try_parse_from(&context.arguments) {
        Ok(cli) => cli,
        Err(error_or_help) => {
            // clap reports --help and --version as errors. A reader that closes the pipe has read enough of them.
            let _ = error_or_help.print();
            return match error_or_help.use_stderr() {
                true if status::is_check(&context.arguments) => status::wrong_usage(),
                true => ExitCode::Usage,
                false => ExitCode::Success,
            };
        }
    };
    context.options = ConfigOptions { config: cli.config, user: cli.user, instance: cli.instance };
    run_command(&context, cli.command).unwrap_or_else(|error| {
        print_error(&context, &error);
        error.exit_code()
    })
}

fn run_command(context: &CommandContext, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Init(args) => init::run(context, &args),
        Command::Run(args) => Ok(run::run(context, args)),
        Command::Demo(args) => demo::run(context, args),
        Command::Send(args) => send::run(context, &args),
        Command::Status(args) => status::run(context, &args),
        Command::Metrics(args) => metrics::run(context, &args),
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

/// Prints the error to stderr, and where permission is missing the command line that would work.
fn print_error(context: &CommandContext, error: &CliError) {
    if error.is_quiet() {
        return;
    }
    let mut text = String::new();
    for line in error.to_string().lines() {
        text += &format!("{}\n", output::escaped(line));
    }
    if error.exit_code() == ExitCode::NoPermission {
        let command = match error {
            CliError::Denied { command: Some(command), .. } => command.clone(),
            _ => context.sudo_line(),
        };
        text += &format!("\n  {command}\n");
    }
    output::hint(text.trim_end());
}

/// Tells a person at the terminal that the command waits for input.
fn prompt_for_events() {
    if io::stdin().is_terminal() && io::stderr().is_terminal() {
        output::hint("reading events from the terminal; press Ctrl-D to end the input");
    }
}

/// Writes generated text without any change.
fn write_raw(bytes: &[u8]) -> Result<ExitCode, CliError> {
    let mut out = output::raw_stdout();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(ExitCode::Success)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
