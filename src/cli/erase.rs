//! `koala-agent erase`: a person's events leave the machine.

use super::input::Source;
use super::output::{self, BOLD, Facts, count, paint, plain};
use super::permission::{become_service, may_change};
use super::{CliError, Context, ExitCode};
use crate::agent::Agent;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::outbox::{Admin, EventReference, State, holder};
use crate::spool::{format_of, rejected_beside, unpacked};
use crate::subject::Subject;
use clap::{ArgGroup, Args};
use serde::Serialize;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the person's files may take to leave the spool: the agent reads one within seconds, unless it is blocked or
/// the file is not whole.
const TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Erase a person: their events leave the spool, the outbox, its history and rejected/
///
/// The receipt says what went, and what Koala had taken, and when: ask Koala to erase that. What is erased is overwritten.
/// From then on events of the person are skipped with the reason erased, and nothing of them is kept.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("person").required(true)))]
#[command(after_help = "Example:\n  koala-agent erase --email ana@acme.dev --json > receipt.json")]
pub struct EraseArgs {
    /// Every event in which this address stands
    #[arg(long, value_name = "EMAIL", value_parser = email, group = "person")]
    email: Option<String>,
    /// Every event of this userId or previousId, as far as its body is kept; the address and the profile_id tell more
    #[arg(long, value_name = "ID", value_parser = id, group = "person")]
    user_id: Option<String>,
    /// Every event of this profile_id
    #[arg(long, value_name = "ID", value_parser = id, group = "person")]
    profile_id: Option<String>,
    /// Later events of the person are welcome, also after an earlier erasure
    #[arg(long)]
    may_return: bool,
    /// The receipt as JSON
    #[arg(long)]
    json: bool,
}

fn email(text: &str) -> Result<String, String> {
    match text.trim() {
        text if text.contains('@') => Ok(text.to_owned()),
        _ => Err("an email address has an @".to_owned()),
    }
}

fn id(text: &str) -> Result<String, String> {
    match text {
        "" => Err("an id is not empty".to_owned()),
        text => Ok(text.to_owned()),
    }
}

impl EraseArgs {
    fn subject(&self) -> Subject {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        match (&self.email, &self.user_id) {
            (Some(_), _) => Subject::Email(text(&self.email)),
            (None, Some(_)) => Subject::UserId(text(&self.user_id)),
            (None, None) => Subject::ProfileId(text(&self.profile_id)),
        }
    }
}

/// What went.
#[derive(Serialize)]
struct Receipt {
    person: String,
    at: Timestamp,
    /// From the outbox, in the order of the spool, each as it was.
    events: Vec<EventReference>,
    /// From files that a running agent has taken meanwhile.
    spool_events: u64,
    /// Files that had been set aside.
    rejected: Vec<String>,
    /// Whether later events are kept out.
    suppressed: bool,
    /// What may still hold something of the person, a sentence each.
    left: Vec<String>,
}

/// Erases the person, and prints the receipt.
///
/// # Errors
/// Not by this user; the outbox cannot be changed: then run it again, what went is gone.
pub fn run(context: &Context, args: &EraseArgs) -> Result<ExitCode, CliError> {
    let config = context.config()?;
    may_change(context, &config, "erase a person")?;
    become_service(&config)?;
    let subject = args.subject();
    let runs = holder(&config.outbox.path).is_some();
    if !runs && (!config.outbox.path.exists() || !waiting(&config, &subject)?.is_empty()) {
        take_in(context, &config, &subject)?;
    }
    let mut admin = Admin::open(&config.outbox)?;
    let now = context.clock.now();
    match args.may_return {
        true => drop(admin.unsuppress(&subject)?),
        false => admin.suppress(&subject, now)?,
    }
    let in_files = waiting(&config, &subject)?;
    await_gone(&in_files);
    let still = waiting(&config, &subject)?;
    let events = EventReference::find_all(admin.reader(), &subject)?;
    admin.erase(&subject, &events)?;
    let mut receipt = Receipt {
        person: subject.to_string(),
        at: now,
        spool_events: in_files.iter().filter(|file| !still.contains(file)).map(|file| file.events).sum(),
        rejected: erase_rejected(&config, &subject)?,
        suppressed: !args.may_return,
        left: still.iter().map(|file| file.sentence()).collect(),
        events,
    };
    if !admin.overwrite()? {
        receipt.left.push(format!(
            "{}-wal: somebody reads it, so it could not be emptied; run erase again",
            config.outbox.path.display()
        ));
    }
    receipt.left.extend(damaged(&config));
    output::print(&match args.json {
        true => serde_json::to_string_pretty(&receipt).map_err(std::io::Error::from)? + "\n",
        false => text(&receipt, runs),
    })?;
    Ok(if receipt.left.is_empty() { ExitCode::Success } else { ExitCode::TryAgain })
}

/// A file of the spool that names the person.
#[derive(PartialEq)]
struct Waiting {
    path: PathBuf,
    events: u64,
}

impl Waiting {
    fn sentence(&self) -> String {
        let path = self.path.display();
        format!("{path}: it is not taken yet; run erase again once it is, or remove it")
    }
}

