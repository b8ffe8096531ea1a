//! The batched losses in `f32` against the same lists one by one in `f64`, and against PyTorch's numbers.

mod golden;
mod lists;

use golden::{Case, each_case, flags, number, numbers};
use larpo_core::objective::{
    LipoLabels, LogBase, LossType, Objective, ObjectiveError, RankedBatch, Ties, gamma as gamma_of,
};
use lists::{Uniform, objectives};
use std::cell::Cell;

const INF: f32 = f32::INFINITY;
/// Of a loss relative to itself, of a derivative relative to the largest of its list.
const TOLERANCE: f64 = 1e-5;
/// Terms below the normal numbers of `f32` are lost.
const TINY: f64 = 1e-36;

/// Ragged lists: offsets, γ within ±`spread`, rewards of `levels` values (0: all different), both in rank order.
struct Ragged {
    offsets: Vec<u32>,
    gamma: Vec<f32>,
    rewards: Vec<f32>,
}

impl Ragged {
    fn new(lengths: impl Iterator<Item = usize>, spread: f64, levels: usize, seed: u64) -> Self {
        let mut uniform = Uniform(seed);
        let mut lists = Self { offsets: vec![0], gamma: Vec::new(), rewards: Vec::new() };
        for length in lengths {
            lists.gamma.extend((0..length).map(|_| (spread * uniform.draw()) as f32));
            let mut rewards: Vec<f32> = (0..length)
                .map(|k| match levels {
                    0 => 1.0 - k as f32 / 64.0,
                    _ => ((uniform.draw() + 1.0) / 2.0 * levels as f64).floor() as f32 / 2.0,
                })
                .collect();
            rewards.sort_by(|a, b| b.total_cmp(a));
            lists.rewards.extend(rewards);
            lists.offsets.push(lists.gamma.len() as u32);
        }
        lists
    }

    fn batch(&self, rewards: bool) -> RankedBatch<'_, f32> {
        let batch = RankedBatch::ragged(&self.gamma, &self.offsets);
        if rewards { batch.with_rewards(&self.rewards) } else { batch }
    }

    fn items(&self, list: usize) -> std::ops::Range<usize> {
        self.offsets[list] as usize..self.offsets[list + 1] as usize
    }
}

fn evaluate(objective: &Objective, batch: &RankedBatch<'_, f32>) -> (Vec<f32>, Vec<f32>) {
    let (mut loss, mut d_gamma) = (vec![f32::NAN; batch.lists()], vec![f32::NAN; batch.gamma.len()]);
    objective.evaluate_batch(batch, &mut loss, &mut d_gamma).unwrap_or_else(|e| panic!("{objective:?}: {e}"));
    (loss, d_gamma)
}

/// Compares every list with `Objective::evaluate` on its own, in `f64`.
fn check(objective: &Objective, lists: &Ragged, rewards: bool) {
    let (loss, d_gamma) = evaluate(objective, &lists.batch(rewards));
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    for (list, &loss) in loss.iter().enumerate() {
        let items = lists.items(list);
        let gamma = wide(&lists.gamma[items.clone()]);
        let order: Vec<f64> = (0..items.len()).rev().map(|k| k as f64).collect();
        let rewards = if rewards { wide(&lists.rewards[items.clone()]) } else { order };
        let mut want_d = vec![0.0; items.len()];
        let want = objective.evaluate(&gamma, &rewards, None, &mut want_d).unwrap().unwrap_or(0.0);
        let at = || format!("{objective:?} on γ {gamma:?}, rewards {rewards:?}");
        let close = (f64::from(loss) - want).abs() <= TOLERANCE * want + TINY;
        assert!(close, "{}: loss {loss} against {want}", at());
        // Half a sigmoid less another half cannot be better than the sigmoids.
        let halves = if objective.ties == Ties::Share { 1e-7 * items.len() as f64 } else { 0.0 };
        let largest = want_d.iter().fold(0.0, |largest: f64, d| largest.max(d.abs()));
        for (d, want) in d_gamma[items].iter().zip(&want_d) {
            let close = (f64::from(*d) - want).abs() <= TOLERANCE * largest + halves + TINY;
            assert!(close, "{}: derivative {d} against {want}", at());
        }
    }
}

