//! The binary as a shell sees it: exit codes, what goes to which stream, settings, and what a bug says.

mod common;
use common::Folder;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};

fn larpo(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_larpo")).args(words).env_remove("RUST_BACKTRACE").output().expect("larpo starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Four responses of which none has a final answer: 100 rows are enough for a warning.
fn answers(folder: &Folder) -> String {
    let row = json!({ "prompt": "p", "reference": "#### 1", "responses": ["a", "b", "c", "d"] });
    folder.file("rows.jsonl", format!("{row}\n").repeat(100))
}

#[test]
fn exit_codes_are_those_of_the_help() {
    let code = |words: &[&str]| larpo(words).status.code();
    assert_eq!(code(&["--version"]), Some(0));
    assert_eq!(code(&["rank", "/no/such/file.jsonl"]), Some(1));
    assert_eq!(code(&["rank"]), Some(2));
    assert_eq!(code(&["rank", "x", "--config", "/no/such/file.yaml"]), Some(2));
    let folder = Folder::new("codes");
    let rows = answers(&folder);
    assert_eq!(code(&["rank", &rows]), Some(0));
    let config = folder.file("c.yaml", "reward_fncs: length\n");
    let refused = larpo(&["rank", &rows, "--config", &config]);
    assert_eq!(refused.status.code(), Some(2));
    let message = text(&refused.stderr);
    assert!(message.contains("c.yaml:1: reward_fncs") && message.contains("did you mean `reward_funcs`?"), "{message}");
}

#[test]
fn stdout_holds_results_and_nothing_else() {
    let folder = Folder::new("streams");
    let rows = answers(&folder);
    for extra in [&[][..], &["--quiet"], &["--log_level", "error"], &["--log_level", "debug"]] {
        let run = |json: &[&str]| larpo(&[&["rank", &rows], extra, json].concat());
        let (with, without) = (run(&["--json"]), run(&[]));
        assert_eq!(text(&without.stdout), "400 responses, mean reward 0.0000\n", "{extra:?}");
        let value: Value = serde_json::from_str(&text(&with.stdout)).expect("one JSON object");
        assert_eq!(value["rows"], json!(100));
        let told = text(&with.stderr);
        // Warnings survive --quiet, progress and notes do not.
        let level = extra.last().copied().unwrap_or("info");
        assert_eq!(told.contains("warning: none of"), level != "error", "{extra:?}: {told}");
        let notes = matches!(level, "info" | "debug");
        assert_eq!(told.contains("data: 100 rows in"), notes, "{extra:?}: {told}");
        // The object takes the place of what people read, which becomes a note.
        assert_eq!(told.contains("mean reward"), notes, "{extra:?}: {told}");
        assert!(!text(&without.stderr).contains("mean reward"), "{extra:?}");
        assert_eq!(told.contains("debug: larpo"), level == "debug", "{extra:?}: {told}");
        assert!(level != "error" || told.is_empty(), "{told}");
    }
}

/// The verbs that are asked for what they show show it on stdout, and nothing else there.
#[test]
fn what_was_asked_for_can_be_piped() {
    let folder = Folder::new("piped");
    let (data, model) = common::tiny(&folder);
    let eval = ["eval", &model, "--dataset_name", &data, "--max_samples", "8", "--max_new_tokens", "4", "--k", "2"];
    let sample = ["sample", "--model_name_or_path", &model, "--prompt", "1+1", "--k", "2", "--max_new_tokens", "4"];
    let cases: [(&[&str], &str, &str); 5] = [
        (&["inspect", &data, "--tokenizer", &model], "prompt characters: 195 values", ""),
        (&["inspect", &model], "learning_rate", ""),
        (&eval, "greedy accuracy", "data: "),
        (&[&["plan"], &eval[..]].concat(), "peak of", ""),
        (&sample, "> 1+1", "1 prompt done"),
    ];
    for (words, shown, noted) in cases {
        let output = larpo(words);
        let (out, notes) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{words:?}: {notes}");
        assert!(out.contains(shown) && !notes.contains(shown), "{words:?}: {out}\n{notes}");
        assert!(notes.contains(noted) && (noted.is_empty() || !out.contains(noted)), "{words:?}: {out}\n{notes}");
        assert!(!out.contains('\x1b'), "{words:?}");
        let quiet = larpo(&[words, &["--quiet"]].concat());
        assert!(text(&quiet.stdout).contains(shown) && quiet.stderr.is_empty(), "{}", text(&quiet.stderr));
        let json = larpo(&[words, &["--json"]].concat());
        serde_json::from_slice::<Value>(&json.stdout).expect("one object");
        assert!(text(&json.stderr).contains(shown), "{words:?}");
    }
}

/// What cannot be written is not thought to be read.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_under_stdout_is_an_error() {
    let folder = Folder::new("full");
    let rows = answers(&folder);
    for words in [&["rank", &rows][..], &["rank", &rows, "--json"], &["config", "rank", &rows]] {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("the device");
        let output = Command::new(env!("CARGO_BIN_EXE_larpo")).args(words).stdout(full).output().expect("larpo starts");
        let told = text(&output.stderr);
        assert!(output.status.code() == Some(1) && told.contains("cannot write to standard output"), "{told}");
    }
}

