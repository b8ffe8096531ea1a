//! Algorithm 1 (Jin et al. 2025): sample, rank, train on the ranked lists, repeat.

use crate::args::{AlignArgs, Memory as MemoryArg, Reference};
use crate::dataset::PromptRow;
use crate::error::{Error, Result};
use crate::generate::{candidates, sampling_config};
use crate::metrics_log::MetricsLog;
use crate::policy::Policy;
use crate::reward::to_row;
use crate::training::{Journal, ListOutcome, LoopConfig, list_training, selection, train_lists};
use larpo_core::backend::Backend;
use larpo_core::candidates::{CandidateList, CandidateMemory, ListCounts, Memory, training_lists};
use larpo_core::cpu::par;
use larpo_core::model::Transformer;
use larpo_core::proofs::{ProofReport, prove};
use larpo_core::reranker::Reranker;
use larpo_core::retriever::SamplingConfig;
use larpo_core::rng::{CounterRng, Purpose};
use larpo_core::select::Select;
use larpo_core::train::{ListTraining, TrainingList, fill_references};
use serde_json::{Value, json};
use std::path::Path;

/// Settings of the loop.
#[derive(Debug, Clone)]
pub struct AlignConfig {
    /// Iterations, T.
    pub iterations: u32,
    /// Prompts of an iteration, M.
    pub prompts_per_iteration: usize,
    /// Earlier iterations that are trained on again.
    pub memory: Memory,
    /// Whether γ compares with the iteration's own start or with the first policy.
    pub reference: Reference,
    /// Sampling; temperature and iteration are set by the loop.
    pub sampling: SamplingConfig,
    /// A temperature an iteration; the last one repeats.
    pub temperatures: Vec<f64>,
    /// Texts that end a response.
    pub stop: Vec<String>,
    /// Objective.
    pub lists: ListTraining,
    /// Which candidates make the list.
    pub select: Select,
    /// Optimizer and batches; optimizer and schedule start anew in every iteration.
    pub training: LoopConfig,
    /// Seed of the run.
    pub seed: u64,
    /// What the run started from: model, data, rewards. Recorded in the manifests.
    pub source: Value,
}

impl AlignConfig {
    /// The settings of the flags, for `policy`.
    pub fn new<B: Backend>(args: &AlignArgs, policy: &Policy<B>) -> Self {
        let seed = args.common.seed;
        Self {
            iterations: args.iterate.iterations as u32,
            prompts_per_iteration: args.iterate.prompts_per_iteration,
            memory: match args.iterate.memory {
                MemoryArg::None => Memory::None,
                MemoryArg::Previous => Memory::Previous,
                MemoryArg::All => Memory::All,
            },
            reference: args.iterate.reference,
            sampling: sampling_config(&args.sampling, policy, args.generations.num_generations, seed),
            temperatures: args.sampling.temperature.clone(),
            stop: args.sampling.stop.clone(),
            lists: list_training(&args.list, seed),
            select: selection(&args.list),
            training: LoopConfig::lists(&args.train, seed),
            seed,
            source: json!({
                "model_name_or_path": args.model.model_name_or_path,
                "dataset_name": args.dataset_name,
                "max_length": args.data.max_length,
                "max_prompt_length": args.data.max_prompt_length,
                "max_samples": args.data.max_samples,
                "validation_fraction": args.split.validation_fraction,
                "split": args.split.split.name(),
                "reward_funcs": args.reward.reward_funcs,
                "reward_weights": args.reward.reward_weights,
                "answer_pattern": args.reward.answer_pattern,
                "threads": par::threads(),
            }),
        }
    }

    fn temperature(&self, iteration: u32) -> f64 {
        let last = self.temperatures.len().saturating_sub(1);
        self.temperatures.get((iteration as usize - 1).min(last)).copied().unwrap_or(1.0)
    }

