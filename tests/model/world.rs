//! Where a script is played: folders, a receiver, the agent and the books.

use super::Played;
use super::agent::{self, Process};
use super::books::{Books, Parcel};
use super::outbox::Outbox;
use super::script::{File, Step, Way, Weather};
use koala_agent::agent::disposition;
use koala_agent::clock::Timestamp;
use koala_agent::event::Event;
use koala_agent::item::Disposition;
use koala_agent::mapping::Mappings;
use koala_agent::outbox::Admin;
use koala_agent::receiver::{Options, Receiver};
use proptest::test_runner::TestCaseError;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Runtime;

/// The file system's clock ticks at least so often. A file that is written for long is kept apart from what it was by its
/// time stamps, and left alone for a while by the agent's own clock; but that one the model moves, so here its producer
/// waits.
const TICK: Duration = Duration::from_millis(11);

pub struct World {
    home: tempfile::TempDir,
    pub receiver: Receiver,
    pub books: Books,
    agent: Option<Process>,
    wall: Timestamp,
    /// A file that was only begun, and the rest of it.
    begun: Option<(fs::File, Vec<u8>)>,
    wrote: Instant,
    seen: Option<Rc<Outbox>>,
    /// Events that were put back since the outbox was last seen.
    put_back: BTreeSet<String>,
    /// A request may have been taken and its answer lost.
    pub may_repeat: bool,
    /// Ends with the world: the receiver lives in it.
    _runtime: Runtime,
}

