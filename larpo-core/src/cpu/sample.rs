//! Drawing a token from a row of logits.
//!
//! One pass over the logits gives the sum of exponentials of every [`BLOCK`], relative to the block's own maximum. A token
//! is drawn from the sums first and inside one block then, so weights are never kept for the whole vocabulary.

use super::{par, scratch, simd};
use crate::backend::{Draw, SamplingSpec};

/// Logits that are summed together.
const BLOCK: usize = 256;
/// Logits below which all rows stay on one thread: about 10 µs.
const PARALLEL: usize = 32 * 1024;

/// Draws one token a row of `logits (n, vocab)`.
pub fn sample(logits: &[f32], vocab: usize, spec: &SamplingSpec, uniform: &[f64]) -> Vec<Draw> {
    let rows = logits.chunks_exact(vocab).zip(uniform);
    if logits.len() < PARALLEL {
        return rows.map(|(row, &u)| sample_row(row, spec, u)).collect();
    }
    par::map(rows.collect(), |(row, &u)| sample_row(row, spec, u))
}

/// The exponentials of some logits, `exp(scale·x)`.
struct Sums<'a> {
    logits: &'a [f32],
    scale: f32,
    /// The maximum of each block's logits, and the sum of its exponentials over that of the maximum.
    blocks: Vec<(f32, f32)>,
    /// Largest logit.
    max: f32,
}

/// The largest logit of a block, and the sum of the exponentials over its own.
#[inline(always)]
fn exponentials(block: &[f32], scale: f32) -> (f32, f32) {
    let max = simd::max(block);
    // Where nothing is larger than -inf, infinities do not turn into what is not a number.
    let shift = if max > f32::NEG_INFINITY { max } else { 0.0 };
    (max, simd::sum_map(block, |x| simd::exp((x - shift) * scale)))
}

impl<'a> Sums<'a> {
    fn new(logits: &'a [f32], scale: f32) -> Self {
        let mut blocks = vec![(0f32, 0f32); logits.len().div_ceil(BLOCK)];
        simd::dispatch(
            #[inline(always)]
            || {
                // A loop: the closures of an iterator would be compiled for the baseline.
                for (block, sums) in logits.chunks(BLOCK).zip(&mut blocks) {
                    *sums = exponentials(block, scale);
                }
            },
        );
        let max = blocks.iter().fold(f32::NEG_INFINITY, |max, b| if b.0 > max { b.0 } else { max });
        Self { logits, scale, blocks, max }
    }

    /// The exponential of a logit over that of the largest.
    fn weight(&self, logit: f32) -> f64 {
        (f64::from(logit - self.max) * f64::from(self.scale)).exp()
    }

