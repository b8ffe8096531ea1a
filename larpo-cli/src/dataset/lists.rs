//! Ranked lists, pairs and labelled completions as lists of candidates.

use super::conversation_of;
use super::{Dataset, Encoded, Fit, Limits, Part, RowReport, Source, Text, Texts};
use super::{NOT_ENCODED, NOTHING_TO_LEARN, UNKNOWN_IDS, UNSCORED, nothing_to_learn};
use crate::args::BadRow;
use crate::candidate_rows::{Known, from_row};
use crate::error::{Error, Result};
use crate::policy::Policy;
use larpo_core::backend::Backend;
use larpo_core::candidates::{Candidate, CandidateList, ListCounts, training_lists};
use larpo_core::objective::Objective;
use larpo_core::select::Select;
use larpo_core::train::TrainingList;
use larpo_data::candidates::CandidateList as CandidateRow;
use larpo_data::records::Labelled;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// Lists to train on, and where they come from.
pub struct Lists {
    /// The lists, in the order in which their first rows are taken.
    pub lists: Vec<CandidateList>,
    /// How many rows each list was made of.
    rows_of: Vec<usize>,
    /// What became of the rows.
    pub report: RowReport,
    /// Line of the first row that gives no more than an order: ranks, and no rewards.
    pub ranks_only: Option<usize>,
}

/// Responses to a prompt with what orders them.
pub struct RankedTexts<'a> {
    /// Line of the first row, counted from 1.
    pub line: usize,
    /// The text before the responses.
    pub prompt: &'a str,
    /// Whether all texts are a chat template's.
    pub chat: bool,
    /// The responses.
    pub responses: Vec<&'a str>,
    /// Their rewards; only the order matters.
    pub scores: Vec<f64>,
    /// By how much the better one is to lead, where the row says so.
    pub margin: Option<f64>,
    /// Rows that the list was made of.
    pub rows: usize,
}

impl<'a> From<Draft<'a>> for RankedTexts<'a> {
    fn from(draft: Draft<'a>) -> Self {
        Self {
            line: draft.line,
            prompt: draft.prompt,
            chat: draft.chat.is_some(),
            responses: draft.responses.into_iter().map(|text| text.text).collect(),
            scores: draft.scores,
            margin: draft.margin,
            rows: draft.rows,
        }
    }
}

/// A list before it has ids: its first line, and its parts.
struct Draft<'a> {
    index: usize,
    line: usize,
    prompt: &'a str,
    /// The turns of the prompt, where the texts are a chat template's.
    chat: Option<Arc<str>>,
    responses: Vec<Text<'a>>,
    scores: Vec<f64>,
    margin: Option<f64>,
    rows: usize,
    /// The row it was read from, where it was one of candidates.
    row: Option<&'a CandidateRow>,
}

impl Source {
    /// The rows of a part as lists of candidates: a pair is a list with the rewards 1 and 0, labelled completions of one
    /// prompt make one list with the labels as rewards.
    ///
    /// # Errors
    /// Rows that contradict one another or cannot be encoded, unless such rows are to be left out; rows that hold one response or none, a list without rewards and ranks, a text that the tokenizer cannot encode.
    pub fn lists<B: Backend>(&self, policy: &Policy<B>, limits: Limits, part: Part) -> Result<Lists> {
        let (chosen, mut report) = self.select("rows", part, limits);
        let chosen = self.consistent(chosen, &mut report)?;
        let texts = |i: usize| match &self.records.dataset {
            Dataset::Pairs(all) => vec![all[i].prompt.as_str(), all[i].chosen.as_str(), all[i].rejected.as_str()],
            Dataset::Unpaired(all) => vec![all[i].prompt.as_str(), all[i].completion.as_str()],
            // Ranked lists may have ids of their own.
            _ => vec![],
        };
        let chosen = &self.encodable(&policy.tokenizer, &chosen, &mut report, texts)[..];
        let (drafts, ranks_only) = self.drafts(chosen, &mut report)?;
        let (mut lists, mut rows_of) = (Vec::with_capacity(drafts.len()), Vec::with_capacity(drafts.len()));
        let front = policy.prompt_prefix()?.len();
        for (draft, list) in drafts.iter().zip(self.encode_lists(policy, chosen, &drafts)?) {
            let mut list = match list {
                Ok(list) => list,
                Err(reason) => {
                    report.leave_out_at(reason, draft.rows, draft.line);
                    continue;
                }
            };
            let ids: Vec<&[u32]> = list.candidates.iter().map(|c| &c.ids[..]).collect();
            if nothing_to_learn(&list.prompt_ids, &ids) {
                report.leave_out_at(NOTHING_TO_LEARN, draft.rows, draft.line);
                continue;
            }
            let longest = list.candidates.iter().map(|c| c.ids.len()).max().unwrap_or(0);
            let front = if draft.chat.is_some() { 0 } else { front };
            match limits.fit(&list.prompt_ids, front, longest, limits.max_length) {
                Fit::Whole => {}
                Fit::Cut(ids) => {
                    report.shortened += draft.rows;
                    list.prompt_ids = ids;
                }
                Fit::LeftOut(reason) => {
                    report.leave_out_at(reason, draft.rows, draft.line);
                    continue;
                }
                Fit::Refused(problem) => return Err(self.refused(draft.line, &problem)),
            }
            lists.push(list);
            rows_of.push(draft.rows);
        }
        match lists.is_empty() {
            true => Err(Error::request(report.nothing_left(&self.path))),
            false => Ok(Lists { lists, rows_of, report, ranks_only }),
        }
    }

