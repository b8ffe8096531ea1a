//! Data sets as token ids: reading, the split, limits on length, and the report of what was used and what was not.

use crate::args::{DataArgs, Split};
use crate::error::{Error, Result};
use crate::policy::Policy;
use larpo_core::backend::Backend;
use larpo_core::train::SftRow;
use larpo_data::records::{Dataset, Example, read_dataset};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Rows in = rows used + rows left out, by named reason.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RowReport {
    /// What the rows are, e.g. `rows` or `windows`.
    pub unit: &'static str,
    /// Rows read.
    pub rows: usize,
    /// Rows left out, by reason.
    pub left_out: BTreeMap<String, usize>,
}

impl RowReport {
    fn new(unit: &'static str, rows: usize) -> Self {
        Self { unit, rows, left_out: BTreeMap::new() }
    }

    fn leave_out(&mut self, reason: String) {
        *self.left_out.entry(reason).or_default() += 1;
    }

    /// Rows used.
    pub fn used(&self) -> usize {
        self.rows - self.left_out.values().sum::<usize>()
    }
}

impl fmt::Display for RowReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} in = {} used", self.rows, self.unit, self.used())?;
        for (reason, count) in &self.left_out {
            write!(f, " + {count} left out ({reason})")?;
        }
        Ok(())
    }
}

/// A prompt as text and ids.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRow {
    /// Its number in the data set.
    pub index: usize,
    /// Its text.
    pub text: String,
    /// Its ids.
    pub ids: Vec<u32>,
    /// What a correct response is compared with.
    pub reference: Option<String>,
}

impl PromptRow {
    /// Whether there is anything to compare a response with.
    pub fn has_reference(&self) -> bool {
        self.reference.as_deref().is_some_and(|reference| !reference.trim().is_empty())
    }
}

/// How rows are cut and limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of prompt and response together.
    pub max_length: usize,
    /// Tokens of a prompt.
    pub max_prompt_length: usize,
    /// First rows to take.
    pub max_samples: usize,
}

impl Limits {
    /// The limits of the flags, within what `model` can take.
    ///
    /// # Errors
    /// A limit beyond the model's positions.
    pub fn new<B: Backend>(args: &DataArgs, policy: &Policy<B>) -> Result<Self> {
        let positions = policy.model.config().max_position_embeddings;
        let max_length = args.max_length.unwrap_or(positions.min(1024));
        if max_length > positions {
            return Err(Error::request(format!(
                "--max_length {max_length} is more than the model's max_position_embeddings {positions}"
            )));
        }
        let max_prompt_length = args.max_prompt_length.unwrap_or(max_length);
        Ok(Self { max_length, max_prompt_length, max_samples: args.max_samples.unwrap_or(usize::MAX) })
    }
}

/// Which part of a data set to use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// Share held back at the end.
    pub held_back: f64,
    /// Which side of it.
    pub split: Split,
}

impl Part {
    /// Everything.
    pub const ALL: Self = Self { held_back: 0.0, split: Split::All };

    /// The range of `n` items that belongs to the part.
    fn range(self, n: usize) -> std::ops::Range<usize> {
        let cut = n - (n as f64 * self.held_back).round() as usize;
        match self.split {
            Split::All => 0..n,
            Split::Train => 0..cut,
            Split::Validation => cut..n,
        }
    }
}

/// A data set read once, to be turned into rows.
pub enum Source {
    /// Prompts, with or without completions.
    Examples(Vec<Example>),
    /// One text.
    Text(String),
}

impl Source {
    /// Reads a file of examples or plain text.
    ///
    /// # Errors
    /// A file that cannot be read or has another form.
    pub fn open(path: &Path) -> Result<Self> {
        match read_dataset(path)? {
            Dataset::Examples { rows, unread } => {
                if !unread.is_empty() {
                    say!("note: fields of {} that are not read: {}", path.display(), unread.join(", "));
                }
                Ok(Self::Examples(rows))
            }
            Dataset::Text(text) => Ok(Self::Text(text)),
            Dataset::RankedLists(_) => Err(Error::request(format!(
                "{} holds ranked lists; give them to `larpo train`, or rank them anew with `larpo rank`",
                path.display()
            ))),
        }
    }

