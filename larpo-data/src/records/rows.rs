//! JSON rows with their line numbers, and fields read with complaints that name the place.

use crate::error::{Error, RecordError, Result};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::path::Path;

/// One JSON object of a file.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub(crate) path: &'a Path,
    /// Line on which the object starts, counted from 1.
    pub(crate) line: usize,
    /// The object as written.
    pub(crate) text: &'a str,
    pub(crate) object: Map<String, Value>,
}

/// Splits a text into its rows: one object a line, or one array of objects.
pub(crate) fn parse_rows<'a>(path: &'a Path, text: &'a str) -> Result<Vec<Row<'a>>> {
    // Editors on Windows like to put a byte-order mark in front.
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
    if text.trim_start().starts_with('[') {
        return parse_array(path, text);
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(number, line)| parse_row(path, number + 1, line)).collect()
}

fn parse_row<'a>(path: &'a Path, line: usize, text: &'a str) -> Result<Row<'a>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(Row { path, line, text, object }),
        Ok(other) => Err(RecordError {
            path: path.into(),
            line,
            field: String::new(),
            expected: "a JSON object".into(),
            found: describe(&other),
            mend: "Each row is an object, for example {\"prompt\": \"2 + 2 =\"}".into(),
        }
        .into()),
        Err(error) => Err(json_error(path, line, text, &error)),
    }
}

fn parse_array<'a>(path: &'a Path, text: &'a str) -> Result<Vec<Row<'a>>> {
    let items: Vec<&'a RawValue> = serde_json::from_str(text).map_err(|error| {
        let bad_line = text.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
        json_error(path, error.line().max(1), bad_line, &error)
    })?;
    let mut line = 1;
    let mut at = 0;
    let mut rows = Vec::with_capacity(items.len());
    for item in items {
        // The items are slices of the text, so their distance from its start gives their lines.
        let start = item.get().as_ptr() as usize - text.as_ptr() as usize;
        line += text[at..start].matches('\n').count();
        at = start;
        rows.push(parse_row(path, line, item.get())?);
    }
    Ok(rows)
}

fn json_error(path: &Path, line: usize, text: &str, error: &serde_json::Error) -> Error {
    let column = error.column();
    let mend = if error.is_eof() {
        "The row is cut short: complete it, on one line, or delete it".to_string()
    } else if ["NaN", "Infinity", "nan", "inf"].iter().any(|word| text[floor(text, column)..].starts_with(word)) {
        "JSON has no NaN and no infinity: write a finite number or leave the field out".to_string()
    } else if error.to_string().contains("number out of range") {
        "Write a number that a 64-bit floating-point number can hold".to_string()
    } else {
        "Write one JSON object per line; a newline inside a text is written \\n".to_string()
    };
    // The position is given in front; the parser's own, always "at line 1", would mislead.
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    RecordError {
        path: path.into(),
        line,
        field: String::new(),
        expected: "valid JSON".into(),
        found: format!("{message} at column {column}"),
        mend,
    }
    .into()
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
        Value::Array(items) => format!("an array of {} elements", items.len()),
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
        self.error(field, expected, found, format!("{mend}, for example {example}"))
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
                let mend = format!("Write the text in quotes, for example \"{field}\": \"some text\"");
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
        let mend = || format!("Write it like \"{field}\": {example}");
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

/// A string.
pub(crate) fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_string)
}
