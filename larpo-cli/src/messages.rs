//! Messages for people, on stderr, by level. stdout belongs to results.
//!
//! `say!` tells what happens, `warn!` what deserves attention, `debug!` what helps to find out why. A closed or full
//! stderr never stops the work that is reported on.

use clap::ValueEnum;
use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};

/// How much is told; each level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Level {
    /// only why a run ended early
    Error,
    /// warnings too
    Warn,
    /// progress, notes and results as tables too
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

/// Writes a line, if its level is shown.
pub fn line(level: Level, text: fmt::Arguments) {
    if shows(level) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

/// `1 row`, `2 rows`: a number with what is counted, which is given in the plural.
pub fn count(n: usize, plural: &str) -> String {
    match n {
        1 => format!("1 {}", plural.strip_suffix('s').unwrap_or(plural)),
        n => format!("{n} {plural}"),
    }
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
