//! The parameter table: names, shapes, storage, and the tensors of a Hugging Face checkpoint that each one holds.

use super::ModelConfig;
use crate::backend::Backend;
use crate::error::Error;
use crate::rng::{CounterRng, Purpose};
use crate::tape::Var;
use ndarray::Array2;
use ndarray_rand::RandomExt;
use ndarray_rand::rand_distr::Normal;
use std::ops::Range;
use std::sync::Arc;

/// A checkpoint tensor that lives in some rows of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointTensor {
    /// Its name in a Hugging Face Llama checkpoint.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// Its rows in the parameter.
    pub rows: Range<usize>,
}

/// One parameter: a matrix, or a vector as one row.
///
/// Projections that read the same input are stored as one matrix (query, key, value; gate, up), because one product of
/// the joint width is faster than several narrow ones. [`CheckpointTensor`] says where the separate tensors lie.
pub struct Parameter<B: Backend> {
    /// Short name, e.g. `layers.0.qkv`.
    pub name: String,
    /// Rows (outputs).
    pub rows: usize,
    /// Columns (inputs).
    pub cols: usize,
    /// Whether weight decay applies (matrices, not norms).
    pub decay: bool,
    /// Checkpoint tensors inside, in row order.
    pub tensors: Vec<CheckpointTensor>,
    value: Arc<B::Buffer>,
}

impl<B: Backend> Parameter<B> {
    /// The names of its checkpoint tensors, which is how people know them.
    pub fn tensor_names(&self) -> String {
        self.tensors.iter().map(|tensor| &tensor.name[..]).collect::<Vec<_>>().join(", ")
    }
}

/// All parameters of a model, in a fixed order.
pub struct Parameters<B: Backend> {
    entries: Vec<Parameter<B>>,
}

/// Where the parameters of one block stand in the table.
#[derive(Clone, Copy, Debug)]
pub struct BlockIndex {
    pub attention_norm: usize,
    pub qkv: usize,
    pub out: usize,
    pub mlp_norm: usize,
    pub gate_up: usize,
    pub down: usize,
}

/// Where each parameter stands in the table.
#[derive(Clone, Debug)]
pub struct ParameterIndex {
    pub embedding: usize,
    pub blocks: Vec<BlockIndex>,
    pub norm: usize,
    pub head: usize,
}

struct Builder<B: Backend> {
    backend: B,
    entries: Vec<Parameter<B>>,
}

impl<B: Backend> Builder<B> {
    fn matrix(&mut self, name: String, cols: usize, parts: &[(String, usize)]) -> usize {
        let mut tensors = Vec::new();
        let mut rows = 0;
        for (name, part) in parts {
            tensors.push(CheckpointTensor { name: name.clone(), shape: vec![*part, cols], rows: rows..rows + part });
            rows += part;
        }
        self.push(name, (rows, cols), true, tensors)
    }

    fn norm(&mut self, name: String, checkpoint: String, cols: usize) -> usize {
        let tensor = CheckpointTensor { name: checkpoint, shape: vec![cols], rows: 0..1 };
        self.push(name, (1, cols), false, vec![tensor])
    }

    fn push(
        &mut self,
        name: String,
        (rows, cols): (usize, usize),
        decay: bool,
        tensors: Vec<CheckpointTensor>,
    ) -> usize {
        // Whoever fills the table brings the memory: an array made here would only be dropped again.
        let value = Arc::new(self.backend.alloc(0));
        self.entries.push(Parameter { name, rows, cols, decay, tensors, value });
        self.entries.len() - 1
    }
}

impl<B: Backend> Parameters<B> {
    /// The table for `config`, without numbers.
    pub(super) fn build(backend: &B, config: &ModelConfig) -> (Self, ParameterIndex) {
        let mut table = Builder { backend: backend.clone(), entries: Vec::new() };
        let (c, spec) = (config.hidden_size, config.attention());
        let kv = spec.kv_heads * spec.head_dim;
        let embedding = table.matrix("embedding".into(), c, &[("model.embed_tokens.weight".into(), config.vocab_size)]);
        let mut blocks = Vec::new();
        for layer in 0..config.num_hidden_layers {
            let short = |name: &str| format!("layers.{layer}.{name}");
            let full = |name: &str| format!("model.layers.{layer}.{name}.weight");
            let attention_norm = table.norm(short("attention_norm"), full("input_layernorm"), c);
            let qkv = table.matrix(
                short("qkv"),
                c,
                &[
                    (full("self_attn.q_proj"), spec.out_width()),
                    (full("self_attn.k_proj"), kv),
                    (full("self_attn.v_proj"), kv),
                ],
            );
            let out = table.matrix(short("out"), spec.out_width(), &[(full("self_attn.o_proj"), c)]);
            let mlp_norm = table.norm(short("mlp_norm"), full("post_attention_layernorm"), c);
            let f = config.intermediate_size;
            let gate_up = table.matrix(short("gate_up"), c, &[(full("mlp.gate_proj"), f), (full("mlp.up_proj"), f)]);
            let down = table.matrix(short("down"), f, &[(full("mlp.down_proj"), c)]);
            blocks.push(BlockIndex { attention_norm, qkv, out, mlp_norm, gate_up, down });
        }
        let norm = table.norm("norm".into(), "model.norm.weight".into(), c);
        let head = match config.tie_word_embeddings {
            true => embedding,
            false => table.matrix("head".into(), c, &[("lm_head.weight".into(), config.vocab_size)]),
        };
        (Self { entries: table.entries }, ParameterIndex { embedding, blocks, norm, head })
    }

