//! Reading of small Hugging Face checkpoints of all families with their goldens.
#![allow(dead_code, reason = "each test file uses its part")]

use larpo_core::Error;
use larpo_core::backend::{Activation, Backend};
use larpo_core::model::{Head, Lora, ModelConfig, Naming, Norm, Positions, RopeScaling, Transformer};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A checkpoint's config, tensors and goldens.
pub struct Checkpoint {
    pub name: String,
    config: ModelConfig,
    tensors: HashMap<String, Vec<f32>>,
    golden: Value,
}

/// All language models of the folder, of which there must be one at least.
pub fn language_models() -> Vec<Checkpoint> {
    all("language model", |config| config.head != Head::Score)
}

/// All reward models of the folder, of which there must be one at least.
pub fn reward_models() -> Vec<Checkpoint> {
    all("reward model", |config| config.head == Head::Score)
}

fn all(kind: &str, of_kind: impl Fn(&ModelConfig) -> bool) -> Vec<Checkpoint> {
    let folder = match std::env::var_os("LARPO_GOLDEN_DIR") {
        Some(folder) => PathBuf::from(folder).join("models"),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models"),
    };
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("cannot read {}: {e}", folder.display()));
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    folders.sort();
    let found: Vec<Checkpoint> = folders.iter().map(|folder| open(folder)).filter(|c| of_kind(&c.config)).collect();
    assert!(!found.is_empty(), "no {kind} in {}", folder.display());
    found
}

/// One checkpoint.
pub fn open(folder: &Path) -> Checkpoint {
    let config = json(&folder.join("config.json"));
    let mut tensors = HashMap::new();
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable folder").path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            read_safetensors(&path, &mut tensors);
        }
    }
    // Masks, which original GPT-2 files carry, are no parameters.
    tensors.retain(|name, _| !name.ends_with(".attn.bias"));
    let mut config = model_config(&config);
    if let Naming::Gpt2 { prefix } = &mut config.naming
        && tensors.contains_key("wte.weight")
    {
        prefix.clear();
    }
    Checkpoint {
        name: folder.file_name().expect("a folder's name").to_string_lossy().into_owned(),
        config,
        tensors,
        golden: json(&folder.join("golden.json")),
    }
}

/// The shape, from either dialect of `config.json`.
fn model_config(config: &Value) -> ModelConfig {
    let family = config["model_type"].as_str().expect("a family");
    let count = |name: &str| id(&config[name]);
    if family == "gpt2" {
        let (hidden, heads) = (count("n_embd"), count("n_head"));
        let inner = config["n_inner"].as_u64().map_or(4 * hidden, |n| n as usize);
        return ModelConfig {
            max_position_embeddings: count("n_positions"),
            norm: Norm::Layer,
            norm_eps: number(&config["layer_norm_epsilon"]),
            positions: Positions::Learned,
            qkv_bias: true,
            out_bias: true,
            mlp_bias: true,
            activation: Activation::GeluTanh,
            gated: false,
            naming: Naming::Gpt2 { prefix: "transformer.".into() },
            ..ModelConfig::new(hidden, inner, count("n_layer"), heads, heads, count("vocab_size"))
        };
    }
    let (hidden, heads, layers) = (count("hidden_size"), count("num_attention_heads"), count("num_hidden_layers"));
    let rope = [&config["rope_parameters"], &config["rope_scaling"]].into_iter().find(|rope| rope.is_object());
    let of_rope = |name: &str| number(&rope.expect("scaled frequencies")[name]);
    let kind = rope.and_then(|rope| rope["rope_type"].as_str().or(rope["type"].as_str()));
    let scaling = match kind {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear(of_rope("factor")),
        Some("llama3") => RopeScaling::Llama3 {
            factor: of_rope("factor"),
            low_freq_factor: of_rope("low_freq_factor"),
            high_freq_factor: of_rope("high_freq_factor"),
            original_max_position_embeddings: of_rope("original_max_position_embeddings"),
        },
        Some(other) => panic!("rotary frequencies of the kind {other}"),
    };
    let theta = config.pointer("/rope_parameters/rope_theta").unwrap_or(&config["rope_theta"]);
    let gemma = family == "gemma2";
    let window = config["sliding_window"].as_u64().map(|w| w as usize);
    let windowed = |layer: usize| match (config["layer_types"][layer].as_str(), family) {
        (Some(kind), _) => kind == "sliding_attention",
        (None, "mistral") => true,
        (None, "gemma2") => layer.is_multiple_of(2),
        (None, _) => config["use_sliding_window"] == true && layer >= count("max_window_layers"),
    };
    let classifier = config["architectures"][0].as_str().expect("a name").ends_with("ForSequenceClassification");
    let head_dim = config["head_dim"].as_u64().map_or(hidden / heads, |d| d as usize);
    ModelConfig {
        head_dim,
        max_position_embeddings: count("max_position_embeddings"),
        norm: if gemma { Norm::RmsUnitOffset } else { Norm::Rms },
        norm_eps: number(&config["rms_norm_eps"]),
        post_norms: gemma,
        positions: Positions::Rotary { theta: number(theta), scaling },
        qkv_bias: family == "qwen2",
        head_norm: family == "qwen3",
        query_pre_attn_scalar: config["query_pre_attn_scalar"].as_f64().unwrap_or(head_dim as f64),
        attn_logit_softcapping: config["attn_logit_softcapping"].as_f64(),
        final_logit_softcapping: config["final_logit_softcapping"].as_f64(),
        sliding_window: window,
        windowed_layers: (0..layers).map(windowed).collect(),
        activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
        scale_embeddings: gemma,
        head: match &config["tie_word_embeddings"] {
            _ if classifier => Head::Score,
            Value::Bool(true) => Head::Tied,
            _ => Head::Untied,
        },
        ..ModelConfig::new(
            hidden,
            count("intermediate_size"),
            layers,
            heads,
            count("num_key_value_heads"),
            count("vocab_size"),
        )
    }
}

