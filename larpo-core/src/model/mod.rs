//! The decoder-only transformer: parameters, the forward pass over packed lists, and decoding with a key/value cache.

mod config;
mod decode;
mod parameters;

pub use config::ModelConfig;
pub use decode::{DecodeRow, Decoder, Places};
pub use parameters::{CheckpointTensor, Parameter, Parameters};

use crate::backend::{Backend, Segment, Store};
use crate::error::Error;
use crate::lists::PackedLists;
use crate::ops;
use crate::tape::{Tape, Var};
use parameters::ParameterIndex;
use std::sync::Arc;

/// A Llama-style transformer on a backend.
pub struct Transformer<B: Backend> {
    backend: B,
    config: ModelConfig,
    parameters: Parameters<B>,
    index: ParameterIndex,
    /// Cosines and sines, `(max_position_embeddings, head_dim)`.
    rope: Arc<B::Buffer>,
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
        model.parameters.randomise(backend, model.config.initializer_range, seed)?;
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
        let rope = Arc::new(backend.upload(&rope_table(&config)));
        Ok(Self { backend: backend.clone(), config, parameters, index, rope })
    }

    /// An independent copy of the weights.
    ///
    /// # Errors
    /// None in practice; the shape was valid before.
    pub fn duplicate(&self) -> Result<Self, Error> {
        let mut copy = Self::unspecified(&self.backend, self.config.clone())?;
        for index in 0..self.parameters.len() {
            let to = copy.parameters.value_mut(index);
            self.backend.copy(self.parameters.value(index), to, Store::Set);
        }
        Ok(copy)
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
    /// A token id outside the vocabulary, or a position the model does not have.
    pub fn batch(&self, packed: &PackedLists) -> Result<Batch<B>, Error> {
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
        let h = ops::rms_norm(tape, &x, &self.var(self.index.norm), self.config.rms_norm_eps);
        drop(x);
        let head = self.var(self.index.head);
        ops::token_logp(tape, &h, &head, &batch.target_rows, &batch.target_ids, batch.targets)
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

    fn var(&self, index: usize) -> Var<B> {
        self.parameters.var(index)
    }

    /// The residual stream after the last block → `(rows, hidden)`; `keep` sees every layer's rotated `qkv`.
    fn hidden(&self, tape: &Tape<B>, batch: &Batch<B>, mut keep: impl FnMut(usize, &Var<B>)) -> Var<B> {
        let (eps, spec) = (self.config.rms_norm_eps, self.config.attention());
        let mut x = ops::embed(tape, &self.var(self.index.embedding), &batch.ids, batch.rows);
        for (layer, block) in self.index.blocks.iter().enumerate() {
            let h = ops::rms_norm(tape, &x, &self.var(block.attention_norm), eps);
            let qkv = ops::linear(tape, &h, &self.var(block.qkv), None);
            drop(h);
            let qkv = ops::rope(tape, qkv, &batch.positions, &self.rope, spec);
            keep(layer, &qkv);
            let o = ops::attention(tape, &qkv, &batch.segments, spec);
            drop(qkv);
            x = ops::linear(tape, &o, &self.var(block.out), Some(&x));
            drop(o);
            let h = ops::rms_norm(tape, &x, &self.var(block.mlp_norm), eps);
            let gate_up = ops::linear(tape, &h, &self.var(block.gate_up), None);
            drop(h);
            let a = ops::glu(tape, &gate_up);
            drop(gate_up);
            x = ops::linear(tape, &a, &self.var(block.down), Some(&x));
        }
        x
    }
}

/// `(max_position_embeddings, head_dim)`: cosines, then sines, of position·θ^(−2i/head_dim).
fn rope_table(config: &ModelConfig) -> Vec<f32> {
    let d = config.head_dim;
    let frequency = |i: usize| config.rope_theta.powf(-2.0 * i as f64 / d as f64);
    let mut table = Vec::with_capacity(config.max_position_embeddings * d);
    for position in 0..config.max_position_embeddings {
        let angle = |i: usize| position as f64 * frequency(i);
        table.extend((0..d / 2).map(|i| angle(i).cos() as f32));
        table.extend((0..d / 2).map(|i| angle(i).sin() as f32));
    }
    table
}
