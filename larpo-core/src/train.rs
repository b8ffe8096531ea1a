//! Optimizer steps: supervised fine-tuning on rows, and preference training on ranked lists.
//!
//! A step gets its whole effective batch and cuts it into micro-batches itself. Losses are normalised over the effective
//! batch (response tokens for fine-tuning, contributing lists for list losses), so accumulation equals one big batch.

use crate::backend::Backend;
use crate::error::Error;
use crate::finite::{blame_loss, check_weights};
use crate::lists::{PackedLists, RankedLists};
use crate::metrics;
use crate::model::Transformer;
use crate::objective::{Objective, reward_list};
use crate::ops;
use crate::optim::{AdamW, LossScale, OptimizerConfig, OptimizerState, UpdateReport};
use crate::tape::{Gradients, Tape, Var};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A prompt and the response to learn.
#[derive(Clone, Debug, PartialEq)]
pub struct SftRow {
    /// Prompt ids; with an empty prompt the first token of the response is not scored.
    pub prompt: Vec<u32>,
    /// Response ids, the end-of-text token included where the response ends.
    pub response: Vec<u32>,
}

/// A response of a training list.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingResponse {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Reward; only the order within a list matters to most losses.
    pub reward: f64,
    /// Log-probability of every scored token under the reference policy; see [`fill_references`].
    pub reference: Vec<f32>,
    /// The same as recorded while the present policy drew the response, where it did.
    pub sampled: Option<Vec<f32>>,
}

/// A prompt with its ranked responses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainingList {
    /// Prompt ids.
    pub prompt: Vec<u32>,
    /// Responses, in any order.
    pub responses: Vec<TrainingResponse>,
}

impl TrainingList {
    /// Number of rows in packed form.
    pub fn rows(&self) -> usize {
        self.prompt.len() + self.responses.iter().map(|r| r.ids.len()).sum::<usize>()
    }

    /// The rewards in order.
    pub fn rewards(&self) -> Vec<f64> {
        self.responses.iter().map(|r| r.reward).collect()
    }

    /// Index of the best response, the first of several.
    pub fn best(&self) -> usize {
        let mut best = 0;
        for (i, response) in self.responses.iter().enumerate() {
            if response.reward > self.responses[best].reward {
                best = i;
            }
        }
        best
    }
}

/// Settings of preference training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListTraining {
    /// The list loss.
    pub objective: Objective,
    /// γ = β·(log πθ − log πref).
    pub beta: f64,
    /// Weight of the winners' negative log-likelihood per response token; 0 leaves it out.
    pub sft_weight: f64,
}

/// A text whose end a reward model scores, among those of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct RewardList {
    /// What all texts begin with, which may be nothing.
    pub prompt: Vec<u32>,
    /// What follows, at least one token each.
    pub responses: Vec<Vec<u32>>,
    /// What orders them; only the order matters.
    pub labels: Vec<f64>,
    /// By how much the better one of a pair is to lead.
    pub margin: f64,
}

impl RewardList {
    /// Number of rows in packed form.
    pub fn rows(&self) -> usize {
        self.prompt.len() + self.responses.iter().map(Vec::len).sum::<usize>()
    }
}

/// A policy in training: weights, gradients and optimizer.
pub struct Trainer<B: Backend> {
    /// The policy.
    pub model: Transformer<B>,
    optimizer: AdamW<B>,
    gradients: Gradients<B>,
}

/// What a fine-tuning step reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SftReport {
    /// Mean negative log-likelihood per response token before the update, in nats.
    pub loss: f64,
    /// Response tokens of the step.
    pub tokens: usize,
    /// The update.
    pub update: UpdateReport,
}

/// What a list step reports; names as in TRL's logs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ListReport {
    /// Mean list loss over contributing lists, plus the weighted NLL term.
    pub loss: f64,
    /// Lists that contributed.
    pub lists: usize,
    /// Mean over lists of the measurements.
    pub metrics: ListMetrics,
    /// The update.
    pub update: UpdateReport,
}

/// Measurements on the lists of a step, averaged over lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ListMetrics {
    /// γ of the best response.
    pub reward_chosen: f64,
    /// Mean γ of the other responses.
    pub reward_rejected: f64,
    /// Share of the pairs with different rewards that γ puts in the right order.
    pub reward_accuracy: f64,
    /// Summed log-probability of the best response.
    pub logp_chosen: f64,
    /// Mean summed log-probability of the others.
    pub logp_rejected: f64,
    /// NDCG of the order by γ; an item's (linear) gain is its reward above the lowest of the list.
    pub ndcg: f64,
    /// Kendall's τ-b between γ and rewards; lists where it is undefined (γ all equal) count as 0.
    pub kendall_tau: f64,
}

