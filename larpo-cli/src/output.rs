//! Output folders: created and locked before the work begins, and never mixed with what an earlier run left there.

use crate::align::START;
use crate::checkpoint::PREFIX as CHECKPOINT;
use crate::error::{Error, Result};
use crate::resume::ITERATION;
use crate::run_record::{self, DEMO, RunRecord};
use larpo_data::files;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// Files that a run leaves in its output folder. The record is removed last: while it is there, the run is known.
const FILES: [&str; 11] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "metrics.jsonl",
    "candidates.jsonl",
    "eval.json",
    "report.html",
    START,
    run_record::FILE,
];
/// Folders that it leaves there, one an iteration or checkpoint.
const FOLDERS: [&str; 2] = [ITERATION, CHECKPOINT];
/// What gives the folder.
pub const FLAG: &str = "--output_dir";
/// Locked by the run at work in the folder. The lock is the kernel's and ends with the process, however that ends; the file
/// itself stays and says nothing.
const LOCK: &str = ".larpo.lock";

/// The folder of a run that ends with a model.
#[derive(Debug)]
pub struct OutputDir<'a> {
    folder: &'a Path,
    overwrite: bool,
    /// Whether the folder was made here.
    made: bool,
    /// Keeps the lock.
    _lock: Option<File>,
}

impl Drop for OutputDir<'_> {
    /// A run that was refused leaves no folder behind: one that was made here and holds nothing but the lock goes again.
    fn drop(&mut self) {
        let only_lock = |entries: fs::ReadDir| entries.flatten().all(|entry| entry.file_name() == LOCK);
        if self.made && fs::read_dir(self.folder).is_ok_and(only_lock) {
            // Where either fails the folder stays, which harms nobody.
            let _ = fs::remove_file(self.folder.join(LOCK));
            let _ = fs::remove_dir(self.folder);
        }
    }
}

impl<'a> OutputDir<'a> {
    /// Creates the folder and sees whether it can be written to; nothing in it is touched yet.
    ///
    /// # Errors
    /// An earlier run in the folder without `overwrite`; a run at work in it or in a folder around it; one of the `inputs` among what would be replaced or removed; a
    /// folder that cannot be created or written to.
    pub fn check(folder: &'a Path, overwrite: bool, inputs: &[&Path]) -> Result<Self> {
        Self::check_for(folder, overwrite, inputs, ", --resume_from_checkpoint latest to go on with it,")
    }

    /// [`OutputDir::check`]; `goes_on` is what else can be done with an earlier run, in the middle of a sentence.
    fn check_for(folder: &'a Path, overwrite: bool, inputs: &[&Path], goes_on: &str) -> Result<Self> {
        let traces = traces(folder)?;
        if !traces.is_empty() && !overwrite {
            let shown: Vec<&str> = traces.iter().take(3).map(String::as_str).collect();
            let more = if traces.len() > shown.len() { ", …" } else { "" };
            return Err(Error::request(format!(
                "{} holds an earlier run ({}{more}); give another --output_dir{goes_on} or --overwrite_output_dir to \
                 replace it",
                folder.display(),
                shown.join(", ")
            )));
        }
        Self::spares(folder, inputs)?;
        Self::lock(folder, overwrite)
    }

    /// Refuses a run that would replace one of its `inputs`.
    ///
    /// # Errors
    /// One of the `inputs` among what would be replaced or removed.
    pub fn spares(folder: &Path, inputs: &[&Path]) -> Result<()> {
        let traces = traces(folder)?;
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        for input in inputs {
            // A model folder is replaced by another model in its place.
            let replaced = (real(input) == real(folder)).then(|| folder.to_path_buf());
            let old = traces.iter().map(|name| folder.join(name));
            let inside = old.chain(replaced).find(|old| real(input).starts_with(real(old)));
            if let Some(lost) = inside.filter(|_| !traces.is_empty()) {
                return Err(Error::request(format!(
                    "--overwrite_output_dir would replace {}, which this run starts from ({}); give another --output_dir",
                    lost.display(),
                    input.display()
                )));
            }
        }
        Ok(())
    }

    fn lock(folder: &'a Path, overwrite: bool) -> Result<Self> {
        free(&above(folder), folder, FLAG)?;
        let made = create(folder, FLAG)?;
        Ok(Self { folder, overwrite, made, _lock: lock(folder)? })
    }

    /// The folder of a run that goes on, whatever is in it.
    ///
    /// # Errors
    /// A folder that cannot be created or written to, or another run at work in it or in a folder around it.
    pub fn go_on(folder: &'a Path) -> Result<Self> {
        Self::lock(folder, false)
    }

    /// [`OutputDir::check`] for the demo, which replaces an earlier demo unasked: the same command makes it again. A folder
    /// that another run has written to since is none.
    ///
    /// # Errors
    /// As [`OutputDir::check`].
    pub fn check_demo(folder: &'a Path, overwrite: bool) -> Result<Self> {
        let traces = traces(folder)?;
        let foreign =
            |name: &String| name.starts_with(CHECKPOINT) || name == "metrics.jsonl" || name == "candidates.jsonl";
        let made = RunRecord::read(folder).is_ok_and(|record| record.is_some_and(|record| record.verb == DEMO));
        let demo = made && !traces.iter().any(foreign);
        Self::check_for(folder, overwrite || demo, &[], "")
    }

