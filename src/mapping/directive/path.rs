//! The paths of `@path` and of templates, such as `$.properties.items[0].sku`.

use crate::mapping::javascript::OBJECT_METHODS;

/// The member names from the event to a value; none for the whole event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path(pub Vec<String>);

impl Path {
    /// Parses a path that begins with `$.` or with a member of the event.
    ///
    /// # Errors
    /// A clause with the fix, if Segment reads the path differently than it looks.
    pub fn parse(text: &str) -> Result<Path, String> {
        let rest = text.strip_prefix("$.").unwrap_or(text);
        if rest == "$" || rest.contains("$.") {
            return Err(format!(
                "{text:?} is not a path: $. belongs only to its beginning, as in $.properties.plan"
            ));
        }
        Path::parse_relative(rest)
    }

    /// Parses a path without `$.`, as in templates. An empty one, or a dot, is the whole value.
    ///
    /// # Errors
    /// The errors of [`Path::parse`].
    pub fn parse_relative(text: &str) -> Result<Path, String> {
        let (mut names, mut rest) = (Vec::new(), text);
        while let Some(first) = rest.chars().next() {
            if first == '.' {
                rest = &rest[1..];
                continue;
            }
            let (name, after) = match rest.strip_prefix('[') {
                Some(inside) => in_brackets(inside).ok_or_else(|| {
                    format!("{text:?} has brackets that select nothing; write [0] for an element, [\"name\"] for a member")
                })?,
                None => rest.split_at(rest.find(['.', '[', ']']).unwrap_or(rest.len())),
            };
            if after.starts_with(']') {
                return Err(format!("{text:?} has a ] without a ["));
            }
            if name.contains(['.', '[', ']', '"', '\'']) {
                return Err(format!(
                    "Segment cannot reach the member {name:?}, for it has a dot, a bracket or a quote in its name"
                ));
            }
            if OBJECT_METHODS.contains(&name) {
                return Err(format!(
                    "every object has a {name} in JavaScript: the path {text:?} is not supported"
                ));
            }
            names.push(name.to_owned());
            rest = after;
        }
        Ok(Path(names))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// The element or the member that the brackets around the beginning of `text` select, and the text behind them. Segment
/// takes brackets around anything else than digits or a name in quotes for a part of the name before them.
fn in_brackets(text: &str) -> Option<(&str, &str)> {
    let (name, after) = match text.chars().next()? {
        quote @ ('"' | '\'') => text[1..].split_once(quote)?,
        _ => text.split_at(text.find(|c: char| !c.is_ascii_digit())?),
    };
    after.strip_prefix(']').filter(|_| !name.is_empty()).map(|after| (name, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_into_names() {
        for (text, names) in [
            ("$.a.b", &["a", "b"][..]),
            ("a[0].b", &["a", "0", "b"]),
            ("$.a.0['b c'][\"d\"].e f", &["a", "0", "b c", "d", "e f"]),
            ("a..b", &["a", "b"]),
            ("a[0][1][\"c\"]d", &["a", "0", "1", "c", "d"]),
            ("$.", &[]),
            ("", &[]),
            (".", &[]),
            ("$.$x", &["$x"]),
        ] {
            assert_eq!(Path::parse(text).unwrap().names().collect::<Vec<_>>(), names, "{text}");
        }
        for text in [
            "$",
            "a.$.b",
            "[]",
            "items[].sku",
            "a[b].c",
            "a[-1]",
            "a[ 'b' ]",
            "a[0",
            "a]",
            "a[\"it's\"]",
            "a['b.c']",
            "a['b]",
            "it's",
            "a.constructor",
            "'a'",
        ] {
            assert!(Path::parse(text).is_err(), "{text}");
        }
    }
}
