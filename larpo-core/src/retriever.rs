//! The retriever: draws k candidate responses to each prompt from the policy.
//!
//! A prompt is computed once and its keys and values serve all of its responses. Random numbers are counted by
//! (seed, iteration, prompt, sample, position). Prompts are decoded in batches of consecutive prompts whose size depends
//! on the model and the settings alone, so the same call gives the same samples; a batch that was interrupted is redone.

use crate::backend::{Backend, SamplingSpec};
use crate::error::Error;
use crate::model::{DecodeRow, Decoder, ModelConfig, Transformer};
use crate::rng::{CounterRng, Purpose};
use serde::{Deserialize, Serialize};

/// Settings of sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingConfig {
    /// Responses per prompt, k.
    pub num_generations: usize,
    /// Longest response in tokens.
    pub max_new_tokens: usize,
    /// Divides the logits; 0 decodes greedily.
    pub temperature: f64,
    /// Keeps the most probable tokens only; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most probable tokens that together reach this probability.
    pub top_p: f64,
    /// Drops tokens less probable than this share of the most probable one's.
    pub min_p: f64,
    /// Ids that end a response.
    pub eos_ids: Vec<u32>,
    /// Ids at or above this have no token and are never drawn.
    pub vocab_limit: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Iteration of the run; another iteration draws other numbers.
    pub iteration: u32,
}

impl SamplingConfig {
    /// One response a prompt, always the most probable token.
    pub fn greedy(self) -> Self {
        Self { num_generations: 1, temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..self }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// The first setting out of its range.
    pub fn validate(&self) -> Result<(), Error> {
        if self.num_generations == 0 {
            return Err(Error::setting("num_generations", 0, "at least 1"));
        }
        if self.max_new_tokens == 0 {
            return Err(Error::setting("max_new_tokens", 0, "at least 1"));
        }
        if !(self.temperature.is_finite() && (self.temperature == 0.0 || self.temperature >= 1e-3)) {
            return Err(Error::setting("temperature", self.temperature, "0 for the greedy choice, or at least 0.001"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::setting("top_p", self.top_p, "above 0 and at most 1"));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(Error::setting("min_p", self.min_p, "between 0 and 1"));
        }
        if self.vocab_limit == 0 {
            return Err(Error::setting("vocab_limit", 0, "at least 1"));
        }
        Ok(())
    }

    fn spec(&self) -> SamplingSpec {
        SamplingSpec {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            vocab_limit: self.vocab_limit,
        }
    }
}

/// A prompt to answer.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Its number in the data set; decides its random numbers.
    pub index: u32,
    /// Its token ids, at least one.
    pub ids: &'a [u32],
}

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end-of-text token, which is the last of its ids.
    Stop,
    /// The length limit.
    Length,
    /// A stop string appeared in its text.
    StopString,
}

impl FinishReason {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::StopString => "stop_string",
        }
    }
}

/// A sampled response.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Token ids, the end-of-text token included.
    pub ids: Vec<u32>,
    /// Log-probability of each id under the untempered, untruncated softmax.
    pub logps: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What the caller may watch and decide while sampling runs.
pub trait SamplingHooks {
    /// Whether the response so far ends here because of a stop string.
    fn stops(&self, _ids: &[u32]) -> bool {
        false
    }

    /// Called with the samples of each finished prompt, in order; `false` stops the run ([`Error::Stopped`]).
    fn finished(&mut self, _prompt: usize, _samples: &[Sample]) -> bool {
        true
    }
}

/// Watches nothing.
pub struct NoHooks;

impl SamplingHooks for NoHooks {}

/// Floats of cached keys and values that are read from a last-level cache rather than from memory: 16 MiB.
const CACHED_FLOATS: usize = 4 << 20;
/// Responses decoded together at most; products gain nothing from more.
const MAX_ROWS: usize = 512;

