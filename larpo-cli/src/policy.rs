//! A policy: a transformer with its tokenizer, as a Hugging Face folder on disk.

use crate::args::{BaseDtype, LoraArgs};
use crate::cmd::losses;
use crate::error::{Error, Result};
use crate::machine;
use crate::plan::{self, Dry};
use crate::run_record;
use larpo_core::backend::Backend;
use larpo_core::cpu::DryRun;
use larpo_core::model::{CheckpointTensor, Head, Lora, ModelConfig, Naming, Transformer};
use larpo_data::model_folder::{
    self, ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterConfig, AdapterFolder, AdapterForm, Format, ModelFolder, ModelForm,
    Targets,
};
use larpo_data::tokenizer::Tokenizer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// A model and the tokenizer that belongs to it.
pub struct Policy<B: Backend> {
    /// The transformer.
    pub model: Transformer<B>,
    /// The tokenizer, shared by every copy of the policy.
    pub tokenizer: Arc<Tokenizer>,
    /// Ids that end a response.
    pub eos_ids: Vec<u32>,
    /// How its folder is written; the base's folder where there is an adapter.
    pub form: Arc<ModelForm>,
    /// How the folder of its adapter is written, which is then all that is.
    pub adapter: Option<Arc<AdapterForm>>,
}

impl<B: Backend> Policy<B> {
    /// A fresh Llama of shape `config` for `tokenizer`. The vocabulary of `config` is kept where it is larger than the
    /// tokenizer's; ids without a token are never sampled.
    ///
    /// # Errors
    /// A shape that does not fit together, or a tokenizer with more tokens than the shape has room for.
    pub fn fresh(backend: &B, config: ModelConfig, tokenizer: impl Into<Arc<Tokenizer>>, seed: u64) -> Result<Self> {
        let parts = Parts::fresh(&config, tokenizer.into())?;
        Self::random(backend, config, parts, seed)
    }

    /// A policy with random weights.
    ///
    /// # Errors
    /// A shape that does not fit together, or needs more memory than there is.
    pub fn random(backend: &B, config: ModelConfig, parts: Parts, seed: u64) -> Result<Self> {
        check_memory(&config)?;
        Ok(parts.with(Transformer::random(backend, config, seed)?))
    }

    /// Reads a model folder.
    ///
    /// # Errors
    /// A file that is missing, damaged or of an unsupported kind, or tensors that do not fit the configuration.
    pub fn open(backend: &B, folder: &Path) -> Result<Self> {
        Opened::read(folder)?.load(backend)
    }

    /// The same policy with other weights.
    pub fn with_model(&self, model: Transformer<B>) -> Self {
        self.parts().with(model)
    }