    /// The texts of a part, for building a tokenizer.
    pub fn texts(&self) -> Vec<String> {
        match self {
            Self::Examples(rows) => rows
                .iter()
                .map(|row| format!("{}{}", row.prompt, row.completion.as_deref().unwrap_or_default()))
                .collect(),
            Self::Text(text) => vec![text.clone()],
        }
    }

    /// Rows to learn from: completions end with the end-of-text token; a text is cut into windows of `max_length`
    /// tokens, whose every token is learned once.
    ///
    /// # Errors
    /// Rows without completions, or a text that the tokenizer cannot encode.
    pub fn sft_rows<B: Backend>(
        &self,
        policy: &Policy<B>,
        limits: Limits,
        part: Part,
    ) -> Result<(Vec<SftRow>, RowReport)> {
        match self {
            Self::Examples(rows) => {
                let rows = &rows[part.range(rows.len())];
                let rows = &rows[..rows.len().min(limits.max_samples)];
                let mut report = RowReport::new("rows", rows.len());
                let mut result = Vec::with_capacity(rows.len());
                for row in rows {
                    let Some(completion) = &row.completion else {
                        report.leave_out("no completion".into());
                        continue;
                    };
                    let prompt = policy.encode_prompt(&row.prompt)?;
                    let response = policy.encode_response(completion)?;
                    if prompt.len() + response.len() > limits.max_length {
                        report.leave_out(format!("longer than {} tokens", limits.max_length));
                    } else {
                        result.push(SftRow { prompt, response });
                    }
                }
                Ok((result, report))
            }
            Self::Text(text) => {
                let ids = policy.tokenizer.encode(text)?;
                let windows = Windows::cut(&ids[part.range(ids.len())], policy.prompt_prefix()?, limits)?;
                let report = RowReport::new("windows", windows.texts.len());
                let row = |text: &&[u32]| SftRow { prompt: windows.prefix.clone(), response: text.to_vec() };
                Ok((windows.texts.iter().map(row).collect(), report))
            }
        }
    }

    /// Prompts to answer with up to `max_new_tokens` tokens. Of a window of plain text the first `max_prompt_length`
    /// tokens (by default half of it) make the prompt, the rest is the reference.
    ///
    /// # Errors
    /// No prompt that fits, or a text that the tokenizer cannot encode.
    pub fn prompts<B: Backend>(
        &self,
        policy: &Policy<B>,
        mut limits: Limits,
        part: Part,
        max_new_tokens: usize,
        explicit_prompt_length: bool,
    ) -> Result<(Vec<PromptRow>, RowReport)> {
        let positions = policy.model.config().max_position_embeddings;
        let (rows, report) = match self {
            Self::Examples(rows) => {
                let rows = &rows[part.range(rows.len())];
                let rows = &rows[..rows.len().min(limits.max_samples)];
                let mut report = RowReport::new("prompts", rows.len());
                let mut result = Vec::with_capacity(rows.len());
                for row in rows {
                    let ids = policy.encode_prompt(&row.prompt)?;
                    if ids.is_empty() {
                        report.leave_out("empty prompt".into());
                    } else if ids.len() > limits.max_prompt_length {
                        report.leave_out(format!("prompt longer than {} tokens", limits.max_prompt_length));
                    } else if ids.len() + max_new_tokens > positions {
                        report
                            .leave_out(format!("prompt and {max_new_tokens} new tokens exceed {positions} positions"));
                    } else {
                        // A row with a worked solution and nothing else to compare with is its own reference.
                        let reference = row.reference.clone().or_else(|| row.completion.clone());
                        result.push(PromptRow { index: row.index, text: row.prompt.clone(), ids, reference });
                    }
                }
                (result, report)
            }
            Self::Text(text) => {
                if !explicit_prompt_length {
                    limits.max_prompt_length = (limits.max_length / 2).max(1);
                }
                let ids = policy.tokenizer.encode(text)?;
                let windows = Windows::cut(&ids[part.range(ids.len())], policy.prompt_prefix()?, limits)?;
                let mut report = RowReport::new("windows", windows.texts.len());
                let mut result = Vec::new();
                let cut = limits.max_prompt_length.saturating_sub(windows.prefix.len()).max(1);
                for (index, window) in windows.texts.iter().enumerate() {
                    if window.len() <= cut {
                        report.leave_out("nothing after the prompt".into());
                        continue;
                    }
                    let ids = [&windows.prefix, &window[..cut]].concat();
                    if ids.len() + max_new_tokens > positions {
                        report
                            .leave_out(format!("prompt and {max_new_tokens} new tokens exceed {positions} positions"));
                        continue;
                    }
                    result.push(PromptRow {
                        index,
                        text: policy.tokenizer.decode(&window[..cut], true)?,
                        ids,
                        reference: Some(policy.tokenizer.decode(&window[cut..], true)?),
                    });
                }
                (result, report)
            }
        };
        match rows.is_empty() {
            true => Err(Error::request(format!("no prompts to use: {report}"))),
            false => Ok((rows, report)),
        }
    }
}

