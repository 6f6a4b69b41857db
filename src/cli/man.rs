//! `koala-agent man [PAGE]`: the manual pages, whose sources are part of the program.
//!
//! The pages are written by hand: a page that is generated from the command line says no more than `--help`. Tests
//! compare koala-agent(1) with the commands, options, exit codes and reasons of the program.

use super::{CliError, ExitCode, write_raw};
use clap::{Args, ValueEnum};

/// Print the source of a manual page: koala-agent man spool | man -l -
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The page
    #[arg(value_enum, default_value_t)]
    page: Page,
}

/// A manual page, named by the end of its name.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Page {
    /// koala-agent(1): the commands
    #[default]
    #[value(alias = "koala-agent")]
    Agent,
    /// koala-agent.toml(5): the configuration
    #[value(alias = "koala-agent.toml")]
    Toml,
    /// koala-agent-spool(7): how programs hand events in
    #[value(alias = "koala-agent-spool")]
    Spool,
    /// koala-agent-guarantees(7): what is promised, and under which conditions
    #[value(alias = "koala-agent-guarantees")]
    Guarantees,
    /// koala-agent-mappings(7): which events are sent, and as what
    #[value(alias = "koala-agent-mappings")]
    Mappings,
    /// koala-agent-operations(7): upgrade, backup, restore, removal, change of the key, sizing
    #[value(alias = "koala-agent-operations")]
    Operations,
    /// koala-agent-log(7): lines of the log to search for and to alert on
    #[value(alias = "koala-agent-log")]
    Log,
    /// koala-agent-containers(7): in a container
    #[value(alias = "koala-agent-containers")]
    Containers,
    /// koala-agent-monitoring(7): Nagios, Icinga, Prometheus, Grafana
    #[value(alias = "koala-agent-monitoring")]
    Monitoring,
}

impl Page {
    fn source(self) -> &'static str {
        match self {
            Page::Agent => include_str!("../../packaging/man/koala-agent.1"),
            Page::Toml => include_str!("../../packaging/man/koala-agent.toml.5"),
            Page::Spool => include_str!("../../packaging/man/koala-agent-spool.7"),
            Page::Guarantees => include_str!("../../packaging/man/koala-agent-guarantees.7"),
            Page::Mappings => include_str!("../../packaging/man/koala-agent-mappings.7"),
            Page::Operations => include_str!("../../packaging/man/koala-agent-operations.7"),
            Page::Log => include_str!("../../packaging/man/koala-agent-log.7"),
            Page::Containers => include_str!("../../packaging/man/koala-agent-containers.7"),
            Page::Monitoring => include_str!("../../packaging/man/koala-agent-monitoring.7"),
        }
    }
}

/// Prints the source of a page in mdoc(7), as man(1) reads it.
///
/// # Errors
/// The output cannot be written.
pub fn run(args: &ManArgs) -> Result<ExitCode, CliError> {
    write_raw(args.page.source().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use crate::reason::Code;
    use clap::{Arg, Command, CommandFactory};
    use std::collections::{BTreeMap, BTreeSet};

    /// Returns the lines of a section of koala-agent(1).
    fn section(title: &str) -> impl Iterator<Item = &'static str> {
        let heading = format!(".Sh {title}");
        let mut lines = Page::Agent.source().lines().skip_while(move |line| *line != heading);
        assert!(lines.next().is_some(), "there is no section {title}");
        lines.take_while(|line| !line.starts_with(".Sh "))
    }

    /// Returns the subject of a line that begins a list item, such as `Fl -state Ar STATE,...`.
    fn item(line: &str) -> Option<&str> {
        line.strip_prefix(".It ")
    }

    /// Long options, each with the name of its value if it takes one.
    type Options = BTreeMap<String, Option<String>>;

    /// Returns the long option that a list item documents, if it documents one.
    fn documented(item: &str) -> Option<(String, Option<String>)> {
        let words: Vec<&str> = item.split_whitespace().collect();
        let long = words.windows(2).find(|pair| pair[0] == "Fl" && pair[1].starts_with('-'))?;
        let value = words.windows(2).find(|pair| pair[0] == "Ar").map(|pair| pair[1].replace(",...", ",…"));
        Some((long[1][1..].to_owned(), value))
    }

    fn offered<'a>(arguments: impl Iterator<Item = &'a Arg>) -> Options {
        let value = |arg: &Arg| {
            let takes = arg.get_action().takes_values();
            takes
                .then(|| arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string))
                .flatten()
        };
        arguments.filter_map(|arg| Some((arg.get_long()?.to_owned(), value(arg)))).collect()
    }

    fn is_own(arg: &&Arg) -> bool {
        // A hidden option is one that the program passes to itself.
        !arg.is_global_set() && !arg.is_hide_set() && arg.get_id() != "help"
    }

    fn program() -> Command {
        let mut program = Cli::command();
        program.build();
        program
    }

    #[test]
    fn the_page_has_every_command_with_its_options_and_no_other() {
        let mut documented_commands: BTreeMap<&str, Options> = BTreeMap::new();
        let mut command = "";
        for line in section("COMMANDS") {
            if let Some(heading) = line.strip_prefix(".Ss ") {
                command = heading.split_whitespace().next().unwrap();
                documented_commands.insert(command, Options::new());
            } else if let Some((option, value)) = item(line).and_then(documented) {
                documented_commands.get_mut(command).unwrap().insert(option, value);
            }
        }
        let program = program();
        let commands = program.get_subcommands().filter(|command| command.get_name() != "help");
        let offered: BTreeMap<&str, Options> =
            commands.map(|c| (c.get_name(), offered(c.get_arguments().filter(is_own)))).collect();
        assert_eq!(documented_commands, offered);
    }

    #[test]
    fn the_page_has_every_option_for_all_commands() {
        let documented: Options = section("DESCRIPTION").filter_map(item).filter_map(documented).collect();
        let program = program();
        assert_eq!(documented, offered(program.get_arguments()));
    }

    #[test]
    fn the_page_has_every_exit_code_and_every_reason() {
        let codes: Vec<String> = section("EXIT STATUS").filter_map(item).map(str::to_owned).collect();
        assert_eq!(codes, ExitCode::ALL.map(|code| (code as u8).to_string()));

        let reasons: BTreeSet<&str> =
            section("REASONS").filter_map(item).filter_map(|item| item.strip_prefix("Ic ")).collect();
        assert_eq!(reasons, Code::ALL.iter().map(|code| code.as_str()).collect());
    }
}
