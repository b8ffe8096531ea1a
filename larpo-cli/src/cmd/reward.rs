//! `larpo reward`: a reward model, trained on preference pairs or ranked lists.

use crate::args::{RewardVerbArgs, Settings, Split, TruncationMode};
use crate::dataset::{Limits, Part, RankedTexts, RowReport, Source};
use crate::error::{Error, Result};
use crate::resume::{self, Resume};
use crate::reward_model::{OpenedRewardModel, Prompt, SharedTexts};
use crate::run_folder::{RunFolder, RunRequest, already_finished};
use crate::status;
use crate::stop::Stop;
use crate::training::{Journal, LoopConfig, rewards, train_rewards};
use larpo_core::backend::Backend;
use larpo_core::metrics::{Resampling, bootstrap_estimate, pair_accuracy};
use larpo_core::model::Transformer;
use larpo_core::train::{RewardList, SCORING_ROWS};
use serde_json::{Value, json};
use std::path::Path;

/// Resamples of the interval of the accuracy.
const RESAMPLES: usize = 2000;

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &RewardVerbArgs, settings: &Settings, stop: &Stop, backend: &B) -> Result<Value> {
    let (start, path) = (&args.model.model_name_or_path, &args.dataset_name);
    let request = RunRequest {
        verb: "reward",
        settings,
        folder: &args.output_dir,
        overwrite: args.overwrite_output_dir,
        from: args.train.resume_from_checkpoint.as_ref(),
        inputs: &[("model_name_or_path", start), ("dataset_name", path)],
        device: backend.name(),
    };
    let mut folder = RunFolder::open(&request)?;
    if let Some(summary) = folder.finished(&request) {
        return already_finished(&args.output_dir, summary);
    }
    let resume = folder.from(&request).map(|from| resume::checkpoint(&args.output_dir, from)).transpose()?.flatten();
    if let Some(resume) = &resume {
        status::set_checkpoint(&resume.checkpoint);
    }
    let opened = OpenedRewardModel::read_to_train(start)?.recomputing(args.train.gradient_checkpointing);
    let Read { lists, held_out, report } = read(args, &opened)?;
    let done = resume.as_ref().map_or(0, Resume::updates);
    backend.limit(super::plan::admit_reward(args, opened.config(), &lists, done)?);
    let policy = opened.load_to_train(backend)?.written_in(args.train.dtype);
    folder.begin()?;
    let journal = Journal {
        label: "reward".into(),
        metrics: Some(args.output_dir.join("metrics.jsonl")),
        checkpoints: vec![args.output_dir.clone()],
        run: Some(args.output_dir.clone()),
        resume,
        stop: stop.clone(),
    };
    let config = LoopConfig::rewards(&args.train, args.common.seed);
    let (policy, outcome) = train_rewards(policy, &lists, args.center_rewards_coefficient, &config, journal)?;
    let m = outcome.metrics;
    say!(
        "reward: over the last quarter of the updates loss {:.4}, accuracy {:.3}, margin {:.3}",
        outcome.loss,
        m.reward_accuracy,
        m.reward_chosen - m.reward_rejected
    );
    let held_out = held_out.map(|lists| order(&policy.model, &lists, args.common.seed)).transpose()?;
    policy.save(&args.output_dir)?;
    say!("the reward model is in {}", args.output_dir.display());
    let summary = json!({
        "output_dir": args.output_dir,
        "steps": outcome.steps,
        "loss": outcome.loss,
        "accuracy": m.reward_accuracy,
        "margin": m.reward_chosen - m.reward_rejected,
        "held_out": held_out,
        "data": report,
    });
    folder.finish(&summary)?;
    Ok(summary)
}

