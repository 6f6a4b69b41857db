//! A request's way through the receiver: read, fault, rule, store, answer.

use super::faults::{Faults, Refusal};
use super::rules::{self, Endpoint};
use super::store::{MAX_HELD, ReceivedRequest, Taken, Verdict};
use super::{Notice, Shared};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Response, StatusCode};
use serde::Serialize;
use std::sync::Arc;

/// The largest body: thrice what 90 items of 32 KiB, the largest event of the agent, come to.
const MAX_BODY: usize = 10 * 1024 * 1024;

/// The connection is broken without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is broken on purpose")]
pub(super) struct Broken;

type Answer = Response<Full<Bytes>>;

/// Answers one request, or breaks its connection.
pub(super) async fn answer(shared: Arc<Shared>, request: hyper::Request<Incoming>) -> Result<Answer, Broken> {
    let path = request.uri().path().to_owned();
    if path.starts_with("/web/") {
        koala(&shared, &path, request).await
    } else if let Some(name) = path.strip_prefix("/receiver/") {
        own(&shared, name, request).await
    } else {
        let why = "only Koala's paths, /web/projects/<public_key>/…, and /receiver/… are answered here";
        Ok(refuse(Refusal::new(StatusCode::NOT_FOUND, why)))
    }
}

/// What becomes of a request to one of Koala's paths.
enum Outcome {
    Taken { batch: Taken, notes: Vec<String>, answered: bool },
    KeyIsGood,
    Refused(Refusal),
    Dropped(&'static str),
}

async fn koala(shared: &Shared, path: &str, request: hyper::Request<Incoming>) -> Result<Answer, Broken> {
    let target = Target::of(path);
    let mut entry = ReceivedRequest {
        number: shared.store().arrive(),
        received_at: shared.clock.now(),
        method: request.method().to_string(),
        path: target.shown(),
        who: None,
        message_ids: Vec::new(),
        status: None,
        why: None,
    };
    let outcome = decide(shared, &target, request, &mut entry).await;
    let (verdict, notice, answer) = match outcome {
        Outcome::Taken { batch, notes, answered } => {
            notes.into_iter().for_each(|note| shared.tell(Notice::Note(note)));
            entry.why = (!answered).then(|| "taken, and the connection dropped on purpose".to_owned());
            let who = entry.who.clone().unwrap_or_default();
            let items = batch.new + batch.repeats;
            let notice = Notice::Accepted { who, items, repeats: batch.repeats };
            (Verdict::Accepted, Some(notice), if answered { Ok(nothing()) } else { Err(Broken) })
        }
        Outcome::KeyIsGood => (Verdict::KeyIsGood, None, Ok(nothing())),
        Outcome::Refused(refusal) => {
            entry.why = Some(refusal.why.clone());
            let notice = Notice::Refused { status: refusal.status.as_u16(), why: refusal.why.clone() };
            (Verdict::NotTaken, Some(notice), Ok(refuse(refusal)))
        }
        Outcome::Dropped(why) => {
            entry.why = Some(why.to_owned());
            (Verdict::NotTaken, Some(Notice::Dropped { why: why.to_owned() }), Err(Broken))
        }
    };
    entry.status = answer.as_ref().ok().map(|answer| answer.status().as_u16());
    shared.store().decided(entry, verdict);
    if let Some(notice) = notice {
        shared.tell(notice);
    }
    answer
}

async fn decide(
    shared: &Shared,
    target: &Target<'_>,
    request: hyper::Request<Incoming>,
    entry: &mut ReceivedRequest,
) -> Outcome {
    let faults = shared.faults();
    if faults.offline {
        return Outcome::Dropped("offline, on purpose");
    }
    let (head, body) = request.into_parts();
    let body = match read(body).await {
        Ok(body) => body,
        Err(Unread::TooLarge(refusal)) => return Outcome::Refused(refusal),
        Err(Unread::Broken) => return Outcome::Dropped("the request broke off"),
    };
    let batch = target.batch().filter(|_| head.method == Method::POST).map(|it| rules::read(it, &body));
    if let Some(Ok(batch)) = &batch {
        entry.who = Some(batch.who.clone());
        entry.message_ids = batch.items.iter().map(|item| item.message_id.to_string()).collect();
    }
    if faults.latency_ms > 0 {
        shared.clock.sleep_until(shared.clock.mono() + faults.latency()).await;
    }
    if let Some(refusal) = faults.strike(&shared.dice, body.len(), &entry.message_ids) {
        return Outcome::Refused(refusal);
    }
    if let Err(refusal) = target.check(shared, &head.method, &head.headers) {
        return Outcome::Refused(refusal);
    }
    let batch = match batch {
        None => return Outcome::KeyIsGood,
        Some(Err(rule)) => return Outcome::Refused(Refusal::new(StatusCode::BAD_REQUEST, rule)),
        Some(Ok(batch)) => batch,
    };
    let Some(taken) = shared.store().take(&batch, entry.number, entry.received_at) else {
        let why =
            format!("{MAX_HELD} events are held, which is the most: DELETE /receiver/events empties it");
        return Outcome::Refused(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
    };
    let answered = !shared.dice.fall_within(faults.drop_after_accept);
    Outcome::Taken { batch: taken, notes: batch.notes, answered }
}

/// What a path under `/web/` asks for.
enum Target<'a> {
    Batch { key: &'a str, endpoint: Endpoint },
    Auth { key: &'a str },
    Unknown,
}

impl Target<'_> {
    fn of(path: &str) -> Target<'_> {
        let Some((key, rest)) = path.strip_prefix("/web/projects/").and_then(|rest| rest.split_once('/'))
        else {
            return Target::Unknown;
        };
        match rest {
            _ if key.is_empty() => Target::Unknown,
            "batch" => Target::Batch { key, endpoint: Endpoint::People },
            "accounts/batch" => Target::Batch { key, endpoint: Endpoint::Accounts },
            "auth" => Target::Auth { key },
            _ => Target::Unknown,
        }
    }

    fn batch(&self) -> Option<Endpoint> {
        match self {
            Target::Batch { endpoint, .. } => Some(*endpoint),
            Target::Auth { .. } | Target::Unknown => None,
        }
    }

    /// The path without the key, which is a secret wherever it is shown.
    fn shown(&self) -> String {
        let rest = match self {
            Target::Batch { endpoint: Endpoint::People, .. } => "batch",
            Target::Batch { endpoint: Endpoint::Accounts, .. } => "accounts/batch",
            Target::Auth { .. } => "auth",
            Target::Unknown => "…",
        };
        format!("/web/projects/<public_key>/{rest}")
    }

    /// The rules that the head of a request must keep.
    fn check(&self, shared: &Shared, method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
        let (key, allowed) = match self {
            Target::Batch { key, .. } => (key, "POST"),
            Target::Auth { key } => (key, "GET"),
            Target::Unknown => {
                let why = "Koala has batch, accounts/batch and auth under /web/projects/<public_key>";
                return Err(Refusal::new(StatusCode::NOT_FOUND, why));
            }
        };
        if method.as_str() != allowed {
            return Err(not_allowed(&self.shown(), allowed));
        }
        if shared.expected_key.as_ref().is_some_and(|expected| expected != key) {
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "the key is not the one expected here"));
        }
        if headers.get(USER_AGENT).is_none_or(|agent| agent.is_empty()) {
            let why = "User-Agent must be there: Koala drops what comes without it, and says nothing";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
        }
        Ok(())
    }
}

