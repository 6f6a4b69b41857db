//! The HTTP client for the receiver, the only code that sends requests to it.

use super::failure::{RequestFailure, SystemResolver, innermost};
use super::receiver_clock::ReceiverClock;
use super::verdict::{ReceiverResponse, Verdict, classify, is_page};
use crate::clock::{Clock, Moment, Mono, Timestamp};
use crate::config::{self, PublicKey};
use crate::item::Endpoint;
use http_body_util::BodyExt;
use hyper::Version;
use hyper::body::Body;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, LOCATION, RETRY_AFTER};
use reqwest::{NoProxy, Proxy, RequestBuilder, Response, Url, redirect};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Koala silently drops the events of a request without a User-Agent: it takes the sender for a bot.
pub const USER_AGENT: &str = concat!("koala-agent/", env!("CARGO_PKG_VERSION"));
/// The part of a response's body that is read: a verdict needs one sentence of it. Over HTTP/2 it is also the window of a
/// stream, so that no more is buffered, and the limit of the headers.
const MAX_RESPONSE: u32 = 64 << 10;
/// The window of an HTTP/2 connection, which limits what is buffered of all responses: room for several long ones.
const MAX_BUFFERED: u32 = 16 * MAX_RESPONSE;
/// A reachable host accepts a connection within a few round trips.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that idles longer is closed, so that a changed address is looked up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections are replaced after this time even if they never idle: they would use an old address as long as a host
/// answers there. With the default time-out, a changed address is used within five minutes.
const MAX_AGE: Duration = Duration::from_secs(240);

/// The reason why a client could not be created.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The CA file cannot be used.
    #[error("cannot use koala.ca_file {path}: {text}")]
    CaFile {
        /// The path of the file.
        path: PathBuf,
        /// The problem with it.
        text: String,
    },
    /// The proxy's address is invalid. It may contain a password, so it is not shown.
    #[error("koala.proxy (or HTTPS_PROXY) is not a proxy's address: write http://host:port")]
    Proxy,
    /// The endpoint is not a URL.
    #[error("koala.endpoint {0} is not an address")]
    Endpoint(String),
    /// Any other failure.
    #[error("cannot set up HTTPS: {0}")]
    Setup(String),
}

/// A client for one destination, with its address, key, proxy and certificates.
#[derive(Debug, Clone)]
pub struct Client {
    config: Arc<config::KoalaConfig>,
    endpoint: Url,
    urls: Arc<RequestUrls>,
    key: PublicKey,
    clock: Clock,
    connections: Arc<Mutex<Connections>>,
    receiver_clock: ReceiverClock,
}

/// The URLs of all requests. Each contains the key, so `Debug` does not show them.
struct RequestUrls {
    people: Url,
    accounts: Url,
    auth: Url,
}

impl RequestUrls {
    fn new(endpoint: &Url, key: &PublicKey) -> RequestUrls {
        let url_of = |last: &str| {
            let mut url = endpoint.clone();
            url.set_path(&format!("/web/projects/{}/{last}", key.expose()));
            url
        };
        RequestUrls {
            people: url_of(Endpoint::People.path()),
            accounts: url_of(Endpoint::Accounts.path()),
            auth: url_of("auth"),
        }
    }

    fn batch(&self, endpoint: Endpoint) -> &Url {
        match endpoint {
            Endpoint::People => &self.people,
            Endpoint::Accounts => &self.accounts,
        }
    }
}

impl fmt::Debug for RequestUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestUrls(..)")
    }
}

/// A pool of connections and the time of its creation.
#[derive(Debug)]
struct Connections {
    http: reqwest::Client,
    since: Mono,
    /// A request on one of the connections failed, so the next request gets a new pool. An HTTP/1.1 connection ends with
    /// its failed request; an HTTP/2 connection stays open, and if it is the cause (the host is gone, the proxy leads
    /// nowhere), all later requests would fail too. HTTP/2 pings are no alternative: they detect only a host that is gone,
    /// and give up a slow host before the request's time-out.
    is_spent: bool,
}

