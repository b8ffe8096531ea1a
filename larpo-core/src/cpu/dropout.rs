//! Dropout: every block of four elements draws its own random numbers, so any split over threads gives the same bits.

use super::par;
use crate::backend::{DropoutSpec, Store};

/// `y = x` or `y += x` with the factors of `spec`, of one length.
pub fn dropout(x: &[f32], spec: &DropoutSpec, y: &mut [f32], store: Store) {
    let whole = y.len() / 4 * 4;
    let put = |block: u64, x: &[f32], y: &mut [f32]| {
        for ((y, x), factor) in y.iter_mut().zip(x).zip(spec.factors(block)) {
            let kept = x * factor as f32;
            *y = if store == Store::Set { kept } else { *y + kept };
        }
    };
    let (blocks, rest) = y.split_at_mut(whole);
    par::rows(blocks, 4, |first, y| {
        for (block, y) in (first..).zip(y.chunks_exact_mut(4)) {
            put(block as u64, &x[4 * block..4 * block + 4], y);
        }
    });
    put((whole / 4) as u64, &x[whole..], rest);
}
