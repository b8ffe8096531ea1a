//! The sizes and rates of the demo, all in one place.

use larpo_core::objective::LossType;
use larpo_core::select::Select;

/// Everything that decides how long the demo takes and what comes out.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Worked examples.
    pub sft_rows: usize,
    /// Held-out problems.
    pub held_out: usize,
    /// Largest tokenizer.
    pub vocabulary: usize,
    /// Channels.
    pub hidden_size: usize,
    /// Channels of the feed-forward block.
    pub intermediate_size: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Passes over the worked examples.
    pub sft_epochs: usize,
    /// Examples a step.
    pub sft_batch: usize,
    /// Highest learning rate of fine-tuning.
    pub sft_rate: f64,
    /// Steps of `sft_more`, chosen so that its CPU time is at least LarPO's.
    pub more_steps: u64,
    /// Highest learning rate of `sft_more`.
    pub more_rate: f64,
    /// Iterations of LarPO.
    pub iterations: u32,
    /// Fresh problems an iteration.
    pub prompts_per_iteration: usize,
    /// Responses a problem.
    pub num_generations: usize,
    /// Longest response.
    pub max_new_tokens: usize,
    /// Objective.
    pub loss: LossType,
    /// Selection.
    pub select: Select,
    /// Weight of the winners' NLL.
    pub sft_weight: f64,
    /// Lists a step.
    pub align_batch: usize,
    /// Highest learning rate of LarPO.
    pub align_rate: f64,
}

impl Recipe {
    /// The demo.
    pub fn full() -> Self {
        Self {
            sft_rows: 10_000,
            held_out: 500,
            vocabulary: 512,
            hidden_size: 96,
            intermediate_size: 256,
            layers: 3,
            heads: 4,
            sft_epochs: 4,
            sft_batch: 12,
            sft_rate: 1.5e-3,
            more_steps: 700,
            more_rate: 5e-4,
            iterations: 3,
            prompts_per_iteration: 256,
            num_generations: 10,
            max_new_tokens: 48,
            loss: LossType::Lambdarank,
            select: Select::TopBottom { top: 2, bottom: 2 },
            sft_weight: 0.0,
            align_batch: 16,
            align_rate: 5e-5,
        }
    }

    /// The same path in seconds, for a check that everything works; its numbers mean little.
    pub fn quick() -> Self {
        Self {
            sft_rows: 1200,
            held_out: 40,
            sft_epochs: 2,
            more_steps: 60,
            prompts_per_iteration: 32,
            hidden_size: 64,
            intermediate_size: 160,
            ..Self::full()
        }
    }

    /// Fresh problems of all iterations.
    pub fn prompts(&self) -> usize {
        self.iterations as usize * self.prompts_per_iteration
    }

    /// Updates of fine-tuning.
    pub fn sft_steps(&self) -> u64 {
        (self.sft_epochs * self.sft_rows.div_ceil(self.sft_batch)) as u64
    }
}
