//! The paths of `@path` and of templates: `$.properties.items[0].sku`.

use crate::mapping::lookup::OBJECT_METHODS;

/// The names on the way from the event to a value; none: the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path(pub Vec<String>);

impl Path {
    /// A path that begins with `$.` or at once with a member of the event.
    ///
    /// # Errors
    /// It means something else to Segment than it says; a clause with the fix.
    pub fn parse(text: &str) -> Result<Path, String> {
        let rest = text.strip_prefix("$.").unwrap_or(text);
        if rest == "$" || rest.contains("$.") {
            return Err(format!(
                "{text:?} is no path: $. stands at its beginning alone, as in $.properties.plan"
            ));
        }
        Path::inside(rest)
    }

    /// A path without `$.`, as templates have it.
    ///
    /// # Errors
    /// As for [`Path::parse`].
    pub fn inside(text: &str) -> Result<Path, String> {
        if matches!(text, "" | ".") {
            return Ok(Path(Vec::new()));
        }
        let mut names = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find(|c| !matches!(c, '.' | '[' | ']')) {
            let bracketed = rest[..start].ends_with('[');
            rest = &rest[start..];
            let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''));
            let name = match quote.filter(|_| bracketed) {
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
            if quote.is_none() && name.contains(['"', '\'']) || quote.is_some() && !bracketed {
                return Err(format!(
                    "a quote cannot stand in the path {text:?}; write [\"name\"] for a name in quotes"
                ));
            }
            if OBJECT_METHODS.contains(&name) {
                return Err(format!(
                    "every object has a {name} in JavaScript: the path {text:?} cannot be asked for"
                ));
            }
            names.push(name.to_owned());
        }
        if names.is_empty() {
            return Err(format!("{text:?} is no path; write $.properties.plan, or $. for the whole event"));
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
    fn the_names_of_a_path_are_told_apart() {
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
