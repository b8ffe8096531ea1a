//! How a run ended, from what it left in its folder: for `inspect` and `report`.

use crate::messages::count;
use crate::numbers::number;
use crate::watch::{self, Look};
use serde_json::Value;

/// The looks at watched prompts, that at the start in front: `start` is `start.json`, `manifests` those of the iterations
/// in their order. Empty where not every one of them was looked at.
pub fn looks<'a>(start: &Value, manifests: impl Iterator<Item = &'a Value>) -> Vec<Look> {
    let iterations = manifests.map(|manifest| &manifest["report"]["watched"]);
    std::iter::once(&start["watched"]).chain(iterations).map_while(Look::from_json).collect()
}

/// What became of a run, in sentences: `record` is `run.json`, `done` the number of its finished iterations (0 for verbs
/// without), `looks` as [`looks`] gives them. Empty where nothing tells.
pub fn sentences(record: &Value, done: usize, looks: &[Look]) -> Vec<String> {
    let mut told = Vec::new();
    let summary = &record["result"]["summary"];
    let goal = record["goal"]["iterations"].as_u64();
    match (summary.is_object(), goal, summary["ended_early"].as_str()) {
        (true, Some(goal), Some(why)) => told.push(format!("Ended early, after {done} of {goal} iterations: {why}.")),
        (true, Some(_), None) => told.push(format!("Finished: {}.", count(done, "iterations"))),
        (true, None, _) => told.push(match summary["steps"].as_u64() {
            Some(steps) => format!("Finished: {}.", count(steps as usize, "updates")),
            None => "Finished.".into(),
        }),
        (false, Some(goal), _) => told.push(format!("Not finished: {done} of {goal} iterations are done.")),
        (false, None, _) if record.is_object() => told.push("Not finished.".into()),
        (false, None, _) => {}
    }
    if looks.len() > 1 {
        let best = watch::best(looks);
        let reward = number(looks[best].mean_reward);
        told.push(match best {
            0 => format!("No iteration has a higher mean reward on the watched prompts than the start ({reward})."),
            best => format!("The best iteration on the watched prompts is {best}, with a mean reward of {reward}."),
        });
    }
    match summary["best_iteration"].as_u64() {
        Some(0) => told.push("The model in the folder is the one that the run started from.".into()),
        Some(best) => told.push(format!("The model in the folder is that of iteration {best}.")),
        None if looks.len() > 1 && summary.is_object() => {
            told.push("The model in the folder is that of the last iteration.".into());
        }
        None => {}
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_end_is_told() {
        let manifest = |reward: f64| json!({ "report": { "watched": { "mean_reward": reward, "kl": 0.5 } } });
        let start = json!({ "watched": { "mean_reward": 0.25, "kl": 0.0 } });
        let manifests = [manifest(0.5), manifest(0.375), json!({ "report": {} }), manifest(1.0)];
        let seen = looks(&start, manifests.iter());
        assert_eq!(seen.len(), 3, "up to the first that was not looked at");
        assert!(looks(&Value::Null, manifests.iter()).is_empty());
        let record = |summary: Value| json!({ "goal": { "iterations": 6 }, "result": { "summary": summary } });
        let early = sentences(&record(json!({ "ended_early": "no better", "best_iteration": 1 })), 2, &seen).join(" ");
        assert_eq!(
            early,
            "Ended early, after 2 of 6 iterations: no better. The best iteration on the watched prompts is 1, with a mean \
             reward of 0.5. The model in the folder is that of iteration 1."
        );
        let start =
            sentences(&record(json!({ "best_iteration": 0 })), 1, &[seen[0], Look { mean_reward: 0.0, ..seen[1] }]);
        assert!(start[1].starts_with("No iteration") && start[2].contains("started from"), "{start:?}");
        assert_eq!(sentences(&record(json!({})), 6, &[]), ["Finished: 6 iterations."]);
        assert_eq!(sentences(&record(json!({})), 1, &[]), ["Finished: 1 iteration."]);
        assert_eq!(
            sentences(&json!({ "goal": { "iterations": 6 } }), 2, &[]),
            ["Not finished: 2 of 6 iterations are done."]
        );
        assert_eq!(sentences(&json!({ "result": { "summary": { "steps": 40 } } }), 0, &[]), ["Finished: 40 updates."]);
        assert!(sentences(&Value::Null, 3, &[]).is_empty());
    }
}