impl World {
    /// With an agent that runs.
    pub fn new() -> World {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("spool")).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let options = Options { faults: Weather::Well.faults(), seed: Some(1), ..Options::default() };
        let receiver = runtime.block_on(Receiver::start("127.0.0.1:0".parse().unwrap(), options)).unwrap();
        let dir = home.path().display();
        let config = format!(
            "spool.dir = \"{dir}/spool\"\noutbox.path = \"{dir}/state/outbox.db\"\noutbox.min_free = \"0%\"\n\
             koala.endpoint = \"{}\"\nkoala.public_key = \"pk_test_0123456789\"\n",
            receiver.endpoint()
        );
        fs::write(home.path().join("config.toml"), config).unwrap();
        let mut world = World {
            home,
            receiver,
            books: Books::default(),
            agent: None,
            wall: Timestamp::from_system(SystemTime::now()),
            begun: None,
            wrote: Instant::now(),
            seen: None,
            put_back: BTreeSet::new(),
            may_repeat: false,
            _runtime: runtime,
        };
        world.start();
        world
    }

    /// Does the step, and looks at what the outbox shows then.
    pub fn play(&mut self, step: &Step) -> Played {
        match step {
            Step::Drop(file) => self.drop_file(file),
            Step::Finish => self.finish(),
            Step::Touch { after_us } => self.touch(Duration::from_micros((*after_us).into())),
            Step::Weather(weather) => {
                self.may_repeat |= *weather == Weather::LosesAnswers;
                self.receiver.set_faults(weather.faults());
            }
            Step::Pass { seconds } => self.pass(Duration::from_secs((*seconds).into())),
            Step::SetClock { by_seconds } => {
                self.wall = Timestamp(self.wall.0 + by_seconds * 1_000);
                if let Some(agent) = &mut self.agent {
                    agent.step(self.wall);
                }
            }
            Step::Work { ms } => sleep(Duration::from_millis((*ms).into())),
            Step::Stop => self.stop(),
            Step::Crash { after_us } => {
                if let Some(agent) = self.agent.take() {
                    sleep(Duration::from_micros((*after_us).into()));
                    agent.kill();
                    self.may_repeat = true;
                }
                return Ok(());
            }
            Step::Start => self.start(),
            Step::Retry(back) => self.retry(*back),
            Step::Discard(back) => self.discard(*back),
        }
        self.look().map(drop)
    }

    /// Reads the outbox and holds it against what was seen of it last.
    pub fn look(&mut self) -> Result<Rc<Outbox>, TestCaseError> {
        let outbox = Rc::new(Outbox::read(&self.outbox())?);
        if let Some(before) = &self.seen {
            outbox.follows(before, &self.put_back)?;
        }
        self.put_back.clear();
        self.seen = Some(outbox.clone());
        Ok(outbox)
    }

    pub fn start(&mut self) {
        let home = self.home.path();
        let (config, log, wall) = (home.join("config.toml"), self.log(), self.wall);
        self.agent.get_or_insert_with(|| Process::start(&config, &log, wall));
    }

    pub fn stop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.stop();
        }
    }

    /// Moves the clock, whether anybody looks at it or not.
    pub fn pass(&mut self, time: Duration) {
        self.wall = self.wall.plus(time);
        if let Some(agent) = &mut self.agent {
            agent.advance(time);
        }
    }

    fn drop_file(&mut self, file: &File) {
        let parcel = self.books.enter(file);
        match file.way {
            Way::Renamed | Way::Over(_) | Way::Cut { .. } => self.deliver(&parcel),
            Way::InPlace { .. } | Way::Begun { .. } => {
                self.finish();
                self.await_tick();
                let (path, (first, rest)) =
                    (self.spool().join(&parcel.name), parcel.bytes.split_at(parcel.first));
                // An empty file of lines is whole: such a one comes with its first lines.
                let aside = self.spool().join(format!(".{}", parcel.name));
                let lines = parcel.name.contains(".jsonl");
                let mut begun = fs::File::create(if lines { &aside } else { &path }).unwrap();
                begun.write_all(first).unwrap();
                if lines {
                    fs::rename(aside, path).unwrap();
                }
                self.begun = Some((begun, rest.to_vec()));
                if matches!(file.way, Way::InPlace { .. }) {
                    self.finish();
                }
            }
        }
    }

    /// As much of it as comes at first, as a producer ought to: written aside, then renamed.
    pub fn deliver(&mut self, parcel: &Parcel) {
        let aside = self.spool().join(format!(".{}", parcel.name));
        fs::write(&aside, &parcel.bytes[..parcel.first]).unwrap();
        fs::rename(aside, self.spool().join(&parcel.name)).unwrap();
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
        let Some((name, pieces)) = self.books.last.clone() else { return };
        sleep(after);
        if let Ok(file) = fs::File::options().write(true).open(self.spool().join(name)) {
            file.set_modified(SystemTime::now()).unwrap();
            self.wrote = Instant::now();
            self.books.perhaps_duplicates += pieces;
        }
    }

    /// What `retry MESSAGE_ID` does.
    fn retry(&mut self, back: u8) {
        let Some(id) = self.books.known(back).and_then(|event| event.id.clone()) else { return };
        let mut admin = self.admin();
        let Some(Ok(kept)) = admin.reader().events().retained(&id).unwrap() else { return };
        let event = Event::parse(&kept.body).unwrap();
        let now = self.wall;
        if let Disposition::Send(items) =
            disposition(&Mappings::presets(), &event, &kept.message_id, kept.spooled_at)
            && admin.requeue(&[(kept.seq, items)], now).unwrap() > 0
        {
            self.put_back.insert(id.clone());
            self.books.retried.insert(id);
        }
    }

    /// What `discard MESSAGE_ID` does.
    fn discard(&mut self, back: u8) {
        let Some(id) = self.books.known(back).and_then(|event| event.id.clone()) else { return };
        if self.admin().discard(&id, self.wall).unwrap() == Some(true) {
            self.books.discarded.insert(id);
        }
    }

    fn admin(&self) -> Admin {
        Admin::open(&agent::config(&self.home.path().join("config.toml")).outbox).unwrap()
    }

    pub fn spool(&self) -> PathBuf {
        self.home.path().join("spool")
    }

    fn outbox(&self) -> PathBuf {
        self.home.path().join("state/outbox.db")
    }

    pub fn status_file(&self) -> PathBuf {
        self.home.path().join("state/outbox.db.status.json")
    }

    fn log(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// What the agent had to complain of.
    pub fn complaints(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }
}
