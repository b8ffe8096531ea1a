//! The list losses on a [`Tile`]: one list in each lane, all of the same length.
//!
//! Every exponential is one of a number that is not positive, every logarithm is `ln(1 + q)` of a sum of positive terms,
//! so nothing overflows and nothing cancels at any γ. A lane whose loss is not finite is for the caller to evaluate in
//! `f64`: that is where infinities and NaN are dealt with.

use super::lanes::{Lanes, Mask};
use super::tile::Tile;
use pulp::Simd;

/// What equal rewards mean to a kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tied {
    /// Nothing: rewards are not looked at.
    Ordered,
    /// [`super::Ties::Skip`].
    Skip,
    /// [`super::Ties::Share`].
    Share,
}

/// `Σ ln(1 + q_i)` as one logarithm of a product: `q` stands for `Π(1 + q_i) - 1`, whose small values keep their
/// relative accuracy.
#[derive(Clone, Copy)]
struct LogProduct<S: Simd> {
    q: Lanes<S>,
    total: Lanes<S>,
    room: usize,
    /// Factors that cannot overflow together.
    capacity: usize,
}

impl<S: Simd> LogProduct<S> {
    /// For factors of at most `largest`.
    #[inline(always)]
    fn new(simd: S, largest: f32) -> Self {
        let capacity = (126.0 / largest.log2()).max(1.0) as usize;
        let zero = Lanes::splat(simd, 0.0);
        Self { q: zero, total: zero, room: capacity, capacity }
    }

    /// Multiplies by `1 + q`, given both so that neither has to be computed from the other.
    #[inline(always)]
    fn times(&mut self, q: Lanes<S>, one_plus_q: Lanes<S>) {
        self.q = self.q.mul_add(one_plus_q, q);
    }

    /// Takes the logarithm after `count` factors, of at most `room`, when no more have room.
    #[inline(always)]
    fn used(&mut self, count: usize) {
        self.room -= count;
        if self.room == 0 {
            self.flush();
        }
    }

    #[inline(always)]
    fn flush(&mut self) {
        self.total += self.q.ln_1p();
        self.q = self.q.all(0.0);
        self.room = self.capacity;
    }

    #[inline(always)]
    fn total(mut self) -> Lanes<S> {
        if self.room < self.capacity {
            self.flush();
        }
        self.total
    }
}

/// Lists whose γ span more are for the caller to evaluate in `f64`: products of two of their exponentials would leave the
/// normal numbers, and the rounding of γ before an exponential grows with its size. Errors stay below 5e-6 up to here.
const SPAN: f32 = 40.0;

/// `e[k] = e^(g_k - max)`; returns 0 for the lists that span at most [`SPAN`], NaN for the others.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, gamma: &[Lanes<S>], e: &mut [Lanes<S>]) -> Lanes<S> {
    let (mut max, mut min) = (gamma[0], gamma[0]);
    for &g in &gamma[1..] {
        max = g.max(max);
        min = g.min(min);
    }
    // From the last, for that is the first one that is needed. Where γ span more, what becomes of it does not matter.
    for (e, &g) in e.iter_mut().zip(gamma).rev() {
        *e = (g - max).exp_of_normal();
    }
    let near = Lanes::splat(simd, SPAN).greater(max - min);
    near.select(Lanes::splat(simd, 0.0), Lanes::splat(simd, f32::NAN))
}

/// [`exponentials`], and the inverse of every one.
#[inline(always)]
fn exponentials_and_inverses<S: Simd>(
    simd: S,
    gamma: &[Lanes<S>],
    e: &mut [Lanes<S>],
    inverse: &mut [Lanes<S>],
) -> Lanes<S> {
    let zero_or_nan = exponentials(simd, gamma, e);
    for (inverse, &e) in inverse.iter_mut().zip(e.iter()) {
        *inverse = Lanes::splat(simd, 1.0) / e;
    }
    zero_or_nan
}

