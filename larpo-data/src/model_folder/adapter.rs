//! A low-rank adapter as PEFT keeps it: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Fields that would change what the adapter computes are refused by name; every field comes out as it went in.

use super::form::{Entry, FORMATS, Format};
use super::weights::{self, Content, Output};
use super::{Stored, read_object, write_object};
use crate::error::{Error, Result};
use crate::files;
use regex::Regex;
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Name of the configuration's file.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Name of the weights' file.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Fields that say nothing about what is computed with an adapter that is there.
const INERT: [&str; 11] = [
    "peft_type",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "peft_version",
    // Whether the base stores matrices as (inputs, outputs) is the family's business.
    "fan_in_fan_out",
    "megatron_core",
    "qalora_group_size",
    "ensure_weight_tying",
];
/// Fields that are read.
const READ: [&str; 6] = ["r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "init_lora_weights"];

/// Which modules have an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Those with one of these names, or whose name ends in a dot and one of them.
    Names(Vec<String>),
    /// Those whose whole name this regular expression matches.
    Pattern(String),
    /// All products inside the blocks (PEFT's `all-linear`).
    AllLinear,
    /// Those that PEFT takes for the family: queries and values, or GPT-2's joint projection.
    Default,
}

impl Targets {
    /// From a list of names, of which one alone may be `all-linear` or a regular expression, told by its characters.
    pub fn of_names(names: &[String]) -> Self {
        match names {
            [] => Self::Default,
            [one] if one.eq_ignore_ascii_case("all-linear") => Self::AllLinear,
            [one] if one.contains(['*', '(', '[', '|', '\\', '+', '?', '^', '$']) => Self::Pattern(one.clone()),
            names => Self::Names(names.to_vec()),
        }
    }
}

/// Whether `module` is called `name`, or its last parts are.
fn is_called(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

/// What `adapter_config.json` says, understood and as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Whether the scale is `alpha / √rank` rather than `alpha / rank`.
    pub rslora: bool,
    /// Share of the adapter's input that is left out while training.
    pub dropout: f64,
    /// Which modules have one.
    pub targets: Targets,
    /// The model under the adapter: a folder, or a name on the hub.
    pub base: Option<String>,
    path: PathBuf,
    json: Map<String, Value>,
}

impl AdapterConfig {
    /// A new adapter on the model in the folder `base`. `targets` stay [`Targets::Default`] only until
    /// [`AdapterConfig::resolve`].
    pub fn new(rank: usize, alpha: f64, rslora: bool, dropout: f64, targets: Targets, base: &str) -> Self {
        // A whole number as PEFT writes it.
        let alpha_json = if alpha.fract() == 0.0 && alpha.abs() < 1e15 { json!(alpha as i64) } else { json!(alpha) };
        let json = json!({
            "alpha_pattern": {},
            "auto_mapping": null,
            "base_model_name_or_path": base,
            "bias": "none",
            "exclude_modules": null,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "loftq_config": {},
            "lora_alpha": alpha_json,
            "lora_bias": false,
            "lora_dropout": dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": rank,
            "rank_pattern": {},
            "revision": null,
            "target_modules": null,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": rslora,
        });
        let json = json.as_object().cloned().unwrap_or_default();
        let path = PathBuf::from(ADAPTER_CONFIG);
        Self { rank, alpha, rslora, dropout, targets, base: Some(base.into()), path, json }
    }

