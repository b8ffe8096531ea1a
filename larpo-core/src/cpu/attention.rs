//! Causal attention over packed lists: the prompt's keys and values are shared by all responses of a list.
//!
//! Work is split by (list, key head). Inside, every segment is walked in blocks of query rows; a block's scores are one
//! small matrix `[prefix | own rows so far]` that stays in the cache, so nothing of size rows × rows is ever kept.

use super::matmul::{Threads, matmul};
use super::{par, scratch, simd};
use crate::backend::{AttentionSpec, Segment, Store};
use ndarray::{ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis, s};

/// Query rows per block.
const BLOCK: usize = 64;

/// Consecutive segments that share a prefix.
struct List {
    rows: std::ops::Range<usize>,
    segments: Vec<Segment>,
}

fn lists(segments: &[u32]) -> Vec<List> {
    let mut lists: Vec<List> = Vec::new();
    for segment in Segment::parse(segments) {
        let rows = segment.start as usize..(segment.start + segment.len) as usize;
        match lists.last_mut() {
            Some(list) if list.segments[0].prefix_start == segment.prefix_start => {
                list.rows.end = rows.end;
                list.segments.push(segment);
            }
            _ => lists.push(List { rows, segments: vec![segment] }),
        }
    }
    lists
}

/// One block of query rows: where it lies and what it sees, in rows relative to its list.
struct QueryBlock {
    /// Query rows.
    rows: std::ops::Range<usize>,
    /// Keys of the prefix, then keys of the own segment up to the last query row; without those that no row sees.
    prefix: std::ops::Range<usize>,
    own: std::ops::Range<usize>,
    window: usize,
}

impl QueryBlock {
    fn keys(&self) -> usize {
        self.prefix.len() + self.own.len()
    }

    /// Keys that query row `i` of the block sees, among those of the block.
    fn visible(&self, i: usize) -> std::ops::Range<usize> {
        let end = self.keys() - (self.rows.len() - 1 - i);
        end.saturating_sub(self.window)..end
    }
}

impl List {
    fn blocks(&self, window: Option<usize>) -> impl Iterator<Item = QueryBlock> + '_ {
        let window = window.unwrap_or(usize::MAX);
        let base = self.rows.start;
        self.segments.iter().flat_map(move |s| {
            let start = s.start as usize - base;
            let end = start + s.len as usize;
            // `prefix_start` lies before the list where nothing precedes it; an empty prefix is an empty range.
            let prefix = match s.prefix_len as usize {
                0 => 0..0,
                len => s.prefix_start as usize - base..s.prefix_start as usize - base + len,
            };
            (start..end).step_by(BLOCK).map(move |first| {
                let last = (first + BLOCK).min(end);
                // Keys are counted from the start of the prefix; the first row sees this many.
                let hidden = (prefix.len() + first + 1 - start).saturating_sub(window);
                let of_prefix = hidden.min(prefix.len());
                QueryBlock {
                    rows: first..last,
                    prefix: prefix.start + of_prefix..prefix.end,
                    own: start + hidden - of_prefix..last,
                    window,
                }
            })
        })
    }

    fn max_keys(&self, window: Option<usize>) -> usize {
        self.blocks(window).map(|b| b.keys()).max().unwrap_or(0)
    }
}

/// Floats of scratch that a thread needs for [`attention_grad`]; [`attention`] needs half.
pub fn scratch_len(segments: &[u32], window: Option<usize>) -> usize {
    lists(segments).iter().map(|list| 2 * BLOCK * list.max_keys(window)).max().unwrap_or(0)
}

/// Splits `x (n, heads, d)` into the rows of each list, and those into heads.
fn split_mut<'a>(x: &'a mut [f32], lists: &[List], heads: usize, d: usize) -> Vec<Vec<ArrayViewMut2<'a, f32>>> {
    let rows = x.len() / (heads * d);
    let mut rest = ArrayViewMut3::from_shape((rows, heads, d), x).expect("attention: rows · heads · head_dim floats");
    let mut result = Vec::with_capacity(lists.len());
    for list in lists {
        let (part, after) = rest.split_at(Axis(0), list.rows.len());
        rest = after;
        let mut heads_of_list = Vec::with_capacity(heads);
        let mut part = part;
        for _ in 0..heads {
            let (head, others) = part.split_at(Axis(1), 1);
            heads_of_list.push(head.remove_axis(Axis(1)));
            part = others;
        }
        result.push(heads_of_list);
    }
    result
}

fn heads(x: &[f32], heads: usize, d: usize) -> ArrayView3<'_, f32> {
    let rows = x.len() / (heads * d);
    ArrayView3::from_shape((rows, heads, d), x).expect("attention: rows · heads · head_dim floats")
}

