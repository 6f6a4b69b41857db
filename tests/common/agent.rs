//! The test agent: one agent on folders of its own, the receiver that it sends to, and the ledger of what was dropped.
//!
//! An agent runs in one of three ways, behind the same calls:
//! - inside the test's process, on the machine's clock or on one that the test moves: for most facts, as it is the
//!   quickest;
//! - as the real program: where processes, signals, the log or the exit code matter;
//! - driven, in a process of its own on a clock that the test moves: where hours pass and the process crashes, or its
//!   log is looked at.

use super::driven::Driven;
use super::events::{gzip, track};
use super::ledger::{Figures, Ledger};
use super::process::Process;
use super::setup::{KEY, Setup};
use koala_agent::agent::{Agent, Executor};
use koala_agent::clock::{Clock, Timestamp};
use koala_agent::config::Config;
use koala_agent::outbox::{
    AskedCommand, Asker, ClaimedCommand, Command, EventOutcome, Outbox, Progress, Report,
};
use koala_agent::receiver::{Faults, HeldItem, Receiver, ReceiverOptions};
use koala_agent::spool::drop_file;
use koala_agent::status::{DestinationState, Status};
use nix::sys::signal::Signal;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::net::TcpSocket;
use tokio::runtime::{Builder, Runtime};

/// A fact that takes longer than this, on however busy a machine, is not coming.
pub const TIMEOUT: Duration = Duration::from_secs(120);

const SECOND: Duration = Duration::from_secs(1);

/// The time that a manual clock shows at first.
const START: Timestamp = Timestamp(1_800_000_000_000);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    InProcess,
    Program,
    Driven,
}

enum Running {
    InProcess(Box<Agent>),
    Program(Process),
    /// In a cell, as the status is asked for through its pipes.
    Driven(RefCell<Driven>),
}

pub struct TestAgent {
    pub setup: Setup,
    pub receiver: Receiver,
    pub ledger: Ledger,
    /// The agent's clock and the receiver's; moved by [`TestAgent::advance`] and [`TestAgent::step_clock`].
    pub clock: Clock,
    mode: Mode,
    running: Option<Running>,
    /// The command that starts the program, such as a tracer and its options; empty: none.
    wrapper: Vec<OsString>,
    /// Options of `run`.
    options: Vec<OsString>,
    files: u64,
    /// Whether what is dropped is on the disk before the next is.
    durable: bool,
    /// The receiver lives in it, and the agent inside the test's process.
    runtime: Runtime,
}

impl Deref for TestAgent {
    type Target = Setup;

    fn deref(&self) -> &Setup {
        &self.setup
    }
}

impl DerefMut for TestAgent {
    fn deref_mut(&mut self) -> &mut Setup {
        &mut self.setup
    }
}

/// Making one. None runs yet.
impl TestAgent {
    /// Inside the test's process, on the machine's clock.
    pub fn in_process(faults: Faults) -> TestAgent {
        TestAgent::new(
            Mode::InProcess,
            Setup::new(),
            Clock::system(),
            &mut Builder::new_multi_thread(),
            faults,
        )
    }

    /// Inside the test's process, on a clock that the test moves.
    pub fn on_manual_clock(faults: Faults) -> TestAgent {
        TestAgent::new(
            Mode::InProcess,
            Setup::new(),
            Clock::manual(START),
            &mut Builder::new_multi_thread(),
            faults,
        )
    }

    /// Like [`TestAgent::on_manual_clock`], with all tasks on this thread, and the agent's random numbers from a seed.
    pub fn seeded(seed: u64, faults: Faults) -> TestAgent {
        fastrand::seed(seed);
        TestAgent::new(
            Mode::InProcess,
            Setup::new(),
            Clock::manual(START),
            &mut Builder::new_current_thread(),
            faults,
        )
    }

    /// The real program.
    pub fn program(faults: Faults) -> TestAgent {
        TestAgent::program_with(Setup::new(), faults)
    }

    /// The real program with its folders in a given one: a mount.
    pub fn program_within(folder: &Path, faults: Faults) -> TestAgent {
        TestAgent::program_with(Setup::within(folder), faults)
    }

    fn program_with(setup: Setup, faults: Faults) -> TestAgent {
        let mut agent =
            TestAgent::new(Mode::Program, setup, Clock::system(), &mut Builder::new_multi_thread(), faults);
        agent.set("spool.incomplete_after = \"1s\"");
        agent
    }

