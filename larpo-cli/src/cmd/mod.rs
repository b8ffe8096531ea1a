//! The verbs. Each takes its flags and returns the object that `--json` prints; everything else goes to stderr.

pub mod align;
pub mod bench;
pub mod demo;
pub mod eval;
pub mod rank;
pub mod sample;
pub mod sft;
pub mod train;

use crate::args::{Cli, Command};
use crate::error::{Error, Result};
use larpo_core::cpu::Cpu;
use serde_json::Value;
use std::path::Path;

/// Runs the verb of a command line.
///
/// # Errors
/// What the verb reports.
pub fn run(cli: &Cli) -> Result<Value> {
    let backend = Cpu::new();
    match &cli.command {
        Command::Demo(args) => demo::run(args, &backend),
        Command::Sft(args) => sft::run(args, &backend),
        Command::Sample(args) => sample::run(args, &backend),
        Command::Rank(args) => rank::run(args),
        Command::Train(args) => train::run(args, &backend),
        Command::Align(args) => align::run(args, &backend),
        Command::Eval(args) => eval::run(args, &backend),
        Command::Bench(args) => bench::run(args),
    }
}

/// Creates a folder for results.
fn create(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))
}
