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
    /// The `Retry-After` header.
    pub retry_after: Option<String>,
    /// The `Content-Type` header.
    pub content_type: Option<String>,
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
    /// The receiver cannot accept events for now: all events wait, at least as long as it asks.
    Trouble {
        /// The reason of the failure.
        reason: Reason,
        /// The receiver's `Retry-After`, at most [`MAX_RETRY_AFTER`].
        retry_after: Option<Duration>,
    },
    /// The key, the address or the service is wrong: all events wait until a person acts.
    Closed(Reason),
    /// Either one of these events is invalid, or the receiver refuses all events.
    Doubtful(Reason),
    /// The request is larger than the receiver accepts.
    TooLarge(Reason),
}

/// The verdict on a response, by the table in the README.
pub fn classify(response: &ReceiverResponse, now: Timestamp) -> Verdict {
    let closed = |code| Verdict::Closed(explained(code, response));
    let trouble = |code| Verdict::Trouble {
        reason: explained(code, response),
        retry_after: response.retry_after.as_deref().and_then(|text| parse_retry_after(text, now)),
    };
    match response.status {
        200..=299 if is_html(response) => Verdict::Closed(Reason::new(
            Code::NotTheReceiver,
            format!(
                "something other than Koala answered {} with a web page: a captive portal or a proxy is in between",
                response.status
            ),
        )),
        200..=299 => Verdict::Accepted,
        300..=399 => Verdict::Closed(redirect(response)),
        401 | 403 => closed(Code::KeyRefused),
        404 | 405 | 410 => closed(Code::NotFound),
        407 => closed(Code::Proxy),
        413 => Verdict::TooLarge(explained(Code::TooLarge, response)),
        429 => trouble(Code::RateLimited),
        408 | 425 | 500..=599 => trouble(Code::Http5xx),
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

fn is_html(response: &ReceiverResponse) -> bool {
    let content_type = response.content_type.as_deref().unwrap_or_default().trim_start().to_ascii_lowercase();
    let body: String = response.body.trim_start().chars().take(9).collect::<String>().to_ascii_lowercase();
    content_type.starts_with("text/html")
        || content_type.starts_with("application/xhtml")
        || body.starts_with("<!doctype")
        || body.starts_with("<html")
}

/// Parses both forms of `Retry-After` (RFC 9110, 10.2.3), capped; `None` for an invalid or past one.
fn parse_retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    let wait = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        Timestamp::from_system(httpdate::parse_http_date(text).ok()?).since(now)
    };
    (!wait.is_zero()).then(|| wait.min(MAX_RETRY_AFTER))
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
                Verdict::Trouble { reason, .. } => ("trouble", Some(reason.code)),
                Verdict::Closed(reason) => ("closed", Some(reason.code)),
                Verdict::Doubtful(reason) => ("doubtful", Some(reason.code)),
                Verdict::TooLarge(reason) => ("too large", Some(reason.code)),
            };
            let want = match status {
                200..=299 => ("accepted", None),
                408 | 425 | 500..=599 => ("trouble", Some(Code::Http5xx)),
                429 => ("trouble", Some(Code::RateLimited)),
                300..=399 => ("closed", Some(Code::Redirect)),
                401 | 403 => ("closed", Some(Code::KeyRefused)),
                404 | 405 | 410 => ("closed", Some(Code::NotFound)),
                407 => ("closed", Some(Code::Proxy)),
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
    fn retry_after_is_read_in_both_forms_and_capped() {
        for (text, seconds) in [
            ("7", Some(7)),
            (" 120 ", Some(120)),
            ("0", None),
            ("-1", None),
            ("1000000000", Some(3600)),
            ("99999999999999999999999", Some(3600)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", None),
            ("Mon, 07 Nov 1994 08:49:37 GMT", Some(3600)),
            ("soon", None),
            ("1.5", None),
            ("", None),
        ] {
            assert_eq!(parse_retry_after(text, NOW), seconds.map(Duration::from_secs), "{text:?}");
        }
    }

    #[test]
    fn a_web_page_is_not_acceptance() {
        for (content_type, body) in [
            (Some("text/html; charset=utf-8"), ""),
            (Some("Text/HTML"), "ok"),
            (None, "\n <!DOCTYPE html><title>Log in</title>"),
            (None, "<html>"),
        ] {
            let response = ReceiverResponse {
                status: 200,
                content_type: content_type.map(str::to_owned),
                body: body.to_owned(),
                ..ReceiverResponse::default()
            };
            let Verdict::Closed(reason) = classify(&response, NOW) else { panic!("{body}") };
            assert_eq!(reason.code, Code::NotTheReceiver);
        }
        let json =
            ReceiverResponse { status: 200, body: r#"{"ok":true}"#.into(), ..ReceiverResponse::default() };
        assert_eq!(classify(&json, NOW), Verdict::Accepted);
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
