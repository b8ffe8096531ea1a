//! Reading of small Hugging Face Llama checkpoints with their goldens.

use larpo_core::Error;
use larpo_core::backend::Backend;
use larpo_core::model::{ModelConfig, Transformer};
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

/// All plain Llama language models of the folder, of which there must be one at least.
pub fn llamas() -> Vec<Checkpoint> {
    let folder = match std::env::var_os("LARPO_GOLDEN_DIR") {
        Some(folder) => PathBuf::from(folder).join("models"),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models"),
    };
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("cannot read {}: {e}", folder.display()));
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    folders.sort();
    let found: Vec<Checkpoint> = folders.iter().filter_map(|folder| open(folder)).collect();
    assert!(!found.is_empty(), "no plain Llama checkpoint in {}", folder.display());
    found
}

fn open(folder: &Path) -> Option<Checkpoint> {
    let config = json(&folder.join("config.json"));
    // Other families and scaled rotary frequencies are other models.
    let scaling = config.pointer("/rope_parameters/rope_type").or(config.pointer("/rope_scaling/rope_type"));
    if config["architectures"][0] != "LlamaForCausalLM" || scaling.is_some_and(|kind| kind != "default") {
        return None;
    }
    let mut tensors = HashMap::new();
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable folder").path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            read_safetensors(&path, &mut tensors);
        }
    }
    Some(Checkpoint {
        name: folder.file_name().expect("a folder's name").to_string_lossy().into_owned(),
        config: model_config(&config),
        tensors,
        golden: json(&folder.join("golden.json")),
    })
}

/// The shape, from either form of `config.json`: with `rope_parameters`, or with `rope_theta` beside the rest.
fn model_config(config: &Value) -> ModelConfig {
    let count = |name: &str| id(&config[name]);
    let (hidden, heads) = (count("hidden_size"), count("num_attention_heads"));
    let theta = config.pointer("/rope_parameters/rope_theta").unwrap_or(&config["rope_theta"]);
    ModelConfig {
        head_dim: config["head_dim"].as_u64().map_or(hidden / heads, |d| d as usize),
        max_position_embeddings: count("max_position_embeddings"),
        rms_norm_eps: number(&config["rms_norm_eps"]),
        rope_theta: number(theta),
        tie_word_embeddings: config["tie_word_embeddings"].as_bool().expect("a flag"),
        ..ModelConfig::new(
            hidden,
            count("intermediate_size"),
            count("num_hidden_layers"),
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
fn read_safetensors(path: &Path, tensors: &mut HashMap<String, Vec<f32>>) {
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

fn json(path: &Path) -> Value {
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
