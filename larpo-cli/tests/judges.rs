//! Models of the goldens through the verbs: reward models rank and are trained, responses are scored and drawn. Scores,
//! log-probabilities and greedy responses equal those of independent software.

mod common;
use common::{Folder, language_golden, larpo as process, numbers, run_here as larpo, with_words};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

/// The reward model of the goldens, as [`with_words`].
fn make(folder: &Path, template: Option<&str>, bos: Option<u32>) {
    with_words("llama_rm", folder, template, bos);
}

fn words(ids: &[Value]) -> String {
    ids.iter().map(|id| format!("w{id} ")).collect()
}

/// Rewards of lists of responses.
fn rank(folder: &Folder, model: &str, rows: &[Value]) -> Vec<Vec<f64>> {
    let (data, out) = (folder.rows("rows.jsonl", rows), folder.name("ranked"));
    larpo(&["rank", &data, "--reward_model", model, "--output_dir", &out, "--overwrite_output_dir"]).expect("rank");
    let text = fs::read_to_string(folder.path("ranked/candidates.jsonl")).expect("reads");
    let row = |line: &str| serde_json::from_str::<Value>(line).expect("JSON");
    let rewards =
        |row: Value| row["rewards"].as_array().expect("rewards").iter().map(|r| r.as_f64().unwrap()).collect();
    text.lines().map(|line| rewards(row(line))).collect()
}

#[test]
fn golden_models_rank_as_sequence_classifiers_do() {
    let folder = Folder::new("reward-golden");
    let golden = numbers("llama_rm");
    let join = "{% for m in messages %}{{ m['content'] }} {% endfor %}";
    for (name, template) in [("plain", None), ("template", Some(join))] {
        let model = folder.name(name);
        make(Path::new(&model), template, None);
        let cases = golden["sequences"].as_array().expect("cases").iter().chain([&golden["last_token_is_pad_id"]]);
        for case in cases {
            let ids = case["ids"].as_array().expect("ids");
            let (prompt, response) = ids.split_at(1);
            let row = json!({"prompt": words(prompt), "responses": [words(response)]});
            let got = rank(&folder, &model, &[row])[0][0];
            let want = case["score_f64"].as_f64().expect("a score");
            assert!((got - want).abs() <= 1e-4, "{name}: {got} against {want}");
        }
        // The responses of a prompt together are what they are one by one.
        let all = ["w5 w6 w7", "w5 w9", "w5", "w200 w201 w202 w203"];
        let together = rank(&folder, &model, &[json!({"prompt": "w3 w4 ", "responses": all})]).remove(0);
        let mut alone: Vec<f64> = all
            .iter()
            .map(|response| rank(&folder, &model, &[json!({"prompt": "w3 w4 ", "responses": [response]})])[0][0])
            .collect();
        alone.sort_by(|a, b| b.total_cmp(a));
        together.iter().zip(&alone).for_each(|(a, b)| assert!((a - b).abs() <= 1e-4, "{a} against {b}"));
    }
}

#[test]
fn a_model_sees_one_token_that_begins_the_text() {
    let folder = Folder::new("reward-bos");
    let rows = [json!({"prompt": "w3 w4 ", "responses": ["w5 w6"]})];
    let turns = "{% for m in messages %}{{ m['content'] }} {% endfor %}";
    let both = format!("{{{{ bos_token }}}} {turns}");
    let mut scores = Vec::new();
    for (name, template, bos) in
        [("tokenizer", Some(turns), Some(1)), ("both", Some(&both[..]), Some(1)), ("none", Some(turns), None)]
    {
        let model = folder.name(name);
        make(Path::new(&model), template, bos);
        scores.push(rank(&folder, &model, &rows)[0][0]);
    }
    assert_eq!(scores[0], scores[1]);
    assert!((scores[0] - scores[2]).abs() > 1e-3, "the token changes the score");
}

