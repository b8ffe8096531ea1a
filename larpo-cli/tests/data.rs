//! Data on their way into the verbs: every row of a file is used or counted under a reason, whatever its form.

mod common;
use common::{Folder, run_here as larpo};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A folder with a tiny model in it.
fn with_model(name: &str) -> Folder {
    let folder = Folder::new(name);
    let rows: Vec<Value> =
        (1..8).map(|a| json!({ "prompt": format!("{a}+1=\n"), "completion": format!("#### {}", a + 1) })).collect();
    let letters = json!({ "prompt": "abcdefghijklmnopqrstuvwxyz ABCDEFGH:?", "completion": "-*/0123456789.,'" });
    let data = folder.rows("model.jsonl", &[rows, vec![letters]].concat());
    let sizes = ["--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2"];
    let words = ["sft", "--dataset_name", &data, "--output_dir", &folder.name("model"), "--tokenizer", "char"];
    let rest = ["--max_steps", "10", "--learning_rate", "1e-2", "--max_position_embeddings", "48"];
    larpo(&[&words[..], &sizes, &rest].concat()).expect("sft");
    folder
}

/// Runs a verb on a file, on the tiny model, into a new folder.
fn run(folder: &Folder, verb: &str, file: &str, extra: &[&str]) -> Result<Value, String> {
    let out = folder.name("out");
    let _ = fs::remove_dir_all(&out);
    let words = [verb, "--model_name_or_path", &folder.name("model"), "--dataset_name", file, "--output_dir", &out];
    larpo(&[&words[..], extra].concat())
}

/// Rows in = rows used + rows left out; the rows used and the reasons.
fn counts(result: &Value) -> (u64, u64, Value) {
    let data = &result["data"];
    let left_out = data["left_out"].as_object().expect("reasons");
    let rows = data["rows"].as_u64().expect("a number");
    let out: u64 = left_out.values().map(|n| n.as_u64().expect("a number")).sum();
    assert_eq!(data["used"].as_u64(), Some(rows - out), "{data}");
    (rows, rows - out, data["left_out"].clone())
}

