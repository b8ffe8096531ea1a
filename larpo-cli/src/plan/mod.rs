//! What a run would hold and how long it would take, before it begins.
//!
//! The run's own code goes over the run's own shapes on a backend that neither computes nor holds anything
//! ([`DryRun`], wrapped in [`Profiled`]): bytes are those that it would hold, work is what it would have been asked to do.
//! Seconds are the work at rates that [`calibrate`] measures. Responses that are still to be sampled are taken to be as long
//! as `--max_new_tokens` allows, so a plan of sampling is an upper bound.

pub mod calibrate;
mod fit;

pub use fit::{Advice, admit, bytes};

use crate::args::TrainArgs;
use crate::dataset::PromptRow;
use crate::error::Result;
use crate::training::sft_loss;
use larpo_core::backend::Backend;
use larpo_core::batches::BatchPlan;
use larpo_core::cpu::{DryRun, Memory};
use larpo_core::model::{ModelConfig, Transformer};
use larpo_core::optim::OptimizerConfig;
use larpo_core::profile::{Profile, Profiled};
use larpo_core::proofs::prove;
use larpo_core::retriever::{NoHooks, Prompt, SamplingConfig, prompts_per_batch, sample};
use larpo_core::train::{ListTraining, SftRow, Trainer, TrainingList, TrainingResponse, fill_references};

/// Holds nothing and counts what it is asked to do.
pub type Dry = Profiled<DryRun>;

/// Updates that are gone through one by one; of more, as many evenly spaced ones, and the largest.
const STEPS: usize = 256;
/// Batches of prompts that are gone through one by one; of more, a typical one and the longest.
const BATCHES: f64 = 8.0;
/// Updates beyond which an order is not looked at.
const LOOKED_AT: usize = 20_000;

/// A part of a run.
#[derive(Debug, Clone)]
pub struct Phase {
    /// What it does.
    pub name: &'static str,
    /// What it holds at its peak.
    pub memory: Memory,
    /// What it computes in the whole run.
    pub work: Profile,
}

/// What a training step looks like, for calibration.
#[derive(Debug, Clone)]
pub enum Step {
    /// A micro-batch of fine-tuning.
    Rows(Vec<SftRow>),
    /// A micro-batch of ranked lists.
    Lists(Vec<TrainingList>, ListTraining),
}

/// A run, gone through without computing it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The model's shape.
    pub config: ModelConfig,
    /// The phases in order.
    pub phases: Vec<Phase>,
    /// Copies on the host that checkpoints need beside all else, in bytes.
    pub copies: u64,
    /// A typical step, if the run trains.
    pub step: Option<Step>,
    /// A typical batch of prompts with its settings, if the run samples.
    pub sampled: Option<(Vec<Vec<u32>>, SamplingConfig)>,
    /// Updates of the run.
    pub updates: u64,
}

impl Plan {
    /// The plan of one of `runs` equal runs that were gone through.
    pub fn one_of(mut self, runs: u64) -> Self {
        self.updates /= runs;
        for phase in &mut self.phases {
            let all = std::mem::take(&mut phase.work);
            add(&mut phase.work, all, 1.0 / runs as f64);
        }
        self
    }

    /// The phase that holds most.
    pub fn peak(&self) -> Memory {
        self.phases.iter().map(|phase| phase.memory).max_by_key(Memory::total).unwrap_or_default()
    }
}

/// Goes through a run.
pub struct Planner {
    dry: DryRun,
    backend: Dry,
    plan: Plan,
}

impl Planner {
    /// For a model of shape `config`.
    pub fn new(config: ModelConfig) -> Self {
        let dry = DryRun::new();
        let backend = Profiled::new(dry.clone());
        let plan = Plan { config, phases: Vec::new(), copies: 0, step: None, sampled: None, updates: 0 };
        Self { dry, backend, plan }
    }

    /// The model, without memory.
    ///
    /// # Errors
    /// A shape that does not fit together.
    pub fn model(&self) -> Result<Transformer<Dry>> {
        Ok(Transformer::unspecified(&self.backend, self.plan.config.clone())?)
    }

