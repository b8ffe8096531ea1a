//! Contrastive on lists as they lie in memory: a register holds consecutive items of one list. Nothing is turned; what there
//! is one of for a list is computed for many lists in the lanes of a register.

use super::lanes::Lanes;
use super::tile::{QUAD, has_quads};
use crate::cpu::prefetch::{LINE, prefetch};
use pulp::Simd;

/// Most lists at a time.
pub const BLOCK: usize = 32;

/// How many items ahead the lists and their gradient are asked for: half a block of lists of 16.
pub const AHEAD: usize = 256;

/// A little below `e^`[`super::lanes::LN_LARGEST`]: sums from here on may have an exponential that was limited.
const TOO_LARGE: f32 = 6.07e37;

/// One register.
type Row<S> = Lanes<S, 1>;

/// What is kept of [`BLOCK`] lists of one length.
///
/// Register 0 has the first items of a list, the others end where the list ends: where its length is no multiple of the
/// lanes, items at the end of register 0 are in register 1 too, and are computed twice rather than masked.
pub struct Rows<S: Simd> {
    /// Length of the lists.
    m: usize,
    /// Items that only register 0 has: from 1 to as many as there are lanes.
    alone: usize,
    /// 1 for those of them that are rivals of the first item, 0 elsewhere.
    rivals: Row<S>,
    /// `e^(γ_j - γ_0)`, `(BLOCK, registers)`.
    e: Vec<Row<S>>,
    /// Parts of the sums of the rivals' e, `(BLOCK)`.
    parts: Vec<Row<S>>,
    /// For every list: the sum S, what `e` is to be multiplied by, and the derivative by the first item.
    sum: [f32; BLOCK],
    scale: [f32; BLOCK],
    d_first: [f32; BLOCK],
}

impl<S: Simd> Rows<S> {
    /// Room for lists of `m ≥ 2` items.
    pub fn new(simd: S, m: usize) -> Self {
        let registers = m.div_ceil(S::F32_LANES);
        let alone = first_alone::<S>(m);
        let rivals = Row::from_fn(simd, |lane| if (1..alone).contains(&lane) { 1.0 } else { 0.0 });
        let zeros = |count: usize| vec![Row::splat(simd, 0.0); count];
        Self {
            m,
            alone,
            rivals,
            e: zeros(BLOCK * registers),
            parts: zeros(BLOCK),
            sum: [0.0; BLOCK],
            scale: [0.0; BLOCK],
            d_first: [0.0; BLOCK],
        }
    }
}

/// How many of the `m` items of a list only its first register has.
#[inline(always)]
pub fn first_alone<S: Simd>(m: usize) -> usize {
    m - (m.div_ceil(S::F32_LANES) - 1) * S::F32_LANES
}

/// First item of register `r` of a list.
#[inline(always)]
pub fn register_start<S: Simd>(alone: usize, r: usize) -> usize {
    if r == 0 { 0 } else { alone + (r - 1) * S::F32_LANES }
}

/// The losses of lists of m items that begin at `starts` of `gamma`, at most [`BLOCK`] of them, and their gradients at the
/// same places less `offset` of `d_gamma`. NaN for a list with a γ that is not finite or more than about [`super::lanes::LN_LARGEST`] above
/// the first: what its gradient is then does not matter.
///
/// With `S = Σ_{j>0} e^(γ_j - γ_0)` the loss is `ln(1 + S)`, its derivatives are `e_j / (1 + S)` and `-S / (1 + S)`.
#[inline(always)]
pub fn contrastive<S: Simd>(
    simd: S,
    gamma: &[f32],
    d_gamma: &mut [f32],
    starts: &[usize],
    offset: usize,
    rows: &mut Rows<S>,
    loss: &mut [f32; BLOCK],
) {
    let (m, lanes) = (rows.m, S::F32_LANES);
    let registers = m.div_ceil(lanes);
    let (zero, one) = (Row::splat(simd, 0.0), Row::splat(simd, 1.0));
    for (i, &start) in starts.iter().enumerate() {
        for ahead in (start + AHEAD..start + m + AHEAD).step_by(LINE) {
            prefetch(gamma, ahead);
            prefetch(d_gamma, ahead - offset);
        }
        let list = &gamma[start..start + m];
        let first = zero.all(list[0]);
        let mut part = zero;
        for r in (0..registers).rev() {
            let x = load(simd, &list[register_start::<S>(rows.alone, r)..]) - first;
            let e = x.exp();
            rows.e[i * registers + r] = e;
            part = if r == 0 { e.mul_add(rows.rivals, part) } else { part + e };
            // NaN where x is not finite, which the limits of the exponential hide.
            part = x.mul_add(zero, part);
        }
        rows.parts[i] = part;
    }
    sums(simd, &rows.parts, &mut rows.sum);
    for at in (0..starts.len()).step_by(lanes) {
        let sum = load(simd, &rows.sum[at..]);
        let scale = one / (one + sum);
        store(simd, &mut rows.scale[at..], scale);
        store(simd, &mut rows.d_first[at..], zero - sum * scale);
        let usable = one.all(TOO_LARGE).greater(sum);
        store(simd, &mut loss[at..], usable.select(sum.ln_1p(), one.all(f32::NAN)));
    }
    for (i, &start) in starts.iter().enumerate() {
        let d = &mut d_gamma[start - offset..][..m];
        for r in 0..registers {
            store(simd, &mut d[register_start::<S>(rows.alone, r)..], rows.e[i * registers + r] * rows.scale[i]);
        }
        d[0] = rows.d_first[i];
    }
}

/// The first items of `x`, at most a register of them; 0 where there are none.
#[inline(always)]
pub fn load<S: Simd>(simd: S, x: &[f32]) -> Row<S> {
    let row = match x.split_at_checked(S::F32_LANES) {
        Some((full, _)) => S::as_simd_f32s(full).0[0],
        None => simd.partial_load_f32s(x),
    };
    Row::of(simd, [row])
}

/// The reverse of [`load`].
#[inline(always)]
pub fn store<S: Simd>(simd: S, x: &mut [f32], row: Row<S>) {
    match x.split_at_mut_checked(S::F32_LANES) {
        Some((full, _)) => S::as_mut_simd_f32s(full).0[0] = row.x[0],
        None => simd.partial_store_f32s(x, row.x[0]),
    }
}

/// The sum of the lanes of each of [`BLOCK`] registers.
#[inline(always)]
fn sums<S: Simd>(simd: S, parts: &[Row<S>], sums: &mut [f32]) {
    if !has_quads::<S>() {
        for (part, sum) in parts.iter().zip(sums) {
            *sum = simd.reduce_sum_f32s(part.x[0]);
        }
        return;
    }
    let (parts, sums) = (parts.as_chunks::<QUAD>().0, sums.as_chunks_mut::<QUAD>().0);
    for (parts, sum) in parts.iter().zip(sums) {
        // After turning, lane l of each 128 bits is list l.
        let turned = simd.deinterleave_shfl_f32s([parts[0].x[0], parts[1].x[0], parts[2].x[0], parts[3].x[0]]);
        let four = simd.add_f32s(simd.add_f32s(turned[0], turned[1]), simd.add_f32s(turned[2], turned[3]));
        let four: &[f32] = bytemuck::cast_slice(std::slice::from_ref(&four));
        let mut quads = four.as_chunks::<QUAD>().0.iter();
        *sum = *quads.next().unwrap_or(&[0.0; QUAD]);
        for quad in quads {
            for l in 0..QUAD {
                sum[l] += quad[l];
            }
        }
    }
}
