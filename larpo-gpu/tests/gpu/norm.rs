//! Norms and their gradients.

use crate::common::{Rng, SIZES, STORES, before, blank, compare, stored, wide};
use larpo_gpu::kernels::norm::{
    Heads, RmsNorm, head_norm, head_norm_grad, layer_norm, layer_norm_grad, rms_norm, rms_norm_grad,
};
use larpo_gpu::{Recorder, Store};

/// (y, mean, rstd) of one row, weights with their offset.
fn row_twin(x: &[f64], w: &[f64], eps: f64, layer: bool) -> (Vec<f64>, f64, f64) {
    let c = x.len() as f64;
    let mean = if layer { x.iter().sum::<f64>() / c } else { 0.0 };
    let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c;
    let rstd = 1.0 / (square + eps).sqrt();
    (x.iter().zip(w).map(|(x, w)| (x - mean) * rstd * w).collect(), mean, rstd)
}

/// (d_x, d_w) of one row, by the chain rule element by element: with u = x − mean,
/// ∂y_i/∂x_j = w_i·(rstd·(δ_ij − [layer]/c) − u_i·u_j·rstd³/c).
fn row_grad_twin(d_y: &[f64], x: &[f64], w: &[f64], eps: f64, layer: bool) -> (Vec<f64>, Vec<f64>) {
    let (_, mean, r) = row_twin(x, w, eps, layer);
    let c = x.len();
    let u: Vec<f64> = x.iter().map(|x| x - mean).collect();
    let shared = if layer { 1.0 / c as f64 } else { 0.0 };
    let slope = |i: usize, j: usize| r * (f64::from(u8::from(i == j)) - shared) - u[i] * u[j] * r.powi(3) / c as f64;
    let d_x = (0..c).map(|j| (0..c).map(|i| d_y[i] * w[i] * slope(i, j)).sum()).collect();
    (d_x, (0..c).map(|i| d_y[i] * u[i] * r).collect())
}

struct Twin {
    y: Vec<f64>,
    stats: Vec<f64>,
    d_x: Vec<f64>,
    d_w: Vec<f64>,
}

fn twin(d_y: &[f64], x: &[f64], w: &[f64], eps: f64, layer: bool) -> Twin {
    let c = w.len();
    let mut all = Twin { y: vec![], stats: vec![], d_x: vec![], d_w: vec![0.0; c] };
    for (x, d_y) in x.chunks(c).zip(d_y.chunks(c)) {
        let (y, mean, rstd) = row_twin(x, w, eps, layer);
        let (d_x, d_w) = row_grad_twin(d_y, x, w, eps, layer);
        all.y.extend(y);
        all.stats.extend(if layer { vec![mean, rstd] } else { vec![rstd] });
        all.d_x.extend(d_x);
        all.d_w.iter_mut().zip(d_w).for_each(|(sum, d)| *sum += d);
    }
    all
}

fn check(n: usize, c: usize, layer: bool, offset: f64, stores: [Store; 2]) {
    let mut rng = Rng::new(n * 1000 + c);
    // One channel, normed, has a gradient of the order of eps alone.
    let eps = if n.is_multiple_of(2) && c > 1 { 1e-5 } else { 0.5 };
    let (x, d_y, w) = (rng.floats(n * c, 2.0), rng.floats(n * c, 1.0), rng.floats(c, 1.0));
    let (d_x, d_w) = (before(&mut rng, n * c, stores[0]), before(&mut rng, c, stores[1]));
    let weights: Vec<f64> = w.iter().map(|&w| f64::from(w) + offset).collect();
    let t = twin(&wide(&d_y), &wide(&x), &weights, eps, layer);
    let twins = [t.y, t.stats, stored(&d_x, t.d_x, stores[0]), stored(&d_w, t.d_w, stores[1])];
    let kernels = |r: &mut Recorder| {
        let (x, d_y, w) = (r.upload(&x)?, r.upload(&d_y)?, r.upload(&w)?);
        let (y, stats) = (blank(r, n * c)?, blank(r, if layer { 2 * n } else { n })?);
        let (d_x, d_w) = (r.upload(&d_x)?, r.upload(&d_w)?);
        let (into_x, into_w) = ((&d_x, stores[0]), Some((&d_w, stores[1])));
        if layer {
            layer_norm(r, &x, &w, eps, &y, &stats);
            layer_norm_grad(r, &d_y, &x, &w, &stats, into_x, into_w)?;
        } else {
            let settings = RmsNorm { eps, offset };
            rms_norm(r, &x, &w, settings, &y, &stats);
            rms_norm_grad(r, &d_y, &x, &w, settings, &stats, into_x, into_w)?;
        }
        Ok(vec![y, stats, d_x, d_w])
    };
    compare(&format!("{n} {c} layer {layer} offset {offset} {stores:?}"), kernels, &twins);
}

