//! Row gathers: token embedding, scored rows, and their gradients.

use super::bf16::Numbers;
use super::par;
use crate::backend::Store;

/// `y (m, channels) = x[rows]`.
pub fn gather_rows(x: Numbers, rows: &[u32], channels: usize, y: &mut [f32]) {
    par::rows(y, channels, |first, block| {
        for (y, &row) in block.chunks_exact_mut(channels).zip(&rows[first..]) {
            let first = row as usize * channels;
            x.slice(first..first + channels).copy_to(y);
        }
    });
}

/// Adds `d_y (m, channels)` at `rows` of `d_x`; equal rows add up, in order.
pub fn gather_rows_grad(d_y: &[f32], rows: &[u32], channels: usize, d_x: &mut [f32], store: Store) {
    if store == Store::Set {
        par::rows(d_x, channels, |_, block| block.fill(0.0));
    }
    // One pass over m rows of a few kilobytes each: a fraction of a percent of a step, and always in the same order.
    for (d_y, &row) in d_y.chunks_exact(channels).zip(rows) {
        for (d_x, d) in d_x[row as usize * channels..][..channels].iter_mut().zip(d_y) {
            *d_x += d;
        }
    }
}
