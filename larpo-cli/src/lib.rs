#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

/// Writes a line to stderr, for people. A closed or full stderr must not stop the work that is reported on.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

pub mod align;
pub mod args;
pub mod candidate_rows;
pub mod checkpoint;
pub mod cmd;
pub mod dataset;
pub mod demo;
pub mod error;
pub mod evaluate;
pub mod generate;
pub mod metrics_log;
pub mod output;
pub mod policy;
pub mod progress;
pub(crate) mod resumable;
pub mod resume;
pub mod reward;
pub mod run_folder;
pub mod run_record;
pub mod samples;
pub mod stop;
pub mod table;
pub mod threads;
pub mod training;
pub mod watch;
