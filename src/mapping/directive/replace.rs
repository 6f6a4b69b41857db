//! `@replace`: replaces text by text, with the semantics of JavaScript's `String.replace`.

use super::MAX_OUTPUT;

/// Segment's limit for a pattern and for a replacement, in UTF-16 units.
pub const MAX_LENGTH: usize = 10;

/// One pattern and its replacement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    pub pattern: String,
    /// May contain `$$`, `$&`, `` $` `` and `$'`, as in JavaScript.
    pub replacement: String,
    pub ignore_case: bool,
    pub global: bool,
}

impl Pattern {
    /// The text after the replacement; `None` if it is larger than [`MAX_OUTPUT`].
    pub fn apply(&self, text: &str) -> Option<String> {
        let (mut out, mut from) = (String::with_capacity(text.len()), 0);
        while let Some((start, end)) = self.find(text, from) {
            out.push_str(&text[from..start]);
            self.expand(text, start, end, &mut out);
            from = end;
            if out.len() > MAX_OUTPUT {
                return None;
            }
            if !self.global {
                break;
            }
        }
        Some(out + &text[from..])
    }

    /// The first match at or after `from`, as start and end. A match is never empty.
    fn find(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        if !self.ignore_case {
            let start = from + text[from..].find(&self.pattern)?;
            return Some((start, start + self.pattern.len()));
        }
        text[from..].char_indices().find_map(|(at, _)| {
            let start = from + at;
            let mut rest = text[start..].chars();
            let is_match =
                self.pattern.chars().all(|p| rest.next().is_some_and(|c| fold_case(c) == fold_case(p)));
            is_match.then(|| (start, text.len() - rest.as_str().len()))
        })
    }

    fn expand(&self, text: &str, start: usize, end: usize, out: &mut String) {
        let mut rest = self.replacement.as_str();
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            let (inserted, length) = match rest.as_bytes().get(at + 1) {
                Some(b'$') => ("$", 2),
                Some(b'&') => (&text[start..end], 2),
                Some(b'`') => (&text[..start], 2),
                Some(b'\'') => (&text[end..], 2),
                _ => ("$", 1),
            };
            out.push_str(inserted);
            rest = &rest[at + length..];
        }
        out.push_str(rest);
    }
}

/// The character for a comparison without case, as in a JavaScript regular expression with `i` and without `u`.
fn fold_case(c: char) -> char {
    let mut upper = c.to_uppercase();
    match (upper.next(), upper.next()) {
        (Some(one), None) if c.len_utf16() == 1 && (c.is_ascii() || !one.is_ascii()) => one,
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_replaced_as_in_javascript() {
        for (text, pattern, replacement, ignore_case, global, want) in [
            ("a/b/c", "/", "-", false, true, "a-b-c"),
            ("a/b/c", "/", "-", false, false, "a-b/c"),
            ("aAa", "A", "x", true, true, "xxx"),
            ("ÄäÀ", "ä", "x", true, true, "xxÀ"),
            ("straße", "SS", "x", true, true, "straße"),
            ("price", "ic", "[$&$$$1$]", false, true, "pr[ic$$1$]e"),
            ("abc", "b", "<$`|$'>", false, true, "a<a|c>c"),
            ("aaa", "aa", "b", false, true, "ba"),
        ] {
            let pattern =
                Pattern { pattern: pattern.into(), replacement: replacement.into(), ignore_case, global };
            assert_eq!(pattern.apply(text).as_deref(), Some(want), "{text} {pattern:?}");
        }
    }
}
