//! `koala-agent check`: checks that everything is in place, as the user that the agent runs as.

mod machine;
mod receiver;
mod report;

pub use receiver::check_receiver;
pub use report::Report;

use super::context::agent_command;
use super::output::{self, counted};
use super::permission::{become_service, may_change, my_name};
use super::preview::BROWSER_INTEGRATION_WARNING;
use super::producer::{self, DropTrial};
use super::remedy::{
    Remedy, clock_remedy, damaged_outbox_remedy, full_outbox_remedy, remedy, spool_remedy, start_remedy,
};
use super::status::{existing_folder, running_agent};
use super::{CliError, CommandContext, ExitCode, unreadable};
use crate::clock::Timestamp;
use crate::config::{self, Bytes, Config, ConfigError, Scope};
use crate::disk;
use crate::event::Event;
use crate::mapping::turns_off_only_browser;
use crate::outbox::{EventFilter, OutboxError, Reader, State, check_writable};
use crate::reason::Code;
use crate::spool::REJECTED;
use clap::Args;
use nix::unistd::{AccessFlags, Uid, access};
use std::path::PathBuf;

/// A clock before this time is wrong, since this program is newer: it would make certificates seem invalid.
const EARLIEST_TIME: &str = "2024-01-01T00:00:00Z";
/// The most pending events that are searched for misleading integrations.
const MAX_SEARCHED_EVENTS: usize = 1_000;

/// Check that everything is in place, and say how to fix what is not
///
/// Prints a line for each subject, and checks permissions as the user that the service runs as. Ends with 1 if a check
/// fails.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Check the configuration only; needs no database, no network, and no special user
    #[arg(long)]
    config_only: bool,
    /// Do not ask the receiver whether it accepts the key
    #[arg(long)]
    offline: bool,
    /// Also try to drop a file as this user, and name what prevents it; for root
    #[arg(long, value_name = "USER", conflicts_with = "config_only")]
    producer: Option<String>,
    /// Become the user of --producer and try to drop a file into this folder: the half of --producer that is its user's
    #[arg(long, value_name = "DIR", hide = true, requires = "producer")]
    drop_into: Option<PathBuf>,
}

/// Prints the findings.
///
/// # Errors
/// This user may not check the agent, or may not read the configuration.
pub fn run(context: &CommandContext, args: &CheckArgs) -> Result<ExitCode, CliError> {
    if let (Some(user), Some(dir)) = (&args.producer, &args.drop_into) {
        return producer::drop_as(user, dir);
    }
    // The rights of root are given up before the checks.
    let is_run_by_root = Uid::effective().is_root();
    let mut report = Report::for_terminal();
    match config::load(&context.options, &context.environment) {
        Err(error @ ConfigError::Unreadable { .. }) => return Err(error.into()),
        Err(error) => error.to_string().lines().for_each(|problem| report.fail("configuration", problem)),
        Ok(config) => {
            let mut tried = None;
            if !args.config_only {
                may_change(context, &config, "check the agent")?;
                // Only root can become the producer, so this comes first.
                tried = args
                    .producer
                    .as_ref()
                    .map(|user| producer::try_drop(context, &config, user))
                    .transpose()?;
                become_service(&config)?;
            }
            check_config(&config, args.config_only, is_run_by_root, &mut report);
            if !args.config_only {
                check_machine(context, &config, args, &mut report);
            }
            if let (Some(user), Some(tried)) = (&args.producer, tried) {
                check_producer(&config, user, tried, &mut report);
            }
        }
    }
    output::print(&report.render())?;
    Ok(if report.has_failed() { ExitCode::No } else { ExitCode::Success })
}

fn check_config(config: &Config, is_config_only: bool, is_run_by_root: bool, report: &mut Report) {
    let path = config.path.display();
    match config.file_exists {
        true if access(&config.path, AccessFlags::R_OK).is_err() => report.fail_with(
            "configuration",
            format!("the agent's user, {}, cannot read {path}", my_name()),
            &Remedy::run("let it", format!("chmod a+r {path}")),
        ),
        true => report.ok("configuration", path),
        false => report.ok("configuration", format!("the defaults; there is no {path}")),
    }
    for warning in &config.warnings {
        // The loader also warns of an exposed key, in a sentence that names koala.public_key.
        match config.key_exposed && warning.contains("koala.public_key") {
            true => report.fail("configuration", warning),
            false => report.note("configuration", warning),
        }
    }
    check_mappings(config, is_run_by_root, report);
    check_key(config, is_config_only, is_run_by_root, report);
}

