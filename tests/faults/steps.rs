//! The wall clock steps in the midst of a wait: nothing panics, no wait is skipped, and none outlasts its longest.
//! Hours pass on a clock that the test owns.

use super::stage::{Figures, Played, Scale};
use crate::common::world::{World, names, track};
use koala_agent::clock::Timestamp;
use koala_agent::receiver::Faults;
use koala_agent::status::DestinationState::{Backoff, Refused};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::time::{Duration, SystemTime};

const DAY: i64 = 86_400_000;
const STEPS: [i64; 3] = [DAY, -DAY, -3_652 * DAY];
const SECOND: Duration = Duration::from_secs(1);
/// A round of an intake that looks every 100 ms, several times over.
const ROUNDS: Duration = Duration::from_millis(400);

/// A world in a wait, and what it has dropped.
struct Wait {
    world: World,
    dropped: BTreeSet<String>,
}

/// Every wait, with every step of the clock in it.
pub fn in_every_wait(_: &Scale) -> Played {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let waits: [&(dyn Fn(i64) -> Figures + Sync); 7] = [
        &|by| runtime.block_on(backoff(by)),
        &|by| runtime.block_on(refused(by)),
        &|by| runtime.block_on(retry_after(by)),
        &|by| runtime.block_on(retry_after_over_a_restart(by)),
        &|by| runtime.block_on(settle(by)),
        &|by| runtime.block_on(incomplete_after(by)),
        &|by| runtime.block_on(keep(by)),
    ];
    let mut figures = Figures::default();
    std::thread::scope(|scope| {
        let playing = waits.map(|wait| scope.spawn(move || STEPS.map(wait)));
        for played in playing {
            let played = played.join().unwrap_or_else(|why| std::panic::resume_unwind(why));
            played.into_iter().for_each(|round| figures.add(round));
        }
    });
    figures.into()
}

async fn backoff(by: i64) -> Figures {
    let wait = Wait::asked(Faults { status: Some(503), ..Faults::default() }).await;
    // Until the waits are the longest.
    wait.world.pass(Duration::from_secs(300), 2 * SECOND).await;
    assert_eq!(wait.world.status().destination.state, Backoff);
    wait.step(by);
    wait.world.receiver.set_faults(Faults::default());
    wait.world.pass(Duration::from_secs(60), SECOND).await;
    wait.end().await
}

async fn refused(by: i64) -> Figures {
    let wait = Wait::asked(Faults { status: Some(401), ..Faults::default() }).await;
    wait.world.until("it refuses", |world| world.status().destination.state == Refused).await;
    wait.step(by);
    wait.world.receiver.set_faults(Faults::default());
    wait.not_asked_for(Duration::from_secs(59)).await;
    // A tenth of the minute is jitter.
    wait.world.pass(Duration::from_secs(8), SECOND).await;
    wait.end().await
}

/// A receiver that asks for ten minutes.
const PAUSE: Duration = Duration::from_secs(600);

async fn paused() -> Wait {
    let faults = Faults { status: Some(429), retry_after: Some("600".into()), ..Faults::default() };
    let wait = Wait::asked(faults).await;
    wait.world.until("it backs off", |world| world.status().destination.state == Backoff).await;
    wait.world.receiver.set_faults(Faults::default());
    wait
}

async fn retry_after(by: i64) -> Figures {
    let wait = paused().await;
    wait.step(by);
    wait.not_asked_for(PAUSE - SECOND).await;
    wait.world.pass(2 * SECOND, SECOND).await;
    wait.end().await
}

async fn retry_after_over_a_restart(by: i64) -> Figures {
    let mut wait = paused().await;
    wait.world.stop().await;
    wait.step(by);
    wait.world.start().await;
    if by < 0 {
        // The pause was kept as a time of the wall clock; nobody can tell how much of it is over.
        wait.not_asked_for(PAUSE - SECOND).await;
    }
    wait.world.pass(Duration::from_secs(3_601), 20 * SECOND).await;
    wait.end().await
}

/// A file that no event has announced as finished.
async fn settle(by: i64) -> Figures {
    let mut wait = Wait::looking().await;
    wait.world.clock.step(Timestamp::from_system(SystemTime::now()));
    let mut file = File::create(wait.world.spool().join("young.json")).unwrap();
    file.write_all(track("young", "ana@acme.dev").as_bytes()).unwrap();
    wait.dropped.insert("young".into());
    wait.world.until("it is seen", |world| world.status().spool.waiting_files == 1).await;
    wait.step(by);
    if by < 0 {
        tokio::time::sleep(ROUNDS).await;
        assert_eq!(wait.world.status().spool.waiting_files, 1, "it was not left to settle");
    }
    wait.world.pass(2 * SECOND, SECOND).await;
    let figures = wait.end().await;
    drop(file);
    figures
}

