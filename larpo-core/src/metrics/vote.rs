//! Majority voting and best-of-N: what a group of samples gives when something picks one of them.

use super::{MetricError, check_len};
use std::cmp::Ordering;

/// What a vote over final answers gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vote {
    /// Index of the first answer that equals the winner's; `None` where no answer could be read.
    pub winner: Option<usize>,
    /// 1 where the winner is the gold answer, else 0. Ties go to the answer that appeared first.
    pub correct: f64,
    /// `1/t` where the gold answer is among the `t` leaders, else 0: the expectation of `correct` under a random choice
    /// between leaders, which does not depend on the order of the answers.
    pub fractional: f64,
}

/// Answers that are equal, in the order of their first appearance: (index of the first, votes).
fn groups<A: PartialEq>(answers: &[Option<A>]) -> Vec<(usize, usize)> {
    let mut groups: Vec<(usize, usize)> = Vec::new();
    for (index, answer) in answers.iter().enumerate().filter(|(_, answer)| answer.is_some()) {
        match groups.iter_mut().find(|(first, _)| answers[*first] == *answer) {
            Some((_, votes)) => *votes += 1,
            None => groups.push((index, 1)),
        }
    }
    groups
}

/// Majority vote over `answers (n)`, `None` being an answer that could not be read, which does not vote. Self-consistency
/// of Wang et al. 2022, arXiv 2203.11171.
///
/// Answers are compared as they are: normalise them first (numbers, white space).
pub fn maj_at_n<A: PartialEq>(answers: &[Option<A>], gold: &A) -> Vote {
    let groups = groups(answers);
    let most = groups.iter().map(|&(_, votes)| votes).max().unwrap_or(0);
    let is_gold = |index: usize| answers[index].as_ref() == Some(gold);
    let leaders: Vec<usize> = groups.iter().filter(|(_, votes)| *votes == most).map(|&(first, _)| first).collect();
    let winner = leaders.first().copied();
    let correct = f64::from(u8::from(winner.is_some_and(is_gold)));
    let fractional = if leaders.iter().any(|&leader| is_gold(leader)) { 1.0 / leaders.len() as f64 } else { 0.0 };
    Vote { winner, correct, fractional }
}

/// The expectation of [`Vote::fractional`] for `n` answers drawn without replacement from `answers (N)`, `N ≥ n`: what a
/// vote among `n` samples gives, with the variance of all `N`.
///
/// With `g` of the `n` votes for the gold answer, no other answer may have more; `t` of them with `g` as well leave it
/// `1/(t + 1)`. The counts of the answers are multivariate hypergeometric and are summed group by group.
/// O(n³ · answers · n) at worst.
///
/// # Errors
/// `n` outside `1..=N`.
pub fn expected_maj_at_n<A: PartialEq>(answers: &[Option<A>], gold: &A, n: usize) -> Result<f64, MetricError> {
    let total = answers.len();
    check_draws(total, n)?;
    let groups = groups(answers);
    let gold_votes = groups.iter().find(|(first, _)| answers[*first].as_ref() == Some(gold)).map_or(0, |g| g.1);
    let others: Vec<usize> =
        groups.iter().filter(|(first, _)| answers[*first].as_ref() != Some(gold)).map(|g| g.1).collect();
    let ln_factorial = ln_factorials(total);
    let ln_choose = |n: usize, k: usize| ln_factorial[n] - ln_factorial[k] - ln_factorial[n - k];
    // P(j of a group of `size` are drawn), where `left` items of which `draws` are drawn include the group.
    let drawn = |left: usize, size: usize, draws: usize, j: usize| {
        (ln_choose(size, j) + ln_choose(left - size, draws - j) - ln_choose(left, draws)).exp()
    };
    let mut expectation = 0.0;
    for g in 1..=gold_votes.min(n) {
        if n - g > total - gold_votes {
            continue;
        }
        // ways[draws left][answers tied with gold]: probability of the groups so far.
        let mut ways = vec![vec![0.0; others.len() + 1]; n + 1];
        ways[n - g][0] = drawn(total, gold_votes, n, g);
        let mut left = total - gold_votes;
        for (seen, &size) in others.iter().enumerate() {
            let mut next = vec![vec![0.0; others.len() + 1]; n + 1];
            for draws in 0..=(n - g).min(left) {
                let fewest = (draws + size).saturating_sub(left);
                for j in fewest..=size.min(draws).min(g) {
                    let probability = drawn(left, size, draws, j);
                    for ties in 0..=seen {
                        next[draws - j][ties + usize::from(j == g)] += ways[draws][ties] * probability;
                    }
                }
            }
            left -= size;
            ways = next;
        }
        // What is left is drawn from the answers that do not vote, in one way.
        for row in ways.iter().take(left + 1) {
            expectation += row.iter().enumerate().map(|(ties, p)| p / (ties + 1) as f64).sum::<f64>();
        }
    }
    Ok(expectation)
}

