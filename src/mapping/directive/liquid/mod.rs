//! `@liquid`: the part of Liquid whose results are certain to be those of liquidjs 10, which Segment runs in its lenient
//! mode. All other templates are refused when they are parsed. The `liquid` crate follows Ruby's Liquid instead.

mod date;
mod expression;
mod filters;
mod parse;
mod text;
mod value;

use super::MAX_OUTPUT;
use crate::event::Raw;
use crate::event::json::Object;
use expression::Expression;
use std::cell::RefCell;
use std::collections::HashMap;
use value::Value;

/// Segment's limit for a template, in UTF-16 units.
const MAX_LENGTH: usize = 1000;

/// A Liquid template, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Liquid(Vec<Part>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Output(Expression),
    Assign(String, Expression),
    Capture(String, Vec<Part>),
    /// The first branch whose condition is met is rendered.
    If(Vec<Branch>),
}

#[derive(Debug, Clone, PartialEq)]
struct Branch {
    /// `None` for else.
    condition: Option<Expression>,
    /// The truth value that meets the condition: false for `unless`.
    wanted: bool,
    parts: Vec<Part>,
}

/// The state of one rendering.
struct RenderContext<'a> {
    variables: RefCell<HashMap<String, Value>>,
    event: Option<&'a Object<'a>>,
    /// Charges work in bytes; an error means that the limit is reached.
    charge: &'a dyn Fn(usize) -> Result<(), String>,
}

impl RenderContext<'_> {
    /// The variable `name`, else the event's member.
    fn find(&self, name: &str) -> Value {
        if let Some(value) = self.variables.borrow().get(name) {
            return value.clone();
        }
        let member = self.event.and_then(|event| event.get(name)).map(Raw::get);
        member.map_or(Value::Undefined, Value::from_json)
    }

    /// Charges a computed value and checks its size.
    fn checked(&self, value: Value) -> Result<Value, String> {
        let size = value.memory_size();
        (self.charge)(size)?;
        if size > MAX_OUTPUT { Err("a value is larger than 1 MiB".to_owned()) } else { Ok(value) }
    }
}

impl Liquid {
    /// Parses a template.
    ///
    /// # Errors
    /// The part that is not supported, and the supported alternatives.
    pub fn parse(text: &str) -> Result<Liquid, String> {
        if text.encode_utf16().count() > MAX_LENGTH {
            return Err(format!("it is longer than {MAX_LENGTH} characters, which is Segment's limit"));
        }
        parse::parse(text).map(Liquid)
    }

    /// Renders the template; the event's members are its variables. `charge` is called with the bytes of each value that
    /// is computed.
    ///
    /// # Errors
    /// A clause about the operation that is not possible with the event's values, or the error of `charge`.
    pub fn render(
        &self,
        event: Option<&Object>,
        charge: &dyn Fn(usize) -> Result<(), String>,
    ) -> Result<String, String> {
        let context = RenderContext { variables: RefCell::default(), event, charge };
        let mut out = String::new();
        render(&self.0, &context, &mut out)?;
        Ok(out)
    }
}

