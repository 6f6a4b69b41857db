//! `koala-agent erase`: erases a person's events from this machine, and prints a receipt.

use super::ask::{asker, carry_out, wrong_report};
use super::context::agent_command;
use super::mentions::count_mentions;
use super::output::{self, BOLD, LabelledLines, counted, escaped, grouped, indented, styled, terminal_width};
use super::permission::{become_service, may_change};
use super::{CliError, CommandContext, ExitCode};
use crate::agent::Agent;
use crate::clock::Timestamp;
use crate::config::Config;
use crate::outbox::{
    Asker, Command, Erased, Erasure, EventReference, Reader, Report, State, SuppressedPerson, finished_files,
    holder,
};
use crate::spool::{QUIET_BEFORE_UNLINK, REMOVING, RejectedFolder, SpoolError, shell_quoted};
use crate::subject::Subject;
use clap::{ArgGroup, Args};
use serde::Serialize;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest wait for the person's files to leave the spool. The agent reads a file within seconds, unless it is blocked
/// or the file is incomplete.
const TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Events that are erased by one command.
const MAX_ERASED: usize = 10_000;
/// Searches while events are put back all the time.
const MAX_SEARCHES: usize = 10;

/// Erase a person's events from the spool, the outbox, its history and rejected/
///
/// Overwrites the data, and prints a receipt: what was erased, and which events Koala has accepted and when. Ask Koala to
/// erase those. Later events of the person are skipped with the reason code erased, and their bodies are not kept.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("person").required(true).multiple(true)))]
#[command(
    after_help = "Examples:\n  koala-agent erase --email ana@acme.dev --dry-run\n  koala-agent erase --email ana@acme.dev --json > receipt.json\n  koala-agent erase --list"
)]
pub struct EraseArgs {
    /// Erase every event that contains this address
    #[arg(long, value_name = "EMAIL", value_parser = parse_email, group = "person", conflicts_with_all = ["user_id", "profile_id"])]
    email: Option<String>,
    /// Erase every event with this userId or previousId whose body is still kept; --email and --profile-id find more
    #[arg(long, value_name = "ID", value_parser = parse_id, group = "person", conflicts_with = "profile_id")]
    user_id: Option<String>,
    /// Erase every event of this profile_id
    #[arg(long, value_name = "ID", value_parser = parse_id, group = "person")]
    profile_id: Option<String>,
    /// Accept later events of the person again; without this they are skipped
    #[arg(long, conflicts_with_all = ["dry_run", "list"])]
    may_return: bool,
    /// Print what would be erased, and change nothing
    #[arg(long, conflicts_with = "list")]
    dry_run: bool,
    /// List since when persons are kept out, by the keyed hash that is kept of each; with a person: whether that one is
    #[arg(long, group = "person")]
    list: bool,
    /// Print the receipt as JSON
    #[arg(long)]
    json: bool,
}

fn parse_email(text: &str) -> Result<String, String> {
    let text = text.trim();
    match text.rsplit_once('@') {
        Some((name, domain))
            if !name.is_empty() && !domain.is_empty() && !text.contains(char::is_whitespace) =>
        {
            Ok(text.to_owned())
        }
        _ => Err("an email address is a name, an @ and a domain".to_owned()),
    }
}

fn parse_id(text: &str) -> Result<String, String> {
    match text {
        "" => Err("an id cannot be empty".to_owned()),
        text => Ok(text.to_owned()),
    }
}

impl EraseArgs {
    /// The command line that accepts later events of the person again.
    fn may_return_command(&self, config: &Config) -> String {
        let (option, value) = match (&self.email, &self.user_id, &self.profile_id) {
            (Some(email), _, _) => ("--email", email.as_str()),
            (None, Some(id), _) => ("--user-id", id.as_str()),
            (None, None, id) => ("--profile-id", id.as_deref().unwrap_or_default()),
        };
        let value = shell_quoted(OsStr::new(value));
        agent_command(config, &format!("erase {option} {value} --may-return"))
    }

    /// The person; `None` with `--list` alone.
    fn subject(&self) -> Option<Subject> {
        let email = self.email.clone().map(Subject::Email);
        let user = self.user_id.clone().map(Subject::UserId);
        email.or(user).or_else(|| self.profile_id.clone().map(Subject::ProfileId))
    }
}

