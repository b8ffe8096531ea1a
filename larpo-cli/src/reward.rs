//! What ranks candidates, by the flags: rule rewards, a reward model or a pairwise ranker; and candidates as rows of
//! `candidates.jsonl`.

use crate::args::RewardArgs;
use crate::error::Result;
use crate::pairwise_ranker::{OpenedPairwiseRanker, PairwiseRanker};
use crate::reward_model::{OpenedRewardModel, RewardModel};
use larpo_core::Error;
use larpo_core::backend::Backend;
use larpo_core::candidates::{Candidate, CandidateList};
use larpo_core::model::ModelConfig;
use larpo_core::reranker::{Query, Reranker};
use larpo_data::candidates::CandidateList as CandidateRow;
use larpo_data::rules::{RuleSet, Scored};
use std::path::{Path, PathBuf};

/// What ranks, before weights are loaded.
pub enum RewardSource {
    /// Rules.
    Rules(RuleReranker),
    /// A model.
    Model(Box<OpenedRewardModel>),
    /// A model that compares.
    Pairwise(Box<OpenedPairwiseRanker>),
}

impl RewardSource {
    /// That of the flags.
    ///
    /// # Errors
    /// A description that cannot be understood, a folder that holds no such model.
    pub fn read(args: &RewardArgs) -> Result<Self> {
        Ok(match (&args.reward_model, &args.pairwise_ranker) {
            (Some(folder), _) => Self::Model(Box::new(OpenedRewardModel::read(folder)?)),
            (None, Some(folder)) => Self::Pairwise(Box::new(OpenedPairwiseRanker::read(folder, args)?)),
            (None, None) => Self::Rules(RuleReranker::new(args)?),
        })
    }

    /// Whether it cannot score without a reference.
    pub fn needs_reference(&self) -> bool {
        matches!(self, Self::Rules(rules) if rules.needs_reference())
    }

    /// Files and folders that it was made from, by flag.
    pub fn inputs(&self) -> Vec<(&'static str, PathBuf)> {
        match self {
            Self::Rules(rules) => rules.files().into_iter().map(|path| ("reward_funcs", path.to_path_buf())).collect(),
            Self::Model(model) => vec![("reward_model", model.folder().to_path_buf())],
            Self::Pairwise(ranker) => ranker.inputs(),
        }
    }

    /// Shape of the model that ranks.
    pub fn model(&self) -> Option<&ModelConfig> {
        match self {
            Self::Rules(_) => None,
            Self::Model(model) => Some(model.config()),
            Self::Pairwise(ranker) => Some(ranker.config()),
        }
    }

    /// Loads what there is to load.
    ///
    /// # Errors
    /// As [`OpenedRewardModel::load`].
    pub fn load<B: Backend>(self, backend: &B) -> Result<Ranker<B>> {
        Ok(match self {
            Self::Rules(rules) => Ranker::Rules(rules),
            Self::Model(model) => Ranker::Model(Box::new(model.load(backend)?)),
            Self::Pairwise(ranker) => Ranker::Pairwise(Box::new(ranker.load(backend)?)),
        })
    }
}

/// What ranks.
pub enum Ranker<B: Backend> {
    /// Rules.
    Rules(RuleReranker),
    /// A model.
    Model(Box<RewardModel<B>>),
    /// A model that compares.
    Pairwise(Box<PairwiseRanker<B>>),
}

impl<B: Backend> Ranker<B> {
    /// The rules, if they are what ranks.
    pub fn rules(&self) -> Option<&RuleSet> {
        match self {
            Self::Rules(rules) => Some(rules.rules()),
            Self::Model(_) | Self::Pairwise(_) => None,
        }
    }

    /// What there is to say at the end.
    pub fn report(&mut self) {
        if let Self::Rules(rules) = self {
            rules.report();
        }
    }
}

impl<B: Backend> Reranker for Ranker<B> {
    fn score(&mut self, query: &Query) -> std::result::Result<Vec<f64>, Error> {
        match self {
            Self::Rules(rules) => rules.score(query),
            Self::Model(model) => model.score(query),
            Self::Pairwise(ranker) => ranker.score(query),
        }
    }

    fn is_absolute(&self) -> bool {
        !matches!(self, Self::Pairwise(_))
    }
}

/// A weighted sum of rules, which watches whether final answers are found at all.
pub struct RuleReranker {
    rules: RuleSet,
    /// Responses in which the rules looked for a final answer, and those that had one.
    looked: usize,
    found: usize,
    warned: bool,
}

