//! ListMLE on lists as they lie in memory, four at a time.
//!
//! Four registers with the same items of four lists are turned within each 128 bits only. Then lane `4q + l` of register `k`
//! has item `4q + k` of list `l`: a quad of lanes has a fourth of the items, the running sums over a list go through four
//! registers at once, and what one quad passes to the next takes two moves of 128 bits. Turning whole lists into lanes takes
//! as long as the exponentials, and its running sums go through all items one after another.
//!
//! Each step is taken for a block of lists before the next: within one list every step waits for the one before.

use super::lanes::{Lanes, SPAN};
use super::rows::{AHEAD, BLOCK, first_alone, load, register_start, store};
use super::tile::QUAD;
use crate::cpu::prefetch::{LINE, prefetch};
use pulp::Simd;

/// The longest lists: the loss of longer ones is too large even where all γ are equal (ln 24! = 55).
pub const LONGEST: usize = 24;

/// The product of probabilities stays above this, a little over the smallest normal number: losses up to 83.
const LOWEST: f32 = 1e-36;

/// One register of each of four lists.
type Quad<S> = Lanes<S, QUAD>;

/// What is kept of [`BLOCK`] lists of one length; see [`super::rows::Rows`] for what a register has of a list.
pub struct Quads<S: Simd> {
    /// Length of the lists.
    m: usize,
    /// Items that only register 0 has.
    alone: usize,
    /// All bits for the lanes of register 0 that have them, before turning and after.
    has: S::f32s,
    has_turned: Quad<S>,
    /// 1 for the other lanes, after turning.
    lacks_turned: Quad<S>,
    /// `e^(γ_j - γ_0)`; `1/S_j` with `S_j = e_j + … + e_m`; `S_{j+1}/S_j`. Turned, `(BLOCK / 4, registers)`.
    e: Vec<Quad<S>>,
    inverse: Vec<Quad<S>>,
    below: Vec<Quad<S>>,
    /// For every list: the product p of `e_j/S_j`, and `1 - p`.
    p: [f32; BLOCK],
    u: [f32; BLOCK],
}

impl<S: Simd> Quads<S> {
    /// Room for lists of `m` items, from 2 to [`LONGEST`].
    pub fn new(simd: S, m: usize) -> Self {
        let lanes = S::F32_LANES;
        let registers = m.div_ceil(lanes);
        let alone = first_alone::<S>(m);
        let bits = |set: bool| f32::from_bits(if set { u32::MAX } else { 0 });
        let has = Lanes::<S, 1>::from_fn(simd, |lane| bits(lane < alone)).x[0];
        // Lane `k·lanes + 4q + l` is item `4q + k`.
        let item = |lane: usize| lane % lanes / QUAD * QUAD + lane / lanes;
        let has_turned = Quad::from_fn(simd, |lane| bits(item(lane) < alone));
        let lacks_turned = Quad::from_fn(simd, |lane| if item(lane) < alone { 0.0 } else { 1.0 });
        let zeros = || vec![Quad::splat(simd, 0.0); BLOCK / QUAD * registers];
        let (e, inverse, below) = (zeros(), zeros(), zeros());
        Self { m, alone, has, has_turned, lacks_turned, e, inverse, below, p: [0.0; BLOCK], u: [0.0; BLOCK] }
    }
}

