//! The page: sections in the order in which questions come up.

use super::command;
use super::html::{escape, table, text_block};
use super::plot::Chart;
use super::run::{Iteration, Run};
use super::settings::Settings;
use super::story::{self, Point, eval_label, eval_models};
use crate::cmd::ending;
use crate::edits;
use crate::error::Result;
use crate::messages::count;
use crate::numbers::number;
use larpo_core::metrics::Estimate;
use larpo_data::candidates::CandidateList;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;

const STYLE: &str = include_str!("style.css");
/// Hardest prompts shown.
const HARDEST: usize = 12;
/// Prompts whose samples are shown.
const SAMPLES: usize = 6;
/// Characters of a text that are shown before it is folded.
const FOLD: usize = 400;

/// A rendered report.
pub struct Page {
    /// The document, without its first line.
    pub html: String,
    /// Number of charts.
    pub charts: usize,
    /// What is left out and why.
    pub notes: Vec<String>,
}

/// Renders the run; responses with a reward of `threshold` or more are correct.
///
/// # Errors
/// A chart that cannot be drawn.
pub fn render(run: &Run, threshold: f64) -> Result<Page> {
    let points = story::points(run, threshold);
    let mut notes = run.notes.clone();
    let mut body = String::new();
    let (mut charts, mut left_out) = (0, Vec::new());
    header(run, &points, &mut body);
    let watched = story::watched(run);
    section(&mut body, "After each iteration, on the same prompts", "", watched, &mut charts, &mut Vec::new())?;
    section(&mut body, "Evaluation on held-out prompts", "", story::held_out(run), &mut charts, &mut Vec::new())?;
    if let Some(eval) = &run.eval {
        body.push_str(&eval_tables(eval));
    }
    if !run.iterations.is_empty() {
        let curves = story::by_iteration(run, &points);
        section(&mut body, "By iteration", &numbers(&points), curves, &mut charts, &mut left_out)?;
    }
    let curves = story::by_step(run);
    // What a kind of training does not log is not missing.
    section(&mut body, "Training", "", curves, &mut charts, &mut Vec::new())?;
    let bars = story::distributions(run);
    if !bars.is_empty() {
        body.push_str("<h2>Distribution of rewards</h2><div class=\"charts\">");
        for chart in &bars {
            body.push_str(&chart.figure()?);
            charts += 1;
        }
        body.push_str("</div>");
    }
    hardest(run, threshold, &mut body);
    samples(run, threshold, &mut body);
    let recorded = Settings::of(run);
    body.push_str(&recorded.html());
    notes.extend(missing(run, &points, &recorded, &left_out, threshold));
    if !notes.is_empty() {
        body.push_str("<h2>What is not shown</h2><ul class=\"notes\">");
        notes.iter().for_each(|note| put(&mut body, format_args!("<li>{}</li>", escape(note))));
        body.push_str("</ul>");
    }
    let html = format!(
        "<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{} · larpo report</title><style>\n{STYLE}</style></head><body><main>\n{body}</main></body></html>\n",
        escape(&name(run))
    );
    Ok(Page { html, charts, notes })
}

/// Appends; writing to a String cannot fail.
fn put(out: &mut String, text: std::fmt::Arguments) {
    let _ = out.write_fmt(text);
}

