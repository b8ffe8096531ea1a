//! `metrics.jsonl`: one JSON object a line, readable while the run goes on.

use crate::args::ReportTo;
use crate::error::{Error, Result};
use crate::tensorboard::EventFile;
use larpo_data::checksums::Checksum;
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
    /// Of all that is in the file.
    written: Checksum,
    /// The same numbers for TensorBoard.
    events: Option<EventFile>,
}

impl MetricsLog {
    /// Starts the file anew.
    ///
    /// # Errors
    /// Where the file cannot be created; the caller knows the path to name.
    pub fn create(path: &Path) -> io::Result<MetricsLog> {
        Ok(MetricsLog { file: File::create(path)?, written: Checksum::default(), events: None })
    }

    /// Continues the file after the update `step`, up to which it held what `written` says: rows of later updates, and a line
    /// that was cut short, are dropped. A file that is not there begins anew, with a warning.
    ///
    /// # Errors
    /// Earlier rows that are not what was written; a file that cannot be read or written.
    pub fn resume(path: &Path, step: u64, written: Checksum) -> Result<MetricsLog> {
        let text = match std::fs::read(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io(path, "read")(error)),
        };
        let written = match &text {
            Some(text) => {
                let kept = &text[..text.len().min(usize::try_from(written.bytes).unwrap_or(usize::MAX))];
                if Checksum::of(kept) != written {
                    return Err(damaged(path, step, written, kept));
                }
                written
            }
            None => {
                if written.bytes > 0 {
                    warn!("{} is missing: the log begins after update {step}", path.display());
                }
                Checksum::default()
            }
        };
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(Error::io(path, "open"))?;
        // Nothing is lost if this is cut short: it is done again.
        file.set_len(written.bytes).map_err(Error::io(path, "cut"))?;
        Ok(MetricsLog { file, written, events: None })
    }

    /// Length and checksum of all that is in the file.
    pub fn written(&self) -> Checksum {
        self.written
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
        self.written.add(line.as_bytes());
        self.file.flush()
    }
}

/// The complaint about earlier rows that are not what was written: `kept` is what stands in their place.
fn damaged(path: &Path, step: u64, written: Checksum, kept: &[u8]) -> Error {
    let is_row = |line: &[u8]| serde_json::from_slice::<Map<String, Value>>(line).is_ok();
    let mut lines = kept.strip_suffix(b"\n").unwrap_or(kept).split(|&b| b == b'\n');
    let how = match lines.position(|line| !is_row(line)) {
        _ if (kept.len() as u64) < written.bytes => {
            format!("there should be {} bytes and are {}", written.bytes, kept.len())
        }
        Some(line) => format!("line {} is no JSON object", line + 1),
        None => "their checksum does not fit".into(),
    };
    Error::request(format!(
        "{} is damaged: its lines up to update {step} are not what was written ({how}); restore the file from a copy, or move \
         it away, and the log begins after update {step}",
        path.display()
    ))
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
        let sum = Checksum::of(format!("{first}{{\"step\":1,\"x\":1}}\n").as_bytes());
        let mut log = MetricsLog::resume(&path, 1, sum).expect("opens");
        assert_eq!(log.written(), sum);
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), format!("{first}{{\"step\":1,\"x\":1}}\n"));
        // Nothing of what stood there before may have changed: no line of it is dropped, no number taken as it is.
        let whole = std::fs::read(&path).expect("reads");
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1 << (at % 7);
            std::fs::write(&path, &bad).expect("writes");
            let error = MetricsLog::resume(&path, 1, sum).expect_err("changed").to_string();
            assert!(error.contains(&path.display().to_string()) && error.contains("is damaged"), "{at}: {error}");
            assert_eq!(std::fs::read(&path).expect("reads"), bad, "{at}: it is left as it is");
        }
        std::fs::write(&path, whole.strip_suffix(b"\n").expect("a line")).expect("writes");
        let error = MetricsLog::resume(&path, 1, sum).expect_err("cut").to_string();
        assert!(error.contains(&format!("{} bytes and are {}", whole.len(), whole.len() - 1)), "{error}");
        std::fs::write(&path, &whole).expect("writes");
        log = MetricsLog::resume(&path, 0, Checksum::default()).map(|_| log).expect("opens");
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
