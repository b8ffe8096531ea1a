//! Candidate lists: a prompt, its sampled responses and their rewards, one row of JSONL per prompt.
//!
//! The same form is written while aligning, read for training on lists made elsewhere, and edited by people. It holds
//! no clock times, so equal runs write equal files. Numbers come back exactly as they were written.

use crate::checksums::Checksum;
use crate::error::{Error, RecordError, Result};
use crate::files;
use crate::records::Renderer;
use crate::records::rows::{Row, number, small, text};
use crate::records::source::Content;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::io::Write;
use std::path::Path;

/// One prompt with its responses. Every per-response array is empty (absent from the file) or as long as `responses`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct CandidateList {
    /// Row of the prompt in its data set, counted from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_index: Option<usize>,
    /// The prompt.
    pub prompt: String,
    /// The turns that the prompt is the rendering of, where it is a conversation. Responses are the assistant's answers
    /// without what the chat template puts around them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<Value>>,
    /// Its token ids, where they are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// What a rule reward compares with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Texts that ended a response while it was sampled, and were cut from it with what followed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop_strings: Vec<String>,
    /// The responses, at least one.
    pub responses: Vec<String>,
    /// Rewards, higher is better, finite.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rewards: Vec<f64>,
    /// Ranks, 1 is best; tied responses may share a rank (also a mean such as 1.5).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<f64>,
    /// Iteration in which a response was sampled: 0 for `larpo sample`, from 1 for `larpo align`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub iteration: Vec<u32>,
    /// Sampling temperature.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub temperature: Vec<f32>,
    /// Seed of the sampling run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seed: Vec<u64>,
    /// Why a response ended: `stop` (end-of-sequence token), `length`, or `stop_string`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub finish_reason: Vec<String>,
    /// Sampled token ids, the end-of-sequence token or a stop string's tokens included.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub token_ids: Vec<Vec<u32>>,
    /// Log-probability of each token in nats, at temperature 1 and untruncated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logps: Vec<Vec<f32>>,
    /// Fields of the row that are not known here, kept in their order.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

pub(crate) const FIELDS: [&str; 15] = [
    "prompt_index",
    "prompt",
    "messages",
    "prompt_token_ids",
    "reference",
    "stop_strings",
    "responses",
    "rewards",
    "ranks",
    "iteration",
    "temperature",
    "seed",
    "finish_reason",
    "token_ids",
    "logps",
];

/// The fields that hold one entry per response, beside the responses themselves.
pub const PER_RESPONSE: [&str; 8] =
    ["rewards", "ranks", "iteration", "temperature", "seed", "finish_reason", "token_ids", "logps"];

const FINISH_REASONS: [&str; 3] = ["stop", "length", "stop_string"];

/// What a log-probability may lie above 0 by rounding.
const LOGP_SLACK: f32 = 1e-3;

/// The f32 fields, read a second time from the text: by way of f64 a number can be rounded twice and come out as its
/// neighbour.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Singles {
    temperature: Option<Vec<f32>>,
    logps: Option<Vec<Vec<f32>>>,
}

impl CandidateList {
    /// Checksum of the row as [`write()`] writes it: the same for a row that was read back, however it was laid out.
    pub fn checksum(&self) -> Checksum {
        Checksum::of(&serde_json::to_vec(self).expect("text and numbers can be written"))
    }

    /// What the responses are ordered by, higher is better: the rewards, else the negated ranks; `None` where the list
    /// has neither.
    pub fn scores(&self) -> Option<Vec<f64>> {
        match (self.rewards.is_empty(), self.ranks.is_empty()) {
            (false, _) => Some(self.rewards.clone()),
            (true, false) => Some(self.ranks.iter().map(|rank| -rank).collect()),
            (true, true) => None,
        }
    }

    /// The first thing wrong with the list: the field, what was expected, what was found and the mend.
    fn fault(&self) -> Option<(String, String, String, String)> {
        let count = self.responses.len();
        if count == 0 {
            let mend = "Give the list a response, or delete the row";
            return Some(("responses".into(), "at least one response".into(), "an empty array".into(), mend.into()));
        }
        let lengths = [
            ("rewards", self.rewards.len()),
            ("ranks", self.ranks.len()),
            ("iteration", self.iteration.len()),
            ("temperature", self.temperature.len()),
            ("seed", self.seed.len()),
            ("finish_reason", self.finish_reason.len()),
            ("token_ids", self.token_ids.len()),
            ("logps", self.logps.len()),
        ];
        if let Some((field, found)) = lengths.into_iter().find(|(_, n)| *n != 0 && *n != count) {
            let mend = "Keep one element per response in every array: delete or add elements at the same place in all";
            return Some((field.into(), format!("{count} elements, one per response"), found.to_string(), mend.into()));
        }
        self.value_fault().or_else(|| self.order_fault())
    }