/// What a micro-batch has to know of the batch it belongs to.
#[derive(Clone, Copy)]
struct WholeBatch {
    lists: usize,
    /// Scored tokens of the winners.
    winner_tokens: usize,
}

impl<B: Backend> Trainer<B> {
    /// Trains `model` for `total_steps` updates.
    pub fn new(model: Transformer<B>, config: OptimizerConfig, total_steps: u64) -> Self {
        let optimizer = AdamW::new(&model, config, total_steps);
        let gradients = Gradients::new(model.parameters().len());
        Self { model, optimizer, gradients }
    }

    /// Updates made so far.
    pub fn steps(&self) -> u64 {
        self.optimizer.step_count()
    }

    /// The state of the optimizer, to be stored beside the policy.
    pub fn state(&self) -> OptimizerState {
        self.optimizer.state(self.model.backend())
    }

    /// Takes up what [`Trainer::state`] gave.
    ///
    /// # Errors
    /// A state that belongs to another model.
    pub fn resume(model: Transformer<B>, state: OptimizerState) -> Result<Self, Error> {
        let optimizer = AdamW::restore(&model, state)?;
        let gradients = Gradients::new(model.parameters().len());
        Ok(Self { model, optimizer, gradients })
    }

    /// The policy, with the optimizer dropped.
    pub fn into_model(self) -> Transformer<B> {
        self.model
    }

    /// Scales the loss by a factor from here on, or no longer; where products are in half precision it is scaled by itself.
    pub fn set_loss_scale(&mut self, scale: Option<LossScale>) {
        self.optimizer.set_loss_scale(scale);
    }

    /// Factor on the loss of the next step; the last one's too, unless it has just grown.
    pub fn loss_scale(&self) -> f64 {
        self.optimizer.loss_scale()
    }

    /// Gradients of the last step, times the factor on its loss.
    pub fn gradients(&self) -> &Gradients<B> {
        &self.gradients
    }

    /// One update on `rows`, `micro` rows at a time.
    ///
    /// # Errors
    /// Rows that the model cannot take or that have nothing to learn; a weight, log-probability, loss or gradient that is
    /// not a number, by tensor or row, before the update.
    pub fn sft_step(&mut self, rows: &[&SftRow], micro: usize) -> Result<SftReport, Error> {
        let batches: Vec<PackedLists> = rows
            .chunks(micro.max(1))
            .map(|rows| PackedLists::pack(rows.iter().map(|r| (&r.prompt[..], [&r.response[..]]))))
            .collect();
        let tokens: usize = batches.iter().map(PackedLists::targets).sum();
        if tokens == 0 {
            return Err(Error::setting("response tokens of a step", 0, "at least 1; the rows have nothing to learn"));
        }
        let weight = -1.0 / tokens as f32;
        let (numbers, update) = self.update(|trainer| {
            let pass = |(chunk, packed): (usize, _)| trainer.sft_pass(packed, chunk, chunk * micro.max(1), weight);
            batches.iter().enumerate().map(pass).collect()
        })?;
        let loss = numbers.iter().map(|pass| pass.loss).sum();
        Ok(SftReport { loss, tokens, update })
    }

