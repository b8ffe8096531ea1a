//! The numbers behind the page: what each iteration drew, how its training went, and what an evaluation found.

use super::plot::{Bars, Chart, Series, X};
use super::run::{Iteration, Run};
use crate::cmd::ending;
use crate::numbers::number;
use crate::watch::Look;
use larpo_core::metrics::{Estimate, Resampling, best_of_n, bootstrap_estimate, pass_at_k};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Intervals of a report are the same each time it is made.
const RESAMPLING: Resampling = Resampling { seed: 1, resamples: 1000 };
/// N of Recall@N, as far as there are samples.
const RECALL_AT: [usize; 8] = [1, 2, 5, 10, 20, 50, 100, 1000];
/// A weighted sum of rewards may miss the threshold by its rounding.
const SLACK: f64 = 1e-9;
/// Distributions shown side by side.
const DISTRIBUTIONS: usize = 9;

/// What the fresh samples of an iteration say; means over prompts.
pub struct Point {
    /// The iteration.
    pub iteration: u32,
    /// Prompts.
    pub prompts: usize,
    /// Samples.
    pub samples: usize,
    /// Mean reward.
    pub reward: Estimate,
    /// Reward of the best sample.
    pub best: Estimate,
    /// (N, Recall@N); empty where no reward of the run reaches the threshold.
    pub recall: Vec<(usize, Estimate)>,
    /// Mean length in tokens, where the ids are recorded.
    pub tokens: Option<Estimate>,
}

fn estimate(values: Vec<f64>) -> Option<Estimate> {
    bootstrap_estimate(&values, RESAMPLING)
}

/// A point for every iteration with candidates.
pub fn points(run: &Run, threshold: f64) -> Vec<Point> {
    let correct = |r: f64| r >= threshold - SLACK;
    let rewards = |i: &Iteration| -> Vec<Vec<f64>> { i.lists.iter().filter_map(|l| l.scores()).collect() };
    let all: Vec<(u32, Vec<Vec<f64>>)> = run.iterations.iter().map(|i| (i.number, rewards(i))).collect();
    let any = all.iter().flat_map(|(_, lists)| lists).flatten().any(|&r| correct(r));
    let longest = all.iter().flat_map(|(_, lists)| lists).map(Vec::len).max().unwrap_or(0);
    let ns: BTreeSet<usize> = RECALL_AT.into_iter().filter(|&n| n <= longest).chain([longest]).collect();
    let point = |(iteration, lists): (u32, Vec<Vec<f64>>)| {
        let recall_at = |n: usize| {
            let right = |l: &Vec<f64>| l.iter().filter(|&&r| correct(r)).count();
            // A list with fewer samples, perhaps edited by hand, says nothing about N.
            estimate(lists.iter().filter_map(|l| pass_at_k(l.len(), right(l), n).ok()).collect())
        };
        let tokens = run.iterations.iter().find(|i| i.number == iteration).into_iter().flat_map(|i| &i.lists);
        let length = |ids: &Vec<Vec<u32>>| ids.iter().map(Vec::len).sum::<usize>() as f64 / ids.len() as f64;
        Some(Point {
            iteration,
            prompts: lists.len(),
            samples: lists.iter().map(Vec::len).sum(),
            reward: estimate(lists.iter().map(|l| l.iter().sum::<f64>() / l.len() as f64).collect())?,
            best: estimate(
                lists.iter().filter_map(|l| best_of_n(l, l, l.len()).ok()).map(|best| best.expected_max).collect(),
            )?,
            recall: match any {
                true => ns.iter().filter_map(|&n| Some((n, recall_at(n)?))).collect(),
                false => Vec::new(),
            },
            tokens: estimate(tokens.map(|l| &l.token_ids).filter(|ids| !ids.is_empty()).map(length).collect()),
        })
    };
    all.into_iter().filter_map(point).collect()
}

/// A line through means with their intervals.
fn line(name: String, values: impl Iterator<Item = (f64, Estimate)>) -> Series {
    let mut series = Series { name, ..Series::default() };
    for (x, e) in values {
        series.points.push((x, e.mean));
        series.intervals.extend(e.interval.map(|(low, high)| (x, low, high)));
    }
    series
}

/// A line through means with their standard errors.
fn measured(name: &str, values: impl Iterator<Item = (f64, f64, Option<f64>)>) -> Series {
    let mut series = Series { name: name.into(), ..Series::default() };
    for (x, mean, error) in values {
        series.points.push((x, mean));
        series.intervals.extend(error.map(|e| (x, mean - 1.96 * e, mean + 1.96 * e)));
    }
    series
}

