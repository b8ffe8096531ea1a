//! Commands that a page shows: the one that repeats a run, from the flags that it recorded, and the one that evaluates it.

use super::run::{EVAL, Run};
use crate::args::declarations;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Flags that say how a session of a run went, not what the run is.
pub const OF_A_SESSION: [&str; 8] = [
    "config",
    "json",
    "log_level",
    "no_cache",
    "output_dir",
    "overwrite_output_dir",
    "quiet",
    "resume_from_checkpoint",
];

/// The command of `run.json`: its verb with every flag that is not at its default, into a folder of its own beside the run's.
pub fn of_record(record: &Value, folder: &Path) -> Option<Vec<String>> {
    let (verb, flags) = (record["verb"].as_str()?, record["flags"].as_object()?);
    let mut declared = declarations();
    let verb_declared = declared.find_subcommand_mut(verb)?;
    let mut words = vec!["larpo".to_string(), verb.into()];
    for (name, values) in flags.iter().filter(|(name, _)| !OF_A_SESSION.contains(&name.as_str())) {
        let arg = verb_declared.get_arguments().find(|arg| arg.get_long() == Some(name))?;
        let values: Vec<&str> = values.as_array()?.iter().filter_map(Value::as_str).collect();
        if !arg.get_action().takes_values() {
            words.extend((values == ["true"]).then(|| format!("--{name}")));
        } else if name == "iterations" && record["goal"].is_object() {
            // `+N` was asked for in the middle of the run.
            words.push(format!("--iterations={}", record["goal"]["iterations"].as_u64()?));
        } else if arg.get_default_values() != values {
            // In one word each, since a value may begin with a hyphen.
            words.extend(values.iter().map(|value| format!("--{name}={value}")));
        }
    }
    words.push(format!("--output_dir={}", again(folder).display()));
    Some(words)
}

/// Beside a run's folder, where it can be repeated without being replaced.
fn again(folder: &Path) -> PathBuf {
    let real = match folder.file_name() {
        Some(_) => folder.to_path_buf(),
        None => folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf()),
    };
    let mut name = real.file_name().unwrap_or_default().to_os_string();
    name.push("-again");
    real.with_file_name(name)
}

/// Flags of `eval` that are the run's own: its rewards, how long responses may be and how the data are read.
const OF_EVAL: [&str; 16] = [
    "reward_model",
    "pairwise_ranker",
    "ranker_template",
    "ranker_labels",
    "rank_by",
    "reward_funcs",
    "reward_weights",
    "answer_pattern",
    "max_new_tokens",
    "stop_strings",
    "max_length",
    "max_prompt_length",
    "truncation_mode",
    "dataset_schema",
    "on_bad_row",
    "shuffle_seed",
];

/// The evaluation that gives a report `what` it lacks, as a note with a command.
pub fn suggested(run: &Run, what: &str, threshold: f64) -> String {
    let what = format!("{what}: an evaluation");
    match evaluation(run, threshold) {
        Some((words, false)) => format!("{what}: {}", joined(&words)),
        Some((words, true)) => format!(
            "{what}; the run held nothing back, so give it prompts that the run did not see in place of its own: {}",
            joined(&words)
        ),
        None => format!("{what} with `larpo eval … --output {}`", run.folder.join(EVAL).display()),
    }
}

/// `larpo eval` of the models of a run with the run's rewards and lengths, on prompts that it did not train on; the second
/// value says where it knows of none but its own. None where the files do not tell from which model and data it started.
fn evaluation(run: &Run, threshold: f64) -> Option<(Vec<String>, bool)> {
    let first = |name: &str| run.flag(name).into_iter().next();
    let start = run.start()?;
    let mut words: Vec<String> = ["larpo", "eval", &start].map(String::from).into();
    let models = run.iterations.iter().map(|i| run.model_after(i.number));
    words.extend(models.filter(|model| model.is_dir()).map(|model| model.display().to_string()));
    words.push(format!("--ref_model={start}"));
    let demo = run.folder.join("held_out.jsonl");
    let held_back = first("split").as_deref() == Some("train");
    // What was looked at, what the demo keeps beside its model, what was held back, or else what the run trained on.
    let (data, own) = match first("eval_dataset") {
        Some(path) => (path, false),
        None if demo.is_file() => (demo.display().to_string(), false),
        None => {
            if held_back {
                let share = first("validation_fraction")?;
                words.extend(["--split=validation".into(), format!("--validation_fraction={share}")]);
            }
            (first("dataset_name")?, !held_back)
        }
    };
    words.push(format!("--dataset_name={data}"));
    let declared = declarations();
    let eval = declared.find_subcommand("eval")?;
    for name in OF_EVAL {
        let arg = eval.get_arguments().find(|arg| arg.get_long() == Some(name))?;
        let values = run.flag(name);
        if arg.get_default_values() != values {
            words.extend(values.iter().map(|value| format!("--{name}={value}")));
        }
    }
    if threshold != 1.0 {
        words.push(format!("--correct_threshold={threshold}"));
    }
    words.push(format!("--output={}", run.folder.join(EVAL).display()));
    Some((words, own))
}

/// The words as a line for a POSIX shell.
pub fn joined(words: &[String]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,=@%+".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn words_survive_the_shell() {
        let words = ["a b", "it's", "$HOME", "--x=1,2", "", "`id`;"].map(String::from);
        let output =
            std::process::Command::new("sh").args(["-c", &format!("printf '%s\\n' {}", joined(&words))]).output();
        // Where there is no POSIX shell there is nothing to compare with.
        let Ok(output) = output else { return };
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b\nit's\n$HOME\n--x=1,2\n\n`id`;\n");
        assert!(joined(&words).ends_with("--x=1,2 '' '`id`;'"));
    }

    #[test]
    fn a_record_gives_every_flag_that_is_not_at_its_default() {
        let record = json!({
            "verb": "align",
            "goal": { "iterations": 5, "more": 2, "base": 3 },
            "flags": {
                "dataset_name": ["a b.jsonl"], "iterations": ["+2"], "model_name_or_path": ["m"], "output_dir": ["elsewhere"],
                "quiet": ["true"], "seed": ["1"], "shuffle_seed": ["7"], "stop_strings": ["-\n", "x"], "temperature": ["1.0", "0.7"],
                "until_kl": ["0.5"],
            },
        });
        let words = of_record(&record, Path::new("o")).expect("a command");
        let line = "larpo align '--dataset_name=a b.jsonl' --iterations=5 --model_name_or_path=m --shuffle_seed=7 \
                    '--stop_strings=-\n' --stop_strings=x --temperature=1.0 --temperature=0.7 --until_kl=0.5 --output_dir=o-again";
        assert_eq!(joined(&words), line);
        crate::args::parse(words.into_iter().map(std::ffi::OsString::from).collect::<Vec<_>>()).expect("is understood");
        for other in [json!({ "verb": "align", "flags": { "no_such": ["1"] } }), json!({ "verb": "x", "flags": {} })] {
            assert_eq!(of_record(&other, Path::new("o")), None);
        }
        let demo = json!({ "verb": "demo", "flags": { "quick": ["true"], "seed": ["7"] } });
        let demo = of_record(&demo, Path::new("o")).expect("a demo");
        assert_eq!(joined(&demo), "larpo demo --quick --seed=7 --output_dir=o-again");
    }
}
