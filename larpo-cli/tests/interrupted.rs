//! What can happen to a run but a kill: Ctrl-C, a second run in its folder, a full disk, a folder that cannot be written to,
//! damaged checkpoints, other flags, other data. Each ends in a named error, and the run goes on from its last checkpoint.
#![cfg(unix)]

mod common;
use common::*;
use larpo_cli::checkpoint;
use larpo_cli::resume::{self, ResumeFrom, align_point};
use larpo_cli::run_record::RunRecord;
use larpo_core::rng::{CounterRng, Purpose};
use larpo_data::checksums;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

const LATEST: [&str; 2] = ["--resume_from_checkpoint", "latest"];

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().expect("kill starts");
    assert!(sent.success());
}

fn words<'a>(base: Vec<&'a str>, extra: &[&'a str]) -> Vec<&'a str> {
    [base, extra.to_vec()].concat()
}

/// Waits until a checkpoint is in the folder and gives its name.
fn first_checkpoint(folder: &Path) -> PathBuf {
    let mut found = None;
    wait_for("a checkpoint", || {
        found = checkpoint::list(folder).expect("a folder").pop();
        found.is_some()
    });
    found.expect("waited for").1
}

/// A run of `align` left alone: its words without output folder, and what it leaves.
fn alone(folder: &Folder) -> (String, String, Vec<(String, Vec<u8>)>) {
    let (data, model) = tiny(folder);
    let out = folder.path("alone").display().to_string();
    succeeds(&mut larpo(&align(&data, &model, &out, &[])));
    (data, model, results(Path::new(&out)))
}

#[test]
fn ctrl_c_ends_at_a_safe_point_and_the_run_goes_on() {
    let folder = Folder::new("ctrl-c");
    let (data, model, expected) = alone(&folder);
    for (n, signal_name, part) in
        [(1, "INT", "candidates.partial.jsonl"), (2, "TERM", "metrics.jsonl"), (3, "INT", "checkpoint-5")]
    {
        let out = folder.path(&format!("out-{n}"));
        let (name, log) = (out.display().to_string(), folder.path("log"));
        let mut child = start(&mut larpo(&align(&data, &model, &name, &[])), &log);
        wait_for(part, || out.join("iteration-1").join(part).exists());
        signal(&child, signal_name);
        let status = child.wait().expect("a child");
        let text = fs::read_to_string(&log).expect("reads");
        assert_eq!(status.code(), Some(130), "{text}");
        assert!(text.contains("--resume_from_checkpoint latest goes on from there"), "{text}");
        assert!(text.contains("\nstopped as asked (") && !text.contains("error: "), "{text}");
        // Between updates a checkpoint is left, whether one was due or not.
        if text.contains("updates)") {
            let (_, newest) = checkpoint::list(&out.join("iteration-1")).expect("a folder").remove(0);
            checksums::verify(newest).expect("whole");
        }
        succeeds(&mut larpo(&align(&data, &model, &name, &LATEST)));
        assert_same(&expected, &results(&out), part);
    }
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    let folder = Folder::new("ctrl-c-twice");
    let (data, _) = tiny(&folder);
    let (out, log) = (folder.path("out"), folder.path("log"));
    let name = out.display().to_string();
    // One update over thousands of rows: the next safe point is far away.
    let slow = ["--per_device_train_batch_size", "4000000", "--max_steps", "1", "--num_train_epochs", "1"];
    let rows = fs::read_to_string(&data).expect("reads").repeat(600);
    let many = folder.path("many.jsonl");
    fs::write(&many, rows).expect("writes");
    let many = many.display().to_string();
    let mut child = start(&mut larpo(&sft(&many, &name, &slow)), &log);
    wait_for("the record", || out.join("metrics.jsonl").exists());
    signal(&child, "INT");
    wait_for("the first answer", || fs::read_to_string(&log).expect("reads").contains("once more"));
    assert!(child.try_wait().expect("a child").is_none(), "it is still at its update");
    signal(&child, "INT");
    assert_eq!(child.wait().expect("a child").code(), Some(130));
    assert!(!out.join("model.safetensors").exists());
}

#[test]
fn a_hang_up_that_nohup_ignores_does_not_end_the_run() {
    let folder = Folder::new("hang-up");
    let (data, model, expected) = alone(&folder);
    let out = folder.path("out");
    let name = out.display().to_string();
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_larpo")]);
    command.args(align(&data, &model, &name, &["--threads", "1"]));
    let mut child = start(&mut command, &folder.path("log"));
    wait_for("samples", || out.join("iteration-1/candidates.partial.jsonl").exists());
    signal(&child, "HUP");
    assert!(child.wait().expect("a child").success());
    assert_same(&expected, &results(&out), "after a hang-up");
}

#[test]
fn two_runs_cannot_share_a_folder_and_the_lock_ends_with_the_process() {
    let folder = Folder::new("lock");
    let (data, model, expected) = alone(&folder);
    let out = folder.path("out");
    let name = out.display().to_string();
    let mut first = start(&mut larpo(&align(&data, &model, &name, &[])), &folder.path("log"));
    wait_for("the record", || out.join("run.json").exists());
    signal(&first, "STOP");
    for extra in [&LATEST[..], &["--overwrite_output_dir"]] {
        let error = fails(&mut larpo(&align(&data, &model, &name, extra)));
        assert!(error.contains(&format!("another run (process {})", first.id())) && error.contains(&name), "{error}");
    }
    // Nor from below.
    let below = out.join("iteration-1/mine").display().to_string();
    let sample =
        ["sample", "--model_name_or_path", &model, "--dataset_name", &data, "--k", "1", "--output_dir", &below];
    for mut inside in [larpo(&sft(&data, &below, &["--max_steps", "1"])), larpo(&sample)] {
        let error = fails(&mut inside);
        assert!(error.contains(&format!("another run (process {}) is at work in ", first.id())), "{error}");
        assert!(error.contains(&format!("{below} belongs to it")) && !Path::new(&below).exists(), "{error}");
    }
    let process = first.id();
    let inspect = |at_work: bool| {
        let output = larpo(&["inspect", &name]).output().expect("runs");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(told.contains(&format!("A run (process {process}) is at work")), at_work, "{told}");
    };
    inspect(true);
    signal(&first, "KILL");
    first.wait().expect("a child");
    inspect(false);
    // Nothing is cleared away by hand.
    succeeds(&mut larpo(&align(&data, &model, &name, &LATEST)));
    assert_same(&expected, &results(&out), "after the lock's holder was killed");
}

/// Runs on a small tmpfs. False where mounting is not allowed.
fn mount(path: &Path, options: &str) -> bool {
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path);
    command.output().is_ok_and(|output| output.status.success())
}

