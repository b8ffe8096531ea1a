//! What iterations report, to manifests and to people.

use crate::metrics_log::Row;
use crate::training::ListOutcome;
use crate::watch::Look;
use larpo_core::candidates::{CandidateList, ListCounts};
use larpo_core::metrics::Estimate;
use larpo_core::proofs::ProofReport;
use serde_json::{Value, json};

/// What an iteration did.
#[derive(Debug, Clone, PartialEq)]
pub struct IterationReport {
    /// Its number, from 1.
    pub iteration: u32,
    /// Sampling temperature.
    pub temperature: f64,
    /// Prompts sampled for.
    pub prompts: usize,
    /// Mean reward of the fresh candidates.
    pub mean_reward: f64,
    /// Mean over prompts of the best fresh candidate's reward.
    pub best_reward: f64,
    /// What became of all remembered candidates.
    pub counts: ListCounts,
    /// Step-0 proofs; none where no list contributes.
    pub proofs: Option<ProofReport>,
    /// Training; none where no list contributes.
    pub outcome: Option<ListOutcome>,
    /// How far it moved the policy ([`crate::watch::moved`]); none where nothing was trained, or the fresh candidates were not
    /// drawn from the policy's own distribution (another temperature than 1, or a truncated one).
    pub moved: Option<Estimate>,
    /// The policy after it on the watched prompts; none where nothing is watched.
    pub watched: Option<Look>,
}

impl IterationReport {
    /// Its numbers for curves over iterations.
    pub fn scalars(&self) -> Row {
        let row = Row::new()
            .count("step", self.iteration as usize)
            .number("iteration/mean_reward", self.mean_reward)
            .number("iteration/best_reward", self.best_reward)
            .count("iteration/lists", self.counts.contributing);
        let row = self.moved.iter().fold(row, |row, moved| row.number("iteration/kl", moved.mean));
        match self.outcome {
            Some(o) => row
                .number("iteration/loss", o.loss)
                .number("iteration/ndcg", o.metrics.ndcg)
                .number("iteration/kendall_tau", o.metrics.kendall_tau),
            None => row,
        }
    }

    /// As an object.
    pub fn json(&self) -> Value {
        json!({
            "iteration": self.iteration,
            "temperature": self.temperature,
            "prompts": self.prompts,
            "mean_reward": self.mean_reward,
            "best_reward": self.best_reward,
            "lists": self.counts,
            "proofs": self.proofs.as_ref().map(|p| json!({
                "constant_lists": p.constant_lists,
                "constant_skipped": p.constant_skipped,
                "logp_difference_max": p.logp_difference.map(|d| d.0),
                "logp_tokens": p.logp_difference.map(|d| d.1),
                "parameters_reached": p.reached,
                "zero_gradients": p.zero_gradients,
            })),
            "training": self.outcome.map(|o| json!({
                "steps": o.steps,
                "loss": o.loss,
                "rewards/accuracies": o.metrics.reward_accuracy,
                "rewards/margins": o.metrics.reward_chosen - o.metrics.reward_rejected,
                "rank/ndcg": o.metrics.ndcg,
                "rank/kendall_tau": o.metrics.kendall_tau,
            })),
            "kl": self.moved.map(|kl| json!({ "mean": kl.mean, "standard_error": kl.standard_error })),
            "watched": self.watched.map(|look| look.json()),
        })
    }
}

/// Mean reward, and mean over prompts of the best one.
pub(super) fn reward_summary(lists: &[CandidateList]) -> (f64, f64) {
    let (mut sum, mut count, mut best) = (0.0, 0.0, 0.0);
    for list in lists {
        sum += list.candidates.iter().map(|c| c.reward).sum::<f64>();
        count += list.candidates.len() as f64;
        best += list.candidates.iter().map(|c| c.reward).fold(f64::NEG_INFINITY, f64::max);
    }
    (sum / count, best / lists.len() as f64)
}

/// The proofs as a line for people.
pub fn describe(proofs: &ProofReport) -> String {
    let mut parts = Vec::new();
    match (proofs.constant_lists, proofs.constant_skipped) {
        (Some(1), _) => parts.push("1 list loss at γ = 0 equals its constant".into()),
        (Some(n), _) => parts.push(format!("{n} list losses at γ = 0 equal their constants")),
        (None, Some(why)) => parts.push(format!("constants at γ = 0 skipped ({why})")),
        (None, None) => {}
    }
    match proofs.logp_difference {
        Some((worst, tokens)) => {
            parts.push(format!("{tokens} sampled log-probabilities equal the training path's (within {worst:.1e})"));
        }
        None => parts.push("no fresh log-probabilities in the first batch to compare".into()),
    }
    parts.push(format!("the gradient reaches all {} parameters", proofs.reached));
    if !proofs.zero_gradients.is_empty() {
        // Of a new adapter it is every A, as B is zero.
        let (shown, all) = (proofs.zero_gradients.len().min(6), proofs.zero_gradients.len());
        let more = if all > shown { format!(", … ({all} in all)") } else { String::new() };
        parts.push(format!("zero in {}{more}", proofs.zero_gradients[..shown].join(", ")));
    }
    format!("step-0 proofs: {}", parts.join("; "))
}
