//! Reading the fields of a `config.json`, and refusing those that ask for another arithmetic.

use super::family::Family;
use super::shape::RopeScaling;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

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
    "output_past",
    "neftune_noise_alpha",
];

/// Fields that change the arithmetic, with the only value under which they change nothing (besides null).
fn neutral(key: &str) -> Option<Value> {
    Some(match key {
        "hidden_act" => json!("silu"),
        "attention_bias"
        | "mlp_bias"
        | "use_sliding_window"
        | "use_bidirectional_attention"
        | "use_mrope"
        | "rope_interleaved"
        | "scale_attn_by_inverse_layer_idx"
        | "is_encoder_decoder"
        | "add_cross_attention"
        | "tie_encoder_decoder" => json!(false),
        "scale_attn_weights" => json!(true),
        "attention_dropout" => json!(0.0),
        "partial_rotary_factor" => json!(1.0),
        "pruned_heads" => json!({}),
        _ => return None,
    })
}

/// Reads one field after the other and names the one that is wrong.
pub(super) struct Reader<'a> {
    pub(super) path: &'a Path,
    pub(super) object: &'a Map<String, Value>,
}

impl Reader<'_> {
    pub(super) fn fail<T>(&self, field: &str, problem: impl Into<String>, mend: impl Into<String>) -> Result<T> {
        Err(Error::Config { path: self.path.into(), field: field.into(), problem: problem.into(), mend: mend.into() })
    }

    /// The field, where it exists and is not null.
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn size(&self, field: &str, default: Option<usize>) -> Result<usize> {
        match (self.get(field), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => self.fail(field, "the field is missing", format!("Add it, for example \"{field}\": 256")),
            (Some(value), _) => match value.as_u64().filter(|&n| n > 0 && n < 1 << 31) {
                Some(n) => Ok(n as usize),
                None => self.fail(
                    field,
                    format!("expected a whole number from 1 to 2147483647, found {value}"),
                    "Correct it",
                ),
            },
        }
    }

    pub(super) fn positive(&self, field: &str, default: f64) -> Result<f64> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => match value.as_f64().filter(|x| x.is_finite() && *x > 0.0) {
                Some(x) => Ok(x),
                None => self.fail(field, format!("expected a positive number, found {value}"), "Correct it"),
            },
        }
    }

    pub(super) fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => self.fail(field, format!("expected true or false, found {value}"), "Correct it"),
        }
    }

    /// Token ids: null, one number, or a list.
    pub(super) fn ids(&self, field: &str) -> Result<Vec<u32>> {
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

    pub(super) fn one_id(&self, field: &str) -> Result<Option<u32>> {
        let ids = self.ids(field)?;
        if ids.len() > 1 {
            return self.fail(field, format!("expected one token id, found {ids:?}"), "Keep the one that is meant");
        }
        Ok(ids.first().copied())
    }

    /// Refuses by name every field that is not known to be harmless.
    pub(super) fn check_unsupported(&self, family: Family) -> Result<()> {
        for (field, value) in self.object {
            let known = INERT.contains(&field.as_str()) || family.reads(field) || field.starts_with('_');
            if known || value.is_null() || field.starts_with("unsloth_") {
                continue;
            }
            // Listed by Qwen-like configurations even where no window is used.
            let unused_window =
                field == "sliding_window" && self.object.get("use_sliding_window") == Some(&json!(false));
            if unused_window {
                continue;
            }
            if field == "layer_types" {
                // The family has the same attention in every layer.
                let window = family == Family::Mistral && self.object.get("sliding_window") != Some(&Value::Null);
                let kind = if window { "sliding_attention" } else { "full_attention" };
                if value.as_array().is_some_and(|kinds| kinds.iter().all(|of_layer| of_layer == kind)) {
                    continue;
                }
                let problem = format!("{value} is not supported, only \"{kind}\" for every layer, by `sliding_window`");
                return self.fail(field, problem, "Correct it or `sliding_window`, or use another model");
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

    /// A whole number that may be 0.
    pub(super) fn count(&self, field: &str, default: usize) -> Result<usize> {
        match self.get(field) {
            None => Ok(default),
            Some(value) if value.as_u64() == Some(0) => Ok(0),
            Some(_) => self.size(field, None),
        }
    }

    /// The rotary base and what was changed about the frequencies, from `rope_parameters` (transformers 5), or
    /// `rope_theta` and `rope_scaling` (transformers 4).
    pub(super) fn rope(&self) -> Result<(f64, RopeScaling)> {
        let mut theta = self.get("rope_theta").map(|_| self.positive("rope_theta", 0.0)).transpose()?;
        let mut scaling: Option<RopeScaling> = None;
        for field in ["rope_parameters", "rope_scaling"] {
            let Some(value) = self.get(field) else { continue };
            let Value::Object(object) = value else {
                return self.fail(field, format!("expected an object or null, found {value}"), "Correct it");
            };
            let inner = Rope { reader: self, field, object };
            if let Some(x) = inner.number("rope_theta")? {
                if theta.is_some_and(|other| other != x) {
                    let problem = format!("{x} contradicts `rope_theta`");
                    return self.fail(&format!("{field}.rope_theta"), problem, "Make both the same");
                }
                theta = Some(x);
            }
            let found = inner.scaling()?;
            if scaling.is_some_and(|other| other != found) {
                return self.fail(field, "it contradicts `rope_parameters`", "Make both the same, or remove one");
            }
            scaling = Some(found);
        }
        Ok((theta.unwrap_or(10_000.0), scaling.unwrap_or(RopeScaling::None)))
    }
}

/// `rope_parameters` or `rope_scaling`.
struct Rope<'a> {
    reader: &'a Reader<'a>,
    field: &'a str,
    object: &'a Map<String, Value>,
}

impl Rope<'_> {
    fn fail<T>(&self, key: &str, problem: impl Into<String>, mend: &str) -> Result<T> {
        self.reader.fail(&format!("{}.{key}", self.field), problem, mend)
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.object.get(key).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|x| x.is_finite() && *x > 0.0) {
                Some(x) => Ok(Some(x)),
                None => self.fail(key, format!("expected a positive number, found {value}"), "Correct it"),
            },
        }
    }

    fn needed(&self, key: &str) -> Result<f64> {
        match self.number(key)? {
            Some(x) => Ok(x),
            None => self.fail(key, "the field is missing", "Add it"),
        }
    }

    fn scaling(&self) -> Result<RopeScaling> {
        // Old files say `type`.
        let kind = ["rope_type", "type"].into_iter().find_map(|key| Some((key, self.object.get(key)?)));
        let known: &[&str] = match kind.and_then(|(_, kind)| kind.as_str()).unwrap_or("default") {
            "linear" => &["factor"],
            "llama3" => &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
            _ => &[],
        };
        let is_known = |kind: &Value| matches!(kind.as_str(), Some("default" | "linear" | "llama3"));
        if let Some((key, other)) = kind.filter(|(_, kind)| !is_known(kind)) {
            let problem = format!("{other} is not supported, only \"default\", \"linear\" and \"llama3\"");
            return self.fail(key, problem, "Use another model");
        }
        for (key, value) in self.object {
            let neutral = key == "partial_rotary_factor" && same_number(value, &json!(1.0));
            let read = ["rope_type", "type", "rope_theta"].contains(&key.as_str()) || known.contains(&key.as_str());
            if !(read || neutral || value.is_null()) {
                let only = if key == "partial_rotary_factor" { ", only 1.0" } else { "" };
                return self.fail(key, format!("{value} is not supported{only}"), "Use another model");
            }
        }
        match kind {
            Some((_, kind)) if kind == "linear" => Ok(RopeScaling::Linear(self.needed("factor")?)),
            Some((_, kind)) if kind == "llama3" => {
                let [factor, low_freq_factor, high_freq_factor, original_max_position_embeddings] =
                    [known[0], known[1], known[2], known[3]].map(|key| self.needed(key));
                let (low, high) = (low_freq_factor?, high_freq_factor?);
                if low >= high {
                    let problem = format!("{low} is not below high_freq_factor = {high}");
                    return self.fail("low_freq_factor", problem, "Correct it");
                }
                Ok(RopeScaling::Llama3 {
                    factor: factor?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position_embeddings: original_max_position_embeddings?,
                })
            }
            _ => Ok(RopeScaling::None),
        }
    }
}

/// 1 and 1.0 are the same setting.
fn same_number(a: &Value, b: &Value) -> bool {
    matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}
