//! What a run can be taken up from, for whoever has to say so when it ends early: the panic hook, an interrupt.

use std::fmt;
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

static CHECKPOINT: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Notes that the run can be resumed from `checkpoint`, which is complete on disk.
pub fn set_checkpoint(checkpoint: &Path) {
    *lock() = Some(checkpoint.to_path_buf());
}

/// The last complete checkpoint of this process, if there is one.
pub fn checkpoint() -> Option<PathBuf> {
    lock().clone()
}

fn lock() -> std::sync::MutexGuard<'static, Option<PathBuf>> {
    // A path is replaced as a whole, so a panic elsewhere does not spoil it.
    CHECKPOINT.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Where the run stands, as a sentence.
pub fn how_to_resume() -> String {
    match checkpoint() {
        Some(path) => format!(
            "the last checkpoint is {}; the same command with --resume_from_checkpoint latest goes on from there",
            path.display()
        ),
        None => "this run has written no checkpoint".into(),
    }
}

/// What to do where the disk is full, as a sentence; `resumable`: the verb can go on.
pub fn after_full_disk(resumable: bool) -> String {
    let mend = "The disk is full: make room on it";
    match (resumable, checkpoint()) {
        (false, _) => format!("{mend} and give the same command again. Nothing half-written has its final name"),
        (true, Some(path)) => format!(
            "{mend} (a lower --save_total_limit needs less). The last checkpoint, {}, is whole; the same command with \
             --resume_from_checkpoint latest goes on from there",
            path.display()
        ),
        (true, None) => format!(
            "{mend}. This run has written no checkpoint yet; the same command with --resume_from_checkpoint latest goes \
             on from what there is"
        ),
    }
}

/// Makes a panic say that it is a bug, what to report, and how to go on. The process then ends with
/// [`crate::error::exit_code::BUG`], which is what Rust itself uses.
pub fn hook_panics() {
    std::panic::set_hook(Box::new(|panic| {
        // Not through the levels of `messages`: a bug is always told.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), report(panic).as_bytes());
    }));
}

fn report(panic: &PanicHookInfo) -> String {
    let payload = panic.payload();
    let message = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    let message = message.unwrap_or("no message");
    let place = panic.location().map_or_else(String::new, ToString::to_string);
    let trace = std::backtrace::Backtrace::capture();
    let trace = match trace.status() {
        std::backtrace::BacktraceStatus::Captured => format!("{trace}"),
        _ => "Set RUST_BACKTRACE=1 to see where it came from.\n".into(),
    };
    text(message, &place, &trace)
}

fn text(message: &str, place: &dyn fmt::Display, trace: &str) -> String {
    format!(
        "\nbug: larpo stopped at {place}: {message}\n\
         This is an error in larpo, not in your data or settings. Please report it with the command line and with what \
         `larpo --version` prints:\n{}\n{trace}To go on: {}.\n",
        crate::version::long(),
        how_to_resume()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_names_place_and_checkpoint() {
        let before = text("index out of range", &"src/x.rs:3:4", "");
        assert!(before.contains("src/x.rs:3:4: index out of range") && before.contains("no checkpoint"), "{before}");
        set_checkpoint(Path::new("run/checkpoint-20"));
        let full = after_full_disk(true);
        assert!(full.contains("run/checkpoint-20, is whole") && full.contains("--resume_from_checkpoint latest"));
        assert!(!after_full_disk(false).contains("checkpoint"));
        let after = text("", &"", "");
        assert!(after.contains("run/checkpoint-20; the same command with --resume_from_checkpoint latest"), "{after}");
    }
}
