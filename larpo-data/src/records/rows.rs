//! JSON rows with their line numbers, and fields read with complaints that name the place.

use crate::error::{Error, RecordError, Result};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;
use std::path::Path;

/// One JSON object of a file.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub(crate) path: &'a Path,
    /// Line on which the object starts, counted from 1.
    pub(crate) line: usize,
    /// The object as written in JSON.
    pub(crate) text: Cow<'a, str>,
    pub(crate) object: Map<String, Value>,
    /// The fields are cells of a table: texts, whatever they stand for.
    pub(crate) cells: bool,
}

/// One object of a text; `line` is where it starts.
pub(crate) fn parse_row<'a>(path: &'a Path, line: usize, text: &'a str) -> Result<Row<'a>> {
    match serde_json::from_str(text) {
        Ok(Strict(Value::Object(object))) => Ok(Row { path, line, text: Cow::Borrowed(text), object, cells: false }),
        Ok(Strict(other)) => Err(RecordError {
            path: path.into(),
            line,
            field: String::new(),
            expected: "a JSON object".into(),
            found: describe(&other),
            mend: "Each row is an object, for example {\"prompt\": \"2 + 2 =\"}".into(),
            element: None,
            of_the_file: false,
        }
        .into()),
        Err(error) => Err(json_error(path, line, text, "row", &error)),
    }
}

/// A JSON value in which no object has a name twice. The standard reading keeps the last one and drops the others without
/// a word.
struct Strict(Value);

const TWICE: &str = "is given twice";

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> std::result::Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(format!("`{name}` {TWICE}")));
            }
            let Strict(value) = fields.next_value()?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

/// The complaint about a `whole` (a row, an array) that is no JSON; `text` is the line that the parser stopped in.
pub(super) fn json_error(path: &Path, line: usize, text: &str, whole: &str, error: &serde_json::Error) -> Error {
    let column = error.column();
    // The position is given in front; the parser's own, always "at line 1", would mislead.
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    if let Some(name) = message.strip_suffix(TWICE) {
        return RecordError {
            path: path.into(),
            line,
            field: name.trim().trim_matches('`').into(),
            expected: "each name once in an object".into(),
            found: format!("the name a second time at column {column}"),
            mend: "Remove the one that is out of date".into(),
            element: None,
            of_the_file: false,
        }
        .into();
    }
    if let Some((start, word)) = not_finite(text, floor(text, column)) {
        return RecordError {
            path: path.into(),
            line,
            field: field_before(&text[..start]).unwrap_or_default(),
            expected: "a finite number".into(),
            found: format!("`{word}` at column {}", start + 1),
            mend: "JSON has no NaN and no infinity: write a finite number or leave the field out".into(),
            element: None,
            of_the_file: false,
        }
        .into();
    }
    let (found, mend) = match message.strip_prefix("EOF while parsing ") {
        Some(what) => {
            let inside = if what == "a string" { "a text" } else { what };
            let mend = match whole {
                "row" => {
                    "A row is one object on one line: put an object that is spread over several lines on one, several of them \
                     into an array, and complete or delete a row that was cut short"
                }
                _ => "The file is cut short: copy or download it again",
            };
            (format!("the end of the {whole} inside {inside}"), mend)
        }
        None => {
            let mut at = floor(text, column);
            if message == "expected ident" {
                // It stopped inside a word that begins like one of JSON's.
                at -= text[..at].chars().rev().take_while(char::is_ascii_alphabetic).count();
            }
            let (found, mend) = in_words(message, &text[at..], whole);
            (format!("{found} at column {column}"), mend)
        }
    };
    let expected = "valid JSON".into();
    let (path, field, mend) = (path.into(), String::new(), mend.into());
    RecordError { path, line, element: None, field, expected, found, mend, of_the_file: false }.into()
}

