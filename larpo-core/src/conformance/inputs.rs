//! Inputs that every backend gets alike, and outputs as they are compared.

use crate::backend::Backend;
use crate::lists::PackedLists;
use crate::rng::{CounterRng, Purpose, Sequence};
use ndarray_rand::rand::RngCore;

/// Random inputs of one case, in the order in which they are asked for.
pub struct Inputs(Sequence);

impl Inputs {
    pub fn new(seed: usize) -> Self {
        Self(CounterRng::new(1, Purpose::Bench).sequence(seed as u64))
    }

    /// A number in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Numbers in (-`size`, `size`), none of them -0.
    pub fn floats(&mut self, len: usize, size: f64) -> Vec<f32> {
        (0..len).map(|_| ((2.0 * self.uniform() - 1.0) * size) as f32 + 0.0).collect()
    }

    /// [`Inputs::floats`] on the device.
    pub fn buffer<B: Backend>(&mut self, b: &B, len: usize, size: f64) -> B::Buffer {
        b.upload(&self.floats(len, size))
    }

    /// Ids below `below`, with repetitions.
    pub fn ids(&mut self, len: usize, below: usize) -> Vec<u32> {
        (0..len).map(|_| (self.0.next_u64() % below as u64) as u32).collect()
    }

    /// Distinct ids below `below`, in no order.
    pub fn distinct(&mut self, len: usize, below: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..below as u32).collect();
        for i in (1..below).rev() {
            all.swap(i, (self.0.next_u64() % (i as u64 + 1)) as usize);
        }
        all.truncate(len);
        all
    }
}

/// A buffer of NaN: what an operation leaves unwritten, or reads although it must not, shows.
pub fn blank<B: Backend>(b: &B, len: usize) -> B::Buffer {
    let mut x = b.alloc(len);
    b.fill(&mut x, f64::NAN);
    x
}

/// Lists of a prompt and responses, by their numbers of tokens.
pub type Shape = &'static [(usize, &'static [usize])];

/// Packed lists of that shape, with token ids 0, 1, 2, ….
pub fn pack(shape: Shape) -> PackedLists {
    let ids: Vec<u32> = (0..4096).collect();
    PackedLists::pack(
        shape.iter().map(|(prompt, responses)| (&ids[..*prompt], responses.iter().map(|len| &ids[..*len]))),
    )
}

/// One output of an operation.
pub struct Output {
    pub name: &'static str,
    pub values: Vec<f64>,
    /// Every number must be the same, as with token ids.
    pub exact: bool,
}

/// All outputs of an operation.
#[derive(Default)]
pub struct Outputs(pub Vec<Output>);

impl Outputs {
    /// Adds the contents of a buffer.
    pub fn and<B: Backend>(mut self, b: &B, name: &'static str, x: &B::Buffer) -> Self {
        self.0.push(Output { name, values: b.read(x), exact: false });
        self
    }

    /// Adds numbers.
    pub fn values(mut self, name: &'static str, values: Vec<f64>, exact: bool) -> Self {
        self.0.push(Output { name, values, exact });
        self
    }
}

/// Outputs of an operation with one buffer.
pub fn only<B: Backend>(b: &B, name: &'static str, x: &B::Buffer) -> Outputs {
    Outputs::default().and(b, name, x)
}
