//! The filters whose results are certain to be those of liquidjs 10, which Segment runs.

use super::value::Value;
use crate::event::json::is_js_space;
use crate::mapping::javascript::trim;

/// A filter: a function of a value and its arguments. An error is a clause.
pub type Filter = fn(&Value, &[Value]) -> Result<Value, String>;

/// The filters by name, with their minimum and maximum number of arguments.
#[rustfmt::skip]
const FILTERS: &[(&str, usize, usize, Filter)] = &[
    ("abs", 0, 0, |v, _| number(number_or_0(v).abs())),
    ("append", 1, 1, |v, a| text(v.print() + &a[0].print())),
    ("at_least", 1, 1, |v, a| number(number_or_0(v).max(number_or_0(&a[0])))),
    ("at_most", 1, 1, |v, a| number(number_or_0(v).min(number_or_0(&a[0])))),
    ("capitalize", 0, 0, |v, _| text(capitalized(&v.print()))),
    ("ceil", 0, 0, |v, _| number(number_or_0(v).ceil())),
    ("default", 1, 1, |v, a| Ok(if has_value(v) { v.clone() } else { a[0].clone() })),
    ("divided_by", 1, 1, |v, a| number(number_or_0(v) / number_or_0(&a[0]))),
    ("downcase", 0, 0, |v, _| text(v.print().to_lowercase())),
    ("escape", 0, 0, |v, _| text(escaped(&v.print()))),
    ("escape_once", 0, 0, |v, _| text(escaped(&unescaped(&v.print())))),
    ("first", 0, 0, |v, _| first_or_last(v, "first")),
    ("floor", 0, 0, |v, _| number(number_or_0(v).floor())),
    ("join", 0, 1, join),
    ("json", 0, 0, |v, _| Ok(v.to_json().map_or(Value::Undefined, Value::Text))),
    ("jsonify", 0, 0, |v, _| Ok(v.to_json().map_or(Value::Undefined, Value::Text))),
    ("last", 0, 0, |v, _| first_or_last(v, "last")),
    ("lstrip", 0, 0, |v, _| text(v.print().trim_start_matches(is_js_space))),
    ("minus", 1, 1, |v, a| number(number_or_0(v) - number_or_0(&a[0]))),
    ("modulo", 1, 1, |v, a| number(number_or_0(v) % number_or_0(&a[0]))),
    ("plus", 1, 1, |v, a| number(number_or_0(v) + number_or_0(&a[0]))),
    ("prepend", 1, 1, |v, a| text(a[0].print() + &v.print())),
    ("remove", 1, 1, |v, a| text(v.print().replace(&search_text(&a[0])?, ""))),
    ("remove_first", 1, 1, |v, a| text(v.print().replacen(&search_text(&a[0])?, "", 1))),
    ("replace", 2, 2, |v, a| text(v.print().replace(&search_text(&a[0])?, &replacement_text(&a[1])?))),
    ("replace_first", 2, 2, |v, a| text(v.print().replacen(&search_text(&a[0])?, &replacement_text(&a[1])?, 1))),
    ("round", 0, 1, round),
    ("rstrip", 0, 0, |v, _| text(v.print().trim_end_matches(is_js_space))),
    ("size", 0, 0, size),
    ("slice", 1, 2, slice),
    ("split", 1, 1, split),
    ("strip", 0, 0, |v, _| text(trim(&v.print()))),
    ("strip_newlines", 0, 0, |v, _| text(v.print().replace("\r\n", "").replace('\n', ""))),
    ("times", 1, 1, |v, a| number(number_or_0(v) * number_or_0(&a[0]))),
    ("truncate", 0, 2, truncate),
    ("upcase", 0, 0, |v, _| text(v.print().to_uppercase())),
    ("url_encode", 0, 0, |v, _| text(url_encoded(&v.print()))),
];

#[rustfmt::skip]
const DISABLED: &[&str] = &[
    "array_to_sentence_string", "concat", "find", "find_exp", "find_index", "find_index_exp", "group_by",
    "group_by_exp", "has", "has_exp", "map", "newline_to_br", "reject", "reject_exp", "reverse", "sort", "sort_natural",
    "uniq", "where_exp", "type",
];

/// The filter called `name`, if it accepts that number of arguments.
///
/// # Errors
/// The filter is not supported, or takes another number of arguments.
pub fn find(name: &str, arguments: usize) -> Result<Filter, String> {
    match FILTERS.iter().find(|(filter_name, ..)| *filter_name == name) {
        Some((_, least, most, filter)) if (*least..=*most).contains(&arguments) => Ok(*filter),
        Some((_, least, most, _)) => {
            let accepted = if least == most { most.to_string() } else { format!("{least} to {most}") };
            Err(format!("the filter {name} takes {accepted} arguments here, and has {arguments}"))
        }
        None if DISABLED.contains(&name) => Err(format!("Segment disables the filter {name}")),
        None => {
            let names: Vec<&str> = FILTERS.iter().map(|(name, ..)| *name).collect();
            Err(format!("the filter {name:?} is not supported; there are {}", names.join(", ")))
        }
    }
}

fn text(text: impl Into<String>) -> Result<Value, String> {
    Ok(Value::Text(text.into()))
}

fn number(number: f64) -> Result<Value, String> {
    Ok(Value::Number(number))
}

/// `Number(value)`, or 0 if that is NaN.
fn number_or_0(value: &Value) -> f64 {
    Some(value.to_js_number()).filter(|n| !n.is_nan()).unwrap_or(0.0)
}

fn has_value(value: &Value) -> bool {
    match value {
        Value::Text(text) => !text.is_empty(),
        Value::Empty | Value::Blank => false,
        other => other.elements().map_or_else(|| other.is_truthy(), |items| !items.is_empty()),
    }
}

