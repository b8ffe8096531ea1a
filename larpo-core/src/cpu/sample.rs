//! Drawing a token from a row of logits.

use super::{par, simd};
use crate::backend::{Draw, SamplingSpec};

/// Draws one token a row of `logits (n, vocab)`.
pub fn sample(logits: &[f32], vocab: usize, spec: &SamplingSpec, uniform: &[f64]) -> Vec<Draw> {
    par::map(logits.chunks_exact(vocab).zip(uniform).collect(), |(row, &u)| sample_row(row, spec, u))
}

fn sample_row(logits: &[f32], spec: &SamplingSpec, uniform: f64) -> Draw {
    let (max, lse) = simd::dispatch(
        #[inline(always)]
        || {
            let max = simd::max(logits);
            (max, max + simd::sum_exp(logits, max).ln())
        },
    );
    let allowed = &logits[..spec.vocab_limit.min(logits.len())];
    let id = if spec.temperature == 0.0 {
        argmax(allowed)
    } else {
        let scale = (1.0 / spec.temperature) as f32;
        let mut weights = allowed.to_vec();
        simd::dispatch(
            #[inline(always)]
            || {
                let top = simd::max(&weights);
                simd::exp_sum(&mut weights, scale, top * scale)
            },
        );
        debug_assert!(max.is_finite());
        truncate(&mut weights, spec);
        draw(&weights, uniform)
    };
    Draw { id: id as u32, logp: logits[id] - lse }
}

fn argmax(x: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in x.iter().enumerate() {
        if *v > x[best] {
            best = i;
        }
    }
    best
}

/// Sets the weights that top-k, top-p and min-p leave out to zero, in that order; ties go to the lower id.
fn truncate(weights: &mut [f32], spec: &SamplingSpec) {
    let top_k = if spec.top_k == 0 { weights.len() } else { spec.top_k.min(weights.len()) };
    if top_k < weights.len() || spec.top_p < 1.0 {
        let mut order: Vec<u32> = (0..weights.len() as u32).filter(|&i| weights[i as usize] > 0.0).collect();
        let by_weight = |a: &u32, b: &u32| weights[*b as usize].total_cmp(&weights[*a as usize]).then(a.cmp(b));
        let mut keep = top_k.min(order.len());
        if keep < order.len() {
            order.select_nth_unstable_by(keep, by_weight);
            order.truncate(keep);
        }
        if spec.top_p < 1.0 {
            order.sort_unstable_by(by_weight);
            let total: f64 = order.iter().map(|&i| f64::from(weights[i as usize])).sum();
            let mut sum = 0.0;
            for (rank, &i) in order.iter().enumerate() {
                sum += f64::from(weights[i as usize]);
                if sum >= spec.top_p * total {
                    keep = rank + 1;
                    break;
                }
            }
            order.truncate(keep.max(1));
        }
        let mut kept = vec![0f32; weights.len()];
        for &i in &order {
            kept[i as usize] = weights[i as usize];
        }
        weights.copy_from_slice(&kept);
    }
    if spec.min_p > 0.0 {
        let threshold = weights.iter().fold(0f32, |m, &w| m.max(w)) * spec.min_p as f32;
        for w in weights.iter_mut().filter(|w| **w < threshold) {
            *w = 0.0;
        }
    }
}

/// The first index whose cumulative weight exceeds `uniform` times the total.
fn draw(weights: &[f32], uniform: f64) -> usize {
    let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let target = uniform * total;
    let mut sum = 0.0;
    let mut last = 0;
    for (i, &w) in weights.iter().enumerate() {
        if w > 0.0 {
            sum += f64::from(w);
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
