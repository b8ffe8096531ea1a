//! Shape of a decoder-only transformer, one for all families.

use super::lora::Lora;
use super::parameters::Parameters;
use crate::backend::{Activation, AttentionSpec, NormSpec};
use crate::error::Error;
use crate::reference::Reference;
use serde::{Deserialize, Serialize};

/// Shape of a transformer: the choices that tell the supported families (Llama, Mistral, Gemma 2, Qwen 2 and 3, GPT-2)
/// apart, and the sizes. Names as in Hugging Face's `config.json` where it has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Token ids.
    pub vocab_size: usize,
    /// Channels of the residual stream.
    pub hidden_size: usize,
    /// Channels inside the feed-forward block.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Channels of a head; `hidden_size / num_attention_heads` unless the model says otherwise.
    pub head_dim: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// What normalises the residual stream.
    pub norm: Norm,
    /// Added to the mean square, or the variance, in the norms.
    pub norm_eps: f64,
    /// Whether the result of attention and of the feed-forward block is normalised too (Gemma 2).
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
    /// Factor on attention's scores, as the power −1/2 of this; `head_dim` unless the model says otherwise.
    pub query_pre_attn_scalar: f64,
    /// Soft cap of attention's scores.
    pub attn_logit_softcapping: Option<f64>,
    /// Soft cap of the head's logits.
    pub final_logit_softcapping: Option<f64>,
    /// Keys that a row of a windowed layer sees, itself included.
    pub sliding_window: Option<usize>,
    /// Which layers are windowed, where there is a window.
    pub windowed_layers: Vec<bool>,
    /// Activation of the feed-forward block.
    pub activation: Activation,
    /// Whether that block is gated (`down(activation(gate) · up)`) or plain (`down(activation(up))`).
    pub gated: bool,
    /// Whether embeddings are multiplied by the root of `hidden_size` (Gemma).
    pub scale_embeddings: bool,
    /// What the last hidden state is turned into.
    pub head: Head,
    /// How checkpoints name the tensors.
    pub naming: Naming,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
    /// Whether a training step keeps only what enters each block and computes the rest once more for the gradients: the same bits
    /// in less memory and more time.
    #[serde(skip)]
    pub gradient_checkpointing: bool,
    /// Whether matrices that are not trained are held in bfloat16: half the memory, and all that a checkpoint in that format has.
    #[serde(skip)]
    pub frozen_bf16: bool,
    /// The adapter that is trained in place of the weights; no file of a model's shape says it.
    #[serde(skip)]
    pub lora: Option<Lora>,
}

/// What normalises rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Root mean square.
    Rms,
    /// Root mean square with weights stored around zero (Gemma): rows are multiplied by 1 + w.
    RmsUnitOffset,
    /// Mean and variance, with a bias.
    Layer,
}

/// How a position is told to the model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// Queries and keys are turned, by `theta^(−2i/head_dim)` a position for pair `i`.
    Rotary {
        /// Base of the frequencies.
        theta: f64,
        /// What was changed about the frequencies for longer texts.
        scaling: RopeScaling,
    },
    /// A table that is added to the embeddings.
    Learned,
}

/// Changed rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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

impl RopeScaling {
    /// The frequency (radians a position) that is used in place of `frequency`.
    pub fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear(factor) => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings: original } => {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                if wavelength < original / high_freq_factor {
                    frequency
                } else if wavelength > original / low_freq_factor {
                    frequency / factor
                } else {
                    let t = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - t) * frequency / factor + t * frequency
                }
            }
        }
    }
}

/// What the last hidden state is turned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// Logits of the next token, by the embedding table.
    Tied,
    /// Logits of the next token, by a matrix of their own.
    Untied,
    /// One number, a reward.
    Score,
}

/// How checkpoints name the tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Naming {
    /// `model.layers.0.self_attn.q_proj.weight`: all families but one.
    Llama,
    /// `h.0.attn.c_attn.weight`, matrices stored as (inputs, outputs), with this in front of the names.
    Gpt2 {
        /// `transformer.` or nothing.
        prefix: String,
    },
}

impl ModelConfig {
    /// A Llama shape with the usual remaining settings and a tied head.
    pub fn new(hidden: usize, intermediate: usize, layers: usize, heads: usize, kv_heads: usize, vocab: usize) -> Self {
        let head_dim = hidden.checked_div(heads).unwrap_or(0);
        Self {
            vocab_size: vocab,
            hidden_size: hidden,
            intermediate_size: intermediate,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings: 4096,
            norm: Norm::Rms,
            norm_eps: 1e-5,
            post_norms: false,
            positions: Positions::Rotary { theta: 10_000.0, scaling: RopeScaling::None },
            qkv_bias: false,
            out_bias: false,
            mlp_bias: false,
            head_norm: false,
            query_pre_attn_scalar: head_dim as f64,
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            sliding_window: None,
            windowed_layers: Vec::new(),
            activation: Activation::Silu,
            gated: true,
            scale_embeddings: false,
            head: Head::Tied,
            naming: Naming::Llama,
            initializer_range: 0.02,
            gradient_checkpointing: false,
            frozen_bf16: false,
            lora: None,
        }
    }