/// Shuffles follow the number of the list in its batch, which [`check`] does not know.
fn unshuffled() -> impl Iterator<Item = Objective> {
    objectives().into_iter().filter(|objective| objective.ties != Ties::Random)
}

#[test]
fn ragged_lists_agree_with_the_losses_in_f64() {
    for (seed, spread) in [1e-3, 0.3, 3.0, 20.0, 80.0].into_iter().enumerate() {
        for levels in [0, 2, 3] {
            let lengths = (0..400).map(|i| i * 7 % 41);
            let lists = Ragged::new(lengths, spread, levels, seed as u64);
            for objective in unshuffled() {
                if objective.labels == LipoLabels::Rank {
                    check(&objective, &lists, false);
                }
                check(&objective, &lists, true);
            }
        }
    }
}

#[test]
fn lists_that_are_well_ordered_keep_their_small_losses() {
    for step in [1.0f32, 5.0, 25.0, 100.0] {
        let mut lists = Ragged::new([16; 9].into_iter(), 0.0, 0, 1);
        for list in lists.gamma.chunks_mut(16) {
            list.iter_mut().enumerate().for_each(|(k, g)| *g = -step * k as f32);
        }
        for objective in unshuffled() {
            check(&objective, &lists, true);
        }
    }
}

#[test]
fn the_wrong_order_beside_the_right_one() {
    // Losses of up to 500, which leave the range of a product of probabilities, in a register with small ones.
    for length in [2, 9, 16, 24, 25] {
        let mut lists = Ragged::new((0..41).map(|_| length), 3.0, 0, 11);
        for (at, list) in lists.gamma.chunks_mut(length).enumerate() {
            let step = [-0.2, 2.4, 0.3, -1.1, 0.0][at % 5] * 16.0 / length as f32;
            list.iter_mut().enumerate().for_each(|(k, g)| *g = *g / 3.0 + step * k as f32);
        }
        for objective in unshuffled() {
            check(&objective, &lists, true);
        }
    }
}

#[test]
fn lists_of_sixteen_between_order_and_disorder() {
    // From the right order to the wrong one and to none, with spans around 40 and losses around 8, far from 0 too: the kernels
    // for this length take differences of large terms, and must know where not to.
    for (seed, offset) in [0.0, 300.0, -1e4].into_iter().enumerate() {
        for noise in [0.0, 0.1, 1.0, 3.0, 13.0] {
            let mut lists = Ragged::new((0..600).map(|_| 16), noise, 0, 20 + seed as u64);
            for (at, list) in lists.gamma.chunks_mut(16).enumerate() {
                let step = (at as f32 / 100.0 - 3.0) * 0.9;
                list.iter_mut().enumerate().for_each(|(k, g)| *g += step * k as f32 + offset);
            }
            for loss in [LossType::Contrastive, LossType::Listmle] {
                check(&Objective { loss, ..Objective::default() }, &lists, false);
            }
        }
    }
}

#[test]
fn lists_of_sixteen_with_a_gamma_that_is_not_finite() {
    // At every place of a list, in a block of lists that are fine.
    for loss_type in [LossType::Contrastive, LossType::Listmle] {
        let objective = Objective { loss: loss_type, ..Objective::default() };
        let mut lists = Ragged::new([16; 96].into_iter(), 3.0, 0, 6);
        for (at, list) in lists.gamma.chunks_mut(16).enumerate().filter(|(at, _)| at % 2 == 0) {
            list[at / 2 % 16] = [f32::NAN, INF, -INF][at / 32];
        }
        let wide: Vec<f64> = lists.gamma.iter().map(|&g| f64::from(g)).collect();
        let (mut want, mut want_d) = (vec![0.0; 96], vec![0.0; wide.len()]);
        objective.evaluate_batch_f64(&RankedBatch::uniform(&wide, 16), &mut want, &mut want_d).unwrap();
        let (loss, d_gamma) = evaluate(&objective, &RankedBatch::uniform(&lists.gamma, 16));
        assert!(want.iter().any(|want| want.is_nan()) && want.iter().any(|want| want.is_finite()));
        for list in 0..96 {
            let (got, want) = (f64::from(loss[list]), want[list]);
            let close = got == want || (got - want).abs() <= TOLERANCE * want.abs() || got.is_nan() && want.is_nan();
            assert!(close, "{objective:?} of list {list}: {got} against {want}");
            for item in 16 * list..16 * (list + 1) {
                let (got, want) = (f64::from(d_gamma[item]), want_d[item]);
                assert!((got - want).abs() <= TOLERANCE, "{objective:?} of list {list}: {got} against {want}");
            }
        }
    }
}

