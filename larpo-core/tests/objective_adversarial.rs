//! One battery of hostile inputs over all losses and tie rules.

mod lists;

use larpo_core::objective::{
    LipoLabels, List, LossType, Objective, ObjectiveError, PairLogps, SeqLogp, Sequence, Ties, dpo, list_batch,
    seq_logp,
};
use lists::{TestList, lists, objectives};

const INF: f64 = f64::INFINITY;

/// The error of a list, whose gradient must be left at zero.
fn error_of(objective: &Objective, gamma: &[f64], rewards: &[f64]) -> ObjectiveError {
    let mut d_gamma = vec![f64::NAN; gamma.len()];
    let error = objective.evaluate(gamma, rewards, None, &mut d_gamma).unwrap_err();
    assert!(d_gamma.iter().all(|d| *d == 0.0), "{objective:?}: {d_gamma:?}");
    assert!(objective.at_zero(rewards, None).is_ok() || matches!(error, ObjectiveError::Reward { .. }));
    error
}

#[test]
fn short_lists_and_equal_rewards_do_not_contribute() {
    for objective in objectives() {
        let mut masked = TestList::new(&[3.0, f64::NAN, -INF], &[1.0, f64::NAN, INF]);
        for mask in [[false, false, false], [true, false, false]] {
            masked.mask = Some(mask.to_vec());
            assert_eq!(masked.evaluate(&objective), (None, vec![0.0; 3]), "{objective:?}");
            assert_eq!(objective.at_zero(&masked.rewards, Some(&mask)), Ok(None));
        }
        assert_eq!(TestList::new(&[], &[]).evaluate(&objective), (None, vec![]));
        assert_eq!(objective.at_zero(&[], None), Ok(None));
        let (loss, d_gamma) = TestList::new(&[1.0, 2.0, -1.0], &[0.5; 3]).evaluate(&objective);
        assert_eq!(loss.is_some(), objective.ties == Ties::Stable, "{objective:?}");
        if loss.is_none() {
            assert_eq!(d_gamma, [0.0; 3]);
        }
    }
}

#[test]
fn masked_slots_may_hold_anything() {
    for objective in objectives() {
        for list in lists().into_iter().filter(|list| list.mask.is_some()) {
            let mask = list.mask.clone().unwrap();
            let (loss, d_gamma) = list.evaluate(&objective);
            for garbage in [1e30, -1e30, f64::NAN, INF, -INF] {
                let mut filled = list.clone();
                for i in (0..mask.len()).filter(|&i| !mask[i]) {
                    filled.gamma[i] = garbage;
                    filled.rewards[i] = garbage;
                }
                assert_eq!(filled.evaluate(&objective), (loss, d_gamma.clone()), "{objective:?} on {filled:?}");
                assert_eq!(
                    objective.at_zero(&filled.rewards, Some(&mask)),
                    objective.at_zero(&list.rewards, Some(&mask))
                );
            }
            // A shuffle draws by slot, so only it may order the shorter list differently.
            if objective.ties != Ties::Random {
                let (compact_loss, compact_d) = list.compact().evaluate(&objective);
                let valid: Vec<f64> = (0..mask.len()).filter(|&i| mask[i]).map(|i| d_gamma[i]).collect();
                assert_eq!((compact_loss, compact_d), (loss, valid), "{objective:?} on {list:?}");
            }
            assert!((0..mask.len()).all(|i| mask[i] || d_gamma[i] == 0.0));
        }
    }
}

#[test]
fn huge_gammas_give_the_loss_in_the_limit() {
    for objective in objectives() {
        for size in [1e3, 1e30] {
            // Well ordered: nothing left to learn.
            let (loss, d_gamma) = TestList::new(&[size, 0.0, -size], &[2.0, 1.0, 0.0]).evaluate(&objective);
            assert_eq!((loss, d_gamma), (Some(0.0), vec![0.0; 3]), "{objective:?}");
            // Wrongly ordered: the loss is the sum of the margins, each with slope 1.
            let (loss, d_gamma) = TestList::new(&[-size, 0.0, size], &[2.0, 1.0, 0.0]).evaluate(&objective);
            let (want, want_d) = match objective.loss {
                LossType::Pairwise => (4.0 / 3.0 * size, [-2.0 / 3.0, 0.0, 2.0 / 3.0]),
                LossType::Contrastive => (2.0 * size, [-1.0, 0.0, 1.0]),
                LossType::Lambdarank => (4.0 * size, [-2.0, 0.0, 2.0]),
                LossType::Listmle => (3.0 * size, [-1.0, -1.0, 2.0]),
                LossType::LipoLambda => {
                    assert!(loss.unwrap() > 0.1 * size && loss.unwrap().is_finite());
                    assert!(d_gamma[0] < 0.0 && d_gamma[2] > 0.0 && d_gamma.iter().all(|d| d.is_finite()));
                    continue;
                }
            };
            assert!((loss.unwrap() - want).abs() <= 1e-15 * want, "{objective:?}: {loss:?} against {want}");
            for (d, want) in d_gamma.iter().zip(want_d) {
                assert!((d - want).abs() <= 1e-15, "{objective:?}: {d_gamma:?} against {want_d:?}");
            }
        }
    }
}

