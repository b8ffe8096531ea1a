//! Contrastive and ListMLE without ties, for blocks of lists of sixteen items: the sizes are known when this is compiled,
//! and what the general kernels ask of every item to be right for every list is asked here of a list as a whole. A list for
//! which it does not hold has the loss NaN, and is for those kernels.

use super::super::LossType;
use super::lanes::Lanes;
use super::tile::{List, QUAD, SIDE_BY_SIDE, load_side_by_side, store_side_by_side};
use crate::cpu::prefetch::prefetch;
use pulp::{Arch, Simd, WithSimd};

/// Lists of a block: a multiple of the lanes of every register.
pub const BLOCK: usize = 32;

/// How many items ahead the lists and their gradient are asked for: a block.
const AHEAD: usize = BLOCK * SIDE_BY_SIDE;

/// One register.
type Row<S> = Lanes<S, 1>;

/// On a cache line of its own, and with it the frame of the function: registers of 512 bits that are kept there would
/// otherwise all lie across two lines.
#[repr(align(64))]
struct Aligned<T>(T);

/// Whether there is a kernel for a loss, lists of m items and these registers: a list must fill whole ones, and their parts
/// of 128 bits are turned.
pub fn has<S: Simd>(loss: LossType, m: usize) -> bool {
    matches!(loss, LossType::Contrastive | LossType::Listmle)
        && m == SIDE_BY_SIDE
        && SIDE_BY_SIDE.is_multiple_of(S::F32_LANES)
        && S::F32_LANES.is_multiple_of(QUAD)
}

/// Losses and gradients of a block. Every kernel is a function of its own: its constants then stay in registers.
pub fn evaluate(loss: LossType, gamma: &[List; BLOCK], d_gamma: &mut [List; BLOCK], losses: &mut [f32; BLOCK]) {
    let block = Block { gamma, d_gamma, loss: losses };
    match loss {
        LossType::Contrastive => Arch::new().dispatch(Contrastive(block)),
        _ => Arch::new().dispatch(Listmle(block)),
    }
}

/// What a kernel reads and writes.
struct Block<'a> {
    gamma: &'a [List; BLOCK],
    d_gamma: &'a mut [List; BLOCK],
    loss: &'a mut [f32; BLOCK],
}

struct Contrastive<'a>(Block<'a>);

impl WithSimd for Contrastive<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        contrastive(simd, self.0.gamma, self.0.d_gamma, self.0.loss);
    }
}

struct Listmle<'a>(Block<'a>);

impl WithSimd for Listmle<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        listmle(simd, self.0.gamma, self.0.d_gamma, self.0.loss);
    }
}

/// The lists as they lie: a register has items of one list.
///
/// With `S = Σ_{j>0} e^(γ_j - γ_0)` the loss is `ln(1 + S)`, its derivatives are `e_j / (1 + S)` and `-S / (1 + S)`. NaN for
/// a list with a γ that is not finite or more than [`HIGHEST`] above the first.
#[inline(always)]
fn contrastive<S: Simd>(simd: S, gamma: &[List; BLOCK], d_gamma: &mut [List; BLOCK], loss: &mut [f32; BLOCK]) {
    /// ln of the smallest normal number, and where its inverse is about to overflow.
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 87.0;
    /// A little below `e^HIGHEST`: sums from here on may have an exponential that was limited.
    const TOO_LARGE: f32 = 6.07e37;
    let (zero, one) = (Row::splat(simd, 0.0), Row::splat(simd, 1.0));
    let mut rivals = one;
    rivals.as_mut_slice()[0] = 0.0;
    let mut e = Aligned([[0.0; SIDE_BY_SIDE]; BLOCK]);
    let e = &mut e.0;
    let mut parts = [zero.x[0]; BLOCK];
    for list in 0..BLOCK {
        prefetch(gamma.as_flattened(), list * SIDE_BY_SIDE + AHEAD);
        prefetch(d_gamma.as_flattened(), list * SIDE_BY_SIDE + AHEAD);
        let first = zero.all(gamma[list][0]);
        let rows = S::as_simd_f32s(&gamma[list]).0;
        let e = S::as_mut_simd_f32s(&mut e[list]).0;
        let mut part = zero;
        for r in 0..SIDE_BY_SIDE / S::F32_LANES {
            let x = Row::of(simd, [rows[r]]) - first;
            let exp = x.all(HIGHEST).min(x.all(LOWEST).max(x)).exp_of_near();
            e[r] = exp.x[0];
            part = if r == 0 { exp * rivals } else { part + exp };
            // NaN where x is not finite, which the limits hide.
            part = x.mul_add(zero, part);
        }
        parts[list] = part.x[0];
    }
    let mut sums = [0.0; BLOCK];
    let (mut scales, mut d_first) = (sums, sums);
    sum_lanes(simd, &parts, &mut sums);
    for at in (0..BLOCK).step_by(S::F32_LANES) {
        let lanes = at..at + S::F32_LANES;
        let sum = Row::of(simd, [S::as_simd_f32s(&sums[lanes.clone()]).0[0]]);
        let scale = one / (one + sum);
        let usable = one.all(TOO_LARGE).greater(sum);
        let loss_of = usable.select(sum.ln_1p(), one.all(f32::NAN));
        scales[lanes.clone()].copy_from_slice(scale.as_slice());
        d_first[lanes.clone()].copy_from_slice((-(sum * scale)).as_slice());
        loss[lanes].copy_from_slice(loss_of.as_slice());
    }
    for list in 0..BLOCK {
        let e = S::as_simd_f32s(&e[list]).0;
        let scale = simd.splat_f32s(scales[list]);
        let d = S::as_mut_simd_f32s(&mut d_gamma[list]).0;
        for r in 0..SIDE_BY_SIDE / S::F32_LANES {
            d[r] = simd.mul_f32s(e[r], scale);
        }
        d_gamma[list][0] = d_first[list];
    }
}