/// Takes the mount away at the end of the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_named_and_the_run_goes_on_when_there_is_room() {
    let folder = Folder::new("full");
    let (data, model, expected) = alone(&folder);
    let disk = folder.path("disk");
    fs::create_dir(&disk).expect("creates");
    if !mount(&disk, "size=100k") {
        println!("mounting is not allowed here: only the limit on the size of a file was tested");
        return;
    }
    let mounted = Mounted(disk.clone());
    let out = disk.join("out");
    let name = out.display().to_string();
    let mut stops = std::collections::BTreeSet::new();
    let mut failures = 0;
    // Ever more room: each run goes on until the disk is full again.
    for kilobytes in (100..).step_by(60) {
        assert!(kilobytes < 20_000, "the run never fits");
        let resized = Command::new("mount").args(["-o", &format!("remount,size={kilobytes}k")]).arg(&disk).status();
        assert!(resized.expect("mount starts").success());
        let output = larpo(&align(&data, &model, &name, &LATEST)).output().expect("larpo starts");
        if output.status.success() {
            break;
        }
        failures += 1;
        let error = String::from_utf8_lossy(&output.stderr);
        let line = error.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert!(line.contains("No space left on device") && line.contains(&name), "{error}");
        let mend = error.lines().last().unwrap_or_default();
        assert!(mend.contains("The disk is full") && mend.contains("--resume_from_checkpoint latest"), "{error}");
        stops.insert(
            line.rsplit('/').next().unwrap_or_default().split([':', ' ']).next().unwrap_or_default().to_string(),
        );
        // Whatever has a name is whole.
        for iteration in ["iteration-1", "iteration-2"] {
            for (_, path) in checkpoint::list(&out.join(iteration)).expect("a folder") {
                checksums::verify(&path).expect("whole");
            }
        }
    }
    println!("{failures} times out of room, at {stops:?}");
    assert!(failures >= 3, "the disk was small enough to be full");
    assert_same(&expected, &results(&out), "after a full disk");
    drop(mounted);
}

