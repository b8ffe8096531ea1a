//! Flat YAML: names with a scalar or a list of scalars each. Numbers and words stay the text that they are written as;
//! what they mean is up to the flag.
//!
//! Whatever could grow out of bounds (aliases, anything nested deeper than one list, large files) is refused where it
//! begins.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use std::fmt::Write;

/// Largest file in bytes; settings are a few thousand.
pub const MAX_BYTES: u64 = 1 << 20;

/// `key: value` on a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    /// Where the key stands, from 1.
    pub line: usize,
    pub value: Value,
}

/// What stands after the colon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    One(Scalar),
    List(Vec<Scalar>),
}

/// A word, a number or a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar {
    pub text: String,
    /// Written without quotes, so that it may mean something else than a text.
    pub plain: bool,
}

/// What is wrong with a file, and on which line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub line: usize,
    pub message: String,
}

fn problem<T>(span: Span, message: impl Into<String>) -> Result<T, Problem> {
    Err(Problem { line: span.start.line(), message: message.into() })
}

/// The entries of a file in order.
///
/// # Errors
/// Text that is no YAML, or YAML that is not flat.
pub fn read(text: &str) -> Result<Vec<Entry>, Problem> {
    let mut events = Parser::new_from_str(text);
    let mut next = || match events.next() {
        Some(Ok(event)) => Ok(event),
        Some(Err(error)) => {
            Err(Problem { line: error.marker().line(), message: format!("not YAML: {}", error.info()) })
        }
        None => Err(Problem { line: text.lines().count().max(1), message: "not YAML: it ends too early".into() }),
    };
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        match next()? {
            (Event::StreamStart | Event::DocumentStart(_), _) => {}
            // An empty file, or one of comments.
            (Event::StreamEnd, _) => return Ok(entries),
            (Event::Scalar(text, ..), span) if !text.is_empty() && text != "~" => {
                return problem(span, "expected `name: value` on every line");
            }
            (Event::Scalar(..) | Event::DocumentEnd, _) => {}
            (Event::MappingStart(anchor, tag), span) => {
                unadorned(span, anchor, tag.is_some())?;
                break;
            }
            (_, span) => return problem(span, "expected `name: value` on every line, not a list"),
        }
    }
    loop {
        let (key, line) = match next()? {
            (Event::MappingEnd, _) => break,
            (Event::Scalar(key, _, anchor, tag), span) => {
                unadorned(span, anchor, tag.is_some())?;
                (key.into_owned(), span.start.line())
            }
            (_, span) => return problem(span, "expected the name of a flag"),
        };
        let value = match next()? {
            (Event::SequenceStart(anchor, tag), span) => {
                unadorned(span, anchor, tag.is_some())?;
                let mut items = Vec::new();
                loop {
                    match next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, span) => items.push(scalar_of(&key, event, span)?),
                    }
                }
                Value::List(items)
            }
            (event, span) => Value::One(scalar_of(&key, event, span)?),
        };
        entries.push(Entry { key, line, value });
    }
    loop {
        match next()? {
            (Event::StreamEnd, _) => return Ok(entries),
            (Event::DocumentEnd, _) => {}
            (_, span) => return problem(span, "a second document; all settings stand in one"),
        }
    }
}

fn scalar_of(key: &str, event: Event, span: Span) -> Result<Scalar, Problem> {
    match event {
        Event::Scalar(text, style, anchor, tag) => {
            unadorned(span, anchor, tag.is_some())?;
            Ok(Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain })
        }
        Event::Alias(_) => problem(span, format!("{key}: aliases (`*name`) are not read; write the value out")),
        _ => problem(span, format!("{key}: expected a value or a list of values, nothing nested")),
    }
}

/// Refuses anchors and tags, which a flat file has no use for.
fn unadorned(span: Span, anchor: usize, tag: bool) -> Result<(), Problem> {
    match (anchor, tag) {
        (0, false) => Ok(()),
        (0, true) => problem(span, "tags (`!name`) are not read; leave them out"),
        _ => problem(span, "anchors (`&name`) are not read; write the value out where it is needed"),
    }
}

impl Scalar {
    /// Whether it stands for "no value".
    pub fn is_null(&self) -> bool {
        self.plain && matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }

    /// `true` or `false`, if it is one.
    pub fn boolean(&self) -> Option<bool> {
        match self.text.as_str() {
            "true" | "True" | "TRUE" if self.plain => Some(true),
            "false" | "False" | "FALSE" if self.plain => Some(false),
            _ => None,
        }
    }
}

/// `text` as a scalar that [`read`] gives back unchanged, also inside `[…]`.
pub fn write(text: &str) -> String {
    let special = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '+' | '-');
    let scalar = Scalar { text: text.into(), plain: true };
    let inside = text.strip_suffix(word).unwrap_or(",");
    if inside.chars().all(|c| word(c) || c == ':')
        && text.starts_with(word)
        && !scalar.is_null()
        && scalar.boolean().is_none()
        && !matches!(text, "-" | "---" | "...")
    {
        return text.into();
    }
    if !text.contains(special) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        // Writing to a String cannot fail.
        let _ = match c {
            '"' | '\\' => write!(out, "\\{c}"),
            '\n' => write!(out, "\\n"),
            '\t' => write!(out, "\\t"),
            c if special(c) => write!(out, "\\u{:04x}", u32::from(c)),
            c => write!(out, "{c}"),
        };
    }
    out + "\""
}

#[cfg(test)]
mod tests {
    use super::*;
    use larpo_core::rng::{CounterRng, Purpose};

