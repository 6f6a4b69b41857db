//! The lines on their way to stderr.
//!
//! A caller never waits for stderr and never sees an error of it: lines go through a bounded queue to a thread of their
//! own, and a line that finds the queue full, or that cannot be written, is dropped and counted. The count is logged as
//! soon as writing works again.
//!
//! Writing directly, as usual, makes the log a part that everything depends on: a full disk, a pipe whose reader stands
//! still or a hanging journal would stop whichever loop has something to say. The writer of the crate tracing-appender
//! is not used: it bounds the lines but not their bytes, and it does not say what it has dropped.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use tracing_subscriber::fmt::MakeWriter;

/// The bytes of lines that may wait: thousands of ordinary lines, and little of the agent's memory.
const MAX_QUEUED_BYTES: usize = 256 << 10;
/// The interval at which a failed log is tried again while there is nothing to write but the number of dropped lines.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// The pause before the next try where stderr is set to non-blocking and its reader is slow.
const NONBLOCKING_PAUSE: Duration = Duration::from_millis(20);

/// The lines that this process has dropped.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// The number of log lines that this process has dropped, because stderr could not be written or stood still.
pub fn lines_dropped() -> u64 {
    DROPPED.load(Relaxed)
}

/// The queue. Clones share it.
#[derive(Clone, Default)]
pub(super) struct LogQueue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified after each change of the state.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The dropped lines whose number has not been logged yet.
    untold: u64,
    /// Whether a line has left the queue that may not be written yet.
    is_writing: bool,
}

/// The thread's next task.
enum Task {
    Write(Vec<u8>),
    /// Log that so many lines were dropped.
    Tell(u64),
}

impl LogQueue {
    /// Starts the thread that writes the lines to `out`. `format` makes a whole line of a warning of the log's own.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(
        &self,
        out: impl Write + Send + 'static,
        format: impl Fn(&str) -> Vec<u8> + Send + 'static,
    ) -> io::Result<()> {
        let queue = self.clone();
        let run = move || queue.run(LineWriter { out, is_mid_line: false }, format);
        thread::Builder::new().name("log".into()).spawn(run).map(drop)
    }

    /// Waits until all lines are written, for as long as `timeout` at most.
    pub fn flush(&self, timeout: Duration) {
        let is_busy = |state: &mut State| state.is_writing || !state.lines.is_empty();
        // Lines that are still there were told to nobody, and nobody is left who could be told so.
        drop(self.0.changed.wait_timeout_while(self.state(), timeout, is_busy));
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.state();
        if state.bytes + line.len() > MAX_QUEUED_BYTES {
            state.drop_lines(1);
        } else {
            state.bytes += line.len();
            state.lines.push_back(line.to_vec());
        }
        drop(state);
        self.0.changed.notify_all();
    }

    fn run(&self, mut out: LineWriter<impl Write>, format: impl Fn(&str) -> Vec<u8>) {
        // Why the last lines were dropped, until that is logged.
        let mut reason: Option<String> = None;
        let mut is_failing = false;
        loop {
            let (line, told) = match self.next(is_failing) {
                Task::Write(line) => (line, 0),
                Task::Tell(dropped) => {
                    let lines = if dropped == 1 { "line was" } else { "lines were" };
                    let why = reason.as_deref().unwrap_or("its reader stood still");
                    let text = format!("{dropped} log {lines} dropped: stderr could not be written ({why})");
                    (format(&text), dropped)
                }
            };
            let written = out.write_line(&line);
            is_failing = written.is_err();
            match written {
                Ok(()) if told > 0 => {
                    self.state().untold -= told;
                    reason = None;
                }
                Ok(()) => {}
                Err(e) => {
                    reason = Some(e.kind().to_string());
                    if told == 0 {
                        self.state().drop_lines(1);
                    }
                }
            }
        }
    }

    /// Waits for the next task. The number of dropped lines is told where the gap is: behind the lines before it.
    fn next(&self, is_failing: bool) -> Task {
        let mut state = self.state();
        state.is_writing = false;
        self.0.changed.notify_all();
        let mut has_waited = false;
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len();
                state.is_writing = true;
                return Task::Write(line);
            }
            if state.untold > 0 && (has_waited || !is_failing) {
                state.is_writing = true;
                return Task::Tell(state.untold);
            }
            state = if state.untold > 0 {
                let waited = self.0.changed.wait_timeout(state, RETRY_INTERVAL);
                let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                has_waited = timeout.timed_out();
                state
            } else {
                self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn drop_lines(&mut self, lines: u64) {
        self.untold += lines;
        DROPPED.fetch_add(lines, Relaxed);
    }
}

