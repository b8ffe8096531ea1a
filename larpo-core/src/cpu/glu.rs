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
                    let whole = width / simd::LANES * simd::LANES;
                    // Blocks of registers: with five slices at once the compiler gives up on the plain loop.
                    for at in (0..whole).step_by(simd::LANES) {
                        let part = at..at + simd::LANES;
                        let (g, u, d) = (&gate[part.clone()], &up[part.clone()], &d_y[part.clone()]);
                        let (mut a, mut b) = ([0f32; simd::LANES], [0f32; simd::LANES]);
                        for i in 0..simd::LANES {
                            (a[i], b[i]) = slopes(g[i], u[i], d[i]);
                        }
                        d_gate[part.clone()].copy_from_slice(&a);
                        d_up[part].copy_from_slice(&b);
                    }
                    for i in whole..width {
                        (d_gate[i], d_up[i]) = slopes(gate[i], up[i], d_y[i]);
                    }
                }
            },
        );
    });
}

/// The gradients by gate and up.
#[inline(always)]
fn slopes(gate: f32, up: f32, d_y: f32) -> (f32, f32) {
    let s = 1.0 / (1.0 + simd::exp(-gate));
    (d_y * up * s * (1.0 + gate * (1.0 - s)), d_y * gate * s)
}
