//! Candidates: what the retriever drew and the reranker scored, one list a prompt, and how training lists are made of
//! them.

use crate::error::Error;
use crate::objective::Objective;
use crate::reranker::{Query, Reranker, Response};
use crate::retriever::FinishReason;
use crate::select::{Select, distinct, select_list};
use crate::train::{TrainingList, TrainingResponse, contributes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A response with everything known about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Token ids, an end-of-text token or a stop string's tokens included.
    pub ids: Vec<u32>,
    /// Log-probability of every id under the policy that drew it; empty where that is not known.
    pub logps: Vec<f32>,
    /// Its text as the reranker reads it.
    pub text: String,
    /// Why it ended; none for a response made elsewhere.
    pub finish_reason: Option<FinishReason>,
    /// Iteration that drew it.
    pub iteration: u32,
    /// Temperature it was drawn at.
    pub temperature: f64,
    /// Seed it was drawn with.
    pub seed: u64,
    /// The reranker's score.
    pub reward: f64,
}

/// A prompt with its candidates.
#[derive(Clone, Debug, PartialEq)]
pub struct CandidateList {
    /// Number of the prompt in the data set.
    pub prompt_index: usize,
    /// Its text.
    pub prompt: String,
    /// Its turns as a JSON array, where it is a conversation.
    pub conversation: Option<Arc<str>>,
    /// Its token ids.
    pub prompt_ids: Vec<u32>,
    /// What a correct response is compared with.
    pub reference: Option<String>,
    /// The responses.
    pub candidates: Vec<Candidate>,
}

impl CandidateList {
    /// Scores every candidate.
    ///
    /// # Errors
    /// What the reranker reports, a wrong number of scores, or a score that is not finite; the prompt is named.
    pub fn rank(&mut self, reranker: &mut dyn Reranker) -> Result<(), Error> {
        let query = Query {
            prompt: &self.prompt,
            conversation: self.conversation.as_deref(),
            reference: self.reference.as_deref(),
            responses: self.candidates.iter().map(|c| Response { text: &c.text, tokens: c.ids.len() }).collect(),
        };
        let scores = reranker.score(&query)?;
        if scores.len() != self.candidates.len() {
            let expected = format!("{}, one a response (prompt {})", self.candidates.len(), self.prompt_index);
            return Err(Error::setting("number of rewards", scores.len(), &expected));
        }
        if let Some(bad) = scores.iter().position(|s| !s.is_finite()) {
            let at = format!("prompt {}, response {bad}", self.prompt_index);
            return Err(Error::NotFinite { what: "a reward".into(), at });
        }
        for (candidate, score) in self.candidates.iter_mut().zip(scores) {
            candidate.reward = score;
        }
        Ok(())
    }
}

/// Which earlier iterations' candidates are trained on again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// Only this iteration's.
    None,
    /// This iteration's and the last one's.
    Previous,
    /// Every iteration's.
    #[default]
    All,
}

/// The candidates of all iterations, merged into one list a prompt.
#[derive(Clone, Debug, Default)]
pub struct CandidateMemory {
    lists: BTreeMap<usize, CandidateList>,
}

impl CandidateMemory {
    /// Adds an iteration's lists; candidates of a prompt met before join its list.
    pub fn add(&mut self, lists: impl IntoIterator<Item = CandidateList>) {
        for list in lists {
            match self.lists.get_mut(&list.prompt_index) {
                Some(known) => known.candidates.extend(list.candidates),
                None => {
                    self.lists.insert(list.prompt_index, list);
                }
            }
        }
    }

    /// Forgets what `memory` does not keep in iteration `now`.
    pub fn forget(&mut self, memory: Memory, now: u32) {
        let oldest = match memory {
            Memory::None => now,
            Memory::Previous => now.saturating_sub(1),
            Memory::All => 0,
        };
        for list in self.lists.values_mut() {
            list.candidates.retain(|c| c.iteration >= oldest);
        }
        self.lists.retain(|_, list| !list.candidates.is_empty());
    }

    /// The merged lists, by prompt.
    pub fn lists(&self) -> impl Iterator<Item = &CandidateList> {
        self.lists.values()
    }

    /// The merged lists, to be ranked again.
    pub fn lists_mut(&mut self) -> impl Iterator<Item = &mut CandidateList> {
        self.lists.values_mut()
    }
}

/// What became of the candidates on the way to training lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListCounts {
    /// Lists of candidates.
    pub lists: usize,
    /// Lists that contribute to the loss.
    pub contributing: usize,
    /// Lists left out because all selected rewards are equal.
    pub equal: usize,
    /// Lists left out because fewer than two different responses are there.
    pub too_short: usize,
    /// Candidates.
    pub candidates: usize,
    /// Candidates dropped because their prompt has the same token ids already.
    pub duplicates: usize,
}

