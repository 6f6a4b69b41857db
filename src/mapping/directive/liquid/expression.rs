//! The expressions in tags and outputs: values, paths, comparisons and filters.

use super::RenderContext;
use super::filters::{self, Filter};
use super::value::Value;
use std::fmt;

/// A value and the filters applied to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    value: Logic,
    filters: Vec<FilterCall>,
}

#[derive(Clone)]
struct FilterCall {
    name: String,
    filter: Filter,
    arguments: Vec<Operand>,
}

impl fmt::Debug for FilterCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.name, self.arguments)
    }
}

impl PartialEq for FilterCall {
    fn eq(&self, other: &FilterCall) -> bool {
        (&self.name, &self.arguments) == (&other.name, &other.arguments)
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Logic {
    Operand(Operand),
    Not(Box<Logic>),
    Compare(Operand, Comparator, Operand),
    And(Box<Logic>, Box<Logic>),
    Or(Box<Logic>, Box<Logic>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Comparator {
    Equal,
    NotEqual,
    Less,
    AtMost,
    More,
    AtLeast,
    Contains,
}

const COMPARATORS: [(&str, Comparator); 7] = [
    ("==", Comparator::Equal),
    ("!=", Comparator::NotEqual),
    ("<=", Comparator::AtMost),
    (">=", Comparator::AtLeast),
    ("<", Comparator::Less),
    (">", Comparator::More),
    ("contains", Comparator::Contains),
];

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Literal(Value),
    /// A variable or a member of the event, then the keys within it.
    Path(Vec<Operand>),
}

impl Expression {
    /// Parses a whole text.
    ///
    /// # Errors
    /// A sentence that quotes the part that is not valid.
    pub fn parse(text: &str) -> Result<Expression, String> {
        let mut parser = ExpressionParser::new(text);
        let value = parser.logic()?;
        let mut filters = Vec::new();
        while parser.eat("|") {
            filters.push(parser.filter()?);
        }
        parser.expect_end()?;
        let is_now = |value: &Logic| match value {
            Logic::Operand(Operand::Literal(Value::Text(text))) => matches!(text.as_str(), "now" | "today"),
            _ => false,
        };
        if is_now(&value) && filters.first().is_some_and(|filter| filter.name.starts_with("date")) {
            return Err("the current time is not supported: the event has its own, timestamp".to_owned());
        }
        Ok(Expression { value, filters })
    }

    /// Evaluates the expression.
    ///
    /// # Errors
    /// A clause that names the filter or the comparison.
    pub fn evaluate(&self, context: &RenderContext) -> Result<Value, String> {
        let mut value = context.checked(self.value.evaluate(context)?)?;
        for FilterCall { name, filter, arguments } in &self.filters {
            let arguments: Vec<Value> = arguments.iter().map(|a| a.evaluate(context)).collect();
            value = context.checked(filter(&value, &arguments).map_err(|why| format!("{name}: {why}"))?)?;
        }
        Ok(value)
    }
}

impl Logic {
    fn evaluate(&self, context: &RenderContext) -> Result<Value, String> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        Ok(Value::Bool(match self {
            Logic::Operand(operand) => return Ok(operand.evaluate(context)),
            Logic::Not(inner) => !inner.evaluate(context)?.is_truthy(),
            Logic::And(a, b) => a.evaluate(context)?.is_truthy() && b.evaluate(context)?.is_truthy(),
            Logic::Or(a, b) => a.evaluate(context)?.is_truthy() || b.evaluate(context)?.is_truthy(),
            Logic::Compare(a, comparator, b) => {
                let (a, b) = (a.evaluate(context), b.evaluate(context));
                let order = || a.order(&b);
                match comparator {
                    Comparator::Equal => a.equals(&b)?,
                    Comparator::NotEqual => !a.equals(&b)?,
                    Comparator::Contains => a.contains(&b)?,
                    Comparator::Less => order() == Some(Less),
                    Comparator::More => order() == Some(Greater),
                    Comparator::AtMost => matches!(order(), Some(Less | Equal)),
                    Comparator::AtLeast => matches!(order(), Some(Greater | Equal)),
                }
            }
        }))
    }
}

impl Operand {
    fn literal(&self) -> Option<Value> {
        match self {
            Operand::Literal(value) => Some(value.clone()),
            Operand::Path(_) => None,
        }
    }

    /// Whether the operand is that name alone.
    fn is_name(&self, name: &str) -> bool {
        matches!(self, Operand::Path(keys) if matches!(keys.as_slice(), [Operand::Literal(Value::Text(key))] if key == name))
    }

    fn evaluate(&self, context: &RenderContext) -> Value {
        match self {
            Operand::Literal(value) => value.clone(),
            Operand::Path(keys) => {
                let mut keys = keys.iter().map(|key| key.evaluate(context));
                let Some(first) = keys.next() else { return Value::Undefined };
                let root = context.find(&first.to_js_string());
                keys.fold(root, |value, key| value.member(&key))
            }
        }
    }
}

/// A parser over the text of one tag or output.
pub struct ExpressionParser<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> ExpressionParser<'a> {
    pub fn new(text: &'a str) -> ExpressionParser<'a> {
        ExpressionParser { text, rest: text.trim_start_matches(is_blank) }
    }

    fn error<T>(&self, text: &str) -> Result<T, String> {
        Err(match self.rest {
            "" => format!("{text} at the end of {:?}", self.text.trim()),
            rest => format!("{text} at {:?}", rest.chars().take(20).collect::<String>()),
        })
    }

    fn advance(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest.trim_start_matches(is_blank);
        taken
    }

    pub fn eat(&mut self, token: &str) -> bool {
        let is_name = token.ends_with(is_word);
        let is_next =
            self.rest.strip_prefix(token).is_some_and(|rest| !is_name || !rest.starts_with(is_word));
        if is_next {
            self.advance(token.len());
        }
        is_next
    }

    pub fn expect_end(&self) -> Result<(), String> {
        if self.rest.is_empty() { Ok(()) } else { self.error("this is not a valid expression") }
    }

    /// The text that is not parsed yet.
    pub fn rest(&self) -> &'a str {
        self.rest
    }

    /// Parses the name of a variable, a tag or a filter.
    pub fn name(&mut self) -> Result<&'a str, String> {
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        match self.rest[..end].chars().next() {
            Some(first) if !first.is_ascii_digit() && first != '-' => Ok(self.advance(end)),
            _ => self.error("a name is missing"),
        }
    }

