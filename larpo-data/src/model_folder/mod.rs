//! A model as a Hugging Face folder: `config.json`, `generation_config.json` and safetensors weights.
//!
//! [`ModelFolder::open`] reads the configuration and the table of tensors; the numbers are read tensor by tensor
//! ([`ModelFolder::read_f32`]), so no more than one tensor is held at a time. [`ModelForm`] writes the same form again:
//! files, formats of numbers, and every field of the configuration. [`AdapterFolder`] and [`AdapterForm`] are the same for
//! PEFT's low-rank adapters. Nothing here computes with a model.

mod adapter;
mod config;
mod config_reader;
mod family;
mod form;
mod shape;
mod weights;

pub use adapter::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterConfig, AdapterFolder, AdapterForm, Targets};
pub use config::ModelConfig;
pub use form::{Format, ModelForm, write_config};
pub use shape::{Activation, Head, ModelShape, Naming, Norm, Positions, RopeScaling};

use crate::error::{Error, Result};
use crate::files;
use form::{Entry, FORMATS, WeightFile};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use weights::{Content, Header};

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
    files: Vec<File>,
    index: Option<Map<String, Value>>,
}

/// A weight file: its name, the texts in its header, and its tensors in order.
#[derive(Debug)]
struct File {
    name: String,
    metadata: HashMap<String, String>,
    order: Vec<String>,
}

/// A tensor that is no parameter, or another one's copy.
enum Extra {
    /// Rotary frequencies, or the number that old versions masked with.
    Buffer,
    /// GPT-2's causal mask.
    Mask,
    /// A head beside the embedding that it is tied to.
    Head,
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
        let mut config = Self::read_config(&path)?;
        let index_path = path.join(INDEX);
        let (files, index) = if path.join(WEIGHTS).is_file() || !index_path.is_file() {
            (vec![(WEIGHTS.into(), weights::read_header(&path.join(WEIGHTS))?)], None)
        } else {
            let index = read_object(&index_path)?;
            (read_sharded(&path, &index_path, &index)?, Some(index))
        };
        let mut tensors = BTreeMap::new();
        let file = |(name, header): (String, Header)| {
            let order = header.tensors.iter().map(|(name, _)| name.clone()).collect();
            tensors.extend(header.tensors);
            File { name, metadata: header.metadata, order }
        };
        let files = files.into_iter().map(file).collect();
        let layers = config.shape.num_hidden_layers;
        if layers > tensors.len() {
            return Err(Error::Config {
                path: path.join(CONFIG),
                field: "num_hidden_layers".into(),
                problem: format!("{layers} layers, but the weights are {} tensors", tensors.len()),
                mend: "Use the weights that belong to the configuration".into(),
            });
        }
        if tensors.contains_key("wte.weight") {
            config.without_prefix();
        }
        Ok(Self { config, path, tensors, files, index })
    }

    /// Reads `config.json` and `generation_config.json` alone, for a folder whose weights are not needed.
    ///
    /// # Errors
    /// As [`ModelFolder::open`] for the two configuration files.
    pub fn read_config(folder: impl AsRef<Path>) -> Result<ModelConfig> {
        let folder = folder.as_ref();
        let path = folder.join(CONFIG);
        let mut config = ModelConfig::from_json(&path, read_object(&path)?)?;
        let generation = folder.join(GENERATION_CONFIG);
        if generation.is_file() {
            config.apply_generation_config(&generation, read_object(&generation)?)?;
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

    /// The format of a tensor's numbers; `None` where the folder has none of that name, or it is of another format.
    pub fn format(&self, name: &str) -> Option<Format> {
        self.tensors.get(name).and_then(|stored| Format::of(stored.info.dtype))
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
    /// Extra tensors that are known to be harmless are not reported: `…rotary_emb.inv_freq`, `…attn.masked_bias` and GPT-2's
    /// `…attn.bias` of older files, and a `lm_head.weight` where the head is tied to the embedding.
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
        for (name, stored) in &self.tensors {
            if !wanted.contains_key(name.as_str()) && self.extra(name, stored).is_none() {
                report.unexpected.push(name.clone());
            }
        }
        report
    }

    fn extra(&self, name: &str, stored: &Stored) -> Option<Extra> {
        let shape = &self.config.shape;
        let gpt2 = matches!(shape.naming, Naming::Gpt2 { .. });
        match name {
            "lm_head.weight" if shape.head == Head::Tied => Some(Extra::Head),
            _ if gpt2 && name.ends_with(".attn.bias") && stored.info.shape.len() == 4 => Some(Extra::Mask),
            _ if name.ends_with("rotary_emb.inv_freq") || name.ends_with("attn.masked_bias") => Some(Extra::Buffer),
            _ => None,
        }
    }

    /// [`ModelFolder::check_names`], and a look into the harmless ones, as an error that lists every difference.
    ///
    /// # Errors
    /// Any tensor missing, unexpected or of another shape; a tied head that is not the embedding, a mask that is not causal;
    /// a file that cannot be read.
    pub fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        let report = self.check_names(expected);
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
        for (name, stored) in &self.tensors {
            match self.extra(name, stored) {
                Some(Extra::Head) => match self.tensors.get(&self.config.shape.embedding()) {
                    Some(embedding) if !weights::same(stored, embedding)? => {
                        parts.push(format!("{name} is not the embedding, but tie_word_embeddings is true"));
                    }
                    _ => {}
                },
                Some(Extra::Mask) if !weights::is_mask(stored)? => parts.push(format!("{name} is no causal mask")),
                _ => {}
            }
        }
        match parts.is_empty() {
            true => Ok(()),
            false => Err(Error::Tensor {
                path: self.path.clone(),
                name: String::new(),
                problem: format!("the tensors do not fit config.json: {}", parts.join("; ")),
            }),
        }
    }

    /// How this folder is written again.
    ///
    /// # Errors
    /// A buffer that cannot be read, texts of a weight file that are damaged.
    pub fn form(&self) -> Result<ModelForm> {
        let mut files = Vec::with_capacity(self.files.len());
        for File { name, metadata, order } in &self.files {
            let mut metadata = metadata.clone();
            let formats: HashMap<String, Dtype> = match metadata.remove(FORMATS) {
                None => HashMap::new(),
                Some(text) => serde_json::from_str(&text).map_err(|error| Error::Tensor {
                    path: self.path.join(name),
                    name: String::new(),
                    problem: format!("`{FORMATS}` of the header cannot be read: {error}"),
                })?,
            };
            let entry = |name: &String| {
                let stored = &self.tensors[name];
                let content = match self.extra(name, stored) {
                    None => Content::Given(name.clone()),
                    Some(Extra::Head) => Content::Given(self.config.shape.embedding()),
                    Some(Extra::Mask) => Content::Mask,
                    Some(Extra::Buffer) => Content::Bytes(weights::read_bytes(name, stored)?),
                };
                let dtype = formats.get(name).copied().unwrap_or(stored.info.dtype);
                Ok(Entry { name: name.clone(), dtype, shape: stored.info.shape.clone(), content })
            };
            let tensors = order.iter().map(entry).collect::<Result<_>>()?;
            files.push(WeightFile { name: name.clone(), metadata, tensors });
        }
        Ok(ModelForm { config: self.config.clone(), files, index: self.index.clone() })
    }
}