    /// An independent copy of the weights.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(self.with_model(self.model.duplicate()?))
    }

    /// The same policy, written in this format of numbers, if one is given.
    pub fn written_in(mut self, format: Option<Format>) -> Self {
        match (format, &self.adapter) {
            (Some(format), Some(adapter)) => self.adapter = Some(Arc::new(adapter.with_format(format))),
            (Some(format), None) => self.form = Arc::new(self.form.with_format(format)),
            (None, _) => {}
        }
        self
    }

    /// What belongs to the model but its weights.
    pub fn parts(&self) -> Parts {
        Parts {
            tokenizer: self.tokenizer.clone(),
            eos_ids: self.eos_ids.clone(),
            form: self.form.clone(),
            adapter: self.adapter.clone(),
        }
    }

    /// The policy with the weights of another folder of the same run, of which one model is held at a time: where there is
    /// an adapter its base stays in memory, and the adapter's numbers are read.
    ///
    /// # Errors
    /// As [`Opened::read_as`] and [`Opened::load`]; another adapter than this one.
    pub fn reloaded(mut self, folder: &Path, kind: Kind) -> Result<Self> {
        let Some(own) = self.adapter.clone() else {
            let (backend, recompute) = (self.model.backend().clone(), self.model.config().gradient_checkpointing);
            drop(self);
            return Opened::read_as(folder, kind)?.recomputing(recompute).load(&backend);
        };
        let files = AdapterFolder::open(folder)?;
        let settings =
            |c: &AdapterConfig| (c.rank, c.alpha, c.rslora, c.dropout, c.json().get("target_modules").cloned());
        if settings(&files.config) != settings(own.config()) {
            return Err(Error::request(format!("{}: the adapter is another one than the run's", folder.display())));
        }
        files.check(&self.model.config().adapter_tensors())?;
        larpo_data::checksums::verify_listed(folder)?;
        let backend = self.model.backend().clone();
        let read = |tensor: &CheckpointTensor| finite(files.read_f32(&tensor.name)?, &tensor.name, folder);
        self.model.parameters_mut().import_trainable(&backend, read)?;
        Ok(self)
    }

    /// Writes the model folder: configuration, weights, tokenizer, in the files and formats of numbers that it was read
    /// from.
    ///
    /// # Errors
    /// A weight that is not finite or not within its format, a file that cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        save_model(&self.model, &self.parts(), Numbers::AsRead, folder)
    }

    /// As [`Policy::save`], with every bit of the weights, for a run that goes on from there.
    ///
    /// # Errors
    /// As [`Policy::save`].
    pub fn save_exactly(&self, folder: &Path) -> Result<()> {
        save_model(&self.model, &self.parts(), Numbers::Exact, folder)
    }

    /// Ids of a prompt, with the tokens its tokenizer puts in front (BOS).
    ///
    /// # Errors
    /// A text that the tokenizer cannot encode.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        encode_prompt(&self.tokenizer, text)
    }

    /// The ids that the tokenizer puts in front of every prompt: BOS, or nothing.
    ///
    /// # Errors
    /// As [`Policy::encode_prompt`].
    pub fn prompt_prefix(&self) -> Result<Vec<u32>> {
        prompt_prefix(&self.tokenizer)
    }

    /// Ids of a response that ends: its text and the end-of-text token.
    ///
    /// # Errors
    /// A text that the tokenizer cannot encode.
    pub fn encode_response(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode(text)?;
        ids.extend(self.eos_ids.first());
        Ok(ids)
    }
}

impl Policy<Dry> {
    /// A policy without weights: there for its tokenizer, its shape and its limits.
    ///
    /// # Errors
    /// A shape that does not fit together.
    pub fn blank(config: ModelConfig, parts: Parts) -> Result<Self> {
        // A backend of its own: what a plan counts is the planner's.
        let model = Transformer::unspecified(&Dry::new(DryRun::new()), config)?;
        Ok(parts.with(model))
    }
}

/// A policy but for its model.
#[derive(Clone)]
pub struct Parts {
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Ids that end a response.
    pub eos_ids: Vec<u32>,
    /// How the folder is written, or the base's where there is an adapter.
    pub form: Arc<ModelForm>,
    /// How the folder of an adapter is written.
    pub adapter: Option<Arc<AdapterForm>>,
}

impl Parts {
    /// Those of a new Llama.
    ///
    /// # Errors
    /// A shape that does not fit together, or of another family; a tokenizer with more tokens than it has room for.
    pub fn fresh(config: &ModelConfig, tokenizer: Arc<Tokenizer>) -> Result<Self> {
        config.validate()?;
        check_room(config, &tokenizer)?;
        let eos_ids: Vec<u32> = tokenizer.eos_id().into_iter().collect();
        let (bos, pad) = (tokenizer.bos_id(), tokenizer.pad_id());
        let json = model_folder::ModelConfig::llama(&same_fields(config)?, bos, &eos_ids, pad)?;
        let form = Arc::new(ModelForm::fresh(json, &config.checkpoint_tensors()));
        Ok(Self { tokenizer, eos_ids, form, adapter: None })
    }

    /// Those of a new model of the family and shape that a `config.json` describes, or the one in the folder `path`, and that
    /// shape. The tokenizer's special ids replace those of the file.
    ///
    /// # Errors
    /// A file that cannot be read or describes no model that is supported, a tokenizer with more tokens than it has room for.
    pub fn described(path: &Path, tokenizer: Arc<Tokenizer>) -> Result<(ModelConfig, Self)> {
        let path = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
        let json = model_folder::ModelConfig::read(&path)?;
        let refused = |error| Error::request(format!("{}: {error}", path.display()));
        let config = shape(&json, Kind::LanguageModel).map_err(refused)?;
        check_room(&config, &tokenizer).map_err(refused)?;
        let eos_ids: Vec<u32> = tokenizer.eos_id().into_iter().collect();
        let json = json.with_ids(&path, tokenizer.bos_id(), &eos_ids, tokenizer.pad_id())?;
        let form = Arc::new(ModelForm::fresh(json, &config.checkpoint_tensors()));
        Ok((config, Self { tokenizer, eos_ids, form, adapter: None }))
    }

