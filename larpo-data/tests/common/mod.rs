//! Helpers of the integration tests.
#![allow(dead_code)] // each test file uses some of them

use larpo_data::model_folder::{ModelConfig, ModelForm, ModelShape};
use serde_json::json;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder that is removed at the end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("larpo-data-test-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into the folder.
    pub fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, contents).unwrap();
        path
    }

    /// The names of all files, sorted: nothing temporary may remain.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The folder that a variable names, or the crate's own small copy.
pub fn fixtures(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"),
    }
}

/// Asserts that a message holds every one of the parts.
#[track_caller]
pub fn holds(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
}

/// Token ids of a golden.
pub fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The folders of the golden tokenizers.
pub fn golden_tokenizers() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixtures("LARPO_GOLDEN_DIR").join("tokenizers")).unwrap();
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
}

/// A tiny Llama; its fields are those of `config.json`.
pub fn llama(tied: bool) -> ModelShape {
    let object = json!({
        "model_type": "llama",
        "vocab_size": 7,
        "hidden_size": 6,
        "intermediate_size": 5,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "tie_word_embeddings": tied,
    });
    let object = object.as_object().unwrap().clone();
    ModelConfig::from_json(Path::new("config.json"), object).unwrap().shape
}

/// The configuration of such a model with an end-of-text and a padding token.
pub fn config(tied: bool) -> ModelConfig {
    ModelConfig::llama(&llama(tied), None, &[2], Some(1)).unwrap()
}

/// The tensors of such a model.
pub fn tensors(shape: &ModelShape) -> Vec<(String, Vec<usize>)> {
    let mut tensors: Vec<(&str, Vec<usize>)> = vec![
        ("model.embed_tokens", vec![7, 6]),
        ("model.layers.0.input_layernorm", vec![6]),
        ("model.layers.0.self_attn.q_proj", vec![8, 6]),
        ("model.layers.0.self_attn.k_proj", vec![4, 6]),
        ("model.layers.0.self_attn.v_proj", vec![4, 6]),
        ("model.layers.0.self_attn.o_proj", vec![6, 8]),
        ("model.layers.0.post_attention_layernorm", vec![6]),
        ("model.layers.0.mlp.gate_proj", vec![5, 6]),
        ("model.layers.0.mlp.up_proj", vec![5, 6]),
        ("model.layers.0.mlp.down_proj", vec![6, 5]),
        ("model.norm", vec![6]),
    ];
    if shape.head == larpo_data::model_folder::Head::Untied {
        tensors.push(("lm_head", vec![7, 6]));
    }
    tensors.into_iter().map(|(name, shape)| (format!("{name}.weight"), shape)).collect()
}

/// Distinct numbers for a tensor, from its name.
pub fn numbers(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed: u32 = name.bytes().map(u32::from).sum();
    (0..shape.iter().product::<usize>()).map(|i| (seed as f32 + i as f32 * 0.37).sin() / 3.0).collect()
}

/// Writes those tensors with their numbers.
pub fn write(folder: &Path, config: &ModelConfig, tensors: &[(String, Vec<usize>)]) {
    let shape = |name: &str| &tensors.iter().find(|(n, _)| n == name).unwrap().1;
    let form = ModelForm::fresh(config.clone(), tensors);
    form.write(folder, |name| Cow::Owned(numbers(name, shape(name)))).unwrap();
}
