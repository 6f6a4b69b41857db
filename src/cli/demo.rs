//! `koala-agent demo`: the agent in a temporary folder, against the built-in receiver.

use super::output::{BOLD, DIM, GOOD, counted, indented, print, styled};
use super::remedy::meaning;
use super::{CliError, CommandContext, ExitCode};
use crate::agent::Agent;
use crate::config::{ConfigOptions, Environment, load};
use crate::reason::Code;
use crate::receiver::{Faults, HeldItem, Receiver};
use crate::spool::{RejectedFolder, drop_file};
use crate::status::{DestinationState, Status};
use clap::Args;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

/// The longest step: the last backoff after the offline time is much shorter.
const TIMEOUT: Duration = Duration::from_secs(40);
/// The time for which the receiver stays offline, so that a person can see the agent wait.
const OFFLINE_TIME: Duration = Duration::from_millis(1_500);
/// The width of the output, also in a pipe.
const WIDTH: usize = 80;

/// A file that a program of the demonstration writes. The names keep the order of the files that come within one tick
/// of the file system's clock.
struct DemoFile {
    name: &'static str,
    description: &'static str,
    content: &'static str,
}

const FILES: [DemoFile; 6] = [
    DemoFile {
        name: "1-signup.json",
        description: "a track event of Ana",
        content: r#"{"type":"track","event":"Signed Up","messageId":"demo-1","properties":{"email":"ana@acme.dev","plan":"pro"}}"#,
    },
    DemoFile {
        name: "2-visits.jsonl",
        description: "three events of Ben, one a line",
        content: r#"{"type":"identify","messageId":"demo-2","traits":{"email":"ben@globex.dev","company":"Globex"}}
{"type":"track","event":"Viewed Pricing","messageId":"demo-3","properties":{"email":"ben@globex.dev"}}
{"type":"track","event":"Started Trial","messageId":"demo-4","properties":{"email":"ben@globex.dev"}}
"#,
    },
    DemoFile {
        name: "3-batch.json",
        description: "a batch: a track event of Ana, and a page view",
        content: r#"{"batch":[
  {"type":"track","event":"Invited a Colleague","properties":{"email":"ana@acme.dev"}},
  {"type":"page","name":"Docs","messageId":"demo-6","properties":{"email":"ana@acme.dev"}}
]}"#,
    },
    DemoFile {
        name: "4-signup-again.json",
        description: "the event of the first file again",
        content: r#"{"type":"track","event":"Signed Up","messageId":"demo-1","properties":{"email":"ana@acme.dev","plan":"pro"}}"#,
    },
    DemoFile {
        name: "5-nobody.json",
        description: "an event that does not say whose it is",
        content: r#"{"type":"track","event":"Opened App","messageId":"demo-7","userId":"u-9"}"#,
    },
    DemoFile {
        name: "6-broken.json",
        description: "a file that is not JSON",
        content: "{\"type\":\"track\",\n \"event\":Signed Up}",
    },
];

/// The number of events that the receiver must hold in the end, each once.
const DELIVERABLE: usize = 5;

/// See the agent work, in a temporary folder and without an account
///
/// Writes event files, delivers them to a local receiver that is offline at first, and ends with 0 only if the receiver
/// holds each event exactly once. Takes a few seconds.
#[derive(Debug, Args)]
pub struct DemoArgs {}

/// Runs the demonstration.
///
/// # Errors
/// A folder, an address or a thread is not available, or a step takes too long.
pub fn run(context: &CommandContext, _args: DemoArgs) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(demo(context))
}