fn metrics(folder: &Folder) -> Vec<Value> {
    let text = fs::read_to_string(folder.0.join("out/metrics.jsonl")).expect("metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn pairs() -> Vec<Value> {
    let prompts = ["what is 2+2?", "name a colour", "say hi", "1+1=", "how old?", "where is it?"];
    let pair = |(i, prompt): (usize, &&str)| {
        let (chosen, rejected) = (format!(" well {i}, fine."), format!(" no {}", "x".repeat(i + 1)));
        let turn = format!("Human: {prompt}\n\nAssistant:");
        match i % 2 {
            0 => json!({ "prompt": turn, "chosen": chosen, "rejected": rejected }),
            _ => json!({ "chosen": format!("{turn}{chosen}"), "rejected": format!("{turn}{rejected}") }),
        }
    };
    prompts.iter().enumerate().map(pair).collect()
}

#[test]
fn pairs_train_as_lists_of_two_and_two_losses_agree() {
    let folder = with_model("pairs");
    let file = folder.rows("pairs.jsonl", &pairs());
    let train = |loss: &str| {
        let extra =
            ["--loss_type", loss, "--max_steps", "6", "--per_device_train_batch_size", "2", "--logging_steps", "1"];
        let result = run(&folder, "train", &file, &extra).expect("trains");
        assert_eq!(counts(&result), (6, 6, json!({})));
        metrics(&folder)
    };
    // With two responses ListMLE is -log sigma(g1 - g2), and so is the mean over the one pair.
    let (pairwise, listmle) = (train("pairwise"), train("listmle"));
    assert_eq!((pairwise.len(), listmle.len()), (6, 6));
    for (a, b) in pairwise.iter().zip(&listmle) {
        for (name, value) in a.as_object().expect("a row") {
            let (x, y) = (value.as_f64().expect("a number"), b[name].as_f64().expect("a number"));
            assert!((x - y).abs() <= 1e-6 * (1.0 + x.abs()), "{name}: {x} and {y}");
        }
    }
    // The same pairs as ranked lists give the same bits.
    let lists: Vec<Value> = pairs()
        .iter()
        .map(|row| {
            let (chosen, rejected) = (row["chosen"].as_str().expect("text"), row["rejected"].as_str().expect("text"));
            let end = if row.get("prompt").is_some() { 0 } else { chosen.find("Assistant:").expect("a turn") + 10 };
            let prompt = row["prompt"].as_str().unwrap_or(&chosen[..end]);
            json!({ "prompt": prompt, "responses": [&chosen[end..], &rejected[end..]], "ranks": [1, 2] })
        })
        .collect();
    let extra =
        ["--loss_type", "listmle", "--max_steps", "6", "--per_device_train_batch_size", "2", "--logging_steps", "1"];
    run(&folder, "train", &folder.rows("lists.jsonl", &lists), &extra).expect("trains");
    assert_eq!(metrics(&folder), listmle);
}

#[test]
fn labelled_completions_are_put_together_by_prompt() {
    let folder = with_model("unpaired");
    let row = |prompt: &str, completion: &str, label: bool| json!({ "prompt": prompt, "completion": completion, "label": label });
    let rows = [
        row("1+1=", "2", true),
        row("2+2=", "4", true),
        row("1+1=", "3", false),
        row("3+3=", "6", true),
        row("3+3=", "six", true),
        row("1+1=", "4", false),
        row("4+4=", "0", false),
    ];
    let file = folder.rows("labels.jsonl", &rows);
    let result = run(&folder, "train", &file, &["--loss_type", "listmle", "--select", "full"]).expect("trains");
    let reasons = json!({ "equal rewards": 2, "fewer than two different responses": 2 });
    assert_eq!(counts(&result), (7, 3, reasons));
    assert_eq!(result["lists"]["lists"], json!(4));
    assert_eq!(result["lists"]["contributing"], json!(1));
    // Fine-tuning learns the good ones, sampling takes each prompt once.
    let sft = run(&folder, "sft", &file, &["--max_steps", "1"]).expect("sft");
    assert_eq!(counts(&sft), (7, 4, json!({ "label false": 3 })));
    let sample = run(&folder, "sample", &file, &["--k", "1", "--max_new_tokens", "2"]).expect("samples");
    assert_eq!(sample["prompts"], json!(4));
}

#[test]
fn every_row_is_used_or_counted() {
    let folder = with_model("counts");
    let good = |i: usize| json!({ "prompt": format!("{i}+1="), "completion": "#### 2" });
    let mut lines: Vec<String> = (0..20).map(|i| good(i).to_string()).collect();
    lines[3] = r#"{"prompt": "1", "prompt": "2", "completion": "3"}"#.into();
    lines[5] = r#"{"prompt": 1, "completion": "3"}"#.into();
    lines[8] = "not JSON".into();
    lines[9] = r#"{"prompt": "1+1="}"#.into();
    lines[11] = json!({ "prompt": "1".repeat(40), "completion": "2222222222" }).to_string();
    let file = folder.file("rows.jsonl", lines.join("\n"));
    let error = run(&folder, "sft", &file, &[]).expect_err("a bad row");
    assert!(error.contains("rows.jsonl:4: field `prompt`") && error.contains("--on_bad_row skip"), "{error}");
    // Leaving a row out is no mend where the file as a whole cannot be read.
    for (name, text) in [
        ("header.csv", "prompt,prompt\na,b\n"),
        ("quote.csv", "prompt,completion\na,b\nc,\"d\n"),
        ("cut.json", "[{\"prompt\": \"a\", \"completion\": \"b\"}, {\"pro"),
        ("latin1.csv", "prompt,completion\na,\u{0}\n"),
        ("unknown.jsonl", "{\"Frage\": \"a\"}\n"),
    ] {
        let mut bytes = text.as_bytes().to_vec();
        bytes.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = 0xE9);
        let file = folder.path(name);
        std::fs::write(&file, bytes).expect("writes");
        let error = run(&folder, "sft", &file.display().to_string(), &[]).expect_err(name);
        assert!(error.contains(&format!("{name}:")) && !error.contains("--on_bad_row"), "{error}");
    }
    let skip = ["--on_bad_row", "skip", "--max_steps", "1"];
    let sft = |extra: &[&str]| counts(&run(&folder, "sft", &file, &[&skip[..], extra].concat()).expect("trains"));
    let mut reasons =
        json!({ "malformed `prompt`": 2, "not valid JSON": 1, "no completion": 1, "longer than 48 tokens": 1 });
    assert_eq!(sft(&[]), (20, 15, reasons.clone()));
    // The last rows held back, the first few of the others taken.
    reasons["held back for validation"] = json!(3);
    assert_eq!(sft(&["--validation_fraction", "0.2"]), (20, 12, reasons));
    let few = json!({ "malformed `prompt`": 2, "not valid JSON": 1, "held back for validation": 3, "beyond --max_samples": 9 });
    assert_eq!(sft(&["--validation_fraction", "0.2", "--max_samples", "5"]), (20, 5, few));
    // All at once, but in an order of the seed: other rows are the first.
    let shuffled = |seed: &str| {
        let extra =
            ["--shuffle_seed", seed, "--max_samples", "4", "--max_steps", "1", "--per_device_train_batch_size", "4"];
        let result = run(&folder, "sft", &file, &[&["--on_bad_row", "skip"][..], &extra].concat()).expect("trains");
        (counts(&result).0, result["loss"].as_f64().expect("a loss"))
    };
    assert_eq!(shuffled("1"), shuffled("1"));
    assert_ne!(shuffled("1"), shuffled("2"));
    let text = folder.file("a.txt", "abc abc abc abc abc");
    assert!(run(&folder, "sft", &text, &["--shuffle_seed", "1"]).expect_err("one text").contains("--shuffle_seed"));
    // Too long: cut, or refused.
    let cut = |mode: &str| run(&folder, "sft", &file, &[&skip[..], &["--truncation_mode", mode]].concat());
    let kept = cut("keep_end").expect("trains");
    let reasons = json!({ "malformed `prompt`": 2, "not valid JSON": 1, "no completion": 1 });
    assert_eq!((counts(&kept), kept["data"]["shortened"].clone()), ((20, 16, reasons), json!(1)));
    let error = cut("error").expect_err("a long row");
    assert!(error.contains("rows.jsonl:12: ") && error.contains("--truncation_mode"), "{error}");
}

