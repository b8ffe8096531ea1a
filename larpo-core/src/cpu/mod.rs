//! The fast CPU backend: `f32`, vectorised, on all threads of the current rayon pool.
//!
//! One file per operation; this file only unwraps buffers and checks lengths. Results depend neither on timing nor on the
//! number of threads: every reduction has a fixed order.

mod adamw;
mod attention;
mod bf16;
mod buffer;
mod decode;
mod dropout;
mod dry_run;
mod embed;
mod glu;
pub mod matmul;
mod norm;
pub mod par;
pub mod prefetch;
mod rope;
mod sample;
mod scratch;
pub mod simd;
pub mod skinny;
mod token_logp;

pub use buffer::Buffer;
pub use dry_run::{DryBuffer, DryRun, Memory};

use crate::backend::{
    Activation, AdamWSpec, AttentionSpec, Backend, Draw, DropoutSpec, NormSpec, SamplingSpec, Store, Weight,
};
use crate::lists::{PreparedLists, RankedLists};
use bf16::Numbers;
use buffer::Pool;
use matmul::{Threads, matmul, view, view_mut};
use std::sync::Arc;

/// Features that the fast CPU backend was built with: `gemm`, `rayon`.
pub fn features() -> &'static [&'static str] {
    match (cfg!(feature = "gemm"), cfg!(feature = "rayon")) {
        (true, true) => &["gemm", "rayon"],
        (true, false) => &["gemm"],
        (false, true) => &["rayon"],
        (false, false) => &[],
    }
}

/// The fast CPU backend. Clones share one pool of buffers.
#[derive(Clone, Default)]
pub struct Cpu {
    pool: Arc<Pool>,
}

impl Cpu {
    /// A backend with an empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// Scratch that weights are widened into; none where there is nothing to widen.
    fn wide(&self, len: usize) -> Option<Buffer> {
        (len > 0).then(|| self.alloc(len))
    }
}

impl Backend for Cpu {
    type Buffer = Buffer;
    type Index = Vec<u32>;
    type Lists = PreparedLists;

    fn name(&self) -> String {
        "cpu".into()
    }

    fn multiplies_in_half(&self) -> bool {
        false
    }

    fn alloc(&self, len: usize) -> Buffer {
        self.pool.take(len)
    }

    fn len(&self, x: &Buffer) -> usize {
        x.len()
    }

    fn upload(&self, data: &[f32]) -> Buffer {
        let mut x = self.alloc(data.len());
        x.as_mut_slice().copy_from_slice(data);
        x
    }

    fn upload_bf16(&self, data: &[f32]) -> Buffer {
        let mut x = self.alloc_bf16(data.len());
        x.halves_mut().iter_mut().zip(data).for_each(|(x, &data)| *x = bf16::narrow(data));
        x
    }

    fn alloc_bf16(&self, len: usize) -> Buffer {
        self.pool.take_bf16(len)
    }

    fn upload_index(&self, data: &[u32]) -> Vec<u32> {
        data.to_vec()
    }

    fn upload_lists(&self, lists: &RankedLists) -> PreparedLists {
        PreparedLists::new(lists)
    }

    fn download(&self, x: &Buffer, out: &mut [f32]) {
        x.numbers().copy_to(out);
    }

    fn read(&self, x: &Buffer) -> Vec<f64> {
        let mut out = vec![0.0; x.len()];
        self.download(x, &mut out);
        out.into_iter().map(f64::from).collect()
    }

    fn read_all(&self, buffers: &[&Buffer]) -> Vec<Vec<f64>> {
        buffers.iter().map(|x| self.read(x)).collect()
    }

    fn fill(&self, x: &mut Buffer, value: f64) {
        par::rows(x.as_mut_slice(), 1, |_, block| block.fill(value as f32));
    }

    fn copy(&self, x: &Buffer, y: &mut Buffer, store: Store) {
        assert_eq!(x.len(), y.len(), "copy: lengths differ");
        let x = x.as_slice();
        par::rows(y.as_mut_slice(), 1, |first, y| {
            let x = &x[first..first + y.len()];
            match store {
                Store::Set => y.copy_from_slice(x),
                Store::Add => simd::dispatch(
                    #[inline(always)]
                    || y.iter_mut().zip(x).for_each(|(y, x)| *y += x),
                ),
            }
        });
    }

    fn trim(&self) {
        self.pool.trim();
    }

