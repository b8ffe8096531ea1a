//! What is reported: how often samples are right, how well scores rank, how far the policy has moved, and how sure a
//! mean is.
//!
//! A metric that is undefined for its input (no pair to compare, a standard error of one value) is `None`, not 0 and
//! not NaN.

mod kl;
mod ranking;
mod recall;
mod resample;
mod stats;
mod vote;

pub use kl::{KlEstimate, KlEstimator, kl};
pub use ranking::{
    Gain, KendallTau, Ndcg, PairAccuracy, kendall_tau_b, mean_reciprocal_rank, ndcg, pair_accuracy, reciprocal_rank,
};
pub use recall::{Accuracy, accuracy, mean_pass_at_k, pass_at_k};
pub use resample::{Resampling, bootstrap_estimate, mcnemar_p, sign_flip_p};
pub use stats::{Estimate, mean_estimate, paired_difference, student_t_975};
pub use vote::{BestOfN, Vote, best_of_n, expected_maj_at_n, maj_at_n};

use std::fmt;

/// Bad input to a metric.
#[derive(Debug, Clone, PartialEq)]
pub enum MetricError {
    /// Two arrays that describe the same items differ in length.
    Length {
        /// Name of the second array.
        what: &'static str,
        /// Entries of the first array.
        expected: usize,
        /// Entries of the second.
        found: usize,
    },
    /// A number that cannot be ranked.
    Value {
        /// Name of the array.
        what: &'static str,
        /// Index of the entry.
        index: usize,
        /// The entry.
        value: f64,
    },
    /// Pass@k needs `1 ≤ k ≤ n` and `c ≤ n`.
    PassAtK {
        /// Samples.
        n: usize,
        /// Correct samples.
        c: usize,
        /// Samples drawn.
        k: usize,
    },
    /// A group of `n` needs `1 ≤ n ≤` samples.
    Draws {
        /// Samples.
        total: usize,
        /// Samples of a group.
        n: usize,
    },
}

impl fmt::Display for MetricError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { what, expected, found } => {
                write!(f, "{what} has {found} entries but {expected} were expected: pass one entry per item")
            }
            Self::Value { what, index, value } => {
                write!(f, "entry {index} of {what} is {value}, expected a finite number: drop the item or repair it")
            }
            Self::PassAtK { n, c, k } => write!(
                f,
                "pass@{k} of {n} samples with {c} correct is not defined: \
                 k must be from 1 to the number of samples, and no more samples can be correct than there are"
            ),
            Self::Draws { total, n } => {
                write!(f, "a group of {n} out of {total} samples is not defined: its size must be from 1 to {total}")
            }
        }
    }
}

impl std::error::Error for MetricError {}

fn check_len(what: &'static str, found: usize, expected: usize) -> Result<(), MetricError> {
    if found == expected { Ok(()) } else { Err(MetricError::Length { what, expected, found }) }
}

fn check_finite(what: &'static str, values: &[f64]) -> Result<(), MetricError> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(MetricError::Value { what, index, value: values[index] }),
        None => Ok(()),
    }
}
