//! Parses templates.

use super::expression::{Expression, ExpressionParser, is_blank, quoted_length};
use super::{Branch, Part};

/// Tags that Segment disables.
const DISABLED: [&str; 6] = ["case", "for", "include", "layout", "render", "tablerow"];

/// A piece of a template's text.
enum Token<'a> {
    Text(&'a str),
    Output(&'a str),
    Tag { name: &'a str, rest: &'a str },
}

pub fn parse(text: &str) -> Result<Vec<Part>, String> {
    let tokens = tokens(text)?;
    let mut parser = LiquidParser { tokens: tokens.into_iter() };
    let (parts, end) = parser.parts()?;
    match end {
        None => Ok(parts),
        Some((name, _)) => Err(format!("{{% {name} %}} closes no open tag")),
    }
}

/// Splits the text into tokens and removes the white space next to `{{-` and the like.
fn tokens(text: &str) -> Result<Vec<Token<'_>>, String> {
    let mut tokens = Vec::new();
    let (mut rest, mut trimmed) = (text, false);
    while !rest.is_empty() {
        let open = [rest.find("{{"), rest.find("{%")].into_iter().flatten().min();
        let (mut before, after) = rest.split_at(open.unwrap_or(rest.len()));
        if trimmed {
            before = before.trim_start_matches(is_blank);
        }
        let Some(close) = after.get(..2).map(|open| if open == "{{" { "}}" } else { "%}" }) else {
            tokens.push(Token::Text(before));
            break;
        };
        let Some(end) = find_closing(after, close) else {
            return Err(format!("{:?} is not closed", after.chars().take(20).collect::<String>()));
        };
        let inner = &after[2..end];
        if inner.starts_with('-') {
            before = before.trim_end_matches(is_blank);
        }
        tokens.push(Token::Text(before));
        trimmed = inner.len() > 1 && inner.ends_with('-');
        let inner = inner.strip_prefix('-').unwrap_or(inner);
        let inner = inner.strip_suffix('-').unwrap_or(inner);
        rest = &after[end + 2..];
        if close == "}}" {
            tokens.push(Token::Output(inner));
            continue;
        }
        let mut parser = ExpressionParser::new(inner);
        let name = parser.name().map_err(|_| format!("{inner:?} is not a tag"))?;
        if name == "raw" {
            let (raw, ends_trimmed, after) = split_raw(rest)?;
            tokens.push(Token::Text(raw));
            (rest, trimmed) = (after, ends_trimmed);
            continue;
        }
        tokens.push(Token::Tag { name, rest: parser.rest() });
    }
    Ok(tokens)
}

/// The position of the closing braces: of an output outside quotes, of a tag the first.
fn find_closing(text: &str, close: &str) -> Option<usize> {
    let mut at = 2;
    while let Some(c) = text.get(at..)?.chars().next() {
        let rest = &text[at..];
        if rest.starts_with(close) {
            return Some(at);
        }
        at += match c {
            '"' | '\'' if close == "}}" => quoted_length(rest)?,
            c => c.len_utf8(),
        };
    }
    None
}

/// The text before `{% endraw %}`, whether the tag removes the white space after it, and the text after it.
fn split_raw(text: &str) -> Result<(&str, bool, &str), String> {
    let mut from = 0;
    while let Some(open) = text[from..].find("{%").map(|at| from + at) {
        let inside = text[open + 2..].strip_prefix('-').unwrap_or(&text[open + 2..]);
        let after = inside.trim_start_matches(is_blank).strip_prefix("endraw");
        let after = after.map(|after| after.trim_start_matches(is_blank));
        for (close, trims) in [("-%}", true), ("%}", false)] {
            if let Some(rest) = after.and_then(|after| after.strip_prefix(close)) {
                return Ok((&text[..open], trims, rest));
            }
        }
        from = open + 2;
    }
    Err("endraw is missing".to_owned())
}

struct LiquidParser<'a> {
    tokens: std::vec::IntoIter<Token<'a>>,
}

/// The tag that ended a list of parts, with the rest of its text.
type EndTag<'a> = Option<(&'a str, &'a str)>;

impl<'a> LiquidParser<'a> {
    /// Parses parts up to a tag that ends them.
    fn parts(&mut self) -> Result<(Vec<Part>, EndTag<'a>), String> {
        let mut parts = Vec::new();
        while let Some(token) = self.tokens.next() {
            let (name, rest) = match token {
                Token::Text("") => continue,
                Token::Text(text) => {
                    parts.push(Part::Text(text.to_owned()));
                    continue;
                }
                Token::Output(text) => {
                    parts.push(Part::Output(Expression::parse(text)?));
                    continue;
                }
                Token::Tag { name, rest } => (name, rest),
            };
            match name {
                "if" => parts.push(self.branches(rest, true, "endif")?),
                "unless" => parts.push(self.branches(rest, false, "endunless")?),
                "echo" => parts.push(Part::Output(Expression::parse(rest)?)),
                "assign" => {
                    let mut parser = ExpressionParser::new(rest);
                    let variable = parser.name()?.to_owned();
                    if !parser.eat("=") {
                        return Err(format!("assign {rest:?}: write assign name = value"));
                    }
                    parts.push(Part::Assign(variable, Expression::parse(parser.rest())?));
                }
                "capture" => {
                    let mut parser = ExpressionParser::new(rest);
                    let variable = parser.name()?.to_owned();
                    parser.expect_end()?;
                    let (captured, end) = self.parts()?;
                    expect(end, "endcapture")?;
                    parts.push(Part::Capture(variable, captured));
                }
                "comment" => self.skip_comment()?,
                "elsif" | "else" | "endif" | "endunless" | "endcapture" => {
                    return Ok((parts, Some((name, rest))));
                }
                name if DISABLED.contains(&name) => return Err(format!("Segment disables the tag {name}")),
                name => {
                    return Err(format!(
                        "the tag {name:?} is not supported; there are if, unless, assign, capture, comment, raw, echo"
                    ));
                }
            }
        }
        Ok((parts, None))
    }

    fn branches(&mut self, condition: &str, wanted: bool, end: &str) -> Result<Part, String> {
        let mut branches = Vec::new();
        let (mut condition, mut wanted) = (Some(Expression::parse(condition)?), wanted);
        loop {
            let (parts, ended) = self.parts()?;
            let is_else = condition.is_none();
            branches.push(Branch { condition, wanted, parts });
            match ended {
                Some(("elsif", rest)) if !is_else => {
                    (condition, wanted) = (Some(Expression::parse(rest)?), true)
                }
                Some(("else", "")) if !is_else => condition = None,
                ended => return expect(ended, end).map(|()| Part::If(branches)),
            }
        }
    }

    fn skip_comment(&mut self) -> Result<(), String> {
        let is_end = |token: Token| matches!(token, Token::Tag { name: "endcomment", .. });
        if self.tokens.any(is_end) { Ok(()) } else { Err("endcomment is missing".to_owned()) }
    }
}

fn expect(end: EndTag, wanted: &str) -> Result<(), String> {
    match end {
        Some((name, _)) if name == wanted => Ok(()),
        Some((name, _)) => Err(format!("{wanted} is missing before {name}")),
        None => Err(format!("{wanted} is missing")),
    }
}