    fn json(&self) -> Value {
        json!({
            "iterations": self.iterations,
            "prompts_per_iteration": self.prompts_per_iteration,
            "num_generations": self.sampling.num_generations,
            "max_new_tokens": self.sampling.max_new_tokens,
            "temperatures": self.temperatures,
            "top_k": Some(self.sampling.top_k).filter(|&k| k > 0),
            "top_p": self.sampling.top_p,
            "min_p": self.sampling.min_p,
            "stop_strings": self.stop,
            "memory": self.memory,
            "reference": match self.reference {
                Reference::Previous => "previous",
                Reference::Initial => "initial",
            },
            "objective": self.lists,
            "select": self.select.to_string(),
            "optimizer": self.training.optimizer,
            "per_device_train_batch_size": self.training.micro_batch,
            "gradient_accumulation_steps": self.training.accumulation,
            "num_train_epochs": self.training.epochs,
            "max_steps": self.training.max_steps,
            "seed": self.seed,
            "source": self.source,
        })
    }
}

/// What an iteration did.
#[derive(Debug, Clone, PartialEq)]
pub struct IterationReport {
    /// Its number, from 1.
    pub iteration: u32,
    /// Sampling temperature.
    pub temperature: f64,
    /// Prompts sampled for.
    pub prompts: usize,
    /// Mean reward of the fresh candidates.
    pub mean_reward: f64,
    /// Mean over prompts of the best fresh candidate's reward.
    pub best_reward: f64,
    /// What became of all remembered candidates.
    pub counts: ListCounts,
    /// Step-0 proofs; none where no list contributes.
    pub proofs: Option<ProofReport>,
    /// Training; none where no list contributes.
    pub outcome: Option<ListOutcome>,
}

impl IterationReport {
    /// As an object.
    pub fn json(&self) -> Value {
        json!({
            "iteration": self.iteration,
            "temperature": self.temperature,
            "prompts": self.prompts,
            "mean_reward": self.mean_reward,
            "best_reward": self.best_reward,
            "lists": self.counts,
            "proofs": self.proofs.as_ref().map(|p| json!({
                "constant_lists": p.constant_lists,
                "constant_skipped": p.constant_skipped,
                "logp_difference_max": p.logp_difference.map(|d| d.0),
                "logp_tokens": p.logp_difference.map(|d| d.1),
                "parameters_reached": p.reached,
                "zero_gradients": p.zero_gradients,
            })),
            "training": self.outcome.map(|o| json!({
                "steps": o.steps,
                "loss": o.loss,
                "rewards/accuracies": o.metrics.reward_accuracy,
                "rewards/margins": o.metrics.reward_chosen - o.metrics.reward_rejected,
                "kl": o.metrics.kl,
            })),
        })
    }
}

/// Runs the loop from `policy` over `prompts`. With a folder, every iteration leaves `iteration-<n>/` there.
///
/// # Errors
/// A failed step-0 proof, prompts that the model cannot take, what the reranker reports, files that cannot be written.
pub fn align<B: Backend>(
    policy: Policy<B>,
    prompts: &[PromptRow],
    config: &AlignConfig,
    reranker: &mut dyn Reranker,
    folder: Option<&Path>,
) -> Result<(Policy<B>, Vec<IterationReport>)> {
    let bos = prove_bos(&policy, prompts)?;
    say!("step-0 proof: {bos} BOS token(s) a prompt, as the tokenizer puts them");
    let initial = match config.reference {
        Reference::Initial => Some(policy.model.duplicate()?),
        Reference::Previous => None,
    };
    let order = CounterRng::new(config.seed, Purpose::Shuffle).permutation(u64::MAX, prompts.len());
    let count = config.prompts_per_iteration.min(prompts.len());
    if count < config.prompts_per_iteration {
        say!("note: {count} prompts an iteration, because the data set has no more");
    }
    let mut run = Run { config, initial, memory: CandidateMemory::default(), folder };
    let (mut policy, mut reports) = (policy, Vec::new());
    for iteration in 1..=config.iterations {
        let first = (iteration as usize - 1) * count;
        let chosen: Vec<PromptRow> = (first..first + count).map(|i| prompts[order[i % order.len()]].clone()).collect();
        let (next, report) = run.iteration(policy, iteration, &chosen, reranker)?;
        policy = next;
        reports.push(report);
    }
    Ok((policy, reports))
}

