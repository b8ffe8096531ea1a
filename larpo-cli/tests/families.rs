//! Model folders of every supported family go through the verbs and come out as they went in, but for the numbers.

mod common;
use common::{Folder, run_here as larpo};
use larpo_cli::policy::{Parts, Policy};
use larpo_core::cpu::Cpu;
use larpo_core::lists::PackedLists;
use larpo_data::model_folder::{AdapterFolder, Format, ModelFolder};
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

/// Every file of a folder, by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let named = |path: std::path::PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        (name, std::fs::read(path).expect("reads"))
    };
    entries.filter(|path| path.is_file()).map(named).collect()
}

/// Log-probabilities of a few tokens under the model or adapter in a folder.
fn scores(folder: &str) -> Vec<f64> {
    let policy = Policy::open(&Cpu::new(), Path::new(folder)).expect("a model");
    policy.model.score(&PackedLists::pack([(&[5u32, 9, 4][..], [&[7u32, 3, 11, 2][..], &[6]])])).expect("scores")
}

#[test]
fn an_adapter_of_every_family_is_trained_used_and_merged() {
    for (name, config) in configurations() {
        let folder = Folder::new(&format!("adapter-{name}"));
        let data = folder.rows("rows.jsonl", &rows());
        let [model, sft, aligned, merged] = ["model", "sft", "aligned", "merged"].map(|part| folder.name(part));
        make(Path::new(&model), config, Format::F32);
        let before = files(Path::new(&model));
        let run = |words: &[&str]| larpo(words).unwrap_or_else(|error| panic!("{name}: {error}"));

        let adapter = ["--use_peft", "--lora_r", "4", "--lora_target_modules", "all-linear"];
        let training = ["--learning_rate", "1e-2", "--max_steps", "4", "--logging_steps", "2"];
        let words = ["sft", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", &sft];
        run(&[&words[..], &adapter, &training].concat());
        assert!(files(Path::new(&model)) == before, "{name}: the base is as it was");
        let written = files(Path::new(&sft));
        assert!(written.contains_key("adapter_model.safetensors") && written.contains_key("tokenizer.json"), "{name}");
        assert!(!written.contains_key("config.json") && !written.contains_key("model.safetensors"), "{name}");
        let (base, adapted) = (scores(&model), scores(&sft));
        assert!(base.iter().zip(&adapted).any(|(a, b)| (a - b).abs() > 1e-3), "{name}: {base:?} {adapted:?}");

        // An adapter folder goes on as one, without --use_peft.
        let draw = ["--k", "4", "--max_new_tokens", "6", "--reward_funcs", "length:target=3", "--reference", "initial"];
        let words = ["align", "--model_name_or_path", &sft, "--dataset_name", &data, "--output_dir", &aligned];
        run(&[&words[..], &draw, &["--iterations", "2", "--prompts_per_iteration", "6"]].concat());
        assert_ne!(scores(&aligned), adapted, "{name}");
        let config = |folder: &str| -> Value {
            serde_json::from_slice(&files(Path::new(folder))["adapter_config.json"]).expect("JSON")
        };
        assert_eq!(config(&aligned), config(&sft), "{name}");

        run(&["merge", &aligned, &merged]);
        assert_eq!(form(Path::new(&merged)), form(Path::new(&model)), "{name}");
        for (a, b) in scores(&merged).iter().zip(scores(&aligned)) {
            assert!((a - b).abs() < 1e-5, "{name}: {a} {b}");
        }
        run(&["sample", "--model_name_or_path", &aligned, "--prompt", "1+1\n", "--max_new_tokens", "3"]);
        run(&["generate", "--model_name_or_path", &aligned, "--prompt", "1+1\n", "--max_new_tokens", "3"]);
        run(&["score", "--model_name_or_path", &aligned, "--dataset_name", &data, "--max_samples", "2"]);
        let draw = ["--dataset_name", &data, "--max_samples", "3", "--k", "2", "--max_new_tokens", "4"];
        let reward = ["--reward_funcs", "length:target=3", "--recall_at", "1"];
        run(&[&["eval", &aligned, &merged, "--ref_model", &model][..], &draw, &reward].concat());
        let words = ["plan", "sft", "--model_name_or_path", &model, "--dataset_name", &data];
        run(&[&words[..], &["--output_dir", &folder.name("planned")], &adapter].concat());

        // Read and written again it is the same, every file of it.
        let again = folder.name("again");
        Policy::open(&Cpu::new(), Path::new(&aligned)).expect("reads").save(Path::new(&again)).expect("writes");
        let (was, is) = (files(Path::new(&aligned)), files(Path::new(&again)));
        assert!(is.iter().all(|(file, bytes)| was[file] == *bytes) && is.contains_key("adapter_config.json"), "{name}");
    }
}

#[test]
fn a_run_with_an_adapter_goes_on_to_the_same_bits() {
    let folder = Folder::new("adapter-resumed");
    let data = folder.rows("rows.jsonl", &rows());
    let model = folder.name("model");
    make(Path::new(&model), configurations().remove(0).1, Format::Bf16);
    let training = ["--save_steps", "1", "--lora_dropout", "0.3", "--use_peft", "--learning_rate", "1e-2"];
    let draw = ["--k", "4", "--max_new_tokens", "6", "--reward_funcs", "length:target=3", "--memory", "all"];
    let loops = ["--iterations", "2", "--prompts_per_iteration", "9", "--per_device_train_batch_size", "2"];
    for verb in ["sft", "align"] {
        let [whole, parts] = ["whole", "parts"].map(|part| folder.name(&format!("{verb}-{part}")));
        let words = |out| {
            let words = [verb, "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", out];
            match verb {
                "sft" => [&words[..], &training, &["--max_steps", "5"]].concat(),
                _ => [&words[..], &training, &draw, &loops, &["--reference", "initial"]].concat(),
            }
        };
        for out in [&whole, &parts] {
            larpo(&words(out)).expect(verb);
        }
        // What came after a checkpoint is lost; of `align` the one of its second iteration.
        let out = Path::new(&parts);
        std::fs::remove_file(out.join("adapter_model.safetensors")).expect("removes");
        let at = if verb == "sft" { out.to_path_buf() } else { out.join("iteration-2") };
        let mut left = larpo_cli::checkpoint::list(&at).expect("checkpoints");
        assert!(left.len() > 2, "{left:?}");
        assert!(left[0].1.join("adapter_model.safetensors").is_file() && !left[0].1.join("config.json").exists());
        left.truncate(2);
        left.iter().for_each(|(_, path)| std::fs::remove_dir_all(path).expect("removes"));
        if verb == "align" {
            std::fs::remove_file(at.join("manifest.json")).expect("removes");
        }
        larpo(&[&words(&parts)[..], &["--resume_from_checkpoint", "latest"]].concat()).expect("goes on");
        let weights = |folder: &str| files(Path::new(folder)).remove("adapter_model.safetensors").expect("weights");
        assert!(weights(&parts) == weights(&whole), "{verb}: the weights differ");
        // A finished run is known as such, and its model as its own.
        larpo(&[&words(&parts)[..], &["--resume_from_checkpoint", "latest"]].concat()).expect("nothing to do");
        larpo(&["inspect", &parts]).expect("a run");
    }
    // Dropout is drawn: without it the result is another one.
    let plain = folder.name("plain");
    let words = ["sft", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", &plain];
    let training = ["--use_peft", "--lora_dropout", "0", "--learning_rate", "1e-2", "--max_steps", "5"];
    larpo(&[&words[..], &training].concat()).expect("sft");
    assert_ne!(scores(&plain), scores(&folder.name("sft-whole")));
}

#[test]
fn adapters_that_cannot_be_are_refused() {
    let folder = Folder::new("adapter-refused");
    let data = folder.rows("rows.jsonl", &rows());
    let [model, adapter, out] = ["model", "adapter", "out"].map(|part| folder.name(part));
    make(Path::new(&model), configurations().remove(0).1, Format::F32);
    let words = |model, out| ["sft", "--model_name_or_path", model, "--dataset_name", &data, "--output_dir", out];
    let short = ["--max_steps", "2"];
    let refused = |words: Vec<&str>| larpo(&words).expect_err("refused");
    let asked = |flags: &[&'static str]| [&words(&model, &out)[..], &short, flags].concat();
    assert!(refused(asked(&["--lora_r", "4"])).contains("--use_peft"));
    let message = refused(asked(&["--use_peft", "--lora_target_modules", "q_proj,c_attn"]));
    assert!(message.contains("c_attn") && message.contains("down_proj"), "{message}");
    assert!(refused(asked(&["--use_peft", "--lora_target_modules", "lm_head"])).contains("lm_head"));
    let fresh = ["sft", "--dataset_name", &data, "--output_dir", &out, "--preset", "t1m", "--use_peft"];
    assert!(refused(fresh.to_vec()).contains("--model_name_or_path"));

    larpo(&[&words(&model, &adapter)[..], &short, &["--use_peft", "--dtype", "bfloat16"]].concat()).expect("sft");
    let tensors = AdapterFolder::open(&adapter).expect("an adapter");
    let (first, _) = tensors.tensors().next().expect("a tensor");
    assert!(tensors.read_f32(first).expect("numbers").iter().all(|x| x.to_bits() & 0xffff == 0));
    assert!(refused([&words(&adapter, &out)[..], &short, &["--use_peft"]].concat()).contains("larpo merge"));
    assert!(refused(vec!["convert", &adapter, &out]).contains("larpo merge"));
    assert!(refused(vec!["merge", &model, &out]).contains("no adapter"));
    assert!(refused(vec!["merge", &adapter, &model]).contains("another one"));
    // The model under it has moved: named, and taken from elsewhere.
    let moved = folder.name("moved");
    std::fs::rename(&model, &moved).expect("renames");
    let message = refused(vec!["sample", "--model_name_or_path", &adapter, "--prompt", "1"]);
    assert!(message.contains(&model) && message.contains("base_model_name_or_path"), "{message}");
    larpo(&["merge", &adapter, &out, "--model", &moved, "--dtype", "float16"]).expect("merges");
    assert!(form(Path::new(&out)).0.values().all(|(_, format)| *format == Format::F16));
    // Of another shape.
    let other = folder.name("other");
    let wide = with(configurations().remove(0).1, json!({"hidden_size": 32}));
    make(Path::new(&other), wide, Format::F32);
    let message = refused(vec!["merge", &adapter, &folder.name("wrong"), "--model", &other]);
    assert!(message.contains("q_proj.lora_A.weight has shape [16, 16], expected [16, 32]"), "{message}");
}

#[test]
fn more_iterations_take_up_the_flags_of_the_adapter() {
    let folder = Folder::new("adapter-more");
    let data = folder.rows("rows.jsonl", &rows());
    let [model, plain, adapter] = ["model", "plain", "adapter"].map(|part| folder.name(part));
    make(Path::new(&model), configurations().remove(0).1, Format::F32);
    let draw = ["--k", "4", "--max_new_tokens", "6", "--reward_funcs", "length:target=3", "--iterations", "1"];
    for (out, flags) in
        [(&plain, &[][..]), (&adapter, &["--use_peft", "--lora_r", "2", "--lora_target_modules", "q_proj,o_proj"])]
    {
        let words = ["align", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", out];
        larpo(&[&words[..], &draw, &["--prompts_per_iteration", "6"], flags].concat()).expect("align");
        larpo(&["align", "--iterations", "+1", "--output_dir", out]).expect("one more");
        assert!(Path::new(out).join("iteration-2/manifest.json").is_file());
    }
    let tensors = AdapterFolder::open(&adapter).expect("an adapter").tensors().count();
    assert_eq!(tensors, 2 * 2 * 2);
    // Settings written as a file and read again ask for the same.
    let words = ["config", "align", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", &plain];
    for flags in [&[][..], &["--use_peft", "--lora_alpha", "8"]] {
        let text = larpo(&[&words[..], flags].concat()).expect("settings");
        let file = folder.file("settings.yaml", text.as_str().expect("a text"));
        larpo(&["config", "align", "--config", &file]).unwrap_or_else(|error| panic!("{error}: {text}"));
    }
}

#[test]
fn recomputed_blocks_change_no_bit() {
    let folder = Folder::new("recompute");
    let data = folder.rows("rows.jsonl", &rows());
    let model = folder.name("model");
    make(Path::new(&model), configurations().remove(3).1, Format::F32);
    let mut found = Vec::new();
    for (n, flags) in
        [&[][..], &["--gradient_checkpointing"], &["--use_peft"], &["--use_peft", "--gradient_checkpointing"]]
            .into_iter()
            .enumerate()
    {
        let out = folder.name(&format!("out-{n}"));
        let words = ["sft", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", &out];
        larpo(&[&words[..], &["--max_steps", "4", "--save_steps", "2", "--learning_rate", "1e-2"], flags].concat())
            .expect("sft");
        let mut written = files(Path::new(&out));
        written.retain(|name, _| name.ends_with(".safetensors"));
        found.push(written);
    }
    assert!(found[0] == found[1] && found[2] == found[3] && found[0] != found[2]);
}
