//! `koala-agent demo`: the whole thing in a temporary folder, against the built-in receiver.

use super::output::{BOLD, DIM, GOOD, paint, print};
use super::{CliError, Context, ExitCode};
use crate::agent::Agent;
use crate::config::{ConfigOptions, Environment, load};
use crate::receiver::{Faults, Receiver};
use crate::spool::{RejectedFolder, drop_file};
use crate::status::{DestinationState, Status};
use clap::Args;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

/// The longest that a step may take: the last backoff of a spell offline ends within it by far.
const TIMEOUT: Duration = Duration::from_secs(40);
/// How long the receiver stays away, so that the agent's waiting can be seen.
const OFFLINE: Duration = Duration::from_millis(1_500);

/// What the programs of the demonstration drop into the spool: a name and its content. The names keep the order where
/// the files come within one tick of the file system's clock.
const DROPPED: [(&str, &str); 6] = [
    (
        "1-signup.json",
        r#"{"type":"track","event":"Signed Up","messageId":"demo-1","properties":{"email":"ana@acme.dev","plan":"pro"}}"#,
    ),
    (
        "2-visits.jsonl",
        r#"{"type":"identify","messageId":"demo-2","traits":{"email":"ben@globex.dev","company":"Globex"}}
{"type":"track","event":"Viewed Pricing","messageId":"demo-3","properties":{"email":"ben@globex.dev"}}
{"type":"track","event":"Started Trial","messageId":"demo-4","properties":{"email":"ben@globex.dev"}}
"#,
    ),
    (
        "3-batch.json",
        r#"{"batch":[
  {"type":"track","event":"Invited a Colleague","properties":{"email":"ana@acme.dev"}},
  {"type":"page","name":"Docs","messageId":"demo-6","properties":{"email":"ana@acme.dev"}}
]}"#,
    ),
    (
        "4-signup-again.json",
        r#"{"type":"track","event":"Signed Up","messageId":"demo-1","properties":{"email":"ana@acme.dev","plan":"pro"}}"#,
    ),
    ("5-nobody.json", r#"{"type":"track","event":"Opened App","messageId":"demo-7","userId":"u-9"}"#),
    ("6-broken.json", "{\"type\":\"track\",\n \"event\":Signed Up}"),
];

/// The events of those that the receiver must hold in the end, each once.
const SENT: usize = 5;

/// See the whole thing work in a temporary folder, without an account
#[derive(Debug, Args)]
pub struct DemoArgs {}

/// Runs the demonstration; the answer is yes only if the receiver holds each event exactly once.
///
/// # Errors
/// A folder, an address or a thread cannot be had.
pub fn run(context: &Context, _args: DemoArgs) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(demo(context))
}

