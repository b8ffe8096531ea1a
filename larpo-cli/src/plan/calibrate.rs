//! How fast this machine does the operations of a run: its own shapes, on a model of two layers and a small vocabulary.

use super::{FRESH, Plan, Step, WRITTEN};
use crate::error::Result;
use crate::machine;
use larpo_core::cpu::Cpu;
use larpo_core::model::{ModelConfig, Transformer};
use larpo_core::optim::OptimizerConfig;
use larpo_core::profile::{Cost, Profile, Profiled, Shape};
use larpo_core::retriever::{NoHooks, Prompt, SamplingConfig, sample};
use larpo_core::train::{RewardList, SftRow, Trainer, TrainingList, fill_references};
use std::collections::BTreeMap;
use std::time::Instant;

/// Layers, vocabulary, and rows of a step of the model that is timed.
const LAYERS: usize = 2;
const VOCABULARY: usize = 8192;
const ROWS: usize = 1536;
/// Tokens sampled for each response.
const TOKENS: usize = 24;
/// Seconds for a kind of work, after a first run that does not count.
const SECONDS: f64 = 1.5;
/// Bytes that the disk's rate is measured on.
const WRITE: usize = 32 << 20;
/// Bytes of each of the three arrays that the memory's rate is measured on.
const MEMORY: u64 = 128 << 20;

/// Seconds for a unit of every operation's work: a floating-point operation where it has any, a byte, or else a call.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    /// By operation and the magnitude of its rows.
    seconds: BTreeMap<(&'static str, u32), f64>,
    bytes_per_second: f64,
    /// Seconds for a byte of what is not the backend's work.
    host: BTreeMap<&'static str, f64>,
    /// Whole over the sum of the operations, in training and in sampling.
    overhead: [f64; 2],
}

fn unit(cost: &Cost) -> f64 {
    [cost.flops, cost.bytes, cost.calls as f64].into_iter().find(|&amount| amount > 0.0).unwrap_or(1.0)
}

fn magnitude(shape: Shape) -> u32 {
    match shape {
        Shape::Flat => 0,
        Shape::Rows(rows, _) | Shape::Product(rows, ..) => rows.max(1).ilog2(),
    }
}