    /// Forward and backward of micro-batch `chunk`, which begins with row `first`.
    fn sft_pass<'a>(
        &mut self,
        packed: &'a PackedLists,
        chunk: usize,
        first: usize,
        weight: f32,
    ) -> Result<Pass<'a, B>, Error> {
        let b = self.model.backend().clone();
        let tape = Tape::new(&b).with_dropout(self.steps(), chunk);
        let logp = self.logp(&tape, packed)?;
        let weights = b.upload(&vec![weight; packed.targets()]);
        let total = ops::weighted_sum(&tape, &logp, &Arc::new(weights));
        tape.backward_scaled(&total, self.loss_scale(), &mut self.gradients);
        Ok(Pass { packed, first, total, logp, gamma: None })
    }

    /// One update on ranked lists, `micro` lists at a time. Every list must contribute ([`contributes`]).
    ///
    /// # Errors
    /// Lists that the model cannot take, no lists; a weight, log-probability, score, loss or gradient that is not a number,
    /// by tensor or row, before the update.
    pub fn list_step(
        &mut self,
        settings: &ListTraining,
        lists: &[&TrainingList],
        micro: usize,
    ) -> Result<ListReport, Error> {
        if lists.is_empty() {
            return Err(Error::setting("lists of a step", 0, "at least 1"));
        }
        // Counted on the reference, which has one number for every scored token.
        let winner_tokens: usize = lists.iter().map(|l| l.responses[l.best()].reference.len()).sum();
        let whole = WholeBatch { lists: lists.len(), winner_tokens };
        let micro = micro.max(1);
        let batches: Vec<(PackedLists, &[&TrainingList])> =
            lists.chunks(micro).map(|lists| (pack(lists), lists)).collect();
        let (numbers, update) = self.update(|trainer| {
            (batches.iter().enumerate())
                .map(|(chunk, (packed, lists))| trainer.list_pass(settings, (packed, lists), chunk * micro, whole))
                .collect()
        })?;
        let (mut loss, mut sum) = (0.0, ListMetrics::default());
        for ((packed, lists), numbers) in batches.iter().zip(&numbers) {
            loss += numbers.loss;
            for (i, list) in lists.iter().enumerate() {
                let offsets = &packed.item_offsets;
                let items = offsets[i] as usize..offsets[i + 1] as usize;
                let gamma = &numbers.gamma[items.clone()];
                sum.observe(list, gamma, items.map(|item| &numbers.logps[packed.item_targets(item)]));
            }
        }
        Ok(ListReport { loss, lists: lists.len(), metrics: sum.divided(lists.len() as f64), update })
    }

    /// One update of a reward model (a model with a score head) on ranked texts, `micro` lists at a time; the loss is
    /// [`reward_list`]. In the report scores are in the place of γ, and there is no policy to say anything of.
    ///
    /// # Errors
    /// Lists that the model cannot take, without two different labels, or none; a weight, score or gradient that is not a
    /// number, by tensor or list, before the update.
    pub fn reward_step(
        &mut self,
        lists: &[&RewardList],
        center_coefficient: f64,
        micro: usize,
    ) -> Result<ListReport, Error> {
        if lists.is_empty() {
            return Err(Error::setting("lists of a step", 0, "at least 1"));
        }
        loop {
            let (sum, metrics) = self.reward_passes(lists, center_coefficient, micro)?;
            let clip = self.optimizer.clip(&self.model, &self.gradients);
            let norm = self.model.backend().read(&clip)[0];
            if let Some(update) = self.apply(&clip, norm)? {
                let n = lists.len() as f64;
                return Ok(ListReport { loss: sum / n, lists: lists.len(), metrics: metrics.divided(n), update });
            }
        }
    }

    /// Forward and backward of ranked texts: the sums of their losses and measurements.
    fn reward_passes(
        &mut self,
        lists: &[&RewardList],
        center_coefficient: f64,
        micro: usize,
    ) -> Result<(f64, ListMetrics), Error> {
        self.gradients.zero();
        let b = self.model.backend().clone();
        let (mut sum, mut metrics) = (0.0, ListMetrics::default());
        for (chunk, lists_of_pass) in lists.chunks(micro.max(1)).enumerate() {
            let tape = Tape::new(&b).with_dropout(self.steps(), chunk);
            let rewards = self.model.reward(&tape, &pack_rewards(lists_of_pass))?;
            let scores = b.read(rewards.value());
            if let Some(item) = scores.iter().position(|score| !score.is_finite()) {
                check_weights(&self.model)?;
                let at = format!("response {} of the texts after list {}", item + 1, chunk * micro.max(1));
                return Err(Error::NotFinite { what: "a score".into(), at });
            }
            let mut slopes = Vec::with_capacity(scores.len());
            let mut rest = &scores[..];
            for list in lists_of_pass {
                let (scores, after) = rest.split_at(list.responses.len());
                rest = after;
                let loss = reward_list(scores, &list.labels, list.margin, center_coefficient)
                    .map_err(|error| Error::Caller(error.to_string()))?;
                if loss.pairs == 0 {
                    return Err(Error::setting("labels of a list", "all equal", "two different ones"));
                }
                sum += loss.value;
                metrics.observe_order(scores, &list.labels);
                slopes.extend(loss.d_scores.iter().map(|d| (d / lists.len() as f64) as f32));
            }
            let total = ops::weighted_sum(&tape, &rewards, &Arc::new(b.upload(&slopes)));
            drop(rewards);
            tape.backward_scaled(&total, self.loss_scale(), &mut self.gradients);
        }
        Ok((sum, metrics))
    }

    /// Forward and backward of a packed micro-batch that begins with list `first`.
    fn list_pass<'a>(
        &mut self,
        settings: &ListTraining,
        (packed, lists): (&'a PackedLists, &[&TrainingList]),
        first: usize,
        whole: WholeBatch,
    ) -> Result<Pass<'a, B>, Error> {
        let b = self.model.backend().clone();
        let reference: Vec<f32> =
            lists.iter().flat_map(|l| &l.responses).flat_map(|r| r.reference.iter().copied()).collect();
        if reference.len() != packed.targets() {
            let expected = format!("one for each of the {} scored tokens", packed.targets());
            return Err(Error::setting("reference log-probabilities", reference.len(), &expected));
        }
        let rewards: Vec<f64> = lists.iter().flat_map(|l| l.rewards()).collect();
        let ranked = RankedLists::new(packed, rewards, settings.objective, settings.beta, 1.0 / whole.lists as f64)?;
        // Passes are told apart by their first list.
        let tape = Tape::new(&b).with_dropout(self.steps(), first);
        let logp = self.logp(&tape, packed)?;
        let on_device = b.upload(&reference);
        let shape = (packed.items(), packed.lists());
        let list = ops::list_loss(&tape, &logp, &on_device, &b.upload_lists(&ranked), shape, ranked.scale());
        let mut total = list.total;
        if settings.sft_weight != 0.0 {
            let weight = -(settings.sft_weight / whole.winner_tokens.max(1) as f64) as f32;
            let weights = b.upload(&winner_weights(lists, packed, weight));
            total = ops::add(&tape, &total, &ops::weighted_sum(&tape, &logp, &Arc::new(weights)));
        }
        tape.backward_scaled(&total, self.loss_scale(), &mut self.gradients);
        Ok(Pass { packed, first, total, logp, gamma: Some(list.gamma) })
    }

    /// Updates the weights with what `passes` brings to the gradients; once more with a smaller factor on the loss where that
    /// is too much for half precision.
    fn update<'a>(
        &mut self,
        mut passes: impl FnMut(&mut Self) -> Result<Vec<Pass<'a, B>>, Error>,
    ) -> Result<(Vec<PassNumbers>, UpdateReport), Error> {
        loop {
            self.gradients.zero();
            let passes = passes(self)?;
            let (numbers, clip, norm) = self.look(&passes)?;
            drop(passes);
            if let Some(update) = self.apply(&clip, norm)? {
                return Ok((numbers, update));
            }
        }
    }

    /// Updates the weights; none where the gradients are not finite and a smaller factor on the loss may mend it.
    fn apply(&mut self, clip: &B::Buffer, norm: f64) -> Result<Option<UpdateReport>, Error> {
        if !norm.is_finite() && self.optimizer.lower_loss_scale() {
            return Ok(None);
        }
        self.optimizer.apply(&mut self.model, &self.gradients, clip, norm).map(Some)
    }

    /// One look at what all passes and the gradients came to: with what clips them, and their norm.
    fn look(&self, passes: &[Pass<B>]) -> Result<(Vec<PassNumbers>, B::Buffer, f64), Error> {
        let b = self.model.backend();
        let clip = self.optimizer.clip(&self.model, &self.gradients);
        let mut buffers = vec![&clip];
        for pass in passes {
            buffers.push(pass.total.value());
            buffers.extend(pass.gamma.iter().flat_map(|gamma| [gamma, pass.logp.value()]));
        }
        let mut read = b.read_all(&buffers).into_iter();
        let mut next = || read.next().expect("as many as were asked for");
        let norm = next()[0];
        let mut numbers = Vec::with_capacity(passes.len());
        for pass in passes {
            let loss = next()[0];
            let [gamma, logps] = if pass.gamma.is_some() { [next(), next()] } else { [vec![], vec![]] };
            if !loss.is_finite() {
                let logps = if pass.gamma.is_some() { logps } else { b.read(pass.logp.value()) };
                return Err(blame_loss(&self.model, pass.packed, &logps, &gamma, pass.first, self.steps() + 1));
            }
            numbers.push(PassNumbers { loss, gamma, logps });
        }
        Ok((numbers, clip, norm))
    }

    fn logp(&self, tape: &Tape<B>, packed: &PackedLists) -> Result<Var<B>, Error> {
        let batch = self.model.batch(packed)?;
        Ok(self.model.token_logp(tape, &batch))
    }
}

