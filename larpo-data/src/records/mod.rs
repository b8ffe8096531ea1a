//! Data sets made of rows, and plain text.
//!
//! [`read_dataset`] finds out what a file holds, by its name, its first character and the fields of its rows, or is told
//! by [`ReadOptions`]: prompts with or without completions, pairs, labelled completions, ranked lists, or one text.
//! [`read_keyed_rows`] reads responses under any field names. Files are JSONL (one object a line, empty lines allowed),
//! one JSON array of objects, or comma-separated values, each also packed with gzip. Every complaint names file, line
//! and field. No row is dropped, and none changes its place: what is left out is counted in [`Records::bad`].

mod conversation;
mod csv;
mod keyed;
mod pairs;
#[cfg(feature = "parquet")]
mod parquet;
mod published;
pub(crate) mod rows;
mod schema;
pub(crate) mod source;

pub use conversation::{Renderer, assistant, plain};
pub use keyed::{KeyedRow, Keys, read_keyed_rows};
pub use schema::Schema;
pub use source::{Format, FormatKind};

use crate::candidates::{self, CandidateList};
use crate::error::{Error, RecordError, Result};
use rows::{Row, verdict};
use source::Content;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// A prompt, with what is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Row of the file, counted from 0.
    pub index: usize,
    /// Line of the file, counted from 1.
    pub line: usize,
    /// The text before the response.
    pub prompt: String,
    /// The turns that the prompt is the rendering of, as JSON; the completion then holds the end of its turn too.
    pub conversation: Option<Arc<str>>,
    /// A response to learn from.
    pub completion: Option<String>,
    /// What a rule reward compares a response with.
    pub reference: Option<String>,
}

/// A prompt with a better and a worse response.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Row of the file, counted from 0.
    pub index: usize,
    /// Line of the file, counted from 1.
    pub line: usize,
    /// The text before the responses.
    pub prompt: String,
    /// The turns that the prompt is the rendering of, as JSON; the responses then hold the ends of their turns too.
    pub conversation: Option<Arc<str>>,
    /// The better response.
    pub chosen: String,
    /// The worse one.
    pub rejected: String,
    /// By how much the better one is to lead, for reward models.
    pub margin: Option<f64>,
    /// Whether the row has no prompt of its own, so that it is what both responses began with.
    pub implicit_prompt: bool,
}

/// A prompt with a response that is good or bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// Row of the file, counted from 0.
    pub index: usize,
    /// Line of the file, counted from 1.
    pub line: usize,
    /// The text before the response.
    pub prompt: String,
    /// The turns that the prompt is the rendering of, as JSON; the completion then holds the end of its turn too.
    pub conversation: Option<Arc<str>>,
    /// The response.
    pub completion: String,
    /// Whether it is good.
    pub label: bool,
}

/// A ranked list and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// Row of the file, counted from 0.
    pub index: usize,
    /// Line of the file, counted from 1.
    pub line: usize,
    /// The list.
    pub list: CandidateList,
}

/// What a file holds, in the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Dataset {
    /// Prompts, with or without completions and references ([`Schema::PromptOnly`], [`Schema::PromptCompletion`],
    /// [`Schema::Gsm8k`], [`Schema::Messages`]).
    Examples(Vec<Example>),
    /// Pairs ([`Schema::Preference`]).
    Pairs(Vec<Pair>),
    /// Labelled responses ([`Schema::UnpairedPreference`]).
    Unpaired(Vec<Labelled>),
    /// Prompts with several responses each ([`Schema::RankedList`], [`Schema::Ultrafeedback`], [`Schema::Nectar`]).
    RankedLists(Vec<Ranked>),
    /// Plain text, to be cut into windows of tokens ([`Schema::Text`]).
    Text(String),
}

impl Dataset {
    /// Rows that can be used; 1 for a text.
    pub fn len(&self) -> usize {
        match self {
            Self::Examples(rows) => rows.len(),
            Self::Pairs(rows) => rows.len(),
            Self::Unpaired(rows) => rows.len(),
            Self::RankedLists(rows) => rows.len(),
            Self::Text(_) => 1,
        }
    }

