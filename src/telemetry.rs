//! The log. Under systemd a line begins with its priority and has no time, since the journal records both. On a terminal
//! it has the time, and the level in colour.
//!
//! The normal level reports changes of state, not single requests. No body of an event, no email and no key is logged.

use crate::clock::Timestamp;
use std::fmt;
use std::io::IsTerminal;
use std::time::SystemTime;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter, Subscriber as Log};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

/// Starts the log of this process, on stderr. `verbose` adds the debug level.
pub fn start(verbose: bool) {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal();
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let log = subscriber(verbose, LineFormat { journal, colour }, std::io::stderr);
    // An error means that a log has been started already.
    let _ = tracing::subscriber::set_global_default(log);
}

fn subscriber<W>(verbose: bool, format: LineFormat, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let level = if verbose { Level::DEBUG } else { Level::INFO };
    let log = Log::builder().with_max_level(level).with_writer(writer).event_format(format).finish();
    // h2 logs the text with which a receiver ends a connection, which may repeat anything that was sent to it, and warns
    // of frames without any limit of their rate.
    log.with(Targets::new().with_default(level).with_target("h2", LevelFilter::OFF))
}

struct LineFormat {
    journal: bool,
    colour: bool,
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
        let level = *event.metadata().level();
        // From sd-daemon(3).
        let (priority, name, colour) = match level {
            Level::ERROR => (3, "error", "31"),
            Level::WARN => (4, "warning", "33"),
            Level::INFO => (6, "info", "32"),
            _ => (7, "debug", "2"),
        };
        if self.journal {
            write!(writer, "<{priority}>")?;
        } else if self.colour {
            let now = Timestamp::from_system(SystemTime::now());
            write!(writer, "\x1b[2m{now}\x1b[0m \x1b[{colour}m{name}\x1b[0m ")?;
        } else {
            write!(writer, "{} {name} ", Timestamp::from_system(SystemTime::now()))?;
        }
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
