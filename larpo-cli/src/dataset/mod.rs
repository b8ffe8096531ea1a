//! Data sets as token ids: reading, the split, limits on length, and the report of what was used and what was not.

mod cache;
mod lists;
mod report;
#[cfg(test)]
mod tests;
mod windows;

pub use lists::{Contradictions, Lists, RankedTexts, contradictions};
pub use report::RowReport;
pub use windows::window_lengths;

use crate::args::{BadRow, DataArgs, ReadArgs, Split, TruncationMode};
use crate::chat;
use crate::error::{Error, Result};
use crate::messages::count;
use crate::policy::{Policy, encode_prompt};
use cache::{Encoded, TokenCache};
use larpo_core::backend::Backend;
use larpo_core::rng::{CounterRng, Purpose};
use larpo_core::train::SftRow;
use larpo_data::candidates::CandidateList;
use larpo_data::checksums::Checksum;
use larpo_data::records::{
    Dataset, Example, OnBadRow, Ranked, ReadOptions, Records, Renderer, Schema, assistant, parse_dataset,
};
use larpo_data::tokenizer::Tokenizer;
use rayon::prelude::*;
use serde_json::Value;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use windows::Windows;

/// A prompt as text and ids.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRow {
    /// Its number in the data set.
    pub index: usize,
    /// Its line in the file, counted from 1; 0 for a window of plain text.
    pub line: usize,
    /// Its text.
    pub text: String,
    /// The turns that the text is the rendering of, as JSON, where it is a conversation.
    pub conversation: Option<Arc<str>>,
    /// Its ids.
    pub ids: Vec<u32>,
    /// What a correct response is compared with.
    pub reference: Option<String>,
}

impl PromptRow {
    /// A text of the command line.
    pub fn of_text(index: usize, text: &str, ids: Vec<u32>) -> Self {
        Self { index, line: index + 1, text: text.into(), conversation: None, ids, reference: None }
    }

    /// Whether there is anything to compare a response with.
    pub fn has_reference(&self) -> bool {
        self.reference.as_deref().is_some_and(|reference| !reference.trim().is_empty())
    }
}

/// Tokens of a row where `--max_length` is not given and the model takes as many.
pub const LONGEST: usize = 1024;

/// How rows are cut and limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of prompt and response together.
    pub max_length: usize,
    /// Tokens of a prompt.
    pub max_prompt_length: usize,
    /// First rows to take.
    pub max_samples: usize,
    /// The flag that says so.
    pub samples_flag: &'static str,
    /// What becomes of longer rows.
    pub truncation_mode: TruncationMode,
}

impl Limits {
    /// The limits of the flags, within what `model` can take.
    ///
    /// # Errors
    /// A limit beyond the model's positions.
    pub fn new<B: Backend>(args: &DataArgs, policy: &Policy<B>) -> Result<Self> {
        let positions = policy.model.config().max_position_embeddings;
        let max_length = args.max_length.unwrap_or(positions.min(LONGEST));
        if max_length > positions {
            return Err(Error::request(format!(
                "--max_length {max_length} is more than the model's max_position_embeddings {positions}"
            )));
        }
        let max_prompt_length = args.max_prompt_length.unwrap_or(max_length);
        let max_samples = args.max_samples.unwrap_or(usize::MAX);
        let samples_flag = args.samples_flag.unwrap_or("--max_samples");
        Ok(Self { max_length, max_prompt_length, max_samples, samples_flag, truncation_mode: args.truncation_mode })
    }

    /// The prompt of `ids`, `front` of them the tokenizer's own, beside a response of `longest` tokens; `total` limits
    /// both together. A prompt that is cut keeps the tokenizer's own tokens and at least one of its own.
    fn fit(&self, ids: &[u32], front: usize, longest: usize, total: usize) -> Fit {
        let room = self.max_prompt_length.min(total.saturating_sub(longest));
        if ids.len() <= room {
            return Fit::Whole;
        }
        let reason = match ids.len() > self.max_prompt_length {
            true => format!("prompt longer than {} tokens", self.max_prompt_length),
            false => format!("longer than {total} tokens"),
        };
        match self.truncation_mode {
            TruncationMode::Skip => Fit::LeftOut(reason),
            TruncationMode::Error => {
                Fit::Refused(format!("a prompt of {} tokens and a response of {longest}: {reason}", ids.len()))
            }
            _ if room <= front => Fit::LeftOut("response leaves no room for a prompt".into()),
            TruncationMode::KeepStart => Fit::Cut(ids[..room].to_vec()),
            TruncationMode::KeepEnd => Fit::Cut([&ids[..front], &ids[ids.len() - (room - front)..]].concat()),
        }
    }
}

