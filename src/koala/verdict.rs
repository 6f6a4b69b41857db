//! What an answer means, decided in one place: nothing downstream looks at a status code or a message.

use crate::clock::Timestamp;
use crate::reason::{Code, Reason, SUSPENDED};
use std::time::Duration;

/// The longest that a receiver may ask us to stay away. Longer wishes are more often mistakes than plans.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// What is kept of an answer's body, in characters: enough for the sentence that says what is wrong.
const MAX_QUOTE: usize = 200;

/// How an email is told in an answer: as it is, escaped in a URL, escaped in JSON.
const AT_SIGNS: [&str; 4] = ["@", "%40", "\\u0040", "&#64;"];

/// What came back.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// `Retry-After`.
    pub retry_after: Option<String>,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Location`.
    pub location: Option<String>,
    /// The beginning of the body, without the key.
    pub body: String,
}

/// What it means for the request's events and for the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every event of the request is taken.
    Accepted,
    /// The receiver is in trouble: everything waits, at least for as long as it asks.
    Trouble {
        /// What the trouble is.
        reason: Reason,
        /// How long it asks us to stay away, at most [`MAX_RETRY_AFTER`].
        retry_after: Option<Duration>,
    },
    /// The key, the address or the service is wrong: a person must act, events wait unharmed.
    Closed(Reason),
    /// Perhaps one of these events is at fault, perhaps the receiver refuses everybody.
    Doubtful(Reason),
    /// The request is too large.
    TooLarge(Reason),
}

/// Judges an answer, by the table that the README shows.
pub fn judge(answer: &Answer, now: Timestamp) -> Verdict {
    let said = said(answer);
    let closed = |code| Verdict::Closed(Reason::new(code, said.clone()));
    let trouble = |code| Verdict::Trouble {
        reason: Reason::new(code, said.clone()),
        retry_after: answer.retry_after.as_deref().and_then(|text| retry_after(text, now)),
    };
    match answer.status {
        200..=299 if is_html(answer) => Verdict::Closed(Reason::new(
            Code::NotTheReceiver,
            format!(
                "something other than Koala answered {} with a web page: a portal or a proxy stands in between",
                answer.status
            ),
        )),
        200..=299 => Verdict::Accepted,
        300..=399 => Verdict::Closed(Reason::new(
            Code::Redirect,
            format!(
                "the receiver answered {} and points to {}; redirects are not followed: set koala.endpoint to \
                 the right address",
                answer.status,
                quote(answer.location.as_deref().unwrap_or("nowhere"))
            ),
        )),
        401 | 403 => closed(Code::KeyRefused),
        404 | 405 | 410 => closed(Code::NotFound),
        407 => closed(Code::Proxy),
        413 => Verdict::TooLarge(Reason::new(Code::TooLarge, said)),
        429 => trouble(Code::RateLimited),
        408 | 425 | 500..=599 => trouble(Code::Http5xx),
        _ => Verdict::Doubtful(Reason::new(Code::Refused, said)),
    }
}

/// What the receiver said, for a person.
fn said(answer: &Answer) -> String {
    let mut text = format!("the receiver answered {}", answer.status);
    let body = quote(&answer.body);
    if !body.is_empty() {
        text.push_str(": ");
        text.push_str(&body);
    }
    if answer.body.contains(SUSPENDED) {
        text.push_str(
            "; Koala's hosted service is shut down: set koala.endpoint to a receiver that takes events",
        );
    }
    text
}

/// The beginning of a stranger's text in one line, without control characters and without emails: it is shown
/// to everybody on the machine.
pub(super) fn quote(text: &str) -> String {
    let ends = [' ', '"', '\'', ',', '<', '>', '(', ')', ':', ';'];
    // Masked before it is cut, or half an email could stay.
    let mut line = String::new();
    for word in text.split_whitespace().flat_map(|word| [" "].into_iter().chain(word.split_inclusive(ends))) {
        let name = word.trim_end_matches(ends);
        match AT_SIGNS.iter().any(|at| name.contains(at)) {
            true => line.extend(["…@…", &word[name.len()..]]),
            false => line.push_str(word),
        }
        // It begins with a space.
        if line.chars().nth(1 + MAX_QUOTE).is_some() {
            break;
        }
    }
    let mut quote: String =
        line.trim_start().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_QUOTE).collect();
    if line.trim_start().chars().nth(MAX_QUOTE).is_some() {
        quote.push('…');
    }
    quote
}

fn is_html(answer: &Answer) -> bool {
    let kind = answer.content_type.as_deref().unwrap_or_default().trim_start().to_ascii_lowercase();
    let body: String = answer.body.trim_start().chars().take(9).collect::<String>().to_ascii_lowercase();
    kind.starts_with("text/html")
        || kind.starts_with("application/xhtml")
        || body.starts_with("<!doctype")
        || body.starts_with("<html")
}

/// `Retry-After` in both its forms (RFC 9110, 10.2.3), capped; `None` for what is neither or already over.
fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
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
        judge(&Answer { status, ..Answer::default() }, NOW)
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
    fn an_answer_is_quoted_as_far_as_a_line_has_room_whatever_its_alphabet() {
        let answer = "𝄞".repeat(MAX_QUOTE) + " and so on";
        assert_eq!(quote(&answer), "𝄞".repeat(MAX_QUOTE) + "…");
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
            assert_eq!(retry_after(text, NOW), seconds.map(Duration::from_secs), "{text:?}");
        }
    }

    #[test]
    fn a_page_is_not_acceptance() {
        for (content_type, body) in [
            (Some("text/html; charset=utf-8"), ""),
            (Some("Text/HTML"), "ok"),
            (None, "\n <!DOCTYPE html><title>Log in</title>"),
            (None, "<html>"),
        ] {
            let answer = Answer {
                status: 200,
                content_type: content_type.map(str::to_owned),
                body: body.to_owned(),
                ..Answer::default()
            };
            let Verdict::Closed(reason) = judge(&answer, NOW) else { panic!("{body}") };
            assert_eq!(reason.code, Code::NotTheReceiver);
        }
        let json = Answer { status: 200, body: r#"{"ok":true}"#.into(), ..Answer::default() };
        assert_eq!(judge(&json, NOW), Verdict::Accepted);
    }

    #[test]
    fn what_the_receiver_said_is_quoted_in_one_clean_line() {
        let answer = |body: &str| {
            let answer = Answer { status: 400, body: body.into(), ..Answer::default() };
            match judge(&answer, NOW) {
                Verdict::Doubtful(reason) => reason.text,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            answer("{\"error\":\n\"no\\u001b[31m <ana@acme.dev>\"}\u{1b}[0m"),
            "the receiver answered 400: {\"error\": \"no\\u001b[31m <…@…>\"} [0m"
        );
        assert_eq!(answer(""), "the receiver answered 400");
        assert_eq!(answer(&"x".repeat(999)).chars().count(), "the receiver answered 400: ".len() + 201);
        let suspended = answer(r#"{"error":"Koala ingest suspended"}"#);
        assert!(suspended.contains(r#"{"error":"Koala ingest suspended"}"#), "{suspended}");
        assert!(suspended.contains("shut down") && suspended.contains("koala.endpoint"), "{suspended}");
    }
}
