//! Servers that speak bytes, not HTTP: what they do to a connection is a test's affair.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A server that hands every connection to a function, and remembers the bytes that came in.
pub struct Server {
    pub port: u16,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Server {
    pub fn start(serve: impl Fn(&mut TcpStream) -> Vec<u8> + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (serve, hears) = (Arc::new(serve), heard.clone());
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (serve, hears) = (serve.clone(), hears.clone());
                std::thread::spawn(move || {
                    let heard = serve(&mut connection.unwrap());
                    hears.lock().unwrap().push(heard);
                });
            }
        });
        Server { port, heard }
    }

    /// Answers each connection's first request so, then closes it.
    pub fn answering(answer: impl AsRef<[u8]> + Send + Sync + 'static) -> Server {
        Server::start(move |stream| {
            let heard = message(stream).unwrap_or_default();
            // The client may have gone already.
            let _ = stream.write_all(answer.as_ref());
            heard
        })
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }
}

/// A head up to its empty line; `None` when the other side is gone.
pub fn head(stream: &mut impl Read) -> Option<Vec<u8>> {
    let (mut heard, mut byte) = (Vec::new(), [0]);
    while !heard.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        heard.push(byte[0]);
    }
    Some(heard)
}

/// How long the body after a head is; 0 where the head does not say.
pub fn length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    length.map_or(0, |length| length.parse().unwrap())
}

/// A request or an answer, with a body of known length or without one; `None` when the other side is gone.
pub fn message(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut heard = head(stream)?;
    let mut body = vec![0; length(&heard)];
    stream.read_exact(&mut body).ok()?;
    heard.extend(body);
    Some(heard)
}

/// A file of `tests/tls`.
pub fn pem(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

/// A TLS server with one of the certificates in `tests/tls`, which hands every session to a function; what it heard
/// is what came through the TLS.
pub fn tls(certificate: &str, serve: impl Fn(&mut Session<'_>) -> Vec<u8> + Send + Sync + 'static) -> Server {
    tls_offering(certificate, &[], serve)
}

/// Like [`tls`], offering these protocols by ALPN.
pub fn tls_offering(
    certificate: &str,
    protocols: &[&str],
    serve: impl Fn(&mut Session<'_>) -> Vec<u8> + Send + Sync + 'static,
) -> Server {
    let config = tls_config(certificate, protocols);
    Server::start(move |stream| {
        let mut session = rustls::ServerConnection::new(config.clone()).unwrap();
        serve(&mut rustls::Stream::new(&mut session, stream))
    })
}

/// The configuration of a TLS server.
pub fn tls_config(certificate: &str, protocols: &[&str]) -> Arc<rustls::ServerConfig> {
    let chain = vec![CertificateDer::from_pem_file(pem(certificate)).unwrap()];
    let key = PrivateKeyDer::from_pem_file(pem("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

pub type Session<'a> = rustls::Stream<'a, rustls::ServerConnection, TcpStream>;
