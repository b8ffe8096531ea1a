//! Model folders that mean harm, at the sizes that harm: each comes to a named end, in bounded time.

mod common;

use common::{Folder, config, holds, llama, tensors};
use larpo_data::model_folder::ModelFolder;
use larpo_data::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// What nobody should have to wait longer for on any machine.
const LONG: Duration = Duration::from_secs(60);

/// A safetensors file with this header before `data`.
fn safetensors(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// The header of a whole model, and its bytes, all zero.
fn whole(shape: &[(String, Vec<usize>)]) -> (Map<String, Value>, Vec<u8>) {
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in shape {
        let size = 4 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}));
        end += size;
    }
    (header, vec![0; end])
}

/// What is said about a folder with these files beside a good configuration.
fn refused(files: &[(&str, Vec<u8>)], parts: &[&str]) {
    let folder = Folder::new();
    fs::write(folder.path().join("config.json"), serde_json::to_string(config(true).json()).unwrap()).unwrap();
    for (name, bytes) in files {
        folder.file(name, bytes);
    }
    let start = Instant::now();
    let read = |folder: &Path| -> larpo_data::Result<()> {
        let model = ModelFolder::open(folder)?;
        model.check(&tensors(&llama(true)))?;
        tensors(&llama(true)).iter().try_for_each(|(name, _)| model.read_f32(name).map(|_| ()))
    };
    let error = read(folder.path()).expect_err("refused").to_string();
    assert!(start.elapsed() < LONG, "{error} took {:?}", start.elapsed());
    holds(&error, parts);
}

#[test]
fn weights_that_mean_harm_are_named() {
    let (header, data) = whole(&tensors(&llama(true)));
    let file = |change: &dyn Fn(&mut Map<String, Value>)| {
        let mut header = header.clone();
        change(&mut header);
        vec![("model.safetensors", safetensors(&Value::Object(header), &data))]
    };
    let name = "model.embed_tokens.weight";
    // A header as long as no file is, one that ends in its middle, and no header at all.
    let endless = [&(1u64 << 63).to_le_bytes()[..], b"{}"].concat();
    refused(&[("model.safetensors", endless)], &["model.safetensors", "header"]);
    refused(&[("model.safetensors", vec![1; 5])], &["model.safetensors"]);
    let whole_file = safetensors(&Value::Object(header.clone()), &data);
    for cut in [1, data.len() / 2, data.len(), whole_file.len() - 9] {
        refused(&[("model.safetensors", whole_file[..whole_file.len() - cut].to_vec())], &["model.safetensors"]);
    }
    // Two tensors in one place, one beyond the end, one that ends before it begins, one of another size than its shape.
    refused(&file(&|h| h["model.norm.weight"]["data_offsets"] = json!([0, 24])), &["model.safetensors"]);
    for offsets in [json!([0, u64::MAX]), json!([168, 0]), json!([0, 8])] {
        refused(&file(&|h| h[name]["data_offsets"] = offsets.clone()), &["model.safetensors"]);
    }
    // Shapes whose product is no number, or not that of the bytes.
    for shape in [json!([u64::MAX, u64::MAX]), json!([1u64 << 40, 1u64 << 40]), json!([7, 7])] {
        refused(&file(&|h| h[name]["shape"] = shape.clone()), &["model.safetensors"]);
    }
    // Numbers of another format.
    for dtype in ["I64", "F99"] {
        let double = |h: &mut Map<String, Value>| h[name]["dtype"] = json!(dtype);
        refused(&file(&double), &["model.safetensors"]);
    }
}

#[test]
fn an_index_names_files_of_its_folder_only() {
    let (header, data) = whole(&tensors(&llama(true)));
    let shard = safetensors(&Value::Object(header), &data);
    for place in ["../../x.safetensors", "/etc/passwd", "a/../../x.safetensors", "..", ""] {
        let map: Map<String, Value> = tensors(&llama(true)).into_iter().map(|(name, _)| (name, json!(place))).collect();
        let index = json!({"metadata": {}, "weight_map": map}).to_string().into_bytes();
        let files = [("model.safetensors.index.json", index), ("x.safetensors", shard.clone())];
        refused(&files, &["model.safetensors.index.json"]);
    }
}

/// Tables of the tokenizer library are many times as large as the added tokens.
#[test]
fn added_tokens_have_a_limit() {
    let open = |tokens: Vec<String>| {
        let folder = Folder::new();
        let added = |(id, content): (usize, &String)| {
            json!({"id": id + 1, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        let tokenizer = json!({
            "version": "1.0", "added_tokens": tokens.iter().enumerate().map(added).collect::<Vec<_>>(),
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null, "truncation": null,
            "padding": null, "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
        });
        folder.file("tokenizer.json", tokenizer.to_string());
        let start = Instant::now();
        let opened = Tokenizer::open(folder.path()).map_err(|error| error.to_string());
        assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
        opened.map(|_| ())
    };
    holds(&open(vec!["x".repeat(100_000_000)]).unwrap_err(), &["tokenizer.json", "`added_tokens`", "95 MiB"]);
    let many = (0..1_000_000).map(|i| format!("<{i:098}>")).collect();
    holds(&open(many).unwrap_err(), &["tokenizer.json", "`added_tokens`", "95 MiB"]);
    open((0..10_000).map(|i| format!("<|reserved_special_token_{i}|>")).collect()).expect("as many as there may be");
}
