//! What stands between braces: values, paths, comparisons and filters.

use super::Scope;
use super::filters::{self, Filter};
use super::value::Value;
use crate::mapping::lookup::{ARRAY_METHODS, NUMBER_METHODS, OBJECT_METHODS, TEXT_METHODS};
use std::fmt;

/// A value and the filters that it goes through.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    value: Condition,
    filters: Vec<Filtered>,
}

#[derive(Clone)]
struct Filtered {
    name: String,
    filter: Filter,
    arguments: Vec<Operand>,
}

impl fmt::Debug for Filtered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.name, self.arguments)
    }
}

impl PartialEq for Filtered {
    fn eq(&self, other: &Filtered) -> bool {
        (&self.name, &self.arguments) == (&other.name, &other.arguments)
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Condition {
    Operand(Operand),
    Not(Box<Condition>),
    Test(Operand, Test, Operand),
    And(Box<Condition>, Box<Condition>),
    Or(Box<Condition>, Box<Condition>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Test {
    Equal,
    NotEqual,
    Less,
    AtMost,
    More,
    AtLeast,
    Contains,
}

const TESTS: [(&str, Test); 7] = [
    ("==", Test::Equal),
    ("!=", Test::NotEqual),
    ("<=", Test::AtMost),
    (">=", Test::AtLeast),
    ("<", Test::Less),
    (">", Test::More),
    ("contains", Test::Contains),
];

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Literal(Value),
    /// A variable or a member of the event, and what is sought inside it.
    Path(Vec<Operand>),
}

impl Expression {
    /// Reads the whole of a text.
    ///
    /// # Errors
    /// A sentence that quotes what is not clear.
    pub fn parse(text: &str) -> Result<Expression, String> {
        let mut reader = Reader::new(text);
        let value = reader.condition()?;
        let mut filters = Vec::new();
        while reader.takes("|") {
            filters.push(reader.filter()?);
        }
        reader.end()?;
        Ok(Expression { value, filters })
    }

    /// Its value.
    ///
    /// # Errors
    /// A clause that names the filter or the comparison.
    pub fn evaluate(&self, scope: &Scope) -> Result<Value, String> {
        let mut value = scope.made(self.value.evaluate(scope)?)?;
        for Filtered { name, filter, arguments } in &self.filters {
            let arguments: Vec<Value> = arguments.iter().map(|a| a.evaluate(scope)).collect();
            value = scope.made(filter(&value, &arguments).map_err(|why| format!("{name}: {why}"))?)?;
        }
        Ok(value)
    }
}

impl Condition {
    fn evaluate(&self, scope: &Scope) -> Result<Value, String> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        Ok(Value::Bool(match self {
            Condition::Operand(operand) => return Ok(operand.evaluate(scope)),
            Condition::Not(inner) => !inner.evaluate(scope)?.is_true(),
            Condition::And(a, b) => a.evaluate(scope)?.is_true() && b.evaluate(scope)?.is_true(),
            Condition::Or(a, b) => a.evaluate(scope)?.is_true() || b.evaluate(scope)?.is_true(),
            Condition::Test(a, test, b) => {
                let (a, b) = (a.evaluate(scope), b.evaluate(scope));
                let order = || a.order(&b);
                match test {
                    Test::Equal => a.equals(&b)?,
                    Test::NotEqual => !a.equals(&b)?,
                    Test::Contains => a.contains(&b)?,
                    Test::Less => order() == Some(Less),
                    Test::More => order() == Some(Greater),
                    Test::AtMost => matches!(order(), Some(Less | Equal)),
                    Test::AtLeast => matches!(order(), Some(Greater | Equal)),
                }
            }
        }))
    }
}

impl Operand {
    fn evaluate(&self, scope: &Scope) -> Value {
        match self {
            Operand::Literal(value) => value.clone(),
            Operand::Path(keys) => {
                let mut keys = keys.iter().map(|key| key.evaluate(scope));
                let Some(first) = keys.next() else { return Value::Missing };
                let from = scope.find(&first.joined());
                keys.fold(from, |value, key| value.member(&key))
            }
        }
    }
}

/// A text on its way to an expression.
pub struct Reader<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Reader<'a> {
    pub fn new(text: &'a str) -> Reader<'a> {
        Reader { text, rest: text.trim_start_matches(is_blank) }
    }

    fn wrong<T>(&self, what: &str) -> Result<T, String> {
        Err(match self.rest {
            "" => format!("{what} at the end of {:?}", self.text.trim()),
            rest => format!("{what} at {:?}", rest.chars().take(20).collect::<String>()),
        })
    }

    fn advance(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest.trim_start_matches(is_blank);
        taken
    }

    pub fn takes(&mut self, token: &str) -> bool {
        let word = token.ends_with(is_word);
        let found = self.rest.strip_prefix(token).is_some_and(|rest| !word || !rest.starts_with(is_word));
        if found {
            self.advance(token.len());
        }
        found
    }

    pub fn end(&self) -> Result<(), String> {
        if self.rest.is_empty() { Ok(()) } else { self.wrong("it is not clear what is meant") }
    }

    /// What follows, unread.
    pub fn rest(&self) -> &'a str {
        self.rest
    }

    /// A name; of what a variable may be called.
    pub fn name(&mut self) -> Result<&'a str, String> {
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        match self.rest[..end].chars().next() {
            Some(first) if !first.is_ascii_digit() && first != '-' => Ok(self.advance(end)),
            _ => self.wrong("a name is wanted"),
        }
    }

