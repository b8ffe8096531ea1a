//! Resampling: how sure a mean over prompts is, and whether two systems differ on the same prompts.
//!
//! Values are one a prompt. Prompts, not responses, are drawn again, because responses to one prompt are alike. Draws are
//! a function of the seed and of the number of values, so systems measured on the same prompts are resampled alike.

use super::stats::{Estimate, mean_estimate};
use super::vote::ln_factorials;
use crate::rng::{CounterRng, Purpose};
use ndarray_rand::rand::RngCore;

/// How often and from which seed values are drawn again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resampling {
    /// Seed of the draws.
    pub seed: u64,
    /// Number of resamples.
    pub resamples: usize,
}

/// Mean and standard error of `values (n)`, with the percentile bootstrap's 95 % interval of the mean (Efron 1979): the
/// 2.5 % and 97.5 % quantiles of the means of resamples drawn with replacement.
///
/// The interval is `None` for fewer than two values, and where all are equal: a sample without spread says nothing about
/// the spread. `None` as a whole for no value.
pub fn bootstrap_estimate(values: &[f64], with: Resampling) -> Option<Estimate> {
    let estimate = mean_estimate(values)?;
    let varied = values.iter().any(|v| v != &values[0]);
    let interval = (varied && with.resamples > 0).then(|| {
        let n = values.len();
        let random = CounterRng::new(with.seed, Purpose::Bootstrap);
        let mut means: Vec<f64> = (0..with.resamples)
            .map(|resample| {
                let mut sequence = random.sequence(resample as u64);
                let sum: f64 = (0..n).map(|_| values[below(n, sequence.next_u32())]).sum();
                sum / n as f64
            })
            .collect();
        means.sort_by(f64::total_cmp);
        (quantile(&means, 0.025), quantile(&means, 0.975))
    });
    Some(Estimate { interval, ..estimate })
}

/// A number in `0..n` from 32 random bits; its bias is below `n / 2^32`.
fn below(n: usize, bits: u32) -> usize {
    ((u64::from(bits) * n as u64) >> 32) as usize
}

/// Quantile of sorted values with linear interpolation (type 7 of Hyndman and Fan 1996).
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// Two-sided p-value of the sign-flip permutation test that paired differences `d (n)` are symmetric about 0: the share of
/// random sign patterns whose mean is at least as far from 0 as the observed one, `(1 + hits) / (1 + resamples)` (Phipson
/// and Smyth 2010). `None` for no difference.
pub fn sign_flip_p(differences: &[f64], with: Resampling) -> Option<f64> {
    if differences.is_empty() {
        return None;
    }
    // A difference of 0 changes no sum.
    let moved: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    // Sums that are equal but for rounding count as equal.
    let observed = moved.iter().sum::<f64>().abs() * (1.0 - 1e-12);
    let random = CounterRng::new(with.seed, Purpose::Bootstrap);
    let hits = (0..with.resamples)
        .filter(|&resample| {
            // The upper half of the streams: the lower one is the bootstrap's.
            let mut sequence = random.sequence(1 << 63 | resample as u64);
            let sum: f64 = moved
                .chunks(32)
                .map(|chunk| {
                    let bits = sequence.next_u32();
                    let signed = chunk.iter().enumerate().map(|(i, d)| if bits >> i & 1 == 1 { -d } else { *d });
                    signed.sum::<f64>()
                })
                .sum();
            sum.abs() >= observed
        })
        .count();
    Some((1 + hits) as f64 / (1 + with.resamples) as f64)
}

