//! `larpo align`: the whole loop.

use super::read_prompts;
use crate::align::{AlignConfig, Place, align};
use crate::args::{AlignArgs, Settings};
use crate::error::Result;
use crate::policy::Policy;
use crate::resume::align_point;
use crate::reward::RuleReranker;
use crate::run_folder::{RunFolder, RunRequest, already_finished};
use crate::stop::Stop;
use larpo_core::backend::Backend;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &AlignArgs, settings: &Settings, stop: &Stop, backend: &B) -> Result<Value> {
    let mut reranker = RuleReranker::new(&args.reward)?;
    let words: Vec<PathBuf> = reranker.files().into_iter().map(Path::to_path_buf).collect();
    let mut inputs = vec![
        ("model_name_or_path", args.model.model_name_or_path.as_path()),
        ("dataset_name", args.dataset_name.as_path()),
    ];
    inputs.extend(words.iter().map(|path| ("reward_funcs", path.as_path())));
    let request = RunRequest {
        verb: "align",
        settings,
        folder: &args.output_dir,
        overwrite: args.overwrite_output_dir,
        train: &args.train,
        inputs: &inputs,
    };
    let mut folder = RunFolder::open(&request)?;
    let point = folder.from(&request).map(|from| align_point(&args.output_dir, from)).transpose()?.unwrap_or_default();
    if let Some(summary) = folder.finished(&request).filter(|_| point.done as usize == args.iterate.iterations) {
        return already_finished(&args.output_dir, summary);
    }
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
    folder.begin()?;
    let place = Place { folder: args.output_dir.clone(), point, stop: stop.clone() };
    let (policy, iterations) = align(policy, &prompts, &config, &mut reranker, Some(&place))?;
    policy.save(&args.output_dir)?;
    reranker.report();
    say!("the aligned model is in {}", args.output_dir.display());
    let summary = json!({ "output_dir": args.output_dir, "iterations": iterations });
    folder.finish(&summary)?;
    Ok(summary)
}