/// BOS tokens at the start of every prompt: as many as the tokenizer puts there, never two.
fn prove_bos<B: Backend>(policy: &Policy<B>, prompts: &[PromptRow]) -> Result<usize> {
    let Some(bos) = policy.tokenizer.bos_id() else { return Ok(0) };
    let leading = |ids: &[u32]| ids.iter().take_while(|&&id| id == bos).count();
    let expected = leading(&policy.prompt_prefix()?);
    match prompts.iter().find(|p| leading(&p.ids) != expected || expected > 1) {
        None => Ok(expected),
        Some(prompt) => Err(larpo_core::Error::Proof {
            proof: "as many BOS tokens as the tokenizer puts there, never two",
            found: format!("{} at the start of prompt {}", leading(&prompt.ids), prompt.index),
        }
        .into()),
    }
}

struct Run<'a, B: Backend> {
    config: &'a AlignConfig,
    initial: Option<Transformer<B>>,
    memory: CandidateMemory,
    folder: Option<&'a Path>,
}

impl<B: Backend> Run<'_, B> {
    fn iteration(
        &mut self,
        policy: Policy<B>,
        iteration: u32,
        prompts: &[PromptRow],
        reranker: &mut dyn Reranker,
    ) -> Result<(Policy<B>, IterationReport)> {
        let name = format!("iteration {iteration}/{}", self.config.iterations);
        let temperature = self.config.temperature(iteration);
        let sampling = SamplingConfig { temperature, iteration, ..self.config.sampling.clone() };
        let mut fresh = candidates(&policy, prompts, &sampling, &self.config.stop, &format!("{name}: sample"))?;
        policy.model.backend().trim();
        fresh.iter_mut().try_for_each(|list| list.rank(reranker))?;
        let (mean_reward, best_reward) = reward_summary(&fresh);
        let folder = self.folder.map(|folder| folder.join(format!("iteration-{iteration}")));
        if let Some(folder) = &folder {
            std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
            let rows: Vec<_> = fresh.iter().map(|list| to_row(list, &self.config.stop)).collect();
            larpo_data::candidates::write(folder.join("candidates.jsonl"), &rows)?;
        }
        self.memory.add(fresh);
        self.memory.forget(self.config.memory, iteration);
        // Lists that grew are scored as a whole again: a ranker may compare their members.
        self.memory.lists_mut().try_for_each(|list| list.rank(reranker))?;
        let (mut lists, counts) =
            training_lists(self.memory.lists(), self.config.select, &self.config.lists.objective, iteration)?;
        say!(
            "{name}: mean reward {mean_reward:.3}, best of {} {best_reward:.3}; {} lists = {} to train on + {} with \
             equal rewards + {} too short; {} duplicates among {} candidates",
            self.config.sampling.num_generations,
            counts.lists,
            counts.contributing,
            counts.equal,
            counts.too_short,
            counts.duplicates,
            counts.candidates
        );
        let mut report = IterationReport {
            iteration,
            temperature,
            prompts: prompts.len(),
            mean_reward,
            best_reward,
            counts,
            proofs: None,
            outcome: None,
        };
        let mut log = match folder.as_ref().map(|folder| folder.join("metrics.jsonl")) {
            // Also where no list contributes: every iteration leaves the same files.
            Some(path) => Some((MetricsLog::create(&path).map_err(Error::io(&path, "create"))?, path)),
            None => None,
        };
        let policy = match lists.is_empty() {
            true => {
                warn!(
                    "{name}: no list contributes ({} with equal rewards, {} too short, {} duplicate candidates); \
                     the policy stays as it is. Step-0 proofs of constants, log-probabilities and gradient skipped: there is no list",
                    counts.equal, counts.too_short, counts.duplicates
                );
                policy
            }
            false => {
                let journal = Journal {
                    label: format!("{name}: train"),
                    log: log.as_mut().map(|(log, path)| (log, path.clone())),
                    checkpoints: folder.clone(),
                };
                self.train(policy, &name, &mut lists, journal, &mut report)?
            }
        };
        if let Some(folder) = &folder {
            policy.save(&folder.join("model"))?;
            self.write_manifest(folder, prompts, &report)?;
        }
        Ok((policy, report))
    }

    fn train(
        &mut self,
        policy: Policy<B>,
        name: &str,
        lists: &mut [TrainingList],
        journal: Journal,
        report: &mut IterationReport,
    ) -> Result<Policy<B>> {
        match &self.initial {
            Some(initial) => fill_references(initial, lists, false)?,
            None => fill_references(&policy.model, lists, true)?,
        }
        let mut training = self.config.training.clone();
        training.stream = u64::from(report.iteration);
        // In the first iteration the initial policy is the present one.
        let same = self.initial.is_none() || report.iteration == 1;
        // Lists with fresh responses come first: only their recorded log-probabilities are the present policy's.
        let fresh = |list: &&TrainingList| list.responses.iter().any(|r| r.sampled.is_some());
        let (recorded, others): (Vec<_>, Vec<_>) = lists.iter().partition(fresh);
        let batch: Vec<&TrainingList> = recorded.into_iter().chain(others).take(training.micro_batch).collect();
        let proofs = prove(&policy.model, &self.config.lists, &batch, same)?;
        say!("{name}: {}", describe(&proofs));
        report.proofs = Some(proofs);
        let (policy, outcome) = train_lists(policy, lists, &self.config.lists, &training, journal)?;
        policy.model.backend().trim();
        report.outcome = Some(outcome);
        Ok(policy)
    }

    fn write_manifest(&self, folder: &Path, prompts: &[PromptRow], report: &IterationReport) -> Result<()> {
        let manifest = json!({
            "version": 1,
            "larpo": env!("CARGO_PKG_VERSION"),
            "config": self.config.json(),
            "prompts": prompts.iter().map(|p| p.index).collect::<Vec<_>>(),
            "report": report.json(),
        });
        let path = folder.join("manifest.json");
        let temporary = folder.join("manifest.json.tmp");
        std::fs::write(&temporary, format!("{manifest:#}\n")).map_err(Error::io(&temporary, "write"))?;
        std::fs::rename(&temporary, &path).map_err(Error::io(&path, "write"))
    }
}

