//! Scores of a list from the pairwise preferences among its items.

use super::ObjectiveError;
use super::error::check_len;
use super::numerics::{sigmoid, softplus};
use super::options::RankBy;

/// Bradley–Terry scores of preferences of exactly 0 or 1 would be infinite: that is as certain as they are taken to be.
const DOUBT: f64 = 1e-9;
/// Newton steps after which rounding is all that is left.
const STEPS: usize = 200;

/// One score for each of `items` items, higher is better, from `preferences (items, items)`: entry `(i, j)` is the
/// probability in [0, 1] that item `i` is better than item `j`, so that `(j, i)` is one minus that. The diagonal is not read.
///
/// # Errors
/// A wrong number of entries, one outside [0, 1], two of a pair that do not add up to 1.
pub fn preference_scores(preferences: &[f64], items: usize, by: RankBy) -> Result<Vec<f64>, ObjectiveError> {
    check_len("preferences", preferences.len(), items * items)?;
    let p = |i: usize, j: usize| preferences[i * items + j];
    for (index, other) in pairs(items) {
        let (value, opposite) = (p(index, other), p(other, index));
        let fits = (0.0..=1.0).contains(&value) && (value + opposite - 1.0).abs() <= 1e-9;
        if !fits {
            return Err(ObjectiveError::Preference { index, other, value, opposite });
        }
    }
    let others = |i: usize| (0..items).filter(move |&j| j != i).map(move |j| p(i, j));
    let each = |score: &dyn Fn(usize) -> f64| (0..items).map(score).collect();
    Ok(match by {
        RankBy::WinRate if items == 1 => vec![0.5],
        RankBy::WinRate => each(&|i| others(i).sum::<f64>() / (items - 1) as f64),
        RankBy::LipoLabel => each(&|i| (0.5 + others(i).sum::<f64>()) / items as f64),
        RankBy::Wins => each(&|i| others(i).map(won).sum()),
        RankBy::Bt => bradley_terry(items, &p),
    })
}

fn won(p: f64) -> f64 {
    match p {
        p if p > 0.5 => 1.0,
        0.5 => 0.5,
        _ => 0.0,
    }
}

fn pairs(items: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..items).flat_map(move |i| (i + 1..items).map(move |j| (i, j)))
}

/// The scores `t`, of sum 0, that maximise `Σ P[i][j] log σ(t_i - t_j)` (Bradley and Terry 1952), by Newton's method with
/// halved steps. The function is concave, and strictly so once one score is held.
fn bradley_terry(items: usize, p: &impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let p = |i: usize, j: usize| p(i, j).clamp(DOUBT, 1.0 - DOUBT);
    let loss = |t: &[f64]| -> f64 {
        pairs(items).map(|(i, j)| p(i, j) * softplus(t[j] - t[i]) + (1.0 - p(i, j)) * softplus(t[i] - t[j])).sum()
    };
    let mut t = vec![0.0; items];
    let mut value = loss(&t);
    // The last score stays 0.
    let free = items.saturating_sub(1);
    for _ in 0..STEPS {
        let (mut slope, mut curvature) = (vec![0.0; items], vec![0.0; items * items]);
        for (i, j) in pairs(items) {
            let (d, w) = (sigmoid(t[i] - t[j]) - p(i, j), sigmoid(t[i] - t[j]) * sigmoid(t[j] - t[i]));
            slope[i] += d;
            slope[j] -= d;
            for (row, column, sign) in [(i, i, 1.0), (j, j, 1.0), (i, j, -1.0), (j, i, -1.0)] {
                curvature[row * items + column] += sign * w;
            }
        }
        let step = solve(&mut curvature, slope, items, free);
        let size = step.iter().fold(0.0, |most: f64, d| most.max(d.abs()));
        // At the optimum the loss moves by less than its own rounding.
        let slack = 1e-13 * value.abs();
        let moved = (0..60).find_map(|halved| {
            let share = 0.5f64.powi(halved);
            let next: Vec<f64> = t.iter().zip(&step).map(|(t, d)| t - share * d).collect();
            let at = loss(&next);
            (at <= value + slack).then_some((next, at))
        });
        let Some((next, at)) = moved else { break };
        (t, value) = (next, at);
        if size <= 1e-13 {
            break;
        }
    }
    let mean = t.iter().sum::<f64>() / items.max(1) as f64;
    t.iter().map(|t| t - mean).collect()
}

/// Solves the first `free` rows and columns of the symmetric, positive definite `a (n, n)`; the other unknowns are 0.
fn solve(a: &mut [f64], mut b: Vec<f64>, n: usize, free: usize) -> Vec<f64> {
    for k in 0..free {
        for i in k + 1..free {
            let factor = a[i * n + k] / a[k * n + k];
            for j in k..free {
                a[i * n + j] -= factor * a[k * n + j];
            }
            b[i] -= factor * b[k];
        }
    }
    b[free..].fill(0.0);
    for k in (0..free).rev() {
        let rest: f64 = (k + 1..free).map(|j| a[k * n + j] * b[j]).sum();
        b[k] = (b[k] - rest) / a[k * n + k];
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(p: &[f64], by: RankBy) -> Vec<f64> {
        let items = (p.len() as f64).sqrt() as usize;
        preference_scores(p, items, by).unwrap()
    }

    #[test]
    fn certain_preferences_have_finite_scores_in_their_order() {
        // 0 beats 1 beats 2 beats 0 with certainty, and all beat 3.
        let p = [0.5, 1.0, 0.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0, 0.0, 0.5, 1.0, 0.0, 0.0, 0.0, 0.5];
        let t = scores(&p, RankBy::Bt);
        assert!(t.iter().all(|t| t.is_finite()) && t[3] < t[0] - 5.0, "{t:?}");
        assert!((t[0] - t[1]).abs() < 1e-6 && (t[1] - t[2]).abs() < 1e-6, "a cycle is a tie: {t:?}");
        let line = [0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 0.0, 0.0, 0.5];
        let t = scores(&line, RankBy::Bt);
        assert!(t[0] > t[1] && t[1] > t[2] && t.iter().sum::<f64>().abs() < 1e-9, "{t:?}");
    }

    #[test]
    fn one_item_and_none() {
        for (by, one) in [(RankBy::WinRate, 0.5), (RankBy::LipoLabel, 0.5), (RankBy::Wins, 0.0), (RankBy::Bt, 0.0)] {
            assert_eq!((scores(&[0.5], by), scores(&[], by)), (vec![one], vec![]));
        }
    }

    #[test]
    fn what_is_no_preference_is_refused_by_pair() {
        for bad in [[0.5, 1.2, -0.2, 0.5], [0.5, f64::NAN, 0.5, 0.5], [0.5, 0.7, 0.7, 0.5]] {
            let error = preference_scores(&bad, 2, RankBy::Bt).unwrap_err().to_string();
            assert!(error.contains("items 0 and 1"), "{error}");
        }
        assert!(preference_scores(&[0.5; 3], 2, RankBy::WinRate).is_err());
    }
}
