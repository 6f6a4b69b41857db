//! `koala-agent erase`: erases a person's events from this machine, and prints a receipt.

use super::context::agent_command;
use super::input::EventInput;
use super::output::{self, BOLD, LabelledLines, counted, escaped, grouped, indented, styled, terminal_width};
use super::permission::{become_service, may_change};
use super::{CliError, CommandContext, ExitCode};
use crate::agent::Agent;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::outbox::{Admin, EventReference, State, holder};
use crate::spool::{
    QUIET_BEFORE_UNLINK, REMOVING, RejectedFolder, SpoolError, format_of, shell_quoted, unpacked,
};
use crate::subject::Subject;
use clap::{ArgGroup, Args};
use serde::Serialize;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest wait for the person's files to leave the spool. The agent reads a file within seconds, unless it is blocked
/// or the file is incomplete.
const TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Erase a person's events from the spool, the outbox, its history and rejected/
///
/// Overwrites the data, and prints a receipt: what was erased, and which events Koala has accepted and when. Ask Koala to
/// erase those. Later events of the person are skipped with the reason code erased, and their bodies are not kept.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("person").required(true)))]
#[command(after_help = "Example:\n  koala-agent erase --email ana@acme.dev --json > receipt.json")]
pub struct EraseArgs {
    /// Erase every event that contains this address
    #[arg(long, value_name = "EMAIL", value_parser = parse_email, group = "person")]
    email: Option<String>,
    /// Erase every event with this userId or previousId whose body is still kept; --email and --profile-id find more
    #[arg(long, value_name = "ID", value_parser = parse_id, group = "person")]
    user_id: Option<String>,
    /// Erase every event of this profile_id
    #[arg(long, value_name = "ID", value_parser = parse_id, group = "person")]
    profile_id: Option<String>,
    /// Accept later events of the person again; without this they are skipped
    #[arg(long)]
    may_return: bool,
    /// Print the receipt as JSON
    #[arg(long)]
    json: bool,
}

