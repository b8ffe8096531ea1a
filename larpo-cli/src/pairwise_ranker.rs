//! A language model as the reranker: it is shown two responses at a time and asked which is better.
//!
//! `P(a beats b)` is the probability of the first label against the second as the next token. A model prefers one place to
//! the other, so both orders are asked and averaged.

use crate::args::RewardArgs;
use crate::chat::{Chat, told, turn};
use crate::error::{Error, Result};
use crate::policy::{Kind, Opened, Policy};
use crate::reward_model::SharedTexts;
use larpo_core::backend::Backend;
use larpo_core::model::ModelConfig;
use larpo_core::objective::numerics::sigmoid;
use larpo_core::objective::{RankBy, preference_scores};
use larpo_core::reranker::{Query, Reranker};
use larpo_core::train::SCORING_ROWS;
use larpo_data::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder of a pairwise ranker without its weights, and its question.
pub struct OpenedPairwiseRanker {
    opened: Opened,
    question: Question,
}

impl OpenedPairwiseRanker {
    /// Reads everything but the weights.
    ///
    /// # Errors
    /// A folder that holds no language model, a template without one of its places, labels that are not two tokens.
    pub fn read(folder: &Path, args: &RewardArgs) -> Result<Self> {
        let opened = Opened::read_as(folder, Kind::LanguageModel)?;
        let path = args.ranker_template.as_ref().ok_or_else(|| {
            Error::request("--pairwise_ranker needs --ranker_template FILE, a text with {prompt}, {a} and {b}")
        })?;
        let tokenizer = opened.tokenizer.clone();
        let names = match &args.ranker_labels[..] {
            [] => &["A".to_string(), "B".to_string()][..],
            given => given,
        };
        let question = Question {
            template: Template::read(path)?,
            labels: labels(names, &tokenizer, folder)?,
            rank_by: args.rank_by.unwrap_or_default(),
            limit: opened.config.max_position_embeddings,
            folder: folder.into(),
            tokenizer,
        };
        Ok(Self { opened, question })
    }

    /// Files and folders that it was made from, by flag.
    pub fn inputs(&self) -> Vec<(&'static str, PathBuf)> {
        let Question { folder, template, .. } = &self.question;
        vec![("pairwise_ranker", folder.clone()), ("ranker_template", template.path.clone())]
    }

    /// Shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.opened.config
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// As [`Opened::load`].
    pub fn load<B: Backend>(self, backend: &B) -> Result<PairwiseRanker<B>> {
        Ok(PairwiseRanker { policy: self.opened.load(backend)?, question: self.question })
    }
}

/// The ids of the two labels, each of which must be one token.
fn labels(labels: &[String], tokenizer: &Tokenizer, folder: &Path) -> Result<[u32; 2]> {
    let refused = |problem: String| Error::request(format!("--ranker_labels: {problem}"));
    let id = |label: &String| match &tokenizer.encode(label)?[..] {
        &[id] => Ok(id),
        ids => Err(refused(format!(
            "{label:?} is {} tokens of {}, and must be one; a label that follows a blank is written with it, as in ' A, B'",
            ids.len(),
            folder.display()
        ))),
    };
    match labels {
        [first, second] => match [id(first)?, id(second)?] {
            [a, b] if a == b => Err(refused(format!("{first:?} and {second:?} are the same token"))),
            ids => Ok(ids),
        },
        _ => Err(refused(format!("{} given, expected two, that of {{a}} and that of {{b}}", labels.len()))),
    }
}

/// The file with the question.
struct Template {
    path: PathBuf,
    text: String,
}

/// What a template is filled with.
const PLACES: [&str; 3] = ["{prompt}", "{a}", "{b}"];

impl Template {
    /// Reads it. The newline at the end of a file is none of its text.
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let refused = |problem: String| Error::request(format!("{}: {problem}", path.display()));
        let mut text = String::from_utf8(text).map_err(|_| refused("the template is not UTF-8".into()))?;
        if text.ends_with('\n') {
            text.truncate(text.len() - if text.ends_with("\r\n") { 2 } else { 1 });
        }
        match PLACES.iter().find(|place| !text.contains(**place)) {
            None => Ok(Self { path: path.into(), text }),
            Some(missing) => Err(refused(format!(
                "the template has no {missing}; it is a text in which {{prompt}}, {{a}} and {{b}} stand for the prompt and \
                 the two responses"
            ))),
        }
    }

    /// What is put in is not looked at again: a response may hold `{b}`.
    fn fill(&self, prompt: &str, a: &str, b: &str) -> String {
        let mut filled = String::with_capacity(self.text.len() + prompt.len() + a.len() + b.len());
        let mut rest = &self.text[..];
        while let Some(at) = rest.find('{') {
            let (before, from) = rest.split_at(at);
            filled.push_str(before);
            let place = PLACES.iter().zip([prompt, a, b]).find(|(place, _)| from.starts_with(**place));
            let (text, len) = place.map_or(("{", 1), |(place, text)| (text, place.len()));
            filled.push_str(text);
            rest = &from[len..];
        }
        filled + rest
    }
}

/// What the model is asked.
struct Question {
    folder: PathBuf,
    template: Template,
    tokenizer: Arc<Tokenizer>,
    labels: [u32; 2],
    rank_by: RankBy,
    limit: usize,
}