/// The folder's own name.
fn name(run: &Run) -> String {
    let folder = run.folder.canonicalize().unwrap_or_else(|_| run.folder.clone());
    folder.file_name().map_or_else(|| folder.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn header(run: &Run, points: &[Point], body: &mut String) {
    put(body, format_args!("<h1>{}</h1><p class=\"soft\">", escape(&name(run))));
    let from = |key: &str| run.flag(key).into_iter().next();
    let mut parts = Vec::new();
    if let Some(model) = from("model_name_or_path") {
        parts.push(format!("from the model {}", escape(&model)));
    }
    if let Some(data) = from("dataset_name") {
        parts.push(format!("on {}", escape(&data)));
    }
    if let Some(reward) = from("reward_funcs") {
        parts.push(format!("reward {}", escape(&reward)));
    }
    put(body, format_args!("{}</p>", parts.join(" · ")));
    let mut facts: Vec<(String, String)> = Vec::new();
    let mut fact = |label: &str, value: String| facts.push((label.to_string(), value));
    if let (Some(first), Some(last)) = (points.first(), points.last()) {
        fact("iterations", run.iterations.len().to_string());
        let (prompts, samples) =
            points.iter().fold((0, 0), |(prompts, samples), p| (prompts + p.prompts, samples + p.samples));
        fact("prompts", thousands(prompts));
        fact("samples", thousands(samples));
        let course = |a: String, b: String| if points.len() > 1 { format!("{a} → {b}") } else { b };
        fact("mean reward of samples", course(number(first.reward.mean), number(last.reward.mean)));
        if let (Some(a), Some(b)) = (first.recall.first(), last.recall.first()) {
            fact("samples that are correct", course(percent(a.1.mean), percent(b.1.mean)));
        }
    }
    let looks = ending::looks(&run.first_look, run.iterations.iter().map(|i| &i.manifest));
    if let (Some(first), Some(last)) = (looks.first(), looks.last()) {
        fact("mean reward, held out", format!("{} → {}", number(first.mean_reward), number(last.mean_reward)));
    }
    if let Some(eval) = &run.eval {
        let greedy: Vec<f64> = eval_models(eval).iter().filter_map(|m| m["greedy"].as_f64()).collect();
        if let (Some(&a), Some(&b)) = (greedy.first(), greedy.last()) {
            let value = if greedy.len() > 1 { format!("{} → {}", percent(a), percent(b)) } else { percent(a) };
            fact("greedy accuracy, held out", value);
        }
    }
    for (label, key) in [("loss", "loss"), ("validation loss", "eval_loss")] {
        let logged: Vec<f64> = run.training.iter().filter_map(|row| row.get(key)?.as_f64()).collect();
        if let (Some(&a), Some(&b)) = (logged.first(), logged.last()) {
            fact(label, format!("{} → {}", number(a), number(b)));
        }
    }
    body.push_str("<div class=\"facts\">");
    for (label, value) in facts {
        put(body, format_args!("<div><b>{}</b><small>{}</small></div>", escape(&value), escape(&label)));
    }
    body.push_str("</div>");
    let done = run.iterations.iter().filter(|i| i.manifest.is_object()).count();
    let mut told = ending::sentences(&run.record, done, &looks);
    let edited = run.iterations.iter().filter_map(|i| edits::sentence(u64::from(i.number), i.edited));
    told.extend(edited.map(|sentence| sentence.replacen('c', "C", 1) + "."));
    if !told.is_empty() {
        put(body, format_args!("<p>{}</p>", escape(&told.join(" "))));
    }
    if let Some(command) = &run.command {
        // A line breaks between words, not behind the hyphens of a flag.
        let words: Vec<String> = command.split(' ').map(|word| format!("<span>{}</span>", escape(word))).collect();
        put(body, format_args!("<h3>To repeat it</h3><pre>{}</pre>", words.join(" ")));
    }
}

fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).unwrap_or("")).collect();
    groups.join(",")
}

fn percent(share: f64) -> String {
    // A space that does not break.
    format!("{:.1}\u{a0}%", 100.0 * share)
}

/// A section of charts; names of those without a point go to `left_out`.
fn section(
    body: &mut String,
    title: &str,
    below: &str,
    charts: Vec<Chart>,
    count: &mut usize,
    left_out: &mut Vec<String>,
) -> Result<()> {
    let mut figures = Vec::new();
    for chart in charts {
        match chart.figure()? {
            Some(figure) => figures.push(figure),
            None => left_out.push(chart.title),
        }
    }
    *count += figures.len();
    if !figures.is_empty() {
        put(body, format_args!("<h2>{}</h2><div class=\"charts\">{}</div>{below}", escape(title), figures.concat()));
    }
    Ok(())
}

