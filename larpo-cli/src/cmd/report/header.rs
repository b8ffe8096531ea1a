//! The top of the page: what the run is, a few numbers, how it ended, and the command that repeats it.

use super::evaluation::{Evaluation, Measured};
use super::html::{escape, percent, put, thousands};
use super::run::Run;
use super::story::Point;
use crate::cmd::ending;
use crate::edits;
use crate::numbers::number;

/// The folder's own name.
pub fn name(run: &Run) -> String {
    let folder = run.folder.canonicalize().unwrap_or_else(|_| run.folder.clone());
    folder.file_name().map_or_else(|| folder.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Name, a few numbers, how the run ended, and the command that repeats it.
pub fn header(run: &Run, points: &[Point], body: &mut String) {
    put(body, format_args!("<h1>{}</h1><p class=\"soft\">", escape(&name(run))));
    let from = |key: &str| run.flag(key).into_iter().next();
    let mut parts = Vec::new();
    if let Some(model) = from("model_name_or_path") {
        parts.push(format!("from the model {}", escape(&model)));
    }
    if let Some(data) = from("dataset_name") {
        parts.push(format!("on {}", escape(&data)));
    }
    if let Some(model) = from("reward_model") {
        parts.push(format!("rewards of the model {}", escape(&model)));
    } else if let Some(model) = from("pairwise_ranker") {
        parts.push(format!("ranked in pairs by the model {}", escape(&model)));
    } else if let Some(reward) = from("reward_funcs") {
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
        fact("mean reward, watched prompts", format!("{} → {}", number(first.mean_reward), number(last.mean_reward)));
    }
    if let Some((before, after)) = run.eval.as_ref().and_then(Evaluation::before_and_after)
        && let (Some(a), Some(b)) = (before.value["greedy"].as_f64(), after.value["greedy"].as_f64())
    {
        let value = if std::ptr::eq(before, after) { percent(b) } else { format!("{} → {}", percent(a), percent(b)) };
        let newest = run.iterations.last().map(|i| i.number);
        let label = match after.measured {
            Measured::Iteration(n) if Some(n) != newest => format!("greedy accuracy, held out, up to iteration {n}"),
            _ => "greedy accuracy, held out".into(),
        };
        fact(&label, value);
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
        if run.iterations.iter().any(|i| i.edited != (0, 0)) {
            body.push_str("<p class=\"soft\">It repeats the run without the rows that were edited by hand: it draws them anew.</p>");
        }
        body.push_str("<p class=\"soft\">It writes to a folder of its own; this one stays as it is.</p>");
        if let Some(directory) = run.record["directory"].as_str() {
            put(body, format_args!("<p class=\"soft\">Relative paths begin in {}.</p>", escape(directory)));
        }
    }
}
