//! The retriever: draws k candidate responses to each prompt from the policy.
//!
//! A prompt is computed once and its keys and values serve all of its responses. Random numbers are counted by
//! (seed, iteration, prompt, sample, position). Batching is continuous: the responses that are decoded together are limited
//! by memory, and where some have ended, the next prompt's take their places. What is decoded together decides the last
//! bits, so it is decided within batches of consecutive prompts whose size depends on the model and the settings alone: the
//! same call gives the same samples, and a batch that was interrupted is redone.

use crate::backend::{Backend, SamplingSpec};
use crate::error::Error;
use crate::finite::check_weights;
use crate::model::{DecodeRow, Decoder, ModelConfig, Places, Transformer};
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

/// Prompts of a batch: this many times those whose responses are decoded together. A batch ends with few responses, each
/// step of which takes nearly as long as one of many; a larger batch does so less often, and loses more when interrupted.
const TURNS: usize = 8;
/// Places for prompts: this many times those that can have all of their responses decoded together, because a prompt keeps
/// its place until the last of them has ended.
const PROMPT_PLACES: usize = 3;

/// Tokens of prompts that are computed together: products gain nothing from more, and memory grows with them.
const PREFILL_TOKENS: usize = 4096;

/// Tokens whose keys and values together are as large as the weights, or fit into a cache.
fn cached_tokens(shape: &ModelConfig) -> usize {
    let per_token = shape.num_hidden_layers * shape.attention().cache_width();
    CACHED_FLOATS.max(shape.parameters() as usize) / per_token.max(1)
}

/// Prompts that have all of their responses decoded together: as many as keep what a step reads of responses' keys and
/// values below what it reads of weights.
fn prompts_at_once(shape: &ModelConfig, config: &SamplingConfig) -> usize {
    let of_a_prompt = config.max_new_tokens.saturating_mul(config.num_generations).max(1);
    (cached_tokens(shape) / of_a_prompt).min(MAX_ROWS / config.num_generations.max(1)).max(1)
}

/// Prompts that are sampled as one batch.
///
/// A run that was interrupted draws the same numbers when it goes on with the prompt at a multiple of this.
pub fn prompts_per_batch(shape: &ModelConfig, config: &SamplingConfig) -> usize {
    let most = (MAX_ROWS / config.num_generations.max(1)).max(1);
    (TURNS * prompts_at_once(shape, config)).min(most)
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
        let samples = Batch::new(model, batch, config)?.run(result.len(), hooks)?;
        result.extend(samples);
    }
    Ok(result)
}

/// A response that is being decoded.
struct Active {
    /// Its number: prompts of the batch times k, and which of the prompt's it is.
    response: usize,
    /// Its place in the decoder, and that of its prompt.
    place: usize,
    prompt_place: usize,
}

/// Consecutive prompts whose responses are decoded together.
struct Batch<'a, B: Backend> {
    model: &'a Transformer<B>,
    prompts: &'a [Prompt<'a>],
    config: &'a SamplingConfig,
    random: CounterRng,
    decoder: Decoder<'a, B>,
    /// Prompts that have entered.
    entered: usize,
    /// In the order of their numbers, so that the responses of a prompt are neighbours.
    active: Vec<Active>,
    /// Places that are free, the next to be taken last.
    free: Vec<usize>,
    free_prompts: Vec<usize>,
    /// Responses of every prompt that have not ended.
    open: Vec<usize>,
    samples: Vec<Sample>,
}

impl<'a, B: Backend> Batch<'a, B> {
    fn new(model: &'a Transformer<B>, prompts: &'a [Prompt], config: &'a SamplingConfig) -> Result<Self, Error> {
        let (n, k) = (prompts.len(), config.num_generations);
        let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
        // The prompts' keys and values have the same bound as the responses'.
        let room = (cached_tokens(model.config()) / longest.max(1)).max(1);
        let at_once = prompts_at_once(model.config(), config).min(n).min(room);
        let places = Places {
            prompts: n.min(PROMPT_PLACES * at_once).min(room),
            prompt_tokens: longest,
            responses: at_once * k,
            // The last token of a response is never fed in, but the model must be able to.
            response_tokens: config.max_new_tokens,
        };
        Ok(Self {
            model,
            prompts,
            config,
            random: CounterRng::new(config.seed, Purpose::Sampling),
            decoder: Decoder::new(model, places)?,
            entered: 0,
            active: Vec::with_capacity(places.responses),
            free: (0..places.responses).rev().collect(),
            free_prompts: (0..places.prompts).rev().collect(),
            open: vec![k; n],
            samples: vec![Sample { ids: vec![], logps: vec![], finish_reason: FinishReason::Length }; n * k],
        })
    }

