//! The memory of the receiver: accepted items, the latest requests, and counters.

use super::rules::{HeldKind, ReceivedBatch};
use crate::clock::Timestamp;
use serde::Serialize;
use serde::ser::{Error as _, SerializeMap, Serializer};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// The most items held: twice the number that the largest test delivers, and about a gigabyte of ordinary events.
const MAX_HELD: usize = 1_000_000;

/// The most bytes of items held: those of as many ordinary events.
const MAX_HELD_BYTES: usize = 1 << 30;

/// The most requests remembered: more than the largest test makes, even with one event in each request.
const MAX_REQUESTS: usize = 250_000;

/// The most bytes of ids and names remembered with them: the ids of four million ordinary events.
const MAX_REQUEST_BYTES: usize = 256 << 20;

/// An item as it was first accepted. Clones share the text.
#[derive(Debug, Clone)]
pub struct HeldItem {
    /// Empty for an account's identify that came without one; such an item never counts as a repeat.
    pub message_id: Arc<str>,
    /// The list of its request in which it stood.
    pub kind: HeldKind,
    /// The item's JSON, byte for byte as it arrived.
    pub item: Arc<RawValue>,
    /// The arrival of its request.
    pub received_at: Timestamp,
    /// The number of times that its id arrived again.
    pub repeats: u64,
    /// The number of its request, see [`ReceivedRequest::number`].
    pub request: u64,
    envelope: Arc<Envelope>,
}

/// Top-level members of a request by name, as JSON.
type Envelope = Vec<(&'static str, Box<str>)>;

impl HeldItem {
    /// A top-level member of its request, byte for byte as it arrived: `profile_id`, `email`, `ip` or `traits`, for an
    /// account `account_id` or `domain`. `None` where the request had none.
    pub fn top(&self, name: &str) -> Option<&str> {
        self.envelope.iter().find(|(found, _)| *found == name).map(|(_, json)| &**json)
    }
}

/// One object: the item's own members and those of its request's top level. Absent ones stay absent.
impl Serialize for HeldItem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("message_id", &Some(&*self.message_id).filter(|id| !id.is_empty()))?;
        map.serialize_entry("kind", self.kind.as_str())?;
        for (name, json) in self.envelope.iter() {
            map.serialize_entry(name, serde_json::from_str::<&RawValue>(json).map_err(S::Error::custom)?)?;
        }
        map.serialize_entry("item", &*self.item)?;
        map.serialize_entry("received_at", &self.received_at.to_millis_string())?;
        map.serialize_entry("repeats", &self.repeats)?;
        map.serialize_entry("request", &self.request)?;
        map.end()
    }
}

/// A request to one of Koala's paths, accepted or not.
#[derive(Debug, Clone, Serialize)]
pub struct ReceivedRequest {
    /// The place in the order of arrival, from 1.
    pub number: u64,
    /// The arrival of its head.
    #[serde(serialize_with = "serialize_millis")]
    pub received_at: Timestamp,
    /// The method.
    pub method: String,
    /// The path, with `<public_key>` in the place of the key.
    pub path: String,
    /// The person or account of the batch; `None` where the body could not be read or broke a rule.
    pub who: Option<String>,
    /// The ids of its items in the order of acceptance; empty where `who` is `None`.
    pub message_ids: Vec<String>,
    /// The status of the answer; `None` when the connection was broken without one.
    pub status: Option<u16>,
    /// The reason if it was not accepted or not answered.
    pub why: Option<String>,
}

impl ReceivedRequest {
    /// The bytes of the texts in it whose length its sender chooses.
    fn bytes(&self) -> usize {
        let texts = [Some(&self.method), Some(&self.path), self.who.as_ref(), self.why.as_ref()];
        let texts = texts.into_iter().flatten().chain(&self.message_ids);
        texts.map(|text| text.len() + size_of::<String>()).sum()
    }
}

fn serialize_millis<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_millis_string())
}

