//! AdamW, gradient norms and clipping: passes over whole tensors, bound by memory.

use super::{par, simd};
use crate::backend::AdamWSpec;

/// Floats per partial sum of a norm; fixed, so that the result does not depend on the number of threads.
const BLOCK: usize = 1 << 15;

/// `Σ x²`, in double precision across blocks.
pub fn sq_norm(x: &[f32]) -> f64 {
    let parts = par::map(x.chunks(BLOCK).collect(), |block: &[f32]| {
        simd::dispatch(
            #[inline(always)]
            || block.chunks(1024).map(|part| f64::from(simd::sum_map(part, |v| v * v))).sum::<f64>(),
        )
    });
    parts.iter().sum()
}

/// One decoupled, bias-corrected update of `w` with gradient `g · clip`.
pub fn adamw(spec: &AdamWSpec, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], clip: f32) {
    let step = spec.step as i32;
    let (b1, b2) = (spec.beta1 as f32, spec.beta2 as f32);
    // Subtracted in double precision: 1 - 0.9999 in single precision is wrong in the fourth digit.
    let (c1, c2) = ((1.0 - spec.beta1) as f32, (1.0 - spec.beta2) as f32);
    // lr·m̂/(√v̂ + eps) with the two bias corrections folded into constants.
    let rate = (spec.learning_rate / (1.0 - spec.beta1.powi(step))) as f32;
    let root = (1.0 / (1.0 - spec.beta2.powi(step)).sqrt()) as f32;
    let eps = spec.eps as f32;
    let keep = (1.0 - spec.learning_rate * spec.weight_decay) as f32;
    let block = par::rows_per_task(w.len(), 1, BLOCK);
    let tasks: Vec<_> = w
        .chunks_mut(block)
        .zip(g.chunks(block))
        .zip(m.chunks_mut(block))
        .zip(v.chunks_mut(block))
        .map(|(((w, g), m), v)| (w, g, m, v))
        .collect();
    par::each(tasks, |(w, g, m, v)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for (((w, &g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                    let g = g * clip;
                    *m = b1 * *m + c1 * g;
                    *v = b2 * *v + c2 * g * g;
                    *w = *w * keep - rate * *m / (v.sqrt() * root + eps);
                }
            },
        );
    });
}
