//! `koala-agent man`: the manual page, generated from the command line and from the exit codes.

use super::{Cli, CliError, ExitCode, write_raw};
use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::io;

const FILES: [(&str, &str); 7] = [
    ("/etc/koala-agent/config.toml", "the configuration; every key stands in it with its default"),
    ("/etc/koala-agent/public-key", "the public key of the Koala workspace"),
    ("/etc/koala-agent/hash-key", "the key of @hash in mappings; as secret"),
    ("/var/spool/koala-agent", "the spool: programs drop event files here, under a finished name"),
    ("/var/spool/koala-agent/rejected", "files that could not be taken, each beside its reason"),
    ("/var/lib/koala-agent/outbox.db", "the outbox, an SQLite database"),
    ("/run/koala-agent/status.json", "what the agent tells everybody about itself"),
];

/// The guarantee holds where these do; and what happens where one does not.
const CONDITIONS: [(&str, &str); 4] = [
    (
        "the storage honours fsync",
        "else a power cut may lose the last commits; files that it brings back get the ids they had",
    ),
    (
        "a producer's messageIds are unique",
        "else the same content is dropped as a duplicate, and other content is set aside",
    ),
    (
        "the receiver remembers ids for longer than the longest wait",
        "else what was accepted without an answer counts twice there",
    ),
    (
        "the outbox is not put back from an older copy",
        "else what was delivered since is sent again, and what was taken since is lost",
    ),
];

const GUARANTEE: &str = "An event of a finished spool file is, at every moment and after every crash, in the spool, in \
     the outbox, in rejected/ beside its reason, or at the receiver; and the receiver sees it under one id. What was in \
     flight at a crash is sent again under that id. The conditions:";

const ENVIRONMENT: [(&str, &str); 4] = [
    ("KOALA_AGENT_CONFIG", "the configuration, where --config names none"),
    ("KOALA_AGENT_SPOOL__DIR and so on", "any key: KOALA_AGENT_, its path in capitals, __ between levels"),
    ("HTTPS_PROXY, NO_PROXY", "the proxy, where koala.proxy names none; never for loopback"),
    ("NO_COLOR", "no colours"),
];

/// Prints the manual page in roff.
///
/// # Errors
/// Of stdout.
pub fn run() -> Result<ExitCode, CliError> {
    write_raw(&page()?)
}

fn page() -> io::Result<Vec<u8>> {
    let man = Man::new(Cli::command());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    commands(&mut page)?;
    let codes: Vec<_> = ExitCode::ALL.iter().map(|(code, text)| ((*code as u8).to_string(), *text)).collect();
    let mut roff = Roff::default();
    roff.control("SH", ["GUARANTEE"]);
    roff.text([roman(GUARANTEE)]);
    roff.to_writer(&mut page)?;
    entries(&mut page, CONDITIONS)?;
    section(&mut page, "EXIT STATUS", codes.iter().map(|(code, text)| (code.as_str(), *text)))?;
    section(&mut page, "FILES", FILES)?;
    section(&mut page, "ENVIRONMENT", ENVIRONMENT)?;
    Ok(page)
}

/// Every command with its arguments, where clap's own list has the names alone.
fn commands(page: &mut Vec<u8>) -> io::Result<()> {
    let mut roff = Roff::default();
    roff.control("SH", ["COMMANDS"]);
    let mut cli = Cli::command();
    cli.build();
    for command in cli.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        roff.control("SS", [command.get_name()]);
        roff.text([roman(command.get_about().map(ToString::to_string).unwrap_or_default())]);
        for argument in command.get_arguments().filter(|a| !a.is_hide_set() && !a.is_global_set()) {
            if matches!(argument.get_id().as_str(), "help" | "version") {
                continue;
            }
            roff.control("TP", []);
            roff.text([bold(argument.to_string())]);
            roff.text([roman(argument.get_help().map(ToString::to_string).unwrap_or_default())]);
        }
    }
    roff.to_writer(page)
}

fn section<'a>(
    page: &mut Vec<u8>,
    title: &str,
    entries: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> io::Result<()> {
    let mut roff = Roff::default();
    roff.control("SH", [title]);
    roff.to_writer(page)?;
    self::entries(page, entries)
}

fn entries<'a>(page: &mut Vec<u8>, entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> io::Result<()> {
    let mut roff = Roff::default();
    for (name, text) in entries {
        roff.control("TP", []);
        roff.text([bold(name)]);
        roff.text([roman(text)]);
    }
    roff.to_writer(page)
}