/// A document that ends too early.
async fn incomplete_after(by: i64) -> Figures {
    let mut wait = Wait::looking().await;
    wait.world.drop_file("cut.json", r#"{"messageId":"cut","#);
    wait.dropped.insert("cut".into());
    wait.world.until("it is seen", |world| world.status().spool.waiting_files == 1).await;
    tokio::time::sleep(ROUNDS).await;
    wait.step(by);
    wait.world.pass(59 * SECOND, SECOND).await;
    tokio::time::sleep(ROUNDS).await;
    assert_eq!(wait.world.status().spool.rejected_files, 0, "it was not left to grow whole");
    wait.world.pass(2 * SECOND, SECOND).await;
    wait.world.until("it is set aside", |world| world.status().spool.rejected_files == 1).await;
    wait.end().await
}

/// What is remembered for a time: not forgotten before, though the clock has stepped, and forgotten after.
async fn keep(by: i64) -> Figures {
    let mut wait = Wait::looking().await;
    for state in ["delivered", "skipped", "failed"] {
        wait.world.set(&format!("outbox.keep_{state} = \"2d\""));
    }
    wait.world.stop().await;
    wait.world.start().await;
    wait.track("taken").await;
    wait.world.drop_file("aside.json", r#"{"messageId":"aside"}}"#);
    wait.dropped.insert("aside".into());
    wait.world.drop_file("skipped.json", r#"{"type":"page","messageId":"skipped"}"#);
    wait.world
        .drop_file("failed.json", r#"{"type":"track","messageId":"failed","properties":{"email":"x"}}"#);
    let remembered = |world: &World| {
        let status = world.status();
        let outbox = status.outbox;
        [outbox.delivered, outbox.skipped, outbox.failed, status.spool.rejected_files]
    };
    wait.world.until("each has its state", |world| remembered(world) == [1; 4]).await;
    wait.step(by);
    // House is kept every half minute.
    wait.world.pass(35 * SECOND, SECOND).await;
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(remembered(&wait.world), [1; 4], "forgotten by a step of the clock");
    wait.world.drop_file("again.json", track("taken", "ana@acme.dev"));
    wait.world.until("it is known", |world| world.status().spool.duplicates == 1).await;
    let figures = wait.balance();
    wait.step(3_660 * DAY);
    wait.world.pass(35 * SECOND, SECOND).await;
    wait.world.until("all is forgotten", |world| remembered(world) == [0; 4]).await;
    wait.world.stop().await;
    figures
}

impl Wait {
    /// The receiver, with these faults, has been asked once.
    async fn asked(faults: Faults) -> Wait {
        let mut wait = Wait { world: World::manual(faults).await, dropped: BTreeSet::new() };
        wait.track("asked").await;
        wait.world.start().await;
        wait.world.until("it was asked", |world| world.receiver.stats().requests == 1).await;
        wait
    }

    /// An intake that looks at the folder again and again; its thread waits in real time.
    async fn looking() -> Wait {
        let mut wait = Wait { world: World::manual(Faults::default()).await, dropped: BTreeSet::new() };
        wait.world.set("spool.scan_interval = \"100ms\"");
        wait.world.start().await;
        wait
    }

    async fn track(&mut self, id: &str) {
        self.world.track(id, "ana@acme.dev");
        self.dropped.insert(id.to_owned());
    }

    /// The wall clock steps by so many milliseconds.
    fn step(&self, by: i64) {
        let clock = &self.world.clock;
        clock.step(Timestamp(clock.now().0 + by));
    }

    async fn not_asked_for(&self, time: Duration) {
        let before = self.world.receiver.stats().requests;
        self.world.pass(time, 5 * SECOND).await;
        assert_eq!(self.world.receiver.stats().requests, before, "a wait was skipped");
    }

    /// Waits until all that was dropped is delivered or set aside, with the clock as it stands.
    async fn end(mut self) -> Figures {
        let all = self.dropped.len();
        self.world
            .until("all has come in its time", |world| {
                let status = world.status();
                world.receiver.stats().held + status.spool.rejected_files as usize >= all
                    && status.outbox.pending == 0
            })
            .await;
        self.world.stop().await;
        self.balance()
    }

    fn balance(&self) -> Figures {
        let held: BTreeSet<String> =
            self.world.receiver.events().iter().map(|event| event.message_id.to_string()).collect();
        let aside = names(&self.world.spool().join("rejected"));
        let lost = self.dropped.iter().filter(|id| {
            !held.contains(*id) && !aside.iter().any(|name| name.strip_suffix(".json") == Some(id.as_str()))
        });
        Figures {
            rounds: 1,
            events: self.dropped.len() as u64,
            lost: lost.count() as u64,
            repeated: self.world.receiver.stats().repeats,
            doubled: held.difference(&self.dropped).count() as u64,
            ..Figures::default()
        }
    }
}
