//! Losses and metrics against values and gradients computed by PyTorch in float64.
//!
//! The numbers come from `losses.json` in the folder LARPO_GOLDEN_DIR, or from the small copy beside this file. Any
//! file of that schema must pass, other seeds and shapes included.

mod golden;

use golden::{Case, array, count, counts, each_case, flags, number, numbers};
use larpo_core::metrics::{self, Gain, KlEstimator};
use larpo_core::objective::{
    LipoLabels, List, LogBase, LossType, Objective, PairLogps, RankBy, Sequence, Ties, dpo, gamma, lipo_pairs,
    lipo_ranks, list_batch, preference_scores, reward_list, seq_logp, seq_logp_grad,
};
use larpo_core::select::{Select, select_list};
use serde_json::Value;
use std::collections::BTreeSet;

/// Families with a test below.
const COVERED: &[&str] = &[
    "seq_logp",
    "dpo",
    "contrastive",
    "lambdarank",
    "lipo_lambda",
    "listmle",
    "list_batch",
    "pair_identities",
    "kl",
    "select_list",
    "pass_at_k",
    "maj_at_n",
    "best_of_n",
    "ndcg",
    "mrr",
    "kendall_tau_b",
    "pair_accuracy",
    "accuracy",
    "bt_reward",
    "rm_list",
    "pairwise_aggregate",
];

/// Families of losses and metrics that this crate does not have yet.
const LATER: &[&str] = &[
    "dpo_hinge",
    "ipo",
    "rdpo",
    "simpo",
    "cpo",
    "slic_hf",
    "rrhf_pair",
    "rrhf_list",
    "orpo",
    "kto",
    "win_rate",
    "mixeval_overall",
    "lc_win_rate",
];

#[test]
fn golden_losses_hold_exactly_the_known_families() {
    let families = golden::families();
    let found: BTreeSet<&str> = families.keys().map(String::as_str).collect();
    let known: BTreeSet<&str> = COVERED.iter().chain(LATER).copied().collect();
    assert_eq!(known.len(), COVERED.len() + LATER.len(), "a family is listed twice");
    let unknown: Vec<_> = found.difference(&known).collect();
    let missing: Vec<_> = known.difference(&found).collect();
    assert!(unknown.is_empty() && missing.is_empty(), "unknown families {unknown:?}, missing families {missing:?}");
}

#[test]
fn golden_losses_seq_logp() {
    each_case("seq_logp", |case| {
        let rows = array(case.input("logits"));
        let logits: Vec<f64> = rows.iter().flat_map(numbers).collect();
        let ids: Vec<u32> = counts(case.input("ids")).into_iter().map(|id| id as u32).collect();
        let mask = flags(case.input("mask"));
        let vocab = rows.first().map_or(0, |row| array(row).len());
        let sequence = Sequence { logits: &logits, vocab, ids: &ids, mask: &mask };

        let result = seq_logp(&sequence).unwrap();
        case.close("value", result.sum);
        case.close("mean", result.mean());
        assert_eq!(result.count, count(&case.json["count"]), "{}", case.at);
        case.close_all("per_token", &result.per_token, &case.json["per_token"]);

        let mut d_logits = vec![f64::NAN; logits.len()];
        seq_logp_grad(&sequence, &mut d_logits).unwrap();
        let want = array(&case.json["grad"]["logits"]);
        assert_eq!(want.len(), ids.len(), "{}", case.at);
        for (got, want) in d_logits.chunks(vocab.max(1)).zip(want) {
            case.close_all("d_logits", got, want);
        }
    });
}

#[test]
fn golden_losses_dpo() {
    each_case("dpo", |case| {
        let [logp_w, logp_l, ref_w, ref_l] = ["logp_w", "logp_l", "ref_w", "ref_l"].map(|name| case.inputs(name));
        let pairs = PairLogps { logp_w: &logp_w, logp_l: &logp_l, ref_w: &ref_w, ref_l: &ref_l };
        match dpo(&pairs, case.beta(), number(case.param("label_smoothing"))) {
            Ok(loss) => {
                case.close("value", loss.value);
                case.close_all("per_example", &loss.per_example, &case.json["per_example"]);
                case.close_all("d_logp_w", &loss.d_logp_w, &case.json["grad"]["logp_w"]);
                case.close_all("d_logp_l", &loss.d_logp_l, &case.json["grad"]["logp_l"]);
            }
            Err(error) => assert!(number(&case.json["value"]).is_nan(), "{}: {error}", case.at),
        }
    });
}

