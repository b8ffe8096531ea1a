//! Norms, biases, rotary embedding and activations.

use super::Operation;
use super::inputs::{Inputs, Outputs, blank, only};
use super::memory::{STORES, destination};
use crate::backend::{Activation, AttentionSpec, Backend, DropoutSpec, NormSpec, Store};

const EPS: f64 = 1e-5;

/// (rows, channels).
const MATRICES: [(usize, usize); 9] =
    [(1, 1), (1, 64), (2, 3), (15, 17), (17, 15), (64, 63), (65, 65), (3, 1021), (311, 48)];

/// Root-mean-square norm of rows.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    rows: usize,
    channels: usize,
    /// Magnitude of the inputs; 0 is what `eps` is for.
    size: f64,
    /// Added to the weights.
    offset: f64,
}

impl Operation for RmsNorm {
    const METHODS: &'static [&'static str] = &["rms_norm"];

    fn cases() -> Vec<Self> {
        let with = |(size, offset)| MATRICES.map(|(rows, channels)| Self { rows, channels, size, offset });
        [(0.0, 0.0), (2.0, 0.0), (1e3, 0.0), (2.0, 1.0)].into_iter().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        4 * (self.rows * self.channels) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let input = x.buffer(b, self.rows * self.channels, self.size);
        let w = x.buffer(b, self.channels, 1.5);
        let (mut y, mut rstd) = (blank(b, self.rows * self.channels), blank(b, self.rows));
        b.rms_norm(&input, &w, NormSpec { eps: EPS, offset: self.offset }, &mut y, &mut rstd);
        only(b, "y", &y).and(b, "rstd", &rstd)
    }
}

/// Gradient of the norm, with and without the weight's.
#[derive(Clone, Copy, Debug)]
pub struct RmsNormGrad {
    rows: usize,
    channels: usize,
    d_x: Store,
    d_w: Option<Store>,
    offset: f64,
}

/// How gradients are stored: by the rows, and by the weight, where that is wanted.
const GRADIENTS: [(Store, Option<Store>); 4] = [
    (Store::Set, Some(Store::Set)),
    (Store::Add, Some(Store::Add)),
    (Store::Set, Some(Store::Add)),
    (Store::Add, None),
];

impl Operation for RmsNormGrad {
    const METHODS: &'static [&'static str] = &["rms_norm_grad"];

    fn cases() -> Vec<Self> {
        let with = |(i, (d_x, d_w))| {
            MATRICES.map(|(rows, channels)| Self { rows, channels, d_x, d_w, offset: f64::from(i as u8 % 2) })
        };
        GRADIENTS.into_iter().enumerate().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        10 * (self.rows * self.channels) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let &Self { rows, channels, .. } = self;
        let (input, w) = (x.buffer(b, rows * channels, 2.0), x.buffer(b, channels, 1.5));
        let (mut y, mut rstd) = (blank(b, rows * channels), blank(b, rows));
        // With one channel the gradient is what eps leaves of it; a larger one keeps that from being all rounding.
        let spec = NormSpec { eps: 0.1, offset: self.offset };
        b.rms_norm(&input, &w, spec, &mut y, &mut rstd);
        let d_y = x.buffer(b, rows * channels, 1.0);
        let mut d_x = destination(x, b, rows * channels, self.d_x);
        let mut d_w = self.d_w.map(|store| (destination(x, b, channels, store), store));
        let into = d_w.as_mut().map(|(d, store)| (d, *store));
        b.rms_norm_grad(&d_y, &input, &w, spec, &rstd, (&mut d_x, self.d_x), into);
        let outputs = only(b, "d_x", &d_x);
        match &d_w {
            Some((d_w, _)) => outputs.and(b, "d_w", d_w),
            None => outputs,
        }
    }
}

/// Norm of mean and variance of rows.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    rows: usize,
    channels: usize,
    /// Magnitude of the inputs; 0 is what `eps` is for.
    size: f64,
}

impl Operation for LayerNorm {
    const METHODS: &'static [&'static str] = &["layer_norm"];

    fn cases() -> Vec<Self> {
        let with = |size| MATRICES.map(|(rows, channels)| Self { rows, channels, size });
        [0.0, 2.0, 1e3].into_iter().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        7 * (self.rows * self.channels) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let input = x.buffer(b, self.rows * self.channels, self.size);
        let w = x.buffer(b, self.channels, 1.5);
        let (mut y, mut stats) = (blank(b, self.rows * self.channels), blank(b, 2 * self.rows));
        b.layer_norm(&input, &w, EPS, &mut y, &mut stats);
        only(b, "y", &y).and(b, "stats", &stats)
    }
}

