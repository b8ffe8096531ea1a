//! What the test targets share: temporary folders, verbs run here, and runs of the built `larpo` as processes of their own, on a
//! tiny model, for the tests that end them.
#![allow(dead_code, reason = "each test target uses a part")]

use larpo_cli::run_record::COPY;
use larpo_cli::{args, cmd};
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A folder that is removed at the end of the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("larpo-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The same as a word of a command line.
    pub fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file, in a folder that is made where missing; its name.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("creates");
        fs::write(path, bytes).expect("writes");
        self.name(name)
    }

    /// Writes a file of JSON lines; its name.
    pub fn rows(&self, name: &str, rows: &[Value]) -> String {
        self.file(name, rows.iter().map(|row| format!("{row}\n")).collect::<String>())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a command line in this process.
pub fn run_here(words: &[&str]) -> Result<Value, String> {
    let line = std::iter::once("larpo").chain(words.iter().copied()).map(OsString::from);
    let cli = args::parse(line.collect::<Vec<_>>()).map_err(|e| e.to_string())?;
    cmd::run(&cli).map_err(|e| e.to_string())
}

/// The binary under test with one thread: every test process has its share of the machine.
pub fn larpo(words: &[&str]) -> Command {
    larpo_with(1, words)
}

/// The binary under test with so many threads.
pub fn larpo_with(threads: u32, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larpo"));
    command.args(words).args(["--threads", &threads.to_string()]).stdin(Stdio::null());
    command
}

/// Runs to the end, which must be a good one.
pub fn succeeds(command: &mut Command) -> Output {
    let output = command.output().expect("larpo starts");
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs to the end, which must be an error; its text.
pub fn fails(command: &mut Command) -> String {
    let output = command.output().expect("larpo starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{command:?}\n{text}");
    text
}

/// Starts a run whose stderr goes to a file beside its output.
pub fn start(command: &mut Command, log: &Path) -> Child {
    let log = fs::File::create(log).expect("a log");
    command.stdout(Stdio::null()).stderr(log).spawn().expect("larpo starts")
}

/// Waits until `done` holds.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A tiny model that has learned a little addition, and the rows it learned from.
pub fn tiny(folder: &Folder) -> (String, String) {
    let rows = (1..40).flat_map(|a| (1..6).map(move |b| (a, b)));
    let text: String = rows
        .map(|(a, b)| format!("{}\n", json!({"prompt": format!("{a}+{b}\n"), "completion": format!("#### {}", a + b)})))
        .collect();
    let (data, model) = (folder.path("rows.jsonl"), folder.path("model"));
    fs::write(&data, text).expect("writes");
    let (data, model) = (data.display().to_string(), model.display().to_string());
    succeeds(&mut larpo(&sft(&data, &model, &["--max_steps", "30"])));
    (data, model)
}

/// The words of a small `sft` from random weights.
pub fn sft<'a>(data: &'a str, out: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
    let mut words =
        vec!["sft", "--dataset_name", data, "--output_dir", out, "--tokenizer", "char", "--hidden_size", "16"];
    words.extend(["--num_hidden_layers", "2", "--num_attention_heads", "2", "--max_position_embeddings", "48"]);
    words.extend(["--learning_rate", "1e-2", "--validation_fraction", "0.2", "--logging_steps", "3"]);
    words.extend(extra);
    words
}

/// The words of a small `align`: two iterations of several batches of prompts, with a checkpoint every few updates.
pub fn align<'a>(data: &'a str, model: &'a str, out: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["align", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", out];
    words.extend(["--iterations", "2", "--prompts_per_iteration", "120", "--k", "16", "--max_new_tokens", "8"]);
    words.extend(["--temperature", "1.0,0.7", "--reward_funcs", "answer,length:target=6", "--reward_weights", "1,0.1"]);
    words.extend(["--per_device_train_batch_size", "4", "--logging_steps", "2", "--save_steps", "5"]);
    words.extend(["--save_total_limit", "2"]);
    words.extend(extra);
    words
}

/// What a run leaves that must not depend on how often it was interrupted: every file but the record of flags, the lock and
/// the checkpoints.
pub fn results(out: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![out.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(out).expect("inside").display().to_string();
            if name.contains("checkpoint-") || name == ".larpo.lock" || name == "run.json" || name.ends_with(COPY) {
                continue;
            }
            match path.is_dir() {
                true => folders.push(path),
                false => found.push((name, fs::read(&path).expect("reads"))),
            }
        }
    }
    found.sort();
    found
}

/// Fails where the two runs left anything different, naming the file.
pub fn assert_same(expected: &[(String, Vec<u8>)], found: &[(String, Vec<u8>)], context: &str) {
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(expected), names(found), "{context}");
    for ((name, expected), (_, found)) in expected.iter().zip(found) {
        assert!(expected == found, "{context}: {name} differs");
    }
}

/// A model of the goldens, which has no tokenizer.
pub fn golden(name: &str) -> PathBuf {
    let all = match std::env::var_os("LARPO_GOLDEN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../larpo-core/tests/golden"),
    };
    all.join("models").join(name)
}

/// What independent software made of it.
pub fn numbers(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(golden(name).join("golden.json")).expect("reads")).expect("JSON")
}

/// A model of the goldens with words for tokens, `w7` for id 7, one of which the tokenizer may put in front of every text.
pub fn with_words(name: &str, folder: &Path, template: Option<&str>, bos: Option<u32>) {
    fs::create_dir_all(folder).expect("creates");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden(name).join(file), folder.join(file)).expect("copies");
    }
    let vocabulary: Map<String, Value> = (0..320).map(|id| (format!("w{id}"), json!(id))).collect();
    let front = bos.map(|id| {
        let special = json!({"SpecialToken": {"id": format!("w{id}"), "type_id": 0}});
        json!({
            "type": "TemplateProcessing", "pair": [special, {"Sequence": {"id": "A", "type_id": 0}}],
            "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {format!("w{id}"): {"id": format!("w{id}"), "ids": [id], "tokens": [format!("w{id}")]}},
        })
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": front, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("writes");
    let config = json!({"chat_template": template, "bos_token": bos.map(|id| format!("w{id}"))});
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).expect("writes");
}

/// The language model of the goldens, whose responses have no end.
pub fn language_golden(folder: &Folder, template: Option<&str>) -> String {
    let model = folder.name("model");
    with_words("qwen3", Path::new(&model), template, None);
    let path = Path::new(&model).join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["eos_token_id"] = Value::Null;
    fs::write(&path, config.to_string()).expect("writes");
    model
}
