//! Damaged input: every reader gets seeded mutations of good files and must answer with rows or with an error. It must not
//! panic, run on, or take memory for a length that it has not checked.
//!
//! `cargo test` tries a few thousand mutations a reader; `LARPO_MUTATIONS=100000 cargo test --release --test mutations` is
//! the long form. An input that breaks a reader is written to the temporary folder and named (one that aborts the process
//! only with LARPO_MUTATIONS_KEEP set, which writes down every input first). Such inputs are kept in tests/corpus/READER
//! and tried again every time.

mod common;

use common::{Folder, fixtures};
use larpo_data::Error;
use larpo_data::chat::{ChatOptions, ChatTemplate};
use larpo_data::model_folder::ModelFolder;
use larpo_data::records::{FormatKind, Keys, OnBadRow, ReadOptions, Schema, parse_dataset, read_keyed_rows};
use larpo_data::state::{load_state, save_state};
use larpo_data::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

thread_local! {
    /// The largest single allocation since it was last set to 0.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Watching;

impl Watching {
    fn note(size: usize) {
        // The thread may be ending.
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
    }
}

// SAFETY: every call is handed on unchanged to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::note(size);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Any state but 0; neighbouring seeds are driven apart.
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `n`, 0 where `n` is 0.
    fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() >> 11) as usize % n }
    }

    fn range(&mut self, n: usize) -> std::ops::Range<usize> {
        let start = self.below(n);
        start..start + self.below((n - start).min(64) + 1)
    }
}

/// Pieces that readers have a case for.
const PIECES: [&[u8]; 46] = [
    b"null",
    b"true",
    b"false",
    b"0",
    b"-1",
    b"1e999",
    b"1e-400",
    b"-0",
    b"18446744073709551616",
    b"9007199254740993",
    b"0.1",
    b"NaN",
    b"-Infinity",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\\n",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\n",
    b"\r\n",
    b"\t",
    b" ",
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\xc3",
    b"\"prompt\":",
    b"\"responses\":[",
    b"\"rewards\":[",
    b"\"chosen\":",
    b"\"rejected\":",
    b"\"label\":",
    b"\"completion\":",
    b"\"question\":",
    b"####",
    b"\"\"",
    b"\n\nAssistant:",
    b"\x1f\x8b\x08\x00",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xfd\xff\xff\xff\xff\xff\xff\x7f",
];

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        let inside = random.below(bytes.len());
        match random.below(11) {
            0 if !bytes.is_empty() => bytes[inside] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[inside] = random.next() as u8,
            2 => bytes.insert(at, random.next() as u8),
            3 => drop(bytes.drain(random.range(bytes.len()))),
            4 => {
                let part = bytes[random.range(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            5 => bytes.truncate(at),
            6 => {
                let other = &seeds[random.below(seeds.len())];
                let part = other[random.range(other.len())].to_vec();
                bytes.splice(at..at, part);
            }
            7 | 8 => {
                let piece = PIECES[random.below(PIECES.len())].iter().copied();
                bytes.splice(at..at, piece);
            }
            9 => {
                // Over what was there, which keeps the lengths around it.
                let piece = PIECES[random.below(PIECES.len())];
                let end = (at + piece.len()).min(bytes.len());
                bytes.splice(at..end, piece.iter().copied());
            }
            _ if random.below(20) == 0 => {
                // Deep nesting, long runs.
                let piece = PIECES[random.below(PIECES.len())];
                let run = piece.repeat(1 + random.below(3000));
                bytes.splice(at..at, run);
            }
            _ => {}
        }
    }
    bytes
}

fn mutations() -> u64 {
    std::env::var("LARPO_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(2000)
}

/// A single case may take as long; a busy machine is slow, a loop without an end is slower.
const PATIENCE: Duration = Duration::from_secs(30);

/// What an allocation may have whatever the input: regular expressions and tables of the tokenizers library.
const FIXED: usize = 4 << 20;

/// Hands `read` the corpus, the seeds and mutations of the seeds. An allocation may be `factor` times the input, beside
/// [`FIXED`].
fn attack(reader: &str, factor: usize, seeds: &[Vec<u8>], mut read: impl FnMut(&[u8])) {
    // Without a backtrace, which takes memory of its own. A library that panics inside a guard is no failure.
    std::panic::set_hook(Box::new(|_| {}));
    let keep = std::env::var_os("LARPO_MUTATIONS_KEEP").is_some();
    let mut check = |bytes: &[u8], name: &str| {
        if keep {
            std::fs::write(std::env::temp_dir().join(format!("larpo-mutation-{reader}")), bytes).expect("writes");
        }
        LARGEST.set(0);
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| read(bytes)));
        let (time, largest) = (start.elapsed(), LARGEST.get());
        let allowed = bytes.len() * factor + FIXED;
        if outcome.is_err() || time > PATIENCE || largest > allowed {
            let file = std::env::temp_dir().join(format!("larpo-mutation-{reader}-{name}"));
            std::fs::write(&file, bytes).expect("writes");
            let how = match &outcome {
                Ok(()) => format!("{time:?}, largest allocation {largest} bytes for {} bytes of input", bytes.len()),
                Err(panic) => {
                    let text =
                        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
                    format!("panic: {}", text.unwrap_or("?"))
                }
            };
            let message = format!("{reader}, {name}: {how}; the input is in {}", file.display());
            eprintln!("{message}");
            panic!("{message}");
        }
    };
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(reader);
    if corpus.is_dir() {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(corpus).expect("reads").map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        for file in files {
            check(&std::fs::read(&file).expect("reads"), &file.file_name().expect("a name").to_string_lossy());
        }
    }
    for (i, seed) in seeds.iter().enumerate() {
        check(seed, &format!("seed-{i}"));
    }
    for seed in 0..mutations() {
        check(&mutate(&mut Random::new(seed), seeds), &seed.to_string());
    }
}

