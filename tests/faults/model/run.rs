//! The run of a script: the agent in a process of its own, its files, and the ledger.

use super::Checked;
use super::files::{Files, SpoolFile, address};
use super::outbox::Outbox;
use super::script::{File, Step, Way, Weather};
use crate::common::agent::TestAgent;
use koala_agent::clock::Timestamp;
use koala_agent::outbox::{Command, EventOutcome};
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The file system's clock ticks at least so often. A file that is written for long is kept apart from what it was by its
/// time stamps, and left alone for a while by the agent's own clock; but that one the model moves, so here its producer
/// waits.
const TICK: Duration = Duration::from_millis(11);

/// The time between two looks at a command.
const LOOK: Duration = Duration::from_millis(3);

pub struct Run {
    pub agent: TestAgent,
    pub files: Files,
    /// A file that was only begun, and the rest of it.
    begun: Option<(fs::File, Vec<u8>)>,
    wrote: Instant,
    last_read: Option<Rc<Outbox>>,
    /// Events that were put back since the outbox was last read.
    put_back: BTreeSet<String>,
    /// Events that were put back since the beginning.
    pub retried: BTreeSet<String>,
    pub discarded: BTreeSet<String>,
    /// Events that were to be discarded when the agent was killed.
    pub perhaps_discarded: BTreeSet<String>,
    /// The states in which receipts call the events that were erased.
    pub erased: BTreeMap<String, String>,
    /// A request may have been taken and its answer lost.
    pub may_repeat: bool,
    /// A crash may have left files on their way out: put back, they are read again.
    pub may_reread: bool,
}

impl Run {
    /// Begins a run with an agent that is started.
    pub fn new() -> Run {
        let mut agent = TestAgent::driven(Weather::Well.faults());
        agent.start();
        Run {
            agent,
            files: Files::default(),
            begun: None,
            wrote: Instant::now(),
            last_read: None,
            put_back: BTreeSet::new(),
            retried: BTreeSet::new(),
            discarded: BTreeSet::new(),
            perhaps_discarded: BTreeSet::new(),
            erased: BTreeMap::new(),
            may_repeat: false,
            may_reread: false,
        }
    }

    /// Does the step, and checks what the outbox shows then.
    pub fn step(&mut self, step: &Step) -> Checked {
        match step {
            Step::Drop(file) => self.drop_file(file),
            Step::Finish => self.finish(),
            Step::Touch { after_us } => self.touch(Duration::from_micros((*after_us).into())),
            Step::Weather(weather) => {
                self.may_repeat |= *weather == Weather::LosesAnswers;
                self.agent.receiver.set_faults(weather.faults());
            }
            Step::Pass { seconds } => self.agent.advance(Duration::from_secs((*seconds).into())),
            Step::SetClock { by_seconds } => {
                let now = self.agent.clock.now();
                self.agent.step_clock(Timestamp(now.0 + by_seconds * 1_000));
            }
            Step::Work { ms } => sleep(Duration::from_millis((*ms).into())),
            Step::Stop => self.stop(),
            Step::Crash { after_us } => {
                self.crash(*after_us);
                return Ok(());
            }
            Step::RetryAndCrash(back, after_us) => {
                let id = self.known_id(*back);
                self.put_back.extend(id.clone());
                self.retried.extend(id.clone());
                self.ask_and_crash(Command::Retry, id, *after_us);
                return Ok(());
            }
            Step::DiscardAndCrash(back, after_us) => {
                let id = self.known_id(*back);
                self.perhaps_discarded.extend(id.clone());
                self.ask_and_crash(Command::Discard, id, *after_us);
                return Ok(());
            }
            Step::Start => self.start(),
            Step::Retry(back) => self.retry(*back),
            Step::Discard(back) => self.discard(*back),
            Step::Erase { person, may_return } => self.erase(*person, *may_return, None)?,
            Step::EraseAmidCrash { person, may_return, after_us } => {
                self.erase(*person, *may_return, Some(*after_us))?;
            }
        }
        self.read_outbox().map(drop)
    }

    /// Reads the outbox, and checks it against what was read last.
    pub fn read_outbox(&mut self) -> Result<Rc<Outbox>, TestCaseError> {
        let outbox = Rc::new(Outbox::read(&self.agent.outbox())?);
        if let Some(before) = &self.last_read {
            outbox.follows(before, &self.put_back, |id| self.erased.contains_key(id))?;
        }
        self.put_back.clear();
        self.last_read = Some(outbox.clone());
        Ok(outbox)
    }

    pub fn start(&mut self) {
        if !self.agent.is_started() {
            self.agent.start();
        }
    }

    pub fn stop(&mut self) {
        if self.agent.is_started() {
            self.agent.stop();
        }
    }

    fn drop_file(&mut self, file: &File) {
        let dropped = self.files.enter(&mut self.agent.ledger, file);
        match file.way {
            Way::Renamed | Way::Over(_) | Way::Cut { .. } => self.drop_whole(&dropped),
            Way::InPlace { .. } | Way::Begun { .. } => {
                self.finish();
                self.await_tick();
                let (path, (first, rest)) =
                    (self.agent.spool().join(&dropped.name), dropped.bytes.split_at(dropped.first));
                // An empty file of lines is whole: such a one comes with its first lines.
                let unfinished = self.agent.spool().join(format!(".{}", dropped.name));
                let lines = dropped.name.contains(".jsonl");
                let mut begun = fs::File::create(if lines { &unfinished } else { &path }).unwrap();
                begun.write_all(first).unwrap();
                if lines {
                    fs::rename(unfinished, path).unwrap();
                }
                self.begun = Some((begun, rest.to_vec()));
                if matches!(file.way, Way::InPlace { .. }) {
                    self.finish();
                }
            }
        }
    }