    fn limit(&self, bytes: u64) {
        self.pool.limit(bytes as usize);
    }

    fn embed(&self, table: &Buffer, ids: &Vec<u32>, channels: usize, y: &mut Buffer) {
        assert_eq!(y.len(), ids.len() * channels, "embed: y is (ids, channels)");
        embed::gather_rows(table.numbers(), ids, channels, y.as_mut_slice());
    }

    fn embed_grad(&self, d_y: &Buffer, ids: &Vec<u32>, channels: usize, d_table: &mut Buffer, store: Store) {
        assert_eq!(d_y.len(), ids.len() * channels, "embed_grad: d_y is (ids, channels)");
        embed::gather_rows_grad(d_y.as_slice(), ids, channels, d_table.as_mut_slice(), store);
    }

    fn linear(&self, x: &Buffer, w: Weight<Buffer>, y: &mut Buffer, store: Store) {
        let n = rows("linear", x, w.in_features);
        assert_eq!(y.len(), n * w.out_features, "linear: y is (n, out)");
        let mut wide = self.wide(matmul::linear_wide_len(n, w.data.numbers(), w.in_features));
        let wide = wide.as_mut().map_or(&mut [][..], Buffer::as_mut_slice);
        matmul::linear(x.as_slice(), w.data.numbers(), w.out_features, y.as_mut_slice(), store, wide);
    }

    fn linear_grad_x(&self, d_y: &Buffer, w: Weight<Buffer>, d_x: &mut Buffer, store: Store) {
        let n = rows("linear_grad_x", d_y, w.out_features);
        let (d_y, data) = (view(d_y.as_slice(), n, w.out_features), w.data.numbers());
        let mut wide = self.wide(data.wide_len(bf16::PART.max(w.in_features)));
        let wide = wide.as_mut().map_or(&mut [][..], Buffer::as_mut_slice);
        matmul::linear_grad_x(d_y, data, view_mut(d_x.as_mut_slice(), n, w.in_features), store, wide);
    }

    fn linear_grad_w(
        &self,
        d_y: &Buffer,
        x: &Buffer,
        out_features: usize,
        in_features: usize,
        d_w: &mut Buffer,
        store: Store,
    ) {
        let n = rows("linear_grad_w", x, in_features);
        let d_w = view_mut(d_w.as_mut_slice(), out_features, in_features);
        let (d_y, x) = (view(d_y.as_slice(), n, out_features), view(x.as_slice(), n, in_features));
        matmul(1.0, d_y.t(), x, d_w, store, Threads::All);
    }

    fn rms_norm(&self, x: &Buffer, w: &Buffer, spec: NormSpec, y: &mut Buffer, rstd: &mut Buffer) {
        assert_eq!(rows("rms_norm", x, w.len()), rstd.len(), "rms_norm: rstd is (n)");
        norm::rms_norm(x.as_slice(), w.as_slice(), spec, y.as_mut_slice(), rstd.as_mut_slice());
    }

    fn rms_norm_grad(
        &self,
        d_y: &Buffer,
        x: &Buffer,
        w: &Buffer,
        spec: NormSpec,
        rstd: &Buffer,
        d_x: (&mut Buffer, Store),
        d_w: Option<(&mut Buffer, Store)>,
    ) {
        assert_eq!(rows("rms_norm_grad", x, w.len()), rstd.len(), "rms_norm_grad: rstd is (n)");
        norm::rms_norm_grad(
            d_y.as_slice(),
            x.as_slice(),
            w.as_slice(),
            spec,
            rstd.as_slice(),
            (d_x.0.as_mut_slice(), d_x.1),
            d_w.map(|(d, s)| (d.as_mut_slice(), s)),
        );
    }

    fn layer_norm(&self, x: &Buffer, w: &Buffer, eps: f64, y: &mut Buffer, stats: &mut Buffer) {
        assert_eq!(2 * rows("layer_norm", x, w.len()), stats.len(), "layer_norm: stats is (n, 2)");
        norm::layer_norm(x.as_slice(), w.as_slice(), eps as f32, y.as_mut_slice(), stats.as_mut_slice());
    }

    fn layer_norm_grad(
        &self,
        d_y: &Buffer,
        x: &Buffer,
        w: &Buffer,
        stats: &Buffer,
        d_x: (&mut Buffer, Store),
        d_w: Option<(&mut Buffer, Store)>,
    ) {
        assert_eq!(2 * rows("layer_norm_grad", x, w.len()), stats.len(), "layer_norm_grad: stats is (n, 2)");
        norm::layer_norm_grad(
            d_y.as_slice(),
            x.as_slice(),
            w.as_slice(),
            stats.as_slice(),
            (d_x.0.as_mut_slice(), d_x.1),
            d_w.map(|(d, s)| (d.as_mut_slice(), s)),
        );
    }

