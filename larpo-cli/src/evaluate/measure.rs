//! A measurement is a value a prompt; means, intervals, comparisons and JSON all come from that.

use crate::numbers::fixed;
use larpo_core::metrics::{Estimate, MetricError, Resampling, bootstrap_estimate, mcnemar_p, sign_flip_p};
use serde_json::{Map, Value, json};

/// What is measured, in the order in which it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// Whether the greedy response is correct.
    Greedy,
    /// Reward of the greedy response.
    GreedyReward,
    /// Recall@N = Pass@N, unbiased.
    Recall,
    /// Whether a vote among N samples is correct, over all subsets and random tie-breaking.
    Maj,
    /// Mean reward of the samples.
    Reward,
    /// Reward of the best of N samples, over all subsets.
    BestOf,
    /// Mean length of the samples in tokens.
    Tokens,
    /// NDCG@k of the order by γ.
    Ndcg,
    /// Reciprocal rank of the first correct response in the order by γ.
    Mrr,
    /// Kendall's τ-b of γ and rewards.
    KendallTau,
    /// Share of the pairs with different rewards that γ puts right.
    PairAccuracy,
    /// k1 estimate of KL(policy ‖ reference) a response.
    KlK1,
    /// k3 estimate of it.
    KlK3,
}

impl Metric {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Greedy => "greedy",
            Self::GreedyReward => "greedy_reward",
            Self::Recall => "recall",
            Self::Maj => "maj",
            Self::BestOf => "best_of",
            Self::Reward => "reward",
            Self::Tokens => "tokens",
            Self::Ndcg => "ndcg",
            Self::Mrr => "mrr",
            Self::KendallTau => "kendall_tau",
            Self::PairAccuracy => "pair_accuracy",
            Self::KlK1 => "kl_k1",
            Self::KlK3 => "kl_k3",
        }
    }

    /// Its name for people; `at` is the N or k of the metrics that have one.
    pub fn label(self, at: Option<usize>) -> String {
        let n = at.map(|n| n.to_string()).unwrap_or_default();
        match self {
            Self::Greedy => "greedy accuracy".into(),
            Self::GreedyReward => "greedy reward".into(),
            Self::Recall => format!("Recall@{n}"),
            Self::Maj => format!("maj@{n}"),
            Self::BestOf => format!("best-of-{n} reward"),
            Self::Reward => "mean reward".into(),
            Self::Tokens => "response tokens".into(),
            Self::Ndcg => format!("NDCG@{n}"),
            Self::Mrr => "MRR".into(),
            Self::KendallTau => "Kendall τ-b".into(),
            Self::PairAccuracy => "pair accuracy".into(),
            Self::KlK1 => "KL (k1)".into(),
            Self::KlK3 => "KL (k3)".into(),
        }
    }

    /// Whether it is a share, shown in per cent.
    fn is_share(self) -> bool {
        matches!(self, Self::Greedy | Self::Recall | Self::Maj | Self::PairAccuracy)
    }

    /// A value for people: shares in per cent with one decimal, lengths with one, the rest with four.
    pub fn show(self, value: f64) -> String {
        match self {
            metric if metric.is_share() => format!("{:.1} %", 100.0 * value),
            Self::Tokens => format!("{value:.1}"),
            _ => fixed(value, 4),
        }
    }

    /// A mean with its 95 % interval.
    pub fn show_estimate(self, estimate: &Estimate) -> String {
        let bare = |value: f64| self.show(value).trim_end_matches(" %").to_string();
        match estimate.interval {
            Some((low, high)) => format!("{} [{}, {}]", self.show(estimate.mean), bare(low), bare(high)),
            None => self.show(estimate.mean),
        }
    }
}

/// One metric of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Measure {
    /// What is measured.
    pub metric: Metric,
    /// N or k, where the metric has one.
    pub at: Option<usize>,
    /// Temperature of the samples; `None` for greedy responses.
    pub temperature: Option<f64>,
    /// A value a prompt; `None` where the metric is not defined for the prompt.
    pub values: Vec<Option<f64>>,
}