/// A micro-batch that went forward and backward, and what is still to be read of it.
struct Pass<'a, B: Backend> {
    packed: &'a PackedLists,
    /// Its first row or list in the batch.
    first: usize,
    total: Var<B>,
    logp: Var<B>,
    /// Of ranked lists.
    gamma: Option<B::Buffer>,
}

/// What was read of a [`Pass`]; of rows the loss alone.
struct PassNumbers {
    loss: f64,
    gamma: Vec<f64>,
    logps: Vec<f64>,
}

/// Packs ranked texts.
pub fn pack_rewards(lists: &[&RewardList]) -> PackedLists {
    PackedLists::pack(lists.iter().map(|list| (&list.prompt[..], list.responses.iter().map(|response| &response[..]))))
}

/// Rows of a forward pass that only scores; a longer list is scored alone.
pub const SCORING_ROWS: usize = 4096;

/// Sets every response's reference log-probabilities: those recorded while sampling where `reuse_sampled` (the reference
/// is the policy that drew them) and there are any, computed with `reference` otherwise. Products in half precision round too
/// much for those of sampling to be those of training: there all are computed.
///
/// # Errors
/// Lists that the model cannot take.
pub fn fill_references<B: Backend>(
    reference: &Transformer<B>,
    lists: &mut [TrainingList],
    reuse_sampled: bool,
) -> Result<(), Error> {
    let reuse_sampled = reuse_sampled && !reference.backend().multiplies_in_half();
    let mut rest = lists;
    while !rest.is_empty() {
        let mut rows = 0;
        let count = rest
            .iter()
            .take_while(|list| {
                rows += list.rows();
                rows <= SCORING_ROWS
            })
            .count()
            .max(1);
        let (chunk, after) = rest.split_at_mut(count);
        rest = after;
        if reuse_sampled && chunk.iter().flat_map(|l| &l.responses).all(|r| r.sampled.is_some()) {
            for response in chunk.iter_mut().flat_map(|l| &mut l.responses) {
                response.reference = response.sampled.clone().unwrap_or_default();
            }
            continue;
        }
        let packed = pack(&chunk.iter().collect::<Vec<_>>());
        let logps = reference.score(&packed)?;
        if let Some(item) = (0..packed.items()).find(|&i| logps[packed.item_targets(i)].iter().any(|v| !v.is_finite()))
        {
            check_weights(reference)?;
            let text = format!("{:?}", chunk.iter().flat_map(|l| &l.responses).nth(item).map(|r| &r.ids));
            return Err(Error::NotFinite {
                what: "a reference log-probability".into(),
                at: format!("the response {text}"),
            });
        }
        for (item, response) in chunk.iter_mut().flat_map(|l| &mut l.responses).enumerate() {
            response.reference = match &response.sampled {
                Some(sampled) if reuse_sampled => sampled.clone(),
                _ => logps[packed.item_targets(item)].iter().map(|&v| v as f32).collect(),
            };
        }
    }
    Ok(())
}