    /// The first element that cannot be.
    fn value_fault(&self) -> Option<(String, String, String, String)> {
        let fault = |field: String, expected: &str, found: String, mend: &str| {
            Some((field, expected.to_string(), found, mend.to_string()))
        };
        if let Some(i) = self.rewards.iter().position(|x| !x.is_finite()) {
            let found = self.rewards[i].to_string();
            return fault(format!("rewards[{i}]"), "a finite number", found, "Score the response again or delete it");
        }
        if let Some(i) = self.ranks.iter().position(|x| !(x.is_finite() && *x >= 1.0)) {
            return fault(format!("ranks[{i}]"), "a rank of 1 (best) or more", self.ranks[i].to_string(), "Correct it");
        }
        if let Some(i) = self.temperature.iter().position(|x| !(x.is_finite() && *x >= 0.0)) {
            let found = self.temperature[i].to_string();
            return fault(format!("temperature[{i}]"), "a finite number of 0 or more", found, "Correct it");
        }
        if let Some(i) = self.finish_reason.iter().position(|r| !FINISH_REASONS.contains(&r.as_str())) {
            let found = format!("{:?}", self.finish_reason[i]);
            return fault(
                format!("finish_reason[{i}]"),
                "\"stop\", \"length\" or \"stop_string\"",
                found,
                "Correct it",
            );
        }
        for (i, logps) in self.logps.iter().enumerate() {
            if let Some(t) = logps.iter().position(|x| !x.is_finite()) {
                return fault(format!("logps[{i}][{t}]"), "a finite number", logps[t].to_string(), "Sample it again");
            }
            if let Some(t) = logps.iter().position(|x| *x > LOGP_SLACK) {
                let found = logps[t].to_string();
                let mend = "Write natural logarithms of probabilities, or remove the field";
                return fault(format!("logps[{i}][{t}]"), "a log-probability, 0 or less", found, mend);
            }
            if let Some(ids) = self.token_ids.get(i).filter(|ids| ids.len() != logps.len()) {
                let expected = format!("{} numbers, one per element of token_ids[{i}]", ids.len());
                let mend = "Correct it, or delete the response from every array";
                return fault(format!("logps[{i}]"), &expected, logps.len().to_string(), mend);
            }
        }
        None
    }

    /// Rewards and ranks that contradict each other: nothing could tell which of them is meant.
    fn order_fault(&self) -> Option<(String, String, String, String)> {
        if self.rewards.is_empty() || self.ranks.is_empty() {
            return None;
        }
        let mut order: Vec<usize> = (0..self.ranks.len()).collect();
        order.sort_by(|&a, &b| self.ranks[a].total_cmp(&self.ranks[b]));
        let wrong = order.windows(2).find(|p| self.rewards[p[0]] < self.rewards[p[1]])?;
        Some((
            format!("ranks[{}]", wrong[0]),
            "ranks in the order of the rewards (1 = highest reward)".into(),
            format!("a better rank than ranks[{}], whose reward is higher", wrong[1]),
            "Remove `ranks` or `rewards`, whichever is out of date".into(),
        ))
    }
}

/// Reads candidate lists; JSONL or an array of objects, also packed with gzip. Needed are `prompt` and `responses`; everything else is
/// optional, and fields that are not known are kept.
///
/// # Errors
/// A file that cannot be read or has no rows; a row with a field missing, of another type or length, with a number that
/// is not finite, or with ranks that contradict the rewards.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<CandidateList>> {
    Ok(read_numbered(path)?.into_iter().map(|(_, list)| list).collect())
}

/// [`read`], with the line that each list begins in, counted from 1.
///
/// # Errors
/// As [`read`].
pub fn read_numbered(path: impl AsRef<Path>) -> Result<Vec<(usize, CandidateList)>> {
    let path = path.as_ref();
    let content = Content::read(path)?;
    let rows = content.rows(path)?;
    if rows.is_empty() {
        return Err(Error::Unrecognised {
            path: path.into(),
            found: "the file has no rows".into(),
            mend: "Write one row per prompt: {\"prompt\": \"…\", \"responses\": [\"…\", \"…\"], \"rewards\": [1, 0]}"
                .into(),
        });
    }
    let numbered = |row: Result<Row>| row.and_then(|row| Ok((row.line, from_row(&row, Renderer::None)?)));
    rows.into_iter().map(numbered).collect()
}

/// Writes one row per list, fields in a fixed order, under a temporary name that is renamed at the end.
///
/// # Errors
/// A list that [`read`] would refuse (named by its row), or a file that cannot be written.
pub fn write(path: impl AsRef<Path>, lists: &[CandidateList]) -> Result<()> {
    let path = path.as_ref();
    for (i, list) in lists.iter().enumerate() {
        let known = list.extra.keys().find(|key| FIELDS.contains(&key.as_str()));
        let fault = match known {
            Some(key) => {
                let found = "the name of a known field".to_string();
                Some((key.clone(), "another name in `extra`".to_string(), found, "Rename it".to_string()))
            }
            None => list.fault(),
        };
        if let Some((field, expected, found, mend)) = fault {
            let (path, line) = (path.into(), i + 1);
            return Err(
                RecordError { path, line, element: None, field, expected, found, mend, of_the_file: false }.into()
            );
        }
    }
    files::write_atomic(path, |writer| {
        for list in lists {
            let line = serde_json::to_string(list).expect("a checked list can be written");
            writeln!(writer, "{line}").map_err(Error::io(path, "write"))?;
        }
        Ok(())
    })
}

