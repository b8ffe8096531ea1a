//! Decoding with a cache, and sampling.

use super::Operation;
use super::inputs::{Inputs, Outputs, blank, only};
use super::rows::{HEADS, attention_spec};
use crate::backend::{AttentionSpec, Backend, SamplingSpec};

/// (rows, slots of the cache), one for every layout of heads.
const CACHES: [(usize, usize); 6] = [(1, 1), (1, 7), (5, 16), (16, 17), (17, 65), (64, 200)];

/// Keys and values go to distinct slots; the other slots stay as they are.
#[derive(Clone, Copy, Debug)]
pub struct KvAppend {
    heads: (usize, usize, usize),
    rows: usize,
    slots: usize,
}

impl Operation for KvAppend {
    const METHODS: &'static [&'static str] = &["kv_append"];

    fn cases() -> Vec<Self> {
        HEADS.into_iter().zip(CACHES).map(|(heads, (rows, slots))| Self { heads, rows, slots }).collect()
    }

    fn flops(&self) -> u64 {
        0
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let spec = attention_spec(self.heads);
        let qkv = x.buffer(b, self.rows * spec.qkv_width(), 1.0);
        let mut cache = x.buffer(b, self.slots * spec.cache_width(), 1.0);
        let slots = b.upload_index(&x.distinct(self.rows, self.slots));
        b.kv_append(&qkv, &slots, &spec, &mut cache);
        only(b, "cache", &cache)
    }
}

/// One query row a response: (prompt length, own length) of each.
type Spans = &'static [(u32, u32)];

const SPANS: [Spans; 7] = [
    &[(1, 1)],
    &[(0, 1), (0, 5)],
    &[(7, 1), (7, 2), (7, 3)],
    &[(16, 17), (15, 16), (17, 15), (1, 1), (64, 1)],
    &[(63, 65), (65, 63), (64, 64)],
    // A window beyond the prompt, and one that ends in it.
    &[(0, 7), (3, 9)],
    // More rows than a tile of 16, and a prompt of several blocks.
    &[(130, 1), (130, 2), (130, 3), (130, 4), (130, 5), (130, 6), (130, 7), (130, 8), (130, 9), (130, 10), (130, 11)],
];

/// Attention of one new row a response over its prompt's and its own cached rows.
#[derive(Clone, Copy, Debug)]
pub struct DecodeAttention {
    heads: (usize, usize, usize),
    spans: Spans,
    softcap: Option<f64>,
}

impl Operation for DecodeAttention {
    const METHODS: &'static [&'static str] = &["decode_attention"];

    fn cases() -> Vec<Self> {
        let with = |(i, spans)| {
            let softcaps = [(0, None), (3, None), (1, Some(0.7)), (2, Some(30.0))];
            softcaps.map(|(j, softcap)| Self { heads: HEADS[(i + j) % HEADS.len()], spans, softcap })
        };
        SPANS.into_iter().enumerate().flat_map(with).collect()
    }

    fn flops(&self) -> u64 {
        let (heads, _, head_dim) = self.heads;
        let pairs: u64 = self.spans.iter().map(|(prompt, own)| u64::from(prompt + own)).sum();
        4 * pairs * (heads * head_dim) as u64
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let spec = AttentionSpec { softcap: self.softcap, ..attention_spec(self.heads) };
        // Prompts lie at the start of the cache and overlap, as those of one list do; responses follow, with a gap.
        let longest = self.spans.iter().map(|s| s.0).max().unwrap_or(0);
        let mut end = longest;
        let mut spans = Vec::new();
        for &(prompt, own) in self.spans {
            spans.extend([longest - prompt, prompt, end + 1, own]);
            end += 1 + own;
        }
        let qkv = x.buffer(b, self.spans.len() * spec.qkv_width(), 2.0);
        let cache = x.buffer(b, end as usize * spec.cache_width(), 2.0);
        let mut o = blank(b, self.spans.len() * spec.out_width());
        b.decode_attention(&qkv, &cache, &b.upload_index(&spans), &spec, &mut o);
        only(b, "o", &o)
    }
}

/// Drawing tokens: ids are the same, log-probabilities to rounding.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    rows: usize,
    vocab: usize,
    spec: SamplingSpec,
    /// Logits lie between minus and plus this; with 0 all tokens are equally probable.
    size: f64,
}

impl Operation for Sample {
    const METHODS: &'static [&'static str] = &["sample"];

    fn cases() -> Vec<Self> {
        let plain = SamplingSpec { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, vocab_limit: usize::MAX };
        let specs = [
            plain,
            SamplingSpec { temperature: 0.0, ..plain },
            SamplingSpec { temperature: 0.3, ..plain },
            SamplingSpec { temperature: 2.0, ..plain },
            SamplingSpec { top_k: 1, ..plain },
            SamplingSpec { top_k: 5, ..plain },
            SamplingSpec { top_p: 0.6, ..plain },
            SamplingSpec { top_p: 1e-6, ..plain },
            SamplingSpec { min_p: 0.05, ..plain },
            SamplingSpec { temperature: 0.7, top_k: 50, top_p: 0.9, min_p: 0.02, ..plain },
            SamplingSpec { vocab_limit: 1, ..plain },
            SamplingSpec { temperature: 0.0, vocab_limit: 3, ..plain },
            SamplingSpec { temperature: 1.3, top_k: 4, vocab_limit: 100, ..plain },
        ];
        let mut cases = Vec::new();
        for spec in specs {
            for (rows, vocab) in [(1, 1), (3, 2), (40, 17), (17, 257), (5, 9001)] {
                cases.push(Self { rows, vocab, spec, size: 6.0 });
            }
        }
        // Ties go to the lower id.
        let tied = SamplingSpec { top_k: 3, ..plain };
        cases.extend([tied, SamplingSpec { temperature: 0.0, ..plain }].map(|spec| Self {
            rows: 16,
            vocab: 65,
            spec,
            size: 0.0,
        }));
        cases
    }

    fn flops(&self) -> u64 {
        0
    }

    fn run<B: Backend>(&self, x: &mut Inputs, b: &B) -> Outputs {
        let logits = x.buffer(b, self.rows * self.vocab, self.size);
        let mut uniform: Vec<f64> = (0..self.rows).map(|_| x.uniform()).collect();
        uniform[0] = 0.0;
        if let Some(last) = uniform.get_mut(1) {
            *last = 1.0 - 1e-9;
        }
        let draws = b.sample(&logits, self.vocab, &self.spec, &uniform);
        Outputs::default().values("the ids", draws.iter().map(|d| f64::from(d.id)).collect(), true).values(
            "the log-probabilities",
            draws.iter().map(|d| f64::from(d.logp)).collect(),
            false,
        )
    }
}
