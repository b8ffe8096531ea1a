//! `larpo report`: what it shows of a run, that hostile text stays text, and that a damaged folder still makes a page.

mod common;
use common::{Folder, run_here as larpo};
use larpo_cli::args::{self, Command};
use larpo_cli::run_record::checksums;
use larpo_data::checksums::Checksum;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs;
use std::path::Path;

fn parse(words: &[String]) -> Command {
    args::parse(words.iter().map(OsString::from).collect::<Vec<_>>())
        .unwrap_or_else(|e| panic!("{words:?}: {e}"))
        .command()
        .expect("a verb")
        .clone()
}

fn report(run: &str) -> (Value, String) {
    let result = larpo(&["report", run]).expect("report");
    let page = fs::read_to_string(Path::new(run).join("report.html")).expect("a page");
    (result, page)
}

/// Every tag and attribute of the page is one that the report writes itself, and nothing is loaded from anywhere.
fn assert_tame(page: &str) {
    const TAGS: &str = " html head meta title style body main h1 h2 h3 p div b small pre span figure figcaption svg line \
        rect circle polyline polygon text details summary table thead tbody tr th td dl dt dd ul li br wbr ";
    const ATTRIBUTES: &str = " lang charset http-equiv content name class role aria-label width height viewBox xmlns \
        opacity fill stroke stroke-width points x y x1 y1 x2 y2 cx cy r dy text-anchor font-family font-size open ";
    let (_, rest) = page.split_once("-->").expect("the mark");
    let (head, body) = rest.split_once("<style>").expect("a style");
    let (style, body) = body.split_once("</style>").expect("its end");
    assert!(!style.contains("url(") && !style.contains("@import"));
    for part in [head, body] {
        for (at, _) in part.match_indices('<') {
            let inside = part[at + 1..].split_once('>').expect("a tag ends").0.trim_start_matches('/');
            let (tag, mut attributes) = inside.split_once(' ').unwrap_or((inside, ""));
            assert!(TAGS.contains(&format!(" {} ", tag.trim_end_matches('/'))), "tag {tag:?} in {inside:?}");
            while let Some((name, value)) = attributes.split_once('=') {
                assert!(ATTRIBUTES.contains(&format!(" {} ", name.trim())), "attribute {name:?} in {inside:?}");
                let value = value.strip_prefix('"').unwrap_or_else(|| panic!("unquoted in {inside:?}"));
                let (value, more) = value.split_once('"').expect("a closing quote");
                assert!(!value.contains("//") || value == "http://www.w3.org/2000/svg", "{value:?}");
                attributes = more;
            }
        }
    }
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'").replace("&amp;", "&")
}

