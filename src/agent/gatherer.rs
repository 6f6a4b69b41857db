//! Makes requests of a person's events: reads them, maps them, puts them together. A thread of its own, so that requests
//! are made while others are sent and answered.

use super::Pulse;
use super::dispatch::Order;
use crate::clock::Clock;
use crate::event::Event;
use crate::item::Endpoint;
use crate::koala::batch::Batch;
use crate::mapping::{self, Mappings};
use crate::outbox::{Backlog, OutboxError, PendingItem, Settled};
use crate::reason::Reason;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Events of a request that is made by whoever asks for it: to wake a thread, and to be woken, takes as long. Where a
/// single event is asked for, which may decide over another, it is never late.
const MADE_HERE: usize = 2;

/// What a request is to be made of.
#[derive(Debug)]
pub struct Ask {
    /// Whose events.
    pub order: Order,
    /// Which of them, oldest first.
    pub events: Vec<i64>,
    /// The mappings in force.
    pub mappings: Arc<Mappings>,
    /// The most that they may come to, but for a single one.
    pub max_bytes: usize,
}

/// What was made of it.
#[derive(Debug)]
pub struct Made {
    /// What was asked.
    pub order: Order,
    /// By these.
    pub mappings: Arc<Mappings>,
    /// Events that are not there any more.
    pub gone: Vec<i64>,
    /// Events that the mapping in force makes no request of: they are to be settled first, to keep the order.
    pub settled: Vec<(i64, Settled)>,
    /// The request, unless none can be made.
    pub request: Option<Request>,
}

/// A request that can be sent.
#[derive(Debug)]
pub struct Request {
    /// Where to.
    pub endpoint: Endpoint,
    /// What it says.
    pub body: String,
    /// Its events.
    pub seqs: Vec<i64>,
    /// See [`crate::outbox::Settlement::seen`].
    pub seen: Option<u64>,
}

enum Work {
    Make(Ask),
    /// Read anew what comes after this.
    Renew,
    /// Give a sign of life.
    Beat,
}

type Answer = Result<Made, OutboxError>;

/// The handle to the thread, which ends after it.
pub struct Gatherer {
    /// For what is made here.
    backlog: Backlog,
    clock: Clock,
    /// What the thread reads may be older than what is known by now.
    is_behind: bool,
    work: Sender<Work>,
    made: UnboundedReceiver<Answer>,
    thread: JoinHandle<()>,
}

impl Gatherer {
    /// Starts the thread. `backlogs`: one for it, one for what is made by its owner.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(backlogs: [Backlog; 2], clock: Clock, pulse: Pulse) -> std::io::Result<Gatherer> {
        let (work, todo) = mpsc::channel();
        let (done, made) = unbounded_channel();
        let [backlog, its] = backlogs;
        let timer = clock.clone();
        let thread = std::thread::Builder::new()
            .name("gatherer".into())
            .spawn(move || run(its, &timer, &pulse, &todo, &done))?;
        Ok(Gatherer { backlog, clock, is_behind: false, work, made, thread })
    }

    /// Makes a request at once where that is sooner done than said; `None`: [`Gatherer::made`] will tell.
    ///
    /// # Errors
    /// SQLite's.
    pub fn ask(&mut self, ask: Ask) -> Result<Option<Made>, OutboxError> {
        if ask.events.len() <= MADE_HERE {
            return make(&mut self.backlog, &self.clock, ask).map(Some);
        }
        if std::mem::take(&mut self.is_behind) {
            self.tell(Work::Renew);
        }
        self.tell(Work::Make(ask));
        Ok(None)
    }

    /// What was made next; `None`: the thread has ended by a defect.
    ///
    /// # Errors
    /// SQLite's.
    pub async fn made(&mut self) -> Option<Answer> {
        self.made.recv().await
    }

    /// The pending events.
    pub fn backlog(&mut self) -> &mut Backlog {
        &mut self.backlog
    }

    /// What is asked for after this is read as the outbox is by then.
    ///
    /// # Errors
    /// SQLite's.
    pub fn renew(&mut self) -> Result<(), OutboxError> {
        // The thread is not woken for it: it lets go by itself in a moment.
        self.is_behind = true;
        self.backlog.let_go()
    }

    /// Asks the thread for a sign of life.
    pub fn beat(&self) {
        self.tell(Work::Beat);
    }

    /// Lets go of what is being made. Blocks until the thread has ended, which a disk that hangs may put off for ever.
    pub fn stop(self) {
        let Gatherer { backlog, work, made, thread, .. } = self;
        drop((backlog, work, made));
        // A panic has been logged by the panic hook.
        let _ = thread.join();
    }

    /// That the thread has ended is noticed where its answer is awaited.
    fn tell(&self, work: Work) {
        let _ = self.work.send(work);
    }
}

