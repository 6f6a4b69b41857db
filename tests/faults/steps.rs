//! The wall clock steps in the midst of a wait: nothing panics, no wait is skipped, and none outlasts its longest.
//! Hours pass on a clock that the test owns.

use crate::common::agent::TestAgent;
use crate::common::events::track;
use crate::common::setup::names_in;
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::clock::Timestamp;
use koala_agent::receiver::Faults;
use koala_agent::status::DestinationState::{Backoff, Refused};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::time::{Duration, SystemTime};

const DAY: i64 = 86_400_000;
const STEPS: [i64; 5] = [DAY, -DAY, 400 * DAY, 3_652 * DAY, -3_652 * DAY];
const SECOND: Duration = Duration::from_secs(1);
/// A round of an intake that looks every 100 ms, several times over.
const ROUNDS: Duration = Duration::from_millis(400);

/// An agent that waits, and what was dropped.
struct Wait {
    agent: TestAgent,
    dropped: BTreeSet<String>,
}

/// Every wait, with every step of the clock in it.
pub fn in_every_wait(_: &Scale) -> Outcome {
    let waits: [fn(i64) -> Figures; 8] = [
        backoff,
        refused,
        retry_after,
        retry_after_over_a_restart,
        open_file,
        incomplete_after,
        keep,
        keep_over_a_restart,
    ];
    let mut figures = Figures::default();
    std::thread::scope(|scope| {
        let running = waits.map(|wait| scope.spawn(move || STEPS.map(wait)));
        for result in running {
            let result = result.join().unwrap_or_else(|why| std::panic::resume_unwind(why));
            result.into_iter().for_each(|round| figures.add(round));
        }
    });
    figures.into()
}

fn backoff(by: i64) -> Figures {
    let mut wait = Wait::asked(Faults { status: Some(503), ..Faults::default() });
    // Until the waits are the longest.
    wait.agent.pass(Duration::from_secs(300), 2 * SECOND);
    assert_eq!(wait.agent.status().destination.state, Backoff);
    wait.step(by);
    wait.agent.receiver.set_faults(Faults::default());
    wait.agent.pass(Duration::from_secs(60), SECOND);
    wait.end()
}

fn refused(by: i64) -> Figures {
    let mut wait = Wait::asked(Faults { status: Some(401), ..Faults::default() });
    wait.agent.until_status("it refuses", |status| status.destination.state == Refused);
    wait.agent.until("/auth was asked", |agent| {
        agent.receiver.stats().requests == 2 && agent.next_attempt_in().is_some_and(|wait| wait > 59 * SECOND)
    });
    wait.step(by);
    wait.agent.receiver.set_faults(Faults::default());
    wait.not_asked_for(Duration::from_secs(59));
    // A tenth of the minute is jitter.
    wait.agent.pass(Duration::from_secs(8), SECOND);
    wait.end()
}

/// A receiver that asks for ten minutes.
const PAUSE: Duration = Duration::from_secs(600);

fn paused() -> Wait {
    let faults = Faults { status: Some(429), retry_after: Some("600".into()), ..Faults::default() };
    let mut wait = Wait::asked(faults);
    wait.agent.until_status("it backs off", |status| status.destination.state == Backoff);
    wait.agent.receiver.set_faults(Faults::default());
    wait
}

fn retry_after(by: i64) -> Figures {
    let mut wait = paused();
    wait.step(by);
    wait.not_asked_for(PAUSE - SECOND);
    wait.agent.pass(2 * SECOND, SECOND);
    wait.end()
}

fn retry_after_over_a_restart(by: i64) -> Figures {
    let mut wait = paused();
    wait.agent.stop();
    wait.step(by);
    wait.agent.start();
    if by < 0 {
        // The pause was kept as a time of the wall clock; nobody can tell how much of it is over.
        wait.not_asked_for(PAUSE - SECOND);
    }
    wait.agent.pass(Duration::from_secs(3_601), 20 * SECOND);
    wait.end()
}

/// A file that its writer has open: whatever the clock says, it is taken when it is closed.
fn open_file(by: i64) -> Figures {
    let mut wait = Wait::looking();
    wait.agent.step_clock(Timestamp::from_system(SystemTime::now()));
    let mut file = File::create(wait.agent.spool().join("young.json")).unwrap();
    file.write_all(track("young", "ana@acme.dev").as_bytes()).unwrap();
    wait.dropped.insert("young".into());
    wait.agent.until_status("it is seen", |status| status.spool.waiting_files == Some(1));
    wait.step(by);
    wait.agent.sleep(ROUNDS);
    wait.agent.pass(10 * SECOND, SECOND);
    assert_eq!(wait.agent.status().spool.waiting_files, Some(1), "it was taken from its writer");
    drop(file);
    wait.end()
}