    /// Samples of every prompt. `before` prompts were finished earlier.
    fn run(mut self, before: usize, hooks: &mut dyn SamplingHooks) -> Result<Vec<Vec<Sample>>, Error> {
        let (n, k) = (self.prompts.len(), self.config.num_generations);
        let mut finished = 0;
        while finished < n {
            while self.enter(&*hooks)? {}
            if !self.active.is_empty() {
                let rows: Vec<DecodeRow> = self.active.iter().map(|active| self.row(active)).collect();
                let logits = self.decoder.step(&rows)?;
                let active = std::mem::take(&mut self.active);
                self.draw(logits, active, &*hooks)?;
            }
            while finished < n && self.open[finished] == 0 {
                if !hooks.finished(before + finished, &self.samples[finished * k..][..k]) {
                    return Err(Error::Stopped);
                }
                finished += 1;
            }
        }
        let mut samples = self.samples.into_iter();
        Ok((0..n).map(|_| samples.by_ref().take(k).collect()).collect())
    }

    fn row(&self, active: &Active) -> DecodeRow {
        let ids = &self.samples[active.response].ids;
        let (generated, id) = (ids.len() - 1, ids[ids.len() - 1]);
        DecodeRow { prompt: active.prompt_place, response: active.place, id, generated }
    }

    /// Lets in prompts that there is room for, as many as are computed together, and draws the first token of their
    /// responses; whether there were any.
    fn enter(&mut self, hooks: &dyn SamplingHooks) -> Result<bool, Error> {
        let (b, k, vocab) = (self.model.backend(), self.config.num_generations, self.model.config().vocab_size);
        let room = self.free_prompts.len().min(self.free.len() / k).min(self.prompts.len() - self.entered);
        if room == 0 {
            return Ok(false);
        }
        let mut tokens = 0;
        let fits = |prompt: &&Prompt| {
            tokens += prompt.ids.len();
            tokens <= PREFILL_TOKENS
        };
        let room = self.prompts[self.entered..][..room].iter().take_while(fits).count().max(1);
        let places = self.free_prompts.split_off(self.free_prompts.len() - room);
        let entering = self.entered..self.entered + room;
        let prompts: Vec<_> = places.iter().copied().zip(self.prompts[entering].iter().map(|p| p.ids)).collect();
        let prompt_logits = self.decoder.prefill(&prompts)?;
        let active: Vec<Active> = self
            .free
            .split_off(self.free.len() - room * k)
            .into_iter()
            .enumerate()
            .map(|(i, place)| Active { response: self.entered * k + i, place, prompt_place: places[i / k] })
            .collect();
        self.entered += room;
        // Every response of a prompt starts from the same logits.
        let first: Vec<u32> = (0..active.len()).map(|response| (response / k) as u32).collect();
        let mut logits = b.alloc(active.len() * vocab);
        b.gather_rows(&prompt_logits, &b.upload_index(&first), vocab, &mut logits);
        drop(prompt_logits);
        self.draw(logits, active, hooks)?;
        Ok(true)
    }

    /// Draws the next token of each of `rows`; those that have not ended by it are active.
    fn draw(&mut self, logits: B::Buffer, rows: Vec<Active>, hooks: &dyn SamplingHooks) -> Result<(), Error> {
        let (config, k) = (self.config, self.config.num_generations);
        let uniform: Vec<f64> = rows
            .iter()
            .map(|row| {
                let (prompt, position) = (&self.prompts[row.response / k], self.samples[row.response].ids.len());
                self.random.uniform([config.iteration, prompt.index, (row.response % k) as u32, position as u32])
            })
            .collect();
        let draws = self.model.backend().sample(&logits, self.model.config().vocab_size, &config.spec(), &uniform);
        drop(logits);
        for (row, draw) in rows.into_iter().zip(draws) {
            let (prompt, sample) = (row.response / k, &mut self.samples[row.response]);
            if !draw.logp.is_finite() {
                check_weights(self.model)?;
                let at = format!("prompt {}, token {}", self.prompts[prompt].index, sample.ids.len());
                return Err(Error::NotFinite { what: "the log-probability of a sampled token".into(), at });
            }
            sample.ids.push(draw.id);
            sample.logps.push(draw.logp);
            if config.eos_ids.contains(&draw.id) {
                sample.finish_reason = FinishReason::Stop;
            } else if hooks.stops(&sample.ids) {
                sample.finish_reason = FinishReason::StopString;
            } else if sample.ids.len() < config.max_new_tokens {
                self.active.push(row);
                continue;
            }
            self.free.push(row.place);
            self.open[prompt] -= 1;
            if self.open[prompt] == 0 {
                self.free_prompts.push(row.prompt_place);
            }
        }
        Ok(())
    }
}