/// Prompts decoded together: as many as keep what a step reads of keys and values below what it reads of weights.
pub fn prompts_per_batch(shape: &ModelConfig, config: &SamplingConfig) -> usize {
    let per_token = shape.num_hidden_layers * shape.attention().cache_width();
    let budget = CACHED_FLOATS.max(shape.parameters() as usize);
    let by_memory = budget / (per_token * config.max_new_tokens * config.num_generations).max(1);
    by_memory.min(MAX_ROWS / config.num_generations).max(1)
}

/// Draws `num_generations` responses to every prompt.
///
/// # Errors
/// Settings out of range, a prompt the model cannot take, a stop by the caller.
pub fn sample<B: Backend>(
    model: &Transformer<B>,
    prompts: &[Prompt],
    config: &SamplingConfig,
    hooks: &mut dyn SamplingHooks,
) -> Result<Vec<Vec<Sample>>, Error> {
    config.validate()?;
    let mut result = Vec::with_capacity(prompts.len());
    for batch in prompts.chunks(prompts_per_batch(model.config(), config)) {
        for samples in sample_batch(model, batch, config, hooks)? {
            if !hooks.finished(result.len(), &samples) {
                return Err(Error::Stopped);
            }
            result.push(samples);
        }
    }
    Ok(result)
}

fn sample_batch<B: Backend>(
    model: &Transformer<B>,
    prompts: &[Prompt],
    config: &SamplingConfig,
    hooks: &dyn SamplingHooks,
) -> Result<Vec<Vec<Sample>>, Error> {
    let (b, vocab, k) = (model.backend(), model.config().vocab_size, config.num_generations);
    let random = CounterRng::new(config.seed, Purpose::Sampling);
    let ids: Vec<&[u32]> = prompts.iter().map(|p| p.ids).collect();
    // The last token of a response is never fed in.
    let (mut decoder, prompt_logits) = Decoder::prefill(model, &ids, prompts.len() * k, config.max_new_tokens)?;
    let mut samples =
        vec![Sample { ids: vec![], logps: vec![], finish_reason: FinishReason::Length }; prompts.len() * k];
    let mut active: Vec<usize> = (0..samples.len()).collect();
    // Every response of a prompt starts from the same logits.
    let first: Vec<u32> = active.iter().map(|response| (response / k) as u32).collect();
    let mut logits = b.alloc(samples.len() * vocab);
    b.gather_rows(&prompt_logits, &b.upload_index(&first), vocab, &mut logits);
    drop(prompt_logits);
    for position in 0..config.max_new_tokens {
        let uniform: Vec<f64> = active
            .iter()
            .map(|r| random.uniform([config.iteration, prompts[r / k].index, (r % k) as u32, position as u32]))
            .collect();
        let draws = b.sample(&logits, vocab, &config.spec(), &uniform);
        drop(logits);
        for (&response, draw) in active.iter().zip(draws) {
            if !draw.logp.is_finite() {
                let at = format!("prompt {}, token {position}", prompts[response / k].index);
                return Err(Error::NotFinite { what: "the log-probability of a sampled token".into(), at });
            }
            let sample = &mut samples[response];
            sample.ids.push(draw.id);
            sample.logps.push(draw.logp);
            if config.eos_ids.contains(&draw.id) {
                sample.finish_reason = FinishReason::Stop;
            } else if hooks.stops(&sample.ids) {
                sample.finish_reason = FinishReason::StopString;
            }
        }
        active.retain(|&response| samples[response].finish_reason == FinishReason::Length);
        if active.is_empty() || position + 1 == config.max_new_tokens {
            break;
        }
        let rows: Vec<DecodeRow> = active
            .iter()
            .map(|&response| DecodeRow {
                prompt: response / k,
                response,
                id: samples[response].ids[position],
                generated: position,
            })
            .collect();
        logits = decoder.step(&rows)?;
    }
    let mut samples = samples.into_iter();
    Ok(prompts.iter().map(|_| samples.by_ref().take(k).collect()).collect())
}