    /// Every text in it, a prompt and its first response as one, for building a tokenizer.
    pub fn texts(&self) -> Vec<String> {
        match self {
            Self::Examples(rows) => {
                rows.iter().map(|row| row.prompt.clone() + row.completion.as_deref().unwrap_or_default()).collect()
            }
            Self::Pairs(rows) => {
                rows.iter().flat_map(|r| [format!("{}{}", r.prompt, r.chosen), r.rejected.clone()]).collect()
            }
            Self::Unpaired(rows) => rows.iter().map(|row| format!("{}{}", row.prompt, row.completion)).collect(),
            Self::RankedLists(rows) => {
                let texts = |row: &Ranked| {
                    let mut texts = row.list.responses.clone();
                    texts[0].insert_str(0, &row.list.prompt);
                    texts
                };
                rows.iter().flat_map(texts).collect()
            }
            Self::Text(text) => vec![text.clone()],
        }
    }

    /// Whether there is nothing to use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What to do with a row that does not hold what it must.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnBadRow {
    /// Report it; nothing is read.
    #[default]
    Error,
    /// Leave it out and count it.
    Skip,
}

/// How to read a file.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions<'a> {
    /// The kind of its rows; found out where it is not given.
    pub schema: Option<Schema>,
    /// What to do with malformed rows.
    pub on_bad_row: OnBadRow,
    /// What makes texts of conversations.
    pub renderer: Renderer<'a>,
}

/// A file as it was read. Rows in the file = rows of the data set + malformed rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Records {
    /// The rows that can be used.
    pub dataset: Dataset,
    /// Their kind.
    pub schema: Schema,
    /// Why they are taken for that kind, in words.
    pub why: String,
    /// How the file is written.
    pub format: Format,
    /// What is wrong with the rows left out; empty under [`OnBadRow::Error`].
    pub bad: Vec<RecordError>,
    /// Names of fields that some row has and nothing here reads, in alphabetical order.
    pub unread: Vec<String>,
}

impl Records {
    /// Rows of the file; 1 for a text.
    pub fn rows(&self) -> usize {
        self.dataset.len() + self.bad.len()
    }
}

/// Reads a data set.
///
/// # Errors
/// A file that cannot be read, is empty, damaged, or of no known kind or of several; a row that does not fit its kind,
/// unless such rows are skipped; no row that fits.
pub fn read_dataset(path: impl AsRef<Path>, options: &ReadOptions<'_>) -> Result<Records> {
    let path = path.as_ref();
    from_content(path, &Content::read(path)?, options)
}

/// [`read_dataset`] for bytes in memory. `path` gives the name that the form is told by and that errors begin with.
///
/// # Errors
/// As [`read_dataset`].
pub fn parse_dataset(path: impl AsRef<Path>, bytes: Vec<u8>, options: &ReadOptions<'_>) -> Result<Records> {
    let path = path.as_ref();
    from_content(path, &Content::new(path, bytes)?, options)
}

