//! Whether a GPU computes what the CPU does: every operation against the reference, and a full training step both ways.

use super::GpuBackend;
use crate::args::Preset;
use crate::cmd::bench::preset_config;
use crate::error::{Error, Result};
use larpo_core::backend::Backend;
use larpo_core::conformance::{self, Outcome};
use larpo_core::cpu::Cpu;
use larpo_core::model::Transformer;
use larpo_core::objective::{LossType, Objective};
use larpo_core::optim::OptimizerConfig;
use larpo_core::rng::{CounterRng, Purpose};
use larpo_core::train::{ListTraining, SftRow, Trainer, TrainingList, TrainingResponse};

/// How far a GPU may be from what it is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Largest squared error over squared magnitude of an operation's result.
    pub nmse: f64,
    /// Largest difference of a step's loss, relative to it.
    pub loss: f64,
    /// Largest norm of the difference of a gradient, relative to the gradient's.
    pub gradient: f64,
}

impl Tolerance {
    /// Of single precision.
    pub const SINGLE: Self = Self { nmse: 1e-10, loss: 1e-5, gradient: 1e-4 };
    /// Where products round their operands to half precision, by up to 2⁻¹⁰ of each.
    pub const HALF: Self = Self { nmse: 4e-6, loss: 1e-3, gradient: 2e-2 };

    /// Of a backend.
    pub fn of(backend: &GpuBackend) -> Self {
        if backend.multiplies_in_half() { Self::HALF } else { Self::SINGLE }
    }
}

/// How one case of the registry came out.
#[derive(Clone, Debug)]
pub struct CaseOutcome {
    /// The difference from the reference.
    pub outcome: Outcome,
    /// Whether a second run gave the same bits.
    pub repeats: bool,
    /// The largest permitted squared error over squared magnitude.
    pub permitted: f64,
}

impl CaseOutcome {
    /// Whether the difference is permitted and a second run gave the same.
    pub fn passed(&self) -> bool {
        self.outcome.nmse <= self.permitted && self.repeats
    }

    /// What is wrong, for people.
    pub fn problem(&self) -> String {
        let Outcome { op, dims, output, nmse, .. } = &self.outcome;
        match self.repeats {
            true => format!("{op}: {dims}: NMSE {nmse:.1e} of {output}, permitted is {:.0e}", self.permitted),
            false => format!("{op}: {dims}: two runs differ"),
        }
    }
}

/// Runs every case of the registry against the reference in double precision, and once more; each outcome goes to `each`.
pub fn cases(backend: &GpuBackend, mut each: impl FnMut(CaseOutcome)) {
    let permitted = Tolerance::of(backend).nmse;
    for case in conformance::cases::<GpuBackend>() {
        let outcome = conformance::run(backend, &case);
        each(CaseOutcome { outcome, repeats: conformance::repeats(backend, &case), permitted });
    }
}

/// How a training step on a GPU differs from the CPU's.
#[derive(Clone, Debug, PartialEq)]
pub struct StepDifference {
    /// Difference of the losses, relative to the CPU's.
    pub loss_rel: f64,
    /// Largest norm of the difference of a parameter's gradients, relative to the CPU's.
    pub grad_rel_max: f64,
    /// The parameter with that difference.
    pub parameter: String,
    /// What is permitted.
    pub permitted: Tolerance,
}

impl StepDifference {
    /// Whether both differences are permitted.
    pub fn passed(&self) -> bool {
        self.loss_rel <= self.permitted.loss && self.grad_rel_max <= self.permitted.gradient
    }
}

/// Token ids below `below` and lengths, the same at every call.
fn draw(random: &CounterRng, at: [u32; 3], below: usize) -> u32 {
    (random.uniform([at[0], at[1], at[2], 0]) * below as f64) as u32
}

/// Ragged lists of ten responses each for the smallest preset, with ties among the rewards.
fn lists(vocab: usize) -> Vec<TrainingList> {
    let random = CounterRng::new(1, Purpose::Bench);
    let ids = |list: u32, item: u32, len: u32| (0..len).map(|at| draw(&random, [list, item, at], vocab)).collect();
    let response = |list: u32, item: u32| {
        let len = 1 + draw(&random, [list, item, 1000], 32);
        let near = |at: u32| random.uniform([list, item, at, 1]) as f32 - 0.5 - (vocab as f32).ln();
        TrainingResponse {
            ids: ids(list, item, len),
            reward: f64::from(draw(&random, [list, item, 1001], 5)),
            reference: (0..len).map(near).collect(),
            sampled: None,
        }
    };
    (0..3u32)
        .map(|list| TrainingList {
            prompt: ids(list, 0, 5 + 7 * list),
            responses: (1..=10).map(|item| response(list, item)).collect(),
        })
        .collect()
}

