//! Products with weights, and gathering of rows.

use super::Operation;
use super::inputs::{Inputs, Outputs, blank, only};
use super::memory::{STORES, destination};
use crate::backend::{Backend, Store, Weight};

/// (rows or ids, rows of the table, channels).
const TABLES: [(usize, usize, usize); 8] =
    [(1, 1, 1), (1, 5, 3), (7, 3, 16), (17, 13, 17), (64, 100, 15), (65, 31, 64), (63, 9001, 5), (300, 7, 33)];

/// Rows of a table by ids that repeat.
#[derive(Clone, Copy, Debug)]
pub struct Embed {
    ids: usize,
    vocab: usize,
    channels: usize,
}

impl Operation for Embed {
    const METHODS: &'static [&'static str] = &["embed", "upload_index"];

    fn cases() -> Vec<Self> {
        TABLES.map(|(ids, vocab, channels)| Self { ids, vocab, channels }).to_vec()
    }

    fn flops(&self) -> u64 {
        0
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let table = x.buffer(b, self.vocab * self.channels, 1.0);
        let ids = b.upload_index(&x.ids(self.ids, self.vocab));
        let mut y = blank(b, self.ids * self.channels);
        b.embed(&table, &ids, self.channels, &mut y);
        only(b, "y", &y)
    }
}

/// The table's gradient: rows of equal ids add up.
#[derive(Clone, Copy, Debug)]
pub struct EmbedGrad {
    ids: usize,
    vocab: usize,
    channels: usize,
    store: Store,
}

impl Operation for EmbedGrad {
    const METHODS: &'static [&'static str] = &["embed_grad"];

    fn cases() -> Vec<Self> {
        let with = |store| TABLES.map(|(ids, vocab, channels)| Self { ids, vocab, channels, store });
        STORES.into_iter().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        (self.ids * self.channels) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let d_y = x.buffer(b, self.ids * self.channels, 1.0);
        let ids = b.upload_index(&x.ids(self.ids, self.vocab));
        let mut d_table = destination(x, b, self.vocab * self.channels, self.store);
        b.embed_grad(&d_y, &ids, self.channels, &mut d_table, self.store);
        only(b, "d_table", &d_table)
    }
}

/// Whether a product of many rows rounds its operands to half precision, as the backend says.
#[derive(Clone, Copy, Debug)]
pub struct Precision {
    size: usize,
}

impl Operation for Precision {
    const METHODS: &'static [&'static str] = &["multiplies_in_half"];

    fn cases() -> Vec<Self> {
        [64, 128].map(|size| Self { size }).to_vec()
    }

    fn flops(&self) -> u64 {
        2 * self.size.pow(3) as u64
    }

    fn run<B: Backend>(&self, _: &mut Inputs, b: &B) -> Outputs {
        // Half precision has no number between 1 and 1 + 2⁻¹⁰; in single precision these sums are exact.
        let fine = 1.0 + 2f64.powi(-12);
        let square = self.size * self.size;
        let (x, w) = (b.upload(&vec![fine as f32; square]), b.upload(&vec![1.0 / self.size as f32; square]));
        let mut y = blank(b, square);
        b.linear(&x, Weight { data: &w, out_features: self.size, in_features: self.size }, &mut y, Store::Set);
        let rounds = b.read(&y).iter().all(|&y| y != fine);
        Outputs::default().values("what it says of itself", vec![f64::from(rounds == b.multiplies_in_half())], true)
    }
}

/// (gathered rows, rows, channels).
const GATHERED: [(usize, usize, usize); 7] =
    [(1, 1, 1), (1, 17, 5), (16, 16, 16), (15, 17, 31), (31, 64, 63), (65, 130, 65), (40, 41, 129)];

/// Distinct rows of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct GatherRows {
    gathered: usize,
    rows: usize,
    channels: usize,
}

impl Operation for GatherRows {
    const METHODS: &'static [&'static str] = &["gather_rows"];

    fn cases() -> Vec<Self> {
        GATHERED.map(|(gathered, rows, channels)| Self { gathered, rows, channels }).to_vec()
    }

    fn flops(&self) -> u64 {
        0
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let from = x.buffer(b, self.rows * self.channels, 1.0);
        let rows = b.upload_index(&x.distinct(self.gathered, self.rows));
        let mut y = blank(b, self.gathered * self.channels);
        b.gather_rows(&from, &rows, self.channels, &mut y);
        only(b, "y", &y)
    }
}

/// The gradient goes back to the rows it came from; the others get zero or keep theirs.
#[derive(Clone, Copy, Debug)]
pub struct GatherRowsGrad {
    gathered: usize,
    rows: usize,
    channels: usize,
    store: Store,
}

impl Operation for GatherRowsGrad {
    const METHODS: &'static [&'static str] = &["gather_rows_grad"];

    fn cases() -> Vec<Self> {
        let with = |store| GATHERED.map(|(gathered, rows, channels)| Self { gathered, rows, channels, store });
        STORES.into_iter().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        0
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let d_y = x.buffer(b, self.gathered * self.channels, 1.0);
        let rows = b.upload_index(&x.distinct(self.gathered, self.rows));
        let mut d_x = destination(x, b, self.rows * self.channels, self.store);
        b.gather_rows_grad(&d_y, &rows, self.channels, &mut d_x, self.store);
        only(b, "d_x", &d_x)
    }
}

