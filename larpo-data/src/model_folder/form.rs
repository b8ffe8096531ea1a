//! How a model folder is written again: everything but the numbers.

use super::weights::{self, Content, Output};
use super::{CONFIG, GENERATION_CONFIG, INDEX, ModelConfig, WEIGHTS, read_object, write_object};
use crate::error::{Error, Result};
use crate::files;
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::str::FromStr;

/// Texts of a weight file under this name say in which formats its tensors are to be written, where they are kept as f32.
pub(super) const FORMATS: &str = "larpo.formats";

/// Formats of numbers that weights are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Single precision.
    F32,
    /// The upper half of single precision.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl FromStr for Format {
    type Err = String;

    /// By its name in `config.json`, or the short one.
    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "float32" | "f32" => Ok(Self::F32),
            "bfloat16" | "bf16" => Ok(Self::Bf16),
            "float16" | "f16" => Ok(Self::F16),
            other => Err(format!("{other:?} is no format of numbers; write float32, bfloat16 or float16")),
        }
    }
}

impl Format {
    pub(super) fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::BF16 => Some(Self::Bf16),
            Dtype::F16 => Some(Self::F16),
            _ => None,
        }
    }

    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }

    /// Its name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }
}

/// The form of a model folder: configuration, names of the weight files, and which tensor of which format lies where.
///
/// A folder that was read has one ([`super::ModelFolder::form`]), a new model too ([`ModelForm::fresh`]).
#[derive(Debug, Clone)]
pub struct ModelForm {
    pub(super) config: ModelConfig,
    pub(super) files: Vec<WeightFile>,
    /// The index of several files, as it was read.
    pub(super) index: Option<Map<String, Value>>,
}

#[derive(Debug, Clone)]
pub(super) struct WeightFile {
    pub(super) name: String,
    pub(super) metadata: HashMap<String, String>,
    pub(super) tensors: Vec<Entry>,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) content: Content,
}

impl Entry {
    fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8) as u64
    }
}

impl ModelForm {
    /// A new folder: the tensors in f32, in one file, sorted by name.
    pub fn fresh(config: ModelConfig, tensors: &[(String, Vec<usize>)]) -> Self {
        let entry = |(name, shape): &(String, Vec<usize>)| Entry {
            name: name.clone(),
            dtype: Dtype::F32,
            shape: shape.clone(),
            content: Content::Given(name.clone()),
        };
        let mut tensors: Vec<Entry> = tensors.iter().map(entry).collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        // "pt" is what transformers looks for before it loads a file.
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        Self { config, files: vec![WeightFile { name: WEIGHTS.into(), metadata, tensors }], index: None }
    }

    /// The same form with all weights in one format, which the configuration then names.
    pub fn with_format(&self, format: Format) -> Self {
        let mut form = self.clone();
        let given = |tensor: &&mut Entry| matches!(tensor.content, Content::Given(_));
        let tensors = form.files.iter_mut().flat_map(|file| &mut file.tensors);
        tensors.filter(given).for_each(|tensor| tensor.dtype = format.dtype());
        form.config.set_format(format.name());
        form
    }