/// A trainer of the smallest preset, with the same random weights on every backend.
fn trainer<B: Backend>(backend: &B) -> Result<Trainer<B>> {
    let model = Transformer::random(backend, preset_config(Preset::T1m), 1)?;
    let optimizer = OptimizerConfig { learning_rate: 1e-3, max_grad_norm: 1.0, ..Default::default() };
    Ok(Trainer::new(model, optimizer, 20))
}

/// A parameter's name and gradient.
type Named = (String, Vec<f64>);

/// Loss, and every parameter's gradient by name, of a list step: forward, backward, clipping and AdamW.
fn list_step<B: Backend>(backend: &B) -> Result<(f64, Vec<Named>)> {
    let mut trainer = trainer(backend)?;
    let lists = lists(trainer.model.config().vocab_size);
    let objective = Objective { loss: LossType::Listmle, ..Default::default() };
    let settings = ListTraining { objective, beta: 0.1, sft_weight: 0.1 };
    let report = trainer.list_step(&settings, &lists.iter().collect::<Vec<_>>(), 2)?;
    let scale = trainer.loss_scale();
    let gradient = |(index, name): (usize, String)| {
        let gradient = trainer.gradients().get(index);
        let mut numbers = gradient.map(|g| backend.read(g)).unwrap_or_default();
        numbers.iter_mut().for_each(|g| *g /= scale);
        (name, numbers)
    };
    let names = trainer.model.parameters().iter().map(|parameter| parameter.name.clone());
    Ok((report.loss, names.enumerate().map(gradient).collect()))
}

/// A training step on ranked lists on the GPU and on the CPU.
///
/// # Errors
/// A loss or a gradient that is not a number; a device that failed.
pub fn step(backend: &GpuBackend) -> Result<StepDifference> {
    let (loss, gradients) = list_step(backend)?;
    healthy(backend)?;
    let (cpu_loss, cpu_gradients) = list_step(&Cpu::new())?;
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let mut worst = (0.0, String::new());
    for ((name, got), (_, want)) in gradients.into_iter().zip(cpu_gradients) {
        let difference = match got.len() == want.len() {
            true => norm(&mut got.iter().zip(&want).map(|(a, b)| a - b)),
            false => f64::INFINITY,
        };
        let relative = if difference == 0.0 { 0.0 } else { difference / norm(&mut want.iter().copied()) };
        if relative.is_nan() || relative >= worst.0 {
            worst = (if relative.is_nan() { f64::INFINITY } else { relative }, name);
        }
    }
    Ok(StepDifference {
        loss_rel: (loss - cpu_loss).abs() / cpu_loss.abs(),
        grad_rel_max: worst.0,
        parameter: worst.1,
        permitted: Tolerance::of(backend),
    })
}

/// The losses of `steps` updates of supervised fine-tuning on the same rows.
///
/// # Errors
/// A loss or a gradient that is not a number.
pub fn sft_losses<B: Backend>(backend: &B, steps: usize) -> Result<Vec<f64>> {
    let mut trainer = trainer(backend)?;
    let lists = lists(trainer.model.config().vocab_size);
    let row = |list: &TrainingList, at: usize| SftRow {
        prompt: list.prompt.clone(),
        response: list.responses[at % list.responses.len()].ids.clone(),
    };
    (0..steps)
        .map(|step| {
            let rows: Vec<SftRow> =
                lists.iter().flat_map(|list| [row(list, 2 * step), row(list, 2 * step + 1)]).collect();
            Ok(trainer.sft_step(&rows.iter().collect::<Vec<_>>(), rows.len())?.loss)
        })
        .collect()
}

/// What a backend's device failed with, as an error.
///
/// # Errors
/// The failure.
pub fn healthy(backend: &GpuBackend) -> Result<()> {
    match backend.fault() {
        None => Ok(()),
        Some(source) => Err(Error::Device { device: backend.gpu().to_string(), source, mend: None }),
    }
}