/// A chart over iterations.
pub fn chart(title: &str, caption: &str, share: bool, series: Vec<Series>) -> Chart {
    Chart { title: title.into(), caption: caption.into(), x: X::Few, share, series, marks: Vec::new() }
}

/// Curves over iterations.
pub fn by_iteration(run: &Run, points: &[Point]) -> Vec<Chart> {
    let over = |name: &str, of: &dyn Fn(&Point) -> Option<Estimate>| {
        line(name.into(), points.iter().filter_map(|p| Some((f64::from(p.iteration), of(p)?))))
    };
    let best = match points.iter().map(|p| p.samples / p.prompts.max(1)).max() {
        Some(k) => format!("best of {k}"),
        None => String::new(),
    };
    let fresh = "fresh samples of each iteration; bars are 95 % intervals over prompts";
    let ns: BTreeSet<usize> = points.iter().flat_map(|p| &p.recall).map(|r| r.0).collect();
    let recall = |n: usize| {
        let of = move |p: &Point| p.recall.iter().find(|r| r.0 == n).map(|r| r.1);
        over(&format!("Recall@{n}"), &of)
    };
    // The first and the last, and what lies evenly between them.
    let shown = spread(points.len(), 4);
    let curve = |p: &Point| line(format!("iteration {}", p.iteration), p.recall.iter().map(|&(n, e)| (n as f64, e)));
    let logged = |name: &str, key: &str| {
        // What the iteration recorded is over every update; lines of the log, where that is missing, are means themselves.
        let recorded = |i: &Iteration| i.manifest["report"]["training"][key].as_f64();
        let mean = |i: &Iteration| Some((f64::from(i.number), recorded(i).or_else(|| last_quarter(&i.training, key))?));
        Series { name: name.into(), points: run.iterations.iter().filter_map(mean).collect(), intervals: vec![] }
    };
    let lists = |name: &str, key: &str| {
        let share = |i: &Iteration| {
            let counts = &i.manifest["report"]["lists"];
            let all = counts["lists"].as_f64().filter(|&n| n > 0.0)?;
            Some((f64::from(i.number), counts[key].as_f64()? / all))
        };
        Series { name: name.into(), points: run.iterations.iter().filter_map(share).collect(), intervals: vec![] }
    };
    let accuracy = over("accuracy", &|p| p.recall.first().filter(|r| r.0 == 1).map(|r| r.1));
    let moved = run.iterations.iter().filter_map(|i| {
        let kl = &i.manifest["report"]["kl"];
        Some((f64::from(i.number), kl["mean"].as_f64()?, kl["standard_error"].as_f64()))
    });
    let nats =
        "k3 estimate a response in nats, on the iteration's fresh samples; bars are 1.96 standard errors to each side";
    vec![
        chart("Reward", fresh, false, vec![over("mean", &|p| Some(p.reward)), over(&best, &|p| Some(p.best))]),
        chart("Accuracy of a sample", fresh, true, vec![accuracy]),
        chart("Recall@N", "by iteration: is one of N samples correct", true, ns.iter().map(|&n| recall(n)).collect()),
        chart("Recall@N by N", "how much more samples help", true, shown.iter().map(|&i| curve(&points[i])).collect()),
        chart("KL from the start of the iteration", nats, false, vec![measured("KL", moved)]),
        chart(
            "Ranking by the policy",
            "order by γ against the rewards, last quarter of each iteration's updates",
            false,
            vec![logged("NDCG", "rank/ndcg"), logged("Kendall τ-b", "rank/kendall_tau")],
        ),
        chart(
            "Lists",
            "what became of the candidates",
            true,
            vec![lists("trained on", "contributing"), lists("equal rewards", "equal"), lists("too short", "too_short")],
        ),
        chart("Response length", "mean tokens of the fresh samples", false, vec![over("tokens", &|p| p.tokens)]),
    ]
}

/// The looks at the same prompts at the start and after each iteration.
pub fn watched(run: &Run) -> Vec<Chart> {
    let manifests = run.iterations.iter().map(|i| &i.manifest);
    let looks: Vec<(f64, Look)> = ending::looks(&run.first_look, manifests)
        .into_iter()
        .zip(std::iter::once(0).chain(run.iterations.iter().map(|i| i.number)))
        .map(|(look, number)| (f64::from(number), look))
        .collect();
    let held_out = !run.flag("eval_dataset").is_empty() || run.flag("split") == ["train"];
    let which = if held_out { "held-out prompts" } else { "prompts that are trained on, the run's first" };
    // An iteration that nobody looked at watched none.
    let watched = run.iterations.iter().map(|i| &i.manifest).find(|manifest| manifest["report"]["watched"].is_object());
    let prompts = watched.and_then(|manifest| manifest["config"]["watched_prompts"].as_u64());
    let prompts = prompts.map(|n| format!("{n} ")).unwrap_or_default();
    let caption = format!("{prompts}{which}, 0 is the start; bars are 1.96 standard errors to each side");
    let curve = |name: &str, of: fn(&Look) -> (f64, Option<f64>)| {
        let point = |(x, look): &(f64, Look)| {
            let (mean, error) = of(look);
            (*x, mean, error)
        };
        measured(name, looks.iter().map(point))
    };
    let reward = curve("mean reward", |look| (look.mean_reward, look.standard_error));
    let kl = curve("KL", |look| (look.kl, look.kl_standard_error));
    let nats = format!("k1 estimate a response in nats; {caption}");
    vec![
        chart("Mean reward of the watched prompts", &caption, false, vec![reward]),
        chart("KL from the first policy", &nats, false, vec![kl]),
    ]
}

