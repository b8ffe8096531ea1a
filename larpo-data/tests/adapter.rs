//! Low-rank adapters in PEFT's files: read, checked, refused, and written as they were.

use larpo_data::model_folder::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterConfig, AdapterFolder, AdapterForm, Format, Targets,
};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapters").join(name)
}

fn temporary(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("larpo-adapter-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("creates");
    folder
}

fn names(modules: &[&str]) -> Vec<String> {
    modules.iter().map(|name| name.to_string()).collect()
}

fn json_of(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("reads")).expect("JSON")
}

#[test]
fn peft_folders_come_out_as_they_went_in() {
    for name in ["llama_names", "qwen3_pattern", "gpt2_default"] {
        let (folder, out) = (golden(name), temporary(name));
        assert!(AdapterFolder::is_one(&folder) && !AdapterFolder::is_one(&out));
        let adapter = AdapterFolder::open(&folder).expect("an adapter");
        let read = |adapter: &AdapterFolder, name: &str| adapter.read_f32(name).expect("numbers");
        let form = adapter.form().expect("a form");
        form.write(&out, |name| Cow::Owned(read(&adapter, name))).expect("writes");
        assert_eq!(json_of(out.join(ADAPTER_CONFIG)), json_of(folder.join(ADAPTER_CONFIG)));
        let again = AdapterFolder::open(&out).expect("an adapter");
        assert!(again.tensors().eq(adapter.tensors()), "names, shapes and order");
        for (name, _) in adapter.tensors() {
            assert_eq!(read(&again, name), read(&adapter, name));
        }
        // For going on every bit is kept, and the format that was asked for is remembered.
        let half = form.with_format(Format::Bf16);
        half.write_f32(&out, |name| Cow::Owned(read(&adapter, name))).expect("writes");
        let exact = AdapterFolder::open(&out).expect("an adapter");
        let (first, _) = adapter.tensors().next().expect("a tensor");
        assert_eq!(read(&exact, first), read(&adapter, first));
        exact.form().expect("a form").write(&out, |name| Cow::Owned(read(&adapter, name))).expect("writes");
        let rounded = read(&AdapterFolder::open(&out).expect("an adapter"), first);
        assert_ne!(rounded, read(&adapter, first));
        assert!(rounded.iter().all(|x| x.to_bits() & 0xffff == 0));
        std::fs::remove_dir_all(&out).expect("removes");
    }
}

#[test]
fn what_peft_says_is_understood() {
    let of = |name: &str| AdapterConfig::read(golden(name)).expect("a configuration");
    let llama = of("llama_names");
    assert_eq!((llama.rank, llama.alpha, llama.rslora, llama.dropout), (3, 5.0, false, 0.0));
    assert_eq!(llama.base.as_deref(), Some("llama_tied_bf16"));
    assert_eq!(llama.targets, Targets::Names(names(&["down_proj", "q_proj", "v_proj"])));
    assert!(matches!(of("qwen3_pattern").targets, Targets::Pattern(_)));
    // PEFT writes out what it took for the family.
    assert_eq!(of("gpt2_default").targets, Targets::Names(names(&["c_attn"])));
}

fn config(more: Value) -> Result<AdapterConfig, String> {
    let mut fields = Map::new();
    fields.insert("peft_type".into(), json!("LORA"));
    fields.extend(more.as_object().expect("an object").clone());
    AdapterConfig::from_json(Path::new(ADAPTER_CONFIG), fields).map_err(|error| error.to_string())
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (more, named) in [
        (json!({"peft_type": "LOHA"}), "LOHA"),
        (json!({"use_dora": true}), "use_dora"),
        (json!({"modules_to_save": ["lm_head"]}), "modules_to_save"),
        (json!({"bias": "lora_only"}), "bias"),
        (json!({"lora_bias": true}), "lora_bias"),
        (json!({"rank_pattern": {"q_proj": 4}}), "rank_pattern"),
        (json!({"alpha_pattern": {"q_proj": 4}}), "alpha_pattern"),
        (json!({"layers_to_transform": [0]}), "layers_to_transform"),
        (json!({"exclude_modules": "q_proj"}), "exclude_modules"),
        (json!({"init_lora_weights": "pissa"}), "init_lora_weights"),
        (json!({"trainable_token_indices": [1]}), "trainable_token_indices"),
        (json!({"something_new": 3}), "something_new"),
        (json!({"r": 0}), "`r`"),
        (json!({"r": 2.5}), "`r`"),
        (json!({"lora_alpha": 0}), "lora_alpha"),
        (json!({"lora_dropout": 1.0}), "lora_dropout"),
        (json!({"use_rslora": "yes"}), "use_rslora"),
        (json!({"target_modules": [1]}), "target_modules"),
    ] {
        let error = config(more.clone()).expect_err("refused");
        assert!(error.contains(named) && error.contains(ADAPTER_CONFIG), "{more}: {error}");
    }
    let plain = config(json!({"use_dora": false, "bias": "none", "rank_pattern": {}, "something_new": null}));
    let plain = plain.expect("a plain one");
    assert_eq!((plain.rank, plain.alpha, plain.targets), (8, 8.0, Targets::Default), "PEFT's defaults");
}

