//! Counter-based randomness: a number is a pure function of a seed, a purpose and four counters.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). There is no generator state to
//! store: resuming, re-ordering and running on another device all draw the same numbers.

use ndarray_rand::rand::{RngCore, SeedableRng};

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Philox4x32 with ten rounds.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter =
            [(p1 >> 32) as u32 ^ counter[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ counter[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// What random numbers are for; each purpose has an independent stream under the same seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights.
    Weights = 1,
    /// Order of the training data.
    Shuffle = 2,
    /// Token sampling: counters are iteration, prompt, sample, position.
    Sampling = 3,
    /// Order inside tied groups.
    Ties = 4,
    /// Train/validation split.
    Split = 5,
    /// Benchmark inputs.
    Bench = 6,
    /// Bootstrap resampling.
    Bootstrap = 7,
    /// What dropout leaves out: counters are element, update and pass, keys adapter and run.
    Dropout = 8,
}

/// A stream of random numbers addressed by four counters.
#[derive(Clone, Copy, Debug)]
pub struct CounterRng {
    key: [u32; 2],
}

impl CounterRng {
    /// The stream of `purpose` under `seed`.
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        let block = philox([purpose as u32, 0, 0, 0x6c61_7270], [seed as u32, (seed >> 32) as u32]);
        Self { key: [block[0], block[1]] }
    }

    /// A number in [0, 1) with 53 random bits, decided by the counters alone.
    pub fn uniform(&self, counters: [u32; 4]) -> f64 {
        let block = philox(counters, self.key);
        let bits = (u64::from(block[0]) << 32 | u64::from(block[1])) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }

    /// Key of the sub-stream `a`, `b`, for a kernel that draws with [`philox`] itself.
    pub fn key(&self, a: u32, b: u32) -> [u32; 2] {
        let [x, y, ..] = philox([a, b, 0, 0x6b65_7973], self.key);
        [x, y]
    }

    /// A sequential generator for sub-stream `index` (initial weights, shuffles).
    pub fn sequence(&self, index: u64) -> Sequence {
        Sequence { key: self.key, index, block: 0, buffer: [0; 4], used: 4 }
    }

    /// A permutation of `0..n` decided by `index` (Fisher–Yates).
    pub fn permutation(&self, index: u64, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        let mut random = self.sequence(index);
        for i in (1..n).rev() {
            // The bias of the modulus is below n / 2^64.
            order.swap(i, (random.next_u64() % (i as u64 + 1)) as usize);
        }
        order
    }
}

/// A sequential view of a counter-based stream, usable wherever a `rand` generator is expected.
#[derive(Clone, Debug)]
pub struct Sequence {
    key: [u32; 2],
    index: u64,
    block: u64,
    buffer: [u32; 4],
    used: usize,
}

impl RngCore for Sequence {
    fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            let (b, i) = (self.block, self.index);
            self.buffer = philox([b as u32, (b >> 32) as u32, i as u32, (i >> 32) as u32], self.key);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.buffer[self.used - 1]
    }

    fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) << 32 | u64::from(self.next_u32())
    }

    fn fill_bytes(&mut self, dst: &mut [u8]) {
        for chunk in dst.chunks_mut(4) {
            chunk.copy_from_slice(&self.next_u32().to_le_bytes()[..chunk.len()]);
        }
    }
}

impl SeedableRng for Sequence {
    type Seed = [u8; 8];

    fn from_seed(seed: [u8; 8]) -> Self {
        CounterRng::new(u64::from_le_bytes(seed), Purpose::Weights).sequence(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn purposes_and_counters_are_independent_streams() {
        let a = CounterRng::new(7, Purpose::Sampling);
        let b = CounterRng::new(7, Purpose::Shuffle);
        assert_ne!(a.uniform([1, 2, 3, 4]), b.uniform([1, 2, 3, 4]));
        assert_ne!(a.uniform([1, 2, 3, 4]), a.uniform([1, 2, 4, 3]));
        let mean = (0..20_000).map(|i| a.uniform([0, i, 0, 0])).sum::<f64>() / 20_000.0;
        assert!((mean - 0.5).abs() < 4.0 * (1.0f64 / 12.0 / 20_000.0).sqrt(), "mean {mean}");
    }

    #[test]
    fn permutation_holds_every_index_once() {
        let mut p = CounterRng::new(1, Purpose::Shuffle).permutation(3, 1000);
        assert_ne!(p[..10], (0..10).collect::<Vec<_>>()[..]);
        p.sort_unstable();
        assert_eq!(p, (0..1000).collect::<Vec<_>>());
    }
}