    /// The policy with this model.
    pub fn with<B: Backend>(self, model: Transformer<B>) -> Policy<B> {
        let Self { tokenizer, eos_ids, form, adapter } = self;
        Policy { model, tokenizer, eos_ids, form, adapter }
    }
}

/// A value as another type with the same fields: the shape of a model is the core's and the files'.
fn same_fields<T: DeserializeOwned>(value: &impl Serialize) -> Result<T> {
    let fields = serde_json::to_value(value).and_then(serde_json::from_value);
    fields.map_err(|error| Error::request(format!("the shape of the model cannot be used: {error}")))
}

/// Refuses a tokenizer with more tokens than a new model has room for.
fn check_room(config: &ModelConfig, tokenizer: &Tokenizer) -> Result<()> {
    let (tokens, room) = (tokenizer.vocab_size(), config.vocab_size);
    match tokens > room {
        true => Err(Error::request(format!(
            "the tokenizer has {tokens} tokens, the model room for {room}; choose a smaller vocabulary"
        ))),
        false => Ok(()),
    }
}

/// What a model gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Tokens.
    LanguageModel,
    /// A reward: a sequence classifier with one label.
    RewardModel,
}

/// The shape that a `config.json` describes, which must be that of a model of `kind`.
fn shape(json: &model_folder::ModelConfig, kind: Kind) -> Result<ModelConfig> {
    let config: ModelConfig = same_fields(&json.shape)?;
    config.validate()?;
    match (config.head, kind) {
        (Head::Score, Kind::LanguageModel) => {
            Err(Error::request("a reward model (a sequence classifier) gives no tokens; use a language model"))
        }
        (Head::Tied | Head::Untied, Kind::RewardModel) => Err(Error::request(
            "a language model gives no rewards; use a sequence classifier with one label, such as a \
             LlamaForSequenceClassification",
        )),
        _ => Ok(config),
    }
}

/// Ids that end a response: those of the configuration, or else the tokenizer's.
fn eos_ids(json: &model_folder::ModelConfig, tokenizer: &Tokenizer) -> Vec<u32> {
    match &json.eos_token_ids[..] {
        [] => tokenizer.eos_id().into_iter().collect(),
        ids => ids.to_vec(),
    }
}

/// How numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// In the formats of the folder that the model was read from.
    AsRead,
    /// With every bit.
    Exact,
}

/// Writes a model folder: configuration, weights, tokenizer.
///
/// # Errors
/// A weight that is not finite, by tensor; a file that cannot be written.
pub fn save_model<B: Backend>(model: &Transformer<B>, parts: &Parts, numbers: Numbers, folder: &Path) -> Result<()> {
    // A tensor is copied on the way out: it takes the place of what a step left behind.
    model.backend().trim();
    let parameters = model.parameters();
    let mut places = HashMap::new();
    for (index, parameter) in parameters.iter().enumerate() {
        places.extend(parameter.tensors.iter().map(|tensor| (&tensor.name[..], (index, parameter.cols, tensor))));
    }
    // Tensors of one parameter that follow one another share a download.
    let mut held = None;
    let data = |name: &str| {
        // What the form asks for was compared with the model when it was read, or made of it.
        let Some(&(index, cols, tensor)) = places.get(name) else { return Cow::Owned(Vec::new()) };
        if held.as_ref().is_none_or(|(at, _)| *at != index) {
            // The last one goes first.
            held = None;
        }
        let (_, values) = held.get_or_insert_with(|| (index, parameters.download(model.backend(), index)));
        Cow::Owned(tensor.stored(values.as_slice().unwrap_or_default(), cols).into_owned())
    };
    match (&parts.adapter, numbers) {
        (None, Numbers::AsRead) => parts.form.write(folder, data)?,
        (None, Numbers::Exact) => parts.form.write_f32(folder, data)?,
        (Some(adapter), Numbers::AsRead) => adapter.write(folder, data)?,
        (Some(adapter), Numbers::Exact) => adapter.write_f32(folder, data)?,
    }
    // A folder with a model and an adapter would be two models.
    let other: &[&str] = match parts.adapter {
        None => &[ADAPTER_CONFIG, ADAPTER_WEIGHTS],
        Some(_) => &["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"],
    };
    for path in other.iter().map(|name| folder.join(name)).filter(|path| path.is_file()) {
        std::fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
    }
    parts.tokenizer.save(folder)?;
    Ok(())
}