    /// Reads the `adapter_config.json` of a folder.
    ///
    /// # Errors
    /// A file that cannot be read, and as [`AdapterConfig::from_json`].
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join(ADAPTER_CONFIG);
        Self::from_json(&path, read_object(&path)?)
    }

    /// Reads an `adapter_config.json`; `path` is named in errors. Absent fields have PEFT's defaults.
    ///
    /// # Errors
    /// Another kind of adapter; a field that is malformed, or asks for what is not supported.
    pub fn from_json(path: &Path, json: Map<String, Value>) -> Result<Self> {
        let refusal = |field: &str, problem: String, mend: &str| Error::Config {
            path: path.into(),
            field: field.into(),
            problem,
            mend: mend.into(),
        };
        let fail = |field: &str, problem: String, mend: &str| Err(refusal(field, problem, mend));
        let get = |field: &str| json.get(field).filter(|value| !value.is_null());
        match get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            _ => {
                let found = json.get("peft_type").unwrap_or(&Value::Null);
                return fail(
                    "peft_type",
                    format!("adapters of the kind {found} are not supported"),
                    "Use a LoRA adapter",
                );
            }
        }
        for (field, value) in json.iter().filter(|(_, value)| !value.is_null()) {
            let neutral = match field.as_str() {
                name if INERT.contains(&name) || READ.contains(&name) => true,
                "bias" => value == "none",
                _ => *value == json!(false) || *value == json!({}) || *value == json!([]) || *value == json!(""),
            };
            if !neutral {
                return fail(
                    field,
                    format!("{value} is not supported"),
                    "Use a plain LoRA adapter, or merge it in PEFT first",
                );
            }
        }
        // Others change the base's weights when the adapter is put on.
        match get("init_lora_weights") {
            None | Some(Value::Bool(_)) => {}
            Some(Value::String(kind)) if kind == "gaussian" || kind == "orthogonal" => {}
            Some(other) => {
                let problem = format!("{other} changes the weights of the base, which is not supported");
                return fail("init_lora_weights", problem, "Convert it to a plain LoRA adapter in PEFT first");
            }
        }
        let number = |field: &str, default: f64| match get(field) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(number),
                None => Err(refusal(field, format!("expected a number, found {value}"), "Correct it")),
            },
        };
        let rank = match json.get("r").map_or(Some(8), Value::as_u64) {
            Some(rank @ 1..=65_536) => rank as usize,
            _ => return fail("r", format!("expected a rank of 1 or more, found {}", json["r"]), "Correct it"),
        };
        let rslora = match get("use_rslora") {
            None => false,
            Some(Value::Bool(flag)) => *flag,
            Some(value) => return fail("use_rslora", format!("expected true or false, found {value}"), "Correct it"),
        };
        let (alpha, dropout) = (number("lora_alpha", 8.0)?, number("lora_dropout", 0.0)?);
        if !(alpha.is_finite() && alpha > 0.0) {
            return fail("lora_alpha", format!("expected a number above 0, found {alpha}"), "Correct it");
        }
        if !(0.0..1.0).contains(&dropout) {
            return fail("lora_dropout", format!("expected a share from 0 to below 1, found {dropout}"), "Correct it");
        }
        let targets = match get("target_modules") {
            None => Targets::Default,
            Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => Targets::AllLinear,
            Some(Value::String(pattern)) => Targets::Pattern(pattern.clone()),
            Some(Value::Array(names)) if names.iter().all(Value::is_string) => {
                Targets::Names(names.iter().filter_map(Value::as_str).map(String::from).collect())
            }
            Some(other) => {
                let problem = format!("expected names or a regular expression, found {other}");
                return fail("target_modules", problem, "Correct it");
            }
        };
        let base = get("base_model_name_or_path").and_then(Value::as_str).map(String::from);
        Ok(Self { rank, alpha, rslora, dropout, targets, base, path: path.into(), json })
    }

    /// The configuration as it is written.
    pub fn json(&self) -> &Map<String, Value> {
        &self.json
    }

    /// The same adapter on the model in the folder `base`.
    pub fn with_base(mut self, base: &str) -> Self {
        self.json.insert("base_model_name_or_path".into(), json!(base));
        self.base = Some(base.into());
        self
    }

    fn fail<T>(&self, problem: String) -> Result<T> {
        Err(Error::Config {
            path: self.path.clone(),
            field: "target_modules".into(),
            problem,
            mend: "Name linear modules inside the blocks, such as q_proj and v_proj, or all-linear".into(),
        })
    }

    /// The modules that have an adapter, among the `linear` ones of a model.
    ///
    /// # Errors
    /// A regular expression that cannot be read, a module among the `others` (embedding, head, norms), or none at all.
    pub fn modules(&self, linear: &[String], others: &[String]) -> Result<Vec<String>> {
        let pattern = match &self.targets {
            // Python's `re.fullmatch`.
            Targets::Pattern(pattern) => match Regex::new(&format!("^(?:{pattern})$")) {
                Ok(pattern) => Some(pattern),
                Err(error) => return self.fail(format!("the regular expression {pattern:?} cannot be used: {error}")),
            },
            _ => None,
        };
        let defaults = ["q_proj", "v_proj", "c_attn"];
        let is_target = |module: &str| match &self.targets {
            Targets::AllLinear => linear.iter().any(|name| name == module),
            Targets::Default => defaults.iter().any(|name| is_called(module, name)),
            Targets::Names(names) => names.iter().any(|name| is_called(module, name)),
            Targets::Pattern(_) => pattern.as_ref().is_some_and(|pattern| pattern.is_match(module)),
        };
        if let Some(other) = others.iter().find(|module| is_target(module)) {
            return self
                .fail(format!("{other} is no linear module inside the model's blocks, and cannot have an adapter"));
        }
        let found: Vec<String> = linear.iter().filter(|module| is_target(module)).cloned().collect();
        match found.is_empty() {
            true => self.fail("none of the model's modules is among them".into()),
            false => Ok(found),
        }
    }

    /// Names that call none of the `modules`.
    pub fn unmatched(&self, modules: &[String]) -> Vec<&str> {
        let Targets::Names(names) = &self.targets else { return Vec::new() };
        let lost = names.iter().filter(|name| !modules.iter().any(|module| is_called(module, name)));
        lost.map(String::as_str).collect()
    }

    /// Writes out, for a new adapter, which `modules` it is on and whether the base stores its matrices as (inputs, outputs):
    /// what PEFT itself would find out.
    pub fn resolve(mut self, modules: &[String], fan_in_fan_out: bool) -> Self {
        let last = |module: &String| module.rsplit('.').next().unwrap_or_default().to_string();
        let target_modules = match &self.targets {
            Targets::Pattern(pattern) => json!(pattern),
            Targets::Names(names) => json!(names),
            Targets::AllLinear | Targets::Default => json!(modules.iter().map(last).collect::<BTreeSet<_>>()),
        };
        self.json.insert("target_modules".into(), target_modules);
        self.json.insert("fan_in_fan_out".into(), json!(fan_in_fan_out));
        self
    }
}

