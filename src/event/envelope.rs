//! Segment's batch envelope: what stands beside `batch: […]` holds for each item of it.

use super::Event;
use super::json::{Object, Raw, Writer};
use std::collections::HashSet;

/// The item's text with what its batch says for all: the batch's `context` and `integrations` merged into the
/// item's own member by member at their top level, where the item's member wins.
///
/// The text is unchanged where there is nothing to add: the batch says nothing new, or one of the two is no object.
pub fn merge_envelope(item: &Event, context: Option<Raw<'_>>, integrations: Option<Raw<'_>>) -> String {
    let added: Vec<_> = [("context", context), ("integrations", integrations)]
        .into_iter()
        .filter_map(|(name, batch)| Some((name, merged(item.object.non_null(name), Object::of(batch?)?)?)))
        .collect();
    if added.is_empty() {
        return item.raw().into();
    }
    let mut out = Writer::with_capacity(item.raw().len());
    for member in &item.object.0 {
        if !added.iter().any(|(name, _)| member.name == *name) {
            out.entry(member.key, member.value.get());
        }
    }
    added.iter().for_each(|(name, json)| out.member(name, json));
    out.finish()
}

/// The item's members, then those of the batch that it lacks; `None` if the item's value stays as it is.
fn merged(own: Option<Raw<'_>>, batch: Object) -> Option<String> {
    let own = match own {
        Some(value) => Object::of(value)?,
        None => Object(Vec::new()),
    };
    let names: HashSet<_> = own.0.iter().map(|m| m.name.as_ref()).collect();
    let mut lacking = batch.0.iter().filter(|m| !names.contains(m.name.as_ref())).peekable();
    lacking.peek()?;
    let mut out = Writer::new();
    own.0.iter().chain(lacking).for_each(|m| out.entry(m.key, m.value.get()));
    Some(out.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::value::RawValue;

    #[test]
    fn what_a_batch_says_for_all_fills_what_an_item_leaves_open() {
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
