//! Settings of the loop, and how manifests record them.

use crate::args::{AlignArgs, Memory as MemoryArg, Reference};
use crate::dataset::LONGEST;
use crate::generate::sampling_config;
use crate::policy::Policy;
use crate::training::{LoopConfig, list_training, selection};
use crate::watch::Watch;
use larpo_core::backend::Backend;
use larpo_core::candidates::Memory;
use larpo_core::cpu::par;
use larpo_core::objective::RankBy;
use larpo_core::retriever::SamplingConfig;
use larpo_core::select::Select;
use larpo_core::train::ListTraining;
use larpo_data::records::Schema;
use serde_json::{Value, json};

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
    /// Tokens of a prompt and a response together, where the response was edited by hand.
    pub max_length: usize,
    /// Objective.
    pub lists: ListTraining,
    /// Which candidates make the list.
    pub select: Select,
    /// Optimizer and batches; optimizer and schedule start anew in every iteration.
    pub training: LoopConfig,
    /// What is looked at after each iteration, and what ends the run early.
    pub watch: Watch,
    /// Seed of the run.
    pub seed: u64,
    /// What the run started from: model, data, rewards. Recorded in the manifests.
    pub source: Value,
}

impl AlignConfig {
    /// The settings of the flags, for `policy`; nothing is watched.
    pub fn new<B: Backend>(args: &AlignArgs, iterations: u32, policy: &Policy<B>) -> Self {
        let seed = args.common.seed;
        Self {
            iterations,
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
            max_length: args.data.max_length.unwrap_or(policy.model.config().max_position_embeddings.min(LONGEST)),
            lists: list_training(&args.list, seed),
            select: selection(&args.list),
            training: LoopConfig::lists(&args.train, seed),
            watch: Watch::default(),
            seed,
            source: json!({
                "model_name_or_path": args.model.model_name_or_path,
                "dataset_name": args.dataset_name,
                "max_length": args.data.max_length,
                "max_prompt_length": args.data.max_prompt_length,
                "max_samples": args.data.max_samples,
                "truncation_mode": args.data.truncation_mode.name(),
                "dataset_schema": args.data.read.dataset_schema.map(Schema::name),
                "on_bad_row": args.data.read.on_bad_row.name(),
                "shuffle_seed": args.data.shuffle_seed,
                "eval_dataset": args.iterate.eval_dataset,
                "eval_prompts": args.iterate.eval_prompts,
                "validation_fraction": args.split.validation_fraction,
                "split": args.split.split.name(),
                "reward_model": args.reward.reward_model,
                "pairwise_ranker": args.reward.pairwise_ranker,
                "ranker_template": args.reward.ranker_template,
                "ranker_labels": args.reward.ranker_labels,
                "rank_by": args.reward.rank_by.map(RankBy::name),
                "reward_funcs": args.reward.rules(),
                "reward_weights": args.reward.reward_weights,
                "answer_pattern": args.reward.answer_pattern,
                "threads": par::threads(),
            }),
        }
    }

    pub(super) fn temperature(&self, iteration: u32) -> f64 {
        let last = self.temperatures.len().saturating_sub(1);
        self.temperatures.get((iteration as usize - 1).min(last)).copied().unwrap_or(1.0)
    }

    pub(super) fn json(&self) -> Value {
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
            "until_kl": self.watch.until_kl,
            "early_stopping_patience": self.watch.patience,
            "watched_prompts": self.watch.prompts.len(),
            "seed": self.seed,
            "source": self.source,
        })
    }
}
