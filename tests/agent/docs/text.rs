//! Examples and lists, taken out of the README and the pages.

use serde_json::Value;

pub const README: &str = include_str!("../../../README.md");
pub const PACKAGED: &str = include_str!("../../../packaging/config.toml");
pub const AGENT: &str = include_str!("../../../packaging/man/koala-agent.1");
pub const TOML: &str = include_str!("../../../packaging/man/koala-agent.toml.5");
pub const SPOOL: &str = include_str!("../../../packaging/man/koala-agent-spool.7");
pub const GUARANTEES: &str = include_str!("../../../packaging/man/koala-agent-guarantees.7");
pub const MAPPINGS: &str = include_str!("../../../packaging/man/koala-agent-mappings.7");
pub const OPERATIONS: &str = include_str!("../../../packaging/man/koala-agent-operations.7");
pub const LOG: &str = include_str!("../../../packaging/man/koala-agent-log.7");
pub const CONTAINERS: &str = include_str!("../../../packaging/man/koala-agent-containers.7");
pub const MONITORING: &str = include_str!("../../../packaging/man/koala-agent-monitoring.7");

/// Every manual page by its file name.
pub const PAGES: [(&str, &str); 9] = [
    ("koala-agent.1", AGENT),
    ("koala-agent.toml.5", TOML),
    ("koala-agent-spool.7", SPOOL),
    ("koala-agent-guarantees.7", GUARANTEES),
    ("koala-agent-mappings.7", MAPPINGS),
    ("koala-agent-operations.7", OPERATIONS),
    ("koala-agent-log.7", LOG),
    ("koala-agent-containers.7", CONTAINERS),
    ("koala-agent-monitoring.7", MONITORING),
];

/// Three events of one person.
pub const EVENTS: &str = r#"{"type":"track","event":"Pricing Viewed","messageId":"m-1","timestamp":"2026-01-02T03:04:05Z","properties":{"email":"ana@acme.dev","phone":"+49 1","company":{"name":"Acme","phone":"+49 2"}}}
{"type":"track","event":"Signed Up","messageId":"m-2","properties":{"email":"ana@acme.dev"}}
{"type":"identify","messageId":"m-3","traits":{"email":"ana@acme.dev"}}
"#;

/// Returns the code blocks of one language in a Markdown text.
pub fn fenced<'a>(markdown: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    markdown.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// Returns the lines of a page's section.
pub fn section<'a>(page: &'a str, title: &str) -> Vec<&'a str> {
    let heading = format!(".Sh {title}");
    let mut lines = page.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "there is no section {title}");
    lines.take_while(|line| !line.starts_with(".Sh ")).collect()
}

/// Returns the literal blocks among these lines, as a reader sees them.
pub fn literal(lines: &[&str]) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = lines.iter();
    while let Some(line) = lines.next() {
        if line.starts_with(".Bd -literal") {
            let block = lines.by_ref().take_while(|line| **line != ".Ed");
            blocks.push(block.map(|line| unescaped(line) + "\n").collect());
        }
    }
    blocks
}

/// Escapes of mdoc(7) and their characters. Where they are missing, some formatters print typographic quotes and hyphens,
/// and an example that is pasted from the page fails.
pub const ESCAPES: [(&str, &str); 7] = [
    ("\\(aq", "'"),
    ("\\(ga", "`"),
    ("\\(ha", "^"),
    ("\\(ti", "~"),
    ("\\-", "-"),
    ("\\&", ""),
    ("\\e", "\\"),
];

pub fn unescaped(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        if first == '\\' {
            let (escape, character) = ESCAPES
                .into_iter()
                .find(|(escape, _)| rest.starts_with(escape))
                .unwrap_or_else(|| panic!("an unknown escape: {line}"));
            text += character;
            rest = &rest[escape.len()..];
        } else {
            assert!(!"'`^~-".contains(first), "{first} must be escaped: {line}");
            text.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    text
}

/// Splits blocks into pairs of an expression and its value, which follows in a line `=> VALUE`.
pub fn answered(blocks: &[String]) -> Vec<(String, Value)> {
    let mut pairs = Vec::new();
    let mut text = String::new();
    for line in blocks.iter().flat_map(|block| block.lines()) {
        match line.strip_prefix("=> ") {
            Some(answer) => pairs.push((std::mem::take(&mut text), parsed(answer))),
            None => text += &format!("{line}\n"),
        }
    }
    assert_eq!(text, "", "without an answer");
    pairs
}

pub fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}
