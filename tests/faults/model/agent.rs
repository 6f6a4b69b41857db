//! The agent as the model drives it: the core itself on a clock that is moved by hand, in a process of its own, so that
//! a crash is a crash.

use koala_agent::agent::Agent;
use koala_agent::clock::{Clock, Timestamp};
use koala_agent::config::{Config, Environment, Options, load};
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tokio::sync::mpsc;

/// Where such a process finds its configuration, and what its wall clock shows at first.
const CONFIG: &str = "KOALA_MODEL_CONFIG";
const WALL: &str = "KOALA_MODEL_WALL";

/// What it has not said after so long, six times of what a stop may take, it will not say.
const PATIENCE: Duration = Duration::from_secs(60);

/// The settings in a file.
pub fn config(file: &Path) -> Config {
    let options = Options { config: Some(file.to_owned()), user: false };
    let nothing: [(&str, &str); 0] = [];
    load(&options, &nothing.into_iter().collect::<Environment>()).unwrap()
}

/// The whole life of such a process; `None`: this process is another.
pub fn live() -> Option<ExitCode> {
    let file = PathBuf::from(std::env::var_os(CONFIG)?);
    let wall = Timestamp(std::env::var(WALL).unwrap().parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(obey(config(&file), Clock::manual(wall)));
    Some(ExitCode::SUCCESS)
}

/// Does what it is told line by line, and says when it is done.
async fn obey(config: Config, clock: Clock) {
    let mut agent = Agent::start(config, clock.clone()).await.unwrap();
    println!("started");
    let (lines, mut commands) = mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lines().try_for_each(|line| lines.send(line.unwrap())));
    loop {
        let command = tokio::select! {
            command = commands.recv() => command,
            fatal = agent.failed() => panic!("{fatal}"),
        };
        // Without the model there is nobody to live for.
        let Some(command) = command else { return };
        match command.split_once(' ') {
            Some(("advance", ms)) => clock.advance(Duration::from_millis(ms.parse().unwrap())),
            Some(("step", ms)) => clock.step(Timestamp(ms.parse().unwrap())),
            _ => {
                agent.stop().await.unwrap();
                println!("stopped");
                return;
            }
        }
        // The intake's waits are the machine's: it is told that time has passed.
        agent.look();
        println!("done");
    }
}

/// Such a process, from the outside.
pub struct Process {
    child: Child,
    commands: ChildStdin,
    answers: Receiver<String>,
    log: PathBuf,
}

impl Process {
    /// When this returns, the agent has started. What it has to complain of goes to the log.
    pub fn start(config: &Path, log: &Path, wall: Timestamp) -> Process {
        let stderr = OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env_clear()
            .env(CONFIG, config)
            .env(WALL, wall.0.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (answered, answers) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| answered.send(line)));
        let mut process = Process { child, commands, answers, log: log.to_owned() };
        process.expect("started");
        process
    }

    pub fn advance(&mut self, by: Duration) {
        self.tell(&format!("advance {}", by.as_millis()), "done");
    }

    /// Sets the wall clock alone.
    pub fn step(&mut self, to: Timestamp) {
        self.tell(&format!("step {}", to.0), "done");
    }

    /// When this returns, it has ended well.
    pub fn stop(mut self) {
        self.tell("stop", "stopped");
        assert!(self.child.wait().unwrap().success());
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        assert_eq!(self.child.try_wait().unwrap(), None, "it ended by itself");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn tell(&mut self, command: &str, answer: &str) {
        // If nobody listens any more, the answer that is missing says so.
        let _ = writeln!(self.commands, "{command}");
        self.expect(answer);
    }

    fn expect(&mut self, answer: &str) {
        let line = self.answers.recv_timeout(PATIENCE);
        let log = || std::fs::read_to_string(&self.log).unwrap_or_default();
        assert_eq!(line.as_deref(), Ok(answer), "{}", log());
    }
}

impl Drop for Process {
    /// A script that has failed leaves no process.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
