//! Runs of `align` that people steer: more iterations, candidates edited by hand, an end by KL or by held-out rewards.

mod common;
use common::*;
use larpo_cli::dataset::PromptRow;
use larpo_cli::policy::Policy;
use larpo_cli::samples::{Request, take_up};
use larpo_core::candidates::CandidateList;
use larpo_core::cpu::Cpu;
use larpo_core::reference::Reference;
use larpo_core::reranker::Query;
use larpo_core::retriever::SamplingConfig;
use larpo_core::train::{TrainingList, TrainingResponse, fill_references};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn json_of(output: &std::process::Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn read(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path.as_ref()).expect("reads")).expect("JSON")
}

/// A small `align`; fewer prompts than the interrupted ones.
fn small<'a>(data: &'a str, model: &'a str, out: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["align", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", out, "--json"];
    words.extend(["--prompts_per_iteration", "24", "--k", "6", "--max_new_tokens", "8", "--reward_weights", "1,0.1"]);
    words.extend(["--reward_funcs", "answer,length:target=6", "--per_device_train_batch_size", "4"]);
    words.extend(extra);
    words
}

#[test]
fn a_finished_run_is_continued() {
    let folder = Folder::new("more");
    let (data, model) = tiny(&folder);
    let (whole, parts) = (folder.path("whole"), folder.path("parts"));
    let (whole_name, name) = (whole.display().to_string(), parts.display().to_string());
    succeeds(&mut larpo(&small(&data, &model, &whole_name, &["--iterations", "3"])));
    let error = fails(&mut larpo(&small(&data, &model, &name, &["--iterations", "+2"])));
    assert!(error.contains("+2 needs a run to go on with") && error.contains("--iterations 2 to begin one"), "{error}");
    assert!(!error.contains("the run begins") && !parts.exists(), "{error}");
    let bare = ["align", "--output_dir", &name, "--json"];
    let error = fails(&mut larpo(&[&bare[..], &["--iterations", "+2"]].concat()));
    assert!(error.contains("+2 needs a run to go on with") && !parts.exists(), "{error}");
    succeeds(&mut larpo(&small(&data, &model, &name, &["--iterations", "1"])));
    // The recorded settings need not be given again; one that is given and differs is refused.
    let error = fails(&mut larpo(&[&bare[..], &["--iterations", "+2", "--k", "7"]].concat()));
    assert!(error.contains("--num_generations was 6 and is now 7"), "{error}");
    let more = json_of(&succeeds(&mut larpo(&[&bare[..], &["--iterations", "+2", "--k", "6"]].concat())));
    assert_eq!(more["iterations"].as_array().map(Vec::len), Some(3));
    // Manifests say how many iterations were asked for; everything else is the same.
    let without = |out: &Path| {
        let mut files = results(out);
        // The number of iterations is in them, and what is in them in the list of checksums.
        let list = |name: &str| name.ends_with("checksums.json") && !name.contains("model");
        files.retain(|(name, _)| !name.ends_with("manifest.json") && !list(name));
        files
    };
    assert_same(&without(&whole), &without(&parts), "1 + 2 iterations");
    // The goal is kept: the same run without a number is finished, and fewer iterations are refused.
    let again = small(&data, &model, &name, &["--resume_from_checkpoint", "latest"]);
    let text = stderr(&succeeds(&mut larpo(&again)));
    assert!(text.contains("is finished") && text.contains("--iterations +N"), "{text}");
    for extra in [&["--iterations", "3"][..], &["--resume_from_checkpoint", "latest"]] {
        let error = fails(&mut larpo(&[&bare[..], extra].concat()));
        assert!(error.contains("only --iterations +N takes"), "{error}");
    }
    let fewer = ["--resume_from_checkpoint", "latest", "--iterations", "2"];
    let error = fails(&mut larpo(&small(&data, &model, &name, &fewer)));
    assert!(error.contains("3 iterations of the run are finished"), "{error}");
}

