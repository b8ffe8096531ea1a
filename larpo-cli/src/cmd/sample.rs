//! `larpo sample`: the retriever alone.

use super::read_prompts;
use crate::args::SampleArgs;
use crate::dataset::{PromptRow, RowReport};
use crate::error::{Error, Result};
use crate::generate::{candidates, sampling_config};
use crate::messages::count;
use crate::output;
use crate::policy::Policy;
use crate::reward::to_row;
use larpo_core::backend::Backend;
use serde_json::{Value, json};

/// Samples shown where nothing is written.
const SHOWN_PROMPTS: usize = 10;

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &SampleArgs, backend: &B) -> Result<Value> {
    if let Some(folder) = &args.output_dir {
        output::prepare_file(folder, "candidates.jsonl", args.overwrite_output_dir, output::FLAG)?;
    }
    let policy = Policy::open(backend, &args.model.model_name_or_path)?;
    let (prompts, report) = prompts(args, &policy)?;
    let config = sampling_config(&args.sampling, &policy, args.generations.num_generations, args.common.seed);
    let lists = candidates(&policy, &prompts, &config, &args.sampling.stop, "sample")?;
    let tokens: usize = lists.iter().flat_map(|l| &l.candidates).map(|c| c.ids.len()).sum();
    let mut summary = json!({
        "prompts": lists.len(),
        "responses": lists.len() * config.num_generations,
        "tokens": tokens,
        "data": report,
    });
    match &args.output_dir {
        Some(folder) => {
            let path = folder.join("candidates.jsonl");
            // Not ranked yet: rows without rewards.
            let rows: Vec<_> = lists
                .iter()
                .map(|list| larpo_data::candidates::CandidateList {
                    rewards: Vec::new(),
                    ..to_row(list, &args.sampling.stop)
                })
                .collect();
            larpo_data::candidates::write(&path, &rows)?;
            let responses = count(config.num_generations, "responses");
            say!("{} × {responses} in {}", count(lists.len(), "prompts"), path.display());
            summary["candidates"] = json!(path);
        }
        None => {
            for list in lists.iter().take(SHOWN_PROMPTS) {
                show!("\n> {}", list.prompt.trim_end().replace('\n', "\n> "));
                for candidate in &list.candidates {
                    let end = candidate.finish_reason.map_or("", |f| f.name());
                    let logp: f64 = candidate.logps.iter().map(|&l| f64::from(l)).sum();
                    let tokens = count(candidate.ids.len(), "tokens");
                    show!("[{tokens}, log p {logp:.1}, {end}]\n{}", candidate.text.trim_end());
                }
            }
            if lists.len() > SHOWN_PROMPTS {
                let more = count(lists.len() - SHOWN_PROMPTS, "prompts");
                say!("\n… and {more} more; --output_dir keeps them all");
            }
        }
    }
    Ok(summary)
}

pub(super) fn prompts<B: Backend>(args: &SampleArgs, policy: &Policy<B>) -> Result<(Vec<PromptRow>, RowReport)> {
    let Some(path) = &args.dataset_name else {
        let rows = args.prompt.iter().enumerate().map(|(index, text)| {
            let ids = policy.encode_prompt(text)?;
            let (limit, new) = (policy.model.config().max_position_embeddings, args.sampling.max_new_tokens);
            if ids.is_empty() {
                return Err(Error::request("--prompt is empty and the tokenizer puts no BOS token in front"));
            }
            if ids.len().saturating_add(new) > limit {
                return Err(Error::request(format!(
                    "--prompt {text:?} has {} tokens, with --max_new_tokens {new} more than the model's {limit} positions; \
                     give a smaller --max_new_tokens or a shorter prompt",
                    ids.len()
                )));
            }
            Ok(PromptRow::of_text(index, text, ids))
        });
        let rows: Vec<PromptRow> = rows.collect::<Result<_>>()?;
        let report = RowReport::new("prompts", rows.len());
        return Ok((rows, report));
    };
    read_prompts(policy, path, &args.data, &args.split, args.sampling.max_new_tokens, false)
}