/// A list of what was erased, as `--json` prints it.
#[derive(Serialize)]
struct Receipt {
    person: String,
    at: Timestamp,
    /// Nothing was erased: this is what would be.
    dry_run: bool,
    /// The events of the outbox, in the order of the spool, in their last state.
    events: Vec<ReceiptEvent>,
    /// The number of events in spool files that a running agent has read meanwhile.
    spool_events: u64,
    /// The names of rejected files.
    rejected: Vec<String>,
    /// Whether later events of the person are skipped.
    suppressed: bool,
    /// A sentence for each file that may still contain data of the person.
    left: Vec<String>,
}

/// An event that is erased.
#[derive(Serialize)]
struct ReceiptEvent {
    message_id: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    event: Option<String>,
    /// A state, or `in_flight`: it was not delivered, and a request with it got no answer, so that Koala may have it.
    state: &'static str,
    received_at: Timestamp,
    settled_at: Option<Timestamp>,
}

const IN_FLIGHT: &str = "in_flight";

impl From<EventReference> for ReceiptEvent {
    fn from(found: EventReference) -> ReceiptEvent {
        let EventReference { message_id, kind, event, state, received_at, settled_at, .. } = found;
        ReceiptEvent { message_id, kind, event, state: state.as_str(), received_at, settled_at }
    }
}

impl Receipt {
    fn print(&self, is_json: bool, is_running: bool, may_return: &str) -> Result<(), CliError> {
        output::print(&match is_json {
            true => serde_json::to_string_pretty(self).map_err(std::io::Error::from)? + "\n",
            false => render(self, is_running, may_return, terminal_width()),
        })?;
        Ok(())
    }
}

/// Erases the person, and prints the receipt; or what `--dry-run` and `--list` ask for.
///
/// # Errors
/// This user may not erase, or the outbox cannot be changed. Running the command again erases the rest.
pub fn run(context: &CommandContext, args: &EraseArgs) -> Result<ExitCode, CliError> {
    let config = context.config()?;
    let subject = match args.subject() {
        Some(subject) if !args.list => subject,
        subject => return list(&config, subject.as_ref(), args.json),
    };
    may_change(context, &config, "erase a person")?;
    let asker = asker(context);
    become_service(&config)?;
    let is_running = holder(&config.outbox.path).is_some();
    if !config.outbox.path.exists() && !config.spool.dir.exists() {
        // There is nothing to erase: an outbox must not be created for it.
        return Err(SpoolError::Missing { path: config.spool.dir }.into());
    }
    if args.dry_run {
        return dry_run(context, &config, &subject, args);
    }
    if !is_running && (!config.outbox.path.exists() || !files_mentioning(&config, &subject)?.files.is_empty())
    {
        ingest(context, &config, &subject)?;
    }
    let person = Reader::open(&config.outbox.path)?.hash_of(&subject.key())?;
    let Some(person) = person else {
        return Err(CliError::new(
            ExitCode::TryAgain,
            "the outbox has never been used: start the agent first",
        ));
    };
    let now = context.clock.now();
    let is_kept_out = !args.may_return;
    let command = if is_kept_out { Command::Suppress } else { Command::Unsuppress };
    carry_out(context, &config, &asker, &command(person.clone()))?;
    let files = files_mentioning(&config, &subject)?.files;
    wait_until_removed(&files);
    let remaining = files_mentioning(&config, &subject)?;
    let (events, log) =
        Erasing { context, config: &config, asker: &asker, subject: &subject, person }.run()?;
    let is_gone = |file: &&WaitingFile| !remaining.files.contains(file);
    let (rejected, unread) = rejected_mentioning(&config, &subject)?;
    erase_rejected(&config, &rejected)?;
    let mut receipt = Receipt {
        person: subject.to_string(),
        at: now,
        dry_run: false,
        spool_events: files.iter().filter(is_gone).map(|file| file.events).sum(),
        rejected: names_of(&rejected),
        suppressed: is_kept_out,
        left: remaining.files.iter().map(|file| file.sentence()).chain(remaining.unread).collect(),
        events,
    };
    receipt.left.extend(unread);
    receipt.left.extend(log);
    receipt.left.extend(kept_files_mentioning(&config, &subject)?);
    receipt.left.extend(damaged_outboxes(&config));
    receipt.print(args.json, is_running, &args.may_return_command(&config))?;
    Ok(if receipt.left.is_empty() { ExitCode::Success } else { ExitCode::TryAgain })
}

