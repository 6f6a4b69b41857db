//! The run of a script: the agent in a process of its own, its files, and the ledger.

use super::Checked;
use super::files::{Files, SpoolFile};
use super::outbox::Outbox;
use super::script::{File, Step, Way, Weather};
use crate::common::agent::TestAgent;
use koala_agent::agent::disposition;
use koala_agent::clock::Timestamp;
use koala_agent::event::Event;
use koala_agent::item::Disposition;
use koala_agent::mapping::Mappings;
use koala_agent::outbox::Admin;
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use proptest::test_runner::TestCaseError;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::rc::Rc;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The file system's clock ticks at least so often. A file that is written for long is kept apart from what it was by its
/// time stamps, and left alone for a while by the agent's own clock; but that one the model moves, so here its producer
/// waits.
const TICK: Duration = Duration::from_millis(11);

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
                if self.agent.is_started() {
                    sleep(Duration::from_micros((*after_us).into()));
                    self.agent.kill();
                    (self.may_repeat, self.may_reread) = (true, true);
                }
                return Ok(());
            }
            Step::Start => self.start(),
            Step::Retry(back) => self.retry(*back),
            Step::Discard(back) => self.discard(*back),
        }
        self.read_outbox().map(drop)
    }

    /// Reads the outbox, and checks it against what was read last.
    pub fn read_outbox(&mut self) -> Result<Rc<Outbox>, TestCaseError> {
        let outbox = Rc::new(Outbox::read(&self.agent.outbox())?);
        if let Some(before) = &self.last_read {
            outbox.follows(before, &self.put_back)?;
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
        let mut admin = self.admin();
        let Some(Ok(kept)) = admin.reader().events().retained(&id).unwrap() else { return };
        let event = Event::parse(&kept.body).unwrap();
        let now = self.agent.clock.now();
        if let Disposition::Send(items) =
            disposition(&Mappings::presets(), &event, &kept.message_id, kept.spooled_at)
            && admin.requeue(&[(kept.seq, items)], now).unwrap() > 0
        {
            self.put_back.insert(id.clone());
            self.retried.insert(id);
        }
    }

    /// Does the same as `discard MESSAGE_ID`.
    fn discard(&mut self, back: u8) {
        let Some(id) = self.known_id(back) else { return };
        if self.admin().discard(&id, self.agent.clock.now()).unwrap() == Some(true) {
            self.discarded.insert(id);
        }
    }

    fn known_id(&self, back: u8) -> Option<String> {
        self.files.known(&self.agent.ledger, back).and_then(|(_, event)| event.id.clone())
    }

    fn admin(&self) -> Admin {
        Admin::open(&self.agent.config().outbox).unwrap()
    }

    /// The text of the agent's panics.
    pub fn panics(&self) -> String {
        fs::read_to_string(self.agent.path("stderr")).unwrap_or_default()
    }
}
