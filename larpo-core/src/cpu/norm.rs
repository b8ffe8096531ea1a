//! Root-mean-square norm and its gradient.

use super::{par, simd};
use crate::backend::Store;

/// `x (n, c), w (c) -> y (n, c), rstd (n)`.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
    let c = w.len();
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
                        *y = x * scale * w;
                    }
                }
            },
        );
    });
}

/// `d_x (n, c)` and `d_w (c)` from `d_y, x, w, rstd`.
///
/// With x̂ = x·rstd and g = d_y·w: d_x = rstd·(g − x̂·mean(g·x̂)), d_w = Σ d_y·x̂.
pub fn rms_norm_grad(
    d_y: &[f32],
    x: &[f32],
    w: &[f32],
    rstd: &[f32],
    d_x: (&mut [f32], Store),
    d_w: Option<(&mut [f32], Store)>,
) {
    let c = w.len();
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
                            lanes[j] += d[j] * w[j] * x[j];
                        }
                    }
                    for i in whole..c {
                        tail += d_y[i] * w[i] * x[i];
                    }
                    let mean = (simd::reduce(lanes) + tail) * r * r / c as f32;
                    for ((((d_x, &d), &x), &w), p) in d_x.iter_mut().zip(d_y).zip(x).zip(w).zip(&mut part) {
                        let value = r * (d * w - x * mean);
                        *d_x = if add { *d_x + value } else { value };
                        *p += d * x * r;
                    }
                }
            },
        );
        part
    });
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