/// The erasure of what the outbox has of a person. The search runs in this process, on the connection that reads: the agent
/// goes on meanwhile, and is told the numbers of the events alone, so that nothing of the person is written once more.
struct Erasing<'a> {
    context: &'a CommandContext,
    config: &'a Config,
    asker: &'a Asker,
    subject: &'a Subject,
    /// The keyed hash of the name.
    person: String,
}

impl Erasing<'_> {
    /// Erases the person's events. Returns them, and a sentence where something of them is left in the log.
    fn run(&self) -> Result<(Vec<ReceiptEvent>, Option<String>), CliError> {
        let (mut erased, mut log) = (Vec::new(), None);
        for _ in 0..MAX_SEARCHES {
            let reader = Reader::open(&self.config.outbox.path)?;
            let before = reader.counts()?.totals.requeued;
            let events = EventReference::find_all(&reader, self.subject)?;
            let files = finished_files(&reader, |name| self.subject.is_in_file_name(name))?;
            drop(reader);
            let mut left = Some(files);
            let mut chunks = events.chunks(MAX_ERASED);
            while let Some(some) = chunks.next().or_else(|| left.is_some().then_some(&[])) {
                let files = left.take().unwrap_or_default();
                let seqs = some.iter().map(|event| event.seq).collect();
                log = self.erase(
                    Erasure { person: self.person.clone(), events: seqs, files },
                    some,
                    &mut erased,
                )?;
            }
            // An event that was put back while the search passed it may have been missed.
            if Reader::open(&self.config.outbox.path)?.counts()?.totals.requeued == before {
                break;
            }
        }
        Ok((erased, log))
    }

    fn erase(
        &self,
        erasure: Erasure,
        found: &[EventReference],
        receipt: &mut Vec<ReceiptEvent>,
    ) -> Result<Option<String>, CliError> {
        let report = carry_out(self.context, self.config, self.asker, &Command::Erase(erasure))?;
        let Report::Erased(Erased { events, is_log_empty, log_held_by }) = report else {
            return Err(wrong_report());
        };
        let mut last: HashMap<i64, _> = events.into_iter().map(|event| (event.seq, event)).collect();
        for event in found {
            // One that has expired meanwhile is as it was found.
            let mut erased = ReceiptEvent::from(event.clone());
            if let Some(last) = last.remove(&event.seq) {
                (erased.state, erased.settled_at) = (last.state.as_str(), last.settled_at);
                if last.is_in_flight && last.state != State::Delivered {
                    erased.state = IN_FLIGHT;
                }
            }
            receipt.push(erased);
        }
        let who = match log_held_by.as_slice() {
            [] => "another process reads it".to_owned(),
            [pid, ..] => format!("process {pid} reads it"),
        };
        let path = self.config.outbox.path.display();
        let sentence = || format!("{path}-wal could not be emptied, because {who}; run erase again");
        Ok((!is_log_empty).then(sentence))
    }
}

/// Prints what would be erased. Events that were delivered a moment ago may be called pending still.
fn dry_run(
    context: &CommandContext,
    config: &Config,
    subject: &Subject,
    args: &EraseArgs,
) -> Result<ExitCode, CliError> {
    let waiting = files_mentioning(config, subject)?;
    let (rejected, unread) = rejected_mentioning(config, subject)?;
    let events = match config.outbox.path.exists() {
        true => EventReference::find_all(&Reader::open(&config.outbox.path)?, subject)?,
        false => Vec::new(),
    };
    let receipt = Receipt {
        person: subject.to_string(),
        at: context.clock.now(),
        dry_run: true,
        spool_events: waiting.files.iter().map(|file| file.events).sum(),
        rejected: names_of(&rejected),
        suppressed: false,
        left: waiting.unread.into_iter().chain(unread).chain(damaged_outboxes(config)).collect(),
        events: events.into_iter().map(ReceiptEvent::from).collect(),
    };
    receipt.print(args.json, true, "")?;
    Ok(ExitCode::Success)
}

