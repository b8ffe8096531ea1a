//! A model as a Hugging Face folder: `config.json`, `generation_config.json` and safetensors weights.
//!
//! [`ModelFolder::open`] reads the configuration and the table of tensors; the numbers are read tensor by tensor
//! ([`ModelFolder::read_f32`]), so no more than one tensor is held at a time. [`write_model`] writes the same form.
//! Nothing here computes with a model.

mod config;
mod config_reader;
mod weights;

pub use config::ModelConfig;

use crate::error::{Error, Result};
use crate::files;
use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Names of the files of a folder.
const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A model folder whose configuration was understood and whose tensors are listed but not yet read.
#[derive(Debug)]
pub struct ModelFolder {
    /// The model's configuration, end-of-sequence ids as `generation_config.json` has them.
    pub config: ModelConfig,
    path: PathBuf,
    tensors: BTreeMap<String, Stored>,
}

/// Where a tensor's numbers lie.
#[derive(Debug)]
struct Stored {
    file: PathBuf,
    /// Offset of the data section in the file, in bytes.
    data_start: u64,
    info: TensorInfo,
}

/// How the tensors of a folder differ from the expected ones. See [`ModelFolder::check_names`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NameReport {
    /// Expected and absent.
    pub missing: Vec<String>,
    /// Present and not expected.
    pub unexpected: Vec<String>,
    /// Present with another shape: name, expected shape, shape found.
    pub misshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl NameReport {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshaped.is_empty()
    }
}

impl ModelFolder {
    /// Opens a folder: reads `config.json`, `generation_config.json` (where it exists; its ids win) and the headers of
    /// `model.safetensors` or of the files that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// A missing file; a configuration field that is absent, malformed or asks for something that is not supported (by
    /// name); a safetensors file that is damaged or cut short; an index that does not fit its files.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().to_path_buf();
        let config = Self::read_config(&path)?;
        let index = path.join(INDEX);
        let tensors = if path.join(WEIGHTS).is_file() || !index.is_file() {
            weights::read_header(&path.join(WEIGHTS))?
        } else {
            read_sharded(&path, &index)?
        };
        Ok(Self { config, path, tensors })
    }

    /// Reads `config.json` and `generation_config.json` alone, for a folder whose weights are not needed.
    ///
    /// # Errors
    /// As [`ModelFolder::open`] for the two configuration files.
    pub fn read_config(folder: impl AsRef<Path>) -> Result<ModelConfig> {
        let folder = folder.as_ref();
        let path = folder.join(CONFIG);
        let mut config = ModelConfig::from_json(&path, &read_object(&path)?)?;
        let generation = folder.join(GENERATION_CONFIG);
        if generation.is_file() {
            config.apply_generation_config(&generation, &read_object(&generation)?)?;
        }
        Ok(config)
    }

    /// The names of all stored tensors, sorted.
    pub fn tensor_names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    /// The shape of a tensor; `None` where the folder has none of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|stored| stored.info.shape.as_slice())
    }

    /// Reads one tensor as f32 (from f32, bf16 or f16; the conversion is exact): its shape and its numbers in
    /// row-major order.
    ///
    /// # Errors
    /// No such tensor, another number format, or a file that cannot be read.
    pub fn read_f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let Some(stored) = self.tensors.get(name) else {
            return Err(Error::Tensor {
                path: self.path.clone(),
                name: name.into(),
                problem: "the folder has no tensor of this name".into(),
            });
        };
        let data = weights::read_f32(name, stored)?;
        Ok((stored.info.shape.clone(), data))
    }

    /// Compares the stored tensors with the expected names and shapes.
    ///
    /// Two kinds of extra tensors are known to be harmless and not reported: `…rotary_emb.inv_freq` buffers of older
    /// files, and a `lm_head.weight` where the head is tied to the embedding.
    pub fn check_names(&self, expected: &[(String, Vec<usize>)]) -> NameReport {
        let mut report = NameReport::default();
        let wanted: HashMap<&str, &[usize]> = expected.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
        for (name, shape) in expected {
            match self.shape(name) {
                None => report.missing.push(name.clone()),
                Some(found) if found != shape.as_slice() => {
                    report.misshaped.push((name.clone(), shape.clone(), found.to_vec()));
                }
                Some(_) => {}
            }
        }
        for name in self.tensors.keys() {
            let harmless =
                name.ends_with("rotary_emb.inv_freq") || (name == "lm_head.weight" && self.config.tie_word_embeddings);
            if !harmless && !wanted.contains_key(name.as_str()) {
                report.unexpected.push(name.clone());
            }
        }
        report
    }

    /// [`ModelFolder::check_names`] against [`ModelConfig::tensors`], as an error that lists every difference.
    ///
    /// # Errors
    /// Any tensor missing, unexpected or of another shape.
    pub fn check(&self) -> Result<()> {
        let report = self.check_names(&self.config.tensors());
        if report.is_empty() {
            return Ok(());
        }
        let mut parts = Vec::new();
        if !report.missing.is_empty() {
            parts.push(format!("missing: {}", report.missing.join(", ")));
        }
        if !report.unexpected.is_empty() {
            parts.push(format!("unexpected: {}", report.unexpected.join(", ")));
        }
        for (name, expected, found) in &report.misshaped {
            parts.push(format!("{name} has shape {found:?}, expected {expected:?}"));
        }
        Err(Error::Tensor {
            path: self.path.clone(),
            name: String::new(),
            problem: format!("the tensors do not fit config.json: {}", parts.join("; ")),
        })
    }
}