    /// What the rows of `chosen` are lists of, and the line of the first row that gives no more than an order.
    fn drafts(&self, chosen: &[usize], report: &mut RowReport) -> Result<(Vec<Draft<'_>>, Option<usize>)> {
        let mut ranks_only = None;
        let drafts = match &self.records.dataset {
            Dataset::RankedLists(all) => {
                let mut drafts = Vec::with_capacity(chosen.len());
                for (i, row) in chosen.iter().map(|&i| (i, &all[i])) {
                    let list = &row.list;
                    let scores = match (list.scores(), self.on_bad_row) {
                        (Some(scores), _) => scores,
                        (None, BadRow::Skip) => {
                            report.leave_out_at(UNSCORED, 1, row.line);
                            continue;
                        }
                        (None, BadRow::Error) => return Err(self.skippable(row.line, &unscored(list))),
                    };
                    if list.rewards.is_empty() {
                        ranks_only.get_or_insert(row.line);
                    }
                    let response = |text| Text { line: row.line, field: "responses", text };
                    let responses = self.responses_of(i, list).map(response).collect();
                    let (index, line, prompt, chat) = (row.index, row.line, &list.prompt[..], conversation_of(list));
                    let (margin, row) = (None, Some(list));
                    drafts.push(Draft { index, line, prompt, chat, responses, scores, margin, rows: 1, row });
                }
                drafts
            }
            Dataset::Pairs(all) => {
                let draft = |&i: &usize| Draft {
                    index: all[i].index,
                    line: all[i].line,
                    prompt: &all[i].prompt,
                    chat: all[i].conversation.clone(),
                    responses: vec![
                        Text { line: all[i].line, field: "chosen", text: &all[i].chosen },
                        Text { line: all[i].line, field: "rejected", text: &all[i].rejected },
                    ],
                    scores: vec![1.0, 0.0],
                    margin: all[i].margin,
                    rows: 1,
                    row: None,
                };
                chosen.iter().map(draft).collect()
            }
            Dataset::Unpaired(all) => {
                let mut drafts: Vec<Draft> = Vec::new();
                let mut place = HashMap::new();
                for row in chosen.iter().map(|&i| &all[i]) {
                    let at = *place.entry(&row.prompt).or_insert(drafts.len());
                    if at == drafts.len() {
                        let (responses, scores) = (Vec::new(), Vec::new());
                        let (index, line, prompt) = (row.index, row.line, &row.prompt[..]);
                        let (chat, margin) = (row.conversation.clone(), None);
                        drafts.push(Draft { index, line, prompt, chat, responses, scores, margin, rows: 0, row: None });
                    }
                    drafts[at].responses.push(Text { line: row.line, field: "completion", text: &row.completion });
                    drafts[at].scores.push(f64::from(u8::from(row.label)));
                    drafts[at].rows += 1;
                }
                drafts
            }
            Dataset::Examples(_) | Dataset::Text(_) => {
                return Err(Error::request(format!(
                    "{} holds {} rows, which rank nothing; `larpo sft` learns completions, `larpo sample` and `larpo rank` \
                     make ranked lists of prompts",
                    self.path.display(),
                    self.records.schema
                )));
            }
        };
        Ok((drafts, ranks_only))
    }

    /// The responses of ranked list `i` as a model reads them.
    fn responses_of<'s>(&'s self, i: usize, list: &'s CandidateRow) -> impl Iterator<Item = &'s str> {
        let rendered = self.answers.get(i).filter(|answers| !answers.is_empty());
        rendered.unwrap_or(&list.responses).iter().map(String::as_str)
    }

    /// The rows of a part as ranked texts, for a model whose tokens are made of whole conversations.
    ///
    /// # Errors
    /// As [`Source::lists`], but for what texts as tokens may be refused for.
    pub fn ranked_texts(&self, limits: Limits, part: Part) -> Result<(Vec<RankedTexts<'_>>, RowReport)> {
        let (chosen, mut report) = self.select("rows", part, limits);
        let chosen = self.consistent(chosen, &mut report)?;
        let (drafts, _) = self.drafts(&chosen, &mut report)?;
        Ok((drafts.into_iter().map(RankedTexts::from).collect(), report))
    }

