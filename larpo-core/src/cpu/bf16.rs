//! Weights in bfloat16: the upper half of single precision. They are widened where they are used, a part at a time, so that
//! a frozen model takes half the memory and every product is one of single precision.

use super::{par, simd};
use std::ops::Range;

/// Floats that a product widens at a time: 4 MiB, a share of the last-level cache.
pub const PART: usize = 1 << 20;

/// The nearest number in bfloat16, of two the one with an even last bit.
pub fn narrow(x: f32) -> u16 {
    let bits = x.to_bits();
    match x.is_nan() {
        // Adding could carry a NaN's bits away.
        true => (bits >> 16) as u16 | 0x40,
        false => ((u64::from(bits) + 0x7fff + u64::from(bits >> 16 & 1)) >> 16) as u16,
    }
}

/// `y = x`, on one thread.
pub fn widen(x: &[u16], y: &mut [f32]) {
    simd::dispatch(
        #[inline(always)]
        || y.iter_mut().zip(x).for_each(|(y, &x)| *y = f32::from_bits(u32::from(x) << 16)),
    );
}

/// The numbers of a weight as they are stored.
#[derive(Clone, Copy, Debug)]
pub enum Numbers<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [u16]),
}

impl<'a> Numbers<'a> {
    /// How many there are.
    pub fn len(self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::Bf16(x) => x.len(),
        }
    }

    /// A part of them.
    pub fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(x) => Self::F32(&x[range]),
            Self::Bf16(x) => Self::Bf16(&x[range]),
        }
    }

    /// Floats of scratch that [`Numbers::widened`] needs for parts of `most` of them.
    pub fn wide_len(self, most: usize) -> usize {
        match self {
            Self::F32(_) => 0,
            Self::Bf16(x) => x.len().min(most),
        }
    }

    /// In single precision: as they are, or widened into `wide` on all threads.
    pub fn widened<'s>(self, wide: &'s mut [f32]) -> &'s [f32]
    where
        'a: 's,
    {
        match self {
            Self::F32(x) => x,
            Self::Bf16(x) => {
                let wide = &mut wide[..x.len()];
                par::rows(wide, 1, |first, y| widen(&x[first..first + y.len()], y));
                wide
            }
        }
    }

    /// `y = self`, on one thread.
    pub fn copy_to(self, y: &mut [f32]) {
        match self {
            Self::F32(x) => y.copy_from_slice(x),
            Self::Bf16(x) => widen(x, y),
        }
    }
}

/// Rows of `width` numbers that a product widens at a time: all where nothing is widened.
pub fn rows_at_once(w: Numbers, width: usize) -> usize {
    match w {
        Numbers::F32(x) => (x.len() / width).max(1),
        Numbers::Bf16(_) => (PART / width).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest_and_then_to_the_even() {
        let wide = |x: u16| f32::from_bits(u32::from(x) << 16);
        for (x, expected) in [
            (1.0, 1.0),
            (0.0, 0.0),
            (1.0 + 1.0 / 128.0, 1.0 + 1.0 / 128.0),
            // Halfway between two: to the even one, down and up.
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 2.0 / 128.0),
            (1.0 + 1.0 / 256.0 + f32::EPSILON, 1.0 + 1.0 / 128.0),
            (-3.3, -3.296_875),
            (f32::INFINITY, f32::INFINITY),
            (f32::MAX, f32::INFINITY),
            (f32::from_bits(1), 0.0),
        ] {
            assert_eq!(wide(narrow(x)), expected, "{x}");
        }
        assert!(wide(narrow(-0.0)).is_sign_negative());
        assert!(
            wide(narrow(f32::from_bits(0x7f80_0001))).is_nan() && wide(narrow(f32::from_bits(0xffff_ffff))).is_nan()
        );
        // Every number of bfloat16 is its own nearest.
        for bits in (0..=u16::MAX).filter(|&bits| !wide(bits).is_nan()) {
            assert_eq!(narrow(wide(bits)), bits);
        }
    }
}