#[test]
fn a_run_is_continued_from_any_directory_and_its_model_is_known() {
    let folder = Folder::new("elsewhere");
    tiny(&folder);
    let here = |words: &[&str]| {
        let mut command = larpo(words);
        command.current_dir(&folder.0);
        command
    };
    succeeds(&mut here(&small("rows.jsonl", "model", "out", &["--iterations", "1"])));
    let name = folder.name("out");
    let more = ["align", "--output_dir", &name, "--iterations", "+1", "--json"];
    let elsewhere = json_of(&succeeds(larpo(&more).current_dir("/")));
    assert_eq!(elsewhere["iterations"].as_array().map(Vec::len), Some(2));
    // The model of a finished run is compared with what it ended with.
    let notes = || json_of(&succeeds(&mut larpo(&["inspect", &name, "--json"])))["notes"].clone();
    assert_eq!(notes(), json!([]));
    let weights = folder.path("out/model.safetensors");
    let mut bytes = fs::read(&weights).expect("reads");
    *bytes.last_mut().expect("a byte") ^= 1;
    fs::write(&weights, bytes).expect("writes");
    assert!(notes()[0].as_str().is_some_and(|note| note.contains("not what the run ended with")), "{}", notes());
    succeeds(&mut larpo(&["report", &name]));
    let page = fs::read_to_string(folder.path("out/report.html")).expect("a page");
    assert!(page.contains("not what the run ended with") && page.contains("Relative paths begin in /"), "{page}");
    fs::remove_file(&weights).expect("removes");
    assert!(notes()[0].as_str().is_some_and(|note| note.contains("is lost")), "{}", notes());
}

