//! A run of `align`, `sft` or `train` that is killed (SIGKILL) at random instants and gone on with by the same command ends
//! with the same files, byte for byte, as one that was left alone. `sample` and `rank` start again: they leave their file
//! whole or not at all.
//!
//! `LARPO_KILLS=200 cargo test --release -p larpo-cli --test kill -- --nocapture` is the long form: so many kills of `align`,
//! by turns on one and on two threads, and a quarter of it of each other verb. `LARPO_KILL_SEED` sets the seed of the
//! instants. The short form, on one thread, runs with every `cargo test`.

mod common;
use common::{Folder, align, assert_same, larpo, larpo_with, results, sft, start, succeeds, tiny};
use larpo_core::rng::{CounterRng, Purpose};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const SHORT: u32 = 10;
/// Prompts of an iteration, and of a batch of this tiny model: 512 responses of 16 to a prompt.
const PROMPTS: usize = 120;
const BATCH: usize = 32;
/// What a run says of candidates that it found drawn and not yet ranked.
const KEPT: &str = "which were drawn before the run was interrupted";

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// What the folder shows of the stage that a kill met.
fn stage(out: &Path) -> String {
    let has = |name: String| out.join(name).exists();
    let iteration = (1..=9).rev().find(|n| has(format!("iteration-{n}"))).unwrap_or(0);
    let inside = |name: &str| has(format!("iteration-{iteration}/{name}"));
    let what = match () {
        () if iteration == 0 => "before the first iteration",
        () if inside("manifest.json") => "after",
        () if inside("model") => "model written",
        () if fs::read_dir(out.join(format!("iteration-{iteration}"))).is_ok_and(|mut e| {
            e.any(|e| e.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("checkpoint-")))
        }) =>
        {
            "training, with a checkpoint"
        }
        () if inside("metrics.jsonl") => "training",
        () if inside("candidates.checksum") => "ranked",
        () if inside("candidates.partial.jsonl") => "sampling, with whole batches",
        () => "sampling",
    };
    let writing = [out.to_path_buf(), out.join(format!("iteration-{iteration}"))].into_iter().any(|folder| {
        let mut entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        entries.any(|entry| entry.file_name().to_string_lossy().ends_with(".tmp"))
    });
    format!("iteration {iteration}: {what}{}", if writing { ", in the middle of a file or folder" } else { "" })
}

/// Prompts of the present iteration whose samples are whole and not yet ranked, with the iteration; the run must not draw
/// them again.
fn sampled(out: &Path) -> Option<(u32, usize)> {
    let folder = |n: u32| out.join(format!("iteration-{n}"));
    let iteration = (1..=9).rev().find(|&n| folder(n).exists())?;
    if folder(iteration).join("candidates.checksum").exists() {
        return None;
    }
    let text = fs::read(folder(iteration).join("candidates.partial.jsonl")).ok()?;
    let lines = text.iter().filter(|&&b| b == b'\n').count();
    let whole = if lines == PROMPTS { lines } else { lines - lines % BATCH };
    (whole > 0).then_some((iteration, whole))
}

/// The run that went on from `before` drew none of those samples again, by its own account. How many it kept; 0 where it was
/// killed before it came to them.
fn check_kept(before: Option<(u32, usize)>, log: &str, ended: bool) -> usize {
    let Some((iteration, prompts)) = before else {
        assert!(!log.contains(KEPT), "{log}");
        return 0;
    };
    let said =
        format!("iteration {iteration}/2: sample: kept the candidates of {prompts} of {PROMPTS} prompts, {KEPT}");
    match log.contains(KEPT) || ended {
        true => {
            assert!(log.contains(&said), "{said}: {log}");
            prompts
        }
        false => 0,
    }
}