fn with_interval(e: &Estimate, show: fn(f64) -> String) -> String {
    match e.interval {
        Some((low, high)) => format!("{} <small>[{}, {}]</small>", show(e.mean), show(low), show(high)),
        None => show(e.mean),
    }
}

/// The curves of the iterations as numbers.
fn numbers(points: &[Point]) -> String {
    if points.is_empty() {
        return String::new();
    }
    let ns: Vec<usize> =
        points.iter().map(|p| &p.recall).max_by_key(|r| r.len()).into_iter().flatten().map(|r| r.0).collect();
    let fixed = ["iteration", "prompts", "samples", "mean reward", "best of k"].map(String::from);
    let headings: Vec<String> = fixed.into_iter().chain(ns.iter().map(|n| format!("Recall@{n}"))).collect();
    let row = |p: &Point| {
        let mut cells = vec![p.iteration.to_string(), thousands(p.prompts), thousands(p.samples)];
        cells.extend([with_interval(&p.reward, number), with_interval(&p.best, number)]);
        let recall = |n: &usize| p.recall.iter().find(|r| r.0 == *n).map(|r| with_interval(&r.1, percent));
        cells.extend(ns.iter().map(|n| recall(n).unwrap_or_default()));
        cells
    };
    let rows: Vec<Vec<String>> = points.iter().map(row).collect();
    format!("<details><summary>Numbers</summary>{}</details>", table(&headings, &rows))
}

/// What an evaluation measured, and on what, as its settings tell.
fn eval_setting(eval: &Value, models: &[&Value]) -> Option<String> {
    let settings = &eval["settings"];
    let temperatures: Vec<String> =
        settings["temperature"].as_array().into_iter().flatten().map(ToString::to_string).collect();
    let prompts = eval["prompts"].as_u64().or(models.first()?["prompts"].as_u64())?;
    Some(format!(
        "Measured by larpo eval on {} of “{}”, with the reward “{}” (the run's own may be another); \
         {} a prompt at temperature {}, at most {} long, beside the greedy one.",
        count(prompts as usize, "prompts"),
        escape(settings["dataset_name"].as_str()?),
        escape(settings["reward_funcs"].as_str()?),
        count(settings["num_generations"].as_u64()? as usize, "samples"),
        temperatures.join(" and "),
        count(settings["max_new_tokens"].as_u64()? as usize, "tokens"),
    ))
}

