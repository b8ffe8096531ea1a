//! `larpo rank`: the reranker alone, over candidates made elsewhere.

use crate::args::RankArgs;
use crate::dataset::{RowReport, on_bad_row, with_flag};
use crate::error::{Error, Result};
use crate::evaluate::GOOD;
use crate::messages::count;
use crate::numbers::fixed;
use crate::output;
use crate::reward::{Ranker, RewardSource};
use larpo_core::backend::Backend;
use larpo_core::reranker::{Query, Reranker, Response};
use larpo_data::records::{KeyedRow, Keys, read_keyed_rows};
use larpo_data::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Runs the verb.
///
/// # Errors
/// What any of its stages reports.
pub fn run<B: Backend>(args: &RankArgs, backend: &B) -> Result<Value> {
    let reward = RewardSource::read(&args.reward)?;
    let path = args.path().ok_or_else(|| Error::request("name the file with the candidates"))?;
    if let Some(folder) = &args.output_dir {
        output::prepare_file(folder, "candidates.jsonl", args.overwrite_output_dir, output::FLAG)?;
    }
    let tokenizer = args.tokenizer.as_ref().map(Tokenizer::open).transpose()?;
    let keys = Keys {
        prompt: args.prompt_key.clone(),
        response: args.response_key.clone(),
        // Rows need a reference only where a rule reads it.
        reference: reward.needs_reference().then(|| args.reference_key.clone()),
        label: args.label_key.clone(),
        lists: args.list_keys.clone(),
    };
    let (rows, bad) =
        read_keyed_rows(path, &keys, on_bad_row(args.on_bad_row)).map_err(|error| with_flag(error, args.on_bad_row))?;
    let mut report = RowReport::new("rows", rows.len() + bad.len());
    bad.iter().for_each(|row| report.leave_out(row.reason()));
    note_unsorted(&rows);
    let mut reranker = reward.load(backend)?;
    let mut ranked = Vec::with_capacity(rows.len());
    let (mut responses, mut agree, mut sum) = (0, 0, 0.0);
    for row in rows {
        let scores = score(&row, &mut reranker, tokenizer.as_ref(), path)?;
        let verdicts = scores.iter().map(|&s| s >= GOOD);
        agree += row.labels.iter().zip(verdicts).filter(|(label, good)| (**label > 0.5) == *good).count();
        responses += scores.len();
        sum += scores.iter().sum::<f64>();
        ranked.push(sorted(row, &scores));
    }
    let mean = sum / responses.max(1) as f64;
    say!("data: {report}");
    show!("{}, mean reward {}", count(responses, "responses"), fixed(mean, 4));
    reranker.report();
    if let Some(folder) = &args.output_dir {
        let file = folder.join("candidates.jsonl");
        write_rows(&file, &ranked)?;
        say!("scored and sorted rows are in {}", file.display());
    }
    Ok(match args.label_key {
        Some(_) => {
            show!("{agree} of {responses} verdicts agree with `{}`", keys.label.unwrap_or_default());
            json!({ "rows": ranked.len(), "agree": agree })
        }
        None => json!({ "rows": ranked.len(), "responses": responses, "mean_reward": sum / responses.max(1) as f64 }),
    })
}

/// Says which arrays might belong to the responses, but are not known to and therefore stay as they are.
fn note_unsorted(rows: &[KeyedRow]) {
    let Some(row) = rows.iter().find(|row| row.is_list && row.responses.len() > 1) else { return };
    let fits = |value: &Value| value.as_array().is_some_and(|items| items.len() == row.responses.len());
    let unknown = row
        .fields
        .iter()
        .filter(|(name, value)| fits(value) && name.as_str() != "prompt_token_ids" && !row.per_response.contains(name));
    let names: Vec<&str> = unknown.map(|(name, _)| name.as_str()).collect();
    if !names.is_empty() {
        say!(
            "note: {} keep their order; name them in --list_keys if they hold one entry for each response",
            names.join(", ")
        );
    }
}

fn score<B: Backend>(
    row: &KeyedRow,
    reranker: &mut Ranker<B>,
    tokenizer: Option<&Tokenizer>,
    path: &Path,
) -> Result<Vec<f64>> {
    let ids = row.fields.get("token_ids").and_then(Value::as_array);
    let tokens = |i: usize, text: &str| match (tokenizer, ids.and_then(|ids| ids.get(i)?.as_array())) {
        // A text may have been edited since its ids were recorded.
        (Some(tokenizer), _) => tokenizer.encode(text).map(|ids| ids.len()),
        (None, Some(ids)) => Ok(ids.len()),
        (None, None) => Ok(text.split_whitespace().count()),
    };
    let response = |(i, text)| Ok(Response { text, tokens: tokens(i, text)? });
    let responses = row.responses.iter().map(String::as_str).enumerate().map(response).collect::<Result<Vec<_>>>()?;
    let (conversation, reference) = (row.conversation.as_deref(), row.reference.as_deref());
    let query = Query { prompt: &row.prompt, conversation, reference, responses };
    let scores =
        reranker.score(&query).map_err(|error| Error::request(format!("{}:{}: {error}", path.display(), row.line)))?;
    match scores.iter().all(|s| s.is_finite()) {
        true => Ok(scores),
        false => Err(Error::request(format!("{}:{}: a reward is not a finite number", path.display(), row.line))),
    }
}

/// The row with its scores: the arrays with one entry a response are brought into the order of the rewards.
fn sorted(row: KeyedRow, scores: &[f64]) -> Map<String, Value> {
    let mut fields = row.fields;
    if !row.is_list {
        fields.insert("reward".into(), json!(scores[0]));
        return fields;
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    // Ranks that came with the row would contradict the new rewards.
    fields.shift_remove("ranks");
    fields.insert("rewards".into(), json!(scores));
    for (name, value) in &mut fields {
        if let Value::Array(items) = value
            && (name == "rewards" || row.per_response.contains(name))
        {
            *items = order.iter().map(|&i| items[i].clone()).collect();
        }
    }
    fields
}

fn write_rows(path: &Path, rows: &[Map<String, Value>]) -> Result<()> {
    let text: String = rows.iter().map(|row| format!("{}\n", Value::Object(row.clone()))).collect();
    Ok(larpo_data::files::write_bytes(path, text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_of_a_row_are_sorted_together() {
        let fields = json!({
            "prompt": "p", "prompt_token_ids": [7, 8], "responses": ["a", "b"], "logps": [[-1.0], [-2.0]],
            "ranks": [1, 2], "tags": ["x", "y"], "note": "kept"
        });
        let Value::Object(fields) = fields else { unreachable!() };
        let row = KeyedRow {
            line: 1,
            prompt: "p".into(),
            conversation: None,
            responses: vec!["a".into(), "b".into()],
            is_list: true,
            reference: None,
            labels: vec![],
            fields,
            per_response: ["responses", "ranks", "logps"].map(String::from).into(),
        };
        let expected = json!({
            "prompt": "p", "prompt_token_ids": [7, 8], "responses": ["b", "a"], "logps": [[-2.0], [-1.0]],
            "tags": ["x", "y"], "note": "kept", "rewards": [1.0, 0.0]
        });
        assert_eq!(Value::Object(sorted(row, &[0.0, 1.0])), expected);
    }
}
