//! The work of filters on texts, as liquidjs does it.
//!
//! No crate for HTML, base64 or URLs stands here: their answers are right by a standard, and liquidjs's are wanted.

use crate::event::json::is_js_space;

pub fn replaced_last(text: &str, part: &str, replacement: &str) -> String {
    match text.rfind(part) {
        Some(at) => [&text[..at], replacement, &text[at + part.len()..]].concat(),
        None => text.to_owned(),
    }
}

/// The parts between runs of white space, empty ones at the start and the end included.
pub fn words(text: &str) -> Vec<&str> {
    let (mut words, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(is_js_space) {
        words.push(&rest[..at]);
        rest = rest[at..].trim_start_matches(is_js_space);
    }
    words.push(rest);
    words
}

/// The text without HTML tags, and without scripts and styles.
pub fn without_tags(text: &str) -> Result<String, String> {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    let mut blocks = vec![("<script", "</script>"), ("<style", "</style>"), ("<!--", "-->"), ("<", ">")];
    while let Some(at) = rest.find('<') {
        let (before, tag) = rest.split_at(at);
        out += before;
        let mut found = None;
        // A block that does not end here ends nowhere behind: it is not looked for again.
        blocks.retain(|(open, close)| {
            let Some(inside) = tag.strip_prefix(open).filter(|_| found.is_none()) else { return true };
            found = inside.find(close).map(|at| (*open, open.len() + at + close.len()));
            found.is_some()
        });
        let Some((open, end)) = found else {
            rest = tag;
            break;
        };
        let inside = &tag[1..end - 1];
        let is_uncertain = match open {
            "<" => inside.contains(['\n', '\r', '\u{2028}', '\u{2029}']),
            "<!--" => inside.contains('>'),
            _ => false,
        };
        if is_uncertain {
            return Err(
                "the end of a tag over several lines, or of a comment with a tag, is not certain".to_owned()
            );
        }
        rest = &tag[end..];
    }
    Ok(out + rest)
}

pub fn capitalized(text: &str) -> String {
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

pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match ESCAPES.iter().find(|(plain, _)| *plain == c) {
            Some((_, escape)) => out += escape,
            None => out.push(c),
        }
    }
    out
}

pub fn unescaped(text: &str) -> String {
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

/// The text with every byte escaped but letters, digits and those in `kept`.
pub fn percent_encoded(text: &str, kept: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b.is_ascii_alphanumeric() || kept.as_bytes().contains(&b) {
            true => out.push(b.into()),
            false => out += &format!("%{b:02X}"),
        }
    }
    out
}

pub fn url_decoded(encoded: &str) -> Result<String, String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(encoded.len()), encoded.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                let byte = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
                let byte = byte.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                let byte = byte.filter(|byte| *byte != b'+');
                rest = rest.get(2..).unwrap_or_default();
                byte.ok_or("a % without two digits is an error, and %2B is not certain")?
            }
            other => *other,
        });
    }
    String::from_utf8(bytes).map_err(|_| "the result is not valid UTF-8".to_owned())
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub fn base64_encoded(bytes: &[u8]) -> String {
    let encode = |group: &[u8]| {
        let bits = (0..3).fold(0, |bits, n| bits << 8 | usize::from(group.get(n).copied().unwrap_or(0)));
        let digit = |n: usize| if n > group.len() { '=' } else { BASE64[bits >> (18 - 6 * n) & 63].into() };
        [digit(0), digit(1), digit(2), digit(3)]
    };
    bytes.chunks(3).flat_map(encode).collect()
}

/// Only what [`base64_encoded`] makes is decoded; liquidjs differs in the rest from version to version.
pub fn base64_decoded(encoded: &str) -> Result<String, String> {
    let digits = encoded.trim_end_matches('=').bytes().map(|b| BASE64.iter().position(|digit| *digit == b));
    let decoded = digits.collect::<Option<Vec<usize>>>().map(|digits| {
        let decode = |group: &[usize]| {
            let bits = (0..4).fold(0, |bits, n| bits << 6 | group.get(n).copied().unwrap_or(0));
            let count = group.len() * 6 / 8;
            (0..count).map(|n| (bits >> (16 - 8 * n) & 255) as u8).collect::<Vec<u8>>()
        };
        digits.chunks(4).flat_map(decode).collect::<Vec<u8>>()
    });
    let decoded = decoded.filter(|bytes| base64_encoded(bytes) == encoded);
    let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    decoded.ok_or_else(|| "it is not a text in base64".to_owned())
}

/// The characters of a text. Versions of liquidjs differ in whether they count an emoji as one or two.
pub fn characters(text: &str) -> Result<Vec<char>, String> {
    match text.chars().all(|c| c.len_utf16() == 1) {
        true => Ok(text.chars().collect()),
        false => Err("the place of a character in a text with an emoji is not certain".to_owned()),
    }
}
