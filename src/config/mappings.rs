//! The syntax of mappings in `[[mapping]]` and `mappings_file`. The module [`mapping`](crate::mapping) has their meaning.

use super::value::SourceText;
use crate::event::json::{self, Object};
use crate::event::{Raw, elements};
use crate::mapping::{Definition, MAX_MAPPINGS, shown_name};
use serde_json::value::RawValue;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// The keys of a mapping in TOML.
const KEYS: [&str; 5] = ["preset", "name", "trigger", "action", "fields"];
/// The largest file of mappings. Fifty mappings with fields as long as Segment allows are far smaller, so a larger file was
/// named by mistake.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Reads the value of `mapping`, which stands at `offset`. Problems come with their offsets.
pub(super) fn read_toml(
    file: &SourceText,
    offset: usize,
    value: &DeValue,
    definitions: &mut Vec<Definition>,
    problems: &mut Vec<(usize, String)>,
) {
    let DeValue::Array(tables) = value else {
        problems.push((offset, format!("{}: mapping is a list; write [[mapping]]", file.place(offset))));
        return;
    };
    for table in tables {
        let offset = table.span().start;
        let DeValue::Table(table) = table.get_ref() else {
            problems
                .push((offset, format!("{}: a mapping is a table; write [[mapping]]", file.place(offset))));
            continue;
        };
        let mut definition = Definition { place: file.place(offset), ..Definition::default() };
        for (key, value) in table {
            let (offset, name) = (key.span().start, key.get_ref().as_ref());
            let result = match name {
                "preset" => read_text(value.get_ref(), &mut definition.preset),
                "name" => read_text(value.get_ref(), &mut definition.name),
                "trigger" => read_text(value.get_ref(), &mut definition.trigger),
                "action" => read_text(value.get_ref(), &mut definition.action),
                "fields" => read_fields(value.get_ref(), &mut definition.fields),
                _ => Err(format!("is not a key of a mapping; the keys are {}", KEYS.join(", "))),
            };
            if let Err(problem) = result {
                let name = shown_name(name, &KEYS);
                problems.push((offset, format!("{}: mapping.{name} {problem}", file.place(offset))));
            }
        }
        definitions.push(definition);
    }
}

fn read_text(value: &DeValue, slot: &mut Option<String>) -> Result<(), String> {
    *slot = Some(value.as_str().ok_or("must be a text in quotes")?.to_owned());
    Ok(())
}

fn read_fields(value: &DeValue, fields: &mut Vec<(String, String)>) -> Result<(), String> {
    let DeValue::Table(table) = value else {
        return Err("must be a table, such as { event = { \"@path\" = \"$.event\" } }".to_owned());
    };
    for (name, value) in table {
        let mut json = String::new();
        write_json(value.get_ref(), &mut json)
            .map_err(|problem| format!(".{}: {problem}", name.get_ref()))?;
        fields.push((name.get_ref().to_string(), json));
    }
    Ok(())
}

/// Writes a TOML value as JSON. The parser of TOML limits the depth.
fn write_json(value: &DeValue, out: &mut String) -> Result<(), String> {
    match value {
        DeValue::String(text) => *out += &json::quote(text),
        DeValue::Integer(n) => {
            let n = i64::from_str_radix(n.as_str(), n.radix()).map_err(|_| "a number is too large")?;
            *out += &n.to_string();
        }
        DeValue::Float(n) => match n.as_str().parse::<f64>() {
            Ok(n) if n.is_finite() => *out += &serde_json::Value::from(n).to_string(),
            _ => return Err("JSON has no such number".to_owned()),
        },
        DeValue::Boolean(b) => *out += if *b { "true" } else { "false" },
        DeValue::Datetime(at) => *out += &json::quote(&at.to_string()),
        DeValue::Array(items) => {
            write_list('[', items.iter(), ']', out, |item, out| write_json(item.get_ref(), out))?;
        }
        DeValue::Table(table) => write_object(table, out)?,
    }
    Ok(())
}

