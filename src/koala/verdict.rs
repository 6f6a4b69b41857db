//! The verdict on a response. Nothing else looks at a status code or a message.

use crate::clock::Timestamp;
use crate::reason::{Code, Reason};
use std::time::Duration;

/// The longest `Retry-After` that is obeyed; longer ones are usually mistakes.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// The part of a response's body that is quoted, in characters: enough for one sentence.
const MAX_QUOTE: usize = 200;

/// The spellings of `@` in a response: plain, and escaped in a URL, in JSON and in HTML.
const AT_SIGNS: [&str; 4] = ["@", "%40", "\\u0040", "&#64;"];

/// The parts of an HTTP response that decide the verdict.
#[derive(Debug, Clone, Default)]
pub struct ReceiverResponse {
    /// The status code.
    pub status: u16,
    /// The values of all `Retry-After` headers: a proxy may add one.
    pub retry_after: Vec<String>,
    /// The time of the `Date` header.
    pub date: Option<Timestamp>,
    /// The `Location` header.
    pub location: Option<String>,
    /// The beginning of the body, with the key redacted.
    pub body: String,
}

/// The consequence of a response for the request's events and for the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver accepted every event of the request.
    Accepted,
    /// The receiver cannot be reached, or asks for a pause: everybody's trouble, unless others are accepted.
    Unavailable {
        /// The reason of the failure.
        reason: Reason,
        /// The receiver's `Retry-After`, at most [`MAX_RETRY_AFTER`].
        retry_after: Option<Duration>,
    },
    /// The receiver failed with this request: one person's trouble first. It says nothing about an event.
    Trouble(Reason),
    /// The key, the address or the service is wrong, for this person at least. It says nothing about an event.
    Closed(Reason),
    /// The key is refused, or a firewall dislikes one of these events: 403.
    Forbidden(Reason),
    /// Either one of these events is invalid, or the receiver refuses all events.
    Doubtful(Reason),
    /// The receiver says that it has something of the request already: 409. An event sent alone is accepted by that where
    /// the receiver accepts others; a request with several is split first.
    Conflict(Reason),
    /// The request is larger than the receiver accepts.
    TooLarge(Reason),
}

impl Verdict {
    /// Why the request was not accepted.
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Verdict::Accepted => None,
            Verdict::Unavailable { reason, .. }
            | Verdict::Trouble(reason)
            | Verdict::Closed(reason)
            | Verdict::Forbidden(reason)
            | Verdict::Doubtful(reason)
            | Verdict::Conflict(reason)
            | Verdict::TooLarge(reason) => Some(reason),
        }
    }
}

/// The verdict on a response, by the table in the README. `now` stands in for a missing `Date`.
///
/// The content type decides nothing: receivers send `text/html` without a body, and portals send pages as anything.
pub fn classify(response: &ReceiverResponse, now: Timestamp) -> Verdict {
    let closed = |code| Verdict::Closed(explained(code, response));
    let retry_after = longest_retry_after(&response.retry_after, response.date.unwrap_or(now));
    let unavailable = |code| Verdict::Unavailable { reason: explained(code, response), retry_after };
    match response.status {
        200..=299 if is_page(&response.body) => Verdict::Closed(Reason::new(
            Code::NotTheReceiver,
            format!(
                "something other than Koala answered {} with a web page: a captive portal or a proxy is in between",
                response.status
            ),
        )),
        200..=299 => Verdict::Accepted,
        300..=399 => Verdict::Closed(redirect(response)),
        401 => closed(Code::KeyRefused),
        403 => Verdict::Forbidden(explained(Code::KeyRefused, response)),
        404 | 405 | 410 => closed(Code::NotFound),
        407 => closed(Code::Proxy),
        409 => Verdict::Conflict(explained(Code::Refused, response)),
        413 => Verdict::TooLarge(explained(Code::TooLarge, response)),
        429 => unavailable(Code::RateLimited),
        503 if retry_after.is_some() => unavailable(Code::Http5xx),
        408 | 425 | 500..=599 => Verdict::Trouble(explained(Code::Http5xx, response)),
        _ => Verdict::Doubtful(explained(Code::Refused, response)),
    }
}

