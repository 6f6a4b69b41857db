//! Scans JSON text byte by byte, in one pass. Nothing recurses, so any nesting depth is safe.

use memchr::memchr2;

/// `json` without insignificant white space.
pub(crate) fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    compact_into(&mut out, json);
    out
}

/// Appends `json` without insignificant white space.
pub(super) fn compact_into(out: &mut String, json: &str) {
    if !matches!(json.as_bytes().first(), Some(b'{' | b'[')) {
        return out.push_str(trimmed(json));
    }
    let mut from = 0;
    for (at, byte) in outside_strings(json.as_bytes()) {
        if is_white(byte) {
            out.push_str(&json[from..at]);
            from = at + 1;
        }
    }
    out.push_str(&json[from..]);
}

/// The length of `json` without insignificant white space.
pub(crate) fn compact_len(json: &str) -> usize {
    json.len() - outside_strings(json.as_bytes()).filter(|(_, byte)| is_white(*byte)).count()
}

fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

/// `text` without the white space around it. Usually there is none, and two bytes show it.
fn trimmed(text: &str) -> &str {
    let is_white = |byte: Option<&u8>| byte.is_some_and(|byte| *byte <= b' ');
    match is_white(text.as_bytes().first()) || is_white(text.as_bytes().last()) {
        true => text.trim_matches(super::WHITESPACE),
        false => text,
    }
}

/// `json` indented over several lines for people; every scalar keeps its bytes.
pub(crate) fn pretty(json: &str) -> String {
    const INDENT: &str = "  ";
    let json = compact(json);
    let bytes = json.as_bytes();
    let mut out = String::with_capacity(json.len() * 2);
    let (mut from, mut depth) = (0, 0usize);
    for (at, byte) in outside_strings(json.as_bytes()) {
        let (breaks_before, breaks_after) = match byte {
            b'{' | b'[' => {
                depth += 1;
                (false, !matches!(bytes.get(at + 1), Some(b'}' | b']')))
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                (!matches!(bytes.get(at.wrapping_sub(1)), Some(b'{' | b'[')), false)
            }
            b',' => (false, true),
            b':' => (false, false),
            _ => continue,
        };
        out.push_str(&json[from..at]);
        let line_break = || format!("\n{}", INDENT.repeat(depth));
        if breaks_before {
            out.push_str(&line_break());
        }
        out.push(char::from(byte));
        match byte {
            b':' => out.push(' '),
            _ if breaks_after => out.push_str(&line_break()),
            _ => {}
        }
        from = at + 1;
    }
    out.push_str(&json[from..]);
    out
}

/// The position of the first bracket that nests the text deeper than `max`, if any does.
pub(crate) fn deeper_than(max: usize, text: &str) -> Option<usize> {
    // Few texts have more than `max` brackets at all, so most are not scanned.
    if opening_brackets(text) <= max {
        return None;
    }
    let mut depth = 0usize;
    for (at, byte) in outside_strings(text.as_bytes()) {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth > max {
            return Some(at);
        }
    }
    None
}

/// The number of opening brackets in the text, those in strings included.
fn opening_brackets(text: &str) -> usize {
    // Chunks of 255 keep the sum within a byte, so that the compiler vectorizes it; `{` and `[` differ in one bit.
    let opening_in = |bytes: &[u8]| bytes.iter().map(|byte| u8::from(byte | 0x20 == b'{')).sum::<u8>();
    text.as_bytes().chunks(255).map(|bytes| usize::from(opening_in(bytes))).sum()
}

