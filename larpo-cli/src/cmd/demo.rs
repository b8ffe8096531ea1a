//! `larpo demo`: the main job on embedded data.

use crate::args::DemoArgs;
use crate::demo::{Recipe, run as run_demo};
use crate::error::Result;
use crate::output::OutputDir;
use crate::version::Build;
use larpo_core::backend::Backend;
use serde_json::{Value, json};

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &DemoArgs, backend: &B) -> Result<Value> {
    let recipe = if args.quick { Recipe::quick() } else { Recipe::full() };
    let output = OutputDir::check_demo(&args.output_dir, args.overwrite_output_dir)?;
    output.clear()?;
    OutputDir::mark_demo(
        &args.output_dir,
        &json!({ "quick": args.quick, "seed": args.common.seed, "build": Build::current() }),
    )?;
    let outcome = run_demo(&recipe, args.common.seed, backend, &args.output_dir)?;
    say!("\n{} held-out problems:\n\n{}", recipe.held_out, outcome.table());
    let folder = args.output_dir.display();
    say!(
        "The aligned model is in {folder}, a Hugging Face folder. Next:\n  \
         larpo sample --model_name_or_path {folder} --dataset_name {folder}/held_out.jsonl --max_samples 3 --k 4\n  \
         larpo eval --model_name_or_path {folder} --dataset_name {folder}/held_out.jsonl --max_new_tokens 48\n  \
         larpo align --model_name_or_path {folder} --dataset_name {folder}/prompts.jsonl --output_dir {folder}-2 \
         --max_new_tokens 48"
    );
    Ok(outcome.json())
}
