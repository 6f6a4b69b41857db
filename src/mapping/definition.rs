//! Mappings as people write them, and the presets that they may start from.

use super::directive::{Field, FieldError};
use super::trigger::Trigger;
use super::{MAX_MAPPINGS, Mapping};
use crate::item::ItemKind;
use std::fmt;
use std::sync::Arc;

/// What a mapping makes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Something that a person did.
    Track,
    /// Something about a person.
    Identify,
    /// Something that somebody of a company did.
    AccountTrack,
    /// Something about a company.
    AccountIdentify,
}

impl Action {
    /// All of them.
    pub const ALL: [Action; 4] =
        [Action::Track, Action::Identify, Action::AccountTrack, Action::AccountIdentify];

    /// Its name in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Track => "track",
            Action::Identify => "identify",
            Action::AccountTrack => "account_track",
            Action::AccountIdentify => "account_identify",
        }
    }

    /// The fields that it has.
    pub fn fields(self) -> &'static [&'static str] {
        match self {
            Action::Track => {
                &["email", "event", "properties", "traits", "sent_at", "context", "device_ip", "message_id"]
            }
            Action::Identify => &["email", "traits", "sent_at", "context", "device_ip", "message_id"],
            Action::AccountTrack => &["domain", "account_id", "event", "properties", "sent_at", "message_id"],
            Action::AccountIdentify => &["domain", "account_id", "group_id", "traits"],
        }
    }

    pub(super) fn item_kind(self) -> ItemKind {
        match self {
            Action::Track => ItemKind::Track,
            Action::Identify => ItemKind::Identify,
            Action::AccountTrack => ItemKind::AccountTrack,
            Action::AccountIdentify => ItemKind::AccountIdentify,
        }
    }
}

/// The presets, by name: which events, and what is made of them. The first two are Segment's, and in force where there
/// are no mappings; Segment's destination has no accounts.
const PRESETS: [(&str, &str, Action); 3] = [
    ("Track Calls", "type = \"track\"", Action::Track),
    ("Identify Calls", "type = \"identify\"", Action::Identify),
    ("Group Calls", "type = \"group\"", Action::AccountIdentify),
];

/// A mapping as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Definition {
    /// Where it is written, for whoever fixes it.
    pub place: String,
    /// The preset that it starts from.
    pub preset: Option<String>,
    /// What people call it; the preset's name if it has none.
    pub name: Option<String>,
    /// FQL: which events it takes; the preset's if there is none.
    pub trigger: Option<String>,
    /// What it makes of them; the preset's if there is none.
    pub action: Option<String>,
    /// Fields by name, each in Segment's mapping language as JSON; those left out are the preset's.
    pub fields: Vec<(String, String)>,
    /// Written by Segment: fields that mean something to it alone are passed over.
    pub exported: bool,
}

/// What is wrong with a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Where the mapping is written.
    pub place: String,
    /// What is wrong, and the fix.
    pub text: String,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// What is in force where no mapping is written.
pub(super) fn presets() -> Vec<Mapping> {
    let segments = PRESETS.iter().filter(|(_, _, action)| matches!(action, Action::Track | Action::Identify));
    let mapping = |(name, trigger, action): &(&str, &str, Action)| {
        let trigger = Trigger::parse(trigger).ok()?;
        Some(Mapping { name: Arc::from(*name), trigger, action: *action, fields: Vec::new() })
    };
    segments.filter_map(mapping).collect()
}

pub(super) fn mappings(definitions: &[Definition]) -> Result<Vec<Mapping>, Vec<Flaw>> {
    let (mut mappings, mut flaws): (Vec<Mapping>, _) = (Vec::new(), Vec::new());
    for definition in definitions {
        let mut flaw = |text: String| flaws.push(Flaw { place: definition.place.clone(), text });
        let Some(mapping) = checked(definition, &mut flaw) else { continue };
        if mappings.iter().any(|other| other.name == mapping.name) {
            flaw(format!("there is another mapping {:?}; give each a name of its own", mapping.name));
        }
        mappings.push(mapping);
    }
    if let Some(first) = definitions.get(MAX_MAPPINGS) {
        let text = format!("there are {} mappings; at most {MAX_MAPPINGS} may be", definitions.len());
        flaws.push(Flaw { place: first.place.clone(), text });
    }
    if flaws.is_empty() { Ok(mappings) } else { Err(flaws) }
}

/// The mapping, after every flaw of it was told; `None` if it has some.
fn checked(definition: &Definition, flaw: &mut impl FnMut(String)) -> Option<Mapping> {
    let mut sound = true;
    let mut flaw = |text: String| {
        sound = false;
        flaw(text);
    };
    let preset = definition.preset.as_ref().and_then(|name| {
        let preset = PRESETS.iter().find(|(known, ..)| known == name);
        if preset.is_none() {
            let names: Vec<String> = PRESETS.iter().map(|(name, ..)| format!("{name:?}")).collect();
            flaw(format!("there is no preset {name:?}; the presets are {}", names.join(", ")));
        }
        preset
    });
    let name = definition.name.as_deref().or(preset.map(|(name, ..)| *name)).filter(|name| !name.is_empty());
    if name.is_none() && definition.preset.is_none() {
        flaw("the mapping has no name; write name = \"…\"".to_owned());
    }
    let called = name.map(|name| format!("mapping {name:?}")).unwrap_or_else(|| "the mapping".to_owned());
    let action = match definition.action.as_deref() {
        Some(text) => Action::ALL.into_iter().find(|action| action.as_str() == text).or_else(|| {
            let names = Action::ALL.map(Action::as_str).join(", ");
            flaw(format!("{called}: there is no action {text:?}; the actions are {names}"));
            None
        }),
        None if definition.preset.is_none() => {
            let names = Action::ALL.map(Action::as_str).join(", ");
            flaw(format!("{called} has no action; write action = \"…\", one of {names}"));
            None
        }
        None => preset.map(|(_, _, action)| *action),
    };
    let trigger = match definition.trigger.as_deref().or(preset.map(|(_, trigger, _)| *trigger)) {
        Some(text) => {
            Trigger::parse(text).map_err(|e| flaw(format!("{called}: the trigger is not clear: {e}"))).ok()
        }
        None if definition.preset.is_none() => {
            flaw(format!("{called} has no trigger; write trigger = 'type = \"track\"' for all tracks"));
            None
        }
        None => None,
    };
    let fields = action.map(|action| fields(definition, action, &called, &mut flaw)).unwrap_or_default();
    let (name, trigger, action) = (Arc::from(name?), trigger?, action?);
    sound.then_some(Mapping { name, trigger, action, fields })
}

fn fields(
    definition: &Definition,
    action: Action,
    called: &str,
    flaw: &mut impl FnMut(String),
) -> Vec<(&'static str, Field)> {
    let mut fields = Vec::new();
    for (name, json) in &definition.fields {
        let Some(known) = action.fields().iter().find(|known| *known == name) else {
            if !definition.exported {
                let names = action.fields().join(", ");
                flaw(format!("{called}: {} has no field {name:?}; it has {names}", action.as_str()));
            }
            continue;
        };
        match Field::parse(json) {
            Ok(field) => fields.push((*known, field)),
            Err(errors) => {
                for FieldError { path, text } in errors {
                    flaw(format!("{called}: field {name}{path}: {text}"));
                }
            }
        }
    }
    fields
}