fn check_mappings(config: &Config, is_run_by_root: bool, report: &mut Report) {
    let mut is_ok = true;
    for mapping in config.mappings.iter() {
        for flaw in mapping.lint() {
            is_ok = false;
            report.fail("mappings", format!("{:?}: {flaw}", mapping.name()));
        }
    }
    if is_ok {
        let names: Vec<&str> = config.mappings.iter().map(|mapping| &**mapping.name()).collect();
        report.ok("mappings", names.join(", "));
    }
    match &config.mappings_lack {
        // systemd reads root's file for the service.
        Some(lack) if config.scope == Scope::System && !is_run_by_root => {
            report.note("mappings", format!("{lack}; run check as root to check it"));
        }
        Some(lack) => report.fail("mappings", lack),
        None => {}
    }
}

fn check_key(config: &Config, is_config_only: bool, is_run_by_root: bool, report: &mut Report) {
    let source = &config.koala.key_source;
    let warnings = &config.koala.key_warnings;
    if config.koala.public_key.is_some() {
        // systemd reads root's file for the service; an agent that is run by hand reads its own.
        let own_file = config.koala.key_file.as_ref().filter(|_| config.scope != Scope::System);
        match own_file.filter(|file| access(*file, AccessFlags::R_OK).is_err()) {
            Some(_) => report.fail(
                "key",
                format!(
                    "the agent's user, {}, cannot read {source}: let the agent run as the file's owner, or name another \
                     file with koala.public_key_file",
                    my_name()
                ),
            ),
            None => report.ok("key", format!("from {source}")),
        }
        warnings.iter().for_each(|warning| report.fail("key", warning));
    } else if is_config_only && warnings.is_empty() {
        report.note("key", format!("no key in {source}"));
    } else if is_config_only {
        report.note("key", warnings.join("; "));
    } else if warnings.is_empty() {
        report.fail("key", "no key yet: events are stored but not sent");
        if let Some(remedy) = remedy(Code::NoKey, config) {
            report.add_remedy("key", &remedy);
        }
    } else if config.scope == Scope::System && !is_run_by_root {
        report.note("key", format!("{source} belongs to root; run check as root to check it"));
    } else {
        warnings.iter().for_each(|warning| report.fail("key", warning));
    }
}

/// Notes pending events whose integrations turn off another destination than their author may think.
fn check_integrations(reader: &Reader, report: &mut Report) -> Result<(), OutboxError> {
    let bodies = reader.events().newest_pending(MAX_SEARCHED_EVENTS)?;
    let is_misleading = |body: &&String| Event::parse(body).is_ok_and(|event| turns_off_only_browser(&event));
    let misleading = bodies.iter().filter(is_misleading).count() as u64;
    if misleading > 0 {
        let events = counted(misleading, "event");
        let total = counted(bodies.len() as u64, "newest pending event");
        report.note("integrations", format!("{events} of the {total}: {BROWSER_INTEGRATION_WARNING}"));
    }
    Ok(())
}

fn check_machine(context: &CommandContext, config: &Config, args: &CheckArgs, report: &mut Report) {
    check_spool(config, report);
    machine::check_watching(config, report);
    check_files(config, report);
    let newest_event = check_outbox(config, report);
    machine::check_file_systems(config, report);
    check_disk(config, report);
    check_clock(context.clock.now(), newest_event, report);
    if args.offline {
        report.note("receiver", "not asked, because of --offline");
    } else {
        receiver::check_proxy(context, config, report);
        check_receiver(context, config, report);
    }
    match running_agent(config) {
        Some(pid) => report.ok("agent", format!("running, pid {pid}")),
        None => report.fail_with("agent", "not running", &start_remedy(config)),
    }
}

/// The rights that the agent needs in a folder.
fn all_rights() -> AccessFlags {
    AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK
}

fn check_spool(config: &Config, report: &mut Report) {
    let dir = &config.spool.dir;
    if !dir.is_dir() {
        let text = format!("there is no folder {}", dir.display());
        return report.fail_with("spool", text, &spool_remedy(config));
    }
    let folders = [dir.clone(), dir.join(REJECTED)];
    let mut is_ok = true;
    for path in folders.iter().filter(|path| path.exists() && access(*path, all_rights()).is_err()) {
        is_ok = false;
        let (folder, me) = (path.display(), my_name());
        let command = format!("chown {me} {folder} && chmod u+rwx {folder}");
        let text = format!("{me} cannot read and write {folder}");
        report.fail_with("spool", text, &Remedy::run("give it the folder", command));
    }
    if is_ok {
        report.ok("spool", dir.display());
    }
}

