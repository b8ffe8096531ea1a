//! Key/value cache and attention of one query row per response.
//!
//! Responses to one prompt, and the query heads that share a key head, are computed together, so that the prompt's keys and
//! values are read once for all of them. A row's result does not depend on what it is computed together with.

use super::skinny::{Rows, dots, mix};
use super::{par, scratch, simd};
use crate::backend::{AttentionSpec, Store};

/// Copies the key and value part of each row of `qkv (n, width)` to row `slots[i]` of the cache.
pub fn kv_append(qkv: &[f32], slots: &[u32], spec: &AttentionSpec, cache: &mut [f32]) {
    let (width, kv) = (spec.qkv_width(), spec.cache_width());
    for (row, &slot) in qkv.chunks_exact(width).zip(slots) {
        cache[slot as usize * kv..][..kv].copy_from_slice(&row[width - kv..]);
    }
}

/// Scores of a task: 64 KiB, which stay in a cache. A single row with a longer context has as many as it needs.
const SCORES: usize = 16 * 1024;
/// Multiplications below which the work stays on one thread: about 10 µs.
const PARALLEL: usize = 1 << 18;

/// Where the keys and values of a row lie in the cache.
#[derive(Clone, Copy, PartialEq)]
struct Span {
    prompt: usize,
    prompt_len: usize,
    own: usize,
    own_len: usize,
}

impl Span {
    fn keys(&self) -> usize {
        self.prompt_len + self.own_len
    }
}

/// Consecutive rows with the same prompt, as many as one task takes.
struct Group {
    rows: std::ops::Range<usize>,
    /// Keys of the row that sees most.
    keys: usize,
}

fn groups(spans: &[Span], heads: usize) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (row, span) in spans.iter().enumerate() {
        if let Some(group) = groups.last_mut() {
            let first = &spans[group.rows.start];
            let same = (first.prompt, first.prompt_len) == (span.prompt, span.prompt_len);
            let keys = group.keys.max(span.keys());
            if same && (group.rows.len() + 1) * heads * keys <= SCORES {
                *group = Group { rows: group.rows.start..row + 1, keys };
                continue;
            }
        }
        groups.push(Group { rows: row..row + 1, keys: span.keys() });
    }
    groups
}

/// `qkv (n, width)`, `spans (n, 4)` = prompt start and length, own start and length → `o (n, heads·head_dim)`.
pub fn decode_attention(qkv: &[f32], cache: &[f32], spans: &[u32], spec: &AttentionSpec, o: &mut [f32]) {
    let (out_width, shared) = (spec.out_width(), spec.group() * spec.head_dim);
    let spans: Vec<Span> = spans
        .chunks_exact(4)
        .map(|s| [s[0], s[1], s[2], s[3]].map(|v| v as usize))
        .map(|[prompt, prompt_len, own, own_len]| Span { prompt, prompt_len, own, own_len })
        .collect();
    let mut tasks = Vec::new();
    let mut rest = o;
    for group in groups(&spans, spec.group()) {
        let (rows, after) = rest.split_at_mut(group.rows.len() * out_width);
        rest = after;
        for (head, o) in par::columns(rows, out_width, shared).into_iter().enumerate() {
            tasks.push(Task { qkv, cache, spec, spans: &spans[group.rows.clone()], first: group.rows.start, head, o });
        }
    }
    let work: usize = spans.iter().map(|span| 2 * span.keys() * out_width).sum();
    if work < PARALLEL {
        tasks.into_iter().for_each(Task::run);
    } else {
        par::each(tasks, Task::run);
    }
}

/// The query heads of one key head, in rows with one prompt.
struct Task<'a, 'o> {
    qkv: &'a [f32],
    cache: &'a [f32],
    spec: &'a AttentionSpec,
    spans: &'a [Span],
    /// Number of the first row.
    first: usize,
    /// The key head.
    head: usize,
    /// `(rows)` of `(group·head_dim)` each.
    o: Vec<&'o mut [f32]>,
}

impl Task<'_, '_> {
    fn run(self) {
        let Self { qkv, cache, spec, spans, first, head, o } = self;
        let (d, width, kv, group) = (spec.head_dim, spec.qkv_width(), spec.cache_width(), spec.group());
        let rows = |start: usize, len: usize, offset: usize| {
            let data = if len == 0 { &[] } else { &cache[start * kv + offset..] };
            Rows { data, len, width: d, stride: kv }
        };
        let (keys, values) = (head * d, kv / 2 + head * d);
        let q: Vec<&[f32]> = (first..first + spans.len())
            .flat_map(|row| qkv[row * width + head * group * d..][..group * d].chunks_exact(d))
            .collect();
        let mut o: Vec<&mut [f32]> = o.into_iter().flat_map(|row| row.chunks_exact_mut(d)).collect();
        let longest = spans.iter().map(Span::keys).max().unwrap_or(0);
        let Span { prompt, prompt_len, .. } = spans[0];
        // Keys that a row does not see are never read.
        scratch::with(q.len() * longest, |scores| {
            {
                let mut shared = Vec::with_capacity(q.len());
                let mut own = Vec::with_capacity(q.len());
                for row in scores.chunks_exact_mut(longest) {
                    let (left, right) = row.split_at_mut(prompt_len);
                    shared.push(left);
                    own.push(right);
                }
                dots(&q, rows(prompt, prompt_len, keys), &mut shared, Store::Set);
                for ((q, own), span) in q.chunks(group).zip(own.chunks_mut(group)).zip(spans) {
                    dots(q, rows(span.own, span.own_len, keys), own, Store::Set);
                }
            }
            // Capped scores are scaled already.
            let (scale, softcap) = (spec.scale as f32, spec.softcap.map(|c| c as f32));
            let mut inverse = vec![0f32; q.len()];
            simd::dispatch(
                #[inline(always)]
                || {
                    for (i, (row, inverse)) in scores.chunks_exact_mut(longest).zip(&mut inverse).enumerate() {
                        let row = &mut row[..spans[i / group].keys()];
                        let scale = match softcap {
                            None => scale,
                            Some(c) => {
                                row.iter_mut().for_each(|s| *s = simd::softcap(c, *s * scale).0);
                                1.0
                            }
                        };
                        let max = simd::max(row);
                        *inverse = 1.0 / simd::exp_sum(row, scale, max * scale);
                    }
                },
            );
            let (shared, own): (Vec<&[f32]>, Vec<&[f32]>) =
                scores.chunks_exact(longest).map(|row| row.split_at(prompt_len)).unzip();
            mix(&shared, rows(prompt, prompt_len, values), &mut o, Store::Set);
            for ((p, o), span) in own.chunks(group).zip(o.chunks_mut(group)).zip(spans) {
                mix(p, rows(span.own, span.own_len, values), o, Store::Add);
            }
            for (o, inverse) in o.into_iter().zip(inverse) {
                o.iter_mut().for_each(|o| *o *= inverse);
            }
        });
    }
}
