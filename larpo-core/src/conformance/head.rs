//! Token log-probabilities through the head, and reductions to a scalar.

use super::Operation;
use super::inputs::{Inputs, Outputs, blank, only};
use super::memory::{STORES, destination};
use crate::backend::{Backend, Store, Weight};

/// (rows, channels, vocabulary, targets): several targets on a row, rows without one, more than one block of vocabulary.
const HEADS: [(usize, usize, usize, usize); 9] = [
    (1, 1, 1, 1),
    (1, 17, 5, 4),
    (3, 16, 257, 3),
    (15, 64, 63, 30),
    (16, 33, 65, 1),
    (17, 5, 127, 20),
    (65, 31, 129, 64),
    (18, 5, 9001, 12),
    (2, 3, 20_011, 3),
];

/// Log-probabilities of targets and the log-sum-exp of every row.
#[derive(Clone, Copy, Debug)]
pub struct TokenLogp {
    rows: usize,
    channels: usize,
    vocab: usize,
    targets: usize,
    softcap: Option<f64>,
}

struct Head<B: Backend> {
    h: B::Buffer,
    w: B::Buffer,
    target_rows: B::Index,
    target_ids: B::Index,
}

impl TokenLogp {
    fn inputs<B: Backend>(&self, x: &mut Inputs, b: &B) -> Head<B> {
        let (h, w) = (x.buffer(b, self.rows * self.channels, 2.0), x.buffer(b, self.vocab * self.channels, 1.0));
        let rows = x.ids(self.targets, self.rows);
        let mut ids = x.ids(self.targets, self.vocab);
        // The last entry of the vocabulary, and the same target twice.
        ids[0] = self.vocab as u32 - 1;
        let (mut target_rows, mut target_ids) = (rows, ids);
        if self.targets > 2 {
            target_rows[2] = target_rows[1];
            target_ids[2] = target_ids[1];
        }
        Head { h, w, target_rows: b.upload_index(&target_rows), target_ids: b.upload_index(&target_ids) }
    }
}

impl Operation for TokenLogp {
    const METHODS: &'static [&'static str] = &["token_logp"];

    fn cases() -> Vec<Self> {
        let with =
            |softcap| HEADS.map(|(rows, channels, vocab, targets)| Self { rows, channels, vocab, targets, softcap });
        [None, Some(1.5), Some(30.0)].into_iter().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        2 * (self.rows * self.channels * self.vocab) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let Head { h, w, target_rows, target_ids } = self.inputs(x, b);
        let w = Weight { data: &w, out_features: self.vocab, in_features: self.channels };
        let (mut logp, mut lse) = (blank(b, self.targets), blank(b, self.rows));
        b.token_logp(&h, w, self.softcap, &target_rows, &target_ids, &mut logp, &mut lse);
        only(b, "logp", &logp).and(b, "lse", &lse)
    }
}

/// Gradient of the log-probabilities, with and without the head's.
#[derive(Clone, Copy, Debug)]
pub struct TokenLogpGrad {
    forward: TokenLogp,
    d_h: Store,
    d_w: Option<Store>,
}

