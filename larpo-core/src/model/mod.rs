//! The decoder-only transformer: parameters, the forward pass over packed lists, and decoding with a key/value cache.

mod config;
mod decode;
mod lora;
mod parameters;

pub use config::{Head, ModelConfig, Naming, Norm, Positions, RopeScaling};
pub use decode::{DecodeRow, Decoder, Places};
pub use lora::Lora;
pub use parameters::{CheckpointTensor, Parameter, Parameters};

use crate::backend::{AttentionSpec, Backend, Segment, Store};
use crate::error::Error;
use crate::lists::PackedLists;
use crate::ops;
use crate::tape::{Tape, Var};
use lora::LoraState;
use parameters::{LinearIndex, NormIndex, ParameterIndex};
use std::sync::Arc;

/// A transformer on a backend.
pub struct Transformer<B: Backend> {
    backend: B,
    config: ModelConfig,
    parameters: Parameters<B>,
    index: ParameterIndex,
    /// Cosines and sines, `(max_position_embeddings, head_dim)`, where positions are rotary.
    rope: Option<Arc<B::Buffer>>,
    /// Factor on the embeddings, where there is one.
    embedding_scale: Option<Arc<B::Buffer>>,
    lora: Option<LoraState<B>>,
}

/// A packed batch on the device.
pub struct Batch<B: Backend> {
    ids: Arc<B::Index>,
    positions: Arc<B::Index>,
    segments: Arc<B::Index>,
    scored_rows: Arc<B::Index>,
    target_rows: Arc<B::Index>,
    target_ids: Arc<B::Index>,
    rows: usize,
    scored: usize,
    targets: usize,
}

impl<B: Backend> Transformer<B> {
    /// A model with random weights: matrices from N(0, `initializer_range`²), norms one.
    ///
    /// # Errors
    /// A shape that does not fit together.
    pub fn random(backend: &B, config: ModelConfig, seed: u64) -> Result<Self, Error> {
        let mut model = Self::unset(backend, config)?;
        let unit = if model.config.norm == Norm::RmsUnitOffset { 0.0 } else { 1.0 };
        model.parameters.randomise(backend, model.config.initializer_range, unit, seed)?;
        Ok(model)
    }

    /// A model whose weights are read from a checkpoint: `read` gives each named tensor's numbers, row-major.
    ///
    /// # Errors
    /// A shape that does not fit together, and what `read` reports.
    pub fn from_checkpoint<E: From<Error>>(
        backend: &B,
        config: ModelConfig,
        read: impl FnMut(&CheckpointTensor) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let mut model = Self::unset(backend, config)?;
        model.parameters.import(backend, read)?;
        Ok(model)
    }

    /// A model with memory for its weights, but unspecified numbers in it.
    ///
    /// # Errors
    /// A shape that does not fit together.
    pub fn unspecified(backend: &B, config: ModelConfig) -> Result<Self, Error> {
        let mut model = Self::unset(backend, config)?;
        model.parameters.alloc(backend);
        Ok(model)
    }

    fn unset(backend: &B, config: ModelConfig) -> Result<Self, Error> {
        config.validate()?;
        let (parameters, index) = Parameters::build(backend, &config);
        let rope = rope_table(&config).map(|table| Arc::new(upload_f64(backend, &table)));
        let scale = (config.hidden_size as f64).sqrt();
        let embedding_scale = config.scale_embeddings.then(|| Arc::new(upload_f64(backend, &[scale])));
        let lora = config.lora.as_ref().map(|lora| LoraState::new(backend, lora));
        Ok(Self { backend: backend.clone(), config, parameters, index, rope, embedding_scale, lora })
    }

    /// An independent copy of the weights that are trained; frozen ones are shared.
    ///
    /// # Errors
    /// None in practice; the shape was valid before.
    pub fn duplicate(&self) -> Result<Self, Error> {
        let mut copy = Self::unset(&self.backend, self.config.clone())?;
        copy.parameters.share(&self.parameters);
        copy.parameters.unshare(&self.backend);
        Ok(copy)
    }

