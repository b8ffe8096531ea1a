//! Products of few rows: with a transposed weight, `y = x · wᵀ` ([`dots`]), and of weights with rows, `y = p · v` ([`mix`]).
//! Decoding is made of them.
//!
//! Each row of `w` or `v` comes from memory once and serves all rows of the result while it is in the nearest cache.
//! Operands are read as they lie, so nothing is packed; a tile of sums stays in registers.
//!
//! An element of the result is the same sum in the same order whatever the tile it falls into, so it depends on its own rows
//! of the operands alone: not on how many rows there are, not on the split over threads.

// Tiles index several arrays by the same constant-length counters, which keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::prefetch::{LINE, prefetch};
use crate::backend::Store;
use pulp::{Arch, Simd, WithSimd};

/// Floats of `w` that are worked on together: a quarter of a first-level cache of 32 KiB, as the next block is there too.
const BLOCK: usize = 4096;

/// How far ahead rows with gaps between them are asked for.
const ROWS_AHEAD: usize = 12;

/// Rows of equal length at equal distances in a slice.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// Starts at the first row and reaches to the end of the last, or further.
    pub data: &'a [f32],
    /// Number of rows.
    pub len: usize,
    /// Floats of a row.
    pub width: usize,
    /// Floats from the start of one row to the start of the next.
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// Adjacent rows that fill `data`.
    pub fn adjacent(data: &'a [f32], width: usize) -> Self {
        Self { data, len: data.len() / width, width, stride: width }
    }

    #[inline(always)]
    fn row(&self, index: usize) -> &'a [f32] {
        &self.data[index * self.stride..][..self.width]
    }
}

/// `y[i] (w.len)` gets `x[i] (w.width) · wᵀ`, for every row `i`.
///
/// While one block of `w` is worked on, the next is asked for: the processor's own prefetching stops with every block.
pub fn dots(x: &[&[f32]], w: Rows, y: &mut [&mut [f32]], store: Store) {
    debug_assert!(x.len() == y.len(), "dots: one row of y for each of x");
    Arch::new().dispatch(Dots { x, w, y, store });
}

/// `y[i] (v.width)` gets `Σ_j p[i][j] · v[j]`, for every row `i`; `p[i]` has `v.len` weights.
pub fn mix(p: &[&[f32]], v: Rows, y: &mut [&mut [f32]], store: Store) {
    debug_assert!(p.len() == y.len(), "mix: one row of y for each of p");
    Arch::new().dispatch(Mix { p, v, y, store });
}

struct Dots<'a, 'y> {
    x: &'a [&'a [f32]],
    w: Rows<'a>,
    y: &'a mut [&'y mut [f32]],
    store: Store,
}

impl WithSimd for Dots<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // The sums, one vector of each operand and a temporary must fit into the registers.
        if S::REGISTER_COUNT >= 32 { self.run::<S, 4>(simd, 6) } else { self.run::<S, 3>(simd, 4) }
    }
}

impl Dots<'_, '_> {
    /// Tiles of up to `height` rows of `x` and `N` rows of `w`.
    #[inline(always)]
    fn run<S: Simd, const N: usize>(self, simd: S, height: usize) {
        let Self { x, w, y, store } = self;
        let (m, n, k) = (y.len(), w.len, w.width);
        let passes = m.div_ceil(height);
        let block = (BLOCK / k / N).max(1) * N;
        // All tiles of a block together ask for the next block, evenly, so that memory is never idle.
        let floats = (N * S::F32_LANES).div_ceil(passes);
        let lines = if w.stride == k { floats.div_ceil(LINE) } else { 0 };
        for first in (0..n).step_by(block) {
            let last = (first + block).min(n);
            let mut ahead = last * k;
            for pass in 0..passes {
                // Passes of nearly equal height: ten rows are 4 + 3 + 3, not 4 + 4 + 2.
                let rows = pass * m / passes..(pass + 1) * m / passes;
                let (x, y) = (&x[rows.clone()], &mut y[rows]);
                let mut j = first;
                while j + N <= last {
                    if lines == 0 && pass == 0 {
                        for row in j + ROWS_AHEAD..j + ROWS_AHEAD + N {
                            prefetch_row(w, row);
                        }
                    }
                    let next = Ahead { at: ahead, floats };
                    match lines {
                        0 => dots_tiles::<S, N, 0>(simd, x, w, y, j, store, next),
                        1 => dots_tiles::<S, N, 1>(simd, x, w, y, j, store, next),
                        2 => dots_tiles::<S, N, 2>(simd, x, w, y, j, store, next),
                        _ => dots_tiles::<S, N, 4>(simd, x, w, y, j, store, next),
                    }
                    ahead += (N * k).div_ceil(passes);
                    j += N;
                }
                for j in j..last {
                    dots_tiles::<S, 1, 0>(simd, x, w, y, j, store, Ahead { at: 0, floats: 0 });
                }
            }
        }
    }
}

