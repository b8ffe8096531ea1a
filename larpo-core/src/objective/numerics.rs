//! Scalar functions that stay exact for arguments of any size.
//!
//! The losses are compositions of `softplus` and `log_sum_exp`; nothing here forms `log(sigmoid(x))` or
//! `1 - sigmoid(x)`, which overflow or cancel.

/// `log(1 + e^x)`, computed as `max(x, 0) + log1p(e^-|x|)`. `softplus(inf) = inf`, `softplus(-inf) = 0`.
pub fn softplus(x: f64) -> f64 {
    // `f64::max` drops a NaN, the second term keeps it.
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `log σ(x) = -softplus(-x)`.
pub fn log_sigmoid(x: f64) -> f64 {
    -softplus(-x)
}

/// `σ(x) = 1 / (1 + e^-x)`, from `e^-|x|` so that neither tail overflows.
pub fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

/// `log(e^a + e^b)`; `-inf` is the neutral element.
pub fn logaddexp(a: f64, b: f64) -> f64 {
    if a == b {
        // Also covers two equal infinities, whose difference would be NaN.
        return a + std::f64::consts::LN_2;
    }
    a.max(b) + (-(a - b).abs()).exp().ln_1p()
}

/// `log Σ e^x` with the maximum subtracted; `-inf` for no values or when every value is `-inf`.
/// Masked items are to be left out of the iterator, not passed as `-inf`.
pub fn log_sum_exp<I>(values: I) -> f64
where
    I: Iterator<Item = f64> + Clone,
{
    let max = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY && !values.clone().any(f64::is_nan) {
        return max;
    }
    max + values.map(|x| (x - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INF: f64 = f64::INFINITY;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-15 + 1e-14 * b.abs(), "{a} is not {b}");
    }

    #[test]
    fn softplus_at_zero_in_the_tails_and_at_infinity() {
        close(softplus(0.0), std::f64::consts::LN_2);
        close(softplus(1e3), 1e3);
        close(softplus(-40.0), (-40.0f64).exp());
        assert_eq!((softplus(INF), softplus(-INF)), (INF, 0.0));
        assert!(softplus(f64::NAN).is_nan());
        close(log_sigmoid(-1e30), -1e30);
        close(log_sigmoid(3.0), sigmoid(3.0).ln());
    }

    #[test]
    fn sigmoid_keeps_both_tails() {
        assert_eq!((sigmoid(0.0), sigmoid(INF), sigmoid(-INF)), (0.5, 1.0, 0.0));
        close(sigmoid(-700.0), (-700.0f64).exp());
        for x in [-3.0, -0.1, 0.7, 12.0] {
            close(sigmoid(x) + sigmoid(-x), 1.0);
        }
        assert!(sigmoid(f64::NAN).is_nan());
    }

    #[test]
    fn log_sums_agree_with_their_definition_and_survive_infinities() {
        close(logaddexp(0.3, -1.2), (0.3f64.exp() + (-1.2f64).exp()).ln());
        close(logaddexp(1e3, 1e3), 1e3 + std::f64::consts::LN_2);
        assert_eq!(logaddexp(-INF, 2.0), 2.0);
        assert_eq!(logaddexp(-INF, -INF), -INF);
        assert_eq!(logaddexp(INF, INF), INF);
        let x = [0.1, -2.0, 1.7];
        let direct = x.iter().map(|v: &f64| v.exp()).sum::<f64>().ln();
        close(log_sum_exp(x.into_iter()), direct);
        close(log_sum_exp([1e30, -1e30].into_iter()), 1e30);
        assert_eq!(log_sum_exp([-INF, -INF].into_iter()), -INF);
        assert_eq!(log_sum_exp(std::iter::empty()), -INF);
        assert!(log_sum_exp([f64::NAN, 0.0].into_iter()).is_nan());
        assert!(log_sum_exp([f64::NAN, -INF].into_iter()).is_nan());
    }
}
