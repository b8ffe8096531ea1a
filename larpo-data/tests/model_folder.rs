//! Model folders: files of other libraries, round trips, and refusals by name.

mod common;
use common::{Folder, fixtures, holds};
use half::{bf16, f16};
use larpo_data::model_folder::{ModelConfig, ModelFolder, write_config, write_model};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::path::Path;

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 7,
        hidden_size: 6,
        intermediate_size: 5,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 4,
        max_position_embeddings: 16,
        rms_norm_eps: 1e-5,
        rope_theta: 5e5,
        tie_word_embeddings: false,
        bos_token_id: None,
        eos_token_ids: vec![2],
        pad_token_id: Some(1),
        initializer_range: 0.02,
    }
}

/// Distinct numbers for a tensor, from its name.
fn numbers(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed: u32 = name.bytes().map(u32::from).sum();
    (0..shape.iter().product::<usize>()).map(|i| (seed as f32 + i as f32 * 0.37).sin() / 3.0).collect()
}

fn write(folder: &Path, config: &ModelConfig) {
    let tensors = config.tensors();
    let shape = |name: &str| tensors.iter().find(|(n, _)| n == name).unwrap().1.clone();
    write_model(folder, config, &tensors, |name| Cow::Owned(numbers(name, &shape(name)))).unwrap();
}

/// The folder's error after one field of its config.json was changed (null removes it).
fn config_error(change: &[(&str, Value)]) -> String {
    let folder = Folder::new();
    write_config(folder.path(), &config()).unwrap();
    let path = folder.path().join("config.json");
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for (field, value) in change {
        json[field] = value.clone();
    }
    folder.file("config.json", json.to_string());
    ModelFolder::read_config(folder.path()).expect_err("the configuration is accepted").to_string()
}

#[test]
fn golden_llama_folders_are_read() {
    let root = fixtures("LARPO_GOLDEN_DIR").join("models");
    let open = |name: &str| ModelFolder::open(root.join(name)).unwrap();
    let tied = open("llama_tied");
    let untied = open("llama_untied");
    let sharded = open("llama_sharded");
    for folder in [&tied, &untied, &sharded] {
        folder.check().unwrap();
        assert_eq!(folder.config.eos_token_ids, [2]);
        assert_eq!(folder.config.bos_token_id, Some(1));
    }
    // Both dialects.
    assert_eq!(tied.config.rope_theta, 10_000.0);
    assert_eq!(untied.config.rope_theta, 500_000.0);
    assert_eq!(untied.config.head_dim, untied.config.hidden_size / untied.config.num_attention_heads);
    assert!(tied.config.tie_word_embeddings && tied.shape("lm_head.weight").is_none());
    assert!(!untied.config.tie_word_embeddings);

    assert_eq!(untied.tensor_names(), sharded.tensor_names());
    for name in untied.tensor_names() {
        assert_eq!(untied.read_f32(name).unwrap(), sharded.read_f32(name).unwrap(), "{name}");
    }
    // The half-precision copies hold the same numbers, rounded.
    let (as_bf16, as_f16) = (open("llama_tied_bf16"), open("llama_tied_f16"));
    for name in tied.tensor_names() {
        let (shape, full) = tied.read_f32(name).unwrap();
        let rounded: Vec<f32> = full.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        assert_eq!(as_bf16.read_f32(name).unwrap(), (shape.clone(), rounded), "{name}");
        let rounded: Vec<f32> = full.iter().map(|x| f16::from_f32(*x).to_f32()).collect();
        assert_eq!(as_f16.read_f32(name).unwrap(), (shape, rounded), "{name}");
    }
}

#[test]
fn other_architectures_are_refused_by_name() {
    let root = fixtures("LARPO_GOLDEN_DIR").join("models");
    let error = |name: &str| ModelFolder::open(root.join(name)).unwrap_err().to_string();
    holds(&error("mistral"), &["config.json", "`model_type`", "\"mistral\"", "only \"llama\""]);
    holds(&error("llama_rm"), &["`architectures`", "LlamaForSequenceClassification", "LlamaForCausalLM"]);
}