/// Whether a prompt fits.
#[derive(Debug, PartialEq)]
enum Fit {
    Whole,
    Cut(Vec<u32>),
    LeftOut(String),
    Refused(String),
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

/// Reading options from the flags.
pub fn read_options<'a>(args: &ReadArgs, renderer: Renderer<'a>) -> ReadOptions<'a> {
    ReadOptions { schema: args.dataset_schema, on_bad_row: on_bad_row(args.on_bad_row), renderer }
}

/// The library's word for the flag's.
pub fn on_bad_row(flag: BadRow) -> OnBadRow {
    match flag {
        BadRow::Error => OnBadRow::Error,
        BadRow::Skip => OnBadRow::Skip,
    }
}

/// The data error with the flag that settles it, where one does that is not given yet.
pub fn with_flag(error: larpo_data::Error, flag: BadRow) -> Error {
    match &error {
        larpo_data::Error::Ambiguous { fits, .. } => {
            let flags: Vec<String> = fits.iter().map(|(schema, _)| format!("--dataset_schema {schema}")).collect();
            Error::request(format!("{error}: {}", flags.join(" or ")))
        }
        larpo_data::Error::Record(row) if flag == BadRow::Error && !row.of_the_file => {
            Error::request(format!("{error} (--on_bad_row skip leaves such a row out)"))
        }
        _ => error.into(),
    }
}

/// A data set read once, to be turned into rows.
pub struct Source {
    path: PathBuf,
    records: Records,
    /// Rows of the data set in the order in which they are taken.
    order: Vec<usize>,
    /// Of every ranked list of a conversation its responses as the chat template writes them; empty of others.
    answers: Vec<Vec<String>>,
    cache: TokenCache,
    on_bad_row: BadRow,
}