    /// The same model, sharing all memory.
    fn handle(&self) -> Self {
        Self {
            backend: self.backend.clone(),
            config: self.config.clone(),
            parameters: self.parameters.handle(),
            index: self.index.clone(),
            rope: self.rope.clone(),
            embedding_scale: self.embedding_scale.clone(),
            lora: self.lora.as_ref().map(LoraState::handle),
        }
    }

    /// The shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The weights.
    pub fn parameters(&self) -> &Parameters<B> {
        &self.parameters
    }

    /// The weights, writable.
    pub fn parameters_mut(&mut self) -> &mut Parameters<B> {
        &mut self.parameters
    }

    /// Copies a packed batch to the device.
    ///
    /// # Errors
    /// A token id outside the vocabulary, a position the model does not have, targets for a model without a language head.
    pub fn batch(&self, packed: &PackedLists) -> Result<Batch<B>, Error> {
        if packed.targets() > 0 {
            self.config.check_language_model()?;
        }
        self.place(packed)
    }

    fn place(&self, packed: &PackedLists) -> Result<Batch<B>, Error> {
        self.check(&packed.ids, &packed.positions)?;
        let index = |data: &[u32]| Arc::new(self.backend.upload_index(data));
        Ok(Batch {
            ids: index(&packed.ids),
            positions: index(&packed.positions),
            segments: index(&Segment::flatten(&packed.segments)),
            scored_rows: index(&packed.scored_rows),
            target_rows: index(&packed.target_rows),
            target_ids: index(&packed.target_ids),
            rows: packed.rows(),
            scored: packed.scored_rows.len(),
            targets: packed.targets(),
        })
    }

