//! Parses triggers. A text that Segment's own parser reads differently than it looks is refused with the fix.

use super::{Comparison, Condition, Op, TriggerError};
use crate::mapping::javascript::{OBJECT_METHODS, number_to_js_string, to_js_number};

/// The maximum length in bytes, far more than a person can read.
const MAX_TEXT: usize = 10_000;
/// The maximum nesting of groups.
const MAX_DEPTH: usize = 32;

const FIELDS: &str = "type, event, name, userId, properties.…, traits.…, context.…";

pub fn parse(text: &str) -> Result<Condition, TriggerError> {
    let mut parser = TriggerParser { text, at: 0 };
    if text.len() > MAX_TEXT {
        return Err(parser.error(0, format!("the trigger is longer than {MAX_TEXT} bytes")));
    }
    parser.skip_space();
    if parser.rest().is_empty() {
        return Err(parser.error(0, "the trigger is empty; write type = \"track\" for all tracks"));
    }
    let condition = parser.conditions(0)?;
    if parser.peek().is_some() {
        return Err(parser.error(parser.at, "this ) closes no (; remove it"));
    }
    parser.check_calls(&condition)?;
    Ok(condition)
}

struct TriggerParser<'a> {
    text: &'a str,
    /// The position of the next character, in bytes.
    at: usize,
}

#[derive(Debug, PartialEq)]
enum Literal {
    Text(String),
    Number(f64),
    Bool(bool),
    Null,
}

impl<'a> TriggerParser<'a> {
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

    fn eat(&mut self, token: &str) -> bool {
        let is_next = self.rest().starts_with(token);
        self.at += if is_next { token.len() } else { 0 };
        is_next
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start_matches(is_space).len();
    }

    fn error(&self, at: usize, text: impl Into<String>) -> TriggerError {
        TriggerError { column: self.text[..at].chars().count() + 1, text: text.into() }
    }

    /// Parses conditions up to the end or to a closing parenthesis.
    fn conditions(&mut self, depth: usize) -> Result<Condition, TriggerError> {
        let mut conditions = vec![self.condition(depth)?];
        let mut joined: Option<&str> = None;
        loop {
            self.skip_space();
            let at = self.at;
            if matches!(self.peek(), None | Some(')')) {
                break;
            }
            let word = self.word();
            let join = match word {
                "and" => "and",
                "or" => "or",
                _ => return Err(self.error(at, join_fix(word, self.text[at..].trim_end()))),
            };
            if !self.peek().is_none_or(is_space) {
                return Err(self.error(self.at, format!("write a space after {join}")));
            }
            if *joined.get_or_insert(join) != join {
                let text =
                    "and is mixed with or; group the conditions with parentheses, as in a and (b or c)";
                return Err(self.error(at, text));
            }
            self.skip_space();
            if matches!(self.peek(), None | Some(')')) {
                return Err(self.error(at, format!("nothing follows this {join}; remove it")));
            }
            conditions.push(self.condition(depth)?);
        }
        Ok(match (joined, conditions.len()) {
            (_, 1) => conditions.remove(0),
            (Some("or"), _) => Condition::Any(conditions),
            _ => Condition::All(conditions),
        })
    }

    /// Refuses a group that Segment splits. Its parser ends a group at the first closing bracket, which is that of a call
    /// in it; the rest of the group then belongs to the conditions around it. That is the same only under the same
    /// conjunction. Groups nested deeper are no concern: Segment's parser takes none.
    fn check_calls(&self, condition: &Condition) -> Result<(), TriggerError> {
        let (Condition::All(members) | Condition::Any(members)) = condition else { return Ok(()) };
        for member in members {
            if std::mem::discriminant(member) == std::mem::discriminant(condition) {
                self.check_calls(member)?;
            } else if let Condition::All(group) | Condition::Any(group) = member {
                let followed = group.iter().take(group.len() - 1);
                let mut calls = followed.filter_map(|condition| match condition {
                    Condition::Compare(comparison) if comparison.op.is_call() => Some(&comparison.span),
                    _ => None,
                });
                if let Some(span) = calls.next() {
                    let text = format!(
                        "Segment ends the group at the bracket of {}; write a call last in its group, and a group for \
                         each call, as in (type = \"track\" and match(event, \"A*\")) or (type = \"track\" and \
                         match(event, \"B*\"))",
                        &self.text[span.clone()]
                    );
                    return Err(self.error(span.start, text));
                }
            }
        }
        Ok(())
    }

