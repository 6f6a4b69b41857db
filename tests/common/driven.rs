//! An agent in a process of its own, on a clock that the test moves: a crash of it is a real crash, and what it logs is
//! its own.
//!
//! The test starts its own program again, whose `main` asks [`run_if_driven`] first. The two talk in lines.

use super::process::{Process, append_to};
use koala_agent::agent::{Agent, StartError};
use koala_agent::clock::{Clock, Timestamp};
use koala_agent::config::{ConfigOptions, Environment, load};
use koala_agent::outbox::OutboxError;
use koala_agent::status::Status;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tokio::sync::mpsc;

/// Where such a process finds its configuration, where its log goes, and what its wall clock shows at first.
const CONFIG: &str = "KOALA_DRIVEN_CONFIG";
const LOG: &str = "KOALA_DRIVEN_LOG";
const WALL: &str = "KOALA_DRIVEN_WALL";

/// A stop takes ten seconds at most.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The whole life of such a process; `None`: this process is none.
pub fn run_if_driven() -> Option<ExitCode> {
    let file = PathBuf::from(std::env::var_os(CONFIG)?);
    let log = append_to(Path::new(&std::env::var_os(LOG).unwrap()));
    let format = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_ansi(false);
    tracing::subscriber::set_global_default(format.with_writer(Mutex::new(log)).finish()).unwrap();
    let wall = Timestamp(std::env::var(WALL).unwrap().parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(obey(&file, Clock::manual(wall)));
    Some(ExitCode::SUCCESS)
}

/// Does what it is told, line by line, and answers each line.
async fn obey(config: &Path, clock: Clock) {
    let options = ConfigOptions::with_file(config);
    let config = load(&options, &Environment::default()).unwrap();
    let mut agent = loop {
        match Agent::start(config.clone(), clock.clone()).await {
            // A command that found no agent makes its change itself.
            Err(StartError::Outbox(OutboxError::Held { .. })) => tokio::time::sleep(POLL_INTERVAL).await,
            started => break started.unwrap(),
        }
    };
    println!("started");
    let (lines, mut commands) = mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lines().try_for_each(|line| lines.send(line.unwrap())));
    loop {
        let command = tokio::select! {
            command = commands.recv() => command,
            fatal = agent.failed() => panic!("{fatal}"),
        };
        // Without the test there is nobody to live for.
        let Some(command) = command else { return };
        match command.split_once(' ').unwrap_or((&command, "")) {
            ("advance", ms) => clock.advance(Duration::from_millis(ms.parse().unwrap())),
            ("step", ms) => clock.step(Timestamp(ms.parse().unwrap())),
            ("status", _) => {
                let status = agent.status().unwrap();
                // Times in JSON are in whole seconds.
                let retry_at = status.destination.retry_at.map_or(-1, |at| at.0);
                println!("{retry_at} {}", serde_json::to_string(&status).unwrap());
                continue;
            }
            _ => {
                agent.stop().await.unwrap();
                println!("stopped");
                return;
            }
        }
        // The intake waits by the machine's clock: it is told that time has passed.
        agent.scan_now();
        println!("done");
    }
}

/// A driven agent as the test holds it.
pub struct Driven {
    pub process: Process,
    commands: ChildStdin,
    answers: Receiver<String>,
    stderr: PathBuf,
}

impl Driven {
    /// When this returns, the agent has started. Nothing but a panic goes to its standard error.
    pub fn start(config: &Path, wrapper: &[OsString], log: &Path, stderr: &Path, wall: Timestamp) -> Driven {
        let program = std::env::current_exe().unwrap();
        let words: Vec<OsString> = wrapper.iter().cloned().chain([program.into()]).collect();
        let mut command = Command::new(&words[0]);
        if wrapper.is_empty() {
            command.env_clear();
        }
        command.args(&words[1..]).env(CONFIG, config).env(LOG, log).env(WALL, wall.0.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(append_to(stderr));
        let mut child = command.spawn().unwrap();
        let commands = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (answered, answers) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| answered.send(line)));
        let process = Process::of(child);
        let mut driven = Driven { process, commands, answers, stderr: stderr.to_owned() };
        driven.expect("started");
        driven
    }

    pub fn advance(&mut self, by: Duration) {
        self.tell(&format!("advance {}", by.as_millis()));
        self.expect("done");
    }

    /// Sets the wall clock alone.
    pub fn step(&mut self, to: Timestamp) {
        self.tell(&format!("step {}", to.0));
        self.expect("done");
    }

    pub fn status(&mut self) -> Status {
        self.tell("status");
        let answer = self.answer();
        let (retry_at, status) = answer.split_once(' ').unwrap();
        let mut status: Status = serde_json::from_str(status).unwrap();
        status.destination.retry_at = retry_at.parse().ok().filter(|ms| *ms >= 0).map(Timestamp);
        status
    }

    /// When this returns, it has ended well.
    pub fn stop(mut self) {
        self.tell("stop");
        self.expect("stopped");
        assert!(self.process.wait().is_some_and(|ended| ended.success()), "it does not end well");
    }

    fn tell(&mut self, command: &str) {
        // If nobody listens any more, the answer that is missing says so.
        let _ = writeln!(self.commands, "{command}");
    }

    fn expect(&mut self, answer: &str) {
        assert_eq!(self.answer(), answer);
    }

    fn answer(&mut self) -> String {
        let printed = || std::fs::read_to_string(&self.stderr).unwrap_or_default();
        self.answers.recv_timeout(TIMEOUT).unwrap_or_else(|e| panic!("{e}: {}", printed()))
    }
}
