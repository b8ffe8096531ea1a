//! Sums over tensors, clipping and AdamW.

use crate::common::{Rng, blank, compare, wide};
use larpo_gpu::Recorder;
use larpo_gpu::kernels::adamw::{AdamW, adamw};
use larpo_gpu::kernels::reduce::{clip, sq_norm, weighted_sum};

#[test]
fn gpu_sums() {
    let mut rng = Rng::new(1);
    for len in [0, 1, 3, 255, 256, 257, 4096, 4097, 70_001] {
        let (x, w) = (rng.floats(len, 1.0), rng.floats(len, 1.0));
        let w: Vec<f32> = w.iter().map(|w| w.abs()).collect();
        let positive: Vec<f32> = x.iter().map(|x| x.abs()).collect();
        let squares = wide(&x).iter().map(|x| x * x).sum();
        let weighted = wide(&positive).iter().zip(wide(&w)).map(|(x, w)| x * w).sum();
        let kernels = |r: &mut Recorder| {
            let (x, positive, w, out) = (r.upload(&x)?, r.upload(&positive)?, r.upload(&w)?, r.upload(&[9.0f32; 4])?);
            sq_norm(r, &x, &out, 2)?;
            weighted_sum(r, &positive, &w, &out, 0)?;
            Ok(vec![out])
        };
        compare(&format!("{len}"), kernels, &[vec![weighted, 9.0, squares, 9.0]]);
    }
}

#[test]
fn gpu_clip() {
    let mut rng = Rng::new(2);
    for (len, max_norm) in [(1, 1.0), (3, 0.0), (300, 0.5), (17, 100.0), (1000, -1.0)] {
        let squares: Vec<f32> = rng.floats(len, 3.0).iter().map(|x| x.abs()).collect();
        let norm = wide(&squares).iter().sum::<f64>().sqrt();
        let factor = if max_norm > 0.0 && norm > max_norm { max_norm / norm } else { 1.0 };
        let kernels = |r: &mut Recorder| {
            let (squares, out) = (r.upload(&squares)?, blank(r, 2)?);
            clip(r, &squares, max_norm, &out);
            Ok(vec![out])
        };
        compare(&format!("{len} {max_norm}"), kernels, &[vec![norm, factor]]);
    }
}

#[test]
fn gpu_adamw() {
    let mut rng = Rng::new(3);
    for (len, step) in [(1, 1), (3, 2), (64, 10), (257, 1000), (4097, 1)] {
        let s = AdamW { learning_rate: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step };
        let (g, w, m) = (rng.floats(len, 1.0), rng.floats(len, 1.0), rng.floats(len, 0.1));
        let v: Vec<f32> = rng.floats(len, 0.1).iter().map(|v| v.abs()).collect();
        let factors = [3.0f32, 0.5];
        let (mut w2, mut m2, mut v2) = (wide(&w), wide(&m), wide(&v));
        for i in 0..len {
            let g = f64::from(g[i]) * 0.5;
            m2[i] = s.beta1 * m2[i] + (1.0 - s.beta1) * g;
            v2[i] = s.beta2 * v2[i] + (1.0 - s.beta2) * g * g;
            let m_hat = m2[i] / (1.0 - s.beta1.powi(step as i32));
            let v_hat = v2[i] / (1.0 - s.beta2.powi(step as i32));
            w2[i] -= s.learning_rate * (m_hat / (v_hat.sqrt() + s.eps) + s.weight_decay * w2[i]);
        }
        let kernels = |r: &mut Recorder| {
            let (g, clip) = (r.upload(&g)?, r.upload(&factors)?);
            let (w, m, v) = (r.upload(&w)?, r.upload(&m)?, r.upload(&v)?);
            adamw(r, &s, &g, &clip, &w, &m, &v);
            Ok(vec![w, m, v])
        };
        compare(&format!("{len} {step}"), kernels, &[w2, m2, v2]);
    }
}