#[test]
fn a_negative_of_probability_zero_contributes_nothing() {
    for objective in objectives() {
        // The worst item is impossible under the policy.
        let (gamma, rewards) = ([0.4, -INF, -0.7, 0.1], [1.0, -1.0, 0.0, 0.5]);
        let (loss, d_gamma) = TestList::new(&gamma, &rewards).evaluate(&objective);
        let (loss, at) = (loss.unwrap(), format!("{objective:?}"));
        assert!(loss.is_finite() && d_gamma.iter().all(|d| d.is_finite()), "{at}");
        assert_eq!(d_gamma[1], 0.0, "{at}");
        let without = TestList::new(&[0.4, -0.7, 0.1], &[1.0, 0.0, 0.5]);
        let (rest, d_rest) = without.evaluate(&objective);
        let scale = match (objective.loss, objective.labels) {
            (LossType::Pairwise, _) => 3.0 / 6.0, // a mean over six pairs instead of three
            (LossType::LipoLambda, LipoLabels::Rank) => continue, // rank labels depend on m
            _ => 1.0,
        };
        assert!((loss - scale * rest.unwrap()).abs() < 1e-15, "{at}");
        for (i, d) in [0, 2, 3].into_iter().zip(d_rest) {
            assert!((d_gamma[i] - scale * d).abs() < 1e-15, "{at}");
        }
    }
}

#[test]
fn a_preferred_item_of_probability_zero_makes_the_loss_infinite() {
    for objective in objectives() {
        let (loss, d_gamma) = TestList::new(&[-INF, 0.3, 0.1], &[1.0, 0.5, 0.0]).evaluate(&objective);
        assert_eq!(loss, Some(INF), "{objective:?}");
        assert!(d_gamma.iter().all(|d| d.is_finite()) && d_gamma[0] < 0.0, "{objective:?}: {d_gamma:?}");
    }
}

#[test]
fn undefined_gammas_are_reported_not_trained_on() {
    for objective in objectives() {
        let rewards = [1.0, 0.0, 0.5];
        for bad in [f64::NAN, INF] {
            let error = error_of(&objective, &[0.0, bad, 1.0], &rewards);
            assert!(matches!(error, ObjectiveError::Gamma { index: 1, .. }), "{objective:?}: {error}");
        }
        // Everything impossible: no comparison has a value.
        let error = error_of(&objective, &[-INF; 3], &rewards);
        assert!(matches!(error, ObjectiveError::TwoMinusInf { .. }), "{objective:?}: {error}");
        // Two impossible negatives: the sums of exponentials do not mind, their difference does not exist.
        let list = TestList::new(&[0.0, -INF, -INF], &rewards);
        if objective.loss == LossType::Contrastive {
            assert_eq!(list.evaluate(&objective), (Some(0.0), vec![0.0; 3]));
        } else {
            let error = error_of(&objective, &list.gamma, &rewards);
            assert_eq!(error, ObjectiveError::TwoMinusInf { index: 2, other: 1 }, "{objective:?}");
        }
    }
}

#[test]
fn bad_rewards_and_lengths_are_named() {
    for objective in objectives() {
        for bad in [f64::NAN, INF, -INF] {
            let error = error_of(&objective, &[0.0; 3], &[0.0, 1.0, bad]);
            assert!(matches!(error, ObjectiveError::Reward { index: 2, .. }), "{error}");
            assert!(objective.at_zero(&[0.0, 1.0, bad], None).is_err());
        }
        let length = |what, expected, found| ObjectiveError::Length { what, expected, found };
        let evaluate = |gamma: usize, rewards: &[f64], mask: usize, d: usize| {
            objective.evaluate(&vec![0.0; gamma], rewards, Some(&vec![true; mask]), &mut vec![0.0; d]).unwrap_err()
        };
        let rewards = [0.0, 1.0, 2.0];
        assert_eq!(evaluate(2, &rewards, 3, 3), length("gamma", 3, 2));
        assert_eq!(evaluate(3, &rewards, 2, 3), length("mask", 3, 2));
        assert_eq!(evaluate(3, &rewards, 3, 4), length("d_gamma", 3, 4));
    }
}

