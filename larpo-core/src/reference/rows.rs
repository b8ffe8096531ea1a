//! Row-wise operations in plain `f64` loops.

use super::put;
use crate::backend::{Activation, AttentionSpec, NormSpec, Store, Weight};

pub fn rms_norm(x: &[f64], w: &[f64], spec: NormSpec, y: &mut [f64], rstd: &mut [f64]) {
    let c = w.len();
    for n in 0..rstd.len() {
        let row = &x[n * c..(n + 1) * c];
        rstd[n] = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / c as f64 + spec.eps).sqrt();
        for i in 0..c {
            y[n * c + i] = row[i] * rstd[n] * (w[i] + spec.offset);
        }
    }
}

/// ∂y_i/∂x_j = w_i·(δ_ij·rstd − x_i·x_j·rstd³/c), summed over i, w with the offset.
pub fn rms_norm_grad(
    d_y: &[f64],
    x: &[f64],
    w: &[f64],
    spec: NormSpec,
    rstd: &[f64],
    d_x: (&mut Vec<f64>, Store),
    d_w: Option<(&mut Vec<f64>, Store)>,
) {
    let c = w.len();
    for (n, r) in rstd.iter().enumerate() {
        for j in 0..c {
            let sum: f64 = (0..c).map(|i| d_y[n * c + i] * (w[i] + spec.offset) * x[n * c + i]).sum();
            let value = d_y[n * c + j] * (w[j] + spec.offset) * r - x[n * c + j] * sum * r.powi(3) / c as f64;
            put(d_x.1, &mut d_x.0[n * c + j], value);
        }
    }
    if let Some((d_w, store)) = d_w {
        for i in 0..c {
            put(store, &mut d_w[i], (0..rstd.len()).map(|n| d_y[n * c + i] * x[n * c + i] * rstd[n]).sum());
        }
    }
}

pub fn layer_norm(x: &[f64], w: &[f64], eps: f64, y: &mut [f64], stats: &mut [f64]) {
    let c = w.len();
    for (n, stats) in stats.chunks_mut(2).enumerate() {
        let row = &x[n * c..(n + 1) * c];
        let mean = row.iter().sum::<f64>() / c as f64;
        let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / c as f64;
        stats[0] = mean;
        stats[1] = 1.0 / (variance + eps).sqrt();
        for i in 0..c {
            y[n * c + i] = (row[i] - mean) * stats[1] * w[i];
        }
    }
}

/// With u = x − mean: ∂y_i/∂x_j = w_i·(rstd·(δ_ij − 1/c) − u_i·u_j·rstd³/c), summed over i.
pub fn layer_norm_grad(
    d_y: &[f64],
    x: &[f64],
    w: &[f64],
    stats: &[f64],
    d_x: (&mut Vec<f64>, Store),
    d_w: Option<(&mut Vec<f64>, Store)>,
) {
    let c = w.len();
    let u = |n: usize, i: usize| x[n * c + i] - stats[2 * n];
    for n in 0..stats.len() / 2 {
        let r = stats[2 * n + 1];
        for j in 0..c {
            let term = |i: usize| {
                let same = if i == j { 1.0 } else { 0.0 };
                let slope = r * (same - 1.0 / c as f64) - u(n, i) * u(n, j) * r.powi(3) / c as f64;
                d_y[n * c + i] * w[i] * slope
            };
            put(d_x.1, &mut d_x.0[n * c + j], (0..c).map(term).sum());
        }
    }
    if let Some((d_w, store)) = d_w {
        for i in 0..c {
            let sum = (0..stats.len() / 2).map(|n| d_y[n * c + i] * u(n, i) * stats[2 * n + 1]).sum();
            put(store, &mut d_w[i], sum);
        }
    }
}