/// The same without a mount: writing fails once a file has so many bytes.
#[test]
fn a_write_that_fails_after_some_bytes_is_named() {
    let folder = Folder::new("limit");
    let (data, model, expected) = alone(&folder);
    let out = folder.path("out");
    let name = out.display().to_string();
    // Blocks of 512 bytes; the signal that would end the process is ignored, so that the write reports an error.
    for (blocks, file) in [(2, "run.json"), (16, "candidates.partial.jsonl"), (60, "candidates.partial.jsonl")] {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\""), "sh"]);
        command.arg(env!("CARGO_BIN_EXE_larpo")).args(align(&data, &model, &name, &LATEST)).args(["--threads", "1"]);
        let error = fails(&mut command);
        assert!(error.contains("File too large") && error.contains(file), "{blocks} blocks: {error}");
    }
    succeeds(&mut larpo(&align(&data, &model, &name, &LATEST)));
    assert_same(&expected, &results(&out), "after writes that failed");
}

#[test]
fn a_folder_that_cannot_be_written_to_is_named_and_left_alone() {
    let folder = Folder::new("read-only");
    let (data, model, expected) = alone(&folder);
    let out = folder.path("out");
    let name = out.display().to_string();
    let mut child = start(&mut larpo(&align(&data, &model, &name, &[])), &folder.path("log"));
    let checkpoint = first_checkpoint(&out.join("iteration-1"));
    child.kill().expect("kills");
    child.wait().expect("a child");
    fs::set_permissions(&out, fs::Permissions::from_mode(0o555)).expect("a mode");
    let mut command = larpo(&align(&data, &model, &name, &LATEST));
    // Permissions do not bind root: nobody runs it then.
    if fs::write(out.join("probe"), "").is_ok() {
        fs::remove_file(out.join("probe")).expect("removes");
        command.uid(65534).gid(65534);
    }
    let error = fails(&mut command);
    assert!(error.contains("Permission denied") && error.contains(&name), "{error}");
    let newest = checkpoint::list(&out.join("iteration-1")).expect("a folder").remove(0).1;
    assert!(newest >= checkpoint, "still there");
    checksums::verify(newest).expect("whole");
    fs::set_permissions(&out, fs::Permissions::from_mode(0o755)).expect("a mode");
    succeeds(&mut larpo(&align(&data, &model, &name, &LATEST)));
    assert_same(&expected, &results(&out), "writable again");
}

/// The files of a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    files
}

/// Takes the mark of a finished run away, as if it had been killed at the end.
fn unfinish(out: &Path) {
    let mut record = RunRecord::read(out).expect("reads").expect("a run");
    record.result.take().expect("was finished");
    record.write(out).expect("writes");
}

