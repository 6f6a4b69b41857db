//! Reasons: a code from a closed list and an explanation for people. Every skip, failure, block and refusal carries one.
//!
//! Programs match on the codes, so a code is never renamed. A new code is an addition to the interface.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The error with which Koala's hosted service has refused every request since it was shut down.
pub const SUSPENDED: &str = "Koala ingest suspended";

/// The explanation of [`Code::NoKey`].
pub const NO_KEY: &str = "there is no public key yet";

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// The closed list of reason codes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
        }

        impl Code {
            /// All codes, in the order of the documentation.
            pub const ALL: &'static [Code] = &[$(Code::$variant),*];

            /// The code as JSON, the database and the output have it.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text),* }
            }

            /// The code whose [`Code::as_str`] is `text`, if there is one.
            pub fn parse(text: &str) -> Option<Code> {
                match text { $($text => Some(Code::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    /// The receiver's name could not be resolved.
    Dns = "dns",
    /// No connection, or a connection that broke before the answer was complete.
    Connect = "connect",
    /// No trusted TLS connection: the certificate is unknown, expired or for another name, or the host does not speak TLS.
    Tls = "tls",
    /// The receiver did not answer in time.
    Timeout = "timeout",
    /// The configured proxy did not let the request through.
    Proxy = "proxy",
    /// The receiver failed for now: 5xx, 408 or 425.
    Http5xx = "http_5xx",
    /// The receiver asked for fewer requests: 429.
    RateLimited = "rate_limited",
    /// No public key is configured yet.
    NoKey = "no_key",
    /// The receiver refuses the key: 401 or 403.
    KeyRefused = "key_refused",
    /// The address is wrong or the service is gone: 404, 405, 407, 410.
    NotFound = "not_found",
    /// The receiver refuses every event, so no single event is the cause.
    RefusesAll = "refuses_all",
    /// Something other than Koala answered: a captive portal or a proxy with a web page.
    NotTheReceiver = "not_the_receiver",
    /// The receiver redirects. Redirects are not followed: the key must not go to another host.
    Redirect = "redirect",
    /// No mapping takes the event.
    NoMapping = "no_mapping",
    /// The event has no identifier of a person or account.
    NoIdentity = "no_identity",
    /// The event was made by the browser library, which has sent it to Koala itself.
    BrowserLibrary = "browser_library",
    /// The event's `integrations` turn Koala off.
    IntegrationsOff = "integrations_off",
    /// The person has refused a category of consent that the configuration asks for.
    NoConsent = "no_consent",
    /// The person was erased before the event arrived.
    Erased = "erased",
    /// A field is missing or of the wrong kind, so no request can be made.
    InvalidField = "invalid_field",
    /// The event is larger than a limit.
    TooLarge = "too_large",
    /// The receiver refused this event, and accepted others.
    Refused = "refused",
    /// The receiver refused this event, and it is not proven yet that the event is to blame.
    Suspect = "suspect",
    /// The text is not JSON.
    NotJson = "not_json",
    /// The text is JSON, but not an event.
    NotAnEvent = "not_an_event",
    /// The messageId was used before, for an event with different content.
    MessageIdReused = "message_id_reused",
    /// The JSON is nested deeper than the limit.
    TooDeep = "too_deep",
    /// The file cannot be read.
    Unreadable = "unreadable",
    /// The outbox has reached `outbox.max_bytes`.
    MaxBytes = "max_bytes",
    /// The outbox is nearly full, and most of it came from files of this owner.
    OwnerShare = "owner_share",
    /// The file system has less room than `outbox.min_free`.
    MinFree = "min_free",
    /// The file system is full.
    DiskFull = "disk_full",
    /// The file system cannot be written.
    ReadOnly = "read_only",
    /// The outbox is another user's, or its mode keeps the agent from writing.
    NotWritable = "not_writable",
    /// Another process holds the lock.
    Locked = "locked",
}

impl Code {
    /// The codes of a request that got no answer, so that the receiver may have its events. Where there was no connection it
    /// has not, but to ask it for nothing is the lesser mistake.
    pub const UNANSWERED: [Code; 2] = [Code::Connect, Code::Timeout];
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A code and an explanation, which quotes the receiver's answer if there was one, for those who may read the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The code, from the closed list.
    pub code: Code,
    /// The explanation for people: lower case, no full stop, no key, and nothing of an event's body.
    pub text: String,
    /// The explanation without the receiver's own words, which may repeat what it was sent; `None`: there are none in it.
    #[serde(skip)]
    pub without_quote: Option<String>,
}

impl Reason {
    /// A reason with its code and explanation.
    pub fn new(code: Code, text: impl Into<String>) -> Reason {
        Reason { code, text: text.into(), without_quote: None }
    }

    /// A reason whose explanation ends with the receiver's own words, if there are any.
    pub fn quoting(code: Code, text: impl Into<String>, quote: &str) -> Reason {
        let text = text.into();
        match quote {
            "" => Reason::new(code, text),
            _ => Reason { code, text: format!("{text}: {quote}"), without_quote: Some(text) },
        }
    }

    /// The reason with more to its explanation.
    #[must_use]
    pub fn and(mut self, more: &str) -> Reason {
        self.text.push_str(more);
        if let Some(text) = &mut self.without_quote {
            text.push_str(more);
        }
        self
    }

    /// The reason for everybody to read: without the receiver's own words.
    pub fn public(&self) -> Reason {
        Reason::new(self.code, self.without_quote.as_ref().unwrap_or(&self.text))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_parsed_back_from_its_name() {
        for &code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), Some(code));
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
        assert_eq!(Code::ALL.len(), 35);
    }
}