    /// Driven: in a process of its own, on a clock that the test moves and that shows the machine's time at first. The `main` of
    /// the test's program calls [`super::driven::run_if_driven`].
    pub fn driven(faults: Faults) -> TestAgent {
        let clock = Clock::manual(Timestamp::from_system(std::time::SystemTime::now()));
        TestAgent::new(Mode::Driven, Setup::new(), clock, &mut Builder::new_multi_thread(), faults)
    }

    fn new(mode: Mode, mut setup: Setup, clock: Clock, runtime: &mut Builder, faults: Faults) -> TestAgent {
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        let receiver = start_receiver(&runtime, "127.0.0.1:0".parse().unwrap(), faults, &clock);
        setup.set(&format!("koala.endpoint = \"{}\"", receiver.endpoint()));
        setup.unset("koala.public_key_file");
        setup.set(&format!("koala.public_key = \"{KEY}\""));
        TestAgent {
            setup,
            receiver,
            ledger: Ledger::default(),
            clock,
            mode,
            running: None,
            wrapper: Vec::new(),
            options: Vec::new(),
            files: 0,
            durable: false,
            runtime,
        }
    }

    /// An option of the program's `run`.
    pub fn option(&mut self, option: &str) {
        self.options.push(option.into());
    }

    /// Starts the process from now on by this command, which runs another: a tracer. [`TestAgent::kill`] and
    /// [`TestAgent::stop`] then mean the tracer, unless it puts the program in its own place.
    pub fn run_under<S: Into<OsString>>(&mut self, wrapper: impl IntoIterator<Item = S>) {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
    }

    /// Starts the process by itself again.
    pub fn run_bare(&mut self) {
        self.wrapper.clear();
    }
}

/// Running it.
impl TestAgent {
    /// Starts it. The real program may not run yet when this returns; any other does.
    pub fn start(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        self.running = Some(match self.mode {
            Mode::InProcess => {
                let started = self.runtime.block_on(Agent::start(self.config(), self.clock.clone()));
                Running::InProcess(Box::new(started.unwrap()))
            }
            Mode::Program => {
                let mut command = self.wrapped_program(&self.wrapper);
                Running::Program(Process::start(command.arg("run").args(&self.options), &self.log_file()))
            }
            Mode::Driven => Running::Driven(RefCell::new(Driven::start(
                &self.config_file(),
                &self.wrapper,
                &self.log_file(),
                &self.path("stderr"),
                self.clock.now(),
            ))),
        });
    }

    /// Starts the program, and waits until it runs with its outbox open, as everybody can see.
    pub fn start_and_wait(&mut self) {
        self.start();
        self.until_visible();
    }

    /// Waits until the program that was started last runs with its outbox open, as everybody can see. It has the lock before.
    pub fn until_visible(&mut self) {
        let pid = self.pid().unsigned_abs();
        self.until_status("it runs", |status| {
            let agent = &status.agent;
            agent.running && agent.pid == Some(pid) && agent.since.is_some() && !agent.waits_to_start
        });
    }

    pub fn is_started(&self) -> bool {
        self.running.is_some()
    }

    /// Ends it in order; it ends well.
    pub fn stop(&mut self) {
        match self.running.take().expect("it runs") {
            Running::InProcess(agent) => self.runtime.block_on(agent.stop()).unwrap(),
            Running::Driven(driven) => driven.into_inner().stop(),
            Running::Program(process) => {
                process.signal(Signal::SIGTERM);
                self.running = Some(Running::Program(process));
                let ended = self.wait_for_exit();
                assert!(ended.success(), "{ended}\n{}", self.log());
            }
        }
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self) {
        match self.running.take().expect("it runs") {
            Running::InProcess(_) => panic!("an agent inside the test's process cannot be killed"),
            Running::Driven(driven) => driven.into_inner().process.kill(),
            Running::Program(mut process) => {
                assert_eq!(process.exit_status(), None, "it ended by itself:\n{}", self.log());
                process.kill();
            }
        }
    }

    /// The program's process.
    pub fn process(&self) -> &Process {
        match self.running.as_ref() {
            Some(Running::Program(process)) => process,
            _ => panic!("the program does not run"),
        }
    }

