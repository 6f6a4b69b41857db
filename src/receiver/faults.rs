//! The faults of a receiver: everything that it does wrong on purpose.

use fastrand::Rng;
use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue, RETRY_AFTER};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// The longest latency: an hour outlasts every time-out that a sender would set.
const MAX_LATENCY: Duration = Duration::from_secs(3_600);

/// A sign-in page, as the network of a hotel shows it.
const PORTAL: &str =
    "<!DOCTYPE html><html><head><title>Welcome</title></head><body>Please sign in.</body></html>\n";

/// The faults in force, none by default. Shares are between 0 (never) and 1 (always). Where several apply to one
/// request, the first in the order of the fields from `offline` on counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// The delay of every answer in milliseconds, an hour at most.
    pub latency_ms: u64,
    /// Every connection is broken without an answer.
    pub offline: bool,
    /// Everything is answered with this status, 200 to 599.
    pub status: Option<u16>,
    /// Everything is answered 200 with an HTML page, as the portal of a network does.
    pub html: bool,
    /// Everything is answered 400 with this error, usually [`SUSPENDED`](crate::reason::SUSPENDED).
    pub refuse_all: Option<String>,
    /// The share of requests answered 503.
    pub fail_share: f64,
    /// The share of requests answered 429.
    pub rate_limited: f64,
    /// The value of the header Retry-After of every 429 and 503.
    pub retry_after: Option<String>,
    /// A body with more bytes than this is answered 413.
    pub too_large: Option<usize>,
    /// A batch with this text in a `message_id` is answered 400.
    pub poison: Option<String>,
    /// The share of batches that are accepted without an answer: the connection is broken after they are held.
    pub drop_after_accept: f64,
}

/// The answer to a request that is not accepted.
#[derive(Debug)]
pub(super) struct Refusal {
    pub status: StatusCode,
    /// The rule that was broken, or the fault in force.
    pub why: String,
    /// Retry-After or Allow, where the answer has one.
    pub header: Option<(HeaderName, HeaderValue)>,
    /// The body in place of `{"error": why}`.
    pub page: Option<&'static str>,
}

impl Refusal {
    pub fn new(status: StatusCode, why: impl Into<String>) -> Refusal {
        Refusal { status, why: why.into(), header: None, page: None }
    }
}

impl Faults {
    /// Reads faults from the JSON of `PUT /receiver/faults`. Faults that are not mentioned are off.
    ///
    /// # Errors
    /// The text is not JSON, a member is unknown (the error lists the known ones), or a value is out of its range.
    pub fn from_json(text: &[u8]) -> Result<Faults, String> {
        let faults: Faults = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        faults.check()?;
        Ok(faults)
    }

