//! Norms of rows, and their gradients.

use super::{par, simd};
use crate::backend::{AttentionSpec, NormSpec, Store};

/// `x (n, c), w (c) -> y (n, c), rstd (n)`.
pub fn rms_norm(x: &[f32], w: &[f32], spec: NormSpec, y: &mut [f32], rstd: &mut [f32]) {
    let (c, eps, offset) = (w.len(), spec.eps as f32, spec.offset as f32);
    let block = par::rows_per_task(rstd.len(), c, par::MIN_TASK);
    let tasks: Vec<_> = x.chunks(block * c).zip(y.chunks_mut(block * c)).zip(rstd.chunks_mut(block)).collect();
    par::each(tasks, |((x, y), rstd)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for ((x, y), r) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(rstd) {
                    let mean = simd::sum_map(x, |v| v * v) / c as f32;
                    let scale = 1.0 / (mean + eps).sqrt();
                    *r = scale;
                    for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
                        *y = x * scale * (w + offset);
                    }
                }
            },
        );
    });
}

/// `d_x (n, c)` and `d_w (c)` from `d_y, x, w, rstd`.
///
/// With x̂ = x·rstd and g = d_y·(w + offset): d_x = rstd·(g − x̂·mean(g·x̂)), d_w = Σ d_y·x̂.
pub fn rms_norm_grad(
    d_y: &[f32],
    x: &[f32],
    w: &[f32],
    spec: NormSpec,
    rstd: &[f32],
    d_x: (&mut [f32], Store),
    d_w: Option<(&mut [f32], Store)>,
) {
    let (c, offset) = (w.len(), spec.offset as f32);
    let add = d_x.1 == Store::Add;
    // Of a fixed size: the sum over the rows must not depend on the number of threads.
    let block = (par::MIN_TASK / c).max(1);
    let tasks: Vec<_> = d_y
        .chunks(block * c)
        .zip(x.chunks(block * c))
        .zip(d_x.0.chunks_mut(block * c))
        .zip(rstd.chunks(block))
        .collect();
    // Each block sums its own part of d_w; the parts are added in block order, so the result is always the same.
    let parts = par::map(tasks, |(((d_y, x), d_x), rstd)| {
        let mut part = vec![0f32; c];
        simd::dispatch(
            #[inline(always)]
            || {
                let rows = d_y.chunks_exact(c).zip(x.chunks_exact(c)).zip(d_x.chunks_exact_mut(c)).zip(rstd);
                for (((d_y, x), d_x), &r) in rows {
                    let mut lanes = [0f32; simd::LANES];
                    let mut tail = 0f32;
                    let whole = c / simd::LANES * simd::LANES;
                    for i in (0..whole).step_by(simd::LANES) {
                        let (d, x, w) = (&d_y[i..i + 16], &x[i..i + 16], &w[i..i + 16]);
                        for j in 0..simd::LANES {
                            lanes[j] += d[j] * (w[j] + offset) * x[j];
                        }
                    }
                    for i in whole..c {
                        tail += d_y[i] * (w[i] + offset) * x[i];
                    }
                    let mean = (simd::reduce(lanes) + tail) * r * r / c as f32;
                    for ((((d_x, &d), &x), &w), p) in d_x.iter_mut().zip(d_y).zip(x).zip(w).zip(&mut part) {
                        let value = r * (d * (w + offset) - x * mean);
                        *d_x = if add { *d_x + value } else { value };
                        *p += d * x * r;
                    }
                }
            },
        );
        part
    });
    add_up(parts, d_w);
}

/// Adds the blocks' parts of a weight's gradient, in their order.
fn add_up(parts: Vec<Vec<f32>>, d_w: Option<(&mut [f32], Store)>) {
    if let Some((d_w, store)) = d_w {
        if store == Store::Set {
            d_w.fill(0.0);
        }
        for part in parts {
            for (d, p) in d_w.iter_mut().zip(part) {
                *d += p;
            }
        }
    }
}

