//! How far an iteration moved the policy; and, where it is asked for, a look at the policy after each iteration, on the same
//! prompts: its mean reward and how far it is from the first policy. What a run ends early for, and which iteration was the
//! best.

use crate::dataset::PromptRow;
use crate::error::{Error, Result};
use crate::evaluate::{list_kl, token_logps};
use crate::generate::candidates;
use crate::policy::Policy;
use larpo_core::backend::Backend;
use larpo_core::candidates::{Candidate, CandidateList};
use larpo_core::metrics::{Estimate, KlEstimator, mean_estimate};
use larpo_core::model::Transformer;
use larpo_core::reranker::Reranker;
use larpo_core::retriever::SamplingConfig;
use serde_json::{Value, json};

/// How many of an iteration's prompts tell how far it moved the policy.
pub const MOVED_PROMPTS: usize = 32;
/// Responses to a prompt in a look.
const RESPONSES: usize = 4;
/// The stream of a look's random numbers, which no iteration has: every look draws with the same ones, so that the noise of
/// the draw cancels between iterations.
const STREAM: u32 = 1 << 31;

/// What is looked at, and what ends the run.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// The prompts; nothing is looked at where there are none.
    pub prompts: Vec<PromptRow>,
    /// Ends the run after an iteration that moved the policy this far from the first one, in nats a response.
    pub until_kl: Option<f64>,
    /// Ends the run after so many iterations without a better mean reward; the best iteration's model is kept.
    pub patience: Option<usize>,
    /// Iterations that were done when this part of the run was asked for: they do not end it.
    pub base: u32,
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Look {
    /// Mean reward, over prompts.
    pub mean_reward: f64,
    /// Its standard error.
    pub standard_error: Option<f64>,
    /// Estimate of KL(policy ‖ first policy) a response, in nats (k1 of Schulman 2020: unbiased).
    pub kl: f64,
    /// Its standard error.
    pub kl_standard_error: Option<f64>,
}

impl Look {
    /// As an object.
    pub fn json(&self) -> Value {
        json!({
            "mean_reward": self.mean_reward,
            "standard_error": self.standard_error,
            "kl": self.kl,
            "kl_standard_error": self.kl_standard_error,
        })
    }

    /// From [`Look::json`]; numbers that are not there are NaN.
    pub fn from_json(value: &Value) -> Option<Self> {
        let number = |name: &str| value.get(name).and_then(Value::as_f64);
        Some(Self {
            mean_reward: number("mean_reward")?,
            standard_error: number("standard_error"),
            kl: number("kl")?,
            kl_standard_error: number("kl_standard_error"),
        })
    }
}

/// How a look draws, where the run draws by `sampling`.
pub fn sampling_of(sampling: &SamplingConfig) -> SamplingConfig {
    SamplingConfig {
        num_generations: RESPONSES,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        iteration: STREAM,
        ..sampling.clone()
    }
}

/// Draws responses at temperature 1 from the whole distribution, scores them, and compares their log-probabilities with
/// those under `first`.
///
/// # Errors
/// Prompts that the model cannot take, what the reranker reports.
pub fn look<B: Backend>(
    policy: &Policy<B>,
    first: &Transformer<B>,
    prompts: &[PromptRow],
    (sampling, stop): (&SamplingConfig, &[String]),
    reranker: &mut dyn Reranker,
    label: &str,
) -> Result<Look> {
    let config = sampling_of(sampling);
    let mut lists = candidates(policy, prompts, &config, stop, label)?;
    lists.iter_mut().try_for_each(|list| list.rank(reranker))?;
    let reward = |list: &CandidateList| list.candidates.iter().map(|c| c.reward).sum::<f64>() / RESPONSES as f64;
    let none = || Error::request("no prompts to look at");
    let reward = mean_estimate(&lists.iter().map(reward).collect::<Vec<f64>>()).ok_or_else(none)?;
    let moved = divergence(&lists, first, KlEstimator::K1)?.ok_or_else(none)?;
    Ok(Look {
        mean_reward: reward.mean,
        standard_error: reward.standard_error,
        kl: moved.mean,
        kl_standard_error: moved.standard_error,
    })
}

/// How far an iteration moved the policy: KL(policy before ‖ policy after) a response, in nats, by k3 on what the policy before
/// drew at temperature 1. None where nothing was drawn.
///
/// # Errors
/// Lists that the model cannot take, or that were read without their log-probabilities.
pub fn moved<B: Backend>(before: &[CandidateList], after: &Transformer<B>) -> Result<Option<Estimate>> {
    divergence(before, after, KlEstimator::K3)
}