const ROWS: [&str; 7] = [
    "{\"prompt\": \"2 + 2 =\\n\", \"reference\": \"4\"}\n{\"prompt\": \"é\"}\n",
    "{\"prompt\": \"2 + 2 =\", \"completion\": \" 4\"}\r\n\r\n{\"prompt\": \"\", \"completion\": \"\"}\n",
    "{\"question\": \"q\", \"answer\": \"1\\n#### 1\"}\n{\"question\": \"r\", \"answer\": \"#### 2\"}\n",
    "{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}\n{\"chosen\": \"\\n\\nHuman: x\\n\\nAssistant: y z\", \
     \"rejected\": \"\\n\\nHuman: x\\n\\nAssistant: é\"}\n{\"chosen\": \"one two\", \"rejected\": \"one 🦀\"}\n",
    "{\"prompt\": \"p\", \"completion\": \"a\", \"label\": true}\n{\"prompt\": \"p\", \"completion\": \"b\", \"label\": 0}\n",
    "{\"prompt\": \"p\", \"responses\": [\"a\", \"b\"], \"rewards\": [1, 0.5]}\n{\"prompt\": \"q\", \"responses\": [\"a\", \
     \"b\", \"c\"], \"ranks\": [1.5, 3, 1.5], \"x\": {\"y\": [{}]}}\n",
    "{\"prompt_index\": 3, \"prompt\": \"p\", \"prompt_token_ids\": [1, 2], \"reference\": \"r\", \"stop_strings\": [\"s\"], \
     \"responses\": [\"a\", \"b\"], \"rewards\": [1, 0], \"ranks\": [1, 2], \"iteration\": [0, 1], \"temperature\": [0.7, 1], \
     \"seed\": [1, 18446744073709551615], \"finish_reason\": [\"stop\", \"length\"], \"token_ids\": [[5, 6], [7]], \
     \"logps\": [[-0.5, -1e-30], [-2]]}\n",
];

fn rows() -> Vec<Vec<u8>> {
    ROWS.iter().map(|rows| rows.as_bytes().to_vec()).collect()
}

