//! A local Koala: what the demo, the tests and `koala-agent receiver` deliver to.
//!
//! ```text
//! serve    a request's way: read, fault, rule, store, answer
//! rules    Koala's documented rules, pure: a body in, a batch or the broken rule out
//! faults   what it does wrong on purpose
//! store    what it holds, counts and remembers
//! ```
//!
//! It is stricter than Koala where Koala's silence helps nobody: a request without a `User-Agent`, which
//! Koala drops without a word, is answered 400 here. An item is held once by its `message_id`, in the
//! bytes it came in. Everything is in memory and ends with the receiver.
//!
//! Beside Koala's own paths it answers `/receiver/events` (GET, DELETE), `/receiver/requests`,
//! `/receiver/stats` (GET) and `/receiver/faults` (GET, PUT). Faults never touch those.

mod date_time;
mod faults;
mod rules;
mod serve;
mod store;

pub use faults::{Faults, SUSPENDED};
pub use store::{HeldItem, HeldKind, ReceivedRequest, ReceiverStats};

use crate::clock::Clock;
use faults::Dice;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use store::Store;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// How long [`Receiver::stop`] waits for requests under way: a second, which is enough for every answer
/// that is not delayed on purpose.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// The pause after a connection could not be accepted. That is a want of descriptors, and trying again at
/// once would spin until one is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Something worth showing, told when its request has been decided.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// A batch was taken.
    Accepted {
        /// Whose it is.
        who: String,
        /// How many items it had.
        items: usize,
        /// How many of them were held already.
        repeats: usize,
    },
    /// A request was not taken.
    Refused {
        /// The status of the answer.
        status: u16,
        /// The rule that was broken, or the fault in force.
        why: String,
    },
    /// The connection was broken without an answer.
    Dropped {
        /// The fault in force, or what the sender did.
        why: String,
    },
    /// No rule is broken, but a sender will want to know.
    Note(String),
    /// Other faults are in force.
    Faults(Faults),
}

/// How a receiver starts.
pub struct ReceiverOptions {
    /// The only key that is taken; any is when there is none.
    pub expected_key: Option<String>,
    /// The faults in force from the start.
    pub faults: Faults,
    /// The seed of all shares; the system's randomness when there is none.
    pub seed: Option<u64>,
    /// Gives arrival times and measures the latency.
    pub clock: Clock,
    /// Told of each [`Notice`] in the task of the request, so it must be quick.
    pub on_notice: Option<Box<dyn Fn(Notice) + Send + Sync>>,
}

impl Default for ReceiverOptions {
    fn default() -> ReceiverOptions {
        ReceiverOptions {
            expected_key: None,
            faults: Faults::default(),
            seed: None,
            clock: Clock::system(),
            on_notice: None,
        }
    }
}

/// What the handle and the connections share.
struct Shared {
    expected_key: Option<String>,
    clock: Clock,
    dice: Dice,
    on_notice: Option<Box<dyn Fn(Notice) + Send + Sync>>,
    faults: Mutex<Arc<Faults>>,
    store: Mutex<Store>,
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> Arc<Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_faults(&self, faults: Faults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(faults.clone());
        self.tell(Notice::Faults(faults));
    }

    fn tell(&self, notice: Notice) {
        if let Some(on_notice) = &self.on_notice {
            on_notice(notice);
        }
    }
}

/// A running receiver. Dropped without [`Receiver::stop`] it ends too, in its own time.
pub struct Receiver {
    addr: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Receiver {
    /// After this it answers at `listen`; port 0 takes a free one, which [`Receiver::addr`] names.
    ///
    /// # Errors
    /// The address is in use or not this machine's, or there is no randomness for a seed.
    pub async fn start(listen: SocketAddr, options: ReceiverOptions) -> io::Result<Receiver> {
        let seed = match options.seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(|e| io::Error::other(format!("cannot seed the faults: {e}")))?,
        };
        let listener = TcpListener::bind(listen).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            expected_key: options.expected_key,
            clock: options.clock,
            dice: Dice::new(seed),
            on_notice: options.on_notice,
            faults: Mutex::new(Arc::new(options.faults)),
            store: Mutex::default(),
        });
        let stop = watch::Sender::new(false);
        let accepting = tokio::spawn(accept(listener, shared.clone(), stop.subscribe()));
        Ok(Receiver { addr, shared, stop, accepting })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What `koala.endpoint` must say to deliver here.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What it holds, in the order of first acceptance.
    pub fn events(&self) -> Vec<HeldItem> {
        self.shared.store().events()
    }

    /// Forgets what it holds, and with it which ids are repeats. The counters go on.
    pub fn clear(&self) {
        self.shared.store().clear();
    }

    /// The latest requests to Koala's paths, in the order they were decided. One that its sender gave up
    /// before that is missing here, and counted in [`Receiver::stats`].
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        self.shared.store().requests()
    }

    /// The counters since the start.
    pub fn stats(&self) -> ReceiverStats {
        self.shared.store().stats()
    }

    /// The faults in force.
    pub fn faults(&self) -> Faults {
        self.shared.faults().as_ref().clone()
    }

    /// Puts `faults` in force in place of those before, from the next request on.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.set_faults(faults);
    }

    /// After this nothing listens and no connection is open. Requests under way are answered if they need
    /// no more than a second.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        // An error means that the task is gone already, and so are its connections.
        let _ = self.accepting.await;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    open.spawn(converse(stream, shared.clone(), stop.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = open.join_next() => {}
            _ = stop.changed() => break,
        }
    }
    drop(listener);
    // Those that outlast the grace are ended with the set.
    let _ = tokio::time::timeout(STOP_GRACE, async { while open.join_next().await.is_some() {} }).await;
}

async fn converse(stream: TcpStream, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    // Small answers must not wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| serve::answer(shared.clone(), request));
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stop.changed() => {}
    }
    connection.as_mut().graceful_shutdown();
    // How a connection ends is the sender's affair.
    let _ = connection.await;
}
