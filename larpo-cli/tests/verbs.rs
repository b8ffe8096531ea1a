//! The verbs as a user calls them, on a tiny model: what they leave behind, that the same seed gives the same files, and
//! that bad input is named.

mod common;
use common::{Folder, run_here as larpo};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn additions() -> Vec<Value> {
    let pair = |(a, b)| json!({ "prompt": format!("{a}+{b}\n"), "completion": format!("#### {}", a + b) });
    (1..8).flat_map(|a| (1..6).map(move |b| (a, b))).map(pair).collect()
}

/// A tiny model fine-tuned on additions; its folder.
fn tiny(folder: &Folder) -> (String, String) {
    let data = folder.rows("rows.jsonl", &additions());
    let model = folder.name("model");
    larpo(&[
        "sft",
        "--dataset_name",
        &data,
        "--output_dir",
        &model,
        "--tokenizer",
        "char",
        "--hidden_size",
        "16",
        "--num_hidden_layers",
        "2",
        "--num_attention_heads",
        "2",
        "--num_key_value_heads",
        "1",
        "--max_steps",
        "30",
        "--learning_rate",
        "1e-2",
        "--validation_fraction",
        "0.2",
        "--max_position_embeddings",
        "48",
    ])
    .expect("sft");
    (data, model)
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

#[test]
fn align_leaves_its_iterations_and_repeats_itself() {
    let folder = Folder::new("align");
    let (data, model) = tiny(&folder);
    let run = |name: &str, extra: &[&str]| {
        let out = folder.name(name);
        let words = [
            &[
                "align",
                "--model_name_or_path",
                &model,
                "--dataset_name",
                &data,
                "--output_dir",
                &out,
                "--iterations",
                "2",
                "--prompts_per_iteration",
                "12",
                "--k",
                "6",
                "--max_new_tokens",
                "8",
                "--temperature",
                "1.0,0.7",
                "--reward_funcs",
                "length:target=3,regex:pattern=####",
                "--reward_weights",
                "0.1,1",
            ],
            extra,
        ]
        .concat();
        larpo(&words).expect("align")
    };
    let first = run("a", &[]);
    run("b", &[]);
    for n in [1, 2] {
        for file in ["candidates.jsonl", "metrics.jsonl", "manifest.json", "model/config.json"] {
            let name = format!("iteration-{n}/{file}");
            assert_eq!(read(folder.0.join("a").join(&name)), read(folder.0.join("b").join(&name)), "{name}");
        }
    }
    let weights = |run: &str| fs::read(folder.0.join(run).join("model.safetensors")).expect("weights");
    assert_eq!(weights("a"), weights("b"));
    run("c", &["--seed", "2"]);
    assert_ne!(weights("a"), weights("c"));
    run("d", &["--memory", "none", "--reference", "initial", "--loss_type", "listmle", "--ties", "share"]);
    assert_ne!(weights("a"), weights("d"));

    let rows: Vec<Value> = read(folder.0.join("a/iteration-2/candidates.jsonl"))
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON row"))
        .collect();
    assert_eq!(rows.len(), 12);
    for row in &rows {
        let rewards: Vec<f64> = row["rewards"].as_array().expect("rewards").iter().filter_map(Value::as_f64).collect();
        assert!(rewards.windows(2).all(|w| w[0] >= w[1]), "best first: {rewards:?}");
        for key in ["responses", "iteration", "temperature", "seed", "finish_reason", "token_ids", "logps"] {
            assert_eq!(row[key].as_array().map(Vec::len), Some(6), "{key}");
        }
        assert_eq!(row["iteration"][0], json!(2));
        let same_length =
            |i: usize| row["token_ids"][i].as_array().map(Vec::len) == row["logps"][i].as_array().map(Vec::len);
        assert!((0..6).all(same_length), "one log-probability a token");
    }
    let metrics: Value =
        serde_json::from_str(read(folder.0.join("a/iteration-1/metrics.jsonl")).lines().last().expect("a line"))
            .expect("a JSON row");
    for key in [
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
        "grad_norm",
        "learning_rate",
        "rank/ndcg",
        "rank/kendall_tau",
    ] {
        assert!(metrics[key].is_number(), "{key} in {metrics}");
    }
    let data = &first["data"];
    assert_eq!((&data["rows"], &data["used"], &data["left_out"]), (&json!(35), &json!(35), &json!({})));
    let manifest: Value = serde_json::from_str(&read(folder.0.join("a/iteration-1/manifest.json"))).expect("JSON");
    let (config, report) = (&manifest["config"]["source"], &manifest["report"]["training"]);
    assert_eq!((&config["on_bad_row"], &config["truncation_mode"]), (&json!("error"), &json!("skip")));
    assert!(
        config["shuffle_seed"].is_null() && report["rank/ndcg"].is_number() && report["rank/kendall_tau"].is_number()
    );
    let proofs = &first["iterations"][0]["proofs"];
    assert!(proofs["constant_lists"].as_u64().is_some_and(|n| n > 0), "{proofs}");
    assert!(proofs["logp_difference_max"].as_f64().is_some_and(|d| d <= 1e-4), "{proofs}");
}

/// Records of the event files of a folder.
fn events(folder: &Path) -> usize {
    let mut records = 0;
    for entry in fs::read_dir(folder).expect("reads") {
        let path = entry.expect("an entry").path();
        if !path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("events.out.tfevents.")) {
            continue;
        }
        let data = fs::read(path).expect("reads");
        let mut at = 0;
        while at < data.len() {
            at += 16 + u64::from_le_bytes(data[at..at + 8].try_into().expect("a length")) as usize;
            records += 1;
        }
    }
    records
}