#[test]
fn edited_candidates_are_checked_and_ranked_anew() {
    let folder = Folder::new("edited");
    let (data, model) = tiny(&folder);
    let out = folder.path("out");
    let name = out.display().to_string();
    succeeds(&mut larpo(&small(&data, &model, &name, &["--iterations", "2"])));
    let path = out.join("iteration-2/candidates.jsonl");
    let good = fs::read_to_string(&path).expect("reads");
    let rows = || good.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<Value>>();
    let write = |rows: &[Value]| {
        fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).expect("writes");
    };
    let more = |extra: &[&str]| larpo(&small(&data, &model, &name, &[&["--iterations", "+1"], extra].concat()));
    // Mistakes are named by file and line.
    let mut bad = rows();
    bad[2]["rewards"] = json!([1]);
    write(&bad);
    let error = fails(&mut more(&[]));
    assert!(error.contains("iteration-2/candidates.jsonl:3:") && error.contains("`rewards`"), "{error}");
    let mut bad = rows();
    bad[1]["prompt"] = json!("9+9\n");
    write(&bad);
    let error = fails(&mut more(&[]));
    assert!(error.contains("candidates.jsonl:2: `prompt` is not that of row"), "{error}");
    let mut bad = rows();
    bad[1]["reference"] = json!("another");
    write(&bad);
    let error = fails(&mut more(&[]));
    assert!(error.contains("candidates.jsonl:2: `reference` is not that of row"), "{error}");
    let mut bad = rows();
    bad[4]["prompt_index"] = bad[3]["prompt_index"].clone();
    bad[4]["prompt"] = bad[3]["prompt"].clone();
    write(&bad);
    let error = fails(&mut more(&[]));
    assert!(error.contains("candidates.jsonl:5: `prompt_index`") && error.contains("line 4"), "{error}");
    let mut bad = rows();
    bad[0]["prompt_index"] = json!(100_000);
    write(&bad);
    let error = fails(&mut more(&[]));
    assert!(error.contains("candidates.jsonl:1: `prompt_index` is not that of a prompt"), "{error}");

    let mut bad = rows();
    bad[1]["responses"][2] = json!("é");
    write(&bad);
    let error = fails(&mut more(&[]));
    assert!(error.contains("candidates.jsonl:2: `responses[2]`: ") && error.contains("'é'"), "{error}");

    // Longer than a row may be: more tokens than could have been drawn, and more than --max_length.
    let mut bad = rows();
    bad[1]["responses"][2] = json!("1".repeat(60));
    write(&bad);
    let error = fails(&mut more(&[]));
    assert!(
        error.contains("candidates.jsonl:2: `responses[2]`: 61 tokens") && error.contains("--max_length allows 48"),
        "{error}"
    );

    // `inspect` and `report` know of a number that is there twice, or foreign, before the run refuses.
    for (index, told) in
        [(rows()[3]["prompt_index"].clone(), "is that of line 4 too"), (json!(100_000), "is not that of a prompt")]
    {
        let mut bad = rows();
        bad[4]["prompt_index"] = index;
        write(&bad);
        let notes = json_of(&succeeds(&mut larpo(&["inspect", &name, "--json"])))["notes"].to_string();
        assert!(notes.contains("iteration 2: candidates.jsonl:5: `prompt_index`") && notes.contains(told), "{notes}");
        succeeds(&mut larpo(&["report", &name]));
        assert!(fs::read_to_string(out.join("report.html")).expect("a page").contains(told));
    }

    // Another layout of the same rows is no edit; what is one is told at once.
    let inspected = || json_of(&succeeds(&mut larpo(&["inspect", &name, "--json"])))["iterations"].clone();
    let edited_rows = |n: usize| inspected()[n - 1]["edited_rows"].clone();
    fs::write(&path, serde_json::to_string_pretty(&rows()).expect("JSON")).expect("writes");
    assert_eq!(edited_rows(2), json!({ "taken_up": 0, "since": 0 }));

    // The second iteration made again with a row less and another answer to a prompt.
    let mut edited = rows();
    edited.remove(5);
    let answer = edited[0]["reference"].as_str().expect("a reference").to_string();
    edited[0]["responses"][5] = json!(format!("{answer} "));
    edited[0]["rewards"][5] = json!(-77.0);
    edited[0]["rewards"][1] = json!(-78.0);
    write(&edited);
    assert_eq!(edited_rows(2), json!({ "taken_up": 0, "since": 2 }));
    let told = succeeds(&mut larpo(&["inspect", &name]));
    let told = String::from_utf8_lossy(&told.stdout);
    let sentence = "candidates of iteration 2: 2 rows edited by hand, to be taken up when the run goes on";
    assert!(told.contains(sentence), "{told}");
    succeeds(&mut larpo(&["report", &name]));
    let page = fs::read_to_string(out.join("report.html")).expect("a page");
    assert!(page.contains(&sentence.replacen('c', "C", 1)), "{page}");
    assert!(page.contains("without the rows that were edited by hand"), "{page}");
    fs::remove_file(out.join("iteration-2/manifest.json")).expect("removes");
    let latest = ["--resume_from_checkpoint", "latest"];
    let output = succeeds(&mut larpo(&small(&data, &model, &name, &latest)));
    let text = stderr(&output);
    assert!(
        text.contains("2 of 24 rows edited by hand, 1 of them deleted; 1 row ranked anew, 1 response encoded anew"),
        "{text}"
    );
    assert!(text.contains("1 reward of responses whose texts are as they were drawn replaced"), "{text}");
    // 24 of the first iteration are remembered.
    assert!(text.contains("47 lists ="), "{text}");
    let ranked: Value =
        serde_json::from_str(fs::read_to_string(&path).expect("reads").lines().next().expect("a row")).expect("JSON");
    let place = ranked["responses"].as_array().expect("texts").iter().position(|r| *r == format!("{answer} "));
    let place = place.expect("the edited text is there");
    let reward = ranked["rewards"][place].as_f64().expect("a number");
    assert!(reward > 0.5, "the right answer was scored, not what stood there: {ranked}");
    assert!(ranked.get("logps").is_none(), "nothing tells which log-probabilities still hold: {ranked}");
    let kept = fs::read_to_string(&path).expect("reads").lines().filter(|line| line.contains("\"logps\"")).count();
    assert_eq!(kept, 22, "those of the other rows do");
    assert_ne!(ranked["token_ids"][place], rows()[0]["token_ids"][5]);
    assert_eq!(json_of(&output)["iterations"].as_array().map(Vec::len), Some(3), "the one more that was asked for");
    // One row deleted, one changed: both are recorded.
    let none = json!({ "taken_up": 0, "since": 0 });
    assert_eq!((edited_rows(1), edited_rows(3)), (none.clone(), none));
    assert_eq!(edited_rows(2), json!({ "taken_up": 2, "since": 0 }), "remembered for the next session");
    // Going on from there takes the edited ones without another word.
    let output = succeeds(&mut more(&[]));
    assert!(!stderr(&output).contains("edited by hand"), "{}", stderr(&output));
    assert_eq!(json_of(&output)["iterations"].as_array().map(Vec::len), Some(4));

    // Edited after its iteration was finished: what is remembered of it is ranked anew too, and told.
    let now = || -> Vec<Value> {
        let text = fs::read_to_string(&path).expect("reads");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let mut edited = now();
    let answer = edited[2]["reference"].as_str().expect("a reference").to_string();
    let last = edited[2]["responses"].as_array().expect("texts").len() - 1;
    edited[2]["responses"][last] = json!(format!("{answer}  "));
    write(&edited);
    succeeds(&mut more(&[]));
    let row = &now()[2];
    let place = row["responses"].as_array().expect("texts").iter().position(|r| *r == format!("{answer}  "));
    assert!(row["rewards"][place.expect("the edited text is there")].as_f64() > Some(0.5), "{row}");
    let inspected = succeeds(&mut larpo(&["inspect", &name]));
    let told = String::from_utf8_lossy(&inspected.stdout);
    assert!(told.contains("candidates of iteration 2: 3 rows edited by hand, taken up"), "{told}");
}

