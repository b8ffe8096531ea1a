//! What the CPU backend would hold, without holding it: the same pool with blocks that have a size and no memory.
//!
//! A training step or a sampling run on [`DryRun`] goes through the code that it goes through on [`Cpu`], so nothing about
//! what is kept, dropped or used again is stated twice. What an operation takes beside its operands (the block of logits,
//! a thread's scratch, the product library's packing) comes from the functions that size it there.
//!
//! Every number that is read is 0, and every token that is drawn is token 0 with log-probability 0.
//!
//! [`Cpu`]: super::Cpu

use super::buffer::{Block, LINE, Pool};
use super::{attention, bf16, matmul, par, token_logp};
use crate::backend::{
    Activation, AdamWSpec, AttentionSpec, Backend, Draw, DropoutSpec, NormSpec, SamplingSpec, Store, Weight,
};
use crate::lists::RankedLists;
use serde::Serialize;
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Weights of the model, and of other models beside it.
    pub weights: u64,
    /// AdamW's two moments.
    pub moments: u64,
    /// Gradients of the weights.
    pub gradients: u64,
    /// Results that are kept for the backward pass or handed on, and gradients by them.
    pub activations: u64,
    /// Keys and values of decoding.
    pub kv_cache: u64,
    /// Logits: a block of the vocabulary in training, all of it in sampling.
    pub logits: u64,
    /// Working memory of the threads, and panels that the product library packs.
    pub scratch: u64,
}

impl Memory {
    /// All together.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// The parts with their names.
    pub fn parts(&self) -> [(&'static str, u64); 7] {
        [
            ("weights", self.weights),
            ("moments", self.moments),
            ("gradients", self.gradients),
            ("activations", self.activations),
            ("kv_cache", self.kv_cache),
            ("logits", self.logits),
            ("scratch", self.scratch),
        ]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Weights,
    Moments,
    Gradients,
    Activations,
    KvCache,
    Logits,
}

/// Sizes and uses of all blocks that exist.
#[derive(Default)]
struct Ledger {
    /// `None` for a block that was given back to the system.
    blocks: Vec<Option<(usize, Kind)>>,
    /// The most that threads and products took at once.
    scratch: usize,
    packing: usize,
}

/// A block without memory; it leaves the ledger when it is dropped for good.
struct DryBlock {
    lines: usize,
    entry: usize,
    ledger: Arc<Mutex<Ledger>>,
}

impl Block for DryBlock {
    fn lines(&self) -> usize {
        self.lines
    }
}

impl Drop for DryBlock {
    fn drop(&mut self) {
        lock(&self.ledger).blocks[self.entry] = None;
    }
}

/// Stands for a [`Buffer`](super::Buffer).
pub struct DryBuffer {
    /// Present until it is dropped.
    block: Option<DryBlock>,
    len: usize,
    half: bool,
    pool: Arc<Pool<DryBlock>>,
}

impl Drop for DryBuffer {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.pool.give(block);
        }
    }
}