fn parse_email(text: &str) -> Result<String, String> {
    match text.trim() {
        text if text.contains('@') => Ok(text.to_owned()),
        _ => Err("an email address has an @".to_owned()),
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

    fn subject(&self) -> Subject {
        match (&self.email, &self.user_id) {
            (Some(email), _) => Subject::Email(email.clone()),
            (None, Some(id)) => Subject::UserId(id.clone()),
            (None, None) => Subject::ProfileId(self.profile_id.clone().unwrap_or_default()),
        }
    }
}

/// A list of what was erased, as `--json` prints it.
#[derive(Serialize)]
struct Receipt {
    person: String,
    at: Timestamp,
    /// The events of the outbox, in the order of the spool, in their last state.
    events: Vec<EventReference>,
    /// The number of events in spool files that a running agent has read meanwhile.
    spool_events: u64,
    /// The names of rejected files.
    rejected: Vec<String>,
    /// Whether later events of the person are skipped.
    suppressed: bool,
    /// A sentence for each file that may still contain data of the person.
    left: Vec<String>,
}

/// Erases the person, and prints the receipt.
///
/// # Errors
/// This user may not erase, or the outbox cannot be changed. Running the command again erases the rest.
pub fn run(context: &CommandContext, args: &EraseArgs) -> Result<ExitCode, CliError> {
    let config = context.config()?;
    may_change(context, &config, "erase a person")?;
    become_service(&config)?;
    let subject = args.subject();
    let is_running = holder(&config.outbox.path).is_some();
    if !config.outbox.path.exists() && !config.spool.dir.exists() {
        // There is nothing to erase: an outbox must not be created for it.
        return Err(SpoolError::Missing { path: config.spool.dir }.into());
    }
    if !is_running && (!config.outbox.path.exists() || !files_mentioning(&config, &subject)?.is_empty()) {
        ingest(context, &config, &subject)?;
    }
    let mut admin = Admin::open(&config.outbox)?;
    let now = context.clock.now();
    match args.may_return {
        true => drop(admin.unsuppress(&subject)?),
        false => admin.suppress(&subject, now)?,
    }
    let files = files_mentioning(&config, &subject)?;
    wait_until_removed(&files);
    let remaining = files_mentioning(&config, &subject)?;
    let events = EventReference::find_all(admin.reader(), &subject)?;
    admin.erase(&subject, &events)?;
    let mut receipt = Receipt {
        person: subject.to_string(),
        at: now,
        spool_events: files.iter().filter(|file| !remaining.contains(file)).map(|file| file.events).sum(),
        rejected: erase_rejected(&config, &subject)?,
        suppressed: !args.may_return,
        left: remaining.iter().map(|file| file.sentence()).collect(),
        events,
    };
    if !admin.overwrite()? {
        receipt.left.push(format!(
            "{}-wal could not be emptied, because another process reads it; run erase again",
            config.outbox.path.display()
        ));
    }
    receipt.left.extend(kept_files_mentioning(&config, &subject)?);
    receipt.left.extend(damaged_outboxes(&config));
    output::print(&match args.json {
        true => serde_json::to_string_pretty(&receipt).map_err(std::io::Error::from)? + "\n",
        false => render(&receipt, is_running, &args.may_return_command(&config), terminal_width()),
    })?;
    Ok(if receipt.left.is_empty() { ExitCode::Success } else { ExitCode::TryAgain })
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

/// The files that mention the person and wait in the spool to be read.
fn files_mentioning(config: &Config, subject: &Subject) -> Result<Vec<WaitingFile>, CliError> {
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
    Ok(files.iter().map(sentence).collect())
}

fn files_of_folder_mentioning(
    dir: &Path,
    config: &Config,
    subject: &Subject,
) -> Result<Vec<WaitingFile>, CliError> {
    let error = |source| CliError::Input { name: format!("the spool {}", dir.display()), source };
    let mut files = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(files),
        entries => entries.map_err(error)?,
    };
    for entry in entries {
        let path = entry.map_err(error)?.path();
        if !path.is_file() {
            continue;
        }
        let events = count_mentions(&path, config, subject);
        if events > 0 {
            files.push(WaitingFile { path, events });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// The number of events of a file that mention the person. A file that contains no events counts as one if it mentions
/// the person; a file that is gone, as none.
fn count_mentions(path: &Path, config: &Config, subject: &Subject) -> u64 {
    let mut mentions = 0;
    let source = EventInput::open(path, &Clock::system()).ok();
    if let Some(mut events) = source.and_then(|source| source.events(&config.spool).ok()) {
        while let Ok(Some(event)) = events.next() {
            mentions += u64::from(event.event.is_ok_and(|text| subject.is_named_in(&text)));
        }
    }
    match mentions {
        0 => u64::from(mentions_subject(path, subject)),
        mentions => mentions,
    }
}

/// Whether the name of a file or any line of it mentions the person.
fn mentions_subject(path: &Path, subject: &Subject) -> bool {
    let name = path.file_name().unwrap_or_default();
    if subject.is_in_file_name(&name.to_string_lossy()) {
        return true;
    }
    let is_gzip = format_of(name).is_some_and(|(_, is_gzip)| is_gzip);
    let Ok(file) = File::open(path) else { return false };
    let mut lines = BufReader::new(unpacked(file, is_gzip)).split(b'\n');
    lines.any(|line| line.is_ok_and(|line| subject.has_address_in(&String::from_utf8_lossy(&line))))
}

/// Reads the waiting files into the outbox, as the agent would, but sends nothing.
fn ingest(context: &CommandContext, config: &Config, subject: &Subject) -> Result<(), CliError> {
    let mut config = config.clone();
    (config.koala.public_key, config.koala.key_file) = (None, None);
    let files = files_mentioning(&config, subject)?;
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

/// Deletes the rejected files that mention the person. Returns their names.
fn erase_rejected(config: &Config, subject: &Subject) -> Result<Vec<String>, CliError> {
    let rejected_folder = RejectedFolder::of_spool(&config.spool.dir);
    let mut erased = Vec::new();
    for file in super::list::all_rejected(config)? {
        let path = rejected_folder.path_of(&file.name);
        if count_mentions(&path, config, subject) > 0 {
            let name = path.display().to_string();
            rejected_folder
                .remove(&file.name)
                .map_err(|source| CliError::Input { name: name.clone(), source })?;
            erased.push(file.name.to_string_lossy().into_owned());
        }
    }
    erased.sort();
    Ok(erased)
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
    let in_state = |state: State| receipt.events.iter().filter(|event| event.state == state).count() as u64;
    let states: Vec<String> = State::ALL
        .into_iter()
        .filter(|state| in_state(*state) > 0)
        .map(|state| format!("{} {}", grouped(in_state(state)), state.as_str()))
        .collect();
    let states = if states.is_empty() { String::new() } else { format!(": {}", states.join(", ")) };
    let mut lines = LabelledLines::new(width);
    lines.add("outbox", format_args!("{}{states}", counted(receipt.events.len() as u64, "event")));
    if is_running {
        lines.add("spool", counted(receipt.spool_events, "event"));
    }
    lines.add("rejected", counted(receipt.rejected.len() as u64, "file"));
    lines.add(
        "afterwards",
        match receipt.suppressed {
            true => "events of this person are skipped; this command accepts them again:",
            false => "events of this person are accepted again",
        },
    );
    if receipt.suppressed {
        lines.add_below(escaped(may_return));
    }
    let mut text = format!("{}\n{lines}", styled(BOLD, format!("erased {}", escaped(&receipt.person))));
    let paragraph = |sentence: &str| format!("\n  {}\n", indented(sentence, 2, width));
    let delivered: Vec<&EventReference> =
        receipt.events.iter().filter(|event| event.state == State::Delivered).collect();
    if !delivered.is_empty() {
        text += &paragraph("Koala has accepted these events; ask it to erase them too:");
    }
    for event in delivered {
        let at = event.settled_at.unwrap_or(event.received_at);
        let name = event.event.as_deref().or(event.kind.as_deref()).unwrap_or("-");
        text += &format!("    {at}  {}  {}\n", escaped(&event.message_id), escaped(name));
    }
    if is_running && in_state(State::Pending) > 0 {
        text += &paragraph("Koala may also have accepted events that were being sent at this moment.");
    }
    for sentence in &receipt.left {
        text += &paragraph(&format!("not erased: {}", escaped(sentence)));
    }
    text
}
