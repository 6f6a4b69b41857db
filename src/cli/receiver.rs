//! `koala-agent receiver`: a local receiver that behaves like Koala, and fails on request.

use super::ExitCode;
use super::output::{counted, grouped};
use crate::reason::SUSPENDED;
use crate::receiver::{Faults, Notice, Receiver, ReceiverOptions};
use clap::Args;
use std::collections::{BTreeMap, HashSet};
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// The shortest time between two outputs: a person can follow two of them a second.
const PRINT_INTERVAL: Duration = Duration::from_millis(500);

/// The most lines of one output; further requests are summed up.
const MAX_LINES: usize = 6;

/// The most notes, of which each is printed once.
const MAX_NOTES: usize = 20;

/// The longest text from a request that is printed, in characters: a line of a wide terminal.
const MAX_TEXT: usize = 160;

/// Run a local receiver that behaves like Koala, and fails on request
///
/// Enforces Koala's documented rules, and counts an event with a known message_id as a duplicate. Keeps the events in
/// memory until it ends, a million or 1 GiB of them at most. Web pages cannot use it: Host must be an IP address or
/// localhost, and Origin must be absent.
#[derive(Debug, Args)]
pub struct ReceiverArgs {
    /// Listen on this address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8017")]
    pub listen: SocketAddr,
    /// Accept only this public key; answer 401 to others [without it: accept any key]
    #[arg(long)]
    pub key: Option<String>,
    /// Delay every answer by this time, such as 200ms; at most 1h
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub latency: Option<Duration>,
    /// Answer 503 to this share of the requests, from 0 to 1, such as 0.1
    #[arg(long, value_name = "SHARE", default_value_t, value_parser = parse_share)]
    pub fail: f64,
    /// Answer 429 to this share of the requests, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t, value_parser = parse_share)]
    pub rate_limit: f64,
    /// Add this Retry-After to every 429 and 503: a number of seconds, or an HTTP date
    #[arg(long, value_name = "VALUE")]
    pub retry_after: Option<String>,
    /// Answer 400 to every request, with this error [without a value: Koala ingest suspended]
    #[arg(long, value_name = "MESSAGE", num_args = 0..=1, default_missing_value = SUSPENDED)]
    pub refuse_all: Option<String>,
    /// Close every connection without an answer
    #[arg(long)]
    pub offline: bool,
    /// Answer every request with this HTTP status, from 200 to 599
    #[arg(long, value_name = "CODE", value_parser = clap::value_parser!(u16).range(200..600))]
    pub status: Option<u16>,
    /// Answer 200 with an HTML page to every request, as the login page of a network does
    #[arg(long)]
    pub html: bool,
    /// Answer 400 to requests with this text in a message_id
    #[arg(long, value_name = "TEXT")]
    pub poison: Option<String>,
    /// Answer 413 to requests whose body is larger than this number of bytes
    #[arg(long, value_name = "BYTES")]
    pub too_large: Option<usize>,
    /// Accept this share of the requests, from 0 to 1, but close the connection before the answer
    #[arg(long, value_name = "SHARE", default_value_t, value_parser = parse_share)]
    pub drop_after_accept: f64,
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share is a number from 0 to 1".to_owned())
}

impl ReceiverArgs {
    fn faults(&self) -> Result<Faults, ReceiverError> {
        let latency = self.latency.unwrap_or_default();
        let faults = Faults {
            latency_ms: u64::try_from(latency.as_millis()).unwrap_or(u64::MAX),
            offline: self.offline,
            status: self.status,
            html: self.html,
            refuse_all: self.refuse_all.clone(),
            fail_share: self.fail,
            rate_limited: self.rate_limit,
            retry_after: self.retry_after.clone(),
            too_large: self.too_large,
            poison: self.poison.clone(),
            drop_after_accept: self.drop_after_accept,
        };
        faults.check().map_err(ReceiverError::Faults)?;
        Ok(faults)
    }
}