/// A reward model is slow: it is asked about what was edited and nothing else.
#[test]
fn what_nobody_edited_is_not_ranked_again() {
    let folder = Folder::new("asked");
    let (data, model) = tiny(&folder);
    let name = folder.name("out");
    succeeds(&mut larpo(&small(&data, &model, &name, &["--iterations", "1"])));
    let iteration = Path::new(&name).join("iteration-1");
    let path = iteration.join("candidates.jsonl");
    let mut rows = larpo_data::candidates::read(&path).expect("reads");
    let policy = Policy::open(&Cpu::new(), Path::new(&model)).expect("opens");
    let prompt = |row: &larpo_data::candidates::CandidateList| PromptRow {
        index: row.prompt_index.expect("a number"),
        line: 1,
        text: row.prompt.clone(),
        conversation: None,
        ids: row.prompt_token_ids.clone().expect("ids"),
        reference: row.reference.clone(),
    };
    let prompts: Vec<PromptRow> = rows.iter().map(prompt).collect();
    let sampling = SamplingConfig {
        num_generations: 6,
        max_new_tokens: 8,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        eos_ids: policy.eos_ids.clone(),
        vocab_limit: policy.tokenizer.vocab_size(),
        seed: 1,
        iteration: 1,
    };
    let request = Request { prompts: &prompts, sampling: &sampling, stop_strings: &[], max_length: 48, label: "" };
    let taken = || {
        let mut asked = Vec::new();
        let mut reranker = |query: &Query| {
            asked.push(query.prompt.to_string());
            Ok((0..query.responses.len()).map(|i| i as f64).collect())
        };
        let stored = take_up(&policy, request, &iteration, &mut reranker).expect("takes up").expect("is complete");
        (asked, stored)
    };
    let (asked, stored) = taken();
    assert!(asked.is_empty() && !stored.edited, "{asked:?}");
    let rewards = |list: &CandidateList| list.candidates.iter().map(|c| c.reward).collect::<Vec<_>>();
    assert!(stored.lists.iter().zip(&rows).all(|(list, row)| rewards(list) == row.rewards));
    rows[3].responses[0] = "1".into();
    larpo_data::candidates::write(&path, &rows).expect("writes");
    let (asked, stored) = taken();
    assert_eq!(asked, [rows[3].prompt.clone()]);
    // Best first, with the new rewards, and without the log-probabilities of what was there.
    assert_eq!(rewards(&stored.lists[3]), [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]);
    assert!(stored.edited && stored.lists[3].candidates.iter().all(|c| c.logps.is_empty()));
    assert!(stored.lists[4].candidates.iter().all(|c| c.logps.len() == c.ids.len()));
    assert!(taken().0.is_empty(), "once");
}