    /// The process that was started: the program itself, unless it runs under a tracer.
    pub fn pid(&self) -> i32 {
        self.process().pid()
    }

    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// How the program ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        let Some(Running::Program(process)) = self.running.as_mut() else { return None };
        let ended = process.exit_status();
        if ended.is_some() {
            self.running = None;
        }
        ended
    }

    /// Waits until the program has ended by itself.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let Some(Running::Program(mut process)) = self.running.take() else {
            panic!("the program does not run")
        };
        process.wait().unwrap_or_else(|| panic!("it does not end:\n{}", self.log()))
    }

    /// Waits until the agent inside the test's process has given up, and returns why.
    pub fn wait_for_failure(&mut self) -> String {
        let Some(Running::InProcess(mut agent)) = self.running.take() else {
            panic!("it is not in this process")
        };
        self.runtime.block_on(agent.failed()).to_string()
    }

    /// The agent inside the test's process.
    pub fn agent(&self) -> &Agent {
        match self.running.as_ref() {
            Some(Running::InProcess(agent)) => agent,
            _ => panic!("no agent runs in this process"),
        }
    }

    /// Gives the agent inside the test's process another configuration.
    pub fn reload(&self, config: Config) {
        let _entered = self.runtime.enter();
        self.agent().reload(config).unwrap();
    }

    /// The agent's status; of the program, as `status --json` prints it.
    pub fn status(&self) -> Status {
        match &self.running {
            Some(Running::InProcess(agent)) => agent.status().unwrap(),
            Some(Running::Driven(driven)) => driven.borrow_mut().status(),
            _ => {
                let output = self.command("status").arg("--json").output().unwrap();
                assert!(output.status.success(), "{output:?}");
                serde_json::from_slice(&output.stdout).unwrap()
            }
        }
    }

    /// Where the log goes; never into a folder that a fault strikes.
    fn log_file(&self) -> PathBuf {
        self.beside_home("log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// How many lines of the log have all of that in them.
    pub fn log_lines_with(&self, parts: &[&str]) -> usize {
        self.log().lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }

    /// The ids of the events that are pending.
    pub fn pending_ids(&self) -> HashSet<String> {
        if !self.outbox().exists() {
            return HashSet::new();
        }
        let outbox = self.database();
        let sql = "SELECT message_id FROM outbox_events WHERE state = 'pending'";
        let mut rows = match outbox.prepare(sql) {
            // The program was killed before it had made its tables, or while it made the file.
            Err(e) if e.to_string().contains("no such table") || has_journal(&e) => return HashSet::new(),
            rows => rows.unwrap(),
        };
        rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }
}

/// Whether a database cannot be read because a transaction of the time before its write-ahead log was cut.
fn has_journal(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|e| e.extended_code == rusqlite::ffi::SQLITE_READONLY_ROLLBACK)
}

/// The receiver and the clock.
impl TestAgent {
    /// The receiver goes, and takes along what it held. Its port is kept from others for as long as it is held.
    pub fn take_receiver_away(&mut self) -> TcpSocket {
        let other =
            start_receiver(&self.runtime, "127.0.0.1:0".parse().unwrap(), Faults::default(), &self.clock);
        let gone = std::mem::replace(&mut self.receiver, other);
        let at = gone.addr();
        self.runtime.block_on(gone.stop());
        let port = TcpSocket::new_v4().unwrap();
        port.set_reuseaddr(true).unwrap();
        port.bind(at).unwrap();
        port
    }

    /// A receiver at that address takes the place of the one before.
    pub fn receive_at(&mut self, at: SocketAddr) {
        self.receiver = self.another_receiver(at);
    }

    /// A receiver beside the agent's own.
    pub fn another_receiver(&self, at: SocketAddr) -> Receiver {
        start_receiver(&self.runtime, at, Faults::default(), &self.clock)
    }

    /// Lets the tasks of this process go on for so long.
    pub fn sleep(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    /// Moves the clock.
    pub fn advance(&mut self, by: Duration) {
        self.clock.advance(by);
        if let Some(Running::Driven(driven)) = &mut self.running {
            driven.get_mut().advance(by);
        }
    }

    /// Sets the wall clock alone.
    pub fn step_clock(&mut self, to: Timestamp) {
        self.clock.step(to);
        if let Some(Running::Driven(driven)) = &mut self.running {
            driven.get_mut().step(to);
        }
    }

    /// Moves the clock in steps, and lets the loops and sockets settle after each.
    pub fn pass(&mut self, time: Duration, step: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = step.min(left);
            self.advance(step);
            left -= step;
            self.sleep(Duration::from_millis(2));
        }
    }

