//! `koala-agent send`: checks events, then puts them into the spool as one file, all or none.

use super::input::{EventInput, InputEvent, recheck};
use super::output::{self, counted, escaped, grouped, hint};
use super::remedy::{spool_remedy, start_remedy};
use super::wait::Waiter;
use super::{CliError, CommandContext, ExitCode, permission, prompt_for_events};
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
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The most invalid events that are listed one by one; a user who fixes these runs the command again.
const MAX_LISTED_FLAWS: usize = 10;
/// The input in bytes from which a progress bar is shown: less is checked in a moment.
const MIN_BYTES_FOR_BAR: u64 = 4 << 20;

/// Check events, and put them into the spool
///
/// Stores nothing if an input is not valid JSON or not an event. Events that will be skipped or fail are stored, with a
/// warning. Gives each event without a messageId a new one, and prints the
/// messageIds.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  koala-agent send events.jsonl\n  echo '{\"type\":\"identify\",\"traits\":{\"email\":\"ana@acme.dev\"}}' \\\n    | koala-agent send --wait"
)]
pub struct SendArgs {
    /// Files with events: .json, .jsonl, .ndjson, or one of them with .gz [default: -, standard input]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Wait at most this long until the events are settled; end with 0 if all were delivered or skipped, 65 if one
    /// failed, 75 if some are still pending [without a value: 30s]
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "30s",
          value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
}

/// Puts the events into the spool. When it prints their ids, they are on the disk.
///
/// # Errors
/// There is no spool, no permission or no room, or an event is invalid. Then nothing is stored.
pub fn run(context: &CommandContext, args: &SendArgs) -> Result<ExitCode, CliError> {
    let config = context.config_beside_agent()?;
    check_spool_access(&config)?;
    let file = read_all(context, args, &config)?;
    file.print_warnings();
    let waiter = args.wait.map(|limit| Waiter::new(&config, limit));
    let name = file_name(context);
    drop_file(&config.spool.dir, &name, file.content.as_bytes())?;
    output::print(&file.ids.iter().map(|id| format!("{}\n", escaped(id))).collect::<String>())?;
    hint(format_args!(
        "{} stored in the spool {} (configuration {})",
        counted(file.ids.len() as u64, "event"),
        config.spool.dir.display(),
        config.path.display()
    ));
    match waiter {
        Some(waiter) => waiter.wait(context, &config, &name, &file.ids),
        None => {
            warn_if_blocked(&config);
            Ok(ExitCode::Success)
        }
    }
}

/// The file that goes into the spool.
#[derive(Default)]
struct NewSpoolFile {
    content: String,
    ids: Vec<String>,
    digests: HashMap<MessageId, Digest>,
    /// The events that will not be delivered, by verb and reason.
    undeliverable: HashMap<(&'static str, Code, String), Undeliverable>,
}

/// Events of the input that will not be delivered for one reason.
struct Undeliverable {
    events: u64,
    /// The place of the first in the input.
    first: String,
    /// The number of events before the first.
    before: usize,
}

fn read_all(context: &CommandContext, args: &SendArgs, config: &Config) -> Result<NewSpoolFile, CliError> {
    let mut new_file = NewSpoolFile::default();
    let (mut flaws, mut flaw_list) = (0, String::new());
    let stdin = [PathBuf::from("-")];
    let files = if args.files.is_empty() { &stdin } else { args.files.as_slice() };
    if files.iter().any(|file| file.as_os_str() == "-") {
        prompt_for_events();
    }
    for file in files {
        let input =
            EventInput::open(file, &context.clock).map_err(|error| with_wait_hint(error, args, file))?;
        let (name, written) = (input.name.clone(), input.written);
        let bar = progress_bar(input.size);
        let reader_bar = bar.clone();
        let input = input.map_content(|content| ProgressReader { content, bar: reader_bar });
        let mut events = input.events(&config.spool)?;
        let unreadable = |source| CliError::Input { name: name.clone(), source };
        while let Some(event) = events.next().map_err(unreadable)? {
            let line = event.line;
            let Err(flaw) = new_file.add(event, &name, written, config) else { continue };
            flaws += 1;
            if flaws <= MAX_LISTED_FLAWS {
                let line = line.max(flaw.line);
                flaw_list += &format!("{name}:{line}:{}: {} ({})\n", flaw.column, flaw.text, flaw.code);
            }
        }
        bar.finish_and_clear();
    }
    if flaws > 0 {
        if flaws > MAX_LISTED_FLAWS {
            flaw_list += &format!("… and {} more\n", grouped((flaws - MAX_LISTED_FLAWS) as u64));
        }
        let text = flaw_list + "nothing is stored: fix the input, and send it again";
        return Err(CliError::new(ExitCode::BadData, text));
    }
    if new_file.ids.is_empty() {
        return Err(CliError::new(ExitCode::BadData, "nothing is stored: there is no event in the input"));
    }
    Ok(new_file)
}

/// The error, which explains how `--wait` takes its duration where that was taken for a file.
fn with_wait_hint(error: CliError, args: &SendArgs, file: &Path) -> CliError {
    let text = file.to_string_lossy();
    if args.wait.is_none() || file.exists() || humantime::parse_duration(&text).is_err() {
        return error;
    }
    CliError::new(error.exit_code(), format!("{error}; to wait for {text}, write --wait={text}"))
}

impl NewSpoolFile {
    /// Adds an event as one line, with a new messageId if it has none.
    fn add(
        &mut self,
        input_event: InputEvent,
        name: &str,
        written: Timestamp,
        config: &Config,
    ) -> Result<(), Flaw> {
        let (place, line) = (input_event.place, input_event.line);
        let at_line = |flaw: Flaw| Flaw { line, ..flaw };
        let mut text = input_event.event?;
        let event = Event::parse(&text)?;
        let id = match event.message_id().map_err(at_line)? {
            Some(id) => id,
            None => {
                let id = uuid::Uuid::new_v4().to_string();
                let comma = if event.members().next().is_some() { "," } else { "" };
                let raw = event.raw();
                // The id goes to the end: of two members of one name the last one counts, and the first may be null.
                text = format!("{}{comma}\"messageId\":\"{id}\"}}", &raw[..raw.len() - 1]);
                recheck(&text, &config.spool).map_err(at_line)?;
                MessageId::from_stored(id)
            }
        };
        let event = Event::parse(&text)?;
        let (compact, digest) = event.compact();
        if self.digests.insert(id.clone(), digest).is_some_and(|earlier| earlier != digest) {
            let text = "an earlier event of the input has the same messageId and other content".to_owned();
            return Err(Flaw { code: Code::MessageIdReused, text, line, column: 1, incomplete: false });
        }
        match disposition(&config.mappings, &event, &id, written) {
            Disposition::Send { .. } => {}
            Disposition::Skip(reason) => self.add_undeliverable("be skipped", reason, name, line, place),
            Disposition::Fail(reason) => self.add_undeliverable("fail", reason, name, line, place),
        }
        self.content += &compact;
        self.content.push('\n');
        self.ids.push(id.as_str().to_owned());
        Ok(())
    }