    /// The plan of what was gone through.
    pub fn finish(self) -> Plan {
        self.plan
    }

    /// Closes a phase whose work was done `times` times.
    fn close(&mut self, name: &'static str, work: Profile) {
        let memory = self.dry.memory();
        match self.plan.phases.iter_mut().find(|phase| phase.name == name) {
            Some(phase) => {
                add(&mut phase.work, work, 1.0);
                if memory.total() > phase.memory.total() {
                    phase.memory = memory;
                }
            }
            None => self.plan.phases.push(Phase { name, memory, work }),
        }
    }

    /// The work since the last look, `times` times.
    fn take(&self, times: f64) -> Profile {
        let mut work = Profile::new();
        add(&mut work, self.backend.take(), times);
        work
    }

    /// Sampling for `prompts`, `times` times.
    ///
    /// # Errors
    /// A prompt that the model cannot take.
    pub fn sample(
        &mut self,
        model: &Transformer<Dry>,
        prompts: &[PromptRow],
        config: &SamplingConfig,
        times: f64,
    ) -> Result<()> {
        let config = SamplingConfig { eos_ids: Vec::new(), ..config.clone() };
        let per_batch = prompts_per_batch(model.config(), &config).min(prompts.len());
        let batches = prompts.len().div_ceil(per_batch.max(1)) as f64;
        let run = |prompts: &[&PromptRow]| {
            let prompts: Vec<Prompt> = prompts.iter().map(|p| Prompt { index: p.index as u32, ids: &p.ids }).collect();
            sample(model, &prompts, &config, &mut NoHooks).map(drop)
        };
        self.backend.take();
        let typical = spaced(prompts, per_batch);
        let work = if batches <= BATCHES {
            run(&prompts.iter().collect::<Vec<_>>())?;
            self.take(times)
        } else {
            run(&typical)?;
            let work = self.take(batches * times);
            let mut longest: Vec<&PromptRow> = prompts.iter().collect();
            longest.sort_by_key(|p| std::cmp::Reverse(p.ids.len()));
            longest.truncate(per_batch);
            run(&longest)?;
            self.backend.take();
            work
        };
        self.plan.sampled = Some((typical.iter().map(|p| p.ids.clone()).collect(), config));
        self.close("sample", work);
        Ok(())
    }

    /// What is free is given back, as between sampling and training.
    pub fn trim(&self) {
        self.dry.trim();
    }

    /// Fine-tuning by `order`; `held_out` rows are scored `looks` times.
    ///
    /// # Errors
    /// Rows that the model cannot take.
    pub fn fine_tune(
        &mut self,
        model: Transformer<Dry>,
        rows: &[SftRow],
        order: BatchPlan,
        micro: usize,
        held_out: Option<(&[SftRow], u64)>,
    ) -> Result<()> {
        let size = |i: usize| rows[i].prompt.len() + rows[i].response.len();
        let batch = |batch: &[usize]| batch.iter().map(|&i| &rows[i]).collect::<Vec<_>>();
        let mut trainer = Trainer::new(model, OptimizerConfig::default(), order.steps);
        let (mut work, share) = (Profile::new(), Chosen::new(order, size));
        self.backend.take();
        for (indices, counts) in &share.batches {
            trainer.sft_step(&batch(indices), micro)?;
            add(&mut work, self.backend.take(), if *counts { share.times } else { 0.0 });
        }
        if let Some((indices, _)) = share.batches.first() {
            let rows = batch(indices).into_iter().take(micro).cloned().collect();
            self.plan.step = Some(Step::Rows(rows));
        }
        self.plan.updates += order.steps;
        self.close("train", work);
        if let Some((rows, looks)) = held_out {
            sft_loss(&trainer.model, rows)?;
            let work = self.take(looks as f64);
            self.close("evaluate", work);
        }
        Ok(())
    }