/// [`Policy::encode_prompt`] without a model.
///
/// # Errors
/// A text that the tokenizer cannot encode.
pub fn encode_prompt(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let ids = tokenizer.encode_with_special(text)?;
    // What a post-processor puts at the end would separate the prompt from its response.
    let plain = tokenizer.encode(text)?;
    let suffix = ids.len().saturating_sub(plain.len());
    let front = (0..=suffix).find(|&front| ids[front..].starts_with(&plain)).unwrap_or(suffix);
    Ok(ids[..front + plain.len()].to_vec())
}

/// [`Policy::prompt_prefix`] without a model.
///
/// # Errors
/// As [`encode_prompt`].
pub fn prompt_prefix(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    // Any token will do as the text; its own id is left out again.
    let text = (0..tokenizer.vocab_size() as u32)
        .find_map(|id| tokenizer.decode(&[id], true).ok().filter(|text| !text.trim().is_empty()))
        .unwrap_or_default();
    let mut ids = encode_prompt(tokenizer, &text)?;
    ids.truncate(ids.len() - tokenizer.encode(&text)?.len());
    Ok(ids)
}

/// A model folder without its weights.
pub struct Opened {
    files: ModelFolder,
    folder: PathBuf,
    /// Shape of the model.
    pub config: ModelConfig,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Ids that end a response.
    pub eos_ids: Vec<u32>,
    form: Arc<ModelForm>,
    /// Whether the score head is not in the files.
    new_head: bool,
    adapter: Option<OpenedAdapter>,
}

/// An adapter without its numbers.
struct OpenedAdapter {
    form: Arc<AdapterForm>,
    numbers: AdapterNumbers,
}

enum AdapterNumbers {
    /// In this folder.
    Files(Box<AdapterFolder>, PathBuf),
    /// New ones, drawn with this seed.
    Drawn(u64),
}

