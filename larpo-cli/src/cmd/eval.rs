//! `larpo eval`: greedy accuracy, Recall@N and mean reward.

use super::read_prompts;
use crate::args::EvalArgs;
use crate::error::Result;
use crate::evaluate::evaluate;
use crate::generate::sampling_config;
use crate::policy::Policy;
use crate::reward::RuleReranker;
use crate::table::Table;
use larpo_core::backend::Backend;
use larpo_core::metrics::Estimate;
use serde_json::Value;

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &EvalArgs, backend: &B) -> Result<Value> {
    let mut reranker = RuleReranker::new(&args.reward)?;
    let policy = Policy::open(backend, &args.model.model_name_or_path)?;
    let prompts = read_prompts(
        &policy,
        &args.dataset_name,
        &args.data,
        &args.split,
        args.sampling.max_new_tokens,
        reranker.needs_reference(),
    )?;
    let config = sampling_config(&args.sampling, &policy, args.samples(), args.common.seed);
    let result = evaluate(&policy, &prompts, &config, &args.sampling.stop, &args.recall_at, &mut reranker, "eval")?;
    reranker.report();
    let headings = result.recall.iter().map(|(n, _)| format!("Recall@{n}"));
    let mut table = Table::new(["model".into(), "greedy".into()].into_iter().chain(headings));
    let name = args.model.model_name_or_path.display().to_string();
    table.row(std::iter::once(name).chain(result.cells()));
    say!("{}", table.to_string().trim_end());
    say!("mean reward, greedy: {}", interval(&result.greedy_reward));
    if let Some(samples) = &result.sample_reward {
        let samples_are = if config.num_generations == 1 { "sample" } else { "samples" };
        say!("mean reward, {} {samples_are} a prompt: {}", config.num_generations, interval(samples));
    }
    Ok(result.json())
}

fn interval(estimate: &Estimate) -> String {
    match estimate.interval {
        Some((low, high)) => format!("{:.4} (95 % interval {low:.4} to {high:.4})", estimate.mean),
        None => format!("{:.4}", estimate.mean),
    }
}