/// Exact two-sided p-value of McNemar's test (1947) for two systems that are right or wrong on the same problems: of the
/// `b + c` problems that one of them alone solves, each system should solve half. `min(1, 2 P(X ≤ min(b, c)))`,
/// `X ~ Binomial(b + c, 1/2)`; 1 where there is no such problem.
pub fn mcnemar_p(b: usize, c: usize) -> f64 {
    let n = b + c;
    let ln_factorial = ln_factorials(n);
    let ln_power = n as f64 * std::f64::consts::LN_2;
    let term = |i: usize| (ln_factorial[n] - ln_factorial[i] - ln_factorial[n - i] - ln_power).exp();
    let tail: f64 = (0..=b.min(c)).map(term).sum();
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::paired_difference;

    const WITH: Resampling = Resampling { seed: 3, resamples: 4000 };

    #[test]
    fn the_bootstrap_agrees_with_the_normal_interval_of_many_values() {
        let random = CounterRng::new(1, Purpose::Bench);
        let values: Vec<f64> = (0..400).map(|i| random.uniform([i, 0, 0, 0])).collect();
        let (boot, normal) = (bootstrap_estimate(&values, WITH).unwrap(), mean_estimate(&values).unwrap());
        assert_eq!((boot.mean, boot.standard_error), (normal.mean, normal.standard_error));
        let ((a, b), (low, high)) = (boot.interval.unwrap(), normal.interval.unwrap());
        let se = normal.standard_error.unwrap();
        assert!((a - low).abs() < 0.15 * se && (b - high).abs() < 0.15 * se, "{a} {b} against {low} {high}");
        assert_eq!(bootstrap_estimate(&values, WITH), Some(boot));
        assert_ne!(bootstrap_estimate(&values, Resampling { seed: 4, ..WITH }), Some(boot));
    }

    #[test]
    fn two_values_give_the_quantiles_of_the_binomial() {
        // A mean of 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4: both tails hold more than 2.5 %.
        assert_eq!(bootstrap_estimate(&[0.0, 1.0], WITH).unwrap().interval, Some((0.0, 1.0)));
    }

    #[test]
    fn intervals_cover_the_mean_as_often_as_they_say() {
        let random = CounterRng::new(2, Purpose::Bench);
        let covered = (0..400u32)
            .filter(|&trial| {
                let right = |i| f64::from(u8::from(random.uniform([trial, i, 0, 0]) < 0.3));
                let values: Vec<f64> = (0..100).map(right).collect();
                let with = Resampling { seed: u64::from(trial), resamples: 400 };
                bootstrap_estimate(&values, with).unwrap().interval.is_some_and(|(a, b)| a <= 0.3 && 0.3 <= b)
            })
            .count();
        // 380 expected; the standard deviation of the count is 4.4, and the percentile bootstrap is a little narrow.
        assert!((360..=395).contains(&covered), "{covered} of 400");
    }

    #[test]
    fn without_spread_there_is_no_interval() {
        let e = bootstrap_estimate(&[1.0; 20], WITH).unwrap();
        assert_eq!((e.mean, e.interval), (1.0, None));
        assert_eq!(bootstrap_estimate(&[2.0], WITH).unwrap().interval, None);
        assert_eq!(bootstrap_estimate(&[], WITH), None);
    }

    #[test]
    fn the_sign_flip_test_approaches_its_exact_value() {
        let differences = [0.5, 1.0, -0.25, 0.75, 0.0, 1.5, 0.5, -0.5, 0.25];
        let observed: f64 = differences.iter().sum();
        let patterns = 1u32 << differences.len();
        let sum = |mask: u32| -> f64 {
            differences.iter().enumerate().map(|(i, d)| if mask >> i & 1 == 1 { -d } else { *d }).sum()
        };
        let exact =
            (0..patterns).filter(|&mask| sum(mask).abs() >= observed.abs()).count() as f64 / f64::from(patterns);
        let got = sign_flip_p(&differences, Resampling { seed: 1, resamples: 20_000 }).unwrap();
        assert!((got - exact).abs() < 0.01, "{got} against {exact}");
        assert_eq!(sign_flip_p(&[0.0; 5], WITH), Some(1.0), "no difference at all");
        assert_eq!(sign_flip_p(&[], WITH), None);
    }

    #[test]
    fn mcnemar_by_counting_coins() {
        for (b, c) in [(0, 0), (1, 0), (5, 0), (10, 2), (3, 3), (2, 9)] {
            let n: usize = b + c;
            let fewer = (0..1u32 << n).filter(|m| m.count_ones() as usize <= b.min(c)).count();
            let exact = (2.0 * fewer as f64 / (1u64 << n) as f64).min(1.0);
            assert!((mcnemar_p(b, c) - exact).abs() < 1e-12, "{b} {c}");
        }
        assert!((mcnemar_p(5000, 5000) - 1.0).abs() < 1e-9 && mcnemar_p(3000, 2000) < 1e-40);
    }

    #[test]
    fn the_sign_flip_of_right_and_wrong_is_mcnemar() {
        let (a, b) = ([1.0; 14], [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        let got = sign_flip_p(&differences, Resampling { seed: 1, resamples: 50_000 }).unwrap();
        assert!((got - mcnemar_p(9, 0)).abs() < 0.002, "{got} against {}", mcnemar_p(9, 0));
        assert!(paired_difference(&a, &b).unwrap().unwrap().excludes(0.0));
    }
}
