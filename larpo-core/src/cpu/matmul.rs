//! Matrix products on views: one function for every transposition, with or without accumulation.
//!
//! Products go through the `gemm` crate, which picks the widest instruction set at run time; without that feature they go
//! through ndarray's own product. Products of few rows with a transposed weight (decoding) have a kernel of their own:
//! they are bound by reading the weight once.

use super::bf16::{Numbers, PART, rows_at_once, widen};
use super::skinny::{Rows, dots};
use super::{par, scratch, simd};
use crate::backend::Store;
use ndarray::{ArrayView2, ArrayViewMut2, s};

/// How many threads a product may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone (the caller is one of many parallel tasks).
    One,
    /// All threads of the current pool.
    All,
}

/// Rows up to which a product `x · wᵀ` is computed by streaming the weight, where its sums are `k` long: short ones are
/// not worth adding up lanes. Measured on Zen 3: gemm catches up at 20 rows with k = 128 and at 60 to 100 with k = 288 to 1536.
fn skinny_rows(k: usize) -> usize {
    (k / 6).clamp(16, 64)
}

/// Multiplications of such a product that are worth a task of their own: about 10 µs.
const SKINNY_TASK: usize = 1 << 18;
/// Tasks a thread gets, so that a thread that was interrupted hands work over.
const TASKS_PER_THREAD: usize = 4;
/// Tasks start at multiples of this many columns: a cache line of `y`, and whole tiles.
pub(super) const COLUMNS: usize = 48;

/// `c = alpha · a·b` or `c += alpha · a·b`, with `a (m, k)`, `b (k, n)`, `c (m, n)`, any strides.
#[track_caller]
pub fn matmul(
    alpha: f32,
    a: ArrayView2<f32>,
    b: ArrayView2<f32>,
    mut c: ArrayViewMut2<f32>,
    store: Store,
    on: Threads,
) {
    let ((m, k), (k2, n)) = (a.dim(), b.dim());
    assert!(k == k2 && c.dim() == (m, n), "matmul: ({m}, {k}) · ({k2}, {n}) -> {:?}", c.dim());
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if store == Store::Set {
            c.fill(0.0);
        }
        return;
    }
    product(alpha, a, b, c, store, on);
}

#[cfg(feature = "gemm")]
fn product(alpha: f32, a: ArrayView2<f32>, b: ArrayView2<f32>, mut c: ArrayViewMut2<f32>, store: Store, on: Threads) {
    let ((m, k), n) = (a.dim(), b.dim().1);
    // Below about a million multiplications, waking other threads costs more than they save.
    let parallelism = match on {
        Threads::All if m * n * k >= 1 << 18 && par::threads() > 1 => gemm::Parallelism::Rayon(par::threads()),
        _ => gemm::Parallelism::None,
    };
    let (cs, as_, bs) = (c.strides().to_owned(), a.strides(), b.strides());
    // SAFETY: pointers, extents and strides come from live ndarray views whose dimensions were checked to agree; `c` is
    // borrowed mutably, so it overlaps neither operand.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            cs[1],
            cs[0],
            store == Store::Add,
            a.as_ptr(),
            as_[1],
            as_[0],
            b.as_ptr(),
            bs[1],
            bs[0],
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(not(feature = "gemm"))]
fn product(alpha: f32, a: ArrayView2<f32>, b: ArrayView2<f32>, mut c: ArrayViewMut2<f32>, store: Store, on: Threads) {
    let beta = if store == Store::Add { 1.0 } else { 0.0 };
    let rows = a.dim().0;
    let block = rows.div_ceil(par::threads());
    if on == Threads::One || block == rows {
        return ndarray::linalg::general_mat_mul(alpha, &a, &b, beta, &mut c);
    }
    let tasks: Vec<_> =
        a.axis_chunks_iter(ndarray::Axis(0), block).zip(c.axis_chunks_iter_mut(ndarray::Axis(0), block)).collect();
    par::each(tasks, |(a, mut c)| ndarray::linalg::general_mat_mul(alpha, &a, &b, beta, &mut c));
}

/// Length of a panel of an operand that the product library packs: the least that gemm 0.19 chooses on any cache, and what
/// it chooses for the caches of present processors.
const PANEL: usize = 512;

/// Rows of the largest block that gemm 0.19 keeps in registers. It works on `yᵀ`, whose rows are the columns of the result.
fn register_block() -> usize {
    match simd::instruction_set() {
        "AVX-512" => 64,
        "AVX2" => 16,
        _ => 8,
    }
}