#[test]
fn nothing_is_coloured_where_nobody_looks() {
    for words in [&["--help"][..], &["rank"], &["align", "--help"]] {
        let output = larpo(words);
        assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b), "{words:?}");
    }
}

#[test]
fn printed_settings_are_taken_up_again() {
    let folder = Folder::new("settings");
    let rows = answers(&folder);
    let settings = larpo(&["config", "rank", &rows, "--reward_funcs", "length:target=2", "--json"]);
    assert_eq!((settings.status.code(), text(&settings.stderr)), (Some(0), String::new()));
    let config = folder.file("rank.yaml", text(&settings.stdout));
    let (typed, read) =
        (larpo(&["rank", &rows, "--reward_funcs", "length:target=2", "--json"]), larpo(&["rank", "--config", &config]));
    assert_eq!(text(&typed.stdout), text(&read.stdout));
    assert!(text(&read.stdout).contains("\"mean_reward\":-1"));
}

#[test]
fn completions_and_manual_pages_know_the_flags() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = text(&larpo(&["completions", shell]).stdout);
        assert!(script.contains("per_device_train_batch_size") && script.contains("align"), "{shell}");
    }
    let page = text(&larpo(&["man"]).stdout);
    assert!(page.starts_with(".ie") && page.contains("larpo\\-align(1)"), "{page}");
    let folder = Folder::new("man");
    let written = larpo(&["man", "--output_dir", &folder.0.display().to_string()]);
    assert!(written.status.success() && written.stdout.is_empty());
    let page = std::fs::read_to_string(folder.0.join("larpo-align.1")).expect("a page");
    assert!(page.contains("\\-\\-num_generations") && page.contains("larpo align"), "{page}");
    assert_eq!(text(&larpo(&["man", "align"]).stdout), page);
    let version = env!("CARGO_PKG_VERSION");
    let title = page.lines().find(|line| line.starts_with(".TH ")).expect("a title");
    assert!(
        title.starts_with(".TH LARPO-ALIGN 1 ") && title.ends_with(&format!("\"larpo {version}\" \"larpo manual\""))
    );
    let (_, synopsis) = page.split_once(".SH SYNOPSIS\n").expect("a synopsis");
    let synopsis = synopsis.lines().next().expect("a line");
    let needed = "\\fB\\-\\-model_name_or_path\\fR \\fIDIR\\fR \\fB\\-\\-dataset_name\\fR \\fIPATH\\fR";
    assert!(synopsis.starts_with("\\fBlarpo align\\fR \\fI[OPTIONS]\\fR ") && synopsis.contains(needed), "{synopsis}");
    let refused = larpo(&["man", "algin"]);
    assert!(text(&refused.stderr).contains("no verb `algin`") && refused.status.code() == Some(1));
}

/// As in `larpo completions bash | head`: whoever reads may have seen enough.
#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_error() {
    let folder = Folder::new("pipe");
    let rows = answers(&folder);
    for words in [&["completions", "bash"][..], &["inspect", &rows], &["inspect", &rows, "--json", "--quiet"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larpo"));
        let mut child = command
            .args(words)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("larpo starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ends");
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{words:?}");
    }
}

#[test]
fn refusals_say_what_to_do() {
    let folder = Folder::new("mends");
    let rows = folder.file("rows.jsonl", "{\"prompt\": \"1+1\", \"completion\": \"2\"}\n");
    let out = folder.name("out");
    let told = |words: &[&str]| text(&larpo(words).stderr);
    let base = ["sft", "--dataset_name", &rows, "--output_dir", &out];
    let fresh =
        ["--tokenizer", "char", "--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2"];
    let cases: [(&[&str], &[&str]); 4] = [
        (
            &["--model_name_or_path", "meta-llama/Llama-3.2-1B"],
            &["meta-llama/Llama-3.2-1B: no such folder", "downloads nothing", "hf download meta-llama/Llama-3.2-1B"],
        ),
        (&["--model_name_or_path", &rows], &["rows.jsonl is a file; give the folder"]),
        (&["--seed=-1"], &["expected a whole number from 0 to 18446744073709551615"]),
        (
            &[&fresh[..], &["--max_length", "2"]].concat(),
            &["no rows left to train on: ", "1 row in, 1 left out (", "rows.jsonl:1", "--max_length", "larpo inspect"],
        ),
    ];
    for (extra, parts) in cases {
        let told = told(&[&base[..], extra].concat());
        assert!(parts.iter().all(|part| told.contains(part)), "{parts:?}: {told}");
        assert!(!std::path::Path::new(&out).exists(), "a refusal leaves no folder: {told}");
    }
}