    /// Makes room for the run, once everything it starts from has been read: an earlier run's iterations, checkpoints and
    /// logs are removed. Its model stays until the new one takes its place.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn clear(&self) -> Result<()> {
        if !self.overwrite {
            return Ok(());
        }
        let replaced = [
            "adapter_config.json",
            "adapter_model.safetensors",
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
        ];
        let mut old = traces(self.folder)?;
        old.retain(|name| !replaced.contains(&name.as_str()));
        old.sort_by_key(|name| name == run_record::FILE);
        for path in old.into_iter().map(|name| self.folder.join(name)) {
            match path.is_dir() {
                true => files::remove_folder(&path)?,
                false => fs::remove_file(&path).map_err(Error::io(&path, "remove"))?,
            }
        }
        Ok(())
    }
}

/// Creates a folder that gets one file, `name`; the folder is what was given as `flag`.
///
/// # Errors
/// The file is there already and `overwrite` is off; a run at work in the folder or in one around it; a folder that cannot be created or written to.
pub fn prepare_file(folder: &Path, name: &str, overwrite: bool, flag: &str) -> Result<()> {
    let path = folder.join(name);
    if path.exists() && !overwrite {
        return Err(Error::request(format!(
            "{} exists; give another {flag}, or --overwrite_output_dir to replace it",
            path.display()
        )));
    }
    let mut folders = above(folder);
    folders.push(folder.to_path_buf());
    free(&folders, folder, flag)?;
    create(folder, flag)?;
    // What a killed process left half-written.
    larpo_data::files::remove_leftovers(folder)?;
    probe(folder)
}

/// Whether a file can be written in a folder.
///
/// # Errors
/// None can.
pub fn probe(folder: &Path) -> Result<()> {
    // Called as other temporary files are, so that one which a killed process left goes with them.
    let probe = folder.join(format!(".probe.{}-0.tmp", std::process::id()));
    fs::write(&probe, "").map_err(Error::io(folder, "write to"))?;
    fs::remove_file(&probe).map_err(Error::io(&probe, "remove"))
}

