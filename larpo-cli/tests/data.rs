//! Data on their way into the verbs: every row of a file is used or counted under a reason, whatever its form.

use larpo_cli::{args, cmd};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A folder with a tiny model in it, removed at the end of the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("larpo-data-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a temporary folder");
        let folder = Self(path);
        let rows: Vec<Value> =
            (1..8).map(|a| json!({ "prompt": format!("{a}+1=\n"), "completion": format!("#### {}", a + 1) })).collect();
        let letters = json!({ "prompt": "abcdefghijklmnopqrstuvwxyz ABCDEFGH:?", "completion": "-*/0123456789.,'" });
        let data = folder.rows("model.jsonl", &[rows, vec![letters]].concat());
        let sizes = ["--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2"];
        let words = ["sft", "--dataset_name", &data, "--output_dir", &folder.path("model"), "--tokenizer", "char"];
        let rest = ["--max_steps", "10", "--learning_rate", "1e-2", "--max_position_embeddings", "48"];
        larpo(&[&words[..], &sizes, &rest].concat()).expect("sft");
        folder
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        fs::write(self.0.join(name), bytes).expect("writes");
        self.path(name)
    }

    fn rows(&self, name: &str, rows: &[Value]) -> String {
        self.file(name, rows.iter().map(|row| format!("{row}\n")).collect::<String>())
    }

    /// Runs a verb on a file, on the tiny model, into a new folder.
    fn run(&self, verb: &str, file: &str, extra: &[&str]) -> Result<Value, String> {
        let out = self.path("out");
        let _ = fs::remove_dir_all(&out);
        let words = [verb, "--model_name_or_path", &self.path("model"), "--dataset_name", file, "--output_dir", &out];
        larpo(&[&words[..], extra].concat())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn larpo(words: &[&str]) -> Result<Value, String> {
    let line = std::iter::once("larpo").chain(words.iter().copied()).map(Into::into);
    let cli = args::parse(line.collect::<Vec<std::ffi::OsString>>()).map_err(|e| e.to_string())?;
    cmd::run(&cli).map_err(|e| e.to_string())
}

/// Rows in = rows used + rows left out; the rows used and the reasons.
fn counts(result: &Value) -> (u64, u64, Value) {
    let data = &result["data"];
    let left_out = data["left_out"].as_object().expect("reasons");
    let rows = data["rows"].as_u64().expect("a number");
    let out: u64 = left_out.values().map(|n| n.as_u64().expect("a number")).sum();
    assert_eq!(data["used"].as_u64(), Some(rows - out), "{data}");
    (rows, rows - out, data["left_out"].clone())
}

fn metrics(folder: &Folder) -> Vec<Value> {
    let text = fs::read_to_string(folder.0.join("out/metrics.jsonl")).expect("metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn pairs() -> Vec<Value> {
    let prompts = ["what is 2+2?", "name a colour", "say hi", "1+1=", "how old?", "where is it?"];
    let pair = |(i, prompt): (usize, &&str)| {
        let (chosen, rejected) = (format!(" well {i}, fine."), format!(" no {}", "x".repeat(i + 1)));
        let turn = format!("Human: {prompt}\n\nAssistant:");
        match i % 2 {
            0 => json!({ "prompt": turn, "chosen": chosen, "rejected": rejected }),
            _ => json!({ "chosen": format!("{turn}{chosen}"), "rejected": format!("{turn}{rejected}") }),
        }
    };
    prompts.iter().enumerate().map(pair).collect()
}

#[test]
fn pairs_train_as_lists_of_two_and_two_losses_agree() {
    let folder = Folder::new("pairs");
    let file = folder.rows("pairs.jsonl", &pairs());
    let train = |loss: &str| {
        let extra =
            ["--loss_type", loss, "--max_steps", "6", "--per_device_train_batch_size", "2", "--logging_steps", "1"];
        let result = folder.run("train", &file, &extra).expect("trains");
        assert_eq!(counts(&result), (6, 6, json!({})));
        metrics(&folder)
    };
    // With two responses ListMLE is -log sigma(g1 - g2), and so is the mean over the one pair.
    let (pairwise, listmle) = (train("pairwise"), train("listmle"));
    assert_eq!((pairwise.len(), listmle.len()), (6, 6));
    for (a, b) in pairwise.iter().zip(&listmle) {
        for (name, value) in a.as_object().expect("a row") {
            let (x, y) = (value.as_f64().expect("a number"), b[name].as_f64().expect("a number"));
            assert!((x - y).abs() <= 1e-6 * (1.0 + x.abs()), "{name}: {x} and {y}");
        }
    }
    // The same pairs as ranked lists give the same bits.
    let lists: Vec<Value> = pairs()
        .iter()
        .map(|row| {
            let (chosen, rejected) = (row["chosen"].as_str().expect("text"), row["rejected"].as_str().expect("text"));
            let end = if row.get("prompt").is_some() { 0 } else { chosen.find("Assistant:").expect("a turn") + 10 };
            let prompt = row["prompt"].as_str().unwrap_or(&chosen[..end]);
            json!({ "prompt": prompt, "responses": [&chosen[end..], &rejected[end..]], "ranks": [1, 2] })
        })
        .collect();
    let extra =
        ["--loss_type", "listmle", "--max_steps", "6", "--per_device_train_batch_size", "2", "--logging_steps", "1"];
    folder.run("train", &folder.rows("lists.jsonl", &lists), &extra).expect("trains");
    assert_eq!(metrics(&folder), listmle);
}

#[test]
fn labelled_completions_are_put_together_by_prompt() {
    let folder = Folder::new("unpaired");
    let row = |prompt: &str, completion: &str, label: bool| json!({ "prompt": prompt, "completion": completion, "label": label });
    let rows = [
        row("1+1=", "2", true),
        row("2+2=", "4", true),
        row("1+1=", "3", false),
        row("3+3=", "6", true),
        row("3+3=", "six", true),
        row("1+1=", "4", false),
        row("4+4=", "0", false),
    ];
    let file = folder.rows("labels.jsonl", &rows);
    let result = folder.run("train", &file, &["--loss_type", "listmle", "--select", "full"]).expect("trains");
    let reasons = json!({ "equal rewards": 2, "fewer than two different responses": 2 });
    assert_eq!(counts(&result), (7, 3, reasons));
    assert_eq!(result["lists"]["lists"], json!(4));
    assert_eq!(result["lists"]["contributing"], json!(1));
    // Fine-tuning learns the good ones, sampling takes each prompt once.
    let sft = folder.run("sft", &file, &["--max_steps", "1"]).expect("sft");
    assert_eq!(counts(&sft), (7, 4, json!({ "label false": 3 })));
    let sample = folder.run("sample", &file, &["--k", "1", "--max_new_tokens", "2"]).expect("samples");
    assert_eq!(sample["prompts"], json!(4));
}

#[test]
fn every_row_is_used_or_counted() {
    let folder = Folder::new("counts");
    let good = |i: usize| json!({ "prompt": format!("{i}+1="), "completion": "#### 2" });
    let mut lines: Vec<String> = (0..20).map(|i| good(i).to_string()).collect();
    lines[3] = r#"{"prompt": "1", "prompt": "2", "completion": "3"}"#.into();
    lines[5] = r#"{"prompt": 1, "completion": "3"}"#.into();
    lines[8] = "not JSON".into();
    lines[9] = r#"{"prompt": "1+1="}"#.into();
    lines[11] = json!({ "prompt": "1".repeat(40), "completion": "2222222222" }).to_string();
    let file = folder.file("rows.jsonl", lines.join("\n"));
    let error = folder.run("sft", &file, &[]).expect_err("a bad row");
    assert!(error.contains("rows.jsonl:4: field `prompt`") && error.contains("--on_bad_row skip"), "{error}");
    let skip = ["--on_bad_row", "skip", "--max_steps", "1"];
    let sft = |extra: &[&str]| counts(&folder.run("sft", &file, &[&skip[..], extra].concat()).expect("trains"));
    let mut reasons =
        json!({ "malformed `prompt`": 2, "not valid JSON": 1, "no completion": 1, "longer than 48 tokens": 1 });
    assert_eq!(sft(&[]), (20, 15, reasons.clone()));
    // The last rows held back, the first few of the others taken.
    reasons["held back for validation"] = json!(3);
    assert_eq!(sft(&["--validation_fraction", "0.2"]), (20, 12, reasons));
    let few = json!({ "malformed `prompt`": 2, "not valid JSON": 1, "held back for validation": 3, "beyond --max_samples": 9 });
    assert_eq!(sft(&["--validation_fraction", "0.2", "--max_samples", "5"]), (20, 5, few));
    // All at once, but in an order of the seed: other rows are the first.
    let shuffled = |seed: &str| {
        let extra =
            ["--shuffle_seed", seed, "--max_samples", "4", "--max_steps", "1", "--per_device_train_batch_size", "4"];
        let result = folder.run("sft", &file, &[&["--on_bad_row", "skip"][..], &extra].concat()).expect("trains");
        (counts(&result).0, result["loss"].as_f64().expect("a loss"))
    };
    assert_eq!(shuffled("1"), shuffled("1"));
    assert_ne!(shuffled("1"), shuffled("2"));
    let text = folder.file("a.txt", "abc abc abc abc abc");
    assert!(folder.run("sft", &text, &["--shuffle_seed", "1"]).expect_err("one text").contains("--shuffle_seed"));
    // Too long: cut, or refused.
    let cut = |mode: &str| folder.run("sft", &file, &[&skip[..], &["--truncation_mode", mode]].concat());
    let kept = cut("keep_end").expect("trains");
    let reasons = json!({ "malformed `prompt`": 2, "not valid JSON": 1, "no completion": 1 });
    assert_eq!((counts(&kept), kept["data"]["shortened"].clone()), ((20, 16, reasons), json!(1)));
    let error = cut("error").expect_err("a long row");
    assert!(error.contains("rows.jsonl:12: ") && error.contains("--truncation_mode"), "{error}");
}

#[test]
fn a_schema_can_be_chosen_where_several_fit() {
    let folder = Folder::new("schema");
    let row = json!({ "prompt": "1+1=", "completion": "2", "chosen": "2", "rejected": "3" });
    let file = folder.rows("both.jsonl", &[row]);
    let error = folder.run("train", &file, &[]).expect_err("ambiguous");
    assert!(error.contains("--dataset_schema prompt_completion or --dataset_schema preference"), "{error}");
    folder.run("train", &file, &["--dataset_schema", "preference"]).expect("trains");
    folder.run("sft", &file, &["--dataset_schema", "prompt_completion", "--max_steps", "1"]).expect("trains");
    let error = folder.run("train", &file, &["--dataset_schema", "prompt_completion"]).expect_err("nothing ranked");
    assert!(error.contains("rank nothing"), "{error}");
    assert!(folder.run("train", &file, &["--dataset_schema", "pairs"]).expect_err("no schema").contains("preference"));
}

#[test]
fn the_token_cache_changes_nothing() {
    let folder = Folder::new("cache");
    let file = folder.rows("pairs.jsonl", &pairs());
    let cache = folder.path("cache");
    let train = |extra: &[&str]| {
        folder.run("train", &file, extra).expect("trains");
        (metrics(&folder), fs::read(folder.0.join("out/model.safetensors")).expect("weights"))
    };
    let files = || {
        let mut files: Vec<_> = fs::read_dir(&cache).expect("a folder").map(|e| e.expect("an entry").path()).collect();
        files.sort();
        files
    };
    let without = train(&["--no_cache"]);
    assert!(!Path::new(&cache).exists());
    let with = ["--cache_dir", &cache[..]];
    assert!(train(&with) == without && files().len() == 1);
    let kept = fs::read(&files()[0]).expect("reads");
    assert!(train(&with) == without && files().len() == 1);
    // Damaged, or put there by somebody else: made anew, with the same bytes.
    let mut damaged = kept.clone();
    damaged[kept.len() / 2] ^= 4;
    for bytes in [damaged, b"something else".to_vec(), vec![]] {
        fs::write(&files()[0], bytes).expect("writes");
        assert!(train(&with) == without);
        assert!(fs::read(&files()[0]).expect("reads") == kept);
    }
    // Other rows, other settings, another tokenizer: another file.
    train(&["--cache_dir", &cache, "--max_samples", "3"]);
    assert_eq!(files().len(), 2);
    folder.rows("pairs.jsonl", &pairs()[..4]);
    train(&with);
    assert_eq!(files().len(), 3);
    folder.rows("pairs.jsonl", &pairs());
    let tokenizer = folder.0.join("model/tokenizer.json");
    let text = fs::read_to_string(&tokenizer).expect("reads");
    fs::write(&tokenizer, format!("{text}\n")).expect("writes");
    assert!(train(&with) == without && files().len() == 4);
}
