//! One request: read it, apply faults, check rules, store, answer.

use super::faults::{Faults, Refusal, is_drawn};
use super::rules::{ACCOUNTS, BatchForm, PEOPLE};
use super::store::{BatchCounts, ReceivedRequest, RequestClass};
use super::{Notice, Shared};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, DATE, HOST, HeaderMap, HeaderValue, ORIGIN, USER_AGENT};
use hyper::http::uri::Authority;
use hyper::{Method, Response, StatusCode};
use serde::Serialize;
use std::net::IpAddr;
use std::sync::Arc;

/// The largest body: three times the size of 90 items of 32 KiB, which is the agent's largest event.
const MAX_BODY: usize = 10 * 1024 * 1024;

/// The error that makes hyper break the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is broken on purpose")]
pub(super) struct BreakConnection;

type HttpResponse = Response<Full<Bytes>>;

/// Answers one request with the date of the receiver's clock, or breaks its connection.
pub(super) async fn answer_dated(
    shared: Arc<Shared>,
    request: hyper::Request<Incoming>,
) -> Result<HttpResponse, BreakConnection> {
    let clock = shared.clock.clone();
    let mut answer = answer(shared, request).await?;
    if let Ok(date) = HeaderValue::from_str(&clock.now().to_http_date()) {
        answer.headers_mut().insert(DATE, date);
    }
    Ok(answer)
}

async fn answer(
    shared: Arc<Shared>,
    request: hyper::Request<Incoming>,
) -> Result<HttpResponse, BreakConnection> {
    if let Err(refusal) = check_sender(&request) {
        shared.notify(Notice::Refused { status: refusal.status.as_u16(), why: refusal.why.clone() });
        return Ok(refuse(refusal));
    }
    let path = request.uri().path().to_owned();
    if path.starts_with("/web/") {
        answer_koala(&shared, &path, request).await
    } else if let Some(name) = path.strip_prefix("/receiver/") {
        answer_control(&shared, name, request).await
    } else {
        let why = "only Koala's paths, /web/projects/<public_key>/…, and /receiver/… are answered here";
        Ok(refuse(Refusal::new(StatusCode::NOT_FOUND, why)))
    }
}

/// Refuses the requests of web pages: a page of another site sends an Origin with whatever changes something, and a page
/// that has pointed a name of its own at this machine (DNS rebinding) names it in Host.
fn check_sender(request: &hyper::Request<Incoming>) -> Result<(), Refusal> {
    let refused = |status, why: &str| Err(Refusal::new(status, why));
    if request.headers().contains_key(ORIGIN) {
        let why = "requests with an Origin header come from web pages, which may not use this receiver";
        return refused(StatusCode::FORBIDDEN, why);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return refused(StatusCode::BAD_REQUEST, "a request must have one Host header");
    };
    let host = Authority::try_from(host.as_bytes()).ok();
    // A request to a proxy names the host in its first line as well.
    if !host.is_some_and(|host| is_local(&host)) || !request.uri().authority().is_none_or(is_local) {
        let why =
            "Host must be an IP address or localhost: by another name, a web page could reach this receiver";
        return refused(StatusCode::FORBIDDEN, why);
    }
    Ok(())
}

/// Whether nobody else decides which machine that is: an IP address, or localhost.
fn is_local(host: &Authority) -> bool {
    let name = host.host();
    let ip = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || ip.parse::<IpAddr>().is_ok()
}

