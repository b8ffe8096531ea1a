//! Model folders of every supported family go through the verbs and come out as they went in, but for the numbers.

mod common;
use common::{Folder, run_here as larpo};
use larpo_cli::policy::{Parts, Policy};
use larpo_core::cpu::Cpu;
use larpo_data::model_folder::{Format, ModelFolder};
use larpo_data::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Rows of additions.
fn rows() -> Vec<Value> {
    let pair = |(a, b)| json!({ "prompt": format!("{a}+{b}\n"), "completion": format!("#### {}", a + b) });
    (1..8).flat_map(|a| (1..6).map(move |b| (a, b))).map(pair).collect()
}

/// The fields that the configurations of the rotary families share.
fn rotary(architecture: &str, model_type: &str) -> Map<String, Value> {
    let fields = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 48,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.2,
        "rope_theta": 10000.0,
        "torch_dtype": "float32",
        "transformers_version": "4.44.2",
    });
    fields.as_object().expect("an object").clone()
}

fn with(mut fields: Map<String, Value>, more: Value) -> Map<String, Value> {
    fields.extend(more.as_object().expect("an object").clone());
    fields
}

/// A configuration of each family, with windows shorter than a row.
fn configurations() -> Vec<(&'static str, Map<String, Value>)> {
    let llama = rotary("LlamaForCausalLM", "llama");
    let scaled = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16
    });
    vec![
        ("llama", with(llama.clone(), json!({"tie_word_embeddings": true, "rope_scaling": scaled}))),
        ("untied", with(llama, json!({"attention_bias": true, "mlp_bias": true, "rope_scaling": null}))),
        ("mistral", with(rotary("MistralForCausalLM", "mistral"), json!({"sliding_window": 5}))),
        (
            "gemma2",
            with(
                rotary("Gemma2ForCausalLM", "gemma2"),
                json!({
                    "sliding_window": 4, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.5,
                    "query_pre_attn_scalar": 12, "hidden_activation": "gelu_pytorch_tanh",
                }),
            ),
        ),
        (
            "qwen2",
            with(
                rotary("Qwen2ForCausalLM", "qwen2"),
                json!({"use_sliding_window": true, "sliding_window": 4, "max_window_layers": 1}),
            ),
        ),
        ("qwen3", with(rotary("Qwen3ForCausalLM", "qwen3"), json!({"tie_word_embeddings": true}))),
        (
            "gpt2",
            json!({
                "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 40, "n_embd": 16, "n_head": 2,
                "n_layer": 2, "n_positions": 48, "n_inner": null, "activation_function": "gelu_new",
                "layer_norm_epsilon": 1e-5, "initializer_range": 0.2, "attn_pdrop": 0.1, "dtype": "float32",
            })
            .as_object()
            .expect("an object")
            .clone(),
        ),
    ]
}

/// A fresh model of this configuration, its weights in `format`.
fn make(folder: &Path, config: Map<String, Value>, format: Format) {
    let rows = rows();
    let texts: Vec<&str> = rows
        .iter()
        .flat_map(|row| ["prompt", "completion"].map(|field| row[field].as_str().expect("a text")))
        .collect();
    let tokenizer = Tokenizer::characters(&texts).expect("a tokenizer");
    std::fs::create_dir_all(folder).expect("creates");
    std::fs::write(folder.join("config.json"), Value::Object(config).to_string()).expect("writes");
    let (config, parts) = Parts::described(folder, tokenizer.into()).expect("a configuration");
    let mut policy = Policy::random(&Cpu::new(), config, parts, 7).expect("a model");
    policy.form = policy.form.with_format(format).into();
    policy.save(folder).expect("saves");
}

/// Shapes and formats of tensors, by name.
type Tensors = BTreeMap<String, (Vec<usize>, Format)>;

/// The tensors of a folder, and its configuration.
fn form(folder: &Path) -> (Tensors, Map<String, Value>) {
    let open = ModelFolder::open(folder).expect("a model folder");
    let tensor = |name: &&str| {
        let shape = open.shape(name).expect("a tensor").to_vec();
        (name.to_string(), (shape, open.format(name).expect("a format")))
    };
    (open.tensor_names().iter().map(tensor).collect(), open.config.json().clone())
}

