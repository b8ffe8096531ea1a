//! Configurations of models: what tells the families apart, both dialects, and refusals by name.

mod common;
use common::{Folder, config, fixtures, holds, llama};
use larpo_data::model_folder::{
    Head, ModelConfig, ModelFolder, ModelShape, Naming, Norm, Positions, RopeScaling, write_config,
};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The folder's error after one field of its config.json was changed (null removes it).
fn config_error(change: &[(&str, Value)]) -> String {
    changed(config(false).json(), change).expect_err("the configuration is accepted").to_string()
}

/// The configuration with some fields changed.
fn changed(json: &Map<String, Value>, change: &[(&str, Value)]) -> Result<ModelConfig, larpo_data::Error> {
    let mut json = json.clone();
    for (field, value) in change {
        json.insert(field.to_string(), value.clone());
    }
    ModelConfig::from_json(Path::new("config.json"), json)
}

/// What tells the families apart, from their configurations.
#[test]
fn families_have_their_shapes() {
    let root = fixtures("LARPO_GOLDEN_DIR").join("models");
    let shape = |name: &str| ModelFolder::read_config(root.join(name)).unwrap().shape;
    let llama = shape("llama_tied");
    let plain = |s: &ModelShape| (s.qkv_bias, s.out_bias, s.mlp_bias, s.head_norm, s.post_norms, s.scale_embeddings);
    assert_eq!(plain(&llama), (false, false, false, false, false, false));
    assert_eq!(llama.query_pre_attn_scalar, llama.head_dim as f64);
    let mistral = shape("mistral");
    assert_eq!((mistral.sliding_window, mistral.windowed_layers), (Some(5), vec![true; 3]));
    let gemma = shape("gemma2");
    assert_eq!(plain(&gemma), (false, false, false, false, true, true));
    assert_eq!((gemma.attn_logit_softcapping, gemma.final_logit_softcapping), (Some(3.0), Some(2.5)));
    assert_eq!((gemma.norm, gemma.query_pre_attn_scalar, gemma.head), (Norm::RmsUnitOffset, 24.0, Head::Tied));
    assert_eq!((gemma.sliding_window, gemma.windowed_layers), (Some(5), vec![true, false, true]));
    let qwen2 = shape("qwen2");
    assert_eq!(plain(&qwen2), (true, false, false, false, false, false));
    // A window that is listed and not used.
    assert_eq!((qwen2.sliding_window, qwen2.windowed_layers), (None, vec![]));
    let qwen3 = shape("qwen3");
    assert_eq!(plain(&qwen3), (false, false, false, true, false, false));
    let gpt2 = shape("gpt2");
    assert_eq!(plain(&gpt2), (true, true, true, false, false, false));
    assert_eq!((gpt2.norm, gpt2.positions, gpt2.gated), (Norm::Layer, Positions::Learned, false));
    assert_eq!(gpt2.intermediate_size, 4 * gpt2.hidden_size);
    assert_eq!(gpt2.naming, Naming::Gpt2 { prefix: "transformer.".into() });
    let original = ModelFolder::open(root.join("gpt2_hub_names")).unwrap();
    assert_eq!(original.config.shape.naming, Naming::Gpt2 { prefix: String::new() });
    assert_eq!(shape("llama_rm").head, Head::Score);
}