    /// Every block's sum over the exponential of the largest logit.
    fn block_weights(&self) -> impl Iterator<Item = f64> + '_ {
        self.blocks.iter().map(|&(max, sum)| f64::from(sum) * self.weight(max))
    }

    /// The sum of all exponentials over the largest.
    fn total(&self) -> f64 {
        self.block_weights().sum()
    }

    /// First id with the largest logit.
    fn argmax(&self) -> usize {
        let block = self.blocks.iter().position(|b| b.0 == self.max).unwrap_or(0);
        let logits = self.logits[block * BLOCK..].iter();
        block * BLOCK + logits.take(BLOCK).position(|&x| x == self.max).unwrap_or(0)
    }

    /// The first id whose cumulative weight exceeds `uniform` times the total.
    fn draw(&self, uniform: f64) -> usize {
        let mut target = uniform * self.total();
        let mut last = 0;
        for (block, weight) in self.block_weights().enumerate() {
            if weight > 0.0 {
                last = block;
                if weight > target {
                    break;
                }
                target -= weight;
            }
        }
        // The same place inside the block, whose weights are added up once more, one by one.
        let (max, sum) = self.blocks[last];
        let logits = &self.logits[last * BLOCK..];
        let logits = &logits[..logits.len().min(BLOCK)];
        let mut weights = [0f32; BLOCK];
        simd::dispatch(
            #[inline(always)]
            || {
                for (w, &x) in weights.iter_mut().zip(logits) {
                    *w = simd::exp((x - max) * self.scale);
                }
            },
        );
        let weights = &weights[..logits.len()];
        let share = target / (f64::from(sum) * self.weight(max));
        last * BLOCK + draw(weights.iter().map(|&w| f64::from(w)), share)
    }

    /// Puts the ids that top-k, top-p and min-p keep, in that order, into `ids`, ascending; ties go to the lower id.
    fn keep(&self, spec: &SamplingSpec, ids: &mut Vec<u32>) {
        let top_k = if spec.top_k == 0 { self.logits.len() } else { spec.top_k.min(self.logits.len()) };
        let all = top_k == self.logits.len();
        let cutoff = match all {
            // What is below cannot matter: all of it together falls short of 1 - top_p, or of min_p. A little below that,
            // so that rounding takes nothing away.
            true => {
                let small = (1.0 - spec.top_p) * self.total() / self.logits.len() as f64;
                let smallest = if spec.top_p < 1.0 { small } else { spec.min_p };
                self.max + ((smallest * 0.999).ln() / f64::from(self.scale)) as f32
            }
            // As many blocks reach this as there are tokens to keep.
            false => self.block_maximum(top_k),
        };
        self.at_least(cutoff, ids);
        let order = |a: &u32, b: &u32| {
            let (x, y) = (self.logits[*a as usize], self.logits[*b as usize]);
            y.total_cmp(&x).then(a.cmp(b))
        };
        if ids.len() > top_k {
            ids.select_nth_unstable_by(top_k, order);
            ids.truncate(top_k);
        }
        let weight = |id: &u32| self.weight(self.logits[*id as usize]);
        if spec.top_p < 1.0 {
            let total = if all { self.total() } else { ids.iter().map(&weight).sum() };
            let keep = nucleus(ids, spec.top_p * total, weight, order);
            ids.truncate(keep);
        }
        ids.retain(|id| weight(id) >= spec.min_p);
        ids.sort_unstable();
    }

    /// The `rank`-th largest maximum of a block, or -inf.
    fn block_maximum(&self, rank: usize) -> f32 {
        let mut maxima: Vec<f32> = self.blocks.iter().map(|b| b.0).collect();
        match maxima.len() >= rank {
            true => *maxima.select_nth_unstable_by(rank - 1, |a, b| b.total_cmp(a)).1,
            false => f32::NEG_INFINITY,
        }
    }

    /// Adds the ids whose logits are not below `cutoff`.
    fn at_least(&self, cutoff: f32, ids: &mut Vec<u32>) {
        for ((block, logits), (max, _)) in self.logits.chunks(BLOCK).enumerate().zip(&self.blocks) {
            if *max >= cutoff {
                let first = (block * BLOCK) as u32;
                ids.extend((first..).zip(logits).filter(|(_, x)| **x >= cutoff).map(|(id, _)| id));
            }
        }
    }
}

/// Moves the fewest ids that reach `target` by weight to the front, the largest first taken, and returns their number: at
/// least one, all where they fall short. Halves what is left by selection, so nothing is sorted.
fn nucleus(
    ids: &mut [u32],
    mut target: f64,
    weight: impl Fn(&u32) -> f64,
    order: impl Fn(&u32, &u32) -> std::cmp::Ordering,
) -> usize {
    // The largest `low` ids do not reach the target, the largest `high` do (or are all).
    let (mut low, mut high) = (0, ids.len());
    while high - low > 1 {
        let half = (high - low) / 2;
        let rest = &mut ids[low..high];
        rest.select_nth_unstable_by(half, &order);
        let sum: f64 = rest[..half].iter().map(&weight).sum();
        if sum >= target {
            high = low + half;
        } else {
            target -= sum;
            low += half;
        }
    }
    high
}

