//! The only place that speaks HTTP to the receiver.

use super::verdict::{Answer, Verdict, judge, quote};
use crate::clock::{Clock, Mono};
use crate::config::{self, PublicKey};
use crate::item::Endpoint;
use crate::reason::{Code, Reason};
use http_body_util::BodyExt;
use hyper::Version;
use hyper::body::Body;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, LOCATION, RETRY_AFTER};
use reqwest::{NoProxy, Proxy, RequestBuilder, Response, Url, redirect};
use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Without a User-Agent Koala takes the sender for a bot and drops what it sent, without an error.
pub const USER_AGENT: &str = concat!("koala-agent/", env!("CARGO_PKG_VERSION"));
/// Of an answer's body no more is read: a verdict needs one sentence of it. Over HTTP/2, where what arrives is held
/// until it is read, no more is let in either, and the headers have as much room.
const MAX_ANSWER: u32 = 64 << 10;
/// What may be held of all answers on one HTTP/2 connection: room for some that have much to say at the same time.
const MAX_HELD: u32 = 16 * MAX_ANSWER;
/// A host that is there accepts a connection within a few round trips.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that idles longer is dropped, so that an address that moves is looked up again.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A connection that never idles takes no more requests after this: it would go on to the old address for as long as
/// somebody answers there. With a request's usual time-out an address that moves is found within five minutes.
const MAX_AGE: Duration = Duration::from_secs(240);

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The CA file.
    #[error("cannot use koala.ca_file {path}: {text}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        text: String,
    },
    /// The proxy's address; it may hold a password, so it is not shown.
    #[error("koala.proxy (or HTTPS_PROXY) is not a proxy's address: write http://host:port")]
    Proxy,
    /// The endpoint.
    #[error("koala.endpoint {0} is not an address")]
    Endpoint(String),
    /// Anything else.
    #[error("cannot set up HTTPS: {0}")]
    Setup(String),
}

/// A client for one destination: its address, its key, its proxy, its trust.
#[derive(Debug, Clone)]
pub struct Client {
    config: Arc<config::KoalaConfig>,
    endpoint: Url,
    addresses: Arc<Addresses>,
    key: PublicKey,
    clock: Clock,
    connections: Arc<Mutex<Connections>>,
}

/// Where requests go. The key stands in each.
struct Addresses {
    people: Url,
    accounts: Url,
    auth: Url,
}

impl Addresses {
    fn new(endpoint: &Url, key: &PublicKey) -> Addresses {
        let address = |last: &str| {
            let mut url = endpoint.clone();
            url.set_path(&format!("/web/projects/{}/{last}", key.expose()));
            url
        };
        Addresses {
            people: address(Endpoint::People.path()),
            accounts: address(Endpoint::Accounts.path()),
            auth: address("auth"),
        }
    }

    fn of(&self, endpoint: Endpoint) -> &Url {
        match endpoint {
            Endpoint::People => &self.people,
            Endpoint::Accounts => &self.accounts,
        }
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Addresses(..)")
    }
}

/// Kept-alive connections, and since when.
#[derive(Debug)]
struct Connections {
    http: reqwest::Client,
    since: Mono,
    /// One of them failed a request. Over HTTP/1.1 it ended with it; over HTTP/2 it lives on, and where the fault is
    /// its own (the host is gone, the proxy leads nowhere) every request after would fail as that one did. Pings would
    /// find the first of these alone, and call a host dead before a request's own time is over.
    is_spent: bool,
}

/// Why there is no answer to judge.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Http(reqwest::Error),
    #[error("the answer broke off")]
    BrokeOff,
}

