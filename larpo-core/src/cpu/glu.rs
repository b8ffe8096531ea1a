//! Activations, the gated unit, and their gradients.

use super::{par, simd};
use crate::backend::Activation;

/// An activation and its slope, for loops that are compiled once for each.
trait Curve {
    fn value(x: f32) -> f32;
    /// The value, and the slope.
    fn both(x: f32) -> (f32, f32);
}

struct Silu;

impl Curve for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x / (1.0 + simd::exp(-x))
    }

    #[inline(always)]
    fn both(x: f32) -> (f32, f32) {
        let s = 1.0 / (1.0 + simd::exp(-x));
        (x * s, s * (1.0 + x * (1.0 - s)))
    }
}

struct GeluTanh;

/// √(2/π).
const ROOT: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

impl Curve for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        // (1 + tanh u)/2 = σ(2u)
        x / (1.0 + simd::exp(-2.0 * ROOT * (x + CUBIC * x * x * x)))
    }

    #[inline(always)]
    fn both(x: f32) -> (f32, f32) {
        let s = 1.0 / (1.0 + simd::exp(-2.0 * ROOT * (x + CUBIC * x * x * x)));
        (x * s, s + x * s * (1.0 - s) * 2.0 * ROOT * (1.0 + 3.0 * CUBIC * x * x))
    }
}

/// Calls `$f::<C>` for the curve of an activation.
macro_rules! with_curve {
    ($activation:expr, $f:ident($($argument:expr),*)) => {
        match $activation {
            Activation::Silu => $f::<Silu>($($argument),*),
            Activation::GeluTanh => $f::<GeluTanh>($($argument),*),
        }
    };
}

/// `gate_up (n, 2·width) -> y (n, width) = activation(gate)·up`.
pub fn glu(gate_up: &[f32], width: usize, activation: Activation, y: &mut [f32]) {
    with_curve!(activation, gate(gate_up, width, y));
}

fn gate<C: Curve>(gate_up: &[f32], width: usize, y: &mut [f32]) {
    par::rows(y, width, |first, block| {
        simd::dispatch(
            #[inline(always)]
            || {
                for (row, y) in gate_up[first * 2 * width..].chunks_exact(2 * width).zip(block.chunks_exact_mut(width))
                {
                    let (gate, up) = row.split_at(width);
                    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
                        *y = C::value(g) * u;
                    }
                }
            },
        );
    });
}

/// `d_y (n, width), gate_up (n, 2·width) -> d_gate_up (n, 2·width)`.
pub fn glu_grad(d_y: &[f32], gate_up: &[f32], width: usize, activation: Activation, d_gate_up: &mut [f32]) {
    with_curve!(activation, gate_grad(d_y, gate_up, width, d_gate_up));
}

fn gate_grad<C: Curve>(d_y: &[f32], gate_up: &[f32], width: usize, d_gate_up: &mut [f32]) {
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
                            (a[i], b[i]) = slopes::<C>(g[i], u[i], d[i]);
                        }
                        d_gate[part.clone()].copy_from_slice(&a);
                        d_up[part].copy_from_slice(&b);
                    }
                    for i in whole..width {
                        (d_gate[i], d_up[i]) = slopes::<C>(gate[i], up[i], d_y[i]);
                    }
                }
            },
        );
    });
}

/// The gradients by gate and up.
#[inline(always)]
fn slopes<C: Curve>(gate: f32, up: f32, d_y: f32) -> (f32, f32) {
    let (value, slope) = C::both(gate);
    (d_y * up * slope, d_y * value)
}

/// `y = activation(x)`.
pub fn activate(x: &[f32], activation: Activation, y: &mut [f32]) {
    with_curve!(activation, curve(x, y));
}

fn curve<C: Curve>(x: &[f32], y: &mut [f32]) {
    par::rows(y, 1, |first, y| {
        simd::dispatch(
            #[inline(always)]
            || y.iter_mut().zip(&x[first..]).for_each(|(y, &x)| *y = C::value(x)),
        );
    });
}

/// `d_x = d_y · activation'(x)`.
pub fn activate_grad(d_y: &[f32], x: &[f32], activation: Activation, d_x: &mut [f32]) {
    with_curve!(activation, curve_grad(d_y, x, d_x));
}

fn curve_grad<C: Curve>(d_y: &[f32], x: &[f32], d_x: &mut [f32]) {
    par::rows(d_x, 1, |first, d_x| {
        simd::dispatch(
            #[inline(always)]
            || {
                for ((d_x, &d), &x) in d_x.iter_mut().zip(&d_y[first..]).zip(&x[first..]) {
                    *d_x = d * C::both(x).1;
                }
            },
        );
    });
}
