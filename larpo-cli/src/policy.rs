//! A policy: a transformer with its tokenizer, as a Hugging Face folder on disk.

use crate::error::{Error, Result};
use crate::machine;
use crate::plan::{self, Dry};
use larpo_core::backend::Backend;
use larpo_core::cpu::DryRun;
use larpo_core::model::{ModelConfig, Transformer};
use larpo_data::model_folder::{self, ModelFolder};
use larpo_data::tokenizer::Tokenizer;
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
}

impl<B: Backend> Policy<B> {
    /// A fresh model of shape `config` for `tokenizer`. The vocabulary of `config` is kept where it is larger than the
    /// tokenizer's; ids without a token are never sampled.
    ///
    /// # Errors
    /// A shape that does not fit together, or a tokenizer with more tokens than the shape has room for.
    pub fn fresh(backend: &B, config: ModelConfig, tokenizer: impl Into<Arc<Tokenizer>>, seed: u64) -> Result<Self> {
        let tokenizer = tokenizer.into();
        let tokens = tokenizer.vocab_size();
        if tokens > config.vocab_size {
            return Err(Error::request(format!(
                "the tokenizer has {tokens} tokens, the model room for {}; choose a smaller vocabulary",
                config.vocab_size
            )));
        }
        check_memory(&config)?;
        let eos_ids = tokenizer.eos_id().into_iter().collect();
        let model = Transformer::random(backend, config, seed)?;
        Ok(Self { model, tokenizer, eos_ids })
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
        Self { model, tokenizer: self.tokenizer.clone(), eos_ids: self.eos_ids.clone() }
    }

    /// An independent copy of the weights.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(self.with_model(self.model.duplicate()?))
    }

    /// Writes the model folder: configuration, weights, tokenizer.
    ///
    /// # Errors
    /// A weight that is not finite, a file that cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        save_model(&self.model, &self.tokenizer, &self.eos_ids, folder)
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
    pub fn blank(config: ModelConfig, tokenizer: Arc<Tokenizer>, eos_ids: Vec<u32>) -> Result<Self> {
        // A backend of its own: what a plan counts is the planner's.
        let model = Transformer::unspecified(&Dry::new(DryRun::new()), config)?;
        Ok(Self { model, tokenizer, eos_ids })
    }
}

/// Writes a model folder: configuration, weights, tokenizer.
///
/// # Errors
/// A weight that is not finite, by tensor; a file that cannot be written.
pub fn save_model<B: Backend>(
    model: &Transformer<B>,
    tokenizer: &Tokenizer,
    eos_ids: &[u32],
    folder: &Path,
) -> Result<()> {
    // A tensor is copied on the way out: it takes the place of what a step left behind.
    model.backend().trim();
    let c = model.config();
    let config = model_folder::ModelConfig {
        vocab_size: c.vocab_size,
        hidden_size: c.hidden_size,
        intermediate_size: c.intermediate_size,
        num_hidden_layers: c.num_hidden_layers,
        num_attention_heads: c.num_attention_heads,
        num_key_value_heads: c.num_key_value_heads,
        head_dim: c.head_dim,
        max_position_embeddings: c.max_position_embeddings,
        rms_norm_eps: c.rms_norm_eps,
        rope_theta: c.rope_theta,
        tie_word_embeddings: c.tie_word_embeddings,
        bos_token_id: tokenizer.bos_id(),
        eos_token_ids: eos_ids.to_vec(),
        pad_token_id: tokenizer.pad_id(),
        initializer_range: c.initializer_range,
    };
    let parameters = model.parameters();
    // Where each tensor lies: parameter, first number, length.
    let mut places = HashMap::new();
    for (index, parameter) in parameters.iter().enumerate() {
        for tensor in &parameter.tensors {
            let (start, end) = (tensor.rows.start * parameter.cols, tensor.rows.end * parameter.cols);
            places.insert(tensor.name.clone(), (index, start, end));
        }
    }
    // Tensors of one parameter that follow one another share a download.
    let mut held = None;
    model_folder::write_model(folder, &config, &parameters.checkpoint_tensors(), |name| {
        let (index, start, end) = places[name];
        if held.as_ref().is_none_or(|(at, _)| *at != index) {
            // The last one goes first.
            held = None;
        }
        let (_, values) = held.get_or_insert_with(|| (index, parameters.download(model.backend(), index)));
        Cow::Owned(values.as_slice().unwrap_or_default()[start..end].to_vec())
    })?;
    tokenizer.save(folder)?;
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
}

impl Opened {
    /// Reads everything but the weights.
    ///
    /// # Errors
    /// A file that is missing, damaged or of an unsupported kind, or tensors that do not fit the configuration.
    pub fn read(folder: &Path) -> Result<Self> {
        check_folder(folder)?;
        let files = ModelFolder::open(folder)?;
        files.check()?;
        let tokenizer = Arc::new(Tokenizer::open(folder)?);
        let c = &files.config;
        let config = ModelConfig {
            vocab_size: c.vocab_size,
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            num_hidden_layers: c.num_hidden_layers,
            num_attention_heads: c.num_attention_heads,
            num_key_value_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            max_position_embeddings: c.max_position_embeddings,
            rms_norm_eps: c.rms_norm_eps,
            rope_theta: c.rope_theta,
            tie_word_embeddings: c.tie_word_embeddings,
            initializer_range: c.initializer_range,
        };
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(Error::request(format!(
                "{}: the tokenizer has ids up to {}, the model a vocabulary of {}; they do not belong together",
                folder.display(),
                tokenizer.vocab_size() - 1,
                config.vocab_size
            )));
        }
        let eos_ids = match c.eos_token_ids.is_empty() {
            true => tokenizer.eos_id().into_iter().collect(),
            false => c.eos_token_ids.clone(),
        };
        Ok(Self { files, folder: folder.into(), config, tokenizer, eos_ids })
    }

    /// The policy without its weights.
    ///
    /// # Errors
    /// A shape that does not fit together.
    pub fn blank(&self) -> Result<Policy<Dry>> {
        Policy::blank(self.config.clone(), self.tokenizer.clone(), self.eos_ids.clone())
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// Tensors that cannot be read, a file of a sealed folder that was changed, a weight that is not finite, by tensor; more
    /// weights than the machine has memory.
    pub fn load<B: Backend>(self, backend: &B) -> Result<Policy<B>> {
        let Self { files, folder, config, tokenizer, eos_ids } = self;
        check_memory(&config)?;
        larpo_data::checksums::verify_listed(&folder)?;
        let model = Transformer::from_checkpoint(backend, config, |tensor| {
            let (_, data) = files.read_f32(&tensor.name)?;
            match data.iter().position(|v| !v.is_finite()) {
                None => Ok(data),
                Some(at) => Err(Error::request(format!(
                    "{}: tensor {} holds {} at element {at}; the weights are damaged: use an earlier checkpoint",
                    folder.display(),
                    tensor.name,
                    data[at]
                ))),
            }
        })?;
        Ok(Policy { model, tokenizer, eos_ids })
    }
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
    match folder.join("config.json").exists() {
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
    let weights = 4 * config.parameters();
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