/// Pairs are lists of two, whose mean the loss of a batch is.
#[test]
fn golden_losses_bt_reward() {
    each_case("bt_reward", |case| {
        let (won, lost) = (case.inputs("r_w"), case.inputs("r_l"));
        let margins = case.json["inputs"].get("margin").filter(|m| !m.is_null()).map(numbers);
        let center = case.json["params"]["center_coefficient"].as_f64().unwrap_or(0.0);
        let (mut value, mut right) = (0.0, 0);
        let (mut d_won, mut d_lost) = (Vec::new(), Vec::new());
        let share = 1.0 / won.len() as f64;
        for (i, (&won, &lost)) in won.iter().zip(&lost).enumerate() {
            let margin = margins.as_ref().map_or(0.0, |margins| margins[i]);
            let loss = reward_list(&[won, lost], &[1.0, 0.0], margin, center).unwrap();
            value += share * loss.value;
            right += loss.right;
            d_won.push(share * loss.d_scores[0]);
            d_lost.push(share * loss.d_scores[1]);
        }
        case.close("value", value);
        case.close_all("r_w", &d_won, &case.json["grad"]["r_w"]);
        case.close_all("r_l", &d_lost, &case.json["grad"]["r_l"]);
        case.close("accuracy", share * right as f64);
    });
}

#[test]
fn golden_losses_rm_list() {
    each_case("rm_list", |case| {
        let (scores, labels) = (case.inputs("scores"), case.inputs("labels"));
        let loss = reward_list(&scores, &labels, 0.0, 0.0).unwrap();
        case.close("value", loss.value);
        case.close_all("scores", &loss.d_scores, &case.json["grad"]["scores"]);
        assert_eq!(loss.pairs, count(&case.json["n_pairs"]), "{}", case.at);
    });
}

#[test]
fn golden_losses_pairwise_aggregate() {
    each_case("pairwise_aggregate", |case| {
        let rows = array(case.input("P"));
        let preferences: Vec<f64> = rows.iter().flat_map(numbers).collect();
        for &by in RankBy::ALL {
            let scores = preference_scores(&preferences, rows.len(), by).unwrap();
            let tolerance = if by == RankBy::Bt { 1e-8 } else { 1e-9 };
            for (score, expected) in scores.iter().zip(numbers(&case.json["value"][by.name()])) {
                assert!((score - expected).abs() <= tolerance, "{}, {by}: {score} is not {expected}", case.at);
            }
            assert_eq!(scores.len(), array(&case.json["value"][by.name()]).len(), "{}", case.at);
        }
    });
}

/// Value and gradient of a case with one list, `key` being the name of its rewards.
fn check_list(case: &Case<'_>, objective: Objective, key: &str) {
    let (logp, reference) = (case.inputs("logp"), case.inputs("ref"));
    let rewards = case.inputs(key);
    let mask = optional_mask(case.json["inputs"].get("mask"));
    let beta = case.beta();
    let mut g = vec![0.0; logp.len()];
    gamma(beta, &logp, &reference, &mut g).unwrap();
    let mut d_gamma = vec![f64::NAN; logp.len()];
    match objective.evaluate(&g, &rewards, mask.as_deref(), &mut d_gamma) {
        Ok(loss) => {
            // A list that does not count has value 0.
            case.close("value", loss.unwrap_or(0.0));
            let d_logp: Vec<f64> = d_gamma.iter().map(|d| beta * d).collect();
            case.close_all("d_logp", &d_logp, &case.json["grad"]["logp"]);
        }
        // What the reference computes as NaN is reported here.
        Err(error) => assert!(number(&case.json["value"]).is_nan(), "{}: {error}", case.at),
    }
}

fn optional_mask(mask: Option<&Value>) -> Option<Vec<bool>> {
    mask.filter(|m| !m.is_null()).map(flags)
}