impl Measure {
    /// Its name for people.
    pub fn label(&self) -> String {
        self.metric.label(self.at)
    }

    /// Whether `other` measures the same.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.metric, self.at, self.temperature) == (other.metric, other.at, other.temperature)
    }

    /// Mean over the prompts for which it is defined, with its bootstrap interval; `None` where there is none.
    pub fn estimate(&self, with: Resampling) -> Option<Estimate> {
        let defined: Vec<f64> = self.values.iter().copied().flatten().collect();
        bootstrap_estimate(&defined, with)
    }

    fn json(&self, estimate: &Estimate) -> Value {
        let mut value = self.keys();
        value.extend(estimate_json(estimate));
        Value::Object(value)
    }

    fn keys(&self) -> Map<String, Value> {
        let mut keys = Map::new();
        keys.insert("metric".into(), json!(self.metric.name()));
        if let Some(at) = self.at {
            keys.insert("at".into(), json!(at));
        }
        if let Some(temperature) = self.temperature {
            keys.insert("temperature".into(), json!(temperature));
        }
        keys
    }
}

fn estimate_json(estimate: &Estimate) -> Map<String, Value> {
    let value = json!({
        "mean": estimate.mean,
        "standard_error": estimate.standard_error,
        "interval": estimate.interval.map(|(low, high)| vec![low, high]),
        "n": estimate.n,
    });
    value.as_object().cloned().unwrap_or_default()
}

/// A model's response to a prompt, to be shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// Row of the data set.
    pub prompt_index: usize,
    /// The prompt.
    pub prompt: String,
    /// What a correct response is compared with.
    pub reference: Option<String>,
    /// The greedy response.
    pub response: String,
    /// Its reward, where it was scored.
    pub reward: Option<f64>,
}

/// What an evaluation of one model found.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Prompts.
    pub prompts: usize,
    /// The measurements, in the order in which they are shown.
    pub measures: Vec<Measure>,
    /// What could not be measured, with the flag that would change it.
    pub missing: Vec<String>,
    /// One sampled response to each prompt, the greedy one where none was sampled.
    pub responses: Vec<String>,
    /// Greedy responses to the first prompts.
    pub shown: Vec<Shown>,
    /// How intervals are drawn.
    pub resampling: Resampling,
}

impl Evaluation {
    /// Mean of a metric, at the first temperature where there are several.
    fn mean(&self, metric: Metric, at: Option<usize>) -> Option<f64> {
        let defined = self.measures.iter().find(|m| m.metric == metric && m.at == at)?;
        larpo_core::metrics::mean_estimate(&defined.values.iter().copied().flatten().collect::<Vec<_>>())
            .map(|e| e.mean)
    }

    /// (N, Recall@N) at the first temperature.
    fn recall(&self) -> Vec<(usize, f64)> {
        let first = self.measures.iter().find(|m| m.metric == Metric::Recall).and_then(|m| m.temperature);
        let of_first = self.measures.iter().filter(|m| m.metric == Metric::Recall && m.temperature == first);
        of_first.filter_map(|m| Some((m.at?, self.mean(Metric::Recall, m.at)?))).collect()
    }

    /// `{"greedy": …, "recall": {"1": …}}`, recall at the first temperature.
    pub fn summary(&self) -> Value {
        let mut value = Map::new();
        if let Some(greedy) = self.mean(Metric::Greedy, None) {
            value.insert("greedy".into(), json!(greedy));
        }
        let recall: Map<String, Value> = self.recall().iter().map(|(n, v)| (n.to_string(), json!(v))).collect();
        if !recall.is_empty() {
            value.insert("recall".into(), Value::Object(recall));
        }
        Value::Object(value)
    }

