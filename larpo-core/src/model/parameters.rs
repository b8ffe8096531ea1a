//! The parameter table: names, shapes, storage, and the tensors of a Hugging Face checkpoint that each one holds.

use super::config::{Head, ModelConfig, Naming, Norm, Positions};
use super::lora;
use crate::backend::{Backend, Store};
use crate::error::Error;
use crate::rng::{CounterRng, Purpose};
use crate::tape::Var;
use ndarray::Array2;
use ndarray_rand::RandomExt;
use ndarray_rand::rand_distr::Normal;
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// A checkpoint tensor that lives in some rows of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointTensor {
    /// Its name in a Hugging Face checkpoint.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// Its rows in the parameter.
    pub rows: Range<usize>,
    /// Whether the checkpoint stores it as (inputs, outputs).
    pub transposed: bool,
}

impl CheckpointTensor {
    /// Its numbers as a checkpoint stores them, from those of its parameter, which has `cols` columns.
    pub fn stored<'a, T: Copy>(&self, values: &'a [T], cols: usize) -> Cow<'a, [T]> {
        let values = &values[self.rows.start * cols..self.rows.end * cols];
        match self.transposed {
            true => Cow::Owned(transposed(values, cols)),
            false => Cow::Borrowed(values),
        }
    }
}

/// `(n, cols) -> (cols, n)`.
fn transposed<T: Copy>(values: &[T], cols: usize) -> Vec<T> {
    let n = values.len() / cols;
    (0..values.len()).map(|i| values[i % n * cols + i / n]).collect()
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
    /// Whether it is trained: all are, or the adapter's alone where there is one.
    pub trainable: bool,
    /// Whether it is held in bfloat16.
    half: bool,
    /// Checkpoint tensors inside, in row order.
    pub tensors: Vec<CheckpointTensor>,
    value: Arc<B::Buffer>,
}

impl<B: Backend> Parameter<B> {
    /// The names of its checkpoint tensors, which is how people know them.
    pub fn tensor_names(&self) -> String {
        self.tensors.iter().map(|tensor| &tensor.name[..]).collect::<Vec<_>>().join(", ")
    }

    /// Takes these numbers, row-major.
    fn set(&mut self, backend: &B, values: &[f32]) {
        self.value = Arc::new(if self.half { backend.upload_bf16(values) } else { backend.upload(values) });
    }
}

/// All parameters of a model, in a fixed order.
pub struct Parameters<B: Backend> {
    entries: Vec<Parameter<B>>,
}

/// A norm's weight and, where it has one, its bias.
#[derive(Clone, Copy, Debug)]
pub struct NormIndex {
    pub weight: usize,
    pub bias: Option<usize>,
}

/// A product's matrix and, where it has one, its bias.
#[derive(Clone, Copy, Debug)]
pub struct LinearIndex {
    pub weight: usize,
    pub bias: Option<usize>,
    /// Its place in [`ParameterIndex::adapters`].
    pub adapter: Option<usize>,
}

/// An adapter on some parts of a product's matrix: its A's one below the other, and for each part B and the first row of the
/// part, which is the first column of the product's result that it is added to.
#[derive(Clone, Debug)]
pub struct AdapterIndex {
    pub a: usize,
    pub parts: Vec<(usize, usize)>,
}

/// Where the parameters of one block stand in the table.
#[derive(Clone, Copy, Debug)]
pub struct BlockIndex {
    pub attention_norm: NormIndex,
    pub qkv: LinearIndex,
    /// Weights of the query and of the key heads' norms.
    pub head_norm: Option<(usize, usize)>,
    pub out: LinearIndex,
    pub post_attention_norm: Option<NormIndex>,
    pub mlp_norm: NormIndex,
    /// Gate and up, or up alone.
    pub up: LinearIndex,
    pub down: LinearIndex,
    pub post_mlp_norm: Option<NormIndex>,
}

/// Where each parameter stands in the table.
#[derive(Clone, Debug)]
pub struct ParameterIndex {
    pub embedding: usize,
    pub positions: Option<usize>,
    pub blocks: Vec<BlockIndex>,
    pub norm: NormIndex,
    pub head: usize,
    pub adapters: Vec<AdapterIndex>,
}

impl ParameterIndex {
    /// Every matrix that has an adapter, with it.
    pub fn adapted_weights(&self) -> impl Iterator<Item = (usize, &AdapterIndex)> {
        let linear = |block: &BlockIndex| [block.qkv, block.out, block.up, block.down];
        self.blocks.iter().flat_map(linear).filter_map(|index| Some((index.weight, &self.adapters[index.adapter?])))
    }
}

