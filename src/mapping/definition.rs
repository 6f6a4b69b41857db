//! Mappings as they are configured, the presets that they can start from, and their checks.

use super::directive::{Field, FieldError};
use super::fields::field_names;
use super::shown_name;
use super::trigger::Trigger;
use super::{MAX_MAPPINGS, Mapping};
use crate::item::ItemKind;
use std::fmt;
use std::sync::Arc;

/// The presets: name, trigger, action. The first two are Segment's and apply if no mapping is configured; Segment's
/// destination has no accounts.
const PRESETS: [(&str, &str, ItemKind); 3] = [
    ("Track Calls", "type = \"track\"", ItemKind::Track),
    ("Identify Calls", "type = \"identify\"", ItemKind::Identify),
    ("Group Calls", "type = \"group\"", ItemKind::AccountIdentify),
];

/// A mapping as it is configured, unchecked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Definition {
    /// The position in the configuration, for error messages.
    pub place: String,
    /// The preset that the mapping starts from.
    pub preset: Option<String>,
    /// The name; the preset's if absent.
    pub name: Option<String>,
    /// The trigger in FQL; the preset's if absent.
    pub trigger: Option<String>,
    /// The action; the preset's if absent.
    pub action: Option<String>,
    /// The fields by name, each in Segment's mapping language as JSON; absent ones are the preset's.
    pub fields: Vec<(String, String)>,
    /// The definition was exported from Segment: fields unknown here are ignored.
    pub exported: bool,
}

/// A mistake in a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefinitionError {
    /// The position in the configuration.
    pub place: String,
    /// The mistake and the fix.
    pub text: String,
}

impl fmt::Display for DefinitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// The mappings that apply if none is configured.
pub(super) fn presets() -> Vec<Mapping> {
    let mapping = |(name, trigger, action): &(&str, &str, ItemKind)| {
        let trigger = Trigger::parse(trigger).ok()?;
        Some(Mapping { name: Arc::from(*name), trigger, action: *action, fields: Vec::new() })
    };
    PRESETS.iter().take(2).filter_map(mapping).collect()
}

/// Checks all definitions and makes mappings of them.
///
/// # Errors
/// All mistakes in all definitions.
pub(super) fn mappings(definitions: &[Definition]) -> Result<Vec<Mapping>, Vec<DefinitionError>> {
    let (mut mappings, mut errors): (Vec<Mapping>, _) = (Vec::new(), Vec::new());
    for definition in definitions {
        let mut report =
            |text: String| errors.push(DefinitionError { place: definition.place.clone(), text });
        let Some(mapping) = checked(definition, &mut report) else { continue };
        if mappings.iter().any(|other| other.name == mapping.name) {
            report(format!("there is another mapping {:?}; give each its own name", mapping.name));
        }
        mappings.push(mapping);
    }
    if let Some(first) = definitions.get(MAX_MAPPINGS) {
        let text = format!("there are {} mappings; at most {MAX_MAPPINGS} are allowed", definitions.len());
        errors.push(DefinitionError { place: first.place.clone(), text });
    }
    if errors.is_empty() { Ok(mappings) } else { Err(errors) }
}

/// The mapping; `None` if `report` was called with a mistake.
fn checked(definition: &Definition, report: &mut impl FnMut(String)) -> Option<Mapping> {
    let mut is_valid = true;
    let mut report = |text: String| {
        is_valid = false;
        report(text);
    };
    let preset = definition.preset.as_ref().and_then(|name| {
        let preset = PRESETS.iter().find(|(preset, ..)| preset == name);
        if preset.is_none() {
            let known = PRESETS.map(|(name, ..)| name);
            let names: Vec<String> = known.iter().map(|name| format!("{name:?}")).collect();
            let shown = shown_name(name, &known);
            report(format!("there is no preset {shown:?}; the presets are {}", names.join(", ")));
        }
        preset
    });
    let name = definition.name.as_deref().or(preset.map(|(name, ..)| *name)).filter(|name| !name.is_empty());
    if name.is_none() && definition.preset.is_none() {
        report("the mapping has no name; write name = \"…\"".to_owned());
    }
    let title = name.map(|name| format!("mapping {name:?}")).unwrap_or_else(|| "the mapping".to_owned());
    let action = match definition.action.as_deref() {
        Some(text) => ItemKind::ALL.into_iter().find(|action| action.action_name() == text).or_else(|| {
            let known = ItemKind::ALL.map(ItemKind::action_name);
            let (shown, names) = (shown_name(text, &known), known.join(", "));
            report(format!("{title}: there is no action {shown:?}; the actions are {names}"));
            None
        }),
        None if definition.preset.is_none() => {
            let names = ItemKind::ALL.map(ItemKind::action_name).join(", ");
            report(format!("{title} has no action; write action = \"…\", one of {names}"));
            None
        }
        None => preset.map(|(_, _, action)| *action),
    };
    let trigger = match definition.trigger.as_deref().or(preset.map(|(_, trigger, _)| *trigger)) {
        Some(text) => {
            Trigger::parse(text).map_err(|e| report(format!("{title}: the trigger is not valid: {e}"))).ok()
        }
        None if definition.preset.is_none() => {
            report(format!("{title} has no trigger; write trigger = 'type = \"track\"' for all tracks"));
            None
        }
        None => None,
    };
    let fields = action.map(|action| fields(definition, action, &title, &mut report)).unwrap_or_default();
    let (name, trigger, action) = (Arc::from(name?), trigger?, action?);
    is_valid.then_some(Mapping { name, trigger, action, fields })
}

fn fields(
    definition: &Definition,
    action: ItemKind,
    title: &str,
    report: &mut impl FnMut(String),
) -> Vec<(&'static str, Field)> {
    let mut fields = Vec::new();
    for (name, json) in &definition.fields {
        let Some(field_name) = field_names(action).iter().find(|field_name| *field_name == name) else {
            if !definition.exported {
                let known = field_names(action);
                let (shown, names) = (shown_name(name, known), known.join(", "));
                report(format!("{title}: {} has no field {shown:?}; it has {names}", action.action_name()));
            }
            continue;
        };
        match Field::parse(json) {
            Ok(field) => fields.push((*field_name, field)),
            Err(errors) => {
                for FieldError { path, text } in errors {
                    report(format!("{title}: field {name}{path}: {text}"));
                }
            }
        }
    }
    fields
}