/// Counters since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReceiverStats {
    /// Requests to Koala's paths that have arrived, including those that their sender has given up.
    pub requests: u64,
    /// Batches accepted, including those that were not answered on purpose.
    pub accepted_requests: u64,
    /// Requests that were answered with a refusal.
    pub refused_requests: u64,
    /// Connections broken without an answer.
    pub dropped_requests: u64,
    /// Items accepted for the first time.
    pub events: u64,
    /// Items that were held already.
    pub repeats: u64,
    /// Items held now.
    pub held: usize,
    /// Answers by their status.
    pub by_status: BTreeMap<u16, u64>,
}

/// A decided request, as far as the counters tell requests apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestClass {
    /// A batch that was accepted.
    AcceptedBatch,
    /// A question whether the key is good, answered yes.
    GoodKey,
    /// Any other request.
    NotAccepted,
}

/// The items of an accepted batch: how many arrived for the first time, and how many again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct BatchCounts {
    pub new: usize,
    pub repeats: usize,
}

/// Everything that the receiver keeps, in memory.
#[derive(Debug, Default)]
pub(super) struct ReceiverStore {
    held: Vec<HeldItem>,
    held_bytes: usize,
    index_by_id: HashMap<Arc<str>, usize>,
    requests: VecDeque<ReceivedRequest>,
    request_bytes: usize,
    stats: ReceiverStats,
}

impl ReceiverStore {
    /// Counts a request that has just arrived. Returns its number.
    pub fn count_arrival(&mut self) -> u64 {
        self.stats.requests += 1;
        self.stats.requests
    }

    /// Holds each item of the batch; one that was held before counts a repeat. `None` if there is no room for the whole
    /// batch: nothing has changed then.
    pub fn accept(
        &mut self,
        batch: &ReceivedBatch<'_>,
        request: u64,
        received_at: Timestamp,
    ) -> Option<BatchCounts> {
        let envelope_bytes: usize = batch.envelope.iter().map(|(_, json)| json.len()).sum();
        let item_bytes = batch.items.iter().map(|item| item.raw.get().len() + item.message_id.len());
        let bytes = envelope_bytes + item_bytes.sum::<usize>();
        if self.held.len() + batch.items.len() > MAX_HELD || self.held_bytes + bytes > MAX_HELD_BYTES {
            return None;
        }
        let envelope = batch.envelope.iter().map(|(name, json)| (*name, Box::from(*json)));
        let envelope = Arc::new(envelope.collect::<Envelope>());
        let mut counts = BatchCounts::default();
        self.held_bytes += envelope_bytes;
        for item in &batch.items {
            if let Some(&index) = self.index_by_id.get(&*item.message_id) {
                self.held[index].repeats += 1;
                counts.repeats += 1;
                continue;
            }
            let message_id = Arc::<str>::from(&*item.message_id);
            if !message_id.is_empty() {
                self.index_by_id.insert(message_id.clone(), self.held.len());
            }
            self.held_bytes += item.raw.get().len() + message_id.len();
            self.held.push(HeldItem {
                message_id,
                kind: item.kind,
                item: item.raw.to_owned().into(),
                received_at,
                repeats: 0,
                request,
                envelope: envelope.clone(),
            });
            counts.new += 1;
        }
        self.stats.events += counts.new as u64;
        self.stats.repeats += counts.repeats as u64;
        Some(counts)
    }

    /// Counts a decided request and remembers it, in place of the oldest ones where there is no more room.
    pub fn record(&mut self, request: ReceivedRequest, class: RequestClass) {
        match (class, request.status) {
            (RequestClass::AcceptedBatch, _) => self.stats.accepted_requests += 1,
            (RequestClass::NotAccepted, Some(_)) => self.stats.refused_requests += 1,
            (RequestClass::NotAccepted, None) | (RequestClass::GoodKey, _) => {}
        }
        match request.status {
            Some(status) => *self.stats.by_status.entry(status).or_default() += 1,
            None => self.stats.dropped_requests += 1,
        }
        self.request_bytes += request.bytes();
        self.requests.push_back(request);
        while self.requests.len() > MAX_REQUESTS || self.request_bytes > MAX_REQUEST_BYTES {
            let Some(oldest) = self.requests.pop_front() else { break };
            self.request_bytes -= oldest.bytes();
        }
    }

    pub fn clear(&mut self) {
        self.held = Vec::new();
        self.held_bytes = 0;
        self.index_by_id = HashMap::new();
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