/// Parts of a joint matrix: the name of each in the checkpoint, and its rows.
type Parts<'a> = &'a [(&'a str, usize)];

struct Builder<'c, B: Backend> {
    backend: B,
    config: &'c ModelConfig,
    entries: Vec<Parameter<B>>,
    adapters: Vec<AdapterIndex>,
    norm: Norm,
    /// Products' matrices are stored as (inputs, outputs).
    transposed: bool,
}

impl<B: Backend> Builder<'_, B> {
    /// A table that checkpoints name `name`.
    fn table(&mut self, short: &str, name: String, rows: usize, cols: usize) -> usize {
        let tensor = CheckpointTensor { name, shape: vec![rows, cols], rows: 0..rows, transposed: false };
        self.push(short.into(), (rows, cols), true, vec![tensor])
    }

    fn vector(&mut self, short: String, name: String, cols: usize) -> usize {
        let tensor = CheckpointTensor { name, shape: vec![cols], rows: 0..1, transposed: false };
        self.push(short, (1, cols), false, vec![tensor])
    }

    /// A norm; `short` and `full` give the names in the table and in checkpoints.
    fn norm(&mut self, short: &str, full: &str, cols: usize) -> NormIndex {
        let weight = self.vector(short.into(), format!("{full}.weight"), cols);
        let bias =
            (self.norm == Norm::Layer).then(|| self.vector(format!("{short}.bias"), format!("{full}.bias"), cols));
        NormIndex { weight, bias }
    }

    /// A product whose matrix has the rows of all `parts`, one below the other.
    fn linear(&mut self, short: &str, cols: usize, parts: Parts, bias: bool) -> LinearIndex {
        let (mut tensors, mut biases, mut rows) = (Vec::new(), Vec::new(), 0);
        let transposed = self.transposed;
        for &(name, part) in parts {
            let shape = if transposed { vec![cols, part] } else { vec![part, cols] };
            let rows_of = rows..rows + part;
            tensors.push(CheckpointTensor { name: format!("{name}.weight"), shape, rows: rows_of.clone(), transposed });
            // A bias is one row; its parts lie side by side.
            let name = format!("{name}.bias");
            biases.push(CheckpointTensor { name, shape: vec![part], rows: rows_of, transposed: false });
            rows += part;
        }
        let weight = self.push(short.into(), (rows, cols), true, tensors);
        let bias = bias.then(|| self.push(format!("{short}.bias"), (rows, 1), false, biases));
        let adapter = self.adapter(short, cols, parts);
        LinearIndex { weight, bias, adapter }
    }

    /// The adapter of those of the `parts` that are targets.
    fn adapter(&mut self, short: &str, cols: usize, parts: Parts) -> Option<usize> {
        let lora = self.config.lora.as_ref()?;
        let mut first = 0;
        let mut targets = Vec::new();
        for &(name, rows) in parts {
            let module = lora::module(&self.config.naming, name);
            if lora.targets.contains(&module) {
                targets.push((lora::tensor_names(&module), first, rows));
            }
            first += rows;
        }
        if targets.is_empty() {
            return None;
        }
        // PEFT stores both matrices as (outputs, inputs), whatever the base does.
        let tensor = |name: &str, shape: [usize; 2], first: usize| CheckpointTensor {
            name: name.into(),
            shape: shape.into(),
            rows: first..first + shape[0],
            transposed: false,
        };
        let of_a = targets.iter().enumerate();
        let of_a = of_a.map(|(i, ([a, _], ..))| tensor(a, [lora.rank, cols], i * lora.rank)).collect();
        let a = self.push(format!("{short}.lora_A"), (targets.len() * lora.rank, cols), true, of_a);
        let mut parts = Vec::new();
        for (i, ([_, b], first, rows)) in targets.iter().enumerate() {
            let of_b = vec![tensor(b, [*rows, lora.rank], 0)];
            parts.push((self.push(format!("{short}.lora_B.{i}"), (*rows, lora.rank), true, of_b), *first));
        }
        for index in parts.iter().map(|(b, _)| *b).chain([a]) {
            (self.entries[index].trainable, self.entries[index].half) = (true, false);
        }
        self.adapters.push(AdapterIndex { a, parts });
        Some(self.adapters.len() - 1)
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
        let trainable = self.config.lora.is_none();
        let half = self.config.frozen_bf16 && !trainable && decay;
        self.entries.push(Parameter { name, rows, cols, decay, trainable, half, tensors, value });
        self.entries.len() - 1
    }
}