fn head_of<'a>(x: &ArrayView3<'a, f32>, rows: &std::ops::Range<usize>, head: usize) -> ArrayView2<'a, f32> {
    (*x).slice_move(s![rows.clone(), head, ..])
}

/// `scores (rows, keys) = alpha · q · [k_prefix; k_own]ᵀ`.
fn scores(alpha: f32, q: ArrayView2<f32>, k: &ArrayView2<f32>, block: &QueryBlock, out: &mut [f32]) {
    let (keys, p) = (block.keys(), block.prefix.len());
    let mut out = super::matmul::view_mut(out, block.rows.len(), keys);
    for (from, columns) in [(&block.prefix, 0..p), (&block.own, p..keys)] {
        if !from.is_empty() {
            let k = k.slice(s![from.clone(), ..]);
            matmul(alpha, q, k.t(), out.slice_mut(s![.., columns]), Store::Set, Threads::One);
        }
    }
}

/// `qkv (n, width) -> o (n, heads·head_dim), lse (n, heads)`.
pub fn attention(qkv: &[f32], segments: &[u32], spec: &AttentionSpec, o: &mut [f32], lse: &mut [f32]) {
    let (d, group, softcap) = (spec.head_dim, spec.group(), spec.softcap.map(|c| c as f32));
    let lists = lists(segments);
    let all = heads(qkv, spec.heads + 2 * spec.kv_heads, d);
    let mut tasks = Vec::new();
    let outputs = split_mut(o, &lists, spec.heads, d).into_iter().zip(split_mut(lse, &lists, spec.heads, 1));
    for (list, (o, lse)) in lists.iter().zip(outputs) {
        for (h, (o, lse)) in o.into_iter().zip(lse).enumerate() {
            tasks.push((list, h, o, lse));
        }
    }
    par::each(tasks, |(list, h, mut o, mut lse)| {
        let q = head_of(&all, &list.rows, h);
        let k = head_of(&all, &list.rows, spec.heads + h / group);
        let v = head_of(&all, &list.rows, spec.heads + spec.kv_heads + h / group);
        let mut inverse = [0f32; BLOCK];
        scratch::with(BLOCK * list.max_keys(spec.window), |tile| {
            for block in list.blocks(spec.window) {
                let (rows, keys, p) = (block.rows.len(), block.keys(), block.prefix.len());
                let tile = &mut tile[..rows * keys];
                scores(spec.scale as f32, q.slice(s![block.rows.clone(), ..]), &k, &block, tile);
                let mut sums = [0f32; BLOCK];
                simd::dispatch(
                    #[inline(always)]
                    || {
                        for (i, row) in tile.chunks_exact_mut(keys).enumerate() {
                            let visible = block.visible(i);
                            let (before, seen) = row.split_at_mut(visible.start);
                            let (seen, after) = seen.split_at_mut(visible.len());
                            if let Some(c) = softcap {
                                seen.iter_mut().for_each(|s| *s = simd::softcap(c, *s).0);
                            }
                            let max = simd::max(seen);
                            let sum = simd::exp_sum(seen, 1.0, max);
                            before.fill(0.0);
                            after.fill(0.0);
                            sums[i] = max + sum.ln();
                            inverse[i] = 1.0 / sum;
                        }
                    },
                );
                let weights = super::matmul::view(tile, rows, keys);
                let mut out = o.slice_mut(s![block.rows.clone(), ..]);
                let mut store = Store::Set;
                for (from, columns) in [(&block.prefix, 0..p), (&block.own, p..keys)] {
                    if !from.is_empty() {
                        let (a, v) = (weights.slice(s![.., columns]), v.slice(s![from.clone(), ..]));
                        matmul(1.0, a, v, out.view_mut(), store, Threads::One);
                        store = Store::Add;
                    }
                }
                for (i, mut row) in out.rows_mut().into_iter().enumerate() {
                    row *= inverse[i];
                    lse[(block.rows.start + i, 0)] = sums[i];
                }
            }
        });
    });
}

