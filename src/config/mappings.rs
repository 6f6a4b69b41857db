//! `[[mapping]]` and `mappings_file`: how mappings are written down. What they mean is [`mapping`](crate::mapping)'s.

use super::settings::File;
use crate::event::json::{self, Object};
use crate::event::{Raw, elements};
use crate::mapping::{Definition, MAX_MAPPINGS};
use serde_json::value::RawValue;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// The keys of a mapping in TOML.
const KEYS: [&str; 5] = ["preset", "name", "trigger", "action", "fields"];
/// Fifty mappings with fields as long as Segment allows are far smaller: more is another file, named by mistake.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Reads what stands under `mapping`: definitions, and problems with their places in the text.
pub(super) fn read_toml(
    file: &File,
    at: usize,
    value: &DeValue,
    definitions: &mut Vec<Definition>,
    problems: &mut Vec<(usize, String)>,
) {
    let DeValue::Array(tables) = value else {
        problems.push((at, format!("{}: mapping is a list; write [[mapping]]", file.place(at))));
        return;
    };
    for table in tables {
        let at = table.span().start;
        let DeValue::Table(table) = table.get_ref() else {
            problems.push((at, format!("{}: a mapping is a table; write [[mapping]]", file.place(at))));
            continue;
        };
        let mut definition = Definition { place: file.place(at), ..Definition::default() };
        for (key, value) in table {
            let (at, name) = (key.span().start, key.get_ref().as_ref());
            let wrong = match name {
                "preset" => text(value.get_ref(), &mut definition.preset),
                "name" => text(value.get_ref(), &mut definition.name),
                "trigger" => text(value.get_ref(), &mut definition.trigger),
                "action" => text(value.get_ref(), &mut definition.action),
                "fields" => fields(value.get_ref(), &mut definition.fields),
                _ => Err(format!("is no key of a mapping, which has {}", KEYS.join(", "))),
            };
            if let Err(wrong) = wrong {
                let name = name.escape_debug();
                problems.push((at, format!("{}: mapping.{name} {wrong}", file.place(at))));
            }
        }
        definitions.push(definition);
    }
}

fn text(value: &DeValue, slot: &mut Option<String>) -> Result<(), String> {
    *slot = Some(value.as_str().ok_or("wants a text in quotes")?.to_owned());
    Ok(())
}

fn fields(value: &DeValue, fields: &mut Vec<(String, String)>) -> Result<(), String> {
    let DeValue::Table(table) = value else {
        return Err("wants a table, such as { event = { \"@path\" = \"$.event\" } }".to_owned());
    };
    for (name, value) in table {
        let mut json = String::new();
        to_json(value.get_ref(), &mut json).map_err(|wrong| format!(".{}: {wrong}", name.get_ref()))?;
        fields.push((name.get_ref().to_string(), json));
    }
    Ok(())
}

/// The JSON of a value of TOML. Its parser holds the depth down.
fn to_json(value: &DeValue, out: &mut String) -> Result<(), String> {
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
            list('[', items.iter(), ']', out, |item, out| to_json(item.get_ref(), out))?;
        }
        DeValue::Table(table) => object(table, out)?,
    }
    Ok(())
}

fn object(table: &DeTable, out: &mut String) -> Result<(), String> {
    list('{', table.iter(), '}', out, |(name, value), out| {
        *out += &json::quote(name.get_ref());
        out.push(':');
        to_json(value.get_ref(), out)
    })
}

fn list<T>(
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
/// its destinations' own code writes them, `{name, subscribe, partnerAction, mapping}`. One that is not enabled is
/// passed over.
///
/// # Errors
/// A sentence that names the file and the place in the list.
pub(super) fn read_exported(path: &Path) -> Result<Vec<Definition>, String> {
    let shown = path.display();
    let size = std::fs::metadata(path).map_err(|e| format!("mappings_file {shown}: {e}"))?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("mappings_file {shown}: it is larger than 4 MiB"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| format!("mappings_file {shown}: {e}"))?;
    let wrong = |flaw: String| format!("{shown}: {flaw}");
    // The API puts the list into an object.
    let outer = serde_json::from_str::<&RawValue>(&text)
        .map(Raw::from)
        .map_err(|e| format!("{shown}:{}:{}: not JSON: {e}", e.line(), e.column()))?;
    let inner = Object::from_raw(outer).and_then(|o| {
        let data = o.get("data").and_then(Object::from_raw).unwrap_or(o);
        data.get("subscriptions")
    });
    let list = inner.unwrap_or(outer);
    if !list.get().trim_start().starts_with('[') {
        return Err(wrong("it must be a list of mappings, as Segment's public API prints it".to_owned()));
    }
    let mut definitions = Vec::new();
    for (n, item) in elements(list.get()).map_err(|flaw| wrong(flaw.to_string()))?.enumerate() {
        let place = format!("{shown}: mapping {}", n + 1);
        if definitions.len() > MAX_MAPPINGS {
            break;
        }
        definitions.extend(exported(item, &place).map_err(|flaw| format!("{place}: {flaw}"))?);
    }
    Ok(definitions)
}

fn exported(item: &str, place: &str) -> Result<Option<Definition>, String> {
    let item: Object = serde_json::from_str(item).map_err(|_| "it must be an object")?;
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
            // Terraform's exports hold it as text.
            let inner = fields.get().starts_with('"').then(|| json::decode(fields.get())).flatten();
            let inner = inner.as_deref().unwrap_or(fields.get());
            let fields: Object = serde_json::from_str(inner).map_err(|_| "settings must be an object")?;
            fields.0.iter().map(|m| (m.name.clone().into_owned(), m.value.get().to_owned())).collect()
        }
    };
    let (name, trigger) = (text("name")?, either("trigger", "subscribe")?);
    let action = either("actionSlug", "partnerAction")?;
    for (what, there) in [("name", &name), ("trigger", &trigger), ("actionSlug", &action)] {
        if there.is_none() {
            return Err(format!("{what} is missing"));
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