impl Opened {
    /// Reads everything but the weights of a language model.
    ///
    /// # Errors
    /// A file that is missing, damaged or of an unsupported kind, or tensors that do not fit the configuration.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::read_as(folder, Kind::LanguageModel)
    }

    /// Reads everything but the weights of a model of `kind`.
    ///
    /// # Errors
    /// As [`Opened::read`].
    pub fn read_as(folder: &Path, kind: Kind) -> Result<Self> {
        Self::read_on(folder, None, kind)
    }

    /// As [`Opened::read_as`], an adapter with this `base` in place of the one that it names.
    ///
    /// # Errors
    /// As [`Opened::read_as`]; an adapter whose base is not there, or that does not fit it.
    pub fn read_on(folder: &Path, base: Option<&Path>, kind: Kind) -> Result<Self> {
        check_folder(folder)?;
        let adapter = AdapterFolder::is_one(folder).then(|| AdapterFolder::open(folder)).transpose()?;
        let adapter_folder = folder;
        let base = match &adapter {
            None => folder.to_path_buf(),
            Some(adapter) => base_folder(folder, base, &adapter.config)?,
        };
        let folder = &base;
        let files = ModelFolder::open(folder)?;
        let mut config =
            shape(&files.config, kind).map_err(|error| Error::request(format!("{}: {error}", folder.display())))?;
        files.check(&config.checkpoint_tensors())?;
        let adapter = match adapter {
            None => None,
            Some(adapter) => {
                config.lora = Some(lora(&adapter.config, &config)?);
                config.validate()?;
                adapter.check(&config.adapter_tensors())?;
                let form = Arc::new(adapter.form()?);
                Some(OpenedAdapter { form, numbers: AdapterNumbers::Files(Box::new(adapter), adapter_folder.into()) })
            }
        };
        check_memory(&config)?;
        let form = Arc::new(files.form()?);
        let with_tokenizer = if adapter_folder.join("tokenizer.json").is_file() { adapter_folder } else { folder };
        let tokenizer = Arc::new(Tokenizer::open(with_tokenizer)?);
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(Error::request(format!(
                "{}: the tokenizer has ids up to {}, the model a vocabulary of {}; they do not belong together",
                folder.display(),
                tokenizer.vocab_size() - 1,
                config.vocab_size
            )));
        }
        let eos_ids = eos_ids(&files.config, &tokenizer);
        Ok(Self { files, folder: folder.into(), config, tokenizer, eos_ids, form, new_head: false, adapter })
    }

    /// Reads everything but the weights of a language model that is to be trained: with a new adapter where `args` ask for
    /// one. A folder with an adapter is trained on as such.
    ///
    /// # Errors
    /// As [`Opened::read`]; targets that name nothing, an adapter on an adapter.
    pub fn read_to_train(folder: &Path, args: &LoraArgs, seed: u64) -> Result<Self> {
        let mut opened = Self::read(folder)?;
        if !args.use_peft {
            return Ok(opened);
        }
        if opened.adapter.is_some() {
            return Err(Error::request(format!(
                "{} is an adapter already and is trained on without --use_peft; `larpo merge` makes a model of it that can \
                 have another one",
                folder.display()
            )));
        }
        let targets = Targets::of_names(&args.lora_target_modules);
        let base = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
        let json = AdapterConfig::new(
            args.lora_r.unwrap_or(16),
            args.lora_alpha.unwrap_or(32.0),
            args.use_rslora,
            args.lora_dropout.unwrap_or(0.05),
            targets,
            &base.to_string_lossy(),
        );
        let linear = opened.config.linear_modules();
        if let Some(name) = json.unmatched(&linear).first() {
            let known: std::collections::BTreeSet<&str> =
                linear.iter().filter_map(|module| module.rsplit('.').next()).collect();
            let known: Vec<&str> = known.into_iter().collect();
            return Err(Error::request(format!(
                "--lora_target_modules: {} has no module {name}; it has {}",
                folder.display(),
                known.join(", ")
            )));
        }
        let own = lora(&json, &opened.config)?;
        let json = json.resolve(&own.targets, matches!(opened.config.naming, Naming::Gpt2 { .. }));
        opened.config.lora = Some(own);
        opened.config.validate()?;
        let form = Arc::new(AdapterForm::fresh(json, &opened.config.adapter_tensors()));
        opened.adapter = Some(OpenedAdapter { form, numbers: AdapterNumbers::Drawn(seed) });
        Ok(opened)
    }

    /// Reads everything but the weights of a reward model, or of a language model whose body is to be one: its score head is
    /// new then and begins at zero, so that all scores do.
    ///
    /// # Errors
    /// As [`Opened::read`]; a family whose sequence classifiers are not supported.
    pub fn read_for_rewards(folder: &Path) -> Result<Self> {
        check_folder(folder)?;
        no_adapter(folder)?;
        if ModelFolder::read_config(folder)?.shape.head == model_folder::Head::Score {
            return Self::read_as(folder, Kind::RewardModel);
        }
        let opened = Self::read(folder)?;
        let json = opened.files.config.clone();
        let json = json.classifier(&folder.join("config.json"), opened.tokenizer.pad_id())?;
        let config = shape(&json, Kind::RewardModel)?;
        let format = opened.files.format(&json.shape.embedding());
        let form = ModelForm::fresh(json, &config.checkpoint_tensors());
        let form = Arc::new(format.map_or(form.clone(), |format| form.with_format(format)));
        Ok(Self { config, form, new_head: true, ..opened })
    }

    /// The same, with blocks computed once more for the gradients, or not.
    pub fn recomputing(mut self, on: bool) -> Self {
        self.config.gradient_checkpointing = on;
        self
    }

    /// The same, with the weights under an adapter held in `format`.
    ///
    /// # Errors
    /// No adapter to be trained in their place.
    pub fn with_base(mut self, format: Option<BaseDtype>) -> Result<Self> {
        if let (Some(_), None) = (format, &self.adapter) {
            return Err(Error::request(
                "--base_dtype is the format of weights that stay as they are; there are such under an adapter: add --use_peft",
            ));
        }
        self.config.frozen_bf16 = format == Some(BaseDtype::Bf16);
        Ok(self)
    }

    /// The folder that holds the model, which is the base's where there is an adapter.
    pub fn model_folder(&self) -> &Path {
        &self.folder
    }

    /// The id that pads are written with, if there is one.
    pub fn pad_id(&self) -> Option<u32> {
        self.form.config().pad_token_id
    }

    /// The policy without its weights.
    ///
    /// # Errors
    /// A shape that does not fit together.
    pub fn blank(&self) -> Result<Policy<Dry>> {
        let (tokenizer, eos_ids, form) = (self.tokenizer.clone(), self.eos_ids.clone(), self.form.clone());
        let adapter = self.adapter.as_ref().map(|adapter| adapter.form.clone());
        Policy::blank(self.config.clone(), Parts { tokenizer, eos_ids, form, adapter })
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// Tensors that cannot be read, a file of a sealed folder that was changed, a weight that is not finite, by tensor; more
    /// weights than the machine has memory.
    pub fn load<B: Backend>(self, backend: &B) -> Result<Policy<B>> {
        let Self { files, folder, config, tokenizer, eos_ids, form, new_head, adapter } = self;
        check_memory(&config)?;
        check_written(&folder)?;
        if let Some(OpenedAdapter { numbers: AdapterNumbers::Files(_, folder), .. }) = &adapter {
            check_written(folder)?;
        }
        let adapter_numbers = adapter.as_ref().map(|adapter| &adapter.numbers);
        let read = |tensor: &CheckpointTensor| match (files.shape(&tensor.name), adapter_numbers) {
            (None, Some(AdapterNumbers::Files(files, folder))) => {
                finite(files.read_f32(&tensor.name)?, &tensor.name, folder)
            }
            // Drawn below.
            (None, Some(AdapterNumbers::Drawn(_))) => Ok(vec![0.0; tensor.shape.iter().product()]),
            (None, None) if new_head => Ok(vec![0.0; tensor.shape.iter().product()]),
            _ => finite(files.read_f32(&tensor.name)?.1, &tensor.name, &folder),
        };
        let mut model = Transformer::from_checkpoint(backend, config, read)?;
        if let Some(AdapterNumbers::Drawn(seed)) = adapter_numbers {
            model.reset_adapter(*seed)?;
            say!(
                "a new adapter of {} parameters on {} modules of {}",
                model.config().trainable_parameters(),
                model.config().lora.as_ref().map_or(0, |lora| lora.targets.len()),
                folder.display()
            );
        }
        Ok(Policy { model, tokenizer, eos_ids, form, adapter: adapter.map(|adapter| adapter.form) })
    }
}