    fn check(&self, ids: &[u32], positions: &[u32]) -> Result<(), Error> {
        let (vocab_size, limit) = (self.config.vocab_size, self.config.max_position_embeddings);
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::TokenId { id, vocab_size });
        }
        match positions.iter().max() {
            Some(&last) if last as usize >= limit => Err(Error::TooLong { tokens: last as usize + 1, limit }),
            _ => Ok(()),
        }
    }

    /// Log-probability of every target of the batch → `(targets, 1)`.
    pub fn token_logp(&self, tape: &Tape<B>, batch: &Batch<B>) -> Var<B> {
        let x = self.hidden(tape, batch, |_, _| ());
        // Norm and head see only the rows that predict something.
        let x = ops::gather_rows(tape, &x, &batch.scored_rows, batch.scored);
        let h = self.norm(tape, &x, self.index.norm);
        drop(x);
        let (head, cap) = (self.var(self.index.head), self.config.final_logit_softcapping);
        ops::token_logp(tape, &h, &head, cap, &batch.target_rows, &batch.target_ids, batch.targets)
    }

    /// Log-probabilities of the batch's targets without a gradient, on the host.
    ///
    /// # Errors
    /// As [`Transformer::batch`].
    pub fn score(&self, packed: &PackedLists) -> Result<Vec<f64>, Error> {
        let batch = self.batch(packed)?;
        let logp = self.token_logp(&Tape::inference(&self.backend), &batch);
        Ok(self.backend.read(logp.value()))
    }

    /// The reward of every response of `packed` after its prompt → `(responses, 1)`: the score head on its last row. What
    /// the texts of a list share may be their prompt, which is computed once.
    ///
    /// # Errors
    /// As [`Transformer::batch`]; no response, an empty one, or a model that is no sequence classifier.
    pub fn reward(&self, tape: &Tape<B>, packed: &PackedLists) -> Result<Var<B>, Error> {
        if self.config.head != Head::Score {
            return Err(Error::setting("head", "of a language model", "a score head, which gives a reward"));
        }
        let h = self.last_hidden(tape, packed)?;
        Ok(ops::linear(tape, &h, &self.var(self.index.head), None, None))
    }

    /// Log-probability of each of `tokens` as the next one after every response of `packed`, without a gradient, on the host:
    /// `(responses, tokens)`. What the texts of a list share may be their prompt, which is computed once.
    ///
    /// # Errors
    /// As [`Transformer::batch`]; no response, an empty one, or a token outside the vocabulary.
    pub fn next_logp(&self, packed: &PackedLists, tokens: &[u32]) -> Result<Vec<f64>, Error> {
        self.config.check_language_model()?;
        self.check(tokens, &[])?;
        let tape = Tape::inference(&self.backend);
        let h = self.last_hidden(&tape, packed)?;
        let rows: Vec<u32> = (0..h.rows as u32).flat_map(|row| std::iter::repeat_n(row, tokens.len())).collect();
        let ids: Vec<u32> = (0..h.rows).flat_map(|_| tokens).copied().collect();
        let index = |data: &[u32]| Arc::new(self.backend.upload_index(data));
        let (head, cap) = (self.var(self.index.head), self.config.final_logit_softcapping);
        let logp = ops::token_logp(&tape, &h, &head, cap, &index(&rows), &index(&ids), ids.len());
        Ok(self.backend.read(logp.value()))
    }

    /// The normalised last row of every response → `(responses, hidden)`.
    fn last_hidden(&self, tape: &Tape<B>, packed: &PackedLists) -> Result<Var<B>, Error> {
        let last = &packed.last_rows;
        if last.is_empty() || last.contains(&PackedLists::NO_ROW) {
            return Err(Error::setting("response", "empty", "at least one token"));
        }
        let batch = self.place(packed)?;
        let x = self.hidden(tape, &batch, |_, _| ());
        let x = ops::gather_rows(tape, &x, &Arc::new(self.backend.upload_index(last)), last.len());
        Ok(self.norm(tape, &x, self.index.norm))
    }

    fn var(&self, index: usize) -> Var<B> {
        self.parameters.var(index)
    }

    fn norm(&self, tape: &Tape<B>, x: &Var<B>, index: NormIndex) -> Var<B> {
        let weight = self.var(index.weight);
        match index.bias {
            Some(bias) => ops::layer_norm(tape, x, &weight, &self.var(bias), self.config.norm_eps),
            None => ops::rms_norm(tape, x, &weight, self.config.norm_spec()),
        }
    }

    fn linear(&self, tape: &Tape<B>, x: &Var<B>, index: LinearIndex, residual: Option<&Var<B>>) -> Var<B> {
        let bias = index.bias.map(|bias| self.var(bias));
        let y = ops::linear(tape, x, &self.var(index.weight), bias.as_ref(), residual);
        match index.adapter {
            Some(adapter) => self.adapted(tape, y, x, adapter),
            None => y,
        }
    }

    /// The residual stream before the first block → `(n, hidden)`.
    fn embed(&self, tape: &Tape<B>, ids: &Arc<B::Index>, positions: &Arc<B::Index>, n: usize) -> Var<B> {
        let x = ops::embed(tape, &self.var(self.index.embedding), ids, n);
        let x = match &self.embedding_scale {
            Some(scale) => ops::scaled(tape, x, scale),
            None => x,
        };
        match self.index.positions {
            Some(table) => ops::add(tape, &x, &ops::embed(tape, &self.var(table), positions, n)),
            None => x,
        }
    }

    /// One block; `attend` makes the attention's output `(n, heads·head_dim)` of the rotated `qkv (n, width)`.
    fn block(
        &self,
        tape: &Tape<B>,
        x: Var<B>,
        layer: usize,
        positions: &Arc<B::Index>,
        attend: impl FnOnce(Var<B>, AttentionSpec) -> Var<B>,
    ) -> Var<B> {
        let (block, spec) = (&self.index.blocks[layer], self.config.attention_of(layer));
        let h = self.norm(tape, &x, block.attention_norm);
        let mut qkv = self.linear(tape, &h, block.qkv, None);
        drop(h);
        if let Some((w_q, w_k)) = block.head_norm {
            qkv = ops::head_norm(tape, &qkv, &self.var(w_q), &self.var(w_k), self.config.norm_eps, spec);
        }
        if let Some(rope) = &self.rope {
            qkv = ops::rope(tape, qkv, positions, rope, spec);
        }
        let o = attend(qkv, spec);
        let x = self.onto(tape, x, o, block.out, block.post_attention_norm);
        let h = self.norm(tape, &x, block.mlp_norm);
        let up = self.linear(tape, &h, block.up, None);
        drop(h);
        let a = match self.config.gated {
            true => ops::glu(tape, &up, self.config.activation),
            false => ops::activate(tape, &up, self.config.activation),
        };
        drop(up);
        self.onto(tape, x, a, block.down, block.post_mlp_norm)
    }

    /// `x` plus what a branch made of it: the last product of the branch, normalised where the model does so.
    fn onto(&self, tape: &Tape<B>, x: Var<B>, branch: Var<B>, last: LinearIndex, norm: Option<NormIndex>) -> Var<B> {
        match norm {
            None => self.linear(tape, &branch, last, Some(&x)),
            Some(norm) => {
                let y = self.linear(tape, &branch, last, None);
                drop(branch);
                ops::add(tape, &x, &self.norm(tape, &y, norm))
            }
        }
    }

    /// The residual stream after the last block → `(rows, hidden)`; `keep` sees every layer's rotated `qkv`, where it is not
    /// computed twice.
    fn hidden(&self, tape: &Tape<B>, batch: &Batch<B>, mut keep: impl FnMut(usize, &Var<B>)) -> Var<B> {
        let mut x = self.embed(tape, &batch.ids, &batch.positions, batch.rows);
        if self.config.gradient_checkpointing && tape.is_recording() {
            let model = Arc::new(self.handle());
            for layer in 0..self.config.num_hidden_layers {
                let (model, positions, segments) = (model.clone(), batch.positions.clone(), batch.segments.clone());
                x = tape.recompute(x, move |tape, x| {
                    let attend = |qkv, spec| ops::attention(tape, &qkv, &segments, spec);
                    model.block(tape, x, layer, &positions, attend)
                });
            }
            return x;
        }
        for layer in 0..self.config.num_hidden_layers {
            x = self.block(tape, x, layer, &batch.positions, |qkv, spec| {
                keep(layer, &qkv);
                ops::attention(tape, &qkv, &batch.segments, spec)
            });
        }
        x
    }
}

