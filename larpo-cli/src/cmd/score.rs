//! `larpo score`: log-probabilities of responses under a model, and what a reward model makes of them.

use crate::args::{ScoreArgs, TruncationMode};
use crate::chat;
use crate::dataset::{Limits, Part, RankedTexts, Source};
use crate::error::{Error, Result};
use crate::messages::count;
use crate::output;
use crate::policy::Policy;
use crate::progress::Progress;
use crate::reward_model::{OpenedRewardModel, Prompt, RewardModel};
use crate::table::Table;
use larpo_core::backend::Backend;
use larpo_core::train::{SCORING_ROWS, TrainingList, TrainingResponse, fill_references};
use serde_json::{Value, json};

/// The file that `--output_dir` gets.
const FILE: &str = "scores.jsonl";
/// Rows that are shown where nothing is written.
const SHOWN: usize = 20;
/// Characters of a response in the table.
const WIDTH: usize = 40;

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &ScoreArgs, backend: &B) -> Result<Value> {
    if let Some(folder) = &args.output_dir {
        output::prepare_file(folder, FILE, args.overwrite_output_dir, output::FLAG)?;
    }
    let policy = args.model_name_or_path.as_ref().map(|folder| Policy::open(backend, folder)).transpose()?;
    let judge = args.reward_model.as_ref().map(|folder| OpenedRewardModel::read(folder)).transpose()?;
    let judge = judge.map(|opened| opened.load(backend)).transpose()?;
    let tokenizer = policy.as_ref().map(|policy| &*policy.tokenizer).or(judge.as_ref().map(RewardModel::tokenizer));
    let source = Source::open(&args.dataset_name, &args.data, tokenizer)?;
    let part = Part { held_back: args.split.validation_fraction, split: args.split.split };
    let limits = match &policy {
        Some(policy) => Limits::new(&args.data, policy)?,
        None => Limits {
            max_length: args.data.max_length.unwrap_or(usize::MAX),
            max_prompt_length: args.data.max_prompt_length.unwrap_or(usize::MAX),
            max_samples: args.data.max_samples.unwrap_or(usize::MAX),
            samples_flag: "--max_samples",
            truncation_mode: args.data.truncation_mode,
        },
    };
    let (texts, mut report) = source.responses(limits, part)?;
    let at = |line: usize, problem: &dyn std::fmt::Display| {
        Error::request(format!("{}:{line}: {problem}", args.dataset_name.display()))
    };
    let mut rows = Vec::with_capacity(texts.len());
    let mut lists = Vec::with_capacity(texts.len());
    if policy.is_some() && judge.is_some() && texts.iter().any(|text| text.chat) {
        return Err(Error::request(
            "the data hold conversations, which the two models' chat templates write in their own ways; score them with \
             --model_name_or_path and with --reward_model one after the other",
        ));
    }
    for text in texts {
        if let Some(policy) = &policy {
            let list = encode(policy, &text).map_err(|error| at(text.line, &error))?;
            let longest = list.responses.iter().map(|response| response.ids.len()).max().unwrap_or(0);
            if list.prompt.len() + longest > limits.max_length {
                let reason = format!("longer than {} tokens", limits.max_length);
                if args.data.truncation_mode == TruncationMode::Error {
                    return Err(at(text.line, &reason));
                }
                report.leave_out_several(reason, text.rows);
                continue;
            }
            lists.push(list);
        }
        rows.push(text);
    }
    say!("data: {report}");
    if let Some(policy) = &policy {
        score(policy, &mut lists)?;
    }
    let progress = judge.as_ref().map(|_| Progress::new("reward model", rows.len() as u64, "rows"));
    let mut results = Vec::with_capacity(rows.len());
    for (i, row) in rows.iter().enumerate() {
        let mut value = json!({ "prompt": row.prompt, "responses": row.responses });
        if let Some(list) = lists.get(i) {
            let sums = list.responses.iter().map(|r| r.reference.iter().copied().map(f64::from).sum::<f64>());
            value["sum_logps"] = sums.collect::<Vec<f64>>().into();
            value["num_tokens"] = list.responses.iter().map(|r| r.reference.len()).collect::<Vec<_>>().into();
        }
        if let Some(judge) = &judge {
            let prompt = if row.chat { Prompt::Rendered(row.prompt) } else { Prompt::Text(row.prompt) };
            value["rewards"] = json!(judge.rewards(prompt, &row.responses).map_err(|error| at(row.line, &error))?);
            progress.iter().for_each(|progress| progress.advance(1));
        }
        results.push(value);
    }
    progress.into_iter().for_each(Progress::finish);
    let responses: usize = rows.iter().map(|row| row.responses.len()).sum();
    match &args.output_dir {
        Some(folder) => {
            let path = folder.join(FILE);
            let text: String = results.iter().map(|row| format!("{row}\n")).collect();
            larpo_data::files::write_bytes(&path, text.as_bytes())?;
            show!("{} to {} in {}", count(responses, "responses"), count(rows.len(), "prompts"), path.display());
        }
        None => show_table(&results),
    }
    Ok(json!({ "rows": rows.len(), "responses": responses, "data": report, "scores": results }))
}