#[test]
fn a_schema_can_be_chosen_where_several_fit() {
    let folder = with_model("schema");
    let row = json!({ "prompt": "1+1=", "completion": "2", "chosen": "2", "rejected": "3" });
    let file = folder.rows("both.jsonl", &[row]);
    let error = run(&folder, "train", &file, &[]).expect_err("ambiguous");
    assert!(error.contains("--dataset_schema prompt_completion or --dataset_schema preference"), "{error}");
    run(&folder, "train", &file, &["--dataset_schema", "preference"]).expect("trains");
    run(&folder, "sft", &file, &["--dataset_schema", "prompt_completion", "--max_steps", "1"]).expect("trains");
    let error = run(&folder, "train", &file, &["--dataset_schema", "prompt_completion"]).expect_err("nothing ranked");
    assert!(error.contains("rank nothing"), "{error}");
    assert!(
        run(&folder, "train", &file, &["--dataset_schema", "pairs"]).expect_err("no schema").contains("preference")
    );
}

#[test]
fn the_token_cache_changes_nothing() {
    let folder = with_model("cache");
    let file = folder.rows("pairs.jsonl", &pairs());
    let cache = folder.name("cache");
    let train = |extra: &[&str]| {
        run(&folder, "train", &file, extra).expect("trains");
        (metrics(&folder), fs::read(folder.0.join("out/model.safetensors")).expect("weights"))
    };
    let files = || {
        let mut files: Vec<_> = fs::read_dir(&cache).expect("a folder").map(|e| e.expect("an entry").path()).collect();
        files.sort();
        files
    };
    let without = train(&["--no_cache"]);
    assert!(!Path::new(&cache).exists());
    let with = ["--cache_dir", &cache[..]];
    assert!(train(&with) == without && files().len() == 1);
    let kept = fs::read(&files()[0]).expect("reads");
    assert!(train(&with) == without && files().len() == 1);
    // Damaged, or put there by somebody else: made anew, with the same bytes.
    let mut damaged = kept.clone();
    damaged[kept.len() / 2] ^= 4;
    for bytes in [damaged, b"something else".to_vec(), vec![]] {
        fs::write(&files()[0], bytes).expect("writes");
        assert!(train(&with) == without);
        assert!(fs::read(&files()[0]).expect("reads") == kept);
    }
    // Other rows, other settings, another tokenizer: another file.
    train(&["--cache_dir", &cache, "--max_samples", "3"]);
    assert_eq!(files().len(), 2);
    folder.rows("pairs.jsonl", &pairs()[..4]);
    train(&with);
    assert_eq!(files().len(), 3);
    folder.rows("pairs.jsonl", &pairs());
    let tokenizer = folder.0.join("model/tokenizer.json");
    let text = fs::read_to_string(&tokenizer).expect("reads");
    fs::write(&tokenizer, format!("{text}\n")).expect("writes");
    assert!(train(&with) == without && files().len() == 4);
}

