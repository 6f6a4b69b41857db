//! `koala-agent send`: events checked, then put into the spool the right way, all or nothing.

use super::context::service;
use super::input::{Found, Source, fits};
use super::output::{self, count, hint, plain};
use super::remedy::remedy_for_spool;
use super::wait::Waiter;
use super::{CliError, Context, ExitCode, permission, typed};
use crate::agent::disposition;
use crate::clock::Timestamp;
use crate::config::{Config, Scope};
use crate::event::{Digest, Event, Flaw, MessageId};
use crate::item::Disposition;
use crate::outbox::holder;
use crate::reason::{Code, Reason};
use crate::spool::drop_file;
use crate::status::{IntakeState, Status};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, Gid, Group, access};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

/// Bad events that are told one by one; whoever fixes these will run the command again.
const MAX_TOLD: usize = 10;
/// Input that takes longer than a moment to check is worth a bar.
const LONG_INPUT: u64 = 4 << 20;

/// Check events and put them into the spool
///
/// All of them, or none if one is bad. Prints their messageIds; an event that lacks one is given one.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  echo '{\"type\":\"track\",\"event\":\"Signed Up\",\"properties\":{\"email\":\"ana@acme.dev\"}}' \\\n    | koala-agent send --wait"
)]
pub struct SendArgs {
    /// Events in any form: .json, .jsonl, .ndjson, each also .gz; - or none: standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Wait until each event is settled: 0 delivered or skipped, 65 refused, 75 not yet [default: 30s]
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "30s",
          value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
}

/// Puts the events into the spool; when their ids are printed, they are on the disk.
///
/// # Errors
/// No spool, no permission, a bad event, no room: then nothing is stored.
pub fn run(context: &Context, args: &SendArgs) -> Result<ExitCode, CliError> {
    let config = context.config()?;
    may_drop(&config)?;
    let parcel = read_all(context, args, &config)?;
    parcel.warn();
    let waiter = args.wait.map(|limit| Waiter::new(&config, limit));
    let name = file_name(context);
    drop_file(&config.spool.dir, &name, parcel.content.as_bytes())?;
    output::print(&parcel.ids.iter().map(|id| format!("{}\n", plain(id))).collect::<String>())?;
    hint(format_args!(
        "{} in the spool {} (configuration {})",
        count(parcel.ids.len() as u64, "event"),
        config.spool.dir.display(),
        config.path.display()
    ));
    match waiter {
        Some(waiter) => waiter.wait(context, &config, &name, &parcel.ids),
        None => {
            tell_of_block(&config);
            Ok(ExitCode::Success)
        }
    }
}

/// What goes into the spool as one file.
#[derive(Default)]
struct Parcel {
    content: String,
    ids: Vec<String>,
    seen: HashMap<MessageId, Digest>,
    /// What will not be sent, by verb and reason, with where the first stands.
    unsent: BTreeMap<(&'static str, Code, String), (u64, String)>,
}

fn read_all(context: &Context, args: &SendArgs, config: &Config) -> Result<Parcel, CliError> {
    let mut parcel = Parcel::default();
    let (mut bad, mut told) = (0, String::new());
    let stdin = [PathBuf::from("-")];
    let files = if args.files.is_empty() { &stdin } else { args.files.as_slice() };
    if files.iter().any(|file| file.as_os_str() == "-") && typed() {
        hint("reading events from the terminal; Ctrl-D ends them");
    }
    for file in files {
        let source = Source::open(file, &context.clock)?;
        let (name, written) = (source.name.clone(), source.written);
        let bar = bar(source.size);
        let seen_by = bar.clone();
        let mut events = source.through(|content| Watched { content, bar: seen_by }).events(&config.spool)?;
        let broken = |source| CliError::Input { name: name.clone(), source };
        while let Some(found) = events.next().map_err(broken)? {
            let line = found.line;
            let Err(flaw) = parcel.add(found, &name, written, config) else { continue };
            bad += 1;
            if bad <= MAX_TOLD {
                let line = line.max(flaw.line);
                told += &format!("{name}:{line}:{}: {} ({})\n", flaw.column, flaw.text, flaw.code);
            }
        }
        bar.finish_and_clear();
    }
    if bad > 0 {
        if bad > MAX_TOLD {
            told += &format!("… and {} more\n", bad - MAX_TOLD);
        }
        return Err(CliError::new(
            ExitCode::BadData,
            told + "nothing is stored: remedy the input and send it again",
        ));
    }
    if parcel.ids.is_empty() {
        return Err(CliError::new(ExitCode::BadData, "nothing is stored: there is no event in the input"));
    }
    Ok(parcel)
}

impl Parcel {
    /// Adds an event as one line, under an id.
    fn add(&mut self, found: Found, name: &str, written: Timestamp, config: &Config) -> Result<(), Flaw> {
        let (place, line) = (found.place, found.line);
        let at_line = |flaw: Flaw| Flaw { line, ..flaw };
        let mut text = found.event?;
        let event = Event::parse(&text)?;
        let id = match event.message_id().map_err(at_line)? {
            Some(id) => id,
            None => {
                let id = uuid::Uuid::new_v4().to_string();
                let comma = if event.members().next().is_some() { "," } else { "" };
                let raw = event.raw();
                // At the end: of two members of one name the last counts, and a null may stand there.
                text = format!("{}{comma}\"messageId\":\"{id}\"}}", &raw[..raw.len() - 1]);
                fits(&text, &config.spool).map_err(at_line)?;
                MessageId::from_stored(id)
            }
        };
        let event = Event::parse(&text)?;
        let digest = event.digest();
        if self.seen.insert(id.clone(), digest).is_some_and(|earlier| earlier != digest) {
            let text = "an earlier event of the input has the same messageId and other content".to_owned();
            return Err(Flaw { code: Code::MessageIdReused, text, line, column: 1, incomplete: false });
        }
        match disposition(&config.mappings, &event, &id, written) {
            Disposition::Send { .. } => {}
            Disposition::Skip(reason) => self.note("be skipped", reason, name, line, place),
            Disposition::Fail(reason) => self.note("fail", reason, name, line, place),
        }
        // White space outside strings: inside one, JSON does not allow these two.
        self.content.extend(event.raw().chars().map(|c| if matches!(c, '\n' | '\r') { ' ' } else { c }));
        self.content.push('\n');
        self.ids.push(id.as_str().to_owned());
        Ok(())
    }

