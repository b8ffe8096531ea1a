//! Rows of candidate files as candidates again: with their recorded ids where these still say what the text says.

use crate::chat;
use crate::error::{Error, Result};
use crate::generate::first_stop;
use crate::policy::Policy;
use larpo_core::backend::Backend;
use larpo_core::candidates::{Candidate, CandidateList};
use larpo_core::retriever::FinishReason;
use larpo_data::candidates::CandidateList as CandidateRow;
use larpo_data::records::assistant;
use serde_json::Value;

/// What is known of a row beside its contents.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Known {
    /// Number of the prompt.
    pub prompt_index: usize,
    /// Iteration.
    pub iteration: u32,
    /// Whether the row is as it was written, so that ids and texts need not be compared.
    pub untouched: bool,
}

/// A row of a file with ids: the recorded ones where there are any and the text is theirs, encoded ones otherwise. A
/// response whose ids were encoded anew has no log-probabilities.
///
/// # Errors
/// A text that the tokenizer cannot encode, by its field.
pub fn from_row<B: Backend>(
    policy: &Policy<B>,
    row: &CandidateRow,
    scores: Option<&[f64]>,
    known: Known,
) -> Result<CandidateList> {
    let prompt_ids = match &row.prompt_token_ids {
        Some(ids)
            if known.untouched || decoded(policy, ids, "prompt_token_ids", row.messages.is_none())? == row.prompt =>
        {
            ids.clone()
        }
        // A chat template writes every special token itself.
        _ => match &row.messages {
            Some(_) => policy.tokenizer.encode(&row.prompt).map_err(Error::from),
            None => policy.encode_prompt(&row.prompt),
        }
        .map_err(|error| Error::request(format!("`prompt`: {error}")))?,
    };
    let mut candidates = Vec::with_capacity(row.responses.len());
    for (i, text) in row.responses.iter().enumerate() {
        let finish = row.finish_reason.get(i).map(String::as_str);
        let recorded = match row.token_ids.get(i) {
            // A text that was edited by hand no longer is what its ids say.
            Some(ids)
                if known.untouched
                    || still_says(decoded(policy, ids, &format!("token_ids[{i}]"), true)?, text, &row.stop_strings) =>
            {
                Some(ids.clone())
            }
            _ => None,
        };
        let logps = row.logps.get(i).filter(|logps| recorded.as_ref().is_some_and(|ids| ids.len() == logps.len()));
        let ids = match (recorded, finish) {
            (Some(ids), _) => ids,
            (None, finish) => {
                let encoded = match (finish, &row.messages) {
                    // Nothing ended the text.
                    (Some("length" | "stop_string"), _) => policy.tokenizer.encode(text).map_err(Error::from),
                    (_, Some(turns)) => answer(policy, turns, text),
                    (_, None) => policy.encode_response(text),
                };
                encoded.map_err(|error| Error::request(format!("`responses[{i}]`: {error}")))?
            }
        };
        candidates.push(Candidate {
            ids,
            logps: logps.cloned().unwrap_or_default(),
            text: text.clone(),
            finish_reason: finish.and_then(|name| {
                [FinishReason::Stop, FinishReason::Length, FinishReason::StopString]
                    .into_iter()
                    .find(|f| f.name() == name)
            }),
            iteration: row.iteration.get(i).copied().unwrap_or(known.iteration),
            temperature: row.temperature.get(i).map_or(1.0, |&t| f64::from(t)),
            seed: row.seed.get(i).copied().unwrap_or(0),
            reward: scores.map_or(0.0, |scores| scores[i]),
        });
    }
    Ok(CandidateList {
        prompt_index: known.prompt_index,
        prompt: row.prompt.clone(),
        conversation: row.messages.as_ref().map(|turns| Value::from(&turns[..]).to_string().into()),
        prompt_ids,
        reference: row.reference.clone(),
        candidates,
    })
}

/// Ids of an answer to a conversation, with the end that the chat template gives it.
fn answer<B: Backend>(policy: &Policy<B>, turns: &[Value], text: &str) -> Result<Vec<u32>> {
    let Some(templates) = policy.tokenizer.conversations()? else {
        return Err(Error::request("the row is a conversation, and the model has no chat template"));
    };
    let (prompt, answers) = templates.answered(turns, &[&[assistant(text)]], None)?;
    let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
    let (_, ids) = chat::encode(&policy.tokenizer, &prompt, &answers)?;
    Ok(ids.into_iter().next().unwrap_or_default())
}

/// The text of the ids in `field`, with or without the special tokens.
fn decoded<B: Backend>(policy: &Policy<B>, ids: &[u32], field: &str, skip_special: bool) -> Result<String> {
    let mend = "remove the field, and the texts are encoded anew";
    policy.tokenizer.decode(ids, skip_special).map_err(|error| Error::request(format!("`{field}`: {error}; or {mend}")))
}

/// Whether `text` is what is `decoded`, up to the first stop string.
fn still_says(mut decoded: String, text: &str, stop: &[String]) -> bool {
    if let Some(end) = first_stop(&decoded, stop) {
        decoded.truncate(end);
    }
    decoded == text
}