    /// References and step-0 proofs on the first batch. References are scored where the lists' own are not used.
    ///
    /// # Errors
    /// Lists that the model cannot take.
    pub fn prove(
        &mut self,
        model: &Transformer<Dry>,
        lists: &mut [TrainingList],
        settings: &ListTraining,
        micro: usize,
        recorded: bool,
    ) -> Result<()> {
        self.backend.take();
        fill_references(model, lists, recorded)?;
        let first: Vec<&TrainingList> = lists.iter().take(micro).collect();
        // Nothing was computed, so there are no constants to compare: the reference is not the policy.
        prove(model, settings, &first, false)?;
        let work = self.take(1.0);
        self.close("prove", work);
        Ok(())
    }

    /// List training by `order`, on lists that have their references.
    ///
    /// # Errors
    /// Lists that the model cannot take.
    pub fn train_lists(
        &mut self,
        model: Transformer<Dry>,
        lists: &[TrainingList],
        settings: &ListTraining,
        order: BatchPlan,
        micro: usize,
    ) -> Result<Transformer<Dry>> {
        let mut trainer = Trainer::new(model, OptimizerConfig::default(), order.steps);
        let (mut work, share) = (Profile::new(), Chosen::new(order, |i| lists[i].rows()));
        self.backend.take();
        for (indices, counts) in &share.batches {
            let batch: Vec<&TrainingList> = indices.iter().map(|&i| &lists[i]).collect();
            trainer.list_step(settings, &batch, micro)?;
            add(&mut work, self.backend.take(), if *counts { share.times } else { 0.0 });
        }
        if let Some((indices, _)) = share.batches.first() {
            let lists = indices.iter().take(micro).map(|&i| lists[i].clone()).collect();
            self.plan.step = Some(Step::Lists(lists, *settings));
        }
        self.plan.updates += order.steps;
        self.close("train", work);
        Ok(trainer.into_model())
    }

    /// [`Planner::finish`] of a verb that trains: a checkpoint makes host copies of both moments.
    pub fn finish_training(mut self, args: &TrainArgs) -> Plan {
        if args.save_steps.is_some() {
            self.plan.copies = 8 * self.plan.config.parameters();
        }
        self.finish()
    }
}

/// Lists as sampling may make them: every response as long as it may be, rewards that all differ.
pub fn longest_lists(prompts: &[PromptRow], responses: usize, tokens: usize) -> Vec<TrainingList> {
    let response = |i: usize| TrainingResponse {
        ids: vec![0; tokens],
        reward: i as f64,
        reference: Vec::new(),
        sampled: Some(vec![0.0; tokens]),
    };
    let list =
        |p: &PromptRow| TrainingList { prompt: p.ids.clone(), responses: (0..responses).map(response).collect() };
    prompts.iter().map(list).collect()
}

/// Updates that stand for all of an order.
struct Chosen {
    /// Items of each, and whether its work counts.
    batches: Vec<(Vec<usize>, bool)>,
    /// Updates that one which counts stands for.
    times: f64,
}

impl Chosen {
    fn new(order: BatchPlan, size: impl Fn(usize) -> usize) -> Self {
        let all: Vec<Vec<usize>> = order.batches().take(LOOKED_AT).collect();
        let rows = |batch: &Vec<usize>| batch.iter().map(|&i| size(i)).sum::<usize>();
        let every = all.len().div_ceil(STEPS).max(1);
        let mut largest: Vec<usize> = (0..all.len()).collect();
        largest.sort_by_key(|&i| std::cmp::Reverse(rows(&all[i])));
        largest.truncate(16);
        let chosen = |i: usize| i.is_multiple_of(every);
        let counted = (0..all.len()).filter(|&i| chosen(i)).count().max(1);
        let batches = all.into_iter().enumerate().filter(|(i, _)| chosen(*i) || largest.contains(i));
        let batches = batches.map(|(i, batch)| (batch, chosen(i))).collect();
        Self { batches, times: order.steps as f64 / counted as f64 }
    }
}

/// `n` items at even distances.
fn spaced<T>(items: &[T], n: usize) -> Vec<&T> {
    (0..n).map(|i| &items[i * items.len() / n]).collect()
}

fn add(sum: &mut Profile, work: Profile, times: f64) {
    for (key, cost) in work {
        let entry = sum.entry(key).or_default();
        entry.calls += (cost.calls as f64 * times).round() as u64;
        entry.flops += cost.flops * times;
        entry.bytes += cost.bytes * times;
    }
}
