//! The five list losses, each its definition over the two terms they are made of.
//!
//! A *pair term* is `-log σ(g_w - g_l) = softplus(g_l - g_w)`. A *softmax term* is
//! `logsumexp(g_w, g_l1 … g_ln) - g_w = softplus(L - g_w)` with `L = logsumexp(g_l1 … g_ln)`: a pair term against all
//! negatives at once. Written so, neither cancels, `m = 2` makes all losses the same to the last bit, and every
//! gradient adds up to zero.

use super::numerics::{log_sum_exp, sigmoid, softplus};
use super::{LipoLabels, LogBase};
use super::{ObjectiveError, Ranking, lipo};

/// Adds `weight * -log σ(g_w - g_l)` and its gradient; returns the loss. The slots are `winner` and `loser`.
///
/// With m = g_w - g_l: d/dg_w = -weight·σ(-m), d/dg_l = +weight·σ(-m).
pub(super) fn pair_term(
    gamma: &[f64],
    winner: usize,
    loser: usize,
    weight: f64,
    d_gamma: &mut [f64],
) -> Result<f64, ObjectiveError> {
    if weight == 0.0 {
        return Ok(0.0); // 0 * inf would be NaN
    }
    let margin = gamma[winner] - gamma[loser];
    if margin.is_nan() {
        return Err(ObjectiveError::TwoMinusInf { index: winner, other: loser });
    }
    let slope = weight * sigmoid(-margin);
    d_gamma[winner] -= slope;
    d_gamma[loser] += slope;
    Ok(weight * softplus(-margin))
}

/// `logsumexp(g_w, g_l …) - g_w` for the item at `position` against its rivals under the tie rule, and its gradient;
/// 0 when it has no rival.
///
/// With L = logsumexp(g_l …) and s = σ(L - g_w): d/dg_w = -s, d/dg_l = s·exp(g_l - L).
fn softmax_term(ranking: &Ranking, gamma: &[f64], position: usize, d_gamma: &mut [f64]) -> Result<f64, ObjectiveError> {
    let order = ranking.order();
    let winner = order[position];
    let rivals = (ranking.rivals_from(position)..order.len()).filter(|&p| p != position).map(|p| order[p]);
    let Some(first) = rivals.clone().next() else {
        return Ok(0.0);
    };
    let total = log_sum_exp(rivals.clone().map(|slot| gamma[slot]));
    if total == f64::NEG_INFINITY {
        if gamma[winner] == f64::NEG_INFINITY {
            return Err(ObjectiveError::TwoMinusInf { index: winner, other: first });
        }
        return Ok(0.0); // negatives of probability 0 contribute nothing
    }
    let excess = total - gamma[winner];
    let slope = sigmoid(excess);
    d_gamma[winner] -= slope;
    for slot in rivals {
        d_gamma[slot] += slope * (gamma[slot] - total).exp();
    }
    Ok(softplus(excess))
}

/// Sum of the pair terms and of their weights, over all pairs of positions.
fn pair_sum(ranking: &Ranking, gamma: &[f64], d_gamma: &mut [f64]) -> Result<(f64, f64), ObjectiveError> {
    let order = ranking.order();
    let (mut loss, mut weight) = (0.0, 0.0);
    for a in 0..order.len() {
        for b in a + 1..order.len() {
            let (forward, backward) = ranking.pair_weights(a, b);
            loss += pair_term(gamma, order[a], order[b], forward, d_gamma)?;
            loss += pair_term(gamma, order[b], order[a], backward, d_gamma)?;
            weight += forward + backward;
        }
    }
    Ok((loss, weight))
}

/// LambdaRank as the LarPO paper has it (Jin et al. 2025, arXiv 2502.03699): `-Σ_{i<j} log σ(g_i - g_j)`, a sum over
/// all pairs, the best and the worst item included, without rank or gain weights.
pub(super) fn lambdarank(ranking: &Ranking, gamma: &[f64], d_gamma: &mut [f64]) -> Result<f64, ObjectiveError> {
    Ok(pair_sum(ranking, gamma, d_gamma)?.0)
}

/// Bradley–Terry / DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7): the mean of the pair terms over the list's
/// pairs, so that a list of two gives DPO and a longer one keeps its scale.
pub(super) fn pairwise(ranking: &Ranking, gamma: &[f64], d_gamma: &mut [f64]) -> Result<f64, ObjectiveError> {
    let (loss, weight) = pair_sum(ranking, gamma, d_gamma)?;
    for d in d_gamma.iter_mut() {
        *d /= weight;
    }
    Ok(loss / weight)
}

/// Contrastive (Jin et al. 2025): the softmax term of the best item, `logsumexp(g_1 … g_m) - g_1`.
pub(super) fn contrastive(ranking: &Ranking, gamma: &[f64], d_gamma: &mut [f64]) -> Result<f64, ObjectiveError> {
    softmax_term(ranking, gamma, 0, d_gamma)
}

/// ListMLE (Xia et al. 2008): `Σ_i logsumexp(g_i … g_m) - g_i`, the softmax term of every item against those below.
///
/// Each term sums its own denominator: O(m²) like the pairs, and nothing is subtracted from a running sum.
pub(super) fn listmle(ranking: &Ranking, gamma: &[f64], d_gamma: &mut [f64]) -> Result<f64, ObjectiveError> {
    let mut loss = 0.0;
    for position in 0..ranking.len() {
        loss += softmax_term(ranking, gamma, position, d_gamma)?;
    }
    Ok(loss)
}

/// LiPO-λ (Liu et al. 2024, arXiv 2402.01878): `-Σ_{label_i > label_j} Δ_ij log σ(g_i - g_j)`; Δ is a constant of the
/// gradient. See [`lipo`] for Δ.
pub(super) fn lipo_lambda(
    ranking: &Ranking,
    gamma: &[f64],
    labels: LipoLabels,
    log_base: LogBase,
    d_gamma: &mut [f64],
) -> Result<f64, ObjectiveError> {
    let mut loss = 0.0;
    lipo::for_each_pair(ranking, gamma, labels, log_base, |winner, loser, weight| {
        loss += pair_term(gamma, winner, loser, weight, d_gamma)?;
        Ok(())
    })?;
    Ok(loss)
}
