//! `run.json`: what a run was started with, so that it goes on with the same or not at all.
//!
//! It ends with a checksum of what stands before it. Checkpoints and iterations keep copies, from which it is restored where it
//! is damaged or missing.

use crate::args::{Iterations, Settings};
use crate::checkpoint;
use crate::error::{Error, Result};
use crate::policy::{check_folder, model_folder_of};
use crate::resume::{ITERATION, LOG};
use crate::version::Build;
use larpo_data::chat::template_files;
use larpo_data::checksums::Checksum;
use larpo_data::files;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The file in the output folder.
pub const FILE: &str = "run.json";
/// Its copy in a checkpoint or an iteration. The name is another one: what holds a copy is no run.
pub const COPY: &str = "run.copy.json";
const VERSION: u32 = 2;
/// Without a checksum.
const UNSEALED: u32 = 1;
/// What stands before the checksum.
const SEAL: &str = ",\n  \"checksum\": \"";
/// The verb of a record whose folder the demo made, and may make again.
pub const DEMO: &str = "demo";

/// Why `--iterations +n` is refused.
pub fn no_run(n: usize) -> String {
    format!(
        "--iterations +{n} needs a run to go on with, and output_dir holds none; give the output_dir of one, or \
         --iterations {n} to begin one"
    )
}

/// Flags that change nothing about the result, or that the run may be continued with at another value; the inputs among
/// them are compared by their contents.
pub(crate) const FREE: [&str; 30] = [
    "autotune",
    "cache_dir",
    "color",
    "config",
    "config_name",
    "dataset_name",
    "deterministic",
    "device",
    "early_stopping_patience",
    "eval_dataset",
    "gpu_precision",
    "gradient_checkpointing",
    "iterations",
    "json",
    "log_level",
    "model_name_or_path",
    "no_cache",
    "on_device_lost",
    "output_dir",
    "overwrite_output_dir",
    "pairwise_ranker",
    "quiet",
    "ranker_template",
    "report_to",
    "resume_from_checkpoint",
    "reward_model",
    "save_steps",
    "save_total_limit",
    "threads",
    "until_kl",
];

/// The record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    version: u32,
    /// Version of the program that began the run.
    pub larpo: String,
    /// The program and the machine that began the run, or went on with it last; none in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// Where the run was begun, or gone on with last: relative paths among the flags begin there; none in records of older
    /// versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// The verb.
    pub verb: String,
    /// Every flag, defaults included.
    pub flags: BTreeMap<String, Vec<String>>,
    /// Flags that were given; not recorded.
    #[serde(skip)]
    given: BTreeSet<String>,
    /// What the run reads, by flag.
    pub inputs: BTreeMap<String, Input>,
    /// How far a run of `align` is to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// What the finished run printed; none while it is not finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<RunResult>,
}

/// How far a run of `align` is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goal {
    /// Iterations in all.
    pub iterations: usize,
    /// The N of `--iterations +N` that led there.
    pub more: Option<usize>,
    /// Iterations that were done when that was asked for.
    pub base: usize,
}

impl Goal {
    /// The goal of `--iterations`, which was `given` or is the default. `earlier` is the record of the run that goes on,
    /// of which `done` iterations are finished. Asking for `+N` again while that goal is not reached asks for the same.
    ///
    /// # Errors
    /// `+N` without a run to go on with, or fewer iterations than are done.
    pub fn new(asked: Iterations, given: bool, earlier: Option<&RunRecord>, done: usize) -> Result<Self> {
        let known = earlier.and_then(|record| Some((record.goal?, record.result.is_some())));
        match (asked, known) {
            (_, Some((goal, _))) if !given => Ok(goal),
            (Iterations::Total(n), _) if n < done => Err(Error::request(format!(
                "--iterations {n}: {done} iterations of the run are finished; ask for as many or more, or for +N"
            ))),
            (Iterations::Total(iterations), Some((goal, _))) if iterations == goal.iterations => Ok(goal),
            (Iterations::Total(iterations), known) => {
                let base = known.map_or(0, |(goal, finished)| if finished { done } else { goal.base });
                Ok(Self { iterations, more: None, base })
            }
            (Iterations::More(n), Some((goal, false))) if goal.more == Some(n) => Ok(goal),
            (Iterations::More(n), Some((goal, finished))) => {
                // Iterations that were finished and are damaged now are made again, and N beside them.
                let finished_then = earlier.and_then(RunRecord::iterations_done).unwrap_or(0);
                let base = if finished { done.max(finished_then) } else { goal.iterations };
                Ok(Self { iterations: base + n, more: Some(n), base })
            }
            (Iterations::More(n), None) => Err(Error::request(no_run(n))),
        }
    }
}