#[test]
fn a_damaged_log_is_named_and_a_damaged_record_restored() {
    let folder = Folder::new("log-and-record");
    let (data, _) = tiny(&folder);
    let out = folder.path("out");
    let name = out.display().to_string();
    let words = words(sft(&data, &name, &["--max_steps", "12", "--save_steps", "4"]), &LATEST);
    succeeds(&mut larpo(&words));
    let expected = results(&out);
    let (log, record) = (out.join("metrics.jsonl"), out.join("run.json"));
    unfinish(&out);
    // Two lines become one, which is none: neither it nor what follows it is dropped.
    let good = fs::read(&log).expect("reads");
    let mut bad = good.clone();
    let end = bad.iter().position(|&b| b == b'\n').expect("a line");
    bad[end] ^= 1;
    fs::write(&log, &bad).expect("writes");
    let error = fails(&mut larpo(&words));
    assert!(error.contains("metrics.jsonl is damaged") && error.contains("line 1 is no JSON object"), "{error}");
    assert_eq!(fs::read(&log).expect("reads"), bad);
    // Moved away as it is told, the run goes on.
    fs::remove_file(&log).expect("removes");
    let text = String::from_utf8_lossy(&succeeds(&mut larpo(&words)).stderr).into_owned();
    assert!(text.contains("metrics.jsonl is missing: the log begins after update 12"), "{text}");
    assert_eq!(fs::read(out.join("model.safetensors")).expect("reads"), {
        let model = expected.iter().find(|(name, _)| name == "model.safetensors");
        model.expect("a model").1.clone()
    });
    fs::write(&log, &good).expect("writes");
    // A record with a key that no flag has, cut off, or not there.
    let whole = fs::read_to_string(&record).expect("reads");
    for damage in [Some(whole.replacen("num_train_epochs", "num_trein_epochs", 1)), Some(whole[..40].into()), None] {
        match &damage {
            Some(text) => fs::write(&record, text).expect("writes"),
            None => fs::remove_file(&record).expect("removes"),
        }
        let text = String::from_utf8_lossy(&succeeds(&mut larpo(&words)).stderr).into_owned();
        let problem = if damage.is_some() { "run.json is damaged: " } else { "run.json is missing" };
        assert!(text.contains(problem) && text.contains("it is restored from"), "{text}");
        assert_same(&expected, &results(&out), problem);
        assert_eq!(RunRecord::find(&out).expect("whole").expect("there").1, None, "{problem}");
    }
    // A log that changed after the end is told.
    fs::write(&log, &bad).expect("writes");
    let told = succeeds(&mut larpo(&["report", &name]));
    let told = String::from_utf8_lossy(&told.stderr).into_owned() + &String::from_utf8_lossy(&told.stdout);
    let page = fs::read_to_string(out.join("report.html")).expect("a page");
    assert!(page.contains("metrics.jsonl is damaged: it is not what the run ended with"), "{told}");
}

#[test]
fn weights_put_in_place_of_the_finished_ones_are_kept() {
    let folder = Folder::new("replaced");
    let (data, _) = tiny(&folder);
    let out = folder.path("out");
    let name = out.display().to_string();
    let words = words(sft(&data, &name, &["--max_steps", "12", "--save_steps", "4"]), &LATEST);
    succeeds(&mut larpo(&words));
    let weights = out.join("model.safetensors");
    let written = fs::read(&weights).expect("reads");
    for n in [1, 2] {
        let mut own = written.clone();
        *own.last_mut().expect("bytes") ^= n;
        fs::write(&weights, &own).expect("writes");
        let text = String::from_utf8_lossy(&succeeds(&mut larpo(&words)).stderr).into_owned();
        let kept = out.join(format!("model.safetensors.replaced-{n}"));
        assert!(text.contains("warning: ") && text.contains(&kept.display().to_string()), "{text}");
        assert_eq!(fs::read(&kept).expect("kept"), own);
        assert_eq!(fs::read(&weights).expect("written again"), written);
    }
}