    /// The rows of a part as responses to prompts, ranked or not.
    ///
    /// # Errors
    /// Rows without a response.
    pub fn responses(&self, limits: Limits, part: Part) -> Result<(Vec<RankedTexts<'_>>, RowReport)> {
        let (chosen, mut report) = self.select("rows", part, limits);
        let texts = match &self.records.dataset {
            Dataset::RankedLists(all) => {
                let list = |&i: &usize| RankedTexts {
                    line: all[i].line,
                    prompt: &all[i].list.prompt,
                    chat: all[i].list.messages.is_some(),
                    responses: self.responses_of(i, &all[i].list).collect(),
                    scores: Vec::new(),
                    margin: None,
                    rows: 1,
                };
                chosen.iter().map(list).collect()
            }
            Dataset::Examples(all) => {
                let mut texts = Vec::with_capacity(chosen.len());
                for row in chosen.iter().map(|&i| &all[i]) {
                    let Some(completion) = &row.completion else {
                        report.leave_out("no response");
                        continue;
                    };
                    let (line, prompt, scores) = (row.line, &row.prompt[..], Vec::new());
                    let (chat, responses) = (row.conversation.is_some(), vec![completion.as_str()]);
                    texts.push(RankedTexts { line, prompt, chat, responses, scores, margin: None, rows: 1 });
                }
                texts
            }
            Dataset::Pairs(_) | Dataset::Unpaired(_) => {
                self.drafts(chosen, &mut report)?.0.into_iter().map(RankedTexts::from).collect()
            }
            Dataset::Text(_) => {
                let problem = "is one text, without responses to score; give rows with prompts and responses";
                return Err(Error::request(format!("{} {problem}", self.path.display())));
            }
        };
        Ok((texts, report))
    }

    /// The rows of `chosen` that do not contradict one another ([`contradictions`]).
    ///
    /// # Errors
    /// The first contradiction, by both its places, unless such rows are to be left out.
    pub(super) fn consistent(&self, chosen: &[usize], report: &mut RowReport) -> Result<Vec<usize>> {
        let found = contradictions(&self.records.dataset, &self.path, chosen);
        let Some((line, problem)) = &found.first else { return Ok(chosen.to_vec()) };
        if self.on_bad_row == BadRow::Error {
            return Err(self.skippable(*line, problem));
        }
        report.leave_out_at(found.reason, found.rows.len(), *line);
        Ok(chosen.iter().copied().filter(|i| !found.rows.contains(i)).collect())
    }

    fn encode_lists<B: Backend>(
        &self,
        policy: &Policy<B>,
        chosen: &[usize],
        drafts: &[Draft],
    ) -> Result<Vec<std::result::Result<CandidateList, &'static str>>> {
        if matches!(self.records.dataset, Dataset::RankedLists(_)) {
            let list = |draft: &Draft| match draft.row {
                Some(row) => from_row(
                    policy,
                    row,
                    Some(&draft.scores),
                    Known { prompt_index: draft.index, iteration: 0, untouched: false },
                )
                .map(Ok)
                .or_else(|error| match self.on_bad_row {
                    BadRow::Error => Err(self.skippable(draft.line, &error)),
                    BadRow::Skip if has_unknown_ids(row, policy.tokenizer.vocab_size()) => Ok(Err(UNKNOWN_IDS)),
                    BadRow::Skip => Ok(Err(NOT_ENCODED)),
                }),
                None => unreachable!("ranked lists keep their rows"),
            };
            return drafts.iter().map(list).collect();
        }
        let texts: Vec<Texts> = drafts
            .iter()
            .map(|draft| Texts {
                prompt: Text { line: draft.line, field: self.prompt_field(), text: draft.prompt },
                responses: draft.responses.clone(),
                chat: draft.chat.is_some(),
            })
            .collect();
        let encoded = self.encode(&policy.tokenizer, &self.settings("lists", chosen), &texts)?;
        let list = |(draft, row): (&Draft, Encoded)| {
            let candidates = row.responses.into_iter().zip(&draft.responses).zip(&draft.scores);
            let candidate = |((mut ids, text), &reward): ((Vec<u32>, &Text), &f64)| {
                // A chat template ends a turn itself.
                ids.extend(policy.eos_ids.first().filter(|_| draft.chat.is_none()));
                made_elsewhere(ids, text.text, reward)
            };
            Ok(CandidateList {
                prompt_index: draft.index,
                prompt: draft.prompt.into(),
                conversation: draft.chat.clone(),
                prompt_ids: row.prompt,
                reference: None,
                candidates: candidates.map(candidate).collect(),
            })
        };
        Ok(drafts.iter().zip(encoded).map(list).collect())
    }
}

