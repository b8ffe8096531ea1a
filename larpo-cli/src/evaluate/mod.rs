//! Evaluation: greedy accuracy, Recall@N, votes and best-of-N over samples, the policy's implicit ranking against the
//! rewards, and how far it is from a reference.

mod measure;

pub use measure::{Comparison, Evaluation, Measure, Metric, Shown, compare};

use crate::dataset::PromptRow;
use crate::error::{Error, Result};
use crate::generate::{Generated, candidates, generate};
use crate::policy::Policy;
use larpo_core::backend::Backend;
use larpo_core::candidates::CandidateList;
use larpo_core::metrics::{
    Gain, KlEstimator, MetricError, Resampling, best_of_n, expected_maj_at_n, kendall_tau_b, kl, ndcg, pair_accuracy,
    pass_at_k, reciprocal_rank,
};
use larpo_core::model::Transformer;
use larpo_core::reranker::{Query, Reranker, Response};
use larpo_core::retriever::SamplingConfig;
use larpo_core::train::{TrainingList, TrainingResponse, fill_references};
use larpo_data::rules::RuleSet;

/// What a checker gives a correct answer.
pub const CORRECT: f64 = 1.0;
/// Resamples of a bootstrap interval where none are asked for.
pub const RESAMPLES: usize = 2000;
/// A weighted sum of rewards may miss the threshold by its rounding.
const SLACK: f64 = 1e-9;
/// [`CORRECT`], less that.
pub const GOOD: f64 = CORRECT - SLACK;
/// Greedy responses kept to be shown.
const SHOWN: usize = 10;

/// Settings of an evaluation.
#[derive(Debug, Clone)]
pub struct EvalConfig {
    /// Sampling; the temperatures replace its own.
    pub sampling: SamplingConfig,
    /// Temperatures to sample at.
    pub temperatures: Vec<f64>,
    /// Texts that end a response.
    pub stop: Vec<String>,
    /// N of Recall@N, maj@N and best-of-N; none: nothing is sampled.
    pub recall_at: Vec<usize>,
    /// k of NDCG@k.
    pub ndcg_at: usize,
    /// A response is correct from this reward on; none: rewards do not tell.
    pub threshold: Option<f64>,
    /// How intervals are drawn.
    pub resampling: Resampling,
}

impl EvalConfig {
    fn is_correct(&self, reward: f64) -> bool {
        self.threshold.is_some_and(|threshold| reward >= threshold - SLACK)
    }
}

/// What judges the responses.
pub struct Judges<'a, B: Backend> {
    /// Scores them; without it only what needs no reward is measured.
    pub reranker: Option<&'a mut dyn Reranker>,
    /// Finds the final answers that vote.
    pub rules: Option<&'a RuleSet>,
    /// The reference of γ and KL.
    pub reference: Option<&'a Policy<B>>,
}

impl<B: Backend> Judges<'_, B> {
    /// Whether a response has a reward of its own.
    fn give_rewards(&self) -> bool {
        self.reranker.as_ref().is_some_and(|reranker| reranker.is_absolute())
    }
}

/// Answers every prompt greedily and with samples at every temperature, and measures both.
///
/// # Errors
/// Prompts that the model cannot take, what the reranker reports, no prompt.
pub fn evaluate<B: Backend>(
    policy: &Policy<B>,
    prompts: &[PromptRow],
    config: &EvalConfig,
    judges: &mut Judges<B>,
    label: &str,
) -> Result<Evaluation> {
    if prompts.is_empty() {
        return Err(Error::request("no prompts to evaluate on"));
    }
    let mut result = Evaluation {
        prompts: prompts.len(),
        measures: Vec::new(),
        missing: Vec::new(),
        responses: Vec::new(),
        shown: Vec::new(),
        resampling: config.resampling,
    };
    let mut highest = f64::NEG_INFINITY;
    greedy(policy, prompts, config, judges, label, &mut result, &mut highest)?;
    if !config.recall_at.is_empty() {
        for (i, &temperature) in config.temperatures.iter().enumerate() {
            let sampling = SamplingConfig { temperature, ..config.sampling.clone() };
            let name = format!("{label}: samples at {temperature}");
            let mut lists = candidates(policy, prompts, &sampling, &config.stop, &name)?;
            policy.model.backend().trim();
            if i == 0 {
                result.responses = lists.iter().map(|list| list.candidates[0].text.clone()).collect();
            }
            if let Some(reranker) = &mut judges.reranker {
                lists.iter_mut().try_for_each(|list| list.rank(&mut **reranker))?;
                let rewards = lists.iter().flat_map(|l| &l.candidates).map(|c| c.reward);
                highest = rewards.fold(highest, f64::max);
            }
            sampled(policy, &lists, config, temperature, judges, &mut result)?;
        }
        missing(config, judges, &mut result.missing);
    }
    if let Some(threshold) = config.threshold.filter(|_| judges.give_rewards() && !config.is_correct(highest)) {
        result.missing.push(format!(
            "note: no response reaches the reward of a correct one, {threshold} (the highest is {highest}); --correct_threshold \
             sets it"
        ));
    }
    Ok(result)
}