/// A folder with an adapter, whose configuration was understood and whose tensors are listed but not yet read.
#[derive(Debug)]
pub struct AdapterFolder {
    /// The configuration.
    pub config: AdapterConfig,
    weights: PathBuf,
    metadata: HashMap<String, String>,
    tensors: Vec<(String, Stored)>,
}

impl AdapterFolder {
    /// Whether a folder holds an adapter and no model.
    pub fn is_one(folder: impl AsRef<Path>) -> bool {
        let has = |name: &str| folder.as_ref().join(name).is_file();
        has(ADAPTER_CONFIG) && !has(super::WEIGHTS) && !has(super::INDEX)
    }

    /// Opens a folder: reads the configuration and the header of the weights.
    ///
    /// # Errors
    /// As [`AdapterConfig::read`]; weights that are missing, in another format of files, damaged or cut short.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let config = AdapterConfig::read(folder)?;
        let weights = folder.join(ADAPTER_WEIGHTS);
        if !weights.is_file() && folder.join("adapter_model.bin").is_file() {
            return Err(Error::Tensor {
                path: folder.join("adapter_model.bin"),
                name: String::new(),
                problem: "pickled weights are not read; save the adapter as safetensors in PEFT".into(),
            });
        }
        let header = weights::read_header(&weights)?;
        Ok(Self { config, weights, metadata: header.metadata, tensors: header.tensors })
    }

    fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.iter().find(|(own, _)| own == name).map(|(_, stored)| stored)
    }

    /// Names and shapes of the tensors, in the order of the file.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, stored)| (&name[..], &stored.info.shape[..]))
    }

    /// Compares the tensors with the expected names and shapes.
    ///
    /// # Errors
    /// Every tensor that is missing, not expected or of another shape.
    pub fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        let mut parts = Vec::new();
        let missing: Vec<&str> =
            expected.iter().filter(|(name, _)| self.get(name).is_none()).map(|(name, _)| &name[..]).collect();
        let wanted: HashMap<&str, &[usize]> = expected.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
        let extra: Vec<&str> = self.tensors().map(|(name, _)| name).filter(|name| !wanted.contains_key(name)).collect();
        if !missing.is_empty() {
            parts.push(format!("missing: {}", missing.join(", ")));
        }
        if !extra.is_empty() {
            parts.push(format!("unexpected: {}", extra.join(", ")));
        }
        for (name, found) in self.tensors() {
            if let Some(shape) = wanted.get(name).filter(|shape| **shape != found) {
                parts.push(format!("{name} has shape {found:?}, expected {shape:?}"));
            }
        }
        match parts.is_empty() {
            true => Ok(()),
            false => Err(Error::Tensor {
                path: self.weights.clone(),
                name: String::new(),
                problem: format!("the tensors do not fit {ADAPTER_CONFIG} and the base: {}", parts.join("; ")),
            }),
        }
    }

    /// Reads one tensor as f32, row-major.
    ///
    /// # Errors
    /// No such tensor, another number format, or a file that cannot be read.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        match self.get(name) {
            Some(stored) => weights::read_f32(name, stored),
            None => Err(Error::Tensor {
                path: self.weights.clone(),
                name: name.into(),
                problem: "the adapter has no tensor of this name".into(),
            }),
        }
    }

    /// How this folder is written again.
    ///
    /// # Errors
    /// Texts of the weight file that are damaged.
    pub fn form(&self) -> Result<AdapterForm> {
        let mut metadata = self.metadata.clone();
        let formats: HashMap<String, Dtype> = match metadata.remove(FORMATS) {
            None => HashMap::new(),
            Some(text) => serde_json::from_str(&text).map_err(|error| Error::Tensor {
                path: self.weights.clone(),
                name: String::new(),
                problem: format!("`{FORMATS}` of the header cannot be read: {error}"),
            })?,
        };
        let entry = |(name, stored): &(String, Stored)| Entry {
            name: name.clone(),
            dtype: formats.get(name).copied().unwrap_or(stored.info.dtype),
            shape: stored.info.shape.clone(),
            content: Content::Given(name.clone()),
        };
        Ok(AdapterForm { config: self.config.clone(), metadata, tensors: self.tensors.iter().map(entry).collect() })
    }
}

