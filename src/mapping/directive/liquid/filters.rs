//! The filters whose results are certain to be those of liquidjs 10, which Segment runs.

use super::date::{date, date_to_long_string, date_to_rfc822, date_to_string, date_to_xmlschema};
use super::text::{
    base64_decoded, base64_encoded, capitalized, characters, escaped, percent_encoded, replaced_last,
    unescaped, url_decoded, without_tags, words,
};
use super::value::Value;
use crate::event::json::is_js_space;
use crate::mapping::javascript::{number_to_js_string, trim};

/// A filter: a function of a value and its arguments. An error is a clause.
pub type Filter = fn(&Value, &[Value]) -> Result<Value, String>;

/// The filters by name, with their minimum and maximum number of arguments.
#[rustfmt::skip]
const FILTERS: &[(&str, usize, usize, Filter)] = &[
    ("abs", 0, 0, |v, _| number(number_or_0(v).abs())),
    ("append", 1, 1, |v, a| text(v.print() + &a[0].print())),
    ("at_least", 1, 1, |v, a| number(number_or_0(v).max(number_or_0(&a[0])))),
    ("at_most", 1, 1, |v, a| number(number_or_0(v).min(number_or_0(&a[0])))),
    ("base64_decode", 0, 0, |v, _| base64_decoded(&v.print()).map(Value::Text)),
    ("base64_encode", 0, 0, |v, _| text(base64_encoded(v.print().as_bytes()))),
    ("capitalize", 0, 0, |v, _| text(capitalized(&v.print()))),
    ("ceil", 0, 0, |v, _| number(number_or_0(v).ceil())),
    ("cgi_escape", 0, 0, |v, _| text(percent_encoded(&v.print(), "-_.~").replace("%20", "+"))),
    ("compact", 0, 0, |v, _| Ok(Value::List(to_list(v).into_iter().filter(|item| !item.is_nil()).collect()))),
    ("date", 0, 2, date),
    ("date_to_long_string", 0, 2, date_to_long_string),
    ("date_to_rfc822", 0, 0, date_to_rfc822),
    ("date_to_string", 0, 2, date_to_string),
    ("date_to_xmlschema", 0, 0, date_to_xmlschema),
    ("default", 1, 1, default),
    ("divided_by", 1, 2, divided_by),
    ("downcase", 0, 0, |v, _| text(v.print().to_lowercase())),
    ("escape", 0, 0, |v, _| text(escaped(&v.print()))),
    ("escape_once", 0, 0, |v, _| text(escaped(&unescaped(&v.print())))),
    ("first", 0, 0, |v, _| first_or_last(v, "first")),
    ("floor", 0, 0, |v, _| number(number_or_0(v).floor())),
    ("inspect", 0, 0, |v, _| Ok(v.to_json().map_or(Value::Undefined, Value::Text))),
    ("join", 0, 1, join),
    ("json", 0, 0, |v, _| Ok(v.to_json().map_or(Value::Undefined, Value::Text))),
    ("jsonify", 0, 0, |v, _| Ok(v.to_json().map_or(Value::Undefined, Value::Text))),
    ("last", 0, 0, |v, _| first_or_last(v, "last")),
    ("lstrip", 0, 1, |v, a| stripped(v, a, true, false)),
    ("minus", 1, 1, |v, a| number(number_or_0(v) - number_or_0(&a[0]))),
    ("modulo", 1, 1, modulo),
    ("normalize_whitespace", 0, 0, |v, _| text(words(&v.print()).join(" "))),
    ("number_of_words", 0, 0, |v, _| number(trim(&v.print()).split(is_js_space).filter(|w| !w.is_empty()).count() as f64)),
    ("plus", 1, 1, |v, a| number(number_or_0(v) + number_or_0(&a[0]))),
    ("pop", 0, 0, |v, _| list(v, |items| drop(items.pop()))),
    ("prepend", 1, 1, |v, a| text(a[0].print() + &v.print())),
    ("push", 1, 1, |v, a| list(v, |items| items.push(a[0].clone()))),
    ("raw", 0, 0, |v, _| Ok(v.clone())),
    ("remove", 1, 1, |v, a| text(v.print().replace(&a[0].print(), ""))),
    ("remove_first", 1, 1, |v, a| text(v.print().replacen(&a[0].print(), "", 1))),
    ("remove_last", 1, 1, |v, a| text(replaced_last(&v.print(), &a[0].print(), ""))),
    ("replace", 1, 2, |v, a| text(v.print().replace(&search_text(&a[0])?, &print_second(a)))),
    ("replace_first", 1, 2, |v, a| text(v.print().replacen(&a[0].print(), &print_second(a), 1))),
    ("replace_last", 1, 2, |v, a| text(replaced_last(&v.print(), &a[0].print(), &print_second(a)))),
    ("round", 0, 1, round),
    ("rstrip", 0, 1, |v, a| stripped(v, a, false, true)),
    ("shift", 0, 0, |v, _| list(v, |items| drop(items.drain(..items.len().min(1))))),
    ("size", 0, 0, size),
    ("slice", 1, 2, slice),
    ("split", 1, 1, split),
    ("strip", 0, 1, |v, a| stripped(v, a, true, true)),
    ("strip_html", 0, 0, |v, _| without_tags(&v.print()).map(Value::Text)),
    ("strip_newlines", 0, 0, |v, _| text(v.print().replace("\r\n", "").replace('\n', ""))),
    ("sum", 0, 1, sum),
    ("times", 1, 1, |v, a| number(number_or_0(v) * number_or_0(&a[0]))),
    ("to_integer", 0, 0, to_integer),
    ("truncate", 0, 2, truncate),
    ("truncatewords", 0, 2, truncate_words),
    ("unshift", 1, 1, |v, a| list(v, |items| items.insert(0, a[0].clone()))),
    ("upcase", 0, 0, |v, _| text(v.print().to_uppercase())),
    ("uri_escape", 0, 0, |v, _| text(percent_encoded(&v.print(), "-_.!~*'();/?:@&=+$,#[]"))),
    ("url_decode", 0, 0, |v, _| url_decoded(&v.print()).map(Value::Text)),
    ("url_encode", 0, 0, |v, _| text(percent_encoded(&v.print(), "-_.!~*'()").replace("%20", "+"))),
    ("where", 1, 2, selected),
    ("xml_escape", 0, 0, |v, _| text(escaped(&v.print()))),
];