/// Bytes of memory that the product library takes while it computes `(m, k) · (k, n)`: a panel of one operand. The left one is
/// not packed where the result is no wider than two blocks.
pub fn packing_bytes(m: usize, k: usize, n: usize) -> usize {
    let width = if n <= 2 * register_block() { n } else { m.max(n) };
    size_of::<f32>() * k.min(PANEL) * width
}

/// Bytes of memory that [`linear`] takes beside its operands.
pub fn linear_packing_bytes(n: usize, k: usize, out: usize) -> usize {
    if n <= skinny_rows(k) { 0 } else { packing_bytes(n, k, out) }
}

/// Floats of scratch that [`linear`] needs for `n` rows.
pub fn linear_wide_len(n: usize, w: Numbers, k: usize) -> usize {
    if n <= skinny_rows(k) { 0 } else { w.wide_len(PART.max(k)) }
}

/// `y (n, out) = x (n, in) · w (out, in)ᵀ`, on contiguous slices; `wide` is scratch of [`linear_wide_len`].
pub fn linear(x: &[f32], w: Numbers, out: usize, y: &mut [f32], store: Store, wide: &mut [f32]) {
    let k = w.len() / out;
    let n = x.len() / k;
    if n <= skinny_rows(k) {
        return skinny(x, w, k, y, store);
    }
    let (x, mut y) = (view(x, n, k), view_mut(y, n, out));
    let rows = rows_at_once(w, k);
    for first in (0..out).step_by(rows) {
        let last = out.min(first + rows);
        let part = view(w.slice(first * k..last * k).widened(wide), last - first, k);
        matmul(1.0, x, part.t(), y.slice_mut(s![.., first..last]), store, Threads::All);
    }
}

/// `d_x (n, in) = d_y (n, out) · w (out, in)`; `wide` is scratch for a part of the weight.
pub fn linear_grad_x(
    d_y: ArrayView2<f32>,
    w: Numbers,
    mut d_x: ArrayViewMut2<f32>,
    mut store: Store,
    wide: &mut [f32],
) {
    let (out, k) = (d_y.ncols(), d_x.ncols());
    let rows = rows_at_once(w, k);
    for first in (0..out).step_by(rows) {
        let last = out.min(first + rows);
        let part = view(w.slice(first * k..last * k).widened(wide), last - first, k);
        matmul(1.0, d_y.slice(s![.., first..last]), part, d_x.view_mut(), store, Threads::All);
        store = Store::Add;
    }
}

/// Splits the columns of `y` over the threads.
fn skinny(x: &[f32], w: Numbers, k: usize, y: &mut [f32], store: Store) {
    let (n, out) = (x.len() / k, w.len() / k);
    let x: Vec<&[f32]> = x.chunks_exact(k).collect();
    // Up to four rows take as long as one: the time that reading the weight takes.
    let threads = par::threads();
    let tasks = match n.max(4) * w.len() / SKINNY_TASK {
        0 | 1 => 1,
        few if few < TASKS_PER_THREAD * threads => threads,
        _ => TASKS_PER_THREAD * threads,
    };
    let width = out.div_ceil(tasks).next_multiple_of(COLUMNS);
    let tasks: Vec<_> = par::columns(y, out, width).into_iter().enumerate().collect();
    par::each(tasks, |(i, mut y)| {
        let w = w.slice(i * width * k..out.min((i + 1) * width) * k);
        match w {
            Numbers::F32(w) => dots(&x, Rows::adjacent(w, k), &mut y, store),
            // A few rows at a time, which stay in the nearest cache.
            Numbers::Bf16(w) => scratch::with(COLUMNS * k, |wide| {
                for (part, first) in w.chunks(COLUMNS * k).zip((0..).step_by(COLUMNS)) {
                    let (wide, columns) = (&mut wide[..part.len()], part.len() / k);
                    widen(part, wide);
                    let mut y: Vec<&mut [f32]> = y.iter_mut().map(|y| &mut y[first..first + columns]).collect();
                    dots(&x, Rows::adjacent(wide, k), &mut y, store);
                }
            }),
        }
    });
}

/// A contiguous row-major view.
#[track_caller]
pub fn view(x: &[f32], rows: usize, cols: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, cols), x).expect("matrix view: the slice holds rows · cols floats")
}

/// A contiguous row-major view, writable.
#[track_caller]
pub fn view_mut(x: &mut [f32], rows: usize, cols: usize) -> ArrayViewMut2<'_, f32> {
    ArrayViewMut2::from_shape((rows, cols), x).expect("matrix view: the slice holds rows · cols floats")
}