#[test]
fn every_flipped_byte_of_a_checkpoint_is_found_and_the_one_before_it_offered() {
    let folder = Folder::new("flip");
    let (data, _) = tiny(&folder);
    let out = folder.path("out");
    let name = out.display().to_string();
    let extra = ["--max_steps", "12", "--save_steps", "4", "--save_total_limit", "2"];
    succeeds(&mut larpo(&sft(&data, &name, &extra)));
    let steps: Vec<u64> = checkpoint::list(&out).expect("a folder").into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [12, 8], "older ones are rotated away");
    let expected = results(&out);
    unfinish(&out);
    let (newest, before) = (out.join("checkpoint-12"), out.join("checkpoint-8"));
    let refused = |file: &str, what: &str| {
        let named = ResumeFrom::Path(newest.clone());
        let error = resume::checkpoint(&out, &named).expect_err(what).to_string();
        assert!(error.contains(&newest.join(file).display().to_string()), "{what}: {error}");
        assert!(error.ends_with(&format!("--resume_from_checkpoint {}", before.display())), "{what}: {error}");
        let mut passed_over = Vec::new();
        let found = checkpoint::newest(&out, u64::MAX, |error| passed_over.push(error.to_string())).expect("a folder");
        assert_eq!((found, passed_over.len()), (Some(before.clone()), 1), "{what}");
    };
    let whole = || {
        let found = resume::checkpoint(&out, &ResumeFrom::Latest).expect("finds it").expect("finds it");
        assert_eq!(found.checkpoint, newest);
    };
    whole();
    let random = CounterRng::new(1, Purpose::Bench);
    let mut flips = 0;
    for (n, path) in files(&newest).iter().enumerate() {
        let file = path.file_name().expect("a name").to_string_lossy().into_owned();
        let good = fs::read(path).expect("reads");
        for i in 0..40 {
            let at = (random.uniform([n as u32, i, 0, 0]) * good.len() as f64) as usize;
            let mut bad = good.clone();
            bad[at] ^= 1 << (random.uniform([n as u32, i, 1, 0]) * 8.0) as u32;
            fs::write(path, &bad).expect("writes");
            // A change in the list itself is reported by the file whose entry it hits, or by the list.
            let named = if file == checksums::LIST { "" } else { &file };
            refused(named, &format!("{file}, byte {at}"));
            flips += 1;
        }
        for length in [0, good.len() / 2, good.len() - 1] {
            fs::write(path, &good[..length]).expect("writes");
            refused(if file == checksums::LIST { "" } else { &file }, &format!("{file} cut to {length}"));
        }
        fs::remove_file(path).expect("removes");
        refused(&file, &format!("{file} missing"));
        fs::write(path, &good).expect("writes");
        whole();
    }
    fs::write(newest.join("extra"), "").expect("writes");
    refused("extra", "a file too many");
    println!("{flips} flipped bytes, all found");
    // Both damaged: from the beginning. `latest` says so and ends with the same files.
    let output = succeeds(&mut larpo(&words(sft(&data, &name, &extra), &LATEST)));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("warning: ") && text.contains("extra") && text.contains("goes on from"), "{text}");
    assert_same(&expected, &results(&out), "from the one before");
    unfinish(&out);
    for (_, path) in checkpoint::list(&out).expect("a folder") {
        fs::write(path.join("trainer_state.bin"), "").expect("writes");
    }
    let error = fails(&mut larpo(&sft(
        &data,
        &name,
        &[&extra[..], &["--resume_from_checkpoint", &newest.display().to_string()]].concat(),
    )));
    assert!(error.contains("trainer_state.bin") && error.contains("None before it is whole"), "{error}");
    succeeds(&mut larpo(&words(sft(&data, &name, &extra), &LATEST)));
    assert_same(&expected, &results(&out), "from the beginning");
}