/// A document that ends too early.
fn incomplete_after(by: i64) -> Figures {
    let mut wait = Wait::looking();
    wait.agent.drop_file("cut.json", r#"{"messageId":"cut","#);
    wait.dropped.insert("cut".into());
    wait.agent.until_status("it is seen", |status| status.spool.waiting_files == Some(1));
    wait.agent.sleep(ROUNDS);
    wait.step(by);
    wait.agent.pass(59 * SECOND, SECOND);
    wait.agent.sleep(ROUNDS);
    assert_eq!(wait.agent.status().spool.rejected_files, Some(0), "it was not left to grow whole");
    wait.agent.pass(2 * SECOND, SECOND);
    wait.agent.until_status("it is rejected", |status| status.spool.rejected_files == Some(1));
    wait.end()
}

/// Settled events and rejected files are kept for their time, though the clock has stepped, and then forgotten.
fn keep(by: i64) -> Figures {
    let mut wait = Wait::keeping();
    wait.step(by);
    wait.keeps();
    let told = wait.agent.status().clock_step.expect("the step is told").text;
    assert!(told.contains(if by > 0 { "was set forward by" } else { "was set back by" }), "{told}");
    wait.agent.drop_file("again.json", track("taken", "ana@acme.dev"));
    wait.agent.until_status("it is known", |status| status.spool.duplicates == 1);
    let figures = wait.balance();
    wait.step(3_660 * DAY);
    wait.keeps();
    // When the time has really passed.
    wait.agent.pass(Duration::from_secs(4 * 86_400), Duration::from_secs(6 * 3_600));
    wait.agent.until("all is forgotten", |agent| {
        agent.advance(SECOND);
        Wait::kept(agent) == [0; 4]
    });
    wait.agent.stop();
    figures
}

/// The same where the clock steps while the agent does not run. That it was set forward nobody can tell from a long stop,
/// of which a day counts.
fn keep_over_a_restart(by: i64) -> Figures {
    let mut wait = Wait::keeping();
    wait.agent.stop();
    wait.step(by);
    wait.agent.start();
    wait.keeps();
    let told = wait.agent.status().clock_step.map(|step| step.text).unwrap_or_default();
    let want = match by {
        DAY => "",
        by if by > 0 => "days have passed since the agent last ran",
        _ => "the clock was set back by",
    };
    assert!(told.contains(want), "{told}");
    let figures = wait.balance();
    wait.agent.stop();
    figures
}

impl Wait {
    /// The receiver, with these faults, has been asked once.
    fn asked(faults: Faults) -> Wait {
        let mut wait = Wait { agent: TestAgent::on_manual_clock(faults), dropped: BTreeSet::new() };
        wait.track("asked");
        wait.agent.start();
        wait.agent.until("it was asked", |agent| agent.receiver.stats().requests >= 1);
        wait
    }

    /// An intake that looks at the folder again and again; its thread waits in real time.
    fn looking() -> Wait {
        let mut wait =
            Wait { agent: TestAgent::on_manual_clock(Faults::default()), dropped: BTreeSet::new() };
        wait.agent.set("spool.scan_interval = \"100ms\"");
        wait.agent.start();
        wait
    }

    /// An agent that keeps for two days one event of each state and a rejected file.
    fn keeping() -> Wait {
        let mut wait = Wait::looking();
        for state in ["delivered", "skipped", "failed"] {
            wait.agent.set(&format!("outbox.keep_{state} = \"2d\""));
        }
        wait.agent.stop();
        wait.agent.start();
        wait.track("taken");
        wait.agent.drop_file("aside.json", r#"{"messageId":"aside",}"#);
        wait.dropped.insert("aside".into());
        wait.agent.drop_file("skipped.json", r#"{"type":"page","messageId":"skipped"}"#);
        wait.agent
            .drop_file("failed.json", r#"{"type":"track","messageId":"failed","properties":{"email":"x"}}"#);
        wait.agent.until("each has its state", |agent| Wait::kept(agent) == [1; 4]);
        wait
    }

    /// What is kept: delivered, skipped and failed events, and rejected files.
    fn kept(agent: &TestAgent) -> [u64; 4] {
        let status = agent.status();
        let outbox = status.outbox;
        [outbox.delivered, outbox.skipped, outbox.failed, status.spool.rejected_files.unwrap_or(0)]
    }

    /// Nothing is forgotten by the next maintenance, which comes every half minute.
    fn keeps(&mut self) {
        self.agent.pass(35 * SECOND, SECOND);
        self.agent.sleep(2 * SECOND);
        assert_eq!(Wait::kept(&self.agent), [1; 4], "forgotten by a step of the clock");
    }

    fn track(&mut self, id: &str) {
        self.agent.drop_track(id, "ana@acme.dev");
        self.dropped.insert(id.to_owned());
    }

    /// The wall clock steps by so many milliseconds.
    fn step(&mut self, by: i64) {
        let now = self.agent.clock.now();
        self.agent.step_clock(Timestamp(now.0 + by));
    }

    fn not_asked_for(&mut self, time: Duration) {
        let before = self.agent.receiver.stats().requests;
        self.agent.pass(time, 5 * SECOND);
        assert_eq!(self.agent.receiver.stats().requests, before, "a wait was skipped");
    }

    /// Waits until all that was dropped is delivered or rejected, with the clock as it stands.
    fn end(mut self) -> Figures {
        let all = self.dropped.len();
        self.agent.until("all has come in its time", |agent| {
            let status = agent.status();
            agent.receiver.stats().held + status.spool.rejected_files.unwrap_or(0) as usize >= all
                && status.outbox.pending == 0
        });
        self.agent.stop();
        self.balance()
    }

    fn balance(&self) -> Figures {
        let held: BTreeSet<String> =
            self.agent.receiver.events().iter().map(|event| event.message_id.to_string()).collect();
        let aside = names_in(&self.agent.spool().join("rejected"));
        let lost = self.dropped.iter().filter(|id| {
            !held.contains(*id) && !aside.iter().any(|name| name.strip_suffix(".json") == Some(id.as_str()))
        });
        Figures {
            rounds: 1,
            events: self.dropped.len() as u64,
            lost: lost.count() as u64,
            repeated: self.agent.receiver.stats().repeats,
            doubled: held.difference(&self.dropped).count() as u64,
            ..Figures::default()
        }
    }
}