/// A file or model folder that a run reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Where it was.
    pub path: PathBuf,
    /// Checksums of its files, by name.
    pub files: BTreeMap<String, String>,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The object that `--json` prints.
    pub summary: Value,
    /// Checksum of the final model's weights.
    pub model: String,
    /// Checksum of the log in the run's folder, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

/// What a file that should be a record is.
enum Found {
    Whole(Box<RunRecord>),
    Missing,
    Damaged(String),
}

impl RunRecord {
    /// The record of a run that is about to start.
    ///
    /// # Errors
    /// An input that cannot be read.
    pub fn new(verb: &str, settings: &Settings, inputs: &[(&str, &Path)]) -> Result<Self> {
        let mut known: BTreeMap<String, Input> = BTreeMap::new();
        for &(flag, path) in inputs {
            if flag == "model_name_or_path" {
                check_folder(path)?;
            }
            let files = checksums(path)?;
            match known.get_mut(flag) {
                None => {
                    known.insert(flag.to_string(), Input { path: path.to_path_buf(), files });
                }
                // A flag that names several files.
                Some(input) => input.files.extend(files.into_values().map(|sum| (path.display().to_string(), sum))),
            }
        }
        Ok(Self {
            version: VERSION,
            larpo: env!("CARGO_PKG_VERSION").into(),
            build: Some(Build::current()),
            directory: std::env::current_dir().ok().map(|path| path.display().to_string()),
            verb: verb.into(),
            flags: settings.values(),
            given: settings.given(),
            goal: None,
            inputs: known,
            result: None,
        })
    }

    /// On which device the run is.
    pub fn device(&self) -> Option<&str> {
        self.build.as_ref()?.device.as_deref()
    }

    /// Sets on which device the run is.
    pub fn set_device(&mut self, device: String) {
        self.build.get_or_insert_with(Build::current).device = Some(device);
    }

