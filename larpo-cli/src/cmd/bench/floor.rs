//! The least time that a training step or a sampling run can take on a machine whose two rates are known.

use larpo_core::lists::PackedLists;
use larpo_core::model::ModelConfig;

/// Bytes of a weight, a gradient, a moment or a cached channel.
const FLOAT: u64 = 4;
/// Bytes that AdamW moves for one parameter: it reads weight, gradient and both moments and writes all but the gradient.
const ADAMW_BYTES: u64 = 7 * FLOAT;

/// What the machine can do at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Rate R of large products, in floating-point operations a second.
    pub flops_per_second: f64,
    /// Rate B of `a = b + s·c`, in bytes a second.
    pub bytes_per_second: f64,
}

/// A part of a run whose arithmetic and memory traffic can overlap, but not with another part's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phase {
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes read from memory.
    pub bytes: f64,
}

/// Floating-point operations of a training step on packed lists, the head computed once more in the backward pass:
/// `6·(block parameters)·rows + 8·hidden·vocabulary·(scored rows) + 14·(visible pairs)·heads·head_dim·layers`.
pub fn step_flops(config: &ModelConfig, packed: &PackedLists) -> f64 {
    config.step_flops(packed.rows() as u64, packed.scored_rows.len() as u64, packed.visible_pairs())
}

/// Floor of a step in seconds: `flops / R + 28·parameters / B`. AdamW needs the finished gradient, so the two add up.
pub fn of_step(config: &ModelConfig, flops: f64, machine: Machine) -> f64 {
    let optimizer = (ADAMW_BYTES * config.parameters()) as f64;
    flops / machine.flops_per_second + optimizer / machine.bytes_per_second
}

/// The phases of sampling `response` tokens for `k` responses to each of `prompts` prompts of `prompt` tokens: the
/// prompts' forward pass, which gives every response's first token, then one phase for each further token.
///
/// A decoding phase reads every weight once (all prompts decoded together), a prompt's cached rows once for its `k`
/// responses, and each response's own rows.
pub fn sampling(config: &ModelConfig, prompts: usize, k: usize, prompt: usize, response: usize) -> Vec<Phase> {
    let (prompts, prompt, rows) = (prompts as u64, prompt as u64, (prompts * k) as u64);
    let weights = config.parameters();
    let cached_row = (config.attention().cache_width() * config.num_hidden_layers) as u64;
    let prefill = Phase {
        flops: config.forward_flops(prompts * prompt, prompts, prompts * prompt * (prompt + 1) / 2),
        bytes: (FLOAT * weights) as f64,
    };
    // The token fed in at step t is the response's t-th: it sees the prompt and t tokens, itself included.
    let decode = (1..response as u64).map(|t| Phase {
        flops: config.forward_flops(rows, rows, rows * (prompt + t)),
        bytes: (FLOAT * (weights + (prompts * prompt + rows * t) * cached_row)) as f64,
    });
    std::iter::once(prefill).chain(decode).collect()
}

/// Floor of a run in seconds: the sum over its phases of the longer of `flops / R` and `bytes / B`.
pub fn of_phases(phases: &[Phase], machine: Machine) -> f64 {
    phases.iter().map(|p| (p.flops / machine.flops_per_second).max(p.bytes / machine.bytes_per_second)).sum()
}