#[test]
fn raw_rewards_too_large_for_lipo_gains_are_reported() {
    let objective = Objective { loss: LossType::LipoLambda, labels: LipoLabels::Reward, ..Objective::default() };
    let error = error_of(&objective, &[0.0; 3], &[1.0, 2000.0, 3000.0]);
    assert!(error.to_string().contains("2^label"), "{error}");
    let ranked = Objective { labels: LipoLabels::Rank, ..objective };
    assert!(TestList::new(&[0.0; 3], &[1.0, 2000.0, 3000.0]).evaluate(&ranked).0.unwrap().is_finite());
}

#[test]
fn a_batch_counts_its_lists_and_names_the_bad_one() {
    for objective in objectives() {
        let (gamma, rewards) = ([0.2, -0.4, 0.9], [1.0, 0.0, 0.5]);
        let good = List { gamma: &gamma, rewards: &rewards, mask: None };
        let short = List { gamma: &gamma, rewards: &rewards, mask: Some(&[true, false, false]) };
        let (loss, d_gamma) = TestList::new(&gamma, &rewards).evaluate(&objective);
        let batch = list_batch(&objective, &[short, good, short, good]).unwrap();
        assert_eq!(batch.contributing, 2);
        assert_eq!(batch.value, loss.unwrap());
        assert_eq!(batch.d_gamma[0], [0.0; 3]);
        assert_eq!(batch.d_gamma[1], d_gamma.iter().map(|d| d / 2.0).collect::<Vec<_>>());

        let none = list_batch(&objective, &[short]).unwrap();
        assert_eq!((none.value, none.contributing), (0.0, 0));
        let bad = List { gamma: &[f64::NAN, 0.0, 0.0], ..good };
        assert_eq!(list_batch(&objective, &[good, bad]).unwrap_err().0, 1);
        let bad = List { gamma: &[0.0; 2], ..good };
        let (index, error) = list_batch(&objective, &[bad]).unwrap_err();
        assert_eq!((index, error), (0, ObjectiveError::Length { what: "gamma", expected: 3, found: 2 }));
    }
}

#[test]
fn pairs_and_sequences_report_bad_input() {
    let pairs = |w, l| PairLogps { logp_w: w, logp_l: l, ref_w: &[0.0], ref_l: &[0.0] };
    assert_eq!(dpo(&pairs(&[-INF], &[-INF]), 0.1, 0.0), Err(ObjectiveError::Margin { pair: 0 }));
    assert_eq!(dpo(&pairs(&[f64::NAN], &[0.0]), 0.1, 0.0), Err(ObjectiveError::Margin { pair: 0 }));
    assert!(dpo(&pairs(&[0.0], &[]), 0.1, 0.0).is_err());
    assert!(dpo(&pairs(&[0.0], &[0.0]), -0.1, 0.0).is_err());
    assert!(dpo(&pairs(&[0.0], &[0.0]), 0.1, 0.7).is_err());

    fn sequence(logits: &[f64], ids: &[u32], mask: &[bool]) -> Result<SeqLogp, ObjectiveError> {
        seq_logp(&Sequence { logits, vocab: 2, ids, mask })
    }
    let both = [true, true];
    let error = sequence(&[0.0; 4], &[0, 2], &both).unwrap_err();
    assert_eq!(error, ObjectiveError::TokenId { position: 1, id: 2, vocab: 2 });
    for row in [[f64::NAN, 0.0], [INF, 0.0], [-INF, -INF]] {
        let logits = [row[0], row[1], 0.0, 0.0];
        assert_eq!(sequence(&logits, &[0, 1], &both), Err(ObjectiveError::Logits { position: 0 }));
        assert!(sequence(&logits, &[0, 1], &[true, false]).is_ok()); // not scored, not read
    }
    assert!(sequence(&[0.0; 3], &[0, 1], &both).is_err());
    assert!(sequence(&[0.0; 4], &[0, 1], &[true]).is_err());
    assert_eq!(sequence(&[-INF, 0.0, 0.0, 0.0], &[0, 0], &both).unwrap().sum, -INF);
}
