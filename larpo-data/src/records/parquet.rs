//! Rows of Parquet files, through arrow's reader.

use super::rows::Row;
use crate::error::{Error, Result};
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use bytes::Bytes;
use serde_json::Value;
use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// The rows, as JSON objects; errors count them from 1. Numbers that are not finite and absent values are null.
pub(super) fn rows<'a>(path: &'a Path, bytes: &[u8], most: u64) -> Result<Vec<Result<Row<'a>>>> {
    let damaged = |problem: String| Error::Unrecognised {
        path: path.into(),
        found: format!("the Parquet data cannot be read: {problem}"),
        mend: "Copy or download the file again, or write it with the codec snappy, gzip, brotli, lz4 or none".into(),
    };
    let read = || -> std::result::Result<Vec<Result<Row<'a>>>, String> {
        let reader = SerializedFileReader::new(Bytes::copy_from_slice(bytes)).map_err(|e| e.to_string())?;
        let size = |size: i64| u64::try_from(size).unwrap_or(u64::MAX);
        let groups = reader.metadata().row_groups().iter();
        let whole = groups.fold(0u64, |sum, group| sum.saturating_add(size(group.total_byte_size())));
        if whole > most {
            return Err(format!("more than {} GiB of data in it; split the file", most >> 30));
        }
        let rows = reader.get_row_iter(None).map_err(|e| e.to_string())?.enumerate();
        rows.map(|(index, row)| {
            let object = match row.map_err(|e| format!("row {}: {e}", index + 1))?.to_json_value() {
                Value::Object(object) => object,
                other => return Err(format!("row {} is {other}", index + 1)),
            };
            let text = Cow::Owned(Value::Object(object.clone()).to_string());
            Ok(Ok(Row { path, line: index + 1, text, object, cells: false }))
        })
        .collect()
    };
    // The library panics on some damaged files; that is an error of the file like any other.
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(rows) => rows.map_err(damaged),
        Err(_) => Err(damaged("its parts do not fit together".into())),
    }
}
