//! What stands before the receiver: it passes requests on, and each meets a fate.

use crate::common::server::{self, Server};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

/// What becomes of a request whose first byte has come; `Err`: its connection is over.
pub type Fate = Arc<dyn Fn(&mut Passage) -> io::Result<()> + Send + Sync>;

/// Passes requests on to a receiver. Each meets the next fate of the list, then the last resort.
pub struct Front {
    server: Server,
    fates: Arc<Mutex<VecDeque<Fate>>>,
}

/// The way of one request.
pub struct Passage {
    pub stream: TcpStream,
    receiver: SocketAddr,
}

impl Front {
    /// Before that receiver. Where no fate is set, `otherwise` is met.
    pub fn before(receiver: SocketAddr, otherwise: Fate) -> Front {
        let fates = Arc::new(Mutex::new(VecDeque::<Fate>::new()));
        let next = fates.clone();
        let server = Server::start(move |stream| {
            let mut passage = Passage { stream: stream.try_clone().unwrap(), receiver };
            while passage.stream.peek(&mut [0]).is_ok_and(|n| n > 0) {
                let fate = next.lock().unwrap().pop_front().unwrap_or_else(|| otherwise.clone());
                if fate(&mut passage).is_err() {
                    break;
                }
            }
            Vec::new()
        });
        Front { server, fates }
    }

    pub fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    /// The next requests meet this.
    pub fn next(&self, requests: usize, fate: &Fate) {
        self.fates.lock().unwrap().extend(std::iter::repeat_n(fate.clone(), requests));
    }

    /// Fates that no request has met yet.
    pub fn left(&self) -> usize {
        self.fates.lock().unwrap().len()
    }
}

/// A fate that is a function.
pub fn fate(met: impl Fn(&mut Passage) -> io::Result<()> + Send + Sync + 'static) -> Fate {
    Arc::new(met)
}

/// The fate of requests that are not spoilt.
pub fn unspoilt() -> Fate {
    fate(Passage::pass)
}

impl Passage {
    /// The request, whole.
    pub fn request(&mut self) -> io::Result<Vec<u8>> {
        server::message(&mut self.stream).ok_or_else(gone)
    }

    /// What the receiver answers to it.
    pub fn forward(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let mut receiver = TcpStream::connect(self.receiver)?;
        receiver.write_all(request)?;
        server::message(&mut receiver).ok_or_else(gone)
    }

    /// The request goes to the receiver, and its answer comes back.
    pub fn pass(&mut self) -> io::Result<()> {
        let request = self.request()?;
        let answer = self.forward(&request)?;
        self.stream.write_all(&answer)
    }

    /// The request goes to the receiver, and this comes back in place of its answer.
    pub fn answer(&mut self, answer: &[u8]) -> io::Result<()> {
        let request = self.request()?;
        self.forward(&request)?;
        self.stream.write_all(answer)
    }

    /// Ends the connection in order.
    pub fn close(&self) -> io::Result<()> {
        Err(gone())
    }

    /// Breaks the connection: the other side gets a reset, and what it has not read yet may be gone.
    pub fn reset(&self) -> io::Result<()> {
        let socket = tokio::net::TcpSocket::from_std_stream(self.stream.try_clone()?);
        socket.set_zero_linger()?;
        Err(gone())
    }
}

/// The connection is over.
pub fn gone() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}
