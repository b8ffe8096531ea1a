//! Attention over packed lists.

use super::Operation;
use super::inputs::{Inputs, Outputs, Shape, blank, only, pack};
use super::rows::{HEADS, attention_spec};
use crate::backend::{AttentionSpec, Backend, Segment};

const SHAPES: [Shape; 12] = [
    // One row, and one list with one response.
    &[(1, &[])],
    &[(1, &[1])],
    &[(13, &[7])],
    // No prompt: every response stands alone.
    &[(0, &[3, 1, 17])],
    // Ragged lists, one with an empty response, one without a prompt, prompts without responses.
    &[(5, &[3, 1, 4, 0, 2]), (0, &[2, 7]), (1, &[1]), (13, &[])],
    &[(7, &[]), (1, &[]), (3, &[])],
    &[(4, &[0])],
    // Around tiles of 16 and 64, in prompts and in responses.
    &[(16, &[15, 16, 17])],
    &[(15, &[1, 31]), (17, &[33, 2])],
    &[(63, &[65]), (64, &[64, 1]), (65, &[63])],
    &[(0, &[64, 65, 129])],
    &[(130, &[2, 70, 128])],
];

/// Attention: output and log-sum-exp.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    heads: (usize, usize, usize),
    shape: Shape,
    /// Magnitude of queries, keys and values; large ones make sharp weights.
    size: f64,
    softcap: Option<f64>,
    window: Option<usize>,
}

impl Attention {
    fn spec(&self) -> AttentionSpec {
        AttentionSpec { softcap: self.softcap, window: self.window, ..attention_spec(self.heads) }
    }

    fn rows_and_segments(&self) -> (usize, Vec<u32>) {
        let packed = pack(self.shape);
        (packed.rows(), Segment::flatten(&packed.segments))
    }
}

impl Operation for Attention {
    const METHODS: &'static [&'static str] = &["attention"];

    fn cases() -> Vec<Self> {
        let size = |i: usize| if i.is_multiple_of(2) { 1.0 } else { 3.0 };
        let plain = |i: usize, j: usize, shape| Self {
            heads: HEADS[(i + 3 * j) % HEADS.len()],
            shape,
            size: size(i),
            softcap: None,
            window: None,
        };
        // Every shape with two layouts of heads; with caps that bend most scores, and few; with windows of one key, within
        // a tile, and beyond it.
        let with = |(i, shape)| {
            let windows = [1, 5, 17, 64, 100].map(|window| Self { window: Some(window), ..plain(i, window, shape) });
            let capped = [0.7, 30.0].map(|cap| Self { softcap: Some(cap), ..plain(i, 1, shape) });
            let both = Self { softcap: Some(2.0), window: Some(33), ..plain(i, 0, shape) };
            [plain(i, 0, shape), plain(i, 1, shape), both].into_iter().chain(windows).chain(capped)
        };
        SHAPES.into_iter().enumerate().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        let (heads, _, head_dim) = self.heads;
        4 * pack(self.shape).visible_pairs() * (heads * head_dim) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let (spec, (n, segments)) = (self.spec(), self.rows_and_segments());
        let qkv = x.buffer(b, n * spec.qkv_width(), self.size);
        let (mut o, mut lse) = (blank(b, n * spec.out_width()), blank(b, n * spec.heads));
        b.attention(&qkv, &b.upload_index(&segments), &spec, &mut o, &mut lse);
        only(b, "o", &o).and(b, "lse", &lse)
    }
}

/// Gradient of attention by queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub struct AttentionGrad(Attention);

impl Operation for AttentionGrad {
    const METHODS: &'static [&'static str] = &["attention_grad"];

    fn cases() -> Vec<Self> {
        Attention::cases().into_iter().map(Self).collect()
    }

    fn flops(&self) -> u64 {
        // Five products instead of two: the scores again, and four gradients.
        self.0.flops() / 2 * 5
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let (spec, (n, segments)) = (self.0.spec(), self.0.rows_and_segments());
        let segments = b.upload_index(&segments);
        let qkv = x.buffer(b, n * spec.qkv_width(), self.0.size);
        let (mut o, mut lse) = (blank(b, n * spec.out_width()), blank(b, n * spec.heads));
        b.attention(&qkv, &segments, &spec, &mut o, &mut lse);
        let d_o = x.buffer(b, n * spec.out_width(), 1.0);
        let mut d_qkv = blank(b, n * spec.qkv_width());
        b.attention_grad(&d_o, &qkv, &o, &lse, &segments, &spec, &mut d_qkv);
        only(b, "d_qkv", &d_qkv)
    }
}
