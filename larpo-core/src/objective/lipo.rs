//! Labels, ranks and pair weights of LiPO-λ (Liu et al. 2024, arXiv 2402.01878; LambdaLoss, Wang et al. 2018).
//!
//! `Δ_ij = |G_i - G_j| · |1/D(τ_i) - 1/D(τ_j)|` with the gain `G_i = 2^label_i - 1`, the discount `D(r) = log(1 + r)`
//! and `τ_i` the 1-based rank of item i by the present γ, descending, ties to the lower slot.

use super::{LipoLabels, LogBase, ObjectiveError, Ranking};

/// One weighted pair of LiPO-λ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LipoPair {
    /// Slot of the item with the higher label.
    pub winner: usize,
    /// Slot of the item with the lower label.
    pub loser: usize,
    /// Δ ≥ 0.
    pub weight: f64,
}

/// The labels at each position of the ranking, descending; for [`LipoLabels::Rank`] all 0 when there are fewer than
/// two items.
pub fn lipo_labels(ranking: &Ranking, labels: LipoLabels) -> Vec<f64> {
    match labels {
        LipoLabels::Reward => ranking.rewards().to_vec(),
        LipoLabels::Rank => {
            let m = ranking.len() as f64;
            (0..ranking.len())
                .map(|position| {
                    let tied = ranking.tie_group(position);
                    // Mean of the 1-based ranks start+1 ..= end.
                    let rank = (tied.start + 1 + tied.end) as f64 / 2.0;
                    if m > 1.0 { (m - rank) / (m - 1.0) } else { 0.0 }
                })
                .collect()
        }
    }
}

/// The ranks τ by γ descending, ties to the lower slot; one entry per slot, 0 where masked. `gamma (slots)` must not
/// hold NaN at a valid slot.
pub fn lipo_ranks(ranking: &Ranking, gamma: &[f64]) -> Vec<usize> {
    let mut by_score = ranking.order().to_vec();
    by_score.sort_by(|&a, &b| gamma[b].partial_cmp(&gamma[a]).unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(&b)));
    let mut ranks = vec![0; ranking.slots()];
    for (position, slot) in by_score.into_iter().enumerate() {
        ranks[slot] = position + 1;
    }
    ranks
}

/// Every pair of strictly ordered labels with its weight.
///
/// Shapes: `gamma (ranking.slots())`.
///
/// # Errors
/// A γ of another length or that is NaN or +inf; a weight that overflows.
pub fn lipo_pairs(
    ranking: &Ranking,
    gamma: &[f64],
    labels: LipoLabels,
    log_base: LogBase,
) -> Result<Vec<LipoPair>, ObjectiveError> {
    super::check_gamma(ranking, gamma)?;
    let mut pairs = Vec::new();
    for_each_pair(ranking, gamma, labels, log_base, |winner, loser, weight| {
        pairs.push(LipoPair { winner, loser, weight });
        Ok(())
    })?;
    Ok(pairs)
}

/// Calls `visit(winner, loser, Δ)` for every pair of strictly ordered labels.
pub(super) fn for_each_pair(
    ranking: &Ranking,
    gamma: &[f64],
    labels: LipoLabels,
    log_base: LogBase,
    mut visit: impl FnMut(usize, usize, f64) -> Result<(), ObjectiveError>,
) -> Result<(), ObjectiveError> {
    let order = ranking.order();
    let labels = lipo_labels(ranking, labels);
    let ranks = lipo_ranks(ranking, gamma);
    let inverse_discount = |slot: usize| {
        let rank = ranks[slot] as f64;
        1.0 / match log_base {
            LogBase::E => rank.ln_1p(),
            LogBase::Two => (rank + 1.0).log2(),
        }
    };
    // Positions are in descending order of label, so the winner of a pair always stands before the loser.
    for a in 0..order.len() {
        for b in a + 1..order.len() {
            if labels[a] > labels[b] {
                let (winner, loser) = (order[a], order[b]);
                // |G_a - G_b|: the 1 of both gains cancels.
                let gain = (labels[a].exp2() - labels[b].exp2()).abs();
                let weight = gain * (inverse_discount(winner) - inverse_discount(loser)).abs();
                if !weight.is_finite() {
                    return Err(ObjectiveError::PairWeight { index: winner, other: loser });
                }
                visit(winner, loser, weight)?;
            }
        }
    }
    Ok(())
}