/// The argument of a filter that searches a text; an empty one is refused.
fn search_text(value: &Value) -> Result<String, String> {
    match value.to_js_string() {
        text if text.is_empty() => Err("there is nothing to look for".to_owned()),
        text => Ok(text),
    }
}

/// The replacement of a filter that replaces text. Nil and `$` are refused: JavaScript writes nil as a word, and `$` is
/// special in some replacements.
fn replacement_text(value: &Value) -> Result<String, String> {
    match value.to_js_string() {
        text if value.is_nil() || text.contains('$') => {
            Err("nil or a dollar cannot be a replacement".to_owned())
        }
        text => Ok(text),
    }
}

fn capitalized(text: &str) -> String {
    let Some(first) = text.chars().next() else { return String::new() };
    let rest = text[first.len_utf8()..].to_lowercase();
    // JavaScript changes only the first UTF-16 unit; half a surrogate pair has no case.
    if first.len_utf16() == 1 {
        first.to_uppercase().collect::<String>() + &rest
    } else {
        format!("{first}{rest}")
    }
}

const ESCAPES: [(char, &str); 5] =
    [('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;"), ('"', "&#34;"), ('\'', "&#39;")];

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match ESCAPES.iter().find(|(plain, _)| *plain == c) {
            Some((_, escape)) => out += escape,
            None => out.push(c),
        }
    }
    out
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (c, length) = match ESCAPES.iter().find(|(_, escape)| rest.starts_with(escape)) {
            Some((plain, escape)) => (*plain, escape.len()),
            None => (c, c.len_utf8()),
        };
        out.push(c);
        rest = &rest[length..];
    }
    out
}

/// `encodeURIComponent(text)`, with a plus for a space.
fn url_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b' ' => out.push('+'),
            _ if b.is_ascii_alphanumeric() || b"-_.!~*'()".contains(&b) => out.push(b.into()),
            _ => out += &format!("%{b:02X}"),
        }
    }
    out
}

fn first_or_last(value: &Value, name: &str) -> Result<Value, String> {
    match value {
        Value::Text(text) if !text.is_empty() => {
            Err(format!("{name} of a string is not supported; write slice"))
        }
        other if other.elements().is_some() => Ok(other.member(&Value::Text(name.to_owned()))),
        _ => text(""),
    }
}

fn join(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    let separator = match arguments.first() {
        Some(separator) if separator.is_nil() => return Err("the separator is nil".to_owned()),
        Some(separator) => separator.print(),
        None => " ".to_owned(),
    };
    let items = match value.elements() {
        Some(items) => items,
        None if value.is_nil() => Vec::new(),
        None => vec![value.clone()],
    };
    text(items.iter().map(Value::to_js_string).collect::<Vec<_>>().join(&separator))
}

fn size(value: &Value, _: &[Value]) -> Result<Value, String> {
    match value {
        Value::Text(text) => number(text.encode_utf16().count() as f64),
        Value::Json(_) | Value::List(_) => match value.elements() {
            Some(items) => number(items.len() as f64),
            None => Err("the size of an object is not supported".to_owned()),
        },
        _ => number(0.0),
    }
}

fn split(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    let (whole, separator) = (value.print(), search_text(&arguments[0])?);
    let mut parts: Vec<&str> = whole.split(&separator).collect();
    while parts.last().is_some_and(|part| part.is_empty()) {
        parts.pop();
    }
    Ok(Value::List(parts.into_iter().map(|part| Value::Text(part.to_owned())).collect()))
}

/// Rounds to a number of decimal places, halves up as `Math.round` does.
fn round(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    let places = arguments.first().map_or(0.0, number_or_0);
    if !(0.0..=15.0).contains(&places) || places.fract() != 0.0 {
        return Err("round takes 0 to 15 places".to_owned());
    }
    let scale: f64 = format!("1e{places}").parse().unwrap_or(1.0);
    let scaled = number_or_0(value) * scale;
    let below = scaled.floor();
    number(if scaled - below >= 0.5 { below + 1.0 } else { below } / scale)
}

/// Decodes UTF-16 that may end within a surrogate pair.
fn decode_utf16(units: &[u16]) -> Result<String, String> {
    String::from_utf16(units).map_err(|_| "it would cut a character in two".to_owned())
}

fn truncate(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    let length = arguments.first().map_or(50.0, Value::to_js_number);
    let ellipsis = arguments.get(1).map_or("...".to_owned(), Value::print);
    if length.is_nan() || length.fract() != 0.0 {
        return Err("truncate takes a whole number".to_owned());
    }
    let units: Vec<u16> = value.print().encode_utf16().collect();
    if units.len() as f64 <= length {
        return text(value.print());
    }
    let prefix_length = (length - ellipsis.encode_utf16().count() as f64).max(0.0) as usize;
    text(decode_utf16(&units[..prefix_length])? + &ellipsis)
}

fn slice(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    let (begin, length) = (arguments[0].to_js_number(), arguments.get(1).map_or(1.0, Value::to_js_number));
    if value.is_nil() || begin.is_nan() || begin.fract() != 0.0 || !(length >= 0.0 && length.fract() == 0.0) {
        return Err("slice takes whole numbers, and a value to cut".to_owned());
    }
    let range = |count: usize| {
        let begin = if begin < 0.0 { count as f64 + begin } else { begin };
        if begin < 0.0 {
            return Err("it begins before the beginning".to_owned());
        }
        let (begin, end) = (begin as usize, (begin + length) as usize);
        Ok(begin.min(count)..end.min(count))
    };
    if let Some(items) = value.elements() {
        return Ok(Value::List(items[range(items.len())?].to_vec()));
    }
    let units: Vec<u16> = value.print().encode_utf16().collect();
    text(decode_utf16(&units[range(units.len())?])?)
}