#[test]
fn the_page_of_an_alignment_shows_its_curves_and_a_command_that_repeats_it() {
    let folder = Folder::new("align");
    let rows: String = (1..8)
        .flat_map(|a| (1..6).map(move |b| (a, b)))
        .map(|(a, b)| {
            format!("{}\n", json!({ "prompt": format!("{a}+{b}\n"), "completion": format!("#### {}", a + b) }))
        })
        .collect();
    folder.file("rows.jsonl", &rows);
    let (data, model, out) = (folder.name("rows.jsonl"), folder.name("model"), folder.name("it's a run"));
    let shape =
        ["--tokenizer", "char", "--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2"];
    let base = ["sft", "--dataset_name", &data, "--output_dir", &model, "--max_steps", "20", "--learning_rate", "1e-2"];
    larpo(&[&base[..], &shape, &["--max_position_embeddings", "48", "--validation_fraction", "0.2"]].concat())
        .expect("sft");

    let words = format!(
        "align --iterations 3 --prompts_per_iteration 10 --k 5 --max_new_tokens 8 --temperature 1,0.9 --top_k 20 --top_p 0.95 \
         --min_p 0.01 --memory previous --reference initial --loss_type lipo_lambda --labels reward --ties share --beta 0.2 \
         --sft_weight 0.01 --select top:1,bottom:2 --learning_rate 2e-4 --lr_scheduler_type cosine --warmup_ratio 0.2 \
         --weight_decay 0.01 --max_grad_norm 2 --adam_beta1 0.8 --adam_beta2 0.99 --adam_epsilon 1e-7 \
         --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --num_train_epochs 2 --max_length 40 \
         --max_prompt_length 20 --max_samples 12 --validation_fraction 0.1 --split train --seed 3 --threads 2 \
         --reward_funcs regex:pattern=[0-4],length:target=3 --reward_weights 1,-0.25 --model_name_or_path {model} \
         --dataset_name {data}"
    );
    let mut words: Vec<String> = words.split_whitespace().map(String::from).collect();
    words.extend([
        "--stop".into(),
        r"\n\n".into(),
        "--stop".into(),
        r"a\\b 'c'".into(),
        "--output_dir".into(),
        out.clone(),
    ]);
    larpo(&words.iter().map(String::as_str).collect::<Vec<_>>()).expect("align");
    let (result, page) = report(&out);
    assert_tame(&page);
    assert_eq!(result["iterations"], json!(3));
    for title in ["Reward", "Recall@N", "Ranking by the policy", "Loss", "rewards/margins"] {
        assert!(page.contains(&format!("aria-label=\"{title}\"")), "no chart {title}");
    }
    assert!(!page.contains("aria-label=\"KL from the start"), "samples of a cut distribution tell nothing of it");
    for part in ["Hardest prompts", "Samples, first and last", "Settings", "Distribution of rewards", "Recall@5"] {
        assert!(page.contains(part), "{part} is missing");
    }
    let missing = result["notes"].to_string();
    assert!(missing.contains("larpo eval") && missing.contains("iteration-3/model"), "{missing}");

    // Every setting stands once, with the program and the machine; what was chosen comes first.
    let section = page.split_once("<h2>Settings</h2>").expect("settings").1.split("<h2>").next().expect("a section");
    let cells = section.split("<tr><td>").skip(1).map(|row| row.split("</td>").next().expect("a cell"));
    let names: Vec<&str> = cells.collect();
    let distinct: std::collections::BTreeSet<&str> = names.iter().copied().collect();
    let (chosen, defaults) = section.split_once("Left at their defaults").expect("defaults");
    assert!(distinct.len() > 40 && chosen.contains("<td>beta</td><td>0.2</td><td>0.1</td>"), "{section}");
    assert!(
        defaults.contains("<td>eval_<wbr>prompts</td><td>64</td>") && !defaults.contains("<td>beta</td>"),
        "{defaults}"
    );
    for name in ["larpo", "instruction set", "platform", "features", "computed on"] {
        assert!(chosen.contains(&format!("<td>{name}</td>")), "{name}");
    }
    let twice = names.iter().filter(|name| **name != "threads").count() + 1 - distinct.len();
    assert_eq!(twice, 0, "{names:?}");

    // The command goes through a shell and comes out as the same settings.
    let (_, command) = page.split_once("<pre>").expect("a command");
    let command = command.split_once("</pre>").expect("its end").0.replace("<span>", "").replace("</span>", "");
    let script = format!("printf '%s\\n' {}", unescape(&command));
    if let Ok(output) = std::process::Command::new("sh").args(["-c", &script]).output() {
        let again: Vec<String> = String::from_utf8(output.stdout).expect("UTF-8").lines().map(String::from).collect();
        let words: Vec<String> = std::iter::once("larpo".to_string()).chain(words).collect();
        // But for the folder: the run that is shown is not replaced.
        let elsewhere =
            format!("{:?}", parse(&words)).replace(&format!("{out:?}"), &format!("{:?}", format!("{out}-again")));
        assert_eq!(format!("{:?}", parse(&again)), elsewhere);
    }

    // Equal folders make equal pages, over the old one.
    assert_eq!(report(&out).1, page);
    fs::write(Path::new(&out).join("report.html"), "mine").expect("writes");
    let error = larpo(&["report", &out]).expect_err("not a report");
    assert!(error.contains("report.html exists") && error.contains("--output"), "{error}");

    // With an evaluation in the folder come held-out curves and the same prompts before and after: the command that is
    // named for it, as it stands there.
    let notes = result["notes"].as_array().expect("notes").iter().filter_map(Value::as_str);
    let suggested = notes.filter_map(|note| note.split_once("larpo eval")).next().expect("a command").1;
    let output = std::process::Command::new("sh").args(["-c", &format!("printf '%s\\n' eval {suggested}")]).output();
    let words = String::from_utf8(output.expect("a shell").stdout).expect("UTF-8");
    let words: Vec<&str> = words.trim_end().split('\n').collect();
    for part in ["--split=validation", "--max_new_tokens=8", "--reward_weights=-0.25", "--max_length=40"] {
        assert!(words.contains(&part), "{part}: {words:?}");
    }
    let result = larpo(&words).expect("the evaluation runs as printed");
    assert_eq!(result["flags"]["reward_weights"], json!(["1", "-0.25"]), "settings stand in one place: {result}");
    assert!(result["settings"].is_null() && result["models"][0]["settings"].is_null());
    let validation = result["data"]["used"].as_u64();
    assert!(validation.is_some_and(|n| (3..=4).contains(&n)), "a tenth of the rows was held back: {}", result["data"]);
    let page_at = folder.name("page.html");
    let result = larpo(&["report", &out, "--output", &page_at]).expect("report");
    let page = fs::read_to_string(&page_at).expect("a page");
    assert_tame(&page);
    assert!(!page.contains("earlier state") && !page.contains("the run&#39;s own"));
    for part in ["Held-out accuracy, greedy", "Held-out Recall@N", "Held-out KL", "Before and after", "Differences on"]
    {
        assert!(page.contains(part), "{part} is missing");
    }
    assert!(!result["notes"].to_string().contains("larpo eval"), "{result}");

    // Fine-tuning leaves a log and its flags.
    let (result, page) = report(&model);
    assert!(page.contains("aria-label=\"Loss\"") && page.contains("validation"), "{page}");
    assert!(page.contains("<span>larpo</span> <span>sft</span>"), "{page}");
    assert!(!result["notes"].to_string().contains("the command that repeats the run"), "{result}");
}

