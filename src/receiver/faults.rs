//! What a receiver does wrong on purpose.

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue, RETRY_AFTER};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the hosted service has answered to every path since it was shut down.
pub const SUSPENDED: &str = "Koala ingest suspended";

/// The longest latency: an hour outlasts every time-out that a sender would set.
const MAX_LATENCY: Duration = Duration::from_secs(3_600);

/// A page as a hotel's network shows it before anybody may use it.
const PORTAL: &str =
    "<!DOCTYPE html><html><head><title>Welcome</title></head><body>Please sign in.</body></html>\n";

/// The faults in force, none by default. Shares are between 0 (never) and 1 (always). Where several would
/// strike one request, the first in the order of the fields from `offline` on does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Every answer is held back by so many milliseconds, an hour at most.
    pub latency_ms: u64,
    /// The connection is broken without an answer.
    pub offline: bool,
    /// Everything is answered with this status, 200 to 599.
    pub status: Option<u16>,
    /// Everything is answered 200 with an HTML page, as a portal in between does.
    pub html: bool,
    /// Everything is answered 400 with this error, usually [`SUSPENDED`].
    pub refuse_all: Option<String>,
    /// The share of requests answered 503.
    pub fail_share: f64,
    /// The share of requests answered 429.
    pub rate_limited: f64,
    /// The Retry-After of every 429 and 503, as it is to be sent.
    pub retry_after: Option<String>,
    /// A body of more bytes is answered 413.
    pub too_large: Option<usize>,
    /// A batch with this text in a `message_id` is answered 400.
    pub poison: Option<String>,
    /// The share of batches that are taken and held, whereupon the connection is broken without an answer.
    pub drop_after_accept: f64,
}

/// Why a request is not taken, and what it is answered.
#[derive(Debug)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub why: String,
    /// Retry-After or Allow, where the answer has one.
    pub header: Option<(HeaderName, HeaderValue)>,
    /// The page that stands in for `{"error": why}`.
    pub page: Option<&'static str>,
}

impl Refusal {
    pub fn new(status: StatusCode, why: impl Into<String>) -> Refusal {
        Refusal { status, why: why.into(), header: None, page: None }
    }
}

impl Faults {
    /// Reads faults as `PUT /receiver/faults` takes them: what is not mentioned is off.
    ///
    /// # Errors
    /// It is not JSON, a member is unknown (the known ones are listed), or a value is out of its range.
    pub fn from_json(text: &[u8]) -> Result<Faults, String> {
        let faults: Faults = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        faults.check()?;
        Ok(faults)
    }

