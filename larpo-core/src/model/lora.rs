//! Low-rank adapters (Hu et al. 2021): products `x·Wᵀ` become `x·Wᵀ + s·dropout(x)·Aᵀ·Bᵀ`, of which A and B alone are trained.
//!
//! The adapter is applied in the product, when sampling too, and never merged into the weights of a model in use: the base
//! keeps every bit, the log-probabilities recorded while sampling are those of the training path, and switching the adapter
//! off ([`Transformer::base`]) needs no second copy. Names, shapes and scales are those of Hugging Face's PEFT.

use super::parameters::AdapterIndex;
use super::{ModelConfig, Naming, Transformer, upload_f64};
use crate::backend::{Backend, DropoutSpec};
use crate::error::Error;
use crate::ops::{self, LowRank};
use crate::rng::{CounterRng, Purpose};
use crate::tape::{Tape, Var};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What PEFT puts in front of the names of modules.
const ROOT: &str = "base_model.model.";

/// An adapter's shape and settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Whether the scale is `alpha / √rank` (Kalajdzievski 2023) rather than `alpha / rank`.
    pub rslora: bool,
    /// Share of the adapter's input that is left out while training.
    pub dropout: f64,
    /// Names of the modules that have one, as PEFT knows them: [`ModelConfig::linear_modules`].
    pub targets: Vec<String>,
}

impl Lora {
    /// The factor on `B·A`.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    pub(super) fn validate(&self, modules: &[String]) -> Result<(), Error> {
        if self.rank == 0 {
            return Err(Error::setting("lora rank", 0, "at least 1"));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(Error::setting("lora alpha", self.alpha, "a finite number above 0"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::setting("lora dropout", self.dropout, "at least 0 and below 1"));
        }
        match self.targets.iter().find(|target| !modules.contains(target)) {
            Some(target) => Err(Error::setting("lora target", target, "a linear module inside the model's blocks")),
            None if self.targets.is_empty() => Err(Error::setting("lora targets", "none", "at least one module")),
            None => Ok(()),
        }
    }
}

/// The name of a product's module in transformers, from what the checkpoint calls it.
pub(super) fn module(naming: &Naming, name: &str) -> String {
    match naming {
        Naming::Llama => name.into(),
        // Original files lack the prefix; the module has it.
        Naming::Gpt2 { prefix } => format!("transformer.{}", name.strip_prefix(prefix.as_str()).unwrap_or(name)),
    }
}

/// Names of an adapter's tensors A and B in PEFT's files.
pub(super) fn tensor_names(module: &str) -> [String; 2] {
    ["A", "B"].map(|part| format!("{ROOT}{module}.lora_{part}.weight"))
}

/// What an adapter needs beside its parameters.
pub(super) struct LoraState<B: Backend> {
    scale: Arc<B::Buffer>,
    random: CounterRng,
    /// Number that sets the dropout of this training apart from others of the run.
    stream: u32,
}

impl<B: Backend> LoraState<B> {
    pub(super) fn handle(&self) -> Self {
        Self { scale: self.scale.clone(), ..*self }
    }

    pub(super) fn new(backend: &B, lora: &Lora) -> Self {
        let scale = Arc::new(upload_f64(backend, &[lora.scale()]));
        Self { scale, random: CounterRng::new(0, Purpose::Dropout), stream: 0 }
    }
}

impl ModelConfig {
    /// Names of the modules inside the blocks that can have an adapter, as PEFT knows them, in order.
    pub fn linear_modules(&self) -> Vec<String> {
        let tensors = Self { lora: None, ..self.clone() }.checkpoint_tensors();
        let blocks = match &self.naming {
            Naming::Llama => "model.layers.".to_string(),
            Naming::Gpt2 { prefix } => format!("{prefix}h."),
        };
        // All matrices of a block are products; its norms and biases are vectors.
        let inside = tensors.into_iter().filter(|(name, shape)| shape.len() == 2 && name.starts_with(&blocks));
        inside.map(|(name, _)| module(&self.naming, name.strip_suffix(".weight").unwrap_or(&name))).collect()
    }
}