/// (rows, in, out): few rows, as in decoding, and many; around tiles of 16 and 64.
const PRODUCTS: [(usize, usize, usize); 17] = [
    (1, 1, 1),
    (1, 64, 64),
    (1, 97, 300),
    (2, 3, 5),
    (4, 65, 127),
    (10, 128, 257),
    (15, 17, 16),
    (16, 16, 17),
    (17, 65, 63),
    (63, 31, 65),
    (64, 64, 64),
    (65, 128, 129),
    (130, 67, 193),
    (257, 1, 13),
    (31, 509, 1),
    (3, 257, 301),
    (11, 300, 500),
];

/// `x · wᵀ`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    rows: usize,
    in_features: usize,
    out_features: usize,
    store: Store,
}

impl Operation for Linear {
    const METHODS: &'static [&'static str] = &["linear"];

    fn cases() -> Vec<Self> {
        let with =
            |store| PRODUCTS.map(|(rows, in_features, out_features)| Self { rows, in_features, out_features, store });
        STORES.into_iter().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        2 * (self.rows * self.in_features * self.out_features) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let &Self { rows, in_features, out_features, store } = self;
        let (input, data) = (x.buffer(b, rows * in_features, 1.0), x.buffer(b, in_features * out_features, 1.0));
        let mut y = destination(x, b, rows * out_features, store);
        b.linear(&input, Weight { data: &data, out_features, in_features }, &mut y, store);
        only(b, "y", &y)
    }
}

/// `d_y · w`.
#[derive(Clone, Copy, Debug)]
pub struct LinearGradX(Linear);

impl Operation for LinearGradX {
    const METHODS: &'static [&'static str] = &["linear_grad_x"];

    fn cases() -> Vec<Self> {
        Linear::cases().into_iter().map(Self).collect()
    }

    fn flops(&self) -> u64 {
        self.0.flops()
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let Linear { rows, in_features, out_features, store } = self.0;
        let (d_y, data) = (x.buffer(b, rows * out_features, 1.0), x.buffer(b, in_features * out_features, 1.0));
        let mut d_x = destination(x, b, rows * in_features, store);
        b.linear_grad_x(&d_y, Weight { data: &data, out_features, in_features }, &mut d_x, store);
        only(b, "d_x", &d_x)
    }
}

/// `d_yᵀ · x`.
#[derive(Clone, Copy, Debug)]
pub struct LinearGradW(Linear);

impl Operation for LinearGradW {
    const METHODS: &'static [&'static str] = &["linear_grad_w"];

    fn cases() -> Vec<Self> {
        Linear::cases().into_iter().map(Self).collect()
    }

    fn flops(&self) -> u64 {
        self.0.flops()
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let Linear { rows, in_features, out_features, store } = self.0;
        let (d_y, input) = (x.buffer(b, rows * out_features, 1.0), x.buffer(b, rows * in_features, 1.0));
        let mut d_w = destination(x, b, in_features * out_features, store);
        b.linear_grad_w(&d_y, &input, out_features, in_features, &mut d_w, store);
        only(b, "d_w", &d_w)
    }
}

/// Everything that takes a weight in bfloat16: an embedding, a product with its gradient, a head with its own.
#[derive(Clone, Copy, Debug)]
pub struct Bf16 {
    rows: usize,
    in_features: usize,
    out_features: usize,
}

impl Operation for Bf16 {
    const METHODS: &'static [&'static str] = &["upload_bf16", "alloc_bf16"];

    fn cases() -> Vec<Self> {
        let case = |(rows, in_features, out_features)| Self { rows, in_features, out_features };
        // The last one is widened in several parts.
        PRODUCTS.map(case).into_iter().chain([case((70, 700, 3000))]).collect()
    }

    fn flops(&self) -> u64 {
        8 * (self.rows * self.in_features * self.out_features) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let &Self { rows, in_features, out_features } = self;
        let (input, d_y) = (x.buffer(b, rows * in_features, 1.0), x.buffer(b, rows * out_features, 1.0));
        let data = b.upload_bf16(&x.floats(in_features * out_features, 1.0));
        let w = Weight { data: &data, out_features, in_features };
        let mut y = destination(x, b, rows * out_features, Store::Add);
        b.linear(&input, w, &mut y, Store::Add);
        let mut d_x = blank(b, rows * in_features);
        b.linear_grad_x(&d_y, w, &mut d_x, Store::Set);
        let ids = x.ids(rows, out_features);
        let targets = b.upload_index(&ids);
        let mut embedded = blank(b, rows * in_features);
        b.embed(&data, &targets, in_features, &mut embedded);
        let each = b.upload_index(&(0..rows as u32).collect::<Vec<_>>());
        let (mut logp, mut lse) = (blank(b, rows), blank(b, rows));
        b.token_logp(&input, w, None, &each, &targets, &mut logp, &mut lse);
        let (d_logp, mut d_h) = (x.buffer(b, rows, 1.0), blank(b, rows * in_features));
        b.token_logp_grad(&d_logp, &input, w, None, &each, &targets, &lse, (&mut d_h, Store::Set), None);
        let length = b.len(&b.alloc_bf16(3 * rows)) as f64;
        Outputs::default()
            .values("data", b.read(&data), true)
            .and(b, "y", &y)
            .and(b, "d_x", &d_x)
            .values("embedded", b.read(&embedded), true)
            .and(b, "logp", &logp)
            .and(b, "d_h", &d_h)
            .values("length", vec![length], true)
    }
}