fn redirect(response: &ReceiverResponse) -> Reason {
    let Some(location) = response.location.as_deref() else {
        let text = format!("the receiver answered {} without a Location", response.status);
        return Reason::new(Code::Redirect, text);
    };
    let text = format!(
        "the receiver answered {} and points to {}; redirects are not followed",
        response.status,
        excerpt(location)
    );
    let without_quote = format!("the receiver answered {}; redirects are not followed", response.status);
    Reason { without_quote: Some(without_quote), ..Reason::new(Code::Redirect, text) }
}

/// The reason that a response gives, with its status and its words.
fn explained(code: Code, response: &ReceiverResponse) -> Reason {
    Reason::quoting(code, format!("the receiver answered {}", response.status), &excerpt(&response.body))
}

/// The beginning of an untrusted text in one line, without control characters and email addresses: the log and the
/// outbox are read by more people than the events' authors.
pub(super) fn excerpt(text: &str) -> String {
    let ends = [' ', '"', '\'', ',', '<', '>', '(', ')', ':', ';'];
    // Addresses are masked before the text is cut, or half an address could remain.
    let mut line = String::new();
    for word in text.split_whitespace().flat_map(|word| [" "].into_iter().chain(word.split_inclusive(ends))) {
        let name = word.trim_end_matches(ends);
        match AT_SIGNS.iter().any(|at| name.contains(at)) {
            true => line.extend(["…@…", &word[name.len()..]]),
            false => line.push_str(word),
        }
        // The line begins with a space, which is trimmed later.
        if line.chars().nth(1 + MAX_QUOTE).is_some() {
            break;
        }
    }
    let mut excerpt: String =
        line.trim_start().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_QUOTE).collect();
    if line.trim_start().chars().nth(MAX_QUOTE).is_some() {
        excerpt.push('…');
    }
    excerpt
}

/// Whether a body is a web page (or any XML), which no receiver of events answers: its first character past byte order
/// marks and white space is `<`. In UTF-16, read as if it were UTF-8, the marks are replacement characters and every
/// second byte is a NUL.
pub(super) fn is_page(body: &str) -> bool {
    body.trim_start_matches(|c: char| c.is_whitespace() || ['\u{feff}', '\u{fffd}', '\0'].contains(&c))
        .starts_with('<')
}

/// The longest of several `Retry-After`, so that nobody who asks is asked too early.
fn longest_retry_after(values: &[String], date: Timestamp) -> Option<Duration> {
    values.iter().filter_map(|text| parse_retry_after(text, date)).max()
}

/// Parses a `Retry-After` (RFC 9110, 10.2.3), capped; `None` for an invalid or past one. A date counts from `date`, the
/// answer's own: the receiver's clock may differ from this machine's.
fn parse_retry_after(text: &str, date: Timestamp) -> Option<Duration> {
    let text = text.trim();
    let wait = parse_seconds(text).or_else(|| Some(Timestamp::parse_http_date(text)?.since(date)))?;
    (!wait.is_zero()).then(|| wait.min(MAX_RETRY_AFTER))
}

