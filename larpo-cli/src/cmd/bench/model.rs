//! A training step and a sampling run of a model with random weights.

use super::machine::timed;
use crate::args::BenchArgs;
use crate::error::{Error, Result};
use larpo_core::cpu::Cpu;
use larpo_core::model::{ModelConfig, Transformer};
use larpo_core::objective::{LossType, Objective};
use larpo_core::optim::OptimizerConfig;
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
    (0..args.lists)
        .map(|list| TrainingList {
            prompt: inputs.ids(list, 0, args.prompt),
            responses: (1..=args.num_generations).map(|item| response(list, item)).collect(),
        })
        .collect()
}

/// Median seconds of forward, backward and AdamW on all lists at once, with ListMLE and clipping.
///
/// # Errors
/// A loss or a gradient that is not a number.
pub fn step(args: &BenchArgs, config: ModelConfig) -> Result<f64> {
    let lists = lists(args, &config);
    let lists: Vec<&TrainingList> = lists.iter().collect();
    let model = Transformer::random(&Cpu::new(), config, args.common.seed)?;
    // A small rate keeps the random model where it is; the work does not depend on it.
    let optimizer = OptimizerConfig { learning_rate: 1e-6, max_grad_norm: 1.0, ..Default::default() };
    let mut trainer = Trainer::new(model, optimizer, (WARM_UPS + args.reps) as u64);
    let objective = Objective { loss: LossType::Listmle, ..Default::default() };
    let settings = ListTraining { objective, beta: 0.1, sft_weight: 0.0 };
    timed(WARM_UPS, args.reps, || Ok(trainer.list_step(&settings, &lists, lists.len()).map(drop)?))
}

/// Median seconds of sampling exactly `response` tokens for `k` responses to every prompt, at temperature 1 from the
/// whole vocabulary, without an end-of-text token.
///
/// # Errors
/// A log-probability that is not a number, or a sample of another length.
pub fn sample(args: &BenchArgs, config: ModelConfig) -> Result<f64> {
    let inputs = Inputs::new(args, &config);
    let prompts: Vec<Vec<u32>> = (0..args.lists).map(|list| inputs.ids(list, 0, args.prompt)).collect();
    let prompts: Vec<Prompt> =
        prompts.iter().enumerate().map(|(index, ids)| Prompt { index: index as u32, ids }).collect();
    let sampling = SamplingConfig {
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
    };
    let model = Transformer::random(&Cpu::new(), config, args.common.seed)?;
    timed(WARM_UPS, args.reps, || {
        let samples = retriever::sample(&model, &prompts, &sampling, &mut NoHooks)?;
        check_lengths(&samples, args)
    })
}

/// Whether every response has the length that the rate is computed from.
fn check_lengths(samples: &[Vec<Sample>], args: &BenchArgs) -> Result<()> {
    let drawn: usize = samples.iter().flatten().map(|sample| sample.ids.len()).sum();
    let expected = args.lists * args.num_generations * args.response;
    if drawn == expected {
        Ok(())
    } else {
        Err(Error::request(format!("bench sample: {drawn} tokens were drawn instead of {expected}")))
    }
}
