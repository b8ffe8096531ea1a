//! Memory: transfers, filling, copying.

use super::Operation;
use super::inputs::{Inputs, Outputs, blank, only};
use crate::backend::{Backend, Store};

const LENGTHS: [usize; 8] = [1, 2, 15, 16, 17, 1021, 65_537, 262_147];

/// What goes up comes down again, also after the kept memory was given back or limited.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    len: usize,
}

impl Operation for Transfer {
    const METHODS: &'static [&'static str] =
        &["upload", "download", "read", "read_all", "len", "alloc", "trim", "limit", "name"];

    fn cases() -> Vec<Self> {
        LENGTHS.map(|len| Self { len }).to_vec()
    }

    fn flops(&self) -> u64 {
        0
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let (first, second) = (x.floats(self.len, 1.0), x.floats(self.len, 1.0));
        let wide = |x: &[f32]| x.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let kept = b.upload(&first);
        // Memory that is reused, and memory taken after a trim or beyond a limit, must not disturb what is still held.
        drop(b.upload(&second));
        b.trim();
        b.limit(1);
        drop(b.upload(&second));
        let other = b.upload(&second);
        b.limit(u64::MAX);
        let mut down = vec![0f32; self.len];
        b.download(&kept, &mut down);
        // Of different lengths, an empty one among them.
        let empty = b.alloc(0);
        let all = b.read_all(&[&kept, &empty, &b.upload(&[2.5]), &other]);
        let together = [wide(&first), vec![], vec![2.5], wide(&second)];
        let lengths = vec![b.len(&kept) as f64, b.len(&b.alloc(self.len)) as f64];
        Outputs::default()
            .values("the length", lengths, true)
            .values("the uploaded numbers", b.read(&kept), true)
            .values("the numbers uploaded later", b.read(&other), true)
            .values("the downloaded numbers", wide(&down), true)
            // Independent of the reference: what came down is what went up, and the backend has a name.
            .values("the round trip", vec![f64::from(down == first && b.read(&kept) == wide(&first))], true)
            .values("what is read together", vec![f64::from(all == together)], true)
            .values("the name", vec![f64::from(!b.name().is_empty())], true)
    }
}

/// `x[..] = value`.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    len: usize,
    value: f64,
}

impl Operation for Fill {
    const METHODS: &'static [&'static str] = &["fill"];

    fn cases() -> Vec<Self> {
        LENGTHS.iter().flat_map(|&len| [0.0, -1.5].map(|value| Self { len, value })).collect()
    }

    fn flops(&self) -> u64 {
        0
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let mut y = x.buffer(b, self.len, 1.0);
        b.fill(&mut y, self.value);
        only(b, "x", &y)
    }
}

/// `y = x` and `y += x`.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    len: usize,
    store: Store,
}

impl Operation for Copy {
    const METHODS: &'static [&'static str] = &["copy"];

    fn cases() -> Vec<Self> {
        LENGTHS.iter().flat_map(|&len| STORES.map(|store| Self { len, store })).collect()
    }

    fn flops(&self) -> u64 {
        0
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let from = x.buffer(b, self.len, 1.0);
        let mut y = destination(x, b, self.len, self.store);
        b.copy(&from, &mut y, self.store);
        only(b, "y", &y)
    }
}

/// Both ways to store a result.
pub const STORES: [Store; 2] = [Store::Set, Store::Add];

/// Where a result goes: NaN if it is to be overwritten, numbers if it is added to.
pub fn destination<B: Backend>(x: &mut Inputs, b: &B, len: usize, store: Store) -> B::Buffer {
    match store {
        Store::Set => blank(b, len),
        Store::Add => x.buffer(b, len, 1.0),
    }
}
