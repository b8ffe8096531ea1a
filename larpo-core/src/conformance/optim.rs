//! Gradient norms, clipping, and the optimizer's update.

use super::Operation;
use super::inputs::{Inputs, Outputs, blank, only};
use crate::backend::{AdamWSpec, Backend};

const LENGTHS: [usize; 6] = [1, 17, 1023, 1025, 40_009, 100_003];

/// `Σ x²` into one place of an array; the other places stay as they are.
#[derive(Clone, Copy, Debug)]
pub struct SqNorm {
    len: usize,
    at: usize,
}

impl Operation for SqNorm {
    const METHODS: &'static [&'static str] = &["sq_norm"];

    fn cases() -> Vec<Self> {
        LENGTHS.iter().flat_map(|&len| [0, 4].map(|at| Self { len, at })).collect()
    }

    fn flops(&self) -> u64 {
        2 * self.len as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let (values, mut out) = (x.buffer(b, self.len, 1.0), x.buffer(b, 5, 1.0));
        b.sq_norm(&values, &mut out, self.at);
        only(b, "out", &out)
    }
}

/// Global norm and clipping factor.
#[derive(Clone, Copy, Debug)]
pub struct Clip {
    tensors: usize,
    size: f64,
    max_norm: f64,
}

impl Operation for Clip {
    const METHODS: &'static [&'static str] = &["clip"];

    fn cases() -> Vec<Self> {
        let mut cases = Vec::new();
        for tensors in [1, 2, 37, 300] {
            for size in [0.0, 1e-6, 1.0, 1e6] {
                cases.extend([0.0, -1.0, 1.0, 1e9].map(|max_norm| Self { tensors, size, max_norm }));
            }
        }
        cases
    }

    fn flops(&self) -> u64 {
        self.tensors as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let squares: Vec<f32> = x.floats(self.tensors, self.size).iter().map(|v| v.abs()).collect();
        let mut out = blank(b, 2);
        b.clip(&b.upload(&squares), self.max_norm, &mut out);
        // Two quantities, compared each by itself.
        let out = b.read(&out);
        Outputs::default().values("the norm", vec![out[0]], false).values("the factor", vec![out[1]], false)
    }
}

/// One update of weights and moments.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    len: usize,
    spec: AdamWSpec,
}

impl Operation for AdamW {
    const METHODS: &'static [&'static str] = &["adamw"];

    fn cases() -> Vec<Self> {
        let first = AdamWSpec { learning_rate: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 1 };
        let specs = [
            first,
            AdamWSpec { weight_decay: 0.1, step: 7, ..first },
            AdamWSpec { learning_rate: 0.5, beta1: 0.0, beta2: 0.95, eps: 1e-3, step: 1000, ..first },
            AdamWSpec { beta2: 0.9999, step: 3, ..first },
        ];
        specs.into_iter().flat_map(|spec| LENGTHS.map(|len| Self { len, spec })).collect()
    }

    fn flops(&self) -> u64 {
        16 * self.len as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let (mut w, g) = (x.buffer(b, self.len, 1.0), x.buffer(b, self.len, 2.0));
        // Moments are zero before the first update, and a second moment is never negative.
        let size = if self.spec.step == 1 { 0.0 } else { 1.0 };
        let mut m = x.buffer(b, self.len, size);
        let squares: Vec<f32> = x.floats(self.len, size).iter().map(|v| v * v).collect();
        let mut v = b.upload(&squares);
        let clip = b.upload(&[3.0, 0.4]);
        b.adamw(&self.spec, &mut w, &g, &mut m, &mut v, &clip);
        only(b, "w", &w).and(b, "m", &m).and(b, "v", &v)
    }
}
