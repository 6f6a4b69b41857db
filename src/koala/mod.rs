//! Koala's protocol: the body of a request, the client that sends it, and the verdict on the response.

pub mod batch;
mod client;
mod connections;
mod failure;
mod receiver_clock;
mod verdict;

pub use client::Client;
pub use connections::{ClientError, Pool, ProxySource, USER_AGENT};
pub use receiver_clock::ReceiverClock;
pub use verdict::{MAX_RETRY_AFTER, Verdict};
