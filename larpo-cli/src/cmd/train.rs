//! `larpo train`: one objective over ranked lists, pairs or labelled completions made elsewhere.

use crate::align::describe;
use crate::args::TrainVerbArgs;
use crate::dataset::{Limits, Part, Source};
use crate::error::{Error, Result};
use crate::metrics_log::MetricsLog;
use crate::output::OutputDir;
use crate::policy::Policy;
use crate::training::{Journal, LoopConfig, list_row, list_training, selection, train_lists};
use larpo_core::backend::Backend;
use larpo_core::candidates::ListCounts;
use larpo_core::objective::LipoLabels;
use larpo_core::proofs::prove;
use larpo_core::train::{TrainingList, fill_references};
use serde_json::{Map, Value, json};

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &TrainVerbArgs, backend: &B) -> Result<Value> {
    let path = &args.dataset_name;
    let inputs = [args.model.model_name_or_path.as_path(), path];
    let output = OutputDir::check(&args.output_dir, args.overwrite_output_dir, &inputs)?;
    let source = Source::open(path, &args.data)?;
    let policy = Policy::open(backend, &args.model.model_name_or_path)?;
    let limits = Limits::new(&args.data, &policy)?;
    let part = Part { held_back: args.split.validation_fraction, split: args.split.split };
    let mut lists = source.lists(&policy, limits, part)?;
    if let (Some(line), Some(LipoLabels::Reward)) = (lists.ranks_only, args.list.labels) {
        return Err(Error::request(format!(
            "{}:{line}: --labels reward needs `rewards`, and the row has only `ranks`; give --labels rank",
            path.display()
        )));
    }
    let settings = list_training(&args.list, args.common.seed);
    let (mut training, counts) = lists.training(selection(&args.list), &settings.objective)?;
    say!("data: {}; {}", lists.report, list_counts(&counts));
    if training.is_empty() {
        return Err(Error::request(
            "no list contributes to the loss: every list has equal rewards or fewer than two different responses; give the file rewards that differ",
        ));
    }
    fill_references(&policy.model, &mut training, false)?;
    let config = LoopConfig::lists(&args.train, args.common.seed);
    let first = config.plan(training.len()).batches().next().unwrap_or_default();
    let batch: Vec<&TrainingList> = first.iter().take(config.micro_batch).map(|&i| &training[i]).collect();
    let proofs = prove(&policy.model, &settings, &batch, true)?;
    say!("{}", describe(&proofs));
    output.clear()?;
    let path = args.output_dir.join("metrics.jsonl");
    let mut log = MetricsLog::create(&path).map_err(Error::io(&path, "create"))?;
    let journal =
        Journal { label: "train".into(), log: Some((&mut log, path)), checkpoints: Some(args.output_dir.clone()) };
    let (policy, outcome) = train_lists(policy, &training, &settings, &config, journal)?;
    policy.save(&args.output_dir)?;
    say!("the model is in {}", args.output_dir.display());
    let mut summary: Map<String, Value> = list_row(outcome.loss, &outcome.metrics).into();
    summary.insert("output_dir".into(), json!(args.output_dir));
    summary.insert("steps".into(), json!(outcome.steps));
    summary.insert("lists".into(), json!(counts));
    summary.insert("data".into(), json!(lists.report));
    Ok(Value::Object(summary))
}

fn list_counts(counts: &ListCounts) -> String {
    format!(
        "{} lists = {} to train on + {} with equal rewards + {} too short; {} duplicates among {} candidates",
        counts.lists, counts.contributing, counts.equal, counts.too_short, counts.duplicates, counts.candidates
    )
}
