//! `config.json` of a Llama model, in the dialects of transformers 4 and 5.

use crate::error::{Error, Result};
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

/// Fields that say nothing about the arithmetic of a forward or backward pass here.
const INERT: &[&str] = &[
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "use_cache",
    "pretraining_tp",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict",
    "return_dict_in_generate",
    "torchscript",
    "use_bfloat16",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "finetuning_task",
    "task_specific_params",
    "tokenizer_class",
    "prefix",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "initializer_range",
    "gradient_checkpointing",
    "chunk_size_feed_forward",
    "is_decoder",
    "cache_implementation",
    "max_length",
    "min_length",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "num_beams",
    "num_beam_groups",
    "num_return_sequences",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "diversity_penalty",
    "early_stopping",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "remove_invalid_values",
    "is_llama_config",
    "transformers.js_config",
    "attn_implementation",
    "max_window_layers",
];

/// Sizes and constants that [`ModelConfig::from_json`] reads.
const READ: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "tie_word_embeddings",
];

/// Fields that change the arithmetic, with the only value under which they change nothing (besides null).
fn neutral(key: &str) -> Option<Value> {
    Some(match key {
        "hidden_act" => json!("silu"),
        "attention_bias"
        | "mlp_bias"
        | "use_sliding_window"
        | "rope_interleaved"
        | "is_encoder_decoder"
        | "add_cross_attention"
        | "tie_encoder_decoder" => json!(false),
        "attention_dropout" => json!(0.0),
        "partial_rotary_factor" => json!(1.0),
        "pruned_heads" => json!({}),
        _ => return None,
    })
}

/// Reads one field after the other and names the one that is wrong.
struct Reader<'a> {
    path: &'a Path,
    object: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn fail<T>(&self, field: &str, problem: impl Into<String>, mend: impl Into<String>) -> Result<T> {
        Err(Error::Config { path: self.path.into(), field: field.into(), problem: problem.into(), mend: mend.into() })
    }

    /// The field, where it exists and is not null.
    fn get(&self, field: &str) -> Option<&Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    fn size(&self, field: &str, default: Option<usize>) -> Result<usize> {
        match (self.get(field), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => self.fail(field, "the field is missing", format!("Add it, for example \"{field}\": 256")),
            (Some(value), _) => match value.as_u64().filter(|&n| n > 0 && n < 1 << 31) {
                Some(n) => Ok(n as usize),
                None => self.fail(field, format!("expected a positive whole number, found {value}"), "Correct it"),
            },
        }
    }

    fn positive(&self, field: &str, default: f64) -> Result<f64> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => match value.as_f64().filter(|x| x.is_finite() && *x > 0.0) {
                Some(x) => Ok(x),
                None => self.fail(field, format!("expected a positive number, found {value}"), "Correct it"),
            },
        }
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => self.fail(field, format!("expected true or false, found {value}"), "Correct it"),
        }
    }

    /// Token ids: null, one number, or a list.
    fn ids(&self, field: &str) -> Result<Vec<u32>> {
        let values = match self.get(field) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let id = |value: &Value| match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
            Some(id) => Ok(id),
            // Some old files write -1 for "none"; guessing would be worse than asking.
            None => {
                self.fail(field, format!("expected a token id, found {value}"), "Write an id of 0 or more, or null")
            }
        };
        values.iter().map(id).collect()
    }

    fn one_id(&self, field: &str) -> Result<Option<u32>> {
        let ids = self.ids(field)?;
        if ids.len() > 1 {
            return self.fail(field, format!("expected one token id, found {ids:?}"), "Keep the one that is meant");
        }
        Ok(ids.first().copied())
    }

    fn check_architecture(&self) -> Result<()> {
        let mend = "Use a folder of a Llama language model (LlamaForCausalLM)";
        match self.get("model_type") {
            Some(Value::String(kind)) if kind == "llama" => {}
            Some(other) => return self.fail("model_type", format!("{other} is not supported, only \"llama\""), mend),
            None => return self.fail("model_type", "the field is missing, so the architecture is unknown", mend),
        }
        match self.get("architectures") {
            None => Ok(()),
            Some(value) if *value == json!(["LlamaForCausalLM"]) => Ok(()),
            Some(other) => {
                self.fail("architectures", format!("{other} is not supported, only [\"LlamaForCausalLM\"]"), mend)
            }
        }
    }

    /// Refuses by name every field that is not known to be harmless.
    fn check_unsupported(&self) -> Result<()> {
        for (field, value) in self.object {
            let known = INERT.contains(&field.as_str()) || READ.contains(&field.as_str()) || field.starts_with('_');
            if known || value.is_null() || field.starts_with("unsloth_") {
                continue;
            }
            // Listed by Qwen-like configurations even where no window is used.
            let unused_window =
                field == "sliding_window" && self.object.get("use_sliding_window") == Some(&json!(false));
            let full_attention = field == "layer_types"
                && value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "full_attention"));
            if unused_window || full_attention {
                continue;
            }
            match neutral(field) {
                Some(neutral) if *value == neutral || same_number(value, &neutral) => {}
                Some(neutral) => {
                    return self.fail(field, format!("{value} is not supported, only {neutral}"), "Use another model");
                }
                None => {
                    return self.fail(
                        field,
                        format!("{value} is not supported: the field is unknown here and may change the arithmetic"),
                        "If it changes nothing in the model's arithmetic, remove it from the file",
                    );
                }
            }
        }
        Ok(())
    }

    /// The rotary base from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4).
    fn rope_theta(&self) -> Result<f64> {
        let mut theta = self.get("rope_theta").map(|_| self.positive("rope_theta", 0.0)).transpose()?;
        for field in ["rope_parameters", "rope_scaling"] {
            let Some(value) = self.get(field) else { continue };
            let Value::Object(object) = value else {
                return self.fail(field, format!("expected an object or null, found {value}"), "Correct it");
            };
            for (key, value) in object {
                let inner = format!("{field}.{key}");
                match key.as_str() {
                    "rope_type" | "type" if value == "default" => {}
                    "rope_type" | "type" => {
                        return self.fail(
                            &inner,
                            format!("{value} is not supported, only \"default\""),
                            "Use another model",
                        );
                    }
                    "rope_theta" => {
                        let Some(x) = value.as_f64().filter(|x| x.is_finite() && *x > 0.0) else {
                            return self.fail(
                                &inner,
                                format!("expected a positive number, found {value}"),
                                "Correct it",
                            );
                        };
                        if theta.is_some_and(|other| other != x) {
                            return self.fail(&inner, format!("{x} contradicts `rope_theta`"), "Make both the same");
                        }
                        theta = Some(x);
                    }
                    "partial_rotary_factor" if same_number(value, &json!(1.0)) => {}
                    _ if value.is_null() => {}
                    _ => return self.fail(&inner, format!("{value} is not supported"), "Use another model"),
                }
            }
        }
        Ok(theta.unwrap_or(10_000.0))
    }
}

/// 1 and 1.0 are the same setting.
fn same_number(a: &Value, b: &Value) -> bool {
    matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
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