#[test]
fn numbers_are_read_from_bytes_laid_out_by_hand() {
    // Bit patterns from the formats' definitions: 1.5 and −2 in each.
    let cases: [(&str, &[u8]); 3] =
        [("F32", &[0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0]), ("BF16", &[0xc0, 0x3f, 0, 0xc0]), ("F16", &[0, 0x3e, 0, 0xc0])];
    for (format, bytes) in cases {
        let folder = Folder::new();
        write_config(folder.path(), &config()).unwrap();
        let header = json!({"x": {"dtype": format, "shape": [2, 1], "data_offsets": [0, bytes.len()]}}).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        file.extend(bytes);
        folder.file("model.safetensors", &file);
        let open = ModelFolder::open(folder.path()).unwrap();
        assert_eq!(open.read_f32("x").unwrap(), (vec![2, 1], vec![1.5, -2.0]));
        holds(&open.read_f32("y").unwrap_err().to_string(), &["tensor `y`", "no tensor of this name"]);

        folder.file("model.safetensors", &file[..file.len() - 1]);
        holds(&ModelFolder::open(folder.path()).unwrap_err().to_string(), &["model.safetensors", "announces"]);
        folder.file("model.safetensors", &file[..6]);
        holds(&ModelFolder::open(folder.path()).unwrap_err().to_string(), &["6 bytes are too few"]);
        file[0] = 0xff;
        folder.file("model.safetensors", &file);
        holds(&ModelFolder::open(folder.path()).unwrap_err().to_string(), &["not a safetensors file, or cut short"]);
    }
    let folder = Folder::new();
    write_config(folder.path(), &config()).unwrap();
    let header = json!({"x": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend([0; 8]);
    folder.file("model.safetensors", &file);
    let message = ModelFolder::open(folder.path()).unwrap().read_f32("x").unwrap_err().to_string();
    holds(&message, &["tensor `x`", "I64", "convert them to F32, BF16 or F16"]);
}

#[test]
fn written_models_come_back_bit_for_bit_and_the_same_twice() {
    for tied in [false, true] {
        let (a, b) = (Folder::new(), Folder::new());
        let config = ModelConfig { tie_word_embeddings: tied, ..config() };
        write(a.path(), &config);
        write(b.path(), &config);
        assert_eq!(a.names(), ["config.json", "generation_config.json", "model.safetensors"]);
        for name in a.names() {
            assert_eq!(std::fs::read(a.path().join(&name)).unwrap(), std::fs::read(b.path().join(&name)).unwrap());
        }
        let open = ModelFolder::open(a.path()).unwrap();
        assert_eq!(open.config, config);
        open.check().unwrap();
        for (name, shape) in config.tensors() {
            assert_eq!(open.read_f32(&name).unwrap(), (shape.clone(), numbers(&name, &shape)));
        }
        // The container as its own library reads it.
        let bytes = std::fs::read(a.path().join("model.safetensors")).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let norm = tensors.tensor("model.norm.weight").unwrap();
        let expected: Vec<u8> = numbers("model.norm.weight", &[6]).iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(norm.data(), expected);
    }
}

#[test]
fn a_failed_write_leaves_the_old_model_and_no_temporary_file() {
    let folder = Folder::new();
    write(folder.path(), &config());
    let before = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let tensors = config().tensors();
    let message =
        write_model(folder.path(), &config(), &tensors, |_| Cow::Owned(vec![0.0; 3])).unwrap_err().to_string();
    holds(&message, &["tensor `lm_head.weight`", "3 numbers", "[7, 6] (42)"]);
    let twice = [("x".to_string(), vec![1]), ("x".to_string(), vec![1])];
    let message = write_model(folder.path(), &config(), &twice, |_| Cow::Owned(vec![0.0])).unwrap_err().to_string();
    holds(&message, &["tensor `x`", "given twice"]);
    for bad in [f32::NAN, f32::NEG_INFINITY] {
        let values = |name: &str| {
            let shape = &tensors.iter().find(|(n, _)| n == name).unwrap().1;
            let mut values = numbers(name, shape);
            if name == "model.embed_tokens.weight" {
                values[5] = bad;
            }
            Cow::Owned(values)
        };
        let message = write_model(folder.path(), &config(), &tensors, values).unwrap_err().to_string();
        holds(&message, &["tensor `model.embed_tokens.weight`", &format!("element 5 is {bad}")]);
    }
    assert_eq!(std::fs::read(folder.path().join("model.safetensors")).unwrap(), before);
    assert_eq!(folder.names(), ["config.json", "generation_config.json", "model.safetensors"]);
}

#[test]
fn differences_of_names_and_shapes_are_listed() {
    let folder = Folder::new();
    let config = ModelConfig { tie_word_embeddings: true, ..config() };
    let mut tensors = config.tensors();
    tensors.retain(|(name, _)| name != "model.norm.weight");
    tensors[0].1 = vec![7, 5];
    for extra in ["model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight", "model.layers.0.mlp.up_proj.bias"] {
        tensors.push((extra.to_string(), vec![2]));
    }
    let shapes = tensors.clone();
    let shape = |name: &str| shapes.iter().find(|(n, _)| n == name).unwrap().1.clone();
    write_model(folder.path(), &config, &tensors, |name| Cow::Owned(numbers(name, &shape(name)))).unwrap();
    let open = ModelFolder::open(folder.path()).unwrap();
    let report = open.check_names(&config.tensors());
    assert_eq!(report.missing, ["model.norm.weight"]);
    assert_eq!(report.unexpected, ["model.layers.0.mlp.up_proj.bias"]);
    assert_eq!(report.misshaped, [("model.embed_tokens.weight".to_string(), vec![7, 6], vec![7, 5])]);
    let message = open.check().unwrap_err().to_string();
    holds(
        &message,
        &["missing: model.norm.weight", "up_proj.bias", "embed_tokens.weight has shape [7, 5], expected [7, 6]"],
    );
}

#[test]
fn fields_that_change_the_arithmetic_are_refused_by_name() {
    let cases: [(&str, Value); 12] = [
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0})),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
        ("rope_parameters", json!({"rope_type": "yarn", "rope_theta": 5e5})),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("hidden_act", json!("gelu")),
        ("sliding_window", json!(4096)),
        ("quantization_config", json!({"bits": 4})),
        ("partial_rotary_factor", json!(0.5)),
        ("layer_types", json!(["sliding_attention"])),
        ("attention_dropout", json!(0.1)),
        ("residual_multiplier", json!(0.22)),
    ];
    for (field, value) in cases {
        let message = config_error(&[(field, value.clone())]);
        holds(&message, &["config.json", &format!("field `{field}"), "not supported"]);
    }
    // The same fields where they change nothing.
    let folder = Folder::new();
    let mut harmless = config().to_json();
    for (field, value) in [
        ("rope_scaling", json!({"type": "default"})),
        ("sliding_window", Value::Null),
        ("layer_types", json!(["full_attention"])),
        ("partial_rotary_factor", json!(1)),
        ("attention_dropout", json!(0)),
        ("_name_or_path", json!("x")),
    ] {
        harmless[field] = value;
    }
    folder.file("config.json", harmless.to_string());
    assert_eq!(ModelFolder::read_config(folder.path()).unwrap(), config());
}

