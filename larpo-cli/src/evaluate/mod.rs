//! Evaluation: greedy accuracy, Recall@N over samples, and mean reward.

use crate::dataset::PromptRow;
use crate::error::{Error, Result};
use crate::generate::{Generated, candidates, generate};
use crate::policy::Policy;
use larpo_core::backend::Backend;
use larpo_core::metrics::{Estimate, accuracy, mean_estimate, mean_pass_at_k};
use larpo_core::reranker::{Query, Reranker, Response};
use larpo_core::retriever::SamplingConfig;
use serde_json::{Map, Value, json};

/// A response counts as good from this reward on: what a checker gives a correct answer.
pub const GOOD: f64 = 1.0 - 1e-9;

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Share of prompts whose greedy response is good, and its standard error.
    pub greedy: f64,
    /// Standard error of `greedy`; none for a single prompt.
    pub greedy_standard_error: Option<f64>,
    /// Recall@N = Pass@N (unbiased) for every N asked for.
    pub recall: Vec<(usize, f64)>,
    /// Mean reward of greedy responses.
    pub greedy_reward: Estimate,
    /// Mean over prompts of the mean reward of the samples.
    pub sample_reward: Option<Estimate>,
    /// Prompts.
    pub prompts: usize,
    /// One sampled response to each prompt, the greedy one where none was sampled.
    pub responses: Vec<String>,
}

/// Answers every prompt greedily and with `config`'s samples, and scores both.
///
/// # Errors
/// Prompts that the model cannot take, or what the reranker reports.
pub fn evaluate<B: Backend>(
    policy: &Policy<B>,
    prompts: &[PromptRow],
    config: &SamplingConfig,
    stop: &[String],
    recall_at: &[usize],
    reranker: &mut dyn Reranker,
    label: &str,
) -> Result<Evaluation> {
    let greedy = generate(policy, prompts, &config.clone().greedy(), stop, &format!("{label}: greedy"))?;
    let mut rewards = Vec::with_capacity(prompts.len());
    for (prompt, responses) in prompts.iter().zip(&greedy) {
        rewards.extend(score(prompt, responses, reranker)?);
    }
    let good: Vec<bool> = rewards.iter().map(|&r| r >= GOOD).collect();
    let greedy_accuracy = accuracy(&good);
    let mut responses: Vec<String> = greedy.into_iter().flatten().map(|g| g.text).collect();
    let (mut recall, mut sample_reward) = (Vec::new(), None);
    if !recall_at.is_empty() {
        let mut lists = candidates(policy, prompts, config, stop, &format!("{label}: samples"))?;
        let (mut counts, mut means) = (Vec::new(), Vec::new());
        responses = lists.iter().map(|list| list.candidates[0].text.clone()).collect();
        for list in &mut lists {
            list.rank(reranker)?;
            let n = list.candidates.len();
            counts.push((n, list.candidates.iter().filter(|c| c.reward >= GOOD).count()));
            means.push(list.candidates.iter().map(|c| c.reward).sum::<f64>() / n as f64);
        }
        for &n in recall_at {
            let value = mean_pass_at_k(&counts, n).map_err(|error| Error::request(error.to_string()))?;
            recall.push((n, value.unwrap_or(0.0)));
        }
        sample_reward = mean_estimate(&means);
    }
    Ok(Evaluation {
        greedy: greedy_accuracy.accuracy.unwrap_or(0.0),
        greedy_standard_error: greedy_accuracy.standard_error,
        recall,
        greedy_reward: mean_estimate(&rewards).ok_or_else(|| Error::request("no prompts to evaluate on"))?,
        sample_reward,
        prompts: prompts.len(),
        responses,
    })
}

fn score(prompt: &PromptRow, responses: &[Generated], reranker: &mut dyn Reranker) -> Result<Vec<f64>> {
    let responses = responses.iter().map(|g| Response { text: &g.text, tokens: g.sample.ids.len() }).collect();
    let query = Query { prompt: &prompt.text, reference: prompt.reference.as_deref(), responses };
    Ok(reranker.score(&query)?)
}

fn estimate(value: &Estimate) -> Value {
    json!({
        "mean": value.mean,
        "standard_error": value.standard_error,
        "interval": value.interval.map(|(low, high)| vec![low, high]),
    })
}

impl Evaluation {
    /// `{"greedy": …, "recall": {"1": …}}`.
    pub fn summary(&self) -> Value {
        let recall: Map<String, Value> = self.recall.iter().map(|(n, v)| (n.to_string(), json!(v))).collect();
        json!({ "greedy": self.greedy, "recall": recall })
    }

    /// The summary with standard errors, rewards and counts.
    pub fn json(&self) -> Value {
        let mut value = self.summary();
        value["greedy_standard_error"] = json!(self.greedy_standard_error);
        value["greedy_reward"] = estimate(&self.greedy_reward);
        value["sample_reward"] = self.sample_reward.as_ref().map_or(Value::Null, estimate);
        value["prompts"] = json!(self.prompts);
        value
    }

    /// Cells for a table: greedy accuracy, then Recall@N, in per cent.
    pub fn cells(&self) -> Vec<String> {
        let percent = |v: f64| format!("{:.1} %", 100.0 * v);
        std::iter::once(percent(self.greedy)).chain(self.recall.iter().map(|(_, v)| percent(*v))).collect()
    }
}