/// The CPU backend without memory and arithmetic. Clones share one pool.
#[derive(Clone, Default)]
pub struct DryRun {
    pool: Arc<Pool<DryBlock>>,
    ledger: Arc<Mutex<Ledger>>,
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    // Every entry is whole at any time, so a panic elsewhere does not spoil it.
    ledger.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl DryRun {
    /// A backend that holds nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the CPU backend would hold now, whether in use or kept to be used again. A pool only grows until
    /// [`Backend::trim`], so at the end of a phase this is its peak.
    pub fn memory(&self) -> Memory {
        let ledger = lock(&self.ledger);
        let mut memory =
            Memory { scratch: (ledger.scratch * par::threads() + ledger.packing) as u64, ..Memory::default() };
        for (lines, kind) in ledger.blocks.iter().flatten() {
            let part = match kind {
                Kind::Weights => &mut memory.weights,
                Kind::Moments => &mut memory.moments,
                Kind::Gradients => &mut memory.gradients,
                Kind::Activations => &mut memory.activations,
                Kind::KvCache => &mut memory.kv_cache,
                Kind::Logits => &mut memory.logits,
            };
            *part += (lines * LINE) as u64;
        }
        memory
    }

    /// An array of `len` numbers in the memory of `floats` floats.
    fn array(&self, len: usize, floats: usize) -> DryBuffer {
        let block = self.pool.block(floats, |lines| {
            let mut ledger = lock(&self.ledger);
            ledger.blocks.push(Some((lines, Kind::Activations)));
            DryBlock { lines, entry: ledger.blocks.len() - 1, ledger: self.ledger.clone() }
        });
        let x = DryBuffer { block: Some(block), len, half: floats < len, pool: self.pool.clone() };
        self.mark(&x, Kind::Activations);
        x
    }

    /// What a product widens of a weight in bfloat16, at most `most` numbers at a time.
    fn widen(&self, w: &DryBuffer, most: usize) {
        if w.half && most > 0 {
            drop(self.alloc(w.len.min(most)));
        }
    }

    fn mark(&self, x: &DryBuffer, kind: Kind) {
        if let Some(block) = &x.block
            && let Some((_, now)) = &mut lock(&self.ledger).blocks[block.entry]
        {
            *now = kind;
        }
    }

    /// A product that the product library computes with packed operands.
    fn product(&self, m: usize, k: usize, n: usize) {
        self.packing(matmul::packing_bytes(m, k, n));
    }

    fn packing(&self, bytes: usize) {
        let mut ledger = lock(&self.ledger);
        ledger.packing = ledger.packing.max(bytes);
    }

    fn scratch(&self, floats: usize) {
        let mut ledger = lock(&self.ledger);
        ledger.scratch = ledger.scratch.max(size_of::<f32>() * floats);
    }

    /// The products of a head with a block of logits: as many columns as the block has.
    fn head(&self, rows: usize, w: Weight<DryBuffer>) {
        let floats = token_logp::tile_len(rows, w.out_features);
        self.mark(&self.alloc(floats), Kind::Logits);
        self.mark(w.data, Kind::Weights);
        let width = floats / rows.max(1);
        self.widen(w.data, width * w.in_features);
        self.product(rows, w.in_features, width);
        self.product(width, rows, w.in_features);
    }
}

impl Backend for DryRun {
    type Buffer = DryBuffer;
    type Index = Vec<u32>;
    type Lists = ();

    fn name(&self) -> String {
        "dry run of cpu".into()
    }

    fn multiplies_in_half(&self) -> bool {
        false
    }

    fn alloc(&self, len: usize) -> DryBuffer {
        self.array(len, len)
    }

    fn len(&self, x: &DryBuffer) -> usize {
        x.len
    }

    fn upload(&self, data: &[f32]) -> DryBuffer {
        self.alloc(data.len())
    }

    fn upload_bf16(&self, data: &[f32]) -> DryBuffer {
        self.alloc_bf16(data.len())
    }

    fn alloc_bf16(&self, len: usize) -> DryBuffer {
        self.array(len, len.div_ceil(2))
    }

    fn upload_index(&self, data: &[u32]) -> Vec<u32> {
        data.to_vec()
    }

    fn upload_lists(&self, _: &RankedLists) {}

    fn download(&self, _: &DryBuffer, out: &mut [f32]) {
        out.fill(0.0);
    }

    fn read(&self, x: &DryBuffer) -> Vec<f64> {
        vec![0.0; x.len]
    }

    fn read_all(&self, buffers: &[&DryBuffer]) -> Vec<Vec<f64>> {
        buffers.iter().map(|x| self.read(x)).collect()
    }

    fn fill(&self, _: &mut DryBuffer, _: f64) {}

    fn copy(&self, _: &DryBuffer, _: &mut DryBuffer, _: Store) {}

    fn trim(&self) {
        self.pool.trim();
    }

    fn limit(&self, bytes: u64) {
        self.pool.limit(bytes as usize);
    }

    fn embed(&self, table: &DryBuffer, _: &Vec<u32>, _: usize, _: &mut DryBuffer) {
        self.mark(table, Kind::Weights);
    }

    fn embed_grad(&self, _: &DryBuffer, _: &Vec<u32>, _: usize, d_table: &mut DryBuffer, _: Store) {
        self.mark(d_table, Kind::Gradients);
    }