#[test]
fn tensorboard_gets_what_the_logs_get() {
    let folder = Folder::new("events");
    let (data, model) = tiny(&folder);
    assert_eq!(events(Path::new(&model)), 0, "only where it is asked for");
    let out = folder.name("out");
    let words = ["align", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", &out, "--k", "4"];
    let rest =
        ["--iterations", "2", "--prompts_per_iteration", "8", "--max_new_tokens", "6", "--reward_funcs", "length"];
    let more = ["--report_to", "tensorboard", "--logging_steps", "1", "--max_steps", "3"];
    larpo(&[&words[..], &rest, &more].concat()).expect("align");
    for n in [1, 2] {
        let folder = Path::new(&out).join(format!("iteration-{n}"));
        let lines = read(folder.join("metrics.jsonl")).lines().count();
        assert_eq!((lines, events(&folder)), (3, 5), "a version and a start, then a record a line");
    }
    // A file an iteration, with a version, a start and a record each.
    assert_eq!(events(Path::new(&out)), 6);
    let again = [&words[..], &rest, &["--overwrite_output_dir"]].concat();
    larpo(&again).expect("align");
    assert_eq!(events(Path::new(&out)), 0, "the earlier run's are gone with it");
}

#[test]
fn an_iteration_without_a_list_keeps_the_policy() {
    let folder = Folder::new("equal");
    let (data, model) = tiny(&folder);
    let out = folder.name("out");
    let result = larpo(&[
        "align",
        "--model_name_or_path",
        &model,
        "--dataset_name",
        &data,
        "--output_dir",
        &out,
        "--iterations",
        "1",
        "--prompts_per_iteration",
        "4",
        "--k",
        "3",
        "--max_new_tokens",
        "4",
        "--reward_funcs",
        "regex:pattern=never",
    ])
    .expect("align");
    assert_eq!(result["iterations"][0]["lists"]["contributing"], json!(0));
    for name in ["manifest.json", "candidates.jsonl", "metrics.jsonl", "model/model.safetensors"] {
        assert!(Path::new(&out).join("iteration-1").join(name).is_file(), "{name}");
    }
    let manifest: Value = serde_json::from_str(&read(Path::new(&out).join("iteration-1/manifest.json"))).expect("JSON");
    assert_eq!(manifest["config"]["source"]["dataset_name"], json!(data));
    assert_eq!(manifest["config"]["source"]["reward_funcs"], json!("regex:pattern=never"));
    let weights = |dir: &str| fs::read(Path::new(dir).join("model.safetensors")).expect("weights");
    assert_eq!(weights(&model), weights(&out));
}

#[test]
fn stop_strings_keep_their_tokens_and_trim_the_text() {
    let folder = Folder::new("stop");
    let (data, model) = tiny(&folder);
    let out = folder.name("out");
    larpo(&[
        "sample",
        "--model_name_or_path",
        &model,
        "--dataset_name",
        &data,
        "--output_dir",
        &out,
        "--max_samples",
        "5",
        "--k",
        "4",
        "--max_new_tokens",
        "12",
        "--stop",
        "##",
    ])
    .expect("sample");
    let mut stopped = 0;
    for line in read(folder.0.join("out/candidates.jsonl")).lines() {
        let row: Value = serde_json::from_str(line).expect("a JSON row");
        for (i, reason) in row["finish_reason"].as_array().expect("reasons").iter().enumerate() {
            let text = row["responses"][i].as_str().expect("a text");
            assert!(!text.contains("##"), "{text:?}");
            if reason == "stop_string" {
                stopped += 1;
                let ids = row["token_ids"][i].as_array().map_or(0, Vec::len);
                assert_eq!(ids, text.chars().count() + 2, "the two characters of the stop string stay in the ids");
            }
        }
    }
    assert!(stopped > 0, "a model that learned #### runs into the stop string");

    // `train` takes the recorded ids of untouched texts, and encodes a shortened one anew: it is scored with fewer tokens.
    let other = folder.name("other");
    let words = ["sample", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", &other];
    let rest = ["--max_samples", "5", "--k", "4", "--max_new_tokens", "12", "--stop", " "];
    larpo(&[&words[..], &rest].concat()).expect("sample");
    let mut rows: Vec<Value> = read(folder.0.join("other/candidates.jsonl"))
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON row"))
        .collect();
    assert_eq!(rows[0]["stop_strings"], json!([" "]));
    let train = |name: &str, rows: &[Value]| {
        let file = folder.rows(name, rows);
        let words = ["train", "--model_name_or_path", &model, "--dataset_name", &file, "--max_steps", "1"];
        let rest = ["--output_dir", &folder.name(&format!("{name}-out")), "--select", "full", "--loss_type", "listmle"];
        larpo(&[&words[..], &rest].concat()).expect("train")["logps/chosen"].as_f64().expect("a number")
    };
    let row = rows.iter_mut().find(|row| {
        let texts = row["responses"].as_array().expect("texts").iter();
        texts
            .zip(row["finish_reason"].as_array().expect("reasons"))
            .any(|(text, reason)| reason == "stop_string" && text.as_str().is_some_and(|text| text.len() > 2))
    });
    let mut row = row.expect("a stopped response with a text").clone();
    let best = (0..4).find(|&i| {
        row["finish_reason"][i] == "stop_string" && row["responses"][i].as_str().is_some_and(|text| text.len() > 2)
    });
    let best = best.expect("a stopped response with a text");
    row["rewards"] = (0..4).map(|i| json!(f64::from(u8::from(i == best)))).collect();
    let recorded: f64 = row["logps"][best].as_array().expect("numbers").iter().filter_map(Value::as_f64).sum();
    let whole = train("whole.jsonl", &[row.clone()]);
    assert!((whole - recorded).abs() < 1e-3, "{whole} and {recorded}");
    row["responses"][best] = json!(row["responses"][best].as_str().expect("a text")[..1]);
    let shortened = train("short.jsonl", &[row]);
    assert!((shortened - recorded).abs() > 1e-2, "still scored as before: {shortened}");
}

#[test]
fn fine_tuning_on_text_scores_every_window_and_leaves_checkpoints() {
    let folder = Folder::new("text");
    let text: String = (0..200).map(|i| format!("line {i} of a text\n")).collect();
    fs::write(folder.0.join("text.txt"), &text).expect("a text");
    let out = folder.name("out");
    let result = larpo(&[
        "sft",
        "--dataset_name",
        &folder.name("text.txt"),
        "--output_dir",
        &out,
        "--tokenizer",
        "char",
        "--hidden_size",
        "16",
        "--num_hidden_layers",
        "1",
        "--num_attention_heads",
        "2",
        "--max_length",
        "33",
        "--max_steps",
        "40",
        "--validation_fraction",
        "0.1",
        "--eval_steps",
        "20",
        "--save_steps",
        "20",
        "--learning_rate",
        "1e-2",
    ])
    .expect("sft");
    // Uniform guessing over the characters would give ln(characters).
    let characters = text.chars().collect::<std::collections::HashSet<_>>().len() as f64;
    assert!(result["eval_loss"].as_f64().is_some_and(|loss| loss < characters.ln()), "{result}");
    let checkpoint = folder.0.join("out/checkpoint-20");
    let state = larpo_cli::checkpoint::load(&checkpoint, larpo_cli::checkpoint::Kind::Sft).expect("the trainer state");
    assert_eq!((state.optimizer.step, state.optimizer.total_steps), (20, 40));
    assert!(checkpoint.join("model.safetensors").is_file());
}

#[test]
fn recall_and_rewards_are_reported_with_their_errors() {
    let folder = Folder::new("eval");
    let (data, model) = tiny(&folder);
    let result = larpo(&[
        "eval",
        "--model_name_or_path",
        &model,
        "--dataset_name",
        &data,
        "--max_samples",
        "8",
        "--recall_at",
        "1,3",
        "--k",
        "5",
        "--max_new_tokens",
        "8",
        "--reward_funcs",
        "regex:pattern=#",
    ])
    .expect("eval");
    let recall = |n: &str| result["recall"][n].as_f64().expect("a recall");
    assert!(recall("1") <= recall("3") && recall("3") <= 1.0);
    assert_eq!(result["prompts"], json!(8));
    assert!(result["sample_reward"]["mean"].is_number());
}

/// The entry of `metrics` with these keys.
fn metric<'a>(result: &'a Value, name: &str, at: Option<usize>, temperature: f64) -> &'a Value {
    let entries = result["metrics"].as_array().expect("metrics");
    let found = entries.iter().find(|m| {
        m["metric"] == name
            && m["at"].as_u64() == at.map(|n| n as u64)
            && m["temperature"].as_f64() == Some(temperature)
    });
    found.unwrap_or_else(|| panic!("{name} {at:?} at {temperature} in {result}"))
}