/// `Σ_{i<j} -log σ(g_i - g_j)` and its gradient; `mean` divides by the weight of the pairs.
#[inline(always)]
pub fn pairs<S: Simd>(simd: S, tile: &mut Tile<S>, tied: Tied, mean: bool) -> Lanes<S> {
    match tied {
        Tied::Ordered => pair_sum::<S, false, false>(simd, tile, mean),
        Tied::Skip => pair_sum::<S, true, false>(simd, tile, mean),
        Tied::Share => pair_sum::<S, false, true>(simd, tile, mean),
    }
}

/// With x = g_j - g_i and u = e^-|x|: `-log σ(-x) = max(x, 0) + ln(1 + u)`, and σ(x) is `e_j / (e_i + e_j)`.
#[inline(always)]
fn pair_sum<S: Simd, const SKIP: bool, const SHARE: bool>(simd: S, tile: &mut Tile<S>, mean: bool) -> Lanes<S> {
    let m = tile.len();
    let Tile { gamma, rewards, d, b: e, c: inverse, .. } = tile;
    let (gamma, rewards, d, e, inverse) = (&gamma[..m], &rewards[..m], &mut d[..m], &mut e[..m], &mut inverse[..m]);
    let zero_or_nan = exponentials_and_inverses(simd, gamma, e, inverse);
    let (zero, one, half) = (Lanes::splat(simd, 0.0), Lanes::splat(simd, 1.0), Lanes::splat(simd, 0.5));
    let mut linear = zero;
    let mut skipped = zero;
    let mut product = LogProduct::new(simd, 2.0);
    d.fill(zero);
    for i in 0..m {
        let (gi, ei, inverse_i) = (gamma[i], e[i], inverse[i]);
        let mut di = zero;
        let mut next = i + 1;
        while next < m {
            let block = next..m.min(next + product.room);
            next = block.end;
            let count = block.len();
            for j in block {
                let x = gamma[j] - gi;
                let mut u = (e[j] * inverse_i).min(ei * inverse[j]);
                let mut excess = x.relu();
                let mut v = one + u;
                let mut slope = e[j] / (ei + e[j]);
                if SKIP {
                    let tie = rewards[i].equal(rewards[j]);
                    (u, v) = (tie.select(zero, u), tie.select(one, v));
                    (excess, slope) = (tie.select(zero, excess), tie.select(zero, slope));
                    skipped += tie.select(one, zero);
                }
                if SHARE {
                    // Half the term of either order: |x|/2 + ln(1 + u), slope σ(x) - 1/2.
                    let part = rewards[i].equal(rewards[j]).select(half, zero);
                    excess -= part * x;
                    slope -= part;
                }
                product.times(u, v);
                linear += excess;
                di += slope;
                d[j] += slope;
            }
            product.used(count);
        }
        d[i] -= di;
    }
    let mut loss = linear + product.total() + zero_or_nan;
    if mean {
        let scale = one / (one * (m * (m - 1) / 2) as f32 - skipped);
        for d in d.iter_mut() {
            *d = *d * scale;
        }
        loss = loss * scale;
    }
    loss
}

/// A softmax term: an item against rivals of which the largest is known.
struct Softmax<S: Simd> {
    /// The largest less the item's own.
    x: Lanes<S>,
    /// `e^-|x|`, at hand before the sum is.
    w: Lanes<S>,
}

/// The end of it. The term is `linear + ln(1 + q)`.
struct SoftmaxEnd<S: Simd> {
    linear: Lanes<S>,
    q: Lanes<S>,
    one_plus_q: Lanes<S>,
    /// The derivative by a rival is this times its `e^(g_j - max)`.
    scale: Lanes<S>,
}

impl<S: Simd> Softmax<S> {
    #[inline(always)]
    fn new(g: Lanes<S>, max: Lanes<S>) -> Self {
        let x = max - g;
        Self { x, w: x.decay() }
    }