    /// The record of a folder; none where it has none.
    ///
    /// # Errors
    /// A record that is damaged and of which there is no copy; one of another version.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        Ok(Self::find(folder)?.map(|(record, _)| record))
    }

    /// The record of a folder. Where it is damaged or missing it is the newest copy that a checkpoint or an iteration has, with
    /// a sentence about that.
    ///
    /// # Errors
    /// As [`RunRecord::read`].
    pub fn find(folder: &Path) -> Result<Option<(Self, Option<String>)>> {
        let path = folder.join(FILE);
        let (problem, missing) = match Self::load(&path)? {
            Found::Whole(record) => return Ok(Some((*record, None))),
            Found::Missing => ("is missing".to_string(), true),
            Found::Damaged(how) => (format!("is damaged: {how}"), false),
        };
        for copy in copies(folder)? {
            if let Found::Whole(record) = Self::load(&copy)? {
                let note = format!("{} {problem}; it is restored from {}", path.display(), copy.display());
                return Ok(Some((*record, Some(note))));
            }
        }
        match missing {
            true => Ok(None),
            false => Err(Error::request(format!(
                "{} {problem}, and no checkpoint has a copy of it; restore it from a copy, or start anew with \
                 --overwrite_output_dir. It is not meant to be edited",
                path.display()
            ))),
        }
    }

    /// Reads one file.
    fn load(path: &Path) -> Result<Found> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Missing),
            Err(error) => return Err(Error::io(path, "read")(error)),
        };
        let text = String::from_utf8_lossy(&bytes);
        let whole = is_sealed(&text);
        let record: Self = match serde_json::from_str(&text) {
            Ok(record) => record,
            Err(_) if !whole && text.contains(SEAL) => return Ok(Found::Damaged(CHANGED.into())),
            Err(error) => return Ok(Found::Damaged(error.to_string())),
        };
        match record.version {
            VERSION if whole => Ok(Found::Whole(Box::new(record))),
            UNSEALED if !text.contains(SEAL) => Ok(Found::Whole(Box::new(record))),
            _ if !whole => Ok(Found::Damaged(CHANGED.into())),
            other => Err(Error::request(format!(
                "{} has version {other}, this program reads {VERSION}; use the version of larpo that wrote it ({})",
                path.display(),
                record.larpo
            ))),
        }
    }

    /// Records that the run in `folder` came to its end, and what it printed.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn finish(mut self, folder: &Path, summary: &Value) -> Result<()> {
        let model = weights(&checksums(folder)?);
        let log = folder.join(LOG);
        let log = log.is_file().then(|| Checksum::of_file(&log)).transpose()?.map(|sum| sum.to_string());
        self.result = Some(RunResult { summary: summary.clone(), model, log });
        self.write(folder)
    }

    /// Iterations that a finished run of `align` had done.
    fn iterations_done(&self) -> Option<usize> {
        self.result.as_ref()?.summary.get("iterations")?.as_array().map(Vec::len)
    }

    /// Writes the record, at once.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::request(error.to_string()))?;
        Ok(files::write_bytes(folder.join(FILE), sealed(&text).as_bytes())?)
    }

    /// Whether the run in `folder` is one of `verb`.
    ///
    /// # Errors
    /// It is one of another verb.
    pub fn check_verb(&self, verb: &str, folder: &Path) -> Result<()> {
        if self.verb == verb {
            return Ok(());
        }
        Err(Error::request(format!(
            "{} holds a run of `larpo {}`, not of `larpo {verb}`; give another --output_dir",
            folder.display(),
            self.verb
        )))
    }

    /// Whether the run may go on as `now` asks.
    ///
    /// # Errors
    /// Every flag and every input that differs and would change the result, with the old and the new value.
    pub fn check(&self, now: &Self, folder: &Path) -> Result<()> {
        self.check_verb(&now.verb, folder)?;
        let mut differences = Vec::new();
        let names = self.flags.keys().chain(now.flags.keys().filter(|name| !self.flags.contains_key(*name)));
        for name in names.filter(|name| !FREE.contains(&name.as_str())) {
            let (old, new) = (self.flags.get(name), now.flags.get(name));
            if old.is_none() && !now.given.contains(name) {
                // The default of a flag that the version of larpo that began the run did not have.
                continue;
            }
            // A tokenizer's folder is an input and compared by its contents.
            let is_input = name == "tokenizer" && [self, now].iter().all(|record| record.inputs.contains_key(name));
            if !is_input && !same(old, new) {
                differences.push(format!("--{name} was {} and is now {}", shown(old), shown(new)));
            }
        }
        for (flag, old) in &self.inputs {
            match now.inputs.get(flag) {
                Some(new) => differences.extend(old.difference(new).map(|what| format!("--{flag}: {what}"))),
                None if FREE.contains(&flag.as_str()) => differences.push(format!("--{flag} is not given any more")),
                None => {}
            }
        }
        let more = now.inputs.keys().filter(|flag| FREE.contains(&flag.as_str()) && !self.inputs.contains_key(*flag));
        differences.extend(more.map(|flag| format!("--{flag} was not given")));
        match differences.is_empty() {
            true => Ok(()),
            false => Err(Error::request(format!(
                "the run in {} cannot go on: since it began, {}. Give what it began with, or start anew in another \
                 --output_dir or with --overwrite_output_dir",
                folder.display(),
                differences.join("; ")
            ))),
        }
    }
}

impl Input {
    /// What is different, for people.
    fn difference(&self, now: &Self) -> Option<String> {
        let path = now.path.display();
        let changed = self.files.iter().find(|(name, sum)| now.files.get(*name) != Some(sum));
        let added = now.files.keys().find(|name| !self.files.contains_key(*name));
        match (changed, added) {
            (Some((name, _)), _) if !now.files.contains_key(name) => Some(format!("{path} has no {name} any more")),
            (Some((name, _)), _) if name.is_empty() => Some(format!("the contents of {path} have changed")),
            (Some((name, _)), _) => Some(format!("{name} in {path} has changed")),
            (None, Some(name)) => Some(format!("{path} has got a {name}")),
            (None, None) => None,
        }
    }
}