impl Source {
    /// Reads a file. Conversations are rendered by the chat templates of `tokenizer`.
    ///
    /// # Errors
    /// A file that cannot be read or has another form, a malformed row unless such rows are to be skipped.
    pub fn open(path: &Path, args: &DataArgs, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::request(format!("{} is a folder; name a file with data in it", path.display())));
        }
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let cache = TokenCache::new(args, path, &bytes);
        let records = parse_dataset(path, bytes, &read_options(&args.read, tokenizer.into()))
            .map_err(|error| with_flag(error, args.read.on_bad_row))?;
        say!("{}: {} ({}; {})", path.display(), records.schema, records.why, records.format);
        if !records.unread.is_empty() {
            say!("note: fields of {} that are not read: {}", path.display(), records.unread.join(", "));
        }
        if let Some(first) = records.bad.first() {
            warn!("{} left out; the first: {first}", count(records.bad.len(), "malformed rows"));
        }
        let order = match (args.shuffle_seed, records.schema) {
            (Some(_), Schema::Text) => {
                return Err(Error::request(format!(
                    "--shuffle_seed orders rows, and {} is one text; leave it out (training shuffles windows by --seed)",
                    path.display()
                )));
            }
            (Some(seed), _) => CounterRng::new(seed, Purpose::Split).permutation(0, records.dataset.len()),
            (None, _) => (0..records.dataset.len()).collect(),
        };
        let answers = answers(&records.dataset, tokenizer)
            .map_err(|(line, error)| Error::request(format!("{}:{line}: {error}", path.display())))?;
        Ok(Self { path: path.into(), records, order, answers, cache, on_bad_row: args.read.on_bad_row })
    }

    /// Whether some of the rows are conversations.
    pub fn has_conversations(&self) -> bool {
        match &self.records.dataset {
            Dataset::Examples(rows) => rows.iter().any(|row| row.conversation.is_some()),
            Dataset::Pairs(rows) => rows.iter().any(|row| row.conversation.is_some()),
            Dataset::Unpaired(rows) => rows.iter().any(|row| row.conversation.is_some()),
            Dataset::RankedLists(rows) => rows.iter().any(|row| row.list.messages.is_some()),
            Dataset::Text(_) => false,
        }
    }

    /// The texts of a data set, for building a tokenizer.
    pub fn texts(&self) -> Vec<String> {
        self.records.dataset.texts()
    }

    /// The rows of a part that the limits leave, and a report in which all others are counted.
    fn select(&self, unit: &'static str, part: Part, limits: Limits) -> (&[usize], RowReport) {
        let mut report = RowReport::new(unit, self.records.rows());
        for bad in &self.records.bad {
            report.leave_out_at(bad.reason(), 1, bad.line);
        }
        let range = part.range(self.order.len());
        let other = if part.split == Split::Validation { FOR_TRAINING } else { HELD_BACK };
        report.leave_out_several(other, self.order.len() - range.len());
        let taken = range.start..range.end.min(range.start.saturating_add(limits.max_samples));
        report.leave_out_several(format!("beyond {}", limits.samples_flag), range.len() - taken.len());
        (&self.order[taken], report)
    }

    /// The ids of the given texts, from the cache where it has them.
    fn encode(&self, tokenizer: &Tokenizer, what: &str, texts: &[Texts]) -> Result<Vec<Encoded>> {
        let shape: Vec<usize> = texts.iter().map(|texts| texts.responses.len()).collect();
        let make = || {
            let row = |texts: &Texts| -> Result<Encoded> {
                if texts.chat {
                    let answers: Vec<&str> = texts.responses.iter().map(|text| text.text).collect();
                    let (prompt, responses) = chat::encode(tokenizer, texts.prompt.text, &answers)
                        .map_err(|error| self.in_field(&texts.prompt, &error))?;
                    return Ok(Encoded { prompt, responses });
                }
                let prompt = encode_prompt(tokenizer, texts.prompt.text);
                let response = |text: &Text| tokenizer.encode(text.text).map_err(|error| self.in_field(text, &error));
                Ok(Encoded {
                    prompt: prompt.map_err(|error| self.in_field(&texts.prompt, &error))?,
                    responses: texts.responses.iter().map(response).collect::<Result<_>>()?,
                })
            };
            // Collected before the first error is looked for, which must not depend on which thread is faster.
            let rows: Vec<Result<Encoded>> = texts.par_iter().map(row).collect();
            rows.into_iter().collect()
        };
        // What a chat template makes of a conversation is told by neither file nor tokenizer.
        let mut rendered = Checksum::of(b"");
        for texts in texts.iter().filter(|texts| texts.chat) {
            for text in [&texts.prompt].into_iter().chain(&texts.responses) {
                rendered.add(text.text.as_bytes());
                rendered.add(&[0xff]);
            }
        }
        let what = if texts.iter().any(|texts| texts.chat) { format!("{what} {rendered}") } else { what.into() };
        self.cache.rows(tokenizer.json(), &what, &shape, tokenizer.vocab_size(), make)
    }

    /// The rows of `chosen` whose texts the tokenizer can encode, where such rows are to be left out; all of them otherwise.
    fn encodable<'s>(
        &'s self,
        tokenizer: &Tokenizer,
        chosen: &[usize],
        report: &mut RowReport,
        texts: impl Fn(usize) -> Vec<&'s str> + Sync,
    ) -> Vec<usize> {
        if self.on_bad_row == BadRow::Error {
            return chosen.to_vec();
        }
        let whole = |&i: &usize| texts(i).into_iter().all(|text| tokenizer.encode(text).is_ok());
        let (kept, others): (Vec<usize>, Vec<usize>) = chosen.par_iter().copied().partition(whole);
        let line = others.iter().map(|&i| self.line(i)).min().unwrap_or_default();
        report.leave_out_at(NOT_ENCODED, others.len(), line);
        kept
    }

    /// The line that row `i` of the data set begins in; 0 of a text.
    fn line(&self, i: usize) -> usize {
        match &self.records.dataset {
            Dataset::Examples(all) => all[i].line,
            Dataset::Pairs(all) => all[i].line,
            Dataset::Unpaired(all) => all[i].line,
            Dataset::RankedLists(all) => all[i].line,
            Dataset::Text(_) => 0,
        }
    }

    /// What decides, beside file and tokenizer, which rows are tokenised.
    fn settings(&self, what: &str, chosen: &[usize]) -> String {
        format!("{what} {} {} {chosen:?}", self.records.schema, self.records.rows())
    }

    /// An error about the row in `line`.
    fn at(&self, line: usize, problem: &dyn std::fmt::Display) -> Error {
        Error::request(format!("{}:{line}: {problem}", self.path.display()))
    }

    /// An error about a row that `--on_bad_row skip` would leave out.
    fn skippable(&self, line: usize, problem: &dyn std::fmt::Display) -> Error {
        self.at(line, &format!("{problem} (--on_bad_row skip leaves such rows out)"))
    }

    /// An error about the text of a field; of a data set that is one text, the error itself names the place in it.
    fn in_field(&self, text: &Text, problem: &dyn std::fmt::Display) -> Error {
        match text.line {
            0 => Error::request(format!("{}: {problem}", self.path.display())),
            line => self.skippable(line, &format!("`{}`: {problem}", text.field)),
        }
    }

    /// The field that the rows' prompts stand in.
    fn prompt_field(&self) -> &'static str {
        match self.records.schema {
            Schema::Gsm8k => "question",
            Schema::Ultrafeedback => "instruction",
            _ => "prompt",
        }
    }

    fn refused(&self, line: usize, problem: &str) -> Error {
        let mend = "shorten the row, raise --max_length or --max_prompt_length, or choose another --truncation_mode";
        self.at(line, &format!("{problem}; {mend}"))
    }

    /// Rows to learn from: completions end with the end-of-text token; a text is cut into windows of `max_length`
    /// tokens, whose every token is learned once. Of pairs the chosen responses are learned, of labelled completions the
    /// good ones.
    ///
    /// # Errors
    /// Ranked lists, or a text that the tokenizer cannot encode.
    pub fn sft_rows<B: Backend>(
        &self,
        policy: &Policy<B>,
        limits: Limits,
        part: Part,
    ) -> Result<(Vec<SftRow>, RowReport)> {
        let (chosen, mut report) = self.select("rows", part, limits);
        let chosen = self.consistent(chosen, &mut report)?;
        let learned = |i: usize| match &self.records.dataset {
            Dataset::Examples(all) => match &all[i].completion {
                Some(completion) => vec![all[i].prompt.as_str(), completion.as_str()],
                None => vec![],
            },
            Dataset::Pairs(all) => vec![all[i].prompt.as_str(), all[i].chosen.as_str()],
            Dataset::Unpaired(all) if all[i].label => vec![all[i].prompt.as_str(), all[i].completion.as_str()],
            _ => vec![],
        };
        let chosen = &self.encodable(&policy.tokenizer, &chosen, &mut report, learned)[..];
        let (prompt_field, completion_field) = match self.records.schema {
            Schema::Gsm8k => (self.prompt_field(), "answer"),
            _ => (self.prompt_field(), "completion"),
        };
        let texts = |line: usize, (prompt, chat), field: &'static str, completion| Texts {
            prompt: Text { line, field: prompt_field, text: prompt },
            responses: vec![Text { line, field, text: completion }],
            chat,
        };
        // Of the rows that have a completion.
        let mut rows: Vec<Texts> = Vec::with_capacity(chosen.len());
        match &self.records.dataset {
            Dataset::Text(text) => {
                let ids = self.text_ids(policy, text)?;
                let windows = Windows::cut(&ids[part.range(ids.len())], policy.prompt_prefix()?, limits)?;
                let row = |text: &&[u32]| SftRow { prompt: windows.prefix.clone(), response: text.to_vec() };
                return Ok((windows.used().iter().map(row).collect(), windows.report()));
            }
            Dataset::RankedLists(_) => {
                return Err(Error::request(format!(
                    "{} holds ranked lists; give them to `larpo train`, or rank them anew with `larpo rank`",
                    self.path.display()
                )));
            }
            Dataset::Examples(all) => {
                for row in chosen.iter().map(|&i| &all[i]) {
                    match &row.completion {
                        Some(completion) => {
                            let prompt = (row.prompt.as_str(), row.conversation.is_some());
                            rows.push(texts(row.line, prompt, completion_field, completion));
                        }
                        None => report.leave_out_at("no completion", 1, row.line),
                    }
                }
            }
            Dataset::Pairs(all) => {
                say!("note: of each pair the chosen response is learned");
                let prompt = |i: usize| (all[i].prompt.as_str(), all[i].conversation.is_some());
                let row = |&i: &usize| texts(all[i].line, prompt(i), "chosen", &all[i].chosen);
                rows.extend(chosen.iter().map(row));
            }
            Dataset::Unpaired(all) => {
                for row in chosen.iter().map(|&i| &all[i]) {
                    match row.label {
                        true => {
                            let prompt = (row.prompt.as_str(), row.conversation.is_some());
                            rows.push(texts(row.line, prompt, completion_field, &row.completion));
                        }
                        false => report.leave_out_at("label false", 1, row.line),
                    }
                }
            }
        }
        let encoded = self.encode(&policy.tokenizer, &self.settings("completions", chosen), &rows)?;
        let front = policy.prompt_prefix()?.len();
        let mut result = Vec::with_capacity(rows.len());
        for (texts, row) in rows.into_iter().zip(encoded) {
            let mut response = row.responses.into_iter().next().unwrap_or_default();
            // A chat template ends a turn itself.
            response.extend(policy.eos_ids.first().filter(|_| !texts.chat));
            if nothing_to_learn(&row.prompt, &[&response]) {
                report.leave_out_at(NOTHING_TO_LEARN, 1, texts.prompt.line);
                continue;
            }
            let front = if texts.chat { 0 } else { front };
            match limits.fit(&row.prompt, front, response.len(), limits.max_length) {
                Fit::Whole => result.push(SftRow { prompt: row.prompt, response }),
                Fit::Cut(prompt) => {
                    report.shortened += 1;
                    result.push(SftRow { prompt, response });
                }
                Fit::LeftOut(reason) => report.leave_out_at(reason, 1, texts.prompt.line),
                Fit::Refused(problem) => return Err(self.refused(texts.prompt.line, &problem)),
            }
        }
        Ok((result, report))
    }

    /// Prompts to answer with up to `max_new_tokens` tokens. Of a window of plain text the first `max_prompt_length`
    /// tokens (by default half of it) make the prompt, the rest is the reference. Labelled completions give each of their
    /// prompts once.
    ///
    /// # Errors
    /// No prompt that fits, or a text that the tokenizer cannot encode.
    pub fn prompts<B: Backend>(
        &self,
        policy: &Policy<B>,
        limits: Limits,
        part: Part,
        max_new_tokens: usize,
        explicit_prompt_length: bool,
    ) -> Result<(Vec<PromptRow>, RowReport)> {
        let (rows, report) = match &self.records.dataset {
            Dataset::Text(text) => {
                self.text_prompts(policy, text, limits, part, max_new_tokens, explicit_prompt_length)?
            }
            _ => self.row_prompts(policy, limits, part, max_new_tokens)?,
        };
        match rows.is_empty() {
            true => Err(Error::request(format!("{}: no prompts to use: {report}", self.path.display()))),
            false => Ok((rows, report)),
        }
    }

    fn row_prompts<B: Backend>(
        &self,
        policy: &Policy<B>,
        limits: Limits,
        part: Part,
        max_new_tokens: usize,
    ) -> Result<(Vec<PromptRow>, RowReport)> {
        let positions = policy.model.config().max_position_embeddings;
        let (chosen, mut report) = self.select("prompts", part, limits);
        let prompt = |i: usize| match &self.records.dataset {
            Dataset::Examples(all) => vec![all[i].prompt.as_str()],
            Dataset::Pairs(all) => vec![all[i].prompt.as_str()],
            Dataset::Unpaired(all) => vec![all[i].prompt.as_str()],
            Dataset::RankedLists(all) => vec![all[i].list.prompt.as_str()],
            Dataset::Text(_) => vec![],
        };
        let chosen = &self.encodable(&policy.tokenizer, chosen, &mut report, prompt)[..];
        let mut seen = HashSet::new();
        // Without ids yet.
        let mut rows: Vec<PromptRow> = Vec::with_capacity(chosen.len());
        let row = |(index, line): (usize, usize),
                   text: &String,
                   conversation: Option<Arc<str>>,
                   reference: Option<&String>| {
            let (text, reference) = (text.clone(), reference.cloned());
            PromptRow { index, line, text, conversation, ids: Vec::new(), reference }
        };
        for &i in chosen {
            rows.push(match &self.records.dataset {
                // A row with a worked solution and nothing else to compare with is its own reference.
                Dataset::Examples(all) => {
                    let Example { index, line, prompt, conversation, completion, reference } = &all[i];
                    let reference = reference.as_ref().or(completion.as_ref());
                    row((*index, *line), prompt, conversation.clone(), reference)
                }
                Dataset::Pairs(all) => {
                    row((all[i].index, all[i].line), &all[i].prompt, all[i].conversation.clone(), None)
                }
                Dataset::RankedLists(all) => {
                    let Ranked { index, line, list } = &all[i];
                    row((*index, *line), &list.prompt, conversation_of(list), list.reference.as_ref())
                }
                Dataset::Unpaired(all) if seen.insert(&all[i].prompt) => {
                    row((all[i].index, all[i].line), &all[i].prompt, all[i].conversation.clone(), None)
                }
                Dataset::Unpaired(_) => {
                    report.leave_out("prompt of an earlier row");
                    continue;
                }
                Dataset::Text(_) => unreachable!("a text has no rows"),
            });
        }
        let mut texts = Vec::with_capacity(rows.len());
        for row in &rows {
            let prompt = Text { line: row.line, field: self.prompt_field(), text: &row.text };
            texts.push(Texts { prompt, responses: vec![], chat: row.conversation.is_some() });
        }
        let encoded = self.encode(&policy.tokenizer, &self.settings("prompts", chosen), &texts)?;
        let front = policy.prompt_prefix()?.len();
        let mut result = Vec::with_capacity(rows.len());
        for (mut prompt, row) in rows.into_iter().zip(encoded) {
            prompt.ids = row.prompt;
            let front = if prompt.conversation.is_some() { 0 } else { front };
            if prompt.ids.is_empty() {
                report.leave_out("empty prompt");
                continue;
            }
            match limits.fit(&prompt.ids, front, max_new_tokens, positions) {
                Fit::Whole => {}
                Fit::Cut(ids) => {
                    report.shortened += 1;
                    // What is scored and written down is what the model saw.
                    prompt.text = policy.tokenizer.decode(&ids[front..], true)?;
                    prompt.ids = ids;
                }
                Fit::LeftOut(_) if prompt.ids.len() <= limits.max_prompt_length => {
                    report.leave_out(beyond(max_new_tokens, positions));
                    continue;
                }
                Fit::LeftOut(reason) => {
                    report.leave_out(reason);
                    continue;
                }
                Fit::Refused(problem) => return Err(self.refused(prompt.line, &problem)),
            }
            result.push(prompt);
        }
        Ok((result, report))
    }

    fn text_prompts<B: Backend>(
        &self,
        policy: &Policy<B>,
        text: &str,
        mut limits: Limits,
        part: Part,
        max_new_tokens: usize,
        explicit_prompt_length: bool,
    ) -> Result<(Vec<PromptRow>, RowReport)> {
        let positions = policy.model.config().max_position_embeddings;
        if !explicit_prompt_length {
            limits.max_prompt_length = (limits.max_length / 2).max(1);
        }
        let ids = self.text_ids(policy, text)?;
        let windows = Windows::cut(&ids[part.range(ids.len())], policy.prompt_prefix()?, limits)?;
        let mut report = windows.report();
        let mut result = Vec::new();
        let cut = limits.max_prompt_length.saturating_sub(windows.prefix.len()).max(1);
        for (index, window) in windows.used().iter().enumerate() {
            if window.len() <= cut {
                report.leave_out("nothing after the prompt");
                continue;
            }
            let ids = [&windows.prefix, &window[..cut]].concat();
            if ids.len() + max_new_tokens > positions {
                report.leave_out(beyond(max_new_tokens, positions));
                continue;
            }
            result.push(PromptRow {
                index,
                line: 0,
                text: policy.tokenizer.decode(&window[..cut], true)?,
                conversation: None,
                ids,
                reference: Some(policy.tokenizer.decode(&window[cut..], true)?),
            });
        }
        Ok((result, report))
    }

    /// The ids of the one text.
    fn text_ids<B: Backend>(&self, policy: &Policy<B>, whole: &str) -> Result<Vec<u32>> {
        let text = |text| Text { line: 0, field: "", text };
        let texts = Texts { prompt: text(""), responses: vec![text(whole)], chat: false };
        let rows = self.encode(&policy.tokenizer, "text", &[texts])?;
        Ok(rows.into_iter().flat_map(|row| row.responses).flatten().collect())
    }
}

