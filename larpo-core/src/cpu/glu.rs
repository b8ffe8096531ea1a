//! SwiGLU and its gradient.

use super::{par, simd};

/// `gate_up (n, 2·width) -> y (n, width) = gate·σ(gate)·up`.
pub fn glu(gate_up: &[f32], width: usize, y: &mut [f32]) {
    par::rows(y, width, |first, block| {
        simd::dispatch(
            #[inline(always)]
            || {
                for (row, y) in gate_up[first * 2 * width..].chunks_exact(2 * width).zip(block.chunks_exact_mut(width))
                {
                    let (gate, up) = row.split_at(width);
                    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
                        *y = g / (1.0 + simd::exp(-g)) * u;
                    }
                }
            },
        );
    });
}

/// `d_y (n, width), gate_up (n, 2·width) -> d_gate_up (n, 2·width)`.
pub fn glu_grad(d_y: &[f32], gate_up: &[f32], width: usize, d_gate_up: &mut [f32]) {
    par::rows(d_gate_up, 2 * width, |first, block| {
        simd::dispatch(
            #[inline(always)]
            || {
                let rows = gate_up[first * 2 * width..].chunks_exact(2 * width).zip(block.chunks_exact_mut(2 * width));
                for ((row, d_row), d_y) in rows.zip(d_y[first * width..].chunks_exact(width)) {
                    let (gate, up) = row.split_at(width);
                    let (d_gate, d_up) = d_row.split_at_mut(width);
                    for ((((d_g, d_u), &g), &u), &d) in d_gate.iter_mut().zip(d_up).zip(gate).zip(up).zip(d_y) {
                        let s = 1.0 / (1.0 + simd::exp(-g));
                        *d_u = d * g * s;
                        *d_g = d * u * s * (1.0 + g * (1.0 - s));
                    }
                }
            },
        );
    });
}