    fn linear(&self, x: &DryBuffer, w: Weight<DryBuffer>, _: &mut DryBuffer, _: Store) {
        self.mark(w.data, Kind::Weights);
        let bytes = matmul::linear_packing_bytes(x.len / w.in_features, w.in_features, w.out_features);
        self.packing(bytes);
        // Few rows are multiplied without packing, and widen in a thread's own memory.
        match (bytes, w.data.half) {
            (0, true) => self.scratch(matmul::COLUMNS * w.in_features),
            _ => self.widen(w.data, bf16::PART.max(w.in_features)),
        }
    }

    fn linear_grad_x(&self, d_y: &DryBuffer, w: Weight<DryBuffer>, _: &mut DryBuffer, _: Store) {
        self.product(d_y.len / w.out_features, w.out_features, w.in_features);
        self.widen(w.data, bf16::PART.max(w.in_features));
    }

    fn linear_grad_w(&self, _: &DryBuffer, x: &DryBuffer, out: usize, input: usize, d_w: &mut DryBuffer, _: Store) {
        self.mark(d_w, Kind::Gradients);
        self.product(out, x.len / input, input);
    }

    fn rms_norm(&self, _: &DryBuffer, w: &DryBuffer, _: NormSpec, _: &mut DryBuffer, _: &mut DryBuffer) {
        self.mark(w, Kind::Weights);
    }

    fn rms_norm_grad(
        &self,
        _: &DryBuffer,
        _: &DryBuffer,
        _: &DryBuffer,
        _: NormSpec,
        _: &DryBuffer,
        _: (&mut DryBuffer, Store),
        d_w: Option<(&mut DryBuffer, Store)>,
    ) {
        if let Some((d_w, _)) = d_w {
            self.mark(d_w, Kind::Gradients);
        }
    }

    fn layer_norm(&self, _: &DryBuffer, w: &DryBuffer, _: f64, _: &mut DryBuffer, _: &mut DryBuffer) {
        self.mark(w, Kind::Weights);
    }

    fn layer_norm_grad(
        &self,
        _: &DryBuffer,
        _: &DryBuffer,
        _: &DryBuffer,
        _: &DryBuffer,
        _: (&mut DryBuffer, Store),
        d_w: Option<(&mut DryBuffer, Store)>,
    ) {
        if let Some((d_w, _)) = d_w {
            self.mark(d_w, Kind::Gradients);
        }
    }

    fn head_norm(
        &self,
        _: &DryBuffer,
        w_q: &DryBuffer,
        w_k: &DryBuffer,
        _: f64,
        _: &AttentionSpec,
        _: &mut DryBuffer,
        _: &mut DryBuffer,
    ) {
        self.mark(w_q, Kind::Weights);
        self.mark(w_k, Kind::Weights);
    }

    fn head_norm_grad(
        &self,
        _: &DryBuffer,
        _: &DryBuffer,
        _: &DryBuffer,
        _: &DryBuffer,
        _: &DryBuffer,
        _: &AttentionSpec,
        _: &mut DryBuffer,
        d_w_q: Option<(&mut DryBuffer, Store)>,
        d_w_k: Option<(&mut DryBuffer, Store)>,
    ) {
        for (d_w, _) in [d_w_q, d_w_k].into_iter().flatten() {
            self.mark(d_w, Kind::Gradients);
        }
    }

    fn broadcast_rows(&self, x: &DryBuffer, _: &mut DryBuffer, _: Store) {
        self.mark(x, Kind::Weights);
    }

    fn sum_rows(&self, _: &DryBuffer, y: &mut DryBuffer, _: Store) {
        self.mark(y, Kind::Gradients);
    }

    fn rope(&self, _: &mut DryBuffer, _: &Vec<u32>, _: &DryBuffer, _: &AttentionSpec, _: bool) {}

    fn attention(
        &self,
        _: &DryBuffer,
        segments: &Vec<u32>,
        spec: &AttentionSpec,
        _: &mut DryBuffer,
        _: &mut DryBuffer,
    ) {
        self.scratch(attention::scratch_len(segments, spec.window) / 2);
    }

