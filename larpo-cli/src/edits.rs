//! What people edited of an iteration's candidates: beside them stands the checksum of every row as it was written.
//!
//! `candidates.checksum` is there once the candidates are complete. It has a line for each row, `PROMPT_INDEX CHECKSUM`,
//! and behind those that people changed, in sessions before, the word `edited`; of a row that they deleted the checksum is
//! `-`. It is the one place that tells of edits: a row that differs from its checksum was edited since. The last line is
//! `checksum` and that of the lines before it.

use crate::error::{Error, Result};
use crate::messages::count;
use larpo_data::candidates::CandidateList;
use larpo_data::checksums::Checksum;
use larpo_data::files;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The file beside the candidates.
pub const FILE: &str = "candidates.checksum";

/// The rows of an iteration's candidates as they were written, by `prompt_index`.
#[derive(Debug, Default, PartialEq)]
pub struct Written(BTreeMap<usize, Row>);

#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    /// None of a row that was deleted.
    sum: Option<Checksum>,
    /// Whether people edited it before it was written like this.
    edited: bool,
}

/// Rows that were edited since they were written, by `prompt_index`.
#[derive(Debug, Default, PartialEq)]
pub struct Edits {
    /// Changed, or added again.
    pub changed: BTreeSet<usize>,
    /// Deleted.
    pub deleted: BTreeSet<usize>,
}

impl Edits {
    /// How many.
    pub fn rows(&self) -> usize {
        self.changed.len() + self.deleted.len()
    }
}

impl Written {
    /// What is known of `rows` once they are written; those in `edited` were changed or deleted by people.
    pub fn new(rows: &[CandidateList], edited: &BTreeSet<usize>) -> Self {
        let mut known: BTreeMap<usize, Row> =
            edited.iter().map(|&index| (index, Row { sum: None, edited: true })).collect();
        for row in rows {
            let index = row.prompt_index.unwrap_or_default();
            known.insert(index, Row { sum: Some(row.checksum()), edited: edited.contains(&index) });
        }
        Self(known)
    }

    /// Reads what is known of the candidates in an iteration's folder; none where they are not complete.
    ///
    /// # Errors
    /// A file that cannot be read, or is damaged: then nothing tells which rows people edited.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, "read")(error)),
        };
        let rows = unsealed(&text).and_then(|rows| rows.lines().map(parse).collect::<Option<_>>());
        rows.map(|rows| Some(Self(rows))).ok_or_else(|| {
            Error::request(format!(
                "{} is damaged: nothing tells any more which rows of the candidates people edited; restore it from a copy, or \
                 move the iteration and those after it away to make them again",
                path.display()
            ))
        })
    }

    /// Writes the file: from now on the candidates are complete.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let line = |(index, row): (&usize, &Row)| {
            let sum = row.sum.map_or("-".into(), |sum| sum.to_string());
            format!("{index} {sum}{}\n", if row.edited { " edited" } else { "" })
        };
        let rows: String = self.0.iter().map(line).collect();
        Ok(files::write_bytes(folder.join(FILE), sealed(&rows).as_bytes())?)
    }

    /// Whether a row is as it was written.
    fn has(&self, row: &CandidateList) -> bool {
        let written = row.prompt_index.and_then(|index| self.0.get(&index)).and_then(|known| known.sum);
        written.is_some_and(|sum| sum == row.checksum())
    }

    /// What was edited since.
    pub fn edits(&self, rows: &[CandidateList]) -> Edits {
        let there: BTreeSet<usize> = rows.iter().filter_map(|row| row.prompt_index).collect();
        let deleted = |(&index, row): (&usize, &Row)| (row.sum.is_some() && !there.contains(&index)).then_some(index);
        Edits {
            changed: rows.iter().filter(|row| !self.has(row)).filter_map(|row| row.prompt_index).collect(),
            deleted: self.0.iter().filter_map(deleted).collect(),
        }
    }

    /// `prompt_index` of the rows that people edited before.
    pub fn edited(&self) -> BTreeSet<usize> {
        self.0.iter().filter(|(_, row)| row.edited).map(|(&index, _)| index).collect()
    }
}

/// The first row whose `prompt_index` is none of the iteration's prompts, or that of an earlier row, with its line in front.
pub fn misnumbered<'a>(
    rows: impl IntoIterator<Item = (usize, &'a CandidateList)>,
    known: impl Fn(usize) -> bool,
) -> Option<String> {
    let mut seen: BTreeMap<usize, usize> = BTreeMap::new();
    rows.into_iter().find_map(|(line, row)| match row.prompt_index.filter(|&index| known(index)) {
        None => Some(format!(
            "{line}: `prompt_index` is not that of a prompt of this iteration; delete the row, or restore the number"
        )),
        Some(index) => seen.insert(index, line).map(|first| {
            format!("{line}: `prompt_index` {index} is that of line {first} too; make one row of the two")
        }),
    })
}