#[test]
fn inspect_tells_what_a_file_holds() {
    let folder = with_model("inspect");
    let file = folder.rows("pairs.jsonl", &pairs());
    let found = larpo(&["inspect", &file, "--tokenizer", &folder.name("model"), "--lines", "2"]).expect("inspects");
    assert_eq!(counts(&found), (6, 6, json!({})));
    assert_eq!((&found["schema"], &found["why"]), (&json!("preference"), &json!("every row has `chosen`, `rejected`")));
    assert_eq!(found["ranking"]["best_first"], json!(6));
    // A tokenizer of characters sees no neighbours.
    assert_eq!(found["tokenisation"]["rows_joint_differs"], json!(0));
    assert_eq!(found["lengths"]["response_tokens"]["count"], json!(12));
    assert_eq!(found["lengths"]["response_tokens"]["max"], found["lengths"]["response_characters"]["max"]);
    assert_eq!(found["implicit_prompts"], json!(3), "every second row has no prompt of its own");
    // What a limit would do: lengths of rows are those of prompt, longest response and end.
    let (model, tokens) = (folder.name("model"), |found: &Value| found["lengths"]["row_tokens"]["max"].as_u64());
    let limited = |file: &str, limit: u64| {
        larpo(&["inspect", file, "--tokenizer", &model, "--max_length", &limit.to_string()]).expect("inspects")
    };
    let longest = tokens(&found).expect("a length");
    assert_eq!(limited(&file, longest)["too_long"]["rows"], json!(0));
    assert_eq!(limited(&file, longest - 1)["too_long"]["rows"], json!(1));
    let all = &limited(&file, 2)["too_long"];
    assert_eq!((&all["rows"], &all["without_room_for_a_prompt"]), (&json!(6), &json!(6)));
    assert!(larpo(&["inspect", &file, "--max_length", "9"]).is_err(), "lengths are in tokens");
    // 26 letters without BOS: windows of 10 that overlap by one token.
    let letters = folder.file("letters.txt", "abcdefghijklmnopqrstuvwxyz");
    let windows = &limited(&letters, 10)["windows"];
    assert_eq!((&windows["count"], &windows["last"]), (&json!(3), &json!(8)));
    let error = larpo(&["inspect", &file, "--lines", "2,70"]).expect_err("no such line");
    assert!(error.contains("pairs.jsonl:70:"), "{error}");
    let repeated = json!({ "prompt": "p", "responses": ["a", "a", "b"], "rewards": [1, 1, 1] });
    let lists = folder.rows("lists.jsonl", &[repeated.clone(), repeated, json!({ "prompt": "q" })]);
    let skip = ["--on_bad_row", "skip"];
    let found = larpo(&[&["inspect", &lists][..], &skip].concat()).expect("inspects");
    assert_eq!(counts(&found), (3, 2, json!({ "malformed `responses`": 1 })));
    assert_eq!((&found["duplicates"]["prompts"], &found["duplicates"]["responses"]), (&json!(1), &json!(2)));
    assert_eq!(found["ranking"]["all_equal"], json!(2));
    let both = folder.rows("both.jsonl", &[json!({ "prompt": "p", "completion": "c", "responses": ["a"] })]);
    let error = larpo(&["inspect", &both]).expect_err("ambiguous");
    assert!(error.contains("--dataset_schema prompt_completion or --dataset_schema ranked_list"), "{error}");
    let text = folder.file("text.txt", "abc\ndéf");
    let found = larpo(&["inspect", &text, "--tokenizer", &folder.name("model")]).expect_err("no é in the vocabulary");
    assert!(found.contains("no token for the character 'é'"), "{found}");
    assert_eq!(larpo(&["inspect", &text]).expect("inspects")["lines"], json!(2));
}

