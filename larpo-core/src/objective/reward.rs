//! Losses that a reward model is trained with: on pairs (Bradley–Terry) and on lists of any length.

use super::ObjectiveError;
use super::error::check_len;
use super::numerics::{sigmoid, softplus};

/// Loss and gradient of scores.
#[derive(Debug, Clone, PartialEq)]
pub struct RewardLoss {
    /// The loss.
    pub value: f64,
    /// Its derivative by every score.
    pub d_scores: Vec<f64>,
    /// Pairs with different labels.
    pub pairs: usize,
    /// Those of them that the scores put in the right order; a tie is wrong.
    pub right: usize,
}

/// The mean over all pairs with `label_i > label_j` of `-log σ(s_i - s_j - margin) + c (s_i + s_j)²`; 0 without such a pair.
///
/// On a list of two with c = 0 this is the Bradley–Terry loss, on a longer one that of InstructGPT (Ouyang et al. 2022,
/// arXiv 2203.02155, eq. 1). The margin is Llama 2's (Touvron et al. 2023, arXiv 2307.09288, eq. 2); the last term, which
/// keeps scores around 0, squares the *sum* of the two (Eisenstein et al. 2023, arXiv 2312.09244).
///
/// # Errors
/// Arrays of different lengths, a label or a score that is NaN, a margin or a c that is not finite.
pub fn reward_list(
    scores: &[f64],
    labels: &[f64],
    margin: f64,
    center_coefficient: f64,
) -> Result<RewardLoss, ObjectiveError> {
    check_len("labels", labels.len(), scores.len())?;
    for (what, value) in [("margin", margin), ("center_coefficient", center_coefficient)] {
        if !value.is_finite() {
            return Err(ObjectiveError::Setting { what, value, expected: "a finite number" });
        }
    }
    if let Some(index) = labels.iter().position(|label| label.is_nan()) {
        return Err(ObjectiveError::Reward { index, value: labels[index] });
    }
    if let Some(index) = scores.iter().position(|score| score.is_nan()) {
        return Err(ObjectiveError::Gamma { index, value: scores[index] });
    }
    let items = 0..scores.len();
    let pairs: Vec<(usize, usize)> = items
        .clone()
        .flat_map(|i| items.clone().map(move |j| (i, j)))
        .filter(|&(i, j)| labels[i] > labels[j])
        .collect();
    let mut loss = RewardLoss { value: 0.0, d_scores: vec![0.0; scores.len()], pairs: pairs.len(), right: 0 };
    let share = 1.0 / pairs.len().max(1) as f64;
    for (i, j) in pairs {
        let (difference, sum) = (scores[i] - scores[j] - margin, scores[i] + scores[j]);
        loss.value += share * (softplus(-difference) + center_coefficient * sum * sum);
        let (slope, pull) = (-sigmoid(-difference), 2.0 * center_coefficient * sum);
        loss.d_scores[i] += share * (pull + slope);
        loss.d_scores[j] += share * (pull - slope);
        loss.right += usize::from(scores[i] > scores[j]);
    }
    Ok(loss)
}