/// Refuses numbers that are not finite, by tensor.
fn finite(data: Vec<f32>, name: &str, folder: &Path) -> Result<Vec<f32>> {
    match data.iter().position(|v| !v.is_finite()) {
        None => Ok(data),
        Some(at) => Err(Error::request(format!(
            "{}: tensor {name} holds {} at element {at}; the weights are damaged: use an earlier checkpoint",
            folder.display(),
            data[at]
        ))),
    }
}

/// The adapter that a configuration describes, on a model of this shape.
fn lora(adapter: &AdapterConfig, config: &ModelConfig) -> Result<Lora> {
    let targets = adapter.modules(&config.linear_modules(), &config.other_modules())?;
    let AdapterConfig { rank, alpha, rslora, dropout, .. } = *adapter;
    Ok(Lora { rank, alpha, rslora, dropout, targets })
}

/// The folder of the model under an adapter: `given`, or what the adapter names, from here or from its own folder.
///
/// # Errors
/// No such folder.
fn base_folder(folder: &Path, given: Option<&Path>, adapter: &AdapterConfig) -> Result<PathBuf> {
    if let Some(given) = given {
        check_folder(given)?;
        return Ok(given.to_path_buf());
    }
    let named = adapter.base.as_deref().unwrap_or_default();
    let above = folder.parent().unwrap_or(folder);
    [PathBuf::from(named), folder.join(named), above.join(named)]
        .into_iter()
        .find(|path| !named.is_empty() && path.join("config.json").is_file())
        .ok_or_else(|| {
            Error::request(format!(
                "{} is an adapter of the model {named:?}, and there is no such model folder; set base_model_name_or_path in \
                 its {ADAPTER_CONFIG} to where that is (`larpo merge` takes it as --model_name_or_path too)",
                folder.display()
            ))
        })
}

