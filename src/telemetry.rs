//! The log. Under systemd a line begins with its priority and has no time, since the journal records both. On a terminal
//! it has the time, and the level in colour.
//!
//! The normal level reports changes of state, not single requests. No body of an event, no email and no key is logged.
//!
//! Whatever is wrong with stderr, nothing waits for it and nothing fails by it: see `log_queue`.

mod log_queue;

pub use log_queue::lines_dropped;

use crate::clock::Timestamp;
use log_queue::LogQueue;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter, Subscriber as Fmt};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

/// The longest wait for the last lines at the end of the process. What systemd gives a stopping agent is nearly used up
/// by then.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(300);

/// The log of this process. When it is dropped, the last lines are written as far as stderr takes them soon.
pub struct Log(LogQueue);

impl Drop for Log {
    fn drop(&mut self) {
        self.0.flush(FLUSH_TIMEOUT);
    }
}

/// Starts the log of this process, on stderr. `verbose` adds the debug level.
///
/// # Errors
/// The system has no more threads.
pub fn start(verbose: bool) -> io::Result<Log> {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some() && !io::stderr().is_terminal();
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let format = LineFormat { journal, colour };
    let queue = LogQueue::default();
    queue.start(Stderr, move |text| format.line(Level::WARN, text).into_bytes())?;
    // An error means that a log has been started already.
    let _ = tracing::subscriber::set_global_default(subscriber(verbose, format, queue.clone()));
    Ok(Log(queue))
}

/// Stderr without the lock of the standard library, which a write that stands still would keep from everybody else.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(io::stderr().as_fd(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn subscriber<W>(verbose: bool, format: LineFormat, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let level = if verbose { Level::DEBUG } else { Level::INFO };
    let log = Fmt::builder().with_max_level(level).with_writer(writer).event_format(format).finish();
    // h2 logs the text with which a receiver ends a connection, which may repeat anything that was sent to it, and warns
    // of frames without any limit of their rate.
    log.with(Targets::new().with_default(level).with_target("h2", LevelFilter::OFF))
}

#[derive(Clone, Copy)]
struct LineFormat {
    journal: bool,
    colour: bool,
}

impl LineFormat {
    /// Writes what stands before the text of a line.
    fn write_prefix(self, out: &mut impl fmt::Write, level: Level) -> fmt::Result {
        // From sd-daemon(3).
        let (priority, name, colour) = match level {
            Level::ERROR => (3, "error", "31"),
            Level::WARN => (4, "warning", "33"),
            Level::INFO => (6, "info", "32"),
            _ => (7, "debug", "2"),
        };
        let now = Timestamp::from_system(SystemTime::now());
        if self.journal {
            write!(out, "<{priority}>")
        } else if self.colour {
            write!(out, "\x1b[2m{now}\x1b[0m \x1b[{colour}m{name}\x1b[0m ")
        } else {
            write!(out, "{now} {name} ")
        }
    }

    /// A whole line.
    fn line(self, level: Level, text: &str) -> String {
        let mut line = String::new();
        // A text can always be written into memory.
        let _ = self.write_prefix(&mut line, level);
        line + text + "\n"
    }
}

impl<S, N> FormatEvent<S, N> for LineFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        self.write_prefix(&mut writer, *event.metadata().level())?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_receiver_that_ends_a_connection_is_not_logged() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let written = file.reopen().unwrap();
        let log = subscriber(true, LineFormat { journal: true, colour: false }, written);
        tracing::subscriber::with_default(log, || {
            tracing::debug!("told");
            tracing::debug!(target: "h2::codec::framed_read", "received GOAWAY");
            tracing::warn!(target: "h2::proto::ping_pong", "received PING");
        });
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "<7>told\n");
    }
}
