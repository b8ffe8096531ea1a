//! The command that repeats a run: from the flags that it recorded, or from the settings in its manifest.

use crate::args::declarations;
use serde_json::Value;
use std::path::Path;

/// Flags that say how a session of a run went, not what the run is.
const OF_A_SESSION: [&str; 8] = [
    "config",
    "json",
    "log_level",
    "no_cache",
    "output_dir",
    "overwrite_output_dir",
    "quiet",
    "resume_from_checkpoint",
];

/// The command of `run.json`: its verb with every flag that is not at its default.
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
    words.push(format!("--output_dir={}", folder.display()));
    Some(words)
}

/// `larpo demo` with the settings of its mark.
pub fn of_demo(demo: &Value, folder: &Path) -> Option<Vec<String>> {
    let seed = demo.get("seed")?.as_u64()?;
    let mut words = vec!["larpo".to_string(), "demo".into(), "--seed".into(), seed.to_string()];
    if demo["quick"] == true {
        words.push("--quick".into());
    }
    words.extend(["--output_dir".into(), folder.display().to_string()]);
    Some(words)
}

/// `larpo align` with every setting that decides the result, from a manifest's `config`.
pub fn of_align(config: &Value, folder: &Path) -> Option<Vec<String>> {
    let source = &config["source"];
    let (objective, optimizer) = (&config["objective"]["objective"], &config["optimizer"]);
    let mut words: Vec<String> = vec!["larpo".into(), "align".into()];
    let mut flag = |name: &str, value: &Value| {
        let text = match value {
            Value::Null => return,
            Value::String(text) => text.clone(),
            Value::Array(items) if items.is_empty() => return,
            Value::Array(items) => items.iter().map(Value::to_string).collect::<Vec<_>>().join(","),
            other => other.to_string(),
        };
        // In one word, since a value may begin with a hyphen.
        words.push(format!("--{name}={text}"));
    };
    // Without these two it is no command.
    source["model_name_or_path"].as_str().and(source["dataset_name"].as_str())?;
    for name in ["model_name_or_path", "dataset_name"] {
        flag(name, &source[name]);
    }
    flag("output_dir", &Value::from(folder.display().to_string()));
    for name in ["iterations", "prompts_per_iteration", "num_generations", "max_new_tokens"] {
        flag(name, &config[name]);
    }
    flag("temperature", &config["temperatures"]);
    for name in ["top_k", "top_p", "min_p"] {
        flag(name, &config[name]);
    }
    for text in config["stop_strings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let escaped = text.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t").replace('\r', "\\r");
        flag("stop_strings", &Value::from(escaped));
    }
    for name in ["reward_funcs", "reward_weights", "answer_pattern"] {
        flag(name, &source[name]);
    }
    for name in ["memory", "reference"] {
        flag(name, &config[name]);
    }
    flag("loss_type", &objective["loss"]);
    if objective["loss"] == "lipo_lambda" {
        flag("labels", &objective["labels"]);
    }
    flag("ties", &objective["ties"]);
    flag("select", &config["select"]);
    flag("beta", &config["objective"]["beta"]);
    flag("sft_weight", &config["objective"]["sft_weight"]);
    for (name, key) in [
        ("learning_rate", "learning_rate"),
        ("lr_scheduler_type", "schedule"),
        ("warmup_ratio", "warmup_ratio"),
        ("weight_decay", "weight_decay"),
        ("max_grad_norm", "max_grad_norm"),
        ("adam_beta1", "beta1"),
        ("adam_beta2", "beta2"),
        ("adam_epsilon", "eps"),
    ] {
        flag(name, &optimizer[key]);
    }
    for name in ["per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps"] {
        flag(name, &config[name]);
    }
    for name in ["max_length", "max_prompt_length", "max_samples"] {
        flag(name, &source[name]);
    }
    if source["split"].as_str().is_some_and(|split| split != "all") {
        flag("split", &source["split"]);
        flag("validation_fraction", &source["validation_fraction"]);
    }
    flag("seed", &config["seed"]);
    flag("threads", &source["threads"]);
    Some(words)
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
                    '--stop_strings=-\n' --stop_strings=x --temperature=1.0 --temperature=0.7 --until_kl=0.5 --output_dir=o";
        assert_eq!(joined(&words), line);
        crate::args::parse(words.into_iter().map(std::ffi::OsString::from).collect::<Vec<_>>()).expect("is understood");
        for other in [json!({ "verb": "align", "flags": { "no_such": ["1"] } }), json!({ "verb": "x", "flags": {} })] {
            assert_eq!(of_record(&other, Path::new("o")), None);
        }
        assert_eq!(of_align(&json!({ "seed": 1 }), Path::new("o")), None);
        let demo = of_demo(&json!({ "quick": true, "seed": 7 }), Path::new("o")).expect("a demo");
        assert_eq!(joined(&demo), "larpo demo --seed 7 --quick --output_dir o");
    }
}
