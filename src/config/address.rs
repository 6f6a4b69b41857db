//! The addresses that requests go to: the endpoint and the proxy.
//!
//! The parser is the one that the client uses, so that both agree on the host.

use reqwest::Url;
use std::net::IpAddr;

/// Parses the endpoint into scheme and host. The error is a clause that follows the key's name.
pub(super) fn endpoint(text: &str) -> Result<String, &'static str> {
    let url = web_address(text).ok_or("must be scheme and host, such as \"https://api2.getkoala.com\"")?;
    if url.path() != "/" {
        return Err("must not have a path, because the agent adds its own; write scheme and host only");
    }
    origin(&url)
}

/// Checks the address of a proxy and returns it as it was written. It may contain a password.
pub(super) fn proxy(text: &str) -> Result<String, &'static str> {
    let mut url = web_address(text)
        .ok_or("must be http:// or https://, host and port, such as \"http://proxy:3128\"")?;
    if url.path() != "/" {
        return Err("must not have a path; write scheme, host and port only");
    }
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    origin(&url).map(|_| text.trim().to_owned())
}

/// Whether a request to this address stays on the machine.
pub(super) fn is_loopback(endpoint: &str) -> bool {
    let Some(url) = web_address(endpoint) else { return false };
    let host = url.host_str().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// Whether requests to this address are not encrypted.
pub(super) fn is_plain(endpoint: &str) -> bool {
    endpoint.starts_with("http:")
}

fn web_address(text: &str) -> Option<Url> {
    // The parser would accept an address without "//".
    let url = Url::parse(text.trim()).ok().filter(|_| text.contains("://"))?;
    (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(url)
}

/// Scheme, host and port of an address that has nothing else.
fn origin(url: &Url) -> Result<String, &'static str> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not have a user or password; write scheme and host only");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must not have a query or fragment; write scheme and host only");
    }
    Ok(url.origin().ascii_serialization())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_scheme_and_host() {
        for (text, kept) in [
            ("https://api2.getkoala.com", "https://api2.getkoala.com"),
            (" https://api2.getkoala.com/ ", "https://api2.getkoala.com"),
            ("HTTPS://Koala.Test:8443", "https://koala.test:8443"),
            ("http://127.0.0.1:9999/", "http://127.0.0.1:9999"),
            ("http://[::1]:80", "http://[::1]"),
        ] {
            assert_eq!(endpoint(text).as_deref(), Ok(kept));
        }
        for (text, clause) in [
            ("https://k.test/v1", "must not have a path"),
            ("https://k.test//", "must not have a path"),
            ("https://user@k.test", "must not have a user or password"),
            ("https://:pw@k.test", "must not have a user or password"),
            ("https://k.test?a=1", "must not have a query"),
            ("https://k.test/#a", "must not have a query or fragment"),
            ("k.test", "must be scheme and host"),
            ("https:k.test", "must be scheme and host"),
            ("https://", "must be scheme and host"),
            ("ftp://k.test", "must be scheme and host"),
            ("", "must be scheme and host"),
        ] {
            assert!(endpoint(text).unwrap_err().starts_with(clause), "{text}");
        }
    }

    #[test]
    fn loopback_is_the_machine_itself() {
        for (address, expected) in [
            ("http://127.0.0.1:1", true),
            ("http://127.8.9.10", true),
            ("http://[::1]:8080", true),
            ("https://localhost", true),
            ("https://LOCALHOST", true),
            ("https://localhost.example.com", false),
            ("https://127.0.0.1.example.com", false),
            ("http://128.0.0.1", false),
            ("http://0.0.0.0", false),
            ("http://[::2]", false),
            ("lint", false),
        ] {
            assert_eq!(is_loopback(address), expected, "{address}");
        }
    }

    #[test]
    fn a_proxy_is_an_address_and_may_have_a_user() {
        for text in ["http://proxy:3128", "https://proxy.test", "http://ana:pw@proxy:3128/"] {
            assert_eq!(proxy(text).as_deref(), Ok(text));
        }
        for text in ["proxy:3128", "socks5://proxy:1080", "http://", "http://proxy/pac", "http://proxy?x"] {
            assert!(proxy(text).is_err(), "{text}");
        }
    }
}
