//! Data sets made of JSON rows, and plain text.
//!
//! [`read_dataset`] looks at the first row and says what a file holds: [`Example`]s (prompts, with or without
//! completions), ranked lists ([`CandidateList`]) or one text. [`read_keyed_rows`] reads responses under any field
//! names. Files may be JSONL (one object a line, empty lines allowed) or one JSON array of objects. Every complaint
//! names file, line and field.

mod keyed;
pub(crate) mod rows;

pub use keyed::{KeyedRow, Keys, read_keyed_rows};

use crate::candidates::{self, CandidateList};
use crate::error::{Error, Result};
use crate::files;
use rows::{Row, parse_rows};
use std::collections::BTreeSet;
use std::path::Path;

/// A prompt, with what is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Row of the file, counted from 0.
    pub index: usize,
    /// Line of the file, counted from 1.
    pub line: usize,
    /// The text before the response.
    pub prompt: String,
    /// A response to learn from.
    pub completion: Option<String>,
    /// What a rule reward compares a response with.
    pub reference: Option<String>,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Dataset {
    /// Prompts, with or without completions and references.
    Examples {
        /// The rows, in the order of the file.
        rows: Vec<Example>,
        /// Names of fields that some row has and nothing here reads, in alphabetical order.
        unread: Vec<String>,
    },
    /// Prompts with several responses each.
    RankedLists(Vec<CandidateList>),
    /// Plain text, to be cut into windows of tokens.
    Text(String),
}

const ACCEPTED: &str = "Accepted rows: {\"question\", \"answer\"} (GSM8K); {\"prompt\", \"completion\"} or {\"prompt\"} \
     alone, each with an optional \"reference\"; {\"prompt\", \"responses\", \"rewards\"} (ranked lists, or \"ranks\" \
     instead of \"rewards\"). Plain text must be in a file named .txt";

/// Reads a data set, its kind taken from the first row: `responses` makes ranked lists, `question` GSM8K rows, `prompt`
/// examples. A file named `.txt` is one text.
///
/// # Errors
/// A file that cannot be read, is empty or of no known kind; a row that does not fit the kind of the first.
pub fn read_dataset(path: impl AsRef<Path>) -> Result<Dataset> {
    let path = path.as_ref();
    let text = files::read_text(path)?;
    let unrecognised = |found: String, mend: &str| Error::Unrecognised { path: path.into(), found, mend: mend.into() };
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt")) {
        return match text.is_empty() {
            true => Err(unrecognised("the file is empty".into(), "Give a text")),
            false => Ok(Dataset::Text(text)),
        };
    }
    let rows = parse_rows(path, &text)?;
    let Some(first) = rows.first() else {
        return Err(unrecognised("the file has no rows".into(), ACCEPTED));
    };
    if first.has("responses") {
        return Ok(Dataset::RankedLists(candidates::from_rows(&rows)?));
    }
    if first.has("question") {
        return examples(&rows, gsm8k, &["question", "answer"]);
    }
    if first.has("prompt") && !first.has("chosen") && !first.has("rejected") {
        return examples(&rows, example, &["prompt", "completion", "reference", "answer"]);
    }
    let keys = first.object.keys().map(|k| format!("\"{k}\"")).collect::<Vec<_>>().join(", ");
    let found = format!("line {}: a row with the fields {{{keys}}} is of no known kind", first.line);
    if first.has("chosen") && first.has("rejected") {
        let mend = "Write a pair as {\"prompt\": …, \"responses\": [chosen, rejected], \"ranks\": [1, 2]}";
        return Err(unrecognised(found, mend));
    }
    Err(unrecognised(found, ACCEPTED))
}

/// The rows by `convert`, which reads the fields `read`.
fn examples(rows: &[Row], convert: fn((usize, &Row)) -> Result<Example>, read: &[&str]) -> Result<Dataset> {
    let fields = rows.iter().flat_map(|row| row.object.keys()).filter(|key| !read.contains(&key.as_str()));
    let unread: BTreeSet<&String> = fields.collect();
    Ok(Dataset::Examples {
        unread: unread.into_iter().cloned().collect(),
        rows: rows.iter().enumerate().map(convert).collect::<Result<_>>()?,
    })
}

/// A GSM8K row: the question and a newline are the prompt, the answer is completion and reference.
fn gsm8k((index, row): (usize, &Row)) -> Result<Example> {
    let answer = row.string("answer")?.to_string();
    Ok(Example {
        index,
        line: row.line,
        prompt: format!("{}\n", row.string("question")?),
        completion: Some(answer.clone()),
        reference: Some(answer),
    })
}

/// A row with `prompt`, and perhaps `completion` and `reference` (or `answer`).
fn example((index, row): (usize, &Row)) -> Result<Example> {
    let reference = match row.optional_string("reference")? {
        Some(reference) => Some(reference),
        None => row.optional_string("answer")?,
    };
    Ok(Example {
        index,
        line: row.line,
        prompt: row.string("prompt")?.to_string(),
        completion: row.optional_string("completion")?.map(str::to_string),
        reference: reference.map(str::to_string),
    })
}