/// What a tile asks for: the floats from `at` on, so many a step.
#[derive(Clone, Copy)]
struct Ahead {
    at: usize,
    floats: usize,
}

#[inline(always)]
fn dots_tiles<S: Simd, const N: usize, const LINES: usize>(
    simd: S,
    x: &[&[f32]],
    w: Rows,
    y: &mut [&mut [f32]],
    at: usize,
    store: Store,
    ahead: Ahead,
) {
    match y.len() {
        1 => dots_tile::<S, 1, N, LINES>(simd, x, w, y, at, store, ahead),
        2 => dots_tile::<S, 2, N, LINES>(simd, x, w, y, at, store, ahead),
        3 => dots_tile::<S, 3, N, LINES>(simd, x, w, y, at, store, ahead),
        4 => dots_tile::<S, 4, N, LINES>(simd, x, w, y, at, store, ahead),
        5 => dots_tile::<S, 5, N, LINES>(simd, x, w, y, at, store, ahead),
        _ => dots_tile::<S, 6, N, LINES>(simd, x, w, y, at, store, ahead),
    }
}

/// `y (M, at..at + N) = x (M) · w (at..at + N)ᵀ`, asking for `LINES` cache lines a step.
#[inline(always)]
fn dots_tile<S: Simd, const M: usize, const N: usize, const LINES: usize>(
    simd: S,
    x: &[&[f32]],
    w: Rows,
    y: &mut [&mut [f32]],
    at: usize,
    store: Store,
    ahead: Ahead,
) {
    let steps = w.width / S::F32_LANES;
    let x_parts: [_; M] = std::array::from_fn(|i| S::as_simd_f32s(&x[i][..w.width]));
    let w_parts: [_; N] = std::array::from_fn(|j| S::as_simd_f32s(w.row(at + j)));
    let xs: [&[S::f32s]; M] = std::array::from_fn(|i| &x_parts[i].0[..steps]);
    let ws: [&[S::f32s]; N] = std::array::from_fn(|j| &w_parts[j].0[..steps]);
    let mut sums = [[simd.splat_f32s(0.0); N]; M];
    for t in 0..steps {
        for line in 0..LINES {
            prefetch(w.data, ahead.at + t * ahead.floats + line * ahead.floats / LINES);
        }
        let b: [S::f32s; N] = std::array::from_fn(|j| ws[j][t]);
        for i in 0..M {
            let a = xs[i][t];
            for j in 0..N {
                sums[i][j] = simd.mul_add_e_f32s(a, b[j], sums[i][j]);
            }
        }
    }
    for i in 0..M {
        let y = &mut y[i][at..at + N];
        for j in 0..N {
            let tail: f32 = x_parts[i].1.iter().zip(w_parts[j].1).map(|(a, b)| a * b).sum();
            let value = simd.reduce_sum_f32s(sums[i][j]) + tail;
            y[j] = if store == Store::Add { y[j] + value } else { value };
        }
    }
}

struct Mix<'a, 'y> {
    p: &'a [&'a [f32]],
    v: Rows<'a>,
    y: &'a mut [&'y mut [f32]],
    store: Store,
}

/// Rows and vectors of a tile of [`mix`]: eight sums.
const MIX_ROWS: usize = 4;

impl WithSimd for Mix<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { p, v, y, store } = self;
        for (p, y) in p.chunks(MIX_ROWS).zip(y.chunks_mut(MIX_ROWS)) {
            match y.len() {
                1 => mix_rows::<S, 1>(simd, p, v, y, store),
                2 => mix_rows::<S, 2>(simd, p, v, y, store),
                3 => mix_rows::<S, 3>(simd, p, v, y, store),
                _ => mix_rows::<S, 4>(simd, p, v, y, store),
            }
        }
    }
}

#[inline(always)]
fn mix_rows<S: Simd, const M: usize>(simd: S, p: &[&[f32]], v: Rows, y: &mut [&mut [f32]], store: Store) {
    let p: [&[f32]; M] = std::array::from_fn(|i| &p[i][..v.len]);
    let vectors = v.width / S::F32_LANES;
    let mut at = 0;
    // A single row needs more sums side by side to hide the latency of an addition.
    while M == 1 && at + 4 <= vectors {
        mix_tile::<S, M, 4>(simd, p, v, y, at, store);
        at += 4;
    }
    while at + 2 <= vectors {
        mix_tile::<S, M, 2>(simd, p, v, y, at, store);
        at += 2;
    }
    if at < vectors {
        mix_tile::<S, M, 1>(simd, p, v, y, at, store);
    }
    for c in vectors * S::F32_LANES..v.width {
        for i in 0..M {
            let mut sum = if store == Store::Add { y[i][c] } else { 0.0 };
            for (j, &p) in p[i].iter().enumerate() {
                sum += p * v.data[j * v.stride + c];
            }
            y[i][c] = sum;
        }
    }
}

