//! Decoding: every prompt is computed once, its keys and values are shared by all of its responses.

use super::Transformer;
use crate::backend::{Backend, Store, Weight};
use crate::error::Error;
use crate::lists::PackedLists;
use crate::tape::{Tape, Var};
use std::sync::Arc;

/// How much a decoder holds at a time. Places are numbered from 0 and are used again as prompts and responses end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Prompts.
    pub prompts: usize,
    /// Tokens of the longest prompt.
    pub prompt_tokens: usize,
    /// Responses.
    pub responses: usize,
    /// Tokens that are fed in of the longest response.
    pub response_tokens: usize,
}

/// Keys and values of prompts and of the responses that continue them.
///
/// The cache of a layer is one array of rows: `prompt_tokens` for every place of a prompt, then `response_tokens` for every
/// place of a response.
pub struct Decoder<'m, B: Backend> {
    model: &'m Transformer<B>,
    caches: Vec<B::Buffer>,
    places: Places,
    /// Length of the prompt in each place.
    lengths: Vec<usize>,
}

/// One response that takes a step: its token number `generated` (from 0) is fed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeRow {
    /// Place of the prompt that it continues.
    pub prompt: usize,
    /// Its place among the responses.
    pub response: usize,
    /// The token sampled last.
    pub id: u32,
    /// How many tokens of this response were fed in before.
    pub generated: usize,
}

impl<'m, B: Backend> Decoder<'m, B> {
    /// A decoder that holds nothing yet.
    ///
    /// # Errors
    /// Texts longer than the model can take, more of them than can be counted, or a model without a language head.
    pub fn new(model: &'m Transformer<B>, places: Places) -> Result<Self, Error> {
        let (b, config) = (&model.backend, &model.config);
        config.check_language_model()?;
        let tokens = places.prompt_tokens.saturating_add(places.response_tokens);
        let limit = config.max_position_embeddings;
        if tokens > limit {
            return Err(Error::TooLong { tokens, limit });
        }
        let of_responses = places.responses.saturating_mul(places.response_tokens);
        let rows = places.prompts.saturating_mul(places.prompt_tokens).saturating_add(of_responses);
        u32::try_from(rows).map_err(|_| {
            Error::setting("cache rows", rows, "below 2^32; take fewer prompts, responses or tokens at once")
        })?;
        let width = config.attention().cache_width();
        let caches = (0..config.num_hidden_layers).map(|_| b.alloc(rows * width)).collect();
        Ok(Self { model, caches, places, lengths: vec![0; places.prompts] })
    }

    /// Computes prompts and puts each into its place → logits `(prompts, vocab)` that predict their responses' first token.
    ///
    /// # Errors
    /// An empty prompt, one that is longer than a place, or a token id outside the vocabulary.
    pub fn prefill(&mut self, prompts: &[(usize, &[u32])]) -> Result<B::Buffer, Error> {
        let (model, limit) = (self.model, self.places.prompt_tokens);
        let mut slots = Vec::new();
        let mut last = Vec::with_capacity(prompts.len());
        for &(place, ids) in prompts {
            if ids.is_empty() {
                return Err(Error::setting("prompt", "empty", "at least one token (a BOS token will do)"));
            }
            if ids.len() > limit {
                return Err(Error::TooLong { tokens: ids.len(), limit });
            }
            let start = place * limit;
            slots.extend((start..start + ids.len()).map(|slot| slot as u32));
            last.push(slots.len() as u32 - 1);
        }
        let b = &model.backend;
        let batch = model.batch(&PackedLists::pack(prompts.iter().map(|(_, ids)| (*ids, []))))?;
        let (spec, hidden_size, slots) = (model.config.attention(), model.config.hidden_size, b.upload_index(&slots));
        let caches = &mut self.caches;
        let x = model.hidden(&Tape::inference(b), &batch, |layer, qkv| {
            b.kv_append(qkv.value(), &slots, &spec, &mut caches[layer]);
        });
        for &(place, ids) in prompts {
            self.lengths[place] = ids.len();
        }
        let mut h = b.alloc(prompts.len() * hidden_size);
        b.gather_rows(x.value(), &b.upload_index(&last), hidden_size, &mut h);
        drop(x);
        Ok(model.logits(h, prompts.len()))
    }