fn from_content(path: &Path, content: &Content, options: &ReadOptions<'_>) -> Result<Records> {
    let format = content.format;
    let unrecognised = |found: &str, mend: String| Error::Unrecognised { path: path.into(), found: found.into(), mend };
    if options.schema.map_or(format.kind == FormatKind::Text, |schema| schema == Schema::Text) {
        let text = content.text(path)?;
        if text.is_empty() {
            return Err(unrecognised("the file is empty", "Give a text".into()));
        }
        let why = if options.schema.is_some() { "as asked for" } else { "the file is named .txt" };
        let format = Format { kind: FormatKind::Text, ..format };
        let dataset = Dataset::Text(text.into());
        return Ok(Records { dataset, schema: Schema::Text, why: why.into(), format, bad: vec![], unread: vec![] });
    }
    let mut sieve = Sieve::new(format, options.on_bad_row);
    let mut rows = Vec::new();
    for (index, row) in content.rows(path)?.into_iter().enumerate() {
        rows.extend(sieve.pass(index, row)?.map(|row| (index, row)));
    }
    if rows.is_empty() {
        return Err(sieve.nothing_left(path, || unrecognised("the file has no rows", schema::accepted())));
    }
    let (schema, why) = match options.schema {
        Some(schema) => (schema, "as asked for".into()),
        None => {
            let detected = schema::detect(path, &rows.iter().map(|(_, row)| row).collect::<Vec<_>>());
            // A file of no known kind whose rows are no JSON either is told by the latter.
            detected.or_else(|error| sieve.settle().and(Err(error)))?
        }
    };
    let (read, renderer) = (schema.fields(), options.renderer);
    let fields = rows.iter().flat_map(|(_, row)| row.object.keys()).filter(|key| !read.contains(&key.as_str()));
    let unread: BTreeSet<&String> = fields.collect();
    let unread = unread.into_iter().cloned().collect();
    let dataset = match schema {
        Schema::Gsm8k => Dataset::Examples(sieve.convert(&rows, gsm8k)?),
        Schema::Messages => Dataset::Examples(sieve.convert(&rows, |index, row| messages(index, row, renderer))?),
        Schema::Preference => Dataset::Pairs(sieve.convert(&rows, |index, row| pairs::pair(index, row, renderer))?),
        Schema::UnpairedPreference => {
            Dataset::Unpaired(sieve.convert(&rows, |index, row| labelled(index, row, renderer))?)
        }
        Schema::RankedList => Dataset::RankedLists(sieve.convert(&rows, |index, row| {
            Ok(Ranked { index, line: row.line, list: candidates::from_row(row, renderer)? })
        })?),
        Schema::Ultrafeedback => Dataset::RankedLists(sieve.convert(&rows, published::ultrafeedback)?),
        Schema::Nectar => Dataset::RankedLists(sieve.convert(&rows, published::nectar)?),
        Schema::PromptCompletion | Schema::PromptOnly | Schema::Text => {
            Dataset::Examples(sieve.convert(&rows, |index, row| example(index, row, renderer))?)
        }
    };
    if dataset.is_empty() {
        return Err(sieve.nothing_left(path, || unrecognised("the file has no rows", schema::accepted())));
    }
    sieve.settle()?;
    Ok(Records { dataset, schema, why, format, bad: sieve.bad, unread })
}

/// Lets rows pass and collects what is wrong with the others.
pub(crate) struct Sieve {
    pub(crate) bad: Vec<RecordError>,
    on_bad_row: OnBadRow,
    /// The rows are elements of an array, of which a line may hold many.
    array: bool,
}

impl Sieve {
    pub(crate) fn new(format: Format, on_bad_row: OnBadRow) -> Self {
        Self { bad: Vec::new(), on_bad_row, array: format.kind == FormatKind::JsonArray }
    }

