//! The bytes of a record file as rows: gzip, JSONL, arrays of objects, comma-separated values.

use super::csv::{self, Fault};
use super::rows::{Row, json_error, parse_row};
use crate::error::{Error, RecordError, Result};
use crate::files;
use flate2::bufread::MultiGzDecoder;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;
use std::io::Read;
use std::path::Path;

/// How the rows of a file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// The form of the text.
    pub kind: FormatKind,
    /// Whether the text is packed with gzip.
    pub gzip: bool,
}

/// The form of a text. See [`Format`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormatKind {
    /// One JSON object a line.
    Jsonl,
    /// One JSON array of objects.
    JsonArray,
    /// Comma-separated values (RFC 4180) with names in the first line; tabs separate in a file named `.tsv`.
    Csv,
    /// Parquet, whatever the file's name.
    Parquet,
    /// Plain text, in a file named `.txt`.
    Text,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            FormatKind::Jsonl => "JSONL",
            FormatKind::JsonArray => "a JSON array",
            FormatKind::Csv => "CSV",
            FormatKind::Parquet => "Parquet",
            FormatKind::Text => "plain text",
        })?;
        if self.gzip { f.write_str(", gzip") } else { Ok(()) }
    }
}

/// More text than this in a packed file is taken for an attack rather than for data.
const MAX_UNPACKED: u64 = 8 << 30;

/// A file's text and form.
pub(crate) struct Content {
    bytes: Vec<u8>,
    pub(crate) format: Format,
    separator: char,
}

impl Content {
    /// Reads and unpacks a file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Self::new(path, std::fs::read(path).map_err(Error::io(path, "read"))?)
    }

    /// Unpacks bytes that stand, or might stand, in the file `path`.
    pub(crate) fn new(path: &Path, mut bytes: Vec<u8>) -> Result<Self> {
        let gzip = bytes.starts_with(&[0x1f, 0x8b]);
        if gzip {
            bytes = unpack(path, &bytes)?;
        }
        if bytes.starts_with(b"PAR1") {
            return Ok(Self { bytes, format: Format { kind: FormatKind::Parquet, gzip }, separator: ',' });
        }
        // Editors on Windows like to put a byte-order mark in front.
        if bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
        let kind = match name.rsplit('.').next() {
            Some("txt") => FormatKind::Text,
            Some("csv" | "tsv") => FormatKind::Csv,
            _ if first == Some(&b'[') => FormatKind::JsonArray,
            _ => FormatKind::Jsonl,
        };
        let separator = if name.ends_with(".tsv") { '\t' } else { ',' };
        Ok(Self { bytes, format: Format { kind, gzip }, separator })
    }

    /// The whole text.
    pub(crate) fn text(&self, path: &Path) -> Result<&str> {
        files::utf8(path, &self.bytes).map_err(Error::of_the_file)
    }

    /// The rows, each with what is wrong with it if anything is. Lines of white space are none.
    ///
    /// # Errors
    /// A fault that leaves the rows behind it untold: an array that is no JSON, a quote that is not closed, a CSV
    /// header that cannot be used.
    pub(crate) fn rows<'a>(&'a self, path: &'a Path) -> Result<Vec<Result<Row<'a>>>> {
        let rows = match self.format.kind {
            FormatKind::JsonArray => self.text(path).and_then(|text| array(path, text)),
            FormatKind::Csv => self.text(path).and_then(|text| table(path, text, self.separator)),
            #[cfg(feature = "parquet")]
            FormatKind::Parquet => super::parquet::rows(path, &self.bytes, MAX_UNPACKED),
            #[cfg(not(feature = "parquet"))]
            FormatKind::Parquet => Err(Error::Unrecognised {
                path: path.into(),
                found: "a Parquet file, which this build does not read".into(),
                mend: "Build larpo-data with its feature `parquet`, or convert the file to JSONL".into(),
            }),
            FormatKind::Jsonl | FormatKind::Text => Ok(self.lines(path)),
        };
        rows.map_err(Error::of_the_file)
    }

    fn lines<'a>(&'a self, path: &'a Path) -> Vec<Result<Row<'a>>> {
        let mut offset = 0;
        let mut rows = Vec::new();
        for (number, line) in self.bytes.split(|&byte| byte == b'\n').enumerate() {
            match std::str::from_utf8(line) {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => rows.push(parse_row(path, number + 1, text.strip_suffix('\r').unwrap_or(text))),
                Err(error) => {
                    let at = error.valid_up_to();
                    rows.push(Err(files::not_utf8(path, number + 1, line[at], offset + at)));
                }
            }
            offset += line.len() + 1;
        }
        rows
    }
}