/// Names of what runs left in the folder, sorted; none where there is no folder.
///
/// # Errors
/// A folder that cannot be read.
pub fn traces(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(_) if !folder.is_dir() => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(folder, "read")(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io(folder, "read"))?.file_name().to_string_lossy().into_owned();
        let numbered = |prefix: &str| name.strip_prefix(prefix).is_some_and(|n| n.parse::<u64>().is_ok());
        let events = name.starts_with(crate::tensorboard::PREFIX);
        if events || FILES.contains(&name.as_str()) || FOLDERS.iter().any(|prefix| numbered(prefix)) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Creates the folder where it is not there; whether it was not.
fn create(folder: &Path, flag: &str) -> Result<bool> {
    if folder.exists() && !folder.is_dir() {
        let path = folder.display();
        return Err(Error::request(format!("{flag} {path} is a file; give the name of a folder")));
    }
    let made = !folder.exists();
    fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    Ok(made)
}

/// The folders that `folder` lies in, whether it is there already or not.
fn above(folder: &Path) -> Vec<PathBuf> {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
    // Links and `..` are followed as far as there is something.
    let known = absolute.ancestors().find_map(|path| Some((path == absolute, path.canonicalize().ok()?)));
    let (itself, real) = known.unwrap_or((false, absolute));
    real.ancestors().skip(usize::from(itself)).map(Path::to_path_buf).collect()
}

/// Refuses to write to `folder` while a run is at work in one of `folders`: what it left there could be taken for its own.
fn free(folders: &[PathBuf], folder: &Path, flag: &str) -> Result<()> {
    for run in folders {
        if let Some(holder) = at_work(run) {
            return Err(Error::request(format!(
                "another run{holder} is at work in {}, and {} belongs to it; wait for its end, or give another {flag}",
                run.display(),
                folder.display()
            )));
        }
    }
    Ok(())
}

/// Whether a run is at work in `folder`: its process, in brackets after a blank, or nothing where its number is not written yet.
pub fn at_work(folder: &Path) -> Option<String> {
    let mut file = File::open(folder.join(LOCK)).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(holder(&mut file)),
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

/// Who holds a lock, in brackets; empty where its number is not written yet.
fn holder(file: &mut File) -> String {
    let mut holder = String::new();
    let _ = file.read_to_string(&mut holder);
    let holder = holder.trim();
    if holder.is_empty() { String::new() } else { format!(" (process {holder})") }
}

/// Locks the folder, which shows at once whether it can be written to. None where the file system has no locks.
fn lock(folder: &Path) -> Result<Option<File>> {
    let path = folder.join(LOCK);
    let open = OpenOptions::new().create(true).read(true).append(true).open(&path);
    let mut file = open.map_err(Error::io(folder, "write to"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::request(format!(
                "another run{} is at work in {}; wait for its end, or give another --output_dir",
                holder(&mut file),
                folder.display()
            )));
        }
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
            say!("note: {} cannot be locked ({error}); see to it that no other run writes there", folder.display());
            return Ok(None);
        }
        Err(TryLockError::Error(error)) => return Err(Error::io(&path, "lock")(error)),
    }
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(Error::io(&path, "write"))?;
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Settings;

    #[test]
    fn an_earlier_run_is_neither_mixed_nor_lost() {
        let folder = std::env::temp_dir().join(format!("larpo-output-{}", std::process::id()));
        let has = |name: &str| folder.join(name).exists();
        let new = OutputDir::check(&folder, false, &[]).expect("a new folder");
        new.clear().expect("nothing to clear");
        assert!(has(LOCK));
        drop(new);
        assert!(!folder.exists(), "nothing was written: nothing stays");
        fs::create_dir_all(&folder).expect("creates");
        OutputDir::check(&folder, false, &[]).expect("somebody's folder");
        assert!(folder.exists(), "a folder that was there stays");
        fs::write(folder.join("notes.txt"), "mine").expect("writes");
        fs::create_dir(folder.join("iteration-notes")).expect("creates");
        OutputDir::check(&folder, false, &[]).expect("nothing of a run is there");
        for name in ["config.json", "metrics.jsonl"] {
            fs::write(folder.join(name), "{}").expect("writes");
        }
        fs::create_dir_all(folder.join("iteration-1/model")).expect("creates");
        let error = OutputDir::check(&folder, false, &[]).expect_err("refuses").to_string();
        assert!(error.contains("config.json, iteration-1, metrics.jsonl") && error.contains("--overwrite_output_dir"));
        // What the run starts from is not removed, nor is anything before the run is ready to write.
        for input in [folder.join("iteration-1/model"), folder.clone(), folder.join("config.json")] {
            let error = OutputDir::check(&folder, true, &[&input]).expect_err("an input").to_string();
            assert!(error.contains("starts from"), "{error}");
        }
        let checked = OutputDir::check(&folder, true, &[&folder.join("notes.txt")]).expect("may be replaced");
        assert!(has("iteration-1/model") && has("metrics.jsonl"));
        let error = OutputDir::go_on(&folder).expect_err("somebody else's").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        // Nor is it written into from below, by whatever path.
        for inside in ["iteration-1/model", "iteration-1/../new/folder"] {
            let inside = folder.join(inside);
            let error = OutputDir::check(&inside, false, &[]).expect_err("inside").to_string();
            assert!(
                error.contains("belongs to it") && error.contains(&format!("process {}", std::process::id())),
                "{error}"
            );
            assert!(prepare_file(&inside, "candidates.jsonl", false, FLAG).is_err());
        }
        assert!(prepare_file(&folder, "candidates.jsonl", false, FLAG).is_err() && !has("new"));
        checked.clear().expect("clears");
        drop(checked);
        OutputDir::go_on(&folder).expect("free again");
        let names = ["config.json", "notes.txt", "iteration-notes", "iteration-1", "metrics.jsonl"];
        assert_eq!(names.map(has), [true, true, true, false, false]);
        prepare_file(&folder, "candidates.jsonl", false, FLAG).expect("not there yet");
        prepare_file(&folder, "notes.txt", false, FLAG).expect_err("there");
        prepare_file(&folder, "notes.txt", true, FLAG).expect("may be replaced");
        fs::remove_dir_all(&folder).expect("removes");
    }

    #[test]
    fn a_demo_replaces_nothing_but_a_demo() {
        let folder = std::env::temp_dir().join(format!("larpo-output-demo-{}", std::process::id()));
        let new = OutputDir::check_demo(&folder, false).expect("a new folder");
        fs::write(folder.join("config.json"), "{}").expect("writes");
        drop(new);
        let error = OutputDir::check_demo(&folder, false).expect_err("somebody's model").to_string();
        // The demo has no such flag.
        assert!(!error.contains("--resume") && error.contains("--output_dir or --overwrite_output_dir"), "{error}");
        let record = |verb: &str| RunRecord::new(verb, &Settings::default(), &[]).expect("no inputs");
        record("sft").write(&folder).expect("writes");
        OutputDir::check_demo(&folder, false).expect_err("another run");
        record(DEMO).write(&folder).expect("writes");
        OutputDir::check_demo(&folder, false).expect("an earlier demo");
        fs::create_dir(folder.join("checkpoint-5")).expect("creates");
        OutputDir::check_demo(&folder, false).expect_err("somebody's checkpoint");
        // Another run that takes the folder over takes the mark away.
        OutputDir::check(&folder, true, &[]).expect("asked for").clear().expect("clears");
        assert!(!folder.join(run_record::FILE).exists());
        fs::remove_dir_all(&folder).expect("removes");
    }
}