async fn demo(context: &Context) -> Result<ExitCode, CliError> {
    let folder = tempfile::tempdir()?;
    let spool = folder.path().join("spool");
    std::fs::create_dir(&spool)?;
    let offline = Faults { offline: true, ..Faults::default() };
    let options = crate::receiver::ReceiverOptions { faults: offline, ..Default::default() };
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), options).await?;
    let agent = start(context, folder.path(), &receiver.endpoint()).await?;

    step("1. Programs drop files into a spool folder and forget them.")?;
    say(&format!("spool {}, receiver {} (it is offline)", spool.display(), receiver.endpoint()))?;
    for (name, content) in DROPPED {
        drop_file(&spool, OsStr::new(name), content.as_bytes())?;
        say(&format!(
            "{name:<19} {}",
            content.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(84).collect::<String>()
        ))?;
    }

    step("2. The agent stores every event durably, and removes a file only after that.")?;
    let stored = until(&agent, |s| s.outbox.pending == SENT as u64 && s.outbox.skipped == 2).await?;
    say(&format!(
        "{} events wait in the outbox, {} duplicate was counted",
        stored.outbox.pending, stored.spool.duplicates
    ))?;
    for reason in &stored.reasons {
        say(&format!("{} {}: {}", reason.events, reason.state, meaning(&reason.code)))?;
    }
    for set_aside in RejectedFolder::of_spool(&spool).list()? {
        if let Some(why) = set_aside.why {
            say(&format!(
                "rejected/{}: {} (line {}, column {})",
                set_aside.name.display(),
                why.text,
                why.line,
                why.column
            ))?;
        }
    }

    step("3. The receiver is away: events wait, in order, for as long as it takes.")?;
    tokio::time::sleep(OFFLINE).await;
    let waiting = until(&agent, |s| s.destination.state == DestinationState::Backoff).await?;
    if let Some(reason) = &waiting.destination.reason {
        say(&format!("destination: backoff since {}", waiting.destination.since.unwrap_or(waiting.now)))?;
        say(&reason.text)?;
    }

    step("4. It is back: everything is delivered by itself, a person's events together and in order.")?;
    receiver.set_faults(Faults::default());
    let done = until(&agent, |s| s.outbox.pending == 0 && s.outbox.delivered == SENT as u64).await?;
    let mut requests: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for held in receiver.events() {
        let shown = format!("{:<9} {}", held.kind.as_str(), held.message_id);
        requests.entry(held.request).or_insert_with(|| vec![who(held.top("email"))]).push(shown);
    }
    for lines in requests.values() {
        say(&format!(
            "request for {}: {}",
            lines[0],
            lines[1..]
                .iter()
                .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
                .join(", ")
        ))?;
    }

    let stats = receiver.stats();
    let once = stats.held == SENT
        && stats.repeats == 0
        && done.spool.duplicates == 1
        && done.spool.rejected_files == 1;
    agent.stop().await?;
    receiver.stop().await;
    if !once {
        step("The receiver does not hold each event exactly once. This is a bug, please report it.")?;
        return Ok(ExitCode::No);
    }
    print(&format!(
        "\n{} the receiver holds {SENT} events, each exactly once.\n\n\
         To go on: `koala-agent receiver` is a receiver to play with, `koala-agent send` stores events,\n\
         `koala-agent status` tells what is stuck and why. The README shows how to install the service.\n",
        paint(GOOD, "Done:")
    ))?;
    Ok(ExitCode::Success)
}

async fn start(context: &Context, folder: &Path, endpoint: &str) -> Result<Agent, CliError> {
    let file = folder.join("config.toml");
    let text = format!(
        "[spool]\ndir = \"{0}/spool\"\n[outbox]\npath = \"{0}/outbox.db\"\nmin_free = 0\n\
         [koala]\nendpoint = \"{endpoint}\"\npublic_key = \"demo\"\n",
        folder.display()
    );
    std::fs::write(&file, text)?;
    // The caller's environment may hold settings of a real agent.
    let nothing: Environment = std::iter::empty::<(&str, &str)>().collect();
    let config = load(&ConfigOptions { config: Some(file), user: false }, &nothing)?;
    Ok(Agent::start(config, context.clock.clone()).await?)
}

/// Waits until the status shows a fact, and returns it.
async fn until(agent: &Agent, fact: impl Fn(&Status) -> bool) -> Result<Status, CliError> {
    let began = Instant::now();
    loop {
        let status = agent.status()?;
        if fact(&status) {
            return Ok(status);
        }
        if began.elapsed() > TIMEOUT {
            let seen = serde_json::to_string_pretty(&status).unwrap_or_default();
            return Err(CliError::new(ExitCode::No, format!("the demonstration does not get on: {seen}")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn meaning(code: &str) -> &str {
    match code {
        "no_mapping" => "a page view; Koala takes tracks and identifies",
        "no_identity" => "neither a profile_id nor an email says whose event it is",
        code => code,
    }
}

fn who(email: Option<&str>) -> String {
    email.unwrap_or("?").trim_matches('"').to_owned()
}

fn step(text: &str) -> std::io::Result<()> {
    print(&format!("\n{}\n", paint(BOLD, text)))
}

fn say(text: &str) -> std::io::Result<()> {
    print(&format!("   {} {text}\n", paint(DIM, "·")))
}