#[test]
fn inspect_tells_the_story_of_a_run() {
    let folder = with_model("story");
    let prompts: Vec<Value> = (0..6).map(|i| json!({ "prompt": format!("{i}+1=") })).collect();
    let file = folder.rows("prompts.jsonl", &prompts);
    let sizes = ["--iterations", "2", "--prompts_per_iteration", "4", "--k", "4", "--max_new_tokens", "5"];
    run(&folder, "align", &file, &[&sizes[..], &["--reward_funcs", "length"]].concat()).expect("aligns");
    let out = folder.name("out");
    let told = larpo(&["inspect", &out]).expect("inspects");
    let iterations = told["iterations"].as_array().expect("a list");
    assert_eq!((iterations.len(), &told["notes"]), (2, &json!([])));
    assert_eq!(told["ended"], json!(["Finished: 2 iterations."]));
    for (i, iteration) in iterations.iter().enumerate() {
        assert_eq!((&iteration["iteration"], &iteration["finished"]), (&json!(i + 1), &json!(true)));
        let (told, seen) = (&iteration["report"]["mean_reward"], &iteration["candidates"]["mean_reward"]);
        let (told, seen) = (told.as_f64().expect("a number"), seen.as_f64().expect("a number"));
        assert!((told - seen).abs() < 1e-9, "{told} and {seen}");
    }
    // What is missing is named with what is lost by it, and is no edit.
    let second = folder.0.join("out/iteration-2");
    let (more, page) = (["align", "--output_dir", &out, "--iterations", "+1"], folder.0.join("out/report.html"));
    for (file, lost, goes_on) in [
        ("candidates.jsonl", "candidates.jsonl is missing: the samples of the iteration", false),
        ("candidates.checksum", "candidates.checksum is missing: nothing tells any more", false),
        ("model/model.safetensors", "model/model.safetensors is missing: the policy after the iteration is lost", true),
    ] {
        fs::rename(second.join(file), folder.0.join("away")).expect("renames");
        let told = larpo(&["inspect", &out]).expect("inspects");
        assert_eq!(told["notes"].as_array().map(Vec::len), Some(1), "{told}");
        assert!(told["notes"][0].as_str().is_some_and(|note| note.contains(&format!("iteration 2: {lost}"))), "{told}");
        assert_eq!(told["iterations"][1]["edited_rows"], json!({ "taken_up": 0, "since": 0 }));
        larpo(&["report", &out]).expect("reports");
        assert!(fs::read_to_string(&page).expect("a page").contains(lost), "{lost}");
        if !goes_on {
            let error = larpo(&more).expect_err("lost");
            assert!(error.contains(lost) && error.contains("restore"), "{error}");
        }
        fs::rename(folder.0.join("away"), second.join(file)).expect("renames");
    }
    // What is damaged is named as that. The log is for people only: the run goes on without it.
    let flip = |path: &Path| {
        let good = fs::read(path).expect("reads");
        let mut bad = good.clone();
        match good.iter().position(u8::is_ascii_digit) {
            Some(digit) => bad[digit] ^= 1,
            None => bad.push(b'\n'),
        }
        fs::write(path, bad).expect("writes");
        good
    };
    for (file, damage, goes_on) in [
        ("iteration-1/manifest.json", "manifest.json: its checksum does not fit", false),
        ("iteration-2/metrics.jsonl", "metrics.jsonl: it", true),
        ("iteration-2/candidates.checksum", "candidates.checksum is damaged", false),
        ("run.json", "run.json is damaged: its checksum does not fit", true),
    ] {
        let path = folder.0.join("out").join(file);
        let good = flip(&path);
        let told = larpo(&["inspect", &out]).expect("inspects");
        assert_eq!(told["notes"].as_array().map(Vec::len), Some(1), "{told}");
        assert!(told["notes"][0].as_str().is_some_and(|note| note.contains(damage)), "{told}");
        assert_eq!(told["iterations"][1]["edited_rows"], json!({ "taken_up": 0, "since": 0 }));
        larpo(&["report", &out]).expect("reports");
        assert!(fs::read_to_string(&page).expect("a page").contains(damage), "{damage}");
        if !goes_on {
            let error = larpo(&more).expect_err("damaged");
            assert!(error.contains(damage) && error.to_lowercase().contains("restore"), "{error}");
        }
        fs::write(&path, good).expect("writes");
    }
    fs::remove_file(&page).expect("removes");
    // Edited by hand, and cut off before its end.
    let rows = fs::read_to_string(second.join("candidates.jsonl")).expect("reads");
    let mut row: Value = serde_json::from_str(rows.lines().next().expect("a row")).expect("JSON");
    row["rewards"] = json!([100, 100, 100, 100]);
    fs::write(second.join("candidates.jsonl"), format!("{row}\n")).expect("writes");
    let notes = larpo(&["inspect", &out]).expect("inspects")["notes"].to_string();
    assert!(notes.contains("iteration 2: candidates.jsonl has changed"), "{notes}");
    fs::remove_file(second.join("manifest.json")).expect("removes");
    let notes = larpo(&["inspect", &out]).expect("inspects")["notes"].to_string();
    assert!(notes.contains("iteration 2 is not finished"), "{notes}");
    fs::write(second.join("manifest.json"), "{\n\"version\"").expect("writes");
    let notes = larpo(&["inspect", &out]).expect("inspects")["notes"].to_string();
    assert!(notes.contains("iteration 2: ") && notes.contains("manifest.json:2: "), "{notes}");
    // Two stories in one folder, one log, one data file, several, none.
    fs::write(folder.0.join("out/metrics.jsonl"), "{\"step\": 1, \"loss\": 0.5}\n{\"step\": 2}\n").expect("writes");
    assert!(larpo(&["inspect", &out]).expect_err("ambiguous").contains("more than one run"));
    for n in ["iteration-1", "iteration-2"] {
        fs::remove_dir_all(folder.0.join("out").join(n)).expect("removes");
    }
    assert_eq!(larpo(&["inspect", &out]).expect("inspects")["last"], json!({ "step": 2 }));
    fs::remove_file(folder.0.join("out/metrics.jsonl")).expect("removes");
    assert_eq!(larpo(&["inspect", &out]).expect("the record")["verb"], json!("align"));
    fs::remove_file(folder.0.join("out/run.json")).expect("removes");
    assert!(larpo(&["inspect", &out]).expect_err("a model alone").contains("neither iteration-<n>/"));
    fs::write(folder.0.join("out/a.csv"), "prompt\np\n").expect("writes");
    assert_eq!(larpo(&["inspect", &out]).expect("inspects")["schema"], json!("prompt_only"));
    fs::write(folder.0.join("out/b.txt.gz"), "").expect("writes");
    assert!(larpo(&["inspect", &out]).expect_err("two files").contains("a.csv, b.txt.gz"));
}