#[test]
fn training_on_lists_goes_on_too() {
    let folder = Folder::new("train");
    let (_, model) = tiny(&folder);
    let row = |a: u32| {
        let response = |n: u32| format!("#### {n}");
        let responses = [response(a + 1), response(a), response(3)];
        serde_json::json!({"prompt": format!("{a}+1\n"), "responses": responses, "rewards": [1.0, 0.5, 0.0]})
            .to_string()
    };
    let data = folder.path("lists.jsonl");
    fs::write(&data, (4..36).map(|a| row(a) + "\n").collect::<String>()).expect("writes");
    let (data, out) = (data.display().to_string(), folder.path("out"));
    let name = out.display().to_string();
    let base = ["train", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", &name];
    let settings = ["--num_train_epochs", "3", "--save_steps", "5", "--logging_steps", "2", "--loss_type", "listmle"];
    succeeds(&mut larpo(&[&base[..], &settings].concat()));
    let expected = results(&out);
    unfinish(&out);
    for step in [10, 5] {
        fs::remove_dir_all(out.join(format!("checkpoint-{step}"))).expect("removes");
        fs::remove_file(out.join("model.safetensors")).expect("removes");
        let output = succeeds(&mut larpo(&[&base[..], &settings, &LATEST].concat()));
        let text = String::from_utf8_lossy(&output.stderr);
        let goes_on = text.contains("goes on from") && text.contains("after 5 of 12 updates");
        assert_eq!(goes_on, step == 10, "{text}");
        assert_same(&expected, &results(&out), "train");
        unfinish(&out);
        fs::remove_dir_all(out.join("checkpoint-10")).expect("removes");
        if step == 10 {
            fs::create_dir(out.join("checkpoint-10")).expect("a damaged one");
        }
    }
}

#[test]
fn references_are_computed_for_what_the_steps_use_and_stop_when_asked() {
    let folder = Folder::new("references");
    let (_, model) = tiny(&folder);
    let row = |a: u32| {
        let responses = [format!("#### {}", a % 50 + 1), "#### 60".to_string()];
        serde_json::json!({"prompt": format!("{}+1\n", a % 50), "responses": responses, "rewards": [1.0, 0.0]})
    };
    let data = folder.rows("many.jsonl", &(0..20_000).map(row).collect::<Vec<_>>());
    let (out, log) = (folder.path("out"), folder.path("log"));
    let name = out.display().to_string();
    let base = ["train", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", &name];
    let few = ["--max_steps", "3", "--per_device_train_batch_size", "4"];
    let text = succeeds(&mut larpo(&[&base[..], &few].concat())).stderr;
    let text = String::from_utf8_lossy(&text);
    let told = text.lines().find(|line| line.contains("train: references: ")).expect("told").to_string();
    assert!(told.contains("references: 12 lists done"), "{told}");
    // All of them: Ctrl-C ends in their middle, with a record that the run goes on with.
    let all = ["--overwrite_output_dir", "--per_device_train_batch_size", "512"];
    fs::remove_file(out.join("run.json")).expect("removes");
    let mut child = start(&mut larpo(&[&base[..], &all].concat()), &log);
    wait_for("the record", || out.join("run.json").exists());
    signal(&child, "INT");
    assert_eq!(child.wait().expect("a child").code(), Some(130));
    let text = fs::read_to_string(&log).expect("reads");
    assert!(text.contains("stopped as asked (train: references, after ") && text.contains(" of 20000 lists"), "{text}");
    // It has a story and a page, though nothing is logged.
    let told = succeeds(&mut larpo(&["inspect", &name]));
    let told = String::from_utf8_lossy(&told.stdout);
    assert!(told.contains("`larpo train`") && told.contains("Not finished."), "{told}");
    succeeds(&mut larpo(&["report", &name]));
    let page = fs::read_to_string(out.join("report.html")).expect("a page");
    assert!(
        page.contains("Not finished.") && page.contains("logged nothing yet") && page.contains("To repeat it"),
        "{page}"
    );
}

#[test]
fn a_plan_ends_at_once() {
    let folder = Folder::new("plan-ctrl-c");
    let (_, model) = tiny(&folder);
    let (data, log) = (folder.name("data.jsonl"), folder.path("log"));
    assert!(Command::new("mkfifo").arg(&data).status().expect("starts").success());
    let words = ["plan", "train", "--model_name_or_path", &model, "--dataset_name", &data, "--output_dir", "out"];
    let mut child = start(&mut larpo(&words), &log);
    // A pipe opens for writing once it is open for reading. As nothing is written, the plan cannot end before the signal.
    let pipe = std::thread::spawn(move || fs::OpenOptions::new().write(true).open(data));
    wait_for("the plan to read its data", || pipe.is_finished());
    // Not INT, which a shell has its background processes ignore.
    signal(&child, "TERM");
    let status = child.wait().expect("a child");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15), "{status}");
    pipe.join().expect("a thread").expect("a pipe that was open for reading");
}