fn write_object(table: &DeTable, out: &mut String) -> Result<(), String> {
    write_list('{', table.iter(), '}', out, |(name, value), out| {
        *out += &json::quote(name.get_ref());
        out.push(':');
        write_json(value.get_ref(), out)
    })
}

fn write_list<T>(
    open: char,
    items: impl Iterator<Item = T>,
    close: char,
    out: &mut String,
    mut write: impl FnMut(T, &mut String) -> Result<(), String>,
) -> Result<(), String> {
    out.push(open);
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(',');
        }
        write(item, out)?;
    }
    out.push(close);
    Ok(())
}

/// Reads mappings as Segment's public API prints them, a list of `{name, trigger, actionSlug, settings, enabled}`, or as
/// the code of its destinations writes them, `{name, subscribe, partnerAction, mapping}`. Leaves out those that are not
/// enabled.
///
/// # Errors
/// A sentence that names the file and the place in the list.
pub(super) fn read_exported(path: &Path) -> Result<Vec<Definition>, String> {
    let shown = path.display();
    let size = std::fs::metadata(path).map_err(|e| format!("mappings_file {shown}: {e}"))?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("mappings_file {shown}: the file is larger than 4 MiB"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| format!("mappings_file {shown}: {e}"))?;
    let in_file = |flaw: String| format!("{shown}: {flaw}");
    // The API wraps the list in an object.
    let outer = serde_json::from_str::<&RawValue>(&text)
        .map(Raw::from)
        .map_err(|e| format!("{shown}:{}:{}: not JSON: {e}", e.line(), e.column()))?;
    let inner = Object::from_raw(outer).and_then(|o| {
        let data = o.get("data").and_then(Object::from_raw).unwrap_or(o);
        data.get("subscriptions")
    });
    let list = inner.unwrap_or(outer);
    if !list.get().trim_start().starts_with('[') {
        return Err(in_file(
            "the content must be a list of mappings, as Segment's public API prints it".to_owned(),
        ));
    }
    let mut definitions = Vec::new();
    for (n, item) in elements(list.get()).map_err(|flaw| in_file(flaw.to_string()))?.enumerate() {
        let place = format!("{shown}: mapping {}", n + 1);
        if definitions.len() > MAX_MAPPINGS {
            break;
        }
        definitions.extend(read_exported_mapping(item, &place).map_err(|flaw| format!("{place}: {flaw}"))?);
    }
    Ok(definitions)
}

fn read_exported_mapping(item: &str, place: &str) -> Result<Option<Definition>, String> {
    let item: Object = serde_json::from_str(item).map_err(|_| "a mapping must be an object")?;
    let text = |name: &str| match item.non_null(name) {
        None => Ok(None),
        Some(value) if value.get().starts_with('"') => Ok(json::decode(value.get()).map(|t| t.into_owned())),
        Some(_) => Err(format!("{name} must be a text")),
    };
    if item.get("enabled").is_some_and(|enabled| enabled.get() == "false") {
        return Ok(None);
    }
    let either = |one: &str, other: &str| text(one)?.map_or_else(|| text(other), |text| Ok(Some(text)));
    let fields = match item.non_null("settings").or_else(|| item.non_null("mapping")) {
        None => Vec::new(),
        Some(fields) => {
            // Exports of Terraform have the object as text.
            let inner = fields.get().starts_with('"').then(|| json::decode(fields.get())).flatten();
            let inner = inner.as_deref().unwrap_or(fields.get());
            let fields: Object = serde_json::from_str(inner).map_err(|_| "settings must be an object")?;
            fields.0.iter().map(|m| (m.name.clone().into_owned(), m.value.get().to_owned())).collect()
        }
    };
    let (name, trigger) = (text("name")?, either("trigger", "subscribe")?);
    let action = either("actionSlug", "partnerAction")?;
    for (member, value) in [("name", &name), ("trigger", &trigger), ("actionSlug", &action)] {
        if value.is_none() {
            return Err(format!("{member} is missing"));
        }
    }
    Ok(Some(Definition {
        place: place.to_owned(),
        preset: None,
        name,
        trigger,
        action,
        fields,
        exported: true,
    }))
}