/// Mean reward, and mean over prompts of the best one.
fn reward_summary(lists: &[CandidateList]) -> (f64, f64) {
    let (mut sum, mut count, mut best) = (0.0, 0.0, 0.0);
    for list in lists {
        sum += list.candidates.iter().map(|c| c.reward).sum::<f64>();
        count += list.candidates.len() as f64;
        best += list.candidates.iter().map(|c| c.reward).fold(f64::NEG_INFINITY, f64::max);
    }
    (sum / count, best / lists.len() as f64)
}

/// The proofs as a line for people.
pub fn describe(proofs: &ProofReport) -> String {
    let mut parts = Vec::new();
    match (proofs.constant_lists, proofs.constant_skipped) {
        (Some(n), _) => parts.push(format!("{n} list losses at γ = 0 equal their constants")),
        (None, Some(why)) => parts.push(format!("constants at γ = 0 skipped ({why})")),
        (None, None) => {}
    }
    match proofs.logp_difference {
        Some((worst, tokens)) => {
            parts.push(format!("{tokens} sampled log-probabilities equal the training path's (within {worst:.1e})"));
        }
        None => parts.push("no fresh log-probabilities in the first batch to compare".into()),
    }
    parts.push(format!("the gradient reaches all {} parameters", proofs.reached));
    if !proofs.zero_gradients.is_empty() {
        parts.push(format!("zero in {}", proofs.zero_gradients.join(", ")));
    }
    format!("step-0 proofs: {}", parts.join("; "))
}
