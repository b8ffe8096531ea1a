//! How sure a mean is.

use super::{MetricError, check_len};

/// A mean with its uncertainty.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Arithmetic mean.
    pub mean: f64,
    /// Sample standard deviation (divisor n - 1) over √n; `None` for one value.
    pub standard_error: Option<f64>,
    /// Two-sided 95 % interval of the mean, Student's t with n - 1 degrees of freedom; `None` for one value.
    pub interval: Option<(f64, f64)>,
    /// Number of values.
    pub n: usize,
}

impl Estimate {
    /// Whether the interval excludes `value`: the difference from it is significant at the 5 % level.
    pub fn excludes(&self, value: f64) -> bool {
        self.interval.is_some_and(|(low, high)| value < low || value > high)
    }
}

/// Mean, standard error and 95 % interval; `None` for no value. A NaN makes all of them NaN.
pub fn mean_estimate(values: &[f64]) -> Option<Estimate> {
    let n = values.len();
    if n == 0 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n as f64;
    let standard_error = (n > 1).then(|| {
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        (squares / (n - 1) as f64 / n as f64).sqrt()
    });
    let interval = standard_error.map(|se| {
        let half = student_t_975(n - 1) * se;
        (mean - half, mean + half)
    });
    Some(Estimate { mean, standard_error, interval, n })
}

/// The mean of `a[i] - b[i]` with its uncertainty (a paired t interval): for two systems measured on the same
/// problems, or with the same seeds. `None` for no pair.
///
/// # Errors
/// Lengths that disagree.
pub fn paired_difference(a: &[f64], b: &[f64]) -> Result<Option<Estimate>, MetricError> {
    check_len("b", b.len(), a.len())?;
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    Ok(mean_estimate(&differences))
}

/// 97.5 % quantile of Student's t, the half width of a two-sided 95 % interval in standard errors; infinite for 0
/// degrees of freedom. Accurate to 1e-6.
///
/// Up to 30 degrees of freedom from the published table, above by the expansion in 1/ν of Abramowitz and Stegun
/// 26.7.5.
pub fn student_t_975(degrees_of_freedom: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139, 2.200985,
        2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963, 2.079614, 2.073873,
        2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272,
    ];
    if degrees_of_freedom == 0 {
        return f64::INFINITY;
    }
    if let Some(&t) = TABLE.get(degrees_of_freedom - 1) {
        return t;
    }
    let z: f64 = 1.959963984540054;
    let nu = degrees_of_freedom as f64;
    let powers = |coefficients: [f64; 4]| {
        // Odd powers z, z³, z⁵, z⁷.
        coefficients.iter().rev().fold(0.0, |sum, c| sum * z * z + c) * z
    };
    z + powers([1.0, 1.0, 0.0, 0.0]) / (4.0 * nu)
        + powers([3.0, 16.0, 5.0, 0.0]) / (96.0 * nu.powi(2))
        + powers([-15.0, 17.0, 19.0, 3.0]) / (384.0 * nu.powi(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P(|T| < t) for integer degrees of freedom, the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4.
    fn two_sided(t: f64, nu: usize) -> f64 {
        let theta = (t / (nu as f64).sqrt()).atan();
        let (sin, cos) = theta.sin_cos();
        let first = if nu % 2 == 1 { 1 } else { 0 };
        let mut term = if first == 1 { cos } else { 1.0 };
        let mut sum = 0.0;
        let mut power = first;
        while power + 2 <= nu {
            sum += term;
            term *= cos * cos * (power + 1) as f64 / (power + 2) as f64;
            power += 2;
        }
        if first == 1 { std::f64::consts::FRAC_2_PI * (theta + sin * sum) } else { sin * sum }
    }

    #[test]
    fn the_quantile_cuts_off_five_percent() {
        assert!((two_sided(1.0, 1) - 0.5).abs() < 1e-15, "the Cauchy distribution's quartiles are at 1");
        for nu in (1..=200).chain([1000, 9999]) {
            let inside = two_sided(student_t_975(nu), nu);
            assert!((inside - 0.95).abs() < 2e-7, "{nu} degrees of freedom: {inside}");
        }
        assert!((student_t_975(10_000_000) - 1.959964).abs() < 1e-6);
    }

    #[test]
    fn mean_and_interval_of_five_values() {
        // Mean 3, sample variance 2.5, standard error √0.5, t(4) = 2.776445.
        let e = mean_estimate(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!((e.mean, e.n), (3.0, 5));
        assert!((e.standard_error.unwrap() - 0.5f64.sqrt()).abs() < 1e-15);
        let (low, high) = e.interval.unwrap();
        assert!((high - 3.0 - 1.963243).abs() < 1e-5 && (3.0 - low - 1.963243).abs() < 1e-5);
        assert!(e.excludes(1.0) && !e.excludes(1.1));
    }

    #[test]
    fn one_value_has_no_uncertainty_and_none_has_no_mean() {
        let e = mean_estimate(&[7.0]).unwrap();
        assert_eq!((e.mean, e.standard_error, e.interval), (7.0, None, None));
        assert!(!e.excludes(0.0));
        assert_eq!(mean_estimate(&[]), None);
    }

    #[test]
    fn a_constant_difference_has_no_spread() {
        let e = paired_difference(&[1.5, 9.5, 4.5], &[1.0, 9.0, 4.0]).unwrap().unwrap();
        assert_eq!((e.mean, e.standard_error, e.interval), (0.5, Some(0.0), Some((0.5, 0.5))));
        assert!(paired_difference(&[1.0], &[]).is_err());
    }
}
