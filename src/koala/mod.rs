//! Koala's wire: the body of a request, the client that sends it, and what an answer means.

pub mod batch;
mod client;
mod verdict;

pub use client::{Client, ClientError, USER_AGENT};
pub use verdict::{MAX_RETRY_AFTER, Verdict};