    fn head_norm(
        &self,
        x: &Buffer,
        w_q: &Buffer,
        w_k: &Buffer,
        eps: f64,
        spec: &AttentionSpec,
        y: &mut Buffer,
        rstd: &mut Buffer,
    ) {
        let n = rows("head_norm", x, spec.qkv_width());
        assert_eq!((y.len(), rstd.len()), (x.len(), n * (spec.heads + spec.kv_heads)), "head_norm: y, rstd (n, heads)");
        let w = [w_q.as_slice(), w_k.as_slice()];
        norm::head_norm(x.as_slice(), w, eps as f32, spec, y.as_mut_slice(), rstd.as_mut_slice());
    }

    fn head_norm_grad(
        &self,
        d_y: &Buffer,
        x: &Buffer,
        w_q: &Buffer,
        w_k: &Buffer,
        rstd: &Buffer,
        spec: &AttentionSpec,
        d_x: &mut Buffer,
        d_w_q: Option<(&mut Buffer, Store)>,
        d_w_k: Option<(&mut Buffer, Store)>,
    ) {
        assert_eq!((d_y.len(), d_x.len()), (x.len(), x.len()), "head_norm_grad: d_y and d_x are like x");
        let d_w = [d_w_q, d_w_k].map(|d_w| d_w.map(|(d, store)| (d.as_mut_slice(), store)));
        let (w, rstd) = ([w_q.as_slice(), w_k.as_slice()], rstd.as_slice());
        norm::head_norm_grad(d_y.as_slice(), x.as_slice(), w, rstd, spec, d_x.as_mut_slice(), d_w);
    }

    fn broadcast_rows(&self, x: &Buffer, y: &mut Buffer, store: Store) {
        rows("broadcast_rows", y, x.len());
        norm::broadcast_rows(x.as_slice(), y.as_mut_slice(), store);
    }

    fn sum_rows(&self, x: &Buffer, y: &mut Buffer, store: Store) {
        rows("sum_rows", x, y.len());
        norm::sum_rows(x.as_slice(), y.as_mut_slice(), store);
    }

    fn rope(&self, qkv: &mut Buffer, positions: &Vec<u32>, table: &Buffer, spec: &AttentionSpec, inverse: bool) {
        assert_eq!(rows("rope", qkv, spec.qkv_width()), positions.len(), "rope: one position a row");
        rope::rope(qkv.as_mut_slice(), positions, table.as_slice(), spec, inverse);
    }

    fn attention(&self, qkv: &Buffer, segments: &Vec<u32>, spec: &AttentionSpec, o: &mut Buffer, lse: &mut Buffer) {
        let n = rows("attention", qkv, spec.qkv_width());
        assert_eq!((o.len(), lse.len()), (n * spec.out_width(), n * spec.heads), "attention: o and lse");
        attention::attention(qkv.as_slice(), segments, spec, o.as_mut_slice(), lse.as_mut_slice());
    }

    fn attention_grad(
        &self,
        d_o: &Buffer,
        qkv: &Buffer,
        o: &Buffer,
        lse: &Buffer,
        segments: &Vec<u32>,
        spec: &AttentionSpec,
        d_qkv: &mut Buffer,
    ) {
        assert_eq!(qkv.len(), d_qkv.len(), "attention_grad: d_qkv is like qkv");
        let (d_o, qkv, o, lse) = (d_o.as_slice(), qkv.as_slice(), o.as_slice(), lse.as_slice());
        attention::attention_grad(d_o, qkv, o, lse, segments, spec, d_qkv.as_mut_slice());
    }

    fn glu(&self, gate_up: &Buffer, width: usize, activation: Activation, y: &mut Buffer) {
        assert_eq!(gate_up.len(), 2 * y.len(), "glu: gate_up is (n, 2·width)");
        glu::glu(gate_up.as_slice(), width, activation, y.as_mut_slice());
    }

    fn glu_grad(&self, d_y: &Buffer, gate_up: &Buffer, width: usize, activation: Activation, d_gate_up: &mut Buffer) {
        assert_eq!(gate_up.len(), d_gate_up.len(), "glu_grad: d_gate_up is like gate_up");
        glu::glu_grad(d_y.as_slice(), gate_up.as_slice(), width, activation, d_gate_up.as_mut_slice());
    }