/// A row in the tokens of `policy`, every response with its end.
fn encode<B: Backend>(policy: &Policy<B>, row: &RankedTexts) -> Result<TrainingList> {
    if row.chat {
        let (prompt, answers) = chat::encode(&policy.tokenizer, row.prompt, &row.responses)?;
        let response = |ids| TrainingResponse { ids, reward: 0.0, reference: Vec::new(), sampled: None };
        return Ok(TrainingList { prompt, responses: answers.into_iter().map(response).collect() });
    }
    let response = |text: &&str| {
        Ok(TrainingResponse { ids: policy.encode_response(text)?, reward: 0.0, reference: Vec::new(), sampled: None })
    };
    let responses = row.responses.iter().map(response).collect::<Result<_>>()?;
    Ok(TrainingList { prompt: policy.encode_prompt(row.prompt)?, responses })
}

/// Log-probabilities of every token.
fn score<B: Backend>(policy: &Policy<B>, lists: &mut [TrainingList]) -> Result<()> {
    let progress = Progress::new("log-probabilities", lists.len() as u64, "rows");
    let mut rest = lists;
    while !rest.is_empty() {
        let mut rows = 0;
        let fits = |list: &&TrainingList| {
            rows += list.rows();
            rows <= SCORING_ROWS
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (pass, after) = rest.split_at_mut(count);
        fill_references(&policy.model, pass, false)?;
        progress.advance(count as u64);
        rest = after;
    }
    progress.finish();
    Ok(())
}

fn show_table(results: &[Value]) {
    let first = results.first().unwrap_or(&Value::Null);
    let has = |name: &str| first.get(name).is_some();
    let mut heads = vec!["prompt", "response"];
    heads.extend(has("sum_logps").then_some(["log p", "tokens"]).into_iter().flatten());
    heads.extend(has("rewards").then_some("reward"));
    let mut table = Table::new(heads);
    let short = |text: &Value| {
        let text = text.as_str().unwrap_or_default().replace('\n', " ");
        match text.char_indices().nth(WIDTH) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    };
    for row in results.iter().take(SHOWN) {
        for (i, response) in row["responses"].as_array().into_iter().flatten().enumerate() {
            let mut cells = vec![if i == 0 { short(&row["prompt"]) } else { String::new() }, short(response)];
            if has("sum_logps") {
                cells.push(format!("{:.2}", row["sum_logps"][i].as_f64().unwrap_or(f64::NAN)));
                cells.push(row["num_tokens"][i].to_string());
            }
            if has("rewards") {
                cells.push(format!("{:.4}", row["rewards"][i].as_f64().unwrap_or(f64::NAN)));
            }
            table.row(cells);
        }
    }
    show!("{}", table.to_string().trim_end());
    if results.len() > SHOWN {
        say!("… and {} more rows; --output_dir keeps them all", results.len() - SHOWN);
    }
}
