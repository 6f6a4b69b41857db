//! Makes requests of a person's events: reads them, maps them, puts them together. A thread of its own, so that requests
//! are made while others are sent and answered.

use super::Heartbeat;
use super::scheduler::BatchPlan;
use crate::clock::Clock;
use crate::event::Event;
use crate::item::{Disposition, Endpoint, Item};
use crate::koala::batch::Batch;
use crate::mapping::Mappings;
use crate::outbox::{OutboxError, PendingItem, QueueReader, Settled};
use crate::reason::Reason;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Events of a request that is made by whoever asks for it: to wake a thread, and to be woken, takes as long. Where a
/// single event is asked for, which may decide over another, it is never late.
const INLINE_EVENTS: usize = 2;

/// What a request is to be made of.
#[derive(Debug)]
pub struct BatchJob {
    /// Whose events.
    pub plan: BatchPlan,
    /// Which of them, oldest first.
    pub events: Vec<i64>,
    /// The mappings in force.
    pub mappings: Arc<Mappings>,
    /// The most that they may come to, but for a single one.
    pub max_bytes: usize,
}

/// What was made of it.
#[derive(Debug)]
pub struct BuiltBatch {
    /// What was asked.
    pub plan: BatchPlan,
    /// By these.
    pub mappings: Arc<Mappings>,
    /// Events that are not there any more.
    pub gone: Vec<i64>,
    /// Events that the mapping in force makes no request of: they are to be settled first, to keep the order.
    pub settled: Vec<(i64, Settled)>,
    /// The request, unless none can be made.
    pub request: Option<BuiltRequest>,
}

/// A request that can be sent.
#[derive(Debug)]
pub struct BuiltRequest {
    /// Where to.
    pub endpoint: Endpoint,
    /// What it says.
    pub body: String,
    /// Its events.
    pub seqs: Vec<i64>,
    /// See [`crate::outbox::Settlement::read_version`].
    pub read_version: Option<u64>,
}

enum Work {
    Build(BatchJob),
    /// Read anew what comes after this.
    Refresh,
    /// Give a sign of life.
    Ping,
}

type Answer = Result<BuiltBatch, OutboxError>;

/// The handle to the thread, which ends after it.
pub struct Batcher {
    /// For what is made here.
    queue: QueueReader,
    clock: Clock,
    /// What the thread reads may be older than what is known by now.
    is_behind: bool,
    work: Sender<Work>,
    built: UnboundedReceiver<Answer>,
    thread: JoinHandle<()>,
}

impl Batcher {
    /// Starts the thread. `queues`: one for it, one for what is made by its owner.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(queues: [QueueReader; 2], clock: Clock, heartbeat: Heartbeat) -> std::io::Result<Batcher> {
        let (work, todo) = mpsc::channel();
        let (done, built) = unbounded_channel();
        let [queue, its] = queues;
        let timer = clock.clone();
        let thread = std::thread::Builder::new()
            .name("batcher".into())
            .spawn(move || run(its, &timer, &heartbeat, &todo, &done))?;
        Ok(Batcher { queue, clock, is_behind: false, work, built, thread })
    }

    /// Makes a request at once where that is sooner done than said; `None`: [`Batcher::built`] will tell.
    ///
    /// # Errors
    /// SQLite's.
    pub fn submit(&mut self, job: BatchJob) -> Result<Option<BuiltBatch>, OutboxError> {
        if job.events.len() <= INLINE_EVENTS {
            return build(&mut self.queue, &self.clock, job).map(Some);
        }
        if std::mem::take(&mut self.is_behind) {
            self.tell(Work::Refresh);
        }
        self.tell(Work::Build(job));
        Ok(None)
    }

    /// What was made next; `None`: the thread has ended by a defect.
    ///
    /// # Errors
    /// SQLite's.
    pub async fn built(&mut self) -> Option<Answer> {
        self.built.recv().await
    }

    /// The pending events.
    pub fn queue(&mut self) -> &mut QueueReader {
        &mut self.queue
    }

    /// What is asked for after this is read as the outbox is by then.
    ///
    /// # Errors
    /// SQLite's.
    pub fn refresh(&mut self) -> Result<(), OutboxError> {
        // The thread is not woken for it: it lets go by itself in a moment.
        self.is_behind = true;
        self.queue.release()
    }

    /// Asks the thread for a sign of life.
    pub fn ping(&self) {
        self.tell(Work::Ping);
    }

    /// Lets go of what is being made. Blocks until the thread has ended, which a disk that hangs may put off for ever.
    pub fn stop(self) {
        let Batcher { queue, work, built, thread, .. } = self;
        drop((queue, work, built));
        // A panic has been logged by the panic hook.
        let _ = thread.join();
    }

    /// That the thread has ended is noticed where its answer is awaited.
    fn tell(&self, work: Work) {
        let _ = self.work.send(work);
    }
}

