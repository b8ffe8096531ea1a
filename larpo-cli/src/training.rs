//! Training loops that the verbs share: fine-tuning on rows, list training on ranked lists, with progress and metrics.

use crate::args::{LIST_LEARNING_RATE, ListArgs, REWARD_LEARNING_RATE, ReportTo, SFT_LEARNING_RATE, TrainArgs};
use crate::checkpoint::{Counters, Kind};
use crate::error::{Error, Result};
use crate::metrics_log::Row;
use crate::numbers::fixed;
use crate::policy::Policy;
use crate::resumable::{Loop, lists_checksum, reward_lists_checksum, rows_checksum};
use crate::resume::Resume;
use crate::stop::Stop;
use larpo_core::backend::Backend;
use larpo_core::batches::BatchPlan;
use larpo_core::finite::{check_trained_weights, check_weights};
use larpo_core::lists::PackedLists;
use larpo_core::model::Transformer;
use larpo_core::objective::{LossType, Objective};
use larpo_core::optim::OptimizerConfig;
use larpo_core::select::Select;
use larpo_core::tape::Tape;
use larpo_core::train::{ListMetrics, ListTraining, RewardList, SftRow, Trainer, TrainingList, pack, pack_rewards};
use std::path::PathBuf;

/// How a loop trains, whatever it trains on.
#[derive(Debug, Clone)]
pub struct LoopConfig {
    /// Optimizer.
    pub optimizer: OptimizerConfig,
    /// Items of a forward and backward pass.
    pub micro_batch: usize,
    /// Passes of an update.
    pub accumulation: usize,
    /// Passes over the data.
    pub epochs: f64,
    /// Exactly so many updates instead.
    pub max_steps: Option<u64>,
    /// Updates between lines of the log.
    pub logging_steps: usize,
    /// Where metrics go beside the log.
    pub report_to: ReportTo,
    /// Updates between checkpoints.
    pub save_steps: Option<usize>,
    /// Checkpoints that are kept, the newest ones.
    pub save_total_limit: Option<usize>,
    /// Seed of the order.
    pub seed: u64,
    /// Number that sets this loop's order apart from others of the run.
    pub stream: u64,
}

impl LoopConfig {
    /// The settings of the flags; `default_rate` where no learning rate is given.
    fn new(args: &TrainArgs, default_rate: f64, seed: u64) -> Self {
        Self {
            optimizer: OptimizerConfig {
                learning_rate: args.learning_rate.unwrap_or(default_rate),
                beta1: args.adam_beta1,
                beta2: args.adam_beta2,
                eps: args.adam_epsilon,
                weight_decay: args.weight_decay,
                max_grad_norm: args.max_grad_norm,
                schedule: args.lr_scheduler_type,
                warmup_ratio: args.warmup_ratio,
            },
            micro_batch: args.per_device_train_batch_size,
            accumulation: args.gradient_accumulation_steps,
            epochs: args.num_train_epochs,
            max_steps: args.step_limit().map(|n| n as u64),
            logging_steps: args.logging_steps,
            report_to: args.report_to,
            save_steps: args.save_steps,
            save_total_limit: args.save_total_limit,
            seed,
            stream: 0,
        }
    }

    /// For `sft`.
    pub fn sft(args: &TrainArgs, seed: u64) -> Self {
        Self::new(args, SFT_LEARNING_RATE, seed)
    }

    /// For `train` and `align`.
    pub fn lists(args: &TrainArgs, seed: u64) -> Self {
        Self::new(args, LIST_LEARNING_RATE, seed)
    }

    /// For `reward`.
    pub fn rewards(args: &TrainArgs, seed: u64) -> Self {
        Self::new(args, REWARD_LEARNING_RATE, seed)
    }

    /// The order of `items`.
    pub fn plan(&self, items: usize) -> BatchPlan {
        let batch = self.micro_batch * self.accumulation;
        BatchPlan::new(items, batch, self.epochs, self.max_steps, self.seed, self.stream)
    }
}

/// The list objective of the flags.
pub fn list_training(args: &ListArgs, seed: u64) -> ListTraining {
    let objective = Objective {
        loss: args.loss_type,
        ties: args.ties,
        labels: args.labels.unwrap_or_default(),
        seed,
        ..Objective::default()
    };
    ListTraining { objective, beta: args.beta, sft_weight: args.sft_weight }
}

