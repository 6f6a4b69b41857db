//! `koala-agent receiver`: a local Koala at the terminal.

use super::ExitCode;
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

/// How often lines are printed at most: two bursts a second can still be followed by eye.
const PERIOD: Duration = Duration::from_millis(500);

/// The lines of one period; what comes beyond is told as a sum.
const LINES_A_PERIOD: usize = 6;

/// How many different notes are told, each once: more of them tell nothing new.
const MAX_NOTES: usize = 20;

/// The longest piece of a request that is printed, in characters: a line of a wide terminal.
const MAX_SHOWN: usize = 160;

/// A local Koala: keeps to its documented rules, dedupes by message_id, and fails on request.
#[derive(Debug, Args)]
pub struct ReceiverArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8017")]
    pub listen: SocketAddr,
    /// Take this public key alone, and answer 401 to others
    #[arg(long)]
    pub key: Option<String>,
    /// Hold every answer back, such as 200ms
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub latency: Option<Duration>,
    /// Answer 503 to this share of requests, such as 0.1
    #[arg(long, value_name = "SHARE", default_value_t)]
    pub fail: f64,
    /// Answer 429 to this share of requests
    #[arg(long, value_name = "SHARE", default_value_t)]
    pub rate_limit: f64,
    /// Send this Retry-After with every 429 and 503: seconds or an HTTP date
    #[arg(long, value_name = "VALUE")]
    pub retry_after: Option<String>,
    /// Answer 400 to everything
    #[arg(long, value_name = "MESSAGE", num_args = 0..=1, default_missing_value = SUSPENDED)]
    pub refuse_all: Option<String>,
    /// Break every connection without an answer
    #[arg(long)]
    pub offline: bool,
    /// Answer everything with this status
    #[arg(long, value_name = "CODE")]
    pub status: Option<u16>,
    /// Answer everything 200 with an HTML page, as a portal does
    #[arg(long)]
    pub html: bool,
    /// Answer 400 to a request that has this text in a message_id
    #[arg(long, value_name = "TEXT")]
    pub poison: Option<String>,
    /// Answer 413 above this size of a body
    #[arg(long, value_name = "BYTES")]
    pub too_large: Option<usize>,
    /// Take this share of requests and break the connection before the answer
    #[arg(long, value_name = "SHARE", default_value_t)]
    pub drop_after_accept: f64,
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

/// Why `koala-agent receiver` could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    /// A fault's value is out of its range.
    #[error("cannot be faulty like that: {0}")]
    Faults(String),
    /// The address is taken.
    #[error("cannot listen on {0}: another program does already; end it, or take --listen {next}", next = neighbour(.0))]
    InUse(SocketAddr),
    /// The address cannot be had for another reason.
    #[error("cannot listen on {0}: {1}; --listen takes another address")]
    Listen(SocketAddr, io::Error),
    /// The end of the program cannot be waited for, or its output is gone.
    #[error("cannot go on with the receiver: {0}")]
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

/// The address with the next port; after the last, with any that is free.
fn neighbour(addr: &SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip(), addr.port().checked_add(1).unwrap_or(0))
}

