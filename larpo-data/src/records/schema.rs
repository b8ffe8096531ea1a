//! The kinds of rows, and which of them the rows of a file are.

use super::published::has_objects;
use super::rows::{Row, verdict};
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// A kind of row. The names are those of TRL's dataset types, where it has the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Schema {
    /// Plain text, to be cut into windows.
    Text,
    /// `prompt`, perhaps with a `reference`.
    PromptOnly,
    /// `prompt` and `completion`.
    PromptCompletion,
    /// `messages`: a conversation whose last turn is the completion.
    Messages,
    /// `question` and `answer`, the answer with its final line `#### N`.
    Gsm8k,
    /// `chosen` and `rejected`, with a `prompt` or with one that both begin with.
    Preference,
    /// `prompt`, `completion` and `label`.
    UnpairedPreference,
    /// `prompt`, `responses`, and `rewards` or `ranks`.
    RankedList,
    /// `instruction` and `completions` with their ratings.
    Ultrafeedback,
    /// `prompt` and `answers` with their ranks.
    Nectar,
}

impl Schema {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Text,
        Self::PromptOnly,
        Self::PromptCompletion,
        Self::Messages,
        Self::Gsm8k,
        Self::Preference,
        Self::UnpairedPreference,
        Self::RankedList,
        Self::Ultrafeedback,
        Self::Nectar,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::PromptOnly => "prompt_only",
            Self::PromptCompletion => "prompt_completion",
            Self::Messages => "messages",
            Self::Gsm8k => "gsm8k",
            Self::Preference => "preference",
            Self::UnpairedPreference => "unpaired_preference",
            Self::RankedList => "ranked_list",
            Self::Ultrafeedback => "ultrafeedback",
            Self::Nectar => "nectar",
        }
    }

    /// The fields that it is told by.
    pub fn signature(self) -> &'static str {
        match self {
            Self::Text => "a file named .txt",
            Self::PromptOnly => "`prompt`",
            Self::PromptCompletion => "`completion`",
            Self::Messages => "`messages` or `context_messages`",
            Self::Gsm8k => "`question`",
            Self::Preference => "`chosen`, `rejected`",
            Self::UnpairedPreference => "`completion`, `label`",
            Self::RankedList => "`responses`",
            Self::Ultrafeedback => "`instruction`, `completions`",
            Self::Nectar => "`answers` with an `answer` each",
        }
    }

    /// A row of it.
    pub fn example(self) -> &'static str {
        match self {
            Self::Text => "any text",
            Self::PromptOnly => r#"{"prompt": "2 + 2 =", "reference": "4"}"#,
            Self::PromptCompletion => r#"{"prompt": "2 + 2 =", "completion": " 4"}"#,
            Self::Messages => {
                r#"{"messages": [{"role": "user", "content": "2 + 2 ="}, {"role": "assistant", "content": "4"}]}"#
            }
            Self::Gsm8k => r#"{"question": "How many are 2 and 2?", "answer": "2 + 2 = 4\n#### 4"}"#,
            Self::Preference => r#"{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}"#,
            Self::UnpairedPreference => r#"{"prompt": "2 + 2 =", "completion": " 4", "label": true}"#,
            Self::RankedList => r#"{"prompt": "2 + 2 =", "responses": [" 4", " 5"], "rewards": [1, 0]}"#,
            Self::Ultrafeedback => {
                r#"{"instruction": "2 + 2 =", "completions": [{"response": "4", "annotations": {"helpfulness": {"Rating": "5"}}}]}"#
            }
            Self::Nectar => {
                r#"{"prompt": "2 + 2 =", "answers": [{"answer": "4", "rank": 1}, {"answer": "5", "rank": 2}]}"#
            }
        }
    }

    /// The fields that are read.
    pub(super) fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Text => &[],
            Self::PromptOnly | Self::PromptCompletion => &["prompt", "completion", "reference", "answer", "tools"],
            Self::Messages => &["messages", "context_messages", "reference", "answer", "tools"],
            Self::Gsm8k => &["question", "answer"],
            Self::Preference => &["prompt", "chosen", "rejected", "margin", "tools"],
            Self::UnpairedPreference => &["prompt", "completion", "label", "tools"],
            Self::RankedList => &crate::candidates::FIELDS,
            Self::Ultrafeedback => &["instruction", "completions"],
            Self::Nectar => &["prompt", "answers"],
        }
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Schema {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let named = Self::ALL.into_iter().find(|schema| schema.name() == text);
        named.ok_or_else(|| format!("unknown schema; choose from {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// The schema of the rows and, in words, why.
///
/// # Errors
/// Rows of no known kind, or of more than one.
pub(super) fn detect(path: &Path, rows: &[&Row]) -> Result<(Schema, String)> {
    let labelled = rows.iter().any(|row| row.has("completion") && is_verdict(row));
    // Of every schema that fits a row: the line of the first one, and how many there are.
    let mut fits: BTreeMap<Schema, (usize, usize)> = BTreeMap::new();
    let mut prompts = 0;
    for row in rows {
        let has_messages = row.has("messages") || row.has("context_messages");
        let found = [
            (row.has("responses"), Schema::RankedList),
            (row.has("chosen") || row.has("rejected"), Schema::Preference),
            (row.has("instruction") && row.has("completions"), Schema::Ultrafeedback),
            (has_objects(row, "answers", "answer"), Schema::Nectar),
            (has_messages && !row.has("responses") && !row.has("chosen"), Schema::Messages),
            (row.has("question"), Schema::Gsm8k),
            (row.has("question") && row.has("prompt"), Schema::PromptOnly),
            (row.has("completion") && labelled, Schema::UnpairedPreference),
            (row.has("completion") && !labelled, Schema::PromptCompletion),
        ];
        for (_, schema) in found.into_iter().filter(|(holds, _)| *holds) {
            fits.entry(schema).or_insert((row.line, 0)).1 += 1;
        }
        prompts += usize::from(row.has("prompt"));
    }
    // A prompt is part of most schemas; alone it is one too.
    if fits.is_empty() && prompts > 0 {
        fits.insert(Schema::PromptOnly, (0, prompts));
    }
    let mut schemas = fits.iter();
    match (schemas.next(), schemas.next()) {
        (Some((&schema, &(_, count))), None) => {
            let all = if count == rows.len() {
                "every row has".into()
            } else {
                format!("{count} of {} rows have", rows.len())
            };
            let only = if schema == Schema::PromptOnly { " and no responses" } else { "" };
            Ok((schema, format!("{all} {}{only}", schema.signature())))
        }
        (Some(_), Some(_)) => {
            let fits = fits.into_iter().map(|(schema, (line, _))| (schema, line)).collect();
            Err(Error::Ambiguous { path: path.into(), fits })
        }
        _ => Err(unknown(rows[0])),
    }
}

/// Whether the row has a verdict, or what people write for one, which the reader of such rows then refuses: a rejected
/// completion must not pass for one to learn.
fn is_verdict(row: &Row) -> bool {
    let worded = |value: &Value| {
        value.as_str().is_some_and(|word| {
            ["true", "false", "0", "1", "yes", "no", "good", "bad", "chosen", "rejected"]
                .iter()
                .any(|v| word.trim().eq_ignore_ascii_case(v))
        })
    };
    row.get("label").is_some_and(|value: &Value| verdict(row, value).is_some() || worded(value))
}

fn unknown(row: &Row) -> Error {
    let keys = row.object.keys().map(|k| format!("\"{k}\"")).collect::<Vec<_>>().join(", ");
    let names: Vec<&str> = Schema::ALL.iter().flat_map(|schema| schema.fields()).copied().collect();
    let mend = match row.twin(&names) {
        Some((twin, name)) => format!("Rename `{twin}` to `{name}`, if it is that. {}", accepted()),
        None => accepted(),
    };
    row.error("", "a row of a known kind", format!("one with the fields {{{keys}}}"), mend).of_the_file()
}

/// What is accepted, for people.
pub(super) fn accepted() -> String {
    let rows: Vec<String> = Schema::ALL[1..].iter().map(|schema| format!("{} ({schema})", schema.example())).collect();
    format!("Accepted rows: {}. Plain text must be in a file named .txt", rows.join("; "))
}
