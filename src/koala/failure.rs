//! Why a request got no complete response, in words for people. The errors of the libraries below name their layers; here
//! the cause is found among them.

use super::verdict::excerpt;
use crate::reason::{Code, Reason};
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::error::Error as StdError;

/// The reason why there is no complete response.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestFailure {
    #[error(transparent)]
    Http(reqwest::Error),
    #[error("the response was cut off")]
    CutOff,
}

impl RequestFailure {
    /// Whether no connection came about.
    pub(super) fn is_connect(&self) -> bool {
        matches!(self, RequestFailure::Http(error) if error.is_connect())
    }

    /// The reason to be told. `redact` takes the key out of a text.
    pub(super) fn reason(
        &self,
        endpoint: &Url,
        is_proxied: bool,
        redact: impl FnOnce(&str) -> String,
    ) -> Reason {
        let host = endpoint.host_str().unwrap_or_default();
        let address =
            endpoint.port_or_known_default().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        // A receiver that closes an HTTP/2 connection can send a message of any length.
        let cause_text = excerpt(&redact(&without_number(innermost(self))));
        if matches!(self, RequestFailure::Http(error) if error.is_timeout()) {
            Reason::new(Code::Timeout, format!("{host} did not answer in time"))
        } else if cause::<ResolveError>(self).is_some() {
            Reason::new(Code::Dns, cause_text)
        } else if let Some(error) = cause::<rustls::Error>(self) {
            Reason::new(Code::Tls, tls_text(error, host, &address))
        } else if self.is_connect() && is_proxied {
            Reason::quoting(
                Code::Proxy,
                format!("the proxy lets no connection through to {host}"),
                &cause_text,
            )
        } else if self.is_connect() {
            Reason::new(Code::Connect, format!("no connection to {address}: {cause_text}"))
        } else {
            Reason::quoting(Code::Connect, format!("the connection to {address} broke"), &cause_text)
        }
    }
}

fn tls_text(error: &rustls::Error, host: &str, address: &str) -> String {
    if matches!(error, rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) {
        return format!("{address} does not speak TLS");
    }
    format!("no trusted TLS connection with {host}: {}", tls_problem(error))
}

/// The error and all its causes. An [`std::io::Error`] hides the error that it wraps from `source`, so it is unwrapped.
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

/// The problem of a TLS connection, in plain words for common problems.
fn tls_problem(error: &rustls::Error) -> String {
    use rustls::CertificateError::*;
    use rustls::Error;
    match error {
        Error::InvalidCertificate(UnknownIssuer) => {
            "its certificate is signed by an authority that is not trusted here; set koala.ca_file to trust it"
                .into()
        }
        Error::InvalidCertificate(Expired | ExpiredContext { .. }) => "its certificate has expired".into(),
        Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
            "its certificate is not valid yet; is this machine's clock right?".into()
        }
        Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            "its certificate is for another name".into()
        }
        other => other.to_string(),
    }
}

/// The last cause, which says what happened; the others only name the layers above it.
pub(super) fn innermost(error: &(dyn StdError + 'static)) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

/// A message of the system without its number, such as ` (os error 111)`.
fn without_number(mut text: String) -> String {
    if let Some(at) = text.find(" (os error ") {
        text.truncate(at);
    }
    text
}

/// The system's resolver, with an error type that identifies a failed lookup.
#[derive(Debug)]
pub(super) struct SystemResolver;

#[derive(Debug, thiserror::Error)]
#[error("the name {name} cannot be resolved: {text}")]
struct ResolveError {
    /// The host name of the receiver or of the proxy.
    name: String,
    text: String,
}

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            match tokio::net::lookup_host((name.as_str(), 0)).await {
                Ok(addresses) => Ok(Box::new(addresses.collect::<Vec<_>>().into_iter()) as Addrs),
                Err(e) => {
                    let text = without_number(e.to_string());
                    let text = text.trim_start_matches("failed to lookup address information: ").to_owned();
                    let error = ResolveError { name: name.as_str().to_owned(), text };
                    Err(Box::new(error) as Box<dyn StdError + Send + Sync>)
                }
            }
        })
    }
}
