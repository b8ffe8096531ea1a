//! Output folders: created before the work begins, and never mixed with what an earlier run left there.

use crate::error::{Error, Result};
use std::fs;
use std::path::Path;

/// Files that a run leaves in its output folder.
const FILES: [&str; 4] = ["config.json", "model.safetensors", "metrics.jsonl", "candidates.jsonl"];
/// Folders that it leaves there, one an iteration or checkpoint.
const FOLDERS: [&str; 2] = ["iteration-", "checkpoint-"];

/// Creates the folder of a run that ends with a model.
///
/// With `overwrite`, an earlier run's iterations, checkpoints and logs are removed first; its model stays until the new
/// one takes its place, so that a run may start from the model it replaces.
///
/// # Errors
/// An earlier run in the folder without `overwrite`; a folder that cannot be created or cleared.
pub fn prepare(folder: &Path, overwrite: bool) -> Result<()> {
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
    for name in traces.iter().filter(|name| !["config.json", "model.safetensors"].contains(&name.as_str())) {
        let path = folder.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(Error::io(&path, "remove"))?;
    }
    create(folder)
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
        prepare(&folder, false).expect("a new folder");
        fs::write(folder.join("notes.txt"), "mine").expect("writes");
        fs::create_dir(folder.join("iteration-notes")).expect("creates");
        prepare(&folder, false).expect("nothing of a run is there");
        for name in ["config.json", "metrics.jsonl"] {
            fs::write(folder.join(name), "{}").expect("writes");
        }
        fs::create_dir(folder.join("iteration-1")).expect("creates");
        let error = prepare(&folder, false).expect_err("refuses").to_string();
        assert!(error.contains("config.json, iteration-1, metrics.jsonl") && error.contains("--overwrite_output_dir"));
        assert!(has("iteration-1"));
        prepare(&folder, true).expect("clears");
        assert_eq!(
            ["config.json", "notes.txt", "iteration-notes", "iteration-1", "metrics.jsonl"].map(has),
            [true, true, true, false, false]
        );
        prepare_file(&folder, "candidates.jsonl", false).expect("not there yet");
        prepare_file(&folder, "notes.txt", false).expect_err("there");
        prepare_file(&folder, "notes.txt", true).expect("may be replaced");
        fs::remove_dir_all(&folder).expect("removes");
    }
}
