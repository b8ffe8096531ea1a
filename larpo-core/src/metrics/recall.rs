//! How often a sample, or one of several, is right.

use super::MetricError;
use super::stats::mean_estimate;

/// Probability that at least one of `k` samples drawn without replacement from `n`, of which `c` are correct, is
/// correct: `1 - C(n-c, k) / C(n, k)`, computed as `1 - Π_{q=n-c+1}^{n} (1 - k/q)`. In the retrieval reading this is
/// Recall@k; with `k = n` it is "any correct".
///
/// Source: Chen et al. 2021, arXiv 2107.03374.
///
/// # Errors
/// `k` outside `1..=n`, or `c > n`.
pub fn pass_at_k(n: usize, c: usize, k: usize) -> Result<f64, MetricError> {
    if k == 0 || k > n || c > n {
        return Err(MetricError::PassAtK { n, c, k });
    }
    if n - c < k {
        return Ok(1.0);
    }
    let none_correct: f64 = (n - c + 1..=n).map(|q| 1.0 - k as f64 / q as f64).product();
    Ok(1.0 - none_correct)
}

/// Mean of [`pass_at_k`] over problems given as `(n, c)`; `None` for no problem.
///
/// # Errors
/// As [`pass_at_k`] for any of the problems.
pub fn mean_pass_at_k(problems: &[(usize, usize)], k: usize) -> Result<Option<f64>, MetricError> {
    let mut sum = 0.0;
    for &(n, c) in problems {
        sum += pass_at_k(n, c, k)?;
    }
    Ok((!problems.is_empty()).then(|| sum / problems.len() as f64))
}

/// Share of correct answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accuracy {
    /// Mean of 0/1; `None` for no answer.
    pub accuracy: Option<f64>,
    /// Sample standard deviation (divisor n - 1) over √n; `None` for fewer than two answers.
    pub standard_error: Option<f64>,
}

/// Accuracy with its standard error.
pub fn accuracy(correct: &[bool]) -> Accuracy {
    let values: Vec<f64> = correct.iter().map(|&right| f64::from(u8::from(right))).collect();
    let estimate = mean_estimate(&values);
    Accuracy { accuracy: estimate.map(|e| e.mean), standard_error: estimate.and_then(|e| e.standard_error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the k-subsets of n samples (the first c correct) that hold a correct one.
    fn by_enumeration(n: usize, c: usize, k: usize) -> f64 {
        let subsets: Vec<u32> = (0..1u32 << n).filter(|s| s.count_ones() as usize == k).collect();
        let correct = (1u32 << c) - 1;
        let hits = subsets.iter().filter(|&&s| s & correct != 0).count();
        hits as f64 / subsets.len() as f64
    }

    #[test]
    fn pass_at_k_counts_subsets() {
        for n in 1..=8 {
            for c in 0..=n {
                for k in 1..=n {
                    let (value, expected) = (pass_at_k(n, c, k).unwrap(), by_enumeration(n, c, k));
                    assert!((value - expected).abs() < 1e-12, "{n} {c} {k}: {value} is not {expected}");
                }
            }
        }
    }

    #[test]
    fn pass_at_k_refuses_more_draws_than_samples() {
        assert!(pass_at_k(4, 1, 5).is_err());
        assert!(pass_at_k(4, 5, 1).is_err());
        assert!(pass_at_k(4, 1, 0).is_err());
        assert!(mean_pass_at_k(&[(8, 1), (4, 1)], 5).unwrap_err().to_string().contains("pass@5 of 4 samples"));
        assert_eq!(mean_pass_at_k(&[], 5), Ok(None));
    }
}
