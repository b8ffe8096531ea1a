//! Prompts and responses: the hardest prompts, and samples before and after.

use super::evaluation::{Evaluation, Model};
use super::html::{escape, put, text_block, thousands};
use super::run::{Iteration, Run};
use crate::numbers::number;
use larpo_data::candidates::CandidateList;
use serde_json::Value;
use std::collections::BTreeMap;

/// Hardest prompts shown.
const HARDEST: usize = 12;
/// Prompts whose samples are shown.
const SAMPLES: usize = 6;
/// Characters of a text that are shown before it is folded.
const FOLD: usize = 400;

/// A prompt over all iterations.
struct Prompt<'a> {
    list: &'a CandidateList,
    best: f64,
    best_text: &'a str,
    sum: f64,
    samples: usize,
}

/// The prompts whose best sample has the lowest reward.
pub fn hardest(run: &Run, threshold: f64, body: &mut String) {
    let mut prompts: BTreeMap<(Option<usize>, &str), Prompt> = BTreeMap::new();
    for list in run.iterations.iter().flat_map(|i| &i.lists) {
        let Some(scores) = list.scores() else { continue };
        let key = (list.prompt_index, list.prompt.as_str());
        let entry =
            prompts.entry(key).or_insert(Prompt { list, best: f64::NEG_INFINITY, best_text: "", sum: 0.0, samples: 0 });
        for (score, text) in scores.iter().zip(&list.responses) {
            if *score > entry.best {
                (entry.best, entry.best_text) = (*score, text);
            }
            entry.sum += score;
            entry.samples += 1;
        }
    }
    if prompts.is_empty() {
        return;
    }
    let total = prompts.len();
    let unsolved = prompts.values().filter(|p| p.best < threshold - 1e-9).count();
    let mut order: Vec<Prompt> = prompts.into_values().collect();
    let mean = |p: &Prompt| p.sum / p.samples.max(1) as f64;
    order.sort_by(|a, b| a.best.total_cmp(&b.best).then(mean(a).total_cmp(&mean(b))).then(b.samples.cmp(&a.samples)));
    put(
        body,
        format_args!(
            "<h2>Hardest prompts</h2><p>Lowest reward of the best sample, over all iterations. {} of {} prompts have no sample \
             with a reward of {} or more.</p><div class=\"pairs\">",
            thousands(unsolved),
            thousands(total),
            number(threshold)
        ),
    );
    for p in order.iter().take(HARDEST) {
        put(
            body,
            format_args!(
                "<div class=\"sample\">{}<dl><div><dt>best of {} samples, their mean is {}</dt>{}</div></dl></div>",
                prompt_head(&p.list.prompt, p.list.reference.as_deref()),
                p.samples,
                number(mean(p)),
                response(p.best_text, Some(p.best), 1, threshold)
            ),
        );
    }
    body.push_str("</div>");
}

/// A response with its reward; `times` is how often it was drawn.
fn response(text: &str, reward: Option<f64>, times: usize, threshold: f64) -> String {
    let class = if reward.is_some_and(|r| r >= threshold - 1e-9) { " class=\"good\"" } else { "" };
    let times = if times > 1 { format!(" × {times}") } else { String::new() };
    let score = reward.map(|r| format!("<span class=\"score\">{}{times}</span>", number(r))).unwrap_or_default();
    format!("<dd{class}>{score}{}</dd>", text_block(text, FOLD))
}

/// Best, middle and worst of the distinct responses of a list.
fn three(list: &CandidateList, threshold: f64) -> String {
    let scores = list.scores().unwrap_or_default();
    let mut distinct: Vec<(&str, f64, usize)> = Vec::new();
    for (text, score) in list.responses.iter().zip(scores) {
        match distinct.iter_mut().find(|d| d.0 == text && d.1 == score) {
            Some(known) => known.2 += 1,
            None => distinct.push((text, score, 1)),
        }
    }
    distinct.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut picked: Vec<usize> = [0, distinct.len() / 2, distinct.len().saturating_sub(1)].to_vec();
    picked.dedup();
    let shown = picked.iter().filter_map(|&at| distinct.get(at));
    shown.map(|&(text, score, times)| response(text, Some(score), times, threshold)).collect()
}