/// `d_o, qkv, o, lse -> d_qkv (n, width)`.
///
/// With weights p = exp(s − lse): d_v = pᵀ·d_o, d_p = d_o·vᵀ, d_s = p·(d_p − Σ d_o·o), d_q = d_s·k·scale,
/// d_k = d_sᵀ·q·scale (Dao et al. 2022, appendix B).
pub fn attention_grad(
    d_o: &[f32],
    qkv: &[f32],
    o: &[f32],
    lse: &[f32],
    segments: &[u32],
    spec: &AttentionSpec,
    d_qkv: &mut [f32],
) {
    let (d, group, softcap) = (spec.head_dim, spec.group(), spec.softcap.map(|c| c as f32));
    let lists = lists(segments);
    let all = heads(qkv, spec.heads + 2 * spec.kv_heads, d);
    let (all_o, all_d_o, all_lse) = (heads(o, spec.heads, d), heads(d_o, spec.heads, d), heads(lse, spec.heads, 1));
    let mut tasks = Vec::new();
    for (list, mut parts) in lists.iter().zip(split_mut(d_qkv, &lists, spec.heads + 2 * spec.kv_heads, d)) {
        let d_v = parts.split_off(spec.heads + spec.kv_heads);
        let d_k = parts.split_off(spec.heads);
        let mut d_q = parts.into_iter();
        for (kv, (d_k, d_v)) in d_k.into_iter().zip(d_v).enumerate() {
            tasks.push((list, kv, d_q.by_ref().take(group).collect::<Vec<_>>(), d_k, d_v));
        }
    }
    par::each(tasks, |(list, kv, d_q, mut d_k, mut d_v)| {
        let k = head_of(&all, &list.rows, spec.heads + kv);
        let v = head_of(&all, &list.rows, spec.heads + spec.kv_heads + kv);
        d_k.fill(0.0);
        d_v.fill(0.0);
        let tile = BLOCK * list.max_keys(spec.window);
        scratch::with(2 * tile, |tiles| {
            for (g, mut d_q) in d_q.into_iter().enumerate() {
                let h = kv * group + g;
                let q = head_of(&all, &list.rows, h);
                let o = head_of(&all_o, &list.rows, h);
                let d_o = head_of(&all_d_o, &list.rows, h);
                let lse = head_of(&all_lse, &list.rows, h);
                let (weights, d_scores) = tiles.split_at_mut(tile);
                for block in list.blocks(spec.window) {
                    let (rows, keys, p) = (block.rows.len(), block.keys(), block.prefix.len());
                    let (weights, d_scores) = (&mut weights[..rows * keys], &mut d_scores[..rows * keys]);
                    let q = q.slice(s![block.rows.clone(), ..]);
                    let d_out = d_o.slice(s![block.rows.clone(), ..]);
                    scores(spec.scale as f32, q, &k, &block, weights);
                    scores(1.0, d_out, &v, &block, d_scores);
                    simd::dispatch(
                        #[inline(always)]
                        || {
                            let rows = weights.chunks_exact_mut(keys).zip(d_scores.chunks_exact_mut(keys)).enumerate();
                            for (i, (weights, d_scores)) in rows {
                                let row = block.rows.start + i;
                                let delta: f32 = d_o.row(row).iter().zip(o.row(row)).map(|(a, b)| a * b).sum();
                                let (shift, seen) = (lse[(row, 0)], block.visible(i));
                                for hidden in [0..seen.start, seen.end..keys] {
                                    weights[hidden.clone()].fill(0.0);
                                    d_scores[hidden].fill(0.0);
                                }
                                let pairs = weights[seen.clone()].iter_mut().zip(&mut d_scores[seen]);
                                match softcap {
                                    None => pairs.for_each(|(w, d)| {
                                        *w = simd::exp(*w - shift);
                                        *d = *w * (*d - delta);
                                    }),
                                    Some(c) => pairs.for_each(|(w, d)| {
                                        let (capped, slope) = simd::softcap(c, *w);
                                        *w = simd::exp(capped - shift);
                                        *d = *w * (*d - delta) * slope;
                                    }),
                                }
                            }
                        },
                    );
                    let weights = super::matmul::view(weights, rows, keys);
                    let d_scores = super::matmul::view(d_scores, rows, keys);
                    let scale = spec.scale as f32;
                    let mut store = Store::Set;
                    for (from, columns) in [(&block.prefix, 0..p), (&block.own, p..keys)] {
                        if from.is_empty() {
                            continue;
                        }
                        let (w, d_s) = (weights.slice(s![.., columns.clone()]), d_scores.slice(s![.., columns]));
                        let k = k.slice(s![from.clone(), ..]);
                        matmul(scale, d_s, k, d_q.slice_mut(s![block.rows.clone(), ..]), store, Threads::One);
                        store = Store::Add;
                        matmul(scale, d_s.t(), q, d_k.slice_mut(s![from.clone(), ..]), Store::Add, Threads::One);
                        matmul(1.0, w.t(), d_out, d_v.slice_mut(s![from.clone(), ..]), Store::Add, Threads::One);
                    }
                }
            }
        });
    });
}