/// Packs training lists.
pub fn pack(lists: &[&TrainingList]) -> PackedLists {
    PackedLists::pack(lists.iter().map(|l| (&l.prompt[..], l.responses.iter().map(|r| &r.ids[..]))))
}

/// Whether a list has a gradient under `objective`: two responses, and different rewards unless ties are `stable`.
pub fn contributes(objective: &Objective, list: &TrainingList) -> bool {
    objective.rank(&list.rewards(), None).is_ok_and(|ranking| ranking.contributes())
}

/// The linear gain of every reward: how far it is above the lowest. Only their ratios matter, so those that are too large to be
/// added up are made smaller.
fn gains(rewards: &[f64]) -> Vec<f64> {
    let lowest = rewards.iter().copied().fold(f64::INFINITY, f64::min);
    let gains: Vec<f64> = rewards.iter().map(|r| r - lowest).collect();
    match gains.iter().sum::<f64>().is_finite() {
        true => gains,
        false => {
            let scale = 0.5 / rewards.len() as f64;
            rewards.iter().map(|r| r * scale - lowest * scale).collect()
        }
    }
}

/// `weight` on the tokens of every list's best response, 0 elsewhere.
fn winner_weights(lists: &[&TrainingList], packed: &PackedLists, weight: f32) -> Vec<f32> {
    let mut weights = vec![0.0; packed.targets()];
    for (i, list) in lists.iter().enumerate() {
        weights[packed.item_targets(packed.item_offsets[i] as usize + list.best())].fill(weight);
    }
    weights
}

