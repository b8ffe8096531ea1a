#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

#[macro_use]
pub mod messages;

pub mod align;
pub mod args;
pub mod cache_folder;
pub mod candidate_rows;
pub mod chat;
pub mod checkpoint;
pub mod cmd;
pub mod dataset;
pub mod demo;
pub mod edits;
pub mod error;
pub mod evaluate;
pub mod generate;
pub mod gpu;
pub mod machine;
pub mod metrics_log;
pub mod numbers;
pub mod output;
pub mod pairwise_ranker;
pub mod plan;
pub mod policy;
pub mod progress;
pub mod references;
pub(crate) mod resumable;
pub mod resume;
pub mod reward;
pub mod reward_model;
pub mod run_folder;
pub mod run_record;
pub mod samples;
pub mod status;
pub mod stop;
pub mod table;
pub mod tensorboard;
pub mod threads;
pub mod training;
pub mod version;
pub mod watch;