    /// Checks that every value is in its range.
    ///
    /// # Errors
    /// The name of the first value out of its range, and that range.
    pub fn check(&self) -> Result<(), String> {
        let shares = [
            ("fail_share", self.fail_share),
            ("rate_limited", self.rate_limited),
            ("drop_after_accept", self.drop_after_accept),
        ];
        for (name, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("{name} must be a share from 0 to 1, not {share}"));
            }
        }
        if self.status.is_some_and(|status| !(200..600).contains(&status)) {
            return Err("status must be a number from 200 to 599".to_owned());
        }
        if self.latency() > MAX_LATENCY {
            return Err(format!("latency_ms must be at most {}", MAX_LATENCY.as_millis()));
        }
        if self.retry_after.as_ref().is_some_and(|value| HeaderValue::from_str(value).is_err()) {
            return Err("retry_after must be the value of an HTTP header".to_owned());
        }
        Ok(())
    }

    pub(super) fn latency(&self) -> Duration {
        Duration::from_millis(self.latency_ms)
    }

    /// The refusal of a request with a body of `bytes` and with these ids; `None` if no fault applies to it.
    pub(super) fn refusal(&self, rng: &mut Rng, bytes: usize, message_ids: &[String]) -> Option<Refusal> {
        let mut refusal = self.refusal_without_retry_after(rng, bytes, message_ids)?;
        if [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&refusal.status) {
            let value = self.retry_after.as_ref().and_then(|value| HeaderValue::from_str(value).ok());
            refusal.header = value.map(|value| (RETRY_AFTER, value));
        }
        Some(refusal)
    }

    fn refusal_without_retry_after(
        &self,
        rng: &mut Rng,
        bytes: usize,
        message_ids: &[String],
    ) -> Option<Refusal> {
        let refusal = |status, why: &str| Some(Refusal::new(status, why));
        if let Some(status) = self.status.and_then(|status| StatusCode::from_u16(status).ok()) {
            return refusal(status, "every request is answered with this status, on purpose");
        }
        if self.html {
            return Some(Refusal {
                page: Some(PORTAL),
                ..Refusal::new(StatusCode::OK, "every request is answered with a web page, on purpose")
            });
        }
        if let Some(why) = &self.refuse_all {
            return refusal(StatusCode::BAD_REQUEST, why);
        }
        if is_drawn(rng, self.fail_share) {
            return refusal(StatusCode::SERVICE_UNAVAILABLE, "unavailable, on purpose");
        }
        if is_drawn(rng, self.rate_limited) {
            return refusal(StatusCode::TOO_MANY_REQUESTS, "too many requests, on purpose");
        }
        if let Some(limit) = self.too_large.filter(|limit| bytes > *limit) {
            let why = format!("the body has {bytes} bytes, more than {limit}, on purpose");
            return refusal(StatusCode::PAYLOAD_TOO_LARGE, &why);
        }
        let poison = self.poison.as_deref()?;
        let poisoned = message_ids.iter().find(|id| id.contains(poison))?;
        refusal(StatusCode::BAD_REQUEST, &format!("message_id {poisoned:?} is poisoned, on purpose"))
    }
}

/// Lists the faults in force in words, or says `none`.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64, what: &str| (share > 0.0).then(|| format!("{}% {what}", share * 100.0));
        let words = [
            (self.latency_ms > 0)
                .then(|| format!("answers after {:?}", Duration::from_millis(self.latency_ms))),
            self.offline.then(|| "offline".to_owned()),
            self.status.map(|status| format!("{status} to everything")),
            self.html.then(|| "HTML to everything".to_owned()),
            self.refuse_all.as_ref().map(|why| format!("400 {why:?} to everything")),
            percent(self.fail_share, "answered 503"),
            percent(self.rate_limited, "answered 429"),
            self.retry_after.as_ref().map(|value| format!("Retry-After {value}")),
            self.too_large.map(|bytes| format!("413 above {bytes} bytes")),
            self.poison.as_ref().map(|text| format!("400 to ids with {text:?}")),
            percent(self.drop_after_accept, "accepted but not answered"),
        ];
        let words: Vec<_> = words.into_iter().flatten().collect();
        f.write_str(if words.is_empty() { "none" } else { "" })?;
        f.write_str(&words.join(", "))
    }
}

/// True in the given share of calls. Draws no number for a share of 0, so that faults which are off do not change the
/// sequence of a seed.
pub(super) fn is_drawn(rng: &mut Rng, share: f64) -> bool {
    share > 0.0 && rng.f64() < share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_met_and_a_seed_repeats_the_sequence() {
        let draw = |seed| {
            let mut rng = Rng::with_seed(seed);
            (0..10_000).map(|_| is_drawn(&mut rng, 0.1)).collect::<Vec<_>>()
        };
        let hits = draw(7).into_iter().filter(|hit| *hit).count();
        assert!((900..1_100).contains(&hits), "{hits}");
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!((0..1_000).all(|seed| is_drawn(&mut Rng::with_seed(seed), 1.0)));
        assert!(!is_drawn(&mut Rng::with_seed(1), 0.0));
    }

    #[test]
    fn faults_are_described_in_words() {
        assert_eq!(Faults::default().to_string(), "none");
        let some =
            Faults { latency_ms: 200, fail_share: 0.1, retry_after: Some("7".into()), ..Faults::default() };
        assert_eq!(some.to_string(), "answers after 200ms, 10% answered 503, Retry-After 7");
    }
}