fn run(
    mut queue: QueueReader,
    clock: &Clock,
    heartbeat: &Heartbeat,
    todo: &Receiver<Work>,
    done: &UnboundedSender<Answer>,
) {
    loop {
        let next = match queue.held_until() {
            Some(until) => todo.recv_timeout(until.saturating_sub(clock.mono())),
            None => todo.recv().map_err(RecvTimeoutError::from),
        };
        heartbeat.tick();
        let answer = match next {
            Ok(Work::Build(job)) => Some(build(&mut queue, clock, job)),
            Ok(Work::Ping) => None,
            Ok(Work::Refresh) | Err(RecvTimeoutError::Timeout) => queue.release().err().map(Err),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if answer.is_some_and(|answer| done.send(answer).is_err()) {
            return;
        }
    }
}

fn build(queue: &mut QueueReader, clock: &Clock, job: BatchJob) -> Answer {
    let mut builder = BatchBuilder::new(&job.mappings, job.max_bytes);
    let read = queue.gather(&job.events, clock.mono(), |item| builder.push(item))?;
    let BatchBuilder { batch, seqs, settled, are_alone, .. } = builder;
    let read_version = are_alone.then_some(read.read_version);
    let request = batch.map(|batch| BuiltRequest {
        endpoint: batch.endpoint(),
        body: batch.body(),
        seqs,
        read_version,
    });
    Ok(BuiltBatch { plan: job.plan, mappings: job.mappings, gone: read.gone, settled, request })
}

/// One request, as it is made of a person's events, oldest first.
struct BatchBuilder<'a> {
    mappings: &'a Mappings,
    max_bytes: usize,
    batch: Option<Batch>,
    seqs: Vec<i64>,
    /// Each is all that is made of its event.
    are_alone: bool,
    settled: Vec<(i64, Settled)>,
}

impl<'a> BatchBuilder<'a> {
    fn new(mappings: &'a Mappings, max_bytes: usize) -> BatchBuilder<'a> {
        BatchBuilder {
            mappings,
            max_bytes,
            batch: None,
            seqs: Vec::new(),
            are_alone: true,
            settled: Vec::new(),
        }
    }

    /// Takes the event in. `false`: it does not fit, and the request ends before it.
    fn push(&mut self, event: &PendingItem<'_>) -> bool {
        let item = match mapped(self.mappings, event) {
            Disposition::Send(item) => *item,
            Disposition::Skip(reason) => {
                self.settled.push((event.seq, Settled::Skipped(reason)));
                return true;
            }
            Disposition::Fail(reason) => {
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

fn mapped(mappings: &Mappings, event: &PendingItem<'_>) -> Disposition<Box<Item>> {
    match Event::parse_shallow(event.body) {
        Ok(view) => mappings.map_by(event.mapping, &view, &event.message_id, event.spooled_at),
        // It was an event when it was stored, so this is a damaged row: it fails, and is kept to be looked at.
        Err(flaw) => Disposition::Fail(Reason::new(flaw.code, flaw.text)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scheduler::Selection;
    use super::*;
    use crate::item::OrderingKey;
    use crate::outbox::fixture::{self, to_send};
    use crate::outbox::{Appended, NewEvent, Outbox, Reader};
    use std::time::Duration;

    const KEY: OrderingKey = OrderingKey(1);

    fn event(id: String) -> NewEvent {
        let body = format!(r#"{{"type":"track","event":"{id}","properties":{{"email":"ana@acme.dev"}}}}"#);
        NewEvent { disposition: to_send(KEY, "ana@acme.dev"), ..fixture::event(id, body) }
    }

    #[tokio::test]
    async fn what_is_asked_for_after_a_commit_is_made_of_it_here_and_on_the_thread() {
        let dir = tempfile::tempdir().unwrap();
        let settings = fixture::config(dir.path());
        let (clock, heartbeat) = (Clock::system(), Heartbeat::default());
        let outbox = Outbox::open(&settings, clock.clone()).unwrap();
        let queue = || {
            QueueReader::new(Reader::open_in_process(&settings.path).unwrap(), outbox.writer.stats()).unwrap()
        };
        let mut batcher = Batcher::start([queue(), queue()], clock, heartbeat.clone()).unwrap();
        let mappings = Arc::new(Mappings::presets());

        for round in 0..40 {
            let events: Vec<NewEvent> = (0..3).map(|n| event(format!("{round}-{n}"))).collect();
            let stored = outbox.writer.append(events, vec![]).wait().await.unwrap();
            let Appended::Stored { enqueued, .. } = stored else { panic!("{stored:?}") };
            let seqs: Vec<i64> = enqueued.items.iter().map(|(seq, _)| *seq).collect();
            batcher.refresh().unwrap();
            for some in [&seqs[..1], &seqs[..INLINE_EVENTS], &seqs] {
                let job = BatchJob {
                    plan: BatchPlan::of(KEY, Selection::First(some.len())),
                    events: some.to_vec(),
                    mappings: mappings.clone(),
                    max_bytes: 10_000,
                };
                let at_once = batcher.submit(job).unwrap();
                assert_eq!(at_once.is_some(), some.len() <= INLINE_EVENTS);
                let built = match at_once {
                    Some(built) => built,
                    None => batcher.built().await.unwrap().unwrap(),
                };
                assert_eq!(built.gone, Vec::<i64>::new(), "round {round}");
                let request = built.request.unwrap();
                assert_eq!(request.seqs, some);
                let places: Vec<_> = (0..some.len())
                    .map(|n| request.body.find(&format!("\"event\":\"{round}-{n}\"")))
                    .collect();
                assert!(places.is_sorted() && places.iter().all(Option::is_some), "{}", request.body);
            }
        }

        let beats = heartbeat.ticks();
        batcher.ping();
        let began = std::time::Instant::now();
        while heartbeat.ticks() == beats {
            assert!(began.elapsed() < Duration::from_secs(60), "no sign of life");
            tokio::task::yield_now().await;
        }
        batcher.stop();
        outbox.close();
    }
}