/// A text cut into windows of `max_length` tokens.
///
/// Where the tokenizer puts BOS in front of a prompt, every window gets it too and the windows follow one another. Without
/// it the first token of a window has nothing before it to be predicted from, so windows overlap by one token.
struct Windows<'a> {
    /// What stands in front of every window.
    prefix: Vec<u32>,
    /// The tokens of the text.
    texts: Vec<&'a [u32]>,
}

impl<'a> Windows<'a> {
    fn cut(ids: &'a [u32], prefix: Vec<u32>, limits: Limits) -> Result<Self> {
        let overlap = usize::from(prefix.is_empty());
        let Some(size) = limits.max_length.checked_sub(prefix.len()).filter(|&size| size > overlap) else {
            return Err(Error::request(format!(
                "--max_length {} leaves no room for text after the {} token(s) that the tokenizer puts in front",
                limits.max_length,
                prefix.len()
            )));
        };
        // A last window of one token that only repeats the end of the one before predicts nothing and is none.
        let starts = (0..ids.len().saturating_sub(overlap)).step_by(size - overlap);
        let texts = starts.map(|start| &ids[start..(start + size).min(ids.len())]).take(limits.max_samples).collect();
        Ok(Self { prefix, texts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_length: 4, max_prompt_length: 2, max_samples: usize::MAX };

    #[test]
    fn windows_score_every_token_once() {
        for n in 0..30u32 {
            let ids: Vec<u32> = (0..n).collect();
            // Nothing precedes the first token of the text, so it is not scored.
            let plain = Windows::cut(&ids, vec![], LIMITS).expect("room");
            let scored: Vec<u32> = plain.texts.iter().flat_map(|w| w[1..].to_vec()).collect();
            assert_eq!(scored, (1..n.max(1)).collect::<Vec<_>>(), "{n} tokens");
            let with_bos = Windows::cut(&ids, vec![99], LIMITS).expect("room");
            assert_eq!(with_bos.texts.concat(), ids);
            assert!(with_bos.texts.iter().all(|w| w.len() < LIMITS.max_length));
        }
        assert!(Windows::cut(&[1, 2], vec![99; 4], LIMITS).is_err());
    }

    #[test]
    fn parts_are_disjoint_and_cover() {
        let part = |split| Part { held_back: 0.1, split }.range(25);
        assert_eq!((part(Split::Train), part(Split::Validation), part(Split::All)), (0..22, 22..25, 0..25));
    }

    #[test]
    fn the_report_adds_up() {
        let mut report = RowReport::new("rows", 10);
        report.leave_out("longer than 4 tokens".into());
        report.leave_out("longer than 4 tokens".into());
        report.leave_out("no completion".into());
        let text = "10 rows in = 7 used + 2 left out (longer than 4 tokens) + 1 left out (no completion)";
        assert_eq!(report.to_string(), text);
    }
}