/// What the parser found, said so that it can be looked for, and the mend. `rest` is the text from where it stopped.
fn in_words(message: &str, rest: &str, whole: &str) -> (String, &'static str) {
    const ROW: &str = "Write one JSON object per line; a newline inside a text is written \\n";
    let word: String = rest.chars().take_while(|c| !c.is_whitespace() && !",:]}".contains(*c)).take(20).collect();
    let word = if word.is_empty() { rest.chars().take(1).collect() } else { word };
    match message {
        "expected value" | "expected ident" => (
            format!("`{word}`, which is no JSON value,"),
            "Texts stand in double quotes; the words of JSON are true, false and null. A plain text belongs into a file named .txt",
        ),
        "key must be a string" => {
            (format!("the name `{word}` without double quotes"), "Write it like {\"prompt\": \"2 + 2 =\"}")
        }
        "trailing comma" => ("a comma behind the last entry".into(), "Remove the comma"),
        "trailing characters" if whole == "row" => (format!("`{word}` behind the end"), ROW),
        "trailing characters" => (format!("`{word}` behind the end"), "Remove what stands behind the last bracket"),
        "recursion limit exceeded" => {
            ("arrays or objects too deep inside one another".into(), "Write them with fewer levels")
        }
        "expected `,` or `}`" => (format!("`{word}` where a comma or `}}` belongs"), "Put a comma between two fields"),
        "expected `,` or `]`" => (format!("`{word}` where a comma or `]` belongs"), "Put a comma between two elements"),
        "expected `:`" => (format!("`{word}` where a colon belongs"), "Write it like {\"prompt\": \"2 + 2 =\"}"),
        "invalid escape" => ("a backslash that begins no escape".into(), "Write a backslash inside a text as \\\\"),
        "invalid number" => ("a number in a form that JSON does not have".into(), "Write it like 10, 0.5 or 1e-3"),
        "number out of range" => {
            ("a number out of range".into(), "Write a number that a 64-bit floating-point number can hold")
        }
        message if message.starts_with("control character") => {
            ("a line break, tab or other control character inside a text".into(), "Write it as \\n, \\t or \\u0000")
        }
        message if message.contains("hex escape") || message.contains("surrogate") => {
            ("half of a character".into(), "Write the character itself, or both halves of it, such as \\ud83d\\ude00")
        }
        other => (other.into(), ROW),
    }
}

/// The word at byte `at`, with the byte it starts at, if it is what other programs write for NaN or an infinity. Where the
/// parser stops in it depends on the word: `nan` begins like `null`.
fn not_finite(text: &str, at: usize) -> Option<(usize, &str)> {
    let inside = |c: char| c.is_ascii_alphabetic() || "-+".contains(c);
    let start = text[..at].rfind(|c| !inside(c)).map_or(0, |before| before + 1);
    let start = (start..=at).find(|&start| text.is_char_boundary(start))?;
    let word = &text[start..];
    let word = &word[..word.find(|c| !inside(c)).unwrap_or(word.len())];
    let name = word.trim_start_matches(['-', '+']).to_ascii_lowercase();
    ["nan", "inf", "infinity"].contains(&name.as_str()).then_some((start, word))
}

/// The name of the field whose value the text ends in: what stands before the last `":`, which no text holds unescaped.
fn field_before(text: &str) -> Option<String> {
    let mut ends = text
        .match_indices('"')
        .map(|(at, _)| at)
        .filter(|&at| !text[..at].ends_with('\\') && text[at + 1..].trim_start().starts_with(':'));
    let end = ends.next_back()?;
    let start = text[..end].rfind('"')? + 1;
    Some(text[start..end].to_string())
}

/// The byte offset of a column (counted from 1), moved to the boundary of a character.
fn floor(text: &str, column: usize) -> usize {
    let mut at = column.saturating_sub(1).min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// A value in a few words, for "found …".
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) if s.chars().count() <= 40 => format!("the string {s:?}"),
        Value::String(s) => format!("the string {:?}…", s.chars().take(40).collect::<String>()),
        Value::Array(items) if items.len() == 1 => "an array of 1 element".into(),
        Value::Array(items) => format!("an array of {} elements", items.len()),
        Value::Object(map) if map.len() == 1 => "an object with 1 field".into(),
        Value::Object(map) => format!("an object with {} fields", map.len()),
    }
}