impl Operation for TokenLogpGrad {
    const METHODS: &'static [&'static str] = &["token_logp_grad"];

    fn cases() -> Vec<Self> {
        let stores = [
            (Store::Set, Some(Store::Set)),
            (Store::Add, Some(Store::Add)),
            (Store::Set, Some(Store::Add)),
            (Store::Add, None),
        ];
        let with = |(d_h, d_w)| TokenLogp::cases().into_iter().map(move |forward| Self { forward, d_h, d_w });
        stores.into_iter().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        // The logits again, and one product for each gradient.
        self.forward.flops() * if self.d_w.is_some() { 3 } else { 2 }
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let TokenLogp { rows, channels, vocab, targets, softcap } = self.forward;
        let Head { h, w, target_rows, target_ids } = self.forward.inputs(x, b);
        let w = Weight { data: &w, out_features: vocab, in_features: channels };
        let (mut logp, mut lse) = (blank(b, targets), blank(b, rows));
        b.token_logp(&h, w, softcap, &target_rows, &target_ids, &mut logp, &mut lse);
        let d_logp = x.buffer(b, targets, 1.0);
        let mut d_h = destination(x, b, rows * channels, self.d_h);
        let mut d_w = self.d_w.map(|store| (destination(x, b, vocab * channels, store), store));
        let into = d_w.as_mut().map(|(d, store)| (d, *store));
        b.token_logp_grad(&d_logp, &h, w, softcap, &target_rows, &target_ids, &lse, (&mut d_h, self.d_h), into);
        let outputs = only(b, "d_h", &d_h);
        match &d_w {
            Some((d_w, _)) => outputs.and(b, "d_w", d_w),
            None => outputs,
        }
    }
}

const LENGTHS: [usize; 6] = [1, 3, 64, 1021, 4097, 70_001];

/// `Σ w·x`.
#[derive(Clone, Copy, Debug)]
pub struct WeightedSum {
    len: usize,
}

impl Operation for WeightedSum {
    const METHODS: &'static [&'static str] = &["weighted_sum"];

    fn cases() -> Vec<Self> {
        LENGTHS.map(|len| Self { len }).to_vec()
    }

    fn flops(&self) -> u64 {
        2 * self.len as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        // Positive weights of negative numbers, as in a mean of log-probabilities: no cancellation to be blamed.
        let positive = |x: &mut Inputs| x.floats(self.len, 1.0).iter().map(|v| v.abs()).collect::<Vec<_>>();
        let values: Vec<f32> = positive(x).iter().map(|v| -v).collect();
        let weights = positive(x);
        let mut y = blank(b, 1);
        b.weighted_sum(&b.upload(&values), &b.upload(&weights), &mut y);
        only(b, "y", &y)
    }
}

/// `d_y · w`.
#[derive(Clone, Copy, Debug)]
pub struct WeightedSumGrad {
    len: usize,
    store: Store,
}

impl Operation for WeightedSumGrad {
    const METHODS: &'static [&'static str] = &["weighted_sum_grad"];

    fn cases() -> Vec<Self> {
        STORES.into_iter().flat_map(|store| LENGTHS.map(|len| Self { len, store })).collect()
    }

    fn flops(&self) -> u64 {
        self.len as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let (d_y, w) = (x.buffer(b, 1, 1.0), x.buffer(b, self.len, 1.0));
        let mut d_x = destination(x, b, self.len, self.store);
        b.weighted_sum_grad(&d_y, &w, &mut d_x, self.store);
        only(b, "d_x", &d_x)
    }
}

/// `x *= y[0]`.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    len: usize,
}

impl Operation for Scale {
    const METHODS: &'static [&'static str] = &["scale"];

    fn cases() -> Vec<Self> {
        LENGTHS.map(|len| Self { len }).to_vec()
    }

    fn flops(&self) -> u64 {
        self.len as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        // Only the first of several factors counts.
        let (mut values, factors) = (x.buffer(b, self.len, 1.0), x.buffer(b, 3, 2.0));
        b.scale(&mut values, &factors);
        only(b, "x", &values)
    }
}

/// `c·tanh(x / c)`.
#[derive(Clone, Copy, Debug)]
pub struct Softcap {
    len: usize,
    size: f64,
}

impl Operation for Softcap {
    const METHODS: &'static [&'static str] = &["softcap"];

    fn cases() -> Vec<Self> {
        [0.1, 3.0, 200.0].into_iter().flat_map(|size| LENGTHS.map(|len| Self { len, size })).collect()
    }

    fn flops(&self) -> u64 {
        3 * self.len as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let mut values = x.buffer(b, self.len, self.size);
        b.softcap(&mut values, 3.0);
        only(b, "x", &values)
    }
}