/// How a model orders lists that it was not trained on.
fn order<B: Backend>(model: &Transformer<B>, lists: &[RewardList], seed: u64) -> Result<Value> {
    let mut accuracies = Vec::with_capacity(lists.len());
    let mut rest = lists;
    while !rest.is_empty() {
        let mut rows = 0;
        let fits = |list: &&RewardList| {
            rows += list.rows();
            rows <= SCORING_ROWS
        };
        let (pass, after) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        rest = after;
        let scores = rewards(model, &pass.iter().collect::<Vec<_>>())?;
        let mut scores = &scores[..];
        for list in pass {
            let (own, others) = scores.split_at(list.responses.len());
            scores = others;
            let accuracy = pair_accuracy(own, &list.labels).map_err(|error| Error::request(error.to_string()))?;
            accuracies.extend(accuracy.strict);
        }
    }
    let estimate = bootstrap_estimate(&accuracies, Resampling { seed, resamples: RESAMPLES })
        .ok_or_else(|| Error::request("no held-out list with two different rewards"))?;
    let percent = |(low, high): (f64, f64)| format!(" [{:.1}, {:.1}]", 100.0 * low, 100.0 * high);
    show!(
        "held out: {:.1} %{} of the pairs of {} lists in the right order",
        100.0 * estimate.mean,
        estimate.interval.map_or_else(String::new, percent),
        estimate.n
    );
    Ok(json!({ "accuracy": estimate.mean, "interval": estimate.interval, "lists": estimate.n }))
}

/// What a run trains on and is looked at on.
pub(super) struct Read {
    pub(super) lists: Vec<RewardList>,
    held_out: Option<Vec<RewardList>>,
    report: RowReport,
}

pub(super) fn read(args: &RewardVerbArgs, opened: &OpenedRewardModel) -> Result<Read> {
    if !matches!(args.data.truncation_mode, TruncationMode::Skip | TruncationMode::Error) {
        return Err(Error::request(
            "--truncation_mode keep_start and keep_end are not for reward models, which read whole conversations; use skip \
             or error",
        ));
    }
    let source = Source::open(&args.dataset_name, &args.data, Some(opened.tokenizer()))?;
    let limits = Limits::new(&args.data, &opened.blank()?)?;
    let held_back = args.validation_fraction.unwrap_or(0.0);
    let part = |split| Part { held_back, split };
    let (lists, report) = encoded(args, opened, &source, limits, part(Split::Train))?;
    say!("training data: {report}");
    let held_out = match args.validation_fraction {
        None => None,
        Some(_) => {
            let all = Limits { max_samples: usize::MAX, ..limits };
            let (lists, report) = encoded(args, opened, &source, all, part(Split::Validation))?;
            say!("validation data: {report}");
            Some(lists)
        }
    };
    Ok(Read { lists, held_out, report })
}

/// The lists of a part that say which response is better, in tokens.
fn encoded(
    args: &RewardVerbArgs,
    opened: &OpenedRewardModel,
    source: &Source,
    limits: Limits,
    part: Part,
) -> Result<(Vec<RewardList>, RowReport)> {
    let (texts, mut report) = source.ranked_texts(limits, part)?;
    let mut lists = Vec::with_capacity(texts.len());
    for RankedTexts { line, prompt, chat, responses, scores, margin, rows } in texts {
        let prompt = if chat { Prompt::Rendered(prompt) } else { Prompt::Text(prompt) };
        if scores.iter().all(|score| Some(score) == scores.first()) {
            report.leave_out_several("equal rewards", rows);
            continue;
        }
        let longer = format!("longer than {} tokens", limits.max_length);
        match opened.encode(prompt, &responses, limits.max_length) {
            Err(error) => return Err(located(&args.dataset_name, line, &error)),
            Ok(Some(SharedTexts { prompt, rest })) => {
                let margin = margin.unwrap_or(args.margin);
                lists.push(RewardList { prompt, responses: rest, labels: scores, margin });
            }
            Ok(None) if args.data.truncation_mode == TruncationMode::Error => {
                return Err(located(&args.dataset_name, line, &longer));
            }
            Ok(None) => report.leave_out_at(longer, rows, line),
        }
    }
    match lists.is_empty() {
        true => Err(Error::request(report.nothing_left(&args.dataset_name))),
        false => Ok((lists, report)),
    }
}

fn located(path: &Path, line: usize, problem: &dyn std::fmt::Display) -> Error {
    Error::request(format!("{}:{line}: {problem}", path.display()))
}