/// A number of seconds, rounded up: the standard has no fractions, but servers send them.
fn parse_seconds(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds = whole.parse().unwrap_or(u64::MAX);
    Some(Duration::from_secs(seconds.saturating_add(u64::from(fraction.bytes().any(|b| b != b'0')))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(784_111_777_000); // Sun, 06 Nov 1994 08:49:37 GMT

    fn verdict(status: u16) -> Verdict {
        classify(&ReceiverResponse { status, ..ReceiverResponse::default() }, NOW)
    }

    #[test]
    fn every_status_has_its_verdict() {
        for status in 100..=999u16 {
            let (name, code) = match verdict(status) {
                Verdict::Accepted => ("accepted", None),
                Verdict::Unavailable { reason, .. } => ("unavailable", Some(reason.code)),
                Verdict::Trouble(reason) => ("trouble", Some(reason.code)),
                Verdict::Closed(reason) => ("closed", Some(reason.code)),
                Verdict::Forbidden(reason) => ("forbidden", Some(reason.code)),
                Verdict::Doubtful(reason) => ("doubtful", Some(reason.code)),
                Verdict::Conflict(reason) => ("conflict", Some(reason.code)),
                Verdict::TooLarge(reason) => ("too large", Some(reason.code)),
            };
            let want = match status {
                200..=299 => ("accepted", None),
                408 | 425 | 500..=599 => ("trouble", Some(Code::Http5xx)),
                429 => ("unavailable", Some(Code::RateLimited)),
                300..=399 => ("closed", Some(Code::Redirect)),
                401 => ("closed", Some(Code::KeyRefused)),
                403 => ("forbidden", Some(Code::KeyRefused)),
                404 | 405 | 410 => ("closed", Some(Code::NotFound)),
                407 => ("closed", Some(Code::Proxy)),
                409 => ("conflict", Some(Code::Refused)),
                413 => ("too large", Some(Code::TooLarge)),
                _ => ("doubtful", Some(Code::Refused)),
            };
            assert_eq!((name, code), want, "{status}");
        }
    }

    #[test]
    fn a_redirect_says_where_it_points() {
        for (location, text) in [
            (
                Some("https://k.test/"),
                "the receiver answered 301 and points to https://k.test/; redirects are not followed",
            ),
            (None, "the receiver answered 301 without a Location"),
        ] {
            let response = ReceiverResponse {
                status: 301,
                location: location.map(str::to_owned),
                ..ReceiverResponse::default()
            };
            let Verdict::Closed(reason) = classify(&response, NOW) else { panic!("{location:?}") };
            assert_eq!((reason.code, reason.text.as_str()), (Code::Redirect, text));
            assert!(!reason.public().text.contains("k.test"), "{reason:?}");
        }
    }

    #[test]
    fn an_excerpt_is_cut_by_characters_not_bytes() {
        let body = "𝄞".repeat(MAX_QUOTE) + " and so on";
        assert_eq!(excerpt(&body), "𝄞".repeat(MAX_QUOTE) + "…");
    }

    #[test]
    fn retry_after_is_read_in_every_usual_form_and_capped() {
        for (text, seconds) in [
            ("7", Some(7)),
            (" 120 ", Some(120)),
            ("007", Some(7)),
            ("0", None),
            ("-1", None),
            ("-0.5", None),
            ("1000000000", Some(3600)),
            ("99999999999999999999999", Some(3600)),
            ("99999999999999999999999.5", Some(3600)),
            ("6.5", Some(7)),
            ("6.000", Some(6)),
            ("6.0001", Some(7)),
            ("6.", Some(6)),
            ("0.001", Some(1)),
            ("0.0", None),
            ("3599.5", Some(3600)),
            ("3600.5", Some(3600)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:47 UTC", Some(10)),
            ("Sun, 06 Nov 1994 08:49:47 +0000", Some(10)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10)),
            ("Sun Nov  6 08:49:47 1994", Some(10)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:27 GMT", None),
            ("Sun, 06 Nov 1994 09:49:47 +0100", None),
            ("Mon, 07 Nov 1994 08:49:37 GMT", Some(3600)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", None),
            ("soon", None),
            ("1e9", None),
            ("1.5.2", None),
            (".5", None),
            (".", None),
            ("inf", None),
            ("+7", None),
            ("7s", None),
            ("٧", None),
            ("", None),
        ] {
            assert_eq!(parse_retry_after(text, NOW), seconds.map(Duration::from_secs), "{text:?}");
        }
    }

    /// The pause that a 429 with these headers asks for, at a clock that shows [`NOW`].
    fn pause(retry_after: &[&str], date: Option<Timestamp>) -> Option<Duration> {
        let retry_after = retry_after.iter().map(|&text| text.to_owned()).collect();
        let response = ReceiverResponse { status: 429, retry_after, date, ..ReceiverResponse::default() };
        match classify(&response, NOW) {
            Verdict::Unavailable { retry_after, .. } => retry_after,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_retry_after_date_counts_from_the_answers_own_date() {
        let at = "Sun, 06 Nov 1994 08:49:47 GMT";
        let years = |years: u64| Duration::from_secs(years * 365 * 86_400);
        for (date, seconds) in [
            (None, Some(10)),
            (Some(NOW), Some(10)),
            (Some(Timestamp(NOW.0 - 50_000)), Some(60)),
            (Some(Timestamp(NOW.0 + 10_000)), None),
            (Some(NOW.plus(years(10))), None),
            (Some(NOW.minus(years(10))), Some(3600)),
        ] {
            assert_eq!(pause(&[at], date), seconds.map(Duration::from_secs), "{date:?}");
        }
        assert_eq!(pause(&["7"], Some(NOW.plus(years(10)))), Some(Duration::from_secs(7)));
    }

    #[test]
    fn of_several_retry_after_the_longest_is_obeyed() {
        assert_eq!(pause(&["7", "120", "soon"], None), Some(Duration::from_secs(120)));
        assert_eq!(
            pause(&["soon", "Sun, 06 Nov 1994 08:49:47 GMT", "7"], None),
            Some(Duration::from_secs(10))
        );
        assert_eq!(pause(&["soon", "0"], None), None);
        assert_eq!(pause(&[], None), None);
    }

    #[test]
    fn a_page_is_not_acceptance_and_anything_else_is() {
        for body in [
            "\n <!DOCTYPE html><title>Log in</title>",
            "<html>",
            "<!-- login -->",
            "<?xml version=\"1.0\"?><html/>",
            "<script>location='/login'</script>",
            "\u{feff}<html>",
            "\u{feff}\r\n\t <html>",
            " \u{feff}\u{a0}<html>",
            &String::from_utf8_lossy(b"\xff\xfe<\0h\0t\0m\0l\0"),
            &String::from_utf8_lossy(b"\xfe\xff\0<\0h\0t\0m\0l"),
        ] {
            let response =
                ReceiverResponse { status: 200, body: body.to_owned(), ..ReceiverResponse::default() };
            let Verdict::Closed(reason) = classify(&response, NOW) else { panic!("{body}") };
            assert_eq!(reason.code, Code::NotTheReceiver);
        }
        for body in [
            "",
            " \r\n",
            "ok",
            r#"{"ok":true}"#,
            r#"{"page":"<html>"}"#,
            "\u{feff}{}",
            "1 < 2",
            "\u{1f}\u{fffd}\u{8}",
        ] {
            let response =
                ReceiverResponse { status: 200, body: body.to_owned(), ..ReceiverResponse::default() };
            assert_eq!(classify(&response, NOW), Verdict::Accepted, "{body}");
        }
    }

    #[test]
    fn a_response_is_quoted_in_one_clean_line() {
        let refusal = |body: &str| {
            let response = ReceiverResponse { status: 400, body: body.into(), ..ReceiverResponse::default() };
            match classify(&response, NOW) {
                Verdict::Doubtful(reason) => {
                    assert_eq!(reason.public().text, "the receiver answered 400");
                    reason.text
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            refusal("{\"error\":\n\"no\\u001b[31m <ana@acme.dev>\"}\u{1b}[0m"),
            "the receiver answered 400: {\"error\": \"no\\u001b[31m <…@…>\"} [0m"
        );
        assert_eq!(refusal(""), "the receiver answered 400");
        assert_eq!(refusal(&"x".repeat(999)).chars().count(), "the receiver answered 400: ".len() + 201);
        let suspended = refusal(r#"{"error":"Koala ingest suspended"}"#);
        assert_eq!(suspended, r#"the receiver answered 400: {"error":"Koala ingest suspended"}"#);
    }
}