impl Client {
    /// A client for the destination; `None` while there is no key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn new(config: &config::KoalaConfig, clock: Clock) -> Result<Option<Client>, ClientError> {
        let Some(key) = config.public_key.clone() else { return Ok(None) };
        let endpoint =
            Url::parse(&config.endpoint).map_err(|_| ClientError::Endpoint(config.endpoint.clone()))?;
        let connections = Connections { http: http(config)?, since: clock.mono(), is_spent: false };
        let connections = Arc::new(Mutex::new(connections));
        let addresses = Arc::new(Addresses::new(&endpoint, &key));
        Ok(Some(Client { config: Arc::new(config.clone()), endpoint, addresses, key, clock, connections }))
    }

    /// Sends a request's body for people, and judges the answer.
    pub async fn batch(&self, endpoint: Endpoint, body: String) -> Verdict {
        let url = self.addresses.of(endpoint).clone();
        self.judged(|http| http.post(url).header(CONTENT_TYPE, "application/json").body(body)).await
    }

    /// Asks whether the receiver knows the key, without sending an event.
    pub async fn auth(&self) -> Verdict {
        let url = self.addresses.auth.clone();
        self.judged(|http| http.get(url)).await
    }

    /// The connections for a request and since when they are in use, new ones where those that there are have been
    /// used for long enough.
    fn http(&self) -> (reqwest::Client, Mono) {
        let now = self.clock.mono();
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if connections.is_spent || now.saturating_sub(connections.since) >= MAX_AGE {
            connections.since = now;
            connections.is_spent = false;
            // Where the CA file is gone or broken since, the old connections are better than none.
            if let Ok(http) = http(&self.config) {
                connections.http = http;
            }
        }
        (connections.http.clone(), connections.since)
    }

    /// The next request has new connections, unless those that it would have are younger: many may fail at once.
    fn spend(&self, since: Mono) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.is_spent |= connections.since == since;
    }

    async fn judged(&self, request: impl FnOnce(&reqwest::Client) -> RequestBuilder) -> Verdict {
        let (http, since) = self.http();
        let answer = match request(&http).send().await {
            Ok(response) => self.answer(response).await,
            // The URL holds the key.
            Err(error) => Err(Failure::Http(error.without_url())),
        };
        match answer {
            Ok(answer) => judge(&answer, self.clock.now()),
            Err(failure) => {
                let was_connected = !matches!(&failure, Failure::Http(error) if error.is_connect());
                // Without TLS it is HTTP/1.1.
                if was_connected && self.endpoint.scheme() == "https" {
                    self.spend(since);
                }
                self.trouble(&failure)
            }
        }
    }

    async fn answer(&self, response: Response) -> Result<Answer, Failure> {
        let (head, body) = hyper::Response::<reqwest::Body>::from(response).into_parts();
        let (body, failure) = beginning(body, head.version).await;
        // Acceptance must be whole. Any other status says enough, and its Retry-After holds.
        if let Some(failure) = failure.filter(|_| head.status.is_success()) {
            return Err(failure);
        }
        let header = |name| header(&head.headers, name).map(|text| self.key.redact(&text));
        Ok(Answer {
            status: head.status.as_u16(),
            retry_after: header(RETRY_AFTER),
            content_type: header(CONTENT_TYPE),
            location: header(LOCATION),
            body: self.key.redact(&String::from_utf8_lossy(&body)),
        })
    }

    fn trouble(&self, failure: &Failure) -> Verdict {
        let host = self.endpoint.host_str().unwrap_or_default();
        let (is_timeout, is_connect) = match failure {
            Failure::Http(error) => (error.is_timeout(), error.is_connect()),
            Failure::BrokeOff => (false, false),
        };
        // A receiver that ends an HTTP/2 connection can say why at any length.
        let said = quote(&self.key.redact(&innermost(failure)));
        let (code, text) = if is_timeout {
            (Code::Timeout, format!("{host} did not answer in time"))
        } else if cause::<ResolveError>(failure).is_some() {
            (Code::Dns, said)
        } else if let Some(error) = cause::<rustls::Error>(failure) {
            (Code::Tls, format!("no trusted TLS connection with {host}: {}", untrusted(error)))
        } else if is_connect && proxy_of(&self.config).is_some() {
            (Code::Proxy, format!("the proxy lets no connection through to {host}: {said}"))
        } else if is_connect {
            (Code::Connect, format!("no connection to {}: {said}", self.address()))
        } else {
            (Code::Connect, format!("the connection to {} broke: {said}", self.address()))
        };
        Verdict::Trouble { reason: Reason::new(code, self.key.redact(&text)), retry_after: None }
    }

    fn address(&self) -> String {
        let host = self.endpoint.host_str().unwrap_or_default();
        self.endpoint.port_or_known_default().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

/// The beginning of an answer's body, and why there is no more of it where it should go on.
async fn beginning(mut body: reqwest::Body, version: Version) -> (Vec<u8>, Option<Failure>) {
    let (mut read, most) = (Vec::new(), MAX_ANSWER as usize);
    while read.len() < most {
        match body.frame().await {
            Some(Ok(frame)) => {
                let chunk = frame.into_data().unwrap_or_default();
                read.extend_from_slice(&chunk[..chunk.len().min(most - read.len())]);
            }
            Some(Err(error)) => return (read, Some(Failure::Http(error))),
            // A stream that is reset for no error has no error, and no end either.
            None if version == Version::HTTP_2 && !body.is_end_stream() => {
                return (read, Some(Failure::BrokeOff));
            }
            None => break,
        }
    }
    (read, None)
}

/// Connections for one destination, none of them open yet.
///
/// Over HTTP/2 reqwest sends a request again by itself, at most twice, where the receiver has said that it did not
/// process it: by REFUSED_STREAM, or by a GOAWAY that does not count it in (RFC 9113, 8.7). That is left on. Nothing is
/// sent twice by it, and a receiver that renews a connection or takes fewer requests at once than come would be in
/// trouble each time.
fn http(config: &config::KoalaConfig) -> Result<reqwest::Client, ClientError> {
    // Fails only if a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .timeout(config.timeout)
        .connect_timeout(CONNECT_TIMEOUT.min(config.timeout))
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http2_initial_stream_window_size(MAX_ANSWER)
        .http2_initial_connection_window_size(MAX_HELD)
        .http2_max_header_list_size(MAX_ANSWER)
        .dns_resolver(SystemResolver)
        .no_proxy();
    if config.endpoint.starts_with("http://") && proxy_of(config).is_none() {
        // The system's authorities are not read where nobody asks them: they take a megabyte.
        builder = builder.tls_certs_only([]);
    }
    if let Some(address) = proxy_of(config) {
        let proxy = Proxy::all(address).map_err(|_| ClientError::Proxy)?;
        builder = builder.proxy(proxy.no_proxy(NoProxy::from_env()));
    }
    if let Some(path) = &config.ca_file {
        let bad = |text: String| ClientError::CaFile { path: path.clone(), text };
        let pem = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| bad(innermost(&e)))?;
        if certificates.is_empty() {
            return Err(bad("there is no certificate in it: it must be PEM".to_owned()));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|e| ClientError::Setup(innermost(&e)))
}

/// The proxy that requests go through; to this machine they go straight.
fn proxy_of(config: &config::KoalaConfig) -> Option<String> {
    let environment = || ["HTTPS_PROXY", "https_proxy"].iter().find_map(|name| std::env::var(name).ok());
    let proxy = config.proxy.clone().or_else(environment);
    proxy.filter(|address| !address.is_empty() && !config.is_loopback())
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// Walks through the causes of an error; an [`std::io::Error`] that wraps another hides it from `source`.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| {
        let error: &'a (dyn StdError + 'static) = *error;
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        wrapped.map(|inner| inner as &(dyn StdError + 'static)).or_else(|| error.source())
    })
}