/// The decision on a request to one of Koala's paths.
enum Decision {
    Accepted { counts: BatchCounts, notes: Vec<String>, is_answered: bool },
    GoodKey,
    Refused(Refusal),
    Dropped(&'static str),
}

async fn answer_koala(
    shared: &Shared,
    path: &str,
    request: hyper::Request<Incoming>,
) -> Result<HttpResponse, BreakConnection> {
    let target = Target::parse(path);
    let mut record = ReceivedRequest {
        number: shared.store().count_arrival(),
        received_at: shared.clock.now(),
        method: request.method().to_string(),
        path: target.path_without_key(),
        who: None,
        message_ids: Vec::new(),
        status: None,
        why: None,
    };
    let decision = decide(shared, &target, request, &mut record).await;
    let (class, notice, answer) = match decision {
        Decision::Accepted { counts, notes, is_answered } => {
            notes.into_iter().for_each(|note| shared.notify(Notice::Note(note)));
            record.why = (!is_answered).then(|| "accepted, and the connection broken on purpose".to_owned());
            let who = record.who.clone().unwrap_or_default();
            let items = counts.new + counts.repeats;
            let notice = Notice::Accepted { who, items, repeats: counts.repeats };
            let answer = if is_answered { Ok(no_content()) } else { Err(BreakConnection) };
            (RequestClass::AcceptedBatch, Some(notice), answer)
        }
        Decision::GoodKey => (RequestClass::GoodKey, None, Ok(no_content())),
        Decision::Refused(refusal) => {
            record.why = Some(refusal.why.clone());
            let notice = Notice::Refused { status: refusal.status.as_u16(), why: refusal.why.clone() };
            (RequestClass::NotAccepted, Some(notice), Ok(refuse(refusal)))
        }
        Decision::Dropped(why) => {
            record.why = Some(why.to_owned());
            let notice = Notice::Dropped { why: why.to_owned() };
            (RequestClass::NotAccepted, Some(notice), Err(BreakConnection))
        }
    };
    record.status = answer.as_ref().ok().map(|answer| answer.status().as_u16());
    shared.store().record(record, class);
    if let Some(notice) = notice {
        shared.notify(notice);
    }
    answer
}

async fn decide(
    shared: &Shared,
    target: &Target<'_>,
    request: hyper::Request<Incoming>,
    record: &mut ReceivedRequest,
) -> Decision {
    let faults = shared.faults();
    if faults.offline {
        return Decision::Dropped("offline, on purpose");
    }
    let (head, body) = request.into_parts();
    let body = match read_body(body).await {
        Ok(body) => body,
        Err(BodyError::TooLarge(refusal)) => return Decision::Refused(refusal),
        Err(BodyError::Interrupted) => return Decision::Dropped("the request broke off"),
    };
    let batch = target.form().filter(|_| head.method == Method::POST).map(|form| form.read(&body));
    if let Some(Ok(batch)) = &batch {
        record.who = Some(batch.who.clone());
        record.message_ids = batch.items.iter().map(|item| item.message_id.to_string()).collect();
    }
    if faults.latency_ms > 0 {
        tokio::time::sleep(faults.latency()).await;
    }
    let refusal = faults.refusal(&mut shared.rng(), body.len(), &record.message_ids);
    if let Some(refusal) = refusal {
        return Decision::Refused(refusal);
    }
    if let Err(refusal) = target.check_head(shared, &head.method, &head.headers) {
        return Decision::Refused(refusal);
    }
    let batch = match batch {
        None => return Decision::GoodKey,
        Some(Err(rule)) => return Decision::Refused(Refusal::new(StatusCode::BAD_REQUEST, rule)),
        Some(Ok(batch)) => batch,
    };
    let Some(counts) = shared.store().accept(&batch, record.number, record.received_at) else {
        let why = "the receiver is full: DELETE /receiver/events empties it";
        return Decision::Refused(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
    };
    let is_answered = !is_drawn(&mut shared.rng(), faults.drop_after_accept);
    Decision::Accepted { counts, notes: batch.notes, is_answered }
}

/// The resource that a path under `/web/` names.
enum Target<'a> {
    Batch { key: &'a str, form: &'static BatchForm },
    Auth { key: &'a str },
    Unknown,
}

impl Target<'_> {
    fn parse(path: &str) -> Target<'_> {
        let Some((key, rest)) = path.strip_prefix("/web/projects/").and_then(|rest| rest.split_once('/'))
        else {
            return Target::Unknown;
        };
        let form = [&PEOPLE, &ACCOUNTS].into_iter().find(|form| form.path == rest);
        match (key, rest, form) {
            ("", ..) => Target::Unknown,
            (_, _, Some(form)) => Target::Batch { key, form },
            (_, "auth", _) => Target::Auth { key },
            _ => Target::Unknown,
        }
    }