/// The filters whose results are not certain, each with the reason.
const UNCERTAIN: &[(&str, &str)] = &[
    ("hmac_sha256", "not every version of liquidjs has it"),
    ("sample", "its result is random"),
    ("sha256", "not every version of liquidjs has it"),
    ("slugify", "its result depends on the version of Unicode"),
    ("squish", "not every version of liquidjs has it"),
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
        None if UNCERTAIN.iter().any(|(uncertain, _)| *uncertain == name) => {
            let why = UNCERTAIN.iter().find(|(uncertain, _)| *uncertain == name).map_or("", |(_, why)| why);
            Err(format!("the filter {name} is not supported: {why}"))
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

/// The argument of `replace` and `split`; an empty one is refused, because it cuts a text into UTF-16 units.
fn search_text(value: &Value) -> Result<String, String> {
    match value.print() {
        text if text.is_empty() => Err("there is nothing to look for".to_owned()),
        text => Ok(text),
    }
}

/// The second argument as text; empty if there is none.
fn print_second(arguments: &[Value]) -> String {
    arguments.get(1).map(Value::print).unwrap_or_default()
}

/// `default`; its second argument is `allow_false`.
fn default(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    let is_allowed = *value == Value::Bool(false) && arguments.get(1) == Some(&Value::Bool(true));
    Ok(if is_allowed || has_value(value) { value.clone() } else { arguments[0].clone() })
}

/// The elements of an array; a value that is none is the only element, nil is no element.
fn to_list(value: &Value) -> Vec<Value> {
    match value.elements() {
        Some(items) => items,
        None if value.is_nil() => Vec::new(),
        None if matches!(value, Value::Empty | Value::Blank) => vec![Value::Text(String::new())],
        None => vec![value.clone()],
    }
}

fn list(value: &Value, change: impl Fn(&mut Vec<Value>)) -> Result<Value, String> {
    let mut items = to_list(value);
    change(&mut items);
    Ok(Value::List(items))
}

/// The argument that names a member of each element. A path is refused, and a name with a meaning of its own.
fn member_name(argument: &Value) -> Result<&Value, String> {
    let is_plain = |name: &str| !name.is_empty() && !name.contains(['.', '[', ' ']);
    match argument {
        Value::Text(name) if is_plain(name) && !["size", "first", "last"].contains(&&**name) => Ok(argument),
        _ => Err("the member must be a name other than size, first and last".to_owned()),
    }
}

/// The sum of numbers, or of one member of objects.
fn sum(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    let name = arguments.first().map(member_name).transpose()?;
    let items = to_list(value).into_iter();
    let summed = items.map(|item| number_or_0(&name.map_or(item.clone(), |name| item.member(name))));
    // Not Iterator::sum, whose sum of nothing is -0.
    number(summed.fold(0.0, |sum, n| sum + n))
}

/// `where`: the elements with a member that is truthy, or that equals the second argument.
fn selected(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    let name = member_name(&arguments[0])?;
    let mut selected = Vec::new();
    for item in to_list(value) {
        let found = item.member(name);
        let is_selected = match arguments.get(1) {
            None | Some(Value::Undefined) => found.is_truthy(),
            Some(wanted) => found.equals(wanted)?,
        };
        if is_selected {
            selected.push(item);
        }
    }
    Ok(Value::List(selected))
}

/// With a second argument that is not 0, the quotient is rounded down.
fn divided_by(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    let quotient = number_or_0(value) / number_or_0(&arguments[0]);
    let is_whole = arguments.get(1).is_some_and(|whole| number_or_0(whole) != 0.0);
    number(if is_whole { quotient.floor() } else { quotient })
}

fn modulo(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    let (dividend, divisor) = (number_or_0(value), number_or_0(&arguments[0]));
    let rest = dividend % divisor;
    let floored = ((rest + divisor) % divisor).to_bits();
    match rest == 0.0 || rest.is_nan() || floored == rest.to_bits() {
        true => number(rest),
        false => Err("the sign or the last digit of the result is not certain".to_owned()),
    }
}

fn to_integer(value: &Value, _: &[Value]) -> Result<Value, String> {
    match value {
        Value::Nil | Value::Empty | Value::Blank => Err("it is no number".to_owned()),
        value => number(value.to_js_number()),
    }
}

/// The text without white space, or without the characters of the argument, at its start and at its end.
fn stripped(value: &Value, arguments: &[Value], at_start: bool, at_end: bool) -> Result<Value, String> {
    let characters = match arguments.first() {
        None => String::new(),
        Some(Value::Text(characters)) => characters.clone(),
        Some(_) => return Err("the characters must be a text".to_owned()),
    };
    let is_stripped = |c: char| if characters.is_empty() { is_js_space(c) } else { characters.contains(c) };
    let whole = value.print();
    let rest = if at_start { whole.trim_start_matches(is_stripped) } else { &whole };
    text(if at_end { rest.trim_end_matches(is_stripped) } else { rest })
}

fn truncate_words(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    let count = arguments.first().map_or(15.0, Value::to_js_number);
    let ellipsis = arguments.get(1).map_or("...".to_owned(), Value::print);
    let whole = value.print();
    if count.is_nan() || count.fract() != 0.0 || whole.starts_with(is_js_space) {
        return Err(
            "truncatewords takes a whole number, and a text without white space at its start".to_owned()
        );
    }
    let (words, count) = (words(&whole), count.max(1.0) as usize);
    let kept = words[..count.min(words.len())].join(" ");
    text(if words.len() >= count { kept + &ellipsis } else { kept })
}

/// The first or last element of an array, or character of a text.
fn first_or_last(value: &Value, name: &str) -> Result<Value, String> {
    match value {
        Value::Text(whole) => {
            let characters = characters(whole)?;
            let found = if name == "first" { characters.first() } else { characters.last() };
            text(found.map(char::to_string).unwrap_or_default())
        }
        other if other.elements().is_some() => Ok(other.member(&Value::Text(name.to_owned()))),
        _ => text(""),
    }
}

fn join(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    let separator = arguments.first().filter(|separator| !separator.is_nil());
    let separator = separator.map_or(" ".to_owned(), Value::print);
    text(to_list(value).iter().map(Value::to_js_string).collect::<Vec<_>>().join(&separator))
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

/// Rounds to a number of decimal places, halves away from zero. Versions of liquidjs differ in how they shift the point,
/// and so, now and then, in the last digit: such a number is refused.
fn round(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    let (value, places) = (number_or_0(value), arguments.first().map_or(0.0, number_or_0));
    if places.abs() > 15.0 || places.fract() != 0.0 {
        return Err("round takes a whole number of places up to 15".to_owned());
    }
    let half_up =
        |number: f64| if number - number.floor() >= 0.5 { number.floor() + 1.0 } else { number.floor() };
    let scale: f64 = format!("1e{places}").parse().unwrap_or(1.0);
    let by_factor = half_up((value * scale).abs()) / scale;
    let shifted = |number: f64, places: f64| {
        let text = number_to_js_string(number);
        let (mantissa, power) = text.split_once('e').unwrap_or((&text, "0"));
        let power = power.parse().unwrap_or(0.0) + places;
        format!("{mantissa}e{power}").parse().unwrap_or(f64::NAN)
    };
    let by_digits: f64 = shifted(half_up(shifted(value.abs(), places)), -places);
    match by_factor == by_digits {
        true => number(if value < 0.0 { -by_digits } else { by_digits }),
        false => Err("the last digit of the result is not certain".to_owned()),
    }
}

fn truncate(value: &Value, arguments: &[Value]) -> Result<Value, String> {
    let length = arguments.first().map_or(50.0, Value::to_js_number);
    let ellipsis = arguments.get(1).map_or("...".to_owned(), Value::print);
    if !(length >= 0.0 && length.fract() == 0.0) {
        return Err("truncate takes a whole number that is not negative".to_owned());
    }
    let whole = value.print();
    if whole.encode_utf16().count() as f64 <= length {
        return Ok(value.clone());
    }
    let kept = (length - characters(&ellipsis)?.len() as f64).max(0.0) as usize;
    text(characters(&whole)?[..kept].iter().collect::<String>() + &ellipsis)
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
    let characters = characters(&value.print())?;
    text(characters[range(characters.len())?].iter().collect::<String>())
}
