//! `larpo demo`: the main job on embedded data.

use crate::args::DemoArgs;
use crate::demo::{DATA_FILES, Recipe, run as run_demo};
use crate::error::Result;
use crate::output::OutputDir;
use larpo_core::backend::Backend;
use serde_json::Value;

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &DemoArgs, backend: &B) -> Result<Value> {
    let recipe = if args.quick { Recipe::quick() } else { Recipe::full() };
    // The files of an earlier demo are no loss: the same command makes them again.
    let replace = args.overwrite_output_dir || DATA_FILES.iter().all(|name| args.output_dir.join(name).is_file());
    OutputDir::check(&args.output_dir, replace)?.clear(&[])?;
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