#[test]
fn windows_follow_the_layers() {
    let root = fixtures("LARPO_GOLDEN_DIR").join("models");
    let json = |name: &str| ModelFolder::read_config(root.join(name)).unwrap().json().clone();
    let (qwen2, gemma) = (json("qwen2"), json("gemma2"));
    let windows = |json: &Map<String, Value>, change: &[(&str, Value)]| {
        let shape = changed(json, change).unwrap().shape;
        (shape.sliding_window, shape.windowed_layers)
    };
    let used = ("use_sliding_window", json!(true));
    assert_eq!(
        windows(&qwen2, &[used.clone(), ("max_window_layers", json!(1))]),
        (Some(4), vec![false, true]),
        "from max_window_layers on"
    );
    assert_eq!(windows(&qwen2, &[used.clone(), ("max_window_layers", json!(0))]), (Some(4), vec![true, true]));
    let kinds = ("layer_types", json!(["sliding_attention", "full_attention"]));
    assert_eq!(windows(&qwen2, &[used, kinds.clone()]), (Some(4), vec![true, false]));
    let error = changed(&qwen2, &[kinds]).unwrap_err().to_string();
    holds(&error, &["`layer_types`", "there is no window"]);
    let error = changed(&gemma, &[("layer_types", json!(["full_attention"]))]).unwrap_err().to_string();
    holds(&error, &["`layer_types`", "each of the 3 layers"]);
    assert_eq!(windows(&gemma, &[("sliding_window", Value::Null)]), (None, vec![]));
    // Absent is the default, null is none.
    let mut bare = gemma.clone();
    bare.remove("attn_logit_softcapping");
    let shape = changed(&bare, &[("final_logit_softcapping", Value::Null)]).unwrap().shape;
    assert_eq!((shape.attn_logit_softcapping, shape.final_logit_softcapping), (Some(50.0), None));
}

#[test]
fn rotary_frequencies_are_read_in_both_dialects() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    });
    let scaled = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };
    let mut both = llama3.clone();
    both["rope_theta"] = json!(7e5);
    let old =
        |scaling: Value| vec![("rope_theta", json!(7e5)), ("rope_parameters", Value::Null), ("rope_scaling", scaling)];
    let new =
        |scaling: Value| vec![("rope_theta", Value::Null), ("rope_parameters", scaling), ("rope_scaling", Value::Null)];
    for (change, scaling) in [
        (old(llama3.clone()), scaled),
        (new(both.clone()), scaled),
        (old(json!({"type": "linear", "factor": 2.0})), RopeScaling::Linear(2.0)),
        (old(json!({"rope_type": "default"})), RopeScaling::None),
        (old(Value::Null), RopeScaling::None),
    ] {
        let shape = changed(config(true).json(), &change).unwrap().shape;
        assert_eq!(shape.positions, Positions::Rotary { theta: 7e5, scaling });
    }
    let contradiction = [
        ("rope_theta", json!(7e5)),
        ("rope_parameters", both),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
    ];
    holds(&config_error(&contradiction), &["`rope_scaling`", "contradicts"]);
    for (key, value, problem) in [
        ("factor", Value::Null, "missing"),
        ("factor", json!(-1), "positive number, found -1"),
        ("low_freq_factor", json!(4.0), "4 is not below high_freq_factor = 4"),
        ("beta_fast", json!(32), "32 is not supported"),
    ] {
        let mut wrong = llama3.clone();
        wrong[key] = value;
        holds(&config_error(&old(wrong)), &[&format!("`rope_scaling.{key}`"), problem]);
    }
}

#[test]
fn other_architectures_are_refused_by_name() {
    let architecture = |name: &str| [("architectures", json!([name]))];
    holds(
        &config_error(&architecture("LlamaForTokenClassification")),
        &["config.json", "`architectures`", "LlamaForTokenClassification", "LlamaForCausalLM"],
    );
    holds(&config_error(&architecture("MistralForCausalLM")), &["`architectures`", "with the model_type \"llama\""]);
    holds(&config_error(&[("model_type", json!("gemma3"))]), &["`model_type`", "\"gemma3\" is not supported"]);
    let classifier = architecture("LlamaForSequenceClassification");
    holds(&config_error(&classifier), &["`id2label`", "2 labels"]);
    let labels = ("id2label", json!({"0": "LABEL_0"}));
    let read = changed(config(false).json(), &[classifier[0].clone(), labels]).unwrap();
    assert_eq!(read.shape.head, Head::Score);
    let config = config(false);
    let learned = ModelShape { positions: Positions::Learned, ..config.shape.clone() };
    let gelu = ModelShape { scale_embeddings: true, ..config.shape.clone() };
    for shape in [learned, gelu] {
        assert!(ModelConfig::llama(&shape, None, &[2], None).is_err());
    }
}