/// Responses without a final answer after which it is worth a warning while the run goes on.
const MANY: usize = 100;

impl RuleReranker {
    /// The rules of the flags.
    ///
    /// # Errors
    /// A description that cannot be understood.
    pub fn new(args: &RewardArgs) -> Result<Self> {
        Ok(args.rule_set()?.into())
    }

    /// Exact match of GSM8K's final answer.
    ///
    /// # Errors
    /// None in practice.
    pub fn answer() -> Result<Self> {
        Ok(RuleSet::parse("answer", None, None)?.into())
    }

    /// [`RuleReranker::answer`] for policies that need not have learned to give answers, without a warning where none does.
    ///
    /// # Errors
    /// None in practice.
    pub fn quiet_answer() -> Result<Self> {
        Ok(Self { warned: true, ..Self::answer()? })
    }

    /// The rules.
    pub fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// Files that the rules were made from.
    pub fn files(&self) -> Vec<&Path> {
        self.rules.files()
    }

    /// Whether a rule cannot score without a reference.
    pub fn needs_reference(&self) -> bool {
        self.rules.needs_reference()
    }

    /// Warns where no response so far had a final answer, which a wrong pattern brings about too.
    pub fn report(&mut self) {
        if self.looked > 0 && self.found == 0 && !self.warned {
            self.warned = true;
            warn!(
                "none of the responses scored so far has a final answer in the form that --answer_pattern describes, \
                 so the reward `answer` is 0 for all"
            );
        }
    }
}

impl From<RuleSet> for RuleReranker {
    fn from(rules: RuleSet) -> Self {
        Self { rules, looked: 0, found: 0, warned: false }
    }
}

impl Reranker for RuleReranker {
    fn score(&mut self, query: &Query) -> std::result::Result<Vec<f64>, Error> {
        let answers: Vec<bool> = query.responses.iter().filter_map(|r| self.rules.finds_answer(r.text)).collect();
        self.looked += answers.len();
        self.found += answers.iter().filter(|&&found| found).count();
        if self.looked >= MANY {
            self.report();
        }
        let score = |response: &larpo_core::reranker::Response| {
            self.rules.score(&Scored {
                prompt: query.prompt,
                response: response.text,
                n_tokens: response.tokens,
                reference: query.reference,
            })
        };
        let scores: std::result::Result<Vec<f64>, _> = query.responses.iter().map(score).collect();
        if let Some(bad) = scores.iter().flatten().find(|score| !score.is_finite()) {
            return Err(Error::Caller(format!(
                "the reward of a response to {:?} is {bad}: the sum of --reward_funcs is larger than a number can be; lower \
                 --reward_weights",
                query.prompt
            )));
        }
        // A negative zero would sort below zero, with which it is tied.
        let scores = scores.map(|scores| scores.into_iter().map(|score| score + 0.0).collect());
        scores.map_err(|error| Error::Caller(error.to_string()))
    }
}

/// A ranked list as a row of a file, best response first; `stop` are the stop strings it was sampled with.
pub fn to_row(list: &CandidateList, stop: &[String]) -> CandidateRow {
    let mut order: Vec<&Candidate> = list.candidates.iter().collect();
    order.sort_by(|a, b| b.reward.total_cmp(&a.reward));
    let finish = |c: &&Candidate| c.finish_reason.map(|f| f.name().to_string());
    let logps = |c: &&Candidate| (c.logps.len() == c.ids.len()).then(|| c.logps.clone());
    CandidateRow {
        prompt_index: Some(list.prompt_index),
        prompt: list.prompt.clone(),
        messages: list.conversation.as_deref().and_then(|turns| serde_json::from_str(turns).ok()),
        prompt_token_ids: Some(list.prompt_ids.clone()),
        reference: list.reference.clone(),
        stop_strings: stop.to_vec(),
        responses: order.iter().map(|c| c.text.clone()).collect(),
        rewards: order.iter().map(|c| c.reward).collect(),
        ranks: Vec::new(),
        iteration: order.iter().map(|c| c.iteration).collect(),
        temperature: order.iter().map(|c| c.temperature as f32).collect(),
        seed: order.iter().map(|c| c.seed).collect(),
        // These are left out as a whole where a response has none.
        finish_reason: order.iter().map(finish).collect::<Option<Vec<_>>>().unwrap_or_default(),
        token_ids: order.iter().map(|c| c.ids.clone()).collect(),
        logps: order.iter().map(logps).collect::<Option<Vec<_>>>().unwrap_or_default(),
        extra: serde_json::Map::new(),
    }
}