fn cause<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// What is wrong with the connection, in words for the faults that people meet.
fn untrusted(error: &rustls::Error) -> String {
    use rustls::CertificateError::*;
    use rustls::{Error, InvalidMessage};
    match error {
        Error::InvalidCertificate(UnknownIssuer) => {
            "nobody who is trusted here has signed its certificate; set koala.ca_file if you trust who has"
                .into()
        }
        Error::InvalidCertificate(Expired | ExpiredContext { .. }) => "its certificate has expired".into(),
        Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
            "its certificate is not valid yet; is this machine's clock right?".into()
        }
        Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            "its certificate is for another name".into()
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => "it does not speak TLS there".into(),
        other => other.to_string(),
    }
}

/// The last cause says what happened; those before it say through which layers it came.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

/// The system's resolver, with an error that can be told from others.
#[derive(Debug)]
struct SystemResolver;

#[derive(Debug, thiserror::Error)]
#[error("the name {name} cannot be resolved: {text}")]
struct ResolveError {
    /// The receiver's or the proxy's.
    name: String,
    text: String,
}

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            match tokio::net::lookup_host((name.as_str(), 0)).await {
                Ok(addresses) => Ok(Box::new(addresses.collect::<Vec<_>>().into_iter()) as Addrs),
                Err(e) => {
                    let error = ResolveError { name: name.as_str().to_owned(), text: e.to_string() };
                    Err(Box::new(error) as Box<dyn StdError + Send + Sync>)
                }
            }
        })
    }
}