#[test]
fn eval_measures_what_sample_draws() {
    let folder = Folder::new("eval-samples");
    let (data, model) = tiny(&folder);
    let longer = folder.name("longer");
    let sft = ["sft", "--dataset_name", &data, "--output_dir", &longer, "--model_name_or_path", &model];
    larpo(&[&sft[..], &["--max_steps", "10", "--learning_rate", "1e-2"]].concat()).expect("sft");
    let reward = ["--reward_funcs", "length:target=4"];
    let draw = ["--dataset_name", &data, "--max_samples", "9", "--k", "5", "--max_new_tokens", "8"];
    let words = [&["eval", &longer, "--ref_model", &model][..], &draw, &reward].concat();
    let more = ["--recall_at", "1,3", "--temperature", "1.0,0.7", "--correct_threshold", "-3", "--ndcg_at", "3"];
    let result = larpo(&[&words[..], &more].concat()).expect("eval");

    let backend = larpo_core::cpu::Cpu::new();
    let reference = larpo_cli::policy::Policy::open(&backend, Path::new(&model)).expect("the reference");
    for temperature in ["1.0", "0.7"] {
        let out = folder.name(&format!("samples-{temperature}"));
        let sample = ["sample", "--model_name_or_path", &longer, "--output_dir", &out, "--temperature", temperature];
        larpo(&[&sample[..], &draw].concat()).expect("sample");
        let t = temperature.parse().expect("a number");
        let (mut recall, mut best, mut reward, mut kl, mut tau, mut ordered) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
        let (mut kl_k3, mut ndcg, mut pairs, mut tokens) = (0.0, 0.0, 0.0, 0.0);
        let mut reciprocal_ranks = Vec::new();
        let text = read(Path::new(&out).join("candidates.jsonl"));
        for line in text.lines() {
            let row: larpo_data::candidates::CandidateList = {
                let path = folder.0.join("one.jsonl");
                fs::write(&path, line).expect("writes");
                larpo_data::candidates::read(&path).expect("a row").remove(0)
            };
            let rewards: Vec<f64> = row.token_ids.iter().map(|ids| -(ids.len().abs_diff(4) as f64)).collect();
            reward += rewards.iter().sum::<f64>() / 5.0 / 9.0;
            // All ten subsets of three samples.
            for mask in (0..1u32 << 5).filter(|m| m.count_ones() == 3) {
                let most = (0..5).filter(|i| mask >> i & 1 == 1).map(|i| rewards[i]).fold(f64::NEG_INFINITY, f64::max);
                best += most / 10.0 / 9.0;
                recall += f64::from(u8::from(most >= -3.0)) / 10.0 / 9.0;
            }
            tokens += row.token_ids.iter().map(|ids| ids.len() as f64).sum::<f64>() / 5.0 / 9.0;
            let prompt = row.prompt_token_ids.clone().expect("ids");
            let log_ratios: Vec<Vec<f64>> = (0..5)
                .map(|i| {
                    let packed = larpo_core::lists::PackedLists::pack([(&prompt[..], [&row.token_ids[i][..]])]);
                    let other = reference.model.score(&packed).expect("scores");
                    let own = row.logps[i].iter().map(|&v| f64::from(v));
                    own.zip(other).map(|(own, other)| own - other).collect()
                })
                .collect();
            let gamma: Vec<f64> = log_ratios.iter().map(|d| d.iter().sum()).collect();
            kl_k3 += log_ratios.iter().flatten().map(|d| (-d).exp() - 1.0 + d).sum::<f64>() / 5.0 / 9.0;
            let lowest = rewards.iter().copied().fold(f64::INFINITY, f64::min);
            if rewards.iter().any(|&r| r != lowest) {
                let mut order = [0, 1, 2, 3, 4];
                order.sort_by(|&a, &b| gamma[b].total_cmp(&gamma[a]));
                let mut ideal: Vec<f64> = rewards.iter().map(|r| r - lowest).collect();
                ideal.sort_by(|a, b| b.total_cmp(a));
                let at_three =
                    |gain: &dyn Fn(usize) -> f64| (0..3).map(|i| gain(i) / (i as f64 + 2.0).log2()).sum::<f64>();
                ndcg += at_three(&|i| rewards[order[i]] - lowest) / at_three(&|i| ideal[i]);
                let first = order.iter().position(|&i| rewards[i] >= -3.0);
                reciprocal_ranks.extend(first.map(|at| 1.0 / (at as f64 + 1.0)));
                let better = (0..25).map(|i| (i / 5, i % 5)).filter(|&(a, b)| rewards[a] > rewards[b]);
                let right: Vec<bool> = better.map(|(a, b)| gamma[a] > gamma[b]).collect();
                pairs += right.iter().filter(|&&right| right).count() as f64 / right.len() as f64;
            }
            kl += gamma.iter().sum::<f64>() / 5.0 / 9.0;
            let order = larpo_core::metrics::kendall_tau_b(&gamma, &rewards).expect("finite");
            tau += order.tau.unwrap_or(0.0);
            ordered += f64::from(u8::from(order.tau.is_some()));
        }
        let close = |name: &str, at: Option<usize>, expected: f64, tolerance: f64| {
            let got = metric(&result, name, at, t)["mean"].as_f64().expect("a mean");
            assert!((got - expected).abs() <= tolerance, "{name} at {temperature}: {got} is not {expected}");
        };
        close("recall", Some(3), recall, 1e-9);
        close("best_of", Some(3), best, 1e-9);
        close("reward", None, reward, 1e-9);
        close("kendall_tau", None, tau / ordered, 1e-6);
        close("ndcg", Some(3), ndcg / ordered, 1e-9);
        close("mrr", None, reciprocal_ranks.iter().sum::<f64>() / reciprocal_ranks.len() as f64, 1e-9);
        close("pair_accuracy", None, pairs / ordered, 1e-9);
        close("tokens", None, tokens, 1e-9);
        // Samples of another temperature are not the policy's own.
        match t == 1.0 {
            true => {
                close("kl_k1", None, kl, 1e-4);
                close("kl_k3", None, kl_k3, 1e-4);
            }
            false => assert!(
                result["metrics"]
                    .as_array()
                    .expect("metrics")
                    .iter()
                    .all(|m| { m["metric"] != "kl_k1" || m["temperature"] == json!(1.0) })
            ),
        }
        let interval = metric(&result, "reward", None, t)["interval"].as_array().expect("an interval").clone();
        assert!(interval[0].as_f64() < Some(reward) && Some(reward) < interval[1].as_f64(), "{interval:?} {reward}");
    }
    let missing = result["missing"].to_string();
    assert!(missing.contains("--reward_funcs answer") && !missing.contains("--ref_model"), "{missing}");
}

