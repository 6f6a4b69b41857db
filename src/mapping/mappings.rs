//! The mappings in force, applied to events.

use super::definition::{self, Definition, DefinitionError};
use super::{DraftItem, HashKey, Mapping};
use crate::clock::Timestamp;
use crate::event::json::Object;
use crate::event::{Event, MessageId};
use crate::item::{Disposition, Item, Keying, Person};
use crate::reason::{Code, Reason};
use std::sync::Arc;

/// The name of this destination in an event's `integrations`. `Koala` alone is another destination, the browser's.
const INTEGRATION: &str = "Koala (Cloud)";

/// Segment's types of events.
const TYPES: [&str; 6] = ["track", "identify", "page", "screen", "group", "alias"];

/// Segment's own limit for one destination.
pub const MAX_MAPPINGS: usize = 50;

/// The decision of one mapping about an event that meets its trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped<T = Box<Item>> {
    /// The mapping's name.
    pub mapping: Arc<str>,
    /// The decision.
    pub disposition: Disposition<T>,
}

/// The mappings in force, in order, with what applies to all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Mappings {
    list: Vec<Mapping>,
    hash_key: Option<HashKey>,
    consent_categories: Vec<String>,
    keying: Keying,
}

impl Mappings {
    /// The presets "Track Calls" and "Identify Calls".
    pub fn presets() -> Mappings {
        Mappings::from_list(definition::presets())
    }

    fn from_list(list: Vec<Mapping>) -> Mappings {
        let keying = keying_of(&list, None);
        Mappings { list, hash_key: None, consent_categories: Vec::new(), keying }
    }

    /// Checks definitions and makes mappings of them.
    ///
    /// # Errors
    /// All mistakes in the definitions, duplicate names included.
    pub fn new(definitions: &[Definition]) -> Result<Mappings, Vec<DefinitionError>> {
        definition::mappings(definitions).map(Mappings::from_list)
    }

    /// Sets the key for `@hash`.
    pub fn with_hash_key(self, key: HashKey) -> Mappings {
        let keying = keying_of(&self.list, Some(&key));
        Mappings { hash_key: Some(key), keying, ..self }
    }

    /// Sets the consent categories: an event is skipped if its person has refused one of them.
    pub fn with_consent(self, categories: Vec<String>) -> Mappings {
        Mappings { consent_categories: categories, ..self }
    }

    /// Names the mappings, as far as they decide whom an event is about.
    pub fn keying(&self) -> Keying {
        self.keying
    }

    /// The mappings in order.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.list.iter()
    }

    /// Each mapping with the condition of its trigger that the event does not meet; `None` if the mapping takes it.
    pub fn unmet_conditions(&self, event: &Event) -> impl Iterator<Item = (&Mapping, Option<&str>)> {
        self.iter().map(|mapping| (mapping, mapping.trigger().unmet(event)))
    }

    /// Maps an event: one decision for each mapping that takes it. `message_id` is the event's own or the one that it
    /// was given at intake; `timestamp` is used if the event has neither `timestamp` nor `originalTimestamp`.
    ///
    /// # Errors
    /// The reason for skipping the event: no mapping takes it, its `integrations` turn Koala off, or the person has
    /// refused consent.
    pub fn map(
        &self,
        event: &Event,
        message_id: &MessageId,
        timestamp: Timestamp,
    ) -> Result<Vec<Mapped>, Reason> {
        self.map_and_finish(event, message_id, timestamp, |draft| draft.into_item())
    }

    /// Like [`Mappings::map`], but returns only the person of each item, for half the work.
    ///
    /// # Errors
    /// The errors of [`Mappings::map`].
    pub fn persons(
        &self,
        event: &Event,
        message_id: &MessageId,
        timestamp: Timestamp,
    ) -> Result<Vec<Mapped<Person>>, Reason> {
        self.map_and_finish(event, message_id, timestamp, |draft| draft.into_person())
    }

    fn map_and_finish<T>(
        &self,
        event: &Event,
        message_id: &MessageId,
        timestamp: Timestamp,
        finish: fn(DraftItem<'_>) -> T,
    ) -> Result<Vec<Mapped<T>>, Reason> {
        self.check_allowed(event)?;
        let key = self.hash_key.as_ref();
        let mapped: Vec<Mapped<T>> = self
            .iter()
            .filter(|mapping| mapping.trigger().matches(event))
            .map(|mapping| Mapped {
                mapping: mapping.name().clone(),
                disposition: mapping.disposition(event, message_id, timestamp, key, finish),
            })
            .collect();
        match mapped.is_empty() {
            false => Ok(mapped),
            true => Err(Reason::new(Code::NoMapping, not_selected(event))),
        }
    }

    /// Maps an event by the mapping called `name`, if that still takes it; by the first that takes it if `name` is
    /// empty.
    pub fn map_by(
        &self,
        name: &str,
        event: &Event,
        message_id: &MessageId,
        timestamp: Timestamp,
    ) -> Disposition<Box<Item>> {
        if let Err(reason) = self.check_allowed(event) {
            return Disposition::Skip(reason);
        }
        let has_name = |mapping: &&Mapping| name.is_empty() || **mapping.name() == *name;
        match self.iter().filter(has_name).find(|mapping| mapping.trigger().matches(event)) {
            Some(mapping) => {
                let key = self.hash_key.as_ref();
                mapping.disposition(event, message_id, timestamp, key, |draft| draft.into_item())
            }
            None => {
                let text = "the mapping that took it when it was stored no longer takes it";
                Disposition::Skip(Reason::new(Code::NoMapping, text))
            }
        }
    }

    /// Checks that neither the event's `integrations` nor the person's consent forbids sending it.
    fn check_allowed(&self, event: &Event) -> Result<(), Reason> {
        if is_turned_off(event) {
            let text = "the event's integrations turn Koala (Cloud) off";
            return Err(Reason::new(Code::IntegrationsOff, text));
        }
        match refused_category(event, &self.consent_categories) {
            Some(category) => {
                Err(Reason::new(Code::NoConsent, format!("the person refuses the category {category:?}")))
            }
            None => Ok(()),
        }
    }
}