fn render(parts: &[Part], context: &RenderContext, out: &mut String) -> Result<(), String> {
    for part in parts {
        match part {
            Part::Text(text) => *out += text,
            Part::Output(expression) => *out += &expression.evaluate(context)?.print(),
            Part::Assign(name, expression) => {
                let value = expression.evaluate(context)?;
                context.variables.borrow_mut().insert(name.clone(), value);
            }
            Part::Capture(name, parts) => {
                let mut captured = String::new();
                render(parts, context, &mut captured)?;
                context.variables.borrow_mut().insert(name.clone(), Value::Text(captured));
            }
            Part::If(branches) => {
                for branch in branches {
                    let is_met = match &branch.condition {
                        Some(condition) => condition.evaluate(context)?.is_truthy() == branch.wanted,
                        None => true,
                    };
                    if is_met {
                        render(&branch.parts, context, out)?;
                        break;
                    }
                }
            }
        }
        if out.len() > MAX_OUTPUT {
            return Err("the value is larger than 1 MiB".to_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = r#"{"event":"Plan Upgraded","properties":{"seats":25,"price":1299.5,"zero":0,"no":false,
        "nul":null,"note":"","tags":["a","b","c"],"nested":[[1,2],{"k":"v"}],"name":"Ana Lima","size":{"w":1,"h":2}}}"#;

    fn rendered(template: &str) -> Result<String, String> {
        let event: Object = serde_json::from_str(EVENT).unwrap();
        Liquid::parse(template)?.render(Some(&event), &|_| Ok(()))
    }

    #[test]
    fn templates_render_as_with_liquidjs() {
        for (template, want) in [
            ("", ""),
            ("plain } text % }}", "plain } text % }}"),
            ("{{ properties.seats }}|{{properties['seats']}}|{{ properties[\"seats\"]}}", "25|25|25"),
            ("{{ nope }}{{ nope.deeper.still }}{{ properties.nul.x }}", ""),
            ("{{ properties.tags }} {{ properties.tags[1] }} {{ properties.tags[-1] }}", "abc b c"),
            ("{{ properties.tags.size }} {{ properties.tags.first }} {{ properties.tags.last }}", "3 a c"),
            ("{{ properties.name.size }} {{ properties.size.w }}", "8 1"),
            ("{{ properties.nested[1] }} {{ properties.nested[0] | join }}", "[object Object] 1 2"),
            ("{{ properties.price }} {{ 10.0 }} {{ -3 | abs }} {{ true }}", "1299.5 10 3 true"),
            ("{{ properties.seats > 10 }} {{ 'b' | append: \"c\" }}", "true bc"),
            ("{% if properties.zero %}yes{% endif %}{% if properties.note %}yes{% endif %}", "yesyes"),
            ("{% if properties.no or properties.nul or nope %}yes{% else %}no{% endif %}", "no"),
            ("{% if properties.seats > 30 %}a{% elsif properties.seats >= 25 %}b{% else %}c{% endif %}", "b"),
            ("{% unless properties.no %}a{% else %}b{% endunless %}", "a"),
            ("{% if properties.tags contains 'b' and event contains 'Plan' %}a{% endif %}", "a"),
            ("{% if true or false and false %}a{% endif %}", "a"),
            ("{% if false and true or true %}a{% else %}b{% endif %}", "b"),
            ("{% if not properties.no %}a{% endif %}", "a"),
            ("{% if properties.note == empty %}a{% endif %}{% if properties.nul == nil %}b{% endif %}", "ab"),
            (
                "{% if properties.nope == blank %}a{% endif %}{% if properties.zero == blank %}b{% endif %}",
                "a",
            ),
            (
                "{% if '10' > 9 %}a{% endif %}{% if '10' == 10 %}b{% endif %}{% if 'b' > 'a' %}c{% endif %}",
                "ac",
            ),
            ("{% if properties.nul >= 0 %}a{% endif %}{% if nope >= 0 %}b{% endif %}", "a"),
            ("{% assign x = properties.name | upcase %}{{ x }}{{ x | size }}", "ANA LIMA8"),
            ("{% capture x %}<{{ event }}>{% endcapture %}{{ x | downcase }}", "<plan upgraded>"),
            ("a{% comment %}{{ event }}{% endcomment %}b", "ab"),
            ("{% raw %}{{ event }}{% endraw %}", "{{ event }}"),
            ("a  {{- event -}}  b {%- if true -%}  c {%- endif %} d", "aPlan Upgradedbc d"),
            (
                "{{ properties.seats | times: 2 | plus: 1 }} {{ 10 | divided_by: 4 }} {{ 7 | modulo: 3 }}",
                "51 2.5 1",
            ),
            ("{{ 1.25 | round: 1 }} {{ 2.5 | round }} {{ -2.5 | round }} {{ 4.1 | ceil }}", "1.3 3 -3 5"),
            (
                "{{ 'x' | plus: 1 }} {{ nope | plus: 0 }} {{ '3' | minus: 1 }} {{ 1 | divided_by: 0 }}",
                "1 0 2 Infinity",
            ),
            ("{{ 'hELLO wORLD' | capitalize }} {{ 'a,b,,' | split: ',' | size }}", "Hello world 2"),
            (
                "{{ 'a b' | url_encode }} {{ '<a & \"b\">' | escape }} {{ '&lt;' | escape_once }}",
                "a+b &lt;a &amp; &#34;b&#34;&gt; &lt;",
            ),
            (
                "{{ 'Hello there' | truncate: 8 }} {{ 'Hello' | slice: 1, 3 }} {{ 'Hello' | slice: -2 }}",
                "Hello... ell l",
            ),
            (
                "{{ 'a-b-c' | replace: '-', '+' }} {{ 'a-b-c' | replace_first: '-', '' }} {{ 'a-b' | remove: '-' }}",
                "a+b+c ab-c ab",
            ),
            (
                "{{ properties.tags | json }} {{ properties.nope | json }}{{ event | json }}",
                "[\"a\",\"b\",\"c\"] \"Plan Upgraded\"",
            ),
            (
                "{{ properties.note | default: 'none' }} {{ properties.zero | default: 'none' }} {{ properties.no | default: 1 }}",
                "none 0 1",
            ),
            ("{{ ' x ' | strip }}{{ ' y' | lstrip }}{{ 'z ' | rstrip }}.", "xyz."),
        ] {
            assert_eq!(rendered(template).as_deref(), Ok(want), "{template}");
        }
    }

    #[test]
    fn unsupported_templates_are_refused() {
        for (template, why) in [
            ("{% for t in properties.tags %}{{ t }}{% endfor %}", "Segment disables the tag for"),
            ("{{ properties.tags | sort }}", "Segment disables the filter sort"),
            ("{{ event | date: '%c' }}", "the result of %c is not certain"),
            ("{{ 'now' | date: '%Y' }}", "the current time is not supported"),
            ("{{ event | sha256 }}", "not every version of liquidjs has it"),
            ("{{ event | upcase2 }}", "the filter \"upcase2\" is not supported"),
            ("{{ event | append }}", "the filter append takes 1 arguments here, and has 0"),
            ("{{ event | append: 'x', allow_false: true }}", "an argument with a name"),
            ("{{ event", "is not closed"),
            ("{% if event %}", "endif is missing"),
            ("{% endif %}", "closes no open tag"),
            ("{% if event %}{% else %}{% else %}{% endif %}", "else"),
            ("{% cycle 'a', 'b' %}", "the tag \"cycle\" is not supported"),
            ("{{ 'a\\u00e9' }}", "a character by its number"),
            ("{{ 'a\\' }}", "is not closed"),
            ("{% assign x = '%}' %}", "a quote is not closed"),
            ("{{ (1..3) }}", "ranges"),
            ("{{ a b }}", "not a valid expression"),
            ("{{ a == b == c }}", "two comparisons"),
            ("{{ }}", "a value is missing"),
            ("{{ 'a' | truncate: 'x' }}", "a whole number"),
            ("{{ 1.005 | round: 2 }}", "the last digit of the result is not certain"),
            ("{{ -7 | modulo: 3 }}", "the sign or the last digit"),
            ("{{ '😀 Hello' | truncate: 3 }}", "an emoji"),
            ("{{ '%2B' | url_decode }}", "%2B is not certain"),
            ("{{ 'YQ' | base64_decode }}", "not a text in base64"),
        ] {
            let error = rendered(template).unwrap_err();
            assert!(error.contains(why), "{template}: {error}");
        }
        assert!(Liquid::parse(&"é".repeat(1000)).is_ok());
        assert!(Liquid::parse(&"é".repeat(1001)).is_err());
    }

    #[test]
    fn a_value_that_doubles_itself_is_refused() {
        let doubling =
            "{% assign x = 'abcdefgh' %}".to_owned() + &"{% assign x = x | append: x %}".repeat(30);
        assert!(rendered(&doubling).unwrap_err().contains("1 MiB"));
    }
}