#[test]
fn votes_are_counted_over_every_subset_of_the_samples() {
    let folder = Folder::new("eval-votes");
    let (data, model) = tiny(&folder);
    let draw = ["--dataset_name", &data, "--max_samples", "9", "--k", "5", "--max_new_tokens", "8"];
    let result = larpo(&[&["eval", &model, "--recall_at", "3"][..], &draw].concat()).expect("eval");
    let out = folder.name("samples");
    larpo(&[&["sample", "--model_name_or_path", &model, "--output_dir", &out][..], &draw].concat()).expect("sample");
    let reranker = larpo_cli::reward::RuleReranker::quiet_answer().expect("a checker");
    let lists = larpo_data::candidates::read(Path::new(&out).join("candidates.jsonl")).expect("rows");
    let mut expected = 0.0;
    for list in &lists {
        let answers: Vec<Option<String>> = list.responses.iter().map(|text| reranker.rules().answer(text)).collect();
        let gold = reranker.rules().reference_answer(list.reference.as_deref().expect("a reference"));
        for mask in (0..1u32 << 5).filter(|m| m.count_ones() == 3) {
            let voters: Vec<&String> =
                (0..5).filter(|i| mask >> i & 1 == 1).filter_map(|i| answers[i].as_ref()).collect();
            let votes = |answer: &String| voters.iter().filter(|other| **other == answer).count();
            let most = voters.iter().map(|answer| votes(answer)).max().unwrap_or(0);
            let leaders: std::collections::BTreeSet<_> = voters.iter().filter(|answer| votes(answer) == most).collect();
            if gold.as_ref().is_some_and(|gold| leaders.contains(&gold)) {
                expected += 1.0 / leaders.len() as f64 / 10.0 / lists.len() as f64;
            }
        }
    }
    let got = metric(&result, "maj", Some(3), 1.0)["mean"].as_f64().expect("a mean");
    assert!((got - expected).abs() < 1e-9 && lists.len() == 9, "{got} is not {expected}");
    // Right or wrong: the standard error of a share, p (1 - p) / (n - 1).
    let greedy = result["greedy"].as_f64().expect("a share");
    let error = result["greedy_standard_error"].as_f64().expect("an error");
    assert!((error - (greedy * (1.0 - greedy) / 8.0).sqrt()).abs() < 1e-9, "{error} at {greedy}");
}