    /// The estimate of a metric, at the first temperature where there are several.
    fn estimate(&self, metric: Metric) -> Option<Estimate> {
        self.measures.iter().find(|m| m.metric == metric)?.estimate(self.resampling)
    }

    /// The summary, then every measurement with standard error, interval and number of prompts.
    pub fn json(&self) -> Value {
        let mut value = self.summary();
        value["greedy_standard_error"] = json!(self.estimate(Metric::Greedy).and_then(|e| e.standard_error));
        for (name, metric) in [("greedy_reward", Metric::GreedyReward), ("sample_reward", Metric::Reward)] {
            value[name] = self.estimate(metric).map_or(Value::Null, |e| Value::Object(estimate_json(&e)));
        }
        let metrics = self.measures.iter().filter_map(|m| Some(m.json(&m.estimate(self.resampling)?)));
        value["metrics"] = Value::Array(metrics.collect());
        value["prompts"] = json!(self.prompts);
        value["missing"] = json!(self.missing);
        let shown = |s: &Shown| {
            json!({
                "prompt_index": s.prompt_index,
                "prompt": s.prompt,
                "reference": s.reference,
                "response": s.response,
                "reward": s.reward,
            })
        };
        value["samples"] = self.shown.iter().map(shown).collect();
        value
    }

    /// Cells for a table: greedy accuracy, then Recall@N, in per cent.
    pub fn cells(&self) -> Vec<String> {
        let greedy = self.mean(Metric::Greedy, None).into_iter();
        greedy.chain(self.recall().into_iter().map(|(_, v)| v)).map(|v| Metric::Recall.show(v)).collect()
    }
}

/// How a model differs from another in one metric, over the prompts for which both have a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// What is compared; its values are the differences.
    pub measure: Measure,
    /// Mean difference with its bootstrap interval.
    pub difference: Estimate,
    /// Two-sided p-value.
    pub p: f64,
    /// Whether `p` is McNemar's exact one (right or wrong); otherwise it is that of random sign flips.
    pub mcnemar: bool,
}

impl Comparison {
    /// `{"metric": …, "difference": …, "interval": …, "p": …, "test": …}`.
    pub fn json(&self) -> Value {
        let mut value = self.measure.keys();
        let mut estimate = estimate_json(&self.difference);
        value.insert("difference".into(), estimate.remove("mean").unwrap_or_default());
        value.extend(estimate);
        value.insert("p".into(), json!(self.p));
        value.insert("test".into(), json!(if self.mcnemar { "mcnemar" } else { "sign_flip" }));
        Value::Object(value)
    }
}

/// Every metric that both have, `model` less `baseline`, paired by prompt.
///
/// # Errors
/// Evaluations of different numbers of prompts.
pub fn compare(model: &Evaluation, baseline: &Evaluation) -> Result<Vec<Comparison>, MetricError> {
    if model.prompts != baseline.prompts {
        return Err(MetricError::Length { what: "model", expected: baseline.prompts, found: model.prompts });
    }
    let with = model.resampling;
    let pairs = model.measures.iter().filter_map(|a| Some((a, baseline.measures.iter().find(|b| a.is_like(b))?)));
    let compared = pairs.filter_map(|(a, b)| {
        let values: Vec<Option<f64>> = a.values.iter().zip(&b.values).map(|(a, b)| Some((*a)? - (*b)?)).collect();
        let defined: Vec<f64> = values.iter().copied().flatten().collect();
        let mcnemar = a.metric == Metric::Greedy;
        let only = |sign: f64| defined.iter().filter(|&&d| d == sign).count();
        let p = match mcnemar {
            true => mcnemar_p(only(1.0), only(-1.0)),
            false => sign_flip_p(&defined, with)?,
        };
        let difference = bootstrap_estimate(&defined, with)?;
        Some(Comparison { measure: Measure { values, ..a.clone() }, difference, p, mcnemar })
    });
    Ok(compared.collect())
}