/// `ln i!` for `i` from 0 to `n`.
pub(super) fn ln_factorials(n: usize) -> Vec<f64> {
    let mut table = vec![0.0; n + 1];
    for i in 1..=n {
        table[i] = table[i - 1] + (i as f64).ln();
    }
    table
}

fn check_draws(total: usize, n: usize) -> Result<(), MetricError> {
    if (1..=total).contains(&n) { Ok(()) } else { Err(MetricError::Draws { total, n }) }
}

/// What the best of a group of samples gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BestOfN {
    /// Index of the highest reward of all samples, the first of several; `None` where all rewards are NaN.
    pub selected: Option<usize>,
    /// Its gold score.
    pub selected_gold: Option<f64>,
    /// Expected highest reward of `n` samples.
    pub expected_max: f64,
    /// Expected gold score of the sample with the highest reward of `n`, ties broken at random.
    pub expected_gold: f64,
}

/// Best of `n` out of `N ≥ n` samples, averaged over all subsets of `n` samples: with rewards sorted ascending,
/// `E[max] = Σ_i C(i-1, n-1)/C(N, n) · r_(i)`, the weights by the recurrence `w_N = n/N`, `w_{i-1} = w_i (i-n)/(i-1)`. The
/// gold scores get the same weights; samples with equal rewards share theirs.
///
/// Shapes: `rewards (N)`, `gold (N)`. NaN rewards lose against every other. The estimator is that of WebGPT's appendix
/// (Nakano et al. 2021, arXiv 2112.09332).
///
/// # Errors
/// Lengths that disagree, `n` outside `1..=N`.
pub fn best_of_n(rewards: &[f64], gold: &[f64], n: usize) -> Result<BestOfN, MetricError> {
    check_len("gold", gold.len(), rewards.len())?;
    let total = rewards.len();
    check_draws(total, n)?;
    let compare = |a: f64, b: f64| match (a.is_nan(), b.is_nan()) {
        (false, false) => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
        (a, b) => b.cmp(&a),
    };
    let mut order: Vec<usize> = (0..total).collect();
    order.sort_by(|&a, &b| compare(rewards[a], rewards[b]));
    // weights[i] belongs to the sample at rank i + 1; the first n - 1 are never the best of n.
    let mut weights = vec![0.0; total];
    let mut weight = n as f64 / total as f64;
    for rank in (n..=total).rev() {
        weights[rank - 1] = weight;
        if rank > 1 {
            weight *= (rank - n) as f64 / (rank - 1) as f64;
        }
    }
    let (mut expected_max, mut expected_gold) = (0.0, 0.0);
    let mut start = 0;
    while start < total {
        let reward = rewards[order[start]];
        let tied = order[start..].iter().take_while(|&&i| compare(rewards[i], reward) == Ordering::Equal).count();
        let range = start..start + tied;
        let weight: f64 = weights[range.clone()].iter().sum();
        if weight > 0.0 {
            expected_max += weight * reward;
            expected_gold += weight * order[range].iter().map(|&i| gold[i]).sum::<f64>() / tied as f64;
        }
        start += tied;
    }
    let highest = order.last().map(|&i| rewards[i]).filter(|reward| !reward.is_nan());
    let selected = highest.and_then(|highest| rewards.iter().position(|&reward| reward == highest));
    Ok(BestOfN { selected, selected_gold: selected.map(|i| gold[i]), expected_max, expected_gold })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{CounterRng, Purpose};
    use ndarray_rand::rand::RngCore;

    /// Every subset of `n` of `total` indices.
    fn subsets(total: usize, n: usize) -> impl Iterator<Item = Vec<usize>> {
        let masks = (0..1u32 << total).filter(move |mask| mask.count_ones() as usize == n);
        masks.map(move |mask| (0..total).filter(|i| mask >> i & 1 == 1).collect())
    }

    #[test]
    fn the_expected_vote_is_the_mean_over_all_subsets() {
        let mut random = CounterRng::new(5, Purpose::Bench).sequence(0);
        for case in 0..60 {
            let total = 1 + case % 9;
            // 0 is an unreadable answer, 1 is gold.
            let answers: Vec<Option<u32>> =
                (0..total).map(|_| Some(random.next_u32() % 5).filter(|&a| a > 0)).collect();
            for n in 1..=total {
                let votes: Vec<f64> = subsets(total, n)
                    .map(|set| maj_at_n(&set.iter().map(|&i| answers[i]).collect::<Vec<_>>(), &1).fractional)
                    .collect();
                let mean = votes.iter().sum::<f64>() / votes.len() as f64;
                let got = expected_maj_at_n(&answers, &1, n).unwrap();
                assert!((got - mean).abs() < 1e-12, "{answers:?} at {n}: {got} is not {mean}");
            }
        }
        assert!(expected_maj_at_n(&[Some(1)], &1, 2).is_err() && expected_maj_at_n(&[Some(1)], &1, 0).is_err());
    }

    #[test]
    fn many_samples_do_not_overflow() {
        // 600 of 2,000 are right and the wrong ones scatter: a vote among 500 is nearly certain.
        let answers: Vec<Option<u32>> = (0..2000).map(|i| Some(if i < 600 { 0 } else { 1 + i % 20 })).collect();
        let got = expected_maj_at_n(&answers, &0, 500).unwrap();
        assert!((got - 1.0).abs() < 1e-9, "{got}");
    }

    #[test]
    fn best_of_n_is_the_mean_over_all_subsets() {
        let mut random = CounterRng::new(6, Purpose::Bench).sequence(0);
        for case in 0..40 {
            let total = 1 + case % 8;
            let rewards: Vec<f64> = (0..total).map(|_| f64::from(random.next_u32() % 4)).collect();
            let gold: Vec<f64> = (0..total).map(|_| f64::from(random.next_u32() % 3)).collect();
            for n in 1..=total {
                let (mut max, mut right, mut count) = (0.0, 0.0, 0.0);
                for set in subsets(total, n) {
                    let best = set.iter().map(|&i| rewards[i]).fold(f64::NEG_INFINITY, f64::max);
                    let tied: Vec<usize> = set.into_iter().filter(|&i| rewards[i] == best).collect();
                    max += best;
                    right += tied.iter().map(|&i| gold[i]).sum::<f64>() / tied.len() as f64;
                    count += 1.0;
                }
                let got = best_of_n(&rewards, &gold, n).unwrap();
                assert!((got.expected_max - max / count).abs() < 1e-12, "{rewards:?} at {n}");
                assert!((got.expected_gold - right / count).abs() < 1e-12, "{rewards:?} {gold:?} at {n}");
            }
        }
    }

    #[test]
    fn a_nan_never_wins() {
        let best = best_of_n(&[f64::NAN, f64::NEG_INFINITY, -1.0], &[0.0, 1.0, 2.0], 2).unwrap();
        assert_eq!((best.selected, best.selected_gold), (Some(2), Some(2.0)));
        assert_eq!(best_of_n(&[f64::NAN], &[1.0], 1).unwrap().selected, None);
        assert!(best_of_n(&[1.0], &[1.0], 2).is_err() && best_of_n(&[1.0], &[], 1).is_err());
    }
}