/// Gradient of that norm, with and without the weight's.
#[derive(Clone, Copy, Debug)]
pub struct LayerNormGrad {
    rows: usize,
    channels: usize,
    d_x: Store,
    d_w: Option<Store>,
}

impl Operation for LayerNormGrad {
    const METHODS: &'static [&'static str] = &["layer_norm_grad"];

    fn cases() -> Vec<Self> {
        // One channel has no gradient but rounding.
        let more = |(rows, channels): &(usize, usize)| *channels > 1 && *rows > 0;
        let with = |(d_x, d_w)| {
            MATRICES.into_iter().filter(more).map(move |(rows, channels)| Self { rows, channels, d_x, d_w })
        };
        GRADIENTS.into_iter().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        14 * (self.rows * self.channels) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let &Self { rows, channels, .. } = self;
        let (input, w) = (x.buffer(b, rows * channels, 2.0), x.buffer(b, channels, 1.5));
        let (mut y, mut stats) = (blank(b, rows * channels), blank(b, 2 * rows));
        b.layer_norm(&input, &w, 0.1, &mut y, &mut stats);
        let d_y = x.buffer(b, rows * channels, 1.0);
        let mut d_x = destination(x, b, rows * channels, self.d_x);
        let mut d_w = self.d_w.map(|store| (destination(x, b, channels, store), store));
        let into = d_w.as_mut().map(|(d, store)| (d, *store));
        b.layer_norm_grad(&d_y, &input, &w, &stats, (&mut d_x, self.d_x), into);
        let outputs = only(b, "d_x", &d_x);
        match &d_w {
            Some((d_w, _)) => outputs.and(b, "d_w", d_w),
            None => outputs,
        }
    }
}

/// Rows that go with each layout of heads.
const ROWS: [usize; 6] = [1, 5, 17, 63, 65, 300];

/// Norm of query and key heads.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorm {
    rows: usize,
    heads: (usize, usize, usize),
}

impl Operation for HeadNorm {
    const METHODS: &'static [&'static str] = &["head_norm"];

    fn cases() -> Vec<Self> {
        HEADS.into_iter().zip(ROWS).map(|(heads, rows)| Self { rows, heads }).collect()
    }

    fn flops(&self) -> u64 {
        let (heads, kv_heads, head_dim) = self.heads;
        4 * (self.rows * (heads + kv_heads) * head_dim) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let spec = attention_spec(self.heads);
        let qkv = x.buffer(b, self.rows * spec.qkv_width(), 2.0);
        let (w_q, w_k) = (x.buffer(b, spec.head_dim, 1.5), x.buffer(b, spec.head_dim, 1.5));
        let mut y = blank(b, self.rows * spec.qkv_width());
        let mut rstd = blank(b, self.rows * (spec.heads + spec.kv_heads));
        b.head_norm(&qkv, &w_q, &w_k, EPS, &spec, &mut y, &mut rstd);
        only(b, "y", &y).and(b, "rstd", &rstd)
    }
}

/// Gradient of the norm of heads, with and without the weights'.
#[derive(Clone, Copy, Debug)]
pub struct HeadNormGrad {
    forward: HeadNorm,
    d_w: [Option<Store>; 2],
}

impl Operation for HeadNormGrad {
    const METHODS: &'static [&'static str] = &["head_norm_grad"];

    fn cases() -> Vec<Self> {
        let weights =
            [[Some(Store::Set); 2], [Some(Store::Add), Some(Store::Set)], [None, Some(Store::Add)], [None; 2]];
        let with = |d_w| HeadNorm::cases().into_iter().map(move |forward| Self { forward, d_w });
        weights.into_iter().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        self.forward.flops() / 4 * 10
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let (rows, spec) = (self.forward.rows, attention_spec(self.forward.heads));
        let (n, d) = (rows * spec.qkv_width(), spec.head_dim);
        let qkv = x.buffer(b, n, 2.0);
        let (w_q, w_k) = (x.buffer(b, d, 1.5), x.buffer(b, d, 1.5));
        let (mut y, mut rstd) = (blank(b, n), blank(b, rows * (spec.heads + spec.kv_heads)));
        b.head_norm(&qkv, &w_q, &w_k, 0.1, &spec, &mut y, &mut rstd);
        let d_y = x.buffer(b, n, 1.0);
        let mut d_x = blank(b, n);
        let [mut d_q, mut d_k] = self.d_w.map(|store| store.map(|store| (destination(x, b, d, store), store)));
        let into_q = d_q.as_mut().map(|(d, store)| (d, *store));
        let into_k = d_k.as_mut().map(|(d, store)| (d, *store));
        b.head_norm_grad(&d_y, &qkv, &w_q, &w_k, &rstd, &spec, &mut d_x, into_q, into_k);
        let mut outputs = only(b, "d_x", &d_x);
        for (name, d) in [("d_w_q", &d_q), ("d_w_k", &d_k)] {
            if let Some((d, _)) = d {
                outputs = outputs.and(b, name, d);
            }
        }
        outputs
    }
}