#[test]
fn a_checkpoint_from_before_an_edit_is_not_gone_on_from() {
    let folder = Folder::new("edited-late");
    let (data, model) = tiny(&folder);
    let out = folder.path("out");
    let name = out.display().to_string();
    let words = align(&data, &model, &name, &["--resume_from_checkpoint", "latest"]);
    let mut child = start(&mut larpo(&words), &folder.path("log"));
    wait_for("a checkpoint", || out.join("iteration-1/checkpoint-5").exists());
    child.kill().expect("kills");
    child.wait().expect("a child");
    let path = out.join("iteration-1/candidates.jsonl");
    let text = fs::read_to_string(&path).expect("reads");
    let rows: Vec<&str> = text.lines().skip(1).collect();
    fs::write(&path, rows.join("\n") + "\n").expect("writes");
    let output = succeeds(&mut larpo(&words));
    let text = stderr(&output);
    assert!(
        text.contains("warning: ")
            && text.contains("starts anew")
            && text.contains("1 of 120 rows edited by hand, 1 of them deleted; 0 rows ranked"),
        "{text}"
    );
}

#[test]
fn an_iteration_says_how_far_it_moved_the_policy() {
    let folder = Folder::new("moved");
    let (data, model) = tiny(&folder);
    let run = |name: &str, extra: &[&str]| {
        let out = folder.name(name);
        let extra = [&["--iterations", "1", "--learning_rate", "1e-3"][..], extra].concat();
        json_of(&succeeds(&mut larpo(&small(&data, &model, &out, &extra))))["iterations"][0]["kl"].clone()
    };
    let found = run("plain", &[]);
    // The candidates are the samples of the policy before; the reference backend tells what the one after makes of them.
    let after = Policy::open(&Reference, &folder.path("plain/iteration-1/model")).expect("opens");
    let text = fs::read_to_string(folder.path("plain/iteration-1/candidates.jsonl")).expect("reads");
    let mut values = Vec::new();
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).expect("ids") };
        let responses = row["token_ids"].as_array().expect("ids").iter();
        let responses =
            responses.map(|r| TrainingResponse { ids: ids(r), reward: 0.0, reference: Vec::new(), sampled: None });
        let list = TrainingList { prompt: ids(&row["prompt_token_ids"]), responses: responses.collect() };
        let mut lists = [list];
        fill_references(&after.model, &mut lists, false).expect("scores");
        let k3 = |(i, response): (usize, &TrainingResponse)| -> f64 {
            let before: Vec<f64> = serde_json::from_value(row["logps"][i].clone()).expect("logps");
            let pairs = before.iter().zip(&response.reference);
            pairs.map(|(before, &after)| before - f64::from(after)).map(|d| (-d).exp() - 1.0 + d).sum()
        };
        values.push(lists[0].responses.iter().enumerate().map(k3).sum::<f64>() / 6.0);
    }
    let want = values.iter().sum::<f64>() / 24.0;
    let got = found["mean"].as_f64().expect("a mean");
    assert!(values.len() == 24 && want > 1e-4 && (got / want - 1.0).abs() < 1e-2, "{got} against {want}");
    // Samples of another distribution tell nothing of this one.
    assert!(run("sharpened", &["--temperature", "0.8"]).is_null());
    assert!(run("cut", &["--top_p", "0.9"]).is_null());
}

#[test]
fn the_policy_moves_so_far_and_no_farther() {
    let folder = Folder::new("kl");
    let (data, model) = tiny(&folder);
    let out = folder.path("out");
    let name = out.display().to_string();
    // Any movement at all is enough.
    let extra = ["--iterations", "4", "--learning_rate", "1e-3", "--until_kl", "1e-6", "--eval_prompts", "16"];
    let ended = json_of(&succeeds(&mut larpo(&small(&data, &model, &name, &extra))));
    assert!(ended["ended_early"].as_str().is_some_and(|why| why.contains("--until_kl")), "{ended}");
    let reports = ended["iterations"].as_array().expect("reports");
    let kl = |report: &Value| report["watched"]["kl"].as_f64().expect("a number");
    assert!(reports.len() < 4 && reports.last().is_some_and(|report| kl(report) >= 1e-6), "{ended}");
    assert!(reports.iter().rev().skip(1).all(|report| kl(report) < 1e-6), "{ended}");
    let start = kl(&read(out.join("start.json")));
    assert!(start.abs() < 1e-7, "the first policy has not moved, but for rounding: {start}");
    // Asked for again it is finished; with more room it goes on.
    let again = [&extra[..], &["--resume_from_checkpoint", "latest"]].concat();
    assert!(stderr(&succeeds(&mut larpo(&small(&data, &model, &name, &again)))).contains("is finished"));
    let mut farther = again.clone();
    farther[5] = "1e9";
    let on = json_of(&succeeds(&mut larpo(&small(&data, &model, &name, &farther))));
    assert_eq!((on["iterations"].as_array().map(Vec::len), &on["ended_early"]), (Some(4), &Value::Null));
    assert_eq!(on["best_iteration"], Value::Null);
}