#[test]
fn a_damaged_iteration_is_made_again() {
    let folder = Folder::new("iteration");
    let (data, model, expected) = alone(&folder);
    let out = folder.path("alone");
    let name = out.display().to_string();
    let point = |from: &ResumeFrom| align_point(&out, from);
    let latest = |what: &str| point(&ResumeFrom::Latest).expect(what);
    assert_eq!(latest("finished").done, 2);
    // Nothing to do: the same answer as before, and nothing is written.
    let before = fs::metadata(out.join("model.safetensors")).and_then(|m| m.modified()).expect("a time");
    let again = succeeds(&mut larpo(&align(&data, &model, &name, &["--json", "--resume_from_checkpoint", "latest"])));
    assert!(String::from_utf8_lossy(&again.stdout).contains("\"iteration\":2"));
    assert_eq!(fs::metadata(out.join("model.safetensors")).and_then(|m| m.modified()).expect("a time"), before);
    let weights = out.join("iteration-2/model/model.safetensors");
    let good = fs::read(&weights).expect("reads");
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 16;
    fs::write(&weights, &bad).expect("writes");
    // Nor is it taken for a model by other verbs.
    let damaged = out.join("iteration-2/model").display().to_string();
    let sample = ["sample", "--model_name_or_path", &damaged, "--prompt", "1", "--max_new_tokens", "2"];
    let refused = larpo(&sample).output().expect("starts");
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("model.safetensors: its checksum does not fit"), "{text}");
    let found = latest("passes over");
    assert_eq!(found.done, 1);
    assert!(found.resume.is_some_and(|r| r.checkpoint.starts_with(out.join("iteration-2"))), "its newest checkpoint");
    let named = ResumeFrom::Path(out.join("iteration-2"));
    let error = point(&named).expect_err("damaged").to_string();
    assert!(
        error.contains("model.safetensors") && error.ends_with(&out.join("iteration-1").display().to_string()),
        "{error}"
    );
    // As a kill leaves it between the ranked candidates and the end of the drawn ones.
    fs::write(out.join("iteration-2/candidates.partial.jsonl"), "{}\n").expect("writes");
    let output = succeeds(&mut larpo(&align(&data, &model, &name, &LATEST)));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("warning: ") && text.contains("passed over"), "{text}");
    assert_same(&expected, &results(&out), "made again");
    // A place with a finished iteration behind it is not gone back to unasked.
    let early = ResumeFrom::Path(out.join("iteration-1"));
    let error = point(&early).expect_err("iteration 2 is there").to_string();
    assert!(error.contains("iteration-2") && error.contains("move it"), "{error}");
    fs::rename(out.join("iteration-2"), folder.path("away")).expect("renames");
    assert_eq!(point(&early).expect("may go on").done, 1);
    let extra = ["--resume_from_checkpoint", &out.join("iteration-1").display().to_string()];
    succeeds(&mut larpo(&align(&data, &model, &name, &extra)));
    assert_same(&expected, &results(&out), "the second iteration made again");
    for foreign in
        [folder.path("model"), out.clone(), out.join("iteration-2/checkpoint-999"), out.join("iteration-1/x")]
    {
        let error = point(&ResumeFrom::Path(foreign)).expect_err("not of this run").to_string();
        assert!(error.contains("no checkpoint of the run") || error.contains("cannot read"), "{error}");
    }
}

#[test]
fn other_flags_and_other_data_are_refused_by_name() {
    let folder = Folder::new("flags");
    let (data, model) = tiny(&folder);
    let out = folder.path("out");
    let name = out.display().to_string();
    let error = fails(&mut larpo(&align(&data, &model, &name, &["--resume_from_checkpoint", "out/checkpoint-1"])));
    assert!(error.contains("holds no run"), "{error}");
    let mut child = start(&mut larpo(&align(&data, &model, &name, &[])), &folder.path("log"));
    first_checkpoint(&out.join("iteration-1"));
    child.kill().expect("kills");
    child.wait().expect("a child");
    let error = fails(&mut larpo(&align(&data, &model, &name, &[])));
    assert!(error.contains("--resume_from_checkpoint latest") && error.contains("--overwrite_output_dir"), "{error}");
    let error = fails(&mut larpo(&words(align(&data, &model, &name, &["--beta", "0.2", "--seed", "3"]), &LATEST)));
    assert!(error.contains("--beta was 0.1 and is now 0.2") && error.contains("--seed was 1 and is now 3"), "{error}");
    let rows = fs::read_to_string(&data).expect("reads");
    fs::write(&data, rows.replacen("1+1", "1+2", 1)).expect("writes");
    let error = fails(&mut larpo(&align(&data, &model, &name, &LATEST)));
    assert!(error.contains("--dataset_name: the contents of") && error.contains("rows.jsonl"), "{error}");
    fs::write(&data, rows).expect("writes");
    let both = ["--resume_from_checkpoint", "latest", "--overwrite_output_dir"];
    let error = fails(&mut larpo(&align(&data, &model, &name, &both)));
    assert!(error.contains("cannot be used with"), "{error}");
}