impl Lists {
    /// Training lists of the candidates; rows of lists that cannot contribute are added to the report.
    ///
    /// # Errors
    /// As [`training_lists`].
    pub fn training(&mut self, select: Select, objective: &Objective) -> Result<(Vec<TrainingList>, ListCounts)> {
        let (mut training, mut counts) = (Vec::new(), ListCounts::default());
        for (list, &rows) in self.lists.iter().zip(&self.rows_of) {
            // Recorded log-probabilities belong to the policy that drew the responses, which need not be this one.
            let (lists, one) = training_lists(std::iter::once(list), select, objective, u32::MAX)?;
            self.report.leave_out_several("equal rewards", rows * one.equal);
            self.report.leave_out_several("fewer than two different responses", rows * one.too_short);
            training.extend(lists);
            counts = ListCounts {
                lists: counts.lists + one.lists,
                contributing: counts.contributing + one.contributing,
                equal: counts.equal + one.equal,
                too_short: counts.too_short + one.too_short,
                candidates: counts.candidates + one.candidates,
                duplicates: counts.duplicates + one.duplicates,
            };
        }
        Ok((training, counts))
    }
}

/// Whether a row has ids for which the tokenizer has no token.
fn has_unknown_ids(row: &CandidateRow, vocab_size: usize) -> bool {
    row.token_ids.iter().chain(&row.prompt_token_ids).flatten().any(|&id| id as usize >= vocab_size)
}

/// Rows that contradict themselves or one another.
#[derive(Debug, Default)]
pub struct Contradictions {
    /// What they are counted by.
    pub reason: &'static str,
    /// The rows, by their number in the data set.
    pub rows: HashSet<usize>,
    /// The line that the first was found in, and what is wrong, with the other place.
    pub first: Option<(usize, String)>,
}

/// The rows among `chosen` of the data set in `path` that contradict one another: a response of a prompt that is labelled good
/// and bad, or that has two rewards in a list, would be learned as whichever comes first.
pub fn contradictions(dataset: &Dataset, path: &Path, chosen: &[usize]) -> Contradictions {
    let mut found = Contradictions::default();
    match dataset {
        Dataset::Unpaired(all) => {
            found.reason = "contradictory labels";
            let (mut first, mut contradicted) = (HashMap::new(), HashSet::new());
            for row in chosen.iter().map(|&i| &all[i]) {
                let key = (&row.prompt, &row.completion);
                let known: &Labelled = first.entry(key).or_insert(row);
                if known.label != row.label {
                    contradicted.insert(key);
                    found.first.get_or_insert_with(|| {
                        let problem = format!(
                            "`label` is {}, and {} in {}:{} for the same completion of the same prompt; correct one, or \
                             delete both",
                            row.label,
                            known.label,
                            path.display(),
                            known.line
                        );
                        (row.line, problem)
                    });
                }
            }
            found.rows.extend(chosen.iter().filter(|&&i| contradicted.contains(&(&all[i].prompt, &all[i].completion))));
        }
        Dataset::RankedLists(all) => {
            found.reason = "contradictory rewards";
            for &i in chosen {
                let (row, list) = (&all[i], &all[i].list);
                if let Some((a, b)) = contradiction(list) {
                    found.rows.insert(i);
                    found.first.get_or_insert_with(|| {
                        let problem = format!(
                            "`rewards[{b}]` is {}, and `rewards[{a}]` in {}:{} is {} for the same response; correct one, or \
                             delete the response from every array",
                            list.rewards[b],
                            path.display(),
                            row.line,
                            list.rewards[a]
                        );
                        (row.line, problem)
                    });
                }
            }
        }
        Dataset::Examples(_) | Dataset::Pairs(_) | Dataset::Text(_) => {}
    }
    found
}

/// Two places in a list whose responses are the same, their ids included, and whose rewards are not.
fn contradiction(list: &CandidateRow) -> Option<(usize, usize)> {
    let mut first = HashMap::new();
    list.rewards.iter().enumerate().find_map(|(i, &reward)| {
        let known = *first.entry((&list.responses[i], list.token_ids.get(i))).or_insert(i);
        (list.rewards[known] != reward).then_some((known, i))
    })
}

fn unscored(row: &CandidateRow) -> String {
    let known = row.extra.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let unknown = if known.is_empty() { String::new() } else { format!(" (not read: {known})") };
    format!(
        "the row has no field `rewards` and no field `ranks`{unknown}; score the file with `larpo rank` first, or write \
         \"rewards\": [1.0, 0.0]"
    )
}

fn made_elsewhere(ids: Vec<u32>, text: &str, reward: f64) -> Candidate {
    Candidate {
        ids,
        logps: Vec::new(),
        text: text.into(),
        finish_reason: None,
        iteration: 0,
        temperature: 1.0,
        seed: 0,
        reward,
    }
}
