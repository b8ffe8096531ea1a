//! `config.json` and `generation_config.json`, in the dialects of transformers 4 and 5.

use super::config_reader::Reader;
use super::family;
use super::shape::{Head, ModelShape, Naming, Positions};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What `config.json` and `generation_config.json` say, understood and as they are.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Shape of the model.
    pub shape: ModelShape,
    /// Beginning-of-sequence id.
    pub bos_token_id: Option<u32>,
    /// End-of-sequence ids: generation stops at any of them. Empty where none is given.
    pub eos_token_ids: Vec<u32>,
    /// Padding id.
    pub pad_token_id: Option<u32>,
    json: Map<String, Value>,
    generation: Option<Map<String, Value>>,
}

impl ModelConfig {
    /// Reads a `config.json` alone.
    ///
    /// # Errors
    /// A file that cannot be read, and as [`ModelConfig::from_json`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_json(path, super::read_object(path)?)
    }

    /// Reads a `config.json`; `path` is named in errors. Absent fields take the defaults of transformers, except sizes,
    /// which must be given, and token ids, which stay unset.
    ///
    /// # Errors
    /// An unsupported architecture; a field that is missing, malformed, unknown, or asks for arithmetic that is not
    /// supported.
    pub fn from_json(path: &Path, object: Map<String, Value>) -> Result<Self> {
        let read = Reader { path, object: &object };
        let (family, classifier) = read.family()?;
        read.check_unsupported(family)?;
        let config = Self {
            shape: read.shape(family, classifier)?,
            bos_token_id: read.one_id("bos_token_id")?,
            eos_token_ids: read.ids("eos_token_id")?,
            pad_token_id: read.one_id("pad_token_id")?,
            json: Map::new(),
            generation: None,
        };
        config.check(&read)?;
        Ok(Self { json: object, ..config })
    }

    /// Takes over a `generation_config.json`, whose token ids win.
    ///
    /// # Errors
    /// An id that is none, or lies outside the vocabulary.
    pub fn apply_generation_config(&mut self, path: &Path, object: Map<String, Value>) -> Result<()> {
        let read = Reader { path, object: &object };
        if read.get("eos_token_id").is_some() {
            self.eos_token_ids = read.ids("eos_token_id")?;
        }
        self.bos_token_id = read.one_id("bos_token_id")?.or(self.bos_token_id);
        self.pad_token_id = read.one_id("pad_token_id")?.or(self.pad_token_id);
        self.check(&read)?;
        self.generation = Some(object);
        Ok(())
    }

    /// The configuration of a new Llama model, readable by transformers 4 and 5: both spellings of the rotary base and of
    /// the number format are written. `bos`, `eos` and `pad` are token ids.
    ///
    /// # Errors
    /// Sizes that do not fit each other, an id outside the vocabulary, a shape of another family.
    pub fn llama(shape: &ModelShape, bos: Option<u32>, eos: &[u32], pad: Option<u32>) -> Result<Self> {
        let theta = match shape.positions {
            Positions::Rotary { theta, .. } => theta,
            Positions::Learned => 0.0,
        };
        let eos = match eos {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        };
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_hidden_layers,
            "num_attention_heads": shape.num_attention_heads,
            "num_key_value_heads": shape.num_key_value_heads,
            "head_dim": shape.head_dim,
            "max_position_embeddings": shape.max_position_embeddings,
            "rms_norm_eps": shape.norm_eps,
            "rope_theta": theta,
            "rope_scaling": null,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "hidden_act": "silu",
            "attention_bias": false,
            "attention_dropout": 0.0,
            "mlp_bias": false,
            "tie_word_embeddings": shape.head == Head::Tied,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "initializer_range": shape.initializer_range,
            "use_cache": true,
            "dtype": "float32",
            "torch_dtype": "float32",
        });
        let generation = json!({"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad});
        let path = Path::new("config.json");
        let mut read = Self::from_json(path, object(config))?;
        read.apply_generation_config(path, object(generation))?;
        if read.shape != *shape {
            return Err(Error::Config {
                path: path.into(),
                field: String::new(),
                problem: "the shape is no Llama's".into(),
                mend: "Begin with a config.json of its family".into(),
            });
        }
        Ok(read)
    }

    /// `config.json` as it was read.
    pub fn json(&self) -> &Map<String, Value> {
        &self.json
    }

    /// `generation_config.json` as it was read, where there was one.
    pub fn generation_json(&self) -> Option<&Map<String, Value>> {
        self.generation.as_ref()
    }

    /// Names the format of the weights under every name that the file has for it, or the one of transformers 5.
    /// The configuration of the sequence classifier with one label that has this model under its score head; `pad` is the
    /// padding id where the configuration names none.
    ///
    /// # Errors
    /// A family whose classifiers are not supported.
    pub fn classifier(mut self, path: &Path, pad: Option<u32>) -> Result<Self> {
        let kind = self.json.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let Some(name) = family::classifier_of(kind) else {
            return Err(Error::Config {
                path: path.into(),
                field: "model_type".into(),
                problem: format!("sequence classifiers of the kind \"{kind}\" are not supported"),
                mend: "Use a Llama, Mistral, Gemma 2 or Qwen2".into(),
            });
        };
        let pad = self.pad_token_id.or(pad);
        for (field, value) in [
            ("architectures", json!([name])),
            ("id2label", json!({"0": "LABEL_0"})),
            ("label2id", json!({"LABEL_0": 0})),
            ("pad_token_id", json!(pad)),
        ] {
            self.json.insert(field.into(), value);
        }
        Self::from_json(path, self.json)
    }

    /// The same configuration for a new model, whose tokenizer has these ids.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn with_ids(mut self, path: &Path, bos: Option<u32>, eos: &[u32], pad: Option<u32>) -> Result<Self> {
        let eos_json = match eos {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        };
        for (field, value) in [("bos_token_id", json!(bos)), ("eos_token_id", eos_json), ("pad_token_id", json!(pad))] {
            self.json.insert(field.into(), value);
        }
        Self::from_json(path, self.json)
    }

    pub(super) fn set_format(&mut self, name: &str) {
        let known: Vec<&str> =
            ["dtype", "torch_dtype"].into_iter().filter(|field| self.json.contains_key(*field)).collect();
        for field in if known.is_empty() { vec!["dtype"] } else { known } {
            self.json.insert(field.into(), json!(name));
        }
    }

    /// Original GPT-2 files lack the prefix of the names.
    pub(super) fn without_prefix(&mut self) {
        if let Naming::Gpt2 { prefix } = &mut self.shape.naming {
            prefix.clear();
        }
    }

    /// Checks that the numbers fit each other.
    fn check(&self, read: &Reader) -> Result<()> {
        let shape = &self.shape;
        if !shape.num_attention_heads.is_multiple_of(shape.num_key_value_heads) {
            let problem =
                format!("{} does not divide the {} heads", shape.num_key_value_heads, shape.num_attention_heads);
            return read.fail("num_key_value_heads", problem, "Use a divisor of num_attention_heads");
        }
        if matches!(shape.positions, Positions::Rotary { .. }) && !shape.head_dim.is_multiple_of(2) {
            let problem = format!("{} is odd, but rotary positions turn pairs of channels", shape.head_dim);
            return read.fail("head_dim", problem, "Use an even size of a head");
        }
        let eos = self.eos_token_ids.iter().map(|id| ("eos_token_id", *id));
        let others = [("bos_token_id", self.bos_token_id), ("pad_token_id", self.pad_token_id)];
        let others = others.into_iter().filter_map(|(field, id)| Some((field, id?)));
        for (field, id) in eos.chain(others) {
            if id as usize >= shape.vocab_size {
                let problem = format!("{id} lies outside the vocabulary of {} tokens", shape.vocab_size);
                return read.fail(field, problem, "Correct the id, or vocab_size");
            }
        }
        Ok(())
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}
