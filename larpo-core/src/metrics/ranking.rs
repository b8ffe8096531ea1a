//! How well scores reproduce an order.

use super::{MetricError, check_finite, check_len};
use std::cmp::Ordering;

/// Gain of a relevance in DCG.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gain {
    /// `2^relevance - 1`.
    Exponential,
    /// The relevance itself.
    Linear,
}

/// Normalised discounted cumulative gain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ndcg {
    /// `dcg / idcg`; 0 where the ideal is 0 (no relevant item, an empty list).
    pub ndcg: f64,
    /// DCG in the order of the scores.
    pub dcg: f64,
    /// DCG in the order of the relevances.
    pub idcg: f64,
}

/// NDCG@k: `DCG = Σ_{i=1}^{min(k, m)} gain(rel_i) / log2(i + 1)` in the order of the scores (descending, ties by
/// index), over the same sum in the order of the relevances. `k = None` takes the whole list.
///
/// Shapes: `scores (m)`, `relevance (m)`. Source: Järvelin and Kekäläinen 2002; the exponential gain is that of
/// Burges et al. 2005.
///
/// # Errors
/// Lengths that disagree, a number that is not finite.
pub fn ndcg(scores: &[f64], relevance: &[f64], k: Option<usize>, gain: Gain) -> Result<Ndcg, MetricError> {
    check_len("relevance", relevance.len(), scores.len())?;
    check_finite("scores", scores)?;
    check_finite("relevance", relevance)?;
    let dcg_by = |key: &[f64]| -> f64 {
        let order = descending(key);
        let cut = k.unwrap_or(order.len());
        let discounted = order.iter().take(cut).enumerate().map(|(position, &item)| {
            let gain = match gain {
                Gain::Exponential => relevance[item].exp2() - 1.0,
                Gain::Linear => relevance[item],
            };
            gain / (position as f64 + 2.0).log2()
        });
        discounted.sum()
    };
    let (dcg, idcg) = (dcg_by(scores), dcg_by(relevance));
    let ndcg = if idcg == 0.0 { 0.0 } else { dcg / idcg };
    Ok(Ndcg { ndcg, dcg, idcg })
}

/// Indices by value descending, ties by index.
fn descending(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    // Finite, hence comparable; not `total_cmp`, which tells 0.0 from -0.0.
    order.sort_by(|&a, &b| values[b].partial_cmp(&values[a]).unwrap_or(Ordering::Equal));
    order
}

/// `1/rank` of the first item with relevance above 0 in the order of the scores (descending, ties by index); 0 where there
/// is none among the first `k`. `k = None` looks at the whole list.
///
/// Shapes: `scores (m)`, `relevance (m)`. Source: Voorhees, TREC-8 question answering track, 1999.
///
/// # Errors
/// Lengths that disagree, a number that is not finite.
pub fn reciprocal_rank(scores: &[f64], relevance: &[f64], k: Option<usize>) -> Result<f64, MetricError> {
    check_len("relevance", relevance.len(), scores.len())?;
    check_finite("scores", scores)?;
    check_finite("relevance", relevance)?;
    let order = descending(scores);
    let first = order.iter().take(k.unwrap_or(order.len())).position(|&item| relevance[item] > 0.0);
    Ok(first.map_or(0.0, |position| 1.0 / (position as f64 + 1.0)))
}

/// Mean of [`reciprocal_rank`] over queries of `(scores, relevance)`; `None` for no query.
///
/// # Errors
/// As [`reciprocal_rank`] for any of the queries.
pub fn mean_reciprocal_rank(queries: &[(&[f64], &[f64])], k: Option<usize>) -> Result<Option<f64>, MetricError> {
    let mut sum = 0.0;
    for (scores, relevance) in queries {
        sum += reciprocal_rank(scores, relevance, k)?;
    }
    Ok((!queries.is_empty()).then(|| sum / queries.len() as f64))
}

/// Kendall's τ_b and the counts it is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KendallTau {
    /// `(C - D) / √((n0 - t_a)(n0 - t_b))`; `None` for fewer than two items or a constant variable.
    pub tau: Option<f64>,
    /// Pairs ordered alike.
    pub concordant: usize,
    /// Pairs ordered oppositely.
    pub discordant: usize,
    /// Pairs tied in `a`, those tied in both included.
    pub ties_a: usize,
    /// Pairs tied in `b`, those tied in both included.
    pub ties_b: usize,
}