/// Reads the index of a sharded model and the header of every file it names.
fn read_sharded(folder: &Path, index: &Path, object: &Map<String, Value>) -> Result<Vec<(String, Header)>> {
    let fail = |field: String, problem: String| Error::Config {
        path: index.to_path_buf(),
        field,
        problem,
        mend: "Download the index and all its files again".into(),
    };
    let Some(Value::Object(map)) = object.get("weight_map") else {
        return Err(fail("weight_map".into(), "expected an object of tensor names and file names".into()));
    };
    let mut shards: BTreeMap<&str, Header> = BTreeMap::new();
    for (name, file) in map {
        let field = format!("weight_map.{name}");
        let is_name = |f: &&str| !f.contains(['/', '\\']) && !["", ".", ".."].contains(f);
        let Some(file) = file.as_str().filter(is_name) else {
            return Err(fail(field, format!("expected the name of a file in the same folder, found {file}")));
        };
        if !shards.contains_key(file) {
            shards.insert(file, weights::read_header(&folder.join(file))?);
        }
    }
    let held: HashSet<(&str, &str)> = shards
        .iter()
        .flat_map(|(file, header)| header.tensors.iter().map(|(name, _)| (*file, name.as_str())))
        .collect();
    let absent = |(name, file): &(&String, &Value)| !held.contains(&(file.as_str().unwrap_or_default(), name.as_str()));
    if let Some((name, file)) = map.iter().find(absent) {
        return Err(fail(format!("weight_map.{name}"), format!("{file} holds no tensor of this name")));
    }
    // A tensor in a file but not in the index, or in two files, would otherwise vanish.
    for (file, header) in &shards {
        let listed = |name: &String| map.get(name).and_then(Value::as_str) == Some(*file);
        if let Some((name, _)) = header.tensors.iter().find(|(name, _)| !listed(name)) {
            return Err(fail("weight_map".into(), format!("tensor `{name}` of `{file}` is not listed")));
        }
    }
    Ok(shards.into_iter().map(|(name, header)| (name.to_string(), header)).collect())
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

fn write_object(path: &Path, value: &Map<String, Value>) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).expect("a JSON value can be written");
    text.push('\n');
    files::write_bytes(path, text.as_bytes())
}
