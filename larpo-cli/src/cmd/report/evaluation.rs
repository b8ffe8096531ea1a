//! What `larpo eval` found: which state of the run each of its models is, curves over iterations, and tables.
//!
//! An evaluation names the checksums of the files that it measured. A run that goes on replaces its model, and people make
//! iterations again, so it is those and not the paths that say what a number belongs to.

use super::html::{escape, percent, put, table, with_interval};
use super::plot::{Chart, Series};
use super::run::Run;
use super::settings::texts;
use super::story::chart;
use crate::messages::count;
use crate::numbers::number;
use crate::run_record::{checksums, same, weights};
use larpo_core::metrics::Estimate;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Checksums of the files of a model, by name.
type Files = BTreeMap<String, String>;

/// An evaluation beside its run.
pub struct Evaluation {
    value: Value,
    /// Its models, in its order.
    pub models: Vec<Model>,
}

/// A model of an evaluation.
pub struct Model {
    /// What was found.
    pub value: Value,
    /// Its folder, as it was given.
    pub name: String,
    /// What it is to the run.
    pub measured: Measured,
}

/// What a measured model is to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// The policy after this iteration, 0 for the one the run started from, as it is now.
    Iteration(u32),
    /// A model of the run that has been replaced since.
    Earlier,
    /// A model of the run, in a state that the evaluation does not tell.
    Untold,
    /// No model of the run, as far as the files tell.
    Other,
}

impl Evaluation {
    /// Finds out what the models of `value` are to the run.
    pub fn new(run: &Run, value: Value) -> Self {
        let models = match value["models"].as_array() {
            Some(models) => models.clone(),
            None => vec![value.clone()],
        };
        let known = states(run);
        let model = |value: Value| {
            let name = value["model"].as_str().unwrap_or("model").to_string();
            let files = serde_json::from_value(value["files"].clone()).unwrap_or_default();
            let measured = measured(run, &known, &name, &files);
            Model { value, name, measured }
        };
        Self { models: models.into_iter().map(model).collect(), value }
    }

    /// The models that are iterations of the run, in their order.
    pub fn by_iteration(&self) -> impl Iterator<Item = (u32, &Model)> {
        let mut found: Vec<(u32, &Model)> = self
            .models
            .iter()
            .filter_map(|model| match model.measured {
                Measured::Iteration(n) => Some((n, model)),
                _ => None,
            })
            .collect();
        found.sort_by_key(|(n, _)| *n);
        // The model of the run and that of its last iteration are the same.
        found.dedup_by_key(|(n, _)| *n);
        found.into_iter()
    }

    /// The first and the last state that was measured and is still there: by iteration, or in the order of the evaluation
    /// where its models are not the run's.
    pub fn before_and_after(&self) -> Option<(&Model, &Model)> {
        let mut models: Vec<&Model> = self.by_iteration().map(|(_, model)| model).collect();
        if models.is_empty() {
            models = self.models.iter().filter(|model| model.measured == Measured::Other).collect();
        }
        Some((*models.first()?, *models.last()?))
    }

    /// What of the run it does not measure; none where it has the newest iteration.
    pub fn lacks(&self, run: &Run) -> Option<String> {
        let newest = run.iterations.iter().rev().find(|i| run.model_after(i.number).is_dir())?.number;
        match self.by_iteration().last() {
            Some((n, _)) if n >= newest => None,
            Some((n, _)) if n > 0 => Some(format!("held-out numbers of what came after iteration {n}")),
            _ => Some("held-out numbers of the iterations as they are now".into()),
        }
    }
}

impl Model {
    /// Its name, with what it is where that does not tell.
    fn heading(&self) -> String {
        match self.measured {
            Measured::Iteration(n) if n > 0 && !self.name.contains(&format!("iteration-{n}/")) => {
                format!("{} (iteration {n})", self.name)
            }
            Measured::Earlier => format!("{} (an earlier state)", self.name),
            _ => self.name.clone(),
        }
    }

    /// Why it is in no curve, where that is not plain.
    fn told(&self) -> Option<String> {
        match self.measured {
            Measured::Earlier => Some(format!(
                "It measured an earlier state of “{}”, whose weights are not there any more: those numbers stand in the table only.",
                self.name
            )),
            Measured::Untold => Some(format!(
                "It does not tell which weights of “{}” it measured: those numbers stand in the table only.",
                self.name
            )),
            Measured::Iteration(_) | Measured::Other => None,
        }
    }
}