impl<B: Backend> Transformer<B> {
    /// `y (n, out)`, a product of `x (n, in)`, plus what adapter `index` makes of `x`.
    pub(super) fn adapted(&self, tape: &Tape<B>, y: Var<B>, x: &Var<B>, index: usize) -> Var<B> {
        let AdapterIndex { a, parts } = &self.index.adapters[index];
        let (Some(lora), Some(state)) = (&self.config.lora, &self.lora) else { return y };
        let dropout = tape.dropout().filter(|_| lora.dropout > 0.0).map(|counter| DropoutSpec {
            rate: lora.dropout,
            key: state.random.key(index as u32, state.stream),
            counter,
        });
        let parts = parts.iter().map(|(b, first)| (self.var(*b), *first)).collect();
        ops::low_rank(tape, y, x, LowRank { a: self.var(*a), parts, scale: state.scale.clone(), dropout })
    }

    /// Sets what decides the dropout of the adapter: a seed, and a number that tells trainings of one run apart.
    pub fn seed_dropout(&mut self, seed: u64, stream: u32) {
        if let Some(state) = &mut self.lora {
            (state.random, state.stream) = (CounterRng::new(seed, Purpose::Dropout), stream);
        }
    }

    /// Begins the adapter anew: A uniform in ±1/√in, B zero, as PEFT does; the model is then its base to the bit.
    ///
    /// # Errors
    /// None in practice.
    pub fn reset_adapter(&mut self, seed: u64) -> Result<(), Error> {
        let random = CounterRng::new(seed, Purpose::Weights);
        let backend = self.backend.clone();
        for (number, AdapterIndex { a, parts }) in self.index.adapters.clone().into_iter().enumerate() {
            let shape = |index: usize| self.parameters.iter().nth(index).map_or((0, 0), |p| (p.rows, p.cols));
            let ((rows, cols), outs) = (shape(a), parts.iter().map(|(b, _)| (*b, shape(*b))).collect::<Vec<_>>());
            let bound = 1.0 / (cols as f64).sqrt();
            let draw = |(row, col): (usize, usize)| {
                // The last counter sets them apart from a fresh model's weights.
                let uniform = random.uniform([row as u32, col as u32, number as u32, 1 << 31]);
                ((2.0 * uniform - 1.0) * bound) as f32
            };
            self.parameters.upload(&backend, a, &Array2::from_shape_fn((rows, cols), draw))?;
            for (b, shape) in outs {
                self.parameters.upload(&backend, b, &Array2::zeros(shape))?;
            }
        }
        Ok(())
    }

    /// The model without its adapter, sharing the memory of the weights.
    ///
    /// # Errors
    /// None in practice; the shape was valid before.
    pub fn base(&self) -> Result<Self, Error> {
        let mut base = Self::unset(&self.backend, ModelConfig { lora: None, ..self.config.clone() })?;
        base.parameters.share(&self.parameters);
        Ok(base)
    }

    /// The model with the adapter added to its weights, `W + s·B·A`, computed in double precision, and without an adapter.
    ///
    /// # Errors
    /// None in practice; the shape was valid before.
    pub fn merged(&self) -> Result<Self, Error> {
        let mut merged = self.base()?;
        let Some(lora) = &self.config.lora else { return Ok(merged) };
        let (b, scale) = (&self.backend, lora.scale());
        for (weight, AdapterIndex { a, parts }) in self.index.adapted_weights() {
            let name = &self.parameters.iter().nth(weight).expect("in the table").name;
            let into = merged.parameters.iter().position(|p| p.name == *name).expect("the base has it");
            let mut w = merged.parameters.download(b, into);
            let a = self.parameters.download(b, *a).mapv(f64::from);
            for (part, (up, first)) in parts.iter().enumerate() {
                let up = self.parameters.download(b, *up);
                let a = a.slice(ndarray::s![part * lora.rank..(part + 1) * lora.rank, ..]);
                for (row, up) in up.outer_iter().enumerate() {
                    let mut delta = ndarray::Array1::<f64>::zeros(a.ncols());
                    for (a, &up) in a.outer_iter().zip(up) {
                        delta.scaled_add(f64::from(up) * scale, &a);
                    }
                    let mut w = w.row_mut(first + row);
                    w.zip_mut_with(&delta, |w, delta| *w = (f64::from(*w) + delta) as f32);
                }
            }
            merged.parameters.upload(b, into, &w)?;
        }
        Ok(merged)
    }
}