/// A bias in every row.
#[derive(Clone, Copy, Debug)]
pub struct BroadcastRows {
    rows: usize,
    channels: usize,
    store: Store,
}

impl Operation for BroadcastRows {
    const METHODS: &'static [&'static str] = &["broadcast_rows"];

    fn cases() -> Vec<Self> {
        let with = |store| MATRICES.map(|(rows, channels)| Self { rows, channels, store });
        STORES.into_iter().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        (self.rows * self.channels) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let bias = x.buffer(b, self.channels, 1.0);
        let mut y = destination(x, b, self.rows * self.channels, self.store);
        b.broadcast_rows(&bias, &mut y, self.store);
        only(b, "y", &y)
    }
}

/// The sum of all rows.
#[derive(Clone, Copy, Debug)]
pub struct SumRows {
    rows: usize,
    channels: usize,
    store: Store,
}

impl Operation for SumRows {
    const METHODS: &'static [&'static str] = &["sum_rows"];

    fn cases() -> Vec<Self> {
        // The last has more than one block of rows.
        let sizes = MATRICES.into_iter().chain([(5000, 17)]);
        sizes.flat_map(|(rows, channels)| STORES.map(|store| Self { rows, channels, store })).collect()
    }

    fn flops(&self) -> u64 {
        (self.rows * self.channels) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let input = x.buffer(b, self.rows * self.channels, 1.0);
        let mut y = destination(x, b, self.channels, self.store);
        b.sum_rows(&input, &mut y, self.store);
        only(b, "y", &y)
    }
}

/// (heads, kv_heads, head_dim).
pub const HEADS: [(usize, usize, usize); 6] = [(1, 1, 2), (2, 1, 4), (4, 2, 6), (3, 3, 16), (6, 2, 18), (4, 1, 64)];

/// The layout of heads with the usual scale.
pub fn attention_spec((heads, kv_heads, head_dim): (usize, usize, usize)) -> AttentionSpec {
    AttentionSpec { heads, kv_heads, head_dim, scale: (head_dim as f64).powf(-0.5), softcap: None, window: None }
}

/// Rotation of queries and keys, forth and back.
#[derive(Clone, Copy, Debug)]
pub struct Rope {
    rows: usize,
    heads: (usize, usize, usize),
    inverse: bool,
}

impl Operation for Rope {
    const METHODS: &'static [&'static str] = &["rope"];

    fn cases() -> Vec<Self> {
        let sizes = HEADS.into_iter().zip([1, 5, 17, 63, 65, 16]);
        sizes.flat_map(|(heads, rows)| [false, true].map(|inverse| Self { rows, heads, inverse })).collect()
    }

    fn flops(&self) -> u64 {
        let (heads, kv_heads, head_dim) = self.heads;
        3 * (self.rows * (heads + kv_heads) * head_dim) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let (spec, positions) = (attention_spec(self.heads), 101);
        let mut qkv = x.buffer(b, self.rows * spec.qkv_width(), 1.0);
        // Any table does, but rotations keep the magnitudes as they are.
        let half = spec.head_dim / 2;
        let mut table = Vec::new();
        for _ in 0..positions {
            let angles: Vec<f64> = (0..half).map(|_| 6.3 * x.uniform()).collect();
            table.extend(angles.iter().map(|a| a.cos() as f32));
            table.extend(angles.iter().map(|a| a.sin() as f32));
        }
        let at = b.upload_index(&x.ids(self.rows, positions));
        b.rope(&mut qkv, &at, &b.upload(&table), &spec, self.inverse);
        only(b, "qkv", &qkv)
    }
}