/// Reads bytes in every way there is: what comes out must add up.
fn read_every_way(name: &str, bytes: &[u8]) {
    for on_bad_row in [OnBadRow::Error, OnBadRow::Skip] {
        for schema in std::iter::once(None).chain(Schema::ALL.map(Some)) {
            let Ok(records) =
                parse_dataset(name, bytes.to_vec(), &ReadOptions { schema, on_bad_row, ..ReadOptions::default() })
            else {
                continue;
            };
            assert!(!records.dataset.is_empty());
            assert!(on_bad_row == OnBadRow::Skip || records.bad.is_empty());
            if records.format.kind == FormatKind::Jsonl && !records.format.gzip {
                // A line is blank where it has nothing but white space, which takes reading it as text.
                let blank = |line: &&[u8]| std::str::from_utf8(line).is_ok_and(|text| text.trim().is_empty());
                let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
                let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !blank(line)).count();
                assert_eq!(records.rows(), lines, "every line is a row or is counted");
            }
            records.bad.iter().for_each(|bad| assert!(bad.line > 0 && !bad.reason().is_empty()));
            let _ = records.dataset.texts();
        }
    }
}

#[test]
fn jsonl_of_every_schema() {
    for (i, name) in ["prompt", "completion", "gsm8k", "pair", "label", "list", "candidates"].into_iter().enumerate() {
        attack(&format!("jsonl_{name}"), 512, &[ROWS[i].as_bytes().to_vec()], |bytes| read_every_way("d.jsonl", bytes));
    }
    attack("jsonl_mixed", 512, &rows(), |bytes| read_every_way("d.jsonl", bytes));
}

#[test]
fn json_arrays() {
    let array = |rows: &str| format!("[{}]", rows.trim().replace("\r\n\r\n", "\n").replace('\n', ",\n")).into_bytes();
    let seeds: Vec<Vec<u8>> = ROWS.iter().map(|rows| array(rows)).collect();
    attack("array", 512, &seeds, |bytes| read_every_way("d.json", bytes));
}

#[test]
fn tables() {
    let seeds = [
        "prompt,completion,label\r\n\"a, \"\"b\"\"\nc\",x,True\r\nd,,0\r\n",
        "question,answer\nq,\"1\n#### 1\"\n\nr,#### 2",
        "prompt,chosen,rejected\np,a,b\n,one two,one three\n",
    ];
    let seeds = seeds.map(|text| text.as_bytes().to_vec());
    attack("csv", 512, &seeds, |bytes| read_every_way("d.csv", bytes));
}

#[test]
fn packed_files() {
    let pack = |bytes: &[u8]| {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        writer.write_all(bytes).expect("memory");
        writer.finish().expect("memory")
    };
    let mut seeds: Vec<Vec<u8>> = rows().iter().map(|rows| pack(rows)).collect();
    seeds.push([seeds[0].clone(), seeds[1].clone()].concat());
    // Deflate makes at most 1,032 bytes of one; a vector doubles, and a row of a byte and a line break has its price.
    attack("gzip", 1032 * 2, &seeds, |bytes| read_every_way("d.jsonl.gz", bytes));
    let mut random = Random::new(7);
    attack("gzip_of_mutated", 1032 * 512, &rows(), |bytes| {
        let mut packed = pack(bytes);
        if random.below(4) == 0 {
            packed.truncate(random.below(packed.len()));
        }
        read_every_way("d.jsonl.gz", &packed);
    });
}

#[test]
fn candidates_and_keyed_rows() {
    let folder = Folder::new();
    let (first, second) = (folder.path().join("a.jsonl"), folder.path().join("b.jsonl"));
    let keys = Keys {
        response: "responses".into(),
        reference: Some("reference".into()),
        label: Some("rewards".into()),
        lists: vec!["x".into()],
        ..Keys::default()
    };
    attack("candidates", 512, &rows()[5..], |bytes| {
        std::fs::write(&first, bytes).expect("writes");
        if let Ok(lists) = larpo_data::candidates::read(&first) {
            // What is read can be written, and is the same when it is read again.
            larpo_data::candidates::write(&second, &lists).expect("what was read can be written");
            assert_eq!(larpo_data::candidates::read(&second).expect("what was written can be read"), lists);
        }
        for on_bad_row in [OnBadRow::Error, OnBadRow::Skip] {
            let _ = read_keyed_rows(&first, &keys, on_bad_row);
            let _ = read_keyed_rows(&first, &Keys::default(), on_bad_row);
        }
    });
}

/// The shapes that trainer state and caches are made of.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Sample {
    key: u128,
    step: u64,
    name: String,
    bytes: Vec<u8>,
    names: Vec<String>,
    moments: Vec<Option<(Vec<f32>, Vec<f32>)>>,
    rows: Vec<(Vec<u32>, Vec<Vec<u32>>)>,
    by_name: std::collections::BTreeMap<String, f64>,
    ratio: f64,
    kind: std::result::Result<u32, char>,
}

