//! The log. Under systemd a line begins with its priority and has no time, since the journal records both. On a terminal
//! it has the time, and the level in colour.
//!
//! The level `info` reports changes of state, not single requests. No body of an event, no email and no key is logged.
//!
//! The lines that programs may watch for are notices: they have a field `notice`, and koala-agent-log(7) lists all of
//! them with their fields. Other lines have no fields: each would be a promise. JSON lines were the other way: a person who
//! reads the journal would pay for them with every line.
//!
//! Whatever is wrong with stderr, nothing waits for it and nothing fails by it: see `log_queue`.

mod line_format;
mod log_limit;
mod log_queue;

pub(crate) use log_limit::LogLimiter;
pub use log_queue::lines_dropped;

use crate::config::LogLevel;
use line_format::LineFormat;
use log_queue::LogQueue;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::Duration;
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::DefaultFields;
use tracing_subscriber::fmt::{MakeWriter, Subscriber as Fmt};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;

/// The longest wait for the last lines at the end of the process. What systemd gives a stopping agent is nearly used up
/// by then.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(300);

/// The log of this process. When it is dropped, the last lines are written as far as stderr takes them soon.
pub struct Log {
    queue: LogQueue,
    filter: FilterHandle<LogQueue>,
    is_verbose: bool,
}

impl Log {
    /// Logs lines of this level and of more weight from now on. `--verbose` stays above it.
    pub fn set_level(&self, level: LogLevel) {
        if !self.is_verbose {
            // An error means that another log is in use.
            let _ = self.filter.reload(filter(level));
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.flush(FLUSH_TIMEOUT);
    }
}

/// Starts the log of this process, on stderr, at the level `info`; `is_verbose`: at `debug`, whatever the configuration says.
///
/// # Errors
/// The system has no more threads.
pub fn start(is_verbose: bool) -> io::Result<Log> {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some() && !io::stderr().is_terminal();
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let format = LineFormat { journal, colour };
    let queue = LogQueue::default();
    queue.start(Stderr, move |text| format.line(Level::WARN, text).into_bytes())?;
    let level = if is_verbose { LogLevel::Debug } else { LogLevel::default() };
    let (subscriber, filter) = subscriber(level, format, queue.clone());
    // An error means that a log has been started already.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(Log { queue, filter, is_verbose })
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

/// Writes every line that the filter lets through.
type Lines<W> = Fmt<DefaultFields, LineFormat, LevelFilter, W>;
type FilterHandle<W> = reload::Handle<Targets, Lines<W>>;

fn subscriber<W>(
    level: LogLevel,
    format: LineFormat,
    writer: W,
) -> (impl Subscriber + Send + Sync, FilterHandle<W>)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = Fmt::builder().with_max_level(Level::DEBUG).with_writer(writer).event_format(format).finish();
    let (filter, handle) = reload::Layer::new(filter(level));
    (lines.with(filter), handle)
}

/// The lines of that level and of more weight. Of libraries only warnings: at `debug` the client has several lines a request.
fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let own = env!("CARGO_CRATE_NAME");
    // h2 logs the text with which a receiver ends a connection, which may repeat anything that was sent to it, and warns
    // of frames without any limit of their rate.
    let targets = [(own, level), ("h2", LevelFilter::OFF)];
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_targets(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a log at that level has of lines of every level, before and after the level is another.
    fn logged(level: LogLevel, then: LogLevel) -> [String; 2] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let format = LineFormat { journal: true, colour: false };
        let (subscriber, filter_in_force) = subscriber(level, format, file.reopen().unwrap());
        let log_all = || {
            tracing::error!("broken");
            tracing::warn!("odd");
            tracing::info!("told");
            tracing::debug!("detailed");
            tracing::info!(target: "hyper_util::client", "a library's");
            tracing::warn!(target: "hyper_util::client", "a library's warning");
            tracing::debug!(target: "h2::codec::framed_read", "received GOAWAY");
            tracing::warn!(target: "h2::proto::ping_pong", "received PING");
        };
        tracing::subscriber::with_default(subscriber, || {
            log_all();
            let before = std::fs::read_to_string(file.path()).unwrap();
            filter_in_force.reload(filter(then)).unwrap();
            log_all();
            let both = std::fs::read_to_string(file.path()).unwrap();
            [before.clone(), both[before.len()..].to_owned()]
        })
    }

    #[test]
    fn a_level_is_in_force_at_once_and_libraries_only_warn_and_never_h2() {
        use LogLevel::*;
        let lines = |level| match level {
            Error => "<3>broken\n",
            Warning => "<3>broken\n<4>odd\n<4>a library's warning\n",
            Info => "<3>broken\n<4>odd\n<6>told\n<4>a library's warning\n",
            Debug => "<3>broken\n<4>odd\n<6>told\n<7>detailed\n<4>a library's warning\n",
        };
        for (level, then) in [(Info, Debug), (Debug, Error), (Error, Warning), (Warning, Info)] {
            assert_eq!(logged(level, then), [lines(level), lines(then)], "{level:?}, then {then:?}");
        }
    }
}