    /// With `sum = Σ e^(g_j - max)`: `ln(1 + sum·e^x)`, or `x + ln(sum + e^-x)` where x is positive.
    #[inline(always)]
    fn end(self, sum: Lanes<S>) -> SoftmaxEnd<S> {
        let Self { x, w } = self;
        let one = x.all(1.0);
        let behind = x.greater(x.all(0.0));
        let q = behind.select((sum - one) + w, sum * w);
        let one_plus_q = one + q;
        SoftmaxEnd { linear: x.relu(), q, one_plus_q, scale: behind.select(one, w) / one_plus_q }
    }
}

/// Contrastive: the softmax term of the best item.
#[inline(always)]
pub fn contrastive<S: Simd>(simd: S, tile: &mut Tile<S>, tied: Tied) -> Lanes<S> {
    if tied == Tied::Skip {
        tile.d.fill(Lanes::splat(simd, 0.0));
        let mut product = LogProduct::new(simd, tile.len() as f32);
        return tied_softmax_term(simd, tile, 0, false, &mut product) + product.total();
    }
    // The single positive of a shared first place is as without ties.
    let (g, rivals) = (tile.gamma[0], &tile.gamma[1..]);
    let (d, d_rivals) = tile.d.split_at_mut(1);
    let mut max = rivals[0];
    for &g in &rivals[1..] {
        max = g.max(max);
    }
    let term = Softmax::new(g, max);
    let mut sum = Lanes::splat(simd, 0.0);
    for (d, &g) in d_rivals.iter_mut().zip(rivals) {
        *d = (g - max).exp_of_negative();
        sum += *d;
    }
    let end = term.end(sum);
    for d in d_rivals {
        *d = *d * end.scale;
    }
    d[0] = Lanes::splat(simd, 0.0) - sum * end.scale;
    end.linear + end.q.ln_1p()
}

/// ListMLE: the softmax term of every item.
#[inline(always)]
pub fn listmle<S: Simd>(simd: S, tile: &mut Tile<S>, tied: Tied) -> Lanes<S> {
    if tied == Tied::Ordered {
        return listmle_ordered(simd, tile);
    }
    let mut product = LogProduct::new(simd, tile.len() as f32);
    let mut linear = Lanes::splat(simd, 0.0);
    tile.d.fill(linear);
    for i in 0..tile.len() {
        linear += tied_softmax_term(simd, tile, i, tied == Tied::Share, &mut product);
    }
    linear + product.total()
}

/// The softmax term of the item at `i` against those of lower reward, with `share` those of the same reward too. What is
/// returned lacks the logarithm of what is given to `product`.
#[inline(always)]
fn tied_softmax_term<S: Simd>(
    simd: S,
    tile: &mut Tile<S>,
    i: usize,
    share: bool,
    product: &mut LogProduct<S>,
) -> Lanes<S> {
    let (zero, nothing) = (Lanes::splat(simd, 0.0), Lanes::splat(simd, f32::NEG_INFINITY));
    let m = tile.len();
    let (gi, ri) = (tile.gamma[i], tile.rewards[i]);
    // Items of the same reward stand on both sides of item i.
    let first = if share { 0 } else { i + 1 };
    let mut max = nothing;
    for j in first..m {
        if i != j {
            max = rival(ri, tile.rewards[j], share, tile.gamma[j], nothing).max(max);
        }
    }
    let mut sum = zero;
    for j in first..m {
        tile.a[j] = zero;
        if i != j {
            tile.a[j] = rival(ri, tile.rewards[j], share, (tile.gamma[j] - max).exp_of_negative(), zero);
            sum += tile.a[j];
        }
    }
    // Without rivals max is -inf and the sum 0: linear, q and scale all come out as 0.
    let end = Softmax::new(gi, max).end(sum);
    for j in first..m {
        let slope = tile.a[j] * end.scale;
        tile.d[j] += slope;
    }
    tile.d[i] -= sum * end.scale;
    product.times(end.q, end.one_plus_q);
    product.used(1);
    end.linear
}