fn prompt_head(prompt: &str, reference: Option<&str>) -> String {
    let reference =
        reference.map(|r| format!("<br><small>reference: {}</small>", text_block(r, FOLD))).unwrap_or_default();
    format!("{}{reference}", text_block(prompt.trim_end(), FOLD))
}

/// Responses before and after: of an evaluation where there is one, else of the first and the last iteration.
pub fn samples(run: &Run, threshold: f64, body: &mut String) {
    let shown = |m: &Model| m.value["samples"].as_array().cloned().unwrap_or_default();
    if let Some((before, after)) = run.eval.as_ref().and_then(Evaluation::before_and_after)
        && !std::ptr::eq(before, after)
    {
        let text = |m: &Value, field: &str| m[field].as_str().unwrap_or_default().to_string();
        let label = |m: &Model| escape(&m.name);
        body.push_str("<h2>Before and after</h2><p>Greedy responses to the same held-out prompts, with their rewards.</p><div class=\"pairs\">");
        let after_all = shown(after);
        for a in shown(before).iter().take(SAMPLES) {
            let Some(b) =
                after_all.iter().find(|b| b["prompt_index"] == a["prompt_index"] && b["prompt"] == a["prompt"])
            else {
                continue;
            };
            put(
                body,
                format_args!(
                    "<div class=\"sample\">{}<dl><div><dt>{}</dt>{}</div><div><dt>{}</dt>{}</div></dl></div>",
                    prompt_head(&text(a, "prompt"), a["reference"].as_str()),
                    label(before),
                    response(&text(a, "response"), a["reward"].as_f64(), 1, threshold),
                    label(after),
                    response(&text(b, "response"), b["reward"].as_f64(), 1, threshold)
                ),
            );
        }
        body.push_str("</div>");
    }
    let with_lists: Vec<&Iteration> = run.iterations.iter().filter(|i| !i.lists.is_empty()).collect();
    let (Some(first), Some(last)) = (with_lists.first(), with_lists.last()) else { return };
    let again = |list: &CandidateList| {
        let same = |l: &&CandidateList| l.prompt_index == list.prompt_index && l.prompt == list.prompt;
        last.lists.iter().find(same)
    };
    let both: Vec<(&CandidateList, &CandidateList)> = match first.number == last.number {
        true => Vec::new(),
        false => first.lists.iter().filter_map(|l| Some((l, again(l)?))).take(SAMPLES).collect(),
    };
    let (a, b) = (first.number, last.number);
    let side = |list: &CandidateList, number: u32| {
        format!(
            "<div><dt>iteration {number}, best, middle and worst of the distinct samples</dt>{}</div>",
            three(list, threshold)
        )
    };
    let sample = |head: String, sides: String| format!("<div class=\"sample\">{head}<dl>{sides}</dl></div>");
    let head = |list: &CandidateList| prompt_head(&list.prompt, list.reference.as_deref());
    let (note, cards): (String, Vec<String>) = if !both.is_empty() {
        let cards = both.iter().map(|(x, y)| sample(head(x), side(x, a) + &side(y, b))).collect();
        (format!("The same prompts in iterations {a} and {b}, with the rewards of their samples."), cards)
    } else if a == b {
        let cards = first.lists.iter().take(SAMPLES).map(|l| sample(head(l), side(l, a))).collect();
        ("The run has one iteration: its samples, with their rewards.".to_string(), cards)
    } else {
        let of = |i: &Iteration| -> Vec<String> {
            i.lists.iter().take(SAMPLES / 2).map(|l| sample(head(l), side(l, i.number))).collect()
        };
        let note = format!(
            "Iterations {a} and {b} have no prompt in common, so these are different prompts, with the rewards of their samples."
        );
        (note, [of(first), of(last)].concat())
    };
    put(
        body,
        format_args!("<h2>Samples, first and last</h2><p>{note}</p><div class=\"pairs\">{}</div>", cards.concat()),
    );
}
