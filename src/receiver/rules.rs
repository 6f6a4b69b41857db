//! Koala's documented rules for a batch: a body in, a batch or the broken rule out. No I/O.
//!
//! Values are never taken apart further than a rule needs: what is held later is the text that came.

use super::date_time::is_date_time;
use super::store::HeldKind;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// The most items of one kind in one request. Source: Koala's documentation of `/batch`.
pub const MAX_OF_A_KIND: usize = 30;

/// Which of Koala's two batches a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `/batch`: one person's.
    People,
    /// `/accounts/batch`: one company's.
    Accounts,
}

impl Endpoint {
    /// The members that say whose batch it is, the stronger first.
    fn identity(self) -> [&'static str; 2] {
        match self {
            Endpoint::People => ["profile_id", "email"],
            Endpoint::Accounts => ["account_id", "domain"],
        }
    }

    /// The other members that are kept beside each item.
    fn companions(self) -> &'static [&'static str] {
        match self {
            Endpoint::People => &["traits", "ip"],
            Endpoint::Accounts => &[],
        }
    }

    /// The members that hold items, in the order they are taken: who somebody is, then what they did.
    fn lists(self) -> &'static [(&'static str, HeldKind)] {
        const ALL: &[(&str, HeldKind)] = &[
            ("identifies", HeldKind::Identify),
            ("page_views", HeldKind::Page),
            ("events", HeldKind::Track),
        ];
        const OF_AN_ACCOUNT: &[(&str, HeldKind)] =
            &[("identifies", HeldKind::Identify), ("events", HeldKind::Track)];
        match self {
            Endpoint::People => ALL,
            Endpoint::Accounts => OF_AN_ACCOUNT,
        }
    }
}

/// A body that keeps all rules, in its own text.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    /// The identity in words for a person.
    pub who: String,
    /// The top-level members that are kept beside each item.
    pub envelope: Vec<(&'static str, &'a RawValue)>,
    /// The items in the order they are taken.
    pub items: Vec<Item<'a>>,
    /// What breaks no rule and is still worth telling the sender.
    pub notes: Vec<String>,
}

/// An item that keeps all rules.
#[derive(Debug)]
pub(super) struct Item<'a> {
    pub kind: HeldKind,
    /// Empty for an account's identify that came without one.
    pub message_id: Cow<'a, str>,
    pub raw: &'a RawValue,
}

/// Reads a body of that endpoint.
///
/// # Errors
/// The rule that is broken, naming the member that breaks it.
pub(super) fn read(endpoint: Endpoint, body: &[u8]) -> Result<Batch<'_>, String> {
    let text = std::str::from_utf8(body).map_err(|_| "the body must be UTF-8")?;
    let top: Members =
        serde_json::from_str(text).map_err(|e| format!("the body must be a JSON object: {e}"))?;
    let [first, second] = endpoint.identity();
    let identity = [first, second].into_iter().filter_map(|name| top.get(name)).find(|raw| truthy(raw));
    let Some(identity) = identity else {
        return Err(format!("{first} or {second} must stand at the top level and not be empty"));
    };
    let mut batch = Batch {
        who: string(identity).unwrap_or(Cow::Borrowed(identity.get())).into_owned(),
        envelope: Vec::new(),
        items: Vec::new(),
        notes: notes(endpoint, &top),
    };
    for &name in endpoint.identity().iter().chain(endpoint.companions()) {
        batch.envelope.extend(top.get(name).map(|raw| (name, raw)));
    }
    for &(name, kind) in endpoint.lists() {
        let Some(list) = top.get(name) else { continue };
        let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(list.get()) else {
            return Err(format!("{name} must be an array"));
        };
        if list.len() > MAX_OF_A_KIND {
            return Err(format!("{name} must have at most {MAX_OF_A_KIND} items and has {}", list.len()));
        }
        for (at, raw) in list.into_iter().enumerate() {
            let item = item(endpoint, kind, raw).map_err(|rule| format!("{name}[{at}]{rule}"))?;
            batch.items.push(item);
        }
    }
    Ok(batch)
}

/// Reads one item. The error begins where the item's name ends.
fn item(endpoint: Endpoint, kind: HeldKind, raw: &RawValue) -> Result<Item<'_>, String> {
    let Ok(members) = serde_json::from_str::<Members>(raw.get()) else {
        return Err(" must be an object".to_owned());
    };
    let text = |name| members.get(name).and_then(string);
    if text("type").is_none_or(|found| found != kind.as_str()) {
        return Err(format!(".type must be \"{kind}\""));
    }
    // The documentation gives an account's identify a type and traits, and nothing else.
    let bare = endpoint == Endpoint::Accounts && kind == HeldKind::Identify;
    let needs = |name| !bare || members.get(name).is_some();
    let message_id = text("message_id").unwrap_or_default();
    if needs("message_id") && message_id.is_empty() {
        return Err(".message_id must be a string that is not empty".to_owned());
    }
    if needs("sent_at") && !text("sent_at").is_some_and(|time| is_date_time(&time)) {
        return Err(".sent_at must be a date-time such as 2026-01-02T03:04:05Z".to_owned());
    }
    if kind == HeldKind::Track && text("event").is_none_or(|name| name.is_empty()) {
        return Err(".event must be a string that is not empty".to_owned());
    }
    if bare && !members.get("traits").is_some_and(|raw| raw.get().starts_with('{')) {
        return Err(".traits must be an object".to_owned());
    }
    Ok(Item { kind, message_id, raw })
}

fn notes(endpoint: Endpoint, top: &Members<'_>) -> Vec<String> {
    let lists = endpoint.lists().iter().map(|(name, _)| name);
    let known: Vec<_> =
        endpoint.identity().iter().chain(endpoint.companions()).chain(lists).copied().collect();
    let unknown = top.names().filter(|name| !known.contains(name));
    let mut notes: Vec<_> =
        unknown.map(|name| format!("{name} is no top-level member that Koala knows")).collect();
    if let Some(profile_id) = top.get("profile_id").filter(|raw| truthy(raw) && !is_uuid_v4(raw)) {
        notes.push(format!(
            "profile_id {} is no UUID v4, which is what Koala's ko_id cookie holds",
            profile_id.get()
        ));
    }
    notes
}

fn is_uuid_v4(raw: &RawValue) -> bool {
    /// The form with hyphens: the crate reads three more that no cookie has.
    const HYPHENATED: usize = 36;
    let text = string(raw).filter(|text| text.len() == HYPHENATED);
    text.and_then(|text| uuid::Uuid::try_parse(&text).ok()).is_some_and(|id| id.get_version_num() == 4)
}

/// Whether JavaScript takes the value for true: Segment's destination, which is Koala's own, asks so.
fn truthy(raw: &RawValue) -> bool {
    match raw.get() {
        "null" | "false" | "\"\"" => false,
        text => text.parse() != Ok(0.0),
    }
}

fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(serde::Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text>(raw.get()).ok().map(|text| text.0)
}

/// An object's members in the order and the bytes they came in. Of a name that comes twice the last
/// counts, as in JavaScript.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(found, _)| found == name).map(|(_, raw)| *raw)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_ref())
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize, PartialEq)]
        struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((Name(name), raw)) = map.next_entry()? {
                    members.push((name, raw));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}
