//! Sampling as the verbs use it: stop strings, texts, progress, and candidates for the reranker.

use crate::args::SamplingArgs;
use crate::dataset::PromptRow;
use crate::error::Result;
use crate::policy::Policy;
use crate::progress::Progress;
use larpo_core::backend::Backend;
use larpo_core::candidates::{Candidate, CandidateList};
use larpo_core::retriever::{self, FinishReason, Prompt, Sample, SamplingConfig, SamplingHooks};
use larpo_data::tokenizer::Tokenizer;

/// The sampling settings of the flags, for `policy`.
pub fn sampling_config<B: Backend>(
    args: &SamplingArgs,
    policy: &Policy<B>,
    num_generations: usize,
    seed: u64,
) -> SamplingConfig {
    SamplingConfig {
        num_generations,
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature_of(0),
        top_k: args.top_k.unwrap_or(0),
        top_p: args.top_p,
        min_p: args.min_p,
        eos_ids: policy.eos_ids.clone(),
        vocab_limit: policy.tokenizer.vocab_size(),
        seed,
        iteration: 0,
    }
}

/// A sampled response with its text.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// Ids, log-probabilities and the reason for the end.
    pub sample: Sample,
    /// Text without end-of-text token and stop string.
    pub text: String,
}

/// Draws responses to `prompts`; a bar shows how far it is.
///
/// # Errors
/// Settings out of range, or a prompt that the model cannot take.
pub fn generate<B: Backend>(
    policy: &Policy<B>,
    prompts: &[PromptRow],
    config: &SamplingConfig,
    stop: &[String],
    label: &str,
) -> Result<Vec<Vec<Generated>>> {
    let mut all = Vec::with_capacity(prompts.len());
    generate_batches(policy, prompts, 0, config, stop, label, |_, batch| {
        all.extend(batch);
        Ok(())
    })?;
    Ok(all)
}

/// [`generate`] from prompt `done` on, handing over each batch of prompts with its responses as soon as it is drawn. Where
/// `done` is a multiple of [`retriever::prompts_per_batch`], the responses are the same as those of a run from the start.
///
/// # Errors
/// As [`generate`], and what `each` reports, which ends the work.
pub fn generate_batches<B: Backend>(
    policy: &Policy<B>,
    prompts: &[PromptRow],
    done: usize,
    config: &SamplingConfig,
    stop: &[String],
    label: &str,
    mut each: impl FnMut(&[PromptRow], Vec<Vec<Generated>>) -> Result<()>,
) -> Result<()> {
    let progress = Progress::new(label, prompts.len() as u64, "prompts");
    progress.kept(done as u64);
    let mut hooks = Hooks { tokenizer: &policy.tokenizer, stop, progress: &progress };
    for batch in prompts[done..].chunks(retriever::prompts_per_batch(policy.model.config(), config)) {
        let rows: Vec<Prompt> = batch.iter().map(|p| Prompt { index: p.index as u32, ids: &p.ids }).collect();
        let samples = retriever::sample(&policy.model, &rows, config, &mut hooks)?;
        let text = |sample| generated(policy, sample, stop);
        each(batch, samples.into_iter().map(|list| list.into_iter().map(text).collect()).collect::<Result<_>>()?)?;
    }
    progress.finish();
    Ok(())
}

fn generated<B: Backend>(policy: &Policy<B>, sample: Sample, stop: &[String]) -> Result<Generated> {
    let ids = match sample.finish_reason {
        FinishReason::Stop => &sample.ids[..sample.ids.len() - 1],
        _ => &sample.ids[..],
    };
    let mut text = policy.tokenizer.decode(ids, true)?;
    if let Some(end) = first_stop(&text, stop) {
        text.truncate(end);
    }
    Ok(Generated { sample, text })
}

/// Draws responses and makes candidates of them, not yet ranked.
///
/// # Errors
/// As [`generate`].
pub fn candidates<B: Backend>(
    policy: &Policy<B>,
    prompts: &[PromptRow],
    config: &SamplingConfig,
    stop: &[String],
    label: &str,
) -> Result<Vec<CandidateList>> {
    let responses = generate(policy, prompts, config, stop, label)?;
    Ok(candidate_lists(prompts, responses, config))
}

/// Responses to `prompts` as candidates, not yet ranked.
pub fn candidate_lists(
    prompts: &[PromptRow],
    responses: Vec<Vec<Generated>>,
    config: &SamplingConfig,
) -> Vec<CandidateList> {
    let candidate = |generated: Generated| Candidate {
        ids: generated.sample.ids,
        logps: generated.sample.logps,
        text: generated.text,
        finish_reason: Some(generated.sample.finish_reason),
        iteration: config.iteration,
        temperature: config.temperature,
        seed: config.seed,
        reward: 0.0,
    };
    let list = |(prompt, responses): (&PromptRow, Vec<Generated>)| CandidateList {
        prompt_index: prompt.index,
        prompt: prompt.text.clone(),
        conversation: prompt.conversation.clone(),
        prompt_ids: prompt.ids.clone(),
        reference: prompt.reference.clone(),
        candidates: responses.into_iter().map(candidate).collect(),
    };
    prompts.iter().zip(responses).map(list).collect()
}

/// Where the first stop string begins.
pub fn first_stop(text: &str, stop: &[String]) -> Option<usize> {
    stop.iter().filter_map(|s| text.find(s.as_str())).min()
}

struct Hooks<'a> {
    tokenizer: &'a Tokenizer,
    stop: &'a [String],
    progress: &'a Progress,
}

impl SamplingHooks for Hooks<'_> {
    fn stops(&self, ids: &[u32]) -> bool {
        let Some(longest) = self.stop.iter().map(String::len).max() else { return false };
        // A token stands for at least one byte nearly always; twice as many tokens leave room for those that do not.
        let tail = &ids[ids.len().saturating_sub(2 * longest + 8)..];
        self.tokenizer.decode(tail, true).is_ok_and(|text| first_stop(&text, self.stop).is_some())
    }

    fn finished(&mut self, _prompt: usize, _samples: &[Sample]) -> bool {
        self.progress.advance(1);
        true
    }
}