#[test]
fn malformed_fields_are_named_with_what_was_expected() {
    let cases: [(&str, Value, &str); 11] = [
        ("hidden_size", Value::Null, "missing"),
        ("hidden_size", json!(-6), "positive whole number, found -6"),
        ("hidden_size", json!("6"), "positive whole number, found \"6\""),
        ("num_key_value_heads", json!(3), "3 does not divide the 2 heads"),
        ("head_dim", json!(3), "3 is odd"),
        ("rms_norm_eps", json!(0), "positive number, found 0"),
        ("tie_word_embeddings", json!("no"), "true or false"),
        ("rope_theta", json!(1e4), "contradicts `rope_theta`"),
        ("bos_token_id", json!([1, 2]), "one token id"),
        ("pad_token_id", json!(-1), "token id, found -1"),
        ("model_type", Value::Null, "the architecture is unknown"),
    ];
    for (field, value, part) in cases {
        holds(&config_error(&[(field, value)]), &["config.json", part]);
    }
    let message = config_error(&[("head_dim", Value::Null), ("hidden_size", json!(7))]);
    holds(&message, &["`hidden_size`", "7 is not a multiple of num_attention_heads = 2"]);
    let folder = Folder::new();
    folder.file("config.json", "{\"model_type\": ");
    holds(&ModelFolder::open(folder.path()).unwrap_err().to_string(), &["config.json", "not a JSON object"]);
    let bad = ModelConfig { eos_token_ids: vec![2, 7], ..config() };
    let message = write_config(folder.path(), &bad).unwrap_err().to_string();
    holds(&message, &["`eos_token_id`", "7 lies outside the vocabulary of 7 tokens"]);
}

#[test]
fn the_generation_config_wins() {
    let folder = Folder::new();
    write_config(folder.path(), &config()).unwrap();
    folder.file("generation_config.json", r#"{"eos_token_id": [3, 4], "pad_token_id": null}"#);
    let read = ModelFolder::read_config(folder.path()).unwrap();
    assert_eq!(read.eos_token_ids, [3, 4]);
    assert_eq!(read.pad_token_id, Some(1));
    std::fs::remove_file(folder.path().join("generation_config.json")).unwrap();
    assert_eq!(ModelFolder::read_config(folder.path()).unwrap(), config());
}

#[test]
fn an_index_that_does_not_fit_its_files_is_refused() {
    let folder = Folder::new();
    write(folder.path(), &config());
    std::fs::rename(folder.path().join("model.safetensors"), folder.path().join("part.safetensors")).unwrap();
    let all: serde_json::Map<String, Value> =
        config().tensors().into_iter().map(|(name, _)| (name, json!("part.safetensors"))).collect();
    let index = |map: Value| {
        folder.file("model.safetensors.index.json", json!({"weight_map": map}).to_string());
        ModelFolder::open(folder.path())
    };
    index(json!(all)).unwrap().check().unwrap();
    let mut map = all.clone();
    map.insert("ghost".into(), json!("part.safetensors"));
    holds(&index(json!(map)).unwrap_err().to_string(), &["`weight_map.ghost`", "holds no tensor"]);
    let mut map = all.clone();
    map.remove("model.norm.weight");
    holds(&index(json!(map)).unwrap_err().to_string(), &["`model.norm.weight` of `part.safetensors` is not listed"]);
    let mut map = all.clone();
    map["model.norm.weight"] = json!("../part.safetensors");
    holds(&index(json!(map)).unwrap_err().to_string(), &["expected the name of a file in the same folder"]);
    let mut map = all;
    map["model.norm.weight"] = json!("absent.safetensors");
    holds(&index(json!(map)).unwrap_err().to_string(), &["absent.safetensors", "cannot open"]);
}