fn unpack(path: &Path, packed: &[u8]) -> Result<Vec<u8>> {
    let fault = |found: String, mend: &str| Error::Unrecognised { path: path.into(), found, mend: mend.into() };
    let mut bytes = Vec::new();
    let mut text = MultiGzDecoder::new(packed).take(MAX_UNPACKED + 1);
    match text.read_to_end(&mut bytes) {
        Ok(length) if length as u64 > MAX_UNPACKED => {
            Err(fault(format!("more than {} GiB of text in it", MAX_UNPACKED >> 30), "Split the file"))
        }
        Ok(_) => Ok(bytes),
        Err(error) => {
            let found = format!("the gzip data cannot be unpacked ({error}); {} bytes of text came out", bytes.len());
            Err(fault(found, "Copy or download the file again; `gzip -t` checks it"))
        }
    }
}

fn array<'a>(path: &'a Path, text: &'a str) -> Result<Vec<Result<Row<'a>>>> {
    let items: Vec<&'a RawValue> = serde_json::from_str(text).map_err(|error| {
        let bad_line = text.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
        json_error(path, error.line().max(1), bad_line, "file", &error)
    })?;
    let mut line = 1;
    let mut at = 0;
    let mut rows = Vec::with_capacity(items.len());
    for item in items {
        // The items are slices of the text, so their distance from its start gives their lines.
        let start = item.get().as_ptr() as usize - text.as_ptr() as usize;
        line += text[at..start].matches('\n').count();
        at = start;
        rows.push(parse_row(path, line, item.get()));
    }
    Ok(rows)
}

/// Rows of a CSV file, as objects of strings. An empty cell is an absent field: CSV has no other way to say so.
fn table<'a>(path: &'a Path, text: &'a str, separator: char) -> Result<Vec<Result<Row<'a>>>> {
    let fault = |line: usize, field: &str, expected: String, found: String, mend: &str| -> Error {
        let (path, field, mend) = (path.into(), field.into(), mend.into());
        RecordError { path, line, element: None, field, expected, found, mend, of_the_file: false }.into()
    };
    let quote = |line: usize, kind: Fault| {
        let found = match kind {
            Fault::StrayQuote => "a quote inside a field that does not begin with one",
            Fault::AfterQuote => "text behind the closing quote of a field",
            Fault::Unclosed => "a quote that is never closed",
        };
        let mend = "Put the whole field in quotes and double the quotes inside it: \"say \"\"yes\"\"\"";
        fault(line, "", "comma-separated values (RFC 4180)".into(), found.into(), mend)
    };
    // Spreadsheets write semicolons where the comma is the decimal point.
    let names = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let other = [(',', "commas"), (';', "semicolons"), ('\t', "tabs")].into_iter().find(|(c, _)| names.contains(*c));
    if let Some((_, others)) = other.filter(|_| !names.contains(separator)) {
        let line = text.lines().position(|line| !line.trim().is_empty()).unwrap_or_default() + 1;
        let (kind, mend) = match separator {
            '\t' => ("tabs", "Save it with tabs, or name it .csv and separate by commas"),
            _ => ("commas", "Save it with commas, or with tabs as a file named .tsv"),
        };
        return Err(fault(
            line,
            "",
            format!("names separated by {kind}"),
            format!("{names:?}, which has {others}"),
            mend,
        ));
    }
    let mut records = csv::records(text, separator).into_iter();
    let Some((line, header)) = records.next() else { return Ok(Vec::new()) };
    let header = header.map_err(|kind| quote(line, kind))?;
    for (i, name) in header.iter().enumerate() {
        if name.is_empty() || header[..i].contains(name) {
            let found = if name.is_empty() { "an empty one".into() } else { format!("`{name}` twice") };
            let expected = "a name of its own for every column".into();
            return Err(fault(line, "", expected, found, "Begin the file with a line such as prompt,completion"));
        }
    }
    let row = |(line, fields): csv::Record| -> Result<Row<'a>> {
        let fields = fields.map_err(|kind| quote(line, kind))?;
        if fields.len() != header.len() {
            let expected = format!("{} fields, as in the header", header.len());
            let mend = "Put a field that holds a comma or a line break in quotes";
            return Err(fault(line, "", expected, fields.len().to_string(), mend));
        }
        let cells = header.iter().cloned().zip(fields).filter(|(_, cell)| !cell.is_empty());
        let object: Map<String, Value> = cells.map(|(name, cell)| (name, Value::String(cell))).collect();
        let text = Cow::Owned(Value::Object(object.clone()).to_string());
        Ok(Row { path, line, text, object, cells: true })
    };
    let mut rows = Vec::new();
    for record in records {
        match record {
            (line, Err(Fault::Unclosed)) => return Err(quote(line, Fault::Unclosed)),
            record => rows.push(row(record)),
        }
    }
    Ok(rows)
}