#[test]
fn every_family_goes_through_every_verb() {
    for (name, config) in configurations() {
        let folder = Folder::new(&format!("family-{name}"));
        let data = folder.rows("rows.jsonl", &rows());
        let [model, sft, aligned] = ["model", "sft", "aligned"].map(|part| folder.name(part));
        // Half precision comes back out of a run that has checkpoints in single precision.
        let format = if name == "mistral" { Format::Bf16 } else { Format::F32 };
        make(Path::new(&model), config, format);
        let run = |words: &[&str]| larpo(words).unwrap_or_else(|error| panic!("{name}: {error}"));

        let training = ["--learning_rate", "1e-2", "--save_steps", "2", "--logging_steps", "2"];
        let words = ["sft", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", &sft];
        let before = run(&[&words[..], &training, &["--max_steps", "6"]].concat());
        assert!(before["loss"].as_f64().expect("a loss").is_finite());
        assert_eq!(form(Path::new(&sft)), form(Path::new(&model)), "{name}");

        let draw = ["--k", "4", "--max_new_tokens", "6", "--reward_funcs", "length:target=3"];
        let words = ["align", "--model_name_or_path", &sft, "--dataset_name", &data, "--output_dir", &aligned];
        let loops = ["--iterations", "2", "--prompts_per_iteration", "6", "--save_steps", "1"];
        run(&[&words[..], &draw, &loops].concat());
        assert_eq!(form(Path::new(&aligned)), form(Path::new(&model)), "{name}");

        let draw = ["--dataset_name", &data, "--max_samples", "5", "--k", "3", "--max_new_tokens", "6"];
        let samples = folder.name("samples");
        run(&[&["sample", "--model_name_or_path", &aligned, "--output_dir", &samples][..], &draw].concat());
        let reward = ["--reward_funcs", "length:target=3", "--recall_at", "1,3"];
        run(&[&["eval", &aligned, "--ref_model", &model][..], &draw, &reward].concat());
        run(&["inspect", &data, "--tokenizer", &aligned]);
        let planned = ["plan", "sft", "--model_name_or_path", &model, "--dataset_name", &data];
        run(&[&planned[..], &["--output_dir", &folder.name("planned"), "--max_steps", "2"]].concat());
    }
}

#[test]
fn a_run_goes_on_in_single_precision_and_ends_in_half() {
    let folder = Folder::new("family-resumed");
    let data = folder.rows("rows.jsonl", &rows());
    let [model, whole, parts] = ["model", "whole", "parts"].map(|part| folder.name(part));
    make(Path::new(&model), configurations().remove(0).1, Format::Bf16);
    let words = |out| ["sft", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", out];
    let training = ["--learning_rate", "1e-2", "--save_steps", "3", "--max_steps", "6"];
    larpo(&[&words(&whole)[..], &training].concat()).expect("sft");
    larpo(&[&words(&parts)[..], &training].concat()).expect("sft");
    let (parts, whole) = (Path::new(&parts), Path::new(&whole));
    // The final model is lost; the run goes on from its first checkpoint.
    let checkpoint = parts.join("checkpoint-3");
    assert!(form(&checkpoint).0.values().all(|(_, format)| *format == Format::F32));
    std::fs::remove_file(parts.join("model.safetensors")).expect("removes");
    std::fs::remove_dir_all(parts.join("checkpoint-6")).expect("removes");
    let parts_name = parts.display().to_string();
    larpo(&[&words(&parts_name)[..], &training, &["--resume_from_checkpoint", "latest"]].concat()).expect("goes on");
    let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).expect("weights");
    assert!(weights(parts) == weights(whole), "the weights differ");
    assert!(form(parts).0.values().all(|(_, format)| *format == Format::Bf16));
    assert_eq!(form(parts), form(Path::new(&model)));
}

#[test]
fn reward_models_are_refused_where_tokens_are_needed() {
    let folder = Folder::new("family-reward");
    let data = folder.rows("rows.jsonl", &rows());
    let model = folder.name("model");
    make(Path::new(&model), rotary("LlamaForCausalLM", "llama"), Format::F32);
    let path = Path::new(&model).join("config.json");
    let text = std::fs::read_to_string(&path).expect("reads");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    config["architectures"] = json!(["LlamaForSequenceClassification"]);
    config["id2label"] = json!({"0": "LABEL_0"});
    std::fs::write(&path, config.to_string()).expect("writes");
    let out = folder.name("out");
    let words = ["sample", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", &out];
    let message = larpo(&words).expect_err("refused");
    assert!(message.contains(&model) && message.contains("a reward model"), "{message}");
}

/// The numbers of every tensor.
fn tensors(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let open = ModelFolder::open(folder).expect("a model folder");
    open.tensor_names().into_iter().map(|name| (name.into(), open.read_f32(name).expect("numbers").1)).collect()
}

#[test]
fn a_converted_folder_is_the_same_model() {
    for (name, config) in configurations() {
        let folder = Folder::new(&format!("convert-{name}"));
        let [model, half, shards, back] = ["model", "half", "shards", "back"].map(|part| folder.name(part));
        make(Path::new(&model), config, Format::F32);
        larpo(&["convert", &model, &half, "--dtype", "bfloat16"]).expect("converts");
        let files = larpo(&["convert", &half, &shards, "--max_shard_size", "4KB"]).expect("splits");
        assert!(files["files"].as_array().expect("files").len() > 2, "{files}");
        larpo(&["convert", &shards, &back, "--dtype", "float32", "--max_shard_size", "1GiB"]).expect("joins");
        // Formats and files change, names and shapes do not; what half precision keeps of the numbers stays to the bit.
        let rounded = |x: f32| f32::from_bits(((x.to_bits() + 0x7fff + ((x.to_bits() >> 16) & 1)) >> 16) << 16);
        let expected: BTreeMap<String, Vec<f32>> = tensors(Path::new(&model))
            .into_iter()
            .map(|(name, data)| (name, data.into_iter().map(rounded).collect()))
            .collect();
        for part in [&half, &shards, &back] {
            assert!(tensors(Path::new(part)) == expected, "{name}: {part}");
        }
        assert!(form(Path::new(&shards)).0.values().all(|(_, format)| *format == Format::Bf16));
        assert_eq!(form(Path::new(&back)).0, form(Path::new(&model)).0);
        assert!(Path::new(&back).join("model.safetensors").is_file());
        let tokenizer = |part: &str| std::fs::read(Path::new(part).join("tokenizer.json")).expect("a tokenizer");
        assert!(tokenizer(&back) == tokenizer(&model));
        // The shards are read as one model by the verbs.
        larpo(&["sample", "--model_name_or_path", &shards, "--prompt", "1+1\n", "--max_new_tokens", "3"])
            .expect("sample");
    }
}

#[test]
fn conversions_that_would_lose_something_are_refused() {
    let folder = Folder::new("convert-refused");
    let [model, out] = ["model", "out"].map(|part| folder.name(part));
    make(Path::new(&model), rotary("LlamaForCausalLM", "llama"), Format::F32);
    let refused = |words: &[&str]| larpo(&[&["convert"][..], words].concat()).expect_err("refused");
    assert!(refused(&[&model, &model]).contains("the folder that is converted"));
    assert!(refused(&[&folder.name("missing"), &out]).contains("no such folder"));
    assert!(refused(&[&model, &out, "--max_shard_size", "5"]).contains("5GB"));
    larpo(&["convert", &model, &out]).expect("converts");
    let error = refused(&[&model, &out]);
    assert!(error.contains("give another OUT, or --overwrite_output_dir"), "{error}");
    assert!(refused(&[&model, &out]).contains("--overwrite_output_dir"));
    larpo(&["convert", &model, &out, "--overwrite_output_dir"]).expect("converts again");
    assert!(tensors(Path::new(&out)) == tensors(Path::new(&model)));
}

#[test]
fn new_models_of_a_configuration_and_other_formats() {
    let folder = Folder::new("config-name");
    let data = folder.rows("rows.jsonl", &rows());
    for (name, mut config) in configurations() {
        // Ids of another tokenizer, which the new one's replace.
        config.insert("eos_token_id".into(), json!(39));
        config.insert("vocab_size".into(), json!(48));
        let (path, out) = (folder.file(&format!("{name}.json"), Value::Object(config).to_string()), folder.name(name));
        let words =
            ["sft", "--config_name", &path, "--tokenizer", "char", "--dataset_name", &data, "--output_dir", &out];
        larpo(&[&words[..], &["--max_steps", "2", "--dtype", "float16"]].concat()).expect(name);
        let (tensors, fields) = form(Path::new(&out));
        assert!(tensors.values().all(|(_, format)| *format == Format::F16), "{name}");
        let eos = Tokenizer::open(&out).expect("a tokenizer").eos_id().expect("an end");
        assert_eq!(fields["eos_token_id"], json!(eos), "{name}");
        assert_eq!(fields["vocab_size"], json!(48));
    }
    let path = folder.file(
        "small.json",
        Value::Object(with(rotary("LlamaForCausalLM", "llama"), json!({"vocab_size": 5}))).to_string(),
    );
    let words = ["sft", "--config_name", &path, "--tokenizer", "char", "--dataset_name", &data, "--output_dir"];
    let message = larpo(&[&words[..], &[&folder.name("small")]].concat()).expect_err("no room");
    assert!(message.contains("small.json") && message.contains("vocabulary"), "{message}");
}