fn ties_of(case: &Case<'_>) -> Ties {
    if case.param("skip_ties").as_bool() == Some(true) { Ties::Skip } else { Ties::Stable }
}

#[test]
fn golden_losses_contrastive() {
    each_case("contrastive", |case| {
        check_list(
            case,
            Objective { loss: LossType::Contrastive, ties: Ties::Stable, ..Objective::default() },
            "rewards",
        );
    });
}

#[test]
fn golden_losses_lambdarank() {
    each_case("lambdarank", |case| {
        let objective = Objective { loss: LossType::Lambdarank, ties: ties_of(case), ..Objective::default() };
        check_list(case, objective, "rewards");
    });
}

#[test]
fn golden_losses_listmle() {
    each_case("listmle", |case| {
        check_list(case, Objective { loss: LossType::Listmle, ties: Ties::Stable, ..Objective::default() }, "rewards");
    });
}

#[test]
fn golden_losses_lipo_lambda() {
    each_case("lipo_lambda", |case| {
        let log_base: LogBase = case.param("log_base").as_str().expect("a name").parse().unwrap();
        let objective =
            Objective { loss: LossType::LipoLambda, labels: LipoLabels::Reward, log_base, ..Objective::default() };
        check_list(case, objective, "labels");

        let mask = optional_mask(case.json["inputs"].get("mask"));
        let ranking = objective.rank(&case.inputs("labels"), mask.as_deref()).unwrap();
        let mut g = vec![0.0; ranking.slots()];
        gamma(case.beta(), &case.inputs("logp"), &case.inputs("ref"), &mut g).unwrap();
        assert_eq!(lipo_ranks(&ranking, &g), counts(&case.json["tau"]), "{}", case.at);
        let mut pairs = lipo_pairs(&ranking, &g, LipoLabels::Reward, log_base).unwrap();
        pairs.sort_by_key(|pair| (pair.winner, pair.loser));
        let mut want: Vec<Vec<f64>> = array(&case.json["pair_weights"]).iter().map(numbers).collect();
        want.sort_by_key(|pair| (pair[0] as usize, pair[1] as usize));
        assert_eq!(pairs.len(), want.len(), "{}", case.at);
        for (pair, want) in pairs.iter().zip(want) {
            assert_eq!([pair.winner, pair.loser], [want[0] as usize, want[1] as usize], "{}", case.at);
            case.same("pair weight", pair.weight, want[2]);
        }
    });
}

#[test]
fn golden_losses_list_batch() {
    each_case("list_batch", |case| {
        let loss: LossType = case.param("loss").as_str().expect("a name").parse().unwrap();
        let objective = Objective { loss, ties: ties_of(case), labels: LipoLabels::Reward, ..Objective::default() };
        let beta = case.beta();
        let lists = array(case.input("lists"));
        let gammas: Vec<Vec<f64>> = lists
            .iter()
            .map(|list| {
                let (logp, reference) = (numbers(&list["logp"]), numbers(&list["ref"]));
                let mut g = vec![0.0; logp.len()];
                gamma(beta, &logp, &reference, &mut g).unwrap();
                g
            })
            .collect();
        let rewards: Vec<Vec<f64>> = lists.iter().map(|list| numbers(&list["rewards"])).collect();
        let masks: Vec<Option<Vec<bool>>> = lists.iter().map(|list| optional_mask(list.get("mask"))).collect();
        let batch: Vec<List<'_>> = (0..lists.len())
            .map(|i| List { gamma: &gammas[i], rewards: &rewards[i], mask: masks[i].as_deref() })
            .collect();

        let result = list_batch(&objective, &batch).unwrap();
        case.close("value", result.value);
        assert_eq!(result.contributing, count(&case.json["contributing_lists"]), "{}", case.at);
        let want = array(&case.json["grad"]["logp"]);
        assert_eq!(result.d_gamma.len(), want.len(), "{}", case.at);
        for (d_gamma, want) in result.d_gamma.iter().zip(want) {
            let d_logp: Vec<f64> = d_gamma.iter().map(|d| beta * d).collect();
            case.close_all("d_logp", &d_logp, want);
        }
    });
}

