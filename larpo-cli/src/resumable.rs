//! A training loop that can be interrupted: it starts anew or from a checkpoint, writes its log and its checkpoints, and
//! ends early where it is asked to.

use crate::checkpoint::{self, Counters, Cursor, Kind, TrainerState};
use crate::error::{Error, Result};
use crate::messages::count;
use crate::metrics_log::{MetricsLog, Row};
use crate::policy::{Parts, Policy};
use crate::progress::Progress;
use crate::resume::Resume;
use crate::status;
use crate::training::{Journal, LoopConfig};
use larpo_core::backend::Backend;
use larpo_core::batches::BatchPlan;
use larpo_core::train::{RewardList, SftRow, Trainer, TrainingList};
use larpo_data::checksums::Checksum;
use std::path::{Path, PathBuf};

/// What both loops have: a trainer that may go on from a checkpoint, a log, a bar, checkpoints.
pub(crate) struct Loop<'a, B: Backend> {
    pub trainer: Trainer<B>,
    parts: Parts,
    pub counters: Counters,
    kind: Kind,
    plan: BatchPlan,
    data: u64,
    config: &'a LoopConfig,
    journal: Journal,
    log: Option<(MetricsLog, PathBuf)>,
    pub progress: Progress,
}

impl<'a, B: Backend> Loop<'a, B> {
    /// Starts with `policy`, or with the journal's checkpoint. `data` is the checksum of what is trained on.
    pub fn start(
        policy: Policy<B>,
        kind: Kind,
        (plan, data): (BatchPlan, u64),
        config: &'a LoopConfig,
        journal: Journal,
    ) -> Result<Self> {
        let parts = policy.parts();
        let (mut counters, mut written) = (Counters::default(), Checksum::default());
        let mut trainer = match resumed_state(kind, (plan, data), config, &journal)? {
            None => Trainer::new(policy.model, config.optimizer, plan.steps),
            Some((checkpoint, state)) => {
                let model = policy.reloaded(checkpoint, kind.model())?.model;
                counters = state.counters;
                written = Checksum { bytes: state.log.0, hash: state.log.1 };
                status::set_checkpoint(checkpoint);
                say!(
                    "{}: goes on from {}, after {} of {}",
                    journal.label,
                    checkpoint.display(),
                    state.optimizer.step,
                    count(plan.steps as usize, "updates")
                );
                Trainer::resume(model, state.optimizer)?
            }
        };
        trainer.model.seed_dropout(config.seed, config.stream as u32);
        let log = match &journal.metrics {
            None => None,
            Some(path) => {
                let log = match trainer.steps() {
                    0 => MetricsLog::create(path).map_err(Error::io(path, "write"))?,
                    step => MetricsLog::resume(path, step, written)?,
                };
                let beside = path.parent().unwrap_or(path);
                let log = log.report_to(config.report_to, beside, trainer.steps() + 1);
                Some((log.map_err(Error::io(path, "write"))?, path.clone()))
            }
        };
        let progress = Progress::new(&journal.label, plan.steps, "steps");
        progress.kept(trainer.steps());
        Ok(Self { trainer, parts, counters, kind, plan, data, config, journal, log, progress })
    }

    /// The updates that are left, with the numbers of their items.
    pub fn batches(&self) -> impl Iterator<Item = (u64, Vec<usize>)> + use<B> {
        let done = self.trainer.steps();
        (done + 1..).zip(self.plan.batches().skip(done as usize))
    }

    pub fn write(&mut self, row: Row) -> Result<()> {
        match &mut self.log {
            Some((log, path)) => log.write(row).map_err(Error::io(path, "write")),
            None => Ok(()),
        }
    }

    /// Whether a line of the log is due.
    pub fn logs(&self, step: u64) -> bool {
        step.is_multiple_of(self.config.logging_steps as u64) || step == self.plan.steps
    }

    /// After each update: a checkpoint where one is due, and an early end where one is asked for.
    pub fn after(&mut self, step: u64) -> Result<()> {
        let due = self.config.save_steps.is_some_and(|every| step.is_multiple_of(every as u64));
        // After the last update what is left is less work than a checkpoint.
        let stops = self.journal.stop.requested() && step < self.plan.steps;
        if due || stops {
            self.checkpoint()?;
        }
        match stops {
            true => {
                let updates = count(self.plan.steps as usize, "updates");
                Err(Error::stopped(format!("{}, after {step} of {updates}", self.journal.label)))
            }
            false => Ok(()),
        }
    }