/// All numbers of an evaluation, a column a model, and how the models differ.
fn eval_tables(eval: &Value) -> String {
    let models = eval_models(eval);
    let names: Vec<String> = models.iter().map(|m| escape(m["model"].as_str().unwrap_or("model"))).collect();
    let metrics = |m: &Value| m["metrics"].as_array().cloned().unwrap_or_default();
    let key = |m: &Value| {
        let label = eval_label(m["metric"].as_str().unwrap_or_default(), m["at"].as_u64(), m["temperature"].as_f64());
        escape(&label)
    };
    let is_share =
        |m: &Value| ["greedy", "recall", "maj", "pair_accuracy"].contains(&m["metric"].as_str().unwrap_or_default());
    let cell = |m: &Value, field: &str| {
        let show: fn(f64) -> String = if is_share(m) { percent } else { number };
        let Some(mean) = m[field].as_f64() else { return String::new() };
        let interval = m["interval"][0].as_f64().zip(m["interval"][1].as_f64());
        with_interval(&Estimate { mean, standard_error: None, interval, n: 0 }, show)
    };
    let mut labels: Vec<String> = Vec::new();
    for label in models.iter().flat_map(|m| metrics(m)).map(|m| key(&m)) {
        if !labels.contains(&label) {
            labels.push(label);
        }
    }
    let row = |label: &String| {
        let of = |model: &&Value| metrics(model).iter().find(|m| key(m) == *label).map(|m| cell(m, "mean"));
        std::iter::once(label.clone()).chain(models.iter().map(|m| of(m).unwrap_or_else(|| "–".into()))).collect()
    };
    let headings: Vec<String> = std::iter::once(String::new()).chain(names).collect();
    let rows: Vec<Vec<String>> = labels.iter().map(row).collect();
    let told = eval_setting(eval, &models).map_or_else(String::new, |told| format!("<p>{told}</p>"));
    let mut out =
        format!("{told}<details open><summary>Numbers [95 % interval]</summary>{}</details>", table(&headings, &rows));
    let compared = eval["comparisons"].as_array().cloned().unwrap_or_default();
    if !compared.is_empty() {
        let headings = ["", "model", "less", "difference", "p", "prompts"].map(String::from);
        let text = |c: &Value, field: &str| escape(c[field].as_str().unwrap_or_default());
        let p = |c: &Value| match c["p"].as_f64() {
            Some(p) if p < 0.001 => "&lt; 0.001".into(),
            Some(p) => format!("{p:.3}"),
            None => String::new(),
        };
        let row = |c: &Value| {
            let n = c["n"].as_u64().map(|n| n.to_string()).unwrap_or_default();
            vec![key(c), text(c, "model"), text(c, "against"), cell(c, "difference"), p(c), n]
        };
        let rows: Vec<Vec<String>> = compared.iter().map(row).collect();
        put(
            &mut out,
            format_args!(
                "<details><summary>Differences on the same prompts (p: McNemar's exact test for greedy accuracy, random sign \
                 flips otherwise; not corrected for their number)</summary>{}</details>",
                table(&headings, &rows)
            ),
        );
    }
    out
}

/// A prompt over all iterations.
struct Prompt<'a> {
    list: &'a CandidateList,
    best: f64,
    best_text: &'a str,
    sum: f64,
    samples: usize,
}

/// The prompts whose best sample has the lowest reward.
fn hardest(run: &Run, threshold: f64, body: &mut String) {
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
fn samples(run: &Run, threshold: f64, body: &mut String) {
    let models = run.eval.as_ref().map(eval_models).unwrap_or_default();
    let shown = |m: &Value| m["samples"].as_array().cloned().unwrap_or_default();
    if let (Some(before), Some(after)) = (models.first(), models.last())
        && models.len() > 1
    {
        let text = |m: &Value, field: &str| m[field].as_str().unwrap_or_default().to_string();
        let label = |m: &Value| escape(m["model"].as_str().unwrap_or("model"));
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

/// What is not there, and what would produce it.
fn missing(run: &Run, points: &[Point], settings: &Settings, left_out: &[String], threshold: f64) -> Vec<String> {
    let mut notes = Vec::new();
    if run.command.is_none() {
        notes.push("the command that repeats the run: nothing in the folder records it".to_string());
    }
    if settings.is_empty() {
        notes.push("settings: nothing in the folder records them".to_string());
    }
    if !run.iterations.is_empty() && run.eval.is_none() {
        notes.push(command::suggested(run, threshold));
    }
    if !points.is_empty() && points.iter().all(|p| p.recall.is_empty()) {
        notes.push(format!(
            "accuracy and Recall@N: no reward of the run reaches {}, that of a correct response; --correct_threshold sets it",
            number(threshold)
        ));
    }
    let trained = run.iterations.iter().any(|i| !i.training.is_empty());
    if !run.iterations.is_empty() && !trained {
        notes.push("training curves, KL and ranking: no iteration had a list to train on, or logged it".to_string());
    }
    let known = ["Accuracy of a sample", "Recall@N", "Recall@N by N", "KL to the reference", "Ranking by the policy"];
    for title in left_out.iter().filter(|t| !known.contains(&t.as_str())) {
        notes.push(format!("{title}: the run's files do not hold it"));
    }
    notes
}