#[test]
fn long_lists_agree_with_the_losses_in_f64() {
    for length in [64, 121, 200, 337] {
        let lists = Ragged::new([length; 3].into_iter(), 4.0, 0, 5);
        for objective in unshuffled().filter(|objective| objective.ties == Ties::Skip) {
            // Discounts of neighbours far down the list differ by less than single precision resolves.
            if objective.loss != LossType::LipoLambda {
                check(&objective, &lists, true);
            }
        }
    }
}

#[test]
fn lists_of_one_length_need_no_offsets() {
    for length in [2, 3, 4, 8, 16, 17] {
        // Not a multiple of any number of lanes, and more than one task.
        let lists = Ragged::new((0..(1 << 17) / length + 5).map(|_| length), 3.0, 0, 9);
        for objective in unshuffled().filter(|o| o.ties == Ties::Skip && o.labels == LipoLabels::Rank) {
            let uniform = evaluate(&objective, &RankedBatch::uniform(&lists.gamma, length));
            assert_eq!(uniform, evaluate(&objective, &lists.batch(false)), "{objective:?}");
        }
    }
    let lists = Ragged::new((0..3001).map(|_| 16), 3.0, 0, 10);
    unshuffled().filter(|o| o.labels == LipoLabels::Rank).for_each(|objective| check(&objective, &lists, false));
}

#[test]
fn a_list_gives_the_same_bits_alone_and_in_any_batch() {
    let lists = Ragged::new((0..150).map(|i| i * 5 % 19), 3.0, 3, 2);
    for objective in unshuffled() {
        let (loss, d_gamma) = evaluate(&objective, &lists.batch(true));
        for (list, loss) in loss.into_iter().enumerate() {
            let items = lists.items(list);
            let offsets = [0, items.len() as u32];
            let alone =
                RankedBatch::ragged(&lists.gamma[items.clone()], &offsets).with_rewards(&lists.rewards[items.clone()]);
            assert_eq!(evaluate(&objective, &alone), (vec![loss], d_gamma[items].to_vec()), "{objective:?}");
        }
    }
}

#[test]
fn random_ties_are_those_of_the_twin() {
    let lists = Ragged::new((0..60).map(|i| i % 9), 3.0, 2, 4);
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let (gamma, rewards) = (wide(&lists.gamma), wide(&lists.rewards));
    let twin = RankedBatch::ragged(&gamma, &lists.offsets).with_rewards(&rewards);
    let mut differs = false;
    for loss in [LossType::Lambdarank, LossType::Listmle] {
        let objective = Objective { loss, ties: Ties::Random, seed: 3, ..Objective::default() };
        let (mut want, mut want_d) = (vec![0.0; 60], vec![0.0; gamma.len()]);
        objective.evaluate_batch_f64(&twin, &mut want, &mut want_d).unwrap();
        let (got, d_gamma) = evaluate(&objective, &lists.batch(true));
        for (got, want) in got.iter().zip(&want).chain(d_gamma.iter().zip(&want_d)) {
            assert!((f64::from(*got) - want).abs() <= 1e-5 * want.abs() + 1e-6, "{got} against {want}");
        }
        differs |= got != evaluate(&Objective { seed: 4, ..objective }, &lists.batch(true)).0;
    }
    assert!(differs, "the seed has no effect");
}

