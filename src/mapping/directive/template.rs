//! The templates of `@template`, such as `Hello {{traits.name}}`.

use super::MAX_OUTPUT;
use super::path::Path;
use crate::mapping::javascript::{JsValue, function_to_js_string, to_js_string, trim};

/// A text with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Template {
    /// Texts and paths in turn.
    Parts(Vec<TemplatePart>),
    /// A template with `{{{…}}}`: the values that these insert are searched for `{{…}}` again.
    Twice(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplatePart {
    Text(String),
    Value(Path),
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// A clause with the fix, if Segment reads a placeholder differently than it looks.
    pub fn parse(text: &str) -> Result<Template, String> {
        for (_, placeholder) in placeholders(text, 3).chain(placeholders(text, 2)) {
            let inside = trim(placeholder.trim_matches(['{', '}']));
            if inside == "$" || inside.starts_with("$.") {
                let path = Some(inside.trim_start_matches(['$', '.'])).filter(|path| !path.is_empty());
                let path = path.unwrap_or(".");
                return Err(format!("Segment finds nothing at {placeholder}; write {{{{{path}}}}}"));
            }
            Path::parse_relative(inside)?;
        }
        if placeholders(text, 3).next().is_some() {
            return Ok(Template::Twice(text.to_owned()));
        }
        let (mut parts, mut from) = (Vec::new(), 0);
        for (at, placeholder) in placeholders(text, 2) {
            parts.push(TemplatePart::Text(text[from..at].to_owned()));
            parts.push(TemplatePart::Value(Path::parse_relative(trim(
                &placeholder[2..placeholder.len() - 2],
            ))?));
            from = at + placeholder.len();
        }
        parts.push(TemplatePart::Text(text[from..].to_owned()));
        Ok(Template::Parts(parts))
    }

    /// The text with the values that `find` returns; `None` if it is larger than [`MAX_OUTPUT`].
    pub fn render<'a>(&self, find: impl Fn(&Path) -> JsValue<'a>) -> Option<String> {
        let value = |path: &Path| match find(path) {
            JsValue::Json(json) if json != "null" => to_js_string(&json),
            JsValue::Json(_) | JsValue::Undefined => String::new(),
            JsValue::Function(name) => function_to_js_string(name),
        };
        match self {
            Template::Parts(parts) => {
                let mut out = String::new();
                for part in parts {
                    match part {
                        TemplatePart::Text(text) => out.push_str(text),
                        TemplatePart::Value(path) => out.push_str(&value(path)),
                    }
                    if out.len() > MAX_OUTPUT {
                        return None;
                    }
                }
                Some(out)
            }
            Template::Twice(text) => {
                let replace = |text: &str, braces: usize| {
                    let (mut out, mut from) = (String::new(), 0);
                    for (at, placeholder) in placeholders(text, braces) {
                        out.push_str(&text[from..at]);
                        let path =
                            Path::parse_relative(trim(&placeholder[braces..placeholder.len() - braces]));
                        out.push_str(&path.map(|path| value(&path)).unwrap_or_default());
                        from = at + placeholder.len();
                        if out.len() > MAX_OUTPUT {
                            return None;
                        }
                    }
                    Some(out + &text[from..])
                };
                replace(&replace(text, 3)?, 2)
            }
        }
    }
}

/// The placeholders in `braces` braces with their positions, as `/\{{n}([^}]+)\}{n}/g` finds them.
fn placeholders(text: &str, braces: usize) -> impl Iterator<Item = (usize, &str)> {
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
            // No placeholder that begins before this } can end after it.
            from = end;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_found_as_by_the_regular_expression() {
        let found =
            |text, braces| placeholders(text, braces).map(|(_, placeholder)| placeholder).collect::<Vec<_>>();
        assert_eq!(found("a {{b}} {{}} {{c} }} {{d}}e", 2), ["{{b}}", "{{d}}"]);
        assert_eq!(found("{{{a}}} {{b}} {{{{c}}}}", 3), ["{{{a}}}", "{{{{c}}}"]);
        assert_eq!(found("{{{{{{{{{{{{", 2), Vec::<&str>::new());
    }
}