impl<B: Backend> Parameters<B> {
    /// The table for `config`, without numbers.
    pub(super) fn build(backend: &B, config: &ModelConfig) -> (Self, ParameterIndex) {
        let transposed = matches!(config.naming, Naming::Gpt2 { .. });
        let mut table = Builder {
            backend: backend.clone(),
            config,
            entries: Vec::new(),
            adapters: Vec::new(),
            norm: config.norm,
            transposed,
        };
        let (c, vocab) = (config.hidden_size, config.vocab_size);
        let root = match &config.naming {
            Naming::Llama => "model.".to_string(),
            Naming::Gpt2 { prefix } => prefix.clone(),
        };
        let (embedding, learned, norm) = match transposed {
            true => ("wte", "wpe", "ln_f"),
            false => ("embed_tokens", "embed_positions", "norm"),
        };
        let embedding = table.table("embedding", format!("{root}{embedding}.weight"), vocab, c);
        let positions = (config.positions == Positions::Learned)
            .then(|| table.table("positions", format!("{root}{learned}.weight"), config.max_position_embeddings, c));
        let blocks = (0..config.num_hidden_layers).map(|layer| block(&mut table, config, &root, layer)).collect();
        let norm = table.norm("norm", &format!("{root}{norm}"), c);
        let head = match config.head {
            Head::Tied => embedding,
            Head::Untied => table.table("head", "lm_head.weight".into(), vocab, c),
            Head::Score => table.table("score", "score.weight".into(), 1, c),
        };
        let Builder { entries, adapters, .. } = table;
        (Self { entries }, ParameterIndex { embedding, positions, blocks, norm, head, adapters })
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

    /// Parameter `index` as a value on the tape; a constant where it is frozen.
    pub fn var(&self, index: usize) -> Var<B> {
        let p = &self.entries[index];
        match p.trainable {
            true => Var::parameter(index, p.value.clone(), p.rows, p.cols),
            false => Var::constant(p.value.clone(), p.rows, p.cols),
        }
    }

    /// The same parameters, sharing their storage.
    pub(super) fn handle(&self) -> Self {
        let entry = |p: &Parameter<B>| Parameter {
            name: p.name.clone(),
            tensors: p.tensors.clone(),
            value: p.value.clone(),
            ..*p
        };
        Self { entries: self.entries.iter().map(entry).collect() }
    }

    /// Takes the storage of the parameters of `other` that have the same names; both then hold it.
    pub(super) fn share(&mut self, other: &Self) {
        let of_other: HashMap<&str, &Arc<B::Buffer>> = other.entries.iter().map(|p| (&p.name[..], &p.value)).collect();
        for entry in &mut self.entries {
            if let Some(value) = of_other.get(&entry.name[..]) {
                entry.value = (*value).clone();
            }
        }
    }

    /// Gives every parameter that is trained storage of its own, with the same numbers.
    pub(super) fn unshare(&mut self, backend: &B) {
        for entry in self.entries.iter_mut().filter(|entry| entry.trainable) {
            let mut copy = backend.alloc(entry.rows * entry.cols);
            backend.copy(&entry.value, &mut copy, Store::Set);
            entry.value = Arc::new(copy);
        }
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
            let len = entry.rows * entry.cols;
            entry.value = Arc::new(if entry.half { backend.alloc_bf16(len) } else { backend.alloc(len) });
        }
    }

    /// Draws initial weights: matrices from N(0, `std`²), norms one (stored as zero where one is added), biases zero.
    pub(super) fn randomise(&mut self, backend: &B, std: f64, unit: f32, seed: u64) -> Result<(), Error> {
        let normal = Normal::new(0.0, std as f32)
            .map_err(|_| Error::setting("initializer_range", std, "a finite number that is not negative"))?;
        let random = CounterRng::new(seed, Purpose::Weights);
        for (index, entry) in self.entries.iter_mut().enumerate() {
            let shape = (entry.rows, entry.cols);
            let values = match entry.decay {
                true => Array2::random_using(shape, normal, &mut random.sequence(index as u64)),
                false if entry.tensors.iter().any(|t| t.name.ends_with(".bias")) => Array2::zeros(shape),
                false => Array2::from_elem(shape, unit),
            };
            entry.set(backend, values.as_slice().expect("a fresh array is contiguous"));
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
        entry.set(backend, &values.as_standard_layout().iter().copied().collect::<Vec<_>>());
        Ok(())
    }

    /// Names and shapes of all checkpoint tensors.
    pub fn checkpoint_tensors(&self) -> Vec<(String, Vec<usize>)> {
        self.entries.iter().flat_map(|p| &p.tensors).map(|t| (t.name.clone(), t.shape.clone())).collect()
    }

    /// Names and shapes of those that are trained.
    pub(super) fn trainable_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let trained = self.entries.iter().filter(|p| p.trainable).flat_map(|p| &p.tensors);
        trained.map(|t| (t.name.clone(), t.shape.clone())).collect()
    }

