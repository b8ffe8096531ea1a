//! Registers of `f32` with one list in each lane, and the exponential and logarithm of the batched losses.
//!
//! The arithmetic is written once over pulp's [`Simd`] and compiled for each instruction set; everything here is
//! `#[inline(always)]` so that it becomes part of that copy. For the same reason the kernels loop with `for`: a closure
//! given to an iterator is a function of its own, compiled for the baseline, and its vector operations become calls.

use pulp::Simd;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub, SubAssign};

/// Registers of a [`Lanes`], unless it says otherwise.
pub const REGISTERS: usize = 2;

/// Most lanes that there can be: registers of 512 bits.
pub const MAX_LANES: usize = 16 * REGISTERS;

/// ln 2 in two parts, the first with few bits, so that its product with a small integer is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// 1.5·2^23: adding it rounds to the nearest integer, which then sits in the low bits.
const ROUND: f32 = 12_582_912.0;

/// One `f32` for each of [`Lanes::COUNT`] lists, in N registers, two as a rule: the chains of dependent operations are long,
/// and two of them side by side keep a processor busy that one leaves waiting.
#[derive(Clone, Copy)]
pub struct Lanes<S: Simd, const N: usize = REGISTERS> {
    simd: S,
    pub x: [S::f32s; N],
}

/// `lanes` with another expression for each register `k`. No closure: see above.
macro_rules! each {
    ($lanes:expr, $k:ident => $register:expr) => {{
        let mut x = $lanes.x;
        for $k in 0..N {
            x[$k] = $register;
        }
        Lanes { x, ..$lanes }
    }};
}

impl<S: Simd, const N: usize> Lanes<S, N> {
    /// Lists side by side.
    pub const COUNT: usize = N * S::F32_LANES;

    #[inline(always)]
    pub fn of(simd: S, x: [S::f32s; N]) -> Self {
        Self { simd, x }
    }

    #[inline(always)]
    pub fn splat(simd: S, value: f32) -> Self {
        Self { simd, x: [simd.splat_f32s(value); N] }
    }

    /// Lane `l` is `f(l)`.
    #[inline(always)]
    pub fn from_fn(simd: S, mut f: impl FnMut(usize) -> f32) -> Self {
        let mut lanes = Self::splat(simd, 0.0);
        for (l, x) in lanes.as_mut_slice().iter_mut().enumerate() {
            *x = f(l);
        }
        lanes
    }

    #[inline(always)]
    pub fn as_slice(&self) -> &[f32] {
        bytemuck::cast_slice(&self.x)
    }