    /// Feeds one token of each row's response → logits `(rows, vocab)` of the next.
    pub fn step(&mut self, rows: &[DecodeRow]) -> Result<B::Buffer, Error> {
        let (model, n) = (self.model, rows.len());
        let b = &model.backend;
        let mut slots = Vec::with_capacity(n);
        let mut seen = Vec::with_capacity(n);
        let mut positions = Vec::with_capacity(n);
        let Places { prompts, prompt_tokens, response_tokens, .. } = self.places;
        for row in rows {
            if row.generated >= response_tokens {
                return Err(Error::TooLong { tokens: row.generated + 1, limit: response_tokens });
            }
            let (start, len) = (row.prompt * prompt_tokens, self.lengths[row.prompt]);
            let own = prompts * prompt_tokens + row.response * response_tokens;
            slots.push((own + row.generated) as u32);
            seen.push([start, len, own, row.generated + 1]);
            positions.push((len + row.generated) as u32);
        }
        let ids: Vec<u32> = rows.iter().map(|r| r.id).collect();
        model.check(&ids, &positions)?;
        let slots = b.upload_index(&slots);
        let all = b.upload_index(&spans(&seen, None));
        let windowed = model.config.sliding_window.map(|window| b.upload_index(&spans(&seen, Some(window))));
        let positions = Arc::new(b.upload_index(&positions));
        let tape = Tape::inference(b);
        let mut x = model.embed(&tape, &Arc::new(b.upload_index(&ids)), &positions, n);
        for (layer, cache) in self.caches.iter_mut().enumerate() {
            x = model.block(&tape, x, layer, &positions, |qkv, spec| {
                b.kv_append(qkv.value(), &slots, &spec, cache);
                let spans = windowed.as_ref().filter(|_| spec.window.is_some()).unwrap_or(&all);
                let mut o = b.alloc(n * spec.out_width());
                b.decode_attention(qkv.value(), cache, spans, &spec, &mut o);
                Var::constant(Arc::new(o), n, spec.out_width())
            });
        }
        Ok(model.logits(x.into_buffer(b), n))
    }
}

/// Cache rows that every row sees, as [`Backend::decode_attention`] takes them: of a window, the last ones.
fn spans(seen: &[[usize; 4]], window: Option<usize>) -> Vec<u32> {
    let cut = |&[prompt, prompt_len, own, own_len]: &[usize; 4]| {
        let hidden = window.map_or(0, |window| (prompt_len + own_len).saturating_sub(window));
        let (of_prompt, of_own) = (hidden.min(prompt_len), hidden.saturating_sub(prompt_len));
        [prompt + of_prompt, prompt_len - of_prompt, own + of_own, own_len - of_own].map(|n| n as u32)
    };
    seen.iter().flat_map(cut).collect()
}

impl<B: Backend> Transformer<B> {
    /// Final norm and head on `n` rows of the residual stream → `(n, vocab)`.
    fn logits(&self, x: B::Buffer, n: usize) -> B::Buffer {
        let b = &self.backend;
        let x = Var::constant(Arc::new(x), n, self.config.hidden_size);
        let h = self.norm(&Tape::inference(b), &x, self.index.norm);
        let head = Weight {
            data: self.parameters.value(self.index.head),
            out_features: self.config.vocab_size,
            in_features: self.config.hidden_size,
        };
        let mut logits = b.alloc(n * self.config.vocab_size);
        b.linear(h.value(), head, &mut logits, Store::Set);
        if let Some(cap) = self.config.final_logit_softcapping {
            b.softcap(&mut logits, cap);
        }
        logits
    }
}