impl ListMetrics {
    fn observe<'a>(&mut self, list: &TrainingList, gamma: &[f64], logps: impl Iterator<Item = &'a [f64]>) {
        let best = list.best();
        let sums: Vec<f64> = logps.map(|logp| logp.iter().sum()).collect();
        self.logp_chosen += sums[best];
        self.logp_rejected += mean_but(&sums, best);
        self.observe_order(gamma, &list.rewards());
    }

    /// What γ, or a reward model's scores, make of the rewards.
    fn observe_order(&mut self, gamma: &[f64], rewards: &[f64]) {
        // The first of several.
        let best = (0..rewards.len()).reduce(|a, b| if rewards[b] > rewards[a] { b } else { a }).unwrap_or(0);
        self.reward_chosen += gamma[best];
        self.reward_rejected += mean_but(gamma, best);
        self.reward_accuracy += metrics::pair_accuracy(gamma, rewards).ok().and_then(|a| a.strict).unwrap_or(0.0);
        self.ndcg += expected_ndcg(gamma, &gains(rewards));
        self.kendall_tau += metrics::kendall_tau_b(gamma, rewards).ok().and_then(|k| k.tau).unwrap_or(0.0);
    }

    /// Every measurement divided by `n`.
    pub fn divided(mut self, n: f64) -> Self {
        self.each_mut().for_each(|value| *value /= n);
        self
    }

    fn each_mut(&mut self) -> impl Iterator<Item = &mut f64> {
        [
            &mut self.reward_chosen,
            &mut self.reward_rejected,
            &mut self.reward_accuracy,
            &mut self.logp_chosen,
            &mut self.logp_rejected,
            &mut self.ndcg,
            &mut self.kendall_tau,
        ]
        .into_iter()
    }
}

/// Mean of the values but the one at `best`; 0 of one value.
fn mean_but(values: &[f64], best: usize) -> f64 {
    (values.iter().sum::<f64>() - values[best]) / (values.len() as f64 - 1.0).max(1.0)
}

/// NDCG with linear gains where equal scores stand in random order: each gets the mean gain of its group. Before the first
/// update all γ are equal, and an order by index would call the stored order perfect.
fn expected_ndcg(scores: &[f64], relevance: &[f64]) -> f64 {
    let averaged: Vec<f64> = scores
        .iter()
        .map(|score| {
            let group = scores.iter().zip(relevance).filter(|(other, _)| *other == score).map(|(_, r)| r);
            group.clone().sum::<f64>() / group.count().max(1) as f64
        })
        .collect();
    let of = |relevance: &[f64]| metrics::ndcg(scores, relevance, None, metrics::Gain::Linear);
    match (of(&averaged), of(relevance)) {
        (Ok(averaged), Ok(ideal)) if ideal.idcg > 0.0 => averaged.dcg / ideal.idcg,
        _ => 0.0,
    }
}

impl std::ops::Add for ListMetrics {
    type Output = Self;

    fn add(mut self, mut other: Self) -> Self {
        self.each_mut().zip(other.each_mut()).for_each(|(a, b)| *a += *b);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ndcg_of_tied_scores_is_its_mean_over_their_orders() {
        // Two items, one relevant: first in half of the orders (1), second in the others (1 / log2(3)).
        let expected = 0.5 * (1.0 + 1.0 / 3f64.log2());
        assert!((expected_ndcg(&[0.0, 0.0], &[1.0, 0.0]) - expected).abs() < 1e-12);
        assert_eq!(expected_ndcg(&[2.0, 1.0], &[1.0, 0.0]), 1.0);
    }

    #[test]
    fn rewards_of_any_size_have_an_ndcg() {
        let of = |rewards: [f64; 3]| expected_ndcg(&[3.0, 1.0, 2.0], &gains(&rewards));
        for size in [1e-300, 1.0, 1e300, 1.7e308] {
            assert_eq!(of([size, -size, 0.0]), 1.0, "{size}");
            let (found, expected) = (of([0.0, -size, size]), of([0.0, -1.0, 1.0]));
            assert!((found - expected).abs() < 1e-12 && expected < 1.0, "{size}: {found}");
        }
    }
}
