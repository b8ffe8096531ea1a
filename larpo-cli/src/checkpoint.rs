//! Checkpoints: a model folder with the trainer's state beside it, sealed by checksums, that appears as a whole.
//!
//! The model's weights are f32 and are the masters; there is no other copy. Batches are functions of the plan and the step,
//! so the place in the data is the number of updates.

use crate::error::{Error, Result};
use crate::policy::{self, Numbers, Parts, save_model};
use crate::run_record;
use larpo_core::backend::Backend;
use larpo_core::batches::BatchPlan;
use larpo_core::optim::OptimizerState;
use larpo_core::train::{ListMetrics, Trainer};
use larpo_data::checksums::Checksum;
use larpo_data::{checksums, files, state};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// What a checkpoint's folder is called, before its number of updates.
pub const PREFIX: &str = "checkpoint-";
const STATE: &str = "trainer_state.bin";

/// Everything but the weights that training goes on from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Moments, schedule and number of updates.
    pub optimizer: OptimizerState,
    /// The order of the data.
    pub plan: BatchPlan,
    /// Checksum of what is trained on.
    pub data: u64,
    /// Sums of measurements that are not written yet.
    pub counters: Counters,
    /// Length and checksum of the log so far.
    pub log: (u64, u64),
}

/// Sums that a loop carries from update to update.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Since the last line of the log.
    pub stretch: ListMean,
    /// Over the last quarter of the updates.
    pub last_quarter: ListMean,
    /// Loss of the last line of the log.
    pub loss: f64,
    /// The last look at held-out rows.
    pub eval_loss: Option<f64>,
}

impl Default for Counters {
    fn default() -> Self {
        Self { stretch: ListMean::default(), last_quarter: ListMean::default(), loss: f64::NAN, eval_loss: None }
    }
}

/// A mean of losses and measurements as it is gathered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ListMean {
    loss: f64,
    metrics: ListMetrics,
    count: f64,
}

impl ListMean {
    /// One more update.
    pub fn add(&mut self, loss: f64, metrics: ListMetrics) {
        self.loss += loss;
        self.metrics = self.metrics + metrics;
        self.count += 1.0;
    }

    /// The means so far; gathering begins anew.
    pub fn take(&mut self) -> (f64, ListMetrics) {
        let Self { loss, metrics, count } = std::mem::take(self);
        (loss / count, metrics.divided(count))
    }
}

/// What a loop trains on; a checkpoint of another is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Rows.
    Sft,
    /// Ranked lists.
    Lists,
    /// Ranked texts, by a reward model.
    Rewards,
}

impl Kind {
    /// What the model of such a loop gives.
    pub fn model(self) -> policy::Kind {
        match self {
            Self::Sft | Self::Lists => policy::Kind::LanguageModel,
            Self::Rewards => policy::Kind::RewardModel,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sft => "trainer, sft",
            Self::Lists => "trainer, lists",
            Self::Rewards => "trainer, rewards",
        }
    }
}

/// Where a loop is in its data and its log.
#[derive(Debug, Clone, Copy)]
pub struct Cursor {
    /// The order of the data.
    pub plan: BatchPlan,
    /// Checksum of what is trained on.
    pub data: u64,
    /// Sums of measurements that are not written yet.
    pub counters: Counters,
    /// Of the log so far.
    pub log: Checksum,
}

/// Writes `checkpoint-<updates>` in `folder`, with a copy of the record of `run`, the run's folder.
///
/// # Errors
/// A weight that is not finite, a file that cannot be written; there is then no such checkpoint.
pub fn save<B: Backend>(
    folder: &Path,
    trainer: &Trainer<B>,
    parts: &Parts,
    kind: Kind,
    Cursor { plan, data, counters, log }: Cursor,
    run: Option<&Path>,
) -> Result<PathBuf> {
    let path = folder.join(format!("{PREFIX}{}", trainer.steps()));
    files::write_folder(&path, |folder| {
        save_model(&trainer.model, parts, Numbers::Exact, folder)?;
        if let Some(run) = run {
            run_record::copy(run, folder)?;
        }
        let log = (log.bytes, log.hash);
        let optimizer = trainer.state();
        let mut moments = optimizer.moments.iter().flatten().flat_map(|(m, v)| m.iter().chain(v));
        // The weights were looked at when they were written; a device may have failed since.
        if moments.any(|moment| !moment.is_finite()) {
            let what = "a moment of the optimizer".into();
            return Err(larpo_core::Error::NotFinite { what, at: format!("update {}", trainer.steps()) }.into());
        }
        let state = TrainerState { optimizer, plan, data, counters, log };
        state::save_state(folder.join(STATE), kind.name(), &state)?;
        Ok::<(), Error>(checksums::seal(folder)?)
    })?;
    Ok(path)
}

/// Reads the trainer's state of a checkpoint.
///
/// # Errors
/// A file that is missing, damaged, of another kind or version.
pub fn load(checkpoint: &Path, kind: Kind) -> Result<TrainerState> {
    Ok(state::load_state(checkpoint.join(STATE), kind.name())?)
}

/// The checkpoints in a folder with their numbers of updates, the newest first; whether they are whole is another question.
///
/// # Errors
/// A folder that cannot be read.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    numbered(folder, PREFIX)
}

/// The folders in `folder` called `prefix` and a number, the highest first; none where there is no such folder.
///
/// # Errors
/// A folder that cannot be read.
pub fn numbered(folder: &Path, prefix: &str) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io(folder, "read"))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io(folder, "read"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(Ok(number)) = name.strip_prefix(prefix).map(str::parse)
            && entry.path().is_dir()
        {
            found.push((number, entry.path()));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found)
}

/// The newest whole checkpoint below `below` updates; every damaged one that is passed over is given to `damaged`.
///
/// # Errors
/// A folder that cannot be read.
pub fn newest(folder: &Path, below: u64, mut damaged: impl FnMut(&Error)) -> Result<Option<PathBuf>> {
    for (_, path) in list(folder)?.into_iter().filter(|(step, _)| *step < below) {
        match checksums::verify(&path) {
            Ok(()) => return Ok(Some(path)),
            Err(error) => damaged(&error.into()),
        }
    }
    Ok(None)
}

/// Removes all but the newest `keep` checkpoints of a run: those in `folders`, the newest folder first.
///
/// # Errors
/// A folder that cannot be read or removed.
pub fn rotate(folders: &[PathBuf], keep: usize) -> Result<()> {
    let mut kept = 0;
    for folder in folders {
        for (_, path) in list(folder)? {
            kept += 1;
            if kept > keep.max(1) {
                files::remove_folder(&path)?;
            }
        }
    }
    Ok(())
}