    fn activate(&self, x: &Buffer, activation: Activation, y: &mut Buffer) {
        assert_eq!(x.len(), y.len(), "activate: y is like x");
        glu::activate(x.as_slice(), activation, y.as_mut_slice());
    }

    fn activate_grad(&self, d_y: &Buffer, x: &Buffer, activation: Activation, d_x: &mut Buffer) {
        assert_eq!((d_y.len(), d_x.len()), (x.len(), x.len()), "activate_grad: d_y and d_x are like x");
        glu::activate_grad(d_y.as_slice(), x.as_slice(), activation, d_x.as_mut_slice());
    }

    fn gather_rows(&self, x: &Buffer, rows: &Vec<u32>, channels: usize, y: &mut Buffer) {
        assert_eq!(y.len(), rows.len() * channels, "gather_rows: y is (rows, channels)");
        embed::gather_rows(Numbers::F32(x.as_slice()), rows, channels, y.as_mut_slice());
    }

    fn gather_rows_grad(&self, d_y: &Buffer, rows: &Vec<u32>, channels: usize, d_x: &mut Buffer, store: Store) {
        assert_eq!(d_y.len(), rows.len() * channels, "gather_rows_grad: d_y is (rows, channels)");
        embed::gather_rows_grad(d_y.as_slice(), rows, channels, d_x.as_mut_slice(), store);
    }

    fn token_logp(
        &self,
        h: &Buffer,
        w: Weight<Buffer>,
        softcap: Option<f64>,
        target_rows: &Vec<u32>,
        target_ids: &Vec<u32>,
        logp: &mut Buffer,
        lse: &mut Buffer,
    ) {
        let r = rows("token_logp", h, w.in_features);
        assert_eq!((lse.len(), logp.len()), (r, target_ids.len()), "token_logp: lse is (rows), logp (targets)");
        let (softcap, c) = (softcap.map(|c| c as f32), w.in_features);
        let head = token_logp::Head { h: h.as_slice(), w: w.data.numbers(), c, softcap, target_rows, target_ids };
        let mut tile = self.alloc(token_logp::tile_len(r, w.out_features));
        let mut wide = self.wide(w.data.numbers().wide_len(token_logp::tile_columns(r, w.out_features) * c));
        let wide = wide.as_mut().map_or(&mut [][..], Buffer::as_mut_slice);
        token_logp::token_logp(head, logp.as_mut_slice(), lse.as_mut_slice(), (tile.as_mut_slice(), wide));
    }

    fn token_logp_grad(
        &self,
        d_logp: &Buffer,
        h: &Buffer,
        w: Weight<Buffer>,
        softcap: Option<f64>,
        target_rows: &Vec<u32>,
        target_ids: &Vec<u32>,
        lse: &Buffer,
        d_h: (&mut Buffer, Store),
        d_w: Option<(&mut Buffer, Store)>,
    ) {
        let r = rows("token_logp_grad", h, w.in_features);
        assert_eq!((lse.len(), d_logp.len()), (r, target_ids.len()), "token_logp_grad: lse (rows), d_logp (targets)");
        let (softcap, c) = (softcap.map(|c| c as f32), w.in_features);
        let head = token_logp::Head { h: h.as_slice(), w: w.data.numbers(), c, softcap, target_rows, target_ids };
        let mut tile = self.alloc(token_logp::tile_len(r, w.out_features));
        let mut wide = self.wide(w.data.numbers().wide_len(token_logp::tile_columns(r, w.out_features) * c));
        let wide = wide.as_mut().map_or(&mut [][..], Buffer::as_mut_slice);
        let d_h = (d_h.0.as_mut_slice(), d_h.1);
        let d_w = d_w.map(|(d, s)| (d.as_mut_slice(), s));
        token_logp::token_logp_grad(d_logp.as_slice(), head, lse.as_slice(), d_h, d_w, (tile.as_mut_slice(), wide));
    }

    fn weighted_sum(&self, x: &Buffer, w: &Buffer, y: &mut Buffer) {
        assert_eq!(x.len(), w.len(), "weighted_sum: one weight an element");
        let sum: f64 = x.as_slice().iter().zip(w.as_slice()).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
        y.as_mut_slice()[0] = sum as f32;
    }