/// The selection of the flags, by default the one the paper uses with the loss.
pub fn selection(args: &ListArgs) -> Select {
    args.select.unwrap_or_else(|| default_selection(args.loss_type))
}

/// The selection that the paper uses with a loss.
pub fn default_selection(loss: LossType) -> Select {
    match loss {
        LossType::Pairwise => Select::MaxMin,
        LossType::Contrastive => Select::TopBottom { top: 1, bottom: 3 },
        _ => Select::TopBottom { top: 2, bottom: 2 },
    }
}

/// Where a loop writes what happens, what it goes on from, and who may end it early.
#[derive(Debug, Default)]
pub struct Journal {
    /// Label of the progress bar.
    pub label: String,
    /// The metrics file.
    pub metrics: Option<PathBuf>,
    /// Folder of `checkpoint-<step>`; behind it those of earlier loops of the run, which count when old ones are removed.
    pub checkpoints: Vec<PathBuf>,
    /// The run's folder, whose record every checkpoint keeps a copy of.
    pub run: Option<PathBuf>,
    /// The checkpoint to go on from.
    pub resume: Option<Resume>,
    /// Raised to end after the update that is under way, with a checkpoint.
    pub stop: Stop,
}

impl Journal {
    /// A journal that only shows a bar.
    pub fn bar(label: &str) -> Self {
        Self { label: label.into(), ..Self::default() }
    }
}

/// Held-out rows to watch while fine-tuning.
pub struct HeldOut<'a> {
    /// The rows.
    pub rows: &'a [SftRow],
    /// Updates between looks; after the last update there is one in any case.
    pub every: Option<usize>,
}

/// What fine-tuning ends with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SftOutcome {
    /// Updates.
    pub steps: u64,
    /// Mean training loss of the last logged stretch.
    pub loss: f64,
    /// Mean loss per token on the held-out rows after the last update.
    pub eval_loss: Option<f64>,
}

/// Fine-tunes `policy` on `rows` by `plan`.
///
/// # Errors
/// Rows that the model cannot take, numbers that are not finite, a file that cannot be written.
pub fn sft<B: Backend>(
    policy: Policy<B>,
    rows: &[SftRow],
    plan: BatchPlan,
    config: &LoopConfig,
    held_out: Option<HeldOut>,
    journal: Journal,
) -> Result<(Policy<B>, SftOutcome)> {
    if rows.is_empty() {
        return Err(Error::request("no rows to train on"));
    }
    let mut training = Loop::start(policy, Kind::Sft, (plan, rows_checksum(rows)), config, journal)?;
    for (step, batch) in training.batches() {
        let batch: Vec<&SftRow> = batch.into_iter().map(|index| &rows[index]).collect();
        let report = training
            .trainer
            .sft_step(&batch, config.micro_batch)
            .map_err(|error| training.explain(error, |row, _| (&batch[row].prompt, &batch[row].response)))?;
        training.counters.stretch.add(report.loss, ListMetrics::default());
        training.progress.advance(1);
        if training.logs(step) {
            let (loss, _) = training.counters.stretch.take();
            training.counters.loss = loss;
            training.progress.note(format!("loss {loss:.4}"));
            training.write(
                Row::new()
                    .count("step", step as usize)
                    .number("loss", loss)
                    .number("grad_norm", report.update.grad_norm)
                    .number("learning_rate", report.update.learning_rate),
            )?;
        }
        if let Some(held_out) = &held_out
            && (step == plan.steps || held_out.every.is_some_and(|every| step.is_multiple_of(every as u64)))
        {
            let loss = sft_loss(&training.trainer.model, held_out.rows)?;
            training.counters.eval_loss = Some(loss);
            training.progress.message(&format!("step {step}: validation loss {loss:.4}"));
            training.write(Row::new().count("step", step as usize).number("eval_loss", loss))?;
        }
        training.after(step)?;
    }
    let last: Vec<&SftRow> = plan.batches().last().unwrap_or_default().into_iter().map(|index| &rows[index]).collect();
    let last = &last[..last.len().min(config.micro_batch)];
    check_end(&training.trainer, &PackedLists::pack(last.iter().map(|r| (&r.prompt[..], [&r.response[..]]))))?;
    let Counters { loss, eval_loss, .. } = training.counters;
    Ok((training.finish(), SftOutcome { steps: plan.steps, loss, eval_loss }))
}

