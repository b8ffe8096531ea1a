//! Rows with conversations through the verbs. The same texts with the chat template applied by hand give the same numbers.

mod common;
use common::{Folder, language_golden, run_here as larpo, with_words};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Turns begin with w10 (the user) or w11 (anyone else) and end with w12.
const TEMPLATE: &str = "{% for m in messages %}{{ 'w10 ' if m['role'] == 'user' else 'w11 ' }}{{ m['content'] }} w12 {% endfor %}\
                        {% if add_generation_prompt %}w11 {% endif %}";

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

fn weights(folder: &str) -> Vec<u8> {
    fs::read(Path::new(folder).join("model.safetensors")).expect("weights")
}

fn rows_of(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("reads");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The kinds of rows: as turns, and as the texts that the template makes of them.
fn kinds() -> Vec<(&'static str, Value, Value)> {
    let (asked, again) = ("w10 w20 w21 w12 w11 ", "w10 w20 w12 w11 w30 w12 w10 w22 w12 w11 ");
    let several = json!([user("w20"), assistant("w30"), user("w22")]);
    vec![
        (
            "prompt_completion",
            json!({"prompt": [user("w20 w21")], "completion": [assistant("w31 w32")]}),
            json!({"prompt": asked, "completion": "w31 w32 w12 "}),
        ),
        (
            "a completion as a text",
            json!({"prompt": several, "completion": "w33"}),
            json!({"prompt": again, "completion": "w33 w12 "}),
        ),
        (
            "messages",
            json!({"messages": [user("w20"), assistant("w30"), user("w22"), assistant("w33")]}),
            json!({"prompt": again, "completion": "w33 w12 "}),
        ),
        (
            "preference",
            json!({"prompt": several, "chosen": [assistant("w33")], "rejected": [assistant("w34 w35")]}),
            json!({"prompt": again, "chosen": "w33 w12 ", "rejected": "w34 w35 w12 "}),
        ),
        (
            "preference without a prompt",
            json!({"chosen": [user("w20 w21"), assistant("w33")], "rejected": [user("w20 w21"), assistant("w34")]}),
            json!({"prompt": asked, "chosen": "w33 w12 ", "rejected": "w34 w12 "}),
        ),
        (
            "tool",
            json!({"messages": [user("w20 w21"), assistant("w40"), {"role": "tool", "content": "w41"}, assistant("w42")]}),
            json!({"prompt": asked, "completion": "w40 w12 w11 w41 w12 w11 w42 w12 "}),
        ),
    ]
}

#[test]
fn turns_are_the_text_that_the_template_makes_of_them() {
    let folder = Folder::new("turns");
    let model = language_golden(&folder, Some(TEMPLATE));
    for (kind, turns, texts) in kinds() {
        let score = |name: &str, row: &Value| {
            let data = folder.rows(name, std::slice::from_ref(row));
            larpo(&["score", "--model_name_or_path", &model, "--dataset_name", &data]).expect(kind)["scores"][0].clone()
        };
        let (of_turns, of_texts) = (score("turns.jsonl", &turns), score("texts.jsonl", &texts));
        assert_eq!(of_turns, of_texts, "{kind}");
        assert!(of_turns["sum_logps"][0].as_f64().expect("a number") < 0.0);
    }
}

#[test]
fn training_on_turns_is_training_on_their_texts() {
    let folder = Folder::new("turns-train");
    let model = language_golden(&folder, Some(TEMPLATE));
    let run = |verb: &str, name: &str, rows: &[Value]| {
        let (data, out) = (folder.rows(&format!("{name}.jsonl"), rows), folder.name(name));
        let words = [verb, "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", &out];
        larpo(&[&words[..], &["--max_steps", "2", "--learning_rate", "1e-3", "--max_length", "40"]].concat())
            .expect(name);
        weights(&out)
    };
    let kinds = kinds();
    let of = |range: std::ops::Range<usize>| {
        let (turns, texts) = kinds[range].iter().map(|(_, turns, texts)| (turns.clone(), texts.clone())).unzip();
        let pair: (Vec<Value>, Vec<Value>) = (turns, texts);
        pair
    };
    let (turns, texts) = of(0..2);
    assert!(run("sft", "sft-turns", &turns) == run("sft", "sft-texts", &texts));
    let (turns, texts) = of(3..5);
    assert!(run("train", "pairs-turns", &turns) == run("train", "pairs-texts", &texts));
    // A list's responses are what the assistant says; the texts have what the template puts around it.
    let list = json!({"prompt": [user("w20 w21")], "responses": ["w33", [assistant("w34 w35")]], "rewards": [1, 0]});
    let pair = json!({"prompt": [user("w20 w21")], "chosen": "w33", "rejected": "w34 w35"});
    assert!(run("train", "list", &[list]) == run("train", "pair", &[pair]));
}

#[test]
fn the_loop_answers_conversations() {
    let folder = Folder::new("turns-align");
    let model = language_golden(&folder, Some(TEMPLATE));
    let judge = folder.name("judge");
    with_words("llama_rm", Path::new(&judge), Some("{% for m in messages %}{{ m['content'] }} {% endfor %}"), None);
    let prompts = |i: usize| json!({"prompt": [user(&format!("w{}", i + 50)), assistant("w3"), user("w4")]});
    let data = folder.rows("prompts.jsonl", &(0..4).map(prompts).collect::<Vec<_>>());
    let run = folder.name("run");
    let align = ["align", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", &run];
    let align =
        [&align[..], &["--reward_model", &judge, "--k", "4", "--max_new_tokens", "5", "--iterations", "1"]].concat();
    larpo(&align).expect("align");
    let candidates = folder.path("run/iteration-1/candidates.jsonl");
    for row in rows_of(&candidates) {
        let index = row["prompt_index"].as_u64().expect("a number") as usize;
        assert_eq!(row["messages"], prompts(index)["prompt"]);
        let text = format!("w10 w{} w12 w11 w3 w12 w10 w4 w12 w11 ", index + 50);
        assert_eq!(
            (row["prompt"].as_str(), row["prompt_token_ids"].as_array().map(Vec::len)),
            (Some(&text[..]), Some(10))
        );
        // The reward model reads the turns through its own template.
        let plain = format!("w{} w3 w4 ", index + 50);
        let texts = folder.rows("texts.jsonl", &[json!({"prompt": plain, "responses": row["responses"]})]);
        let out = folder.name("ranked");
        larpo(&["rank", &texts, "--reward_model", &judge, "--output_dir", &out, "--overwrite_output_dir"])
            .expect("rank");
        let ranked = &rows_of(&folder.path("ranked/candidates.jsonl"))[0]["rewards"];
        let numbers = |value: &Value| {
            value.as_array().expect("rewards").iter().map(|r| r.as_f64().expect("r")).collect::<Vec<_>>()
        };
        for (a, b) in numbers(ranked).iter().zip(numbers(&row["rewards"])) {
            assert!((a - b).abs() < 1e-4, "{a} against {b}");
        }
    }
    // An answer written by hand gets the end that the template gives it.
    let mut rows = rows_of(&candidates);
    rows[0]["responses"][0] = json!("w70 w71");
    let reasons = rows[0]["finish_reason"].as_array_mut().expect("reasons");
    reasons[0] = json!("stop");
    fs::write(&candidates, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).expect("writes");
    larpo(&["align", "--iterations", "+1", "--output_dir", &run]).expect("goes on");
    let rows = rows_of(&candidates);
    let edited = rows.iter().flat_map(|row| {
        let responses = row["responses"].as_array().expect("responses").iter().position(|text| text == "w70 w71");
        responses.map(|at| row["token_ids"][at].clone())
    });
    assert_eq!(edited.collect::<Vec<_>>(), [json!([70, 71, 12])]);
    // Ranked again, a file of candidates keeps its rewards.
    let out = folder.name("again");
    larpo(&["rank", &candidates.display().to_string(), "--reward_model", &judge, "--output_dir", &out]).expect("rank");
    for (a, b) in rows_of(&folder.path("again/candidates.jsonl")).iter().zip(&rows) {
        assert_eq!(a["rewards"], b["rewards"]);
    }
    let eval =
        larpo(&["eval", &run, &model, "--dataset_name", &data, "--reward_model", &judge, "--max_new_tokens", "4"]);
    assert!(eval.expect("eval").to_string().contains("greedy"));
}

#[test]
fn reward_models_learn_from_turns() {
    let folder = Folder::new("turns-reward");
    let judge = folder.name("judge");
    with_words("llama_rm", Path::new(&judge), Some(TEMPLATE), None);
    let pair = |i: usize| json!({"prompt": [user(&format!("w{}", i + 20))], "chosen": "w90", "rejected": "w91 w92"});
    let data = folder.rows("pairs.jsonl", &(0..8).map(pair).collect::<Vec<_>>());
    let out = folder.name("out");
    let words = ["reward", "--model_name_or_path", &judge, "--dataset_name", &data, "--output_dir", &out];
    larpo(&[&words[..], &["--max_steps", "30", "--learning_rate", "1e-2"]].concat()).expect("reward");
    // What it learned of turns it knows of texts, which are the turns of the same template.
    let rows = folder.rows("rows.jsonl", &[json!({"prompt": "w23", "responses": ["w91 w92", "w90"]})]);
    let ranked = folder.name("ranked");
    larpo(&["rank", &rows, "--reward_model", &out, "--output_dir", &ranked]).expect("rank");
    assert_eq!(rows_of(&folder.path("ranked/candidates.jsonl"))[0]["responses"][0], "w90");
}

#[test]
fn conversations_that_cannot_be_rendered_are_refused_by_row() {
    let folder = Folder::new("turns-refused");
    let model = language_golden(&folder, Some(TEMPLATE));
    let score = |model: &str, row: Value, more: &[&str]| {
        let good = json!({"prompt": [user("w1")], "completion": [assistant("w2")]});
        let data = folder.rows("rows.jsonl", &[good, row]);
        larpo(&[&["score", "--model_name_or_path", model, "--dataset_name", &data][..], more].concat())
    };
    let refused = |row: Value, parts: &[&str]| {
        let message = score(&model, row.clone(), &[]).expect_err("refused");
        assert!(message.contains("rows.jsonl:2: "), "{message}");
        parts.iter().for_each(|part| assert!(message.contains(part), "{message} lacks {part}"));
        score(&model, row, &["--on_bad_row", "skip"]).expect("the other row");
    };
    refused(json!({"prompt": [assistant("w1")], "completion": "w2"}), &["`prompt`", "asks for an answer"]);
    refused(json!({"prompt": [{"content": "w1"}], "completion": "w2"}), &["`prompt[0].role`"]);
    refused(json!({"prompt": [user("w1")], "completion": [{"role": 3}]}), &["`completion[0].role`"]);
    refused(json!({"prompt": [user("w1")], "completion": 3}), &["`completion`"]);
    refused(json!({"prompt": "w1", "completion": [assistant("w2")]}), &["`completion`", "both as turns"]);
    refused(json!({"prompt": [user("w1")], "completion": "w2", "tools": "x"}), &["`tools`"]);
    // No template, and one that writes earlier turns in another way when later ones follow.
    let bare = folder.name("bare");
    with_words("qwen3", Path::new(&bare), None, None);
    let row = json!({"prompt": [user("w1")], "completion": "w2"});
    assert!(score(&bare, row.clone(), &[]).expect_err("no template").contains("no chat template"));
    let fickle = folder.name("fickle");
    let template = "{{ messages | length }} {% for m in messages %}{{ m['content'] }} {% endfor %}";
    with_words("qwen3", Path::new(&fickle), Some(template), None);
    assert!(score(&fickle, row, &[]).expect_err("another text").contains("in another way"));
    let without = folder.rows("chosen.jsonl", &[json!({"chosen": [assistant("w1")], "rejected": [assistant("w2")]})]);
    let message = larpo(&["score", "--model_name_or_path", &model, "--dataset_name", &without]).expect_err("no prompt");
    assert!(message.contains("begin with the same turns"), "{message}");
}

#[test]
fn inspect_shows_conversations_with_and_without_a_template() {
    let folder = Folder::new("turns-inspect");
    let model = language_golden(&folder, Some(TEMPLATE));
    let data = folder.rows("rows.jsonl", &[kinds()[2].1.clone()]);
    let plain = larpo(&["inspect", &data]).expect("inspect");
    assert_eq!(plain["schema"], "messages");
    let with = larpo(&["inspect", &data, "--tokenizer", &model]).expect("inspect");
    assert_eq!(with["data"], plain["data"]);
}
