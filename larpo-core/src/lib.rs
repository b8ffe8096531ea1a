#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod backend;
pub mod batches;
pub mod candidates;
pub mod conformance;
pub mod cpu;
mod error;
pub mod finite;
pub mod lists;
pub mod metrics;
pub mod model;
pub mod objective;
pub mod ops;
pub mod optim;
pub mod profile;
pub mod proofs;
pub mod reference;
pub mod reranker;
pub mod retriever;
pub mod rng;
pub mod select;
pub mod tape;
pub mod train;

pub use error::Error;