/// Every query and key head of a row is a row of its own for [`rms_norm`].
pub fn head_norm(x: &[f64], [w_q, w_k]: [&[f64]; 2], eps: f64, spec: &AttentionSpec, y: &mut [f64], rstd: &mut [f64]) {
    let (d, width, heads) = (spec.head_dim, spec.qkv_width(), spec.heads + spec.kv_heads);
    y.copy_from_slice(x);
    for n in 0..x.len() / width {
        for h in 0..heads {
            let at = n * width + h * d;
            let w = if h < spec.heads { w_q } else { w_k };
            let spec = NormSpec { eps, offset: 0.0 };
            rms_norm(&x[at..at + d], w, spec, &mut y[at..at + d], &mut rstd[n * heads + h..][..1]);
        }
    }
}

#[allow(clippy::too_many_arguments)]
pub fn head_norm_grad(
    d_y: &[f64],
    x: &[f64],
    [w_q, w_k]: [&[f64]; 2],
    rstd: &[f64],
    spec: &AttentionSpec,
    d_x: &mut [f64],
    d_w: [Option<(&mut Vec<f64>, Store)>; 2],
) {
    let (d, width, heads) = (spec.head_dim, spec.qkv_width(), spec.heads + spec.kv_heads);
    let mut sums = [vec![0.0; d], vec![0.0; d]];
    d_x.copy_from_slice(d_y);
    for n in 0..x.len() / width {
        for h in 0..heads {
            let at = n * width + h * d;
            let which = usize::from(h >= spec.heads);
            let (mut part, plain) = (vec![0.0; d], NormSpec { eps: 0.0, offset: 0.0 });
            rms_norm_grad(
                &d_y[at..at + d],
                &x[at..at + d],
                [w_q, w_k][which],
                plain,
                &rstd[n * heads + h..][..1],
                (&mut part, Store::Set),
                Some((&mut sums[which], Store::Add)),
            );
            d_x[at..at + d].copy_from_slice(&part);
        }
    }
    for (d_w, sum) in d_w.into_iter().zip(sums) {
        if let Some((d_w, store)) = d_w {
            for (d, sum) in d_w.iter_mut().zip(sum) {
                put(store, d, sum);
            }
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The activation of `x` and its slope there.
pub fn activation(which: Activation, x: f64) -> (f64, f64) {
    match which {
        // d(x·σ(x))/dx = σ(x) + x·σ'(x)
        Activation::Silu => (x * sigmoid(x), sigmoid(x) + x * sigmoid(x) * (1.0 - sigmoid(x))),
        Activation::GeluTanh => {
            let c = (2.0 / std::f64::consts::PI).sqrt();
            let t = (c * (x + 0.044715 * x.powi(3))).tanh();
            let slope = c * (1.0 + 3.0 * 0.044715 * x * x);
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
        }
    }
}

pub fn glu(gate_up: &[f64], width: usize, which: Activation, y: &mut [f64]) {
    for (i, y) in y.iter_mut().enumerate() {
        let (row, column) = (i / width, i % width);
        let (g, u) = (gate_up[row * 2 * width + column], gate_up[row * 2 * width + width + column]);
        *y = activation(which, g).0 * u;
    }
}

pub fn glu_grad(d_y: &[f64], gate_up: &[f64], width: usize, which: Activation, d_gate_up: &mut [f64]) {
    for (i, d) in d_y.iter().enumerate() {
        let (row, column) = (i / width, i % width);
        let (at_gate, at_up) = (row * 2 * width + column, row * 2 * width + width + column);
        let (value, slope) = activation(which, gate_up[at_gate]);
        d_gate_up[at_gate] = d * gate_up[at_up] * slope;
        d_gate_up[at_up] = d * value;
    }
}

/// `c·tanh(x / c)` and its slope there; `x` where there is no `c`.
pub fn softcap(c: Option<f64>, x: f64) -> (f64, f64) {
    match c {
        None => (x, 1.0),
        Some(c) => (c * (x / c).tanh(), 1.0 - (x / c).tanh().powi(2)),
    }
}

pub fn logits(h: &[f64], w: Weight<Vec<f64>>, row: usize) -> Vec<f64> {
    let c = w.in_features;
    (0..w.out_features).map(|v| (0..c).map(|i| h[row * c + i] * w.data[v * c + i]).sum()).collect()
}

pub fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}