#[test]
fn golden_losses_pair_identities() {
    each_case("pair_identities", |case| {
        let (logp, reference, rewards) = (case.inputs("logp"), case.inputs("ref"), case.inputs("rewards"));
        let mut g = [0.0; 2];
        gamma(case.beta(), &logp, &reference, &mut g).unwrap();
        for loss in [LossType::Pairwise, LossType::Contrastive, LossType::Lambdarank, LossType::Listmle] {
            let objective = Objective { loss, ties: ties_of(case), ..Objective::default() };
            let value = objective.evaluate(&g, &rewards, None, &mut [0.0; 2]).unwrap();
            case.close("value", value.unwrap_or(0.0));
        }
        let (w, l) = if rewards[0] >= rewards[1] { (0, 1) } else { (1, 0) };
        let pair = PairLogps { logp_w: &[logp[w]], logp_l: &[logp[l]], ref_w: &[reference[w]], ref_l: &[reference[l]] };
        case.close("value", dpo(&pair, case.beta(), 0.0).unwrap().value);
    });
}

#[test]
fn golden_losses_kl() {
    each_case("kl", |case| {
        let (logp, reference) = (case.inputs("logp"), case.inputs("ref"));
        for (name, estimator) in [("k1", KlEstimator::K1), ("k2", KlEstimator::K2), ("k3", KlEstimator::K3)] {
            let want = &case.json["value"][name];
            let got = metrics::kl(estimator, &logp, &reference).unwrap();
            case.same(name, got.value, number(&want["value"]));
            case.close_all(name, &got.grad, &want["grad"]);
            case.same(name, got.sequence, number(&want["sequence"]));
        }
    });
}

#[test]
fn golden_losses_select_list() {
    each_case("select_list", |case| {
        let rewards = case.inputs("rewards");
        let texts = case.json["inputs"].get("texts").filter(|t| !t.is_null());
        let keys: Vec<String> = match texts {
            Some(texts) => array(texts).iter().map(|t| t.as_str().expect("a text").to_string()).collect(),
            None => (0..rewards.len()).map(|i| i.to_string()).collect(),
        };
        let select = Select::TopBottom { top: count(case.param("n_pos")), bottom: count(case.param("n_neg")) };
        let want = &case.json["value"];
        match select_list(select, &rewards, &keys).unwrap() {
            Some(selected) => {
                assert_eq!(selected.order, counts(&want["order"]), "{}", case.at);
                assert_eq!(selected.n_pos, count(&want["n_pos"]), "{}", case.at);
            }
            None => assert!(want.is_null(), "{}: no list against {want}", case.at),
        }
    });
}

#[test]
fn golden_losses_pass_at_k() {
    each_case("pass_at_k", |case| {
        let (n, c, k) = (case.input("n"), case.input("c"), count(case.param("k")));
        if n.is_array() {
            let (n, c) = (counts(n), counts(c));
            assert_eq!(n.len(), c.len(), "{}", case.at);
            let problems: Vec<(usize, usize)> = n.into_iter().zip(c).collect();
            case.close_or_null("value", metrics::mean_pass_at_k(&problems, k).unwrap(), &case.json["value"]);
        } else {
            case.close("value", metrics::pass_at_k(count(n), count(c), k).unwrap());
        }
    });
}

#[test]
fn golden_losses_maj_at_n() {
    each_case("maj_at_n", |case| {
        let text = |v: &Value| v.as_str().expect("a text").to_string();
        let answers: Vec<Option<String>> =
            array(case.input("answers")).iter().map(|a| (!a.is_null()).then(|| text(a))).collect();
        let gold = text(case.input("gold"));
        let vote = metrics::maj_at_n(&answers, &gold);
        let want = &case.json["value"];
        let winner = vote.winner.map(|index| answers[index].clone().expect("an answer that could be read"));
        assert_eq!(winner, (!want["winner"].is_null()).then(|| text(&want["winner"])), "{}", case.at);
        case.same("correct", vote.correct, number(&want["correct"]));
        case.same("fractional", vote.fractional, number(&want["fractional"]));
        if !answers.is_empty() {
            // There is one subset of all answers.
            let expected = metrics::expected_maj_at_n(&answers, &gold, answers.len()).unwrap();
            case.same("expected", expected, number(&want["fractional"]));
        }
    });
}