/// Why a row with a text that has no tokens is left out.
const NOT_ENCODED: &str = "text that the tokenizer cannot encode";
/// Why a list that nothing orders is left out.
const UNSCORED: &str = "no rewards and no ranks";
/// Why a row with ids of its own is left out.
const UNKNOWN_IDS: &str = "token ids that the tokenizer does not have";
/// Why a row is left out of a training part.
const HELD_BACK: &str = "held back for validation";
/// Why a row is left out of a held-out part.
const FOR_TRAINING: &str = "kept for training";
/// Why a row is left out of whose responses no token is scored: the first token of a text has nothing before it.
const NOTHING_TO_LEARN: &str = "nothing to learn";

fn nothing_to_learn(prompt: &[u32], responses: &[&[u32]]) -> bool {
    responses.iter().all(|ids| ids.len() <= usize::from(prompt.is_empty()))
}

/// A text to encode, and where it stands: line 0 for a data set that is one text.
#[derive(Clone, Copy)]
struct Text<'a> {
    line: usize,
    field: &'static str,
    text: &'a str,
}

/// What is encoded together: a prompt and its responses.
struct Texts<'a> {
    prompt: Text<'a>,
    responses: Vec<Text<'a>>,
    /// The texts are a chat template's.
    chat: bool,
}