/// `x (n, c), w (c) -> y (n, c), stats (n, 2)` = mean, rstd.
pub fn layer_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], stats: &mut [f32]) {
    let c = w.len();
    let block = par::rows_per_task(stats.len() / 2, c, par::MIN_TASK);
    let tasks: Vec<_> = x.chunks(block * c).zip(y.chunks_mut(block * c)).zip(stats.chunks_mut(2 * block)).collect();
    par::each(tasks, |((x, y), stats)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for ((x, y), stats) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(stats.chunks_exact_mut(2)) {
                    let mean = simd::sum_map(x, |v| v) / c as f32;
                    let variance = simd::sum_map(x, |v| (v - mean) * (v - mean)) / c as f32;
                    let rstd = 1.0 / (variance + eps).sqrt();
                    stats.copy_from_slice(&[mean, rstd]);
                    for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
                        *y = (x - mean) * rstd * w;
                    }
                }
            },
        );
    });
}

/// `d_x (n, c)` and `d_w (c)` from `d_y, x, w, stats`.
///
/// With x̂ = (x − mean)·rstd and g = d_y·w: d_x = rstd·(g − mean(g) − x̂·mean(g·x̂)), d_w = Σ d_y·x̂.
pub fn layer_norm_grad(
    d_y: &[f32],
    x: &[f32],
    w: &[f32],
    stats: &[f32],
    d_x: (&mut [f32], Store),
    d_w: Option<(&mut [f32], Store)>,
) {
    let c = w.len();
    let add = d_x.1 == Store::Add;
    let block = (par::MIN_TASK / c).max(1);
    let tasks: Vec<_> = d_y
        .chunks(block * c)
        .zip(x.chunks(block * c))
        .zip(d_x.0.chunks_mut(block * c))
        .zip(stats.chunks(2 * block))
        .collect();
    let parts = par::map(tasks, |(((d_y, x), d_x), stats)| {
        let mut part = vec![0f32; c];
        let mut g = vec![0f32; c];
        let mut normal = vec![0f32; c];
        simd::dispatch(
            #[inline(always)]
            || {
                let rows = d_y.chunks_exact(c).zip(x.chunks_exact(c)).zip(d_x.chunks_exact_mut(c));
                for (((d_y, x), d_x), stats) in rows.zip(stats.chunks_exact(2)) {
                    let (mean, rstd) = (stats[0], stats[1]);
                    for ((((g, u), p), (&d, &x)), &w) in
                        g.iter_mut().zip(&mut normal).zip(&mut part).zip(d_y.iter().zip(x)).zip(w)
                    {
                        *g = d * w;
                        *u = (x - mean) * rstd;
                        *p += d * *u;
                    }
                    let mean_g = simd::sum_map(&g, |v| v) / c as f32;
                    let mean_gu = simd::dot(&g, &normal) / c as f32;
                    for ((d_x, &g), &u) in d_x.iter_mut().zip(&g).zip(&normal) {
                        let value = rstd * (g - mean_g - u * mean_gu);
                        *d_x = if add { *d_x + value } else { value };
                    }
                }
            },
        );
        part
    });
    add_up(parts, d_w);
}

/// Root-mean-square norm of every query head with `w_q` and of every key head with `w_k`:
/// `x (n, width) -> y (n, width), rstd (n, heads + kv_heads)`.
pub fn head_norm(x: &[f32], [w_q, w_k]: [&[f32]; 2], eps: f32, spec: &AttentionSpec, y: &mut [f32], rstd: &mut [f32]) {
    let (d, width, heads) = (spec.head_dim, spec.qkv_width(), spec.heads + spec.kv_heads);
    let block = par::rows_per_task(x.len() / width, width, par::MIN_TASK);
    let tasks: Vec<_> =
        x.chunks(block * width).zip(y.chunks_mut(block * width)).zip(rstd.chunks_mut(block * heads)).collect();
    par::each(tasks, |((x, y), rstd)| {
        simd::dispatch(
            #[inline(always)]
            || {
                let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(rstd.chunks_exact_mut(heads));
                for ((x, y), rstd) in rows {
                    y[heads * d..].copy_from_slice(&x[heads * d..]);
                    for (h, ((x, y), r)) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(rstd).enumerate() {
                        let w = if h < spec.heads { w_q } else { w_k };
                        let scale = 1.0 / (simd::sum_map(x, |v| v * v) / d as f32 + eps).sqrt();
                        *r = scale;
                        for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
                            *y = x * scale * w;
                        }
                    }
                }
            },
        );
    });
}