    fn attention_grad(
        &self,
        _: &DryBuffer,
        _: &DryBuffer,
        _: &DryBuffer,
        _: &DryBuffer,
        segments: &Vec<u32>,
        spec: &AttentionSpec,
        _: &mut DryBuffer,
    ) {
        self.scratch(attention::scratch_len(segments, spec.window));
    }

    fn glu(&self, _: &DryBuffer, _: usize, _: Activation, _: &mut DryBuffer) {}

    fn glu_grad(&self, _: &DryBuffer, _: &DryBuffer, _: usize, _: Activation, _: &mut DryBuffer) {}

    fn activate(&self, _: &DryBuffer, _: Activation, _: &mut DryBuffer) {}

    fn activate_grad(&self, _: &DryBuffer, _: &DryBuffer, _: Activation, _: &mut DryBuffer) {}

    fn gather_rows(&self, _: &DryBuffer, _: &Vec<u32>, _: usize, _: &mut DryBuffer) {}

    fn gather_rows_grad(&self, _: &DryBuffer, _: &Vec<u32>, _: usize, _: &mut DryBuffer, _: Store) {}

    fn token_logp(
        &self,
        _: &DryBuffer,
        w: Weight<DryBuffer>,
        _: Option<f64>,
        _: &Vec<u32>,
        _: &Vec<u32>,
        _: &mut DryBuffer,
        lse: &mut DryBuffer,
    ) {
        self.head(lse.len, w);
    }

    fn token_logp_grad(
        &self,
        _: &DryBuffer,
        _: &DryBuffer,
        w: Weight<DryBuffer>,
        _: Option<f64>,
        _: &Vec<u32>,
        _: &Vec<u32>,
        lse: &DryBuffer,
        _: (&mut DryBuffer, Store),
        d_w: Option<(&mut DryBuffer, Store)>,
    ) {
        self.head(lse.len, w);
        if let Some((d_w, _)) = d_w {
            self.mark(d_w, Kind::Gradients);
        }
    }

    fn weighted_sum(&self, _: &DryBuffer, _: &DryBuffer, _: &mut DryBuffer) {}

    fn weighted_sum_grad(&self, _: &DryBuffer, _: &DryBuffer, _: &mut DryBuffer, _: Store) {}

    fn list_loss(
        &self,
        _: &DryBuffer,
        _: &DryBuffer,
        (): &(),
        _: &mut DryBuffer,
        _: &mut DryBuffer,
        _: &mut DryBuffer,
    ) {
    }

    fn dropout(&self, _: &DryBuffer, _: &DropoutSpec, _: &mut DryBuffer, _: Store) {}

    fn scale(&self, _: &mut DryBuffer, _: &DryBuffer) {}

    fn sq_norm(&self, _: &DryBuffer, _: &mut DryBuffer, _: usize) {}

    fn clip(&self, _: &DryBuffer, _: f64, _: &mut DryBuffer) {}

    fn adamw(
        &self,
        _: &AdamWSpec,
        w: &mut DryBuffer,
        g: &DryBuffer,
        m: &mut DryBuffer,
        v: &mut DryBuffer,
        _: &DryBuffer,
    ) {
        self.mark(w, Kind::Weights);
        self.mark(g, Kind::Gradients);
        self.mark(m, Kind::Moments);
        self.mark(v, Kind::Moments);
    }

    fn kv_append(&self, _: &DryBuffer, _: &Vec<u32>, _: &AttentionSpec, cache: &mut DryBuffer) {
        self.mark(cache, Kind::KvCache);
    }

    fn decode_attention(&self, _: &DryBuffer, _: &DryBuffer, _: &Vec<u32>, _: &AttentionSpec, _: &mut DryBuffer) {}

    fn softcap(&self, _: &mut DryBuffer, _: f64) {}

    fn sample(&self, logits: &DryBuffer, _: usize, _: &SamplingSpec, uniform: &[f64]) -> Vec<Draw> {
        self.mark(logits, Kind::Logits);
        vec![Draw { id: 0, logp: 0.0 }; uniform.len()]
    }
}
