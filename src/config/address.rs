//! The addresses that requests go to: the endpoint and the proxy.
//!
//! They are read by the parser that the client uses, so both agree on what the host is.

use reqwest::Url;
use std::net::IpAddr;

/// The endpoint as scheme and host, or what is wrong with it: a clause that follows the key's name.
pub(super) fn endpoint(text: &str) -> Result<String, &'static str> {
    let url = web_address(text).ok_or("wants scheme and host, such as \"https://api2.getkoala.com\"")?;
    if url.path() != "/" {
        return Err("has a path; the agent adds its own, so leave scheme and host alone");
    }
    bare(&url)
}

/// The proxy's address as it was written, or what is wrong with it. It may hold a password.
pub(super) fn proxy(text: &str) -> Result<String, &'static str> {
    let mut url =
        web_address(text).ok_or("wants http:// or https://, host and port, such as \"http://proxy:3128\"")?;
    if url.path() != "/" {
        return Err("has a path; leave scheme, host and port alone");
    }
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    bare(&url).map(|_| text.trim().to_owned())
}

/// Whether a request to this address stays on the machine.
pub(super) fn is_loopback(endpoint: &str) -> bool {
    let Some(url) = web_address(endpoint) else { return false };
    let host = url.host_str().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// Whether requests to this address are readable on their way.
pub(super) fn is_plain(endpoint: &str) -> bool {
    endpoint.starts_with("http:")
}

fn web_address(text: &str) -> Option<Url> {
    // The parser would forgive a missing "//".
    let url = Url::parse(text.trim()).ok().filter(|_| text.contains("://"))?;
    (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(url)
}

fn bare(url: &Url) -> Result<String, &'static str> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has a user or password in it; leave scheme and host alone");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("has a query or fragment; leave scheme and host alone");
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
            ("https://k.test/v1", "has a path"),
            ("https://k.test//", "has a path"),
            ("https://user@k.test", "has a user or password"),
            ("https://:pw@k.test", "has a user or password"),
            ("https://k.test?a=1", "has a query"),
            ("https://k.test/#a", "has a query or fragment"),
            ("k.test", "wants scheme and host"),
            ("https:k.test", "wants scheme and host"),
            ("https://", "wants scheme and host"),
            ("ftp://k.test", "wants scheme and host"),
            ("", "wants scheme and host"),
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