impl Row<'_> {
    /// Whether the field exists and is not null.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// The complaint about a field of this row.
    pub(crate) fn error(
        &self,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Error {
        RecordError {
            path: self.path.into(),
            line: self.line,
            field: field.into(),
            expected: expected.into(),
            found: found.into(),
            mend: mend.into(),
            element: None,
            of_the_file: false,
        }
        .into()
    }

    pub(crate) fn missing(&self, field: &str, expected: &str, example: &str) -> Error {
        let keys = self.object.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
        let (found, mend) = match self.object.get(field) {
            Some(_) => ("null".to_string(), "Fill the field"),
            None if keys.is_empty() => ("an empty object".to_string(), "Add the field"),
            None => (format!("only {keys}"), "Add the field"),
        };
        let mend = match self.twin(&[field]) {
            Some((twin, _)) => format!("Rename `{twin}` to `{field}`, if it is that"),
            None => mend.to_string(),
        };
        self.error(field, expected, found, format!("{mend}, for example {example}"))
    }

    /// A field of the row that is one of `names` but for capitals, blanks around it or an `s` at its end, and that name.
    pub(crate) fn twin<'n>(&self, names: &[&'n str]) -> Option<(&str, &'n str)> {
        let twins = |key: &str, name: &str| {
            let plain = key.trim().to_lowercase();
            let one = |name: &str| name.strip_suffix('s').unwrap_or(name).to_string();
            key != name && one(&plain) == one(name)
        };
        self.object.keys().find_map(|key| Some((key.as_str(), *names.iter().find(|name| twins(key, name))?)))
    }

    pub(crate) fn string(&self, field: &str) -> Result<&str> {
        match self.optional_string(field)? {
            Some(text) => Ok(text),
            None => Err(self.missing(field, "a string", &format!("\"{field}\": \"some text\""))),
        }
    }

    pub(crate) fn optional_string(&self, field: &str) -> Result<Option<&str>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => {
                let turns = other.as_array().is_some_and(|turns| turns.iter().all(|turn| turn.get("role").is_some()));
                let mend = match turns {
                    true => "A prompt that is a text has answers that are texts: write both as texts, or both as turns"
                        .into(),
                    false => format!("Write the text in quotes, for example \"{field}\": \"some text\""),
                };
                Err(self.error(field, "a string", describe(other), mend))
            }
        }
    }

    /// An array whose elements `convert` accepts; `None` where the field is absent. `what` names the array and
    /// `example` shows one.
    pub(crate) fn array<T>(
        &self,
        field: &str,
        what: &str,
        example: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let mend = || match self.cells {
            true => "A cell holds one text or number: write rows with lists as JSON".to_string(),
            false => format!("Write it like \"{field}\": {example}"),
        };
        let items = match self.get(field) {
            None => return Ok(None),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(self.error(field, what, describe(other), mend())),
        };
        let element = |(i, item): (usize, &Value)| {
            convert(item).ok_or_else(|| self.error(format!("{field}[{i}]"), what, describe(item), mend()))
        };
        items.iter().enumerate().map(element).collect::<Result<_>>().map(Some)
    }
}

/// A finite number.
pub(crate) fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|x| x.is_finite())
}

/// A whole number of 32 bits.
pub(crate) fn small(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok())
}

/// A verdict: true or false, also written 1 and 0, in a table as words.
pub(crate) fn verdict(row: &Row, value: &Value) -> Option<bool> {
    match value {
        Value::Bool(verdict) => Some(*verdict),
        Value::Number(n) if n.as_f64() == Some(1.0) => Some(true),
        Value::Number(n) if n.as_f64() == Some(0.0) => Some(false),
        Value::String(word) if row.cells && (word == "1" || word.eq_ignore_ascii_case("true")) => Some(true),
        Value::String(word) if row.cells && (word == "0" || word.eq_ignore_ascii_case("false")) => Some(false),
        _ => None,
    }
}

/// A string.
pub(crate) fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_string)
}
