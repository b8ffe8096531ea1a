//! `larpo align`: the whole loop.

use super::read_prompts;
use crate::align::{AlignConfig, align};
use crate::args::AlignArgs;
use crate::error::Result;
use crate::output::OutputDir;
use crate::policy::Policy;
use crate::reward::RuleReranker;
use larpo_core::backend::Backend;
use serde_json::{Value, json};

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &AlignArgs, backend: &B) -> Result<Value> {
    let mut reranker = RuleReranker::new(&args.reward)?;
    let mut inputs = vec![args.model.model_name_or_path.as_path(), &args.dataset_name];
    inputs.extend(reranker.files());
    let output = OutputDir::check(&args.output_dir, args.overwrite_output_dir, &inputs)?;
    let policy = Policy::open(backend, &args.model.model_name_or_path)?;
    let prompts = read_prompts(
        &policy,
        &args.dataset_name,
        &args.data,
        &args.split,
        args.sampling.max_new_tokens,
        reranker.needs_reference(),
    )?;
    let config = AlignConfig::new(args, &policy);
    super::plan::admit_align(args, &config, policy.model.config(), &prompts)?;
    output.clear()?;
    let (policy, reports) = align(policy, &prompts, &config, &mut reranker, Some(&args.output_dir))?;
    policy.save(&args.output_dir)?;
    reranker.report();
    say!("the aligned model is in {}", args.output_dir.display());
    let iterations: Vec<Value> = reports.iter().map(|r| r.json()).collect();
    Ok(json!({ "output_dir": args.output_dir, "iterations": iterations }))
}
