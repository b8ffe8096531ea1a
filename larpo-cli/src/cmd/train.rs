//! `larpo train`: one objective over ranked lists made elsewhere.

use crate::align::describe;
use crate::args::TrainVerbArgs;
use crate::error::{Error, Result};
use crate::generate::first_stop;
use crate::metrics_log::MetricsLog;
use crate::output::OutputDir;
use crate::policy::Policy;
use crate::training::{Journal, LoopConfig, list_row, list_training, selection, train_lists};
use larpo_core::backend::Backend;
use larpo_core::candidates::{Candidate, CandidateList, ListCounts, training_lists};
use larpo_core::objective::LipoLabels;
use larpo_core::proofs::prove;
use larpo_core::train::{TrainingList, fill_references};
use larpo_data::candidates::CandidateList as CandidateRow;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Display;

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &TrainVerbArgs, backend: &B) -> Result<Value> {
    let path = &args.dataset_name;
    let inputs = [args.model.model_name_or_path.as_path(), path];
    let output = OutputDir::check(&args.output_dir, args.overwrite_output_dir, &inputs)?;
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
        let list = candidate_list(&policy, row, index, &scores).map_err(|error| at(&error))?;
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
    let settings = list_training(&args.list, args.common.seed);
    // Recorded log-probabilities belong to the policy that drew the responses, which need not be this one.
    let (mut training, counts) = training_lists(&lists, selection(&args.list), &settings.objective, u32::MAX)?;
    report(rows.len().min(limits.max_samples), &left_out, &counts);
    if training.is_empty() {
        return Err(Error::request(
            "no list contributes to the loss: every list has equal rewards or fewer than two different responses; give the file rewards that differ",
        ));
    }
    super::plan::admit_train(args, policy.model.config(), &training)?;
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
    Ok(Value::Object(summary))
}

/// A row of the file with ids: the recorded ones where there are any, encoded ones otherwise.
pub(super) fn candidate_list<B: Backend>(
    policy: &Policy<B>,
    row: &CandidateRow,
    index: usize,
    scores: &[f64],
) -> Result<CandidateList> {
    let prompt_ids = match &row.prompt_token_ids {
        Some(ids) if policy.tokenizer.decode(ids, true)? == row.prompt => ids.clone(),
        _ => policy.encode_prompt(&row.prompt)?,
    };
    let mut candidates = Vec::with_capacity(row.responses.len());
    for (i, text) in row.responses.iter().enumerate() {
        let ids = match row.token_ids.get(i) {
            // A text that was edited by hand no longer is what its ids say.
            Some(ids) if still_says(policy, ids, text, &row.stop_strings)? => ids.clone(),
            _ => match row.finish_reason.get(i).map(String::as_str) {
                // Nothing ended the text.
                Some("length" | "stop_string") => policy.tokenizer.encode(text)?,
                _ => policy.encode_response(text)?,
            },
        };
        candidates.push(Candidate {
            ids,
            logps: Vec::new(),
            text: text.clone(),
            finish_reason: None,
            iteration: row.iteration.get(i).copied().unwrap_or(0),
            temperature: row.temperature.get(i).map_or(1.0, |&t| f64::from(t)),
            seed: row.seed.get(i).copied().unwrap_or(0),
            reward: scores[i],
        });
    }
    Ok(CandidateList {
        prompt_index: index,
        prompt: row.prompt.clone(),
        prompt_ids,
        reference: row.reference.clone(),
        candidates,
    })
}

/// Whether `text` is what `ids` decode to, up to the first stop string.
fn still_says<B: Backend>(policy: &Policy<B>, ids: &[u32], text: &str, stop: &[String]) -> Result<bool> {
    let mut decoded = policy.tokenizer.decode(ids, true)?;
    if let Some(end) = first_stop(&decoded, stop) {
        decoded.truncate(end);
    }
    Ok(decoded == text)
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