    #[inline(always)]
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.x)
    }

    /// `value` in every lane.
    #[inline(always)]
    pub fn all(self, value: f32) -> Self {
        Self::splat(self.simd, value)
    }

    /// `self · b + c`, fused where the machine can.
    #[inline(always)]
    pub fn mul_add(self, b: Self, c: Self) -> Self {
        each!(self, k => self.simd.mul_add_e_f32s(self.x[k], b.x[k], c.x[k]))
    }

    #[inline(always)]
    pub fn abs(self) -> Self {
        // Not pulp's `abs_f32s`, which is not always inlined.
        let sign = self.simd.splat_f32s(f32::from_bits(!(1 << 31)));
        each!(self, k => self.simd.and_f32s(self.x[k], sign))
    }

    #[inline(always)]
    pub fn max(self, other: Self) -> Self {
        each!(self, k => self.simd.max_f32s(self.x[k], other.x[k]))
    }

    #[inline(always)]
    pub fn min(self, other: Self) -> Self {
        each!(self, k => self.simd.min_f32s(self.x[k], other.x[k]))
    }

    /// `max(self, 0)`.
    #[inline(always)]
    pub fn relu(self) -> Self {
        self.all(0.0).max(self)
    }

    #[inline(always)]
    pub fn greater(self, other: Self) -> Mask<S, N> {
        let mut m = [self.simd.greater_than_f32s(self.x[0], other.x[0]); N];
        for (k, m) in m.iter_mut().enumerate().skip(1) {
            *m = self.simd.greater_than_f32s(self.x[k], other.x[k]);
        }
        Mask { simd: self.simd, m }
    }

    #[inline(always)]
    pub fn equal(self, other: Self) -> Mask<S, N> {
        let mut m = [self.simd.equal_f32s(self.x[0], other.x[0]); N];
        for (k, m) in m.iter_mut().enumerate().skip(1) {
            *m = self.simd.equal_f32s(self.x[k], other.x[k]);
        }
        Mask { simd: self.simd, m }
    }

    /// [`Self::exp_of_normal`] for any `self ≤ 0`; about the smallest normal number (to 5e-6) where the result would be below
    /// it.
    #[inline(always)]
    pub fn exp_of_negative(self) -> Self {
        const LOWEST: f32 = -87.336_54; // ln of the smallest normal number
        self.all(LOWEST).max(self).exp_of_normal()
    }

    /// `e^self` for `self ≤ 0`, within 2 ulp, exactly 1 at 0; any number where the result would not be a normal one.
    ///
    /// `2^n · e^r` with `|r| ≤ ln 2 / 2` and `e^r = 1 + r + r²·p(r)`, p minimax of degree 4 (error 3.1e-9).
    #[inline(always)]
    pub fn exp_of_normal(self) -> Self {
        let simd = self.simd;
        let shifted = self.mul_add(self.all(std::f32::consts::LOG2_E), self.all(ROUND));
        let n = shifted - self.all(ROUND);
        let r = n.mul_add(self.all(-LN_2_HIGH), self);
        let r = n.mul_add(self.all(-LN_2_LOW), r);
        // By pairs of coefficients (Estrin): a shorter chain than Horner's.
        let square = r * r;
        let a = r.mul_add(self.all(1.666_652_1e-1), self.all(4.999_999_4e-1));
        let b = r.mul_add(self.all(8.368_731e-3), self.all(4.166_839e-2));
        let p = square.mul_add(self.all(1.381_456_6e-3), b).mul_add(square, a);
        let p = p.mul_add(square, r) + self.all(1.0);
        // The integer n sits in the low mantissa bits of `shifted`. Multiplying by 2^23 shifts it to the exponent, the
        // bits above it fall off the top.
        let shift = simd.splat_u32s(1 << 23);
        each!(self, k => {
            let n = simd.mul_u32s(simd.transmute_u32s_f32s(shifted.x[k]), shift);
            simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(p.x[k]), n))
        })
    }

    /// `e^self` for `|self| ≤ 87` with two operations less than [`Self::exp_of_normal`] and a shorter chain, which is what a
    /// softmax waits for. Within 2 ulp and `1.4e-8·|self|`, relative; `1e-7·|self|` on a machine that does not fuse.
    ///
    /// `2^n · 2^r` with `|r| ≤ ½` and `2^r = 1 + r·p(r)`, p of degree 4 and chosen for the least error in ulp (1.06). log2 e
    /// is taken as its `f32`.
    #[inline(always)]
    pub fn exp_of_near(self) -> Self {
        let simd = self.simd;
        let c = |x: f32| self.all(x);
        let log2_e = c(std::f32::consts::LOG2_E);
        let shifted = self.mul_add(log2_e, c(ROUND));
        let r = self.mul_add(log2_e, -(shifted - c(ROUND)));
        let p = r.mul_add(c(1.322_570_7e-3), c(9.671_763e-3));
        let p = p.mul_add(r, c(5.550_891_5e-2));
        let p = p.mul_add(r, c(2.402_223_6e-1));
        let p = p.mul_add(r, c(6.931_468e-1));
        let p = p.mul_add(r, c(1.0));
        let to_exponent = simd.splat_u32s(23);
        each!(self, k => {
            let n = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted.x[k]), to_exponent);
            simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(p.x[k]), n))
        })
    }

    /// `e^-|self|`, as [`Self::exp_of_negative`].
    #[inline(always)]
    pub fn decay(self) -> Self {
        (self.all(0.0) - self.abs()).exp_of_negative()
    }

    /// `ln(1 + self)` for `0 ≤ self ≤ 1`, within 2 ulp: `q + q²·p(q)`, p minimax of degree 7, no reduction (error 3.3e-8).
    #[inline(always)]
    pub fn ln_1p_of_unit(self) -> Self {
        let square = self * self;
        let a = self.mul_add(self.all(3.332_132_4e-1), self.all(-4.999_964_8e-1));
        let b = self.mul_add(self.all(1.915_365_6e-1), self.all(-2.485_716_3e-1));
        let c = self.mul_add(self.all(7.920_457e-2), self.all(-1.375_380_5e-1));
        let d = self.mul_add(self.all(5.364_83e-3), self.all(-3.006_581_2e-2));
        d.mul_add(square, c).mul_add(square, b).mul_add(square, a).mul_add(square, self)
    }

    /// `ln(1 + self)` for a finite `self ≥ 0`, within 3 ulp: relative accuracy for small ones too.
    ///
    /// `1 + q = 2^k · (1 + f)` with `1 + f` in [√½, √2) and the degree-8 polynomial of Cephes' `logf`.
    #[inline(always)]
    pub fn ln_1p(self) -> Self {
        let simd = self.simd;
        let (zero, one) = (self.all(0.0), self.all(1.0));
        let sqrt_half = simd.splat_u32s(0x3f35_04f3);
        let to_exponent = simd.splat_u32s(23);
        let sum = self + one;
        let mut z = sum;
        let mut k = sum;
        for i in 0..N {
            let bits = simd.transmute_u32s_f32s(sum.x[i]);
            let exponent = simd.wrapping_dyn_shr_u32s(simd.sub_u32s(bits, sqrt_half), to_exponent);
            let shifted = simd.wrapping_dyn_shl_u32s(exponent, to_exponent);
            z.x[i] = simd.transmute_f32s_u32s(simd.sub_u32s(bits, shifted));
            // A small whole number in the low bits of 2^23.
            k.x[i] = simd.transmute_f32s_u32s(simd.or_u32s(exponent, simd.splat_u32s(0x4b00_0000)));
        }
        let k = k - self.all(8_388_608.0);
        // 1 + q has rounded q: where nothing was shifted, q itself is at hand.
        let f = k.equal(zero).select(self, z - one);
        let square = f * f;
        let c = |x: f32| self.all(x);
        let p0 = f.mul_add(c(-2.5e-1), c(3.333_333e-1));
        let p2 = f.mul_add(c(-1.666_805_8e-1), c(2.000_071_5e-1));
        let p4 = f.mul_add(c(-1.242_014_1e-1), c(1.424_932_3e-1));
        let p6 = f.mul_add(c(-1.151_461e-1), c(1.167_699_9e-1));
        let fourth = square * square;
        let low = p2.mul_add(square, p0);
        let high = p6.mul_add(square, p4);
        let high = fourth.mul_add(c(7.037_683_6e-2), high);
        let p = high.mul_add(fourth, low);
        let tail = k.mul_add(c(LN_2_LOW), square * c(-0.5));
        let tail = (p * f).mul_add(square, tail);
        k.mul_add(c(LN_2_HIGH), tail + f)
    }
}

