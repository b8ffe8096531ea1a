//! Ranking losses on `γ(y|x) = β (log π_θ(y|x) - log π_ref(y|x))`.
//!
//! Everything takes `f64` slices and returns a loss and its derivative; nothing here knows of models, tensors or files,
//! and nothing depends on the rest of the crate, so the folder can be copied alone (it needs `serde` for the names of
//! its options). Source of the losses on lists: Jin et al., "LLM Alignment as Retriever Optimization", ICML 2025,
//! arXiv 2502.03699; each loss names its own.
//!
//! ```
//! use larpo_core::objective::{LossType, Objective, Ties, gamma};
//!
//! // Four responses of one prompt: summed log-probabilities under policy and reference, and their rewards.
//! let (policy, reference) = ([-12.0, -9.5, -14.0, -11.0], [-12.5, -9.0, -14.0, -10.0]);
//! let rewards = [1.0, 0.0, 1.0, 0.0];
//! let mut g = [0.0; 4];
//! gamma(0.1, &policy, &reference, &mut g)?;
//!
//! let objective = Objective { loss: LossType::Listmle, ties: Ties::Skip, ..Objective::default() };
//! let mut d_gamma = [0.0; 4];
//! let loss = objective.evaluate(&g, &rewards, None, &mut d_gamma)?.expect("the list has two different rewards");
//! assert!(loss > 0.0);
//! assert!(d_gamma[0] < 0.0 && d_gamma[1] > 0.0); // raise what was rewarded, lower what was not
//! // dL/d(log π_θ) = β · dL/dγ; nothing flows into the reference.
//! # Ok::<(), larpo_core::objective::ObjectiveError>(())
//! ```

mod at_zero;
mod batch;
mod dpo;
mod error;
mod lipo;
mod losses;
pub mod numerics;
mod options;
mod preferences;
mod ranked;
mod ranking;
mod reward;
mod seq_logp;

pub use batch::{BatchLoss, List, list_batch};
pub use dpo::{DpoLoss, PairLogps, dpo};
pub use error::ObjectiveError;
pub use lipo::{LipoPair, lipo_labels, lipo_pairs, lipo_ranks};
pub use options::{LipoLabels, LogBase, LossType, RankBy, Ties};
pub use preferences::preference_scores;
pub use ranked::{Lengths, RankedBatch};
pub use ranking::Ranking;
pub use reward::{RewardLoss, reward_list};
pub use seq_logp::{SeqLogp, Sequence, seq_logp, seq_logp_grad, sft};

use error::check_len;
use serde::{Deserialize, Serialize};

/// A list loss with its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Objective {
    /// Which loss.
    pub loss: LossType,
    /// What equal rewards mean.
    pub ties: Ties,
    /// Labels of [`LossType::LipoLambda`].
    pub labels: LipoLabels,
    /// Logarithm of [`LossType::LipoLambda`].
    pub log_base: LogBase,
    /// Seed of [`Ties::Random`].
    pub seed: u64,
}

impl Objective {
    /// Loss of one list, `None` if it does not count: fewer than two valid items, or all rewards equal (except under
    /// [`Ties::Stable`]). Writes dL/dγ, all zero when the list does not count and on error.
    ///
    /// Shapes: `gamma (slots)`, `rewards (slots)`, `mask (slots)` with `true` for a valid item, `d_gamma (slots)`.
    /// A masked slot may hold anything, NaN included, and gets derivative exactly 0.
    ///
    /// A γ of -inf is a response of probability 0: among the negatives it contributes nothing, as the preferred item it
    /// makes the loss +inf with a finite derivative.
    ///
    /// # Errors
    /// Lengths that disagree, a valid reward that is not finite, a valid γ that is NaN or +inf, two -inf in one
    /// comparison, a LiPO weight that overflows.
    pub fn evaluate(
        &self,
        gamma: &[f64],
        rewards: &[f64],
        mask: Option<&[bool]>,
        d_gamma: &mut [f64],
    ) -> Result<Option<f64>, ObjectiveError> {
        d_gamma.fill(0.0);
        let ranking = self.rank(rewards, mask)?;
        self.evaluate_ranked(&ranking, gamma, d_gamma)
    }

    /// The order of a list under this objective's tie rule, to be kept while γ changes.
    ///
    /// # Errors
    /// As [`Ranking::new`].
    pub fn rank(&self, rewards: &[f64], mask: Option<&[bool]>) -> Result<Ranking, ObjectiveError> {
        Ranking::new(rewards, mask, self.ties, self.seed)
    }

    /// [`Objective::evaluate`] for a list that has been ordered before by [`Objective::rank`]. The tie rule is the
    /// ranking's. Allocates nothing, except for LiPO.
    ///
    /// # Errors
    /// As [`Objective::evaluate`].
    pub fn evaluate_ranked(
        &self,
        ranking: &Ranking,
        gamma: &[f64],
        d_gamma: &mut [f64],
    ) -> Result<Option<f64>, ObjectiveError> {
        d_gamma.fill(0.0);
        check_len("gamma", gamma.len(), ranking.slots())?;
        check_len("d_gamma", d_gamma.len(), ranking.slots())?;
        if !ranking.contributes() {
            return Ok(None);
        }
        check_gamma(ranking, gamma)?;
        let loss = match self.loss {
            LossType::Pairwise => losses::pairwise(ranking, gamma, d_gamma),
            LossType::Contrastive => losses::contrastive(ranking, gamma, d_gamma),
            LossType::Lambdarank => losses::lambdarank(ranking, gamma, d_gamma),
            LossType::Listmle => losses::listmle(ranking, gamma, d_gamma),
            LossType::LipoLambda => losses::lipo_lambda(ranking, gamma, self.labels, self.log_base, d_gamma),
        };
        if loss.is_err() {
            d_gamma.fill(0.0);
        }
        loss.map(Some)
    }
}

/// `out[i] = β (logp[i] - reference[i])`, in nats. β multiplies the difference, not each term: for two nearly equal
/// log-probabilities the other way loses what the losses look at.
///
/// # Errors
/// Lengths that disagree, a β that is not finite and positive.
pub fn gamma(beta: f64, logp: &[f64], reference: &[f64], out: &mut [f64]) -> Result<(), ObjectiveError> {
    check_beta(beta)?;
    check_len("reference", reference.len(), logp.len())?;
    check_len("out", out.len(), logp.len())?;
    for ((out, logp), reference) in out.iter_mut().zip(logp).zip(reference) {
        *out = beta * (logp - reference);
    }
    Ok(())
}

fn check_beta(beta: f64) -> Result<(), ObjectiveError> {
    if beta.is_finite() && beta > 0.0 {
        Ok(())
    } else {
        Err(ObjectiveError::Setting { what: "beta", value: beta, expected: "a finite number above 0" })
    }
}

/// Every valid γ is a number or -inf.
fn check_gamma(ranking: &Ranking, gamma: &[f64]) -> Result<(), ObjectiveError> {
    check_len("gamma", gamma.len(), ranking.slots())?;
    match ranking.order().iter().find(|&&slot| gamma[slot].is_nan() || gamma[slot] == f64::INFINITY) {
        Some(&index) => Err(ObjectiveError::Gamma { index, value: gamma[index] }),
        None => Ok(()),
    }
}