/// Each update is checked by the loss of the next one; what the last one made is checked here, by a forward pass over rows of
/// its batch, so that a model that blew up is neither saved nor sampled from.
fn check_end<B: Backend>(trainer: &Trainer<B>, lists: &PackedLists) -> Result<()> {
    check_trained_weights(&trainer.model)?;
    match trainer.model.score(lists)?.iter().all(|logp| logp.is_finite()) {
        true => Ok(()),
        false => {
            let at = format!("the last batch, after update {}", trainer.steps());
            Err(larpo_core::Error::NotFinite { what: "a log-probability".into(), at }.into())
        }
    }
}

/// Rows of a forward pass that only scores.
const SCORING_TOKENS: usize = 4096;

/// Mean negative log-likelihood per response token, in nats.
///
/// # Errors
/// Rows that the model cannot take or that have nothing to score, a log-probability that is not finite.
pub fn sft_loss<B: Backend>(model: &Transformer<B>, rows: &[SftRow]) -> Result<f64> {
    let (mut sum, mut tokens) = (0.0, 0);
    let mut rest = rows;
    while !rest.is_empty() {
        let mut size = 0;
        let fits = |row: &&SftRow| {
            size += row.prompt.len() + row.response.len();
            size <= SCORING_TOKENS
        };
        let (chunk, after) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        rest = after;
        let logps = model.score(&PackedLists::pack(chunk.iter().map(|r| (&r.prompt[..], [&r.response[..]]))))?;
        if logps.iter().any(|logp| !logp.is_finite()) {
            check_weights(model)?;
            let at = "a held-out row".into();
            return Err(larpo_core::Error::NotFinite { what: "a log-probability".into(), at }.into());
        }
        tokens += logps.len();
        sum -= logps.iter().sum::<f64>();
    }
    match tokens {
        0 => Err(Error::request("the held-out rows have nothing to score")),
        _ => Ok(sum / tokens as f64),
    }
}

/// Nats per response by which the winners' log-probabilities may fall before it is worth a warning.
const NOTABLE_FALL: f64 = 0.1;

/// What list training ends with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ListOutcome {
    /// Updates.
    pub steps: u64,
    /// Mean loss and measurements of the last quarter of the updates.
    pub loss: f64,
    /// As in the log.
    pub metrics: ListMetrics,
}

/// Trains `policy` on ranked lists, all of which contribute; those that the updates use have their references.
///
/// # Errors
/// Lists that the model cannot take, numbers that are not finite, a file that cannot be written.
pub fn train_lists<B: Backend>(
    policy: Policy<B>,
    lists: &[TrainingList],
    settings: &ListTraining,
    config: &LoopConfig,
    journal: Journal,
) -> Result<(Policy<B>, ListOutcome)> {
    let plan = config.plan(lists.len());
    let data = lists_checksum(lists, &plan.batches().next().unwrap_or_default());
    let mut training = Loop::start(policy, Kind::Lists, (plan, data), config, journal)?;
    for (step, batch) in training.batches() {
        let batch: Vec<&TrainingList> = batch.into_iter().map(|index| &lists[index]).collect();
        let report = training.trainer.list_step(settings, &batch, config.micro_batch).map_err(|error| {
            training.explain(error, |row, response| (&batch[row].prompt, &batch[row].responses[response].ids))
        })?;
        training.counters.stretch.add(report.loss, report.metrics);
        if 4 * step > 3 * plan.steps {
            training.counters.last_quarter.add(report.loss, report.metrics);
        }
        training.progress.advance(1);
        if training.logs(step) {
            let (loss, m) = training.counters.stretch.take();
            training
                .progress
                .note(format!("loss {loss:.4}, rewards/margins {}", fixed(m.reward_chosen - m.reward_rejected, 3)));
            training.write(
                list_row(loss, &m)
                    .count("step", step as usize)
                    .number("grad_norm", report.update.grad_norm)
                    .number("learning_rate", report.update.learning_rate),
            )?;
        }
        training.after(step)?;
    }
    let last: Vec<&TrainingList> = plan.batches().last().unwrap_or_default().into_iter().map(|i| &lists[i]).collect();
    check_end(&training.trainer, &pack(&last[..last.len().min(config.micro_batch)]))?;
    let (loss, metrics) = training.counters.last_quarter.take();
    let label = training.label().to_string();
    let policy = training.finish();
    say!(
        "{label}: over the last quarter of the updates loss {loss:.4}, rewards/accuracies {:.3}, rewards/margins {}",
        metrics.reward_accuracy,
        fixed(metrics.reward_chosen - metrics.reward_rejected, 3)
    );
    let winners = metrics.reward_chosen / settings.beta;
    if winners < -NOTABLE_FALL {
        warn!(
            "the winners' log-probabilities fell by {:.2} nats a response below the reference's (rewards/chosen \
             {:.4} over the last quarter of the updates); a lower --learning_rate or an NLL term (--sft_weight) holds \
             them up",
            -winners, metrics.reward_chosen
        );
    }
    let outcome = ListOutcome { steps: plan.steps, loss, metrics };
    Ok((policy, outcome))
}