    /// Number of parameters (matrices and vectors).
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The parameters in order.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter<B>> {
        self.entries.iter()
    }

    /// Parameter `index` as a value on the tape.
    pub fn var(&self, index: usize) -> Var<B> {
        let p = &self.entries[index];
        Var::parameter(index, p.value.clone(), p.rows, p.cols)
    }

    /// Storage of parameter `index`.
    pub fn value(&self, index: usize) -> &B::Buffer {
        &self.entries[index].value
    }

    /// Storage of parameter `index`, writable; no tape may hold it any more.
    #[track_caller]
    pub fn value_mut(&mut self, index: usize) -> &mut B::Buffer {
        let entry = &mut self.entries[index];
        Arc::get_mut(&mut entry.value).unwrap_or_else(|| panic!("parameter {} is still on a tape", entry.name))
    }

    /// Gives every parameter memory with unspecified numbers.
    pub(super) fn alloc(&mut self, backend: &B) {
        for entry in &mut self.entries {
            entry.value = Arc::new(backend.alloc(entry.rows * entry.cols));
        }
    }

    /// Draws initial weights: matrices from N(0, `std`²), norms one.
    pub(super) fn randomise(&mut self, backend: &B, std: f64, seed: u64) -> Result<(), Error> {
        let normal = Normal::new(0.0, std as f32)
            .map_err(|_| Error::setting("initializer_range", std, "a finite number that is not negative"))?;
        let random = CounterRng::new(seed, Purpose::Weights);
        for (index, entry) in self.entries.iter_mut().enumerate() {
            let shape = (entry.rows, entry.cols);
            let values = match entry.decay {
                true => Array2::random_using(shape, normal, &mut random.sequence(index as u64)),
                false => Array2::ones(shape),
            };
            entry.value = Arc::new(backend.upload(values.as_slice().expect("a fresh array is contiguous")));
        }
        Ok(())
    }

    /// Numbers of parameter `index`, row-major.
    pub fn download(&self, backend: &B, index: usize) -> Array2<f32> {
        let entry = &self.entries[index];
        let mut values = Array2::zeros((entry.rows, entry.cols));
        backend.download(&entry.value, values.as_slice_mut().expect("a fresh array is contiguous"));
        values
    }

    /// Sets parameter `index`.
    ///
    /// # Errors
    /// Another shape than the parameter's.
    pub fn upload(&mut self, backend: &B, index: usize, values: &Array2<f32>) -> Result<(), Error> {
        let entry = &mut self.entries[index];
        if values.dim() != (entry.rows, entry.cols) {
            let problem = format!("shape {:?} instead of ({}, {})", values.dim(), entry.rows, entry.cols);
            return Err(Error::Tensor { name: entry.name.clone(), problem });
        }
        entry.value = Arc::new(backend.upload(&values.as_standard_layout().iter().copied().collect::<Vec<_>>()));
        Ok(())
    }

    /// Names and shapes of all checkpoint tensors.
    pub fn checkpoint_tensors(&self) -> Vec<(String, Vec<usize>)> {
        self.entries.iter().flat_map(|p| &p.tensors).map(|t| (t.name.clone(), t.shape.clone())).collect()
    }

    /// Fills every parameter from checkpoint tensors that `read` gives by name.
    ///
    /// # Errors
    /// What `read` reports, or a tensor of another size.
    pub fn import<E: From<Error>>(
        &mut self,
        backend: &B,
        mut read: impl FnMut(&CheckpointTensor) -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        for entry in &mut self.entries {
            let mut values = Vec::with_capacity(entry.rows * entry.cols);
            for tensor in &entry.tensors {
                let part = read(tensor)?;
                if part.len() != tensor.rows.len() * entry.cols {
                    let problem = format!("{} numbers instead of shape {:?}", part.len(), tensor.shape);
                    return Err(Error::Tensor { name: tensor.name.clone(), problem }.into());
                }
                values.extend(part);
            }
            entry.value = Arc::new(backend.upload(&values));
        }
        Ok(())
    }
}
