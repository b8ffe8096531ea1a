//! The losses against their definitions written out naively, the closed forms at γ = 0, and the identities between
//! them.

mod lists;

use larpo_core::objective::{LipoLabels, LogBase, LossType, Objective, ObjectiveError, PairLogps, Ties, dpo, gamma};
use lists::{TestList, lists, objectives};

fn close(got: f64, want: f64, at: &str) {
    assert!((got - want).abs() <= 1e-12 + 1e-12 * want.abs(), "{at}: {got} against {want}");
}

/// `-log σ(g_i - g_j)`.
fn pair(gamma: &[f64], i: usize, j: usize) -> f64 {
    (1.0 + (gamma[j] - gamma[i]).exp()).ln()
}

/// `-log( exp(g_i) / Σ_{j in denominator} exp(g_j) )`.
fn softmax(gamma: &[f64], i: usize, denominator: &[usize]) -> f64 {
    -(gamma[i].exp() / denominator.iter().map(|&j| gamma[j].exp()).sum::<f64>()).ln()
}

/// Valid slots, best first, ties by slot.
fn stable_order(list: &TestList) -> Vec<usize> {
    let mut order: Vec<usize> =
        (0..list.gamma.len()).filter(|&i| list.mask.as_ref().is_none_or(|mask| mask[i])).collect();
    order.sort_by(|&a, &b| list.rewards[b].total_cmp(&list.rewards[a]));
    order
}

/// The loss of a list in the order `order` by its definition.
fn by_definition(objective: &Objective, list: &TestList, order: &[usize]) -> f64 {
    let (g, r) = (&list.gamma, &list.rewards);
    let m = order.len();
    let ordered_pairs = || (0..m).flat_map(|a| (a + 1..m).map(move |b| (a, b))).map(|(a, b)| (order[a], order[b]));
    let pairs: Vec<(usize, usize, f64)> = match objective.ties {
        Ties::Stable | Ties::Random => ordered_pairs().map(|(i, j)| (i, j, 1.0)).collect(),
        Ties::Skip => ordered_pairs().filter(|&(i, j)| r[i] > r[j]).map(|(i, j)| (i, j, 1.0)).collect(),
        Ties::Share => {
            let both = order.iter().flat_map(|&i| order.iter().map(move |&j| (i, j))).filter(|(i, j)| i != j);
            both.filter(|&(i, j)| r[i] >= r[j]).map(|(i, j)| (i, j, if r[i] > r[j] { 1.0 } else { 0.5 })).collect()
        }
    };
    let denominator = |a: usize| -> Vec<usize> {
        let i = order[a];
        match objective.ties {
            Ties::Stable | Ties::Random => order[a..].to_vec(),
            Ties::Skip => order.iter().copied().filter(|&j| j == i || r[j] < r[i]).collect(),
            Ties::Share => order.iter().copied().filter(|&j| r[j] <= r[i]).collect(),
        }
    };
    match objective.loss {
        LossType::Lambdarank => pairs.iter().map(|&(i, j, w)| w * pair(g, i, j)).sum(),
        LossType::Pairwise => {
            let weight: f64 = pairs.iter().map(|p| p.2).sum();
            pairs.iter().map(|&(i, j, w)| w * pair(g, i, j)).sum::<f64>() / weight
        }
        LossType::Contrastive => softmax(g, order[0], &denominator(0)),
        LossType::Listmle => (0..m).map(|a| softmax(g, order[a], &denominator(a))).sum(),
        LossType::LipoLambda => lipo_by_definition(objective, list, order),
    }
}

fn lipo_by_definition(objective: &Objective, list: &TestList, order: &[usize]) -> f64 {
    let (g, r) = (&list.gamma, &list.rewards);
    let m = order.len() as f64;
    let label = |i: usize| match objective.labels {
        LipoLabels::Reward => r[i],
        LipoLabels::Rank => {
            // Mean of the ranks of all items with this reward.
            let ranks: Vec<f64> = (0..order.len()).filter(|&a| r[order[a]] == r[i]).map(|a| a as f64 + 1.0).collect();
            (m - ranks.iter().sum::<f64>() / ranks.len() as f64) / (m - 1.0)
        }
    };
    let tau = |i: usize| 1 + order.iter().filter(|&&j| g[j] > g[i] || (g[j] == g[i] && j < i)).count();
    let discount = |i: usize| match objective.log_base {
        LogBase::E => (1.0 + tau(i) as f64).ln(),
        LogBase::Two => (1.0 + tau(i) as f64).log2(),
    };
    let gain = |i: usize| 2f64.powf(label(i)) - 1.0;
    let mut loss = 0.0;
    for &i in order {
        for &j in order {
            if label(i) > label(j) {
                loss += (gain(i) - gain(j)).abs() * (1.0 / discount(i) - 1.0 / discount(j)).abs() * pair(g, i, j);
            }
        }
    }
    loss
}