/// Rank correlation with ties: `(C - D) / √((n0 - t_a)(n0 - t_b))`, `n0 = n(n-1)/2`. O(n²).
///
/// Shapes: `a (n)`, `b (n)`. Source: Kendall 1945.
///
/// # Errors
/// Lengths that disagree, a number that is not finite.
pub fn kendall_tau_b(a: &[f64], b: &[f64]) -> Result<KendallTau, MetricError> {
    check_len("b", b.len(), a.len())?;
    check_finite("a", a)?;
    check_finite("b", b)?;
    let mut result = KendallTau { tau: None, concordant: 0, discordant: 0, ties_a: 0, ties_b: 0 };
    for i in 0..a.len() {
        for j in i + 1..a.len() {
            let (tied_a, tied_b) = (a[i] == a[j], b[i] == b[j]);
            result.ties_a += usize::from(tied_a);
            result.ties_b += usize::from(tied_b);
            if !tied_a && !tied_b {
                if (a[i] > a[j]) == (b[i] > b[j]) {
                    result.concordant += 1;
                } else {
                    result.discordant += 1;
                }
            }
        }
    }
    let pairs = a.len() * a.len().saturating_sub(1) / 2;
    let (untied_a, untied_b) = ((pairs - result.ties_a) as f64, (pairs - result.ties_b) as f64);
    if untied_a > 0.0 && untied_b > 0.0 {
        let difference = result.concordant as f64 - result.discordant as f64;
        result.tau = Some(difference / (untied_a * untied_b).sqrt());
    }
    Ok(result)
}

/// Share of the pairs with different labels that the scores order as the labels do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairAccuracy {
    /// A tie of scores counts as wrong; `None` without a pair.
    pub strict: Option<f64>,
    /// A tie of scores counts one half; `None` without a pair.
    pub half: Option<f64>,
    /// Number of pairs with different labels.
    pub pairs: usize,
}

/// Over pairs with `label_i > label_j`, the fraction with `score_i > score_j`. O(n²).
///
/// Shapes: `scores (n)`, `labels (n)`. Infinite scores are ordered like any others.
///
/// # Errors
/// Lengths that disagree, a label that is not finite, a score that is NaN.
pub fn pair_accuracy(scores: &[f64], labels: &[f64]) -> Result<PairAccuracy, MetricError> {
    check_len("labels", labels.len(), scores.len())?;
    check_finite("labels", labels)?;
    if let Some(index) = scores.iter().position(|s| s.is_nan()) {
        return Err(MetricError::Value { what: "scores", index, value: scores[index] });
    }
    let (mut pairs, mut right, mut tied) = (0, 0, 0);
    for i in 0..scores.len() {
        for j in 0..scores.len() {
            if labels[i] > labels[j] {
                pairs += 1;
                right += usize::from(scores[i] > scores[j]);
                tied += usize::from(scores[i] == scores[j]);
            }
        }
    }
    let share = |count: f64| (pairs > 0).then(|| count / pairs as f64);
    Ok(PairAccuracy { strict: share(right as f64), half: share(right as f64 + 0.5 * tied as f64), pairs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ndcg_of_the_worked_example_of_wikipedia() {
        // Relevances 3, 2, 3, 0, 1, 2 in this order: DCG 6.861, ideal over the six documents 7.141, NDCG 0.961.
        let scores = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0];
        let result = ndcg(&scores, &[3.0, 2.0, 3.0, 0.0, 1.0, 2.0], None, Gain::Linear).unwrap();
        assert!((result.dcg - 6.861).abs() < 5e-4 && (result.idcg - 7.141).abs() < 5e-4, "{result:?}");
        assert!((result.ndcg - 0.961).abs() < 5e-4, "{result:?}");
    }

    #[test]
    fn bad_numbers_are_named() {
        let error = ndcg(&[0.0, f64::NAN], &[1.0, 0.0], None, Gain::Linear).unwrap_err();
        assert!(error.to_string().contains("entry 1 of scores"), "{error}");
        assert!(kendall_tau_b(&[0.0], &[]).is_err());
        assert!(pair_accuracy(&[f64::NAN], &[0.0]).is_err());
        let infinite = pair_accuracy(&[0.0, f64::NEG_INFINITY], &[1.0, 0.0]).unwrap();
        assert_eq!(infinite.strict, Some(1.0));
    }

    #[test]
    fn positive_and_negative_zero_are_the_same_score() {
        let result = ndcg(&[-0.0, 0.0], &[1.0, 0.0], None, Gain::Exponential).unwrap();
        assert_eq!(result.ndcg, 1.0); // a tie: index order
    }
}