/// The states of the run that there are: the files of the start (0) and of each iteration.
fn states(run: &Run) -> BTreeMap<u32, Files> {
    let recorded = &run.record["inputs"]["model_name_or_path"]["files"];
    // The demo has no such input; it leaves its start beside its model.
    let start = match serde_json::from_value(recorded.clone()) {
        Ok(files) => Some(files),
        Err(_) => run.start().and_then(|start| checksums(Path::new(&start)).ok()),
    };
    let after = |n: u32| Some((n, checksums(&run.model_after(n)).ok()?));
    let iterations = run.iterations.iter().filter_map(|i| after(i.number));
    start.map(|files| (0, files)).into_iter().chain(iterations).filter(|(_, files)| !files.is_empty()).collect()
}

fn measured(run: &Run, known: &BTreeMap<u32, Files>, name: &str, files: &Files) -> Measured {
    let path = Path::new(name);
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let is_final = real(path).components().eq(real(&run.folder).components());
    let named = match path.file_name().and_then(|name| name.to_str()) {
        _ if is_final => None,
        Some("model") => {
            path.parent().and_then(|parent| parent.file_name()?.to_str()?.strip_prefix("iteration-")?.parse().ok())
        }
        _ if run.start().is_some_and(|start| real(Path::new(&start)) == real(path)) => Some(0),
        _ => None,
    };
    let ours = is_final || named.is_some();
    if files.is_empty() {
        return if ours { Measured::Untold } else { Measured::Other };
    }
    // Iterations that trained on nothing have one model: the one that was named comes first.
    if let Some(n) = named.filter(|n| known.get(n) == Some(files)) {
        return Measured::Iteration(n);
    }
    let result = &run.record["result"];
    if let Some(n) = run.kept().filter(|_| result.is_object())
        && result["model"] == *weights(files)
    {
        return Measured::Iteration(n);
    }
    match known.iter().rev().find(|(_, known)| *known == files) {
        Some((&n, _)) => Measured::Iteration(n),
        // A run without iterations has the one model.
        None if is_final && checksums(&run.folder).is_ok_and(|now| now == *files) => Measured::Other,
        None if ours => Measured::Earlier,
        None => Measured::Other,
    }
}

/// What was measured and on what.
fn setting(run: &Run, eval: &Evaluation) -> Option<String> {
    let values = |name: &str| texts(&eval.value["flags"][name]);
    let first = |name: &str| values(name).into_iter().next();
    let prompts = eval.value["prompts"].as_u64().or(eval.models.first()?.value["prompts"].as_u64())?;
    let number = |name: &str| first(name)?.parse::<usize>().ok();
    // A run whose flags are not recorded may have had any.
    let own = |name: &str| texts(&run.record["flags"][name]);
    let known = ["reward_model", "pairwise_ranker", "reward_funcs"].iter().any(|name| !own(name).is_empty());
    let differs = |name: &&str| known && !same(Some(&own(name)), Some(&values(name)));
    let reward = |of: &dyn Fn(&str) -> Vec<String>| match (of("reward_model").first(), of("pairwise_ranker").first()) {
        (Some(model), _) => format!("the model “{model}”"),
        (None, Some(model)) => format!("the model “{model}” in pairs"),
        (None, None) => format!("“{}”", of("reward_funcs").join(",")),
    };
    let flags = [
        "reward_model",
        "pairwise_ranker",
        "ranker_template",
        "ranker_labels",
        "rank_by",
        "reward_funcs",
        "reward_weights",
        "answer_pattern",
    ];
    let another = match flags.into_iter().find(differs) {
        Some("reward_model" | "pairwise_ranker" | "reward_funcs") => format!(" (the run's own is {})", reward(&own)),
        Some(name) => format!(" (with another --{name} than the run's own)"),
        None => String::new(),
    };
    Some(format!(
        "Measured by larpo eval on {} of “{}”, with the reward {}{another}; {} a prompt at temperature {}, at most {} long, beside \
         the greedy one.",
        count(prompts as usize, "prompts"),
        first("dataset_name")?,
        reward(&values),
        count(number("num_generations")?, "samples"),
        values("temperature").join(" and "),
        count(number("max_new_tokens")?, "tokens"),
    ))
}

/// Metric, N or k, temperature.
type Key = (String, Option<u64>, Option<f64>);

