//! `config.json` of a Llama model, in the dialects of transformers 4 and 5.

use super::config_reader::Reader;
use crate::error::Result;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The sizes and constants of a Llama model (`LlamaForCausalLM`): RMSNorm, rotary positions (half split), grouped-query
/// attention, SwiGLU, no biases.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Channels of one head; even. Not always `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square inside RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies: theta^(−2i/head_dim).
    pub rope_theta: f64,
    /// Whether the head is the embedding; then there is no `lm_head.weight`.
    pub tie_word_embeddings: bool,
    /// Beginning-of-sequence id.
    pub bos_token_id: Option<u32>,
    /// End-of-sequence ids: generation stops at any of them. Empty where none is given.
    pub eos_token_ids: Vec<u32>,
    /// Padding id.
    pub pad_token_id: Option<u32>,
    /// Standard deviation with which weights were or are drawn.
    pub initializer_range: f64,
}

impl ModelConfig {
    /// Reads the fields of a `config.json`; `path` is named in errors. Absent fields take the defaults of transformers'
    /// `LlamaConfig`, except sizes, which must be given, and token ids, which stay unset.
    ///
    /// # Errors
    /// A field that is missing, malformed, or asks for arithmetic that is not supported.
    pub fn from_json(path: &Path, object: &Map<String, Value>) -> Result<Self> {
        let read = Reader { path, object };
        read.check_architecture()?;
        read.check_unsupported()?;
        let hidden_size = read.size("hidden_size", None)?;
        let heads = read.size("num_attention_heads", None)?;
        if read.get("head_dim").is_none() && !hidden_size.is_multiple_of(heads) {
            let problem = format!("{hidden_size} is not a multiple of num_attention_heads = {heads}");
            return read.fail("hidden_size", problem, "Correct one of them, or add head_dim");
        }
        let config = Self {
            vocab_size: read.size("vocab_size", None)?,
            hidden_size,
            intermediate_size: read.size("intermediate_size", None)?,
            num_hidden_layers: read.size("num_hidden_layers", None)?,
            num_attention_heads: heads,
            num_key_value_heads: read.size("num_key_value_heads", Some(heads))?,
            head_dim: read.size("head_dim", Some((hidden_size / heads).max(1)))?,
            max_position_embeddings: read.size("max_position_embeddings", Some(2048))?,
            rms_norm_eps: read.positive("rms_norm_eps", 1e-6)?,
            rope_theta: read.rope_theta()?,
            tie_word_embeddings: read.flag("tie_word_embeddings", false)?,
            bos_token_id: read.one_id("bos_token_id")?,
            eos_token_ids: read.ids("eos_token_id")?,
            pad_token_id: read.one_id("pad_token_id")?,
            initializer_range: read.positive("initializer_range", 0.02)?,
        };
        config.validate(path)?;
        Ok(config)
    }

    /// Takes over the token ids that a `generation_config.json` gives.
    ///
    /// # Errors
    /// An id that is none, or lies outside the vocabulary.
    pub fn apply_generation_config(&mut self, path: &Path, object: &Map<String, Value>) -> Result<()> {
        let read = Reader { path, object };
        if read.get("eos_token_id").is_some() {
            self.eos_token_ids = read.ids("eos_token_id")?;
        }
        self.bos_token_id = read.one_id("bos_token_id")?.or(self.bos_token_id);
        self.pad_token_id = read.one_id("pad_token_id")?.or(self.pad_token_id);
        self.validate(path)
    }

    /// Checks that the sizes fit each other; `path` is named in errors.
    ///
    /// # Errors
    /// The first field that does not fit.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let object = Map::new();
        let read = Reader { path, object: &object };
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if let Some((field, _)) = sizes.iter().find(|(_, n)| *n == 0) {
            return read.fail(field, "expected a positive whole number, found 0", "Correct it");
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let problem =
                format!("{} does not divide the {} heads", self.num_key_value_heads, self.num_attention_heads);
            return read.fail("num_key_value_heads", problem, "Use a divisor of num_attention_heads");
        }
        if !self.head_dim.is_multiple_of(2) {
            let problem = format!("{} is odd, but rotary positions turn pairs of channels", self.head_dim);
            return read.fail("head_dim", problem, "Use an even size of a head");
        }
        let numbers = [
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
            ("initializer_range", self.initializer_range),
        ];
        if let Some((field, x)) = numbers.iter().find(|(_, x)| !(x.is_finite() && *x > 0.0)) {
            return read.fail(field, format!("expected a positive number, found {x}"), "Correct it");
        }
        let eos = self.eos_token_ids.iter().map(|id| ("eos_token_id", *id));
        let others = [("bos_token_id", self.bos_token_id), ("pad_token_id", self.pad_token_id)];
        let others = others.into_iter().filter_map(|(field, id)| Some((field, id?)));
        for (field, id) in eos.chain(others) {
            if id as usize >= self.vocab_size {
                let problem = format!("{id} lies outside the vocabulary of {} tokens", self.vocab_size);
                return read.fail(field, problem, "Correct the id, or vocab_size");
            }
        }
        Ok(())
    }

    /// The `config.json` of this model, readable by transformers 4 and 5: both spellings of the rotary base and of the
    /// number format are written.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": null,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "hidden_act": "silu",
            "attention_bias": false,
            "attention_dropout": 0.0,
            "mlp_bias": false,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_json(),
            "pad_token_id": self.pad_token_id,
            "initializer_range": self.initializer_range,
            "use_cache": true,
            "dtype": "float32",
            "torch_dtype": "float32",
        })
    }

    /// The `generation_config.json` of this model.
    pub fn generation_json(&self) -> Value {
        json!({
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_json(),
            "pad_token_id": self.pad_token_id,
        })
    }

    fn eos_json(&self) -> Value {
        match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        }
    }

    /// Names and shapes of all tensors of the model as `LlamaForCausalLM` stores them; linear weights are
    /// (outputs, inputs).
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (h, m) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let mut out = vec![("model.embed_tokens.weight".to_string(), vec![self.vocab_size, h])];
        for layer in 0..self.num_hidden_layers {
            let block: [(&str, Vec<usize>); 9] = [
                ("input_layernorm", vec![h]),
                ("self_attn.q_proj", vec![q, h]),
                ("self_attn.k_proj", vec![kv, h]),
                ("self_attn.v_proj", vec![kv, h]),
                ("self_attn.o_proj", vec![h, q]),
                ("post_attention_layernorm", vec![h]),
                ("mlp.gate_proj", vec![m, h]),
                ("mlp.up_proj", vec![m, h]),
                ("mlp.down_proj", vec![h, m]),
            ];
            out.extend(block.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
        }
        out.push(("model.norm.weight".to_string(), vec![h]));
        if !self.tie_word_embeddings {
            out.push(("lm_head.weight".to_string(), vec![self.vocab_size, h]));
        }
        out
    }
}
