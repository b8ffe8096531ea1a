//! `larpo sft`: supervised fine-tuning, from a folder or from random weights.

use crate::args::{FreshSizes, Settings, SftArgs, Split, TokenizerSpec};
use crate::dataset::{Limits, Part, RowReport, Source};
use crate::error::{Error, Result};
use crate::plan::Dry;
use crate::policy::{Opened, Parts, Policy};
use crate::resume::{self, Resume};
use crate::run_folder::{RunFolder, RunRequest, already_finished};
use crate::status;
use crate::stop::Stop;
use crate::training::{HeldOut, Journal, LoopConfig, sft};
use larpo_core::backend::Backend;
use larpo_core::model::ModelConfig;
use larpo_core::train::SftRow;
use larpo_data::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &SftArgs, settings: &Settings, stop: &Stop, backend: &B) -> Result<Value> {
    let inputs = [
        ("dataset_name", Some(&args.dataset_name)),
        ("model_name_or_path", args.model.model_name_or_path.as_ref()),
        ("eval_dataset", args.eval.eval_dataset.as_ref()),
        ("tokenizer", args.tokenizer_folder()),
        ("config_name", args.model.config_name.as_ref()),
    ];
    let inputs: Vec<_> = inputs.into_iter().filter_map(|(flag, path)| Some((flag, path?.as_path()))).collect();
    let request = RunRequest {
        verb: "sft",
        settings,
        folder: &args.output_dir,
        overwrite: args.overwrite_output_dir,
        from: args.train.resume_from_checkpoint.as_ref(),
        inputs: &inputs,
        device: backend.name(),
    };
    let mut folder = RunFolder::open(&request)?;
    if let Some(summary) = folder.finished(&request) {
        return already_finished(&args.output_dir, summary);
    }
    let resume = folder.from(&request).map(|from| resume::checkpoint(&args.output_dir, from)).transpose()?.flatten();
    if let Some(resume) = &resume {
        status::set_checkpoint(&resume.checkpoint);
    }
    // Its tokenizer is the run's; building one anew takes long.
    let start = resume.as_ref().map(|resume| &resume.checkpoint).or(args.model.model_name_or_path.as_ref());
    let Read { start, rows, held_out, report } = read(args, start.map(PathBuf::as_path))?;
    let done = resume.as_ref().map_or(0, Resume::updates);
    backend.limit(super::plan::admit_sft(args, &start, &rows, held_out.as_deref(), done)?);
    let policy = match start {
        Start::Folder(opened) => opened.load(backend)?,
        Start::Fresh(config, parts) => fresh(*config, parts, args.common.seed, backend)?,
    };
    let policy = policy.written_in(args.train.dtype);
    folder.begin()?;
    let config = LoopConfig::sft(&args.train, args.common.seed);
    let journal = Journal {
        label: "sft".into(),
        metrics: Some(args.output_dir.join("metrics.jsonl")),
        checkpoints: vec![args.output_dir.clone()],
        run: Some(args.output_dir.clone()),
        resume,
        stop: stop.clone(),
    };
    let watch = held_out.as_ref().map(|rows| HeldOut { rows, every: args.eval.eval_steps });
    let (policy, outcome) = sft(policy, &rows, config.plan(rows.len()), &config, watch, journal)?;
    say!("sft: training loss {:.4} at the end", outcome.loss);
    policy.save(&args.output_dir)?;
    say!("the model is in {}", args.output_dir.display());
    let summary = json!({
        "output_dir": args.output_dir,
        "steps": outcome.steps,
        "loss": outcome.loss,
        "eval_loss": outcome.eval_loss,
        "parameters": policy.model.config().parameters(),
        "data": report,
    });
    folder.finish(&summary)?;
    Ok(summary)
}

/// What is trained, before there are weights.
pub(super) enum Start {
    Folder(Box<Opened>),
    Fresh(Box<ModelConfig>, Parts),
}

impl Start {
    pub(super) fn config(&self) -> &ModelConfig {
        match self {
            Self::Folder(opened) => &opened.config,
            Self::Fresh(config, _) => config,
        }
    }

    fn blank(&self) -> Result<Policy<Dry>> {
        match self {
            Self::Folder(opened) => opened.blank(),
            Self::Fresh(config, parts) => Policy::blank(config.as_ref().clone(), parts.clone()),
        }
    }
}

/// What a run trains and is looked at on. The texts that the rows were made of are not kept.
pub(super) struct Read {
    pub(super) start: Start,
    pub(super) rows: Vec<SftRow>,
    pub(super) held_out: Option<Vec<SftRow>>,
    report: RowReport,
}

