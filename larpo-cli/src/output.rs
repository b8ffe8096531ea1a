//! Output folders: created before the work begins, and never mixed with what an earlier run left there.

use crate::error::{Error, Result};
use std::fs;
use std::path::Path;

/// Files that a run leaves in its output folder.
const FILES: [&str; 4] = ["config.json", "model.safetensors", "metrics.jsonl", "candidates.jsonl"];
/// Folders that it leaves there, one an iteration or checkpoint.
const FOLDERS: [&str; 2] = ["iteration-", "checkpoint-"];

/// The folder of a run that ends with a model.
#[derive(Debug)]
pub struct OutputDir<'a> {
    folder: &'a Path,
    overwrite: bool,
}

impl<'a> OutputDir<'a> {
    /// Creates the folder and sees whether it can be written to; nothing in it is touched yet.
    ///
    /// # Errors
    /// An earlier run in the folder without `overwrite`; a folder that cannot be created or written to.
    pub fn check(folder: &'a Path, overwrite: bool) -> Result<Self> {
        let traces = traces(folder)?;
        if !traces.is_empty() && !overwrite {
            let shown: Vec<&str> = traces.iter().take(3).map(String::as_str).collect();
            let more = if traces.len() > shown.len() { ", …" } else { "" };
            return Err(Error::request(format!(
                "{} holds an earlier run ({}{more}); give another --output_dir, or --overwrite_output_dir to replace it",
                folder.display(),
                shown.join(", ")
            )));
        }
        create(folder)?;
        let probe = folder.join(format!(".larpo-{}", std::process::id()));
        fs::write(&probe, "").map_err(Error::io(folder, "write to"))?;
        fs::remove_file(&probe).map_err(Error::io(&probe, "remove"))?;
        Ok(Self { folder, overwrite })
    }

    /// Makes room for the run, once everything it starts from has been read: an earlier run's iterations, checkpoints and
    /// logs are removed. Its model stays until the new one takes its place.
    ///
    /// # Errors
    /// One of the `inputs` lies in what would be removed; a file that cannot be removed.
    pub fn clear(self, inputs: &[&Path]) -> Result<()> {
        if !self.overwrite {
            return Ok(());
        }
        let replaced = ["config.json", "model.safetensors"];
        let old = traces(self.folder)?.into_iter().filter(|name| !replaced.contains(&name.as_str()));
        let old: Vec<_> = old.map(|name| self.folder.join(name)).collect();
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        for input in inputs {
            if let Some(inside) = old.iter().find(|path| real(input).starts_with(real(path))) {
                return Err(Error::request(format!(
                    "--overwrite_output_dir would remove {}, which this run starts from ({}); give another --output_dir",
                    inside.display(),
                    input.display()
                )));
            }
        }
        for path in old {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(Error::io(&path, "remove"))?;
        }
        Ok(())
    }
}

/// Creates a folder that gets one file, `name`.
///
/// # Errors
/// The file is there already and `overwrite` is off; a folder that cannot be created.
pub fn prepare_file(folder: &Path, name: &str, overwrite: bool) -> Result<()> {
    let path = folder.join(name);
    if path.exists() && !overwrite {
        return Err(Error::request(format!(
            "{} exists; give another --output_dir, or --overwrite_output_dir to replace it",
            path.display()
        )));
    }
    create(folder)
}

/// Names of what runs left in the folder, sorted.
fn traces(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(folder, "read")(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io(folder, "read"))?.file_name().to_string_lossy().into_owned();
        let numbered = |prefix: &str| name.strip_prefix(prefix).is_some_and(|n| n.parse::<u64>().is_ok());
        if FILES.contains(&name.as_str()) || FOLDERS.iter().any(|prefix| numbered(prefix)) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io(folder, "create"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_run_is_neither_mixed_nor_lost() {
        let folder = std::env::temp_dir().join(format!("larpo-output-{}", std::process::id()));
        let has = |name: &str| folder.join(name).exists();
        OutputDir::check(&folder, false).expect("a new folder").clear(&[]).expect("nothing to clear");
        fs::write(folder.join("notes.txt"), "mine").expect("writes");
        fs::create_dir(folder.join("iteration-notes")).expect("creates");
        OutputDir::check(&folder, false).expect("nothing of a run is there");
        for name in ["config.json", "metrics.jsonl"] {
            fs::write(folder.join(name), "{}").expect("writes");
        }
        fs::create_dir_all(folder.join("iteration-1/model")).expect("creates");
        let error = OutputDir::check(&folder, false).expect_err("refuses").to_string();
        assert!(error.contains("config.json, iteration-1, metrics.jsonl") && error.contains("--overwrite_output_dir"));
        // What the run starts from is not removed, nor is anything before the run is ready to write.
        let checked = OutputDir::check(&folder, true).expect("may be replaced");
        assert!(has("metrics.jsonl"));
        let error = checked.clear(&[&folder.join("iteration-1/model")]).expect_err("an input").to_string();
        assert!(error.contains("starts from") && has("iteration-1/model") && has("metrics.jsonl"), "{error}");
        OutputDir::check(&folder, true).expect("may be replaced").clear(&[&folder]).expect("clears");
        let names = ["config.json", "notes.txt", "iteration-notes", "iteration-1", "metrics.jsonl"];
        assert_eq!(names.map(has), [true, true, true, false, false]);
        prepare_file(&folder, "candidates.jsonl", false).expect("not there yet");
        prepare_file(&folder, "notes.txt", false).expect_err("there");
        prepare_file(&folder, "notes.txt", true).expect("may be replaced");
        fs::remove_dir_all(&folder).expect("removes");
    }
}
