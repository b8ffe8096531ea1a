//! How long things are: a few numbers and a histogram.

use crate::messages::count;
use serde_json::{Value, json};
use std::fmt::Write;

const BINS: usize = 10;
/// Widest bar in characters.
const BAR: usize = 40;

/// A sample of lengths.
#[derive(Debug, PartialEq)]
pub(super) struct Spread {
    sorted: Vec<usize>,
    /// Width of a bin.
    width: usize,
    /// Lower end of the first bin, a multiple of the width.
    first: usize,
    /// Lengths in each bin: bin i holds first + i·width up to first + (i+1)·width − 1.
    bins: Vec<usize>,
}

impl Spread {
    /// `None` where there is nothing.
    pub(super) fn of(values: impl Iterator<Item = usize>) -> Option<Self> {
        let mut sorted: Vec<usize> = values.collect();
        sorted.sort_unstable();
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let width = round_up((max - min + 1).div_ceil(BINS));
        let first = min / width * width;
        let mut bins = vec![0; (max - first) / width + 1];
        sorted.iter().for_each(|value| bins[(value - first) / width] += 1);
        Some(Self { sorted, width, first, bins })
    }

    /// The least value that at least this share of all values does not exceed (nearest rank).
    fn quantile(&self, share: f64) -> usize {
        let rank = (share * self.sorted.len() as f64).ceil() as usize;
        self.sorted[rank.clamp(1, self.sorted.len()) - 1]
    }

    fn mean(&self) -> f64 {
        self.sorted.iter().map(|&value| value as f64).sum::<f64>() / self.sorted.len() as f64
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "count": self.sorted.len(),
            "min": self.sorted[0],
            "median": self.quantile(0.5),
            "mean": self.mean(),
            "p95": self.quantile(0.95),
            "p99": self.quantile(0.99),
            "max": self.quantile(1.0),
            "bin_width": self.width,
            "bins_from": self.first,
            "bins": self.bins,
        })
    }

    pub(super) fn show(&self, name: &str) -> String {
        let mut text = format!(
            "{name}: {}, min {}, median {}, mean {:.1}, 95 % up to {}, 99 % up to {}, max {}",
            count(self.sorted.len(), "values"),
            self.sorted[0],
            self.quantile(0.5),
            self.mean(),
            self.quantile(0.95),
            self.quantile(0.99),
            self.quantile(1.0)
        );
        let most = self.bins.iter().copied().max().unwrap_or(1).max(1);
        let digits = (self.first + self.bins.len() * self.width).to_string().len();
        for (i, &count) in self.bins.iter().enumerate() {
            let low = self.first + i * self.width;
            let high = low + self.width - 1;
            // Nothing that is there is invisible.
            let bar = "#".repeat((count * BAR).div_ceil(most));
            let _ = write!(text, "\n  {low:>digits$} to {high:>digits$}  {bar:<BAR$}  {count}");
        }
        text
    }
}

/// 1, 2 or 5 times a power of ten, at least `n`.
fn round_up(n: usize) -> usize {
    let mut power = 1usize;
    loop {
        for factor in [1, 2, 5] {
            match power.checked_mul(factor) {
                Some(width) if width >= n => return width,
                Some(_) => {}
                None => return n,
            }
        }
        power = match power.checked_mul(10) {
            Some(power) => power,
            None => return n,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks_and_bins_hold_everything() {
        let spread = Spread::of((0..=100).rev()).expect("values");
        assert_eq!((spread.quantile(0.5), spread.quantile(0.95), spread.quantile(1.0)), (50, 95, 100));
        assert_eq!((spread.width, &spread.bins[..]), (20, &[20, 20, 20, 20, 20, 1][..]));
        assert_eq!(Spread::of(std::iter::empty()), None);
        let one = Spread::of([0].into_iter()).expect("a value");
        assert_eq!((one.width, &one.bins[..], one.quantile(0.0)), (1, &[1][..], 0));
        assert_eq!([1, 2, 3, 11, 50, 51].map(round_up), [1, 2, 5, 20, 50, 100]);
        assert_eq!(round_up(usize::MAX), usize::MAX);
        let lines: Vec<String> = spread.show("x").lines().map(str::to_string).collect();
        assert_eq!(lines[6], format!("  100 to 119  {:<40}  1", "##"));
        // Nothing is shown of lengths below the least one.
        let long = Spread::of([512, 530, 541].into_iter()).expect("values");
        assert_eq!((long.width, long.first, &long.bins[..]), (5, 510, &[1, 0, 0, 0, 1, 0, 1][..]));
        assert!(long.show("x").lines().nth(1).is_some_and(|line| line.starts_with("  510 to 514  #")));
    }
}