/// Runs a receiver until SIGINT or SIGTERM, and tells on `out` what arrives.
///
/// # Errors
/// The address cannot be had, a fault is out of its range, or `out` cannot be written.
pub async fn receiver(args: ReceiverArgs, out: &mut dyn Write) -> Result<(), ReceiverError> {
    let faults = args.faults()?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let screen = Arc::new(Screen::default());
    let teller = screen.clone();
    let options = ReceiverOptions {
        expected_key: args.key.clone(),
        faults: faults.clone(),
        on_notice: Some(Box::new(move |notice| teller.tell(notice))),
        ..ReceiverOptions::default()
    };
    let receiver = Receiver::start(args.listen, options).await.map_err(|e| match e.kind() {
        ErrorKind::AddrInUse => ReceiverError::InUse(args.listen),
        _ => ReceiverError::Listen(args.listen, e),
    })?;
    greet(&args, &receiver, &faults, out)?;
    loop {
        tokio::select! {
            () = screen.next() => screen.print(out)?,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    screen.print(out)?;
    let stats = receiver.stats();
    receiver.stop().await;
    writeln!(
        out,
        "\n{} from {}, {} seen again, {} refused, {} dropped",
        count(stats.events, "event"),
        count(stats.requests, "request"),
        stats.repeats,
        stats.refused_requests,
        stats.dropped_requests,
    )?;
    Ok(())
}

fn greet(args: &ReceiverArgs, receiver: &Receiver, faults: &Faults, out: &mut dyn Write) -> io::Result<()> {
    let url = receiver.endpoint();
    // A key that was given is a secret; it is not shown again.
    let key = if args.key.is_some() { "<the key>" } else { "pk_local" };
    writeln!(out, "a local Koala listens on {url}; Ctrl-C ends it\n")?;
    writeln!(
        out,
        "  deliver here     KOALA_AGENT_KOALA__ENDPOINT={url} KOALA_AGENT_KOALA__PUBLIC_KEY={key}"
    )?;
    writeln!(out, "  what it holds    curl {url}/receiver/events")?;
    writeln!(out, "  counters         curl {url}/receiver/stats")?;
    writeln!(out, "  be in trouble    curl -X PUT -d '{{\"fail_share\": 0.1}}' {url}/receiver/faults")?;
    writeln!(out, "  be well again    curl -X PUT -d '{{}}' {url}/receiver/faults")?;
    writeln!(out, "  all the faults   curl {url}/receiver/faults\n")?;
    if *faults != Faults::default() {
        writeln!(out, "faults: {faults}")?;
    }
    if !receiver.addr().ip().is_loopback() {
        writeln!(out, "note: whoever reaches {} can read and change what it holds", receiver.addr())?;
    }
    out.flush()
}

/// What is to be printed next: the first lines of a period, and the sum of the rest.
#[derive(Default)]
struct Screen {
    page: Mutex<Page>,
    news: Notify,
}

#[derive(Default)]
struct Page {
    lines: Vec<String>,
    rest: Sum,
    notes_told: HashSet<String>,
}

#[derive(Default)]
struct Sum {
    requests: u64,
    events: u64,
    repeats: u64,
    not_taken: BTreeMap<String, u64>,
}

impl Screen {
    fn page(&self) -> MutexGuard<'_, Page> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, notice: Notice) {
        self.page().add(notice);
        self.news.notify_one();
    }

    /// Returns when there is news, and never sooner than a period after the call, which follows a printing.
    async fn next(&self) {
        tokio::time::sleep(PERIOD).await;
        self.news.notified().await;
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let (lines, rest) = {
            let mut page = self.page();
            (mem::take(&mut page.lines), mem::take(&mut page.rest))
        };
        for line in lines {
            writeln!(out, "{line}")?;
        }
        if rest.requests > 0 {
            writeln!(out, "{}", rest.line())?;
        }
        out.flush()
    }
}

impl Page {
    fn add(&mut self, notice: Notice) {
        let room = self.lines.len() < LINES_A_PERIOD;
        match notice {
            Notice::Accepted { who, items, repeats } if room => {
                let again = if repeats > 0 { format!(", {repeats} seen before") } else { String::new() };
                self.lines.push(format!("204  {}  {}{again}", shown(&who), count(items as u64, "event")));
            }
            Notice::Refused { status, why } if room => self.lines.push(format!("{status}  {}", shown(&why))),
            Notice::Dropped { why } if room => self.lines.push(format!("---  {}", shown(&why))),
            Notice::Accepted { items, repeats, .. } => self.rest.add(items, repeats, None),
            Notice::Refused { status, .. } => self.rest.add(0, 0, Some(status.to_string())),
            Notice::Dropped { .. } => self.rest.add(0, 0, Some("dropped".to_owned())),
            Notice::Faults(faults) => self.lines.push(format!("faults: {}", shown(&faults.to_string()))),
            Notice::Note(note) => {
                if self.notes_told.len() < MAX_NOTES && self.notes_told.insert(note.clone()) {
                    self.lines.push(format!("note: {}", shown(&note)));
                }
            }
        }
    }
}

impl Sum {
    fn add(&mut self, items: usize, repeats: usize, not_taken: Option<String>) {
        self.requests += 1;
        self.events += items as u64;
        self.repeats += repeats as u64;
        if let Some(what) = not_taken {
            *self.not_taken.entry(what).or_default() += 1;
        }
    }

    fn line(&self) -> String {
        let requests = count(self.requests, "more request");
        let mut line = format!("  …  {requests}: {}", count(self.events, "event"));
        if self.repeats > 0 {
            line += &format!(", {} seen before", self.repeats);
        }
        for (what, times) in &self.not_taken {
            line += &format!(", {times} × {what}");
        }
        line
    }
}

fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A stranger's text, fit for a terminal: of bounded length and without control characters.
fn shown(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut shown: String = plain.clone().take(MAX_SHOWN).collect();
    if plain.count() > MAX_SHOWN {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_told_by_its_first_lines_and_a_sum() {
        let screen = Screen::default();
        for n in 0..100 {
            screen.tell(match n % 10 {
                0 => Notice::Refused { status: 503, why: "in trouble".into() },
                _ => Notice::Accepted { who: "ana\u{1b}[2J".into(), items: 2, repeats: 1 },
            });
            screen.tell(Notice::Note("said once".into()));
        }
        let mut out = Vec::new();
        screen.print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[..3],
            ["503  in trouble", "note: said once", "204  ana\u{fffd}[2J  2 events, 1 seen before"]
        );
        assert_eq!(lines.len(), LINES_A_PERIOD + 1);
        assert_eq!(lines[LINES_A_PERIOD], "  …  95 more requests: 172 events, 86 seen before, 9 × 503");
    }
}