    /// `and` and `or` bind alike and from the right.
    fn condition(&mut self) -> Result<Condition, String> {
        let first = if self.takes("not") { Condition::Not(Box::new(self.test()?)) } else { self.test()? };
        if self.takes("and") {
            return Ok(Condition::And(Box::new(first), Box::new(self.condition()?)));
        }
        if self.takes("or") {
            return Ok(Condition::Or(Box::new(first), Box::new(self.condition()?)));
        }
        Ok(first)
    }

    fn test(&mut self) -> Result<Condition, String> {
        let left = self.operand()?;
        let Some((_, test)) = TESTS.iter().find(|(token, _)| self.takes(token)) else {
            return Ok(Condition::Operand(left));
        };
        let right = self.operand()?;
        if TESTS.iter().any(|(token, _)| self.rest.starts_with(token)) {
            return self.wrong("two comparisons in a row are not clear; join them with and");
        }
        let special =
            |operand: &Operand| matches!(operand, Operand::Literal(Value::Nil | Value::Empty | Value::Blank));
        match special(&left) && special(&right) {
            true => self.wrong("a comparison of two constants is not clear"),
            false => Ok(Condition::Test(left, *test, right)),
        }
    }

    fn operand(&mut self) -> Result<Operand, String> {
        if let Some(text) = self.quoted()? {
            return Ok(Operand::Literal(Value::Text(text)));
        }
        if let Some(number) = self.number()? {
            return Ok(Operand::Literal(Value::Number(number)));
        }
        if self.rest.starts_with('(') {
            return self.wrong("ranges and groups are not supported");
        }
        let mut keys = match self.rest.starts_with('[') {
            true => Vec::new(),
            false => vec![self.key()?],
        };
        // What follows a name follows it at once.
        loop {
            if self.touches("[") {
                self.advance(1);
                let key = self.operand()?;
                if !self.rest.starts_with(']') {
                    return self.wrong("a ] is wanted");
                }
                self.rest = &self.rest[1..];
                if let Operand::Literal(Value::Text(name)) = &key {
                    refuse_method(name)?;
                }
                keys.push(key);
            } else if self.touches(".") {
                self.rest = &self.rest[1..];
                keys.push(self.key()?);
            } else {
                break;
            }
        }
        self.rest = self.rest.trim_start_matches(is_blank);
        if let [Operand::Literal(Value::Text(name))] = keys.as_slice() {
            let literal = match name.as_str() {
                "true" => Some(Value::Bool(true)),
                "false" => Some(Value::Bool(false)),
                "nil" | "null" => Some(Value::Nil),
                "empty" => Some(Value::Empty),
                "blank" => Some(Value::Blank),
                _ => None,
            };
            if let Some(literal) = literal {
                return Ok(Operand::Literal(literal));
            }
        }
        match keys.first() {
            Some(Operand::Literal(Value::Text(_))) => Ok(Operand::Path(keys)),
            _ => self.wrong("a name is wanted"),
        }
    }

    fn touches(&self, token: &str) -> bool {
        self.rest.starts_with(token)
    }

    /// One name of a path, read up to its last letter.
    fn key(&mut self) -> Result<Operand, String> {
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if name.is_empty() || name.starts_with('-') {
            return self.wrong("a value is wanted");
        }
        refuse_method(name)?;
        self.rest = rest;
        Ok(Operand::Literal(Value::Text(name.to_owned())))
    }

    fn quoted(&mut self) -> Result<Option<String>, String> {
        let Some(quote) = self.rest.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
            return Ok(None);
        };
        let Some(end) = self.rest[1..].find(quote) else { return self.wrong("a quote is not closed") };
        let text = &self.rest[1..=end];
        if text.contains('\\') {
            return self.wrong("a backslash in quotes is not supported");
        }
        self.advance(end + 2);
        Ok(Some(text.to_owned()))
    }

    fn number(&mut self) -> Result<Option<f64>, String> {
        let digits = self.rest.strip_prefix('-').unwrap_or(self.rest);
        if !digits.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(None);
        }
        let sign = self.rest.len() - digits.len();
        let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
        let (text, after) = self.rest.split_at(sign + end);
        match text.parse() {
            Ok(number) if !text.ends_with('.') && !after.starts_with(|c| is_word(c) || c == '[') => {
                self.advance(text.len());
                Ok(Some(number))
            }
            _ => self.wrong("a number such as 12 or -0.5 is wanted"),
        }
    }

    fn filter(&mut self) -> Result<Filtered, String> {
        let name = self.name()?.to_owned();
        let mut arguments = Vec::new();
        if self.takes(":") {
            arguments.push(self.operand()?);
            while self.takes(",") {
                arguments.push(self.operand()?);
            }
        }
        if self.rest.starts_with(':') {
            return self.wrong("arguments with names are not supported");
        }
        let filter = filters::find(&name, arguments.len())?;
        Ok(Filtered { name, filter, arguments })
    }
}

fn refuse_method(name: &str) -> Result<(), String> {
    match [OBJECT_METHODS, TEXT_METHODS, ARRAY_METHODS, NUMBER_METHODS].iter().any(|all| all.contains(&name))
    {
        true => {
            Err(format!("{name:?} is something that every value has in JavaScript and cannot be asked for"))
        }
        false => Ok(()),
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-') || !c.is_ascii() && !is_blank(c)
}

/// What Liquid takes for white space.
pub fn is_blank(c: char) -> bool {
    c.is_whitespace() && c != '\u{85}' || c == '\u{180e}'
}
