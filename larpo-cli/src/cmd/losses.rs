//! What is missing of a finished iteration, and what is lost by it: for `inspect` and `report`, and for the run that goes on.

use crate::resume::LOG;
use larpo_data::checksums::{self, Checksum};
use larpo_data::model_folder::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use serde_json::Value;
use std::path::Path;

/// What tells of the candidates of a finished iteration and is not there; none where all is.
pub fn candidates(iteration: &Path) -> Option<String> {
    let missing = |name: &str| !iteration.join(name).is_file();
    let (lost, mend) = if missing("candidates.jsonl") {
        ("candidates.jsonl is missing: the samples of the iteration and their rewards are lost", "")
    } else if missing(crate::edits::FILE) {
        let lost = "candidates.checksum is missing: nothing tells any more whether candidates.jsonl is complete, and which of \
                    its rows people edited";
        (lost, ", or move the iteration and those after it away to make them again")
    } else {
        return None;
    };
    Some(format!("{lost}. The run cannot go on after it: restore the file from a copy{mend}"))
}

/// What is missing of the model of a finished iteration; none where it is there. Whether it is what was written is told where
/// it is read.
pub fn model(iteration: &Path) -> Option<String> {
    let model = iteration.join("model");
    let has = |name: &&str| model.join(name).is_file();
    let [config, weights] = match [ADAPTER_CONFIG, ADAPTER_WEIGHTS].iter().any(has) {
        true => [ADAPTER_CONFIG, ADAPTER_WEIGHTS],
        false => ["config.json", "model.safetensors"],
    };
    let files = [config, weights, "tokenizer.json", checksums::LIST];
    let missing = match model.is_dir() {
        false => "model/ is".to_string(),
        true => format!("model/{} is", files.into_iter().find(|name| !model.join(name).is_file())?),
    };
    Some(format!(
        "{missing} missing: the policy after the iteration is lost. Where that is the last finished one, the run makes it again \
         when it goes on; else restore it from a copy"
    ))
}

/// Whether the model in the folder is the one that the finished run of `record` (`run.json`) ended with; none where it is, or
/// where the run is not finished.
pub fn final_model(folder: &Path, record: &Value) -> Option<String> {
    let known = record["result"]["model"].as_str()?;
    // A single file's alone, or names with theirs.
    known.split(", ").find_map(|known| {
        let (name, known) = known.rsplit_once(' ').unwrap_or(("model.safetensors", known));
        match Checksum::of_file(folder.join(name)) {
            Ok(sum) if sum.to_string() == known => None,
            Ok(_) => Some(format!("{name} is not what the run ended with: it was changed or replaced since")),
            Err(error) => Some(format!("the model that the run ended with is lost: {error}")),
        }
    })
}

/// Weights in the folder that are not those of `known` that a finished run ended with, though they have their names.
pub fn replaced(folder: &Path, known: &str) -> Vec<String> {
    let other = |known: &str| {
        let (name, known) = known.rsplit_once(' ').unwrap_or(("model.safetensors", known));
        let sum = Checksum::of_file(folder.join(name)).ok()?;
        (sum.to_string() != known).then(|| name.to_string())
    };
    known.split(", ").filter_map(other).collect()
}

/// Whether the log in the folder is the one that the finished run of `record` ended with; none where it is, or where nothing
/// tells.
pub fn final_log(folder: &Path, record: &Value) -> Option<String> {
    let known = record["result"]["log"].as_str()?;
    match Checksum::of_file(folder.join(LOG)) {
        Ok(sum) if sum.to_string() == known => None,
        Ok(_) => Some(format!("{LOG} is damaged: it is not what the run ended with; restore it from a copy")),
        Err(error) => Some(format!("the log of the run is lost: {error}")),
    }
}

/// What is damaged of the files that tell of a finished iteration; none where they are what was written.
pub fn written(iteration: &Path) -> Option<String> {
    checksums::verify_listed(iteration).err().map(|error| error.to_string())
}

/// All that is missing or damaged of the finished iteration `n`.
pub fn sentences(n: u64, iteration: &Path) -> Vec<String> {
    let all = [candidates(iteration), model(iteration), written(iteration)];
    all.into_iter().flatten().map(|lost| format!("iteration {n}: {lost}")).collect()
}