/// Prints who is kept out.
fn list(config: &Config, subject: Option<&Subject>, is_json: bool) -> Result<ExitCode, CliError> {
    let persons = SuppressedPerson::find(&Reader::open(&config.outbox.path)?, subject)?;
    let mut text = String::new();
    for person in &persons {
        text += &match is_json {
            true => serde_json::to_string(person).map_err(std::io::Error::from)? + "\n",
            false => format!("{}  {}\n", person.since, person.hash),
        };
    }
    if persons.is_empty() && !is_json {
        text = match subject {
            Some(subject) => format!("{} is not kept out\n", escaped(&subject.to_string())),
            None => "nobody is kept out\n".to_owned(),
        };
    }
    output::print(&text)?;
    Ok(if persons.is_empty() && subject.is_some() { ExitCode::NotFound } else { ExitCode::Success })
}

/// A spool file that mentions the person.
#[derive(PartialEq)]
struct WaitingFile {
    path: PathBuf,
    events: u64,
}

impl WaitingFile {
    fn sentence(&self) -> String {
        let path = self.path.display();
        format!("{path} still waits in the spool; run erase again later, or remove the file")
    }
}

/// What a search of a folder has found.
#[derive(Default)]
struct FilesFound {
    files: Vec<WaitingFile>,
    /// A sentence for each file that could not be looked at as a whole.
    unread: Vec<String>,
}

/// The files that mention the person and wait in the spool to be read.
fn files_mentioning(config: &Config, subject: &Subject) -> Result<FilesFound, CliError> {
    files_of_folder_mentioning(&config.spool.dir, config, subject)
}

/// A sentence for each file that mentions the person, is stored, and is kept because its writer may have it open still.
fn kept_files_mentioning(config: &Config, subject: &Subject) -> Result<Vec<String>, CliError> {
    let dir = config.spool.dir.join(REMOVING);
    let files = files_of_folder_mentioning(&dir, config, subject)?;
    let sentence = |file: &WaitingFile| {
        format!(
            "{} is kept until it has not been written to for {} minutes; run erase again then",
            file.path.display(),
            QUIET_BEFORE_UNLINK.as_secs() / 60
        )
    };
    Ok(files.files.iter().map(sentence).chain(files.unread).collect())
}

fn files_of_folder_mentioning(
    dir: &Path,
    config: &Config,
    subject: &Subject,
) -> Result<FilesFound, CliError> {
    let error = |source| CliError::Input { name: format!("the spool {}", dir.display()), source };
    let mut found = FilesFound::default();
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(found),
        entries => entries.map_err(error)?,
    };
    for entry in entries {
        let path = entry.map_err(error)?.path();
        match count_mentions(&path, &config.spool, subject) {
            Ok(0) => {}
            Ok(events) => found.files.push(WaitingFile { path, events }),
            Err(e) => found.unread.push(unread_sentence(&path, &e)),
        }
    }
    found.files.sort_by(|a, b| a.path.cmp(&b.path));
    found.unread.sort();
    Ok(found)
}

fn unread_sentence(path: &Path, error: &std::io::Error) -> String {
    let path = path.display();
    format!("{path} cannot be read to its end ({error}), so it may name the person; look at it, or remove it")
}

/// Reads the waiting files into the outbox, as the agent would, but sends nothing.
fn ingest(context: &CommandContext, config: &Config, subject: &Subject) -> Result<(), CliError> {
    let mut config = config.clone();
    (config.koala.public_key, config.koala.key_file) = (None, None);
    let files = files_mentioning(&config, subject)?.files;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let agent = Agent::start(config, context.clock.clone()).await?;
        tokio::task::spawn_blocking(move || wait_until_removed(&files)).await.ok();
        agent.stop().await?;
        Ok(())
    })
}