    /// How long until the next attempt, while the destination waits.
    pub fn next_attempt_in(&self) -> Option<Duration> {
        self.status().destination.retry_at.map(|at| at.since(self.clock.now()))
    }

    /// Moves the clock to the next attempt, and waits until it is answered.
    pub fn pass_to_next_attempt(&mut self) {
        let before = self.status().destination.retry_at;
        let wait = self.next_attempt_in().expect("the destination does not wait");
        self.advance_past(wait);
        self.until("an attempt", |agent| agent.status().destination.retry_at != before);
    }

    /// Moves the clock from attempt to attempt for that time. Returns the waits between them.
    pub fn pass_by_attempts(&mut self, time: Duration) -> Vec<Duration> {
        let end = self.clock.now().plus(time);
        let mut waits = Vec::new();
        while let Some(wait) = self.next_attempt_in().filter(|wait| self.clock.now().plus(*wait) < end) {
            waits.push(wait);
            self.pass_to_next_attempt();
        }
        self.advance(end.since(self.clock.now()));
        waits
    }

    /// Waits for a fact that must come within that time, and moves the clock from attempt to attempt until then.
    pub fn pass_by_attempts_until(&mut self, most: Duration, fact: &str, holds: impl Fn(&TestAgent) -> bool) {
        let (began, due) = (Instant::now(), self.clock.now().plus(most));
        let mut reached = None;
        while !holds(self) {
            let destination = self.status().destination;
            assert!(began.elapsed() < TIMEOUT, "not in time: {fact}\n{destination:#?}");
            if let Some(at) = destination.retry_at.filter(|at| Some(*at) != reached) {
                assert!(at <= due, "not within {most:?}: {fact}\n{destination:#?}");
                self.advance_past(at.since(self.clock.now()));
                reached = Some(at);
            }
            self.sleep(Duration::from_millis(2));
        }
    }

    /// Moves the clock in small steps until a fact holds. Returns how far it went.
    pub fn pass_until(&mut self, fact: &str, holds: impl Fn(&TestAgent) -> bool) -> Duration {
        let (began, from) = (Instant::now(), self.clock.now());
        while !holds(self) {
            let destination = || self.status().destination;
            assert!(began.elapsed() < TIMEOUT, "not in time: {fact}\n{:#?}", destination());
            self.pass(SECOND, SECOND / 4);
        }
        self.clock.now().since(from)
    }

    /// Moves the clock by that and a moment more, as waits are shown in whole milliseconds.
    fn advance_past(&mut self, by: Duration) {
        self.advance(by + Duration::from_millis(1));
    }
}

/// Dropping events.
impl TestAgent {
    /// Makes sure from now on that each dropped file is on the disk, as `send` does.
    pub fn drop_durably(&mut self) {
        self.durable = true;
    }

    /// Drops a track by that person, in a file of its own. The ledger knows nothing of it.
    pub fn drop_track(&mut self, id: &str, email: &str) {
        self.files += 1;
        self.drop_file(format!("{:08}-{id}.json", self.files), track(id, email));
    }

    /// Drops a file under the next name in order.
    pub fn drop_next(&mut self, extension: &str, content: impl AsRef<[u8]>) {
        self.try_drop_next(extension, content).unwrap();
    }

    /// Like [`TestAgent::drop_next`], where there may be no room for the file.
    pub fn try_drop_next(&mut self, extension: &str, content: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.files += 1;
        let name = format!("{:09}.{extension}", self.files);
        if self.durable {
            drop_file(&self.spool(), name.as_ref(), content.as_ref()).unwrap();
            return Ok(());
        }
        self.try_drop_file(name, content)
    }

    /// Drops so many files of one event each, by so many people in turn.
    pub fn drop_events(&mut self, events: u64, people: u64) {
        for n in 0..events {
            let event = self.ledger.event(n % people);
            self.drop_next("json", event);
        }
    }

    /// Drops one NDJSON file of so many events, by so many people in turn.
    pub fn drop_lines(&mut self, events: u64, people: u64) {
        let lines: String = (0..events).map(|n| self.ledger.event(n % people) + "\n").collect();
        self.drop_next("ndjson", lines);
    }

