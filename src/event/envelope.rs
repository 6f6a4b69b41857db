//! Segment's batch envelope: the members next to `batch: […]` apply to every item of the batch.

use super::Event;
use super::json::{Object, ObjectWriter, Raw};
use std::collections::HashSet;

/// The members of a batch that apply to all its items; each is valid JSON, in the bytes it came in.
#[derive(Debug, Clone, Copy, Default)]
pub struct EnvelopeCommon<'a> {
    /// Merged into each item's `context`.
    pub context: Option<&'a str>,
    /// Merged into each item's `integrations`.
    pub integrations: Option<&'a str>,
}

/// The item with the batch's `context` and `integrations` merged into its own, member by member at their top level;
/// the item's members win.
///
/// `None`: the item stays as it is, because the batch adds nothing, or because either value is not an object.
pub fn merge_envelope(item: &Event, common: &EnvelopeCommon<'_>) -> Option<String> {
    let added: Vec<_> = [("context", common.context), ("integrations", common.integrations)]
        .into_iter()
        .filter_map(|(name, batch)| {
            let batch = Object::from_raw(Raw::of_valid(batch?))?;
            Some((name, merged(item.object.non_null(name), batch)?))
        })
        .collect();
    if added.is_empty() {
        return None;
    }
    let mut out = ObjectWriter::with_capacity(item.raw().len());
    for member in &item.object.0 {
        if !added.iter().any(|(name, _)| member.name == *name) {
            out.member_with_key(member.key, member.value.get());
        }
    }
    added.iter().for_each(|(name, json)| out.member(name, json));
    Some(out.finish())
}

/// The item's members, then the batch's members that it lacks; `None` if the item's value stays unchanged.
fn merged(own: Option<Raw<'_>>, batch: Object) -> Option<String> {
    let own = match own {
        Some(value) => Object::from_raw(value)?,
        None => Object(Vec::new()),
    };
    let names: HashSet<_> = own.0.iter().map(|m| m.name.as_ref()).collect();
    let mut lacking = batch.0.iter().filter(|m| !names.contains(m.name.as_ref())).peekable();
    lacking.peek()?;
    let mut out = ObjectWriter::new();
    for m in own.0.iter().chain(lacking) {
        out.member_with_key(m.key, m.value.get());
    }
    Some(out.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_fills_members_that_the_item_lacks() {
        let batch = (r#"{"ip":"1","locale":"de"}"#, r#"{"All":false}"#);
        for (item, context, integrations, want) in [
            (r#"{"a": 1}"#, None, None, r#"{"a": 1}"#),
            (r#"{"a": 1}"#, Some("null"), Some("7"), r#"{"a": 1}"#),
            (r#"{"a": 1}"#, Some("{}"), None, r#"{"a": 1}"#),
            (r#"{"a":1}"#, Some(batch.0), None, r#"{"a":1,"context":{"ip":"1","locale":"de"}}"#),
            (r#"{"context":null}"#, Some(batch.0), None, r#"{"context":{"ip":"1","locale":"de"}}"#),
            (r#"{"context":{"ip":null}}"#, Some(batch.0), None, r#"{"context":{"ip":null,"locale":"de"}}"#),
            (
                r#"{"context":{"ip":2,"x":{"y":1.0}},"a":1}"#,
                Some(batch.0),
                Some(batch.1),
                r#"{"a":1,"context":{"ip":2,"x":{"y":1.0},"locale":"de"},"integrations":{"All":false}}"#,
            ),
            (r#"{"integrations":{"All": true}}"#, None, Some(batch.1), r#"{"integrations":{"All": true}}"#),
            (r#"{"context": "x"}"#, Some(batch.0), None, r#"{"context": "x"}"#),
        ] {
            let item = Event::parse(item).unwrap();
            let merged = merge_envelope(&item, &EnvelopeCommon { context, integrations });
            let merged = merged.as_deref().unwrap_or(item.raw());
            assert_eq!(merged, want);
        }
    }
}