/// What is wrong with a record whose checksum does not fit.
const CHANGED: &str = "its checksum does not fit";

/// Pretty-printed JSON with its checksum as the last field.
pub(crate) fn sealed(object: &str) -> String {
    let open = object.strip_suffix("\n}").unwrap_or(object);
    format!("{open}{SEAL}{}\"\n}}\n", Checksum::of(object.as_bytes()))
}

/// Whether a text is what [`sealed`] makes.
pub(crate) fn is_sealed(text: &str) -> bool {
    text.rfind(SEAL).is_some_and(|at| sealed(&format!("{}\n}}", &text[..at])) == text)
}

/// Whether the record in `folder` is damaged, for people; none where it is not, or where there is none.
pub fn damage(folder: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&fs::read(folder.join(FILE)).ok()?).into_owned();
    let version = serde_json::from_str::<Value>(&text).ok()?["version"].as_u64();
    let without = version.is_none_or(|version| version == u64::from(UNSEALED)) && !text.contains(SEAL);
    (!without && !is_sealed(&text))
        .then(|| format!("{FILE} is damaged: {CHANGED}; the run restores it when it goes on"))
}

/// Keeps a copy of the record of `run` in `folder`; nothing where there is no record.
///
/// # Errors
/// A file that cannot be read or written.
pub fn copy(run: &Path, folder: &Path) -> Result<()> {
    let path = run.join(FILE);
    match fs::read(&path) {
        Ok(bytes) => Ok(files::write_bytes(folder.join(COPY), &bytes)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(&path, "read")(error)),
    }
}

/// Where copies of the record of a run may be, the newest first.
fn copies(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut places = Vec::new();
    for (_, iteration) in checkpoint::numbered(folder, ITERATION)? {
        let checkpoints = checkpoint::list(&iteration)?;
        places.push(iteration);
        places.extend(checkpoints.into_iter().map(|(_, path)| path));
    }
    places.extend(checkpoint::list(folder)?.into_iter().map(|(_, path)| path));
    Ok(places.into_iter().map(|place| place.join(COPY)).collect())
}

/// What stands before the names of the files of an adapter's base.
const BASE: &str = "base: ";

