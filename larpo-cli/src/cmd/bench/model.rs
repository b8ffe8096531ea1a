//! A training step and a sampling run of a model with random weights.

use super::profile::Measured;
use crate::args::{BenchArgs, BenchKind};
use crate::error::{Error, Result};
use crate::machine::{median, times};
use larpo_core::backend::Backend;
use larpo_core::cpu::Cpu;
use larpo_core::model::{ModelConfig, Transformer};
use larpo_core::objective::{LossType, Objective};
use larpo_core::optim::OptimizerConfig;
use larpo_core::profile::Profiled;
use larpo_core::retriever::{self, NoHooks, Prompt, Sample, SamplingConfig};
use larpo_core::rng::{CounterRng, Purpose};
use larpo_core::train::{ListTraining, Trainer, TrainingList, TrainingResponse};

/// Untimed runs: the first fills the buffer pool and the optimizer's moments.
const WARM_UPS: usize = 2;

/// Random token ids and numbers, the same for the same seed.
struct Inputs {
    random: CounterRng,
    vocab: usize,
}

impl Inputs {
    fn new(args: &BenchArgs, config: &ModelConfig) -> Self {
        Self { random: CounterRng::new(args.common.seed, Purpose::Bench), vocab: config.vocab_size }
    }

    /// Ids of text `item` of list `list`; item 0 is the prompt.
    fn ids(&self, list: usize, item: usize, len: usize) -> Vec<u32> {
        let uniform = |at: usize| self.random.uniform([list as u32, item as u32, at as u32, 0]);
        (0..len).map(|at| (uniform(at) * self.vocab as f64) as u32).collect()
    }

    /// Log-probabilities of a reference policy: about those of a uniform choice.
    fn reference(&self, list: usize, item: usize, len: usize) -> Vec<f32> {
        let uniform = |at: usize| self.random.uniform([list as u32, item as u32, at as u32, 1]);
        (0..len).map(|at| (uniform(at) - 0.5 - (self.vocab as f64).ln()) as f32).collect()
    }
}

/// Lists of `k` random responses with rewards that all differ.
pub fn lists(args: &BenchArgs, config: &ModelConfig) -> Vec<TrainingList> {
    let inputs = Inputs::new(args, config);
    // Nothing predicts the first token after an empty prompt.
    let scored = args.response - usize::from(args.prompt == 0);
    let response = |list: usize, item: usize| TrainingResponse {
        ids: inputs.ids(list, item, args.response),
        reward: item as f64,
        reference: inputs.reference(list, item, scored),
        sampled: None,
    };
    (0..args.lists())
        .map(|list| TrainingList {
            prompt: inputs.ids(list, 0, args.prompt),
            responses: (1..=args.num_generations).map(|item| response(list, item)).collect(),
        })
        .collect()
}

/// What is timed: a step or a sampling run, again at every call.
type Run = Box<dyn FnMut() -> Result<()>>;

/// Median seconds of a step or a sampling run, and with `--profile` what each operation took.
///
/// # Errors
/// A loss, a gradient or a log-probability that is not a number.
pub fn time(args: &BenchArgs, config: ModelConfig) -> Result<(f64, Option<Measured>)> {
    if !args.profile {
        let mut run = prepare(args, config, &Cpu::new())?;
        times(WARM_UPS, &mut run)?;
        return Ok((median(times(args.reps, &mut run)?), None));
    }
    let backend = Profiled::new(Cpu::new());
    let mut run = prepare(args, config, &backend)?;
    times(WARM_UPS, &mut run)?;
    backend.take();
    let seconds = times(args.reps, &mut run)?;
    let measured = Measured { profile: backend.take(), seconds: seconds.iter().sum(), runs: args.reps };
    Ok((median(seconds), Some(measured)))
}

fn prepare<B: Backend>(args: &BenchArgs, config: ModelConfig, backend: &B) -> Result<Run> {
    match args.what {
        BenchKind::Sample => sample(args, config, backend),
        _ => step(args, config, backend),
    }
}

/// Forward, backward and AdamW on all lists at once, with ListMLE and clipping.
fn step<B: Backend>(args: &BenchArgs, config: ModelConfig, backend: &B) -> Result<Run> {
    let lists = lists(args, &config);
    let model = Transformer::random(backend, config, args.common.seed)?;
    // A small rate keeps the random model where it is; the work does not depend on it.
    let optimizer = OptimizerConfig { learning_rate: 1e-6, max_grad_norm: 1.0, ..Default::default() };
    let mut trainer = Trainer::new(model, optimizer, (WARM_UPS + args.reps) as u64);
    let objective = Objective { loss: LossType::Listmle, ..Default::default() };
    let settings = ListTraining { objective, beta: 0.1, sft_weight: 0.0 };
    Ok(Box::new(move || {
        let lists: Vec<&TrainingList> = lists.iter().collect();
        Ok(trainer.list_step(&settings, &lists, lists.len()).map(drop)?)
    }))
}

/// `response` tokens for each of `k` responses, at temperature 1 from the whole vocabulary.
pub fn sampling(args: &BenchArgs, config: &ModelConfig) -> SamplingConfig {
    SamplingConfig {
        num_generations: args.num_generations,
        max_new_tokens: args.response,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        eos_ids: vec![],
        vocab_limit: config.vocab_size,
        seed: args.common.seed,
        iteration: 0,
    }
}

/// Sampling of exactly `response` tokens for `k` responses to every prompt, at temperature 1 from the whole vocabulary,
/// without an end-of-text token.
fn sample<B: Backend>(args: &BenchArgs, config: ModelConfig, backend: &B) -> Result<Run> {
    let inputs = Inputs::new(args, &config);
    let prompts: Vec<Vec<u32>> = (0..args.lists()).map(|list| inputs.ids(list, 0, args.prompt)).collect();
    let sampling = sampling(args, &config);
    let model = Transformer::random(backend, config, args.common.seed)?;
    let expected = args.lists() * args.num_generations * args.response;
    Ok(Box::new(move || {
        let prompts: Vec<Prompt> =
            prompts.iter().enumerate().map(|(index, ids)| Prompt { index: index as u32, ids }).collect();
        check_lengths(&retriever::sample(&model, &prompts, &sampling, &mut NoHooks)?, expected)
    }))
}

/// Whether the tokens are as many as the rate is computed from.
fn check_lengths(samples: &[Vec<Sample>], expected: usize) -> Result<()> {
    let drawn: usize = samples.iter().flatten().map(|sample| sample.ids.len()).sum();
    if drawn == expected {
        Ok(())
    } else {
        Err(Error::request(format!("bench sample: {drawn} tokens were drawn instead of {expected}")))
    }
}