fn sample_row(logits: &[f32], spec: &SamplingSpec, uniform: f64) -> Draw {
    let all = Sums::new(logits, 1.0);
    let lse = f64::from(all.max) + all.total().ln();
    let limit = spec.vocab_limit.min(logits.len());
    let scale = if spec.temperature == 0.0 { 1.0 } else { (1.0 / spec.temperature) as f32 };
    let tempered = if limit < logits.len() || scale != 1.0 { Sums::new(&logits[..limit], scale) } else { all };
    let truncated = (1..limit).contains(&spec.top_k) || spec.top_p < 1.0 || spec.min_p > 0.0;
    let id = if spec.temperature == 0.0 {
        tempered.argmax()
    } else if truncated {
        scratch::with_ids(|kept| {
            tempered.keep(spec, kept);
            let weights = kept.iter().map(|&id| tempered.weight(logits[id as usize]));
            kept.get(draw(weights, uniform)).map_or(0, |&id| id as usize)
        })
    } else {
        tempered.draw(uniform)
    };
    Draw { id: id as u32, logp: (f64::from(logits[id]) - lse) as f32 }
}

/// The first index whose cumulative weight exceeds `uniform` times the total.
fn draw(weights: impl Iterator<Item = f64> + Clone, uniform: f64) -> usize {
    let target = uniform * weights.clone().sum::<f64>();
    let mut sum = 0.0;
    let mut last = 0;
    for (i, w) in weights.enumerate() {
        if w > 0.0 {
            sum += w;
            last = i;
            if sum > target {
                return i;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: SamplingSpec =
        SamplingSpec { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, vocab_limit: usize::MAX };

    fn counts(spec: SamplingSpec, logits: &[f32]) -> Vec<usize> {
        let n = 20_000;
        let mut counts = vec![0; logits.len()];
        for i in 0..n {
            counts[sample_row(logits, &spec, (f64::from(i) + 0.5) / f64::from(n)).id as usize] += 1;
        }
        counts
    }

    #[test]
    fn frequencies_follow_the_tempered_softmax() {
        let logits = [0.3f32, -1.0, 2.0, 0.0];
        for temperature in [0.5, 1.0, 2.0] {
            let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / temperature).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (count, w) in counts(SamplingSpec { temperature, ..PLAIN }, &logits).iter().zip(&weights) {
                assert!((*count as f64 / 20_000.0 - w / total).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn truncation_keeps_the_named_tokens() {
        let logits = [0.0f32, 3.0, 1.0, 2.0, 1.0];
        let kept = |spec| counts(spec, &logits).iter().map(|&c| c > 0).collect::<Vec<_>>();
        assert_eq!(kept(SamplingSpec { top_k: 3, ..PLAIN }), [false, true, true, true, false]);
        // Probabilities .610 .224 .083 .083 — 0.8 needs two tokens.
        assert_eq!(kept(SamplingSpec { top_p: 0.8, ..PLAIN }), [false, true, false, true, false]);
        assert_eq!(kept(SamplingSpec { min_p: 0.3, ..PLAIN }), [false, true, false, true, false]);
        assert_eq!(kept(SamplingSpec { vocab_limit: 1, ..PLAIN }), [true, false, false, false, false]);
        assert_eq!(kept(SamplingSpec { temperature: 0.0, ..PLAIN }), [false, true, false, false, false]);
    }

    #[test]
    fn log_probability_is_untempered_and_untruncated() {
        let logits = [0.0f32, 1.0, 2.0];
        let lse = (1.0 + 1f64.exp() + 2f64.exp()).ln();
        let draw = sample_row(&logits, &SamplingSpec { temperature: 0.1, top_k: 1, ..PLAIN }, 0.5);
        assert_eq!(draw.id, 2);
        assert!((f64::from(draw.logp) - (2.0 - lse)).abs() < 1e-6);
    }
}
