//! Key/value cache and attention of one query row per response.

use super::{par, simd};
use crate::backend::AttentionSpec;

/// Copies the key and value part of each row of `qkv (n, width)` to row `slots[i]` of the cache.
pub fn kv_append(qkv: &[f32], slots: &[u32], spec: &AttentionSpec, cache: &mut [f32]) {
    let (width, kv) = (spec.qkv_width(), spec.cache_width());
    for (row, &slot) in qkv.chunks_exact(width).zip(slots) {
        cache[slot as usize * kv..][..kv].copy_from_slice(&row[width - kv..]);
    }
}

/// `qkv (n, width)`, `spans (n, 4)` = prompt start and length, own start and length → `o (n, heads·head_dim)`.
pub fn decode_attention(qkv: &[f32], cache: &[f32], spans: &[u32], spec: &AttentionSpec, o: &mut [f32]) {
    let (d, width, kv, group) = (spec.head_dim, spec.qkv_width(), spec.cache_width(), spec.group());
    let scale = spec.scale as f32;
    let out_width = spec.out_width();
    let n = spans.len() / 4;
    let block = n.div_ceil(par::threads() * 2).max(1);
    let tasks: Vec<_> = o
        .chunks_mut(block * out_width)
        .zip(qkv.chunks(block * width))
        .zip(spans.chunks(block * 4))
        .map(|((o, qkv), spans)| (o, qkv, spans))
        .collect();
    par::each(tasks, |(o, qkv, spans)| {
        let longest = spans.chunks_exact(4).map(|s| (s[1] + s[3]) as usize).max().unwrap_or(0);
        let mut scores = vec![0f32; spec.heads * longest];
        simd::dispatch(
            #[inline(always)]
            || {
                let rows = o.chunks_exact_mut(out_width).zip(qkv.chunks_exact(width)).zip(spans.chunks_exact(4));
                for ((o, q), span) in rows {
                    let [prompt, prompt_len, own, own_len] = [span[0], span[1], span[2], span[3]].map(|v| v as usize);
                    let total = prompt_len + own_len;
                    let prompt_rows = &cache[prompt * kv..(prompt + prompt_len) * kv];
                    let own_rows = &cache[own * kv..(own + own_len) * kv];
                    for (j, row) in prompt_rows.chunks_exact(kv).chain(own_rows.chunks_exact(kv)).enumerate() {
                        for (h, q) in q[..out_width].chunks_exact(d).enumerate() {
                            scores[h * total + j] = simd::dot(q, &row[h / group * d..][..d]) * scale;
                        }
                    }
                    o.fill(0.0);
                    for scores in scores[..spec.heads * total].chunks_exact_mut(total) {
                        let max = simd::max(scores);
                        let inverse = 1.0 / simd::exp_sum(scores, 1.0, max);
                        for s in scores.iter_mut() {
                            *s *= inverse;
                        }
                    }
                    for (j, row) in prompt_rows.chunks_exact(kv).chain(own_rows.chunks_exact(kv)).enumerate() {
                        let values = &row[kv / 2..];
                        for (h, o) in o.chunks_exact_mut(d).enumerate() {
                            let weight = scores[h * total + j];
                            for (o, v) in o.iter_mut().zip(&values[h / group * d..][..d]) {
                                *o += weight * v;
                            }
                        }
                    }
                }
            },
        );
    });
}
