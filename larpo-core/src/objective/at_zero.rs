//! The loss of a list before anything has been learnt, in closed form.
//!
//! When the policy is its own reference every γ is 0, and each loss equals a constant of the list's length and ties.
//! Comparing the loss of the first batch with it proves the whole training path (log-probabilities, reference, masks,
//! order, ties) before the first update. So nothing here may use the code of the losses: it counts, for each item, the
//! items below it and beside it.

use super::ranking::valid_slots;
use super::{LipoLabels, LogBase, LossType, Objective, ObjectiveError, Ties};
use std::f64::consts::LN_2;

impl Objective {
    /// The loss of a list whose γ are all 0; `None` if the list does not count.
    ///
    /// | loss | without ties | with ties |
    /// |---|---|---|
    /// | pairwise | ln 2 | the same |
    /// | contrastive | ln m | skip: ln(1 + items below the best) |
    /// | lambdarank | m(m-1)/2 · ln 2 | skip: strictly ordered pairs · ln 2 |
    /// | listmle | ln m! | skip: Σ ln(1 + items below); share: Σ ln(items tied or below) |
    /// | lipo_lambda | ΣΔ · ln 2 | the same, with the ranks τ in slot order |
    ///
    /// Shapes: `rewards (slots)`, `mask (slots)`.
    ///
    /// # Errors
    /// As [`Objective::evaluate`].
    pub fn at_zero(&self, rewards: &[f64], mask: Option<&[bool]>) -> Result<Option<f64>, ObjectiveError> {
        let valid: Vec<f64> = valid_slots(rewards, mask)?.into_iter().map(|slot| rewards[slot]).collect();
        let m = valid.len();
        let all_equal = valid.iter().all(|r| *r == valid[0]);
        if m < 2 || (all_equal && self.ties != Ties::Stable) {
            return Ok(None);
        }
        let below = |r: f64| valid.iter().filter(|other| **other < r).count() as f64;
        let beside = |r: f64| valid.iter().filter(|other| **other == r).count() as f64;
        let all_pairs = (m * (m - 1) / 2) as f64;

        Ok(Some(match (self.loss, self.ties) {
            (LossType::Pairwise, _) => LN_2,
            (LossType::Contrastive, Ties::Skip) => {
                let best = valid.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                below(best).ln_1p()
            }
            (LossType::Contrastive, _) => (m as f64).ln(),
            (LossType::Lambdarank, Ties::Skip) => LN_2 * valid.iter().map(|&r| below(r)).sum::<f64>(),
            (LossType::Lambdarank, _) => LN_2 * all_pairs,
            (LossType::Listmle, Ties::Skip) => valid.iter().map(|&r| below(r).ln_1p()).sum(),
            (LossType::Listmle, Ties::Share) => valid.iter().map(|&r| (below(r) + beside(r)).ln()).sum(),
            (LossType::Listmle, _) => (1..=m).map(|i| (i as f64).ln()).sum(),
            (LossType::LipoLambda, _) => LN_2 * self.total_weight_at_zero(&valid),
        }))
    }

    /// ΣΔ over the pairs of a list whose γ are all 0, so that τ counts the valid items in slot order.
    fn total_weight_at_zero(&self, valid: &[f64]) -> f64 {
        let m = valid.len() as f64;
        let label = |r: f64| match self.labels {
            LipoLabels::Reward => r,
            // The mean rank of a tied item is the items above plus the middle of its group, so (m - rank) is the items
            // below plus half of the others beside it.
            LipoLabels::Rank => {
                let below = valid.iter().filter(|other| **other < r).count() as f64;
                let beside = valid.iter().filter(|other| **other == r).count() as f64;
                (below + (beside - 1.0) / 2.0) / (m - 1.0)
            }
        };
        let base = match self.log_base {
            LogBase::E => 1.0,
            LogBase::Two => LN_2,
        };
        let mut total = 0.0;
        for (i, &better) in valid.iter().enumerate() {
            for (j, &worse) in valid.iter().enumerate() {
                if better > worse {
                    let gain = 2f64.powf(label(better)) - 2f64.powf(label(worse));
                    let discount = base / (i as f64 + 2.0).ln() - base / (j as f64 + 2.0).ln();
                    total += gain * discount.abs();
                }
            }
        }
        total
    }
}