/// The sum of the lanes of each register.
#[inline(always)]
fn sum_lanes<S: Simd>(simd: S, registers: &[S::f32s; BLOCK], sums: &mut [f32; BLOCK]) {
    for (registers, sums) in registers.as_chunks::<QUAD>().0.iter().zip(sums.as_chunks_mut::<QUAD>().0) {
        // After turning, lane l of each 128 bits is register l.
        let turned = simd.deinterleave_shfl_f32s(*registers);
        let four = simd.add_f32s(simd.add_f32s(turned[0], turned[1]), simd.add_f32s(turned[2], turned[3]));
        let four: &[f32] = bytemuck::cast_slice(std::slice::from_ref(&four));
        for quad in four.as_chunks::<QUAD>().0 {
            for l in 0..QUAD {
                sums[l] += quad[l];
            }
        }
    }
}

/// The lists turned: a register has one item of as many lists as it has lanes.
///
/// With `x_i = γ_i - max`, `S_i = Σ_{j≥i} e^x_j` the loss is `ln Π S_i - Σ x_i` without the last item, its derivatives are
/// `e_k·Σ_{i≤k} 1/S_i - 1`, without the 1 for the last. Both are differences: a list whose loss is below 8 or an eighth of
/// one of the two terms is not for this. (A loss of 8 has a derivative of at least .026, to which 1e-5 is relative.) Nor is one
/// whose γ span more than 40, whose product is below 1e-19, or with a γ that is not finite.
#[inline(always)]
fn listmle<S: Simd>(simd: S, gamma: &[List; BLOCK], d_gamma: &mut [List; BLOCK], loss: &mut [f32; BLOCK]) {
    const SPAN: f32 = 40.0;
    const RAISED: f32 = 18_446_744_073_709_551_616.0; // 2^64
    const LN_RAISED: f32 = 64.0 * std::f32::consts::LN_2;
    const LOWEST_PRODUCT: f32 = 1e-19;
    const LOWEST_LOSS: f32 = 8.0;
    const MOST_CANCELLED: f32 = 8.0;
    const LAST: usize = SIDE_BY_SIDE - 1;
    let (zero, one) = (Row::splat(simd, 0.0), Row::splat(simd, 1.0));
    let mut g = [zero; SIDE_BY_SIDE];
    let (mut e, mut inverse, mut d) = (g, g, g);
    for first in (0..BLOCK).step_by(S::F32_LANES) {
        let lists = first..first + S::F32_LANES;
        for list in lists.clone() {
            prefetch(gamma.as_flattened(), list * SIDE_BY_SIDE + AHEAD);
            prefetch(d_gamma.as_flattened(), list * SIDE_BY_SIDE + AHEAD);
        }
        load_side_by_side(simd, gamma[lists.clone()].as_flattened(), &mut g);
        // By fours, and then the fours: a chain of fifteen is what everything would wait for.
        let (mut max, mut min) = ([zero; QUAD], [zero; QUAD]);
        for k in 0..QUAD {
            max[k] = g[k].max(g[k + QUAD]).max(g[k + 2 * QUAD].max(g[k + 3 * QUAD]));
            min[k] = g[k].min(g[k + QUAD]).min(g[k + 2 * QUAD].min(g[k + 3 * QUAD]));
        }
        let max = max[0].max(max[1]).max(max[2].max(max[3]));
        let min = min[0].min(min[1]).min(min[2].min(min[3]));
        let mut linear = zero;
        for k in (0..SIDE_BY_SIDE).rev() {
            let x = g[k] - max;
            e[k] = x.exp_of_near();
            if k < LAST {
                linear -= x;
            }
        }
        let (mut sum, mut product) = (e[LAST], one);
        for i in (0..LAST).rev() {
            sum += e[i];
            inverse[i] = one / sum;
            product = product * sum;
        }
        let mut above = zero;
        for i in 0..LAST {
            above += inverse[i];
            d[i] = e[i].mul_add(above, zero - one);
        }
        d[LAST] = e[LAST] * above;
        store_side_by_side(simd, &d, d_gamma[lists.clone()].as_flattened_mut());
        // A product may be below 1, and `ln_1p` takes no negative number.
        let total = (product * RAISED - one).ln_1p() + (linear - zero.all(LN_RAISED));
        let least = (linear * (1.0 / MOST_CANCELLED)).max(zero.all(LOWEST_LOSS));
        let nan = zero.all(f32::NAN);
        let total = zero.all(SPAN).greater(max - min).select(total, nan);
        let total = product.greater(zero.all(LOWEST_PRODUCT)).select(total, nan);
        // `linear` is not finite where one of its items is not, and the comparison fails; the last item is not in it.
        let total = total.greater(least).select(g[LAST].mul_add(zero, total), nan);
        loss[lists].copy_from_slice(total.as_slice());
    }
}