    /// A named shape: `t1m`, `s15m` or `m135m`.
    pub fn preset(name: &str) -> Option<Self> {
        match name {
            "t1m" => Some(Self::new(128, 384, 4, 4, 4, 512)),
            "s15m" => Some(Self::new(288, 768, 6, 6, 6, 32_000)),
            "m135m" => Some(Self::new(576, 1536, 30, 9, 3, 49_152)),
            _ => None,
        }
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// The first number that does not.
    pub fn validate(&self) -> Result<(), Error> {
        let positive = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(Error::setting(name, value, "at least 1"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads ({})", self.num_attention_heads);
            return Err(Error::setting("num_key_value_heads", self.num_key_value_heads, &expected));
        }
        if matches!(self.positions, Positions::Rotary { .. }) && !self.head_dim.is_multiple_of(2) {
            return Err(Error::setting("head_dim", self.head_dim, "even, for rotary embeddings (hidden_size / heads)"));
        }
        if self.sliding_window == Some(0) {
            return Err(Error::setting("sliding_window", 0, "at least 1"));
        }
        if self.sliding_window.is_some() && self.windowed_layers.len() != self.num_hidden_layers {
            let expected = format!("one entry for each of the {} layers", self.num_hidden_layers);
            return Err(Error::setting("windowed_layers", self.windowed_layers.len(), &expected));
        }
        let positive = [
            ("norm_eps", Some(self.norm_eps)),
            ("query_pre_attn_scalar", Some(self.query_pre_attn_scalar)),
            ("attn_logit_softcapping", self.attn_logit_softcapping),
            ("final_logit_softcapping", self.final_logit_softcapping),
        ];
        for (name, value) in positive {
            if let Some(value) = value.filter(|v| !(v.is_finite() && *v > 0.0)) {
                return Err(Error::setting(name, value, "a finite number above 0"));
            }
        }
        self.lora.as_ref().map_or(Ok(()), |lora| lora.validate(&self.linear_modules()))
    }

    /// Refuses a model that gives no logits.
    ///
    /// # Errors
    /// A score head.
    pub fn check_language_model(&self) -> Result<(), Error> {
        match self.head {
            Head::Score => Err(Error::setting("head", "of a reward model", "a language model's, for tokens")),
            Head::Tied | Head::Untied => Ok(()),
        }
    }

    /// Names and shapes of the tensors of a Hugging Face checkpoint, without an adapter's.
    pub fn checkpoint_tensors(&self) -> Vec<(String, Vec<usize>)> {
        // No backend has memory for a table without numbers.
        Parameters::build(&Reference, &Self { lora: None, ..self.clone() }).0.checkpoint_tensors()
    }

    /// Names and shapes of the tensors of PEFT's `adapter_model.safetensors`; none without an adapter.
    pub fn adapter_tensors(&self) -> Vec<(String, Vec<usize>)> {
        match self.lora {
            Some(_) => Parameters::build(&Reference, self).0.trainable_tensors(),
            None => Vec::new(),
        }
    }

    /// Names of the modules that have weights and can have no adapter: embeddings, norms, the head.
    pub fn other_modules(&self) -> Vec<String> {
        let linear = self.linear_modules();
        let mut others: Vec<String> = self
            .checkpoint_tensors()
            .iter()
            .map(|(name, _)| {
                super::lora::module(&self.naming, name.rsplit_once('.').map_or(name, |(module, _)| module))
            })
            .filter(|module| !linear.contains(module))
            .collect();
        if self.head == Head::Tied {
            others.push("lm_head".into());
        }
        others.dedup();
        others
    }

    /// Numbers that training changes: the adapter's where there is one, all otherwise.
    pub fn trainable_parameters(&self) -> u64 {
        match self.lora {
            Some(_) => self.adapter_tensors().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum(),
            None => self.parameters(),
        }
    }

    /// The same model with the first `layers` of its layers.
    pub fn with_layers(&self, layers: usize) -> Self {
        let mut config = self.clone();
        config.num_hidden_layers = layers.min(self.num_hidden_layers);
        config.windowed_layers.truncate(config.num_hidden_layers);
        if let Some(lora) = &self.lora {
            let modules = config.linear_modules();
            let targets = lora.targets.iter().filter(|target| modules.contains(target)).cloned().collect();
            config.lora = Some(Lora { targets, ..lora.clone() });
        }
        config
    }

    /// The attention's head layout, scale and cap, without a window.
    pub fn attention(&self) -> AttentionSpec {
        AttentionSpec {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            scale: self.query_pre_attn_scalar.powf(-0.5),
            softcap: self.attn_logit_softcapping,
            window: None,
        }
    }

    /// [`ModelConfig::attention`] of one layer.
    pub fn attention_of(&self, layer: usize) -> AttentionSpec {
        let windowed = self.windowed_layers.get(layer).copied().unwrap_or(false);
        AttentionSpec { window: self.sliding_window.filter(|_| windowed), ..self.attention() }
    }

    /// Settings of the root-mean-square norms.
    pub fn norm_spec(&self) -> NormSpec {
        NormSpec { eps: self.norm_eps, offset: if self.norm == Norm::RmsUnitOffset { 1.0 } else { 0.0 } }
    }

    /// Numbers in the weight matrices of all blocks (norms not counted): what a product costs per row.
    pub fn block_parameters(&self) -> u64 {
        let spec = self.attention();
        let attention = self.hidden_size * (spec.qkv_width() + spec.out_width());
        let feed_forward = (2 + usize::from(self.gated)) * self.hidden_size * self.intermediate_size;
        ((attention + feed_forward) * self.num_hidden_layers) as u64
    }

    /// All numbers of the weights, without an adapter's.
    pub fn parameters(&self) -> u64 {
        let (c, spec) = (self.hidden_size, self.attention());
        let norm = if self.norm == Norm::Layer { 2 * c } else { c };
        let mut block = norm * if self.post_norms { 4 } else { 2 };
        block += if self.qkv_bias { spec.qkv_width() } else { 0 };
        block += if self.out_bias { c } else { 0 };
        block += if self.mlp_bias { (1 + usize::from(self.gated)) * self.intermediate_size + c } else { 0 };
        block += if self.head_norm { 2 * self.head_dim } else { 0 };
        let head = match self.head {
            Head::Tied => 0,
            Head::Untied => self.vocab_size * c,
            Head::Score => c,
        };
        let positions = if self.positions == Positions::Learned { self.max_position_embeddings * c } else { 0 };
        let rest = self.vocab_size * c + positions + block * self.num_hidden_layers + norm + head;
        self.block_parameters() + rest as u64
    }

    /// Bytes of the weights as they are held, an adapter's included.
    pub fn weight_bytes(&self) -> u64 {
        let tables = match self.head {
            Head::Tied => self.vocab_size,
            Head::Untied => 2 * self.vocab_size,
            Head::Score => self.vocab_size + 1,
        };
        let learned = if self.positions == Positions::Learned { self.max_position_embeddings } else { 0 };
        let matrices = self.block_parameters() + ((tables + learned) * self.hidden_size) as u64;
        let saved = if self.frozen_bf16 && self.lora.is_some() { 2 * matrices } else { 0 };
        let adapter = self.lora.as_ref().map_or(0, |_| self.trainable_parameters());
        4 * (self.parameters() + adapter) - saved
    }

    /// Floating-point operations of one training step on packed lists: three products per weight and row (forward, and
    /// two backward), the head computed once more, and attention's seven products per visible pair.
    pub fn step_flops(&self, rows: u64, scored_rows: u64, visible_pairs: u64) -> f64 {
        let head = 8 * (self.hidden_size * self.vocab_size) as u64 * scored_rows;
        let width = (self.num_attention_heads * self.head_dim * self.num_hidden_layers) as u64;
        (6 * self.block_parameters() * rows + head + 14 * visible_pairs * width) as f64
    }

    /// Floating-point operations of a forward pass over `rows` rows, with the head on `head_rows` of them.
    pub fn forward_flops(&self, rows: u64, head_rows: u64, visible_pairs: u64) -> f64 {
        let head = 2 * (self.hidden_size * self.vocab_size) as u64 * head_rows;
        let width = (self.num_attention_heads * self.head_dim * self.num_hidden_layers) as u64;
        (2 * self.block_parameters() * rows + head + 4 * visible_pairs * width) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lists::PackedLists;

    /// One list of `k` responses, `prompt` + `response` tokens.
    fn gflops(preset: &str, k: usize, prompt: usize, response: usize) -> f64 {
        let (prompt, response) = (vec![0; prompt], vec![0; response]);
        let packed = PackedLists::pack([(&prompt[..], vec![&response[..]; k])]);
        let config = ModelConfig::preset(preset).expect("a preset");
        config.step_flops(packed.rows() as u64, packed.scored_rows.len() as u64, packed.visible_pairs()) / 1e9
    }

    #[test]
    fn work_of_a_step_by_hand() {
        assert!((gflops("s15m", 10, 64, 64) - 73.29).abs() < 0.005);
        assert!((gflops("s15m", 10, 512, 64) - 99.41).abs() < 0.005);
    }

    #[test]
    fn preset_sizes() {
        assert_eq!(ModelConfig::preset("m135m").map(|c| c.parameters()), Some(134_515_008));
        assert_eq!(ModelConfig::preset("s15m").map(|c| c.parameters()), Some(15_191_712));
    }
}
