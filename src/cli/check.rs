//! `koala-agent check`: whether everything is in place, seen as the service's user.

use super::context::service;
use super::output::{self, BAD, DIM, GOOD, paint, plain};
use super::permission::{become_service, may_change};
use super::preview::BROWSERS;
use super::remedy::{remedy, remedy_for_spool};
use super::status::folder_of;
use super::{CliError, Context, ExitCode};
use crate::clock::Timestamp;
use crate::config::{self, Bytes, Config, ConfigError, Scope};
use crate::disk;
use crate::event::Event;
use crate::koala::{Client, Verdict};
use crate::mapping::names_the_browsers;
use crate::outbox::{EventFilter, OutboxError, Reader, holder};
use crate::reason::Reason;
use crate::spool::REJECTED;
use clap::Args;
use nix::unistd::{AccessFlags, Uid, access};

/// A clock before this program was written is wrong; certificates would be refused, and times be nonsense.
const FIRST_SANE: &str = "2024-01-01T00:00:00Z";

/// Whether everything is in place, and the fix where it is not
///
/// One line each, seen as the user that the service runs as. Ends with 1 if one fails.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The configuration alone: needs no database, network or user
    #[arg(long)]
    config_only: bool,
    /// Do not ask the receiver about the key
    #[arg(long)]
    offline: bool,
}

/// Waiting events that are looked through for what their authors may have meant otherwise.
const LOOKED_THROUGH: usize = 1_000;

/// The lines so far.
#[derive(Default)]
struct Report {
    text: String,
    failed: bool,
    /// Root's rights are given up before the lines are made.
    by_root: bool,
}

impl Report {
    fn line(&mut self, mark: String, subject: &str, what: &str) {
        self.text += &format!("{mark}  {subject:<13}  {}\n", plain(what));
    }

    fn ok(&mut self, subject: &str, what: impl AsRef<str>) {
        self.line(paint(GOOD, "ok  "), subject, what.as_ref());
    }

    fn note(&mut self, subject: &str, what: impl AsRef<str>) {
        self.line(paint(DIM, "note"), subject, what.as_ref());
    }

    fn fail(&mut self, subject: &str, what: impl AsRef<str>, remedy: impl AsRef<str>) {
        self.failed = true;
        self.line(paint(BAD, "FAIL"), subject, what.as_ref());
        if !remedy.as_ref().is_empty() {
            self.line("    ".to_owned(), "", remedy.as_ref());
        }
    }
}

/// Prints a line for each thing that must be in place.
///
/// # Errors
/// Not by this user, or a configuration that this user may not read.
pub fn run(context: &Context, args: &CheckArgs) -> Result<ExitCode, CliError> {
    let mut report = Report { by_root: Uid::effective().is_root(), ..Report::default() };
    match config::load(&context.options, &context.environment) {
        Err(error @ ConfigError::Unreadable { .. }) => return Err(error.into()),
        Err(error) => error.to_string().lines().for_each(|problem| report.fail("configuration", problem, "")),
        Ok(config) => {
            if !args.config_only {
                may_change(context, &config, "check the agent")?;
                become_service(&config)?;
            }
            check_config(&config, args.config_only, &mut report);
            if !args.config_only {
                check_machine(context, &config, args, &mut report);
            }
        }
    }
    output::print(&report.text)?;
    Ok(if report.failed { ExitCode::No } else { ExitCode::Success })
}

