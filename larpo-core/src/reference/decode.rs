//! Decoding in plain `f64` loops.

use super::rows::{log_sum_exp, softcap};
use crate::backend::{AttentionSpec, Draw, SamplingSpec};

pub fn kv_append(qkv: &[f64], slots: &[u32], spec: &AttentionSpec, cache: &mut [f64]) {
    let (width, kv) = (spec.qkv_width(), spec.cache_width());
    for (n, &slot) in slots.iter().enumerate() {
        for c in 0..kv {
            cache[slot as usize * kv + c] = qkv[n * width + width - kv + c];
        }
    }
}

pub fn decode_attention(qkv: &[f64], cache: &[f64], spans: &[u32], spec: &AttentionSpec, o: &mut [f64]) {
    let (d, width, kv) = (spec.head_dim, spec.qkv_width(), spec.cache_width());
    for (n, span) in spans.chunks(4).enumerate() {
        let seen: Vec<usize> =
            (span[0]..span[0] + span[1]).chain(span[2]..span[2] + span[3]).map(|r| r as usize).collect();
        for h in 0..spec.heads {
            let head = h / spec.group();
            let score = |j: usize| -> f64 {
                (0..d).map(|c| qkv[n * width + h * d + c] * cache[j * kv + head * d + c]).sum::<f64>() * spec.scale
            };
            let scores: Vec<f64> = seen.iter().map(|&j| softcap(spec.softcap, score(j)).0).collect();
            let lse = log_sum_exp(&scores);
            for c in 0..d {
                let value = |j: usize| cache[j * kv + (spec.kv_heads + head) * d + c];
                o[(n * spec.heads + h) * d + c] =
                    seen.iter().zip(&scores).map(|(&j, s)| (s - lse).exp() * value(j)).sum();
            }
        }
    }
}

/// Sorts the whole vocabulary, truncates by definition, and inverts the cumulative distribution in id order.
pub fn sample(logits: &[f64], spec: &SamplingSpec, uniform: f64) -> Draw {
    let lse = log_sum_exp(logits);
    let allowed = &logits[..spec.vocab_limit.min(logits.len())];
    let mut order: Vec<usize> = (0..allowed.len()).collect();
    order.sort_by(|&a, &b| allowed[b].total_cmp(&allowed[a]).then(a.cmp(&b)));
    if spec.temperature == 0.0 {
        return Draw { id: order[0] as u32, logp: (logits[order[0]] - lse) as f32 };
    }
    if spec.top_k > 0 {
        order.truncate(spec.top_k);
    }
    let weight = |i: usize| ((allowed[i] - allowed[order[0]]) / spec.temperature).exp();
    let total: f64 = order.iter().map(|&i| weight(i)).sum();
    let mut kept = Vec::new();
    let mut sum = 0.0;
    for &i in &order {
        kept.push(i);
        sum += weight(i);
        if spec.top_p < 1.0 && sum >= spec.top_p * total {
            break;
        }
    }
    kept.retain(|&i| weight(i) >= spec.min_p);
    kept.sort_unstable();
    let total: f64 = kept.iter().map(|&i| weight(i)).sum();
    let mut sum = 0.0;
    for &i in &kept {
        sum += weight(i);
        if sum > uniform * total {
            return Draw { id: i as u32, logp: (logits[i] - lse) as f32 };
        }
    }
    let last = *kept.last().expect("the most probable token is always kept");
    Draw { id: last as u32, logp: (logits[last] - lse) as f32 }
}
