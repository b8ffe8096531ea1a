//! Vector arithmetic without intrinsics: slice loops that the compiler vectorises, compiled once per instruction set.
//!
//! [`dispatch`] runs a closure in a copy compiled for the widest instructions the machine has (AVX-512, AVX2+FMA, NEON or
//! the baseline), chosen at run time. The closure itself and what it calls must be `#[inline(always)]`, so that they become
//! part of that copy; otherwise they are compiled for the baseline alone.

use pulp::Arch;

/// Lanes of the accumulators in reductions: one 512-bit register, or two or four smaller ones.
pub const LANES: usize = 16;

/// Runs `f` compiled for the best instruction set of this machine.
#[inline(always)]
pub fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(f)
}

/// What [`dispatch`] compiles for on this machine: `AVX-512`, `AVX2`, `NEON` or `baseline`.
pub fn instruction_set() -> &'static str {
    match Arch::new() {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Arch::V4(_) => "AVX-512",
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Arch::V3(_) => "AVX2",
        #[cfg(target_arch = "aarch64")]
        Arch::Neon(_) => "NEON",
        _ => "baseline",
    }
}

/// `e^x` within 2 ulp for normal results; below −87.3 the smallest normal number, above 88.37 about 2.4e38.
///
/// Cody–Waite reduction by ln 2 in two parts and a degree-6 minimax polynomial (coefficients of Cephes' `expf`).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5·2^23: adding it rounds to the nearest integer
    let x = x.clamp(-87.336_54, 88.376_26);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e = p * (r * r) + r + 1.0;
    // The integer sits in the low mantissa bits of `shifted`.
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    e * f32::from_bits(((exponent + 127) << 23) as u32)
}

/// `tanh x` within 1.2e-7, and within 2 ulp beyond ±0.35. Of |x|, where what is taken from one is small.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x)
}

/// `c·tanh(x / c)` and its slope there.
#[inline(always)]
pub fn softcap(c: f32, x: f32) -> (f32, f32) {
    let t = tanh(x / c);
    (c * t, 1.0 - t * t)
}

/// Sum of the accumulators, as a tree: four dependent additions instead of fifteen.
#[inline(always)]
pub fn reduce(lanes: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = lanes;
    let (a, b, c, d) = (a + i, b + j, c + k, d + l);
    let (e, f, g, h) = (e + m, f + n, g + o, h + p);
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Sum with [`LANES`] parallel accumulators.
#[inline(always)]
pub fn sum_map(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail: f32 = chunks.remainder().iter().map(|&v| f(v)).sum();
    for chunk in chunks {
        for (a, &v) in lanes.iter_mut().zip(chunk) {
            *a += f(v);
        }
    }
    reduce(lanes) + tail
}

/// `Σ f(x, y)` with [`LANES`] parallel accumulators.
#[inline(always)]
pub fn sum_map2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let n = x.len() / LANES * LANES;
    let y = &y[..x.len()];
    for (cx, cy) in x[..n].chunks_exact(LANES).zip(y[..n].chunks_exact(LANES)) {
        for i in 0..LANES {
            lanes[i] += f(cx[i], cy[i]);
        }
    }
    let tail: f32 = x[n..].iter().zip(&y[n..]).map(|(&a, &b)| f(a, b)).sum();
    reduce(lanes) + tail
}

/// `Σ x·y`.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    sum_map2(x, y, |a, b| a * b)
}

/// Largest element; −∞ of nothing.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder().iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
    for chunk in chunks {
        for (a, &v) in lanes.iter_mut().zip(chunk) {
            *a = if v > *a { v } else { *a };
        }
    }
    lanes.iter().fold(tail, |m, &v| if v > m { v } else { m })
}

/// Replaces `x` by `exp(x·scale − shift)` and returns the sum.
#[inline(always)]
pub fn exp_sum(x: &mut [f32], scale: f32, shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let n = x.len() / LANES * LANES;
    for chunk in x[..n].chunks_exact_mut(LANES) {
        for (a, v) in lanes.iter_mut().zip(chunk) {
            *v = exp(*v * scale - shift);
            *a += *v;
        }
    }
    let mut tail = 0.0;
    for v in &mut x[n..] {
        *v = exp(*v * scale - shift);
        tail += *v;
    }
    reduce(lanes) + tail
}

/// `Σ exp(x − shift)`.
#[inline(always)]
pub fn sum_exp(x: &[f32], shift: f32) -> f32 {
    sum_map(x, |v| exp(v - shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_tanh_are_as_exact_as_stated() {
        let mut worst = 0f64;
        let mut x = -87.0f32;
        while x < 88.3 {
            let exact = f64::from(x).exp();
            let rounded = exact as f32;
            let ulp = f64::from(rounded.next_up()) - f64::from(rounded);
            worst = worst.max((f64::from(exp(x)) - exact).abs() / ulp);
            x += 0.000_731;
        }
        assert!(worst <= 2.0, "worst error {worst} ulp");
        assert_eq!(exp(0.0), 1.0);
        let mut x = -50.0f32;
        while x < 50.0 {
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 1.2e-7, "tanh {x}: {}", tanh(x));
            x += 0.000_731;
        }
        assert!(exp(f32::NEG_INFINITY) < 1.2e-38);
    }
}