    /// Drops as much of it as comes at first.
    pub fn drop_whole(&mut self, file: &SpoolFile) {
        self.agent.drop_file(&file.name, &file.bytes[..file.first]);
    }

    pub fn finish(&mut self) {
        if let Some((mut file, rest)) = self.begun.take() {
            self.await_tick();
            file.write_all(&rest).unwrap();
        }
    }

    /// Waits until whatever is written now has other time stamps than what was written before.
    fn await_tick(&mut self) {
        sleep(TICK.saturating_sub(self.wrote.elapsed()));
        self.wrote = Instant::now();
    }

    fn touch(&mut self, after: Duration) {
        let Some((name, pieces)) = self.files.last.clone() else { return };
        sleep(after);
        if let Ok(file) = fs::File::options().write(true).open(self.agent.spool().join(name)) {
            // By the file system's clock, which may be behind the machine's: the next file must not seem older.
            futimens(&file, &TimeSpec::UTIME_OMIT, &TimeSpec::UTIME_NOW).unwrap();
            self.wrote = Instant::now();
            self.files.perhaps_duplicates += pieces;
        }
    }

    /// Does the same as `retry MESSAGE_ID`.
    fn retry(&mut self, back: u8) {
        let Some(id) = self.known_id(back) else { return };
        if self.agent.ask_of(Command::Retry, &id) == EventOutcome::Requeued {
            self.put_back.insert(id.clone());
            self.retried.insert(id);
        }
    }

    /// Does the same as `discard MESSAGE_ID`.
    fn discard(&mut self, back: u8) {
        let Some(id) = self.known_id(back) else { return };
        if let EventOutcome::Discarded { .. } = self.agent.ask_of(Command::Discard, &id) {
            self.discarded.insert(id);
        }
    }

    /// What comes of it is not known: the command is carried out, or nothing of it is.
    fn ask_and_crash(&mut self, command: fn(Vec<String>) -> Command, id: Option<String>, after_us: u32) {
        if let Some(id) = id.filter(|_| self.agent.is_started()) {
            let asked = self.agent.begin_asking(&command(vec![id]));
            self.crash(after_us);
            drop(asked);
        }
    }

    /// Runs `erase`, with a crash of the agent so long after its start. What it says is then true: no file names the person.
    fn erase(&mut self, person: u8, may_return: bool, crash_after: Option<u32>) -> Checked {
        let person = format!("p{person}");
        let mut command = self.agent.command("erase");
        command.args(["--json", "--email", &address(&person)]);
        command.args(may_return.then_some("--may-return"));
        let mut erasing = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if let Some(after_us) = crash_after.filter(|_| self.agent.is_started()) {
            self.crash(after_us);
            self.start();
        }
        // Snapshots of the agent end by its clock.
        while erasing.try_wait().unwrap().is_none() {
            self.agent.advance(TICK);
            sleep(LOOK);
        }
        let output = erasing.wait_with_output().unwrap();
        let Ok(receipt) = serde_json::from_slice::<Value>(&output.stdout) else {
            return Err(TestCaseError::fail(format!("erase: {output:?}")));
        };
        // Packed files of others that are not whole cannot be looked at.
        let left = receipt["left"].as_array().unwrap();
        let is_cut = |sentence: &Value| sentence.as_str().unwrap().contains("cannot be read to its end");
        let is_done = output.status.code() == Some(if left.is_empty() { 0 } else { 75 });
        prop_assert!(is_done && left.iter().all(is_cut), "erase: {:?}", output);
        for event in receipt["events"].as_array().unwrap() {
            let text = |member: &str| event[member].as_str().unwrap().to_owned();
            self.erased.insert(text("message_id"), text("state"));
        }
        self.files.erase(&mut self.agent.ledger, &person, may_return);
        for folder in [self.agent.state(), self.agent.spool()] {
            let naming = files_with(&folder, &address(&person));
            prop_assert!(naming.is_empty(), "{} is erased and named in {:?}", person, naming);
        }
        Ok(())
    }

    fn crash(&mut self, after_us: u32) {
        if self.agent.is_started() {
            sleep(Duration::from_micros(after_us.into()));
            self.agent.kill();
            (self.may_repeat, self.may_reread) = (true, true);
        }
    }

    fn known_id(&self, back: u8) -> Option<String> {
        self.files.known(&self.agent.ledger, back).and_then(|(_, event)| event.id.clone())
    }

    /// The text of the agent's panics.
    pub fn panics(&self) -> String {
        fs::read_to_string(self.agent.path("stderr")).unwrap_or_default()
    }
}

/// The files below a folder in which the text stands, or that are named so.
pub fn files_with(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if memchr::memmem::find(&fs::read(&path).unwrap_or_default(), text.as_bytes()).is_some() {
            found.push(path);
        }
    }
    found
}