impl Client {
    /// Creates a client; `None` while no key is configured.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn new(config: &config::KoalaConfig, clock: Clock) -> Result<Option<Client>, ClientError> {
        let Some(key) = config.public_key.clone() else { return Ok(None) };
        let endpoint =
            Url::parse(&config.endpoint).map_err(|_| ClientError::Endpoint(config.endpoint.clone()))?;
        let connections = Connections { http: new_pool(config)?, since: clock.mono(), is_spent: false };
        let connections = Arc::new(Mutex::new(connections));
        let urls = Arc::new(RequestUrls::new(&endpoint, &key));
        let config = Arc::new(config.clone());
        let receiver_clock = ReceiverClock::default();
        Ok(Some(Client { config, endpoint, urls, key, clock, connections, receiver_clock }))
    }

    /// The client, which notes the dates of answers there.
    pub fn with_receiver_clock(self, receiver_clock: ReceiverClock) -> Client {
        Client { receiver_clock, ..self }
    }

    /// The comparison with the receiver's clock.
    pub fn receiver_clock(&self) -> &ReceiverClock {
        &self.receiver_clock
    }

    /// Sends a batch and returns the verdict on the response.
    pub async fn batch(&self, endpoint: Endpoint, body: String) -> Verdict {
        self.batch_with_status(endpoint, body).await.0
    }

    /// Sends a batch and returns the verdict on the response and its status, if there was a whole one.
    pub async fn batch_with_status(&self, endpoint: Endpoint, body: String) -> (Verdict, Option<u16>) {
        let url = self.urls.batch(endpoint).clone();
        self.send(|http| http.post(url).header(CONTENT_TYPE, "application/json").body(body)).await
    }

    /// Asks the receiver whether it accepts the key, without sending an event, under the limits of any request. Accepted:
    /// the receiver is well.
    pub async fn auth(&self) -> Verdict {
        let url = self.urls.auth.clone();
        self.send(|http| http.get(url)).await.0
    }

    /// The pool for the next request and the time of its creation. A pool that is spent or too old is replaced.
    fn pool(&self) -> (reqwest::Client, Mono) {
        let now = self.clock.mono();
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if connections.is_spent || now.saturating_sub(connections.since) >= MAX_AGE {
            connections.since = now;
            connections.is_spent = false;
            // If the CA file has become unreadable, the old pool is better than none.
            if let Ok(http) = new_pool(&self.config) {
                connections.http = http;
            }
        }
        (connections.http.clone(), connections.since)
    }

    /// Replaces the pool created at `since` before the next request. A newer pool stays: many requests may fail at once.
    fn mark_spent(&self, since: Mono) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.is_spent |= connections.since == since;
    }

    async fn send(&self, request: impl FnOnce(&reqwest::Client) -> RequestBuilder) -> (Verdict, Option<u16>) {
        let (http, since) = self.pool();
        let sent = self.clock.moment();
        let response = match request(&http).send().await {
            Ok(response) => self.read(response, sent).await,
            // The URL contains the key.
            Err(error) => Err(RequestFailure::Http(error.without_url())),
        };
        match response {
            Ok(response) => (classify(&response, self.clock.now()), Some(response.status)),
            Err(failure) => {
                // Without TLS the connection is HTTP/1.1 and ends with the request.
                if !failure.is_connect() && self.endpoint.scheme() == "https" {
                    self.mark_spent(since);
                }
                let is_proxied = proxy_of(&self.config).is_some();
                let mut reason = failure.reason(&self.endpoint, is_proxied, |text| self.key.redact(text));
                reason.text = self.key.redact(&reason.text);
                (Verdict::Trouble { reason, retry_after: None }, None)
            }
        }
    }

    async fn read(&self, response: Response, sent: Moment) -> Result<ReceiverResponse, RequestFailure> {
        let answered = self.clock.moment();
        let (head, body) = hyper::Response::<reqwest::Body>::from(response).into_parts();
        let (body, failure) = read_beginning(body, head.version).await;
        // Only an accepted request needs the whole body; any other status decides the verdict together with its headers.
        if let Some(failure) = failure.filter(|_| head.status.is_success()) {
            return Err(failure);
        }
        let body = self.key.redact(&String::from_utf8_lossy(&body));
        let date = header_values(&head.headers, DATE).find_map(|text| Timestamp::parse_http_date(&text));
        // The clock of a portal is nobody's concern.
        if let Some(date) = date.filter(|_| !is_page(&body)) {
            self.receiver_clock.note(date, sent, answered);
        }
        Ok(ReceiverResponse {
            status: head.status.as_u16(),
            date,
            location: header_values(&head.headers, LOCATION).next().map(|text| self.key.redact(&text)),
            retry_after: header_values(&head.headers, RETRY_AFTER).collect(),
            body,
        })
    }
}

