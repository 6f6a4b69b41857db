//! The files that stay in the spool because the agent cannot read them or leaves them alone: `list --unreadable`, and the
//! first of them in `status` and `check`.

use super::output::{self, escaped, grouped};
use super::permission::{become_service, may_change};
use super::remedy::Remedy;
use super::{CliError, CommandContext, ExitCode};
use crate::config::Config;
use crate::spool::{LeftFile, WhyLeft, left_files, user_name};
use serde::Serialize;
use std::io::ErrorKind;

/// The most names of the folder that are looked at for the first file: some milliseconds.
const MAX_LOOKED_AT: usize = 10_000;

/// A file as `list --unreadable --json` prints it.
#[derive(Serialize)]
struct UnreadableRow {
    name: String,
    owner: u32,
    owner_name: String,
    text: String,
    fix: String,
    command: Option<String>,
}

/// Prints the files, and the number of those that are left out.
///
/// # Errors
/// This user may not look into the spool.
pub fn list(
    context: &CommandContext,
    config: &Config,
    json: bool,
    limit: usize,
) -> Result<ExitCode, CliError> {
    may_change(context, config, "see which files the agent cannot read")?;
    become_service(config)?;
    let mut rows = Vec::new();
    let mut more = 0;
    for file in all(config)? {
        if rows.len() < limit {
            rows.push(row(file));
        } else {
            more += 1;
        }
    }
    if json {
        output::print_json(&rows, more)?;
        return Ok(ExitCode::Success);
    }
    let width = output::terminal_width();
    let mut text = String::new();
    for UnreadableRow { name, owner_name, text: why, fix, command, .. } in &rows {
        let path = config.spool.dir.join(name);
        text += &format!("{}, a file of {}\n", escaped(&path.display().to_string()), escaped(owner_name));
        text += &format!(
            "  {}\n  {}\n",
            escaped(why),
            for_owner(owner_name, fix, command.as_ref()).render(2, width)
        );
    }
    if rows.is_empty() && more == 0 {
        text += "every file in the spool can be read\n";
    }
    if more > 0 {
        text += &format!("… and {} more\n", grouped(more));
    }
    output::print(&text)?;
    Ok(ExitCode::Success)
}

fn all(config: &Config) -> Result<Vec<LeftFile>, CliError> {
    match left_files(&config.spool.dir, usize::MAX) {
        Ok(files) => Ok(files.collect()),
        // Before its first start, a user's own agent has no spool yet.
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => {
            Err(CliError::Input { name: format!("the spool {}", config.spool.dir.display()), source })
        }
    }
}

fn row(file: LeftFile) -> UnreadableRow {
    UnreadableRow {
        name: file.name.to_string_lossy().into_owned(),
        owner: file.owner,
        owner_name: user_name(file.owner),
        text: file.why.text(),
        fix: file.fix,
        command: file.command,
    }
}

/// The first file that is left, and what its owner runs; one that cannot be read before others. This process must be the
/// agent's user.
pub fn first(config: &Config) -> Option<(String, Remedy)> {
    let left: Vec<LeftFile> = left_files(&config.spool.dir, MAX_LOOKED_AT).ok()?.collect();
    let unreadable = left.iter().find(|file| matches!(file.why, WhyLeft::Unreadable(_)));
    let file = unreadable.or(left.first())?;
    let (path, owner) = (config.spool.dir.join(&file.name), user_name(file.owner));
    let text = format!("{}, a file of {owner}: {}", path.display(), file.why.text());
    Some((text, for_owner(&owner, &file.fix, file.command.as_ref())))
}

/// What the owner of a file can do. It is not for root, for whom the owner may have put a link in the file's place.
fn for_owner(owner: &str, fix: &str, command: Option<&String>) -> Remedy {
    match command {
        Some(command) => Remedy::run(format!("{owner} can {fix}, as {owner}"), command),
        None => Remedy::text(format!("{owner} can {fix}")),
    }
}
