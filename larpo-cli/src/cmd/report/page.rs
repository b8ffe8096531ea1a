//! The page: sections in the order in which questions come up.

use super::header::{header, name};
use super::html::{escape, percent, put, table, thousands, with_interval};
use super::plot::Chart;
use super::run::Run;
use super::samples::{hardest, samples};
use super::settings::Settings;
use super::story::{self, Point};
use super::{command, evaluation};
use crate::error::Result;
use crate::numbers::{alike, number};
use larpo_core::metrics::Estimate;

const STYLE: &str = include_str!("style.css");

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
    if run.eval.is_some() {
        let (title, tables) = ("Evaluation on held-out prompts", evaluation::tables(run));
        section(&mut body, title, &tables, evaluation::held_out(run), &mut charts, &mut Vec::new())?;
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
    if !figures.is_empty() || !below.is_empty() {
        put(body, format_args!("<h2>{}</h2><div class=\"charts\">{}</div>{below}", escape(title), figures.concat()));
    }
    Ok(())
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
    let column = |of: fn(&Point) -> &Estimate| {
        let bounds = |e: &Estimate| e.interval.map_or([e.mean; 3], |(low, high)| [e.mean, low, high]);
        alike(points.iter().flat_map(move |p| bounds(of(p))))
    };
    let (reward, best) = (column(|p| &p.reward), column(|p| &p.best));
    let row = |p: &Point| {
        let mut cells = vec![p.iteration.to_string(), thousands(p.prompts), thousands(p.samples)];
        cells.extend([with_interval(&p.reward, &reward), with_interval(&p.best, &best)]);
        let recall = |n: &usize| p.recall.iter().find(|r| r.0 == *n).map(|r| with_interval(&r.1, percent));
        cells.extend(ns.iter().map(|n| recall(n).unwrap_or_default()));
        cells
    };
    let rows: Vec<Vec<String>> = points.iter().map(row).collect();
    format!("<details><summary>Numbers</summary>{}</details>", table(&headings, &rows))
}

/// What is not there, and what would produce it.
fn missing(run: &Run, points: &[Point], settings: &Settings, left_out: &[String], threshold: f64) -> Vec<String> {
    let mut notes = Vec::new();
    if run.iterations.is_empty() && run.training.is_empty() && run.eval.is_none() {
        notes.push("curves: the run has logged nothing yet".to_string());
    }
    if run.command.is_none() {
        notes.push("the command that repeats the run: nothing in the folder records it".to_string());
    }
    if settings.is_empty() {
        notes.push("settings: nothing in the folder records them".to_string());
    }
    let lacks = match &run.eval {
        None => Some("held-out accuracy, KL and the same prompts before and after".to_string()),
        Some(eval) => eval.lacks(run),
    };
    notes.extend(lacks.filter(|_| !run.iterations.is_empty()).map(|what| command::suggested(run, &what, threshold)));
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