#[test]
fn targets_are_matched_as_peft_matches_them() {
    let linear =
        names(&["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"]);
    let others = names(&["model.embed_tokens", "model.norm", "lm_head"]);
    let of = |targets: Value| {
        let config = config(json!({ "target_modules": targets })).expect("a configuration");
        config.modules(&linear, &others).map_err(|error| error.to_string())
    };
    assert_eq!(of(json!(["q_proj"])), Ok(vec![linear[0].clone(), linear[2].clone()]));
    assert_eq!(of(json!(["layers.1.self_attn.q_proj", "mlp.up_proj", "none"])), Ok(linear[1..].to_vec()));
    assert_eq!(of(json!(linear[1])), Ok(vec![linear[1].clone()]), "a whole name is a pattern too");
    assert_eq!(of(json!(r".*\.0\..*_proj")), Ok(linear[..2].to_vec()));
    assert_eq!(of(json!("all-linear")), Ok(linear.clone()));
    assert_eq!(of(Value::Null), Ok(vec![linear[0].clone(), linear[2].clone()]));
    // Not a part of a name, nor a part of what the expression matches.
    for (targets, problem) in [
        (json!(["proj"]), "none of the model's modules"),
        (json!("q_proj"), "none of the model's modules"),
        (json!(["q_proj", "lm_head"]), "lm_head is no linear module"),
        (json!(".*"), "model.embed_tokens is no linear module"),
        (json!("("), "regular expression"),
    ] {
        let error = of(targets.clone()).expect_err("refused");
        assert!(error.contains(problem) && error.contains("target_modules"), "{targets}: {error}");
    }
    let config = config(json!({"target_modules": ["q_proj", "typo"]})).expect("a configuration");
    assert_eq!(config.unmatched(&linear), ["typo"]);
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let adapter = AdapterFolder::open(golden("gpt2_default")).expect("an adapter");
    let mut expected: Vec<(String, Vec<usize>)> =
        adapter.tensors().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect();
    adapter.check(&expected).expect("its own");
    assert!(expected[0].0.ends_with("transformer.h.0.attn.c_attn.lora_A.weight"), "{}", expected[0].0);
    expected[0].1 = vec![5, 2];
    let lost = expected.pop().expect("a tensor");
    expected.push(("base_model.model.other.lora_A.weight".into(), vec![1]));
    let error = adapter.check(&expected).expect_err("refused").to_string();
    for part in ["missing: base_model.model.other.lora_A.weight", &format!("unexpected: {}", lost.0), "expected [5, 2]"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_new_adapter_has_peft_s_fields() {
    let modules = names(&["transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc"]);
    let new = AdapterConfig::new(4, 8.0, true, 0.05, Targets::AllLinear, "/models/base").resolve(&modules, true);
    let theirs = AdapterConfig::read(golden("gpt2_default")).expect("a configuration");
    let unknown: Vec<&String> = new.json().keys().filter(|key| !theirs.json().contains_key(*key)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert_eq!(new.json()["target_modules"], json!(["c_attn", "c_fc"]));
    assert_eq!((&new.json()["lora_alpha"], &new.json()["fan_in_fan_out"]), (&json!(8), &json!(true)));
    let out = temporary("new");
    let tensors = [("base_model.model.x.lora_B.weight".to_string(), vec![2, 1])];
    AdapterForm::fresh(new.clone(), &tensors).write(&out, |_| Cow::Owned(vec![1.0, -2.0])).expect("writes");
    let read = AdapterFolder::open(&out).expect("an adapter");
    assert_eq!((read.config.rank, read.config.alpha, read.config.rslora, read.config.dropout), (4, 8.0, true, 0.05));
    assert_eq!(read.config.json(), new.json());
    // Damaged, or of the old kind.
    std::fs::write(out.join(ADAPTER_WEIGHTS), b"short").expect("writes");
    assert!(AdapterFolder::open(&out).expect_err("damaged").to_string().contains(ADAPTER_WEIGHTS));
    std::fs::rename(out.join(ADAPTER_WEIGHTS), out.join("adapter_model.bin")).expect("renames");
    assert!(AdapterFolder::open(&out).expect_err("pickled").to_string().contains("safetensors"));
    std::fs::remove_dir_all(&out).expect("removes");
}