/// The prompt of a row, and its turns where it is a conversation: in `prompt`, or beside its rendering in `messages`.
fn prompt(row: &Row, renderer: Renderer) -> Result<(String, Option<Vec<Value>>)> {
    if row.get("prompt").is_some_and(Value::is_array) {
        let turns = row.turns("prompt")?;
        return Ok((renderer.rendered(row, "prompt", turns, &[])?.prompt, Some(turns.to_vec())));
    }
    let turns = row.has("messages").then(|| row.turns("messages").map(<[Value]>::to_vec)).transpose()?;
    Ok((row.string("prompt")?.to_string(), turns))
}

/// A response: a text, or the assistant's turn.
fn response(value: &Value) -> Option<String> {
    match value {
        Value::Array(turns) => match &turns[..] {
            [turn] if turn["role"] == "assistant" => text(&turn["content"]),
            _ => None,
        },
        other => text(other),
    }
}

pub(crate) fn from_row(row: &Row, renderer: Renderer) -> Result<CandidateList> {
    let numbers = "an array of finite numbers";
    let wholes = "an array of whole numbers of 0 or more";
    let index = match row.get("prompt_index") {
        None => None,
        Some(value) => match value.as_u64() {
            Some(n) => Some(n as usize),
            None => {
                let found = crate::records::rows::describe(value);
                return Err(row.error(
                    "prompt_index",
                    "a whole number of 0 or more",
                    found,
                    "Correct it or leave it out",
                ));
            }
        },
    };
    let strings = "an array of strings";
    let Some(responses) = row.array("responses", strings, r#"["first", "second"]"#, response)? else {
        return Err(row.missing("responses", "an array of strings", r#""responses": ["first", "second"]"#));
    };
    let token_lists = "an array with one array of numbers per response";
    // Checked here for the message; the values are taken from the exact second reading.
    row.array("temperature", numbers, "[1.0, 1.0]", single)?;
    row.array("logps", token_lists, "[[-0.5, -1.25], [-0.1]]", |v| {
        v.as_array()?.iter().map(single).collect::<Option<Vec<_>>>()
    })?;
    let singles: Singles = serde_json::from_str(&row.text)
        .map_err(|e| row.error("", "numbers of single precision", e.to_string(), "Correct them"))?;
    let (prompt, messages) = prompt(row, renderer)?;
    let list = CandidateList {
        prompt_index: index,
        prompt,
        messages,
        prompt_token_ids: row.array("prompt_token_ids", wholes, "[5, 17]", small)?,
        reference: row.optional_string("reference")?.map(str::to_string),
        stop_strings: row.array("stop_strings", "an array of strings", r#"["\n\n"]"#, text)?.unwrap_or_default(),
        responses,
        rewards: row.array("rewards", numbers, "[1.0, 0.0]", number)?.unwrap_or_default(),
        ranks: row.array("ranks", numbers, "[1, 2]", number)?.unwrap_or_default(),
        iteration: row.array("iteration", wholes, "[0, 0]", small)?.unwrap_or_default(),
        temperature: singles.temperature.unwrap_or_default(),
        seed: row.array("seed", wholes, "[1, 1]", Value::as_u64)?.unwrap_or_default(),
        finish_reason: row
            .array("finish_reason", "an array of strings", r#"["stop", "length"]"#, text)?
            .unwrap_or_default(),
        token_ids: row
            .array("token_ids", token_lists, "[[5, 17], [5]]", |v| v.as_array()?.iter().map(small).collect())?
            .unwrap_or_default(),
        logps: singles.logps.unwrap_or_default(),
        extra: row
            .object
            .iter()
            .filter(|(k, _)| !FIELDS.contains(&k.as_str()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
    };
    // An empty array is as wrong as one of any other length; only an absent field means "not known".
    let emptied = PER_RESPONSE.iter().find(|f| row.get(f).and_then(Value::as_array).is_some_and(Vec::is_empty));
    if let (Some(field), false) = (emptied, list.responses.is_empty()) {
        let expected = format!("{} elements, one per response", list.responses.len());
        return Err(row.error(*field, expected, "0", "Fill the array, or remove the field"));
    }
    match list.fault() {
        Some((field, expected, found, mend)) => Err(row.error(field, expected, found, mend)),
        None => Ok(list),
    }
}

/// A number that is finite in single precision too.
fn single(value: &Value) -> Option<f64> {
    number(value).filter(|x| (*x as f32).is_finite())
}