fn greedy<B: Backend>(
    policy: &Policy<B>,
    prompts: &[PromptRow],
    config: &EvalConfig,
    judges: &mut Judges<B>,
    label: &str,
    result: &mut Evaluation,
    highest: &mut f64,
) -> Result<()> {
    let responses =
        generate(policy, prompts, &config.sampling.clone().greedy(), &config.stop, &format!("{label}: greedy"))?;
    let mut rewards = vec![None; prompts.len()];
    if let Some(reranker) = judges.reranker.as_mut().filter(|reranker| reranker.is_absolute()) {
        for ((reward, prompt), responses) in rewards.iter_mut().zip(prompts).zip(&responses) {
            *reward = score(prompt, responses, &mut **reranker)?.first().copied();
        }
        *highest = rewards.iter().flatten().copied().fold(*highest, f64::max);
        let measure = |metric, values| Measure { metric, at: None, temperature: None, values };
        if config.threshold.is_some() {
            let correct = |r: &Option<f64>| r.map(|r| flag(config.is_correct(r)));
            result.measures.push(measure(Metric::Greedy, rewards.iter().map(correct).collect()));
        }
        result.measures.push(measure(Metric::GreedyReward, rewards.clone()));
    }
    result.responses = responses.into_iter().flatten().map(|g| g.text).collect();
    let shown = prompts.iter().zip(&result.responses).zip(rewards).take(SHOWN);
    result.shown = shown
        .map(|((prompt, response), reward)| Shown {
            prompt_index: prompt.index,
            prompt: prompt.text.clone(),
            reference: prompt.reference.clone(),
            response: response.clone(),
            reward,
        })
        .collect();
    Ok(())
}

