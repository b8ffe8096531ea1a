#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

#[macro_use]
pub mod messages;

pub mod align;
pub mod args;
pub mod cmd;
pub mod dataset;
pub mod demo;
pub mod error;
pub mod evaluate;
pub mod generate;
pub mod machine;
pub mod metrics_log;
pub mod output;
pub mod plan;
pub mod policy;
pub mod progress;
pub mod reward;
pub mod status;
pub mod table;
pub mod threads;
pub mod training;
pub mod version;