    /// Parses operands joined by `and` and `or`, which have equal precedence and associate from the right.
    fn logic(&mut self) -> Result<Logic, String> {
        let first =
            if self.eat("not") { Logic::Not(Box::new(self.comparison()?)) } else { self.comparison()? };
        if self.eat("and") {
            return Ok(Logic::And(Box::new(first), Box::new(self.logic()?)));
        }
        if self.eat("or") {
            return Ok(Logic::Or(Box::new(first), Box::new(self.logic()?)));
        }
        Ok(first)
    }

    fn comparison(&mut self) -> Result<Logic, String> {
        let left = self.operand()?;
        let Some((_, comparator)) = COMPARATORS.iter().find(|(token, _)| self.eat(token)) else {
            return Ok(Logic::Operand(left));
        };
        let right = self.operand()?;
        if COMPARATORS.iter().any(|(token, _)| self.rest.starts_with(token)) {
            return self.error("two comparisons in a row are not supported; join them with and");
        }
        let is_special =
            |operand: &Operand| matches!(operand, Operand::Literal(Value::Nil | Value::Empty | Value::Blank));
        match is_special(&left) && is_special(&right) {
            true => self.error("a comparison of two constants is not supported"),
            false => Ok(Logic::Compare(left, *comparator, right)),
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
            return self.error("ranges and groups are not supported");
        }
        let mut keys = match self.rest.starts_with('[') {
            true => Vec::new(),
            false => vec![self.key()?],
        };
        // A key follows a name without white space between them.
        loop {
            if self.rest.starts_with('[') {
                self.advance(1);
                let key = self.operand()?;
                if !self.rest.starts_with(']') {
                    return self.error("a ] is missing");
                }
                self.rest = &self.rest[1..];
                keys.push(key);
            } else if self.rest.starts_with('.') {
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
            _ => self.error("a name is missing"),
        }
    }

    /// Parses one name of a path, without the white space after it.
    fn key(&mut self) -> Result<Operand, String> {
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if name.is_empty() || name.starts_with('-') {
            return self.error("a value is missing");
        }
        self.rest = rest;
        Ok(Operand::Literal(Value::Text(name.to_owned())))
    }

    fn quoted(&mut self) -> Result<Option<String>, String> {
        if !self.rest.starts_with(['"', '\'']) {
            return Ok(None);
        }
        let Some(length) = quoted_length(self.rest) else { return self.error("a quote is not closed") };
        let (mut text, mut inside) = (String::new(), self.rest[1..length - 1].chars());
        while let Some(c) = inside.next() {
            match (c, inside.clone().next().filter(|_| c == '\\')) {
                (_, Some('b')) => text.push('\u{8}'),
                (_, Some('f')) => text.push('\u{c}'),
                (_, Some('n')) => text.push('\n'),
                (_, Some('r')) => text.push('\r'),
                (_, Some('t')) => text.push('\t'),
                (_, Some('v')) => text.push('\u{b}'),
                (_, Some('u' | '0'..='7')) => {
                    return self.error("a character by its number is not supported");
                }
                (_, Some(escaped)) => text.push(escaped),
                (c, None) => {
                    text.push(c);
                    continue;
                }
            }
            inside.next();
        }
        self.advance(length);
        Ok(Some(text))
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
            _ => self.error("write a number such as 12 or -0.5"),
        }
    }

    fn filter(&mut self) -> Result<FilterCall, String> {
        let name = self.name()?.to_owned();
        let mut arguments = Vec::new();
        if self.eat(":") {
            arguments.push(self.operand()?);
            while self.eat(",") {
                arguments.push(self.operand()?);
            }
        }
        let filter = match self.eat(":") {
            // The only argument with a name: `default: "x", allow_false: true`.
            true if name == "default" && arguments.len() == 2 && arguments[1].is_name("allow_false") => {
                arguments[1] = self.operand()?;
                filters::find(&name, 1)?
            }
            true => return self.error("an argument with a name is not supported"),
            false => filters::find(&name, arguments.len())?,
        };
        let literals: Option<Vec<Value>> = arguments.iter().map(Operand::literal).collect();
        if let Some(literals) = literals.filter(|_| name == "date") {
            // A format that is not supported is found without an event.
            filter(&Value::Number(0.0), &literals).map_err(|why| format!("{name}: {why}"))?;
        }
        Ok(FilterCall { name, filter, arguments })
    }
}

/// The length of the text in quotes at the start of `text`, with its quotes; `None` if it is not closed.
pub fn quoted_length(text: &str) -> Option<usize> {
    let quote = text.chars().next()?;
    let mut is_escaped = false;
    let end = text[1..].find(|c| {
        let is_end = c == quote && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end
    });
    end.map(|end| end + 2)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-') || !c.is_ascii() && !is_blank(c)
}

/// Whether Liquid counts the character as white space.
pub fn is_blank(c: char) -> bool {
    c.is_whitespace() && c != '\u{85}' || c == '\u{180e}'
}