fn wait_until_removed(files: &[WaitingFile]) {
    let began = Instant::now();
    while began.elapsed() < TIMEOUT && files.iter().any(|file| file.path.exists()) {
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The rejected files that mention the person, and a sentence for each that could not be looked at as a whole.
fn rejected_mentioning(config: &Config, subject: &Subject) -> Result<(Vec<OsString>, Vec<String>), CliError> {
    let folder = RejectedFolder::of_spool(&config.spool.dir);
    let (mut mentioning, mut unread) = (Vec::new(), Vec::new());
    for file in super::list::all_rejected(config)? {
        let path = folder.path_of(&file.name);
        match count_mentions(&path, &config.spool, subject) {
            Ok(0) => {}
            Ok(_) => mentioning.push(file.name),
            Err(e) => unread.push(unread_sentence(&path, &e)),
        }
    }
    mentioning.sort();
    Ok((mentioning, unread))
}

fn erase_rejected(config: &Config, names: &[OsString]) -> Result<(), CliError> {
    let folder = RejectedFolder::of_spool(&config.spool.dir);
    for name in names {
        let error = |source| CliError::Input { name: folder.path_of(name).display().to_string(), source };
        folder.remove(name).map_err(error)?;
    }
    Ok(())
}

fn names_of(files: &[OsString]) -> Vec<String> {
    files.iter().map(|name| name.to_string_lossy().into_owned()).collect()
}

/// A sentence for each damaged outbox that is kept: it is not searched.
fn damaged_outboxes(config: &Config) -> Vec<String> {
    let path = &config.outbox.path;
    let (dir, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
    let is_damaged = |file: &OsStr| {
        let file = file.to_string_lossy();
        file.strip_prefix(&*name.to_string_lossy()).is_some_and(|rest| rest.starts_with(".damaged-"))
    };
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut left: Vec<String> = files
        .filter(|file| is_damaged(&file.file_name()))
        .map(|file| {
            let path = file.path();
            format!(
                "{0} is a damaged outbox that was not searched; when nobody needs it: rm {0}",
                path.display()
            )
        })
        .collect();
    left.sort();
    left
}

fn render(receipt: &Receipt, is_running: bool, may_return: &str, width: Option<usize>) -> String {
    let in_state = |state: &str| receipt.events.iter().filter(|event| event.state == state).count() as u64;
    let states: Vec<String> = State::ALL
        .into_iter()
        .map(State::as_str)
        .chain([IN_FLIGHT])
        .filter(|state| in_state(state) > 0)
        .map(|state| format!("{} {}", grouped(in_state(state)), state.replace('_', " ")))
        .collect();
    let states = if states.is_empty() { String::new() } else { format!(": {}", states.join(", ")) };
    let mut lines = LabelledLines::new(width);
    lines.add("outbox", format_args!("{}{states}", counted(receipt.events.len() as u64, "event")));
    if is_running {
        lines.add("spool", counted(receipt.spool_events, "event"));
    }
    lines.add("rejected", counted(receipt.rejected.len() as u64, "file"));
    match receipt {
        Receipt { dry_run: true, .. } => lines.add("afterwards", "nothing has changed"),
        Receipt { suppressed: true, .. } => {
            lines.add("afterwards", "events of this person are skipped; this command accepts them again:");
        }
        _ => lines.add("afterwards", "events of this person are accepted again"),
    }
    if receipt.suppressed {
        lines.add_below(escaped(may_return));
    }
    let title = if receipt.dry_run { "would erase" } else { "erased" };
    let mut text = format!("{}\n{lines}", styled(BOLD, format!("{title} {}", escaped(&receipt.person))));
    let paragraph = |sentence: &str| format!("\n  {}\n", indented(sentence, 2, width));
    for (state, sentence) in [
        (State::Delivered.as_str(), "Koala has accepted these events; ask it to erase them too:"),
        (
            IN_FLIGHT,
            "Koala may have accepted these events, whose requests got no answer; ask it to erase them too:",
        ),
    ] {
        if in_state(state) > 0 {
            text += &paragraph(sentence);
        }
        for event in receipt.events.iter().filter(|event| event.state == state) {
            let at = event.settled_at.unwrap_or(event.received_at);
            let name = event.event.as_deref().or(event.kind.as_deref()).unwrap_or("-");
            text += &format!("    {at}  {}  {}\n", escaped(&event.message_id), escaped(name));
        }
    }
    for sentence in &receipt.left {
        text += &paragraph(&format!("not erased: {}", escaped(sentence)));
    }
    text
}