    fn note(&mut self, verb: &'static str, reason: Reason, name: &str, line: usize, place: u64) {
        let first = || (0, if place == 0 { name.to_owned() } else { format!("{name}:{line}") });
        self.unsent.entry((verb, reason.code, reason.text)).or_insert_with(first).0 += 1;
    }

    fn warn(&self) {
        for ((verb, code, text), (events, first)) in &self.unsent {
            let first = plain(first);
            let first = if *events > 1 { format!("the first is {first}") } else { first.into_owned() };
            hint(format_args!(
                "warning: {} will {verb} ({first}): {code}: {}",
                count(*events, "event"),
                plain(text)
            ));
        }
    }
}

/// Says beforehand whether the spool would take a file, so that nobody types events for nothing.
fn may_drop(config: &Config) -> Result<(), CliError> {
    let dir = &config.spool.dir;
    let shown = dir.display();
    match access(dir, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => Ok(()),
        Err(Errno::ENOENT) => {
            let remedy = match config.scope {
                // An agent of one's own makes it when it starts.
                Scope::User | Scope::Named if holder(&config.outbox.path).is_none() => {
                    format!("start the agent ({})", service(config, "start"))
                }
                _ => remedy_for_spool(config),
            };
            let file = config.path.display();
            let text = format!("there is no spool folder {shown}: {remedy}; or set spool.dir in {file}");
            Err(CliError::new(ExitCode::CannotCreate, text))
        }
        Err(Errno::EACCES) => {
            let text = format!("cannot put files into the spool {shown}: permission denied");
            let gid =
                fs::metadata(dir).ok().filter(|meta| meta.mode() & 0o030 == 0o030).map(|meta| meta.gid());
            let group = gid.and_then(|gid| Group::from_gid(Gid::from_raw(gid)).ok().flatten());
            Err(match group {
                Some(group) => CliError::Denied {
                    text: format!("{text}; it is open to the group {}: join it and log in again", group.name),
                    line: Some(format!("sudo usermod -aG {} {}", group.name, permission::my_name())),
                },
                None => CliError::Denied { text, line: None },
            })
        }
        Err(e) => Err(CliError::new(
            ExitCode::CannotCreate,
            format!("cannot put files into the spool {shown}: {e}"),
        )),
    }
}

/// Unique on this machine, as a process sends one file; the time tells an administrator when.
fn file_name(context: &Context) -> OsString {
    format!("send-{}-{}.jsonl", context.clock.now().0, std::process::id()).into()
}

fn tell_of_block(config: &Config) {
    let Some(status) = Status::read(&config.status_file) else { return };
    if let (IntakeState::Blocked, Some(reason)) = (status.intake.state, status.intake.reason) {
        hint(format_args!(
            "the agent takes no files now ({}); they wait in the spool",
            plain(&reason.to_string())
        ));
    }
}

/// A reader whose progress is shown once it has turned out to be long.
struct Watched {
    content: Box<dyn Read>,
    bar: ProgressBar,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.content.read(buffer)?;
        let before = self.bar.position();
        self.bar.inc(n as u64);
        if before <= LONG_INPUT && before + n as u64 > LONG_INPUT {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        Ok(n)
    }
}

fn bar(size: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::hidden());
    let template =
        if size.is_some() { "checking {wide_bar} {bytes} of {total_bytes}" } else { "checking {bytes}" };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
