//! Parquet files against the same rows as JSONL; the files were written by pyarrow.
#![cfg(feature = "parquet")]

mod common;

use common::{Folder, holds};
use larpo_data::records::{FormatKind, ReadOptions, Records, Schema, read_dataset};
use std::path::{Path, PathBuf};

fn file(name: &str) -> PathBuf {
    Path::new("tests/golden/parquet").join(name)
}

fn read(path: impl AsRef<Path>) -> Result<Records, String> {
    read_dataset(path, &ReadOptions::default()).map_err(|error| error.to_string())
}

#[test]
fn rows_are_those_of_the_same_jsonl_file() {
    for name in ["pairs", "lists"] {
        let expected = read(file(&format!("{name}.jsonl"))).unwrap();
        let codecs: &[&str] = if name == "pairs" { &["-none", "-snappy", "-gzip", "-brotli", "-lz4"] } else { &[""] };
        for codec in codecs {
            let found = read(file(&format!("{name}{codec}.parquet"))).unwrap();
            assert_eq!(found.format.kind, FormatKind::Parquet);
            assert_eq!((found.dataset, found.schema), (expected.dataset.clone(), expected.schema), "{name}{codec}");
        }
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let error = read(file("pairs-zstd.parquet")).unwrap_err();
    holds(&error, &["pairs-zstd.parquet", "zstd", "snappy"]);
    let bytes = std::fs::read(file("pairs-snappy.parquet")).unwrap();
    let folder = Folder::new();
    for length in [4, 8, 100, bytes.len() - 1] {
        let cut = folder.file("cut.parquet", &bytes[..length]);
        holds(&read(cut).unwrap_err(), &["cut.parquet", "the Parquet data cannot be read", "download the file again"]);
    }
    // The schema is found out as everywhere; a row is named by its number.
    let options = ReadOptions { schema: Some(Schema::Gsm8k), ..ReadOptions::default() };
    let error = read_dataset(file("pairs-none.parquet"), &options).unwrap_err().to_string();
    holds(&error, &["pairs-none.parquet:1:", "`answer`"]);
}