    /// Parses a comparison or a group.
    fn condition(&mut self, depth: usize) -> Result<Condition, TriggerError> {
        self.skip_space();
        let start = self.at;
        if self.eat("(") {
            if depth == MAX_DEPTH {
                return Err(self.error(start, format!("groups are nested more than {MAX_DEPTH} deep")));
            }
            self.skip_space();
            if self.peek() == Some(')') {
                return Err(self.error(start, "this group is empty; remove it"));
            }
            let group = self.conditions(depth + 1)?;
            if !self.eat(")") {
                return Err(self.error(start, "this ( is not closed; write a )"));
            }
            return Ok(group);
        }
        let is_negated = self.eat("!");
        match self.peek().filter(|_| is_negated) {
            None => {}
            Some('(') => {
                let text = "a group cannot be negated; negate the conditions in it: != for =, !contains(…), !match(…)";
                return Err(self.error(start, text));
            }
            Some(c) if c.is_ascii_alphabetic() => {}
            Some(_) => return Err(self.error(start, "write ! right before contains(…) or match(…)")),
        }
        let at = self.at;
        let path = self.path()?;
        self.skip_space();
        if let [function @ ("contains" | "match")] = path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            let (path, op) = self.function(function == "match", !is_negated)?;
            return Ok(Condition::Compare(Comparison { path, op, span: start..self.at }));
        }
        if is_negated {
            return Err(
                self.error(start, "only contains(…) and match(…) can be negated by !; write != for =")
            );
        }
        self.check_field(&path, at)?;
        let op = self.operator(&path)?;
        Ok(Condition::Compare(Comparison { path, op, span: start..self.at }))
    }

    /// Reads the characters that a name can consist of.
    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let word = &rest[..rest.find(|c: char| !is_name(c)).unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    /// Parses a field: names joined by dots.
    fn path(&mut self) -> Result<Vec<String>, TriggerError> {
        let mut path = Vec::new();
        loop {
            let start = self.at;
            match self.peek() {
                Some(c) if c.is_ascii_alphabetic() || matches!(c, '_' | '\\') => {}
                Some('[') => {
                    return Err(self.error(start, "a trigger cannot select an element of an array"));
                }
                Some(c) if c.is_ascii_digit() || matches!(c, '-' | '+') => {
                    let text =
                        format!("a name cannot begin with a digit or a sign; write \\{c} for the character");
                    return Err(self.error(start, text));
                }
                Some('\'' | '"') => {
                    return Err(self.error(start, format!("a field must come here: {FIELDS}")));
                }
                Some(c) => {
                    return Err(self.error(start, format!("{c:?} cannot come here; write a field: {FIELDS}")));
                }
                None => return Err(self.error(start, format!("a field must follow: {FIELDS}"))),
            }
            path.push(self.name(start)?);
            if !self.eat(".") {
                break;
            }
        }
        match self.peek() {
            Some('[') => Err(self.error(self.at, "a trigger cannot select an element of an array")),
            Some(c @ ('<' | '>')) => Err(self.error(self.at, format!("write a space before {c}"))),
            Some(c) if !(is_space(c) || matches!(c, '(' | ')' | '=' | '!' | ',')) => Err(self.error(
                self.at,
                format!("{c:?} cannot be part of a name; write \\{c} for the character itself"),
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
                        let text = format!("a trigger cannot use a member with {c} in its name");
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
            return Err(self
                .error(start, format!("every object has a {name} in JavaScript: a trigger cannot use it")));
        }
        // Segment's lexer takes these for words of its own where white space, a comma or a bracket follows.
        let is_word = ["and", "or", "null"].contains(&&self.text[start..self.at])
            && self.peek().is_none_or(|c| is_space(c) || matches!(c, ',' | ']' | ')'));
        if is_word && self.text[..start].ends_with('.') {
            return Err(self.error(start, format!("write \\{name} for a member named {name}")));
        }
        Ok(name)
    }

    /// Refuses a field that Segment does not know or reads differently.
    fn check_field(&self, path: &[String], at: usize) -> Result<(), TriggerError> {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        let refused = |text: String| Err(self.error(at, text));
        match names.as_slice() {
            ["type" | "event" | "name" | "userId"] => Ok(()),
            [name @ ("type" | "event" | "name" | "userId"), ..] => refused(format!("{name} has no members")),
            ["properties" | "traits" | "context", _, ..] => Ok(()),
            [name @ ("properties" | "traits" | "context")] => {
                refused(format!("write {name}. and the name of a member"))
            }
            ["not", ..] => refused("there is no not; write != for =, !contains(…), !match(…)".to_owned()),
            ["and" | "or"] => refused(format!("a condition must come before {}", names[0])),
            ["true" | "false" | "null"] => refused(format!("a field must come here: {FIELDS}")),
            [name, ..] => refused(format!("a trigger cannot use {name}; the fields are {FIELDS}")),
            [] => refused(format!("a field must come here: {FIELDS}")),
        }
    }

    /// Parses an operator and its value.
    fn operator(&mut self, path: &[String]) -> Result<Op, TriggerError> {
        let at = self.at;
        let Some(sign) = ["!=", "<=", ">=", "=", "<", ">"].into_iter().find(|sign| self.eat(sign)) else {
            let text = match self.peek() {
                Some(c) if !is_space(c) && c != ')' => {
                    format!("{c:?} is not a comparison; the comparisons are = != < <= > >=")
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
        self.skip_space();
        let at = self.at;
        let literal = self.literal()?;
        // Segment compares the four fields of one name only as strings.
        let is_string = path.len() == 1;
        let refused = |text: String| Err(self.error(at, text));
        let name = path.last().map_or("", String::as_str);
        match (sign, literal) {
            ("=", Literal::Text(text)) => Ok(Op::Is(text)),
            ("!=", Literal::Text(text)) => Ok(Op::IsNot(text)),
            ("=" | "!=", Literal::Number(n)) if is_string => {
                refused(format!("{name} is compared as a string; write {sign} \"{n}\""))
            }
            ("=", Literal::Number(n)) => Ok(Op::Equals(n)),
            ("!=", Literal::Number(n)) => Ok(Op::Differs(n)),
            ("=" | "!=", Literal::Null) if matches!(name, "type" | "event") && is_string => refused(format!(
                "{name} cannot be compared with null; write {name} != \"…\" or another condition"
            )),
            ("=", Literal::Null) => Ok(Op::Missing),
            ("!=", Literal::Null) => Ok(Op::Exists),
            ("=", Literal::Bool(_)) if is_string => {
                refused(format!("{name} is compared as a string; write it in quotes"))
            }
            ("=", Literal::Bool(is)) => Ok(Op::IsBool(is)),
            ("!=", Literal::Bool(is)) => {
                refused(format!("for Segment != {is} is always true; write = {} or = null", !is))
            }
            (_, Literal::Bool(_) | Literal::Null) => refused(format!("a number must follow {sign}")),
            (sign, literal) => {
                let than = match literal {
                    Literal::Number(n) => n,
                    Literal::Text(text) => to_js_number(&text),
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
            Some('\'') => return Err(self.error(start, "write the string in double quotes")),
            Some(c) if c.is_ascii_digit() || matches!(c, '-' | '+' | '.') => {
                let rest = self.rest();
                let is_numeric = |c: char| c.is_ascii_digit() || c == '.' || c == '-' || c == '+';
                let digits = &rest[..rest.find(|c| !is_numeric(c)).unwrap_or(rest.len())];
                let plain = digits.trim_start_matches(['+', '-']);
                let (whole, fraction) = plain.split_once('.').unwrap_or((plain, "0"));
                let is_plain =
                    |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                let signs = digits.len() - plain.len();
                match digits.parse() {
                    Ok(n) if is_plain(whole) && is_plain(fraction) && signs <= 1 => {
                        self.at += digits.len();
                        Literal::Number(n)
                    }
                    _ => return Err(self.error(start, "this is not a number; write it as 12 or -0.5")),
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
                            "a value must follow: a string in double quotes, a number, true, false or null";
                        return Err(self.error(start, text));
                    }
                    word => {
                        return Err(
                            self.error(start, format!("write the string in double quotes: \"{word}\""))
                        );
                    }
                }
            }
        };
        // Segment's parser ends a value only here.
        match self.peek() {
            None | Some(')' | ',') => Ok(literal),
            Some(c) if is_space(c) => Ok(literal),
            Some(_) if self.text[..self.at].ends_with("\\\"") => {
                let text = "a backslash escapes nothing in a text, so this \" ends it; a text cannot contain a double quote";
                Err(self.error(self.at - 1, text))
            }
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
            None => Err(self.error(start, "this string is not closed; write a \" at its end")),
        }
    }

    /// Parses the arguments of a function, `(field, "text")`.
    fn function(&mut self, is_match: bool, wanted: bool) -> Result<(Vec<String>, Op), TriggerError> {
        let name = if is_match { "match" } else { "contains" };
        let example = if is_match { "match(event, \"Order*\")" } else { "contains(event, \"Order\")" };
        let malformed = |parser: &Self| Err(parser.error(parser.at, format!("write {name} as in {example}")));
        if !self.eat("(") {
            return malformed(self);
        }
        self.skip_space();
        let at = self.at;
        let path = self.path()?;
        self.check_field(&path, at)?;
        if path == ["type"] {
            return Err(self.error(at, format!("{name}() cannot be used on type; write type = \"…\"")));
        }
        self.skip_space();
        if !self.eat(",") {
            return malformed(self);
        }
        self.skip_space();
        let at = self.at;
        let text = match self.literal()? {
            Literal::Text(text) => text,
            // match() looks for the * in the literal as it is written.
            _ if is_match => return Err(self.error(at, "match() needs a text with a * in double quotes")),
            Literal::Number(n) => number_to_js_string(n),
            Literal::Bool(is) => is.to_string(),
            Literal::Null => "null".to_owned(),
        };
        self.skip_space();
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
                Err(self.error(at, format!("match() needs a *; write = \"{text}\" for the whole string")))
            }
            (Some(inner), Some(_)) if stars == 2 && inner.len() > 1 => {
                let inner = &inner[..inner.len() - 1];
                Err(self.error(at, format!("match() allows one *; write contains(…, \"{inner}\")")))
            }
            _ => {
                Err(self.error(at, "match() allows only one *, at the end or at the start; join two by and"))
            }
        }
    }
}

/// The fix where neither `and` nor `or` joins two conditions.
fn join_fix(word: &str, rest: &str) -> String {
    match word {
        "" if rest.starts_with("&&") => "write and for &&".to_owned(),
        "" if rest.starts_with("||") => "write or for ||".to_owned(),
        _ => "and or or must come between two conditions".to_owned(),
    }
}

/// Whether Segment counts the character as white space. It does not so count a carriage return.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n')
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}