/// At most `most` of `0..n`, evenly, with both ends.
fn spread(n: usize, most: usize) -> Vec<usize> {
    match n {
        0 => Vec::new(),
        n if n <= most => (0..n).collect(),
        n => (0..most).map(|i| i * (n - 1) / (most - 1)).collect(),
    }
}

/// Mean of `key` over the last quarter of the lines that have it.
pub fn last_quarter(rows: &[Map<String, Value>], key: &str) -> Option<f64> {
    let values: Vec<f64> = rows.iter().filter_map(|row| row.get(key)?.as_f64()).collect();
    let last = &values[values.len() - values.len().div_ceil(4)..];
    (!last.is_empty()).then(|| last.iter().sum::<f64>() / last.len() as f64)
}

/// Curves over the updates of training, the iterations one after another.
pub fn by_step(run: &Run) -> Vec<Chart> {
    let stretches: Vec<&[Map<String, Value>]> = match run.training.is_empty() {
        true => run.iterations.iter().map(|i| &i.training[..]).collect(),
        false => vec![&run.training],
    };
    let step = |row: &Map<String, Value>| row.get("step").and_then(Value::as_f64);
    let (mut offsets, mut total) = (Vec::new(), 0.0);
    for rows in &stretches {
        offsets.push(total);
        total += rows.iter().filter_map(step).fold(0.0, f64::max);
    }
    let curve = |name: &str, key: &str| {
        let of = |(rows, offset): (&&[Map<String, Value>], f64)| -> Vec<(f64, f64)> {
            rows.iter().filter_map(|row| Some((offset + step(row)?, row.get(key)?.as_f64()?))).collect()
        };
        let points = stretches.iter().zip(offsets.iter().copied()).flat_map(of).collect();
        Series { name: name.into(), points, intervals: vec![] }
    };
    // Between the last update of an iteration and the first of the next.
    let marks: Vec<f64> = offsets.iter().filter(|&&o| o > 0.0 && o < total).map(|o| o + 0.5).collect();
    let caption = if marks.is_empty() { "by update" } else { "by update; vertical lines where an iteration begins" };
    let chart = |title: &str, share: bool, lines: &[(&str, &str)]| Chart {
        x: X::Steps,
        marks: marks.clone(),
        ..chart(title, caption, share, lines.iter().map(|(name, key)| curve(name, key)).collect())
    };
    vec![
        chart("Loss", false, &[("training", "loss"), ("validation", "eval_loss")]),
        chart("Rewards (γ)", false, &[("chosen", "rewards/chosen"), ("rejected", "rewards/rejected")]),
        chart("rewards/margins", false, &[("rewards/margins", "rewards/margins")]),
        chart("rewards/accuracies", true, &[("rewards/accuracies", "rewards/accuracies")]),
        chart("Ranking by the policy", false, &[("NDCG", "rank/ndcg"), ("Kendall τ-b", "rank/kendall_tau")]),
        chart("Log-probabilities", false, &[("chosen", "logps/chosen"), ("rejected", "logps/rejected")]),
        chart("Gradient norm", false, &[("grad_norm", "grad_norm")]),
        chart("Learning rate", false, &[("learning_rate", "learning_rate")]),
    ]
}

