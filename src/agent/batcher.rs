//! Builds requests from the pending events of one person: reads the events, maps them, and puts the items together. A
//! thread of its own builds large requests, so that requests are built while others are sent and answered.

use super::error::StartError;
use super::heartbeat::Heartbeat;
use super::request_log::RequestLine;
use super::scheduler::BatchPlan;
use crate::clock::Clock;
use crate::event::Event;
use crate::item::{Disposition, Endpoint, Item};
use crate::koala::batch::Batch;
use crate::mapping::Mappings;
use crate::outbox::{OutboxError, PendingItem, QueueReader, Reader, Settled, Writer};
use crate::reason::Reason;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Requests of at most this many events are built by the caller: a hand-off to the thread and back would take as long.
/// The request of a single event, which may decide about another event, is then never late.
const INLINE_EVENTS: usize = 2;

/// A request to build.
#[derive(Debug)]
pub struct BatchJob {
    pub plan: BatchPlan,
    /// The events of the plan, oldest first.
    pub events: Vec<i64>,
    pub mappings: Arc<Mappings>,
    /// The most bytes of the items together; a single item may be larger.
    pub max_bytes: usize,
}

/// The result of a job.
#[derive(Debug)]
pub struct BuiltBatch {
    pub plan: BatchPlan,
    /// The mappings by which it was built.
    pub mappings: Arc<Mappings>,
    /// Events that are not pending any more.
    pub gone: Vec<i64>,
    /// Events of which the mappings make no request. They are settled before the request is sent, to keep the order.
    pub settled: Vec<(i64, Settled)>,
    /// The request, unless no event is left for one.
    pub request: Option<BuiltRequest>,
}

/// A request that can be sent.
#[derive(Debug)]
pub struct BuiltRequest {
    pub endpoint: Endpoint,
    pub body: String,
    pub seqs: Vec<i64>,
    /// See [`crate::outbox::Settlement::are_alone`].
    pub are_alone: bool,
    /// The request's line in the log, if it gets one.
    pub line: Option<RequestLine>,
}

enum Work {
    Build(BatchJob),
    /// Release the snapshot, so that later jobs read the outbox as it is by then.
    Refresh,
    Ping,
}

type BuildResult = Result<BuiltBatch, OutboxError>;

/// The handle to the thread, which ends when the handle is gone.
pub struct Batcher {
    /// Reads the events of requests that are built by the caller.
    queue: QueueReader,
    clock: Clock,
    /// Whether the thread's snapshot may be older than events that are known by now.
    needs_refresh: bool,
    work: Sender<Work>,
    built: UnboundedReceiver<BuildResult>,
    thread: JoinHandle<()>,
}

impl Batcher {
    /// Starts the thread on the outbox at `path`.
    ///
    /// # Errors
    /// The outbox cannot be read, or the system has no more threads.
    pub fn start(
        path: &Path,
        writer: &Writer,
        clock: Clock,
        heartbeat: Heartbeat,
    ) -> Result<Batcher, StartError> {
        let open_queue = || QueueReader::new(Reader::open_in_process(path)?, writer.stats());
        let (queue, threads_queue) = (open_queue()?, open_queue()?);
        let (work, jobs) = mpsc::channel();
        let (results, built) = unbounded_channel();
        let threads_clock = clock.clone();
        let thread = std::thread::Builder::new()
            .name("batcher".into())
            .spawn(move || run(threads_queue, &threads_clock, &heartbeat, &jobs, &results))
            .map_err(StartError::Thread)?;
        Ok(Batcher { queue, clock, needs_refresh: false, work, built, thread })
    }

    /// Builds a small request at once. A large one is built by the thread (`None`), and [`Batcher::built`] returns it.
    ///
    /// # Errors
    /// SQLite's.
    pub fn submit(&mut self, job: BatchJob) -> Result<Option<BuiltBatch>, OutboxError> {
        if job.events.len() <= INLINE_EVENTS {
            return build(&mut self.queue, &self.clock, job).map(Some);
        }
        if std::mem::take(&mut self.needs_refresh) {
            self.send(Work::Refresh);
        }
        self.send(Work::Build(job));
        Ok(None)
    }

    /// The next request that the thread has built; `None`: the thread has ended by a defect.
    ///
    /// # Errors
    /// SQLite's.
    pub async fn built(&mut self) -> Option<BuildResult> {
        self.built.recv().await
    }

    pub fn queue(&mut self) -> &mut QueueReader {
        &mut self.queue
    }

    /// Jobs submitted after this read the outbox as it is by then.
    ///
    /// # Errors
    /// SQLite's.
    pub fn refresh(&mut self) -> Result<(), OutboxError> {
        // The thread learns of it with the next job; until then it releases its snapshot by itself in a moment.
        self.needs_refresh = true;
        self.queue.release()
    }

    pub fn ping(&self) {
        self.send(Work::Ping);
    }

    /// Drops what is being built. Blocks until the thread has ended, which is never if the disk hangs.
    pub fn stop(self) {
        let Batcher { queue, work, built, thread, .. } = self;
        drop((queue, work, built));
        // The panic hook has logged a panic.
        let _ = thread.join();
    }

    fn send(&self, work: Work) {
        // The caller notices in `built` that the thread has ended.
        let _ = self.work.send(work);
    }
}