/// A learning rate that blows the weights up is found before the model is saved, even in the last update.
#[test]
fn a_model_that_blew_up_is_not_saved() {
    let folder = Folder::new("blown");
    let rows = folder.file("rows.jsonl", "{\"prompt\": \"1+1\", \"completion\": \"2\"}\n".repeat(4));
    let out = folder.name("out");
    let words = ["sft", "--dataset_name", &rows, "--output_dir", &out, "--tokenizer", "char", "--hidden_size", "16"];
    let rest = ["--num_hidden_layers", "1", "--num_attention_heads", "2", "--max_steps", "1", "--warmup_ratio", "0"];
    let blown = larpo(&[&words[..], &rest, &["--learning_rate", "1e15"]].concat());
    let told = text(&blown.stderr);
    assert_eq!(blown.status.code(), Some(1), "{told}");
    assert!(told.contains("not a finite number") && told.contains("lower the learning rate"), "{told}");
    assert!(!folder.path("out/model.safetensors").exists(), "{told}");
}

/// Runs as a process of its own, started by the next test.
#[test]
fn child_that_panics() {
    if std::env::var_os("LARPO_CHILD_PANICS").is_some() {
        larpo_cli::status::hook_panics();
        larpo_cli::status::set_checkpoint(Path::new("run/checkpoint-40"));
        panic!("the impossible happened");
    }
}

#[test]
fn a_bug_says_so_and_how_to_go_on() {
    let this = std::env::current_exe().expect("this test");
    let child = Command::new(this)
        .args(["child_that_panics", "--exact", "--nocapture"])
        .env("LARPO_CHILD_PANICS", "1")
        .env_remove("RUST_BACKTRACE")
        .output()
        .expect("starts");
    assert_eq!(child.status.code(), Some(i32::from(larpo_cli::error::exit_code::BUG)));
    let told = text(&child.stderr);
    for part in [
        "tests/manners.rs:",
        "the impossible happened",
        "an error in larpo",
        concat!("larpo ", env!("CARGO_PKG_VERSION")),
        "run/checkpoint-40",
        "--resume_from_checkpoint latest",
    ] {
        assert!(told.contains(part), "{part} is missing from {told}");
    }
}

