//! A receiver's side of HTTP/2, frame by frame: what it says, and in which order, is a test's affair.

use super::server::{Server, Session, tls_offering};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;

/// Flags of HEADERS and DATA.
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
/// The flag of SETTINGS and PING.
const ACK: u8 = 1;

/// Error codes.
pub const NO_ERROR: u32 = 0;
pub const INTERNAL_ERROR: u32 = 2;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// A `:status` of the static table, as a header block.
pub const STATUS_200: u8 = 0x88;
pub const STATUS_204: u8 = 0x89;

/// A server for `localhost` that offers HTTP/2 alone and hands every connection to a function.
pub fn http2(serve: impl Fn(&mut Talk<'_, '_>) + Send + Sync + 'static) -> Server {
    tls_offering("good.pem", &["h2"], move |session| {
        let mut talk = Talk { session, bodies: BTreeMap::new() };
        let mut preface = [0; 24];
        // A client that finds another connection first lets this one go.
        if talk.session.read_exact(&mut preface).is_ok() {
            talk.send(SETTINGS, 0, 0, &[]);
            serve(&mut talk);
        }
        Vec::new()
    })
}

/// One connection.
pub struct Talk<'a, 'b> {
    session: &'a mut Session<'b>,
    /// The bodies so far of the streams that are not at their end.
    bodies: BTreeMap<u32, Vec<u8>>,
}

impl Talk<'_, '_> {
    /// The next whole request: its stream and its body; `None` when the client is gone.
    pub fn request(&mut self) -> Option<(u32, String)> {
        loop {
            let (kind, flags, stream, payload) = self.frame()?;
            if kind != DATA && kind != HEADERS {
                continue;
            }
            let body = self.bodies.entry(stream).or_default();
            body.extend(if kind == DATA { payload } else { Vec::new() });
            if flags & END_STREAM != 0 {
                let body = self.bodies.remove(&stream).unwrap();
                return Some((stream, String::from_utf8(body).unwrap()));
            }
        }
    }

    /// The next frame that is not about the connection: its kind, flags, stream and payload.
    pub fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        loop {
            let mut head = [0; 9];
            self.session.read_exact(&mut head).ok()?;
            let [a, b, c, kind, flags, stream @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.session.read_exact(&mut payload).ok()?;
            match kind {
                SETTINGS | PING if flags & ACK == 0 => {
                    let payload = if kind == PING { &payload[..] } else { &[] };
                    self.send(kind, ACK, 0, payload);
                }
                _ => return Some((kind, flags, u32::from_be_bytes(stream), payload)),
            }
        }
    }

    /// The client may have gone already.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[..], &[kind, flags], &stream.to_be_bytes()].concat();
        let _ = self.session.write_all(&[&head, payload].concat());
    }

    pub fn accept(&mut self, stream: u32) {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &[STATUS_204]);
    }

    pub fn reset(&mut self, stream: u32, code: u32) {
        self.send(RST_STREAM, 0, stream, &code.to_be_bytes());
    }

    /// Says no more, and listens until the client is gone: what was said comes to it.
    pub fn close(&mut self) {
        let _ = self.session.sock.shutdown(Shutdown::Write);
        while self.frame().is_some() {}
    }

    /// No stream after `last` was or will be processed.
    pub fn go_away(&mut self, last: u32, code: u32, why: &[u8]) {
        self.send(GOAWAY, 0, 0, &[&last.to_be_bytes()[..], &code.to_be_bytes(), why].concat());
    }
}
