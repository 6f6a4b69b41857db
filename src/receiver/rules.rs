//! Koala's documented rules for a batch: a body in, a batch or the broken rule out. No I/O.
//!
//! The rules stand here independently of `koala::batch`, which builds requests: a receiver that judged by the sender's
//! code would accept the sender's mistakes. Syntax and limits are shared: the members of a JSON object, the grammar of
//! date-times, [`MAX_OF_A_KIND`].
//!
//! Values are parsed no further than a rule needs, so the receiver holds the bytes that arrived.

use crate::event::datetime;
use crate::event::json::{self, Object};
use crate::item::MAX_OF_A_KIND;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// The kind of an item, by Koala's name for its `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeldKind {
    /// An item of `events`.
    Track,
    /// An item of `identifies`.
    Identify,
    /// An item of `page_views`.
    Page,
}

impl HeldKind {
    /// The `type` that such an item must have.
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

/// The members that a body has, for one of Koala's two batch endpoints.
#[derive(Debug)]
pub(super) struct BatchForm {
    /// The endpoint's path below the project's.
    pub path: &'static str,
    /// The members that name the person or account, the preferred one first.
    identity: [&'static str; 2],
    /// The other top-level members that are kept with each item.
    companions: &'static [&'static str],
    /// The members that hold items, in the order of acceptance: who somebody is before what they did.
    lists: &'static [(&'static str, HeldKind)],
    /// Whether an identify has `type` and `traits` alone. The documentation gives an account's nothing else.
    has_bare_identifies: bool,
}

/// The form of `/batch`: one person's items.
pub(super) const PEOPLE: BatchForm = BatchForm {
    path: "batch",
    identity: ["profile_id", "email"],
    companions: &["traits", "ip"],
    lists: &[("identifies", HeldKind::Identify), ("page_views", HeldKind::Page), ("events", HeldKind::Track)],
    has_bare_identifies: false,
};

/// The form of `/accounts/batch`: one company's items.
pub(super) const ACCOUNTS: BatchForm = BatchForm {
    path: "accounts/batch",
    identity: ["account_id", "domain"],
    companions: &[],
    lists: &[("identifies", HeldKind::Identify), ("events", HeldKind::Track)],
    has_bare_identifies: true,
};

/// A body that keeps all rules, as slices of its text.
#[derive(Debug)]
pub(super) struct ReceivedBatch<'a> {
    /// The person or account in words for a reader.
    pub who: String,
    /// The top-level members that are kept with each item, by name.
    pub envelope: Vec<(&'static str, &'a str)>,
    /// The items in the order of acceptance.
    pub items: Vec<ReceivedItem<'a>>,
    /// Remarks for the sender about members that break no rule.
    pub notes: Vec<String>,
}

/// An item that keeps all rules.
#[derive(Debug)]
pub(super) struct ReceivedItem<'a> {
    pub kind: HeldKind,
    /// Empty for an account's identify that came without one.
    pub message_id: Cow<'a, str>,
    pub raw: &'a RawValue,
}

impl BatchForm {
    /// Reads a body.
    ///
    /// # Errors
    /// The rule that is broken, naming the member that breaks it.
    pub fn read<'a>(&self, body: &'a [u8]) -> Result<ReceivedBatch<'a>, String> {
        let text = std::str::from_utf8(body).map_err(|_| "the body must be UTF-8")?;
        let top: Object =
            serde_json::from_str(text).map_err(|e| format!("the body must be a JSON object: {e}"))?;
        let Some(identity) =
            self.identity.iter().filter_map(|name| top.get(name)).find(|raw| json::is_truthy(raw.get()))
        else {
            let [first, second] = self.identity;
            return Err(format!("{first} or {second} must stand at the top level and not be empty"));
        };
        let kept = self.identity.iter().chain(self.companions);
        let mut batch = ReceivedBatch {
            who: json::decode(identity.get()).unwrap_or(Cow::Borrowed(identity.get())).into_owned(),
            envelope: kept.filter_map(|&name| Some((name, top.get(name)?.get()))).collect(),
            items: Vec::new(),
            notes: self.notes(&top),
        };
        for &(name, kind) in self.lists {
            let Some(list) = top.get(name) else { continue };
            let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(list.get()) else {
                return Err(format!("{name} must be an array"));
            };
            if list.len() > MAX_OF_A_KIND {
                return Err(format!("{name} must have at most {MAX_OF_A_KIND} items and has {}", list.len()));
            }
            for (index, raw) in list.into_iter().enumerate() {
                let item = self.read_item(kind, raw).map_err(|rule| format!("{name}[{index}]{rule}"))?;
                batch.items.push(item);
            }
        }
        Ok(batch)
    }

    /// Reads one item. The error continues a sentence that starts with the item's name.
    fn read_item<'a>(&self, kind: HeldKind, raw: &'a RawValue) -> Result<ReceivedItem<'a>, String> {
        let Some(members) = Object::from_raw(raw.into()) else {
            return Err(" must be an object".to_owned());
        };
        let string = |name| members.get(name).and_then(|value| json::decode(value.get()));
        if string("type").is_none_or(|found| found != kind.as_str()) {
            return Err(format!(".type must be \"{kind}\""));
        }
        let is_bare = self.has_bare_identifies && kind == HeldKind::Identify;
        let is_checked = |name| !is_bare || members.get(name).is_some();
        let message_id = string("message_id").unwrap_or_default();
        if is_checked("message_id") && message_id.is_empty() {
            return Err(".message_id must be a string that is not empty".to_owned());
        }
        if is_checked("sent_at") && !string("sent_at").is_some_and(|time| datetime::is_valid(&time)) {
            return Err(".sent_at must be a date-time such as 2026-01-02T03:04:05Z".to_owned());
        }
        if kind == HeldKind::Track && string("event").is_none_or(|name| name.is_empty()) {
            return Err(".event must be a string that is not empty".to_owned());
        }
        if is_bare && !members.get("traits").is_some_and(|raw| raw.get().starts_with('{')) {
            return Err(".traits must be an object".to_owned());
        }
        Ok(ReceivedItem { kind, message_id, raw })
    }

    fn notes(&self, top: &Object<'_>) -> Vec<String> {
        let lists = self.lists.iter().map(|(name, _)| name);
        let known: Vec<_> = self.identity.iter().chain(self.companions).chain(lists).copied().collect();
        let unknown = top.0.iter().map(|member| &*member.name).filter(|name| !known.contains(name));
        let mut notes: Vec<_> =
            unknown.map(|name| format!("{name} is no top-level member that Koala knows")).collect();
        if let Some(profile_id) =
            top.get("profile_id").filter(|raw| json::is_truthy(raw.get()) && !is_uuid_v4(raw.get()))
        {
            notes.push(format!(
                "profile_id {} is no UUID v4, which is what Koala's ko_id cookie holds",
                profile_id.get()
            ));
        }
        notes
    }
}

fn is_uuid_v4(json: &str) -> bool {
    /// The length of the form with hyphens: the crate reads three more forms that no cookie has.
    const HYPHENATED: usize = 36;
    let text = json::decode(json).filter(|text| text.len() == HYPHENATED);
    text.and_then(|text| uuid::Uuid::try_parse(&text).ok()).is_some_and(|id| id.get_version_num() == 4)
}