/// The folder that holds the model itself: `folder`, or the base of the adapter in it.
///
/// # Errors
/// An adapter whose configuration cannot be read, or whose base is not there.
pub fn model_folder_of(folder: &Path) -> Result<PathBuf> {
    match AdapterFolder::is_one(folder) {
        true => base_folder(folder, None, &AdapterConfig::read(folder)?),
        false => Ok(folder.to_path_buf()),
    }
}

/// Refuses a folder with an adapter where a model is needed.
fn no_adapter(folder: &Path) -> Result<()> {
    match AdapterFolder::is_one(folder) {
        true => Err(Error::request(format!(
            "{} is an adapter; make a model of it first, with `larpo merge {0} OUT`",
            folder.display()
        ))),
        false => Ok(()),
    }
}

/// Opens a model folder of either kind, whose tensors must be those of its configuration.
///
/// # Errors
/// As [`Opened::read`].
pub fn check_model(folder: &Path) -> Result<ModelFolder> {
    check_folder(folder)?;
    no_adapter(folder)?;
    let files = ModelFolder::open(folder)?;
    let config: ModelConfig = same_fields(&files.config.shape)?;
    config.validate().map_err(|error| Error::request(format!("{}: {error}", folder.display())))?;
    files.check(&config.checkpoint_tensors())?;
    Ok(files)
}

/// Compares a folder with the checksums in it. Where a finished run left it, and its weights are others now, that is a warning:
/// people may put a model of their own there.
fn check_written(folder: &Path) -> Result<()> {
    larpo_data::checksums::verify_listed(folder)?;
    let record = std::fs::read(folder.join(run_record::FILE)).ok();
    let record: Option<Value> = record.and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(problem) = record.and_then(|record| losses::final_model(folder, &record)) {
        warn!("{}: {problem}", folder.display());
    }
    Ok(())
}

/// Refuses what is no folder with a model in it, with what to do about it.
///
/// # Errors
/// No folder, or one without `config.json`.
pub fn check_folder(folder: &Path) -> Result<()> {
    let path = folder.display();
    if folder.is_file() {
        return Err(Error::request(format!(
            "{path} is a file; give the folder that holds config.json and the weights"
        )));
    }
    if !folder.exists() {
        let parts: Vec<_> = folder.components().collect();
        // `organisation/model` of the Hugging Face hub.
        let mend = match (&parts[..], folder.to_str()) {
            ([_, Component::Normal(name)], Some(id)) if folder.is_relative() => format!(
                "For a model of the Hugging Face hub, download it first, for example with `hf download {id} --local-dir \
                 {name}`, and give {name}",
                name = name.display()
            ),
            _ => "Check the name".into(),
        };
        return Err(Error::request(format!(
            "{path}: no such folder. larpo reads model folders on disk and downloads nothing. {mend}"
        )));
    }
    match folder.join("config.json").exists() || AdapterFolder::is_one(folder) {
        true => Ok(()),
        false => Err(Error::request(format!(
            "{path} has no config.json: it is no model folder. Give the folder that holds config.json, the weights \
             (safetensors) and tokenizer.json"
        ))),
    }
}

/// Refuses a model whose weights alone are more than the machine has.
fn check_memory(config: &ModelConfig) -> Result<()> {
    config.validate()?;
    // Rotary positions have a table.
    let table = (config.max_position_embeddings as u64).saturating_mul(config.head_dim as u64);
    let weights = config.weight_bytes().saturating_add(table.saturating_mul(4));
    match machine::total_memory() {
        Some(limit) if weights > limit => Err(Error::request(format!(
            "the model's {} parameters need {} of memory and the machine has {}; choose a smaller model",
            config.parameters(),
            plan::bytes(weights),
            plan::bytes(limit)
        ))),
        _ => Ok(()),
    }
}