/// Reads the data for the model in `folder`, or for a fresh one.
pub(super) fn read(args: &SftArgs, folder: Option<&Path>) -> Result<Read> {
    let recompute = args.train.gradient_checkpointing;
    let (source, start) = match folder {
        Some(folder) => {
            // A checkpoint has its adapter already.
            let opened = match args.model.model_name_or_path.as_deref() == Some(folder) {
                true => Opened::read_to_train(folder, &args.lora, args.common.seed)?,
                false => Opened::read(folder)?,
            };
            let source = Source::open(&args.dataset_name, &args.data, Some(&opened.tokenizer))?;
            (source, Start::Folder(Box::new(opened.with_base(args.lora.base_dtype)?.recomputing(recompute))))
        }
        None => {
            let tokenizer = args.tokenizer_folder().map(Tokenizer::open).transpose()?;
            let source = Source::open(&args.dataset_name, &args.data, tokenizer.as_ref())?;
            let (config, parts) = recipe(args, tokenizer, &source)?;
            (source, Start::Fresh(Box::new(ModelConfig { gradient_checkpointing: recompute, ..config }), parts))
        }
    };
    let policy = start.blank()?;
    let limits = Limits::new(&args.data, &policy)?;
    let held_back = args.eval.validation_fraction.unwrap_or(0.0);
    let (rows, report) = source.sft_rows(&policy, limits, Part { held_back, split: Split::Train })?;
    say!("training data: {report}");
    let held_out = held_out(args, &source, &policy, limits)?;
    match rows.is_empty() {
        true => Err(nothing_left("train on", &args.dataset_name, &report)),
        false => Ok(Read { start, rows, held_out, report }),
    }
}

/// Why no row is left, and what decides it.
fn nothing_left(purpose: &str, path: &Path, report: &RowReport) -> Error {
    Error::request(format!(
        "no rows left to {purpose}: {}; `larpo inspect {}` shows what they hold",
        report.nothing_left(path),
        path.display()
    ))
}

/// A fresh model and its tokenizer.
fn fresh<B: Backend>(config: ModelConfig, parts: Parts, seed: u64, backend: &B) -> Result<Policy<B>> {
    let (tokens, vocab_size) = (parts.tokenizer.vocab_size(), config.vocab_size);
    let policy = Policy::random(backend, config, parts, seed)?;
    let note = if tokens < vocab_size { " (the rest of the model's vocabulary is never sampled)" } else { "" };
    say!("a fresh model of {} parameters, a tokenizer of {tokens} tokens{note}", policy.model.config().parameters());
    Ok(policy)
}

/// Shape of a fresh model, and all that belongs to it but the weights.
fn recipe(args: &SftArgs, opened: Option<Tokenizer>, source: &Source) -> Result<(ModelConfig, Parts)> {
    let preset_vocabulary = args.model.preset.map(|p| p.sizes().vocab_size);
    let tokenizer = match (opened, &args.model.tokenizer, preset_vocabulary) {
        (Some(opened), ..) => opened,
        (None, Some(TokenizerSpec::Char), _) => Tokenizer::characters(&source.texts())?,
        (None, Some(TokenizerSpec::Bpe(size)), _) => Tokenizer::train_bpe(&source.texts(), *size)?,
        (None, None | Some(TokenizerSpec::Dir(_)), Some(size)) => Tokenizer::train_bpe(&source.texts(), size)?,
        (None, None | Some(TokenizerSpec::Dir(_)), None) => {
            return Err(Error::request("--tokenizer is needed: bpe:SIZE, char, or a folder"));
        }
    };
    let tokenizer = Arc::new(tokenizer);
    if let Some(path) = &args.model.config_name {
        return Parts::described(path, tokenizer);
    }
    let sizes = args.model.fresh_sizes().ok_or_else(|| {
        Error::request(
            "say what to train: --model_name_or_path, --preset, --config_name, or --hidden_size and the other sizes",
        )
    })?;
    let tokens = tokenizer.vocab_size();
    let vocab_size = preset_vocabulary.map_or(tokens, |size| size.max(tokens));
    let config = shape(&sizes, vocab_size);
    let parts = Parts::fresh(&config, tokenizer)?;
    Ok((config, parts))
}

fn shape(sizes: &FreshSizes, vocab_size: usize) -> ModelConfig {
    let config = ModelConfig::new(
        sizes.hidden_size,
        sizes.intermediate_size,
        sizes.num_hidden_layers,
        sizes.num_attention_heads,
        sizes.num_key_value_heads,
        vocab_size,
    );
    ModelConfig { max_position_embeddings: sizes.max_position_embeddings, ..config }
}

fn held_out<B: Backend>(
    args: &SftArgs,
    source: &Source,
    policy: &Policy<B>,
    limits: Limits,
) -> Result<Option<Vec<SftRow>>> {
    let all = Limits { max_samples: usize::MAX, ..limits };
    let (rows, report) = match (&args.eval.eval_dataset, args.eval.validation_fraction) {
        (Some(path), _) => Source::open(path, &args.data, Some(&policy.tokenizer))?.sft_rows(policy, all, Part::ALL)?,
        (None, Some(held_back)) => source.sft_rows(policy, all, Part { held_back, split: Split::Validation })?,
        (None, None) => return Ok(None),
    };
    say!("validation data: {report}");
    match rows.is_empty() {
        true => {
            let path = args.eval.eval_dataset.as_ref().unwrap_or(&args.dataset_name);
            Err(nothing_left("evaluate on", path, &report))
        }
        false => Ok(Some(rows)),
    }
}