#[test]
fn a_text_that_cannot_be_encoded_is_named_by_file_line_and_field() {
    let folder = with_model("unknown");
    let good = |extra: Value| {
        let mut row = json!({ "prompt": "1+1=" });
        row.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        row
    };
    let completion = |text: &str| good(json!({ "completion": text }));
    let pair = |chosen: &str, rejected: &str| good(json!({ "chosen": chosen, "rejected": rejected }));
    let labelled = |text: &str, label: bool| good(json!({ "completion": text, "label": label }));
    let gsm8k = |question: &str, answer: &str| json!({ "question": question, "answer": answer });
    let cases = [
        ("sft", vec![completion("2"), completion("2Ω")], 2, "completion"),
        ("sft", vec![completion("2"), completion("3"), json!({ "prompt": "Ω", "completion": "2" })], 3, "prompt"),
        ("sft", vec![gsm8k("1", "#### 2"), gsm8k("1", "Ω #### 2")], 2, "answer"),
        ("align", vec![gsm8k("1Ω", "#### 2")], 1, "question"),
        ("train", vec![pair("1", "2"), pair("1", "Ω")], 2, "rejected"),
        // Two rows with one prompt make one list; the second row is the one to mend.
        ("train", vec![labelled("1", true), labelled("Ω", false)], 2, "completion"),
    ];
    for (i, (verb, rows, line, field)) in cases.into_iter().enumerate() {
        let file = folder.rows(&format!("rows-{i}.jsonl"), &rows);
        let error = run(&folder, verb, &file, &["--max_steps", "1"][..if verb == "align" { 0 } else { 2 }])
            .expect_err("no token for Ω");
        let place = format!("rows-{i}.jsonl:{line}: `{field}`: ");
        assert!(error.contains(&place) && error.contains("(U+03A9)"), "{place}: {error}");
    }
}

