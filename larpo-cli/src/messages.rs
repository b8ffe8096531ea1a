//! What people read: results on stdout, messages on stderr.
//!
//! `show!` writes a line of the result that was asked for. Of the messages, which have levels, `say!` tells what happens,
//! `warn!` what deserves attention, `debug!` what helps to find out why. A closed or full stderr never stops the work that is
//! reported on; of stdout the process hears at its end, from [`printed`].

use clap::ValueEnum;
use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// How much is told; each level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Level {
    /// only why a run ended early
    Error,
    /// warnings too
    Warn,
    /// progress and notes too
    Info,
    /// settings, machine and memory too
    Debug,
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// Sets the level of the process.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Whether messages of `level` are shown.
pub fn shows(level: Level) -> bool {
    level as u8 <= LEVEL.load(Ordering::Relaxed)
}

/// Does something whose messages were told before: only errors are shown.
pub fn quietly<T>(work: impl FnOnce() -> T) -> T {
    let level = LEVEL.swap(Level::Error as u8, Ordering::Relaxed);
    let result = work();
    LEVEL.store(level, Ordering::Relaxed);
    result
}

/// Writes a line, if its level is shown.
pub fn line(level: Level, text: fmt::Arguments) {
    if shows(level) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

/// Whether stdout belongs to the JSON object.
static JSON: AtomicBool = AtomicBool::new(false);

/// What became of stdout: nothing bad yet, or why nothing more is written there.
static STDOUT: Mutex<io::Result<()>> = Mutex::new(Ok(()));

/// Keeps stdout for the JSON object of `--json`: results for people become messages.
pub fn set_json() {
    JSON.store(true, Ordering::Relaxed);
}

/// Writes to stdout. After a failure nothing more is written; [`printed`] tells of it.
pub fn print(text: &str) {
    let mut state = STDOUT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if state.is_ok() {
        let mut out = io::stdout();
        *state = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// Whether all that was to go to stdout went there. A reader who has seen enough, as in `larpo inspect FILE | head`, is no
/// failure.
///
/// # Errors
/// The first failure, such as a full disk.
pub fn printed() -> io::Result<()> {
    let mut state = STDOUT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    match std::mem::replace(&mut *state, Ok(())) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes a line of the result that was asked for.
pub fn result(text: fmt::Arguments) {
    match JSON.load(Ordering::Relaxed) {
        true => line(Level::Info, text),
        false => print(&format!("{text}\n")),
    }
}

/// Whether the terminal, if there is one, knows no more than lines: neither colours nor a way back to the start of a line.
pub fn dumb_terminal() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Whether lines of results are seen on a terminal.
pub fn results_on_terminal() -> bool {
    match JSON.load(Ordering::Relaxed) {
        true => io::stderr().is_terminal(),
        false => io::stdout().is_terminal(),
    }
}

/// `1 row`, `2 rows`: a number with what is counted, which is given in the plural.
pub fn count(n: usize, plural: &str) -> String {
    match n {
        1 => format!("1 {}", plural.strip_suffix('s').unwrap_or(plural)),
        n => format!("{n} {plural}"),
    }
}

/// Writes a line of the result that was asked for.
macro_rules! show {
    ($($text:tt)*) => { $crate::messages::result(format_args!($($text)*)) };
}

/// Writes a line that tells what happens.
macro_rules! say {
    ($($text:tt)*) => { $crate::messages::line($crate::messages::Level::Info, format_args!($($text)*)) };
}

/// Writes a warning.
macro_rules! warn {
    ($($text:tt)*) => {
        $crate::messages::line($crate::messages::Level::Warn, format_args!("warning: {}", format_args!($($text)*)))
    };
}

/// Writes a line that helps to find out why.
macro_rules! debug {
    ($($text:tt)*) => {
        $crate::messages::line($crate::messages::Level::Debug, format_args!("debug: {}", format_args!($($text)*)))
    };
}

#[cfg(test)]
mod tests {
    use super::count;
    use std::path::Path;

    #[test]
    fn one_is_singular() {
        assert_eq!([0, 1, 2].map(|n| count(n, "rows")), ["0 rows", "1 row", "2 rows"]);
    }

    /// A warning that is said instead of warned would be lost with `--quiet`.
    #[test]
    fn warnings_are_warned() {
        fn check(folder: &Path) {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    check(&path);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    let text = std::fs::read_to_string(&path).expect("reads");
                    let said = text.split(concat!("sa", "y!(")).skip(1).map(str::trim_start);
                    assert!(!said.clone().any(|s| s.starts_with("\"warning")), "{}", path.display());
                }
            }
        }
        check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    }
}