    /// Drops so many files of every form: mostly single events, some packed, and among them lines, arrays and what can
    /// only be rejected.
    pub fn drop_mixed(&mut self, files: u64, people: u64) {
        for n in 0..files {
            match n % 20 {
                5 => self.drop_pack("ndjson", ["", "\n", "\n"], people),
                10 => self.drop_pack("ndjson.gz", ["", "\n", "\n"], people),
                15 => self.drop_pack("json", ["[", ",", "]"], people),
                19 => {
                    let broken = self.ledger.broken();
                    self.drop_next("json", broken);
                }
                12 => {
                    let event = self.ledger.event(n % people);
                    self.drop_next("json.gz", gzip(event.as_bytes()));
                }
                _ => {
                    let event = self.ledger.event(n % people);
                    self.drop_next("json", event);
                }
            }
        }
    }

    /// Drops one file of ten events; where it is of lines, with a broken one among them.
    fn drop_pack(&mut self, extension: &str, [open, between, close]: [&str; 3], people: u64) {
        let mut events: Vec<String> = (0..10).map(|n| self.ledger.event(n % people)).collect();
        if extension.starts_with("ndjson") {
            events.insert(4, self.ledger.broken());
        }
        let text = format!("{open}{}{close}", events.join(between)).into_bytes();
        self.drop_next(extension, if extension.ends_with("gz") { gzip(&text) } else { text });
    }
}

/// Commands, as those of a person.
impl TestAgent {
    /// Asks the agent for a change by hand, which may be in another process; where none runs, makes it in this one.
    pub fn ask(&self, command: &Command) -> Report {
        if self.running.is_none() {
            return self.carry_out(command);
        }
        let asked = self.begin_asking(command);
        let began = Instant::now();
        loop {
            match asked.progress().unwrap() {
                Progress::Finished(report) => return report,
                Progress::Gone => panic!("the command is dropped"),
                _ => assert!(began.elapsed() < TIMEOUT, "no answer:\n{}", self.log()),
            }
            self.sleep(Duration::from_millis(1));
        }
    }

    /// Asks the agent that runs, and waits for nothing.
    pub fn begin_asking(&self, command: &Command) -> AskedCommand {
        AskedCommand::ask(&self.outbox(), command, &Asker::of_process(None), self.clock.now()).unwrap()
    }

    fn carry_out(&self, command: &Command) -> Report {
        let config = self.config();
        let outbox = Outbox::open(&config.outbox, self.clock.clone()).unwrap();
        let executor = Executor::without_agent(&outbox, config.mappings.clone());
        let report =
            executor.carry_out(ClaimedCommand::own(Asker::of_process(None), command.clone())).unwrap();
        outbox.close();
        report
    }

    /// Asks that, of one event, and returns what came of it.
    pub fn ask_of(&self, command: fn(Vec<String>) -> Command, id: &str) -> EventOutcome {
        match self.ask(&command(vec![id.to_owned()])) {
            Report::Events(mut events) => events.remove(0).outcome,
            other => panic!("{other:?}"),
        }
    }
}

/// Waiting for facts.
impl TestAgent {
    /// Waits for a fact.
    pub fn until(&mut self, fact: &str, holds: impl FnMut(&mut TestAgent) -> bool) {
        self.until_within(TIMEOUT, fact, holds);
    }

    /// Waits for a fact that must come in time.
    pub fn until_within(
        &mut self,
        time: Duration,
        fact: &str,
        mut holds: impl FnMut(&mut TestAgent) -> bool,
    ) {
        let began = Instant::now();
        // To ask a program takes a process.
        let pause = Duration::from_millis(if self.mode == Mode::Program { 10 } else { 2 });
        while !holds(self) {
            if began.elapsed() > time {
                let log = self.log();
                let last = log.lines().count().saturating_sub(15);
                let log: Vec<_> = log.lines().skip(last).collect();
                let status = self.running.as_ref().map(|_| self.status());
                panic!("not in time: {fact}\n{status:#?}\n{:?}\n{}", self.receiver.stats(), log.join("\n"));
            }
            self.sleep(pause);
        }
    }

    /// Waits until the status says so.
    pub fn until_status(&mut self, fact: &str, holds: impl Fn(&Status) -> bool) {
        self.until(fact, |agent| holds(&agent.status()));
    }