    /// Whether every value is in its range.
    ///
    /// # Errors
    /// The first that is not, by its name.
    pub fn check(&self) -> Result<(), String> {
        let shares = [
            ("fail_share", self.fail_share),
            ("rate_limited", self.rate_limited),
            ("drop_after_accept", self.drop_after_accept),
        ];
        for (name, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("{name} must be a share between 0 and 1 and is {share}"));
            }
        }
        if self.status.is_some_and(|status| !(200..600).contains(&status)) {
            return Err("status must be between 200 and 599".to_owned());
        }
        if self.latency() > MAX_LATENCY {
            return Err(format!("latency_ms must be at most {}", MAX_LATENCY.as_millis()));
        }
        if self.retry_after.as_ref().is_some_and(|value| HeaderValue::from_str(value).is_err()) {
            return Err("retry_after must be the text of a header".to_owned());
        }
        Ok(())
    }

    pub(super) fn latency(&self) -> Duration {
        Duration::from_millis(self.latency_ms)
    }

    /// What strikes a request of that size and with those ids, if anything does.
    pub(super) fn strike(&self, dice: &Dice, bytes: usize, message_ids: &[String]) -> Option<Refusal> {
        let mut refusal = self.refusal(dice, bytes, message_ids)?;
        if [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&refusal.status) {
            let value = self.retry_after.as_ref().and_then(|value| HeaderValue::from_str(value).ok());
            refusal.header = value.map(|value| (RETRY_AFTER, value));
        }
        Some(refusal)
    }

    fn refusal(&self, dice: &Dice, bytes: usize, message_ids: &[String]) -> Option<Refusal> {
        let refusal = |status, why: &str| Some(Refusal::new(status, why));
        if let Some(status) = self.status.and_then(|status| StatusCode::from_u16(status).ok()) {
            return refusal(status, "every request is answered so, on purpose");
        }
        if self.html {
            return Some(Refusal {
                page: Some(PORTAL),
                ..Refusal::new(StatusCode::OK, "a page of HTML, on purpose")
            });
        }
        if let Some(why) = &self.refuse_all {
            return refusal(StatusCode::BAD_REQUEST, why);
        }
        if dice.fall_within(self.fail_share) {
            return refusal(StatusCode::SERVICE_UNAVAILABLE, "in trouble, on purpose");
        }
        if dice.fall_within(self.rate_limited) {
            return refusal(StatusCode::TOO_MANY_REQUESTS, "too many requests, on purpose");
        }
        if let Some(limit) = self.too_large.filter(|limit| bytes > *limit) {
            let why = format!("the body has {bytes} bytes, and {limit} are the most, on purpose");
            return refusal(StatusCode::PAYLOAD_TOO_LARGE, &why);
        }
        let poison = self.poison.as_deref()?;
        let poisoned = message_ids.iter().find(|id| id.contains(poison))?;
        refusal(StatusCode::BAD_REQUEST, &format!("message_id {poisoned:?} is poisoned, on purpose"))
    }
}

/// What is wrong in words, or `none`.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64, what: &str| (share > 0.0).then(|| format!("{}% {what}", share * 100.0));
        let words = [
            (self.latency_ms > 0).then(|| format!("{} ms late", self.latency_ms)),
            self.offline.then(|| "offline".to_owned()),
            self.status.map(|status| format!("{status} to everything")),
            self.html.then(|| "HTML to everything".to_owned()),
            self.refuse_all.as_ref().map(|why| format!("400 {why:?} to everything")),
            percent(self.fail_share, "answered 503"),
            percent(self.rate_limited, "answered 429"),
            self.retry_after.as_ref().map(|value| format!("Retry-After {value}")),
            self.too_large.map(|bytes| format!("413 above {bytes} bytes")),
            self.poison.as_ref().map(|text| format!("400 to ids with {text:?}")),
            percent(self.drop_after_accept, "taken but not answered"),
        ];
        let words: Vec<_> = words.into_iter().flatten().collect();
        f.write_str(if words.is_empty() { "none" } else { "" })?;
        f.write_str(&words.join(", "))
    }
}

/// Randomness that a seed repeats: SplitMix64, which is small and good enough to pick a share of requests.
#[derive(Debug)]
pub(super) struct Dice(AtomicU64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(AtomicU64::new(seed))
    }

    /// True in that share of the calls.
    pub fn fall_within(&self, share: f64) -> bool {
        share > 0.0 && self.roll() < share
    }

    /// Between 0 and just below 1.
    fn roll(&self) -> f64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // The 53 bits that a double holds.
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_kept_and_a_seed_repeats_it() {
        let fall = |seed| {
            let dice = Dice::new(seed);
            (0..10_000).map(|_| dice.fall_within(0.1)).collect::<Vec<_>>()
        };
        let hits = fall(7).into_iter().filter(|hit| *hit).count();
        assert!((900..1_100).contains(&hits), "{hits}");
        assert_eq!(fall(7), fall(7));
        assert_ne!(fall(7), fall(8));
        assert!((0..1_000).all(|_| Dice::new(1).fall_within(1.0)));
        assert!(!Dice::new(1).fall_within(0.0));
    }

    #[test]
    fn faults_are_told_in_words() {
        assert_eq!(Faults::default().to_string(), "none");
        let some =
            Faults { latency_ms: 200, fail_share: 0.1, retry_after: Some("7".into()), ..Faults::default() };
        assert_eq!(some.to_string(), "200 ms late, 10% answered 503, Retry-After 7");
    }
}