/// How an adapter's folder is written: everything but the numbers.
#[derive(Debug, Clone)]
pub struct AdapterForm {
    config: AdapterConfig,
    metadata: HashMap<String, String>,
    tensors: Vec<Entry>,
}

impl AdapterForm {
    /// A new folder: the tensors in f32, sorted by name.
    pub fn fresh(config: AdapterConfig, tensors: &[(String, Vec<usize>)]) -> Self {
        let entry = |(name, shape): &(String, Vec<usize>)| Entry {
            name: name.clone(),
            dtype: Dtype::F32,
            shape: shape.clone(),
            content: Content::Given(name.clone()),
        };
        let mut tensors: Vec<Entry> = tensors.iter().map(entry).collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        Self { config, metadata, tensors }
    }

    /// The configuration.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The same form with all numbers in one format.
    pub fn with_format(&self, format: Format) -> Self {
        let mut form = self.clone();
        form.tensors.iter_mut().for_each(|tensor| tensor.dtype = format.dtype());
        form
    }

    /// Writes the folder, which is created where missing. `data` is asked for each tensor's numbers, row-major.
    ///
    /// # Errors
    /// Data whose length is not the product of its shape, a number that is not finite or not within its format (by tensor
    /// and element), a file that cannot be written.
    pub fn write<'a>(&self, folder: impl AsRef<Path>, data: impl FnMut(&str) -> Cow<'a, [f32]>) -> Result<()> {
        self.write_as(folder.as_ref(), false, data)
    }

    /// As [`AdapterForm::write`], but every number in f32, for an adapter that is trained on; the form of the folder that is
    /// read back is still this one.
    ///
    /// # Errors
    /// As [`AdapterForm::write`].
    pub fn write_f32<'a>(&self, folder: impl AsRef<Path>, data: impl FnMut(&str) -> Cow<'a, [f32]>) -> Result<()> {
        self.write_as(folder.as_ref(), true, data)
    }

    fn write_as<'a>(&self, folder: &Path, in_f32: bool, mut data: impl FnMut(&str) -> Cow<'a, [f32]>) -> Result<()> {
        files::create_folder(folder)?;
        let (mut metadata, mut formats) = (self.metadata.clone(), BTreeMap::new());
        let mut tensors = Vec::with_capacity(self.tensors.len());
        for Entry { name, dtype, shape, content } in &self.tensors {
            let mut output = Output { name, dtype: *dtype, shape, content };
            if in_f32 && *dtype != Dtype::F32 {
                formats.insert(name, *dtype);
                output.dtype = Dtype::F32;
            }
            tensors.push(output);
        }
        if !formats.is_empty() {
            metadata.insert(FORMATS.into(), json!(formats).to_string());
        }
        weights::write(&folder.join(ADAPTER_WEIGHTS), metadata, &tensors, &mut data)?;
        write_object(&folder.join(ADAPTER_CONFIG), &self.config.json)
    }
}
