//! `larpo align --iterations +N --output_dir DIR`: what decides the result comes from the record of the run that goes on, so
//! that its command line need not be typed again.

use super::config::{by_name, typed};
use super::values::Iterations;
use crate::run_record::{FREE, RunRecord, no_run};
use clap::Command;
use std::ffi::OsString;
use std::path::Path;

/// Flags that may be another path with the same contents; left out they are what they were.
const INPUTS: [&str; 6] =
    ["dataset_name", "eval_dataset", "model_name_or_path", "pairwise_ranker", "ranker_template", "reward_model"];

/// Puts the recorded settings in front of the flags of `align`, except those that `words` give themselves and those that a
/// run may be gone on with at another value. `at` is the place after the verb, `verb` its declaration.
///
/// # Errors
/// A record that cannot be read; none, where `words` are not the whole command line either.
pub fn take_up(words: &mut Vec<OsString>, at: usize, verb: &Command) -> Result<(), String> {
    let typed = typed(&words[at.min(words.len())..], verb);
    let value = |name: &str| typed.get(name).and_then(|value| value.to_str());
    let Some(folder) = value("output_dir") else { return Ok(()) };
    let whole = ["dataset_name", "model_name_or_path"].iter().all(|name| typed.contains_key(*name));
    let asked = value("iterations").map(str::parse);
    if let Some(Err(problem)) = asked {
        return Err(format!("--iterations: {problem}"));
    }
    let Some(Ok(Iterations::More(n))) = asked else {
        let is_run = |record: Option<RunRecord>| record.is_some_and(|record| record.verb == "align");
        let helps = words.iter().any(|word| word == "--help" || word == "-h");
        return match !whole && !helps && RunRecord::read(Path::new(folder)).is_ok_and(is_run) {
            true => Err(format!(
                "{folder} holds a run, and --model_name_or_path or --dataset_name is not given: only --iterations +N takes from \
                 it what is not given; give the whole command, or --iterations +N"
            )),
            false => Ok(()),
        };
    };
    let Some(record) = RunRecord::read(Path::new(folder)).map_err(|error| error.to_string())? else {
        // The verb itself refuses a whole one.
        return if whole { Ok(()) } else { Err(no_run(n)) };
    };
    record.check_verb("align", Path::new(folder)).map_err(|error| error.to_string())?;
    let mut flags: Vec<OsString> = Vec::new();
    for (name, values) in &record.flags {
        let free = FREE.contains(&name.as_str()) && !INPUTS.contains(&name.as_str());
        // A flag that this version does not know is named when the record is compared.
        let Some(arg) = by_name(verb, name).filter(|arg| !free && !typed.contains_key(arg.get_id().as_str())) else {
            continue;
        };
        // Paths begin where the run was begun.
        let elsewhere = record.directory.as_ref().filter(|directory| {
            INPUTS.contains(&name.as_str()) && std::env::current_dir().is_ok_and(|here| here != Path::new(directory))
        });
        let absolute = |value: &String| match elsewhere {
            Some(directory) => Path::new(directory).join(value).display().to_string(),
            None => value.clone(),
        };
        let values: Vec<String> = values.iter().map(absolute).collect();
        if !arg.get_action().takes_values() {
            flags.extend((values == ["true"]).then(|| format!("--{name}").into()));
        } else if arg.get_default_values() != values {
            // In one word each, since a value may begin with a hyphen.
            flags.extend(values.iter().map(|value| OsString::from(format!("--{name}={value}"))));
        }
    }
    words.splice(at..at, flags);
    Ok(())
}