/// The beginning of a response's body, and the failure that cut it off, if one did.
async fn read_beginning(mut body: reqwest::Body, version: Version) -> (Vec<u8>, Option<RequestFailure>) {
    let (mut read, max) = (Vec::new(), MAX_RESPONSE as usize);
    while read.len() < max {
        match body.frame().await {
            Some(Ok(frame)) => {
                let chunk = frame.into_data().unwrap_or_default();
                read.extend_from_slice(&chunk[..chunk.len().min(max - read.len())]);
            }
            Some(Err(error)) => return (read, Some(RequestFailure::Http(error))),
            // A stream that is reset with NO_ERROR returns no error, but has not ended.
            None if version == Version::HTTP_2 && !body.is_end_stream() => {
                return (read, Some(RequestFailure::CutOff));
            }
            None => break,
        }
    }
    (read, None)
}

/// Creates a pool of connections; none is open yet.
///
/// Over HTTP/2, reqwest itself repeats a request, at most twice, if the receiver says that it did not process it: by
/// REFUSED_STREAM, or by a GOAWAY with a lower stream id (RFC 9113, 8.7). This stays enabled. No event is sent twice by
/// it, and without it every renewed connection, and every limit of concurrent streams, would count as a failure.
fn new_pool(config: &config::KoalaConfig) -> Result<reqwest::Client, ClientError> {
    // An error means that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .timeout(config.timeout)
        .connect_timeout(CONNECT_TIMEOUT.min(config.timeout))
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http2_initial_stream_window_size(MAX_RESPONSE)
        .http2_initial_connection_window_size(MAX_BUFFERED)
        .http2_max_header_list_size(MAX_RESPONSE)
        .dns_resolver(SystemResolver)
        .no_proxy();
    if config.endpoint.starts_with("http://") && proxy_of(config).is_none() {
        // Without TLS the system's certificates are not needed; they take a megabyte of memory.
        builder = builder.tls_certs_only([]);
    }
    if let Some(address) = proxy_of(config) {
        let proxy = Proxy::all(address).map_err(|_| ClientError::Proxy)?;
        builder = builder.proxy(proxy.no_proxy(NoProxy::from_env()));
    }
    if let Some(path) = &config.ca_file {
        let unusable = |text: String| ClientError::CaFile { path: path.clone(), text };
        let pem = std::fs::read(path).map_err(|e| unusable(e.to_string()))?;
        let certificates =
            reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| unusable(innermost(&e)))?;
        if certificates.is_empty() {
            return Err(unusable("there is no certificate in it: it must be PEM".to_owned()));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|e| ClientError::Setup(innermost(&e)))
}

/// The proxy for requests; requests to this machine use none.
fn proxy_of(config: &config::KoalaConfig) -> Option<String> {
    let environment = || ["HTTPS_PROXY", "https_proxy"].iter().find_map(|name| std::env::var(name).ok());
    let proxy = config.proxy.clone().or_else(environment);
    proxy.filter(|address| !address.is_empty() && !config.is_loopback())
}

fn header_values(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = String> {
    headers.get_all(name).into_iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}