/// The losses of lists of m items that begin at `starts` of `gamma`, at most [`BLOCK`] of them, and their gradients at the
/// same places less `offset` of `d_gamma`. NaN for a list with a γ that is not finite or more than [`SPAN`] away from the
/// first, and for a loss above 83: what the gradient is then does not matter.
///
/// With `S_j = e_j + … + e_m` and `r_j = S_{j+1} / S_j` the loss is `-ln p`, `p = Π(1 - r_j)`. The factors are taken as
/// `e_j / S_j`, which does not cancel where r is near 1; `u = 1 - p` is kept beside p, so that a small loss is accurate too.
/// `dL/dγ_k` is `e_k·Σ_{j<k} 1/S_j - r_k`.
#[inline(always)]
pub fn listmle<S: Simd>(
    simd: S,
    gamma: &[f32],
    d_gamma: &mut [f32],
    starts: &[usize],
    offset: usize,
    quads: &mut Quads<S>,
    loss: &mut [f32; BLOCK],
) {
    let Quads { m, alone, has, has_turned, lacks_turned, e, inverse, below, p, u } = quads;
    let (m, alone, has, has_turned, lacks_turned) = (*m, *alone, *has, *has_turned, *lacks_turned);
    let lanes = S::F32_LANES;
    let registers = m.div_ceil(lanes);
    let partial = alone < lanes;
    let zero = Quad::splat(simd, 0.0);
    let list_of = |i: usize| starts[i.min(starts.len() - 1)];
    let groups = starts.len().div_ceil(QUAD);

    // Distances as whole numbers: those of infinities and NaN are larger than any other.
    let magnitude = simd.splat_u32s(!(1 << 31));
    let mut farthest = simd.splat_u32s(0);
    for group in 0..groups {
        for l in 0..QUAD {
            let start = list_of(QUAD * group + l);
            for ahead in (start + AHEAD..start + m + AHEAD).step_by(LINE) {
                prefetch(gamma, ahead);
                prefetch(d_gamma, ahead - offset);
            }
        }
        for r in 0..registers {
            let mut x = zero;
            for l in 0..QUAD {
                let list = &gamma[list_of(QUAD * group + l)..][..m];
                let row = load(simd, &list[register_start::<S>(alone, r)..]);
                x.x[l] = simd.sub_f32s(row.x[0], simd.splat_f32s(list[0]));
                if r == 0 && partial {
                    x.x[l] = simd.and_f32s(x.x[l], has);
                }
                let distance = simd.and_u32s(simd.transmute_u32s_f32s(x.x[l]), magnitude);
                farthest = simd.max_u32s(farthest, distance);
            }
            let mut turned = zero;
            turned.x = simd.deinterleave_shfl_f32s(x.exp_of_normal().x);
            if r == 0 && partial {
                turned = turned.and(has_turned);
            }
            e[group * registers + r] = turned;
        }
    }

    // Up from the last item.
    for group in 0..groups {
        let of = group * registers..(group + 1) * registers;
        let (e, inverse, below) = (&e[of.clone()], &mut inverse[of.clone()], &mut below[of]);
        let (mut behind, mut pp, mut uu) = (zero.x[0], simd.splat_f32s(1.0), zero.x[0]);
        for r in (0..registers).rev() {
            let c = e[r].x;
            let total = sum_of_four(simd, c);
            let mut x = behind;
            for by in 1..lanes / QUAD {
                x = simd.add_f32s(x, rotated(simd, total, by, Keep::Later));
            }
            behind = sum_of_quads(simd, behind, total);
            let (mut inv, mut ratio, mut factor) = (zero, zero, zero);
            for k in (0..QUAD).rev() {
                let sum = simd.add_f32s(x, c[k]);
                inv.x[k] = simd.div_f32s(simd.splat_f32s(1.0), sum);
                ratio.x[k] = x;
                x = sum;
            }
            if r == 0 && partial {
                inv = inv.and(has_turned);
            }
            for (k, &c) in c.iter().enumerate() {
                ratio.x[k] = simd.mul_f32s(ratio.x[k], inv.x[k]);
                factor.x[k] = simd.mul_f32s(c, inv.x[k]);
            }
            if r == 0 && partial {
                factor += lacks_turned;
            }
            // By pairs, for a shorter chain: 1 - f·f' is r + f·r'.
            let (f, b) = (factor.x, ratio.x);
            let (p01, u01) = (simd.mul_f32s(f[0], f[1]), simd.mul_add_e_f32s(f[0], b[1], b[0]));
            let (p23, u23) = (simd.mul_f32s(f[2], f[3]), simd.mul_add_e_f32s(f[2], b[3], b[2]));
            let (four, lost) = (simd.mul_f32s(p01, p23), simd.mul_add_e_f32s(p01, u23, u01));
            uu = simd.mul_add_e_f32s(four, uu, lost);
            pp = simd.mul_f32s(pp, four);
            inverse[r] = inv;
            below[r] = ratio;
        }
        // The quads of a list together.
        let (pp, uu): (&[f32], &[f32]) =
            (bytemuck::cast_slice(std::slice::from_ref(&pp)), bytemuck::cast_slice(std::slice::from_ref(&uu)));
        let (mut product, mut lost) = ([1.0; QUAD], [0.0; QUAD]);
        for (pp, uu) in pp.as_chunks::<QUAD>().0.iter().zip(uu.as_chunks::<QUAD>().0) {
            for l in 0..QUAD {
                lost[l] += product[l] * uu[l];
                product[l] *= pp[l];
            }
        }
        p.as_chunks_mut().0[group] = product;
        u.as_chunks_mut().0[group] = lost;
    }

    // Down to it.
    for group in 0..groups {
        let of = group * registers..(group + 1) * registers;
        let (e, inverse, below) = (&e[of.clone()], &inverse[of.clone()], &below[of]);
        let mut before = zero.x[0];
        for r in 0..registers {
            let inv = inverse[r].x;
            let total = sum_of_four(simd, inv);
            let mut above = before;
            for by in 1..lanes / QUAD {
                above = simd.add_f32s(above, rotated(simd, total, by, Keep::Earlier));
            }
            before = sum_of_quads(simd, before, total);
            let mut d = [above; QUAD];
            for k in 0..QUAD {
                d[k] = simd.mul_add_e_f32s(e[r].x[k], above, simd.neg_f32s(below[r].x[k]));
                above = simd.add_f32s(above, inv[k]);
            }
            for (l, d) in simd.interleave_shfl_f32s(d).into_iter().enumerate() {
                let start = list_of(QUAD * group + l) - offset;
                let row = &mut d_gamma[start..start + m][register_start::<S>(alone, r)..];
                store(simd, row, Lanes::of(simd, [d]));
            }
        }
    }

    for at in (0..starts.len()).step_by(lanes) {
        let (p, u) = (load(simd, &p[at..]), load(simd, &u[at..]));
        let usable = p.greater(p.all(LOWEST));
        store(simd, &mut loss[at..], usable.select((u / p).ln_1p(), p.all(f32::NAN)));
    }
    let farthest: &[u32] = bytemuck::cast_slice(std::slice::from_ref(&farthest));
    if farthest.iter().fold(0, |largest, &x| x.max(largest)) > SPAN.to_bits() {
        for (&start, loss) in starts.iter().zip(loss) {
            let list = &gamma[start..start + m];
            if !list.iter().all(|g| (g - list[0]).abs() <= SPAN) {
                *loss = f32::NAN;
            }
        }
    }
}

