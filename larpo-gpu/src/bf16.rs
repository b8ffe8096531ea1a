//! Weights in bfloat16, the upper half of single precision: for models that are not trained. Two of them share a `u32`, the
//! first in its lower half, so that no optional feature of the device is needed; kernels widen them where they are used.

use crate::{Buffer, Error, Recorder};

/// A flat array of bfloat16 on the device. Clones are the same array.
#[derive(Clone, Debug)]
pub struct Bf16 {
    pairs: Buffer<u32>,
    len: usize,
}

impl Bf16 {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its memory: elements `2i` and `2i + 1` in the lower and upper half of word `i`.
    pub fn pairs(&self) -> &Buffer<u32> {
        &self.pairs
    }
}

/// A tensor that kernels only read, in either precision.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    /// Single precision.
    F32(&'a Buffer),
    /// bfloat16.
    Bf16(&'a Bf16),
}

impl Weight<'_> {
    /// Number of elements.
    pub fn len(self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::Bf16(x) => x.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl<'a> From<&'a Buffer> for Weight<'a> {
    fn from(x: &'a Buffer) -> Self {
        Self::F32(x)
    }
}

impl<'a> From<&'a Bf16> for Weight<'a> {
    fn from(x: &'a Bf16) -> Self {
        Self::Bf16(x)
    }
}

/// The bits of the nearest number in bfloat16, of two the one with an even last bit.
fn narrow(x: f32) -> u32 {
    let bits = x.to_bits();
    match x.is_nan() {
        // Adding could carry a NaN's bits away.
        true => bits >> 16 | 0x40,
        false => (u64::from(bits) + 0x7fff + u64::from(bits >> 16 & 1)) as u32 >> 16,
    }
}

impl Recorder {
    /// An array of `len` numbers in bfloat16 with **unspecified** contents.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::OutOfMemory`].
    pub fn alloc_bf16(&self, len: usize) -> Result<Bf16, Error> {
        Ok(Bf16 { pairs: self.alloc(len.div_ceil(2))?, len })
    }

    /// Copies `data` to the device, rounded to bfloat16: to the nearest, then to the even.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::OutOfMemory`].
    pub fn upload_bf16(&self, data: &[f32]) -> Result<Bf16, Error> {
        let pair = |pair: &[f32]| narrow(pair[0]) | pair.get(1).map_or(0, |&x| narrow(x) << 16);
        let pairs: Vec<u32> = data.chunks(2).map(pair).collect();
        Ok(Bf16 { pairs: self.upload(&pairs)?, len: data.len() })
    }

    /// Reads an array of bfloat16 back, widened to single precision; as [`Recorder::read`].
    ///
    /// # Errors
    /// As [`Recorder::read`].
    #[track_caller]
    pub fn read_bf16(&mut self, x: &Bf16) -> Result<Vec<f32>, Error> {
        let pairs = self.read(&x.pairs)?;
        let widened = pairs.iter().flat_map(|&pair| [pair << 16, pair & 0xffff_0000].map(f32::from_bits));
        Ok(widened.take(x.len).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest_and_then_to_the_even() {
        let wide = |bits: u32| f32::from_bits(bits << 16);
        for (x, expected) in [
            (1.0, 1.0),
            (-0.0, -0.0),
            // Halfway between two: to the even one, down and up.
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 2.0 / 128.0),
            (1.0 + 1.0 / 256.0 + f32::EPSILON, 1.0 + 1.0 / 128.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
        ] {
            assert_eq!(wide(narrow(x)).to_bits(), f32::to_bits(expected), "{x}");
        }
        assert!(wide(narrow(f32::from_bits(0x7f80_0001))).is_nan());
        // Every number of bfloat16 is its own nearest.
        for bits in (0..=0xffff).filter(|&bits| !wide(bits).is_nan()) {
            assert_eq!(narrow(wide(bits)), bits);
        }
    }
}