/// Trains a reward model on ranked texts.
///
/// # Errors
/// Texts that the model cannot take, numbers that are not finite, a file that cannot be written.
pub fn train_rewards<B: Backend>(
    policy: Policy<B>,
    lists: &[RewardList],
    center_coefficient: f64,
    config: &LoopConfig,
    journal: Journal,
) -> Result<(Policy<B>, ListOutcome)> {
    let plan = config.plan(lists.len());
    let data = reward_lists_checksum(lists) ^ center_coefficient.to_bits();
    let mut training = Loop::start(policy, Kind::Rewards, (plan, data), config, journal)?;
    for (step, batch) in training.batches() {
        let batch: Vec<&RewardList> = batch.into_iter().map(|index| &lists[index]).collect();
        let report = training.trainer.reward_step(&batch, center_coefficient, config.micro_batch)?;
        training.counters.stretch.add(report.loss, report.metrics);
        if 4 * step > 3 * plan.steps {
            training.counters.last_quarter.add(report.loss, report.metrics);
        }
        training.progress.advance(1);
        if training.logs(step) {
            let (loss, m) = training.counters.stretch.take();
            training.progress.note(format!("loss {loss:.4}, accuracy {:.3}", m.reward_accuracy));
            training.write(
                reward_row(loss, &m)
                    .count("step", step as usize)
                    .number("grad_norm", report.update.grad_norm)
                    .number("learning_rate", report.update.learning_rate),
            )?;
        }
        training.after(step)?;
    }
    // The last update is checked by what it made of the last batch.
    let last = plan.batches().last().unwrap_or_default();
    let last: Vec<&RewardList> = last.into_iter().take(config.micro_batch).map(|index| &lists[index]).collect();
    check_trained_weights(&training.trainer.model)?;
    rewards(&training.trainer.model, &last)?;
    let (loss, metrics) = training.counters.last_quarter.take();
    Ok((training.finish(), ListOutcome { steps: plan.steps, loss, metrics }))
}

/// Scores of ranked texts, one after another.
///
/// # Errors
/// Texts that the model cannot take, a score that is not finite.
pub fn rewards<B: Backend>(model: &Transformer<B>, lists: &[&RewardList]) -> Result<Vec<f64>> {
    if lists.is_empty() {
        return Ok(Vec::new());
    }
    let tape = Tape::inference(model.backend());
    let rewards = model.reward(&tape, &pack_rewards(lists))?;
    let scores = model.backend().read(rewards.value());
    match scores.iter().all(|score| score.is_finite()) {
        true => Ok(scores),
        false => {
            check_weights(model)?;
            Err(larpo_core::Error::NotFinite { what: "a score".into(), at: "ranked texts".into() }.into())
        }
    }
}

/// A row of a reward model's log under TRL's names.
fn reward_row(loss: f64, m: &ListMetrics) -> Row {
    Row::new()
        .number("loss", loss)
        .number("accuracy", m.reward_accuracy)
        .number("margin", m.reward_chosen - m.reward_rejected)
        .number("rewards/chosen", m.reward_chosen)
        .number("rewards/rejected", m.reward_rejected)
        .number("rank/ndcg", m.ndcg)
        .number("rank/kendall_tau", m.kendall_tau)
}

/// A row of the log under TRL's names.
pub fn list_row(loss: f64, m: &ListMetrics) -> Row {
    Row::new()
        .number("loss", loss)
        .number("rewards/chosen", m.reward_chosen)
        .number("rewards/rejected", m.reward_rejected)
        .number("rewards/accuracies", m.reward_accuracy)
        .number("rewards/margins", m.reward_chosen - m.reward_rejected)
        .number("logps/chosen", m.logp_chosen)
        .number("logps/rejected", m.logp_rejected)
        .number("rank/ndcg", m.ndcg)
        .number("rank/kendall_tau", m.kendall_tau)
}