/// Why `koala-agent receiver` failed.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    /// The value of a fault is out of range.
    #[error("{0}")]
    Faults(String),
    /// Another program listens on the address.
    #[error("cannot listen on {0}: another program listens there; end it, or use --listen {next}", next = next_port(.0))]
    InUse(SocketAddr),
    /// The receiver cannot listen on the address, for another reason.
    #[error("cannot listen on {0}: {1}; choose another address with --listen")]
    Listen(SocketAddr, io::Error),
    /// Signals cannot be handled, or the output cannot be written.
    #[error("the receiver ends: {0}")]
    Io(#[from] io::Error),
}

impl ReceiverError {
    /// How the command ends.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            ReceiverError::Faults(_) => ExitCode::Usage,
            ReceiverError::InUse(_) | ReceiverError::Listen(..) => ExitCode::Unavailable,
            ReceiverError::Io(_) => ExitCode::Io,
        }
    }
}

/// The address with the next port; after the last port, with any free one.
fn next_port(addr: &SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip(), addr.port().checked_add(1).unwrap_or(0))
}

/// Runs a receiver until SIGINT or SIGTERM, and prints on `out` what it receives.
///
/// # Errors
/// It cannot listen on the address, a fault is out of range, or `out` cannot be written.
pub async fn receiver(args: ReceiverArgs, out: &mut dyn Write) -> Result<(), ReceiverError> {
    let faults = args.faults()?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let screen = Arc::new(Screen::default());
    let notice_screen = screen.clone();
    let options = ReceiverOptions {
        expected_key: args.key.clone(),
        faults: faults.clone(),
        on_notice: Some(Box::new(move |notice| notice_screen.add(notice))),
        ..ReceiverOptions::default()
    };
    let receiver = Receiver::start(args.listen, options).await.map_err(|e| match e.kind() {
        ErrorKind::AddrInUse => ReceiverError::InUse(args.listen),
        _ => ReceiverError::Listen(args.listen, e),
    })?;
    print_greeting(&args, &receiver, &faults, out)?;
    loop {
        tokio::select! {
            () = screen.changed() => screen.print(out)?,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    screen.print(out)?;
    let stats = receiver.stats();
    receiver.stop().await;
    writeln!(
        out,
        "\n{} in {}; {}, {} refused, {} without an answer",
        counted(stats.events, "event"),
        counted(stats.requests, "request"),
        counted(stats.repeats, "duplicate"),
        grouped(stats.refused_requests),
        grouped(stats.dropped_requests),
    )?;
    Ok(())
}

fn print_greeting(
    args: &ReceiverArgs,
    receiver: &Receiver,
    faults: &Faults,
    out: &mut dyn Write,
) -> io::Result<()> {
    let url = receiver.endpoint();
    // A key that was given is a secret, and is not printed.
    let key = if args.key.is_some() { "<the key>" } else { "pk_local" };
    write!(
        out,
        "local receiver at {url}; press Ctrl-C to end it\n\n\
         To deliver to it, run koala-agent with\n  \
           KOALA_AGENT_KOALA__ENDPOINT={url}\n  \
           KOALA_AGENT_KOALA__PUBLIC_KEY={key}\n\
         To see what it has received:\n  \
           curl {url}/receiver/events\n  \
           curl {url}/receiver/stats\n\
         To let it fail, to stop that, and to see all faults:\n  \
           curl -X PUT -d '{{\"fail_share\": 0.1}}' {url}/receiver/faults\n  \
           curl -X PUT -d '{{}}' {url}/receiver/faults\n  \
           curl {url}/receiver/faults\n\n"
    )?;
    if *faults != Faults::default() {
        writeln!(out, "faults: {faults}")?;
    }
    if !receiver.addr().ip().is_loopback() {
        writeln!(out, "note: everybody who can reach {} can read and change its events", receiver.addr())?;
    }
    out.flush()
}

/// The next output, and a signal that it has changed.
#[derive(Default)]
struct Screen {
    page: Mutex<Page>,
    change: Notify,
}

/// The next output: its first lines, and the sum of the other requests.
#[derive(Default)]
struct Page {
    lines: Vec<String>,
    others: RequestSum,
    printed_notes: HashSet<String>,
}

#[derive(Default)]
struct RequestSum {
    requests: u64,
    events: u64,
    repeats: u64,
    not_accepted: BTreeMap<String, u64>,
}

impl Screen {
    fn page(&self) -> MutexGuard<'_, Page> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, notice: Notice) {
        self.page().add(notice);
        self.change.notify_one();
    }

    /// Returns after a change, and never sooner than the shortest time between two outputs.
    async fn changed(&self) {
        tokio::time::sleep(PRINT_INTERVAL).await;
        self.change.notified().await;
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let (lines, others) = {
            let mut page = self.page();
            (mem::take(&mut page.lines), mem::take(&mut page.others))
        };
        for line in lines {
            writeln!(out, "{line}")?;
        }
        if others.requests > 0 {
            writeln!(out, "{}", others.line())?;
        }
        out.flush()
    }
}

impl Page {
    fn add(&mut self, notice: Notice) {
        let has_room = self.lines.len() < MAX_LINES;
        match notice {
            Notice::Accepted { who, items, repeats } if has_room => {
                let duplicates = duplicates_text(repeats as u64);
                self.lines.push(format!(
                    "204  {}  {}{duplicates}",
                    printable(&who),
                    counted(items as u64, "event")
                ));
            }
            Notice::Refused { status, why } if has_room => {
                self.lines.push(format!("{status}  {}", printable(&why)))
            }
            Notice::Dropped { why } if has_room => self.lines.push(format!("---  {}", printable(&why))),
            Notice::Accepted { items, repeats, .. } => self.others.add(items, repeats, None),
            Notice::Refused { status, .. } => self.others.add(0, 0, Some(status.to_string())),
            Notice::Dropped { .. } => self.others.add(0, 0, Some("dropped".to_owned())),
            Notice::Faults(faults) => self.lines.push(format!("faults: {}", printable(&faults.to_string()))),
            Notice::Note(note) => {
                if self.printed_notes.len() < MAX_NOTES && self.printed_notes.insert(note.clone()) {
                    self.lines.push(format!("note: {}", printable(&note)));
                }
            }
        }
    }
}

impl RequestSum {
    fn add(&mut self, items: usize, repeats: usize, not_accepted: Option<String>) {
        self.requests += 1;
        self.events += items as u64;
        self.repeats += repeats as u64;
        if let Some(outcome) = not_accepted {
            *self.not_accepted.entry(outcome).or_default() += 1;
        }
    }

    fn line(&self) -> String {
        let requests = counted(self.requests, "more request");
        let duplicates = duplicates_text(self.repeats);
        let mut line = format!("  …  {requests}: {}{duplicates}", counted(self.events, "event"));
        for (outcome, times) in &self.not_accepted {
            line += &format!(", {} × {outcome}", grouped(*times));
        }
        line
    }
}

fn duplicates_text(repeats: u64) -> String {
    if repeats == 0 { String::new() } else { format!(", {}", counted(repeats, "duplicate")) }
}

/// Text from a request, safe for a terminal: of limited length and without control characters.
fn printable(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut printable: String = plain.clone().take(MAX_TEXT).collect();
    if plain.count() > MAX_TEXT {
        printable.push('…');
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_printed_as_its_first_lines_and_a_sum() {
        let screen = Screen::default();
        for n in 0..100 {
            screen.add(match n % 10 {
                0 => Notice::Refused { status: 503, why: "in trouble".into() },
                _ => Notice::Accepted { who: "ana\u{1b}[2J".into(), items: 2, repeats: 1 },
            });
            screen.add(Notice::Note("said once".into()));
        }
        let mut out = Vec::new();
        screen.print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[..3],
            ["503  in trouble", "note: said once", "204  ana\u{fffd}[2J  2 events, 1 duplicate"]
        );
        assert_eq!(lines.len(), MAX_LINES + 1);
        assert_eq!(lines[MAX_LINES], "  …  95 more requests: 172 events, 86 duplicates, 9 × 503");
    }
}
