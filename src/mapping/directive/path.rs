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

    /// Parses a path without `$.`, as in templates.
    ///
    /// # Errors
    /// The errors of [`Path::parse`].
    pub fn parse_relative(text: &str) -> Result<Path, String> {
        if matches!(text, "" | ".") {
            return Ok(Path(Vec::new()));
        }
        let mut names = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find(|c| !matches!(c, '.' | '[' | ']')) {
            let is_bracketed = rest[..start].ends_with('[');
            rest = &rest[start..];
            let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''));
            let name = match quote.filter(|_| is_bracketed) {
                Some(quote) => {
                    let quoted = rest[1..].split_once(quote);
                    let Some((name, after)) = quoted.filter(|(_, after)| after.starts_with(']')) else {
                        return Err(format!(
                            "the name in {text:?} is not closed; write [{quote}name{quote}]"
                        ));
                    };
                    rest = after;
                    if name.contains(['.', '[', ']']) {
                        return Err(format!(
                            "Segment cannot reach the member {name:?}, for it has . [ or ] in its name"
                        ));
                    }
                    name
                }
                None => {
                    let end = rest.find(['.', '[', ']']).unwrap_or(rest.len());
                    let name = &rest[..end];
                    rest = &rest[end..];
                    name
                }
            };
            if quote.is_none() && name.contains(['"', '\'']) || quote.is_some() && !is_bracketed {
                return Err(format!("the path {text:?} has a quote outside brackets; write [\"name\"]"));
            }
            if OBJECT_METHODS.contains(&name) {
                return Err(format!(
                    "every object has a {name} in JavaScript: the path {text:?} is not supported"
                ));
            }
            names.push(name.to_owned());
        }
        if names.is_empty() {
            return Err(format!(
                "{text:?} is not a path; write $.properties.plan, or $. for the whole event"
            ));
        }
        Ok(Path(names))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
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
            ("$.", &[]),
            ("$.$x", &["$x"]),
        ] {
            assert_eq!(Path::parse(text).unwrap().names().collect::<Vec<_>>(), names, "{text}");
        }
        for text in ["$", "a.$.b", "[]", "a['b.c']", "a['b]", "it's", "a.constructor", "'a'"] {
            assert!(Path::parse(text).is_err(), "{text}");
        }
    }
}