/// KL(the policy that drew `lists` ‖ `other`) a response, in nats: mean over the lists.
fn divergence<B: Backend>(
    lists: &[CandidateList],
    other: &Transformer<B>,
    estimator: KlEstimator,
) -> Result<Option<Estimate>> {
    let mut values = Vec::new();
    for (list, under_other) in lists.iter().zip(token_logps(other, lists)?) {
        // With an empty prompt the first token is not scored.
        let own = |(candidate, other): (&Candidate, &Vec<f64>)| {
            let skipped = candidate.logps.len().saturating_sub(other.len());
            candidate.logps[skipped..].iter().map(|&logp| f64::from(logp)).collect()
        };
        let own: Vec<Vec<f64>> = list.candidates.iter().zip(&under_other).map(own).collect();
        values.push(list_kl(estimator, &own, &under_other)?);
    }
    Ok(mean_estimate(&values))
}

impl Watch {
    /// Whether there is anything to look at.
    pub fn is_on(&self) -> bool {
        !self.prompts.is_empty()
    }

    /// Why the run ends after the last of `looks` (that before the first iteration in front), if it does.
    pub fn ends(&self, looks: &[Look]) -> Option<String> {
        let last = looks.len().checked_sub(1).filter(|&last| last > self.base as usize)?;
        if let Some(limit) = self.until_kl.filter(|&limit| looks[last].kl >= limit) {
            return Some(format!(
                "iteration {last} has moved {:.3} nats a response from the first policy, --until_kl is {limit}",
                looks[last].kl
            ));
        }
        let (best, patience) = (best(looks), self.patience?);
        let without = last - best.max(self.base as usize);
        (without >= patience).then(|| {
            format!(
                "the mean reward of the watched prompts is {:.4} after iteration {last} and was {:.4} after iteration {best}: \
                 {without} without a better one, --early_stopping_patience is {patience}",
                looks[last].mean_reward, looks[best].mean_reward
            )
        })
    }
}

/// The look with the highest mean reward, the first of several.
pub fn best(looks: &[Look]) -> usize {
    let mut best = 0;
    for (i, look) in looks.iter().enumerate() {
        if look.mean_reward > looks[best].mean_reward {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(rewards: &[f64]) -> Vec<Look> {
        let look = |(i, &mean_reward): (usize, &f64)| Look {
            mean_reward,
            standard_error: None,
            kl: i as f64,
            kl_standard_error: Some(0.5),
        };
        rewards.iter().enumerate().map(look).collect()
    }

    #[test]
    fn patience_counts_iterations_without_a_better_one() {
        let watch = |patience, base| Watch { patience: Some(patience), base, ..Watch::default() };
        let ends = |patience, base, rewards: &[f64]| watch(patience, base).ends(&looks(rewards)).is_some();
        assert!(!ends(1, 0, &[0.5]), "before the first iteration");
        assert!(!ends(1, 0, &[0.5, 0.6]));
        assert!(ends(1, 0, &[0.5, 0.5]), "equal is not better");
        assert!(ends(1, 0, &[0.5, 0.6, 0.55]) && !ends(2, 0, &[0.5, 0.6, 0.55]));
        assert!(ends(2, 0, &[0.5, 0.6, 0.55, 0.58]) && !ends(2, 0, &[0.5, 0.6, 0.55, 0.61]));
        // A run that is continued after it ended early gets its chance.
        assert!(!ends(1, 2, &[0.5, 0.6, 0.55]) && ends(1, 2, &[0.5, 0.6, 0.55, 0.58]));
        assert!(!ends(2, 2, &[0.5, 0.6, 0.55, 0.58]));
        assert_eq!(best(&looks(&[0.5, 0.6, 0.6, 0.2])), 1);
    }

    #[test]
    fn the_policy_may_move_so_far_and_no_farther() {
        let watch = |base| Watch { until_kl: Some(2.0), base, ..Watch::default() };
        let ends = |base, n: usize| watch(base).ends(&looks(&vec![0.0; n + 1]));
        assert_eq!((ends(0, 0), ends(0, 1)), (None, None));
        assert!(ends(0, 2).is_some_and(|why| why.contains("2.000 nats") && why.contains("iteration 2")));
        assert!(ends(2, 2).is_none() && ends(2, 3).is_some());
    }

    #[test]
    fn a_look_is_read_as_it_was_written() {
        let look = looks(&[0.1, 1.0 / 3.0])[1];
        let text = look.json().to_string();
        assert_eq!(Look::from_json(&serde_json::from_str(&text).expect("JSON")), Some(look));
    }
}