fn cases(layer: bool) {
    for (i, &c) in SIZES.iter().enumerate() {
        let stores = [STORES[i % 2], STORES[i / 2 % 2]];
        // A layer norm of one channel is 0 whatever x is: nothing to compare relative to.
        if !(layer && c == 1) {
            check(SIZES[(5 * i + 3) % SIZES.len()], c, layer, 0.0, stores);
        }
        if !layer {
            check(SIZES[(3 * i + 1) % SIZES.len()], c, layer, 1.0, stores);
        }
    }
    // Long rows, and more rows than one chunk of the weights' gradient.
    check(3, 517, layer, 0.0, [Store::Set; 2]);
    check(1301, 5, layer, 0.0, [Store::Set; 2]);
}

#[test]
fn gpu_rms_norm() {
    cases(false);
}

#[test]
fn gpu_layer_norm() {
    cases(true);
}

#[test]
fn gpu_rms_norm_grad_without_weights() {
    let mut rng = Rng::new(9);
    let (x, d_y, w) = (rng.floats(6, 1.0), rng.floats(6, 1.0), [1.0f32, 2.0, 3.0]);
    let t = twin(&wide(&d_y), &wide(&x), &wide(&w), 1e-5, false);
    let kernels = |r: &mut Recorder| {
        let (x, d_y, w) = (r.upload(&x)?, r.upload(&d_y)?, r.upload(&w)?);
        let (y, rstd, d_x) = (blank(r, 6)?, blank(r, 2)?, blank(r, 6)?);
        let settings = RmsNorm { eps: 1e-5, offset: 0.0 };
        rms_norm(r, &x, &w, settings, &y, &rstd);
        rms_norm_grad(r, &d_y, &x, &w, settings, &rstd, (&d_x, Store::Set), None)?;
        Ok(vec![d_x])
    };
    compare("without weights", kernels, &[t.d_x]);
}

#[test]
fn gpu_head_norm() {
    let mut rng = Rng::new(10);
    for (n, heads, kv_heads, head_dim) in [(1, 1, 1, 2), (3, 4, 2, 8), (7, 6, 2, 17), (33, 3, 1, 64), (5, 2, 2, 129)] {
        let (width, normed) = ((heads + 2 * kv_heads) * head_dim, heads + kv_heads);
        let (x, d_y) = (rng.floats(n * width, 2.0), rng.floats(n * width, 1.0));
        let w = [rng.floats(head_dim, 1.0), rng.floats(head_dim, 1.0)];
        let d_w = [rng.floats(head_dim, 1.0), vec![f32::NAN; head_dim]];
        let (mut y, mut d_x, mut rstd) = (wide(&x), wide(&d_y), Vec::new());
        let mut sums = [vec![0.0; head_dim], vec![0.0; head_dim]];
        for row in 0..n {
            for h in 0..normed {
                let which = usize::from(h >= heads);
                let at = row * width + h * head_dim..row * width + (h + 1) * head_dim;
                let t = twin(&wide(&d_y[at.clone()]), &wide(&x[at.clone()]), &wide(&w[which]), 1e-6, false);
                y[at.clone()].copy_from_slice(&t.y);
                d_x[at].copy_from_slice(&t.d_x);
                rstd.extend(t.stats);
                sums[which].iter_mut().zip(t.d_w).for_each(|(sum, d)| *sum += d);
            }
        }
        let [d_q, d_k] = sums;
        let twins = [y, rstd, d_x, stored(&d_w[0], d_q, Store::Add), d_k];
        let kernels = |r: &mut Recorder| {
            let (x, d_y) = (r.upload(&x)?, r.upload(&d_y)?);
            let (w_q, w_k, d_q, d_k) = (r.upload(&w[0])?, r.upload(&w[1])?, r.upload(&d_w[0])?, r.upload(&d_w[1])?);
            let (y, rstd, d_x) = (blank(r, n * width)?, blank(r, n * normed)?, blank(r, n * width)?);
            let layout = Heads { heads, kv_heads, head_dim };
            head_norm(r, &x, &w_q, &w_k, 1e-6, layout, &y, &rstd);
            let (into_q, into_k) = (Some((&d_q, Store::Add)), Some((&d_k, Store::Set)));
            head_norm_grad(r, &d_y, &x, &w_q, &w_k, &rstd, layout, &d_x, into_q, into_k)?;
            Ok(vec![y, rstd, d_x, d_q, d_k])
        };
        compare(&format!("{n} {heads} {kv_heads} {head_dim}"), kernels, &twins);
    }
}