const HOSTILE: &str = "</span></pre></style><script>alert(1)</script><img src=x onerror=alert(2)>\" onload=\"x' &lt;b&gt; \u{202e}\u{0}\u{1b}[2J]]>-->";

#[test]
fn hostile_text_stays_text_wherever_it_stands() {
    let folder = Folder::new("hostile'&amp");
    let row = |i: usize, reward: f64| {
        json!({
            "prompt_index": i, "prompt": format!("{HOSTILE} {i}"), "reference": HOSTILE,
            "responses": [HOSTILE, format!("{HOSTILE}{}", "<".repeat(900))], "rewards": [reward, 0.0],
        })
    };
    let mut settings = serde_json::Map::new();
    settings.insert(HOSTILE.into(), json!(HOSTILE));
    let manifest = json!({
        "larpo": HOSTILE,
        "config": {
            "iterations": HOSTILE,
            "source": { "model_name_or_path": HOSTILE, "dataset_name": HOSTILE, "reward_funcs": HOSTILE },
            "extra": settings,
        },
        "report": { "lists": { "lists": HOSTILE, "contributing": {} } },
    });
    for n in [1, 2] {
        let rows: String = (0..3).map(|i| format!("{}\n", row(i, n as f64))).collect();
        folder.file(&format!("iteration-{n}/candidates.jsonl"), &rows);
        folder.file(&format!("iteration-{n}/manifest.json"), manifest.to_string());
        let line = json!({ "step": 1, "loss": 0.5, "kl": HOSTILE, HOSTILE: 3 });
        folder.file(&format!("iteration-{n}/metrics.jsonl"), format!("{line}\n"));
    }
    let model = json!({
        "model": HOSTILE, "greedy": 0.5,
        "metrics": [{ "metric": HOSTILE, "at": 3, "temperature": 1.0, "mean": 0.5, "interval": [HOSTILE, 1] }],
        "samples": [{ "prompt_index": 0, "prompt": HOSTILE, "reference": HOSTILE, "response": HOSTILE, "reward": 1.0 }],
    });
    let compared = json!([{ "metric": HOSTILE, "model": HOSTILE, "against": HOSTILE, "difference": 1, "p": 0.5 }]);
    let flags = json!({
        "dataset_name": ["held <out>.jsonl"], "reward_funcs": ["length"], "num_generations": ["4"],
        "temperature": ["0.5", "1.0"], "max_new_tokens": ["9"],
    });
    let evaluated = json!({ "prompts": 7, "models": [model, model], "comparisons": compared, "flags": flags });
    folder.file("eval.json", evaluated.to_string());
    let page = report(&folder.0.display().to_string()).1;
    assert_tame(&page);
    let told = "on 7 prompts of “held &lt;out&gt;.jsonl”, with the reward “length”; 4 samples a prompt at temperature 0.5 and 1.0";
    assert!(page.contains(told), "{page}");
    assert!(!page.contains("<script") && !page.contains("<img") && page.contains("&lt;script&gt;"));
    let controls = page.chars().filter(|c| c.is_control() && *c != '\n').count();
    assert_eq!(controls, 0);
    // A recorded command wins over one made from settings.
    let flags = json!({ "dataset_name": [HOSTILE], "seed": ["3"], "reward_funcs": ["answer"] });
    folder.file("run.json", json!({ "verb": "align", "flags": flags }).to_string());
    let page = report(&folder.0.display().to_string()).1;
    assert_tame(&page);
    assert!(page.contains("<pre><span>larpo</span> <span>align</span>"), "{page}");
    assert!(page.contains("with the reward “length” (the run&#39;s own is “answer”); 4 samples"), "{page}");
}

