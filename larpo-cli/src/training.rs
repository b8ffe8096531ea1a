//! Training loops that the verbs share: fine-tuning on rows, list training on ranked lists, with progress and metrics.

use crate::args::{LIST_LEARNING_RATE, ListArgs, SFT_LEARNING_RATE, TrainArgs};
use crate::error::{Error, Result};
use crate::metrics_log::{MetricsLog, Row};
use crate::policy::Policy;
use crate::progress::Progress;
use larpo_core::backend::Backend;
use larpo_core::batches::BatchPlan;
use larpo_core::lists::PackedLists;
use larpo_core::model::Transformer;
use larpo_core::objective::{LossType, Objective};
use larpo_core::optim::{OptimizerConfig, OptimizerState};
use larpo_core::select::Select;
use larpo_core::train::{ListMetrics, ListTraining, SftRow, Trainer, TrainingList};
use std::path::{Path, PathBuf};

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
    /// Updates between checkpoints.
    pub save_steps: Option<usize>,
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
            save_steps: args.save_steps,
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
    args.select.unwrap_or(match args.loss_type {
        LossType::Pairwise => Select::MaxMin,
        LossType::Contrastive => Select::TopBottom { top: 1, bottom: 3 },
        _ => Select::TopBottom { top: 2, bottom: 2 },
    })
}

/// Where a loop writes what happens.
pub struct Journal<'a> {
    /// Label of the progress bar.
    pub label: String,
    /// The metrics file.
    pub log: Option<(&'a mut MetricsLog, PathBuf)>,
    /// Folder of `checkpoint-<step>`.
    pub checkpoints: Option<PathBuf>,
}

impl Journal<'_> {
    /// A journal that only shows a bar.
    pub fn bar(label: &str) -> Self {
        Self { label: label.into(), log: None, checkpoints: None }
    }

    fn write(&mut self, row: Row) -> Result<()> {
        match &mut self.log {
            Some((log, path)) => log.write(row).map_err(Error::io(path, "write")),
            None => Ok(()),
        }
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
    mut journal: Journal,
) -> Result<(Policy<B>, SftOutcome)> {
    if rows.is_empty() {
        return Err(Error::request("no rows to train on"));
    }
    let Policy { model, tokenizer, eos_ids } = policy;
    let mut trainer = Trainer::new(model, config.optimizer, plan.steps);
    let progress = Progress::new(&journal.label, plan.steps, "steps");
    let mut stretch = Mean::default();
    let mut outcome = SftOutcome { steps: plan.steps, loss: f64::NAN, eval_loss: None };
    for (i, batch) in plan.batches().enumerate() {
        let step = i as u64 + 1;
        let batch: Vec<&SftRow> = batch.into_iter().map(|index| &rows[index]).collect();
        let report = trainer.sft_step(&batch, config.micro_batch)?;
        stretch.add(report.loss);
        progress.advance(1);
        if step.is_multiple_of(config.logging_steps as u64) || step == plan.steps {
            outcome.loss = stretch.take();
            progress.note(format!("loss {:.4}", outcome.loss));
            journal.write(
                Row::new()
                    .count("step", step as usize)
                    .number("loss", outcome.loss)
                    .number("grad_norm", report.update.grad_norm)
                    .number("learning_rate", report.update.learning_rate),
            )?;
        }
        if let Some(held_out) = &held_out
            && (step == plan.steps || held_out.every.is_some_and(|every| step.is_multiple_of(every as u64)))
        {
            let loss = sft_loss(&trainer.model, held_out.rows)?;
            outcome.eval_loss = Some(loss);
            progress.message(&format!("step {step}: validation loss {loss:.4}"));
            journal.write(Row::new().count("step", step as usize).number("eval_loss", loss))?;
        }
        trainer = checkpoint(trainer, &tokenizer, &eos_ids, step, config, &journal)?;
    }
    progress.finish();
    Ok((Policy { model: trainer.into_model(), tokenizer, eos_ids }, outcome))
}