/// The turns of a list's prompt as JSON.
fn conversation_of(list: &CandidateList) -> Option<Arc<str>> {
    list.messages.as_ref().map(|turns| Value::from(&turns[..]).to_string().into())
}

/// The responses of ranked lists of conversations as the template writes them; an error with its line.
fn answers(
    dataset: &Dataset,
    tokenizer: Option<&Tokenizer>,
) -> std::result::Result<Vec<Vec<String>>, (usize, larpo_data::Error)> {
    let Dataset::RankedLists(all) = dataset else { return Ok(Vec::new()) };
    let of_row = |row: &Ranked| {
        let Some(turns) = &row.list.messages else { return Ok(Vec::new()) };
        let templates = tokenizer.map_or(Ok(None), Tokenizer::conversations).map_err(|error| (row.line, error))?;
        let Some(templates) = templates else { return Ok(Vec::new()) };
        let answers: Vec<[Value; 1]> = row.list.responses.iter().map(|text| [assistant(text)]).collect();
        let answers: Vec<&[Value]> = answers.iter().map(|answer| &answer[..]).collect();
        templates.answered(turns, &answers, None).map(|(_, answers)| answers).map_err(|error| (row.line, error))
    };
    all.iter().map(of_row).collect()
}

fn beyond(max_new_tokens: usize, positions: usize) -> String {
    format!("prompt and {max_new_tokens} new tokens exceed {positions} positions")
}
