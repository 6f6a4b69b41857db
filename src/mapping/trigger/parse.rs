//! From the text of a trigger to its conditions. What Segment's own reader takes for something else than it says is
//! refused, with the way to write it.

use super::{Node, Op, Test, TriggerError};
use crate::mapping::lookup::{OBJECT_METHODS, number_of};

/// Far longer than a trigger that a person can read.
const MAX_TEXT: usize = 10_000;
/// Groups within groups.
const MAX_DEPTH: usize = 32;

const FIELDS: &str = "type, event, name, userId, properties.…, traits.…, context.…";

pub fn parse(text: &str) -> Result<Node, TriggerError> {
    let mut parser = Parser { text, at: 0 };
    if text.len() > MAX_TEXT {
        return Err(parser.error(0, format!("the trigger is longer than {MAX_TEXT} bytes")));
    }
    parser.space();
    if parser.rest().is_empty() {
        return Err(parser.error(0, "the trigger is empty; write type = \"track\" for all tracks"));
    }
    let node = parser.list(0)?;
    match parser.peek() {
        None => Ok(node),
        Some(_) => Err(parser.error(parser.at, "a ) without its (; remove it")),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

#[derive(Debug, PartialEq)]
enum Literal {
    Text(String),
    Number(f64),
    Bool(bool),
    Null,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn eat(&mut self, what: &str) -> bool {
        let there = self.rest().starts_with(what);
        self.at += if there { what.len() } else { 0 };
        there
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start_matches(is_space).len();
    }

    fn error(&self, at: usize, text: impl Into<String>) -> TriggerError {
        TriggerError { column: self.text[..at].chars().count() + 1, text: text.into() }
    }

    /// Conditions up to the end or to a closing parenthesis.
    fn list(&mut self, depth: usize) -> Result<Node, TriggerError> {
        let mut nodes = vec![self.item(depth)?];
        let mut joined: Option<&str> = None;
        loop {
            self.space();
            let at = self.at;
            if matches!(self.peek(), None | Some(')')) {
                break;
            }
            let word = self.word();
            let join = match word {
                "and" => "and",
                "or" => "or",
                _ => return Err(self.error(at, joining(word, self.text[at..].trim_end()))),
            };
            if !matches!(self.peek(), None | Some(' ' | '\t' | '\n' | '\r')) {
                return Err(self.error(self.at, format!("write a space after {join}")));
            }
            if *joined.get_or_insert(join) != join {
                let text = "and and or stand side by side here; say with parentheses what belongs together, \
                            as in a and (b or c)";
                return Err(self.error(at, text));
            }
            self.space();
            if matches!(self.peek(), None | Some(')')) {
                return Err(self.error(at, format!("nothing follows this {join}; remove it")));
            }
            nodes.push(self.item(depth)?);
        }
        Ok(match (joined, nodes.len()) {
            (_, 1) => nodes.remove(0),
            (Some("or"), _) => Node::Any(nodes),
            _ => Node::All(nodes),
        })
    }

    /// A condition or a group.
    fn item(&mut self, depth: usize) -> Result<Node, TriggerError> {
        self.space();
        let start = self.at;
        if self.eat("(") {
            if depth == MAX_DEPTH {
                return Err(self.error(start, format!("groups nest more than {MAX_DEPTH} deep")));
            }
            self.space();
            if self.peek() == Some(')') {
                return Err(self.error(start, "there is nothing in this group; remove it"));
            }
            let node = self.list(depth + 1)?;
            if !self.eat(")") {
                return Err(self.error(start, "this ( is not closed; write a )"));
            }
            return Ok(node);
        }
        let negated = self.eat("!");
        if negated {
            self.space();
            if self.peek() == Some('(') {
                let text =
                    "a group cannot be negated; negate what is in it: != for =, !contains(…), !match(…)";
                return Err(self.error(start, text));
            }
        }
        let at = self.at;
        let path = self.path()?;
        self.space();
        if let [function @ ("contains" | "match")] = path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            let op = self.function(function == "match", !negated)?;
            let (path, op) = op;
            return Ok(Node::Test(Test { path, op, span: (start, self.at) }));
        }
        if negated {
            return Err(
                self.error(start, "only contains(…) and match(…) can be negated by !; write != for =")
            );
        }
        self.known(&path, at)?;
        let op = self.comparison(&path)?;
        Ok(Node::Test(Test { path, op, span: (start, self.at) }))
    }

    /// A word of letters.
    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let word = &rest[..rest.find(|c: char| !is_name(c)).unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    /// A field, from its first name to its last.
    fn path(&mut self) -> Result<Vec<String>, TriggerError> {
        let mut path = Vec::new();
        loop {
            let start = self.at;
            match self.peek() {
                Some(c) if c.is_ascii_alphabetic() || c == '_' => {}
                Some('[') => {
                    return Err(
                        self.error(start, "the elements of an array cannot be told apart in a trigger")
                    );
                }
                Some(c) if c.is_ascii_digit() || matches!(c, '-' | '+') => {
                    return Err(self.error(start, "a name in a trigger cannot begin with a digit or a sign"));
                }
                Some('\'' | '"') => {
                    return Err(self.error(start, format!("a field must stand here: {FIELDS}")));
                }
                Some(c) => {
                    return Err(self.error(start, format!("{c:?} cannot stand here; a field must: {FIELDS}")));
                }
                None => return Err(self.error(start, format!("a field must follow: {FIELDS}"))),
            }
            path.push(self.name(start)?);
            if !self.eat(".") {
                break;
            }
        }
        match self.peek() {
            Some('[') => {
                Err(self.error(self.at, "the elements of an array cannot be told apart in a trigger"))
            }
            Some(c @ ('<' | '>')) => Err(self.error(self.at, format!("write a space before {c}"))),
            Some(c) if !(is_space(c) || matches!(c, '(' | ')' | '=' | '!' | ',')) => Err(self.error(
                self.at,
                format!("{c:?} cannot stand in a name; write \\{c} for the character itself"),
            )),
            _ => Ok(path),
        }
    }

    fn name(&mut self, start: usize) -> Result<String, TriggerError> {
        let mut name = String::new();
        while let Some(c) = self.peek() {
            if c == '\\' {
                self.bump();
                match self.bump() {
                    Some(c @ ('.' | '[' | ']')) => {
                        let text = format!("a name with {c} in it cannot be told in a trigger");
                        return Err(self.error(start, text));
                    }
                    Some(c) => name.push(c),
                    None => return Err(self.error(start, "a character must follow the \\")),
                }
            } else if is_name(c) {
                self.bump();
                name.push(c);
            } else {
                break;
            }
        }
        if OBJECT_METHODS.contains(&name.as_str()) {
            return Err(
                self.error(start, format!("every object has a {name} in JavaScript: it cannot be asked for"))
            );
        }
        Ok(name)
    }

    /// Refuses a field that Segment does not know, or takes for another.
    fn known(&self, path: &[String], at: usize) -> Result<(), TriggerError> {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        let refused = |text: String| Err(self.error(at, text));
        if let Some(word) = names.iter().skip(1).find(|name| ["and", "or", "null"].contains(name)) {
            return refused(format!("a member named {word} cannot be told in a trigger"));
        }
        match names.as_slice() {
            ["type" | "event" | "name" | "userId"] => Ok(()),
            [name @ ("type" | "event" | "name" | "userId"), ..] => refused(format!("{name} has no members")),
            ["properties" | "traits" | "context", _, ..] => Ok(()),
            [name @ ("properties" | "traits" | "context")] => {
                refused(format!("write {name}. and the name of a member"))
            }
            ["not", ..] => refused("there is no not; write != for =, !contains(…), !match(…)".to_owned()),
            ["and" | "or"] => refused(format!("a condition must stand before {}", names[0])),
            ["true" | "false" | "null"] => refused(format!("a field must stand here: {FIELDS}")),
            [name, ..] => refused(format!("a trigger cannot look at {name}; it knows {FIELDS}")),
            [] => refused(format!("a field must stand here: {FIELDS}")),
        }
    }

    fn comparison(&mut self, path: &[String]) -> Result<Op, TriggerError> {
        let at = self.at;
        let Some(sign) = ["!=", "<=", ">=", "=", "<", ">"].into_iter().find(|sign| self.eat(sign)) else {
            let text = match self.peek() {
                Some(c) if !is_space(c) && c != ')' => {
                    format!("{c:?} is no comparison; they are = != < <= > >=")
                }
                _ => "a comparison must follow: = != < <= > >=, as in event = \"Signed Up\"".to_owned(),
            };
            return Err(self.error(at, text));
        };
        if sign.len() == 2 && !self.peek().is_none_or(is_space) {
            return Err(self.error(self.at, format!("write a space after {sign}")));
        }
        if let Some(c @ ('=' | '>' | '<' | '!')) = self.peek() {
            return Err(self.error(at, format!("there is no {sign}{c}; the comparisons are = != < <= > >=")));
        }
        self.space();
        let at = self.at;
        let literal = self.literal()?;
        // Segment compares these four as texts alone.
        let is_text = path.len() == 1;
        let refused = |text: String| Err(self.error(at, text));
        let name = path.last().map_or("", String::as_str);
        match (sign, literal) {
            ("=", Literal::Text(text)) => Ok(Op::Is(text)),
            ("!=", Literal::Text(text)) => Ok(Op::IsNot(text)),
            ("=" | "!=", Literal::Number(n)) if is_text => {
                refused(format!("{name} is compared as a text; write {sign} \"{n}\""))
            }
            ("=", Literal::Number(n)) => Ok(Op::Equals(n)),
            ("!=", Literal::Number(n)) => Ok(Op::Differs(n)),
            ("=" | "!=", Literal::Null) if matches!(name, "type" | "event") && is_text => refused(format!(
                "{name} cannot be asked for by null; write {name} != \"…\" or another condition"
            )),
            ("=", Literal::Null) => Ok(Op::Missing),
            ("!=", Literal::Null) => Ok(Op::Exists),
            ("=", Literal::Bool(_)) if is_text => {
                refused(format!("{name} is compared as a text; write it in quotes"))
            }
            ("=", Literal::Bool(is)) => Ok(Op::IsBool(is)),
            ("!=", Literal::Bool(is)) => {
                refused(format!("Segment takes != {is} for always true; write = {} or = null", !is))
            }
            (_, Literal::Bool(_) | Literal::Null) => refused(format!("a number must follow {sign}")),
            (sign, literal) => {
                let than = match literal {
                    Literal::Number(n) => n,
                    Literal::Text(text) => number_of(&text),
                    Literal::Bool(_) | Literal::Null => f64::NAN,
                };
                Ok(match sign {
                    "<" => Op::Less(than),
                    "<=" => Op::AtMost(than),
                    ">" => Op::More(than),
                    _ => Op::AtLeast(than),
                })
            }
        }
    }

    fn literal(&mut self) -> Result<Literal, TriggerError> {
        let start = self.at;
        let literal = match self.peek() {
            Some('"') => Literal::Text(self.quoted()?),
            Some('\'') => return Err(self.error(start, "write the text in double quotes")),
            Some(c) if c.is_ascii_digit() || matches!(c, '-' | '+' | '.') => {
                let rest = self.rest();
                let number = |c: char| c.is_ascii_digit() || c == '.' || c == '-' || c == '+';
                let digits = &rest[..rest.find(|c| !number(c)).unwrap_or(rest.len())];
                let plain = digits.trim_start_matches(['+', '-']);
                let (whole, part) = plain.split_once('.').unwrap_or((plain, "0"));
                let is_plain =
                    |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                let signs = digits.len() - plain.len();
                match digits.parse() {
                    Ok(n) if is_plain(whole) && is_plain(part) && signs <= 1 => {
                        self.at += digits.len();
                        Literal::Number(n)
                    }
                    _ => return Err(self.error(start, "this is no number; write it as 12 or -0.5")),
                }
            }
            _ => {
                let word = self.word();
                match word {
                    "true" => Literal::Bool(true),
                    "false" => Literal::Bool(false),
                    "null" => Literal::Null,
                    "" => {
                        let text =
                            "a value must follow: a text in double quotes, a number, true, false or null";
                        return Err(self.error(start, text));
                    }
                    word => {
                        return Err(self.error(start, format!("write the text in double quotes: \"{word}\"")));
                    }
                }
            }
        };
        // Segment's reader does not see the end of a value elsewhere.
        match self.peek() {
            None | Some(')' | ',') => Ok(literal),
            Some(c) if is_space(c) => Ok(literal),
            Some(_) => Err(self.error(self.at, "write a space after the value")),
        }
    }

    fn quoted(&mut self) -> Result<String, TriggerError> {
        let start = self.at;
        self.bump();
        match self.rest().split_once('"') {
            Some((text, _)) => {
                self.at += text.len() + 1;
                Ok(text.to_owned())
            }
            None => Err(self.error(start, "this text is not closed; write a \" at its end")),
        }
    }

    /// `(field, "text")`, after the function's name.
    fn function(&mut self, is_match: bool, wanted: bool) -> Result<(Vec<String>, Op), TriggerError> {
        let name = if is_match { "match" } else { "contains" };
        let example = if is_match { "match(event, \"Order*\")" } else { "contains(event, \"Order\")" };
        let malformed = |parser: &Self| Err(parser.error(parser.at, format!("write {name} as in {example}")));
        if !self.eat("(") {
            return malformed(self);
        }
        self.space();
        let at = self.at;
        let path = self.path()?;
        self.known(&path, at)?;
        if path == ["type"] {
            return Err(self.error(at, format!("{name}() cannot look at type; write type = \"…\"")));
        }
        self.space();
        if !self.eat(",") {
            return malformed(self);
        }
        self.space();
        let at = self.at;
        let Literal::Text(text) = self.literal()? else {
            return Err(self.error(at, format!("{name}() wants a text in double quotes")));
        };
        self.space();
        if !self.eat(")") {
            return malformed(self);
        }
        if self.peek().is_some_and(|c| !is_space(c) && c != ')') {
            return Err(self.error(self.at, "write a space after the )"));
        }
        if !is_match {
            return Ok((path, Op::Contains(text, wanted)));
        }
        let stars = text.matches('*').count();
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (_, Some(start)) if stars == 1 => Ok((path, Op::StartsWith(start.to_owned(), wanted))),
            (Some(end), _) if stars == 1 => Ok((path, Op::EndsWith(end.to_owned(), wanted))),
            _ if stars == 0 => {
                Err(self.error(at, format!("match() wants a *; write = \"{text}\" for the whole text")))
            }
            (Some(inner), Some(_)) if stars == 2 && inner.len() > 1 => {
                let inner = &inner[..inner.len() - 1];
                Err(self.error(at, format!("match() takes one *; write contains(…, \"{inner}\")")))
            }
            _ => {
                Err(self.error(at, "match() takes one * alone, at the end or at the start; join two by and"))
            }
        }
    }
}

/// What to write where neither `and` nor `or` joins two conditions.
fn joining(word: &str, rest: &str) -> String {
    match word {
        "" if rest.starts_with("&&") => "write and for &&".to_owned(),
        "" if rest.starts_with("||") => "write or for ||".to_owned(),
        _ => "and or or must stand between two conditions".to_owned(),
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}
