//! Rows made elsewhere, with field names of their own.

use super::conversation::plain;
use super::rows::{Row, describe, number, text, verdict};
use super::source::Content;
use super::{OnBadRow, Sieve};
use crate::candidates;
use crate::error::{Error, RecordError, Result};
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;

/// The names of the fields to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// The prompt; a row may lack it.
    pub prompt: String,
    /// One response (a string) or several (an array of strings).
    pub response: String,
    /// The reference. With a name given, every row must have it.
    pub reference: Option<String>,
    /// A verdict or score made elsewhere: a truth value or number, or an array with one per response. With a name
    /// given, every row must have it.
    pub label: Option<String>,
    /// Further fields with one entry per response, beside those of candidate lists.
    pub lists: Vec<String>,
}

impl Default for Keys {
    /// `prompt` and `response`, no reference and no label.
    fn default() -> Self {
        Self { prompt: "prompt".into(), response: "response".into(), reference: None, label: None, lists: Vec::new() }
    }
}

/// One row of [`read_keyed_rows`].
#[derive(Debug, Clone, PartialEq)]
pub struct KeyedRow {
    /// Line of the file, counted from 1.
    pub line: usize,
    /// The prompt; empty where the row has none.
    pub prompt: String,
    /// The turns of the prompt as JSON, where it is a conversation: in its field, or beside its rendering in `messages`.
    pub conversation: Option<Arc<str>>,
    /// The responses; exactly one where the row holds a string.
    pub responses: Vec<String>,
    /// Whether the row holds an array of responses.
    pub is_list: bool,
    /// The reference, where a name for it was given.
    pub reference: Option<String>,
    /// One label per response (true = 1, false = 0), where a name for it was given; otherwise empty.
    pub labels: Vec<f64>,
    /// The whole row, in the order of its fields.
    pub fields: Map<String, Value>,
    /// Names of the row's fields that hold an array with one entry per response, the responses included; empty where
    /// the row holds one response.
    pub per_response: Vec<String>,
}

/// Reads rows whose fields have the given names, and what is wrong with the rows left out, if malformed ones are to be.
/// The file is JSONL, an array of objects or comma-separated values, perhaps packed with gzip.
///
/// # Errors
/// A file that cannot be read or has no rows, a field that is missing or of another type, labels whose number is not
/// that of the responses.
pub fn read_keyed_rows(
    path: impl AsRef<Path>,
    keys: &Keys,
    on_bad_row: OnBadRow,
) -> Result<(Vec<KeyedRow>, Vec<RecordError>)> {
    let path = path.as_ref();
    let content = Content::read(path)?;
    let mut sieve = Sieve::new(content.format, on_bad_row);
    let mut rows = Vec::new();
    for (index, row) in content.rows(path)?.into_iter().enumerate() {
        rows.extend(sieve.pass(index, row.and_then(|row| keyed_row(row, keys)))?);
    }
    if rows.is_empty() {
        return Err(sieve.nothing_left(path, || Error::Unrecognised {
            path: path.into(),
            found: "the file has no rows".into(),
            mend: format!("Write one JSON object per line, with at least the field `{}`", keys.response),
        }));
    }
    sieve.settle()?;
    Ok((rows, sieve.bad))
}

fn keyed_row(row: Row, keys: &Keys) -> Result<KeyedRow> {
    let field = &keys.response;
    let (responses, is_list) = match row.get(field) {
        None => return Err(row.missing(field, "a string or an array of strings", &format!("\"{field}\": \"a text\""))),
        Some(Value::String(one)) => (vec![one.clone()], false),
        Some(_) => {
            let several = row.array(field, "a string or an array of strings", r#"["one", "two"]"#, text)?;
            match several.unwrap_or_default() {
                none if none.is_empty() => {
                    let mend = "Give the row a response, or delete it";
                    return Err(row.error(field, "at least one response", "an empty array", mend));
                }
                several => (several, true),
            }
        }
    };
    let reference = keys.reference.as_ref().map(|key| row.string(key).map(str::to_string)).transpose()?;
    let labels = match &keys.label {
        None => Vec::new(),
        Some(key) => labels(&row, key, responses.len(), is_list)?,
    };
    let turns = match row.get(&keys.prompt) {
        Some(Value::Array(_)) => Some(row.turns(&keys.prompt)?),
        _ if row.has("messages") => Some(row.turns("messages")?),
        _ => None,
    };
    let prompt = match (turns, row.get(&keys.prompt)) {
        (Some(turns), Some(Value::Array(_)) | None) => turns.iter().map(plain).collect::<Vec<_>>().join("\n"),
        _ => row.optional_string(&keys.prompt)?.unwrap_or_default().to_string(),
    };
    let conversation = turns.map(|turns| Value::from(turns).to_string().into());
    let per_response = if is_list { per_response(&row, keys, responses.len())? } else { Vec::new() };
    Ok(KeyedRow {
        line: row.line,
        prompt,
        conversation,
        responses,
        is_list,
        reference,
        labels,
        fields: row.object,
        per_response,
    })
}

/// The fields with one entry per response; an array of another length is a fault of the row.
fn per_response(row: &Row, keys: &Keys, count: usize) -> Result<Vec<String>> {
    let named = [&keys.response].into_iter().chain(&keys.label).chain(&keys.lists).map(String::as_str);
    let mut names: Vec<String> = Vec::new();
    for name in named.chain(candidates::PER_RESPONSE) {
        let Some(value) = row.get(name).filter(|_| !names.iter().any(|seen| seen == name)) else { continue };
        match value {
            Value::Array(items) if items.len() == count => names.push(name.to_string()),
            other => {
                let mend =
                    "Keep one element per response in every array: delete or add elements at the same place in all";
                return Err(row.error(
                    name,
                    format!("an array of {count} elements, one per response"),
                    describe(other),
                    mend,
                ));
            }
        }
    }
    Ok(names)
}

fn labels(row: &Row, key: &str, count: usize, is_list: bool) -> Result<Vec<f64>> {
    const WHAT: &str = "true, false or a number";
    match row.get(key) {
        None => Err(row.missing(key, WHAT, &format!("\"{key}\": true"))),
        Some(Value::Array(_)) if is_list => {
            let labels = row.array(key, "an array of truth values or numbers", "[true, false]", |v| label(row, v))?;
            let labels = labels.unwrap_or_default();
            if labels.len() != count {
                let found = format!("{} labels", labels.len());
                return Err(row.error(
                    key,
                    format!("one label for each of the {count} responses"),
                    found,
                    "Correct it",
                ));
            }
            Ok(labels)
        }
        Some(value) => match label(row, value) {
            Some(one) if count == 1 && !is_list => Ok(vec![one]),
            _ => {
                let expected = if is_list { "an array with one label per response" } else { WHAT };
                Err(row.error(key, expected, describe(value), "Correct it"))
            }
        },
    }
}

fn label(row: &Row, value: &Value) -> Option<f64> {
    verdict(row, value).map(|verdict| f64::from(u8::from(verdict))).or_else(|| number(value))
}
