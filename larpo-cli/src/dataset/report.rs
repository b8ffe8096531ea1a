//! What became of the rows of a file.

use crate::messages::count;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::collections::BTreeMap;
use std::fmt;

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

    /// Rows used.
    pub fn used(&self) -> usize {
        self.rows - self.left_out.values().sum::<usize>()
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