fn run(
    mut backlog: Backlog,
    clock: &Clock,
    pulse: &Pulse,
    todo: &Receiver<Work>,
    done: &UnboundedSender<Answer>,
) {
    loop {
        let next = match backlog.held_until() {
            Some(until) => todo.recv_timeout(until.saturating_sub(clock.mono())),
            None => todo.recv().map_err(RecvTimeoutError::from),
        };
        pulse.beat();
        let answer = match next {
            Ok(Work::Make(ask)) => Some(make(&mut backlog, clock, ask)),
            Ok(Work::Beat) => None,
            Ok(Work::Renew) | Err(RecvTimeoutError::Timeout) => backlog.let_go().err().map(Err),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if answer.is_some_and(|answer| done.send(answer).is_err()) {
            return;
        }
    }
}

fn make(backlog: &mut Backlog, clock: &Clock, ask: Ask) -> Answer {
    let mut draft = Draft::new(&ask.mappings, ask.max_bytes);
    let read = backlog.gather(&ask.events, clock.mono(), |item| draft.push(item))?;
    let Draft { batch, seqs, settled, are_alone, .. } = draft;
    let seen = are_alone.then_some(read.seen);
    let request = batch.map(|batch| Request { endpoint: batch.endpoint(), body: batch.body(), seqs, seen });
    Ok(Made { order: ask.order, mappings: ask.mappings, gone: read.gone, settled, request })
}

/// One request, as it is made of a person's events, oldest first.
struct Draft<'a> {
    mappings: &'a Mappings,
    max_bytes: usize,
    batch: Option<Batch>,
    seqs: Vec<i64>,
    /// Each is all that is made of its event.
    are_alone: bool,
    settled: Vec<(i64, Settled)>,
}

impl<'a> Draft<'a> {
    fn new(mappings: &'a Mappings, max_bytes: usize) -> Draft<'a> {
        Draft { mappings, max_bytes, batch: None, seqs: Vec::new(), are_alone: true, settled: Vec::new() }
    }

    /// Takes the event in. `false`: it does not fit, and the request ends before it.
    fn push(&mut self, event: &PendingItem<'_>) -> bool {
        let item = match mapped(self.mappings, event) {
            mapping::Outcome::Send(item) => *item,
            mapping::Outcome::Skip(reason) => {
                self.settled.push((event.seq, Settled::Skipped(reason)));
                return true;
            }
            mapping::Outcome::Invalid(reason) => {
                self.settled.push((event.seq, Settled::Failed(reason)));
                return true;
            }
        };
        let fits = match &mut self.batch {
            None => {
                self.batch = Some(Batch::new(item));
                true
            }
            Some(batch) => batch.size() + item.body.len() <= self.max_bytes && batch.push(item).is_ok(),
        };
        if fits {
            self.seqs.push(event.seq);
            self.are_alone &= event.is_alone;
        }
        fits
    }
}

fn mapped(mappings: &Mappings, event: &PendingItem<'_>) -> mapping::Outcome {
    match Event::outline(event.body) {
        Ok(view) => mappings.map_by(event.mapping, &view, &event.message_id, event.spooled_at),
        // It was an event when it was stored, so this is a damaged row: it fails, and is kept to be looked at.
        Err(flaw) => mapping::Outcome::Invalid(Reason::new(flaw.code, flaw.text)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::Take;
    use super::*;
    use crate::item::Lane;
    use crate::outbox::fixture::{self, to_send};
    use crate::outbox::{Appended, NewEvent, Outbox, Reader};
    use std::time::Duration;

    const LANE: Lane = Lane(1);

    fn event(id: String) -> NewEvent {
        let body = format!(r#"{{"type":"track","event":"{id}","properties":{{"email":"ana@acme.dev"}}}}"#);
        NewEvent { fate: to_send(LANE, "ana@acme.dev"), ..fixture::event(id, body) }
    }

    #[tokio::test]
    async fn what_is_asked_for_after_a_commit_is_made_of_it_here_and_on_the_thread() {
        let dir = tempfile::tempdir().unwrap();
        let settings = fixture::settings(dir.path());
        let (clock, pulse) = (Clock::system(), Pulse::default());
        let outbox = Outbox::open(&settings, clock.clone()).unwrap();
        let backlog =
            || Backlog::new(Reader::beside(&settings.path).unwrap(), outbox.writer.gauge()).unwrap();
        let mut gatherer = Gatherer::start([backlog(), backlog()], clock, pulse.clone()).unwrap();
        let mappings = Arc::new(Mappings::presets());

        for round in 0..40 {
            let events: Vec<NewEvent> = (0..3).map(|n| event(format!("{round}-{n}"))).collect();
            let stored = outbox.writer.append(events, vec![]).wait().await.unwrap();
            let Appended::Stored { waiting, .. } = stored else { panic!("{stored:?}") };
            let seqs: Vec<i64> = waiting.items.iter().map(|(seq, _)| *seq).collect();
            gatherer.renew().unwrap();
            for some in [&seqs[..1], &seqs[..MADE_HERE], &seqs] {
                let ask = Ask {
                    order: Order::of(LANE, Take::First(some.len())),
                    events: some.to_vec(),
                    mappings: mappings.clone(),
                    max_bytes: 10_000,
                };
                let at_once = gatherer.ask(ask).unwrap();
                assert_eq!(at_once.is_some(), some.len() <= MADE_HERE);
                let made = match at_once {
                    Some(made) => made,
                    None => gatherer.made().await.unwrap().unwrap(),
                };
                assert_eq!(made.gone, Vec::<i64>::new(), "round {round}");
                let request = made.request.unwrap();
                assert_eq!(request.seqs, some);
                let places: Vec<_> = (0..some.len())
                    .map(|n| request.body.find(&format!("\"event\":\"{round}-{n}\"")))
                    .collect();
                assert!(places.is_sorted() && places.iter().all(Option::is_some), "{}", request.body);
            }
        }

        let beats = pulse.beats();
        gatherer.beat();
        let began = std::time::Instant::now();
        while pulse.beats() == beats {
            assert!(began.elapsed() < Duration::from_secs(60), "no sign of life");
            tokio::task::yield_now().await;
        }
        gatherer.stop();
        outbox.close();
    }
}
