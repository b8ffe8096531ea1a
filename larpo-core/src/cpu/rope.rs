//! Rotary position embedding, half-split pairs, in place.

use super::{par, simd};
use crate::backend::AttentionSpec;

/// Rotates the query and key heads of `qkv (n, width)` by the angles of `table (positions, head_dim)`.
pub fn rope(qkv: &mut [f32], positions: &[u32], table: &[f32], spec: &AttentionSpec, inverse: bool) {
    let (d, width) = (spec.head_dim, spec.qkv_width());
    let half = d / 2;
    let rotated = (spec.heads + spec.kv_heads) * d;
    let sign = if inverse { -1.0 } else { 1.0 };
    par::rows(qkv, width, |first, block| {
        simd::dispatch(
            #[inline(always)]
            || {
                for (row, &position) in block.chunks_exact_mut(width).zip(&positions[first..]) {
                    let (cos, sin) = table[position as usize * d..][..d].split_at(half);
                    for head in row[..rotated].chunks_exact_mut(d) {
                        let (a, b) = head.split_at_mut(half);
                        for (((a, b), &c), &s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                            let s = s * sign;
                            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                        }
                    }
                }
            },
        );
    });
}