#[test]
fn the_loop_trains_on_a_models_rewards() {
    let folder = Folder::new("reward-loop");
    let judge = folder.name("judge");
    make(Path::new(&judge), None, None);
    let pair = |i: usize| json!({"prompt": format!("w{} ", i + 3), "completion": format!("w{} w{}", i + 9, i + 20)});
    let data = folder.rows("pairs.jsonl", &(0..24).map(pair).collect::<Vec<_>>());
    let [model, run] = ["model", "run"].map(|name| folder.name(name));
    let shape = ["--hidden_size", "32", "--num_hidden_layers", "1", "--num_attention_heads", "2"];
    let sizes = ["--intermediate_size", "48", "--max_position_embeddings", "48", "--tokenizer", "char"];
    let sft = ["sft", "--dataset_name", &data, "--output_dir", &model, "--max_steps", "4"];
    larpo(&[&sft[..], &shape, &sizes].concat()).expect("sft");
    let same = ["--model_name_or_path", &model, "--dataset_name", &data, "--reward_model", &judge];
    let sampling = ["--k", "4", "--max_new_tokens", "6", "--max_length", "24"];
    let align = [&["align"][..], &same, &sampling, &["--iterations", "1", "--save_steps", "1"]].concat();
    larpo(&[&["plan"][..], &align, &["--output_dir", &run]].concat()).expect("a plan");
    larpo(&[&align[..], &["--output_dir", &run]].concat()).expect("align");
    // The rewards are the model's: ranked once more they stay what they are.
    let candidates = folder.path("run/iteration-1/candidates.jsonl");
    let rows: Vec<Value> = fs::read_to_string(&candidates)
        .expect("reads")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    for (row, again) in rows.iter().zip(rank(&folder, &judge, &rows)) {
        let rewards: Vec<f64> =
            row["rewards"].as_array().expect("rewards").iter().map(|r| r.as_f64().unwrap()).collect();
        assert_eq!(rewards, again);
    }
    assert!(rows.iter().any(|row| row["rewards"][0] != row["rewards"][3]), "some list has an order");
    let record: Value = serde_json::from_str(&fs::read_to_string(folder.path("run/run.json")).unwrap()).unwrap();
    assert!(record["inputs"]["reward_model"]["files"]["model.safetensors"].is_string(), "{record}");
    assert!(record["flags"]["reward_funcs"].is_null(), "rules that did not rank");
    let eval = ["eval", &run, "--dataset_name", &data, "--reward_model", &judge, "--max_samples", "4"];
    // Whether a reward makes a response a correct one is not known, unless it is said.
    for (threshold, metrics) in [(&[][..], false), (&["--correct_threshold", "-100"][..], true)] {
        let words = [&eval[..], &sampling, &["--recall_at", "1,4", "--ref_model", &model], threshold].concat();
        let result = larpo(&words).expect("eval");
        let names: Vec<&str> =
            result["metrics"].as_array().expect("metrics").iter().filter_map(|m| m["metric"].as_str()).collect();
        assert!(["greedy_reward", "reward", "ndcg", "kendall_tau"].iter().all(|m| names.contains(m)), "{names:?}");
        assert!(["greedy", "recall", "mrr"].iter().all(|m| names.contains(m) == metrics), "{names:?}");
        assert_eq!(result["missing"].to_string().contains("--correct_threshold R"), !metrics, "{result}");
    }
    larpo(&["report", &run]).expect("a page");
    let page = fs::read_to_string(folder.path("run/report.html")).expect("reads");
    assert!(page.contains("rewards of the model"));
    // The run goes on with the same model only.
    fs::write(Path::new(&judge).join("tokenizer_config.json"), "{}").expect("writes");
    let message = larpo(&["align", "--iterations", "+1", "--output_dir", &run]).expect_err("another reward model");
    assert!(message.contains("reward_model"), "{message}");
}

#[test]
fn what_is_no_reward_model_is_refused() {
    let folder = Folder::new("reward-refused");
    let judge = folder.name("judge");
    make(Path::new(&judge), None, None);
    let rows = folder.rows("rows.jsonl", &[json!({"prompt": "w1 ", "responses": ["w2 ".repeat(70)]})]);
    let message = larpo(&["rank", &rows, "--reward_model", &judge]).expect_err("too long");
    assert!(message.contains("rows.jsonl:1") && message.contains("71 tokens") && message.contains("64"), "{message}");
    let both = ["rank", &rows, "--reward_model", &judge, "--reward_funcs", "length"];
    assert!(larpo(&both).expect_err("one or the other").contains("--reward_funcs"));
    let path = Path::new(&judge).join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["architectures"] = json!(["LlamaForCausalLM"]);
    fs::write(&path, config.to_string()).expect("writes");
    let message = larpo(&["rank", &rows, "--reward_model", &judge]).expect_err("a language model");
    assert!(message.contains("sequence classifier"), "{message}");
}

