//! A run of `align` that is killed (SIGKILL) at random instants and gone on with by the same command ends with the same
//! files, byte for byte, as one that was left alone.
//!
//! `LARPO_KILLS=200 cargo test --release -p larpo-cli --test kill -- --nocapture` is the long form; `LARPO_KILL_SEED` sets
//! the seed of the instants. The short form runs with every `cargo test`.

mod process;
use larpo_core::rng::{CounterRng, Purpose};
use process::{Folder, align, assert_same, larpo, results, sft, start, succeeds, tiny};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const SHORT: u32 = 10;
/// Prompts of an iteration, and of a batch of this tiny model: 512 responses of 16 to a prompt.
const PROMPTS: usize = 120;
const BATCH: usize = 32;

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
        assert!(!log.contains("were sampled before"), "{log}");
        return 0;
    };
    let said = format!("iteration {iteration}/2: sample: {prompts} of {PROMPTS} prompts were sampled before");
    match log.contains("were sampled before") || ended {
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
    let out = folder.path("alone").display().to_string();
    let words = |out: &str| {
        let words = align(&data, &model, out, &["--resume_from_checkpoint", "latest"]);
        words.into_iter().map(String::from).collect::<Vec<_>>()
    };
    let run = |out: &str| {
        let words = words(out);
        larpo(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let begin = Instant::now();
    succeeds(&mut run(&out));
    let whole = begin.elapsed();
    let expected = results(Path::new(&out));
    assert!(expected.iter().any(|(name, _)| name == "iteration-2/metrics.jsonl"), "the run trains");

    let random = CounterRng::new(seed, Purpose::Bench);
    let (mut killed, mut runs, mut drawn, mut kept) = (0, 0, 0, 0);
    let mut stages: BTreeMap<String, u32> = BTreeMap::new();
    while killed < kills {
        runs += 1;
        let out = folder.path(&format!("run-{runs}"));
        let name = out.display().to_string();
        let log = folder.path("log");
        // The first part of a run is killed, and up to two of those that go on with it.
        for part in 0..3 {
            drawn += 1;
            let instant = whole.mul_f64(random.uniform([runs, part, 0, 0]));
            let before = sampled(&out);
            let mut child = start(&mut run(&name), &log);
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
        let output = succeeds(&mut run(&name));
        kept += check_kept(before, &String::from_utf8_lossy(&output.stderr), true);
        assert_same(&expected, &results(&out), &format!("seed {seed}, run {runs}"));
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

#[test]
fn a_killed_fine_tuning_ends_as_if_nothing_had_happened() {
    let folder = Folder::new("kill-sft");
    let (data, _) = tiny(&folder);
    let extra = ["--max_steps", "60", "--save_steps", "4", "--eval_steps", "7", "--resume_from_checkpoint", "latest"];
    let out = folder.path("alone").display().to_string();
    let begin = Instant::now();
    succeeds(&mut larpo(&sft(&data, &out, &extra)));
    let whole = begin.elapsed();
    let expected = results(Path::new(&out));
    let random = CounterRng::new(2, Purpose::Bench);
    let (mut killed, mut run) = (0, 0);
    while killed < 4 {
        run += 1;
        let out = folder.path(&format!("run-{run}"));
        let name = out.display().to_string();
        let mut child = start(&mut larpo(&sft(&data, &name, &extra)), &folder.path("log"));
        std::thread::sleep(Duration::max(whole.mul_f64(random.uniform([run, 0, 0, 0])), Duration::from_millis(1)));
        if child.try_wait().expect("a child").is_none() {
            child.kill().expect("kills");
            child.wait().expect("a child");
            killed += 1;
        }
        succeeds(&mut larpo(&sft(&data, &name, &extra)));
        assert_same(&expected, &results(&out), &format!("run {run}"));
    }
}