/// The files of the spool that name the person.
fn waiting(config: &Config, subject: &Subject) -> Result<Vec<Waiting>, CliError> {
    let dir = &config.spool.dir;
    let error = |source| CliError::Input { name: format!("the spool {}", dir.display()), source };
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(found),
        entries => entries.map_err(error)?,
    };
    for entry in entries {
        let path = entry.map_err(error)?.path();
        if !path.is_file() {
            continue;
        }
        let events = events_in(&path, config, subject);
        if events > 0 {
            found.push(Waiting { path, events });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// How many events of a file name the person; what cannot be read as events counts as one if their address stands in
/// it. A file that has gone names nobody.
fn events_in(path: &Path, config: &Config, subject: &Subject) -> u64 {
    let mut named = 0;
    let source = Source::open(path, &Clock::system()).ok();
    if let Some(mut events) = source.and_then(|source| source.events(&config.spool).ok()) {
        while let Ok(Some(found)) = events.next() {
            named += u64::from(found.event.is_ok_and(|text| subject.is_in(&text)));
        }
    }
    match named {
        0 => u64::from(stands_in(path, subject)),
        named => named,
    }
}

fn stands_in(path: &Path, subject: &Subject) -> bool {
    let name = path.file_name().unwrap_or_default();
    if subject.names_file(&name.to_string_lossy()) {
        return true;
    }
    let gz = format_of(name).is_some_and(|(_, gz)| gz);
    let Ok(file) = File::open(path) else { return false };
    let mut lines = BufReader::new(unpacked(file, gz)).split(b'\n');
    lines.any(|line| line.is_ok_and(|line| subject.stands_in(&String::from_utf8_lossy(&line))))
}

/// Takes what waits in the spool into the outbox, as the agent would, but sends nothing.
fn take_in(context: &Context, config: &Config, subject: &Subject) -> Result<(), CliError> {
    let mut config = config.clone();
    (config.koala.public_key, config.koala.key_file) = (None, None);
    let files = waiting(&config, subject)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let agent = Agent::start(config, context.clock.clone()).await?;
        tokio::task::spawn_blocking(move || await_gone(&files)).await.ok();
        agent.stop().await?;
        Ok(())
    })
}

fn await_gone(files: &[Waiting]) {
    let began = Instant::now();
    while began.elapsed() < TIMEOUT && files.iter().any(|file| file.path.exists()) {
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Deletes the files in `rejected/` that name the person; their names.
fn erase_rejected(config: &Config, subject: &Subject) -> Result<Vec<String>, CliError> {
    let rejects = rejected_beside(&config.spool.dir);
    let mut gone = Vec::new();
    for file in super::list::all_rejected(config)? {
        let path = rejects.path_of(&file.name);
        if events_in(&path, config, subject) > 0 {
            let name = path.display().to_string();
            rejects.remove(&file.name).map_err(|source| CliError::Input { name: name.clone(), source })?;
            gone.push(file.name.to_string_lossy().into_owned());
        }
    }
    gone.sort();
    Ok(gone)
}

/// What is kept of damaged outboxes is not searched.
fn damaged(config: &Config) -> Vec<String> {
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
                "{0}: a damaged outbox as it was, not searched; when it is of no use: rm {0}",
                path.display()
            )
        })
        .collect();
    left.sort();
    left
}

fn text(receipt: &Receipt, runs: bool) -> String {
    let of = |state: State| receipt.events.iter().filter(|event| event.state == state).count() as u64;
    let states: Vec<String> = State::ALL
        .into_iter()
        .filter(|state| of(*state) > 0)
        .map(|state| format!("{} {}", of(state), state.as_str()))
        .collect();
    let sum = match states.as_slice() {
        [] => String::new(),
        states => format!(": {}", states.join(", ")),
    };
    let mut facts = Facts::default();
    facts.add("outbox", format_args!("{}{sum}", count(receipt.events.len() as u64, "event")));
    if runs {
        facts.add("spool", count(receipt.spool_events, "event"));
    }
    facts.add("rejected", count(receipt.rejected.len() as u64, "file"));
    facts.add(
        "from now on",
        match receipt.suppressed {
            true => "events of this person are skipped; --may-return lets them in",
            false => "events of this person are welcome",
        },
    );
    let mut text = format!("{}\n{facts}", paint(BOLD, format!("erased {}", plain(&receipt.person))));
    let delivered: Vec<&EventReference> =
        receipt.events.iter().filter(|e| e.state == State::Delivered).collect();
    if !delivered.is_empty() {
        text += "\n  Koala has taken these; ask it to erase them too:\n";
    }
    for event in delivered {
        let at = event.settled_at.unwrap_or(event.received_at);
        let what = event.event.as_deref().or(event.kind.as_deref()).unwrap_or("-");
        text += &format!("    {at}  {}  {}\n", plain(&event.message_id), plain(what));
    }
    if runs && of(State::Pending) > 0 {
        text += "\n  What was on its way at that moment Koala may have taken as well.\n";
    }
    for sentence in &receipt.left {
        text += &format!("\n  left: {}\n", plain(sentence));
    }
    text
}
