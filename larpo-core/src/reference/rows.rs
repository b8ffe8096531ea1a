//! Row-wise operations in plain `f64` loops.

use super::put;
use crate::backend::{Store, Weight};

pub fn rms_norm(x: &[f64], w: &[f64], eps: f64, y: &mut [f64], rstd: &mut [f64]) {
    let c = w.len();
    for n in 0..rstd.len() {
        let row = &x[n * c..(n + 1) * c];
        rstd[n] = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / c as f64 + eps).sqrt();
        for i in 0..c {
            y[n * c + i] = row[i] * rstd[n] * w[i];
        }
    }
}

/// ∂y_i/∂x_j = w_i·(δ_ij·rstd − x_i·x_j·rstd³/c), summed over i.
pub fn rms_norm_grad(
    d_y: &[f64],
    x: &[f64],
    w: &[f64],
    rstd: &[f64],
    d_x: (&mut Vec<f64>, Store),
    d_w: Option<(&mut Vec<f64>, Store)>,
) {
    let c = w.len();
    for (n, r) in rstd.iter().enumerate() {
        for j in 0..c {
            let sum: f64 = (0..c).map(|i| d_y[n * c + i] * w[i] * x[n * c + i]).sum();
            let value = d_y[n * c + j] * w[j] * r - x[n * c + j] * sum * r.powi(3) / c as f64;
            put(d_x.1, &mut d_x.0[n * c + j], value);
        }
    }
    if let Some((d_w, store)) = d_w {
        for i in 0..c {
            put(store, &mut d_w[i], (0..rstd.len()).map(|n| d_y[n * c + i] * x[n * c + i] * rstd[n]).sum());
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub fn glu(gate_up: &[f64], width: usize, y: &mut [f64]) {
    for (i, y) in y.iter_mut().enumerate() {
        let (row, column) = (i / width, i % width);
        let (g, u) = (gate_up[row * 2 * width + column], gate_up[row * 2 * width + width + column]);
        *y = g * sigmoid(g) * u;
    }
}

pub fn glu_grad(d_y: &[f64], gate_up: &[f64], width: usize, d_gate_up: &mut [f64]) {
    for (i, d) in d_y.iter().enumerate() {
        let (row, column) = (i / width, i % width);
        let (at_gate, at_up) = (row * 2 * width + column, row * 2 * width + width + column);
        let (g, u) = (gate_up[at_gate], gate_up[at_up]);
        // d silu(g)/dg = σ(g) + g·σ'(g)
        d_gate_up[at_gate] = d * u * (sigmoid(g) + g * sigmoid(g) * (1.0 - sigmoid(g)));
        d_gate_up[at_up] = d * g * sigmoid(g);
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
