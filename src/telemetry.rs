//! The log. Under systemd a line begins with its priority and has no time of its own: the journal has both. On a
//! terminal it has the time, and the level in colour.
//!
//! At the normal level it tells changes of state, not requests; no event's body, no email, no key is ever in it.

use crate::clock::Timestamp;
use std::fmt;
use std::io::IsTerminal;
use std::time::SystemTime;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, Subscriber as Log};
use tracing_subscriber::registry::LookupSpan;

/// Starts the log of this process, on stderr. `verbose` adds what only somebody who looks for a fault wants.
pub fn start(verbose: bool) {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal();
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let log = Log::builder()
        .with_max_level(if verbose { Level::DEBUG } else { Level::INFO })
        .with_writer(std::io::stderr)
        .event_format(Line { journal, colour })
        .finish();
    // Fails only where there is a log already.
    let _ = tracing::subscriber::set_global_default(log);
}

struct Line {
    journal: bool,
    colour: bool,
}

impl<S, N> FormatEvent<S, N> for Line
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