#[inline(always)]
fn sum_of_four<S: Simd>(simd: S, x: [S::f32s; QUAD]) -> S::f32s {
    simd.add_f32s(simd.add_f32s(x[0], x[1]), simd.add_f32s(x[2], x[3]))
}

/// `x` and the sum of all quads of `y`, in every quad.
#[inline(always)]
fn sum_of_quads<S: Simd>(simd: S, x: S::f32s, y: S::f32s) -> S::f32s {
    let mut sum = simd.add_f32s(x, y);
    for by in 1..S::F32_LANES / QUAD {
        sum = simd.add_f32s(sum, rotated(simd, y, by, Keep::All));
    }
    sum
}

/// Which quads [`rotated`] keeps; the others become 0.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Those that come from above.
    Later,
    /// Those that come round from below.
    Earlier,
    All,
}

/// Quad q gets quad `q + by` of `x`, past the last one from the first on.
#[inline(always)]
fn rotated<S: Simd>(simd: S, x: S::f32s, by: usize, keep: Keep) -> S::f32s {
    // Not pulp's rotation, which takes six instructions where a register has two quads.
    let count = S::F32_LANES / QUAD;
    let mut y = simd.splat_f32s(0.0);
    let from: &[f32] = bytemuck::cast_slice(std::slice::from_ref(&x));
    let to: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut y));
    let (from, to) = (from.as_chunks::<QUAD>().0, to.as_chunks_mut::<QUAD>().0);
    for q in 0..count {
        let round = q + by >= count;
        if keep == Keep::All || round == (keep == Keep::Earlier) {
            to[q] = from[(q + by) % count];
        }
    }
    y
}
