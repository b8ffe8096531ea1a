//! Norms, rotary embedding and the gated unit.

use super::Operation;
use super::inputs::{Inputs, Outputs, blank, only};
use super::memory::destination;
use crate::backend::{AttentionSpec, Backend, Store};

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
}

impl Operation for RmsNorm {
    const METHODS: &'static [&'static str] = &["rms_norm"];

    fn cases() -> Vec<Self> {
        let with = |size| MATRICES.map(|(rows, channels)| Self { rows, channels, size });
        [0.0, 2.0, 1e3].into_iter().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        4 * (self.rows * self.channels) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let input = x.buffer(b, self.rows * self.channels, self.size);
        let w = x.buffer(b, self.channels, 1.5);
        let (mut y, mut rstd) = (blank(b, self.rows * self.channels), blank(b, self.rows));
        b.rms_norm(&input, &w, EPS, &mut y, &mut rstd);
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
}

impl Operation for RmsNormGrad {
    const METHODS: &'static [&'static str] = &["rms_norm_grad"];

    fn cases() -> Vec<Self> {
        let stores = [
            (Store::Set, Some(Store::Set)),
            (Store::Add, Some(Store::Add)),
            (Store::Set, Some(Store::Add)),
            (Store::Add, None),
        ];
        let with = |(d_x, d_w)| MATRICES.map(|(rows, channels)| Self { rows, channels, d_x, d_w });
        stores.into_iter().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        10 * (self.rows * self.channels) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let &Self { rows, channels, .. } = self;
        let (input, w) = (x.buffer(b, rows * channels, 2.0), x.buffer(b, channels, 1.5));
        let (mut y, mut rstd) = (blank(b, rows * channels), blank(b, rows));
        // With one channel the gradient is what eps leaves of it; a larger one keeps that from being all rounding.
        b.rms_norm(&input, &w, 0.1, &mut y, &mut rstd);
        let d_y = x.buffer(b, rows * channels, 1.0);
        let mut d_x = destination(x, b, rows * channels, self.d_x);
        let mut d_w = self.d_w.map(|store| (destination(x, b, channels, store), store));
        let into = d_w.as_mut().map(|(d, store)| (d, *store));
        b.rms_norm_grad(&d_y, &input, &w, &rstd, (&mut d_x, self.d_x), into);
        let outputs = only(b, "d_x", &d_x);
        match &d_w {
            Some((d_w, _)) => outputs.and(b, "d_w", d_w),
            None => outputs,
        }
    }
}

/// (heads, kv_heads, head_dim).
pub const HEADS: [(usize, usize, usize); 6] = [(1, 1, 2), (2, 1, 4), (4, 2, 6), (3, 3, 16), (6, 2, 18), (4, 1, 64)];

/// The layout of heads with the usual scale.
pub fn attention_spec((heads, kv_heads, head_dim): (usize, usize, usize)) -> AttentionSpec {
    AttentionSpec { heads, kv_heads, head_dim, scale: (head_dim as f64).powf(-0.5) }
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

/// The gated unit.
#[derive(Clone, Copy, Debug)]
pub struct Glu {
    rows: usize,
    width: usize,
    /// Gates lie between minus and plus this.
    size: f64,
}

impl Operation for Glu {
    const METHODS: &'static [&'static str] = &["glu"];

    fn cases() -> Vec<Self> {
        // Around zero, where the slope bends, and into both tails.
        let with = |size| MATRICES.map(|(rows, width)| Self { rows, width, size });
        [4.0, 100.0].into_iter().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        5 * (self.rows * self.width) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let gate_up = x.buffer(b, 2 * self.rows * self.width, self.size);
        let mut y = blank(b, self.rows * self.width);
        b.glu(&gate_up, self.width, &mut y);
        only(b, "y", &y)
    }
}

/// Gradient of the gated unit.
#[derive(Clone, Copy, Debug)]
pub struct GluGrad {
    rows: usize,
    width: usize,
    /// Gates lie between minus and plus this.
    size: f64,
}

impl Operation for GluGrad {
    const METHODS: &'static [&'static str] = &["glu_grad"];

    fn cases() -> Vec<Self> {
        let with = |size| MATRICES.map(|(rows, width)| Self { rows, width, size });
        [4.0, 100.0].into_iter().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        11 * (self.rows * self.width) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let gate_up = x.buffer(b, 2 * self.rows * self.width, self.size);
        let d_y = x.buffer(b, self.rows * self.width, 1.0);
        let mut d = blank(b, 2 * self.rows * self.width);
        b.glu_grad(&d_y, &gate_up, self.width, &mut d);
        only(b, "d_gate_up", &d)
    }
}