    /// Waits until the destination is in that state.
    pub fn until_destination(&mut self, state: DestinationState) {
        self.until_status(&format!("{state:?}"), |status| status.destination.state == state);
    }

    /// Waits until the receiver holds so many events, each once.
    pub fn until_held(&mut self, events: usize) {
        self.until(&format!("{events} events at the receiver"), |agent| {
            agent.receiver.stats().held >= events
        });
        assert_eq!(self.receiver.stats().held, events);
    }

    /// Waits until everything that was dropped is stored.
    pub fn until_stored(&mut self) {
        let all = self.ledger.dropped.len() as u64;
        self.until_status("all is stored", |status| {
            status.outbox.pending + status.outbox.delivered + status.outbox.failed == all
        });
    }

    /// Waits until the receiver holds everything that was dropped.
    pub fn until_delivered(&mut self) {
        let all = self.ledger.dropped.len();
        self.until("all delivered", |agent| agent.receiver.stats().held >= all);
    }

    /// Waits until nothing is pending and no file waits.
    pub fn until_settled(&mut self) {
        self.until_status("all is settled", |status| {
            status.outbox.pending == 0 && status.spool.waiting_files == Some(0)
        });
    }

    /// Waits until the spool is empty and no event pending, whether the agent runs or not.
    pub fn until_empty(&mut self) {
        self.until("spool and outbox are empty", |agent| agent.is_empty());
    }

    pub fn is_empty(&self) -> bool {
        self.files_in_spool() == 0 && self.pending_ids().is_empty()
    }

    /// The files in the spool that are not rejected, those that are half removed among them.
    pub fn files_in_spool(&self) -> usize {
        let folders = [self.spool(), self.spool().join(".removing")];
        let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
        let is_file = |entry: &fs::DirEntry| !entry.path().is_dir() && entry.file_name() != ".lock";
        entries.filter(|entry| entry.as_ref().is_ok_and(is_file)).count()
    }
}

/// Ends of tests.
impl TestAgent {
    /// Waits until all that was dropped is delivered and settled, stops the program, and balances the ledger. One round.
    pub fn end(&mut self) -> Figures {
        self.until_delivered();
        self.until_settled();
        // The last event may be delivered before the agent handles signals.
        self.until_status("it runs", |status| status.agent.running);
        self.stop();
        self.balance()
    }

    /// Waits until nothing is pending, stops the agent, and balances the ledger. One round.
    pub fn end_settled(&mut self) -> Figures {
        self.end_settled_beside(Vec::new())
    }

    /// Like [`TestAgent::end_settled`], where another receiver has accepted events as well.
    pub fn end_settled_beside(&mut self, elsewhere: Vec<HeldItem>) -> Figures {
        self.until_status("nothing is pending", |status| status.outbox.pending == 0);
        self.stop();
        let mut accepted = self.receiver.events();
        accepted.extend(elsewhere);
        accepted.sort_by_key(|held| held.received_at);
        self.ledger.balance(&self.setup, &accepted)
    }

    /// Balances the ledger of a stopped program, and looks through what it leaves behind. One round.
    pub fn balance(&self) -> Figures {
        let log = self.log();
        assert!(!log.contains("panicked") && !log.contains("this is a bug"), "a panic:\n{log}");
        assert!(!log.contains(KEY), "the key is in the log");
        for folder in [self.state(), self.spool()] {
            assert_no_key_below(&folder);
        }
        self.ledger.balance(&self.setup, &self.receiver.events())
    }

    /// The ids at the receiver.
    pub fn held_ids(&self) -> BTreeSet<String> {
        self.receiver.events().iter().map(|held| held.message_id.to_string()).collect()
    }
}

fn start_receiver(runtime: &Runtime, at: SocketAddr, faults: Faults, clock: &Clock) -> Receiver {
    let options =
        ReceiverOptions { faults, seed: Some(1), clock: clock.clone(), ..ReceiverOptions::default() };
    runtime.block_on(Receiver::start(at, options)).unwrap()
}

fn assert_no_key_below(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            assert_no_key_below(&path);
        } else if path.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            let has_key = memchr::memmem::find(&bytes, KEY.as_bytes()).is_some();
            assert!(!has_key, "the key is in {}", path.display());
        }
    }
}