/// A run that goes on, or an iteration that is made again, leaves an evaluation behind that measured other weights.
#[test]
fn an_evaluation_belongs_to_the_weights_that_it_measured() {
    let folder = Folder::new("evaluated");
    let run = folder.name("run");
    let model = |at: &str, weights: &str| {
        folder.file(&format!("{at}/config.json"), "{}");
        folder.file(&format!("{at}/model.safetensors"), weights);
    };
    let files = |at: &str| checksums(&folder.path(at)).expect("a model");
    let iteration = |n: usize, weights: &str| {
        let row = json!({ "prompt": "p", "responses": ["a", "b"], "rewards": [1, 0] });
        folder.rows(&format!("run/iteration-{n}/candidates.jsonl"), &[row]);
        folder.file(&format!("run/iteration-{n}/manifest.json"), "{}");
        model(&format!("run/iteration-{n}/model"), weights);
        model("run", weights);
    };
    let record = || {
        let inputs = json!({ "model_name_or_path": { "path": folder.name("start"), "files": files("start") } });
        let flags = json!({ "model_name_or_path": [folder.name("start")], "dataset_name": ["d"] });
        let result = json!({ "summary": {}, "model": files("run")["model.safetensors"] });
        let record = json!({ "verb": "align", "flags": flags, "inputs": inputs, "result": result });
        folder.file("run/run.json", record.to_string());
    };
    model("start", "zero");
    iteration(1, "one");
    iteration(2, "two");
    record();
    let measured = |at: &str, greedy: f64| {
        json!({
            "model": folder.name(at), "files": files(at), "greedy": greedy,
            "metrics": [{ "metric": "greedy", "mean": greedy }],
        })
    };
    // The newest iteration under the name of the run.
    let mut models = vec![measured("run/iteration-1/model", 0.25), measured("run", 0.5), measured("start", 0.125)];
    models.push(measured("run/iteration-1/model", 0.25));
    let evaluated = |models: &[Value]| {
        folder.file("run/eval.json", json!({ "prompts": 7, "models": models, "flags": {} }).to_string());
        let (result, page) = report(&run);
        assert_tame(&page);
        let chart = page.split("aria-label=\"Held-out accuracy, greedy\"").nth(1);
        let points = chart.map_or(0, |chart| chart.split("</figure>").next().expect("it").matches("<circle").count());
        (points, result["notes"].to_string(), page)
    };
    let (points, notes, page) = evaluated(&models);
    assert_eq!(points, 3);
    assert!(!notes.contains("larpo eval") && !page.contains("earlier state"), "{notes}");
    assert!(page.contains("<b>12.5\u{a0}% → 50.0\u{a0}%</b><small>greedy accuracy, held out</small>"), "{page}");
    assert!(page.contains(&format!("{run} (iteration 2)")), "{page}");
    // The run goes on: what was its model is that of iteration 2 still, and no longer the newest.
    iteration(3, "three");
    record();
    let (points, notes, page) = evaluated(&models);
    assert_eq!(points, 3);
    assert!(notes.contains("held-out numbers of what came after iteration 2: an evaluation; "), "{notes}");
    assert!(page.contains("greedy accuracy, held out, up to iteration 2") && !page.contains("earlier state"), "{page}");
    // Iteration 2 is made again: nothing in the folder is what was measured.
    iteration(2, "two again");
    let (points, notes, page) = evaluated(&models);
    assert_eq!(points, 2);
    let told = format!("It measured an earlier state of “{run}”, whose weights are not there any more");
    assert!(page.contains(&told) && page.contains(&format!("{run} (an earlier state)")), "{page}");
    assert!(page.contains("<b>12.5\u{a0}% → 25.0\u{a0}%</b>"), "{page}");
    assert!(notes.contains("what came after iteration 1"), "{notes}");
    // Of an evaluation without checksums nothing is known.
    models.iter_mut().for_each(|model| model["files"] = Value::Null);
    let (points, notes, page) = evaluated(&models);
    assert_eq!(points, 0);
    assert!(page.contains("It does not tell which weights of") && notes.contains("as they are now"), "{notes}");
}