/// How the rewards of the fresh samples are distributed, an iteration a chart.
pub fn distributions(run: &Run) -> Vec<Bars> {
    let rewards: Vec<(u32, Vec<f64>)> = run
        .iterations
        .iter()
        .map(|i| (i.number, i.lists.iter().filter_map(|l| l.scores()).flatten().collect()))
        .filter(|(_, rewards): &(u32, Vec<f64>)| !rewards.is_empty())
        .collect();
    let mut distinct: Vec<f64> = rewards.iter().flat_map(|(_, r)| r.iter().copied()).collect();
    distinct.sort_by(f64::total_cmp);
    distinct.dedup();
    let Some((&low, &high)) = distinct.first().zip(distinct.last()) else { return Vec::new() };
    // A few values are shown as they are, more in bins of a round width: rewards often are multiples of one, and bins beside
    // them would be empty.
    const BINS: f64 = 16.0;
    let width = round_up(high / BINS - low / BINS);
    let edges: Vec<f64> = match distinct.len() <= 12 {
        true => distinct.clone(),
        false => (bin(low, width)..=bin(high, width)).map(|i| i as f64 * width).collect(),
    };
    let bin_of = |reward: f64| match distinct.len() <= 12 {
        true => edges.partition_point(|&edge| edge <= reward).saturating_sub(1),
        false => (bin(reward, width) - bin(low, width)) as usize,
    };
    let caption = match distinct.len() <= 12 {
        true => "share of the samples with each reward".to_string(),
        false => format!("share of the samples in bins of {}, named by their lower ends", number(width)),
    };
    let mut charts: Vec<Bars> = spread(rewards.len(), DISTRIBUTIONS)
        .into_iter()
        .map(|i| {
            let (iteration, rewards) = &rewards[i];
            let mut counts = vec![0usize; edges.len()];
            rewards.iter().for_each(|&r| counts[bin_of(r)] += 1);
            let share = |count: usize| count as f64 / rewards.len() as f64;
            Bars {
                title: format!("Iteration {iteration}"),
                caption: caption.clone(),
                bins: edges.iter().zip(counts).map(|(&edge, count)| (number(edge), share(count))).collect(),
                highest: 0.0,
            }
        })
        .collect();
    let highest = charts.iter().flat_map(|c| &c.bins).map(|b| b.1).fold(0.0, f64::max);
    charts.iter_mut().for_each(|chart| chart.highest = highest);
    charts
}

/// 1, 2 or 5 times a power of ten, at least `width`, which is above 0.
fn round_up(width: f64) -> f64 {
    let power = 10f64.powf(width.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&w| w >= width).unwrap_or(width)
}

/// The bin that holds a value; one at the lower end of a bin, to rounding, is in it.
fn bin(value: f64, width: f64) -> i64 {
    (value / width + 1e-9).floor() as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_last_quarter_is_the_mean_of_its_lines() {
        let rows: Vec<Map<String, Value>> =
            (0..9).map(|i| json!({ "grad_norm": i }).as_object().cloned().expect("an object")).collect();
        assert_eq!(last_quarter(&rows, "grad_norm"), Some(7.0), "6, 7 and 8 of nine");
        assert_eq!(last_quarter(&rows[..1], "grad_norm"), Some(0.0));
        assert_eq!(last_quarter(&rows, "loss"), None);
    }

    #[test]
    fn the_manifest_counts_more_than_lines_of_the_log() {
        let line = json!({ "step": 1, "rank/ndcg": 0.5 });
        let iteration = |number: u32, manifest: Value| Iteration {
            number,
            manifest,
            lists: Vec::new(),
            training: vec![line.as_object().cloned().expect("an object")],
            edited: (0, 0),
        };
        let kl = json!({ "mean": 2.0, "standard_error": 0.5 });
        let recorded = json!({ "report": { "training": { "rank/ndcg": 0.75 }, "kl": kl } });
        let run = Run { iterations: vec![iteration(1, recorded), iteration(2, Value::Null)], ..Run::default() };
        let charts = by_iteration(&run, &[]);
        let points = |title: &str| {
            let chart = charts.iter().find(|chart| chart.title == title).expect(title);
            chart.series[0].points.clone()
        };
        assert_eq!(points("KL from the start of the iteration"), [(1.0, 2.0)]);
        assert_eq!(points("Ranking by the policy"), [(1.0, 0.75), (2.0, 0.5)]);
    }

    #[test]
    fn bins_are_round_and_hold_what_is_at_their_ends() {
        assert_eq!(
            [0.081, 0.1, 0.19, 3.0, 70.0].map(round_up).map(|w| (w * 1e6).round() / 1e6),
            [0.1, 0.1, 0.2, 5.0, 100.0]
        );
        // Sums of rewards that are multiples of a tenth: none of the bins between them is empty.
        let rewards: Vec<f64> = (-3..=10).map(|i| f64::from(i) * 0.1).collect();
        let width = round_up(1.3 / 16.0);
        let bins: Vec<i64> = rewards.iter().map(|&r| bin(r, width)).collect();
        assert_eq!(bins, (-3..=10).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_shown_of_many_has_both_ends() {
        assert_eq!(spread(3, 4), [0, 1, 2]);
        assert_eq!(spread(10, 4), [0, 3, 6, 9]);
        assert_eq!(spread(0, 4), Vec::<usize>::new());
    }
}