/// Writes `checkpoint-<step>` where one is due.
fn checkpoint<B: Backend>(
    trainer: Trainer<B>,
    tokenizer: &std::sync::Arc<larpo_data::tokenizer::Tokenizer>,
    eos_ids: &[u32],
    step: u64,
    config: &LoopConfig,
    journal: &Journal,
) -> Result<Trainer<B>> {
    let (Some(every), Some(folder)) = (config.save_steps, &journal.checkpoints) else { return Ok(trainer) };
    if !step.is_multiple_of(every as u64) {
        return Ok(trainer);
    }
    let folder = folder.join(format!("checkpoint-{step}"));
    let (model, state) = trainer.suspend();
    let policy = Policy { model, tokenizer: tokenizer.clone(), eos_ids: eos_ids.to_vec() };
    policy.save(&folder)?;
    larpo_data::state::save_state(folder.join("trainer_state.bin"), "trainer", &state)?;
    Ok(Trainer::resume(policy.model, state)?)
}

/// Reads the trainer state of a checkpoint.
///
/// # Errors
/// A file that is missing, damaged or of another version.
pub fn load_trainer_state(checkpoint: &Path) -> Result<OptimizerState> {
    Ok(larpo_data::state::load_state(checkpoint.join("trainer_state.bin"), "trainer")?)
}

/// Rows of a forward pass that only scores.
const SCORING_TOKENS: usize = 4096;

/// Mean negative log-likelihood per response token, in nats.
///
/// # Errors
/// Rows that the model cannot take or that have nothing to score.
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

/// Trains `policy` on ranked lists, all of which contribute.
///
/// # Errors
/// Lists that the model cannot take, numbers that are not finite, a file that cannot be written.
pub fn train_lists<B: Backend>(
    policy: Policy<B>,
    lists: &[TrainingList],
    settings: &ListTraining,
    config: &LoopConfig,
    mut journal: Journal,
) -> Result<(Policy<B>, ListOutcome)> {
    let plan = config.plan(lists.len());
    let Policy { model, tokenizer, eos_ids } = policy;
    let mut trainer = Trainer::new(model, config.optimizer, plan.steps);
    let progress = Progress::new(&journal.label, plan.steps, "steps");
    let (mut stretch, mut last_quarter) = (ListMean::default(), ListMean::default());
    for (i, batch) in plan.batches().enumerate() {
        let step = i as u64 + 1;
        let batch: Vec<&TrainingList> = batch.into_iter().map(|index| &lists[index]).collect();
        let report = trainer.list_step(settings, &batch, config.micro_batch)?;
        stretch.add(report.loss, report.metrics);
        if 4 * step > 3 * plan.steps {
            last_quarter.add(report.loss, report.metrics);
        }
        progress.advance(1);
        if step.is_multiple_of(config.logging_steps as u64) || step == plan.steps {
            let (loss, m) = stretch.take();
            progress.note(format!("loss {loss:.4}, rewards/margins {:.3}", m.reward_chosen - m.reward_rejected));
            journal.write(
                list_row(loss, &m)
                    .count("step", step as usize)
                    .number("grad_norm", report.update.grad_norm)
                    .number("learning_rate", report.update.learning_rate),
            )?;
        }
        trainer = checkpoint(trainer, &tokenizer, &eos_ids, step, config, &journal)?;
    }
    progress.finish();
    let (loss, metrics) = last_quarter.take();
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
    Ok((Policy { model: trainer.into_model(), tokenizer, eos_ids }, outcome))
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
        .number("kl", m.kl)
}

#[derive(Default)]
struct Mean {
    sum: f64,
    count: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1.0;
    }

    fn take(&mut self) -> f64 {
        let Self { sum, count } = std::mem::take(self);
        sum / count
    }
}

#[derive(Default)]
struct ListMean {
    loss: Mean,
    metrics: ListMetrics,
}

impl ListMean {
    fn add(&mut self, loss: f64, metrics: ListMetrics) {
        self.loss.add(loss);
        self.metrics = self.metrics + metrics;
    }

    fn take(&mut self) -> (f64, ListMetrics) {
        let Self { mut loss, metrics } = std::mem::take(self);
        let count = loss.count;
        (loss.take(), metrics.divided(count))
    }
}
