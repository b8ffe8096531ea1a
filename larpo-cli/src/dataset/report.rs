//! What became of the rows of a file.

use super::{FOR_TRAINING, HELD_BACK, NOT_ENCODED, NOTHING_TO_LEARN, UNKNOWN_IDS, UNSCORED};
use crate::messages::count;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Rows in = rows used + rows left out, by named reason.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RowReport {
    /// What the rows are, e.g. `rows` or `windows`.
    pub unit: &'static str,
    /// Rows read.
    pub rows: usize,
    /// Rows used whose prompt lost tokens.
    pub shortened: usize,
    /// Rows left out, by reason.
    pub left_out: BTreeMap<String, usize>,
    /// Line of the first row left out for a reason, where there is one.
    first: BTreeMap<String, usize>,
}

impl RowReport {
    /// A report of `rows` rows, none of them left out yet.
    pub fn new(unit: &'static str, rows: usize) -> Self {
        Self { unit, rows, ..Self::default() }
    }

    /// Counts a row that is not used.
    pub fn leave_out(&mut self, reason: impl Into<String>) {
        self.leave_out_several(reason, 1);
    }

    /// Counts rows that are not used.
    pub fn leave_out_several(&mut self, reason: impl Into<String>, rows: usize) {
        if rows > 0 {
            *self.left_out.entry(reason.into()).or_default() += rows;
        }
    }

    /// [`RowReport::leave_out_several`] for rows of which the first begins in `line`.
    pub fn leave_out_at(&mut self, reason: impl Into<String>, rows: usize, line: usize) {
        let reason = reason.into();
        if rows > 0 {
            self.first.entry(reason.clone()).and_modify(|first| *first = line.min(*first)).or_insert(line);
        }
        self.leave_out_several(reason, rows);
    }

    /// Why no row of the file is left, with the first row of each reason, and what mends the reasons that there are.
    pub fn nothing_left(&self, path: &Path) -> String {
        let path = path.display();
        let reason = |(reason, n): (&String, &usize)| match self.first.get(reason) {
            Some(line) => format!("{n} left out ({reason}), the first in {path}:{line}"),
            None => format!("{n} left out ({reason})"),
        };
        let reasons: Vec<String> = self.left_out.iter().map(reason).collect();
        let mut mends: Vec<String> = Vec::new();
        for mend in self.left_out.keys().map(|reason| mend(reason)) {
            if !mends.contains(&mend) {
                mends.push(mend);
            }
        }
        format!(
            "{path}: every row is left out: {} in, {}. To mend it: {}",
            count(self.rows, self.unit),
            reasons.join(", "),
            mends.join("; ")
        )
    }

    /// Rows used.
    pub fn used(&self) -> usize {
        self.rows - self.left_out.values().sum::<usize>()
    }
}

/// What brings rows back that are left out for a reason.
fn mend(reason: &str) -> String {
    let too_long = ["longer than", "prompt longer than", "response leaves no room"];
    match reason {
        _ if too_long.iter().any(|start| reason.starts_with(start)) => {
            "raise --max_length or --max_prompt_length, or shorten the texts".into()
        }
        _ if reason.starts_with("contradictory") => "correct the rows that contradict themselves or one another".into(),
        UNSCORED => "score the rows with `larpo rank` first".into(),
        _ if reason.starts_with("malformed") || reason.starts_with("not ") => {
            "correct the malformed rows (without --on_bad_row skip the first is told in full)".into()
        }
        NOT_ENCODED => "take a model whose tokenizer has the characters of the texts, or change them".into(),
        UNKNOWN_IDS => "remove `token_ids` and `prompt_token_ids`, and the texts are encoded anew".into(),
        NOTHING_TO_LEARN => "give prompts and responses of a token or more".into(),
        _ => match reason.strip_prefix("beyond ") {
            Some(flag) => format!("raise {flag}"),
            None if reason == HELD_BACK || reason == FOR_TRAINING => {
                "choose another --validation_fraction or --split".into()
            }
            None => "give rows that can be learned from".into(),
        },
    }
}

impl fmt::Display for RowReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in = {} used", count(self.rows, self.unit), self.used())?;
        if self.shortened > 0 {
            write!(f, " ({} of them with a shortened prompt)", self.shortened)?;
        }
        for (reason, count) in &self.left_out {
            write!(f, " + {count} left out ({reason})")?;
        }
        Ok(())
    }
}

impl Serialize for RowReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut report = serializer.serialize_struct("RowReport", 5)?;
        report.serialize_field("unit", self.unit)?;
        report.serialize_field("rows", &self.rows)?;
        report.serialize_field("used", &self.used())?;
        report.serialize_field("shortened", &self.shortened)?;
        report.serialize_field("left_out", &self.left_out)?;
        report.end()
    }
}