/// A truth value in every lane.
#[derive(Clone, Copy)]
pub struct Mask<S: Simd, const N: usize = REGISTERS> {
    simd: S,
    m: [S::m32s; N],
}

impl<S: Simd, const N: usize> Mask<S, N> {
    /// Whether it is true in every lane.
    #[inline(always)]
    pub fn everywhere(self) -> bool {
        let zero = Lanes::<S, N>::splat(self.simd, 0.0);
        self.select(zero, zero.all(1.0)).as_slice().iter().fold(0, |any, x| any | x.to_bits()) == 0
    }

    /// `yes` where true, `no` elsewhere.
    #[inline(always)]
    pub fn select(self, yes: Lanes<S, N>, no: Lanes<S, N>) -> Lanes<S, N> {
        each!(yes, k => self.simd.select_f32s(self.m[k], yes.x[k], no.x[k]))
    }
}

/// Implements an operator by the function of pulp.
macro_rules! operator {
    ($($trait:ident $method:ident $function:ident),+) => {$(
        impl<S: Simd, const N: usize> $trait for Lanes<S, N> {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                each!(self, k => self.simd.$function(self.x[k], other.x[k]))
            }
        }
    )+};
}
operator!(Add add add_f32s, Sub sub sub_f32s, Mul mul mul_f32s, Div div div_f32s);

impl<S: Simd, const N: usize> Neg for Lanes<S, N> {
    type Output = Self;

    #[inline(always)]
    fn neg(self) -> Self {
        each!(self, k => self.simd.neg_f32s(self.x[k]))
    }
}

impl<S: Simd, const N: usize> Mul<f32> for Lanes<S, N> {
    type Output = Self;

    #[inline(always)]
    fn mul(self, other: f32) -> Self {
        self * self.all(other)
    }
}

impl<S: Simd, const N: usize> AddAssign for Lanes<S, N> {
    #[inline(always)]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl<S: Simd, const N: usize> SubAssign for Lanes<S, N> {
    #[inline(always)]
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::{Arch, Scalar, WithSimd};

    /// The functions of a number at once.
    struct Functions(f32);

