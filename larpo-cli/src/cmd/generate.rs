//! `larpo generate`: one response to each prompt, greedy, sampled, or the best of several.

use super::{check_references, read_prompts};
use crate::args::GenerateArgs;
use crate::chat::{Chat, turn};
use crate::dataset::{PromptRow, RowReport};
use crate::error::{Error, Result};
use crate::generate::{candidates, sampling_config};
use crate::messages::count;
use crate::output;
use crate::policy::Policy;
use crate::reward::RewardSource;
use larpo_core::backend::Backend;
use serde_json::{Value, json};
use std::path::Path;

/// The file that `--output_dir` gets.
const FILE: &str = "generations.jsonl";

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &GenerateArgs, backend: &B) -> Result<Value> {
    if let Some(folder) = &args.output_dir {
        output::prepare_file(folder, FILE, args.overwrite_output_dir, output::FLAG)?;
    }
    let reward = args.best_of.map(|_| RewardSource::read(&args.reward)).transpose()?;
    let folder = &args.model.model_name_or_path;
    let policy = Policy::open(backend, folder)?;
    let (mut prompts, report) = prompts(args, &policy)?;
    if let Some(reward) = &reward {
        check_references(
            args.dataset_name.as_deref().unwrap_or(Path::new("--prompt")),
            &prompts,
            reward.needs_reference(),
        )?;
    }
    if args.apply_chat_template {
        if prompts.iter().any(|prompt| prompt.conversation.is_some()) {
            return Err(Error::request(
                "--apply_chat_template makes a turn of a text, and the data hold conversations; leave it out",
            ));
        }
        let chat = Chat::new(&policy.tokenizer, folder)?;
        for prompt in &mut prompts {
            let system = args.system.iter().map(|text| turn("system", text));
            let messages: Vec<Value> = system.chain([turn("user", &prompt.text)]).collect();
            prompt.ids = chat.prompt(&messages)?.1;
            prompt.conversation = Some(Value::from(messages).to_string().into());
        }
    }
    check_lengths(&prompts, args.sampling.max_new_tokens, policy.model.config().max_position_embeddings)?;
    let config = sampling_config(&args.sampling, &policy, args.best_of.unwrap_or(1), args.common.seed);
    let config = if args.do_sample || args.best_of.is_some() { config } else { config.greedy() };
    let mut lists = candidates(&policy, &prompts, &config, &args.sampling.stop, "generate")?;
    if let Some(reward) = reward {
        policy.model.backend().trim();
        let mut ranker = reward.load(backend)?;
        lists.iter_mut().try_for_each(|list| list.rank(&mut ranker))?;
    }
    let row = |list: &larpo_core::candidates::CandidateList| {
        let best = list.candidates.iter().reduce(|a, b| if b.reward > a.reward { b } else { a });
        best.map(|best| {
            let mut row = json!({
                "prompt": list.prompt,
                "response": best.text,
                "num_tokens": best.ids.len(),
                "finish_reason": best.finish_reason.map(|reason| reason.name()),
            });
            if args.best_of.is_some() {
                row["reward"] = json!(best.reward);
            }
            row
        })
    };
    let rows: Vec<Value> = lists.iter().filter_map(row).collect();
    match &args.output_dir {
        Some(folder) => {
            let path = folder.join(FILE);
            let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
            larpo_data::files::write_bytes(&path, text.as_bytes())?;
            say!("{} in {}", count(rows.len(), "responses"), path.display());
        }
        None if rows.len() == 1 => show!("{}", rows[0]["response"].as_str().unwrap_or_default()),
        None => {
            for (row, list) in rows.iter().zip(&lists) {
                show!("\n> {}", list.prompt.trim_end().replace('\n', "\n> "));
                show!("{}", row["response"].as_str().unwrap_or_default().trim_end());
            }
        }
    }
    Ok(json!({ "responses": rows, "data": report }))
}

fn prompts<B: Backend>(args: &GenerateArgs, policy: &Policy<B>) -> Result<(Vec<PromptRow>, RowReport)> {
    if let Some(path) = &args.dataset_name {
        return read_prompts(policy, path, &args.data, &args.split, args.sampling.max_new_tokens, false);
    }
    let row = |(index, text): (usize, &String)| {
        let ids = policy.encode_prompt(text)?;
        match ids.is_empty() && !args.apply_chat_template {
            true => Err(Error::request("--prompt is empty and the tokenizer puts no BOS token in front")),
            false => Ok(PromptRow::of_text(index, text, ids)),
        }
    };
    let rows: Vec<PromptRow> = args.prompt.iter().enumerate().map(row).collect::<Result<_>>()?;
    let report = RowReport::new("prompts", rows.len());
    Ok((rows, report))
}

fn check_lengths(prompts: &[PromptRow], new: usize, limit: usize) -> Result<()> {
    match prompts.iter().find(|prompt| prompt.ids.len().saturating_add(new) > limit) {
        None => Ok(()),
        Some(prompt) => Err(Error::request(format!(
            "the prompt {:?} has {} tokens, with --max_new_tokens {new} more than the model's {limit} positions; give a \
             smaller --max_new_tokens or a shorter prompt",
            prompt.text,
            prompt.ids.len()
        ))),
    }
}
