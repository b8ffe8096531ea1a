//! What a run would hold and how long it would take, before it begins.
//!
//! The run's own code goes over the run's own shapes on a backend that neither computes nor holds anything
//! ([`DryRun`], wrapped in [`Profiled`]): bytes are those that it would hold, work is what it would have been asked to do.
//! Rows, lists and candidates are counted beside them, and so is what the process has resident when they are there.
//! Seconds are the work at rates that [`calibrate`] measures, with what it takes to make fresh weights and to write models and
//! checkpoints. Responses that are still to be sampled are taken to be as long
//! as `--max_new_tokens` allows, so a plan of sampling is an upper bound.

pub mod calibrate;
mod fit;

pub use fit::{Advice, admit, bytes, without_memory};

use crate::args::TrainArgs;
use crate::dataset::PromptRow;
use crate::error::Result;
use crate::machine;
use crate::pairwise_ranker::in_one_pass;
use crate::references::{self, Updates};
use crate::reward_model::SharedTexts;
use crate::training::sft_loss;
use larpo_core::backend::Backend;
use larpo_core::batches::BatchPlan;
use larpo_core::cpu::{DryRun, Memory};
use larpo_core::lists::PackedLists;
use larpo_core::model::{Head, ModelConfig, Transformer};
use larpo_core::optim::OptimizerConfig;
use larpo_core::profile::{Cost, Profile, Profiled, Shape};
use larpo_core::proofs::prove;
use larpo_core::retriever::{NoHooks, Prompt, SamplingConfig, prompts_per_batch, sample};
use larpo_core::tape::Tape;
use larpo_core::train::{ListTraining, RewardList, SftRow, Trainer, TrainingList, TrainingResponse, fill_references};

/// Holds nothing and counts what it is asked to do.
pub type Dry = Profiled<DryRun>;

/// Updates that are gone through one by one; of more, as many evenly spaced ones, and the largest. Rows of many lengths make
/// the pool grow for as long as there are new ones: with every other update left out, an epoch over 2,210 pairs of HH-RLHF
/// held a fifth more than was planned.
const STEPS: usize = 2048;
/// Batches of prompts that are gone through one by one; of more, a typical one and the longest.
const BATCHES: f64 = 8.0;
/// Prompts whose responses are ranked one by one; of more, as many evenly spaced ones, and the longest.
const RANKED: usize = 64;
/// Updates beyond which an order is not looked at.
const LOOKED_AT: usize = 20_000;

/// Work beside the backend's, whose rates are measured like those of operations: bytes of fresh weights, and bytes of weights
/// and moments that are written.
const FRESH: &str = "fresh weights";
const WRITTEN: &str = "write";

/// A part of a run.
#[derive(Debug, Clone)]
pub struct Phase {
    /// What it does.
    pub name: &'static str,
    /// What it holds at its peak.
    pub memory: Memory,
    /// Copies on the host beside all else.
    pub copies: u64,
    /// What it computes in the whole run.
    pub work: Profile,
}

impl Phase {
    /// All that it holds at its peak.
    pub fn total(&self) -> u64 {
        self.memory.total() + self.copies
    }
}

/// What a training step looks like, for calibration.
#[derive(Debug, Clone)]
pub enum Step {
    /// A micro-batch of fine-tuning.
    Rows(Vec<SftRow>),
    /// A micro-batch of ranked lists.
    Lists(Vec<TrainingList>, ListTraining),
    /// A micro-batch of ranked texts.
    Rewards(Vec<RewardList>),
}

/// A run, gone through without computing it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The model's shape.
    pub config: ModelConfig,
    /// The phases in order.
    pub phases: Vec<Phase>,
    /// Bytes of rows, lists and candidates.
    pub data: u64,
    /// Bytes that the process has resident beside them before it begins: code, tokenizer, texts.
    pub other: u64,
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

    /// The phase that holds most; none where nothing is left to do.
    pub fn peak(&self) -> Option<&Phase> {
        self.phases.iter().max_by_key(|phase| phase.total())
    }

    /// Bytes at the peak, in all.
    pub fn total(&self) -> u64 {
        self.peak().map_or(0, Phase::total) + self.data + self.other
    }

    /// Bytes of the backend's arrays at the peak, in use or kept to be used again: what [`Backend::limit`] takes.
    pub fn arrays(&self) -> u64 {
        self.phases.iter().map(|phase| phase.memory.total() - phase.memory.scratch).max().unwrap_or(0)
    }

    /// What `phase` holds, by kind.
    pub fn parts(&self, phase: Option<&Phase>) -> Vec<(&'static str, u64)> {
        let (memory, copies) = phase.map_or_else(Default::default, |phase| (phase.memory, phase.copies));
        memory.parts().into_iter().chain([("copies", copies), ("data", self.data), ("other", self.other)]).collect()
    }
}