/// Held-out curves over iterations, from an evaluation.
pub fn held_out(run: &Run) -> Vec<Chart> {
    let Some(eval) = &run.eval else { return Vec::new() };
    let models: Vec<(u32, &Value)> = eval.by_iteration().map(|(n, model)| (n, &model.value)).collect();
    let mut keys: Vec<Key> = Vec::new();
    let key_of = |m: &Value| Some((m["metric"].as_str()?.to_string(), m["at"].as_u64(), m["temperature"].as_f64()));
    for metric in models.iter().flat_map(|(_, m)| m["metrics"].as_array().into_iter().flatten()) {
        if let Some(key) = key_of(metric).filter(|key| !keys.contains(key)) {
            keys.push(key);
        }
    }
    let curve = |key: &Key, name: String| {
        let mut series = Series { name, ..Series::default() };
        for (iteration, model) in &models {
            let metrics = model["metrics"].as_array().into_iter().flatten();
            let Some(metric) = metrics.into_iter().find(|m| key_of(m).as_ref() == Some(key)) else { continue };
            let Some(mean) = metric["mean"].as_f64() else { continue };
            let x = f64::from(*iteration);
            series.points.push((x, mean));
            if let (Some(low), Some(high)) = (metric["interval"][0].as_f64(), metric["interval"][1].as_f64()) {
                series.intervals.push((x, low, high));
            }
        }
        series
    };
    let mut temperatures: Vec<f64> = Vec::new();
    keys.iter().filter_map(|key| key.2).for_each(|t| {
        if !temperatures.contains(&t) {
            temperatures.push(t);
        }
    });
    let caption = "held-out prompts by iteration, 0 is the start; bars are 95 % intervals over prompts";
    let of = |names: &[&str], temperature: Option<f64>| -> Vec<Series> {
        let wanted = keys.iter().filter(|key| names.contains(&key.0.as_str()) && key.2 == temperature);
        wanted.map(|key| curve(key, label(&key.0, key.1, None))).collect()
    };
    let mut charts = vec![chart("Held-out accuracy, greedy", caption, true, of(&["greedy"], None))];
    // Lines of several temperatures would be too many for one chart.
    for &t in &temperatures {
        let at = if temperatures.len() > 1 { format!(", t = {t}") } else { String::new() };
        let mut add = |title: &str, share: bool, names: &[&str]| {
            charts.push(chart(&format!("{title}{at}"), caption, share, of(names, Some(t))));
        };
        add("Held-out Recall@N", true, &["recall"]);
        add("Held-out majority vote", true, &["maj"]);
        add("Held-out reward", false, &["reward", "best_of"]);
        add("Held-out ranking", false, &["ndcg", "mrr", "kendall_tau"]);
        add("Held-out KL", false, &["kl_k1", "kl_k3"]);
    }
    charts
}

/// The name of a metric of an evaluation.
fn label(name: &str, at: Option<u64>, temperature: Option<f64>) -> String {
    // Samples of temperature 1 are the rule.
    let at_temperature = temperature.filter(|&t| t != 1.0).map(|t| format!(", t = {t}")).unwrap_or_default();
    let metric = match name {
        "greedy" => "greedy accuracy",
        "greedy_reward" => "greedy reward",
        "recall" => "Recall",
        "maj" => "maj",
        "best_of" => return format!("best-of-{} reward{at_temperature}", at.unwrap_or(1)),
        "reward" => "mean reward",
        "tokens" => "response tokens",
        "ndcg" => "NDCG",
        "mrr" => "MRR",
        "kendall_tau" => "Kendall τ-b",
        "pair_accuracy" => "pair accuracy",
        "kl_k1" => "KL (k1)",
        "kl_k3" => "KL (k3)",
        other => other,
    };
    let at = at.map(|n| format!("@{n}")).unwrap_or_default();
    format!("{metric}{at}{at_temperature}")
}

/// All numbers of an evaluation, a column a model, and how the models differ.
pub fn tables(run: &Run) -> String {
    let Some(eval) = &run.eval else { return String::new() };
    let models: Vec<&Value> = eval.models.iter().map(|model| &model.value).collect();
    let names: Vec<String> = eval.models.iter().map(|model| escape(&model.heading())).collect();
    let metrics = |m: &Value| m["metrics"].as_array().cloned().unwrap_or_default();
    let key = |m: &Value| {
        let label = label(m["metric"].as_str().unwrap_or_default(), m["at"].as_u64(), m["temperature"].as_f64());
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
    let told: Vec<String> = setting(run, eval).into_iter().chain(eval.models.iter().filter_map(Model::told)).collect();
    let told = if told.is_empty() { String::new() } else { format!("<p>{}</p>", escape(&told.join(" "))) };
    let mut out =
        format!("{told}<details open><summary>Numbers [95 % interval]</summary>{}</details>", table(&headings, &rows));
    let compared = eval.value["comparisons"].as_array().cloned().unwrap_or_default();
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