    fn checkpoint(&self) -> Result<()> {
        let Some(folder) = self.journal.checkpoints.first() else { return Ok(()) };
        if let Some((log, path)) = &self.log {
            log.sync().map_err(Error::io(path, "write to disk"))?;
        }
        let log = self.log.as_ref().map_or_else(Checksum::default, |(log, _)| log.written());
        let cursor = Cursor { plan: self.plan, data: self.data, counters: self.counters, log };
        let run = self.journal.run.as_deref();
        status::set_checkpoint(&checkpoint::save(folder, &self.trainer, &self.parts, self.kind, cursor, run)?);
        // The new one is on disk; only then an old one may go.
        self.config.save_total_limit.map_or(Ok(()), |keep| checkpoint::rotate(&self.journal.checkpoints, keep))
    }

    /// Names the row that stopped an update by its text, which is how people find it in their data.
    pub fn explain<'r>(
        &self,
        error: larpo_core::Error,
        text: impl FnOnce(usize, usize) -> (&'r [u32], &'r [u32]),
    ) -> Error {
        let larpo_core::Error::RowNotFinite { row, response, .. } = &error else { return error.into() };
        let (prompt, response) = text(*row, *response);
        let decode = |ids| self.parts.tokenizer.decode(ids, true).unwrap_or_default();
        Error::request(format!("{error}: prompt {:?}, response {:?}", decode(prompt), decode(response)))
    }

    /// What the progress bar is called.
    pub fn label(&self) -> &str {
        &self.journal.label
    }

    pub fn finish(self) -> Policy<B> {
        self.progress.finish();
        self.parts.with(self.trainer.into_model())
    }
}

/// The state of the checkpoint to go on from; none where training begins.
fn resumed_state<'j>(
    kind: Kind,
    (plan, data): (BatchPlan, u64),
    config: &LoopConfig,
    journal: &'j Journal,
) -> Result<Option<(&'j Path, TrainerState)>> {
    let Some(Resume { checkpoint, or_anew }) = &journal.resume else { return Ok(None) };
    let state = checkpoint::load(checkpoint, kind)?;
    if state.plan == plan && state.data == data && state.optimizer.config == config.optimizer {
        return Ok(Some((checkpoint, state)));
    }
    let problem = format!(
        "{} was made while training on other data or with other settings (candidates that were edited since, for instance)",
        checkpoint.display()
    );
    match or_anew {
        true => warn!("{problem}; {} starts anew", journal.label),
        false => return Err(Error::request(format!("{problem}; go on from an earlier place"))),
    }
    Ok(None)
}

/// Checksum of rows.
pub(crate) fn rows_checksum(rows: &[SftRow]) -> u64 {
    let mut sum = Checksum::default();
    for row in rows {
        add_ids(&mut sum, &row.prompt);
        add_ids(&mut sum, &row.response);
    }
    sum.hash
}

/// Checksum of lists with their rewards, and of the references of those in `first`, the first update: another policy gives
/// other references, and later ones need not be there.
pub(crate) fn lists_checksum(lists: &[TrainingList], first: &[usize]) -> u64 {
    let mut sum = Checksum::default();
    for list in lists {
        add_ids(&mut sum, &list.prompt);
        sum.add(&(list.responses.len() as u64).to_le_bytes());
        for response in &list.responses {
            add_ids(&mut sum, &response.ids);
            sum.add(&response.reward.to_le_bytes());
        }
    }
    let references = first.iter().flat_map(|&i| &lists[i].responses).flat_map(|response| &response.reference);
    references.for_each(|logp| sum.add(&logp.to_le_bytes()));
    sum.hash
}

/// Checksum of ranked texts.
pub(crate) fn reward_lists_checksum(lists: &[RewardList]) -> u64 {
    let mut sum = Checksum::default();
    for list in lists {
        add_ids(&mut sum, &list.prompt);
        sum.add(&(list.responses.len() as u64).to_le_bytes());
        list.responses.iter().for_each(|response| add_ids(&mut sum, response));
        list.labels.iter().chain([&list.margin]).for_each(|number| sum.add(&number.to_le_bytes()));
    }
    sum.hash
}

fn add_ids(sum: &mut Checksum, ids: &[u32]) {
    sum.add(&(ids.len() as u64).to_le_bytes());
    ids.iter().for_each(|id| sum.add(&id.to_le_bytes()));
}