fn flag(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

fn score(prompt: &PromptRow, responses: &[Generated], reranker: &mut dyn Reranker) -> Result<Vec<f64>> {
    let responses = responses.iter().map(|g| Response { text: &g.text, tokens: g.sample.ids.len() }).collect();
    let (conversation, reference) = (prompt.conversation.as_deref(), prompt.reference.as_deref());
    let query = Query { prompt: &prompt.text, conversation, reference, responses };
    Ok(reranker.score(&query)?)
}

/// Measures the samples of one temperature.
fn sampled<B: Backend>(
    policy: &Policy<B>,
    lists: &[CandidateList],
    config: &EvalConfig,
    temperature: f64,
    judges: &Judges<B>,
    result: &mut Evaluation,
) -> Result<()> {
    let mut add = |metric, at, values: Vec<Option<f64>>| {
        // A metric that no prompt defines is none.
        if values.iter().any(Option::is_some) {
            result.measures.push(Measure { metric, at, temperature: Some(temperature), values });
        }
    };
    let rewards: Vec<Vec<f64>> = lists.iter().map(|l| l.candidates.iter().map(|c| c.reward).collect()).collect();
    if judges.give_rewards() {
        for &n in config.recall_at.iter().filter(|_| config.threshold.is_some()) {
            let right = |r: &Vec<f64>| r.iter().filter(|&&r| config.is_correct(r)).count();
            let recall = |r: &Vec<f64>| pass_at_k(r.len(), right(r), n).map(Some).map_err(metric);
            add(Metric::Recall, Some(n), rewards.iter().map(recall).collect::<Result<_>>()?);
        }
        if let Some(rules) = judges.rules {
            let votes: Vec<_> = lists.iter().map(|list| (answers(list, rules), gold(list, rules))).collect();
            // A vote of one is the sample itself.
            for &n in config.recall_at.iter().filter(|&&n| n > 1) {
                let vote = |(answers, gold): &(Vec<Option<String>>, Option<String>)| match gold {
                    Some(gold) => expected_maj_at_n(answers, gold, n).map(Some).map_err(metric),
                    None => Ok(None),
                };
                add(Metric::Maj, Some(n), votes.iter().map(vote).collect::<Result<_>>()?);
            }
        }
        add(Metric::Reward, None, rewards.iter().map(|r| Some(r.iter().sum::<f64>() / r.len() as f64)).collect());
        for &n in config.recall_at.iter().filter(|&&n| n > 1) {
            let best = |r: &Vec<f64>| best_of_n(r, r, n).map(|best| Some(best.expected_max)).map_err(metric);
            add(Metric::BestOf, Some(n), rewards.iter().map(best).collect::<Result<_>>()?);
        }
    }
    let tokens = |l: &CandidateList| l.candidates.iter().map(|c| c.ids.len() as f64).sum::<f64>();
    add(Metric::Tokens, None, lists.iter().map(|l| Some(tokens(l) / l.candidates.len() as f64)).collect());
    let Some(reference) = judges.reference else { return Ok(()) };
    let (own, other) = (token_logps(&policy.model, lists)?, token_logps(&reference.model, lists)?);
    let itself = own == other;
    if itself && judges.reranker.is_some() && config.sampling.num_generations > 1 {
        let line = "no NDCG, MRR, Kendall τ and pair accuracy where the model is the reference itself: every log-ratio is 0 and \
                    orders nothing";
        if !result.missing.iter().any(|known| known == line) {
            result.missing.push(line.into());
        }
    }
    if judges.reranker.is_some() && !itself {
        let ranked: Vec<Option<Ranked>> = (0..lists.len())
            .map(|i| ranking(&own[i], &other[i], &rewards[i], config).transpose())
            .map(Option::transpose)
            .collect::<Result<_>>()?;
        let of = |value: fn(&Ranked) -> Option<f64>| ranked.iter().map(|r| r.as_ref().and_then(value)).collect();
        add(Metric::Ndcg, Some(config.ndcg_at), of(|r| Some(r.ndcg)));
        if judges.give_rewards() && config.threshold.is_some() {
            add(Metric::Mrr, None, of(|r| r.reciprocal_rank));
        }
        add(Metric::KendallTau, None, of(|r| r.tau));
        add(Metric::PairAccuracy, None, of(|r| r.pair_accuracy));
    }
    if untempered(&config.sampling, temperature) {
        for (name, estimator) in [(Metric::KlK1, KlEstimator::K1), (Metric::KlK3, KlEstimator::K3)] {
            let of = |i: usize| list_kl(estimator, &own[i], &other[i]).map(Some);
            add(name, None, (0..lists.len()).map(of).collect::<Result<_>>()?);
        }
    }
    Ok(())
}

fn metric(error: MetricError) -> Error {
    Error::request(error.to_string())
}

/// KL(policy ‖ other) a response, in nats: mean over the policy's own responses to a prompt, of whose tokens `own` and `other`
/// are the log-probabilities.
///
/// # Errors
/// Responses that have not as many log-probabilities under one as under the other.
pub fn list_kl(estimator: KlEstimator, own: &[Vec<f64>], other: &[Vec<f64>]) -> Result<f64> {
    let mut sum = 0.0;
    for (own, other) in own.iter().zip(other) {
        sum += kl(estimator, own, other).map_err(metric)?.value;
    }
    Ok(sum / own.len().max(1) as f64)
}

/// Whether samples come from the policy itself: an average over others estimates another quantity than its KL.
pub fn untempered(sampling: &SamplingConfig, temperature: f64) -> bool {
    temperature == 1.0 && sampling.top_k == 0 && sampling.top_p == 1.0 && sampling.min_p == 0.0
}

fn answers(list: &CandidateList, rules: &RuleSet) -> Vec<Option<String>> {
    list.candidates.iter().map(|c| rules.answer(&c.text)).collect()
}

fn gold(list: &CandidateList, rules: &RuleSet) -> Option<String> {
    list.reference.as_deref().and_then(|reference| rules.reference_answer(reference))
}

/// What has no number, and the flag that would give it one.
fn missing<B: Backend>(config: &EvalConfig, judges: &Judges<B>, lines: &mut Vec<String>) {
    if judges.reranker.is_none() {
        lines.push(
            "no accuracy, Recall@N, maj@N, rewards or ranking: the data have no `reference` to compare with; add the \
             field, or choose --reward_funcs that need none"
                .into(),
        );
    } else if !judges.give_rewards() {
        lines.push(
            "no accuracy, Recall@N, maj@N, rewards and MRR: --pairwise_ranker compares the responses to a prompt and gives none \
             of them a reward of its own"
                .into(),
        );
    } else if config.threshold.is_none() {
        lines.push(
            "no accuracy, Recall@N, maj@N and MRR: the rewards of a --reward_model do not say what is correct; \
             --correct_threshold R takes a response with a reward of R or more for correct"
                .into(),
        );
    } else if config.recall_at.iter().any(|&n| n > 1) && judges.rules.is_none_or(|rules| !rules.has_answers()) {
        lines.push("no maj@N: votes are counted on final answers, which --reward_funcs answer finds".into());
    }
    match judges.reference {
        None => lines.push(
            "no NDCG, MRR, Kendall τ, pair accuracy and KL: --ref_model DIR names the reference that the policy is \
             compared with"
                .into(),
        ),
        Some(_) => {
            if !config.temperatures.iter().any(|&t| untempered(&config.sampling, t)) {
                lines.push(
                    "no KL: it is estimated on samples of the policy itself, --temperature 1.0 without --top_k, --top_p \
                     and --min_p"
                        .into(),
                );
            }
            if config.sampling.num_generations < 2 && judges.reranker.is_some() {
                lines
                    .push("no NDCG, MRR, Kendall τ and pair accuracy: a list needs --num_generations 2 or more".into());
            }
        }
    }
}

/// Log-probability of every token of every response of every list, computed in the same way for any policy: the same
/// policy gives the same numbers, and a γ of exactly 0.
///
/// # Errors
/// Lists that the model cannot take.
pub fn token_logps<B: Backend>(model: &Transformer<B>, lists: &[CandidateList]) -> Result<Vec<Vec<Vec<f64>>>> {
    let response = |ids: &[u32]| TrainingResponse { ids: ids.to_vec(), reward: 0.0, reference: vec![], sampled: None };
    let mut scored: Vec<TrainingList> = lists
        .iter()
        .map(|list| TrainingList {
            prompt: list.prompt_ids.clone(),
            responses: list.candidates.iter().map(|c| response(&c.ids)).collect(),
        })
        .collect();
    fill_references(model, &mut scored, false)?;
    model.backend().trim();
    let wide = |r: TrainingResponse| r.reference.into_iter().map(f64::from).collect();
    Ok(scored.into_iter().map(|list| list.responses.into_iter().map(wide).collect()).collect())
}

/// How the policy's own order of a list agrees with that of the rewards.
struct Ranked {
    ndcg: f64,
    reciprocal_rank: Option<f64>,
    tau: Option<f64>,
    pair_accuracy: Option<f64>,
}

/// The order by γ against that by reward; `None` where all rewards are equal: there is no order to find.
fn ranking(own: &[Vec<f64>], other: &[Vec<f64>], rewards: &[f64], config: &EvalConfig) -> Result<Option<Ranked>> {
    let lowest = rewards.iter().copied().fold(f64::INFINITY, f64::min);
    if rewards.iter().all(|&r| r == lowest) {
        return Ok(None);
    }
    // Any β > 0 gives the same order.
    let difference = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a - b).sum::<f64>();
    let gamma: Vec<f64> = own.iter().zip(other).map(difference).collect();
    let relevance: Vec<f64> = rewards.iter().map(|r| r - lowest).collect();
    let correct: Vec<f64> = rewards.iter().map(|&r| flag(config.is_correct(r))).collect();
    let compute = || {
        let first = reciprocal_rank(&gamma, &correct, None)?;
        Ok(Ranked {
            ndcg: ndcg(&gamma, &relevance, Some(config.ndcg_at), Gain::Linear)?.ndcg,
            // Without a correct response there is nothing to find.
            reciprocal_rank: correct.contains(&1.0).then_some(first),
            tau: kendall_tau_b(&gamma, rewards)?.tau,
            pair_accuracy: pair_accuracy(&gamma, rewards)?.half,
        })
    };
    compute().map(Some).map_err(|error: larpo_core::metrics::MetricError| Error::request(error.to_string()))
}