/// The end of the value that `text` begins with: before a comma or closing bracket around it, or the end of the text.
pub(crate) fn value_end(text: &[u8]) -> usize {
    let mut depth = 0usize;
    for (at, byte) in outside_strings(text) {
        match byte {
            b'{' | b'[' => depth += 1,
            b',' | b'}' | b']' if depth == 0 => return at,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

/// The values of the members with these names, as written: the last of duplicates, as in `JSON.parse`. Nothing is collected,
/// however many members the object has.
pub(crate) fn find_members<'a, const N: usize>(object: &'a str, names: [&str; N]) -> [Option<&'a str>; N] {
    let mut found = [None; N];
    for (key, value) in members(object) {
        let name = super::to_text(key);
        if let Some(n) = names.iter().position(|wanted| *wanted == name) {
            found[n] = Some(value);
        }
    }
    found
}

/// The members of a valid JSON object: each name, with its quotes, and each value as written.
pub(super) fn members(json: &str) -> impl Iterator<Item = (&str, &str)> {
    let bytes = json.as_bytes();
    let mut next = 1;
    std::iter::from_fn(move || {
        let key = after_white(bytes, next);
        if bytes.get(key) != Some(&b'"') {
            return None;
        }
        let key_end = string_end(bytes, key + 1);
        let value = after_white(bytes, after_white(bytes, key_end) + 1);
        let end = match bytes.get(value)? {
            b'"' => string_end(bytes, value + 1),
            b'{' | b'[' => value + 1 + after_closing(json.get(value + 1..)?),
            _ => value + bytes[value..].iter().position(|b| ends_scalar(*b))?,
        };
        // Skip the comma, if there is one.
        next = after_white(bytes, end) + 1;
        Some((json.get(key..key_end)?, json.get(value..end)?))
    })
}

fn after_white(bytes: &[u8], at: usize) -> usize {
    let white = |byte: &u8| matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
    at + bytes.get(at..).unwrap_or_default().iter().take_while(|byte| white(byte)).count()
}

fn ends_scalar(byte: u8) -> bool {
    matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t')
}

/// The position after the bracket that closes an array or object whose content begins `inside`.
fn after_closing(inside: &str) -> usize {
    let mut depth = 1usize;
    for (at, byte) in outside_strings(inside.as_bytes()) {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return at + 1;
        }
    }
    inside.len()
}

/// The bytes outside strings, opening quotes included, each with its position.
fn outside_strings(bytes: &[u8]) -> impl Iterator<Item = (usize, u8)> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let at = next;
        let byte = *bytes.get(at)?;
        next = if byte == b'"' { string_end(bytes, at + 1) } else { at + 1 };
        Some((at, byte))
    })
}

/// The position after the closing quote of a string whose content begins at `at`; the end of the text if there is none.
///
/// The first bytes are searched one by one: for short strings a call of `memchr` takes longer than the search itself.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    const SHORT: usize = 16;
    for byte in bytes.get(at..).unwrap_or_default().iter().take(SHORT) {
        match byte {
            b'"' => return at + 1,
            b'\\' => break,
            _ => at += 1,
        }
    }
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found + 1;
        if bytes[at - 1] == b'"' {
            return at;
        }
        at += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_removed_outside_strings_only() {
        assert_eq!(compact("{ \"a b\" :\t[ 1 ,\r\n\"\\\" \\\\\" ] }"), r#"{"a b":[1,"\" \\"]}"#);
    }

    #[test]
    fn indenting_keeps_the_values() {
        let json = r#"{"a":[1.0,{"b":[]},"x,{\"}"],"c":{}}"#;
        let text = pretty(json);
        assert_eq!(compact(&text), json);
        assert_eq!(
            text,
            "{\n  \"a\": [\n    1.0,\n    {\n      \"b\": []\n    },\n    \"x,{\\\"}\"\n  ],\n  \"c\": {}\n}"
        );
    }

    #[test]
    fn members_are_found_as_written() {
        for (object, want) in [
            ("{}", &[][..]),
            ("{ }", &[]),
            (r#"{"a":1}"#, &[(r#""a""#, "1")]),
            (
                "{\n\"a\" :\t-1.5e9 ,\"b\":\r[ {\"c\":\"]\"} ] }",
                &[(r#""a""#, "-1.5e9"), (r#""b""#, "[ {\"c\":\"]\"} ]")],
            ),
            (
                r#"{"\"}":{"x":[{}]},"":null,"s":"\\"}"#,
                &[(r#""\"}""#, r#"{"x":[{}]}"#), (r#""""#, "null"), (r#""s""#, r#""\\""#)],
            ),
        ] {
            assert_eq!(members(object).collect::<Vec<_>>(), want, "{object}");
        }
        // On invalid JSON the result is meaningless, but the iterator ends.
        for text in
            ["", "{", "{\"a", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":[", "{\"a\":{\"", "{\"a\",}", "[1]"]
        {
            assert!(members(text).count() <= 1, "{text}");
        }
    }

    #[test]
    fn brackets_in_strings_do_not_count_as_depth() {
        assert_eq!(deeper_than(2, r#"{"[[[":["\"[["],"x":[]}"#), None);
        assert_eq!(deeper_than(1, r#"{"[[[":[1]}"#), Some(7));
        assert_eq!(deeper_than(0, "\"["), None);
    }
}