/// `d_x (n, width)` and both weights' gradients from `d_y, x, w_q, w_k, rstd`; see [`rms_norm_grad`].
pub fn head_norm_grad(
    d_y: &[f32],
    x: &[f32],
    [w_q, w_k]: [&[f32]; 2],
    rstd: &[f32],
    spec: &AttentionSpec,
    d_x: &mut [f32],
    d_w: [Option<(&mut [f32], Store)>; 2],
) {
    let (d, width, heads) = (spec.head_dim, spec.qkv_width(), spec.heads + spec.kv_heads);
    let block = (par::MIN_TASK / width).max(1);
    let tasks: Vec<_> = d_y
        .chunks(block * width)
        .zip(x.chunks(block * width))
        .zip(d_x.chunks_mut(block * width))
        .zip(rstd.chunks(block * heads))
        .collect();
    let parts = par::map(tasks, |(((d_y, x), d_x), rstd)| {
        let (mut part_q, mut part_k) = (vec![0f32; d], vec![0f32; d]);
        simd::dispatch(
            #[inline(always)]
            || {
                let rows = d_y.chunks_exact(width).zip(x.chunks_exact(width)).zip(d_x.chunks_exact_mut(width));
                for (((d_y, x), d_x), rstd) in rows.zip(rstd.chunks_exact(heads)) {
                    d_x[heads * d..].copy_from_slice(&d_y[heads * d..]);
                    let of_heads = d_y.chunks_exact(d).zip(x.chunks_exact(d)).zip(d_x.chunks_exact_mut(d)).zip(rstd);
                    for (h, (((d_y, x), d_x), &r)) in of_heads.enumerate() {
                        let (w, part) = if h < spec.heads { (w_q, &mut part_q) } else { (w_k, &mut part_k) };
                        let mut sum = 0f32;
                        for ((&g, &x), &w) in d_y.iter().zip(x).zip(w) {
                            sum += g * w * x;
                        }
                        let mean = sum * r * r / d as f32;
                        for ((((d_x, &g), &x), &w), p) in d_x.iter_mut().zip(d_y).zip(x).zip(w).zip(part) {
                            *d_x = r * (g * w - x * mean);
                            *p += g * x * r;
                        }
                    }
                }
            },
        );
        (part_q, part_k)
    });
    let (parts_q, parts_k) = parts.into_iter().unzip();
    let [d_w_q, d_w_k] = d_w;
    add_up(parts_q, d_w_q);
    add_up(parts_k, d_w_k);
}

/// `y (n, c)` gets `x (c)` in every row.
pub fn broadcast_rows(x: &[f32], y: &mut [f32], store: Store) {
    par::rows(y, x.len(), |_, block| {
        simd::dispatch(
            #[inline(always)]
            || {
                for row in block.chunks_exact_mut(x.len()) {
                    match store {
                        Store::Set => row.copy_from_slice(x),
                        Store::Add => row.iter_mut().zip(x).for_each(|(y, x)| *y += x),
                    }
                }
            },
        );
    });
}

/// `y (c)` gets the sum of the rows of `x (n, c)`: of blocks of rows of a fixed size, added in their order.
pub fn sum_rows(x: &[f32], y: &mut [f32], store: Store) {
    let c = y.len();
    let block = (par::MIN_TASK / c).max(1);
    let parts = par::map(x.chunks(block * c).collect(), |rows| {
        let mut part = vec![0f32; c];
        simd::dispatch(
            #[inline(always)]
            || {
                for row in rows.chunks_exact(c) {
                    part.iter_mut().zip(row).for_each(|(p, x)| *p += x);
                }
            },
        );
        part
    });
    add_up(parts, Some((y, store)));
}
