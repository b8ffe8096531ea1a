//! Decoding: every prompt is computed once, its keys and values are shared by all of its responses.

use super::Transformer;
use crate::backend::{Backend, Store, Weight};
use crate::error::Error;
use crate::lists::PackedLists;
use crate::ops;
use crate::tape::{Tape, Var};
use std::sync::Arc;

/// Keys and values of prompts and of the responses that continue them.
///
/// The cache of a layer is one array of rows: first those of all prompts, then `capacity` rows for every response.
pub struct Decoder<'m, B: Backend> {
    model: &'m Transformer<B>,
    caches: Vec<B::Buffer>,
    /// First cache row and length of every prompt.
    prompts: Vec<(u32, u32)>,
    first_response_row: u32,
    capacity: u32,
}

/// One response that takes a step: its token number `generated` (from 0) is fed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeRow {
    /// Which prompt it continues.
    pub prompt: usize,
    /// Which of the decoder's responses it is.
    pub response: usize,
    /// The token sampled last.
    pub id: u32,
    /// How many tokens of this response were fed in before.
    pub generated: usize,
}

impl<'m, B: Backend> Decoder<'m, B> {
    /// Computes the prompts and makes room for `responses` responses of up to `capacity` tokens.
    ///
    /// Returns the decoder and the logits `(prompts, vocab)` that predict every response's first token.
    ///
    /// # Errors
    /// An empty prompt, a token id outside the vocabulary, or a prompt that leaves no room for `capacity` tokens.
    pub fn prefill(
        model: &'m Transformer<B>,
        prompts: &[&[u32]],
        responses: usize,
        capacity: usize,
    ) -> Result<(Self, B::Buffer), Error> {
        let limit = model.config.max_position_embeddings;
        for prompt in prompts {
            if prompt.is_empty() {
                return Err(Error::setting("prompt", "empty", "at least one token (a BOS token will do)"));
            }
            if prompt.len() + capacity > limit {
                return Err(Error::TooLong { tokens: prompt.len() + capacity, limit });
            }
        }
        let b = &model.backend;
        let packed = PackedLists::pack(prompts.iter().map(|p| (*p, [])));
        let batch = model.batch(&packed)?;
        let spec = model.config.attention();
        let rows = packed.rows() + responses * capacity;
        u32::try_from(rows).map_err(|_| {
            Error::setting("cache rows", rows, "below 2^32; take fewer prompts, responses or tokens at once")
        })?;
        let slots = b.upload_index(&(0..packed.rows() as u32).collect::<Vec<_>>());
        let mut caches = Vec::with_capacity(model.config.num_hidden_layers);
        let x = model.hidden(&Tape::inference(b), &batch, |_, qkv| {
            let mut cache = b.alloc(rows * spec.cache_width());
            b.kv_append(qkv.value(), &slots, &spec, &mut cache);
            caches.push(cache);
        });
        let mut spans = Vec::with_capacity(prompts.len());
        let mut start = 0;
        for prompt in prompts {
            spans.push((start, prompt.len() as u32));
            start += prompt.len() as u32;
        }
        let last: Vec<u32> = spans.iter().map(|(start, len)| start + len - 1).collect();
        let mut h = b.alloc(prompts.len() * model.config.hidden_size);
        b.gather_rows(x.value(), &b.upload_index(&last), model.config.hidden_size, &mut h);
        let logits = model.logits(h, prompts.len());
        let decoder = Self { model, caches, prompts: spans, first_response_row: start, capacity: capacity as u32 };
        Ok((decoder, logits))
    }

    /// Feeds one token of each row's response → logits `(rows, vocab)` of the next.
    pub fn step(&mut self, rows: &[DecodeRow]) -> Result<B::Buffer, Error> {
        let (model, n) = (self.model, rows.len());
        let (b, config) = (&model.backend, &model.config);
        let (spec, eps) = (config.attention(), config.rms_norm_eps);
        let mut slots = Vec::with_capacity(n);
        let mut spans = Vec::with_capacity(4 * n);
        let mut positions = Vec::with_capacity(n);
        for row in rows {
            let (start, len) = self.prompts[row.prompt];
            let own = self.first_response_row + row.response as u32 * self.capacity;
            let generated = row.generated as u32;
            if generated >= self.capacity {
                return Err(Error::TooLong { tokens: row.generated + 1, limit: self.capacity as usize });
            }
            slots.push(own + generated);
            spans.extend([start, len, own, generated + 1]);
            positions.push(len + generated);
        }
        let ids: Vec<u32> = rows.iter().map(|r| r.id).collect();
        model.check(&ids, &positions)?;
        let (slots, spans) = (b.upload_index(&slots), b.upload_index(&spans));
        let positions = Arc::new(b.upload_index(&positions));
        let tape = Tape::inference(b);
        let mut x = ops::embed(&tape, &model.var(model.index.embedding), &Arc::new(b.upload_index(&ids)), n);
        for (block, cache) in model.index.blocks.iter().zip(&mut self.caches) {
            let h = ops::rms_norm(&tape, &x, &model.var(block.attention_norm), eps);
            let qkv = ops::linear(&tape, &h, &model.var(block.qkv), None);
            let qkv = ops::rope(&tape, qkv, &positions, &model.rope, spec);
            b.kv_append(qkv.value(), &slots, &spec, cache);
            let mut o = b.alloc(n * spec.out_width());
            b.decode_attention(qkv.value(), cache, &spans, &spec, &mut o);
            let o = Var::constant(Arc::new(o), n, spec.out_width());
            x = ops::linear(&tape, &o, &model.var(block.out), Some(&x));
            let h = ops::rms_norm(&tape, &x, &model.var(block.mlp_norm), eps);
            let a = ops::glu(&tape, &ops::linear(&tape, &h, &model.var(block.gate_up), None));
            x = ops::linear(&tape, &a, &model.var(block.down), Some(&x));
        }
        Ok(model.logits(x.into_buffer(b), n))
    }
}

impl<B: Backend> Transformer<B> {
    /// Final norm and head on `n` rows of the residual stream → `(n, vocab)`.
    fn logits(&self, x: B::Buffer, n: usize) -> B::Buffer {
        let b = &self.backend;
        let (mut h, mut rstd) = (b.alloc(n * self.config.hidden_size), b.alloc(n));
        b.rms_norm(&x, self.parameters.value(self.index.norm), self.config.rms_norm_eps, &mut h, &mut rstd);
        let head = Weight {
            data: self.parameters.value(self.index.head),
            out_features: self.config.vocab_size,
            in_features: self.config.hidden_size,
        };
        let mut logits = b.alloc(n * self.config.vocab_size);
        b.linear(&h, head, &mut logits, Store::Set);
        logits
    }
}