#[test]
fn a_run_that_broke_off_still_has_a_page() {
    let folder = Folder::new("broken");
    let run = folder.0.display().to_string();
    let error = larpo(&["report", &run]).expect_err("nothing there");
    assert!(error.contains("nothing to report") && error.contains("--output_dir"), "{error}");
    assert!(larpo(&["report", &folder.name("none")]).expect_err("no folder").contains("none"));

    let row = json!({ "prompt": "p", "responses": ["a", "b"], "rewards": [-3.5, -7.25] });
    folder.file("iteration-1/candidates.jsonl", format!("{row}\n"));
    folder.file("iteration-1/manifest.json", r#"{"config": {"seed": 3}, "report": {}}"#);
    folder.file("iteration-1/metrics.jsonl", "{\"step\":1,\"loss\":0.7}\n{\"step\":2,\"lo");
    folder.file("iteration-2/candidates.jsonl", "{\"prompt\": \"p\", \"resp");
    folder.file("iteration-10/metrics.jsonl", "");
    folder.file("iteration-notes/x", "");
    let (result, page) = report(&run);
    assert_tame(&page);
    assert_eq!(result["iterations"], json!(3));
    let notes = result["notes"].to_string();
    for part in [
        "1 line is no JSON object, of 2",
        "iteration-2/candidates.jsonl",
        "iteration 2 has no manifest.json",
        "iteration 10 has no manifest.json",
        "--correct_threshold",
    ] {
        assert!(notes.contains(part), "{part} is missing from {notes}");
    }
    assert!(page.contains("aria-label=\"Loss\"") && page.contains("aria-label=\"Reward\""), "{page}");
    let page_at = folder.name("page.html");
    larpo(&["report", &run, "--correct_threshold", "-5", "--output", &page_at]).expect("report");
    assert!(fs::read_to_string(&page_at).expect("a page").contains("Recall@2"));
}

#[test]
fn the_page_tells_how_a_watched_run_ended() {
    let folder = Folder::new("watched");
    let run = folder.0.display().to_string();
    let look = |reward: f64, kl: f64| json!({ "mean_reward": reward, "standard_error": 0.05, "kl": kl });
    folder.file("start.json", json!({ "watched": look(0.25, 0.0) }).to_string());
    let rewards = [0.5, 0.375, 0.3125];
    for (n, reward) in (1..).zip(rewards) {
        let row = |i: usize| json!({ "prompt": format!("p{i}"), "responses": ["a", "b"], "rewards": [1.0, 1.0] });
        folder.file(&format!("iteration-{n}/candidates.jsonl"), format!("{}\n{}\n", row(1), row(2)));
        let held_out = look(reward, n as f64);
        let manifest = json!({
            "config": { "watched_prompts": 17, "source": {} },
            "report": { "watched": held_out },
        });
        folder.file(&format!("iteration-{n}/manifest.json"), manifest.to_string());
    }
    let edited = "1 - edited\n2 - edited\n7 - edited\n";
    let sum = Checksum::of(edited.as_bytes());
    folder.file("iteration-2/candidates.checksum", format!("{edited}checksum {sum}\n"));
    let record = json!({
        "verb": "align",
        "goal": { "iterations": 6 },
        "flags": { "split": ["train"], "iterations": ["6"], "beta": ["0.5"] },
        "build": { "larpo": "9.9.9", "commit": "abc123", "instruction_set": "AVX2", "platform": "x", "threads": 7, "features": [] },
        "result": { "summary": { "ended_early": "2 without a better one", "best_iteration": 1 } },
    });
    folder.file("run.json", record.to_string());
    let (_, page) = report(&run);
    assert_tame(&page);
    for part in [
        "Ended early, after 3 of 6 iterations: 2 without a better one.",
        "The best iteration on the watched prompts is 1, with a mean reward of 0.5.",
        "The model in the folder is that of iteration 1.",
        "Candidates of iteration 2: 3 rows edited by hand, taken up.",
        "aria-label=\"Mean reward of the watched prompts\"",
        "aria-label=\"KL from the first policy\"",
        "17 held-out prompts, 0 is the start",
        "9.9.9 (commit abc123)",
        "<td>beta</td><td>0.5</td><td>0.1</td>",
    ] {
        assert!(page.contains(part), "{part} is missing");
    }
    assert!(!page.contains("candidates of iteration 1 "), "nothing was edited there");
    // The story of `inspect` is the same.
    let told = larpo(&["inspect", &run]).expect("inspects");
    for sentence in told["ended"].as_array().expect("sentences") {
        assert!(page.contains(sentence.as_str().expect("a text")), "{sentence}");
    }
    assert_eq!(told["ended"].as_array().map(Vec::len), Some(3));
}