    fn weighted_sum_grad(&self, d_y: &Buffer, w: &Buffer, d_x: &mut Buffer, store: Store) {
        let d = d_y.as_slice()[0];
        for (d_x, w) in d_x.as_mut_slice().iter_mut().zip(w.as_slice()) {
            *d_x = if store == Store::Add { *d_x + d * w } else { d * w };
        }
    }

    fn list_loss(
        &self,
        logp: &Buffer,
        reference: &Buffer,
        lists: &PreparedLists,
        gamma: &mut Buffer,
        loss: &mut Buffer,
        d_logp: &mut Buffer,
    ) {
        let widen = |x: &Buffer| x.as_slice().iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let result = lists.evaluate(&widen(logp), &widen(reference));
        narrow(&result.gamma, gamma);
        narrow(&result.loss, loss);
        narrow(&result.d_logp, d_logp);
    }

    fn dropout(&self, x: &Buffer, spec: &DropoutSpec, y: &mut Buffer, store: Store) {
        assert_eq!(x.len(), y.len(), "dropout: two arrays of one length");
        dropout::dropout(x.as_slice(), spec, y.as_mut_slice(), store);
    }

    fn scale(&self, x: &mut Buffer, y: &Buffer) {
        let factor = y.as_slice()[0];
        x.as_mut_slice().iter_mut().for_each(|x| *x *= factor);
    }

    fn sq_norm(&self, x: &Buffer, out: &mut Buffer, at: usize) {
        out.as_mut_slice()[at] = adamw::sq_norm(x.as_slice()) as f32;
    }

    fn clip(&self, sq_norms: &Buffer, max_norm: f64, out: &mut Buffer) {
        let norm = sq_norms.as_slice().iter().map(|&v| f64::from(v)).sum::<f64>().sqrt();
        let clip = if max_norm > 0.0 && norm > max_norm { max_norm / norm } else { 1.0 };
        out.as_mut_slice().copy_from_slice(&[norm as f32, clip as f32]);
    }

    fn adamw(&self, spec: &AdamWSpec, w: &mut Buffer, g: &Buffer, m: &mut Buffer, v: &mut Buffer, clip: &Buffer) {
        assert_eq!((w.len(), m.len(), v.len()), (g.len(), g.len(), g.len()), "adamw: four arrays of one length");
        let factor = clip.as_slice()[1];
        adamw::adamw(spec, w.as_mut_slice(), g.as_slice(), m.as_mut_slice(), v.as_mut_slice(), factor);
    }

    fn kv_append(&self, qkv: &Buffer, slots: &Vec<u32>, spec: &AttentionSpec, cache: &mut Buffer) {
        assert_eq!(rows("kv_append", qkv, spec.qkv_width()), slots.len(), "kv_append: one slot a row");
        decode::kv_append(qkv.as_slice(), slots, spec, cache.as_mut_slice());
    }

    fn decode_attention(&self, qkv: &Buffer, cache: &Buffer, spans: &Vec<u32>, spec: &AttentionSpec, o: &mut Buffer) {
        let n = rows("decode_attention", qkv, spec.qkv_width());
        assert_eq!((spans.len(), o.len()), (n * 4, n * spec.out_width()), "decode_attention: spans (n, 4), o");
        decode::decode_attention(qkv.as_slice(), cache.as_slice(), spans, spec, o.as_mut_slice());
    }

    fn softcap(&self, x: &mut Buffer, c: f64) {
        par::rows(x.as_mut_slice(), 1, |_, x| {
            simd::dispatch(
                #[inline(always)]
                || x.iter_mut().for_each(|x| *x = simd::softcap(c as f32, *x).0),
            );
        });
    }

    fn sample(&self, logits: &Buffer, vocab: usize, spec: &SamplingSpec, uniform: &[f64]) -> Vec<Draw> {
        assert_eq!(rows("sample", logits, vocab), uniform.len(), "sample: one random number a row");
        sample::sample(logits.as_slice(), vocab, spec, uniform)
    }
}

#[track_caller]
fn rows(op: &str, x: &Buffer, width: usize) -> usize {
    assert!(width > 0 && x.len().is_multiple_of(width), "{op}: {} floats do not fill rows of {width}", x.len());
    x.len() / width
}

fn narrow(from: &[f64], to: &mut Buffer) {
    for (to, &from) in to.as_mut_slice().iter_mut().zip(from) {
        *to = from as f32;
    }
}