/// Vectors `at..at + C` of `y (M)`.
#[inline(always)]
fn mix_tile<S: Simd, const M: usize, const C: usize>(
    simd: S,
    p: [&[f32]; M],
    v: Rows,
    y: &mut [&mut [f32]],
    at: usize,
    store: Store,
) {
    let mut sums = [[simd.splat_f32s(0.0); C]; M];
    if store == Store::Add {
        for i in 0..M {
            sums[i].copy_from_slice(&S::as_simd_f32s(&y[i][..v.width]).0[at..at + C]);
        }
    }
    for j in 0..v.len {
        if at == 0 {
            prefetch_row(v, j + ROWS_AHEAD);
        }
        let row = &S::as_simd_f32s(v.row(j)).0[at..at + C];
        for i in 0..M {
            let weight = simd.splat_f32s(p[i][j]);
            for c in 0..C {
                sums[i][c] = simd.mul_add_e_f32s(weight, row[c], sums[i][c]);
            }
        }
    }
    for i in 0..M {
        S::as_mut_simd_f32s(&mut y[i][..v.width]).0[at..at + C].copy_from_slice(&sums[i]);
    }
}

/// Asks for a row, which may lie beyond the end.
#[inline(always)]
fn prefetch_row(rows: Rows, index: usize) {
    for c in (0..rows.width).step_by(LINE) {
        prefetch(rows.data, index * rows.stride + c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, factor: usize, modulus: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * factor) % modulus) as f32 / (modulus / 2) as f32 - 1.0).collect()
    }

    fn product(x: &[f32], w: Rows, start: f32, store: Store) -> Vec<Vec<f32>> {
        let x: Vec<&[f32]> = x.chunks_exact(w.width).collect();
        let mut y = vec![vec![start; w.len]; x.len()];
        dots(&x, w, &mut y.iter_mut().map(|row| &mut row[..]).collect::<Vec<_>>(), store);
        y
    }

    fn mixture(p: &[f32], v: Rows, start: f32, store: Store) -> Vec<Vec<f32>> {
        let p: Vec<&[f32]> = p.chunks_exact(v.len).collect();
        let mut y = vec![vec![start; v.width]; p.len()];
        mix(&p, v, &mut y.iter_mut().map(|row| &mut row[..]).collect::<Vec<_>>(), store);
        y
    }

    const SIZES: [(usize, usize, usize); 8] =
        [(1, 1, 1), (1, 4, 16), (2, 3, 7), (3, 5, 33), (10, 7, 48), (4, 4, 64), (6, 9, 131), (13, 100, 300)];

    #[test]
    fn products_equal_their_definition() {
        for (m, n, k) in SIZES.into_iter().chain((1..20).map(|m| (m, 31, 67))) {
            for gap in [0, 5] {
                let (x, p) = (numbers(m * k, 7919, 101), numbers(m * n, 31_337, 89));
                let data = numbers(n * (k + gap), 104_729, 97);
                let rows = Rows { data: &data, len: n, width: k, stride: k + gap };
                for (store, start) in [(Store::Set, f32::NAN), (Store::Add, 0.75)] {
                    let added = if store == Store::Add { 0.75 } else { 0.0 };
                    let (y, z) = (product(&x, rows, start, store), mixture(&p, rows, start, store));
                    let entry = |j: usize, t: usize| f64::from(data[j * (k + gap) + t]);
                    for i in 0..m {
                        for j in 0..n {
                            let dot: f64 = (0..k).map(|t| f64::from(x[i * k + t]) * entry(j, t)).sum();
                            let error = f64::from(y[i][j]) - dot - added;
                            assert!(error.abs() < 1e-6 * (k as f64 + 1.0), "dots {m}x{n}x{k}: {error}");
                        }
                        for t in 0..k {
                            let sum: f64 = (0..n).map(|j| f64::from(p[i * n + j]) * entry(j, t)).sum();
                            let error = f64::from(z[i][t]) - sum - added;
                            assert!(error.abs() < 1e-6 * (n as f64 + 1.0), "mix {m}x{n}x{k}: {error}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let (m, n, k) = (23, 50, 91);
        let (x, p) = (numbers(m * k, 7919, 101), numbers(m * n, 31_337, 89));
        let data = numbers(n * k, 104_729, 97);
        let rows = Rows::adjacent(&data, k);
        let (dots, mixed) = (product(&x, rows, 0.0, Store::Set), mixture(&p, rows, 0.0, Store::Set));
        for first in 0..m {
            for last in first + 1..=m {
                assert_eq!(product(&x[first * k..last * k], rows, 0.0, Store::Set), dots[first..last]);
                assert_eq!(mixture(&p[first * n..last * n], rows, 0.0, Store::Set), mixed[first..last]);
            }
        }
        // Nor on where the rows of the weight are split.
        let part = product(&x, Rows::adjacent(&data[7 * k..40 * k], k), 0.0, Store::Set);
        assert!(part.iter().zip(&dots).all(|(part, all)| part[..] == all[7..40]));
    }
}