    /// The same form with the weights in as many files as it takes for none to hold more than `most` bytes of tensors, but
    /// for a single tensor that is larger; one file where that is enough.
    pub fn in_shards(&self, most: u64) -> Self {
        let mut shards: Vec<Vec<Entry>> = Vec::new();
        let mut held = 0;
        for entry in self.files.iter().flat_map(|file| &file.tensors) {
            let bytes = entry.bytes();
            match shards.last_mut().filter(|_| held + bytes <= most) {
                Some(shard) => shard.push(entry.clone()),
                None => {
                    shards.push(vec![entry.clone()]);
                    held = 0;
                }
            }
            held += bytes;
        }
        let metadata = self.files.first().map(|file| file.metadata.clone()).unwrap_or_default();
        let count = shards.len();
        let name = |i: usize| match count {
            1 => WEIGHTS.to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        let file = |(i, tensors)| WeightFile { name: name(i), metadata: metadata.clone(), tensors };
        let files: Vec<WeightFile> = shards.into_iter().enumerate().map(file).collect();
        let mut map = BTreeMap::new();
        files.iter().for_each(|file| map.extend(file.tensors.iter().map(|tensor| (&tensor.name, &file.name))));
        let index = json!({ "metadata": { "total_size": 0 }, "weight_map": map }).as_object().cloned();
        Self { config: self.config.clone(), index: index.filter(|_| count > 1), files }
    }

    /// Names of the weight files.
    pub fn files(&self) -> Vec<&str> {
        self.files.iter().map(|file| &file.name[..]).collect()
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Writes the folder, which is created where missing: weights in the formats and files of this form, then
    /// configuration. Each file is written under a temporary name, forced to disk and renamed.
    ///
    /// `data` is asked for each tensor's numbers (row-major) in the order of the files, so a caller need not hold them
    /// all.
    ///
    /// # Errors
    /// Data whose length is not the product of its shape, a number that is not finite or not within its format (by tensor
    /// and element), a file that cannot be written.
    pub fn write<'a>(&self, folder: impl AsRef<Path>, data: impl FnMut(&str) -> Cow<'a, [f32]>) -> Result<()> {
        self.write_as(folder.as_ref(), false, data)
    }

    /// As [`ModelForm::write`], but every number in f32: for a model that is trained on. The form of the folder that is
    /// read back from it is still this one.
    ///
    /// # Errors
    /// As [`ModelForm::write`].
    pub fn write_f32<'a>(&self, folder: impl AsRef<Path>, data: impl FnMut(&str) -> Cow<'a, [f32]>) -> Result<()> {
        self.write_as(folder.as_ref(), true, data)
    }

    fn write_as<'a>(&self, folder: &Path, in_f32: bool, mut data: impl FnMut(&str) -> Cow<'a, [f32]>) -> Result<()> {
        files::create_folder(folder)?;
        let former = former_files(folder);
        let mut bytes = 0;
        for file in &self.files {
            let mut metadata = file.metadata.clone();
            let mut formats = BTreeMap::new();
            let mut tensors = Vec::with_capacity(file.tensors.len());
            for Entry { name, dtype, shape, content } in &file.tensors {
                let mut output = Output { name, dtype: *dtype, shape, content };
                if in_f32 && *dtype != Dtype::F32 && matches!(content, Content::Given(_)) {
                    formats.insert(name, *dtype);
                    output.dtype = Dtype::F32;
                }
                tensors.push(output);
            }
            if !formats.is_empty() {
                metadata.insert(FORMATS.into(), json!(formats).to_string());
            }
            weights::write(&folder.join(&file.name), metadata, &tensors, &mut data)?;
            bytes += tensors.iter().map(Output::bytes).sum::<usize>();
        }
        if let Some(index) = &self.index {
            let mut index = index.clone();
            if let Some(Value::Object(metadata)) = index.get_mut("metadata") {
                metadata.insert("total_size".into(), json!(bytes));
            }
            write_object(&folder.join(INDEX), &index)?;
        }
        // A folder that had a model in other files would be two models.
        let written =
            |name: &str| self.files.iter().any(|file| file.name == name) || (name == INDEX && self.index.is_some());
        for path in former.iter().filter(|name| !written(name)).map(|name| folder.join(name)) {
            fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
        }
        write_config(folder, &self.config)
    }
}

/// The weight files of a model that is in the folder.
fn former_files(folder: &Path) -> Vec<String> {
    let index = read_object(&folder.join(INDEX)).unwrap_or_default();
    let listed = index.get("weight_map").and_then(Value::as_object).into_iter().flat_map(|map| map.values());
    let plain = |name: &&str| name.ends_with(".safetensors") && !name.contains(['/', '\\']);
    let mut names: Vec<String> = listed.filter_map(Value::as_str).filter(plain).map(String::from).collect();
    names.extend([WEIGHTS.into(), INDEX.into()]);
    names.sort();
    names.dedup();
    names.retain(|name| folder.join(name).is_file());
    names
}

/// Writes `config.json` and `generation_config.json` alone.
///
/// # Errors
/// A file that cannot be written.
pub fn write_config(folder: impl AsRef<Path>, config: &ModelConfig) -> Result<()> {
    let folder = folder.as_ref();
    files::create_folder(folder)?;
    write_object(&folder.join(CONFIG), config.json())?;
    match config.generation_json() {
        Some(generation) => write_object(&folder.join(GENERATION_CONFIG), generation),
        None => Ok(()),
    }
}
