#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod candidates;
pub mod chat;
pub mod checksums;
pub mod error;
pub mod files;
pub mod model_folder;
pub mod partial;
pub mod records;
pub mod rules;
pub mod state;
pub mod tokenizer;

pub use error::{Error, RecordError, Result};
