//! A backend that measures another one: time, floating-point operations and bytes of every operation, by shape.
//!
//! [`Profiled`] hands every call on and notes how long it took and how much there was to do. Work is counted from the
//! shapes alone: floating-point operations of the products and of attention, as [`ModelConfig::step_flops`] and
//! [`ModelConfig::forward_flops`] count them (all else counts none and is bound by memory), and the bytes that have to
//! move at least once, every operand read once and every result written once. Data that an operation finds in a cache can
//! make it faster than those bytes would take from memory.
//!
//! Only calls that wait for their work are measured right; a backend that queues work would show where it waits.
//!
//! [`ModelConfig::step_flops`]: crate::model::ModelConfig::step_flops
//! [`ModelConfig::forward_flops`]: crate::model::ModelConfig::forward_flops

use crate::backend::{
    Activation, AdamWSpec, AttentionSpec, Backend, Draw, DropoutSpec, NormSpec, SamplingSpec, Segment, Store, Weight,
};
use crate::lists::RankedLists;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// What tells the calls of one operation apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// A flat array, or several: lengths vary and are added up.
    Flat,
    /// Rows, and the width of one.
    Rows(usize, usize),
    /// A product with a weight, or one of its gradients: rows, width of the input, width of the result.
    Product(usize, usize, usize),
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flat => Ok(()),
            Self::Rows(rows, width) => write!(f, "{rows}×{width}"),
            Self::Product(rows, input, output) => write!(f, "{rows}×{input}→{output}"),
        }
    }
}

/// All calls of one operation with one shape.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Number of calls.
    pub calls: u64,
    /// Seconds, added up over the calls.
    pub seconds: f64,
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes that had to move.
    pub bytes: f64,
}