#[test]
fn models_side_by_side_are_compared_in_pairs() {
    let folder = Folder::new("eval-pairs");
    let (data, model) = tiny(&folder);
    let copy = folder.name("copy");
    fs::create_dir(&copy).expect("a folder");
    for entry in fs::read_dir(&model).expect("reads") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), Path::new(&copy).join(entry.file_name())).expect("copies");
    }
    let untrained = folder.name("untrained");
    let shape =
        ["--tokenizer", &model, "--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2"];
    let words = ["sft", "--dataset_name", &data, "--output_dir", &untrained, "--max_steps", "1"];
    larpo(&[&words[..], &shape, &["--max_position_embeddings", "48"]].concat()).expect("sft");
    let base = ["eval", &model, &copy, &untrained, "--dataset_name", &data, "--max_samples", "12"];
    let rest = ["--recall_at", "1,4", "--max_new_tokens", "8", "--ref_model", &model];
    let result = larpo(&[&base[..], &rest].concat()).expect("eval");
    let models = result["models"].as_array().expect("models");
    assert_eq!((models.len(), &result["prompts"]), (3, &json!(12)));
    assert!(metric(&models[0], "maj", Some(4), 1.0)["mean"].is_number());
    // A policy that is its own reference: no divergence, and no order of its own.
    assert_eq!(metric(&models[0], "kl_k3", None, 1.0)["mean"], json!(0.0));
    let order = |m: &Value| ["ndcg", "mrr", "kendall_tau", "pair_accuracy"].iter().any(|name| m["metric"] == *name);
    for model in &models[..2] {
        assert!(!model["metrics"].as_array().expect("metrics").iter().any(order), "{model}");
        assert!(model["missing"].to_string().contains("the model is the reference itself"), "{model}");
    }
    assert!(!models[2]["missing"].to_string().contains("the reference itself"));
    let compared = result["comparisons"].as_array().expect("comparisons");
    assert!(!compared.iter().any(order), "nothing to compare an order with");
    assert!(compared.iter().all(|c| c["n"].as_u64().is_some_and(|n| n > 0 && n <= 12)));
    for data in models.iter().map(|model| &model["data"]).chain([&result["data"]]) {
        assert_eq!((&data["rows"], &data["used"]), (&json!(35), &json!(12)), "{data}");
        assert_eq!(data["left_out"], json!({ "beyond --max_samples": 23 }));
    }
    let of = |name: &str| compared.iter().filter(|c| c["model"] == name).collect::<Vec<_>>();
    assert!(of(&copy).iter().all(|c| c["difference"] == 0.0 && c["p"] == 1.0), "equal models, equal seeds");
    let greedy = of(&untrained).into_iter().find(|c| c["metric"] == "greedy").expect("greedy").clone();
    assert_eq!((&greedy["test"], &greedy["against"]), (&json!("mcnemar"), &json!(model)));
    let kl = of(&untrained).into_iter().find(|c| c["metric"] == "kl_k1").expect("kl").clone();
    assert!(kl["difference"].as_f64().is_some_and(|d| d > 0.1) && kl["p"].as_f64().is_some_and(|p| p < 0.01), "{kl}");
}