impl Rates {
    /// Seconds that `work` takes; `sampling` tells which overhead applies.
    pub fn seconds(&self, work: &Profile, sampling: bool) -> f64 {
        let of = |((op, shape), cost): ((&'static str, Shape), &Cost)| {
            if let Some(seconds) = self.host.get(op) {
                return cost.bytes * seconds;
            }
            let wanted = magnitude(shape);
            if shape == Shape::Flat && cost.bytes > 0.0 {
                // Arrays as long as the model's, which those of the small model say nothing about.
                return cost.bytes / self.bytes_per_second;
            }
            let known = self.seconds.range((op, 0)..=(op, u32::MAX));
            let rate = known.min_by_key(|((_, rows), _)| rows.abs_diff(wanted)).map_or(0.0, |(_, rate)| *rate);
            // Operands of the whole model lie in memory, however small those were that the rate was measured on.
            (rate * unit(cost)).max(if cost.flops > 0.0 { cost.bytes / self.bytes_per_second } else { 0.0 })
        };
        for ((op, shape), cost) in work {
            debug!("{op} {shape}: {} calls, {:.4} s", cost.calls, of(((op, *shape), cost)));
        }
        self.overhead[usize::from(sampling)]
            * work.iter().map(|((op, shape), cost)| of(((*op, *shape), cost))).sum::<f64>()
    }

    fn learn(&mut self, profile: Profile, whole: f64, sampling: bool) {
        let mut sums: BTreeMap<(&'static str, u32), (f64, f64)> = BTreeMap::new();
        for ((op, shape), cost) in &profile {
            debug!("{op} {shape} measured: {} calls, {:.4} s", cost.calls, cost.seconds);
            let sum = sums.entry((*op, magnitude(*shape))).or_default();
            *sum = (sum.0 + cost.seconds, sum.1 + unit(cost));
        }
        debug!("measured for {whole:.2} s");
        let inside: f64 = profile.values().map(|cost| cost.seconds).sum();
        self.overhead[usize::from(sampling)] = (whole / inside).max(1.0);
        for (key, (seconds, units)) in sums {
            // Both kinds of work have operations of their own sizes; where they share one, training has more of it.
            self.seconds.entry(key).or_insert(seconds / units);
        }
    }
}

/// Measures for about five seconds.
///
/// # Errors
/// What training or sampling reports.
pub fn calibrate(plan: &Plan) -> Result<Rates> {
    let mut rates = Rates { overhead: [1.0; 2], ..Rates::default() };
    let memory = machine::memory_pass(MEMORY, 3);
    rates.bytes_per_second = memory.bytes as f64 / memory.seconds;
    let c = &plan.config;
    let config = ModelConfig { vocab_size: c.vocab_size.min(VOCABULARY), ..c.with_layers(LAYERS) };
    let needed = |op| plan.phases.iter().any(|phase| phase.work.keys().any(|(name, _)| *name == op));
    if needed(FRESH) {
        let start = Instant::now();
        let model = Transformer::random(&Cpu::new(), config.clone(), 1)?;
        rates.host.insert(FRESH, start.elapsed().as_secs_f64() / (4 * model.config().parameters()) as f64);
    }
    if needed(WRITTEN) {
        rates.host.insert(WRITTEN, write());
    }
    if let Some(step) = &plan.step {
        let (profile, seconds) = train(&config, step)?;
        rates.learn(profile, seconds, false);
    }
    if let Some((prompts, sampling)) = &plan.sampled {
        let (profile, seconds) = draw(&config, prompts, sampling)?;
        rates.learn(profile, seconds, true);
    }
    Ok(rates)
}

/// Seconds to write a byte for good, measured in the folder for temporary files; 0 where nothing can be written there.
fn write() -> f64 {
    let path = std::env::temp_dir().join(format!("larpo-plan-{}", std::process::id()));
    let bytes = vec![1; WRITE];
    let start = Instant::now();
    let written = larpo_data::files::write_bytes(&path, &bytes);
    let seconds = start.elapsed().as_secs_f64() / WRITE as f64;
    // Nobody is helped by an error about a file that was only to be timed.
    let _ = std::fs::remove_file(&path);
    if written.is_ok() { seconds } else { 0.0 }
}

/// Runs `call` for [`SECONDS`], three times at least, after once for warmth; the profile and the seconds of what counted.
fn timed(backend: &Profiled<Cpu>, mut call: impl FnMut() -> Result<()>) -> Result<(Profile, f64)> {
    call()?;
    backend.take();
    let start = Instant::now();
    let mut runs = 0;
    while runs < 2 || start.elapsed().as_secs_f64() < SECONDS {
        call()?;
        runs += 1;
    }
    Ok((backend.take(), start.elapsed().as_secs_f64()))
}

fn small(ids: &[u32], config: &ModelConfig) -> Vec<u32> {
    ids.iter().map(|&id| id % config.vocab_size as u32).collect()
}

fn train(config: &ModelConfig, step: &Step) -> Result<(Profile, f64)> {
    let backend = Profiled::new(Cpu::new());
    let model = Transformer::random(&backend, config.clone(), 1)?;
    let optimizer = OptimizerConfig { learning_rate: 1e-6, ..OptimizerConfig::default() };
    match step {
        Step::Rows(rows) => {
            let mut trainer = Trainer::new(model, optimizer, 1000);
            let row =
                |row: &SftRow| SftRow { prompt: small(&row.prompt, config), response: small(&row.response, config) };
            let rows: Vec<SftRow> = few(rows, |r| r.prompt.len() + r.response.len()).iter().map(row).collect();
            timed(&backend, || Ok(trainer.sft_step(&rows.iter().collect::<Vec<_>>(), rows.len()).map(drop)?))
        }
        Step::Lists(lists, settings) => {
            let mut lists = few(lists, TrainingList::rows).to_vec();
            for list in &mut lists {
                list.prompt = small(&list.prompt, config);
                for response in &mut list.responses {
                    response.ids = small(&response.ids, config);
                    response.sampled = None;
                }
            }
            fill_references(&model, &mut lists, false)?;
            let mut trainer = Trainer::new(model, optimizer, 1000);
            let all: Vec<&TrainingList> = lists.iter().collect();
            timed(&backend, || Ok(trainer.list_step(settings, &all, all.len()).map(drop)?))
        }
        Step::Rewards(lists) => {
            let mut lists = few(lists, RewardList::rows).to_vec();
            for list in &mut lists {
                list.prompt = small(&list.prompt, config);
                list.responses.iter_mut().for_each(|response| *response = small(response, config));
            }
            let mut trainer = Trainer::new(model, optimizer, 1000);
            let all: Vec<&RewardList> = lists.iter().collect();
            timed(&backend, || Ok(trainer.reward_step(&all, 0.0, all.len()).map(drop)?))
        }
    }
}

/// The first items with about [`ROWS`] rows together, one at least.
fn few<T>(items: &[T], size: impl Fn(&T) -> usize) -> &[T] {
    let mut rows = 0;
    let count = items.iter().take_while(|item| {
        rows += size(item);
        rows <= ROWS
    });
    &items[..count.count().max(1).min(items.len())]
}

fn draw(config: &ModelConfig, prompts: &[Vec<u32>], sampling: &SamplingConfig) -> Result<(Profile, f64)> {
    let backend = Profiled::new(Cpu::new());
    let model = Transformer::random(&backend, config.clone(), 1)?;
    let sampling = SamplingConfig {
        max_new_tokens: sampling.max_new_tokens.min(TOKENS),
        vocab_limit: sampling.vocab_limit.min(config.vocab_size),
        ..sampling.clone()
    };
    let ids: Vec<Vec<u32>> = prompts.iter().map(|ids| small(ids, config)).collect();
    let prompts: Vec<Prompt> = ids.iter().enumerate().map(|(i, ids)| Prompt { index: i as u32, ids }).collect();
    timed(&backend, || Ok(sample(&model, &prompts, &sampling, &mut NoHooks).map(drop)?))
}