/// The subscriber writes each line with one call. An error would make it panic, as it reports one with a macro that panics
/// where stderr cannot be written.
impl Write for &LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = &'a LogQueue;

    fn make_writer(&'a self) -> &'a LogQueue {
        self
    }
}

/// Writes whole lines: the rest of one that failed in the middle is ended before the next.
struct LineWriter<W> {
    out: W,
    is_mid_line: bool,
}

impl<W: Write> LineWriter<W> {
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_mid_line {
            self.write_all(b"\n")?;
            self.is_mid_line = false;
        }
        self.write_all(line)
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.out.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    bytes = &bytes[n..];
                    self.is_mid_line = !bytes.is_empty();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(NONBLOCKING_PAUSE),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// An output whose writes the test answers: so many bytes are taken, or an error.
    struct Answered {
        answers: Receiver<Result<usize, ErrorKind>>,
        written: Sender<String>,
    }

    impl Write for Answered {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // The output of a test that has ended takes everything.
            let n = self.answers.recv().unwrap_or(Ok(usize::MAX))?.min(bytes.len());
            let _ = self.written.send(String::from_utf8_lossy(&bytes[..n]).into_owned());
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Test {
        queue: LogQueue,
        answers: Sender<Result<usize, ErrorKind>>,
        written: Receiver<String>,
    }

    fn start() -> Test {
        let (queue, (answers, answered), (wrote, written)) = (LogQueue::default(), channel(), channel());
        let out = Answered { answers: answered, written: wrote };
        queue.start(out, |text| format!("{text}\n").into_bytes()).unwrap();
        Test { queue, answers, written }
    }

    impl Test {
        fn answers(&self, answers: impl IntoIterator<Item = Result<usize, ErrorKind>>) {
            answers.into_iter().for_each(|answer| self.answers.send(answer).unwrap());
        }

        /// The next pieces that are written, joined.
        fn written(&self, pieces: usize) -> String {
            (0..pieces).map(|_| self.written.recv().unwrap()).collect()
        }
    }

    #[test]
    fn a_line_that_cannot_be_written_is_dropped_and_told_of_behind_the_next_that_can() {
        let test = start();
        test.answers([Err(ErrorKind::StorageFull), Err(ErrorKind::BrokenPipe), Ok(99), Ok(999)]);
        ["a\n", "b\n", "c\n"].iter().for_each(|line| test.queue.push(line.as_bytes()));
        assert_eq!(
            test.written(2),
            "c\n2 log lines were dropped: stderr could not be written (broken pipe)\n"
        );
    }

    #[test]
    fn a_line_that_failed_in_its_middle_is_ended_before_the_next() {
        let test = start();
        test.answers([Ok(2), Err(ErrorKind::StorageFull), Ok(1), Ok(99), Ok(999)]);
        ["abcd\n", "e\n"].iter().for_each(|line| test.queue.push(line.as_bytes()));
        let told = "1 log line was dropped: stderr could not be written (no storage space)\n";
        assert_eq!(test.written(4), format!("ab\ne\n{told}"));
    }

    #[test]
    fn a_caller_never_waits_for_an_output_that_stands_still() {
        let test = start();
        let line = format!("{}\n", "x".repeat(999));
        // The first line may or may not have left the queue before it is full.
        let fits = MAX_QUEUED_BYTES / line.len();
        (0..fits + 11).for_each(|_| test.queue.push(line.as_bytes()));
        test.queue.flush(Duration::from_millis(1));
        test.answers(std::iter::repeat_n(Ok(usize::MAX), fits + 2));
        let told = (0..fits + 2).map(|_| test.written.recv().unwrap()).find(|line| !line.starts_with('x'));
        let told = told.unwrap();
        assert!(
            told.ends_with(" log lines were dropped: stderr could not be written (its reader stood still)\n")
        );
        assert!(told.starts_with("10 ") || told.starts_with("11 "), "{told}");
    }
}
