//! `larpo train`: one objective over ranked lists made elsewhere.

use crate::align::describe;
use crate::args::{Settings, TrainVerbArgs};
use crate::candidate_rows::{Known, from_row};
use crate::error::{Error, Result};
use crate::policy::Policy;
use crate::resume;
use crate::run_folder::{RunFolder, RunRequest, already_finished};
use crate::stop::Stop;
use crate::training::{Journal, LoopConfig, list_row, list_training, selection, train_lists};
use larpo_core::backend::Backend;
use larpo_core::candidates::{ListCounts, training_lists};
use larpo_core::objective::LipoLabels;
use larpo_core::proofs::prove;
use larpo_core::train::{TrainingList, fill_references};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Display;

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
    };
    let mut folder = RunFolder::open(&request)?;
    if let Some(summary) = folder.finished(&request) {
        return already_finished(&args.output_dir, summary);
    }
    let resume = folder.from(&request).map(|from| resume::checkpoint(&args.output_dir, from)).transpose()?.flatten();
    let rows = larpo_data::candidates::read_numbered(path)?;
    let policy = Policy::open(backend, &args.model.model_name_or_path)?;
    let limits = crate::dataset::Limits::new(&args.data, &policy)?;
    let mut left_out: BTreeMap<String, usize> = BTreeMap::new();
    let mut lists = Vec::new();
    for (index, (line, row)) in rows.iter().take(limits.max_samples).enumerate() {
        let at = |problem: &dyn Display| Error::request(format!("{}:{line}: {problem}", path.display()));
        let Some(scores) = row.scores() else {
            let known = row.extra.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let unknown = if known.is_empty() { String::new() } else { format!(" (not read: {known})") };
            return Err(at(&format!(
                "the row has no field `rewards` and no field `ranks`{unknown}; score the file with `larpo rank` first"
            )));
        };
        if row.rewards.is_empty() && args.list.labels == Some(LipoLabels::Reward) {
            return Err(at(&"--labels reward needs `rewards`, and the row has only `ranks`; give --labels rank"));
        }
        let known = Known { prompt_index: index, iteration: 0, untouched: false };
        let list = from_row(&policy, row, Some(&scores), known).map_err(|error| at(&error))?;
        let longest = list.candidates.iter().map(|c| c.ids.len()).max().unwrap_or(0);
        if list.prompt_ids.len() > limits.max_prompt_length {
            *left_out.entry(format!("prompt longer than {} tokens", limits.max_prompt_length)).or_default() += 1;
        } else if list.prompt_ids.len() + longest > limits.max_length {
            *left_out.entry(format!("longer than {} tokens", limits.max_length)).or_default() += 1;
        } else {
            lists.push(list);
        }
    }
    if lists.is_empty() {
        let reasons: Vec<String> = left_out.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let reasons = reasons.join(", ");
        return Err(Error::request(format!(
            "{}: every row is left out ({reasons}); raise --max_length or --max_prompt_length, or shorten the texts",
            path.display()
        )));
    }
    let objective = list_training(&args.list, args.common.seed);
    // Recorded log-probabilities belong to the policy that drew the responses, which need not be this one.
    let (mut training, counts) = training_lists(&lists, selection(&args.list), &objective.objective, u32::MAX)?;
    report(rows.len().min(limits.max_samples), &left_out, &counts);
    if training.is_empty() {
        return Err(Error::request(
            "no list contributes to the loss: every list has equal rewards or fewer than two different responses; give the file rewards that differ",
        ));
    }
    fill_references(&policy.model, &mut training, false)?;
    let config = LoopConfig::lists(&args.train, args.common.seed);
    let first = config.plan(training.len()).batches().next().unwrap_or_default();
    let batch: Vec<&TrainingList> = first.iter().take(config.micro_batch).map(|&i| &training[i]).collect();
    let proofs = prove(&policy.model, &objective, &batch, true)?;
    say!("{}", describe(&proofs));
    folder.begin()?;
    let journal = Journal {
        label: "train".into(),
        metrics: Some(args.output_dir.join("metrics.jsonl")),
        checkpoints: vec![args.output_dir.clone()],
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
    let summary = Value::Object(summary);
    folder.finish(&summary)?;
    Ok(summary)
}

fn report(rows: usize, left_out: &BTreeMap<String, usize>, counts: &ListCounts) {
    let mut line = format!(
        "data: {rows} rows in = {} used + {} with equal rewards + {} too short",
        counts.contributing, counts.equal, counts.too_short
    );
    for (reason, count) in left_out {
        line.push_str(&format!(" + {count} left out ({reason})"));
    }
    say!("{line}; {} duplicates among {} candidates", counts.duplicates, counts.candidates);
}