/// Costs by the name of the method and its shape.
pub type Profile = BTreeMap<(&'static str, Shape), Cost>;

/// A backend that measures `B`. Clones share one [`Profile`].
#[derive(Clone)]
pub struct Profiled<B> {
    inner: B,
    profile: Arc<Mutex<Profile>>,
}

/// An index array with a copy on the host, from which work is counted.
pub struct ProfiledIndex<T> {
    inner: T,
    host: Vec<u32>,
}

/// Bytes of a float, and of an index.
const WORD: f64 = 4.0;

/// What one call had to do.
struct Work {
    shape: Shape,
    flops: usize,
    /// Floats and indices that move.
    words: usize,
}

impl Work {
    /// Work that is bound by memory alone.
    fn moving(shape: Shape, words: usize) -> Self {
        Self { shape, flops: 0, words }
    }
}

/// How often a result's memory is passed: written, or read and written.
fn passes(store: Store) -> usize {
    match store {
        Store::Set => 1,
        Store::Add => 2,
    }
}

impl<B: Backend> Profiled<B> {
    /// Measures `backend` from here on.
    pub fn new(backend: B) -> Self {
        Self { inner: backend, profile: Arc::default() }
    }

    /// What was measured so far, and starts anew.
    pub fn take(&self) -> Profile {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Profile> {
        // Every entry is whole at any time, so a panic elsewhere does not spoil it.
        self.profile.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn timed<R>(&self, op: &'static str, work: Work, call: impl FnOnce(&B) -> R) -> R {
        let start = Instant::now();
        let result = call(&self.inner);
        let seconds = start.elapsed().as_secs_f64();
        let mut profile = self.lock();
        let cost = profile.entry((op, work.shape)).or_default();
        cost.calls += 1;
        cost.seconds += seconds;
        cost.flops += work.flops as f64;
        cost.bytes += work.words as f64 * WORD;
        result
    }

    /// Rows copied by their indices.
    fn gathered(rows: usize, width: usize) -> Work {
        Work::moving(Shape::Rows(rows, width), rows + 2 * rows * width)
    }

    /// Rows added at their indices to a matrix of `whole` floats, all of which is written where it is set.
    fn scattered(rows: usize, width: usize, whole: usize, store: Store) -> Work {
        let written = match store {
            Store::Set => whole,
            Store::Add => 2 * rows * width,
        };
        Work::moving(Shape::Rows(rows, width), rows + rows * width + written)
    }

    fn len_of(&self, x: &B::Buffer) -> usize {
        self.inner.len(x)
    }

    /// The product of `rows` rows with a weight, or one of its two gradients: each reads two of the three matrices and
    /// writes the third.
    fn product(rows: usize, input: usize, output: usize, result: usize, store: Store) -> Work {
        let operands = rows * input + input * output + rows * output;
        Work {
            shape: Shape::Product(rows, input, output),
            flops: 2 * rows * input * output,
            words: operands + (passes(store) - 1) * result,
        }
    }

    /// Pairs (query, key) that see each other in all segments.
    fn visible_pairs(segments: &[u32], window: Option<usize>) -> usize {
        let all = |s: Segment| {
            let (len, prefix) = (s.len as usize, s.prefix_len as usize);
            match window {
                None => len * prefix + len * (len + 1) / 2,
                Some(window) => (prefix + 1..=prefix + len).map(|seen| seen.min(window)).sum(),
            }
        };
        Segment::parse(segments).map(all).sum()
    }
}

impl<B: Backend> Backend for Profiled<B> {
    type Buffer = B::Buffer;
    type Index = ProfiledIndex<B::Index>;
    type Lists = B::Lists;

    fn name(&self) -> String {
        self.inner.name()
    }

    fn multiplies_in_half(&self) -> bool {
        self.inner.multiplies_in_half()
    }

    fn alloc(&self, len: usize) -> B::Buffer {
        self.timed("alloc", Work::moving(Shape::Flat, 0), |b| b.alloc(len))
    }

    fn len(&self, x: &B::Buffer) -> usize {
        self.len_of(x)
    }

    fn upload(&self, data: &[f32]) -> B::Buffer {
        self.timed("upload", Work::moving(Shape::Flat, 2 * data.len()), |b| b.upload(data))
    }

    fn upload_bf16(&self, data: &[f32]) -> B::Buffer {
        self.timed("upload_bf16", Work::moving(Shape::Flat, data.len() + data.len() / 2), |b| b.upload_bf16(data))
    }

    fn alloc_bf16(&self, len: usize) -> B::Buffer {
        self.timed("alloc_bf16", Work::moving(Shape::Flat, 0), |b| b.alloc_bf16(len))
    }

    fn upload_index(&self, data: &[u32]) -> Self::Index {
        let inner = self.timed("upload_index", Work::moving(Shape::Flat, 2 * data.len()), |b| b.upload_index(data));
        ProfiledIndex { inner, host: data.to_vec() }
    }

    fn upload_lists(&self, lists: &RankedLists) -> B::Lists {
        self.timed("upload_lists", Work::moving(Shape::Flat, 0), |b| b.upload_lists(lists))
    }

    fn download(&self, x: &B::Buffer, out: &mut [f32]) {
        self.timed("download", Work::moving(Shape::Flat, 2 * out.len()), |b| b.download(x, out));
    }

    fn read(&self, x: &B::Buffer) -> Vec<f64> {
        // Read in single precision, written in double.
        self.timed("read", Work::moving(Shape::Flat, 3 * self.len_of(x)), |b| b.read(x))
    }

    fn read_all(&self, buffers: &[&B::Buffer]) -> Vec<Vec<f64>> {
        let len: usize = buffers.iter().map(|x| self.len_of(x)).sum();
        self.timed("read_all", Work::moving(Shape::Flat, 3 * len), |b| b.read_all(buffers))
    }

    fn fill(&self, x: &mut B::Buffer, value: f64) {
        self.timed("fill", Work::moving(Shape::Flat, self.len_of(x)), |b| b.fill(x, value));
    }

    fn copy(&self, x: &B::Buffer, y: &mut B::Buffer, store: Store) {
        let words = (1 + passes(store)) * self.len_of(x);
        self.timed("copy", Work::moving(Shape::Flat, words), |b| b.copy(x, y, store));
    }

    fn trim(&self) {
        self.inner.trim();
    }

    fn limit(&self, bytes: u64) {
        self.inner.limit(bytes);
    }

    fn embed(&self, table: &B::Buffer, ids: &Self::Index, channels: usize, y: &mut B::Buffer) {
        let work = Self::gathered(ids.host.len(), channels);
        self.timed("embed", work, |b| b.embed(table, &ids.inner, channels, y));
    }

    fn embed_grad(&self, d_y: &B::Buffer, ids: &Self::Index, channels: usize, d_table: &mut B::Buffer, store: Store) {
        let work = Self::scattered(ids.host.len(), channels, self.len_of(d_table), store);
        self.timed("embed_grad", work, |b| b.embed_grad(d_y, &ids.inner, channels, d_table, store));
    }

    fn linear(&self, x: &B::Buffer, w: Weight<B::Buffer>, y: &mut B::Buffer, store: Store) {
        let (rows, result) = (self.len_of(x) / w.in_features, self.len_of(y));
        let work = Self::product(rows, w.in_features, w.out_features, result, store);
        self.timed("linear", work, |b| b.linear(x, w, y, store));
    }

    fn linear_grad_x(&self, d_y: &B::Buffer, w: Weight<B::Buffer>, d_x: &mut B::Buffer, store: Store) {
        let (rows, result) = (self.len_of(d_y) / w.out_features, self.len_of(d_x));
        let work = Self::product(rows, w.in_features, w.out_features, result, store);
        self.timed("linear_grad_x", work, |b| b.linear_grad_x(d_y, w, d_x, store));
    }

    fn linear_grad_w(
        &self,
        d_y: &B::Buffer,
        x: &B::Buffer,
        out_features: usize,
        in_features: usize,
        d_w: &mut B::Buffer,
        store: Store,
    ) {
        let rows = self.len_of(x) / in_features;
        let work = Self::product(rows, in_features, out_features, out_features * in_features, store);
        self.timed("linear_grad_w", work, |b| b.linear_grad_w(d_y, x, out_features, in_features, d_w, store));
    }

    fn rms_norm(&self, x: &B::Buffer, w: &B::Buffer, spec: NormSpec, y: &mut B::Buffer, rstd: &mut B::Buffer) {
        let (rows, width) = (self.len_of(rstd), self.len_of(w));
        let work = Work::moving(Shape::Rows(rows, width), 2 * rows * width + width + rows);
        self.timed("rms_norm", work, |b| b.rms_norm(x, w, spec, y, rstd));
    }

    fn rms_norm_grad(
        &self,
        d_y: &B::Buffer,
        x: &B::Buffer,
        w: &B::Buffer,
        spec: NormSpec,
        rstd: &B::Buffer,
        d_x: (&mut B::Buffer, Store),
        d_w: Option<(&mut B::Buffer, Store)>,
    ) {
        let (rows, width) = (self.len_of(rstd), self.len_of(w));
        let d_w_words = d_w.as_ref().map_or(0, |(_, store)| passes(*store) * width);
        let words = (2 + passes(d_x.1)) * rows * width + rows + width + d_w_words;
        let work = Work::moving(Shape::Rows(rows, width), words);
        self.timed("rms_norm_grad", work, |b| b.rms_norm_grad(d_y, x, w, spec, rstd, d_x, d_w));
    }

    fn layer_norm(&self, x: &B::Buffer, w: &B::Buffer, eps: f64, y: &mut B::Buffer, stats: &mut B::Buffer) {
        let (rows, width) = (self.len_of(stats) / 2, self.len_of(w));
        let work = Work::moving(Shape::Rows(rows, width), 2 * rows * width + width + 2 * rows);
        self.timed("layer_norm", work, |b| b.layer_norm(x, w, eps, y, stats));
    }

    fn layer_norm_grad(
        &self,
        d_y: &B::Buffer,
        x: &B::Buffer,
        w: &B::Buffer,
        stats: &B::Buffer,
        d_x: (&mut B::Buffer, Store),
        d_w: Option<(&mut B::Buffer, Store)>,
    ) {
        let (rows, width) = (self.len_of(stats) / 2, self.len_of(w));
        let d_w_words = d_w.as_ref().map_or(0, |(_, store)| passes(*store) * width);
        let words = (2 + passes(d_x.1)) * rows * width + 2 * rows + width + d_w_words;
        let work = Work::moving(Shape::Rows(rows, width), words);
        self.timed("layer_norm_grad", work, |b| b.layer_norm_grad(d_y, x, w, stats, d_x, d_w));
    }

    fn head_norm(
        &self,
        x: &B::Buffer,
        w_q: &B::Buffer,
        w_k: &B::Buffer,
        eps: f64,
        spec: &AttentionSpec,
        y: &mut B::Buffer,
        rstd: &mut B::Buffer,
    ) {
        let (n, width) = (self.len_of(x), spec.qkv_width());
        let work = Work::moving(Shape::Rows(n / width, width), 2 * n + self.len_of(rstd) + 2 * spec.head_dim);
        self.timed("head_norm", work, |b| b.head_norm(x, w_q, w_k, eps, spec, y, rstd));
    }

    fn head_norm_grad(
        &self,
        d_y: &B::Buffer,
        x: &B::Buffer,
        w_q: &B::Buffer,
        w_k: &B::Buffer,
        rstd: &B::Buffer,
        spec: &AttentionSpec,
        d_x: &mut B::Buffer,
        d_w_q: Option<(&mut B::Buffer, Store)>,
        d_w_k: Option<(&mut B::Buffer, Store)>,
    ) {
        let (n, width) = (self.len_of(x), spec.qkv_width());
        let d_w_words: usize = [&d_w_q, &d_w_k].into_iter().flatten().map(|(_, s)| passes(*s) * spec.head_dim).sum();
        let words = 3 * n + self.len_of(rstd) + 2 * spec.head_dim + d_w_words;
        let work = Work::moving(Shape::Rows(n / width, width), words);
        self.timed("head_norm_grad", work, |b| b.head_norm_grad(d_y, x, w_q, w_k, rstd, spec, d_x, d_w_q, d_w_k));
    }

    fn broadcast_rows(&self, x: &B::Buffer, y: &mut B::Buffer, store: Store) {
        let (n, width) = (self.len_of(y), self.len_of(x));
        let work = Work::moving(Shape::Rows(n / width, width), width + passes(store) * n);
        self.timed("broadcast_rows", work, |b| b.broadcast_rows(x, y, store));
    }

    fn sum_rows(&self, x: &B::Buffer, y: &mut B::Buffer, store: Store) {
        let (n, width) = (self.len_of(x), self.len_of(y));
        let work = Work::moving(Shape::Rows(n / width, width), n + passes(store) * width);
        self.timed("sum_rows", work, |b| b.sum_rows(x, y, store));
    }

    fn rope(
        &self,
        qkv: &mut B::Buffer,
        positions: &Self::Index,
        table: &B::Buffer,
        spec: &AttentionSpec,
        inverse: bool,
    ) {
        let (rows, width) = (positions.host.len(), (spec.heads + spec.kv_heads) * spec.head_dim);
        let work = Work::moving(Shape::Rows(rows, width), rows * (2 * width + spec.head_dim + 1));
        self.timed("rope", work, |b| b.rope(qkv, &positions.inner, table, spec, inverse));
    }

    fn attention(
        &self,
        qkv: &B::Buffer,
        segments: &Self::Index,
        spec: &AttentionSpec,
        o: &mut B::Buffer,
        lse: &mut B::Buffer,
    ) {
        let rows = self.len_of(qkv) / spec.qkv_width();
        let work = Work {
            shape: Shape::Rows(rows, spec.out_width()),
            flops: 4 * Self::visible_pairs(&segments.host, spec.window) * spec.out_width(),
            words: self.len_of(qkv) + self.len_of(o) + self.len_of(lse),
        };
        self.timed("attention", work, |b| b.attention(qkv, &segments.inner, spec, o, lse));
    }

    fn attention_grad(
        &self,
        d_o: &B::Buffer,
        qkv: &B::Buffer,
        o: &B::Buffer,
        lse: &B::Buffer,
        segments: &Self::Index,
        spec: &AttentionSpec,
        d_qkv: &mut B::Buffer,
    ) {
        let rows = self.len_of(qkv) / spec.qkv_width();
        let work = Work {
            shape: Shape::Rows(rows, spec.out_width()),
            flops: 10 * Self::visible_pairs(&segments.host, spec.window) * spec.out_width(),
            words: 2 * self.len_of(qkv) + 2 * self.len_of(o) + self.len_of(lse),
        };
        self.timed("attention_grad", work, |b| b.attention_grad(d_o, qkv, o, lse, &segments.inner, spec, d_qkv));
    }

    fn glu(&self, gate_up: &B::Buffer, width: usize, activation: Activation, y: &mut B::Buffer) {
        let n = self.len_of(y);
        let work = Work::moving(Shape::Rows(n / width, width), 3 * n);
        self.timed("glu", work, |b| b.glu(gate_up, width, activation, y));
    }

    fn glu_grad(
        &self,
        d_y: &B::Buffer,
        gate_up: &B::Buffer,
        width: usize,
        activation: Activation,
        d_gate_up: &mut B::Buffer,
    ) {
        let n = self.len_of(d_y);
        let work = Work::moving(Shape::Rows(n / width, width), 5 * n);
        self.timed("glu_grad", work, |b| b.glu_grad(d_y, gate_up, width, activation, d_gate_up));
    }

    fn activate(&self, x: &B::Buffer, activation: Activation, y: &mut B::Buffer) {
        self.timed("activate", Work::moving(Shape::Flat, 2 * self.len_of(x)), |b| b.activate(x, activation, y));
    }

    fn activate_grad(&self, d_y: &B::Buffer, x: &B::Buffer, activation: Activation, d_x: &mut B::Buffer) {
        let work = Work::moving(Shape::Flat, 3 * self.len_of(x));
        self.timed("activate_grad", work, |b| b.activate_grad(d_y, x, activation, d_x));
    }

    fn gather_rows(&self, x: &B::Buffer, rows: &Self::Index, channels: usize, y: &mut B::Buffer) {
        let work = Self::gathered(rows.host.len(), channels);
        self.timed("gather_rows", work, |b| b.gather_rows(x, &rows.inner, channels, y));
    }

    fn gather_rows_grad(
        &self,
        d_y: &B::Buffer,
        rows: &Self::Index,
        channels: usize,
        d_x: &mut B::Buffer,
        store: Store,
    ) {
        let work = Self::scattered(rows.host.len(), channels, self.len_of(d_x), store);
        self.timed("gather_rows_grad", work, |b| b.gather_rows_grad(d_y, &rows.inner, channels, d_x, store));
    }

    fn token_logp(
        &self,
        h: &B::Buffer,
        w: Weight<B::Buffer>,
        softcap: Option<f64>,
        target_rows: &Self::Index,
        target_ids: &Self::Index,
        logp: &mut B::Buffer,
        lse: &mut B::Buffer,
    ) {
        let (rows, width, vocab) = (self.len_of(lse), w.in_features, w.out_features);
        let work = Work {
            shape: Shape::Product(rows, width, vocab),
            flops: 2 * rows * width * vocab,
            words: rows * width + width * vocab + rows + 3 * target_ids.host.len(),
        };
        let (rows, ids) = (&target_rows.inner, &target_ids.inner);
        self.timed("token_logp", work, |b| b.token_logp(h, w, softcap, rows, ids, logp, lse));
    }

    fn token_logp_grad(
        &self,
        d_logp: &B::Buffer,
        h: &B::Buffer,
        w: Weight<B::Buffer>,
        softcap: Option<f64>,
        target_rows: &Self::Index,
        target_ids: &Self::Index,
        lse: &B::Buffer,
        d_h: (&mut B::Buffer, Store),
        d_w: Option<(&mut B::Buffer, Store)>,
    ) {
        let (rows, width, vocab) = (self.len_of(lse), w.in_features, w.out_features);
        // The logits again, and the gradient by either operand.
        let products = if d_w.is_some() { 3 } else { 2 };
        let d_w_words = d_w.as_ref().map_or(0, |(_, store)| passes(*store) * width * vocab);
        let operands = (1 + passes(d_h.1)) * rows * width + width * vocab;
        let work = Work {
            shape: Shape::Product(rows, width, vocab),
            flops: 2 * products * rows * width * vocab,
            words: operands + rows + 3 * target_ids.host.len() + d_w_words,
        };
        self.timed("token_logp_grad", work, |b| {
            b.token_logp_grad(d_logp, h, w, softcap, &target_rows.inner, &target_ids.inner, lse, d_h, d_w);
        });
    }

    fn weighted_sum(&self, x: &B::Buffer, w: &B::Buffer, y: &mut B::Buffer) {
        let work = Work::moving(Shape::Flat, 2 * self.len_of(x));
        self.timed("weighted_sum", work, |b| b.weighted_sum(x, w, y));
    }

    fn weighted_sum_grad(&self, d_y: &B::Buffer, w: &B::Buffer, d_x: &mut B::Buffer, store: Store) {
        let work = Work::moving(Shape::Flat, (1 + passes(store)) * self.len_of(w));
        self.timed("weighted_sum_grad", work, |b| b.weighted_sum_grad(d_y, w, d_x, store));
    }

    fn list_loss(
        &self,
        logp: &B::Buffer,
        reference: &B::Buffer,
        lists: &B::Lists,
        gamma: &mut B::Buffer,
        loss: &mut B::Buffer,
        d_logp: &mut B::Buffer,
    ) {
        let words = 3 * self.len_of(logp) + self.len_of(gamma) + self.len_of(loss);
        let work = Work::moving(Shape::Flat, words);
        self.timed("list_loss", work, |b| b.list_loss(logp, reference, lists, gamma, loss, d_logp));
    }

    fn dropout(&self, x: &B::Buffer, spec: &DropoutSpec, y: &mut B::Buffer, store: Store) {
        let n = self.len_of(x);
        let work = Work::moving(Shape::Flat, n + passes(store) * n);
        self.timed("dropout", work, |b| b.dropout(x, spec, y, store));
    }

    fn scale(&self, x: &mut B::Buffer, y: &B::Buffer) {
        self.timed("scale", Work::moving(Shape::Flat, 2 * self.len_of(x)), |b| b.scale(x, y));
    }

    fn sq_norm(&self, x: &B::Buffer, out: &mut B::Buffer, at: usize) {
        self.timed("sq_norm", Work::moving(Shape::Flat, self.len_of(x)), |b| b.sq_norm(x, out, at));
    }

    fn clip(&self, sq_norms: &B::Buffer, max_norm: f64, out: &mut B::Buffer) {
        let work = Work::moving(Shape::Flat, self.len_of(sq_norms) + 2);
        self.timed("clip", work, |b| b.clip(sq_norms, max_norm, out));
    }

    fn adamw(
        &self,
        spec: &AdamWSpec,
        w: &mut B::Buffer,
        g: &B::Buffer,
        m: &mut B::Buffer,
        v: &mut B::Buffer,
        clip: &B::Buffer,
    ) {
        // Reads four arrays and writes three.
        let work = Work::moving(Shape::Flat, 7 * self.len_of(w));
        self.timed("adamw", work, |b| b.adamw(spec, w, g, m, v, clip));
    }

    fn kv_append(&self, qkv: &B::Buffer, slots: &Self::Index, spec: &AttentionSpec, cache: &mut B::Buffer) {
        let work = Self::gathered(slots.host.len(), spec.cache_width());
        self.timed("kv_append", work, |b| b.kv_append(qkv, &slots.inner, spec, cache));
    }

    fn decode_attention(
        &self,
        qkv: &B::Buffer,
        cache: &B::Buffer,
        spans: &Self::Index,
        spec: &AttentionSpec,
        o: &mut B::Buffer,
    ) {
        let rows = spans.host.len() / 4;
        // A prompt's cached rows are read once for all of its responses.
        let (mut pairs, mut own_rows, mut prompts) = (0, 0, BTreeSet::new());
        for span in spans.host.chunks_exact(4) {
            pairs += (span[1] + span[3]) as usize;
            own_rows += span[3] as usize;
            prompts.insert((span[0], span[1]));
        }
        let cached = own_rows + prompts.iter().map(|(_, len)| *len as usize).sum::<usize>();
        let work = Work {
            shape: Shape::Rows(rows, spec.out_width()),
            flops: 4 * pairs * spec.out_width(),
            words: 2 * rows * spec.out_width() + cached * spec.cache_width(),
        };
        self.timed("decode_attention", work, |b| b.decode_attention(qkv, cache, &spans.inner, spec, o));
    }

    fn softcap(&self, x: &mut B::Buffer, c: f64) {
        self.timed("softcap", Work::moving(Shape::Flat, 2 * self.len_of(x)), |b| b.softcap(x, c));
    }

    fn sample(&self, logits: &B::Buffer, vocab: usize, spec: &SamplingSpec, uniform: &[f64]) -> Vec<Draw> {
        let work = Work::moving(Shape::Rows(uniform.len(), vocab), uniform.len() * vocab);
        self.timed("sample", work, |b| b.sample(logits, vocab, spec, uniform))
    }
}
