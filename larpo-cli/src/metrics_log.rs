//! `metrics.jsonl`: one JSON object a line, readable while the run goes on.

use crate::args::ReportTo;
use crate::tensorboard::EventFile;
use serde_json::{Map, Number, Value};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// One line of metrics; the names come out in the order they were added.
#[derive(Debug, Clone, Default)]
pub struct Row(Map<String, Value>);

impl Row {
    /// An empty row.
    pub fn new() -> Row {
        Row::default()
    }

    /// Adds a count, such as a step.
    pub fn count(mut self, name: &str, value: usize) -> Row {
        self.0.insert(name.into(), Value::from(value));
        self
    }

    /// Adds a measured number; JSON has no infinities and no NaN, so those become `null`.
    pub fn number(mut self, name: &str, value: f64) -> Row {
        let value = Number::from_f64(value).map_or(Value::Null, Value::Number);
        self.0.insert(name.into(), value);
        self
    }
}

impl From<Row> for Map<String, Value> {
    fn from(row: Row) -> Self {
        row.0
    }
}

/// A file that rows are appended to.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    /// The same numbers for TensorBoard.
    events: Option<EventFile>,
}

impl MetricsLog {
    /// Starts the file anew.
    ///
    /// # Errors
    /// Where the file cannot be created; the caller knows the path to name.
    pub fn create(path: &Path) -> io::Result<MetricsLog> {
        Ok(MetricsLog { file: File::create(path)?, events: None })
    }

    /// Continues the file after the update `step`: rows of later updates, and a line that was cut short, are dropped.
    ///
    /// # Errors
    /// Where the file cannot be read or written; the caller knows the path to name.
    pub fn resume(path: &Path, step: u64) -> io::Result<MetricsLog> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let early = |line: &&[u8]| {
            let row: Option<Value> = line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice(line).ok());
            row.and_then(|row| row.get("step")?.as_u64()).is_some_and(|at| at <= step)
        };
        let kept: Vec<u8> = text.split_inclusive(|&b| b == b'\n').take_while(early).flatten().copied().collect();
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        // Nothing is lost if this is cut short: it is done again.
        file.set_len(kept.len() as u64)?;
        Ok(MetricsLog { file, events: None })
    }

    /// Also writes what `to` asks for, into `folder`, from the update `first` on.
    ///
    /// # Errors
    /// Where its file cannot be created.
    pub fn report_to(mut self, to: ReportTo, folder: &Path, first: u64) -> io::Result<MetricsLog> {
        self.events = match to {
            ReportTo::None => None,
            ReportTo::Tensorboard => Some(EventFile::create(folder, first)?),
        };
        Ok(self)
    }

    /// Waits until all rows are on disk.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Writes one row as one line, at once: a reader never sees half a row of a run that goes on.
    ///
    /// # Errors
    /// Where the line cannot be written, for instance to a full disk.
    pub fn write(&mut self, row: impl Into<Map<String, Value>>) -> io::Result<()> {
        let row = row.into();
        if let Some(events) = &mut self.events {
            events.write(&row)?;
        }
        let mut line = Value::Object(row).to_string();
        line.push('\n');
        self.file.write_all(line.as_bytes())?;
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_lines_and_resuming_keeps_the_early_ones() {
        let name = format!("larpo-metrics-{}.jsonl", std::process::id());
        let path = std::env::temp_dir().join(name);
        let row = |step| Row::new().count("step", step).number("loss", 0.5);
        let mut log = MetricsLog::create(&path).expect("creates");
        log.write(row(1)).expect("writes");
        // The first row is there before the log is dropped.
        let first = std::fs::read_to_string(&path).expect("reads");
        drop(log);
        // Later rows, another row of an early update, and a line that a crash cut short.
        std::fs::write(&path, format!("{first}{{\"step\":1,\"x\":1}}\n{{\"step\":2}}\n{{\"step\":1}}\n{{\"st"))
            .expect("writes");
        let mut log = MetricsLog::resume(&path, 1).expect("opens");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), format!("{first}{{\"step\":1,\"x\":1}}\n"));
        log = MetricsLog::resume(&path, 0).map(|_| log).expect("opens");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "");
        log.write(row(1)).expect("writes");
        log.write(row(2)).expect("writes");
        log.sync().expect("writes");
        let both = std::fs::read_to_string(&path).expect("reads");
        drop(MetricsLog::create(&path).expect("creates"));
        let none = std::fs::read_to_string(&path).expect("reads");
        std::fs::remove_file(&path).expect("removes");
        assert_eq!((both.lines().count(), none.as_str()), (2, ""));
        assert!(both.starts_with(&first) && first.ends_with('\n'));
        let parsed: Value = serde_json::from_str(&first).expect("JSON");
        assert_eq!(parsed, serde_json::json!({"step": 1, "loss": 0.5}));
    }

    #[test]
    fn what_json_cannot_hold_becomes_null() {
        let row = Row::new().number("kl", f64::NAN).number("grad_norm", f64::INFINITY).number("rank/kendall_tau", 1.0);
        let expected = serde_json::json!(
            {"kl": null, "grad_norm": null, "rank/kendall_tau": 1.0}
        );
        assert_eq!(Value::Object(row.into()), expected);
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        let path = std::env::temp_dir().join("larpo-no-such-folder").join("metrics.jsonl");
        let error = MetricsLog::create(&path).expect_err("no such folder");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