#[test]
fn what_contradicts_itself_is_refused_by_both_places_or_counted() {
    let folder = with_model("contradict");
    let row = |prompt: &str, completion: &str, label: bool| json!({ "prompt": prompt, "completion": completion, "label": label });
    let rows = [
        row("1+1=", "2", true),
        row("1+1=", "3", false),
        row("2+2=", "4", true),
        row("1+1=", "2", false),
        row("2+2=", "5", false),
        row("2+2=", "5", false),
    ];
    let file = folder.rows("labels.jsonl", &rows);
    let error = run(&folder, "train", &file, &[]).expect_err("2 is good and bad");
    let both = error.contains("labels.jsonl:4: `label` is false, and true in ")
        && error.contains("labels.jsonl:1 for the same");
    assert!(both && error.contains("--on_bad_row skip"), "{error}");
    assert!(run(&folder, "sft", &file, &[]).expect_err("learned").contains("labels.jsonl:4: `label`"));
    let skip = ["--on_bad_row", "skip", "--max_steps", "1"];
    let told = larpo(&["inspect", &file]).expect("inspects");
    assert_eq!((told["refused"]["line"].as_u64(), told["data"]["used"].as_u64()), (Some(4), Some(4)), "{told}");
    assert_eq!(told["data"]["left_out"], json!({ "contradictory labels": 2 }));
    let result = run(&folder, "train", &file, &skip).expect("trains");
    // What is left of the first prompt is one response.
    let reasons = json!({ "contradictory labels": 2, "fewer than two different responses": 1 });
    assert_eq!(counts(&result), (6, 3, reasons));
    let found = larpo(&["inspect", &file]).expect("inspects");
    let duplicates = &found["duplicates"];
    assert_eq!((&duplicates["contradictory"], &duplicates["responses_of_earlier_rows"]), (&json!(1), &json!(2)));

    let list =
        |responses: Value, rewards: Value| json!({ "prompt": "1+1=", "responses": responses, "rewards": rewards });
    let lists = [list(json!(["2", "3"]), json!([1, 0])), list(json!(["2", "3", "2"]), json!([1, 0, 0.5]))];
    let file = folder.rows("lists.jsonl", &lists);
    let error = run(&folder, "train", &file, &[]).expect_err("two rewards");
    assert!(
        error.contains("lists.jsonl:2: `rewards[2]` is 0.5, and `rewards[0]` in ") && error.contains(" is 1 "),
        "{error}"
    );
    let result = run(&folder, "train", &file, &skip).expect("trains");
    assert_eq!(counts(&result), (2, 1, json!({ "contradictory rewards": 1 })));
    let found = larpo(&["inspect", &file]).expect("inspects");
    let duplicates = &found["duplicates"];
    assert_eq!((&duplicates["contradictory"], &duplicates["responses_of_earlier_rows"]), (&json!(1), &json!(3)));
}