fn check_config(config: &Config, alone: bool, report: &mut Report) {
    let path = config.path.display();
    match config.file_exists {
        true if access(&config.path, AccessFlags::R_OK).is_err() => report.fail(
            "configuration",
            format!("{path} cannot be read by the service's user"),
            format!("chmod a+r {path}"),
        ),
        true => report.ok("configuration", path.to_string()),
        false => report.ok("configuration", format!("the defaults: there is no {path}")),
    }
    for warning in &config.warnings {
        // The load warns of an exposed key in these words as well.
        match config.key_exposed && warning.contains("koala.public_key") {
            true => report.fail("configuration", warning, ""),
            false => report.note("configuration", warning),
        }
    }
    check_mappings(config, report);
    match &config.mappings_lack {
        // systemd hands root's file to the service.
        Some(lack) if config.scope == Scope::System && !report.by_root => {
            report.note("mappings", format!("{lack}; root can check it"));
        }
        Some(lack) => report.fail("mappings", lack, ""),
        None => {}
    }
    let source = &config.koala.key_source;
    let odd = &config.koala.key_warnings;
    if config.koala.public_key.is_some() {
        odd.iter().for_each(|warning| report.fail("key", warning, ""));
        // systemd hands root's file to the service; nobody does so for an agent that is run by hand.
        let own = config.koala.key_file.as_ref().filter(|_| config.scope != Scope::System);
        match own.filter(|file| access(*file, AccessFlags::R_OK).is_err()) {
            Some(_) => report.fail(
                "key",
                format!("{} cannot read {source}", me()),
                format!("chown {} {source}", me()),
            ),
            None => report.ok("key", format!("from {source}")),
        }
    } else if alone {
        report.note("key", format!("none from {source}"));
    } else if odd.is_empty() {
        let remedy = format!("put the public key of your Koala workspace into {source}");
        report.fail("key", "there is none yet: events are stored and not sent", remedy);
    } else if config.scope == Scope::System && !report.by_root {
        report.note("key", format!("{source} is root's, who hands it to the service; root can check it"));
    } else {
        odd.iter().for_each(|warning| report.fail("key", warning, ""));
    }
}

fn check_mappings(config: &Config, report: &mut Report) {
    let mut sound = true;
    for mapping in config.mappings.iter() {
        for why in mapping.lint() {
            sound = false;
            report.fail("mappings", format!("{:?}: {why}", mapping.name()), "");
        }
    }
    if sound {
        let names: Vec<&str> = config.mappings.iter().map(|mapping| &**mapping.name()).collect();
        report.ok("mappings", names.join(", "));
    }
}

/// Events whose integrations turn off another destination than their author may think.
fn check_integrations(reader: &Reader, report: &mut Report) -> Result<(), OutboxError> {
    let bodies = reader.events().newest_pending(LOOKED_THROUGH)?;
    let odd = |body: &&String| Event::parse(body).is_ok_and(|event| names_the_browsers(&event));
    let n = bodies.iter().filter(odd).count();
    if n > 0 {
        let events = output::count(n as u64, "waiting event");
        report.note("integrations", format!("{events} of the newest {}: {BROWSERS}", bodies.len()));
    }
    Ok(())
}

fn check_machine(context: &Context, config: &Config, args: &CheckArgs, report: &mut Report) {
    check_spool(config, report);
    let newest = check_outbox(config, report);
    check_room(config, report);
    check_clock(context.clock.now(), newest, report);
    if args.offline {
        report.note("receiver", "not asked: --offline");
    } else {
        check_receiver(context, config, report);
    }
    match holder(&config.outbox.path) {
        Some(pid) => report.note("agent", format!("runs, pid {pid}")),
        None => report.note("agent", format!("does not run; to start it: {}", service(config, "start"))),
    }
}

/// All that the service does in a folder.
fn all_rights() -> AccessFlags {
    AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK
}

fn me() -> String {
    super::permission::my_name()
}

fn check_spool(config: &Config, report: &mut Report) {
    let dir = &config.spool.dir;
    for path in [dir.clone(), dir.join(REJECTED)] {
        let shown = path.display();
        if path != *dir && !path.exists() {
            continue;
        }
        if !path.is_dir() {
            let remedy = format!("{}; or set spool.dir", remedy_for_spool(config));
            report.fail("spool", format!("there is no folder {shown}"), remedy);
        } else if access(&path, all_rights()).is_err() {
            let remedy = format!("chown {0} {shown} && chmod u+rwx {shown}", me());
            report.fail("spool", format!("{} cannot read and write {shown}", me()), remedy);
        } else {
            report.ok("spool", shown.to_string());
        }
    }
}

