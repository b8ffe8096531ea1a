//! Numbers for people: one form in tables and pages.

/// A number with about four digits, very small and very large ones with an exponent.
pub fn number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => value.to_string(),
        0.0 => "0".into(),
        a if !(1e-3..1e6).contains(&a) => format!("{value:.2e}"),
        a => {
            let decimals = (3 - a.log10().floor() as i32).clamp(0, 6) as usize;
            let text = format!("{value:.decimals$}");
            match text.contains('.') {
                true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
                false => text,
            }
        }
    }
}

/// How to show the numbers of a column: all with as many decimals as the largest of `values` has in [`number`].
pub fn alike(values: impl Iterator<Item = f64>) -> impl Fn(f64) -> String {
    let largest = values.filter(|value| value.is_finite()).map(f64::abs).fold(0.0, f64::max);
    let decimals = (1e-3..1e6).contains(&largest).then(|| (3 - largest.log10().floor() as i32).clamp(0, 6) as usize);
    move |value| match decimals {
        Some(decimals) if value.is_finite() => fixed(value, decimals),
        _ => number(value),
    }
}

/// A number with so many decimals, without the sign of one that rounds to zero.
pub fn fixed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| c == '0' || c == '.') => rest.into(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rounds_to_zero_has_no_sign() {
        let shown = [-0.0004, -0.0, 0.0004, -0.0006, -1.0, f64::NEG_INFINITY].map(|value| fixed(value, 3));
        assert_eq!(shown, ["0.000", "0.000", "0.000", "-0.001", "-1.000", "-inf"]);
    }

    #[test]
    fn numbers_of_a_column_have_the_same_decimals() {
        let column = |values: &[f64]| {
            let show = alike(values.iter().copied());
            values.iter().map(|&value| show(value)).collect::<Vec<_>>()
        };
        assert_eq!(column(&[0.25, 0.123456, -0.00001, 0.0]), ["0.2500", "0.1235", "0.0000", "0.0000"]);
        assert_eq!(column(&[12.5, 0.125, f64::NAN]), ["12.50", "0.12", "NaN"]);
        assert_eq!(column(&[5e-5, 0.0]), ["5.00e-5", "0"]);
    }

    #[test]
    fn numbers_have_about_four_digits() {
        let shown = [0.0, 1.0, 16.0, 0.123456, 12.3456, 123456.0, 2.5e7, 5e-5, -0.25, f64::NAN].map(number);
        assert_eq!(shown, ["0", "1", "16", "0.1235", "12.35", "123456", "2.50e7", "5.00e-5", "-0.25", "NaN"]);
    }
}
