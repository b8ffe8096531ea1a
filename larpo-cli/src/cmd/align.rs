//! `larpo align`: the whole loop.

use super::read_prompts;
use crate::align::{AlignConfig, NOT_LOOKED_AT, Place, START, align};
use crate::args::{AlignArgs, DataArgs, Iterations, Settings, Split, SplitArgs};
use crate::dataset::{PromptRow, RowReport};
use crate::error::{Error, Result};
use crate::policy::{Opened, Policy};
use crate::resume::{ResumeFrom, align_point};
use crate::reward::RewardSource;
use crate::run_folder::{RunFolder, RunRequest, already_finished};
use crate::run_record::{Goal, RunRecord, no_run};
use crate::status;
use crate::stop::Stop;
use crate::watch::Watch;
use larpo_core::backend::Backend;
use serde_json::{Value, json};

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &AlignArgs, settings: &Settings, stop: &Stop, backend: &B) -> Result<Value> {
    if let Iterations::More(n) = args.iterate.iterations
        && RunRecord::read(&args.output_dir)?.is_none()
    {
        return Err(Error::request(no_run(n)));
    }
    let reward = RewardSource::read(&args.reward)?;
    let judges = reward.inputs();
    let mut inputs = vec![
        ("model_name_or_path", args.model.model_name_or_path.as_path()),
        ("dataset_name", args.dataset_name.as_path()),
    ];
    inputs.extend(judges.iter().map(|(flag, path)| (*flag, path.as_path())));
    inputs.extend(args.iterate.eval_dataset.iter().map(|path| ("eval_dataset", path.as_path())));
    // More iterations than a run had are a run that goes on.
    let more = matches!(args.iterate.iterations, Iterations::More(_)).then_some(&ResumeFrom::Latest);
    let request = RunRequest {
        verb: "align",
        settings,
        folder: &args.output_dir,
        overwrite: args.overwrite_output_dir,
        from: args.train.resume_from_checkpoint.as_ref().or(more),
        inputs: &inputs,
        device: backend.name(),
    };
    let mut folder = RunFolder::open(&request)?;
    let point = folder.from(&request).map(|from| align_point(&args.output_dir, from)).transpose()?.unwrap_or_default();
    if let Some(last) = point.last(&args.output_dir) {
        status::set_checkpoint(&last);
    }
    let given = settings.given().contains("iterations");
    let goal = Goal::new(args.iterate.iterations, given, folder.earlier(), point.done as usize)?;
    let same = folder.earlier().is_some_and(|earlier| earlier.goal == Some(goal))
        && folder.unchanged("until_kl")
        && folder.unchanged("early_stopping_patience");
    // A damaged iteration is made again, in a finished run too.
    let whole = |summary: &Value| summary["iterations"].as_array().is_some_and(|all| all.len() == point.done as usize);
    if let Some(summary) = folder.finished(&request).filter(|summary| same && whole(summary)) {
        let summary = already_finished(&args.output_dir, summary)?;
        say!("--iterations +N goes on with N more iterations");
        return Ok(summary);
    }
    folder.set_goal(goal);
    let opened = Opened::read_to_train(&args.model.model_name_or_path, &args.lora, args.common.seed)?
        .with_base(args.lora.base_dtype)?
        .recomputing(args.train.gradient_checkpointing);
    let (config, prompts, report) = read(args, goal, &opened.blank()?, reward.needs_reference())?;
    backend.limit(super::plan::admit_align(args, &config, (&opened.config, reward.model()), &prompts, &point)?);
    let policy = opened.load(backend)?.written_in(args.train.dtype);
    let mut reranker = reward.load(backend)?;
    // Before anything is written: a refusal changes nothing.
    if config.watch.is_on() && point.done > 0 && !args.output_dir.join(START).exists() {
        return Err(Error::request(NOT_LOOKED_AT));
    }
    let best = folder.earlier().and_then(|earlier| earlier.result.as_ref()?.summary["best_iteration"].as_u64());
    if let (Some(best), None) = (best.filter(|&best| best != u64::from(point.done)), config.watch.patience) {
        say!(
            "note: early stopping is off now: the run goes on from its last iteration, {}, and the best model, that of iteration \
             {best}, which was kept, is replaced at the end",
            point.done
        );
    }
    folder.begin()?;
    let place = Place { folder: args.output_dir.clone(), point, stop: stop.clone() };
    let end = align(policy, &prompts, &config, &mut reranker, Some(&place))?;
    end.policy.save(&args.output_dir)?;
    reranker.report();
    if let Some(why) = &end.ended {
        say!("ended early: {why}");
    }
    match end.kept {
        Some(0) => say!("no iteration was better than the start: the model stays what it was"),
        Some(best) => say!("the model of iteration {best}, the best one, is kept"),
        None => {}
    }
    say!("the aligned model is in {}", args.output_dir.display());
    let summary = json!({
        "output_dir": args.output_dir,
        "iterations": end.reports,
        "ended_early": end.ended,
        "best_iteration": end.kept,
        "data": report,
    });
    folder.finish(&summary)?;
    Ok(summary)
}

/// The settings of a run that goes as far as `goal`, its prompts, and what became of the rows.
pub(super) fn read<B: Backend>(
    args: &AlignArgs,
    goal: Goal,
    policy: &Policy<B>,
    needs_reference: bool,
) -> Result<(AlignConfig, Vec<PromptRow>, RowReport)> {
    let tokens = args.sampling.max_new_tokens;
    let (prompts, report) = read_prompts(policy, &args.dataset_name, &args.data, &args.split, tokens, needs_reference)?;
    let watch = Watch {
        prompts: watched(args, policy, &prompts, needs_reference)?,
        until_kl: args.iterate.until_kl,
        patience: args.iterate.early_stopping_patience,
        base: goal.base as u32,
    };
    Ok((AlignConfig { watch, ..AlignConfig::new(args, goal.iterations as u32, policy) }, prompts, report))
}

/// The prompts that are looked at after each iteration; none where nothing asks for it.
fn watched<B: Backend>(
    args: &AlignArgs,
    policy: &Policy<B>,
    prompts: &[PromptRow],
    needs_reference: bool,
) -> Result<Vec<PromptRow>> {
    let iterate = &args.iterate;
    if iterate.until_kl.is_none() && iterate.early_stopping_patience.is_none() && iterate.eval_dataset.is_none() {
        return Ok(Vec::new());
    }
    let all = SplitArgs { validation_fraction: 0.0, split: Split::All };
    let held_out = SplitArgs { split: Split::Validation, ..args.split.clone() };
    let (path, split) = match &iterate.eval_dataset {
        Some(path) => (path, all),
        None if args.holds_out() => (&args.dataset_name, held_out),
        None => return Ok(prompts.iter().take(iterate.eval_prompts).cloned().collect()),
    };
    let (max_samples, samples_flag) = (Some(iterate.eval_prompts), Some("--eval_prompts"));
    let data = DataArgs { max_samples, samples_flag, ..args.data.clone() };
    say!("watched prompts:");
    let (rows, _) = read_prompts(policy, path, &data, &split, args.sampling.max_new_tokens, needs_reference)?;
    match rows.is_empty() {
        true => Err(Error::request("no prompts to watch")),
        false => Ok(rows),
    }
}