const ACTIVATIONS: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];

/// An elementwise activation, alone or as the gate of a unit.
#[derive(Clone, Copy, Debug)]
pub struct Curve {
    rows: usize,
    width: usize,
    activation: Activation,
    /// Arguments lie between minus and plus this.
    size: f64,
}

impl Curve {
    fn all() -> Vec<Self> {
        // Around zero, where the slope bends, and into both tails.
        let sizes = [4.0, 100.0].into_iter().flat_map(|size| ACTIVATIONS.map(|activation| (activation, size)));
        sizes
            .flat_map(|(activation, size)| MATRICES.map(|(rows, width)| Self { rows, width, activation, size }))
            .collect()
    }
}

/// The gated unit.
#[derive(Clone, Copy, Debug)]
pub struct Glu(Curve);

impl Operation for Glu {
    const METHODS: &'static [&'static str] = &["glu"];

    fn cases() -> Vec<Self> {
        Curve::all().into_iter().map(Self).collect()
    }

    fn flops(&self) -> u64 {
        5 * (self.0.rows * self.0.width) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let Curve { rows, width, activation, size } = self.0;
        let gate_up = x.buffer(b, 2 * rows * width, size);
        let mut y = blank(b, rows * width);
        b.glu(&gate_up, width, activation, &mut y);
        only(b, "y", &y)
    }
}

/// Gradient of the gated unit.
#[derive(Clone, Copy, Debug)]
pub struct GluGrad(Curve);

impl Operation for GluGrad {
    const METHODS: &'static [&'static str] = &["glu_grad"];

    fn cases() -> Vec<Self> {
        Curve::all().into_iter().map(Self).collect()
    }

    fn flops(&self) -> u64 {
        11 * (self.0.rows * self.0.width) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let Curve { rows, width, activation, size } = self.0;
        let gate_up = x.buffer(b, 2 * rows * width, size);
        let d_y = x.buffer(b, rows * width, 1.0);
        let mut d = blank(b, 2 * rows * width);
        b.glu_grad(&d_y, &gate_up, width, activation, &mut d);
        only(b, "d_gate_up", &d)
    }
}

/// The activation of every element.
#[derive(Clone, Copy, Debug)]
pub struct Activate(Curve);

impl Operation for Activate {
    const METHODS: &'static [&'static str] = &["activate"];

    fn cases() -> Vec<Self> {
        Curve::all().into_iter().map(Self).collect()
    }

    fn flops(&self) -> u64 {
        4 * (self.0.rows * self.0.width) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let Curve { rows, width, activation, size } = self.0;
        let input = x.buffer(b, rows * width, size);
        let mut y = blank(b, rows * width);
        b.activate(&input, activation, &mut y);
        only(b, "y", &y)
    }
}

/// Gradient of the activation of every element.
#[derive(Clone, Copy, Debug)]
pub struct ActivateGrad(Curve);

impl Operation for ActivateGrad {
    const METHODS: &'static [&'static str] = &["activate_grad"];

    fn cases() -> Vec<Self> {
        Curve::all().into_iter().map(Self).collect()
    }

    fn flops(&self) -> u64 {
        9 * (self.0.rows * self.0.width) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let Curve { rows, width, activation, size } = self.0;
        let (input, d_y) = (x.buffer(b, rows * width, size), x.buffer(b, rows * width, 1.0));
        let mut d_x = blank(b, rows * width);
        b.activate_grad(&d_y, &input, activation, &mut d_x);
        only(b, "d_x", &d_x)
    }
}

/// Dropout of a flat array.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    len: usize,
    rate: f64,
    store: Store,
}

impl Operation for Dropout {
    const METHODS: &'static [&'static str] = &["dropout"];

    fn cases() -> Vec<Self> {
        let with = |(rate, store)| [1, 3, 4, 1021, 70_001].map(|len| Self { len, rate, store });
        [0.0, 0.1, 0.5].into_iter().flat_map(|rate| STORES.map(|store| (rate, store))).flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        self.len as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let input = x.buffer(b, self.len, 2.0);
        let spec = DropoutSpec { rate: self.rate, key: [7, 8], counter: [self.len as u32, 3] };
        let mut y = destination(x, b, self.len, self.store);
        b.dropout(&input, &spec, &mut y, self.store);
        only(b, "y", &y)
    }
}