#[test]
fn a_gamma_that_is_no_number_spoils_its_own_list_only() {
    for objective in unshuffled() {
        let fine = Ragged::new([5; 20].into_iter(), 3.0, 0, 3);
        let (want, want_d) = evaluate(&objective, &fine.batch(true));
        for (item, bad) in [(0, f32::NAN), (2, INF), (4, f32::NAN)] {
            let mut lists = Ragged::new([5; 20].into_iter(), 3.0, 0, 3);
            lists.gamma[3 * 5 + item] = bad;
            let (loss, d_gamma) = evaluate(&objective, &lists.batch(true));
            assert!(loss[3].is_nan(), "{objective:?}: {}", loss[3]);
            assert_eq!(d_gamma[15..20], [0.0; 5]);
            assert_eq!((&loss[..3], &loss[4..]), (&want[..3], &want[4..]));
            assert_eq!((&d_gamma[..15], &d_gamma[20..]), (&want_d[..15], &want_d[20..]));
        }
    }
}

#[test]
fn a_gamma_of_minus_infinity_or_of_any_size_is_as_in_f64() {
    for objective in unshuffled() {
        for gamma in [
            [1.0, 0.5, -INF],
            [-INF, 0.5, 1.0],
            [1.0, -INF, 0.0],
            [1e30, 0.0, -1e30],
            [-1e30, 0.0, 1e30],
            [3e38, -3e38, 0.0],
            [-3e38, 3e38, 0.0],
            [1e4, 1e4 + 1.0, 1e4 - 2.0],
        ] {
            for rewards in [[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]] {
                let wide = |x: &[f32; 3]| x.map(f64::from);
                let mut want_d = [0.0; 3];
                let want = objective.evaluate(&wide(&gamma), &wide(&rewards), None, &mut want_d);
                let batch = RankedBatch::uniform(&gamma, 3).with_rewards(&rewards);
                let (loss, d_gamma) = evaluate(&objective, &batch);
                let at = format!("{objective:?} on {gamma:?}, {rewards:?}");
                match want {
                    Err(_) => assert!(loss[0].is_nan() && d_gamma == [0.0; 3], "{at}: {loss:?} {d_gamma:?}"),
                    Ok(want) => {
                        let want = want.unwrap_or(0.0) as f32;
                        let close = loss[0] == want || (loss[0] - want).abs() <= 1e-5 * want.abs() + 1e-36;
                        assert!(close, "{at}: {} against {want}", loss[0]);
                        for (d, want) in d_gamma.iter().zip(want_d) {
                            assert!(
                                (f64::from(*d) - want).abs() <= 1e-5 * want.abs() + 1e-6,
                                "{at}: {d} against {want}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn lengths_offsets_and_rewards_must_fit() {
    let objective = Objective::default();
    let gamma = [0.0f32; 6];
    let error = |batch: RankedBatch<'_, f32>, lists: usize, items: usize| {
        let (mut loss, mut d_gamma) = (vec![7.0; lists], vec![7.0; items]);
        let error = objective.evaluate_batch(&batch, &mut loss, &mut d_gamma).unwrap_err();
        assert!(loss.iter().chain(&d_gamma).all(|&x| x == 7.0), "{error}");
        error
    };
    for length in [0, 4] {
        assert!(matches!(error(RankedBatch::uniform(&gamma, length), 1, 6), ObjectiveError::Setting { .. }));
    }
    assert!(matches!(error(RankedBatch::uniform(&gamma, 3), 3, 6), ObjectiveError::Length { what: "loss", .. }));
    assert!(matches!(error(RankedBatch::uniform(&gamma, 3), 2, 5), ObjectiveError::Length { what: "d_gamma", .. }));
    for (offsets, list) in [(&[][..], 0), (&[0, 4, 3, 6], 1), (&[1, 6], 0), (&[0, 3, 5], 1)] {
        let offending = error(RankedBatch::ragged(&gamma, offsets), offsets.len().saturating_sub(1), 6);
        assert_eq!(offending, ObjectiveError::Offsets { list, items: 6 });
    }
    let uniform = RankedBatch::uniform(&gamma, 3);
    let rising = [2.0, 1.0, 0.0, 5.0, 4.0, 4.5];
    assert_eq!(error(uniform.with_rewards(&rising), 2, 6), ObjectiveError::RankOrder { index: 5 });
    let infinite = [2.0, 1.0, -INF, 5.0, 4.0, 3.0];
    assert!(matches!(error(uniform.with_rewards(&infinite), 2, 6), ObjectiveError::Reward { index: 2, .. }));
    assert!(matches!(error(uniform.with_rewards(&rising[..5]), 2, 6), ObjectiveError::Length { what: "rewards", .. }));
    let by_reward = Objective { loss: LossType::LipoLambda, labels: LipoLabels::Reward, ..objective };
    let missing = by_reward.evaluate_batch(&uniform, &mut [0.0; 2], &mut [0.0; 6]);
    assert!(matches!(missing, Err(ObjectiveError::Length { what: "rewards", .. })));
    // No lists at all are a batch.
    assert_eq!(objective.evaluate_batch(&RankedBatch::uniform(&[], 3), &mut [], &mut []), Ok(()));
    assert_eq!(objective.evaluate_batch(&RankedBatch::ragged(&[], &[0]), &mut [], &mut []), Ok(()));
}

/// Value and gradient of a golden case, its list put in rank order without the masked items.
fn check_golden(case: &Case<'_>, objective: Objective, key: &str, checked: &Cell<usize>) {
    let (logp, reference, rewards) = (case.inputs("logp"), case.inputs("ref"), case.inputs(key));
    let mask = case.json["inputs"].get("mask").filter(|mask| !mask.is_null()).map(flags);
    let beta = case.beta();
    let mut gamma = vec![0.0; logp.len()];
    gamma_of(beta, &logp, &reference, &mut gamma).unwrap();
    let ranking = objective.rank(&rewards, mask.as_deref()).unwrap();
    let order = ranking.order();
    let narrow = |x: &[f64]| order.iter().map(|&slot| x[slot] as f32).collect::<Vec<f32>>();
    let (ranked, ranked_rewards) = (narrow(&gamma), narrow(&rewards));
    // Rounding must not tie what differs, and LiPO ranks equal γ by slot, which here is the rank.
    let tied = |x: &[f32]| (0..x.len()).any(|i| x[..i].contains(&x[i]));
    let rounded = ranked_rewards
        .windows(2)
        .zip(order.windows(2))
        .any(|(narrow, slots)| (narrow[0] == narrow[1]) != (rewards[slots[0]] == rewards[slots[1]]));
    if order.is_empty() || rounded || (objective.loss == LossType::LipoLambda && tied(&ranked)) {
        return;
    }
    checked.set(checked.get() + 1);
    let (loss, d_gamma) =
        evaluate(&objective, &RankedBatch::uniform(&ranked, order.len()).with_rewards(&ranked_rewards));
    let want = number(&case.json["value"]);
    let mut want_d = numbers(&case.json["grad"]["logp"]);
    if want.is_nan() {
        assert!(loss[0].is_nan(), "{}: {}", case.at, loss[0]);
        return;
    }
    want_d.iter_mut().for_each(|d| *d /= beta);
    let error = (f64::from(loss[0]) - want).abs();
    let close = f64::from(loss[0]) == want || error <= TOLERANCE * want + TINY;
    assert!(close, "{}: {} against {want}", case.at, loss[0]);
    let largest = want_d.iter().fold(0.0, |largest: f64, d| largest.max(d.abs()));
    for (&slot, &d) in order.iter().zip(&d_gamma) {
        let error = (f64::from(d) - want_d[slot]).abs();
        assert!(error <= TOLERANCE * largest + TINY, "{} slot {slot}: {d} against {}", case.at, want_d[slot]);
    }
}

#[test]
fn golden_losses_by_the_batch() {
    for (family, loss, key) in [
        ("contrastive", LossType::Contrastive, "rewards"),
        ("lambdarank", LossType::Lambdarank, "rewards"),
        ("listmle", LossType::Listmle, "rewards"),
        ("lipo_lambda", LossType::LipoLambda, "labels"),
    ] {
        let checked = Cell::new(0);
        each_case(family, |case| {
            let skip = loss == LossType::LipoLambda || case.json["params"]["skip_ties"].as_bool() == Some(true);
            let log_base: LogBase = match loss {
                LossType::LipoLambda => case.param("log_base").as_str().expect("a name").parse().unwrap(),
                _ => LogBase::E,
            };
            let ties = if skip { Ties::Skip } else { Ties::Stable };
            let objective = Objective { loss, ties, labels: LipoLabels::Reward, log_base, seed: 0 };
            check_golden(case, objective, key, &checked);
        });
        assert!(checked.get() >= 3, "{family}: {} cases fit", checked.get());
    }
}