    fn one(text: &str, plain: bool) -> Value {
        Value::One(Scalar { text: text.into(), plain })
    }

    fn refusal(text: &str) -> (usize, String) {
        let problem = read(text).expect_err("not flat");
        (problem.line, problem.message)
    }

    #[test]
    fn names_and_values_with_their_lines() {
        let text = "# settings\nlearning_rate: 5e-4\n\nout: \"a\\n b\" # text\nt: [1.0, '0.8']\nk:\n  - 1\n  - x: y\n";
        assert_eq!(refusal(text), (8, "k: expected a value or a list of values, nothing nested".into()));
        let entries = read(&text.replace("x: y", "z")).expect("flat");
        let keys: Vec<_> = entries.iter().map(|e| (e.key.as_str(), e.line)).collect();
        assert_eq!(keys, [("learning_rate", 2), ("out", 4), ("t", 5), ("k", 6)]);
        assert_eq!(entries[0].value, one("5e-4", true));
        assert_eq!(entries[1].value, one("a\n b", false));
        let scalar = |text: &str, plain| Scalar { text: text.into(), plain };
        assert_eq!(entries[2].value, Value::List(vec![scalar("1.0", true), scalar("0.8", false)]));
        for empty in ["", "# nothing\n", "---\n", "---\n...\n"] {
            assert_eq!(read(empty), Ok(vec![]), "{empty:?}");
        }
    }

    #[test]
    fn what_is_not_flat_is_refused_where_it_begins() {
        let bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n";
        assert_eq!(refusal(bomb).0, 1);
        assert!(refusal("a: 1\nb: *a\n").1.contains("anchor") || refusal("a: 1\nb: *a\n").1.contains("not YAML"));
        assert_eq!(refusal(&format!("a: {}", "[".repeat(100_000))).0, 1);
        assert!(refusal(&"- ".repeat(100_000)).1.contains("not a list"));
        assert!(refusal(&"a:\n ".repeat(10)).1.contains("nested"));
        assert!(refusal("just words\n").1.contains("name: value"));
        assert_eq!(refusal("a: 1\n---\nb: 2\n").0, 2);
        assert!(refusal("a: !!int 3\n").1.contains("tags"));
        assert_eq!(refusal("a: 1\nb: 'x\n").0, 2);
    }

    #[test]
    fn written_texts_are_read_back() {
        let random = CounterRng::new(1, Purpose::Bench);
        let letters: Vec<char> =
            "ab1 :,-#'\"\\\n\t[]{}&*!|>%@`~.=?é\u{85}\u{2028}\u{feff}\u{1}x/+_\r".chars().collect();
        let plain = ["", "~", "null", "true", "-", "---", "a:", "a: b", "1.0,0.8", r"\n\n", "C:\\x", "bpe:512", "a #b"];
        let drawn = (0..20_000u32).map(|i| {
            let uniform = |at: u32, n: usize| (random.uniform([i, at, 0, 0]) * n as f64) as usize;
            (1..=1 + uniform(0, 8) as u32).map(|at| letters[uniform(at, letters.len())]).collect()
        });
        for text in plain.map(String::from).into_iter().chain(drawn) {
            let written = write(&text);
            let entries = read(&format!("a: {written}  # note\nb: [{written}, {written}]\n"));
            let entries = entries.unwrap_or_else(|p| panic!("{text:?} as {written}: {p:?}"));
            let Value::One(scalar) = &entries[0].value else { panic!("{written}") };
            assert_eq!(scalar.text, text, "{written}");
            assert!(!scalar.is_null() && scalar.boolean().is_none(), "{written}");
            let Value::List(items) = &entries[1].value else { panic!("{written}") };
            assert!(items.len() == 2 && items.iter().all(|item| item.text == text), "{written}: {items:?}");
        }
    }

    /// 100,000 seeded mutations neither panic nor hang, and what is accepted is no larger than what was read.
    #[test]
    fn mutated_files_are_read_or_refused() {
        let base = "# c\nlearning_rate: 5e-4\nout: \"a\\n\\u00e9 b\" # t\nt: [1.0, '0.8']\nk:\n  - 1\n  - >-\n    z\n? q\n: |\n  w\n";
        let random = CounterRng::new(2, Purpose::Bench);
        let parts =
            ["[", "]", "{", "}", "&a ", "*a", "!!t ", ": ", "- ", "\n", "\n  ", "'", "\"", "|", ">", "%", "\\u", "\0"];
        for i in 0..100_000u32 {
            let uniform = |at: u32, n: usize| (random.uniform([i, at, 0, 0]) * n as f64) as usize;
            let mut text: Vec<char> = base.chars().collect();
            for edit in 0..1 + uniform(0, 4) as u32 {
                let at = uniform(4 * edit + 1, text.len());
                let until = (at + uniform(4 * edit + 2, 6)).min(text.len());
                let part = parts[uniform(4 * edit + 3, parts.len())].repeat(1 + uniform(4 * edit + 4, 3));
                text.splice(at..until, part.chars());
            }
            let text: String = text.into_iter().collect();
            if let Ok(entries) = read(&text) {
                let size = |value: &Value| match value {
                    Value::One(scalar) => scalar.text.len(),
                    Value::List(items) => items.iter().map(|item| item.text.len()).sum(),
                };
                assert!(
                    entries.iter().map(|e| e.key.len() + size(&e.value)).sum::<usize>() <= 2 * text.len(),
                    "{text:?}"
                );
            }
        }
    }
}
