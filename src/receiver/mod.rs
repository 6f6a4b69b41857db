//! A local Koala: the receiver of the demo, of the tests and of `koala-agent receiver`.
//!
//! ```text
//! serve    one request: read it, apply faults, check rules, store, answer
//! rules    Koala's documented rules, pure: a body in, a batch or the broken rule out
//! faults   the errors that it makes on purpose
//! store    accepted items, requests, counters
//! ```
//!
//! The receiver is stricter than Koala in one point: it answers 400 to a request without a `User-Agent`, which Koala drops
//! silently. It holds an item once by its `message_id`, byte for byte as it arrived. Everything is in memory and ends
//! with the receiver.
//!
//! A web page must not read it, or set its faults, through a browser on this machine: it answers no request that names
//! it otherwise than by an IP address or as localhost (a page could give it a name of its own), and none with an Origin.
//!
//! Besides Koala's own paths it answers `/receiver/events` (GET, DELETE), `/receiver/requests`, `/receiver/stats` (GET)
//! and `/receiver/faults` (GET, PUT). Faults never apply to those.

mod faults;
mod rules;
mod serve;
mod store;

pub use faults::Faults;
pub use rules::HeldKind;
pub use store::{HeldItem, ReceivedRequest, ReceiverStats};

use crate::clock::Clock;
use fastrand::Rng;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use store::ReceiverStore;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The longest that [`Receiver::stop`] waits for requests in flight. A second is enough for every answer that is not
/// delayed on purpose.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// The pause after a failed `accept`. It fails when file descriptors run out; another call at once would spin until one
/// is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The longest head of a request: a long path with a key, and ten times the headers of an ordinary client.
const MAX_HEAD: usize = 16 << 10;

/// An event for the person who watches the receiver, sent when a request has been decided.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// A batch was accepted.
    Accepted {
        /// The person or account of the batch.
        who: String,
        /// The number of its items.
        items: usize,
        /// The number of its items that were held already.
        repeats: usize,
    },
    /// A request was refused.
    Refused {
        /// The status of the answer.
        status: u16,
        /// The rule that was broken, or the fault in force.
        why: String,
    },
    /// The connection was broken without an answer.
    Dropped {
        /// The fault in force, or the error of the sender.
        why: String,
    },
    /// A remark that helps the author of a sender; no rule is broken.
    Note(String),
    /// Other faults are in force.
    Faults(Faults),
}

/// The settings of a receiver at its start.
pub struct ReceiverOptions {
    /// The only key that is accepted; `None` accepts every key.
    pub expected_key: Option<String>,
    /// The faults in force from the start.
    pub faults: Faults,
    /// The seed for drawing shares, which makes a run repeatable; `None`: a random one.
    pub seed: Option<u64>,
    /// The clock for arrival times and the `Date` of answers; a latency passes on the machine's.
    pub clock: Clock,
    /// Called with each [`Notice`] in the task of the request, so it must be quick.
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

/// The state that the handle and all connections share.
struct Shared {
    expected_key: Option<String>,
    clock: Clock,
    rng: Mutex<Rng>,
    on_notice: Option<Box<dyn Fn(Notice) + Send + Sync>>,
    faults: Mutex<Arc<Faults>>,
    store: Mutex<ReceiverStore>,
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, ReceiverStore> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rng(&self) -> MutexGuard<'_, Rng> {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> Arc<Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_faults(&self, faults: Faults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(faults.clone());
        self.notify(Notice::Faults(faults));
    }

    fn notify(&self, notice: Notice) {
        if let Some(on_notice) = &self.on_notice {
            on_notice(notice);
        }
    }
}

/// A running receiver. If it is dropped without [`Receiver::stop`], it ends in the background.
pub struct Receiver {
    addr: SocketAddr,
    shared: Arc<Shared>,
    stop: DropGuard,
    accept_task: JoinHandle<()>,
}

impl Receiver {
    /// Starts a receiver, which answers at `listen` when this returns. Port 0 takes a free port, which
    /// [`Receiver::addr`] names.
    ///
    /// # Errors
    /// The address is in use or does not belong to this machine.
    pub async fn start(listen: SocketAddr, options: ReceiverOptions) -> io::Result<Receiver> {
        let listener = TcpListener::bind(listen).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            expected_key: options.expected_key,
            clock: options.clock,
            rng: Mutex::new(options.seed.map_or_else(Rng::new, Rng::with_seed)),
            on_notice: options.on_notice,
            faults: Mutex::new(Arc::new(options.faults)),
            store: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let accept_task = tokio::spawn(accept(listener, shared.clone(), stop.clone()));
        Ok(Receiver { addr, shared, stop: stop.drop_guard(), accept_task })
    }

    /// The address at which it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The value of `koala.endpoint` for an agent that delivers here.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The items that it holds, in the order of first acceptance.
    pub fn events(&self) -> Vec<HeldItem> {
        self.shared.store().events()
    }

    /// Forgets all items, so that their ids are new again. The counters keep their values.
    pub fn clear(&self) {
        self.shared.store().clear();
    }

    /// The latest requests to Koala's paths, in the order in which they were decided. A request that its sender gave up
    /// before that is missing here; [`Receiver::stats`] counts it.
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

    /// Replaces the faults in force, from the next request on.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.set_faults(faults);
    }

    /// Stops listening and ends all connections. A request in flight is answered before that if the answer takes no
    /// more than a second.
    pub async fn stop(self) {
        drop(self.stop);
        // An error means that the task panicked; its connections ended with it.
        let _ = self.accept_task.await;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let connections = GracefulShutdown::new();
    let end_connections = CancellationToken::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Small answers must not wait for the acknowledgement of the one before.
                    let _ = stream.set_nodelay(true);
                    let shared = shared.clone();
                    let service = service_fn(move |request| serve::answer_dated(shared.clone(), request));
                    let mut http = http1::Builder::new();
                    // The date is of the receiver's own clock.
                    http.max_buf_size(MAX_HEAD).auto_date_header(false);
                    let connection = http.serve_connection(TokioIo::new(stream), service);
                    // The sender alone needs to know how a connection ends.
                    tokio::spawn(end_connections.clone().run_until_cancelled_owned(connections.watch(connection)));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            () = stop.cancelled() => break,
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(STOP_GRACE, connections.shutdown()).await;
    end_connections.cancel();
}