/// A language model of a family, made by `sft` from its configuration.
fn language_model(folder: &Folder, name: &str, data: &str, fields: Value) -> Result<String, String> {
    let mut config = json!({
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 48, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    });
    config.as_object_mut().expect("fields").extend(fields.as_object().expect("fields").clone());
    let (path, out) = (folder.file(&format!("{name}.json"), config.to_string()), folder.name(name));
    let words = ["sft", "--config_name", &path, "--tokenizer", "char", "--dataset_name", data, "--output_dir", &out];
    larpo(&[&words[..], &["--max_steps", "1"]].concat()).map(|_| out)
}

/// Pairs of which the better response has the higher letters.
fn pairs(n: usize) -> Vec<Value> {
    let letters: Vec<char> = ('a'..='j').collect();
    let word = |i: usize, high: bool| -> String {
        (0..4).map(|t| letters[(i * 7 + t * 3) % 5 + if high { 5 } else { 0 }]).collect()
    };
    (0..n)
        .map(|i| json!({"prompt": format!("{}:", i % 10), "chosen": word(i, true), "rejected": word(i + 1, false)}))
        .collect()
}

#[test]
fn reward_models_of_every_family_learn_what_pairs_say() {
    let folder = Folder::new("reward-train");
    let data = folder.rows("pairs.jsonl", &pairs(120));
    for (family, architecture, more) in [
        ("llama", "Llama", json!({})),
        ("mistral", "Mistral", json!({"sliding_window": 6})),
        (
            "gemma2",
            "Gemma2",
            json!({"sliding_window": 6, "query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 4.0, "hidden_activation": "gelu_pytorch_tanh"}),
        ),
        ("qwen2", "Qwen2", json!({})),
    ] {
        let mut fields = json!({"architectures": [format!("{architecture}ForCausalLM")], "model_type": family});
        fields.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
        let model = language_model(&folder, family, &data, fields).expect(family);
        let out = folder.name(&format!("{family}-reward"));
        let words = ["reward", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", &out];
        let settings = ["--validation_fraction", "0.25", "--learning_rate", "3e-3", "--max_steps", "40"];
        let more = ["--center_rewards_coefficient", "0.01", "--save_steps", "20"];
        let result = larpo(&[&words[..], &settings, &more].concat()).expect(family);
        let accuracy = result["held_out"]["accuracy"].as_f64().expect("an accuracy");
        assert!(accuracy > 0.9, "{family}: {result}");
        assert_eq!(result["held_out"]["lists"], 30);
        // What transformers loads: the name of the class, one label, a score head without bias.
        let config: Value =
            serde_json::from_str(&fs::read_to_string(Path::new(&out).join("config.json")).unwrap()).unwrap();
        assert_eq!(config["architectures"], json!([format!("{architecture}ForSequenceClassification")]));
        assert_eq!(config["id2label"], json!({"0": "LABEL_0"}));
        let tensors = larpo_data::model_folder::ModelFolder::open(&out).expect("a model folder");
        assert_eq!(tensors.shape("score.weight"), Some(&[1, 32][..]));
        assert!(tensors.shape("lm_head.weight").is_none());
        let score = rank(&folder, &out, &[json!({"prompt": "3:", "responses": ["abca", "jihj"]})]).remove(0);
        assert!(score[0] > score[1], "{family}");
        // Interrupted after 20 of 40 updates it ends with the same bits.
        let again = folder.name(&format!("{family}-again"));
        let words = ["reward", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", &again];
        larpo(&[&words[..], &settings, &more].concat()).expect(family);
        let again = Path::new(&again);
        fs::remove_dir_all(again.join("checkpoint-40")).expect("removes");
        fs::remove_file(again.join("model.safetensors")).expect("removes");
        larpo(&[&words[..], &settings, &more, &["--resume_from_checkpoint", "latest"]].concat()).expect(family);
        let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).expect("weights");
        assert!(weights(again) == weights(Path::new(&out)), "{family}: the weights differ");
        // It is trained on from where it is.
        let more = folder.name(&format!("{family}-more"));
        let words = ["reward", "--model_name_or_path", &out, "--dataset_name", &data, "--output_dir", &more];
        larpo(&[&words[..], &["--max_steps", "2"]].concat()).expect("goes on from a reward model");
        larpo(&[&["plan"][..], &words, &["--overwrite_output_dir"]].concat()).expect("a plan");
    }
}

/// A margin of every row is the margin of the flag.
#[test]
fn rows_may_have_a_margin_of_their_own() {
    let folder = Folder::new("reward-margin");
    let rows = pairs(24);
    let data = folder.rows("pairs.jsonl", &rows);
    let with = |margin: f64| {
        let row = |row: &Value| {
            let mut row = row.clone();
            row["margin"] = json!(margin);
            row
        };
        rows.iter().map(row).collect::<Vec<_>>()
    };
    let fields = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama"});
    let model = language_model(&folder, "llama", &data, fields).expect("a model");
    let train = |name: &str, data: &str, more: &[&str]| {
        let out = folder.name(name);
        let words = ["reward", "--model_name_or_path", &model, "--dataset_name", data, "--output_dir", &out];
        larpo(&[&words[..], &["--max_steps", "3"], more].concat()).expect("reward");
        fs::read(Path::new(&out).join("model.safetensors")).expect("weights")
    };
    let own = folder.rows("own.jsonl", &with(0.75));
    let flag = train("flag", &data, &["--margin", "0.75"]);
    assert!(train("own", &own, &["--margin", "0.1"]) == flag);
    assert!(train("none", &data, &[]) != flag);
}

#[test]
fn what_cannot_train_a_reward_model_is_refused() {
    let folder = Folder::new("reward-train-refused");
    let data = folder.rows("pairs.jsonl", &pairs(12));
    let fields = json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"});
    let model = language_model(&folder, "qwen3", &data, fields).expect("a model");
    let train = |model: &str, data: &str, more: &[&str]| {
        let out = folder.name("out");
        let words = ["reward", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", &out];
        larpo(&[&words[..], more].concat()).expect_err("refused")
    };
    assert!(train(&model, &data, &[]).contains("\"qwen3\""));
    let fields = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama"});
    let model = language_model(&folder, "llama", &data, fields).expect("a model");
    let equal = folder.rows("equal.jsonl", &[json!({"prompt": "1:", "responses": ["a", "b"], "rewards": [1, 1]})]);
    assert!(train(&model, &equal, &[]).contains("equal rewards"));
    assert!(train(&model, &data, &["--max_length", "3"]).contains("longer than 3 tokens"));
    assert!(train(&model, &data, &["--truncation_mode", "keep_end"]).contains("whole conversations"));
    let foreign = folder.rows("foreign.jsonl", &[json!({"prompt": "1:", "chosen": "a", "rejected": "ß"})]);
    let message = train(&model, &foreign, &[]);
    assert!(message.contains("foreign.jsonl:1"), "{message}");
}

#[test]
fn golden_models_score_responses() {
    let folder = Folder::new("score-golden");
    let model = language_golden(&folder, None);
    let golden = numbers("qwen3");
    let cases = golden["responses"].as_array().expect("cases");
    let ids = |value: &Value| words(value.as_array().expect("ids"));
    let row = |case: &Value| json!({"prompt": ids(&case["prompt"]), "completion": ids(&case["response"])});
    let data = folder.rows("rows.jsonl", &cases.iter().map(row).collect::<Vec<_>>());
    let judge = folder.name("judge");
    make(Path::new(&judge), None, None);
    let out = folder.name("scores");
    let words = ["score", "--model_name_or_path", &model, "--reward_model", &judge, "--dataset_name", &data];
    let result = larpo(&[&words[..], &["--output_dir", &out]].concat()).expect("score");
    let written = fs::read_to_string(folder.path("scores/scores.jsonl")).expect("reads");
    let rows: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(result["scores"], json!(rows));
    assert_eq!(rows.len(), cases.len());
    for (row, case) in rows.iter().zip(cases) {
        let (got, want) = (row["sum_logps"][0].as_f64().unwrap(), case["sum_logp_f64"].as_f64().unwrap());
        assert!((got - want).abs() <= 1e-4 + 1e-5 * want.abs(), "{got} against {want}");
        assert_eq!(row["num_tokens"][0], case["count"]);
        assert!(row["rewards"][0].is_number());
    }
    // Pairs are two responses to one prompt; a list needs no rewards to be scored.
    let pair = |a: &Value, b: &Value| json!({"prompt": ids(&a["prompt"]), "chosen": ids(&a["response"]), "rejected": ids(&b["response"])});
    let pairs = folder.rows("pairs.jsonl", &[pair(&cases[0], &cases[1])]);
    let list = json!({"prompt": ids(&cases[0]["prompt"]), "responses": [ids(&cases[0]["response"]), ids(&cases[1]["response"])]});
    let lists = folder.rows("lists.jsonl", &[list]);
    let of = |data: &str| {
        larpo(&["score", "--model_name_or_path", &model, "--dataset_name", data]).expect("score")["scores"].clone()
    };
    assert_eq!(of(&pairs)[0]["sum_logps"], of(&lists)[0]["sum_logps"]);
    assert!(of(&pairs)[0].get("rewards").is_none());
    let first = of(&pairs)[0]["sum_logps"][0].as_f64().unwrap();
    assert!((first - cases[0]["sum_logp_f64"].as_f64().unwrap()).abs() <= 1e-3, "{first}");
    assert!(
        larpo(&["score", "--dataset_name", &data]).expect_err("nothing to score with").contains("--model_name_or_path")
    );
}

#[test]
fn golden_models_generate_and_converse() {
    let folder = Folder::new("generate-golden");
    let join = "{% for m in messages %}{{ m['content'] }} {% endfor %}";
    let model = language_golden(&folder, Some(join));
    let greedy = &numbers("qwen3")["greedy"];
    let ids = |name: &str| words(greedy[name].as_array().expect("ids")).trim_end().to_string();
    let (prompt, want) = (ids("prompt"), ids("new_tokens"));
    let generate = ["generate", "--model_name_or_path", &model, "--prompt", &prompt, "--max_new_tokens", "24"];
    let row = larpo(&generate).expect("generate")["responses"][0].clone();
    assert_eq!((row["response"].as_str(), &row["num_tokens"]), (Some(&want[..]), &json!(24)));
    // A template that only joins the turns changes nothing.
    let row = larpo(&[&generate[..], &["--apply_chat_template"]].concat()).expect("generate")["responses"][0].clone();
    assert_eq!(row["response"], want);
    // A conversation by the most probable tokens says the same, and its second answer continues the first.
    let chat = ["chat", "--model_name_or_path", &model, "--greedy", "--max_new_tokens", "24"];
    let mut child =
        process(&chat).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
    let mut input = child.stdin.take().expect("an input");
    writeln!(input, "{prompt}\n\nw9\n/clear\n{prompt}").expect("writes");
    drop(input);
    let output = child.wait_with_output().expect("ends");
    let text = String::from_utf8(output.stdout).expect("text");
    let answers: Vec<&str> = text.lines().map(str::trim).collect();
    assert!(output.status.success() && answers.len() == 3, "{text}");
    assert_eq!((answers[0], answers[2]), (&want[..], &want[..]));
    let second = format!("{prompt} {want} w9");
    let generate = ["generate", "--model_name_or_path", &model, "--prompt", &second, "--max_new_tokens", "24"];
    let row = larpo(&generate).expect("generate")["responses"][0].clone();
    assert_eq!(row["response"], answers[1]);
}

/// Preferences by the log-probabilities that `score` gives the labels, in both orders.
fn win_rates(folder: &Folder, model: &str, prompt: &str, responses: &[&str], labels: [&str; 2]) -> Vec<f64> {
    let n = responses.len();
    let orders: Vec<(usize, usize)> =
        (0..n).flat_map(|i| (0..n).map(move |j| (i, j))).filter(|(i, j)| i != j).collect();
    let question = |&(i, j): &(usize, usize)| json!({"prompt": format!("w9 {prompt} w1 {} w2 {} w3", responses[i], responses[j]), "responses": labels});
    let data = folder.rows("questions.jsonl", &orders.iter().map(question).collect::<Vec<_>>());
    let scores = larpo(&["score", "--model_name_or_path", model, "--dataset_name", &data]).expect("score");
    let first = |at: usize| {
        let logp = |label: usize| scores["scores"][at]["sum_logps"][label].as_f64().expect("a number");
        logp(0).exp() / (logp(0).exp() + logp(1).exp())
    };
    let asked = |i, j| first(orders.iter().position(|&order| order == (i, j)).expect("asked"));
    let beats = |i, j| (asked(i, j) + 1.0 - asked(j, i)) / 2.0;
    (0..n).map(|i| (0..n).filter(|&j| j != i).map(|j| beats(i, j)).sum::<f64>() / (n - 1) as f64).collect()
}

#[test]
fn a_pairwise_ranker_asks_in_both_orders() {
    let folder = Folder::new("pairwise");
    let model = language_golden(&folder, None);
    let template = folder.file("template.txt", "w9 {prompt} w1 {a} w2 {b} w3\n");
    let responses = ["w5 w6 w7", "w8", "w5 w6 w11 w12 w13"];
    let want = win_rates(&folder, &model, "w30 w31", &responses, ["w40", "w41"]);
    assert!(want.iter().any(|p| (p - 0.5).abs() > 1e-3), "{want:?}");
    let data = folder.rows("rows.jsonl", &[json!({"prompt": "w30 w31", "responses": responses, "at": [0, 1, 2]})]);
    let out = folder.name("ranked");
    let ranker = ["--pairwise_ranker", &model, "--ranker_template", &template, "--ranker_labels", "w40,w41"];
    let rank = |more: &[&str]| {
        let words = ["rank", &data, "--list_keys", "at", "--output_dir", &out, "--overwrite_output_dir"];
        larpo(&[&words[..], &ranker, more].concat()).expect("rank");
        let text = fs::read_to_string(folder.path("ranked/candidates.jsonl")).expect("reads");
        let row: Value = serde_json::from_str(&text).expect("JSON");
        let at = |i: usize| {
            (row["at"][i].as_u64().expect("a place") as usize, row["rewards"][i].as_f64().expect("a reward"))
        };
        (0..3).map(at).collect::<Vec<_>>()
    };
    let ranked = rank(&[]);
    for &(at, reward) in &ranked {
        assert!((reward - want[at]).abs() <= 1e-5, "{reward} is not {}", want[at]);
    }
    assert!(ranked.is_sorted_by(|a, b| a.1 >= b.1));
    for by in ["lipo_label", "bt"] {
        let order = |ranked: &[(usize, f64)]| ranked.iter().map(|item| item.0).collect::<Vec<_>>();
        assert_eq!(order(&rank(&["--rank_by", by])), order(&ranked), "{by}");
    }
    assert!(rank(&["--rank_by", "wins"]).iter().all(|item| [0.0, 0.5, 1.0, 1.5, 2.0].contains(&item.1)));
    // A text that stands there twice is as good as itself.
    let twice =
        folder.rows("rows.jsonl", &[json!({"prompt": "w30 w31", "responses": ["w8", "w5", "w8"], "at": [0, 1, 2]})]);
    assert_eq!(twice, data);
    let ranked = rank(&[]);
    let of = |at: usize| ranked.iter().find(|item| item.0 == at).expect("ranked").1;
    assert_eq!(of(0), of(2));
    // Through a chat template the question is a turn.
    let chat = folder.name("chat");
    let turns = "w9 {% for m in messages %}{{ m['content'] }}{% endfor %} w3";
    with_words("qwen3", Path::new(&chat), Some(turns), None);
    let template = folder.file("bare.txt", "{prompt} w1 {a} w2 {b}");
    let words =
        ["rank", &data, "--pairwise_ranker", &chat, "--ranker_template", &template, "--ranker_labels", "w40,w41"];
    let result = larpo(&words).expect("rank");
    assert!((result["mean_reward"].as_f64().expect("a mean") - 0.5).abs() < 1e-12);
}

#[test]
fn the_loop_trains_on_a_pairwise_rankers_lists() {
    let folder = Folder::new("pairwise-loop");
    let (model, judge) = (language_golden(&folder, None), folder.name("judge"));
    with_words("llama_tied_bf16", Path::new(&judge), None, None);
    let template = folder.file("template.txt", "{prompt} w1 {a} w2 {b} w3");
    let prompts: Vec<Value> = (0..6).map(|i| json!({"prompt": format!("w{} w{}", i + 50, i + 60)})).collect();
    let data = folder.rows("prompts.jsonl", &prompts);
    let run = folder.name("run");
    let ranker = ["--pairwise_ranker", &judge, "--ranker_template", &template, "--ranker_labels", "w40,w41"];
    let sampling = ["--k", "4", "--max_new_tokens", "6", "--dataset_name", &data];
    let align = [&["align", "--model_name_or_path", &model, "--output_dir", &run][..], &ranker, &sampling].concat();
    let align = [&align[..], &["--iterations", "1", "--prompts_per_iteration", "3"]].concat();
    larpo(&[&["plan"][..], &align].concat()).expect("a plan");
    let refused = larpo(&[&align[..], &["--early_stopping_patience", "1", "--eval_dataset", &data]].concat());
    assert!(refused.expect_err("no rewards to watch").contains("--until_kl"));
    larpo(&align).expect("align");
    let eval =
        larpo(&[&["eval", &run, "--ref_model", &model][..], &ranker, &sampling, &["--recall_at", "1,4"]].concat());
    let eval = eval.expect("eval").to_string();
    assert!(eval.contains("ndcg") && !eval.contains("recall@"), "{eval}");
    larpo(&["report", &run]).expect("a page");
    assert!(
        fs::read_to_string(folder.path("run/report.html")).expect("reads").contains("ranked in pairs by the model")
    );
    larpo(&["align", "--iterations", "+1", "--output_dir", &run]).expect("goes on");
    fs::write(&template, "{prompt} w2 {a} w1 {b} w3").expect("writes");
    let message = larpo(&["align", "--iterations", "+1", "--output_dir", &run]).expect_err("another question");
    assert!(message.contains("ranker_template"), "{message}");
}

#[test]
fn what_is_no_pairwise_ranker_is_refused() {
    let folder = Folder::new("pairwise-refused");
    let model = language_golden(&folder, None);
    let template = folder.file("template.txt", "{prompt} {a} {b}");
    let data = folder.rows("rows.jsonl", &[json!({"prompt": "w1", "responses": ["w2", "w2 ".repeat(70)]})]);
    let rank = |template: &str, more: &[&str]| {
        let words = ["rank", &data, "--pairwise_ranker", &model, "--ranker_template", template];
        larpo(&[&words[..], more].concat()).expect_err("refused")
    };
    let labels = ["--ranker_labels", "w40,w41"];
    let message = rank(&template, &labels);
    assert!(message.contains("rows.jsonl:1") && message.contains("72 tokens"), "{message}");
    assert!(rank(&template, &["--ranker_labels", "w40 w41,w42"]).contains("2 tokens"));
    assert!(rank(&template, &["--ranker_labels", "w40,w40"]).contains("same token"));
    assert!(rank(&template, &["--ranker_labels", "w40"]).contains("expected two"));
    let bad = folder.file("bad.txt", "{prompt} {a}");
    let message = rank(&bad, &labels);
    assert!(message.contains("bad.txt") && message.contains("{b}"), "{message}");
    assert!(rank(&folder.name("absent.txt"), &labels).contains("absent.txt"));
    let message = larpo(&["rank", &data, "--pairwise_ranker", &model]).expect_err("no template");
    assert!(message.contains("--ranker_template"), "{message}");
    let judge = folder.name("judge");
    make(Path::new(&judge), None, None);
    let words = ["rank", &data, "--pairwise_ranker", &judge, "--ranker_template", &template];
    assert!(larpo(&words).expect_err("a classifier").contains("language model"));
}

#[test]
fn the_best_of_several_is_the_one_that_ranks_first() {
    let folder = Folder::new("best-of");
    let model = language_golden(&folder, None);
    let judge = folder.name("judge");
    make(Path::new(&judge), None, None);
    let data = folder.rows("prompts.jsonl", &[json!({"prompt": "w5 w6 "}), json!({"prompt": "w70 w8 w9 "})]);
    let same = ["--model_name_or_path", &model, "--dataset_name", &data, "--max_new_tokens", "9", "--seed", "3"];
    let best =
        larpo(&[&["generate", "--best_of", "5", "--reward_model", &judge][..], &same].concat()).expect("generate");
    let out = folder.name("samples");
    larpo(&[&["sample", "--k", "5", "--output_dir", &out][..], &same].concat()).expect("sample");
    let text = fs::read_to_string(folder.path("samples/candidates.jsonl")).expect("reads");
    for (line, best) in text.lines().zip(best["responses"].as_array().expect("rows")) {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let rewards = rank(&folder, &judge, &[row]);
        assert_eq!(best["reward"].as_f64(), Some(rewards[0][0]));
        let ranked = fs::read_to_string(folder.path("ranked/candidates.jsonl")).expect("reads");
        let ranked: Value = serde_json::from_str(&ranked).expect("JSON");
        assert_eq!(best["response"], ranked["responses"][0]);
    }
    let refused = larpo(&["generate", "--model_name_or_path", &model, "--prompt", "w1", "--apply_chat_template"]);
    assert!(refused.expect_err("no template").contains("has no chat template"));
}
