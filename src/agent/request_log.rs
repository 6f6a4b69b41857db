//! The line that each request has in the log at the level debug.
//!
//! What it says is known in two places: whose events are in the request where that is built, the answer where that arrives.
//! So it travels with the request. At any other level there is none, and nothing is done for it.

use crate::clock::{Clock, Mono};
use crate::event::MessageId;
use crate::koala::{Client, Verdict};

/// The ids in a line; the others are only counted.
const MAX_IDS: usize = 5;

/// What the line says of a request before there is an answer.
#[derive(Debug, Default)]
pub struct RequestLine {
    /// The path below the project's, which has no key in it.
    path: String,
    /// A hash of the person, the one that the outbox shows of delivered events; `None`: the request has no events.
    person: Option<String>,
    /// The first ids, with commas between them.
    ids: String,
    events: usize,
    sent: Mono,
}

impl RequestLine {
    /// The line for a request to that path; `None` unless such lines are logged.
    pub fn of(path: &str) -> Option<RequestLine> {
        let line = || RequestLine { path: format!("/{path}"), ..RequestLine::default() };
        tracing::enabled!(tracing::Level::DEBUG).then(line)
    }

    /// Adds an event of the request.
    pub fn add(&mut self, id: &MessageId) {
        self.events += 1;
        if self.events <= MAX_IDS {
            let separator = if self.ids.is_empty() { "" } else { "," };
            self.ids.extend([separator, id.as_str()]);
        }
    }

    /// The line with a hash of the person whose events they are.
    pub fn about(self, hash: String) -> RequestLine {
        RequestLine { person: Some(hash), ..self }
    }

    /// The line of a request that is sent now.
    pub fn sent(self, now: Mono) -> RequestLine {
        RequestLine { sent: now, ..self }
    }

    /// Logs the line. `status`: that of the answer, if a whole one came; else the verdict's code stands for it.
    pub fn answered(self, verdict: &Verdict, status: Option<u16>, now: Mono) {
        let RequestLine { path, person, ids, events, sent } = self;
        let code = || verdict.reason().map_or_else(String::new, |reason| reason.code.to_string());
        let ids = Some(ids).filter(|ids| !ids.is_empty());
        tracing::debug!(
            notice = "request",
            path,
            answer = status.map_or_else(code, |status| status.to_string()),
            duration_ms = now.saturating_sub(sent).as_millis(),
            events,
            person,
            ids,
            "a request was {}",
            if status.is_some() { "answered" } else { "not answered" }
        );
    }
}

/// Asks `/auth`, and logs the request.
pub async fn ask_auth(client: Client, clock: Clock) -> Verdict {
    let line = RequestLine::of("auth").map(|line| line.sent(clock.mono()));
    let (verdict, status) = client.auth().await;
    if let Some(line) = line {
        line.answered(&verdict, status, clock.mono());
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_first_ids_and_counts_all_events() {
        let mut line = RequestLine::default();
        for n in 0..7 {
            line.add(&MessageId::from_stored(format!("m-{n}")));
        }
        assert_eq!((line.ids.as_str(), line.events), ("m-0,m-1,m-2,m-3,m-4", 7));
    }

    #[test]
    fn there_is_no_line_where_the_level_debug_is_not_logged() {
        assert!(RequestLine::of("batch").is_none());
    }
}