async fn demo(context: &CommandContext) -> Result<ExitCode, CliError> {
    let folder = tempfile::tempdir()?;
    let spool = folder.path().join("spool");
    std::fs::create_dir(&spool)?;
    let offline = Faults { offline: true, ..Faults::default() };
    let options = crate::receiver::ReceiverOptions { faults: offline, ..Default::default() };
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), options).await?;
    let agent = start(context, folder.path(), &receiver.endpoint()).await?;

    print_step("1. Programs write event files into the spool folder.")?;
    print_detail(&format!("spool {}", spool.display()))?;
    for DemoFile { name, description, content } in FILES {
        drop_file(&spool, OsStr::new(name), content.as_bytes())?;
        print_detail(&format!("{name:<20} {description}"))?;
    }

    print_step("2. The agent stores each event in the outbox, on disk, then removes the file.")?;
    let is_stored = |s: &Status| {
        (s.outbox.pending, s.outbox.skipped) == (DELIVERABLE as u64, 2)
            && (s.spool.duplicates, s.spool.rejected_files) == (1, Some(1))
    };
    let stored = wait_for(&agent, is_stored).await?;
    let (pending, duplicates) = (stored.outbox.pending, stored.spool.duplicates);
    print_detail(&format!("{} pending", counted(pending, "event")))?;
    print_detail(&format!("{} dropped", counted(duplicates, "duplicate")))?;
    for reason in &stored.reasons {
        let meaning = Code::parse(&reason.code).and_then(meaning).unwrap_or_default();
        print_detail(&format!(
            "{} {}: {} ({meaning})",
            counted(reason.events, "event"),
            reason.state,
            reason.code
        ))?;
    }
    for file in RejectedFolder::of_spool(&spool).list()? {
        if let Some(why) = file.why {
            let name = file.name.display();
            let (line, column, text) = (why.line, why.column, why.text);
            print_detail(&format!("1 file rejected: {name}: line {line}, column {column}: {text}"))?;
        }
    }

    print_step("3. The receiver is offline: the events wait in the outbox, in order.")?;
    tokio::time::sleep(OFFLINE_TIME).await;
    let waiting = wait_for(&agent, |s| s.destination.state == DestinationState::Backoff).await?;
    print_detail(&format!("receiver {} unreachable", receiver.endpoint()))?;
    if let Some(reason) = &waiting.destination.reason {
        print_detail(&reason.to_string())?;
    }

    print_step("4. The receiver is online: the agent delivers each person's events in order.")?;
    receiver.set_faults(Faults::default());
    let is_delivered = |s: &Status| s.outbox.pending == 0 && s.outbox.delivered == DELIVERABLE as u64;
    let done = wait_for(&agent, is_delivered).await?;
    let mut events_by_person: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for held in receiver.events() {
        let person = held.top("email").unwrap_or_default().trim_matches('"').to_owned();
        events_by_person.entry(person).or_default().push(event_name(&held));
    }
    for (person, events) in events_by_person {
        print_detail(&format!("{person}: {}", events.join(", ")))?;
    }

    let stats = receiver.stats();
    let is_exact = stats.held == DELIVERABLE
        && stats.repeats == 0
        && done.spool.duplicates == 1
        && done.spool.rejected_files == Some(1);
    agent.stop().await?;
    receiver.stop().await;
    if !is_exact {
        print_step("The receiver does not hold each event exactly once. This is a bug, please report it.")?;
        return Ok(ExitCode::No);
    }
    print(&format!(
        "\n{} the receiver holds {DELIVERABLE} events, each exactly once.\n\n\
         Next steps:\n  \
           koala-agent receiver   run a local receiver to try things with\n  \
           koala-agent send       put your own events into the spool\n  \
           koala-agent status     see what waits, what failed, and why\n  \
           README.md              install the service\n",
        styled(GOOD, "Done:")
    ))?;
    Ok(ExitCode::Success)
}

async fn start(context: &CommandContext, folder: &Path, endpoint: &str) -> Result<Agent, CliError> {
    let file = folder.join("config.toml");
    let text = format!(
        "[spool]\ndir = \"{0}/spool\"\n[outbox]\npath = \"{0}/outbox.db\"\nmin_free = 0\n\
         [koala]\nendpoint = \"{endpoint}\"\npublic_key = \"demo\"\n",
        folder.display()
    );
    std::fs::write(&file, text)?;
    // The environment of the process may hold settings of a real agent.
    let empty: Environment = std::iter::empty::<(&str, &str)>().collect();
    let config = load(&ConfigOptions::with_file(file), &empty)?;
    Ok(Agent::start(config, context.clock.clone()).await?)
}

/// Waits until the status meets a condition, and returns that status.
async fn wait_for(agent: &Agent, condition: impl Fn(&Status) -> bool) -> Result<Status, CliError> {
    let began = Instant::now();
    loop {
        let status = agent.status()?;
        if condition(&status) {
            return Ok(status);
        }
        if began.elapsed() > TIMEOUT {
            let status = serde_json::to_string_pretty(&status).unwrap_or_default();
            return Err(CliError::new(ExitCode::No, format!("the demo makes no progress: {status}")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The name of an event, else its type.
fn event_name(held: &HeldItem) -> String {
    let item: Value = serde_json::from_str(held.item.get()).unwrap_or_default();
    item.get("event").and_then(Value::as_str).unwrap_or(held.kind.as_str()).to_owned()
}

fn print_step(text: &str) -> std::io::Result<()> {
    print(&format!("\n{}\n", styled(BOLD, text)))
}

fn print_detail(text: &str) -> std::io::Result<()> {
    print(&format!("   {} {}\n", styled(DIM, "·"), indented(text, 5, Some(WIDTH))))
}
