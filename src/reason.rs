//! Why something is as it is: a code from a closed list, and a sentence for a person.
//!
//! Every skip, failure, block and refusal carries a [`Reason`]. The codes are part of the interface:
//! programs match on them, so a code is never renamed and a new one is an addition.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The error with which Koala's hosted service has refused every request since it was shut down.
pub const SUSPENDED: &str = "Koala ingest suspended";

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

            /// The code as it stands in JSON, in the database and on the screen.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text),* }
            }

            /// The code of that name, if there is one.
            pub fn parse(text: &str) -> Option<Code> {
                match text { $($text => Some(Code::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    /// The receiver's name could not be resolved.
    Dns = "dns",
    /// No connection, or it broke before the answer was whole.
    Connect = "connect",
    /// No trust: a certificate that is unknown, expired or for another name, or no TLS at all.
    Tls = "tls",
    /// No answer in time.
    Timeout = "timeout",
    /// The configured proxy did not let the request through.
    Proxy = "proxy",
    /// The receiver is in trouble: 5xx, 408 or 425.
    Http5xx = "http_5xx",
    /// The receiver asked for fewer requests: 429.
    RateLimited = "rate_limited",
    /// There is no public key yet.
    NoKey = "no_key",
    /// The receiver refuses the key: 401 or 403.
    KeyRefused = "key_refused",
    /// The address is wrong or the service is gone: 404, 405, 407, 410.
    NotFound = "not_found",
    /// The receiver refuses everybody's events, so no event is to blame.
    RefusesAll = "refuses_all",
    /// Something answered that is not Koala: a portal or a proxy with a page of its own.
    NotTheReceiver = "not_the_receiver",
    /// The receiver points elsewhere; the key does not travel to another host.
    Redirect = "redirect",
    /// No mapping wants an event of this kind.
    NoMapping = "no_mapping",
    /// Neither a profile_id nor an email says whose event it is.
    NoIdentity = "no_identity",
    /// The browser library has sent this event to Koala already.
    BrowserLibrary = "browser_library",
    /// The event's own `integrations` turn Koala off.
    IntegrationsOff = "integrations_off",
    /// The person has refused a category of consent that the configuration asks for.
    NoConsent = "no_consent",
    /// The person was erased, and this came later.
    Erased = "erased",
    /// A field is missing or of the wrong kind, so no request can be made.
    InvalidField = "invalid_field",
    /// The event is larger than a limit.
    TooLarge = "too_large",
    /// The receiver refused this very event, and took others.
    Refused = "refused",
    /// The text is not JSON.
    NotJson = "not_json",
    /// The text is JSON, but not an event.
    NotAnEvent = "not_an_event",
    /// The messageId was used before for an event with other content.
    MessageIdReused = "message_id_reused",
    /// The JSON is nested deeper than the limit.
    TooDeep = "too_deep",
    /// The file cannot be read.
    Unreadable = "unreadable",
    /// The outbox has reached `outbox.max_bytes`.
    MaxBytes = "max_bytes",
    /// The file system has less room than `outbox.min_free`.
    MinFree = "min_free",
    /// The file system is full.
    DiskFull = "disk_full",
    /// The file system cannot be written.
    ReadOnly = "read_only",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A code and a sentence for a person; the sentence says what the receiver said, where it said anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// From the closed list.
    pub code: Code,
    /// For a person: lower case, no full stop, no key, no piece of an event's body.
    pub text: String,
}

impl Reason {
    /// A reason of that code and text.
    pub fn new(code: Code, text: impl Into<String>) -> Reason {
        Reason { code, text: text.into() }
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
    fn every_code_is_read_back_from_its_name() {
        for &code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), Some(code));
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
        assert_eq!(Code::ALL.len(), 31);
    }
}
