//! Ranked lists as published collections write them: UltraFeedback (Cui et al. 2023, arXiv 2310.01377) and Nectar (Zhu et al.
//! 2023).

use super::Ranked;
use super::rows::{Row, describe, number};
use crate::candidates::CandidateList;
use crate::error::Result;
use serde_json::{Map, Value};

/// An UltraFeedback row: `instruction` and `completions`, each with a `response` and the ratings of several aspects. The
/// instruction and a newline are the prompt, as of GSM8K's questions. A reward is the mean of the ratings that are numbers:
/// some are "N/A". Without any it is `fine-grained_score`, which is that mean as it was published. `overall_score`, which is on
/// another scale and was wrong for thousands of completions when it was published, serves where no completion of the row has
/// either.
pub(super) fn ultrafeedback(index: usize, row: &Row) -> Result<Ranked> {
    let example = r#"[{"response": "4", "annotations": {"helpfulness": {"Rating": "5"}}}, {"response": "5", "overall_score": 1}]"#;
    let mut list = CandidateList { prompt: format!("{}\n", row.string("instruction")?), ..CandidateList::default() };
    let completions = objects(row, "completions", example)?;
    // Of all of them the same scale.
    let rated = completions.iter().any(|completion| rating(completion).is_some());
    let value = |completion| if rated { rating(completion) } else { score_of(completion, "overall_score") };
    for (i, completion) in completions.into_iter().enumerate() {
        let at = |field: &str| format!("completions[{i}].{field}");
        list.responses.push(text(row, completion, "response", &at("response"))?);
        let Some(reward) = value(completion) else {
            let expected = match rated {
                true => "a rating that is a number, or a `fine-grained_score`, as other completions of the row have",
                false => "a rating that is a number, or a `fine-grained_score` or an `overall_score`",
            };
            let found = completion.get("annotations").map_or("none".into(), Value::to_string);
            return Err(row.error(
                at("annotations"),
                expected,
                found,
                "Rate the completion, or delete it from the row; --on_bad_row skip leaves such rows out",
            ));
        };
        list.rewards.push(reward);
    }
    Ok(Ranked { index, line: row.line, list })
}

/// A number; the ratings stand in quotes.
fn value_of(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => text.trim().parse().ok().filter(|x: &f64| x.is_finite()),
        other => number(other),
    }
}

fn score_of(completion: &Map<String, Value>, field: &str) -> Option<f64> {
    value_of(completion.get(field)?)
}

/// Mean of a completion's ratings that are numbers, or that mean as it was published.
fn rating(completion: &Map<String, Value>) -> Option<f64> {
    let aspects = completion.get("annotations").and_then(Value::as_object).into_iter().flat_map(Map::values);
    let ratings: Vec<f64> = aspects.filter_map(|aspect| value_of(aspect.get("Rating")?)).collect();
    match ratings.is_empty() {
        false => Some(ratings.iter().sum::<f64>() / ratings.len() as f64),
        true => score_of(completion, "fine-grained_score"),
    }
}

/// A Nectar row: `prompt`, a dialogue that ends in `Assistant: `, and `answers`, each with its `answer` and its `rank`, 1 for
/// the best. The blank at the end of the prompt goes to the responses, as tokenizers take it.
pub(super) fn nectar(index: usize, row: &Row) -> Result<Ranked> {
    let example = r#"[{"answer": "4", "rank": 1.0}, {"answer": "5", "rank": 2.0}]"#;
    let prompt = row.string("prompt")?;
    let (prompt, blank) = match prompt.strip_suffix(' ') {
        Some(prompt) if !prompt.ends_with(char::is_whitespace) => (prompt, " "),
        _ => (prompt, ""),
    };
    let mut list = CandidateList { prompt: prompt.into(), ..CandidateList::default() };
    for (i, answer) in objects(row, "answers", example)?.into_iter().enumerate() {
        let at = |field: &str| format!("answers[{i}].{field}");
        list.responses.push(format!("{blank}{}", text(row, answer, "answer", &at("answer"))?));
        let rank = answer.get("rank").unwrap_or(&Value::Null);
        let Some(rank) = number(rank).filter(|rank| *rank >= 1.0) else {
            let mend = "Write it like {\"answer\": \"4\", \"rank\": 1.0}, or delete the answer from the row";
            return Err(row.error(at("rank"), "a rank of 1 (best) or more", describe(rank), mend));
        };
        list.ranks.push(rank);
    }
    Ok(Ranked { index, line: row.line, list })
}

/// Whether a row has an array of objects in which the first has this field.
pub(super) fn has_objects(row: &Row, field: &str, inner: &str) -> bool {
    row.get(field).and_then(Value::as_array).and_then(|items| items.first()?.get(inner)).is_some()
}

/// The objects of an array, at least one.
fn objects<'r>(row: &'r Row, field: &str, example: &str) -> Result<Vec<&'r Map<String, Value>>> {
    let mend = || format!("Write it like \"{field}\": {example}");
    let items = match row.get(field) {
        None => return Err(row.missing(field, "an array of objects", &format!("\"{field}\": {example}"))),
        Some(Value::Array(items)) if !items.is_empty() => items,
        Some(other) => return Err(row.error(field, "an array of at least one object", describe(other), mend())),
    };
    let object = |(i, item): (usize, &'r Value)| {
        item.as_object().ok_or_else(|| row.error(format!("{field}[{i}]"), "an object", describe(item), mend()))
    };
    items.iter().enumerate().map(object).collect()
}

fn text(row: &Row, object: &Map<String, Value>, field: &str, at: &str) -> Result<String> {
    let value = object.get(field).unwrap_or(&Value::Null);
    let Some(text) = value.as_str() else {
        return Err(row.error(at, "a string", describe(value), "Fill it, or delete the element from the array"));
    };
    Ok(text.into())
}