#[test]
fn the_best_iteration_is_kept() {
    let folder = Folder::new("patience");
    let (data, model) = tiny(&folder);
    let out = folder.path("out");
    let name = out.display().to_string();
    // A rate at which the policy falls apart.
    let held_out = ["--validation_fraction", "0.2", "--split", "train", "--eval_prompts", "24"];
    let extra = ["--iterations", "6", "--learning_rate", "0.05", "--early_stopping_patience", "2"];
    let words = small(&data, &model, &name, &[&extra[..], &held_out].concat());
    let output = succeeds(&mut larpo(&words));
    assert!(stderr(&output).contains("left out (beyond --eval_prompts)"), "{}", stderr(&output));
    let ended = json_of(&output);
    let reports = ended["iterations"].as_array().expect("reports");
    let start = read(out.join("start.json"))["watched"]["mean_reward"].as_f64().expect("a number");
    let reward = |report: &Value| report["watched"]["mean_reward"].as_f64().expect("a number");
    let rewards: Vec<f64> = std::iter::once(start).chain(reports.iter().map(reward)).collect();
    let best = (0..rewards.len()).rev().max_by(|&a, &b| rewards[a].total_cmp(&rewards[b])).expect("a start");
    let best = rewards.iter().position(|r| *r == rewards[best]).expect("there");
    assert_eq!(ended["best_iteration"], json!(best), "{rewards:?}");
    assert_eq!(reports.len(), (best + 2).min(6), "{rewards:?}");
    assert!(ended["ended_early"].as_str().is_some_and(|why| why.contains("patience")), "{ended}");
    let kept = match best {
        0 => Path::new(&model).join("model.safetensors"),
        n => out.join(format!("iteration-{n}/model/model.safetensors")),
    };
    assert!(fs::read(kept).expect("reads") == fs::read(out.join("model.safetensors")).expect("reads"), "{rewards:?}");
    let none = small(&data, &model, &name, &["--early_stopping_patience", "2"]);
    assert!(fails(&mut larpo(&none)).contains("needs held-out prompts"));
}

#[test]
fn watched_runs_go_on_to_the_same_files() {
    let folder = Folder::new("watched");
    let (data, model) = tiny(&folder);
    let extra = ["--eval_prompts", "24", "--until_kl", "1e9", "--resume_from_checkpoint", "latest"];
    let out = folder.path("alone").display().to_string();
    succeeds(&mut larpo(&align(&data, &model, &out, &extra)));
    let expected = results(Path::new(&out));
    for stage in ["start.json", "iteration-1/checkpoint-20", "iteration-1/manifest.json", "iteration-2/metrics.jsonl"] {
        let out = folder.path("out");
        let name = out.display().to_string();
        let mut child = start(&mut larpo(&align(&data, &model, &name, &extra)), &folder.path("log"));
        wait_for(stage, || out.join(stage).exists());
        child.kill().expect("kills");
        child.wait().expect("a child");
        succeeds(&mut larpo(&align(&data, &model, &name, &extra)));
        assert_same(&expected, &results(&out), stage);
        fs::remove_dir_all(&out).expect("removes");
    }
    // A damaged measurement of the start decides nothing: it is made again.
    let start = Path::new(&out).join("start.json");
    let good = fs::read_to_string(&start).expect("reads");
    fs::write(&start, good.replacen("0.", "1.", 1)).expect("writes");
    fs::remove_file(Path::new(&out).join("iteration-2/manifest.json")).expect("removes");
    let text = stderr(&succeeds(&mut larpo(&align(&data, &model, &out, &extra))));
    assert!(text.contains("start.json is damaged") && good.contains("0."), "{text}");
    assert_same(&expected, &results(Path::new(&out)), "start.json");
}