#[test]
fn without_references_only_what_needs_none_is_measured() {
    let folder = Folder::new("eval-bare");
    let (_, model) = tiny(&folder);
    let bare = folder.rows("bare.jsonl", &[json!({ "prompt": "1+2\n" }), json!({ "prompt": "2+2\n" })]);
    let words = ["eval", &model, "--dataset_name", &bare, "--recall_at", "2", "--max_new_tokens", "4"];
    let error = larpo(&words).expect_err("nothing to compare with");
    assert!(error.contains("bare.jsonl:1: ") && error.contains("--reward_funcs"), "{error}");
    let file = folder.name("eval.json");
    let to_file = ["--output", &file];
    larpo(&[&words[..], &to_file].concat()).expect_err("still nothing to compare with");
    assert!(!Path::new(&file).exists(), "an evaluation that fails leaves no file");
    let nowhere = folder.name("none/eval.json");
    let error = larpo(&[&words[..], &["--ref_model", &model, "--output", &nowhere]].concat()).expect_err("no folder");
    assert!(error.contains("--output") && error.contains("none"), "{error}");
    if cfg!(target_os = "linux") {
        // A folder that nobody can write to.
        let error = larpo(&[&words[..], &["--output", "/proc/eval.json"]].concat()).expect_err("not there");
        assert!(error.contains("--output: cannot write to /proc") && error.contains("another place"), "{error}");
    }
    let result = larpo(&[&words[..], &["--ref_model", &model], &to_file].concat()).expect("KL needs no reward");
    assert_eq!(serde_json::from_str::<Value>(&read(&file)).expect("JSON"), result);
    assert!(metric(&result, "kl_k1", None, 1.0)["mean"].is_number() && result["greedy"].is_null(), "{result}");
    assert!(result["missing"].to_string().contains("no `reference`"), "{result}");
}

