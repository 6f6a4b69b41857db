//! The connections to the receiver: one pool of them at a time, replaced when it is too old or has failed.

use super::failure::{SystemResolver, innermost};
use crate::clock::Mono;
use crate::config;
use reqwest::{NoProxy, Proxy, redirect};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Koala silently drops the events of a request without a User-Agent: it takes the sender for a bot.
pub const USER_AGENT: &str = concat!("koala-agent/", env!("CARGO_PKG_VERSION"));
/// The part of a response's body that is read: a verdict needs one sentence of it. Over HTTP/2 it is also the window of a
/// stream, so that no more is buffered, and the limit of the headers.
pub const MAX_RESPONSE: u32 = 64 << 10;
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

/// A pool of connections that requests are sent over.
#[derive(Debug, Clone)]
pub struct Pool {
    pub(super) http: reqwest::Client,
    /// The number of the pool: no two pools share a connection.
    pub number: u64,
}

/// The pool in use, which is replaced in time.
#[derive(Debug)]
pub struct Connections(Mutex<PoolInUse>);

/// The pool in use and the time of its creation.
#[derive(Debug)]
struct PoolInUse {
    pool: Pool,
    since: Mono,
    /// A request on one of the connections failed, so the next request gets a new pool. An HTTP/1.1 connection ends with
    /// its failed request; an HTTP/2 connection stays open, and if it is the cause (the host is gone, the proxy leads
    /// nowhere), all later requests would fail too. HTTP/2 pings are no alternative: they detect only a host that is gone,
    /// and give up a slow host before the request's time-out.
    is_spent: bool,
}

impl Connections {
    /// A first pool; no connection is open yet.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn new(config: &config::KoalaConfig, now: Mono) -> Result<Connections, ClientError> {
        let pool = Pool { http: new_pool(config)?, number: 0 };
        Ok(Connections(Mutex::new(PoolInUse { pool, since: now, is_spent: false })))
    }

    /// The pool for the next request. One that is spent or too old is replaced.
    pub fn pool(&self, config: &config::KoalaConfig, now: Mono) -> Pool {
        let mut in_use = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if in_use.is_spent || now.saturating_sub(in_use.since) >= MAX_AGE {
            (in_use.since, in_use.is_spent) = (now, false);
            // If the CA file has become unreadable, the old pool is better than none.
            if let Ok(http) = new_pool(config) {
                in_use.pool = Pool { http, number: in_use.pool.number + 1 };
            }
        }
        in_use.pool.clone()
    }

    /// Replaces that pool before the next request. A newer pool stays: many requests may fail at once.
    pub fn mark_spent(&self, pool: u64) {
        let mut in_use = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        in_use.is_spent |= in_use.pool.number == pool;
    }
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

/// Variables that name a proxy, the first that is set; the one in capitals is the usual one.
const PROXY_VARIABLES: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];

/// The place in which the proxy for requests is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxySource {
    /// `koala.proxy`
    Setting,
    /// A variable in the environment of this process.
    Variable(&'static str),
}

impl ProxySource {
    /// The place for requests to this destination; `None`: they use no proxy, as those to this machine never do.
    pub fn of(config: &config::KoalaConfig) -> Option<ProxySource> {
        let is_set = |name: &str| std::env::var(name).is_ok_and(|address| !address.is_empty());
        match &config.proxy {
            _ if config.is_loopback() => None,
            Some(_) => Some(ProxySource::Setting),
            None => PROXY_VARIABLES.into_iter().find(|name| is_set(name)).map(ProxySource::Variable),
        }
    }
}

/// The address of the proxy for requests, if they use one.
pub fn proxy_of(config: &config::KoalaConfig) -> Option<String> {
    match ProxySource::of(config)? {
        ProxySource::Setting => config.proxy.clone(),
        ProxySource::Variable(name) => std::env::var(name).ok(),
    }
}