/// Makes training lists: drops duplicates by token ids, selects, and leaves out lists that would not contribute.
///
/// Log-probabilities recorded in iteration `now` become the responses' [`TrainingResponse::sampled`] ones; the
/// references are still empty.
///
/// # Errors
/// A reward that is not finite; the prompt is named.
pub fn training_lists<'a>(
    lists: impl IntoIterator<Item = &'a CandidateList>,
    select: Select,
    objective: &Objective,
    now: u32,
) -> Result<(Vec<TrainingList>, ListCounts), Error> {
    let mut counts = ListCounts::default();
    let mut result = Vec::new();
    for list in lists {
        counts.lists += 1;
        counts.candidates += list.candidates.len();
        let keys: Vec<&[u32]> = list.candidates.iter().map(|c| &c.ids[..]).collect();
        counts.duplicates += list.candidates.len() - distinct(&keys).len();
        let rewards: Vec<f64> = list.candidates.iter().map(|c| c.reward).collect();
        let selected = select_list(select, &rewards, &keys)
            .map_err(|error| Error::Caller(format!("prompt {}: {error}", list.prompt_index)))?;
        let Some(selected) = selected else {
            counts.too_short += 1;
            continue;
        };
        let response = |index: usize| {
            let candidate = &list.candidates[index];
            let fresh = candidate.iteration == now && candidate.logps.len() == candidate.ids.len();
            TrainingResponse {
                ids: candidate.ids.clone(),
                reward: candidate.reward,
                reference: Vec::new(),
                sampled: fresh.then(|| candidate.logps.clone()),
            }
        };
        let training = TrainingList {
            prompt: list.prompt_ids.clone(),
            responses: selected.order.into_iter().map(response).collect(),
        };
        match contributes(objective, &training) {
            true => result.push(training),
            false => counts.equal += 1,
        }
    }
    counts.contributing = result.len();
    Ok((result, counts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::{LossType, Ties};

    fn candidate(ids: &[u32], reward: f64, iteration: u32) -> Candidate {
        Candidate {
            ids: ids.to_vec(),
            logps: vec![-1.0; ids.len()],
            text: String::new(),
            finish_reason: Some(FinishReason::Stop),
            iteration,
            temperature: 1.0,
            seed: 0,
            reward,
        }
    }

    fn list(prompt_index: usize, candidates: Vec<Candidate>) -> CandidateList {
        let (prompt, prompt_ids) = ("p".into(), vec![9]);
        CandidateList { prompt_index, prompt, conversation: None, prompt_ids, reference: None, candidates }
    }

    #[test]
    fn lists_of_a_prompt_merge_and_old_ones_are_forgotten() {
        let mut memory = CandidateMemory::default();
        memory.add([list(4, vec![candidate(&[1], 1.0, 0)]), list(2, vec![candidate(&[1], 0.0, 0)])]);
        memory.add([list(4, vec![candidate(&[2], 0.0, 1)])]);
        let sizes = |m: &CandidateMemory| m.lists().map(|l| (l.prompt_index, l.candidates.len())).collect::<Vec<_>>();
        assert_eq!(sizes(&memory), [(2, 1), (4, 2)]);
        memory.forget(Memory::Previous, 1);
        assert_eq!(sizes(&memory), [(2, 1), (4, 2)]);
        memory.forget(Memory::None, 1);
        assert_eq!(sizes(&memory), [(4, 1)]);
    }

    #[test]
    fn every_list_is_counted_once() {
        let lists = [
            list(0, vec![candidate(&[1], 1.0, 0), candidate(&[1], 1.0, 0)]),
            list(1, vec![candidate(&[1], 1.0, 0), candidate(&[2], 1.0, 0)]),
            list(2, vec![candidate(&[1], 0.0, 0), candidate(&[2], 1.0, 3), candidate(&[2], 1.0, 3)]),
        ];
        let objective = Objective { loss: LossType::Listmle, ties: Ties::Skip, ..Objective::default() };
        let (training, counts) = training_lists(&lists, Select::Full, &objective, 3).expect("finite rewards");
        let expected = ListCounts { lists: 3, contributing: 1, equal: 1, too_short: 1, candidates: 7, duplicates: 2 };
        assert_eq!(counts, expected);
        assert_eq!(training[0].responses[0].ids, [2], "best first");
        assert_eq!(training[0].responses[0].sampled, Some(vec![-1.0]));
        assert_eq!(training[0].responses[1].sampled, None, "drawn by an earlier policy");
    }
}