impl Question {
    fn ids(&self, prompt: &str, a: &str, b: &str) -> Result<Vec<u32>> {
        let text = self.template.fill(prompt, a, b);
        // The question is a user's turn, where the model has a chat template.
        let ids = match self.tokenizer.conversations()? {
            Some(_) => Chat::new(&self.tokenizer, &self.folder)?.prompt(&[turn("user", &text)])?.1,
            None => self.tokenizer.encode_with_special(&text)?,
        };
        match ids.len() > self.limit {
            true => Err(Error::request(format!(
                "pairwise ranker {}: the question about two responses has {} tokens, the model {} positions; shorten \
                 responses with --max_new_tokens or prompts with --max_prompt_length",
                self.folder.display(),
                ids.len(),
                self.limit
            ))),
            false => Ok(ids),
        }
    }
}

/// A causal language model that compares two responses at a time.
pub struct PairwiseRanker<B: Backend> {
    policy: Policy<B>,
    question: Question,
}

/// How many of `lists` are asked in one pass, at least one.
pub fn in_one_pass(lists: &[SharedTexts]) -> usize {
    let mut rows = 0;
    let fits = |list: &&SharedTexts| {
        rows += list.prompt.len() + list.rest.iter().map(Vec::len).sum::<usize>();
        rows <= SCORING_ROWS
    };
    lists.iter().take_while(fits).count().max(1)
}

impl<B: Backend> PairwiseRanker<B> {
    /// One score a response, by the rule of the flags.
    ///
    /// # Errors
    /// A text that cannot be encoded, or is longer than the model's positions.
    pub fn rewards(&self, prompt: &str, responses: &[&str]) -> Result<Vec<f64>> {
        // The same text twice is asked about once, and is as good as itself.
        let mut texts: Vec<&str> = Vec::new();
        let mut places = Vec::with_capacity(responses.len());
        for &text in responses {
            places.push(texts.iter().position(|&known| known == text).unwrap_or(texts.len()));
            if places.last() == Some(&texts.len()) {
                texts.push(text);
            }
        }
        let known = self.preferences(prompt, &texts)?;
        let pair = |&i: &usize| {
            let known = &known;
            let n = texts.len();
            places.iter().map(move |&j| known[i * n + j]).collect::<Vec<f64>>()
        };
        let preferences: Vec<f64> = places.iter().flat_map(pair).collect();
        let scores = preference_scores(&preferences, responses.len(), self.question.rank_by);
        scores.map_err(|error| Error::request(format!("pairwise ranker: {error}")))
    }

    /// `P (texts, texts)`, 1/2 on the diagonal.
    fn preferences(&self, prompt: &str, texts: &[&str]) -> Result<Vec<f64>> {
        let n = texts.len();
        let mut preferences = vec![0.5; n * n];
        if n < 2 {
            return Ok(preferences);
        }
        // What comes before the second response is computed once for all of them.
        let others = |i: usize| (0..n).filter(move |&j| j != i);
        let list = |i: usize| {
            let ids: Result<Vec<_>> = others(i).map(|j| self.question.ids(prompt, texts[i], texts[j])).collect();
            ids.map(SharedTexts::new)
        };
        let lists = (0..n).map(list).collect::<Result<Vec<_>>>()?;
        let mut first = Vec::with_capacity(n * (n - 1));
        let mut rest = &lists[..];
        while !rest.is_empty() {
            let (pass, after) = rest.split_at(in_one_pass(rest));
            let logp = self.policy.model.next_logp(&SharedTexts::pack(pass), &self.question.labels)?;
            first.extend(logp.chunks(2).map(|logp| sigmoid(logp[0] - logp[1])));
            rest = after;
        }
        if let Some(bad) = first.iter().find(|p| !p.is_finite()) {
            return Err(Error::request(format!(
                "pairwise ranker {}: the preference of a response to {prompt:?} is {bad}; its weights are damaged",
                self.question.folder.display()
            )));
        }
        let asked = (0..n).flat_map(|i| others(i).map(move |j| (i, j)));
        let mut wins = vec![0.0; n * n];
        asked.zip(first).for_each(|((i, j), p)| wins[i * n + j] = p);
        for i in 0..n {
            for j in i + 1..n {
                let p = (wins[i * n + j] + 1.0 - wins[j * n + i]) / 2.0;
                (preferences[i * n + j], preferences[j * n + i]) = (p, 1.0 - p);
            }
        }
        Ok(preferences)
    }
}

impl<B: Backend> Reranker for PairwiseRanker<B> {
    fn score(&mut self, query: &Query) -> std::result::Result<Vec<f64>, larpo_core::Error> {
        let responses: Vec<&str> = query.responses.iter().map(|response| response.text).collect();
        let prompt = query.conversation.map_or(Ok(query.prompt.to_string()), told);
        let rewards = prompt.and_then(|prompt| self.rewards(&prompt, &responses));
        rewards.map_err(|error| larpo_core::Error::Caller(error.to_string()))
    }

    fn is_absolute(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_once() {
        let template = Template { path: "t".into(), text: "{x} {prompt}: {a} or {b}{".into() };
        assert_eq!(template.fill("p{a}", "{b}", "é"), "{x} p{a}: {b} or é{");
    }
}