fn state_bytes(folder: &Folder) -> Vec<u8> {
    let sample = Sample {
        key: 1 << 100,
        step: 300,
        name: "model.layers.0".into(),
        bytes: vec![1, 2, 3],
        names: vec!["a".into(), String::new()],
        moments: vec![None, Some((vec![1.0, -2.5], vec![0.5]))],
        rows: vec![(vec![1, 70_000], vec![vec![], vec![5]])],
        by_name: [("loss".to_string(), 0.5)].into(),
        ratio: 0.1,
        kind: Err('é'),
    };
    let path = folder.path().join("seed.bin");
    save_state(&path, "sample", &sample).expect("writes");
    std::fs::read(path).expect("reads")
}

#[test]
fn state_files() {
    let folder = Folder::new();
    let seed = state_bytes(&folder);
    let path = folder.path().join("state.bin");
    let whole = seed.clone();
    attack("state", 16, std::slice::from_ref(&seed), |bytes| {
        std::fs::write(&path, bytes).expect("writes");
        match load_state::<Sample>(&path, "sample") {
            Ok(_) => assert_eq!(bytes, whole, "a damaged state is never taken for a whole one"),
            Err(error) => assert!(matches!(error, Error::State { .. } | Error::Io { .. }), "{error}"),
        }
    });
}

/// Damage behind a checksum that fits: the decoder itself sees it.
#[test]
fn state_files_with_a_checksum_of_their_own() {
    let folder = Folder::new();
    let seed = state_bytes(&folder);
    let start = 8 + 4 + 4 + "sample".len() + 16;
    let path = folder.path().join("state.bin");
    // A length of 2^63 in it takes no memory.
    attack("state_payload", 512, &[seed[start..].to_vec()], |payload| {
        let hash = payload.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mut bytes = seed[..start - 16].to_vec();
        bytes.extend((payload.len() as u64).to_le_bytes());
        bytes.extend(hash.to_le_bytes());
        bytes.extend(payload);
        std::fs::write(&path, bytes).expect("writes");
        let _ = load_state::<Sample>(&path, "sample");
    });
}

#[test]
fn tokenizers() {
    let folder = Folder::new();
    let texts = ["the cat sat on the mat, the rat too"];
    let built =
        [Tokenizer::train_bpe(&texts, 270).expect("a tokenizer"), Tokenizer::characters(&texts).expect("a tokenizer")];
    let mut seeds: Vec<Vec<u8>> = built.iter().map(|tokenizer| tokenizer.json().as_bytes().to_vec()).collect();
    seeds.push(
        br##"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":3,"content":"</s>","single_word":false,
"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":{"type":"Sequence","normalizers":[{"type":
"Prepend","prepend":"_"},{"type":"Replace","pattern":{"String":" "},"content":"_"}]},"pre_tokenizer":null,"post_processor":
{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"</s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"</s>":{"id":"</s>","ids":
[3],"tokens":["</s>"]}}},"decoder":{"type":"ByteFallback"},"model":{"type":"BPE","dropout":null,"unk_token":"u",
"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":true,"byte_fallback":true,"vocab":{"u":0,"_":1,"a":2,
"_a":4},"merges":[["_","a"]]}}"##
            .to_vec(),
    );
    let path = folder.path().join("tokenizer.json");
    attack("tokenizer", 4096, &seeds, |bytes| {
        std::fs::write(&path, bytes).expect("writes");
        if let Ok(tokenizer) = Tokenizer::open(folder.path()) {
            for text in ["the cat\n", "", "é </s> a<|endoftext|>"] {
                if let Ok(ids) = tokenizer.encode_with_special(text) {
                    let _ = tokenizer.decode(&ids, false);
                }
                let _ = tokenizer.encode(text);
            }
        }
    });
    // The configuration beside it.
    built[0].save(folder.path()).expect("writes");
    let config = folder.path().join("tokenizer_config.json");
    let seed = std::fs::read(&config).expect("reads");
    attack("tokenizer_config", 512, &[seed], |bytes| {
        std::fs::write(&config, bytes).expect("writes");
        let _ = Tokenizer::open(folder.path());
    });
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_files() {
    let read = |name: &str| std::fs::read(Path::new("tests/golden/parquet").join(name)).expect("reads");
    let seeds =
        ["pairs-none", "pairs-snappy", "pairs-gzip", "pairs-brotli", "pairs-lz4", "pairs-zstd", "lists", "chat"]
            .map(|name| read(&format!("{name}.parquet")));
    attack("parquet", 512, &seeds, |bytes| read_every_way("d.parquet", bytes));
}

