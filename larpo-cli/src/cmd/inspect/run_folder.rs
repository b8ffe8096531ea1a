//! The story of a run, from the files that it leaves.

use crate::cmd::{ending, losses};
use crate::edits;
use crate::error::{Error, Result};
use crate::messages::count;
use crate::numbers::number;
use crate::resume;
use crate::run_record;
use crate::table::Table;
use larpo_data::candidates;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// What there is to show in a folder.
pub(super) enum Found {
    /// Iterations of `align`, by number.
    Iterations(Vec<u64>),
    /// The log of `sft` or `train`.
    Metrics(PathBuf),
    /// The record of a run that has logged nothing yet.
    Record,
    /// A data file.
    File(PathBuf),
}

/// Rows of metrics shown; of a longer log the rows between are left out.
const SHOWN: usize = 12;

/// Looks for the one thing that a folder holds.
///
/// # Errors
/// A folder that cannot be read, that holds nothing known, or more than one thing.
pub(super) fn find(folder: &Path) -> Result<Found> {
    let (mut iterations, mut data) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let entry = entry.map_err(Error::io(folder, "read"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_file = entry.path().is_file();
        if let Some(number) = name.strip_prefix("iteration-").and_then(|n| n.parse().ok()) {
            iterations.push(number);
        } else if is_file && name != "metrics.jsonl" && is_data(&name) {
            data.push(name);
        }
    }
    iterations.sort_unstable();
    data.sort();
    let metrics = folder.join("metrics.jsonl");
    let mut kinds = Vec::new();
    if !iterations.is_empty() {
        kinds.push(format!("the iterations of `align` ({})", folder.join("iteration-*").display()));
    }
    if metrics.is_file() {
        kinds.push(format!("the log of `sft` or `train` ({})", metrics.display()));
    }
    match (kinds.len(), data.len()) {
        (1, _) if !iterations.is_empty() => Ok(Found::Iterations(iterations)),
        (1, _) => Ok(Found::Metrics(metrics)),
        (0, 0) if folder.join(run_record::FILE).is_file() => Ok(Found::Record),
        (0, 1) => Ok(Found::File(folder.join(&data[0]))),
        (0, 0) => Err(Error::request(format!(
            "{}: neither iteration-<n>/ nor metrics.jsonl nor a data file is in the folder; name a data file, and give the \
             folder of a model as --tokenizer to see its tokens",
            folder.display()
        ))),
        (0, _) => Err(Error::request(format!(
            "{}: the folder holds several data files; name one of them: {}",
            folder.display(),
            data.join(", ")
        ))),
        _ => Err(Error::request(format!(
            "{}: the folder holds more than one run: {}; name iteration-<n>, or move the log elsewhere",
            folder.display(),
            kinds.join(" and ")
        ))),
    }
}

fn is_data(name: &str) -> bool {
    let name = name.strip_suffix(".gz").unwrap_or(name);
    [".jsonl", ".csv", ".tsv", ".txt"].iter().any(|end| name.ends_with(end))
}

/// The iterations as a table.
///
/// # Errors
/// A candidates file that cannot be read.
pub(super) fn iterations(folder: &Path, numbers: &[u64]) -> Result<Value> {
    let headings = [
        "iteration",
        "temperature",
        "prompts",
        "mean reward",
        "best",
        "lists",
        "used",
        "equal",
        "alike",
        "steps",
        "loss",
        "accuracy",
        "margin",
        "ndcg",
        "kl",
    ];
    let read = |name: &str| read_json(&folder.join(name)).map(Option::unwrap_or_default);
    let start = read("start.json")?;
    let watched = start.is_object().then_some("watched reward");
    let mut table = Table::new(headings.into_iter().chain(watched));
    let (mut rows, mut notes, mut manifests) = (Vec::new(), Vec::new(), Vec::new());
    for &n in numbers {
        let iteration = folder.join(format!("iteration-{n}"));
        let manifest = read_json(&iteration.join("manifest.json")).unwrap_or_else(|error| {
            notes.push(format!("iteration {n}: {error}"));
            None
        });
        let candidates = iteration.join("candidates.jsonl");
        let numbered = if candidates.is_file() { Some(candidates::read_numbered(&candidates)?) } else { None };
        let wrong =
            numbered.as_ref().and_then(|rows| edits::numbering(n, rows, manifest.as_ref().unwrap_or(&Value::Null)));
        notes.extend(wrong);
        let lists = numbered.map(|rows| rows.into_iter().map(|(_, list)| list).collect::<Vec<_>>());
        let seen = lists.as_ref().map(|lists| rewards(lists));
        let report = manifest.as_ref().map(|manifest| &manifest["report"]);
        let get = |path: &[&str]| report.and_then(|report| path.iter().try_fold(report, |value, key| value.get(key)));
        let cell = |path: &[&str]| get(path).map_or("-".into(), number_of);
        match (&manifest, &seen) {
            (None, _) if iteration.join("manifest.json").is_file() => {}
            (None, None) => notes.push(format!("iteration {n} has just begun: no candidates yet")),
            (None, Some(_)) => notes.push(format!("iteration {n} is not finished: it has candidates and no manifest")),
            (Some(_), None) => {}
            (Some(_), Some((_, mean, _))) => {
                let told = get(&["mean_reward"]).and_then(Value::as_f64);
                if let (Some(told), Some(mean)) = (told, mean)
                    && (told - mean).abs() > 1e-9 * (1.0 + told.abs())
                {
                    notes.push(format!(
                        "iteration {n}: candidates.jsonl has changed since: its mean reward is {}, the \
                         manifest's {}",
                        number(*mean),
                        number(told)
                    ));
                }
            }
        }
        // Without a manifest the candidates tell how far it went.
        let or_seen = |path: &[&str], value: Option<f64>| match get(path) {
            Some(found) => number_of(found),
            None => value.map_or("-".into(), |value| number_of(&json!(value))),
        };
        let cells = [
            n.to_string(),
            cell(&["temperature"]),
            or_seen(&["prompts"], seen.as_ref().map(|(prompts, _, _)| *prompts as f64)),
            or_seen(&["mean_reward"], seen.as_ref().and_then(|(_, mean, _)| *mean)),
            or_seen(&["best_reward"], seen.as_ref().and_then(|(_, _, best)| *best)),
            cell(&["lists", "lists"]),
            cell(&["lists", "contributing"]),
            cell(&["lists", "equal"]),
            cell(&["lists", "too_short"]),
            cell(&["training", "steps"]),
            cell(&["training", "loss"]),
            cell(&["training", "rewards/accuracies"]),
            cell(&["training", "rewards/margins"]),
            cell(&["training", "rank/ndcg"]),
            cell(&["kl", "mean"]),
        ];
        table.row(cells.into_iter().chain(watched.map(|_| cell(&["watched", "mean_reward"]))));
        if manifest.is_some() {
            notes.extend(losses::sentences(n, &iteration));
        }
        // Rows of a file that is missing are not deleted by hand.
        let edited = lists.as_deref().map_or(Ok((0, 0)), |lists| edits::counts(&iteration, lists));
        let edited = edited.unwrap_or_else(|error| {
            notes.push(format!("iteration {n}: {error}"));
            (0, 0)
        });
        notes.extend(edits::sentence(n, edited));
        rows.push(json!({
            "iteration": n,
            "finished": manifest.is_some(),
            "report": report,
            "edited_rows": { "taken_up": edited.0, "since": edited.1 },
            "candidates": seen.map(|(prompts, mean, best)| json!({
                "prompts": prompts, "mean_reward": mean, "best_reward": best
            })),
        }));
        manifests.push(manifest.unwrap_or_default());
    }
    let looks = ending::looks(&start, manifests.iter());
    let done = manifests.iter().filter(|manifest| manifest.is_object()).count();
    let record = read("run.json")?;
    let ended = ending::sentences(&record, done, &looks);
    notes.extend(run_record::damage(folder));
    notes.extend(losses::final_model(folder, &record));
    show!("{}", folder.display());
    show!("{}", table.to_string().trim_end());
    if let Some(first) = looks.first() {
        show!("mean reward of the watched prompts at the start: {}", number(first.mean_reward));
    }
    if !ended.is_empty() {
        show!("{}", ended.join(" "));
    }
    notes.iter().for_each(|note| show!("note: {note}"));
    let start = &start["watched"];
    Ok(json!({ "path": folder, "iterations": rows, "start": start, "ended": ended, "notes": notes }))
}

/// Prompts, mean reward, and mean of the best rewards; none where nothing is scored.
fn rewards(lists: &[candidates::CandidateList]) -> (usize, Option<f64>, Option<f64>) {
    let all: Vec<f64> = lists.iter().flat_map(|list| list.rewards.iter().copied()).collect();
    let best = |list: &candidates::CandidateList| list.rewards.iter().copied().reduce(f64::max);
    let bests: Vec<f64> = lists.iter().filter_map(best).collect();
    let mean = |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    (lists.len(), mean(&all), mean(&bests))
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    serde_json::from_str(&text).map(Some).map_err(|error| {
        Error::request(format!("{}:{}: not JSON: {error}; restore it or remove it", path.display(), error.line()))
    })
}

fn number_of(value: &Value) -> String {
    match value {
        Value::Number(n) if n.is_f64() => number(n.as_f64().unwrap_or(f64::NAN)),
        Value::Number(n) => n.to_string(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

/// A run that was interrupted before it left anything but its record.
///
/// # Errors
/// A record that cannot be read.
pub(super) fn record(folder: &Path) -> Result<Value> {
    let record = read_json(&folder.join(run_record::FILE))?.unwrap_or_default();
    let ended = ending::sentences(&record, 0, &[]);
    show!("{}", folder.display());
    show!("a run of `larpo {}` that has logged nothing yet", record["verb"].as_str().unwrap_or("?"));
    show!("{}", ended.join(" "));
    Ok(json!({ "path": folder, "verb": record["verb"], "ended": ended }))
}

/// The log of a training as a table.
///
/// # Errors
/// A file that cannot be read or has rows of another kind.
pub(super) fn metrics(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    let mut rows: Vec<Map<String, Value>> = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        rows.push(serde_json::from_str(line).map_err(|error| {
            Error::request(format!("{}:{}: expected a JSON object, found {error}", path.display(), number + 1))
        })?);
    }
    let mut names: Vec<&String> = Vec::new();
    for name in rows.iter().flat_map(Map::keys) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut table = Table::new(names.iter().map(|name| name.to_string()));
    let shown = rows.len().min(SHOWN);
    for i in 0..shown {
        // Evenly over the log, its first and last row among them.
        let row = &rows[if shown > 1 { i * (rows.len() - 1) / (shown - 1) } else { 0 }];
        table.row(names.iter().map(|name| row.get(*name).map_or("-".into(), number_of)));
    }
    show!("{}: {}, {shown} of them shown", path.display(), count(rows.len(), "rows"));
    show!("{}", table.to_string().trim_end());
    let record = read_json(&path.with_file_name("run.json"))?.unwrap_or_default();
    let ended = ending::sentences(&record, 0, &[]);
    if !ended.is_empty() {
        show!("{}", ended.join(" "));
    }
    let lost = |folder: &Path| {
        [
            run_record::damage(folder),
            losses::final_log(folder, &record),
            losses::final_model(folder, &record),
            // Of an iteration that is named itself.
            resume::finished(folder).then(|| losses::written(folder)).flatten(),
        ]
    };
    let notes: Vec<String> = path.parent().map(lost).into_iter().flatten().flatten().collect();
    notes.iter().for_each(|note| show!("note: {note}"));
    Ok(
        json!({ "path": path, "rows": rows.len(), "first": rows.first(), "last": rows.last(), "ended": ended, "notes": notes }),
    )
}
