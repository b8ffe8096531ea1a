//! `larpo train`: one objective over ranked lists, pairs or labelled completions made elsewhere.

use crate::align::describe;
use crate::args::{Settings, TrainVerbArgs};
use crate::dataset::{Limits, Part, RowReport, Source};
use crate::error::{Error, Result};
use crate::messages::count;
use crate::policy::{Opened, Policy};
use crate::references;
use crate::resume::{self, Resume};
use crate::run_folder::{RunFolder, RunRequest, already_finished};
use crate::status;
use crate::stop::Stop;
use crate::training::{Journal, LoopConfig, list_row, list_training, selection, train_lists};
use larpo_core::backend::Backend;
use larpo_core::candidates::ListCounts;
use larpo_core::objective::LipoLabels;
use larpo_core::proofs::prove;
use larpo_core::train::TrainingList;
use serde_json::{Map, Value, json};

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &TrainVerbArgs, settings: &Settings, stop: &Stop, backend: &B) -> Result<Value> {
    let path = &args.dataset_name;
    let request = RunRequest {
        verb: "train",
        settings,
        folder: &args.output_dir,
        overwrite: args.overwrite_output_dir,
        from: args.train.resume_from_checkpoint.as_ref(),
        inputs: &[("model_name_or_path", &args.model.model_name_or_path), ("dataset_name", path)],
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
    let opened = Opened::read_to_train(&args.model.model_name_or_path, &args.lora, args.common.seed)?
        .with_base(args.lora.base_dtype)?
        .recomputing(args.train.gradient_checkpointing);
    let Read { mut training, counts, report } = read(args, &opened.blank()?)?;
    let done = resume.as_ref().map_or(0, Resume::updates);
    backend.limit(super::plan::admit_train(args, &opened.config, &mut training, done)?);
    let policy = opened.load(backend)?.written_in(args.train.dtype);
    let objective = list_training(&args.list, args.common.seed);
    let config = LoopConfig::lists(&args.train, args.common.seed);
    let order = config.plan(training.len());
    let first = order.batches().next().unwrap_or_default();
    let batch: Vec<&TrainingList> = first.iter().take(config.micro_batch).map(|&i| &training[i]).collect();
    let proofs = prove(&policy.model, &objective, &batch, true)?;
    say!("{}", describe(&proofs));
    folder.begin()?;
    references::fill(&policy.model, &mut training, (order, done), false, ("train", stop))?;
    let journal = Journal {
        label: "train".into(),
        metrics: Some(args.output_dir.join("metrics.jsonl")),
        checkpoints: vec![args.output_dir.clone()],
        run: Some(args.output_dir.clone()),
        resume,
        stop: stop.clone(),
    };
    let (policy, outcome) = train_lists(policy, &training, &objective, &config, journal)?;
    policy.save(&args.output_dir)?;
    say!("the model is in {}", args.output_dir.display());
    let mut summary: Map<String, Value> = list_row(outcome.loss, &outcome.metrics).into();
    summary.insert("output_dir".into(), json!(args.output_dir));
    summary.insert("steps".into(), json!(outcome.steps));
    summary.insert("lists".into(), json!(counts));
    summary.insert("data".into(), json!(report));
    let summary = Value::Object(summary);
    folder.finish(&summary)?;
    Ok(summary)
}

/// What a run trains on. The texts that it was made of are not kept.
pub(super) struct Read {
    pub(super) training: Vec<TrainingList>,
    counts: ListCounts,
    report: RowReport,
}

pub(super) fn read<B: Backend>(args: &TrainVerbArgs, policy: &Policy<B>) -> Result<Read> {
    let path = &args.dataset_name;
    let source = Source::open(path, &args.data, Some(&policy.tokenizer))?;
    let limits = Limits::new(&args.data, policy)?;
    let part = Part { held_back: args.split.validation_fraction, split: args.split.split };
    let mut lists = source.lists(policy, limits, part)?;
    if let (Some(line), Some(LipoLabels::Reward)) = (lists.ranks_only, args.list.labels) {
        return Err(Error::request(format!(
            "{}:{line}: --labels reward needs `rewards`, and the row has only `ranks`; give --labels rank",
            path.display()
        )));
    }
    let objective = list_training(&args.list, args.common.seed);
    let (training, counts) = lists.training(selection(&args.list), &objective.objective)?;
    say!("data: {}; {}", lists.report, list_counts(&counts));
    match training.is_empty() {
        true => Err(Error::request(format!(
            "no list contributes to the loss ({}): every list has equal rewards or fewer than two different responses; give the \
             file rewards that differ",
            lists.report
        ))),
        false => Ok(Read { training, counts, report: lists.report }),
    }
}

fn list_counts(counts: &ListCounts) -> String {
    format!(
        "{} = {} to train on + {} with equal rewards + {} with fewer than two different responses; {} among {}",
        count(counts.lists, "lists"),
        counts.contributing,
        counts.equal,
        counts.too_short,
        count(counts.duplicates, "duplicates"),
        count(counts.candidates, "candidates")
    )
}