    /// Fills every parameter from checkpoint tensors that `read` gives by name.
    ///
    /// # Errors
    /// What `read` reports, or a tensor of another size.
    pub fn import<E: From<Error>>(
        &mut self,
        backend: &B,
        read: impl FnMut(&CheckpointTensor) -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        self.import_those(backend, |_| true, read)
    }

    /// [`Parameters::import`] of the parameters that are trained; the others stay.
    ///
    /// # Errors
    /// As [`Parameters::import`].
    pub fn import_trainable<E: From<Error>>(
        &mut self,
        backend: &B,
        read: impl FnMut(&CheckpointTensor) -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        self.import_those(backend, |entry| entry.trainable, read)
    }

    fn import_those<E: From<Error>>(
        &mut self,
        backend: &B,
        wanted: impl Fn(&Parameter<B>) -> bool,
        mut read: impl FnMut(&CheckpointTensor) -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        for entry in self.entries.iter_mut().filter(|entry| wanted(entry)) {
            let mut values = Vec::new();
            for tensor in &entry.tensors {
                let part = read(tensor)?;
                let rows = tensor.rows.len();
                if part.len() != rows * entry.cols {
                    let problem = format!("{} numbers instead of shape {:?}", part.len(), tensor.shape);
                    return Err(Error::Tensor { name: tensor.name.clone(), problem }.into());
                }
                let part = if tensor.transposed { transposed(&part, rows) } else { part };
                // The largest tensors are parameters of their own, and need no second copy.
                match entry.tensors.len() {
                    1 => values = part,
                    _ => values.extend(part),
                }
            }
            entry.set(backend, &values);
        }
        Ok(())
    }
}

/// The parameters of one block.
fn block<B: Backend>(table: &mut Builder<'_, B>, config: &ModelConfig, root: &str, layer: usize) -> BlockIndex {
    let (c, f, spec) = (config.hidden_size, config.intermediate_size, config.attention());
    let (q, kv) = (spec.out_width(), spec.kv_heads * spec.head_dim);
    let short = |name: &str| format!("layers.{layer}.{name}");
    let gpt2 = matches!(config.naming, Naming::Gpt2 { .. });
    let full = |llama: &str, in_gpt2: &str| match gpt2 {
        true => format!("{root}h.{layer}.{in_gpt2}"),
        false => format!("{root}layers.{layer}.{llama}"),
    };
    let attention_norm = table.norm(&short("attention_norm"), &full("input_layernorm", "ln_1"), c);
    let of_qkv = match gpt2 {
        true => vec![(full("", "attn.c_attn"), q + 2 * kv)],
        false => vec![
            (full("self_attn.q_proj", ""), q),
            (full("self_attn.k_proj", ""), kv),
            (full("self_attn.v_proj", ""), kv),
        ],
    };
    let of_qkv: Vec<(&str, usize)> = of_qkv.iter().map(|(name, rows)| (name.as_str(), *rows)).collect();
    let qkv = table.linear(&short("qkv"), c, &of_qkv, config.qkv_bias);
    let head_norm = config.head_norm.then(|| {
        let mut of = |name: &str, full: String| table.vector(short(name), format!("{full}.weight"), spec.head_dim);
        (of("q_norm", full("self_attn.q_norm", "")), of("k_norm", full("self_attn.k_norm", "")))
    });
    let out = table.linear(&short("out"), q, &[(&full("self_attn.o_proj", "attn.c_proj"), c)], config.out_bias);
    // What Llama calls the norm after attention is the one before the feed-forward block; Gemma 2 has both.
    let post_attention_norm =
        config.post_norms.then(|| table.norm(&short("post_attention_norm"), &full("post_attention_layernorm", ""), c));
    let before = if config.post_norms { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
    let mlp_norm = table.norm(&short("mlp_norm"), &full(before, "ln_2"), c);
    let (gate, only) = (full("mlp.gate_proj", ""), full("mlp.up_proj", "mlp.c_fc"));
    let up = match config.gated {
        true => table.linear(&short("gate_up"), c, &[(&gate, f), (&only, f)], config.mlp_bias),
        false => table.linear(&short("up"), c, &[(&only, f)], config.mlp_bias),
    };
    let down = table.linear(&short("down"), f, &[(&full("mlp.down_proj", "mlp.c_proj"), c)], config.mlp_bias);
    let post_mlp_norm =
        config.post_norms.then(|| table.norm(&short("post_mlp_norm"), &full("post_feedforward_layernorm", ""), c));
    BlockIndex { attention_norm, qkv, head_norm, out, post_attention_norm, mlp_norm, up, down, post_mlp_norm }
}
