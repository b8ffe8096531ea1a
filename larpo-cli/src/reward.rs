//! Rule rewards as a reranker, and candidates as rows of `candidates.jsonl`.

use crate::args::RewardArgs;
use crate::error::Result;
use larpo_core::Error;
use larpo_core::candidates::{Candidate, CandidateList};
use larpo_core::reranker::{Query, Reranker};
use larpo_data::candidates::CandidateList as CandidateRow;
use larpo_data::rules::{RuleSet, Scored};

/// A weighted sum of rules.
pub struct RuleReranker {
    rules: RuleSet,
}

impl RuleReranker {
    /// The rules of the flags.
    ///
    /// # Errors
    /// A description that cannot be understood.
    pub fn new(args: &RewardArgs) -> Result<Self> {
        let weights = match args.reward_weights.is_empty() {
            true => None,
            false => Some(args.reward_weights.iter().map(f64::to_string).collect::<Vec<_>>().join(",")),
        };
        Ok(Self { rules: RuleSet::parse(&args.reward_funcs, weights.as_deref(), args.answer_pattern.as_deref())? })
    }

    /// Exact match of GSM8K's final answer.
    ///
    /// # Errors
    /// None in practice.
    pub fn answer() -> Result<Self> {
        Ok(Self { rules: RuleSet::parse("answer", None, None)? })
    }

    /// Whether a rule cannot score without a reference.
    pub fn needs_reference(&self) -> bool {
        self.rules.needs_reference()
    }
}

impl Reranker for RuleReranker {
    fn score(&mut self, query: &Query) -> std::result::Result<Vec<f64>, Error> {
        let score = |response: &larpo_core::reranker::Response| {
            self.rules.score(&Scored {
                prompt: query.prompt,
                response: response.text,
                n_tokens: response.tokens,
                reference: query.reference,
            })
        };
        let scores: std::result::Result<Vec<f64>, _> = query.responses.iter().map(score).collect();
        scores.map_err(|error| Error::Caller(error.to_string()))
    }
}

/// A ranked list as a row of a file, best response first.
pub fn to_row(list: &CandidateList) -> CandidateRow {
    let mut order: Vec<&Candidate> = list.candidates.iter().collect();
    order.sort_by(|a, b| b.reward.total_cmp(&a.reward));
    let finish = |c: &&Candidate| c.finish_reason.map(|f| f.name().to_string());
    CandidateRow {
        prompt_index: Some(list.prompt_index),
        prompt: list.prompt.clone(),
        prompt_token_ids: Some(list.prompt_ids.clone()),
        reference: list.reference.clone(),
        responses: order.iter().map(|c| c.text.clone()).collect(),
        rewards: order.iter().map(|c| c.reward).collect(),
        ranks: Vec::new(),
        iteration: order.iter().map(|c| c.iteration).collect(),
        temperature: order.iter().map(|c| c.temperature as f32).collect(),
        seed: order.iter().map(|c| c.seed).collect(),
        // Left out as a whole where a response was made elsewhere.
        finish_reason: order.iter().map(finish).collect::<Option<Vec<_>>>().unwrap_or_default(),
        token_ids: order.iter().map(|c| c.ids.clone()).collect(),
        logps: order.iter().map(|c| c.logps.clone()).collect(),
        extra: serde_json::Map::new(),
    }
}