/// Returns when the newest event was stored.
fn check_outbox(config: &Config, report: &mut Report) -> Option<Timestamp> {
    let path = &config.outbox.path;
    let shown = path.display();
    let folder = folder_of(path);
    if access(folder, all_rights()).is_err() {
        let remedy = format!("chown {} {}", me(), folder.display());
        report.fail("outbox", format!("{} cannot write in {}", me(), folder.display()), remedy);
        return None;
    }
    let reader = match Reader::open(path) {
        Ok(reader) => reader,
        Err(OutboxError::Missing { .. }) => {
            report.ok("outbox", format!("{shown} will be made when the agent first runs"));
            return None;
        }
        Err(error) => {
            report.fail("outbox", error.to_string(), "");
            return None;
        }
    };
    if access(path, AccessFlags::W_OK).is_err() {
        report.fail("outbox", format!("{} cannot write {shown}", me()), format!("chown {} {shown}*", me()));
    }
    if let Err(error) = check_integrations(&reader, report) {
        report.fail("outbox", error.to_string(), "");
    }
    match reader.bytes().and_then(|bytes| Ok((bytes, reader.events().list(&EventFilter::default(), 1)?))) {
        Ok((bytes, _)) if bytes >= config.outbox.max_bytes => report.fail(
            "outbox",
            format!("{shown} has {} of {}", Bytes(bytes), Bytes(config.outbox.max_bytes)),
            "raise outbox.max_bytes, or let events be delivered",
        ),
        Ok((bytes, listing)) => {
            report.ok("outbox", format!("{shown}, {} of {}", Bytes(bytes), Bytes(config.outbox.max_bytes)));
            return listing.rows.first().and_then(|row| Timestamp::parse(&row.received_at));
        }
        Err(error) => {
            report.fail("outbox", error.to_string(), "stop the agent, and restore the file from a backup")
        }
    }
    None
}

fn check_room(config: &Config, report: &mut Report) {
    let path = &config.outbox.path;
    let folder = folder_of(path);
    let Some(disk::Disk { free, total }) = disk::of(path) else { return };
    let floor = config.outbox.min_free;
    let what = format!("{} free at {}, outbox.min_free is {floor}", Bytes(free), folder.display());
    match free < floor.bytes(total) {
        true => report.fail("disk", what, "free space there, or lower outbox.min_free"),
        false => report.ok("disk", what),
    }
}

fn check_clock(now: Timestamp, newest: Option<Timestamp>, report: &mut Report) {
    let remedy = "set it, or let it be set: timedatectl set-ntp true";
    if Timestamp::parse(FIRST_SANE).is_some_and(|first| now < first) {
        report.fail("clock", format!("it says {now}"), remedy);
    } else if let Some(newest) = newest.filter(|newest| *newest > now) {
        report.fail("clock", format!("it says {now}, and the newest event was stored at {newest}"), remedy);
    } else {
        report.ok("clock", now.to_string());
    }
}

fn check_receiver(context: &Context, config: &Config, report: &mut Report) {
    let endpoint = &config.koala.endpoint;
    let client = match Client::new(&config.koala, context.clock.clone()) {
        Ok(Some(client)) => client,
        Ok(None) => return report.note("receiver", format!("{endpoint} not asked: there is no key")),
        Err(error) => return report.fail("receiver", error.to_string(), ""),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let verdict = match runtime {
        Ok(runtime) => runtime.block_on(client.auth()),
        Err(error) => return report.fail("receiver", format!("cannot ask: {error}"), ""),
    };
    let refused = |reason: Reason| {
        let operation =
            remedy(reason.code, config).unwrap_or_else(|| "nothing: it passes by itself".to_owned());
        (reason.to_string(), operation)
    };
    let (what, operation) = match verdict {
        Verdict::Accepted => return report.ok("receiver", format!("{endpoint} takes the key")),
        Verdict::Trouble { reason, .. }
        | Verdict::Closed(reason)
        | Verdict::Doubtful(reason)
        | Verdict::TooLarge(reason) => refused(reason),
    };
    report.fail("receiver", what, operation);
}