#[test]
fn a_tokenizer_that_adds_bos_adds_it_to_windows_of_text_too() {
    let folder = Folder::new("bos");
    let (_, model) = tiny(&folder);
    // The tokenizer of the tiny model, with its end-of-text token put in front of every text.
    let edit = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_str(&read(Path::new(&model).join(name))).expect("JSON");
        change(&mut value);
        fs::write(Path::new(&model).join(name), value.to_string()).expect("writes");
        value
    };
    let bos = "<|endoftext|>";
    edit("tokenizer_config.json", &|config| config["bos_token"] = json!(bos));
    let tokenizer = edit("tokenizer.json", &|tokenizer| {
        let added = tokenizer["added_tokens"].as_array().expect("added tokens").iter();
        let id = added.clone().find(|t| t["content"] == bos).expect("end of text")["id"].clone();
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
        });
    });
    let added = tokenizer["added_tokens"].as_array().expect("added tokens");
    let bos_id = added.iter().find(|t| t["content"] == bos).expect("end of text")["id"].clone();
    let text = folder.name("text.txt");
    fs::write(&text, "1+1\n#### 2\n2+3\n#### 5\n".repeat(8)).expect("writes");
    let out = folder.name("aligned");
    let align = |data: &str, out: &str| {
        larpo(
            &[
                &["align", "--model_name_or_path", &model, "--dataset_name", data, "--output_dir", out, "--k", "4"][..],
                &["--iterations", "1", "--prompts_per_iteration", "4", "--max_new_tokens", "6", "--max_length", "13"],
                &["--reward_funcs", "length"],
            ]
            .concat(),
        )
    };
    align(&text, &out).expect("its proofs hold, BOS among them");
    let candidates = read(Path::new(&out).join("iteration-1/candidates.jsonl"));
    for row in candidates.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")) {
        let ids = row["prompt_token_ids"].as_array().expect("ids");
        assert_eq!((ids[0].clone(), ids.len()), (bos_id.clone(), 6), "{row}");
        assert!(!row["prompt"].as_str().expect("a prompt").contains(bos));
    }
    // A prompt that has the token written out would get it twice.
    let twice = folder.rows("twice.jsonl", &[json!({ "prompt": format!("{bos}1+1\n") })]);
    let error = align(&twice, &folder.name("twice")).expect_err("two BOS");
    assert!(error.contains("never two") && error.contains("2 at the start of prompt 0"), "{error}");
}

#[test]
fn an_earlier_run_is_not_overwritten_unasked() {
    let folder = Folder::new("overwrite");
    let (data, model) = tiny(&folder);
    let before = fs::read(Path::new(&model).join("model.safetensors")).expect("weights");
    let weights = || fs::read(Path::new(&model).join("model.safetensors")).expect("weights");
    let sft = |from: &str, to: &str, extra: &[&str]| {
        let words =
            ["sft", "--model_name_or_path", from, "--dataset_name", &data, "--output_dir", to, "--max_steps", "1"];
        larpo(&[&words[..], extra].concat())
    };
    let other = folder.name("other");
    sft(&model, &other, &[]).expect("a new folder");
    assert!(sft(&other, &model, &[]).expect_err("an earlier run").contains("--overwrite_output_dir"));
    let error = sft(&model, &model, &["--overwrite_output_dir"]).expect_err("what it starts from");
    assert!(error.contains("starts from") && weights() == before, "{error}");
    sft(&other, &model, &["--overwrite_output_dir"]).expect("replaces it");
    assert_ne!(weights(), before);
}

#[test]
fn a_response_that_was_cut_off_gets_no_end_of_text() {
    let folder = Folder::new("finish");
    let (_, model) = tiny(&folder);
    let train = |name: &str, finish: Option<&str>| {
        let mut row = json!({ "prompt": "1+1\n", "responses": ["#### 2", "#### 3"], "rewards": [1, 0] });
        if let Some(finish) = finish {
            row["finish_reason"] = json!([finish, finish]);
        }
        let file = folder.rows(&format!("{name}.jsonl"), &[row]);
        let out = folder.name(name);
        larpo(&["train", "--model_name_or_path", &model, "--dataset_name", &file, "--output_dir", &out])
            .expect("trains");
        let metrics = read(Path::new(&out).join("metrics.jsonl"));
        let first: Value = serde_json::from_str(metrics.lines().next().expect("a row")).expect("JSON");
        first["logps/chosen"].as_f64().expect("a number")
    };
    let (plain, stop) = (train("plain", None), train("stop", Some("stop")));
    let (length, string) = (train("length", Some("length")), train("string", Some("stop_string")));
    assert_eq!((plain, length), (stop, string));
    // A token less, and none is certain.
    assert!(length > plain, "{length} {plain}");
}