#[test]
fn fields_that_change_the_arithmetic_are_refused_by_name() {
    let cases: [(&str, Value); 11] = [
        ("rope_scaling", json!({"type": "dynamic"})),
        ("rope_parameters", json!({"rope_type": "yarn", "rope_theta": 5e5})),
        ("attn_logit_softcapping", json!(50.0)),
        ("query_pre_attn_scalar", json!(256)),
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
    // The kind is named before what belongs to it.
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4});
    let old = [("rope_theta", Value::Null), ("rope_scaling", Value::Null), ("rope_parameters", yarn)];
    holds(&config_error(&old), &["`rope_parameters.rope_type`", "\"yarn\"", "\"llama3\""]);
    // The same attention in every layer, which the window decides.
    let mistral = |window: Value, kind: &str| {
        let family = [("architectures", json!(["MistralForCausalLM"])), ("model_type", json!("mistral"))];
        let layers = [("sliding_window", window), ("layer_types", json!([kind]))];
        changed(config(false).json(), &[family, layers].concat())
    };
    for (window, kind, other) in
        [(json!(7), "sliding_attention", "full_attention"), (Value::Null, "full_attention", "sliding_attention")]
    {
        mistral(window.clone(), kind).unwrap();
        let error = mistral(window, other).unwrap_err().to_string();
        holds(&error, &["`layer_types`", other, &format!("only \"{kind}\"")]);
    }
    // The same fields where they change nothing.
    let harmless = [
        ("use_mrope", json!(false)),
        ("rope_scaling", json!({"type": "default"})),
        ("sliding_window", Value::Null),
        ("layer_types", json!(["full_attention"])),
        ("partial_rotary_factor", json!(1)),
        ("attention_dropout", json!(0)),
        ("_name_or_path", json!("x")),
    ];
    assert_eq!(changed(config(false).json(), &harmless).unwrap().shape, llama(false));
    // Biases are arithmetic that is there.
    let biased = changed(config(false).json(), &[("attention_bias", json!(true)), ("mlp_bias", json!(true))]).unwrap();
    assert_eq!(biased.shape, ModelShape { qkv_bias: true, out_bias: true, mlp_bias: true, ..llama(false) });
    // Each family has its own.
    let root = fixtures("LARPO_GOLDEN_DIR").join("models");
    for (name, field, value) in [
        ("gpt2", "activation_function", json!("gelu")),
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true)),
        ("gpt2", "scale_attn_weights", json!(false)),
        ("gpt2", "add_cross_attention", json!(true)),
        ("gemma2", "hidden_activation", json!("gelu")),
        ("mistral", "attention_bias", json!(true)),
        ("qwen3", "mlp_bias", json!(true)),
    ] {
        let read = ModelFolder::read_config(root.join(name)).unwrap();
        let message = changed(read.json(), &[(field, value)]).unwrap_err().to_string();
        holds(&message, &[&format!("field `{field}`"), "not supported"]);
    }
}

#[test]
fn malformed_fields_are_named_with_what_was_expected() {
    let cases: [(&str, Value, &str); 12] = [
        ("hidden_size", Value::Null, "missing"),
        ("hidden_size", json!(-6), "whole number from 1 to 2147483647, found -6"),
        ("hidden_size", json!(1_u64 << 40), "whole number from 1 to 2147483647, found 1099511627776"),
        ("hidden_size", json!("6"), "whole number from 1 to 2147483647, found \"6\""),
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
    let message = ModelConfig::llama(&llama(true), None, &[2, 7], None).unwrap_err().to_string();
    holds(&message, &["`eos_token_id`", "7 lies outside the vocabulary of 7 tokens"]);
}

#[test]
fn the_generation_config_wins() {
    let folder = Folder::new();
    write_config(folder.path(), &config(false)).unwrap();
    folder.file("generation_config.json", r#"{"eos_token_id": [3, 4], "pad_token_id": null}"#);
    let read = ModelFolder::read_config(folder.path()).unwrap();
    assert_eq!(read.eos_token_ids, [3, 4]);
    assert_eq!(read.pad_token_id, Some(1));
    // And is kept as it is.
    assert_eq!(read.generation_json().map(|json| json.len()), Some(2));
    std::fs::remove_file(folder.path().join("generation_config.json")).unwrap();
    let read = ModelFolder::read_config(folder.path()).unwrap();
    assert_eq!((read.eos_token_ids.as_slice(), read.generation_json()), (&[2][..], None));
}
