//! What the receiver holds, counts and remembers.

use super::rules::Batch;
use crate::clock::Timestamp;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

/// The most items held: twice what the largest test delivers, and about a gigabyte of ordinary events.
pub(super) const MAX_HELD: usize = 1_000_000;

/// The most requests remembered: more than the largest test makes, even at one request an event.
const MAX_REQUESTS: usize = 250_000;

/// What an item is, by Koala's name for its `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeldKind {
    /// From `events`.
    Track,
    /// From `identifies`.
    Identify,
    /// From `page_views`.
    Page,
}

impl HeldKind {
    /// The `type` that such an item has.
    pub fn as_str(self) -> &'static str {
        match self {
            HeldKind::Track => "track",
            HeldKind::Identify => "identify",
            HeldKind::Page => "page",
        }
    }
}

impl fmt::Display for HeldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An item as it was first taken. Clones share the text.
#[derive(Debug, Clone)]
pub struct HeldItem {
    /// Empty for an account's identify that came without one; such are never taken for repeats.
    pub message_id: Arc<str>,
    /// What it is.
    pub kind: HeldKind,
    /// The item in the bytes it came in.
    pub item: Arc<RawValue>,
    /// When its request arrived.
    pub received_at: Timestamp,
    /// How often it came again.
    pub repeats: u64,
    /// The number of its request, see [`Request::number`].
    pub request: u64,
    envelope: Arc<Envelope>,
}

type Envelope = Vec<(&'static str, Box<RawValue>)>;

impl HeldItem {
    /// A top-level member of its request in the bytes it came in: `profile_id`, `email`, `ip` or `traits`,
    /// for an account `account_id` or `domain`. `None` where the request had none.
    pub fn top(&self, name: &str) -> Option<&str> {
        self.envelope.iter().find(|(found, _)| *found == name).map(|(_, raw)| raw.get())
    }
}

/// The members of its request's top level stand beside its own; those that were absent stay absent.
impl Serialize for HeldItem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("message_id", &Some(&*self.message_id).filter(|id| !id.is_empty()))?;
        map.serialize_entry("kind", self.kind.as_str())?;
        for (name, raw) in self.envelope.iter() {
            map.serialize_entry(name, raw)?;
        }
        map.serialize_entry("item", &*self.item)?;
        map.serialize_entry("received_at", &self.received_at.to_millis_string())?;
        map.serialize_entry("repeats", &self.repeats)?;
        map.serialize_entry("request", &self.request)?;
        map.end()
    }
}

/// A request to one of Koala's paths, whatever became of it.
#[derive(Debug, Clone, Serialize)]
pub struct ReceivedRequest {
    /// Counts from 1 in the order of arrival.
    pub number: u64,
    /// When its head had arrived.
    #[serde(serialize_with = "millis")]
    pub received_at: Timestamp,
    /// The method.
    pub method: String,
    /// The path, with `<public_key>` in the place of the key.
    pub path: String,
    /// Whose batch it is; `None` where the body could not be read or broke a rule.
    pub who: Option<String>,
    /// The ids of its items in the order they are taken; empty where `who` is `None`.
    pub message_ids: Vec<String>,
    /// The status of the answer; `None` when the connection was broken without one.
    pub status: Option<u16>,
    /// Why it was not taken or not answered.
    pub why: Option<String>,
}

fn millis<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_millis_string())
}

/// Counters since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReceiverStats {
    /// Requests to Koala's paths that have arrived, those that their sender has given up among them.
    pub requests: u64,
    /// Batches taken, those not answered on purpose among them.
    pub accepted_requests: u64,
    /// Requests that were answered, but not taken.
    pub refused_requests: u64,
    /// Connections broken without an answer.
    pub dropped_requests: u64,
    /// Items taken for the first time.
    pub events: u64,
    /// Items that were held already.
    pub repeats: u64,
    /// Items held now.
    pub held: usize,
    /// Answers by their status.
    pub by_status: BTreeMap<u16, u64>,
}

/// How a request was decided, as far as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A batch was taken.
    Accepted,
    /// The question whether the key is good was answered yes.
    KeyIsGood,
    /// Anything else.
    NotTaken,
}

/// How many items of a batch came for the first time, and how many again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    pub new: usize,
    pub repeats: usize,
}

/// Everything that the receiver keeps, in memory.
#[derive(Debug, Default)]
pub(super) struct Store {
    held: Vec<HeldItem>,
    by_id: HashMap<Arc<str>, usize>,
    requests: VecDeque<ReceivedRequest>,
    stats: ReceiverStats,
}

impl Store {
    /// The number of a request that has just arrived.
    pub fn arrive(&mut self) -> u64 {
        self.stats.requests += 1;
        self.stats.requests
    }

    /// After this each item of the batch is held, and those that were before count a repeat. `None` when
    /// there is no room for the whole batch, and then nothing has changed.
    pub fn take(&mut self, batch: &Batch<'_>, request: u64, received_at: Timestamp) -> Option<Taken> {
        if self.held.len() + batch.items.len() > MAX_HELD {
            return None;
        }
        let envelope = batch.envelope.iter().map(|(name, raw)| (*name, (*raw).to_owned()));
        let envelope = Arc::new(envelope.collect::<Envelope>());
        let mut taken = Taken { new: 0, repeats: 0 };
        for item in &batch.items {
            if let Some(&at) = self.by_id.get(&*item.message_id) {
                self.held[at].repeats += 1;
                taken.repeats += 1;
                continue;
            }
            let message_id = Arc::<str>::from(&*item.message_id);
            if !message_id.is_empty() {
                self.by_id.insert(message_id.clone(), self.held.len());
            }
            self.held.push(HeldItem {
                message_id,
                kind: item.kind,
                item: item.raw.to_owned().into(),
                received_at,
                repeats: 0,
                request,
                envelope: envelope.clone(),
            });
            taken.new += 1;
        }
        self.stats.events += taken.new as u64;
        self.stats.repeats += taken.repeats as u64;
        Some(taken)
    }

    /// Counts a request and remembers it; the oldest makes room.
    pub fn decided(&mut self, request: ReceivedRequest, verdict: Verdict) {
        match (verdict, request.status) {
            (Verdict::Accepted, _) => self.stats.accepted_requests += 1,
            (Verdict::NotTaken, Some(_)) => self.stats.refused_requests += 1,
            (Verdict::NotTaken, None) | (Verdict::KeyIsGood, _) => {}
        }
        match request.status {
            Some(status) => *self.stats.by_status.entry(status).or_default() += 1,
            None => self.stats.dropped_requests += 1,
        }
        if self.requests.len() == MAX_REQUESTS {
            self.requests.pop_front();
        }
        self.requests.push_back(request);
    }

    pub fn clear(&mut self) {
        self.held = Vec::new();
        self.by_id = HashMap::new();
    }

    pub fn events(&self) -> Vec<HeldItem> {
        self.held.clone()
    }

    pub fn requests(&self) -> Vec<ReceivedRequest> {
        self.requests.iter().cloned().collect()
    }

    pub fn stats(&self) -> ReceiverStats {
        ReceiverStats { held: self.held.len(), ..self.stats.clone() }
    }
}