#[test]
fn killed_runs_end_as_if_nothing_had_happened() {
    let (kills, seed) = (number("LARPO_KILLS", SHORT.into()) as u32, number("LARPO_KILL_SEED", 1));
    let folder = Folder::new("kill");
    let (data, model) = tiny(&folder);
    let words = |out: &str| {
        let words = align(&data, &model, out, &["--resume_from_checkpoint", "latest"]);
        words.into_iter().map(String::from).collect::<Vec<_>>()
    };
    let run = |threads: u32, out: &str| {
        let words = words(out);
        larpo_with(threads, &words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let most_threads = if kills > SHORT { 2 } else { 1 };
    let begin = Instant::now();
    let alone: Vec<_> = (1..=most_threads)
        .map(|threads| {
            let out = folder.path(&format!("alone-{threads}"));
            succeeds(&mut run(threads, &out.display().to_string()));
            results(&out)
        })
        .collect();
    let whole = begin.elapsed() / most_threads;
    let expected = &alone[0];
    assert!(expected.iter().any(|(name, _)| name == "iteration-2/metrics.jsonl"), "the run trains");

    let random = CounterRng::new(seed, Purpose::Bench);
    let (mut killed, mut runs, mut drawn, mut kept) = (0, 0, 0, 0);
    let mut stages: BTreeMap<String, u32> = BTreeMap::new();
    while killed < kills {
        let threads = 1 + runs % most_threads;
        runs += 1;
        let out = folder.path(&format!("run-{runs}"));
        let name = out.display().to_string();
        let log = folder.path("log");
        // The first part of a run is killed, and up to two of those that go on with it.
        for part in 0..3 {
            drawn += 1;
            let instant = whole.mul_f64(random.uniform([runs, part, 0, 0]));
            let before = sampled(&out);
            let mut child = start(&mut run(threads, &name), &log);
            std::thread::sleep(instant);
            let ended = child.try_wait().expect("a child").is_some();
            child.kill().expect("kills");
            child.wait().expect("a child");
            kept += check_kept(before, &fs::read_to_string(&log).expect("reads"), ended);
            if ended {
                break;
            }
            killed += 1;
            *stages.entry(stage(&out)).or_default() += 1;
        }
        let before = sampled(&out);
        let output = succeeds(&mut run(threads, &name));
        kept += check_kept(before, &String::from_utf8_lossy(&output.stderr), true);
        assert_same(
            &alone[threads as usize - 1],
            &results(&out),
            &format!("seed {seed}, run {runs}, {threads} threads"),
        );
        let leftovers = fs::read_dir(&out).expect("a folder").filter_map(Result::ok);
        let leftovers: Vec<_> = leftovers.filter(|e| e.file_name().to_string_lossy().ends_with(".tmp")).collect();
        assert!(leftovers.is_empty(), "{leftovers:?}");
        fs::remove_dir_all(&out).expect("removes");
    }
    println!(
        "{killed} kills ({drawn} instants drawn, seed {seed}) in {runs} runs, each ended bit-equal to the run left alone \
         ({:.2} s). Samples of {kept} prompts were met whole and unranked, and kept. What the kills met:",
        whole.as_secs_f64()
    );
    stages.iter().for_each(|(stage, count)| println!("{count:4}  {stage}"));
}

/// Kills of another verb than `align`.
fn kills() -> u32 {
    4.max(number("LARPO_KILLS", SHORT.into()) as u32 / 4)
}

/// Kills runs of `command`, given the folder that it writes to, at random instants, one run after the other; `check` gets each
/// folder, with what a run that is left alone leaves there.
fn kill(name: &str, command: impl Fn(&str) -> Command, check: impl Fn(&Path, &[(String, Vec<u8>)])) {
    let folder = Folder::new(&format!("kill-{name}"));
    let out = folder.path("alone");
    let begin = Instant::now();
    succeeds(&mut command(&out.display().to_string()));
    let whole = begin.elapsed();
    let expected = results(&out);
    let random = CounterRng::new(number("LARPO_KILL_SEED", 2), Purpose::Bench);
    let (mut killed, mut run) = (0, 0);
    while killed < kills() {
        run += 1;
        let out = folder.path(&format!("run-{run}"));
        let mut child = start(&mut command(&out.display().to_string()), &folder.path("log"));
        std::thread::sleep(whole.mul_f64(random.uniform([run, 0, 0, 0])));
        killed += u32::from(child.try_wait().expect("a child").is_none());
        child.kill().expect("kills");
        child.wait().expect("a child");
        check(&out, &expected);
        succeeds(&mut command(&out.display().to_string()));
        assert_same(&expected, &results(&out), &format!("{name}, run {run}"));
        fs::remove_dir_all(&out).expect("removes");
    }
    println!("{name}: {killed} kills in {run} runs");
}

#[test]
fn a_killed_fine_tuning_ends_as_if_nothing_had_happened() {
    let folder = Folder::new("kill-data");
    let (data, _) = tiny(&folder);
    let extra = ["--max_steps", "60", "--save_steps", "4", "--eval_steps", "7", "--resume_from_checkpoint", "latest"];
    kill("sft", |out| larpo(&sft(&data, out, &extra)), |_, _| {});
}

#[test]
fn killed_training_on_lists_ends_as_if_nothing_had_happened() {
    let folder = Folder::new("kill-lists");
    let (_, model) = tiny(&folder);
    let row = |a: u32| {
        let responses = [a + 1, a, 3].map(|n| format!("#### {n}"));
        json!({ "prompt": format!("{a}+1\n"), "responses": responses, "rewards": [1.0, 0.5, 0.0] })
    };
    let data = folder.rows("lists.jsonl", &(4..36).map(row).collect::<Vec<_>>());
    let train = |out: &str| {
        let words = ["train", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", out];
        let rest = ["--num_train_epochs", "10", "--save_steps", "3", "--loss_type", "listmle"];
        larpo(&[&words[..], &rest, &["--resume_from_checkpoint", "latest"]].concat())
    };
    kill("train", train, |_, _| {});
}

#[test]
fn a_killed_sample_or_rank_leaves_its_file_whole_or_not_at_all() {
    let folder = Folder::new("kill-sample-data");
    let (data, model) = tiny(&folder);
    let whole_or_not = |out: &Path, expected: &[(String, Vec<u8>)]| {
        let (name, bytes) = &expected[0];
        let found = fs::read(out.join(name));
        assert!(found.is_err() || found.is_ok_and(|found| found == *bytes), "{name} is half-written");
    };
    let sample = |out: &str| {
        let words = ["sample", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", out];
        larpo(&[&words[..], &["--overwrite_output_dir", "--k", "8", "--max_new_tokens", "8"]].concat())
    };
    kill("sample", sample, whole_or_not);
    let drawn = folder.name("drawn");
    succeeds(&mut sample(&drawn));
    let candidates = folder.name("drawn/candidates.jsonl");
    let rank = |out: &str| larpo(&["rank", &candidates, "--output_dir", out, "--overwrite_output_dir"]);
    kill("rank", rank, whole_or_not);
}