    fn form(&self) -> Option<&'static BatchForm> {
        match self {
            Target::Batch { form, .. } => Some(form),
            Target::Auth { .. } | Target::Unknown => None,
        }
    }

    /// The path for logs and answers: the key is a secret.
    fn path_without_key(&self) -> String {
        let rest = match self {
            Target::Batch { form, .. } => form.path,
            Target::Auth { .. } => "auth",
            Target::Unknown => "…",
        };
        format!("/web/projects/<public_key>/{rest}")
    }

    /// Checks the rules for the head of a request.
    fn check_head(&self, shared: &Shared, method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
        let (key, allowed) = match self {
            Target::Batch { key, .. } => (key, "POST"),
            Target::Auth { key } => (key, "GET"),
            Target::Unknown => {
                let why = "Koala has batch, accounts/batch and auth under /web/projects/<public_key>";
                return Err(Refusal::new(StatusCode::NOT_FOUND, why));
            }
        };
        if method.as_str() != allowed {
            return Err(not_allowed(&self.path_without_key(), allowed));
        }
        if shared.expected_key.as_ref().is_some_and(|expected| expected != key) {
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "the key is not the one expected here"));
        }
        if headers.get(USER_AGENT).is_none_or(|agent| agent.is_empty()) {
            let why = "User-Agent must be there: Koala silently drops requests without it";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
        }
        Ok(())
    }
}

/// Answers a request to one of the receiver's own paths.
async fn answer_control(
    shared: &Shared,
    name: &str,
    request: hyper::Request<Incoming>,
) -> Result<HttpResponse, BreakConnection> {
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
            no_content()
        }
        ("PUT", "faults") => match read_body(request.into_body()).await {
            Ok(body) => match Faults::from_json(&body) {
                Ok(faults) => {
                    shared.set_faults(faults);
                    no_content()
                }
                Err(why) => refuse(Refusal::new(StatusCode::BAD_REQUEST, why)),
            },
            Err(BodyError::TooLarge(refusal)) => refuse(refusal),
            Err(BodyError::Interrupted) => return Err(BreakConnection),
        },
        _ => refuse(not_allowed(&format!("/receiver/{name}"), allowed)),
    })
}

fn not_allowed(path: &str, allowed: &'static str) -> Refusal {
    let why = format!("{path} takes {allowed}");
    let header = Some((ALLOW, HeaderValue::from_static(allowed)));
    Refusal { header, ..Refusal::new(StatusCode::METHOD_NOT_ALLOWED, why) }
}

/// The reason that a body could not be read to its end.
enum BodyError {
    TooLarge(Refusal),
    Interrupted,
}

async fn read_body(body: Incoming) -> Result<Bytes, BodyError> {
    let too_large = || {
        let why = format!("a body must have at most {MAX_BODY} bytes");
        BodyError::TooLarge(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, why))
    };
    // A sender that asks first, with Expect, is refused before it sends the body.
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(_) => Err(BodyError::Interrupted),
    }
}

fn response(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> HttpResponse {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer
}

fn no_content() -> HttpResponse {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

fn json(value: &impl Serialize) -> HttpResponse {
    match serde_json::to_vec(value) {
        Ok(text) => response(StatusCode::OK, "application/json", text),
        Err(e) => response(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", e.to_string()),
    }
}

fn refuse(refusal: Refusal) -> HttpResponse {
    #[derive(Serialize)]
    struct ErrorBody {
        error: String,
    }
    let mut answer = match refusal.page {
        Some(page) => response(refusal.status, "text/html; charset=utf-8", page),
        None => json(&ErrorBody { error: refusal.why }),
    };
    *answer.status_mut() = refusal.status;
    answer.headers_mut().extend(refusal.header);
    answer
}