/// Goes through a run.
pub struct Planner {
    dry: DryRun,
    backend: Dry,
    plan: Plan,
}

impl Planner {
    /// For a model of shape `config`, of whose rows, lists and prompts `present` bytes are in memory now. What else the
    /// process has resident now it will have then.
    pub fn new(config: ModelConfig, present: u64) -> Self {
        let dry = DryRun::new();
        let backend = Profiled::new(dry.clone());
        let other = machine::resident().unwrap_or(0).saturating_sub(present);
        let plan = Plan { config, phases: Vec::new(), data: present, other, step: None, sampled: None, updates: 0 };
        Self { dry, backend, plan }
    }

    /// The model, without memory.
    ///
    /// # Errors
    /// A shape that does not fit together.
    pub fn model(&self) -> Result<Transformer<Dry>> {
        self.model_of(self.plan.config.clone())
    }

    /// Another model beside it.
    ///
    /// # Errors
    /// A shape that does not fit together.
    pub fn model_of(&self, config: ModelConfig) -> Result<Transformer<Dry>> {
        Ok(Transformer::unspecified(&self.backend, config)?)
    }

    /// The plan of what was gone through, by a run that comes to hold `more` bytes of rows, lists and candidates.
    pub fn finish(mut self, more: u64) -> Plan {
        self.plan.data += more;
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
            None => self.plan.phases.push(Phase { name, memory, copies: 0, work }),
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

    /// Fine-tuning by `order`, of which `done` updates are made; `held_out` rows are scored `looks` times.
    ///
    /// # Errors
    /// Rows that the model cannot take.
    pub fn fine_tune(
        &mut self,
        model: Transformer<Dry>,
        rows: &[SftRow],
        (order, done): (BatchPlan, u64),
        micro: usize,
        held_out: Option<(&[SftRow], u64)>,
    ) -> Result<()> {
        let size = |i: usize| rows[i].prompt.len() + rows[i].response.len();
        let batch = |batch: &[usize]| batch.iter().map(|&i| &rows[i]).collect::<Vec<_>>();
        let mut trainer = Trainer::new(model, OptimizerConfig::default(), order.steps);
        let (mut work, share) = (Profile::new(), Chosen::new(order, done, size));
        self.backend.take();
        for (indices, counts) in &share.batches {
            trainer.sft_step(&batch(indices), micro)?;
            add(&mut work, self.backend.take(), if *counts { share.times } else { 0.0 });
        }
        if let Some((indices, _)) = share.batches.first() {
            let rows = batch(indices).into_iter().take(micro).cloned().collect();
            self.plan.step = Some(Step::Rows(rows));
        }
        self.plan.updates += order.steps.saturating_sub(done);
        self.close("train", work);
        if let Some((rows, looks)) = held_out {
            sft_loss(&trainer.model, rows)?;
            let work = self.take(looks as f64);
            self.close("evaluate", work);
        }
        Ok(())
    }

    /// Step-0 proofs on the lists `first`, and references of what `updates` use, scored where the lists' own are not used:
    /// what is left of them in the pool decides what comes next.
    ///
    /// # Errors
    /// Lists that the model cannot take.
    pub fn prove(
        &mut self,
        model: &Transformer<Dry>,
        lists: &mut [TrainingList],
        settings: &ListTraining,
        first: &[usize],
        (updates, recorded): (Updates, bool),
    ) -> Result<()> {
        self.backend.take();
        let first: Vec<&TrainingList> = first.iter().map(|&i| &lists[i]).collect();
        // Nothing was computed, so there are no constants to compare: the reference is not the policy.
        prove(model, settings, &first, false)?;
        for batch in references::batches(lists, updates, recorded) {
            references::score(model, lists, &batch, recorded)?;
        }
        let work = self.take(1.0);
        self.close("prove", work);
        Ok(())
    }

    /// Log-probabilities of `lists` under `model`, `times` times.
    ///
    /// # Errors
    /// Lists that the model cannot take.
    pub fn score(&mut self, model: &Transformer<Dry>, mut lists: Vec<TrainingList>, times: f64) -> Result<()> {
        self.backend.take();
        fill_references(model, &mut lists, false)?;
        let work = self.take(times);
        self.close("score", work);
        Ok(())
    }

    /// Rewards by `judge` of `k` responses of `tokens` tokens to each of `prompts`, `times` times.
    ///
    /// # Errors
    /// A shape that does not fit together.
    pub fn rank(
        &mut self,
        judge: &Transformer<Dry>,
        prompts: &[PromptRow],
        (k, tokens): (usize, usize),
        times: f64,
    ) -> Result<()> {
        self.backend.take();
        let limit = judge.config().max_position_embeddings;
        let mut chosen = spaced(prompts, prompts.len().min(RANKED));
        let share = prompts.len() as f64 / chosen.len().max(1) as f64;
        chosen.extend(prompts.iter().max_by_key(|prompt| prompt.ids.len()));
        let mut work = Profile::new();
        for prompt in chosen {
            // The judge's own tokens are not known yet.
            let conversation = vec![0; (prompt.ids.len() + tokens).clamp(1, limit)];
            let (prompt, response) = conversation.split_at(prompt.ids.len().min(conversation.len() - 1));
            add(&mut work, self.take(share * times), 1.0);
            if judge.config().head == Head::Score {
                let packed = PackedLists::pack([(prompt, std::iter::repeat_n(response, k))]);
                drop(judge.reward(&Tape::inference(judge.backend()), &packed)?);
                continue;
            }
            // A pairwise ranker: the question with one response first, and all others after it.
            let question = || {
                let (first, others) = ([prompt, response].concat(), vec![response.to_vec(); k - 1]);
                SharedTexts { prompt: first[..first.len().min(limit - response.len())].to_vec(), rest: others }
            };
            let questions: Vec<SharedTexts> = (0..k).filter(|_| k > 1).map(|_| question()).collect();
            let mut rest = &questions[..];
            while !rest.is_empty() {
                let (pass, after) = rest.split_at(in_one_pass(rest));
                drop(judge.next_logp(&SharedTexts::pack(pass), &[0, 0])?);
                rest = after;
            }
        }
        // The longest counts for the memory alone.
        self.backend.take();
        self.close("rank", work);
        Ok(())
    }

    /// List training by `order`, of which `done` updates are made, on lists that have their references.
    ///
    /// # Errors
    /// Lists that the model cannot take.
    pub fn train_lists(
        &mut self,
        model: Transformer<Dry>,
        lists: &[TrainingList],
        settings: &ListTraining,
        (order, done): (BatchPlan, u64),
        micro: usize,
    ) -> Result<Transformer<Dry>> {
        let mut trainer = Trainer::new(model, OptimizerConfig::default(), order.steps);
        let (mut work, share) = (Profile::new(), Chosen::new(order, done, |i| lists[i].rows()));
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
        self.plan.updates += order.steps.saturating_sub(done);
        self.close("train", work);
        Ok(trainer.into_model())
    }

    /// Training of a reward model by `order`, of which `done` updates are made.
    ///
    /// # Errors
    /// Texts that the model cannot take.
    pub fn train_rewards(
        &mut self,
        model: Transformer<Dry>,
        lists: &[RewardList],
        (order, done): (BatchPlan, u64),
        micro: usize,
    ) -> Result<()> {
        let mut trainer = Trainer::new(model, OptimizerConfig::default(), order.steps);
        let (mut work, share) = (Profile::new(), Chosen::new(order, done, |i| lists[i].rows()));
        self.backend.take();
        for (indices, counts) in &share.batches {
            let batch: Vec<&RewardList> = indices.iter().map(|&i| &lists[i]).collect();
            trainer.reward_step(&batch, 0.0, micro)?;
            add(&mut work, self.backend.take(), if *counts { share.times } else { 0.0 });
        }
        if let Some((indices, _)) = share.batches.first() {
            self.plan.step = Some(Step::Rewards(indices.iter().take(micro).map(|&i| lists[i].clone()).collect()));
        }
        self.plan.updates += order.steps.saturating_sub(done);
        self.close("train", work);
        Ok(())
    }

    /// Weights that are drawn, not read.
    pub fn fresh(&mut self, model: &Transformer<Dry>) {
        let weights = 4 * model.config().parameters();
        let memory = Memory { weights, ..Memory::default() };
        let work = host_work(FRESH, weights, 1);
        self.plan.phases.push(Phase { name: "start", memory, copies: 0, work });
    }

    /// [`Planner::finish`] of a verb that trains and writes `models` models: a checkpoint makes host copies of both moments,
    /// where a step's results were before.
    pub fn finish_training(mut self, args: &TrainArgs, models: u64, more: u64) -> Plan {
        if let Some(train) = self.plan.phases.iter().find(|phase| phase.name == "train") {
            let memory = Memory { activations: 0, logits: 0, kv_cache: 0, ..train.memory };
            let parameters = self.plan.config.trainable_parameters();
            let checkpoints = args.save_steps.map_or(0, |every| self.plan.updates / every as u64);
            let copies = if args.save_steps.is_some() { 8 * parameters } else { 0 };
            let work =
                host_work(WRITTEN, 4 * parameters * models + 12 * parameters * checkpoints, models + checkpoints);
            self.plan.phases.push(Phase { name: "save", memory, copies, work });
        }
        self.finish(more)
    }
}

/// Bytes of a vector's place and its own allocation.
const VECTOR: usize = 40;

/// Bytes that rows take.
pub fn row_bytes(rows: &[SftRow]) -> u64 {
    rows.iter().map(|row| (2 * VECTOR + 4 * (row.prompt.capacity() + row.response.capacity())) as u64).sum()
}

/// Bytes that lists take.
pub fn list_bytes(lists: &[TrainingList]) -> u64 {
    let response = |r: &TrainingResponse| {
        let sampled = r.sampled.as_ref().map_or(0, Vec::capacity);
        4 * VECTOR + 4 * (r.ids.capacity() + r.reference.capacity() + sampled)
    };
    let list =
        |l: &TrainingList| 2 * VECTOR + 4 * l.prompt.capacity() + l.responses.iter().map(response).sum::<usize>();
    lists.iter().map(|l| list(l) as u64).sum()
}

/// Bytes that ranked texts take.
pub fn reward_list_bytes(lists: &[RewardList]) -> u64 {
    let list = |l: &RewardList| 3 * VECTOR + l.labels.len() * (VECTOR + 8) + 4 * l.rows();
    lists.iter().map(|l| list(l) as u64).sum()
}

/// Bytes that the references of lists take.
pub fn reference_bytes(lists: &[TrainingList]) -> u64 {
    lists.iter().flat_map(|l| &l.responses).map(|r| 4 * r.reference.len() as u64).sum()
}

/// Bytes that prompts take.
pub fn prompt_bytes(prompts: &[PromptRow]) -> u64 {
    let text = |p: &PromptRow| p.text.len() + p.reference.as_ref().map_or(0, String::len);
    prompts.iter().map(|p| (4 * VECTOR + 4 * p.ids.len() + text(p)) as u64).sum()
}

/// The most bytes that candidates for `prompts` take, `responses` each of up to `tokens` tokens: an id, a log-probability
/// and some four letters a token, and the prompt again.
pub fn candidate_bytes(prompts: &[PromptRow], responses: usize, tokens: usize) -> u64 {
    prompt_bytes(prompts) + (prompts.len() * responses * (4 * VECTOR + 12 * tokens)) as u64
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
    fn new(order: BatchPlan, done: u64, size: impl Fn(usize) -> usize) -> Self {
        let all: Vec<Vec<usize>> = order.batches().skip(done as usize).take(LOOKED_AT).collect();
        let rows = |batch: &Vec<usize>| batch.iter().map(|&i| size(i)).sum::<usize>();
        let every = all.len().div_ceil(STEPS).max(1);
        let mut largest: Vec<usize> = (0..all.len()).collect();
        largest.sort_by_key(|&i| std::cmp::Reverse(rows(&all[i])));
        largest.truncate(16);
        let chosen = |i: usize| i.is_multiple_of(every);
        let counted = (0..all.len()).filter(|&i| chosen(i)).count().max(1);
        let batches = all.into_iter().enumerate().filter(|(i, _)| chosen(*i) || largest.contains(i));
        let batches = batches.map(|(i, batch)| (batch, chosen(i))).collect();
        Self { batches, times: order.steps.saturating_sub(done) as f64 / counted as f64 }
    }
}

/// `bytes` of work on the host.
fn host_work(name: &'static str, bytes: u64, calls: u64) -> Profile {
    Profile::from([((name, Shape::Flat), Cost { calls, bytes: bytes as f64, ..Cost::default() })])
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
