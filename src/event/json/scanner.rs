//! Finds where one JSON value ends in text that arrives piece by piece.
//!
//! `serde_json` needs the whole text: each new piece would be parsed from the start of the value again, which is quadratic
//! for a value that comes in many pieces. The scanner keeps its state between pieces instead, so every byte is looked at
//! once. It checks what separates values (brackets, commas, colons, quotes, line breaks in strings) and takes numbers,
//! literals and escapes as they come: whoever parses the value checks those.

use memchr::memchr2;

/// The end of a piece of text for a [`ValueScanner`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scanned {
    /// The value goes on, or may go on, in the next piece.
    Unfinished,
    /// The value ends before this byte of the piece.
    End(usize),
    /// This byte of the piece cannot stand where it does.
    Bad(usize),
}

/// What may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Value,
    FirstElementOrEnd,
    FirstNameOrEnd,
    Name,
    Colon,
    CommaOrEnd,
    /// The rest of a string; then this.
    String {
        is_escaped: bool,
        is_name: bool,
    },
    /// The rest of a number or literal.
    Scalar,
}

/// The state between two pieces of one value.
#[derive(Debug, Clone)]
pub struct ValueScanner {
    expect: Expect,
    /// The brackets that are open, from the outermost; a set bit is an object.
    open: Vec<u64>,
    depth: usize,
    content: usize,
}

impl ValueScanner {
    /// A scanner before the first byte of a value.
    pub fn new() -> ValueScanner {
        ValueScanner { expect: Expect::Value, open: Vec::new(), depth: 0, content: 0 }
    }

    /// The number of bytes so far that are no white space outside strings.
    pub fn content(&self) -> usize {
        self.content
    }

    /// Whether the text so far is a value if nothing follows.
    pub fn may_end(&self) -> bool {
        self.depth == 0 && self.expect == Expect::Scalar
    }

    /// Scans the next piece of the value. Nothing more is to be scanned after an end or a bad byte.
    pub fn scan(&mut self, piece: &[u8]) -> Scanned {
        let mut at = 0;
        while let Some(&byte) = piece.get(at) {
            if let Expect::String { is_escaped, is_name } = self.expect {
                match self.scan_string(piece, at, is_escaped, is_name) {
                    Ok(next) => at = next,
                    Err(bad) => return Scanned::Bad(bad),
                }
            } else if matches!(byte, b' ' | b'\n' | b'\r' | b'\t') && self.expect != Expect::Scalar {
                at += 1;
                continue;
            } else if self.expect == Expect::Scalar && is_scalar(byte) {
                let rest = piece[at..].iter().position(|byte| !is_scalar(*byte));
                let end = rest.map_or(piece.len(), |rest| at + rest);
                self.content += end - at;
                at = end;
                continue;
            } else if self.expect == Expect::Scalar {
                // The byte belongs to what is around the number or literal.
                if self.depth == 0 {
                    return Scanned::End(at);
                }
                self.expect = Expect::CommaOrEnd;
                continue;
            } else {
                let Some(next) = self.next(byte) else { return Scanned::Bad(at) };
                self.expect = next;
                self.content += 1;
                at += 1;
            }
            if self.depth == 0 && self.expect == Expect::CommaOrEnd {
                return Scanned::End(at);
            }
        }
        Scanned::Unfinished
    }

    /// What may follow the byte, which is outside strings and scalars.
    fn next(&mut self, byte: u8) -> Option<Expect> {
        use Expect::{Colon, CommaOrEnd, FirstElementOrEnd, FirstNameOrEnd, Name, Scalar, String, Value};
        Some(match (self.expect, byte) {
            (FirstElementOrEnd, b']') | (FirstNameOrEnd, b'}') => self.close(),
            (FirstNameOrEnd | Name, b'"') => String { is_escaped: false, is_name: true },
            (Colon, b':') => Value,
            (CommaOrEnd, b',') if self.is_in_object() => Name,
            (CommaOrEnd, b',') => Value,
            (CommaOrEnd, b'}') if self.is_in_object() => self.close(),
            (CommaOrEnd, b']') if !self.is_in_object() => self.close(),
            (Value | FirstElementOrEnd, b'{') => self.open(true, FirstNameOrEnd),
            (Value | FirstElementOrEnd, b'[') => self.open(false, FirstElementOrEnd),
            (Value | FirstElementOrEnd, b'"') => String { is_escaped: false, is_name: false },
            (Value | FirstElementOrEnd, byte) if is_scalar(byte) => Scalar,
            _ => return None,
        })
    }

    fn open(&mut self, is_object: bool, then: Expect) -> Expect {
        let (word, bit) = (self.depth / 64, self.depth % 64);
        self.open.truncate(word + 1);
        if self.open.len() == word {
            self.open.push(0);
        }
        if let Some(open) = self.open.last_mut() {
            *open = *open & !(1 << bit) | u64::from(is_object) << bit;
        }
        self.depth += 1;
        then
    }

    fn close(&mut self) -> Expect {
        self.depth -= 1;
        Expect::CommaOrEnd
    }

    fn is_in_object(&self) -> bool {
        let Some(last) = self.depth.checked_sub(1) else { return false };
        self.open.get(last / 64).is_some_and(|open| open >> (last % 64) & 1 == 1)
    }