/// The bytes of a plan are those of the run, to a tenth; the seconds of a busy machine prove nothing.
#[test]
fn a_plan_holds_what_the_run_holds() {
    if !cfg!(target_os = "linux") {
        return; // Elsewhere a process does not know its own peak.
    }
    for words in [["step", "--preset", "t1m"], ["step", "--preset", "s15m"], ["sample", "--preset", "s15m"]] {
        let json = |verb: &[&str]| {
            let output = larpo(&[verb, &words, &["--threads", "2", "--json"]].concat());
            assert!(output.status.success(), "{}", text(&output.stderr));
            serde_json::from_str::<Value>(&text(&output.stdout)).expect("JSON")
        };
        let (plan, run) = (json(&["plan", "bench"]), json(&["bench", "--reps", "1"]));
        let planned = plan["peak_bytes"].as_f64().expect("bytes") / f64::from(1 << 20);
        let held = run["peak_rss_mib"].as_f64().expect("a peak");
        assert!((planned / held - 1.0).abs() < 0.1, "{words:?}: {planned:.1} MiB planned, {held:.1} held");
        assert!(plan["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0) && plan["fits"] == json!(true), "{plan}");
    }
    for verb in ["demo", "rank", "inspect", "report"] {
        let refused = larpo(&["plan", verb, "rows.jsonl"]);
        assert!(text(&refused.stderr).contains("unrecognized subcommand") && refused.status.code() == Some(2));
        assert!(!text(&larpo(&["plan", "--help"]).stdout).contains(&format!("\n  {verb} ")), "{verb}");
    }
}

/// A text that fills a few hundred windows, and a small run of `sft` on it.
fn small_sft(folder: &Folder, out: &str) -> Vec<String> {
    let line = |i: usize| format!("Line {i} says that {} and {} make {}.\n", i % 7, i % 11, i % 7 + i % 11);
    let text = folder.file("text.txt", (0..12_000).map(line).collect::<String>());
    let out = folder.0.join(out).display().to_string();
    let flags =
        "--preset t1m --max_length 128 --max_steps 6 --per_device_train_batch_size 16 --no_cache --deterministic";
    let words = ["--dataset_name", &text, "--output_dir", &out].map(String::from);
    words.into_iter().chain(flags.split(' ').map(String::from)).collect()
}

#[test]
fn threads_change_no_bit_and_the_line_of_the_plan_says_what_is_held() {
    let folder = Folder::new("threads");
    let run = |threads: &str| {
        let words = small_sft(&folder, threads);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = larpo(&[&["sft"], &words[..], &["--threads", threads, "--log_level", "debug"]].concat());
        let told = text(&output.stderr);
        assert!(output.status.success(), "{told}");
        let weights = std::fs::read(folder.0.join(threads).join("model.safetensors")).expect("a model");
        (weights, told)
    };
    let ((one, _), (two, told)) = (run("1"), run("2"));
    assert!(one == two, "one thread and two give different weights");
    if cfg!(target_os = "linux") {
        let after = |mark: &str| {
            let rest = told.split_once(mark).unwrap_or_else(|| panic!("no `{mark}` in {told}")).1;
            rest.split_once(" MiB").expect("a size").0.parse::<f64>().expect("a number")
        };
        let (planned, held) = (after("plan: 6 updates with "), after(", at most "));
        assert!((planned / held - 1.0).abs() < 0.15, "{planned} MiB planned, {held} held");
    }
}

#[test]
fn of_a_run_that_goes_on_what_is_left_is_planned() {
    let folder = Folder::new("left");
    let words = small_sft(&folder, "out");
    let words: Vec<&str> = words.iter().map(String::as_str).chain(["--save_steps", "4"]).collect();
    let output = larpo(&[&["sft"], &words[..]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let planned = |more: &[&str]| {
        let output = larpo(&[&["plan", "sft"], &words[..], &["--json"], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let plan: Value = serde_json::from_str(&text(&output.stdout)).expect("JSON");
        let phases = plan["phases"].as_object().expect("phases").iter();
        // What takes time: fresh weights are made by a run from the start only.
        let timed = phases.filter(|(_, phase)| phase["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
        (plan["updates"].clone(), timed.map(|(name, _)| name.clone()).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(planned(&["--overwrite_output_dir"]), (json!(6), "start train save".to_string()));
    assert_eq!(planned(&["--resume_from_checkpoint", "latest"]), (json!(2), "train save".to_string()));
}

#[test]
fn settings_that_depend_on_others_are_resolved() {
    let folder = Folder::new("resolved");
    let rows = folder.file("rows.jsonl", "{}\n");
    let words = ["config", "sft", "--preset", "t1m", "--dataset_name", &rows, "--output_dir", "out", "--json=false"];
    let settings = text(&larpo(&words).stdout);
    for (line, origin) in [
        ("learning_rate: 5e-4", "default of sft"),
        ("# hidden_size: 128", "of the preset"),
        ("tokenizer: bpe:512", "of the preset"),
        ("max_length: 1024", "default"),
        ("json: false", "flag"),
        ("quiet: false", "default"),
    ] {
        let found = settings.lines().any(|l| l.starts_with(line) && l.ends_with(&format!("# {origin}")));
        assert!(found, "{line} ({origin}) is missing from\n{settings}");
    }
    // It is read back, and means the same.
    let file = folder.file("settings.yaml", &settings);
    let again = text(&larpo(&["config", "sft", "--config", &file]).stdout);
    let values = |text: &str| -> Vec<String> {
        let lines =
            text.lines().skip(1).map(|line| line.split("  #").next().unwrap_or_default().trim_end().to_string());
        lines.collect()
    };
    assert_eq!(values(&again), values(&settings));
    let words = ["config", "train", "--model_name_or_path", "m", "--dataset_name", &rows, "--output_dir", "out"];
    let settings = text(&larpo(&words).stdout);
    assert!(
        settings.contains("\nlearning_rate: 5e-5 ") && settings.contains("\nselect: 'top:2,bottom:2' "),
        "{settings}"
    );
}

#[test]
fn a_model_that_cannot_fit_is_refused_before_it_is_made() {
    let folder = Folder::new("huge");
    let rows = folder.file("rows.jsonl", "{\"prompt\": \"1+1\", \"completion\": \"2\"}\n");
    let out = folder.0.join("out").display().to_string();
    let sizes = ["--hidden_size", "65536", "--num_hidden_layers", "4000", "--num_attention_heads", "512"];
    let words = [&["sft", "--dataset_name", &rows, "--output_dir", &out, "--tokenizer", "char"][..], &sizes].concat();
    let refused = larpo(&words);
    let told = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("choose a smaller model") && told.contains("the machine has"), "{told}");
    assert!(!folder.0.join("out/config.json").exists());
}