impl Checkpoint {
    /// The model on a backend; every tensor of the checkpoint must be used.
    pub fn model<B: Backend>(&self, backend: &B) -> Transformer<B> {
        let mut read = 0;
        let model = Transformer::from_checkpoint(backend, self.config.clone(), |tensor| {
            read += 1;
            self.tensors
                .get(&tensor.name)
                .cloned()
                .ok_or_else(|| Error::Tensor { name: tensor.name.clone(), problem: "missing".into() })
        })
        .unwrap_or_else(|e| panic!("{}: {e}", self.name));
        assert_eq!(read, self.tensors.len(), "{}: tensors that the model has not", self.name);
        model
    }

    /// The model with an adapter; every tensor of both must be used.
    pub fn adapted<B: Backend>(&self, backend: &B, lora: &Lora, adapter: &HashMap<String, Vec<f32>>) -> Transformer<B> {
        let config = ModelConfig { lora: Some(lora.clone()), ..self.config.clone() };
        let mut read = 0;
        let model = Transformer::from_checkpoint(backend, config, |tensor| {
            read += 1;
            self.tensors
                .get(&tensor.name)
                .or(adapter.get(&tensor.name))
                .cloned()
                .ok_or_else(|| Error::Tensor { name: tensor.name.clone(), problem: "missing".into() })
        });
        assert_eq!(read, self.tensors.len() + adapter.len(), "{}: tensors that the model has not", self.name);
        model.unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    pub fn field(&self, name: &str) -> &Value {
        &self.golden[name]
    }

    /// A list of cases, of which there must be one at least.
    pub fn array(&self, name: &str) -> &[Value] {
        let cases = items(&self.golden[name]);
        assert!(!cases.is_empty(), "{}: no {name}", self.name);
        cases
    }
}

/// The format: eight bytes with the length of a JSON header, the header, and the numbers at its offsets.
pub fn read_safetensors(path: &Path, tensors: &mut HashMap<String, Vec<f32>>) {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    let (length, rest) = bytes.split_first_chunk::<8>().expect("the length of the header");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: Value = serde_json::from_slice(header).expect("a JSON header");
    for (name, entry) in header.as_object().expect("an object of tensors") {
        if name == "__metadata__" {
            continue;
        }
        let ends = items(&entry["data_offsets"]);
        let bytes = &data[id(&ends[0])..id(&ends[1])];
        let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        let values = match entry["dtype"].as_str() {
            Some("F32") => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            // The upper half of a single-precision number.
            Some("BF16") => pairs().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect(),
            Some("F16") => pairs().map(half).collect(),
            other => panic!("{}: {name} has the type {other:?}", path.display()),
        };
        assert!(tensors.insert(name.clone(), values).is_none(), "{name} occurs twice");
    }
}

/// IEEE 754 half precision: one bit of sign, five of exponent, ten of fraction.
fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff) / 1024.0);
    match exponent {
        0 => sign * fraction * 2f32.powi(-14),
        31 => panic!("a weight is not a finite number"),
        _ => sign * (1.0 + fraction) * 2f32.powi(exponent - 15),
    }
}

pub fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn items(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is not an array"))
}

pub fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

pub fn numbers(value: &Value) -> Vec<f64> {
    items(value).iter().map(number).collect()
}

pub fn id(value: &Value) -> usize {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a count")) as usize
}

pub fn ids(value: &Value) -> Vec<u32> {
    items(value).iter().map(|v| id(v) as u32).collect()
}
