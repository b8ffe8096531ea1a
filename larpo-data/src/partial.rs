//! Candidate lists as they are sampled: a file that grows by whole, durable lines, each with its own checksum.
//!
//! A row is one of [`crate::candidates`] with a last field `checksum` over the rest of the line, so the file can be read as
//! candidates too. [`read`] takes what is whole from the front: a line that a crash cut short, or that was damaged, ends it.

use crate::candidates::{self, CandidateList};
use crate::checksums::Checksum;
use crate::error::{Error, Result};
use crate::files;
use crate::records::Renderer;
use crate::records::rows::parse_row;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

const FIELD: &str = ",\"checksum\":\"";

/// Appends lists and waits until they are on disk.
///
/// # Errors
/// A file that cannot be written; some of the lists may then be in it.
pub fn append(path: impl AsRef<Path>, lists: &[CandidateList]) -> Result<()> {
    let path = path.as_ref();
    let mut text = String::new();
    for list in lists {
        text.push_str(&sealed(&serde_json::to_string(list).expect("a candidate list can be written")));
    }
    let is_new = !path.exists();
    let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(Error::io(path, "open"))?;
    file.write_all(text.as_bytes()).map_err(Error::io(path, "write"))?;
    file.sync_data().map_err(Error::io(path, "write to disk"))?;
    if is_new { files::sync_folder_of(path) } else { Ok(()) }
}

/// What is whole in the file, from the front; `keep` says how many of that many lists to take. Whatever follows them is cut
/// from the file. A file that is not there holds nothing.
///
/// # Errors
/// A file that cannot be read or cut.
pub fn read(path: impl AsRef<Path>, keep: impl FnOnce(usize) -> usize) -> Result<Kept> {
    let path = path.as_ref();
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Kept { lists: Vec::new(), cut: 0 }),
        Err(error) => return Err(Error::io(path, "read")(error)),
    };
    let whole: Vec<&str> = bytes
        .split_inclusive(|&b| b == b'\n')
        .map_while(|line| std::str::from_utf8(line).ok().filter(|line| is_sealed(line)))
        .collect();
    let whole = whole[..keep(whole.len()).min(whole.len())].concat();
    if whole.len() < bytes.len() {
        files::write_bytes(path, whole.as_bytes())?;
    }
    let rows = whole.lines().enumerate();
    let mut lists = rows
        .map(|(i, line)| candidates::from_row(&parse_row(path, i + 1, line)?, Renderer::None))
        .collect::<Result<Vec<_>>>()?;
    for list in &mut lists {
        list.extra.shift_remove("checksum");
    }
    Ok(Kept { lists, cut: bytes.len() - whole.len() })
}

/// What [`read`] found.
#[derive(Debug, PartialEq)]
pub struct Kept {
    /// The lists.
    pub lists: Vec<CandidateList>,
    /// Bytes that were cut off behind them.
    pub cut: usize,
}

/// A JSON object as a line with its checksum.
fn sealed(object: &str) -> String {
    let open = object.strip_suffix('}').unwrap_or(object);
    format!("{open}{FIELD}{:016x}\"}}\n", Checksum::of(object.as_bytes()).hash)
}

/// Whether a line is what [`sealed`] makes.
fn is_sealed(line: &str) -> bool {
    line.rfind(FIELD).is_some_and(|at| sealed(&format!("{}}}", &line[..at])) == line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn list(index: usize) -> CandidateList {
        CandidateList {
            prompt_index: Some(index),
            prompt: format!("p{index},\"checksum\":\"x\"}}\n"),
            responses: vec!["a é".into(), "b".into()],
            temperature: vec![0.7, 0.7],
            token_ids: vec![vec![1, 2], vec![3]],
            logps: vec![vec![-0.1, -1e-7], vec![-12.345_678]],
            ..CandidateList::default()
        }
    }

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("larpo-partial-{name}-{}.jsonl", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    #[test]
    fn whole_lines_survive_a_cut_at_any_byte() {
        let path = scratch("cut");
        let all: Vec<CandidateList> = (0..3).map(list).collect();
        append(&path, &all[..1]).expect("appends");
        append(&path, &all[1..]).expect("appends");
        assert_eq!(read(&path, |n| n).expect("reads"), Kept { lists: all.clone(), cut: 0 });
        assert_eq!(candidates::read(&path).expect("candidates too").len(), 3);
        let bytes = fs::read(&path).expect("reads");
        let ends: Vec<usize> = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
        for length in 0..=bytes.len() {
            fs::write(&path, &bytes[..length]).expect("writes");
            let whole = ends.iter().filter(|&&end| end <= length).count();
            let start = if whole == 0 { 0 } else { ends[whole - 1] };
            let expected = Kept { lists: all[..whole].to_vec(), cut: length - start };
            assert_eq!(read(&path, |n| n).expect("reads"), expected, "{length}");
            // Whole lines can follow again.
            append(&path, &all[whole..]).expect("appends");
            assert_eq!(fs::read(&path).expect("reads"), bytes, "{length}");
        }
        fs::remove_file(&path).expect("removes");
    }

    #[test]
    fn a_changed_byte_ends_what_is_whole() {
        let path = scratch("flip");
        append(&path, &[list(0), list(1)]).expect("appends");
        let bytes = fs::read(&path).expect("reads");
        let first = 1 + bytes.iter().position(|&b| b == b'\n').expect("a line");
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(&path, &changed).expect("writes");
            let kept = read(&path, |n| n).expect("reads").lists;
            assert_eq!(kept, [list(0)][..usize::from(at >= first)], "byte {at}");
        }
        fs::write(&path, &bytes).expect("writes");
        let kept = read(&path, |n| n - 1).expect("reads");
        assert_eq!((kept.lists, kept.cut), (vec![list(0)], bytes.len() - first));
        fs::remove_file(&path).expect("removes");
        assert_eq!(read(&path, |n| n).expect("nothing there"), Kept { lists: Vec::new(), cut: 0 });
    }
}