#[test]
fn every_loss_is_its_definition() {
    let mut compared = 0;
    for objective in objectives() {
        for list in lists() {
            let order = match objective.ties {
                // The shuffle is tested with the ranking; here the loss of the shuffled order.
                Ties::Random => objective.rank(&list.rewards, list.mask.as_deref()).unwrap().order().to_vec(),
                _ => stable_order(&list),
            };
            let all_equal = order.iter().all(|&i| list.rewards[i] == list.rewards[order[0]]);
            let counts = order.len() >= 2 && (!all_equal || objective.ties == Ties::Stable);
            let (loss, _) = list.evaluate(&objective);
            assert_eq!(loss.is_some(), counts, "{objective:?} on {list:?}");
            if let Some(loss) = loss {
                close(loss, by_definition(&objective, &list, &order), &format!("{objective:?} on {list:?}"));
                compared += 1;
            }
        }
    }
    assert!(compared > 1000, "only {compared} lists compared");
}

#[test]
fn at_zero_is_the_loss_of_identical_gammas() {
    let mut compared = 0;
    for objective in objectives() {
        for list in lists() {
            let (loss, _) = TestList { gamma: vec![0.0; list.gamma.len()], ..list.clone() }.evaluate(&objective);
            let closed = objective.at_zero(&list.rewards, list.mask.as_deref()).unwrap();
            assert_eq!(loss.is_some(), closed.is_some(), "{objective:?} on {list:?}");
            if let (Some(loss), Some(closed)) = (loss, closed) {
                close(loss, closed, &format!("{objective:?} on {list:?}"));
                compared += 1;
            }
        }
    }
    assert!(compared > 1000, "only {compared} lists compared");
}

#[test]
fn at_zero_of_small_lists_by_hand() {
    let ln = f64::ln;
    let distinct = [0.1, 0.7, 0.3, 0.9]; // m = 4
    let tied = [1.0, 0.0, 1.0, 0.0, 0.5]; // groups of 2, 1, 2
    let at_zero = |loss, ties, rewards: &[f64]| {
        Objective { loss, ties, ..Objective::default() }.at_zero(rewards, None).unwrap().unwrap()
    };
    for &ties in Ties::ALL {
        close(at_zero(LossType::Pairwise, ties, &distinct), ln(2.0), "pairwise");
        close(at_zero(LossType::Contrastive, ties, &distinct), ln(4.0), "contrastive");
        close(at_zero(LossType::Lambdarank, ties, &distinct), 6.0 * ln(2.0), "lambdarank");
        close(at_zero(LossType::Listmle, ties, &distinct), ln(24.0), "listmle");
        // Labels 0, 2/3, 1/3, 1 at ranks 1, 2, 3, 4.
        let (gain, inverse) =
            ([0.0, 2.0 / 3.0, 1.0 / 3.0, 1.0].map(f64::exp2), [2.0, 3.0, 4.0, 5.0].map(|r| 1.0 / ln(r)));
        let mut weights = 0.0;
        for i in 0..4 {
            for j in 0..i {
                weights += ((gain[i] - gain[j]) * (inverse[i] - inverse[j])).abs();
            }
        }
        close(at_zero(LossType::LipoLambda, ties, &distinct), weights * ln(2.0), "lipo_lambda");
    }
    for (ties, contrastive, pairs, listmle) in [
        (Ties::Stable, ln(5.0), 10.0, ln(120.0)),
        (Ties::Random, ln(5.0), 10.0, ln(120.0)),
        (Ties::Skip, ln(4.0), 8.0, 2.0 * ln(4.0) + ln(3.0)),
        (Ties::Share, ln(5.0), 10.0, 2.0 * ln(5.0) + ln(3.0) + 2.0 * ln(2.0)),
    ] {
        close(at_zero(LossType::Pairwise, ties, &tied), ln(2.0), "pairwise");
        close(at_zero(LossType::Contrastive, ties, &tied), contrastive, "contrastive");
        close(at_zero(LossType::Lambdarank, ties, &tied), pairs * ln(2.0), "lambdarank");
        close(at_zero(LossType::Listmle, ties, &tied), listmle, "listmle");
    }
}