#[test]
fn rows_that_cannot_be_encoded_or_teach_nothing_are_named_reasons() {
    let folder = with_model("reasons");
    let skip = ["--on_bad_row", "skip", "--max_steps", "1"];
    let unencoded = "text that the tokenizer cannot encode";
    let done = |verb: &str, rows: &[Value]| {
        let file = folder.rows("rows.jsonl", rows);
        let extra = if verb == "align" {
            &["--on_bad_row", "skip", "--iterations", "1", "--k", "2", "--max_new_tokens", "3"][..]
        } else {
            &skip
        };
        counts(&run(&folder, verb, &file, extra).expect(verb))
    };
    let row = |prompt: &str, completion: &str| json!({ "prompt": prompt, "completion": completion });
    let rows = [row("1+1=", "2"), row("1+1=", "Ω"), row("Ω", "2"), row("", "")];
    assert_eq!(done("sft", &rows), (4, 1, json!({ unencoded: 2, "nothing to learn": 1 })));
    // The completion that cannot be encoded is no part of a prompt.
    let left_out = json!({ unencoded: 1, "empty prompt": 1 });
    assert_eq!(done("align", &[row("1+1=", "2"), row("1+2=", "Ω"), row("Ω", "2"), row("", "2")]), (4, 2, left_out));
    let pair = |chosen: &str, rejected: &str| json!({ "prompt": "1+1=", "chosen": chosen, "rejected": rejected });
    let rows = [pair("2", "3"), pair("2", "Ω"), pair("2", "2")];
    assert_eq!(done("train", &rows), (3, 1, json!({ unencoded: 1, "fewer than two different responses": 1 })));
    let label = |completion: &str, label: bool| json!({ "prompt": "1+1=", "completion": completion, "label": label });
    assert_eq!(
        done("train", &[label("2", true), label("Ω", false), label("3", false)]),
        (3, 2, json!({ unencoded: 1 }))
    );
    let list =
        |responses: Value, rewards: Value| json!({ "prompt": "1+1=", "responses": responses, "rewards": rewards });
    let mut foreign = list(json!(["2", "3"]), json!([1, 0]));
    foreign["token_ids"] = json!([[1], [9999]]);
    let rows = [
        list(json!(["2", "3"]), json!([1, 0])),
        list(json!(["2", "Ω"]), json!([1, 0])),
        list(json!(["2"]), json!([1])),
        foreign,
    ];
    let unknown = "token ids that the tokenizer does not have";
    let reasons = json!({ unencoded: 1, unknown: 1, "fewer than two different responses": 1 });
    assert_eq!(done("train", &rows), (4, 1, reasons));
    let unscored = json!({ "prompt": "1+1=", "responses": ["2", "3"] });
    let reasons = json!({ "no rewards and no ranks": 1 });
    assert_eq!(done("train", &[rows[0].clone(), unscored]), (2, 1, reasons));
    // Where none is left the reasons are told with their first rows, and what mends them, not what does not.
    let mut odd = list(json!(["2", "3"]), json!([1, 0]));
    odd["finish_reason"] = json!(["stop", "end"]);
    let bad = [rows[1].clone(), odd, list(json!(["2", "2"]), json!([1, 0])), rows[3].clone()];
    let file = folder.rows("rows.jsonl", &bad);
    let error = run(&folder, "train", &file, &skip).expect_err("nothing is left");
    for (reason, line) in [(unencoded, 1), ("malformed `finish_reason`", 2), ("contradictory rewards", 3), (unknown, 4)]
    {
        let told = format!("1 left out ({reason}), the first in {file}:{line}");
        assert!(error.contains(&told), "{told}: {error}");
    }
    assert!(error.contains("remove `token_ids`") && !error.contains("--max_length"), "{error}");
    // Refused, the ids are named by their field.
    let file = folder.rows("rows.jsonl", &rows);
    let error = run(&folder, "train", &file, &[]).expect_err("Ω");
    assert!(error.contains("rows.jsonl:2: `responses[1]`: ") && error.contains("--on_bad_row skip"), "{error}");
    let file = folder.rows("rows.jsonl", &rows[3..]);
    let error = run(&folder, "train", &file, &[]).expect_err("an id of another tokenizer");
    assert!(error.contains("rows.jsonl:1: `token_ids[1]`: token id 9999") && error.contains("encoded anew"), "{error}");
    let found = larpo(&[
        "inspect",
        &folder.rows("rows.jsonl", &rows[..3]),
        "--on_bad_row",
        "skip",
        "--tokenizer",
        &folder.name("model"),
    ]);
    let found = found.expect("inspects");
    assert_eq!((&found["not_encoded"], &found["ranking"]["too_short"]), (&json!(1), &json!(1)));
}

#[test]
fn small_things_are_said_well() {
    let folder = with_model("said");
    let table = folder.file("labels.csv", "prompt,completion,label\n1+1=,2,true\n1+1=,3,\"'false'\"\n");
    let error = run(&folder, "train", &table, &[]).expect_err("no truth value");
    assert!(error.contains("labels.csv:3: field `label`") && error.contains("in the column `label`"), "{error}");
    let config = folder.file("c.yaml", "beta: 0.1\n");
    let error = larpo(&["inspect", &config]).expect_err("no data");
    assert!(error.contains("flags for --config") && error.contains("larpo config VERB"), "{error}");
    // What a run would refuse, its plan refuses.
    let rows = folder.rows("rows.jsonl", &[json!({ "prompt": "1+1=", "completion": "2" })]);
    let model = folder.name("model");
    let words =
        ["--model_name_or_path", &model, "--dataset_name", &rows, "--output_dir", &model, "--overwrite_output_dir"];
    for about in [&["sft"][..], &["plan", "sft"]] {
        let error = larpo(&[about, &words].concat()).expect_err("replaces its model");
        assert!(error.contains("which this run starts from"), "{error}");
    }
    // A weight under which a reward is no number any more.
    let prompts = folder.rows("prompts.jsonl", &[json!({ "prompt": "1+1=" })]);
    let heavy = [
        "--reward_funcs",
        "length",
        "--reward_weights",
        "1e308",
        "--iterations",
        "1",
        "--k",
        "2",
        "--max_new_tokens",
        "20",
    ];
    let error = run(&folder, "align", &prompts, &heavy).expect_err("infinite");
    assert!(error.contains("--reward_weights") && !error.contains("learning rate"), "{error}");
}