#[test]
fn chat_templates() {
    let golden = std::fs::read("tests/golden/chat/cases.json").expect("reads");
    let golden: serde_json::Value = serde_json::from_slice(&golden).expect("JSON");
    let cases = golden["cases"].as_array().expect("cases");
    let seeds: Vec<Vec<u8>> =
        cases.iter().map(|case| case["template"].as_str().expect("a template").as_bytes().to_vec()).collect();
    attack("chat_template", 4096, &seeds, |bytes| {
        let source = String::from_utf8_lossy(bytes);
        let tokens = golden["special_tokens"].as_object().expect("tokens").clone();
        let Ok(template) = ChatTemplate::new("default", &source, tokens, Path::new("t")) else { return };
        for case in [cases.first(), cases.last()].into_iter().flatten() {
            let tools = case["tools"].as_array().map(Vec::as_slice);
            let options = ChatOptions { add_generation_prompt: true, tools };
            let _ = template.render(case["messages"].as_array().expect("messages"), options);
        }
    });
}

#[test]
fn model_configurations() {
    let folder = Folder::new();
    let models = fixtures("LARPO_GOLDEN_DIR").join("models");
    let read = |name: &str, file: &str| std::fs::read(models.join(name).join(file)).expect("reads");
    let path = folder.path().join("config.json");
    let names = ["llama_tied", "llama_untied", "mistral", "gemma2", "qwen2", "qwen3", "gpt2", "llama_rm"];
    let seeds = names.map(|name| read(name, "config.json"));
    attack("config", 512, &seeds, |bytes| {
        std::fs::write(&path, bytes).expect("writes");
        let _ = ModelFolder::read_config(folder.path());
    });
}

/// A model folder with a small model in it.
fn small_model(folder: &Folder) -> Vec<u8> {
    let config = common::config(true);
    common::write(folder.path(), &config, &common::tensors(&config.shape));
    std::fs::read(folder.path().join("model.safetensors")).expect("reads")
}

fn read_model(folder: &Path) {
    if let Ok(model) = ModelFolder::open(folder) {
        let _ = model.check(&common::tensors(&common::llama(true)));
        let _ = model.form();
        for name in model.tensor_names() {
            let _ = model.read_f32(name);
        }
    }
}

#[test]
fn safetensors() {
    let folder = Folder::new();
    let weights = small_model(&folder);
    let path = folder.path().join("model.safetensors");
    attack("safetensors", 512, std::slice::from_ref(&weights), |bytes| {
        std::fs::write(&path, bytes).expect("writes");
        read_model(folder.path());
    });
    // A header whose length fits: its fields are reached.
    let length = u64::from_le_bytes(weights[..8].try_into().expect("eight bytes")) as usize;
    attack("safetensors_header", 512, &[weights[8..8 + length].to_vec()], |header| {
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &weights[8 + length..]].concat();
        std::fs::write(&path, bytes).expect("writes");
        read_model(folder.path());
    });
    // The index of a model in several files.
    std::fs::rename(&path, folder.path().join("model-00001-of-00001.safetensors")).expect("renames");
    let names: Vec<String> = common::tensors(&common::llama(true))
        .into_iter()
        .map(|(name, _)| format!("\"{name}\":\"model-00001-of-00001.safetensors\""))
        .collect();
    let index = format!("{{\"metadata\":{{\"total_size\":8}},\"weight_map\":{{{}}}}}", names.join(","));
    std::fs::write(folder.path().join("model-00001-of-00001.safetensors"), &weights).expect("writes");
    let path = folder.path().join("model.safetensors.index.json");
    attack("safetensors_index", 512, &[index.into_bytes()], |bytes| {
        std::fs::write(&path, bytes).expect("writes");
        read_model(folder.path());
    });
}