    impl WithSimd for Functions {
        type Output = [f32; 5];

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> [f32; 5] {
            let x: Lanes<S> = Lanes::splat(simd, self.0);
            let unit = x.max(x.all(0.0));
            [x.exp_of_negative(), x.decay(), unit.ln_1p_of_unit(), unit.ln_1p(), x.exp_of_near()].map(|lanes| {
                assert!(lanes.as_slice().iter().all(|lane| lane.to_bits() == lanes.as_slice()[0].to_bits()));
                lanes.as_slice()[0]
            })
        }
    }

    /// Whether products are fused.
    struct Fused;

    impl WithSimd for Fused {
        type Output = bool;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> bool {
            let x: Lanes<S> = Lanes::splat(simd, 1.0 + f32::EPSILON);
            x.mul_add(x, -(x * x)).as_slice()[0] != 0.0
        }
    }

    /// On the machine's widest lanes, and on the lane of a machine without any.
    fn functions(x: f32) -> [[f32; 5]; 2] {
        [Arch::new().dispatch(Functions(x)), Functions(x).with_simd(Scalar)]
    }

    /// The distance of `got` from `exact` in units of the last place of the latter.
    fn ulps(got: f32, exact: f64) -> f64 {
        let rounded = exact as f32;
        (f64::from(got) - exact).abs() / (f64::from(rounded.next_up()) - f64::from(rounded))
    }

    #[test]
    fn exponentials_are_within_two_ulps() {
        let mut worst = 0f64;
        let mut x = 0f32;
        while x > -87.336 {
            let exact = f64::from(x).exp();
            for [exp, decay, ..] in functions(x) {
                worst = worst.max(ulps(exp, exact));
                assert_eq!(exp, decay);
            }
            for [_, decay, ..] in functions(-x) {
                worst = worst.max(ulps(decay, exact));
            }
            x -= 0.000_71;
        }
        // Relative accuracy of the argument near 0, where steps of x above are coarse.
        let mut x = -1e-30f32;
        while x > -1.0 {
            for [exp, ..] in functions(x) {
                worst = worst.max(ulps(exp, f64::from(x).exp()));
            }
            x *= 1.01;
        }
        assert!(worst <= 2.0, "error of {worst} ulp");
        for x in [-87.34, -87.4, -88.1, -104.0, -1e4, f32::MIN, f32::NEG_INFINITY] {
            for [exp, decay, ..] in functions(x) {
                assert!(exp == decay && (exp / f32::MIN_POSITIVE - 1.0).abs() < 1e-5, "e^{x} is {exp}");
            }
        }
        assert!(functions(0.0).iter().all(|[exp, decay, ..]| (*exp, *decay) == (1.0, 1.0)));
    }

    #[test]
    fn near_exponentials_are_within_their_bound() {
        let fused = Arch::new().dispatch(Fused);
        let mut x = -87f32;
        while x < 87.0 {
            let exact = f64::from(x).exp();
            for ([.., near], fused) in functions(x).into_iter().zip([fused, false]) {
                let bound = 2.0 * f64::from(f32::EPSILON) + if fused { 1.4e-8 } else { 1e-7 } * f64::from(x.abs());
                assert!((f64::from(near) / exact - 1.0).abs() <= bound, "e^{x} is {near}");
            }
            x += 0.000_71;
        }
        assert!(functions(0.0).iter().all(|[.., near]| *near == 1.0));
    }

    #[test]
    fn logarithms_are_within_their_ulps() {
        let mut worst = [0f64; 2];
        let mut q = 1e-30f32;
        while q < 8e37 {
            let exact = f64::from(q).ln_1p();
            for [_, _, unit, any, _] in functions(q) {
                worst[1] = worst[1].max(ulps(any, exact));
                if q <= 1.0 {
                    worst[0] = worst[0].max(ulps(unit, exact));
                }
            }
            q *= if (1e-4..1e4).contains(&q) { 1.000_3 } else { 1.37 };
        }
        assert!(worst[0] <= 2.0 && worst[1] <= 3.0, "errors of {worst:?} ulp");
        for [_, _, unit, any, _] in functions(1.0) {
            assert!(ulps(unit, std::f64::consts::LN_2) <= 1.0 && ulps(any, std::f64::consts::LN_2) <= 1.0);
        }
        assert!(functions(0.0).iter().all(|[_, _, unit, any, _]| (*unit, *any) == (0.0, 0.0)));
    }
}