/// `yes` where an item of reward `rj` is a rival of one with reward `ri`.
#[inline(always)]
fn rival<S: Simd>(ri: Lanes<S>, rj: Lanes<S>, share: bool, yes: Lanes<S>, no: Lanes<S>) -> Lanes<S> {
    let lower = ri.greater(rj).select(yes, no);
    if share { ri.equal(rj).select(yes, lower) } else { lower }
}

/// Lists of up to so many items are tried by [`listmle_short`] first: the loss of longer ones is too large for it even where
/// all γ are equal (ln 24! = 55).
const SHORT: usize = 24;

/// ListMLE without ties.
#[inline(always)]
fn listmle_ordered<S: Simd>(simd: S, tile: &mut Tile<S>) -> Lanes<S> {
    let zero_or_nan = exponentials(simd, &tile.gamma, &mut tile.b);
    if tile.len() > SHORT {
        return listmle_long(simd, tile) + zero_or_nan;
    }
    let (loss, fits) = listmle_short(simd, tile);
    if fits.everywhere() {
        return loss + zero_or_nan;
    }
    // A lane keeps what fits whatever is in the lanes beside it.
    std::mem::swap(&mut tile.d, &mut tile.log);
    let long = listmle_long(simd, tile);
    for (d, &short) in tile.d.iter_mut().zip(&tile.log) {
        *d = fits.select(short, *d);
    }
    fits.select(loss, long) + zero_or_nan
}

/// The losses over `tile.b` with `e_k = e^(g_k - max)`, and where they are right: up to a loss of about 83.
///
/// With `S_i = e_i + … + e_m` and `r_i = S_{i+1} / S_i` the loss is `-ln p`, `p = Π(1 - r_i)`. The factors are taken as
/// `e_i / S_i`, which does not cancel where r is near 1; `u = 1 - p` is kept beside p, so that a small loss is accurate too.
/// Going down, `dL/dg_k` is `e_k·Σ_{i<k} 1/S_i - r_k`.
///
/// Chains of additions and products bound it, not their number: loops are split where one waits for another.
#[inline(always)]
fn listmle_short<S: Simd>(simd: S, tile: &mut Tile<S>) -> (Lanes<S>, Mask<S>) {
    /// p stays above this, a little over the smallest normal number.
    const LOWEST: f32 = 1e-36;
    let (zero, one) = (Lanes::splat(simd, 0.0), Lanes::splat(simd, 1.0));
    let m = tile.len();
    let last = m - 1;
    let Tile { d, b: e, c: inverse, .. } = tile;
    let (d, e, inverse) = (&mut d[..m], &e[..m], &mut inverse[..m]);
    let (mut sum, mut p, mut u) = (e[last], one, zero);
    for i in (0..last).rev() {
        let below = sum;
        sum += e[i];
        inverse[i] = one / sum;
        d[i] = below * inverse[i];
        u = p.mul_add(d[i], u);
        p = p * (e[i] * inverse[i]);
    }
    let mut above = zero;
    for i in 0..last {
        d[i] = e[i].mul_add(above, zero - d[i]);
        above += inverse[i];
    }
    d[last] = e[last] * above;
    ((u / p).ln_1p(), p.greater(zero.all(LOWEST)))
}

