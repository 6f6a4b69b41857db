//! The HTTP client for the receiver, the only code that sends requests to it.

use super::connections::{ClientError, Connections, MAX_RESPONSE, Pool, proxy_of};
use super::failure::RequestFailure;
use super::receiver_clock::ReceiverClock;
use super::verdict::{ReceiverResponse, Verdict, classify, is_page};
use crate::clock::{Clock, Moment, Timestamp};
use crate::config::{self, PublicKey};
use crate::item::Endpoint;
use http_body_util::BodyExt;
use hyper::Version;
use hyper::body::Body;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, LOCATION, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, Url};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::sync::Arc;

/// A client for one destination, with its address, key, proxy and certificates.
#[derive(Debug, Clone)]
pub struct Client {
    config: Arc<config::KoalaConfig>,
    endpoint: Url,
    urls: Arc<RequestUrls>,
    key: PublicKey,
    clock: Clock,
    connections: Arc<Connections>,
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

impl Client {
    /// Creates a client; `None` while no key is configured.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn new(config: &config::KoalaConfig, clock: Clock) -> Result<Option<Client>, ClientError> {
        let Some(key) = config.public_key.clone() else { return Ok(None) };
        let endpoint =
            Url::parse(&config.endpoint).map_err(|_| ClientError::Endpoint(config.endpoint.clone()))?;
        let connections = Arc::new(Connections::new(config, clock.mono())?);
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
        self.batch_over(self.pool(), endpoint, body).await.0
    }

    /// Like [`Client::batch`], over a connection of that pool. Returns also the status of the response, if there was a
    /// whole one.
    pub async fn batch_over(&self, pool: Pool, endpoint: Endpoint, body: String) -> (Verdict, Option<u16>) {
        let url = self.urls.batch(endpoint).clone();
        self.send(pool, |http| http.post(url).header(CONTENT_TYPE, "application/json").body(body)).await
    }

    /// Asks the receiver whether it accepts the key, without sending an event, under the limits of any request. Accepted:
    /// the receiver is well. Returns also the status of the response, if there was a whole one.
    pub async fn auth(&self) -> (Verdict, Option<u16>) {
        let url = self.urls.auth.clone();
        self.send(self.pool(), |http| http.get(url)).await
    }

    /// A hash of the address and the key, from which neither can be read.
    pub fn identity(&self) -> i64 {
        let mut hash = Sha256::new_with_prefix(b"koala-agent address and key\0");
        hash.update(self.urls.people.as_str());
        let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = hash.finalize().into();
        i64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    /// The pool for the next request. One that is spent or too old is replaced.
    pub fn pool(&self) -> Pool {
        self.connections.pool(&self.config, self.clock.mono())
    }

    /// Replaces that pool before the next request. A newer pool stays: many requests may fail at once.
    pub fn mark_spent(&self, pool: u64) {
        self.connections.mark_spent(pool);
    }

    async fn send(
        &self,
        pool: Pool,
        request: impl FnOnce(&reqwest::Client) -> RequestBuilder,
    ) -> (Verdict, Option<u16>) {
        let Pool { http, number } = pool;
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
                    self.mark_spent(number);
                }
                let is_proxied = proxy_of(&self.config).is_some();
                let mut reason = failure.reason(&self.endpoint, is_proxied, |text| self.key.redact(text));
                reason.text = self.key.redact(&reason.text);
                let verdict = match failure.is_connect() {
                    true => Verdict::Unavailable { reason, retry_after: None },
                    false => Verdict::Trouble(reason),
                };
                (verdict, None)
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

fn header_values(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = String> {
    headers.get_all(name).into_iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}