/// Names the first file in the spool that the agent does not take.
fn check_files(config: &Config, report: &mut Report) {
    if let Some((text, remedy)) = unreadable::first(config) {
        report.fail_with("files", text, &remedy);
        let all = Remedy::run("see all such files", agent_command(config, "list --unreadable"));
        report.add_remedy("files", &all);
    }
}

fn check_producer(config: &Config, user: &str, tried: DropTrial, report: &mut Report) {
    match tried.result(config, user) {
        Ok(()) => report.ok("producer", format!("{user} can drop files, and the agent can read them")),
        Err((text, remedy)) => report.fail_with("producer", text, &remedy),
    }
}

/// Returns the time at which the newest event was stored.
fn check_outbox(config: &Config, report: &mut Report) -> Option<Timestamp> {
    let path = &config.outbox.path;
    let database = path.display();
    let folder = existing_folder(path);
    let is_created = folder == path.parent().unwrap_or(folder);
    if !is_created && access(folder, all_rights()).is_err() {
        let (folder, me) = (folder.display(), my_name());
        let remedy = Remedy::run("give it the folder", format!("chown {me} {folder}"));
        report.fail_with("outbox", format!("{me} cannot write in {folder}"), &remedy);
        return None;
    }
    // As the agent's user, whom root has become.
    let is_writable = match check_writable(path) {
        Err(error) if is_created => {
            report.fail("outbox", error);
            false
        }
        _ => true,
    };
    let reader = match Reader::open(path) {
        Ok(reader) => reader,
        Err(OutboxError::Missing { .. }) => {
            report.ok("outbox", format!("{database} (created when the agent first starts)"));
            return None;
        }
        Err(_) if !is_writable => return None,
        Err(error) => {
            let remedy = error.is_damage().then(|| damaged_outbox_remedy(config));
            report.fail("outbox", error);
            remedy.iter().for_each(|remedy| report.add_remedy("outbox", remedy));
            return None;
        }
    };
    if let Err(error) = check_integrations(&reader, report) {
        report.fail("outbox", error);
    }
    let max_bytes = config.outbox.max_bytes;
    match reader.bytes().and_then(|bytes| Ok((bytes, reader.events().list(&EventFilter::default(), 1)?))) {
        Ok((bytes, listing)) => {
            let text = format!("{database}, {} of {} used", Bytes(bytes), Bytes(max_bytes));
            if bytes < max_bytes {
                if is_writable {
                    report.ok("outbox", text);
                }
                return listing.rows.first().and_then(|row| Timestamp::parse(&row.received_at));
            }
            let pending = reader.counts().map_or(0, |counts| counts.of(State::Pending));
            report.fail_with("outbox", text, &full_outbox_remedy(pending, config));
        }
        Err(error) => report.fail_with("outbox", error, &damaged_outbox_remedy(config)),
    }
    None
}

fn check_disk(config: &Config, report: &mut Report) {
    let path = &config.outbox.path;
    let Some(disk::DiskSpace { free, total }) = disk::space_of(path) else { return };
    let min_free = config.outbox.min_free;
    let needed = min_free.bytes(total);
    let text = format!("{} free, {} needed (outbox.min_free = {min_free})", Bytes(free), Bytes(needed));
    if free >= needed {
        return report.ok("disk", text);
    }
    let folder = existing_folder(path).display();
    let remedy = Remedy::text(format!("free space on the file system of {folder}, or lower outbox.min_free"));
    report.fail_with("disk", text, &remedy);
}

fn check_clock(now: Timestamp, newest_event: Option<Timestamp>, report: &mut Report) {
    let remedy = clock_remedy();
    if Timestamp::parse(EARLIEST_TIME).is_some_and(|earliest| now < earliest) {
        report.fail_with("clock", format!("wrong: {now}"), &remedy);
    } else if let Some(newest) = newest_event.filter(|newest| *newest > now) {
        let text = format!("wrong: {now}, but the newest event was stored at {newest}");
        report.fail_with("clock", text, &remedy);
    } else {
        report.ok("clock", now);
    }
}