#[test]
fn two_items_make_all_unweighted_losses_dpo() {
    let (logp, reference) = ([-14.0, -11.5], [-13.0, -12.25]);
    for beta in [0.1, 1.0, 4.0] {
        let mut g = [0.0; 2];
        gamma(beta, &logp, &reference, &mut g).unwrap();
        for (w, l) in [(0, 1), (1, 0)] {
            let mut rewards = [0.0; 2];
            rewards[w] = 1.0;
            let pair = PairLogps {
                logp_w: &logp[w..=w],
                logp_l: &logp[l..=l],
                ref_w: &reference[w..=w],
                ref_l: &reference[l..=l],
            };
            let dpo = dpo(&pair, beta, 0.0).unwrap();
            for objective in objectives().iter().filter(|o| o.loss != LossType::LipoLambda) {
                let (loss, d_gamma) = TestList::new(&g, &rewards).evaluate(objective);
                close(loss.unwrap(), dpo.value, "value");
                close(beta * d_gamma[w], dpo.d_logp_w[0], "winner");
                close(beta * d_gamma[l], dpo.d_logp_l[0], "loser");
            }
        }
    }
}

#[test]
fn the_first_term_of_listmle_is_contrastive() {
    for ties in [Ties::Stable, Ties::Skip] {
        for list in lists() {
            let listmle = Objective { loss: LossType::Listmle, ties, ..Objective::default() };
            let contrastive = Objective { loss: LossType::Contrastive, ..listmle };
            let (Some(whole), _) = list.evaluate(&listmle) else { continue };
            let mut mask = list.mask.clone().unwrap_or_else(|| vec![true; list.gamma.len()]);
            mask[stable_order(&list)[0]] = false;
            let rest = TestList { mask: Some(mask), ..list.clone() };
            // A rest of one item, or of equal rewards under skip, has no further term.
            let rest = rest.evaluate(&listmle).0.unwrap_or(0.0);
            close(whole - rest, list.evaluate(&contrastive).0.unwrap(), &format!("{ties} on {list:?}"));
        }
    }
}

#[test]
fn sharing_and_skipping_do_not_depend_on_the_order_of_tied_items() {
    let (gamma, rewards) = ([0.3, -1.0, 2.0, 0.5, -0.2], [1.0, 0.0, 1.0, 0.0, 1.0]);
    let reversed = |x: &[f64]| x.iter().rev().copied().collect::<Vec<f64>>();
    for loss in [LossType::Pairwise, LossType::Lambdarank, LossType::Listmle] {
        for ties in [Ties::Share, Ties::Skip] {
            let objective = Objective { loss, ties, ..Objective::default() };
            let (one, d_one) = TestList::new(&gamma, &rewards).evaluate(&objective);
            let (other, d_other) = TestList::new(&reversed(&gamma), &reversed(&rewards)).evaluate(&objective);
            close(one.unwrap(), other.unwrap(), "value");
            for (d, other) in d_one.iter().zip(reversed(&d_other)) {
                close(*d, other, "gradient");
            }
        }
    }
}

#[test]
fn gamma_scales_the_difference() {
    let mut g = [0.0; 2];
    gamma(0.5, &[-3.0, f64::NEG_INFINITY], &[-4.0, -1.0], &mut g).unwrap();
    assert_eq!(g, [0.5, f64::NEG_INFINITY]);
    // Neighbouring floats: scaling each of them first would round the difference away.
    let logp = -1234.5678f64;
    gamma(0.3, &[logp, logp.next_up()], &[logp.next_down(), logp], &mut g).unwrap();
    assert_eq!(g, [0.3 * 2f64.powi(-42); 2]);
    for beta in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = gamma(beta, &[0.0; 2], &[0.0; 2], &mut g).unwrap_err();
        assert!(matches!(error, ObjectiveError::Setting { what: "beta", .. }));
    }
    assert!(gamma(1.0, &[0.0], &[0.0; 2], &mut g).is_err());
}
