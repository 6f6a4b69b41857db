//! JSON text gone through byte by byte, in one pass and without recursion, whatever stands in it.

use memchr::memchr2;

/// `json` without insignificant white space.
pub(crate) fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    compact_into(&mut out, json);
    out
}

/// Appends `json` without insignificant white space.
pub(super) fn compact_into(out: &mut String, json: &str) {
    let mut from = 0;
    for (at, byte) in outside_strings(json) {
        if matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
            out.push_str(&json[from..at]);
            from = at + 1;
        }
    }
    out.push_str(&json[from..]);
}

/// `json` over several lines, for a person; every value in the bytes it came in.
pub(crate) fn pretty(json: &str) -> String {
    const STEP: &str = "  ";
    let json = compact(json);
    let bytes = json.as_bytes();
    let mut out = String::with_capacity(json.len() * 2);
    let (mut from, mut depth) = (0, 0usize);
    for (at, byte) in outside_strings(&json) {
        // Whether a line ends before the byte, and after it.
        let (before, after) = match byte {
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
        let line = || format!("\n{}", STEP.repeat(depth));
        if before {
            out.push_str(&line());
        }
        out.push(char::from(byte));
        match byte {
            b':' => out.push(' '),
            _ if after => out.push_str(&line()),
            _ => {}
        }
        from = at + 1;
    }
    out.push_str(&json[from..]);
    out
}

/// Where the text is nested deeper than `max`, if it is: the place of the bracket that is one too many.
pub(super) fn deeper_than(max: usize, text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, byte) in outside_strings(text) {
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

/// Where the value that `text` begins with ends: before a comma or bracket of what is around it, or with the text.
pub(super) fn value_end(text: &str) -> usize {
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

/// The bytes that stand in no string, opening quotes among them, each with its place.
fn outside_strings(text: &str) -> impl Iterator<Item = (usize, u8)> {
    let bytes = text.as_bytes();
    let mut next = 0;
    std::iter::from_fn(move || {
        let at = next;
        let byte = *bytes.get(at)?;
        next = if byte == b'"' { string_end(bytes, at + 1) } else { at + 1 };
        Some((at, byte))
    })
}

/// The place after the quote that ends the string whose inside begins at `at`; the text's end if none does.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
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
    fn white_space_goes_outside_strings_only() {
        assert_eq!(compact("{ \"a b\" :\t[ 1 ,\r\n\"\\\" \\\\\" ] }"), r#"{"a b":[1,"\" \\"]}"#);
    }

    #[test]
    fn a_pretty_text_has_the_same_values() {
        let json = r#"{"a":[1.0,{"b":[]},"x,{\"}"],"c":{}}"#;
        let text = pretty(json);
        assert_eq!(compact(&text), json);
        assert_eq!(
            text,
            "{\n  \"a\": [\n    1.0,\n    {\n      \"b\": []\n    },\n    \"x,{\\\"}\"\n  ],\n  \"c\": {}\n}"
        );
    }

    #[test]
    fn brackets_in_strings_are_no_depth() {
        assert_eq!(deeper_than(2, r#"{"[[[":["\"[["],"x":[]}"#), None);
        assert_eq!(deeper_than(1, r#"{"[[[":[1]}"#), Some(7));
        assert_eq!(deeper_than(0, "\"["), None);
    }
}
