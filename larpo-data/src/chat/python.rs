//! Values as Python writes them: `str`, `repr` and `json.dumps`.

use super::guard::{NODE, spend};
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Levels of lists and objects inside one another.
const DEPTH: usize = 128;

/// `str(value)`: texts as they are, everything else as [`repr`] has it; an undefined value leaves nothing.
pub fn display(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::String => Ok(value.to_string()),
        _ => {
            let mut out = String::new();
            repr(&mut out, value, 0)?;
            Ok(out)
        }
    }
}

fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, "a value is nested too deeply")
}

/// Bytes of a text at most once it is escaped.
fn escaped_length(text: &str) -> u64 {
    let escaped =
        text.bytes().filter(|b| !(b' '..0x7f).contains(b) || matches!(b, b'"' | b'\'' | b'\\' | b'<' | b'>' | b'&'));
    (text.len() + 5 * escaped.count()) as u64
}

/// `repr(value)`.
fn repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(too_deep());
    }
    spend(NODE)?;
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            spend(escaped_length(text))?;
            quoted(out, text);
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(out, &item, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(out, &key, depth + 1)?;
                out.push_str(": ");
                repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        // Functions and the like have no text of their own.
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// A number: whole ones as they are, others in the fewest digits that read back the same, with an exponent below 1e-4 and
/// from 1e16 on.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(x) = f64::try_from(value.clone()) else { return value.to_string() };
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if x != 0.0 && !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{x:?}"),
    }
}

/// A text in quotes: single ones, unless it holds single ones and no double ones.
fn quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// The arguments of `json.dumps`.
pub struct Json {
    /// Characters beyond ASCII as `\uXXXX`.
    pub ensure_ascii: bool,
    /// Spaces of a level; None writes one line.
    pub indent: Option<usize>,
    /// Between items, and between key and value.
    pub separators: Option<Vec<String>>,
    /// Keys in order.
    pub sort_keys: bool,
}

impl Json {
    /// `json.dumps(value)`.
    pub fn dumps(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(&mut out, value, 0)?;
        Ok(out)
    }

    /// Between items, and between key and value.
    fn separators(&self) -> Result<(&str, &str), Error> {
        match (&self.separators, self.indent) {
            (None, None) => Ok((", ", ": ")),
            (None, Some(_)) => Ok((",", ": ")),
            (Some(two), _) if two.len() == 2 => Ok((&two[0], &two[1])),
            _ => Err(Error::new(ErrorKind::InvalidOperation, "`separators` of tojson takes two texts")),
        }
    }

    fn line(&self, out: &mut String, level: usize) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * level));
        }
    }

    fn write(&self, out: &mut String, value: &Value, level: usize) -> Result<(), Error> {
        if level > DEPTH {
            return Err(too_deep());
        }
        spend(NODE)?;
        let (comma, colon) = self.separators()?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(match &number(value)[..] {
                "nan" => "NaN",
                "inf" => "Infinity",
                "-inf" => "-Infinity",
                number => number,
            }),
            ValueKind::String => {
                let text = value.as_str().unwrap_or_default();
                spend(escaped_length(text))?;
                self.text(out, text);
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push_str(comma);
                    }
                    self.line(out, level + 1);
                    self.write(out, item, level + 1)?;
                }
                if !items.is_empty() {
                    self.line(out, level);
                }
                out.push(']');
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                out.push('{');
                for (i, key) in keys.iter().enumerate() {
                    if i > 0 {
                        out.push_str(comma);
                    }
                    self.line(out, level + 1);
                    match key.as_str() {
                        Some(text) => self.text(out, text),
                        None => {
                            let mut text = String::new();
                            self.write(&mut text, key, level + 1)?;
                            self.text(out, &text);
                        }
                    }
                    out.push_str(colon);
                    self.write(out, &value.get_item(key)?, level + 1)?;
                }
                if !keys.is_empty() {
                    self.line(out, level);
                }
                out.push('}');
            }
            kind => {
                let problem = format!("tojson cannot write a value that is {kind}");
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        }
        Ok(())
    }

    fn text(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ensure_ascii && !c.is_ascii()) => {
                    let mut units = [0; 2];
                    c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
