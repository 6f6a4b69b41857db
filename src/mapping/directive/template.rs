//! The templates of `@template`: `Hello {{traits.name}}`.

use super::MAX_OUTPUT;
use super::path::Path;
use crate::mapping::lookup::{Found, text_of, trim};

/// A text with places for values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Template {
    /// Texts and paths in turn.
    Parts(Vec<Part>),
    /// With `{{{…}}}`: what it puts in is looked through for `{{…}}` again.
    Twice(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Text(String),
    Value(Path),
}

impl Template {
    /// # Errors
    /// A place in it means something else to Segment than it says.
    pub fn parse(text: &str) -> Result<Template, String> {
        for (_, place) in places(text, 3).chain(places(text, 2)) {
            let inside = trim(place.trim_matches(['{', '}']));
            if inside.starts_with('$') {
                let mend = inside.trim_start_matches("$.");
                return Err(format!("Segment finds nothing at {place}; write {{{{{mend}}}}}"));
            }
            if inside.is_empty() || inside == "." {
                return Err(format!("{place} names nothing; write {{{{properties.plan}}}}"));
            }
            Path::inside(inside)?;
        }
        if places(text, 3).next().is_some() {
            return Ok(Template::Twice(text.to_owned()));
        }
        let (mut parts, mut from) = (Vec::new(), 0);
        for (at, place) in places(text, 2) {
            parts.push(Part::Text(text[from..at].to_owned()));
            parts.push(Part::Value(Path::inside(trim(&place[2..place.len() - 2]))?));
            from = at + place.len();
        }
        parts.push(Part::Text(text[from..].to_owned()));
        Ok(Template::Parts(parts))
    }

    /// The text with the values that `find` finds; `None`: it is larger than a value may be.
    pub fn render<'a>(&self, find: impl Fn(&Path) -> Found<'a>) -> Option<String> {
        let value = |path: &Path| match find(path) {
            Found::Json(json) if json != "null" => text_of(&json),
            _ => String::new(),
        };
        match self {
            Template::Parts(parts) => {
                let mut out = String::new();
                for part in parts {
                    match part {
                        Part::Text(text) => out.push_str(text),
                        Part::Value(path) => out.push_str(&value(path)),
                    }
                    if out.len() > MAX_OUTPUT {
                        return None;
                    }
                }
                Some(out)
            }
            Template::Twice(text) => {
                let once = |text: &str, braces: usize| {
                    let (mut out, mut from) = (String::new(), 0);
                    for (at, place) in places(text, braces) {
                        out.push_str(&text[from..at]);
                        let path = Path::inside(trim(&place[braces..place.len() - braces]));
                        out.push_str(&path.map(|path| value(&path)).unwrap_or_default());
                        from = at + place.len();
                        if out.len() > MAX_OUTPUT {
                            return None;
                        }
                    }
                    Some(out + &text[from..])
                };
                once(&once(text, 3)?, 2)
            }
        }
    }
}

/// The places in so many braces, and where they begin: `/\{{n}([^}]+)\}{n}/g`.
fn places(text: &str, braces: usize) -> impl Iterator<Item = (usize, &str)> {
    let (open, close) = ("{".repeat(braces), "}".repeat(braces));
    let mut from = 0;
    std::iter::from_fn(move || {
        loop {
            let at = from + text.get(from..)?.find(&open)?;
            let inner = at + braces;
            let end = inner + text[inner..].find('}')?;
            if end > inner && text[end..].starts_with(&close) {
                from = end + braces;
                return Some((at, &text[at..from]));
            }
            // Nothing that begins before the } ends otherwise.
            from = end;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_as_a_regular_expression_finds_them() {
        let found = |text, braces| places(text, braces).map(|(_, place)| place).collect::<Vec<_>>();
        assert_eq!(found("a {{b}} {{}} {{c} }} {{d}}e", 2), ["{{b}}", "{{d}}"]);
        assert_eq!(found("{{{a}}} {{b}} {{{{c}}}}", 3), ["{{{a}}}", "{{{{c}}}"]);
        assert_eq!(found("{{{{{{{{{{{{", 2), Vec::<&str>::new());
    }
}
