//! `larpo demo`: the main job on embedded data.

use super::report::joined;
use crate::args::{DemoArgs, Settings};
use crate::demo::{Recipe, run as run_demo};
use crate::error::Result;
use crate::output::OutputDir;
use crate::run_record::{DEMO, Goal, RunRecord};
use larpo_core::backend::Backend;
use serde_json::Value;
use std::path::Path;

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &DemoArgs, settings: &Settings, backend: &B) -> Result<Value> {
    let recipe = if args.quick { Recipe::quick() } else { Recipe::full() };
    let output = OutputDir::check_demo(&args.output_dir, args.overwrite_output_dir)?;
    output.clear()?;
    let mut record = RunRecord::new(DEMO, settings, &[])?;
    record.goal = Some(Goal { iterations: recipe.iterations as usize, more: None, base: 0 });
    record.write(&args.output_dir)?;
    let outcome = run_demo(&recipe, args.common.seed, backend, &args.output_dir)?;
    let summary = outcome.json();
    record.finish(&args.output_dir, &summary)?;
    show!("\n{} held-out problems:\n\n{}", recipe.held_out, outcome.table());
    say!("The aligned model is in {}, a Hugging Face folder. Next:", args.output_dir.display());
    next_commands(&args.output_dir).iter().for_each(|words| say!("  {}", joined(words)));
    Ok(summary)
}

/// What can be tried with the demo's folder, as it is typed: by the name that this program was called by.
fn next_commands(folder: &Path) -> [Vec<String>; 3] {
    let program = std::env::args().next().unwrap_or_else(|| "larpo".into());
    let path = |suffix: &str| format!("{}{suffix}", folder.display());
    let words = |verb: &str, data: &str, rest: &[&str]| {
        let start = [&program, verb, "--model_name_or_path", &path(""), "--dataset_name", &path(data)];
        start.into_iter().chain(rest.iter().copied()).map(String::from).collect()
    };
    [
        words("sample", "/held_out.jsonl", &["--max_samples", "3", "--k", "4", "--max_new_tokens", "48"]),
        words("eval", "/held_out.jsonl", &["--max_new_tokens", "48"]),
        words("align", "/prompts.jsonl", &["--output_dir", &path("-2"), "--max_new_tokens", "48"]),
    ]
}
