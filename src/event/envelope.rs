//! Segment's batch envelope: the members next to `batch: […]` apply to every item of the batch.

use super::Event;
use super::json::{Object, ObjectWriter, Raw};
use std::collections::HashSet;

/// The item with the batch's `context` and `integrations` merged into its own, member by member at their top level;
/// the item's members win.
///
/// The text stays unchanged if the batch adds nothing, or if either value is not an object.
pub fn merge_envelope(item: &Event, context: Option<Raw<'_>>, integrations: Option<Raw<'_>>) -> String {
    let added: Vec<_> = [("context", context), ("integrations", integrations)]
        .into_iter()
        .filter_map(|(name, batch)| {
            Some((name, merged(item.object.non_null(name), Object::from_raw(batch?)?)?))
        })
        .collect();
    if added.is_empty() {
        return item.raw().into();
    }
    let mut out = ObjectWriter::with_capacity(item.raw().len());
    for member in &item.object.0 {
        if !added.iter().any(|(name, _)| member.name == *name) {
            out.member_with_key(member.key, member.value.get());
        }
    }
    added.iter().for_each(|(name, json)| out.member(name, json));
    out.finish()
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
    own.0.iter().chain(lacking).for_each(|m| out.member_with_key(m.key, m.value.get()));
    Some(out.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::value::RawValue;

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
            let raw = |json: Option<&'static str>| {
                json.map(|j| serde_json::from_str::<&RawValue>(j).unwrap().into())
            };
            let merged = merge_envelope(&Event::parse(item).unwrap(), raw(context), raw(integrations));
            assert_eq!(merged, want);
        }
    }
}