/// The losses over `tile.b` with `e_k = e^(g_k - max)`, whatever they are, in two scans.
///
/// Going up from the last item, the sum S_i of `e_i … e_m` is kept as its largest term E_i and the sum X_i of the others. The
/// term of item i is `M_i - g_i + ln(S_i / E_i)` with `M_i = max(g_i … g_m)`; the ratio is `1 + X_i / E_i`, whose logarithm
/// is accurate for a small X_i too. Going down, `dL/dg_k` is `e_k·Σ_{i<k} 1/S_i - S_{k+1} / S_k`.
#[inline(always)]
fn listmle_long<S: Simd>(simd: S, tile: &mut Tile<S>) -> Lanes<S> {
    let (zero, one) = (Lanes::splat(simd, 0.0), Lanes::splat(simd, 1.0));
    let m = tile.len();
    let last = m - 1;
    let Tile { gamma, d, b: e, c: inverse, .. } = tile;
    let (gamma, d, e, inverse) = (&gamma[..m], &mut d[..m], &e[..m], &mut inverse[..m]);
    let mut product = LogProduct::new(simd, m as f32);
    let mut linear = zero;
    let (mut max, mut largest, mut others, mut below) = (gamma[last], e[last], zero, e[last]);
    for i in (0..last).rev() {
        max = gamma[i].max(max);
        linear += max - gamma[i];
        others += e[i].min(largest);
        largest = e[i].max(largest);
        let sum = others + largest;
        // One division for 1/S and 1/E.
        let both = one / (sum * largest);
        inverse[i] = both * largest;
        d[i] = below * inverse[i];
        let q = others * (both * sum);
        product.times(q, one + q);
        product.used(1);
        below = sum;
    }
    let mut above = zero;
    for i in 0..last {
        d[i] = e[i].mul_add(above, zero - d[i]);
        above += inverse[i];
    }
    d[last] = e[last] * above;
    linear + product.total()
}

/// LiPO-λ with the gains `2^label` in `tile.gains` and `discounts[τ]` for the 0-based rank τ by γ.
#[inline(always)]
pub fn lipo_lambda<S: Simd>(simd: S, tile: &mut Tile<S>, discounts: &[f32]) -> Lanes<S> {
    let m = tile.len();
    let (zero, one) = (Lanes::splat(simd, 0.0), Lanes::splat(simd, 1.0));
    let Tile { gamma, gains, d, a, b: e, c: inverse, log, .. } = tile;
    let (gamma, gains, d, a) = (&gamma[..m], &gains[..m], &mut d[..m], &mut a[..m]);
    let (e, inverse, log) = (&mut e[..m], &mut inverse[..m], &mut log[..m]);
    let zero_or_nan = exponentials_and_inverses(simd, gamma, e, inverse);
    d.fill(zero);
    // τ: the items above by γ, a tie going to the position that comes first.
    for (i, rank) in a.iter_mut().enumerate() {
        *rank = Lanes::splat(simd, i as f32);
    }
    for i in 0..m {
        let gi = gamma[i];
        let mut rank = a[i];
        for j in i + 1..m {
            let overtaken = gamma[j].greater(gi).select(one, zero);
            rank += overtaken;
            a[j] -= overtaken;
        }
        a[i] = rank;
    }
    for rank in a.iter_mut() {
        for x in rank.as_mut_slice() {
            // Adding 2^23 leaves the whole number in the low bits: quicker than a conversion that saturates.
            let rank = (*x + 8_388_608.0).to_bits() & 0x7f_ffff;
            *x = discounts.get(rank as usize).copied().unwrap_or(f32::NAN);
        }
    }
    let mut loss = zero;
    for i in 0..m {
        let (gi, gain, discount, ei, inverse_i) = (gamma[i], gains[i], a[i], e[i], inverse[i]);
        // A loop of its own: together with the rest the chain would be too long for a processor to have enough pairs under
        // way.
        for j in i + 1..m {
            log[j] = (e[j] * inverse_i).min(ei * inverse[j]).ln_1p_of_unit();
        }
        let mut di = zero;
        for j in i + 1..m {
            let weight = (gain - gains[j]) * (discount - a[j]).abs();
            let slope = weight * (e[j] / (ei + e[j]));
            loss = weight.mul_add((gamma[j] - gi).relu() + log[j], loss);
            di += slope;
            d[j] += slope;
        }
        d[i] -= di;
    }
    loss + zero_or_nan
}
