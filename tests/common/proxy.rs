//! A proxy before the receiver: it passes requests on, and treats each of them as the test says.

use super::server::{self, Server};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

/// Handles a request whose first byte has come; `Err`: its connection is over.
pub type Treatment = Arc<dyn Fn(&mut Exchange) -> io::Result<()> + Send + Sync>;

/// Treats each request in turn by a list, and those after its end by a last resort.
pub struct Proxy {
    server: Server,
    treatments: Arc<Mutex<VecDeque<Treatment>>>,
}

/// One request and its answer.
pub struct Exchange {
    pub stream: TcpStream,
    receiver: SocketAddr,
}

impl Proxy {
    /// Before that receiver. Requests after the end of the list are treated by `otherwise`.
    pub fn before(receiver: SocketAddr, otherwise: Treatment) -> Proxy {
        let treatments = Arc::new(Mutex::new(VecDeque::<Treatment>::new()));
        let listed = treatments.clone();
        let server = Server::start(move |stream| {
            let mut exchange = Exchange { stream: stream.try_clone().unwrap(), receiver };
            while exchange.stream.peek(&mut [0]).is_ok_and(|n| n > 0) {
                let next = listed.lock().unwrap().pop_front().unwrap_or_else(|| otherwise.clone());
                if next(&mut exchange).is_err() {
                    break;
                }
            }
            Vec::new()
        });
        Proxy { server, treatments }
    }

    pub fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    /// The next requests are treated so.
    pub fn next(&self, requests: usize, treatment: &Treatment) {
        self.treatments.lock().unwrap().extend(std::iter::repeat_n(treatment.clone(), requests));
    }

    /// Treatments that no request has had yet.
    pub fn left(&self) -> usize {
        self.treatments.lock().unwrap().len()
    }
}

/// A treatment that is a function.
pub fn treat(by: impl Fn(&mut Exchange) -> io::Result<()> + Send + Sync + 'static) -> Treatment {
    Arc::new(by)
}

/// The request is passed on, and its answer passed back.
pub fn pass_on() -> Treatment {
    treat(Exchange::pass)
}

impl Exchange {
    /// The request, whole.
    pub fn request(&mut self) -> io::Result<Vec<u8>> {
        server::message(&mut self.stream).ok_or_else(gone)
    }

    /// Passes the request to the receiver, and returns the answer.
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