#[test]
fn rows_that_cannot_be_trained_on_are_named() {
    let folder = Folder::new("unscored");
    let (_, model) = tiny(&folder);
    let train = |file: &str, extra: &[&str]| {
        let out = folder.name("out");
        let words = ["train", "--model_name_or_path", &model, "--dataset_name", file, "--output_dir", &out];
        larpo(&[&words[..], extra].concat()).expect_err("nothing to train on")
    };
    let good = r#"{"prompt": "1+1\n", "responses": ["2", "3"], "rewards": [1, 0]}"#;
    let file = folder.name("lists.jsonl");
    fs::write(&file, format!("{good}\n\n{}\n", good.replace("rewards", "reward"))).expect("writes");
    let error = train(&file, &[]);
    assert!(error.contains("lists.jsonl:3:") && error.contains("`rewards`") && error.contains("`reward`"), "{error}");
    fs::write(&file, good).expect("writes");
    let error = train(&file, &["--max_length", "2"]);
    assert!(error.contains("every row is left out") && error.contains("--max_length"), "{error}");
}

#[test]
fn a_missing_reference_is_found_before_sampling() {
    let folder = Folder::new("reference");
    let (_, model) = tiny(&folder);
    let rows = [json!({ "prompt": "1+1\n", "reference": "2" }), json!({ "prompt": "1+2\n" })];
    let data = folder.rows("prompts.jsonl", &rows);
    for verb in [&["eval"][..], &["align", "--output_dir", &folder.name("o"), "--k", "2"]] {
        let words = [verb, &["--model_name_or_path", &model, "--dataset_name", &data, "--max_new_tokens", "4"]];
        let error = larpo(&words.concat()).expect_err("no reference");
        assert!(error.contains("prompts.jsonl:2:") && error.contains("1 of 2"), "{error}");
    }
}

#[test]
fn rank_sorts_what_belongs_to_the_responses_and_nothing_else() {
    let folder = Folder::new("rank");
    let row = json!({
        "prompt": "p", "reference": "2", "responses": ["#### 1", "#### 2"], "rewards": [9, 1], "token_ids": [[1], [2, 3]],
        "tags": ["x", "y"], "votes": [5, 6]
    });
    let file = folder.rows("lists.jsonl", std::slice::from_ref(&row));
    let out = folder.name("out");
    let rank = |file: &str, extra: &[&str]| larpo(&[&["rank", file, "--output_dir", &out], extra].concat());
    rank(&file, &["--list_keys", "votes"]).expect("ranks");
    let ranked: Value = serde_json::from_str(&read(Path::new(&out).join("candidates.jsonl"))).expect("JSON");
    let expected = json!({
        "prompt": "p", "reference": "2", "responses": ["#### 2", "#### 1"], "rewards": [1.0, 0.0],
        "token_ids": [[2, 3], [1]], "tags": ["x", "y"], "votes": [6, 5]
    });
    assert_eq!(ranked, expected);
    assert!(rank(&file, &[]).expect_err("is there").contains("--overwrite_output_dir"));
    let mut uneven = row;
    uneven["token_ids"] = json!([[1]]);
    let uneven = folder.rows("uneven.jsonl", &[uneven]);
    let error = rank(&uneven, &["--overwrite_output_dir"]).expect_err("one list of ids for two responses");
    assert!(error.contains("`token_ids`") && error.contains("2 elements"), "{error}");
}

#[test]
fn bad_input_is_named() {
    let folder = Folder::new("errors");
    let (data, model) = tiny(&folder);
    let lists = folder.rows("lists.jsonl", &[json!({ "prompt": "1+1\n", "responses": ["#### 2", "#### 3"] })]);
    let train = |file: &str| {
        larpo(&["train", "--model_name_or_path", &model, "--dataset_name", file, "--output_dir", &folder.name("o")])
    };
    assert!(train(&lists).expect_err("no rewards").contains("larpo rank"));
    let equal = folder
        .rows("equal.jsonl", &[json!({ "prompt": "1+1\n", "responses": ["#### 2", "#### 3"], "rewards": [1, 1] })]);
    assert!(train(&equal).expect_err("equal rewards").contains("no list contributes"));
    let short = larpo(&["eval", "--model_name_or_path", &model, "--dataset_name", &data, "--max_new_tokens", "500"]);
    assert!(short.expect_err("too long for the model").contains("48 positions"));
    let unknown = folder.rows("other.jsonl", &[json!({ "prompt": "Ω", "completion": "1" })]);
    let sample =
        larpo(&["sample", "--model_name_or_path", &model, "--dataset_name", &unknown, "--max_new_tokens", "4"]);
    assert!(sample.expect_err("no token for Ω").contains('Ω'));
}