#[test]
fn golden_losses_best_of_n() {
    each_case("best_of_n", |case| {
        let n = count(case.param("n"));
        let best = metrics::best_of_n(&case.inputs("rewards"), &case.inputs("gold"), n).unwrap();
        let want = &case.json["value"];
        assert_eq!(best.selected, Some(count(&want["selected"])), "{}", case.at);
        case.close_or_null("selected_gold", best.selected_gold, &want["selected_gold"]);
        case.same("expected_max", best.expected_max, number(&want["expected_max"]));
        case.same("expected_gold", best.expected_gold, number(&want["expected_gold"]));
    });
}

#[test]
fn golden_losses_mrr() {
    each_case("mrr", |case| {
        let k = Some(case.param("k")).filter(|k| !k.is_null()).map(count);
        let queries: Vec<(Vec<f64>, Vec<f64>)> = array(case.input("queries"))
            .iter()
            .map(|query| (numbers(&query["scores"]), numbers(&query["relevance"])))
            .collect();
        let slices: Vec<(&[f64], &[f64])> = queries.iter().map(|(s, r)| (&s[..], &r[..])).collect();
        case.close("value", metrics::mean_reciprocal_rank(&slices, k).unwrap().unwrap_or(0.0));
        let each: Vec<f64> = slices.iter().map(|(s, r)| metrics::reciprocal_rank(s, r, k).unwrap()).collect();
        case.close_all("per_query", &each, &case.json["per_query"]);
    });
}

#[test]
fn golden_losses_accuracy() {
    each_case("accuracy", |case| {
        let result = metrics::accuracy(&flags(case.input("correct")));
        let want = &case.json["value"];
        case.close_or_null("accuracy", result.accuracy, &want["accuracy"]);
        case.close_or_null("standard_error", result.standard_error, &want["standard_error"]);
        // The estimate that `larpo eval` prints is the same mean with the same error.
        let values: Vec<f64> =
            flags(case.input("correct")).into_iter().map(|right| f64::from(u8::from(right))).collect();
        let with = metrics::Resampling { seed: 1, resamples: 100 };
        let estimate = metrics::bootstrap_estimate(&values, with);
        case.close_or_null("mean", estimate.map(|e| e.mean), &want["accuracy"]);
        case.close_or_null("error", estimate.and_then(|e| e.standard_error), &want["standard_error"]);
    });
}

#[test]
fn golden_losses_ndcg() {
    each_case("ndcg", |case| {
        let k = Some(case.param("k")).filter(|k| !k.is_null()).map(count);
        let gain = match case.param("gain").as_str() {
            Some("exp") => Gain::Exponential,
            Some("linear") => Gain::Linear,
            other => panic!("{}: unknown gain {other:?}", case.at),
        };
        let result = metrics::ndcg(&case.inputs("scores"), &case.inputs("relevance"), k, gain).unwrap();
        case.close("value", result.ndcg);
        case.close("dcg", result.dcg);
        case.close("idcg", result.idcg);
    });
}

#[test]
fn golden_losses_kendall_tau_b() {
    each_case("kendall_tau_b", |case| {
        let result = metrics::kendall_tau_b(&case.inputs("a"), &case.inputs("b")).unwrap();
        case.close_or_null("value", result.tau, &case.json["value"]);
        let counted = [
            ("concordant", result.concordant),
            ("discordant", result.discordant),
            ("ties_a", result.ties_a),
            ("ties_b", result.ties_b),
        ];
        for (name, got) in counted {
            assert_eq!(got, count(&case.json[name]), "{} {name}", case.at);
        }
    });
}

#[test]
fn golden_losses_pair_accuracy() {
    each_case("pair_accuracy", |case| {
        let result = metrics::pair_accuracy(&case.inputs("scores"), &case.inputs("labels")).unwrap();
        let want = &case.json["value"];
        case.close_or_null("strict", result.strict, &want["strict"]);
        case.close_or_null("half", result.half, &want["half"]);
        assert_eq!(result.pairs, count(&want["pairs"]), "{}", case.at);
    });
}