    /// Scans the rest of a string from `at`. Returns the byte after it, or the end of the piece; the error is a control
    /// character in it.
    fn scan_string(
        &mut self,
        piece: &[u8],
        mut at: usize,
        is_escaped: bool,
        is_name: bool,
    ) -> Result<usize, usize> {
        let from = at;
        let mut next = Expect::String { is_escaped: false, is_name };
        let control = |from: usize, to: usize| piece[from..to].iter().position(|byte| *byte < b' ');
        if is_escaped {
            at += 1;
        }
        let end = loop {
            let Some(found) = piece.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) else {
                break piece.len();
            };
            at += found + 1;
            if piece[at - 1] == b'"' {
                next = if is_name { Expect::Colon } else { Expect::CommaOrEnd };
                break at;
            }
            if at == piece.len() {
                next = Expect::String { is_escaped: true, is_name };
                break at;
            }
            at += 1;
        };
        if let Some(bad) = control(from, end) {
            return Err(from + bad);
        }
        (self.expect, self.content) = (next, self.content + end - from);
        Ok(end)
    }
}

/// Whether the byte may be part of a number or literal.
fn is_scalar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan(text: &str) -> Scanned {
        ValueScanner::new().scan(text.as_bytes())
    }

    #[test]
    fn a_value_ends_where_it_ends_and_a_bad_byte_is_found_where_it_stands() {
        use Scanned::{Bad, End, Unfinished};
        for (text, want) in [
            ("", Unfinished),
            ("{}", End(2)),
            (" [] ", End(3)),
            ("{}{}", End(2)),
            (r#"{"a":[1,{"b":"}\"]"}],"c":null} x"#, End(31)),
            ("12 ", End(2)),
            ("12", Unfinished),
            ("true{}", End(4)),
            (r#""a" "b""#, End(3)),
            (r#"{"a":1"#, Unfinished),
            (r#"{"a":1,}"#, Bad(7)),
            (r#"{"a" 1}"#, Bad(5)),
            (r#"{"a":}"#, Bad(5)),
            ("{a:1}", Bad(1)),
            ("[1,]", Bad(3)),
            ("[1}", Bad(2)),
            (r#"{"a":1]"#, Bad(6)),
            ("[1 2]", Bad(3)),
            (r#"{"a":[1,2"#, Unfinished),
            ("{\"a\":[1,2\n{\"b\":1}", Bad(10)),
            ("{\"a\n", Bad(3)),
            ("{\"a\\\n", Bad(4)),
            ("]", Bad(0)),
            (",", Bad(0)),
            ("\u{fc}", Bad(0)),
        ] {
            assert_eq!(scan(text), want, "{text}");
        }
        let deep = "[{\"a\":".repeat(100_000);
        assert_eq!(scan(&deep), Unfinished);
        let all = deep + "1" + &"}]".repeat(100_000);
        assert_eq!(scan(&all), End(all.len()));
    }

    #[test]
    fn white_space_outside_strings_is_no_content() {
        let mut scanner = ValueScanner::new();
        scanner.scan(b"{ \"a b\" :\n [ 1 , tr");
        scanner.scan(b"ue ] }");
        assert_eq!(scanner.content(), r#"{"a b":[1,true]}"#.len());
    }

    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("-1.5e+3".to_owned()),
            any::<String>().prop_map(|text| serde_json::Value::from(text).to_string()),
        ];
        let space = "[ \n]{0,2}";
        leaf.prop_recursive(4, 40, 5, move |inner| {
            let item = (space, inner, space).prop_map(|(before, value, after)| before + &value + &after);
            prop_oneof![
                prop::collection::vec(item.clone(), 0..5).prop_map(|items| format!("[{}]", items.join(","))),
                prop::collection::vec(item, 0..5).prop_map(|items| {
                    let members = items.iter().enumerate().map(|(n, item)| format!("\"{n}\" :{item}"));
                    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn pieces_change_nothing_and_valid_json_ends_at_its_end(
            text in json(), cuts in prop::collection::vec(0usize..200, 0..6), damage in 0usize..400, by in any::<u8>(),
        ) {
            let mut bytes = (text.clone() + ",").into_bytes();
            if let Some(byte) = bytes.get_mut(damage) {
                *byte = by;
            }
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < bytes.len()).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let whole = ValueScanner::new().scan(&bytes);
            let (mut scanner, mut from, mut pieced) = (ValueScanner::new(), 0, Scanned::Unfinished);
            for cut in cuts {
                pieced = match scanner.scan(&bytes[from..cut]) {
                    Scanned::Unfinished => Scanned::Unfinished,
                    Scanned::End(at) => Scanned::End(from + at),
                    Scanned::Bad(at) => Scanned::Bad(from + at),
                };
                from = cut;
                if pieced != Scanned::Unfinished {
                    break;
                }
            }
            prop_assert_eq!(whole, pieced);
            if damage > text.len() {
                let end = text.trim_end().len();
                prop_assert_eq!(whole, Scanned::End(end));
            }
            if let Ok(first) = std::str::from_utf8(&bytes)
                && let Some(Ok(_)) = serde_json::Deserializer::from_str(first).into_iter::<serde::de::IgnoredAny>().next()
            {
                prop_assert!(matches!(whole, Scanned::End(_)), "{whole:?} of {first:?}");
            }
        }
    }
}