/// Checksums of a file (under the empty name), or of the files of a model folder that a model is made of; of an adapter, those of
/// its base too.
///
/// # Errors
/// A file or folder that cannot be read.
pub fn checksums(path: &Path) -> Result<BTreeMap<String, String>> {
    if !path.is_dir() {
        return Ok(BTreeMap::from([(String::new(), Checksum::of_file(path)?.to_string())]));
    }
    let model = |name: &str| {
        name.ends_with(".safetensors")
            || matches!(
                name,
                "config.json"
                    | "adapter_config.json"
                    | "generation_config.json"
                    | "model.safetensors.index.json"
                    | "tokenizer.json"
                    | "tokenizer_config.json"
            )
    };
    let mut sums = BTreeMap::new();
    if let Some(base) = model_folder_of(path).ok().filter(|base| base != path) {
        sums.extend(checksums(&base)?.into_iter().map(|(name, sum)| (format!("{BASE}{name}"), sum)));
    }
    for entry in fs::read_dir(path).map_err(Error::io(path, "read"))? {
        let entry = entry.map_err(Error::io(path, "read"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if model(&name) {
            sums.insert(name, Checksum::of_file(entry.path())?.to_string());
        }
    }
    for file in template_files(path)? {
        let name = file.strip_prefix(path).unwrap_or(&file).display().to_string();
        sums.insert(name, Checksum::of_file(&file)?.to_string());
    }
    Ok(sums)
}

/// Checksum of a model's weights among [`checksums`]; of several files, each one's name and checksum.
pub fn weights(files: &BTreeMap<String, String>) -> String {
    if let Some(single) = files.get("model.safetensors") {
        return single.clone();
    }
    let shards = files.iter().filter(|(name, _)| name.ends_with(".safetensors") && !name.starts_with(BASE));
    shards.map(|(name, sum)| format!("{name} {sum}")).collect::<Vec<_>>().join(", ")
}

/// Whether two values are the same, numbers by their value.
pub fn same(old: Option<&Vec<String>>, new: Option<&Vec<String>>) -> bool {
    let equal = |(old, new): (&String, &String)| match (old.parse::<f64>(), new.parse::<f64>()) {
        (Ok(old), Ok(new)) => old == new,
        _ => old == new,
    };
    match (old, new) {
        (Some(old), Some(new)) => old.len() == new.len() && old.iter().zip(new).all(equal),
        (old, new) => old == new,
    }
}

fn shown(value: Option<&Vec<String>>) -> String {
    value.map_or("not given".into(), |values| values.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Origin, Setting};

    fn record(flags: &[(&str, &str)], inputs: &[(&str, &Path)]) -> RunRecord {
        let setting = |&(key, value): &(&str, &str)| Setting {
            key: key.into(),
            values: value.split(',').map(String::from).collect(),
            switch: false,
            list: false,
            origin: Origin::Flag,
        };
        RunRecord::new("align", &Settings(flags.iter().map(setting).collect()), inputs).expect("inputs")
    }

    #[test]
    fn a_flag_that_would_change_the_result_is_refused_by_name() {
        let folder = Path::new("out");
        let old = record(&[("beta", "0.1"), ("temperature", "1.0,0.7"), ("threads", "2"), ("iterations", "3")], &[]);
        let same = record(&[("beta", "1e-1"), ("temperature", "1,.7"), ("threads", "1"), ("iterations", "5")], &[]);
        old.check(&same, folder).expect("the same values");
        let other = record(&[("beta", "0.2"), ("temperature", "1.0"), ("top_k", "5")], &[]);
        let error = old.check(&other, folder).expect_err("other values").to_string();
        for part in [
            "--beta was 0.1 and is now 0.2",
            "--temperature was 1.0,0.7 and is now 1.0",
            "--top_k was not given and is now 5",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains("threads") && !error.contains("iterations"), "{error}");
        let newer = RunRecord { given: BTreeSet::new(), ..record(&[("new_flag", "7")], &[]) };
        record(&[], &[]).check(&newer, folder).expect("the default of a flag that is new");
        let verb = RunRecord { verb: "sft".into(), ..old.clone() };
        assert!(old.check(&verb, folder).expect_err("another verb").to_string().contains("larpo align"));
    }

    #[test]
    fn more_iterations_are_counted_from_what_the_run_had() {
        let record = |iterations, more, base, finished: bool| RunRecord {
            goal: Some(Goal { iterations, more, base }),
            result: finished.then(|| RunResult { summary: Value::Null, model: String::new(), log: None }),
            ..record(&[], &[])
        };
        let goal = |asked: &str, earlier: Option<&RunRecord>, done| {
            let asked: Iterations = asked.parse().expect("iterations");
            Goal::new(asked, true, earlier, done).map(|goal| (goal.iterations, goal.base)).map_err(|e| e.to_string())
        };
        assert_eq!(goal("3", None, 0), Ok((3, 0)));
        assert!(goal("+2", None, 0).expect_err("nothing there").contains("+2 needs a run"));
        let three = record(3, None, 0, true);
        assert_eq!(goal("+2", Some(&three), 3), Ok((5, 3)));
        assert_eq!(goal("5", Some(&three), 3), Ok((5, 3)));
        assert_eq!(goal("3", Some(&three), 3), Ok((3, 0)));
        assert!(goal("2", Some(&three), 3).expect_err("fewer").contains("3 iterations of the run are finished"));
        // Interrupted on the way to five: asking again asks for the same.
        let five = record(5, Some(2), 3, false);
        assert_eq!(goal("+2", Some(&five), 4), Ok((5, 3)));
        assert_eq!(goal("+1", Some(&five), 4), Ok((6, 5)));
        assert_eq!(goal("+2", Some(&record(5, Some(2), 3, true)), 5), Ok((7, 5)));
        // One of the three that were finished is damaged: it is made again, and two beside them.
        let summary = serde_json::json!({ "iterations": [{}, {}, {}] });
        let damaged = RunRecord {
            result: Some(RunResult { summary, model: String::new(), log: None }),
            ..record(3, None, 0, true)
        };
        assert_eq!(goal("+2", Some(&damaged), 2), Ok((5, 3)));
        // Ended early after two of three.
        assert_eq!(goal("+2", Some(&three), 2), Ok((4, 2)));
        let kept = Goal::new(Iterations::Total(3), false, Some(&five), 4).expect("as before");
        assert_eq!(kept, Goal { iterations: 5, more: Some(2), base: 3 });
    }

    #[test]
    fn a_damaged_record_is_found_and_restored_from_the_newest_copy() {
        let folder = std::env::temp_dir().join(format!("larpo-record-copies-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        for place in ["checkpoint-5", "checkpoint-40", "iteration-9/checkpoint-3", "iteration-10"] {
            fs::create_dir_all(folder.join(place)).expect("creates");
        }
        assert_eq!(RunRecord::read(&folder).expect("none"), None);
        let path = folder.join(FILE);
        record(&[("beta", "0.1"), ("seed", "3")], &[]).write(&folder).expect("writes");
        let old = RunRecord::read(&folder).expect("reads").expect("is there");
        let whole = fs::read(&path).expect("reads");
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, &bad).expect("writes");
            let error = RunRecord::read(&folder).expect_err("damaged").to_string();
            assert!(error.contains("run.json is damaged: "), "byte {at}: {error}");
        }
        fs::write(&path, &whole).expect("writes");
        // The newest copy that is whole.
        let newest = |place: &str| {
            for bytes in [Some(&whole[..9]), None] {
                match bytes {
                    Some(bytes) => fs::write(&path, bytes).expect("writes"),
                    None => fs::remove_file(&path).expect("removes"),
                }
                let (found, note) = RunRecord::find(&folder).expect("a copy").expect("a copy");
                assert_eq!(found, old);
                let note = note.expect("said");
                assert!(
                    note.ends_with(&format!("restored from {}", folder.join(place).join(COPY).display())),
                    "{note}"
                );
            }
            fs::write(&path, &whole).expect("writes");
        };
        for place in ["checkpoint-5", "checkpoint-40", "iteration-9/checkpoint-3", "iteration-10"] {
            copy(&folder, &folder.join(place)).expect("copies");
            newest(place);
        }
        fs::write(folder.join("iteration-10").join(COPY), &whole[1..]).expect("writes");
        newest("iteration-9/checkpoint-3");
        // Records of a version that had no checksum.
        let text = String::from_utf8(whole).expect("text").replacen("\"version\": 2", "\"version\": 1", 1);
        let plain = format!("{}\n}}\n", &text[..text.rfind(SEAL).expect("a checksum")]);
        fs::write(&path, plain).expect("writes");
        assert_eq!(RunRecord::read(&folder).expect("reads").expect("is there").flags, old.flags);
        fs::remove_dir_all(&folder).expect("removes");
    }

    #[test]
    fn a_changed_input_is_refused_by_name() {
        let folder = std::env::temp_dir().join(format!("larpo-record-{}", std::process::id()));
        let model = folder.join("model");
        fs::create_dir_all(&model).expect("creates");
        let data = folder.join("data.jsonl");
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("writes");
        write("data.jsonl", "one");
        write("model/config.json", "{}");
        write("model/model.safetensors", "weights");
        let now = || record(&[], &[("dataset_name", &data), ("model_name_or_path", &model)]);
        let old = now();
        old.write(&folder).expect("writes");
        let read = RunRecord::read(&folder).expect("reads").expect("is there");
        assert_eq!((&read.flags, &read.inputs), (&old.flags, &old.inputs));
        write("model/notes.txt", "no part of the model");
        old.check(&now(), &folder).expect("the same");
        let refused = |part: &str| {
            let error = old.check(&now(), &folder).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        };
        write("data.jsonl", "two");
        refused("--dataset_name: the contents of");
        write("data.jsonl", "one");
        write("model/model.safetensors", "weightS");
        refused("--model_name_or_path: model.safetensors in");
        fs::remove_file(model.join("model.safetensors")).expect("removes");
        refused("has no model.safetensors any more");
        write("model/model.safetensors", "weights");
        old.check(&now(), &folder).expect("the same again");
        write("model/chat_template.jinja", "{{ messages[0].content }}");
        refused("chat_template.jinja");
        write("run.json", "{");
        assert!(RunRecord::read(&folder).expect_err("damaged").to_string().contains("run.json"));
        fs::remove_dir_all(&folder).expect("removes");
    }
}