/// The paths of the receiver itself.
async fn own(shared: &Shared, name: &str, request: hyper::Request<Incoming>) -> Result<Answer, Broken> {
    let allowed = match name {
        "events" => "GET, DELETE",
        "faults" => "GET, PUT",
        "requests" | "stats" => "GET",
        _ => {
            let why = "the receiver has /receiver/events, requests, stats and faults";
            return Ok(refuse(Refusal::new(StatusCode::NOT_FOUND, why)));
        }
    };
    Ok(match (request.method().as_str(), name) {
        ("GET", "events") => json(&shared.store().events()),
        ("GET", "requests") => json(&shared.store().requests()),
        ("GET", "stats") => json(&shared.store().stats()),
        ("GET", "faults") => json(shared.faults().as_ref()),
        ("DELETE", "events") => {
            shared.store().clear();
            nothing()
        }
        ("PUT", "faults") => match read(request.into_body()).await {
            Ok(body) => match Faults::from_json(&body) {
                Ok(faults) => {
                    shared.set_faults(faults);
                    nothing()
                }
                Err(why) => refuse(Refusal::new(StatusCode::BAD_REQUEST, why)),
            },
            Err(Unread::TooLarge(refusal)) => refuse(refusal),
            Err(Unread::Broken) => return Err(Broken),
        },
        _ => refuse(not_allowed(&format!("/receiver/{name}"), allowed)),
    })
}

fn not_allowed(path: &str, allowed: &'static str) -> Refusal {
    let why = format!("{path} takes {allowed}");
    let header = Some((ALLOW, HeaderValue::from_static(allowed)));
    Refusal { header, ..Refusal::new(StatusCode::METHOD_NOT_ALLOWED, why) }
}

/// Why a body could not be read to its end.
enum Unread {
    TooLarge(Refusal),
    Broken,
}

async fn read(body: Incoming) -> Result<Bytes, Unread> {
    let too_large = || {
        let why = format!("a body must have at most {MAX_BODY} bytes");
        Unread::TooLarge(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, why))
    };
    // Who asks first, with Expect, is spared the sending.
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(_) => Err(Unread::Broken),
    }
}

fn respond(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer
}

fn nothing() -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(text) => respond(StatusCode::OK, "application/json", text),
        Err(e) => respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", e.to_string()),
    }
}

fn refuse(refusal: Refusal) -> Answer {
    #[derive(Serialize)]
    struct Told {
        error: String,
    }
    let mut answer = match refusal.page {
        Some(page) => respond(refusal.status, "text/html; charset=utf-8", page),
        None => json(&Told { error: refusal.why }),
    };
    *answer.status_mut() = refusal.status;
    answer.headers_mut().extend(refusal.header);
    answer
}