fn run(
    mut queue: QueueReader,
    clock: &Clock,
    heartbeat: &Heartbeat,
    jobs: &Receiver<Work>,
    results: &UnboundedSender<BuildResult>,
) {
    loop {
        let next = match queue.held_until() {
            Some(until) => jobs.recv_timeout(until.saturating_sub(clock.mono())),
            None => jobs.recv().map_err(RecvTimeoutError::from),
        };
        heartbeat.tick();
        let result = match next {
            Ok(Work::Build(job)) => Some(build(&mut queue, clock, job)),
            Ok(Work::Ping) => None,
            Ok(Work::Refresh) | Err(RecvTimeoutError::Timeout) => queue.release().err().map(Err),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if result.is_some_and(|result| results.send(result).is_err()) {
            return;
        }
    }
}

fn build(queue: &mut QueueReader, clock: &Clock, job: BatchJob) -> BuildResult {
    let mut builder = BatchBuilder::new(&job.mappings, job.max_bytes);
    let gone = queue.gather(&job.events, clock.mono(), |item| builder.push(item))?;
    let BatchBuilder { batch, seqs, settled, are_alone, line, .. } = builder;
    let line = match (line, &batch) {
        (Some(line), Some(batch)) => {
            queue.reader().hash_of(batch.person().as_str())?.map(|hash| line.about(hash))
        }
        _ => None,
    };
    let request = batch.map(|batch| BuiltRequest {
        endpoint: batch.endpoint(),
        body: batch.body(),
        seqs,
        are_alone,
        line,
    });
    Ok(BuiltBatch { plan: job.plan, mappings: job.mappings, gone, settled, request })
}

/// A request to which the events of a person are added, oldest first.
struct BatchBuilder<'a> {
    mappings: &'a Mappings,
    max_bytes: usize,
    batch: Option<Batch>,
    seqs: Vec<i64>,
    /// Whether each item is the only one of its event.
    are_alone: bool,
    settled: Vec<(i64, Settled)>,
    line: Option<RequestLine>,
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
            line: None,
        }
    }

    /// Adds an event. `false`: it does not fit, and the request ends before it.
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
                self.line = RequestLine::of(item.kind.endpoint().path());
                self.batch = Some(Batch::new(item));
                true
            }
            Some(batch) => batch.size() + item.body.len() <= self.max_bytes && batch.push(item).is_ok(),
        };
        if fits {
            self.seqs.push(event.seq);
            if let Some(line) = &mut self.line {
                line.add(&event.message_id);
            }
            self.are_alone &= event.is_alone;
        }
        fits
    }
}

fn mapped(mappings: &Mappings, event: &PendingItem<'_>) -> Disposition<Box<Item>> {
    match Event::parse_shallow(event.body) {
        Ok(view) => mappings.map_by(event.mapping, &view, &event.message_id, event.spooled_at),
        // The text was an event when it was stored, so the row is damaged: it fails, which keeps it for inspection.
        Err(flaw) => Disposition::Fail(Reason::new(flaw.code, flaw.text)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scheduler::Selection;
    use super::*;
    use crate::item::OrderingKey;
    use crate::outbox::fixture::{self, to_send};
    use crate::outbox::{Appended, NewEvent, Outbox};
    use std::time::Duration;

    const KEY: OrderingKey = OrderingKey(1);

    fn event(id: String) -> NewEvent {
        let body = format!(r#"{{"type":"track","event":"{id}","properties":{{"email":"ana@acme.dev"}}}}"#);
        NewEvent { disposition: to_send(KEY, "ana@acme.dev"), ..fixture::event(id, body) }
    }

    #[tokio::test]
    async fn a_job_after_a_refresh_reads_the_last_commit_inline_and_on_the_thread() {
        let dir = tempfile::tempdir().unwrap();
        let settings = fixture::config(dir.path());
        let (clock, heartbeat) = (Clock::system(), Heartbeat::default());
        let outbox = Outbox::open(&settings, clock.clone()).unwrap();
        let mut batcher = Batcher::start(&settings.path, &outbox.writer, clock, heartbeat.clone()).unwrap();
        let mappings = Arc::new(Mappings::presets());

        for round in 0..40 {
            let events: Vec<NewEvent> = (0..3).map(|n| event(format!("{round}-{n}"))).collect();
            let stored = outbox.writer.append(events, vec![]).wait().await.unwrap();
            let Appended::Stored { enqueued, .. } = stored else { panic!("{stored:?}") };
            let seqs: Vec<i64> = enqueued.items.iter().map(|item| item.seq).collect();
            batcher.refresh().unwrap();
            for some in [&seqs[..1], &seqs[..INLINE_EVENTS], &seqs] {
                let job = BatchJob {
                    plan: BatchPlan::unscheduled(KEY, Selection::First(some.len())),
                    events: some.to_vec(),
                    mappings: mappings.clone(),
                    max_bytes: 10_000,
                };
                let inline = batcher.submit(job).unwrap();
                assert_eq!(inline.is_some(), some.len() <= INLINE_EVENTS);
                let built = match inline {
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

        let ticks = heartbeat.ticks();
        batcher.ping();
        let began = std::time::Instant::now();
        while heartbeat.ticks() == ticks {
            assert!(began.elapsed() < Duration::from_secs(60), "no tick");
            tokio::task::yield_now().await;
        }
        batcher.stop();
        outbox.close();
    }
}
