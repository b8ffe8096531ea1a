//! Estimates of KL(π‖π_ref) from tokens sampled from π.

use super::{MetricError, check_len};

/// Which estimate is taken of `d = log π - log π_ref`. Source: Schulman, "Approximating KL divergence", 2020.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KlEstimator {
    /// `d`: unbiased, can be negative.
    K1,
    /// `d²/2`: biased, never negative.
    K2,
    /// `e^-d - 1 + d`: unbiased, never negative. Overflows to +inf where the policy gives a sample far less probability
    /// than the reference; clamp `d` where a finite number is wanted.
    K3,
}

impl KlEstimator {
    /// The estimate for one `d`, and its derivative with respect to log π at a fixed sample.
    fn at(self, d: f64) -> (f64, f64) {
        match self {
            Self::K1 => (d, 1.0),
            Self::K2 => (0.5 * d * d, d),
            Self::K3 => ((-d).exp_m1() + d, -(-d).exp_m1()),
        }
    }
}

/// An estimate of the KL divergence of one sequence, in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct KlEstimate {
    /// Sum of the estimates of the tokens.
    pub value: f64,
    /// d(value)/d(log π), one entry per token: the derivative of the estimate, not an estimate of the KL's gradient.
    pub grad: Vec<f64>,
    /// The estimator applied to the sum of `d`. Equals `value` for k1 only.
    pub sequence: f64,
}

/// Estimates KL(π‖π_ref) from the log-probabilities of sampled tokens.
///
/// Shapes: `logp (tokens)`, `reference (tokens)`, in nats.
///
/// # Errors
/// Lengths that disagree.
pub fn kl(estimator: KlEstimator, logp: &[f64], reference: &[f64]) -> Result<KlEstimate, MetricError> {
    check_len("reference", reference.len(), logp.len())?;
    let (mut value, mut total) = (0.0, 0.0);
    let mut grad = Vec::with_capacity(logp.len());
    for (logp, reference) in logp.iter().zip(reference) {
        let d = logp - reference;
        let (estimate, slope) = estimator.at(d);
        value += estimate;
        grad.push(slope);
        total += d;
    }
    Ok(KlEstimate { value, grad, sequence: estimator.at(total).0 })
}