    /// The row, `index` of the file from 0, if nothing is wrong with it.
    pub(crate) fn pass<T>(&mut self, index: usize, row: Result<T>) -> Result<Option<T>> {
        match row {
            Ok(row) => Ok(Some(row)),
            Err(Error::Record(mut error)) => {
                error.element = self.array.then_some(index + 1);
                self.bad.push(*error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Ends where bad rows do: with the first one, in the order of the file. Rows that are no JSON are found before those
    /// with a wrong field.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.bad.sort_by_key(|error| (error.line, error.element));
        match (self.on_bad_row, self.bad.first()) {
            (OnBadRow::Error, Some(first)) => Err(first.clone().into()),
            _ => Ok(()),
        }
    }

    fn convert<T>(&mut self, rows: &[(usize, Row)], convert: impl Fn(usize, &Row) -> Result<T>) -> Result<Vec<T>> {
        let mut result = Vec::with_capacity(rows.len());
        for (index, row) in rows {
            result.extend(self.pass(*index, convert(*index, row))?);
        }
        Ok(result)
    }

    /// Why no row is left: the first bad one, or `otherwise` where there was none.
    pub(crate) fn nothing_left(&mut self, path: &Path, otherwise: impl FnOnce() -> Error) -> Error {
        match (self.settle(), &self.bad[..]) {
            (Err(first), _) => first,
            (Ok(()), []) => otherwise(),
            (Ok(()), [first, ..]) => Error::Unrecognised {
                path: path.into(),
                found: format!("every row is malformed, {} of {0}", self.bad.len()),
                mend: format!("The first: {first}"),
            },
        }
    }
}

/// A GSM8K row: the question and a newline are the prompt, the answer is completion and reference.
fn gsm8k(index: usize, row: &Row) -> Result<Example> {
    let answer = row.string("answer")?.to_string();
    // Without the mark the whole solution would become the answer to compare with.
    if !answer.contains("####") {
        let found = "none in it";
        let mend = r#"End it with its answer, for example "answer": "2 + 2 = 4\n#### 4"; rows with another mark are written as {"prompt": …, "completion": …}"#;
        return Err(row.error("answer", "a solution that ends in `#### N`", found, mend));
    }
    Ok(Example {
        index,
        line: row.line,
        prompt: format!("{}\n", row.string("question")?),
        conversation: None,
        completion: Some(answer.clone()),
        reference: Some(answer),
    })
}

/// A row with `prompt`, and perhaps `completion` and `reference` (or `answer`).
fn example(index: usize, row: &Row, renderer: Renderer) -> Result<Example> {
    let fields = if row.has("completion") { &["completion"][..] } else { &[] };
    example_of(index, row, renderer.texts(row, fields)?)
}

fn example_of(index: usize, row: &Row, texts: conversation::Texts) -> Result<Example> {
    let reference = match row.optional_string("reference")? {
        Some(reference) => Some(reference),
        None => row.optional_string("answer")?,
    };
    Ok(Example {
        index,
        line: row.line,
        prompt: texts.prompt,
        conversation: texts.conversation,
        completion: texts.responses.into_iter().next(),
        reference: reference.map(str::to_string),
    })
}

/// A row with `messages` (or `context_messages`, which data sets of online RLHF have): a conversation, of which what follows the last turn of anyone but the assistant and its tools is the
/// completion.
fn messages(index: usize, row: &Row, renderer: Renderer) -> Result<Example> {
    let field = if row.has("messages") { "messages" } else { "context_messages" };
    let turns = row.turns(field)?;
    let own = |turn: &serde_json::Value| turn["role"] == "assistant" || turn["role"] == "tool";
    let asked = turns.len() - turns.iter().rev().take_while(|turn| own(turn)).count();
    let (prompt, answer) = turns.split_at(asked);
    let answers = if answer.is_empty() { &[][..] } else { &[answer][..] };
    example_of(index, row, renderer.rendered(row, field, prompt, answers)?)
}

/// A row with `prompt`, `completion` and `label`.
fn labelled(index: usize, row: &Row, renderer: Renderer) -> Result<Labelled> {
    let what = "true or false (also 1 or 0)";
    let label = match row.get("label") {
        None => return Err(row.missing("label", what, "\"label\": true")),
        Some(value) => verdict(row, value).ok_or_else(|| {
            // In a table every value is a text, and quotes around a cell are none of it.
            let mend = match row.cells {
                true => "Write true or false in the column `label`, and nothing else in the cell",
                false => "Write it without quotes, for example \"label\": true",
            };
            row.error("label", what, rows::describe(value), mend)
        })?,
    };
    let conversation::Texts { prompt, responses, conversation } = renderer.texts(row, &["completion"])?;
    let completion = responses.into_iter().next().unwrap_or_default();
    Ok(Labelled { index, line: row.line, prompt, conversation, completion, label })
}