    fn add_undeliverable(&mut self, verb: &'static str, reason: Reason, name: &str, line: usize, place: u64) {
        let before = self.ids.len();
        let first = || if place == 0 { name.to_owned() } else { format!("{name}:{line}") };
        let none = || Undeliverable { events: 0, first: first(), before };
        self.undeliverable.entry((verb, reason.code, reason.text)).or_insert_with(none).events += 1;
    }

    fn print_warnings(&self) {
        let mut undeliverable: Vec<_> = self.undeliverable.iter().collect();
        undeliverable.sort_by_key(|(_, events)| events.before);
        for ((verb, code, text), Undeliverable { events, first, .. }) in undeliverable {
            let first = escaped(first);
            let first = if *events > 1 { format!("the first is {first}") } else { first.into_owned() };
            hint(format_args!(
                "warning: {} will {verb} ({first}): {code}: {}",
                counted(*events, "event"),
                escaped(text)
            ));
        }
    }
}

/// Checks that this user may create files in the spool, before any event is read.
fn check_spool_access(config: &Config) -> Result<(), CliError> {
    let dir = &config.spool.dir;
    let spool = dir.display();
    match access(dir, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => Ok(()),
        Err(Errno::ENOENT) => {
            let remedy = match config.scope {
                // A user's own agent creates the spool when it starts.
                Scope::User | Scope::Named if holder(&config.outbox.path).is_none() => start_remedy(config),
                _ => spool_remedy(config),
            };
            let file = config.path.display();
            let text = format!("there is no spool folder {spool}; set spool.dir in {file}, or {remedy}");
            Err(CliError::new(ExitCode::CannotCreate, text))
        }
        Err(Errno::EACCES) => {
            let text = format!("cannot put files into the spool {spool}: permission denied");
            let gid =
                fs::metadata(dir).ok().filter(|meta| meta.mode() & 0o030 == 0o030).map(|meta| meta.gid());
            let group = gid.and_then(|gid| Group::from_gid(Gid::from_raw(gid)).ok().flatten());
            Err(match group {
                Some(group) => CliError::Denied {
                    text: format!("{text}; the group {} may: join it, and log in again", group.name),
                    command: Some(format!("sudo usermod -aG {} {}", group.name, permission::my_name())),
                },
                None => CliError::Denied { text, command: None },
            })
        }
        Err(e) => Err(CliError::new(
            ExitCode::CannotCreate,
            format!("cannot put files into the spool {spool}: {e}"),
        )),
    }
}

/// A name that is unique on this machine, since a process sends one file only. It contains the time for administrators.
fn file_name(context: &CommandContext) -> OsString {
    format!("send-{}-{}.jsonl", context.clock.now().0, std::process::id()).into()
}

fn warn_if_blocked(config: &Config) {
    let Some(status) = Status::read(&config.status_file) else { return };
    if let (IntakeState::Blocked, Some(reason)) = (status.intake.state, status.intake.reason) {
        hint(format_args!(
            "the agent accepts no files now ({}); they wait in the spool",
            escaped(&reason.to_string())
        ));
    }
}

/// A reader that shows a progress bar once the input has turned out to be long.
struct ProgressReader {
    content: Box<dyn Read + Send>,
    bar: ProgressBar,
}

impl Read for ProgressReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.content.read(buffer)?;
        let before = self.bar.position();
        self.bar.inc(n as u64);
        if before <= MIN_BYTES_FOR_BAR && before + n as u64 > MIN_BYTES_FOR_BAR {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        Ok(n)
    }
}

fn progress_bar(size: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::hidden());
    let template =
        if size.is_some() { "checking {wide_bar} {bytes} of {total_bytes}" } else { "checking {bytes}" };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