/// [`misnumbered`] by the iteration's manifest, null where it is not finished: for people, who learn it before the run
/// refuses.
pub fn numbering(n: u64, rows: &[(usize, CandidateList)], manifest: &Value) -> Option<String> {
    let prompts = manifest["prompts"].as_array();
    let known = |index: usize| prompts.is_none_or(|all| all.iter().any(|known| known.as_u64() == Some(index as u64)));
    let problem = misnumbered(rows.iter().map(|(line, row)| (*line, row)), known)?;
    Some(format!("iteration {n}: candidates.jsonl:{problem}. The run refuses to go on with it"))
}

/// The lines with their own checksum behind them.
fn sealed(rows: &str) -> String {
    format!("{rows}checksum {}\n", Checksum::of(rows.as_bytes()))
}

/// The lines of what [`sealed`] made; none where it is anything else.
fn unsealed(text: &str) -> Option<&str> {
    let rows = &text[..text.rfind("checksum ")?];
    (sealed(rows) == text).then_some(rows)
}

fn parse(line: &str) -> Option<(usize, Row)> {
    let (index, rest) = line.split_once(' ')?;
    let (sum, edited) = rest.strip_suffix(" edited").map_or((rest, false), |sum| (sum, true));
    let sum = if sum == "-" { None } else { Some(sum.parse().ok()?) };
    Some((index.parse().ok()?, Row { sum, edited }))
}

/// How many rows of the candidates in an iteration's folder people edited: those that were taken up, and those that will be
/// when the run goes on. `rows` are the candidates as they are now.
///
/// # Errors
/// As [`Written::read`].
pub fn counts(folder: &Path, rows: &[CandidateList]) -> Result<(usize, usize)> {
    let written = Written::read(folder)?;
    Ok(written.map_or((0, 0), |written| (written.edited().len(), written.edits(rows).rows())))
}

/// [`counts`] of iteration `n` for people; none where nothing was edited.
pub fn sentence(n: u64, (taken_up, since): (usize, usize)) -> Option<String> {
    let parts: Vec<String> = [(taken_up, "taken up"), (since, "to be taken up when the run goes on")]
        .into_iter()
        .filter(|(rows, _)| *rows > 0)
        .map(|(rows, fate)| format!("{} edited by hand, {fate}", count(rows, "rows")))
        .collect();
    (!parts.is_empty()).then(|| format!("candidates of iteration {n}: {}", parts.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(index: usize, response: &str) -> CandidateList {
        CandidateList {
            prompt_index: Some(index),
            prompt: "p".into(),
            responses: vec![response.into(), "b".into()],
            rewards: vec![0.1, 0.0],
            ..CandidateList::default()
        }
    }

    #[test]
    fn every_edit_is_counted_once_and_remembered() {
        let folder = std::env::temp_dir().join(format!("larpo-edits-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("creates");
        assert_eq!(Written::read(&folder).expect("reads"), None, "not complete");
        let rows = [row(7, "a"), row(3, "a"), row(5, "a"), row(9, "a")];
        let written = Written::new(&rows, &BTreeSet::new());
        written.write(&folder).expect("writes");
        assert_eq!(Written::read(&folder).expect("reads"), Some(written));
        assert_eq!(counts(&folder, &rows).expect("reads"), (0, 0));
        // One changed, one deleted; their order says nothing.
        let edited = [row(5, "other"), row(7, "a"), row(9, "a")];
        assert_eq!(counts(&folder, &edited).expect("reads"), (0, 2));
        let edits = Written::read(&folder).expect("reads").expect("complete").edits(&edited);
        assert_eq!(edits, Edits { changed: [5].into(), deleted: [3].into() });
        // Taken up they are no edits any more, but remembered; what was deleted may come back.
        Written::new(&edited, &[3, 5].into()).write(&folder).expect("writes");
        assert_eq!(counts(&folder, &edited).expect("reads"), (2, 0));
        assert_eq!(counts(&folder, &[&edited[..], &[row(3, "a")]].concat()).expect("reads"), (2, 1));
        let text = fs::read_to_string(folder.join(FILE)).expect("reads");
        assert!(text.starts_with("3 - edited\n5 ") && text.lines().count() == 5, "{text}");
        // Damage is no edit.
        for at in 0..text.len() {
            let mut bad = text.clone().into_bytes();
            bad[at] ^= 1 << (at % 8);
            for bad in [&bad[..], &text.as_bytes()[..at]] {
                fs::write(folder.join(FILE), bad).expect("writes");
                let error = Written::read(&folder).expect_err("damaged").to_string();
                assert!(error.contains("candidates.checksum is damaged"), "byte {at}: {error}");
            }
        }
        fs::remove_dir_all(&folder).expect("removes");
        assert_eq!(sentence(4, (0, 0)), None);
        assert_eq!(
            sentence(4, (1, 2)).as_deref(),
            Some(
                "candidates of iteration 4: 1 row edited by hand, taken up; 2 rows edited by hand, to be taken up when \
                 the run goes on"
            )
        );
    }
}
