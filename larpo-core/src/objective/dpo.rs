//! DPO on preference pairs, with optional label smoothing.

use super::ObjectiveError;
use super::error::check_len;
use super::numerics::{sigmoid, softplus};

/// Loss and gradients of a batch of preference pairs; all arrays have one entry per pair.
#[derive(Debug, Clone, PartialEq)]
pub struct DpoLoss {
    /// Mean over the pairs; 0 for an empty batch.
    pub value: f64,
    /// The loss of each pair.
    pub per_example: Vec<f64>,
    /// d(value)/d(logp_w).
    pub d_logp_w: Vec<f64>,
    /// d(value)/d(logp_l).
    pub d_logp_l: Vec<f64>,
}

/// The four summed log-probabilities of each pair, in nats.
#[derive(Debug, Clone, Copy)]
pub struct PairLogps<'a> {
    /// Of the chosen response under the policy.
    pub logp_w: &'a [f64],
    /// Of the rejected response under the policy.
    pub logp_l: &'a [f64],
    /// Of the chosen response under the reference.
    pub ref_w: &'a [f64],
    /// Of the rejected response under the reference.
    pub ref_l: &'a [f64],
}

/// `-(1-ε) log σ(m) - ε log σ(-m)` with `m = β(logp_w - ref_w) - β(logp_l - ref_l)`.
///
/// Source: Rafailov et al. 2023, arXiv 2305.18290, eq. 7; ε is the label smoothing of conservative DPO, the
/// probability that a preference is flipped. Gradient: `dL/dm = ε σ(m) - (1-ε) σ(-m)`.
/// A rejected response of probability 0 gives loss 0 (ε = 0), a chosen one +inf with a finite gradient.
///
/// # Errors
/// Arrays of different lengths, a β that is not finite and positive, an ε outside [0, 1/2], or a margin that is NaN.
pub fn dpo(pairs: &PairLogps<'_>, beta: f64, label_smoothing: f64) -> Result<DpoLoss, ObjectiveError> {
    let n = pairs.logp_w.len();
    check_len("logp_l", pairs.logp_l.len(), n)?;
    check_len("ref_w", pairs.ref_w.len(), n)?;
    check_len("ref_l", pairs.ref_l.len(), n)?;
    super::check_beta(beta)?;
    if !(0.0..=0.5).contains(&label_smoothing) {
        return Err(ObjectiveError::Setting {
            what: "label_smoothing",
            value: label_smoothing,
            expected: "a number from 0 to 0.5",
        });
    }
    let eps = label_smoothing;
    let mut loss = DpoLoss {
        value: 0.0,
        per_example: Vec::with_capacity(n),
        d_logp_w: Vec::with_capacity(n),
        d_logp_l: Vec::with_capacity(n),
    };
    for i in 0..n {
        let winner = beta * (pairs.logp_w[i] - pairs.ref_w[i]);
        let loser = beta * (pairs.logp_l[i] - pairs.ref_l[i]);
        let margin = winner - loser;
        if margin.is_nan() {
            return Err(ObjectiveError::Margin { pair: i });
        }
        // Without smoothing the second term is absent, not 0 times a possible infinity.
        let flipped = if eps == 0.0 { 0.0 } else { eps * softplus(margin) };
        loss.per_example.push((1.0 - eps) * softplus(-margin) + flipped);
        let d_margin = eps * sigmoid(margin) - (1.0 - eps) * sigmoid(-margin);
        loss.d_logp_w.push(beta * d_margin / n as f64);
        loss.d_logp_l.push(-beta * d_margin / n as f64);
    }
    if n > 0 {
        loss.value = loss.per_example.iter().sum::<f64>() / n as f64;
    }
    Ok(loss)
}
