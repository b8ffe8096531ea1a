//! The shape of a transformer: sizes, and the choices that tell the families apart.
//!
//! A plain description for whoever computes with the model; nothing here does. Fields and their serialised form are those of
//! larpo-core's `ModelConfig`, into which it can be read.

use serde::{Deserialize, Serialize};

/// Shape of a decoder-only transformer. Names as in `config.json` where it has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelShape {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Channels of one head. Not always `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// What normalises the residual stream.
    pub norm: Norm,
    /// Added to the mean square, or the variance, in the norms.
    pub norm_eps: f64,
    /// Whether the results of attention and of the feed-forward block are normalised too (Gemma 2).
    pub post_norms: bool,
    /// How a position is told to the model.
    pub positions: Positions,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output has one.
    pub out_bias: bool,
    /// Whether the products of the feed-forward block have one.
    pub mlp_bias: bool,
    /// Whether query and key heads are normalised before they are turned (Qwen 3).
    pub head_norm: bool,
    /// Attention's scores are multiplied by this to the power −1/2.
    pub query_pre_attn_scalar: f64,
    /// Scores `s` of attention become `c·tanh(s/c)`.
    pub attn_logit_softcapping: Option<f64>,
    /// Logits `s` become `c·tanh(s/c)`.
    pub final_logit_softcapping: Option<f64>,
    /// Keys that a row of a windowed layer sees, itself included.
    pub sliding_window: Option<usize>,
    /// Which layers are windowed; empty where there is no window.
    pub windowed_layers: Vec<bool>,
    /// Activation of the feed-forward block.
    pub activation: Activation,
    /// Whether that block is gated, `down(activation(gate)·up)`, or plain, `down(activation(up))`.
    pub gated: bool,
    /// Whether embeddings are multiplied by the root of `hidden_size` (Gemma).
    pub scale_embeddings: bool,
    /// What the last hidden state is turned into.
    pub head: Head,
    /// How the tensors are named.
    pub naming: Naming,
    /// Standard deviation with which weights were or are drawn.
    pub initializer_range: f64,
}

/// What normalises rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Root mean square.
    Rms,
    /// Root mean square, times 1 + weight (Gemma).
    RmsUnitOffset,
    /// Mean and variance, with a bias.
    Layer,
}

/// How a position is told to the model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// Pairs `i` and `i + head_dim/2` of queries and keys are turned, `theta^(−2i/head_dim)` a position.
    Rotary {
        /// Base of the frequencies.
        theta: f64,
        /// What was changed about the frequencies.
        scaling: RopeScaling,
    },
    /// A table that is added to the embeddings.
    Learned,
}

/// Changed rotary frequencies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// As they are.
    None,
    /// All divided by the factor.
    Linear(f64),
    /// Llama 3.1: low frequencies divided, high ones kept, those between mixed.
    Llama3 {
        /// Divides low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high` are kept.
        high_freq_factor: f64,
        /// Positions the model was first trained with.
        original_max_position_embeddings: f64,
    },
}

/// Activation of the feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x·σ(x)`.
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
}

/// What the last hidden state is turned into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// Logits of the next token, by the embedding.
    Tied,
    /// Logits of the next token, by a matrix of their own.
    Untied,
    /// One number, a reward (a sequence classifier with one label).
    Score,
}

/// How the tensors are named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Naming {
    /// `model.layers.0.self_attn.q_proj.weight`: all families but GPT-2.
    Llama,
    /// `h.0.attn.c_attn.weight` with this in front; matrices are stored as (inputs, outputs).
    Gpt2 {
        /// `transformer.`, or nothing in the original files.
        prefix: String,
    },
}

impl ModelShape {
    /// Name of the embedding's tensor.
    pub fn embedding(&self) -> String {
        match &self.naming {
            Naming::Llama => "model.embed_tokens.weight".into(),
            Naming::Gpt2 { prefix } => format!("{prefix}wte.weight"),
        }
    }
}