/// Writes `model.safetensors` (f32, tensor by tensor), `config.json` and `generation_config.json` into `folder`, which
/// is created where missing. Each file is written under a temporary name, forced to disk and renamed.
///
/// `tensors` gives names and shapes; `data` is asked for each tensor's numbers (row-major) in the order of the names,
/// so a caller need not hold them all. [`ModelConfig::tensors`] gives the list for a Llama model.
///
/// # Errors
/// A name given twice, data whose length is not the product of its shape, a number that is not finite (by tensor and
/// element), a configuration that is not valid, a file that cannot be written.
pub fn write_model<'a>(
    folder: impl AsRef<Path>,
    config: &ModelConfig,
    tensors: &[(String, Vec<usize>)],
    data: impl FnMut(&str) -> Cow<'a, [f32]>,
) -> Result<()> {
    let folder = folder.as_ref();
    files::create_folder(folder)?;
    config.validate(&folder.join(CONFIG))?;
    weights::write_f32(&folder.join(WEIGHTS), tensors, data)?;
    write_config(folder, config)
}

/// Writes `config.json` and `generation_config.json` alone.
///
/// # Errors
/// A configuration that is not valid, a file that cannot be written.
pub fn write_config(folder: impl AsRef<Path>, config: &ModelConfig) -> Result<()> {
    let folder = folder.as_ref();
    files::create_folder(folder)?;
    let path = folder.join(CONFIG);
    config.validate(&path)?;
    write_object(&path, &config.to_json())?;
    write_object(&folder.join(GENERATION_CONFIG), &config.generation_json())
}

/// Reads the index of a sharded model and the header of every file it names.
fn read_sharded(folder: &Path, index: &Path) -> Result<BTreeMap<String, Stored>> {
    let object = read_object(index)?;
    let fail = |field: String, problem: String| Error::Config {
        path: index.to_path_buf(),
        field,
        problem,
        mend: "Download the index and all its files again".into(),
    };
    let Some(Value::Object(map)) = object.get("weight_map") else {
        return Err(fail("weight_map".into(), "expected an object of tensor names and file names".into()));
    };
    let mut shards: HashMap<&str, BTreeMap<String, Stored>> = HashMap::new();
    let mut tensors = BTreeMap::new();
    for (name, file) in map {
        let field = format!("weight_map.{name}");
        let Some(file) = file.as_str().filter(|f| !f.contains(['/', '\\']) && *f != "..") else {
            return Err(fail(field, format!("expected the name of a file in the same folder, found {file}")));
        };
        if !shards.contains_key(file) {
            shards.insert(file, weights::read_header(&folder.join(file))?);
        }
        let stored = shards.get_mut(file).and_then(|shard| shard.remove(name));
        let Some(stored) = stored else {
            return Err(fail(field, format!("`{file}` holds no tensor of this name")));
        };
        tensors.insert(name.clone(), stored);
    }
    // A tensor in a file but not in the index would otherwise vanish.
    for (file, rest) in &shards {
        if let Some(name) = rest.keys().next() {
            return Err(fail("weight_map".into(), format!("tensor `{name}` of `{file}` is not listed")));
        }
    }
    Ok(tensors)
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let text = files::read_text(path)?;
    serde_json::from_str(&text).map_err(|error| Error::Config {
        path: path.to_path_buf(),
        field: String::new(),
        problem: format!("not a JSON object: {error}"),
        mend: "Repair the file, or download it again".into(),
    })
}

fn write_object(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).expect("a JSON value can be written");
    text.push('\n');
    files::write_bytes(path, text.as_bytes())
}