/// Why no mapping selects the event, as far as its type says.
fn not_selected(event: &Event) -> String {
    let text = "no mapping selects the event";
    match event.kind() {
        None => format!("{text}, which has no type"),
        Some(kind) if !TYPES.contains(&&*kind) && TYPES.contains(&&*kind.to_lowercase()) => {
            format!("{text}: type is '{kind}': write it in lower case")
        }
        Some(_) => text.to_owned(),
    }
}

/// Whether the event's `integrations` turn this destination off: only `false` does, and its own name overrides `All`.
fn is_turned_off(event: &Event) -> bool {
    let Some(integrations) = event.get("integrations").and_then(Object::from_raw) else { return false };
    let setting = integrations.non_null(INTEGRATION).or_else(|| integrations.non_null("All"));
    setting.is_some_and(|value| value.get() == "false")
}

/// Whether the event's `integrations` turn off `Koala`, the browser's destination, but not this one. That has no effect
/// here, and the author of the event may not know it.
pub fn turns_off_only_browser(event: &Event) -> bool {
    let Some(integrations) = event.get("integrations").and_then(Object::from_raw) else { return false };
    integrations.get("Koala").is_some_and(|value| value.get() == "false") && !is_turned_off(event)
}

/// The first of the categories that the person has refused in `context.consent`, where Segment records it.
fn refused_category<'a>(event: &Event, categories: &'a [String]) -> Option<&'a str> {
    if categories.is_empty() {
        return None;
    }
    let context = event.get("context").and_then(Object::from_raw)?;
    let consent = context.get("consent").and_then(Object::from_raw)?;
    let preferences = consent.get("categoryPreferences").and_then(Object::from_raw)?;
    let is_refused =
        |category: &&String| preferences.get(category).is_some_and(|value| value.get() == "false");
    categories.iter().find(is_refused).map(String::as_str)
}

fn keying_of(list: &[Mapping], hash_key: Option<&HashKey>) -> Keying {
    // The key itself is a secret; a hash by it tells keys apart.
    let hash_key = hash_key.map(|key| key.hash("keying"));
    Keying::of(&format!("{list:?}{hash_key:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_mappings_have_one_name_and_others_another() {
        let keying = |mappings: Mappings| mappings.keying();
        let hashed = |key: &[u8]| keying(Mappings::presets().with_hash_key(HashKey::new(key).unwrap()));
        let presets = keying(Mappings::presets());
        assert_eq!(presets, keying(Mappings::presets()));
        assert_eq!(presets, keying(Mappings::presets().with_consent(vec!["Advertising".to_owned()])));
        assert_eq!(hashed(&[b'a'; 16]), hashed(&[b'a'; 16]));
        let one = Mappings::from_list(Mappings::presets().list.into_iter().take(1).collect());
        let others = [presets, keying(one), hashed(&[b'a'; 16]), hashed(&[b'b'; 16])];
        assert!((1..others.len()).all(|n| !others[..n].contains(&others[n])), "{others:?}");
    }
}
