//! What a run left in its folder, read back. A file that is missing or damaged makes a note, not a failure: a report of a
//! run that broke off is worth having.

use super::command;
use super::evaluation::Evaluation;
use super::settings::texts;
use crate::align::START;
use crate::cmd::losses;
use crate::edits;
use crate::error::{Error, Result};
use crate::run_record;
use larpo_data::candidates::{self, CandidateList};
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};

/// A run folder.
#[derive(Default)]
pub struct Run {
    /// Where it is.
    pub folder: PathBuf,
    /// The command that repeats it, as far as it is known.
    pub command: Option<String>,
    /// `run.json`; null where there is none, as below.
    pub record: Value,
    /// `start.json`: the first policy on the watched prompts.
    pub first_look: Value,
    /// Iterations, by number.
    pub iterations: Vec<Iteration>,
    /// Lines of the folder's own metrics.jsonl.
    pub training: Vec<Map<String, Value>>,
    /// What `larpo eval` found, where it was put into the folder.
    pub eval: Option<Evaluation>,
    /// What could not be read.
    pub notes: Vec<String>,
}

/// An `iteration-<n>/` folder.
pub struct Iteration {
    /// n.
    pub number: u32,
    /// Its manifest; null where there is none.
    pub manifest: Value,
    /// Its fresh candidates.
    pub lists: Vec<CandidateList>,
    /// Lines of its metrics.jsonl.
    pub training: Vec<Map<String, Value>>,
    /// Rows of its candidates that people edited: those that were taken up, and those edited since.
    pub edited: (usize, usize),
}

/// The file in the run folder that `larpo eval --output` may write.
pub const EVAL: &str = "eval.json";

impl Run {
    /// Reads a folder.
    ///
    /// # Errors
    /// A folder that cannot be listed, or in which no verb left anything to report.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut notes = Vec::new();
        let mut iterations = Vec::new();
        for (number, path) in iteration_folders(folder)? {
            iterations.push(read_iteration(number, &path, &mut notes)?);
        }
        let training = read_metrics(&folder.join("metrics.jsonl"), &mut notes)?.unwrap_or_default();
        let read = |name: &str, notes: &mut Vec<String>| read_json(&folder.join(name), notes);
        let (record, eval) = (read("run.json", &mut notes)?, read(EVAL, &mut notes)?);
        let first_look = read(START, &mut notes)?;
        if iterations.is_empty() && training.is_empty() && eval.is_null() && !record.is_object() {
            return Err(Error::request(format!(
                "{} holds nothing to report: no iteration-<n>/ of `larpo align` or `larpo demo`, no metrics.jsonl of \
                 `larpo sft` or `larpo train`, no run.json; name the --output_dir of a run",
                folder.display()
            )));
        }
        notes.extend(run_record::damage(folder));
        notes.extend(losses::final_log(folder, &record));
        notes.extend(losses::final_model(folder, &record));
        let command = command::of_record(&record, folder).map(|words| command::joined(&words));
        let mut run =
            Self { folder: folder.into(), command, record, first_look, iterations, training, eval: None, notes };
        if eval.is_object() {
            run.eval = Some(Evaluation::new(&run, eval));
        }
        Ok(run)
    }

    /// Where the policy after an iteration is.
    pub fn model_after(&self, iteration: u32) -> PathBuf {
        self.folder.join(format!("iteration-{iteration}/model"))
    }

    /// The newest manifest; null where there is none.
    fn manifest(&self) -> &Value {
        self.iterations.iter().rev().map(|i| &i.manifest).find(|m| m.is_object()).unwrap_or(&Value::Null)
    }

    /// The settings in the newest manifest.
    pub fn config(&self) -> &Value {
        &self.manifest()["config"]
    }

    /// The version of larpo in the newest manifest.
    pub fn version(&self) -> &Value {
        &self.manifest()["larpo"]
    }

    /// What the manifest records under the name of a flag.
    pub fn recorded(&self, name: &str) -> Vec<String> {
        let config = self.config();
        let found = [&config[name], &config["source"][name], &config["optimizer"][name]];
        found.into_iter().find(|value| !value.is_null()).map(texts).unwrap_or_default()
    }

    /// The values of a flag of the run: as it was given, or else as the manifest records it.
    pub fn flag(&self, name: &str) -> Vec<String> {
        match &self.record["flags"][name] {
            Value::Null => self.recorded(name),
            given => texts(given),
        }
    }

    /// The model that the run started from, where the files name it.
    pub fn start(&self) -> Option<String> {
        let demo = self.folder.join("sft");
        let named = self.flag("model_name_or_path").into_iter().next();
        // Where the demo leaves the model before the first iteration.
        named.or_else(|| demo.is_dir().then(|| demo.display().to_string()))
    }

    /// The iteration whose model is in the folder itself.
    pub fn kept(&self) -> Option<u32> {
        match self.record["result"]["summary"]["best_iteration"].as_u64() {
            Some(best) => u32::try_from(best).ok(),
            None => self.iterations.last().map(|i| i.number),
        }
    }
}

/// `iteration-<n>` folders, by n.
fn iteration_folders(folder: &Path) -> Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(number) = name.strip_prefix("iteration-").and_then(|n| n.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

fn read_iteration(number: u32, folder: &Path, notes: &mut Vec<String>) -> Result<Iteration> {
    let manifest = read_json(&folder.join("manifest.json"), notes)?;
    let path = folder.join("candidates.jsonl");
    let lists = match path.is_file() {
        true => candidates::read_numbered(&path).unwrap_or_else(|error| {
            notes.push(format!("left out: {error}"));
            Vec::new()
        }),
        false => Vec::new(),
    };
    notes.extend(edits::numbering(number.into(), &lists, &manifest));
    let lists: Vec<CandidateList> = lists.into_iter().map(|(_, list)| list).collect();
    let training = read_metrics(&folder.join("metrics.jsonl"), notes)?;
    match manifest.is_null() {
        true => notes.push(format!("iteration {number} has no manifest.json: it was not finished")),
        false => notes.extend(losses::sentences(number.into(), folder)),
    }
    // Of candidates that cannot be read nothing can be told.
    let edited = if lists.is_empty() { Ok((0, 0)) } else { edits::counts(folder, &lists) };
    let edited = edited.unwrap_or_else(|error| {
        notes.push(format!("iteration {number}: {error}"));
        (0, 0)
    });
    Ok(Iteration { number, manifest, lists, training: training.unwrap_or_default(), edited })
}

/// The bytes of a file as text; `None` where there is none.
fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, "read")(error)),
    }
}

/// A JSON file; null where there is none or where it is damaged, of which there is a note.
fn read_json(path: &Path, notes: &mut Vec<String>) -> Result<Value> {
    let Some(text) = read_text(path)? else { return Ok(Value::Null) };
    Ok(serde_json::from_str(&text).unwrap_or_else(|error| {
        notes.push(format!("left out: {} is no JSON ({error})", path.display()));
        Value::Null
    }))
}

/// The lines of a metrics file; damaged ones (the last of a run that was killed) are counted in a note.
fn read_metrics(path: &Path, notes: &mut Vec<String>) -> Result<Option<Vec<Map<String, Value>>>> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let rows: Vec<_> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if rows.len() < lines.len() {
        let count = lines.len() - rows.len();
        notes.push(format!(
            "{}: {} no JSON object, of {}; left out",
            path.display(),
            if count == 1 { "1 line is".to_string() } else { format!("{count} lines are") },
            lines.len()
        ));
    }
    Ok(Some(rows))
}