/// A text up to its last token that is no pad, which is the one that a sequence classifier's score is computed at
/// (transformers decides so by ids, not by a mask); the first token of pads alone.
pub fn without_pads(ids: &[u32], pad_id: Option<u32>) -> &[u32] {
    let last = ids.iter().rposition(|&id| Some(id) != pad_id).unwrap_or(0);
    &ids[..ids.len().min(last + 1)]
}

/// `(max_position_embeddings, head_dim)`: cosines, then sines, of the position times each pair's frequency.
fn rope_table(config: &ModelConfig) -> Option<Vec<f64>> {
    let Positions::Rotary { theta, scaling } = config.positions else { return None };
    let d = config.head_dim;
    let frequencies: Vec<f64> = (0..d / 2).map(|i| scaling.apply(theta.powf(-2.0 * i as f64 / d as f64))).collect();
    let mut table = Vec::with_capacity(config.max_position_embeddings * d);
    for position in 0..config.max_position_embeddings {
        let angle = |f: &f64| position as f64 * f;
        table.extend(frequencies.iter().map(|f| angle(f).cos()));
        table.extend(frequencies.iter().map(|f| angle(f).sin()));
    }
    Some(table)
}

/// Copies numbers to the device in its own precision: what single precision leaves of them is added.
fn upload_f64<B: Backend>(backend: &B, x: &[f64]) -> B::Buffer {
    let part = |of: fn(f64) -> f32| backend.upload(&x.iter().map(|&x| of(x)).collect::<Vec<_>>());
    let mut y = part(|x| x as f32);
    backend.copy(&part(|x| (x - f64::from(x as f32)) as f32), &mut y, Store::Add);
    y
}
